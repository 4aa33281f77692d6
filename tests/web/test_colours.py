"""The colours of labels: as the label config gives them, else distinct; and never part of what masks depend on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config

from backend.label_config import LabelConfig, Renames
from backend.web.colours import ALIKE, FALLBACKS, label_colours, parsed


def config(*labels: str) -> LabelConfig:
    inside = "".join(f"<Label {label}/>" for label in labels)
    xml = f'<View><Image name="i" value="$image"/><BrushLabels name="t" toName="i">{inside}</BrushLabels></View>'
    return LabelConfig.from_parsed(parse_config(xml), 1)


@pytest.mark.parametrize(
    ("typed", "colour"),
    [
        ("#e4572e", "#E4572E"),
        ("#f00", "#FF0000"),
        ("#2f7ed8cc", "#2F7ED8"),
        ("Red", "#FF0000"),
        ("rgb(1, 2, 3)", "#010203"),
        ("rgba(255, 0, 128, 0.5)", "#FF0080"),
        (" hsl(120, 100%, 50%) ", "#00FF00"),
        ("hsla(240, 100%, 50%, 30%)", "#0000FF"),
        ("rgb(300, 0, 0)", "#FF0000"),
        ("rgba(101%, 0%, 0%, 1)", "#FF0000"),
        ("hsl(0, 0%, 150%)", "#FFFFFF"),
        ("", ""),
        ("reddish", ""),
        ('#fff" onload="alert(1)', ""),
        ("url(http://elsewhere/)", ""),
    ],
)
def test_css_colours_are_read_and_anything_else_is_none(typed: str, colour: str) -> None:
    assert parsed(typed) == colour


@given(st.text(max_size=30))
def test_whatever_is_typed_gives_a_plain_colour_or_none(typed: str) -> None:
    assert re.fullmatch(r"(#[0-9A-F]{6})?", parsed(typed))


def test_labels_have_the_colours_of_the_config_under_the_name_that_results_bear() -> None:
    found = config('value="Lung" background="#e4572e"', 'value="Heart" alias="cor" background="navy"', 'value="Bone"')
    assert found.labels == ("Lung", "cor", "Bone")
    colours = label_colours(found.labels, found.colors)
    assert (colours["Lung"], colours["cor"]) == ("#E4572E", "#000080")
    assert colours["Bone"] in FALLBACKS


def test_labels_of_a_labels_tag_have_their_colours_too() -> None:
    xml = (
        '<View><Image name="i" value="$image"/><Labels name="l" toName="i"><Label value="Lung" background="teal"/>'
        '</Labels><Brush name="t" toName="i"/></View>'
    )
    assert LabelConfig.from_parsed(parse_config(xml), 1).colors == {"Lung": "teal"}


def test_a_colour_that_the_config_gives_is_not_given_to_another_label() -> None:
    colours = label_colours(("Heart", "Lung"), {"Lung": FALLBACKS[0]})
    assert colours == {"Heart": FALLBACKS[1], "Lung": FALLBACKS[0]}


@given(st.integers(1, 60), st.sets(st.sampled_from(["red", "#E69F00", "#0072b2", "gold"])))
def test_labels_without_a_colour_get_distinct_ones(count: int, typed: set[str]) -> None:
    given = {f"given {one}": one for one in typed}
    labels = [*given, *(f"label {n}" for n in range(count))]
    colours = label_colours(labels, given)
    assert list(colours) == labels
    assert len(set(colours.values())) == len(labels)


def test_the_first_labels_without_a_colour_are_easy_to_tell_apart() -> None:
    colours = list(label_colours([f"label {n}" for n in range(7)], {}).values())
    rgb = [bytes.fromhex(c[1:]) for c in colours]
    apart = [
        sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) ** 0.5 for one in rgb for two in rgb if one != two
    ]
    assert min(apart) >= ALIKE


def test_masks_do_not_depend_on_colours() -> None:
    plain, coloured = config('value="Lung"'), config('value="Lung" background="red"')
    assert plain.key == coloured.key
    assert plain.reading_key(Renames()) == coloured.reading_key(Renames())
    assert plain == coloured
    again = LabelConfig.from_json(coloured.to_json())
    assert again is not None
    assert (again, again.colors, again.key) == (coloured, {"Lung": "red"}, plain.key)
    assert LabelConfig.from_json(plain.to_json()) == plain
