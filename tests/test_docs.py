"""The documentation is complete, and its examples run as printed."""

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import gsnn

ROOT = Path(gsnn.__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FILES = sorted(path for path in (ROOT / "gsnn").rglob("*.py") if path.stem != "__init__")
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("api/*"), *DOCS.glob("notes/*.md")])
EXAMPLES = [path for path in DOCS.glob("*.md") if "```python" in path.read_text(encoding="utf-8")]


def undocumented(tree):
    """Public classes, functions and methods of a module without a docstring.

    Methods that torch asks a module for, such as extra_repr, are documented there; what forward takes and
    returns is not. A protocol says what its members are in its own docstring.
    """
    known = set(dir(torch.nn.Module)) - {"forward"}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        overload = any(ast.unparse(d) == "overload" for d in getattr(node, "decorator_list", ()))
        if not overload and not ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.ClassDef) and "Protocol" not in map(ast.unparse, node.bases):
            for inner in node.body:
                if not isinstance(inner, ast.FunctionDef) or inner.name.startswith("_"):
                    continue
                elsewhere = any(
                    ast.unparse(d).endswith((".setter", ".deleter", "overload")) for d in inner.decorator_list
                )
                if not elsewhere and inner.name not in known and not ast.get_docstring(inner):
                    yield f"{node.name}.{inner.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_is_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path} needs a docstring"
    assert not list(undocumented(tree)), f"{path}: no docstring"


def test_undocumented_names_are_found():
    source = "class A:\n def f(self): ...\n def _g(self): ...\n def extra_repr(self): ...\ndef b(): 'said'\n"
    assert list(undocumented(ast.parse(source))) == ["A", "A.f"]


def test_every_public_module_has_its_place_in_the_api_pages():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    shown = Counter(
        name
        for page in DOCS.glob("api/*.rst")
        for name in re.findall(r"^\.\. automodule:: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert {m for m in modules if not any(part.startswith("_") for part in m.split("."))} == set(shown)
    assert set(shown.values()) == {1}


def test_short_names_are_listed():
    text = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    assert [name for name in gsnn._SHORT_NAMES if f"`gsnn.{name}`" not in text] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        code = compile(block, str(path), "exec")
        if "init_process_group" not in block:  # that one wants to be started by torchrun
            exec(code, scope)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_pages_name_only_what_exists(path):
    """Dotted names of the package in code or roles, and files of the repository."""
    text = path.read_text(encoding="utf-8")
    for name in set(re.findall(r"`(gsnn(?:\.\w+)+)`", text)):
        assert resolves(name), f"{path} names {name}"
    for name in set(re.findall(r"`((?:docs|benchmarks|tests|tutorials)/[\w./]+\.\w+)`", text)):
        assert (ROOT / name).exists(), f"{path} names {name}"


def resolves(name):
    import importlib

    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            found = getattr(found, part, None)
        return found is not None
    return False


@pytest.mark.parametrize(
    ("note", "heading"),
    [
        ("edge_inference_notes", "## 4. Magnitude correlation"),
        ("edge_inference_notes", "### 4.5 Gradient absorption"),
        ("edge_inference_notes", "### 7.1 What mitigates gradient absorption"),
        (
            "functional_dis_and_similarity",
            "# Functional similarity and dissimilarity of pathways in the latent space",
        ),
    ],
)
def test_sections_that_others_refer_to(note, heading):
    assert heading in (DOCS / "notes" / f"{note}.md").read_text(encoding="utf-8").splitlines()


def test_the_landing_picture_is_small_and_stands_alone():
    picture = DOCS / "_static" / "gsnn.svg"
    text = picture.read_text(encoding="utf-8")
    assert len(text) < 150_000
    assert not re.search(r'(href|src)="(?!#)', text)
    assert "<text" not in text  # letters are drawn, so no font has to be there
