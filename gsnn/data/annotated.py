"""AnnData as X, Y and groups: columns of ``obs`` say what was done, ``var_names`` what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd

from gsnn._text import did_you_mean, some_names
from gsnn.data.rows import is_anndata
from gsnn.data.samples import Samples, conditions


def from_anndata(
    adata: Any,
    inputs: str | Sequence[str],
    *,
    dose: str | Mapping[str, str] | None = None,
    control: str | Iterable[str] = (),
    separator: str | None = None,
    outputs: Sequence[str] | None = None,
    groups: str | Sequence[str] | None = None,
    layer: str | None = None,
) -> Samples:
    """Make X, Y and groups of an AnnData.

    A column of numbers, or of True and False, in ``obs`` is an input of its own name. Any other column, of
    drugs say, gives an input for each of its values: 1, or the dose, in the samples that have it, else 0.

    Args:
        adata: an AnnData, or the path of an h5ad file (extra ``anndata``).
        inputs: the columns of ``obs`` that say what was done to a sample.
        dose: the column with the doses of a column of names, ``{"drug": "dose_uM"}``; the name alone where
            ``inputs`` has one column of names. Doses are numbers.
        control: values that mean that nothing was done, such as ``"DMSO"``; they get no input. Empty cells
            mean so too.
        separator: what parts several names in one cell, such as ``"+"``, and their doses; a single dose is
            that of each of them.
        outputs: names of the genes to take; by default all ``var_names``.
        groups: columns of ``obs`` whose samples must not be parted: a cell line, a donor, a plate. Several
            are taken together. By default samples with equal rows of X, replicates, are one group.
        layer: the layer to take the values from; by default ``adata.X``.

    Returns:
        The samples, called by ``obs_names``. The values of the outputs are made dense; for a table larger
        than the memory give the AnnData itself to ``fit``.

    Raises:
        ImportError: a path, without the package anndata.
        TypeError: no AnnData and no path.
        ValueError: columns, genes or a layer that are not there, names that repeat, doses that are no
            numbers, samples without a group.
    """
    if isinstance(adata, str | PathLike):
        try:
            import anndata
        except ImportError as error:
            raise ImportError("reading h5ad files needs anndata: pip install 'gsnn[anndata]'") from error
        adata = anndata.read_h5ad(adata)
    if not is_anndata(adata):
        raise TypeError(f"adata must be an AnnData or the path of an h5ad file, got {type(adata).__name__}")
    if not (adata.obs_names.is_unique and adata.var_names.is_unique):
        raise ValueError("adata must have unique obs_names and var_names; see adata.obs_names_make_unique()")
    obs = adata.obs
    columns = [inputs] if isinstance(inputs, str) else list(inputs)
    _need(columns, obs.columns, "inputs", "columns of obs")
    named = [column for column in columns if not pd.api.types.is_numeric_dtype(obs[column])]
    doses = _doses(dose, named, obs.columns)
    nothing = {control} if isinstance(control, str) else set(control)
    parts: dict[str, np.ndarray] = {}
    for column in columns:
        if column in named:
            at = doses.get(column)
            new = _one_hot(obs[column], None if at is None else obs[at], nothing, separator)
        else:
            new = {str(column): obs[column].to_numpy(dtype=float)}
        twice = sorted(parts.keys() & new.keys())
        if twice:
            raise ValueError(f"inputs must have names that differ, got several of {some_names(twice)}")
        parts.update(new)
    if not parts:
        raise ValueError(f"inputs must have a value besides the controls, got none in {some_names(columns)}")
    x = pd.DataFrame(parts, index=obs.index)
    y = _values(adata, outputs, layer)
    labels = conditions(x) if groups is None else _labels(obs, groups)
    return Samples(x, y, pd.Series(labels, obs.index, name="group"))


def _need(wanted: Iterable[Any], known: Any, argument: str, what: str) -> None:
    lost = [name for name in wanted if name not in known]
    if lost:
        raise ValueError(
            f"{argument} must be {what} of adata, got {some_names(lost)}; it has {some_names(known)}"
            f"{did_you_mean(lost, known)}"
        )


def _doses(dose: str | Mapping[str, str] | None, named: Sequence[str], known: Any) -> dict[str, str]:
    if dose is None:
        return {}
    if isinstance(dose, str):
        if len(named) != 1:
            raise ValueError(
                f"dose must say which column it belongs to, such as {{'drug': {dose!r}}}, as inputs has "
                f"{len(named)} columns of names"
            )
        dose = {named[0]: dose}
    odd = [column for column in dose if column not in named]
    if odd:
        raise ValueError(f"dose must be for columns of names among inputs, got {some_names(odd)}")
    _need(dose.values(), known, "dose", "columns of obs")
    return dict(dose)


def _one_hot(
    names: pd.Series, doses: pd.Series | None, nothing: set[str], separator: str | None
) -> dict[str, np.ndarray]:
    """For each name its dose, or 1, in the samples that have it."""
    found: dict[str, np.ndarray] = {}
    for row, cell in enumerate(names):
        stated = _parts(cell, separator)
        amounts = ["1"] * len(stated) if doses is None else _parts(doses.iloc[row], separator)
        if len(amounts) == 1:
            amounts = amounts * len(stated)
        for k, name in enumerate(stated):
            if name in nothing:
                continue
            try:
                amount = float(amounts[k])
            except (ValueError, IndexError):
                amount = np.nan
            if not np.isfinite(amount):
                given = None if doses is None else doses.iloc[row]
                raise ValueError(
                    f"dose must have a number for each name in {names.name!r}, got {given!r} for {cell!r} in "
                    f"sample {names.index[row]!r}"
                )
            found.setdefault(name, np.zeros(len(names)))[row] += amount
    return dict(sorted(found.items()))


def _parts(cell: Any, separator: str | None) -> list[str]:
    if cell is None or cell is pd.NA or cell != cell:
        return []
    text = str(cell)
    return [part.strip() for part in (text.split(separator) if separator else [text]) if part.strip()]


def _values(adata: Any, outputs: Sequence[str] | None, layer: str | None) -> pd.DataFrame:
    names = list(adata.var_names) if outputs is None else list(outputs)
    _need(names, adata.var_names, "outputs", "var_names")
    if layer is not None and layer not in adata.layers:
        layers = [name for name in adata.layers if name is not None]  # anndata 0.13 counts X as None
        raise ValueError(f"layer must be one of {some_names(layers)}, got {layer!r}")
    part = adata[:, names]
    table = part.X if layer is None else part.layers[layer]
    if table is None:
        raise ValueError("adata must have X, or layer must say where the values are")
    dense = table.toarray() if hasattr(table, "toarray") else np.asarray(table)
    return pd.DataFrame(np.array(dense, dtype=float), adata.obs_names, names)


def _labels(obs: pd.DataFrame, groups: str | Sequence[str]) -> list[str]:
    columns = [groups] if isinstance(groups, str) else list(groups)
    _need(columns, obs.columns, "groups", "columns of obs")
    gaps = obs[columns].isna().any(axis=1)
    if gaps.any():
        raise ValueError(
            f"groups must have a label for each sample, got none for {some_names(obs.index[gaps])}"
        )
    return ["|".join(map(str, row)) for row in obs[columns].itertuples(index=False)]
