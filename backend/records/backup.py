"""Writes one project, its records and artefacts, to one file that can be restored here or on another machine.

The file is a zip archive: `manifest.json`, the rows of each table as JSON lines under `records/`, and the artefacts
under `artefacts/` with their names in the data folder. Cached pixels are left out: they are fetched again from Label
Studio. The file contains the project's webhook secret; only its owner may read it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Column, Connection, Table, select

from backend import __version__
from backend.errors import BadSetting, ProjectBusy, StorageFull, is_disk_full
from backend.records.backup_format import (
    ARTEFACTS,
    CHUNK,
    FORMAT,
    MANIFEST,
    NAMING,
    TABLES,
    Say,
    Summary,
    member_of,
    named_artefacts,
)
from backend.records.locks import LockHandle
from backend.records.migrate import HEAD
from backend.records.store import Store
from backend.records.tables import embedding_table, model_table, project_table, scan_table, uncertainty_table

POLL = 0.2  # seconds between two tries to get the project's lock


def backup(
    store: Store, project: int, file: Path, *, force: bool = False, wait: float = 600.0, say: Say = print
) -> Summary:
    """Write `project` to `file` while no worker uses it, completely or not at all.

    force  overwrite an existing file
    wait   seconds to wait for a worker to release the project
    say    called once with a sentence if it has to wait

    Raises BadSetting for an unknown project or an existing file; ProjectBusy if the wait was too short; StorageFull
    if there is no space for the file.
    """
    store.known_project(project)
    if file.is_dir() or (file.exists() and not force):
        raise BadSetting(f"{file} already exists. Use another name, or --force to overwrite a file.")
    if file.exists() and not file.is_file():
        raise BadSetting(f"{file} is not a file, but a pipe or a device. Use another name.")
    if not file.parent.is_dir():
        raise BadSetting(f"{file.parent} is not a folder. Create it first.")
    with held(store, project, wait, say) as hold:
        try:
            number, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=file.parent)  # mode 0600
            try:
                with os.fdopen(number, "wb") as out:
                    made = _write(store, project, out, hold)
                    out.flush()
                    os.fsync(out.fileno())
                _rename(Path(name), file, force)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            if is_disk_full(error):
                raise StorageFull(
                    f"The disk that holds {file.parent} is full: no backup was written. Free disk space, or choose a "
                    "file on another disk."
                ) from error
            raise BadSetting(f"{file} cannot be written: {error.strerror}.") from error
    return made


@contextmanager
def held(store: Store, project: int, wait: float, say: Say) -> Iterator[LockHandle]:
    """Wait for the project's lock and hold it. Raises ProjectBusy when it is not available within `wait` seconds."""
    until, announced = time.monotonic() + wait, False
    while True:
        with store.lock(project) as mine:
            if mine:
                yield mine
                return
        job = store.progress(project)
        at = f"a worker is using it ({job['step']}, {job['done']} of {job['total']})" if job else "a worker is using it"
        if time.monotonic() >= until:
            raise ProjectBusy(
                f"Project {project}: {at} and did not release it within {wait:.0f} s. Nothing was done. Use a longer "
                "--wait (training locks it until its end), or stop the workers first."
            )
        if not announced:
            say(f"Project {project}: {at}; waiting for it, at most {wait:.0f} s.")
            announced = True
        time.sleep(POLL)


def check_held(hold: LockHandle, project: int) -> None:
    if hold.lost():
        raise ProjectBusy(f"Project {project}: a worker took the lock meanwhile. Run the same command again.")


def _rename(part: Path, file: Path, force: bool) -> None:
    if force:
        os.replace(part, file)
        return
    try:
        os.link(part, file)  # unlike a rename, a link overwrites nothing
    except FileExistsError:
        raise BadSetting(f"{file} was meanwhile created by another process; it is unchanged.") from None
    except OSError:  # a file system without links
        if file.exists():
            raise BadSetting(f"{file} was meanwhile created by another process; it is unchanged.") from None
        os.replace(part, file)


