"""Label Studio's annotations as label maps, and label maps as regions. Pure functions on arrays.

The law: an annotation is read only if everything in it that could be a mask was understood. Otherwise UnreadableMask
says what was not, and how to cure it without losing work. What was not understood never becomes background.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnknownLabels, UnreadableMask
from backend.facts import round_of
from backend.formats.pixels import polygon_to_mask
from backend.formats.shapes import ellipse_to_mask, full_area, rectangle_to_mask
from backend.label_config import KINDS, LABEL_LENGTH, LabelConfig, Renames
from backend.label_studio.listing import Annotation
from backend.label_studio.raster import decode_bitmask, decode_brush

NOT_DRAWN = (  # result types that say something about a region or the image, and draw nothing
    *("choices", "textarea", "rating", "taxonomy", "number", "datetime", "pairwise", "ranker", "relation"),
    *("text", "chat"),
)
RLE_BYTES = 16 * 2**20  # maximum size of one brush region; pure noise on 4096 x 4096 pixels needs 14.5 MiB
REGION_PIXELS = 2 * 10**10  # maximum of regions x pixels per annotation: half a minute of drawing
WITHIN = 0.95  # share of a region that later ones of other labels may cover before it counts as lying within them
THIN = 8.0  # pixels by which the area of a thin shape may differ from the number of its pixels
PIXELS = ("brush", "bitmask")  # kinds that store pixels; the others store outlines
Mask = NDArray[np.uint8]
LABELS_IN_MASK = "labels_in_mask"  # in the meta of an imported region


@dataclass(frozen=True)
class Region:
    """A region that draws a mask. `number` counts the results of the annotation from 1; `label` is in the config."""

    number: int
    kind: str
    label: str
    value: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"region {self.number} ({self.label!r})"


def read_mask(
    result: Sequence[Mapping[str, Any]],
    config: LabelConfig,
    height: int,
    width: int,
    renames: Renames | None = None,
) -> tuple[Mask, list[str]]:
    """The label map (height, width) drawn by an annotation's regions on the config's image, and remarks about it.

    Class i + 1 is `config.labels[i]`, 0 is background. Where regions overlap, the later one wins, except over a region
    that lies within later ones: a tumour stays visible in the liver that was drawn over it. Regions of other images
    are left out. `image_rotation` needs nothing: Label Studio stores coordinates of the image as it is in its file.

    Raises UnreadableMask if anything that could be a mask was not understood, UnknownLabels if only labels are not.
    """
    if not isinstance(result, Sequence) or not all(isinstance(region, Mapping) for region in result):
        raise UnreadableMask("the annotation is not a list of regions. Import it again in Label Studio's format.")
    try:
        found, remarks = _regions(result, config, renames or Renames(), (height, width))
    except RecursionError:
        raise UnreadableMask("its regions are nested too deeply. Import it again in Label Studio's format.") from None
    if len(found) * height * width > REGION_PIXELS:
        raise UnreadableMask(
            f"the annotation has {len(found):,} regions; at most {REGION_PIXELS // (height * width):,} can be drawn on "
            f"{width} x {height} pixels. Merge regions of the same label."
        )
    return _painted(found, config, height, width, remarks), remarks


def read_annotation(
    found: Annotation, config: LabelConfig, height: int, width: int, renames: Renames | None = None
) -> tuple[Mask, list[str]]:
    """`read_mask` of an annotation, unless nobody drew it.

    "Create Annotations From Predictions" makes an annotation of every prediction, also of those without a mask. Such an
    annotation counts once somebody has opened it and pressed Update; one made of a mask of others counts at once.
    "Propagate annotations" copies one annotation to many tasks; each copy counts once it was opened and updated.
    """
    mask, remarks = read_mask(found.result, config, height, width, renames)
    if found.copied:
        raise UnreadableMask(
            "it was copied from another task's annotation, so nobody has drawn it on this scan. Open the task, correct "
            "its regions, and press Update."
        )
    if found.unseen and (not mask.any() or round_of(found.shown_version) is not None):
        raise UnreadableMask(
            'it was made with "Create Annotations From Predictions", so nobody has looked at it. Open the task, '
            "correct its regions if necessary, and press Update."
        )
    return mask, remarks


# -- which regions draw a mask -----------------------------------------------------------------


def _regions(
    result: Sequence[Mapping[str, Any]], config: LabelConfig, renames: Renames, size: tuple[int, int]
) -> tuple[list[Region], list[str]]:
    """The regions that draw on the config's image, in order, and remarks."""
    found: list[Region] = []
    remarks: list[str] = []
    unknown: dict[str, tuple[int, str]] = {}
    points = 0
    together = _labels_by_region(result, config)
    shaped = {_key(r) for r in result if _kind(r) not in ("", "labels")}
    for number, region in enumerate(result, start=1):
        kind = _kind(region)
        if not kind or not _on_image(region, config, number) or (kind == "labels" and _key(region) in shaped):
            continue
        if kind == "keypoint" or region.get("from_name") in config.prompts or _is_open_path(kind, region):
            points += 1
            continue
        name, label = _one_label(_labels(region), together.get(_key(region), ()), number, config, renames)
        if not label:
            remarks.append(f"region {number} was left out: the label {name[:80]!r} is no longer used.")
        elif label not in config.labels:
            unknown.setdefault(label, (number, name))
        else:
            one = Region(number, _drawn_kind(kind, region, number, label), label, region["value"])
            _check_size(one, region, *size)
            found.append(one)
    if unknown:
        label, (number, name) = next(iter(unknown.items()))
        later = "" if label == name else f", later called {label[:80]!r},"
        raise UnknownLabels(
            f"region {number} has the label {name[:80]!r}{later or ','} which the label config does not have. If it "
            "was renamed, say so on the page or with `scanqueue labels rename`; otherwise add it to the config again.",
            tuple(unknown),
        )
    if points and not found:
        raise UnreadableMask(
            "the annotation has only key points or prompts of a smart tool, and these are not masks. Draw the mask "
            "beside them and press Update; or, if the scan shows nothing, remove them and press Update."
        )
    return found, remarks


