"""Missing function -> output edges from the first-order effect that they would have on the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gsnn.graph.container import EDGE_TYPES
from gsnn.optim.first_order import FirstOrderInferer, has_residuals, residual_gates
from gsnn.optim.gradient_pass import Batch


class OutputEdgeInferer(FirstOrderInferer):
    """Scores each pair of a function i and an output o by how steeply a new edge i -> o would lower the loss.

    A new edge of weights w (C,) in block l adds w' h_i^l, h_i^l the activation that `lin_out` reads, to its
    own state. The residual connections carry that to the end, and the output reads it over the root of its
    new in-degree d + 1 and, with residual connections, of L. The derivative with respect to w is so

        E[h_i^l g_o],   g_o = dloss/dyhat_o prod_(k > l) relu(r_k) / sqrt(L (d + 1))

    and its length is the steepest decrease. It is exact in the network that has the edge with weight 0 and
    gives the same outputs, that is, whose other weights and biases into o are larger by sqrt((d + 1) / d).
    An edge acts in all L blocks; without residual connections only in the last one.

    Args:
        model: a trained GSNN, or any module with the same captures whose blocks have its `residual_weight`, a
            scalar tensor or None.
        data: the graph it was built from (HeteroGraph or anything with the same two dictionaries).
        curvature: as in :class:`gsnn.optim.first_order.FirstOrderInferer`.

    Attributes:
        n: samples seen since the statistics were last reset.
        N, L: function nodes, layers.
        function_nodes, output_nodes: their names.
        edges: set of (source name, target name), the kept function -> output edges.
        parents_by_target: index of each output -> sorted list of the indices of its kept sources.

    Raises:
        TypeError, ValueError: what `LayerCaptures` and the graph refuse, and blocks without
            `residual_weight`.

    In the table, `src_func` is the function and `dst_func` the output. Memory: 8 L (N C)^2 bytes, where the
    model is. Source of GSNN: Evans et al. 2024, doi 10.1101/2024.02.28.582164.
    """

    etype = EDGE_TYPES[2]

    def __init__(self, model: nn.Module, data: Any, *, curvature: bool = False) -> None:
        super().__init__(model, data, curvature=curvature)
        self.output_nodes = self.kept.targets
        self._check_ends("output", self.output_nodes)
        self._depth = self.L**-0.5 if has_residuals(self._captures.blocks) else 1.0

    @property
    def places(self) -> list[str]:
        """`a0` for an edge that reads the activation of block 0, and so on."""
        return [f"a{block}" for block in range(self.L)]

    def _contributions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        gradient = batch.gradients([batch.prediction])[0].double()
        degree = gradient.new_tensor([len(self.parents_by_target[o]) + 1 for o in self.parents_by_target])
        gates = residual_gates(self._captures.blocks).to(gradient)
        # What leaves block l passes the gates of all blocks after it.
        carried = torch.cat([gates[1:].flip(0).cumprod(0).flip(0), gates.new_ones(1)])
        h = self._nodes(self._captures.activations())
        g = carried.view(-1, 1, 1, 1) * (gradient * self._depth / degree.sqrt())[None, :, :, None]
        batch.check_finite(h, "activation", "function node", self.function_nodes, 0)
        batch.check_finite(g, "gradient", "output node", self.output_nodes, 0)
        return h, g
