"""Runs a screen over many splits in several processes; writes the same tables as a comparison with trainings."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import numpy as np

from backend.fingerprints import fingerprint
from backend.learning.learner import Learner
from backend.learning.patch_features import PatchFeatures
from backend.learning.ridge_head import BASIS_SCANS, COMPONENTS, PatchPool
from backend.settings import ProjectSettings
from backend.simulate.plan import Comparison, Progress, Split, checked_split, read
from backend.simulate.runs import end_with, same_comparison, write_tables
from backend.simulate.screen import Found, Screen, check_strategies

Opened = tuple[Screen, Callable[[int], Split]]  # the screen, and the split of a seed


def screen(comparison: Comparison, folder: Path, *, processes: int, progress: Progress) -> None:
    """Compare strategies with heads instead of trained models; writes `results.csv` and `picks.csv` into `folder`.

    The features of the scans are kept in `folder` for later screens of the same scans.

    Raises ScanqueueError when the folder contains another comparison, the scans or tables are invalid, or the built-in
    network is missing.
    """
    check_strategies(comparison.strategies, comparison.budgets, _cold_start(comparison))
    scans, groups, *_ = read(comparison)
    for seed in comparison.seeds:
        checked_split(comparison, groups, seed)
    folder.mkdir(parents=True, exist_ok=True)
    same_comparison(comparison, folder, screen=True)
    embedder = Learner(comparison.settings())
    name = fingerprint(
        "patches", PatchFeatures.name, embedder.embedder().name, scans.fingerprint, COMPONENTS, BASIS_SCANS
    )
    features = folder / "cells" / name
    if not features.is_dir():
        features.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=features.parent, prefix="part-") as aside:
            made = Path(aside) / "made"
            made.mkdir()
            extract = PatchFeatures(comparison.device)
            PatchPool.build(extract, scans.images, scans.masks, scans.classes - 1).save(made)
            np.save(made / "embeddings.npy", embedder.embed(scans.images))
            shutil.move(made, features)
    found = each_split(Opener(comparison, features), comparison.seeds, processes=processes, progress=progress)
    rows = [row for results, _ in found for row in results]
    write_tables(folder, rows, [pick for _, picks in found for pick in picks])


class Opener:
    """Opens the screen of a comparison in any process."""

    def __init__(self, comparison: Comparison, features: Path) -> None:
        self.comparison, self.features = comparison, features

    def __call__(self) -> Opened:
        c = self.comparison
        scans, groups, strata, _ = read(c)
        made = Screen(
            scans=PatchPool.load(self.features),
            names=scans.names,
            embeddings=np.load(self.features / "embeddings.npy"),
            embedder=c.embedder,
            groups=groups,
            strata=strata,
            labels=[f"class {n}" for n in range(1, scans.classes)],
            strategies=c.strategies,
            budgets=c.budgets,
            cold_start=_cold_start(c),
            alpha=c.alpha,
        )
        return made, lambda seed: checked_split(c, groups, seed)


def _cold_start(comparison: Comparison) -> int:
    return comparison.budgets[-1] if comparison.cold_start_only else ProjectSettings().cold_start_size


def each_split(
    opener: Callable[[], Opened], seeds: Sequence[int], *, processes: int, progress: Progress
) -> list[Found]:
    """The results of each seed, in order, from parallel processes with one thread each."""
    found: dict[int, Found] = {}
    began = time.monotonic()
    progress(0, len(seeds), float("nan"))
    context = get_context("spawn")  # torch does not survive a fork
    workers = max(1, min(processes, len(seeds)))
    with ProcessPoolExecutor(workers, context, _open, (opener, os.getpid())) as executor:
        waiting = {executor.submit(_do, seed): seed for seed in seeds}
        try:
            for done in as_completed(waiting):
                found[waiting[done]] = done.result()
                left = (time.monotonic() - began) / len(found) * (len(seeds) - len(found))
                progress(len(found), len(seeds), left)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return [found[seed] for seed in seeds]


_opened: Opened | None = None  # one per process


def _open(opener: Callable[[], Opened], parent: int) -> None:
    global _opened
    from threadpoolctl import threadpool_limits

    Thread(target=end_with, args=(parent,), daemon=True).start()
    threadpool_limits(limits=1)
    _opened = opener()


def _do(seed: int) -> Found:
    assert _opened is not None
    made, split = _opened
    return made.run(split(seed), seed)