def _shown(value: Any) -> str:
    """A value as a few words for a message."""
    return repr(value[:80]) if isinstance(value, str) else f"a {type(value).__name__}"


def _kind(region: Mapping[str, Any]) -> str:
    """What a result draws: its type without "labels"; "labels" for the labels of another; "" for nothing."""
    kind = str(region.get("type") or "").lower()
    if kind in NOT_DRAWN:
        return ""
    kind = kind if kind == "labels" else kind.removesuffix("labels")
    return "brush" if kind == "magicwand" else kind or "unknown"


def _on_image(region: Mapping[str, Any], config: LabelConfig, number: int) -> bool:
    """Whether a region is on the config's image."""
    name = region.get("to_name")
    objects = config.objects or (config.image,)
    if region.get("item_index"):
        raise UnreadableMask(
            f"region {number} is on another image of a list, of which scanqueue reads only the first. Point the "
            'label config to one image, such as <Image name="image" value="$images[0]"/>.'
        )
    if name is None and len(objects) == 1:
        return True
    if name not in objects:
        raise UnreadableMask(
            f"region {number} is on {_shown(name)}, which the label config does not have. Give the <Image> that name "
            "again in Settings > Labeling Interface > Code."
        )
    return bool(name == config.image)


def _labels(region: Mapping[str, Any]) -> list[str]:
    """The labels in a result itself, without empty ones."""
    value = region.get("value")
    lists = [v for k, v in value.items() if k.endswith("labels")] if isinstance(value, Mapping) else []
    names = [str(name)[:LABEL_LENGTH] for found in lists if isinstance(found, list) for name in found]
    return list(dict.fromkeys(filter(None, names)))


def _key(region: Mapping[str, Any]) -> str:
    """The same for the results of one region; "" for a result without an id, which is a region by itself."""
    return "" if region.get("id") is None else repr((region["id"], region.get("to_name")))


