"""GSNN computed the slow and obvious way: dense matrices, one node at a time, plain autograd."""

from importlib.util import find_spec

import pytest
import torch

# Only absence skips: a build that does not load must fail.
needs_scatter = pytest.mark.skipif(
    find_spec("torch_scatter") is None, reason="torch-scatter is not installed: make scatter builds it"
)
BACKENDS = ("bucketed", pytest.param("scatter", marks=needs_scatter))

EDGE_TYPES = (("function", "to", "function"), ("input", "to", "function"), ("function", "to", "output"))


def random_graph(generator, n_input=5, n_function=12, n_output=4, density=0.2, hub=True, isolated=True):
    """Edge and name dictionaries of a graph with cycles, a hub, isolated nodes and shared outputs."""
    sizes = {"input": n_input, "function": n_function, "output": n_output}
    edge_index_dict = {}
    for source, _, target in EDGE_TYPES:
        wired = torch.rand(sizes[source], sizes[target], generator=generator) < density
        if source == target:
            if hub:
                wired[0, 1:] |= torch.rand(n_function - 1, generator=generator) < 0.7
                wired[1:, 0] |= torch.rand(n_function - 1, generator=generator) < 0.7
            wired.fill_diagonal_(False)
        if isolated and n_function > 3:
            if source == "function":
                wired[-1] = False
            if target == "function":
                wired[:, -1] = False
        edges = wired.nonzero().t().contiguous()
        edge_index_dict[source, "to", target] = edges[:, torch.randperm(edges.shape[1], generator=generator)]
    return edge_index_dict, {kind: [f"{kind}{k}" for k in range(size)] for kind, size in sizes.items()}


def _normalize(norm, z, kind, weight, bias, training, eps=1e-5):
    """z (B, N, C)."""
    if kind == "layer":
        unit = (z - z.mean(2, keepdim=True)) / (z.var(2, unbiased=False, keepdim=True) + eps).sqrt()
    elif kind == "rms":
        unit = z / (z.pow(2).mean(2, keepdim=True) + 1e-6).sqrt()
    elif kind == "softmax":
        unit = z.exp() / z.exp().sum(2, keepdim=True)
    elif kind in ("groupbatch", "batch"):
        over = (0, 2) if kind == "groupbatch" else (0,)
        if training:
            mean, var = z.mean(over, keepdim=True), z.var(over, unbiased=False, keepdim=True)
        else:
            shape = (1, z.shape[1], 1 if kind == "groupbatch" else z.shape[2])
            mean, var = norm.running_mean.view(shape), norm.running_var.view(shape)
        unit = (z - mean) / (var + eps).sqrt()
    else:
        return z
    if weight is not None:
        unit = unit * weight.view(1, -1, 1) + bias.view(1, -1, 1)
    return unit


def dense_forward(model, x, node_mask=None, edge_mask=None, e0=None, training=True):
    """(outputs, final edge state, per-block pre-norm and final activations) by dense products."""
    n_function = len(model.graph.node_names_dict["function"])
    n_input = len(model.graph.node_names_dict["input"])
    channels, (source, target) = model.channels, model.edge_index
    state = torch.zeros(len(x), len(source), dtype=x.dtype)
    for edge, node in enumerate(source.tolist()):
        if n_function <= node < n_function + n_input:
            state[:, edge] = x[:, node - n_function]
    if e0 is not None:
        state = state + e0
    if edge_mask is not None:
        state = state * edge_mask
    captures = []
    for block in model.ResBlocks:
        dense = []
        for linear in (block.lin_in, block.lin_out):
            weight = torch.zeros(linear.N, linear.M, dtype=x.dtype)
            dense.append(weight.index_put((linear.indices[0], linear.indices[1]), linear.values))
        z = state @ dense[0]
        if block.lin_in.bias is not None:
            z = z + block.lin_in.bias
        pre_norm = z
        z = z.view(len(x), n_function, channels)
        norm = block.norm

        def apply_norm(value, norm=norm):
            return _normalize(norm, value, model.norm, norm.weight, norm.bias, training)

        z = block.nonlin(apply_norm(z)) if model.config["norm_first"] else apply_norm(block.nonlin(z))
        if block.node_mlp is not None:
            for layer in block.node_mlp:
                z = layer(z)
        captures.append((pre_norm, z.reshape(len(x), -1)))
        if node_mask is not None:
            z = z * node_mask[..., :n_function].reshape(-1, n_function, 1)
        out = z.reshape(len(x), -1) @ dense[1]
        if block.lin_out.bias is not None:
            out = out + block.lin_out.bias
        if model.config["residual"]:
            out = out + torch.relu(block.residual_weight) * state
        state = out
        if edge_mask is not None:
            state = state * edge_mask
    if model.config["residual"]:
        state = state / model.layers**0.5
    outputs = []
    for node in range(n_function + n_input, model.num_nodes):
        incoming = (target == node).nonzero().flatten()
        outputs.append(state[:, incoming].sum(1) / max(len(incoming), 1) ** 0.5)
    return torch.stack(outputs, 1), state, captures
