"""The compiled blocks against the same by PyTorch's operations, which have a dense oracle."""

import ctypes
import gc
import itertools
import multiprocessing
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from dense_oracle import random_graph

from gsnn.kernels import compiled as native
from gsnn.kernels.form import Form, Weights
from gsnn.kernels.plan import Plan
from gsnn.kernels.registry import KERNELS, use
from gsnn.kernels.stack import Stack
from gsnn.models.GSNN import GSNN

needs_native = pytest.mark.skipif(native.level() == "none", reason="the compiled blocks were not built")
LEVELS = ("plain", "avx2", "avx512")
NORMS = {
    "none": (None, False),
    "layer": ((1,), True),
    "rms": ((1,), False),
    "groupbatch": ((1, 2), True),
    "batch": ((2,), True),
}


def graph(seed=0, n_function=7, density=0.4):
    generator = torch.Generator().manual_seed(seed)
    return random_graph(generator, n_function=n_function, density=density)


def make_plan(seed=0, n_function=7, density=0.4):
    edges, names = graph(seed, n_function, density)
    return GSNN(edges, names, 2, 1).plan


def draw_factor(generator, shape, turned):
    """In memory as (N, C, B), or with the samples first, as a mask of samples x nodes is given."""
    if not turned:
        return torch.rand(shape, generator=generator)
    return torch.rand(shape[2], shape[1], shape[0], generator=generator).permute(2, 1, 0)


