"""Sampling from graphs, against a loop over single samples and against the algebra of linear systems."""

import functools
import math
import random
from typing import Any

import networkx as nx
import numpy as np
import pytest
import scipy.linalg
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.simulate.elementwise import SampleFunction, vectorized
from gsnn.simulate.nx2pyg import nx2pyg, pyg2nx
from gsnn.simulate.simulate import simulate, simulate_sde

FF, IF, FO = EDGE_TYPES


def small():
    G = nx.DiGraph([("i", "a"), ("j", "a"), ("a", "b"), ("i", "b"), ("a", "y"), ("b", "y"), ("free", "b")])
    G.edges["j", "a"]["sign"] = -1
    G.edges["a", "b"]["sign"] = -1
    return G


def naive(G, n, inputs, outputs, noise_scale, special, signed, draws):
    """One sample at a time, one number at a time."""
    order = list(nx.topological_sort(G))
    x, y = np.zeros((n, len(inputs))), np.zeros((n, len(outputs)))
    for s in range(n):
        value = {}
        for k, node in enumerate(order):
            parents = list(G.predecessors(node))
            if node in inputs or not parents:
                value[node] = draws[k, s]
            elif node in special:
                value[node] = special[node]([value[p] for p in parents]) + noise_scale * draws[k, s]
            else:
                mean = 0.0
                for p in parents:
                    mean += signed.get((p, node), G.edges[p, node].get("sign", 1)) * value[p]
                value[node] = mean + noise_scale * draws[k, s]
        x[s], y[s] = [value[i] for i in inputs], [value[o] for o in outputs]
    return x, y


# -- simulate ----------------------------------------------------------------------


def test_returns_the_four_parts_in_their_order():
    parts = simulate(small(), 7, 3, ["i", "j"], ["y"], seed=0)
    assert [part.shape for part in parts] == [(7, 2), (3, 2), (7, 1), (3, 1)]
    assert all(part.dtype == np.float64 for part in parts)


@pytest.mark.parametrize("noise_scale", [0, 0.3, 1.0])
def test_equals_a_loop_over_samples_with_the_same_draws(noise_scale):
    G = small()
    special = {"b": lambda p: math.tanh(p[0]) if p[1] > 0 else float(p[2])}
    signed = {("j", "a"): 2.5, ("a", "y"): -1}
    draws = np.random.default_rng(5).standard_normal((len(G), 60))
    x, y = naive(G, 60, ["j", "i"], ["y", "b"], noise_scale, special, signed, draws)
    got = simulate(
        G, 40, 20, ["j", "i"], ["y", "b"],
        noise_scale=noise_scale, special_functions=special, signed_edges=signed, seed=5,
    )  # fmt: skip
    for part, expected in zip(got, (x[:40], x[40:], y[:40], y[40:]), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-12)


def test_covariance_is_that_of_the_linear_system():
    G = small()
    nodes = list(G)
    A = np.zeros((len(nodes), len(nodes)))
    for u, v, sign in G.edges(data="sign", default=1):
        A[nodes.index(v), nodes.index(u)] = sign
    D = np.diag([0.25 if G.in_degree(node) else 1.0 for node in nodes])
    inverse = np.linalg.inv(np.eye(len(nodes)) - A)
    sigma = inverse @ D @ inverse.T
    n = 200_000
    x, _, y, _ = simulate(G, n, 0, ["i", "j"], ["a", "b", "y"], noise_scale=0.5, seed=1)
    order = [nodes.index(node) for node in ("i", "j", "a", "b", "y")]
    expected = sigma[np.ix_(order, order)]
    samples = np.hstack([x, y])
    # Standard error of a covariance of normals: sqrt((s_ij^2 + s_ii s_jj) / n).
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / n)
    assert np.all(np.abs(np.cov(samples.T) - expected) < 5 * error)
    assert np.all(np.abs(samples.mean(axis=0)) < 5 * np.sqrt(np.diag(expected) / n))


def test_input_nodes_are_standard_normal_whatever_their_parents():
    G = nx.DiGraph([("u", "i"), ("i", "y")])
    x, _, y, _ = simulate(G, 1000, 0, ["i"], ["y"], noise_scale=0, seed=3)
    u, _, _, _ = simulate(G, 1000, 0, ["u"], ["y"], noise_scale=0, seed=3)
    assert np.array_equal(x, y)
    assert abs(np.corrcoef(x[:, 0], u[:, 0])[0, 1]) < 0.15
    assert 0.9 < x.std() < 1.1