def _write(store: Store, project: int, out: IO[bytes], hold: LockHandle) -> Summary:
    members: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    with zipfile.ZipFile(out, "w", allowZip64=True) as archive:
        with store.snapshot() as connection:  # released before the artefacts, which take long and do not change
            row = connection.execute(select(project_table).where(project_table.c.id == project)).mappings().one()
            for table in TABLES:
                name = member_of(table)
                rows = connection.execute(_rows_of(table, project, row["embedder"])).mappings()
                counts[table.name] = 0

                def lines(rows: Any = rows, kind: str = table.name) -> Iterator[bytes]:
                    for found in rows:
                        check_held(hold, project)
                        counts[kind] += 1
                        yield _line(found)

                members[name] = _add(archive, name, lines(), zipfile.ZIP_DEFLATED)
            names = [_distinct(connection, project, column) for column in NAMING]
        for kind, name in named_artefacts(project, row["embedder"], *names):
            check_held(hold, project)
            found = _add_artefact(store, archive, kind, name)
            members |= found
            counts[kind] = counts.get(kind, 0) + bool(found)
        size = sum(entry["size"] for entry in members.values())
        made_at = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"format": FORMAT, "scanqueue": __version__, "schema": HEAD, "project": project}
        about |= {"title": row["title"], "made_at": made_at, "counts": counts, "members": members}
        _add(archive, MANIFEST, [json.dumps(about, indent=1).encode()], zipfile.ZIP_DEFLATED)
    return Summary(project, row["title"], made_at, __version__, counts, size)


def _rows_of(table: Table, project: int, embedder: str) -> Any:
    """A query for the project's rows of a table, always in the same order."""
    if table is project_table:
        here = project_table.c.id == project
    elif table is embedding_table:
        digests = select(scan_table.c.digest).where(scan_table.c.project == project)
        here = (table.c.embedder == embedder) & table.c.digest.in_(digests)
    elif table is uncertainty_table:
        here = table.c.model.in_(select(model_table.c.fingerprint).where(model_table.c.project == project))
    else:
        here = table.c.project == project
    return select(table).where(here).order_by(*table.primary_key)


def _distinct(connection: Connection, project: int, column: Column[str]) -> list[str]:
    found = connection.execute(select(column).where(column.table.c.project == project)).scalars()
    return sorted(set(found) - {""})


def _add_artefact(store: Store, archive: zipfile.ZipFile, kind: str, name: str) -> dict[str, dict[str, Any]]:
    """Members by name; empty if the artefact does not exist, as it is recreated when needed."""
    path, inside = store.path(kind, name), f"artefacts/{kind}/{name}"
    files = {inside: path}
    if kind == "models":
        files = {f"{inside}/{p.name}": p for p in sorted(path.iterdir()) if p.is_file()} if path.is_dir() else {}
    found: dict[str, dict[str, Any]] = {}
    for member, source in files.items():
        if not ARTEFACTS.fullmatch(member):
            continue  # not ours: network file systems add files with a leading dot
        with suppress(FileNotFoundError), source.open("rb") as file:
            found[member] = _add(
                archive, member, _chunks(file), zipfile.ZIP_STORED
            )  # already compressed, or not compressible
    return found


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _add(archive: zipfile.ZipFile, name: str, chunks: Iterable[bytes], compression: int) -> dict[str, Any]:
    """Write one member; returns its manifest entry."""
    info = zipfile.ZipInfo(name)
    info.compress_type = compression
    info.external_attr = (stat.S_IFREG | 0o600) << 16
    digest, size = hashlib.sha256(), 0
    with archive.open(info, "w", force_zip64=True) as member:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            member.write(chunk)
    return {"sha256": digest.hexdigest(), "size": size}


def _line(row: Mapping[str, Any]) -> bytes:
    """One row as a line of JSON: bytes in base64, text without NUL, which PostgreSQL cannot store."""
    values = {
        k: base64.b64encode(v).decode() if isinstance(v, bytes) else v.replace("\0", "") if isinstance(v, str) else v
        for k, v in row.items()
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
