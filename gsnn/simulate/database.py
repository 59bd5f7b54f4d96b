"""A simulated study as studies come: a database, drugs with targets, doses, measurements, plates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import pandas as pd

_LIGANDS = ("LIG1", "LIG2", "LIG3")
_TIERS = (
    ("REC1", "REC2", "REC3", "REC4"),
    ("KIN1", "KIN2", "KIN3", "KIN4", "KIN5"),
    ("KIN6", "KIN7", "KIN8", "KIN9", "KIN10"),
    ("TF1", "TF2", "TF3", "TF4", "TF5", "TF6"),
)
_DRUGS = {"drugA": "REC1", "drugB": "KIN2", "drugC": "KIN7", "drugD": "KIN9"}
_MEASURED = (*_TIERS[3], "KIN1", "KIN8")

Edge = tuple[str, str]


@dataclass(frozen=True)
class DatabaseStudy:
    """Tables of a simulated study, and what they do not say.

    ``interactions`` has the columns of OmniPath; ``targets`` (input, target, sign) says what drugs and
    ligands act on; ``x`` (samples x inputs) has doses, ``y`` (samples x outputs) activities; ``plates`` has
    the plate of each sample, replicates on the same one; ``hidden`` are the true edges that
    ``interactions`` lacks.
    """

    interactions: pd.DataFrame
    targets: pd.DataFrame
    x: pd.DataFrame
    y: pd.DataFrame
    plates: pd.DataFrame
    hidden: tuple[Edge, ...]


def database_study(seed: int = 0, *, replicates: int = 2, noise: float = 0.1) -> DatabaseStudy:
    """Simulate ligands and drugs on a signalling network, and a database that knows most of it.

    Three ligands alone and two together, each with no drug or one of four in two doses: 45 conditions.
    Each protein takes tanh of the signed sum of its parents; a drug of dose d leaves the share 1 - 0.9 d of
    its target's activity. The database lacks two true edges and has, as real ones do, wrong interactions that
    few papers state, rows without a direction, a complex, a row with the wrong sign, and proteins that have
    nothing to do with the question.

    Args:
        seed: fixes network, database and noise.
        replicates: samples of each of the 45 conditions.
        noise: standard deviation added to each measurement.

    Returns:
        The tables, with 45 x ``replicates`` samples, 7 inputs and 8 outputs.
    """
    rng = np.random.default_rng(seed)
    true = _network(rng)
    hidden = tuple(edge for edge in true if edge in _to_hide(true))
    x = _design(replicates)
    y = _activities(true, x) + rng.normal(scale=noise, size=(len(x), len(_MEASURED)))
    plates = pd.DataFrame({"plate": [f"plate{k // replicates % 9 + 1}" for k in range(len(x))]}, x.index)
    stated = {**{name: name for name in _LIGANDS}, **_DRUGS}
    targets = pd.DataFrame(
        [(name, target, 1 if name in _LIGANDS else -1) for name, target in stated.items()],
        columns=["input", "target", "sign"],
    )
    known = {edge: sign for edge, sign in true.items() if edge not in hidden}
    return DatabaseStudy(_database(known, hidden, rng), targets, x, y, plates, hidden)


def _network(rng: np.random.Generator) -> dict[Edge, int]:
    """Each receptor has one ligand or two, every other protein two parents in the tier above."""
    true = {(ligand, receptor): 1 for ligand, receptor in zip(_LIGANDS, _TIERS[0], strict=False)}
    true["LIG3", "REC4"] = 1
    for above, tier in pairwise(_TIERS):
        for k, protein in enumerate(tier):
            first = above[k % len(above)]
            second = str(rng.choice([name for name in above if name != first]))
            true[first, protein] = 1
            true[second, protein] = int(rng.choice([1, -1]))
    return true


def _to_hide(true: dict[Edge, int]) -> set[Edge]:
    """The second parents of KIN6 and TF2: both keep one that is known."""
    return {[edge for edge in true if edge[1] == name][1] for name in ("KIN6", "TF2")}


def _design(replicates: int) -> pd.DataFrame:
    ligands: list[Sequence[str]] = [(), ("LIG1",), ("LIG2",), ("LIG3",), ("LIG1", "LIG2")]
    doses = [("", 0.0), *product(_DRUGS, (0.5, 1.0))]
    rows, names = [], []
    for given, (drug, dose) in product(ligands, doses):
        row = {**dict.fromkeys(given, 1.0), **({drug: dose} if drug else {})}
        label = "+".join([*given, *([f"{drug}_{dose:g}"] if drug else [])]) or "control"
        for k in range(replicates):
            rows.append(row)
            names.append(f"{label}.{k + 1}")
    columns = [*_LIGANDS, *_DRUGS]
    return pd.DataFrame(rows, pd.Index(names, name="sample"), columns).fillna(0.0)


def _activities(true: dict[Edge, int], x: pd.DataFrame) -> pd.DataFrame:
    active = {name: x[name].to_numpy() for name in _LIGANDS}
    left = {target: 1 - 0.9 * x[drug].to_numpy() for drug, target in _DRUGS.items()}
    for tier in _TIERS:
        for protein in tier:
            total = sum(sign * active[u] for (u, v), sign in true.items() if v == protein)
            active[protein] = np.tanh(1.2 * total) * left.get(protein, 1.0)
    return pd.DataFrame({name: active[name] for name in _MEASURED}, x.index)


def _database(known: dict[Edge, int], hidden: tuple[Edge, ...], rng: np.random.Generator) -> pd.DataFrame:
    proteins = [*_LIGANDS, *(name for tier in _TIERS for name in tier)]
    bystanders = [f"BY{k + 1}" for k in range(20)]
    accession = {name: f"SIM{k:03d}" for k, name in enumerate([*proteins, *bystanders])}
    rows = [(*edge, 1, sign, int(rng.integers(4, 30))) for edge, sign in known.items()]

    def pick(names: Sequence[str]) -> str:
        return str(rng.choice(names))

    rows += [(pick(proteins), bystander, 1, 1, int(rng.integers(3, 9))) for bystander in bystanders[:12]]
    rows += [(bystander, pick(proteins), 1, -1, int(rng.integers(3, 9))) for bystander in bystanders[12:]]
    wrong = [(pick(proteins[3:]), pick(proteins[3:])) for _ in range(15)]
    rows += [(u, v, 1, int(rng.choice([1, -1])), 1) for u, v in wrong if (u, v) not in {*known, *hidden}]
    rows += [(pick(proteins), pick(proteins), 0, 0, 5) for _ in range(4)]
    first = next(iter(known))
    rows.append((*first, 1, -known[first], 1))  # somebody got the sign wrong
    table = pd.DataFrame(
        [
            (accession[u], accession[v], u, v, directed, int(sign > 0), int(sign < 0), effort)
            for u, v, directed, sign, effort in rows
        ],
        columns=[
            *("source", "target", "source_genesymbol", "target_genesymbol"),
            *("is_directed", "is_stimulation", "is_inhibition", "curation_effort"),
        ],
    )
    ends = ["REC3", "REC4"]  # the ligand of both binds them as a complex
    bound = table[(table["source_genesymbol"] == "LIG3") & table["target_genesymbol"].isin(ends)]
    row = bound.iloc[:1].assign(
        target="COMPLEX:" + "_".join(accession[name] for name in ends), target_genesymbol="_".join(ends)
    )
    return pd.concat([table.drop(index=bound.index), row], ignore_index=True)
