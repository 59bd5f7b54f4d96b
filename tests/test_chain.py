"""Captures on the way to the output of a stack that the compiled kernel runs: as with separate operations."""

import gc
import weakref

import pytest
import torch
from test_gsnn import make

from gsnn.captures import Captures
from gsnn.kernels import _chain as chain
from gsnn.kernels import chosen, use
from gsnn.kernels import compiled as native
from gsnn.kernels.registry import SEPARATE

pytestmark = pytest.mark.skipif(native.level() == "none", reason="the compiled blocks were not built")
NORMS = ("none", "layer", "rms", "groupbatch", "batch")


def captured(model):
    captures = list(Captures(model))
    return [t for capture in captures for t in (capture.pre_norm, capture.activation)]


def model_of(**options):
    torch.manual_seed(0)
    model, x = make(**options)
    for capture in Captures(model):
        capture.switch("on")
    with torch.no_grad():  # statistics and scales that are not those of a new model
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "norm" in name:
                tensor.add_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)))
    return model, x


def both(act, **options):
    """What ``act(model, x)`` returns by the compiled kernel and by separate operations."""
    found = []
    for name, kernel in (("compiled", "compiled"), ("torch", SEPARATE)):
        model, x = model_of(**options)
        with use(name):
            assert {choice.kernel for choice in chosen(model, x)} == {kernel}
            torch.manual_seed(5)  # of dropout
            found.append([t for t in act(model, x) if t is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert all(t.isfinite().all() for t in found[0])


def parameters(model):
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share_layers", [True, False])
def test_outputs_captures_and_gradients(norm, share_layers):
    def act(model, x):
        x = x.requires_grad_()
        output = model(x)
        kept = captured(model)
        for tensor in kept:
            tensor.retain_grad()
        output.square().sum().backward()
        return [output, *kept, *(t.grad for t in kept), x.grad, *parameters(model), *model.buffers()]

    both(act, norm=norm, share_layers=share_layers, dropout=0.3)


@pytest.mark.parametrize(
    "options", [{"residual": False}, {"bias": False}, {"learn_residual": False}], ids=str
)
def test_what_may_be_absent(options):
    def act(model, x):
        output = model(x)
        grads = torch.autograd.grad(output.square().sum(), captured(model), retain_graph=True)
        output.sum().backward()
        return [*grads, *parameters(model)]

    both(act, affine=False, **options)


def test_a_residual_that_lets_nothing_through():
    def act(model, x):
        with torch.no_grad():
            model.ResBlocks[1].residual_weight.fill_(-1)
        output = model(x)
        output.square().sum().backward()
        return [output, *parameters(model)]

    both(act)


@pytest.mark.parametrize("norm", ["groupbatch", "batch"])
def test_running_statistics(norm):
    def act(model, x):
        model.eval()
        output = model(x)
        grads = torch.autograd.grad(output.square().sum(), captured(model), retain_graph=True)
        output.square().sum().backward()
        return [output, *captured(model), *grads, *parameters(model), *model.buffers()]

    both(act, norm=norm)


def test_what_is_added_on_the_way_and_hooks():
    """Losses of captures themselves, and hooks that replace or change a gradient, reach all that is below."""

    def act(model, x):
        output = model(x)
        kept = captured(model)
        for tensor in kept:
            tensor.retain_grad()
        kept[2].register_hook(lambda grad: 2 * grad)
        kept[5].register_hook(lambda grad: [grad.mul_(0.5), None][1])  # in place, giving nothing back
        loss = output.square().sum() + (kept[3] * kept[0]).sum()
        loss.backward()
        return [*(t.grad for t in kept), *parameters(model)]

    both(act, layers=3, share_layers=False, norm="groupbatch")


def test_a_loss_of_captures_alone_and_repeated_passes():
    def act(model, x):
        output = model(x)
        kept = captured(model)
        weights = list(model.ResBlocks[0].lin_in.parameters())
        one = torch.autograd.grad(kept[3].square().sum(), [*kept[:3], *weights])
        output = model(x)
        kept = captured(model)
        two = torch.autograd.grad(output.sum(), kept, retain_graph=True)
        kept[2].square().sum().backward(retain_graph=True)
        three = torch.autograd.grad(output.square().sum(), kept, retain_graph=True)
        output.sum().backward()
        return [*one, *two, *three, *parameters(model)]

    both(act, layers=3, share_layers=False)


def test_only_some_of_the_weights():
    def act(model, x):
        for p in model.parameters():
            p.requires_grad_(False)
        model.ResBlocks[1].norm.weight.requires_grad_()
        model.ResBlocks[0].lin_out.values.requires_grad_()
        output = model(x)
        output.square().sum().backward()
        return [model.ResBlocks[1].norm.weight.grad, model.ResBlocks[0].lin_out.values.grad]

    both(act, layers=3, share_layers=False)


def test_second_derivatives():
    def act(model, x):
        x = x.requires_grad_()
        output = model(x)
        grads = torch.autograd.grad(output.square().sum(), [captured(model)[0], x], create_graph=True)
        loss = torch.stack([(g * g).sum() for g in grads]).sum()
        loss.backward()
        return [*grads, x.grad, *parameters(model)]

    both(act, norm="groupbatch", layers=2, share_layers=False)


def test_the_backward_pass_runs_once(monkeypatch):
    """Parts are computed one by one only where something was added."""
    parts = []
    real = chain.backward_part

    def counted(*given):
        parts.append(given[0])
        return real(*given)

    monkeypatch.setattr(chain, "backward_part", counted)
    model, x = model_of(layers=3, share_layers=False)
    output = model(x)
    kept = captured(model)
    for tensor in kept:
        tensor.retain_grad()
    output.sum().backward()
    assert parts == []
    output = model(x)
    torch.autograd.grad(output.sum(), captured(model))
    assert parts == []
    output = model(x)
    (output.sum() + captured(model)[2].sum()).backward()  # before the norm of the second block
    assert parts == ["in", "out", "middle", "in"]


def test_the_graph_goes_with_its_output():
    model, x = model_of()
    output = model(x)
    node = weakref.ref(captured(model)[0])
    output.sum().backward()
    gc.disable()  # nothing may wait for the collector, which does not see cycles through the graph
    try:
        del output
        for capture in Captures(model):
            capture.last = None
        assert node() is None
    finally:
        gc.enable()


def test_weights_must_not_change_before_the_backward_pass():
    model, x = model_of()
    output = model(x)
    with torch.no_grad():
        model.ResBlocks[0].lin_in.values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_captures_keep_their_memory_from_later_passes(monkeypatch):
    monkeypatch.setattr(native, "_POOLED", 0)  # as for large networks
    model, x = model_of()
    output = model(x)
    kept = captured(model)
    grads = torch.autograd.grad(output.sum(), kept, retain_graph=True)
    before = [t.detach().clone() for t in (*kept, *grads)]
    for _ in range(3):
        model(2 * x).square().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip((*kept, *grads), before, strict=True))
