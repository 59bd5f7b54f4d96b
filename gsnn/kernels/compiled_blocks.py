"""The kernel ``compiled``: the passes of ``gsnn.kernels._passes``, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gsnn.kernels import _passes as passes
from gsnn.kernels import compiled as native
from gsnn.kernels.form import Form, Weights
from gsnn.kernels.interface import Passed
from gsnn.kernels.plan import Plan


class CompiledBlocks:
    """Float32 and float64 on the CPU; keeps only the state that enters each block."""

    name = "compiled"

    def missing(self) -> str | None:
        """None where the library was built."""
        if native.level() == "none":
            return "the C library was not built when gsnn was installed (pip install with a C compiler)"
        return None

    def refuses(self, state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan) -> str | None:
        """None where compiled code stays inside the tensors; PyTorch's operations tell what is wrong."""
        # A factor that broadcasts over (N, C, B) is read by its strides, whatever they are.
        every = [state, *(tensor for block in blocks for tensor in block[:-1])]
        if not native.usable(every):
            return (
                self.missing() or "it runs contiguous float32 or float64 tensors on the CPU, all of one type"
            )
        if state.shape[1] == 0:
            return "there are no samples"
        if state.shape[0] != plan.n_rows or not all(_fits(block, form, plan, state) for block in blocks):
            return "a tensor has not the size that the plan asks for"
        return None

    def forward(self, state: Tensor, blocks: Sequence[Weights], form: Form, plan: Plan, keep: bool) -> Passed:
        """See :class:`gsnn.kernels.interface.BlockKernel`."""
        return passes.forward(state, blocks, form, plan, keep)

    def backward(
        self,
        grad: Tensor,
        state: Tensor,
        blocks: Sequence[Weights],
        saved: Sequence[Tensor | None],
        form: Form,
        plan: Plan,
        read_grads: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[list[Tensor | None]]]:
        """See :class:`gsnn.kernels.interface.BlockKernel`."""
        states = [tensor for tensor in saved if tensor is not None]
        if not native.usable([*states, *(tensor for block in blocks for tensor in block[:-1])]):
            raise RuntimeError("saved tensors must come back as they were saved, contiguous and of one type")
        return passes.backward(grad, states, blocks, form, plan, read_grads, needed)[:2]


def _fits(w: Weights, form: Form, plan: Plan, state: Tensor) -> bool:
    N, C = plan.n_nodes, form.channels
    per_channel = form.dims is None and w.scale is not None and w.scale.numel() == N * C
    scales = N * C if per_channel else N
    sizes = (len(plan.in_edges) * C, N * C, scales, scales, len(plan.out_edges) * C, len(plan.row_of_edge), 1)
    factor = w.factor
    return (
        all(tensor is None or tensor.numel() == size for tensor, size in zip(w, sizes, strict=False))
        and (w.scale is None) == (w.shift is None)
        and (factor is None or (factor.dtype is state.dtype and factor.device == state.device))
    )
