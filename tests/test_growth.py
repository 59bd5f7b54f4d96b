"""GSNN.grown: the larger model computes what the smaller one did, and the new edges learn."""

import copy

import pytest
import torch
from dense_oracle import BACKENDS, dense_forward
from test_gsnn import VARIANTS, make

from gsnn.models.norms import NORMS

PAIRS = [("function3", "function1"), ("function11", "function4"), ("function2", "function11")]


def named_edges(model):
    """(source name, target name) of each flat edge, by kind: names repeat between kinds nowhere here."""
    return [(model.homo_names[s], model.homo_names[t]) for s, t in model.edge_index.t().tolist()]


def weights_by_name(model, block, side):
    """(edge, channel's node, c) -> weight, read off the public pattern."""
    linear, edges = getattr(model.ResBlocks[block], side), named_edges(model)
    edge, channel = linear.indices.tolist() if side == "lin_in" else linear.indices.flip(0).tolist()
    return {
        (edges[e], divmod(c, model.channels)): v
        for e, c, v in zip(edge, channel, linear.values.tolist(), strict=True)
    }


def free_pairs(model):
    taken = set(named_edges(model))
    return [pair for pair in PAIRS if pair not in taken]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_stay_and_every_weight_keeps_its_edge(norm, variant):
    arguments = dict(VARIANTS[variant])
    model, x = make(norm=norm, **{"n_function": 12, **arguments})
    if variant == "one bucket":
        pairs = [("function5", "function1"), ("function1", "function5")]
    else:
        pairs = free_pairs(model)
    model(x)  # move the running statistics
    model.eval()
    new = model.grown(pairs, seed=3)
    assert not new.training
    torch.testing.assert_close(new(x), model(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(new(x), dense_forward(new, x, training=False)[0], rtol=1e-10, atol=1e-11)
    n = model.graph.edge_index_dict["function", "to", "function"].shape[1]
    assert named_edges(new)[:n] == named_edges(model)[:n]
    assert named_edges(new)[n : n + len(pairs)] == pairs
    assert named_edges(new)[n + len(pairs) :] == named_edges(model)[n:]
    for block in range(model.layers):
        for side in ("lin_in", "lin_out"):
            before, after = (weights_by_name(m, block, side) for m in (model, new))
            assert before.items() <= after.items()
            fresh = [v for key, v in after.items() if key not in before]
            assert len(fresh) == len(pairs) * model.channels
            assert all(v == 0 for v in fresh) if side == "lin_in" else all(0 < abs(v) < 1 for v in fresh)
    model.train(), new.train()
    torch.testing.assert_close(new(x), model(x), rtol=1e-13, atol=1e-13)


def open_ends(model):
    """Two new pairs input -> function, two function -> output (one output gets both), one in between."""
    names, taken = model.graph.node_names_dict, set(named_edges(model))
    fed = [(u, v) for u in names["input"] for v in names["function"] if (u, v) not in taken]
    read = [(u, names["output"][1]) for u in names["function"] if (u, names["output"][1]) not in taken]
    return [read[0], fed[0], free_pairs(model)[0], fed[-1], read[-1]]


@pytest.mark.parametrize("options", [{}, {"residual": False}, {"share_layers": False, "bias": False}])
@pytest.mark.parametrize("pruned", [False, True])
def test_edges_from_inputs_and_to_outputs_change_no_output(options, pruned):
    model, x = make(norm="groupbatch", n_function=12, **options)
    model(x)
    model.eval()
    if pruned:
        assert model.prune(0.2)
    pairs = open_ends(model)
    new = model.grown(pairs, seed=3)
    torch.testing.assert_close(new(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(new(x), dense_forward(new, x, training=False)[0], rtol=1e-10, atol=1e-11)
    assert set(named_edges(new)) == set(named_edges(model)) | set(pairs)
    assert new.graph == model.graph.with_edges(pairs)
    output = model.graph.node_names_dict["output"][1]
    degree = [sum(v == output for _, v in named_edges(m)) for m in (model, new)]
    for block in range(model.layers):
        for side in ("lin_in", "lin_out"):
            before, after = (weights_by_name(m, block, side) for m in (model, new))
            for (edge, channel), value in before.items():
                grows = (degree[1] / degree[0]) ** 0.5 if edge[1] == output else 1.0
                assert after[edge, channel] == pytest.approx(value * grows, rel=1e-14)
            fresh = {key: v for key, v in after.items() if key not in before}
            assert len(fresh) == model.channels * 3
            assert all((v != 0) == (side == "lin_out" and key[0] == pairs[2]) for key, v in fresh.items())


def test_edges_from_inputs_and_to_outputs_learn_at_once():
    model, x = make(share_layers=False, n_function=12)
    pairs = open_ends(model)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(x).square().sum().backward()
    opt.step()
    new, new_opt = model.grown(pairs, optimizer=opt)
    for moment in ("exp_avg", "exp_avg_sq"):
        for side in ("lin_in", "lin_out"):
            states = [
                o.state[getattr(m.ResBlocks[0], side).values] for o, m in ((opt, model), (new_opt, new))
            ]
            sums = [float(state[moment].abs().sum()) for state in states]
            assert sums[0] == pytest.approx(sums[1]) and sums[0] > 0
            assert len(states[1][moment]) - len(states[0][moment]) == 3 * model.channels
    new_opt.zero_grad()
    new(x).square().sum().backward()
    edges = named_edges(new)
    for side, which in (("lin_in", (1, 3)), ("lin_out", (0, 4))):
        found = 0.0
        for block in new.ResBlocks:
            linear = getattr(block, side)
            own = linear.indices[0 if side == "lin_in" else 1]
            found += sum(float(linear.values.grad[own == edges.index(pairs[k])].abs().sum()) for k in which)
        assert found > 0, side
    new_opt.step()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("share_layers", [True, False])
def test_new_edges_learn(backend, share_layers):
    model, x = make(share_layers=share_layers, backend=backend, init="zeros")
    new = model.grown(PAIRS)
    n = new.graph.edge_index_dict["function", "to", "function"].shape[1] - len(PAIRS)
    rows = slice(n * new.channels, (n + len(PAIRS)) * new.channels)
    opt = torch.optim.SGD(new.parameters(), lr=0.1)
    for side in ("lin_in", "lin_out"):  # the target's weights at the first step, then the source's
        opt.zero_grad()
        new(x).square().sum().backward()
        assert any((getattr(b, side).values.grad[rows] != 0).any() for b in new.ResBlocks)
        opt.step()


def test_what_is_not_a_weight_is_kept():
    model, _ = make(checkpoint=True, norm="groupbatch", dtype=torch.float32)
    model.scaling = object()
    model.ResBlocks[1].eval()
    model.ResBlocks[0].lin_in.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    new = model.grown(PAIRS)
    assert torch.equal(torch.get_rng_state(), rng)
    assert new.scaling is model.scaling
    assert new.config == model.config
    assert [m.training for m in new.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.dtype == torch.float32 for p in new.parameters())
    with torch.no_grad():
        for p in new.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_seed_draws_the_new_weights():
    model, _ = make()
    state = [model.grown(PAIRS, seed=s).state_dict() for s in (0, 0, 1)]
    assert all(torch.equal(state[0][k], state[1][k]) for k in state[0])
    assert not torch.equal(state[0]["ResBlocks.0.lin_out.values"], state[2]["ResBlocks.0.lin_out.values"])


def test_growing_in_steps_and_not_at_all():
    model, x = make()
    model.eval()
    new = model.grown(PAIRS[:1]).grown(PAIRS[1:])
    assert new.graph == model.grown(PAIRS).graph
    torch.testing.assert_close(new(x), model(x), rtol=1e-13, atol=1e-13)
    same = model.grown([])
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_pruned_model_grows():
    model, x = make(share_layers=False)
    model.eval()
    assert model.prune(0.2)
    new = model.grown(PAIRS)
    torch.testing.assert_close(new(x), model(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(new(x), dense_forward(new, x, training=False)[0], rtol=1e-10, atol=1e-11)
    for side in ("lin_in", "lin_out"):
        before, after = (weights_by_name(m, 1, side) for m in (model, new))
        assert before.items() <= after.items()
        assert len(after) - len(before) == len(PAIRS) * model.channels


@pytest.mark.parametrize("share_layers", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.AdamW, {"amsgrad": True}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {})],
)
def test_the_optimizer_goes_on(kind, options, share_layers):
    """Old entries take the step that they would have taken; the new edges stay unread, being frozen."""
    model, x = make(share_layers=share_layers)
    other = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    opt = kind([{"params": model.parameters()}, {"params": [other], "lr": 0.5}], lr=0.01, **options)

    def step(model, opt):
        opt.zero_grad()
        (model(x).square().sum() + other.sum()).backward()
        opt.step()

    for _ in range(3):
        step(model, opt)
    new, new_opt = model.grown(PAIRS, optimizer=opt)
    assert type(new_opt) is kind
    assert new_opt.param_groups[1]["params"][0] is other
    options = [
        [{k: v for k, v in g.items() if k != "params"} for g in o.param_groups] for o in (opt, new_opt)
    ]
    assert options[0] == options[1]
    kept = other.detach().clone()
    step(model, opt)
    after = other.detach().clone()
    other.data.copy_(kept)
    step(new, new_opt)
    torch.testing.assert_close(other, after)
    for block in range(model.layers):
        for side in ("lin_in", "lin_out"):
            before, grown = (weights_by_name(m, block, side) for m in (model, new))
            for key, value in before.items():
                assert grown[key] == pytest.approx(value, rel=1e-9, abs=1e-11)
    moment = {"exp_avg", "momentum_buffer"} & set(new_opt.state[new.ResBlocks[0].lin_out.bias])
    n = new.graph.edge_index_dict["function", "to", "function"].shape[1]
    added = new_opt.state[new.ResBlocks[0].lin_out.bias][moment.pop()][n - len(PAIRS) : n]
    assert added.abs().max() < 1e-12  # nobody reads the new edges, so their biases have had no gradient


@pytest.mark.parametrize(
    ("pairs", "error", "said"),
    [
        ([("function1", "nobody")], ValueError, "'nobody'"),
        ([("output1", "function2")], ValueError, "from an input or function node.*'output1'"),
        ([("function2", "input1")], ValueError, "to a function or output node.*'input1'"),
        ([("function1", "function1")], ValueError, "self pair"),
        ([PAIRS[0], PAIRS[0]], ValueError, "given twice"),
        (["ab"], TypeError, "'ab'"),
        ([("function1",)], TypeError, "name pairs"),
        ([(1, 2)], TypeError, "name pairs"),
    ],
)
def test_wrong_pairs(pairs, error, said):
    model, _ = make()
    with pytest.raises(error, match=said):
        model.grown(pairs)


def test_an_edge_that_exists():
    model, _ = make()
    edge = named_edges(model)[0]
    with pytest.raises(ValueError, match=edge[0]):
        model.grown([edge])


def test_copies_and_pickles_as_before():
    model, x = make()
    new = copy.deepcopy(model.grown(PAIRS))
    torch.testing.assert_close(new(x), model(x), rtol=1e-13, atol=1e-13)
