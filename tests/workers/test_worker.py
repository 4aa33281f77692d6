"""The reconciliation queue, on real storage, with a real consumer."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backend.errors import StoreUnavailable
from backend.settings import Settings
from backend.workers import worker
from backend.workers.worker import GAP, Queue, RequestBuffer


def test_a_project_with_many_requests_is_queued_once(tmp_path: Path) -> None:
    queue = Queue(Settings(data_dir=tmp_path))
    for _ in range(50):
        queue.request(1)
        queue.request(2)
    assert queue.waiting() == 2


PROGRAM = """
import sys, threading, time
from pathlib import Path
from backend.workers import worker
import pytest

from backend.workers import worker
from backend.errors import StoreUnavailable
from backend.settings import Settings
from backend.workers.worker import Queue

worker.SWEEP = 3.0

folder = Path(sys.argv[1])
busy = [True]

def reconcile(project):
    with (folder / "reconciled").open("a") as file:
        file.write(f"{project}\\n")
    if project == 7:
        raise RuntimeError("unexpected")
    if project == 8 and busy:
        busy.clear()
        return True
    time.sleep(0.2)
    return False

Queue(Settings(data_dir=folder), reconcile, lambda: [1, 7, 8]).run(threading.Event())
"""


def reconciled(folder: Path) -> list[str]:
    file = folder / "reconciled"
    return file.read_text().split() if file.exists() else []


def wait_for(folder: Path, project: str, count: int) -> None:
    until = time.monotonic() + 60
    while reconciled(folder).count(project) < count:
        assert time.monotonic() < until, reconciled(folder)
        time.sleep(0.1)


def test_every_project_is_reconciled_on_start_and_a_busy_one_again(tmp_path: Path) -> None:
    queue = Queue(Settings(data_dir=tmp_path))
    queue.request(1)  # left by a killed worker: the flag must not block the project forever
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)])
    try:
        for project, count in (("1", 1), ("7", 1), ("8", 2)):
            wait_for(tmp_path, project, count)
        # a failure in one project does not affect the next job
        before = reconciled(tmp_path).count("1")
        queue.request(1)
        wait_for(tmp_path, "1", before + 1)
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) is not None


def test_ten_thousand_requests_cause_at_most_one_reconciliation_per_gap(tmp_path: Path) -> None:
    queue = Queue(Settings(data_dir=tmp_path))
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)])
    try:
        wait_for(tmp_path, "1", 1)
        before, began = reconciled(tmp_path).count("1"), time.monotonic()
        for _ in range(10_000):
            queue.request(1)
        wait_for(tmp_path, "1", before + 1)
        more, took = reconciled(tmp_path).count("1") - before, time.monotonic() - began
        assert more <= took / GAP + 1
        # the last request is handled too
        after = reconciled(tmp_path).count("1")
        queue.request(1)
        wait_for(tmp_path, "1", after + 1)
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) is not None


def test_a_request_during_a_reconciliation_is_news_to_it_or_causes_another_one(tmp_path: Path) -> None:
    began, go_on, told = threading.Event(), threading.Event(), []

    def reconcile(project: int) -> bool:
        began.set()
        assert go_on.wait(30)
        told.append((queue.news(project), queue.news(project)) if len(told) != 1 else ())
        return False

    queue = Queue(Settings(data_dir=tmp_path), reconcile)
    assert not queue.news(1)
    for again in ((True, False), ()):  # who heard the news needs no other run; who did not is run again
        runs = len(told)
        threads = [threading.Thread(target=queue._taken, args=(1,)) for _ in range(3)]
        threads[0].start()
        assert began.wait(30)
        for thread in threads[1:]:
            thread.start()
            thread.join()  # at once, although the first one is still at it
        go_on.set()
        threads[0].join()
        assert told[runs] == again
        assert queue.waits(1) == (again == ())
        began.clear()
        go_on.clear()
        time.sleep(GAP)


def test_a_flag_with_a_lost_job_does_not_block_its_project(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)])
    try:
        wait_for(tmp_path, "1", 1)
        queue = Queue(Settings(data_dir=tmp_path))
        queue._huey.storage.put_data("touched:1", b"1")  # as if its worker had died while holding the job
        wait_for(tmp_path, "1", reconciled(tmp_path).count("1") + 2)
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) is not None


def test_an_unreachable_queue_loses_a_request_without_an_error(tmp_path: Path, free_port: int) -> None:
    queue = Queue(Settings(data_dir=tmp_path, redis_url=f"redis://127.0.0.1:{free_port}/0"))
    assert queue.request(1) is False


def test_a_relay_returns_at_once_and_forwards_every_project() -> None:
    slow, passed = threading.Event(), []

    def touch(project: int) -> None:
        slow.wait(10)
        passed.append(project)

    buffer = RequestBuffer(touch)
    began = time.monotonic()
    for _ in range(1000):
        for project in (1, 2, 3):
            buffer.request(project)
    assert time.monotonic() - began < 5
    slow.set()
    until = time.monotonic() + 10
    while set(passed) != {1, 2, 3}:
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(passed) <= 4


def test_a_training_request_survives_unreachable_records_and_a_relay_survives_every_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "AGAIN", 0.05)
    away, passed, asked = [True], [], []

    def known(project: int) -> bool:
        if away[0]:
            raise StoreUnavailable("The database does not answer.")
        if project == 7:
            raise RuntimeError("unexpected")
        return project != 9

    buffer = RequestBuffer(passed.append, known, asked.append)
    for project, wish in ((7, False), (1, True), (1, False), (2, False), (9, True)):
        buffer.request(project, wish)
    time.sleep(0.5)
    assert (passed, asked) == ([], [])
    away[0] = False
    until = time.monotonic() + 10
    while not buffer.idle():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert sorted(passed) == [1, 2]
    assert asked == [1]


def test_sweeps_go_on_after_a_failed_one(tmp_path: Path) -> None:
    failing = "def projects(tries=[]):\n    tries.append(1)\n    return [1] if len(tries) > 1 else 1 // 0\n\nQueue("
    program = PROGRAM.replace("Queue(Settings", failing + "Settings").replace("lambda: [1, 7, 8]", "projects")
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    try:
        wait_for(tmp_path, "1", 1)
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) is not None


def test_a_worker_ends_with_its_parent_process(tmp_path: Path) -> None:
    program = PROGRAM.replace("threading.Event())", "threading.Event(), parent=1)")  # not the one that started it
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False).returncode == 0
