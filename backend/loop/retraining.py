"""Train a model and decide whether it becomes active: fit, judge, decide, describe, write.

See `labelled_scans` for what a training is given, `judging` and `first_model` for the decision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableScan
from backend.facts import Lesson, validation_rows
from backend.fingerprints import fingerprint, judged_weights
from backend.formats.pixels import classes_in
from backend.learning.averages import as_row, of_scores
from backend.learning.evaluation import Scores
from backend.loop.context import Busy, LoopContext, Replan
from backend.loop.first_model import against_quick_model
from backend.loop.judging import Verdict, has_learnt, judge, judged, learnt, remark
from backend.loop.labelled_scans import PREDICT_CHUNK, LabelledScan, Split, at_most_every, evaluate, labelled_scans
from backend.loop.learning_remarks import learning_remarks
from backend.loop.remote_training import train
from backend.loop.steps import Done, Seen, Train
from sampling import agreement, agreement_sample

log = logging.getLogger("scanqueue.reconcile")

TRAINING_ROOM = 512 * 2**20  # free bytes required before training: a checkpoint, masks, records
PROGRESS_EVERY = 0.5  # seconds between progress reports during training
TEND_AT_MOST = 0.2  # seconds between looks for news, for which annotators wait
MIN_HELD_OUT = 5  # minimum number of labelled scans for holding some out, see `validation_rows`


class Trainer:
    """Trains models."""

    def __init__(self, context: LoopContext, tend: Callable[[int], None]) -> None:
        self._context = context
        self._tend = tend

    def train(self, project: int, seen: Seen, done: Done, step: Train) -> None:
        """Do a `Train` step. Raises Busy while another project is being trained."""
        assert seen.config is not None
        context = self._context
        labels = seen.config.labels
        row = context.row(project)
        active = context.model(project, done.active)
        if active is not None and (active["labels"] != list(labels) or not context.store.has("models", judged(active))):
            active = None  # it cannot be compared
        tasks = {label.annotation: label.task for label in seen.labels}
        known = learnt(active, seen.scans, tasks) if active is not None else set()
        split = _split(labelled_scans(context, project, seen, step.tasks), known)
        name, details = self._fit(project, done, step, split, labels, clicks=seen.config.smart)
        if context.store.has("models", weights := judged_weights(name)):
            details["judged"] = weights
        scores = evaluate(context, project, details.get("judged", name), labels, labels, split.held_out)
        details["held_out"] = _held_out_details(split.held_out, scores, labels)
        if active is not None:
            verdict: Verdict | None = self._judge(project, active, known, split, scores, labels)
        else:
            verdict = against_quick_model(context, project, seen, done, split, scores, details.get("judged", name))
        if verdict is not None and verdict.difference.scans:
            details["champion"] = verdict.details()
        accepted = verdict is None or verdict.accepts(done.settings.tolerance)
        told = remark(verdict, accepted) if split.held_out or not accepted else ""
        if not split.held_out:
            told = " ".join(filter(None, [told, _none_held_out(split.all)]))
        if not accepted:
            log.warning("project %s: %s was not accepted. %s", project, step.version, told)
        also = learning_remarks([one.case for one in split.all], labels)
        if active is not None:
            details |= self._agreement(project, active, name, labels)
        self._write(
            project,
            done,
            step,
            row["active"],
            {
                "version": step.version,
                "fingerprint": name,
                "labels": list(labels),
                "accepted": int(accepted),
                "remark": " ".join(filter(None, [told, *also])),
                "trained_on": [Lesson.of(one.scan, one.mask, one.case.unknown) for one in split.all],
                "validation": of_scores(scores, labels),
                "details": details,
            },
        )

    def _fit(
        self, project: int, done: Done, step: Train, split: Split, labels: Sequence[str], *, clicks: bool
    ) -> tuple[str, dict[str, Any]]:
        """The fingerprint of the model and the details of its training; a stored model is not trained again.

        clicks  whether smart tools are in use, so that a network for clicks is trained too
        """
        context, seed = self._context, done.settings.seed
        cases = split.all
        contents = [one.contents for one in cases]
        settings = context.learner.describe_training(seed, cases[0].case.size)
        name = fingerprint(contents, labels, settings, sorted(split.rows))
        details: dict[str, Any] = {"labels": len(cases), "validation": len(split.rows)}
        details["recipe"] = context.learner.recipe(seed)
        if context.store.has("models", name):
            compared = context.learner.click_details(context.store.path("models", name))
            return name, details | ({"clicks": compared} if compared else {})

        text = f"training {step.version} on {len(cases)} labels"
        report = at_most_every(PROGRESS_EVERY, lambda at, total: context.report(project, text, at, total))

        def on_step(at: int, total: int) -> None:
            context.check(project)
            report(at, total)
            self._tend(project)

        context.store.check_room(TRAINING_ROOM)
        with context.store.training_slot() as mine:
            if not mine:
                raise Busy
            log.info("project %s: training %s on %s scans", project, step.version, len(cases))
            limited = at_most_every(TEND_AT_MOST, on_step)
            save, history = train(context, split.learn, split.held_out, labels, seed, limited, clicks=clicks)
            context.store.put_folder("models", name, save)
        return name, details | history

    def _judge(
        self,
        project: int,
        active: Mapping[str, Any],
        known: set[int | str],
        split: Split,
        scores: Sequence[Scores],
        labels: Sequence[str],
    ) -> Verdict:
        """Compare with the active model on the held-out scans that it has not learnt from, `known`, nor the new one."""
        known = known | {one.scan.digest for i, one in enumerate(split.all) if i not in split.rows}
        fair = [i for i, one in enumerate(split.held_out) if not has_learnt(known, one.scan)]
        scans = [split.held_out[i] for i in fair]
        old = evaluate(self._context, project, judged(active), active["labels"], labels, scans)
        pairs = [(scores[i], theirs, one.scan.group) for i, theirs, one in zip(fair, old, scans, strict=True)]
        return judge(active["version"], pairs, labels)

    def _agreement(self, project: int, active: Mapping[str, Any], name: str, labels: Sequence[str]) -> dict[str, Any]:
        """Agreement of the new and the active model on unlabelled scans: {"agreement": ...}, or {} when unknown."""
        context = self._context
        tasks = context.store.open_scans(project)
        sample = agreement_sample(list(tasks))
        open_ = {s.digest: s for s in context.processor.scans(project, [tasks[digest] for digest in sample])}
        sample = [digest for digest in sample if digest in open_]
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
        same = agreement(pairs, len(labels) + 1)
        if not same.n:
            return {}
        each = {labels[number - 1]: {"dice": round(dice, 6), "n": n} for number, (dice, n) in same.per_label.items()}
        whole = {"dice": round(same.dice, 6), "n": same.n, "with": active["version"]}
        return {"agreement": whole | {"per_label": each}}

    def _write(self, project: int, done: Done, step: Train, active: str, model: Mapping[str, Any]) -> None:
        """Record the model, and activate it if it was accepted and `active` is still the active one."""
        if not self._context.store.has("models", model["fingerprint"]):
            raise Replan  # retention removed it: a checkpoint that another project no longer needs
        self._context.store.put_model(
            project,
            model,
            active=step.version if model["accepted"] else "",
            instead_of=active,
            training_requests=done.training_requests,
        )


def _split(cases: list[LabelledScan], known: set[int | str]) -> Split:
    """Hold out scans for validation, if possible of those that the active model has not learnt from, `known`."""
    shown = [classes_in(one.case.mask) for one in cases]
    rows = {i for i, one in enumerate(cases) if has_learnt(known, one.scan)}
    digests, groups = [one.scan.digest for one in cases], [one.scan.group for one in cases]
    return Split(cases, frozenset(validation_rows(digests, groups, shown, rows)))


def _none_held_out(cases: Sequence[LabelledScan]) -> str:
    """A remark for people when no scan is held out."""
    if len(cases) < MIN_HELD_OUT:
        return ""
    one = len({case.scan.group or case.scan.digest for case in cases}) == 1
    why = "belong to one patient or volume" if one else "show nothing that those of another patient or volume show"
    return (
        f"All {len(cases)} labelled scans {why}, so none could be held out, and the quality of the model is unknown. "
        "Label scans of another patient or volume."
    )


def _held_out_details(
    held_out: Sequence[LabelledScan], scores: Sequence[Scores], labels: Sequence[str]
) -> list[dict[str, Any]]:
    return [{"task": one.scan.task, **as_row(score, labels)} for one, score in zip(held_out, scores, strict=True)]
