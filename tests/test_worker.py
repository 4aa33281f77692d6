"""The queue of looks, on the real storage, with a real consumer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from backend.settings import Settings
from backend.worker import Queue


def test_a_project_touched_often_waits_once(tmp_path: Path) -> None:
    queue = Queue(Settings(data_dir=tmp_path))
    for _ in range(50):
        queue.touch(1)
        queue.touch(2)
    assert queue.waiting() == 2


PROGRAM = """
import sys, threading, time
from pathlib import Path
from backend.settings import Settings
from backend.worker import Queue

folder = Path(sys.argv[1])
busy = [True]

def look(project):
    with (folder / "looks").open("a") as file:
        file.write(f"{project}\\n")
    if project == 7:
        raise RuntimeError("unexpected")
    if project == 8 and busy:
        busy.clear()
        return True
    time.sleep(0.2)
    return False

Queue(Settings(data_dir=folder), look, lambda: [1, 7, 8]).run(threading.Event())
"""


def looks(folder: Path) -> list[str]:
    file = folder / "looks"
    return file.read_text().split() if file.exists() else []


def wait_for(folder: Path, project: str, count: int) -> None:
    until = time.monotonic() + 60
    while looks(folder).count(project) < count:
        assert time.monotonic() < until, looks(folder)
        time.sleep(0.1)


def test_every_project_is_looked_at_on_start_and_a_busy_one_again(tmp_path: Path) -> None:
    queue = Queue(Settings(data_dir=tmp_path))
    queue.touch(1)  # of an earlier worker that was killed: the flag must not keep the project waiting for ever
    worker = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)])
    try:
        for project, count in (("1", 1), ("7", 1), ("8", 2)):
            wait_for(tmp_path, project, count)
        # a failure in one project keeps nobody from the next job
        before = looks(tmp_path).count("1")
        queue.touch(1)
        wait_for(tmp_path, "1", before + 1)
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) is not None


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = PROGRAM.replace("threading.Event())", "threading.Event(), parent=1)")  # not the one that started it
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False).returncode == 0
