"""Calls of what a network is made of: kernels, captures, models, training, files."""

import copy

import numpy as np
import torch
from public_registry import Case, add, call

from gsnn.kernels.form import Form
from gsnn.models.copies import layout_of
from gsnn.models.pathway_loss import Memberships
from gsnn.train.resume import FitCheckpoint, Progress


def no_grad(function):
    """For kernels that write in place, without autograd."""

    def arguments(w):
        with torch.no_grad():
            return function(w)

    return arguments


def tables(w):
    from gsnn.kernels.bucketed import in_table, out_table

    block = w.block
    into, out = (side.values.detach().view(-1, 3) for side in (block.lin_in, block.lin_out))
    return in_table(into, w.plan), out_table(out, w.plan)


def scatter_weights(w):
    plan = w.plan
    return plan.row_of_edge[plan.in_edges], w.model.edge_index[1][plan.in_edges]


LIN_IN = no_grad(lambda w: call(w.state, w.weights.in_values.view(-1, 3), w.weights.in_bias, w.plan))
LIN_OUT = no_grad(
    lambda w: call(
        w.channels,
        w.weights.out_values.view(-1, 3),
        w.weights.out_bias,
        w.state,
        w.weights.residual,
        w.plan,
    )
)

add(
    "gsnn.kernels.bucketed",
    plain_needed=lambda w: call(),
    differentiable_grads=lambda w: call(
        torch.mul, [w.tensor(3).requires_grad_(), w.tensor(3)], [True, False], w.tensor(3)
    ),
    in_table=lambda w: call(w.weights.in_values.view(-1, 3), w.plan),
    out_table=lambda w: call(w.weights.out_values.view(-1, 3), w.plan),
    product_in=lambda w: call(w.state, tables(w)[0], w.weights.in_bias, w.plan),
    product_in_grads=lambda w: call(w.channels, w.state, tables(w)[0], w.plan, (True, True, True)),
    plain_in=LIN_IN,
    product_out=lambda w: call(
        w.channels, tables(w)[1], w.weights.out_bias, w.state, w.weights.residual.relu(), w.plan
    ),
    product_out_grads=lambda w: call(w.state, w.channels, tables(w)[1], w.plan, (True, True, True)),
    residual_grad=lambda w: call(w.state, w.state, w.weights.residual),
    plain_out=LIN_OUT,
    lin_in=LIN_IN,
    lin_out=LIN_OUT,
    permute_rows=lambda w: call(w.channels, w.plan.order, w.plan.rank),
    read_outputs=lambda w: call(w.state, 0.5, w.plan),
)
UNIT = (1,), True
add(
    "gsnn.kernels.channels",
    unit_scale=lambda w: call(w.channels, *UNIT),
    unit_scale_grads=lambda w: call(
        w.channels, w.tensor(6, 3, 16), w.tensor(6, 1, 16).abs(), w.tensor(6, 1, 1), *UNIT
    ),
    plain_unit=lambda w: call(w.channels, w.tensor(6, 1, 1), w.tensor(6, 1, 1), *UNIT),
    standardize=lambda w: call(w.channels, w.tensor(6, 1, 1), w.tensor(6, 1, 1), *UNIT),
    elu_values=Case(lambda w: call(w.channels), changes=(0,)),
    elu_grad_=Case(lambda w: call(w.channels, w.tensor(6, 3, 16)), changes=(0,)),
    elu=lambda w: call(w.channels),
)
add(
    "gsnn.kernels.compiled",
    BlockArguments=Case(lambda w: call(), copies=False),
    level=lambda w: call(),
    usable=lambda w: call([w.state, None]),
    empty=Case(lambda w: call(w.plan, (3, 4), w.state), result=lambda t: (t.shape, t.dtype)),
    padded=lambda w: call(w.state[:, :5].contiguous()),
    in_memory=lambda w: call(w.state),
)
add(
    "gsnn.kernels.form",
    Form=Case(lambda w: call(3, (1, 2), True), use=lambda form, w: form.over_batch),
    Weights=lambda w: call(*w.weights),
    split=lambda w: call([*w.weights, *w.weights]),
)
add(
    "gsnn.kernels.plan",
    Bucket=lambda w: call(0, 2, 3, 0, 6),
    cut_degrees=lambda w: call(np.array([1, 1, 2, 5, 9])),
    Plan=Case(
        lambda w: call(w.model.edge_index, 6, 3, 2),
        use=lambda plan, w: plan.from_nodes(plan.to_nodes(w.tensor(6, 2))),
    ),
)
add(
    "gsnn.kernels.reference",
    capture=lambda w: call(w.channels, w.plan),
    middle=lambda w: call(w.channels, w.weights, w.form, w.plan),
    plain_stack=lambda w: call(w.state, [*w.weights, *w.weights], w.form, w.plan),
    Products=lambda w: call(torch.mm, torch.mm),
    Reference=Case(lambda w: call(), use=lambda kernel, w: use_kernel(kernel, w)),
    Inside=Case(
        lambda w: call(w.state.requires_grad_(), list(w.weights), w.form, w.plan),
        use=lambda inside, w: inside.read(0),
        copies=False,
    ),
)
add(
    "gsnn.kernels.scatter",
    check_backend=lambda w: call("bucketed"),
    missing=lambda w: call(),
    Incidence=lambda w: call(*(torch.arange(3) for _ in range(7))),
    incidence=lambda w: call(*scatter_weights(w), w.plan.n_rows, w.plan.n_nodes),
    spread=Case(lambda w: spread_arguments(w, w.state), needs="torch_scatter"),
    collect=Case(lambda w: spread_arguments(w, w.channels), needs="torch_scatter"),
    ScatterPlan=Case(lambda w: call(w.model.edge_index, 6, 3, 2), needs="torch_scatter"),
    lin_in=Case(lambda w: scatter_product(LIN_IN(w), w), needs="torch_scatter"),
    lin_out=Case(lambda w: scatter_product(LIN_OUT(w), w), needs="torch_scatter"),
)


