"""Would an ensemble of the quick model and the U-Net draw better masks than the U-Net alone?

After the first training, 20 labels. The quick model and the U-Net learn the same random scans; the ensemble is the
weighted mean of their probabilities. Dice on scans that neither has learnt from, each seed with its own pool and test
scans; near-duplicates and volumes are never separated.

`.venv/bin/python -m benchmarks.ensemble`: about 15 CPU minutes for the 3 seeds of both data sets.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from backend.facts import validation_rows
from backend.fingerprints import fingerprint
from backend.formats.pixels import classes_in, letterbox
from backend.learning.cases import Case
from backend.learning.clicks import dice
from backend.learning.learner import Learner
from backend.learning.patch_features import SIDE
from backend.learning.quick_model import Terms, learn
from backend.settings import Settings
from backend.simulate.plan import split
from benchmarks.learner import DATA, TEST_SHARE, scans
from benchmarks.measure import report, rounded, summary, t_interval

SEEDS = (650, 651, 652)
LABELS, TESTED = 20, 80
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the quick model
EQUAL = 0.5
Job = tuple[str, int, int]  # data, seed, steps of a training (0: as shipped)


def dice_of(job: Job) -> Mapping[float, float]:
    """Mean Dice for each weight of the quick model."""
    data, seed, steps = job
    cv2.setNumThreads(1)
    images, masks, groups = scans(data)
    part = split(groups, TEST_SHARE, seed)
    chosen = np.random.default_rng(seed).permutation(part.pool)[:LABELS].tolist()
    test = [int(row) for row in part.test if masks[row].any()][:TESTED]
    learner = Learner(Settings(device="cpu", threads=1, training_steps=steps))
    held = validation_rows([fingerprint("scan", row) for row in chosen], None, [classes_in(masks[r]) for r in chosen])
    cases = [Case(letterbox(images[row], learner.image_size), masks[row]) for row in chosen]
    first, later = ([case for i, case in enumerate(cases) if (i in held) is kept] for kept in (False, True))
    save, _ = learner.train(first, later, ["label"], seed=seed, on_step=lambda done, total: None)
    quick = learn(
        [
            Terms.of(learner.features(letterbox(images[r], SIDE).pixels), masks[r], 1, group=str(groups[r]))
            for r in chosen
        ]
    )
    found: dict[float, list[float]] = {weight: [] for weight in WEIGHTS}
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        for row in test:
            truth = masks[row] > 0
            large = learner.probabilities(Path(folder), [letterbox(images[row], learner.image_size)])[0][1]
            shares = quick.probabilities(learner.features(letterbox(images[row], SIDE).pixels), *truth.shape)
            share = 0.5 * shares[1] / shares[0]  # 0..1, drawn where it is above a half
            small = cv2.resize(share, large.shape[::-1], interpolation=cv2.INTER_LINEAR)
            for weight, values in found.items():
                both = (1 - weight) * large + weight * small
                mask = cv2.resize(both, truth.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
                values.append(dice(np.asarray(mask), truth))
    return {weight: float(np.mean(values)) for weight, values in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a training of 30 steps")
    quick = parser.parse_args().quick
    jobs = list(itertools.product(DATA, SEEDS[:1] if quick else SEEDS, [30 if quick else 0]))
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        results = dict(zip(jobs, pool.map(dice_of, jobs), strict=True))
    gains = [found[EQUAL] - found[0.0] for found in results.values()]
    gained = t_interval(gains)
    low, high = (gained.mean if end is None else end for end in (gained.low, gained.high))
    report(
        f"Dice of the U-Net and the quick model, {LABELS} labels",
        ["data", "seed", "U-Net", *(f"quick model {weight}" for weight in WEIGHTS[1:-1]), "quick model"],
        [[DATA[data], seed, *(rounded(found[w]) for w in WEIGHTS)] for (data, seed, _), found in results.items()],
        summary(
            {"ratio": rounded(gained.mean), "low": rounded(low), "high": rounded(high)},
            unit="Dice gained by equal weights, mean over seeds and data",
            compared="the U-Net alone on the same scans",
            sizes={"labels": LABELS, "seeds": len(jobs) // len(DATA), "tested": TESTED},
        )
        | {"interval": "95 % by Student's t over seeds and data"},
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
