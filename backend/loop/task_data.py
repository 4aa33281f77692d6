"""The facts about an image in its task data: volume, slice, patient, pixel spacing.

Task data can contain anything, so invalid values count as unknown and never raise an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TASK_DATA_VERSION = 1  # increased when different values are read from the data, so that all tasks are listed once
MAX_LENGTH = 200  # maximum number of characters of a name
MAX_SPACING_MM = 1000.0  # larger values are mistakes
MAX_SLICE = 2**31 - 1  # largest integer of a database column


@dataclass(frozen=True)
class TaskData:
    """Where one image belongs. The defaults mean: unknown.

    volume             data key `scan`: the volume that the image is a slice of
    slice              data key `slice`: its number along the slicing axis, from 0
    patient            data key `group`: images of one patient are never split between training and validation
    row_mm, column_mm  data key `spacing_mm`: millimetres between rows and between columns; both or neither (0)
    """

    volume: str = ""
    slice: int = 0
    patient: str = ""
    row_mm: float = 0.0
    column_mm: float = 0.0


def read_task_data(data: Mapping[str, Any]) -> TaskData:
    """Read the data of a task, whatever it contains.

    >>> read_task_data({"scan": "S-1", "slice": 3, "group": "P-1", "spacing_mm": [0.5, 2]})
    TaskData(volume='S-1', slice=3, patient='P-1', row_mm=0.5, column_mm=2.0)
    >>> read_task_data({"scan": None, "slice": -1, "group": [], "spacing_mm": [0.5, "wide"]})
    TaskData(volume='', slice=0, patient='', row_mm=0.0, column_mm=0.0)
    """
    number: Any = data.get("slice")
    whole = _number(number) and 0 <= number <= MAX_SLICE and number == int(number)
    sizes: Any = data.get("spacing_mm")
    pair = (
        isinstance(sizes, list | tuple)
        and len(sizes) == 2
        and all(_number(n) and 0 < n < MAX_SPACING_MM for n in sizes)
    )
    row, column = (float(n) for n in sizes) if pair else (0.0, 0.0)
    return TaskData(_name(data.get("scan")), int(number) if whole else 0, _name(data.get("group")), row, column)


def storable(text: str, longest: int | None = None) -> str:
    """The text in a form that every database accepts: no NUL, no lone surrogates, at most `longest` characters."""
    return text.replace("\0", "")[:longest].encode(errors="replace").decode()


def _name(value: Any) -> str:
    """A text, or an integer as text; "" for anything else and for text that a database would reject."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = str(value)
    if not isinstance(value, str):
        return ""
    text = value.strip()[:MAX_LENGTH]
    return text if storable(text) == text else ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