def spread_arguments(w, x):
    from gsnn.kernels.scatter import incidence

    rows, nodes = scatter_weights(w)
    where = incidence(rows, nodes, w.plan.n_rows, w.plan.n_nodes)
    return call(x, w.tensor(len(rows), 3), where)


def scatter_product(arguments, w):
    from gsnn.kernels.scatter import ScatterPlan

    return call(*arguments[0][:-1], ScatterPlan(w.model.edge_index, 6, 3, 2))


def side_of(w):
    return w.pair._prepared()[0]


def side_state(w):
    state = torch.zeros(side_of(w).rows[-1], 16)
    state[:, :9] = w.tensor(len(state), 9)
    return state


add(
    "gsnn.kernels.side_by_side",
    Captured=lambda w: call(w.x, w.x),
    usable=lambda w: call(list(w.pair.weights)),
    run_side_by_side=Case(
        lambda w: call(side_state(w), list(w.pair.weights), side_of(w), Form(3, (1, 2), True), [9, 9], None),
        # Columns beyond the samples are documented to mean nothing.
        result=lambda found: (found[0][:, :9], *found[1:]),
        needs="compiled blocks",
    ),
)


def use_kernel(kernel, w):
    """Missing or not, a forward and a backward pass of it."""
    if kernel.missing() or kernel.refuses(w.state, [w.weights], w.form, w.plan):
        return None
    passed = kernel.forward(w.state, [w.weights], w.form, w.plan, True)
    needed = [True, *(t is not None and k < 7 for k, t in enumerate(w.weights))]
    grad = torch.ones_like(w.state)
    return passed.state, kernel.backward(
        grad, w.state, [w.weights], passed.saved, w.form, w.plan, [None], needed
    )


