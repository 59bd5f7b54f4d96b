"""Formulas as MathML, which browsers draw by themselves; and a check that no page loads from the network."""

import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.errors import ExtensionError

#: What a browser would load by itself; a link that is followed by a click is none.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']((?:https?:)?//[^"']+)"""
    r"""|<link\b(?![^>]*\brel=["'](?:canonical|next|prev|search)["'])[^>]*\bhref=["']((?:https?:)?//[^"']+)"""
)


def inline(writer, node) -> None:
    """A formula in a line."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def displayed(writer, node) -> None:
    """A formula of its own, which scrolls sideways where the screen is narrow."""
    writer.body.append(f'<div class="math-block">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def check(app, error) -> None:
    """Fail where a page would load something from elsewhere, which shows only once it is opened offline.

    Raises:
        ExtensionError: there is such a page.
    """
    if error is not None or app.builder.format != "html":
        return
    for page in sorted(Path(app.outdir).rglob("*.html")):
        for found in LOADED.findall(page.read_text(encoding="utf-8")):
            raise ExtensionError(
                f"{page.relative_to(app.outdir)} loads {found[0] or found[1]} from the network"
            )


def setup(app) -> dict[str, bool]:
    """Register both."""
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
