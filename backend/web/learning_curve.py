"""The learning curve of a project: the quality of its models, and how much work they save annotators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, log2
from typing import Any

import numpy as np

from backend.facts import round_of, version_name
from backend.learning.averages import of_model, of_trial
from backend.records.store import Store
from backend.web.corrections import corrections
from backend.web.intervals import median
from backend.web.legend import label_names, legend, united
from backend.web.status import settings_of, shown_summaries, stopping, summary

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
    models = store.model_summaries(project)
    rounds = store.rounds(project, picks=False)
    labels = {version_name(r["n"]): r["labels"] for r in rounds}
    masked = {version_name(r["n"]) for r in rounds if r["model"]}
    quick = {row["task"] for row in store.shown(project) if row["version"] not in masked}
    read = store.labels(project)
    judged = [of_model(m) for m in models]
    compared = shown_summaries(store, project)
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
        "quick": _quick(store, project, masked, read),
        "control": [
            {"version": m["version"], **of_trial(m["details"]["arms"])} for m in models if "arms" in m["details"]
        ],
        "lead_time": {
            "with": median([r["lead_time"] for r in read if r["shown_version"] in masked or r["task"] in quick]),
            "without": median(
                [r["lead_time"] for r in read if r["shown_version"] not in masked and r["task"] not in quick]
            ),
        },
        "corrections": corrections(store, project, read),
        "stopping": stopping(models, store.counts(project)["open"], settings_of(store, project)),
    }


def _quick(store: Store, project: int, masked: set[str], read: Sequence[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """Summaries of the masks that no model of a round (`masked`) drew."""
    before = {label["key"]: place for place, label in enumerate(sorted(read, key=lambda label: label["annotation"]))}
    groups: dict[int, list[Mapping[Any, Any]]] = {}
    for row in store.shown(project):
        if row["version"] not in masked and row["label"] in before:
            groups.setdefault(max(0, ceil(log2(max(before[row["label"]], 1) / FIRST_LABELS))), []).append(row)
    names = label_names(store, project)
    return [
        {"labels": round(float(np.mean([before[row["label"]] for row in rows]))), **_row(summary(rows, names))}
        for _, rows in sorted(groups.items())
    ]


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    """A summary, with `classes` for clients that know only this older key: the Dice of each label."""
    classes = {
        name: {"dice": one["dice"], "low": one["dice_low"], "high": one["dice_high"], "n": one["n"]}
        for name, one in found["per_label"].items()
        if one["n"]
    }
    return {name: value for name, value in found.items() if name != "hd"} | {"classes": classes}