def test_columns_follow_the_given_lists():
    x1, _, y1, _ = simulate(small(), 5, 0, ["i", "j"], ["y", "b"], seed=0)
    x2, _, y2, _ = simulate(small(), 5, 0, ["j", "i"], ["b", "y"], seed=0)
    assert np.array_equal(x1, x2[:, ::-1])
    assert np.array_equal(y1, y2[:, ::-1])


@pytest.mark.parametrize("draw", [simulate, functools.partial(simulate_sde, t_final=1)])
def test_seeds(draw):
    arguments = (small(), 6, 2, ["i", "j"], ["y"])
    same = lambda one, two: all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))  # noqa: E731
    np.random.seed(0)
    first = draw(*arguments)
    np.random.seed(0)
    assert same(first, draw(*arguments))
    assert not same(first, draw(*arguments))
    before = np.random.get_state(legacy=False)["state"]
    seeded = draw(*arguments, seed=4)
    after = np.random.get_state(legacy=False)["state"]
    assert before["pos"] == after["pos"] and np.array_equal(before["key"], after["key"])
    assert same(seeded, draw(*arguments, seed=4))
    assert same(seeded, draw(*arguments, seed=np.random.default_rng(4)))
    assert not same(seeded, draw(*arguments, seed=5))


def test_no_samples_is_legal():
    parts = simulate(small(), 0, 0, ["i"], ["y"], special_functions={"b": lambda p: 1 / 0}, seed=0)
    assert [part.shape for part in parts] == [(0, 1), (0, 1), (0, 1), (0, 1)]


def test_does_not_change_its_arguments():
    G, special, signed = small(), {"b": lambda p: p.pop() + p.pop()}, {("i", "a"): -1}
    before = nx.to_dict_of_dicts(G)
    simulate(G, 30, 5, ["i"], ["y"], special_functions=special, signed_edges=signed, seed=0)
    assert nx.to_dict_of_dicts(G) == before and signed == {("i", "a"): -1}


BAD = [
    ({"G": nx.Graph()}, TypeError, "G must be a networkx DiGraph, got Graph"),
    ({"G": nx.MultiDiGraph()}, TypeError, "G must be a networkx DiGraph, got MultiDiGraph"),
    ({"n_train": -1}, ValueError, "n_train must be an int of at least 0, got -1"),
    ({"n_test": 2.0}, ValueError, "n_test must be an int of at least 0, got 2.0"),
    ({"n_test": True}, ValueError, "n_test must be an int of at least 0, got True"),
    ({"noise_scale": -0.1}, ValueError, "noise_scale must be a non-negative number, got -0.1"),
    ({"noise_scale": float("nan")}, ValueError, "noise_scale must be a non-negative number, got nan"),
    ({"noise_scale": "1"}, ValueError, "noise_scale must be a non-negative number, got '1'"),
    ({"input_nodes": ["i", "nobody"]}, ValueError, "input_nodes must be nodes of G, got 'nobody'"),
    ({"input_nodes": ["i", "i"]}, ValueError, "input_nodes must name each node once, got several of 'i'"),
    ({"input_nodes": "i"}, TypeError, "input_nodes must be a list of nodes, got the text 'i'"),
    (
        {"output_nodes": [f"o{k}" for k in range(7)]},
        ValueError,
        "output_nodes must be nodes of G, got 'o0', 'o1', 'o2', 'o3', 'o4', and 2 more",
    ),
    (
        {"special_functions": {"nobody": max}},
        ValueError,
        "special_functions must be nodes of G, got 'nobody'",
    ),
    (
        {"special_functions": {"i": max}},
        ValueError,
        "special_functions must name nodes that have parents.*got 'i'",
    ),
    (
        {"special_functions": {"free": max}},
        ValueError,
        "special_functions must name nodes that have.*got 'free'",
    ),
    ({"special_functions": {"a": 3}}, TypeError, r"special_functions\['a'\] must be callable, got int"),
    ({"special_functions": [max]}, TypeError, "special_functions must be a dict or None, got list"),
    (
        {"signed_edges": {("a", "i"): 1}},
        ValueError,
        r"signed_edges must have edges of G as keys, got \('a', 'i'\)",
    ),
    ({"signed_edges": {"ai": 1}}, ValueError, "signed_edges must have edges of G as keys, got 'ai'"),
    (
        {"signed_edges": {("i", "a"): "+"}},
        ValueError,
        r"the sign of edge 'i' -> 'a' must be a finite.*got '\+'",
    ),
    (
        {"signed_edges": {("i", "a"): np.nan}},
        ValueError,
        "the sign of edge 'i' -> 'a' must be a finite.*got nan",
    ),
]


