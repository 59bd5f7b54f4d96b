"""What an interrupted run leaves in its folder, and how the same command goes on from there."""

from __future__ import annotations

import json
import os
import shutil
import sys
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

    @property
    def _record(self) -> Path:
        return self.path / "run.json"

    def check_unfinished(self, run: str) -> None:
        """Clear up after a run that was stopped between its last file and its end.

        Args:
            run: :func:`name_of` the run, as it is in its ``metrics.json``, which is written last.

        Raises:
            FinishedError: that is what happened; the checkpoint is gone now, the files are as they were.
            FileExistsError: it happened to another run than this one, whose files would be lost.
        """
        try:
            before = json.loads((self.out / "metrics.json").read_text(encoding="utf-8"))["run"]
        except (OSError, ValueError, LookupError, TypeError):
            return
        if self.exists() and before != run and not self._record.exists():
            raise FileExistsError(
                f"{self.out} holds another run, which is finished; choose another folder or use --force "
                "--fresh (force=True, fresh=True)"
            )
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
            BlockingIOError: another process is at work in the folder.
        """
        with alone(self.out):
            yield from self._work(run, fresh)

    def _work(self, run: Mapping[str, Any], fresh: bool) -> Iterator[None]:
        self._begin(run, fresh)
        try:
            yield
        except BaseException as err:
            if isinstance(err, FloatingPointError) or not any(self.path.glob("[!.]*.safetensors")):
                self.discard()
            raise
        self.discard()

    def _begin(self, run: Mapping[str, Any], fresh: bool) -> None:
        # Without a record nobody knows what pieces belong to: a process was killed while it cleared up.
        if fresh or (self.exists() and not self._record.exists()):
            self.discard()
        way_out = "use --fresh (fresh=True)"
        record = self._record
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


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system takes back when the process ends, however it ends.

    Windows and some drives in networks know no such locks; there nobody is refused.

    Raises:
        BlockingIOError: another process holds it.
    """
    if sys.platform == "win32":  # a folder cannot be locked there
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not _locked(handle):
            raise BlockingIOError(
                f"another process is at work in {folder}: wait for it, or choose another folder"
            )
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Whether the lock is ours; also where the drive knows no locks, as some in networks."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def name_of(run: Mapping[str, Any]) -> str:
    """A checksum that tells a run from others, for ``metrics.json``."""
    return text_checksum(json.dumps(dict(run), sort_keys=True))
