"""What the data of a task says of where its image comes from: volume, slice, patient, size of a pixel.

Anybody may write anything into it, so what cannot be is taken for unknown, and stops nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TASK_DATA_VERSION = 1  # raised when more, or something else, is taken from the data: then all tasks are listed once
LONGEST = 200  # characters
LARGEST_MM = 1000.0  # a pixel of a metre is a mistake
MOST_SLICES = 2**31 - 1


@dataclass(frozen=True)
class TaskData:
    """One image's place in the world. The defaults mean: unknown.

    volume             data key `scan`: of what the image is a slice
    slice              data key `slice`: its number along the cut, from 0
    patient            data key `group`: whoever it belongs to; what has the same is never trained and judged on
    row_mm, column_mm  data key `spacing_mm`: millimetres between rows and between columns; both or none (0)
    """

    volume: str = ""
    slice: int = 0
    patient: str = ""
    row_mm: float = 0.0
    column_mm: float = 0.0


def read_task_data(data: Mapping[str, Any]) -> TaskData:
    """Read the data of a task, whatever it holds.

    >>> read_task_data({"scan": "S-1", "slice": 3, "group": "P-1", "spacing_mm": [0.5, 2]})
    TaskData(volume='S-1', slice=3, patient='P-1', row_mm=0.5, column_mm=2.0)
    >>> read_task_data({"scan": None, "slice": -1, "group": [], "spacing_mm": [0.5, "wide"]})
    TaskData(volume='', slice=0, patient='', row_mm=0.0, column_mm=0.0)
    """
    number: Any = data.get("slice")
    whole = _number(number) and 0 <= number <= MOST_SLICES and number == int(number)
    sizes: Any = data.get("spacing_mm")
    pair = isinstance(sizes, list | tuple) and len(sizes) == 2 and all(_number(n) and 0 < n < LARGEST_MM for n in sizes)
    row, column = (float(n) for n in sizes) if pair else (0.0, 0.0)
    return TaskData(_name(data.get("scan")), int(number) if whole else 0, _name(data.get("group")), row, column)


def storable(text: str, longest: int | None = None) -> str:
    """The text as every database takes it: without NUL, halves of characters replaced, cut to `longest` characters."""
    return text.replace("\0", "")[:longest].encode(errors="replace").decode()


def _name(value: Any) -> str:
    """A text, or a number that stands for one; "" for anything else, and for what no database takes."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = str(value)
    if not isinstance(value, str):
        return ""
    text = value.strip()[:LONGEST]
    return text if storable(text) == text else ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
