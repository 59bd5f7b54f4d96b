"""Read a graph and its data tables, and check them against each other before any work starts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsnn._delimited import read_delimited
from gsnn._text import did_you_mean, some_names
from gsnn.data.match import select_columns
from gsnn.graph import interactions
from gsnn.graph.container import EDGE_TYPES, GraphWarning, HeteroGraph, as_graph

#: Cells that mean that there is no value.
GAPS = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "-", "."]

FilePath = str | PathLike[str]


class DataWarning(UserWarning):
    """Tables are legal, but something in them makes results worse or harder to judge."""


@dataclass(frozen=True)
class Data:
    """A graph with matching tables.

    ``x`` (samples x input nodes) and ``y`` (samples x output nodes, NaN = not measured) have the same
    rows, in order of the sample names, and the columns of the graph, in its order; so nothing that
    follows depends on how the files were ordered. ``order`` holds the samples as X had them, ``groups``
    one label per row or None, ``warnings`` what the checks had to say.
    """

    graph: HeteroGraph
    x: pd.DataFrame
    y: pd.DataFrame
    order: pd.Index
    groups: pd.Series | None = None
    warnings: tuple[str, ...] = ()


def load_data(
    edges: Any,
    x: FilePath,
    y: FilePath,
    *,
    nodes: FilePath | None = None,
    groups: FilePath | None = None,
    group_column: str | None = None,
    source: str | None = None,
    target: str | None = None,
    sign: str | None = None,
) -> Data:
    """Read and check everything that ``gsnn run`` works on.

    Args:
        edges: a graph, or a table with the columns ``source``, ``target`` and, unless the node names of X
            and Y tell inputs and outputs, ``etype``; see :func:`gsnn.graph.formats.from_tsv`.
        x: samples in rows (first column: their names), one column per input node, complete.
        y: the same for output nodes; empty cells were not measured.
        nodes: optional table ``node, type`` that fixes the order of the nodes.
        groups: optional table from sample to group; samples of one group stay together in a split.
        group_column: which column of it, where it has several.
        source, target, sign: which columns of ``edges``; see :func:`gsnn.graph.formats.from_tsv`.

    All are delimited text, compressed or not; see ``gsnn._delimited``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a table is malformed, or tables and graph do not fit together; the message names the
            file and the columns, nodes or samples at fault.
    """
    given = None if isinstance(edges, str | PathLike) else as_graph(edges)
    if given is not None and any(name is not None for name in (nodes, source, target, sign)):
        raise ValueError("nodes, source, target and sign are for a table of edges, got a graph")
    for path in (None if given is not None else edges, x, y, nodes, groups):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"no file {path}")
    xs, ys = read_table(x), read_table(y)
    columns: dict[str, Any] = {"source": source, "target": target, "sign": sign}
    with _overheard() as said:
        if given is not None:
            graph = given
        elif nodes is not None or "etype" in read_delimited(edges).header:
            graph = HeteroGraph.from_tsv(edges, nodes, **columns, measured=(str(y), list(ys.columns)))
        else:
            graph = _untyped_graph(edges, str(x), xs, str(y), ys, columns)
    _refuse_transposed(set(graph.node_names_dict["input"]), xs, str(x), "input ")
    _refuse_transposed(set(graph.node_names_dict["output"]), ys, str(y), "output ")
    xs, ys, order = _matched(graph, xs, ys, str(x), str(y))
    labels = None if groups is None else _read_groups(groups, group_column, xs.index, str(x))
    with _overheard() as more:
        _warn_of_lone_inputs(xs, labels, str(x))
    return Data(graph, xs, ys, order, labels, (*said, *more))


def match_data(graph: Any, x: pd.DataFrame, y: pd.DataFrame, groups: pd.Series | None = None) -> Data:
    """Check tables in memory against a graph, as :func:`load_data` does with files.

    Args:
        graph: a :class:`gsnn.graph.HeteroGraph`, such as :func:`gsnn.graph.build_graph.build` gives, or
            what ``gsnn.graph.as_graph`` takes.
        x: samples in rows, named by the index, one column per input node, complete.
        y: the same for output nodes; NaN was not measured.
        groups: a label for each sample, by its name; samples of one label stay together in a split.

    Raises:
        TypeError: x or y is no DataFrame, groups no Series.
        ValueError: tables and graph do not fit together, as in :func:`load_data`.
    """
    graph = as_graph(graph)
    for name, table, kind in (("x", x, pd.DataFrame), ("y", y, pd.DataFrame), ("groups", groups, pd.Series)):
        if not isinstance(table, kind) and not (name == "groups" and table is None):
            raise TypeError(f"{name} must be a pandas {kind.__name__}, got {type(table).__name__}")
    tables = {}
    for name, table in (("x", x), ("y", y)):
        _check_names([str(label) for label in table.index], f"{name}: sample")
        try:
            tables[name] = table.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be numeric: {error}") from None
    xs, ys, order = _matched(graph, tables["x"], tables["y"], "x", "y")
    labels = None
    if groups is not None:
        labels = _labels_for(groups, xs.index, "groups", "x")
    with _overheard() as said:
        _warn_of_lone_inputs(xs, labels, "x")
    return Data(graph, xs, ys, order, labels, tuple(said))


def _matched(
    graph: HeteroGraph, xs: pd.DataFrame, ys: pd.DataFrame, x: str, y: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Index]:
    """The tables with the columns of the graph and the rows in order, and the samples as X had them."""
    xs = select_columns(xs, list(graph.node_names_dict["input"]), "input", x)
    ys = select_columns(ys, list(graph.node_names_dict["output"]), "output", y)
    for a, path_a, b, path_b in ((xs, x, ys, y), (ys, y, xs, x)):
        odd = a.index.difference(b.index)
        if len(odd):
            hint = did_you_mean(odd, b.index)
            raise ValueError(
                f"{path_a} has {len(odd)} sample(s) that {path_b} lacks: {some_names(odd)}{hint}"
            )
    if len(xs) < 4:
        raise ValueError(f"{x} must have at least 4 samples to train and test on, got {len(xs)}")
    order = xs.index
    xs, ys = xs.sort_index(), ys.sort_index()
    check_values(xs, ys, x, y)
    return xs, ys, order


def _warn_of_lone_inputs(x: pd.DataFrame, groups: pd.Series | None, name: str) -> None:
    """Say which inputs are 0 but in a single sample, or in a single group, which is tested as a whole."""
    used = x.to_numpy() != 0
    if groups is not None:
        used = pd.DataFrame(used, x.index).groupby(groups.to_numpy()).any().to_numpy()
    lone = x.columns[used.sum(axis=0) == 1]
    if len(lone):
        one = "sample" if groups is None else "group"
        warnings.warn(
            f"{name} has {len(lone)} of {len(x.columns)} input(s) that are 0 but in a single {one}: "
            f"{some_names(lone)}; when that {one} is tested, training has never seen them. One input a gene "
            "or drug, with the dose as its value (1 knock-out, 0.5 knock-down), shares what can be learnt",
            DataWarning,
            stacklevel=3,
        )


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """The texts of the warnings given inside, which are then given as they would have been."""
    said: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
    finally:
        said += [str(w.message) for w in caught]
        for w in caught:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


def _refuse_transposed(nodes: set[str], table: pd.DataFrame, name: str, kind: str) -> None:
    if not nodes & set(table.columns) and len(nodes & set(table.index)) > len(table) / 2:
        raise ValueError(
            f"{name} seems to be transposed: its rows, not its columns, are called as the {kind}nodes are; "
            "samples go into rows"
        )


def _untyped_graph(
    edges: FilePath,
    x_name: str,
    x: pd.DataFrame,
    y_name: str,
    y: pd.DataFrame,
    columns: dict[str, Any],
) -> HeteroGraph:
    """The tables say which names are inputs and outputs; sorted, so that their order plays no part."""
    rows, _ = interactions.read_table(edges)
    ends = interactions.named_columns(rows, str(edges), **columns)
    if "source" not in ends or "target" not in ends:
        raise ValueError(
            f"{edges} must have the columns 'source' and 'target', got {some_names(map(str, rows.columns))}; "
            "name others with --source and --target"
        )
    known = {*ends["source"], *ends["target"]}
    _refuse_transposed(known, x, x_name, "")
    _refuse_transposed(known, y, y_name, "")
    # A measured protein that signals, or that an input feeds, is a function node as well.
    inner = {*ends["source"], *ends["target"][ends["source"].isin(x.columns)]}
    graph = HeteroGraph.from_tsv(
        edges,
        input_nodes=sorted(x.columns),
        output_nodes=sorted(name for name in y.columns if name not in inner or name in set(x.columns)),
        **columns,
        measured=(y_name, sorted(y.columns)),
    )
    names, index = graph.node_names_dict, graph.edge_index_dict
    between, into, out_of = (index[etype] for etype in EDGE_TYPES)
    for kind, table, nodes in (("input", x_name, into[0]), ("output", y_name, out_of[1])):
        used = set(nodes.tolist())
        idle = [name for i, name in enumerate(names[kind]) if i not in used]
        if idle:
            raise ValueError(
                f"{table} has {len(idle)} column(s) that are no {kind} node of {edges}: {some_names(idle)}"
                f"{did_you_mean(idle, names['function'])}"
            )
    fed = {*between[1].tolist(), *into[1].tolist()}
    orphans = [name for i, name in enumerate(names["function"]) if i not in fed]
    if orphans:
        warnings.warn(
            f"{edges} has no column 'etype' and there is no table of nodes, so {len(orphans)} name(s) that "
            f"no edge points to, and that {x_name} lacks, were taken for function nodes: "
            f"{some_names(orphans)}",
            GraphWarning,
            stacklevel=3,
        )
    feeding = {*between[0].tolist(), *out_of[0].tolist()}
    idle = [name for i, name in enumerate(names["function"]) if i in fed and i not in feeding]
    if idle:
        warnings.warn(
            f"{edges} has no column 'etype' and there is no table of nodes, so {len(idle)} name(s) that "
            f"point to nothing, and that {y_name} lacks, were taken for function nodes: {some_names(idle)}",
            GraphWarning,
            stacklevel=3,
        )
    return graph


def read_table(path: FilePath) -> pd.DataFrame:
    """A numeric table: the first column names the rows, the header the other columns.

    A header that is one name short, as R's ``write.table`` leaves it, is understood. Empty cells, ``NA``,
    ``NaN`` and the like become NaN. See ``gsnn._delimited`` for separators, quotes and compression.

    Raises:
        ValueError: an empty file, a row of another length than the header, a name that is missing or there
            twice, a cell that is not a number.
    """
    found = read_delimited(path)
    names = found.header[1:]
    if not names or not found.rows:
        raise ValueError(f"{path} must have a header, a column of sample names and at least one more column")
    _check_names(names, f"{path}: column")
    samples = [row[0] for row in found.rows]
    _check_names(samples, f"{path}: sample")
    values = np.empty((len(samples), len(names)))
    for at, name in enumerate(names):
        cells = ["nan" if row[at + 1] in GAPS else row[at + 1] for row in found.rows]
        try:
            if any("_" in cell for cell in cells):  # Python reads 1_0 as 10, nobody else does
                raise ValueError
            values[:, at] = np.array(cells, dtype=object).astype(np.float64)
        except ValueError:
            row = next(k for k, cell in enumerate(cells) if not _is_number(cell))
            raise ValueError(
                f"{path} must be numeric, got {cells[row]!r} in column {name!r}, sample {samples[row]!r} "
                f"(line {found.lines[row]}){_number_hint(cells[row])}"
            ) from None
    return pd.DataFrame(values, pd.Index(samples, name="sample"), pd.Index(names))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _number_hint(cell: str) -> str:
    if cell.upper() in ("TRUE", "FALSE"):
        return "; write 1 for TRUE and 0 for FALSE"
    if "," in cell and _is_number(cell.replace(",", ".", 1)):
        return f"; write the decimal point, {cell.replace(',', '.', 1)}"
    return ""


def check_values(x: pd.DataFrame, y: pd.DataFrame, x_name: str, y_name: str) -> None:
    """Refuse gaps in x, infinities, outputs without data, and columns that never change.

    Raises:
        ValueError: naming the table, the column and, for a single value, the sample.
    """
    for table, name, bad, expected in (
        (x, x_name, ~np.isfinite(x.to_numpy()), "a finite number in every cell"),
        (y, y_name, np.isinf(y.to_numpy()), "finite numbers or empty cells"),
    ):
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"{name} must have {expected}, got {table.to_numpy()[row, column]} in column "
                f"{table.columns[column]!r}, sample {table.index[row]!r} ({bad.sum()} such cells)"
            )
    empty = y.columns[y.isna().all()]
    if len(empty):
        raise ValueError(
            f"{y_name} has {len(empty)} output(s) without any measured value: {some_names(empty)}; "
            "drop them from the table and from the graph"
        )
    for table, name, kind in ((x, x_name, "input"), (y, y_name, "output")):
        flat = table.columns[table.min() == table.max()]
        if len(flat):
            value = table[flat[0]].dropna().iloc[0]
            raise ValueError(
                f"{name} has {len(flat)} constant column(s), nothing can be learnt from them: "
                f"{some_names(flat)} ({flat[0]!r} is {value:g} in every sample); drop them from the table "
                f"and their {kind} nodes from the graph"
            )


def _read_groups(path: FilePath, column: str | None, samples: pd.Index, x_name: str) -> pd.Series:
    found = read_delimited(path)
    table = pd.DataFrame([row[1:] for row in found.rows], columns=found.header[1:], dtype=object)
    table.index = pd.Index([row[0] for row in found.rows])
    if column is None:
        if len(table.columns) != 1:
            raise ValueError(
                f"{path} must have one group column, or group_column must say which to take; "
                f"got {some_names(table.columns)}"
            )
        column = str(table.columns[0])
    if column not in table.columns:
        raise ValueError(f"{path} has no column {column!r}; it has {some_names(table.columns)}")
    return _labels_for(table[column], samples, str(path), x_name)


def _labels_for(labels: pd.Series, samples: pd.Index, name: str, x_name: str) -> pd.Series:
    if not labels.index.is_unique:
        twice = labels.index[labels.index.duplicated()]
        raise ValueError(f"{name} names samples twice: {some_names(twice)}")
    missing = samples.difference(labels.index)
    if len(missing):
        hint = did_you_mean(missing, labels.index)
        raise ValueError(f"{name} lacks {len(missing)} sample(s) of {x_name}: {some_names(missing)}{hint}")
    labels = labels[samples]
    empty = labels.isna() | (labels == "")
    if empty.any():
        raise ValueError(f"{name} has samples without a group: {some_names(labels.index[empty])}")
    return labels


def _check_names(names: Sequence[str], what: str) -> None:
    counts = pd.Series(names).value_counts()
    if "" in counts.index:
        raise ValueError(f"{what} names must not be empty")
    twice = counts.index[counts > 1]
    if len(twice):
        raise ValueError(f"{what} names must be unique, got several of {some_names(sorted(twice))}")
