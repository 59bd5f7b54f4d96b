"""Splits, simple models and R2 against numpy and scikit-learn used by hand."""

from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from gsnn.app.compare import METHODS, make_splits, scores
from gsnn.stats.baselines import baseline, r2


def table(n=20, gaps=False):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(n, 3))
    if gaps:
        y[rng.random(y.shape) < 0.2] = np.nan
    return pd.DataFrame(y, [f"s{i:02d}" for i in range(n)], list("abc"))


def test_folds_cover_every_row_once():
    splits = make_splits(table(), None, 4, seed=1)
    assert sorted(np.concatenate([test for _, test in splits])) == list(range(20))
    for train, test in splits:
        assert sorted([*train, *test]) == list(range(20))
    again, other = make_splits(table(), None, 4, seed=1), make_splits(table(), None, 4, seed=2)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(splits, again, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(splits, other, strict=True))


@pytest.mark.parametrize("folds", [0, 3])
def test_groups_stay_together(folds):
    groups = pd.Series(np.repeat(list("pqrst"), 4))
    splits = make_splits(table(), groups, folds, seed=0)
    assert len(splits) == max(folds, 1)
    for train, test in splits:
        assert not set(groups[train]) & set(groups[test])


@pytest.mark.parametrize("sizes", [[4] * 10, [1, 1, 2, 3, 3, 5, 8, 9, 13, 20], list(range(1, 31))])
def test_folds_of_groups_follow_the_seed_and_are_of_similar_size(sizes):
    labels = np.repeat([f"g{k}" for k in range(len(sizes))], sizes)
    groups = pd.Series(np.random.default_rng(0).permutation(labels))
    y = pd.DataFrame({"a": np.arange(len(groups), dtype=float)})
    found = []
    for seed in range(6):
        splits = make_splits(y, groups, 4, seed)
        again = make_splits(y, groups, 4, seed)
        assert all(np.array_equal(a[1], b[1]) for a, b in zip(splits, again, strict=True))
        assert sorted(np.concatenate([test for _, test in splits])) == list(range(len(groups)))
        rows = [len(test) for _, test in splits]
        assert min(rows) > 0 and max(rows) - min(rows) <= max(sizes)
        found.append(frozenset(frozenset(groups[test]) for _, test in splits))
    assert len(set(found)) > 1  # not the same folds under other numbers


def test_equal_groups_make_equal_folds():
    splits = make_splits(table(20), pd.Series(np.repeat(np.arange(10), 2)), 5, seed=3)
    assert [len(test) for _, test in splits] == [4] * 5


def test_one_split_keeps_a_fifth():
    ((train, test),) = make_splits(table(), None, 0, seed=0)
    assert (len(train), len(test)) == (16, 4)


def test_an_output_without_training_data_is_named():
    y = table()
    ((_, test),) = make_splits(y, None, 0, seed=0)
    y.iloc[np.setdiff1d(np.arange(20), test), 1] = np.nan
    with pytest.raises(
        ValueError, match="output 'b' has no measured value among the training samples of fold 1"
    ):
        make_splits(y, None, 0, seed=0)


def test_r2_is_scikit_learns_where_the_mean_is_the_test_mean():
    y = table().to_numpy()
    yhat = y + np.random.default_rng(1).normal(size=y.shape)
    for j in range(3):
        assert r2(y[:, j], yhat[:, j], y[:, j].mean()) == pytest.approx(r2_score(y[:, j], yhat[:, j]))


def test_r2_pools_sums_over_measured_cells():
    y = np.array([[1.0, np.nan], [3.0, 10.0]])
    yhat = np.array([[2.0, 99.0], [3.0, 7.0]])
    mean = np.array([[0.0, 0.0], [1.0, 4.0]])
    assert r2(y, yhat, mean) == pytest.approx(1 - (1 + 0 + 9) / (1 + 4 + 36))
    assert np.isnan(r2(mean, yhat, mean))


def test_scores_by_output_and_fold():
    y = table(12, gaps=True)
    splits = make_splits(y, None, 3, seed=0)
    mean = np.zeros(y.shape)
    for train, test in splits:
        mean[test] = np.nanmean(y.to_numpy()[train], 0)
    found = scores(y, splits, {"mean": mean, "gsnn": y.fillna(0.0).to_numpy()})
    assert found["r2"] == {"mean": 0.0, "gsnn": 1.0}
    assert found["mse"]["mean"] == pytest.approx(np.nanmean((y.to_numpy() - mean) ** 2))
    assert set(found["r2_by_output"]) == set("abc") and len(found["r2_by_fold"]["gsnn"]) == 3
    assert found["r2_by_output"]["b"]["gsnn"] == 1.0


