"""The results of a simulation: one row for each trained model, read from CSV and validated.

arm     a strategy and its embedder
repeat  one seed of one data set: one split of the scans, shared by all arms
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from backend.errors import BadResults
from backend.json_text import parse_json

RANDOM = "random"  # reference for all other strategies
ALL_LABELS = "all labels"  # the model trained on the whole pool of its repeat
COLUMNS = ("strategy", "embedder", "seed", "budget", "labels", "dice", "hd", "hd95", "unit", "n_test")
RATE_COLUMNS = ("n_empty", "miss_rate", "false_alarm_rate", "false_alarm_area")  # not in results of older versions
LABEL_COLUMN = "per_label"  # JSON, likewise
UNITS = ("px", "mm", "mixed")


class Arm(NamedTuple):
    strategy: str
    embedder: str


class Repeat(NamedTuple):
    data: str
    seed: int


@dataclass(frozen=True)
class Row:
    """One trained model and its scores on the test scans of its repeat.

    budget    number of labels requested
    labels    number of labels used; below the budget if the pool was smaller
    dice      0..1, higher is better: mean over labels, of the mean over the test scans with the label
    hd, hd95  Hausdorff distances in `unit`, lower is better: likewise; NaN when the unit is "mixed", because px and mm
              cannot be averaged
    n_test    number of test scans
    data      data set name, when several are combined
    n_empty   number of test scans without foreground
    miss_rate, false_alarm_rate, false_alarm_area  as in `backend.learning.averages`; None: not known
    per_label  the figures of each label as JSON, as in `backend.learning.averages`; "": not known
    """

    strategy: str
    embedder: str
    seed: int
    budget: int
    labels: int
    dice: float
    hd: float
    hd95: float
    unit: str
    n_test: int
    data: str = ""
    n_empty: int = 0
    miss_rate: float | None = None
    false_alarm_rate: float | None = None
    false_alarm_area: float | None = None
    per_label: str = ""

    @property
    def arm(self) -> Arm:
        return Arm(self.strategy, self.embedder)

    @property
    def repeat(self) -> Repeat:
        return Repeat(self.data, self.seed)


def read_rows(path: Path) -> list[Row]:
    """The rows of a `results.csv` in file order.

    Columns other than `COLUMNS` and the optional `data`, `RATE_COLUMNS` and `LABEL_COLUMN` are ignored. Raises
    BadResults with file, line and column for a missing column, an invalid value, a truncated line or a duplicate model.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            found = lines.fieldnames or []
            if missing := [name for name in COLUMNS if name not in found]:
                raise BadResults(
                    f"{path}, line 1: no column {', '.join(missing)}; found {', '.join(found) or 'nothing'}. "
                    "Give a comma-separated results.csv from scanqueue simulate."
                )
            rows = []
            seen: dict[tuple[Repeat, Arm, int], int] = {}
            for line in lines:
                where = f"{path}, line {lines.line_num}"
                row = parse_row(line, where)
                key = (row.repeat, row.arm, row.budget)
                if key in seen:
                    raise BadResults(f"{where}: the same model as in line {seen[key]} ({_describe(row)}). Remove one.")
                seen[key] = lines.line_num
                rows.append(row)
    except OSError as error:
        raise BadResults(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadResults(f"{path}: not a CSV file in UTF-8 ({error})") from error
    return rows


def parse_row(texts: Mapping[str, str | None], where: str) -> Row:
    """Parse a row. Raises BadResults that starts with `where` and names the column."""

    def text(column: str) -> str:
        value = texts.get(column)
        if value is None:
            raise BadResults(f"{where}, column {column}: missing; the line ends too early")
        return value.strip()

    def name(column: str) -> str:
        if not (value := text(column)):
            raise BadResults(f"{where}, column {column}: empty, wanted a name")
        return value

    def rate(column: str) -> float | None:
        return number(column, 1.0) if texts.get(column) else None

    def whole(column: str, low: int) -> int:
        try:
            value = int(text(column))
        except ValueError:
            value = low - 1
        if value < low:
            raise BadResults(f"{where}, column {column}: got {text(column)!r}, wanted a whole number from {low}")
        return value

    def number(column: str, high: float) -> float:
        try:
            value = float(text(column))
        except ValueError:
            value = math.nan
        if not (0 <= value <= high and math.isfinite(value)):
            wanted = "a number from 0" if math.isinf(high) else f"a number from 0 to {high:g}"
            raise BadResults(f"{where}, column {column}: got {text(column)!r}, wanted {wanted}")
        return value

    unit = text("unit")
    if unit not in UNITS:
        raise BadResults(f"{where}, column unit: got {unit!r}, wanted one of {', '.join(UNITS)}")
    distances = [math.nan if unit == "mixed" else number(column, math.inf) for column in ("hd", "hd95")]
    return Row(
        strategy=name("strategy"),
        embedder=text("embedder"),
        seed=whole("seed", 0),
        budget=whole("budget", 1),
        labels=whole("labels", 1),
        dice=number("dice", 1.0),
        hd=distances[0],
        hd95=distances[1],
        unit=unit,
        n_test=whole("n_test", 1),
        data=(texts.get("data") or "").strip(),
        n_empty=whole("n_empty", 0) if texts.get("n_empty") else 0,
        miss_rate=rate("miss_rate"),
        false_alarm_rate=rate("false_alarm_rate"),
        false_alarm_area=rate("false_alarm_area"),
        per_label=_label_figures(texts.get(LABEL_COLUMN) or "", where),
    )


def _label_figures(text: str, where: str) -> str:
    """The JSON text, checked."""
    try:
        if text and not all(isinstance(one, dict) for one in parse_json(text).values()):
            raise ValueError
    except (ValueError, AttributeError):
        raise BadResults(f"{where}, column {LABEL_COLUMN}: got {text!r}, wanted a JSON object of labels") from None
    return text


def check_rows(rows: Sequence[Row]) -> None:
    """Raises BadResults when there is nothing to compare or a model appears twice."""
    if not arms(rows):
        raise BadResults("No results yet: no strategy has a trained model.")
    count = Counter((row.repeat, row.arm, row.budget) for row in rows)
    for row in rows:
        if count[row.repeat, row.arm, row.budget] > 1:
            raise BadResults(f"The same model appears twice: {_describe(row)}. Remove one.")


def _describe(row: Row) -> str:
    data = f"{row.data}, " if row.data else ""
    return f"{data}{row.strategy}, embedder {row.embedder or 'none'}, seed {row.seed}, budget {row.budget}"


def arms(rows: Iterable[Row]) -> list[Arm]:
    """All arms in their order of appearance, including random choice, excluding the model of all labels."""
    return list(dict.fromkeys(row.arm for row in rows if row.strategy != ALL_LABELS))


def arm_names(rows: Sequence[Row]) -> dict[Arm, str]:
    """Display name of each arm: the strategy, with its embedder where there are several."""
    found = arms(rows)
    several = len({arm.embedder for arm in found if arm.strategy != RANDOM}) > 1
    often = Counter(arm.strategy for arm in found)
    return {
        arm: f"{arm.strategy} ({arm.embedder or 'no embedder'})"
        if often[arm.strategy] > 1 or (several and arm.strategy != RANDOM)
        else arm.strategy
        for arm in found
    }


class OfData(Protocol):
    """A row, or a result derived from rows."""

    @property
    def data(self) -> str: ...


D = TypeVar("D", bound=OfData)


def data_sets(rows: Iterable[OfData]) -> list[str]:
    """Names of the data sets in their order of appearance; [""] for a single unnamed one."""
    return list(dict.fromkeys(row.data for row in rows))


def of_data(rows: Iterable[D], data: str) -> list[D]:
    """The rows of one data set."""
    return [row for row in rows if row.data == data]


def budgets(rows: Iterable[Row]) -> list[int]:
    """All budgets of strategies, ascending."""
    return sorted({row.budget for row in rows if row.strategy != ALL_LABELS})


def seeds(rows: Iterable[Row]) -> list[int]:
    """All seeds, ascending."""
    return sorted({row.seed for row in rows})


def by_repeat(rows: Iterable[Row], arm: Arm) -> dict[Repeat, dict[int, Row]]:
    """The rows of one arm by repeat and budget; budgets ascending."""
    found: dict[Repeat, dict[int, Row]] = {}
    for row in sorted((row for row in rows if row.arm == arm), key=lambda row: row.budget):
        found.setdefault(row.repeat, {})[row.budget] = row
    return found


def distance_unit(rows: Iterable[Row]) -> str | None:
    """The common unit of all distances, "px" or "mm"; None without one."""
    units = {row.unit for row in rows}
    return units.pop() if len(units) == 1 and "mixed" not in units else None


def missing_models(rows: Sequence[Row]) -> list[str]:
    """Sentences about missing results; [] when every arm has every seed and budget of its data set.

    Data sets are checked separately. Models of all labels are reported missing only if some repeats have one.
    """
    said = []
    names = arm_names(rows)
    for data in data_sets(rows):
        part = of_data(rows, data)
        place = f"{data}: " if data else ""
        wanted = [Repeat(data, seed) for seed in seeds(part)]
        asked = budgets(part)
        for arm in names:
            have = by_repeat(part, arm)
            if not have:
                said.append(f"{place}{names[arm]} has no results.")
                continue
            gaps = []
            for repeat in wanted:
                lacking = [budget for budget in asked if budget not in have.get(repeat, {})]
                if lacking:
                    what = "all budgets" if lacking == asked else "budget " + ", ".join(map(str, lacking))
                    gaps.append(f"seed {repeat.seed} ({what})")
            if gaps:
                said.append(f"{place}{names[arm]} lacks {', '.join(gaps)}.")
        whole = {row.repeat for row in part if row.strategy == ALL_LABELS}
        if whole and (lacking_whole := [str(repeat.seed) for repeat in wanted if repeat not in whole]):
            said.append(f"{place}the model trained on all labels lacks seed {', '.join(lacking_whole)}.")
    return said