@pytest.mark.parametrize("draw", [simulate, simulate_sde])
@pytest.mark.parametrize(("bad", "error", "message"), BAD)
def test_refuses(draw, bad, error, message):
    arguments = {"G": small(), "n_train": 4, "n_test": 2, "input_nodes": ["i"], "output_nodes": ["y"], **bad}
    with pytest.raises(error, match=message):
        draw(**arguments)


def test_a_cycle_is_named():
    G = small()
    G.add_edge("b", "a")
    with pytest.raises(
        ValueError, match=r"G must have no cycle, got ('a' -> 'b' -> 'a'|'b' -> 'a' -> 'b'); simulate_sde"
    ):
        simulate(G, 4, 2, ["i"], ["y"])


# -- special functions ----------------------------------------------------------------------

CONSTANT = np.random.default_rng(9)


def rare_branch(p):
    return p[0] if np.any(p[0] > 6) else p[1]


def catches_everything(p):
    try:
        return math.tanh(p[0])
    except Exception:
        return 0 * p[0]


def asks_for_a_float(p):
    return max(p[0], 0.0) if isinstance(p[0], float) else np.tanh(p[0])


def asks_for_a_shape(p):
    return 0 * p[0] if hasattr(p[0], "shape") and p[0].shape else p[0]


def sorts_in_place(p):
    p.sort()
    return p[0]


def changes_its_list(p):
    p[0] += 1
    p[1] *= p[0]
    return p[1]


ELEMENTWISE: dict[str, Any] = {
    "tanh of a sum": lambda p: np.tanh(sum(p)),
    "mean by hand": lambda p: sum(p) / len(p),
    "where": lambda p: np.where(p[0] > 0, p[0], p[1]),
    "clip": lambda p: np.clip(p[0], -1, 1),
    "clip from above": lambda p: np.clip(p[0], None, p[1]),
    "round": lambda p: np.round(p[0], 1),
    "scipy": lambda p: scipy.special.expit(p[0]) * p[1],
    "constant": lambda p: 3,
    "logic": lambda p: (p[0] > 0) & ~(p[1] > 0),
    "mask": lambda p: p[0] * (p[0] > 0),
    "power": lambda p: abs(p[0]) ** p[1] + 2 ** p[2],
    "modulo": lambda p: p[0] % 2 + p[1] // 3 + divmod(p[2], 2)[1],
    "reflected": lambda p: 1 - p[0] + 1 / (2 + p[1] * p[1]),
    "parent": lambda p: p[2],
    "partial": functools.partial(lambda scale, p: scale * p[0], 2.0),
    "changes its list": changes_its_list,
    "reduce": lambda p: np.maximum.reduce(p),
    "interpolated": lambda p: np.interp(p[0], [-1, 1], [0, 1]),
    "identity": lambda p: 1.0 if p[1] in p[1:] else 0.0,
}
SCALAR: dict[str, Any] = {
    "math": lambda p: math.tanh(sum(float(x) for x in p)),
    "np.mean": np.mean,
    "np.sum": np.sum,
    "np.max": np.max,
    "np.median": np.median,
    "np.std": np.std,
    "np.linalg.norm": np.linalg.norm,
    "branch": lambda p: p[0] if p[0] > 0 else -p[1],
    "chained": lambda p: 1.0 if -1 < p[0] < 1 else 0.0,
    "not": lambda p: float(not p[0] > 0),
    "max": max,
    "sorted": lambda p: sorted(p)[1],
    "sorts in place": sorts_in_place,
    "centred": lambda p: p[0] - np.mean(p[0]),
    "cumulative": lambda p: np.cumsum(p)[-1],
    "own size": lambda p: p[0] * np.size(p[0]),
    "own length": lambda p: p[0] * (len(p[0]) if np.ndim(p[0]) else 1),
    "reversed": lambda p: p[0][::-1] if np.ndim(p[0]) else p[0],
    "method": lambda p: p[0].max(),
    "text": lambda p: float(f"{p[0]:.2f}"),
    "int": lambda p: int(p[0]),
    "round": lambda p: round(p[0], 1),
    "table": lambda p: {True: 1, False: 2}[bool(p[0] > 0)],
    "argmax": lambda p: p[int(np.argmax(p))],
    "vectorize": lambda p: np.vectorize(lambda x: x if x > 0 else 0.0)(p[0]).item(),
    "object ufunc": lambda p: np.frompyfunc(lambda x: x if x > 0 else 0.0, 1, 1)(p[0]),
    "torch": lambda p: torch.tanh(torch.tensor(p, dtype=torch.float64)).sum(),
    "rare branch": rare_branch,
    "catches everything": catches_everything,
    "asks for a float": asks_for_a_float,
    "asks for a shape": asks_for_a_shape,
}