def test_rows_that_no_fold_tested_are_left_out():
    y = table()
    splits = make_splits(y, None, 0, seed=0)
    yhat = np.full(y.shape, np.nan)
    yhat[splits[0][1]] = 0.5
    found = scores(y, splits, {"mean": yhat})
    assert found["mse"]["mean"] == pytest.approx(((y.to_numpy()[splits[0][1]] - 0.5) ** 2).mean())


def test_ridge_is_ridge_with_a_chosen_penalty():
    rng = np.random.default_rng(0)
    x = 5 + 3 * rng.normal(size=(40, 4))
    y = np.column_stack([x @ [1, 2, 0, 0] + 0.1 * rng.normal(size=40), 100 + rng.normal(size=40)])
    yhat = baseline("ridge", x[:30], y[:30], x[30:], seed=0)
    mean, sd = x[:30].mean(0), x[:30].std(0)
    fits = []
    for penalty in np.logspace(-3, 4, 15):
        model = Ridge(penalty).fit((x[:30] - mean) / sd, y[:30, 0])
        fits.append(model.predict((x[30:] - mean) / sd))
    assert min(np.abs(yhat[:, 0] - fit).max() for fit in fits) < 1e-6
    assert np.abs(yhat[:, 1] - y[:30, 1].mean()).max() < 0.5  # nothing to learn: shrunk to the mean


def test_an_unknown_baseline_is_no_mlp():
    with pytest.raises(ValueError, match="kind must be one of 'ridge', 'mlp', got 'lasso'"):
        baseline(cast(Any, "lasso"), np.eye(3), np.eye(3), np.eye(3), seed=0)


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_each_output_learns_from_its_measured_rows(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    y = np.column_stack([x[:, 0], -x[:, 1], x[:, 2]]) * 10 + 50
    holes = y.copy()
    holes[:20, 0] = np.nan
    holes[1:, 2] = np.nan  # one value: the mean is all there is
    yhat = baseline(kind, x, holes, x, seed=0)
    assert r2(y[:, :2], yhat[:, :2], y[:, :2].mean(0)) > 0.8
    np.testing.assert_allclose(yhat[:, 2], y[0, 2])
    assert np.isfinite(yhat).all()


def test_two_measured_rows_are_fitted():
    x = np.linspace(0.0, 1.0, 20)[:, None]
    y = np.full((20, 1), np.nan)
    y[[0, 19], 0] = 0.0, 10.0
    yhat = baseline("ridge", x, y, x, seed=0)
    np.testing.assert_allclose(yhat[[0, -1], 0], [0.0, 10.0], atol=2.0)  # one row alone gives its mean


def test_constant_columns_of_a_fold_do_no_harm():
    x = np.column_stack([np.ones(12), np.arange(12.0)])
    y = np.column_stack([np.full(12, 3.0), 2 * np.arange(12.0)])
    yhat = baseline("ridge", x, y, np.array([[2.0, 5.0]]), seed=0)
    np.testing.assert_allclose(yhat, [[3.0, 10.0]], rtol=1e-3)


def ridge_of_all_penalties(x, y, x_test):
    """Closed-form predictions with the penalty whose leave-one-out error, taken one by one, is least."""
    scale = x.std(0)
    z, z_test = (x - x.mean(0)) / scale, (x_test - x.mean(0)) / scale

    def fitted(z, y, z_test, penalty):
        mean, centre = y.mean(), z.mean(0)
        inner = (z - centre).T @ (z - centre) + penalty * np.eye(z.shape[1])
        return mean + (z_test - centre) @ np.linalg.solve(inner, (z - centre).T @ (y - mean))

    def left_out(penalty):
        kept = [np.arange(len(y)) != k for k in range(len(y))]
        return sum((fitted(z[rows], y[rows], z[~rows], penalty)[0] - y[~rows][0]) ** 2 for rows in kept)

    return fitted(z, y, z_test, min(np.logspace(-3, 4, 15), key=left_out))


@pytest.mark.parametrize("design", ["balanced", "one column", "random", "more columns than rows"])
def test_ridge_is_the_closed_form(design):
    rng = np.random.default_rng(0)
    x = {
        "balanced": np.array([[a, b, c] for a in (-1.0, 1.0) for b in (-1.0, 1.0) for c in (-1.0, 1.0)] * 2),
        "one column": np.arange(16.0)[:, None],
        "random": rng.normal(size=(16, 3)),
        "more columns than rows": rng.normal(size=(8, 12)),
    }[design]
    y = x[:, 0] + 0.3 * x[:, -1] + 0.1 * rng.normal(size=len(x))
    x_test = rng.normal(size=(4, x.shape[1]))
    found = baseline("ridge", x, y[:, None], x_test, seed=0)
    np.testing.assert_allclose(found[:, 0], ridge_of_all_penalties(x, y, x_test), rtol=1e-6)


def test_methods():
    assert METHODS == ("mean", "ridge", "mlp", "gsnn")
