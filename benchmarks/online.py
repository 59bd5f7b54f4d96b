"""Online inference of held-out edges on 25-wide converging tiers: test MSE, AUC, MRR, top@1 by seed.

Each seed draws 2,000 + 500 samples and trains a GSNN with the regressor beside it, on the graph without 35 of
its 72 function edges. After every epoch the AUC of the 17 validation edges decides whether the regressor's
state is kept; the best is judged on the 18 test edges, scored by |W| (`abs`, the default) or W (`signed`).
The regressor's last state and the post hoc scores of the same final model stand beside it, and use no labels
at all. Negatives of the AUC are all other pairs that are neither a kept edge nor self, validation edges among
them; ranks are raw, so kept edges compete.

    python benchmarks/online.py --seeds 20 --jobs 2
"""

import copy
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from _scenarios import network, standardized
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import means
from torch.utils.data import DataLoader, TensorDataset

from gsnn.models.GSNN import GSNN
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor
from gsnn.simulate.scenarios import Scenario, converging_tiers

OUT = Path(__file__).parent / "results" / "online.csv"
SETTINGS: dict[str, Any] = {
    "width": 25,
    "channels": 8,
    "layers": 6,
    "norm": "none",
    "dropout": 0.2,
    "epochs": 30,
    "batch_size": 64,
    "lr": 1e-4,
    "noise": 0.15,
    "regressor_lr": 1e-3,
    "regressor_ridge": 1e-2,
    "regressor_dropout": 0.2,
}
Mode = Literal["abs", "signed"]
MODES: tuple[Mode, ...] = ("abs", "signed")
MEASURES = ("auc", "average_precision", "mrr", "top@1", "top@5")


def build(scenario: Scenario) -> tuple[GSNN, MagnitudeEdgeRegressor]:
    graph = scenario.partial
    model = network(graph, SETTINGS)
    regressor = MagnitudeEdgeRegressor(
        model,
        graph,
        lr=SETTINGS["regressor_lr"],
        ridge=SETTINGS["regressor_ridge"],
        dropout=SETTINGS["regressor_dropout"],
    )
    return model, regressor


def cost(repeats: int = 300) -> dict[str, float]:
    """Milliseconds, the least of interleaved repeats on one thread.

    They are those of the model's own training step without a regressor, of a whole step with one, and of
    `aux_step` alone.
    """
    torch.set_num_threads(1)
    model, regressor = build(converging_tiers(SETTINGS["width"]))
    x, y = torch.randn(2, SETTINGS["batch_size"], SETTINGS["width"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["lr"])
    best = dict.fromkeys(("step alone", "step with regressor", "aux_step"), float("inf"))
    for _ in range(repeats):
        start = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        best["step alone"] = min(best["step alone"], time.perf_counter() - start)
        start = time.perf_counter()
        regressor.pre_forward()
        loss = torch.nn.functional.mse_loss(model(x), y)
        regressor.arm_retained_grads()
        optimizer.zero_grad()
        loss.backward()
        before = time.perf_counter()
        regressor.aux_step()
        after = time.perf_counter()
        optimizer.step()
        best["aux_step"] = min(best["aux_step"], after - before)
        best["step with regressor"] = min(best["step with regressor"], time.perf_counter() - start)
    return {name: 1e3 * seconds for name, seconds in best.items()}


def one_seed(seed: int) -> list[dict]:
    np.random.seed(seed)  # noqa: NPY002 - the published protocol draws from the global state
    torch.manual_seed(seed)
    scenario = converging_tiers(SETTINGS["width"])
    x, x_test, y, y_test = standardized(*scenario.sample(2000, 500, SETTINGS["noise"]))
    model, regressor = build(scenario)
    loader = DataLoader(TensorDataset(x, y), batch_size=SETTINGS["batch_size"], shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["lr"])
    best: dict[Mode, tuple[float, int, dict]] = {}
    for epoch in range(SETTINGS["epochs"]):
        for xb, yb in loader:
            regressor.pre_forward()
            loss = torch.nn.functional.mse_loss(model(xb), yb)
            regressor.arm_retained_grads()
            optimizer.zero_grad()
            loss.backward()
            regressor.aux_step()
            optimizer.step()
        for mode in MODES:  # of the same W
            regressor.score_mode = mode
            auc = regressor.evaluate_against(scenario.validation_edges)["auc"]
            if mode not in best or auc > best[mode][0]:
                best[mode] = (auc, epoch + 1, copy.deepcopy(regressor.state_dict()))
    model.eval()
    with torch.no_grad():
        test_mse = float(torch.nn.functional.mse_loss(model(x_test), y_test))
    rows = []

    def record(method: str, epoch: int, found: dict, table: pd.DataFrame) -> None:
        row = {"seed": seed, "method": method, "epoch": epoch, "test_mse": test_mse}
        row |= {name: found[name] for name in MEASURES}
        row["n_q05"] = int(((table.q_value <= 0.05) & ~table.has_edge).sum())
        rows.append(row)

    last = copy.deepcopy(regressor.state_dict())
    for mode, (_, epoch, state) in best.items():
        regressor.score_mode = mode
        for name, at, content in (("best", epoch, state), ("last", SETTINGS["epochs"], last)):
            regressor.load_state_dict(content)
            found = regressor.evaluate_against(scenario.test_edges)
            record(f"regressor {mode}, {name}", at, found, regressor.evaluate())
    inferer = MagnitudeEdgeInferer(model, scenario.partial)
    inferer.fit(loader, verbose=False)
    for score in ("corr", "partial"):
        options: dict[str, Any] = {"score": score, "layer_agg": "max"}
        record(
            score,
            SETTINGS["epochs"],
            inferer.evaluate_against(scenario.test_edges, **options),
            inferer.evaluate(**options),
        )
    return rows


def main() -> None:
    args = command_line(parser_for(__doc__, OUT, seeds=20))
    rows = rows_of(one_seed, [(seed,) for seed in seeds_of(args)], args.jobs)
    print(f"test MSE {rows.test_mse.mean():.3f} [{rows.test_mse.min():.3f}, {rows.test_mse.max():.3f}]")
    summary = rows.groupby("method")[[*MEASURES, "n_q05"]].agg(["mean", "min", "max"])
    with pd.option_context("display.width", 250, "display.max_columns", None):
        print(summary.round(3).to_string())
    for method, part in rows.groupby("method"):
        print(f"{method:>22}", means(part, ("auc", "mrr")))
    save(rows, args.out, 6, threads=1, **SETTINGS)
    measured = cost()
    print(", ".join(f"{name} {ms:.2f} ms" for name, ms in measured.items()), end="; ")
    print(f"aux_step / step alone {measured['aux_step'] / measured['step alone']:.2f}")


if __name__ == "__main__":
    main()
