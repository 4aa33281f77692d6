"""What a smart tool of Label Studio sends with /predict: clicks, boxes and strokes, as seeds of a mask.

Nothing is trusted: what is not understood is left out, and no input raises.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.correction.prompt_tags import PromptTags
from backend.errors import UnreadableMask
from backend.formats.pixels import polygon_to_mask
from backend.formats.shapes import ellipse_to_mask, rectangle_to_mask
from backend.label_config import LabelConfig
from backend.label_studio.masks import RLE_BYTES, read_mask
from backend.label_studio.raster import decode_bitmask, decode_brush
from backend.label_studio.strokes import painted
from backend.learning.geodesic import Seeds

MOST = 200  # prompts and masks of the image; a person draws fewer
SHAPES = ("rectangle", "ellipse", "polygon")
Mask = NDArray[np.bool_]


def prompts(
    context: Any,
    config: LabelConfig,
    height: int,
    width: int,
    *,
    tags: PromptTags | None = None,
    negative: Collection[str] = (),
) -> dict[str, Seeds]:
    """The seeds of each label of the config that `params.context` has prompts for, on a scan (height, width).

    tags      see `is_prompt`; landmarks and masks of other tags are no prompts
    negative  ids of the key points that do not say so themselves, see `signs`

    Strokes of a brush come together with the masks of their label: the last one is the stroke, the others are the mask
    so far.
    """
    found: dict[str, Seeds] = {}
    pixels: dict[str, list[tuple[Mask, bool]]] = {}
    here = [region for region in _regions(context) if _on_image(region, config)]
    together = _names_by_region(here)
    for region in [one for one in _first_results(here) if is_prompt(one, tags)][-MOST:]:
        kind, label = _kind(region), _label(_names(region) or together.get(_id(region), ()), config, tags)
        value = region.get("value")
        if not label or not isinstance(value, Mapping):
            continue
        seeds = found.setdefault(label, Seeds())
        positive = region["is_positive"] is not False if "is_positive" in region else _id(region) not in negative
        if kind == "keypoint":
            if (point := _point(value, height, width)) is not None:
                seeds.click(point, inside=positive)
        elif (mask := _mask(kind, value, height, width)) is None or not mask.any():
            continue
        elif kind not in SHAPES:
            pixels.setdefault(label, []).append((mask, positive))
        else:
            (seeds.boxes if positive else seeds.drawn_out).append(mask)
    for label, strokes in pixels.items():
        *before, (stroke, positive) = strokes
        (found[label].drawn_in if positive else found[label].drawn_out).append(stroke)
        if masks := [mask for mask, _ in before]:
            found[label].current = np.logical_or.reduce(masks)
    return {label: seeds for label, seeds in found.items() if seeds.given or seeds.outside or seeds.drawn_out}


def is_prompt(region: Mapping[str, Any], tags: PromptTags | None) -> bool:
    """Whether a region of the context is a prompt: Label Studio also sends landmarks and masks of its type and label.

    tags  those of the label config; None if it could not be read
    """
    kind = _kind(region)
    if kind in SHAPES and str(region.get("origin")).startswith("prediction"):
        return False
    if kind not in (*SHAPES, "keypoint") or "is_positive" in region or tags is None:
        return True
    return region.get("from_name") not in tags.others


def signs(context: Any, task: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Id, and whether it is inside, of each key point that says it, here or where Label Studio has saved it.

    Where a page was opened again, the key points that were left on it no longer say it.
    """
    saved = [region for result in _results(task, ()) for region in result if isinstance(region, Mapping)]
    for region in (*saved, *_regions(context)):
        if (name := _id(region)) and isinstance(positive := region.get("is_positive"), bool):
            yield name, positive


def shown_mask(
    task: Mapping[str, Any],
    label: str,
    config: LabelConfig,
    height: int,
    width: int,
    versions: Sequence[str],
    context: Any = None,
    *,
    tags: PromptTags | None = None,
    blind: bool = False,
) -> Mask | None:
    """The mask of a label that the annotator sees: of the draft, else the annotation, else the prediction.

    task      as Label Studio sends it: with the drafts of who clicked, and everybody's annotations
    versions  model versions whose prediction is shown, the first one that is there
    context   the prompts: a draft has them too, and where they were before they were moved
    tags      as for `prompts`
    blind     several people annotate each scan: an annotation counts only if a region of the context is from it, as
              it may be that of another reader
    """
    asked = {_id(region) for region in _first_results(_regions(context)) if is_prompt(region, tags)} - {""}
    there = {_id(region) for region in _regions(context)} - {""}
    for result in _results(task, versions, there, blind=blind):
        regions = [r for r in result if isinstance(r, Mapping) and _kind(r) != "keypoint" and _id(r) not in asked]
        regions = [r for r in regions if _on_image(r, config) and r.get("from_name") not in config.prompts]
        named = [r for r in regions if _label(_names(r), config) == label]
        try:
            mask, _ = read_mask([painted(one, height, width) for one in named], config, height, width)
        except (UnreadableMask, ValueError, TypeError):
            return None
        return np.asarray(mask == config.labels.index(label) + 1)
    return None


