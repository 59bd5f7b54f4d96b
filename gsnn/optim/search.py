"""Edges chosen stage by stage: score, grow the network, train it on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from gsnn._progress import ProgressBar
from gsnn.data.scaling import Scaling
from gsnn.graph.container import EDGE_TYPES, HeteroGraph
from gsnn.graph.types import EdgeType
from gsnn.io import container
from gsnn.optim.candidates import OpenPairs
from gsnn.optim.first_order import FirstOrderInferer
from gsnn.optim.FirstOrderEdgeInferer import FirstOrderEdgeInferer
from gsnn.optim.InputEdgeInferer import InputEdgeInferer
from gsnn.optim.OutputEdgeInferer import OutputEdgeInferer
from gsnn.optim.staging import CompletionSettings, Samples, Score, loss, stage_sizes, train_together
from gsnn.train.resume import check_same_run, describe_versions, graph_checksum, text_checksum

KIND = "gsnn_completion"
Edge = tuple[str, str]
INFERERS: dict[EdgeType, type[FirstOrderInferer]] = {
    EDGE_TYPES[0]: FirstOrderEdgeInferer,
    EDGE_TYPES[1]: InputEdgeInferer,
    EDGE_TYPES[2]: OutputEdgeInferer,
}


class Search:
    """The edges chosen so far from one set of samples, and the network that the next ones are chosen by.

    Args:
        graph, data, settings, seed: as `complete` has them.
        score, candidates, priors: as `complete` has them.
    """

    def __init__(
        self,
        graph: HeteroGraph,
        data: Samples,
        settings: CompletionSettings,
        seed: int,
        score: Score,
        candidates: Any,
        priors: Any,
    ) -> None:
        self.data, self.seed = data, seed
        self.scaled = data.scaled(Scaling.of(data.x, data.y))
        self.score, self.candidates, self.priors = score, candidates, priors
        self.rows: list[tuple[int, str, str, float]] = []  # stage, source, target, score
        self.model = settings.model(graph, seed)

    @property
    def edges(self) -> list[Edge]:
        """The edges chosen so far, in order."""
        return [(source, target) for _, source, target, _ in self.rows]

    def extend(self, k: int, stage: int) -> None:
        """Choose up to `k` more edges and grow the network by them."""
        size = 256
        batches = list(zip(self.scaled.x.split(size), self.scaled.y.split(size), strict=True))
        open_ = OpenPairs.of(self.model.graph, self.candidates, self.priors)
        found: list[tuple[int, str, str, float]] = []
        for etype in open_.weights:
            inferer = INFERERS[etype](self.model, self.model.graph, curvature=True)
            inferer.fit(batches, verbose=False)
            best = inferer.greedy(
                k,
                score=self.score,
                candidates=None if self.candidates is None else open_.pairs(etype),
                priors=self.priors,
                one_per_target=self.score != "omp",  # without projection the next best says the same again
            )
            columns = (best[name] for name in ("src_func", "dst_func", "score"))
            found += [(stage, str(s), str(t), float(v)) for s, t, v in zip(*columns, strict=True)]
        if len(open_.weights) > 1:  # all are decreases of the loss by a signal of unit variance
            found.sort(key=lambda row: -row[3])
        new = found[:k]
        self.rows += new
        self.model = self.model.grown([(s, t) for _, s, t, _ in new], seed=self.seed + stage)

    def describe(self) -> dict[str, Any]:
        """What tells this search from another, for a checkpoint."""
        return {"seed": self.seed, "x": _checksum(self.data.x), "y": _checksum(self.data.y)}

    def restore(self, rows: Any, tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> None:
        """Put the edges and the network of a checkpoint back."""
        self.rows = [(int(a), str(b), str(c), float(d)) for a, b, c, d in rows]
        if self.rows:
            self.model = self.model.grown(self.edges)
        self.model.load_state_dict({**tensors, **{name: tensors[first] for name, first in ties.items()}})


class Stages:
    """Edges chosen stage by stage: score, grow, train on. Several searches are trained side by side.

    Args:
        searches: new ones, that differ in their samples and seeds.
        settings: theirs.
        graph: the given graph, for the checkpoint's identity.
        watched: samples in network units whose loss by the first search's network is recorded after each
            stage.
        checkpoint: file that keeps the finished stages, or None.
        identity: what else the result depends on, for the file.
    """

    def __init__(
        self,
        searches: Sequence[Search],
        settings: CompletionSettings,
        graph: HeteroGraph,
        watched: Samples | None = None,
        checkpoint: Path | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.searches, self.settings, self.watched = list(searches), settings, watched
        self.checkpoint = checkpoint
        self.losses: list[float] = []  # of the watched samples, after 0, 1, ... stages
        self.stage = 0
        self.run: dict[str, Any] = {}
        if checkpoint is not None:
            each = [search.describe() for search in self.searches]
            own = (
                each[0] if len(each) == 1 else {k: text_checksum(repr([d[k] for d in each])) for k in each[0]}
            )
            self.run = {
                **describe_versions(),
                **asdict(settings),
                "score": self.searches[0].score,
                "graph": graph_checksum(graph),
                **own,
                **(identity or {}),
            }
        if not self._resumed():
            self._train(settings.base_steps)
            self._save()

    def add(self, k: int) -> None:
        """One stage: choose up to `k` edges, grow the networks by them, train them on."""
        self.stage += 1
        for search in self.searches:
            search.extend(k, self.stage)
        self._train(self.settings.stage_steps)
        self._save()

    def _train(self, steps: int) -> None:
        train_together(
            [search.model for search in self.searches],
            [search.data for search in self.searches],
            [search.seed + self.stage for search in self.searches],
            self.settings,
            [self.settings.epochs_of(steps, len(search.data)) for search in self.searches],
            lr=self.settings.search_lr,
            schedule="constant",
        )
        if self.watched is not None:
            self.losses.append(loss(self.searches[0].model, self.watched))

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        tensors: dict[str, Tensor] = {}
        kept = []
        for k, search in enumerate(self.searches):
            weights, ties = container.untied(search.model.state_dict())
            tensors |= {f"{k}.{name}": value for name, value in weights.items()}
            kept.append({"rows": [list(row) for row in search.rows], "ties": ties})
        header = {"run": self.run, "stage": self.stage, "losses": self.losses, "searches": kept}
        container.write_file(self.checkpoint, KIND, header, tensors)

    def _resumed(self) -> bool:
        """Whether the file was there; then everything is as it was after its last stage."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        header, tensors = container.read_file(self.checkpoint, KIND)
        what = f"the checkpoint {self.checkpoint}"
        check_same_run(header["run"], self.run, what, "delete it or choose another file")
        self.stage, self.losses = header["stage"], header["losses"]
        for k, (search, kept) in enumerate(zip(self.searches, header["searches"], strict=True)):
            start = f"{k}."
            own = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
            search.restore(kept["rows"], own, kept["ties"])
        return True


def spend(
    budget: int,
    stages: int,
    searches: Sequence[Search],
    settings: CompletionSettings,
    graph: HeteroGraph,
    *,
    verbose: bool,
    checkpoint: Path | None = None,
    candidates: str = "",
) -> None:
    """Let each search choose `budget` edges in at most so many `stages`.

    `checkpoint` is a file to go on from, `candidates` a checksum of what may be chosen, for that file.
    """
    identity = {"stages": stages, "budget": budget, "candidates": candidates}
    work = Stages(searches, settings, graph, None, checkpoint, identity)
    sizes = stage_sizes(budget, stages)
    with closing(ProgressBar(len(sizes), "stages", verbose, done=work.stage, leave=False)) as bar:
        for size in sizes[work.stage :]:
            work.add(size)
            bar.update()


def _checksum(values: Tensor) -> str:
    return f"sha256:{hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()}"
