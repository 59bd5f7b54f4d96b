"""What a run says of why it predicts what it does, where one input alone matters."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from gsnn.app import attributions
from gsnn.app.attributions import attributions_of, section_of
from gsnn.data.tables import Data
from gsnn.graph import EDGE_TYPES, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.train import predict

pytest.importorskip("captum", reason="attributions need the extra explain")
R2 = {"o": {"gsnn": 0.5}, "p": {"gsnn": 0.9}, "flat": {"gsnn": float("nan")}, "bad": {"gsnn": -0.1}}


@pytest.fixture(scope="module")
def world():
    """i -> f -> o and k -> g -> p; flat and bad hang on g, too."""
    names = {"input": ["i", "k"], "function": ["f", "g"], "output": ["o", "p", "flat", "bad"]}
    index = {
        EDGE_TYPES[0]: torch.empty(2, 0, dtype=torch.long),
        EDGE_TYPES[1]: torch.tensor([[0, 1], [0, 1]]),
        EDGE_TYPES[2]: torch.tensor([[0, 1, 1, 1], [0, 1, 2, 3]]),
    }
    graph = HeteroGraph(index, names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GSNN(graph.edge_index_dict, names, channels=3, layers=2, norm="none")
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(200, 2)), columns=["i", "k"])
    y = pd.DataFrame(0.0, index=x.index, columns=names["output"])
    return model, Data(graph, x, y, x.index)


def test_inputs_of_the_outputs_that_are_predicted(world):
    model, data = world
    found = attributions_of(model, data, R2)
    assert found.table is not None
    assert list(found.table.columns) == ["output", "input", "score", "magnitude", "spread"]
    assert found.table["output"].tolist() == ["p", "p", "o", "o"]  # the best predicted one first
    assert found.table["input"].tolist() == ["k", "i", "i", "k"]
    assert found.table["magnitude"].iloc[[1, 3]].tolist() == [0.0, 0.0]
    assert found.facts == {
        "outputs": 2, "samples": 64, "drawn": "p", "completeness": found.facts["completeness"]
    }  # fmt: skip
    rows = np.unique(np.linspace(0, 199, 64).astype(int))
    full = predict(model, data.x.iloc[rows])["p"].mean()
    silent = predict(model, data.x.iloc[:1] * 0)["p"].iloc[0]
    assert found.table["score"][0] == pytest.approx(full - silent, abs=0.01 * found.table["magnitude"][0])
    section = section_of(found)
    assert section.rows[1][0] == "o" and section.rows[1][1].startswith("i ") and "k" not in section.rows[1][1]
    assert section.note == "" and section.pictures == ["explanation"] and "64 samples" in section.text[0]
    ax = found.figures["explanation"]()
    assert {text.get_text() for text in ax.texts} >= {"k", "g", "p"}
    plt.close(ax.figure)


def test_what_misses_its_sum_is_said(world):
    found = attributions_of(world[0], world[1], R2)
    wrong = replace(found, facts=found.facts | {"completeness": 0.5})
    assert "by 50.0%" in section_of(wrong).note


def test_reasons_for_none(world, monkeypatch):
    model, data = world
    none = attributions_of(model, data, {"o": {"gsnn": -1.0}, "p": {"gsnn": float("nan")}})
    assert none.table is None and none.figures == {}
    assert "better than by its mean" in section_of(none).text[0]

    def absent(*args, **kwargs):
        raise ImportError("attributions need Captum")

    monkeypatch.setattr(attributions, "attribute", absent)
    assert "need Captum" in section_of(attributions_of(model, data, R2)).text[0]
