"""The training loop against a loop written out here, and what it must leave alone."""

import inspect
import math

import numpy as np
import pandas as pd
import pytest
import torch

from gsnn.models.GSNN import GSNN
from gsnn.train import History, Scaling, fit, predict

INPUTS, OUTPUTS = ["a", "b", "c"], ["y1", "y2"]


def small_model(seed=0, dtype=torch.float64, **options):
    edges = {
        ("input", "to", "function"): torch.tensor([[0, 1, 2], [0, 1, 2]]),
        ("function", "to", "function"): torch.tensor([[0, 1, 2, 3], [3, 3, 1, 2]]),
        ("function", "to", "output"): torch.tensor([[3, 2], [0, 1]]),
    }
    names = {"input": INPUTS, "function": ["f0", "f1", "f2", "f3"], "output": OUTPUTS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GSNN(edges, names, **{"channels": 3, "layers": 3, "norm": "none", **options}).to(dtype)


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(41, 3))
    y = np.column_stack([x[:, 0] - x[:, 1], np.tanh(x[:, 2])]) + 0.1 * rng.normal(size=(41, 2))
    return x, y


def frames(x, y):
    rows = [f"s{i}" for i in range(len(x))]
    return pd.DataFrame(x, rows, INPUTS), pd.DataFrame(y, rows, OUTPUTS)


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_full_batches_follow_a_loop_written_out(table, gaps, schedule):
    x, y = table
    if gaps:
        y = y.copy()
        y[::3, 0] = np.nan
        y[4] = np.nan
    model, twin = small_model(), small_model()
    history = fit(
        model, x, y, epochs=7, batch_size=100, lr=0.02, weight_decay=0.1, schedule=schedule, verbose=False
    )
    opt = torch.optim.AdamW(twin.parameters(), lr=0.02, weight_decay=0.1)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 7)
    target, known = torch.tensor(np.nan_to_num(y)), torch.tensor(~np.isnan(y))
    losses, rates = [], []
    for _ in range(7):
        loss = ((twin(torch.tensor(x)) - target) ** 2 * known).sum() / known.sum()
        opt.zero_grad()
        loss.backward()
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        if schedule == "cosine":
            falling.step()
        losses.append(loss.item())
    assert history.train_loss == pytest.approx(losses, rel=1e-9)
    assert history.lr == pytest.approx(rates, rel=1e-12)
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-8, atol=1e-9)


def test_batches_differ_by_at_most_one_sample(table):
    sizes = []

    def crit(yhat, y):
        sizes.append(len(y))
        return torch.nn.functional.l1_loss(yhat, y)

    fit(small_model(), *table, epochs=2, batch_size=20, crit=crit, verbose=False)
    assert sorted(sizes) == [13, 13, 14, 14, 14, 14]


def test_every_sample_is_seen_once_per_epoch_in_a_new_order(table):
    seen = []

    def crit(yhat, y):
        seen.extend(y[:, 0].tolist())
        return torch.nn.functional.mse_loss(yhat, y)

    fit(small_model(), *table, epochs=2, batch_size=8, crit=crit, seed=3, verbose=False)
    first, second = seen[:41], seen[41:]
    assert sorted(first) == sorted(second) == sorted(table[1][:, 0])
    assert first != second


def test_custom_loss_gets_measured_entries_only(table):
    x, y = table
    y = y.copy()
    y[0, 1] = np.nan
    shapes = []

    def crit(yhat, y):
        assert not y.isnan().any()
        shapes.append(tuple(y.shape))
        return torch.nn.functional.mse_loss(yhat, y)

    fit(small_model(), x, y, epochs=1, batch_size=100, crit=crit, verbose=False)
    assert shapes == [(81,)]


def test_values_behind_gaps_play_no_part(table):
    """Rows without any target are left out: removing them by hand gives the same weights."""
    x, y = table
    y = y.copy()
    y[30:] = np.nan
    a, b = small_model(), small_model()
    fit(a, x, y, epochs=3, batch_size=7, seed=0, verbose=False)
    fit(b, x[:30], y[:30], epochs=3, batch_size=7, seed=0, verbose=False)
    assert torch.equal(weights(a), weights(b))


