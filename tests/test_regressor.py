"""MagnitudeEdgeRegressor against autograd, AdamW and textbook regression, and the family's contract."""

import copy
import io
from types import SimpleNamespace
from typing import Any

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

from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor

N = len(FUNCTIONS)
mean_loss = torch.nn.functional.mse_loss


def step(regressor, model, x, y, loss=mean_loss):
    """One regressor step of the documented loop; the model's weights stay as they are."""
    regressor.pre_forward()
    value = loss(model(x), y)
    regressor.arm_retained_grads()
    model.zero_grad(set_to_none=True)
    value.backward()
    return regressor.aux_step()


def train(regressor, model, x, y, epochs=1, size=16, lr=1e-3, before=True):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    out = []
    for _ in range(epochs):
        for xb, yb in batches(x, y, size):
            regressor.pre_forward()
            loss = mean_loss(model(xb), yb)
            regressor.arm_retained_grads()
            optimizer.zero_grad()
            loss.backward()
            if not before:
                optimizer.step()
            out.append(regressor.aux_step())
            if before:
                optimizer.step()
    return out


class TestMagnitudeEdgeRegressor(EdgeInfererContract):
    member = "MagnitudeEdgeRegressor"
    score_col = "score"

    def make(self, model, data):
        return MagnitudeEdgeRegressor(model, data)

    def fit(self, inferer, model, x, y):
        model.train()
        train(inferer, model, x, y, epochs=3)
        model.zero_grad(set_to_none=True)


class Stub(torch.nn.Module):
    """Blocks whose activations and gradients are given: z and g, (L, B, N, C)."""

    def __init__(self, z, g):
        super().__init__()
        self.z, self.g = z, g
        groups = torch.arange(z.shape[2]).repeat_interleave(z.shape[3])
        self.ResBlocks = [SimpleNamespace(channel_groups=groups, _store_activations=False) for _ in z]

    def forward(self, samples):
        total = 0.0
        for block, z, g in zip(self.ResBlocks, self.z[:, samples], self.g[:, samples], strict=True):
            z = z.flatten(1).clone().requires_grad_()
            if block._store_activations:
                block._last_pre_norm_activation = z
            total = total + (z * g.flatten(1)).sum()
        return total


def stub_regressor(z, g, **options):
    """A regressor in double precision that has seen all samples of the stub once."""
    regressor = MagnitudeEdgeRegressor(Stub(z, g), small_graph(), **options).double()
    stub_step(regressor, torch.arange(z.shape[1]))
    return regressor


def stub_step(regressor, samples):
    regressor.pre_forward()
    loss = regressor.model(samples)
    regressor.arm_retained_grads()
    loss.backward()
    return regressor.aux_step()


def noise(seed=0, layers=3, n=60, channels=3, shared=0.0):
    """z and g that have nothing to do with each other, layers sharing a part of their variance."""
    rng = np.random.default_rng(seed)
    shape = (2, layers, n, N, channels)
    values = np.sqrt(1 - shared) * rng.normal(size=shape)
    values += np.sqrt(shared) * rng.normal(size=(2, 1, *shape[2:]))
    return torch.tensor(values)


def square(table, column):
    out = np.full((N, N), np.nan)
    out[table.src_idx, table.dst_idx] = table[column]
    return out


# --- one step


