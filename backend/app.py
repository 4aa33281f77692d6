"""Where the parts are put together. Everything else gets what it needs as an argument."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import fields
from typing import TYPE_CHECKING

from backend.api import create_api
from backend.settings import PREFIX, Settings
from backend.store import Store
from backend.worker import Queue

if TYPE_CHECKING:
    from backend.reconcile import Reconciler
    from backend.studio import Studio

log = logging.getLogger("scanqueue")

NICE = 10  # how far the worker steps back behind the server and Label Studio
RESTART_AFTER = 2.0  # seconds until a worker that died is started again


def make_reconciler(settings: Settings, store: Store, stopping: threading.Event) -> Reconciler:
    from backend.learner import Learner
    from backend.reconcile import Reconciler

    return Reconciler(make_studio(settings), store, Learner(settings), settings, stopping.is_set)


def make_studio(settings: Settings) -> Studio:
    from backend.studio import Studio

    return Studio(settings.label_studio_url, settings.label_studio_api_key, image_hosts=settings.image_hosts)


def run_worker(settings: Settings, *, parent: int = 0) -> None:
    """Look at touched projects until told to stop. Killed at any moment, nothing is lost."""
    os.nice(NICE)
    stopping = threading.Event()
    store = Store(settings.data_dir, settings.database_url)
    reconciler = make_reconciler(settings, store, stopping)

    def look(project: int) -> bool:
        from backend.reconcile import Busy, Stopping

        try:
            reconciler.reconcile(project)
        except Busy:
            return True
        except Stopping:
            log.info("project %s: stopped; it is taken up again at the next start", project)
        return False

    Queue(settings, look, store.projects).run(stopping, parent=parent)


def run_server(settings: Settings, *, worker: bool) -> None:
    """Serve HTTP; with `worker`, also keep one worker process running beside it."""
    import uvicorn

    from backend.learner import Learner
    from backend.predictor import Predictor

    store = Store(settings.data_dir, settings.database_url)
    queue = Queue(settings)
    predictor = Predictor(store, make_studio(settings), Learner(settings))
    api = create_api(settings, store, queue.touch, predictor.predict)
    stopping = threading.Event()
    keeper = threading.Thread(target=_keep_worker, args=(settings, stopping), daemon=True)
    if worker:
        keeper.start()
    try:
        uvicorn.run(api, host=settings.host, port=settings.port, log_level="warning", access_log=False)
    finally:
        stopping.set()
        if worker:
            keeper.join(timeout=30)


def _keep_worker(settings: Settings, stopping: threading.Event) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)} | to_env(settings)
    command = [sys.executable, "-m", "backend.cli", "worker", "--parent", str(os.getpid())]
    while not stopping.is_set():
        child = subprocess.Popen(command, env=environment)
        while child.poll() is None and not stopping.wait(0.2):
            pass
        if not stopping.is_set():
            log.warning("the worker ended with code %s; it is started again", child.returncode)
            stopping.wait(RESTART_AFTER)
            continue
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=25)
        except subprocess.TimeoutExpired:
            child.kill()


def to_env(settings: Settings) -> dict[str, str]:
    """The settings as the environment that `Settings.from_env` reads."""
    found = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        if value not in (None, "", ()):
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            found[PREFIX + f.name.upper()] = text
    return found
