"""R2 on real data, by the code behind ``gsnn run``: two liver signalling sets, default settings.

R2 is pooled over outputs and folds, 0 = the mean of the training fold. Each seed draws its own folds,
initial weights and batches; all methods see the same folds. The data are read from the folder GSNN_DATA
(default: shared/data beside the repository); sets that are not there are skipped.

The default settings, and the MLP's weight penalty, were chosen by cross-validation on these two sets, seeds 0
to 2 among the splits that were looked at. The figures therefore flatter both a little; no set was kept back.

    python benchmarks/real_data.py --seeds 5 --jobs 2
"""

import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _scenarios import DATA, at_hand
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line

from gsnn.app.compare import make_splits, scores
from gsnn.app.training import train_folds
from gsnn.app.workflow import Options, cross_validate, settle
from gsnn.data.tables import load_data
from gsnn.graph import GraphWarning

OUT = Path(__file__).parent / "results" / "real_data.csv"
SETS = {"cno_hepatocyte5": 5, "cno_extliver": 8}  # folds
SETTINGS: dict[str, dict[str, Any]] = {"default": {}}


def one(name: str, setting: str, seed: int) -> dict:
    folder = DATA / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GraphWarning)  # an input that reaches no output is in the data
        data = load_data(folder / "edges.tsv", folder / "X.tsv", folder / "Y.tsv", nodes=folder / "nodes.tsv")
    start = time.perf_counter()
    options = settle(data, Options(folds=SETS[name], seed=seed, **SETTINGS[setting]))
    splits = make_splits(data.y, data.groups, options.folds, options.seed)
    (*models, _), _, _ = train_folds(data, options, splits, verbose=False)
    yhat, _ = cross_validate(data, options, splits, models)
    r2 = scores(data.y, splits, yhat)["r2"]
    seconds = round(time.perf_counter() - start, 1)
    return {"data": name, "setting": setting, **r2, "seconds": seconds, **asdict(options)}


def main() -> None:
    args = command_line(parser_for(__doc__, OUT, seeds=5))
    names = at_hand({name: name for name in SETS})
    if not names:
        return
    cells = [(n, s, seed) for n in names for s in SETTINGS for seed in seeds_of(args)]
    table = rows_of(one, cells, args.jobs)
    summary = table.groupby(["data", "setting"], sort=False)[["ridge", "mlp", "gsnn"]]
    print(summary.agg(["mean", "min", "max"]).round(3).to_string())
    save(table.drop(columns=["mean", "top", "device"]), args.out, 5, threads=1)


if __name__ == "__main__":
    main()
