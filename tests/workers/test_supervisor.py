"""The supervisor of the worker process: real processes that exit, hang, or are asked to stop."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backend.workers import supervisor
from backend.workers.supervisor import keep_worker

CHILD = """
import os, signal, sys, threading, time
from pathlib import Path
from backend.workers.supervisor import beat

folder, descriptor = Path(sys.argv[1]), int(sys.argv[3])
first = not (folder / "starts").exists()
with (folder / "starts").open("a") as file:
    file.write(f"{os.getpid()}\\n")
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: (stopping.set(), (folder / "asked").touch()))
well = [True]
if (folder / "what").read_text() == "slow":
    while not (folder / "ready").exists():
        time.sleep(0.1)
    (folder / "ready").unlink()
what = (folder / "what").read_text()
if what == "mute":
    time.sleep(3)
    sys.exit(4)
threading.Thread(target=beat, args=(descriptor, lambda: well[0], stopping), daemon=True).start()
if first:
    what = (folder / "what").read_text()
    if what == "die":
        sys.exit(3)
    time.sleep(1)  # the first sign of life is given
    if what == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "hang":
        well[0] = False
stopping.wait(120)
"""


@contextmanager
def kept(folder: Path, what: str, silence: float = 5.0) -> Iterator[threading.Event]:
    (folder / "what").write_text(what)
    stopping = threading.Event()
    command = [sys.executable, "-c", CHILD, str(folder)]
    given = {"silence": silence, "alive": folder / "alive"}
    keeper = threading.Thread(target=keep_worker, args=(command, dict(os.environ), stopping), kwargs=given)
    keeper.start()
    try:
        yield stopping
    finally:
        stopping.set()
        keeper.join(30)
        assert not keeper.is_alive()


def starts(folder: Path) -> list[int]:
    file = folder / "starts"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def wait_for_starts(folder: Path, count: int) -> None:
    until = time.monotonic() + 60
    while len(starts(folder)) < count:
        assert time.monotonic() < until, starts(folder)
        time.sleep(0.1)


def test_a_worker_that_exits_is_restarted(tmp_path: Path) -> None:
    with kept(tmp_path, "die"):
        wait_for_starts(tmp_path, 2)


def test_a_process_with_thousands_of_open_files_can_supervise_a_worker(tmp_path: Path) -> None:
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with kept(tmp_path, "live"):
            wait_for_starts(tmp_path, 1)
            until = time.monotonic() + 60
            while not (tmp_path / "alive").exists():
                assert time.monotonic() < until
                time.sleep(0.1)
    finally:
        for descriptor in many:
            os.close(descriptor)


def test_a_frozen_worker_is_killed_and_restarted(tmp_path: Path) -> None:
    with kept(tmp_path, "freeze"):
        wait_for_starts(tmp_path, 2)


def test_a_worker_with_a_hanging_step_is_killed_and_restarted(tmp_path: Path) -> None:
    with kept(tmp_path, "hang"):
        wait_for_starts(tmp_path, 2)


def test_a_failed_start_of_a_worker_is_retried_and_leaks_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTART_AFTER", 0.05)
    real, tries, stopping = subprocess.Popen, [], threading.Event()
    descriptors: list[int] = []

    def popen(*args: Any, **kwargs: Any) -> Any:
        tries.append(1)
        descriptors.append(len(os.listdir("/proc/self/fd")))
        if len(tries) <= 5:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", popen)
    (tmp_path / "what").write_text("live")
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    keeper = threading.Thread(target=supervisor.keep_worker, args=(command, dict(os.environ), stopping))
    keeper.start()
    try:
        wait_for_starts(tmp_path, 1)
    finally:
        stopping.set()
        keeper.join(30)
    assert not keeper.is_alive()
    assert len(tries) == 6
    assert len(set(descriptors)) == 1


def touched(folder: Path, seconds: float) -> bool:
    """Whether the file for health checks is touched within this time."""
    file, until = folder / "alive", time.monotonic() + seconds
    before = file.stat().st_mtime_ns if file.exists() else 0
    while time.monotonic() < until:
        if file.exists() and file.stat().st_mtime_ns != before:
            return True
        time.sleep(0.1)
    return False


def test_a_worker_that_starts_slowly_is_alive_for_health_checks_also_after_a_restart(tmp_path: Path) -> None:
    with kept(tmp_path, "slow"):
        for started in (1, 2):
            wait_for_starts(tmp_path, started)
            assert all(touched(tmp_path, 5) for _ in range(3))  # no heartbeat yet
            (tmp_path / "ready").touch()
            while (tmp_path / "ready").exists():
                time.sleep(0.1)
            assert touched(tmp_path, 5)
            os.kill(starts(tmp_path)[-1], signal.SIGKILL)


def test_workers_that_never_show_a_sign_of_life_are_not_alive_for_health_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTART_AFTER", 0.05)
    with kept(tmp_path, "mute"):
        wait_for_starts(tmp_path, 2)
        assert (tmp_path / "alive").exists()  # during the first start
        assert not touched(tmp_path, 5)


def test_a_worker_that_makes_progress_is_left_alone_and_asked_to_stop_at_the_end(tmp_path: Path) -> None:
    with kept(tmp_path, "live", silence=10.0):
        wait_for_starts(tmp_path, 1)
        time.sleep(12)
        assert len(starts(tmp_path)) == 1
        assert time.time() - (tmp_path / "alive").stat().st_mtime < 5
    assert (tmp_path / "asked").exists()
