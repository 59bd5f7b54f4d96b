"""Link prediction on mined edges, on the 24 functions of `post_hoc.py`: AUC, MRR, top@1, means over seeds.

Each seed trains one GSNN on the graph without 16 of its 33 function edges; everything else starts from what
one inferer saw of it. Negatives of the AUC are all other pairs that are neither a kept edge nor self; ranks
are raw, so kept edges compete. No edge is excluded from training, apart from the rows named "excluded":

  excluded exactly   the 16 held-out edges are unknown to the embedding: neither mined nor negative. This
                     uses their labels, so the number means nothing, whichever way it errs.
  excluded in 11     the 16 and 160 random missing pairs are unknown, and only these 176 are scored.

`directed` and `fused` rows come for several weight decays; the one with the best mean validation AUC (8 other
held-out edges) is marked, and is the number to quote.

    python benchmarks/kge.py --seeds 20 --jobs 2
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import post_hoc
from _script import parser_for, rows_of, save, seeds_of
from _stamp import command_line
from _tables import interval

from gsnn.optim.edge_table import judge
from gsnn.optim.MagnitudeEdgeKGE import MagnitudeEdgeKGE
from gsnn.stats.ranking import auc

OUT = Path(__file__).parent / "results" / "kge.csv"
SETTINGS: dict[str, Any] = {
    "embedding_dim": 32,
    "n_epochs": 100,
    "kge_lr": 2e-2,
    "kge_window_size": 2,
    "fuse": 1.0,
}
DECAYS = (1e-4, 0.3, 1.0, 2.0, 3.0)
MEASURES = ("auc", "average_precision", "mrr", "top@1", "top@5")
BOTH = {"embedding_dim": SETTINGS["embedding_dim"], "lr": SETTINGS["kge_lr"]}
DIRECTED = {
    **BOTH,
    "directed": True,
    "walk_undirected": False,
    "window_size": SETTINGS["kge_window_size"],
}
METHODS: dict[str, dict[str, Any]] = {
    "symmetric": {**BOTH, "window_size": 5},
    "directed, mined by mean": {**DIRECTED, "layer_agg": "mean"},
    "directed, inferred only": {**DIRECTED, "edges": "inferred"},
    "directed, true only": {**DIRECTED, "edges": "true"},
    "directed, top 5 per target": {**DIRECTED, "mining_strategy": "topk_per_target"},
    "directed, unweighted": {**DIRECTED, "walk_corr_weighted": False},
}


def one_seed(seed: int) -> list[dict]:
    scenario, inferer, _ = post_hoc.fitted(seed)
    rows = []

    def record(method: str, decay: float, table: pd.DataFrame, score: str) -> None:
        val = judge(table, inferer.kept, scenario.validation_edges, score)
        test = judge(table, inferer.kept, scenario.test_edges, score)
        row = {"seed": seed, "method": method, "kge_weight_decay": decay, "val_auc": val["auc"]}
        rows.append(row | {name: test[name] for name in MEASURES})

    def embed(decay: float = DECAYS[0], **options) -> MagnitudeEdgeKGE:
        kge = MagnitudeEdgeKGE(inferer, weight_decay=decay, **options)
        kge.fit(SETTINGS["n_epochs"], verbose=False, seed=seed)
        return kge

    for layer_agg in ("max", "mean"):
        record(f"mined, {layer_agg}", np.nan, inferer.evaluate(layer_agg=layer_agg), "corr")
    for decay in DECAYS:
        kge = embed(decay, **DIRECTED)
        record("directed", decay, kge.evaluate(), "score")
        record("fused", decay, kge.evaluate(fuse=SETTINGS["fuse"]), "score")
    for method, options in METHODS.items():
        kge = embed(**options)
        record(method, DECAYS[0], kge.evaluate(), "score")
        record(f"{method}, fused", DECAYS[0], kge.evaluate(fuse=SETTINGS["fuse"]), "score")
    leaky = embed(**DIRECTED, exclude_edges=scenario.held_out)
    record("directed, excluded exactly", DECAYS[0], leaky.evaluate(), "score")
    rows.append({"seed": seed, "method": "directed, excluded in 11", "kge_weight_decay": DECAYS[0]})
    rows[-1]["auc"] = auc_among_unknown(embed, inferer, scenario, seed)
    return rows


def auc_among_unknown(embed, inferer, scenario, seed: int) -> float:
    names, kept, held_out = inferer.function_nodes, inferer.edges, set(scenario.held_out)
    others = [(i, j) for i in names for j in names if i != j and (i, j) not in kept | held_out]
    chosen = np.random.default_rng(seed).choice(len(others), 10 * len(held_out), replace=False)
    unknown = [*scenario.held_out, *(others[k] for k in chosen)]
    table = embed(**DIRECTED, exclude_edges=unknown).evaluate().set_index(["src_func", "dst_func"])
    pool = [pair for pair in unknown if pair not in set(scenario.validation_edges)]
    return auc(table.score[pool], [pair in set(scenario.test_edges) for pair in pool])


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.assign(kge_weight_decay=rows.kge_weight_decay.fillna(-1.0))
    mean = rows.groupby(["method", "kge_weight_decay"])["val_auc"].mean()
    best = {method: mean[method].idxmax() for method in ("directed", "fused")}
    baseline = rows[rows.method == "mined, mean"].set_index("seed")
    lines = []
    method: Any
    decay: Any
    for (method, decay), part in rows.groupby(["method", "kge_weight_decay"], sort=False):
        line = {"method": method, "decay": "" if decay < 0 else f"{decay:g}"}
        line["chosen"] = "*" if best.get(method) == decay else ""
        line["val_auc"] = f"{part.val_auc.mean():.3f}"
        for name in ("auc", "mrr", "top@1"):
            low, high = interval(part[name].to_numpy())
            line[name] = f"{part[name].mean():.3f} [{low:.3f}, {high:.3f}]"
        gain = part.set_index("seed").auc - baseline.auc
        line["auc - mined mean"] = "{:+.3f} [{:+.3f}, {:+.3f}]".format(
            gain.mean(), *interval(gain.to_numpy())
        )
        lines.append(line)
    return pd.DataFrame(lines)


def main() -> None:
    args = command_line(parser_for(__doc__, OUT, seeds=20))
    rows = rows_of(one_seed, [(seed,) for seed in seeds_of(args)], args.jobs)
    print(summarise(rows).to_string(index=False))
    save(rows, args.out, 6, threads=1, **{**post_hoc.SETTINGS, **SETTINGS})


if __name__ == "__main__":
    main()
