"""The learning curve of a project: the quality of its models, and how much work they save annotators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, log2
from operator import itemgetter
from typing import Any

import numpy as np

from backend.facts import round_of, version_name
from backend.learning.averages import of_model, of_trial
from backend.records.store import Store
from backend.web.corrections import corrections
from backend.web.intervals import median
from backend.web.legend import label_names, legend, united
from backend.web.status import COMPARED, settings_of, shown_summaries, stopping, summary

FIRST_LABELS = 5  # upper limit of the first group of masks of the quick model


def curve(store: Store, project: int) -> dict[str, Any]:
    """The data of the learning curve, oldest first.

    labels       of the newest model, with their `colours`
    unit         unit of all distances; "mixed" if the rows differ, which then share no curve
    models       on their held-out scans, as in `averages.summarise`
    shown        per round, the masks shown compared with the submitted masks, likewise; `labels` is None for those of
                 the quick model, which learns from more labels after every scan
    quick        the masks of the quick model, likewise, in groups by the number of labels submitted before: up to 5,
                 10, 20, 40, and so on; `labels` is their mean
    control      comparisons with the control group
    lead_time    median seconds per scan, for scans opened with and without a mask
    corrections  see `corrections`
    stopping     as in the status

    The interval of the times is a bootstrap percentile (Efron 1979), None for fewer than two scans.
    """
    models = store.model_qualities(project)
    rounds = store.round_columns(project, "n", "labels", "model")
    labels = {version_name(n): count for n, count, _ in rounds}
    masked = {version_name(n) for n, _, model in rounds if model}
    judged = [of_model(m) for m in models]
    compared = shown_summaries(store, project)
    others = [version for version in compared if version not in masked]
    quick = store.shown_columns(project, ("task", "label", *COMPARED), others) if others else []
    columns = (*(("annotation", "key") if quick else ()), "task", "shown_version", "lead_time")
    read = store.label_columns(project, *columns)
    units = {found["unit"] for found in (*judged, *compared.values())} - {None}
    return {
        "unit": units.pop() if len(units) == 1 else "mixed" if units else None,
        "labels": list(models[-1]["labels"]) if models else [],
        "colours": legend(store, project, united(*(m["labels"] for m in models))),
        "models": [
            {"version": m["version"], "labels": m["learnt"], "accepted": bool(m["accepted"]), **_row(found)}
            for m, found in zip(models, judged, strict=True)
        ],
        "shown": [
            {"round": round_of(v), "model_version": v, "labels": labels.get(v) if v in masked else None, **_row(found)}
            for v, found in sorted(compared.items(), key=lambda item: round_of(item[0]) or 0)
        ],
        "quick": _quick(quick, read, label_names(store, project)),
        "control": [
            {"version": m["version"], **of_trial(m["details"]["arms"])} for m in models if "arms" in m["details"]
        ],
        "lead_time": _lead_time(read, masked, {task for task, *_ in quick}),
        "corrections": corrections(store, project, {task: seconds for *_, task, _, seconds in read}),
        "stopping": stopping(models, store.counts(project)["open"], settings_of(store, project)),
    }


def _quick(
    shown: Sequence[tuple[Any, ...]], read: Sequence[tuple[Any, ...]], names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Summaries of these masks (task, label, *COMPARED), which no model of a round drew.

    read  annotations (number, key, ...)
    """
    before = {row[1]: place for place, row in enumerate(sorted(read, key=itemgetter(0)))} if shown else {}
    groups: dict[int, list[tuple[int, tuple[Any, ...]]]] = {}
    for _, label, *row in shown:
        if (place := before.get(label)) is not None:
            groups.setdefault(max(0, ceil(log2(max(place, 1) / FIRST_LABELS))), []).append((place, tuple(row)))
    return [
        {
            "labels": round(float(np.mean([place for place, _ in found]))),
            **_row(summary([row for _, row in found], names)),
        }
        for _, found in sorted(groups.items())
    ]


def _lead_time(read: Sequence[tuple[Any, ...]], masked: set[str], quick: set[int]) -> dict[str, Any]:
    """Of scans opened with a mask by a model of a round (`masked`) or by the quick model (`quick`), and of others.

    read  annotations (..., task, shown version, seconds)
    """
    times: dict[bool, list[float | None]] = {True: [], False: []}
    for *_, task, version, seconds in read:
        times[version in masked or task in quick].append(seconds)
    return {"with": median(times[True]), "without": median(times[False])}


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    """A summary, with `classes` for clients that know only this older key: the Dice of each label."""
    classes = {
        name: {"dice": one["dice"], "low": one["dice_low"], "high": one["dice_high"], "n": one["n"]}
        for name, one in found["per_label"].items()
        if one["n"]
    }
    return {name: value for name, value in found.items() if name != "hd"} | {"classes": classes}
