"""Does the quick model's uncertainty help to choose before the first U-Net?

By default, the first 20 scans are chosen in one step, without a model. Here the quick model ranks the pool earlier:
from 5 or from 10 labels on, with the strategy that otherwise follows the first training. The screen (`screening.py`),
whose heads are those of the quick model, its pools and its splits; compared with the default on the same splits.

`.venv/bin/python -m benchmarks.early_uncertainty --out FOLDER`: about 20 minutes of one core. FOLDER keeps the features
of the screen (`benchmarks.selection --screen`).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from backend.simulate.screen_runs import Opened, each_split
from backend.simulate.statistics import Interval, mean_interval
from benchmarks.measure import report, rounded, summary
from benchmarks.screen_pools import bank, kinds
from benchmarks.screening import BUDGETS, JUDGED, TABLE, opened, text

FROM = (5, 10)  # labels
DEFAULT = "default"


def early(folder: Path, name: str, labels: int) -> Opened:
    """The screen of one kind of pool, with rounds from so many labels on."""
    made, split = opened(folder, name)
    return replace(made, strategies=(DEFAULT,), cold_start=labels), split


def gains(folder: Path, names: Sequence[str], labels: int, seeds: Sequence[int]) -> dict[tuple[str, int], list[float]]:
    """By kind and budget: Dice minus that of the default, for each split."""
    with TABLE.open(newline="") as rows:
        dice = {
            (row["data"], int(row["seed"]), int(row["budget"])): float(row["dice"])
            for row in csv.DictReader(rows)
            if row["strategy"] == DEFAULT
        }
    found: dict[tuple[str, int], list[float]] = {}
    for name in names:
        opener = partial(early, folder, name, labels)
        for results, _ in each_split(opener, seeds, processes=2, progress=lambda done, total, left: None):
            for row in results:
                key = (name, row["seed"], row["budget"])
                if row["strategy"] == DEFAULT and row["budget"] > labels:
                    found.setdefault((name, row["budget"]), []).append(row["dice"] - dice[key])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the features")
    options = parser.parse_args()
    folder = options.out / "screen"
    names = [kind.name for kind in kinds(bank(folder, print))]
    rows, over = [], dict[tuple[int, int], Interval]()
    for labels in FROM:
        found = gains(folder, names, labels, list(JUDGED))
        for budget in BUDGETS:
            each = {name: found[name, budget] for name in names if (name, budget) in found}
            if each:
                over[labels, budget] = mean_interval(each)
                cells = [text(mean_interval({"": values})) for values in each.values()]
                rows.append([f"from {labels}", budget, text(over[labels, budget]), *cells])
    best = max(over.values(), key=lambda one: one.mean)
    report(
        "Dice with the quick model's uncertainty, minus the default's",
        ("uncertainty", "labels", "all kinds", *names),
        rows,
        summary(
            {name: rounded(value or np.nan) for name, value in
             (("ratio", best.mean), ("low", best.low), ("high", best.high))},
            unit="Dice, mean over the kinds of pools, best case",
            compared="ranking by the quick model before the first training - the shipped cold start of 20",
            sizes={"splits": len(JUDGED), "kinds": len(names)},
            limit=0.0,
            met=bool(best.low and best.low > 0),
        ),
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
