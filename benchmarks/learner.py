"""What a lab gains with ten labels because the model learns from all of them, and from pretrained weights.

Three trainings of the network that ships, on the same ten random scans, with the same seed:

- *former*: a fifth of the labels is held out and never learnt; a ResNet-18 with random weights, as `auto` was on a
  machine that reaches no model hub;
- *weights*: the same, with the built-in weights of the encoder that ships;
- *shipped*: held-out scans are learnt in the second half of the steps.

Breast ultrasound (near-duplicates never separated) and axial slices of hippocampus volumes (whole volumes in pool or
test). `.venv/bin/python -m benchmarks.learner` needs 20 x 7 minutes of one core for each of the two. It writes
`learner.csv`; a pair that is there is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from backend.facts import validation_rows
from backend.fingerprints import fingerprint
from backend.formats.pixels import classes_in, letterbox
from backend.learning.cases import Case
from backend.learning.learner import Learner
from backend.settings import Settings
from backend.simulate.labelled import read_groups, read_labelled
from backend.simulate.plan import split
from backend.simulate.statistics import Interval, signed
from benchmarks.measure import report, rounded, summary, t_interval
from benchmarks.screen_pools import SHARED, hippocampus

FIRST = 700  # seed of the first pair; lower ones were used to choose the schedule
TEST_SHARE = 0.4
LABELS = 10
TABLE = Path(__file__).with_name("learner.csv")
TESTED = 120  # scans with a label, at most
COLUMNS = ("data", "seed", "arm", "dice", "judged", "seconds")
DATA = {"busi": "breast ultrasound", "hippocampus": "hippocampus slices"}


@dataclass(frozen=True)
class Arm:
    """One way of training: the encoder, and whether held-out scans are learnt in the end."""

    encoder: str
    all_labels: bool


ARMS = {"former": Arm("resnet18", False), "weights": Arm("auto", False), "shipped": Arm("auto", True)}
GAINS = {
    "built-in weights": ("weights", "former"),
    "all labels": ("shipped", "weights"),
    "together": ("shipped", "former"),
}


@cache
def scans(data: str) -> tuple[Sequence[NDArray[np.uint8]], Sequence[NDArray[np.uint8]], NDArray[np.intp]]:
    """(images, masks, groups)."""
    if data == "hippocampus":
        _, images, masks, groups = hippocampus()
        return images, masks, groups
    root = SHARED / "busi_ultrasound"
    found = read_labelled(root / "images", root / "masks")
    return found.images, found.masks, read_groups([f"{root / 'near_duplicates.csv'}:name_a,name_b"], found.names)


def pair(job: tuple[str, int, int]) -> Iterator[dict[str, Any]]:
    """The trainings of one pair: a row for each arm.

    job  data, seed, steps of a training (0: as shipped)
    """
    data, seed, steps = job
    images, masks, groups = scans(data)
    part = split(groups, TEST_SHARE, seed)
    chosen = np.random.default_rng(seed).permutation(part.pool)[:LABELS].tolist()
    test = [int(row) for row in part.test if masks[row].any()][:TESTED]
    names = [fingerprint("scan", int(row)) for row in chosen]
    held = validation_rows(names, None, [classes_in(masks[row]) for row in chosen])
    for name, arm in ARMS.items():
        learner = Learner(Settings(encoder=arm.encoder, training_steps=steps, device="cpu", threads=1))
        cases = [Case(letterbox(images[row], learner.image_size), masks[row]) for row in chosen]
        learn = [case for i, case in enumerate(cases) if i not in held]
        watched = [case for i, case in enumerate(cases) if i in held] if arm.all_labels else []
        began = time.process_time()
        save, details = learner.train(learn, watched, ["label"], seed=seed, on_step=lambda at, total: None)
        spent = time.process_time() - began
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            dice = [
                learner.compare(
                    learner.masks(Path(folder), [letterbox(images[row], learner.image_size)])[0], masks[row], 2
                )
                for row in test
            ]
        mean = float(np.mean([one.dice for one in dice]))
        judged = next((h["dice"] for h in details["history"] if h["step"] == details["judged_step"]), None)
        yield {"data": data, "seed": seed, "arm": name, "dice": mean, "judged": judged, "seconds": spent}


def _pair(job: tuple[str, int, int]) -> list[dict[str, Any]]:
    return list(pair(job))


def gain(rows: Sequence[Mapping[str, Any]], data: str, ours: str, theirs: str) -> Interval:
    """Mean paired difference in Dice."""
    of = {(row["seed"], row["arm"]): float(row["dice"]) for row in rows if row["data"] == data}
    seeds = sorted(seed for seed, arm in of if arm == ours and (seed, theirs) in of)
    return t_interval([of[seed, ours] - of[seed, theirs] for seed in seeds])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--data", choices=[*DATA, "all"], default="all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two pairs with trainings of 20 steps; nothing is written")
    options = parser.parse_args()
    pairs, steps = (2, 20) if options.quick else (options.pairs, 0)
    rows: list[dict[str, Any]] = []
    if TABLE.exists() and not options.quick:
        with TABLE.open(newline="") as opened:
            rows = [row | {"seed": int(row["seed"])} for row in csv.DictReader(opened)]
    data = list(DATA) if options.data == "all" else [options.data]
    there = {(row["data"], row["seed"]) for row in rows}
    jobs = [(d, FIRST + i, steps) for i in range(pairs) for d in data if (d, FIRST + i) not in there]
    console = Console(stderr=True)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as executor:
        for done, future in enumerate(as_completed([executor.submit(_pair, job) for job in jobs]), start=1):
            rows = sorted([*rows, *future.result()], key=lambda row: (row["data"], row["seed"]))
            if not options.quick:
                write(rows)
            console.print(f"{done} of {len(jobs)} pairs")
    print_gains(rows, data)
    return 0


def write(rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace TABLE."""
    with TABLE.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        writer.writeheader()
        for row in rows:
            dice = {
                name: f"{float(row[name]):.4f}" if row[name] not in (None, "") else "" for name in ("dice", "judged")
            }
            writer.writerow({**row, **dice, "seconds": round(float(row["seconds"]))})


