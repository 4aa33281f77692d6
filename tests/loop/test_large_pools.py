"""The first order of a large pool is made from a part of it, and grows while the rest is worked on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fuse import Fuse, check_kills, with_fuse
from world import COLD, PROJECT, World

from backend.facts import Counts, Stage
from backend.loop import decide, publication
from backend.loop.audit import set_priorities
from backend.loop.publication import depth_by_knowledge
from backend.records.database import Database
from backend.settings import ProjectSettings

POOL, FIRST = 40, 8


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 40 scans were a hundred thousand."""
    monkeypatch.setattr(publication, "SMALL_POOL", 6)
    monkeypatch.setattr(decide, "FIRST_SCANS", FIRST)
    monkeypatch.setattr(publication, "FIRST_SCANS", FIRST)
    monkeypatch.setattr(publication, "FIRST_ROUNDS", 1)


class Watched(World):
    """Notes what is sent, the beginning of the order that is published, and from how many scans it was made then."""

    def __init__(self, folder: Path, **params: Any) -> None:
        super().__init__(folder, **params)
        self.imports: list[tuple[str, tuple[int, ...], Counts]] = []
        self.sent: list[tuple[str, set[int]]] = []
        send = self.studio.import_predictions

        def note(project: int, rows: Sequence[Mapping[str, Any]], tasks: int) -> None:
            latest = self.store.latest_round(PROJECT)
            assert latest is not None
            new = {row["task"] for row in rows} - {*latest["carried"]}
            reach = max((n for n, task in enumerate(latest["picks"].tasks, start=1) if task in new), default=0)
            self.imports.append((rows[0]["model_version"], latest["picks"].tasks[:reach], self.counts()))
            self.sent.append((rows[0]["model_version"], {row["task"] for row in rows}))
            send(project, rows)

        self.studio.import_predictions = note

    def counts(self) -> Counts:
        scans = self.store.scans(PROJECT)
        done = sum(s["stage"] == 4 for s in scans)
        return Counts(scans=len(scans), unread=sum(s["stage"] == 0 for s in scans), ordered=done)


