"""COCO files: one JSON file with the masks of many pictures, as polygons or run lengths."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from backend.errors import UnreadableFile
from backend.formats import Segment, packed
from backend.formats.failures import reported
from backend.formats.picture import MAX_PIXELS

MAX_BYTES = 2**30  # of a JSON file, which is read into memory
MAX_LENGTH = 10_000_000  # pixels that the outlines of a region may be long: pycocotools needs about 100 bytes for each
_DAMAGED = "is not a COCO file: a row of its images, categories or annotations is damaged ({error}). Export it again"


class CocoPicture:
    """The masks of one picture in a COCO file; `path` is the picture's, relative to the folder of the file."""

    def __init__(
        self, file: Path, row: Mapping[str, Any], regions: list[Mapping[str, Any]], named: tuple[Segment, ...]
    ) -> None:
        self.file = file
        self.path = file.parent / PurePosixPath(str(row["file_name"]).replace("\\", "/"))
        self.named = named
        self._size = int(row["height"]), int(row["width"])
        self._regions = regions

    def read(self) -> Iterator[tuple[Segment, NDArray[np.bool_]]]:
        """Each category that is drawn, as (rows, columns) booleans. Raises UnreadableFile."""
        rows, columns = self._size
        if not 0 < rows * columns <= MAX_PIXELS or rows < 0:
            raise UnreadableFile(
                self.file, f"declares a picture of {columns} x {rows} pixels; the maximum is {MAX_PIXELS:,}"
            )
        by_number: dict[int, list[Any]] = defaultdict(list)
        with reported(self.file, _DAMAGED):
            for region in self._regions:
                by_number[int(region["category_id"])].append(region.get("segmentation"))
            if unknown := by_number.keys() - {segment.number for segment in self.named}:
                raise UnreadableFile(
                    self.file, f"has masks of the category {min(unknown)}, which it does not list; export it again"
                )
            for segment in self.named:
                if found := by_number.get(segment.number):
                    drawn = np.zeros(self._size, np.bool_)
                    for segmentation in found:
                        drawn |= self._mask(segmentation)
                    yield segment, drawn

    def _mask(self, segmentation: Any) -> NDArray[np.bool_]:
        if not segmentation:
            raise UnreadableFile(self.file, "has boxes without masks; export polygons or run lengths")
        if isinstance(segmentation, list):
            return self._outlined(segmentation)
        if [int(side) for side in segmentation["size"]] != list(self._size):
            raise UnreadableFile(self.file, "has a mask of another size than its picture; export it again")
        stored = segmentation["counts"]
        counts = np.asarray(_unpacked(stored) if isinstance(stored, str) else stored, np.int64)
        rows, columns = self._size
        if counts.ndim != 1 or counts.min() < 0 or counts.sum() != rows * columns:
            raise UnreadableFile(self.file, "has run lengths that do not fill the picture; export it again")
        drawn = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return np.asarray(drawn.reshape(columns, rows).T)

    def _outlined(self, polygons: Sequence[Any]) -> NDArray[np.bool_]:
        """The pixels of polygons, as pycocotools fills them; it would need memory for every pixel of an outline."""
        length = 0.0
        for polygon in polygons:
            points = np.asarray(polygon, np.float64).reshape(-1, 2)
            length += float(np.abs(points - np.roll(points, 1, axis=0)).max(1).sum())
            if len(points) < 3 or not length <= MAX_LENGTH:  # also NaN
                raise UnreadableFile(
                    self.file, "has a polygon with fewer than 3 points, or far outside its picture; export it again"
                )
        runs = coco_mask.frPyObjects([[float(value) for value in polygon] for polygon in polygons], *self._size)
        return np.asarray(coco_mask.decode(coco_mask.merge(runs)), np.bool_)


def _unpacked(text: str) -> list[int]:
    """The run lengths in COCO's compressed text: 5 bits a character, differences from the run before the last one.

    pycocotools would read a damaged text beyond its end, and leave pixels without a run undefined.
    """
    found: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a run is longer than any picture")
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        found.append(value + (found[-2] if len(found) > 2 else 0))
        value = shift = 0
    return found


def open_coco(file: Path) -> list[CocoPicture] | None:
    """The pictures of a COCO file; None if it is another JSON file. Raises UnreadableFile if it is damaged."""
    try:
        if packed.size(file) > MAX_BYTES:
            raise UnreadableFile(file, f"is larger than {MAX_BYTES >> 30} GiB, the maximum of a JSON file; split it")
        with packed.opened(file) as opened:
            found: Any = json.loads(opened.read())
    except (ValueError, RecursionError):
        return None
    except OSError as error:
        raise UnreadableFile(file, f"cannot be read: {error.strerror or type(error).__name__}") from error
    if not isinstance(found, dict) or not {"images", "annotations", "categories"} <= found.keys():
        return None
    with reported(file, _DAMAGED):
        named = tuple(Segment(int(row["id"]), str(row["name"])) for row in found["categories"])
        regions: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for region in found["annotations"]:
            regions[region["image_id"]].append(region)
        pictures = [CocoPicture(file, row, regions.pop(row["id"], []), named) for row in found["images"]]
    if regions:
        raise UnreadableFile(
            file,
            f"has masks of pictures that it does not list ({len(regions)} values of image_id). Add these to `images`, "
            "or remove the masks",
        )
    return pictures
