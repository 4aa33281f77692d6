"""Before the first training: after every label, the quick model redraws the next tasks of the queue."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from typing import Any

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

KEPT = 200  # labelled scans whose terms are in memory: 1 MB each


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
        """Do a `DrawQuickly` step."""
        assert seen.config is not None
        self._connections.require(project)
        context, labels = self._context, seen.config.labels
        version = version_name(done.rounds[-1].n)
        row: dict[str, Any] = {"version": version, "key": step.key, "names": json.dumps(labels)}
        row |= {"learnt": len(step.lessons), "dice": None, "hidden": 1}
        results: dict[int, list[dict[str, Any]]] = {}
        try:
            model = self._learnt(project, seen, step)
            row["dice"] = model.expected_dice
            if (model.expected_dice or 0.0) >= done.settings.least_dice:
                row["hidden"] = 0
                results = self._drawn(project, seen, step, model, version)
        except WeightsMissing as error:  # the queue goes on without these masks
            log.warning("project %s: no quick masks: %s", project, error)
        before = context.store.quick_masks(project, version)
        blank = [task for task in step.tasks if task not in results and task in before and not before[task]["hidden"]]
        changed = results | {task: [] for task in blank}
        if changed:
            context.studio.replace_results(project, version, changed)
        context.store.put_quick_masks(project, [row | {"task": t, "hidden": int(t not in results)} for t in step.tasks])

    def _learnt(self, project: int, seen: Seen, step: DrawQuickly) -> QuickModel:
        """Raises Replan when a labelled scan can no longer be read."""
        assert seen.config is not None
        context, labels = self._context, seen.config.labels
        rows = {r["task"]: r for r in context.store.labels(project)}
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
            self._terms.move_to_end(key)
            found.append(self._terms[key])
        while len(self._terms) > KEPT:
            self._terms.popitem(last=False)
        return learn(found)

    def _drawn(
        self, project: int, seen: Seen, step: DrawQuickly, model: QuickModel, version: str
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
        for task in step.tasks:
            scan = scans[task]
            if task in kept:
                continue
            try:
                features = context.processor.features(scan)
                box = context.processor.pixels(scan, context.learner.image_size)
            except UnreadableScan as error:
                context.store.set_scans(project, [{"task": task, "problem": str(error)}])
                continue
            size = box.original_height, box.original_width
            mask = restore(model.probabilities(features, *size), *size)
            context.processor.keep_mask(name, scan, mask)
            results[task] = draw_mask(mask, seen.config.labels, seen.config, origin_of(version, name))
        return results
