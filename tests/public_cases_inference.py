"""Calls of statistics, edge inference and explanations."""

import numpy as np
import torch
from public_registry import Case, add, call

from gsnn.graph.container import EDGE_TYPES
from gsnn.optim.staging import CompletionSettings, Samples

add(
    "gsnn.stats.baselines",
    baseline=lambda w: call("ridge", *(t.double().numpy() for t in (w.x, w.y, w.x[:5])), 0),
    r2=lambda w: call(np.eye(3), np.eye(3) * 0.9, np.zeros((3, 3))),
)
TARGETS = torch.tensor([0, 3])


def use_moments(moments, w):
    return moments.cross(TARGETS), moments.gram(0, TARGETS)


add(
    "gsnn.stats.moments",
    CoMoments=Case(lambda w: call(**vars(w.moments)), use=use_moments),
    add_samples=Case(lambda w: call(w.moments, *w.pairs), changes=(0,)),
    merge=lambda w: call([w.moments, w.moments]),
    spread=lambda w: call(w.moments.m_x, w.moments.mean_x, 20, 2.0**-52),
    correlation=lambda w: call(w.moments, TARGETS),
    partial_correlation=lambda w: call(w.moments, TARGETS, torch.tensor([[1], [2]])),
    aggregate=lambda w: call(w.tensor(2, 4, 4), "max"),
)


def alone(w):
    """The process group of this process alone."""
    import torch.distributed as dist

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    return dist.group.WORLD


add(
    "gsnn.stats.processes",
    group_of=lambda w: call(None),
    gathered=lambda w: call(w.x, alone(w)),
    summed=Case(lambda w: call(w.x, group=alone(w)), changes=(0,)),
    from_first=Case(lambda w: call(w.x, alone(w)), changes=(0,)),
    merged_fit=Case(lambda w: call(w.moments, 0.0, None, 2, 5, torch.device("cpu"), alone(w)), changes=(0,)),
    merged=Case(lambda w: call(w.moments, [20], 2, 5, torch.device("cpu"), alone(w)), changes=(0,)),
    average_running_statistics=Case(lambda w: call(w.models[0], alone(w)), changes=(0,)),
)


def group_moments(w):
    from gsnn.stats.pursuit import GroupMoments

    moments = GroupMoments(2, 4, 3)
    moments.add(w.tensor(2, 30, 4, 3, dtype=torch.float64), w.tensor(2, 30, 4, 3, dtype=torch.float64))
    return moments


def use_group_moments(moments, w):
    moments.merge(group_moments(w))
    return moments.effects()


add(
    "gsnn.stats.pursuit",
    GroupMoments=Case(lambda w: call(2, 4, 3), use=use_group_moments),
    Pursuit=Case(
        lambda w: call(group_moments(w)),
        use=lambda p, w: (p.left(0, [1]), p.scores(0, [1]), p.p_values(0, [1])),
    ),
    largest=lambda w: call(w.tensor(4, 3, 3, dtype=torch.float64)),
    whitener=lambda w: call(torch.eye(3, dtype=torch.float64).expand(4, 3, 3), torch.zeros(4, 3)),
)
SCORES, LABELS = [0.9, 0.3, 0.3, 0.1], [1, 0, 1, 0]
add(
    "gsnn.stats.ranking",
    auc=lambda w: call(SCORES, LABELS),
    average_precision=lambda w: call(SCORES, LABELS),
    ranks=lambda w: call(np.array([SCORES, SCORES]), [0, 2]),
    best_rows=lambda w: call(np.array([SCORES, SCORES]).T, 2, np.ones((4, 2), dtype=bool)),
    mrr=lambda w: call([1.0, 2.0]),
    hits=lambda w: call([1.0, 2.0], 1),
)


def slots(w):
    return w.numbers.normal(size=(2, 20, 3)), w.numbers.normal(size=(2, 20, 2))


