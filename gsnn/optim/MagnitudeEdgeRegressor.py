"""Missing function -> function edges from magnitudes, learnt while the model itself trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gsnn.functional.moments import CoMoments, add_samples, correlation
from gsnn.functional.regression import PooledFit, pooled_least_squares
from gsnn.functional.significance import benjamini_hochberg
from gsnn.optim.captures import Captures
from gsnn.optim.edge_table import (
    KeptEdges,
    all_pairs,
    check_missing,
    check_top_k,
    edge_table,
    judge_scores,
    rank_in_targets,
)

if TYPE_CHECKING:
    import pandas as pd

AGGREGATORS: dict[str, Callable[[Tensor], Tensor]] = {  # (..., C) -> (...)
    "sum": lambda z: z.abs().sum(-1),
    "max": lambda z: z.abs().amax(-1),
    "mean": lambda z: z.abs().mean(-1),
    "l2": lambda z: torch.linalg.vector_norm(z, dim=-1),
}
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "relu": torch.relu,
    "signed": torch.clone,
}


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
    captured activations and the gradients that `backward` left on them, which are fixed by then, and never the
    model's weights. It must come after `backward` and before the next `pre_forward`. Anything else out of
    order is a RuntimeError that says what to call; `pre_forward` itself may always be called, and gives up a
    step that was not finished.

    Parameters
    ----------
    model : a GSNN, or any module with the same captures; it does not become a submodule
    data : the graph it was built from (HeteroGraph or anything with the same two dictionaries)
    aggregators : how a node's C absolute channel values become x: any of 'sum', 'max', 'mean', 'l2'. y is
        always their sum.
    use_pre_norm : read activations right after `lin_in`; False reads them after the nonlinearity, which is
        possible for the norms batch, groupbatch and none
    standardize : shift and scale each magnitude of each pair by its running mean and standard deviation
    lr, weight_decay : of AdamW (Loshchilov & Hutter 2019)
    dropout : share of the entries of W that a step leaves out, in training mode
    ridge : penalty on ||W||^2
    score_mode : score of i -> j: 'abs' |W|, 'relu' max(W, 0), or 'signed' W
    ema_momentum : weight of the newest batch in the running means and variances, in (0, 1]
    window : the p-values rest on the newest whole batches with at most this many samples together (one batch
        at least). Keep it below the number of training samples: a sample seen in two epochs is not two.

    Attributes
    ----------
    W : (N, N) parameter, zero at first, source by target
    steps, n : steps taken and samples seen, repeated ones included
    N, L, n_pairs : function nodes, layers, layer pairs P
    function_nodes : the N names
    edges : set of (source name, target name), the kept function -> function edges
    parents_by_target : index of each target -> sorted list of the indices of its kept sources

    `state_dict` holds everything that training and `evaluate` need: W, the running statistics, the
    optimizer's state, the window, and the best state kept so far. `copy.deepcopy` copies the model along, as
    it does for any attribute; copy both together to keep the pair.

    Gradients are multiplied by the batch size, which undoes the mean over samples that losses usually take,
    so that a shorter last batch shows no larger gradients. A loss that sums over samples is served as well
    as long as its batches are of one size.

    Raises
    ------
    TypeError, ValueError : an option out of its range, and what `Captures` and the graph refuse:
        `checkpoint=True`, one layer, no captures, other function nodes than the graph's, no function ->
        function edge

    Memory: 12 N^2 bytes in single precision for W and AdamW, and (A + 1) P N window numbers. Source of GSNN:
    Evans et al. 2024, doi 10.1101/2024.02.28.582164.
    """

    running_mean: Tensor
    running_var: Tensor

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
        score_mode: str = "abs",
        ema_momentum: float = 0.1,
        window: int = 1024,
    ) -> None:
        super().__init__()
        names = (aggregators,) if isinstance(aggregators, str) else tuple(aggregators)
        if not names or len(set(names)) < len(names) or not set(names) <= set(AGGREGATORS):
            raise ValueError(
                f"aggregators must be one or more different ones of {', '.join(AGGREGATORS)}, got {names!r}"
            )
        if score_mode not in SCORES:
            raise ValueError(f"score_mode must be one of {', '.join(SCORES)}, got {score_mode!r}")
        _check_number("lr", lr, "a positive number", lambda v: 0 < v < float("inf"))
        for name, value in (("weight_decay", weight_decay), ("ridge", ridge)):
            _check_number(name, value, "a non-negative number", lambda v: 0 <= v < float("inf"))
        _check_number("dropout", dropout, "in [0, 1)", lambda v: 0 <= v < 1)
        _check_number("ema_momentum", ema_momentum, "in (0, 1]", lambda v: 0 < v <= 1)
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(f"window must be a positive int, got {window!r}")
        self.kept = KeptEdges.of(data)
        self._captures = Captures(model, self.kept.names, use_pre_norm)
        object.__setattr__(self, "model", model)  # past nn.Module, which would register it as a submodule
        self.aggregators = names
        self.use_pre_norm = use_pre_norm
        self.standardize = standardize
        self.dropout = float(dropout)
        self.ridge = float(ridge)
        self.score_mode = score_mode
        self.ema_momentum = float(ema_momentum)
        self.window = window
        self.N = self._captures.N
        self.L = self._captures.L
        self.n_pairs = self.L - 1
        self.function_nodes = self.kept.names
        self.edges = self.kept.edges
        self.parents_by_target = self.kept.parents

        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.W = nn.Parameter(torch.zeros(self.N, self.N, dtype=like.dtype, device=like.device))
        # Slots: (aggregator, pair) of x, aggregator by aggregator, then the pairs of y. Wide, because the
        # square of a small gradient is out of single precision's range.
        slots = (len(names) + 1) * self.n_pairs
        wide = torch.float32 if like.device.type == "mps" else torch.float64
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(slots, self.N, dtype=wide, device=like.device))
        self.optimizer = torch.optim.AdamW([self.W], lr=lr, weight_decay=weight_decay, foreach=False)
        self.steps = 0
        self.n = 0
        self._recent: tuple[Tensor, ...] = ()  # raw magnitudes (slots, B, N) of the newest batches
        self._best: dict[str, Any] | None = None
        self._waiting_for_forward = False
        self._armed: list[Tensor] | None = None

    # --- the training loop

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
            raise RuntimeError(
                "arm_retained_grads() was called already: call loss.backward(), then aux_step()"
            )
        if not self._waiting_for_forward:
            raise RuntimeError("arm_retained_grads() needs captures: call pre_forward(), then model(x) first")
        captured = self._captures.tensors()
        if not all(t.requires_grad for t in captured[1:]):
            raise RuntimeError(
                "the captures are not on the autograd graph: call model(x) with gradients enabled and "
                "parameters that require them"
            )
        if captured[0].device != self.W.device:
            raise RuntimeError(
                f"the regressor is on {self.W.device} and the model on {captured[0].device}: call "
                f"regressor.to({str(captured[0].device)!r}) before pre_forward()"
            )
        for tensor in captured[1:]:
            tensor.retain_grad()
        self._armed = captured
        self._waiting_for_forward = False

    @torch.no_grad()
    def aux_step(self) -> dict[str, float]:
        """Take one step of W on this step's magnitudes, and end the step.

        Returns
        -------
        dict of floats: `aux_loss` = `mse` + ridge ||W||^2 before the update, and `mse`. Where `standardize`,
        an `mse` of 1 is what W = 0 has.

        Raises
        ------
        RuntimeError : out of order. ValueError : an activation or a gradient is not finite, or the weights
        have diverged; W and the statistics are then as before.
        """
        if self._armed is None:
            missing = "arm_retained_grads() and loss.backward()"
            if not self._waiting_for_forward:
                missing = f"pre_forward(), model(x), {missing}"
            raise RuntimeError(f"aux_step() has no gradients to learn from: call {missing} first")
        grads = [t.grad for t in self._armed[1:]]
        if all(g is None for g in grads):
            raise RuntimeError("aux_step() has no gradients to learn from: call loss.backward() first")
        raw = self._magnitudes(self._armed, grads)
        self._end_step()
        mean, var = self._updated_statistics(raw)
        features = self._standardized(raw, mean, var) if self.standardize else raw
        A, P = len(self.aggregators), self.n_pairs
        x = features[: A * P].reshape(-1, self.N)  # (A*P*B, N)
        y = features[A * P :].reshape(1, -1, self.N)  # (1, P*B, N)
        W, mask = self.W, None
        if self.dropout and self.training:
            mask = torch.empty_like(W).bernoulli_(1 - self.dropout).div_(1 - self.dropout)
        residual = (x @ (W if mask is None else W * mask)).view(A, -1, self.N).sub_(y)
        mse = residual.square().mean()
        aux = mse + self.ridge * W.square().sum() if self.ridge else mse
        aux_loss, mse_value = torch.stack([aux, mse]).tolist()  # the step's one synchronisation
        if not np.isfinite(aux_loss):
            self._explain(raw)
        grad = (x.T @ residual.view(-1, self.N)).mul_(2 / residual.numel())
        if mask is not None:
            grad.mul_(mask)
        if self.ridge:
            grad.add_(W, alpha=2 * self.ridge)
        W.grad = grad
        self.optimizer.step()
        W.grad = None
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        self.steps += 1
        self.n += raw.shape[1]
        self._remember(raw)
        return {"aux_loss": aux_loss, "mse": mse_value}

    def _end_step(self) -> None:
        self._captures.release()
        self._armed = None
        self._waiting_for_forward = False

    def _magnitudes(self, captured: list[Tensor], grads: list[Tensor | None]) -> Tensor:
        """(slots, B, N): aggregated |z^p| of layers 0..P-1, then the sums of |g^(p+1)| times B."""
        dtype = self.W.dtype
        z = torch.stack([self._captures.by_node(t.detach()) for t in captured[:-1]]).to(dtype)  # (P, B, N, C)
        g = torch.stack(
            [
                self._captures.by_node(torch.zeros_like(t) if grad is None else grad)
                for grad, t in zip(grads, captured[1:], strict=True)
            ]
        ).to(dtype)
        y = AGGREGATORS["sum"](g) * g.shape[1]
        return torch.cat([*(AGGREGATORS[name](z) for name in self.aggregators), y])

    def _updated_statistics(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Running mean and variance (slots, N) once this batch is in: those of the weighted mixture."""
        var, mean = torch.var_mean(raw.to(self.running_mean.dtype), 1, correction=0)
        if self.steps == 0:
            return mean, var
        m = self.ema_momentum
        shift = mean - self.running_mean
        old = self.running_var + m * shift.square()
        return self.running_mean + m * shift, old.mul_(1 - m).add_(var, alpha=m)

    def _standardized(self, raw: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """(slots, B, N), 0 where a magnitude is constant up to 8 machine precisions of its root mean square."""
        floor = (8.0 * torch.finfo(raw.dtype).eps) ** 2 * (var + mean.square())
        inverse = torch.where(var > floor, var.rsqrt(), 0.0)
        return ((raw - mean[:, None]) * inverse[:, None]).to(raw.dtype)

    def _explain(self, raw: Tensor) -> None:
        bad = ~raw.isfinite()
        if not bool(bad.any()):
            raise ValueError(
                f"the regression has diverged (step {self.steps}): lr must be lower than "
                f"{self.optimizer.param_groups[0]['lr']}"
            )
        slot, _, node = bad.nonzero()[0].tolist()
        pair, of_y = slot % self.n_pairs, slot >= len(self.aggregators) * self.n_pairs
        raise ValueError(
            f"the {'gradient' if of_y else 'activation'} of function node {self.function_nodes[node]!r} in "
            f"block {pair + of_y} is not finite (step {self.steps}): check the data and the loss for NaN and "
            "infinity"
        )

    def _remember(self, raw: Tensor) -> None:
        batches = [*self._recent, raw]
        surplus = sum(batch.shape[1] for batch in batches) - self.window
        while surplus > 0 and len(batches) > 1:
            surplus -= batches.pop(0).shape[1]
        self._recent = tuple(batches)

    # --- results

    def scores(self) -> Tensor:
        """(N, N) scores of all pairs, source by target, by `score_mode`."""
        return SCORES[self.score_mode](self.W.detach())

    def evaluate(self, *, exclude_self: bool = True) -> pd.DataFrame:
        """Score every ordered pair of function nodes.

        Returns
        -------
        DataFrame by descending `score`, ties by index: `src_func, dst_func, src_idx, dst_idx, score, has_edge,
        corr_a{p}_g{p+1} for each pair, p_value, q_value`, without the rows i -> i where `exclude_self`.

        The last columns describe the samples of the window, as they were when they were seen:
        `corr_a{p}_g{p+1}` is corr(x_i^p, y_j^(p+1)), x by the first aggregator, NaN where either is constant.
        `p_value` tests that i has no weight in the least-squares regression of j's gradient magnitude on
        the activation magnitudes of all nodes, standardised in the window, pooled over pairs and aggregators
        as W is, with an intercept for each: Student's t with standard errors that respect that the rows of one
        sample depend on each other (`gsnn.functional.regression`). It is two-sided for the score_mode 'abs', else
        one-sided (weight > 0). The weights tested are W where W is at the least-squares solution; they do not
        depend on how far W has been trained, on dropout or on the ridge, which all shrink it. NaN where the
        window is too short for a regression on N nodes, a magnitude is constant, or others determine it.
        `q_value` is Benjamini & Hochberg's over the rows. As for every score by magnitudes, a small p
        says that magnitudes go together, not that an edge is missing.

        Raises RuntimeError before the first `aux_step`.
        """
        self._check_fitted()
        x, y = self._window()
        source, target = all_pairs(self.N, exclude_self)
        columns = {"score": self.scores().double().cpu().numpy()[source, target]}
        state = CoMoments.empty(self.n_pairs, self.N)
        add_samples(state, x[: self.n_pairs], y)
        r = correlation(state, torch.arange(self.N), torch.finfo(self.W.dtype).eps).numpy()
        for pair, values in enumerate(r):
            columns[f"corr_a{pair}_g{pair + 1}"] = values[source, target]
        p = self._least_squares(x, y).p_values("two-sided" if self.score_mode == "abs" else "greater")
        columns["p_value"] = p[source, target]
        columns["q_value"] = benjamini_hochberg(columns["p_value"])
        return edge_table(self.kept, source, target, "score", columns)

    def _check_fitted(self) -> None:
        if self.steps == 0:
            raise RuntimeError(
                "nothing to evaluate yet: call pre_forward(), model(x), arm_retained_grads(), loss.backward() "
                "and aux_step() in a training loop first"
            )

    def _window(self) -> tuple[Tensor, Tensor]:
        """x (A*P, n, N) and y (P, n, N) of the newest samples, in float64 on the CPU, repeats left out."""
        raw = torch.cat([batch.cpu() for batch in self._recent], 1).double()
        # The same sample through the same weights, as when the loop repeats a batch, says nothing new.
        _, first = np.unique(raw.transpose(0, 1).flatten(1).numpy(), axis=0, return_index=True)
        raw = raw[:, torch.from_numpy(np.sort(first))]
        split = len(self.aggregators) * self.n_pairs
        return raw[:split], raw[split:]

    def _least_squares(self, x: Tensor, y: Tensor) -> PooledFit:
        parts = []
        for values in (x, y):
            var, mean = torch.var_mean(values, 1, correction=0)
            floor = (8.0 * torch.finfo(self.W.dtype).eps) ** 2 * (var + mean.square())
            scale = var.rsqrt() if self.standardize else torch.ones_like(var)
            scale = torch.where(var > floor, scale, 0.0)
            parts.append((values - mean[:, None]) * scale[:, None])
        x, y = parts
        return pooled_least_squares(x.numpy(), y.repeat(len(self.aggregators), 1, 1).numpy())

    def evaluate_against(
        self, positive_edges: Iterable[Any], *, top_k: Iterable[int] = (1, 3, 5), filtered: bool = False
    ) -> dict[str, Any]:
        """How well the scores find `positive_edges`, (source name, target name) pairs missing from the graph.

        Returns a dict: `auc` and `average_precision` of the positives against all other pairs that are
        neither kept edges nor self (`n_negatives`), then `n_positives`, `mrr` and `top@k` of the rank of each
        source among all sources of its target: raw, or `filtered` of the target's other known sources. Builds
        no table, so it can be called after every epoch.
        """
        pairs = check_missing(positive_edges, self.kept)
        ks = check_top_k(top_k)
        self._check_fitted()
        return judge_scores(self.scores().double().cpu().numpy(), self.kept, pairs, ks, filtered)

    @staticmethod
    def evaluate_target_ranking(
        res: pd.DataFrame,
        positive_edges: Iterable[Any],
        score_col: str = "score",
        top_k: Iterable[int] = (1, 3, 5),
        filtered: bool = False,
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Rank of each positive edge's source among all sources of its target: (detail, summary).

        See :func:`gsnn.optim.edge_table.rank_in_targets`.
        """
        return rank_in_targets(res, positive_edges, score_col, top_k, filtered)

    # --- state

    def maybe_save_best(self, metric: float) -> bool:
        """Keep the present state if `metric` (higher is better) is above all before; whether it was."""
        metric = float(metric)
        if np.isnan(metric) or (self._best is not None and metric <= self._best["metric"]):
            return False
        state = {name: t.detach().clone() for name, t in self.named_parameters()}
        state |= {name: t.clone() for name, t in self.named_buffers()}
        self._best = {"metric": metric, "tensors": state, "progress": self._progress()}
        return True

    def load_best(self) -> None:
        """Go back to the state that `maybe_save_best` kept, the optimizer's included."""
        if self._best is None:
            raise RuntimeError("there is no best state to load: call maybe_save_best(metric) first")
        tensors = self._best["tensors"]
        with torch.no_grad():
            for name, tensor in (*self.named_parameters(), *self.named_buffers()):
                tensor.copy_(tensors[name])
        self._set_progress(self._best["progress"])

    def _progress(self) -> dict[str, Any]:
        """What `state_dict` lacks: copies of what changes in place, references to what does not."""
        optimizer = self.optimizer.state_dict()
        state = {
            key: {k: v.clone() if isinstance(v, Tensor) else v for k, v in values.items()}
            for key, values in optimizer["state"].items()
        }
        groups = [dict(group) for group in optimizer["param_groups"]]
        return {
            "optimizer": {"state": state, "param_groups": groups},
            "steps": self.steps,
            "n": self.n,
            "recent": list(self._recent),
        }

    def _set_progress(self, progress: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(progress["optimizer"])
        self.steps = progress["steps"]
        self.n = progress["n"]
        self._recent = tuple(progress["recent"])

    def get_extra_state(self) -> dict[str, Any]:
        return {"progress": self._progress(), "best": self._best}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._set_progress(state["progress"])
        self._best = state["best"]
        self._end_step()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MagnitudeEdgeRegressor:
        """Also takes the optimizer's state along to another device or dtype."""
        super()._apply(fn, recurse)
        for values in self.optimizer.state.values():
            values |= {k: fn(v) for k, v in values.items() if k != "step"}
        return self


def _check_number(name: str, value: Any, expected: str, ok: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not ok(value):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
