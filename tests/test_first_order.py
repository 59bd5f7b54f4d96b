"""FirstOrderEdgeInferer against numpy: M by hand, projections by lstsq, the greedy order step by step."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from inferer_contract import FUNCTIONS, EdgeInfererContract, batches, small_data, small_graph, small_model
from scipy import stats
from test_edge_scores import captured, white

from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.optim.edge_scores import edge_scores
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer
from gsnn.stats.pursuit import GroupMoments, Pursuit

N, C = len(FUNCTIONS), 3


class TestFirstOrderEdgeInferer(EdgeInfererContract):
    member = "FirstOrderEdgeInferer"
    score_col = "score"

    def make(self, model, data):
        return FirstOrderEdgeInferer(model, data)

    def fit(self, inferer, model, x, y):
        inferer.fit(batches(x, y), verbose=False)


def fitted(model, x, y, size=16, graph=None, **options):
    inferer = FirstOrderEdgeInferer(model, graph or small_graph())
    assert inferer.fit(batches(x, y, size), verbose=False, **options) == len(x)
    return inferer


@pytest.fixture(scope="module")
def case():
    model, (x, y) = small_model(small_graph(), layers=3), small_data()
    _, h, g = captured(model, x, y)
    return SimpleNamespace(model=model, x=x, y=y, h=h, g=g, inferer=fitted(model, x, y))


def test_the_effect_of_an_edge_is_the_derivative_of_the_loss_along_it():
    """One channel, linear, no norm: i -> j added by hand, its weight moved, the loss differenced."""
    graph = small_graph()
    options: dict[str, Any] = {"channels": 1, "layers": 2, "norm": "none", "nonlin": torch.nn.Identity}
    model = small_model(graph, **options)
    x, y = small_data()
    effects = fitted(model, x, y).effects()
    i, j = 2, 6
    index = {etype: graph.edge_index_dict[etype] for etype in EDGE_TYPES}
    n_old = index[EDGE_TYPES[0]].shape[1]
    index[EDGE_TYPES[0]] = torch.cat([index[EDGE_TYPES[0]], torch.tensor([[i], [j]])], 1)
    grown = GSNN(index, graph.node_names_dict, share_layers=False, **options).double()

    def loss(weight):
        with torch.no_grad():
            old: Any
            new: Any
            for old, new in zip(model.ResBlocks, grown.ResBlocks, strict=True):
                for name, side in (("lin_in", 0), ("lin_out", 1)):
                    a, b = getattr(old, name), getattr(new, name)
                    is_new = b.indices[side] == n_old
                    b.values[~is_new] = a.values
                    b.values[is_new] = weight if name == "lin_in" else 1.0
                new.lin_in.bias.copy_(old.lin_in.bias)
                new.lin_out.bias.zero_()
            for block in model.ResBlocks:
                block.lin_out.bias.zero_()
            return float((grown(x) - y).square().sum(1).mean() / y.shape[1])

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert abs(slope) > 1e-3
    assert float(effects[0, i, j, 0, 0]) == pytest.approx(slope, rel=1e-6)


def test_effects_are_plain_means_of_products(case):
    by_hand = np.einsum("pbic,pbjd->pijcd", case.h, case.g) / len(case.x)
    np.testing.assert_allclose(case.inferer.effects(), by_hand, rtol=0, atol=1e-12 * np.abs(by_hand).max())


@pytest.mark.parametrize("score, name", [("whitened", "whitened_sv"), ("gradient", "gradient_sv")])
def test_scores_without_projection_are_those_of_edge_scores(case, score, name):
    wanted = edge_scores(case.model, small_graph(), [(case.x, case.y)], verbose=False)[name]
    table = case.inferer.evaluate(score=score, exclude_self=False)
    found = np.zeros((N, N))
    found[table.src_idx, table.dst_idx] = table.score
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * wanted.max())


def projected(h, g, i, j, given, ridge):
    """Mean over pairs of the largest singular value of E[r_i g_j']; lstsq on rows padded for the ridge."""
    out = []
    for p in range(len(h)):
        left, n = white(h[p][:, i]), len(h[p])
        parts = [white(h[p][:, s]) for s in given]
        X = np.concatenate(parts, 1) if parts else np.zeros((n, 0))
        padded = np.vstack([X, np.sqrt(ridge * n) * np.eye(X.shape[1])])
        beta = np.linalg.lstsq(padded, np.vstack([left, np.zeros((X.shape[1], left.shape[1]))]), rcond=None)[
            0
        ]
        residual = left - X @ beta
        cross = residual.T @ (g[p][:, j] - g[p][:, j].mean(0)) / n
        out.append(float(np.linalg.norm(cross, 2)) if cross.size else 0.0)
    return np.mean(out)


def test_projection_off_the_parents_is_least_squares(case):
    table = case.inferer.evaluate(ridge=0.05)
    size = table.score.max()
    parents = small_graph_parents()
    for row in table.itertuples():
        if row.has_edge:
            assert np.isnan(row.score)
            continue
        wanted = projected(case.h, case.g, row.src_idx, row.dst_idx, parents[row.dst_idx], 0.05)
        assert row.score == pytest.approx(wanted, abs=1e-9 * size)
        assert row.n_cond == len(parents[row.dst_idx])


def small_graph_parents():
    source, target = small_graph().edge_index_dict[EDGE_TYPES[0]].numpy()
    return {j: source[target == j].tolist() for j in range(N)}


@pytest.mark.parametrize("one_per_target", [False, True])
def test_greedy_order_step_by_step(case, one_per_target):
    order = case.inferer.greedy(12, one_per_target=one_per_target)
    given = small_graph_parents()
    taken = dict.fromkeys(range(N), 0)
    for row in order.itertuples():
        found = {
            (i, j): projected(case.h, case.g, i, j, given[j], 0.05)
            for i in range(N)
            for j in range(N)
            if i != j and i not in given[j] and (not one_per_target or taken[j] == min(taken.values()))
        }
        best = max(found, key=lambda pair: found[pair])
        assert (row.src_func, row.dst_func) == (FUNCTIONS[best[0]], FUNCTIONS[best[1]])
        assert row.score == pytest.approx(found[best], rel=1e-7)
        given[best[1]].append(best[0])
        taken[best[1]] += 1
    assert order.order.tolist() == list(range(1, 13))


def test_candidates_and_priors(case):
    few = [("f4", "f3"), ("f7", "f3"), ("f2", "f6"), ("f0", "f1"), ("nobody", "f1")]
    order = case.inferer.greedy(9, candidates=few)
    assert set(zip(order.src_func, order.dst_func, strict=True)) == set(few[:3])
    table = pd.DataFrame(few, columns=["source", "target"])
    pd.testing.assert_frame_equal(case.inferer.greedy(9, candidates=table), order)
    last = (order.src_func.iloc[-1], order.dst_func.iloc[-1])
    lifted = case.inferer.greedy(1, candidates=few, priors={last: 1e6})
    assert (lifted.src_func[0], lifted.dst_func[0]) == last
    without = case.inferer.greedy(9, candidates=few, priors=table.assign(weight=[0.0, 1, 1, 1, 1]))
    assert ("f4", "f3") not in set(zip(without.src_func, without.dst_func, strict=True))


def test_nothing_depends_on_how_the_data_is_cut(case):
    other = FirstOrderEdgeInferer(case.model, small_graph())
    other.partial_fit(batches(case.x[:31], case.y[:31], 7), verbose=False)
    other.partial_fit(batches(case.x[31:], case.y[31:], 50), crit=torch.nn.functional.mse_loss, verbose=False)
    assert other.n == len(case.x)
    pd.testing.assert_frame_equal(other.evaluate(), case.inferer.evaluate(), rtol=1e-7)
    other.fit(batches(case.x, case.y), verbose=False)
    assert other.n == len(case.x)


def test_gaps(case):
    y = case.y.clone()
    y[::3] = torch.nan
    keep = ~y.isnan().all(1)
    gaps, rest = FirstOrderEdgeInferer(case.model, small_graph()), None
    assert gaps.fit(batches(case.x, y), verbose=False) == int(keep.sum())
    rest = fitted(case.model, case.x[keep], case.y[keep])
    pd.testing.assert_frame_equal(gaps.evaluate(), rest.evaluate(), rtol=1e-7)
    with pytest.raises(ValueError, match="at least one sample with a measured output, got none"):
        gaps.fit([(case.x, torch.full_like(case.y, torch.nan))], verbose=False)
    assert gaps.n == int(keep.sum())


def test_moments_keep_their_digits_far_from_zero():
    rng = np.random.default_rng(0)
    h, g = (torch.tensor(rng.normal(size=(1, 400, 4, 2))) for _ in range(2))
    near, far = GroupMoments(1, 4, 2), GroupMoments(1, 4, 2)
    near.add(h, g)
    for part_h, part_g in zip((h + 1e6).split(37, 1), g.split(37, 1), strict=True):
        far.add(part_h, part_g)
    torch.testing.assert_close(far.hh, near.hh, rtol=1e-8, atol=1e-6)
    torch.testing.assert_close(far.hg, near.hg, rtol=1e-8, atol=1e-6)


def test_p_values_are_uniform_when_nothing_is_missing():
    """g is noise of uneven correlation, h shares factors with the parents: 600 independent tests."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(60):
        h = rng.normal(size=(500, 10, 2))
        h[:, 1:] += h[:, :1]
        g = rng.normal(size=(500, 10, 2)) @ np.array([[1.0, 0.8], [0.0, 0.5]])
        moments = GroupMoments(1, 10, 2)
        moments.add(torch.tensor(h)[None], torch.tensor(g)[None])
        found.append(Pursuit(moments).p_values(3, [0])[1:])
    p = np.concatenate(found)
    assert (p < 0.05).mean() < 0.09
    assert stats.kstest(p[::9], "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"k": 0}, ValueError, "k must be a positive int, got 0"),
        (
            {"k": 3, "score": "corr"},
            ValueError,
            "score must be one of 'omp', 'whitened', 'gradient', got 'corr'",
        ),
        ({"k": 3, "ridge": 0}, ValueError, "ridge must be a positive number, got 0"),
        ({"k": 3, "candidates": [("f0", "f1")]}, ValueError, "must leave at least one pair .* got none"),
        ({"k": 3, "candidates": "f0"}, TypeError, "candidates must be .* name pairs or a table, got 'f0'"),
        ({"k": 3, "candidates": ["f0"]}, TypeError, "got the item 'f0'"),
        ({"k": 3, "candidates": pd.DataFrame({"a": [1]})}, ValueError, "must have the columns .* got a"),
        ({"k": 3, "priors": {("f4", "f3"): -1}}, ValueError, "at least 0, got -1 for"),
        ({"k": 3, "priors": [1]}, TypeError, "priors must map .* got a list"),
    ],
)
def test_bad_options(case, options, error, message):
    with pytest.raises(error, match=message):
        case.inferer.greedy(**options)


def test_bad_batches(case):
    inferer = FirstOrderEdgeInferer(case.model, small_graph())
    with pytest.raises(RuntimeError, match="call fit"):
        inferer.greedy(3)
    with pytest.raises(RuntimeError, match="call fit"):
        inferer.effects()
    with pytest.raises(TypeError, match=r"must yield \(x, y\) pairs of tensors, got a Tensor"):
        inferer.fit([case.x], verbose=False)
    with pytest.raises(ValueError, match="is not finite"):
        inferer.fit([(case.x, case.y * np.inf)], verbose=False)
    for options in ({"layer_agg": "sum"}, {"score": "x"}, {"ridge": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            case.inferer.evaluate(**options)


def test_curvature_is_that_of_the_outputs_written_out():
    """K_j = E[J_j' J_j] from derivatives one sample at a time; exact for one output, whatever the signs."""
    index = {**small_graph().edge_index_dict}
    index[EDGE_TYPES[2]] = index[EDGE_TYPES[2]][:, index[EDGE_TYPES[2]][1] == 0]
    names = {**small_graph().node_names_dict, "output": ["y0"]}
    graph = HeteroGraph(index, names)
    model, (x, y) = small_model(graph, layers=3), small_data()
    y = y[:, :1]
    plain = fitted(model, x, y, graph=graph).effects().numpy()
    inferer = FirstOrderEdgeInferer(model, graph, curvature=True)
    inferer.fit(batches(x, y, 16), verbose=False)
    turned = inferer.effects().numpy()
    rows = []
    model.eval()
    for row in x:  # with an error of a half the squared error has the output's own derivative
        with torch.no_grad():
            wanted = model(row[None]) - 0.5
        rows.append(captured(model, row[None], wanted)[2][:, 0])
    slopes = np.stack(rows, 1)  # (P, n, N, C)
    curvature = np.einsum("pnic,pnid->picd", slopes, slopes) / len(x)
    size = np.trace(curvature, axis1=2, axis2=3).mean() / C
    w, v = np.linalg.eigh(curvature + 0.1 * size * np.eye(C))
    root = v / np.sqrt(w)[..., None, :] @ v.swapaxes(2, 3)
    np.testing.assert_allclose(turned, np.einsum("pijcd,pjde->pijce", plain, root), rtol=1e-7, atol=1e-12)


def test_scores_in_units_of_curvature_add_up_over_parts_of_the_samples():
    model, (x, y) = small_model(small_graph(), layers=3), small_data()
    parts = FirstOrderEdgeInferer(model, small_graph(), curvature=True)
    parts.fit(batches(x[:20], y[:20]), verbose=False)
    parts.partial_fit(batches(x[20:], y[20:]), verbose=False)
    whole = FirstOrderEdgeInferer(model, small_graph(), curvature=True)
    whole.fit(batches(x, y), verbose=False)
    # the signs drawn for the outputs differ, the second moments that they estimate do not
    assert parts.n == whole.n
    a, b = (i.evaluate().sort_values(["src_idx", "dst_idx"])["score"].to_numpy() for i in (parts, whole))
    assert np.corrcoef(np.nan_to_num(a), np.nan_to_num(b))[0, 1] > 0.98


def test_an_output_that_was_not_measured_has_no_curvature():
    model, (x, y) = small_model(small_graph(), layers=3), small_data()
    y = y.clone()
    y[:, 1:] = torch.nan
    some = FirstOrderEdgeInferer(model, small_graph(), curvature=True)
    some.fit(batches(x, y), verbose=False)
    assert some._seen is not None
    jj = some._seen.jj
    y[:, 1:] = 0.0
    all_ = FirstOrderEdgeInferer(model, small_graph(), curvature=True)
    all_.fit(batches(x, y), verbose=False)
    assert all_._seen is not None
    assert float(jj.diagonal(dim1=2, dim2=3).sum()) < float(all_._seen.jj.diagonal(dim1=2, dim2=3).sum())
