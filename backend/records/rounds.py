"""Rounds: the published orders of scans."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from sys import intern
from typing import Any

from sqlalchemy import Connection, func, select, update

from backend.facts import Stage
from backend.records.database import Database, from_json, to_json
from backend.records.stages import considered
from backend.records.tables import round_table, scan_table

SHORTENED = 20  # number of orders before a new one that are shortened, if they are not yet
KEPT_ORDERS = 4  # orders kept in memory
PACKED = 1000  # picks that are turned into JSON at once
COLD_ROUNDS = 20  # number of newest orders without a model that are searched for a scan's cluster


@dataclass(frozen=True, slots=True)
class Pick:
    """One place in a round's order: the task, the reason for its place, and the terms of its score."""

    task: int
    reason: str
    score: float | None = None
    entropy: float | None = None
    distance: float | None = None
    cluster: int | None = None


_PICK = ("task", "reason", "score", "entropy", "distance", "cluster")


def _pack(picks: Sequence[Pick]) -> str:
    """An order as JSON, without a list of all its values in memory."""
    parts = (picks[start : start + PACKED] for start in range(0, len(picks), PACKED))
    texts = (to_json([[getattr(p, name) for name in _PICK] for p in part])[1:-1] for part in parts)
    return f"[{','.join(texts)}]"


class Picks(tuple[Pick, ...]):
    """An order."""

    @cached_property
    def tasks(self) -> tuple[int, ...]:
        return tuple(pick.task for pick in self)

    @cached_property
    def members(self) -> frozenset[int]:
        return frozenset(self.tasks)


def _unpack(text: str) -> Picks:
    return Picks(Pick(task, intern(reason), *terms) for task, reason, *terms in from_json(text))


