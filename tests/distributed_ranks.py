"""What each rank does in `test_distributed.py`: runs in a process of its own, writes down what it saw."""

import inspect
import pickle
import warnings
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gsnn.models.GSNN import GSNN
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor
from gsnn.stats.processes import average_running_statistics
from gsnn.train import fit

mse = torch.nn.functional.mse_loss

# The name of DistributedDataParallel's switch changed between versions of torch.
SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)
FORMS: dict[str, dict[str, Any]] = {
    "shared": {"share_layers": True},
    "own": {"share_layers": False},
    "recomputed": {"share_layers": False, "checkpoint": True},
    "node mlp": {"node_mlp": True, "norm": "rms"},
    "no norm": {"norm": "none", "residual": False},
}
REGRESSOR: dict[str, Any] = {"dropout": 0.3, "ridge": 1e-2, "window": 60, "lr": 1e-2}


def make_model(graph, seed=0, **options):
    options = {"channels": 3, "layers": 4, "norm": "layer", "share_layers": False, **options}
    torch.manual_seed(seed)
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, **options).double()
    with torch.no_grad():  # without biases, nodes that see one input only would be exactly tied
        block: Any
        for block in model.ResBlocks:
            block.lin_in.bias.normal_(std=0.3)
    return model


def tables(inferer):
    return {
        "corr": inferer.evaluate(),
        "partial": inferer.evaluate(score="partial", layer_agg="max"),
        "best": inferer.evaluate(top_k=2),
    }


def gradients(model, step, x, y):
    """Gradients of one loss; `step` is the model or its parallel wrapper."""
    model.zero_grad()
    mse(step(x), y).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def regressor_loop(regressor, model, step, batches):
    """The documented loop, three epochs; the losses of W, then everything that it leaves."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        for x, y in batches:
            regressor.pre_forward()
            loss = mse(step(x), y)
            regressor.arm_retained_grads()
            optimizer.zero_grad()
            loss.backward()
            losses.append(regressor.aux_step()["aux_loss"])
            optimizer.step()
    return {
        "losses": losses,
        "n": regressor.n,
        "W": regressor.W.detach().clone(),
        "running_var": regressor.running_var.clone(),
        "table": regressor.evaluate(),
        "weights": [p.detach().clone() for p in model.parameters()],
    }


def said(call):
    """What `call` raises, as text."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def rank_main(rank, folder):
    warnings.simplefilter("error")
    # What PyTorch 2.4 says of its own code.
    for words in ("You are using `torch.load` with", r"`torch.cpu.amp.autocast\("):
        warnings.filterwarnings("ignore", words, FutureWarning)
    torch.set_num_threads(1)
    folder = Path(folder)
    with open(folder / "case.pkl", "rb") as file:
        graph, x, y = pickle.load(file)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    seen: dict[Any, Any] = {}

    def fit_parts(part_sizes, key):
        """One fit after the other, (of rank 0, of rank 1) samples each, taken in turn from the data."""
        inferer, start, counts = MagnitudeEdgeInferer(make_model(graph), graph), 0, []
        for sizes in part_sizes:
            first = start + (sizes[0] if rank else 0)
            mine = slice(first, first + sizes[rank])
            batches = list(zip(x[mine].split(7), y[mine].split(7), strict=True)) if sizes[rank] else []
            counts.append(inferer.partial_fit(batches, verbose=False, process_group=True))
            start += sum(sizes)
        seen[key] = counts, inferer.n, tables(inferer)

    fit_parts([(60, 30)], "unequal")
    fit_parts([(5, 3)], "few")
    fit_parts([(90, 0)], "second without samples")
    fit_parts([(0, 8)], "first without samples")
    fit_parts([(2, 2), (3, 1), (30, 52)], "three fits")
    fit_parts([(5, 4), (0, 4)], "few that are enough together, then few")

    inferer = MagnitudeEdgeInferer(make_model(graph), graph)
    good = [(x, y)]
    seen["bad batch on rank 1"] = said(
        lambda: inferer.fit(good if rank == 0 else [x], verbose=False, process_group=True)
    )
    seen["no sample"] = said(lambda: inferer.fit([], verbose=False, process_group=True))
    seen["n after failures"] = inferer.n
    alone = dist.new_group([0])
    seen["group of rank 0"] = said(lambda: inferer.fit(good, verbose=False, process_group=alone))
    seen["no group"] = said(lambda: inferer.fit(good, verbose=False, process_group="gloo"))

    half = slice(0, 16) if rank == 0 else slice(16, 32)
    for form, options in FORMS.items():
        model = make_model(graph, **options)
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # a parameter without a gradient is only complained of in the second step
            seen["gradients", form] = gradients(model, parallel, x[half], y[half])
    seen["wrapped inferer"] = said(lambda: MagnitudeEdgeInferer(parallel, graph))
    seen["wrapped fit"] = said(lambda: fit(parallel, x, y, epochs=1))

    mine = [slice(a + 8 * rank, a + 8 * rank + 8) for a in range(0, 64, 16)]
    batches = [(x[part], y[part]) for part in mine]
    model = make_model(graph)
    torch.manual_seed(5 + rank)  # masks are those of rank 0
    regressor = MagnitudeEdgeRegressor(model, graph, process_group=True, **REGRESSOR)
    seen["online"] = regressor_loop(regressor, model, DistributedDataParallel(model), batches)

    cut = (13, 16)[rank]  # of every 16 samples rank 0 has 13, and the model is not trained
    batches = [(x[a + 13 * rank : a + cut], y[a + 13 * rank : a + cut]) for a in range(0, 64, 16)]
    model = make_model(graph)
    torch.manual_seed(5 + rank)
    regressor = MagnitudeEdgeRegressor(model, graph, process_group=True, **REGRESSOR)
    for _ in range(3):
        for xb, yb in batches:
            regressor.pre_forward()
            loss = mse(model(xb), yb)
            regressor.arm_retained_grads()
            loss.backward()
            regressor.aux_step()
    seen["unequal online"] = regressor.n, regressor.W.detach().clone(), regressor.evaluate()

    for buffers in (True, False):
        model = make_model(graph, norm="groupbatch")
        parallel = DistributedDataParallel(model, **cast(Any, {SYNC_BUFFERS: buffers}))
        for _ in range(2):
            gradients(model, parallel, x[half], y[half])
        seen["statistics", buffers] = [
            (b.norm.running_mean.clone(), b.norm.running_var.clone()) for b in model.ResBlocks
        ]
    average_running_statistics(model)
    seen["averaged"] = [(b.norm.running_mean.clone(), b.norm.running_var.clone()) for b in model.ResBlocks]
    with open(folder / f"rank{rank}.pkl", "wb") as out:
        pickle.dump(seen, out)
    dist.destroy_process_group()
