"""What is averaged over what, for every figure about masks.

Dice and distances compare a drawn mask with the true one, so their means run over the scans whose truth has foreground.
A scan without foreground has nothing to compare: it tells only whether something was drawn there. So beside the means:

miss_rate         share of the scans with foreground on which nothing was drawn
false_alarm_rate  share of the scans without foreground on which something was drawn

The truth is the submitted mask; drawn is a model's mask, or the mask that an annotator was shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

Summary = dict[str, Any]


class Measured(Protocol):
    """One scan. `truth_empty`, `drawn_empty`: whether that mask has no foreground; None: not recorded."""

    @property
    def dice(self) -> float: ...
    @property
    def hd(self) -> float: ...
    @property
    def hd95(self) -> float: ...
    @property
    def unit(self) -> str: ...
    @property
    def truth_empty(self) -> bool | None: ...
    @property
    def drawn_empty(self) -> bool | None: ...


M = TypeVar("M", bound=Measured)


@dataclass(frozen=True)
class Recorded:
    """One scan as it was recorded."""

    dice: float
    hd: float
    hd95: float
    unit: str
    truth_empty: bool | None
    drawn_empty: bool | None

    @classmethod
    def of(cls, dice: float, hd: float, hd95: float, unit: str, truth: bool | None, drawn: bool | None) -> Recorded:
        """Fill in what the Dice tells: between 0 and 1 both masks have foreground; 1 means both or neither."""
        if 0 < dice < 1:
            truth = drawn = False
        elif dice == 1:
            truth, drawn = (truth if drawn is None else drawn), (drawn if truth is None else truth)
        return cls(dice, hd, hd95, unit, truth, drawn)


def of_shown(row: Mapping[str, Any]) -> Recorded:
    """A row of the table `shown`; older versions did not record which masks are empty."""
    truth, drawn = (None if row[name] < 0 else bool(row[name]) for name in ("label_empty", "shown_empty"))
    return Recorded.of(row["dice"], row["hd"], row["hd95"], row["unit"], truth, drawn)


def of_held_out(row: Mapping[str, Any]) -> Recorded:
    """A held-out scan in the details of a model. In older ones, no `classes` means that both masks are empty."""
    truth, drawn = row.get("truth_empty"), row.get("drawn_empty")
    if truth is None and row["dice"] == 1:
        truth = drawn = not row["classes"]
    return Recorded.of(row["dice"], row.get("hd", row["hd95"]), row["hd95"], row.get("unit") or "px", truth, drawn)


def of_model(model: Mapping[str, Any]) -> Summary:
    """The quality of a model on its held-out scans. Older models are judged again by what is recorded of each scan."""
    kept = {name: value for name, value in model["validation"].items() if value is not None}
    scans = model["details"].get("held_out")
    if "n_empty" not in kept and scans:
        found = summarise([of_held_out(scan) for scan in scans])
        return found | {"hd": kept.get("hd") if found["n"] == kept.get("n") else None}  # it was not kept for each scan
    if "n_empty" not in kept and kept.get("dice") == 1:
        kept = {}  # perhaps of scans without foreground only
    return summarise([]) | kept


def of_trial(arms: Mapping[str, Any]) -> Summary:
    """A control trial as it was recorded, with the keys that older versions lack."""
    return {**arms, **{arm: summarise([]) | arms[arm] for arm in ("ours", "control")}}


def with_foreground(scans: Sequence[M]) -> list[M]:
    """The scans that means run over. Where it is not recorded: those that differ from the truth."""
    return [s for s in scans if s.truth_empty is False or (s.truth_empty is None and s.dice < 1)]


def summarise(scans: Sequence[Measured]) -> Summary:
    """Means over the scans with foreground, and the two rates.

    dice, hd95, hd    None without such scans; the distances also when their units differ, then `unit` is "mixed"
    n                 number of scans with foreground
    miss_rate         None without such scans
    n_empty           number of scans without foreground
    false_alarm_rate  None without such scans

    A rate is None too when older records do not tell.
    """
    found = with_foreground(scans)
    empty = [s for s in scans if s.truth_empty]
    units = sorted({s.unit for s in found})
    one_unit = len(units) == 1
    known = all(s.truth_empty is not None for s in scans)
    return {
        "dice": float(np.mean([s.dice for s in found])) if found else None,
        "hd95": float(np.mean([s.hd95 for s in found])) if one_unit else None,
        "hd": float(np.mean([s.hd for s in found])) if one_unit else None,
        "unit": units[0] if one_unit else ("mixed" if units else None),
        "n": len(found),
        "miss_rate": _share([s.drawn_empty for s in found]) if known else None,
        "n_empty": len(empty),
        "false_alarm_rate": _share([None if s.drawn_empty is None else not s.drawn_empty for s in empty])
        if known
        else None,
    }


def overall(summary: Summary) -> float | None:
    """0..1, high is good: mean over all scans of the Dice, where a scan without foreground has 1 if nothing was drawn.

    Only to rank models, where false alarms must count; it is not shown to people. None without scans.
    """
    n, n_empty, alarms = summary["n"], summary["n_empty"], summary["false_alarm_rate"]
    if not n + n_empty:
        return None
    return float((n * (summary["dice"] or 0.0) + n_empty * (1 - (alarms or 0.0))) / (n + n_empty))


def _share(values: Sequence[bool | None]) -> float | None:
    return None if not values or None in values else sum(map(bool, values)) / len(values)
