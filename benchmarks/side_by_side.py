"""What a network costs that is trained beside others, against the same networks one after the other.

The tutorials' size: 24 function nodes, 20 epochs of 1,000 samples, batches of 64, C=8, L=6. `fit` one
network at a time and `fit_side_by_side` take turns, on one thread; the fastest of the repeats counts.
``least`` is the share of the time alone that the compiled blocks take side by side: no overhead, however
small, would bring the cost below it. ``difference`` is the largest relative one between the last training
losses of the two ways.

The case 'regressor' is what `compare_inference.py` trains: each network has a MagnitudeEdgeRegressor beside
it, which reads its captures at every step, and draws dropout, over five epochs of 2,000 samples. 'demo' is
what `gsnn demo` trains on the given graph: the networks of five folds, each with the loss of its test rows
after every epoch, and that of all samples, with dropout, 50 epochs and checkpoints.

    python benchmarks/side_by_side.py --out benchmarks/results/side_by_side.csv
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import _methods
import _scenarios
import numpy as np
import pandas as pd
import torch
from _script import parser_for, save
from _stamp import command_line
from torch.utils.data import DataLoader, TensorDataset

from gsnn.app.compare import make_splits
from gsnn.app.demo import DEMO_OPTIONS, write_tables
from gsnn.app.settings import new_model, settle
from gsnn.app.training import train_folds
from gsnn.data.tables import load_data
from gsnn.kernels import compiled as native
from gsnn.kernels import side_by_side as kernel
from gsnn.models.GSNN import GSNN
from gsnn.models.norms import Norm
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor
from gsnn.simulate.scenarios import converging_tiers
from gsnn.train import fit, fit_side_by_side
from gsnn.train.history import History

OPTIONS: dict[str, Any] = {"epochs": 20, "batch_size": 64, "standardize": True, "verbose": False}


def networks(count: int, norm: Norm) -> list[GSNN]:
    graph = converging_tiers(width=12).partial
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        models.append(GSNN(graph.edge_index_dict, graph.node_names_dict, 8, 6, share_layers=False, norm=norm))
    return models


@contextmanager
def blocks_timed() -> Iterator[list[float]]:
    """Seconds of each time that the compiled blocks of all networks run inside."""
    seconds: list[float] = []
    run = kernel._run

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        run(*arguments)
        seconds.append(time.perf_counter() - start)

    with mock.patch.object(kernel, "_run", timed):
        yield seconds


def turn(count: int, norm: Norm) -> dict[str, float]:
    """Seconds of both ways on the same networks and samples, and how far apart they end."""
    x, _, y, _ = converging_tiers(width=12).sample(n_train=1000, n_test=0, noise_scale=0.15, seed=0)
    alone, together = networks(count, norm), networks(count, norm)
    start = time.perf_counter()
    first = [fit(model, x, y, seed=seed, **OPTIONS) for seed, model in enumerate(alone)]
    middle = time.perf_counter()
    with blocks_timed() as blocks:
        second = fit_side_by_side(together, [(x, y)] * count, seeds=list(range(count)), **OPTIONS)
    end = time.perf_counter()
    seconds = {"alone_s": middle - start, "together_s": end - middle, "blocks_s": sum(blocks)}
    return seconds | {"difference": apart(first, second)}


def regressor_turn(count: int, norm: Norm) -> dict[str, float]:
    """The same of networks with a regressor beside each; alone as a user writes the loop."""
    recipe = {**_scenarios.RECIPES["tiers12"], "norm": norm, "dropout": 0.2, "epochs": 5}
    problems, edges, _ = zip(*(_scenarios.build("tiers12", seed) for seed in range(count)), strict=True)
    start = time.perf_counter()
    first = []
    for seed, problem in enumerate(problems):
        torch.manual_seed(seed)
        model = _scenarios.network(problem.graph, recipe)
        regressor = MagnitudeEdgeRegressor(model, problem.graph, **_methods.SETTINGS["regressor"])
        loader = DataLoader(TensorDataset(problem.x, problem.y), recipe["batch_size"], shuffle=True)
        optimizer = torch.optim.AdamW(model.parameters(), recipe["lr"], weight_decay=recipe["weight_decay"])
        for _ in range(recipe["epochs"]):
            for x, y in loader:
                regressor.pre_forward()
                loss = torch.nn.functional.mse_loss(model(x), y)
                regressor.arm_retained_grads()
                optimizer.zero_grad()
                loss.backward()
                regressor.aux_step()
                optimizer.step()
            regressor.maybe_save_best(regressor.evaluate_against(edges[seed])["auc"])
        first.append(_methods.error(model.eval(), problem.x, problem.y))
    middle = time.perf_counter()
    with blocks_timed() as blocks:
        trained = _methods.train_all(problems, recipe, list(range(count)), edges)
    end = time.perf_counter()
    second = [_methods.error(m, p.x, p.y) for (m, _), p in zip(trained, problems, strict=True)]
    difference = max(abs(b / a - 1) for a, b in zip(first, second, strict=True))
    seconds = {"alone_s": middle - start, "together_s": end - middle, "blocks_s": sum(blocks)}
    return seconds | {"difference": difference}


def apart(first: list[History], second: list[History]) -> float:
    return max(abs(b.train_loss[-1] / a.train_loss[-1] - 1) for a, b in zip(first, second, strict=True))


def demo_turn(folder: Path) -> dict[str, float]:
    """The same of the networks of the demo, each alone as :func:`train_folds` has them side by side."""
    for left in folder.glob("*.safetensors"):
        left.unlink()
    paths = write_tables(converging_tiers(12), folder, n=1000, seed=0)
    data = load_data(paths["edges"], paths["x"], paths["y"], nodes=paths["nodes"])
    options = settle(data, DEMO_OPTIONS)
    assert isinstance(options.epochs, int)
    splits = make_splits(data.y, None, options.folds, options.seed)
    parts = [*splits, (np.arange(len(data.x)), None)]
    x, y = data.x.to_numpy(), data.y.to_numpy()
    settings = {name: getattr(options, name) for name in ("epochs", "batch_size", "lr", "weight_decay")}
    settings |= {"restore_best": False, "standardize": True, "verbose": False}
    start = time.perf_counter()
    first: list[History] = []
    for seed, (train, test) in zip([1, 2, 3, 4, 5, 0], parts, strict=True):
        watched = None if test is None else (x[test], y[test])
        first.append(
            fit(
                new_model(data, options, seed),
                x[train],
                y[train],
                validation=watched,
                seed=seed,
                checkpoint_path=folder / f"{seed}.safetensors",
                checkpoint_every=options.epochs // 20,
                **settings,
            )
        )
    middle = time.perf_counter()
    with blocks_timed() as blocks:
        second = train_folds(data, options, splits, verbose=False, state=folder / "together.safetensors")[1]
    end = time.perf_counter()
    seconds = {"alone_s": middle - start, "together_s": end - middle, "blocks_s": sum(blocks)}
    return seconds | {"difference": apart(first, second)}


def main() -> None:
    parser = parser_for(__doc__, None)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = command_line(parser)
    torch.set_num_threads(1)
    norms: tuple[Norm, ...] = ("groupbatch", "none", "layer")
    cases: list[tuple[str, str, int, Callable[[], dict[str, float]]]] = [
        ("same samples", norm, count, partial(turn, count, norm)) for norm in norms for count in (1, 2, 5, 16)
    ]
    for count in (1, 5, 16):
        cases.append(("regressor", "groupbatch", count, partial(regressor_turn, count, "groupbatch")))
    with tempfile.TemporaryDirectory() as folder:
        cases.append(("demo", DEMO_OPTIONS.norm, DEMO_OPTIONS.folds + 1, partial(demo_turn, Path(folder))))
        rows = []
        for name, norm, count, one in cases:
            turns = pd.DataFrame([one() for _ in range(arguments.repeats)])
            alone, together = turns["alone_s"].min(), turns["together_s"].min()
            rows.append(
                {
                    "case": name,
                    "norm": norm,
                    "networks": count,
                    "alone_s": alone,
                    "together_s": together,
                    "cost of one, against alone": together / alone,
                    "least": turns["blocks_s"].min() / alone,
                    "difference": turns["difference"].max(),
                }
            )
    table = pd.DataFrame(rows)
    print(table.round(4).to_string(index=False))
    save(table.round(6), arguments.out, native=native.level())


if __name__ == "__main__":
    main()
