"""Labelled scans as the learner takes them, and the scores of a model on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableScan
from backend.facts import Scan
from backend.fingerprints import fingerprint
from backend.formats.pixels import translate
from backend.label_config import unknown_classes
from backend.learning.cases import Case
from backend.learning.evaluation import Scores
from backend.loop.context import LoopContext, Replan
from backend.loop.remote import Write, apply
from backend.loop.sharing import share
from backend.loop.steps import Seen

PREDICT_CHUNK = 16  # scans in memory at once


@dataclass(frozen=True)
class LabelledScan:
    """One labelled scan: the scan, the name of its mask artefact, and both in the learner's format."""

    scan: Scan
    mask: str
    case: Case

    @property
    def contents(self) -> list[Any]:
        """What a model learns from it, for its fingerprint."""
        return [self.scan.digest, self.mask, *([sorted(self.case.unknown)] if self.case.unknown else [])]


@dataclass(frozen=True)
class Split:
    """Labelled scans, and the held-out rows of `all`."""

    all: list[LabelledScan]
    rows: frozenset[int]

    @property
    def learn(self) -> list[LabelledScan]:
        return [one for i, one in enumerate(self.all) if i not in self.rows]

    @property
    def held_out(self) -> list[LabelledScan]:
        return [one for i, one in enumerate(self.all) if i in self.rows]


def labelled_scans(context: LoopContext, project: int, seen: Seen, tasks: Sequence[int]) -> list[LabelledScan]:
    """The labelled scans of these tasks, ordered by content, so that a restart trains the same model.

    Raises Replan when a scan is no longer readable or labelled.
    """
    store = context.store
    by_task = {s.task: s for s in seen.scans}
    assert seen.config is not None
    rows = {r["task"]: r for r in store.labels(project)}
    masks: dict[int, NDArray[np.uint8]] = {}
    for task in tasks:
        if task not in rows:  # somebody requested that it is read again
            raise Replan
        try:
            masks[task] = store.arrays("labels", rows[task]["mask"])["mask"]
        except FileNotFoundError:
            store.forget_label(project, task)  # its artefact is lost; read the annotation again
            raise Replan from None
    size = context.learner.working_size(masks.values(), 1 + len(seen.config.labels))
    found = []
    for task, mask in masks.items():
        scan, row = by_task[task], rows[task]
        try:
            boxed = context.processor.pixels(scan, size)
        except UnreadableScan as error:
            store.set_scans(project, [{"task": task, "problem": str(error)}])
            raise Replan from None
        unknown = unknown_classes(row["known"], seen.config.labels, seen.renames)
        found.append(LabelledScan(scan, row["mask"], Case(boxed, mask, unknown)))
    return sorted(found, key=lambda one: (one.scan.digest, one.mask))


def evaluate(
    context: LoopContext,
    project: int,
    model: str,
    labels: Sequence[str],
    wanted: Sequence[str],
    cases: Sequence[LabelledScan],
    kind: str = "models",
) -> list[Scores]:
    """The scores of a model, or of its `judged` weights, on labelled scans, each fitted into its own working square.

    Masks of kept models are also stored, because people compare models by them. A cluster draws the masks.

    labels, wanted  the labels of the model, and those of the masks for comparison
    """
    if not cases:
        return []  # without loading the model
    learner = context.learner
    drawn: dict[str, NDArray[np.uint8]] = {}
    if context.cluster is not None:
        tasks, text = [one.scan.task for one in cases], "drawing masks to evaluate the model"
        take = None if kind == "models" else partial(_keep, context, drawn)
        share(context, project, "draw", model, tasks, text, of=kind, take=take)
    scores: list[Scores] = []
    for start in range(0, len(cases), PREDICT_CHUNK):
        chunk = cases[start : start + PREDICT_CHUNK]
        masks = _drawn(context, model, chunk, kind, drawn)
        scores += [
            learner.compare(
                translate(mask, labels, wanted), one.case.mask, len(wanted) + 1, one.scan.spacing, one.case.unknown
            )
            for mask, one in zip(masks, chunk, strict=True)
        ]
    return scores


def _keep(context: LoopContext, drawn: dict[str, NDArray[np.uint8]], writes: Sequence[Write]) -> None:
    """Put the masks that a worker drew into `drawn`, by the name of their artefacts, and the rest into the records."""
    for write in writes:
        if write.method == "put_arrays":
            drawn[write.arguments[1]] = write.arrays["mask"]
        else:
            apply(context.store, [write])


def _drawn(
    context: LoopContext,
    model: str,
    cases: Sequence[LabelledScan],
    kind: str,
    drawn: Mapping[str, NDArray[np.uint8]],
) -> list[NDArray[np.uint8]]:
    """The masks of a model on these scans; those that are stored, or `drawn` by a cluster, are not drawn again."""
    learner, store = context.learner, context.store
    kept = kind == "models"
    found: dict[int, NDArray[np.uint8]] = {}
    for at, one in enumerate(cases):
        mask = context.processor.mask(model, one.scan) if kept else drawn.get(fingerprint(model, one.scan.digest))
        if mask is not None:
            found[at] = mask
    missing = [at for at in range(len(cases)) if at not in found]
    if missing:
        folder = store.path(kind, model)
        size = learner.image_size_of(folder)
        boxes = [
            one.case.scan if one.case.size == size else context.processor.pixels(one.scan, size)
            for one in (cases[at] for at in missing)
        ]
        for at, mask in zip(missing, learner.masks(folder, boxes), strict=True):
            found[at] = mask
            if kept:
                store.put_arrays("masks", fingerprint(model, cases[at].scan.digest), mask=mask)
    return [found[at] for at in range(len(cases))]


def at_most_every(seconds: float, call: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """`call`, skipped when the last call was less than `seconds` ago, except at the end."""
    last = [0.0]

    def limited(at: int, total: int) -> None:
        if time.monotonic() - last[0] >= seconds or at == total:
            last[0] = time.monotonic()
            call(at, total)

    return limited