AGGREGATE: dict[str, Any] = {
    "sum": np.sum,
    "max": np.max,
    "mean": np.mean,
    "l2": lambda a, axis: np.sqrt((a**2).sum(axis)),
}


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("aggregators", [("sum", "max"), ("l2",), ("mean", "l2", "sum")])
def test_steps_are_those_of_autograd_and_adamw(aggregators, standardize):
    z, g = noise(n=50)
    z[:, :, 4] = 2.0  # a node that never varies
    momentum, ridge = 0.3, 0.02
    options: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1, "ridge": ridge, "ema_momentum": momentum}
    regressor = MagnitudeEdgeRegressor(
        Stub(z, g), small_graph(), aggregators=aggregators, standardize=standardize, **options
    ).double()
    W = torch.nn.Parameter(torch.zeros(N, N, dtype=torch.float64))
    optimizer = torch.optim.AdamW([W], lr=0.05, weight_decay=0.1)
    mean: Any = None
    var: Any = None
    for samples in torch.arange(50).split(20):
        out = stub_step(regressor, samples)
        a, b = np.abs(z[:, samples].numpy()), np.abs(g[:, samples].numpy())
        own = [AGGREGATE[name](a[p], axis=-1) for name in aggregators for p in (0, 1)]
        slots = np.stack([*own, *(b[p].sum(-1) * len(samples) for p in (1, 2))])  # (slots, B, N)
        m, v = slots.mean(1), slots.var(1)
        if mean is None:
            mean, var = m, v
        else:
            mean, var = (1 - momentum) * mean + momentum * m, (1 - momentum) * var + momentum * v
        if standardize:
            scale = np.where(var > 1e-20, 1 / np.sqrt(np.maximum(var, 1e-20)), 0.0)
            slots = (slots - mean[:, None]) * scale[:, None]
        x, y = torch.tensor(slots[:-2]), torch.tensor(slots[-2:]).repeat(len(aggregators), 1, 1)
        mse = (x @ W - y).square().mean()
        aux = mse + ridge * W.square().sum()
        optimizer.zero_grad()
        aux.backward()
        assert out == pytest.approx({"aux_loss": aux.item(), "mse": mse.item()}, rel=1e-9)
        assert all(type(value) is float for value in out.values())
        optimizer.step()
        np.testing.assert_allclose(regressor.W.detach(), W.detach(), rtol=1e-6, atol=1e-9)
    assert (regressor.steps, regressor.n) == (3, 50)
    assert standardize == (regressor.W[4].abs().max().item() == 0.0)


def test_batches_of_one_sample():
    z, g = noise(n=200)
    g[1:, :, 5] += 3 * z[:-1, :, 2].abs()
    regressor = MagnitudeEdgeRegressor(Stub(z, g), small_graph(), ema_momentum=0.02, lr=1e-3).double()
    for sample in torch.arange(200).split(1):
        out = stub_step(regressor, sample)
    assert 0 < out["mse"] < 10
    # running moments over the past samples, so that magnitudes come out at their own scale
    x = z[0].abs().sum(-1).numpy()
    np.testing.assert_allclose(regressor.running_mean[:, 0], x.mean(0), rtol=0.3)
    np.testing.assert_allclose(regressor.running_var[:, 0], x.var(0), rtol=0.9)
    table = regressor.evaluate()
    assert (table.src_func[0], table.dst_func[0]) == ("f2", "f5")


def test_it_learns_who_drives_whom():
    rng = np.random.default_rng(0)
    z, g = noise(n=400)
    g[1:] = 0.1 * torch.tensor(rng.normal(size=g[1:].shape))
    g[1:, :, 5] += z[:-1, :, 2].abs()  # f2's activation drives f5's gradient
    regressor = stub_regressor(z, g)
    for _ in range(150):
        last = stub_step(regressor, torch.arange(400))
    table = regressor.evaluate()
    assert (table.src_func[0], table.dst_func[0]) == ("f2", "f5")
    assert table.score[0] > 5 * table.score[1]
    assert table.q_value[0] < 1e-10 < table.q_value[1:].min()
    assert last["mse"] < 0.95


def test_dropout_only_in_training_mode():
    z, g = noise()
    dropped = []
    for seed in range(20):
        torch.manual_seed(seed)
        W = stub_regressor(z, g, dropout=0.7).W
        dropped.append((W == 0).float().mean().item())
    assert np.mean(dropped) == pytest.approx(0.7, abs=0.03)  # an entry that is left out stays where it was
    regressor = MagnitudeEdgeRegressor(Stub(z, g), small_graph(), dropout=0.7).double().eval()
    state = torch.get_rng_state()
    stub_step(regressor, torch.arange(60))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(regressor.W, stub_regressor(z, g).W, rtol=0, atol=0)


def test_the_gsnn_is_no_part_of_it():
    model = small_model(small_graph())
    regressor = MagnitudeEdgeRegressor(model, small_graph())
    assert [name for name, _ in regressor.named_parameters()] == ["W"]
    assert sum(p.numel() for p in regressor.parameters()) == N * N
    assert list(regressor.modules()) == [regressor]
    assert not any("ResBlocks" in name for name in regressor.state_dict())
    assert regressor.model is model
    assert (regressor.N, regressor.L, regressor.n_pairs) == (N, 4, 3)
    assert regressor.function_nodes == FUNCTIONS
    assert ("f5", "f3") in regressor.edges and regressor.parents_by_target[3] == [0, 2, 5]


