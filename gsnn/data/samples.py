"""Tables of samples, made from the files that studies come in."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd


@dataclass(frozen=True)
class Samples:
    """What was done to each sample, what was measured, and which samples must not be parted.

    ``x`` (samples x inputs) and ``y`` (samples x outputs, NaN = not measured) have the same rows; ``groups``
    has one label per row: samples of one label stand on the same side of every split. ``targets`` says what
    each input acts on, where the file says so, as :func:`gsnn.graph.build_graph.build` takes it.
    """

    x: pd.DataFrame
    y: pd.DataFrame
    groups: pd.Series
    targets: dict[str, dict[str, int]] = field(default_factory=dict)


def conditions(x: pd.DataFrame) -> list[str]:
    """A name for what was done to each row: the inputs that are not 0, with their value where it is not 1.

    Rows with equal values, replicates, have equal names; a row of zeros is ``'control'``.
    """
    names = list(map(str, x.columns))
    found = []
    for row in x.to_numpy(dtype=float).tolist():
        done = [(name, value) for name, value in zip(names, row, strict=True) if value]
        parts = [name if value == 1 else f"{name}={value!r}" for name, value in done]
        found.append("+".join(parts) or "control")
    return found


def numbered(names: list[str]) -> list[str]:
    """The names, and from the second of a kind on with a number: a, a.2, a.3."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return found
