"""SideBySide: every member computes, learns and counts what it does alone."""

import copy
import pickle
from typing import Any, cast

import pytest
import torch
from dense_oracle import needs_scatter
from test_gsnn import VARIANTS, make

from gsnn.kernels import compiled as native
from gsnn.kernels import side_by_side as kernel
from gsnn.kernels import use
from gsnn.models.GSNN import GSNN
from gsnn.models.norms import NORMS
from gsnn.models.SideBySide import SideBySide, side_by_side

needs_native = pytest.mark.skipif(native.level() == "none", reason="the compiled blocks were not built")


def members(dtype=torch.float64, differ=True, samples=(7, 5, 16), **arguments):
    """Three models and a batch for each; their graphs and numbers of samples differ or not."""
    models, batches = [], []
    for k in range(3):
        model, x = make(seed=k if differ else 0, n_function=9 + 4 * k * differ, dtype=dtype, **arguments)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * k
        models.append(model)
        generator = torch.Generator().manual_seed(k)
        batches.append(torch.randn(samples[k], x.shape[1], generator=generator, dtype=dtype))
    return models, batches


def flat_gradient(model):
    return torch.cat(
        [torch.zeros_like(p).view(-1) if p.grad is None else p.grad.view(-1) for p in model.parameters()]
    )


@pytest.fixture(params=["compiled", "one by one"])
def path(request):
    if request.param == "compiled" and native.level() == "none":
        pytest.skip("the compiled blocks were not built")
    with use("torch" if request.param == "one by one" else "compiled"):
        yield request.param


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_gradients_and_statistics_are_those_of_each_alone(path, norm, variant):
    arguments = {k: v for k, v in VARIANTS[variant].items() if k not in ("n_function", "graph")}
    models, batches = members(norm=norm, **arguments)
    together = side_by_side(models)
    # One member's second block lets nothing through: its residual scalar is below 0.
    if models[0].residual and models[0].layers > 1 and models[0].config["learn_residual"]:
        with torch.no_grad():
            models[1].ResBlocks[1].residual_weight.fill_(-0.5)
        together = side_by_side(models)
    for _ in range(2):
        outputs = together(batches)
        assert [tuple(o.shape) for o in outputs] == [(len(x), 4) for x in batches]
        weights = [torch.randn(o.shape, dtype=o.dtype) for o in outputs]
        together.zero_grad()
        sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)).backward()
        for k, (model, x) in enumerate(zip(models, batches, strict=True)):
            model.zero_grad()
            output = model(x)
            (output * weights[k]).sum().backward()
            torch.testing.assert_close(outputs[k], output, rtol=1e-12, atol=1e-12)
            wanted = flat_gradient(model)
            torch.testing.assert_close(together.weights[k].grad, wanted, rtol=1e-10, atol=1e-10)
            found = together.members()[k].state_dict()
            for name, value in model.state_dict().items():
                torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    together.eval()
    for model, x, output in zip(models, batches, together(batches), strict=True):
        torch.testing.assert_close(output, model.eval()(x), rtol=1e-12, atol=1e-12)


