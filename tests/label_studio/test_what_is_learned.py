"""The law: an annotation is read completely or not at all. Random annotations, compared with an obvious rasterizer."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
from rasterizer import painted, pixels_of

from backend.errors import NotSegmentable, UnknownLabels, UnreadableMask
from backend.label_config import LabelConfig, Renames, smart_tags
from backend.label_studio.drawing import draw_mask
from backend.label_studio.listing import Annotation
from backend.label_studio.masks import read_annotation, read_mask
from backend.label_studio.raster import encode_bitmask, encode_brush

XML = """<View>
  <Image name="a" value="$image"/><Image name="b" value="$other"/><Text name="report" value="$text"/>
  <BrushLabels name="paint" toName="a"><Label value="Lung"/><Label value="Heart"/></BrushLabels>
  <BrushLabels name="paint b" toName="b"><Label value="Lung"/></BrushLabels>
  <Bitmask name="bits" toName="a"/>
  <Labels name="names" toName="a"><Label value="Tumour"/><Label value="Kyste" alias="Cyst"/></Labels>
  <PolygonLabels name="outline" toName="a,b"><Label value="Liver"/><Label value="Lung"/></PolygonLabels>
  <RectangleLabels name="box" toName="a"><Label value="Device"/></RectangleLabels>
  <EllipseLabels name="oval" toName="a"><Label value="Nodule"/></EllipseLabels>
  <KeyPointLabels name="dot" toName="a"><Label value="Tip"/></KeyPointLabels>
  <Choices name="quality" toName="a"><Choice value="good"/></Choices>
  <Labels name="words" toName="report"><Label value="Finding"/></Labels>
