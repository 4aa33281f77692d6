"""`GET /metrics`: the state of every project, for Prometheus.

All values come from the records and the job queue at the time of the request, so any number of servers and workers
agree. The documentation lists the names.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from backend import __version__
from backend.errors import StorageFull, StoreUnavailable
from backend.records.store import Store
from backend.records.tables import progress_table
from backend.web import status

log = logging.getLogger("scanqueue.metrics")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STEPS = (
    "training",
    "comparing",
    "ranking",
    "laying out the map",
    "reading annotations",
    "listing tasks",
)  # all other steps read or embed scans
OTHER = "scans"

Gauge = tuple[str, str, Callable[[dict[str, Any]], float | None]]


def _quality(key: str, of: str) -> tuple[Gauge, ...]:
    """The gauges of one summary of `backend.learning.averages`."""
    parts = (
        ("dice", "dice", "Mean over labels of the Dice on scans with the label"),
        ("foreground_scans", "n", "Scans with any label"),
        ("miss_ratio", "miss_rate", "Mean over labels of the share of scans with the label where it is not drawn"),
        ("empty_scans", "n_empty", "Scans without any label"),
        (
            "false_alarm_ratio",
            "false_alarm_rate",
            "Mean over labels of the share of scans without it where it is drawn",
        ),
    )
    return tuple((f"{key}_{name}", f"{text}: {of}.", lambda s, k=kept: s[key][k]) for name, kept, text in parts)


# of each label: name, key in `per_label`, description
LABEL = (
    ("dice", "dice", "Dice of the label on scans with it"),
    ("scans", "n", "Scans with the label"),
    ("sensitivity_ratio", "sensitivity", "Share of the scans with the label where it is drawn"),
    ("scans_without", "n_without", "Scans without the label"),
    ("false_alarm_ratio", "false_alarm_rate", "Share of the scans without the label where it is drawn"),
    (
        "false_alarm_area_ratio",
        "false_alarm_area",
        "Mean share of the picture that the label covers on scans without it",
    ),
)
SUMMARIES = {
    "validation": "the active model, on the held-out scans",
    "shown": "the masks shown in the latest round, compared with the submitted masks",
}

# name, description, and value from `status.describe`; None is left out
PROJECT: tuple[Gauge, ...] = (
    ("scans", "Tasks of the project.", lambda s: s["scans"]),
    ("scans_embedded", "Tasks whose image was read and embedded.", lambda s: s["embedded"]),
    ("labels", "Tasks that are labelled.", lambda s: s["labelled"]),
    ("round", "Number of the latest round; absent before the first.", lambda s: s["round"]),
    ("queue_left", "Tasks in the queue that are not labelled yet.", lambda s: len(s["queue"])),
    ("problems", "Scans and annotations that need attention.", lambda s: len(s["problems"])),
    ("trouble", "1 when the last check of the project failed.", lambda s: bool(s["trouble"])),
    *(gauge for key, of in SUMMARIES.items() for gauge in _quality(key, of)),
)


def render(store: Store, waiting: Callable[[], int] | None = None) -> bytes:
    """All metrics in Prometheus' text format. Never raises: unavailable values are left out.

    waiting  returns the number of jobs that wait for a worker; None omits this metric
    """
    registry = CollectorRegistry()
    registry.register(_Records(store, waiting))
    return generate_latest(registry)


class _Records(Collector):
    def __init__(self, store: Store, waiting: Callable[[], int] | None) -> None:
        self._store = store
        self._waiting = waiting

    def describe(self) -> list[Metric]:
        return []  # otherwise, registering would query the database once more

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("scanqueue", "Version of the server.", {"version": __version__})
        found: list[Metric] = []
        try:
            found = [*_projects(self._store), *_measures(self._store)]
        except (StoreUnavailable, StorageFull) as error:
            log.warning("metrics: %s", error)
        except Exception:
            log.exception("metrics: the records cannot be read")
        yield GaugeMetricFamily("scanqueue_store_up", "1 when the records could be read.", value=bool(found))
        yield from found
        if self._waiting is not None:
            jobs: int | None = None
            try:
                jobs = self._waiting()
            except Exception as error:  # the client of the broker may raise anything
                log.warning("metrics: the job queue does not answer (%s)", type(error).__name__)
            yield GaugeMetricFamily("scanqueue_queue_up", "1 when the job queue answers.", value=jobs is not None)
            if jobs is not None:
                yield GaugeMetricFamily(
                    "scanqueue_jobs_waiting", "Projects that wait for a worker to check them.", value=jobs
                )


def _projects(store: Store) -> list[Metric]:
    names = store.projects()
    steps = {r["project"]: r for r in store.rows(progress_table.select())}
    families = {name: _gauge(name, text, "project") for name, text, _ in PROJECT}
    labels = {
        (key, kept): _gauge(f"{key}_label_{name}", f"{text}: {of}.", "project", "label")
        for key, of in SUMMARIES.items()
        for name, kept, text in LABEL
    }
    phase = _gauge("phase", "1 for the current phase of the project.", "project", "phase")
    progress = _gauge("job_progress_ratio", "Progress of the current step, 0 to 1.", "project", "step")
    age = _gauge("job_age_seconds", "Time since the current step started.", "project", "step")
    silence = _gauge("job_silence_seconds", "Time since the current step last made progress.", "project", "step")
    now = time.time()
    for project in names:
        state = status.describe(store, project)
        if state is None:
            continue
        number = str(project)
        for name, _, value in PROJECT:
            amount = value(state)
            if amount is not None:
                families[name].add_metric([number], float(amount))
        for (key, kept), family in labels.items():
            for label, figures in state[key]["per_label"].items():
                if figures[kept] is not None:
                    family.add_metric([number, label], float(figures[kept]))
        phase.add_metric([number, state["phase"]], 1)
        if state["job"] is not None and project in steps:
            row, where = steps[project], [number, _step(state["job"]["step"])]
            progress.add_metric(where, row["done"] / max(row["total"], 1))
            age.add_metric(where, max(now - row["started_at"], 0.0))
            silence.add_metric(where, max(now - row["at"], 0.0))
    count = GaugeMetricFamily("scanqueue_projects", "Projects that were connected.", value=len(names))
    return [count, *families.values(), *labels.values(), phase, progress, age, silence]


def _measures(store: Store) -> Iterator[Metric]:
    steps = SummaryMetricFamily("scanqueue_step_seconds", "Completed steps of the loop.", labels=["step"])
    studio = SummaryMetricFamily(
        "scanqueue_label_studio_seconds", "Requests to Label Studio that were answered.", labels=["request"]
    )
    http = SummaryMetricFamily("scanqueue_http_seconds", "Requests that the servers answered.", labels=["path", "code"])
    clicks = SummaryMetricFamily(
        "scanqueue_correction_seconds", "Answers to clicks, boxes and strokes of smart tools.", labels=["outcome"]
    )
    for family, name in ((steps, "step"), (studio, "studio"), (clicks, "correction")):
        for label, (count, total) in sorted(store.counters(name).items()):
            family.add_metric([label], count, total)
    for label, (count, total) in sorted(store.counters("http").items()):
        path, _, code = label.rpartition(" ")
        http.add_metric([path, code], count, total)
    errors = CounterMetricFamily(
        "scanqueue_label_studio_errors", "Requests to Label Studio that failed.", labels=["kind"]
    )
    slow = CounterMetricFamily("scanqueue_http_slow", "Requests answered after more than a second.", labels=["path"])
    waited = CounterMetricFamily(
        "scanqueue_correction_slow", "Answers of smart tools that took more than a second.", labels=["outcome"]
    )
    for counter, name in ((errors, "studio_error"), (slow, "http_slow"), (waited, "correction_slow")):
        for label, (count, _) in sorted(store.counters(name).items()):
            counter.add_metric([label], count)
    return iter((steps, studio, clicks, waited, errors, http, slow))


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"scanqueue_{name}", text, labels=labels)


def _step(text: str) -> str:
    """One of a few words: labels with versions or counts would grow without limit."""
    return next((step for step in STEPS if text.startswith(step)), OTHER)
