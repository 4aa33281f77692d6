"""The one driver: look at Label Studio, ask `decide` what is missing, do it, look again.

Killed anywhere and run again it ends in the same state: every step is stored whole before the
next begins, steps are named by what they are made from, and what Label Studio was sent is read
back from Label Studio, not from memory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import (
    BadSetting,
    NotSegmentable,
    ProjectGone,
    ScanqueueError,
    StorageFull,
    StoreUnavailable,
    StudioRefused,
    UnreadableMask,
    UnreadableScan,
    WeightsMissing,
)
from backend.facts import (
    VALIDATION_SHARE,
    Label,
    LabelConfig,
    Live,
    Model,
    Round,
    Scan,
    annotators,
    score_of,
    validation_rows,
    version_name,
)
from backend.fingerprints import fingerprint
from backend.formats.pixels import translate
from backend.label_studio.listing import Annotation, ProjectPage, TaskRow
from backend.label_studio.masks import draw_mask, read_mask
from backend.label_studio.studio import Studio
from backend.learning.evaluation import Scores
from backend.learning.learner import Case, Learner
from backend.loop.batch import BatchProcessor
from backend.loop.decide import decide, next_step
from backend.loop.order import STARTED, RankingInputs, order, uncertainties
from backend.loop.project_settings import extra_signal, row_settings
from backend.loop.publication import part_of_round, publication
from backend.loop.selection_units import add, lay_out
from backend.loop.steps import (
    CompareWithControl,
    Done,
    ExtendRound,
    FitMap,
    Listen,
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
)
from backend.loop.task_data import TASK_DATA_VERSION, TaskData, read_task_data, storable
from backend.records.locks import LockHandle
from backend.records.maps import StoredMap, put_map, read_map
from backend.records.rounds import Pick
from backend.records.scans import PROBLEM_RETRY, scan_of
from backend.records.store import Store
from backend.settings import ProjectSettings, Settings
from backend.workers.counters import CountCallback, discard
from backend.workers.shards import SHARD, Shards
from backend.workers.watchdog import Stopping, Watchdog
from sampling import agreement, agreement_sample

log = logging.getLogger("scanqueue.reconcile")

PREDICT_CHUNK = 16
SHARE_POLL = 0.2  # seconds between looks at shards that other workers are at
OVERLAP = timedelta(seconds=10)  # transactions in Label Studio may become visible out of order
QUIET = 60.0  # seconds after which nothing older than what was seen is expected any more
FULL_EVERY = 900.0  # seconds between listings of everything: a cursor is as good as Label Studio's clock
FULL_AGAIN = 30.0
SETTLE = 10.0  # seconds an import that we never saw answered is given to appear
BACKENDS_EVERY = 600.0  # seconds between looks at who else is connected: asking makes Label Studio call them all
TRAINING_ROOM = 512 * 2**20  # bytes that must be free before a training: a checkpoint, masks, records
LOG_EVERY = 15.0  # seconds between progress lines
UNHEARD = 30.0  # seconds without reports of progress after one that could not be written
TEND_EVERY = 10.0  # seconds between looks at the queue during long steps
STRATUM = 200  # characters of what tells scans apart
LISTED_FIELDS = (
    "updated_at",
    "annotated",
    "skipped",
    "image",
    "stratum",
    *(f.name for f in fields(TaskData)),
)  # by Label Studio

Beyond = tuple[int, int]  # annotations and skips that Label Studio counts and the tasks that we know do not have
Known = Mapping[int, tuple[Any, ...]]  # what it said of a task last, see TOLD


class Busy(Exception):
    """Another process works on this project, or another project is trained: come again in a few seconds."""


class Replan(Exception):
    """What the step was planned on has changed under its hands; the next look plans anew."""


class Postponed(Exception):
    """Somebody else trains just now; a training that nobody waits for is left to a later look."""


@dataclass
class Reconciler:
    """What `reconcile` needs. `stopping` is asked between and during steps."""

    studio: Studio
    store: Store
    learner: Learner
    settings: Settings
    stopping: Callable[[], bool] = lambda: False
    watchdog: Watchdog = field(default_factory=Watchdog)
    count: CountCallback = discard
    _holds: dict[int, LockHandle] = field(default_factory=dict)
    _tended: dict[int, float] = field(default_factory=dict)
    _tending: set[int] = field(default_factory=set)
    _cursors: dict[int, tuple[str, float, bool]] = field(default_factory=dict)  # newest, first seen, settled
    _listed: dict[int, tuple[Beyond, float]] = field(default_factory=dict)  # what it left over, when it was
    _logged: float = 0.0
    _unheard: float = 0.0  # until then no progress is reported
    _neighbours: dict[int, tuple[float, list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.processor = BatchProcessor(self.studio, self.store, self.learner, self._alive)
        self.shards = Shards(self.store, f"{socket.gethostname()}:{os.getpid()}")

    def reconcile(self, project: int) -> Plan:
        """Bring one project to where it should be; returns the plan that was left, without steps when done.

        Raises Busy when another process is at it. Everything that goes wrong is written into the
        project's `trouble`, where status shows it; StudioUnavailable and the like are then raised.
        """
        with self.store.lock(project) as mine:
            if not mine:
                raise Busy
            self._holds[project] = mine
            try:
                plan = self._until_done(project)
            except (Busy, Stopping):
                raise
            except ScanqueueError as error:
                blocked = isinstance(error, StudioRefused | WeightsMissing | BadSetting)
                values = {"phase": "blocked", "reason": str(error)} if blocked else {}
                with suppress(StoreUnavailable, StorageFull):
                    self.store.set_trouble(project, str(error), **values)
                raise
            except Exception as error:
                what = f"Unexpected failure ({type(error).__name__}: {error}); the log has the details."
                with suppress(StoreUnavailable, StorageFull):
                    self.store.set_trouble(project, what)
                raise
            finally:
                del self._holds[project]
                with suppress(StoreUnavailable, StorageFull):
                    self.store.finish(project)
            return plan

    def _until_done(self, project: int) -> Plan:
        self.shards.forget_all(project)
        troubles: list[str] = []
        refused: set[type[Step]] = set()
        last: Step | None = None
        while True:
            self._check(project)
            asked = self._row(project)["asked"]
            seen = self.observe(project)
            if gone := self._disconnected(project):
                seen = replace(seen, blocked=gone)
            done = self.done(project, seen)
            done = replace(done, asked=min(done.asked, asked))  # what came later may be about labels not yet seen
            plan = decide(seen, done)
            self.store.set_project(project, phase=plan.phase, reason=plan.reason)
            step = next_step(plan, last, frozenset(refused))
            if step is None or step == last:
                if step is not None:
                    troubles.append(f"{type(step).__name__} had to be done again; giving up until the next look.")
                if done.asked and not plan.steps:
                    self.store.clear_training_requests(project, done.asked)
                    troubles.append("A training was asked for, but there is nothing new to learn from.")
                if not done.models and _all_in_one_stratum(seen, done.settings):
                    troubles.append(
                        f"No scan has {done.settings.stratify_by!r} in its data, so the order is simply random. Import "
                        "it with the scans, or set stratify_by to a key that they have."
                    )
                if done.settings.unit == "scan" and seen.scans and not any(s.volume for s in seen.scans):
                    troubles.append(
                        'The unit is "scan", but no task says which scan it is a slice of, so single images are '
                        "chosen. Give the tasks a key scan and a key slice in their data, as scanqueue import does."
                    )
                if others := self._other_backends(project):
                    troubles.append(others)
                self.store.set_trouble(project, " ".join(troubles), seen_at=time.time())
                return plan
            last = step
            log.info("project %s: %s", project, _describe(step))
            began = time.monotonic()
            try:
                self._run(project, seen, done, step)
                self.count("step", type(step).__name__, time.monotonic() - began)
            except Replan:
                last = None
            except Postponed:
                refused.add(type(step))
            except StudioRefused as error:
                if not isinstance(step, Publish | Listen) or isinstance(error, ProjectGone):
                    raise
                troubles.append(str(error))
                refused.add(type(step))
            self.store.finish(project)

    def _run(self, project: int, seen: Seen, done: Done, step: Step) -> None:
        if isinstance(step, ReadScans):
            requirements = self.processor.requirements_to_read()
            self._shared(project, "read", requirements, step.tasks, "reading and embedding scans")
        elif isinstance(step, ReadMasks):
            self._read_masks(project, seen, step)
        elif isinstance(step, FitMap | MapScans):
            self._map(project, seen, done, step)
        elif isinstance(step, Score):
            model = self._model(project, done.active)
            assert model is not None
            requirements = self.processor.requirements_to_score(model["fingerprint"], extra_signal(done.settings))
            self._shared(project, "score", requirements, step.tasks, "scoring the pool")
        elif isinstance(step, OpenRound):
            self._open_round(project, seen, done, step)
        elif isinstance(step, ExtendRound):
            self._extend_round(project, seen, done, step)
        elif isinstance(step, Train):
            self._train(project, seen, done, step)
        elif isinstance(step, CompareWithControl):
            self._compare_with_control(project, seen, done, step)
        elif isinstance(step, Listen):
            row = self._row(project)
            self.studio.set_webhook(project, webhook_url(self.settings, row["backend_url"]), row["secret"])
        else:
            self._publish(project, seen, done, step)

    def _backends(self, project: int) -> list[str]:
        """Titles of the ML backends of the project, as of the last look at them."""
        at, found = self._neighbours.get(project, (0.0, []))
        if not at or time.monotonic() - at > (BACKENDS_EVERY if found else BACKENDS_EVERY / 10):
            found = [str(b.get("title") or b.get("url")) for b in self.studio.backends(project)]
            self._neighbours[project] = (time.monotonic(), found)
            if found:
                self.store.set_project(project, connected=1)
            if len(found) > 1:
                log.warning("project %s: more than one ML backend is connected: %s", project, ", ".join(found))
        return found

    def _disconnected(self, project: int) -> str:
        """Why the project is none of our business any more; "" while it is.

        Label Studio asks for a set-up before it writes a new connection down, so a project is only
        taken for disconnected after it was seen connected.
        """
        if self._backends(project) or not self._row(project)["connected"]:
            return ""
        return (
            "No ML backend is connected to the project any more, so its queue is left as it is. "
            "Connect scanqueue again in Settings > Model to go on."
        )

    def _other_backends(self, project: int) -> str:
        """A remark when more than one ML backend is connected."""
        found = self._backends(project)
        if len(found) < 2:
            return ""
        return (
            f"{len(found)} ML backends are connected ({', '.join(found)}), and Label Studio asks only the "
            "first. Remove the others in Settings > Model."
        )

    def _report(self, project: int, step: str, done: int, total: int) -> None:
        """Say how far a step is: to status at every call, to the log now and then.

        Records that cannot be written end no step by it: one that has nothing to store yet may outlast that.
        """
        self.watchdog.beat()
        if time.monotonic() < self._unheard:
            return
        try:
            self.store.report(project, step, done, total)
        except (StoreUnavailable, StorageFull) as error:
            log.warning("project %s: %s is not reported: %s", project, step, error)
            self._unheard = time.monotonic() + UNHEARD
            return
        if time.monotonic() - self._logged < LOG_EVERY or not 0 < done < total:
            return
        self._logged = time.monotonic()
        seen = self.store.progress(project)
        if seen and seen["seconds_left"] is not None:
            log.info("project %s: %s, %s of %s, %.0f s left", project, step, done, total, seen["seconds_left"])

    def _alive(self) -> None:
        """Called wherever work gets on. Raises Stopping when the process is asked to end."""
        self.watchdog.beat()
        if self.stopping():
            raise Stopping

    def _check(self, project: int) -> None:
        """`_alive`, and Busy when the project's lock was lost to somebody else."""
        self._alive()
        hold = self._holds.get(project)
        if hold is not None and hold.lost():
            raise Busy

    # -- looking ------------------------------------------------------------------------------

    def observe(self, project: int) -> Seen:
        """Take over what changed in Label Studio and say what it holds now."""
        row = self._row(project)
        page = self.studio.project(project)
        try:
            config = LabelConfig.from_parsed(page.parsed_config, project)
        except NotSegmentable as error:
            self.store.set_project(project, title=page.title)
            return Seen(project, None, (), (), Live(), str(error))
        try:
            settings = row_settings(row)
        except BadSetting as error:
            return Seen(project, None, (), (), Live(), f"project {project}: {error}")
        self._take_tasks(project, row, page, config, settings)
        self.store.set_project(project, title=page.title, config=config.to_json())

        now = time.time()
        rows = self.store.scans(project)
        scans = []
        for s in rows:
            lately = 0 <= now - s["problem_at"] < PROBLEM_RETRY  # not in a clock's future
            again = s["problem"] and not lately  # from the start: the file may be another one by now
            scans.append(replace(scan_of(s), problem="", digest="") if again else scan_of(s))
        fresh = {s["task"]: s["updated_at"] for s in rows if s["annotated"]}
        read = self.store.labels(project)
        labels = tuple(
            Label(r["task"], r["key"], r["problem"], r["annotation"])
            for r in read
            if fresh.get(r["task"]) == r["read_at"] and r["config"] == config.key
        )
        people = annotators((r["annotation"], r["completed_by"]) for r in read)
        return Seen(project, config, tuple(scans), labels, self._live(project, row, page), people=people)

    def _row(self, project: int) -> Any:
        row = self.store.project(project)
        if row is None:
            raise ProjectGone(f"project {project} is not known here; connect it in Label Studio first.")
        return row

    def _take_tasks(
        self, project: int, row: Any, page: ProjectPage, config: LabelConfig, settings: ProjectSettings
    ) -> None:
        before = LabelConfig.from_json(row["config"])
        stratify_by = settings.stratify_by if settings.moments[0] == "stratified" else ""
        same = before is not None and before.image_key == config.image_key and row["stratify_by"] == stratify_by
        same = same and row["taken"] == TASK_DATA_VERSION
        since = row["cursor"] if same else ""  # else all are listed: what is taken from their data is another
        newest, first, quiet = self._cursors.get(project, ("", 0.0, False))
        if since and not (quiet and since == newest):
            since = (_moment(since) - OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        known = {row[0]: tuple(row[1:]) for row in self.store.columns(project, "task", *LISTED_FIELDS)}
        began = time.monotonic()
        usual, listed = self._listed.get(project, ((0, 0), float("-inf")))
        if began - listed > FULL_EVERY:
            since = ""
        rows = self.studio.tasks(project, since)
        if len(set(known) | {r.task for r in rows}) != page.tasks:
            present = self.studio.task_ids(project)
            self.store.keep_tasks(project, present)
            known = {task: row for task, row in known.items() if task in present}
            if not present <= set(known) | {r.task for r in rows}:
                rows, since = self.studio.tasks(project), ""
        changed = _changed(rows, known, config, stratify_by)
        beyond = _beyond(page, known, changed)
        if since and beyond != usual:
            page = self.studio.project(project)  # somebody may have submitted between the one and the other
            beyond = _beyond(page, known, changed)
        if since and beyond != usual and began - listed > FULL_AGAIN:
            # Something happened that the cursor does not show: Label Studio's clock was set back.
            rows, since = self.studio.tasks(project), ""
            changed = _changed(rows, known, config, stratify_by)
            beyond = _beyond(page, known, changed)
        self._listed[project] = (usual, listed) if since else (beyond, began)
        cursor = max((r.updated_at for r in rows), default="", key=lambda text: _moment(text) if text else text)
        cursor = max(cursor, row["cursor"] if since else "")
        if changed or (cursor and cursor != row["cursor"]):
            self.store.put_tasks(project, changed, cursor)
        if row["stratify_by"] != stratify_by or row["taken"] != TASK_DATA_VERSION:
            self.store.set_project(project, stratify_by=stratify_by, taken=TASK_DATA_VERSION)
        # 5,000 scans that were imported at once would otherwise be listed at every look until somebody labels one
        if cursor != newest:
            self._cursors[project] = (cursor, began, False)
        elif began - first > QUIET:
            self._cursors[project] = (cursor, first, True)

    def _live(self, project: int, row: Any, page: ProjectPage) -> Live:
        rounds = self.store.rounds(project, picks=False)
        published: dict[int, int] = {}
        if rounds:
            if row["sending"]:
                # An import whose answer we never saw may still be at work in Label Studio. How long ago it was sent
                # no clock can tell that may have jumped since.
                time.sleep(SETTLE)
                self.store.set_project(project, sending=0.0)
            latest = version_name(rounds[-1]["n"])
            published = self.studio.published(project, latest)
            if page.model_version == latest and rounds[-1]["published_at"] is None:
                self.store.mark_published(project, rounds[-1]["n"])  # here, for we may have died right after showing it
        url = webhook_url(self.settings, row["backend_url"])
        return Live(
            model_version=page.model_version,
            sampling=page.sampling,
            show_predictions=page.show_predictions,
            published=published,
            webhook=not url or self.studio.has_webhook(project, url, row["secret"]),
            view=self.studio.has_view(project),
        )

    def done(self, project: int, seen: Seen) -> Done:
        """What is stored of this project."""
        row = self._row(project)
        settings = ProjectSettings() if seen.blocked else row_settings(row)
        if seen.blocked or not seen.scans:
            return Done(settings, "")
        embedder = self.learner.embedder()
        if row["embedder"] != embedder.name or row["embedder_why"] != embedder.why:
            self.store.set_project(project, embedder=embedder.name, embedder_why=embedder.why)
        mapped, fitted = self._mapped(project, embedder.name, settings.unit)
        trained = self.store.models(project)
        compared = frozenset(m["version"] for m in trained if "arms" in m["details"])
        models = tuple(
            Model(
                m["version"],
                tuple(m["labels"]),
                frozenset(m["trained_on"]),
                m["fingerprint"],
                bool(m["accepted"]),
            )
            for m in trained
            # One whose file was lost is as good as never trained. Those that retention removes are neither the
            # newest nor in use, and of the others nothing is asked here.
            if self.store.has("models", m["fingerprint"])
        )
        active = next((m for m in models if m.version == row["active"]), None)
        rounds = tuple(
            Round(
                r["n"],
                r["key"],
                r["model"],
                tuple(p.task for p in r["picks"]),
                tuple(r["carried"]),
                r["settings"].get("embedder", ""),
            )
            for r in self.store.rounds(project, picks=False)
        )
        due = settings.control_share and models and models[-1].version not in compared
        return Done(
            settings=settings,
            embedder=embedder.name,
            embedded=self.store.embedded(embedder.name),
            mapped=mapped,
            fitted=fitted,
            models=models,
            active=active.version if active else "",
            scored=self._scored(project, embedder.name, active, settings),
            rounds=rounds,
            compared=compared,
            served=self._served(project) if due else {},
            asked=row["asked"],
        )

    def _scored(self, project: int, embedder: str, active: Model | None, settings: ProjectSettings) -> frozenset[str]:
        if active is None:
            return frozenset()
        return frozenset(uncertainties(RankingInputs(self.store, project, embedder, active.fingerprint, settings)))

    def _served(self, project: int) -> dict[int, bool]:
        """Tasks that were chosen by an order, and whether as a control, in the last one that had them.

        The rest of a volume that was begun was chosen when it was.
        """
        every: dict[int, str] = {}
        for r in self.store.rounds(project):
            for p in r["picks"]:
                every[p.task] = every.get(p.task, STARTED) if p.reason == STARTED else p.reason
        return {task: reason == "control" for task, reason in every.items() if reason not in ("wished", STARTED)}

    # -- scans and masks ----------------------------------------------------------------------

    def _shared(self, project: int, kind: str, requirements: str, tasks: Sequence[int], what: str) -> None:
        """Do a bulk work on these tasks together with whatever workers are idle; returns when all is done.

        A shard that another worker could not do is done here, so that its error is met here.
        """
        total = len(tasks)
        self._report(project, what, 0, total)
        if total <= SHARD:
            self.processor.do(kind, project, requirements, tasks)
            self._report(project, what, total, total)
            return
        run = self.shards.cut(project, kind, requirements, tasks)
        try:
            while True:
                self._check(project)
                shard = self.shards.take(run)
                if shard is not None:
                    self.processor.do(kind, project, requirements, shard.tasks)
                    if not self.shards.finish(shard):
                        raise Busy  # somebody else has cut the work anew
                shards, left = self.shards.left(run)
                self._report(project, what, total - left, total)
                if not shards:
                    return
                if kind != "draw":  # drawing is part of publishing already
                    self._tend(project)
                if shard is None:
                    time.sleep(SHARE_POLL)
        finally:
            with suppress(StoreUnavailable, StorageFull):
                self.shards.forget(project, run)

    def _read_masks(self, project: int, seen: Seen, step: ReadMasks) -> None:
        assert seen.config is not None
        rows = {s["task"]: s for s in self.store.scans(project)}
        total = len(step.tasks)
        for number, found in enumerate(self.studio.annotations(project, step.tasks), start=1):
            if isinstance(found, int):
                self.store.drop_label(project, found, rows[found]["updated_at"])
            else:
                self._read_mask(project, seen, rows[found.task], found)
            self._report(project, "reading annotations", number, total)
            self._tend(project)

    def _read_mask(self, project: int, seen: Seen, scan: Any, found: Annotation) -> None:
        config = seen.config
        assert config is not None
        key = f"{found.id}@{found.updated_at}"
        name, problem = "", ""
        remarks: list[str] = []
        try:
            mask, remarks = read_mask(found.result, config, scan["height"], scan["width"])
            content = hashlib.sha256(mask.tobytes()).hexdigest()[:24]
            name = fingerprint(content, mask.shape, config.labels)
            if not self.store.has("labels", name):
                self.store.put_arrays("labels", name, mask=mask)
            self._compare_shown(project, scan, found, mask, config, key)
        except UnreadableMask as error:
            problem = f"annotation {found.id}: {error}"
            log.warning("project %s, task %s: %s", project, found.task, problem)
        self.store.put_label(
            project,
            {
                "task": found.task,
                "annotation": found.id,
                "key": key,
                "mask": name,
                "read_at": scan["updated_at"],
                "config": config.key,
                "shown_version": found.shown_version,
                "lead_time": found.lead_time,
                "completed_by": found.completed_by,
                "problem": problem,
                "remark": " ".join(f"annotation {found.id}: {r}" for r in remarks),
            },
        )

    def _compare_shown(
        self,
        project: int,
        scan: Any,
        found: Annotation,
        mask: NDArray[np.uint8],
        config: LabelConfig,
        key: str,
    ) -> None:
        """Keep how far the mask that was shown is from the one that was submitted."""
        rounds = {version_name(r["n"]): r["model"] for r in self.store.rounds(project, picks=False)}
        model = self._model(project, rounds.get(found.shown_version, ""))
        if model is None:
            return
        # From the store, or drawn again: /predict shows masks of scans that were never published.
        here = scan_of(scan)
        if not self.store.has("masks", fingerprint(model["fingerprint"], here.digest)) and not self.store.has(
            "models", model["fingerprint"]
        ):
            return
        self.processor.draw(project, model["fingerprint"], [here])
        shown = self.processor.mask(model["fingerprint"], here)
        if shown is None or shown.shape != mask.shape:
            return
        shown = translate(shown, model["labels"], config.labels)
        scores = self.learner.compare(shown, mask, len(config.labels) + 1, here.spacing)
        row = {"task": found.task, "version": found.shown_version, "label": key}
        numbers = {"dice": scores.dice, "hd": scores.hd, "hd95": scores.hd95, "unit": scores.unit}
        self.store.put_shown(project, row | numbers)

    def _model(self, project: int, version: str) -> dict[str, Any] | None:
        return self.store.model(project, version) if version else None

    # -- map and order ------------------------------------------------------------------------

    def _map_of(self, project: int, embedder: str, unit: str) -> StoredMap | None:
        """The map, if there is one that was fitted on what is chosen now: on images, or on volumes."""
        found = read_map(self.store, project, embedder)
        return found if found is not None and found.unit == unit else None

    def _mapped(self, project: int, embedder: str, unit: str) -> tuple[frozenset[str], int]:
        found = self._map_of(project, embedder, unit)
        return (frozenset(found.digests), len(found.state["xy"])) if found else (frozenset(), 0)

    def _map(self, project: int, seen: Seen, done: Done, step: FitMap | MapScans) -> None:
        self._report(project, "laying out the map", 0, 1)
        settings = done.settings
        found = None if isinstance(step, FitMap) else self._map_of(project, done.embedder, settings.unit)
        scans = [s for s in seen.scans if s.digest in done.embedded and not s.problem]
        if found is None:
            found = lay_out(self.store, done.embedder, scans, settings.unit, settings.seed)
        else:
            found = add(found, self.store, done.embedder, scans)
        put_map(self.store, project, done.embedder, found)

    def _open_round(self, project: int, seen: Seen, done: Done, step: OpenRound) -> None:
        self._report(project, "ranking", 0, 1)
        scans = [s for s in seen.scans if s.digest in done.mapped and not s.problem]
        picks = self._order(project, done, scans, step.model)
        labels = sum(1 for s in scans if s.annotated)
        self.store.put_round(
            project,
            n=step.n,
            key=step.key,
            model=step.model,
            picks=picks,
            carried=step.carried,
            size=len(picks),
            labels=labels,
            settings=asdict(done.settings) | {"embedder": done.embedder},
        )

    def _order(
        self, project: int, done: Done, scans: Sequence[Scan], model: str, first: Sequence[int] = ()
    ) -> list[Pick]:
        """`order.order` with the model of that version, "" for none."""
        found = next((m.fingerprint for m in done.models if m.version == model), "")
        return order(RankingInputs(self.store, project, done.embedder, found, done.settings), scans, first)

    def _extend_round(self, project: int, seen: Seen, done: Done, step: ExtendRound) -> None:
        latest = self.store.rounds(project, picks=False)[-1]
        # What annotators already see keeps its place, and what was deleted leaves its place empty: a place is a
        # score in Label Studio. The rest is ordered anew with the late scans among it.
        kept = latest["picks"][: part_of_round(done.rounds[-1], seen, done.settings)[0]]
        scans = [s for s in seen.scans if s.digest in done.mapped and not s.problem]
        fresh = self._order(project, done, scans, latest["model"], [p.task for p in kept])
        self.store.extend_round(project, latest["n"], [*kept, *fresh])

    # -- learning -----------------------------------------------------------------------------

    def _cases(self, project: int, seen: Seen, tasks: Sequence[int]) -> list[tuple[Scan, str, Case]]:
        """(scan, name of its mask, case) of labelled tasks, ordered by content so that a restart trains alike."""
        by_task = {s.task: s for s in seen.scans}
        masks = {r["task"]: r["mask"] for r in self.store.labels(project)}
        cases = []
        for task in tasks:
            scan = by_task[task]
            if task not in masks:  # somebody has it read again
                raise Replan
            try:
                mask = self.store.arrays("labels", masks[task])["mask"]
                boxed = self.processor.pixels(scan, self.learner.image_size)
            except FileNotFoundError:
                self.store.forget_label(project, task)  # its artefact was lost: it is read again
                raise Replan from None
            except UnreadableScan as error:
                self.store.set_scans(project, [{"task": task, "problem": str(error)}])
                raise Replan from None
            cases.append((scan, masks[task], Case(boxed, mask)))
        return sorted(cases, key=lambda c: (c[0].digest, c[1]))

    def _train(self, project: int, seen: Seen, done: Done, step: Train) -> None:
        assert seen.config is not None
        row = self._row(project)
        labels = seen.config.labels
        cases = self._cases(project, seen, step.tasks)
        groups = [scan.group for scan, _, _ in cases]
        held_out = validation_rows([scan.digest for scan, _, _ in cases], groups)
        learn = [c for i, (_, _, c) in enumerate(cases) if i not in held_out]
        watched = [(scan, c) for i, (scan, _, c) in enumerate(cases) if i in held_out]
        watch = [c for _, c in watched]
        made_from = [[scan.digest, mask] for scan, mask, _ in cases]
        recipe = self.learner.describe_training(done.settings.seed)
        parted = [sorted(held_out)] if any(groups) else []  # else the digests say it
        name = fingerprint(made_from, labels, recipe, VALIDATION_SHARE, *parted)
        details: dict[str, Any] = {"labels": len(cases), "validation": len(watch)}

        def on_step(at: int, total: int) -> None:
            self._check(project)
            self._report(project, f"training {step.version} on {len(cases)} labels", at, total)
            self._tend(project)

        if not self.store.has("models", name):
            self.store.check_room(TRAINING_ROOM)
            with self.store.training_slot() as mine:
                if not mine:
                    raise Busy
                log.info("project %s: training %s on %s scans", project, step.version, len(cases))
                save, more = self.learner.train(
                    learn, watch, labels, seed=done.settings.seed, on_step=_every(0.5, on_step)
                )
                details |= more
                self.store.put_folder("models", name, save)
        scores = self._scores(project, name, labels, labels, watched)
        new = self.learner.summarise(scores)
        details["held_out"] = [
            {
                "task": scan.task,
                "dice": round(one.dice, 6),
                "hd95": round(one.hd95, 4),
                "unit": one.unit,
                "classes": {labels[number - 1]: round(dice, 6) for number, dice in one.per_class.items()},
            }
            for (scan, _), one in zip(watched, scores, strict=True)
        ]
        champion = self._model(project, done.active)
        accepted, remark = True, ""
        if not watch and len(cases) >= 5:
            remark = (
                f"All {len(cases)} labelled scans are of one patient or volume, so none could be held out, and nobody "
                "knows how good it is. Label scans of another one."
            )
        if champion is not None and champion["labels"] == list(labels) and watch:
            learnt = _learnt(champion, seen)
            fair = [i for i, (scan, _) in enumerate(watched) if not learnt & {scan.task, scan.group}]
            if fair:
                ours = self.learner.summarise([scores[i] for i in fair])
                same = [watched[i] for i in fair]
                old = self.learner.summarise(
                    self._scores(project, champion["fingerprint"], champion["labels"], labels, same)
                )
                details["champion"] = {"version": champion["version"], **old}
                accepted = ours["dice"] >= old["dice"] - done.settings.tolerance
                if not accepted:
                    remark = (
                        f"On the same {len(same)} validation scans its Dice is {ours['dice']:.3f} against "
                        f"{old['dice']:.3f} of {champion['version']}, which stays active."
                    )
                    log.warning("project %s: %s was not taken. %s", project, step.version, remark)
            else:
                remark = (
                    f"It could not be compared with {champion['version']}, which had learnt from every scan, or "
                    "patient, that is held out now."
                )
        if champion is not None and champion["labels"] == list(labels):
            details |= self._agreement(project, seen, champion, name, len(labels) + 1)
        if not self.store.has("models", name):  # another project's checkpoint, which that one needs no more
            raise Replan
        known = {label.task: label.key for label in seen.labels}
        self.store.put_model(
            project,
            {
                "version": step.version,
                "fingerprint": name,
                "labels": list(labels),
                "trained_on": sorted(known[t] for t in step.tasks),
                "accepted": int(accepted),
                "remark": remark,
                "validation": new,
                "details": details,
            },
            active=step.version if accepted else "",
            instead_of=row["active"],
            training_requests=done.asked,
        )

    def _compare_with_control(self, project: int, seen: Seen, done: Done, step: CompareWithControl) -> None:
        """Train on ours and on the controls, and write down how good either is. Both models are thrown away then.

        What people wait for goes before: the training is given up for it, and begun again when it is done.
        """
        assert seen.config is not None
        labels = seen.config.labels
        cases = self._cases(project, seen, [*step.ours, *step.control, *step.validation])
        held_out = set(step.validation)
        watched = [(scan, c) for scan, _, c in cases if scan.task in held_out]
        recipe = self.learner.describe_training(done.settings.seed)
        looked = [time.monotonic()]
        found: dict[str, Any] = {"labels": len(step.ours)}
        names = []
        for arm, tasks in (("ours", set(step.ours)), ("control", set(step.control))):
            learn = [c for scan, _, c in cases if scan.task in tasks]
            made_from = [[s.digest, mask, s.task in held_out] for s, mask, _ in cases if s.task in tasks | held_out]
            name = fingerprint("arm", made_from, labels, recipe)
            what = f"comparing our order with chance: training on {len(learn)} labels ({arm})"

            def on_step(at: int, total: int, what: str = what) -> None:
                self._check(project)
                self._report(project, what, at, total)
                self._tend(project)
                if time.monotonic() - looked[0] >= TEND_EVERY:
                    self._give_way(project)
                    looked[0] = time.monotonic()

            if not self.store.has("arms", name):
                self.store.check_room(TRAINING_ROOM)
                with self.store.training_slot() as mine:
                    if not mine:
                        raise Postponed
                    log.info("project %s: %s", project, what)
                    validation = [c for _, c in watched]
                    seed, every = done.settings.seed, _every(0.5, on_step)
                    save, _ = self.learner.train(learn, validation, labels, seed=seed, on_step=every)
                    self.store.put_folder("arms", name, save)
            found[arm] = self.learner.summarise(self._scores(project, name, labels, labels, watched, kind="arms"))
            names.append(name)
        self.store.add_details(project, step.version, {"arms": found})
        for name in names:  # killed before: retention removes them
            self.learner.forget(self.store.path("arms", name))
            self.store.remove_folder("arms", name)

    def _give_way(self, project: int) -> None:
        """Raises Again when people wait for something else than the comparison that is under way."""
        seen = self.observe(project)
        done = self.done(project, seen)
        for step in decide(seen, done).steps:
            many = isinstance(step, ReadMasks) and len(step.tasks) >= done.settings.round_size
            if many or isinstance(step, Train | OpenRound):
                raise Replan

    def _agreement(
        self, project: int, seen: Seen, champion: Mapping[str, Any], name: str, classes: int
    ) -> dict[str, Any]:
        """How much a new model draws what the active one does, on unlabelled scans: {"agreement": ...} or nothing."""
        open_ = {s.digest: s for s in seen.scans if s.digest and not s.annotated and not s.problem}
        maps: list[list[NDArray[np.uint8]]] = []
        for model in (champion["fingerprint"], name):
            folder = self.store.path("models", model)
            size = self.learner.image_size_of(folder)
            sample, drawn = agreement_sample(list(open_)), []
            for start in range(0, len(sample), PREDICT_CHUNK):
                self._check(project)
                try:
                    scans = [
                        self.processor.pixels(open_[digest], size) for digest in sample[start : start + PREDICT_CHUNK]
                    ]
                except UnreadableScan:
                    return {}  # it is a problem of that scan as soon as somebody needs it
                drawn += [p.argmax(axis=0).astype(np.uint8) for p in self.learner.probabilities(folder, scans)]
            maps.append(drawn)
        pairs = list(zip(*maps, strict=True))
        if not pairs or any(one.shape != other.shape for one, other in pairs):
            return {}
        same = {"dice": round(agreement(pairs, classes), 6), "n": len(pairs), "with": champion["version"]}
        return {"agreement": same}

    def _scores(
        self,
        project: int,
        model: str,
        has: Sequence[str],
        wanted: Sequence[str],
        cases: Sequence[tuple[Scan, Case]],
        kind: str = "models",
    ) -> list[Scores]:
        """A model on labelled scans, one by one, each fitted into that model's own working square.

        The masks of a model that is kept are kept too: people compare models by them.
        """
        folder = self.store.path(kind, model)
        size = self.learner.image_size_of(folder)
        scores: list[Scores] = []
        for start in range(0, len(cases), PREDICT_CHUNK):
            chunk = cases[start : start + PREDICT_CHUNK]
            same = size == self.learner.image_size
            found = self.learner.masks(folder, [c.scan if same else self.processor.pixels(s, size) for s, c in chunk])
            if kind == "models":
                for (scan, _), mask in zip(chunk, found, strict=True):
                    if not self.store.has("masks", fingerprint(model, scan.digest)):
                        self.store.put_arrays("masks", fingerprint(model, scan.digest), mask=mask)
            scores += [
                self.learner.compare(translate(m, has, wanted), c.mask, len(wanted) + 1, s.spacing)
                for m, (s, c) in zip(found, chunk, strict=True)
            ]
        return scores

    # -- publishing ---------------------------------------------------------------------------

    def _tend(self, project: int) -> None:
        """During a long step: keep the queue filled. Trouble is left to the next full look."""
        if project in self._tending or time.monotonic() - self._tended.get(project, 0.0) < TEND_EVERY:
            return
        self._check(project)
        self._tending.add(project)
        try:
            if self.store.rounds(project, picks=False):
                seen = self.observe(project)
                done = self.done(project, seen)
                if not seen.blocked and done.rounds:
                    step = publication(done.rounds[-1], seen, done.settings)
                    if step is not None and step.tasks:
                        log.info("project %s: %s", project, _describe(step))
                        self._publish(project, seen, done, step)
        except ProjectGone:
            raise
        except ScanqueueError as error:
            log.warning("project %s: while tending the queue: %s", project, error)
        finally:
            self._tending.discard(project)
            self._tended[project] = time.monotonic()

    def _publish(self, project: int, seen: Seen, done: Done, step: Publish) -> None:
        assert seen.config is not None
        latest = self.store.rounds(project, picks=False)[-1]
        version = version_name(latest["n"])
        refused: StudioRefused | None = None
        if step.doubled:
            self.studio.remove_duplicate_predictions(project, version)
        if step.tasks:
            rows = self._predictions(project, seen, latest, version, step.tasks)
            self.store.set_project(project, sending=time.time())
            try:
                self.studio.import_predictions(project, rows)
            except StudioRefused as error:
                refused = error
            self.store.set_project(project, sending=0.0)
        if step.settings and (step.tasks or seen.live.published):
            try:
                self.studio.show_round(project, version)
            except StudioRefused as error:  # nothing of the round may be there: then the import says why
                raise (refused or error) from error
            if not seen.live.view:
                self.studio.add_view(project)
        if refused is not None:
            raise refused

    def _predictions(
        self, project: int, seen: Seen, latest: dict[str, Any], version: str, tasks: Sequence[int]
    ) -> list[dict[str, Any]]:
        assert seen.config is not None
        places = {p.task: score_of(i, latest["size"]) for i, p in enumerate(latest["picks"], start=1)}
        model = self._model(project, latest["model"])
        if model is not None and not self.store.has("models", model["fingerprint"]):
            model = None  # lost; the next round has another
        by_task = {s.task: s for s in seen.scans}
        results: dict[int, list[dict[str, Any]]] = {}
        if model is not None:
            self._shared(project, "draw", model["fingerprint"], tasks, "drawing masks")
            for task in tasks:
                mask = self.processor.mask(model["fingerprint"], by_task[task])
                if mask is not None:
                    results[task] = draw_mask(mask, model["labels"], seen.config, version)
        return [
            {"task": t, "score": places[t], "model_version": version, "result": results.get(t, [])}
            for t in tasks
            if t in places and (model is None or t in results)
        ]


def _beyond(page: ProjectPage, known: Known, changed: Sequence[Mapping[str, Any]]) -> Beyond:
    """Stays the same for as long as no annotation escapes us, whatever a clock says."""
    counts = {task: (annotated, skipped) for task, (_, annotated, skipped, *_) in known.items()}
    counts |= {row["task"]: (row["annotated"], row["skipped"]) for row in changed}
    return page.annotations - sum(a for a, _ in counts.values()), page.skips - sum(s for _, s in counts.values())


def _changed(rows: Sequence[TaskRow], known: Known, config: LabelConfig, stratify_by: str = "") -> list[dict[str, Any]]:
    """What of a listing differs from what is recorded, as `Store.put_tasks` wants it."""
    changed = []
    for r in rows:
        image = r.data.get(config.image_key)
        image = storable(image) if isinstance(image, str) else ""
        value = r.data.get(stratify_by) if stratify_by else None
        stratum = "" if value is None else storable(str(value), STRATUM)
        counts = {"updated_at": r.updated_at, "annotated": r.annotated, "skipped": r.skipped}
        told = counts | {"image": image, "stratum": stratum} | asdict(read_task_data(r.data))
        if known.get(r.task) != tuple(told[name] for name in LISTED_FIELDS):
            changed.append({"task": r.task, **told})
    return changed


def _learnt(model: Mapping[str, Any], seen: Seen) -> set[int | str]:
    """Tasks that a model has learnt from, and the patients and volumes they are of."""
    held_out = {one["task"] for one in model["details"].get("held_out", [])}
    annotations = {key.partition("@")[0] for key in model["trained_on"]}
    tasks = {label.task for label in seen.labels if str(label.annotation) in annotations} - held_out
    if not held_out:  # of an older version, which did not write them down
        tasks = set() if model["details"].get("validation") else tasks
    return {*tasks, *(s.group for s in seen.scans if s.task in tasks and s.group)}


def _all_in_one_stratum(seen: Seen, settings: ProjectSettings) -> bool:
    """Whether scans are to be told apart by something that none of them has."""
    return settings.moments[0] == "stratified" and bool(seen.scans) and not any(s.stratum for s in seen.scans)


def webhook_url(settings: Settings, learnt: str) -> str:
    """Where Label Studio reaches our webhook: PUBLIC_URL, else the address it used to connect."""
    base = settings.public_url or learnt
    return f"{base.rstrip('/')}/webhook" if base else ""


def _every(seconds: float, call: Callable[[int, int], None]) -> Callable[[int, int], None]:
    last = [0.0]

    def limited(at: int, total: int) -> None:
        if time.monotonic() - last[0] >= seconds or at == total:
            last[0] = time.monotonic()
            call(at, total)

    return limited


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _describe(step: Step) -> str:
    tasks = getattr(step, "tasks", None)
    what = type(step).__name__
    return f"{what} ({len(tasks)} tasks)" if tasks else what