def parent_values(n=2000):
    return list(np.random.default_rng(0).normal(scale=2, size=(3, n)))


@pytest.mark.parametrize("name", [*ELEMENTWISE, *(f"scalar {name}" for name in SCALAR)])
def test_special_functions_equal_single_samples(name):
    function = ELEMENTWISE[name] if name in ELEMENTWISE else SCALAR[name.removeprefix("scalar ")]
    parents = parent_values()
    calls = 0

    def counted(p):
        nonlocal calls
        calls += 1
        return function(p)

    got = SampleFunction(counted, "f")(parents)
    expected = [float(function([parent[s] for parent in parents])) for s in range(len(got))]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    # The point of the exercise: functions that can be are evaluated all at once.
    assert (calls < 50) == (name in ELEMENTWISE)


@pytest.mark.parametrize("n", [10, 500])
def test_a_mark_is_checked(n):
    parents = parent_values(n)
    right = SampleFunction(vectorized(lambda p: np.maximum(p[0], p[1])), "f")
    assert np.array_equal(right(parents), np.maximum(parents[0], parents[1]))
    centred = SampleFunction(vectorized(lambda p: p[0] - np.mean(p[0])), "f")
    branch = SampleFunction(vectorized(lambda p: p[0] if p[0] > 0 else 0.0), "f")
    if n <= 16:  # each sample has its own call
        assert np.array_equal(centred(parents), np.zeros(n))
    else:
        with pytest.raises(ValueError, match="f is marked vectorized, but gives for 500 samples at once"):
            centred(parents)
        with pytest.raises(ValueError, match="f is marked vectorized, but failed for 500 samples at once"):
            branch(parents)


def test_a_mark_may_be_on_a_method():
    class Gate:
        @vectorized
        def on(self, p):
            return p[0] * (p[1] > 0)

    parents = parent_values()
    assert SampleFunction(Gate().on, "f")._marked
    assert np.array_equal(SampleFunction(Gate().on, "f")(parents), parents[0] * (parents[1] > 0))


def test_samples_that_see_each_other_where_no_single_call_shows_it():
    """Every 200th sample, but for those compared, gets the mean of all: the halves give it away."""
    parents = parent_values(4000)
    chosen = set(parents[0][5::200].tolist())

    def leaks(p):
        return np.where(np.isin(p[0], list(chosen)) & (np.size(p[0]) > 1), np.mean(p[0]), p[0])

    assert np.array_equal(SampleFunction(leaks, "f")(parents), parents[0])


def test_arrays_are_copies():
    parents = parent_values()
    before = [parent.copy() for parent in parents]
    SampleFunction(changes_its_list, "f")(parents)
    assert all(np.array_equal(a, b) for a, b in zip(parents, before, strict=True))


class Noisy:
    def __init__(self):
        self.rng = np.random.RandomState(0)

    def __call__(self, p):
        return p[0] + (self.rng.rand() < 1e-3)

    def method(self, p):
        return self(p)


