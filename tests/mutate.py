"""Does the suite notice wrong changes? One small change of the source at a time, in a copy of the tree.

    python tests/mutate.py --workers 2                      # every mutant
    python tests/mutate.py --sample 300 --seed 0 --least 85  # a seeded sample; fails below 85% noticed
    python tests/mutate.py gsnn/kernels --sample 300 --seed 3 --seconds 800  # as many as time allows
    python tests/mutate.py gsnn/train/loop.py --only 120     # one mutant of one module, with the output

Each mutant differs from the tree in one place: a comparison, an operator, a constant or default, ``and`` or
``or``, a condition turned round, two arguments swapped, a keyword left out, a statement left out. The test
files that `mutated_modules.py` names for its module run on it, fast ones first, until one fails. What only
words a message (inside ``raise``, a warning, an f-string, a docstring) and what only types are left alone.

Workers fork from a process that has imported PyTorch and the other dependencies, which is most of the time
that a test run needs; processes that tests start themselves see the mutant too, as it is on disk.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from mutated_modules import TESTS

ROOT = Path(__file__).resolve().parents[1]
# A mutant that hangs is noticed: after so many seconds of a processor, and so many times that by the clock.
_FOR_ALL, _FOR_EACH_FILE, _BY_THE_CLOCK = 60, 30, 6
_SHOWN = 70  # characters of a change

_COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """One changed module: its path, the number of the change in it, the line, before and after."""

    path: str
    number: int
    line: int
    change: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} [{self.number}] {self.change}"


def mutants_of(path: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse((ROOT / path).read_text())
    found = []
    for number, (node, field, index, new) in enumerate(_changes(tree)):
        place = getattr(node, field)
        old = place if index is None else place[index]
        # The whole expression says more than its changed part, as long as the change is in what is shown.
        shown = isinstance(node, ast.expr) and len(ast.unparse(node)) <= _SHOWN
        before = ast.unparse(node) if shown else _text(old, new)
        _put(node, field, index, new)
        after = ast.unparse(node) if shown else _text(new, old)
        line = getattr(old, "lineno", getattr(node, "lineno", 0))
        text = ast.unparse(ast.fix_missing_locations(tree))
        _put(node, field, index, old)
        found.append(Mutant(path, number, line, f"{_short(before)}  ->  {_short(after)}", text))
    return found


def _put(node: ast.AST, field: str, index: int | None, value: object) -> None:
    if index is None:
        setattr(node, field, value)
    else:
        getattr(node, field)[index] = value


def _text(what: object, other: object) -> str:
    """A changed part; of two lists, what the other has not."""
    if isinstance(what, list) and isinstance(other, list):
        others = [ast.unparse(item) for item in other]
        kept = [item for item in what if ast.unparse(item) not in others] or (
            what if len(what) == len(other) else []
        )
        return ", ".join(map(ast.unparse, kept)) or "(left out)"
    return ast.unparse(what) if isinstance(what, ast.AST) else repr(what)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."


Change = tuple[ast.AST, str, int | None, object]


def _changes(node: ast.AST) -> Iterator[Change]:
    """(node, field, place in it, what to put there) of every change at or below ``node``."""
    yield from _here(node)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        items = value if isinstance(value, list) else [value]
        for index, item in enumerate(items):
            if not isinstance(item, ast.AST) or _only_words(item):
                continue
            at = index if isinstance(value, list) else None
            if isinstance(item, ast.stmt):
                yield from _left_out(node, field, at, item)
            if isinstance(item, ast.Constant):
                yield from ((node, field, at, new) for new in _constants(item))
            if isinstance(item, ast.UnaryOp) and not isinstance(item.operand, ast.Constant):
                yield node, field, at, item.operand
            yield from _changes(item)


def _here(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            yield node, "ops", index, _COMPARE[type(op)]()
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _BINARY:
        if not _is_text(node):
            yield node, "op", None, _BINARY[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        yield node, "op", None, ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield node, "test", None, ast.UnaryOp(ast.Not(), copy.deepcopy(node.test))
    elif isinstance(node, ast.Call):
        if len(node.args) > 1 and not any(isinstance(arg, ast.Starred) for arg in node.args[:2]):
            yield node, "args", None, [node.args[1], node.args[0], *node.args[2:]]
        for index, keyword in enumerate(node.keywords):
            if keyword.arg is not None:
                yield node, "keywords", None, node.keywords[:index] + node.keywords[index + 1 :]


def _left_out(node: ast.AST, field: str, at: int | None, item: ast.stmt) -> Iterator[Change]:
    calls = isinstance(item, ast.Expr) and isinstance(item.value, ast.Call)
    stores = isinstance(item, ast.Assign) and not isinstance(item.targets[0], (ast.Name, ast.Tuple))
    if calls or stores or isinstance(item, (ast.AugAssign, ast.Raise, ast.Continue, ast.Delete)):
        yield node, field, at, ast.Pass()


def _constants(item: ast.Constant) -> Iterator[ast.Constant]:
    value = item.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
        if value > 0:
            yield ast.Constant(value - 1)
    elif isinstance(value, float):
        yield ast.Constant(2.0 * value if value else 1.0)
    elif isinstance(value, str):
        yield ast.Constant(value + "_")


def _is_text(node: ast.BinOp | ast.AugAssign) -> bool:
    parts = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.value]
    return any(isinstance(p, (ast.JoinedStr, ast.Constant)) and "'" in ast.unparse(p) for p in parts)


def _only_words(node: ast.AST) -> bool:
    """Messages, docstrings, imports, assertions and types: nothing that a test should pin."""
    if isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "cast"):
        return True
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Error", "Warning")):
        return True
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


class Worker:
    """A copy of the tree in which one mutant at a time is tried."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        for name in ("gsnn", "tests", "benchmarks", "docs", "tutorials"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_build")
            )
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy2(path, folder / path.name)

    def survives(self, mutant: Mutant, show: bool = False) -> tuple[bool, float]:
        """Whether all tests pass on the mutant, and the seconds that it took to know."""
        target, start = self.root / mutant.path, time.monotonic()
        original = target.read_text()
        target.write_text(mutant.text)
        try:
            return self.passes(TESTS[mutant.path], show), time.monotonic() - start
        finally:
            target.write_text(original)

    def passes(self, files: list[str], show: bool = False) -> bool:
        """Run test files in a forked process; False too where they run out of time."""
        limit = _FOR_ALL + _FOR_EACH_FILE * len(files)
        pid = os.fork()
        if pid == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            _run_tests(self.root, [name for name in files if (self.root / "tests" / name).exists()], show)
        deadline = time.monotonic() + _BY_THE_CLOCK * limit
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status == 0
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return False