def test_the_model_trains_as_if_alone():
    x, y = small_data()
    graph = small_graph()
    states = []
    for online in (True, False):
        model = small_model(graph)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if online:
            train(MagnitudeEdgeRegressor(model, graph), model, x, y, lr=1e-2)
        else:
            for xb, yb in batches(x, y):
                optimizer.zero_grad()
                mean_loss(model(xb), yb).backward()
                optimizer.step()
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-9, atol=1e-12)


def test_aux_step_before_or_after_the_models_step():
    x, y = small_data()
    tables = []
    for before in (True, False):
        model = small_model(small_graph())
        regressor = MagnitudeEdgeRegressor(model, small_graph())
        train(regressor, model, x, y, epochs=2, lr=1e-2, before=before)
        tables.append(regressor.evaluate())
    first, second = tables
    pd.testing.assert_frame_equal(first, second, check_exact=True)


@pytest.mark.parametrize("unit", [1e-6, 1e6, 1e-36])
def test_the_losss_unit_does_not_matter(unit):
    x, y = small_data(dtype=torch.float32)
    tables = []
    for factor in (1.0, unit):
        model = small_model(small_graph(), dtype=torch.float32)
        regressor = MagnitudeEdgeRegressor(model, small_graph())
        for xb, yb in batches(x, y):
            step(regressor, model, xb, yb, lambda yhat, y, f=factor: f * mean_loss(yhat, y))
        tables.append(regressor.evaluate())
    for column in ("score", "p_value"):
        want = square(tables[0], column)
        assert (want[np.isfinite(want)] > 0).sum() > 20
        np.testing.assert_allclose(square(tables[1], column), want, rtol=1e-2, atol=1e-5)


def test_a_shorter_batch_shows_no_larger_gradients():
    x, y = small_data()
    magnitudes = []
    for size in (90, 40, 7):
        model = small_model(small_graph())
        regressor = MagnitudeEdgeRegressor(model, small_graph())
        for xb, yb in batches(x, y, size):
            step(regressor, model, xb, yb)
        magnitudes.append(torch.cat(regressor._recent.batches, -1))
    for other in magnitudes[1:]:
        torch.testing.assert_close(other, magnitudes[0])


def test_nodes_without_a_gradient_or_a_varying_activation():
    regressor = MagnitudeEdgeRegressor(small_model(small_graph()), small_graph(), dropout=0.2)
    x, y = small_data()
    train(regressor, regressor.model, x, y, epochs=2)
    table = regressor.evaluate()
    silent = (table.src_func == "f8") | (table.dst_func == "f8")  # isolated
    assert (table.score[silent] == 0).all() and table.p_value[silent].isna().all()
    assert table.p_value[~silent].notna().sum() > 30


# --- what evaluate says


def textbook_p(x, y, i):
    design = np.column_stack([np.ones(len(x)), x])
    coef, *_ = np.linalg.lstsq(design, y, rcond=None)
    degrees = len(x) - design.shape[1]
    s2 = ((y - design @ coef) ** 2).sum() / degrees
    t = coef[i + 1] / np.sqrt(s2 * np.linalg.inv(design.T @ design)[i + 1, i + 1])
    return coef[1:], t, degrees


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("repeats", [1, 4])
def test_p_values_are_those_of_ordinary_least_squares(repeats, standardize):
    z, g = noise(layers=2, n=80)
    g[1, :, 3] += 3 * z[0, :, 6].abs()
    regressor = stub_regressor(z, g, aggregators=("l2",), standardize=standardize)
    for _ in range(repeats - 1):  # a batch seen again is no new evidence
        stub_step(regressor, torch.arange(80))
    x = np.linalg.norm(z[0].numpy(), axis=-1)
    y = np.abs(g[1].numpy()).sum(-1) * 80
    if standardize:
        x, y = stats.zscore(x), stats.zscore(y)
    solution = np.column_stack([textbook_p(x, y[:, j], 0)[0] for j in range(N)])
    with torch.no_grad():
        regressor.W.copy_(torch.tensor(solution))
    p = square(regressor.evaluate(), "p_value")
    one_sided = square(set_mode(regressor, "signed").evaluate(), "p_value")
    for i in range(N):
        for j in range(N):
            if i != j:
                coef, t, degrees = textbook_p(x, y[:, j], i)
                assert coef[i] == pytest.approx(regressor.W[i, j].item())
                assert p[i, j] == pytest.approx(2 * stats.t.sf(abs(t), degrees), rel=1e-7)
                assert one_sided[i, j] == pytest.approx(stats.t.sf(t, degrees), rel=1e-7)
    assert p[6, 3] < 1e-8
    corr = square(regressor.evaluate(exclude_self=False), "corr_a0_g1")
    np.testing.assert_allclose(corr, np.corrcoef(x.T, y.T)[:N, N:], atol=1e-10)