def print_gains(rows: Sequence[Mapping[str, Any]], data: Sequence[str]) -> None:
    """The table, and the gains on the last line."""
    table: list[list[object]] = []
    found: dict[str, dict[str, float]] = {}
    for one in data:
        for name, (ours, theirs) in GAINS.items():
            this = gain(rows, one, ours, theirs)
            low, high = (this.mean if end is None else end for end in (this.low, this.high))
            table.append([DATA[one], name, signed(this.mean), f"{signed(low)} .. {signed(high)}", this.n])
            ends = {"mean": this.mean, "low": low, "high": high}
            found[f"{one}: {name}"] = {key: rounded(value) for key, value in ends.items()} | {"pairs": this.n}
    for one in data:
        for arm in ARMS:
            of = [row for row in rows if row["data"] == one and row["arm"] == arm]
            mean, seconds = (float(np.mean([float(row[key]) for row in of])) for key in ("dice", "seconds"))
            table.append([DATA[one], f"{arm}: Dice; CPU seconds", f"{mean:.3f}", f"{seconds:.0f}", len(of)])
    first = found[f"{data[0]}: together"]
    figures = {"ratio": first["mean"], "low": first["low"], "high": first["high"]}
    report(
        f"Gain in Dice with {LABELS} labels, paired; 95 % t interval",
        ("scans", "of", "gain", "interval", "pairs"),
        table,
        summary(figures, unit="Dice", compared="the former training", sizes={"labels": LABELS}, gains=found)
        | {"interval": "95 % t interval over pairs"},
        note="Mean over test scans that have the label, then over pairs.",
    )


if __name__ == "__main__":
    raise SystemExit(main())
