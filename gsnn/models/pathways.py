"""Pathway memberships for a model's function nodes: reading, matching, shuffling; and a warm-up.

The result goes into :class:`gsnn.models.PathwayLatentRegularizer.PathwayLatentRegularizer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gsnn._checks import whole
from gsnn._delimited import read_text
from gsnn._text import some_names

if TYPE_CHECKING:
    import pandas as pd

Genes = Iterable[str] | Mapping[str, float]


@dataclass(frozen=True)
class Pathways:
    """Gene sets matched to function nodes.

    Attributes:
        names: the K pathways that were kept.
        nodes: the N function nodes.
        membership: (K, N) sparse COO tensor, float32; 1 or the weights that were given.
        unmatched: pathway -> its genes that are no function node; every given pathway that has any.
        too_small: given pathways with fewer matched nodes than ``min_size`` -> their number; not kept.
        without_pathway: function nodes in no kept pathway.
    """

    names: tuple[str, ...]
    nodes: tuple[str, ...]
    membership: torch.Tensor = field(repr=False)
    unmatched: Mapping[str, tuple[str, ...]] = field(repr=False)
    too_small: Mapping[str, int] = field(repr=False)
    without_pathway: tuple[str, ...] = field(repr=False)

    def report(self) -> str:
        """What matched and what did not, in a few lines."""
        count = self.membership._nnz()
        covered = len(self.nodes) - len(self.without_pathway)
        missing = {gene for genes in self.unmatched.values() for gene in genes}
        lines = [
            f"{len(self.names)} pathways with {count} memberships; "
            f"{covered} of {len(self.nodes)} function nodes are in one"
        ]
        if missing:
            lines.append(f"{len(missing)} genes are no function node: {some_names(sorted(missing))}")
        if self.too_small:
            lines.append(
                f"{len(self.too_small)} pathways left out, too few nodes: {some_names(self.too_small)}"
            )
        return "\n".join(lines)


def match_pathways(
    gene_sets: Mapping[str, Genes],
    function_nodes: Sequence[str],
    *,
    min_size: int = 2,
    gene_of: Callable[[str], str] | None = None,
) -> Pathways:
    """Membership of function nodes in gene sets.

    Args:
        gene_sets: pathway -> its genes, or -> {gene: weight}.
        function_nodes: names in the order of the model, ``model.graph.node_names_dict['function']``.
        min_size: pathways with fewer matched nodes are left out; alone, a node correlates with nothing.
        gene_of: gene of a function node, for nodes that are named otherwise, such as
            ``lambda node: node.removeprefix('PROTEIN__')``. Nodes of the same gene are all members.

    Raises:
        TypeError: gene_sets is no mapping, or a set is a string.
        ValueError: no pathway is left; min_size is no positive int; a weight is not finite; duplicate nodes.
    """
    if not isinstance(gene_sets, Mapping):
        raise TypeError(f"gene_sets must be a dict of pathway -> genes, got {type(gene_sets).__name__}")
    min_size = whole("min_size", min_size)
    nodes = tuple(function_nodes)
    if len(set(nodes)) < len(nodes):
        raise ValueError("function_nodes must be unique, got duplicates")
    places: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        places.setdefault(node if gene_of is None else gene_of(node), []).append(place)

    names: list[str] = []
    unmatched: dict[str, tuple[str, ...]] = {}
    too_small: dict[str, int] = {}
    pathway: list[int] = []
    node_of: list[int] = []
    weights: list[float] = []
    for name, genes in gene_sets.items():
        if isinstance(genes, str):
            raise TypeError(f"gene_sets[{name!r}] must be a collection of genes, got the string {genes!r}")
        weighted = genes if isinstance(genes, Mapping) else dict.fromkeys(genes, 1.0)
        missing = tuple(gene for gene in weighted if gene not in places)
        if missing:
            unmatched[name] = missing
        found = [(place, float(w)) for gene, w in weighted.items() for place in places.get(gene, ())]
        if not all(math.isfinite(w) for _, w in found):
            raise ValueError(f"gene_sets[{name!r}] must have finite weights, got NaN or infinity")
        found = sorted((place, w) for place, w in found if w)
        if len(found) < min_size:
            too_small[name] = len(found)
            continue
        pathway += [len(names)] * len(found)
        node_of += [place for place, _ in found]
        weights += [w for _, w in found]
        names.append(name)
    if not names:
        genes = [gene for missing in unmatched.values() for gene in missing]
        raise ValueError(
            f"gene_sets must have a pathway with at least {min_size} function nodes, got none among "
            f"{len(gene_sets)}; genes are {some_names(genes)}, nodes are {some_names(nodes)}"
        )
    membership = torch.sparse_coo_tensor(
        torch.tensor([pathway, node_of]),
        torch.tensor(weights, dtype=torch.float32),
        (len(names), len(nodes)),
        is_coalesced=True,
        check_invariants=True,
    )
    members = set(node_of)
    return Pathways(
        tuple(names),
        nodes,
        membership,
        unmatched,
        too_small,
        tuple(node for place, node in enumerate(nodes) if place not in members),
    )


def read_gmt(path: str | PathLike[str]) -> dict[str, list[str]]:
    """Gene sets of a GMT file: pathway, description, genes, tab-separated, plain or compressed.

    Raises:
        ValueError: a line without a gene, or a pathway that comes twice; the message has its number.
    """
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        name, *rest = line.rstrip("\r\n").split("\t")
        genes = [gene.strip() for gene in rest[1:] if gene.strip()]
        if not genes:
            raise ValueError(f"{path}, line {number}: expected name, description and genes, got {line!r}")
        if name in sets:
            raise ValueError(f"{path}, line {number}: the pathway {name!r} comes twice")
        sets[name] = genes
    return sets


def table_sets(
    table: pd.DataFrame, pathway: str = "pathway", gene: str = "gene", weight: str | None = None
) -> dict[str, dict[str, float]]:
    """Gene sets of a table with a row per membership: pathway, gene and, where named, its weight.

    Raises:
        ValueError: a missing column, an empty cell, or a membership that comes twice.
    """
    columns = [pathway, gene, *([] if weight is None else [weight])]
    for column in columns:
        if column not in table.columns:
            raise ValueError(f"table must have the column {column!r}, got {some_names(table.columns)}")
    if bool(table[columns].isna().any(axis=None)):
        raise ValueError(f"table must have no empty cell in {some_names(columns)}")
    twice = table.duplicated([pathway, gene])
    if bool(twice.any()):
        pairs = table.loc[twice, [pathway, gene]].itertuples(index=False, name=None)
        raise ValueError(f"table must have each membership once, got twice {some_names(pairs)}")
    values = np.ones(len(table)) if weight is None else table[weight].to_numpy(dtype=float)
    sets: dict[str, dict[str, float]] = {}
    for name, one, value in zip(table[pathway], table[gene], values, strict=True):
        sets.setdefault(str(name), {})[str(one)] = float(value)
    return sets


def shuffle_nodes(membership: Any, seed: int) -> Any:
    """A control: the membership (K, N) with the function nodes permuted at random.

    Sizes, overlaps and weights of the pathways stay; which nodes they hold does not. A prior is worth
    something where it does better than this. By chance a shuffled pathway keeps some of its pairs, so
    compare over several seeds.

    Args:
        membership: array, tensor, torch sparse or scipy sparse.
        seed: of a generator of its own; no global state is touched.

    Returns:
        The same kind of thing.
    """
    order = np.random.default_rng(seed).permutation(membership.shape[1])
    if not isinstance(membership, torch.Tensor):
        return membership.tocsc()[:, order] if hasattr(membership, "tocsc") else membership[:, order]
    if membership.layout == torch.strided:
        return membership[:, torch.as_tensor(order, device=membership.device)]
    found = membership.to_sparse_coo().coalesce()
    place = torch.as_tensor(np.argsort(order), device=found.device)
    pathway, node = found.indices()
    moved = torch.stack([pathway, place[node]])
    return torch.sparse_coo_tensor(moved, found.values(), found.shape, check_invariants=True).coalesce()


def warm_up(step: int, over: int, start: int = 0) -> float:
    """Factor for a regularizer's lambdas that rises from 0 to 1 along half a cosine.

    0 until ``start``, 1 from ``start + over`` on. It has no state, so an interrupted training goes on as it
    would have: ``regularizer.lambda_sim = 0.5 * warm_up(epoch, 50)``. Early on, few nodes carry a signal
    of the data, and a strong prior can settle what they represent before the data do.

    Args:
        step: of training, such as the epoch, from 0 on.
        over: steps from 0 to 1; 0 for no warm-up.
        start: steps before it.
    """
    for name, value in (("step", step), ("over", over), ("start", start)):
        whole(name, value, at_least=0)
    done = 1.0 if step >= start + over else max(0, step - start) / over
    return 0.5 * (1 - math.cos(math.pi * done))