def pooled(w):
    from gsnn.stats.regression import pooled_least_squares

    return pooled_least_squares(*slots(w))


add(
    "gsnn.stats.regression",
    PooledFit=Case(lambda w: call(*pooled(w)), use=lambda fit, w: fit.p_values("greater")),
    centred=lambda w: call(slots(w)[0], np.repeat([0, 1], 10)),
    squared_error=lambda w: call(w.tensor(3, 2), w.tensor(3, 2, 9), w.tensor(2, 9)),
    pooled_least_squares=lambda w: call(*slots(w), np.repeat([0, 1], 10)),
)


def use_collector(collector, w):
    collector.add(*w.pairs)
    return collector.result()


add(
    "gsnn.stats.samples",
    Samples=Case(lambda w: call(**vars(w.samples)), use=use_moments),
    as_moments=lambda w: call(w.samples),
    extended=Case(lambda w: call(w.samples, *w.pairs), changes=(0,)),
    joined=Case(lambda w: call(w.samples, w.moments), changes=(0, 1)),
    Collector=Case(lambda w: call(), use=use_collector),
)
add(
    "gsnn.stats.significance",
    fisher_p=lambda w: call([0.1, np.nan, 1.0], 30, 2),
    benjamini_hochberg=lambda w: call([0.1, np.nan, 0.001]),
)
add(
    "gsnn.stats.standardize",
    batch_moments=lambda w: call(w.tensor(3, 9)),
    running_moments=lambda w: call(*(w.tensor(3).abs() for _ in range(4)), 0.1, True),
    standardized=lambda w: call(w.tensor(3, 9), w.tensor(3), w.tensor(3).abs(), 1e-6),
)


def use_inferer(inferer, w):
    inferer.fit(w.batches, verbose=False)
    inferer.partial_fit(w.batches, verbose=False)
    table = inferer.evaluate()
    ranking = inferer.evaluate_target_ranking(table, w.missing)
    return table, inferer.evaluate_against(w.missing), ranking, inferer.n


def use_kge(kge, w):
    history = kge.fit(2, validation_edges=w.missing, verbose=False)
    kge.load_best()
    return history, kge.evaluate(fuse=0.3), kge.evaluate_against(w.missing)


def use_regressor(regressor, w):
    told = [w.step(regressor, x, y) for x, y in w.batches]
    saved = regressor.maybe_save_best(0.5)
    regressor.load_best()
    return told, saved, regressor.scores(), regressor.evaluate(), regressor.evaluate_against(w.missing)


