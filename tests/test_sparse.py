"""The plan, and SparseLinear against dense matrix products."""

import itertools
from typing import Any, cast

import numpy as np
import pytest
import torch
from dense_oracle import BACKENDS, random_graph
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsnn.graph.flat import flat_edges
from gsnn.kernels.plan import Plan, cut_degrees
from gsnn.models.GSNN import GSNN
from gsnn.models.SparseLinear import INITS, SparseLinear


def partition_cost(degrees, bucket, launch_cost):
    return sum(
        launch_cost + (bucket == b).sum() * degrees[bucket == b].max() for b in np.unique(bucket).tolist()
    )


@settings(max_examples=100, deadline=None)
@given(
    degrees=st.lists(st.integers(0, 7), min_size=1, max_size=9),
    launch_cost=st.sampled_from([0.5, 3.0, 10.0, 100.0]),
)
def test_buckets_are_the_cheapest_split_of_the_degrees(degrees, launch_cost):
    degrees = np.array(degrees)
    bucket = cut_degrees(degrees, launch_cost)
    order = np.argsort(degrees, kind="stable")
    assert (np.diff(bucket[order]) >= 0).all()
    distinct = np.unique(degrees)
    best = min(
        partition_cost(degrees, np.searchsorted(np.array(cuts), degrees, side="right"), launch_cost)
        for count in range(len(distinct))
        for cuts in itertools.combinations(distinct[1:], count)
    )
    assert partition_cost(degrees, bucket, launch_cost) == pytest.approx(best)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n_function=st.integers(1, 60), density=st.floats(0.02, 0.5))
def test_plan_places_every_edge_once_on_both_sides(seed, n_function, density):
    generator = torch.Generator().manual_seed(seed)
    edges, names = random_graph(generator, n_function=n_function, density=density, hub=n_function > 3)
    model_edges = flat_edges(GSNN(edges, names, 1, 1).graph, self_edges=True)
    plan = Plan(model_edges, n_function, len(names["input"]), len(names["output"]))
    rows = plan.row_of_edge
    assert len(torch.unique(rows)) == model_edges.shape[1]
    assert rows.max() < plan.n_rows - 1  # the last row stays zero
    assert torch.equal(plan.edge_of_row[rows], torch.arange(model_edges.shape[1]))
    # What an in-slot reads is the state row of its edge, and the way back leads to the same slot.
    assert torch.equal(plan.in_rows[plan.in_slots], rows[plan.in_edges])
    assert torch.equal(plan.in_rows_back[rows[plan.in_edges]], plan.in_slots)
    padding = torch.ones(plan.n_in_slots, dtype=torch.bool)
    padding[plan.in_slots] = False
    assert (plan.in_rows[padding] == plan.n_rows - 1).all()
    # The slots of a bucket belong to its nodes, in order.
    for bucket in plan.in_buckets:
        for place in range(bucket.nodes):
            node = plan.order[bucket.start + place]
            first = bucket.row + place * bucket.degree
            own = plan.in_slots[model_edges[1, plan.in_edges] == node]
            assert ((own >= first) & (own < first + bucket.degree)).all()


def test_padding_is_bounded():
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    edges = torch.randint(n, (2, 200_000), generator=generator)
    edges = torch.cat([edges, torch.tensor([[n, 0], [0, n + 1]])], dim=1)
    plan = Plan(edges, n, 1, 1)
    # Padding is bounded: the cost model never pays more for it than for one bucket per degree.
    assert plan.n_in_slots < 1.2 * edges.shape[1]
    assert plan.n_out_slots < 1.3 * edges.shape[1]


