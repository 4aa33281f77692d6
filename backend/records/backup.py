"""One project in one file: its records and its artefacts, to be put in place again here or on another machine.

The file is a zip archive: `manifest.json`, the rows of every table as JSON lines under `records/`, and the
artefacts under `artefacts/` with the names they have in the data folder. Cached pixels are left out: they are
fetched again from Label Studio. The file holds the project's webhook secret and is made readable for its owner only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import stat
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NoReturn

from sqlalchemy import BigInteger, Column, Connection, Table, delete, select
from sqlalchemy.exc import DataError

from backend import __version__
from backend.errors import BadBackup, BadSetting, ProjectBusy, StorageFull
from backend.fingerprints import fingerprint
from backend.records.artefacts import FULL
from backend.records.database import VARIABLES
from backend.records.locks import LockHandle
from backend.records.maps import map_name
from backend.records.migrate import HEAD
from backend.records.store import Store
from backend.records.tables import (
    change_table,
    embedding_table,
    label_table,
    model_table,
    progress_table,
    project_table,
    round_table,
    scan_table,
    shard_table,
    shown_table,
    uncertainty_table,
)

FORMAT = 1
OLDEST = "0003"  # the first schema whose rows can be put into tables of today; columns added since need a default
MANIFEST = "manifest.json"
OWN = (  # rows that name the project
    *(project_table, scan_table, label_table, model_table, round_table, shown_table, change_table),
)
BY_CONTENT = (embedding_table, uncertainty_table)  # rows that projects may share
TABLES = (*OWN, *BY_CONTENT)
LATER = (change_table,)  # tables that backups from before they came do not have
NAMING = (model_table.c.fingerprint, label_table.c.mask, scan_table.c.digest)  # what artefacts are named by
FLEETING = (progress_table, shard_table)  # about work under way; not kept in a backup
ARTEFACTS = re.compile(
    r"artefacts/(?:(models)/([0-9a-f]{24})/(\w[\w.-]{0,99})|(labels|masks|maps)/([0-9a-f]{24}))", re.A
)
CHUNK = 2**20  # bytes in memory at once
LINE = 2**28  # bytes of the longest row that is believed
MANIFEST_BYTES = 2**28
POLL = 0.2  # seconds between two tries to get the project's lock
ROOM = 64 * 2**20  # bytes that must be free besides what is restored: for the records
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error, RuntimeError, ValueError)

Say = Callable[[str], object]


@dataclass(frozen=True)
class Summary:
    """What a backup holds. `counts`: rows by table and artefacts by kind; `size`: bytes of its members, unpacked."""

    project: int
    title: str
    made_at: str
    scanqueue: str
    counts: Mapping[str, int]
    size: int


# -- making one --------------------------------------------------------------------------------


def backup(
    store: Store, project: int, file: Path, *, force: bool = False, wait: float = 600.0, say: Say = print
) -> Summary:
    """Write `project` to `file`, as it is while no worker is at it; whole or not at all.

    force  overwrite a file that exists
    wait   seconds until a worker that is at the project must have let go of it
    say    told once, in a sentence, that it has to be waited for

    Raises BadSetting for a project that is not known, or a file that exists; ProjectBusy when the wait was too
    short; StorageFull when there is no room for the file.
    """
    _known(store, project)
    if file.is_dir() or (file.exists() and not force):
        raise BadSetting(f"{file} exists already. Give another name, or --force to overwrite a file.")
    if not file.parent.is_dir():
        raise BadSetting(f"{file.parent} is not a folder; make it first.")
    with _held(store, project, wait, say) as hold:
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
            if error.errno in FULL:
                raise StorageFull(
                    f"The disk that holds {file.parent} is full: no backup was written. Make room, or give a file "
                    "on another disk."
                ) from error
            raise BadSetting(f"{file} cannot be written: {error.strerror}.") from error
    return made


def _known(store: Store, project: int) -> Any:
    row = store.project(project)
    if row is None:
        there = ", ".join(map(str, store.projects())) or "none"
        raise BadSetting(f"Project {project} is not known here; known are: {there}.")
    return row


@contextmanager
def _held(store: Store, project: int, wait: float, say: Say) -> Iterator[LockHandle]:
    """The project's lock, waited for. Raises ProjectBusy when it cannot be had in `wait` seconds."""
    until, told = time.monotonic() + wait, False
    while True:
        with store.lock(project) as mine:
            if mine:
                yield mine
                return
        job = store.progress(project)
        at = f"a worker is at it ({job['step']}, {job['done']} of {job['total']})" if job else "a worker is at it"
        if time.monotonic() >= until:
            raise ProjectBusy(
                f"Project {project}: {at}, and did not let go of it in {wait:.0f} s. Nothing was done. Give a longer "
                "--wait (a training holds it until its end), or stop the workers first."
            )
        if not told:
            say(f"Project {project}: {at}; waiting for it, at most {wait:.0f} s.")
            told = True
        time.sleep(POLL)