class RoundRecords(Database):
    """Reads and writes the table `round`."""

    _orders: Mapping[tuple[Any, ...], Picks] = {}

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
        """Store a round, which has considered all open scans that are on the map, and with a model also scored."""
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
                "settings": to_json(settings) if settings else "",
            }
            self._upsert(connection, round_table, [row])
            considered(connection, project, Stage.SCORED if model else Stage.MAPPED)

    def extend_round(self, project: int, n: int, picks: Sequence[Pick], *, model: str) -> None:
        """Replace the order of a round with this model, which has considered what `put_round` says."""
        with self.write() as connection:
            here = (round_table.c.project == project, round_table.c.n == n)
            longer = {"picks": _pack(picks), "changes": round_table.c.changes + 1}
            connection.execute(update(round_table).where(*here).values(longer))
            considered(connection, project, Stage.SCORED if model else Stage.MAPPED)

    def set_reach(self, project: int, n: int, reach: int) -> None:
        """Record that so many places of round n have been published."""
        with self.write() as connection:
            here = (round_table.c.project == project, round_table.c.n == n, round_table.c.reach < reach)
            connection.execute(update(round_table).where(*here).values(reach=reach))

    def mark_published(self, project: int, n: int) -> None:
        """Record that Label Studio serves round n, and shorten the orders that it supersedes."""
        with self.write() as connection:
            here = (round_table.c.project == project, round_table.c.n == n, round_table.c.published_at.is_(None))
            if connection.execute(update(round_table).where(*here).values(published_at=time.time())).rowcount:
                self._shorten(connection, project, n)

    def _shorten(self, connection: Connection, project: int, n: int) -> None:
        """Of the last orders before round n, keep what was labelled, and what annotators may still have open.

        The last order without a model stays complete, because it contains the clusters.
        """
        rounds = round_table.c
        here = rounds.project == project
        cold = select(func.max(rounds.n)).where(here, rounds.model == "", rounds.n <= n).scalar_subquery()
        before = (here, rounds.n < n, rounds.n >= n - SHORTENED, rounds.n != func.coalesce(cold, -1))
        labelled = select(scan_table.c.task).where(scan_table.c.project == project, scan_table.c.annotated != 0)
        kept = set(connection.execute(labelled).scalars())
        for carried in connection.execute(select(rounds.carried).where(here, rounds.n == n)).scalars():
            kept.update(from_json(carried))
        for number, text in connection.execute(select(rounds.n, rounds.picks).where(*before)).all():
            picks = from_json(text)
            left = [pick for pick in picks if pick[0] in kept]
            if len(left) < len(picks):
                shorter = {"picks": to_json(left), "changes": rounds.changes + 1}
                connection.execute(update(round_table).where(here, rounds.n == number).values(shorter))

    def rounds(self, project: int, *, picks: bool = True, newest: int = 0) -> list[dict[str, Any]]:
        """The `newest` rounds (0: all), oldest first; `picks=False` omits their orders, which are large."""
        columns = [c for c in round_table.c if c.name != "picks"]
        statement = select(*columns).where(round_table.c.project == project).order_by(round_table.c.n.desc())
        rows = [dict(r) for r in reversed(self.rows(statement.limit(newest) if newest else statement))]
        here = round_table.c.project == project
        orders = dict(self._tuples(select(round_table.c.n, round_table.c.picks).where(here))) if picks else {}
        for row in rows:
            row["carried"] = from_json(row["carried"])
            row["settings"] = from_json(row["settings"] or "{}")
            row["picks"] = list(_unpack(orders[row["n"]])) if row["n"] in orders else []
        return rows

    def orders(self, project: int) -> Iterator[Picks]:
        """The order of every round, oldest first, one in memory at a time."""
        for (n,) in self.round_columns(project, "n"):
            here = (round_table.c.project == project, round_table.c.n == n)
            for (text,) in self._tuples(select(round_table.c.picks).where(*here)):
                yield _unpack(text)

    def round_columns(self, project: int, *names: str) -> list[tuple[Any, ...]]:
        """Some columns of all rounds, oldest first."""
        columns = [round_table.c[name] for name in names]
        return self._tuples(select(*columns).where(round_table.c.project == project).order_by(round_table.c.n))

    def count_rounds(self, project: int) -> int:
        ((count,),) = self._tuples(select(func.count()).where(round_table.c.project == project))
        return int(count)

    def model_of_round(self, project: int, n: int) -> str:
        """The version of the model of round n; "" for a round without a model, and for an unknown one."""
        here = (round_table.c.project == project, round_table.c.n == n)
        found = self._tuples(select(round_table.c.model).where(*here))
        return str(found[0][0]) if found else ""

    def clusters(self, project: int) -> dict[int, int]:
        """The cluster of each scan, by task, from the newest order without a model that contains it."""
        here = (round_table.c.project == project, round_table.c.model == "")
        numbers = [n for (n,) in self._tuples(select(round_table.c.n).where(*here).order_by(round_table.c.n.desc()))]
        ((wanted,),) = self._tuples(select(func.count()).where(scan_table.c.project == project))
        found: dict[int, int] = {}
        for n in numbers[:COLD_ROUNDS]:
            ((text_,),) = self._tuples(select(round_table.c.picks).where(*here, round_table.c.n == n))
            for task, *_, cluster in from_json(text_):
                if cluster is not None:
                    found.setdefault(task, cluster)
            if len(found) >= wanted:
                break
        return found

    def latest_round(self, project: int, *, served: bool = False) -> dict[str, Any] | None:
        """The newest round, without reading the others; None before the first.

        served  the newest one that Label Studio has served to annotators

        While the order stays the same, every call returns the same tuple object as `picks`.
        """
        here = [round_table.c.project == project, *([round_table.c.published_at.is_not(None)] if served else [])]
        columns = [c for c in round_table.c if c.name != "picks"]  # a large order is read once
        rows = self.rows(select(*columns).where(*here).order_by(round_table.c.n.desc()).limit(1))
        if not rows:
            return None
        found = dict(rows[0])
        key = (project, found["n"], found["created_at"], found["changes"])
        picks = self._orders.get(key)
        if picks is None:
            where = (round_table.c.project == project, round_table.c.n == found["n"])
            picks = _unpack(self._tuples(select(round_table.c.picks).where(*where))[0][0])
            self._orders = {**dict(list(self._orders.items())[1 - KEPT_ORDERS :]), key: picks}
        return found | {"carried": from_json(found["carried"]), "picks": picks}
