"""One contract for all kernels, to equal the differentiable reference; which one runs can be asked and told.

The reference itself is held against dense matrices by tests/test_gsnn.py, and here by finite differences.
"""

import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_gsnn import make
from test_native import NORMS, make_blocks, make_plan

from gsnn import kernels
from gsnn.kernels import KERNELS, chosen, scatter, use
from gsnn.kernels.form import Form
from gsnn.kernels.reference import plain_stack
from gsnn.kernels.registry import SEPARATE, asked, pick
from gsnn.kernels.stack import Stack
from gsnn.models.SideBySide import SideBySide

PRESENT = [name for name, kernel in KERNELS.items() if kernel.missing() is None]
needs_compiled = pytest.mark.skipif("compiled" not in PRESENT, reason="the compiled blocks were not built")


def linear_loss(tensors, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return sum((torch.randn(t.shape, generator=generator, dtype=t.dtype) * t).sum() for t in tensors)


class KernelContract:
    """What every kernel must do. A subclass names it; a test below sees that none is without."""

    name: str

    @pytest.fixture(autouse=True)
    def _kernel(self):
        if self.name not in PRESENT:
            pytest.skip(f"{self.name}: {KERNELS[self.name].missing()}")

    def case(self, norm, *, optional=True, aside=True, samples=40, channels=5, factor=None):
        plan, form = make_plan(), Form(channels, *NORMS[norm], aside)
        state, blocks = make_blocks(
            plan, form, samples, dtype=torch.float64, optional=optional, factor=factor and factor(plan)
        )
        return plan, form, state, blocks

    def run(self, form, plan, state, blocks):
        """The real rows of the result, the statistics and what was given aside."""
        flat = [tensor for weights in blocks for tensor in weights]
        result, *others = Stack.apply(KERNELS[self.name], form, plan, True, None, state, *flat)
        return result[plan.row_of_edge], others[: 2 * len(blocks)], others[2 * len(blocks) :]

    @pytest.mark.parametrize("optional", [True, False])
    @pytest.mark.parametrize("norm", NORMS)
    def test_values_statistics_and_gradients_are_those_of_the_reference(self, norm, optional):
        plan, form, state, blocks = self.case(norm, optional=optional)
        assert KERNELS[self.name].refuses(state, blocks, form, plan) is None
        flat = [tensor for weights in blocks for tensor in weights]
        statistics: list[Any] = []
        expected, expected_aside = plain_stack(state, flat, form, plan, statistics=statistics)
        result, found, aside = self.run(form, plan, state, blocks)
        torch.testing.assert_close(result, expected[plan.row_of_edge], rtol=1e-9, atol=1e-10)
        assert len(aside) == len(expected_aside)
        torch.testing.assert_close(list(aside), expected_aside, rtol=1e-9, atol=1e-10)
        for a, b in zip(found, statistics, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert not a.requires_grad
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
        leaves = [state, *(t for weights in blocks for t in weights[:-1] if t is not None)]
        wanted = torch.autograd.grad(linear_loss([expected[plan.row_of_edge], *expected_aside]), leaves)
        got = torch.autograd.grad(linear_loss([result, *aside]), leaves)
        rows = plan.row_of_edge
        torch.testing.assert_close(got[0][rows], wanted[0][rows], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(got[1:], wanted[1:], rtol=1e-8, atol=1e-9)

    @pytest.mark.parametrize("channels", [1, 5])
    def test_without_a_norm_scale_and_shift_map(self, channels):
        """Of each node, or of each of its channels; 150 samples are more than a slice."""
        plan, form, state, blocks = self.case("none", samples=150)
        generator = torch.Generator().manual_seed(3)
        size = plan.n_nodes * channels
        blocks = [
            w._replace(
                scale=torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_(),
                shift=torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_(),
            )
            for w in blocks
        ]
        assert KERNELS[self.name].refuses(state, blocks, form, plan) is None
        flat = [tensor for weights in blocks for tensor in weights]
        expected = plain_stack(state, flat, form, plan)[0][plan.row_of_edge]
        result = self.run(form, plan, state, blocks)[0]
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-10)
        leaves = [t for weights in blocks for t in weights[:-1] if t is not None]
        got, wanted = (torch.autograd.grad(linear_loss([t]), leaves) for t in (result, expected))
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)

    @pytest.mark.parametrize("shape", ["full", "node", "sample"])
    def test_a_factor_broadcasts(self, shape):
        size = {"full": lambda n: (n, 5, 40), "node": lambda n: (n, 1, 1), "sample": lambda n: (n, 1, 40)}[
            shape
        ]
        plan, form, state, blocks = self.case("layer", factor=lambda plan: size(plan.n_nodes))
        flat = [tensor for weights in blocks for tensor in weights]
        expected = plain_stack(state, flat, form, plan)[0][plan.row_of_edge]
        result = self.run(form, plan, state, blocks)[0]
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-10)
        got, wanted = (torch.autograd.grad(linear_loss([t]), flat[0]) for t in (result, expected))
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)

    def test_only_the_gradients_that_are_asked_for(self):
        plan, form, state, blocks = self.case("groupbatch", aside=False)
        blocks[0].in_bias.requires_grad_(False)
        result, _, _ = self.run(form, plan, state.detach(), blocks)
        assert len(torch.autograd.grad(result.sum(), [blocks[0].out_values, blocks[1].scale])) == 2

    def test_what_came_in_stays_and_the_backward_pass_may_be_repeated(self):
        plan, form, state, blocks = self.case("layer")
        before = [t.detach().clone() for w in blocks for t in (state, *w) if t is not None]
        result, _, _ = self.run(form, plan, state, blocks)
        loss = linear_loss([result])
        first = torch.autograd.grad(loss, blocks[0].in_values, retain_graph=True)
        second = torch.autograd.grad(loss, blocks[0].in_values)
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        after = [t.detach() for w in blocks for t in (state, *w) if t is not None]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))

    def test_second_derivatives(self):
        """The derivative of a gradient's size, along one direction, by central differences."""
        plan, form, state, blocks = self.case("rms", samples=3, channels=4, aside=False)
        direction = torch.randn(blocks[0].in_values.shape, generator=torch.Generator().manual_seed(2)) / 10

        def size(step, create_graph=False):
            moved = (blocks[0].in_values.detach() + step * direction).requires_grad_()
            result, _, _ = self.run(form, plan, state, [blocks[0]._replace(in_values=moved), *blocks[1:]])
            (grad,) = torch.autograd.grad(result.square().sum(), moved, create_graph=create_graph)
            return grad.square().sum(), moved

        value, at = size(0.0, create_graph=True)
        (second,) = torch.autograd.grad(value, at)
        difference = (size(1e-6)[0] - size(-1e-6)[0]) / 2e-6
        assert difference.abs() > 1
        torch.testing.assert_close((second * direction).sum(), difference, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("norm", ["none", "layer", "rms", "groupbatch", "batch"])
    @pytest.mark.parametrize("share_layers", [True, False])
    def test_a_model_gives_the_same(self, norm, share_layers):
        """Outputs, gradients, running statistics and captures given aside, with dropout."""
        found = []
        for name in ("reference", self.name):
            torch.manual_seed(0)
            model, x = make(norm=norm, share_layers=share_layers, dropout=0.3)
            for block in model.ResBlocks:
                block.capture.ask("test", "aside")
            with use(name):
                assert {choice.kernel for choice in chosen(model, x)} == {name}
                torch.manual_seed(5)
                output = model(x)
                output.square().sum().backward()
            captures = [(block.capture.pre_norm, block.capture.activation) for block in model.ResBlocks]
            grads = [p.grad for p in model.parameters()]
            found.append(
                [output, *model.state_dict().values(), *grads, *(t for pair in captures for t in pair)]
            )
        assert all(t is not None for t in found[1])
        torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-9)


