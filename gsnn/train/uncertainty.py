"""How sure a prediction is: an ensemble over folds, its spread, and intervals calibrated by held-out errors.

The spread of an ensemble says where the networks disagree, which is where the data did not decide between
them. It leaves out what no network can know, the noise of the measurement, and so is no interval. Residuals
of samples that were held out have both, and :mod:`gsnn.stats.conformal` makes intervals of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsnn._checks import whole, within
from gsnn.data.match import aligned, as_pair, node_names, sample_names
from gsnn.models.copies import fresh
from gsnn.models.GSNN import GSNN
from gsnn.stats.conformal import cross_conformal
from gsnn.train.loop import predict
from gsnn.train.side_by_side import fit_side_by_side

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Forecast:
    """Predictions (B, N_out) with what is known of their error; tables by name where x was one.

    Attributes:
        mean: of all networks.
        std: standard deviation over them, the spread of the ensemble (n - 1 in the denominator).
        low, high: interval that holds a measured value with the probability ``level``.
        level: as asked for.
    """

    mean: Any
    std: Any
    low: Any
    high: Any
    level: float


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks of K folds, and the errors that each made on its fold.

    Attributes:
        members: K lists of trained GSNNs; those of list k have not seen the samples of fold k.
        fold: (n,) the fold (from 0) of each sample.
        held_out: (n, N_out) mean prediction of each sample by the networks that have not seen it.
        residuals: (n, N_out) what was measured less ``held_out``, NaN where nothing was.
    """

    members: tuple[tuple[GSNN, ...], ...]
    fold: NDArray[np.int64]
    held_out: Array
    residuals: Array

    def predict(self, x: Any, level: float = 0.9) -> Forecast:
        """Mean, spread and interval of each prediction.

        Args:
            x: (B, N_in), anything that ``gsnn.predict`` takes.
            level: probability with which a new measurement should lie inside; new samples must be drawn as
                those of the fit were, which a new drug or cell line is not unless whole ones were held out
                (``groups``).

        Raises:
            ValueError: a level outside (0, 1), and what ``gsnn.predict`` says.
        """
        within("level", level, "(0, 1)")
        each = [np.stack([_values(model, x) for model in fold]) for fold in self.members]
        every = np.concatenate(each)
        by_fold = np.stack([fold.mean(0) for fold in each])
        low, high = cross_conformal(by_fold, self.fold, np.abs(self.residuals), level)
        parts: list[Any] = [every.mean(0), every.std(0, ddof=1), low, high]
        names = sample_names(x)
        if names is not None:
            import pandas as pd

            columns = node_names(self.members[0][0], "output")
            parts = [pd.DataFrame(values, index=names, columns=columns) for values in parts]
        mean, std, low, high = parts
        return Forecast(mean, std, low, high, level)


def fit_ensemble(
    model: GSNN,
    x: Any,
    y: Any,
    *,
    folds: int = 5,
    n_members: int = 2,
    groups: Any = None,
    seed: int = 0,
    standardize: bool = True,
    **options: Any,
) -> Ensemble:
    """Train ``n_members`` networks on each of ``folds`` training sets, all side by side.

    Args:
        model: a GSNN whose graph, arguments, dtype and device the networks get; it is not trained.
        x, y: as for ``gsnn.fit``; they are read into memory. NaN in y is a missing measurement.
        folds: K, at least 2.
        n_members: networks on each training set, from initial weights and batches of their own.
        groups: (n,) labels; samples of one label are in one fold, so that intervals are for samples of new
            labels (replicates, treatments, cell lines). A Series is matched by name.
        seed: of the folds, the initial weights and the batches.
        standardize: as for ``gsnn.fit``, by the samples of each training set.
        options: of :func:`gsnn.train.side_by_side.fit_side_by_side`: ``epochs``, ``lr``, ``verbose``, ...

    Raises:
        ValueError: an option out of its range, fewer samples or labels than folds, an output that has no
            measured value outside some fold, and what ``fit_side_by_side`` says.
    """
    folds, n_members = whole("folds", folds, 2), whole("n_members", n_members)
    xs, ys = as_pair(model, x, y, "x", "y")
    values, targets = xs[:].numpy(), ys[:].numpy()
    fold = _folds(len(values), folds, None if groups is None else aligned(groups, x, "groups"), seed)
    measured = ~np.isnan(targets)
    for k in range(folds):
        empty = np.flatnonzero(~measured[fold != k].any(0))
        if len(empty):
            name = node_names(model, "output")[empty[0]]
            raise ValueError(f"y must have a measured value outside every fold, got none for {name!r} in one")
    training = [(values[fold != k], targets[fold != k]) for k in range(folds)]
    drawn = np.random.default_rng(seed).integers(2**31, size=folds * n_members).tolist()
    models = [fresh(model, number) for number in drawn]
    fit_side_by_side(
        models,
        [data for data in training for _ in range(n_members)],
        seeds=drawn,
        standardize=standardize,
        **options,
    )
    members = tuple(tuple(models[k * n_members : (k + 1) * n_members]) for k in range(folds))
    held_out = np.empty(targets.shape)
    for k, own in enumerate(members):
        held_out[fold == k] = np.mean([_values(one, values[fold == k]) for one in own], axis=0)
    return Ensemble(members, fold, held_out, targets - held_out)


def _folds(n: int, folds: int, groups: Any, seed: int) -> NDArray[np.int64]:
    """(n,) the fold of each sample."""
    from sklearn.model_selection import GroupKFold, KFold

    labels = None if groups is None else np.asarray(groups)
    if labels is not None and labels.shape != (n,):
        raise ValueError(f"groups must have the shape ({n},), one label a row, got {labels.shape}")
    units, what = (n, "samples") if labels is None else (len(set(labels.tolist())), "labels in groups")
    if units < folds:
        raise ValueError(f"folds must be at most the {units} {what}, got {folds}")
    kind = KFold if labels is None else GroupKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    fold = np.empty(n, dtype=np.int64)
    for k, (_, test) in enumerate(splitter.split(np.zeros((n, 1)), groups=labels)):
        fold[test] = k
    return fold


def _values(model: GSNN, x: Any) -> Array:
    return np.asarray(predict(model, x), dtype=np.float64)