def set_mode(regressor, mode):
    regressor.score_mode = mode
    return regressor


@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.parametrize("mode", ["abs", "signed"])
def test_p_values_are_uniform_under_independence(mode, shared):
    """Over three pairs of layers and two aggregators, which see the same samples."""
    p = []
    for seed in range(150):
        regressor = stub_regressor(*noise(seed, layers=4, shared=shared, channels=2), score_mode=mode)
        table = regressor.evaluate()
        # one pair for each target: targets have nothing to do with each other
        p += [table.p_value[(table.src_idx == (j + 1) % N) & (table.dst_idx == j)].item() for j in range(N)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.015)


def test_what_training_moves_is_no_evidence():
    p, r = [], []
    for seed in range(100):
        z, g = noise(seed)
        drift = torch.arange(60)[:, None, None] // 20 + 1.0  # from batch to batch
        stub = Stub(z.abs() + drift, g.abs() + drift)
        regressor = MagnitudeEdgeRegressor(stub, small_graph()).double()
        stub.z[:, :, 8] = drift[:, 0]  # constant within a batch
        for samples in torch.arange(60).split(20):
            stub_step(regressor, samples)
        table = regressor.evaluate()
        assert table.p_value[table.src_idx == 8].isna().all()
        assert (table.score[table.src_idx == 8] == 0).all()
        p += [table.p_value[(table.src_idx == (j + 1) % 8) & (table.dst_idx == j)].item() for j in range(8)]
        r.append(table.corr_a0_g1.mean())
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.mean(r) == pytest.approx(0, abs=0.01)


def test_score_modes():
    regressor = stub_regressor(*noise())
    W = regressor.W.detach().numpy()
    assert (W < 0).any() and (W > 0).any()
    for mode, want in (("abs", np.abs(W)), ("relu", np.maximum(W, 0)), ("signed", W)):
        regressor.score_mode = mode
        np.testing.assert_array_equal(regressor.scores(), want)
        table = regressor.evaluate(exclude_self=False)
        np.testing.assert_array_equal(square(table, "score"), want)
        assert list(table.columns)[6:] == ["corr_a0_g1", "corr_a1_g2", "p_value", "q_value"]


def test_the_window_holds_the_newest_whole_batches():
    z, g = noise(n=90)
    regressor = MagnitudeEdgeRegressor(Stub(z, g), small_graph(), window=50).double()
    for samples in torch.arange(90).split(20):  # 20, 20, 20, 20, 10
        stub_step(regressor, samples)
    later = MagnitudeEdgeRegressor(Stub(z, g), small_graph()).double()
    for samples in torch.arange(90).split(20)[2:]:
        stub_step(later, samples)
    tables = [r.evaluate().sort_values(["src_idx", "dst_idx"]) for r in (regressor, later)]
    for column in ("corr_a0_g1", "p_value"):
        np.testing.assert_allclose(tables[0][column], tables[1][column], rtol=1e-12)
    assert regressor.n == 90
    one = stub_regressor(z, g, window=1)  # one batch at least
    np.testing.assert_array_equal(
        square(one.evaluate(), "p_value"), square(stub_regressor(z, g).evaluate(), "p_value")
    )


def test_too_few_samples_for_a_regression():
    table = stub_regressor(*noise(layers=2, n=N + 1), aggregators="sum").evaluate()
    assert table.p_value.isna().all() and table.q_value.isna().all()
    assert table.score.notna().all()


