"""The layout of the package, checked from its imports: arrows point down only."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gsnn

ROOT = Path(gsnn.__file__).resolve().parent
FILES = sorted(ROOT.rglob("*.py"))

# A room may import from itself and from those listed with it; captures is a room of one file. Loose modules
# such as gsnn._text may be imported by everybody and import nothing.
ARROWS: dict[str, set[str]] = {
    "graph": set(),
    "kernels": set(),
    "stats": set(),
    "captures": set(),
    "models": {"graph", "kernels", "captures"},
    "simulate": {"graph"},
    "data": {"graph", "stats"},
    "optim": {"graph", "stats", "captures"},
    # data, as a user's table is matched and scaled by the rule of fit and predict
    "explain": {"graph", "stats", "data"},
    "io": {"graph", "data", "models"},
    "train": {"graph", "data", "io.container"},
    "plot": {"graph", "stats", "optim.edge_table", "train.history"},
    # Above models and train, as it builds networks and trains them; a room of its own, as it is the only one
    # that speaks scikit-learn's language.
    "estimator": {"graph", "data", "models", "train"},
}
ARROWS["app"] = set(ARROWS)
# Modules that need more than their room: an edge is added by building and training the larger network.
BUILDERS = {"models", "data", "train", "io.container"}
MODULE_ARROWS = {
    "optim.staging": BUILDERS,
    "optim.search": BUILDERS,
    "optim.complete": BUILDERS,
    "optim.cross_validation": BUILDERS,
    "optim.verify": BUILDERS,
    "optim._linearised": BUILDERS,  # of verify
    "train.side_by_side": {"models"},
    "train._lots": {"models"},
    "train.uncertainty": {"models", "stats"},  # makes its networks, and intervals of their errors
}
LOOSE = {"_checks", "_delimited", "_text", "_memory", "_modes", "_progress"}
CORE = {
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "networkx",
    "sklearn",
    "matplotlib",
    "tqdm",
    "typer",
    "safetensors",
    "tomli",  # the standard library's tomllib, for Python 3.10
}
# joblib comes with scikit-learn; the others are extras, imported where they are used.
EXTRAS = {"anndata", "captum", "joblib", "zstandard", "torch_geometric", "torch_scatter"}
# Files past 400 lines, each with the reason why it is not two.
LONG: dict[str, str] = {}


def room(module):
    """The room of a dotted module name such as 'gsnn.models.GSNN'."""
    return module.split(".")[1] if "." in module else ""


def allowed(importer, module):
    """Whether ``importer`` may import ``module``."""
    here, there = room(importer), room(module)
    inside = module.removeprefix("gsnn.")
    more = MODULE_ARROWS.get(importer.removeprefix("gsnn."), set())
    return there in LOOSE | {here} or any(m in (inside, there) for m in ARROWS.get(here, set()) | more)


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Every module imported anywhere in the file, as (dotted name, line)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: import by the full name"
            assert node.module is not None  # only "from . import" has none
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                inside = (
                    node.module.split(".")[0] == "gsnn" and importlib.util.find_spec(node.module) is not None
                )
                yield (full if inside and is_module(full) else node.module), node.lineno


def is_module(name):
    path = ROOT.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    here = room(module_name(path))
    for name, line in imports(path):
        if name.split(".")[0] == "gsnn" and name != "gsnn":
            assert here == "__main__" or allowed(module_name(path), name), (
                f"{path}, line {line}: {here} must not import {name}"
            )


def test_no_circles():
    """A module that needs itself through others can be read, tested and imported only together with them."""
    names = {module_name(path): path for path in FILES}
    needs = {name: {there for there, _ in imports(path)} & set(names) for name, path in names.items()}
    order = TopologicalSorter(needs)
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " <- ".join(error.args[1]))


def test_every_room_is_known():
    rooms = {path.relative_to(ROOT).parts[0] for path in FILES if path.parent != ROOT}
    loose = {path.stem for path in FILES if path.parent == ROOT}
    assert rooms | {"captures"} == set(ARROWS)  # a room of one file
    assert loose == {"__init__", "__main__", "captures"} | LOOSE


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_core_dependencies_and_known_extras(path):
    allowed = CORE | EXTRAS | {"gsnn", "tomllib"} | sys.stdlib_module_names  # tomllib: from 3.11 on
    for name, line in imports(path):
        assert name.split(".")[0] in allowed, (
            f"{path}, line {line}: {name} is neither a dependency nor an extra"
        )


def test_no_utils():
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "misc", "common")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_long_files_have_a_reason(path):
    name = path.relative_to(ROOT).as_posix()
    lines = len(path.read_text().splitlines())
    assert (lines > 400) == (name in LONG), f"{name} has {lines} lines: past 400 it needs a reason in LONG"


def test_subpackages_hide_no_module():
    for path in ROOT.glob("*/__init__.py"):
        modules = {other.stem for other in path.parent.glob("*.py")}
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                hidden = modules & {alias.asname or alias.name for alias in node.names}
                assert not hidden, f"{path} must not take the name of the module {hidden}"


@pytest.mark.parametrize(
    "name",
    [
        "models.GSNN",
        "models.SparseLinear",
        "models.ResBlock",
        "models.PathwayLatentRegularizer",
        "optim.MagnitudeEdgeInferer",
        "optim.MagnitudeEdgeRegressor",
        "optim.MagnitudeEdgeKGE",
        "simulate.simulate",
        "simulate.nx2pyg",
    ],
)
def test_a_module_and_its_class_share_a_name(name):
    if not is_module(f"gsnn.{name}"):
        pytest.skip(f"gsnn.{name} is not there yet")
    module = importlib.import_module(f"gsnn.{name}")
    package, last = name.split(".")
    assert getattr(importlib.import_module(f"gsnn.{package}"), last) is module
    assert callable(getattr(module, last))


def test_import_is_light():
    heavy = ["torch", "numpy", "scipy", "pandas", "networkx", "sklearn", "matplotlib", "typer", "tqdm"]
    code = f"import sys, gsnn; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]"


def test_short_names_resolve():
    for name, module in gsnn._SHORT_NAMES.items():
        if is_module(module):
            assert getattr(gsnn, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="module 'gsnn' has no attribute 'nothing'"):
        _ = gsnn.nothing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_library_does_not_print(path):
    if path.name == "cli.py":
        pytest.skip("a command line prints its results")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}, line {node.lineno}: use logging"


def test_mutation_testing_knows_every_module_of_its_rooms():
    import mutate

    rooms = {path for room in ("train", "stats") for path in (ROOT / room).glob("*.py")}
    known = {mutate.ROOT / path for path in mutate.TESTS}
    assert {path for path in rooms if path.name != "__init__.py"} <= known
    for files in mutate.TESTS.values():
        assert all((mutate.ROOT / "tests" / name).exists() for name in files)
