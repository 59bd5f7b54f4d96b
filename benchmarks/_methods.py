"""The methods that `compare_inference.py` compares: scores of every pair of function nodes, (N, N).

Test edges are unknown here. Validation edges select the checkpoint of the method `regressor, best` and do
nothing else. No method is told to exclude any edge.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from _scenarios import Edge, Problem, network
from scipy.special import expit
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from gsnn.models.GSNN import GSNN
from gsnn.models.SideBySide import SideBySide
from gsnn.optim.edge_scores import common_neighbours, degree_product, edge_scores
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeKGE import MagnitudeEdgeKGE
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor
from gsnn.train.rules import loss_of

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
    problem: Problem, model: GSNN, regressor: MagnitudeEdgeRegressor, seed: int
) -> tuple[dict[str, Scores], dict[str, float]]:
    """Method -> scores, and what the trained model reaches: `train_mse`, `test_mse` where there is a test.

    `model` and `regressor` are those of :func:`train_all`.
    """
    graph = problem.graph
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


def train_all(
    problems: Sequence[Problem],
    recipe: dict,
    seeds: Sequence[int],
    validation_edges: Sequence[Sequence[Edge]],
) -> list[tuple[GSNN, MagnitudeEdgeRegressor]]:
    """A model for each problem, trained on what is measured, and the regressor that learnt beside it.

    They are trained side by side, each from its own seed with the draws that it would have alone; which
    others stand beside it changes nothing but rounding. Models are in eval mode.
    """
    networks, generators, loaders = [], [], []
    for problem, seed in zip(problems, seeds, strict=True):
        generators.append(torch.Generator().manual_seed(seed))
        with drawing_from(generators[-1]):
            networks.append(network(problem.graph, recipe))
        data = TensorDataset(problem.x, problem.y)
        loaders.append(DataLoader(data, batch_size=recipe["batch_size"], shuffle=True))
    n_steps = len(loaders[0])
    together = SideBySide(networks)
    together.generators = generators
    regressors = [
        MagnitudeEdgeRegressor(member, member.graph, **SETTINGS["regressor"]) for member in together.networks
    ]
    optimizer = torch.optim.AdamW(
        together.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"], fused=True
    )
    steps = recipe["epochs"] * n_steps if recipe["schedule"] == "cosine" else None
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if steps else None
    for _ in range(recipe["epochs"]):
        batches = [drawn(loader, own) for loader, own in zip(loaders, generators, strict=True)]
        for pairs in zip(*batches, strict=True):
            for regressor in regressors:
                regressor.pre_forward()
            outputs = together([x for x, _ in pairs])
            each = outputs.unbind(1) if isinstance(outputs, torch.Tensor) else outputs
            losses = [
                loss_of(mse_loss, output, y, gaps=True) for output, (_, y) in zip(each, pairs, strict=True)
            ]
            for regressor in regressors:
                regressor.arm_retained_grads()
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            for regressor, own in zip(regressors, generators, strict=True):
                with drawing_from(own):
                    regressor.aux_step()
            optimizer.step()
            if schedule:
                schedule.step()
        for regressor, edges in zip(regressors, validation_edges, strict=True):
            regressor.maybe_save_best(regressor.evaluate_against(edges)["auc"])
    return list(zip(together.eval().members(), regressors, strict=True))


def drawn(loader: DataLoader, generator: torch.Generator) -> Iterator[Sequence[torch.Tensor]]:
    """An epoch's batches in the order that the generator draws."""
    with drawing_from(generator):
        batches = iter(loader)
        first = next(batches)  # the order is drawn only now
    yield first
    yield from batches


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let the global generator be this one."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        yield
        generator.set_state(torch.get_rng_state())


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