add(
    "gsnn.optim.FirstOrderEdgeInferer",
    FirstOrderEdgeInferer=Case(
        lambda w: call(w.model, w.graph),
        use=lambda inferer, w: (use_inferer(inferer, w), inferer.greedy(2), inferer.effects()),
    ),
)
add(
    "gsnn.optim.MagnitudeEdgeInferer",
    MagnitudeEdgeInferer=Case(lambda w: call(w.model, w.graph), use=use_inferer),
)
add(
    "gsnn.optim.MagnitudeEdgeKGE",
    MagnitudeEdgeKGE=Case(
        lambda w: call(w.mei, embedding_dim=4, walks_per_node=2, walk_length=3), draws=True, use=use_kge
    ),
)
add(
    "gsnn.optim.MagnitudeEdgeRegressor",
    MagnitudeEdgeRegressor=Case(lambda w: call(w.model, w.graph), draws=True, use=use_regressor),
)
add(
    "gsnn.optim.batch_scale",
    BatchScale=Case(
        lambda w: call(torch.nn.functional.mse_loss),
        use=lambda scale, w: scale(w.y.requires_grad_(), w.y + 1),
    ),
    unpack=lambda w: call((w.x, w.y), torch.device("cpu"), torch.float32),
    device_of=lambda w: call(w.model),
    dtype_of=lambda w: call(w.model),
)
add(
    "gsnn.optim.candidates",
    pair_weights=lambda w: call(w.kept, w.missing, {("f0", "f2"): 0.5}),
    named_pairs=lambda w: call(w.table, "edges"),
    OpenPairs=Case(
        lambda w: call({EDGE_TYPES[0]: w.kept}, {EDGE_TYPES[0]: np.where(w.kept.mask, 0.0, 1.0)}),
        use=lambda pairs, w: (pairs.number, pairs.of(w.graph, w.missing).number),
    ),
)
COMPLETE = {
    "stages": 2,
    "verbose": False,
    "settings": {
        "channels": 2,
        "layers": 3,
        "epochs": 1,
        "base_steps": 2,
        "stage_steps": 2,
        "batch_size": 12,
    },
}
add(
    "gsnn.optim.complete",
    Completion=lambda w: call(w.graph, w.model, w.table, {0: 1.0}),
    complete=lambda w: call(w.graph, *w.frames, 2, checkpoint_path=w.folder / "complete.ck", **COMPLETE),
)
add(
    "gsnn.optim.cross_validation",
    CrossValidation=lambda w: call(w.table, w.table, w.table, {0: np.eye(2)}, {0: np.ones((1, 2, 2))}),
    complete_cv=lambda w: call(
        w.graph, *w.frames, [1], folds=2, draws=1, checkpoint_path=w.folder / "cv.ck", **COMPLETE
    ),
)
add(
    "gsnn.optim.edge_scores",
    common_neighbours=lambda w: call(w.graph),
    degree_product=lambda w: call(w.graph),
    edge_scores=lambda w: call(w.model, w.graph, w.batches, verbose=False),
)
PLACES = (np.array([0, 1]), np.array([2, 3]))
add(
    "gsnn.optim.edge_table",
    KeptEdges=Case(lambda w: call(**vars(w.kept)), use=lambda kept, w: (kept.mask, kept.holds(*PLACES))),
    all_pairs=lambda w: call(w.kept, True),
    edge_table=lambda w: call(w.kept, *PLACES, "corr", {"corr": np.array([0.1, 0.2])}),
    check_pairs=lambda w: call(w.missing),
    check_edges=lambda w: call(w.missing, w.kept.names),
    check_missing=lambda w: call(w.missing, w.kept),
    check_top_k=lambda w: call((1, 3)),
    rank_in_targets=lambda w: call(w.table, w.missing, "corr"),
    judge=lambda w: call(w.table, w.kept, w.missing, "corr"),
    judge_scores=lambda w: call(w.numbers.normal(size=(6, 6)), w.kept, w.missing),
)


add(
    "gsnn.optim.streamed",
    StreamedInferer=Case(lambda w: call(w.model, w.graph), use=lambda inferer, w: inferer.n),
)


def use_layer_captures(captures, w):
    with captures.recording():
        w.model(w.x)
        return [captures.by_node(t) for t in captures.tensors()]


def captured(w):
    with w.captures.recording():
        w.model(w.x)
        return [t.detach() for t in w.captures.tensors()]


add(
    "gsnn.optim.layer_captures",
    LayerCaptures=Case(
        lambda w: call(w.model, list(w.graph.node_names_dict["function"])), use=use_layer_captures
    ),
)
add(
    "gsnn.optim.magnitudes",
    check_aggregators=lambda w: call(["sum", "max"]),
    magnitudes=lambda w: call(w.captures, captured(w), captured(w)[1:], ["sum", "l2"], torch.float32),
    kept_gradients=Case(lambda w: call([w.tensor(3).requires_grad_()]), changes=(0,)),
    check_finite=lambda w: call(w.tensor(6, 4, 9), 2, w.kept.names, 1),
)
NOTHING = np.zeros((6, 6), dtype=bool)


def mined(w):
    from gsnn.optim.mining import MinedEdges

    return MinedEdges.of(w.mei, "corr", "mean", "topk_per_target", 0.05, 1, NOTHING)


