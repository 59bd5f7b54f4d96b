"""What every edge inferer must do: a suite that each member of the family inherits in its own test file.

A member sets `member` to the name of its module and class, `score_col` to its score column, and says how it
is built and fitted; one for edges of another type than function -> function sets `etype` and names of its
own. `test_inferer.py` checks that no module `gsnn/optim/*Edge*.py` goes without.
"""

import re
from types import SimpleNamespace
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import auc as area
from sklearn.metrics import average_precision_score, roc_auc_score

from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.plot import inference as plot_inference
from gsnn.stats.significance import benjamini_hochberg

FUNCTIONS = [f"f{k}" for k in range(9)]


def small_graph(function_edges=None):
    """Nine function nodes: a cycle f0..f6 with two chords, f7 fed by f2, f8 isolated."""
    if function_edges is None:
        function_edges = [*((k, (k + 1) % 7) for k in range(7)), (0, 3), (5, 3), (2, 7)]
    index = {
        EDGE_TYPES[0]: torch.tensor(function_edges, dtype=torch.long).reshape(-1, 2).T,
        EDGE_TYPES[1]: torch.tensor([[0, 1, 2, 0], [0, 2, 4, 7]]),
        EDGE_TYPES[2]: torch.tensor([[3, 6, 7], [0, 1, 1]]),
    }
    return HeteroGraph(
        index, {"input": ["a", "b", "c"], "function": FUNCTIONS, "output": ["y0", "y1"]}, warn=False
    )


def names_of(graph, etype):
    """The edges of a type as pairs of names."""
    sources, targets = graph.node_names_dict[etype[0]], graph.node_names_dict[etype[2]]
    return [(sources[i], targets[j]) for i, j in graph.edge_index_dict[etype].T.tolist()]


def small_model(graph, seed=0, dtype=torch.float64, **options):
    options = {"channels": 3, "layers": 4, "norm": "layer", "share_layers": False, **options}
    torch.manual_seed(seed)
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, **options).to(dtype)
    with torch.no_grad():  # without biases, nodes that see one input only would be exactly tied
        block: Any
        for block in model.ResBlocks:
            block.lin_in.bias.normal_(std=0.3)
    return model


def small_data(n=90, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    y = np.column_stack([np.tanh(x[:, 0] - x[:, 1]), x[:, 2] * 0.5]) + 0.3 * rng.normal(size=(n, 2))
    return torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)


def batches(x, y, size=16):
    return list(zip(x.split(size), y.split(size), strict=True))


def brute_rank(table, source, target, score_col):
    """Realistic raw rank by counting; a missing score is last."""
    group = table[table.dst_func == target]
    own = group.loc[group.src_func == source, score_col].item()
    others = group.loc[group.src_func != source, score_col]
    if np.isnan(own):
        return 1.0 + len(others)
    return 1.0 + (others > own).sum() + (others == own).sum() / 2


