"""Calls of graphs, tables, simulation, pictures and the command line."""

import networkx as nx
import numpy as np
import pandas as pd
import torch
from public_registry import Case, add, call

from gsnn.app.attributions import Attributions
from gsnn.app.run_folder import RunFolder
from gsnn.graph.container import EDGE_TYPES
from gsnn.optim.cross_validation import CrossValidation

add(
    "gsnn.graph.container",
    HeteroGraph=Case(
        lambda w: call(
            dict(w.graph.edge_index_dict),
            dict(w.graph.node_names_dict),
            {e: torch.ones(index.shape[1]) for e, index in w.graph.edge_index_dict.items()},
            warn=False,
        ),
        use=lambda g, w: (g.with_edges(w.missing), g.without_edges([("f0", "f1")]), g.to_edge_table()),
    ),
    as_graph=lambda w: call(w.graph),
)
add(
    "gsnn.graph.depth",
    default_layers=lambda w: call(w.graph),
    unreached_outputs=lambda w: call(w.graph, 3),
)


def parts(w):
    g = w.graph
    return dict(g.edge_index_dict), g.edge_weight_dict, dict(g.node_names_dict)


add(
    "gsnn.graph.edits",
    added=lambda w: call(*parts(w), w.missing, [1.0, -1.0]),
    removed=lambda w: call(*parts(w), [("f0", "f1")]),
    name_pairs=lambda w: call(w.missing),
)
add(
    "gsnn.graph.flat",
    flat_edges=lambda w: call(w.graph, True),
    flat_masks=lambda w: call(w.model.edge_index, w.graph),
    channel_pattern=lambda w: call(w.plan.in_edges, w.model.edge_index[1], 3),
)


def networkx_parts(w):
    G = nx.DiGraph([("i", "f"), ("f", "o")])
    return [("i", "f"), ("f", "o")], {"input": ["i"], "function": ["f"], "output": ["o"]}, G


add(
    "gsnn.graph.formats",
    from_tsv=lambda w: call(w.files["edges"], w.files["nodes"], warn=False),
    from_edge_table=lambda w: call(w.graph.to_edge_table()),
    to_edge_table=lambda w: call(w.graph),
    from_networkx=lambda w: call(w.graph.to_networkx()),
    from_edges=lambda w: call(*networkx_parts(w), None),
    to_networkx=lambda w: call(w.graph),
    to_pyg=Case(lambda w: call(w.graph), needs="torch_geometric"),
)


def rows(w):
    from gsnn.graph.interactions import read_table

    return read_table(w.files["edges"])


def measured(w):
    _, _, names = parts(w)
    weight = {e: np.ones(i.shape[1]) for e, i in w.graph.edge_index_dict.items()}
    return call("Y", ["f0", "o0"], names, parts(w)[0], weight, False)


INTERACTIONS = pd.DataFrame({"source": ["a", "b"], "target": ["b", "c"], "sign": ["+", "-"]})
add(
    "gsnn.graph.interactions",
    read_table=lambda w: call(w.files["edges"]),
    named_columns=lambda w: call(rows(w)[0], "edges", None, None, None),
    refuse_repeated=lambda w: call(*rows(w)),
    add_measured=Case(measured, changes=(2, 3, 4)),
    need_column=lambda w: call(INTERACTIONS, "it", "sign", "sign"),
    found_column=lambda w: call(INTERACTIONS, ("sign",)),
    end_column=lambda w: call(INTERACTIONS, "target"),
    sign_pair=lambda w: call(pd.DataFrame({"is_stimulation": [1, 0], "is_inhibition": [0, 1]})),
    sign_column=lambda w: call(INTERACTIONS),
    flags_as_signs=lambda w: call(pd.Series(["TRUE", "FALSE"], name="is_inhibition")),
)


def database_rows(w):
    from gsnn.graph.database import Row

    return call([Row("interactions", 0, "a", "b", 1, edges=[("a", "b")])])


