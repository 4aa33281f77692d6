"""Train a model and decide whether it becomes active: fit, judge, decide, describe, write.

Also used by the control trial: labelled cases, scores of a model, a limit on progress calls.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableScan
from backend.facts import VALIDATION_SHARE, Scan, validation_rows
from backend.fingerprints import fingerprint
from backend.formats.pixels import translate
from backend.learning.averages import as_row, overall
from backend.learning.evaluation import Scores
from backend.learning.learner import Case
from backend.loop.context import Busy, LoopContext, Replan
from backend.loop.publishing import Publisher
from backend.loop.steps import Done, Seen, Train
from sampling import agreement, agreement_sample

log = logging.getLogger("scanqueue.reconcile")

PREDICT_CHUNK = 16  # scans in memory at once
TRAINING_ROOM = 512 * 2**20  # free bytes required before training: a checkpoint, masks, records
PROGRESS_EVERY = 0.5  # seconds between progress calls during training
MIN_HELD_OUT = 5  # minimum number of labelled scans for holding some out, see `validation_rows`


@dataclass(frozen=True)
class LabelledScan:
    """One labelled scan: the scan, the name of its mask artefact, and both in the learner's format."""

    scan: Scan
    mask: str
    case: Case


@dataclass(frozen=True)
class Split:
    """Labelled scans, and the held-out rows of `all`."""

    all: list[LabelledScan]
    rows: frozenset[int]

    @property
    def learn(self) -> list[Case]:
        return [one.case for i, one in enumerate(self.all) if i not in self.rows]

    @property
    def held_out(self) -> list[LabelledScan]:
        return [one for i, one in enumerate(self.all) if i in self.rows]


@dataclass(frozen=True)
class Verdict:
    """The new model compared with the active one, `version`, on `scans` scans that neither was trained on.

    new, active  the summary of each (`averages`); None when the active model was trained on every held-out scan
    """

    version: str
    scans: int
    new: dict[str, Any] | None = None
    active: dict[str, Any] | None = None


def labelled_scans(context: LoopContext, project: int, seen: Seen, tasks: Sequence[int]) -> list[LabelledScan]:
    """The labelled scans of these tasks, ordered by content, so that a restart trains the same model.

    Raises Replan when a scan is no longer readable or labelled.
    """
    store = context.store
    by_task = {s.task: s for s in seen.scans}
    masks = {r["task"]: r["mask"] for r in store.labels(project)}
    found = []
    for task in tasks:
        scan = by_task[task]
        if task not in masks:  # somebody requested that it is read again
            raise Replan
        try:
            mask = store.arrays("labels", masks[task])["mask"]
            boxed = context.processor.pixels(scan, context.learner.image_size)
        except FileNotFoundError:
            store.forget_label(project, task)  # its artefact is lost; read the annotation again
            raise Replan from None
        except UnreadableScan as error:
            store.set_scans(project, [{"task": task, "problem": str(error)}])
            raise Replan from None
        found.append(LabelledScan(scan, masks[task], Case(boxed, mask)))
    return sorted(found, key=lambda one: (one.scan.digest, one.mask))


def evaluate(
    context: LoopContext,
    model: str,
    labels: Sequence[str],
    wanted: Sequence[str],
    cases: Sequence[LabelledScan],
    kind: str = "models",
) -> list[Scores]:
    """The scores of a model on labelled scans, each fitted into that model's own working square.

    Masks of kept models are also stored, because people compare models by them.

    labels, wanted  the labels of the model, and those of the masks for comparison
    """
    learner, store = context.learner, context.store
    folder = store.path(kind, model)
    size = learner.image_size_of(folder)
    scores: list[Scores] = []
    for start in range(0, len(cases), PREDICT_CHUNK):
        chunk = cases[start : start + PREDICT_CHUNK]
        same = size == learner.image_size
        boxes = [one.case.scan if same else context.processor.pixels(one.scan, size) for one in chunk]
        masks = learner.masks(folder, boxes)
        if kind == "models":
            for one, mask in zip(chunk, masks, strict=True):
                if not store.has("masks", fingerprint(model, one.scan.digest)):
                    store.put_arrays("masks", fingerprint(model, one.scan.digest), mask=mask)
        scores += [
            learner.compare(
                translate(mask, labels, wanted), one.case.mask, len(wanted) + 1, one.scan.spacing, one.case.unknown
            )
            for mask, one in zip(masks, chunk, strict=True)
        ]
    return scores


