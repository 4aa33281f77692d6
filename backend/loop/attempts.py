"""Attempts at work that may need more memory than there is: after MOST_ATTEMPTS of them, the loop goes on without it.

The system ends a process that needs too much memory without a word. So an attempt is recorded before the work, and
taken back when it ends; what is left over was cut off.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from backend.errors import ScanqueueError, StorageFull, StoreUnavailable, WorkersLost
from backend.loop.context import Busy, LoopContext, Postponed, Replan
from backend.loop.steps import COMPARE, TRAIN, CompareWithControl, Done, Train
from backend.workers.watchdog import GaveWay, Stopping

log = logging.getLogger("scanqueue.reconcile")

WANTED = (Busy, Replan, Postponed, GaveWay, Stopping)  # the work was interrupted on purpose


@contextmanager
def attempt(context: LoopContext, project: int, done: Done, step: Train | CompareWithControl) -> Iterator[None]:
    """Inside, the step is an attempt. It counts if its process dies, or fails for a reason that we cannot explain."""
    if isinstance(step, Train):
        work, key, labels, before = TRAIN, context.learner.recipe(done.settings.seed), len(step.tasks), done.cut_off
    else:
        work, key, labels, before = COMPARE, step.version, len(step.ours), done.trials_cut_off
    first = before is None or labels >= before.labels + done.settings.round_size
    store = context.store
    store.begin_attempt(project, work, key, labels, first=first)
    try:
        yield
    except WorkersLost:
        raise
    except (*WANTED, ScanqueueError):
        with suppress(StoreUnavailable, StorageFull):
            store.cancel_attempt(project, work, key)
        raise
    store.end_attempts(project, work)
