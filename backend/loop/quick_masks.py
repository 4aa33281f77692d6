"""Before the first training: after every label, the quick model redraws the next tasks of the queue."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableScan, WeightsMissing
from backend.facts import IMPORTED_MASKS, origin_of, version_name
from backend.formats.pixels import restore
from backend.label_config import unknown_classes
from backend.label_studio.drawing import draw_mask
from backend.learning.quick_model import QuickModel, Terms, learn
from backend.loop.connection import Connections
from backend.loop.context import LoopContext, Replan
from backend.loop.steps import Done, DrawQuickly, Seen

log = logging.getLogger("scanqueue.reconcile")

MOST = 64  # labelled scans to learn from, and whose terms are in memory: 2 MB each


def quick_name(key: str) -> str:
    """The name of a quick model among those that draw masks."""
    return f"quick:{key}"


class QuickDrawer:
    """Learns the quick model and redraws tasks."""

    def __init__(self, context: LoopContext, connections: Connections) -> None:
        self._context = context
        self._connections = connections
        self._terms: OrderedDict[tuple[Any, ...], Terms] = OrderedDict()

    def redraw(self, project: int, seen: Seen, done: Done, step: DrawQuickly) -> None:
        """Do a `DrawQuickly` step.

        A single label cannot tell how good the masks are. Until the second, only features are computed.
        """
        assert seen.config is not None
        self._connections.require(project)
        context, labels = self._context, seen.config.labels
        version = version_name(done.rounds[-1].n)
        row: dict[str, Any] = {"version": version, "key": step.key, "names": json.dumps(labels)}
        row |= {"learnt": len(step.lessons), "dice": None}
        results: dict[int, list[dict[str, Any]]] = {}
        try:
            features = self._features(project, seen, step.tasks)
            if step.lessons:
                model = self._learnt(project, seen, step)
                row["dice"] = model.expected_dice
                context.store.put_arrays("quick", step.key, **model.arrays())
                if model.expected_dice is not None and model.expected_dice >= done.settings.least_dice:
                    results = self._drawn(project, seen, step, model, version, features)
        except WeightsMissing as error:  # the queue goes on without these masks
            log.warning("project %s: no quick masks: %s", project, error)
        before = context.store.quick_masks(project, version)
        shown = {task: (r["drawn"], r["names"]) for task, r in before.items() if r["drawn"]}
        changed = results | {task: [] for task in step.tasks if task in shown and task not in results}
        if changed:
            replaced = context.studio.replace_results(project, version, changed, step.queue, step.held)
            shown |= {task: (step.key if task in results else "", row["names"]) for task in replaced}
        now = {task: shown.get(task, ("", row["names"])) for task in step.tasks}
        rows = [row | {"task": task, "drawn": drawn, "names": names} for task, (drawn, names) in now.items()]
        context.store.put_quick_masks(project, rows)

    def _features(self, project: int, seen: Seen, tasks: Sequence[int]) -> dict[int, NDArray[np.float16]]:
        """Of the tasks that can be read; the others become problems."""
        scans, found = {s.task: s for s in seen.scans}, {}
        for task in tasks:
            try:
                found[task] = self._context.processor.features(scans[task])
            except UnreadableScan as error:
                self._context.store.set_scans(project, [{"task": task, "problem": str(error)}])
        return found

    def _learnt(self, project: int, seen: Seen, step: DrawQuickly) -> QuickModel:
        """Raises Replan when a labelled scan can no longer be read."""
        assert seen.config is not None
        context, labels = self._context, seen.config.labels
        rows = {r["task"]: r for r in context.store.labels(project)}
        scans = {s.task: s for s in seen.scans}
        found = []
        for task in sorted(step.lessons, key=lambda task: (scans[task].digest, task))[:MOST]:
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
            self._terms.move_to_end(key)
            found.append(self._terms[key])
        while len(self._terms) > MOST:
            self._terms.popitem(last=False)
        return learn(found)

    def _drawn(
        self,
        project: int,
        seen: Seen,
        step: DrawQuickly,
        model: QuickModel,
        version: str,
        features: Mapping[int, NDArray[np.float16]],
    ) -> dict[int, list[dict[str, Any]]]:
        """The regions of each task, and the masks stored. Tasks that show an imported mask keep it."""
        assert seen.config is not None
        context, name = self._context, quick_name(step.key)
        kept = set()
        if IMPORTED_MASKS in context.studio.model_versions(project):
            found = context.studio.predicted_regions(project, step.tasks, [IMPORTED_MASKS])
            kept = {task for task, regions in found if regions}
        results = {}
        scans = {s.task: s for s in seen.scans}
        for task in features.keys() - kept:
            row = context.store.scan(project, task)
            if row is None:
                continue  # deleted meanwhile
            size = row["height"], row["width"]
            mask = restore(model.probabilities(features[task], *size), *size)
            context.processor.keep_mask(name, scans[task], mask)
            results[task] = draw_mask(mask, seen.config.labels, seen.config, origin_of(version, name))
        return results