add("gsnn.graph.build_graph", build=lambda w: call(INTERACTIONS, ["a"], ["c"], return_report=True))
add(
    "gsnn.graph.database",
    Row=lambda w: call("interactions", 0, "a", "b", 1),
    read_interactions=lambda w: call(
        INTERACTIONS,
        source=None,
        target=None,
        sign=None,
        confidence=None,
        min_confidence=None,
        split=True,
        warn=True,
    ),
    settle_signs=Case(database_rows, changes=(0,)),
    cell_text=lambda w: call(" a "),
    sign_of=lambda w: call("activation"),
    read_partners=lambda w: call("inputs", {"drug": ["a"]}),
)
add(
    "gsnn.graph.types",
    edge_type_label=lambda w: call(EDGE_TYPES[0]),
    GraphParts=Case(lambda w: call({}, {}), copies=False),
    GraphWarning=lambda w: call("it"),
)
add(
    "gsnn.graph.views",
    FrozenList=Case(lambda w: call(["a", "b"]), copies=False),  # copies are plain lists
    DictView=Case(lambda w: call("it", {"a": torch.ones(2)}), use=lambda v, w: v.copy(), copies=False),
)


def open_frame(w):
    from gsnn.data.rows import Rows

    return Rows(w.x, ["i0", "i1", "i2"], "input", "x")


CPU = torch.device("cpu")
add(
    "gsnn.data.dataset",
    Prepared=Case(
        lambda w: call(open_frame(w), w.scaling.scale_x, CPU, torch.float32), use=lambda p, w: p[2:5]
    ),
    prepared=lambda w: call(open_frame(w), w.scaling.scale_x, CPU, torch.float32),
    RowDataset=Case(lambda w: call(w.trained, *w.frames), use=lambda d, w: (d[0], d[[1, 2]], d[-1], len(d))),
)
add(
    "gsnn.data.match",
    is_frame=lambda w: call(w.frames[0]),
    is_pandas=lambda w: call(w.frames[0]),
    node_names=lambda w: call(w.model, "input"),
    as_pair=lambda w: call(w.model, *w.frames, "x", "y"),
    sample_names=lambda w: call(w.frames[0]),
    as_rows=lambda w: call(w.model, w.frames[0], "input", "x"),
    as_table=lambda w: call(w.model, w.frames[0], "input", "x"),
    select_columns=lambda w: call(w.frames[0], ["i2", "i1", "i0"], "input", "x"),
)
NAMES = ["i0", "i1", "i2"]
add(
    "gsnn.data.rows",
    Rows=Case(
        lambda w: call(w.x.numpy(), NAMES, "input", "x"),
        use=lambda r, w: (r[:2], r.take(torch.tensor([3, 1]))[:], list(r.blocks())),
    ),
    check_finite=lambda w: call(w.x, NAMES, "input", "x", None),
    wrong_shape=lambda w: call("x", NAMES, "input", (3, 2)),
    match_columns=lambda w: call(w.frames[0].columns, NAMES, "input", "x"),
    is_read_by_rows=lambda w: call(w.frames[0]),
    is_anndata=lambda w: call(w.frames[0]),
    open_rows=lambda w: call(memory_map(w), NAMES, "input", "x"),
    float_type=lambda w: call(np.dtype("int32"), "x"),
)


def memory_map(w):
    path = w.folder / "x.npy"
    np.save(path, w.x.numpy())
    return np.load(path, mmap_mode="r")


def use_scaling(s, w):
    return s.scale_x(w.x), s.unscale_y(s.scale_y(w.y)), type(s).from_dict(s.to_dict())


def use_moments(moments, w):
    moments.add(w.x)
    return moments.shift_and_scale()


def survey(w):
    from gsnn.data.scaling import Survey

    return Survey.of(open_frame(w), moments=True, checksum=True)