def make_blocks(plan, form, samples, *, dtype, optional, factor=None, turned=False, n_blocks=2, seed=0):
    """State, blocks and the leaves among them that take gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape, shift=0.0):
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.7 + shift
        return values.to(dtype).requires_grad_()

    N, C, E = plan.n_nodes, form.channels, len(plan.row_of_edge)
    state = torch.zeros(plan.n_rows, samples, dtype=dtype)
    rows = torch.randn(E, samples, generator=generator, dtype=torch.float64)
    state[plan.row_of_edge] = rows.to(dtype)
    state.requires_grad_()
    blocks = [
        Weights(
            in_values=leaf(len(plan.in_edges) * C),
            in_bias=leaf(N * C) if optional else None,
            scale=leaf(N, shift=1.0) if optional and form.dims else None,
            shift=leaf(N) if optional and form.dims else None,
            out_values=leaf(len(plan.out_edges) * C),
            out_bias=leaf(E) if optional else None,
            residual=leaf(shift=1.0).detach().abs().requires_grad_() if optional else None,
            factor=None if factor is None else draw_factor(generator, factor, turned).to(dtype),
        )
        for _ in range(n_blocks)
    ]
    return state, blocks


def gradients(kernel, form, plan, state, blocks, seed=1):
    """Every result and every gradient of one stack, for a random linear loss on all that it gives."""
    flat = [tensor for weights in blocks for tensor in weights]
    result, *others = Stack.apply(KERNELS[kernel], form, plan, True, None, state, *flat)
    aside = others[2 * len(blocks) :]
    generator = torch.Generator().manual_seed(seed)
    real = result[plan.row_of_edge]
    loss = sum(
        (torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) * t).sum()
        for t in (real, *aside)
    )
    leaves = [state, *(t for weights in blocks for t in weights[:-1] if t is not None)]
    grads = torch.autograd.grad(loss, leaves)
    state_grad = grads[0][plan.row_of_edge]
    return [real, *(t for t in others if t is not None), state_grad, *grads[1:]]


def assert_same(plan, form, samples, dtype, rtol, **options):
    state, blocks = make_blocks(plan, form, samples, dtype=dtype, **options)
    expected = gradients("torch", form, plan, state, blocks)
    found = gradients("compiled", form, plan, state, blocks)
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        scale = max(float(b.detach().abs().max()), 1.0)
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * scale, msg=partial("tensor {}: {}".format, k))


@needs_native
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("level", LEVELS)
def test_results_and_gradients_equal_those_of_pytorch(norm, level, monkeypatch):
    if LEVELS.index(level) > native._level:
        pytest.skip(f"this machine has no {level}")
    monkeypatch.setattr(native, "_level", LEVELS.index(level))
    dims, centre = NORMS[norm]
    plan = make_plan()
    # Channels and samples on, below and above whole vectors; 150 is more than a slice.
    for channels, samples, optional, aside in itertools.product(
        (1, 5, 8, 19), (3, 16, 150), (True, False), (True, False)
    ):
        form = Form(channels, dims, centre, aside)
        assert_same(plan, form, samples, torch.float64, 1e-9, optional=optional)


@needs_native
@pytest.mark.parametrize("norm", NORMS)
def test_single_precision(norm):
    form = Form(8, *NORMS[norm])
    assert_same(make_plan(), form, 40, torch.float32, 2e-4, optional=True)


@needs_native
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", ["full", "node", "sample"])
def test_constant_factors_broadcast(shape, turned):
    plan, samples = make_plan(), 150
    factor = {
        "full": (plan.n_nodes, 4, samples),
        "node": (plan.n_nodes, 1, 1),
        "sample": (plan.n_nodes, 1, samples),
    }
    for aside in (False, True):
        form = Form(4, (1,), True, aside)
        assert_same(
            plan, form, samples, torch.float64, 1e-11, optional=True, factor=factor[shape], turned=turned
        )


@needs_native
@pytest.mark.parametrize("samples", [3, 16, 150])
def test_without_gradients_two_states_take_turns(samples):
    plan, form = make_plan(), Form(8, (1,), True)
    state, blocks = make_blocks(plan, form, samples, dtype=torch.float64, optional=True, n_blocks=5)
    flat = [tensor for weights in blocks for tensor in weights]
    before = state.detach().clone()
    expected = Stack.apply(KERNELS["torch"], form, plan, False, None, state, *flat)[0]
    for _ in range(3):  # memory that was given back too early would by now hold something else
        found = Stack.apply(KERNELS["compiled"], form, plan, False, None, state, *flat)[0]
        torch.testing.assert_close(
            found[plan.row_of_edge], expected[plan.row_of_edge], rtol=1e-10, atol=1e-10
        )
    assert torch.equal(state, before)


@needs_native
def test_nodes_without_edges_on_one_side():
    # 0 -> 1 only: node 0 is fed by the input, node 1 feeds the output, node 2 is alone.
    edge_index = torch.tensor([[0, 3, 1], [1, 0, 4]])
    plan = Plan(edge_index, 3, 1, 1)
    assert_same(plan, Form(3, (1,), True), 5, torch.float64, 1e-11, optional=True)


@needs_native
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(native, "_WORTH_A_THREAD", 0)
    plan = make_plan(n_function=150, density=0.05)
    state, blocks = make_blocks(plan, Form(8, (1,), True), 64, dtype=torch.float32, optional=True)
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(gradients("compiled", Form(8, (1,), True), plan, state, blocks))
    finally:
        torch.set_num_threads(1)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@needs_native
def test_what_is_not_finite_reaches_the_outputs():
    edge_index_dict, names = graph()
    torch.manual_seed(0)
    model = GSNN(edge_index_dict, names, 4, 3)
    x = torch.randn(5, len(names["input"]))
    x[2, 0] = torch.inf
    found = model(x)
    with use("torch"):
        expected = model(x)
    assert not expected[2].isfinite().all()
    assert torch.equal(found.isnan(), expected.isnan())
    assert found[[0, 1, 3, 4]].isfinite().all()


@needs_native
def test_no_sample_gives_no_gradient():
    edges, names = graph()
    model = GSNN(edges, names, 4, 2)
    output = model(torch.randn(0, 5))
    assert output.shape == (0, 4)
    output.sum().backward()
    gradients_ = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients_)


@needs_native
def test_elu_is_exact_near_zero_and_far_from_it():
    # One node, one edge in, one out, all weights 1: the result is elu(x).
    plan = Plan(torch.tensor([[1, 0], [0, 2]]), 1, 1, 1)
    x = torch.cat(
        [torch.linspace(-120, 5, 400), torch.tensor([-1e-3, -1e-6, -1e-20, 0.0, 1e-20, 3e38, -3e38])]
    )
    for dtype, rtol in ((torch.float32, 3e-7), (torch.float64, 1e-15)):
        state = torch.zeros(plan.n_rows, len(x), dtype=dtype)
        state[plan.row_of_edge[0]] = x.to(dtype)
        one = torch.ones(1, dtype=dtype)
        weights = Weights(one, None, None, None, one, None, None, None)
        (result,) = Stack.apply(
            KERNELS["compiled"], Form(1, None, False), plan, False, None, state, *weights
        )[:1]
        expected = torch.where(x > 0, x.double(), torch.special.expm1(x.to(dtype).double()))
        torch.testing.assert_close(result[plan.row_of_edge[1]].double(), expected, rtol=rtol, atol=0)


@needs_native
def test_the_backward_pass_runs_twice_and_leaves_its_gradient_alone():
    plan = make_plan(n_function=40)
    state, blocks = make_blocks(plan, Form(8, (1,), True), 64, dtype=torch.float32, optional=True)
    flat = [tensor for weights in blocks for tensor in weights]
    result = Stack.apply(KERNELS["compiled"], Form(8, (1,), True), plan, True, None, state, *flat)[0]
    grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
    before = grad.clone()
    first = torch.autograd.grad(result, [state, flat[0]], grad, retain_graph=True)
    second = torch.autograd.grad(result, [state, flat[0]], grad)
    assert torch.equal(grad, before)
    rows = plan.row_of_edge
    assert torch.equal(first[0][rows], second[0][rows]) and torch.equal(first[1], second[1])


@needs_native
def test_memory_is_recycled_only_when_nothing_refers_to_it():
    pool = native._Pool()
    like = torch.empty(0)
    first = pool.empty((1000, 64), like)
    row, address = first[5], first.data_ptr()
    assert address % 64 == 0
    del first
    gc.collect()
    other = pool.empty((1000, 64), like)
    assert other.data_ptr() != address  # a view still lives
    del row
    gc.collect()
    again = pool.empty((1000, 64), like)
    assert again.data_ptr() == address
    del other, again
    gc.collect()
    sizes = {pool.empty((1000 + k, 64), like).shape[0] for k in range(20)}
    assert (
        len(sizes) == 20 and sum(map(len, pool._free.values())) <= 3
    )  # other sizes replace what is not used


@needs_native
def test_results_of_one_pass_survive_the_next():
    edge_index_dict, names = graph(n_function=60, density=0.3)
    model = GSNN(edge_index_dict, names, 8, 2)
    x = torch.randn(64, len(names["input"]), generator=torch.Generator().manual_seed(0))
    state = model(x, ret_edge_out=True)
    kept = state.detach().clone()
    model(2 * x).sum().backward()
    assert torch.equal(state, kept)


def _forward_in_child(model, x, queue):
    queue.put(model(x).detach().numpy())


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(native, "_WORTH_A_THREAD", 0)
    edge_index_dict, names = graph(n_function=30, density=0.3)
    model = GSNN(edge_index_dict, names, 8, 2)
    x = torch.randn(16, len(names["input"]))
    try:
        torch.set_num_threads(2)
        expected = model(x).detach()
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_forward_in_child, args=(model, x, queue))
        child.start()
        found = torch.from_numpy(queue.get(timeout=60))
        child.join(timeout=60)
    finally:
        torch.set_num_threads(1)
    assert child.exitcode == 0 and torch.equal(found, expected)


@needs_native
def test_a_build_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(native, "_VERSION", native._VERSION + 1)
    with pytest.warns(
        UserWarning, match="built from another version of the package or for another machine.*reinstall"
    ):
        library, _ = native._load()
    assert library is None


def test_the_structures_match_those_of_the_source():
    """Each field of blocks.c, in order, is a field here: a mismatch would read wild pointers."""
    source = (native.Path(native.__file__).parent / "csrc" / "blocks.c").read_text()
    for name, fields in (
        ("plan_t", native._PlanArguments._fields_),
        ("block_t", native.BlockArguments._fields_),
    ):
        body = source[: source.index(f"}} {name};")].rsplit("typedef struct {", 1)[1]
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        declared = []
        for statement in body.split(";"):
            text = statement.rsplit("*/", 1)[-1].strip()
            for keyword in ("const", "void", "int64_t", "double"):
                text = text.replace(f"{keyword} ", "")
            declared += [part.strip(" *\n") for part in text.split(",") if part.strip()]
        assert declared == [field[0] for field in fields]
        assert all(ctypes.sizeof(field[1]) == 8 for field in fields)


@needs_native
def test_a_batch_of_one_stays_finite_under_a_norm_over_the_batch():
    """Without variance the norm multiplies by 316 in every block; what only pads must not take part."""
    plan, form = make_plan(), Form(8, (2,), True)
    state, blocks = make_blocks(plan, form, 1, dtype=torch.float32, optional=True, n_blocks=30)
    assert all(t.isfinite().all() for t in gradients("compiled", form, plan, state, blocks))


@needs_native
def test_a_failure_to_start_threads_is_no_failure(monkeypatch):
    monkeypatch.setattr(native, "_WORTH_A_THREAD", 0)

    class Full:
        def submit(self, *_):
            raise RuntimeError("can't start new thread")

    plan, form = make_plan(), Form(8, (1,), True)
    state, blocks = make_blocks(plan, form, 64, dtype=torch.float32, optional=True)
    expected = gradients("compiled", form, plan, state, blocks)
    monkeypatch.setattr(native, "_pool", lambda threads: Full())
    try:
        torch.set_num_threads(3)
        found = gradients("compiled", form, plan, state, blocks)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_native
def test_what_does_not_fit_is_left_to_pytorch_which_says_so():
    edges, names = graph()
    model = GSNN(edges, names, 4, 2)
    with pytest.raises((IndexError, RuntimeError)):
        model.ResBlocks[0](torch.randn(model.plan.n_rows + 3, 64)[:5], model.plan)
    mask = torch.ones(model.plan.n_nodes, 1, 1, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        model.ResBlocks[0](torch.randn(model.plan.n_rows, 64), model.plan, mask)
    with torch.no_grad():
        block: Any = model.ResBlocks[0]
        block.norm.weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.randn(4, 5))


@needs_native
def test_a_frozen_residual_gets_no_gradient_and_results_may_be_changed_in_place():
    edges, names = graph()
    model = GSNN(edges, names, 4, 2, learn_residual=False)
    plan = model.plan
    state = torch.randn(plan.n_rows, 64, requires_grad=True)
    model.ResBlocks[0](state, plan).mul_(2).sum().backward()
    assert state.grad is not None and state.grad.isfinite().all()


@needs_native
def test_a_gradient_with_a_lazy_sign_is_the_gradient():
    plan, form = make_plan(), Form(4, (1,), True)
    state, blocks = make_blocks(plan, form, 16, dtype=torch.float32, optional=True)
    flat = [tensor for weights in blocks for tensor in weights]
    result = Stack.apply(KERNELS["compiled"], form, plan, True, None, state, *flat)[0]
    lazy = torch.randn(*result.shape, dtype=torch.complex64).conj().imag
    assert lazy.is_neg()
    found = torch.autograd.grad(result, state, lazy, retain_graph=True)[0]
    expected = torch.autograd.grad(result, state, lazy.resolve_neg())[0]
    assert torch.equal(found[plan.row_of_edge], expected[plan.row_of_edge])


def _other_library():
    """A whole library of this machine that is not ours."""
    return next(Path(safetensors.__file__).parent.glob("_safetensors*.so")).read_bytes()


def _of_another_machine():
    """Ours, but for the number of the processor in its header."""
    content = bytearray(next(Path(native.__file__).parent.glob("csrc/_blocks*.so")).read_bytes())
    content[18] ^= 0xFF
    return bytes(content)


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="the headers of libraries are others elsewhere")
@pytest.mark.parametrize("content", [lambda: b"not a library", _other_library, _of_another_machine, bytes])
def test_a_foreign_or_damaged_library_is_not_used(content, tmp_path, monkeypatch):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "_blocks.so").write_bytes(content())
    monkeypatch.setattr(native, "__file__", str(tmp_path / "compiled.py"))
    message = r"_blocks.so was built .* is not used: reinstall it \(pip install -e \.\)"
    with pytest.warns(UserWarning, match=message):
        assert native._load() == (None, 0)
