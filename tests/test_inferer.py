"""MagnitudeEdgeInferer against numpy on captures read by hand, and the family's contract."""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from inferer_contract import (
    FUNCTIONS,
    EdgeInfererContract,
    batches,
    small_data,
    small_graph,
    small_model,
)
from scipy import stats

from gsnn.captures import Capture
from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.stats.samples import Samples, as_moments

N = len(FUNCTIONS)


class TestMagnitudeEdgeInferer(EdgeInfererContract):
    member = "MagnitudeEdgeInferer"
    score_col = "corr"

    def make(self, model, data):
        return MagnitudeEdgeInferer(model, data)

    def fit(self, inferer, model, x, y):
        inferer.fit(batches(x, y), verbose=False)


def test_no_member_of_the_family_goes_without_the_contract():
    here = Path(__file__).parent
    covered = set()
    for path in here.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                getattr(base, "id", "") == "EdgeInfererContract" for base in node.bases
            ):
                covered |= {
                    ast.literal_eval(part.value)
                    for part in node.body
                    if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "member"
                }
    members = {path.stem for path in (here.parent / "gsnn" / "optim").glob("*Edge*.py")}
    assert members and members <= covered, f"without the contract suite: {sorted(members - covered)}"


def fitted(x, y, size=16, crit=None, model=None, graph=None, **options):
    graph = graph or small_graph()
    mei = MagnitudeEdgeInferer(model or small_model(graph), graph, **options)
    assert mei.fit(batches(x, y, size), crit=crit, verbose=False) == len(x)
    return mei


def by_hand(model, x, y, reduction="l1", use_pre_norm=True):
    """x and y magnitudes (P, n, N) from retained gradients of one pass over all samples."""
    model.eval()
    for block in model.ResBlocks:
        block._store_activations = True
    loss = torch.nn.functional.mse_loss(model(x), y)
    name = "_last_pre_norm_activation" if use_pre_norm else "_last_activation"
    captured = [getattr(b, name) for b in model.ResBlocks]
    for t in captured:
        t.retain_grad()
    loss.backward()
    order = {"l1": 1, "l2": 2}[reduction]

    def norm(t):
        return np.linalg.norm(t.detach().numpy().reshape(len(x), N, -1), ord=order, axis=2)

    out = np.stack([norm(t) for t in captured[:-1]]), np.stack([norm(t.grad) for t in captured[1:]])
    model.zero_grad(set_to_none=True)
    for block in model.ResBlocks:
        block._store_activations = False
        block._last_pre_norm_activation = block._last_activation = None
    return out


def numpy_correlations(a, g):
    """(P, N, N) by np.corrcoef, NaN for constants."""
    out = np.full((len(a), N, N), np.nan)
    for p in range(len(a)):
        for i in range(N):
            for j in range(N):
                if np.ptp(a[p][:, i]) > 1e-12 and np.ptp(g[p][:, j]) > 1e-18:
                    out[p, i, j] = np.corrcoef(a[p][:, i], g[p][:, j])[0, 1]
    return out


def residual_correlation(a, g, i, j, parents):
    design = np.column_stack([np.ones(len(a)), a[:, parents]])
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (a[:, i], g[:, j])]
    return np.corrcoef(*left)[0, 1]


def square(table, column):
    out = np.full((N, N), np.nan)
    out[table.src_idx, table.dst_idx] = table[column]
    return out


@pytest.mark.parametrize("reduction", ["l1", "l2"])
@pytest.mark.parametrize(
    "options, use_pre_norm",
    [
        ({"norm": "layer"}, True),
        ({"norm": "groupbatch", "share_layers": True}, True),
        ({"norm": "groupbatch"}, False),
        ({"norm": "none", "dropout": 0.3}, False),
        ({"norm": "batch", "layers": 2, "node_mlp": True}, False),
    ],
)
def test_correlations_are_numpys(options, use_pre_norm, reduction):
    graph = small_graph()
    model = small_model(graph, **options)
    x, y = small_data()
    want = numpy_correlations(*by_hand(model, x, y, reduction, use_pre_norm))
    assert np.isfinite(want).sum() > 10
    mei = fitted(x, y, model=model, graph=graph, reduction=reduction, use_pre_norm=use_pre_norm)
    assert (mei.n, mei.N, mei.L, mei.n_pairs) == (90, N, len(model.ResBlocks), len(model.ResBlocks) - 1)
    table = mei.evaluate(exclude_self=False)
    for p in range(mei.n_pairs):
        np.testing.assert_allclose(square(table, f"corr_a{p}_g{p + 1}"), want[p], atol=1e-10)


