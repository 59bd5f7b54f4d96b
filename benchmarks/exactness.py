"""How exactly the package computes what it says: parameter counts, gradients, zeros, correlations.

Outputs and all gradients of GSNN are compared in float64 with the dense computation of
``tests/dense_oracle.py``, on random graphs with cycles, a hub, isolated nodes and several edges into
one output; correlations of MagnitudeEdgeInferer with ``np.corrcoef``.

    python benchmarks/exactness.py --out benchmarks/results/exactness.csv
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _script import parser_for, save
from _stamp import command_line
from torch.utils.data import DataLoader, TensorDataset

from gsnn.models.GSNN import GSNN
from gsnn.models.norms import NORMS, Norm
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.simulate.scenarios import converging_tiers, disconnected_pathways

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from dense_oracle import dense_forward, random_graph


def parameter_counts() -> dict[str, float]:
    """Those of three scenarios, C=8: tiers without held-out edges (L=6, unshared), pathways (L=4, shared)."""
    counts: dict[str, float] = {}
    norm: Norm
    for width, norm in ((25, "none"), (12, "groupbatch")):
        graph = converging_tiers(width).partial
        model = GSNN(graph.edge_index_dict, graph.node_names_dict, 8, 6, norm=norm, share_layers=False)
        counts[f"parameters, {2 * width} functions, {norm}"] = sum(p.numel() for p in model.parameters())
    graph = disconnected_pathways().model_graph
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, 8, 4)
    counts["parameters, 12 functions, layer, shared"] = sum(p.numel() for p in model.parameters())
    return counts


def gradient_errors(graphs: int) -> dict[str, float]:
    """Largest relative error of outputs and of all gradients together, for each norm."""
    errors = {}
    for norm in NORMS:
        worst = 0.0
        for seed in range(graphs):
            generator = torch.Generator().manual_seed(seed)
            edges, names = random_graph(generator, n_function=10 + 5 * seed, density=0.15)
            torch.manual_seed(seed)
            model = GSNN(edges, names, 4, 4, norm=norm, share_layers=seed % 2 == 0).double()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            x = torch.randn(8, 5, dtype=torch.float64, generator=generator).requires_grad_()
            tensors = [x, *model.parameters()]
            results = []
            for output in (model(x), dense_forward(model, x)[0]):
                gradients = torch.autograd.grad(output.square().sum(), tensors)
                results.append(torch.cat([output.detach().flatten(), *(g.flatten() for g in gradients)]))
            worst = max(worst, float((results[0] - results[1]).norm() / results[1].norm()))
        errors[f"relative error, norm {norm}"] = worst
    return errors


def jacobian_off_paths() -> float:
    """Largest derivative of an output for an input that has no path to it."""
    edges, names = random_graph(torch.Generator().manual_seed(0), n_function=30, density=0.06)
    model = GSNN(edges, names, 4, 4).double()
    x = torch.randn(8, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).abs().amax(1)
    source, target = model.edge_index
    step = torch.eye(model.num_nodes)
    step[source, target] = 1
    reach = step
    for _ in range(model.num_nodes):
        reach = ((reach @ step) > 0).float()
    path = (reach > 0)[model.input_node_mask][:, model.output_node_mask].t()
    return float(jacobian[~path].max())


def correlation_error() -> float:
    """Largest difference of the inferer's correlations from ``np.corrcoef`` on the same magnitudes."""
    scenario = converging_tiers(6)
    graph = scenario.partial
    torch.manual_seed(0)
    model = GSNN(graph.edge_index_dict, graph.node_names_dict, 4, 3, norm="none").double()
    drawn_x, _, drawn_y, _ = scenario.sample(200, 0, seed=0)
    x, y = torch.as_tensor(drawn_x), torch.as_tensor(drawn_y)
    inferer = MagnitudeEdgeInferer(model, graph)
    inferer.fit(DataLoader(TensorDataset(x, y), batch_size=37), verbose=False)
    table = inferer.evaluate()
    blocks: Any = model.ResBlocks
    for block in blocks:
        block._store_activations = True
    loss = (model.eval()(x) - y).square().mean(1).sum()
    captured = [block._last_pre_norm_activation for block in blocks]
    gradients = torch.autograd.grad(loss, captured)
    x_norm = [z.detach().view(200, -1, 4).abs().sum(2).numpy() for z in captured]
    y_norm = [g.view(200, -1, 4).abs().sum(2).numpy() for g in gradients]
    worst = 0.0
    for pair in range(2):
        defined = table[table[f"corr_a{pair}_g{pair + 1}"].notna()]
        want = [
            np.corrcoef(x_norm[pair][:, i], y_norm[pair + 1][:, j])[0, 1]
            for i, j in zip(defined["src_idx"], defined["dst_idx"], strict=True)
        ]
        worst = max(worst, float(np.abs(defined[f"corr_a{pair}_g{pair + 1}"].to_numpy() - want).max()))
    return worst


def main() -> None:
    parser = parser_for(__doc__, None)
    parser.add_argument("--graphs", type=int, default=8, help="random graphs per norm")
    arguments = command_line(parser)
    found = {
        **parameter_counts(),
        **gradient_errors(arguments.graphs),
        "largest derivative where no path exists": jacobian_off_paths(),
        "largest difference from np.corrcoef": correlation_error(),
    }
    table = pd.DataFrame({"what": list(found), "value": list(found.values())})
    print(table.to_string(index=False))
    save(table, arguments.out)


if __name__ == "__main__":
    main()
