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

ROOM = 64 * 2**20  # bytes that must be free besides what is restored: for the records


def restore(
    opened: Callable[[], Store], file: Path, *, replace: bool = False, wait: float = 600.0, say: Say = print
) -> Summary:
    """Put a project in place that `backup` wrote. Killed anywhere and run again it ends in the same state.

    All of the file is checked before anything is written. Artefacts come first and records last, in one
    transaction. What other projects have, or what lies there already, is left as it is.

    opened   opens the store; called once the file has been checked, as it makes the data folder
    replace  put it in the place of a project that is known already; what that has learnt since is lost

    Raises BadBackup; BadSetting for a project that is known already; ProjectBusy; StorageFull.
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
            except DataError as error:  # SQLite takes longer texts than PostgreSQL
                raise BadBackup(
                    f"{file} cannot be restored: the database refuses a row of it ({error.orig}). Its records are as "
                    "they were."
                ) from error
            except StorageFull as error:
                raise StorageFull(
                    f"There is no room in {store.folder} or in the database: project {project} was not restored, its "
                    "records are as they were. Make room and run the same command again: it goes on where it stopped."
                ) from error
        return archive.summary


def _check_room(store: Store, archive: Archive) -> None:
    missing = [
        (archive.members[member]["size"])
        for kind, name, members in archive.artefacts()
        if not store.has(kind, name)
        for member in members.values()
    ]
    store.check_room(sum(missing) + ROOM, "restoring", "nothing was changed. Run the same command again then.")


def _check_unknown(store: Store, archive: Archive) -> None:
    row = store.project(archive.project)
    if row is not None:
        scans, models = len(store.scans(archive.project)), len(store.models(archive.project))
        raise BadSetting(
            f"Project {archive.project} is known here already ({row['title'] or 'no title'}: {scans} scans, {models} "
            f"models), and the backup of {archive.summary.made_at} would take its place. Nothing was changed. "
            "With --replace it does; what was learnt since is lost."
        )


def _put(store: Store, archive: Archive, kind: str, name: str, members: Mapping[str, str]) -> None:
    """Put one artefact in its place, unless one lies there that is the same or that others need as it is."""
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
    """Whether just these files lie there, byte by byte."""
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
    """Whether another project may need the artefact as it is. Maps bear their project's number in their name."""
    if kind == "maps":
        return False
    if kind == "masks":
        return True  # drawn by a model of that name from a scan of that name: as good as ours
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
                f"Project {project} was connected here meanwhile, so nothing was changed. Run the same command again "
                "with --replace."
            )
        for table in (*OWN, *FLEETING):
            column = table.c.id if table is project_table else table.c.project
            connection.execute(delete(table).where(column == project))
        for table in TABLES:
            for rows in _groups(archive.rows(table)):
                store.put_rows(connection, table, rows, keep=table in BY_CONTENT)


def _groups(rows: Iterable[dict[str, Any]]) -> Generator[list[dict[str, Any]]]:
    """Rows in groups that fit into memory, whatever they hold."""
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
