"""The masks of a model: from the stored masks, else from Label Studio's predictions, else computed now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import NotKnown, UnreadableMask
from backend.export.collect import Slice
from backend.facts import Scan, version_name
from backend.fingerprints import fingerprint
from backend.formats.pixels import translate
from backend.label_config import LabelConfig
from backend.label_studio.masks import read_mask
from backend.loop.batch import CHUNK, BatchProcessor
from backend.loop.sharing import in_parts

ACTIVE = "active"
MANY = 500  # slices whose shown masks are asked for at once
Found = tuple[Slice, NDArray[np.uint8] | None, str]


class ModelMasks:
    """One model of a project.

    version  version name of the model, or ACTIVE

    Raises NotKnown if the model does not exist.
    """

    def __init__(self, processor: BatchProcessor, project: int, config: LabelConfig, version: str) -> None:
        store = processor.store
        row = store.project(project)
        if row is None:
            raise NotKnown(
                f"Project {project} is not in these records, so it has no model. Set --data-dir or SCANQUEUE_DATA_DIR "
                "to the folder that `scanqueue serve` uses, or omit --model."
            )
        wanted = row["active"] if version == ACTIVE else version
        model = store.model(project, wanted) if wanted else None
        if model is None:
            versions = ", ".join(version for version, _ in store.model_versions(project))
            lacking = "no active model" if version == ACTIVE else f"no model {version!r}"
            raise NotKnown(f"Project {project} has {lacking}. Its models: {versions or 'none trained yet'}.")
        self.version: str = model["version"]
        self.fingerprint: str = model["fingerprint"]
        self.labels: Sequence[str] = model["labels"]
        self.row = model
        self._processor, self._store, self._renames = processor, store, store.renames(project)
        self._project, self._config = project, config
        self._drawn: set[int] = set()  # by `prepare`
        rounds = store.round_columns(project, "n", "model")
        self._rounds = [version_name(n) for n, drawn_by in rounds if drawn_by == self.version]

    def facts(self) -> dict[str, Any]:
        """Description of the model for the manifest."""
        row = self.row
        return {
            "version": self.version,
            "fingerprint": self.fingerprint,
            "labels": list(self.labels),
            "trained_on": len(row["trained_on"]),
            "created_at": datetime.fromtimestamp(row["created_at"], UTC).isoformat(timespec="seconds"),
            "validation": row["validation"],
        }

    def of(self, slices: Sequence[Slice]) -> Iterator[Found]:
        """Each slice with its mask (class numbers of the label config) and the source of the mask: "stored", "shown"
        or "drawn". Without a mask: None and the reason.
        """
        for start in range(0, len(slices), CHUNK):
            yield from self._chunk(slices[start : start + CHUNK])

    def prepare(self, slices: Sequence[Slice]) -> None:
        """On a cluster, draw the masks of these slices that `of` would have to draw, so that all workers are busy."""
        if self._processor.cluster is None or not self._store.has("models", self.fingerprint):
            return
        lacking: list[int] = []
        for start in range(0, len(slices), MANY):
            scans = self._scans(slices[start : start + MANY])[1]
            here = [task for task, scan in scans.items() if not self._has(scan)]
            if here and self._rounds:
                regions = self._processor.studio.predicted_regions(self._project, here, self._rounds)
                shown = {task for task, found in regions if found is not None}
                here = [task for task in here if task not in shown]
            lacking += here
        self._draw(lacking)
        self._drawn.update(lacking)

    def _draw(self, tasks: Sequence[int]) -> None:
        for _ in in_parts(self._processor, self._project, "draw", self.fingerprint, tasks):
            pass

    def _scans(self, slices: Sequence[Slice]) -> tuple[dict[int, Any], dict[int, Scan]]:
        """By task: the records of these slices, None for unknown ones, and the scans of those that were read."""
        rows = {s.task: self._store.scan(self._project, s.task) for s in slices}
        scans = {
            task: Scan(task, r["image"], r["digest"])
            for task, r in rows.items()
            if r is not None and r["digest"] and r["height"]
        }
        return rows, scans

    def _chunk(self, slices: Sequence[Slice]) -> Iterator[Found]:
        rows, scans = self._scans(slices)
        found: dict[int, tuple[NDArray[np.uint8] | None, str]] = {}
        for task, scan in scans.items():
            if (mask := self._stored(scan)) is not None:
                found[task] = mask, "drawn" if task in self._drawn else "stored"
        lacking = [task for task in scans if task not in found]
        if lacking and self._rounds:
            for task, regions in self._processor.studio.predicted_regions(self._project, lacking, self._rounds):
                if regions is not None:
                    size = rows[task]["height"], rows[task]["width"]
                    try:
                        found[task] = read_mask(regions, self._config, *size, self._renames)[0], "shown"
                    except UnreadableMask:
                        continue
        lacking = [task for task in scans if task not in found]
        if lacking and self._store.has("models", self.fingerprint):
            self._draw(lacking)
            for task in lacking:
                if (mask := self._stored(scans[task])) is not None:
                    found[task] = mask, "drawn"
        for s in slices:
            row = rows[s.task]
            if s.task in found:
                yield (s, *found[s.task])
            elif s.task not in scans:
                why = row["problem"] if row is not None and row["problem"] else "its image has not been read yet"
                yield s, None, f"{self.version} has no mask for it: {why}"
            elif not self._store.has("models", self.fingerprint):
                yield s, None, f"it has no stored mask, and the checkpoint of {self.version} no longer exists"
            else:
                now = self._store.scan(self._project, s.task)
                why = now["problem"] if now is not None and now["problem"] else "prediction failed"
                yield s, None, f"{self.version} has no mask for it: {why}"

    def _has(self, scan: Scan) -> bool:
        return self._store.has("masks", fingerprint(self.fingerprint, scan.digest))

    def _stored(self, scan: Scan) -> NDArray[np.uint8] | None:
        mask = self._processor.mask(self.fingerprint, scan)
        return None if mask is None else translate(mask, self.labels, self._config.labels)