def _labels_by_region(result: Sequence[Mapping[str, Any]], config: LabelConfig) -> dict[str, list[str]]:
    """The labels in all results of each region.

    Not those of prompts: an accepted suggestion also gets the label that was chosen in a smart tool at that moment.
    """
    found: dict[str, list[str]] = {}
    for region in result:
        if (key := _key(region)) and _kind(region) != "keypoint" and region.get("from_name") not in config.prompts:
            found.setdefault(key, []).extend(_labels(region))
    return found


def _one_label(
    own: Sequence[str], together: Sequence[str], number: int, config: LabelConfig, renames: Renames
) -> tuple[str, str]:
    """(name, present name) of a region's label; the latter is "" if it is no longer used, and may be unknown.

    own       the labels in the result that draws the region
    together  those in all results of the region but prompts: a label of a tag of its own is in another result
    """
    names = own or list(dict.fromkeys(together))
    if not names:
        raise UnreadableMask(f"region {number} has no label. Open the task, give it one and press Update.")
    masks = {label for name in together if (label := _present_name(name, config, renames)) in config.labels}
    if len(names) > 1 or len(masks) > 1:
        several = names if len(names) > 1 else sorted(masks)
        raise UnreadableMask(
            f"region {number} has {len(several)} labels ({', '.join(repr(name[:80]) for name in several[:4])}), but a "
            "pixel can have only one. Open the task, leave one of them and press Update."
        )
    return names[0], _present_name(names[0], config, renames)


def _present_name(name: str, config: LabelConfig, renames: Renames) -> str:
    label = name if name in config.labels else config.aliases.get(name, name)
    return label if label in config.labels else renames.label(label)


def _is_open_path(kind: str, region: Mapping[str, Any]) -> bool:
    value = region.get("value")
    return kind == "vector" and isinstance(value, Mapping) and not value.get("closed")


def _drawn_kind(kind: str, region: Mapping[str, Any], number: int, label: str) -> str:
    """One of KINDS, for a region with a label of the config."""
    where = f"region {number} ({label!r})"
    value = region.get("value")
    if not isinstance(value, Mapping):
        raise UnreadableMask(f"{where} has no value. Import the annotation again in Label Studio's format.")
    if kind == "labels":  # without the tag that drew it: the value tells
        keys = {
            "rle": "brush",
            "imageDataURL": "bitmask",
            "points": "polygon",
            "radiusX": "ellipse",
            "width": "rectangle",
        }
        kind = next((found for key, found in keys.items() if key in value), kind)
    if kind not in KINDS:
        raise UnreadableMask(
            f"{where} has the type {str(region.get('type'))[:40]!r}, which scanqueue cannot read as a mask. Use a tag "
            "that it reads: BrushLabels, BitmaskLabels, PolygonLabels, EllipseLabels or RectangleLabels."
        )
    if kind == "polygon" and value.get("closed") is False:
        raise UnreadableMask(f"{where} is a polygon that is not closed. Open the task, close it and press Update.")
    return kind


def _check_size(one: Region, region: Mapping[str, Any], height: int, width: int) -> None:
    """Shapes in percent need no size; if they have one, it must be that of the image, as the pixels of a brush."""
    size = (region.get("original_height"), region.get("original_width"))
    if size != (height, width) and (one.kind in KINDS[:1] or size != (None, None)):
        raise UnreadableMask(
            f"{one.where} was drawn on {repr(size[1])[:20]} x {repr(size[0])[:20]} pixels, but the image has {width} x "
            f"{height}. If the image was replaced, import the former one again; if the regions fit the present "
            "image, open the task and press Update."
        )


# -- painting ----------------------------------------------------------------------------------


