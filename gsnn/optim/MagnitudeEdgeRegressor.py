"""Missing function -> function edges from magnitudes, learnt while the model itself trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gsnn._checks import non_negative, one_of, positive, whole, within
from gsnn._memory import memory_advice
from gsnn.optim.edge_table import (
    KeptEdges,
    all_pairs,
    check_missing,
    check_top_k,
    edge_table,
    judge_scores,
    rank_in_targets,
)
from gsnn.optim.layer_captures import LayerCaptures
from gsnn.optim.magnitudes import SCORES, check_aggregators, check_finite, kept_gradients, magnitudes
from gsnn.optim.recent import RecentSamples
from gsnn.stats.processes import from_first, gathered, group_of, summed
from gsnn.stats.regression import squared_error
from gsnn.stats.significance import benjamini_hochberg
from gsnn.stats.standardize import batch_moments, running_moments, standardized

if TYPE_CHECKING:
    import pandas as pd

_LESS = memory_advice(
    "W is for all pairs of function nodes, FirstOrderEdgeInferer.best needs nothing like it"
)


class MagnitudeEdgeRegressor(nn.Module):
    """Predicts, in the training loop, every node's gradient magnitude from all nodes' activation magnitudes.

    One (N, N) matrix `W`, its only parameter, maps x^p = ||z^p|| to y^(p+1) = ||g^(p+1)||, for all P = L - 1
    pairs of adjacent layers and all aggregators at once: W[i, j] says how far the activation of i goes with
    the gradient at j, given the activations of all other nodes (j's own among them). Its loss is the mean
    squared error over aggregators, pairs, samples and targets plus `ridge` ||W||^2, its optimizer an AdamW
    of its own (`optimizer`). It never touches the model's weights or gradients: features are detached.

    The training loop, in this order::

        regressor.pre_forward()              # switches the model's captures on
        yhat = model(x)
        loss = crit(yhat, y)
        regressor.arm_retained_grads()       # asks autograd to keep the gradients at the captures
        opt.zero_grad()
        loss.backward()
        regressor.aux_step()                 # one step of W; switches the captures off again
        opt.step()

    `aux_step()` may come before or after `opt.step()`, with the same result: it reads only this step's
    captured activations and the gradients that `backward` left on them, which are fixed by then, and never
    the model's weights. It must come after `backward` and before the next `pre_forward`. Anything else out
    of order is a RuntimeError that says what to call; `pre_forward` itself may always be called, and gives
    up a step that was not finished.

    Args:
        model: a GSNN, or any module with the same captures; it does not become a submodule.
        data: the graph it was built from (HeteroGraph or anything with the same two dictionaries).
        aggregators: how a node's C absolute channel values become x: any of 'sum', 'max', 'mean', 'l2'. y is
            always their sum.
        use_pre_norm: read activations right after `lin_in`; False reads them after the nonlinearity, which is
            possible for the norms batch, groupbatch and none.
        standardize: shift and scale each magnitude of each pair by running averages of its mean and of its
            variance within batches.
        lr, weight_decay: of AdamW (Loshchilov & Hutter 2019).
        dropout: share of the entries of W that a step leaves out, in training mode.
        ridge: penalty on ||W||^2.
        score_mode: score of i -> j: 'abs' |W|, 'relu' max(W, 0), or 'signed' W.
        ema_momentum: weight of the newest batch in those averages, in (0, 1].
        window: the p-values rest on the newest whole batches with at most this many samples together (one
            batch at least). Keep it below the number of training samples: a sample seen in two epochs is not
            two.
        process_group: None learns from this process alone. True (all processes of `torch.distributed`) or a
            group: each step is that of the batches of all ranks together, of any sizes, and W is the same on
            all of them. Every rank must take every step. Under DistributedDataParallel, `model` is its
            `.module`.

    Attributes:
        W: (N, N) parameter, zero at first, source by target.
        steps, n: steps taken and samples seen, repeated ones included.
        N, L, n_pairs: function nodes, layers, layer pairs P.
        function_nodes: the N names.
        edges: set of (source name, target name), the kept function -> function edges.
        parents_by_target: index of each target -> sorted list of the indices of its kept sources.

    `state_dict` holds everything that training and `evaluate` need: W, the running statistics, the
    optimizer's state, the window, and the best state kept so far. `copy.deepcopy` copies the model along;
    copy both together to keep the pair.

    Gradients are multiplied by the batch size, which undoes the mean over samples that losses usually take: a
    shorter last batch shows no larger gradients. With a loss that sums, keep batches of one size.

    Memory: 12 N^2 bytes in single precision for W and AdamW, and (A + 1) P N window numbers. Source of GSNN:
    Evans et al. 2024, doi 10.1101/2024.02.28.582164.

    Raises:
        TypeError, ValueError: an option out of its range, and what `LayerCaptures` and the graph refuse:
            `checkpoint=True`, one layer, no captures, other function nodes than the graph's.
    """

    running_mean: Tensor
    running_var: Tensor

    @_LESS
    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        aggregators: Iterable[str] = ("sum", "max"),
        use_pre_norm: bool = True,
        standardize: bool = True,
        lr: float = 1e-2,
        weight_decay: float = 1e-4,
        dropout: float = 0.0,
        ridge: float = 0.0,
        score_mode: Literal["abs", "relu", "signed"] = "abs",
        ema_momentum: float = 0.1,
        window: int = 1024,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        names = check_aggregators(aggregators)
        group_of(process_group)
        one_of("score_mode", score_mode, SCORES)
        positive("lr", lr)
        non_negative("weight_decay", weight_decay)
        non_negative("ridge", ridge)
        within("dropout", dropout, "[0, 1)")
        within("ema_momentum", ema_momentum, "(0, 1]")
        window = whole("window", window)
        self.kept = KeptEdges.of(data)
        self._captures = LayerCaptures(model, self.kept.names, use_pre_norm)
        object.__setattr__(self, "model", model)  # past nn.Module, which would register it as a submodule
        self.aggregators = names
        self.use_pre_norm = use_pre_norm
        self.standardize = standardize
        self.dropout = float(dropout)
        self.ridge = float(ridge)
        self.score_mode = score_mode
        self.ema_momentum = float(ema_momentum)
        self.window = window
        self.process_group = process_group
        self.N = self._captures.N
        self.L = self._captures.L
        self.n_pairs = self.L - 1
        self.function_nodes = self.kept.names
        self.edges = self.kept.edges
        self.parents_by_target = self.kept.parents

        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.W = nn.Parameter(torch.zeros(self.N, self.N, dtype=dtype, device=like.device))
        # Slots: (aggregator, pair) of x, aggregator by aggregator, then the pairs of y. Wide, because the
        # square of a small gradient is out of single precision's range.
        slots = (len(names) + 1) * self.n_pairs
        wide = torch.float32 if like.device.type == "mps" else torch.float64
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(self.N, slots, dtype=wide, device=like.device))
        self.optimizer = torch.optim.AdamW([self.W], lr=lr, weight_decay=weight_decay, foreach=False)
        self.steps = 0
        self.n = 0
        self._recent = RecentSamples(window, self.n_pairs)
        self._best: dict[str, Any] | None = None
        self._waiting_for_forward = False
        self._armed: tuple[list[Tensor], list[Tensor | None]] | None = None

    def pre_forward(self) -> None:
        """Begin a step: switch the captures on. Call it right before `model(x)`."""
        self._end_step()
        self._captures.on()
        self._waiting_for_forward = True

    def arm_retained_grads(self) -> None:
        """Ask autograd to keep the gradients at the captures. Call it after `model(x)`, before `backward`.

        Raises RuntimeError where `pre_forward` or the forward pass is missing, or had gradients disabled.
        """
        if self._armed is not None:
            raise RuntimeError("arm_retained_grads() was called already: call loss.backward() next")
        if not self._waiting_for_forward:
            raise RuntimeError("arm_retained_grads() needs captures: call pre_forward(), then model(x) first")
        try:
            captured = self._captures.tensors()
        except RuntimeError as error:
            raise RuntimeError(
                f"arm_retained_grads() found no captures: call model(x) after pre_forward() ({error})"
            ) from None
        if not all(t.requires_grad for t in captured[1:]):
            raise RuntimeError("the captures have no gradients: call model(x) with gradients enabled")
        if captured[0].device != self.W.device:
            raise RuntimeError(
                f"the regressor is on {self.W.device} and the model on {captured[0].device}: call "
                f"regressor.to({str(captured[0].device)!r}) before pre_forward()"
            )
        self._armed = captured, kept_gradients(captured[1:])
        self._waiting_for_forward = False

    @torch.no_grad()
    def aux_step(self) -> dict[str, float]:
        """Take one step of W on this step's magnitudes, and end the step.

        Returns:
            dict of floats: `aux_loss` = `mse` + ridge ||W||^2 before the update, and `mse`. Where
            `standardize`, W = 0 has an `mse` of about 1.

        Raises:
            RuntimeError: out of order.
            ValueError: an activation, a gradient or W is not finite; nothing has changed then.
        """
        if self._armed is None:
            missing = "arm_retained_grads() and loss.backward()"
            if not self._waiting_for_forward:
                missing = f"pre_forward(), model(x), {missing}"
            raise RuntimeError(f"aux_step() has no gradients to learn from: call {missing} first")
        captured, grads = self._armed
        if all(g is None for g in grads):
            raise RuntimeError("aux_step() has no gradients to learn from: call loss.backward() first")
        raw = magnitudes(self._captures, captured, grads, self.aggregators, self.W.dtype)
        self._end_step()
        group = group_of(self.process_group)
        everyone = gathered(raw, group)
        mean, var = batch_moments(everyone.to(self.running_mean.dtype))
        if self.steps:
            between, old = everyone.shape[-1] == 1, (self.running_mean, self.running_var)
            mean, var = running_moments(*old, mean, var, self.ema_momentum, between)
        features = raw
        if self.standardize:
            features = standardized(raw, mean, var, torch.finfo(raw.dtype).eps).to(raw.dtype)
        x = features[:, : -self.n_pairs].reshape(self.N, len(self.aggregators), -1)  # (N, A, P*B)
        y = features[:, -self.n_pairs :].reshape(self.N, -1)  # (N, P*B)
        W, mask = self.W, None
        if self.dropout and self.training:
            mask = torch.empty_like(W).bernoulli_(1 - self.dropout).div_(1 - self.dropout)
            from_first(mask, group)
        error, grad = squared_error(W, x, y, mask)
        summed(error, grad, group=group)
        terms = everyone[:, : -self.n_pairs].numel()
        mse = error / terms
        aux = mse + self.ridge * W.square().sum() if self.ridge else mse
        aux_loss, mse_value = torch.stack([aux, mse]).tolist()  # the step's one synchronisation
        if not np.isfinite(aux_loss):
            check_finite(everyone, self.n_pairs, self.function_nodes, self.steps)
            raise ValueError(f"the regression has diverged (step {self.steps}): lr or ridge is too large")
        grad.div_(terms)
        if self.ridge:
            grad.add_(W, alpha=2 * self.ridge)
        W.grad = grad
        self.optimizer.step()
        W.grad = None
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        self.steps += 1
        self.n += everyone.shape[-1]
        self._recent.push(everyone)
        return {"aux_loss": aux_loss, "mse": mse_value}

    def _end_step(self) -> None:
        self._captures.off()
        self._armed = None
        self._waiting_for_forward = False

    def scores(self) -> Tensor:
        """(N, N) scores of all pairs, source by target, by `score_mode`."""
        return SCORES[self.score_mode](self.W.detach())

    @_LESS
    def evaluate(self, *, exclude_self: bool = True) -> pd.DataFrame:
        """Score every ordered pair of function nodes.

        Returns:
            DataFrame by descending `score`, ties by index, with `src_func, dst_func, src_idx, dst_idx, score,
            has_edge, corr_a{p}_g{p+1} for each pair, p_value, q_value`, without rows i -> i where
            `exclude_self`.

        The last columns describe the samples of the window, as they were when they were seen and less the
        mean of their batch, so that what training moves from batch to batch does not count.
        `corr_a{p}_g{p+1}` is corr(x_i^p, y_j^(p+1)), x by the first aggregator, NaN where one is constant.
        `p_value` tests that i has no weight in the least-squares regression of j's gradient magnitude on the
        activation magnitudes of all nodes, pooled over pairs and aggregators as W is: Student's t, its
        standard errors allowing for the dependence between the rows of one sample
        (`gsnn.stats.regression`). It is two-sided for the score_mode 'abs', else one-sided (weight > 0).
        The weights tested are W where W is at the least-squares solution; they do not depend on how far W
        has been trained, nor on dropout and ridge, which shrink it. NaN where the window is too short for a
        regression on N nodes, a magnitude is constant, or other nodes determine it. Without any dependence p
        is uniform for one pair and aggregator, and nearly so for several with many more samples than nodes
        (with 100 for 46 nodes .065 at .05). `q_value` is Benjamini & Hochberg's over the rows. As for every
        score by magnitudes, a small p says that magnitudes go together, not that an edge is missing.

        Raises RuntimeError before the first `aux_step`.
        """
        self._check_fitted()
        source, target = all_pairs(self.kept, exclude_self)
        columns = {"score": self.scores().double().cpu().numpy()[source, target]}
        eps = torch.finfo(self.W.dtype).eps
        correlations, fit = self._recent.statistics(eps, scale=self.standardize)
        for pair, r in enumerate(correlations):
            columns[f"corr_a{pair}_g{pair + 1}"] = r[source, target]
        alternative: Literal["two-sided", "greater"] = "two-sided" if self.score_mode == "abs" else "greater"
        p = fit.p_values(alternative)
        columns["p_value"] = p[source, target]
        columns["q_value"] = benjamini_hochberg(columns["p_value"])
        return edge_table(self.kept, source, target, "score", columns)

    def _check_fitted(self) -> None:
        if self.steps == 0:
            raise RuntimeError(
                "nothing to evaluate yet: call pre_forward(), model(x), arm_retained_grads(), "
                "loss.backward() and aux_step() in a training loop first"
            )

    def evaluate_against(
        self, positive_edges: Iterable[Any], *, top_k: Iterable[int] = (1, 3, 5), filtered: bool = False
    ) -> dict[str, Any]:
        """How well the scores find `positive_edges`, (source name, target name) pairs missing from the graph.

        Returns what :func:`gsnn.optim.edge_table.judge_scores` does. Builds no table, so it can be called
        after every epoch.
        """
        pairs = check_missing(positive_edges, self.kept)
        ks = check_top_k(top_k)
        self._check_fitted()
        return judge_scores(self.scores().double().cpu().numpy(), self.kept, pairs, ks, filtered)

    evaluate_target_ranking = staticmethod(rank_in_targets)

    def maybe_save_best(self, metric: float) -> bool:
        """Keep the present state if `metric` (higher is better) is above all before; whether it was."""
        metric = float(metric)
        if np.isnan(metric) or (self._best is not None and metric <= self._best["metric"]):
            return False
        tensors = {name: t.detach().clone() for name, t in self._tensors()}
        self._best = {"metric": metric, "tensors": tensors, "progress": self._progress()}
        return True

    def load_best(self) -> None:
        """Go back to the state that `maybe_save_best` kept, the optimizer's included."""
        if self._best is None:
            raise RuntimeError("there is no best state to load: call maybe_save_best(metric) first")
        with torch.no_grad():
            for name, tensor in self._tensors():
                tensor.copy_(self._best["tensors"][name])
        self._set_progress(self._best["progress"])

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [("W", self.W), ("running_mean", self.running_mean), ("running_var", self.running_var)]

    def _progress(self) -> dict[str, Any]:
        """What parameters and buffers lack, safe from later steps."""
        return {
            "optimizer": deepcopy(self.optimizer.state_dict()),
            "steps": self.steps,
            "n": self.n,
            "recent": self._recent.batches,
        }

    def _set_progress(self, progress: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(deepcopy(progress["optimizer"]))  # or it would share tensors
        self.steps = progress["steps"]
        self.n = progress["n"]
        self._recent.batches = list(progress["recent"])

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds besides tensors."""
        return {"progress": self._progress(), "best": self._best}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take it from a `state_dict`."""
        self._set_progress(state["progress"])
        self._best = state["best"]
        self._end_step()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MagnitudeEdgeRegressor:
        """Also takes the optimizer's state along to another device or dtype."""
        super()._apply(fn, recurse)
        for values in self.optimizer.state.values():
            values |= {k: fn(v) for k, v in values.items() if k != "step"}
        return self
