"""Label Studio's regions as label maps and back: brush run lengths and polygons. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableMask
from backend.formats.pixels import mask_to_polygons, merge_labels, polygon_to_mask
from backend.label_config import LabelConfig

DRAWN = ("brushlabels", "polygonlabels")  # region types that draw a mask
_LENGTH_BITS = np.array([3, 4, 8, 16])  # bits of the four encodings of a run length
_RUN_LIMITS = np.array([8, 16, 256])  # longest run of the first three encodings
_RUN = 2**16  # longest run of the fourth encoding; longer ones are split
RLE_BYTES = 16 * 2**20  # maximum size of one brush region; pure noise on 4096 x 4096 pixels needs 14.5 MiB
REGION_PIXELS = 2 * 10**10  # maximum of regions x pixels per annotation: half a minute of drawing
Mask = NDArray[np.uint8]


def read_mask(
    result: Sequence[Mapping[str, Any]], config: LabelConfig, height: int, width: int
) -> tuple[Mask, list[str]]:
    """The label map (height, width) drawn by an annotation's regions, and warnings about it.

    Class i + 1 is `config.labels[i]`, 0 is background; where regions overlap, the later one wins. Brush and polygon
    regions may be mixed. Regions whose label is no longer in the config are skipped with a warning. Raises
    UnreadableMask if a region does not fit the image.
    """
    classes = {label: i + 1 for i, label in enumerate(config.labels)}
    remarks: list[str] = []
    if not isinstance(result, Sequence) or not all(isinstance(region, Mapping) for region in result):
        raise UnreadableMask("the annotation is not a list of regions. Delete it and annotate the task again.")
    drawn = [(i, r) for i, r in enumerate(result, start=1) if str(r.get("type")).lower() in DRAWN]
    if len(drawn) * height * width > REGION_PIXELS:
        raise UnreadableMask(
            f"the annotation has {len(drawn):,} regions; at most {REGION_PIXELS // (height * width):,} can be drawn on "
            f"{width} x {height} pixels. Merge regions of the same label."
        )

    def masks() -> Iterator[tuple[int, NDArray[np.bool_]]]:
        for number, region in drawn:
            kind = str(region["type"]).lower()
            value = region.get("value")
            names = value.get(kind) if isinstance(value, Mapping) else None
            label = str(names[0])[:80] if isinstance(names, list) and names else "(no label)"
            if not isinstance(value, Mapping) or label not in classes:
                remarks.append(
                    f"region {number} was skipped: its label {label!r} is not in the label config. "
                    "Add the label again, or relabel the region."
                )
                continue
            where = f"region {number} ({label!r})"
            size = (region.get("original_height"), region.get("original_width"))
            if size != (height, width):
                raise UnreadableMask(
                    f"{where} was drawn on {str(size[1])[:20]} x {str(size[0])[:20]} pixels, but the image has "
                    f"{width} x {height}. Delete the region and draw it again."
                )
            if kind == "brushlabels":
                yield classes[label], _decode_brush(value.get("rle"), height, width, where)
            else:
                try:
                    yield classes[label], polygon_to_mask(value.get("points") or (), height, width)
                except UnreadableMask as error:
                    raise UnreadableMask(f"{where}: {error}") from error

    return merge_labels(masks(), height, width), remarks  # one mask at a time: together they may take gigabytes


def _decode_brush(rle: Any, height: int, width: int, where: str) -> NDArray[np.bool_]:
    if isinstance(rle, list) and len(rle) > RLE_BYTES:
        raise UnreadableMask(
            f"{where} has a brush mask of {len(rle):,} bytes; at most {RLE_BYTES:,} are read. "
            "Delete the region and draw it again."
        )
    try:
        if not isinstance(rle, list):
            raise ValueError
        return decode_brush(bytes(rle), height, width)
    except (ValueError, TypeError) as error:
        raise UnreadableMask(
            f"{where} has a brush mask that does not fit its {width} x {height} pixels. "
            "Delete the region and draw it again."
        ) from error


def decode_brush(rle: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """The mask (height, width) encoded by Label Studio's run lengths: all pixels that are not fully transparent.

    Same result as `label_studio_sdk`'s `brush.decode_rle`, which takes seconds for a noisy megapixel. Raises
    ValueError if the data are damaged or of another size; the size is checked before anything is allocated.
    """
    count, bits = height * width * 4, len(rle) * 8
    if len(rle) < 8 or int.from_bytes(rle[:4], "big") != count:
        raise ValueError("another size")
    head = int.from_bytes(rle[4:8], "big")
    if head >> 27 != 7:
        raise ValueError("the values are not bytes")
    sizes = [(head >> shift & 15) + 1 for shift in (23, 19, 15, 11)]
    flat = np.empty(count, np.uint8)
    data = rle + bytes(8)
    at, done = 53, 0
    while done < count:
        window = int.from_bytes(data[at >> 3 : (at >> 3) + 8], "big") << (at & 7)  # at least 57 bits from `at` on
        size = sizes[window >> 61 & 3]
        length = (window >> (61 - size) & ((1 << size) - 1)) + 1
        end = done + length
        after = at + 3 + size
        at = after + (8 if window >> 63 & 1 else 8 * length)
        if at > bits or end > count:
            raise ValueError("truncated, or longer than declared")
        if window >> 63 & 1:
            flat[done:end] = window >> (53 - size) & 255
        else:
            values = int.from_bytes(data[after >> 3 : (at + 7) >> 3], "big") >> (-at & 7)
            flat[done:end] = np.frombuffer((values & ((1 << 8 * length) - 1)).to_bytes(length, "big"), np.uint8)
        done = end
    return np.asarray(flat[3::4].reshape(height, width) > 0)


def draw_mask(labelmap: Mask, labels: Sequence[str], config: LabelConfig, version: str) -> list[dict[str, Any]]:
    """Label Studio regions for a label map (H, W) in which class i + 1 is labels[i].

    Each label is drawn with its tag in the config, brush or polygon. Empty classes, and classes whose label is no
    longer in the config, are skipped.
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
            "from_name": tag.name,
            "to_name": tag.to_name,
            "type": f"{tag.kind}labels",
            "origin": "prediction",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
        }
        if tag.kind == "brush":
            rle = encode_brush(mask)
            value: dict[str, Any] = {"format": "rle", "rle": rle, "brushlabels": [label]}
            regions.append({"id": f"{version}-{index}", **common, "value": value})
        else:
            for part, points in enumerate(mask_to_polygons(mask)):
                value = {"points": np.round(points, 3).tolist(), "closed": True, "polygonlabels": [label]}
                regions.append({"id": f"{version}-{index}-{part}", **common, "value": value})
    return regions


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Label Studio's run lengths for a mask (H, W); pixels inside are fully opaque.

    Byte for byte what `label_studio_sdk`'s `brush.mask2rle` returns for 0 and 255, but vectorized.
    Format: https://github.com/thi-ng/umbrella/blob/develop/packages/rle-pack/src/index.ts
    """
    flat = mask.astype(bool).ravel()
    last = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)  # last pixel of each run
    lengths = np.diff(last, prepend=-1) * 4  # a pixel is four equal values
    values = flat[last] * 255
    kinds = np.searchsorted(_RUN_LIMITS, lengths)
    pieces = -(-lengths // _RUN)  # all pieces of a run but the last are full
    rests = lengths - (pieces - 1) * _RUN
    lengths = np.full(pieces.sum(), _RUN)
    lengths[np.cumsum(pieces) - 1] = rests
    kinds, values = np.repeat(kinds, pieces), np.repeat(values, pieces)

    # one code per run, left-aligned in 32 bits: "repeated", kind, length - 1, value
    bits = _LENGTH_BITS[kinds]
    codes = (((4 + kinds) << bits | (lengths - 1)) << 8) | values
    widths = 3 + bits + 8
    padded = np.unpackbits((codes << (32 - widths)).astype(">u4").view(np.uint8)).reshape(-1, 32)
    runs = padded[np.arange(32) < widths[:, None]]
    head = np.frombuffer(f"{flat.size * 4:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}".encode(), np.uint8) - ord("0")
    end = np.zeros(8 - (head.size + runs.size) % 8, np.uint8)
    rle: list[int] = np.packbits(np.concatenate([head, runs, end])).tolist()
    return rle
