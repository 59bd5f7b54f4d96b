"""Many small networks as one: an ensemble, the folds of a cross-validation, restarts, trial graphs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from gsnn.graph.container import NODE_TYPES
from gsnn.kernels import side_by_side as kernel
from gsnn.kernels._side import KEPT, Side, union_plan
from gsnn.kernels.bucketed import plain_needed, read_outputs
from gsnn.kernels.channels import EPS
from gsnn.kernels.compiled import LANES
from gsnn.kernels.interface import Case
from gsnn.kernels.plan import Plan
from gsnn.models.copies import check_alike, copied, layout_of, offsets_of, with_parameters
from gsnn.models.GSNN import GSNN
from gsnn.models.norms import MOMENTUM
from gsnn.models.ResBlock import ResBlock
from gsnn.models.signs import bound, signs_of_parameters

#: Values of the edge states that one pass without gradients holds at a time, 256 MiB in float32.
_PASS_VALUES = 2**26
_STATISTICS = ("running_mean", "running_var")


class SideBySide(torch.nn.Module):
    """K GSNNs with equal arguments, their graphs equal or not, as one network: their disjoint union.

    Its parameters are K flat vectors, one with all the weights of each member in the order of the member's
    ``parameters()``. A loss that is the sum of the members' losses therefore has the members' own gradients,
    and an optimizer that works element by element (AdamW, SGD) takes the members' own steps; a parameter
    group for each member gives it a learning rate of its own.

    On the CPU, and for the form of block that the compiled code runs, one operation computes all members.
    Otherwise (a GPU, eval mode of a norm over the batch, a node MLP, another nonlinearity, ...) they run
    one after the other. Results are those of the members either way, up to rounding.

    Args:
        models: K GSNNs. They are copied, not changed: :meth:`members` gives the trained ones.

    Attributes:
        weights: K flat parameters.
        statistics: (2, S) running means and variances of all members, or None.
        networks: the K members. They share memory with ``weights`` and ``statistics``, so they compute what
            the members compute now, but autograd knows their parameters as tensors of their own: train
            through ``weights``. After a forward pass of all, their captures are those of this pass, for an
            edge regressor or whoever reads them: ``MagnitudeEdgeRegressor(together.networks[k], graph)``.
        generators: None, or K generators of the members' device (CPU or CUDA) from which the members draw
            their dropout, so that each draws what it would draw alone after ``torch.manual_seed`` with its
            generator's seed.

    Captures (:mod:`gsnn.captures`) that are on can be read with their full gradients, by hooks,
    ``retain_grad()`` and ``torch.autograd.grad``. Where one operation computes all members they may be in no
    loss: its backward pass is a RuntimeError then. Captures aside may; members then run one after the other.

    Raises:
        TypeError: something else than GSNNs.
        ValueError: no models, or models whose arguments, dtype, device or modes differ; frozen parameters.
    """

    statistics: torch.Tensor | None

    def __init__(self, models: Sequence[GSNN]) -> None:
        super().__init__()
        models = list(models)
        check_alike(models)
        self.networks = tuple(copied(model) for model in models)
        self._layouts = [layout_of(model) for model in models]
        self.weights = torch.nn.ParameterList(
            torch.cat([param.detach().reshape(-1) for param in model.parameters()]) for model in models
        )
        self._norms = [
            [block.norm for block in model._blocks if block.norm.over_batch] for model in self.networks
        ]
        self._statistic_sizes = [sum(len(norm.running_mean) for norm in norms) for norms in self._norms]
        found = [[getattr(norm, name) for norms in self._norms for norm in norms] for name in _STATISTICS]
        kept = torch.stack([torch.cat(parts) for parts in found]) if found[0] else None
        self.register_buffer("statistics", kept)
        self._captures = [[block.capture for block in model._blocks] for model in self.networks]
        self.generators: list[torch.Generator] | None = None
        self._share()
        self._side: Side | None = None
        self._union: Plan | None = None
        self._bound_to: list[torch.Tensor] | None = None
        self._of_samples: dict[tuple[int, ...], tuple[Any, ...]] = {}
        self.n_inputs, self.n_outputs = (
            [len(model.graph.node_names_dict[kind]) for model in models] for kind in ("input", "output")
        )
        self.train(models[0].training)

    def __len__(self) -> int:
        return len(self.networks)

    def forward(self, x: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Predict the outputs of all members.

        Args:
            x: (B, N_in), the same for all; (B, K, N_in), a batch for each; or a list of K tensors
                (B_k, N_in_k), where the inputs or the numbers of samples differ.

        Returns:
            (B, K, N_out); a list of K tensors (B_k, N_out_k) where the numbers of outputs or of samples
            differ.

        Raises:
            ValueError: a wrong shape, or NaN in x (looked for on the CPU only).
            TypeError: x is not of the models' dtype.
        """
        batches = self._batches(x)
        if torch.is_autocast_enabled(batches[0].device.type):
            with torch.autocast(batches[0].device.type, enabled=False):
                return self.forward([batch.to(self.weights[0].dtype) for batch in batches])
        held = torch.is_grad_enabled() or not self._too_large(batches)
        if held and self._fusible and all(len(batch) for batch in batches):
            return self._fused(batches)
        for network, batch in zip(self.networks, batches, strict=True):  # all, before any has run
            network._check_input(batch)
        outputs = [self.one(k, batch) for k, batch in enumerate(batches)]
        return torch.stack(outputs, 1) if len({output.shape for output in outputs}) == 1 else outputs

    def members(self) -> list[GSNN]:
        """K GSNNs of their own with the weights, running statistics and modes as they are now."""
        models = [copied(network) for network in self.networks]
        for number, model in enumerate(models):
            self.write(number, model)
        return models

    @torch.no_grad()
    def write(self, member: int, model: GSNN) -> None:
        """Give ``model``, of the member's graph and arguments, its weights and running statistics."""
        state = self._state(member)
        for name, param in model.named_parameters():
            param.copy_(state[name])
        blocks = (block for block in model._blocks if block.norm.over_batch)
        for block, norm in zip(blocks, self._norms[member], strict=True):
            for name in _STATISTICS:
                getattr(block.norm, name).copy_(getattr(norm, name))

    def train(self, mode: bool = True) -> "SideBySide":
        """Training or eval mode of all members."""
        super().train(mode)
        self._runs_compiled: bool | None = None
        for network in self.networks:
            network.train(mode)
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As every module's; with ``assign=True`` the networks share memory with what was assigned."""
        found = super().load_state_dict(*args, **kwargs)
        self._share()
        return found

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "SideBySide":
        super()._apply(fn, recurse)
        for network in self.networks:
            network._apply(fn)
        self._share()
        self._side = self._union = self._bound_to = self._runs_compiled = None
        self._of_samples = {}
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "SideBySide":
        new = SideBySide(self.members()).train(self.training)
        for mine, its in zip(new.weights, self.weights, strict=True):
            mine.requires_grad_(its.requires_grad)
        if self.generators is not None:
            new.generators = [generator.clone_state() for generator in self.generators]
        memo[id(self)] = new
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        return SideBySide, (self.members(),)

    def _share(self) -> None:
        """Let the members' parameters and running statistics be parts of the tensors that hold all."""
        for member, network in enumerate(self.networks):
            state = self._state(member)
            for name, param in network.named_parameters():
                param.data = state[name].detach()
        if self.statistics is None:
            return
        start = 0
        for norm in (norm for norms in self._norms for norm in norms):
            stop = start + len(norm.running_mean)
            for name, row in zip(_STATISTICS, self.statistics, strict=True):
                setattr(norm, name, row[start:stop])
            start = stop

    def _state(self, member: int) -> dict[str, torch.Tensor]:
        """The named parameters of a member, as parts of its flat vector."""
        names, shapes = self._layouts[member]
        parts = self.weights[member].split([shape.numel() for shape in shapes])
        return {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}

    def _batches(self, x: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
        K = len(self)
        if isinstance(x, torch.Tensor):
            width = self.n_inputs[0]
            if len(set(self.n_inputs)) > 1:
                raise ValueError(f"x must be a list of {K} tensors, as the members' inputs differ")
            if x.shape[1:] not in ((width,), (K, width)):
                wanted = f"(B, {width}) or (B, {K}, {width})"
                raise ValueError(f"x must have the shape {wanted}, got {tuple(x.shape)}")
            batches = [x] * K if x.ndim == 2 else list(x.unbind(1))
        else:
            batches = list(x)
            if len(batches) != K:
                raise ValueError(f"x must have {K} tensors, one for each member, got {len(batches)}")
        shared = len(set(self.n_inputs)) == 1 and all(batch is batches[0] for batch in batches)
        for k, network in enumerate(self.networks):
            if k == 0 or not shared:
                network._check_form(batches[k])
        return batches

    def _too_large(self, batches: Sequence[torch.Tensor]) -> bool:
        """Whether the states of all members should not be held at once where nothing has to be kept."""
        n_rows = sum(network.plan.n_rows for network in self.networks)
        return n_rows * max(map(len, batches)) > _PASS_VALUES

    @property
    def _fusible(self) -> bool:
        """Whether a pass over batches that are not empty would now be one operation for all members."""
        if self._runs_compiled is None:  # what only a change of mode or place can change
            self._runs_compiled = all(_runs_compiled(network) for network in self.networks)
        return (
            self._runs_compiled
            and not plain_needed()
            and all(capture.mode != "aside" for captures in self._captures for capture in captures)
            and kernel.usable(list(self.weights))
        )

    def kernel_cases(self, x: torch.Tensor | Sequence[torch.Tensor]) -> list[Case]:
        """How the blocks of each member in turn would be run for x, as :meth:`forward` takes it."""
        pairs = zip(self.networks, self._batches(x), strict=True)
        return [case for network, batch in pairs for case in network.kernel_cases(batch)]

    def one(self, member: int, x: torch.Tensor) -> torch.Tensor:
        """(B, N_out) of one member alone, for x (B, N_in)."""
        network = self.networks[member]
        with self._drawing_from(member), with_parameters(network, self._state(member)):
            return network(x)

    def snapshot(self, member: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Copies of a member's weights (T,) and running statistics (2, S), for :meth:`restore`."""
        kept = None if self.statistics is None else self.statistics[:, self._statistics_of(member)].clone()
        return self.weights[member].detach().clone(), kept

    @torch.no_grad()
    def restore(self, member: int, snapshot: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        """Give a member the weights and running statistics of a :meth:`snapshot`."""
        self.weights[member].copy_(snapshot[0])
        if self.statistics is not None and snapshot[1] is not None:
            self.statistics[:, self._statistics_of(member)] = snapshot[1]

    def _statistics_of(self, member: int) -> slice:
        return slice(sum(self._statistic_sizes[:member]), sum(self._statistic_sizes[: member + 1]))

    @contextlib.contextmanager
    def _drawing_from(self, member: int) -> Iterator[None]:
        """Let the device's global generator be the member's own, where there is one."""
        if self.generators is None or not self.training or self.networks[0].config["dropout"] == 0:
            yield
            return
        device, generator = self.weights[member].device, self.generators[member]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if device.type == "cuda":
                torch.cuda.set_rng_state(generator.get_state(), device)
                yield
                generator.set_state(torch.cuda.get_rng_state(device))
            else:
                torch.set_rng_state(generator.get_state())
                yield
                generator.set_state(torch.get_rng_state())

    def _factors(self, samples: Sequence[int]) -> list[list[torch.Tensor]] | None:
        """Dropout of every block of each member, drawn in the order in which the member alone draws it."""
        p = self.networks[0].config["dropout"]
        if not p or not self.training:
            return None
        factors = []
        for k, (network, size) in enumerate(zip(self.networks, samples, strict=True)):
            generator = None if self.generators is None else self.generators[k]
            like, shape = self.weights[k], (network.plan.n_nodes, network.channels, size)
            factors.append(
                [
                    like.new_empty(shape).bernoulli_(1 - p, generator=generator).div_(1 - p)
                    for _ in range(network.layers)
                ]
            )
        return factors

    def _fused(self, batches: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        (side, union), network = self._prepared(), self.networks[0]
        samples = [len(batch) for batch in batches]
        width = -(-max(samples) // LANES) * LANES
        columns = [batch.t() for batch in batches]
        if min(samples) < width:
            columns = [torch.nn.functional.pad(c, (0, width - c.shape[1])) for c in columns]
        fed = torch.cat(columns)
        if bool(fed.isnan().any()):  # looked for in one go; say in whose
            for one, batch in zip(self.networks, batches, strict=True):
                one._check_input(batch)
        state = fed.new_zeros(side.rows[-1], width)
        state.index_copy_(0, self._fed_rows, fed.index_select(0, union.input_of_row))
        form = network._blocks[0].form("off")
        factors = self._factors(samples)
        weights = [w if s is None else bound(w, s) for w, s in zip(self.weights, self._signs(), strict=True)]
        watched = [k for k, of_one in enumerate(self._captures) if any(c.mode != "off" for c in of_one)]
        state, statistics, captured = kernel.run_side_by_side(
            state, weights, side, form, samples, factors, watched
        )
        for k, found in captured.items():
            for capture, (before, after) in zip(self._captures[k], found, strict=True):
                if capture.mode == "on":
                    capture.leave(before, after)
        if statistics is not None:
            self._update_statistics(statistics, samples)
        depth = network.layers**-0.5 if network.residual else 1.0
        outputs = read_outputs(state, depth, union)
        if len(set(samples)) == 1 and len(set(self.n_outputs)) == 1:
            outputs = outputs if samples[0] == width else outputs[: samples[0]]
            return outputs.unflatten(1, (len(self), self.n_outputs[0]))
        parts = outputs.split(self.n_outputs, dim=1)
        return [part[:size] for part, size in zip(parts, samples, strict=True)]

    def _signs(self) -> list[torch.Tensor | None]:
        """What each member's flat weights are bound to, in their order; None where they are free."""
        if self.networks[0].config["edge_signs"] == "free":
            return [None] * len(self)
        if self._bound_to is None:
            self._bound_to = [
                torch.cat([sign.reshape(-1) for sign in signs_of_parameters(network)])
                for network in self.networks
            ]
        return list(self._bound_to)

    def _prepared(self) -> tuple[Side, Plan]:
        """Where everything lies, and a plan of the union whose rows are those of the members in turn."""
        if self._side is not None and self._union is not None:
            return self._side, self._union
        networks = self.networks
        offsets = np.array([offsets_of(*pair) for pair in zip(networks, self._layouts, strict=True)])
        first = networks[0].config
        learnt = bool(first["residual"] and first["learn_residual"])
        side = Side(
            [network.plan for network in networks],
            first["channels"],
            offsets,
            learnt,
            float(first["residual"]),
            first["share_layers"] and first["layers"] > 1,
        )
        sizes = [tuple(len(t.graph.node_names_dict[kind]) for kind in NODE_TYPES) for t in networks]
        union, self._fed_rows = union_plan(side, [t.edge_index for t in networks], sizes)
        self._side, self._union = side, union
        return side, union

    @torch.no_grad()
    def _update_statistics(self, found: torch.Tensor, samples: Sequence[int]) -> None:
        """Move the running statistics towards those of the batches; see gsnn.models.norms."""
        assert self.statistics is not None and self._side is not None
        key = tuple(samples)
        if key not in self._of_samples:
            side, per_channel = self._side, self.networks[0].norm == "batch"
            order = side.order_of_statistics(side.channels if per_channel else 1)
            counts = [size * (1 if per_channel else side.channels) for size in samples]
            sizes = torch.tensor(self._statistic_sizes)
            correction = torch.tensor([n / max(n - 1, 1) for n in counts], dtype=found.dtype)
            known = torch.tensor([n > 1 for n in counts])
            each = correction.repeat_interleave(sizes), known.repeat_interleave(sizes)
            if len(self._of_samples) >= KEPT:
                self._of_samples.clear()
            self._of_samples[key] = order, *each, min(counts) == 1
        order, correction, known, some_unknown = self._of_samples[key]
        moved = found.view(2, -1).index_select(1, order)
        moved[1].pow_(-2).sub_(EPS).clamp_(min=0).mul_(correction)
        if some_unknown:  # one value has no variance to learn from
            moved[1] = torch.where(known, moved[1], self.statistics[1])
        self.statistics.lerp_(moved, MOMENTUM)


def side_by_side(models: Sequence[GSNN]) -> SideBySide:
    """``models`` as one network; see :class:`SideBySide`."""
    return SideBySide(models)


def _runs_compiled(model: GSNN) -> bool:
    """Whether all blocks are of the form that the compiled code runs, and nothing was pruned."""
    blocks: list[ResBlock] = model._blocks
    norm = blocks[0].norm
    return (
        not model.checkpoint
        and model.gate is None
        and blocks[0].fusible(None)
        and (norm.kind == "none" or norm.dims is not None)
        and all(block.lin_in.kept is None and block.lin_out.kept is None for block in blocks)
    )
