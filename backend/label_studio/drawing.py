"""Label maps as regions of Label Studio, in the project's own tags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from numpy.typing import NDArray

from backend.formats.pixels import mask_to_polygons
from backend.formats.shapes import mask_to_ellipses, mask_to_rectangles
from backend.label_config import LabelConfig, Tag
from backend.label_studio.masks import LABELS_IN_MASK, Mask
from backend.label_studio.raster import encode_bitmask, encode_brush


def region_id(origin: str, class_: int, part: int = 0) -> str:
    """The id of a predicted region: the same for the same prediction, and of no region that people or tools draw."""
    return str(uuid5(NAMESPACE_URL, f"scanqueue:{origin}:{class_}:{part}"))


def draw_mask(
    labelmap: Mask, labels: Sequence[str], config: LabelConfig, origin: str, *, exact: bool = False
) -> list[dict[str, Any]]:
    """Label Studio regions for a label map (H, W) in which class i + 1 is labels[i].

    Each label is drawn with its tag in the config, see `LabelConfig.tag_of`. A rectangle is the bounding box of a
    connected component, an ellipse the one with its area and moments. Empty classes, and classes whose label is no
    longer in the config, are skipped.

    origin  names what drew it, such as version and model; the ids of the regions depend on it
    exact   keep every corner of polygons, which are otherwise simplified to within about a pixel
    """
    height, width = labelmap.shape
    regions: list[dict[str, Any]] = []
    for index, label in enumerate(labels, start=1):
        if label not in config.labels:
            continue
        mask = labelmap == index
        if not mask.any():
            continue
        tag = config.tag_of(label)
        common = {
            "to_name": tag.to_name,
            "origin": "prediction",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
        }
        for part, shape in enumerate(_shapes(mask, tag, exact)):
            regions += ({"id": region_id(origin, index, part), **common, **own} for own in _results(shape, label, tag))
    return regions


def _shapes(mask: NDArray[np.bool_], tag: Tag, exact: bool) -> Iterator[dict[str, Any]]:
    """The values that draw a mask with a tag, without its label."""
    if tag.kind == "brush":
        yield {"format": "rle", "rle": encode_brush(mask)}
    elif tag.kind == "bitmask":
        yield {"imageDataURL": encode_bitmask(mask)}
    elif tag.kind == "polygon":
        for points in mask_to_polygons(mask, tolerance=0.0 if exact else 1.0):
            yield {"points": np.round(points, 3).tolist(), "closed": True}
    else:
        yield from mask_to_ellipses(mask) if tag.kind == "ellipse" else mask_to_rectangles(mask)


def _results(shape: dict[str, Any], label: str, tag: Tag) -> list[dict[str, Any]]:
    """One result with the label; two where a tag without labels draws and `<Labels>` names."""
    if not tag.labels_tag:
        kind = f"{tag.kind}labels"
        return [{"from_name": tag.name, "type": kind, "value": {**shape, kind: [label]}}]
    return [
        {"from_name": tag.name, "type": tag.kind, "value": shape},
        {"from_name": tag.labels_tag, "type": "labels", "value": {**shape, "labels": [label]}},
    ]


def imported_result(result: Sequence[Mapping[str, Any]], labels: Sequence[str] | None) -> list[dict[str, Any]]:
    """The regions of `draw_mask` as those of an annotation that was made from a mask file.

    labels  those that the file says something about, if it is not all of the config; see `could_draw`
    """
    meta = {} if labels is None else {"meta": {LABELS_IN_MASK: list(labels)}}
    return [{**region, "origin": "manual", **meta} for region in result]