@pytest.mark.parametrize("agg", ["mean", "max"])
def test_aggregation_and_significance(agg):
    x, y = small_data()
    table = fitted(x, y).evaluate(layer_agg=agg)
    pairs = table[["corr_a0_g1", "corr_a1_g2", "corr_a2_g3"]].to_numpy()
    assert np.isnan(pairs).any(1).sum() > np.isnan(pairs).all(1).sum() > 0
    for row, got, p in zip(pairs, table["corr"], table.p_value, strict=True):
        finite = row[~np.isnan(row)]
        if len(finite) == 0:
            assert np.isnan(got) and np.isnan(p)
            continue
        want = finite.mean() if agg == "mean" else max(finite, key=abs)
        assert got == pytest.approx(want, abs=1e-12)
        assert p == pytest.approx(stats.norm.sf(np.arctanh(want) * np.sqrt(len(x) - 3)), rel=1e-9)
    tested = table.p_value.notna()
    np.testing.assert_allclose(
        table.q_value[tested], stats.false_discovery_control(table.p_value[tested]), rtol=1e-9
    )


def test_partial_correlation_is_that_of_residuals_given_the_kept_parents():
    graph = small_graph()
    model = small_model(graph)
    x, y = small_data()
    a, g = by_hand(model, x, y)
    mei = fitted(x, y, model=model, graph=graph)
    table = mei.evaluate(score="partial", ridge=0.0)
    assert list(table.columns)[6] == "n_cond"
    checked = 0
    for row in table.itertuples():
        i, j = row.src_idx, row.dst_idx
        parents = mei.parents_by_target[j]
        assert parents == sorted(s for s, t in graph.edge_index_dict[EDGE_TYPES[0]].T.tolist() if t == j)
        assert row.n_cond == len(parents)
        for p in range(mei.n_pairs):
            got = getattr(row, f"corr_a{p}_g{p + 1}")
            if i in parents:
                assert np.isnan(got)
            elif not np.isnan(got):
                varying = [s for s in parents if np.ptp(a[p][:, s]) > 1e-12]
                assert got == pytest.approx(residual_correlation(a[p], g[p], i, j, varying), abs=1e-8)
                checked += row.n_cond > 0
        if not np.isnan(row.corr):
            z = np.arctanh(row.corr) * np.sqrt(len(x) - 3 - len(parents))
            assert row.p_value == pytest.approx(stats.norm.sf(z), rel=1e-9)
    assert checked > 50
    assert {len(s) for s in mei.parents_by_target.values()} == {0, 1, 3}
    default = mei.evaluate(score="partial")
    merged = table.merge(default, on=["src_idx", "dst_idx"])
    np.testing.assert_allclose(merged.corr_x, merged.corr_y, atol=1e-5)


mean_loss, sum_loss = torch.nn.MSELoss(), torch.nn.MSELoss(reduction="sum")


@pytest.mark.parametrize(
    "crit",
    [
        None,
        mean_loss,
        sum_loss,
        torch.nn.L1Loss(),
        lambda yhat, y: (yhat - y).square().sum(1).mean(),
        lambda yhat, y: 5.0 + (yhat - y).square().sum(),
    ],
    ids=["default", "mean", "sum", "l1", "mean of sums", "sum plus constant"],
)
def test_statistics_do_not_depend_on_the_cut(crit):
    x, y = small_data()
    whole = fitted(x, y, size=90, crit=crit).evaluate(score="partial")
    for size in (1, 7, 64):  # 90 leaves short last batches
        table = fitted(x, y, size=size, crit=crit).evaluate(score="partial")
        pd.testing.assert_frame_equal(table, whole, rtol=1e-7, atol=1e-9)


