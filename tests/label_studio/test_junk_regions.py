"""Junk in annotations, drafts and prompts: a problem of its task, never another error, and never gigabytes."""

from __future__ import annotations

import copy
import math
import random
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from backend.correction.prompts import prompts, shown_mask
from backend.errors import UnreadableMask
from backend.label_config import LabelConfig, Tag
from backend.label_studio.listing import Annotation
from backend.label_studio.masks import could_draw, read_annotation, read_mask
from backend.label_studio.raster import decode_bitmask, decode_brush, encode_bitmask, encode_brush
from backend.label_studio.strokes import painted

H, W = 60, 80
KINDS = ("brush", "bitmask", "polygon", "ellipse", "rectangle", "vector", "keypoint")
CONFIG = LabelConfig("image", tuple(Tag(k, k, "img", ("Lung", "Heart")) for k in KINDS[:5]))
MEMORY = 100 * 2**20  # bytes; the scan itself has 4,800 pixels

mask = np.zeros((H, W), np.bool_)
mask[10:30, 20:50] = True
VALUES: dict[str, dict[str, Any]] = {
    "brush": {"format": "rle", "rle": encode_brush(mask)},
    "bitmask": {"imageDataURL": encode_bitmask(mask)},
    "polygon": {"points": [[10, 10], [50, 10], [50, 60]], "closed": True},
    "ellipse": {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 30},
    "rectangle": {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0},
    "vector": {"vertices": [{"x": 1, "y": 2}], "closed": True},
    "keypoint": {"x": 50, "y": 50, "width": 0.3},
}
deep: Any = []
for _ in range(940):  # a parser of JSON accepts a little more
    deep = [deep]
NUMBERS = (
    0,
    -1,
    -0.0,
    1e300,
    -1e300,
    1e308 * 10,
    -math.inf,
    math.nan,
    10**400,
    -(10**400),
    1e9,
    2**31,
    2**63,
    2**64,
    1e-320,
)
JUNK = (
    *NUMBERS,
    *(None, True, False, "", "NaN", "1e999", "x" * 10_000, "\0", "\ud800", b"bytes"),
    *(
        [],
        {},
        [[]],
        [None],
        [[1]],
        [[1, 2, 3]] * 3,
        [[1, 2]] * 3,
        [["a", "b"]] * 3,
        [[[1], [2]]] * 3,
        deep,
        {"x": {"y": []}},
    ),
    *([[n, n] for n in (*NUMBERS, "1", None)], [[1e300, math.nan], [0, 0], [1, math.inf]]),
    *([255] * 1000, [0] * 3, [-1, 256], [1.5], ["a"], [10**400], list(range(256)), [math.nan]),
    *("data:image/png;base64,", "data:image/png;base64,AAAA", "data:text/html,<b>", "http://127.0.0.1/x.png"),
)


def region(kind: str) -> dict[str, Any]:
    value = copy.deepcopy(VALUES[kind]) | {f"{kind}labels": ["Lung"]}
    base = {"id": "r1", "type": f"{kind}labels", "from_name": kind, "to_name": "img"}
    return base | {"original_width": W, "original_height": H, "image_rotation": 0, "value": value}


def changed(kind: str) -> Iterator[tuple[str, Any]]:
    """The region with each field and each value replaced by each junk, or missing."""
    for name in region(kind):
        for junk in JUNK:
            yield name, region(kind) | {name: junk}
        yield name, {k: v for k, v in region(kind).items() if k != name}
    for name in (*region(kind)["value"], "touches", "maskDataURL", "rotation", "format"):
        for junk in JUNK:
            one = region(kind)
            one["value"][name] = junk
            yield f"value.{name}", one
        one = region(kind)
        one["value"].pop(name, None)
        yield f"value.{name}", one
    for size in ((0, 0), (10**9, 10**9), (-H, -W), (H, 10**9), (math.nan, W), ("60", "80"), (60.0, 80.0), (True, W)):
        yield f"size {size}", region(kind) | {"original_height": size[0], "original_width": size[1]}


def read_everywhere(result: Any) -> None:
    """Every reader of regions; another error than UnreadableMask fails the test."""
    said = ""
    made = Annotation(1, 2, "", result, None, None, "")
    try:
        found, _ = read_annotation(made, CONFIG, H, W)
        assert found.shape == (H, W)
        assert could_draw(made, CONFIG)
    except UnreadableMask as error:
        said = str(error)
    assert said == "" or 10 < len(said) < 1500
    prompts({"result": result}, CONFIG, H, W)
    task = {"id": 1, "drafts": [{"result": result, "updated_at": None}], "annotations": [{"result": result}]}
    shown_mask(task, "Lung", CONFIG, H, W, ["scanqueue-r1"], {"result": result})
    for one in result if isinstance(result, list) else []:
        if isinstance(one, dict):
            with suppress(ValueError):  # as it promises
                painted(one, H, W)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_may_be_junk(kind: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, one in changed(kind):
        try:
            read_everywhere([one])
        except Exception as error:
            raise AssertionError(f"{kind}, {name}: {type(error).__name__}") from error
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


@pytest.mark.parametrize(
    "result", [*JUNK, [[], [region("brush")]], {"result": []}, [region("brush"), None, 7, "x"]], ids=repr
)
def test_the_whole_result_may_be_junk(result: Any) -> None:
    read_everywhere(result)


@pytest.mark.parametrize("seed", range(3))
def test_junk_in_several_places(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(100):
        result = [region(chance.choice(KINDS)) for _ in range(chance.randrange(1, 4))]
        for _ in range(chance.randrange(1, 5)):
            one = chance.choice(result)
            place = chance.choice((one, one["value"])) if isinstance(one.get("value"), dict) else one
            place[chance.choice([*place, "item_index", "touches", "parentID"])] = chance.choice(JUNK)
        read_everywhere(result)


@pytest.mark.parametrize("number", NUMBERS)
def test_polygons_far_away_and_of_numbers_that_are_none(number: float) -> None:
    for points in (
        [[number, 10], [50, 10], [50, 60]],
        [[number, number]] * 3,
        [[-number, number], [number, -number], [number, number]],
    ):
        one = region("polygon")
        one["value"]["points"] = points
        read_everywhere([one])


def test_pixels_cost_no_more_than_the_image() -> None:
    """Run lengths and PNGs that declare gigabytes."""
    large = encode_bitmask(np.ones((2000, 2000), bool))
    tracemalloc.start()
    try:
        for size in (10**9, 2**31 - 1, 2**32 - 1):
            data = [*size.to_bytes(4, "big"), *([255] * 200)]
            for reader, given in (
                (decode_brush, bytes(data)),
                (decode_bitmask, large),
            ):
                with pytest.raises((ValueError, UnreadableMask)):
                    reader(given, H, W)  # type: ignore[operator]
        one = region("rectangle") | {"original_width": 10**9, "original_height": 10**9}
        with pytest.raises(UnreadableMask, match="pixels, but the image has"):
            read_mask([one], CONFIG, H, W)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
