"""Draw docs/_static/gsnn.svg: a graph, and beside it the network that it becomes.

python docs/figures/landing.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

OUT = Path(__file__).parents[1] / "_static" / "gsnn.svg"

SKY, ORANGE, INK, PALE = "#56B4E9", "#E69F00", "#333333", "#d9d9d9"
FUNCTIONS = {"P": "#0072B2", "Q": "#009E73", "R": "#D55E00", "S": "#CC79A7"}
PLACES = {
    "drug": (0.0, 3.0),
    "ligand": (0.0, 1.0),
    "P": (1.3, 3.0),
    "Q": (1.3, 1.0),
    "R": (2.55, 2.0),
    "S": (2.55, 0.0),
    "gene 1": (3.85, 2.0),
    "gene 2": (3.85, 0.0),
}
EDGES = [
    ("drug", "P"),
    ("ligand", "Q"),
    ("P", "R"),
    ("Q", "R"),
    ("R", "S"),
    ("S", "Q"),
    ("R", "gene 1"),
    ("S", "gene 2"),
]
MISSING = ("P", "Q")
BLOCKS, CHANNELS = 3, 3


def reached() -> list[set[int]]:
    """The edges whose state depends on the drug, at the start and after each block."""
    sets = [{k for k, (source, _) in enumerate(EDGES) if source == "drug"}]
    for _ in range(BLOCKS):
        active = {EDGES[k][1] for k in sets[-1]}
        sets.append(sets[-1] | {k for k, (source, _) in enumerate(EDGES) if source in active})
    return sets


def graph(ax) -> None:
    for source, target in [*EDGES, MISSING]:
        missing = (source, target) == MISSING
        ax.add_patch(
            FancyArrowPatch(
                PLACES[source],
                PLACES[target],
                arrowstyle="-|>",
                mutation_scale=13,
                shrinkA=15,
                shrinkB=16,
                color="#a00000" if missing else FUNCTIONS.get(source, INK),
                lw=1.5,
                ls=(0, (4, 2.5)) if missing else "-",
            )
        )
    for name, (x, y) in PLACES.items():
        if name in FUNCTIONS:
            ax.add_patch(Circle((x, y), 0.3, facecolor=FUNCTIONS[name], edgecolor="none", zorder=3))
            ax.text(x, y, name, color="white", ha="center", va="center", fontsize=12, weight="bold", zorder=4)
        else:
            output = name.startswith("gene")
            colour = ORANGE if output else SKY
            ax.add_patch(Rectangle((x - 0.16, y - 0.16), 0.32, 0.32, facecolor=colour, edgecolor=INK, lw=0.8))
            ax.text(x, y + 0.3, name, ha="center", va="bottom", fontsize=10)
    ax.text(1.18, 2.0, "missing: true,\nbut unknown", color="#a00000", fontsize=9, ha="right", va="center")
    for x, label in ((0.0, "inputs"), (1.92, "function nodes"), (3.85, "outputs")):
        ax.text(x, -0.95, label, ha="center", fontsize=10, color="0.35")
    ax.set(xlim=(-0.6, 4.45), ylim=(-1.3, 4.1))


def network(ax) -> None:
    step, row = 3.0, 1.0
    heights = [(len(EDGES) - 1 - k) * row for k in range(len(EDGES))]
    middles = {name: (len(FUNCTIONS) - 1 - i) * 1.95 + 0.57 for i, name in enumerate(FUNCTIONS)}
    for column, filled in enumerate(reached()):
        x = column * step
        for k in range(len(EDGES)):
            colour = INK if k in filled else "white"
            ax.add_patch(
                Rectangle((x - 0.14, heights[k] - 0.14), 0.28, 0.28, fc=colour, ec=INK, lw=1.0, zorder=4)
            )
            if column < BLOCKS:  # what the residual connection carries along
                ax.plot([x + 0.14, x + step - 0.14], [heights[k]] * 2, color=PALE, lw=0.8, zorder=0)
        if column == BLOCKS:
            continue
        for name, colour in FUNCTIONS.items():
            mid = middles[name]
            box = FancyBboxPatch(
                (x + step / 2 - 0.2, mid - 0.55),
                0.4,
                1.1,
                boxstyle="round,pad=0.05,rounding_size=0.16",
                facecolor="white",
                edgecolor=colour,
                lw=1.6,
                zorder=3,
            )
            ax.add_patch(box)
            for c in range(CHANNELS):
                y = mid + 0.36 * (c - 1)
                ax.add_patch(Circle((x + step / 2, y), 0.13, facecolor=colour, edgecolor="none", zorder=4))
            for k, (source, target) in enumerate(EDGES):
                for c in range(CHANNELS):
                    y = mid + 0.36 * (c - 1)
                    if target == name:
                        ends = [x + 0.14, x + step / 2 - 0.13], [heights[k], y]
                    elif source == name:
                        ends = [x + step / 2 + 0.13, x + step - 0.14], [y, heights[k]]
                    else:
                        continue
                    ax.plot(*ends, color=colour, lw=0.8, alpha=0.8, zorder=2)
        ax.text(x + step / 2, -0.95, f"block {column + 1}", ha="center", fontsize=10, color="0.35")
    for k, (source, target) in enumerate(EDGES):
        ax.text(-0.35, heights[k], f"{source} → {target}", ha="right", va="center", fontsize=9.5)
        if target.startswith("gene"):
            x, y = BLOCKS * step, heights[k]
            ax.add_patch(
                FancyArrowPatch((x + 0.16, y), (x + 0.78, y), arrowstyle="-|>", mutation_scale=11, color=INK)
            )
            ax.add_patch(Rectangle((x + 0.8, y - 0.2), 0.4, 0.4, facecolor=ORANGE, edgecolor=INK, lw=0.8))
            ax.text(x + 1.3, y, target, va="center", fontsize=10)
        if source in ("drug", "ligand"):
            y = heights[k]
            ax.add_patch(Rectangle((-2.9, y - 0.2), 0.4, 0.4, facecolor=SKY, edgecolor=INK, lw=0.8))
    ax.text(0.14, -0.95, "state: one number an edge", ha="right", fontsize=10, color="0.35")
    ax.text(BLOCKS * step + 1.0, -0.95, "outputs", ha="center", fontsize=10, color="0.35")
    for name in FUNCTIONS:
        ax.text(
            step / 2 + 0.34,
            middles[name] + 0.55,
            name,
            color=FUNCTIONS[name],
            fontsize=11,
            weight="bold",
            zorder=5,
        )
    ax.set(xlim=(-3.3, BLOCKS * step + 2.9), ylim=(-1.5, 8.2))


def main() -> None:
    with plt.rc_context({"svg.hashsalt": "gsnn", "font.family": "DejaVu Sans", "figure.facecolor": "white"}):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(10.6, 4.3), width_ratios=(1, 1.69), layout="constrained"
        )
        graph(left)
        network(right)
        left.set_title("a graph of what is known …", fontsize=13, loc="left")
        right.set_title("… and the network that it becomes", fontsize=13, loc="left")
        for ax in (left, right):
            ax.set_aspect("equal")
            ax.set_axis_off()
        figure.savefig(OUT, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.1)
        plt.close(figure)


if __name__ == "__main__":
    main()
