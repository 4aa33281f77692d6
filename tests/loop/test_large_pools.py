"""The first order of a large pool is made from a part of it, and grows while the rest is worked on."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fuse import Fuse, with_fuse
from world import COLD, PROJECT, World

from backend.facts import Counts
from backend.loop import decide, publication
from backend.loop.publication import depth_by_knowledge
from backend.settings import ProjectSettings

POOL, FIRST = 40, 8


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 40 scans were a hundred thousand."""
    for module in (decide, publication):
        monkeypatch.setattr(module, "SMALL_POOL", 6)
    monkeypatch.setattr(decide, "FIRST_SCANS", FIRST)
    monkeypatch.setattr(decide, "FIRST_ROUNDS", 1)


class Watched(World):
    """Notes the beginning of the order that is published, and from how many scans it was made then."""

    def __init__(self, folder: Path, **params: Any) -> None:
        super().__init__(folder, **params)
        self.imports: list[tuple[str, tuple[int, ...], Counts]] = []
        send = self.studio.import_predictions

        def note(project: int, rows: Sequence[Mapping[str, Any]]) -> None:
            latest = self.store.latest_round(PROJECT)
            assert latest is not None
            new = {row["task"] for row in rows} - {*latest["carried"]}
            reach = max((n for n, task in enumerate(latest["picks"].tasks, start=1) if task in new), default=0)
            self.imports.append((rows[0]["model_version"], latest["picks"].tasks[:reach], self.counts()))
            send(project, rows)

        self.studio.import_predictions = note  # type: ignore[method-assign]

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
    assert counts.ordered == FIRST
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

    fuse = Fuse()
    end = scenario(tmp_path / "data", fuse).end_state()
    counts = Counter((version, task) for version, task, _, _ in end["predictions"])
    assert set(counts.values()) == {1}
    assert fuse.names.count("extend_round") >= 2
    shutil.rmtree(tmp_path / "data")
    for at in range(first, len(fuse.names) + 1, 19):
        killed = Fuse(at)
        found = scenario(tmp_path / "data", killed).end_state()
        for part, value in end.items():
            assert found[part] == value, f"{part}, killed at write {at}, {fuse.names[at - 1]}"
        shutil.rmtree(tmp_path / "data")


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
