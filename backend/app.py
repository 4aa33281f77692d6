"""The composition root: creates the parts and passes them to each other as arguments."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from backend.errors import DamagedRecords, ScanqueueError, StorageFull, StoreUnavailable
from backend.facts import DISCONNECTED
from backend.records.private import OTHERS, protect
from backend.records.store import Store
from backend.settings import PREFIX, Settings
from backend.web import rendering
from backend.web.api import create_api
from backend.workers.counters import CountCallback, Counters, discard
from backend.workers.supervisor import SILENCE, beat, keep_worker
from backend.workers.watchdog import Stopping, Watchdog
from backend.workers.worker import Queue, RequestBuffer

if TYPE_CHECKING:
    from backend.label_studio.studio import Studio
    from backend.learning.learner import Learner
    from backend.loop.driver import Reconciler

log = logging.getLogger("scanqueue")

NICE = 10  # niceness of workers, below the server and Label Studio
LOOK_FOR_LABELS = 15.0  # seconds between checks for first labels, which announce a first model
SHUTDOWN = 10  # seconds for running requests to finish when the server stops


def open_store(settings: Settings) -> Store:
    return Store(settings.data_dir, settings.database_url, settings.redis_url)


def make_reconciler(
    settings: Settings,
    store: Store,
    stopping: threading.Event,
    watchdog: Watchdog | None = None,
    count: CountCallback = discard,
) -> Reconciler:
    from backend.learning.learner import Learner
    from backend.loop.driver import Reconciler

    studio = make_studio(settings, count)
    return Reconciler(studio, store, Learner(settings), settings, stopping.is_set, watchdog or Watchdog(), count)


def make_studio(settings: Settings, count: CountCallback = discard) -> Studio:
    from backend.label_studio.studio import Studio

    return Studio(
        settings.label_studio_url, settings.label_studio_api_key, image_hosts=settings.image_hosts, count=count
    )


def run_worker(settings: Settings, *, parent: int = 0, heartbeat: int | None = None) -> None:
    """Process requested projects until stopped. Nothing is lost if the process is killed.

    heartbeat  file descriptor that is written to while the work progresses
    """
    from backend.loop.context import Busy
    from backend.records.retention import Retention
    from backend.workers.roster import Roster

    os.nice(NICE)
    stopping = threading.Event()
    watchdog = Watchdog()
    store = open_store(settings)
    counters = Counters(store.add_counters)
    queue = Queue(settings, lambda project: look(project), store.projects)
    reconciler = make_reconciler(settings, store, stopping, watchdog, counters.count)
    reconciler.context.news = queue.news
    reconciler.context.crowded = lambda: queue.waiting() > 0
    if heartbeat is not None:  # not earlier: loading the libraries can block all threads for a long time
        threading.Thread(
            target=beat, args=(heartbeat, lambda: watchdog.silence() < settings.hang_seconds, stopping), daemon=True
        ).start()

    cluster = reconciler.context.cluster
    roster = Roster(
        store,
        f"{socket.gethostname()}:{os.getpid()}",
        lambda: f"Dask dashboard: {cluster.dashboard}" if cluster and cluster.dashboard else "",
    )

    def look(project: int) -> bool | None:
        try:
            with watchdog.watched(), roster.at(f"project {project}"):
                plan = reconciler.reconcile(project)
            if plan.phase == DISCONNECTED:  # our question whether that has changed makes Label Studio call us
                return None
        except Busy:
            return True
        except Stopping:
            log.info("project %s: stopped; work resumes at the next start", project)
        return False

    def spare() -> None:
        """Work that a planned stop cuts off does not count, even if it does not end in time."""
        stopping.wait()
        reconciler.context.attempts.stop()

    retention = Retention(store, settings.keep_models, settings.cache_days, stopping)
    threading.Thread(target=retention.run, daemon=True).start()
    telling = threading.Thread(target=roster.run, args=(stopping,), daemon=True)
    telling.start()
    sparing = threading.Thread(target=spare, daemon=True)
    sparing.start()
    threading.Thread(target=counters.keep, args=(stopping,), daemon=True).start()
    queue.run(stopping, parent=parent)
    sparing.join(timeout=5)
    telling.join(timeout=5)
    counters.flush()


def supervise_worker(settings: Settings, *, alive: Path | None = None) -> None:
    """Keep a worker process running until SIGTERM or SIGINT.

    alive  file that is touched while the worker is alive
    """
    _keep_private(settings)
    if not settings.database_url:
        try:
            open_store(settings).close()
        except DamagedRecords:
            raise
        except (StorageFull, StoreUnavailable) as error:  # the worker process retries until this is over
            log.warning("%s", error)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    _keep_worker(settings, stopping, alive)


def run_server(settings: Settings, *, worker: bool) -> None:
    """Serve HTTP; with `worker`, also keep one worker process running."""
    import uvicorn

    from backend.correction.corrector import Corrector
    from backend.doctor import examine
    from backend.learning.learner import Learner
    from backend.loop.batch import BatchProcessor
    from backend.loop.predictor import Predictor
    from backend.web.overview import Overview
    from backend.web.pictures import Pictures
    from backend.web.studio_state import StudioState

    _keep_private(settings)
    store = open_store(settings)
    queue = Queue(settings)
    counters = Counters(store.add_counters)
    studio, learner = make_studio(settings, counters.count), Learner(settings, at_once=False)
    predictor = Predictor(store, studio, learner)
    buffer = RequestBuffer(queue.request, lambda project: store.project(project) is not None, store.request_training)
    pictures = Pictures(store, BatchProcessor(studio, store, learner))
    state = StudioState(studio.whoami)
    overview = Overview(store, studio, pictures, lambda p: [f.to_dict() for f in examine(settings, p)], state.notice)
    corrector = Corrector(store, studio, learner, counters.count)
    api = create_api(
        settings,
        store,
        buffer.request,
        predictor.predict,
        correct=corrector.correct,
        overview=overview,
        waiting=queue.waiting,
        count=counters.count,
    )
    stopping = threading.Event()
    keeper = threading.Thread(target=_keep_worker, args=(settings, stopping), daemon=True)
    threading.Thread(target=counters.keep, args=(stopping,), daemon=True).start()
    threading.Thread(target=rendering.warm, daemon=True).start()
    threading.Thread(target=_load_ahead, args=(learner, store, stopping), daemon=True).start()
    if worker:
        keeper.start()
    keep_loaded()
    try:
        uvicorn.run(
            api,
            host=settings.host,
            port=settings.port,
            log_config=None,  # uvicorn logs through our handlers
            log_level="warning",
            access_log=False,
            ws="none",  # we have no WebSockets: a request for one is an ordinary one
            timeout_graceful_shutdown=SHUTDOWN,
            forwarded_allow_ips=list(settings.trusted_proxies),
        )
    finally:
        stopping.set()
        corrector.close()
        counters.flush()
        if worker:
            keeper.join(timeout=30)


def _keep_private(settings: Settings) -> None:
    """Let only the owner read the data folder and what this process and its workers write from now on."""
    os.umask(OTHERS)
    if left := protect(settings.data_dir):
        log.warning(
            "other users of this machine have rights to %s, which belongs to somebody else, so that cannot be changed "
            "here. Run `chmod -R go= %s` as its owner",
            left[0],
            settings.data_dir,
        )


def _load_ahead(learner: Learner, store: Store, stopping: threading.Event) -> None:
    """Load the segmentation libraries once labelling begins, before an annotator waits for the first mask."""
    while not stopping.is_set():
        with suppress(ScanqueueError):  # the records are temporarily unavailable
            if store.has_labels() or store.checkpoints():
                learner.load()
                keep_loaded()
                return
        stopping.wait(LOOK_FOR_LABELS)


def keep_loaded() -> None:
    """Exempt what libraries made so far from garbage collection: visiting it stops all requests for up to 0.5 s."""
    gc.collect()
    gc.freeze()


def _keep_worker(settings: Settings, stopping: threading.Event, alive: Path | None = None) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)} | to_env(settings)
    command = [sys.executable, "-m", "backend.cli", "worker", "--parent", str(os.getpid())]
    silence = min(SILENCE, settings.hang_seconds)
    keep_worker(command, environment, stopping, silence=silence, alive=alive)


def to_env(settings: Settings) -> dict[str, str]:
    """The settings as environment variables for `Settings.from_env`."""
    found = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        if value not in (None, "", ()):
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            found[PREFIX + f.name.upper()] = text
    return found
