"""How much a few clicks improve a mask: the smart tool, without weights, on three kinds of scans.

A person is simulated: each click is the middle of the largest error, inside or outside. It starts from nothing, or from
the mask of the quick model with 20 random labels. Compared with GrabCut (Rother et al. 2004, OpenCV), given the same
clicks as discs of 3 pixels and the same mask so far, on the same reduced picture. Measured: Dice after so many clicks,
clicks until 0.9, and seconds for each click on scans of 512 and 1,024 pixels.

`.venv/bin/python -m benchmarks.clicks` takes about 10 minutes of one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.formats.pixels import Letterboxed, letterbox, restore
from backend.learning.geodesic import SIDE, Geodesic, Seeds
from backend.learning.patch_features import SIDE as PATCHES
from backend.learning.patch_features import PatchFeatures
from backend.learning.quick_model import Terms, learn
from backend.simulate.labelled import read_groups, read_labelled
from backend.simulate.plan import split
from backend.simulate.statistics import Interval, signed
from benchmarks.measure import report, rounded, summary, t_interval
from benchmarks.screen_pools import SHARED, hippocampus

SEEDS = range(3)
LABELS, TESTED = 20, 30
CLICKS = (0, 1, 2, 3, 5, 10)
ENOUGH = 0.9
SIZES = (512, 1024)
Mask = NDArray[np.bool_]
Tool = Callable[[Letterboxed], Callable[[Seeds], Mask]]


def geodesic(scan: Letterboxed) -> Callable[[Seeds], Mask]:
    return Geodesic(scan).mask


def grabcut(scan: Letterboxed) -> Callable[[Seeds], Mask]:
    """OpenCV's GrabCut on the same reduced picture."""
    height, width = scan.original_height, scan.original_width
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = cv2.resize(scan.pixels[scan.content], size, interpolation=cv2.INTER_AREA)
    picture = picture if picture.ndim == 3 else cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)

    def mask(seeds: Seeds) -> Mask:
        if not seeds.given:
            return np.zeros((height, width), bool)
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


TOOLS: dict[str, Tool] = {"geodesic": geodesic, "GrabCut": grabcut}


def dice(one: Mask, other: Mask) -> float:
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