add(
    "gsnn.kernels.interface",
    Passed=Case(lambda w: call(w.state, [], [], []), copies=False),
    Case=Case(lambda w: call(None, w.state, w.weights, w.form, w.plan), copies=False),
)
add("gsnn.kernels.compiled_blocks", CompiledBlocks=Case(lambda w: call(), use=use_kernel))
add("gsnn.kernels.operations", Operations=Case(lambda w: call(), use=use_kernel))
add("gsnn.kernels.scatter_blocks", ScatterBlocks=Case(lambda w: call(), use=use_kernel))
add(
    "gsnn.kernels.registry",
    asked=lambda w: call(),
    pick=lambda w: call(w.state, [w.weights], w.form, w.plan),
    Choice=lambda w: call("torch", {"compiled": "because"}),
    chosen=lambda w: call(w.model, w.x),
)
add(
    "gsnn.kernels.stack",
    run_blocks=Case(lambda w: call(w.state, [w.weights], w.form, w.plan), result=lambda found: found[:3]),
    run_with_captures=Case(
        lambda w: call(w.state, [w.weights], w.form._replace(inside=True), w.plan), needs="compiled blocks"
    ),
)


def use_capture(capture, w):
    capture.switch("on")
    capture.ask("key", "aside")
    capture.leave(w.x, w.y)
    found = capture.pre_norm, capture.activation, capture.mode
    capture.withdraw("key")
    return found


def use_captures(captures, w):
    with captures.recording():
        w.model(w.x)
        return captures.pre_norms(), captures.activations()


add(
    "gsnn.captures",
    Pass=Case(lambda w: call(w.x, w.y), copies=False),
    Capture=Case(lambda w: call(), use=use_capture),
    Captures=Case(lambda w: call(w.model), use=use_captures),
)


def use_model(model, w):
    return (
        model.grown(w.missing, 1),
        model(w.x),
        model.get_node_activations(w.x, agg="all"),
        model.prune(0.01),
    )


def use_regularizer(regularizer, w):
    w.model(w.x)
    return regularizer.loss(w.model)


def use_pair(pair, w):
    pair.restore(0, pair.snapshot(1))
    return pair(w.x), pair.one(0, w.x), pair.members()


PATTERN = torch.tensor([[0, 1, 2, 0], [0, 0, 1, 2]])


def block_arguments(w):
    from gsnn.models.config import Config
    from gsnn.models.norms import NodeNorm

    new = copy.deepcopy(w.block)
    return call(new.lin_in, new.lin_out, NodeNorm("layer", 6, 3), None, Config(3, 2), new.channel_groups)


def with_adamw(w):
    return torch.optim.AdamW(w.model.parameters())


add(
    "gsnn.models.GSNN",
    GSNN=Case(
        lambda w: call(w.graph.edge_index_dict, w.graph.node_names_dict, 3, 2, norm="rms"),
        draws=True,
        use=use_model,
    ),
)
add(
    "gsnn.models.PathwayLatentRegularizer",
    PathwayLatentRegularizer=Case(
        lambda w: call(w.model, [[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]], [(0, 1)], lambda_dis=0.1),
        changes=(0,),  # its captures are switched on
        use=use_regularizer,
    ),
)
add(
    "gsnn.models.ResBlock",
    NodeMLP=Case(lambda w: call(3, 4, torch.nn.ELU, 0.0), draws=True, use=lambda mlp, w: mlp(w.channels)),
    ResBlock=Case(
        block_arguments, draws=True, use=lambda block, w: (block.fusible(None), block(w.state, w.plan))
    ),
    run_fused=lambda w: call([w.block], w.state, w.plan, None),
    runs_fused=lambda w: call([w.block], w.state, w.plan, None),
    kernel_cases=Case(
        lambda w: call([w.block], w.x, w.plan),
        result=lambda found: [case.separate for case in found],  # the state is not filled in
    ),
)
add(
    "gsnn.models.config",
    Config=Case(lambda w: call(3, 2, context=("a",)), use=lambda config, w: config.arguments()),
)
add(
    "gsnn.models.SideBySide",
    SideBySide=Case(lambda w: call(w.models), use=use_pair),
    side_by_side=Case(lambda w: call(w.models), use=lambda pair, w: pair(w.x)),
)
add(
    "gsnn.models.SparseLinear",
    SparseLinear=Case(
        lambda w: call(PATTERN, (3, 3)), draws=True, use=lambda linear, w: (linear(w.x), linear.table())
    ),
)
add(
    "gsnn.models.copies",
    check_alike=lambda w: call(w.models),
    copied=lambda w: call(w.model),
    fresh=lambda w: call(w.model, 3),
    layout_of=lambda w: call(w.model),
    offsets_of=lambda w: call(w.model, layout_of(w.model)),
    with_parameters=Case(
        lambda w: call(w.model, {n: p.detach() + 1 for n, p in w.model.named_parameters()}),
        use=lambda context, w: inside(context, lambda: w.model(w.x)),
        copies=False,
    ),
)


