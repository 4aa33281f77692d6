"""The part of the simulation report about what means hide: misses, false alarms, and single labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from backend.simulate.report_html import caption_prefix, interval_text, table_html
from backend.simulate.results import ALL_LABELS, Row, arm_names, budgets, data_sets, of_data
from backend.simulate.statistics import RESAMPLES, Interval, mean_interval
from backend.simulate.text import escaped

HEAD = ["Missed", "False alarms", "Area of false alarms"]


def rates_section(rows: Sequence[Row], *, seed: int = 0, resamples: int = RESAMPLES) -> str:
    """The rates of each strategy at its largest budget, also per label; "" when older results do not have them.

    It is "" too when there is one label, and nothing to tell of it: no misses, and no scans without it.
    """
    names = arm_names(rows)

    def cell(values: Sequence[float | None]) -> str:
        known = [v for v in values if v is not None]
        found: Interval | None = mean_interval({"": known}, seed=seed, resamples=resamples) if known else None
        return interval_text(found, counted=True)

    tables = []
    for data in data_sets(rows):
        here = [r for r in of_data(rows, data) if r.strategy != ALL_LABELS and r.miss_rate is not None]
        labels = list(dict.fromkeys(label for r in here if r.per_label for label in json.loads(r.per_label)))
        if not any(r.n_empty or r.miss_rate for r in here) and len(labels) < 2:
            continue
        last = max(budgets(here))
        lines, by_label = [], []
        for arm, name in names.items():
            ours = [r for r in here if r.arm == arm and r.budget == last]
            if not ours:
                continue
            rates = ([getattr(r, key) for r in ours] for key in ("miss_rate", "false_alarm_rate", "false_alarm_area"))
            lines.append([escaped(name), *map(cell, rates)])
            for label in labels if len(labels) > 1 else ():
                each = [json.loads(r.per_label).get(label, {}) for r in ours if r.per_label]
                by_label.append([escaped(name), escaped(label), *map(cell, _of_label(each))])
        drawn, empty = _span([r.n_test - r.n_empty for r in here]), _span([r.n_empty for r in here])
        spread = "as mean and 95 % interval with the number of repeats in brackets"
        tables.append(
            table_html(
                f"{caption_prefix(data)}shares at {last} labels, {spread}, on {drawn} test scans with foreground and "
                f"{empty} without. Lower is better.",
                ["Strategy", *HEAD],
                lines,
            )
        )
        if by_label:
            caption = f"{caption_prefix(data)}each label at {last} labels, {spread}."
            tables.append(table_html(caption, ["Strategy", "Label", "Dice", *HEAD], by_label))
    if not tables:
        return ""
    return (
        "<section><h2>Missed findings and false alarms</h2><p>Missed: test scans with a label on which the model did "
        "not draw it. False alarms: test scans without it on which it drew it, and the mean share of these pictures "
        "that it covered. All figures are means over labels; Dice and distances of a label are means over the test "
        f"scans with it.</p>{''.join(tables)}</section>"
    )


def _of_label(each: Sequence[dict[str, Any]]) -> list[list[float | None]]:
    """Dice, misses, false alarms and their area of one label in every repeat."""
    found = [one.get("sensitivity") for one in each]
    return [
        [one.get("dice") for one in each],
        [None if value is None else 1 - value for value in found],
        [one.get("false_alarm_rate") for one in each],
        [one.get("false_alarm_area") for one in each],
    ]


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
