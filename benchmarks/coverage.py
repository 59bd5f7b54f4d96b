"""Do 90% intervals hold 90% of the measurements? Real sets, held-out folds; an ensemble's spread beside CV+.

Outer folds are held out. On the rest `fit_ensemble` trains networks of five inner folds, and its intervals
for the held-out samples are compared with what was measured there. `spread` takes the ensemble's standard
deviation as that of a normal, `cv+` is what the held-out errors of the inner folds calibrate. `low_output` is
the lowest coverage of any output, `width` the median width in standard deviations of the outputs. Settings
and outer folds are those of `real_data.py`; nothing was chosen by these numbers.

    python benchmarks/coverage.py --seeds 3 --jobs 2
"""

import warnings
from pathlib import Path

import numpy as np
from _scenarios import DATA, at_hand
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from real_data import SETS

from gsnn.app.compare import make_splits
from gsnn.app.settings import new_model
from gsnn.app.workflow import Options, settle
from gsnn.data.tables import load_data
from gsnn.graph import GraphWarning
from gsnn.stats.conformal import coverage, spread_interval
from gsnn.train import fit_ensemble

OUT = Path(__file__).parent / "results" / "coverage.csv"
LEVEL = 0.9


def one(name: str, members: int, seed: int) -> list[dict]:
    folder = DATA / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GraphWarning)  # an input that reaches no output is in the data
        data = load_data(folder / "edges.tsv", folder / "X.tsv", folder / "Y.tsv", nodes=folder / "nodes.tsv")
    options = settle(data, Options(folds=SETS[name], seed=seed))
    x, y = data.x.to_numpy(), data.y.to_numpy()
    low = {method: np.full(y.shape, np.nan) for method in ("spread", "cv+")}
    high, mean = {method: v.copy() for method, v in low.items()}, np.full(y.shape, np.nan)
    for number, (train, test) in enumerate(make_splits(data.y, data.groups, options.folds, seed), 1):
        ensemble = fit_ensemble(
            new_model(data, options, seed), x[train], y[train], n_members=members, seed=100 * seed + number,
            epochs=options.epochs, batch_size=options.batch_size, lr=options.lr,
            weight_decay=options.weight_decay, verbose=False,
        )  # fmt: skip
        found = ensemble.predict(x[test], LEVEL)
        mean[test] = found.mean
        low["cv+"][test], high["cv+"][test] = found.low, found.high
        low["spread"][test], high["spread"][test] = spread_interval(found.mean, found.std, LEVEL)
    sd = np.nanstd(y, axis=0)
    r2 = 1 - np.nansum((y - mean) ** 2) / np.nansum((y - np.nanmean(y, axis=0)) ** 2)
    rows = []
    for method in low:
        held = coverage(y / sd, low[method] / sd, high[method] / sd)
        rows.append({
            "data": name, "members": members, "seed": seed, "method": method, "level": LEVEL,
            "coverage": held["coverage"], "low_output": np.nanmin(held["by_output"]),
            "width": held["width"], "values": held["n"], "r2": r2,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = parser_for(__doc__, OUT, seeds=3)
    parser.add_argument("--members", type=int, default=2, help="networks on each inner training set")
    args = command_line(parser)
    names = at_hand({name: name for name in SETS})
    if not names:
        return
    cells = [(name, args.members, seed) for name in names for seed in seeds_of(args)]
    table = rows_of(one, cells, args.jobs)
    summary = table.groupby(["data", "method"], sort=False)[["coverage", "low_output", "width", "r2"]]
    print(summary.mean().round(3).to_string())
    save(table, args.out, 5, threads=1)


if __name__ == "__main__":
    main()
