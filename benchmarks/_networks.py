"""A GSNN's mathematics by the usual means, on the same parameters: what the package is compared with."""

from collections.abc import Callable
from typing import Any

import torch

from gsnn.models.GSNN import GSNN


def random_model(n: int, edges: int, channels: int, layers: int, seed: int = 0) -> GSNN:
    """N functions, ``edges`` random edges between them, n // 5 inputs and outputs."""
    generator = torch.Generator().manual_seed(seed)
    # Drawn with a few to spare, since pairs may repeat or be loops.
    keys = torch.randint(n * n, (2 * edges + 100,), generator=generator)
    keys = keys[keys // n != keys % n].unique()
    pairs = keys[torch.randperm(len(keys), generator=generator)[:edges]]
    if len(pairs) < edges:
        raise ValueError(f"edges must be far below N^2 = {n * n}, got {edges}")
    side = max(n // 5, 1)
    every = torch.arange(side)
    edge_index_dict = {
        ("function", "to", "function"): torch.stack([pairs // n, pairs % n]),
        ("input", "to", "function"): torch.stack([every, torch.randperm(n, generator=generator)[:side]]),
        ("function", "to", "output"): torch.stack([torch.randperm(n, generator=generator)[:side], every]),
    }
    names = {
        kind: [f"{kind}{k}" for k in range(n if kind == "function" else side)]
        for kind in ("input", "function", "output")
    }
    torch.manual_seed(seed)
    return GSNN(edge_index_dict, names, channels, layers, share_layers=False)


class Network(torch.nn.Module):
    """Samples innermost, products by a function of (linear layer, values of its inputs)."""

    def __init__(self, model: GSNN) -> None:
        super().__init__()
        self.channels, self.layers = model.channels, model.layers
        self.n_function = len(model.graph.node_names_dict["function"])
        self.n_edges, self.norm = model.edge_index.shape[1], model.norm
        self.blocks = torch.nn.ModuleList(model.ResBlocks)
        source, target = model.edge_index
        self.fed = model.input_edge_mask.nonzero().flatten()
        self.fed_by = source[self.fed] - self.n_function
        self.read = model.output_edge_mask.nonzero().flatten()
        self.read_by = target[self.read] - int(model.output_node_mask.nonzero()[0])
        self.n_output = int(model.output_node_mask.sum())
        self.degree = torch.bincount(self.read_by, minlength=self.n_output).clamp(min=1).float()

    def product(self, linear: Any, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def unit(self, z: torch.Tensor, block: Any) -> torch.Tensor:
        if self.norm == "none":
            return z
        over = {"layer": (1,), "groupbatch": (1, 2)}[self.norm]
        z = z - z.mean(over, keepdim=True)
        z = z * (z.square().mean(over, keepdim=True) + 1e-5).rsqrt()
        return z * block.norm.weight.view(-1, 1, 1) + block.norm.bias.view(-1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(self.n_edges, len(x)).index_copy(0, self.fed, x.t().index_select(0, self.fed_by))
        block: Any
        for block in self.blocks:
            z = self.product(block.lin_in, state).view(self.n_function, self.channels, -1)
            z = block.nonlin(self.unit(z, block)).flatten(0, 1)
            state = self.product(block.lin_out, z) + block.residual_weight.relu() * state
        outputs = state.new_zeros(self.n_output, len(x)).index_add_(
            0, self.read_by, state.index_select(0, self.read)
        )
        return outputs.t() / self.degree.sqrt() / self.layers**0.5


class Gather(Network):
    """One message per weight: gather, multiply, ``index_add_``; whole rows of samples at a time."""

    def product(self, linear: Any, x: torch.Tensor) -> torch.Tensor:
        messages = x.index_select(0, linear.indices[0]) * linear.values.unsqueeze(1)
        result = x.new_zeros(linear.M, x.shape[1]).index_add_(0, linear.indices[1], messages)
        return result + linear.bias.unsqueeze(1)


class BatchFirst(Network):
    """The same with samples outermost, the usual layout, which lets PyTorch's layer norm do the norm."""

    def product(self, linear: Any, x: torch.Tensor) -> torch.Tensor:
        messages = x.index_select(1, linear.indices[0]) * linear.values
        result = x.new_zeros(len(x), linear.M).index_add_(1, linear.indices[1], messages)
        return result + linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(len(x), self.n_edges).index_copy(1, self.fed, x.index_select(1, self.fed_by))
        block: Any
        for block in self.blocks:
            z = self.product(block.lin_in, state).view(len(x), self.n_function, self.channels)
            if self.norm == "layer":
                z = torch.nn.functional.layer_norm(z, (self.channels,))
            elif self.norm == "groupbatch":
                z = z - z.mean((0, 2), keepdim=True)
                z = z * (z.square().mean((0, 2), keepdim=True) + 1e-5).rsqrt()
            if self.norm != "none":
                z = z * block.norm.weight.view(-1, 1) + block.norm.bias.view(-1, 1)
            state = (
                self.product(block.lin_out, block.nonlin(z).flatten(1)) + block.residual_weight.relu() * state
            )
        outputs = state.new_zeros(len(x), self.n_output).index_add_(
            1, self.read_by, state.index_select(1, self.read)
        )
        return outputs / self.degree.sqrt() / self.layers**0.5


class Scatter(Network):
    """Messages summed by torch-scatter, over rows sorted by target."""

    def __init__(self, model: GSNN) -> None:
        import torch_scatter

        super().__init__(model)
        self.segment_csr = torch_scatter.segment_csr
        self.sorted: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
        block: Any
        for block in self.blocks:
            for linear in (block.lin_in, block.lin_out):
                columns = linear.indices[1]
                pointer = torch.bincount(columns, minlength=linear.M).cumsum(0)
                order = columns.argsort(stable=True)
                self.sorted[linear] = order, torch.nn.functional.pad(pointer, (1, 0))

    def product(self, linear: Any, x: torch.Tensor) -> torch.Tensor:
        order, pointer = self.sorted[linear]
        messages = x.index_select(0, linear.indices[0][order]) * linear.values[order].unsqueeze(1)
        return self.segment_csr(messages, pointer) + linear.bias.unsqueeze(1)


class _CsrProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, x, layout):
        ctx.save_for_backward(values, x)
        ctx.layout = layout
        pointer, columns, order, *_ = layout
        return torch.sparse_csr_tensor(pointer, columns, values[order], layout[-1]) @ x

    @staticmethod
    def backward(ctx, grad):
        values, x = ctx.saved_tensors
        pointer, columns, order, back_pointer, back_columns, back_order, shape = ctx.layout
        turned = torch.sparse_csr_tensor(back_pointer, back_columns, values[back_order], shape[::-1])
        pattern = torch.sparse_csr_tensor(pointer, columns, torch.ones_like(values), shape)
        sampled = torch.sparse.sampled_addmm(pattern, grad, x.t(), beta=0.0).values()
        return torch.empty_like(values).index_copy_(0, order, sampled), turned @ grad, None


class Csr(Network):
    """``torch.sparse`` CSR products (MKL), transposed and sampled ones in the backward pass."""

    def __init__(self, model: GSNN) -> None:
        super().__init__(model)
        self.layouts: dict[torch.nn.Module, tuple[object, ...]] = {}
        block: Any
        for block in self.blocks:
            for linear in (block.lin_in, block.lin_out):
                inputs, outputs = linear.indices
                parts: list[object] = []
                for rows, columns, size in ((outputs, inputs, linear.M), (inputs, outputs, linear.N)):
                    order = (rows * (int(columns.max()) + 1) + columns).argsort()
                    pointer = torch.nn.functional.pad(torch.bincount(rows, minlength=size).cumsum(0), (1, 0))
                    parts += [pointer, columns[order], order]
                self.layouts[linear] = (*parts, (linear.M, linear.N))

    def product(self, linear: Any, x: torch.Tensor) -> torch.Tensor:
        return _CsrProduct.apply(linear.values, x.contiguous(), self.layouts[linear]) + linear.bias.unsqueeze(
            1
        )


class Dense(Network):
    """A dense matrix with zeros where there is no edge: the masked linear layer."""

    LARGEST = 20_000_000  # elements of one matrix

    def __init__(self, model: GSNN) -> None:
        super().__init__(model)
        block: Any = model.ResBlocks[0]
        linear = block.lin_in
        if linear.N * linear.M > self.LARGEST:
            raise ImportError(f"a dense matrix of {linear.M} x {linear.N} is too large")

    def product(self, linear: Any, x: torch.Tensor) -> torch.Tensor:
        inputs, outputs = linear.indices
        weight = x.new_zeros(linear.M, linear.N).index_put((outputs, inputs), linear.values)
        return weight @ x + linear.bias.unsqueeze(1)


class MessagePassing(Network):
    """PyTorch Geometric's message passing over the weights as edges."""

    def __init__(self, model: GSNN) -> None:
        from torch_geometric.nn import SimpleConv

        super().__init__(model)
        self.sum = SimpleConv(aggr="sum")

    def product(self, linear: Any, x: torch.Tensor) -> torch.Tensor:
        targets = x.new_empty(linear.M, 1)  # says how many there are
        return self.sum((x, targets), linear.indices, linear.values) + linear.bias.unsqueeze(1)


BASELINES: dict[str, Callable[[GSNN], Network]] = {
    "gather": Gather,
    "batch_first": BatchFirst,
    "scatter": Scatter,
    "csr": Csr,
    "dense": Dense,
    "pyg": MessagePassing,
}


def baselines(model: GSNN) -> dict[str, Network]:
    """Those whose packages are here and whose matrices fit."""
    found = {}
    for name, build in BASELINES.items():
        try:
            found[name] = build(model)
        except ImportError:
            continue
    return found
