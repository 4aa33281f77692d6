"""What is averaged over what, for every figure about masks.

Per label: Dice and distances compare a drawn mask with the true one, so their means run over the scans whose truth has
the label. A scan without it has nothing to compare: it tells only whether the label was drawn there. So beside the
means stand

sensitivity       share of the scans with the label on which it was drawn
false_alarm_rate  share of the scans without it on which it was drawn
false_alarm_area  mean share of the picture that it covers there, 0 where it was not drawn

An overall figure is the mean of these over labels, so that a rare label weighs as much as a frequent one. A label that
the annotator could not draw is unknown on that scan, which then counts neither as a scan with it nor without it.

The truth is the submitted mask; drawn is a model's mask, or the mask that an annotator was shown.

Sources: Maier-Hein, Reinke et al. 2024 (Metrics Reloaded, 2302.01790); Isensee et al. 2021 (nnU-Net's summary); MONAI's
`ignore_empty`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.learning.evaluation import LabelScore, Scores

Summary = dict[str, Any]
Floats = NDArray[np.float64]

RESAMPLES = 2000  # bootstrap samples
MANY = 200  # number of scans above which the interval is computed instead of resampled
WHOLE = ""  # name of the label when an older record has only the figures of whole masks


@dataclass(frozen=True)
class Recorded:
    """One scan: the scores of its known labels by name, and the unit of the distances.

    certain  False for a record of an older version that does not tell which of the masks has a label
    """

    labels: Mapping[str, LabelScore]
    unit: str
    certain: bool = True

    @classmethod
    def of(cls, scores: Scores, names: Sequence[str]) -> Recorded:
        """names  of classes 1.."""
        return cls({names[number - 1]: one for number, one in scores.labels.items()}, scores.unit)


def as_row(scores: Scores, names: Sequence[str]) -> dict[str, Any]:
    """A scan as it is recorded, in JSON values: the means over the labels that its truth has, and each label."""
    labels = Recorded.of(scores, names).labels
    return {
        "dice": _rounded(scores.dice),
        "hd95": _rounded(scores.hd95),
        "hd": _rounded(scores.hd),
        "unit": scores.unit,
        "truth_empty": scores.truth_empty,
        "drawn_empty": scores.drawn_empty,
        "classes": {name: _rounded(one.dice) for name, one in labels.items() if one.present},
        "per_label": {name: {key: _rounded(v) for key, v in asdict(one).items()} for name, one in labels.items()},
    }


def of_row(row: Mapping[str, Any], names: Sequence[str]) -> Recorded:
    """The inverse of `as_row`, also for rows of older versions, which lack `per_label`.

    names  the labels of the model. In older rows `classes` has the Dice of each label that either mask has.
    """
    unit = row.get("unit") or "px"
    if "per_label" in row:
        return Recorded({name: LabelScore(**one) for name, one in row["per_label"].items()}, unit)
    classes: Mapping[str, float] = row["classes"]
    far = (row.get("hd"), row["hd95"]) if len(classes) == 1 else (None, None)
    truth, drawn, certain = row.get("truth_empty"), row.get("drawn_empty"), True
    labels = {}
    for name in names:
        dice = classes.get(name)
        if dice is None:
            labels[name] = LabelScore(False, False, 0.0)
        elif dice == 0 and truth:
            labels[name] = LabelScore(False, True, math.nan)
        else:
            labels[name] = LabelScore(True, dice > 0 or (drawn is False and len(classes) == 1), math.nan, dice, *far)
            certain &= dice > 0 or bool(drawn) or (truth is False and len(classes) == 1)
    return Recorded(labels, unit, certain)


def of_shown(row: Mapping[str, Any], names: Sequence[str]) -> Recorded:
    """A row of the table `shown`.

    names  the labels of the project, for older rows, which have only the figures of whole masks
    """
    if row.get("per_label"):
        return Recorded({name: LabelScore(**one) for name, one in json.loads(row["per_label"]).items()}, row["unit"])
    truth, drawn = (None if row[name] < 0 else bool(row[name]) for name in ("label_empty", "shown_empty"))
    dice = row["dice"]
    if 0 < dice < 1:  # both have a label
        truth = drawn = False
    elif dice == 1:  # both have, or neither
        truth, drawn = (truth if drawn is None else drawn), (drawn if truth is None else truth)
        if truth is None:
            return Recorded({}, row["unit"], False)
    found = LabelScore(False, not drawn, 0.0 if drawn else math.nan)
    if not truth:
        found = LabelScore(True, not drawn, math.nan, dice, row["hd"], row["hd95"])
    return Recorded({names[0] if len(names) == 1 else WHOLE: found}, row["unit"], None not in (truth, drawn))


def of_model(model: Mapping[str, Any]) -> Summary:
    """The quality of a model on its held-out scans. Older models are judged again by what is recorded of each scan."""
    kept = {name: value for name, value in model["validation"].items() if value is not None}
    if "per_label" in kept:
        return _nothing() | kept
    if scans := model["details"].get("held_out"):
        found = summarise([of_row(scan, model["labels"]) for scan in scans])
        same = found["n"] == kept.get("n")  # the recorded distances are means over the same scans
        return found | {name: kept.get(name) for name in ("hd95", "hd") if found[name] is None and same}
    if "n_empty" not in kept and kept.get("dice") == 1:
        kept = {}  # perhaps of scans without foreground only
    return _completed(kept)


def of_scores(scores: Sequence[Scores], names: Sequence[str]) -> Summary:
    """names  of classes 1.."""
    return summarise([Recorded.of(one, names) for one in scores])


def of_trial(arms: Mapping[str, Any]) -> Summary:
    """A control trial as it was recorded, with the keys that older versions lack."""
    return {**arms, **{arm: _completed(arms[arm]) for arm in ("ours", "control")}}


def _completed(recorded: Mapping[str, Any]) -> Summary:
    """A summary of an older version with the keys of today."""
    missed = recorded.get("miss_rate")
    return _nothing() | {"sensitivity": None if missed is None else 1 - missed} | dict(recorded)


def summarise(scans: Sequence[Recorded]) -> Summary:
    """All figures of these scans, in JSON values.

    per_label   by name, in the order of appearance: {n, dice, dice_low, dice_high, hd95, hd, sensitivity, n_without,
                false_alarm_rate, false_alarm_area}, where `n` scans have the label and `n_without` do not
    dice, hd95  means over labels, with 95 % intervals `dice_low` to `dice_high`, `hd95_low` to `hd95_high`
    hd, sensitivity, false_alarm_rate, false_alarm_area
                means over labels
    miss_rate   1 - sensitivity
    n, n_empty  scans whose truth has any label, and scans whose truth has none
    unit        of the distances; "mixed" when it differs between scans, which then have no mean

    A figure without a scan to take it from is None; so are rates that older records do not tell. Intervals are
    percentiles of the bootstrap over scans (Efron 1979), None when a label has fewer than two scans.
    """
    names = list(dict.fromkeys(name for scan in scans for name in scan.labels))
    present = [any(one.present for one in scan.labels.values()) for scan in scans]
    units = sorted({scan.unit for scan, found in zip(scans, present, strict=True) if found})
    certain = all(scan.certain for scan in scans)
    labels = {name: _of_label([s.labels[name] for s in scans if name in s.labels], units, certain) for name in names}
    found: Summary = {"n": sum(present), "n_empty": sum(bool(scan.labels) for scan in scans) - sum(present)}
    found["unit"] = units[0] if len(units) == 1 else "mixed" if units else None
    for name in ("dice", "hd95", "hd", "sensitivity", "false_alarm_rate", "false_alarm_area"):
        values = [one[name] for one in labels.values()]
        asked = "n_without" if name.startswith("false") else "n"
        known = [value for value, one in zip(values, labels.values(), strict=True) if one[asked]]
        found[name] = float(np.mean(known)) if known and None not in known else None
    found["miss_rate"] = None if found["sensitivity"] is None else 1 - found["sensitivity"]
    for name in ("dice", "hd95"):
        table = _table(scans, names, name) if found[name] is not None else np.empty((0, 0))
        found[f"{name}_low"], found[f"{name}_high"] = _interval(table)
    for name, one in labels.items():
        one["dice_low"], one["dice_high"] = _interval(_table(scans, [name], "dice"))
    return found | {"per_label": {name: one for name, one in labels.items() if name != WHOLE}}


def _nothing() -> Summary:
    """`summarise` of no scan."""
    return _NOTHING | {"per_label": {}}


def _of_label(scores: Sequence[LabelScore], units: Sequence[str], certain: bool) -> Summary:
    """The figures of one label on the scans where it is known, without intervals."""
    there, without = [s for s in scores if s.present], [s for s in scores if not s.present]
    far = there if len(units) == 1 else []
    return {
        "n": len(there),
        "dice": _mean([s.dice for s in there]),
        "hd95": _mean([s.hd95 for s in far]),
        "hd": _mean([s.hd for s in far]),
        "sensitivity": _mean([s.drawn for s in there]) if certain else None,
        "n_without": len(without),
        "false_alarm_rate": _mean([s.drawn for s in without]) if certain else None,
        "false_alarm_area": _mean([s.area for s in without]) if certain else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None without values, and when one of them is not known."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _table(scans: Sequence[Recorded], names: Sequence[str], what: str) -> Floats:
    """(scans, labels) of one measure, NaN where the truth does not have the label."""
    rows = [[getattr(scan.labels.get(name), what, None) for name in names] for scan in scans]
    table = np.array(rows, dtype=np.float64).reshape(len(scans), len(names))
    return table[:, ~np.isnan(table).all(axis=0)]


def _interval(table: Floats) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean over labels (columns) of the means over scans (rows)."""
    table = table[~np.isnan(table).all(axis=1)]
    there = ~np.isnan(table)
    if not table.size or there.sum(axis=0).min() < 2:
        return None, None
    values = np.where(there, table, 0.0)
    if len(table) > MANY:  # close to resampling, at a fraction of its cost
        means = values.sum(axis=0) / there.sum(axis=0)
        each = np.where(there, table - means, 0.0) / there.sum(axis=0)
        half = 1.96 * float(np.sqrt((each.mean(axis=1) ** 2).sum()))
        low, high = float(means.mean()) - half, float(means.mean()) + half
    else:
        counts = _resamples(len(table)).astype(np.float64)
        with np.errstate(invalid="ignore"):  # a sample may lack a label
            means = np.nanmean((counts @ values) / (counts @ there), axis=1)
        low, high = np.percentile(means, [2.5, 97.5]).tolist()
    return round(low, 6), round(high, 6)


@lru_cache(maxsize=32)
def _resamples(n: int) -> NDArray[np.uint8]:
    """(RESAMPLES, n): how often each of n scans, at most MANY, is in each bootstrap sample."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.uint8)


def _rounded(value: float | bool | None) -> float | bool | None:
    return round(value, 6) if isinstance(value, float) else value


_NOTHING = summarise([])
