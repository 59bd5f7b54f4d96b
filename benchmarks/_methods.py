"""The methods that `compare_inference.py` compares: scores of every pair of function nodes, (N, N).

Test edges are unknown here. Validation edges select the checkpoint of the method `regressor, best` and do
nothing else. No method is told to exclude any edge.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from _scenarios import Edge, Problem, network
from scipy.special import expit
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from gsnn.models.GSNN import GSNN
from gsnn.optim.edge_scores import common_neighbours, degree_product, edge_scores
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeKGE import MagnitudeEdgeKGE
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor

SETTINGS: dict[str, Any] = {
    "regressor": {"lr": 1e-3, "ridge": 1e-2, "dropout": 0.2},
    "kge": {"embedding_dim": 32},
    "kge directed": {
        "embedding_dim": 32, "directed": True, "walk_undirected": False, "window_size": 2, "lr": 2e-2,
    },
    "kge epochs": 100,
    "fuse": 1.0,
}  # fmt: skip
Scores = np.ndarray


def score_all(
    problem: Problem, recipe: dict, seed: int, validation_edges: Sequence[Edge]
) -> tuple[dict[str, Scores], dict[str, float]]:
    """Method -> scores, and what the trained model reaches: `train_mse`, `test_mse` where there is a test."""
    torch.manual_seed(seed)
    graph = problem.graph
    model = network(graph, recipe)
    regressor = MagnitudeEdgeRegressor(model, graph, **SETTINGS["regressor"])
    train(model, regressor, problem, recipe, validation_edges)
    quality = {"train_mse": error(model, problem.x, problem.y)}
    if problem.x_test is not None and problem.y_test is not None:
        quality["test_mse"] = error(model, problem.x_test, problem.y_test)

    n = regressor.N
    found = {
        "random": np.random.default_rng(seed).random((n, n)),
        "common neighbours": common_neighbours(graph),
        "degree product": degree_product(graph),
    }
    batches = DataLoader(TensorDataset(problem.x, problem.y), batch_size=256)
    simple = edge_scores(model, graph, batches, verbose=False)
    found["activation corr"] = simple["activation_corr"]
    found["|activation| x |gradient|"] = simple["activation_gradient"]
    inferer = MagnitudeEdgeInferer(model, graph)
    inferer.fit(batches, verbose=False)
    for score in ("corr", "partial"):
        for layer_agg in ("max", "mean"):
            table = inferer.evaluate(score=score, layer_agg=layer_agg)
            found[f"{score}, {layer_agg}"] = as_matrix(table, "corr", n)
    found["sv of M"] = simple["gradient_sv"]
    found["sv of M, whitened"] = simple["whitened_sv"]
    found["sv of M, joint"] = simple["joint_sv"]
    found["regressor, last"] = regressor.scores().double().numpy()
    found["regressor signed, last"] = regressor.W.detach().double().numpy()
    regressor.load_best()
    found["regressor, best"] = regressor.scores().double().numpy()
    for name in ("kge", "kge directed"):
        kge = MagnitudeEdgeKGE(inferer, **SETTINGS[name])
        kge.fit(n_epochs=SETTINGS["kge epochs"], verbose=False, seed=seed)
        found[name] = as_matrix(kge.evaluate(), "score", n)
    found["corr + kge directed"] = as_matrix(kge.evaluate(fuse=SETTINGS["fuse"]), "score", n)
    # The sigmoid, as in `evaluate(fuse=...)`: what is ruled out most would set the scale otherwise.
    structure = SETTINGS["fuse"] * standardized(expit(found["kge directed"]))
    found["joint sv + kge directed"] = standardized(simple["joint_sv"]) + structure
    found["joint sv + corr + kge directed"] = found["joint sv + kge directed"] + standardized(
        found["corr, mean"]
    )
    return found, quality


def train(
    model: GSNN,
    regressor: MagnitudeEdgeRegressor,
    problem: Problem,
    recipe: dict,
    validation_edges: Sequence[Edge],
) -> None:
    """Train the model on what is measured, the regressor beside it; leaves the model in eval mode."""
    data = TensorDataset(problem.x, problem.y)
    loader = DataLoader(data, batch_size=recipe["batch_size"], shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    steps = recipe["epochs"] * len(loader) if recipe["schedule"] == "cosine" else None
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if steps else None
    for _ in range(recipe["epochs"]):
        for x, y in loader:
            regressor.pre_forward()
            measured = ~y.isnan()
            loss = mse_loss(model(x)[measured], y[measured])
            regressor.arm_retained_grads()
            optimizer.zero_grad()
            loss.backward()
            regressor.aux_step()
            optimizer.step()
            if schedule:
                schedule.step()
        regressor.maybe_save_best(regressor.evaluate_against(validation_edges)["auc"])
    model.eval()


def error(model: GSNN, x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean squared error over what is measured."""
    with torch.no_grad():
        return float((model(x) - y).square().nanmean())


def standardized(scores: Scores) -> Scores:
    """In standard deviations from the mean of the pairs i != j; a missing score is the average, 0."""
    off = scores[~np.eye(len(scores), dtype=bool) & ~np.isnan(scores)]
    return np.nan_to_num((scores - off.mean()) / off.std())


def as_matrix(table: pd.DataFrame, column: str, n: int) -> Scores:
    """(N, N) scores of an inferer's table, NaN for self."""
    out = np.full((n, n), np.nan)
    out[table["src_idx"], table["dst_idx"]] = table[column]
    return out
