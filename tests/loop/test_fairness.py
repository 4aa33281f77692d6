"""Projects with a lot to do leave room for the others, and lose nothing by it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from huey.consumer import Consumer
from world import COLD, PROJECT, World

from backend.loop import context, driver, steps, suspects
from backend.loop.context import Busy, LoopContext
from backend.loop.driver import Reconciler
from backend.records.store import Store
from backend.settings import Settings
from backend.workers import worker
from backend.workers.watchdog import GaveWay
from backend.workers.worker import THREADS, Queue

BUSY = range(1, THREADS + 1)  # as many as there are threads
OTHERS = range(11, 17)


def in_turns(world: World) -> int:
    """Reconcile, giving way to others whenever that is possible; returns how often."""
    reconciler = world.reconciler()
    reconciler.context.crowded = lambda: True
    for turn in range(1000):
        try:
            assert reconciler.reconcile(PROJECT).steps == ()
            return turn
        except GaveWay:
            assert not reconciler.context.locks
    raise AssertionError("it never ends")


def test_a_project_that_always_gives_way_reaches_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, turns = World(tmp_path / "straight"), World(tmp_path / "turns")
    monkeypatch.setattr(context, "SLICE", 0.0)
    monkeypatch.setattr(suspects, "AT_ONCE", 4)
    monkeypatch.setattr(steps, "FEW", 2)
    monkeypatch.setattr(driver, "FEW", 2)
    for world in (straight, turns):
        world.add_scans(0, 12)
    straight.run()
    assert in_turns(turns) >= 7  # three parts of the scans, the map, the order
    assert turns.end_state() == straight.end_state()
    for world in (straight, turns):
        world.label(COLD)
    straight.run()
    assert in_turns(turns) >= 11  # annotations, the training, the scores, the order
    assert turns.studio.model_version == "scanqueue-r1"
    assert turns.end_state() == straight.end_state()


def test_a_project_works_on_while_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "SLICE", 0.0)
    world = World(tmp_path)
    world.add_scans(0, 12)
    world.run()


def test_steps_that_cannot_be_interrupted_leave_threads_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    world.add_scans(0, 12)
    monkeypatch.setattr(driver, "INDIVISIBLE", 0)
    with pytest.raises(Busy):
        world.reconciler().reconcile(PROJECT)  # it would lay out the map now
    monkeypatch.undo()
    world.run()


def test_six_projects_are_served_beside_four_that_are_busy_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "SLICE", 0.2)
    monkeypatch.setattr(worker, "SWEEP", 1.0)
    monkeypatch.setattr(Consumer, "_set_signal_handlers", lambda _: None)  # this is not the main thread
    shared = Reconciler(None, Store(tmp_path), None, Settings(data_dir=tmp_path)).context  # type: ignore[arg-type]
    served: Counter[int] = Counter()
    stopping = threading.Event()

    def reconcile(project: int) -> bool:
        served[project] += 1
        shared.began[project] = time.monotonic()
        while project in BUSY and not stopping.is_set():
            time.sleep(0.02)  # a part
            LoopContext.give_way(shared, project)
        return False

    queue = Queue(Settings(data_dir=tmp_path), reconcile, lambda: [*BUSY, *OTHERS])
    shared.crowded = lambda: queue.waiting() > 0
    runner = threading.Thread(target=queue.run, args=(stopping,))
    began = time.monotonic()
    runner.start()
    try:
        while any(served[project] < 2 for project in (*BUSY, *OTHERS)):
            assert time.monotonic() - began < 30, served
            time.sleep(0.1)
    finally:
        stopping.set()
        runner.join()
