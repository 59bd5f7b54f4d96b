r"""Can a pathway prior be told from noise? No, true and shuffled pathways on disconnected chains.

Four chains of three functions, two inputs and two outputs each, and 8 spurious edges across, drawn anew for
each seed as are samples and weights. The first function of each chain is tanh(a + b), (a^2 + b^2) / 2,
cos(a + b) or 0.3 (a^3 + b^3) of its two inputs, all else is linear. The regularizer is given no pathways, the
true ones, or the true ones with the function nodes permuted. Two more tests: `hidden` keeps 2 of the 12
memberships (17%; 20% rounded to nodes) from the regularizer, `wrong` swaps the pathways of 2 nodes.

Measured on 1,024 test samples, on `get_node_activations` (sum over the blocks), one vector of samples x
channels per node:
- `ari`, adjusted Rand index of k-means (k = 4) against the chains; `cosine_gap`, mean cosine of nodes in one
  chain minus that of nodes in two; both again (`_centred`) with each channel centred over the samples;
- `norm_ratio`, mean of |lin_out| |lin_in| over true edges by that over spurious ones;
- `own_minus_random`, for the 2 nodes: |correlation| (mean over channels) with the score of their own chain's
  other members, less the mean of the same over the nodes of other chains. Absolute, since nothing fixes the
  sign of the channels of a node that is in no pathway; `signed_own_minus_random` is with the sign;
- `own_minus_claimed`, for the 2 nodes: the same less their |correlation| with the chain of the other one,
  which is where `wrong` places them; and with the sign.

    python benchmarks/pathway_control.py --seeds 20 --jobs 2

The schedule `channel_warm` was chosen on other seeds than the reported ones:

    python benchmarks/pathway_control.py --first 100 --seeds 16 --phis none channel channel_warm \
        --out benchmarks/results/pathway_control_tuning.csv

Runs that are in the table already, with the same settings, are not repeated; a killed run loses at most the
last few cells.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from _script import parser_for, seeds_of
from _stamp import command_line, stamp
from _tables import interval
from joblib import Parallel, delayed
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from tqdm import tqdm

from gsnn.io import replacing
from gsnn.models.GSNN import GSNN
from gsnn.models.PathwayLatentRegularizer import PathwayLatentRegularizer
from gsnn.models.pathways import shuffle_nodes, warm_up
from gsnn.simulate.scenarios import PathwayScenario, disconnected_pathways

OUT = Path(__file__).parent / "results" / "pathway_control.csv"
SETTINGS: dict[str, Any] = {
    "channels": 8,
    "layers": 4,
    "n_train": 256,
    "n_test": 1024,
    "epochs": 500,
    "lr": 5e-3,
    "weight_decay": 1e-5,
    "noise": 0.3,
    "functions": "tanh squares cos cubes",
}
FIRST_FUNCTIONS = (
    lambda p: np.tanh(p[0] + p[1]),
    lambda p: (p[0] ** 2 + p[1] ** 2) / 2,
    lambda p: np.cos(p[0] + p[1]),
    lambda p: 0.3 * (p[0] ** 3 + p[1] ** 3),
)
# Constructor arguments of each phi in the table.
PHIS: dict[str, dict[str, Any]] = {
    "channel": {"phi": "channel"},
    "channel_plain": {"phi": "channel", "leave_one_out": False, "min_std": 0.0},
    "mean": {"phi": "mean"},
    "learned": {"phi": "learned"},
}
# The loss at every fourth step only, with four times the weight: a quarter of the cost.
EVERY = 4
SPARSE = "channel_every_4"
# lambda rises from 0 between 5% and 30% of the epochs.
WARM = "channel_warm"
LAMBDAS = (0.5, 0.2, 0.1, 0.01)


class Cell(NamedTuple):
    pathways: str
    phi: str
    lambda_sim: float
    shared: bool
    seed: int


def cells(seeds: range) -> list[Cell]:
    """The headline first and then seed by seed, so that a run that is stopped early can be used."""
    kinds = ("true", "shuffled", "hidden", "wrong")
    both = (True, False)
    ordered = [Cell("none", "none", 0.0, s, k) for k, s in product(seeds, both)]
    ordered += [Cell(kind, "channel", 0.5, s, k) for k, s, kind in product(seeds, both, kinds)]
    for phi in (WARM, SPARSE):
        ordered += [Cell(kind, phi, 0.5, s, k) for k, s, kind in product(seeds, both, kinds[:2])]
    for k, lambda_sim, phi, s, kind in product(seeds, LAMBDAS, PHIS, both, kinds):
        cell = Cell(kind, phi, lambda_sim, s, k)
        if kind in ("true", "shuffled") or (phi, lambda_sim) == ("mean", 0.5):
            ordered.append(cell)
    return list(dict.fromkeys(ordered))


def demonstration(seed: int) -> PathwayScenario:
    """The chains, each with its own first function."""
    scenario = disconnected_pathways(seed=seed)
    first = [chain.nonzero()[0].item() for chain in scenario.membership]
    names = [scenario.function_nodes[node] for node in first]
    return replace(scenario, special_functions=dict(zip(names, FIRST_FUNCTIONS, strict=True)))


def run(cell: Cell) -> dict:
    torch.set_num_threads(1)
    scenario = demonstration(cell.seed)
    sample = scenario.sample(SETTINGS["n_train"], SETTINGS["n_test"], SETTINGS["noise"], seed=cell.seed)
    x, x_test, y, y_test = (torch.tensor(part, dtype=torch.float32) for part in sample)
    mean, sd = y.mean(0), y.std(0, correction=0)
    y, y_test = (y - mean) / sd, (y_test - mean) / sd
    graph = scenario.model_graph
    torch.manual_seed(cell.seed)
    model = GSNN(
        graph.edge_index_dict,
        graph.node_names_dict,
        channels=SETTINGS["channels"],
        layers=SETTINGS["layers"],
        share_layers=cell.shared,
        norm="layer",
    )
    membership, odd = given_membership(scenario, cell)
    parameters, regularizer = [*model.parameters()], None
    every = EVERY if cell.phi == SPARSE else 1
    if cell.pathways != "none":
        regularizer = PathwayLatentRegularizer(
            model, membership, lambda_sim=cell.lambda_sim * every, **PHIS.get(cell.phi, PHIS["channel"])
        )
        parameters += regularizer.parameters()
    optimizer = torch.optim.Adam(
        parameters, lr=SETTINGS["lr"], weight_decay=SETTINGS["weight_decay"], fused=True
    )
    epochs = SETTINGS["epochs"]
    for epoch in range(epochs):
        if regularizer is not None and cell.phi == WARM:
            regularizer.lambda_sim = cell.lambda_sim * warm_up(epoch, epochs // 4, start=epochs // 20)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        if regularizer is not None and epoch % every == 0:
            loss = loss + sum(regularizer.loss(model))
        loss.backward()
        optimizer.step()
    if regularizer is not None:
        regularizer.disable(model)
    model.eval()
    with torch.no_grad():
        test_mse = torch.nn.functional.mse_loss(model(x_test), y_test).item()
    activations = model.get_node_activations(x_test)
    acts = torch.stack([activations[name] for name in scenario.function_nodes]).numpy()  # (N, B, C)
    labels = scenario.membership.argmax(0).numpy()
    found = {"test_mse": test_mse}
    for suffix, table in (("", acts), ("_centred", acts - acts.mean(1, keepdims=True))):
        flat = table.reshape(len(table), -1)
        clusters = KMeans(len(scenario.membership), n_init=10, random_state=cell.seed).fit_predict(flat)
        unit = flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-12)
        cosine, same = unit @ unit.T, labels[:, None] == labels
        found["ari" + suffix] = adjusted_rand_score(labels, clusters)
        within = cosine[same & ~np.eye(len(labels), dtype=bool)].mean()
        found["cosine_gap" + suffix] = within - cosine[~same].mean()
    found["norm_ratio"] = norm_ratio(model, scenario)
    return {**cell._asdict(), **found, **two_nodes(acts, labels, odd)}


def given_membership(scenario: PathwayScenario, cell: Cell) -> tuple[torch.Tensor, np.ndarray]:
    """What the regularizer is told, and two nodes of different chains, the same for every kind."""
    rng = np.random.default_rng([cell.seed, 1])
    truth = scenario.membership
    labels = truth.argmax(0).numpy()
    chains = rng.choice(len(truth), size=2, replace=False)
    odd = np.array([rng.choice(np.flatnonzero(labels == chain)) for chain in chains])
    given = truth.clone()
    if cell.pathways == "shuffled":
        given = shuffle_nodes(truth, seed=cell.seed)
    elif cell.pathways == "hidden":
        given[:, odd] = 0
    elif cell.pathways == "wrong":
        given[:, odd] = truth[:, odd[::-1].copy()]
    return given, odd


def two_nodes(acts: np.ndarray, labels: np.ndarray, odd: np.ndarray) -> dict[str, float]:
    def correlation(node: int, chain: int) -> np.ndarray:
        """Mean over channels of |r| and of r."""
        members = [i for i in np.flatnonzero(labels == chain) if i not in odd]
        one, score = acts[node], acts[members].mean(0)
        one, score = one - one.mean(0), score - score.mean(0)
        scale = np.sqrt((one**2).sum(0) * (score**2).sum(0)).clip(1e-12)
        r = (one * score).sum(0) / scale
        return np.array([np.abs(r).mean(), r.mean()])

    to_random, to_claimed = [], []
    for node, other in zip(odd, odd[::-1], strict=True):
        own = correlation(node, labels[node])
        strangers = [i for i in np.flatnonzero(labels != labels[node]).tolist() if i not in odd]
        to_random.append(own - np.mean([correlation(i, labels[node]) for i in strangers], axis=0))
        to_claimed.append(own - correlation(node, labels[other]))
    names = ("own_minus_random", "signed_own_minus_random", "own_minus_claimed", "signed_own_minus_claimed")
    return dict(zip(names, [*np.mean(to_random, 0).tolist(), *np.mean(to_claimed, 0).tolist()], strict=True))


def norm_ratio(model: GSNN, scenario: PathwayScenario) -> float:
    edges = scenario.model_graph.edge_index_dict["function", "to", "function"].t().tolist()
    names = scenario.function_nodes
    spurious = np.array([(names[u], names[v]) in scenario.spurious_edges for u, v in edges])
    norms = []
    block: Any
    for block in model.ResBlocks:
        strength: Any = 1.0
        for linear, side, size in ((block.lin_in, 0, "N"), (block.lin_out, 1, "M")):
            squares = torch.zeros(getattr(linear, size))
            squares.index_add_(0, linear.indices[side], linear.values.detach().square())
            strength = strength * squares.sqrt().numpy()
        norms.append(strength[: len(edges)])
    mean = np.mean(norms, 0)
    return float(mean[~spurious].mean() / mean[spurious].mean())


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds and bootstrap 95% interval of each measure, and of true minus none and shuffled."""
    columns = list(rows.columns)
    measures = columns[len(Cell._fields) : columns.index("signed_own_minus_claimed") + 1]
    index = ["shared", "phi", "lambda_sim", "pathways"]
    table = []

    def add(key: tuple, values: pd.DataFrame) -> None:
        for measure in measures:
            v = values[measure].to_numpy()
            table.append((*key, measure, len(v), v.mean(), *interval(v)))

    by_cell = {key: part.set_index("seed") for key, part in rows.groupby(index)}
    for key, part in by_cell.items():
        add(key, part)
        shared, phi, lambda_sim, kind = key
        others = {"none": (shared, "none", 0.0, "none"), "shuffled": (shared, phi, lambda_sim, "shuffled")}
        for name, other in others.items():
            if kind not in (name, "none") and other in by_cell:
                difference = (part[measures] - by_cell[other][measures]).dropna()
                if len(difference):
                    add((*key[:3], f"{kind} - {name}"), difference)
    return pd.DataFrame(table, columns=[*index, "measure", "seeds", "mean", "low", "high"])


