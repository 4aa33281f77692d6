"""The part of the simulation report about findings that were missed, and about test scans without foreground."""

from __future__ import annotations

from collections.abc import Sequence

from backend.simulate.report_html import caption_prefix, interval_text, table_html
from backend.simulate.results import ALL_LABELS, Row, arm_names, budgets, data_sets, of_data
from backend.simulate.statistics import RESAMPLES, Interval, mean_interval
from backend.simulate.text import escaped


def rates_section(rows: Sequence[Row], *, seed: int = 0, resamples: int = RESAMPLES) -> str:
    """Both rates of each strategy at its largest budget; "" when older results do not have them, or all are 0."""
    names = arm_names(rows)
    tables = []
    for data in data_sets(rows):
        here = [r for r in of_data(rows, data) if r.strategy != ALL_LABELS and r.miss_rate is not None]
        if not any(r.n_empty or r.miss_rate for r in here):
            continue
        last = max(budgets(here))

        def cell(values: Sequence[float | None]) -> str:
            known = [v for v in values if v is not None]
            found: Interval | None = mean_interval({"": known}, seed=seed, resamples=resamples) if known else None
            return interval_text(found, counted=True)

        lines = []
        for arm, name in names.items():
            ours = [r for r in here if r.arm == arm and r.budget == last]
            if ours:
                rates = cell([r.miss_rate for r in ours]), cell([r.false_alarm_rate for r in ours])
                lines.append([escaped(name), *rates])
        drawn, empty = _span([r.n_test - r.n_empty for r in here]), _span([r.n_empty for r in here])
        tables.append(
            table_html(
                f"{caption_prefix(data)}shares at {last} labels, as mean and 95 % interval with the number of repeats "
                f"in brackets, on {drawn} test scans with foreground and {empty} without. Lower is better.",
                ["Strategy", "Missed", "False alarms"],
                lines,
            )
        )
    if not tables:
        return ""
    return (
        "<section><h2>Missed findings and false alarms</h2><p>Missed: test scans with foreground on which the model "
        "drew nothing. False alarms: test scans without foreground on which it drew something. Dice and distances are "
        f"means over the test scans with foreground only.</p>{''.join(tables)}</section>"
    )


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
