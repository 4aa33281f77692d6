"""What a lab chose for one project, held against the strategies and measures there are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backend.errors import BadSetting
from backend.settings import ProjectSettings
from sampling import AGGREGATIONS, EXTRA_SIGNALS, strategy_pair


def row_settings(row: Mapping[str, Any]) -> ProjectSettings:
    """The settings of a project's record: those of the page, and under them what Label Studio says."""
    return project_settings(row["extra_params"], json.loads(row["overrides"] or "{}"))


def project_settings(
    given: str | Mapping[str, Any] | None, overrides: Mapping[str, Any] | None = None
) -> ProjectSettings:
    """`ProjectSettings.from_json` of `given` and what goes before it, with the strategy written out as COLD+MODEL.

    Raises BadSetting also for a strategy or an uncertainty that does not exist, with those that do, and for the
    strategy "stratified" without `stratify_by`.
    """
    settings = ProjectSettings.from_json(given)
    if overrides:
        settings = replace(settings, **ProjectSettings.checked(overrides))
    try:
        cold, ranked = strategy_pair(settings.strategy)
    except ValueError as error:
        raise BadSetting(f"{error}.") from None
    if settings.uncertainty not in AGGREGATIONS:
        raise BadSetting(f"uncertainty is {settings.uncertainty!r}; it must be one of {', '.join(AGGREGATIONS)}.")
    if cold == "stratified" and not settings.stratify_by:
        raise BadSetting(
            'the strategy "stratified" has to be told what tells the scans apart: set stratify_by to a key of the '
            'task data, such as site, scanner or protocol. Example: {"strategy": "stratified", "stratify_by": "site"}.'
        )
    return settings.with_strategy(f"{cold}+{ranked}")


def extra_signal(settings: ProjectSettings) -> str:
    """What the strategy needs of a model that is not had along with the entropy; "" when nothing."""
    return EXTRA_SIGNALS.get(settings.moments[1], "")