# --- state


def trained(dropout=0.3, **options):
    model = small_model(small_graph(), dropout=0.1)
    regressor = MagnitudeEdgeRegressor(model, small_graph(), dropout=dropout, **options)
    torch.manual_seed(5)
    x, y = small_data()
    train(regressor, model, x, y, epochs=2)
    return model, regressor


def assert_same_future(first, second):
    """Two (model, regressor) couples that are equal now, and after more training."""
    tables = []
    for model, regressor in (first, second):
        torch.manual_seed(6)
        train(regressor, model, *small_data(seed=1))
        tables += [regressor.W.detach().clone(), regressor.evaluate(), (regressor.n, regressor.steps)]
    assert torch.equal(tables[0], tables[3])
    pd.testing.assert_frame_equal(tables[1], tables[4], check_exact=True)
    assert tables[2] == tables[5]


def test_state_dict_round_trip():
    model, regressor = trained()
    regressor.maybe_save_best(0.5)
    best = regressor.W.detach().clone()
    train(regressor, model, *small_data(seed=2))
    file = io.BytesIO()
    torch.save(regressor.state_dict(), file)
    file.seek(0)
    other_model = copy.deepcopy(model)
    other = MagnitudeEdgeRegressor(other_model, small_graph(), dropout=0.3)
    other.load_state_dict(torch.load(file, weights_only=True))
    pd.testing.assert_frame_equal(other.evaluate(), regressor.evaluate(), check_exact=True)
    assert_same_future((model, regressor), (other_model, other))
    assert not other.maybe_save_best(0.5)
    other.load_best()
    assert torch.equal(other.W, best)


def test_a_state_dict_does_not_change_later():
    model, regressor = trained()
    state = copy.deepcopy(regressor.state_dict())
    kept = regressor.get_extra_state()
    train(regressor, model, *small_data(seed=2))
    torch.testing.assert_close(
        kept["progress"]["optimizer"]["state"][0]["exp_avg"],
        state["_extra_state"]["progress"]["optimizer"]["state"][0]["exp_avg"],
        rtol=0,
        atol=0,
    )
    regressor.load_state_dict(state)
    first = regressor.evaluate()
    train(regressor, model, *small_data(seed=2))
    regressor.load_state_dict(state)
    pd.testing.assert_frame_equal(regressor.evaluate(), first, check_exact=True)


def test_deep_copy():
    model, regressor = trained()
    other_model, other = copy.deepcopy((model, regressor))
    assert other.model is other_model and other.W is not regressor.W
    assert_same_future((model, regressor), (other_model, other))
    before = regressor.W.detach().clone()
    train(other, other_model, *small_data(seed=3))
    assert torch.equal(regressor.W, before)
    assert not any(block._store_activations for block in model.ResBlocks)


def test_best_state():
    model, regressor = trained()
    with pytest.raises(RuntimeError, match=r"no best state to load: call maybe_save_best\(metric\) first"):
        regressor.load_best()
    assert not regressor.maybe_save_best(float("nan"))
    assert regressor.maybe_save_best(0.7) is True
    table = regressor.evaluate()
    for _ in range(2):
        train(regressor, model, *small_data(seed=2))
        assert not torch.equal(torch.tensor(square(regressor.evaluate(), "score")), torch.tensor(0.0))
        assert regressor.maybe_save_best(0.7) is False and regressor.maybe_save_best(0.6) is False
        assert not regressor.evaluate().equals(table)
        regressor.load_best()
        pd.testing.assert_frame_equal(regressor.evaluate(), table, check_exact=True)
    train(regressor, model, *small_data(seed=2))
    assert regressor.maybe_save_best(torch.tensor(0.8)) is True
    better = regressor.evaluate()
    train(regressor, model, *small_data(seed=3))
    regressor.load_best()
    pd.testing.assert_frame_equal(regressor.evaluate(), better, check_exact=True)


