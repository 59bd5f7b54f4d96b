"""MagnitudeEdgeKGE against hand-made graphs and known optima, and the family's contract."""

import copy
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

from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeKGE import MagnitudeEdgeKGE
from gsnn.optim.skip_gram import scores, train_epoch
from gsnn.simulate.scenarios import converging_tiers

N = len(FUNCTIONS)
QUICK: dict[str, Any] = {"embedding_dim": 8, "walks_per_node": 5, "walk_length": 6}


def fitted_mei(graph=None):
    graph = graph or small_graph()
    mei = MagnitudeEdgeInferer(small_model(graph), graph)
    mei.fit(batches(*small_data()), verbose=False)
    return mei


@pytest.fixture(scope="module")
def mei():
    return fitted_mei()


def square(table, column):
    out = np.full((N, N), np.nan)
    out[table.src_idx, table.dst_idx] = table[column]
    return out


def pairs_of(heads, tails):
    return set(zip(heads.tolist(), tails.tolist(), strict=True))


def assign(kge, pairs):
    """The ablation as users make it."""
    kge.pos_heads, kge.pos_tails = torch.tensor(sorted(pairs)).T
    kge.pos_mask = torch.zeros(kge.N, kge.N, dtype=torch.bool)
    kge.pos_mask[kge.pos_heads, kge.pos_tails] = True
    kge._build_adjacency()


def walked(kge, seed=0):
    """(N, N) counts of the (centre, context) couples of 30 epochs."""
    rng = np.random.default_rng(seed)
    count = np.zeros((kge.N, kge.N), dtype=int)
    for _ in range(30):
        centre, context = kge._pairs(rng)
        np.add.at(count, (centre[context >= 0], context[context >= 0]), 1)
    return count


class TestMagnitudeEdgeKGE(EdgeInfererContract):
    member = "MagnitudeEdgeKGE"
    score_col = "score"
    options = QUICK

    def make(self, model, data):
        mei = MagnitudeEdgeInferer(model, data)
        mei.fit(batches(*small_data()), verbose=False)
        return MagnitudeEdgeKGE(mei, **self.options)

    def fit(self, inferer, model, x, y):
        inferer.fit(3, verbose=False)


class TestDirected(EdgeInfererContract):
    member = "MagnitudeEdgeKGE"
    score_col = "score"

    def make(self, model, data):
        mei = MagnitudeEdgeInferer(model, data)
        mei.fit(batches(*small_data()), verbose=False)
        return MagnitudeEdgeKGE(mei, **QUICK, directed=True, walk_undirected=False, score="partial")

    def fit(self, inferer, model, x, y):
        inferer.fit(3, verbose=False)


@pytest.mark.parametrize("directed", [False, True])
def test_parameter_count(directed):
    graph = converging_tiers(12).partial
    x, y = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)), torch.zeros(40, 12)
    mei = MagnitudeEdgeInferer(small_model(graph, dtype=torch.float32), graph)
    mei.fit([(x, y)], verbose=False)
    kge = MagnitudeEdgeKGE(mei, embedding_dim=32, directed=directed)
    assert (kge.N, sum(p.numel() for p in kge.parameters())) == (24, 768)


@pytest.mark.parametrize("score, layer_agg, alpha", [("corr", "max", 0.05), ("partial", "mean", 0.3)])
def test_fdr_mining(mei, score, layer_agg, alpha):
    kge = MagnitudeEdgeKGE(mei, score=score, layer_agg=layer_agg, fdr_alpha=alpha)
    table = mei.evaluate(score=score, layer_agg=layer_agg)
    mined = table[(table.q_value <= alpha) & ~table.has_edge]
    assert len(mined) > 2
    inferred = pairs_of(kge.inferred_heads, kge.inferred_tails)
    assert inferred == set(zip(mined.src_idx, mined.dst_idx, strict=True))
    true = pairs_of(kge.true_heads, kge.true_tails)
    assert {(FUNCTIONS[i], FUNCTIONS[j]) for i, j in true} == mei.edges
    assert pairs_of(kge.pos_heads, kge.pos_tails) == true | inferred
    assert kge.pos_mask.nonzero().tolist() == sorted(map(list, true | inferred))
    assert kge.pos_heads.dtype == torch.int64 and kge.pos_mask.shape == (N, N)


