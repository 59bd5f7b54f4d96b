"""Sphinx configuration: `make docs` builds docs/_build/html, with warnings as errors."""

import base64
import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from benchmark_tables import page  # noqa: E402

import gsnn  # noqa: E402

project = "gsnn"
author = "The gsnn developers"
copyright = "the gsnn developers, MIT licence"
version = release = gsnn.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "mathml"]
exclude_patterns = ["_build", "_generated"]
nitpicky = True
# Other projects' names would need their inventories from the network. A link to one of ours must lead there.
nitpick_ignore_regex = [(r"py:.*", r"(?!gsnn\.).*"), (r"py:(class|data|obj)", r".*")]

html_theme = "furo"
html_title = f"gsnn {version}"
html_static_path = ["_static"]
html_css_files = ["gsnn.css"]
html_show_sphinx = False
html_math_renderer = "mathml"
nb_ipywidgets_js = {}  # no notebook keeps a widget, and these would come from the network

default_role = "literal"  # docstrings put code in single backticks, too
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # what torch says of extra_repr and the like is in its own docs
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
# Notebooks are stored with the outputs of a full-size run; CI executes them by themselves.
nb_execution_mode = "off"
nb_merge_streams = True


def gather(app) -> None:
    """Copy what is kept outside docs/ and write the tables of the benchmarks."""
    notebooks = HERE / "tutorials"
    for old in notebooks.glob("*.ipynb"):
        old.unlink()
    for notebook in sorted((ROOT / "tutorials").glob("[0-9]*.ipynb")):
        # From tutorials/ the docs are ../docs/; from docs/tutorials/ they are ../
        text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
        (notebooks / notebook.name).write_text(text, encoding="utf-8")
        shutil.copystat(notebook, notebooks / notebook.name)
    generated = HERE / "_generated"
    generated.mkdir(exist_ok=True)
    for notebook in sorted((ROOT / "tutorials").glob("[0-9]*.ipynb")):
        draw(notebook, generated / "gallery")
    (generated / "benchmarks.md").write_text(page(ROOT / "benchmarks"), encoding="utf-8")


def draw(notebook: Path, folder: Path) -> None:
    """The pictures of a notebook as files: 13-2.png is the second of notebook 13."""
    folder.mkdir(exist_ok=True)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    stored = [out["data"] for cell in cells for out in cell.get("outputs", ()) if "data" in out]
    for number, data in enumerate((data for data in stored if "image/png" in data), 1):
        png = base64.b64decode("".join(data["image/png"]))
        (folder / f"{notebook.name[:2]}-{number}.png").write_bytes(png)


def tidy(app, what, name, obj, options, lines) -> None:
    """Docstrings as reStructuredText: a bar is a bar, and each attribute of several gets its name."""
    text = "\n".join(lines) + "\n"
    # One field for several attributes, which docutils would take for a type and a name.
    text = re.sub(
        r"(?m)^Attributes:\n(?:.+\n)+",
        lambda part: re.sub(r"(?m)^( {4}\w+(?:, \w+)+):", lambda m: m[0].replace(", ", ","), part[0]),
        text,
    )
    outside = re.split(r"(``.*?``|`.*?`)", text, flags=re.DOTALL)
    outside[::2] = [part.replace("|", r"\|") for part in outside[::2]]
    lines[:] = "".join(outside).split("\n")


def setup(app) -> None:
    app.connect("builder-inited", gather)
    app.connect("autodoc-process-docstring", tidy, priority=400)  # before napoleon
