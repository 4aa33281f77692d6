"""Bulk work in shards: each is completed, whichever worker takes it or dies."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from backend.records.store import Store
from backend.workers import shards
from backend.workers.shards import SHARD, Shards

TASKS = list(range(1, 3 * SHARD + 3))


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "sqlite":
        return Store(tmp_path)
    return Store(tmp_path, request.getfixturevalue("postgres").new_database(f"shards-{secrets.token_hex(6)}"))


def test_shards_contain_every_task_once_and_none_is_taken_twice(store: Store) -> None:
    driver, shard_worker = Shards(store, "driver"), Shards(store, "helper")
    run = driver.cut(1, "read", "pixels|64", TASKS)
    assert driver.left(run) == (4, len(TASKS))
    taken = []
    while (one := driver.take(run)) is not None:
        taken.append(one)
        if (other := shard_worker.take()) is not None:
            taken.append(other)
    assert sorted(t for shard in taken for t in shard.tasks) == TASKS
    assert len({shard.n for shard in taken}) == len(taken) == 4
    assert {(s.project, s.kind, s.requirements) for s in taken} == {(1, "read", "pixels|64")}


def test_the_work_ends_when_every_shard_is_done(store: Store) -> None:
    driver, shard_worker = Shards(store, "driver"), Shards(store, "helper")
    run = driver.cut(1, "read", "", TASKS)
    first, last = driver.take(run), shard_worker.take()
    assert first is not None
    assert last is not None
    assert driver.finish(first)
    assert driver.left(run) == (3, len(TASKS) - SHARD)
    assert shard_worker.finish(last)
    assert driver.left(run) == (2, 2 * SHARD)


def test_a_shard_lost_with_its_worker_is_given_to_another(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LEASE", 0.5)
    driver, dead = Shards(store, "driver"), Shards(store, "dead")
    run = driver.cut(1, "read", "", TASKS[:SHARD])
    assert dead.take() is not None
    assert driver.take(run) is None
    until = time.monotonic() + 10
    while (again := driver.take(run)) is None:
        driver.left(run)
        assert time.monotonic() < until
        time.sleep(0.05)
    assert list(again.tasks) == TASKS[:SHARD]


def test_a_shard_stays_with_a_worker_that_sends_heartbeats(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LEASE", 3.0)  # a heartbeat is a database write: slow on a busy machine
    monkeypatch.setattr(shards, "BEAT", 0.1)
    driver, slow = Shards(store, "driver"), Shards(store, "slow")
    run = driver.cut(1, "read", "", TASKS[:SHARD])
    shard = slow.take()
    assert shard is not None
    with slow.beating(shard):
        until = time.monotonic() + 5  # longer than the lease
        while time.monotonic() < until:
            driver.left(run)
            assert driver.take(run) is None
            time.sleep(0.05)
    assert slow.finish(shard)
    assert driver.left(run) == (0, 0)


def test_a_shard_that_a_helper_failed_on_is_left_to_its_driver(store: Store) -> None:
    driver, shard_worker = Shards(store, "driver"), Shards(store, "helper")
    run = driver.cut(1, "read", "", TASKS[:SHARD])
    shard = shard_worker.take()
    assert shard is not None
    shard_worker.give_back(shard, failed=True)
    assert shard_worker.take() is None
    again = driver.take(run)
    assert again is not None
    assert again.tries == 1


def test_a_stopping_helper_releases_its_shard(store: Store) -> None:
    driver, shard_worker = Shards(store, "driver"), Shards(store, "helper")
    driver.cut(1, "read", "", TASKS[:SHARD])
    shard = shard_worker.take()
    assert shard is not None
    shard_worker.give_back(shard, failed=False)
    assert shard_worker.take() == shard


def test_a_late_worker_learns_that_its_driver_is_gone(store: Store) -> None:
    driver, late = Shards(store, "driver"), Shards(store, "late")
    run = driver.cut(1, "read", "", TASKS)
    shard = late.take()
    assert shard is not None
    driver.forget(1, run)
    assert not late.finish(shard)
    assert late.take() is None
    assert driver.left(run) == (0, 0)


def test_a_run_can_be_forgotten_while_other_threads_check_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, over, failed = Store(tmp_path), threading.Event(), []
    monkeypatch.setattr(store, "write", lambda: nullcontext(MagicMock()))  # only the heartbeats in memory matter
    many = Shards(store, "driver")

    def check(thread: int) -> None:
        for n in itertools.count():
            if over.is_set():
                return
            many._seen[(f"{thread}", n % 500)] = (0.0, 0.0)
            if n % 500 == 499:
                forget(f"{thread}")

    def forget(run: str) -> None:
        try:
            many.forget(1, run)
        except RuntimeError as error:
            failed.append(error)

    threads = [threading.Thread(target=check, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    over.set()
    for thread in threads:
        thread.join()
    assert failed == []


def test_shards_of_a_dead_driver_are_forgotten_and_those_of_other_projects_are_not(store: Store) -> None:
    one = Shards(store, "driver")
    one.cut(1, "read", "", TASKS)
    kept = one.cut(2, "read", "", TASKS)
    one.forget_all(1)
    assert one.waiting() == one.left(kept)[0] == 4
