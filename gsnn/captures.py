"""Captures: what a forward pass leaves of the activations inside a model, for whoever asks.

Each residual block of a model owns one :class:`Capture`. It is in one of three modes:

- ``off``: nothing is left;
- ``on``: the activations before the norm and after the nonlinearity, (B, N*C), which lie on the way to the
  output: ``retain_grad()`` and ``torch.autograd.grad`` give the gradients at them;
- ``aside``: the activations after the nonlinearity, at next to no cost in a network whose blocks run as one
  operation. Gradients of what is computed from them reach the weights, and ``retain_grad()`` gives the full
  gradient at them after ``backward()``; ``torch.autograd.grad`` of the output does not find them.

Several users may ask for captures at once, each under a key of its own, beside the switch that a user sets by
hand: the mode is the most that anybody asks for, and withdrawing takes nothing from the others.

A model of one's own takes part with a ``capture`` in each of its ``ResBlocks``, see :class:`CapturingBlock`::

    class Block(torch.nn.Module):
        def __init__(self, channel_groups):
            super().__init__()
            self.channel_groups = channel_groups  # (N*C,), the function node of each channel
            self.capture = Capture()

        def forward(self, state):
            z = self.lin_in(state)  # (B, N*C)
            h = torch.tanh(z)
            if self.capture.mode != "off":
                self.capture.leave(z, h)
            return self.lin_out(h)
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from torch import Tensor, nn

Mode = Literal["off", "aside", "on"]
MODES: tuple[Mode, ...] = ("off", "aside", "on")

_Pair = tuple[Tensor, Tensor]
_NAMES = ("_last_pre_norm_activation", "_last_activation")


class _Later:
    """Stands for a tensor that is made when it is first read."""


_LATER = _Later()


class Pass:
    """What one forward pass left in one block; its identity tells one pass from another."""

    __slots__ = ("__weakref__", "activation", "inside", "nodes", "pre_norm", "rank")

    def __init__(
        self,
        pre_norm: Tensor | _Later | None = None,
        activation: Tensor | _Later | None = None,
        nodes: Tensor | None = None,
        rank: Tensor | None = None,
        inside: Callable[[], _Pair | None] | None = None,
    ) -> None:
        self.pre_norm = pre_norm
        self.activation = activation
        self.nodes = nodes
        self.rank = rank
        self.inside = inside


class Capture:
    """The captures of one block: its mode, who asked for it, and what the last forward pass left.

    A copied or unpickled capture has the same mode and holds no tensors.

    Attributes:
        mode: ``off``, ``aside`` or ``on``; the most of :meth:`switch` and of all :meth:`ask`.
        last: what the last forward pass left, a :class:`Pass` or None. Reading it and assigning it later
            is how captures are saved and restored.
    """

    mode: Mode
    last: Pass | None

    def __init__(self) -> None:
        self._own: Mode = "off"
        self._asked: dict[str, Mode] = {}
        self.mode = "off"
        self.last = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_asked": dict(self._asked), "last": None}

    def switch(self, mode: Mode) -> None:
        """Set the switch of the user at the keyboard. What others :meth:`ask` for stays on."""
        self._own = _checked(mode)
        self._update()

    def ask(self, key: str, mode: Mode) -> None:
        """Ask for captures under a key, until :meth:`withdraw`; again with the same key changes the mode."""
        self._asked[key] = _checked(mode)
        self._update()

    def withdraw(self, key: str) -> None:
        """Ask no more under this key; where nobody else asks, what was captured is dropped."""
        if self._asked.pop(key, None) is not None:
            self._update()
        if self.mode == "off":
            self.last = None

    def _update(self) -> None:
        self.mode = max((self._own, *self._asked.values()), key=MODES.index)

    def leave(self, pre_norm: Tensor | None, activation: Tensor | None) -> None:
        """For a block's forward pass: what it computed, (B, N*C), as it lies on the way to its output."""
        self.last = Pass(pre_norm, activation)

    def leave_aside(
        self, nodes: Tensor, rank: Tensor | None, inside: Callable[[], _Pair | None] | None = None
    ) -> None:
        """For a forward pass in the mode ``aside``: activations that the output does not depend on.

        Args:
            nodes: (N, C, B), the activations.
            rank: (N,) the row of each node in it, None where they are in order.
            inside: called when the captures are read as (B, N*C): gives both such that ``retain_grad()``
                works, or None where that is no longer possible.
        """
        self.last = Pass(_LATER, _LATER, nodes, rank, inside)

    @property
    def pre_norm(self) -> Tensor | None:
        """(B, N*C) before the norm, z; None where the last pass left none, or it is deleted."""
        return self._read("pre_norm")

    @pre_norm.setter
    def pre_norm(self, value: Tensor | None) -> None:
        if self.last is not None:
            self.last.pre_norm = value
        elif value is not None:
            self.last = Pass(value)

    @pre_norm.deleter
    def pre_norm(self) -> None:
        self.pre_norm = None

    @property
    def activation(self) -> Tensor | None:
        """(B, N*C) after the nonlinearity and dropout; None where the last pass left none."""
        return self._read("activation")

    @activation.setter
    def activation(self, value: Tensor | None) -> None:
        found = self.last
        if value is not None:  # no longer what a forward pass has left
            before, inside = (None, None) if found is None else (found.pre_norm, found.inside)
            self.last = Pass(before, value, inside=inside)
        elif found is not None:
            found.activation = found.nodes = None

    @activation.deleter
    def activation(self) -> None:
        self.activation = None

    def _read(self, name: Literal["pre_norm", "activation"]) -> Tensor | None:
        found = self.last
        if found is None:
            return None
        if isinstance(getattr(found, name), _Later):
            made: tuple[Tensor | None, Tensor | None] | None
            made = None if found.inside is None else found.inside()
            if made is None:
                made = None, None if found.nodes is None else _flat(found.nodes, found.rank)
            if isinstance(found.pre_norm, _Later):
                found.pre_norm = made[0]
            if isinstance(found.activation, _Later):
                found.activation = made[1]
        tensor = getattr(found, name)
        assert not isinstance(tensor, _Later)
        return tensor

    def nodes(self, channels: int) -> tuple[Tensor, Tensor | None] | None:
        """The activations as (N, C, B), and the row of each node, None for in order; without a copy."""
        if self.last is not None and self.last.nodes is not None:
            return self.last.nodes, self.last.rank
        found = self.activation
        return None if found is None else (found.t().unflatten(0, (-1, channels)), None)

    def token(self) -> Any:
        """An object that is another one after every pass that left captures; None without any."""
        return self.last

    @contextmanager
    def repeating(self, mode: Mode) -> Iterator[None]:
        """For a forward pass that is run again: in the mode that it had, and leaving nothing."""
        found, last = self.mode, self.last
        self.mode = mode
        try:
            yield
        finally:
            self.mode, self.last = found, last