def random_pattern(generator, n, m, density):
    return (torch.rand(n, m, generator=generator) < density).nonzero().t()


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    density=st.floats(0.0, 1.0),
    bias=st.booleans(),
)
def test_sparse_linear_equals_the_dense_product(backend, seed, n, m, density, bias):
    generator = torch.Generator().manual_seed(seed)
    pattern = random_pattern(generator, n, m, density)
    linear = SparseLinear(pattern, (n, m), bias=bias, backend=backend).double()
    assume(bias or len(linear.values))
    if bias:
        assert linear.bias is not None
        torch.nn.init.normal_(linear.bias)
    x = torch.randn(4, n, generator=generator, dtype=torch.float64).requires_grad_()
    dense = torch.zeros(n, m, dtype=torch.float64).index_put(tuple(linear.indices), linear.values)
    shift: Any = linear.bias if bias else 0
    expected = x @ dense + shift
    weight = torch.randn(4, m, generator=generator, dtype=torch.float64)
    tensors = [x, *linear.parameters()]
    unused: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    want = torch.autograd.grad((expected * weight).sum(), tensors, **unused)
    for shaped in (x, x.unsqueeze(2)):
        output = linear(shaped)
        assert output.shape == (4, m, 1)
        torch.testing.assert_close(output.squeeze(2), expected)
        got = torch.autograd.grad((output.squeeze(2) * weight).sum(), tensors, **unused)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_linears_of_a_model_work_alone(backend):
    edges, names = random_graph(torch.Generator().manual_seed(0), n_function=20)
    block: Any = GSNN(edges, names, 4, 1, backend=backend).ResBlocks[0]
    for linear in (block.lin_in, block.lin_out):
        dense = torch.zeros(linear.N, linear.M).index_put(tuple(linear.indices), linear.values.detach())
        x = torch.randn(3, linear.N)
        torch.testing.assert_close(linear(x).squeeze(2), x @ dense + linear.bias)
        linear.keep(linear.values.abs() > linear.values.abs().median())
        dense = torch.zeros(linear.N, linear.M).index_put(tuple(linear.indices), linear.values.detach())
        torch.testing.assert_close(linear(x).squeeze(2), x @ dense + linear.bias)


# 600 inputs and 400 outputs with 6 and 9 weights each: one fan-in and one fan-out for all.
def regular_linear(init):
    rows = torch.arange(600).repeat_interleave(6)
    columns = torch.arange(3600) % 400
    torch.manual_seed(0)
    return SparseLinear(torch.stack([rows, columns]), (600, 400), init=init)


@pytest.mark.parametrize(
    ("init", "uniform", "scale"),
    [
        ("xavier_uniform", True, (6 / (9 + 6)) ** 0.5),
        ("xavier_normal", False, (2 / (9 + 6)) ** 0.5),
        ("kaiming_uniform", True, (6 / 9) ** 0.5),
        ("kaiming_normal", False, (2 / 9) ** 0.5),
        ("uniform", True, 1.0),
        ("normal", False, 1.0),
        ("degree_normalized", True, 1 / (9 * 6) ** 0.5),
    ],
)
def test_initialisations(init, uniform, scale):
    values = regular_linear(init).values.detach() / scale
    if uniform:
        assert values.abs().max() <= 1
        assert values.abs().max() > 0.99
        assert values.std() == pytest.approx(3**-0.5, rel=0.05)
    else:
        assert values.abs().max() > 2.5
        assert values.std() == pytest.approx(1, rel=0.05)
    assert values.mean().abs() < 0.05


def test_zeros_and_biases():
    linear = regular_linear("zeros")
    assert not linear.values.any()
    assert not linear.bias.any()
    assert set(INITS) == {
        "xavier_uniform",
        "xavier_normal",
        "kaiming_uniform",
        "kaiming_normal",
        "uniform",
        "normal",
        "degree_normalized",
        "zeros",
    }


def test_fans_are_those_of_the_pattern():
    # Two inputs feed output 0, one of them also outputs 1 and 2.
    linear = SparseLinear(torch.tensor([[0, 1, 1, 1], [0, 0, 1, 2]]), (2, 3), init="degree_normalized")
    bound = torch.tensor([1 / (2 * 1) ** 0.5, 1 / (2 * 3) ** 0.5, 1 / 3**0.5, 1 / 3**0.5])
    largest = torch.zeros(4)
    for _ in range(300):
        linear.reset_parameters()
        largest = torch.maximum(largest, linear.values.detach().abs())
    assert (largest <= bound).all()
    assert (largest > 0.95 * bound).all()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.long), r"indices must be an integer tensor of shape \(2, nnz\)"),
        (torch.zeros(2, 2), "indices must be an integer tensor"),
        (torch.tensor([[0, 2], [0, 0]]), r"indices must lie in \[0, 2\) x \[0, 3\)"),
        (torch.tensor([[0, -1], [0, 0]]), r"indices must lie in"),
        (torch.tensor([[0, 0], [1, 1]]), "indices must name each pair once"),
    ],
)
def test_bad_patterns(indices, message):
    with pytest.raises(ValueError, match=message):
        SparseLinear(indices, (2, 3))


def test_bad_inputs():
    linear = SparseLinear(torch.tensor([[0], [0]]), (2, 3))
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\) or \(B, 2, 1\), got \(4, 3\)"):
        linear(torch.ones(4, 3))
    with pytest.raises(ValueError, match="init must be one of .*, got 'x'"):
        SparseLinear(torch.tensor([[0], [0]]), (2, 3), init=cast(Any, "x"))
