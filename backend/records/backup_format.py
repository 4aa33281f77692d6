"""Contents of a backup file, and names of its members."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Table

from backend.fingerprints import fingerprint, judged_weights
from backend.records.maps import map_name
from backend.records.tables import (
    change_table,
    correction_table,
    embedding_table,
    label_table,
    lesson_table,
    model_table,
    progress_table,
    project_table,
    quick_mask_table,
    round_table,
    scan_table,
    shown_table,
    uncertainty_table,
)

FORMAT = 1
OLDEST = "0003"  # the oldest schema that can be restored; columns added since need a default
MANIFEST = "manifest.json"
RENAMED = "0008"  # the schema that renamed tables and columns; older backups have the old names
OLD_TABLES = {"entropy": "uncertainty"}
OLD_COLUMNS = {
    "project": {"levers": "overrides", "asked": "training_requests", "taken": "task_data_version"},
    "scan": {"wish": "priority"},
}
OWN = (  # tables whose rows contain the project
    *(project_table, scan_table, label_table, model_table, lesson_table),
    *(round_table, shown_table, correction_table, change_table),
)
BY_CONTENT = (embedding_table, uncertainty_table)  # tables whose rows projects may share
TABLES = (*OWN, *BY_CONTENT)
LATER = (change_table, lesson_table, correction_table)  # tables that older backups lack
NAMING = (model_table.c.fingerprint, label_table.c.mask, scan_table.c.digest)  # columns that name artefacts
FLEETING = (progress_table, quick_mask_table)  # of running work, and what is soon redone; not in a backup
ARTEFACTS = re.compile(
    r"artefacts/(?:(models)/([0-9a-f]{24})/(\w[\w.-]{0,99})|(labels|masks|maps)/([0-9a-f]{24}))", re.A
)
CHUNK = 2**20  # bytes in memory at once
LINE = 2**28  # maximum number of bytes in a row
MANIFEST_BYTES = 2**28
Say = Callable[[str], object]


@dataclass(frozen=True)
class Summary:
    """Contents of a backup. `counts`: rows by table and artefacts by kind; `size`: bytes of its members, unpacked."""

    project: int
    title: str
    made_at: str
    scanqueue: str
    counts: Mapping[str, int]
    size: int


def named_artefacts(
    project: int, embedder: str, models: Iterable[str], labels: Iterable[str], digests: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """(kind, name) of all artefacts that the project's records refer to, existing or not."""
    yield "maps", map_name(project, embedder)
    for kind, names in (("labels", labels), ("models", models)):
        for name in names:
            yield kind, name
    for model in models:
        for digest in digests:
            yield "masks", fingerprint(model, digest)
            yield "masks", fingerprint(judged_weights(model), digest)


def member_of(table: Table) -> str:
    return f"records/{table.name}.jsonl"


def artefact(member: str) -> tuple[str, str] | None:
    """(kind, name) of the artefact that a member belongs to."""
    found = ARTEFACTS.fullmatch(member)
    return (found[1] or found[4], found[2] or found[5]) if found else None
