"""Does the order save labels? Stage B: trained networks, on splits that nobody has looked at.

Registered on 2026-11-29, before the first of these trainings ran:

- *Candidate*: `default`, whose first 20 scans are chosen in one step (`cold_start_size`). It was chosen by the screen
  (`--screen`, stage A). No other strategy is tried here.
- *Compared with*: the mean of two random orders of the same split.
- *Pools*: `KINDS`, those of the screen on which it promises most and least; seeds `SEEDS`, never used before.
- *Networks*: what ships on a CPU, but on squares of `SIDE` pixels and with `STEPS` steps, so that hundreds of trainings
  take an hour. All labels are learnt. Within a split, trainings share their seed.
- *Outcome*: the difference in Dice (mean over test scans with the label, then over labels) with 5, 10 and 20 labels,
  per kind and averaged over the kinds, with 95 % t intervals over the splits. Claimed is what excludes 0 at 10 labels,
  averaged over the kinds.
- *What it can see*: trainings with the same number of labels scatter by 0.05 to 0.1. Twelve splits can then show 0.06
  on one kind, and 0.03 averaged over three, but not the 0.02 of the screen on near-duplicates.

`.venv/bin/python -m benchmarks.selection` writes `selection.md`, `selection.csv` and `selection-picks.csv`; a split in
`--out` is not trained again. `--screen` runs stage A.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from backend.facts import validation_rows
from backend.formats.pixels import classes_in, letterbox
from backend.learning.cases import Case
from backend.learning.learner import Learner
from backend.settings import Settings
from backend.simulate.statistics import Interval, signed
from benchmarks import screening
from benchmarks.measure import report as print_report
from benchmarks.measure import rounded, summary, t_interval
from benchmarks.screen_pools import LABELS, Bank, all_scans, bank
from sampling import COLD_START, DEFAULT, find_strategy, strategy_pair

KINDS = ("breast ultrasound", "near-duplicates", "mixture")
SEEDS = range(200, 212)
BUDGETS = (5, 10, 20)
RANDOM = ("random 1", "random 2")
SIDE, STEPS = 96, 150
TESTED = 60  # test scans of each label, at most
PAGE, TABLE, PICKS = (
    Path(__file__).with_name(name) for name in ("selection.md", "selection.csv", "selection-picks.csv")
)
COLUMNS = ("data", "seed", "order", "budget", "dice", "n_test")
PICK_COLUMNS = ("data", "seed", "order", "place", "name")
MARK = "<!-- written by benchmarks.selection -->"

Rows = list[dict[str, Any]]


@cache
def scans(folder: Path) -> tuple[Bank, Sequence[NDArray[np.uint8]], Sequence[NDArray[np.uint8]]]:
    """(bank, images, masks with the class of each label)."""
    _, images, masks, _, _ = all_scans()
    return bank(folder / "screen", print), images, masks


def one_split(job: tuple[str, int, Path, int]) -> tuple[Rows, Rows]:
    """Rows of results and picks of all orders on one split.

    job  kind, seed, folder of the features, steps of a training
    """
    name, seed, folder, steps = job
    found, images, masks = scans(folder)
    screen, split = screening.opened(folder / "screen", name)
    part = split(seed)
    random = np.random.default_rng([seed, 7])
    orders = {order: random.permutation(len(part.pool))[: BUDGETS[-1]] for order in RANDOM}
    cold = find_strategy(COLD_START, strategy_pair(DEFAULT)[0])
    orders["default"] = cold(screen.pool(part, seed), BUDGETS[-1], seed=seed).rows
    test = tested(part.test, masks, seed)
    learner = Learner(Settings(image_size=SIDE, training_steps=steps, device="cpu", threads=1))
    rows: Rows = []
    for order, chosen in orders.items():
        for budget in BUDGETS:
            dice = trained(learner, images, masks, part.pool[chosen[:budget]], test, screen.groups, seed)
            rows.append(
                {"data": name, "seed": seed, "order": order, "budget": budget, "dice": dice, "n_test": len(test)}
            )
    picks = [
        {"data": name, "seed": seed, "order": order, "place": place, "name": found.names[part.pool[row]]}
        for order, chosen in orders.items()
        for place, row in enumerate(chosen, start=1)
    ]
    return rows, picks


def tested(rows: NDArray[np.intp], masks: Sequence[NDArray[np.uint8]], seed: int) -> list[int]:
    """Test scans, at most TESTED of each label."""
    found: list[int] = []
    of = np.array([masks[row].max() for row in rows])
    for number in range(1, len(LABELS) + 1):
        having = np.random.default_rng([seed, number]).permutation(rows[of == number])
        found += having[:TESTED].tolist()
    return found


def trained(
    learner: Learner,
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.uint8]],
    chosen: NDArray[np.intp],
    test: Sequence[int],
    units: NDArray[np.intp],
    seed: int,
) -> float:
    """Dice of a network trained on these scans: mean over test scans with a label, then over the labels."""
    rows = sorted(chosen.tolist())
    shown = [classes_in(masks[row]) for row in rows]
    held = validation_rows([str(row) for row in rows], [str(units[row]) for row in rows], shown)
    cases = [Case(letterbox(images[row], learner.image_size), masks[row]) for row in rows]
    learn = [case for i, case in enumerate(cases) if i not in held]
    watched = [case for i, case in enumerate(cases) if i in held]
    save, _ = learner.train(learn, watched, LABELS, seed=seed, on_step=lambda done, total: None)
    of: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        for row in test:
            mask = learner.masks(Path(folder), [letterbox(images[row], learner.image_size)])[0]
            dice = learner.compare(mask, masks[row], len(LABELS) + 1).dice
            of.setdefault(int(masks[row].max()), []).append(dice or 0.0)
        learner.forget(Path(folder))
    return float(np.mean([np.mean(each) for each in of.values()]))


def differences(rows: Rows) -> dict[tuple[str, int], list[float]]:
    """Default minus the mean of the random orders, for each kind and budget: one value for each split."""
    dice = {(r["data"], int(r["seed"]), r["order"], int(r["budget"])): float(r["dice"]) for r in rows}
    found: dict[tuple[str, int], list[float]] = {}
    for (kind, seed, order, budget), value in sorted(dice.items()):
        if order == "default":
            chance = np.mean([dice[kind, seed, one, budget] for one in RANDOM])
            found.setdefault((kind, budget), []).append(value - float(chance))
    return found


def over_kinds(found: Mapping[tuple[str, int], Sequence[float]], budget: int) -> Interval:
    """Mean over the kinds of each split number, whose splits are independent between kinds."""
    each = [values for (_, b), values in found.items() if b == budget]
    return t_interval(np.mean(np.array(each), axis=0).tolist())


def text(one: Interval) -> str:
    ends = "" if one.low is None or one.high is None else f" ({signed(one.low)} .. {signed(one.high)})"
    return signed(one.mean) + ends


def table(rows: Rows) -> list[str]:
    """The results as Markdown."""
    found = differences(rows)
    names = [kind for kind in KINDS if (kind, BUDGETS[0]) in found]
    lines = ["| labels | all kinds | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for budget in BUDGETS:
        cells = [text(t_interval(found[kind, budget])) for kind in names]
        lines.append(f"| {budget} | {text(over_kinds(found, budget))} | {' | '.join(cells)} |")
        for order in ("default", *RANDOM):
            level = [
                np.mean(
                    [float(r["dice"]) for r in rows if (r["data"], r["order"], int(r["budget"])) == (k, order, budget)]
                )
                for k in names
            ]
            lines.append(f"| {order}, Dice | | " + " | ".join(f"{value:.3f}" for value in level) + " |")
    scatter = {kind: float(np.std(found[kind, 10], ddof=1)) for kind in names} if len(found[names[0], 10]) > 1 else {}
    splits = len(found[names[0], BUDGETS[0]])
    half = ", ".join(f"{kind} {2.2 * sd / math.sqrt(splits):.3f}" for kind, sd in scatter.items())
    return [*lines, "", f"{splits} splits. Half the width of an interval with 10 labels: {half}."]


def read(file: Path) -> Rows:
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screen", action="store_true", help="stage A: five kinds of pools without trainings")
    parser.add_argument("--quick", action="store_true", help="two splits of barely trained models; writes no page")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel trainings")
    parser.add_argument("--out", type=Path, default=Path("build/selection"), help="features, and results so far")
    given = parser.parse_args()
    if given.screen:
        screening.main(given.out, quick=given.quick, jobs=given.jobs)
        return
    seeds, names, steps = (SEEDS[:2], KINDS[:1], 4) if given.quick else (SEEDS, KINDS, STEPS)
    given.out.mkdir(parents=True, exist_ok=True)
    results, picks = (given.out / f"{'quick-' if given.quick else ''}{name}.csv" for name in ("results", "picks"))
    rows, chosen = read(results), read(picks)
    there = {(row["data"], int(row["seed"])) for row in rows}
    scans(given.out)  # the features, once, before the processes start
    jobs = [(name, seed, given.out, steps) for seed in seeds for name in names if (name, seed) not in there]
    console = Console(stderr=True)
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as executor:
        for done, future in enumerate(as_completed([executor.submit(one_split, job) for job in jobs]), start=1):
            found, placed = future.result()
            rows, chosen = rows + found, chosen + placed
            screening.write_csv(results, rows, COLUMNS)
            screening.write_csv(picks, chosen, PICK_COLUMNS)
            console.print(f"{done} of {len(jobs)} splits")
    if not given.quick:
        write_page(rows, chosen)
    each = differences(rows)
    at = over_kinds(each, 10)
    low, high = (at.mean if end is None else end for end in (at.low, at.high))
    figures = {"ratio": rounded(at.mean), "low": rounded(low), "high": rounded(high)}
    print_report(
        f"{len(names)} kinds of pools, {len(seeds)} splits each",
        ["labels", "default - random, Dice, mean over the kinds"],
        [[str(budget), text(over_kinds(each, budget))] for budget in BUDGETS],
        summary(
            figures,
            unit="Dice with 10 labels",
            compared=f"default ({DEFAULT}) - mean of {len(RANDOM)} random orders",
            sizes={"splits": len(seeds), "image_size": SIDE, "steps": steps},
            limit=0.0,
            met=figures["low"] > 0,
        )
        | {"interval": "95 % t interval over splits"},
    )


def write_page(rows: Rows, picks: Rows) -> None:
    """Replace the tables of `selection.md`; the text above the mark is kept."""
    screening.write_csv(TABLE, [row | {"dice": f"{float(row['dice']):.4f}"} for row in rows], COLUMNS)
    screening.write_csv(PICKS, picks, PICK_COLUMNS)
    head = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(f"{head}{MARK}\n\n" + "\n".join(table(rows)) + f"\n\n{date.today().isoformat()}\n")


if __name__ == "__main__":
    main()
