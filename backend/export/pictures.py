"""Writes masks as images: one PNG each, and all of them in one COCO file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from backend.export.collect import Slice
from backend.export.manifest import Files, Sections
from backend.formats.pixels import classes_in

PNG, COCO = "png", "coco"


class Pictures:
    """Writes the masks of annotations or of a model, one image at a time.

    place  prefix of the file names: "" or a folder with a trailing "/"
    facts  added to each file's row in the manifest
    """

    def __init__(
        self, files: Files, place: str, labels: Sequence[str], formats: frozenset[str], facts: Mapping[str, Any]
    ) -> None:
        self._files = files
        self._place = place
        self._labels = labels
        self._formats = formats
        self._facts = facts
        self._coco = Sections(files.path(f"{place}coco.json"), ("images", "annotations")) if COCO in formats else None

    def add(self, one: Slice, mask: NDArray[np.uint8]) -> str:
        """Write the class numbers of an image (rows, columns). Returns the name of the PNG, "" if PNG is not exported.

        PNG: 8-bit greyscale, pixel value = class number, no metadata. No palette: OpenCV and others would read
        colours instead of class numbers.
        COCO: one annotation per class in the mask, as compressed run lengths. An image without annotations was
        labelled as empty.
        """
        written = ""
        if PNG in self._formats:
            written = f"{self._place}png/{one.name}"
            ok, data = cv2.imencode(".png", mask)
            assert ok
            self._files.put(written, data.tobytes(), PNG, **self._facts, **one.which)
        if self._coco is not None:
            height, width = mask.shape
            names = {"file_name": one.name, "width": width, "height": height}
            group = {"group": one.group} if one.group else {}
            self._coco.add("images", {"id": one.task, **names, **one.which, **group})
            for number in classes_in(mask):
                runs = coco_mask.encode(np.asfortranarray(mask == number, dtype=np.uint8))
                region = {
                    "id": self._coco.counts["annotations"] + 1,
                    "image_id": one.task,
                    "category_id": number,
                    "segmentation": {"size": [height, width], "counts": runs["counts"].decode("ascii")},
                    "area": int(coco_mask.area(runs)),
                    "bbox": [float(side) for side in coco_mask.toBbox(runs)],
                    "iscrowd": 0,
                }
                self._coco.add("annotations", region)
        return written

    def finish(self, info: Mapping[str, Any]) -> None:
        if self._coco is None:
            return
        categories = [{"id": n, "name": name, "supercategory": ""} for n, name in enumerate(self._labels, start=1)]
        self._coco.write({"info": dict(info), "licenses": [], "categories": categories})
        self._files.written(f"{self._place}coco.json", COCO, **self._facts)

    def close(self) -> None:
        if self._coco is not None:
            self._coco.close()
