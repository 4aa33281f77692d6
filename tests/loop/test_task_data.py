"""Anybody can write task data: invalid values count as unknown and stop nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.loop.task_data import MAX_LENGTH, MAX_SPACING_MM, TaskData, read_task_data, storable

KEYS = ("scan", "slice", "group", "spacing_mm")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SIZES = st.lists(st.floats() | st.integers() | st.just("1"), min_size=1, max_size=3)


def test_the_data_written_by_an_import_are_read() -> None:
    data = {"image": "x.png", "scan": "S-1", "axis": "axial", "slice": 17, "spacing_mm": [0.6875, 2], "group": "P-1"}
    assert read_task_data(data) == TaskData("S-1", 17, "P-1", 0.6875, 2.0)
    assert read_task_data({}) == read_task_data({"image": "x.png"}) == TaskData()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"scan": 12, "group": "  P 1 "}, TaskData("12", 0, "P 1")),
        ({"scan": "x" * 300}, TaskData("x" * MAX_LENGTH)),
        *(
            ({"scan": bad, "group": bad}, TaskData())
            for bad in ("", "  ", "a\0b", "\ud800", ["S"], {"a": 1}, True, 1.5)
        ),
        *(({"slice": bad}, TaskData()) for bad in (-1, 2**31, 1.5, "3", True, math.nan, math.inf, None, [3])),
        ({"slice": 3.0}, TaskData(slice=3)),
        ({"slice": 2**31 - 1}, TaskData(slice=2**31 - 1)),
        *(
            ({"spacing_mm": bad}, TaskData())
            for bad in (1.0, "1, 1", [], [1.0], [1, 1, 1], [0, 1], [1, -1], [1, math.nan], [math.inf, 1], [1, "1"])
        ),
        *(
            ({"spacing_mm": bad}, TaskData())
            for bad in ([1, 1000], [1, 10**400], [True, 1], {"0": 1, "1": 1}, [1, None])
        ),
    ],
)
def test_invalid_values_are_unknown(data: dict[str, Any], expected: TaskData) -> None:
    assert read_task_data(data) == expected


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, ANYTHING | SIZES)))
def test_any_data_become_values_that_every_database_accepts(data: dict[str, Any]) -> None:
    found = read_task_data(data)
    for text in (found.volume, found.patient):
        assert len(text) <= MAX_LENGTH
        assert "\0" not in text
        assert text.encode().decode() == text
    assert 0 <= found.slice < 2**31
    sizes = (found.row_mm, found.column_mm)
    assert sizes == (0, 0) or all(0 < n < MAX_SPACING_MM for n in sizes)


@given(st.text(st.characters()))
def test_text_that_no_database_accepts_is_converted(text: str) -> None:
    found = storable(text, 10)
    assert len(found) <= 10
    assert found.encode().decode().replace("\0", "") == found
    if text.isascii() and "\0" not in text:
        assert found == text[:10]