def test_top_k_mining_and_exclusion(mei):
    excluded = [("f0", "f4"), ("f7", "f3"), ("f2", "f5")]
    kge = MagnitudeEdgeKGE(
        mei, mining_strategy="topk_per_target", top_k_per_target=2, exclude_edges=iter(excluded)
    )
    table = mei.evaluate(layer_agg="max")
    gone = pd.Series(list(zip(table.src_func, table.dst_func, strict=True))).isin(excluded)
    mined = table[~table.has_edge & ~gone & table["corr"].notna()].groupby("dst_idx").head(2)
    assert pairs_of(kge.inferred_heads, kge.inferred_tails) == set(
        zip(mined.src_idx, mined.dst_idx, strict=True)
    )


def row_shares(kge):
    """(N, N) probabilities of a step, counted."""
    starts = np.repeat(np.arange(kge.N), 1)
    table, out = kge._transitions, np.zeros((kge.N, kge.N))
    for i in starts:
        for e in range(table.start[i], table.start[i] + table.degree[i]):
            out[i, table.node[2 * e]] += table.keep[e] / table.degree[i]
            out[i, table.node[2 * e + 1]] += (1 - table.keep[e]) / table.degree[i]
    return out


@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize(
    "options, alpha, kept_weight",
    [
        ({}, 1.0, None),
        ({"walk_alpha": 2.0}, 2.0, None),
        ({"kept_edge_weight": 0.05}, 1.0, 0.05),
        ({"walk_corr_weighted": False, "kept_edge_weight": 3.0}, 0.0, 3.0),
    ],
)
def test_walk_weights(mei, undirected, options, alpha, kept_weight):
    kge = MagnitudeEdgeKGE(mei, walk_undirected=undirected, **options)
    corr = square(mei.evaluate(layer_agg="max"), "corr")
    weight = np.zeros((N, N))
    for i, j in pairs_of(kge.inferred_heads, kge.inferred_tails):
        weight[i, j] = max(corr[i, j], 0.0) ** alpha
    floor = weight.max() if kept_weight is None else kept_weight
    for i, j in pairs_of(kge.true_heads, kge.true_tails):
        own = np.nan_to_num(corr[i, j]).clip(0) ** alpha
        weight[i, j] = max(own, floor)
    if undirected:
        weight = np.maximum(weight, weight.T)
    total = weight.sum(1, keepdims=True)
    want = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    np.testing.assert_allclose(row_shares(kge), want, atol=1e-12)


def test_assigned_edges_are_walked_exactly(mei):
    kge = MagnitudeEdgeKGE(mei, walk_undirected=False, directed=True, window_size=1, walks_per_node=3)
    edges = {(0, 1), (1, 6), (6, 0), (0, 8), (8, 2)}  # kept ones, mined ones and made-up ones
    assign(kge, edges)
    assert set(map(tuple, np.argwhere(walked(kge)))) == edges
    kge = MagnitudeEdgeKGE(mei, window_size=1, walks_per_node=3)
    assign(kge, edges)
    assert set(map(tuple, np.argwhere(walked(kge)))) == edges | {(j, i) for i, j in edges}


@pytest.mark.parametrize("edges", ["joint", "inferred", "true"])
def test_the_public_ablation_is_the_assigned_one(mei, edges):
    public, joint = MagnitudeEdgeKGE(mei, **QUICK, edges=edges), MagnitudeEdgeKGE(mei, **QUICK)
    chosen = {
        "joint": pairs_of(joint.pos_heads, joint.pos_tails),
        "inferred": pairs_of(joint.inferred_heads, joint.inferred_tails),
        "true": pairs_of(joint.true_heads, joint.true_tails),
    }[edges]
    assert pairs_of(public.pos_heads, public.pos_tails) == chosen
    assign(joint, chosen)
    assert public.fit(2, verbose=False) == joint.fit(2, verbose=False)
    pd.testing.assert_frame_equal(public.evaluate(), joint.evaluate())


