"""Jobs in processes of their own that are killed, at a moment or at a step on disk, and run again."""

import contextlib
import io
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gsnn.app.cli import app
from gsnn.app.demo import write_tables
from gsnn.io import load, save
from gsnn.io.container import read_file
from gsnn.models.GSNN import GSNN
from gsnn.simulate.scenarios import converging_tiers
from gsnn.train import fit

#: What Python reports of what it does on disk: https://docs.python.org/3/library/audit_events.html
_STEPS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree")


class Jobs:
    """The four jobs that write files, on one small simulated data set in ``folder``.

    Each takes the folder of its results. Calling it again with the same folder is what a user does after an
    interruption.
    """

    names = ("fit", "run", "complete", "verify")

    def __init__(self, folder: Path) -> None:
        scenario = converging_tiers(3)
        self.paths = write_tables(scenario, folder / "data", n=40, seed=0)
        self.graph = scenario.partial
        self.candidates = folder / "candidates.csv"
        rows = [f"{source},{target}" for source, target in scenario.held_out[:3]]
        self.candidates.write_text("\n".join(["source,target", *rows]) + "\n")
        self.model = folder / "trained.safetensors"
        numbers = np.random.default_rng(0)
        sizes = (len(self.graph.node_names_dict[kind]) for kind in ("input", "output"))
        self.x, self.y = (numbers.normal(size=(40, size)).astype(np.float32) for size in sizes)

    def prepare(self) -> None:
        """What a job needs that another one makes; in a child process, as all training here."""
        model = self._new_model()
        fit(model, self.x, self.y, epochs=2, standardize=True, seed=0, verbose=False)
        save(model, self.model)

    def _new_model(self) -> GSNN:
        torch.manual_seed(0)
        return GSNN(self.graph.edge_index_dict, self.graph.node_names_dict, 2, 4, dropout=0.2)

    def fit(self, out: Path) -> None:
        """``gsnn.fit`` with a checkpoint, as a script has it."""
        model = self._new_model()
        options: dict[str, Any] = {
            "validation": 0.2,
            "patience": 25,
            "standardize": True,
            "seed": 1,
            "batch_size": 16,
        }
        out.mkdir(exist_ok=True)
        fit(model, self.x, self.y, epochs=30, checkpoint_path=out / "fit", verbose=False, **options)
        save(model, out / "model.safetensors")

    def _command(self, name: str, *words: object) -> None:
        p = self.paths
        tables = ["--edges", p["edges"], "--x", p["x"], "--y", p["y"], "--nodes", p["nodes"]]
        status = app([str(word) for word in (name, *tables, *words)], standalone_mode=False)
        if status:
            raise SystemExit(status)

    def run(self, out: Path) -> None:
        """``gsnn run``."""
        options = ["--folds", 2, "--channels", 2, "--epochs", 4, "--batch-size", 16, "--quiet"]
        self._command("run", "--out", out, *options)

    def complete(self, out: Path) -> None:
        """``gsnn complete``."""
        options = ["--budget", 3, "--stages", 3, "--channels", 2, "--epochs", 2, "--quiet"]
        self._command("complete", "--out", out, *options)

    def verify(self, out: Path) -> None:
        """``gsnn verify``."""
        out.mkdir(exist_ok=True)
        given = ["--model", self.model, "--candidates", self.candidates]
        self._command("verify", *given, "--out", out / "verified.csv")


def in_child(job, out: Path, *, after: float | None = None, step: int | None = None) -> tuple[int, int]:
    """Run ``job(out)`` in a forked process and kill it, if so.

    Args:
        after: kill it after so many seconds.
        step: let it kill itself just before its n-th step on disk in ``out``.

    Returns:
        The child's exit status (negative for a signal), and how many steps on disk it took, where it ended.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            count = _counted(out, step)
            with contextlib.redirect_stdout(io.StringIO()):
                job(out)
            os.write(write, str(count[0]).encode())
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        steps = int(pipe.read() or 0)
    return os.waitstatus_to_exitcode(status), steps


def _counted(out: Path, step: int | None) -> list[int]:
    """Counts the steps on disk under ``out`` or beside it; the ``step``-th kills the process."""
    count, near = [0], str(out.parent)

    def hook(event: str, args: tuple) -> None:
        if event not in _STEPS or not str(args[0]).startswith(near):
            return
        if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def result_of(out: Path) -> dict[str, object]:
    """What a job has left in its folder: name -> content without what differs from run to run.

    Temporary files of a killed process, which begin with a dot, are no result.
    """
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        if name == "config.toml":
            continue  # it names the folder
        if name == "metrics.json":
            found[name] = "\n".join(s for s in path.read_text().splitlines() if '"seconds"' not in s)
        elif name == "report.html":
            found[name] = len(path.read_text()) > 1000  # it says how long the run took
        elif name == "fit":
            tensors = read_file(path, "gsnn_checkpoint")[1]
            found[name] = {key: value.tolist() for key, value in tensors.items()}
        elif path.suffix == ".safetensors":
            state = load(path).state_dict()
            found[name] = {key: value.tolist() for key, value in state.items()}
        else:
            found[name] = path.read_bytes()
    return found