def _still_ours(hold: LockHandle, project: int) -> None:
    if hold.lost():
        raise ProjectBusy(f"Project {project}: the lock was lost to a worker meanwhile. Run the same command again.")


def _rename(part: Path, file: Path, force: bool) -> None:
    if force:
        os.replace(part, file)
        return
    try:
        os.link(part, file)  # unlike a rename it overwrites nothing, whoever made that file meanwhile
    except FileExistsError:
        raise BadSetting(f"{file} was made by somebody else meanwhile; it was left as it is.") from None
    except OSError:  # a file system without links
        if file.exists():
            raise BadSetting(f"{file} was made by somebody else meanwhile; it was left as it is.") from None
        os.replace(part, file)


def _write(store: Store, project: int, out: IO[bytes], hold: LockHandle) -> Summary:
    members: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    with zipfile.ZipFile(out, "w", allowZip64=True) as archive:
        with store.snapshot() as connection:  # let go of before the artefacts: these take long, and do not change
            row = connection.execute(select(project_table).where(project_table.c.id == project)).mappings().one()
            for table in TABLES:
                name = _records(table)
                rows = connection.execute(_rows_of(table, project, row["embedder"])).mappings()
                counts[table.name] = 0

                def lines(rows: Any = rows, kind: str = table.name) -> Iterator[bytes]:
                    for found in rows:
                        _still_ours(hold, project)
                        counts[kind] += 1
                        yield _line(found)

                members[name] = _add(archive, name, lines(), zipfile.ZIP_DEFLATED)
            names = [_distinct(connection, project, column) for column in NAMING]
        for kind, name in _named(project, row["embedder"], *names):
            _still_ours(hold, project)
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
    """The rows of a table that belong to the project, always in the same order."""
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


