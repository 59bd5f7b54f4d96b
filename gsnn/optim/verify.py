"""Which candidate edges hold on samples that nobody has used, and which others would do in their place.

A new edge i -> j with small weights changes the prediction by a linear function of its C x C matrix at each
pair of layers. For a network that is settled, so that what it leaves unexplained is not what it has not
learnt yet, that matrix is fitted in closed form on one part of the data, and its gain is tested on another.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from gsnn._checks import one_of, whole, within
from gsnn._text import some_names
from gsnn.data.scaling import scaling_of
from gsnn.graph.container import HeteroGraph, as_graph
from gsnn.models.GSNN import GSNN
from gsnn.optim._linearised import Linearised
from gsnn.optim.candidates import named_pairs
from gsnn.optim.edge_table import KeptEdges, check_missing
from gsnn.optim.staging import Samples, reduced, squared_errors
from gsnn.stats.significance import benjamini_hochberg
from gsnn.train.side_by_side import fit_side_by_side

if TYPE_CHECKING:
    import pandas as pd

How = Literal["linear", "trained"]
HOWS: tuple[How, ...] = get_args(How)

Array = np.ndarray[Any, np.dtype[np.float64]]

_SETTLING = {"steps": 300, "lr": 1e-3, "weight_decay": 1e-2, "batch_size": 64}
_PLACEBOS = 3  # random sources of each target
_RIVALS = 8  # pairs of the same target, and of others, that are looked at as alternatives
_SAME = 0.3  # share of an edge's effect on the prediction that an alternative brings too
_MOST_BYTES = 2**30  # of the derivatives with respect to all function nodes


def verify(
    model: GSNN,
    graph: Any,
    edges: Any,
    x: Any,
    y: Any,
    *,
    margin: float = 0.005,
    alpha: float = 0.05,
    folds: int = 2,
    groups: Any = None,
    how: How = "linear",
    seed: int = 0,
) -> pd.DataFrame:
    """Test each candidate edge on samples that had no part in choosing it.

    For each of `folds` parts of the samples, the network is settled on the other parts (trained on with a
    learning rate that falls to 0), the edge's effect is fitted there, and its gain is taken on the part, so
    that every sample is judged once, by weights that it had no say in.

    Args:
        model: a GSNN trained on `graph`, or on `graph` and some of the candidates, which are then taken out.
            It is not changed.
        graph: the graph without the candidates.
        edges: (source, target) name pairs of function nodes, or a table with columns `src_func`, `dst_func`
            (or `source`, `target`).
        x, y: samples, as `gsnn.fit` takes them, in the units that the model was trained in (original ones
            where it carries a scaling). They must have had no part in choosing the edges or training the
            model.
        margin: the share of the loss that an edge must take away to be worth something.
        alpha: largest q-value of a verified edge.
        folds: parts of the samples, an int of at least 2.
        groups: one label a sample, in the order of x, or None. Samples of one label stay in one part, and
            tests and intervals are over groups, not over samples, as those of one label are no independent
            draws.
        how: 'linear', the effect of an edge fitted in closed form to the settled network; or 'trained', as a
            check: for each candidate and placebo a network with that edge is trained on as long as the one
            without it. That is much slower, calls more edges useful that are not, and looks for no
            alternatives.
        seed: of the parts, the batches and the placebos.

    Returns:
        DataFrame, one row a candidate in the given order:

        - `gain`: share of the loss on unused samples that the edge takes away; `gain_low`, `gain_high` its
          95% interval over samples
        - `p_value`: one-sided, of a gain of at most `margin`, by Student's t over samples: uniform for an
          edge worth just `margin`, too large for one worth less; `q_value`: Benjamini & Hochberg's over the
          candidates; `verified`: q_value <= alpha
        - `placebo_gain`: mean gain of up to three random sources of the same target, treated alike
        - `alternatives`: for a verified edge a tuple of the (source, target) pairs that would do as well in
          its place, best first: their gain is positive and not lower than the edge's by a paired one-sided
          test at 5%, and they change the predictions alike, a multiple of one change being at least 30% of
          the other. The edge with its alternatives is a set of candidates, one of which is meant; the data
          do not say which. Looked at are the eight pairs into the same target and the eight into others that
          come closest to the edge's effect to first order; the others only where the derivatives with
          respect to all function nodes fit in 1 GiB. Empty otherwise.

    Raises:
        TypeError, ValueError: `graph` is not the model's, edges that exist or are unknown, an option out of
            its range, fewer than 10 samples or 5 groups a fold, an output with too few measured values to be
            in each part.
    """
    import pandas as pd

    graph = as_graph(graph, warn=False)
    kept = KeptEdges.of(graph)
    given = named_pairs(edges, "edges")
    _check_inner(given, graph)
    pairs = check_missing(given, kept, "edges")
    _check_options(margin, alpha, folds, how, seed)
    base = reduced(model, graph)
    samples = Samples.of(base, x, y)
    n = len(samples)
    if n < 10 * folds:
        raise ValueError(f"x must have at least 10 samples a fold, {10 * folds}, got {n}")
    units = _units(samples, groups, len(x), folds)
    number = {name: k for k, name in enumerate(kept.names)}
    wanted = [(number[s], number[t]) for s, t in pairs]
    targets = sorted({t for _, t in wanted})
    rng = np.random.default_rng(seed)
    part = _parts(samples, units, folds, rng, graph.node_names_dict["output"])
    placebos = {t: _placebos(t, wanted, kept, rng) for t in targets}

    room = 8 * n * (base.layers - 1) * samples.y.shape[1] * base.channels * len(kept.names)
    looked_at = range(len(kept.names)) if room <= _MOST_BYTES else targets
    tried = [*wanted, *((u, t) for t in targets for u in placebos[t])]
    parts: list[Linearised | _Trained] = []
    for k in range(folds):
        if how == "trained":
            parts.append(_Trained(base, samples, part != k, kept.names, tried, seed + k))
        else:
            (settled,) = _settled([base], samples.take(part != k), seed + k)
            parts.append(Linearised(settled, samples, part != k, kept.names, looked_at))
    judge = _Judge(parts, part, units)

    rows = []
    for (source, target), (s, t) in zip(pairs, wanted, strict=True):
        before = judge.before(t)
        gain, low, high, p = _judged(judge.gain(s, t), before, margin)
        others = [judge.gain(u, t).sum() / before.sum() for u in placebos[t]]
        rows.append((source, target, gain, low, high, p, float(np.mean(others)) if others else math.nan))
    names = ["src_func", "dst_func", "gain", "gain_low", "gain_high", "p_value", "placebo_gain"]
    table = pd.DataFrame(rows, columns=names)
    table.insert(6, "q_value", benjamini_hochberg(table["p_value"].to_numpy()))
    table.insert(7, "verified", table["q_value"] <= alpha)
    missing = ~(kept.mask | np.eye(len(kept.names), dtype=bool))
    alternatives = pd.Series(index=table.index, dtype=object)
    for row, ((s, t), verified) in enumerate(zip(wanted, table["verified"], strict=True)):
        found = judge.alternatives(s, t, missing) if verified else []
        alternatives[row] = tuple((kept.names[u], kept.names[v]) for u, v in found)
    table["alternatives"] = alternatives
    return table


def _check_inner(pairs: Sequence[tuple[str, str]], graph: HeteroGraph) -> None:
    names = graph.node_names_dict
    inner, ends = set(names["function"]), {*names["input"], *names["output"]}
    outer = [pair for pair in pairs if any(name in ends and name not in inner for name in pair)]
    if outer:
        raise ValueError(
            "edges must join function nodes, as edges from inputs and to outputs cannot be verified, got "
            f"{some_names(outer)}"
        )


def _check_options(margin: Any, alpha: Any, folds: Any, how: Any, seed: Any) -> None:
    within("margin", margin, "[0, 1)")
    within("alpha", alpha, "[0, 1)")
    whole("folds", folds, at_least=2)
    one_of("how", how, HOWS)
    whole("seed", seed, at_least=0)


def _units(samples: Samples, groups: Any, n: int, folds: int) -> NDArray[np.int64]:
    """(n,): what each sample is a draw of, from 0: itself, or its group."""
    if groups is None:
        return np.arange(len(samples))
    labels = np.asarray(groups)
    if len(labels) != n:
        raise ValueError(f"groups must have one label a sample, {n}, got {len(labels)}")
    names, units = np.unique(labels[samples.rows.numpy()], return_inverse=True)
    if len(names) < 5 * folds:
        raise ValueError(f"groups must have at least 5 labels a fold, {5 * folds}, got {len(names)}")
    return units


def _parts(
    samples: Samples, units: NDArray[np.int64], folds: int, rng: np.random.Generator, names: Sequence[str]
) -> NDArray[np.int64]:
    """(n,): the part that each sample is judged in; the others together measure every output."""
    measured = ~samples.y.isnan().numpy()
    for _ in range(100):
        part = (rng.permutation(int(units.max()) + 1) % folds)[units]
        seen = np.array([measured[part != k].any(0) for k in range(folds)])
        if seen.all():
            return part
    rare = [names[k] for k in np.flatnonzero(~seen.all(0)).tolist()]
    raise ValueError(
        f"y must measure every output often enough to be in each of {folds} parts, got too few values of "
        f"{some_names(rare)}"
    )


def _settled(models: Sequence[GSNN], samples: Samples, seed: int) -> list[GSNN]:
    """Copies trained on with a learning rate that falls to 0, in the units that the models have."""
    models = [copy.deepcopy(model) for model in models]
    steps = math.ceil(len(samples) / int(_SETTLING["batch_size"]))
    fit_side_by_side(
        models,
        [(samples.x, samples.y)] * len(models),
        seeds=[seed] * len(models),
        epochs=math.ceil(_SETTLING["steps"] / steps),
        batch_size=int(_SETTLING["batch_size"]),
        lr=_SETTLING["lr"],
        weight_decay=_SETTLING["weight_decay"],
        standardize=scaling_of(models[0]) or False,
        verbose=False,
    )
    return models


class _Trained:
    """As `Linearised`, but each edge is really trained: networks with one of them each, settled alike."""

    def __init__(
        self,
        model: GSNN,
        samples: Samples,
        fitting: Any,
        names: Sequence[str],
        edges: Sequence[tuple[int, int]],
        seed: int,
    ) -> None:
        trials = [model.grown([(names[s], names[t])], seed=seed) for s, t in edges]
        scaling = scaling_of(model)
        settled = _settled([model, *trials], samples.take(fitting), seed)
        scaled = samples if scaling is None else samples.scaled(scaling)
        self._before, *after = (squared_errors(own, scaled).nansum(1) for own in settled)
        self._after = dict(zip(edges, after, strict=True))

    def before(self, target: int) -> Tensor:
        """(n,): each sample's squared error without a new edge, whatever its target."""
        return self._before

    def after(self, source: int, target: int) -> Tensor:
        """(n,): the same with the edge."""
        return self._after[source, target]


