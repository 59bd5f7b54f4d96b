"""What an interrupted run leaves in its folder, and how the same command goes on from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gsnn.io import container
from gsnn.train.resume import KIND, check_same_run, text_checksum


class FinishedError(FileExistsError):
    """The run that was asked for was stopped when all its files were written: nothing is left to do."""


class RunFolder:
    """What an interrupted ``gsnn run`` leaves in ``out/.checkpoint``: what it is, and its finished pieces."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out / ".checkpoint"

    def exists(self) -> bool:
        """Whether there is an interrupted run."""
        return self.path.is_dir()

    def check_unfinished(self, run: str) -> None:
        """Clear up after a run that was stopped between its last file and its end.

        Args:
            run: :func:`name_of` the run, as it is in its ``metrics.json``, which is written last.

        Raises:
            FinishedError: that is what happened; the checkpoint is gone now, the files are as they were.
        """
        try:
            before = json.loads((self.out / "metrics.json").read_text(encoding="utf-8"))["run"]
        except (OSError, ValueError, LookupError, TypeError):
            return
        if self.exists() and before == run:
            self.discard()
            raise FinishedError(
                f"the run in {self.out} is finished already: it was stopped after its last file was written"
            )

    @contextmanager
    def working(self, run: Mapping[str, Any], fresh: bool) -> Iterator[None]:
        """Go on with what is there, or begin anew where there is nothing or ``fresh`` says so.

        At the end of the with statement the folder is deleted. After an error or an interruption it stays
        if there is something to go on from, but not after a loss that exploded, as it would do so again.

        Raises:
            ValueError: it is damaged or belongs to another run.
        """
        self._begin(run, fresh)
        try:
            yield
        except BaseException as err:
            if isinstance(err, FloatingPointError) or not any(self.path.glob("[!.]*.safetensors")):
                self.discard()
            raise
        self.discard()

    def _begin(self, run: Mapping[str, Any], fresh: bool) -> None:
        if fresh:
            self.discard()
        way_out = "use --fresh (fresh=True)"
        record = self.path / "run.json"
        if record.exists():
            try:
                before = dict(json.loads(record.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                raise ValueError(f"{record} is damaged. To start afresh, {way_out}") from None
            check_same_run(before, run, f"the unfinished work in {self.path}", way_out)
            return
        self.path.mkdir(exist_ok=True)
        with container.replacing(record) as tmp:
            tmp.write_text(json.dumps(dict(run), indent=2) + "\n", encoding="utf-8")

    def file(self, name: str) -> Path:
        """Where the checkpoint of the fit called ``name`` belongs."""
        return self.path / f"{name}.safetensors"

    def read(self, name: str) -> dict[str, torch.Tensor] | None:
        """The finished piece ``name``; None where it is not finished."""
        return container.read_file(self.file(name), KIND)[1] if self.file(name).exists() else None

    def keep(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a finished piece."""
        container.write_file(self.file(name), KIND, {}, tensors)

    def discard(self) -> None:
        """Delete the folder, as the run is over."""
        if self.exists():
            shutil.rmtree(self.path)


def name_of(run: Mapping[str, Any]) -> str:
    """A checksum that tells a run from others, for ``metrics.json``."""
    return text_checksum(json.dumps(dict(run), sort_keys=True))
