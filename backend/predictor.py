"""What Label Studio gets when it asks for one task's prediction: the stored one, else a fresh one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import ScanqueueError
from backend.learner import Learner
from backend.pixels import Letterboxed, decode_image, letterbox
from backend.project import LabelConfig, fingerprint, score_of, version_name
from backend.store import Store
from backend.studio import Studio, draw_mask

log = logging.getLogger("scanqueue.predictor")

UNRANKED = 1.0  # the score of a task that is not in the order: served last


class Predictor:
    """Answers /predict from the store, and with the active model where the store has nothing."""

    def __init__(self, store: Store, studio: Studio, learner: Learner) -> None:
        self._store = store
        self._studio = studio
        self._learner = learner
        self._orders: dict[int, tuple[tuple[int, int], dict[int, float]]] = {}

    def predict(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One item {model_version, score, result} per task, in their order, whatever goes wrong.

        The score is the task's place in the current order, 0..1, low is served first.
        """
        row = self._store.project(project)
        rounds = self._store.rounds(project, picks=False) if row else []
        if row is None or not rounds:
            return [{"model_version": version_name(0), "score": UNRANKED, "result": []} for _ in tasks]
        latest = rounds[-1]
        version = version_name(latest["n"])
        places = self._places(project, latest)
        config = LabelConfig.from_json(row["config"])
        models = {m["version"]: m for m in self._store.models(project)}
        model = models.get(latest["model"])
        known = {s["task"]: dict(s) for s in self._store.scans(project)} if model else {}
        items = []
        for task in tasks:
            result: list[dict[str, Any]] = []
            if model is not None and config is not None:
                try:
                    result = self._draw(task, known.get(task.get("id")), model, config, version)
                except ScanqueueError as error:
                    log.warning("project %s, task %s: %s", project, task.get("id"), error)
                except Exception:
                    # The annotator must get an empty task rather than an error page.
                    log.exception("project %s, task %s: prediction failed", project, task.get("id"))
            score = places.get(task.get("id", 0), UNRANKED)
            items.append({"model_version": version, "score": score, "result": result})
        return items

    def _places(self, project: int, latest: Mapping[str, Any]) -> dict[int, float]:
        key = (latest["n"], len(latest["picks"]))
        cached = self._orders.get(project)
        if cached is None or cached[0] != key:
            places = {p.task: score_of(i, latest["size"]) for i, p in enumerate(latest["picks"], start=1)}
            self._orders[project] = cached = (key, places)
        return cached[1]

    def _draw(
        self,
        task: Mapping[str, Any],
        scan: Mapping[str, Any] | None,
        model: Mapping[str, Any],
        config: LabelConfig,
        version: str,
    ) -> list[dict[str, Any]]:
        image = str((task.get("data") or {}).get(config.image_key) or "")
        digest = scan["digest"] if scan is not None and scan["image"] == image else ""
        if digest:
            try:
                stored = self._store.arrays("masks", fingerprint(model["fingerprint"], digest))
                return draw_mask(stored["mask"], model["labels"], config, version)
            except FileNotFoundError:
                pass
        folder = self._store.path("models", model["fingerprint"])
        size = self._learner.image_size_of(folder)
        boxed = self._cached(digest, size) or letterbox(decode_image(self._studio.image(image)), size)
        mask = self._learner.masks(folder, [boxed])[0]
        return draw_mask(mask, model["labels"], config, version)

    def _cached(self, digest: str, size: int) -> Letterboxed | None:
        try:
            found = self._store.arrays("pixels", fingerprint(digest, size))
        except (OSError, ValueError):
            return None
        return Letterboxed(found["pixels"], *(int(n) for n in found["box"]))
