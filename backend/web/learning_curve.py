"""The learning curve of a project: the quality of its models, and how much work they save annotators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from backend.facts import round_of, version_name
from backend.learning.averages import Recorded, of_held_out, of_model, of_shown, of_trial, summarise, with_foreground
from backend.records.store import Store
from backend.web.legend import legend, united
from backend.web.status import describe

RESAMPLES = 2000  # bootstrap samples
SEED = 0
MANY = 1000  # number of values above which the interval is computed instead of resampled


def curve(store: Store, project: int) -> dict[str, Any]:
    """The data of the learning curve, oldest first.

    labels     of the newest model, with their `colours`
    unit       unit of all distances; "mixed" if the rows differ, which then share no curve
    models     on their held-out scans: `dice` and `hd95` with 95 % intervals, `dice` also per label
    shown      per round, the masks shown compared with the submitted masks
               Means run over scans with foreground; rates as in `averages`
    control    comparisons with the control group
    lead_time  median seconds per scan, for scans opened with and without a mask
    stopping   as in the status

    Intervals are bootstrap percentiles over scans (Efron 1979), None for fewer than two scans.
    """
    status = describe(store, project)
    models = store.models(project)
    rounds = store.rounds(project, picks=False)
    labels = {version_name(r["n"]): r["labels"] for r in rounds}
    masked = {version_name(r["n"]) for r in rounds if r["model"]}
    shown: dict[str, list[Recorded]] = {}
    for row in store.shown(project):
        shown.setdefault(row["version"], []).append(of_shown(dict(row)))
    read = store.labels(project)
    units = {of_model(m)["unit"] for m in models} | {_both(rows)["unit"] for rows in shown.values()}
    units.discard(None)
    return {
        "unit": units.pop() if len(units) == 1 else "mixed" if units else None,
        "labels": list(models[-1]["labels"]) if models else [],
        "colours": legend(store, project, united(*(m["labels"] for m in models))),
        "models": [_of_model(m) for m in models],
        "shown": [
            {"round": round_of(v), "model_version": v, "labels": labels.get(v), **_both(rows)}
            for v, rows in sorted(shown.items(), key=lambda item: round_of(item[0]) or 0)
        ],
        "control": [
            {"version": m["version"], **of_trial(m["details"]["arms"])} for m in models if "arms" in m["details"]
        ],
        "lead_time": {
            "with": _median([r["lead_time"] for r in read if r["shown_version"] in masked]),
            "without": _median([r["lead_time"] for r in read if r["shown_version"] not in masked]),
        },
        "stopping": status["stopping"] if status else None,
    }


def _of_model(model: Mapping[str, Any]) -> dict[str, Any]:
    scans = [(scan, of_held_out(scan)) for scan in model["details"].get("held_out", [])]
    one = {
        "version": model["version"],
        "labels": len(model["trained_on"]),
        "accepted": bool(model["accepted"]),
        **_both([scored for _, scored in scans]),
        **of_model(model),
    }
    del one["hd"]
    held_out = [scan for scan, scored in scans if with_foreground([scored])]
    names = [label for label in model["labels"] if any(label in scan["classes"] for scan in held_out)]
    found = {label: [s["classes"][label] for s in held_out if label in s["classes"]] for label in names}
    classes = {}
    for label, values in found.items():
        dice, low, high = _mean(values)
        classes[label] = {"dice": dice, "low": low, "high": high, "n": len(values)}
    return one | {"classes": classes}


def _both(scans: Sequence[Recorded]) -> dict[str, Any]:
    """`summarise`, with intervals of Dice and HD95; no distance if their units differ."""
    found = summarise(scans)
    del found["hd"]
    means = with_foreground(scans)
    distances = [] if found["unit"] == "mixed" else [s.hd95 for s in means]
    for name, values in (("dice", [s.dice for s in means]), ("hd95", distances)):
        found[name], found[f"{name}_low"], found[f"{name}_high"] = _mean(values)
    return found


def _mean(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The mean and its interval."""
    return (round(float(np.mean(values)), 6) if values else None, *_interval(values, np.mean))


def _median(times: Sequence[float | None]) -> dict[str, Any]:
    known = [t for t in times if t is not None]
    low, high = _interval(known, np.median)
    median = round(float(np.median(known)), 2) if known else None
    return {"median": median, "low": low, "high": high, "n": len(known)}


def _interval(values: Sequence[float], statistic: Any) -> tuple[float | None, float | None]:
    """A 95 % interval of the statistic; (None, None) for fewer than two values."""
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2:
        return None, None
    if len(found) > MANY:  # close to resampling, at a fraction of its cost
        half = 1.96 * float(found.std(ddof=1)) / len(found) ** 0.5
        shift = 0.98 / len(found) ** 0.5  # in the rank of the median (David & Nagaraja 2003)
        middle = float(found.mean())
        low, high = (
            (middle - half, middle + half) if statistic is np.mean else np.quantile(found, [0.5 - shift, 0.5 + shift])
        )
        return round(float(low), 6), round(float(high), 6)
    rows = np.random.default_rng(SEED).integers(len(found), size=(RESAMPLES, len(found)))
    low, high = np.percentile(statistic(found[rows], axis=1), [2.5, 97.5])
    return round(float(low), 6), round(float(high), 6)
