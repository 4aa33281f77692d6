"""The identities file: the only local file that maps pseudonyms to patients, series and files.

Everything that identifies a person (patient ids, paths, instance UIDs), and the key from which pseudonyms are derived,
is in this SQLite file and nowhere else: not in Label Studio, our records, logs or backups. Without the file a pseudonym
is meaningless; with another file the same scans get other pseudonyms. Protect it like the scans.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from backend.errors import BadIdentities

if TYPE_CHECKING:
    from backend.formats import Geometry, Source

NAME = "identities.sqlite"
LETTERS = {"patient": "P", "scan": "S", "site": "T"}
LENGTH = 12  # base32 characters: 60 bits
VERSION = 1
WAIT = 60.0  # seconds to wait for another process that writes

_TABLES = """
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS pseudonym (
    pseudonym TEXT PRIMARY KEY, kind TEXT NOT NULL, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scan (
    scan TEXT PRIMARY KEY, source TEXT NOT NULL, digest TEXT NOT NULL, geometry TEXT NOT NULL,
    time INTEGER, modality TEXT NOT NULL, patient TEXT NOT NULL, added_at REAL NOT NULL, axes TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS instance (
    instance TEXT NOT NULL, scan TEXT NOT NULL, PRIMARY KEY (instance, scan)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class ScanRecord:
    """Where one scan came from, and what is needed to bring masks back into its geometry.

    scan      its pseudonym
    source    the files at the last import, in the order of the slice numbers
    digest    SHA-256 of a plain file's content, or of a DICOM series' SOPInstanceUIDs in order
    time      number of the volume in a time series; None if there is only one
    patient   pseudonym of its group; "" for none
    added_at  seconds since 1970
    axes      the axes along which it was cut so far, in any project
    """

    scan: str
    source: Source
    digest: str
    geometry: Geometry
    time: int | None
    modality: str
    patient: str
    added_at: float
    axes: tuple[str, ...] = ()


class Identities:
    """The identities file, created (mode 0600, with a random key) if it does not exist.

    file        its path; the folder is created, too (mode 0700), if necessary
    must_exist  raise BadIdentities instead of creating it

    Safe for several threads and several processes. Raises BadIdentities if the file has another format, is from a later
    version, damaged, or not writable.
    """

    def __init__(self, file: Path, *, must_exist: bool = False) -> None:
        self.file = Path(file)
        self._lock = threading.RLock()
        self._known: set[str] = set()
        self._depth = 0
        with self._explained():
            if must_exist and not self.file.is_file():
                raise BadIdentities(
                    f"{self.file} does not exist, so the source files of the scans are unknown. Pass the file that "
                    "`scanqueue import` wrote with --identities, or its folder with --data-dir."
                )
            _make(self.file)
            self._database = sqlite3.connect(self.file, timeout=WAIT, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA secure_delete = ON")
            self._key = self._open()

    def _open(self) -> bytes:
        """The key. Writes nothing to an existing valid file."""
        return self._read_key() or self._create_key()

    def _read_key(self) -> bytes | None:
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise BadIdentities(
                f"{self.file} was written by a later scanqueue (file version {version}, supported: {VERSION}). Use "
                "that version of scanqueue."
            )
        tables = {row[0] for row in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return None
        if "fact" not in tables:
            raise BadIdentities(f"{self.file} is a database, but not an identities file. Use another file.")
        row = self._database.execute("SELECT value FROM fact WHERE name = 'key'").fetchone()
        return None if row is None else bytes(row[0])

    def _create_key(self) -> bytes:
        with self._writing() as database:
            key = self._read_key()  # another process may have been faster
            if key is None:
                for statement in filter(None, (part.strip() for part in _TABLES.split(";"))):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {VERSION}")
                key = secrets.token_bytes(32)
                database.execute("INSERT INTO fact VALUES ('key', ?)", (key,))
        return key

    # -- pseudonyms -------------------------------------------------------------------------

    def pseudonym(self, kind: str, value: str, *, remember: bool = True) -> str:
        """The pseudonym of `value`: `P-`, `S-` or `T-` and 12 characters; stored with the value if `remember`.

        The same value always has the same pseudonym in one file. Without the key, nobody can test guessed values.
        kind: "patient", "scan" or "site".
        """
        made = self._pseudonym(kind, value)
        if not remember:
            return made
        with self._lock, self._explained():
            if made not in self._known:
                with self._writing() as database:
                    database.execute("INSERT OR IGNORE INTO pseudonym VALUES (?, ?, ?)", (made, kind, value))
                    row = database.execute("SELECT value FROM pseudonym WHERE pseudonym = ?", (made,)).fetchone()
                    if row[0] != value:
                        raise BadIdentities(f"Two values have the same pseudonym {made}; change one of them.")
                self._known.add(made)
        return made

    def _pseudonym(self, kind: str, value: str) -> str:
        mac = hmac.new(self._key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
        return f"{LETTERS[kind]}-{base64.b32encode(mac).decode()[:LENGTH]}"

    def value(self, pseudonym: str) -> str | None:
        """The value behind a pseudonym; None if the pseudonym is not from this file."""
        row = self._row("SELECT value FROM pseudonym WHERE pseudonym = ?", pseudonym)
        return None if row is None else str(row[0])

    # -- scans ------------------------------------------------------------------------------

    def put_scan(self, record: ScanRecord) -> None:
        """Store a scan. Replaces an existing record, except for the time when it was first added."""
        row = (
            record.scan,
            record.source.to_json(),
            record.digest,
            record.geometry.to_json(),
            record.time,
            record.modality,
            record.patient,
            record.added_at,
            json.dumps(record.axes),
        )
        with self._lock, self._explained(), self._writing() as database:
            database.execute(
                "INSERT INTO scan VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (scan) DO UPDATE SET "
                "source = excluded.source, digest = excluded.digest, geometry = excluded.geometry, "
                "time = excluded.time, modality = excluded.modality, patient = excluded.patient, axes = excluded.axes",
                row,
            )
            database.execute("DELETE FROM instance WHERE scan = ?", (record.scan,))
            instances = [(instance, record.scan) for instance in set(record.source.instances) if instance]
            database.executemany("INSERT INTO instance VALUES (?, ?)", instances)

    def scan(self, scan: str) -> ScanRecord | None:
        """The record of a scan; None if it was not imported with this file."""
        row = self._row(f"SELECT {_COLUMNS} FROM scan WHERE scan = ?", scan)
        return None if row is None else _record(row)

    def scans(self) -> Iterator[ScanRecord]:
        """Every scan, in the order of addition."""
        with self._lock, self._explained():
            names = self._database.execute("SELECT scan FROM scan ORDER BY added_at, scan").fetchall()
        yield from (record for record in (self.scan(name) for (name,) in names) if record is not None)

    def scans_with_instances(self, instances: Sequence[str]) -> list[ScanRecord]:
        """The scans with any of these SOPInstanceUIDs, in the order of addition."""
        found: set[str] = set()
        for start in range(0, len(instances), 500):
            subset = [instance for instance in instances[start : start + 500] if instance]
            marks = ", ".join("?" * len(subset))
            with self._lock, self._explained():
                rows = self._database.execute(f"SELECT scan FROM instance WHERE instance IN ({marks})", subset)
                found |= {row[0] for row in rows}
        records = [record for record in map(self.scan, found) if record is not None]
        return sorted(records, key=lambda record: (record.added_at, record.scan))

    def _row(self, statement: str, value: str) -> tuple[Any, ...] | None:
        with self._lock, self._explained():
            row: tuple[Any, ...] | None = self._database.execute(statement, (value,)).fetchone()
            return row

    # -- the file ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Store everything written inside, or nothing after a failure."""
        with self._lock, self._explained(), self._writing():
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._depth:
                yield self._database
                return
            self._database.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                self._known.clear()
                raise
            else:
                self._database.execute("COMMIT")
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise BadIdentities(
                f"{self.file} cannot be read or written ({error}). Check that the disk has free space, that you own "
                "the folder, and that no other program has locked the file."
            ) from error
        except sqlite3.DatabaseError as error:
            raise BadIdentities(
                f"{self.file} is damaged, or not an identities file ({error}). Restore it from your backup."
            ) from error
        except OSError as error:
            raise BadIdentities(
                f"{self.file} cannot be created or opened ({error.strerror}). Pass another file with --identities."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_COLUMNS = "scan, source, digest, geometry, time, modality, patient, added_at, axes"


def _record(row: tuple[Any, ...]) -> ScanRecord:
    from backend.formats import Geometry, Source

    scan, source, digest, geometry, time, modality, patient, added_at, axes = row
    return ScanRecord(
        scan=scan,
        source=Source.from_json(source),
        digest=digest,
        geometry=Geometry.from_json(geometry),
        time=time,
        modality=modality,
        patient=patient,
        added_at=added_at,
        axes=tuple(json.loads(axes)),
    )


def _make(file: Path) -> None:
    """Create the file and its folder, readable by the owner only."""
    if not file.parent.exists():
        file.parent.mkdir(parents=True, mode=0o700, exist_ok=True)  # another process may be faster
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        existing = file.stat()
        if existing.st_uid == os.getuid() and stat.S_IMODE(existing.st_mode) & 0o077:
            file.chmod(0o600)
