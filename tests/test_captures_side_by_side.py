"""Captures of networks side by side: those of each alone, with the same gradients, or a refusal."""

import copy
from typing import Any

import pytest
import torch
from test_side_by_side import members, needs_native, path  # noqa: F401  # the fixture

from gsnn.captures import Captures
from gsnn.kernels import side_by_side as kernel
from gsnn.models.norms import NORMS
from gsnn.models.SideBySide import SideBySide
from gsnn.optim.MagnitudeEdgeInferer import MagnitudeEdgeInferer
from gsnn.optim.MagnitudeEdgeRegressor import MagnitudeEdgeRegressor

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def sums(outputs: list[torch.Tensor]) -> torch.Tensor:
    """A loss whose gradient is another one for every value."""
    return torch.stack([(output.square() * (k + 1)).sum() for k, output in enumerate(outputs)]).sum()


def found_alone(model, x, weight):
    """Captures of all blocks, and the gradients at them, of a model alone."""
    captures = Captures(model)
    with captures.recording():
        output = model(x)
        tensors = [*captures.pre_norms(), *captures.activations()]
        grads = torch.autograd.grad(weight * output.square().sum(), tensors)
    return tensors, grads


@pytest.mark.parametrize("share_layers", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_captures_and_their_gradients_are_those_of_each_alone(path, norm, share_layers):  # noqa: F811
    models, batches = members(norm=norm, share_layers=share_layers, layers=3)
    together = SideBySide(models)
    watched = [Captures(network) for network in together.networks]
    for captures in (watched[0], watched[2]):
        captures.on()
    outputs = together(batches)
    kept: list[torch.Tensor] = []
    for captures in (watched[0], watched[2]):
        kept += [*captures.pre_norms(), *captures.activations()]
    hooked: dict[int, torch.Tensor] = {}
    for place, tensor in enumerate(kept):
        tensor.retain_grad()
        tensor.register_hook(lambda grad, place=place: hooked.__setitem__(place, grad))
    sums(outputs).backward()
    wanted = [found_alone(models[k], batches[k], k + 1) for k in (0, 2)]
    for place, (tensor, grad) in enumerate(
        (t, g) for tensors, grads in wanted for t, g in zip(tensors, grads, strict=True)
    ):
        torch.testing.assert_close(kept[place], tensor, **CLOSE)
        torch.testing.assert_close(kept[place].grad, grad, **CLOSE)
        torch.testing.assert_close(hooked[place], grad, **CLOSE)
    with pytest.raises(RuntimeError, match="left no capture"):
        watched[1].on()
        watched[1].pre_norms()
    # The weights learn what they learn without anybody watching.
    plain = SideBySide(models)
    sums(plain(batches)).backward()
    for a, b in zip(together.weights, plain.weights, strict=True):
        torch.testing.assert_close(a.grad, b.grad, **CLOSE)


@needs_native
def test_one_operation_computes_all_and_their_captures(monkeypatch):
    models, batches = members(norm="groupbatch")
    together, runs, run = SideBySide(models), [], kernel._run

    def counted(*arguments):
        runs.append(1)
        return run(*arguments)

    monkeypatch.setattr(kernel, "_run", counted)
    watched = [Captures(network) for network in together.networks]
    for captures in watched:
        captures.on()
    found = torch.autograd.grad(sums(together(batches)), [t for c in watched for t in c.pre_norms()])
    assert len(runs) == 2
    assert all(grad.abs().max() > 0 for grad in found)
    with torch.no_grad():
        together(batches)
    assert not watched[0].pre_norms()[0].requires_grad
    for captures in watched:
        captures.off()
    together(batches)
    assert all(capture.last is None for captures in watched for capture in captures)


def test_a_loss_of_captures_is_refused_or_right(path):  # noqa: F811
    """Never a gradient that leaves something out."""
    models, batches = members(norm="layer")
    together = SideBySide(models)
    captures = Captures(together.networks[1])
    captures.on()
    loss = sums(together(batches)) + captures.activations()[0].square().sum()
    if path == "compiled":
        with pytest.raises(RuntimeError, match="neither be in a loss"):
            loss.backward()
        captures.off()
        captures.on("aside")
        loss = sums(together(batches)) + captures.activations()[0].square().sum()
    loss.backward()
    alone = copy.deepcopy(models[1])
    own = Captures(alone)
    own.on()
    (2 * alone(batches[1]).square().sum() + own.activations()[0].square().sum()).backward()
    wanted = torch.cat([p.grad.view(-1) for p in alone.parameters() if p.grad is not None])
    torch.testing.assert_close(together.weights[1].grad, wanted, **CLOSE)


@needs_native
def test_a_gradient_that_a_hook_changes_is_refused():
    models, batches = members(norm="none")
    for change in (lambda grad: 2 * grad, lambda grad: grad.mul_(2)):
        together = SideBySide(models)
        captures = Captures(together.networks[0])
        captures.on()
        outputs = together(batches)
        captures.pre_norms()[1].register_hook(change)
        with pytest.raises(RuntimeError, match="nor have their gradients changed"):
            sums(outputs).backward()


def test_networks_are_what_the_members_are_now(path):  # noqa: F811
    models, batches = members(norm="batch")
    together = SideBySide(models)
    opt = torch.optim.SGD(together.parameters(), lr=0.1)

    def check(side: SideBySide, inputs: list[torch.Tensor]) -> None:
        side.eval()
        for network, member, x in zip(side.networks, side.members(), inputs, strict=True):
            assert torch.equal(network(x), member(x))
        side.train()

    for _ in range(2):
        opt.zero_grad()
        sums(together(batches)).backward()
        opt.step()
        check(together, batches)
    changed = any(
        not torch.equal(a, b)
        for a, b in zip(together.networks[0].parameters(), models[0].parameters(), strict=True)
    )
    assert changed
    state = {name: value.clone().mul_(0.5) for name, value in together.state_dict().items()}
    together.load_state_dict(state, assign=True)
    check(together, batches)
    check(copy.deepcopy(together), batches)
    check(together.float(), [x.float() for x in batches])


def test_regressors_beside_the_networks_learn_what_they_learn_beside_each_alone(path):  # noqa: F811
    models, batches = members(norm="groupbatch", layers=3)
    data = [torch.randn(len(x), 4, dtype=x.dtype) for x in batches]
    options: dict[str, Any] = {"lr": 1e-2, "ridge": 1e-3}
    together = SideBySide(models)
    regressors = [MagnitudeEdgeRegressor(n, n.graph, **options) for n in together.networks]
    opt = torch.optim.AdamW(together.parameters(), lr=1e-2)
    for _ in range(5):
        for regressor in regressors:
            regressor.pre_forward()
        outputs = together(batches)
        for regressor in regressors:
            regressor.arm_retained_grads()
        opt.zero_grad()
        pairs = zip(outputs, data, strict=True)
        torch.stack([torch.nn.functional.mse_loss(a, b) for a, b in pairs]).sum().backward()
        for regressor in regressors:
            regressor.aux_step()
        opt.step()
    for model, x, y, mine in zip(models, batches, data, regressors, strict=True):
        other = MagnitudeEdgeRegressor(model, model.graph, **options)
        alone = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(5):
            other.pre_forward()
            output = model(x)
            other.arm_retained_grads()
            alone.zero_grad()
            torch.nn.functional.mse_loss(output, y).backward()
            other.aux_step()
            alone.step()
        assert other.W.abs().max() > 0.01
        torch.testing.assert_close(mine.W, other.W, rtol=1e-6, atol=1e-9)
        a, b = mine.evaluate(), other.evaluate()
        assert list(a["src_func"]) == list(b["src_func"])
        torch.testing.assert_close(torch.tensor(a["p_value"]), torch.tensor(b["p_value"]), equal_nan=True)


def test_an_inferer_reads_a_network_as_its_member(path):  # noqa: F811
    models, batches = members(norm="layer", layers=3)
    together = SideBySide(models)
    with torch.no_grad():
        together.weights[1].mul_(1.5)
    tables = []
    for model in (together.networks[1], together.members()[1]):
        inferer = MagnitudeEdgeInferer(model, model.graph)
        inferer.fit([(batches[1], torch.zeros(len(batches[1]), 4).double())], verbose=False)
        tables.append(inferer.evaluate())
    assert tables[0].equals(tables[1])
