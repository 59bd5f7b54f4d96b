"""Post hoc inference of held-out edges on 12-wide converging tiers: test MSE, AUC, MRR, top@1 by seed.

Each seed draws 2,000 + 500 samples, trains a GSNN on the graph without 16 of its 33 function edges, lets
the inferer see the training samples once, and looks for the 8 test edges. Negatives of the AUC are all other
pairs that are neither a kept edge nor self; ranks are raw, so kept edges compete. No score sees a label.
The relations are linear, so `linear_mse`, least squares of each output on the inputs that reach it in the
partial graph, is about the best that any model of that graph can do on the same draw.

    python benchmarks/post_hoc.py --seeds 10 --jobs 2
"""

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from _scenarios import network, standardized
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from sklearn.linear_model import LinearRegression
from torch.utils.data import DataLoader, TensorDataset

from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.simulate.scenarios import Scenario, converging_tiers

OUT = Path(__file__).parent / "results" / "post_hoc.csv"
SETTINGS: dict[str, Any] = {
    "width": 12,
    "channels": 8,
    "layers": 6,
    "epochs": 30,
    "batch_size": 64,
    "lr": 1e-3,
    "noise": 0.15,
}


def fitted(seed: int) -> tuple[Scenario, MagnitudeEdgeInferer, dict[str, float]]:
    """The scenario, the inferer fitted on one seed's trained model, and that model's test errors."""
    np.random.seed(seed)  # noqa: NPY002 - the published protocol draws from the global state
    torch.manual_seed(seed)
    scenario = converging_tiers(SETTINGS["width"])
    x, x_test, y, y_test = standardized(*scenario.sample(2000, 500, SETTINGS["noise"]))
    graph = scenario.partial
    model = network(graph, {**SETTINGS, "norm": "groupbatch"})
    loader = DataLoader(TensorDataset(x, y), batch_size=SETTINGS["batch_size"], shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["lr"])
    for _ in range(SETTINGS["epochs"]):
        for xb, yb in loader:
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(xb), yb).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        test_mse = float(torch.nn.functional.mse_loss(model(x_test), y_test))
    linear_mse = reachable_least_squares(scenario, x, x_test, y, y_test)
    inferer = MagnitudeEdgeInferer(model, graph)
    inferer.fit(loader, verbose=False)
    return scenario, inferer, {"test_mse": test_mse, "linear_mse": linear_mse}


def one_seed(seed: int) -> list[dict]:
    scenario, inferer, errors = fitted(seed)
    rows = []
    for score in ("corr", "partial"):
        for layer_agg in ("max", "mean"):
            found = inferer.evaluate_against(scenario.test_edges, score=score, layer_agg=layer_agg)
            table = inferer.evaluate(score=score, layer_agg=layer_agg)
            significant = int(((table.q_value <= 0.05) & ~table.has_edge).sum())
            row: dict[str, Any] = {"seed": seed, "score": score, "layer_agg": layer_agg}
            row |= errors
            row |= {name: found[name] for name in ("auc", "average_precision", "mrr", "top@1", "top@5")}
            rows.append({**row, "n_q05": significant})
    return rows


def reachable_least_squares(
    scenario: Scenario, x: torch.Tensor, x_test: torch.Tensor, y: torch.Tensor, y_test: torch.Tensor
) -> float:
    partial = nx.restricted_view(scenario.graph, [], scenario.held_out)
    errors = []
    for column, output in enumerate(scenario.output_nodes):
        reach = nx.ancestors(partial, output)
        inputs = [k for k, name in enumerate(scenario.input_nodes) if name in reach]
        line = LinearRegression().fit(x[:, inputs], y[:, column])
        errors.append(np.square(line.predict(x_test[:, inputs]) - y_test[:, column].numpy()).mean())
    return float(np.mean(errors))


def main() -> None:
    args = command_line(parser_for(__doc__, OUT, seeds=10))
    rows = rows_of(one_seed, [(seed,) for seed in seeds_of(args)], args.jobs)
    measures = list(rows.columns[3:])
    summary = rows.groupby(["score", "layer_agg"])[measures].agg(["mean", "min", "max"])
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(summary[["test_mse", "linear_mse"]].iloc[:1].round(3).to_string(index=False))
        print(summary[measures[2:]].round(3).to_string())
    save(rows, args.out, 6, threads=1, **SETTINGS)


if __name__ == "__main__":
    main()
