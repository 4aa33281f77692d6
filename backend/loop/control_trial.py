"""Compare our order with chance: train one model on labels of each kind, and evaluate both on the same scans."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from backend.fingerprints import fingerprint
from backend.learning.averages import of_scores
from backend.loop.context import LoopContext, Postponed, Replan
from backend.loop.decide import decide
from backend.loop.labelled_scans import LabelledScan, at_most_every, evaluate, labelled_scans
from backend.loop.observing import Observer
from backend.loop.remote_training import train
from backend.loop.retraining import PROGRESS_EVERY, TRAINING_ROOM
from backend.loop.steps import CompareWithControl, Done, OpenRound, ReadMasks, Seen, Train
from backend.loop.stored import stored

log = logging.getLogger("scanqueue.reconcile")

KIND = "arms"  # artefact kind of the two models, the same as in older versions
YIELD_EVERY = 10.0  # seconds between checks whether something more urgent is due


class ControlTrial:
    """Trains the two models of a `CompareWithControl` step. Neither is kept."""

    def __init__(self, context: LoopContext, observer: Observer, tend: Callable[[int], None]) -> None:
        self._context = context
        self._observer = observer
        self._tend = tend

    def compare(self, project: int, seen: Seen, done: Done, step: CompareWithControl) -> None:
        """Record the quality of both models in the details of the newest model.

        Raises Replan when something more urgent is due, and Postponed while another project is being trained: the
        comparison is then repeated later.
        """
        assert seen.config is not None
        context, labels = self._context, seen.config.labels
        cases = labelled_scans(context, project, seen, [*step.ours, *step.control, *step.validation])
        validation = set(step.validation)
        held_out = [one for one in cases if one.scan.task in validation]
        found: dict[str, Any] = {"labels": len(step.ours), "of": dict(zip(("ours", "control"), step.of, strict=True))}
        names = []
        for arm, tasks in (("ours", set(step.ours)), ("control", set(step.control))):
            name = self._fit(project, done, arm, [one for one in cases if one.scan.task in tasks], labels)
            scores = evaluate(context, project, name, labels, labels, held_out, kind=KIND)
            found[arm] = of_scores(scores, labels)
            names.append(name)
        context.store.add_details(project, step.version, {"arms": found})
        for name in names:  # retention removes leftovers of a killed process
            context.learner.forget(context.store.path(KIND, name))
            context.store.remove_folder(KIND, name)

    def _fit(
        self,
        project: int,
        done: Done,
        arm: str,
        cases: Sequence[LabelledScan],
        labels: Sequence[str],
    ) -> str:
        """The name of the model of one arm, trained if it is not stored."""
        context, seed = self._context, done.settings.seed
        recipe = context.learner.describe_training(seed, cases[0].case.size)
        name = fingerprint("arm", [one.contents for one in cases], labels, recipe)
        if context.store.has(KIND, name):
            return name
        text = f"comparing our order with chance: training on {len(cases)} labels ({arm})"

        checked = time.monotonic()

        def on_step(at: int, total: int) -> None:
            nonlocal checked
            context.check(project)
            context.report(project, text, at, total)
            self._tend(project)
            if time.monotonic() - checked >= YIELD_EVERY:
                self._give_way(project)
                checked = time.monotonic()

        context.store.check_room(TRAINING_ROOM)
        with context.store.training_slot() as mine:
            if not mine:
                raise Postponed
            log.info("project %s: %s", project, text)
            limited = at_most_every(PROGRESS_EVERY, on_step)
            save, _ = train(context, cases, [], labels, seed, limited)
            context.store.put_folder(KIND, name, save)
        return name

    def _give_way(self, project: int) -> None:
        """Raises Replan when people wait for another step: training, a round, or enough annotations for a round."""
        seen = self._observer.observe(project)
        done = stored(self._context, project, seen)
        for step in decide(seen, done).steps:
            many = isinstance(step, ReadMasks) and len(step.tasks) >= done.settings.round_size
            if many or isinstance(step, Train | OpenRound):
                raise Replan
