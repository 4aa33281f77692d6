"""How much a few clicks improve a mask, on three kinds of scans, with 10, 20 and 40 labels.

A person is simulated: each click is in the middle of the largest error, inside or outside. It starts from nothing;
from the mask that the task opens with: with 10 and 20 labels that of the quick model, with 40 that of the U-Net, both
as shipped; or from a good mask: the true one, with a bite or a bump. Tools:

- *network*: the network for clicks, which a round trains where a project has smart tools, answers every click;
  *fitted*: its outlines are moved to where the brightness changes
- *geodesic*: the shortest paths, without training
- *combined*, *combined fitted*: as shipped, the better one of the two on held-out scans, if it is better than the paths
  there: the network from nothing and where a click shows that a mask is wrong as a whole, else the paths
- *GrabCut* (Rother et al. 2004, OpenCV), given the same clicks as discs of 3 pixels and the same mask so far
- *brush*: no tool. A stroke corrects a disc, as wide as the error is there

Measured on held-out scans: Dice after 0 .. 10 clicks, and clicks until 0.9 (11 where it is not reached). Intervals are
t intervals over seeds. Seconds of training are those of one core.

`.venv/bin/python -m benchmarks.clicks` writes `clicks.csv`; rows that are there are not measured again. It takes about
an hour of one core for each seed.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from backend.facts import validation_rows
from backend.fingerprints import fingerprint
from backend.formats.pixels import classes_in, letterbox, restore
from backend.learning.cases import Case
from backend.learning.click_network import learn_clicks
from backend.learning.clicks import Mask, dice, next_click
from backend.learning.geodesic import SIDE, Geodesic, Seeds
from backend.learning.learner import CLICK_STEPS, Learner
from backend.learning.patch_features import SIDE as PATCHES
from backend.learning.patch_features import PatchFeatures
from backend.learning.quick_model import Terms, learn
from backend.settings import Settings
from backend.simulate.labelled import read_groups, read_labelled
from backend.simulate.plan import split
from benchmarks.measure import report, rounded, summary, t_interval
from benchmarks.screen_pools import SHARED, hippocampus

DATA = ("breast ultrasound", "chest radiographs", "hippocampus slices")
LABELS, SEEDS = (10, 20, 40), range(3)
TRAINED = 40  # labels from which the U-Net draws the masks that tasks open with
TEST_SHARE, TESTED = 0.4, 20
CLICKS = (0, 1, 2, 3, 5, 10)
ENOUGH = 0.9
SHIPPED = "combined fitted"  # what answers on breast ultrasound
GAIN = 0.15  # Dice after three clicks, ultrasound, 40 labels
TABLE = Path(__file__).with_name("clicks.csv")
COLUMNS = ("data", "labels", "seed", "tool", "start", *map(str, CLICKS), "needed", "train_seconds")

Ask = Callable[[Seeds], Mask]
Rows = list[dict[str, Any]]


@cache
def scans(data: str) -> tuple[Sequence[NDArray[np.uint8]], Sequence[NDArray[np.uint8]], NDArray[np.intp]]:
    """(images, masks, groups)."""
    if data == "hippocampus slices":
        _, images, masks, groups = hippocampus()
        return images, masks, groups
    root = SHARED / {"breast ultrasound": "busi_ultrasound", "chest radiographs": "montgomery_cxr"}[data]
    read = read_labelled(root / "images", root / "masks")
    near = root / "near_duplicates.csv"
    return read.images, read.masks, read_groups([f"{near}:name_a,name_b"] if near.exists() else [], read.names)


def grabcut(image: NDArray[np.uint8]) -> Ask:
    """OpenCV's GrabCut on the picture that the shortest paths see."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    picture = picture if picture.ndim == 3 else cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)

    def mask(seeds: Seeds) -> Mask:
        guess = np.full(size[::-1], cv2.GC_PR_BGD, np.uint8)
        if seeds.current is not None:
            guess[cv2.resize(seeds.current.astype(np.uint8), size, interpolation=cv2.INTER_AREA) > 0] = cv2.GC_PR_FGD
        for points, value in ((seeds.inside, cv2.GC_FGD), (seeds.outside, cv2.GC_BGD)):
            for row, column in points:
                cv2.circle(guess, (int(column * scale), int(row * scale)), 3, value, -1)
        if not np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD)).any():
            return np.zeros((height, width), bool)
        models = np.zeros((2, 1, 65))
        cv2.grabCut(picture, guess, None, models[0], models[1], 3, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
        found = np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
        return np.asarray(cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST) > 0)

    return mask