def test_contexts_follow_the_edges(mei):
    edges = {(0, 1), (1, 2), (2, 3), (5, 4)}
    forward = edges | {(0, 2), (1, 3)}
    for undirected in (False, True):
        kge = MagnitudeEdgeKGE(
            mei, directed=True, walk_undirected=undirected, window_size=2, walks_per_node=3
        )
        assign(kge, edges)
        assert set(map(tuple, np.argwhere(walked(kge)))) == forward
    kge = MagnitudeEdgeKGE(mei, window_size=2, walks_per_node=3)
    assign(kge, edges)
    count = walked(kge)
    assert set(map(tuple, np.argwhere(count))) == forward | {(j, i) for i, j in forward}
    assert (count == count.T).all()


def test_excluded_pairs_are_neither_positive_nor_negative(mei):
    """What the embedding says of an excluded pair has no effect on training."""
    excluded = [("f0", "f2"), ("f7", "f3")]
    for directed in (True, False):
        kge = MagnitudeEdgeKGE(
            mei, **QUICK, directed=directed, walk_undirected=not directed, exclude_edges=excluded
        )
        assign(kge, {(0, 1), (1, 2), (2, 7), (7, 3)})  # walks from 0 pass 2, and step from 7 to 3
        count = walked(kge)
        assert count[0, 1] > 0 and count[0, 2] == count[7, 3] == 0
        assert directed or count[2, 0] == count[3, 7] == 0
        assert kge._unknown[[0, 7], [2, 3]].all()
        assert kge._unknown.sum() == N + 2 * (2 - directed)
    # A table in which only the excluded scores differ gets no gradient from negatives.
    table = torch.zeros(3, 3).requires_grad_()
    identity = torch.eye(3)
    unknown = np.eye(3, dtype=bool)
    unknown[0, 1] = True
    centre, context = np.zeros(50, dtype=np.int32), np.full(50, -1, dtype=np.int32)
    optimizer = torch.optim.SGD([table], lr=1.0)
    train_epoch(
        lambda: (table, identity), centre, context, unknown, 4, 50, optimizer, np.random.default_rng(0)
    )
    assert table[0, 2] < -0.1 and table[0, 0] == table[0, 1] == 0 and (table[1:] == 0).all()