class TestCompiled(KernelContract):
    name = "compiled"


class TestTorch(KernelContract):
    name = "torch"


class TestReference(KernelContract):
    name = "reference"


#: What is asked of torch-scatter, by loops over segments, so that the kernel is tested where it is not built.
SEGMENTS = SimpleNamespace(
    gather_csr=lambda z, starts: z.repeat_interleave(starts.diff(), 0),
    segment_csr=lambda messages, starts: torch.stack(
        [messages[a:b].sum(0) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
    ),
)


@pytest.fixture
def segments(monkeypatch):
    """torch-scatter, or what stands for it."""
    if find_spec("torch_scatter") is None:
        monkeypatch.setitem(sys.modules, "torch_scatter", SEGMENTS)
    scatter._kernels.cache_clear()
    yield
    scatter._kernels.cache_clear()


class TestScatter(KernelContract):
    name = "scatter"

    @pytest.fixture(autouse=True)
    def _kernel(self, segments):
        assert KERNELS[self.name].missing() is None


def test_scatter_is_chosen_or_says_what_is_missing(segments, monkeypatch):
    model, x = make(layers=2)
    with use("scatter"):
        (choice, _) = chosen(model, x)
        assert choice.kernel == "scatter" and choice.why_not["torch"] == "asked after 'scatter'"
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    scatter._kernels.cache_clear()
    assert (
        chosen(model, x)[0].why_not["scatter"].startswith("needs torch-scatter: pip install 'gsnn[scatter]'")
    )
    with pytest.raises(RuntimeError, match="the kernel 'scatter' cannot run here: needs torch-scatter: pip"):
        use("scatter")
    assert asked() == ("compiled", "torch")


def test_every_kernel_is_under_contract():
    assert {contract.name for contract in KernelContract.__subclasses__()} == set(KERNELS)
    assert all(kernel.name == name for name, kernel in KERNELS.items())


@pytest.mark.parametrize("norm", NORMS)
def test_the_reference_agrees_with_finite_differences(norm):
    plan, form = make_plan(n_function=4), Form(2, *NORMS[norm])
    state, blocks = make_blocks(plan, form, 3, dtype=torch.float64, optional=True)
    flat = [tensor for weights in blocks for tensor in weights]
    assert torch.autograd.gradcheck(lambda *given: plain_stack(state, given, form, plan)[0], flat)


def test_use_sets_and_puts_back():
    usual = asked()
    with use("torch"):
        assert asked() == ("torch",)
        with use("reference"):
            assert asked() == ("reference",)
        assert asked() == ("torch",)
        use(None)
        assert asked() == usual == ("compiled", "torch")
    assert asked() == usual
    try:
        use("torch")
        assert asked() == ("torch",)
    finally:
        use(None)


def test_use_refuses(monkeypatch):
    with pytest.raises(ValueError, match=f"name must be one of {', '.join(KERNELS)}, or None, got 'cuda'"):
        use("cuda")
    monkeypatch.setattr("gsnn.kernels.compiled._library", None)
    with pytest.raises(
        RuntimeError, match="the kernel 'compiled' cannot run here: the C library was not built"
    ):
        use("compiled")
    assert asked() == ("compiled", "torch")


@needs_compiled
def test_chosen_says_which_and_why_not():
    model, x = make(layers=2)
    choices = chosen(model, x)
    assert [choice.kernel for choice in choices] == ["compiled", "compiled"]
    assert choices[0].why_not == {
        "torch": "asked after 'compiled'",
        "reference": "use('reference') was not called",
        "scatter": KERNELS["scatter"].missing() or "use('scatter') was not called",
    }
    half, x16 = make(layers=2, dtype=torch.bfloat16)
    (choice, _) = chosen(half, x16)
    assert choice.kernel == "torch" and "float32 or float64" in choice.why_not["compiled"]
    assert "no samples" in chosen(model, x[:0])[0].why_not["compiled"]
    with use("torch"):
        assert chosen(model, x)[0].why_not["compiled"] == "use('compiled') was not called"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"nonlin": torch.nn.GELU}, "the nonlinearity is not ELU"),
        ({"norm": "softmax"}, "the norm is softmax"),
        ({"norm": "layer", "norm_first": False}, "the norm comes after the nonlinearity"),
        ({"node_mlp": True}, "there is a node MLP"),
    ],
)
def test_chosen_says_why_steps_are_separate(options, reason):
    model, x = make(layers=1, **options)
    (choice,) = chosen(model, x)
    assert choice.kernel == SEPARATE
    assert set(choice.why_not) == set(KERNELS) and reason in choice.why_not["torch"]


