"""What docstrings and signatures promise: examples run, and text options list their values."""

import ast
import doctest
import importlib
import typing
from pathlib import Path

import pytest
import torch

import gsnn

ROOT = Path(gsnn.__file__).resolve().parent
FILES = [
    p for p in sorted(ROOT.rglob("*.py")) if not any(part.startswith("_") for part in (p.stem, p.parent.name))
]
WITH_EXAMPLES = [path for path in FILES if ">>>" in path.read_text(encoding="utf-8")]
#: Parameters that take any text: names of columns, attributes and files, labels, words for a message.
FREE_TEXT = {
    "argument", "candidates", "gene", "pathway", "prefix", "score_col", "val_label", "weight_attr",
    "x_arg", "y_arg",
}  # fmt: skip


def module_of(path):
    return "gsnn." + ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_of)
def test_examples_in_docstrings_run(path):
    module = importlib.import_module(module_of(path))
    torch.manual_seed(0)
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert tried and not failed


def test_the_main_entries_have_an_example():
    names = [
        "gsnn.models.GSNN.GSNN", "gsnn.graph.container.HeteroGraph", "gsnn.simulate.simulate.simulate",
        "gsnn.optim.MagnitudeEdgeInferer.MagnitudeEdgeInferer", "gsnn.train.loop.fit",
        "gsnn.kernels.registry.use",
    ]  # fmt: skip
    for name in names:
        module, _, last = name.rpartition(".")
        assert ">>>" in getattr(importlib.import_module(module), last).__doc__, name


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_options_of_text_are_literals(path):
    """A public parameter with a text default takes one of a few words, and its type says which."""
    for function, parameter, default in text_defaults(ast.parse(path.read_text(encoding="utf-8"))):
        assert parameter in FREE_TEXT, (
            f"{path}: {function}({parameter}: str = {default!r}) should be a Literal"
        )


def text_defaults(tree):
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or (node.name.startswith("_") and node.name != "__init__"):
            continue
        plain = node.args.posonlyargs + node.args.args
        pairs = [
            *zip(plain[::-1], node.args.defaults[::-1], strict=False),
            *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
        ]
        for argument, default in pairs:
            if not isinstance(default, ast.Constant) or not isinstance(default.value, str):
                continue
            if argument.annotation is not None and ast.unparse(argument.annotation) == "str":
                yield node.name, argument.arg, default.value


def test_text_defaults_are_found():
    source = "def f(a, b: str = 'x', *, c: str = 'y', d: Norm = 'z', e: str): ...\ndef _g(a: str = 'x'): ..."
    assert sorted(text_defaults(ast.parse(source))) == [("f", "b", "x"), ("f", "c", "y")]


def test_the_tables_of_choices_have_the_literals_of_their_types():
    from gsnn.models import GSNN, SparseLinear
    from gsnn.optim import magnitudes

    assert set(SparseLinear.INITS) == set(typing.get_args(SparseLinear.Init))
    assert set(GSNN.AGGREGATIONS) == set(typing.get_args(GSNN.Aggregation))
    assert set(magnitudes.SCORES) == {"abs", "relu", "signed"}