def test_optimum_is_the_log_probability_of_the_context():
    """With one parameter per pair, s(i, j) = log(P(j | i) N / k), Levy & Goldberg 2014 for uniform noise."""
    rng = np.random.default_rng(0)
    p = np.array([[0.1, 0.3, 0.6], [0.5, 0.25, 0.25], [0.2, 0.7, 0.1]])
    centre = rng.integers(3, size=60000).astype(np.int32)
    context = np.array([rng.choice(3, size=60000, p=row) for row in p]).astype(np.int32)
    context = context[centre, np.arange(60000)]
    table = torch.zeros(3, 3, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.SGD([table], lr=3.0)
    identity = torch.eye(3, dtype=torch.float64)
    nothing = np.zeros((3, 3), dtype=bool)
    for _ in range(3):
        train_epoch(lambda: (table, identity), centre, context, nothing, 2, 500, optimizer, rng)
    mean, steps = torch.zeros_like(table), 10
    for _ in range(steps):
        train_epoch(lambda: (table, identity), centre, context, nothing, 2, 500, optimizer, rng)
        mean += table.detach() / steps
    np.testing.assert_allclose(mean, np.log(p * 3 / 2), atol=0.12)


def test_both_ways_to_score_agree():
    rng = torch.Generator().manual_seed(0)
    for n in (5, 400):
        source, target = torch.randn(2, n, 4, generator=rng, dtype=torch.float64).requires_grad_()
        centre = torch.randint(n, (7,), generator=rng, dtype=torch.int32)
        others = torch.randint(n, (7, 3), generator=rng, dtype=torch.int32)
        got = scores(source, target, centre, others)
        want = (source[centre.long()][:, None] * target[others.long()]).sum(2)
        torch.testing.assert_close(got, want)
        weight = torch.randn(7, 3, generator=rng, dtype=torch.float64)
        for a, b in zip(
            torch.autograd.grad((got * weight).sum(), (source, target)),
            torch.autograd.grad((want * weight).sum(), (source, target)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_direction_is_told_apart_only_when_directed(mei):
    chain = {(k, (k + 1) % N) for k in range(N)}
    tables = {}
    for directed in (False, True):
        kge = MagnitudeEdgeKGE(
            mei, embedding_dim=16, directed=directed, walk_undirected=not directed, window_size=1, lr=5e-2
        )
        assign(kge, chain)
        kge.fit(60, verbose=False)
        tables[directed] = square(kge.evaluate(), "score")
    symmetric, directed = tables[False], tables[True]
    off = ~np.eye(N, dtype=bool)
    np.testing.assert_allclose(symmetric[off], symmetric.T[off], rtol=1e-10)
    heads, tails = np.array(sorted(chain)).T
    assert (directed[heads, tails] > 0).all() and (directed[tails, heads] < 0).all()
    assert directed[heads, tails].min() > directed[off].mean() + 1


def test_nodes_that_no_walk_leaves_do_not_stand_out(mei):
    kge = MagnitudeEdgeKGE(mei, embedding_dim=16, directed=True, walk_undirected=False, lr=5e-2)
    assign(kge, {(0, 1), (1, 2), (2, 0)})
    kge.fit(40, verbose=False)
    table = square(kge.evaluate(), "score")
    off = ~np.eye(N, dtype=bool)
    assert table[3:][off[3:]].max() < min(table[0, 1], table[1, 2], table[2, 0]) - 1


@pytest.mark.parametrize("directed", [False, True])
def test_scores_are_inner_products(mei, directed):
    kge = MagnitudeEdgeKGE(mei, **QUICK, directed=directed)
    kge.fit(2, verbose=False)
    e = kge.embedding.detach().double().numpy()
    want = e[:, :4] @ e[:, 4:].T if directed else e @ e.T
    np.testing.assert_allclose(square(kge.evaluate(exclude_self=False), "score"), want, rtol=1e-12)


@pytest.mark.parametrize("score", ["corr", "partial"])
def test_the_other_columns_are_the_inferers(mei, score):
    kge = MagnitudeEdgeKGE(mei, **QUICK, score=score, layer_agg="mean")
    kge.fit(1, verbose=False)
    for exclude_self in (True, False):
        mined = mei.evaluate(score=score, layer_agg="mean", exclude_self=exclude_self)
        table = kge.evaluate(exclude_self=exclude_self)
        assert list(table.columns) == ["score" if c == "corr" else c for c in mined.columns]
        both = [
            t.sort_values(["src_idx", "dst_idx"]).drop(columns=c).reset_index(drop=True)
            for t, c in ((table, "score"), (mined, "corr"))
        ]
        first, second = both
        pd.testing.assert_frame_equal(first, second)


def test_fused_score(mei):
    kge = MagnitudeEdgeKGE(mei, **QUICK, directed=True)
    kge.fit(5, verbose=False)
    structure = 1 / (1 + np.exp(-square(kge.evaluate(), "score")))
    corr = square(mei.evaluate(layer_agg="mean"), "corr")  # whatever was mined with, here 'max'
    assert 0 < np.isnan(corr).sum() - N < 40

    def z(values):
        return (values - np.nanmean(values)) / np.nanstd(values)

    for w in (0.0, 0.3, 1.0):
        want = np.where(np.isnan(corr), 0.0, z(corr)) + w * z(structure)
        got = square(kge.evaluate(fuse=w), "score")
        off = ~np.eye(N, dtype=bool)
        np.testing.assert_allclose(got[off], want[off], atol=1e-9)
    edges = [("f0", "f4"), ("f7", "f3")]
    table = kge.evaluate(fuse=1.0)
    _, summary = kge.evaluate_target_ranking(table, edges)
    assert kge.evaluate_against(edges, fuse=1.0)["mrr"] == summary["mrr"]
    assert kge.evaluate_against(edges, fuse=1.0) != kge.evaluate_against(edges)


def test_history_and_best_state(mei):
    kge = MagnitudeEdgeKGE(mei, **QUICK, directed=True, lr=0.1)
    edges = [("f0", "f4"), ("f7", "f3"), ("f2", "f5")]
    history = kge.fit(12, batch_size=64, validation_edges=edges, verbose=False)
    assert set(history) == {"train_loss", "val_auc"}
    assert [len(v) for v in history.values()] == [12, 12]
    assert all(isinstance(v, float) and np.isfinite(v) for part in history.values() for v in part)
    assert history["train_loss"][-1] < history["train_loss"][0]
    assert kge.evaluate_against(edges)["auc"] == history["val_auc"][-1] < max(history["val_auc"])
    kge.load_best()
    assert kge.evaluate_against(edges)["auc"] == max(history["val_auc"])
    assert set(kge.fit(1, verbose=False)) == {"train_loss"}
    with pytest.raises(RuntimeError, match="no best state to load: call fit"):
        kge.load_best()  # that of an earlier fit would be another run's


def test_validation_edges_train_nothing(mei):
    first, second = MagnitudeEdgeKGE(mei, **QUICK), MagnitudeEdgeKGE(mei, **QUICK)
    first.fit(3, verbose=False)
    second.fit(3, verbose=False, validation_edges=[("f0", "f4")])
    assert torch.equal(first.embedding, second.embedding)


def test_the_seed_decides_and_global_generators_are_left_alone(mei):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    kge = MagnitudeEdgeKGE(mei, **QUICK)
    history = kge.fit(3, verbose=False, seed=5)
    first = kge.embedding.detach().clone()
    assert kge.fit(3, verbose=False, seed=5) == history
    assert torch.equal(kge.embedding, first)
    kge.fit(3, verbose=False, seed=6)
    assert not torch.equal(kge.embedding, first)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state(legacy=False)["state"]["key"] == numpy_state).all()
    assert kge.embedding.grad is None


def test_fits_under_no_grad(mei):
    first, second = MagnitudeEdgeKGE(mei, **QUICK), MagnitudeEdgeKGE(mei, **QUICK)
    first.fit(2, verbose=False)
    with torch.no_grad():
        second.fit(2, verbose=False)
    assert torch.equal(first.embedding, second.embedding)


def test_state_dict_and_deepcopy(mei):
    kge = MagnitudeEdgeKGE(mei, **QUICK)
    kge.fit(2, verbose=False)
    other = MagnitudeEdgeKGE(mei, **QUICK)
    other.load_state_dict(kge.state_dict())
    pd.testing.assert_frame_equal(other.evaluate(), kge.evaluate())
    pd.testing.assert_frame_equal(copy.deepcopy(kge).evaluate(), kge.evaluate())


def test_later_fits_of_the_inferer_change_nothing():
    mei = fitted_mei()
    kge = MagnitudeEdgeKGE(mei, **QUICK)
    kge.fit(1, verbose=False)
    before = kge.evaluate()
    mei.reset_stats()
    pd.testing.assert_frame_equal(kge.evaluate(), before)


def test_progress_goes_to_stderr_and_only_when_wanted(mei, capsys):
    kge = MagnitudeEdgeKGE(mei, **QUICK)
    kge.fit(2, verbose=False)
    assert capsys.readouterr() == ("", "")
    kge.fit(2, validation_edges=[("f0", "f4")])
    out, err = capsys.readouterr()
    assert out == ""
    assert all(word in err for word in ("epochs", "pairs ", "loss ", "val_auc "))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"embedding_dim": 0}, ValueError, "embedding_dim must be a positive int, got 0"),
        ({"embedding_dim": 7, "directed": True}, ValueError, "embedding_dim must be even with .* got 7"),
        ({"score": "spearman"}, ValueError, "score must be one of 'corr', 'partial', got 'spearman'"),
        ({"layer_agg": "median"}, ValueError, "layer_agg must be one of 'mean', 'max', got 'median'"),
        (
            {"mining_strategy": "best"},
            ValueError,
            "mining_strategy must be one of 'fdr', 'topk_per_target', got 'best'",
        ),
        ({"edges": "mined"}, ValueError, "edges must be one of 'joint', 'inferred', 'true', got 'mined'"),
        ({"fdr_alpha": 0.0}, ValueError, r"fdr_alpha must be in \(0, 1\], got 0.0"),
        ({"fdr_alpha": np.nan}, ValueError, r"fdr_alpha must be in \(0, 1\], got nan"),
        (
            {"top_k_per_target": 0, "mining_strategy": "topk_per_target"},
            ValueError,
            "top_k_per_target must be a positive int, got 0",
        ),
        ({"walks_per_node": 1.5}, ValueError, "walks_per_node must be a positive int, got 1.5"),
        ({"walk_length": 1}, ValueError, "walk_length must be an int of at least 2, got 1"),
        ({"window_size": 0}, ValueError, "window_size must be a positive int, got 0"),
        ({"n_negatives": True}, ValueError, "n_negatives must be a positive int, got True"),
        ({"walk_alpha": -1.0}, ValueError, "walk_alpha must be a non-negative number, got -1.0"),
        ({"kept_edge_weight": 0.0}, ValueError, "kept_edge_weight must be a positive number, got 0"),
        ({"lr": 0.0}, ValueError, "lr must be a positive number, got 0.0"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be a non-negative number, got -0.1"),
        ({"exclude_edges": [("f0", "f1")]}, ValueError, "exclude_edges must be missing .* 1 kept edges"),
        ({"exclude_edges": [("f0", "no")]}, ValueError, "exclude_edges must name function nodes.*'no'"),
        ({"exclude_edges": "f0"}, TypeError, r"exclude_edges must be \(source, target\) name pairs"),
        ({"exclude_edges": 3}, TypeError, r"exclude_edges must be \(source, target\) name pairs, got 3"),
        ({"no_option": 1}, TypeError, "no_option"),
    ],
)
def test_bad_options(mei, options, error, message):
    with pytest.raises(error, match=message):
        MagnitudeEdgeKGE(mei, **options)


