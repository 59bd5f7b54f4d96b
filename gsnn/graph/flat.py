"""The flat view of a graph: all nodes in one numbering, all edges in one list."""

import torch

from gsnn.graph.container import EDGE_TYPES, NODE_TYPES, HeteroGraph


def flat_edges(graph: HeteroGraph, self_edges: bool) -> torch.Tensor:
    """(2, E) edges: function -> function, input -> function, function -> output, then self edges.

    Nodes are numbered function, input, output. ``self_edges`` adds one per function node.
    """
    offset, size = {}, 0
    for kind in NODE_TYPES:
        offset[kind] = size
        size += len(graph.node_names_dict[kind])
    parts = [
        graph.edge_index_dict[source, to, target].cpu() + torch.tensor([[offset[source]], [offset[target]]])
        for source, to, target in EDGE_TYPES
    ]
    if self_edges:
        parts.append(torch.arange(len(graph.node_names_dict["function"])).repeat(2, 1))
    return torch.cat(parts, dim=1)


def flat_masks(edge_index: torch.Tensor, graph: HeteroGraph) -> dict[str, torch.Tensor]:
    """Boolean masks over flat nodes and flat edges, by the names that GSNN gives them."""
    n_function, n_input, n_output = (len(graph.node_names_dict[kind]) for kind in NODE_TYPES)
    node = torch.arange(n_function + n_input + n_output)
    source, target = edge_index
    from_input, into_output = source >= n_function, target >= n_function + n_input
    return {
        "input_node_mask": (node >= n_function) & (node < n_function + n_input),
        "output_node_mask": node >= n_function + n_input,
        "function_edge_mask": ~from_input & ~into_output,
        "input_edge_mask": from_input,
        "output_edge_mask": into_output,
    }


def channel_pattern(
    edges: torch.Tensor, nodes: torch.Tensor, channels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Edge and channel of every weight between ``edges`` (n,) and the channels of their ``nodes`` (E,).

    Returns:
        Two (n * C,) tensors: the flat edge, and the channel ``node * C + c``; C weights per edge in turn.
    """
    channel = nodes[edges].unsqueeze(1) * channels + torch.arange(channels)
    return edges.repeat_interleave(channels), channel.flatten()
