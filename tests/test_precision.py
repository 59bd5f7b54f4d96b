"""The types a model may be moved to, and training under autocast with scaled losses."""

import copy
from typing import Any

import pytest
import torch
from dense_oracle import BACKENDS, dense_forward
from test_gsnn import make

from gsnn.models.GSNN import GSNN
from gsnn.models.norms import NORMS
from gsnn.models.SparseLinear import SparseLinear

HALVES = (torch.bfloat16, torch.float16)


def gradient(model, output, target):
    """All gradients of the mean squared error, in float64 and one row."""
    (output - target).square().mean().backward()  # mse_loss of PyTorch 2.4 knows no bfloat16
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_moved_to_another_type_is_close_to_float64(backend, dtype):
    model, x = make(norm="layer", backend=backend)
    expected = model(x)
    output = model.to(dtype)(x.to(dtype))
    output.float().sum().backward()
    assert output.dtype == dtype
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_in_half_precision_are_those_of_the_dense_computation(norm, captures, backend):
    """Rounding decides how far off they are, so the dense products in the same type set the measure."""
    for dtype in HALVES:
        errors = []
        for seed in range(8):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            model, _ = make(seed, norm=norm, backend=backend)
            x = torch.randn(64, 5, generator=generator, dtype=torch.float64)
            y = torch.randn(64, 4, generator=generator, dtype=torch.float64)
            exact = gradient(model, dense_forward(model, x)[0], y)
            model.to(dtype)
            for block in model.ResBlocks:
                block._store_activations = captures
            for forward in (model, lambda v, model=model: dense_forward(model, v)[0]):
                model.zero_grad()
                got = gradient(model, forward(x.to(dtype)), y.to(dtype))
                errors.append(float((got - exact).norm() / exact.norm()))
        ours, dense = torch.tensor(errors).log().view(-1, 2).mean(0).exp()  # per model: a factor either way
        assert ours <= 2 * dense


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALVES)
def test_long_sums_keep_their_last_terms(backend, dtype):
    """Added one by one in bfloat16, 1 + 1 + ... stops at 256."""
    every = torch.arange(3000)
    star = SparseLinear(torch.stack([every, 0 * every]), (3000, 1), False, backend=backend).to(dtype)
    with torch.no_grad():
        star.values.fill_(1.0)
    ones = torch.ones(2, 3000, dtype=dtype)
    for total in (star(ones), torch.func.vjp(star, ones)[0]):
        assert total.double().detach().numpy() == pytest.approx(3000, rel=2**-8)

    edges = {
        ("input", "to", "function"): torch.stack([every, 0 * every]),
        ("function", "to", "function"): torch.zeros(2, 0, dtype=torch.long),
        ("function", "to", "output"): torch.tensor([[0], [0]]),
    }
    names = {"input": [f"x{k}" for k in range(3000)], "function": ["f"], "output": ["y"]}
    model = GSNN(edges, names, 1, 2, norm="none", backend=backend).to(dtype)
    with torch.no_grad():
        block: Any = model.ResBlocks[0]
        for linear in (block.lin_in, block.lin_out):
            linear.values.fill_(1.0)
    for block in model.ResBlocks:
        block._store_activations = True
    model(ones)
    block = model.ResBlocks[0]
    first = block._last_pre_norm_activation.double()
    assert first.detach().numpy() == pytest.approx(3000, rel=2**-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("norm", ["layer", "softmax", "groupbatch", "none"])
def test_a_training_loop_under_autocast_is_that_of_float32(norm, backward_inside, backend):
    for dtype in HALVES:
        model, x = make(dtype=torch.float32, norm=norm, backend=backend)
        x = x.to(dtype).float()  # so that rounding the inputs changes nothing
        y = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
        twin = copy.deepcopy(model)
        results = []
        for network, mixed in ((model, True), (twin, False)):
            optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=mixed)
            for _ in range(3):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=dtype, enabled=mixed):
                    output = network(x.to(dtype) if mixed else x)
                    loss = torch.nn.functional.mse_loss(output, y)
                    if backward_inside:
                        scaler.scale(loss).backward()
                if not backward_inside:
                    scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            assert output.dtype == torch.float32
            results.append(list(network.parameters()))
        for mixed, full in zip(*results, strict=True):
            torch.testing.assert_close(mixed, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_of_the_layers_around_a_model(backend):
    """A bfloat16 layer before, one after, gradients through both."""
    model, _ = make(dtype=torch.float32, node_mlp=True, backend=backend)
    torch.manual_seed(0)
    whole = torch.nn.Sequential(torch.nn.Linear(9, 5), model, torch.nn.Linear(4, 2))
    x, y = torch.randn(7, 9), torch.randn(7, 2)
    twin = copy.deepcopy(whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = whole(x)
    assert output.dtype == torch.bfloat16
    mixed = gradient(whole, output.float(), y)
    full = gradient(twin, twin(x), y)
    assert (mixed - full).norm() < 0.05 * full.norm()


def test_autocast_keeps_the_models_precision():
    model, x = make(dtype=torch.float32, node_mlp=True)
    x = x.bfloat16().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model(x)
    assert torch.equal(inside, model(x))
