"""The driver: observe Label Studio, let `decide` plan the missing steps, do the most urgent one, and observe again.

If it is killed at any point and run again, it reaches the same state: every step is stored completely before the next
begins, results are named by their inputs, and what Label Studio has received is read back from Label Studio.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from backend.errors import (
    BadSetting,
    DamagedModel,
    LostEmbeddings,
    ProjectGone,
    ScanqueueError,
    StorageFull,
    StoreUnavailable,
    StudioRefused,
    StudioUnavailable,
    WeightsMissing,
)
from backend.facts import DELETED, DISCONNECTED, Live
from backend.label_studio.studio import Studio
from backend.learning.learner import Learner
from backend.loop.annotations import AnnotationReader
from backend.loop.attempts import attempt
from backend.loop.connection import Connections, addresses
from backend.loop.context import Busy, LoopContext, Postponed, Replan
from backend.loop.control_trial import ControlTrial
from backend.loop.decide import decide, next_step
from backend.loop.observing import Observer, webhook_url
from backend.loop.project_settings import extra_signal
from backend.loop.publishing import Publisher
from backend.loop.quick_masks import QuickDrawer
from backend.loop.retraining import Trainer
from backend.loop.rounds import extend_round, map_pool, open_round
from backend.loop.sharing import share
from backend.loop.steps import (
    FEW,
    CompareWithControl,
    Done,
    DrawQuickly,
    ExtendRound,
    FitMap,
    Listen,
    ListTasks,
    MapScans,
    OpenRound,
    Plan,
    Publish,
    ReadMasks,
    ReadScans,
    Score,
    Seen,
    Step,
    Train,
    describe,
    unchanged,
)
from backend.loop.stored import stored
from backend.loop.tending import Tender
from backend.records.store import Store
from backend.settings import ProjectSettings, Settings
from backend.workers.counters import CountCallback, discard
from backend.workers.watchdog import GaveWay, Stopping, Watchdog

log = logging.getLogger("scanqueue.reconcile")

INDIVISIBLE = 2  # steps of minutes that this process does at once, so that threads are left for other projects


@dataclass
class Reconciler:
    """Runs the loop for any project. `stopping` is checked between and during steps."""

    studio: Studio
    store: Store
    learner: Learner
    settings: Settings
    stopping: Callable[[], bool] = lambda: False
    watchdog: Watchdog = field(default_factory=Watchdog)
    count: CountCallback = discard

    def __post_init__(self) -> None:
        self.context = context = LoopContext(
            self.studio, self.store, self.learner, self.settings, self.stopping, self.watchdog
        )
        self.processor = context.processor
        self.observer = Observer(context)
        self._connections = Connections(context)
        self._quick = QuickDrawer(context, self._connections)
        self._publisher = Publisher(context, self._connections, self._quick)
        self._annotations = AnnotationReader(context)
        self.tender = Tender(context, self.observer, self._publisher, self._annotations, self._quick)
        self._trainer = Trainer(context, self.tender.tend)
        self._control_trial = ControlTrial(context, self.observer, self.tender.tend)
        self._indivisible = threading.BoundedSemaphore(INDIVISIBLE)
        self._unanswered: set[int] = set()  # projects whose trouble is that Label Studio did not answer

    def reconcile(self, project: int) -> Plan:
        """Do all pending steps of one project. Returns the last plan, which has no steps when nothing is pending.

        Raises Busy while another process is working on the project, and GaveWay when other projects wait for a thread.
        Every other failure is recorded as the project's `trouble`, which the status shows, and raised.
        """
        with self.store.lock(project) as lock:
            if not lock:
                raise Busy
            self.context.locks[project] = lock
            self.context.began[project] = time.monotonic()
            try:
                plan = self._until_done(project)
            except (Busy, GaveWay, Stopping):
                raise
            except ProjectGone as error:
                return self._gone(project, str(error))
            except ScanqueueError as error:
                blocked = isinstance(error, StudioRefused | WeightsMissing | BadSetting)
                values = {"phase": "blocked", "reason": str(error)} if blocked else {}
                if isinstance(error, StudioUnavailable):
                    self._unanswered.add(project)
                with suppress(StoreUnavailable, StorageFull):
                    self.store.set_trouble(project, str(error), **values)
                raise
            except Exception as error:
                text = f"Unexpected failure ({type(error).__name__}: {error}); the log has the details."
                with suppress(StoreUnavailable, StorageFull):
                    self.store.set_trouble(project, text)
                raise
            finally:
                del self.context.locks[project], self.context.began[project]
                with suppress(StoreUnavailable, StorageFull):
                    self.store.finish(project)
            return plan

    def _gone(self, project: int, reason: str) -> Plan:
        """Record that the project no longer exists, which is no failure: it may be forgotten, or come back."""
        row = self.store.project(project)
        if row is not None and row["phase"] != DELETED:
            log.warning("project %s: %s", project, reason)
            forget = f"To remove it from this list, run `scanqueue disconnect --project {project} --forget`."
            with suppress(StoreUnavailable, StorageFull):
                self.store.set_trouble(project, "", phase=DELETED, reason=f"{reason} {forget}")
        return Plan(DELETED, reason)

    def _until_done(self, project: int) -> Plan:
        troubles: list[str] = []
        refused: set[type[Step]] = set()
        last: Step | None = None
        live: Live | None = None
        while True:
            self.context.check(project)
            # Counted before observing: later requests may be about labels not yet seen.
            requests = self.context.row(project)["training_requests"]
            seen = self.observer.observe(project, live)
            seen = replace(seen, disconnected=self._connections.objection(project))
            done = stored(self.context, project, seen)
            done = replace(done, training_requests=min(done.training_requests, requests))
            plan = decide(seen, done)
            self.store.set_project(project, phase=plan.phase, reason=plan.reason)
            if plan.phase == DISCONNECTED:
                self._leave(project)
            step = next_step(plan, last, frozenset(refused))
            if step is None or step == last:
                if step is not None:
                    troubles.append(f"{type(step).__name__} had no effect. It is tried again at the next pass.")
                troubles += self._remarks(project, seen, done, plan)
                self.store.set_trouble(project, " ".join(troubles), seen_at=time.time())
                return plan
            last, live = step, unchanged(seen, step) if live is None else None
            log.info("project %s: %s", project, describe(step))
            began = time.monotonic()
            try:
                with self._room(step):
                    self._run(project, seen, done, step)
                self.count("step", type(step).__name__, time.monotonic() - began)
                if project in self._unanswered:  # it answers again; the rest of the look may take hours
                    self._unanswered.remove(project)
                    self.store.set_trouble(project, "")
            except Replan:
                last = live = None
            except Postponed:
                refused.add(type(step))
            except LostEmbeddings as error:
                last = live = None
                log.warning("project %s: %s", project, error)
                self.store.check_embeddings(project, done.embedder)
            except DamagedModel as error:
                last = live = None
                troubles.append(self._made_again(error))
            except StudioRefused as error:
                if not isinstance(step, Publish | Listen | DrawQuickly) or isinstance(error, ProjectGone):
                    raise
                if isinstance(step, Publish) and self.observer.forget_deleted(project, step.tasks):
                    last = live = None
                else:
                    troubles.append(str(error))
                    refused.add(type(step))
            self.store.finish(project)
            self.context.give_way(project)

    def _made_again(self, error: DamagedModel) -> str:
        """Set a damaged model aside, so that it counts as never trained. Raises the error if that is impossible."""
        aside = self.store.set_aside(error.path)
        if aside is None:
            raise error
        log.warning("%s: renamed to %s", error, aside)
        return f"A trained model was damaged. It is trained again if it is needed; the damaged file is kept as {aside}."

    @contextmanager
    def _room(self, step: Step) -> Iterator[None]:
        """Raises Busy if the step cannot be interrupted, and as many such steps are being done as may be."""
        if not isinstance(step, Train | FitMap | CompareWithControl):
            yield
            return
        if not self._indivisible.acquire(blocking=False):
            raise Busy
        try:
            yield
        finally:
            self._indivisible.release()

    def _run(self, project: int, seen: Seen, done: Done, step: Step) -> None:
        context, tend = self.context, self.tender.tend
        if isinstance(step, ReadScans):
            requirements = self.processor.reading_requirements()
            share(context, project, "read", requirements, step.tasks, "reading and embedding scans", tend)
        elif isinstance(step, ReadMasks):
            self._annotations.read(project, seen, step, self.tender.refill if len(step.tasks) > FEW else None)
        elif isinstance(step, FitMap | MapScans):
            map_pool(context, project, done, step, tend)
        elif isinstance(step, Score):
            model = context.model_summary(project, done.active)
            assert model is not None
            requirements = self.processor.scoring_requirements(model["fingerprint"], extra_signal(done.settings))
            share(context, project, "score", requirements, step.tasks, "scoring the pool", tend)
        elif isinstance(step, OpenRound):
            open_round(context, project, seen, done, step)
        elif isinstance(step, ExtendRound):
            extend_round(context, project, seen, done)
        elif isinstance(step, Train):
            with attempt(context, project, done, step):
                self._trainer.train(project, seen, done, step)
        elif isinstance(step, CompareWithControl):
            with attempt(context, project, done, step):
                self._control_trial.compare(project, seen, done, step)
        elif isinstance(step, DrawQuickly):
            self._quick.redraw(project, seen, done, step, self.tender.refill)
        elif isinstance(step, ListTasks):
            self.observer.list_more(project)
        elif isinstance(step, Listen):
            self._connections.require(project)
            row = context.row(project)
            self.studio.set_webhook(project, webhook_url(self.settings, row["backend_url"]), row["secret"])
        else:
            self._publisher.publish(project, seen, done, step)

    def _remarks(self, project: int, seen: Seen, done: Done, plan: Plan) -> list[str]:
        """Remarks for people at the end of a pass. Answers a training request that has nothing to train on."""
        remarks = [one for one in (plan.given_up, *plan.remarks) if one]
        settings = done.settings
        if done.training_requests and not plan.steps and not seen.blocked and not seen.disconnected:
            self.store.clear_training_requests(project, done.training_requests)
            if not plan.given_up:
                remarks.append("A training was requested, but there is nothing new to learn from.")
        if not done.models and _without_strata(seen, settings):
            remarks.append(
                f"No scan has {settings.stratify_by!r} in its data, so the order is random. Import it with the scans, "
                "or set stratify_by to a key that they have."
            )
        if settings.unit == "scan" and seen.counts.scans and not seen.counts.volumes:
            remarks.append(
                'The unit is "scan", but no task states which scan it is a slice of, so single images are chosen. '
                "Add the keys scan and slice to the data of the tasks, as scanqueue import does."
            )
        if remark := self._connections.remark(project):
            remarks.append(remark)
        return remarks

    def _leave(self, project: int) -> None:
        """Nothing is written to a disconnected project; only our webhook is deleted, for which every Submit waits."""
        row = self.context.row(project)
        urls = [f"{url.rstrip('/')}/webhook" for url in addresses(self.settings, row)]
        if removed := self.studio.remove_webhooks(project, urls, row["secret"]):
            log.info("project %s: disconnected; %s webhooks removed", project, removed)


def _without_strata(seen: Seen, settings: ProjectSettings) -> bool:
    """Whether the order is to be stratified by a key that no scan has."""
    return settings.moments[0] == "stratified" and bool(seen.counts.scans) and not seen.counts.strata
