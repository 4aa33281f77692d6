"""Restores a project from a backup file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import DataError

from backend.errors import BadBackup, BadSetting, ProjectBusy, StorageFull
from backend.records.archive import Archive
from backend.records.backup import check_held, held
from backend.records.backup_format import BY_CONTENT, CHUNK, FLEETING, OWN, TABLES, Say, Summary
from backend.records.database import VARIABLES
from backend.records.store import Store
from backend.records.tables import label_table, model_table, project_table

ROOM = 64 * 2**20  # bytes that must be free for the records, besides the artefacts


def restore(
    opened: Callable[[], Store], file: Path, *, replace: bool = False, wait: float = 600.0, say: Say = print
) -> Summary:
    """Restore a project that `backup` wrote. If killed at any point and run again, it reaches the same state.

    The whole file is checked before anything is written. Artefacts come first, then the records in one transaction.
    Other projects and existing equal artefacts are unchanged.

    opened   opens the store; called after the check, as it creates the data folder
    replace  replace an existing project; everything learned since the backup is lost

    Raises BadBackup; BadSetting for an existing project; ProjectBusy; StorageFull.
    """
    with Archive(file) as archive:
        project, store = archive.project, opened()
        _check_room(store, archive)
        with held(store, project, wait, say) as hold:
            if not replace:
                _check_unknown(store, archive)
            try:
                for kind, name, members in archive.artefacts():
                    check_held(hold, project)
                    _put(store, archive, kind, name, members)
                check_held(hold, project)
                _put_records(store, archive, replace)
            except DataError as error:  # SQLite accepts longer texts than PostgreSQL
                raise BadBackup(
                    f"{file} cannot be restored: the database rejects one of its rows ({error.orig}). The records "
                    "are unchanged."
                ) from error
            except StorageFull as error:
                raise StorageFull(
                    f"There is no space in {store.folder} or in the database: project {project} was not restored, its "
                    "records are unchanged. Free space and run the same command again: it continues where it stopped."
                ) from error
        return archive.summary


def _check_room(store: Store, archive: Archive) -> None:
    missing = [
        (archive.members[member]["size"])
        for kind, name, members in archive.artefacts()
        if not store.has(kind, name)
        for member in members.values()
    ]
    store.check_room(sum(missing) + ROOM, "restoring", "nothing was changed. Then run the same command again.")


def _check_unknown(store: Store, archive: Archive) -> None:
    row = store.project(archive.project)
    if row is not None:
        scans, models = len(store.scans(archive.project)), len(store.model_versions(archive.project))
        raise BadSetting(
            f"Project {archive.project} exists here ({row['title'] or 'no title'}: {scans} scans, {models} models), "
            f"and the backup of {archive.summary.made_at} would replace it. Nothing was changed. To replace it, pass "
            "--replace; everything learned since the backup is lost."
        )


def _put(store: Store, archive: Archive, kind: str, name: str, members: Mapping[str, str]) -> None:
    """Write one artefact, unless an equal one exists or other projects need the existing one."""
    place = store.path(kind, name)
    if place.exists() and (_shared(store, archive.project, kind, name) or _same(place, archive, members)):
        return

    def write(path: Path) -> None:
        for file, member in members.items():
            with (path / file if file else path).open("xb") as out:
                for chunk in archive.chunks(member):
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())

    (store.put_folder if kind == "models" else store.put_file)(kind, name, write)


def _same(place: Path, archive: Archive, members: Mapping[str, str]) -> bool:
    """Whether exactly these files exist there, byte by byte."""
    files = {p.name: p for p in place.iterdir()} if place.is_dir() else {"": place}
    return files.keys() == members.keys() and all(
        path.stat().st_size == archive.members[members[file]]["size"]
        and _sha256(path) == archive.members[members[file]]["sha256"]
        for file, path in files.items()
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shared(store: Store, project: int, kind: str, name: str) -> bool:
    """Whether another project may need the existing artefact. Names of maps contain their project's number."""
    if kind == "maps":
        return False
    if kind == "masks":
        return True  # the same model and the same scan: equal to ours
    column = model_table.c.fingerprint if kind == "models" else label_table.c.mask
    return bool(store.rows(select(column).where(column == name, column.table.c.project != project).limit(1)))


def _put_records(store: Store, archive: Archive, replace: bool) -> None:
    project = archive.project
    with store.settled() as connection:
        for kind, name, _ in archive.artefacts():
            if kind != "masks" and not store.has(kind, name):
                raise ProjectBusy(f"{kind}/{name} was removed meanwhile. Run the same command again.")
        known = select(project_table.c.id).where(project_table.c.id == project)
        if connection.execute(known).first() is not None and not replace:
            raise BadSetting(
                f"Project {project} was connected here meanwhile. Nothing was changed. Run the same command again with "
                "--replace."
            )
        for table in (*OWN, *FLEETING):
            column = table.c.id if table is project_table else table.c.project
            connection.execute(delete(table).where(column == project))
        for table in TABLES:
            for rows in _groups(archive.rows(table)):
                store.put_rows(connection, table, rows, keep=table in BY_CONTENT)


def _groups(rows: Iterable[dict[str, Any]]) -> Generator[list[dict[str, Any]]]:
    """Rows in groups that fit into memory."""
    group: list[dict[str, Any]] = []
    weight = 0
    for row in rows:
        group.append(row)
        weight += sum(len(v) for v in row.values() if isinstance(v, str | bytes))
        if len(group) >= VARIABLES or weight > CHUNK:
            yield group
            group, weight = [], 0
    if group:
        yield group