def _run_tests(root: Path, files: list[str], show: bool) -> None:
    """In the forked process: never returns."""
    code = 3
    try:
        os.setpgid(0, 0)
        os.chdir(root)
        sys.path[:0] = [str(root), str(root / "tests")]
        sys.dont_write_bytecode = True
        os.environ.update(PYTHONPATH=str(root), PYTHONDONTWRITEBYTECODE="1")
        if not show:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
        code = int(pytest.main([*options, *(f"tests/{name}" for name in files)]))
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _warm() -> None:
    """Import what every test imports, but nothing of gsnn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot
    import networkx  # noqa: F401
    import pandas  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import scipy.sparse.csgraph
    import scipy.stats  # noqa: F401
    import sklearn.linear_model
    import sklearn.model_selection
    import sklearn.neural_network  # noqa: F401
    import torch
    import tqdm  # noqa: F401
    import typer  # noqa: F401

    torch.set_num_threads(1)


def main() -> int:
    """Try the mutants and print the survivors and the share noticed, by module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="or folders of them; by default all")
    parser.add_argument("--sample", type=int, help="try that many, drawn at random; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--skip", type=int, default=0, help="of the sample, those tried before")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no mutant after that")
    parser.add_argument("--only", type=int, help="the number of one mutant, tried with the tests' output")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--least", type=float, default=0.0, help="percentage noticed below which to fail")
    args = parser.parse_args()
    modules = [
        path for path in TESTS if any(path == own or path.startswith(f"{own}/") for own in args.modules)
    ]
    untested = [own for own in args.modules if not any(path.startswith(own) for path in modules)]
    if untested:
        parser.error(f"no tests are named for {', '.join(untested)}")
    mutants = [mutant for path in modules for mutant in mutants_of(path)]
    print(f"{len(mutants)} mutants of {len(modules)} modules", flush=True)
    if args.only is not None:
        mutants = [m for m in mutants if m.number == args.only]
    elif args.sample is not None and args.sample < len(mutants):
        mutants = random.Random(args.seed).sample(mutants, args.sample)[args.skip :]
    deadline = time.monotonic() + args.seconds
    _warm()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        workers: Queue[Worker] = Queue()
        for number in range(args.workers):
            workers.put(Worker(Path(folder) / str(number)))
        first = workers.get()
        files = sorted({name for m in mutants for name in TESTS[m.path]})
        if not first.passes(files, show=args.only is not None):
            print("the tests fail on the tree as it is")
            return 2
        workers.put(first)

        def trial(mutant: Mutant) -> bool | None:
            if time.monotonic() > deadline:
                return None
            worker = workers.get()
            try:
                alive, seconds = worker.survives(mutant, show=args.only is not None)
            finally:
                workers.put(worker)
            print(f"{'SURVIVED' if alive else 'noticed '} {seconds:5.1f} s  {mutant}", flush=True)
            return alive

        with ThreadPoolExecutor(args.workers) as pool:
            results = list(pool.map(trial, mutants))
    tried = [(m, alive) for m, alive in zip(mutants, results, strict=True) if alive is not None]
    for path in modules:
        own = [alive for m, alive in tried if m.path == path]
        if own:
            print(f"{path}: {len(own) - sum(own)} of {len(own)}")
    survived = sum(alive for _, alive in tried)
    share = 100 * (1 - survived / max(1, len(tried)))
    print(f"noticed: {len(tried) - survived} of {len(tried)} ({share:.1f}%)")
    return 0 if share >= args.least else 1


if __name__ == "__main__":
    sys.exit(main())
