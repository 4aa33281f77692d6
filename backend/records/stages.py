"""How far each scan has come, so that a look at a project reads only the scans that need something.

Stages say what is stored elsewhere: embeddings, the map, uncertainties, rounds. They are brought up to date from there,
and lowered when what they refer to changes, so a process may be killed between the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, exists, func, or_, select, update

from backend.errors import DamagedRecords
from backend.facts import Counts, Stage
from backend.records.database import VARIABLES, Database, Row, from_json, to_json
from backend.records.tables import embedding_table, project_table, scan_table, uncertainty_table

_scan = scan_table.c
REVERSED = [int(f"{n:06b}"[::-1], 2) for n in range(64)]


def random_place(task: int, volume: str, number: int) -> int:
    """The place of a scan in a random order, 0..2^32: in every beginning, each volume has about equally many slices.

    number  of the slice in its volume
    """
    own = int.from_bytes(hashlib.sha256(f"{volume}|{task}".encode()).digest()[:4], "big")
    if not volume:
        return own
    start = hashlib.sha256(volume.encode()).digest()[0]
    return REVERSED[(number + start) % 64] << 26 | own >> 6


class Basis(NamedTuple):
    """What the stages of a project refer to.

    embedder  name of the embedder
    map       the unit of the map; "": there is no map
    model     fingerprint of the active model, "|" and the names of the signals needed besides the mean entropy;
              "": no model
    fitted    number of images or volumes that the map was fitted on
    """

    embedder: str = ""
    map: str = ""
    model: str = ""
    fitted: int = 0

    @classmethod
    def from_json(cls, text: str) -> Basis:
        """As it was recorded; "": nothing yet. Raises DamagedRecords for anything else."""
        try:
            return cls(**from_json(text)) if text else cls()
        except TypeError as error:
            raise DamagedRecords("A value in the database", "is damaged") from error


class Recent(NamedTuple):
    """Problems that were found at these times are not tried again yet: after the first, until the second."""

    after: float
    until: float


def _readable(recent: Recent) -> Any:
    return or_(_scan.problem == "", _scan.problem_at <= recent.after, _scan.problem_at > recent.until)


def considered(connection: Connection, project: int, least: Stage) -> None:
    """Record that a round has just considered all open scans from stage `least` on.

    Labelled ones and those left out are not in its order, so they have to join it when they are open again.
    """
    others = and_(_scan.project == project, _scan.stage == Stage.ORDERED, _scan.annotated > 0)
    left_out = and_(_scan.project == project, _scan.priority < 0, _scan.stage == Stage.ORDERED)
    for where in (others, left_out):
        connection.execute(update(scan_table).where(where).values(stage=int(least)))
    here = and_(_scan.project == project, _scan.stage >= least, _scan.stage < Stage.ORDERED, _scan.annotated == 0)
    connection.execute(
        update(scan_table).where(here, _scan.problem == "", _scan.priority >= 0).values(stage=int(Stage.ORDERED))
    )


class StageRecords(Database):
    """Reads and writes the stages in the table `scan`."""

    def basis(self, project: int) -> Basis:
        found = self._tuples(select(project_table.c.stages).where(project_table.c.id == project))
        return Basis.from_json(found[0][0] if found else "")

    def set_basis(self, project: int, basis: Basis) -> None:
        """Lower the stages that refer to something else than `basis` says, and record it."""
        with self.write() as connection:
            here = project_table.c.id == project
            text = connection.execute(select(project_table.c.stages).where(here)).scalar_one()
            before = Basis.from_json(text)
            if before.embedder != basis.embedder:
                self._lower(connection, project, Stage.UNREAD)
            elif before.map != basis.map:
                self._lower(connection, project, Stage.EMBEDDED)
            elif before.model != basis.model:
                self._lower(connection, project, Stage.MAPPED)
            connection.execute(update(project_table).where(here).values(stages=to_json(basis._asdict())))

    def check_embeddings(self, project: int, embedder: str) -> None:
        """Let scans be read again whose embedding is lost."""
        has = exists().where(embedding_table.c.embedder == embedder, embedding_table.c.digest == _scan.digest)
        here = (_scan.project == project, _scan.stage > Stage.UNREAD, ~has)
        if self._tuples(select(_scan.task).where(*here).limit(1)):
            with self.write() as connection:
                connection.execute(update(scan_table).where(*here).values(stage=int(Stage.UNREAD)))

    def _lower(self, connection: Connection, project: int, stage: Stage) -> None:
        here = (_scan.project == project, _scan.stage > stage)
        connection.execute(update(scan_table).where(*here).values(stage=int(stage)))

    def raise_stages(
        self, project: int, basis: Basis, least: Stage, ordered: Collection[int], *, thorough: bool = True
    ) -> None:
        """Bring stages up to date with the stored embeddings, uncertainties and latest round.

        least     the stage from which on that round considers scans
        ordered   tasks in its order
        thorough  look for all of them, not only for a few; the round itself records what it considers
        """
        embedding, uncertainty = embedding_table.c, uncertainty_table.c
        new = and_(_scan.project == project, _scan.stage == Stage.UNREAD, _scan.digest != "", _scan.problem == "")
        has = exists().where(embedding.embedder == basis.embedder, embedding.digest == _scan.digest)
        self._raise(new, has, Stage.EMBEDDED)
        if basis.model:
            model, _, extra = basis.model.partition("|")
            open_ = and_(_scan.project == project, _scan.stage == Stage.MAPPED, _scan.annotated == 0)
            named = [uncertainty.more.like(f'%"{name}":%') for name in extra.split(",") if name]
            has = exists().where(uncertainty.model == model, uncertainty.digest == _scan.digest, *named)
            self._raise(open_, has, Stage.SCORED)
        last = -1
        while ordered:
            here = (_scan.project == project, _scan.stage >= least, _scan.stage < Stage.ORDERED, _scan.annotated == 0)
            some = select(_scan.task).where(*here, _scan.task > last).order_by(_scan.task).limit(VARIABLES)
            ready = [task for (task,) in self._tuples(some)]
            if known := [task for task in ready if task in ordered]:
                self.set_stage(project, known, Stage.ORDERED)
            if len(ready) < VARIABLES or not thorough:
                return
            last = ready[-1]

    def _raise(self, here: Any, has: Any, stage: Stage) -> None:
        if self._tuples(select(_scan.task).where(here).limit(1)):
            with self.write() as connection:
                connection.execute(update(scan_table).where(here, has).values(stage=int(stage)))

    def set_stage(self, project: int, tasks: Sequence[int], stage: Stage, *, lower: bool = False) -> None:
        """Raise these tasks to a stage, those that are beyond it and unread ones excepted; or `lower` them to it."""
        with self.write() as connection:
            for start in range(0, len(tasks), VARIABLES):
                here = (_scan.project == project, _scan.task.in_(tasks[start : start + VARIABLES]))
                between = (_scan.stage > stage,) if lower else (_scan.stage > Stage.UNREAD, _scan.stage < stage)
                connection.execute(update(scan_table).where(*here, *between).values(stage=int(stage)))

    def scans_of(self, project: int, tasks: Iterable[int]) -> list[Row]:
        """The scans of these tasks, by task; deleted ones are left out."""
        wanted = sorted(set(tasks))
        rows: list[Row] = []
        for start in range(0, len(wanted), VARIABLES):
            rows += self.rows(
                select(scan_table)
                .where(_scan.project == project, _scan.task.in_(wanted[start : start + VARIABLES]))
                .order_by(_scan.task)
            )
        return rows

    def open_scans(self, project: int) -> dict[str, int]:
        """A task of each digest among the open scans that were read."""
        here = (_scan.project == project, _scan.annotated == 0, _scan.problem == "", _scan.digest != "")
        return dict(self._tuples(select(_scan.digest, _scan.task).where(*here).order_by(_scan.task)))

    def scans_in_need(self, project: int, recent: Recent, most: int) -> list[Row]:
        """Scans that a look may have to do something for, by task.

        These are all that are labelled or have priority or are left out; and of every stage before the last, `most`
        open ones, in a random order that stays the same.
        """
        here = _scan.project == project
        found = self.rows(select(scan_table).where(here, _scan.annotated > 0))
        found += self.rows(select(scan_table).where(here, _scan.priority != 0))
        for stage in Stage:
            if stage < Stage.ORDERED:
                at = (here, _scan.stage == stage, _scan.annotated == 0, _scan.priority == 0, _readable(recent))
                found += self.rows(select(scan_table).where(*at).order_by(_scan.draw, _scan.task).limit(most))
        return found

    def count_scans(self, project: int, recent: Recent, unit: str, ask: Collection[str]) -> Counts:
        """The numbers of scans.

        ask  which of "volumes", "groups" and "strata" are wanted; the others are reported as False
        """
        here = _scan.project == project
        broken = and_(_scan.problem != "", _scan.problem_at > recent.after, _scan.problem_at <= recent.until)
        open_ = _scan.annotated == 0
        unreadable = [annotated for (annotated,) in self._tuples(select(_scan.annotated).where(here, broken))]
        total = self._number(here)
        embedded = total - self._number(here, _scan.stage == Stage.UNREAD)
        any_of = {"volumes": _scan.volume != "", "strata": _scan.stratum != ""}
        any_of["groups"] = or_(_scan.volume != "", _scan.patient != "")
        told = {name: self.any_scan(project, any_of[name]) for name in ask}
        open_at = {stage: self._number(here, _scan.stage == stage, open_) for stage in Stage if stage < Stage.ORDERED}
        all_open = total - self._number(here, _scan.annotated > 0)
        left_out = self._left_out(project, recent)
        out = {stage: left_out.count(stage) for stage in Stage}
        return Counts(
            scans=total,
            unreadable=len(unreadable),
            unread=total - embedded - len(unreadable),
            unmapped=self._number(here, _scan.stage == Stage.EMBEDDED),
            mapped=open_at[Stage.MAPPED] - out[Stage.MAPPED],
            scored=open_at[Stage.SCORED] - out[Stage.SCORED],
            ordered=all_open - sum(open_at.values()) - out[Stage.ORDERED],
            open=all_open - unreadable.count(0),
            left_out=len(left_out),
            skipped=self._number(here, open_, _scan.skipped > 0, _scan.priority >= 0, _readable(recent)),
            places=self._places(project) if unit == "scan" else embedded,
            **told,
        )

    def _left_out(self, project: int, recent: Recent) -> list[int]:
        """The stages of the open scans that are left out."""
        columns = (_scan.stage, _scan.priority, _scan.annotated, _scan.problem, _scan.problem_at)
        # no further condition, with which SQLite would use another index and read all open scans
        few = self._tuples(select(*columns).where(_scan.project == project, _scan.priority != 0))
        return [
            stage
            for stage, priority, annotated, problem, at in few
            if priority < 0 and not annotated and not (problem and recent.after < at <= recent.until)
        ]

    def any_scan(self, project: int, *where: Any) -> bool:
        """Whether the project has a scan, or one of which `where` holds."""
        return bool(self._tuples(select(_scan.task).where(_scan.project == project, *where).limit(1)))

    def _number(self, *where: Any) -> int:
        ((n,),) = self._tuples(select(func.count()).where(*where))
        return int(n)

    def _places(self, project: int) -> int:
        here = (_scan.project == project, _scan.stage >= Stage.EMBEDDED, _scan.problem == "")
        volumes = select(func.count(_scan.volume.distinct())).where(*here, _scan.volume != "")
        files = select(func.count(_scan.digest.distinct())).where(*here, _scan.volume == "")
        return sum(int(n) for one in (volumes, files) for (n,) in self._tuples(one))

    def totals(self, project: int) -> tuple[int, int, int]:
        """Numbers of tasks, annotations and skips."""
        here = _scan.project == project
        annotations, skips = (func.coalesce(func.sum(one), 0) for one in (_scan.annotated, _scan.skipped))
        # each of these reads a small part of an index
        ((labelled, also_skipped),) = self._tuples(select(annotations, skips).where(here, _scan.annotated > 0))
        ((skipped,),) = self._tuples(select(skips).where(here, _scan.annotated == 0, _scan.skipped > 0))
        return self._number(here), int(labelled), int(also_skipped) + int(skipped)

    def recorded(self, project: int, tasks: Sequence[int], names: Sequence[str]) -> Mapping[int, tuple[Any, ...]]:
        """Columns of some tasks, by task."""
        statement = select(_scan.task, *(_scan[name] for name in names)).where(_scan.project == project)
        if len(tasks) > 20 * VARIABLES:
            wanted = set(tasks)
            return {task: tuple(values) for task, *values in self._tuples(statement) if task in wanted}
        found: dict[int, tuple[Any, ...]] = {}
        for start in range(0, len(tasks), VARIABLES):
            some = statement.where(_scan.task.in_(tasks[start : start + VARIABLES]))
            found |= {task: tuple(values) for task, *values in self._tuples(some)}
        return found
