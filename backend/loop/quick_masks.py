"""Before the first training: after every label, the quick model redraws the next tasks of the queue."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from backend.errors import UnreadableScan, WeightsMissing
from backend.facts import origin_of, version_name
from backend.formats.pixels import restore
from backend.label_config import unknown_classes
from backend.label_studio.drawing import draw_mask
from backend.learning.quick_model import QuickModel, Terms, learn
from backend.loop.attempts import attempt
from backend.loop.connection import Connections
from backend.loop.context import LoopContext, Replan
from backend.loop.decide import MOST_QUICK_LABELS, quick_key
from backend.loop.imported_masks import imported_masks
from backend.loop.publication import quick_reach
from backend.loop.steps import Done, DrawQuickly, Seen
from backend.records.quick_masks import PROJECT_ROW
from backend.records.store import Store

log = logging.getLogger("scanqueue.reconcile")

_learning = threading.Lock()  # the limit of threads is that of the process
KEPT = MOST_QUICK_LABELS  # labelled scans whose terms are in memory: 2 MB each


def quick_name(key: str) -> str:
    """The name of a quick model among those that draw masks."""
    return f"quick:{key}"


def newest_quick_model(
    store: Store, project: int, labels: tuple[str, ...]
) -> tuple[Mapping[str, Any], QuickModel] | None:
    """The record of the newest quick model, and the model; None if it has other labels, or if its masks are hidden."""
    newest = store.quick_mask(project, PROJECT_ROW)
    if newest is None or not newest["drawn"] or tuple(json.loads(newest["names"])) != labels:
        return None
    if not store.has("quick", newest["drawn"]):
        return None
    return dict(newest), QuickModel.of_arrays(store.arrays("quick", newest["drawn"]))


def learn_alone(scans: Sequence[Terms]) -> QuickModel:
    """`learn` on one core, one at a time: beside other programs, threads that wait for each other take ten times as
    long."""
    with _learning, _blas().limit(limits=1, user_api="blas"):
        return learn(scans)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


class QuickDrawer:
    """Learns the quick model and redraws tasks."""

    def __init__(self, context: LoopContext, connections: Connections) -> None:
        self._context = context
        self._connections = connections
        self._terms: OrderedDict[tuple[Any, ...], Terms] = OrderedDict()
        self._lock = threading.Lock()

    def redraw(
        self, project: int, seen: Seen, done: Done, step: DrawQuickly, between: Callable[[int], None] = lambda _: None
    ) -> None:
        """Do a `DrawQuickly` step, as an attempt.

        A single label cannot tell how good the masks are. Until the second, only features are computed.

        between  called with the project after the features of each scan. It may lengthen the queue
        """
        assert seen.config is not None
        if self._connections.objection(project):  # asking anew, Label Studio would call us back after every label
            raise Replan
        with attempt(self._context, project, done, step):
            self._redraw(project, seen, done, step, between)

    def _redraw(self, project: int, seen: Seen, done: Done, step: DrawQuickly, between: Callable[[int], None]) -> None:
        assert seen.config is not None
        context, labels = self._context, seen.config.labels
        version = version_name(done.rounds[-1].n)
        row: dict[str, Any] = {"version": version, "key": step.key, "names": json.dumps(labels)}
        row |= {"learnt": len(step.lessons), "dice": None}
        results: dict[int, list[dict[str, Any]]] = {}
        imported: Collection[int] = ()  # tasks that keep the mask that was imported for them
        visible = False
        try:
            features = self._features(project, seen, step.tasks, between) if step.key else {}
            if step.lessons:
                model = self._learnt(project, seen, step, between)
                row["dice"] = model.expected_dice
                visible = model.expected_dice is not None and model.expected_dice >= done.settings.least_dice
                context.store.put_arrays("quick", step.key, **model.arrays())
                imported = imported_masks(context.studio, project, step.tasks).keys()
                if visible:
                    wanted = {task: one for task, one in features.items() if task not in imported}
                    results = self._drawn(project, seen, step.key, model, version, wanted)
        except WeightsMissing as error:  # the queue goes on without these masks
            log.warning("project %s: no quick masks: %s", project, error)
        before = context.store.quick_masks(project, version)
        shown = {task: (r["drawn"], r["names"]) for task, r in before.items() if r["drawn"]}
        blank = [task for task in step.tasks if task in shown and task not in results and task not in imported]
        changed = results | {task: [] for task in blank}
        if changed:
            replaced = context.studio.replace_results(project, version, changed, step.queue, step.held)
            shown |= {task: (step.key if task in results else "", row["names"]) for task in replaced}
        digests = {s.task: s.digest for s in seen.scans}
        rows = [row | {"task": PROJECT_ROW, "drawn": step.key if visible else ""}]
        for task in step.tasks:
            drawn, names = shown.get(task, ("", row["names"]))
            rows.append(row | {"task": task, "key": quick_key(step.key, digests[task]), "drawn": drawn, "names": names})
        context.store.put_quick_masks(project, rows)

    def first(
        self, project: int, seen: Seen, done: Done, tasks: Sequence[int]
    ) -> tuple[dict[int, list[dict[str, Any]]], list[dict[str, Any]]]:
        """What the first of these tasks of the cold start show at once: annotators may open them.

        Returns the regions of each task, and the records of what they show.
        """
        assert seen.config is not None
        latest = done.rounds[-1]
        if latest.model or done.settings.quick_model == "off":
            return {}, []
        found = newest_quick_model(self._context.store, project, seen.config.labels)
        if found is None:
            return {}, []
        newest, model = found
        version = latest.version
        try:
            features = self._features(project, seen, tasks[: quick_reach(max(1, seen.people) + 1)])
        except WeightsMissing:
            return {}, []
        results = self._drawn(project, seen, newest["drawn"], model, version, features)
        digests = {s.task: s.digest for s in seen.scans}
        rows = [
            {**newest, "task": task, "version": version, "key": quick_key(newest["key"], digests[task])}
            for task in results
        ]
        return results, [*rows, {**newest, "version": version}]

    def _features(
        self, project: int, seen: Seen, tasks: Sequence[int], between: Callable[[int], None] = lambda _: None
    ) -> dict[int, NDArray[np.float16]]:
        """Of the tasks that can be read; the others become problems."""
        scans, found = {s.task: s for s in seen.scans}, {}
        for task in tasks:
            try:
                found[task] = self._context.processor.features(scans[task])
            except UnreadableScan as error:
                self._context.store.set_scans(project, [{"task": task, "problem": str(error)}])
            between(project)
        return found

    def _learnt(self, project: int, seen: Seen, step: DrawQuickly, between: Callable[[int], None]) -> QuickModel:
        """Raises Replan when a labelled scan can no longer be read."""
        assert seen.config is not None
        labels = seen.config.labels
        rows = {r["task"]: r for r in self._context.store.labels(project)}
        with self._lock:
            return learn_alone(self._terms_of(project, seen, step, rows, labels, between))

    def _terms_of(
        self,
        project: int,
        seen: Seen,
        step: DrawQuickly,
        rows: Mapping[int, Any],
        labels: tuple[str, ...],
        between: Callable[[int], None],
    ) -> list[Terms]:
        context = self._context
        scans = {s.task: s for s in seen.scans}
        found = []
        for task in sorted(step.lessons, key=lambda task: (scans[task].digest, task)):
            scan, label = scans[task], rows.get(task)
            if label is None:
                raise Replan
            unknown = unknown_classes(label["known"], labels, seen.renames)
            key = (scan.digest, label["mask"], scan.group, labels, unknown)
            if key not in self._terms:
                try:
                    mask = context.store.arrays("labels", label["mask"])["mask"]
                    features = context.processor.features(scan)
                except FileNotFoundError:
                    context.store.forget_label(project, task)  # its artefact is lost; read the annotation again
                    raise Replan from None
                except UnreadableScan as error:
                    context.store.set_scans(project, [{"task": task, "problem": str(error)}])
                    raise Replan from None
                self._terms[key] = Terms.of(features, mask, len(labels), unknown=unknown, group=scan.group)
                between(project)
            self._terms.move_to_end(key)
            found.append(self._terms[key])
        while len(self._terms) > KEPT:
            self._terms.popitem(last=False)
        return found

    def _drawn(
        self,
        project: int,
        seen: Seen,
        key: str,
        model: QuickModel,
        version: str,
        features: Mapping[int, NDArray[np.float16]],
    ) -> dict[int, list[dict[str, Any]]]:
        """The regions of each task; the masks are stored."""
        assert seen.config is not None
        context, name = self._context, quick_name(key)
        results = {}
        scans = {s.task: s for s in seen.scans}
        for task, found in features.items():
            row = context.store.scan(project, task)
            if row is None:
                continue  # deleted meanwhile
            size = row["height"], row["width"]
            mask = restore(model.probabilities(found, *size), *size)
            context.processor.keep_mask(name, scans[task], mask)
            results[task] = draw_mask(mask, seen.config.labels, seen.config, origin_of(version, name))
        return results