</View>"""


def config_of(xml: str, image: str = "") -> LabelConfig:
    return LabelConfig.from_parsed(parse_config(xml), 1, image=image, smart=smart_tags(xml))


CONFIG = config_of(XML)
TAGS = {"brush": "paint", "bitmask": "bits", "polygon": "outline", "rectangle": "box", "ellipse": "oval"}
H, W = 9, 13
PLACE = st.floats(-20, 120).map(lambda v: round(v, 1) + 0.0137)  # never exactly on the centre of a pixel
SIZE = st.floats(5, 110).map(lambda v: round(v, 1) + 0.0071)
ANGLE = st.sampled_from([0, 30, 90, 217.5])


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    seed, share = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.1, 0.5, 1.0]))
    return np.asarray(np.random.default_rng(seed).random((H, W)) < share)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    kind = draw(st.sampled_from(sorted(TAGS)))
    if kind == "brush":
        return kind, {"format": "rle", "rle": encode_brush(draw(masks()))}
    if kind == "bitmask":
        return kind, {"imageDataURL": encode_bitmask(draw(masks()))}
    if kind == "polygon":
        points = draw(st.lists(st.tuples(PLACE, PLACE), min_size=3, max_size=6, unique=True))
        return kind, {"points": [list(p) for p in points], "closed": True}
    first = {"x": draw(PLACE), "y": draw(PLACE), "rotation": draw(ANGLE)}
    sides = ("width", "height") if kind == "rectangle" else ("radiusX", "radiusY")
    return kind, first | {side: draw(SIZE) for side in sides}


def results(
    kind: str, value: dict[str, Any], labels: list[str], name: str, to_name: str, style: str
) -> list[dict[str, Any]]:
    """A region as Label Studio stores it: labelled by its own tag, or together with a result of <Labels>."""
    common = {"id": name, "to_name": to_name, "original_width": W, "original_height": H, "image_rotation": 0}
    if style == "own":
        own = {**value, **({f"{kind}labels": labels} if labels else {})}
        return [{**common, "from_name": TAGS[kind], "type": f"{kind}labels", "value": own}]
    shape = {**common, "from_name": TAGS[kind], "type": kind, "value": value}
    return [shape, {**common, "from_name": "names", "type": "labels", "value": {**value, "labels": labels}}]


OTHERS = [  # what draws no mask
    {"type": "choices", "from_name": "quality", "to_name": "a", "value": {"choices": ["good"]}},
    {
        "type": "labels",
        "from_name": "words",
        "to_name": "report",
        "value": {"start": 0, "end": 3, "labels": ["Finding"]},
    },
    {
        "type": "keypointlabels",
        "from_name": "dot",
        "to_name": "a",
        "value": {"x": 5, "y": 5, "keypointlabels": ["Tip"]},
    },
    {"type": "relation", "from_id": "r0", "to_id": "r1", "direction": "right"},
]


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_an_annotation_is_read_completely_or_not_at_all(data: st.DataObject) -> None:
    annotation: list[dict[str, Any]] = []
    expected: list[tuple[str, set[tuple[int, int]]]] = []
    trouble: list[str] = []
    for number in range(data.draw(st.integers(0, 4))):
        kind, value = data.draw(shapes())
        to_name = data.draw(st.sampled_from(["a", "a", "a", "b"]))
        state = data.draw(st.sampled_from(["known"] * 8 + ["unknown", "none", "two"]))
        label = data.draw(st.sampled_from([*CONFIG.labels, "Kyste"]))
        names = {"known": [label], "unknown": ["Spleen"], "none": [], "two": ["Lung", "Heart"]}[state]
        annotation += results(
            kind, value, names, f"r{number}", to_name, data.draw(st.sampled_from(["own", "together"]))
        )
        if to_name == "a":
            trouble += [state] if state != "known" else []
            pixels = pixels_of(kind, value, H, W)
            trouble += ["nowhere"] if not pixels and kind not in ("brush", "bitmask") else []
            expected.append(({"Kyste": "Cyst"}.get(label, label), pixels))
    extra = data.draw(st.lists(st.sampled_from(OTHERS), max_size=2))
    annotation += extra
    if not expected and any(o["type"] == "keypointlabels" for o in extra):
        trouble.append("points")
    if trouble:
        with pytest.raises(UnreadableMask):
            read_mask(annotation, CONFIG, H, W)
        return
    mask, _ = read_mask(annotation, CONFIG, H, W)
    assert np.array_equal(mask, painted(expected, CONFIG.labels, H, W))


def test_every_tag_that_draws_is_found_and_its_labels_in_order() -> None:
    assert CONFIG.image_value == "image"
    assert CONFIG.labels == ("Lung", "Heart", "Tumour", "Cyst", "Liver", "Nodule", "Device")
    assert LabelConfig.from_json(CONFIG.to_json()) == CONFIG
    other = config_of(XML, "b")
    assert (other.image_value, other.labels) == ("other", ("Lung", "Liver"))
    with pytest.raises(NotSegmentable, match=r"the setting image is 'c', but .* Images with such tags: 'a', 'b'"):
        config_of(XML, "c")


@pytest.mark.parametrize("kind", ["Brush", "Bitmask", "Polygon", "Ellipse", "Rectangle"])
@pytest.mark.parametrize("style", ["own", "together"])
def test_a_mask_is_drawn_with_the_only_tag_there_is_and_read_back(kind: str, style: str) -> None:
    tag = f'<{kind}Labels name="t" toName="i"><Label value="L"/></{kind}Labels>'
    apart = f'<{kind} name="t" toName="i"/><Labels name="n" toName="i"><Label value="L"/></Labels>'
    config = config_of(f'<View><Image name="i" value="$image"/>{tag if style == "own" else apart}</View>')
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 20:55] = 1
    if kind == "Ellipse":
        rows, columns = np.mgrid[:60, :80]
        mask = ((((rows - 30) / 12) ** 2 + ((columns - 40) / 22) ** 2) <= 1).astype(np.uint8)
    regions = draw_mask(mask, ["L"], config, "v")
    assert {r["type"] for r in regions} == ({f"{kind.lower()}labels"} if style == "own" else {kind.lower(), "labels"})
    back, remarks = read_mask(regions, config, 60, 80)
    assert remarks == []
    assert 2 * ((back == 1) & (mask == 1)).sum() / ((back == 1).sum() + (mask == 1).sum()) > 0.99


def box(x: float, y: float, width: float, height: float, label: str, tag: str = "box") -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]}
    return {"id": f"{label} {x} {y}", "from_name": tag, "to_name": "a", "type": "rectanglelabels", "value": value}


def test_a_tumour_stays_visible_in_the_liver_that_was_drawn_over_it() -> None:
    mask, remarks = read_mask([box(40, 40, 10, 10, "Tumour"), box(0, 0, 100, 100, "Liver")], CONFIG, 100, 100)
    assert (mask == CONFIG.labels.index("Tumour") + 1).sum() == 100
    assert (mask == CONFIG.labels.index("Liver") + 1).sum() == 9900
    assert remarks == []


def test_a_region_that_loses_more_than_half_of_itself_gets_a_remark() -> None:
    _, remarks = read_mask([box(0, 0, 50, 10, "Tumour"), box(15, 0, 80, 80, "Liver")], CONFIG, 100, 100)
    assert remarks == [
        "region 1 ('Tumour') is covered by regions of other labels: 70% of it does not count. "
        "Where regions overlap, the later one counts."
    ]
    _, remarks = read_mask([box(0, 0, 50, 10, "Tumour"), box(26, 0, 80, 80, "Liver")], CONFIG, 100, 100)
    assert remarks == []
    twice = [box(0, 0, 50, 10, "Tumour"), box(0, 0, 50, 10, "Liver")]  # equal: the later one counts, and it is said
    mask, remarks = read_mask(twice, CONFIG, 100, 100)
    assert set(np.unique(mask)) == {0, CONFIG.labels.index("Liver") + 1}
    assert "100% of it does not count" in remarks[0]


SMART = """<View><Image name="a" value="$image"/>
  <BrushLabels name="paint" toName="a"><Label value="Lung"/></BrushLabels>
  <RectangleLabels name="prompt" toName="a" smart="true"><Label value="Lung"/></RectangleLabels>
