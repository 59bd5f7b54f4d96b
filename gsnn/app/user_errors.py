"""How a command ends when the user can put things right."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from gsnn._memory import memory_advice


@contextmanager
def user_errors(out: Path | None = None) -> Iterator[None]:
    """What a user can put right ends with one line and exit code 2, warnings are one line each.

    An interruption (Ctrl-C) ends with code 130 and one line, which says how to go on with what is in ``out``.
    """

    def show(message: Warning | str, *_: object, **__: object) -> None:
        typer.echo(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        try:
            with memory_advice("fewer samples, or a smaller graph or network, take less"):
                yield
        except (ValueError, TypeError, OSError, FloatingPointError, ImportError, MemoryError) as err:
            typer.echo(f"error: {err}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            how = ""
            if out is not None and (out / ".checkpoint").exists():
                # A run has a folder of checkpoints and an option to clear it; `complete` has one file.
                anew = (
                    "--fresh begins anew" if (out / ".checkpoint").is_dir() else "without it, it begins anew"
                )
                how = f"; the same command goes on from {out}/.checkpoint, {anew}"
            typer.echo(f"interrupted{how}", err=True)
            raise typer.Exit(130) from None
