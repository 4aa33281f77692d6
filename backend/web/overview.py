"""All data about a project that people see, for the page and for the JSON API: one method per question."""

from __future__ import annotations

import gzip
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from backend.errors import BadSetting, NotKnown, Overloaded, ScanqueueError, StudioUnavailable
from backend.facts import Scan, version_name
from backend.label_studio.studio import Studio
from backend.loop import audit
from backend.loop.order import RankingInputs, order
from backend.loop.project_settings import project_settings, row_settings
from backend.records.maps import StoredMap, read_map
from backend.records.store import Store
from backend.settings import UNITS
from backend.web import status
from backend.web.learning_curve import curve
from backend.web.legend import label_names, legend
from backend.web.map_view import atlas
from backend.web.pictures import QUICK, Pictures
from backend.web.plots import curve_plot, map_plot
from backend.web.status import describe, explained, served
from backend.web.texts import text
from sampling import AGGREGATIONS, COLD_START, WITH_MODEL

log = logging.getLogger("scanqueue.overview")

HEAD = 30  # places of an order in a preview
LARGE = 20_000  # number of scans above which a preview computes no first order, which takes half a minute
RECENT = 20  # number of labels shown as recent
FRESH = 60.0  # seconds for which user names are cached
SLOW, PICTURES = 2, 6  # slow answers (plots, previews, ...) and pictures computed at the same time
PATIENCE = 5.0  # seconds that further requests wait for their turn
SILENT = 60.0  # seconds without a heartbeat after which a worker is no longer listed