RANDOM: dict[str, Any] = {
    "numpy's global": lambda: lambda p: p[0] + (np.random.rand() < 1e-3),
    "random's global": lambda: lambda p: p[0] + (random.random() < 1e-3),
    "torch's global": lambda: lambda p: p[0] + (float(torch.rand(())) < 1e-3),
    "a module's": lambda: lambda p: p[0] + (CONSTANT.random() < 1e-3),
    "a closure's": lambda: (lambda rng: lambda p: p[0] + (rng.random() < 1e-3))(np.random.default_rng(0)),
    "random.Random": lambda: (lambda rng: lambda p: p[0] + (rng.random() < 1e-3))(random.Random(0)),
    "a default's": lambda: lambda p, rng=np.random.default_rng(0): p[0] + (rng.random() < 1e-3),  # noqa: B008
    "a bound method": lambda: lambda p, draw=np.random.default_rng(0).random: p[0] + (draw() < 1e-3),  # noqa: B008
    "an object": Noisy,
    "a method": lambda: Noisy().method,
    "a helper": lambda: (lambda helper: lambda p: helper(p))(Noisy()),
    "a partial": lambda: functools.partial(
        lambda rng, p: p[0] + (rng.random() < 1e-3), np.random.default_rng(0)
    ),
    "in a list": lambda: (lambda held: lambda p: p[0] + (held[0].random() < 1e-3))(
        [np.random.default_rng(0)]
    ),
}


@pytest.mark.parametrize("source", RANDOM)
def test_random_functions_draw_for_each_sample_even_where_it_hardly_shows(source):
    np.random.seed(1), random.seed(1), torch.manual_seed(1)
    parents = parent_values(20_000)
    hits = SampleFunction(RANDOM[source](), "f")(parents) - parents[0]
    assert 3 < np.round(hits).sum() < 60


def test_a_function_with_hidden_state_gets_each_sample():
    state = {"calls": 0}

    def counter(p):
        state["calls"] += 1
        return p[0] + state["calls"]

    parents = parent_values(100)
    added = SampleFunction(counter, "f")(parents) - parents[0]
    np.testing.assert_allclose(np.diff(added), 1, rtol=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_random_expressions_equal_single_samples(data):
    unary = [np.tanh, np.sin, np.abs, np.sign, np.negative, lambda v: v > 0.3, lambda v: v if v > 0 else -1.0]
    binary = [
        np.add,
        np.subtract,
        np.multiply,
        np.maximum,
        np.hypot,
        lambda a, b: np.where(a > b, a, 2.0),
        max,
    ]
    steps = data.draw(
        st.lists(
            st.one_of(
                st.tuples(st.just(1), st.integers(0, len(unary) - 1), st.integers(0, 9), st.just(0)),
                st.tuples(st.just(2), st.integers(0, len(binary) - 1), st.integers(0, 9), st.integers(0, 9)),
            ),
            min_size=1,
            max_size=6,
        )
    )

    def function(p):
        stack = list(p)
        for arity, which, one, two in steps:
            a, b = stack[one % len(stack)], stack[two % len(stack)]
            stack.append(1.0 * unary[which](a) if arity == 1 else binary[which](a, b))
        return stack[-1]

    parents = parent_values(100)
    expected = [float(function([parent[s] for parent in parents])) for s in range(100)]
    np.testing.assert_allclose(SampleFunction(function, "f")(parents), expected, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 100])
@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda p: None, TypeError, r"special_functions\['a'\] must return a number, got NoneType"),
        (lambda p: p, TypeError, r"special_functions\['a'\] must return a number, got list"),
        (lambda p: np.array(p), TypeError, r"special_functions\['a'\] must return a number, got ndarray"),
        (lambda p: "3", TypeError, r"special_functions\['a'\] must return a number, got str"),
        (lambda p: 1j * p[0], TypeError, r"special_functions\['a'\] must return a number, got complex"),
        (
            lambda p: float("nan"),
            ValueError,
            r"special_functions\['a'\] must return finite numbers, got nan for \[",
        ),
        (
            lambda p: np.inf * abs(p[0]),
            ValueError,
            r"special_functions\['a'\] must return finite numbers, got inf",
        ),
        (
            lambda p: p[9],
            ValueError,
            r"special_functions\['a'\] failed for \[.*IndexError: list index out of range",
        ),
        (lambda p: 1 / 0, ValueError, r"special_functions\['a'\] failed for \[.*ZeroDivisionError"),
    ],
)
def test_special_functions_must_return_finite_numbers(n, function, error, message):
    with pytest.raises(error, match=message):
        simulate(small(), n, 0, ["i", "j"], ["y"], special_functions={"a": function}, seed=0)


# -- simulate_sde ----------------------------------------------------------------------