def test_mean_sum_and_default_agree():
    x, y = small_data()
    default = fitted(x, y).evaluate()
    for crit in (mean_loss, sum_loss):
        pd.testing.assert_frame_equal(fitted(x, y, crit=crit).evaluate(), default, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("score", ["corr", "partial"])
def test_ranks_and_p_values_are_free_of_the_losss_unit(score):
    x, y = small_data()
    want = fitted(x, y, crit=mean_loss).evaluate(score=score)
    for unit in (1e-6, 1e6, 1e-60):
        got = fitted(x, y, crit=lambda yhat, y, u=unit: u * mean_loss(yhat, y)).evaluate(score=score)
        pd.testing.assert_frame_equal(got, want, rtol=1e-7, atol=1e-9)


def test_small_losses_in_single_precision():
    x, y = small_data(dtype=torch.float32)
    graph = small_graph()
    tables = [
        fitted(
            x,
            y,
            model=small_model(graph, dtype=torch.float32),
            crit=lambda yhat, y, u=unit: u * mean_loss(yhat, y),
        ).evaluate()
        for unit in (1.0, 1e-6, 1e-30)
    ]
    assert tables[0]["corr"].notna().sum() > 40
    for table in tables[1:]:
        np.testing.assert_allclose(square(table, "corr"), square(tables[0], "corr"), atol=1e-5)
        np.testing.assert_allclose(square(table, "p_value"), square(tables[0], "p_value"), rtol=1e-2)


def test_constant_nodes_have_no_correlation():
    table = fitted(*small_data()).evaluate()
    silent = (table.src_func == "f8") | (table.dst_func == "f8")  # isolated: constant, and no gradient
    assert table["corr"][silent].isna().all() and table.p_value[silent].isna().all()
    assert table["corr"][~silent].notna().sum() > 40


def test_partial_fits_add_up_and_a_fit_starts_anew():
    x, y = small_data()
    graph = small_graph()
    model = small_model(graph)
    mei = MagnitudeEdgeInferer(model, graph)
    assert mei.fit(batches(x[:40], y[:40]), verbose=False) == 40
    assert mei.partial_fit(batches(x[40:], y[40:]), verbose=False) == 50
    assert mei.n == 90
    pd.testing.assert_frame_equal(mei.evaluate(), fitted(x, y).evaluate(), rtol=1e-9, atol=1e-11)
    for _ in range(2):
        assert mei.fit(batches(x, y), verbose=False) == 90
        assert mei.n == 90
        pd.testing.assert_frame_equal(mei.evaluate(), fitted(x, y).evaluate())
    with pytest.raises(ValueError, match="at least one sample"):
        mei.fit([], verbose=False)
    pd.testing.assert_frame_equal(mei.evaluate(), fitted(x, y).evaluate())
    mei.reset_stats()
    assert mei.n == 0
    with pytest.raises(RuntimeError, match="call fit"):
        mei.evaluate()
    mei.fit(batches(x[:40], y[:40]), verbose=False)
    assert mei.n == 40


def test_top_k_is_the_head_of_each_target():
    mei = fitted(*small_data())
    for options in ({}, {"score": "partial", "layer_agg": "max"}, {"exclude_self": False}):
        full = mei.evaluate(**options)
        for k in (1, 3, 8, 50):
            want = full.groupby("dst_idx").head(k).reset_index(drop=True)
            pd.testing.assert_frame_equal(mei.evaluate(top_k=k, **options), want)


@pytest.mark.parametrize("score", ["corr", "partial"])
def test_fewer_samples_than_nodes(score, monkeypatch):
    """They are kept as they are, and nothing that is read from them differs from what their moments say."""
    x, y = small_data()
    graph = small_graph()
    model = small_model(graph)
    want = numpy_correlations(*by_hand(model, x[:8], y[:8]))
    mei = fitted(x[:8], y[:8], size=3, model=model, graph=graph)
    assert isinstance(mei._seen, Samples)
    monkeypatch.setattr("gsnn.optim.MagnitudeEdgeInferer._BLOCK_ELEMENTS", {"corr": 60, "partial": 60})
    table = mei.evaluate(exclude_self=False)
    for p in range(mei.n_pairs):
        np.testing.assert_allclose(square(table, f"corr_a{p}_g{p + 1}"), want[p], atol=1e-10)
    full, few = mei.evaluate(score=score), mei.evaluate(score=score, top_k=2)
    assert "mask" not in vars(mei.kept)  # nothing of N x N entries but p-values
    pd.testing.assert_frame_equal(few, full.groupby("dst_idx").head(2).reset_index(drop=True))
    mei._seen = as_moments(mei._seen)
    pd.testing.assert_frame_equal(mei.evaluate(score=score), full, rtol=1e-10, atol=1e-10)
    assert mei.partial_fit(batches(x[8:], y[8:]), verbose=False) == 82
    pd.testing.assert_frame_equal(mei.evaluate(), fitted(x, y).evaluate(), rtol=1e-9, atol=1e-11)


def test_attributes():
    graph = small_graph()
    mei = MagnitudeEdgeInferer(small_model(graph), graph)
    assert mei.n == 0
    assert mei.function_nodes == FUNCTIONS
    assert ("f5", "f3") in mei.edges and ("f3", "f5") not in mei.edges and len(mei.edges) == 10
    assert mei.parents_by_target[3] == [0, 2, 5] and mei.parents_by_target[8] == []
    duck = SimpleNamespace(
        edge_index_dict=dict(graph.edge_index_dict), node_names_dict=dict(graph.node_names_dict)
    )
    assert MagnitudeEdgeInferer(small_model(graph), duck).edges == mei.edges


class Broken(Exception):
    pass


def failing_batches(x, y):
    yield x, y
    raise Broken


@pytest.mark.parametrize("fails", [False, True])
def test_model_mode_grads_captures_and_generator_come_back(fails):
    graph = small_graph()
    model = small_model(graph, dropout=0.2, norm="groupbatch")
    x, y = small_data(40)
    model.train()
    model.ResBlocks[1].eval()
    sentinel = torch.ones(1)
    model.ResBlocks[2]._store_activations = True
    model.ResBlocks[2]._last_activation = sentinel
    model.ResBlocks[0].lin_in.values.grad = torch.full_like(model.ResBlocks[0].lin_in.values, 3.0)
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.get_rng_state()
    mei = MagnitudeEdgeInferer(model, graph)
    if fails:
        mei.fit([(x, y)], verbose=False)
        before = mei.evaluate()
        with pytest.raises(Broken):
            mei.fit(failing_batches(x, 2 * y), verbose=False)
        assert mei.n == 40  # what had been seen before stays as it was
        pd.testing.assert_frame_equal(mei.evaluate(), before)
    else:
        mei.fit([(x, y)], verbose=False)
    assert [m.training for m in model.modules()] == modes
    assert [b._store_activations for b in model.ResBlocks] == [False, False, True, False]
    assert model.ResBlocks[2]._last_activation is sentinel
    assert all(b._last_pre_norm_activation is None for b in model.ResBlocks)
    assert (model.ResBlocks[0].lin_in.values.grad == 3.0).all()
    assert all(p.grad is None for p in model.parameters() if p is not model.ResBlocks[0].lin_in.values)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not x.requires_grad


def test_frozen_parameters_and_no_grad():
    x, y = small_data()
    want = fitted(x, y).evaluate()
    graph = small_graph()
    model = small_model(graph).requires_grad_(False)
    with torch.no_grad():
        pd.testing.assert_frame_equal(fitted(x, y, model=model, graph=graph).evaluate(), want)
    assert not any(p.requires_grad for p in model.parameters())


def test_batches_in_another_dtype_and_a_named_device():
    x, y = small_data()
    graph = small_graph()
    mei = MagnitudeEdgeInferer(small_model(graph), graph)
    mei.fit([(x.float(), y)], device="cpu", verbose=False)
    # inputs rounded to single precision
    pd.testing.assert_frame_equal(
        mei.evaluate(), fitted(x.float().double(), y).evaluate(), rtol=1e-7, atol=1e-9
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n", [90, 8])
def test_a_device_is_only_visited(n):
    x, y = small_data(n)
    graph = small_graph()
    mei = MagnitudeEdgeInferer(small_model(graph), graph)
    mei.fit([(x, y)], device="cuda", verbose=False)
    assert {p.device.type for p in mei.model.parameters()} == {"cpu"}
    assert mei._seen is not None and mei._seen.mean_x.device.type == "cuda"
    for score in ("corr", "partial"):
        a, b = (
            m.evaluate(score=score).set_index(["src_idx", "dst_idx"]).sort_index()
            for m in (mei, fitted(x, y))
        )
        np.testing.assert_allclose(a["corr"], b["corr"], atol=1e-8)


def test_progress_goes_to_stderr_and_only_when_wanted(capsys):
    graph = small_graph()
    mei = MagnitudeEdgeInferer(small_model(graph), graph)
    mei.fit(batches(*small_data()), verbose=False)
    assert capsys.readouterr() == ("", "")
    mei.fit(batches(*small_data()))
    out, err = capsys.readouterr()
    assert out == "" and "samples" in err


def test_missing_targets():
    x, y = small_data()
    full = fitted(x[:80], y[:80]).evaluate()
    y[80:] = np.nan  # ten samples without any measurement
    graph = small_graph()
    for size in (90, 16, 1):
        mei = MagnitudeEdgeInferer(small_model(graph), graph)
        assert mei.fit(batches(x, y, size), verbose=False) == mei.n == 80
        pd.testing.assert_frame_equal(mei.evaluate(), full, rtol=1e-7, atol=1e-9)
    y[::3, 0] = np.nan  # and some with half of it
    tables = [MagnitudeEdgeInferer(small_model(graph), graph) for _ in range(2)]
    for mei, size in zip(tables, (90, 11), strict=True):
        mei.fit(batches(x, y, size), verbose=False)
    pd.testing.assert_frame_equal(tables[0].evaluate(), tables[1].evaluate(), rtol=1e-7, atol=1e-9)


class DenseStandIn(torch.nn.Module):
    """Two dense blocks with GSNN's captures, their channels in an order of their own."""

    def __init__(self, order):
        super().__init__()
        torch.manual_seed(1)
        width = 3 * N
        groups = torch.arange(N).repeat_interleave(3)
        weights = [torch.randn(width, 3), torch.randn(width, width) / 5, torch.randn(2, width) / 5]
        self.weights = torch.nn.ParameterList(
            [weights[0][order], weights[1][order][:, order], weights[2][:, order]]
        ).double()
        self.ResBlocks = [SimpleNamespace(channel_groups=groups[order], capture=Capture()) for _ in range(2)]

    def forward(self, x):
        for weight, block in zip(self.weights, self.ResBlocks, strict=False):
            z = x @ weight.T
            x = torch.tanh(z)
            if block.capture.mode != "off":
                block.capture.leave(z, x)
        return x @ self.weights[2].T


def test_channels_in_any_order():
    x, y = small_data()
    graph = small_graph()
    plain = fitted(x, y, model=DenseStandIn(torch.arange(3 * N)), graph=graph).evaluate()
    order = torch.randperm(3 * N, generator=torch.Generator().manual_seed(0))
    shuffled = fitted(x, y, model=DenseStandIn(order), graph=graph).evaluate()
    assert plain["corr"].notna().all()
    pd.testing.assert_frame_equal(shuffled, plain, rtol=1e-7, atol=1e-9)


def fit_with(batch, crit=None, model=None):
    graph = small_graph()
    MagnitudeEdgeInferer(model or small_model(graph), graph).fit(batch, crit=crit, verbose=False)


X, Y = small_data(12)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fit_with([]), ValueError, "at least one sample with a measured output, got none"),
        (lambda: fit_with([(X, Y * np.nan)]), ValueError, "at least one sample with a measured output"),
        (lambda: fit_with([X]), TypeError, r"must yield \(x, y\) pairs of tensors, got a Tensor"),
        (lambda: fit_with([(X,)]), TypeError, "got a tuple of Tensor"),
        (lambda: fit_with([(X, Y.numpy())]), TypeError, "got a tuple of Tensor, ndarray"),
        (lambda: fit_with([(X, Y[:, :1])]), ValueError, r"output \(12, 2\), got \(12, 1\)"),
        (
            lambda: fit_with([(X, Y)], torch.nn.MSELoss(reduction="none")),
            ValueError,
            r"crit must return a scalar tensor, got \(12, 2\)",
        ),
        (lambda: fit_with([(X, Y)], lambda yhat, y: 0.0), ValueError, "scalar tensor, got float"),
        (
            lambda: fit_with([(X, Y)], lambda yhat, y: y.sum()),
            ValueError,
            "depends on the model's output, got one without a gradient",
        ),
        (
            lambda: fit_with([(X, Y)], lambda yhat, y: (yhat - y).square().sum() ** 2),
            ValueError,
            "mean or a sum over samples, got a loss whose gradient is multiplied by 2 when",
        ),
        (
            lambda: fit_with([(X, Y), (X, Y * np.nan)], mean_loss),
            ValueError,
            r"the gradient of function node '.*' in block 1 is not finite \(batch 1\)",
        ),
    ],
)
def test_bad_batches_and_losses(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_activation_that_is_not_finite_is_located():
    model = small_model(small_graph())
    with torch.no_grad():
        model.ResBlocks[1].lin_in.bias.view(-1)[3 * 4] = np.inf  # a channel of f4
    with pytest.raises(ValueError, match="the activation of function node 'f4' in block 1 is not finite"):
        fit_with([(X, Y)], model=model)


def test_a_wrapped_model():
    class Wrapped(torch.nn.parallel.DistributedDataParallel):
        def __init__(self):
            torch.nn.Module.__init__(self)

    with pytest.raises(TypeError, match="got a DistributedDataParallel: give its .module"):
        MagnitudeEdgeInferer(Wrapped(), small_graph())


def test_a_compiled_model_is_refused():
    compiled: Any = torch.compile(small_model(small_graph()), backend="eager")
    with pytest.raises(TypeError, match=r"got one made by torch.compile: give its \._orig_mod"):
        MagnitudeEdgeInferer(compiled, small_graph())


def test_process_groups_that_cannot_be_used():
    mei = MagnitudeEdgeInferer(small_model(small_graph()), small_graph())
    with pytest.raises(RuntimeError, match="process_group=True needs torch.distributed: call"):
        mei.fit([(X, Y)], verbose=False, process_group=True)


def test_a_model_that_fills_no_captures():
    model = small_model(small_graph())
    model.forward = lambda x: (x @ x.new_ones(3, 2)) * model.ResBlocks[0].residual_weight
    with pytest.raises(RuntimeError, match="left no capture in block 0"):
        fit_with([(X, Y)], model=model)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_samples(n):
    mei = fitted(X[:n], Y[:n])
    with pytest.raises(ValueError, match=f"at least 3 samples, got {n}"):
        mei.evaluate()


def test_no_degrees_of_freedom_left():
    mei = fitted(X[:6], Y[:6])
    table = mei.evaluate(score="partial")
    assert table.p_value[table.n_cond == 3].isna().all()
    assert table.p_value[table.n_cond == 1].notna().any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer_agg": "median"}, "layer_agg must be one of 'mean', 'max', got 'median'"),
        ({"score": "spearman"}, "score must be one of 'corr', 'partial', got 'spearman'"),
        ({"ridge": -1.0}, "ridge must be a non-negative number, got -1.0"),
        ({"top_k": 0}, "top_k must be positive ints"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        fitted(X, Y).evaluate(**options)


def test_bad_construction():
    graph = small_graph()
    with pytest.raises(ValueError, match="reduction must be 'l1' or 'l2', got 'l3'"):
        MagnitudeEdgeInferer(small_model(graph), graph, reduction=cast(Any, "l3"))
    for norm in ("layer", "rms", "softmax"):
        with pytest.raises(ValueError, match=f"norm one of batch, groupbatch, none, got '{norm}'"):
            MagnitudeEdgeInferer(small_model(graph, norm=norm), graph, use_pre_norm=False)


def test_a_partial_correlation_without_a_degree_of_freedom_is_no_score():
    """23 samples, one target with 20 kept parents: by numpy any source correlates at nearly 1 given them."""
    rng = np.random.default_rng(0)
    parents, n = rng.normal(size=(23, 20)), 23
    source, target = rng.normal(size=(2, 23))
    design = np.column_stack([np.ones(n), parents])
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (source, target)]
    assert abs(np.corrcoef(*left)[0, 1]) > 0.5  # two numbers are left
    index = {
        ("function", "to", "function"): torch.stack([torch.arange(20), torch.full((20,), 20)]),
        ("input", "to", "function"): torch.stack([torch.arange(22), torch.arange(22)]),
        ("function", "to", "output"): torch.tensor([[20, 21], [0, 1]]),
    }
    names = {
        "input": [f"i{k}" for k in range(22)],
        "function": [f"f{k}" for k in range(22)],
        "output": ["o", "p"],
    }
    torch.manual_seed(0)
    model = GSNN(index, names, channels=2, layers=3, norm="none")
    mei = MagnitudeEdgeInferer(model, HeteroGraph(index, names, warn=False))
    x, y = torch.randn(24, 22), torch.randn(24, 2)
    mei.fit([(x[:23], y[:23])], verbose=False)
    table = mei.evaluate(score="partial")
    hub = table[table.dst_func == "f20"]
    assert hub["corr"].isna().all() and hub["p_value"].isna().all()
    assert table[table.dst_func == "f21"]["corr"].notna().any()
    mei.fit([(x, y)], verbose=False)  # one degree
    table = mei.evaluate(score="partial")
    assert table[table.dst_func == "f20"]["corr"].notna().any()