class EdgeInfererContract:
    member = ""
    score_col = "score"
    missing_edges = (("f0", "f4"), ("f7", "f3"), ("f2", "f5"))
    rivals = (("f7", "f3"), ("f1", "f3"))  # missing, into one target
    kept_edge = ("f1", "f2")
    etype = EDGE_TYPES[0]

    @property
    def within(self):
        """Whether sources and targets are nodes of one type, so that there are self pairs."""
        return self.etype[0] == self.etype[2]

    def bare(self):
        """The graph without any edge of the type."""
        return small_graph().without_edges(names_of(small_graph(), self.etype))

    def nodes(self, graph):
        return graph.node_names_dict[self.etype[0]], graph.node_names_dict[self.etype[2]]

    def make(self, model, data):
        """An unfitted inferer."""
        raise NotImplementedError

    def fit(self, inferer, model, x, y):
        """Fit it on the samples."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls):
        self = cls()
        graph = small_graph()
        model = small_model(graph)
        x, y = small_data()
        inferer = self.make(model, graph)
        self.fit(inferer, model, x, y)
        return SimpleNamespace(graph=graph, model=model, x=x, y=y, inferer=inferer, table=inferer.evaluate())

    def test_table_has_the_shared_columns(self, case):
        columns = list(case.table.columns)
        assert columns[:6] == ["src_func", "dst_func", "src_idx", "dst_idx", self.score_col, "has_edge"]
        assert columns[-2:] == ["p_value", "q_value"]
        assert case.table.has_edge.dtype == bool
        assert list(case.table.index) == list(range(len(case.table)))

    def test_table_has_every_pair_once_and_knows_the_graph(self, case):
        sources, targets = self.nodes(case.graph)
        pairs = list(zip(case.table.src_idx, case.table.dst_idx, strict=True))
        every = {(i, j) for i in range(len(sources)) for j in range(len(targets))}
        assert set(pairs) == {(i, j) for i, j in every if not self.within or i != j}
        assert len(pairs) == len(set(pairs))
        assert [sources[i] for i in case.table.src_idx] == list(case.table.src_func)
        assert [targets[j] for j in case.table.dst_idx] == list(case.table.dst_func)
        kept = set(map(tuple, case.graph.edge_index_dict[self.etype].T.tolist()))
        assert [pair in kept for pair in pairs] == list(case.table.has_edge)

    def test_self_pairs_on_request(self, case):
        if not self.within:
            with pytest.raises(TypeError, match="exclude_self"):
                case.inferer.evaluate(exclude_self=False)
            return
        table = case.inferer.evaluate(exclude_self=False)
        assert len(table) == len(FUNCTIONS) ** 2
        assert (table.src_idx == table.dst_idx).sum() == len(FUNCTIONS)

    def test_rows_are_sorted_with_missing_scores_last_and_ties_by_index(self, case):
        t = case.table
        key = [(np.isnan(s), -s if s == s else 0.0) for s in t[self.score_col]]
        rows = list(zip(key, t.src_idx, t.dst_idx, strict=True))
        assert rows == sorted(rows)
        assert t[self.score_col].notna().any()

    def test_p_and_q_values(self, case):
        p, q = case.table.p_value, case.table.q_value
        assert p.dropna().between(0, 1).all()
        np.testing.assert_allclose(q, benjamini_hochberg(p), rtol=1e-12)

    def test_evaluate_is_repeatable(self, case):
        pd.testing.assert_frame_equal(case.inferer.evaluate(), case.table)

    def test_the_model_is_left_alone(self, case):
        graph = small_graph()
        model = small_model(graph, dropout=0.1)
        inferer = self.make(model, graph)
        self.fit(inferer, model, case.x, case.y)
        inferer.evaluate()
        for block in model.ResBlocks:
            assert not block._store_activations
            assert block._last_pre_norm_activation is None and block._last_activation is None

    def test_evaluate_against_is_auc_and_rank_of_the_table(self, case):
        result = case.inferer.evaluate_against(list(self.missing_edges), top_k=(1, 2, 4))
        t = case.table
        positive = np.array([pair in self.missing_edges for pair in zip(t.src_func, t.dst_func, strict=True)])
        pool = ~t.has_edge.to_numpy()
        scores = t[self.score_col].to_numpy(copy=True)
        assert not np.isnan(scores[positive]).any()
        scores = np.where(np.isnan(scores), -1e9, scores)  # missing scores lose
        assert result["auc"] == pytest.approx(roc_auc_score(positive[pool], scores[pool]), abs=1e-12)
        assert result["average_precision"] == pytest.approx(
            average_precision_score(positive[pool], scores[pool]), abs=1e-12
        )
        rank = np.array([brute_rank(t, *pair, self.score_col) for pair in self.missing_edges])
        assert result["mrr"] == pytest.approx((1 / rank).mean(), abs=1e-12)
        for k in (1, 2, 4):
            assert result[f"top@{k}"] == pytest.approx((rank <= k).mean())
        assert (result["n_positives"], result["n_negatives"]) == (3, pool.sum() - 3)

    def test_figures(self, case):
        ax = plot_inference.roc({"here": case.table}, self.missing_edges)
        (curve,) = [line for line in ax.get_lines() if str(line.get_label()).startswith("here")]
        auc = case.inferer.evaluate_against(self.missing_edges)["auc"]
        assert area(curve.get_xdata(), curve.get_ydata()) == pytest.approx(auc)
        assert f"AUC {auc:.3f}" in str(curve.get_label())
        ax = plot_inference.held_out_ranks(case.table, self.missing_edges)
        (dots,) = [line for line in ax.get_lines() if line.get_marker() == "o"]
        wanted = {f"{s} → {t}": brute_rank(case.table, s, t, self.score_col) for s, t in self.missing_edges}
        labels = [label.get_text() for label in ax.get_yticklabels()]
        at = np.asarray(dots.get_xdata())
        assert dict(zip(labels, at, strict=True)) == wanted
        assert at[-1] == min(wanted.values())
        plt.close("all")
        with pytest.raises(ValueError, match="tables must hold at least one table"):
            plot_inference.roc({}, self.missing_edges)
        with pytest.raises(ValueError, match="table must have a column 'score' or 'corr'"):
            plot_inference.held_out_ranks(case.table.drop(columns=self.score_col), self.missing_edges)

    def test_target_ranking_is_static_and_needs_only_the_table(self, case):
        edges = [*self.missing_edges, self.kept_edge]  # a kept edge may be ranked as well
        detail, summary = type(case.inferer).evaluate_target_ranking(
            case.table, edges, score_col=self.score_col, top_k=(1, 3)
        )
        edges = sorted(edges)
        assert list(detail) == [
            *("src_func", "dst_func", "score", "rank", "n_candidates", "reciprocal_rank", "top@1", "top@3")
        ]
        assert list(zip(detail.src_func, detail.dst_func, strict=True)) == edges
        t = case.table
        scored = t[t[self.score_col].notna()]
        have = set(zip(scored.src_func, scored.dst_func, strict=True))
        want = [brute_rank(scored, *e, self.score_col) if e in have else np.nan for e in edges]
        np.testing.assert_array_equal(detail["rank"], want)
        assert detail.n_candidates.tolist() == [(scored.dst_func == target).sum() for _, target in edges]
        found = {(row.src_func, row.dst_func): getattr(row, self.score_col) for row in t.itertuples()}
        np.testing.assert_array_equal(detail["score"], [found[edge] for edge in edges])
        assert set(summary) == {"n_positives", "mrr", "top@1", "top@3"}
        assert summary["n_positives"] == 4
        assert summary["mrr"] == pytest.approx(np.nan_to_num(1 / np.array(want)).mean())

    def test_filtered_ranks_leave_out_what_is_known(self, case):
        table = case.table
        detail, _ = type(case.inferer).evaluate_target_ranking(
            table, self.rivals, score_col=self.score_col, filtered=True
        )
        open_rows = table[~table.has_edge]
        (one, target), (two, _) = self.rivals
        for own, other in ((one, two), (two, one)):
            rest = open_rows[open_rows.src_func != other]
            row = detail[detail.src_func == own].iloc[0]
            assert row["rank"] == brute_rank(rest, own, target, self.score_col)
            assert row.n_candidates == rest[rest.dst_func == target][self.score_col].notna().sum()

    def test_pairs_that_cannot_be_ranked_count_as_lost(self, case):
        rank = type(case.inferer).evaluate_target_ranking
        table = case.table.copy()
        known, (rival, target) = self.rivals
        row = table.index[(table.src_func == rival) & (table.dst_func == target)][0]
        table.loc[row, self.score_col] = np.nan
        edges = [known, (rival, target), ("f8", "f8"), ("nobody", target), known, (rival, "nowhere")]
        detail, summary = rank(table, edges, score_col=self.score_col, top_k=(1, 9))
        assert list(zip(detail.src_func, detail.dst_func, strict=True)) == sorted(set(edges))
        lost = detail[detail.src_func != known[0]]
        assert lost["rank"].isna().all() and lost["score"].isna().all()
        assert (lost.reciprocal_rank == 0).all() and not lost["top@9"].any()
        (own,) = detail[detail.src_func == known[0]].itertuples()
        rest = table[table[self.score_col].notna()]
        assert own.rank == brute_rank(rest, *known, self.score_col)
        assert own.n_candidates == (rest.dst_func == target).sum()
        assert summary["n_positives"] == 5
        assert summary["mrr"] == pytest.approx(1 / own.rank / 5)
        assert summary["top@9"] == pytest.approx(1 / 5)

    def test_a_graph_without_any_edge_of_the_type(self, case):
        """Everything is a candidate."""
        bare = self.bare()
        model = small_model(bare)
        inferer = self.make(model, bare)
        self.fit(inferer, model, case.x, case.y)
        table = inferer.evaluate()
        assert len(table) == len(case.table)
        assert not table.has_edge.any()
        assert table[self.score_col].notna().any()
        assert inferer.evaluate_against(self.missing_edges)["n_negatives"] == len(table) - 3

    def test_unfitted(self):
        graph = small_graph()
        inferer = self.make(small_model(graph), graph)
        with pytest.raises(RuntimeError, match="call"):
            inferer.evaluate()
        with pytest.raises(RuntimeError, match="call"):
            inferer.evaluate_against(list(self.missing_edges))

    @pytest.mark.parametrize(
        "edges, error, message",
        [
            ([], ValueError, "positive_edges must hold at least one edge, got none"),
            ([("f0", "f4", "f5")], TypeError, "name pairs, got the item"),
            (["f0"], TypeError, "name pairs, got the item 'f0'"),
            ("f0", TypeError, "name pairs, got 'f0'"),
        ],
    )
    def test_bad_positive_edges(self, case, edges, error, message):
        with pytest.raises(error, match=message):
            case.inferer.evaluate_against(edges)
        with pytest.raises(error, match=message):
            type(case.inferer).evaluate_target_ranking(case.table, edges, score_col=self.score_col)

    def test_positive_edges_with_unknown_nodes(self, case):
        source, target = self.missing_edges[0]
        for edge, kind, name in (
            ((source, "nobody"), self.etype[2], "nobody"),
            (("nobody", target), self.etype[0], "nobody"),
            ((source, "a"), self.etype[2], "a"),  # an input, which nothing leads to
        ):
            with pytest.raises(
                ValueError, match=f"positive_edges must name {kind} nodes.*1 unknown: '{name}'"
            ):
                case.inferer.evaluate_against([edge])

    def test_positive_edges_that_are_no_missing_pairs(self, case):
        message = re.escape(f"missing from the graph, got 1 kept edges: {self.kept_edge}")
        with pytest.raises(ValueError, match=message):
            case.inferer.evaluate_against([self.kept_edge, self.missing_edges[0]])
        if self.within:
            with pytest.raises(ValueError, match="must join two nodes"):
                case.inferer.evaluate_against([("f8", "f8")])
        twice = [*self.missing_edges, *self.missing_edges]
        assert case.inferer.evaluate_against(twice) == case.inferer.evaluate_against(self.missing_edges)

    def test_bad_ranking_options(self, case):
        rank = type(case.inferer).evaluate_target_ranking
        with pytest.raises(ValueError, match="res must have the column 'nothing', got src_func"):
            rank(case.table, list(self.missing_edges), score_col="nothing")
        for top_k in ((), (0,), (1, 2.5)):
            with pytest.raises(ValueError, match="top_k must be positive ints, got"):
                rank(case.table, list(self.missing_edges), score_col=self.score_col, top_k=top_k)
            with pytest.raises(ValueError, match="top_k must be positive ints, got"):
                case.inferer.evaluate_against(list(self.missing_edges), top_k=top_k)

    def test_models_and_graphs_that_cannot_be_inferred_from(self):
        graph = small_graph()
        with pytest.raises(ValueError, match="checkpoint=True"):
            self.make(small_model(graph, checkpoint=True), graph)
        with pytest.raises(ValueError, match="at least 2 layers to have a pair of them, got 1"):
            self.make(small_model(graph, layers=1), graph)
        with pytest.raises(TypeError, match=r"model must have ResBlocks .* got Linear without them"):
            self.make(torch.nn.Linear(3, 2), graph)
        with pytest.raises(TypeError, match="data must have edge_index_dict"):
            self.make(small_model(graph), object())

        def renamed(names):
            names = {**graph.node_names_dict, "function": names}
            return SimpleNamespace(edge_index_dict=graph.edge_index_dict, node_names_dict=names)

        with pytest.raises(ValueError, match="same order, got 'f8' where the model has 'f7'"):
            self.make(small_model(graph), renamed([*FUNCTIONS[:7], "f8", "f7"]))
        with pytest.raises(ValueError, match="the model's 9 function nodes, got a graph with 10"):
            self.make(small_model(graph), renamed([*FUNCTIONS, "f9"]))