def test_the_first_tasks_are_served_before_the_pool_is_read_and_keep_their_places(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data", queue_depth=20)
    world.add_scans(0, POOL)
    world.run()
    version, first, counts = world.imports[0]
    assert (version, counts.ordered, counts.unread) == ("scanqueue-r0", FIRST, POOL - FIRST)
    assert 0 < len(first) < FIRST  # no more than annotators need soon: later extensions know more scans
    assert [c.ordered for _, _, c in world.imports] == sorted(c.ordered for _, _, c in world.imports)
    assert world.counts() == Counts(scans=POOL, unread=0, ordered=POOL)

    order = world.order()
    assert sorted(order) == sorted(world.studio.task_ids(PROJECT))
    assert tuple(order[: len(first)]) == first
    served = world.published()
    assert sorted(served) == sorted(order[:20])
    assert set(served.values()) == {1}
    scores = {p["task"]: p["score"] for p in world.studio.predictions}
    assert sorted(scores, key=lambda task: scores[task]) == order[:20]


def test_a_new_model_serves_its_round_before_the_pool_is_scored(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data", queue_depth=20)
    world.add_scans(0, POOL)
    world.run()
    world.label(COLD)
    world.imports.clear()
    world.run()
    first, counts = next(one[1:] for one in world.imports if one[0] == "scanqueue-r1")
    carried = world.store.rounds(PROJECT)[-1]["carried"]
    assert FIRST <= counts.ordered <= FIRST + len(carried)
    order = world.order()
    assert sorted(order) == sorted(world.studio.task_ids(PROJECT) - world.annotations.keys())
    assert tuple(order[: len(first)]) == first
    assert all(count == 1 for count in world.published().values())


def test_labels_are_learnt_from_while_the_pool_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the rest of the pool: training comes before reading it."""
    world = Watched(tmp_path / "data", queue_depth=20)
    world.add_scans(0, POOL)
    tools = world.reconciler()
    read = tools.processor.read
    trained: list[int] = []

    def submit_meanwhile(project: int, scans: Sequence[Any]) -> None:
        if world.imports and not world.annotations:
            world.label(COLD)
        if world.store.models(PROJECT):
            trained.append(world.counts().unread)
        read(project, scans)

    monkeypatch.setattr(tools.processor, "read", submit_meanwhile)
    assert tools.reconcile(PROJECT).steps == ()
    assert trained
    assert trained[0] > 0
    assert world.counts().unread == 0


@pytest.mark.parametrize("first", [1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 20))])
def test_a_kill_at_any_write_leads_to_the_same_end_state(first: int, tmp_path: Path) -> None:
    def scenario(folder: Path, fuse: Fuse) -> World:
        world = World(folder, queue_depth=12)
        world.add_scans(0, 18)
        with_fuse(world, fuse)
        world.label(COLD)
        with_fuse(world, fuse)
        return world

    assert check_kills(tmp_path / "data", scenario, first, 19).count("extend_round") >= 2


def test_what_is_published_at_first_suits_the_annotators_and_never_shrinks() -> None:
    settings = ProjectSettings(round_size=10)
    few, many = Counts(open=1000, ordered=128), Counts(open=1000, ordered=500)
    assert depth_by_knowledge(settings, many, 1) == settings
    assert [depth_by_knowledge(settings, few, people).depth for people in (0, 1, 3, 9, 30)] == [6, 6, 10, 22, 30]
    assert depth_by_knowledge(settings, Counts(open=6, ordered=1), 1) == settings  # a small pool
    order = tuple(range(1, 101))
    open_ = dict.fromkeys(order, False)
    part = publication.published_part(order, (), open_, depth_by_knowledge(settings, few, 1), 1, lambda t: {t}, 30)
    assert part == (30, list(order[:30]))


@pytest.mark.parametrize("late", [False, True], ids=["in a new round", "in a round that was extended"])
def test_a_scan_whose_label_was_deleted_is_in_the_order_again(late: bool, tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    world.add_scans(0, 12)
    world.run()
    task = world.order()[8]  # not published yet
    world.submit(task)
    world.run()
    if late:
        world.add_scans(12, 1)
        world.run()
    else:
        world.set(strategy="typiclust+paper")
    assert task not in world.order()
    world.studio.delete(world.annotations[task])
    world.run()
    assert sorted(world.order()) == sorted(world.studio.task_ids(PROJECT))


def test_an_idle_look_reads_as_many_records_of_a_large_pool_as_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication, "WINDOW", 10)
    read = [0]

    def counted(self: Database, statement: Any) -> list[Any]:
        with self._engine.connect() as connection:
            found = list(connection.execute(statement).mappings())
        read[0] += len(found)
        return found

    def tuples(self: Database, statement: Any) -> list[Any]:
        return [tuple(row.values()) for row in counted(self, statement)]

    numbers = []
    for count in (20, 60):
        world = World(tmp_path / str(count))
        world.add_scans(0, count)
        world.run()
        tools = world.reconciler()
        tools.reconcile(PROJECT)  # a new process checks more, once
        with monkeypatch.context() as patch:
            patch.setattr(Database, "rows", counted)
            patch.setattr(Database, "_tuples", tuples)
            read[0] = 0
            tools.reconcile(PROJECT)
            numbers.append(read[0])
    assert numbers[0] == numbers[1] > 0


def test_scans_of_one_volume_stay_together_where_whole_volumes_are_chosen(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data", queue_depth=10, unit="scan")
    volume = {}
    for place, task in enumerate(world.add_scans(0, POOL)):
        volume[task] = place // 8
        data = {"image": world.studio.reference(task), "scan": f"V{place // 8}", "slice": place % 8}
        world.studio.set_data(task, data)
    world.run()
    for order in (world.imports[0][1], tuple(world.order())):
        assert len([v for v, _ in itertools.groupby(order, volume.__getitem__)]) == len({volume[t] for t in order})


def test_a_scan_that_is_left_out_while_it_is_scored_does_not_stop_the_others(tmp_path: Path) -> None:
    world = World(tmp_path / "data", queue_depth=10)
    world.add_scans(0, POOL)
    world.run()
    world.label(COLD)
    tools = world.reconciler()
    score, calls = tools.processor.score, itertools.count()

    def left_out(project: int, model: str, scans: Sequence[Any], extra: str = "") -> None:
        score(project, model, scans, extra)
        if next(calls) == 1:
            set_priorities(world.store, PROJECT, "anna", [scans[0].task], "out")

    tools.processor.score = left_out  # type: ignore[method-assign]
    assert tools.reconcile(PROJECT).steps == ()
    assert len(world.order()) == POOL - COLD - 1
    assert world.status()["waiting"] == 0


def test_a_scan_to_be_labelled_next_is_read_and_scored_before_the_others(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data", queue_depth=10)
    world.add_scans(0, POOL)
    for kind, stage in (("read", Stage.EMBEDDED), ("score", Stage.SCORED)):
        tools = world.reconciler()
        work, calls, wished = getattr(tools.processor, kind), itertools.count(), list[int]()

        def wish(*args: Any, work=work, calls=calls, wished=wished, stage=stage) -> None:  # type: ignore[no-untyped-def]
            if next(calls) == 1:
                rows = sorted(world.store.scans(PROJECT), key=lambda row: -row["draw"])
                wished += [r["task"] for r in rows if r["stage"] < stage and not (r["annotated"] or r["priority"])][:1]
                set_priorities(world.store, PROJECT, "anna", wished, "next")
                world.imports.clear()
            work(*args)

        setattr(tools.processor, kind, wish)
        assert tools.reconcile(PROJECT).steps == ()
        assert wished[0] in world.imports[0][1]
        assert world.imports[0][2].ordered < POOL - COLD  # the others were not waited for
        assert world.order()[0] == wished[0]
        world.label(COLD)


def test_nothing_is_trained_on_a_part_of_the_labels_while_images_are_read_again(tmp_path: Path) -> None:
    world = World(tmp_path / "data", queue_depth=10)
    tasks = world.add_scans(0, POOL)
    world.run()
    for _ in range(3):
        world.label(COLD)
        world.run()
    before = [(m["version"], len(m["trained_on"])) for m in world.store.models(PROJECT)]
    for task in tasks:  # the files were moved
        image = world.studio.reference(task)
        moved = image.replace("/data/", "/moved/")
        world.studio.images[moved] = world.studio.images[image]
        world.studio.set_data(task, {"image": moved})
    world.run()
    assert [(m["version"], len(m["trained_on"])) for m in world.store.models(PROJECT)] == before
    assert world.status()["embedded"] == POOL


def test_tasks_that_annotators_may_hold_are_scored_first(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data", queue_depth=10)
    world.add_scans(0, POOL)
    world.run()
    world.label(COLD)
    held = world.studio.next_task()
    world.run()
    first = next(tasks for version, tasks in world.sent if version == "scanqueue-r1")
    assert held in first
    assert len(world.order()) > len(first)


def test_published_places_are_known_to_records_of_an_older_version(tmp_path: Path) -> None:
    world = World(tmp_path / "data", queue_depth=10)
    world.add_scans(0, 12)
    world.run()
    order = world.order()
    with world.store.write() as connection:  # as the migration leaves them
        connection.exec_driver_sql("UPDATE round SET reach = 0")
        connection.exec_driver_sql("UPDATE project SET stages = ''")
        connection.exec_driver_sql("UPDATE scan SET stage = 0")
    world.run()
    assert world.order() == order
    world.add_scans(12, POOL)
    world.run()
    assert world.order()[:10] == order[:10]
    assert set(world.published().values()) == {1}


def test_a_map_is_made_before_a_round_if_there_is_none(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data")
    world.add_scans(0, 6)
    world.run()
    world.add_scans(6, POOL)
    world.imports.clear()
    world.set(unit="scan")
    assert all(order for _, order, _ in world.imports)
    assert len(world.order()) == POOL + 6
