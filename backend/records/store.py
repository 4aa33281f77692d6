"""What scanqueue remembers: records in a database, arrays and checkpoints as files.

Records are small and say what is true (SQLAlchemy: SQLite by default, PostgreSQL by URL).
Artefacts are large and are named by a fingerprint of what they were made from. Losing them costs
time, never labels: those are Label Studio's.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    case,
    create_engine,
    delete,
    event,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, RowMapping, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from backend.errors import BadSetting, StorageFull, StoreUnavailable
from backend.facts import Scan
from backend.fingerprints import fingerprint
from backend.records.artefacts import Artefacts
from backend.records.locks import LockHandle, Locks
from backend.records.migrate import migrate

metadata = MetaData()

project_table = Table(
    "project",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("title", Text, nullable=False, default=""),
    Column("extra_params", Text, nullable=False, default=""),  # as Label Studio sent them
    Column("backend_url", Text, nullable=False, default=""),
    Column("secret", Text, nullable=False, default=""),
    Column("connected", Integer, nullable=False, default=0),  # it was seen connected in Label Studio once
    Column("cursor", Text, nullable=False, default=""),
    Column("config", Text, nullable=False, default=""),  # the label config that the records fit
    Column("phase", String(16), nullable=False, default="empty"),
    Column("reason", Text, nullable=False, default=""),
    Column("trouble", Text, nullable=False, default=""),  # of the last look; "" when it went well
    Column("asked", Integer, nullable=False, default=0),
    Column("active", String(40), nullable=False, default=""),
    Column("embedder", Text, nullable=False, default=""),
    Column("embedder_why", Text, nullable=False, default=""),
    Column("sending", Float, nullable=False, default=0.0),  # when an unconfirmed import began
    Column("seen_at", Float, nullable=False, default=0.0),
    Column("stratify_by", Text, nullable=False, default=""),  # the key that the strata of the scans were taken from
    Column("levers", Text, nullable=False, default=""),  # JSON of the settings that were changed on the page
    Column("studio_url", Text, nullable=False, default=""),  # where people find Label Studio, as it says itself
    Column(
        "taken", Integer, nullable=False, default=0
    ),  # what was taken from the tasks' data: `TASK_DATA_VERSION` then
)
scan_table = Table(
    "scan",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("task", BigInteger, primary_key=True),
    Column("image", Text, nullable=False, default=""),
    Column("updated_at", String(40), nullable=False, default=""),
    Column("annotated", Integer, nullable=False, default=0),
    Column("skipped", Integer, nullable=False, default=0),
    Column("digest", String(64), nullable=False, default=""),
    Column("height", Integer, nullable=False, default=0),
    Column("width", Integer, nullable=False, default=0),
    Column("problem", Text, nullable=False, default=""),
    Column("problem_at", Float, nullable=False, default=0.0),
    Column("stratum", Text, nullable=False, default=""),  # what the task's data says under that key
    Column(
        "wish", Integer, nullable=False, default=0
    ),  # PRIORITY_NEXT, PRIORITY_EXCLUDED, or 0: as the strategy ranks it
    Column("volume", Text, nullable=False, default=""),  # this and what follows: see `task_data.TaskData`
    Column("slice", Integer, nullable=False, default=0),
    Column("patient", Text, nullable=False, default=""),
    Column("row_mm", Float, nullable=False, default=0.0),
    Column("column_mm", Float, nullable=False, default=0.0),
    Column("blank", Integer, nullable=False, default=0),  # 1: all of its pixels are alike
)
label_table = Table(
    "label",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("task", BigInteger, primary_key=True),
    Column("annotation", BigInteger, nullable=False),
    Column("key", String(64), nullable=False),
    Column("mask", String(64), nullable=False, default=""),
    Column("read_at", String(40), nullable=False),  # the task's updated_at when it was read
    Column("config", String(64), nullable=False),
    Column("shown_version", String(40), nullable=False, default=""),
    Column("lead_time", Float),
    Column("completed_by", BigInteger),
    Column("problem", Text, nullable=False, default=""),
    Column("remark", Text, nullable=False, default=""),
)
embedding_table = Table(
    "embedding",
    metadata,
    Column("embedder", String(200), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("vector", LargeBinary, nullable=False),
)
model_table = Table(
    "model",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("version", String(40), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("labels", Text, nullable=False),
    Column("trained_on", Text, nullable=False),
    Column("accepted", Integer, nullable=False),
    Column("remark", Text, nullable=False, default=""),
    Column("validation", Text, nullable=False),
    Column("details", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
round_table = Table(
    "round",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("key", String(64), nullable=False),
    Column("model", String(40), nullable=False),
    Column("picks", Text, nullable=False),
    Column("carried", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("labels", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("published_at", Float),
    Column("settings", Text, nullable=False, default=""),  # JSON of those it was ranked with; "" in older rows
)
uncertainty_table = Table(
    "entropy",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("value", Float, nullable=False),  # the mean over the image
    Column("more", Text, nullable=False, default=""),  # JSON of the other signals; "" in rows of older versions
)
shown_table = Table(
    "shown",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("task", BigInteger, primary_key=True),
    Column("version", String(40), nullable=False),
    Column("label", String(64), nullable=False),
    Column("dice", Float, nullable=False),
    Column("hd", Float, nullable=False),
    Column("hd95", Float, nullable=False),
    Column("unit", String(8), nullable=False),
)
progress_table = Table(
    "progress",
    metadata,
    Column("project", BigInteger, primary_key=True, autoincrement=False),
    Column("step", Text, nullable=False),
    Column("done", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("at", Float, nullable=False),
)

shard_table = Table(
    "shard",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("run", String(32), primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("needs", Text, nullable=False),
    Column("tasks", Text, nullable=False),
    Column("state", String(8), nullable=False),  # open, taken, done
    Column("owner", String(64), nullable=False),
    Column("beat", Float, nullable=False),
    Column("tries", Integer, nullable=False),
)

change_table = Table(
    "change",
    metadata,
    Column("project", BigInteger, primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("user", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("what", Text, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("undone", Integer, nullable=False, default=0),
)

worker_table = Table(
    "worker",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("at", Float, nullable=False),
    Column("doing", Text, nullable=False),
)

counter_table = Table(
    "measure",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("label", String(100), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("total", Float, nullable=False),
)

PROBLEM_RETRY = 600.0  # seconds until a scan that could not be read is tried again
PROGRESS_STALE = 120.0  # seconds after which a step that reports nothing is taken for dead
DISK_FULL = "53100"  # PostgreSQL's SQLSTATE
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
PRIORITY_NEXT, PRIORITY_EXCLUDED = 1, -1  # of a scan: to be labelled next, to be left out of the order
KEPT_PICKS = 20_000  # of an order that another took the place of
COLD_ROUNDS = 20  # orders without a model, the newest, in which the cluster of a scan is looked for
VARIABLES = 500  # of one SQL statement; SQLite allows 32,766 in all


@dataclass(frozen=True)
class Pick:
    """One place of a round's order: the task, why it stands there, and the terms of its score."""

    task: int
    reason: str
    score: float | None = None
    entropy: float | None = None
    distance: float | None = None
    cluster: int | None = None