def test_another_dtype_in_the_middle_of_training():
    model = small_model(small_graph(), dtype=torch.float32)
    regressor = MagnitudeEdgeRegressor(model, small_graph())
    x, y = small_data(dtype=torch.float32)
    train(regressor, model, x, y)
    assert regressor.W.dtype == torch.float32
    model.double(), regressor.double()
    train(regressor, model, x.double(), y.double())
    assert regressor.W.dtype == torch.float64
    assert regressor.optimizer.state[regressor.W]["exp_avg"].dtype == torch.float64
    half = MagnitudeEdgeRegressor(small_model(small_graph(), dtype=torch.bfloat16), small_graph())
    assert half.W.dtype == torch.float32
    # Not mse_loss, which PyTorch 2.4 lacks for this type on the CPU.
    step(half, half.model, x.bfloat16(), y.bfloat16(), lambda yhat, y: (yhat - y).square().mean())
    assert half.evaluate().score.max() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    x, y = small_data()
    model = small_model(small_graph()).cuda()
    regressor = MagnitudeEdgeRegressor(model, small_graph())
    train(regressor, model, x.cuda(), y.cuda(), epochs=2)
    cpu_model = small_model(small_graph())
    cpu = MagnitudeEdgeRegressor(cpu_model, small_graph())
    train(cpu, cpu_model, x, y, epochs=2)
    for column in ("score", "p_value"):
        np.testing.assert_allclose(
            square(regressor.evaluate(), column), square(cpu.evaluate(), column), rtol=1e-4, atol=1e-6
        )
    regressor.cpu()
    regressor.pre_forward()
    model(x.cuda())
    with pytest.raises(
        RuntimeError, match=r"regressor is on cpu and the model on cuda:0: call regressor\.to"
    ):
        regressor.arm_retained_grads()


# --- out of order, and bad input


def fresh(**options):
    model = small_model(small_graph(), **options)
    return model, MagnitudeEdgeRegressor(model, small_graph())


X, Y = small_data(12)


def test_calls_out_of_order_say_what_to_call():
    model, regressor = fresh()
    with pytest.raises(RuntimeError, match=r"call pre_forward\(\), then model\(x\) first"):
        regressor.arm_retained_grads()
    with pytest.raises(
        RuntimeError, match=r"call pre_forward\(\), model\(x\), arm_retained_grads\(\) and loss.backward\(\)"
    ):
        regressor.aux_step()
    regressor.pre_forward()
    with pytest.raises(RuntimeError, match=r"found no captures: call model\(x\) after pre_forward\(\)"):
        regressor.arm_retained_grads()
    with pytest.raises(RuntimeError, match=r"call arm_retained_grads\(\) and loss.backward\(\) first"):
        regressor.aux_step()
    loss = mean_loss(model(X), Y)
    regressor.arm_retained_grads()
    with pytest.raises(RuntimeError, match=r"arm_retained_grads\(\) was called already: call loss.backward"):
        regressor.arm_retained_grads()
    with pytest.raises(RuntimeError, match=r"no gradients to learn from: call loss.backward\(\) first"):
        regressor.aux_step()
    loss.backward()  # none of it has spoilt the step
    regressor.aux_step()
    with pytest.raises(RuntimeError, match=r"call pre_forward\(\)"):
        regressor.aux_step()
    assert regressor.steps == 1


def test_gradients_from_before_arming_are_not_taken():
    model, regressor = fresh()
    regressor.pre_forward()
    loss = mean_loss(model(X), Y)
    loss.backward()
    regressor.arm_retained_grads()
    with pytest.raises(RuntimeError, match=r"call loss.backward\(\) first"):
        regressor.aux_step()


def test_pre_forward_gives_up_an_unfinished_step():
    model, regressor = fresh()
    regressor.pre_forward()
    mean_loss(model(X), Y)
    regressor.arm_retained_grads()
    out = step(regressor, model, X, Y)
    _, other = fresh()
    assert out == step(other, other.model, X, Y)


def test_captures_that_someone_else_asked_for_stay():
    model, regressor = fresh()
    model.ResBlocks[1]._store_activations = True
    model(X)
    stale = model.ResBlocks[1]._last_activation
    step(regressor, model, X, Y)
    assert [block._store_activations for block in model.ResBlocks] == [False, True, False, False]
    assert model.ResBlocks[1]._last_activation is not None
    assert model.ResBlocks[1]._last_activation is not stale  # but that of the newest forward pass
    assert (
        model.ResBlocks[0]._last_activation is None and model.ResBlocks[0]._last_pre_norm_activation is None
    )


