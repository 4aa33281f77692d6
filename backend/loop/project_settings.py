"""The settings of one project, validated against the existing strategies and uncertainty measures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backend.errors import BadSetting
from backend.settings import ProjectSettings
from sampling import AGGREGATIONS, EXTRA_SIGNALS, strategy_pair


def row_settings(row: Mapping[str, Any]) -> ProjectSettings:
    """The settings in a project's record: those from Label Studio, overridden by those from the page."""
    return project_settings(row["extra_params"], json.loads(row["overrides"] or "{}"))


def project_settings(
    given: str | Mapping[str, Any] | None, overrides: Mapping[str, Any] | None = None
) -> ProjectSettings:
    """`ProjectSettings.from_json` of `given`, with `overrides`, and the strategy written out as COLD+MODEL.

    Raises BadSetting, also for an unknown strategy or uncertainty (the message lists the known ones) and for the
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
            'the strategy "stratified" needs a key to group the scans by: set stratify_by to a key of the task data, '
            'such as site, scanner or protocol. Example: {"strategy": "stratified", "stratify_by": "site"}.'
        )
    return settings.with_strategy(f"{cold}+{ranked}")


def extra_signal(settings: ProjectSettings) -> str:
    """The uncertainty that the strategy needs and that is not computed along with the entropy; "" for none."""
    return EXTRA_SIGNALS.get(settings.moments[1], "")
