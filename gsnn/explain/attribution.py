"""How much each input, function node or edge has to do with a prediction.

The methods are those of Captum (Kokhlikyan et al. 2020, arXiv 2009.07896), the extra ``explain``; names,
masks, units, tables and the check of completeness are added here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gsnn._checks import one_of, within
from gsnn.explain.predictor import PARTS, Part, Predictor

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["integrated_gradients", "occlusion", "gradient"]
METHODS: tuple[Method, ...] = get_args(Method)

_ROWS = 4096  # samples x steps that the network sees at a time
_STEPS = 12  # of a piece of the way
_HALVINGS = 10
#: Integrated gradients take more steps until their sum is about this close to the difference of the outputs,
#: relative to its root mean square over the samples.
TOLERANCE = 0.005


def attribute(
    model: Any,
    x: Any,
    output: str | int,
    *,
    method: Method = "integrated_gradients",
    of: Part = "inputs",
    baseline: Any = None,
    target: Any = None,
    per_sample: bool = False,
) -> pd.DataFrame:
    """What a prediction is made of.

    Scores are in the units of the output (those of ``gsnn.predict``), so they can be compared and added.
    Function nodes and edges are explained through ``node_mask`` and ``edge_mask`` of the forward pass: a mask
    of 1 is the network as it is, 0 takes the node's channels (before ``lin_out``) or the edge's state away.

    Args:
        model: a trained GSNN; mode, gradients and parameters are left as they were.
        x: samples (B, N_in), anything that ``predict`` takes from memory, in the user's units.
        output: name or column of the output to explain.
        method: ``integrated_gradients`` (Sundararajan et al. 2017): the gradient, averaged on the straight
            line from the baseline, times the way; scores of a sample sum to the difference of the
            predictions at its two ends. ``occlusion``: the prediction less what it is when one input, node
            or edge is put to its baseline. ``gradient``: the derivative at x, or at a mask of 1.
        of: ``inputs``, ``nodes`` (function nodes) or ``edges`` (flat edges, self edges included).
        baseline: where the comparison starts. For inputs a number, (N_in,) values or a table (B, N_in), by
            default 0, the untreated sample; for nodes and edges a number in [0, 1], by default 0.
        target: measured values (B,) of the output. What is explained is then the squared error
            ``(prediction - target)^2`` instead of the prediction.
        per_sample: one row per sample, one column per name, instead of the average.

    Returns:
        By default one row per name: ``name`` (for edges ``source``, ``target``), ``score``, the mean over
        samples, ``magnitude``, the mean of the absolute values, and ``spread``, the standard deviation.
        Inputs come by magnitude. Nodes and edges come by spread: they carry constants, too (biases), which
        have a magnitude in every sample and say nothing of what makes one differ from another. For a single
        sample there is no spread and the order is that of the magnitude, constants included;
        :func:`contrast` with an untreated sample takes them away. With ``per_sample`` a table (B, n), columns
        named likewise.

        ``attrs['ordered_by']`` of an average is the column that it is ordered by. ``attrs['completeness']``
        of integrated gradients holds ``error``, the root mean square of (sum of the scores - difference of
        the predictions) relative to that of the difference, and ``steps``, the most of any sample.

    Raises:
        ImportError: Captum is not there.
        ValueError: an unknown option or output, wrong shapes or columns.

    Warns:
        UserWarning: the sum misses the difference of the predictions by more than 1%.
    """
    for name, value, known in (("method", method, METHODS), ("of", of, PARTS)):
        one_of(name, value, known)
    captum = _captum()
    predictor = Predictor(model, output)
    values, rows = predictor.table(x, "x")
    measured = _target(target, values)
    extra: tuple[Tensor, ...]
    if of == "inputs":
        start, end, extra = _input_baseline(predictor, baseline, values), values, ()
    else:
        if baseline is not None:
            within(f"baseline of {of}", baseline, "[0, 1]")
        end = values.new_ones(len(values), len(predictor.names(of)))
        start, extra = torch.full_like(end, 0.0 if baseline is None else float(baseline)), (values,)

    def explained(part: Tensor, *rest: Tensor) -> Tensor:
        yhat = predictor.of_mask(of, part, rest[0]) if of != "inputs" else predictor(part)
        return yhat if measured is None else (yhat - rest[-1]) ** 2

    extra = (*extra, *(() if measured is None else (measured,)))
    with predictor.frozen():
        scores, completeness = _scores(captum, method, explained, start, end, extra)
    table = _table(scores, predictor.names(of), rows, per_sample, by_spread=of != "inputs")
    if completeness is not None:
        table.attrs["completeness"] = completeness
        if completeness["error"] > 0.01:
            warnings.warn(
                f"integrated gradients with {completeness['steps']} steps miss the difference of the "
                f"predictions by {completeness['error']:.1%}; the path crosses kinks of the network",
                stacklevel=2,
            )
    return table


def contrast(
    model: Any, x_a: Any, x_b: Any, output: str | int, *, of: Part = "inputs", per_sample: bool = False
) -> pd.DataFrame:
    """What makes the predictions of two samples differ, two drugs or two cell lines, say.

    Integrated gradients of the inputs go from ``x_b`` to ``x_a``. For nodes and edges the attributions of the
    two are subtracted, as both start from the same silent network. Either way the scores of a pair sum to
    prediction(a) - prediction(b).

    Args:
        x_a, x_b: tables (B, N_in) with the same number of rows; row k of one is compared with row k of the
            other. A single row is compared with every row of the other table.
        of, per_sample: as in :func:`attribute`, as is what comes back.

    Raises:
        ImportError, ValueError: as in :func:`attribute`; tables of different length.
    """
    predictor = Predictor(model, output)
    (a, rows), (b, other) = predictor.table(x_a, "x_a"), predictor.table(x_b, "x_b")
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ValueError(
            f"x_a and x_b must have the same number of rows, or one row, got {len(a)} and {len(b)}"
        )
    if len(a) < len(b):
        rows = other
    a, b = (part.expand(max(len(a), len(b)), -1) for part in (a, b))
    if of == "inputs":
        each = attribute(model, a.cpu(), output, baseline=b.cpu(), per_sample=True)
        scores, completeness = each.to_numpy(), each.attrs["completeness"]
    else:
        first, second = (attribute(model, part.cpu(), output, of=of, per_sample=True) for part in (a, b))
        scores = first.to_numpy() - second.to_numpy()
        with predictor.frozen(), torch.no_grad():
            gap = (predictor(a) - predictor(b)).double().cpu().numpy()
        steps = max(t.attrs["completeness"]["steps"] for t in (first, second))
        completeness = {"error": _relative(scores.sum(1) - gap, gap), "steps": steps}
    table = _table(torch.tensor(scores), predictor.names(of), rows, per_sample)
    table.attrs["completeness"] = completeness
    return table


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as err:
        raise ImportError("attributions need Captum: pip install 'gsnn[explain]'") from err
    return captum.attr


def _target(target: Any, values: Tensor) -> Tensor | None:
    if target is None:
        return None
    measured = torch.as_tensor(np.asarray(target, dtype=np.float64)).to(values)
    if measured.shape != (len(values),):
        raise ValueError(f"target must have shape ({len(values)},), got {tuple(measured.shape)}")
    if not bool(measured.isfinite().all()):
        raise ValueError("target must be finite; leave samples that were not measured out of x and target")
    return measured


def _input_baseline(predictor: Predictor, baseline: Any, values: Tensor) -> Tensor:
    if baseline is None:
        return torch.zeros_like(values)
    if not hasattr(baseline, "columns"):
        given = torch.as_tensor(np.asarray(baseline, dtype=np.float64)).to(values)
        if given.ndim < 2:
            if given.ndim == 1 and given.shape != values.shape[1:]:
                raise ValueError(
                    f"baseline must have {values.shape[1]} values, one per input, got {len(given)}"
                )
            return given.expand_as(values).contiguous()
    table, _ = predictor.table(baseline, "baseline")
    if len(table) not in (1, len(values)):
        raise ValueError(f"baseline must have 1 or {len(values)} rows, got {len(table)}")
    return table.expand_as(values).contiguous()


def _scores(
    captum: Any,
    method: Method,
    explained: Callable[..., Tensor],
    start: Tensor,
    end: Tensor,
    extra: tuple[Tensor, ...],
) -> tuple[Tensor, dict[str, float] | None]:
    """Scores (B, n) in float64 on the CPU, and how complete they are where that can be said."""
    if method == "gradient":
        parts = []
        saliency = captum.Saliency(explained)
        for rows in torch.arange(len(end)).split(_ROWS):
            here = end[rows].requires_grad_()
            rest = tuple(t[rows] for t in extra)
            parts.append(saliency.attribute(here, abs=False, additional_forward_args=rest))
        return torch.cat(parts).double().cpu(), None
    if method == "occlusion":
        at_once = max(1, min(end.shape[1], _ROWS // len(end)))
        with torch.no_grad():
            found = captum.FeatureAblation(explained).attribute(
                end, baselines=start, additional_forward_args=extra, perturbations_per_eval=at_once
            )
        return found.double().cpu(), None
    return _integrated(captum, explained, start, end, extra)


def _integrated(
    captum: Any, explained: Callable[..., Tensor], start: Tensor, end: Tensor, extra: tuple[Tensor, ...]
) -> tuple[Tensor, dict[str, float]]:
    """Integrated gradients (B, n) and their completeness, by adaptive quadrature.

    What a piece of the way should add up to is known, the difference of the outputs at its ends. A piece that
    misses it is halved; kinks of the network are narrow, so that few pieces are.
    """
    with torch.no_grad():
        gap = (explained(end, *extra) - explained(start, *extra)).double().cpu()
    worst = TOLERANCE * float(gap.square().mean().sqrt())
    scores = torch.zeros(end.shape, dtype=torch.float64)
    steps = torch.zeros(len(end), dtype=torch.long)
    method = captum.IntegratedGradients(explained)
    rows = torch.arange(len(end))
    low, high = torch.zeros(len(end), dtype=torch.float64), torch.ones(len(end), dtype=torch.float64)
    for halving in range(_HALVINGS + 1):
        at = rows.to(end.device)
        way = end[at] - start[at]
        ends = [start[at] + place.to(way)[:, None] * way for place in (low, high)]
        rest = tuple(t[at] for t in extra)
        found = method.attribute(
            ends[1],
            baselines=ends[0],
            additional_forward_args=rest,
            n_steps=_STEPS,
            internal_batch_size=max(_ROWS, len(rows)),
        )
        found = found.detach().double().cpu()
        steps += _STEPS * torch.bincount(rows, minlength=len(steps))
        with torch.no_grad():
            wanted = (explained(ends[1], *rest) - explained(ends[0], *rest)).double().cpu()
        # A row has several pieces, whose errors add up.
        allowed = worst if halving == 0 else worst / 4
        good = ((found.sum(1) - wanted).abs() <= allowed) | (halving == _HALVINGS)
        scores.index_add_(0, rows[good], found[good])
        rows, low, high = rows[~good], low[~good], high[~good]
        if not len(rows):
            break
        middle = (low + high) / 2
        rows, low, high = rows.repeat(2), torch.cat([low, middle]), torch.cat([middle, high])
    error = _relative((scores.sum(1) - gap).numpy(), gap.numpy())
    return scores, {"error": error, "steps": int(steps.max())}


def _relative(error: np.ndarray, size: np.ndarray) -> float:
    """Root mean square of the error over that of the size; 0 where both are."""
    scale = float(np.sqrt(np.mean(size**2)))
    found = float(np.sqrt(np.mean(error**2)))
    return found / scale if scale else found


def _table(
    scores: Tensor, names: list[Any], rows: Any, per_sample: bool, by_spread: bool = False
) -> pd.DataFrame:
    import pandas as pd

    pairs = bool(names) and isinstance(names[0], tuple)
    if per_sample:
        columns = pd.MultiIndex.from_tuples(names, names=["source", "target"]) if pairs else names
        return pd.DataFrame(scores.numpy(), index=rows, columns=columns)
    labels = (
        {"source": [u for u, _ in names], "target": [v for _, v in names]} if pairs else {"name": list(names)}
    )
    table = pd.DataFrame(
        {
            **labels,
            "score": scores.mean(0).numpy(),
            "magnitude": scores.abs().mean(0).numpy(),
            "spread": scores.std(0, correction=0).numpy(),
        }
    )
    by = "spread" if by_spread and len(scores) > 1 else "magnitude"
    order = table[by].to_numpy().argsort(kind="stable")[::-1]
    table = table.iloc[order].reset_index(drop=True)
    table.attrs["ordered_by"] = by
    return table
