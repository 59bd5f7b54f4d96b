"""Colours and axes that all pictures share.

The colours are those of Okabe & Ito 2008, which people with any colour vision can tell apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, SKY, GREEN, ORANGE, VERMILLION, GREY = (
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#999999",
)


def axes_for(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """``ax``, or new ones on a figure of their own, ``size`` in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def bare(ax: Axes) -> None:
    """Without the box at the top and on the right."""
    ax.spines[["top", "right"]].set_visible(False)
