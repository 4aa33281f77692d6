"""COCO files: one JSON file with the masks of many pictures, as polygons or run lengths."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from backend.errors import UnreadableFile
from backend.formats import Segment, packed
from backend.formats.failures import reported

_DAMAGED = "is not a COCO file: a row of its images, categories or annotations is damaged ({error}). Export it again"


class CocoPicture:
    """The masks of one picture in a COCO file; `path` is the picture's, relative to the folder of the file."""

    def __init__(
        self, file: Path, row: Mapping[str, Any], regions: list[Mapping[str, Any]], named: tuple[Segment, ...]
    ) -> None:
        self.file = file
        self.path = file.parent / PurePosixPath(str(row["file_name"]))
        self.named = named
        self._size = int(row["height"]), int(row["width"])
        self._regions = regions

    def read(self) -> Iterator[tuple[Segment, NDArray[np.bool_]]]:
        """Each category that is drawn, as (rows, columns) booleans. Raises UnreadableFile."""
        by_number: dict[int, list[Any]] = defaultdict(list)
        with reported(self.file, _DAMAGED):
            for region in self._regions:
                by_number[int(region["category_id"])] += self._runs(region["segmentation"])
            for segment in self.named:
                if runs := by_number.get(segment.number):
                    yield segment, np.asarray(coco_mask.decode(coco_mask.merge(runs)), np.bool_)

    def _runs(self, segmentation: Any) -> list[Any]:
        if isinstance(segmentation, list):
            return list(coco_mask.frPyObjects(segmentation, *self._size))
        if [int(side) for side in segmentation["size"]] != list(self._size):
            raise UnreadableFile(self.file, "has a mask of another size than its picture; export it again")
        packed_already = isinstance(segmentation["counts"], str)
        return [segmentation if packed_already else coco_mask.frPyObjects(segmentation, *self._size)]


def open_coco(file: Path) -> list[CocoPicture] | None:
    """The pictures of a COCO file; None if it is another JSON file. Raises UnreadableFile if it is damaged."""
    try:
        with packed.opened(file) as opened:
            found: Any = json.loads(opened.read())
    except ValueError:
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
        return [CocoPicture(file, row, regions[row["id"]], named) for row in found["images"]]
