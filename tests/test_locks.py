"""Locks between workers: files alone, a real Redis alone, and both."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from servers import RedisServer

from backend import locks
from backend.locks import Locks


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LEASE", 2.0)
    monkeypatch.setattr(locks, "RENEW", 0.3)


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_only_one_holds_a_lock_and_it_is_free_again_afterwards(tmp_path: Path) -> None:
    one, other = Locks(tmp_path), Locks(tmp_path)
    with one.held("project-1") as mine:
        assert mine
        with other.held("project-1") as theirs, other.held("project-2") as elsewhere:
            assert not theirs
            assert elsewhere
    with other.held("project-1") as again:
        assert again


def test_redis_keeps_apart_workers_whose_folders_share_no_locks(tmp_path: Path, redis_server: RedisServer) -> None:
    one, other = Locks(tmp_path / "a", redis_server.url), Locks(tmp_path / "b", redis_server.url)
    with one.held("project-1") as mine, other.held("project-1") as theirs:
        assert mine
        assert not theirs
    with other.held("project-1") as again:
        assert again


@pytest.mark.usefixtures("quick")
def test_a_lock_is_kept_longer_than_its_lease_while_its_holder_lives(tmp_path: Path, redis_server: RedisServer) -> None:
    one, other = Locks(tmp_path / "a", redis_server.url), Locks(tmp_path / "b", redis_server.url)
    with one.held("project-1") as mine:
        time.sleep(3)
        with other.held("project-1") as theirs:
            assert not theirs
        assert not mine.lost()


@pytest.mark.usefixtures("quick")
def test_a_holder_takes_its_lock_again_when_redis_was_emptied(tmp_path: Path, redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    one, other = Locks(tmp_path / "a", redis_server.url), Locks(tmp_path / "b", redis_server.url)
    with one.held("project-1") as mine:
        client.flushall()
        wait_until(lambda: bool(client.keys("scanqueue:lock:*")))
        with other.held("project-1") as theirs:
            assert not theirs
        assert not mine.lost()


@pytest.mark.usefixtures("quick")
def test_a_holder_learns_that_somebody_else_was_faster(tmp_path: Path, redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    one, other = Locks(tmp_path / "a", redis_server.url), Locks(tmp_path / "b", redis_server.url)
    with one.held("project-1") as mine:
        client.flushall()
        with other.held("project-1") as theirs:
            assert theirs
            wait_until(mine.lost)
            assert not theirs.lost()


@pytest.mark.usefixtures("quick")
def test_files_keep_workers_of_one_machine_apart_even_when_redis_was_emptied(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    one, other = Locks(tmp_path, redis_server.url), Locks(tmp_path, redis_server.url)
    with one.held("project-1"):
        redis.Redis.from_url(redis_server.url).flushall()
        with other.held("project-1") as theirs:
            assert not theirs


def test_a_redis_that_is_away_gives_no_lock_and_no_error(tmp_path: Path, free_port: int) -> None:
    with Locks(tmp_path, f"redis://127.0.0.1:{free_port}/0").held("project-1") as mine:
        assert not mine