add(
    "gsnn.data.scaling",
    Scaling=Case(lambda w: call(**w.scaling.to_dict()), use=use_scaling),
    ColumnMoments=Case(lambda w: call(), use=use_moments),
    Survey=lambda w: call(**vars(survey(w))),
    scaling_of=lambda w: call(w.trained),
    set_scaling=Case(lambda w: call(w.model, w.scaling), changes=(0,)),
)
add(
    "gsnn.data.tables",
    Data=lambda w: call(w.graph, *w.frames, w.frames[0].index),
    load_data=lambda w: call(*(w.files[n] for n in ("edges", "x", "y")), nodes=w.files["nodes"]),
    read_table=lambda w: call(w.files["x"]),
    check_values=lambda w: call(*w.frames, "x", "y"),
    match_data=lambda w: call(w.graph, *w.frames),
    DataWarning=lambda w: call("it"),
)


def midas_file(w):
    path = w.folder / "MD.csv"
    path.write_text("TR:EGF,TR:Rafi,DA:ALL,DV:Erk\n1,0,10,0.9\n1,1,10,0.2\n")
    return call(path)


def annotated(w):
    import anndata

    obs = pd.DataFrame({"drug": ["d1", "d2"]}, index=["s1", "s2"])
    return call(anndata.AnnData(np.ones((2, 1)), obs, pd.DataFrame(index=["y"])), "drug")


add(
    "gsnn.simulate.database",
    DatabaseStudy=lambda w: call(*[pd.DataFrame()] * 5, ()),
    database_study=lambda w: call(1),
)
add("gsnn.data.midas", read_midas=midas_file)
add("gsnn.data.annotated", from_anndata=Case(annotated, needs="anndata"))
add(
    "gsnn.data.samples",
    Samples=lambda w: call(*w.frames, pd.Series("g", w.frames[0].index)),
    conditions=lambda w: call(w.frames[0]),
    numbered=lambda w: call(["a", "b", "a"]),
)


def figure(w):
    from matplotlib.figure import Figure

    return Figure().add_subplot()


def attributed(w):
    return pd.DataFrame({"name": ["f0", "f1"], "score": [1.0, -0.5]})


def flat_picture(w):
    from gsnn.plot.layout import nodes_and_edges

    return nodes_and_edges(w.graph)


def of_functions(w):
    nodes, edges = flat_picture(w)
    return [n for n in nodes if n[0] == "function"], edges


add(
    "gsnn.plot.graphs",
    layered_graph=Case(lambda w: call(w.graph, inferred=w.missing, ax=figure(w)), changes=("ax",)),
    explanation=Case(lambda w: call(w.graph, attributed(w), ax=figure(w)), changes=("ax",)),
)
add(
    "gsnn.plot.inference",
    score_column=lambda w: call(w.table),
    roc=Case(lambda w: call({"corr": w.table}, w.missing, ax=figure(w)), changes=("ax",)),
    precision_recall=Case(lambda w: call({"corr": w.table}, w.missing, ax=figure(w)), changes=("ax",)),
    score_heatmap=Case(lambda w: call(w.table, ax=figure(w)), changes=("ax",)),
    held_out_ranks=Case(lambda w: call(w.table, w.missing, ax=figure(w)), changes=("ax",)),
)
add(
    "gsnn.plot.layout",
    nodes_and_edges=lambda w: call(w.graph),
    busy_inputs=lambda w: call(*flat_picture(w)),
    surroundings=lambda w: call(*flat_picture(w), w.missing, 5),
    depths=lambda w: call(*of_functions(w)),
    layout=lambda w: call(*flat_picture(w)),
)
add(
    "gsnn.plot.pathways",
    pathway_activations=Case(
        lambda w: call(w.model.get_node_activations(w.x[:4]), {"one": ["f0", "f1"]}, ax=figure(w)),
        changes=("ax",),
    ),
)
add(
    "gsnn.plot.style",
    axes_for=Case(lambda w: call(figure(w), (3, 2)), changes=(0,)),
    bare=Case(lambda w: call(figure(w)), changes=(0,)),
)
add(
    "gsnn.plot.training",
    learning_curve=Case(lambda w: call(w.history, ax=figure(w)), changes=("ax",)),
    r2_by_edges=Case(lambda w: call(by_edges(), ax=figure(w)), changes=("ax",)),
    predicted_vs_measured=Case(lambda w: call(w.y, w.y + 0.1, ax=figure(w)), changes=("ax",)),
)