class Overview:
    """Read-only.

    examine  runs the doctor's checks: of the service, and of a project if one is given
    notice   returns what is wrong with Label Studio now; "" normally
    """

    def __init__(
        self,
        store: Store,
        studio: Studio,
        pictures: Pictures,
        examine: Callable[[int | None], list[dict[str, str]]],
        notice: Callable[[], str] = str,
    ) -> None:
        self._store, self._studio, self._pictures, self._examine = store, studio, pictures, examine
        self.notice = notice
        self._names: tuple[float, dict[int, str]] = (float("-inf"), {})
        self._slow = threading.BoundedSemaphore(SLOW)
        self._drawing = threading.BoundedSemaphore(PICTURES)
        self._packing = threading.Lock()
        self._atlases: dict[int, tuple[Any, bytes]] = {}  # per project: the stamp of the records, and the packed map

    @contextmanager
    def _one_of(self, few: threading.BoundedSemaphore) -> Iterator[None]:
        """Limits parallel work, so that the page does not slow down Label Studio. Raises Overloaded after a timeout."""
        if not few.acquire(timeout=PATIENCE):
            raise Overloaded(text("note.busy"))
        try:
            yield
        finally:
            few.release()

    def projects(self) -> list[dict[str, Any]]:
        return [one for p in self._store.projects() if (one := describe(self._store, p)) is not None]

    def status(self, project: int) -> dict[str, Any] | None:
        """`status.describe`; None when the project is not known here."""
        return describe(self._store, project)

    def brief(self, project: int) -> dict[str, Any] | None:
        """The head of every view, fast for any pool: {project, title, phase, studio_url, model, scans, ...}."""
        row = self._store.project(project)
        if row is None:
            return None
        named = {"project": project, "title": row["title"], "phase": row["phase"], "reason": row["reason"]}
        return named | {"studio_url": row["studio_url"], "model": row["active"] or None} | self._store.counts(project)

    def atlas(self, project: int) -> dict[str, Any]:
        return atlas(self._store, project)

    def packed_atlas(self, project: int) -> bytes:
        """`atlas` as gzip-compressed JSON, cached until the records change."""
        with self._packing:  # once, not by every waiting request
            stamp = self._store.stamp(project)
            kept = self._atlases.get(project)
            if kept is None or kept[0] != stamp:
                kept = (stamp, _packed(self.atlas(project)))
                self._atlases[project] = kept
            return kept[1]

    def curve(self, project: int) -> dict[str, Any]:
        with self._one_of(self._slow):
            return curve(self._store, project)

    def queue(self, project: int) -> dict[str, Any]:
        """{queue, model}: the scans in the queue, and the version that draws their masks: QUICK, or None for none."""
        latest = self._store.latest_round(project, served=True)
        model = latest["model"] or None if latest else None
        if latest and model is None:
            quick = self._store.quick_masks(project, version_name(latest["n"]))
            model = QUICK if any(row["drawn"] for task, row in quick.items() if task) else None
        return {"queue": status.queue(self._store, project), "model": model}

    def rounds(self, project: int, newest: int = 0) -> dict[str, Any]:
        """{rounds, models, of}: the newest rounds and models (0: all) and the active one; `of` counts them all."""
        found = status.round_list(self._store, project, newest), status.model_list(self._store, project, newest)
        of = self._store.count_rounds(project), len(self._store.model_versions(project))
        names = ("rounds", "models")
        return {**dict(zip(names, found, strict=True)), "of": dict(zip(names, of, strict=True))}

    def changes(self, project: int) -> dict[str, Any]:
        return {"changes": audit.listed(self._store, project)}

    def workers(self, project: int) -> dict[str, Any]:
        """Workers with a recent heartbeat; any worker may work for any project."""
        return {"workers": [w for w in self._store.workers() if w["seconds"] < SILENT]}

    def settings(self, project: int) -> dict[str, Any]:
        """The settings in use, from Label Studio and from the page, the defaults, and the possible choices.

        problem  why the given settings are invalid; in this case the defaults are shown
        """
        row = self._store.project(project)
        params = row["extra_params"] if row else ""
        problem, given = "", {}
        try:
            found = row_settings(dict(row)) if row else project_settings("")
            given = json.loads(params or "{}")
        except BadSetting as error:
            found, problem = project_settings(""), str(error)
        return {
            "settings": asdict(found),
            "given": given,
            "changed": json.loads((row["overrides"] if row else "") or "{}"),
            "default": asdict(project_settings("")),
            "strategies": ["default", *dict.fromkeys([*COLD_START, *WITH_MODEL])],
            "uncertainties": list(AGGREGATIONS),
            "units": list(UNITS),
            "problem": problem,
        }

    def preview(self, project: int, given: Mapping[str, str]) -> dict[str, Any]:
        """The first places of the order now and with other settings: {now, then, note}. Nothing is saved.

        Raises BadSetting for invalid settings.
        """
        row = self._store.project(project)
        if row is None:
            raise NotKnown(text("error.unknown_project", project=project))
        overrides = json.loads(row["overrides"] or "{}") | {name: _typed(value) for name, value in given.items()}
        wanted = project_settings(row["extra_params"], overrides)
        now = [explained(p, place, row_settings(dict(row)).alpha) for p, place in served(self._store, project)]
        found = read_map(self._store, project, row["embedder"])
        scans = self._scans(project, found)
        latest = self._store.latest_round(project)
        model = self._store.model_summary(project, latest["model"]) if latest and latest["model"] else None
        if model is None and len(scans) > LARGE:
            return {"now": now[:HEAD], "then": [], "note": text("note.too_many")}
        inputs = RankingInputs(self._store, project, row["embedder"], model["fingerprint"] if model else "", wanted)
        with self._one_of(self._slow):
            picks = order(inputs, scans, ranked=max(HEAD, wanted.depth)) if scans else []
        waiting = any(not s.annotated for s in scans)
        notes = [text("note.unknown_scores")] if waiting and not picks else []
        if "alpha" in given and (model is None or wanted.moments[1] != "paper"):
            notes.append(text("note.alpha"))
        if found and found.unit != wanted.unit and any(s.volume for s in scans):
            notes.append(text("note.unit"))
        then = [explained(p, place, wanted.alpha) for place, p in enumerate(picks[:HEAD], start=1)]
        return {"now": now[:HEAD], "then": then, "note": " ".join(notes)}

    def _scans(self, project: int, found: StoredMap | None) -> list[Scan]:
        """The scans on the map without a problem."""
        there = set(found.digests) if found else set()
        names = ("task", "image", "digest", "annotated", "skipped", "problem", "stratum", "priority")
        rows = self._store.columns(project, *names, "volume", "slice", "patient", "blank")
        scans = (replace(Scan(*row), blank=bool(blank)) for *row, blank in rows)
        return [
            replace(s, annotated=bool(s.annotated), skipped=bool(s.skipped))
            for s in scans
            if s.digest in there and not s.problem
        ]

    def activity(self, project: int) -> dict[str, Any]:
        """Recent labels with their annotators, and open drafts; `note` explains what Label Studio does not report."""
        rows = sorted(self._store.labels(project), key=lambda r: r["read_at"], reverse=True)[:RECENT]
        note, drafts = text("note.activity"), []
        try:
            if notice := self.notice():  # asking again would take as long
                raise StudioUnavailable(notice)
            drafts = [{"task": task, "by": None} for task in self._studio.tasks_with_drafts(project)]
            if time.monotonic() - self._names[0] > FRESH:
                self._names = (time.monotonic(), self._studio.user_names())
        except ScanqueueError as error:
            note = str(error)
        names = self._names[1]
        recent = [
            {
                "task": r["task"],
                "at": r["read_at"],
                "by": None
                if r["completed_by"] is None
                else names.get(r["completed_by"], text("note.user", number=r["completed_by"])),
                "seconds": r["lead_time"],
            }
            for r in rows
        ]
        return {"lately": recent, "now": drafts, "note": note}

    def doctor(self, project: int | None) -> dict[str, Any]:
        with self._one_of(self._slow):
            return {"checks": self._examine(project)}

    # -- pictures -------------------------------------------------------------------------------

    def scan_picture(self, project: int, task: int, side: int, model: str) -> bytes:
        with self._one_of(self._drawing):
            return self._pictures.scan(project, task, side=side, model=model)

    def legend(self, project: int, *versions: str) -> dict[str, str]:
        return legend(self._store, project, label_names(self._store, project, *versions))

    def held_out(self, project: int, first: str, second: str) -> list[int]:
        return self._pictures.held_out(project, first, second)

    def compare(self, project: int, first: str, second: str) -> list[Any]:
        with self._one_of(self._slow):
            return self._pictures.compare(project, first, second)

    def difference(self, project: int, task: int, first: str, second: str, part: str) -> bytes:
        with self._one_of(self._drawing):
            return self._pictures.difference(project, task, first, second, part)

    def plot(self, project: int, what: str, kind: str) -> bytes:
        """`what`: "map" or "curve"; `kind`: "svg" or "png"."""
        with self._one_of(self._slow):
            if what == "map":
                return map_plot(self.atlas(project), kind=kind)
            return curve_plot(curve(self._store, project), kind=kind)


def _packed(found: dict[str, Any]) -> bytes:
    """gzip-compressed JSON, with the text of only one value in memory."""
    target = io.BytesIO()
    with gzip.GzipFile(
        fileobj=target, mode="wb", compresslevel=4, mtime=0
    ) as file:  # 4 % larger than 6, 4 times as fast
        for place, name in enumerate(list(found)):
            text = json.dumps({name: found.pop(name)}, separators=(",", ":"))
            file.write(f"{',' if place else '{'}{text[1:-1]}".encode())
        file.write(b"}")
    return target.getvalue()


def _typed(given: str) -> Any:
    """The JSON value of a query parameter, else its text."""
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return given
