"""Do 90% intervals hold 90% of the measurements? Real sets, held-out folds; an ensemble's spread beside CV+.

`run` are the intervals of `gsnn run`: those of one fold are as wide as the errors in the other folds say.
For the others outer folds are held out. On the rest `fit_ensemble` trains networks of five inner folds, and
its intervals for the held-out samples are compared with what was measured there. `spread` takes the
ensemble's standard deviation as that of a normal, `cv+` is what the held-out errors of the inner folds
calibrate. `low_output` is
the lowest coverage of any output, `width` the median width in standard deviations of the outputs. Settings
and outer folds are those of `real_data.py`; nothing was chosen by these numbers.

    python benchmarks/intervals.py --seeds 3 --jobs 2

`--outer 1` holds one outer fold out instead of all, `--outer 0` measures `run` alone.
"""

import warnings
from pathlib import Path

import numpy as np
from _scenarios import DATA, at_hand
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from real_data import SETS

from gsnn.app.compare import Split, make_splits
from gsnn.app.settings import new_model
from gsnn.app.training import train_folds
from gsnn.app.workflow import Options, cross_validate, settle
from gsnn.data.tables import Data, load_data
from gsnn.graph import GraphWarning
from gsnn.stats.conformal import coverage, held_out_widths, spread_interval
from gsnn.train import fit_ensemble

OUT = Path(__file__).parent / "results" / "intervals.csv"
LEVEL = 0.9


def one(name: str, members: int, outer: int | None, seed: int) -> list[dict]:
    folder = DATA / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GraphWarning)  # an input that reaches no output is in the data
        data = load_data(folder / "edges.tsv", folder / "X.tsv", folder / "Y.tsv", nodes=folder / "nodes.tsv")
    options = settle(data, Options(folds=SETS[name], seed=seed))
    x, y = data.x.to_numpy(), data.y.to_numpy()
    splits = make_splits(data.y, data.groups, options.folds, seed)
    sd = np.nanstd(y, axis=0)
    rows = [of_run(data, options, splits, sd, {"data": name, "members": 1, "seed": seed})]
    if outer == 0:
        return rows
    low = {method: np.full(y.shape, np.nan) for method in ("spread", "cv+")}
    high, mean = {method: v.copy() for method, v in low.items()}, np.full(y.shape, np.nan)
    for number, (train, test) in enumerate(splits[:outer], 1):
        ensemble = fit_ensemble(
            new_model(data, options, seed), x[train], y[train], n_members=members, seed=100 * seed + number,
            epochs=options.epochs, batch_size=options.batch_size, lr=options.lr,
            weight_decay=options.weight_decay, verbose=False,
        )  # fmt: skip
        found = ensemble.predict(x[test], LEVEL)
        mean[test] = found.mean
        low["cv+"][test], high["cv+"][test] = found.low, found.high
        low["spread"][test], high["spread"][test] = spread_interval(found.mean, found.std, LEVEL)
    tested = np.where(np.isnan(mean), np.nan, y)
    for method in low:
        marks = {"data": name, "members": members, "seed": seed, "method": method}
        rows.append(marks | row(tested, mean, low[method], high[method], sd))
    return rows


def of_run(data: Data, options: Options, splits: list[Split], sd: np.ndarray, marks: dict) -> dict:
    """Of networks on each fold's training samples, by the intervals that `gsnn run` makes of their errors."""
    y = data.y.to_numpy()
    (*models, _), _, _ = train_folds(data, options, splits, verbose=False)
    yhat, fold = cross_validate(data, options, splits, models)
    width = held_out_widths(np.abs(y - yhat["gsnn"]), fold, LEVEL)
    found = row(y, yhat["gsnn"], yhat["gsnn"] - width, yhat["gsnn"] + width, sd)
    return marks | {"method": "run"} | found


def row(y: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray, sd: np.ndarray) -> dict:
    held = coverage(y / sd, low / sd, high / sd)
    return {
        "level": LEVEL, "coverage": held["coverage"], "low_output": np.nanmin(held["by_output"]),
        "width": held["width"], "values": held["n"],
        "r2": 1 - np.nansum((y - mean) ** 2) / np.nansum((y - np.nanmean(y, axis=0)) ** 2),
    }  # fmt: skip


def main() -> None:
    parser = parser_for(__doc__, OUT, seeds=3)
    parser.add_argument("--members", type=int, default=2, help="networks on each inner training set")
    parser.add_argument("--outer", type=int, help="outer folds that are held out, by default all")
    parser.add_argument("--data", nargs="+", default=list(SETS), choices=list(SETS))
    args = command_line(parser)
    names = at_hand({name: name for name in args.data})
    if not names:
        return
    cells = [(name, args.members, args.outer, seed) for name in names for seed in seeds_of(args)]
    table = rows_of(one, cells, args.jobs)
    summary = table.groupby(["data", "method"], sort=False)[["coverage", "low_output", "width", "r2"]]
    print(summary.mean().round(3).to_string())
    save(table, args.out, 5, threads=1)


if __name__ == "__main__":
    main()