def test_bad_inferers():
    graph = small_graph()
    with pytest.raises(TypeError, match="mei must be a MagnitudeEdgeInferer, got GSNN"):
        MagnitudeEdgeKGE(small_model(graph))
    with pytest.raises(RuntimeError, match=r"call fit\(dataloader\) first"):
        MagnitudeEdgeKGE(MagnitudeEdgeInferer(small_model(graph), graph))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"n_epochs": 0}, ValueError, "n_epochs must be a positive int, got 0"),
        ({"batch_size": 2.0}, ValueError, "batch_size must be a positive int, got 2.0"),
        (
            {"validation_edges": [("f0", "f1")]},
            ValueError,
            r"validation_edges must be missing from the graph, got 1 kept edges: \('f0', 'f1'\)",
        ),
        ({"validation_edges": []}, ValueError, "validation_edges must hold at least one edge, got none"),
        ({"validation_edges": [("f0", "no")]}, ValueError, "validation_edges must name function nodes"),
        ({"validation_edges": [("f8", "f8")]}, ValueError, "validation_edges must join two nodes"),
    ],
)
def test_bad_fits(mei, options, error, message):
    kge = MagnitudeEdgeKGE(mei, **QUICK)
    with pytest.raises(error, match=message):
        kge.fit(**{"verbose": False, **options})
    with pytest.raises(RuntimeError, match=r"call fit\(\) first"):
        kge.evaluate()


