"""The job queue and the process that runs its jobs (huey: SQLite, or Redis by URL).

A job is a request to reconcile a project and carries only its number, so a lost, duplicate or forged job costs one
run of the loop. A sweep at the start and every minute requests all projects. All times are monotonic seconds, so a
jumping clock delays nothing.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import redis
from huey import RedisHuey, SqliteHuey
from huey.consumer import Consumer

from backend.errors import ScanqueueError, StoreUnavailable
from backend.records.private import make_file, make_folder
from backend.records.sqlite_file import damage
from backend.settings import Settings
from backend.workers.watchdog import GaveWay

log = logging.getLogger("scanqueue.worker")

THREADS = 4  # projects reconciled in parallel; they take turns to train
AGAIN = 5.0  # seconds until a busy project is reconciled again
GAP = 0.3  # minimum seconds between two jobs of one project; annotators wait for their next mask
SWEEP = 60.0  # seconds between sweeps
GRACE = 20  # seconds for running jobs to stop
WAITING = 10_000  # maximum number of projects in a RequestBuffer
BROKER_AWAY = (redis.RedisError, sqlite3.Error)


class Reconcile(Protocol):
    """Brings a project up to date.

    True if it was busy and must be reconciled again; None if nobody waits for the next time, whoever requests it.
    Raises GaveWay if it is to go on after the others that wait.
    """

    def __call__(self, project: int) -> bool | None: ...


class Queue:
    """Projects that wait to be reconciled, each at most once.

    reconcile  what the worker process does; None in a process that only requests
    projects   all projects, for the sweep
    """

    def __init__(
        self,
        settings: Settings,
        reconcile: Reconcile | None = None,
        projects: Callable[[], Iterable[int]] | None = None,
    ) -> None:
        if settings.redis_url:
            pool = redis.ConnectionPool.from_url(settings.redis_url, socket_timeout=5, socket_connect_timeout=2)
            self._huey: Any = RedisHuey("scanqueue", connection_pool=pool, results=False)
        else:
            make_folder(settings.data_dir)
            file = settings.data_dir / "jobs.sqlite"
            make_file(file)
            try:
                self._huey = SqliteHuey("scanqueue", filename=str(file), results=False, timeout=30)
            except sqlite3.Error as error:
                if damage(error) or file.is_dir():
                    raise StoreUnavailable(
                        f"The job queue {file} is damaged ({error}). Stop scanqueue and remove it, jobs.sqlite-wal and "
                        "jobs.sqlite-shm: it contains only requests that are repeated every minute. Then start again."
                    ) from error
                raise StoreUnavailable(
                    f"The job queue {file} cannot be opened ({error}). Check that its disk has room and that it may be "
                    "written to."
                ) from error
        self._reconcile = reconcile
        self._projects = projects or (lambda: ())
        self._ended: dict[int, float] = {}
        self._running: dict[int, bool] = {}  # project: whether it was requested again meanwhile
        self._mutex = threading.Lock()
        self._stopping = threading.Event()

        @self._huey.task(name="look")  # type: ignore[untyped-decorator]
        def job(project: int) -> None:
            self._taken(project)

        self._job = job

    def request(self, project: int) -> bool:
        """Request that the project is reconciled soon; returns immediately.

        False if the queue does not answer. Nothing is lost, because the next sweep comes within a minute.
        """
        try:
            if self._huey.storage.put_if_empty(_flag(project), b"1"):
                self._job(project)
        except BROKER_AWAY as error:
            log.warning(
                "project %s: the job queue does not answer (%s); the next sweep requests it again",
                project,
                type(error).__name__,
            )
            return False
        return True

    def waits(self, project: int) -> bool:
        """Whether a request for the project waits for a worker."""
        return bool(self._huey.storage.has_data_for_key(_flag(project)))

    def news(self, project: int) -> bool:
        """Whether the project, which this process reconciles, was requested again since that began or since the last
        call."""
        with self._mutex:
            if found := self._running.get(project, False):
                self._running[project] = False
            return found

    def waiting(self) -> int:
        """Number of jobs that wait for a worker."""
        return int(self._huey.storage.queue_size())

    def answers(self) -> bool:
        """Whether the queue is reachable."""
        try:
            self.waiting()
        except BROKER_AWAY:
            return False
        return True

    def _taken(self, project: int) -> None:
        if self._reconcile is None:
            return
        try:
            # From here on, a new request is a new job, as its cause may be later than this run.
            self._huey.storage.pop_data(_flag(project))
            early = self._ended.get(project, -GAP) + GAP - time.monotonic()
            if early > 0:
                self._later(project, early)
            elif self._begin(project):
                again: float | None = 0.0
                news = False
                try:
                    again = self._reconciled(self._reconcile, project)
                finally:
                    news = self._end(project)
                if news:
                    self._later(project, AGAIN if again is None else GAP)
                elif again:
                    self._later(project, again)
        except BROKER_AWAY as error:
            log.warning("project %s: the job queue does not answer (%s)", project, type(error).__name__)

    def _reconciled(self, reconcile: Reconcile, project: int) -> float | None:
        """Seconds until the project must be reconciled again; 0: it need not; None: nobody waits for the next time."""
        try:
            busy = reconcile(project)
            return busy and AGAIN
        except GaveWay:
            return GAP
        except ScanqueueError as error:
            log.warning("project %s: %s", project, error)
        except Exception:
            log.exception("project %s: unexpected failure; will retry within a minute", project)
        return 0.0

    def _begin(self, project: int) -> bool:
        """False if another thread reconciles the project; `news` tells it."""
        with self._mutex:
            if project in self._running:
                self._running[project] = True
                return False
            self._running[project] = False
            return True

    def _end(self, project: int) -> bool:
        """Whether there is still news of the project."""
        with self._mutex:
            self._ended[project] = time.monotonic()
            return self._running.pop(project)

    def _later(self, project: int, seconds: float) -> None:
        """Reconcile again after `seconds`; requests in the meantime add no job."""
        if not self._huey.storage.put_if_empty(_flag(project), b"1"):
            return

        def enqueue() -> None:
            try:
                self._job(project)
            except BROKER_AWAY:
                log.warning("project %s: the job queue does not answer; the next sweep requests it again", project)

        timer = threading.Timer(seconds, enqueue)
        timer.daemon = True
        timer.start()

    def sweep(self) -> None:
        """Request all projects."""
        try:
            projects = list(self._projects())
            if not self.waiting():
                for project in projects:  # flags of jobs that were lost with their worker or an emptied Redis
                    self._huey.storage.pop_data(_flag(project))
        except BROKER_AWAY as error:
            log.warning("the job queue does not answer (%s); will retry every minute", type(error).__name__)
            return
        except ScanqueueError as error:
            log.warning("%s", error)
            return
        for project in projects:
            self.request(project)

    def run(self, stopping: threading.Event, *, parent: int = 0) -> None:
        """Run jobs until a signal, or until `parent` is no longer the parent process."""
        consumer = Consumer(
            self._huey,
            workers=THREADS,
            worker_type="thread",
            max_delay=0.2,
            periodic=False,
            shutdown_timeout=GRACE,
            graceful_signal="TERM",
        )

        def watch() -> None:
            while not stopping.wait(0.5):
                if consumer._signum is not None or (parent and os.getppid() != parent):
                    stopping.set()
            consumer.stop_flag.set()

        def sweeps() -> None:
            while True:
                try:
                    self.sweep()
                except Exception:
                    log.exception("the sweep failed; will retry every minute")
                if stopping.wait(SWEEP):
                    return

        logging.getLogger("huey.consumer.Worker").addFilter(_NowAndThen())
        threading.Thread(target=watch, daemon=True).start()
        threading.Thread(target=sweeps, daemon=True).start()
        consumer.run()
        stopping.set()


class RequestBuffer:
    """Requests that a thread passes on, so that neither the queue nor the database delays a webhook.

    request           requests that a project is reconciled
    known             whether the project exists; requests for others are dropped
    request_training  records that somebody wants training now

    A request is kept and retried while the database or the queue is unavailable.
    """

    def __init__(
        self,
        request: Callable[[int], object],
        known: Callable[[int], bool] = lambda _: True,
        request_training: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._request, self._known, self._request_training = request, known, request_training
        self._waiting: dict[int, bool] = {}  # project: whether training is requested
        self._some = threading.Condition()
        self._passing = False
        threading.Thread(target=self._pass_on, daemon=True).start()

    def request(self, project: int, training: bool = False, /) -> None:
        """Returns immediately. A waiting project is not added twice."""
        with self._some:
            if training or len(self._waiting) < WAITING:  # further ones are forged; the sweep finds real ones
                self._waiting[project] = self._waiting.get(project, False) or training
            self._some.notify()

    def idle(self) -> bool:
        """Whether all requests were passed on."""
        with self._some:
            return not (self._waiting or self._passing)

    def _pass_on(self) -> None:
        while True:
            with self._some:
                self._passing = False
                while not self._waiting:
                    self._some.wait()
                project = next(iter(self._waiting))
                training = self._waiting.pop(project)
                self._passing = True
            try:
                if self._known(project):
                    if training:
                        self._request_training(project)
                        training = False  # already recorded; do not repeat it if the queue is unavailable
                    self._request(project)
            except ScanqueueError as error:
                log.warning("project %s: a webhook is not passed on yet: %s", project, error)
                self.request(project, training)
                time.sleep(AGAIN)
            except Exception:
                log.exception("project %s: a webhook could not be passed on; the next sweep requests it again", project)


class _NowAndThen(logging.Filter):
    """Logs one line per minute about an unavailable queue, instead of a traceback at every poll."""

    def __init__(self) -> None:
        super().__init__()
        self._reported = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg != "Error reading from queue":
            return True
        if time.monotonic() - self._reported < SWEEP:
            return False
        self._reported = time.monotonic()
        what = record.exc_info[1] if isinstance(record.exc_info, tuple) else ""
        record.msg, record.exc_info, record.exc_text = f"the job queue does not answer ({what})", None, None
        return True


def _flag(project: int) -> str:
    return f"touched:{project}"
