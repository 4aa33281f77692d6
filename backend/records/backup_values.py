"""Checks the values of a backup as `/setup`, the page and Label Studio would have before they were stored."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sqlalchemy import Table

from backend.errors import BadSetting, DamagedRecords
from backend.label_config import LabelConfig, Renames
from backend.records.rounds import Pick
from backend.records.tables import (
    change_table,
    correction_table,
    label_table,
    model_table,
    project_table,
    round_table,
    shown_table,
    uncertainty_table,
)
from backend.settings import ProjectSettings, is_http

BODY = 8 * 2**20  # characters: the longest request that /setup accepts
LONGEST = {  # characters of a project's texts
    "title": 1000,
    "backend_url": 2000,
    "studio_url": 2000,
    "secret": 200,
    "cursor": 200,
    "phase": 16,
    "active": 40,
    "embedder": 500,
    "embedder_why": 5000,
    "stratify_by": 1000,
    "reason": 100_000,
    "trouble": 100_000,
    "overrides": 100_000,
    "extra_params": BODY,
    "config": BODY,
    "label_renames": BODY,
    "settings_before": BODY,
    "stages": BODY,
}
NAMED = ((model_table, "fingerprint"), (label_table, "mask"))  # columns that name files in the data folder
NAME = re.compile(r"([0-9a-f]{24})?")
SECRET = re.compile(r"[\w.~-]{16,200}", re.ASCII)
JSON: dict[Table, dict[str, type]] = {  # columns that contain JSON: what it must be; "" and NULL are allowed
    project_table: {"overrides": dict, "label_renames": object, "settings_before": object, "stages": dict},
    label_table: {"unknown": list, "known": list},
    model_table: {"labels": list, "validation": dict, "details": dict},
    round_table: {"picks": list, "carried": list, "settings": dict},
    shown_table: {"per_label": object},
    correction_table: {"names": list},
    uncertainty_table: {"more": dict},
    change_table: {"before": object, "after": object},
}


def check_values(table: Table, row: Mapping[str, Any]) -> None:
    """Raise ValueError naming the column whose value could not have been stored by scanqueue."""
    values: dict[str, Any] = {}
    for name, kind in JSON.get(table, {}).items():
        if not (text := row.get(name)):
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"{name!r} is {_short(text)}; expected JSON") from None
        if not isinstance(found, kind):
            raise ValueError(f"{name!r} is {_short(text)}; expected a JSON {'list' if kind is list else 'object'}")
        values[name] = found
    for named, name in NAMED:
        if table is named and not NAME.fullmatch(row[name]):
            raise ValueError(f"{name!r} is {_short(row[name])}; expected the name of a file, of 24 hexadecimal digits")
    if table is project_table:
        _check_project(row)
    if not all(map(_is_pick, values.get("picks", ()))):
        raise ValueError(f"'picks' is {_short(row['picks'])}; expected lists of a task, a reason and numbers")
    if not all(isinstance(label, str) for label in values.get("labels", ())):
        raise ValueError(f"'labels' is {_short(row['labels'])}; expected texts")


def _check_project(row: Mapping[str, Any]) -> None:
    for name, most in LONGEST.items():
        if len(row[name]) > most:
            raise ValueError(f"{name!r} has {len(row[name]):,} characters; the maximum is {most:,}")
    for name in ("backend_url", "studio_url"):
        if row[name] and not is_http(row[name]):
            raise ValueError(f"{name!r} is {_short(row[name])}; expected an http:// or https:// address")
    if not SECRET.fullmatch(row["secret"]):
        raise ValueError("'secret' is not a webhook secret of scanqueue")
    for name, read in (("config", LabelConfig.from_json), ("label_renames", Renames.from_json)):
        try:
            read(row[name])
        except DamagedRecords:
            raise ValueError(f"{name!r} is {_short(row[name])}; expected what scanqueue writes there") from None
    if row["overrides"]:
        try:
            ProjectSettings.checked(json.loads(row["overrides"]))
        except BadSetting as error:
            raise ValueError(f"'overrides': {str(error)[:300].rstrip('.')}") from None


def _is_pick(given: Any) -> bool:
    """Whether it is a task, the reason and the terms of a `Pick`."""
    return (
        isinstance(given, list)
        and 2 <= len(given) <= len(fields(Pick))
        and type(given[0]) is int
        and isinstance(given[1], str)
        and all(term is None or isinstance(term, int | float) for term in given[2:])
    )


def _short(text: str) -> str:
    return repr(text[:40]) + ("..." if len(text) > 40 else "")