class CapturingBlock(Protocol):
    """What is asked of each block in the ``ResBlocks`` of a model."""

    @property
    def channel_groups(self) -> Tensor:
        """The function node of each channel: (N*C,)."""

    @property
    def capture(self) -> Capture:
        """What the forward pass fills where its mode is not ``off``."""


class CapturingModel(Protocol):
    """What is asked of a model.

    It may have ``homo_names`` (the function nodes' come first), ``norm`` (its name) and ``checkpoint``.
    """

    @property
    def ResBlocks(self) -> Sequence[CapturingBlock]:
        """Its L blocks in order."""


class CaptureNames:
    """A block's ``capture`` by its older names; ``_store_activations`` is False, 'aside' or True."""

    capture: Capture

    @property
    def _store_activations(self) -> bool | str:
        return "aside" if self.capture.mode == "aside" else self.capture.mode == "on"

    @_store_activations.setter
    def _store_activations(self, store: bool | str) -> None:
        self.capture.switch("aside" if store == "aside" else "on" if store else "off")

    @_store_activations.deleter
    def _store_activations(self) -> None:
        self.capture.switch("off")

    @property
    def _last_pre_norm_activation(self) -> Tensor | None:
        return self.capture.pre_norm

    @_last_pre_norm_activation.setter
    def _last_pre_norm_activation(self, value: Tensor | None) -> None:
        self.capture.pre_norm = value

    @_last_pre_norm_activation.deleter
    def _last_pre_norm_activation(self) -> None:
        del self.capture.pre_norm

    @property
    def _last_activation(self) -> Tensor | None:
        return self.capture.activation

    @_last_activation.setter
    def _last_activation(self, value: Tensor | None) -> None:
        self.capture.activation = value

    @_last_activation.deleter
    def _last_activation(self) -> None:
        del self.capture.activation