class _Judge:
    """Gains of edges, each sample's by the network that was settled without it, summed over its unit."""

    def __init__(
        self, parts: Sequence[Linearised | _Trained], part: NDArray[np.int64], units: NDArray[np.int64]
    ) -> None:
        self.parts, self.part, self.units = parts, part, units
        self._gains: dict[tuple[int, int], Array] = {}

    def before(self, target: int) -> Array:
        """Squared error of each unit without a new edge."""
        return self._crossed([fitted.before(target) for fitted in self.parts])

    def gain(self, source: int, target: int) -> Array:
        """By how much the edge lowers it."""
        edge = source, target
        if edge not in self._gains:
            after = self._crossed([fitted.after(source, target) for fitted in self.parts])
            self._gains[edge] = self.before(target) - after
        return self._gains[edge]

    def alternatives(self, source: int, target: int, missing: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Edges that change the prediction alike and lower the error as much, best first.

        `missing` (N, N) is True for the pairs that may be looked at. None where edges were really trained.
        """
        linear = [fitted for fitted in self.parts if isinstance(fitted, Linearised)]
        if not linear:
            return []
        edge = source, target
        mine, after = self._change(edge), self.before(target) - self.gain(*edge)
        alike = np.full(missing.shape, -np.inf)
        for t in linear[0].slopes:
            alike[:, t] = sum(f.likeness(f.change(*edge), t).numpy() for f in linear)
        alike[~missing] = -np.inf
        alike[edge] = -np.inf
        rivals = [(int(i), target) for i in np.argsort(-alike[:, target])[:_RIVALS]]
        alike[:, target] = -np.inf
        order = np.argsort(-alike, axis=None)[:_RIVALS].tolist()
        rivals += sorted((divmod(k, len(alike)) for k in order), key=lambda pair: pair[1])
        found = []
        for i, t in rivals:
            if not missing[i, t] or t not in linear[0].slopes:
                continue
            its = self.gain(i, t)
            more = self.before(t) - its - after
            if its.mean() > 0 and _one_sided(more) > 0.05 and _shared(mine, self._change((i, t))) >= _SAME:
                found.append((its.mean(), (i, t)))
        return [pair for _, pair in sorted(found, reverse=True)]

    def _change(self, edge: tuple[int, int]) -> Array:
        """(n, N_out): what the edge adds to each sample's prediction."""
        changes = [fitted.change(*edge).numpy() for fitted in self.parts if isinstance(fitted, Linearised)]
        return np.asarray(np.choose(self.part[:, None], changes))

    def _crossed(self, values: Sequence[Tensor]) -> Array:
        out = np.zeros(len(self.part))
        for k, of_part in enumerate(values):
            out[self.part == k] = of_part.numpy()[self.part == k]
        return np.asarray(np.bincount(self.units, weights=out), dtype=np.float64)


def _judged(gain: Array, before: Array, margin: float) -> tuple[float, float, float, float]:
    """Share of the loss, its 95% interval, and the p-value of a share of at most `margin`, over units."""
    n, total = len(gain), before.mean()
    share = gain.mean() / total
    error = (gain - share * before).std(ddof=1) / math.sqrt(n) / total
    reach = float(stats.t.ppf(0.975, n - 1)) * error
    return share, share - reach, share + reach, _one_sided(gain - margin * before)


def _shared(one: Array, other: Array) -> float:
    """Squared cosine: the share of one change that a multiple of the other makes."""
    size = float((one**2).sum() * (other**2).sum())
    return float((one * other).sum() ** 2) / size if size > 0 else 0.0


def _one_sided(values: Array) -> float:
    """p-value of a mean of at most 0."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    if not error > 0:
        return float(values.mean() <= 0)
    return float(stats.t.sf(values.mean() / error, len(values) - 1))


def _placebos(
    target: int, wanted: Sequence[tuple[int, int]], kept: KeptEdges, rng: np.random.Generator
) -> list[int]:
    taken = {target, *kept.parents[target], *(s for s, t in wanted if t == target)}
    free = [i for i in range(len(kept.names)) if i not in taken]
    return rng.permutation(free)[:_PLACEBOS].astype(int).tolist()
