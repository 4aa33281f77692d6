"""Bulk work cut into shards that any worker on any machine may take.

The driver of a project cuts a list of tasks into shards, takes them one by one like everybody else,
and waits for those that others took. There is no clock in it: a worker counts up the `beat` of the
shard it is at, and the driver takes a shard back whose beat it has not seen move for `LEASE` of its
own seconds. What a shard makes is stored under names made from its inputs, so one that is done twice
does no harm.
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

SHARD = 16  # tasks of one shard
BEAT = 3.0  # seconds
LEASE = 20.0  # seconds

_table = shard_table.c


@dataclass(frozen=True)
class Shard:
    """A part of one project's bulk work.

    run    names the cutting it belongs to; it ends with its driver
    kind   which work it is; `needs` what else the work depends on, as one text
    tries  how often a worker gave it back; then only the driver takes it, to meet the error itself
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
    """The shards in one store, as one worker sees them. `me` names the worker, for people."""

    store: Store
    me: str
    _seen: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)  # (run, n): beat, when it moved

    def cut(self, project: int, kind: str, requirements: str, tasks: Sequence[int]) -> str:
        """Write the shards of a bulk work down; returns the run."""
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
        """Those of a driver that died; to be called by the one that holds the project's lock."""
        if self.store.rows(select(_table.run).where(_table.project == project).limit(1)):
            with self.store.write() as connection:
                connection.execute(delete(shard_table).where(_table.project == project))

    def forget(self, project: int, run: str) -> None:
        """Its work is over, or its driver gives up."""
        with self.store.write() as connection:
            connection.execute(delete(shard_table).where(_table.project == project, _table.run == run))
        for key in [k for k in list(self._seen) if k[0] == run]:  # other threads add theirs meanwhile
            self._seen.pop(key, None)

    def take(self, run: str = "") -> Shard | None:
        """An open shard of `run`, first to last; without a run one of any driver, last to first."""
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
        """Say that it is done. False when its driver has gone."""
        return self._set(shard, state="done")

    def give_back(self, shard: Shard, *, failed: bool) -> None:
        """Open it again for others; a `failed` one is left to its driver."""
        self._set(shard, state="open", owner="", tries=_table.tries + int(failed))

    def _set(self, shard: Shard, **values: object) -> bool:
        here = (_table.project == shard.project, _table.run == shard.run, _table.n == shard.n)
        with self.store.write() as connection:
            return bool(connection.execute(update(shard_table).where(*here).values(**values)).rowcount)

    @contextmanager
    def beating(self, shard: Shard) -> Iterator[None]:
        """While inside, the driver sees that somebody is at it."""
        over = Event()

        def beat() -> None:
            while not over.wait(BEAT):
                try:
                    self._set(shard, beat=_table.beat + 1)
                except ScanqueueError:
                    continue  # the work itself will meet it

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def left(self, run: str) -> tuple[int, int]:
        """(shards not done, tasks in them); shards whose worker has gone silent are opened again on the way."""
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
        """How many open shards there are, of all projects."""
        return int(self.store.rows(select(func.count().label("n")).where(_table.state == "open"))[0]["n"])
