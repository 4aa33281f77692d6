"""What clicks, boxes and strokes of smart tools were worth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from backend.records.store import Store
from backend.web.intervals import mean, median

DAY = 86_400.0  # seconds


def corrections(store: Store, project: int, times: Mapping[int, float | None]) -> dict[str, Any]:
    """{masked, blank, by_hand}: submitted scans that were corrected with smart tools, by how they opened, and the rest.

    Each {scans, prompts, time, before, after}: number of scans, mean number of answers for each scan, median seconds
    for each scan, and the mean Dice of the mask before and after the answers, compared with the submitted mask, over
    the labels that were corrected. Means and medians have 95 % intervals.

    times  of the labelled tasks, in seconds
    """
    answered = {row["task"]: row for row in store.corrections(project)}
    groups: dict[str, list[tuple[float | None, Mapping[Any, Any]]]] = {"masked": [], "blank": [], "by_hand": []}
    for task, seconds in times.items():
        row = answered.get(task)
        if row is None:
            groups["by_hand"].append((seconds, {}))
        elif row["after"] is not None:
            groups["blank" if row["before"] is None else "masked"].append((seconds, row))
    return {
        name: {
            "scans": len(pairs),
            "prompts": mean([row.get("answers") for _, row in pairs]),
            "time": median([seconds for seconds, _ in pairs]),
            "before": mean([row.get("before") for _, row in pairs]),
            "after": mean([row.get("after") for _, row in pairs]),
        }
        for name, pairs in groups.items()
    }


def lately(store: Store, project: int) -> dict[str, int] | None:
    """{answers, failed, slow} of smart tools on the scans with an answer in the last day; None without any."""
    found = store.recent_corrections(project, time.time() - DAY)
    return found if found["answers"] else None