def test_best_weights_come_back_and_patience_stops(table):
    x, y = table
    model = small_model()
    history = fit(
        model, x[:12], y[:12], validation=(x[30:], -y[30:]), epochs=60, patience=5, lr=0.05, verbose=False
    )
    assert history.stopped_early and len(history.train_loss) == history.best_epoch + 5 < 60
    assert history.val_loss[history.best_epoch - 1] == min(history.val_loss)
    reached = ((predict(model, x[30:]) + y[30:]) ** 2).mean()
    assert reached == pytest.approx(min(history.val_loss), rel=1e-12)


def test_a_watched_test_set_changes_nothing(table):
    x, y = table
    # Both of these know training from evaluation.
    a, b = (small_model(norm="groupbatch", dropout=0.3) for _ in range(2))
    watched = fit(
        a, x[:20], y[:20], validation=(x[20:], -y[20:]), restore_best=False, epochs=9, seed=1, verbose=False
    )
    fit(b, x[:20], y[:20], epochs=9, seed=1, verbose=False)
    assert torch.equal(weights(a), weights(b))
    assert watched.best_epoch == 9
    assert ((predict(a, x[20:]) + y[20:]) ** 2).mean() == pytest.approx(watched.val_loss[-1], rel=1e-12)


@pytest.mark.parametrize(("share", "trained", "aside"), [(0.25, 31, 10), (0.01, 40, 1)])
def test_validation_fraction_is_put_aside(table, share, trained, aside):
    seen = []

    def crit(yhat, y):
        seen.append(len(y))
        return torch.nn.functional.mse_loss(yhat, y)

    history = fit(small_model(), *table, validation=share, epochs=2, batch_size=100, crit=crit, verbose=False)
    assert seen == [trained, aside] * 2
    assert all(math.isfinite(v) for v in history.val_loss)


def test_columns_are_matched_by_name(table):
    x, y = frames(*table)
    a, b = small_model(), small_model()
    fit(a, x, y, epochs=3, seed=0, batch_size=16, verbose=False)
    fit(b, x[["c", "a", "b"]], y[["y2", "y1"]], epochs=3, seed=0, batch_size=16, verbose=False)
    assert torch.equal(weights(a), weights(b))
    expected = predict(a, x.to_numpy())
    got = predict(a, x[["b", "c", "a"]])
    assert list(got.columns) == OUTPUTS and got.index.equals(x.index)
    np.testing.assert_array_equal(got.to_numpy(), expected)


def test_rows_of_two_frames_are_matched_by_name(table):
    x, y = frames(*table)
    a, b = small_model(), small_model()
    fit(a, x, y, epochs=2, seed=0, verbose=False)
    fit(b, x, y.iloc[::-1], epochs=2, seed=0, verbose=False)
    assert torch.equal(weights(a), weights(b))
    with pytest.raises(
        ValueError, match=r"x and y must have the same samples; 2 are in one only: 's0', 'zz'"
    ):
        fit(a, x, y.rename(index={"s0": "zz"}), verbose=False)
    with pytest.raises(ValueError, match="y has the sample 's1' more than once"):
        fit(a, x, y.rename(index={"s0": "s1"}), verbose=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x.drop(columns="b"), y), r"x has no column for 1 input node\(s\): 'b'$"),
        (
            lambda x, y: (x.rename(columns={"b": "B"}), y),
            r"input node\(s\): 'b' \(columns .* no input node: 'B'",
        ),
        (lambda x, y: (x.assign(z=1.0), y), r"x has 1 column\(s\) that are no input node: 'z'"),
        (lambda x, y: (x, y.drop(columns="y1")), r"y has no column for 1 output node\(s\): 'y1'"),
        (lambda x, y: (x[["a", "a", "b", "c"]], y), "x has columns more than once: 'a'"),
        (lambda x, y: (x.assign(a=["?"] * len(x)), y), "x must be numeric"),
        (lambda x, y: (x.to_numpy()[:, :2], y), r"x must have the shape \(samples, 3\), .* got \(41, 2\)"),
        (lambda x, y: (x.to_numpy()[0], y), r"x must have the shape \(samples, 3\), .* got \(3,\)"),
        (lambda x, y: (x.to_numpy()[:9], y.to_numpy()), "same number of rows, got 9 and 41"),
        (lambda x, y: (x.iloc[:0], y.iloc[:0]), "x must have at least one row"),
        (lambda x, y: (x.mask(x == x.iat[2, 1]), y), "x must be finite, got nan in column 'b', sample 's2'"),
        (
            lambda x, y: (x.to_numpy() * [[1, np.inf, 1]], y),
            r"x must be finite, got -?inf in column 'b', row 0",
        ),
        (lambda x, y: (x, y * np.inf), "y must be finite or NaN, got -?inf in column 'y1', sample 's0'"),
        (lambda x, y: (x, y.assign(y2=np.nan)), "y has no measured value to train on for 'y2'"),
    ],
)
def test_bad_tables_are_refused_by_name(table, change, message):
    model = small_model()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        fit(model, *change(*frames(*table)), epochs=1, verbose=False)
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "epochs must be a positive int, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a positive int, got 2.5"),
        ({"lr": 0.0}, "lr must be a positive number, got 0.0"),
        ({"lr": math.nan}, "lr must be a positive number, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be a non-negative number, got -1.0"),
        ({"schedule": "step"}, r"schedule must be one of 'cosine', 'constant', got 'step'"),
        ({"patience": 3}, "patience needs validation"),
        ({"patience": 3, "validation": 0.5, "restore_best": False}, "patience needs .*restore_best=True"),
        ({"patience": 0, "validation": 0.5}, "patience must be a positive int, got 0"),
        ({"validation": 1.5}, r"fraction in \(0, 1\), got 1.5"),
        ({"validation": 0.999}, "leaves no sample of 41"),
        ({"validation": (1, 2, 3)}, r"\(x_val, y_val\), got 3 items"),
        ({"validation": (np.zeros((2, 3)), np.full((2, 2), np.nan))}, "at least one measured target"),
        ({"validation": (np.zeros((2, 4)), np.zeros((2, 2)))}, r"x_val must have the shape \(samples, 3\)"),
    ],
)
def test_bad_options(table, option, message):
    with pytest.raises(ValueError, match=message):
        fit(small_model(), *table, verbose=False, **option)


