"""What clicks, boxes and strokes of smart tools were worth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from backend.records.store import Store
from backend.web.intervals import mean, median

DAY = 86_400.0  # seconds
MEANS = {"prompts": "answers", "before": "before", "after": "after"}  # and the columns that they are of


def corrections(store: Store, project: int, times: Mapping[int, float | None]) -> dict[str, Any]:
    """{masked, blank, by_hand}: submitted scans that were corrected with smart tools, by how they opened, and the rest.

    Each {scans, prompts, time, before, after}: number of scans, mean number of answers for each scan, median seconds
    for each scan, and the mean Dice of the mask before and after the answers, compared with the submitted mask, over
    the labels that were corrected. Means and medians have 95 % intervals.

    times  of the labelled tasks, in seconds
    """
    answered = {row["task"]: row for row in store.corrections(project)}
    by_hand: list[float | None] = []
    groups: dict[str, list[tuple[float | None, Mapping[str, Any]]]] = {"masked": [], "blank": []}
    for task, seconds in times.items():
        row = answered.get(task)
        if row is None:
            by_hand.append(seconds)
        elif row["after"] is not None:
            groups["blank" if row["before"] is None else "masked"].append((seconds, row))
    found = {
        name: {
            "scans": len(pairs),
            "time": median([seconds for seconds, _ in pairs]),
            **{key: mean([row[column] for _, row in pairs]) for key, column in MEANS.items()},
        }
        for name, pairs in groups.items()
    }
    nothing = {name: mean([]) for name in MEANS}
    return found | {"by_hand": {"scans": len(by_hand), "time": median(by_hand), **nothing}}


def lately(store: Store, project: int) -> dict[str, int] | None:
    """{answers, failed, slow} of smart tools on the scans with an answer in the last day; None without any."""
    found = store.recent_corrections(project, time.time() - DAY)
    return found if found["answers"] else None