@needs_native
@pytest.mark.parametrize("norm", ["layer", "groupbatch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_blocks_run(monkeypatch, norm, dtype):
    models, batches = members(norm=norm, dtype=dtype)
    calls = []
    run = kernel._run

    def counted(*arguments):
        calls.append(1)
        return run(*arguments)

    monkeypatch.setattr(kernel, "_run", counted)
    sum(output.sum() for output in SideBySide(models)(batches)).backward()
    assert len(calls) == 2


@needs_native
@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_change_nothing(monkeypatch, threads, large):
    """Large networks are each shared by all threads, small ones shared out among them."""
    models, batches = members(norm="groupbatch", share_layers=False)
    smallest = min(native._of(model.plan).work * model.channels * 16 for model in models)
    monkeypatch.setattr(native, "_WORTH_A_THREAD", smallest + (not large))
    turns, together_ = [], kernel._together

    def counted(tasks):
        turns.append(len(tasks))
        return together_(tasks)

    monkeypatch.setattr(kernel, "_together", counted)
    found = []
    for n in (1, threads):
        turns.clear()
        together = SideBySide(models)
        before = torch.get_num_threads()
        torch.set_num_threads(n)
        try:
            sum(output.square().sum() for output in together(batches)).backward()
        finally:
            torch.set_num_threads(before)
        found.append([flat.grad for flat in together.weights])
    assert turns == ([threads] * 6 if large else [min(threads, 3)] * 2)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("share_layers", [True, False])
@pytest.mark.parametrize("norm", ["layer", "groupbatch"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_equals_training_each_alone(path, share_layers, norm, dropout):
    models, _ = members(norm=norm, share_layers=share_layers, dropout=dropout)
    together = SideBySide(models)
    together.generators = [torch.Generator().manual_seed(k) for k in range(3)]
    opt = torch.optim.AdamW(together.parameters(), lr=0.01)
    data = torch.Generator().manual_seed(9)
    batches = [
        [torch.randn(6 + k, 5, generator=data, dtype=torch.float64) for k in range(3)] for _ in range(12)
    ]
    targets = [[x[:, :4].sin() for x in step] for step in batches]
    state = torch.get_rng_state()
    for xs, ys in zip(batches, targets, strict=True):
        opt.zero_grad()
        loss = sum((yhat - y).square().mean() for yhat, y in zip(together(xs), ys, strict=True))
        loss.backward()
        opt.step()
    assert torch.equal(torch.get_rng_state(), state)
    trained = together.members()
    for k, model in enumerate(models):
        opt = torch.optim.AdamW(model.parameters(), lr=0.01)
        with torch.random.fork_rng():
            torch.manual_seed(k)
            for xs, ys in zip(batches, targets, strict=True):
                opt.zero_grad()
                (model(xs[k]) - ys[k]).square().mean().backward()
                opt.step()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(trained[k].state_dict()[name], value, rtol=1e-8, atol=1e-8)


def test_shapes_of_x_and_of_the_outputs():
    models, _ = members(differ=False)
    together = SideBySide(models)
    x = torch.randn(6, 5, dtype=torch.float64)
    assert together(x).shape == (6, 3, 4)
    for k, model in enumerate(models):
        torch.testing.assert_close(together(x)[:, k], model(x))
    each = torch.randn(6, 3, 5, dtype=torch.float64)
    for k, model in enumerate(models):
        torch.testing.assert_close(together(each)[:, k], model(each[:, k]))
    assert torch.equal(together(list(each.unbind(1))), together(each))
    assert isinstance(together([x[:2], x[:3], x]), list)
    other, _ = make(graph={"n_input": 2, "n_output": 3})
    mixed = SideBySide([models[0], other])
    outputs = mixed([x, x[:, :2]])
    torch.testing.assert_close(outputs[0], models[0](x))
    torch.testing.assert_close(outputs[1], other(x[:, :2]))
    with pytest.raises(ValueError, match="list of 2 tensors"):
        mixed(x)
    for wrong in (x[:, :3], x[:, None, :].expand(6, 2, 5), x[0]):
        with pytest.raises(ValueError, match=r"\(B, 5\) or \(B, 3, 5\)"):
            together(wrong)
    with pytest.raises(ValueError, match="3 tensors"):
        together([x])
    with pytest.raises(ValueError, match="NaN"):
        together(torch.full_like(x, float("nan")))
    with pytest.raises(TypeError, match="dtype"):
        together(x.float())


def test_the_gradient_for_x():
    models, batches = members(norm="groupbatch")
    batches = [x.requires_grad_() for x in batches]
    found = torch.autograd.grad(sum(o.square().sum() for o in SideBySide(models)(batches)), batches)
    for model, x, grad in zip(models, batches, found, strict=True):
        torch.testing.assert_close(
            grad, torch.autograd.grad(model(x).square().sum(), x)[0], rtol=1e-9, atol=1e-9
        )


def test_there_and_back_changes_nothing():
    models, batches = members(norm="groupbatch", dtype=torch.float32)
    models[1].scaling = object()
    for model, x in zip(models, batches, strict=True):
        model(x)
        model.eval()
    state = torch.get_rng_state()
    back = SideBySide(models).members()
    assert torch.equal(torch.get_rng_state(), state)
    for model, new, x in zip(models, back, batches, strict=True):
        assert torch.equal(model(x), new(x))
        assert not new.training
        assert new.graph == model.graph
        assert getattr(new, "scaling", None) is getattr(model, "scaling", None)
    block: Any = back[0].ResBlocks[0]
    block.lin_in.values.data.zero_()
    assert models[0].ResBlocks[0].lin_in.values.abs().max() > 0


def test_copies_states_and_types():
    models, batches = members(norm="groupbatch", dtype=torch.float32)
    together = SideBySide(models)
    together(batches)
    for other in (copy.deepcopy(together), pickle.loads(pickle.dumps(together))):
        for a, b in zip(other(batches), copy.deepcopy(together)(batches), strict=True):
            assert torch.equal(a, b)
    fresh = SideBySide(members(norm="groupbatch", dtype=torch.float32)[0])
    fresh.load_state_dict(together.state_dict())
    for a, b in zip(fresh.eval()(batches), together.eval()(batches), strict=True):
        assert torch.equal(a, b)
    wide = together.double().train()
    wide([x.double() for x in batches])
    alone = [model.double() for model in models]
    for model, x in zip(alone, batches, strict=True):
        model.float()(x), model.double()(x.double())
    for model, member in zip(alone, wide.members(), strict=True):
        torch.testing.assert_close(
            model.state_dict()["ResBlocks.1.norm.running_var"],
            member.state_dict()["ResBlocks.1.norm.running_var"],
            rtol=1e-5,
            atol=1e-6,
        )


def test_pruned_members_and_large_passes(monkeypatch):
    models, batches = members(share_layers=False)
    models[0].prune(0.2)
    together = SideBySide(models).eval()
    model: Any
    member: Any
    for model, member in zip(models, together.members(), strict=True):
        assert [len(b.lin_in.values) for b in member.ResBlocks] == [
            len(b.lin_in.values) for b in model.ResBlocks
        ]
    monkeypatch.setattr("gsnn.models.SideBySide._PASS_VALUES", 1)
    with torch.no_grad():
        for model, x, output in zip(models, batches, together(batches), strict=True):
            torch.testing.assert_close(output, model.eval()(x))


@needs_scatter
def test_the_other_backend():
    models, batches = members(backend="scatter")
    for model, x, output in zip(models, batches, SideBySide(models)(batches), strict=True):
        torch.testing.assert_close(output, model(x))


def test_what_does_not_go_together():
    models, _ = members()
    other, _ = make(channels=4)
    with pytest.raises(ValueError, match="model 1 differs in 'channels'"):
        SideBySide([models[0], other])
    with pytest.raises(ValueError, match="one dtype"):
        SideBySide([models[0], copy.deepcopy(models[1]).float()])
    with pytest.raises(ValueError, match="training or all in eval"):
        SideBySide([models[0], copy.deepcopy(models[1]).eval()])
    with pytest.raises(ValueError, match="at least one"):
        SideBySide([])
    with pytest.raises(TypeError, match="Linear"):
        SideBySide([cast(Any, torch.nn.Linear(1, 1))])
    models[2].ResBlocks[0].lin_in.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        SideBySide(models)
    assert isinstance(models[0], GSNN)