def main() -> None:
    parser = parser_for(__doc__, OUT, seeds=20)
    parser.add_argument("--phis", nargs="+", help="only these")
    args = command_line(parser)
    args.out.parent.mkdir(exist_ok=True)
    rows = pd.read_csv(args.out) if args.out.exists() else pd.DataFrame(columns=list(Cell._fields))
    for name, value in SETTINGS.items():  # a table of other settings is begun anew
        rows = rows[rows[name] == value] if name in rows else rows[:0]
    done = {Cell(*key) for key in rows[list(Cell._fields)].itertuples(index=False)}
    todo = [c for c in cells(seeds_of(args)) if c not in done and (not args.phis or c.phi in args.phis)]
    marks = {**SETTINGS, **stamp(), "threads": 1}
    fresh: list[dict] = []

    def save() -> pd.DataFrame:
        table = pd.concat([rows, pd.DataFrame(fresh)]) if len(rows) else pd.DataFrame(fresh)
        with replacing(args.out) as tmp:
            table.to_csv(tmp, index=False, float_format="%.5g")
        return table

    found = Parallel(n_jobs=args.jobs, return_as="generator")(delayed(run)(cell) for cell in todo)
    for row in tqdm(found, total=len(todo)):
        fresh.append({**row, **marks})
        if len(fresh) % 10 == 0:
            save()
    summary = summarize(save() if fresh else rows)
    summary.assign(**marks).to_csv(
        args.out.with_name(f"{args.out.stem}_summary.csv"), index=False, float_format="%.5g"
    )
    for measure, part in summary.groupby("measure", sort=False):
        print(f"\n{measure}: mean [bootstrap 95% interval] over seeds")
        cell = part.apply(lambda r: f"{r['mean']:.3f} [{r.low:.3f}, {r.high:.3f}]", axis=1)
        wide = part.assign(cell=cell).pivot(
            index=["shared", "phi", "lambda_sim"], columns="pathways", values="cell"
        )
        print(wide.fillna("").to_string())


if __name__ == "__main__":
    main()
