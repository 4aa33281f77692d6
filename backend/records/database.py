"""The database connection (SQLite or PostgreSQL): transactions, snapshots, upserts, and readable errors."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, create_engine, event, text
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from backend.errors import BadSetting, DamagedRecords, StorageFull, StoreUnavailable, is_disk_full
from backend.records.artefacts import Artefacts
from backend.records.locks import Locks
from backend.records.migrate import is_current, migrate
from backend.records.private import make_file, make_folder
from backend.records.sqlite_file import check_file, connect_read_only, damage

POSTGRESQL = "postgresql+psycopg"
KEY = 5316292  # advisory lock in PostgreSQL; migrate.py uses the number before it
ROOM = 16 * 2**20  # minimum number of free bytes in the data folder; with fewer, any write may fail
SQLITE_UNAVAILABLE = (  # problems with the file, its disk or its other users, not with the statement
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
)
INVALID_OPTION = (
    "SCANQUEUE_DATABASE_URL has an option after the `?` that PostgreSQL does not know, or an invalid value of one. "
    "Correct it; in the password, write ? as %3F, / as %2F and @ as %40."
)
POOL_WAIT = 5.0  # seconds to wait for a free connection to PostgreSQL
PATIENCE = {  # libpq options that end a hanging connection, regardless of the fault in server or network
    "connect_timeout": 10,  # seconds
    "tcp_user_timeout": 20_000,  # milliseconds until sent data must be acknowledged
    "keepalives": 1,
    "keepalives_idle": 15,  # seconds
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "options": "-c statement_timeout=60000",  # milliseconds; migrations have no limit
}
Row = dict[str, Any]  # values by column
FETCHED = 1000  # rows in memory at once
VARIABLES = 500  # values in one SQL statement; SQLite allows 32,766


def address_of(url: str) -> URL:
    """`postgresql://` means psycopg 3, the driver that is installed. Raises BadSetting for what is no such address."""
    try:
        address = make_url(url)
        if address.drivername in ("postgres", "postgresql"):
            address = address.set(drivername=POSTGRESQL)
        if address.drivername == POSTGRESQL and (address.host or address.database or address.query):
            return address
        if address.drivername == "sqlite" and address.database not in (None, "", ":memory:"):  # a file
            return address
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        pass
    raise BadSetting(
        "SCANQUEUE_DATABASE_URL is not an address such as postgresql://user:password@host:5432/scanqueue. Fix it."
    )


def _patience(url: URL) -> dict[str, Any]:
    """PATIENCE, unless the address sets an option itself."""
    given = {name for name in url.query if name in PATIENCE and name != "options"}
    found: dict[str, Any] = {name: value for name, value in PATIENCE.items() if name not in given}
    if "options" in url.query:  # the later one counts
        found["options"] = " ".join([str(PATIENCE["options"]), *url.normalized_query["options"]])
    return found


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def from_json(value: str | bytes) -> Any:
    """What `to_json` wrote. Raises DamagedRecords for anything else."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DamagedRecords("A value in the database", "is damaged") from error


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


