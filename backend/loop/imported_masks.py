"""Masks that a lab imported as predictions: tasks show them until a trained model draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backend.facts import IMPORTED_MASKS
from backend.label_studio.studio import Studio


def imported_masks(studio: Studio, project: int, tasks: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """The imported regions of those of `tasks` that have any."""
    if IMPORTED_MASKS not in studio.model_versions(project):
        return {}
    found = studio.predicted_regions(project, tasks, [IMPORTED_MASKS])
    return {task: [dict(region) for region in regions] for task, regions in found if regions}