def parents(values):
    return values[0] + 0.5 * values[1]


def network(w):
    G = nx.DiGraph([("a", "f"), ("b", "f"), ("f", "y")])
    return call(G, 4, 2, ["a", "b"], ["y"], special_functions={"f": parents}, seed=3)


add(
    "gsnn.simulate.elementwise",
    vectorized=lambda w: call(lambda p: p[0]),
    SampleFunction=Case(lambda w: call(parents, "f"), use=lambda f, w: f([np.arange(3.0), np.arange(3.0)])),
)
add(
    "gsnn.simulate.nx2pyg",
    nx2pyg=lambda w: call(networkx_parts(w)[2], ["i"], ["f"], ["o"]),
    pyg2nx=lambda w: call(w.graph),
)


def use_scenario(scenario, w):
    return scenario.full, scenario.partial, scenario.held_out, scenario.sample(4, 2, seed=0)


def pathway_scenario(w):
    from gsnn.simulate.scenarios import disconnected_pathways

    return disconnected_pathways()


add(
    "gsnn.simulate.scenarios",
    Scenario=Case(lambda w: call(**vars(w.scenario)), use=use_scenario),
    PathwayScenario=Case(lambda w: call(**vars(pathway_scenario(w))), use=use_scenario),
    SignedTanh=Case(lambda w: call((1, -1)), use=lambda f, w: f([0.3, 0.5])),
    converging_tiers=lambda w: call(3),
    disconnected_pathways=lambda w: call(2, 3, 2),
    random_signed_dag=lambda w: call(10),
    cyclic=lambda w: call(8),
)
add(
    "gsnn.simulate.simulate",
    simulate=network,
    simulate_sde=lambda w: call(*network(w)[0], seed=3, t_final=1.0),
)

# The main job.


RANKING = {"rank": [1], "source": ["f0"], "target": ["f3"]}


def by_edges():
    ends = ("", "_low", "_high")
    return pd.DataFrame({"budget": [0, 2], **{n + e: [0.1, 0.4] for n in ("r2", "random") for e in ends}})


def predictions(w):
    y = w.frames[1].to_numpy()
    return {"mean": np.zeros_like(y), "ridge": y + 0.5, "mlp": y - 0.2, "gsnn": y + 0.1}


def splits(w):
    return [(np.arange(12), np.arange(12, 24)), (np.arange(12, 24), np.arange(12))]


def without_seconds(found):
    metrics = {k: v for k, v in found.metrics.items() if k != "seconds"}
    return metrics, found.ranking, found.predictions, found.model, found.histories


def use_folder(folder, w):
    with folder.working({"a": 1}, False):
        folder.keep("piece", {"x": w.x})
        return folder.read("piece"), folder.exists()


def write_arguments(w):
    from gsnn.app.candidates import rank_edges

    found = rank_edges(w.trained, w.small_data, verbose=False)
    (w.folder / "written").mkdir()
    return call(
        w.folder / "written",
        metrics=w.run_metrics,
        ranking=found,
        predictions=w.frames[1],
        model=w.trained,
        completed=None,
        figures={},
    )


def page_arguments(w):
    from gsnn.app.candidates import rank_edges

    return call(w.run_metrics, rank_edges(w.trained, w.small_data, verbose=False), None, {})


def spent(w):
    """What completion is told of a run."""
    folder = RunFolder(w.folder)
    folder.path.mkdir(exist_ok=True)
    return {"verbose": False, "unfinished": folder}


def worth(w):
    """Nested cross-validation without the networks."""
    edges = pd.DataFrame({"src_func": ["f0"], "dst_func": ["f3"], "share": [0.5]})
    return CrossValidation(pd.DataFrame({"budget": [1]}), edges, w.table, {}, {})


def added(w):
    columns = {"order": [1], "stage": [1], "src_func": ["f0"], "dst_func": ["f3"], "score": [1.0]}
    columns |= {"verified": [True], "share": [0.5], "alternatives": [(("f1", "f3"),)]}
    return pd.DataFrame(columns)