def _results(
    task: Mapping[str, Any], versions: Sequence[str], there: Collection[str] = (), *, blind: bool = False
) -> Iterator[list[Any]]:
    """Regions on the screen, the likeliest first. `there`: ids of some that are."""
    for name in ("drafts", "annotations"):
        rows = task.get(name)
        rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        rows = [row for row in rows if isinstance(row.get("result"), list) and not row.get("was_cancelled")]
        dated = [(_any_of(row["result"], there), str(row.get("updated_at") or row.get("created_at"))) for row in rows]
        for place in sorted(range(len(rows)), key=dated.__getitem__, reverse=True):
            if name == "drafts" or not blind or dated[place][0]:
                yield rows[place]["result"]
    rows = task.get("predictions")
    by_version = {
        str(row.get("model_version")): row["result"]
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, Mapping) and isinstance(row.get("result"), list)
    }
    yield from (by_version[version] for version in versions if version in by_version)


def _any_of(result: Sequence[Any], ids: Collection[str]) -> bool:
    return any(isinstance(region, Mapping) and _id(region) in ids for region in result)


def _regions(context: Any) -> list[Mapping[str, Any]]:
    result = context.get("result") if isinstance(context, Mapping) else None
    return [region for region in result if isinstance(region, Mapping)] if isinstance(result, list) else []


def _on_image(region: Mapping[str, Any], config: LabelConfig) -> bool:
    """Whether a region is on the image of the masks, not on that of another tag or on a later one of a list."""
    return region.get("to_name") in (None, config.image) and not region.get("item_index")


def _kind(region: Mapping[str, Any]) -> str:
    kind = region.get("type")
    return kind.lower().removesuffix("labels") if isinstance(kind, str) else ""


def _id(region: Mapping[str, Any]) -> str:
    """ "" for a region without one."""
    name = region.get("id")
    return name if isinstance(name, str) else ""


def _names(region: Mapping[str, Any]) -> list[str]:
    """The labels in a result itself."""
    value = region.get("value")
    lists = [v for k, v in value.items() if k.endswith("labels")] if isinstance(value, Mapping) else []
    return [name for names in lists if isinstance(names, list) for name in names if isinstance(name, str)]


def _names_by_region(regions: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The labels in the results of type "labels": those of a tag without labels of its own."""
    return {_id(region): _names(region) for region in regions if region.get("type") == "labels" and _id(region)}


def _first_results(regions: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The result of each region that draws it, without those of the other tags whose label was chosen, too."""
    tags: dict[str, Any] = {}
    for region in regions:
        if region.get("type") != "labels" and (
            not _id(region) or tags.setdefault(_id(region), region.get("from_name")) == region.get("from_name")
        ):
            yield region


def _label(names: Sequence[str], config: LabelConfig, tags: PromptTags | None = None) -> str:
    """The first of these labels that the config has, by its own name; "" for none."""
    aliases = {alias: name for name, alias in config.aliases.items()}
    for name in names:
        for known in (name, tags.values.get(name, name) if tags else name):
            for label in (known, config.aliases.get(known, known), aliases.get(known, known)):
                if label in config.labels:
                    return label
    return ""


def _point(value: Mapping[str, Any], height: int, width: int) -> tuple[float, float] | None:
    x, y = value.get("x"), value.get("y")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < math.inf for v in (x, y)):
        return None
    assert isinstance(x, int | float)
    assert isinstance(y, int | float)
    return min(max(y, 0), 100) * height / 100, min(max(x, 0), 100) * width / 100


def _mask(kind: str, value: Mapping[str, Any], height: int, width: int) -> Mask | None:
    """The pixels of a shape or stroke; None if it cannot be read."""
    try:
        if kind == "rectangle":
            return rectangle_to_mask(value, height, width)
        if kind == "ellipse":
            return ellipse_to_mask(value, height, width)
        if kind == "polygon":
            return polygon_to_mask(value.get("points") or (), height, width)
        if kind == "bitmask":
            return decode_bitmask(str(value.get("imageDataURL")), height, width)
        rle = value.get("rle")
        if isinstance(rle, list) and len(rle) <= RLE_BYTES:
            return decode_brush(bytes(rle), height, width)
    except (UnreadableMask, ValueError, TypeError, OverflowError):
        pass
    return None
