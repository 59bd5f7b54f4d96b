"""The Graph Structured Neural Network (Evans et al. 2024, doi 10.1101/2024.02.28.582164)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint as recompute

from gsnn._checks import non_negative, one_of
from gsnn._modes import evaluation_mode
from gsnn._text import some_names
from gsnn.captures import Captures
from gsnn.graph.container import NODE_TYPES, HeteroGraph
from gsnn.graph.flat import channel_pattern, flat_edges, flat_masks
from gsnn.kernels.bucketed import read_outputs
from gsnn.kernels.interface import Case
from gsnn.kernels.plan import Plan
from gsnn.kernels.scatter import Backend, ScatterPlan
from gsnn.models._recompute import recomputation
from gsnn.models.config import Config
from gsnn.models.context import ContextGate, context_columns
from gsnn.models.growth import Growing
from gsnn.models.norms import NodeNorm, Norm
from gsnn.models.ResBlock import NodeMLP, ResBlock, kernel_cases, run_fused, runs_fused
from gsnn.models.signs import EdgeSigns, bind, check_signs, signs_of_edges
from gsnn.models.SparseLinear import Init, SparseLinear

Aggregation = Literal["sum", "mean", "max", "last", "all"]
AGGREGATIONS: dict[Aggregation, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda stacked: stacked.sum(1),
    "mean": lambda stacked: stacked.mean(1),
    "max": lambda stacked: stacked.amax(1),
    "last": lambda stacked: stacked[:, -1],
    "all": lambda stacked: stacked,
}


class GSNN(Growing):
    """A feed-forward network wired by a directed graph, its state one scalar per edge and sample.

    Each function node is a small network of its own: its incoming edges -> C channels -> its
    outgoing edges. L blocks move information L hops, so the graph may contain cycles.

    Args:
        edge_index_dict: ``{('input', 'to', 'function'), ('function', 'to', 'function'),
            ('function', 'to', 'output')}`` -> (2, n) integer tensor.
        node_names_dict: ``{'input', 'function', 'output'}`` -> list of str.
        channels: C, hidden values per function node.
        layers: L, residual blocks.
        dropout: share of channel values dropped in training, in [0, 1).
        nonlin: class of an element-wise nonlinearity.
        bias: biases in both linear maps.
        share_layers: all blocks use the same weights; each keeps its own norm and residual scalar.
        add_function_self_edges: one self edge per function node.
        norm: ``layer``, ``rms``, ``softmax``, ``groupbatch``, ``batch`` or ``none``; see
            :class:`gsnn.models.norms.NodeNorm`.
        init: initialisation of the weights; see :class:`gsnn.models.SparseLinear.SparseLinear`.
        checkpoint: recompute activations in the backward pass instead of keeping them.
        residual: each block adds ``relu(r) x``, and the last state is divided by sqrt(L).
        norm_first: norm before the nonlinearity, or after.
        node_mlp: a two-layer network on each node's channels, the same for all nodes.
        node_mlp_hidden: its hidden width.
        learn_residual: r is learnt, one scalar per block, initially 1; otherwise it stays 1.
        affine: the norm learns one scale and shift per node.
        backend: ``bucketed`` or ``scatter``, how the sparse products are computed; the results are the
            same. See :mod:`gsnn.kernels.scatter` for when to use which.
        edge_signs: ``free``, or ``respect``: the product of the weights along an edge has the edge's sign, so
            that an output never falls when an input rises if all paths between them activate. The norm
            must be ``none``, ``batch`` or ``groupbatch``. See :mod:`gsnn.models.signs`.
        context: names of input nodes that say what the sample is (cell line, donor); their values gate the
            function nodes, beside what their edges do. See :mod:`gsnn.models.context`.
        edge_weight_dict: the graph's weights, whose signs are those of the edges (0 for unknown); kept in
            ``graph``.

    Attributes:
        graph: the checked :class:`gsnn.graph.container.HeteroGraph`.
        config: the constructor's arguments but for the graph.
        edge_index: (2, E) flat edges; nodes ordered function, input, output; edges function ->
            function, input -> function, function -> output, then the self edges.
        E: number of flat edges.
        num_nodes, homo_names: number and names of the flat nodes.
        input_node_mask, output_node_mask: (num_nodes,) bool.
        function_edge_mask, input_edge_mask, output_edge_mask: (E,) bool; self edges are function edges.
        ResBlocks: the L blocks, :class:`gsnn.models.ResBlock.ResBlock`.
        gate: the :class:`gsnn.models.context.ContextGate`, None without a context.

    Raises:
        ValueError: an argument out of its range, or a malformed graph.
        TypeError: an argument of the wrong type.
        ImportError: ``backend='scatter'`` without torch-scatter (the extra ``scatter``).

    Example:
        >>> from gsnn.simulate.scenarios import converging_tiers
        >>> graph = converging_tiers(12).partial
        >>> model = GSNN(graph.edge_index_dict, graph.node_names_dict, channels=8, layers=6)
        >>> model(torch.randn(64, 12)).shape
        torch.Size([64, 12])
    """

    edge_index: torch.Tensor
    input_node_mask: torch.Tensor
    output_node_mask: torch.Tensor
    function_edge_mask: torch.Tensor
    input_edge_mask: torch.Tensor
    output_edge_mask: torch.Tensor

    def __init__(
        self,
        edge_index_dict: Mapping[tuple[str, str, str], torch.Tensor],
        node_names_dict: Mapping[str, Sequence[str]],
        channels: int,
        layers: int,
        dropout: float = 0.0,
        nonlin: Callable[[], torch.nn.Module] = torch.nn.ELU,
        bias: bool = True,
        share_layers: bool = True,
        add_function_self_edges: bool = True,
        norm: Norm = "layer",
        init: Init = "degree_normalized",
        checkpoint: bool = False,
        residual: bool = True,
        norm_first: bool = True,
        node_mlp: bool = False,
        node_mlp_hidden: int = 16,
        learn_residual: bool = True,
        affine: bool = True,
        backend: Backend = "bucketed",
        edge_signs: EdgeSigns = "free",
        context: Sequence[str] = (),
        edge_weight_dict: Mapping[tuple[str, str, str], torch.Tensor] | None = None,
    ) -> None:
        first = channels, layers, dropout, nonlin, bias, share_layers, add_function_self_edges, norm, init
        then = checkpoint, residual, norm_first, node_mlp, node_mlp_hidden, learn_residual, affine
        config = Config(*first, *then, backend, edge_signs, context)
        super().__init__()
        self.graph = HeteroGraph(edge_index_dict, node_names_dict, edge_weight_dict, warn=False)
        check_signs(edge_signs, self.graph, norm, node_mlp, nonlin)
        gating = context_columns(context, self.graph.node_names_dict["input"])
        self.config = config.arguments()
        self.channels = config.channels
        self.layers = config.layers
        self.norm = norm
        self.checkpoint = checkpoint
        self.residual = residual

        names = self.graph.node_names_dict
        n_function, n_input, n_output = (len(names[kind]) for kind in NODE_TYPES)
        self.homo_names = [name for kind in NODE_TYPES for name in names[kind]]
        self.num_nodes = len(self.homo_names)
        self._input_names = list(names["input"])  # torch.compile follows no look-up in the graph
        edge_index = flat_edges(self.graph, add_function_self_edges)
        if not edge_index.shape[1]:
            raise ValueError("edge_index_dict must hold at least one edge, got none")
        self.register_buffer("edge_index", edge_index, persistent=False)
        for name, mask in flat_masks(edge_index, self.graph).items():
            self.register_buffer(name, mask, persistent=False)
        plan_class = ScatterPlan if backend == "scatter" else Plan
        self.plan = plan_class(edge_index, n_function, n_input, n_output)

        blocks = _make_blocks(config, edge_index, self.plan)
        self.ResBlocks = torch.nn.ModuleList(blocks)
        self.gate = ContextGate(gating, n_function) if gating else None
        if edge_signs == "respect":
            signs = signs_of_edges(self.graph, add_function_self_edges)
            bind(blocks, signs, self.input_edge_mask, self.plan.in_edges, self.plan.out_edges)

    @property
    def E(self) -> int:
        """How many flat edges there are, self edges included."""
        return int(self.edge_index.shape[1])

    @property
    def _blocks(self) -> list[ResBlock]:
        return list(self.ResBlocks)  # type: ignore[arg-type]

    @property
    def _dtype(self) -> torch.dtype:
        return self._blocks[0].lin_in.values.dtype

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "GSNN":
        super()._apply(fn, recurse)
        self.plan = self.plan.to(self.edge_index.device)
        return self

    def forward(
        self,
        x: torch.Tensor,
        node_mask: torch.Tensor | None = None,
        edge_mask: torch.Tensor | None = None,
        ret_edge_out: bool = False,
        e0: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the outputs.

        Args:
            x: (B, N_in), columns in the order of the input nodes, of the model's dtype.
            node_mask: (num_nodes,) or (B, num_nodes); multiplies each function node's channels just
                before ``lin_out``.
            edge_mask: (E,) or (B, E); multiplies the edge state at the start and after each block.
            ret_edge_out: return the edge state after the last block instead of the outputs.
            e0: (E,) or (B, E), added to the initial edge state.

        Returns:
            (B, N_out), an output being the sum of its incoming edges over sqrt(its in-degree); or the
            edge state (B, E) when ``ret_edge_out``.

        Raises:
            ValueError: a wrong shape, or NaN in x (looked for on the CPU only: on a GPU it would
                cost a synchronisation; :func:`gsnn.train.loop.fit` looks everywhere).
            TypeError: x is not of the model's dtype.
        """
        if torch.is_autocast_enabled(x.device.type):
            # The layer is limited by memory, not arithmetic: lower precision would only cost accuracy.
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x.to(self._dtype), node_mask, edge_mask, ret_edge_out, e0)
        plan = self.plan
        self._check_input(x)
        dtype, samples = x.dtype, x.shape[0]
        n_edges = self.edge_index.shape[1]
        fed = x.t().index_select(0, plan.input_of_row)
        state = torch.cat([fed.new_zeros(plan.n_out_slots, samples), fed, fed.new_zeros(1, samples)])
        if e0 is not None:
            state = state + self._rows(e0, "e0", n_edges, samples, dtype, padding=0.0)
        edge_rows = None
        if edge_mask is not None:
            edge_rows = self._rows(edge_mask, "edge_mask", n_edges, samples, dtype, padding=1.0)
            state = state * edge_rows
        node_rows = None
        if node_mask is not None:
            self._check_mask(node_mask, "node_mask", self.num_nodes, samples)
            per_node = node_mask[..., : plan.n_nodes].to(dtype)
            node_rows = plan.to_nodes(per_node.reshape(-1, plan.n_nodes).t()).unsqueeze(1)

        gate = None if self.gate is None else self.gate(x, plan)
        blocks = self._blocks
        if edge_rows is None and gate is None and self._in_one(blocks, state, node_rows):
            state, blocks = run_fused(blocks, state, plan, node_rows), []
        for block in blocks:
            if self.checkpoint and torch.is_grad_enabled():
                state = recompute(
                    block,
                    state,
                    plan,
                    node_rows,
                    gate,
                    use_reentrant=False,
                    context_fn=partial(recomputation, block),
                )
            else:
                state = block(state, plan, node_rows, gate)
            if edge_rows is not None:
                state = state * edge_rows
        depth = self.layers**-0.5 if self.residual else 1.0
        if ret_edge_out:
            return (state.index_select(0, plan.row_of_edge) * depth).t().contiguous()
        return read_outputs(state, depth, plan)

    def _in_one(self, blocks: list[ResBlock], state: torch.Tensor, node_mask: torch.Tensor | None) -> bool:
        """Whether the whole stack may run as one operation, which calls no block and so no hook."""
        return (
            not self.checkpoint
            and len({block.norm.training for block in blocks}) == 1
            and all(
                not block._forward_hooks
                and not block._forward_pre_hooks
                and not block._backward_hooks
                and not block._backward_pre_hooks
                for block in blocks
            )
            and runs_fused(blocks, state, self.plan, node_mask)
        )

    def kernel_cases(self, x: torch.Tensor) -> list[Case]:
        """How each block would be run for x (B, N_in); what :func:`gsnn.kernels.registry.chosen` asks."""
        self._check_input(x)
        return kernel_cases(self._blocks, x, self.plan)

    def _check_form(self, x: torch.Tensor) -> None:
        names = self._input_names
        if x.ndim != 2 or x.shape[1] != len(names):
            raise ValueError(
                f"x must have shape (B, {len(names)}), one column per input node, got {tuple(x.shape)}"
            )
        if x.dtype != self._dtype:
            raise TypeError(f"x must have the model's dtype {self._dtype}, got {x.dtype}")

    def _check_input(self, x: torch.Tensor) -> None:
        self._check_form(x)
        if x.device.type == "cpu" and not _traced() and bool(x.isnan().any()):
            columns = [self._input_names[column] for column in x.isnan().any(0).nonzero().flatten().tolist()]
            raise ValueError(
                f"x must not contain NaN, got it in {len(columns)} columns: {some_names(columns)}"
            )

    @staticmethod
    def _check_mask(mask: torch.Tensor, name: str, size: int, samples: int) -> None:
        if tuple(mask.shape) not in ((size,), (samples, size), (1, size)):
            raise ValueError(
                f"{name} must have shape ({size},) or ({samples}, {size}), got {tuple(mask.shape)}"
            )

    def _rows(
        self,
        per_edge: torch.Tensor,
        name: str,
        n_edges: int,
        samples: int,
        dtype: torch.dtype,
        padding: float,
    ) -> torch.Tensor:
        """Per-edge values as rows of the state, (R, 1) or (R, B)."""
        self._check_mask(per_edge, name, n_edges, samples)
        columns = per_edge.to(dtype).reshape(-1, n_edges).t()
        filler = columns.new_full((1, columns.shape[1]), padding)
        return torch.cat([columns, filler]).index_select(0, self.plan.edge_of_row)

    @torch.no_grad()
    def prune(self, threshold: float) -> int:
        """Drop the weights whose magnitude is below ``threshold`` in every layer.

        Args:
            threshold: a non-negative number.

        Returns:
            How many weights of the pattern were dropped; each is gone from all layers.
        """
        non_negative("threshold", threshold)
        dropped = 0
        for side in ("lin_in", "lin_out"):
            linears = list({id(getattr(b, side)): getattr(b, side) for b in self._blocks}.values())
            keep = torch.stack([linear.weights().abs() >= threshold for linear in linears]).any(0)
            for linear in linears:
                linear.keep(keep)
            dropped += int((~keep).sum())
        return dropped

    @torch.no_grad()
    def get_node_activations(self, x: torch.Tensor, agg: Aggregation = "sum") -> dict[str, torch.Tensor]:
        """Activations of the function nodes after the nonlinearity, in eval mode.

        Args:
            x: (B, N_in).
            agg: over the layers, ``sum``, ``mean``, ``max`` or ``last``; ``all`` keeps them apart.

        Returns:
            name of function node -> (B, C), or (B, L, C) for ``all``.
        """
        one_of("agg", agg, AGGREGATIONS)
        names = self.graph.node_names_dict["function"]
        captures = Captures(self)
        with evaluation_mode(self), captures.recording():
            self(x)
            stacked = torch.stack(
                [h.view(len(x), len(names), self.channels) for h in captures.activations()], dim=1
            )
        result = AGGREGATIONS[agg](stacked)
        return {name: result[..., node, :] for node, name in enumerate(names)}


