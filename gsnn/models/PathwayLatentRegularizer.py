"""A prior on the latent space of a GSNN: the members of a pathway vary together over the samples."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gsnn._checks import non_negative, positive
from gsnn.captures import Capture, Captures
from gsnn.models.pathway_loss import Memberships, dissimilarity, similarity

Phi = Literal["mean", "learned", "channel"]
PHIS: tuple[Phi, ...] = get_args(Phi)
CHANNEL_MIN_STD = 1e-3
_KEY = "pathway regularizers"  # one for all, as `disable(model)` names none


class PathwayLatentRegularizer(torch.nn.Module):
    """Adds to a training loss that members of a pathway should correlate, and chosen pathways should not.

    Let a (N, C, B) be the activations after the nonlinearity in one block (see
    :class:`gsnn.models.ResBlock.ResBlock`), and W (K, N) the membership. With x a member and
    ``s_k = sum_i W_ki x_i / sum_i |W_ki|`` the score of its pathway, both over the samples of the batch,

    - ``L_sim = -lambda_sim sum_ki W_ki corr(x_i, s_k) / sum_ki |W_ki|``, the mean over memberships;
    - ``L_dis = lambda_dis mean corr(s_k, s_m)**2`` over the pairs (k, m) of ``dissim_pairs``;

    both averaged over the blocks (L_sim over those where any membership counts). phi says what x is:

    - ``'mean'``: the mean of a node's channels. ``'learned'``: a linear readout of C weights, the same for
      all nodes, at first 1/C each. A module: its output, (B, N) or (B, N, 1), for the activations (B, N, C).
    - ``'channel'``, recommended: each channel by itself, the loss averaged over channels. A scalar can be
      made to agree while the channels do not, and then does not change what a node represents. Two
      refinements are on: a member is correlated with the mean of the *other* members, since a small
      pathway always correlates with a mean that contains itself; and members that no signal has reached
      yet in a block have no part in it.

    Usage: ``loss(model)`` once after each training forward pass, before the optimizer's step::

        regularizer = PathwayLatentRegularizer(model, membership, phi="channel", lambda_sim=0.5)
        for x, y in loader:
            mse = torch.nn.functional.mse_loss(model(x), y)
            sim, dis = regularizer.loss(model)
            (mse + sim + dis).backward()
            ...
        regularizer.disable(model)

    A lambda that rises costs less accuracy than a strong prior from the first step on, which can settle what
    the nodes represent before the data do. With :func:`gsnn.models.pathways.warm_up` and scaled targets::

        regularizer.lambda_sim = 0.5 * warm_up(epoch, epochs // 4, start=epochs // 20)

    The loss need not be taken at every step: at every fourth one, with its losses times four, most of the
    effect is there for a quarter of the cost.

    The model is no submodule. Extra parameters: C for ``'learned'``, those of a module, else none; give
    them to the optimizer. Larger batches give better correlations: the noise of one falls with sqrt(B).

    Args:
        model: a GSNN; its captures are switched on, as by :meth:`enable`.
        pathway_membership: (K, N) real weights, 0 = no member; columns in the order of the function
            nodes. Array, tensor, torch sparse or scipy sparse, which stays sparse. Pathways may overlap
            and nodes may be in none. A member with a negative weight is to correlate negatively.
        dissim_pairs: pairs (k, m) of pathways that should not correlate.
        lambda_sim, lambda_dis: non-negative weights of the two losses. They may be changed at any time.
        phi: see above.
        eps: floor of variances, > 0: a constant correlates with nothing, with a finite gradient.
        leave_one_out: correlate members with the mean of the others; default: for ``'channel'`` only.
            Pathways with one active member then count in no mean.
        min_std: nodes whose channels have a root mean variance over the batch below this are left out of
            a block; default 1e-3 for ``'channel'``, else 0.

    Raises:
        TypeError: a model without captures, or an argument of the wrong type.
        ValueError: an argument out of its range or of the wrong shape.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        pathway_membership: Any,
        dissim_pairs: Sequence[tuple[int, int]] | Tensor | None = None,
        lambda_sim: float = 0.1,
        lambda_dis: float = 0.0,
        phi: Phi | torch.nn.Module = "mean",
        eps: float = 1e-6,
        leave_one_out: bool | None = None,
        min_std: float | None = None,
    ) -> None:
        super().__init__()
        blocks = Captures(model).blocks
        self.channels = int(torch.bincount(blocks[0].channel_groups)[0])
        self.n_nodes = len(blocks[0].channel_groups) // self.channels
        non_negative("lambda_sim", lambda_sim)
        non_negative("lambda_dis", lambda_dis)
        positive("eps", eps)
        if min_std is not None:
            non_negative("min_std", min_std)
        if not isinstance(phi, torch.nn.Module) and phi not in PHIS:
            raise ValueError(f"phi must be one of {', '.join(PHIS)} or a torch.nn.Module, got {phi!r}")
        self._edges, self.n_pathways = _edges(pathway_membership, self.n_nodes)
        self._pairs = _pairs(dissim_pairs, self.n_pathways)
        if lambda_dis > 0 and not len(self._pairs):
            raise ValueError(f"dissim_pairs must be given where lambda_dis > 0, got {dissim_pairs!r}")
        self.lambda_sim = lambda_sim
        self.lambda_dis = lambda_dis
        self.eps = eps
        self.phi = phi
        by_channel = phi == "channel"
        self.leave_one_out = by_channel if leave_one_out is None else leave_one_out
        self.min_std = (CHANNEL_MIN_STD if by_channel else 0.0) if min_std is None else min_std
        if phi == "learned":
            like = blocks[0].lin_in.values if hasattr(blocks[0], "lin_in") else torch.ones(())
            self.readout = torch.nn.Parameter(like.new_full((self.channels,), 1 / self.channels))
        self._lists: tuple[tuple[torch.device, Tensor | None], Memberships, Tensor] | None = None
        self.enable(model)

    def enable(self, model: torch.nn.Module) -> None:
        """Switch the model's captures on. The constructor has done it for its model; again is harmless.

        They are captures aside from the output's path, the cheaper kind (see :mod:`gsnn.captures`), unless
        somebody has them on.
        """
        Captures(model, _KEY).on("aside")
        if _watch(model) is None:
            model.register_forward_hook(_Watch())

    def disable(self, model: torch.nn.Module) -> None:
        """Ask for captures no more, for all regularizers of the model.

        Where nobody else asks for captures they are off then, and what was captured is dropped.
        """
        Captures(model, _KEY).off()
        for key, hook in list(model._forward_hooks.items()):
            if isinstance(hook, _Watch):
                del model._forward_hooks[key]

    def loss(self, model: torch.nn.Module) -> tuple[Tensor, Tensor]:
        """``(L_sim, L_dis)`` of the last training forward pass, scaled by their lambdas; add both.

        Each forward pass is good for one call.

        Returns:
            Two scalars on the autograd graph, in the dtype of the activations (float32 for half
            precision). L_sim is 0 where no membership counts in any block.

        Raises:
            RuntimeError: captures are off, or there is no new forward pass in training mode and with
                gradients since the last call or the last change of a parameter.
            ValueError: fewer than 2 samples, another model's sizes, or a phi with a wrong output.
        """
        captured, rank = self._captured(model)
        # In lower precision a correlation is mostly rounding.
        with torch.autocast(captured[0].device.type, enabled=False):
            return self._losses(captured, rank)

    def _losses(self, captured: list[Tensor], rank: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(self.phi, torch.nn.Module) and rank is not None:
            captured, rank = [a.index_select(0, rank) for a in captured], None
        members, pairs = self._on(captured[0].device, rank)
        sims, counted, diss = [], [], []
        for activation in captured:
            mean, counts, scores = similarity(
                self._rows(activation), members, self.leave_one_out, self.min_std, self.eps
            )
            sims.append(mean)
            counted.append(counts)
            if self.lambda_dis > 0:
                diss.append(dissimilarity(scores, pairs, members.channels, self.eps))
        sim = torch.stack(sims).sum() / torch.stack(counted).sum().clamp(min=1)
        dis = torch.stack(diss).mean() if diss else torch.zeros_like(sim)
        return -self.lambda_sim * sim, self.lambda_dis * dis

    def _captured(self, model: torch.nn.Module) -> tuple[list[Tensor], Tensor | None]:
        """Activations (N, C, B) of each block, for this once; and the place of each node, None = its own."""
        captures = list(Captures(model))
        watch = _watch(model)
        if watch is None or any(capture.mode == "off" for capture in captures):
            raise RuntimeError("model must have its captures on; call enable(model) before the forward pass")
        watch.check(model, self)
        found = [capture.nodes(self.channels) for capture in captures]
        captured, ranks = zip(*(each for each in found if each is not None), strict=True)
        rank = ranks[0]
        nodes, channels, samples = captured[0].shape
        if (nodes, channels) != (self.n_nodes, self.channels):
            raise ValueError(
                f"model must have {self.n_nodes} function nodes with {self.channels} channels, "
                f"got {nodes} with {channels}"
            )
        if samples < 2:
            raise ValueError(f"a batch must have at least 2 samples to correlate over, got {samples}")
        return list(captured), rank

    def _rows(self, activation: Tensor) -> Tensor:
        """(N, C, B) -> (N*C, B) for ``'channel'``, else (N, B)."""
        if activation.dtype in (torch.float16, torch.bfloat16):
            activation = activation.float()
        if self.phi == "channel":
            return activation.flatten(0, 1).contiguous()
        if self.phi == "mean":
            return activation.sum(1) / self.channels  # unlike mean, its gradient takes no memory
        if self.phi == "learned":
            readout = self.readout.to(activation).expand(self.n_nodes, 1, -1)
            return torch.bmm(readout, activation).squeeze(1)
        assert isinstance(self.phi, torch.nn.Module)
        scalar = self.phi(activation.permute(2, 0, 1))
        expected = activation.shape[2], self.n_nodes
        if scalar.shape == (*expected, 1):
            scalar = scalar.squeeze(2)
        if scalar.shape != expected:
            raise ValueError(
                f"phi must map (B, N, C) to (B, N) = {expected} or (B, N, 1), got {tuple(scalar.shape)}"
            )
        return scalar.t().to(activation.dtype).contiguous()

    def _on(self, device: torch.device, rank: Tensor | None) -> tuple[Memberships, Tensor]:
        """The memberships, with the rows where the nodes are, and the pairs; kept until either changes."""
        if self._lists is None or self._lists[0][0] != device or self._lists[0][1] is not rank:
            channels = self.channels if self.phi == "channel" else 1
            group, row, weight = (part.to(device) for part in self._edges)
            if rank is not None:
                row = rank.to(device)[row]
            members = Memberships.of(group, row, weight, self.n_pathways, self.n_nodes, channels)
            self._lists = (device, rank), members, self._pairs.to(device)
        return self._lists[1:]

    def extra_repr(self) -> str:
        """What ``repr`` says of it."""
        return (
            f"{self.n_pathways} pathways, {len(self._edges[0])} memberships, phi={self.phi!r}, "
            f"lambda_sim={self.lambda_sim}, lambda_dis={self.lambda_dis}"
        )


class _Watch:
    """Forward hook of a model: remembers which captures come from a training forward pass.

    It holds them by weak references, and a copied or unpickled one knows of none.
    """

    def __init__(self) -> None:
        self._fresh: list[weakref.ref[Any]] = []
        self._versions: list[int] = []
        self._readers: weakref.WeakSet[PathwayLatentRegularizer] = weakref.WeakSet()

    def __reduce__(self) -> tuple[type[_Watch], tuple[()]]:
        return _Watch, ()

    @torch.compiler.disable
    def __call__(self, model: torch.nn.Module, *_: Any) -> None:
        if not model.training:
            return
        captures = list(Captures(model))
        left = _left(captures)
        if not all(map(_differentiable, captures)) or self._is_fresh(left):
            return  # the last: an older pass, this one has left no captures
        self._fresh = [weakref.ref(found) for found in left]
        self._versions = [p._version for p in model.parameters()]
        self._readers.clear()

    def _is_fresh(self, left: Sequence[Any]) -> bool:
        return len(self._fresh) == len(left) and all(
            found is not None and ref() is found for ref, found in zip(self._fresh, left, strict=True)
        )

    def check(self, model: torch.nn.Module, reader: PathwayLatentRegularizer) -> None:
        left = _left(Captures(model))
        if any(found is None for found in left):
            raise RuntimeError("loss needs a forward pass of the model after enable(model), got none")
        if not self._is_fresh(left):
            raise RuntimeError(
                "loss needs a forward pass in training mode and with gradients, got captures of another one; "
                "call model.train(), and the model outside torch.no_grad()"
            )
        if reader in self._readers:
            raise RuntimeError("loss needs a new forward pass for every call, got stale captures")
        if self._versions != [p._version for p in model.parameters()]:
            raise RuntimeError(
                "loss needs a forward pass after the last change of the parameters, got stale captures; "
                "call it before the optimizer's step"
            )
        self._readers.add(reader)


def _left(captures: Iterable[Capture]) -> list[Any]:
    """What tells the pass that left the activations of each block, None where there are none."""
    return [None if capture.nodes(1) is None else capture.token() for capture in captures]


def _differentiable(capture: Capture) -> bool:
    found = capture.nodes(1)
    return found is not None and found[0].requires_grad


def _watch(model: torch.nn.Module) -> _Watch | None:
    return next((hook for hook in model._forward_hooks.values() if isinstance(hook, _Watch)), None)


def _edges(membership: Any, n_nodes: int) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """(pathway, node, weight), each (E,) on the CPU, of a (K, N) membership; and K."""
    if isinstance(membership, Tensor):
        found = membership.detach().cpu()
        shape = tuple(found.shape)
        if found.layout != torch.strided:
            found = found.to_sparse_coo().coalesce()
            (group, row), weight = found.indices(), found.values()
        elif found.ndim == 2:
            group, row = found.nonzero().t()
            weight = found[group, row]
    elif hasattr(membership, "tocoo"):
        table = membership.tocsr().tocoo()  # through CSR, which sums duplicates
        shape = table.shape
        group, row, weight = (torch.as_tensor(np.array(part)) for part in (table.row, table.col, table.data))
    else:
        return _edges(torch.as_tensor(np.asarray(membership, dtype=np.float64)), n_nodes)
    if len(shape) != 2 or shape[0] < 1 or shape[1] != n_nodes:
        raise ValueError(
            f"pathway_membership must have shape (K, {n_nodes}), one column per function node, got {shape}"
        )
    weight = weight.double()
    if not bool(weight.isfinite().all()):
        raise ValueError("pathway_membership must be finite, got NaN or infinity")
    kept = weight != 0
    if not bool(kept.any()):
        raise ValueError("pathway_membership must have a member, got only zeros")
    return (group[kept].long(), row[kept].long(), weight[kept]), shape[0]


def _pairs(pairs: Any, n_pathways: int) -> Tensor:
    if pairs is None:
        return torch.empty(0, 2, dtype=torch.long)
    found = torch.as_tensor(pairs).cpu()
    if not found.numel():
        return torch.empty(0, 2, dtype=torch.long)
    if found.ndim != 2 or found.shape[1] != 2 or found.is_floating_point() or found.is_complex():
        raise ValueError(f"dissim_pairs must be pairs (k, m) of pathway numbers, got {pairs!r}")
    out = ((found < 0) | (found >= n_pathways)).any(1) | (found[:, 0] == found[:, 1])
    if bool(out.any()):
        raise ValueError(
            f"dissim_pairs must be pairs of two different pathways from 0 to {n_pathways - 1}, "
            f"got {tuple(found[out][0].tolist())}"
        )
    return found.long()