def candidates_file(w):
    path = w.folder / "candidates.tsv"
    pd.DataFrame(w.missing, columns=["source", "target"]).to_csv(path, sep="\t", index=False)
    return path


def tables(w):
    return {name: w.files[name] for name in ("edges", "x", "y", "nodes")}


def simulated(w):
    path = w.folder / "acyclic.tsv"
    rows = [("a", "f", "input->function"), ("f", "y", "function->output")]
    pd.DataFrame(rows, columns=["source", "target", "etype"]).to_csv(path, sep="\t", index=False)
    return call(path, w.folder / "simulated", samples=5)


ATTRIBUTED = {"output": ["o0"], "input": ["i0"], "score": [0.5], "magnitude": [0.6], "spread": [0.1]}
SKIPPED = {"skipped": "no output is predicted better than by its mean"}


def attributions(w):
    facts = {"outputs": 1, "samples": 24, "drawn": "o0", "completeness": 0.001}
    return Attributions(pd.DataFrame(ATTRIBUTED), facts, {})


add(
    "gsnn.app.attributions",
    Attributions=lambda w: call(None, SKIPPED, {}),
    attributions_of=lambda w: call(w.trained, w.small_data, {"o0": {"gsnn": -0.5}}),
    section_of=lambda w: call(attributions(w)),
)
add(
    "gsnn.app.candidates",
    rank_edges=lambda w: call(w.trained, w.small_data, verbose=False),
    n_pairs=lambda w: call(w.graph),
)
RUN = {"complete": 0, "folds": 2, "channels": 2, "layers": 3, "epochs": 1, "quiet": True}
add(
    "gsnn.app.cli",
    main=lambda w: call(False),
    run=Case(lambda w: call(**tables(w), out=w.folder / "out", **RUN), prints=True, once=True),
)
add(
    "gsnn.app.compare",
    make_splits=lambda w: call(w.frames[1], None, 3, 0),
    scores=lambda w: call(w.frames[1], splits(w), predictions(w)),
)
add(
    "gsnn.app.completion",
    Completed=Case(
        lambda w: call(added(w), w.graph, w.model, worth(w), "", (16, 8)), use=lambda c, w: c.facts()
    ),
    budget_of=lambda w: call(w.small_data, w.options),
    budgets_of=lambda w: call(20),
    settings_of=lambda w: call(w.options),
    put_aside=lambda w: call(w.small_data, 0),
    nested=Case(
        lambda w: call(
            w.small_data,
            w.options,
            splits(w),
            1,
            {"ridge": predictions(w)["ridge"]},
            epochs=[1] * len(splits(w)),
            **spent(w),
        ),
        slow=True,
    ),
    completed=Case(lambda w: call(w.small_data, w.options, w.options, 1, worth(w), **spent(w)), slow=True),
    too_large=lambda w: call(w.small_data, w.options, added(w), 24),
    as_text=lambda w: call(added(w)),
)
add(
    "gsnn.app.completion_commands",
    complete=Case(
        lambda w: call(**tables(w), out=w.folder / "completed", budget="1", epochs=1, quiet=True),
        prints=True,
        slow=True,
    ),
    verify=Case(
        lambda w: call(
            w.model_file,
            w.files["edges"],
            candidates_file(w),
            w.files["x"],
            w.files["y"],
            w.folder / "verified.csv",
            nodes=w.files["nodes"],
        ),
        prints=True,
        slow=True,
    ),
)
add(
    "gsnn.app.config",
    Command=lambda w: call("check", help="What it does.\n\nExample: gsnn check"),
    beside=lambda w: call(w.folder / "verified.csv"),
)
add(
    "gsnn.app.demo",
    Demo=lambda w: call(None, 1, 1, 1, 1, 0),
    demo=Case(
        lambda w: call(w.folder / "demo", w.options, verbose=False),
        result=lambda found: (without_seconds(found.result), found.found),
        slow=True,
    ),
    write_tables=lambda w: call(w.scenario, w.folder / "tables", 5, 0),
)


