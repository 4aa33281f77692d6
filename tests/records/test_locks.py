"""Locks between workers: only files, only a real Redis, and both."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from servers import RedisServer

from backend.errors import StoreUnavailable
from backend.records import locks
from backend.records.locks import Locks
from backend.records.store import Store


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LEASE", 2.0)
    monkeypatch.setattr(locks, "RENEW", 0.3)


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_only_one_holds_a_lock_and_it_is_free_afterwards(tmp_path: Path) -> None:
    one, other = Locks(tmp_path), Locks(tmp_path)
    with one.held("project-1") as mine:
        assert mine
        with other.held("project-1") as theirs, other.held("project-2") as elsewhere:
            assert not theirs
            assert elsewhere
    with other.held("project-1") as again:
        assert again


def test_redis_excludes_workers_whose_folders_share_no_locks(tmp_path: Path, redis_server: RedisServer) -> None:
    one, other = Locks(tmp_path / "a", redis_server.url), Locks(tmp_path / "b", redis_server.url)
    with one.held("project-1") as mine, other.held("project-1") as theirs:
        assert mine
        assert not theirs
    with other.held("project-1") as again:
        assert again


@pytest.mark.usefixtures("quick")
def test_a_live_holder_keeps_its_lock_beyond_the_lease(tmp_path: Path, redis_server: RedisServer) -> None:
    one, other = Locks(tmp_path / "a", redis_server.url), Locks(tmp_path / "b", redis_server.url)
    with one.held("project-1") as mine:
        time.sleep(3)
        with other.held("project-1") as theirs:
            assert not theirs
        assert not mine.lost()


@pytest.mark.usefixtures("quick")
def test_a_holder_reacquires_its_lock_after_redis_was_emptied(tmp_path: Path, redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    one, other = Locks(tmp_path / "a", redis_server.url), Locks(tmp_path / "b", redis_server.url)
    with one.held("project-1") as mine:
        client.flushall()
        wait_until(lambda: bool(client.keys("scanqueue:lock:*")))
        with other.held("project-1") as theirs:
            assert not theirs
        assert not mine.lost()


@pytest.mark.usefixtures("quick")
def test_a_holder_learns_that_another_took_its_lock(tmp_path: Path, redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    one, other = Locks(tmp_path / "a", redis_server.url), Locks(tmp_path / "b", redis_server.url)
    with one.held("project-1") as mine:
        client.flushall()
        with other.held("project-1") as theirs:
            assert theirs
            wait_until(mine.lost)
            assert not theirs.lost()


@pytest.mark.usefixtures("quick")
def test_file_locks_exclude_workers_on_one_machine_even_after_redis_was_emptied(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    one, other = Locks(tmp_path, redis_server.url), Locks(tmp_path, redis_server.url)
    with one.held("project-1"):
        redis.Redis.from_url(redis_server.url).flushall()
        with other.held("project-1") as theirs:
            assert not theirs


def test_a_file_system_without_locks_is_reported_or_replaced_by_redis(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain lock file would outlive a killed holder and block all workers."""

    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    with (
        pytest.raises(StoreUnavailable, match=r"does not support locks.*SCANQUEUE_REDIS_URL"),
        Locks(tmp_path).held("x"),
    ):
        pass
    one, other = Locks(tmp_path, redis_server.url), Locks(tmp_path, redis_server.url)
    with one.held("without-files") as mine, other.held("without-files") as theirs:
        assert mine
        assert not theirs
    with other.held("without-files") as again:
        assert again
    assert Store(tmp_path).projects() == []  # the records are still created


def test_an_unreachable_redis_gives_no_lock_and_no_error(tmp_path: Path, free_port: int) -> None:
    with Locks(tmp_path, f"redis://127.0.0.1:{free_port}/0").held("project-1") as mine:
        assert not mine