def worst(mask: Mask, truth: Mask) -> tuple[bool, tuple[float, float]] | None:
    """Whether the next click is inside, and where: the middle of the largest error; None without one."""
    places = []
    for inside, error in ((True, truth & ~mask), (False, mask & ~truth)):
        far = cv2.distanceTransform(np.pad(error.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        row, column = np.unravel_index(int(far.argmax()), far.shape)
        places.append((float(far.max()), inside, (row + 0.5, column + 0.5)))
    far_most, inside, at = max(places)
    return (inside, at) if far_most > 0 else None


def corrected(tool: Tool, scan: Letterboxed, truth: Mask, start: Mask | None) -> tuple[list[float], list[float]]:
    """Dice after 0 .. 10 clicks, and the seconds of each click."""
    ask, seeds = tool(scan), Seeds(current=start)
    mask = start if start is not None else np.zeros_like(truth)
    scores, seconds = [dice(mask, truth)], []
    for _ in range(max(CLICKS)):
        if (click := worst(mask, truth)) is not None:
            inside, at = click
            (seeds.inside if inside else seeds.outside).append(at)
            began = time.perf_counter()
            mask = ask(seeds)
            seconds.append(time.perf_counter() - began)
        scores.append(dice(mask, truth))
    return scores, seconds


def pools() -> dict[str, tuple[Sequence[NDArray[np.uint8]], Sequence[NDArray[np.uint8]], NDArray[np.intp]]]:
    """(images, masks, groups) by name."""
    found = {}
    for name, folder in (("breast ultrasound", "busi_ultrasound"), ("chest radiographs", "montgomery_cxr")):
        root = SHARED / folder
        read = read_labelled(root / "images", root / "masks")
        near = root / "near_duplicates.csv"
        groups = read_groups([f"{near}:name_a,name_b"] if near.exists() else [], read.names)
        found[name] = (read.images, read.masks, groups)
    _, images, masks, groups = hippocampus()
    return found | {"hippocampus slices": (images, masks, groups)}


def measured(images: Any, masks: Any, groups: Any, seed: int, features: PatchFeatures) -> dict[tuple[str, str], Any]:
    """(tool, start): Dice of the test scans, (scans, clicks + 1)."""
    part = split(groups, 0.4, seed)
    chosen = np.random.default_rng(seed).permutation(part.pool)[:LABELS]

    def squares(row: int) -> NDArray[np.float16]:
        found: NDArray[np.float16] = features([letterbox(images[row], PATCHES).pixels])[0]
        return found

    terms = [Terms.of(squares(row), (masks[row] > 0).astype(np.uint8), 1, group=str(groups[row])) for row in chosen]
    quick = learn(terms)
    found: dict[tuple[str, str], list[list[float]]] = {}
    for row in [int(row) for row in part.test if (masks[row] > 0).any()][:TESTED]:
        truth, size = masks[row] > 0, masks[row].shape
        automatic = restore(quick.probabilities(squares(row), *size), *size) > 0
        for name, tool in TOOLS.items():
            for begin, start in (("nothing", None), ("automatic", automatic)):
                scores, _ = corrected(tool, letterbox(images[row], PATCHES), truth, start)
                found.setdefault((name, begin), []).append(scores)
    return {key: np.array(rows) for key, rows in found.items()}


def latency(images: Any, masks: Any) -> dict[int, tuple[float, float]]:
    """(median, 95th percentile) seconds of a click on scans of each of SIZES, once the scan is open."""
    found = {}
    rows = [row for row in range(len(images)) if (masks[row] > 0).any()][:20]
    for side in SIZES:
        seconds = []
        for row in rows:
            image = cv2.resize(images[row], (side, side), interpolation=cv2.INTER_LINEAR)
            truth = cv2.resize((masks[row] > 0).astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST) > 0
            seconds += corrected(geodesic, letterbox(image, PATCHES), np.asarray(truth), None)[1]
        found[side] = (float(np.median(seconds)), float(np.quantile(seconds, 0.95)))
    return found


def text(one: Interval) -> str:
    low, high = (one.mean if end is None else end for end in (one.low, one.high))
    return f"{low:.2f}..{high:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed")
    seeds = SEEDS[:1] if parser.parse_args().quick else SEEDS
    features, rows, gains = PatchFeatures("cpu"), [], []
    data = pools()
    for name, (images, masks, groups) in data.items():
        each = [measured(images, masks, groups, seed, features) for seed in seeds]
        for key in each[0]:
            curves = [found[key].mean(axis=0) for found in each]
            cells = [f"{np.mean([curve[n] for curve in curves]):.2f}" for n in CLICKS]
            cells.append(text(t_interval([float(curve[3]) for curve in curves])))
            needed = np.mean([_needed(found[key]) for found in each])
            rows.append([name, *key, *cells, f"{needed:.1f}"])
        for found in each:
            ours, theirs = (found[tool, "automatic"][:, 3].mean() for tool in TOOLS)
            gains.append(float(ours - theirs))
    over = t_interval(gains)
    low, high = (over.mean if end is None else end for end in (over.low, over.high))
    times = latency(*data["breast ultrasound"][:2])
    report(
        f"Dice after so many clicks, mean over {TESTED} scans, then over {len(seeds)} seeds ",
        ("scans", "tool", "from", *map(str, CLICKS), "after 3 (95 %)", f"clicks to {ENOUGH}"),
        rows,
        summary(
            {"ratio": rounded(over.mean), "low": rounded(low), "high": rounded(high)},
            unit="Dice after 3 clicks on an automatic mask",
            compared="geodesic - GrabCut, mean over three kinds of scans",
            sizes={"seeds": len(seeds), "scans": TESTED, "labels": LABELS},
            limit=0.0,
            met=low > 0,
        )
        | {"seconds": {str(side): [rounded(value) for value in found] for side, found in times.items()}},
        note=f"{signed(over.mean)} Dice against GrabCut after 3 clicks. Seconds for a click (median, 95th percentile): "
        + "; ".join(f"{side} pixels {one:.3f}, {most:.3f}" for side, (one, most) in times.items()),
    )
    return 0 if low > 0 else 1


def _needed(curves: NDArray[np.float64]) -> float:
    """Mean number of clicks until ENOUGH; max(CLICKS) + 1 where it is not reached."""
    reached = curves >= ENOUGH
    return float(np.where(reached.any(axis=1), reached.argmax(axis=1), max(CLICKS) + 1).mean())


if __name__ == "__main__":
    raise SystemExit(main())
