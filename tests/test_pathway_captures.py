"""Captures aside from the output's path: the values and gradients of the ordinary ones, at less cost."""

import pytest
import torch

from gsnn.models.GSNN import GSNN
from gsnn.models.norms import NORMS
from gsnn.models.PathwayLatentRegularizer import PathwayLatentRegularizer
from gsnn.simulate.scenarios import disconnected_pathways

OPTIONS = [{"norm": norm} for norm in NORMS] + [
    {"node_mlp": True},
    {"norm_first": False},
    {"share_layers": False},
    {"residual": False, "affine": False, "bias": False},
    {"nonlin": torch.nn.Tanh},
]


def hub_graph():
    """Ten chains of three, and edges from all functions into the first, which the plan puts last."""
    graph = disconnected_pathways(n_pathways=10, n_spurious=0).full
    edges = dict(graph.edge_index_dict)
    others = torch.arange(1, 30)
    between = ("function", "to", "function")
    edges[between] = torch.cat([edges[between], torch.stack([others, torch.zeros_like(others)])], 1)
    return edges, graph.node_names_dict


def run(store, options, node_mask=None):
    """A training pass with one kind of capture: outputs, captures and parameters."""
    torch.manual_seed(0)
    edges, names = hub_graph()
    model = GSNN(edges, names, channels=3, layers=3, **options).double()
    assert not model.plan.natural
    for block in model.ResBlocks:
        block._store_activations = store
    x = torch.randn(6, 20, dtype=torch.float64)
    return model(x, node_mask=node_mask), [b._last_activation for b in model.ResBlocks], model


def aside_loss(captured):
    return sum((a * torch.linspace(-1, 1, a.numel()).view_as(a)).sin().sum() for a in captured)


def gradients(loss, model):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients(options, masked):
    mask = torch.linspace(0, 1, 70, dtype=torch.float64) if masked else None
    y, captured, model = run(True, options, mask)
    y_aside, captured_aside, twin = run("aside", options, mask)
    assert torch.allclose(y, y_aside, rtol=1e-12, atol=1e-14)
    for a, b in zip(captured, captured_aside, strict=True):
        assert a.shape == b.shape == (6, 90)
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
    squares, squares_aside = y.square().sum(), y_aside.square().sum()
    losses = {
        "both": (squares + aside_loss(captured), squares_aside + aside_loss(captured_aside)),
        "outputs alone": (squares, squares_aside),
        "captures alone": (aside_loss(captured), aside_loss(captured_aside)),
        "one capture": (captured[1].square().sum(), captured_aside[1].square().sum()),
    }
    for which, (loss, other) in losses.items():
        for a, b in zip(gradients(loss, model), gradients(other, twin), strict=True):
            # A norm over the batch cancels the bias before it: that gradient is zero but for rounding.
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-10), which


def test_dropped_channels_are_dropped_in_the_capture():
    _, captured, _ = run("aside", {"dropout": 0.4})
    zero = (captured[-1] == 0).double().mean().item()  # by the last block every node has a signal
    assert 0.3 < zero < 0.5


@pytest.mark.parametrize("share_layers", [True, False])
@pytest.mark.parametrize("store", [False, True, "aside"])
def test_gradients_that_can_be_differentiated(store, share_layers):
    y, captured, model = run(store, {"norm": "none", "share_layers": share_layers})
    loss = y.square().sum() + (aside_loss(captured) if store else 0)
    weights = model.ResBlocks[0].lin_in.values
    plain = torch.autograd.grad(loss, weights, retain_graph=True)[0]
    first = torch.autograd.grad(loss, weights, create_graph=True)[0]
    assert torch.allclose(plain, first, rtol=1e-10, atol=1e-12)
    second = torch.autograd.grad(first.square().sum(), model.ResBlocks[0].lin_out.values)[0]
    assert second.norm() > 0


def test_second_derivatives():
    found = []
    for store in (True, "aside"):
        y, captured, model = run(store, {"norm": "none"})
        loss = y.square().sum() + aside_loss(captured)
        first = torch.autograd.grad(loss, model.ResBlocks[0].lin_in.values, create_graph=True)[0]
        found.append(torch.autograd.grad(first.square().sum(), model.ResBlocks[0].lin_out.values)[0])
    assert (found[0] - found[1]).norm() <= 1e-8 * found[0].norm()


def test_captures_are_read_once_and_dropped():
    _, _, model = run("aside", {})
    block = model.ResBlocks[0]
    assert block._last_activation is block._last_activation
    assert block._last_pre_norm_activation is block._last_pre_norm_activation
    block._last_activation = None
    assert block._last_activation is None and block._last_pre_norm_activation is not None


class Scalar(torch.nn.Module):
    """Depends on which node it is, so that a wrong order shows; (B, N), or (B, N, 1) with ``keepdim``."""

    def __init__(self, keepdim=False):
        super().__init__()
        self.keepdim = keepdim

    def forward(self, a):
        weight = torch.linspace(0.5, 2, a.shape[1], dtype=a.dtype)[:, None]
        return (a * weight).tanh().sum(2, keepdim=self.keepdim)

    def extra_repr(self):
        return f"keepdim={self.keepdim}"


@pytest.mark.parametrize("phi", ["mean", "learned", "channel", Scalar(), Scalar(keepdim=True)], ids=str)
def test_the_regularizer_reads_either_kind(phi):
    membership = torch.eye(10).repeat_interleave(3, dim=1) * torch.linspace(0.5, 2, 30)
    found = []
    for store in (True, "aside"):
        _, _, model = run(store, {})
        regularizer = PathwayLatentRegularizer(model, membership, [(0, 1)], 1.0, 1.0, phi)
        assert model.ResBlocks[0]._store_activations == store  # on already: left as it is
        torch.manual_seed(3)
        model(torch.randn(6, 20, dtype=torch.float64))
        losses = regularizer.loss(model)
        found.append([*losses, *gradients(sum(losses), model)])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)
