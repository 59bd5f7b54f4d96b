"""What is said to be supported is what is tested, and the wheel's tag says what is inside."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gsnn

ROOT = Path(__file__).parents[1]
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pythons(text):
    return sorted({tuple(map(int, version.split("."))) for version in re.findall(r"\b3\.1\d\b", text)})


def test_the_oldest_versions_are_the_floors(project):
    """Each dependency is tested in the oldest version that pip may choose, but for bug-fix releases."""
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    # What needs a newer Python than the oldest is not tested there.
    dev = [item for item in project["optional-dependencies"]["dev"] if ">=" in item and ";" not in item]
    for item in project["dependencies"] + [item for item in dev if not item.startswith(("ruff", "mypy"))]:
        name, floor = item.partition(";")[0].split(">=")
        assert f"{pinned[name]}.".startswith(f"{floor}."), f"{item}, tested with {pinned[name]}"


def test_the_conda_recipe_has_the_same_floors(project):
    recipe = (ROOT / "conda" / "meta.yaml").read_text()
    run = recipe[recipe.index("  run:") : recipe.index("test:")]
    found = dict(re.findall(r"- ([\w-]+) >=([\d.]+)", run))
    names = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    wanted = dict(item.partition(";")[0].split(">=") for item in project["dependencies"])
    assert found.pop("python") == project["requires-python"].removeprefix(">=")
    assert found == {names.get(name, name): floor for name, floor in wanted.items()}


def test_one_version():
    for name in ("CITATION.cff", "conda/meta.yaml"):
        text = (ROOT / name).read_text()
        assert re.search(r'(?m)^version: |set version = "', text)
        assert gsnn.__version__ in re.findall(r'(?:^version: |set version = ")([\d.]+)', text, re.M), name


def test_every_python_that_is_named_is_tested(project):
    named = pythons(" ".join(c for c in project["classifiers"] if "Python :: 3." in c))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    tested = re.search(r"python: (\[.*\])", workflow)
    assert tested is not None and pythons(tested[1]) == named
    assert f">={'.'.join(map(str, named[0]))}" == project["requires-python"]
    assert "bash .ci/run" in workflow and "make oldest" in workflow


@pytest.mark.parametrize("built", [True, False])
def test_the_tag_says_what_is_inside(built, tmp_path):
    """One wheel for every Python: of a platform with the library, of any without it."""
    if built:
        (tmp_path / "gsnn" / "kernels" / "csrc").mkdir(parents=True)
        (tmp_path / "gsnn" / "kernels" / "csrc" / "_blocks.so").touch()
    code = """if True:
        import runpy, setuptools, sys
        made = {}
        setuptools.setup = lambda **given: made.update(given)
        runpy.run_path("setup.py")
        distribution = setuptools.Distribution(made)
        wheel = made["cmdclass"]["bdist_wheel"](distribution)
        wheel.bdist_dir = sys.argv[1]
        wheel.ensure_finalized()
        print(*wheel.get_tag())
        print(made["cmdclass"]["build_ext"](distribution).get_ext_filename("gsnn.kernels.csrc._blocks"))
    """
    pytest.importorskip("setuptools", minversion="77")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    tag, library = done.stdout.splitlines()[-2:]
    python, abi, platform = tag.split()
    assert (python, abi) == ("py3", "none") and (platform != "any") is built
    assert re.fullmatch(r"gsnn/kernels/csrc/_blocks\.(so|dll)", library)
