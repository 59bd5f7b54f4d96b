"""The simulated study: what its docstring promises, checked from its tables."""

import numpy as np
import pandas as pd
import pytest

from gsnn.graph import build
from gsnn.simulate.database import database_study


def test_shapes_and_names():
    study = database_study(replicates=3)
    assert study.x.shape == (135, 7) and study.y.shape == (135, 8)
    assert study.x.index.is_unique and study.x.index.equals(study.y.index)
    assert study.targets["input"].tolist() == study.x.columns.tolist()
    plate = study.plates["plate"]
    assert plate.index.equals(study.x.index) and plate.nunique() == 9
    assert plate.groupby([study.x[c] for c in study.x]).nunique().eq(1).all(), "replicates on one plate"


@pytest.mark.parametrize("seed", range(4))
def test_activities_follow_the_network_and_the_database_lacks_the_hidden_edges(seed):
    study = database_study(seed, noise=0)
    graph, report = build(
        study.interactions, study.targets, study.y.columns, min_confidence=3, return_report=True
    )
    # What the graph says, with the hidden edges put back, gives the measurements; signs of those are tried.
    names = graph.node_names_dict["function"]
    assert graph.edge_weight_dict is not None
    index, sign = (d["function", "to", "function"] for d in (graph.edge_index_dict, graph.edge_weight_dict))
    known = {(names[u], names[v]): int(s) for (u, v), s in zip(index.T.tolist(), sign, strict=True)}
    assert len(study.hidden) == 2 and not known.keys() & set(study.hidden)
    best = min(
        np.abs(activities({**known, **dict(zip(study.hidden, signs, strict=True))}, study) - study.y)
        .to_numpy()
        .max()
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1))
    )
    assert best < 1e-12
    assert np.abs(activities(known, study) - study.y).to_numpy().max() > 0.05
    reasons = set(report.loc[~report["kept"], "reason"])
    assert {"confidence below 3", "not directed", "the target reaches no output"} <= reasons
    assert report["target"].eq("REC3_REC4").any()


def activities(edges, study):
    """Each protein in turn, until nothing changes."""
    nodes = {name for edge in edges for name in edge}
    left = {"REC1": "drugA", "KIN2": "drugB", "KIN7": "drugC", "KIN9": "drugD"}
    value = pd.DataFrame(0.0, study.x.index, sorted(nodes))
    for _ in range(6):
        new = value.copy()
        for name in nodes:
            if name in study.x:
                new[name] = study.x[name]
                continue
            total = sum(s * value[u] for (u, v), s in edges.items() if v == name)
            new[name] = np.tanh(1.2 * total) * (1 - 0.9 * study.x[left[name]] if name in left else 1)
        value = new
    return value[study.y.columns]


def test_the_seed_fixes_all():
    one, two, other = database_study(3), database_study(3), database_study(4)
    pd.testing.assert_frame_equal(one.interactions, two.interactions)
    pd.testing.assert_frame_equal(one.y, two.y)
    assert not one.interactions.equals(other.interactions)


def test_signs_that_disagree_are_decided_by_curation_effort():
    study = database_study()
    _, report = build(study.interactions, study.targets, study.y.columns, return_report=True)
    said = report.loc[report["kept"] & report["reason"].str.contains("LIG1 -> REC1"), "reason"]
    assert len(said) == 1 and said.iloc[0].endswith("taken as 1")