def test_bad_fuse(mei):
    kge = MagnitudeEdgeKGE(mei, **QUICK)
    kge.fit(1, verbose=False)
    with pytest.raises(ValueError, match="fuse must be a non-negative number, got -1"):
        kge.evaluate(fuse=-1)


def test_nothing_to_walk(mei):
    with pytest.raises(ValueError, match="at least one edge of positive weight, got 0 edges.*fdr_alpha"):
        MagnitudeEdgeKGE(mei, edges="inferred", fdr_alpha=1e-300)
    kge = MagnitudeEdgeKGE(mei, fdr_alpha=1e-300)  # kept edges alone weigh 1
    assert len(kge.inferred_heads) == 0
    assert pairs_of(kge.pos_heads, kge.pos_tails) == pairs_of(kge.true_heads, kge.true_tails)
    kge.pos_heads = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"pos_heads and pos_tails must be of one shape"):
        kge._build_adjacency()
    kge.pos_tails = torch.tensor([0, N])
    with pytest.raises(ValueError, match=rf"pos_heads and pos_tails must be in \[0, {N}\)"):
        kge._build_adjacency()


def test_options_count_only_where_they_are_used(mei):
    plain = MagnitudeEdgeKGE(mei, mining_strategy="fdr", fdr_alpha=0.3)
    other = MagnitudeEdgeKGE(mei, mining_strategy="fdr", fdr_alpha=0.3, top_k_per_target=0)
    assert torch.equal(plain.pos_mask, other.pos_mask)
    few: dict[str, Any] = {"mining_strategy": "topk_per_target", "top_k_per_target": np.int64(2)}
    assert torch.equal(
        MagnitudeEdgeKGE(mei, fdr_alpha=7.0, **few).pos_mask, MagnitudeEdgeKGE(mei, **few).pos_mask
    )
    MagnitudeEdgeKGE(mei, walk_corr_weighted=False, walk_alpha=-1.0)