def _painted(found: Sequence[Region], config: LabelConfig, height: int, width: int, remarks: list[str]) -> Mask:
    """The label map. Masks are decoded again where two are needed: together they may take gigabytes."""
    classes = {label: i + 1 for i, label in enumerate(config.labels)}
    labelmap = np.zeros((height, width), np.uint8)
    owner = np.zeros((height, width), np.int32)  # 1 + the place of the region that was painted last; 0: none
    areas: list[int] = []

    def paint(place: int, mask: NDArray[np.bool_]) -> None:
        owner[mask], labelmap[mask] = place + 1, classes[found[place].label]

    def lost(place: int) -> tuple[float, int]:
        """The share of a region's pixels that have another label, and the area of the largest region in its place."""
        inside = _decoded(found[place], height, width)
        other = inside & (labelmap != classes[found[place].label])
        return float(other.sum() / areas[place]), max((areas[o - 1] for o in np.unique(owner[other])), default=0)

    def covered() -> list[int]:
        visible = np.bincount(owner.ravel(), minlength=len(found) + 1)[1:]
        return [place for place, area in enumerate(areas) if visible[place] < area / 2]

    for place, one in enumerate(found):
        mask = _decoded(one, height, width)
        areas.append(int(mask.sum()))
        if remark := _outside(one, areas[-1], height, width):
            remarks.append(remark)
        paint(place, mask)
    if len({one.label for one in found}) < 2:
        return labelmap
    shares = {place: lost(place) for place in covered()}
    within = [p for p, (share, largest) in shares.items() if share >= WITHIN and largest > areas[p]]
    for place in sorted(within, key=lambda p: (-areas[p], p)):
        paint(place, _decoded(found[place], height, width))
    for place in covered():
        if (share := lost(place)[0]) > 0.5:
            remarks.append(
                f"{found[place].where} is covered by regions of other labels: {share:.0%} of it does not count. Where "
                "regions overlap, the later one counts."
            )
    return labelmap


def _outside(one: Region, area: int, height: int, width: int) -> str:
    """A remark on a shape of which less than half is on the image; `area` is the number of its pixels there.

    Raises UnreadableMask if none of it is: often its coordinates are pixels or shares instead of percent.
    """
    if one.kind in PIXELS:
        return ""
    if not area:
        raise UnreadableMask(
            f"{one.where} covers no pixel: it is outside the image, or smaller than a pixel. If it was imported, its "
            "coordinates may not be in percent of the image: import it again. Otherwise, correct it in Label Studio."
        )
    if area >= full_area(one.kind, one.value, height, width) / 2 - THIN:
        return ""
    return f"{one.where} is mostly outside the image, and only the part on the image counts."


def _decoded(one: Region, height: int, width: int) -> NDArray[np.bool_]:
    shapes: Mapping[str, Callable[[Mapping[str, Any], int, int], NDArray[np.bool_]]] = {
        "rectangle": rectangle_to_mask,
        "ellipse": ellipse_to_mask,
        "polygon": lambda value, h, w: polygon_to_mask(value.get("points") or (), h, w),
    }
    try:
        if one.kind in shapes:
            return shapes[one.kind](one.value, height, width)
    except UnreadableMask as error:
        raise UnreadableMask(f"{one.where}: {error}") from error
    data: Any = one.value.get("rle" if one.kind == "brush" else "imageDataURL")
    if isinstance(data, list | str) and len(data) > RLE_BYTES:
        raise UnreadableMask(
            f"{one.where} has a {one.kind} mask of {len(data):,} bytes; at most {RLE_BYTES:,} are read. Open the task, "
            "smooth the region and press Update."
        )
    try:
        if one.kind == "brush" and isinstance(data, list):
            return decode_brush(bytes(data), height, width)
        if one.kind == "bitmask" and isinstance(data, str):
            return decode_bitmask(data, height, width)
        raise ValueError("no data")
    except (ValueError, TypeError) as error:
        raise UnreadableMask(
            f"{one.where} has a {one.kind} mask that does not fit its {width} x {height} pixels. Restore it "
            "from where it was imported or exported; if it was damaged in Label Studio, draw it again."
        ) from error


def could_draw(found: Annotation, config: LabelConfig) -> tuple[str, ...]:
    """The labels that an annotation says something about: all of the config, or those of the mask file that it was made
    from, until somebody updates it. Whether the scan shows one of the others is unknown."""
    if found.lead_time is None:
        for region in found.result:
            meta = region.get("meta") if isinstance(region, Mapping) else None
            labels = meta.get(LABELS_IN_MASK) if isinstance(meta, Mapping) else None
            if isinstance(labels, list):
                return tuple(str(label) for label in labels)
    return config.labels
