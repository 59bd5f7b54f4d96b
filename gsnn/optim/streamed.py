"""What the inferers share whose scores are made of statistics over samples, taken batch by batch."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import nn

from gsnn.graph.container import EDGE_TYPES, as_graph
from gsnn.graph.types import EdgeType
from gsnn.optim.edge_table import KeptEdges
from gsnn.optim.layer_captures import LayerCaptures


class _Counted(Protocol):
    """Statistics that know how many samples they are of."""

    @property
    def n(self) -> int:
        """Samples seen."""


Seen = TypeVar("Seen", bound=_Counted)


class StreamedInferer(Generic[Seen]):
    """A model with its captures, the graph that it was built from, and what was seen of the samples.

    Args:
        model: a trained GSNN, or any module with the same captures.
        data: the graph it was built from (HeteroGraph or anything with the same two dictionaries).
        use_pre_norm: as in :class:`gsnn.optim.layer_captures.LayerCaptures`.

    Raises:
        TypeError, ValueError: what `LayerCaptures` and the graph refuse.
    """

    etype: ClassVar[EdgeType] = EDGE_TYPES[0]
    _seen: Seen | None

    def __init__(self, model: nn.Module, data: Any, use_pre_norm: bool = True) -> None:
        self.kept = KeptEdges.of(data, self.etype)
        self.function_nodes = list(as_graph(data, warn=False).node_names_dict["function"])
        self._captures = LayerCaptures(model, self.function_nodes, use_pre_norm)
        self.model = model
        self.N = self._captures.N
        self.L = self._captures.L
        self.edges = self.kept.edges
        self.parents_by_target = self.kept.parents
        self.reset_stats()

    @property
    def n(self) -> int:
        """Samples seen since the statistics were last reset."""
        return 0 if self._seen is None else self._seen.n

    def reset_stats(self) -> None:
        """Forget every sample seen."""
        self._seen = None