def database_tables(w):
    path = w.folder / "interactions.csv"
    INTERACTIONS.to_csv(path, index=False)
    (w.folder / "in.tsv").write_text("name\na\n")
    (w.folder / "out.tsv").write_text("name\nc\n")
    return call(path, w.folder / "prior", w.folder / "in.tsv", None, w.folder / "out.tsv")


add("gsnn.app.build_command", build=Case(database_tables, prints=True))
add(
    "gsnn.app.findings",
    headline=lambda w: call(w.run_metrics),
    verified=lambda w: call(w.run_metrics),
    sufficiency=lambda w: call(w.run_metrics),
    unreached=lambda w: call(w.run_metrics),
)
add(
    "gsnn.app.model_commands",
    predict=Case(lambda w: call(w.model_file, w.files["x"], w.folder / "yhat.csv"), prints=True),
    explain=Case(
        lambda w: call(w.model_file, w.files["x"], "o0", w.folder / "why.csv"), prints=True, needs="captum"
    ),
    check=Case(lambda w: call(**tables(w)), prints=True),
    simulate=Case(simulated, prints=True),
)
add(
    "gsnn.app.report",
    describe=lambda w: call(w.small_data),
    before_reading=lambda w: call(w.run_metrics),
    long_predictions=lambda w: call(w.small_data, predictions(w), np.repeat([1, 2], 12)),
    write=write_arguments,
)
add("gsnn.app.report_html", html_report=page_arguments)
add(
    "gsnn.app.run_folder",
    RunFolder=Case(lambda w: call(w.folder), use=use_folder),
    FinishedError=lambda w: call("it"),
    alone=Case(lambda w: call(w.folder), use=lambda c, w: inside(c), copies=False),
    name_of=lambda w: call({"a": 1}),
)
add(
    "gsnn.app.options",
    Options=lambda w: call(folds=2),
    from_command_line=Case(lambda w: call(commanded), result=lambda found: found.__name__),
)
add(
    "gsnn.app.settings",
    settle=lambda w: call(w.small_data, w.options),
    reasons=lambda w: call(w.small_data, w.options),
    new_model=lambda w: call(w.small_data, w.options, 0),
)


def intervals(w):
    from gsnn.app.intervals import intervals_of

    return intervals_of(*interval_arguments(w)[0])


def interval_arguments(w):
    return call(w.small_data, {"gsnn": predictions(w)["gsnn"]}, np.arange(24) % 2 + 1)


add(
    "gsnn.app.intervals",
    Intervals=lambda w: call(None, {"skipped": "why"}),
    intervals_of=interval_arguments,
    section_of=lambda w: call(intervals(w).facts),
)
add("gsnn.app.section", Section=lambda w: call("title", ["text"], head=["a"], rows=[["1"]], numbers=(0,)))


def commanded(options: dict) -> None:
    """A command."""


def inside(context):
    with context:
        return None


add(
    "gsnn.app.training",
    length=lambda w: call(w.small_data, w.options, np.arange(24), 0, False),
    train_side_by_side=Case(
        lambda w: call(w.models, w.small_data, [w.options] * 2, [np.arange(24)] * 2, [0, 1], verbose=False),
        changes=(0,),
    ),
    train_folds=lambda w: call(w.small_data, w.options, splits(w), verbose=False),
)
add("gsnn.app.user_errors", user_errors=Case(lambda w: call(), use=lambda c, w: inside(c), copies=False))
add(
    "gsnn.app.workflow",
    Result=lambda w: call({}, w.table, w.table, w.model, [], None),
    run=Case(lambda w: call(w.small_data, w.folder / "out", w.options, verbose=False), once=True),
    threads_for=Case(lambda w: call(w.small_data, w.options), use=lambda c, w: inside(c), copies=False),
    identity=lambda w: call(w.small_data, w.options),
    check_out=lambda w: call(w.folder / "out", False),
    cross_validate=lambda w: call(w.small_data, w.options, splits(w), w.models[:2]),
    figures_of=lambda w: call(w.small_data, predictions(w), pd.DataFrame(RANKING), None, [], 3, []),
)