add(
    "gsnn.optim.mining",
    mask_of=lambda w: call(w.kept, w.missing),
    MinedEdges=Case(
        lambda w: call(**vars(mined(w))),
        use=lambda m, w: (m.walk_weight(w.kept.mask, True, 1.0, None), m.fused(np.ones((6, 6)), 0.3)),
    ),
)


def use_recent(recent, w):
    for _ in range(3):
        recent.push(w.tensor(6, 4, 9))
    return recent.statistics(1e-7, True)


add("gsnn.optim.recent", RecentSamples=Case(lambda w: call(20, 2), use=use_recent))


def epoch_arguments(w):
    table = torch.nn.Parameter(w.tensor(6, 4))
    optimizer = torch.optim.SGD([table], lr=0.1)
    centre, context = np.array([0, 1, 2], dtype=np.int32), np.array([1, 2, -1], dtype=np.int32)
    rng = np.random.default_rng(0)
    return call(lambda: (table, table), centre, context, NOTHING, 2, 2, optimizer, rng)


add(
    "gsnn.optim.skip_gram",
    train_epoch=Case(epoch_arguments, changes=(6, 7)),  # the optimizer steps, the generator draws
    scores=lambda w: call(
        w.tensor(6, 4), w.tensor(6, 4), torch.tensor([0, 1]), torch.tensor([[1, 2], [3, 4]])
    ),
)
SETTINGS = CompletionSettings.of(COMPLETE["settings"])


def samples(w):
    return Samples(w.x, w.y, torch.arange(24))


def searches(w):
    from gsnn.optim.search import Search

    return [Search(w.graph, samples(w), SETTINGS, seed, "omp", None, None) for seed in (0, 1)]


add(
    "gsnn.optim.search",
    Search=Case(
        lambda w: call(w.graph, samples(w), SETTINGS, 0, "omp", None, None),
        use=lambda search, w: (search.extend(1, 1), search.edges, search.describe()),
    ),
    Stages=Case(
        lambda w: call(searches(w), SETTINGS, w.graph, checkpoint=w.folder / "stages.ck"),
        changes=(0,),
        use=lambda stages, w: stages.add(1),
    ),
    spend=Case(lambda w: call(2, 2, searches(w), SETTINGS, w.graph, verbose=False), changes=(2,)),
)

add(
    "gsnn.optim.staging",
    CompletionSettings=Case(
        lambda w: call(channels=2),
        use=lambda s, w: (s.model(w.graph, 0), s.epochs_of(10, 24), s.final_epochs(24)),
    ),
    Samples=Case(lambda w: call(**vars(samples(w))), use=lambda s, w: (s.take([0, 2]), s.scaled(w.scaling))),
    checked=lambda w: call(2, 1, "omp", 0, {"channels": 2}),
    outputs=lambda w: call(w.model, samples(w)),
    squared_errors=lambda w: call(w.model, samples(w)),
    loss=lambda w: call(w.model, samples(w)),
    train_together=Case(
        lambda w: call(w.models, [samples(w)] * 2, [0, 1], SETTINGS, [1, 2], lr=0.01, schedule="cosine"),
        changes=(0,),
    ),
    reduced=lambda w: call(w.trained, w.graph.without_edges([sorted(w.kept.edges)[0]])),
    trained_anew=lambda w: call([w.graph], samples(w), SETTINGS, 0),
    stage_sizes=lambda w: call(7, 3),
)
add(
    "gsnn.optim.verify",
    verify=Case(lambda w: call(w.trained, w.graph, w.missing, *w.frames), once=True),
)


def transitions(w):
    from gsnn.optim.walks import Transitions

    return Transitions.of([0, 0, 1], [1, 2, 0], [1.0, 2.0, 1.0], 3)