def inside(context, function):
    with context:
        return function()


add(
    "gsnn.models.norms",
    NodeNorm=Case(
        lambda w: call("groupbatch", 6, 3),
        use=lambda norm, w: (norm(w.channels, w.plan), norm.eval()(w.channels, w.plan)),
    ),
    update_statistics=Case(
        lambda w: call(
            [w.models[0].ResBlocks[0].norm], [(w.tensor(6, 1, 1).abs(), w.tensor(6, 1, 1))], 288, w.plan
        ),
        changes=(0,),
    ),
)


def memberships(w):
    group, row = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3])
    return Memberships.of(group, row, torch.ones(4), 2, 6)


add(
    "gsnn.models.pathway_loss",
    Memberships=lambda w: call(**vars(memberships(w))),
    similarity=lambda w: call(w.tensor(6, 16), memberships(w)),
    dissimilarity=lambda w: call(w.tensor(2, 16), torch.tensor([[0, 1]]), 1, 1e-6),
)
SETS = {"one": ["f0", "f1", "f9"], "two": {"f2": 1.0, "f3": -0.5}, "three": ["f4"]}


def gmt(w):
    path = w.folder / "sets.gmt"
    path.write_text("one\t-\tf0\tf1\ntwo\t-\tf2\tf3\n")
    return path


def sets_table(w):
    import pandas as pd

    return pd.DataFrame({"pathway": ["one", "one", "two"], "gene": ["f0", "f1", "f2"], "w": [1.0, 2, 3]})


def pathways(w):
    from gsnn.models.pathways import match_pathways

    return match_pathways(SETS, [f"f{k}" for k in range(6)])


add(
    "gsnn.models.pathways",
    Pathways=Case(lambda w: call(**vars(pathways(w))), use=lambda found, w: found.report()),
    match_pathways=lambda w: call(SETS, [f"f{k}" for k in range(6)]),
    read_gmt=lambda w: call(gmt(w)),
    table_sets=lambda w: call(sets_table(w), weight="w"),
    shuffle_nodes=lambda w: call(torch.eye(4), 0),
    warm_up=lambda w: call(3, 10),
)

FIT = {"epochs": 3, "batch_size": 9, "verbose": False}


def checkpoint(w):
    return FitCheckpoint(w.folder / "fit.ck", {"seed": 1})


def use_checkpoint(found, w):
    optimizer, rng, done = with_adamw(w), torch.Generator(), Progress({}, 0, [1.0], [2.0], [0.1])
    found.save(w.model, optimizer, rng, done)
    found.resume(w.model, optimizer, rng, done)
    found.discard()
    return done


def prepare_arguments(w):
    rng = torch.Generator()
    rng.manual_seed(1)
    return call(w.model, *w.frames, 0.2, True, rng, True, torch.device("cpu"), torch.float32)


