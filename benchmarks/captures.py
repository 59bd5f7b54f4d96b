"""What captures on the way to the output add to a training step: 24, 300 and 1,000 functions, one thread.

Six things take turns in one process, ten steps of 64 samples in a row each, as in training; the fastest of
each counts, in CPU seconds of the process, which other processes disturb less than the clock on the wall:

- `plain`: forward pass, squared error, backward pass;
- `captures`: the same with captures on and `retain_grad()` on the activations before each norm;
- `flat plain`, `flat captures`: the same of `side_by_side([model])`, whose captures can be read, but be in
  no loss;
- `regressor`: a step of `MagnitudeEdgeRegressor`'s loop, of which its regression (`aux_step`) takes `aux`;
- `inferer`: one batch of `MagnitudeEdgeInferer.fit`, its statistics included.

    python benchmarks/captures.py
"""

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from _networks import random_model
from _script import parser_for, save
from _stamp import command_line

from gsnn.captures import Captures
from gsnn.kernels import compiled as native
from gsnn.models.GSNN import GSNN
from gsnn.models.SideBySide import side_by_side
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor
from gsnn.simulate.scenarios import converging_tiers

OUT = Path(__file__).parent / "results" / "captures.csv"
B, BURST = 64, 10


def tutorial_model() -> GSNN:
    """24 functions, as in the published post hoc setting."""
    graph = converging_tiers(width=12).partial
    torch.manual_seed(0)
    return GSNN(graph.edge_index_dict, graph.node_names_dict, 8, 6, share_layers=False, norm="groupbatch")


def measure(model: GSNN, repeats: int) -> dict[str, float]:
    """Milliseconds of each thing."""
    x = torch.randn(B, int(model.input_node_mask.sum()))
    y = torch.randn(B, int(model.output_node_mask.sum()))
    parameters = list(model.parameters())
    captures = Captures(model)
    flat = side_by_side([model])
    of_flat = Captures(flat.networks[0])
    regressor = MagnitudeEdgeRegressor(model, model.graph)
    inferer = MagnitudeEdgeInferer(model, model.graph)
    aux = [float("inf")]

    def step(between: Callable[[], None] = lambda: None) -> None:
        for parameter in parameters:
            parameter.grad = None
        loss = torch.nn.functional.mse_loss(model(x), y)
        between()
        loss.backward()

    def retain(captures: Captures = captures) -> None:
        for tensor in captures.pre_norms():
            tensor.retain_grad()

    def flat_step(between: Callable[[], None] = lambda: None) -> None:
        flat.weights[0].grad = None
        loss = torch.nn.functional.mse_loss(flat(x).squeeze(1), y)
        between()
        loss.backward()

    def flat_with_captures() -> None:
        of_flat.on()
        flat_step(lambda: retain(of_flat))
        of_flat.off()

    def with_captures() -> None:
        captures.on()
        step(retain)
        captures.off()

    def with_regressor() -> None:
        regressor.pre_forward()
        step(regressor.arm_retained_grads)
        start = time.process_time()
        regressor.aux_step()
        aux[0] = min(aux[0], time.process_time() - start)

    def burst(run: Callable[[], None]) -> float:
        start = time.process_time()
        for _ in range(BURST):
            run()
        return (time.process_time() - start) / BURST

    def infer() -> float:
        start = time.process_time()
        inferer.fit([(x, y)] * BURST, verbose=False)
        return (time.process_time() - start) / BURST

    turns = {
        "plain": lambda: burst(step),
        "captures": lambda: burst(with_captures),
        "flat plain": lambda: burst(flat_step),
        "flat captures": lambda: burst(flat_with_captures),
        "regressor": lambda: burst(with_regressor),
        "inferer": infer,
    }
    best = dict.fromkeys(turns, float("inf"))
    for turn in range(repeats + 1):
        for name, run in turns.items():
            seconds = run()
            if turn:  # the first warms up
                best[name] = min(best[name], seconds)
    row = {f"{name}_ms": 1e3 * seconds for name, seconds in best.items()}
    row |= {"aux_ms": 1e3 * aux[0]}
    row |= {f"{name}_ratio": best[name] / best["plain"] for name in ("captures", "regressor", "inferer")}
    return row | {"flat_ratio": best["flat captures"] / best["flat plain"]}


def main() -> None:
    parser = parser_for(__doc__, OUT)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = command_line(parser)
    torch.set_num_threads(1)
    models = [tutorial_model(), random_model(300, 1500, 8, 6), random_model(1000, 8000, 16, 4)]
    rows = []
    for model in models:
        size = {"N": len(model.graph.node_names_dict["function"]), "norm": model.norm, "B": B}
        rows.append(size | {"C": model.channels, "L": model.layers} | measure(model, arguments.repeats))
        print(pd.Series(rows[-1]).to_string(), "\n", flush=True)
    save(pd.DataFrame(rows), arguments.out, 3, native=native.level())


if __name__ == "__main__":
    main()
