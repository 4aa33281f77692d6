"""The database connection: transactions, snapshots, upserts, and errors in plain words (SQLite or PostgreSQL)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, create_engine, event, text
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, RowMapping, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from backend.errors import BadSetting, StorageFull, StoreUnavailable, is_disk_full
from backend.records.artefacts import Artefacts
from backend.records.locks import Locks
from backend.records.migrate import migrate

KEY = 5316292  # of the advisory lock in PostgreSQL; migrate has the number before it
ROOM = 16 * 2**20  # bytes free in the data folder below which nothing is sure to be written
SQLITE_AWAY = (  # trouble with the file, its disk or its other users, and not with what was asked
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
)
POOL_WAIT = 5.0  # seconds for a connection to PostgreSQL that somebody else has
PATIENCE = {  # with PostgreSQL, in libpq's words: what hangs is given up, however its machine or network went away
    "connect_timeout": 10,  # seconds
    "tcp_user_timeout": 20_000,  # milliseconds until what was sent must have arrived
    "keepalives": 1,
    "keepalives_idle": 15,  # seconds
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "options": "-c statement_timeout=60000",  # milliseconds; migrations have as long as they need
}
VARIABLES = 500  # of one SQL statement; SQLite allows 32,766 in all


def _address(url: str) -> URL:
    """`postgresql://` means psycopg 3, the driver that is installed."""
    try:
        address = make_url(url)
    except ArgumentError:
        raise BadSetting(
            "SCANQUEUE_DATABASE_URL is not an address such as postgresql://user:password@host:5432/scanqueue."
        ) from None
    if address.drivername in ("postgres", "postgresql"):
        return address.set(drivername="postgresql+psycopg")
    return address


def _patience(url: URL) -> dict[str, Any]:
    """PATIENCE, but for what the address itself says."""
    said = {name for name in url.query if name in PATIENCE and name != "options"}
    found: dict[str, Any] = {name: value for name, value in PATIENCE.items() if name not in said}
    if "options" in url.query:  # the later one counts
        found["options"] = " ".join([str(PATIENCE["options"]), *url.normalized_query["options"]])
    return found


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


class Database(Artefacts):
    """The engine that all records share. Subclasses add the queries of one table each."""

    def __init__(self, folder: Path, database_url: str = "", redis_url: str = "") -> None:
        super().__init__(folder)
        self.database_url = database_url
        self._locks = Locks(folder / "locks", redis_url)
        folder.mkdir(parents=True, exist_ok=True)
        url = _address(database_url or f"sqlite:///{folder / 'records.sqlite'}")
        if url.get_backend_name() == "sqlite":
            self._engine = create_engine(url, connect_args={"timeout": 30})
            event.listen(self._engine, "connect", _sqlite_pragmas)
        else:
            self._engine = create_engine(url, pool_pre_ping=True, pool_timeout=POOL_WAIT, connect_args=_patience(url))
        with self._explained():
            migrate(self._engine, folder / "locks" / "migration.lock")

    def close(self) -> None:
        """Give the connections to the database back."""
        self._engine.dispose()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction. Raises StorageFull, or StoreUnavailable when the database does not answer."""
        with self._explained(), self._engine.begin() as connection:
            yield connection

    def rows(self, statement: Any) -> list[RowMapping]:
        """What a statement finds. Raises StoreUnavailable when the database does not answer."""
        with self._explained(), self._engine.connect() as connection:
            return list(connection.execute(statement).mappings())

    def _tuples(self, statement: Any) -> list[tuple[Any, ...]]:
        """What a statement finds, without the names of the columns: several times as fast as `rows`."""
        with self._explained(), self._engine.connect() as connection:
            return connection.execute(statement).all()  # type: ignore[return-value]

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that reads everything as it is now, whatever others write meanwhile, row by row."""
        with self._explained(), self._engine.connect() as connection:
            options: dict[str, Any] = {"stream_results": True, "max_row_buffer": 32}
            if connection.dialect.name == "postgresql":
                options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
                yield connection.execution_options(**options)
            else:
                connection.exec_driver_sql("BEGIN")  # else every statement sees a state of its own
                yield connection.execution_options(**options)

    @contextmanager
    def settled(self) -> Iterator[Connection]:
        """One transaction in which nobody else removes checkpoints or comes to need them: they wait for its end."""
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": KEY})
            else:
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # nobody else writes until it ends
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise StoreUnavailable(
                f"The database {self._engine.url.render_as_string(hide_password=True)} does not answer: all of our "
                "connections to it wait. It is tried again; check that it runs and that its machine is well."
            ) from error
        except (OperationalError, InterfaceError) as error:
            said = str(error.orig)
            code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # without the details
            away = code in SQLITE_AWAY
            if (error.orig and is_disk_full(error.orig)) or (away and self._short()):
                where = self.folder if self._engine.dialect.name == "sqlite" else "the database"
                raise StorageFull(f"The disk that holds {where} is full; nothing was lost. Make room.") from error
            if away:
                raise StoreUnavailable(
                    f"The records in {self.folder} cannot be used now: {said}. It is tried again; check that the disk "
                    "is well and that the folder may be written to."
                ) from error
            if self._engine.dialect.name == "sqlite":
                raise
            raise StoreUnavailable(
                f"The database {self._engine.url.render_as_string(hide_password=True)} does not answer: "
                f"{said.splitlines()[0] if said else type(error).__name__}. It is tried again; check that it runs "
                "and that SCANQUEUE_DATABASE_URL is right."
            ) from error

    def _insert(self, table: Table) -> Any:
        insert = postgresql_insert if self._engine.dialect.name == "postgresql" else sqlite_insert
        return insert(table)

    def _upsert(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        keys = [c.name for c in table.primary_key]
        rows = sorted(rows, key=lambda row: [row[k] for k in keys])  # else two writers may wait for each other
        for start in range(0, len(rows), VARIABLES):
            chunk = [dict(row) for row in rows[start : start + VARIABLES]]
            statement = self._insert(table)
            changes = {c: statement.excluded[c] for c in chunk[0] if c not in keys}
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes), chunk)

    def put_rows(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, keep: bool) -> None:
        """Write whole rows of a table; with `keep`, those that are there already stay as they are."""
        if not keep:
            self._upsert(connection, table, rows)
            return
        keys = [c.name for c in table.primary_key]
        statement = self._insert(table).on_conflict_do_nothing(index_elements=keys)
        connection.execute(statement, sorted(map(dict, rows), key=lambda row: [row[k] for k in keys]))

    def _short(self) -> bool:
        return self._free() < ROOM