def _named(
    project: int, embedder: str, models: Iterable[str], labels: Iterable[str], digests: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """(kind, name) of everything that the project's records name, there or not."""
    yield "maps", map_name(project, embedder)
    for kind, names in (("labels", labels), ("models", models)):
        for name in names:
            yield kind, name
    for model in models:
        for digest in digests:
            yield "masks", fingerprint(model, digest)


def _add_artefact(store: Store, archive: zipfile.ZipFile, kind: str, name: str) -> dict[str, dict[str, Any]]:
    """Members by name; none when the artefact is not there: it is made again when it is needed."""
    path, inside = store.path(kind, name), f"artefacts/{kind}/{name}"
    files = {inside: path}
    if kind == "models":
        files = {f"{inside}/{p.name}": p for p in sorted(path.iterdir()) if p.is_file()} if path.is_dir() else {}
    found: dict[str, dict[str, Any]] = {}
    for member, source in files.items():
        if not ARTEFACTS.fullmatch(member):
            continue  # not ours: a network folder's own files begin with a dot
        with suppress(FileNotFoundError), source.open("rb") as file:
            found[member] = _add(archive, member, _chunks(file), zipfile.ZIP_STORED)  # compressed already, or not to be
    return found


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _add(archive: zipfile.ZipFile, name: str, chunks: Iterable[bytes], compression: int) -> dict[str, Any]:
    """Write one member; returns what the manifest says about it."""
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


def _records(table: Table) -> str:
    return f"records/{table.name}.jsonl"


def _line(row: Mapping[str, Any]) -> bytes:
    """One row as a line of JSON; bytes in base64, and texts without NUL, which PostgreSQL does not store."""
    values = {
        k: base64.b64encode(v).decode() if isinstance(v, bytes) else v.replace("\0", "") if isinstance(v, str) else v
        for k, v in row.items()
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


# -- reading one -------------------------------------------------------------------------------


class Archive:
    """A backup that was opened and read to its end: everything in it is whole, and belongs in this scanqueue.

    Raises BadBackup that says what is wrong with it; nothing has been written by then.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._open = file.open("rb")
        except OSError as error:
            raise BadBackup(f"{file} cannot be read: {error.strerror}.") from error
        try:
            with self._reading():
                self._zip = zipfile.ZipFile(self._open)
                self._read_manifest()
                self._check_members()
                self._check_rows()
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _bad(self, what: str) -> NoReturn:
        raise BadBackup(f"{self.file} cannot be restored: {what} Nothing was changed.")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except DAMAGED as error:
            self._bad(f"it is damaged, cut off or no backup of scanqueue ({error}). Take another copy of it.")

    def _read_manifest(self) -> None:
        infos = self._zip.infolist()
        self._infos = {info.filename: info for info in infos}
        manifest = self._infos.pop(MANIFEST, None)
        if manifest is None or manifest.file_size > MANIFEST_BYTES:
            self._bad(f"it has no {MANIFEST}, so it is cut off or no backup of scanqueue. Take another copy of it.")
        if len(infos) != len(self._infos) + 1:
            self._bad("it holds a member twice.")
        with self._zip.open(manifest) as member:
            about = json.loads(member.read(MANIFEST_BYTES))
        if not isinstance(about, dict):
            self._bad(f"its {MANIFEST} is not a JSON object.")
        by, made = about.get("format"), about.get("scanqueue")
        if by != FORMAT:
            self._bad(f"its format is {by!r}, written by scanqueue {made}, and this one reads {FORMAT}. Use that one.")
        schema = about.get("schema")
        if not isinstance(schema, str) or not re.fullmatch(r"\d{4}", schema):
            self._bad(f"its schema {schema!r} is none.")
        if schema > HEAD:
            self._bad(
                f"it was made by a newer scanqueue ({made}): its schema is {schema}, and this one knows up to {HEAD}. "
                "Install the newer one here."
            )
        if schema < OLDEST:
            self._bad(f"its schema {schema} is older than {OLDEST}. Restore it with scanqueue {made}, then upgrade.")
        project, members, counts = about.get("project"), about.get("members"), about.get("counts")
        if type(project) is not int or not 0 <= project < 10**15:
            self._bad(f"its project {project!r} is none.")
        if not isinstance(members, dict) or not isinstance(counts, dict):
            self._bad(f"its {MANIFEST} has no members or no counts.")
        self.project, self.members = project, members
        size = sum(self._size(name) for name in members)
        title, made_at = str(about.get("title")), str(about.get("made_at"))
        self.summary = Summary(project, title, made_at, str(made), counts, size)

    def _size(self, name: str) -> int:
        entry = self.members[name]
        good = isinstance(entry, dict) and type(entry.get("size")) is int and entry["size"] >= 0
        if not good or not isinstance(entry.get("sha256"), str):
            self._bad(f"its {MANIFEST} does not say how large {name!r} is, or has no sha256 of it.")
        return int(entry["size"])

    def _check_members(self) -> None:
        if strange := sorted(self._infos.keys() ^ self.members.keys()):
            self._bad(f"{strange[0]!r} is not both in it and in its {MANIFEST}.")
        for table in TABLES:
            if _records(table) not in self.members and table not in LATER:
                self._bad(f"{_records(table)!r} is missing.")
        for name, info in self._infos.items():
            plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
            if name not in map(_records, TABLES) and not ARTEFACTS.fullmatch(name):
                self._bad(f"{name!r} is not the name of anything that belongs into a backup.")
            if not plain or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                self._bad(f"{name!r} is a link or something else that is not a plain file.")
            if info.file_size != self._size(name):
                self._bad(f"{name!r} has {info.file_size} bytes instead of {self._size(name)}.")
            for _ in self.chunks(name):
                pass

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a member. Raises BadBackup after the last when they are not those of the manifest."""
        digest, left = hashlib.sha256(), self._size(name)
        with self._reading(), self._zip.open(self._infos[name]) as member:
            while chunk := member.read(CHUNK):
                left -= len(chunk)
                digest.update(chunk)
                if left < 0:
                    break
                yield chunk
        if left or digest.hexdigest() != self.members[name]["sha256"]:
            self._bad(f"{name!r} is damaged: its checksum is another. Take another copy of it.")

    def rows(self, table: Table) -> Iterator[dict[str, Any]]:
        """The rows of a table, every column there and of its type; those that came later have their default."""
        if _records(table) not in self.members:
            return
        for number, line in enumerate(_lines(self.chunks(_records(table))), start=1):
            if len(line) > LINE:
                self._bad(f"{_records(table)!r}, line {number} is too long.")
            try:
                yield _row(table, json.loads(line), self.project)
            except (ValueError, RecursionError) as error:
                self._bad(f"{_records(table)!r}, line {number}: {error}.")

    def _check_rows(self) -> None:
        """Whether the records fit the tables, and every artefact is one that the records name."""
        columns = {column.table: column.name for column in NAMING}
        seen: dict[str, dict[str, None]] = {name: {} for name in columns.values()}  # in order, once each
        for table in TABLES:
            count = 0
            for row in self.rows(table):
                count += 1
                if table in columns:
                    seen[columns[table]][row[columns[table]]] = None
                if table is project_table:
                    self.row = row
                alien = table is uncertainty_table and row["model"] not in seen["fingerprint"]
                alien |= table is embedding_table and row["digest"] not in seen["digest"]
                if alien:
                    self._bad(f"{_records(table)!r}, line {count} is of none of its models or scans.")
            wanted = self.summary.counts.get(table.name, 0 if table in LATER else None)
            if count != wanted or (table is project_table and count != 1):
                self._bad(f"{_records(table)!r} has {count} lines instead of {wanted}.")
        strange = {parts for name in self.members if (parts := artefact(name))}
        for named in _named(self.project, self.row["embedder"], *seen.values()):
            strange.discard(named)
        if strange:
            kind, name = min(strange)
            self._bad(f"no record of it names 'artefacts/{kind}/{name}'.")

    def artefacts(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        """(kind, name, members by the name of their file); the file of an artefact that is no folder is ""."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        for member in self.members:
            if parts := artefact(member):
                file = member.rpartition("/")[2] if parts[0] == "models" else ""
                found.setdefault(parts, {})[file] = member
        for (kind, name), files in found.items():
            yield kind, name, files


def artefact(member: str) -> tuple[str, str] | None:
    """(kind, name) of the artefact that a member is, or is a part of."""
    found = ARTEFACTS.fullmatch(member)
    return (found[1] or found[4], found[2] or found[5]) if found else None


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = bytearray()
    for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        for line in whole:
            yield bytes(rest + line)
            rest.clear()
        rest += last
        if len(rest) > LINE:
            break
    if rest:
        yield bytes(rest)


def _row(table: Table, given: Any, project: int) -> dict[str, Any]:
    """A row as the database takes it. Raises ValueError naming the column that does not fit."""
    if not isinstance(given, dict):
        raise ValueError("it is not a JSON object")
    if strange := sorted(given.keys() - {c.name for c in table.columns}):
        raise ValueError(f"there is no column {strange[0]!r}")
    row: dict[str, Any] = {}
    for column in table.columns:
        name, wanted = column.name, column.type.python_type
        if name not in given:
            if column.default is None and not column.nullable:
                raise ValueError(f"the column {name!r} is missing")
            row[name] = column.default.arg if column.default is not None else None  # type: ignore[attr-defined]
            continue
        value = given[name]
        if wanted is bytes and isinstance(value, str):
            value = base64.b64decode(value, validate=True)
        if wanted is float and type(value) is int:
            value = float(value)
        if not (value is None and column.nullable) and type(value) is not wanted:
            raise ValueError(f"{name!r} is {str(value)[:40]!r}, and should be {wanted.__name__}")
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise ValueError(f"{name!r} holds characters that are none")
        bits = 63 if isinstance(column.type, BigInteger) else 31
        if (isinstance(value, int) and not -(2**bits) <= value < 2**bits) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise ValueError(f"{name!r} is {value}, which no database takes")
        row[name] = value
    if row.get("project", row.get("id", project)) != project:
        raise ValueError(f"it belongs to another project than {project}")
    return row


# -- putting one in place ----------------------------------------------------------------------


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
        with _held(store, project, wait, say) as hold:
            if not replace:
                _check_unknown(store, archive)
            try:
                for kind, name, members in archive.artefacts():
                    _still_ours(hold, project)
                    _put(store, archive, kind, name, members)
                _still_ours(hold, project)
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