add(
    "gsnn.optim.walks",
    Transitions=lambda w: call(**vars(transitions(w))),
    random_walks=Case(lambda w: call(transitions(w), [0, 1], 4, np.random.default_rng(0)), changes=(3,)),
    window_pairs=lambda w: call(np.array([[0, 1, 2], [1, 0, -1]], dtype=np.int32), 2),
)


def use_predictor(predictor, w):
    x, rows = predictor.table(w.frames[0], "x")
    with predictor.frozen():
        return predictor(x), predictor.of_mask("nodes", torch.ones(24, 6), x), predictor.names("edges"), rows


add(
    "gsnn.explain.attribution",
    attribute=Case(
        lambda w: call(w.trained, w.frames[0], "o0", method="occlusion", per_sample=True), needs="captum"
    ),
    contrast=Case(lambda w: call(w.trained, w.x[:3], w.x[3:6], 0, per_sample=True), needs="captum"),
)
add("gsnn.explain.predictor", Predictor=Case(lambda w: call(w.trained, "o1"), use=use_predictor))


def found_subgraph(w):
    from gsnn.explain import subgraph

    return subgraph(w.trained, w.frames[0], "o0", size=3, n_random=2)


def subgraph_arguments(w):
    found = found_subgraph(w)
    names = ("fidelity", "random_fidelity", "edges", "candidates")
    kept = {etype: torch.tensor([0]) for etype in w.graph.edge_index_dict}
    return call(w.graph, kept, **{name: getattr(found, name) for name in names})


add(
    "gsnn.explain.subnetwork",
    Subgraph=subgraph_arguments,
    subgraph=lambda w: call(w.trained, w.frames[0], "o0", size=3, n_random=2),
)
add(
    "gsnn.optim.first_order",
    has_residuals=lambda w: call(list(w.model.ResBlocks)),
    residual_gates=lambda w: call(list(w.model.ResBlocks)),
    check_score=lambda w: call("omp", 0.05),
)


def use_other_ends(inferer, w):
    inferer.fit(w.batches, verbose=False)
    return inferer.evaluate(), inferer.greedy(1), inferer.n


for end in ("Input", "Output"):
    case = Case(lambda w: call(w.model, w.graph), use=use_other_ends)
    add(f"gsnn.optim.{end}EdgeInferer", **{f"{end}EdgeInferer": case})
add(
    "gsnn.stats.conformal",
    held_out_widths=lambda w: call(np.ones((5, 2)), np.array([0, 1, 0, 1, 1]), 0.5),
    residual_quantile=lambda w: call(np.ones((5, 2)), 0.5),
    spread_interval=lambda w: call(w.numbers.normal(size=(5, 2)), np.ones((5, 2))),
    cross_conformal=lambda w: call(
        w.numbers.normal(size=(2, 5, 2)), np.arange(24) % 2, np.abs(w.numbers.normal(size=(24, 2)))
    ),
    coverage=lambda w: call(np.zeros((5, 2)), -np.ones((5, 2)), np.ones((5, 2))),
)


def one_batch(w):
    """What an inferer is given of a batch, with the captures that it was made under."""
    x = w.x.requires_grad_()
    prediction = w.model(x)
    target, keep = torch.zeros_like(prediction), torch.arange(24) % 2 == 0
    return call(0, x, prediction, target, prediction.square().mean(), keep, 24.0)


def use_batch(batch, w):
    (probed,) = batch.probe(torch.Generator().manual_seed(0)).gradients([batch.inputs])
    (slope,) = batch.gradients([batch.inputs])
    batch.check_finite(slope[None], "gradient", "input node", ["i0", "i1", "i2"], 0)
    return probed, slope, batch.counted(slope[None])


add(
    "gsnn.optim.gradient_pass",
    # Tensors in the middle of an autograd graph cannot be copied.
    Batch=Case(one_batch, use=use_batch, copies=False),
    over_batches=lambda w: call(w.model, w.captures, w.batches, lambda batch: None, verbose=False),
)