@dataclass(frozen=True)
class Change:
    """What somebody changed. `before` and `after` are what it was and is, JSON; `undoes`: the change taken back."""

    user: str
    kind: str
    what: str
    before: Any = None
    after: Any = None
    undoes: int | None = None


class Store(Artefacts):
    """Records in `database_url` (default: SQLite in `folder`), artefacts in `folder`."""

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
            said, state = str(error.orig), getattr(error.orig, "sqlstate", None)
            code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # without the details
            away = code in SQLITE_AWAY
            if code == sqlite3.SQLITE_FULL or state == DISK_FULL or "No space left" in said or (away and self._short()):
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

    # -- projects -----------------------------------------------------------------------------

    def add_project(self, project: int) -> bool:
        """Remember a project; True when it was not known before."""
        with self.write() as connection:
            row = {"id": project, "secret": secrets.token_urlsafe(32)}
            insert = self._insert(project_table).values(row).on_conflict_do_nothing()
            return connection.execute(insert.returning(project_table.c.id)).first() is not None

    def projects(self) -> list[int]:
        return [r["id"] for r in self.rows(select(project_table.c.id).order_by(project_table.c.id))]

    def project(self, project: int) -> RowMapping | None:
        rows = self.rows(select(project_table).where(project_table.c.id == project))
        return rows[0] if rows else None

    def secrets(self) -> dict[int, str]:
        """The webhook secrets of all projects."""
        return {r["id"]: r["secret"] for r in self.rows(select(project_table.c.id, project_table.c.secret))}

    def set_project(self, project: int, **values: Any) -> None:
        with self.write() as connection:
            connection.execute(update(project_table).where(project_table.c.id == project).values(**values))

    def request_training(self, project: int) -> None:
        """Record that somebody wants a training now."""
        with self.write() as connection:
            values = {"asked": project_table.c.asked + 1}
            connection.execute(update(project_table).where(project_table.c.id == project).values(values))

    def clear_training_requests(self, project: int, count: int) -> None:
        """`count` requests were fulfilled; those that came meanwhile stay."""
        with self.write() as connection:
            values = {"asked": project_table.c.asked - count}
            connection.execute(update(project_table).where(project_table.c.id == project).values(values))

    # -- what people change -------------------------------------------------------------------

    def add_change(
        self,
        project: int,
        change: Change,
        *,
        overrides: Mapping[str, Any] | None = None,
        priorities: Mapping[int, int] = {},
    ) -> int:
        """Write down what somebody changed, and change it, all or nothing; returns the number of the change.

        overrides   settings of the page that change; None: no longer set there
        priorities  new priorities of scans, by task
        """
        with self.settled() as connection:  # one after the other: else two have one number, or one is lost
            number = self._record(connection, project, change)
            if overrides:
                here = project_table.c.id == project
                now = connection.execute(select(project_table.c.levers).where(here)).scalar_one()
                merged = {k: v for k, v in (json.loads(now or "{}") | dict(overrides)).items() if v is not None}
                connection.execute(update(project_table).where(here).values(levers=_json(merged) if merged else ""))
            by_priority: dict[int, list[int]] = defaultdict(list)
            for task, priority in priorities.items():
                by_priority[priority].append(task)
            for priority, tasks in sorted(by_priority.items()):
                for start in range(0, len(tasks), VARIABLES):
                    chunk = scan_table.c.task.in_(tasks[start : start + VARIABLES])
                    these = update(scan_table).where(scan_table.c.project == project, chunk)
                    connection.execute(these.values(wish=priority))
            return number

    def _record(self, connection: Connection, project: int, change: Change) -> int:
        """Write down what somebody changed, in a transaction of `settled`; returns the number of the change."""
        here = change_table.c.project == project
        last = connection.execute(select(func.max(change_table.c.n)).where(here)).scalar_one()
        row = {"project": project, "n": (last or 0) + 1, "at": time.time(), "undone": 0}
        told = {"before": _json(change.before), "after": _json(change.after)}
        said = {"user": change.user, "kind": change.kind, "what": change.what}
        connection.execute(change_table.insert().values(**row, **said, **told))
        if change.undoes is not None:
            connection.execute(update(change_table).where(here, change_table.c.n == change.undoes).values(undone=1))
        return int(row["n"])

    def changes(self, project: int, limit: int = 200) -> list[RowMapping]:
        """What people changed, newest first: {n, at, user, kind, what, undone}."""
        columns = [c for c in change_table.c if c.name not in ("before", "after")]  # of a wish they may be large
        statement = select(*columns).where(change_table.c.project == project).order_by(change_table.c.n.desc())
        return self.rows(statement.limit(limit))

    def activations(self, project: int) -> list[dict[str, Any]]:
        """Who made which model active instead of which, oldest first: {change, version, before, at, user}."""
        here = (change_table.c.project == project, change_table.c.kind == "activate")
        rows = self.rows(select(change_table).where(*here).order_by(change_table.c.n))
        told = ((r, json.loads(r["before"]), json.loads(r["after"])) for r in rows)
        return [
            {"change": r["n"], "version": after, "before": before, "at": r["at"], "user": r["user"]}
            for r, before, after in told
        ]

    def change(self, project: int, n: int) -> dict[str, Any] | None:
        rows = self.rows(select(change_table).where(change_table.c.project == project, change_table.c.n == n))
        return dict(rows[0]) | {k: json.loads(rows[0][k]) for k in ("before", "after")} if rows else None

    def retry(self, project: int, task: int) -> None:
        """Have the scan read again at the next look, and its annotation, if either has a problem."""
        with self.write() as connection:
            scan = (scan_table.c.project == project, scan_table.c.task == task, scan_table.c.problem != "")
            anew = connection.execute(update(scan_table).where(*scan).values(problem="", problem_at=0.0, digest=""))
            label = [label_table.c.project == project, label_table.c.task == task]
            if not anew.rowcount:  # else its image may be another one, on which the mask has to fit
                label.append((label_table.c.problem != "") | (label_table.c.remark != ""))
            connection.execute(delete(label_table).where(*label))

    def set_trouble(self, project: int, text: str, **values: Any) -> None:
        """Write down what went wrong in a look, "" when nothing did, and `values` of the project with it.

        Records that take nothing cannot say so: then it is noted in a file beside them, and StorageFull or
        StoreUnavailable raised.
        """
        note = self._note(project)
        try:
            self.set_project(project, trouble=text, **values)
        except (StorageFull, StoreUnavailable):
            with suppress(OSError):
                note.parent.mkdir(exist_ok=True)
                note.write_text(text, encoding="utf-8")
            raise
        note.unlink(missing_ok=True)

    def trouble(self, project: int) -> str:
        """What stands in the way now, else what went wrong in the last look; "" when nothing did."""
        if self._short():
            return (
                f"The disk that holds {self.folder} is full: only {self._free() >> 20} MiB are free. Make room; "
                "nothing was lost, and it goes on by itself within a minute."
            )
        with suppress(OSError):
            if text := self._note(project).read_text(encoding="utf-8"):
                return text
        row = self.project(project)
        return row["trouble"] if row else ""

    def _note(self, project: int) -> Path:
        return self.folder / "trouble" / str(project)

    def _short(self) -> bool:
        return self._free() < ROOM

    @contextmanager
    def lock(self, project: int) -> Iterator[LockHandle]:
        """Yields something true when this process may work on the project; given back by the system if it dies."""
        with self._locks.held(f"project-{project}") as hold:
            yield hold

    @contextmanager
    def training_slot(self) -> Iterator[LockHandle]:
        """Yields something true when nobody else trains on this data folder; given back by the system if we die."""
        with self._locks.held("training") as hold:
            yield hold

    @contextmanager
    def cache_slot(self) -> Iterator[LockHandle]:
        """Yields something true when nobody else looks through the caches."""
        with self._locks.held("caches") as hold:
            yield hold

    # -- scans and labels ---------------------------------------------------------------------

    def put_tasks(self, project: int, rows: Sequence[Mapping[str, Any]], cursor: str) -> None:
        """Take over tasks {task, image, updated_at, annotated, skipped, ...} and the listing's cursor.

        `annotated` and `skipped` say how often. The rest, the same in all rows, are columns that the tasks' data says.
        A task whose image value changed is read again; so is one with a problem. What was read of an annotation
        is forgotten once the task has none.
        """
        with self.write() as connection:
            for start in range(0, len(rows), VARIABLES):
                chunk = rows[start : start + VARIABLES]
                tasks = [row["task"] for row in chunk]
                old = {
                    r["task"]: r
                    for r in connection.execute(
                        select(scan_table).where(scan_table.c.project == project, scan_table.c.task.in_(tasks))
                    ).mappings()
                }
                merged = []
                for row in chunk:
                    before = old.get(row["task"])
                    same = before is not None and before["image"] == row["image"]
                    moved = before is None or before["updated_at"] != row["updated_at"]
                    kept = {
                        "digest": before["digest"] if before and same else "",
                        "height": before["height"] if before and same else 0,
                        "width": before["width"] if before and same else 0,
                        "blank": before["blank"] if before and same else 0,
                        "problem": before["problem"] if before and same and not moved else "",
                        "problem_at": before["problem_at"] if before and same and not moved else 0.0,
                    }
                    merged.append({"project": project, **row, **kept})
                if merged:
                    self._upsert(connection, scan_table, merged)
                bare = [row["task"] for row in chunk if not row["annotated"]]
                here = (label_table.c.project == project, label_table.c.task.in_(bare))
                connection.execute(delete(label_table).where(*here))
            if cursor:
                connection.execute(update(project_table).where(project_table.c.id == project).values(cursor=cursor))

    def keep_tasks(self, project: int, present: set[int]) -> int:
        """Forget the tasks that are not in `present`; returns how many. What was learnt from them stays."""
        with self.write() as connection:
            known = connection.execute(select(scan_table.c.task).where(scan_table.c.project == project))
            gone = [task for (task,) in known if task not in present]
            for start in range(0, len(gone), VARIABLES):
                chunk = gone[start : start + VARIABLES]
                for table in (scan_table, label_table):
                    connection.execute(delete(table).where(table.c.project == project, table.c.task.in_(chunk)))
            return len(gone)

    def scans(self, project: int) -> list[RowMapping]:
        return self.rows(select(scan_table).where(scan_table.c.project == project).order_by(scan_table.c.task))

    def scan(self, project: int, task: int) -> RowMapping | None:
        """One scan, without reading the others."""
        here = (scan_table.c.project == project, scan_table.c.task == task)
        rows = self.rows(select(scan_table).where(*here))
        return rows[0] if rows else None

    def columns(self, project: int, *names: str) -> list[tuple[Any, ...]]:
        """Some columns of all scans, by task: of a hundred thousand, whole rows would take seconds."""
        columns = [scan_table.c[name] for name in names]
        return self._tuples(select(*columns).where(scan_table.c.project == project).order_by(scan_table.c.task))

    def _tuples(self, statement: Any) -> list[tuple[Any, ...]]:
        """What a statement finds, without the names of the columns: several times as fast as `rows`."""
        with self._explained(), self._engine.connect() as connection:
            return connection.execute(statement).all()  # type: ignore[return-value]

    def counts(self, project: int) -> dict[str, int]:
        """How many scans there are: all, those that were read, with an annotation, with a problem, left out, and open.

        open  neither labelled nor left out, and without a problem
        """
        scan = scan_table.c
        has = {
            "embedded": scan.digest != "",
            "labelled": scan.annotated > 0,
            "problems": scan.problem != "",
            "left_out": scan.wish < 0,
            "open": (scan.annotated == 0) & (scan.problem == "") & (scan.wish >= 0),
        }
        named = [func.coalesce(func.sum(case((one, 1), else_=0)), 0).label(name) for name, one in has.items()]
        (row,) = self.rows(select(func.count().label("scans"), *named).where(scan_table.c.project == project))
        return {name: int(row[name]) for name in ("scans", *has)}

    def has_labels(self) -> bool:
        """Whether a scan of any project has an annotation."""
        return bool(self.rows(select(scan_table.c.task).where(scan_table.c.annotated > 0).limit(1)))

    def problems(self, project: int) -> list[tuple[int, str]]:
        """(task, what is wrong) of the scans that cannot be read."""
        here = (scan_table.c.project == project, scan_table.c.problem != "")
        return self._tuples(select(scan_table.c.task, scan_table.c.problem).where(*here))

    def siblings(self, project: int, task: int) -> frozenset[int]:
        """The tasks of the volume that this one is a slice of, itself too; itself alone when it is of none."""
        scan = scan_table.c
        its = select(scan.volume).where(scan.project == project, scan.task == task).scalar_subquery()
        found = self._tuples(select(scan.task).where(scan.project == project, scan.volume != "", scan.volume == its))
        return frozenset(t for (t,) in found) | {task}

    def waiting(self, project: int) -> list[tuple[int, int]]:
        """(task, how often it was skipped) of the scans that have no annotation and no problem and are not left out."""
        scan = scan_table.c
        here = (scan.project == project, scan.annotated == 0, scan.problem == "", scan.wish >= 0)
        return self._tuples(select(scan.task, scan.skipped).where(*here))

    def stamp(self, project: int) -> tuple[Any, ...]:
        """Changes whenever anything changes that people see of the scans; cheap, whatever the pool."""
        row = self.project(project)
        scan, rounds, change = scan_table.c, round_table.c, change_table.c
        sums = (scan.annotated, scan.skipped, scan.problem_at, case((scan.digest != "", 1), else_=0))
        seen = select(func.count(), *(func.sum(one) for one in sums))
        order = select(func.max(rounds.n), func.max(rounds.created_at), func.max(rounds.published_at))
        found = [
            *self._tuples(seen.where(scan.project == project)),
            *self._tuples(order.where(rounds.project == project)),
            *self._tuples(select(func.max(change.n)).where(change.project == project)),
            *self._tuples(
                select(func.count(), func.max(label_table.c.read_at)).where(label_table.c.project == project)
            ),
        ]
        latest = select(func.length(rounds.picks)).where(rounds.project == project).order_by(rounds.n.desc()).limit(1)
        found += self._tuples(latest)
        if row is None:
            return tuple(found)
        model = self.model(project, row["active"])
        scored = select(func.count()).where(uncertainty_table.c.model == (model["fingerprint"] if model else ""))
        with suppress(OSError):
            found.append((self.path("maps", map_name(project, row["embedder"])).stat().st_mtime_ns,))
        told = (row[name] for name in ("cursor", "active", "extra_params", "levers", "embedder", "phase"))
        return (*told, *found, *self._tuples(scored))

    def set_scans(self, project: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write {task, digest, height, width, blank, problem} of scans that were read.

        With `image`, the value that was fetched, nothing is written of a task whose image is another by now.
        What was read of an annotation is forgotten when the scan under it has another digest than before.
        """
        read = {row["task"]: row["digest"] for row in rows if row.get("digest")}
        with self.write() as connection:
            known = (scan_table.c.project == project, scan_table.c.task.in_(read), scan_table.c.digest != "")
            before = connection.execute(select(scan_table.c.task, scan_table.c.digest).where(*known)) if read else ()
            replaced = [task for task, digest in before if digest != read[task]]
            labels = (label_table.c.project == project, label_table.c.task.in_(replaced))
            connection.execute(delete(label_table).where(*labels))
            for row in rows:
                at = time.time() if row.get("problem") else 0.0
                here = [scan_table.c.project == project, scan_table.c.task == row["task"]]
                if "image" in row:
                    here.append(scan_table.c.image == row["image"])
                values = {k: v for k, v in row.items() if k not in ("task", "image")}
                connection.execute(update(scan_table).where(*here).values(problem_at=at, **values))

    def put_label(self, project: int, row: Mapping[str, Any]) -> None:
        with self.write() as connection:
            self._upsert(connection, label_table, [{"project": project, **row}])

    def drop_label(self, project: int, task: int, updated_at: str) -> None:
        """The task has no annotation any more, whatever the listing said."""
        self.forget_label(project, task)
        with self.write() as connection:
            connection.execute(
                update(scan_table)
                .where(
                    scan_table.c.project == project,
                    scan_table.c.task == task,
                    scan_table.c.updated_at == updated_at,
                )
                .values(annotated=0)
            )

    def forget_label(self, project: int, task: int) -> None:
        """What was read of the task's annotation was lost; it is read again."""
        with self.write() as connection:
            here = (label_table.c.project == project, label_table.c.task == task)
            connection.execute(delete(label_table).where(*here))

    def labels(self, project: int) -> list[RowMapping]:
        return self.rows(select(label_table).where(label_table.c.project == project).order_by(label_table.c.task))

    def put_shown(self, project: int, row: Mapping[str, Any]) -> None:
        with self.write() as connection:
            self._upsert(connection, shown_table, [{"project": project, **row}])

    def shown(self, project: int) -> list[RowMapping]:
        return self.rows(select(shown_table).where(shown_table.c.project == project))

    # -- embeddings and scores ----------------------------------------------------------------

    def put_embeddings(self, embedder: str, digests: Sequence[str], vectors: NDArray[np.float32]) -> None:
        rows = [
            {"embedder": embedder, "digest": d, "vector": np.ascontiguousarray(v, dtype="<f4").tobytes()}
            for d, v in zip(digests, vectors, strict=True)
        ]
        if rows:
            with self.write() as connection:
                self._upsert(connection, embedding_table, rows)

    def embedded(self, embedder: str) -> frozenset[str]:
        statement = select(embedding_table.c.digest).where(embedding_table.c.embedder == embedder)
        return frozenset(r["digest"] for r in self.rows(statement))

    def embeddings(self, embedder: str, digests: Sequence[str]) -> NDArray[np.float32]:
        """(N, D), one row per digest, in their order; KeyError names one that is missing."""
        found: dict[str, bytes] = {}
        wanted = list(dict.fromkeys(digests))
        for start in range(0, len(wanted), VARIABLES):
            chunk = wanted[start : start + VARIABLES]
            here = (embedding_table.c.embedder == embedder, embedding_table.c.digest.in_(chunk))
            found.update({r["digest"]: r["vector"] for r in self.rows(select(embedding_table).where(*here))})
        return np.stack([np.frombuffer(found[d], dtype="<f4") for d in digests]).astype(np.float32)

    def put_uncertainty(self, model: str, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Write what a model said of scans, by digest: {"image": number, name: number or numbers, ...}.

        Signals that are there and were not asked for this time stay: two projects may share a model.
        """
        with self.write() as connection:
            for start in range(0, len(found), VARIABLES):
                chunk = sorted(found)[start : start + VARIABLES]
                here = (uncertainty_table.c.model == model, uncertainty_table.c.digest.in_(chunk))
                old = connection.execute(select(uncertainty_table.c.digest, uncertainty_table.c.more).where(*here))
                had = {digest: json.loads(more or "{}") for digest, more in old}
                rows = []
                for digest in chunk:
                    more = had.get(digest, {}) | {k: v for k, v in found[digest].items() if k != "image"}
                    row = {"model": model, "digest": digest, "value": found[digest]["image"]}
                    rows.append(row | {"more": _json(more)})
                self._upsert(connection, uncertainty_table, rows)

    def image_entropies(self, model: str) -> dict[str, float]:
        """The mean entropy of scans under a model, by digest."""
        columns = (uncertainty_table.c.digest, uncertainty_table.c.value)
        return dict(self._tuples(select(*columns).where(uncertainty_table.c.model == model)))

    def uncertainty(self, model: str) -> dict[str, dict[str, Any]]:
        """All that a model said of scans, by digest; "image" is what `image_entropies` gives."""
        rows = self.rows(select(uncertainty_table).where(uncertainty_table.c.model == model))
        return {r["digest"]: {**json.loads(r["more"] or "{}"), "image": r["value"]} for r in rows}

    def forget_uncertainty(self, models: Sequence[str]) -> int:
        """Drop what these models found, by fingerprint; returns how many values that were."""
        found = 0
        with self.write() as connection:
            for start in range(0, len(models), VARIABLES):
                chunk = models[start : start + VARIABLES]
                found += connection.execute(
                    delete(uncertainty_table).where(uncertainty_table.c.model.in_(chunk))
                ).rowcount
        return found

    # -- models and rounds --------------------------------------------------------------------

    def put_model(
        self, project: int, row: Mapping[str, Any], *, active: str, instead_of: str = "", training_requests: int
    ) -> None:
        """Write a trained model and the training requests it fulfilled; let `active` replace `instead_of`: all or none.

        "" leaves the active model as it is, and so does somebody who made another one active meanwhile.
        """
        with self.write() as connection:
            values = {
                "project": project,
                "created_at": time.time(),
                **{k: _json(v) if k in _MODEL_JSON else v for k, v in row.items()},
            }
            self._upsert(connection, model_table, [values])
            connection.execute(
                update(project_table)
                .where(project_table.c.id == project)
                .values(asked=project_table.c.asked - training_requests)
            )
            if active:
                here = (project_table.c.id == project, project_table.c.active == instead_of)
                connection.execute(update(project_table).where(*here).values(active=active))

    def add_details(self, project: int, version: str, more: Mapping[str, Any]) -> None:
        """Add to the details of a trained model; what else is recorded of it stays."""
        with self.write() as connection:
            here = (model_table.c.project == project, model_table.c.version == version)
            found = connection.execute(select(model_table.c.details).where(*here)).scalar_one()
            values = {"details": _json(json.loads(found) | dict(more))}
            connection.execute(update(model_table).where(*here).values(**values))

    def models(self, project: int) -> list[dict[str, Any]]:
        """Oldest first."""
        statement = select(model_table).where(model_table.c.project == project)
        rows = [_model(r) for r in self.rows(statement)]
        return sorted(rows, key=lambda r: _number(r["version"]))

    def model(self, project: int, version: str) -> dict[str, Any] | None:
        """One model, without reading the others."""
        here = (model_table.c.project == project, model_table.c.version == version)
        rows = self.rows(select(model_table).where(*here))
        return _model(rows[0]) if rows else None

    def checkpoints(self) -> dict[int, list[tuple[str, str]]]:
        """(version, fingerprint) of the models of every project, oldest first."""
        columns = (model_table.c.project, model_table.c.version, model_table.c.fingerprint)
        found: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for row in sorted(self.rows(select(*columns)), key=lambda r: _number(r["version"])):
            found[row["project"]].append((row["version"], row["fingerprint"]))
        return dict(found)

    def drawing(self) -> dict[int, set[str]]:
        """Of every project, the versions that draw masks now: the active one, and that of the latest round."""
        found = {r["id"]: {r["active"]} - {""} for r in self.rows(select(project_table.c.id, project_table.c.active))}
        columns = (round_table.c.project, round_table.c.model)
        latest = {r["project"]: r["model"] for r in self.rows(select(*columns).order_by(round_table.c.n))}
        for project, version in latest.items():
            found.setdefault(project, set()).update({version} - {""})
        return found

    def put_round(
        self,
        project: int,
        *,
        n: int,
        key: str,
        model: str,
        picks: Sequence[Pick],
        carried: Sequence[int],
        size: int,
        labels: int,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        with self.write() as connection:
            row = {
                "project": project,
                "n": n,
                "key": key,
                "model": model,
                "picks": _pack(picks),
                "carried": json.dumps(list(carried)),
                "size": size,
                "labels": labels,
                "created_at": time.time(),
                "settings": _json(settings) if settings else "",
            }
            self._upsert(connection, round_table, [row])
            self._shorten(connection, project, n, cold=not model)

    def _shorten(self, connection: Connection, project: int, n: int, *, cold: bool) -> None:
        """Cut the order that round n takes the place of: people came to its beginning at most.

        The last one without a model stays whole: it knows the clusters.
        """
        before = (round_table.c.project == project, round_table.c.n < n)
        of_its_kind = (*before, (round_table.c.model == "") if cold else (round_table.c.model != ""))
        statement = select(round_table.c.n, round_table.c.picks).where(*of_its_kind).order_by(round_table.c.n.desc())
        found = connection.execute(statement.limit(1)).first()
        if found is None:
            return
        picks = json.loads(found.picks)
        if len(picks) > KEPT_PICKS:
            here = (round_table.c.project == project, round_table.c.n == found.n)
            connection.execute(update(round_table).where(*here).values(picks=_json(picks[:KEPT_PICKS])))

    def extend_round(self, project: int, n: int, picks: Sequence[Pick]) -> None:
        with self.write() as connection:
            here = (round_table.c.project == project, round_table.c.n == n)
            connection.execute(update(round_table).where(*here).values(picks=_pack(picks)))

    def mark_published(self, project: int, n: int) -> None:
        with self.write() as connection:
            here = (
                round_table.c.project == project,
                round_table.c.n == n,
                round_table.c.published_at.is_(None),
            )
            connection.execute(update(round_table).where(*here).values(published_at=time.time()))

    def rounds(self, project: int, *, picks: bool = True) -> list[dict[str, Any]]:
        """Oldest first; `picks=False` leaves out all orders but the latest, which are large."""
        columns = [c for c in round_table.c if c.name != "picks"]
        statement = select(*columns).where(round_table.c.project == project).order_by(round_table.c.n)
        rows = [dict(r) for r in self.rows(statement)]
        wanted = [r["n"] for r in rows] if picks else [r["n"] for r in rows[-1:]]
        here = (round_table.c.project == project, round_table.c.n.in_(wanted))
        orders = {r["n"]: r["picks"] for r in self.rows(select(round_table.c.n, round_table.c.picks).where(*here))}
        for row in rows:
            row["carried"] = json.loads(row["carried"])
            row["settings"] = json.loads(row["settings"] or "{}")
            row["picks"] = list(_unpack(orders[row["n"]])) if row["n"] in orders else []
        return rows

    def clusters(self, project: int) -> dict[int, int]:
        """The cluster of the scans that were in one of the last orders without a model, by task: in the newest."""
        here = (round_table.c.project == project, round_table.c.model == "")
        numbers = [n for (n,) in self._tuples(select(round_table.c.n).where(*here).order_by(round_table.c.n.desc()))]
        wanted = self.counts(project)["scans"]
        found: dict[int, int] = {}
        for n in numbers[:COLD_ROUNDS]:
            ((text_,),) = self._tuples(select(round_table.c.picks).where(*here, round_table.c.n == n))
            for task, *_, cluster in json.loads(text_):
                if cluster is not None:
                    found.setdefault(task, cluster)
            if len(found) >= wanted:
                break
        return found

    def latest_round(self, project: int) -> dict[str, Any] | None:
        """The round that annotators are served, without reading the others; None before the first.

        While its order stays the same, `picks` is the very same tuple at every call.
        """
        statement = select(round_table).where(round_table.c.project == project).order_by(round_table.c.n.desc())
        rows = self.rows(statement.limit(1))
        if not rows:
            return None
        return dict(rows[0]) | {"carried": json.loads(rows[0]["carried"]), "picks": _unpack(rows[0]["picks"])}

    # -- progress -----------------------------------------------------------------------------

    def report(self, project: int, step: str, done: int, total: int) -> None:
        """Say how far a step is; status computes the time left from it."""
        now = time.time()
        with self.write() as connection:
            here = progress_table.c.project == project
            old = connection.execute(select(progress_table).where(here)).mappings().first()
            fresh = old is None or old["step"] != step or old["done"] > done
            started = now if fresh or old is None else old["started_at"]
            if not fresh and old is not None and not 0 <= now - old["at"] <= PROGRESS_STALE:
                started += now - old["at"]  # the clock jumped, and the step with it
            row = {"project": project, "step": step, "done": done, "total": total}
            self._upsert(connection, progress_table, [row | {"started_at": started, "at": now}])

    def finish(self, project: int) -> None:
        with self.write() as connection:
            connection.execute(delete(progress_table).where(progress_table.c.project == project))

    def progress(self, project: int) -> dict[str, Any] | None:
        """{step, done, total, seconds_left or None}; None when nothing runs."""
        rows = self.rows(select(progress_table).where(progress_table.c.project == project))
        if not rows or time.time() - rows[0]["at"] > PROGRESS_STALE:
            return None
        row = rows[0]
        spent, left = row["at"] - row["started_at"], None
        if row["done"] > 0 and spent > 0:
            left = round(spent * (row["total"] - row["done"]) / row["done"], 1)
        return {"step": row["step"], "done": row["done"], "total": row["total"], "seconds_left": left}

    # -- workers ------------------------------------------------------------------------------

    def present(self, name: str, doing: str) -> None:
        """A worker's sign of life."""
        with self.write() as connection:
            self._upsert(connection, worker_table, [{"name": name, "at": time.time(), "doing": doing}])

    def absent(self, name: str, older_than: float = 86400.0) -> None:
        """A worker ends; those that were not heard of for so many seconds are forgotten too."""
        with self.write() as connection:
            gone = (worker_table.c.name == name) | (worker_table.c.at < time.time() - older_than)
            connection.execute(delete(worker_table).where(gone))

    def workers(self) -> list[dict[str, Any]]:
        """{name, seconds since its last sign of life, doing}, by name."""
        now = time.time()
        rows = self.rows(select(worker_table).order_by(worker_table.c.name))
        return [{"name": r["name"], "seconds": max(0.0, now - r["at"]), "doing": r["doing"]} for r in rows]

    # -- counters -----------------------------------------------------------------------------

    def add_counters(self, amounts: Mapping[tuple[str, str], tuple[int, float]]) -> None:
        """Add counts and sums, by name and label, to what all processes have counted."""
        with self.write() as connection:
            for (name, label), (count, total) in sorted(amounts.items()):
                row = {"name": name, "label": label, "count": count, "total": total}
                insert = self._insert(counter_table).values(row)
                more = {c: counter_table.c[c] + insert.excluded[c] for c in ("count", "total")}
                connection.execute(insert.on_conflict_do_update(index_elements=["name", "label"], set_=more))

    def counters(self, name: str) -> dict[str, tuple[int, float]]:
        """What was counted under `name`: how often, and the sum, by label."""
        rows = self.rows(select(counter_table).where(counter_table.c.name == name))
        return {r["label"]: (r["count"], r["total"]) for r in rows}


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


def activate_model(store: Store, project: int, version: str, change: Change | None = None) -> int:
    """Make a trained model the active one, and write down who wanted it; returns the number of the change, or 0.

    Raises BadSetting, with the versions there are, when there is none of that name or its checkpoint was removed.
    """
    with store.settled() as connection:  # else it might be removed just now
        models = store.models(project)
        found = next((m for m in models if m["version"] == version), None)
        if found is None:
            there = ", ".join(m["version"] for m in models) or "none yet"
            raise BadSetting(f"project {project} has no model {version!r}; there are: {there}.")
        if not store.has("models", found["fingerprint"]):
            kept = ", ".join(m["version"] for m in models if store.has("models", m["fingerprint"])) or "none"
            raise BadSetting(
                f"project {project}: the checkpoint of {version} is gone, so it cannot draw any more; "
                f"SCANQUEUE_KEEP_MODELS says how many of the newest are kept (0: all). Those kept: {kept}."
            )
        here = project_table.c.id == project
        connection.execute(update(project_table).where(here).values(active=version))
        return store._record(connection, project, change) if change else 0


def scan_of(row: RowMapping) -> Scan:
    """What is recorded of a scan, its problem as it was when it was met."""
    spacing = (row["row_mm"], row["column_mm"])
    return Scan(
        task=row["task"],
        image=row["image"],
        digest=row["digest"],
        annotated=bool(row["annotated"]),
        skipped=bool(row["skipped"]),
        problem=row["problem"],
        stratum=row["stratum"],
        priority=row["wish"],
        volume=row["volume"],
        slice=row["slice"],
        patient=row["patient"],
        spacing=spacing if all(spacing) else None,
        blank=bool(row["blank"]),
    )


def map_name(project: int, embedder: str) -> str:
    return fingerprint("map", project, embedder)


class StoredMap(NamedTuple):
    """A map: `digests` and their positions `xy` (N, 2), the `state` it was fitted to, and what it was fitted on.

    unit     "slice": every image has a place of its own; "scan": the images of a volume share one
    volumes  with "scan", the place (2,) of every volume, by `Scan.whole`
    """

    digests: list[str]
    xy: NDArray[np.float64]
    state: dict[str, NDArray[Any]]
    unit: str
    volumes: dict[str, NDArray[np.float64]]


def read_map(store: Store, project: int, embedder: str) -> StoredMap | None:
    """None when there is none yet."""
    try:
        found = store.arrays("maps", map_name(project, embedder))
    except FileNotFoundError:
        return None
    state = {k.removeprefix("state_"): v for k, v in found.items() if k.startswith("state_")}
    digests = [str(d) for d in found["digests"]]
    if "volumes" not in found:
        return StoredMap(digests, found["xy"], state, "slice", {})
    names = [str(v) for v in found["volumes"]]
    return StoredMap(digests, found["xy"], state, "scan", dict(zip(names, found["places"], strict=True)))


def put_map(store: Store, project: int, embedder: str, found: StoredMap) -> None:
    """Write a map, in the place of the one there was."""
    more: dict[str, NDArray[Any]] = {f"state_{k}": v for k, v in found.state.items()}
    if found.unit == "scan":
        more["volumes"] = np.array(list(found.volumes), dtype=np.str_)
        more["places"] = np.array(list(found.volumes.values()), dtype=np.float64).reshape(-1, 2)
    name = map_name(project, embedder)
    store.put_arrays("maps", name, digests=np.array(found.digests), xy=found.xy, **more)


_MODEL_JSON = ("labels", "trained_on", "validation", "details")
_PICK = ("task", "reason", "score", "entropy", "distance", "cluster")


def _pack(picks: Iterable[Pick]) -> str:
    return _json([[getattr(p, name) for name in _PICK] for p in picks])


@lru_cache(maxsize=4)
def _unpack(text: str) -> tuple[Pick, ...]:
    return tuple(Pick(*row) for row in json.loads(text))


def _model(row: RowMapping) -> dict[str, Any]:
    return {k: json.loads(v) if k in _MODEL_JSON else v for k, v in row.items()}


def _number(version: str) -> int:
    return int(version.rpartition("-r")[2])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