def ring():
    """i drives a ring a -> b -> c -> a with a negative turn; y reads c."""
    G = nx.DiGraph([("i", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "y"), ("y", "free")])
    for u, v, sign in (("b", "c", -0.5), ("c", "a", 0.8), ("a", "b", 0.9)):
        G.edges[u, v]["sign"] = sign
    return G


def test_linear_sde_has_the_stationary_covariance_of_its_lyapunov_equation():
    G, dt, noise, n = ring(), 0.1, 0.7, 40_000
    nodes = ["a", "b", "c", "y", "free"]
    A, drive = np.zeros((5, 5)), np.zeros(5)
    for u, v, sign in G.edges(data="sign", default=1):
        if u == "i":
            drive[nodes.index(v)] = sign
        else:
            A[nodes.index(v), nodes.index(u)] = sign
    step = np.eye(5) + dt * (A - np.eye(5))
    around = scipy.linalg.solve_discrete_lyapunov(step, dt * noise**2 * np.eye(5))  # the integrator's own
    continuous = scipy.linalg.solve_continuous_lyapunov(A - np.eye(5), -(noise**2) * np.eye(5))
    assert np.abs(around / continuous - 1)[:4, :4].max() < 0.5  # and no other matrix altogether
    response = np.linalg.solve(np.eye(5) - A, drive)
    x, _, y, _ = simulate_sde(G, n, 0, ["i"], nodes, noise_scale=noise, seed=0, dt=dt, t_final=30)
    sigma = around + np.outer(response, response)
    error = np.sqrt((sigma**2 + np.outer(np.diag(sigma), np.diag(sigma))) / n)
    assert np.all(np.abs(np.cov(y.T) - sigma) < 5 * error)
    slope = (x * (y - y.mean(axis=0))).mean(axis=0) / x.var()
    np.testing.assert_allclose(slope, response, atol=5 * np.sqrt(np.diag(around) / n).max())


def test_sde_without_noise_settles_where_the_equations_do():
    special = {"c": lambda p: math.tanh(-float(p[0]))}
    x, _, y, _ = simulate_sde(
        ring(),
        3,
        0,
        ["i"],
        ["a", "b", "c", "y", "free"],
        noise_scale=0,
        special_functions=special,
        seed=0,
        t_final=80,
    )
    a, b, c, out, free = y.T
    np.testing.assert_allclose(a, x[:, 0] + 0.8 * c, atol=1e-9)
    np.testing.assert_allclose(b, 0.9 * a, atol=1e-9)
    np.testing.assert_allclose(c, np.tanh(-b), atol=1e-9)
    np.testing.assert_allclose(np.stack([out, free]), [c, c], atol=1e-9)


def test_sde_steps_are_those_of_euler_and_maruyama():
    G, dt, n = nx.DiGraph([("i", "a"), ("a", "y")]), 0.25, 5
    normal = np.random.default_rng(2).standard_normal
    i, a, y = normal((1, n))[0], np.zeros(n), np.zeros(n)
    for _ in range(3):  # 0.75 in steps of 0.25
        dw = normal((2, n)) * math.sqrt(dt)
        a, y = a + dt * (i - a) + 0.3 * dw[0], y + dt * (a - y) + 0.3 * dw[1]
    got = simulate_sde(G, 4, 1, ["i"], ["a", "y"], noise_scale=0.3, seed=2, dt=dt, t_final=0.75)
    np.testing.assert_allclose(got[0][:, 0], i[:4])
    np.testing.assert_allclose(got[2], np.stack([a, y], axis=1)[:4])
    np.testing.assert_allclose(got[3], np.stack([a, y], axis=1)[4:])


def test_sde_evaluates_special_functions_as_the_linear_part_does():
    special = {"b": lambda p: 0.9 * p[0], "c": lambda p: -0.5 * float(p[0]), "a": lambda p: p[0] + 0.8 * p[1]}
    arguments = (ring(), 30, 2, ["i"], ["y", "a"])
    plain = simulate_sde(*arguments, seed=1, t_final=3)
    for part, expected in zip(
        simulate_sde(*arguments, special_functions=special, seed=1, t_final=3), plain, strict=True
    ):
        np.testing.assert_allclose(part, expected, rtol=1e-10, atol=1e-12)


