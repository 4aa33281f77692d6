"""A training of both networks of a model: the one that draws masks, and the one that corrects them from clicks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backend.errors import UnreadableScan, WeightsMissing
from backend.facts import Scan
from backend.learning.cases import Case
from backend.learning.learner import Learner
from backend.loop.batch import BatchProcessor

log = logging.getLogger("scanqueue.reconcile")

Labelled = Sequence[tuple[Scan, Case]]


def train_both(
    learner: Learner,
    processor: BatchProcessor,
    learn: Labelled,
    held_out: Labelled,
    labels: Sequence[str],
    *,
    seed: int,
    clicks: bool,
    on_step: Callable[[int, int], None],
) -> tuple[Callable[[Path], None], dict[str, Any]]:
    """`Learner.train`, and with `clicks` also `Learner.train_clicks`, whose details are under "clicks".

    Without the features of a scan there is no network for clicks, and the shortest paths go on answering.
    """
    cases, validation = [case for _, case in learn], [case for _, case in held_out]
    save, details = learner.train(cases, validation, labels, seed=seed, on_step=on_step)
    if not clicks:
        return save, details
    scans = [scan for scan, _ in (*learn, *held_out)]
    try:
        found = learner.train_clicks(
            cases, validation, lambda place: processor.features(scans[place]), seed=seed, on_step=on_step
        )
    except (UnreadableScan, WeightsMissing) as error:
        log.warning("no network for clicks: %s", error)
        return save, details
    if found is None:
        return save, details
    save_clicks, more = found

    def save_both(folder: Path) -> None:
        save(folder)
        save_clicks(folder)

    return save_both, details | {"clicks": more}