def test_frozen_model_is_refused(table):
    with pytest.raises(ValueError, match="parameters that require a gradient, got none"):
        fit(small_model().requires_grad_(False), *table, verbose=False)


def test_seed_decides_everything_and_global_state_is_left_alone(table):
    options = {"dropout": 0.3}
    a, b, c = (small_model(**options) for _ in range(3))
    torch.manual_seed(5)
    before, before_np = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    fit(a, *table, epochs=3, seed=1, batch_size=8, validation=0.2, verbose=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before_np)
    torch.rand(3)
    fit(b, *table, epochs=3, seed=1, batch_size=8, validation=0.2, verbose=False)
    fit(c, *table, epochs=3, seed=2, batch_size=8, validation=0.2, verbose=False)
    assert torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), weights(c))


def test_without_a_seed_torch_decides(table):
    a, b = small_model(dropout=0.3), small_model(dropout=0.3)
    torch.manual_seed(7)
    fit(a, *table, epochs=2, batch_size=8, verbose=False)
    torch.manual_seed(7)
    fit(b, *table, epochs=2, batch_size=8, verbose=False)
    assert torch.equal(weights(a), weights(b))


def test_modes_and_gradients_are_left_clean(table):
    model = small_model(norm="batch")
    model.train()
    model.ResBlocks[1].eval()
    modes = [m.training for m in model.modules()]
    fit(model, *table, epochs=1, validation=0.3, verbose=False)
    predict(model, table[0])
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError, match="stop"):
        fit(model, *table, epochs=1, crit=stopping, verbose=False)
    assert [m.training for m in model.modules()] == modes


def stopping(yhat, y):
    raise RuntimeError("stop")


def test_exploding_loss_puts_good_weights_back(table):
    x, y = table
    model = small_model()
    before = weights(model).clone()
    with pytest.raises(FloatingPointError, match=r"in epoch \d of 9; the initial weights were put back"):
        fit(model, x, y, lr=1e200, epochs=9, schedule="constant", verbose=False)
    assert torch.equal(weights(model), before)

    calls = []

    def breaks_late(yhat, y):
        calls.append(1)
        return torch.nn.functional.mse_loss(yhat, y) * (math.nan if len(calls) > 4 else 1.0)

    with pytest.raises(FloatingPointError, match="became nan in epoch 3 of 9; the weights of epoch 2 were"):
        fit(model, x, y, validation=(x, y), lr=1e-3, epochs=9, crit=breaks_late, verbose=False)
    assert torch.isfinite(weights(model)).all() and not torch.equal(weights(model), before)