def test_forward_without_gradients():
    model, regressor = fresh()
    regressor.pre_forward()
    with torch.no_grad():
        model(X)
    with pytest.raises(RuntimeError, match=r"call model\(x\) with gradients enabled"):
        regressor.arm_retained_grads()


def test_a_model_that_fills_no_captures():
    model, regressor = fresh()
    model.forward = lambda x: x @ x.new_ones(3, 2)
    regressor.pre_forward()
    model(X)
    with pytest.raises(RuntimeError, match="the forward pass left no capture in block 0"):
        regressor.arm_retained_grads()


def test_a_loss_that_leaves_blocks_out():
    z, g = noise()
    model = Stub(z, g)
    regressor = MagnitudeEdgeRegressor(model, small_graph()).double()
    regressor.pre_forward()
    model(torch.arange(60))
    captured = [block._last_pre_norm_activation for block in model.ResBlocks]
    regressor.arm_retained_grads()
    captured[1].square().sum().backward()
    regressor.aux_step()
    table = regressor.evaluate()
    assert table.corr_a0_g1.notna().all() and table.corr_a1_g2.isna().all()


@pytest.mark.parametrize(
    "which, layer, message",
    [
        ("g", 2, "the gradient of function node 'f4' in block 2 is not finite"),
        ("z", 0, "the activation of function node 'f4' in block 0 is not finite"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(which, layer, message, value):
    z, g = noise()
    regressor = stub_regressor(z, g)
    before = copy.deepcopy(regressor.state_dict())
    tensor = {"z": z, "g": g}[which]
    good, tensor[layer, 7, 4, 1] = tensor[layer, 7, 4, 1].item(), value
    with pytest.raises(ValueError, match=message + r" \(step 1\)"):
        stub_step(regressor, torch.arange(60))
    assert not any(block._store_activations for block in regressor.model.ResBlocks)
    after = regressor.state_dict()
    for name in ("W", "running_mean", "running_var"):
        assert torch.equal(after[name], before[name])
    tensor[layer, 7, 4, 1] = good
    stub_step(regressor, torch.arange(60))
    assert regressor.steps == 2


def test_divergence():
    regressor = stub_regressor(*noise())
    with torch.no_grad():
        regressor.W.fill_(1e300)
    with pytest.raises(ValueError, match=r"regression has diverged \(step 1\): lr or ridge is too large"):
        stub_step(regressor, torch.arange(60))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"aggregators": ("sum", "median")}, "aggregators must be .* sum, max, mean, l2, got .*'median'"),
        ({"aggregators": ()}, r"aggregators must be one or more .* got \(\)"),
        ({"aggregators": ("sum", "sum")}, "aggregators must be one or more different"),
        ({"score_mode": "square"}, "score_mode must be one of 'abs', 'relu', 'signed', got 'square'"),
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"lr": float("nan")}, "lr must be a positive number, got nan"),
        ({"weight_decay": -1e-4}, "weight_decay must be a non-negative number, got -0.0001"),
        ({"ridge": -1}, "ridge must be a non-negative number, got -1"),
        ({"ridge": "much"}, "ridge must be a non-negative number, got 'much'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"ema_momentum": 0.0}, r"ema_momentum must be in \(0, 1\], got 0.0"),
        ({"ema_momentum": 1.5}, r"ema_momentum must be in \(0, 1\], got 1.5"),
        ({"window": 0}, "window must be a positive int, got 0"),
        ({"window": 10.0}, "window must be a positive int, got 10.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MagnitudeEdgeRegressor(small_model(small_graph()), small_graph(), **options)


def test_post_norm_captures_only_where_they_mean_something():
    graph = small_graph()
    for norm in ("layer", "rms", "softmax"):
        with pytest.raises(ValueError, match=f"norm one of batch, groupbatch, none, got '{norm}'"):
            MagnitudeEdgeRegressor(small_model(graph, norm=norm), graph, use_pre_norm=False)
    scores = []
    for use_pre_norm in (True, False):
        model = small_model(graph, norm="none")
        regressor = MagnitudeEdgeRegressor(model, graph, use_pre_norm=use_pre_norm)
        train(regressor, model, *small_data())
        scores.append(regressor.scores())
    assert not torch.equal(*scores)
