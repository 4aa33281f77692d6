"""The queue of looks to take, and the process that takes them (huey: SQLite, or Redis by URL).

A job carries nothing but a project number, so that a lost, doubled or forged one costs a look
and nothing else. One sweep a minute, and one at the start, touch every project.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from huey import RedisHuey, SqliteHuey, crontab
from huey.consumer import Consumer

from backend.errors import ScanqueueError
from backend.settings import Settings

log = logging.getLogger("scanqueue.worker")

THREADS = 4  # projects looked at side by side; they take turns to train
AGAIN = 5.0  # seconds until a project that was busy is looked at again


class Look(Protocol):
    """Brings a project up to date; True when it was busy and somebody must come again."""

    def __call__(self, project: int) -> bool: ...


class Queue:
    """Where touched projects wait. A project waits there once, however often it is touched.

    look      what the worker process does; None in a process that only touches
    projects  all projects there are, for the sweep
    """

    def __init__(
        self,
        settings: Settings,
        look: Look | None = None,
        projects: Callable[[], Iterable[int]] | None = None,
    ) -> None:
        if settings.redis_url:
            self._huey: Any = RedisHuey("scanqueue", url=settings.redis_url, results=False)
        else:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
            self._huey = SqliteHuey(
                "scanqueue", filename=str(settings.data_dir / "jobs.sqlite"), results=False, timeout=30
            )
        self._look = look
        self._projects = projects or (lambda: ())

        @self._huey.task(name="look")  # type: ignore[untyped-decorator]
        def job(project: int) -> None:
            self._taken(project)

        @self._huey.periodic_task(crontab(minute="*"), name="sweep")  # type: ignore[untyped-decorator]
        def sweep() -> None:
            for project in self._projects():
                self.touch(project)

        self._job = job

    def touch(self, project: int) -> None:
        """Have the project looked at soon; returns at once."""
        if self._huey.storage.put_if_empty(_flag(project), b"1"):
            self._job(project)

    def waits(self, project: int) -> bool:
        """Whether the project was touched and no worker has turned to it yet."""
        return bool(self._huey.storage.has_data_for_key(_flag(project)))

    def waiting(self) -> int:
        """How many jobs wait for a worker."""
        return int(self._huey.storage.queue_size())

    def _taken(self, project: int) -> None:
        # From here on a new touch is a new job: what it is about may come after our look.
        self._huey.storage.pop_data(_flag(project))
        if self._look is None:
            return
        try:
            busy = self._look(project)
        except ScanqueueError as error:
            log.warning("project %s: %s", project, error)
            return
        except Exception:
            log.exception("project %s: unexpected failure; looked at again within a minute", project)
            return
        if busy and self._huey.storage.put_if_empty(_flag(project), b"1"):
            self._job.schedule((project,), delay=AGAIN)

    def run(self, stopping: threading.Event, *, parent: int = 0) -> None:
        """Work until a signal comes, or until the process `parent` is no longer ours."""
        for project in self._projects():
            self._huey.storage.pop_data(_flag(project))  # of a job that died with an earlier worker
            self.touch(project)
        consumer = Consumer(
            self._huey,
            workers=THREADS,
            worker_type="thread",
            max_delay=0.5,
            shutdown_timeout=20,
            graceful_signal="TERM",
        )

        def watch() -> None:
            while not stopping.wait(0.5):
                if consumer._signum is not None or (parent and os.getppid() != parent):
                    stopping.set()
            consumer.stop_flag.set()

        threading.Thread(target=watch, daemon=True).start()
        consumer.run()
        stopping.set()


def _flag(project: int) -> str:
    return f"touched:{project}"