def test_numpy_integers_are_ints(mei):
    small: dict[str, Any] = {
        "embedding_dim": 4,
        "walks_per_node": 2,
        "walk_length": 3,
        "window_size": 2,
        "n_negatives": 1,
    }
    same_size: dict[str, Any] = {name: np.int64(value) for name, value in small.items()}
    kge = MagnitudeEdgeKGE(mei, **same_size)
    of_fit: dict[str, Any] = {"n_epochs": np.int64(2), "batch_size": np.int32(64), "seed": np.int64(1)}
    history = kge.fit(**of_fit, verbose=False)
    same = MagnitudeEdgeKGE(mei, **small)
    assert history == same.fit(n_epochs=2, batch_size=64, seed=1, verbose=False)
    assert torch.equal(kge.embedding, same.embedding)


def test_a_protocol_that_leaks_says_so(mei):
    """Edges that alone are never negatives stand out, true or random: warned of, not measured here."""
    t = mei.evaluate()
    t = t[~t.has_edge]
    missing = list(zip(t.src_func, t.dst_func, strict=True))
    chosen, others = missing[:4], missing[4:30]
    leaky = MagnitudeEdgeKGE(mei, exclude_edges=chosen, mining_strategy="topk_per_target")
    with pytest.warns(UserWarning, match="all 4 validation_edges are exclude_edges: they alone were never"):
        leaky.fit(n_epochs=1, validation_edges=chosen, verbose=False)
    with pytest.warns(UserWarning, match="all 2 positive_edges are exclude_edges"):
        leaky.evaluate_against(chosen[:2])
    # Every warning is an error here: these calls are no leak.
    leaky.fit(n_epochs=1, validation_edges=[*chosen, others[0]], verbose=False)
    leaky.evaluate_against([*chosen, others[0]])
    honest = MagnitudeEdgeKGE(mei, mining_strategy="topk_per_target")
    honest.fit(n_epochs=1, validation_edges=chosen, verbose=False)
    honest.evaluate_against(chosen)