class Database(Artefacts):
    """The engine that all records share. Subclasses add the queries of one table each."""

    def __init__(self, folder: Path, database_url: str = "", redis_url: str = "", *, reading: bool = False) -> None:
        """Open the records, create them, or migrate them.

        reading  the caller only reads: where nothing can be written, such as on a full disk, the records are read as
                 they are

        Raises DamagedRecords, StorageFull, StoreUnavailable, or BadSetting for a folder that cannot be created.
        """
        super().__init__(folder)
        self.database_url = database_url
        self._locks = Locks(folder / "locks", redis_url)
        url = address_of(database_url or f"sqlite:///{folder / 'records.sqlite'}")
        self._file = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
        if not (reading and folder.is_dir()):
            make_folder(folder)
        if self._file is None:
            self._engine = create_engine(url, pool_pre_ping=True, pool_timeout=POOL_WAIT, connect_args=_patience(url))
            self._migrate()
            return
        check_file(self._file)
        make_file(self._file)
        self._engine = create_engine(url, connect_args={"timeout": 30})
        event.listen(self._engine, "connect", _sqlite_pragmas)
        try:
            self._migrate()
        except DamagedRecords:
            raise
        except (StorageFull, StoreUnavailable):
            if not (reading and self._read_only(url, self._file)):
                raise

    def _migrate(self) -> None:
        with self._explained():
            migrate(self._engine, self.folder / "locks" / "migration.lock")

    def _read_only(self, url: URL, file: Path) -> bool:
        """Use the records without writing. False if that is impossible, as they need a migration or an absent file."""
        self._engine.dispose()
        self._engine = create_engine(url, creator=lambda: connect_read_only(file))
        with suppress(StorageFull, StoreUnavailable), self._explained():
            return is_current(self._engine)
        return False

    def check(self) -> None:
        """Raise DamagedRecords if SQLite finds a fault in the structure of its file; reads all of it."""
        if self._file is not None:
            with self._explained(), self._engine.connect() as connection:
                found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if found != "ok":
                raise DamagedRecords(self._file, "is damaged")

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction. Raises StorageFull, or StoreUnavailable when the database does not answer."""
        with self._explained(), self._engine.begin() as connection:
            yield connection

    def rows(self, statement: Any) -> list[Row]:
        """The rows of a query. Raises StoreUnavailable when the database does not answer."""
        with self._explained(), self._engine.connect() as connection:
            found = connection.execute(statement)
            names = tuple(found.keys())
            return [dict(zip(names, row, strict=True)) for row in found.all()]  # a quarter of the time of `mappings`

    def _tuples(self, statement: Any) -> list[tuple[Any, ...]]:
        """The rows of a query without column names."""
        with self._explained(), self._engine.connect() as connection:
            return connection.execute(statement).all()  # type: ignore[return-value]

    def _each(self, statement: Any) -> Iterator[tuple[Any, ...]]:
        """The rows of a query without column names, FETCHED at a time: those of a whole pool take much memory."""
        with self._explained(), self._engine.connect() as connection:
            yield from connection.execute(statement, execution_options={"yield_per": FETCHED})

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that streams rows from a consistent snapshot, regardless of concurrent writes."""
        with self._explained(), self._engine.connect() as connection:
            options: dict[str, Any] = {"stream_results": True, "max_row_buffer": 32}
            if connection.dialect.name == "postgresql":
                options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
                yield connection.execution_options(**options)
            else:
                connection.exec_driver_sql("BEGIN")  # otherwise every statement sees a different state
                yield connection.execution_options(**options)

    @contextmanager
    def settled(self) -> Iterator[Connection]:
        """One transaction during which no other process can remove checkpoints or start to use them."""
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": KEY})
            else:
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # no other process writes until it ends
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise StoreUnavailable(
                f"The database {self._engine.url.render_as_string(hide_password=True)} does not answer: all "
                "connections to it are waiting. It is tried again. Check that the database and its machine run."
            ) from error
        except (DBAPIError, UnicodeDecodeError) as error:
            if isinstance(error, ProgrammingError) and error.statement is None:  # while connecting
                raise BadSetting(INVALID_OPTION) from None  # not the driver's words, which may repeat a password
            fault = error.orig if isinstance(error, DBAPIError) else error
            if self._file is not None and (what := damage(fault)):
                raise DamagedRecords(self._file, f"is damaged ({what})") from error
            if not isinstance(error, OperationalError | InterfaceError):
                raise
            detail = str(error.orig)
            code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # without the details
            unavailable = code in SQLITE_UNAVAILABLE
            if (error.orig and is_disk_full(error.orig)) or (unavailable and self._short()):
                where = self.folder if self._engine.dialect.name == "sqlite" else "the database"
                raise StorageFull(f"The disk that holds {where} is full; nothing was lost. Free disk space.") from error
            if unavailable:
                raise StoreUnavailable(
                    f"The records in {self.folder} cannot be used now: {detail}. It is tried again. Check the disk, "
                    "and that the folder is writable."
                ) from error
            if self._engine.dialect.name == "sqlite":
                raise
            raise StoreUnavailable(
                f"The database {self._engine.url.render_as_string(hide_password=True)} does not answer: "
                f"{detail.splitlines()[0] if detail else type(error).__name__}. It is tried again; check that it runs "
                "and that SCANQUEUE_DATABASE_URL is right."
            ) from error

    def _insert(self, table: Table) -> Any:
        insert = postgresql_insert if self._engine.dialect.name == "postgresql" else sqlite_insert
        return insert(table)

    def _upsert(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        keys = [c.name for c in table.primary_key]
        rows = sorted(rows, key=lambda row: [row[k] for k in keys])  # otherwise two writers may deadlock
        for start in range(0, len(rows), VARIABLES):
            chunk = [dict(row) for row in rows[start : start + VARIABLES]]
            statement = self._insert(table)
            changes = {c: statement.excluded[c] for c in chunk[0] if c not in keys}
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes), chunk)

    def put_rows(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, keep: bool) -> None:
        """Write whole rows of a table; with `keep`, existing rows stay as they are."""
        if not keep:
            self._upsert(connection, table, rows)
            return
        keys = [c.name for c in table.primary_key]
        statement = self._insert(table).on_conflict_do_nothing(index_elements=keys)
        connection.execute(statement, sorted(map(dict, rows), key=lambda row: [row[k] for k in keys]))

    def _short(self) -> bool:
        return self._free() < ROOM
