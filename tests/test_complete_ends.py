"""Completion by edges from inputs and to outputs: planted ones are found, switched off, and found again."""

from typing import Any

import pytest
import torch
from test_complete import TINY, data, graph

from gsnn.graph import EDGE_TYPES
from gsnn.optim import search
from gsnn.optim.candidates import OpenPairs
from gsnn.optim.complete import complete, complete_cv
from gsnn.optim.verify import verify

NAMES = graph().node_names_dict
FED = [(i, f) for i in NAMES["input"] for f in NAMES["function"]]
READ = [(f, o) for f in NAMES["function"] for o in NAMES["output"]]
INNER = [(f, g) for f in NAMES["function"] for g in NAMES["function"] if f != g]
#: What brings c to y0, whose path is a -> f0 -> f3 -> y0; c's is c -> f2 -> f5 -> y2.
RIGHT = {
    "input": {("c", "f0"), ("c", "f3")},
    "output": {("f2", "y0"), ("f5", "y0")},
    "inner": {("f2", "f0"), ("f2", "f3"), ("f5", "f0"), ("f5", "f3")},
}


@pytest.mark.parametrize("score", ["omp", "whitened"])
@pytest.mark.parametrize(("kind", "pairs"), [("input", FED), ("output", READ), ("all", FED + READ + INNER)])
def test_a_planted_edge_comes_first(kind, pairs, score):
    x, y = data()
    found = complete(
        graph(), x, y, 1, candidates=pairs, score=score, settings=TINY, validation=data(200, seed=1),
        verbose=False,
    )  # fmt: skip
    edge = tuple(found.edges.loc[0, ["src_func", "dst_func"]])
    assert edge in (RIGHT[kind] if kind in RIGHT else set().union(*RIGHT.values()))
    assert found.graph == graph().with_edges([edge])
    # c has half of the variance of y0 that can be explained, and y0 is one of three outputs.
    assert found.path[1] < found.path[0] - 0.1
    names = [(found.model.homo_names[u], found.model.homo_names[v]) for u, v in found.model.edge_index.T]
    mask = torch.ones(len(names))
    mask[names.index(edge)] = 0
    held = data(200, seed=1)
    scaling = found.model.scaling
    inputs, wanted = scaling.scale_x(torch.tensor(held[0])), scaling.scale_y(torch.tensor(held[1]))
    with torch.no_grad():
        off, on = (
            (found.model.eval()(inputs.float(), edge_mask=m) - wanted).square().mean() for m in (mask, None)
        )
    assert found.edges.gain[0] == pytest.approx(float(off - on), rel=1e-4) and found.edges.gain[0] > 0.1


def test_all_three_types_in_stages_and_after_an_interruption(tmp_path, monkeypatch):
    x, y = data()
    options: dict[str, Any] = {
        "candidates": FED + READ + INNER,
        "stages": 2,
        "settings": TINY,
        "verbose": False,
    }
    whole = complete(graph(), x, y, 4, **options)
    scores = whole.edges.groupby("stage")["score"].apply(list)
    assert all(own == sorted(own, reverse=True) for own in scores)
    pairs = list(zip(whole.edges["src_func"], whole.edges["dst_func"], strict=True))
    assert len(set(pairs)) == 4 and not set(pairs) & {("a", "f0"), ("f3", "y0"), ("f0", "f3")}
    assert sum(whole.graph.edge_index_dict[e].shape[1] for e in EDGE_TYPES) == 9 + 4

    extend, path = search.Search.extend, tmp_path / "state"
    monkeypatch.setattr(
        search.Search, "extend", lambda self, k, stage: 1 / (stage < 2) and extend(self, k, stage)
    )
    with pytest.raises(ZeroDivisionError):
        complete(graph(), x, y, 4, checkpoint_path=path, **options)
    monkeypatch.setattr(search.Search, "extend", extend)
    assert complete(graph(), x, y, 4, checkpoint_path=path, **options).edges.equals(whole.edges)
    with pytest.raises(ValueError, match="candidates"):
        complete(graph(), x, y, 4, checkpoint_path=path, **(options | {"candidates": FED + READ}))


def test_cross_validation_chooses_among_them():
    x, y = data(120)
    found = complete_cv(
        graph(), x, y, [0, 1], 2, candidates=READ, draws=1, stages=1, settings={**TINY, "epochs": 10},
        others={}, verbose=False,
    )  # fmt: skip
    chosen = set(zip(found.edges["src_func"], found.edges["dst_func"], strict=True))
    assert chosen <= RIGHT["output"]
    assert found.table["r2"][1] > found.table["random"][1]


def test_open_pairs():
    every = OpenPairs.of(graph(), FED + READ + INNER + [("nobody", "f1"), ("y0", "a")])
    assert every.number == len(every.pairs()) == len(FED + READ + INNER) - 9
    assert set(every.pairs(EDGE_TYPES[1])) == set(FED) - {("a", "f0"), ("b", "f1"), ("c", "f2")}
    assert OpenPairs.of(graph()).pairs() == OpenPairs.of(graph(), INNER).pairs()
    assert set(OpenPairs.of(graph()).weights) == {EDGE_TYPES[0]}
    weighed = OpenPairs.of(graph(), FED + READ, {("c", "f0"): 0.0, ("f0", "y1"): 2.0})
    assert ("c", "f0") not in weighed.pairs() and weighed.weights[EDGE_TYPES[2]].max() == 2
    both = graph()
    names = {**both.node_names_dict, "input": ["f0", "b", "c"]}  # f0 is an input, too
    twice = OpenPairs.of(type(both)(both.edge_index_dict, names), [("f0", "f1")])
    assert list(twice.weights) == [EDGE_TYPES[0]]
    with pytest.raises(ValueError, match="from an input or function node .* got none"):
        OpenPairs.of(graph(), [("y0", "f1"), ("a", "f0")])


def test_a_budget_beyond_the_candidates_and_what_cannot_be_verified():
    x, y = data()
    with pytest.raises(ValueError, match="at most the number of candidate pairs, 2, got 3"):
        complete(graph(), x, y, 3, candidates=[("c", "f0"), ("f2", "y0")], settings=TINY)
    model: Any = torch.nn.Identity()
    for pair in (("c", "f0"), ("f2", "y0")):
        with pytest.raises(ValueError, match=f"edges must join function nodes.*{pair[0]}"):
            verify(model, graph(), [("f2", "f3"), pair], x, y)