def test_sde_that_grows_without_bound_names_the_node():
    G = nx.DiGraph([("i", "slow"), ("i", "fast"), ("fast", "fast")])
    with pytest.raises(
        FloatingPointError, match=r"the state of node 'fast' grows without bound by t = [0-9.]+"
    ):
        simulate_sde(G, 3, 0, ["i"], ["slow"], signed_edges={("fast", "fast"): 40}, seed=0, t_final=100)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"dt": 0}, "dt must be a positive number, got 0"),
        ({"dt": np.nan}, "dt must be a positive number, got nan"),
        ({"t_final": -1.0}, "t_final must be a positive number, got -1.0"),
        ({"dt": 2, "t_final": 1}, "dt must be at most t_final = 1, got 2"),
    ],
)
def test_sde_refuses_times(times, message):
    with pytest.raises(ValueError, match=message):
        simulate_sde(ring(), 3, 0, ["i"], ["y"], **times)


def test_sde_without_samples():
    assert simulate_sde(ring(), 0, 0, ["i"], ["y"], seed=0)[2].shape == (0, 1)


# -- nx2pyg and pyg2nx ----------------------------------------------------------------------


def typed():
    G = nx.DiGraph()
    G.add_edges_from([("b", "y"), ("i", "a"), ("b", "a"), ("a", "b"), ("j", "a"), ("a", "x")])
    G.add_node("alone")
    for k, edge in enumerate(G.edges):
        G.edges[edge]["w"] = k / 2
    return G


LISTS = (["j", "i"], ["a", "alone", "b"], ["y", "x"])


def test_nx2pyg_keeps_the_order_of_lists_and_of_edges():
    graph = nx2pyg(typed(), *LISTS)
    assert graph.node_names_dict == {"input": LISTS[0], "function": LISTS[1], "output": LISTS[2]}
    assert list(typed().edges) == [("b", "y"), ("b", "a"), ("i", "a"), ("a", "b"), ("a", "x"), ("j", "a")]
    assert graph.edge_index_dict[FF].tolist() == [[2, 0], [0, 2]]
    assert graph.edge_index_dict[IF].tolist() == [[1, 0], [0, 0]]
    assert graph.edge_index_dict[FO].tolist() == [[2, 0], [0, 1]]
    assert graph.edge_weight_dict is None
    weights = nx2pyg(typed(), *LISTS, weight_attr="w").edge_weight_dict
    assert weights is not None
    assert {e: w.tolist() for e, w in weights.items()} == {FF: [0.5, 1.5], IF: [1.0, 2.5], FO: [0.0, 2.0]}


def test_pyg2nx_goes_back():
    graph = nx2pyg(typed(), *LISTS, weight_attr="w")
    G = pyg2nx(graph, weight_attr="w")
    assert {(u, v, w) for u, v, w in G.edges(data="w")} == {(u, v, w) for u, v, w in typed().edges(data="w")}
    assert set(G) == set(typed())
    assert dict(G.nodes(data="type")) == dict(
        [(n, kind) for kind, names in zip(("input", "function", "output"), LISTS, strict=True) for n in names]
    )
    assert HeteroGraph.from_networkx(pyg2nx(graph)) == graph
    assert not any("weight" in data for _, _, data in pyg2nx(nx2pyg(typed(), *LISTS)).edges(data=True))


@pytest.mark.parametrize(
    ("lists", "weight", "message"),
    [
        ((["i", "j", "k"], LISTS[1], LISTS[2]), None, "input_nodes must be nodes of G, got 'k'"),
        ((["i", "a"], LISTS[1], LISTS[2]), None, "input_nodes must not be in another list, got 'a'"),
        ((["i"], LISTS[1], LISTS[2]), None, "the three lists must name every node of G, got none with 'j'"),
        (
            (["i"], [*LISTS[1], "j"], LISTS[2]),
            "sign",
            "every edge must have 'sign', got 6 without: 'b' -> 'y'",
        ),
        (
            (["i", "j", "a"], LISTS[1][1:], LISTS[2]),
            None,
            r"got 4 that are not: 'b' -> 'a' \(function -> input\), 'i'",
        ),
    ],
)
def test_nx2pyg_refuses(lists, weight, message):
    inputs, functions, outputs = lists
    with pytest.raises(ValueError, match=message):
        nx2pyg(typed(), inputs, functions, outputs, weight_attr=weight)


def test_nx2pyg_refuses_other_graphs():
    with pytest.raises(TypeError, match="G must be a networkx DiGraph, got Graph"):
        nx2pyg(nx.Graph(), [], [], [])