def test_standardize_learns_and_predicts_in_the_original_units(table):
    x, y = table
    x, y = 50 + 9 * x, 1000 + 300 * y
    y[3, 0] = np.nan
    model = small_model(dtype=torch.float32)
    history = fit(model, x, y, standardize=True, epochs=200, lr=0.02, seed=0, verbose=False)
    scaling = model.scaling
    assert scaling.x_mean == pytest.approx(x.mean(0)) and scaling.x_scale == pytest.approx(x.std(0))
    assert scaling.y_mean == pytest.approx(np.nanmean(y, 0))
    assert scaling.y_scale == pytest.approx(np.nanstd(y, 0))
    assert history.train_loss[-1] < 0.2
    seen = ~np.isnan(y)
    assert ((predict(model, x) - y)[seen] ** 2).mean() < 0.2 * np.nanvar(y)
    assert Scaling.from_dict(scaling.to_dict()) == scaling
    fit(model, x, y, standardize=scaling, epochs=1, verbose=False)
    assert model.scaling == scaling
    fit(model, x, y, epochs=1, lr=1e-9, verbose=False)
    assert model.scaling is None


def test_scaling_uses_training_rows_only(table):
    x, y = table
    model = small_model()
    fit(model, x[:20], y[:20], standardize=True, validation=(x[20:] + 7, y[20:]), epochs=1, verbose=False)
    assert model.scaling.x_mean == pytest.approx(x[:20].mean(0))


def test_a_column_without_spread_is_only_shifted():
    x = torch.tensor([[1e6 + 0.1, 1.0], [1e6 + 0.1, 3.0]], dtype=torch.float64)
    scaling = Scaling.of(x, torch.tensor([[2.0, math.nan], [math.nan, math.nan]]))
    assert scaling.x_scale == (1.0, 1.0) and scaling.y_scale == (1.0, 1.0)
    assert scaling.y_mean == (2.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predict_takes_the_models_dtype_and_any_batch_size(table, dtype):
    x, _ = table
    model = small_model(dtype=dtype)
    whole = predict(model, x)
    assert whole.dtype == (np.float32 if dtype == torch.float32 else np.float64) and whole.shape == (41, 2)
    np.testing.assert_allclose(predict(model, x, batch_size=3), whole, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        whole, model(torch.tensor(x, dtype=dtype)).detach().numpy(), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(predict(model, torch.tensor(x)), whole)
    nothing = predict(model, x[:0])
    assert nothing.shape == (0, 2) and nothing.dtype == whole.dtype


def test_predict_reads_counts_and_flags():
    model = small_model()
    flags = np.array([[True, False, True]])
    np.testing.assert_array_equal(predict(model, flags), predict(model, flags.astype(int)))


def test_predict_refuses_bad_input(table):
    model = small_model()
    with pytest.raises(ValueError, match="batch_size must be a positive int, got 0"):
        predict(model, table[0], batch_size=0)
    with pytest.raises(ValueError, match=r"x has no column for 1 input node\(s\): 'c'"):
        predict(model, frames(*table)[0][["a", "b"]])
    with pytest.raises(ValueError, match="x must be finite, got nan in column 'a', row 0"):
        predict(model, np.full((1, 3), np.nan))


def test_the_defaults_of_fit_are_those_that_are_documented():
    default = {name: p.default for name, p in inspect.signature(fit).parameters.items()}
    assert (default["epochs"], default["batch_size"], default["lr"], default["weight_decay"]) == (
        *(100, 64),
        *(0.01, 0.01),
    )
    assert (default["schedule"], default["standardize"], default["restore_best"]) == ("cosine", False, True)
    assert (default["seed"], default["patience"], default["checkpoint_every"]) == (None, None, 1)
    assert inspect.signature(predict).parameters["batch_size"].default == 1024


def test_history_as_a_table():
    frame = History((3.0, 2.0), (4.0, 5.0), (0.1, 0.05), 1, False).to_frame()
    assert list(frame.columns) == ["epoch", "train_loss", "val_loss", "lr"]
    assert frame["epoch"].tolist() == [1, 2] and frame["val_loss"].tolist() == [4.0, 5.0]


def test_progress_bar_only_when_asked(table, capsys):
    fit(small_model(), *table, epochs=1, verbose=False)
    assert capsys.readouterr() == ("", "")
    fit(small_model(), *table, epochs=2, verbose=True)
    out, err = capsys.readouterr()
    assert out == "" and "2 of 2" in err
