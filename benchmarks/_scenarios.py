"""What `compare_inference.py` compares on: a graph with edges held out, and data of the whole truth.

Every recipe is plain numbers, so that it can be printed, hashed and stamped on a row.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gsnn.data.tables import DataWarning, load_data
from gsnn.graph import GraphWarning, HeteroGraph
from gsnn.models.GSNN import GSNN
from gsnn.simulate.scenarios import converging_tiers, random_signed_dag

DATA = Path(os.environ.get("GSNN_DATA", Path(__file__).parents[2] / "shared" / "data"))


def at_hand(folders: Mapping[str, str | None]) -> list[str]:
    """The names whose folder of :data:`DATA` is there, or that need none; says which are skipped."""
    found = [name for name, folder in folders.items() if folder is None or (DATA / folder).is_dir()]
    for name in folders.keys() - set(found):
        print(f"skipped {name}: no folder {DATA / str(folders[name])}; GSNN_DATA says where the data are")
    return found


Edge = tuple[str, str]

POST_HOC: dict[str, Any] = {
    "channels": 8, "layers": 6, "norm": "groupbatch", "dropout": 0.0,
    "epochs": 30, "batch_size": 64, "lr": 1e-3, "weight_decay": 1e-2, "schedule": "constant",
}  # fmt: skip
ONLINE: dict[str, Any] = {**POST_HOC, "norm": "none", "dropout": 0.2, "lr": 1e-4}
DAG: dict[str, Any] = {
    "kind": "dag", "n_functions": 40, "share": 0.3, "samples": 2000, "noise": 0.15, **POST_HOC, "layers": 8,
}  # fmt: skip
CNO: dict[str, Any] = {
    "kind": "folder",
    "critical": True,
    "share": 0.3,
    **POST_HOC,
    "layers": 10,
    "dropout": 0.1,
    "lr": 1e-2,
}
RECIPES: dict[str, dict[str, Any]] = {
    "tiers12": {"kind": "tiers", "width": 12, "samples": 2000, "noise": 0.15, **POST_HOC},
    "tiers25": {"kind": "tiers", "width": 25, "samples": 2000, "noise": 0.15, **ONLINE},
    "dag_linear": {"nonlinearity": "linear", **DAG},
    "dag_tanh": {"nonlinearity": "tanh", **DAG},
    "cno_extliver": {"folder": "cno_extliver", **CNO, "epochs": 200, "schedule": "cosine"},
    "cno_hepatocyte5": {"folder": "cno_hepatocyte5", **CNO, "epochs": 60, "schedule": "cosine"},
    **{
        f"dream4_100_{k}": {
            "kind": "folder", "folder": f"dream4/size100_{k}", "critical": False, "share": 0.2,
            **POST_HOC, "epochs": 100, "lr": 1e-2, "schedule": "cosine",
        }
        for k in (1, 2, 3)
    },
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """What a method may know. Targets are standardized with the moments of the training samples.

    `x_test` and `y_test` are None where all samples are needed for training.
    """

    graph: HeteroGraph
    x: Tensor
    y: Tensor
    x_test: Tensor | None = None
    y_test: Tensor | None = None


def present(name: str) -> bool:
    """Whether the scenario's data are there."""
    recipe = RECIPES[name]
    return recipe["kind"] != "folder" or (DATA / recipe["folder"]).is_dir()


def build(name: str, seed: int) -> tuple[Problem, list[Edge], list[Edge]]:
    """The problem, its validation edges and its test edges."""
    recipe = RECIPES[name]
    if recipe["kind"] == "folder":
        return _from_folder(recipe, seed)
    if recipe["kind"] == "tiers":
        scenario = converging_tiers(recipe["width"])
    else:
        scenario = random_signed_dag(recipe["n_functions"], recipe["share"], recipe["nonlinearity"], seed)
    np.random.seed(seed)  # noqa: NPY002 - the published protocol draws from the global state
    x, x_test, y, y_test = standardized(*scenario.sample(recipe["samples"], 500, recipe["noise"]))
    problem = Problem(scenario.partial, x, y, x_test, y_test)
    return problem, list(scenario.validation_edges), list(scenario.test_edges)


def standardized(
    x: np.ndarray, x_test: np.ndarray, y: np.ndarray, y_test: np.ndarray
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A sample of a scenario as float32 tensors, outputs with the moments of the training part."""
    mean, sd = y.mean(0), y.std(0)
    in_x, test_x, in_y, test_y = (
        torch.tensor(part, dtype=torch.float32) for part in (x, x_test, (y - mean) / sd, (y_test - mean) / sd)
    )
    return in_x, test_x, in_y, test_y


def network(graph: HeteroGraph, recipe: dict) -> GSNN:
    """An untrained network by a recipe: its channels, layers, norm and, where it has one, dropout."""
    return GSNN(
        graph.edge_index_dict,
        graph.node_names_dict,
        channels=recipe["channels"],
        layers=recipe["layers"],
        dropout=recipe.get("dropout", 0.0),
        share_layers=False,
        norm=recipe["norm"],
    )


def _from_folder(recipe: dict, seed: int) -> tuple[Problem, list[Edge], list[Edge]]:
    folder = DATA / recipe["folder"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GraphWarning)  # an input that reaches no output is in the data
        warnings.simplefilter("ignore", DataWarning)  # one input a knock-out, as published
        data = load_data(folder / "edges.tsv", folder / "X.tsv", folder / "Y.tsv", nodes=folder / "nodes.tsv")
    G = nx.DiGraph(data.graph.to_networkx())
    functions = set(data.graph.node_names_dict["function"])
    edges = sorted((u, v) for u, v in G.edges if u in functions and v in functions and u != v)
    if recipe["critical"]:
        table = pd.read_csv(folder / "edge_criticality.tsv", sep="\t")
        table = table[table["lost_pairs"] > 0]
        edges = sorted(zip(table["source"], table["target"], strict=True))
    order = np.random.default_rng(seed).permutation(len(edges))
    held_out = [edges[i] for i in order[: int(recipe["share"] * len(edges))]]
    G.remove_edges_from(held_out)
    sd = data.y.std(ddof=0).replace(0.0, 1.0)
    x, y = (torch.tensor(t.to_numpy(), dtype=torch.float32) for t in (data.x, (data.y - data.y.mean()) / sd))
    half = len(held_out) // 2
    return Problem(HeteroGraph.from_networkx(G, warn=False), x, y), held_out[:half], held_out[half:]