class _Named(Capture):
    """Given to a block that has the names of :class:`CaptureNames` as plain attributes, and no capture."""

    def __init__(self, block: Any) -> None:
        self._block = block
        self._asked = {}
        self._found: bool | str = False

    @property
    def mode(self) -> Mode:  # type: ignore[override]
        return "on" if self._block._store_activations else "off"

    @property
    def last(self) -> Pass | None:
        return Pass(*(getattr(self._block, name, None) for name in _NAMES))

    @last.setter
    def last(self, found: Pass | None) -> None:
        for name, field in zip(_NAMES, ("pre_norm", "activation"), strict=True):
            setattr(self._block, name, None if found is None else getattr(found, field))

    def ask(self, key: str, mode: Mode) -> None:
        if not self._asked:
            self._found = self._block._store_activations
        self._asked[key] = mode
        self._block._store_activations = True

    def _update(self) -> None:
        self._block._store_activations = bool(self._asked) or self._found

    def token(self) -> Any:
        return self.activation if self.pre_norm is None else self.pre_norm


class Captures:
    """One user's access to the captures of all blocks of a model.

    Args:
        model: a :class:`CapturingModel`.
        key: what it asks under; by default one of its own.

    Attributes:
        blocks: the L blocks.

    Raises:
        TypeError: the model has no blocks with captures.
    """

    def __init__(self, model: nn.Module, key: str | None = None) -> None:
        self.blocks: list[Any] = list(getattr(model, "ResBlocks", ()))
        if not self.blocks or not all(map(_has_captures, self.blocks)):
            raise TypeError(
                "model must have ResBlocks with channel_groups and a capture (gsnn.captures.Capture), as "
                f"GSNN has; got {type(model).__name__} without them"
            )
        self.L = len(self.blocks)
        for block in self.blocks:
            if not hasattr(block, "capture"):
                block.capture = _Named(block)
        self._every = [block.capture for block in self.blocks]
        self._key = uuid.uuid4().hex if key is None else key
        self._before: list[Any] = [None] * self.L

    def __iter__(self) -> Iterator[Capture]:
        return iter(self._every)

    def on(self, mode: Mode = "on") -> None:
        """Ask for captures of the next forward passes, until :meth:`off`."""
        self._before = [capture.token() for capture in self]
        for capture in self:
            capture.ask(self._key, mode)

    def off(self) -> None:
        """Ask no more. A block that nobody else asks drops its captures, any other keeps them."""
        self._before = [None] * self.L
        for capture in self:
            capture.withdraw(self._key)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Captures on for the duration of a with statement; then modes and tensors are as they were."""
        kept = [capture.last for capture in self]
        self.on()
        try:
            yield
        finally:
            self.off()
            for capture, last in zip(self, kept, strict=True):
                capture.last = last

    def pre_norms(self) -> list[Tensor]:
        """z of each block as the last forward pass left it, (B, N*C).

        Raises:
            RuntimeError: no forward pass since :meth:`on` has left them.
        """
        return self._tensors("pre_norm")

    def activations(self) -> list[Tensor]:
        """The same for h, after the nonlinearity and dropout."""
        return self._tensors("activation")

    def _tensors(self, name: str) -> list[Tensor]:
        found = []
        for layer, (capture, before) in enumerate(zip(self, self._before, strict=True)):
            tensor = getattr(capture, name)
            if tensor is None or capture.token() is before:
                raise RuntimeError(
                    f"the forward pass left no capture in block {layer} ({name} is missing): the model must "
                    "fill it while the mode of its capture is not 'off'"
                )
            found.append(tensor)
        return found


def _has_captures(block: Any) -> bool:
    named = isinstance(getattr(block, "capture", None), Capture) or hasattr(block, "_store_activations")
    return named and hasattr(block, "channel_groups")


def _checked(mode: Any) -> Mode:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def _flat(nodes: Tensor, rank: Tensor | None) -> Tensor:
    """(N, C, B) -> (B, N*C) in the order of the nodes."""
    return (nodes if rank is None else nodes.index_select(0, rank)).flatten(0, 1).t()