def test_chosen_follows_modes_and_captures():
    model, x = make(norm="groupbatch", layers=1)
    usual = chosen(model, x)[0].kernel
    model.eval()
    assert chosen(model, x)[0].kernel == usual
    model.ResBlocks[0]._store_activations = True
    assert "captures" in chosen(model, x)[0].why_not["torch"]
    with use("torch"):
        (choice,) = chosen(model, x)
    assert choice.kernel == SEPARATE and set(choice.why_not) == set(KERNELS)


def test_chosen_changes_nothing():
    model, x = make(norm="groupbatch", dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    chosen(model, x)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_chosen_of_networks_side_by_side():
    models = [make(layers=2, seed=seed)[0] for seed in (0, 1)]
    x = make(layers=2)[1]
    with use("torch"):
        assert [choice.kernel for choice in chosen(SideBySide(models), x)] == ["torch"] * 4
    with pytest.raises(TypeError, match="model must be a GSNN or SideBySide, got Linear"):
        chosen(torch.nn.Linear(1, 1), x)


def test_what_a_kernel_refuses_goes_to_the_next():
    class Refusing:
        name = "refusing"

        def missing(self):
            return None

        def refuses(self, state, blocks, form, plan):
            return "never"

    plan, form = make_plan(), Form(4, (1,), True)
    state, blocks = make_blocks(plan, form, 3, dtype=torch.float64, optional=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.registry, "_order", (Refusing(), KERNELS["torch"]))
        assert pick(state, blocks, form, plan) is KERNELS["torch"]
