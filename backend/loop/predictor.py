"""Predictions for single tasks at Label Studio's request: the stored one, else a new one."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import ScanqueueError
from backend.facts import IMPORTED_MASKS, PENDING, origin_of, score_of, version_name
from backend.fingerprints import fingerprint
from backend.formats.pixels import restore
from backend.label_config import LabelConfig
from backend.label_studio.drawing import draw_mask
from backend.label_studio.studio import Studio
from backend.learning.learner import Learner
from backend.learning.patch_features import SIDE
from backend.loop.batch import digest_of_task, pixels_of_task, scan_of_task
from backend.loop.quick_masks import newest_quick_model, quick_name
from backend.records.rounds import Pick
from backend.records.store import Store

log = logging.getLogger("scanqueue.predictor")

SECONDS = 60.0  # time limit for drawing masks per request; Label Studio waits 100
UNRANKED = 1.0  # score of a task that is not in the order: served last


class Predictor:
    """Answers /predict from the store, or with the round's model where nothing is stored."""

    def __init__(self, store: Store, studio: Studio, learner: Learner) -> None:
        self._store = store
        self._studio = studio
        self._learner = learner
        self._orders: dict[int, tuple[Sequence[Pick], int, dict[int, float]]] = {}

    def predict(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One item {model_version, score, result} per task, in order. Never raises.

        The score is the task's place in the current order, 0..1; low scores are served first. An answer that lacks its
        mask has the version PENDING: Label Studio stores it, and it must not count as a published prediction.
        """
        row = self._store.project(project)
        latest = self._store.latest_round(project) if row else None
        if row is None or latest is None:
            return [{"model_version": PENDING, "score": UNRANKED, "result": []} for _ in tasks]
        version = version_name(latest["n"])
        places = self._places(project, latest)
        config = LabelConfig.from_json(row["config"])
        model = self._store.model_summary(project, latest["model"]) if latest["model"] else None
        if model is not None and config is not None:
            answered = self._store.renames(project).now.keys()
            if set(model["labels"]) - set(config.labels) - answered:  # nobody has said what became of a label
                return [{"model_version": PENDING, "score": UNRANKED, "result": []} for _ in tasks]
        until = time.monotonic() + SECONDS
        items = []
        for task in tasks:
            result: list[dict[str, Any]] = []
            number = task.get("id")
            place = places.get(number) if isinstance(number, int) else None
            whole = place is not None and not latest["model"]
            if model is not None and config is not None and time.monotonic() < until:
                try:
                    result = self._draw(project, task, model, config, version)
                    whole = place is not None
                except ScanqueueError as error:
                    log.warning("project %s, task %s: %s", project, task.get("id"), error)
                except Exception:
                    # Annotators get an empty task rather than an error page.
                    log.exception("project %s, task %s: prediction failed", project, task.get("id"))
            elif model is None and config is not None and whole and time.monotonic() < until:
                try:
                    result = self._draw_quickly(project, task, config, version)
                except Exception:  # a blank task
                    log.exception("project %s, task %s: the quick model failed", project, task.get("id"))
            score = UNRANKED if place is None else place
            items.append({"model_version": version if whole else PENDING, "score": score, "result": result})
        return items

    def _places(self, project: int, latest: Mapping[str, Any]) -> dict[int, float]:
        picks, size = latest["picks"], latest["size"]
        cached = self._orders.get(project)
        if cached is None or cached[0] is not picks or cached[1] != size:
            places = {p.task: score_of(i, size) for i, p in enumerate(picks, start=1)}
            self._orders[project] = cached = (picks, size, places)
        return cached[2]

    def _draw_quickly(
        self, project: int, task: Mapping[str, Any], config: LabelConfig, version: str
    ) -> list[dict[str, Any]]:
        """The regions that the newest quick model draws, if they are shown and nobody has drawn or imported a mask."""
        scan = scan_of_task(self._store, project, task)
        newest = newest_quick_model(self._store, project, config.labels)
        if newest is None or (scan and scan["annotated"]):
            return []
        found = self._studio.predicted_regions(project, [task["id"]], [IMPORTED_MASKS])
        if imported := next(found)[1]:
            return [dict(region) for region in imported]
        row, model = newest
        _, digest = digest_of_task(scan, project, task, config)
        boxed = pixels_of_task(self._store, self._studio, task, config, digest, SIDE)
        size = boxed.original_height, boxed.original_width
        mask = restore(model.probabilities(self._learner.features(boxed.pixels), *size), *size)
        return draw_mask(mask, config.labels, config, origin_of(version, quick_name(row["drawn"])))

    def _draw(
        self,
        project: int,
        task: Mapping[str, Any],
        model: Mapping[str, Any],
        config: LabelConfig,
        version: str,
    ) -> list[dict[str, Any]]:
        origin = origin_of(version, model["fingerprint"])
        _, digest = digest_of_task(scan_of_task(self._store, project, task), project, task, config)
        if digest:
            try:
                stored = self._store.arrays("masks", fingerprint(model["fingerprint"], digest))
                return draw_mask(stored["mask"], model["labels"], config, origin)
            except FileNotFoundError:
                pass
        folder = self._store.path("models", model["fingerprint"])
        size = self._learner.image_size_of(folder)
        boxed = pixels_of_task(self._store, self._studio, task, config, digest, size)
        mask = self._learner.masks(folder, [boxed])[0]
        return draw_mask(mask, model["labels"], config, origin)
