"""Opens a backup file and checks all of it before anything is written."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import BigInteger, Table

from backend.errors import BadBackup
from backend.records.backup_format import (
    ARTEFACTS,
    CHUNK,
    FORMAT,
    LATER,
    LINE,
    MANIFEST,
    MANIFEST_BYTES,
    NAMING,
    OLD_COLUMNS,
    OLD_TABLES,
    OLDEST,
    RENAMED,
    TABLES,
    Summary,
    artefact,
    member_of,
    named_artefacts,
)
from backend.records.backup_values import LONGEST, check_values
from backend.records.migrate import HEAD
from backend.records.tables import embedding_table, project_table, uncertainty_table

DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error, RuntimeError, ValueError)


class Archive:
    """An open backup, checked byte by byte: it is intact and fits this version of scanqueue.

    Raises BadBackup with the reason, before anything is written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            if not stat.S_ISREG(file.stat().st_mode):  # a pipe would wait, and a device may never end
                raise BadBackup(f"{file} cannot be restored: it is not a file. Name a file from `scanqueue backup`.")
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
            self._bad(f"it is damaged, truncated or not a scanqueue backup ({error}). Use another copy.")

    def _read_manifest(self) -> None:
        infos = self._zip.infolist()
        self._infos = {info.filename: info for info in infos}
        manifest = self._infos.pop(MANIFEST, None)
        if manifest is None or manifest.file_size > MANIFEST_BYTES:
            self._bad(f"it has no {MANIFEST}, so it is truncated or not a scanqueue backup. Use another copy.")
        if len(infos) != len(self._infos) + 1:
            self._bad("it contains a member twice.")
        with self._zip.open(manifest) as member:
            about = json.loads(member.read(MANIFEST_BYTES))
        if not isinstance(about, dict):
            self._bad(f"its {MANIFEST} is not a JSON object.")
        by, made = about.get("format"), str(about.get("scanqueue"))[:40]
        if by != FORMAT:
            self._bad(
                f"its format is {repr(by)[:40]}, written by scanqueue {made}; this one reads {FORMAT}. "
                f"Use scanqueue {made}."
            )
        schema = about.get("schema")
        if not isinstance(schema, str) or not re.fullmatch(r"\d{4}", schema):
            self._bad(f"its schema {repr(schema)[:40]} is invalid.")
        if schema > HEAD:
            self._bad(
                f"it was made by a newer scanqueue ({made}): its schema is {schema}, this one supports up to {HEAD}. "
                "Install the newer version here."
            )
        if schema < OLDEST:
            self._bad(f"its schema {schema} is older than {OLDEST}. Restore it with scanqueue {made}, then upgrade.")
        self._renamed = schema < RENAMED
        project, members, counts = about.get("project"), about.get("members"), about.get("counts")
        if type(project) is not int or not 0 <= project < 10**15:
            self._bad(f"its project {repr(project)[:40]} is invalid.")
        if not isinstance(members, dict) or not isinstance(counts, dict):
            self._bad(f"its {MANIFEST} has no members or no counts.")
        if self._renamed:
            for old, new in OLD_TABLES.items():
                _rename(counts, old, new)
                for names in (members, self._infos):
                    _rename(names, f"records/{old}.jsonl", f"records/{new}.jsonl")
        self.project, self.members = project, members
        size = sum(self._size(name) for name in members)
        title, made_at = str(about.get("title")), str(about.get("made_at"))
        if len(title) > LONGEST["title"] or not all(isinstance(count, int) for count in counts.values()):
            self._bad(f"the title or the counts in its {MANIFEST} are invalid.")
        self.summary = Summary(project, title, made_at[:40], made, counts, size)

    def _size(self, name: str) -> int:
        entry = self.members[name]
        good = isinstance(entry, dict) and type(entry.get("size")) is int and entry["size"] >= 0
        if not good or not isinstance(entry.get("sha256"), str):
            self._bad(f"its {MANIFEST} lacks the size or the sha256 of {name!r}.")
        return int(entry["size"])

    def _check_members(self) -> None:
        if strange := sorted(self._infos.keys() ^ self.members.keys()):
            self._bad(f"{strange[0]!r} is either in the file or in its {MANIFEST}, not in both.")
        for table in TABLES:
            if member_of(table) not in self.members and table not in LATER:
                self._bad(f"{member_of(table)!r} is missing.")
        for name, info in self._infos.items():
            plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
            if name not in map(member_of, TABLES) and not ARTEFACTS.fullmatch(name):
                self._bad(f"{name!r} does not belong in a backup.")
            if not plain or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                self._bad(f"{name!r} is a link or another special file.")
            if info.file_size != self._size(name):
                self._bad(f"{name!r} has {info.file_size} bytes instead of {self._size(name)}.")
            for _ in self.chunks(name):
                pass

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a member. Raises BadBackup at the end if they do not match the manifest."""
        digest, left = hashlib.sha256(), self._size(name)
        with self._reading(), self._zip.open(self._infos[name]) as member:
            while chunk := member.read(CHUNK):
                left -= len(chunk)
                digest.update(chunk)
                if left < 0:
                    break
                yield chunk
        if left or digest.hexdigest() != self.members[name]["sha256"]:
            self._bad(f"{name!r} is damaged: its checksum differs. Use another copy.")

    def rows(self, table: Table) -> Iterator[dict[str, Any]]:
        """The checked rows of a table; columns newer than the backup have their default."""
        if member_of(table) not in self.members:
            return
        for number, line in enumerate(_lines(self.chunks(member_of(table))), start=1):
            if len(line) > LINE:
                self._bad(f"{member_of(table)!r}: line {number} is too long.")
            try:
                given = json.loads(line)
                if self._renamed and isinstance(given, dict):
                    for old, new in OLD_COLUMNS.get(table.name, {}).items():
                        _rename(given, old, new)
                row = _row(table, given, self.project)
                check_values(table, row)
                yield row
            except (ValueError, RecursionError) as error:
                self._bad(f"{member_of(table)!r}, line {number}: {error}.")

    def _check_rows(self) -> None:
        """Check that the records fit the tables and refer to every artefact."""
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
                    self._bad(f"{member_of(table)!r}, line {count} belongs to none of its models or scans.")
            wanted = self.summary.counts.get(table.name, 0 if table in LATER else None)
            if count != wanted or (table is project_table and count != 1):
                self._bad(f"{member_of(table)!r} has {count} lines instead of {wanted}.")
        strange = {parts for name in self.members if (parts := artefact(name))}
        for named in named_artefacts(self.project, self.row["embedder"], *seen.values()):
            strange.discard(named)
        if strange:
            kind, name = min(strange)
            self._bad(f"none of its records refers to 'artefacts/{kind}/{name}'.")

    def artefacts(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        """(kind, name, members by file name); the file name of an artefact that is not a folder is ""."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        for member in self.members:
            if parts := artefact(member):
                file = member.rpartition("/")[2] if parts[0] == "models" else ""
                found.setdefault(parts, {})[file] = member
        for (kind, name), files in found.items():
            yield kind, name, files


def _rename(values: dict[str, Any], old: str, new: str) -> None:
    if old in values and new not in values:
        values[new] = values.pop(old)


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
    """A row for the database. Raises ValueError naming the column that does not fit."""
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
            value = float(value) if abs(value) < 2**63 else math.inf  # out of range below
        if not (value is None and column.nullable) and type(value) is not wanted:
            raise ValueError(f"{name!r} is {str(value)[:40]!r}; expected {wanted.__name__}")
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise ValueError(f"{name!r} contains invalid characters")
        bits = 63 if isinstance(column.type, BigInteger) else 31
        if (isinstance(value, int) and not -(2**bits) <= value < 2**bits) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise ValueError(f"{name!r} is {value}, which is out of range")
        row[name] = value
    if row.get("project", row.get("id", project)) != project:
        raise ValueError(f"it does not belong to project {project}")
    return row
