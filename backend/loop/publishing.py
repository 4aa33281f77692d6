"""Write the published part of a round to Label Studio."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import StudioRefused
from backend.facts import origin_of, score_of, version_name
from backend.label_studio.drawing import draw_mask
from backend.loop.connection import Connections
from backend.loop.context import LoopContext
from backend.loop.disconnecting import remember
from backend.loop.imported_masks import imported_masks
from backend.loop.quick_masks import QuickDrawer
from backend.loop.sharing import share
from backend.loop.steps import Done, Publish, Seen
from backend.records.quick_masks import PROJECT_ROW

log = logging.getLogger("scanqueue.reconcile")


class Publisher:
    """Publishes the latest round of a project."""

    def __init__(self, context: LoopContext, connections: Connections, quick: QuickDrawer) -> None:
        self._context = context
        self._connections = connections
        self._quick = quick

    def publish(self, project: int, seen: Seen, done: Done, step: Publish) -> None:
        """Do a `Publish` step. Raises StudioRefused when Label Studio rejects the predictions, Replan when it is no
        longer connected to us."""
        assert seen.config is not None
        self._connections.require(project)
        studio, store = self._context.studio, self._context.store
        latest = store.latest_round(project)
        assert latest is not None
        version = version_name(latest["n"])
        refused: StudioRefused | None = None
        if step.doubled:
            studio.remove_duplicate_predictions(project, version)
        if step.tasks:
            first, shown = self._quick.first(project, seen, done, step.tasks)
            rows = self._predictions(project, seen, latest, version, step.tasks, first)
            sent = {row["task"]: row["result"] for row in rows}
            shown = [r for r in shown if r["task"] == PROJECT_ROW or sent.get(r["task"]) is first[r["task"]]]
            store.put_quick_masks(project, shown)  # before: a mask that the records do not know is never taken back
            store.set_project(project, sending=time.time())
            try:
                studio.import_predictions(project, rows, seen.counts.scans + seen.unlisted)
            except StudioRefused as error:
                refused = error
            store.set_project(project, sending=0.0)
            new = sent.keys() - {*latest["carried"]}
            places = [n for n, p in enumerate(latest["picks"], start=1) if p.task in new]
            store.set_reach(project, latest["n"], max(places, default=0))
        if step.settings and (step.tasks or seen.live.published):
            remember(self._context, project)
            try:
                studio.show_round(project, version)
            except StudioRefused as error:  # the round may have no prediction; then the import's error gives the reason
                raise (refused or error) from error
            store.mark_published(project, latest["n"])
            if not seen.live.view:
                studio.add_view(project)
        if refused is not None:
            raise refused

    def _predictions(
        self,
        project: int,
        seen: Seen,
        latest: dict[str, Any],
        version: str,
        tasks: Sequence[int],
        first: Mapping[int, list[dict[str, Any]]],
    ) -> list[dict[str, Any]]:
        """The predictions of these tasks, as `Studio.import_predictions` expects them.

        Without a model they show the masks that were imported as predictions, else those of the quick model, `first`.
        """
        assert seen.config is not None
        context = self._context
        scores = {p.task: score_of(place, latest["size"]) for place, p in enumerate(latest["picks"], start=1)}
        model = context.model_summary(project, latest["model"])
        if model is not None and not context.store.has("models", model["fingerprint"]):
            model = None  # its file is lost; the next round uses another model
        by_task = {s.task: s for s in seen.scans}
        results = dict(first)
        if model is not None:
            share(context, project, "draw", model["fingerprint"], tasks, "drawing masks")
            for task in tasks:
                mask = context.processor.mask(model["fingerprint"], by_task[task])
                if mask is not None:
                    results[task] = draw_mask(
                        mask, model["labels"], seen.config, origin_of(version, model["fingerprint"])
                    )
        else:
            results |= imported_masks(context.studio, project, tasks)
        return [
            {"task": t, "score": scores[t], "model_version": version, "result": results.get(t, [])}
            for t in tasks
            if t in scores and (model is None or t in results)
        ]
