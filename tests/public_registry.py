"""Every public class and function of the package, and a call of each on small valid arguments.

A name is public if it stands in a module of the API pages and has no underscore in front. The registry is
what `test_public_checks.py` runs over; it also checks that nothing is missing here. To add a name, give its
module, its name and its arguments::

    add("gsnn.stats.ranking", auc=lambda w: call([0.1, 0.9], [0, 1]))

where `w` is a `public_world.World`. `Case` says what else can be told of a name.
"""

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import GenericAlias
from typing import Any

import gsnn

API = Path(gsnn.__file__).resolve().parents[1] / "docs" / "api"


def call(*args, **kwargs):
    """The arguments of a call."""
    return args, kwargs


@dataclass(frozen=True)
class Case:
    """How a public name is called, and what it is documented to touch.

    Attributes:
        arguments: World -> the arguments of the call.
        changes: positions or names of the arguments that the call changes, as its docstring says.
        draws: it draws from the global random state, as initial weights do.
        prints: it is a command, and says what it did.
        use: what to do with the result, (result, world) -> any: of a class, the work that its objects do.
        copies: whether objects of the class can be copied and pickled.
        result: what of the result is the same in every run, by default all of it.
        needs: a module without which the call is skipped.
        once: it takes seconds, so it is called once only.
        slow: it takes many seconds, so it is called by `pytest -m slow` only.
    """

    arguments: Callable[[Any], tuple[tuple, dict]]
    changes: tuple[int | str, ...] = ()
    draws: bool = False
    prints: bool = False
    use: Callable[[Any, Any], Any] | None = None
    copies: bool = True
    result: Callable[[Any], Any] | None = None
    needs: str | None = None
    once: bool = False
    slow: bool = False

    def usable(self):
        """Whether what it needs is installed."""
        if self.needs == "compiled blocks":
            from gsnn.kernels import compiled

            return compiled.level() != "none"
        return self.needs is None or find_spec(self.needs) is not None


CASES: dict[str, Case] = {}

#: Names without a call of their own, each with the reason.
NO_CALL = {
    "gsnn.graph.types.GraphLike": "a protocol",
    "gsnn.kernels.interface.BlockKernel": "a protocol",
    "gsnn.kernels.compiled.run": "it is given addresses; every forward and backward pass calls it",
    "gsnn.kernels.registry.use": "it sets what the process asks; see tests/test_kernels.py",
    "gsnn.kernels.stack.Stack": "an operation of autograd, which run_blocks calls",
    "gsnn.models.growth.Growing": "a base class; GSNN is checked",
    "gsnn.captures.CapturingBlock": "a protocol",
    "gsnn.captures.CapturingModel": "a protocol",
    "gsnn.captures.CaptureNames": "a base class of blocks; ResBlock is checked",
    "gsnn.optim.first_order.FirstOrderInferer": "a base class; its three members are checked",
    "gsnn.stats.moments.PairMoments": "a protocol",
    "gsnn.train.callbacks.Callback": "a protocol",
    "gsnn.app.cli.demo": "half a minute; it hands its arguments to gsnn.app.demo.demo",
}


def add(module, **cases):
    """Register cases of a module's names; a function is short for a case that needs no more."""
    for name, case in cases.items():
        CASES[f"{module}.{name}"] = case if isinstance(case, Case) else Case(case)


@cache
def public_names():
    """Dotted name -> object of everything public."""
    pages = "".join(page.read_text(encoding="utf-8") for page in sorted(API.glob("*.rst")))
    found = {}
    for module_name in re.findall(r"^\.\. automodule:: (\S+)$", pages, re.MULTILINE):
        module = importlib.import_module(module_name)
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module_name
            if own and not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                found[f"{module_name}.{name}"] = value
    return found


def exported_names():
    """Dotted name -> object of all that a package of gsnn lists in its ``__all__``, but for constants."""
    packages = [gsnn, *(importlib.import_module(f"gsnn.{p.parent.name}") for p in _packages())]
    return {
        f"{package.__name__}.{name}": getattr(package, name)
        for package in packages
        for name in getattr(package, "__all__", ())
        # Python 3.10 calls an alias such as tuple[str, str] a class.
        if (inspect.isclass(getattr(package, name)) or inspect.isfunction(getattr(package, name)))
        and not isinstance(getattr(package, name), GenericAlias)
    }


def _packages():
    return sorted(Path(gsnn.__file__).resolve().parent.glob("*/__init__.py"))


# The cases themselves; importing a file registers what stands in it.
for _file in (
    "public_cases_network",
    "public_cases_inference",
    "public_cases_tables",
    "public_cases_estimator",
):
    importlib.import_module(_file)
