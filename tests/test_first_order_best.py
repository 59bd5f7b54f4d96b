"""FirstOrderEdgeInferer.best: what it shows has the score of the full table, whatever fits into memory."""

from typing import Any

import numpy as np
import pytest
import torch
from inferer_contract import batches, small_data, small_graph, small_model
from test_gsnn import make

from gsnn.optim import _screen
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer

N = 9
KEY = ["src_idx", "dst_idx"]


@pytest.fixture(scope="module")
def case():
    x, y = small_data()
    y[::7, 0] = np.nan
    y[5] = np.nan  # counts nowhere
    inferer = FirstOrderEdgeInferer(small_model(small_graph()), small_graph())
    return inferer, batches(x, y)


@pytest.mark.parametrize("score", ["omp", "whitened", "gradient"])
@pytest.mark.parametrize("layer_agg", ["mean", "max"])
@pytest.mark.parametrize("exclude_self", [True, False])
def test_without_a_screen_it_is_the_full_table(case, score, layer_agg, exclude_self):
    inferer, data = case
    options = {"score": score, "layer_agg": layer_agg, "exclude_self": exclude_self}
    found = inferer.best(data, N, looked_at=N, verbose=False, **options)
    inferer.fit(data, verbose=False)
    full = inferer.evaluate(**options).dropna(subset="score")
    assert list(found.columns) == list(full.columns) and len(found) == len(full) > 50
    assert found["p_value"].isna().all() and found["q_value"].isna().all()
    both = found.merge(full, on=[*KEY, "src_func", "dst_func", "has_edge", "n_cond"], suffixes=("", "_full"))
    assert len(both) == len(full)
    for name in ("score", *(name for name in full if name.startswith("sv_"))):
        size = full[name].max()
        np.testing.assert_allclose(both[name], both[f"{name}_full"], rtol=1e-8, atol=1e-8 * size)
    # In the same order, but where scores are nothing but rounding.
    some = full["score"] > 1e-6 * full["score"].max()
    assert found.loc[: some.sum() - 1, KEY].equals(full.loc[some, KEY].reset_index(drop=True))


def test_memory_says_how_often_the_data_are_gone_through(case):
    inferer, data = case
    assert inferer.n_pairs == 3
    one_place = 2 * 90 * N * 3 * 8  # numbers of h and g, of 8 bytes
    forward, found = inferer.model.forward, {}
    for memory, passes in ((2**32, 1), (2 * one_place, 3), (one_place, 5), (1, 5)):
        calls: list[Any] = []

        def counted(*args, calls=calls, **kwargs):
            calls.append(1)
            return forward(*args, **kwargs)

        inferer.model.forward = counted
        try:
            found[memory] = inferer.best(data, 3, memory=memory, verbose=False)
        finally:
            del inferer.model.forward
        assert len(calls) == passes * len(data)
    first, *others = found.values()
    assert len(first) == 3 * N
    for other in others:
        assert other.equals(first)


@pytest.fixture(scope="module")
def larger():
    """Forty function nodes with four channels, in single precision."""
    model, _ = make(seed=1, n_function=40, channels=4, layers=3, norm="layer", dtype=torch.float32)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 5, generator=rng), torch.randn(300, 4, generator=rng)
    inferer = FirstOrderEdgeInferer(model, model.graph)
    data = batches(x, y, 64)
    inferer.fit(data, verbose=False)
    return inferer, data, inferer.evaluate()


def test_the_screen_finds_nearly_all_of_the_best_and_scores_them_exactly(larger, monkeypatch):
    inferer, data, full = larger
    monkeypatch.setattr(_screen, "_BLOCK", 2000)  # several blocks
    found = inferer.best(data, 4, verbose=False)
    assert (found.groupby("dst_idx").size() == 4).all()
    both = found.merge(full, on=KEY)
    np.testing.assert_allclose(both["score_x"], both["score_y"], rtol=1e-3, atol=1e-5 * full["score"].max())
    assert found["score"].is_monotonic_decreasing
    strong = full[full["score"] > 1e-3 * full["score"].max()]
    wanted = strong.groupby("dst_idx").head(4)
    assert len(wanted) > 50
    missed = wanted.merge(found, on=KEY, how="left", suffixes=("", "_found"))["score_found"].isna()
    assert missed.mean() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be positive ints, got"),
        ({"top_k": 5, "looked_at": 4}, "looked_at must be at least top_k, 5, got 4"),
        ({"memory": 0}, "memory must be a positive int, got 0"),
        ({"score": "corr"}, "score must be one of"),
        ({"layer_agg": "sum"}, "layer_agg must be one of"),
        ({"ridge": 0.0}, "ridge must be a positive number, got 0.0"),
    ],
)
def test_wrong_arguments(case, options, message):
    inferer, data = case
    with pytest.raises(ValueError, match=message):
        inferer.best(data, verbose=False, **options)


def test_data_that_cannot_be_gone_through_twice(case):
    inferer, data = case
    with pytest.raises(ValueError, match="can be gone through several times, .* got an iterator"):
        inferer.best(iter(data), verbose=False)
    x, y = data[0]
    for nothing in ([], [(x, torch.full_like(y, torch.nan))]):
        with pytest.raises(ValueError, match="at least one sample with a measured output, got none"):
            inferer.best(nothing, verbose=False)
    with pytest.raises(ValueError, match="is not finite"):
        inferer.best([(x, y.nan_to_num() * torch.inf)], verbose=False)


def test_curvature_is_refused_as_the_screen_does_not_know_it(case):
    _, data = case
    inferer = FirstOrderEdgeInferer(small_model(small_graph()), small_graph(), curvature=True)
    with pytest.raises(ValueError, match=r"curvature must be False for best\(\), .*, got True"):
        inferer.best(data, 3, verbose=False)
