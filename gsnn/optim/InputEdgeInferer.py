"""Missing input -> function edges from the first-order effect that they would have on the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gsnn.graph.container import EDGE_TYPES
from gsnn.optim.first_order import FirstOrderInferer, has_residuals, residual_gates
from gsnn.optim.gradient_pass import Batch


class InputEdgeInferer(FirstOrderInferer):
    """Scores every pair of an input i and a function j by how steeply a new edge i -> j would lower the loss.

    Such an edge may be an unknown target of a drug. It carries the value x_i from the start, and the
    residual connections carry that on: block l reads x_i prod_(k < l) relu(r_k) from it, with weights v
    (C,). With g_j^l the gradient of a sample's loss with respect to the channels of j in block l before the
    norm, the derivative with respect to v is

        E[x_i g_j^l] prod_(k < l) relu(r_k)

    and its length is the steepest decrease: exact in the network that has the edge with weight 0, whose
    outputs are the same. An edge acts in all L blocks; without residual connections only in the first one. A
    whitened input has unit variance, so 'whitened' and 'omp' do not depend on the unit of an input, or on
    the gates.

    Args:
        model: a trained GSNN, or any module with the same captures whose blocks have its `residual_weight`, a
            scalar tensor or None.
        data: the graph it was built from (HeteroGraph or anything with the same two dictionaries).
        curvature: as in :class:`gsnn.optim.first_order.FirstOrderInferer`.

    Attributes:
        n: samples seen since the statistics were last reset.
        N, L: function nodes, layers.
        function_nodes, input_nodes: their names.
        edges: set of (source name, target name), the kept input -> function edges.
        parents_by_target: index of each function -> sorted list of the indices of its kept inputs.

    Raises:
        TypeError, ValueError: what `LayerCaptures` and the graph refuse, and blocks without
            `residual_weight`.

    In the table, `src_func` is the input and `dst_func` the function. Source of GSNN: Evans et al. 2024,
    doi 10.1101/2024.02.28.582164.
    """

    etype = EDGE_TYPES[1]

    def __init__(self, model: nn.Module, data: Any, *, curvature: bool = False) -> None:
        super().__init__(model, data, curvature=curvature)
        self.input_nodes = self.kept.sources
        self._check_ends("input", self.input_nodes)
        has_residuals(self._captures.blocks)

    @property
    def places(self) -> list[str]:
        """`g0` for an edge that feeds block 0, and so on."""
        return [f"g{block}" for block in range(self.L)]

    def _contributions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        g = self._nodes(batch.gradients(self._captures.pre_norms()))
        x = batch.inputs.detach().double()
        gates = residual_gates(self._captures.blocks).to(x)
        # What reaches block l has passed the gates of all blocks before it.
        carried = torch.cat([gates.new_ones(1), gates[:-1].cumprod(0)])
        h = carried.view(-1, 1, 1, 1) * x[None, :, :, None]
        batch.check_finite(h, "value", "input node", self.input_nodes, 0)
        batch.check_finite(g, "gradient", "function node", self.function_nodes, 0)
        return h, g
