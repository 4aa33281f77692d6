"""Keeps one worker process running: restarts it when it exits or hangs.

The worker writes a byte to a pipe every two seconds while it makes progress. All times are monotonic, so a jumping
clock kills nothing. A worker that starts has longer, and counts as alive meanwhile, unless the one before it never
showed a sign of life.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("scanqueue.supervisor")

BEAT = 2.0  # seconds between heartbeats
SILENCE = 60.0  # seconds without a heartbeat after which the process counts as hung
STARTUP = 600.0  # maximum seconds until the first heartbeat: a busy machine may load libraries slowly
RESTART_AFTER = 2.0  # seconds until a dead worker is restarted
GRACE = 25.0  # seconds that a worker has to end; huey gives its jobs 20


class AliveFile:
    """Tells external monitoring that the worker is alive, by the file's time; `path` may be None.

    It agrees with the supervisor: a worker that loads its libraries slowly is alive for both.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lived = True  # whether the latest worker, or none, has shown a sign of life
        self._starting = False
        self._touched = -BEAT

    def started(self) -> None:
        """A worker was started."""
        self._starting, self._lived = self._lived, False

    def beaten(self) -> None:
        """The worker has shown a sign of life."""
        self._starting, self._lived = False, True
        self._touch()

    def watched(self) -> None:
        """The worker runs, and the supervisor did not give up on it."""
        if self._starting and time.monotonic() - self._touched >= BEAT:
            self._touch()

    def _touch(self) -> None:
        self._touched = time.monotonic()
        if self._path is not None:
            with suppress(OSError):  # a full disk must not end the worker
                self._path.touch()


def keep_worker(
    command: Sequence[str],
    environment: Mapping[str, str],
    stopping: threading.Event,
    *,
    silence: float = SILENCE,
    alive: Path | None = None,
) -> None:
    """Run and restart `command --heartbeat FD` until `stopping` is set; then end it with SIGTERM.

    silence  seconds without a heartbeat after which it is killed and restarted
    alive    a file that is touched at every heartbeat and during a start, for external monitoring
    """
    file = AliveFile(alive)
    while not stopping.is_set():
        try:
            code = _run(command, environment, stopping, silence, file)
        except Exception:  # such as no memory or no free process: may be temporary
            log.exception("the worker could not be started or watched; will retry")
        else:
            if not stopping.is_set():
                log.warning("the worker ended with code %s; restarting it", code)
        stopping.wait(RESTART_AFTER)


def _run(
    command: Sequence[str],
    environment: Mapping[str, str],
    stopping: threading.Event,
    silence: float,
    alive: AliveFile,
) -> int:
    """Run the worker once; returns its exit code. Always ends the process and closes its pipe."""
    reading, writing = os.pipe()
    try:
        try:
            child = subprocess.Popen([*command, "--heartbeat", str(writing)], env=environment, pass_fds=[writing])
        finally:
            os.close(writing)
        try:
            _watch(child, reading, stopping, silence, alive)
        finally:
            if child.poll() is None:
                child.kill()
            code = child.wait()
    finally:
        os.close(reading)
    return code


def _watch(
    child: subprocess.Popen[bytes], reading: int, stopping: threading.Event, silence: float, file: AliveFile
) -> None:
    """Return when the child has exited by itself or was killed here."""
    alive, limit = time.monotonic(), max(silence, STARTUP)
    file.started()
    with selectors.DefaultSelector() as signs:  # not select(), which fails beyond descriptor 1,023
        signs.register(reading, selectors.EVENT_READ)
        while child.poll() is None and not stopping.is_set():
            if signs.select(0.2):
                if os.read(reading, 4096):
                    alive, limit = time.monotonic(), silence
                    file.beaten()
                else:
                    stopping.wait(0.2)  # the other end is closed: the process is exiting
            file.watched()
            if time.monotonic() - alive > limit:
                log.error("the worker has shown no sign of life for %.0f s; killing and restarting it", limit)
                child.kill()
                child.wait()
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def beat(descriptor: int, well: Callable[[], bool], stopping: threading.Event) -> None:
    """The worker's side: send heartbeats while `well()`, until `stopping`."""
    while not stopping.is_set():
        if well():
            os.write(descriptor, b".")
        stopping.wait(BEAT)