def _traced() -> bool:
    """While compiling, and under the transforms of ``torch.func``, values cannot be looked at."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def _make_blocks(config: Config, edge_index: torch.Tensor, plan: Plan) -> list[ResBlock]:
    # One tensor for all blocks: the pattern is the same in each.
    channels, n_channels, n_edges = config.channels, plan.n_nodes * config.channels, edge_index.shape[1]
    in_pattern = torch.stack(channel_pattern(plan.in_edges, edge_index[1], channels))
    out_pattern = torch.stack(channel_pattern(plan.out_edges, edge_index[0], channels)[::-1])
    channel_groups = torch.arange(plan.n_nodes).repeat_interleave(channels)
    options = config.bias, config.init, config.backend
    blocks: list[ResBlock] = []
    for _ in range(config.layers):
        if blocks and config.share_layers:
            lin_in, lin_out, mlp = blocks[0].lin_in, blocks[0].lin_out, blocks[0].node_mlp
        else:
            lin_in = SparseLinear(in_pattern, (n_edges, n_channels), *options)
            lin_out = SparseLinear(out_pattern, (n_channels, n_edges), *options)
            mlp = None
            if config.node_mlp:
                mlp = NodeMLP(channels, config.node_mlp_hidden, config.nonlin, config.dropout)
        norm = NodeNorm(config.norm, plan.n_nodes, channels, config.affine)
        blocks.append(ResBlock(lin_in, lin_out, norm, mlp, config, channel_groups))
    return blocks
