"""Batch work in shards that any worker on any machine may take.

The driver of a project splits a list of tasks into shards, takes them one by one like every other worker, and waits
for those that others took. No clocks are compared: a worker increments the `beat` of its shard, and the driver
reopens a shard whose beat has not changed for `LEASE` seconds. Results are named by their inputs, so doing a shard
twice does no harm.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

from sqlalchemy import delete, func, select, update

from backend.errors import ScanqueueError
from backend.records.store import Store
from backend.records.tables import shard_table

SHARD = 16  # tasks per shard
BEAT = 3.0  # seconds
LEASE = 20.0  # seconds

_table = shard_table.c


@dataclass(frozen=True)
class Shard:
    """A part of one project's batch work.

    run           ID of one `cut`; it ends with its driver
    kind          the kind of work
    requirements  the requirements for a worker to do it, as one text
    tries         number of failed attempts; from 1 on, only the driver takes it, so that the error is raised there
    """

    project: int
    run: str
    n: int
    kind: str
    requirements: str
    tasks: tuple[int, ...]
    tries: int


@dataclass
class Shards:
    """The shards in one store, as one worker sees them. `me` is the worker's display name."""

    store: Store
    me: str
    _seen: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)  # (run, n): beat, when it moved

    def cut(self, project: int, kind: str, requirements: str, tasks: Sequence[int]) -> str:
        """Write the shards of a batch; returns the run."""
        run = secrets.token_hex(8)
        rows = [
            {
                "project": project,
                "run": run,
                "n": n,
                "kind": kind,
                "requirements": requirements,
                "tasks": json.dumps(list(tasks[at : at + SHARD])),
                "state": "open",
                "owner": "",
                "beat": 0.0,
                "tries": 0,
            }
            for n, at in enumerate(range(0, len(tasks), SHARD))
        ]
        with self.store.write() as connection:
            connection.execute(shard_table.insert(), rows)
        return run

    def forget_all(self, project: int) -> None:
        """Delete the shards of dead drivers; only for the holder of the project's lock."""
        if self.store.rows(select(_table.run).where(_table.project == project).limit(1)):
            with self.store.write() as connection:
                connection.execute(delete(shard_table).where(_table.project == project))

    def forget(self, project: int, run: str) -> None:
        """Delete the shards of a finished or abandoned run."""
        with self.store.write() as connection:
            connection.execute(delete(shard_table).where(_table.project == project, _table.run == run))
        for key in [k for k in list(self._seen) if k[0] == run]:  # other threads add keys concurrently
            self._seen.pop(key, None)

    def take(self, run: str = "") -> Shard | None:
        """Take an open shard of `run`, first to last; without `run`, one of any driver, last to first."""
        statement = select(shard_table).where(_table.state == "open")
        if run:
            statement = statement.where(_table.run == run).order_by(_table.n)
        else:
            statement = statement.where(_table.tries == 0).order_by(_table.n.desc())
        for row in self.store.rows(statement.limit(8)):
            here = (_table.project == row["project"], _table.run == row["run"], _table.n == row["n"])
            with self.store.write() as connection:
                claim = update(shard_table).where(*here, _table.state == "open")
                mine = connection.execute(claim.values(state="taken", owner=self.me, beat=_table.beat + 1)).rowcount
            if mine:
                tasks = tuple(json.loads(row["tasks"]))
                return Shard(
                    row["project"], row["run"], row["n"], row["kind"], row["requirements"], tasks, row["tries"]
                )
        return None

    def finish(self, shard: Shard) -> bool:
        """Mark a shard as done. False when its driver has ended."""
        return self._set(shard, state="done")

    def give_back(self, shard: Shard, *, failed: bool) -> None:
        """Reopen a shard for others; a `failed` one only for its driver."""
        self._set(shard, state="open", owner="", tries=_table.tries + int(failed))

    def _set(self, shard: Shard, **values: object) -> bool:
        here = (_table.project == shard.project, _table.run == shard.run, _table.n == shard.n)
        with self.store.write() as connection:
            return bool(connection.execute(update(shard_table).where(*here).values(**values)).rowcount)

    @contextmanager
    def beating(self, shard: Shard) -> Iterator[None]:
        """While inside, the driver sees that the shard is in progress."""
        over = Event()

        def beat() -> None:
            while not over.wait(BEAT):
                try:
                    self._set(shard, beat=_table.beat + 1)
                except ScanqueueError:
                    continue  # the work itself will raise the error

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def left(self, run: str) -> tuple[int, int]:
        """(unfinished shards, tasks in them); reopens shards whose worker is silent."""
        rows = self.store.rows(select(shard_table).where(_table.run == run, _table.state != "done"))
        now = time.monotonic()
        for row in rows:
            key = (run, row["n"])
            beat, since = self._seen.get(key, (-1.0, now))
            if row["state"] != "taken" or row["beat"] != beat:
                self._seen[key] = (row["beat"], now)
            elif now - since > LEASE:
                here = (_table.run == run, _table.n == row["n"], _table.state == "taken", _table.beat == beat)
                with self.store.write() as connection:
                    connection.execute(update(shard_table).where(*here).values(state="open", owner=""))
        return len(rows), sum(len(json.loads(row["tasks"])) for row in rows)

    def waiting(self) -> int:
        """Number of open shards of all projects."""
        return int(self.store.rows(select(func.count().label("n")).where(_table.state == "open"))[0]["n"])
