"""What cannot wait for the end of a long step: the queue is kept filled, and its next masks are redrawn."""

from __future__ import annotations

import logging
import time

from backend.errors import ProjectGone, ScanqueueError
from backend.facts import Live
from backend.loop.annotations import AnnotationReader
from backend.loop.context import Busy, LoopContext, Replan
from backend.loop.decide import meanwhile
from backend.loop.observing import Observer
from backend.loop.publishing import Publisher
from backend.loop.quick_masks import QuickDrawer
from backend.loop.steps import FEW, Publish, ReadMasks, Step, describe, unchanged
from backend.loop.stored import stored
from backend.workers.watchdog import Stopping

log = logging.getLogger("scanqueue.reconcile")

TEND_EVERY = 10.0  # seconds between checks of the queue during long steps
MOST_STEPS = 4  # of one check: with many annotators there is always one more


class Tender:
    """Looks after the queues of projects during long steps."""

    def __init__(
        self,
        context: LoopContext,
        observer: Observer,
        publisher: Publisher,
        annotations: AnnotationReader,
        quick: QuickDrawer,
    ) -> None:
        self._context = context
        self._observer = observer
        self._publisher = publisher
        self._annotations = annotations
        self._quick = quick
        self._tended: dict[int, float] = {}
        self._pause: dict[int, float] = {}
        self._tending: set[int] = set()

    def tend(self, project: int) -> None:
        """Called during long steps. Publishes what is missing and, before the first model, redraws the next masks.

        Does something after news of the project, else every TEND_EVERY seconds, and lets the long step run for as long
        as the last check took. Problems are left to the next pass.
        """
        self._check(project, reading=False)

    def refill(self, project: int) -> None:
        """Like `tend`, while annotations are read or the quick model draws: publishes what is missing, and no more."""
        self._check(project, reading=True)

    def _check(self, project: int, *, reading: bool) -> None:
        idle = time.monotonic() - self._tended.get(project, -TEND_EVERY)
        if project in self._tending or idle < self._pause.get(project, 0.0):
            return
        if idle < TEND_EVERY and (reading or not self._has_news(project)):
            return
        self._context.check(project)
        self._tending.add(project)
        began = time.monotonic()
        try:
            if self._context.store.latest_round(project) is not None:
                self._do(project, reading=reading)
        except ProjectGone:
            raise
        except ScanqueueError as error:
            log.warning("project %s: the queue could not be kept up to date: %s", project, error)
        except (Busy, Replan, Stopping):
            raise
        except Exception:  # it must not cost the long step
            log.exception("project %s: the queue could not be kept up to date", project)
        finally:
            self._tending.discard(project)
            self._tended[project] = time.monotonic()
            self._pause[project] = self._tended[project] - began

    def _has_news(self, project: int) -> bool:
        """With an active model, nothing is redrawn, so nothing is urgent."""
        return not self._context.row(project)["active"] and self._context.news(project)

    def _do(self, project: int, *, reading: bool) -> None:
        last: Step | None = None
        live: Live | None = None
        for _ in range(MOST_STEPS):
            seen = self._observer.observe(project, live)
            done = stored(self._context, project, seen)
            steps = meanwhile(seen, done)
            step = next((s for s in steps if not reading or isinstance(s, Publish)), None)
            if step is None or step == last:
                return
            log.info("project %s: meanwhile, %s", project, describe(step))
            if isinstance(step, Publish):
                self._publisher.publish(project, seen, done, step)  # Replan ends the long step: it is disconnected
            elif isinstance(step, ReadMasks):
                self._annotations.read(project, seen, ReadMasks(step.tasks[:FEW]))
            else:
                try:
                    self._quick.redraw(project, seen, done, step)
                except Replan:
                    return
            last, live = step, unchanged(seen, step) if live is None else None
