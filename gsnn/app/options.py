"""Options of a run, each with the help that the command line shows.

As in :mod:`gsnn.app.cli`, only what typer needs is imported here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gsnn._checks import whole

if TYPE_CHECKING:
    from gsnn.models.norms import Norm


def _option(
    default: Any, says: str, typed: Any = None, read: Callable[[Any], Any] = lambda given: given
) -> Any:
    """A field with a ``--name`` of this default and help.

    Its type on the command line is the default's unless ``typed``; ``read`` makes the field of what it gives.
    """
    told = {"help": says, "type": type(default) if typed is None else typed, "read": read}
    return field(default=default, metadata=told)


def _number_or_text(given: str | None) -> int | str | None:
    try:
        return None if given is None else int(given)
    except ValueError:
        return given  # the options refuse what is not auto


@dataclass(frozen=True)
class Options:
    """Settings of a run. ``layers`` and ``epochs`` follow from graph and data where they are None.

    With ``epochs="auto"`` each training tries lengths inside its own training samples, at some seven times
    the cost; see :func:`gsnn.estimator.stopping.choose_epochs`.
    ``complete`` is the number of edges that are added to the graph at the end, 0 for none.
    """

    folds: int = _option(5, "Folds of the cross-validation; 0: one 80/20 split.")
    seed: int = _option(0, "Fixes splits, initial weights, batches and dropout.")
    channels: int = _option(8, "Channels per function node.")
    layers: int | None = _option(
        None, "Layers; by default enough for the longest shortest path, 4 to 12.", int | None
    )
    norm: Norm = _option("groupbatch", "layer, rms, softmax, groupbatch, batch or none.")  # noqa: RUF009 - a field
    dropout: float = _option(0.2, "Share of channels dropped in training.")
    lr: float = _option(3e-3, "First learning rate; it falls to 0 as a cosine.")
    epochs: int | Literal["auto"] | None = _option(
        None,
        "Epochs; by default about 2,000 steps, in 30 to 400 epochs. auto: the length that is best "
        "inside each training's own samples, at some seven times the cost.",
        str | None,
        _number_or_text,
    )
    weight_decay: float = _option(1e-2, "AdamW's weight decay.")
    batch_size: int = _option(64, "Samples per step.")
    top: int = _option(15, "How many edges to print.")
    complete: int = _option(20, "At most how many edges to add to the graph at the end; 0: none.")
    device: str | None = _option(None, "cpu, cuda, cuda:1, ...; by default cpu.", str | None)

    def __post_init__(self) -> None:
        if self.folds != 0 and self.folds < 2:
            raise ValueError(f"folds must be 0 (one split) or at least 2, got {self.folds}")
        for name in ("batch_size", "top"):
            whole(name, getattr(self, name))
        whole("complete", self.complete, 0)
        if isinstance(self.epochs, str) and self.epochs != "auto":
            raise ValueError(f"epochs must be a positive int or 'auto', got {self.epochs!r}")


def from_command_line(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of :class:`Options` in place of its parameter ``options``.

    It gets them as a dictionary, so that it can say itself what is wrong with them.
    """
    options = {one.name: _parameter(one) for one in fields(Options)}
    read = {one.name: one.metadata["read"] for one in fields(Options)}
    written = inspect.signature(command, eval_str=True)
    parameters = [
        more
        for name, one in written.parameters.items()
        for more in (options.values() if name == "options" else [one])
    ]

    @wraps(command)
    def call(**given: Any) -> None:
        taken = {name: read[name](given.pop(name, one.default)) for name, one in options.items()}
        command(options=taken, **given)

    del call.__wrapped__  # whose source has other parameters
    call.__signature__ = written.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call


def _parameter(one: Field[Any]) -> inspect.Parameter:
    assert one.default is not MISSING
    return inspect.Parameter(
        one.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=one.default,
        annotation=Annotated[one.metadata["type"], typer.Option(help=one.metadata["help"])],
    )
