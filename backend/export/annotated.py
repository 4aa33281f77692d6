"""Annotated slices: reads the annotation that counts and writes its mask and its row in the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableMask, UnreadableScan
from backend.export.collect import Slice, best
from backend.export.outcome import Outcome
from backend.export.pictures import Pictures
from backend.export.volumes import Place, Volume
from backend.formats.pixels import classes_in, decode_image
from backend.label_config import LabelConfig, Renames, unknown_classes
from backend.label_studio.listing import Annotation, OtherAnnotation
from backend.label_studio.masks import could_draw, read_annotation
from backend.label_studio.studio import Studio
from backend.records.store import Store


class AnnotatedSlices:
    """Writes the annotated slices of one project.

    store   knows image sizes; None: sizes come from the images
    people  names by user ID; empty: no names are written
    """

    def __init__(
        self,
        studio: Studio,
        project: int,
        config: LabelConfig,
        store: Store | None,
        people: Mapping[int, str],
        drawn: Pictures,
        outcome: Outcome,
    ) -> None:
        self._studio, self._project, self._config, self._store = studio, project, config, store
        self._people, self._drawn, self._outcome = people, drawn, outcome
        self._renames = store.renames(project) if store else Renames()
        self._could_draw = store.could_draw(project) if store else {}

    def write(
        self, tasks: Sequence[Slice], found: Sequence[Annotation], place: Place | None, volume: Volume | None
    ) -> bool:
        """Write the annotation of one slice. Returns False if it is unreadable."""
        counts = best(found)
        one = next(s for s in tasks if s.task == counts.task)
        try:
            _check_inside(one, place)
            height, width = place.cut.shape if place else self._size(one, counts)
            mask, remarks = read_annotation(counts, self._config, height, width, self._renames)
        except (UnreadableMask, UnreadableScan) as error:
            self._outcome.problem(f"{one.name.removesuffix('.png')}, annotation {counts.id}: {error}", **one.which)
            return False
        png = self._drawn.add(one, mask)
        if volume is not None:
            volume.put(one.n, mask)
        row: dict[str, Any] = {**one.which, "annotation": counts.id, **self._who(counts.completed_by)}
        row |= {"submitted_at": counts.created_at, "changed_at": counts.updated_at, "lead_time": counts.lead_time}
        row |= {"ground_truth": counts.ground_truth, "shown": counts.shown_version}
        if others := self._others(counts, found):
            row["others"] = others
        numbers, pixels = np.unique(mask, return_counts=True)
        row["pixels"] = {str(n): int(p) for n, p in zip(numbers, pixels, strict=True) if n}
        if unknown := self._unknown(counts, mask):
            row["unknown"] = unknown
        if remarks:
            row["remarks"] = remarks
            self._outcome.note(f"{one.name.removesuffix('.png')}: {remarks[0]}")
        if png:
            row["png"] = png
        self._outcome.manifest.add("slices", row)
        return True

    def _unknown(self, counts: Annotation, mask: NDArray[np.uint8]) -> list[str]:
        """The labels that the annotator could not draw: where the mask has background, they may be there."""
        now = json.dumps(could_draw(counts, self._config))
        known = self._could_draw.get((counts.task, counts.key), now)
        labels, drawn = self._config.labels, set(classes_in(mask))
        return [labels[n - 1] for n in sorted(unknown_classes(known, labels, self._renames) - drawn)]

    def _others(self, counts: Annotation, found: Sequence[Annotation]) -> list[dict[str, Any]]:
        """The annotations that do not count, oldest first. Those of another task name it."""
        rows = [(a.task, other) for a in found for other in a.others]
        for a in found:
            if a is not counts:
                rows.append(
                    (a.task, OtherAnnotation(a.id, a.created_at, a.completed_by, a.ground_truth, skipped=False))
                )
        return [
            {
                "annotation": other.id,
                **({"task": task} if task != counts.task else {}),
                **self._who(other.completed_by),
                "submitted_at": other.created_at,
                "ground_truth": other.ground_truth,
                "skipped": other.skipped,
            }
            for task, other in sorted(rows, key=lambda r: r[1].id)
        ]

    def _who(self, user: int | None) -> dict[str, Any]:
        return {"user": user, **({"name": self._people[user]} if user is not None and user in self._people else {})}

    def _size(self, one: Slice, annotation: Annotation) -> tuple[int, int]:
        """Rows and columns of a task's image: from the records, else from the image, else from the annotation."""
        row = self._store.scan(self._project, one.task) if self._store else None
        if row is not None and row["height"] and row["image"] == one.image:
            return int(row["height"]), int(row["width"])
        try:
            height, width = decode_image(self._studio.image(one.image)).shape[:2]
            return height, width
        except UnreadableScan:
            sizes = {(r.get("original_height"), r.get("original_width")) for r in annotation.result}
            (size,) = sizes if len(sizes) == 1 else ((None, None),)
            if all(isinstance(side, int) and 0 < side < 2**15 for side in size):
                return size  # type: ignore[return-value]
            raise


def _check_inside(one: Slice, place: Place | None) -> None:
    if place is not None and one.n >= place.cut.count:
        raise UnreadableMask(
            f"its task has slice number {one.n} (from 0), but the scan has {place.cut.count} slices along this axis. "
            "The task data was changed in Label Studio."
        )