def corrected(ask: Ask | None, truth: Mask, start: Mask | None) -> list[float]:
    """Dice after 0 .. 10 clicks; without a tool to ask, each is a stroke of the brush."""
    seeds, mask = Seeds(current=start), start if start is not None else np.zeros_like(truth)
    found = [dice(mask, truth)]
    for _ in range(max(CLICKS)):
        if (click := next_click(mask, truth)) is not None:
            inside, at = click
            seeds.click(at, inside=inside)
            mask = ask(seeds) if ask is not None else _stroke(mask, truth, inside, at)
        found.append(dice(mask, truth))
    return found


def _stroke(mask: Mask, truth: Mask, inside: bool, at: tuple[float, float]) -> Mask:
    error = (truth & ~mask if inside else mask & ~truth).astype(np.uint8)
    far = cv2.distanceTransform(np.pad(error, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = int(at[0]), int(at[1])
    disc = cv2.circle(np.zeros(mask.shape, np.uint8), (column, row), max(1, round(float(far[row, column]))), 1, -1) > 0
    return np.where(disc, inside, mask)


def bitten(truth: Mask, seed: int) -> Mask:
    """The true mask with a bite or a bump somewhere on its outline, of a third of its width."""
    random = np.random.default_rng(seed)
    edge = np.argwhere(truth & ~cv2.erode(truth.astype(np.uint8), np.ones((3, 3))).astype(bool))
    row, column = edge[random.integers(len(edge))]
    radius = max(2, round(0.35 * float(np.sqrt(truth.sum() / np.pi))))
    disc = cv2.circle(np.zeros(truth.shape, np.uint8), (int(column), int(row)), radius, 1, -1) > 0
    return truth | disc if random.integers(2) else truth & ~disc


def unet(images: Any, masks: Any, chosen: Sequence[int], test: Sequence[int], seed: int, steps: int) -> list[Mask]:
    """The masks of the U-Net, as shipped on a CPU."""
    learner = Learner(Settings(training_steps=steps, device="cpu", threads=1))
    held = validation_rows(
        [fingerprint("scan", row) for row in chosen], None, [classes_in(masks[row]) for row in chosen]
    )
    cases = [Case(letterbox(images[row], learner.image_size), masks[row]) for row in chosen]
    learnt, watched = ([case for i, case in enumerate(cases) if (i in held) is there] for there in (False, True))
    save, _ = learner.train(learnt, watched, ["label"], seed=seed, on_step=lambda at, total: None)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        boxes = [letterbox(images[row], learner.image_size) for row in test]
        return [mask > 0 for mask in learner.masks(Path(folder), boxes)]


def measured(job: tuple[str, int, int, int]) -> Rows:
    """Rows of all tools and starts.

    job  data, labels, seed, steps of a training (0: as shipped)
    """
    data, labels, seed, steps = job
    cv2.setNumThreads(1)
    learner = Learner(Settings(training_steps=steps, device="cpu", threads=1))
    images, masks, groups = scans(data)
    masks = [(mask > 0).astype(np.uint8) for mask in masks]
    part = split(groups, TEST_SHARE, seed)
    chosen = [int(row) for row in np.random.default_rng(seed).permutation(part.pool)[:labels]]
    test = [int(row) for row in part.test if masks[row].any()][:TESTED]
    boxes = {row: letterbox(images[row], PATCHES) for row in (*chosen, *test)}
    found = PatchFeatures("cpu")([boxes[row].pixels for row in boxes])
    features = dict(zip(boxes, found, strict=True))
    began = time.process_time()
    network = learn_clicks(
        [Case(boxes[row], masks[row]) for row in chosen],
        lambda place: features[chosen[place]],
        steps=round(CLICK_STEPS * learner.training.max_steps),
        seed=seed,
    )
    spent = time.process_time() - began
    assert network is not None
    if labels >= TRAINED:
        shown = unet(images, masks, chosen, test, seed, steps)
    else:
        quick = learn([Terms.of(features[row], masks[row], 1, group=str(groups[row])) for row in chosen])
        shown = [restore(quick.probabilities(features[r], *masks[r].shape), *masks[r].shape) > 0 for r in test]
    curves: dict[tuple[str, str], list[list[float]]] = {}
    for row, automatic in zip(test, shown, strict=True):
        truth, paths = masks[row] > 0, Geodesic(boxes[row])
        plain, fitted = (network.tool(boxes[row], features[row], paths, fitted=one) for one in (False, True))
        tools: dict[str, Ask | None] = {"network": plain.drawn, "fitted": fitted.drawn, "geodesic": paths.mask}
        tools |= {"combined": plain.mask, SHIPPED: fitted.mask}
        starts = {"automatic": automatic, "nothing": None, "good": bitten(truth, row)}
        for name, ask in (tools | {"GrabCut": grabcut(images[row]), "brush": None}).items():
            for start, mask in starts.items():
                curves.setdefault((name, start), []).append(corrected(ask, truth, mask))
    return [_row(data, labels, seed, *key, np.array(each), spent) for key, each in curves.items()]


def _row(data: str, labels: int, seed: int, tool: str, start: str, each: NDArray[np.float64], spent: float) -> Any:
    reached = each >= ENOUGH
    needed = np.where(reached.any(axis=1), reached.argmax(axis=1), max(CLICKS) + 1).mean()
    row = {"data": data, "labels": labels, "seed": seed, "tool": tool, "start": start}
    row |= {str(n): round(float(each[:, n].mean()), 4) for n in CLICKS}
    return row | {"needed": round(float(needed), 2), "train_seconds": round(spent, 1) if tool == "network" else ""}


def _cell(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["data"], row["labels"], row["seed"]


def values(rows: Iterable[Mapping[str, Any]], column: str, **where: Any) -> list[float]:
    """By seed, the values of a column in the rows with these values in others."""
    found = [row for row in rows if all(row[name] == value for name, value in where.items())]
    return [float(row[column]) for row in sorted(found, key=lambda row: row["seed"])]


def text(numbers: Sequence[float]) -> str:
    one = t_interval(numbers)
    low, high = (one.mean if end is None else end for end in (one.low, one.high))
    return f"{one.mean:.2f} ({low:.2f} .. {high:.2f})" if len(numbers) > 1 else f"{one.mean:.2f}"


def print_table(rows: Rows) -> bool:
    """Whether the goal is met on the seeds that were measured."""
    lines = []
    groups = dict.fromkeys((row["data"], row["labels"], row["tool"], row["start"]) for row in rows)
    for data, labels, tool, start in groups:
        where = {"data": data, "labels": labels, "tool": tool, "start": start}
        cells = [f"{np.mean(values(rows, str(n), **where)):.2f}" for n in CLICKS]
        lines.append([data, labels, tool, start, *cells, text(values(rows, "3", **where)),
                      f"{np.mean(values(rows, 'needed', **where)):.1f}"])  # fmt: skip
    where = {"data": DATA[0], "labels": max(LABELS), "start": "automatic"}
    after, before = (values(rows, column, tool=SHIPPED, **where) for column in ("3", "0"))
    gains = [one - other for one, other in zip(after, before, strict=True)]
    brush = values(rows, "3", tool="brush", **where)
    over = t_interval(gains)
    low, high = (over.mean if end is None else end for end in (over.low, over.high))
    report(
        f"Dice after so many clicks, mean over {TESTED} scans, then over the seeds",
        ("scans", "labels", "tool", "from", *map(str, CLICKS), "after 3 (95 %)", f"clicks to {ENOUGH}"),
        lines,
        summary(
            {"ratio": rounded(over.mean), "low": rounded(low), "high": rounded(high)},
            unit=f"Dice after 3 clicks, {DATA[0]}, {max(LABELS)} labels",
            compared="network and paths after three clicks - the mask that the task opened with",
            sizes={"seeds": len(gains), "scans": TESTED},
            limit=GAIN,
            met=over.mean >= GAIN,
            brush=rounded(np.mean(brush)),
        )
        | {"interval": "95 % by Student's t over seeds"},
        note=f"Three clicks: {over.mean:+.3f} Dice; three strokes of a brush instead: "
        f"{np.mean(brush) - np.mean(before):+.3f}.",
    )
    return over.mean >= GAIN


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, trainings of 20 steps; nothing is written")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    seeds, steps = (SEEDS[:1], 20) if options.quick else (SEEDS[: options.seeds], 0)
    rows: Rows = []
    if TABLE.exists() and not options.quick:
        with TABLE.open(newline="") as opened:
            rows = [row | {name: int(row[name]) for name in ("labels", "seed")} for row in csv.DictReader(opened)]
    there = {_cell(row) for row in rows if row["tool"] == SHIPPED}
    jobs = [(d, n, s, steps) for s in seeds for n in LABELS for d in DATA if (d, n, s) not in there]
    console = Console(stderr=True)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as executor:
        for done, future in enumerate(as_completed([executor.submit(measured, job) for job in jobs]), start=1):
            rows = [row for row in rows if _cell(row) != _cell(future.result()[0])]
            rows = sorted([*rows, *future.result()], key=_cell)
            if not options.quick:
                with TABLE.open("w", newline="") as opened:
                    writer = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
            console.print(f"{done} of {len(jobs)}")
    return 0 if print_table(rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