add(
    "gsnn.train.loop",
    fit=Case(
        lambda w: call(w.models[0], w.x, w.y, validation=0.2, patience=2, standardize=True, **FIT, seed=1),
        changes=(0,),
    ),
    predict=lambda w: call(w.trained, w.frames[0]),
)
add(
    "gsnn.train.rules",
    Settings=Case(
        lambda w: call(3, 9, 0.1, 0.0, None, torch.nn.functional.mse_loss, "cosine", True),
        use=lambda settings, w: settings.check(0.2),
    ),
    stops=lambda w: call(Progress({}, 0, [1.0], [2.0], [0.1]), 1),
    epoch_state=lambda w: call(Progress({}, 1, [1.0], [2.0], [0.1]), 3, w.model),
    rate=lambda w: call(0.1, "cosine", 3, 10),
    loss_of=lambda w: call(torch.nn.functional.mse_loss, w.y, w.y + 1, False),
    default_criterion=lambda w: call(None),
    weighted_mse=lambda w: call(w.y, w.y + 1, w.y.abs()),
)
add("gsnn.train.history", History=Case(lambda w: call(**vars(w.history)), use=lambda h, w: h.to_frame()))
add(
    "gsnn.train.resume",
    Progress=Case(lambda w: call({}), use=lambda done, w: (done.epoch, done.best_loss)),
    FitCheckpoint=Case(lambda w: call(w.folder / "fit.ck", {"seed": 1}), use=use_checkpoint),
    check_same_run=lambda w: call({"a": 1}, {"a": 1}, "it", "go"),
    describe_versions=lambda w: call(),
    describe_model=lambda w: call(w.model),
    graph_checksum=lambda w: call(w.graph),
    table_checksum=lambda w: call(w.frames[0]),
    text_checksum=lambda w: call("text"),
)
add(
    "gsnn.train.side_by_side",
    fit_side_by_side=Case(
        lambda w: call(w.models, [(w.x, w.y), (w.x[:20], w.y[:20])], seeds=[1, 2], **FIT), changes=(0,)
    ),
)
add(
    "gsnn.train.tables",
    Tables=lambda w: call(w.x, w.y, None, None, None, False, None, {}),
    prepare=Case(prepare_arguments, changes=(5,)),
)


def written(w):
    from gsnn.io.container import write_file

    write_file(w.folder / "file", "gsnn_checkpoint", {"a": 1}, {"x": w.x})
    return w.folder / "file"


def replace(context, w):
    with context as tmp:
        tmp.write_text("new")
    return (w.folder / "text").read_text()


add(
    "gsnn.io.container",
    replacing=Case(lambda w: call(w.folder / "text"), use=replace, copies=False),
    write_file=lambda w: call(w.folder / "file", "gsnn_checkpoint", {"a": 1}, {"x": w.x}),
    read_file=lambda w: call(written(w), "gsnn_checkpoint"),
    untied=lambda w: call(w.model.state_dict()),
    checksum=lambda w: call("header", {"x": w.x}),
)
add(
    "gsnn.io.model",
    save=lambda w: call(w.trained, w.folder / "m.safetensors", extra={"a": [1]}),
    load=lambda w: call(w.model_file),
    read_header=lambda w: call(w.model_file),
)
add("gsnn.io.tables", write_table=lambda w: call(w.table, w.folder / "y.csv", index="sample"))
add("gsnn.train.defaults", default_epochs=lambda w: call(100, 64))
add(
    "gsnn.models.context",
    ContextGate=Case(lambda w: call([0, 2], 6), use=lambda gate, w: gate(w.x, w.plan)),
    context_columns=lambda w: call(["i2", "i0"], ["i0", "i1", "i2"]),
)


def free_blocks(w):
    """Blocks with free weights, and what binds them."""
    model, from_input = w.new_model(norm="groupbatch"), w.model.input_edge_mask
    signs = torch.where(torch.arange(model.E) % 3 == 0, -1.0, 1.0)
    return call(list(model.ResBlocks), signs, from_input, model.plan.in_edges, model.plan.out_edges)


add(
    "gsnn.models.signs",
    bind=Case(free_blocks, changes=(0,)),
    check_signs=lambda w: call("respect", w.signed_graph, "groupbatch", False, torch.nn.ELU),
    signs_of_edges=lambda w: call(w.signed_graph, True),
    bound=lambda w: call(w.tensor(4), torch.tensor([1.0, -1.0, 0.0, 1.0])),
    turned=lambda w: call(w.tensor(4), torch.tensor([1.0, -1.0, 0.0, 1.0])),
    signs_of_parameters=lambda w: call(w.model),
)