</View>"""


def test_prompts_of_a_smart_tool_are_not_masks() -> None:
    config = config_of(SMART)
    prompt = box(10, 10, 50, 50, "Lung", "prompt")
    with pytest.raises(UnreadableMask, match="only key points or prompts of a smart tool"):
        read_mask([prompt], config, H, W)
    stroke = results("brush", {"rle": encode_brush(np.eye(H, W, dtype=bool))}, ["Lung"], "s", "a", "own")
    mask, _ = read_mask([prompt, *stroke], config, H, W)
    assert np.array_equal(mask == 1, np.eye(H, W, dtype=bool))
    only = config_of(SMART.replace("BrushLabels", "KeyPointLabels"))  # nothing else draws: the rectangle is the mask
    mask, _ = read_mask([box(0, 0, 100, 100, "Lung", "prompt")], only, H, W)
    assert mask.all()


@pytest.mark.parametrize(("tag", "kind"), [("prompt", "rectanglelabels"), ("click", "keypointlabels")])
def test_a_suggestion_accepted_while_a_smart_tool_had_another_label_keeps_its_own(tag: str, kind: str) -> None:
    config = config_of(SMART.replace('<Label value="Lung"/>', '<Label value="Lung"/><Label value="Heart"/>'))
    (stroke,) = results("brush", {"rle": encode_brush(np.eye(H, W, dtype=bool))}, ["Lung"], "s", "a", "own")
    also = {**stroke, "from_name": tag, "type": kind, "value": {"rle": stroke["value"]["rle"], kind: ["Heart"]}}
    mask, remarks = read_mask([stroke, also], config, H, W)
    assert np.array_equal(mask, np.eye(H, W))
    assert remarks == []


def annotation_of(result: list[dict[str, Any]], **more: Any) -> Annotation:
    return Annotation(1, 5, "t", result, more.pop("lead_time", None), 1, more.pop("shown_version", ""), **more)


def test_what_nobody_looked_at_is_no_label() -> None:
    tumour = [box(40, 40, 30, 30, "Tumour")]
    for result, version in (([], "scanqueue-r0"), ([], "other-model"), (tumour, "scanqueue-r1")):
        with pytest.raises(UnreadableMask, match="nobody has looked at it"):
            read_annotation(annotation_of(result, unseen=True, shown_version=version), CONFIG, H, W)
    with pytest.raises(UnreadableMask, match="copied from another task's annotation"):
        read_annotation(annotation_of(tumour, copied=True), CONFIG, H, W)
    mask, _ = read_annotation(annotation_of([]), CONFIG, H, W)  # a person submitted it, or the lab imported it
    assert not mask.any()
    mask, _ = read_annotation(annotation_of(tumour, unseen=True, shown_version="other-model"), CONFIG, H, W)
    assert mask.any()


@pytest.mark.parametrize(
    ("kind", "more", "what"),
    [
        ("cuboidlabels", {}, "the type 'cuboidlabels'"),
        ("vectorlabels", {"closed": True}, "the type 'vectorlabels'"),
        (None, {}, "the type 'None'"),
        ("polygonlabels", {"closed": False, "points": []}, "is a polygon that is not closed"),
        ("bitmasklabels", {"imageDataURL": "x"}, "bitmask mask that does not fit"),
        ("ellipselabels", {"x": "wide"}, "finite numbers"),
    ],
)
def test_what_is_not_understood_is_a_problem_with_its_region(kind: str | None, more: dict[str, Any], what: str) -> None:
    region = {"type": kind, "to_name": "a", "value": {"labels": ["Lung"], **more}}
    with pytest.raises(UnreadableMask, match=r"region 1 \('Lung'\)") as error:
        read_mask([region], CONFIG, H, W)
    assert what in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        {"x": 512, "y": 300, "width": 200, "height": 100},  # pixels instead of percent
        {"x": 0.001, "y": 0.002, "width": 0.004, "height": 0.005},  # shares instead of percent
        {"x": 10, "y": 10, "width": 0, "height": 20},
        {"x": 10**400, "y": 10, "width": 5, "height": 20},
    ],
)
def test_a_shape_that_covers_no_pixel_is_a_problem_and_no_background(value: dict[str, float]) -> None:
    region = {"type": "rectanglelabels", "to_name": "a", "value": {**value, "rectanglelabels": ["Device"]}}
    with pytest.raises(UnreadableMask, match=r"region 1 \('Device'\) covers no pixel"):
        read_mask([region], CONFIG, H, W)
    erased = results("brush", {"rle": encode_brush(np.zeros((H, W), bool))}, ["Lung"], "s", "a", "own")
    assert not read_mask(erased, CONFIG, H, W)[0].any()  # what an eraser leaves is empty, and shown as such


def test_a_shape_that_is_mostly_outside_the_image_gets_a_remark() -> None:
    oval = {"x": 0, "y": 0, "radiusX": 30, "radiusY": 30, "ellipselabels": ["Nodule"]}
    outline = {"points": [[90, 10], [150, 10], [150, 60], [90, 60]], "polygonlabels": ["Liver"]}
    for region in (
        box(80, 80, 200, 180, "Device"),
        {"type": "ellipselabels", "to_name": "a", "value": oval},
        {"type": "polygonlabels", "to_name": "a", "value": outline},
    ):
        mask, remarks = read_mask([region], CONFIG, 100, 100)
        assert mask.any()
        assert remarks[0].endswith("is mostly outside the image, and only the part on the image counts.")
    assert read_mask([box(60, 60, 70, 40, "Device")], CONFIG, 100, 100)[1] == []


def test_two_labels_of_one_region_are_a_problem_wherever_they_are() -> None:
    device = box(10, 10, 50, 50, "Device")
    shape = {k: v for k, v in device["value"].items() if k != "rectanglelabels"}
    second = {**device, "from_name": "other", "value": {**shape, "rectanglelabels": ["Lung"]}}
    apart = {**device, "from_name": "names", "type": "labels", "value": {**shape, "labels": ["Tumour"]}}
    for more in (second, apart):
        with pytest.raises(UnreadableMask, match="has 2 labels"):
            read_mask([device, more], CONFIG, H, W)
    side = {**apart, "value": {**shape, "labels": ["left"]}}  # of a tag that draws no masks: a remark on the region
    mask, _ = read_mask([device, side], CONFIG, H, W)
    assert np.array_equal(mask, read_mask([device], CONFIG, H, W)[0])


@pytest.mark.parametrize("names", [[""], [], "Device", None])
def test_an_empty_label_is_no_label(names: Any) -> None:
    region = box(10, 10, 50, 50, "Device")
    region["value"]["rectanglelabels"] = names
    with pytest.raises(UnreadableMask, match="region 1 has no label"):
        read_mask([region], CONFIG, H, W)


def test_a_region_on_a_later_image_of_a_list_is_a_problem() -> None:
    assert read_mask([box(10, 10, 50, 50, "Device") | {"item_index": 0}], CONFIG, H, W)[0].any()
    with pytest.raises(UnreadableMask, match="another image of a list"):
        read_mask([box(10, 10, 50, 50, "Device") | {"item_index": 1}], CONFIG, H, W)


def test_a_label_that_was_renamed_twice_is_asked_for_under_its_last_name() -> None:
    renames = Renames(("Old", "Newer"), {"Old": "Newer"})
    with pytest.raises(UnknownLabels, match="'Old', later called 'Newer', which the label config") as error:
        read_mask([box(10, 10, 50, 50, "Old")], CONFIG, H, W, renames)
    assert error.value.labels == ("Newer",)


def drawn_with(tags: str, image: str = "") -> LabelConfig:
    return config_of(f'<View><Image name="a" value="$image"/><Image name="b" value="$other"/>{tags}</View>', image)


LUNG = '<RectangleLabels name="box" toName="a"><Label value="Lung"/></RectangleLabels>'


@pytest.mark.parametrize(
    "other",
    [
        '<Choices name="c" toName="a"><Choice value="Lung" alias="1"/></Choices>',
        '<RectangleLabels name="o" toName="b"><Label value="Lung" alias="L"/></RectangleLabels>',
        '<RectangleLabels name="o" toName="a"><Label value="Lung" alias="L"/></RectangleLabels>',
    ],
)
def test_aliases_of_other_tags_do_not_rename_labels(other: str) -> None:
    config = drawn_with(LUNG + other, "a")
    mask, _ = read_mask([box(0, 0, 100, 100, "Lung")], config, H, W)
    assert (mask == config.labels.index("Lung") + 1).all()


def test_long_labels_are_known_by_their_whole_name() -> None:
    first, second = (f"{'a long name ' * 10}{end}" for end in "ab")
    labels = f'<Label value="{first}"/><Label value="{second}"/>'
    config = drawn_with(f'<RectangleLabels name="box" toName="a">{labels}</RectangleLabels>')
    assert (read_mask([box(0, 0, 100, 100, second)], config, H, W)[0] == 2).all()


def test_a_tag_that_points_to_nothing_draws_on_no_other_image() -> None:
    missing = '<RectangleLabels name="box" toName="missing,b"><Label value="Lung"/></RectangleLabels>'
    with pytest.raises(NotSegmentable, match="does not point to an image"):
        drawn_with(missing)


def test_smart_tags_are_tags_of_the_config_and_not_of_its_comments() -> None:
    comment = '<!-- <RectangleLabels name="box" toName="a" smart="true"/> -->'
    assert smart_tags(f"<View>{comment}{LUNG}</View>") == set()
    smart = LUNG.replace("name=", 'hint="more > less" smart="true" name=')
    assert smart_tags(f'<?xml version="1.0" encoding="utf-8"?><View>{smart}</View>') == {"box"}
    assert smart_tags("") == set()


@pytest.mark.parametrize("to_name", ["c", None])
def test_a_region_on_an_unknown_object_is_a_problem(to_name: str | None) -> None:
    region = {"type": "brushlabels", "to_name": to_name, "value": {"rle": [], "brushlabels": ["Lung"]}}
    with pytest.raises(UnreadableMask, match="which the label config does not have"):
        read_mask([region], CONFIG, H, W)


def test_every_unknown_label_is_named_once() -> None:
    strange = [box(n, 0, 5, 5, label) for n, label in enumerate(["Spleen", "Lung", "Milz", "Spleen"])]
    with pytest.raises(UnknownLabels) as error:
        read_mask(strange, CONFIG, H, W)
    assert error.value.labels == ("Spleen", "Milz")


def test_an_unused_second_image_disturbs_nothing() -> None:
    stroke = results("brush", {"rle": encode_brush(np.ones((H, W), bool))}, ["Lung"], "s", "a", "own")
    elsewhere = [dict(r, to_name="b", original_width=999, original_height=5) for r in stroke]
    mask, _ = read_mask([*elsewhere, *stroke], CONFIG, H, W)
    assert (mask == 1).all()


def test_values_of_aliases_are_accepted_and_aliases_are_written() -> None:
    mask = np.zeros((H, W), np.uint8)
    mask[2:5, 3:9] = CONFIG.labels.index("Cyst") + 1
    regions = draw_mask(mask, CONFIG.labels, CONFIG, "v")
    assert [r["value"].get("labels") for r in regions] == [None, ["Cyst"]]
    back, _ = read_mask(regions, CONFIG, H, W)
    assert np.array_equal(back, mask)


def test_orders_of_results_do_not_matter_for_labels_apart() -> None:
    pair = results(
        "bitmask", {"imageDataURL": encode_bitmask(np.eye(H, W, dtype=bool))}, ["Tumour"], "x", "a", "together"
    )
    first, second = (read_mask(list(order), CONFIG, H, W)[0] for order in itertools.permutations(pair))
    assert np.array_equal(first, second)
    assert first.any()