def at_most_every(seconds: float, call: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """`call`, skipped when the last call was less than `seconds` ago, except at the end."""
    last = [0.0]

    def limited(at: int, total: int) -> None:
        if time.monotonic() - last[0] >= seconds or at == total:
            last[0] = time.monotonic()
            call(at, total)

    return limited


class Trainer:
    """Trains models."""

    def __init__(self, context: LoopContext, publisher: Publisher) -> None:
        self._context = context
        self._publisher = publisher

    def train(self, project: int, seen: Seen, done: Done, step: Train) -> None:
        """Do a `Train` step. Raises Busy while another project is being trained."""
        assert seen.config is not None
        context = self._context
        labels = seen.config.labels
        row = context.row(project)
        cases = labelled_scans(context, project, seen, step.tasks)
        groups = [one.scan.group for one in cases]
        split = Split(cases, frozenset(validation_rows([one.scan.digest for one in cases], groups)))
        name, details = self._fit(project, done, step, split, labels)
        scores = evaluate(context, name, labels, labels, split.held_out)
        details["held_out"] = _held_out_details(split.held_out, scores, labels)
        active = context.model(project, done.active)
        if active is not None and active["labels"] != list(labels):
            active = None  # it cannot be compared
        verdict = self._judge(seen, active, split, scores, labels)
        if verdict is not None and verdict.active is not None:
            details["champion"] = {"version": verdict.version, **verdict.active}
        accepted = accepts(verdict, done.settings.tolerance)
        remark = _remark(verdict, accepted, split)
        if not accepted:
            log.warning("project %s: %s was not accepted. %s", project, step.version, remark)
        if active is not None:
            details |= self._agreement(project, seen, active, name, len(labels) + 1)
        self._write(
            project,
            seen,
            done,
            step,
            row["active"],
            {
                "version": step.version,
                "fingerprint": name,
                "labels": list(labels),
                "accepted": int(accepted),
                "remark": remark,
                "validation": context.learner.summarise(scores, labels),
                "details": details,
            },
        )

    def _fit(
        self, project: int, done: Done, step: Train, split: Split, labels: Sequence[str]
    ) -> tuple[str, dict[str, Any]]:
        """The fingerprint of the model and the details of its training; a stored model is not trained again."""
        context, seed = self._context, done.settings.seed
        cases, held_out = split.all, [one.case for one in split.held_out]
        contents = [[one.scan.digest, one.mask] for one in cases]
        grouped = any(one.scan.group for one in cases)
        rows = [sorted(split.rows)] if grouped else []  # without groups, the digests determine them
        name = fingerprint(contents, labels, context.learner.describe_training(seed), VALIDATION_SHARE, *rows)
        details: dict[str, Any] = {"labels": len(cases), "validation": len(held_out)}
        if context.store.has("models", name):
            return name, details

        def on_step(at: int, total: int) -> None:
            context.check(project)
            context.report(project, f"training {step.version} on {len(cases)} labels", at, total)
            self._publisher.tend(project)

        context.store.check_room(TRAINING_ROOM)
        with context.store.training_slot() as mine:
            if not mine:
                raise Busy
            log.info("project %s: training %s on %s scans", project, step.version, len(cases))
            limited = at_most_every(PROGRESS_EVERY, on_step)
            save, history = context.learner.train(split.learn, held_out, labels, seed=seed, on_step=limited)
            context.store.put_folder("models", name, save)
        return name, details | history

    def _judge(
        self,
        seen: Seen,
        active: Mapping[str, Any] | None,
        split: Split,
        scores: Sequence[Scores],
        labels: Sequence[str],
    ) -> Verdict | None:
        """Compare with the active model on held-out scans that it was not trained on; None if either is missing."""
        held_out = split.held_out
        if active is None or not held_out:
            return None
        context = self._context
        learnt = _learnt(active, seen)
        fair = [i for i, one in enumerate(held_out) if not learnt & {one.scan.task, one.scan.group}]
        if not fair:
            return Verdict(active["version"], 0)
        new = context.learner.summarise([scores[i] for i in fair], labels)
        old = evaluate(context, active["fingerprint"], active["labels"], labels, [held_out[i] for i in fair])
        return Verdict(active["version"], len(fair), new, context.learner.summarise(old, labels))

    def _agreement(
        self, project: int, seen: Seen, active: Mapping[str, Any], name: str, classes: int
    ) -> dict[str, Any]:
        """Agreement of the new and the active model on unlabelled scans: {"agreement": ...}, or {} when unknown."""
        context = self._context
        open_ = {s.digest: s for s in seen.scans if s.digest and not s.annotated and not s.problem}
        sample = agreement_sample(list(open_))
        maps: list[list[NDArray[np.uint8]]] = []
        for model in (active["fingerprint"], name):
            folder = context.store.path("models", model)
            size = context.learner.image_size_of(folder)
            drawn: list[NDArray[np.uint8]] = []
            for start in range(0, len(sample), PREDICT_CHUNK):
                context.check(project)
                chunk = sample[start : start + PREDICT_CHUNK]
                try:
                    scans = [context.processor.pixels(open_[digest], size) for digest in chunk]
                except UnreadableScan:
                    return {}  # the scan gets a problem as soon as it is needed
                drawn += [p.argmax(axis=0).astype(np.uint8) for p in context.learner.probabilities(folder, scans)]
            maps.append(drawn)
        pairs = list(zip(*maps, strict=True))
        if not pairs or any(one.shape != other.shape for one, other in pairs):
            return {}
        same, n = agreement(pairs, classes)
        return {"agreement": {"dice": round(same, 6), "n": n, "with": active["version"]}} if n else {}

    def _write(self, project: int, seen: Seen, done: Done, step: Train, active: str, model: Mapping[str, Any]) -> None:
        """Record the model, and activate it if it was accepted and `active` is still the active one."""
        if not self._context.store.has("models", model["fingerprint"]):
            raise Replan  # retention removed it: a checkpoint that another project no longer needs
        keys = {label.task: label.key for label in seen.labels}
        self._context.store.put_model(
            project,
            {**model, "trained_on": sorted(keys[t] for t in step.tasks)},
            active=step.version if model["accepted"] else "",
            instead_of=active,
            training_requests=done.training_requests,
        )


def accepts(verdict: Verdict | None, tolerance: float) -> bool:
    """Whether the new model becomes active: unless it is worse than the active one by more than this.

    Worse is a lower Dice on the scans with foreground, or on all scans, where false alarms count as Dice 0: many scans
    without foreground must not hide the former, and a better Dice must not be bought with false alarms.
    """
    if verdict is None or verdict.new is None or verdict.active is None:
        return True
    pairs = [(of(verdict.new), of(verdict.active)) for of in (_dice, overall)]
    return all(new is None or active is None or new >= active - tolerance for new, active in pairs)


def _dice(summary: Mapping[str, Any]) -> float | None:
    found: float | None = summary["dice"]
    return found


def _remark(verdict: Verdict | None, accepted: bool, split: Split) -> str:
    """A remark for people about the decision; "" for none."""
    if not split.held_out and len(split.all) >= MIN_HELD_OUT:
        return (
            f"All {len(split.all)} labelled scans belong to one patient or volume, so none could be held out, and the "
            "quality of the model is unknown. Label scans of another patient or volume."
        )
    if verdict is None:
        return ""
    if verdict.new is None or verdict.active is None:
        return (
            f"It could not be compared with {verdict.version}, which was trained on every scan or patient that is "
            "held out now."
        )
    if accepted:
        return ""
    new, active = verdict.new, verdict.active
    found = []
    if new["n"]:
        dices = f"{new['dice']:.3f} against {active['dice']:.3f}"
        found.append(f"on the same {new['n']} held-out scans with foreground its Dice is {dices}")
    if new["false_alarm_rate"] != active["false_alarm_rate"]:
        ours, theirs = (round(one["false_alarm_rate"] * one["n_empty"]) for one in (new, active))
        same = "the same " if not found else ""
        found.append(
            f"on {same}{new['n_empty']} held-out scans without foreground it has {ours} false alarms against {theirs}"
        )
    text = ", and ".join(found)
    return f"{text[:1].upper()}{text[1:]}: {verdict.version} stays active."


def _held_out_details(
    held_out: Sequence[LabelledScan], scores: Sequence[Scores], labels: Sequence[str]
) -> list[dict[str, Any]]:
    return [{"task": one.scan.task, **as_row(score, labels)} for one, score in zip(held_out, scores, strict=True)]


def _learnt(model: Mapping[str, Any], seen: Seen) -> set[int | str]:
    """The tasks that a model was trained on, and their patients and volumes."""
    held_out = {one["task"] for one in model["details"].get("held_out", [])}
    annotations = {key.partition("@")[0] for key in model["trained_on"]}
    tasks = {label.task for label in seen.labels if str(label.annotation) in annotations} - held_out
    if not held_out:  # older versions did not record them
        tasks = set() if model["details"].get("validation") else tasks
    return {*tasks, *(s.group for s in seen.scans if s.task in tasks and s.group)}
