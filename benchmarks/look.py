"""What a look at a project costs, by its number of scans: with nothing to do, after one label, and after a new round.

A store is filled directly: scans that are embedded, on the map and in the latest order, 100 of them labelled. Label
Studio is an object in memory that answers at once, so all times are ours. Also measured: `status` and `/metrics`.

`.venv/bin/python -m benchmarks.look` takes about 10 minutes and 6 GB, `--quick` a minute. `--database
postgresql://...` measures that database instead of SQLite.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
from sqlalchemy import create_engine

from backend.facts import SAMPLING, Stage
from backend.fingerprints import fingerprint
from backend.label_studio.listing import Annotation, ProjectPage, TaskRow
from backend.learning.learner import Learner
from backend.loop.driver import Reconciler
from backend.records.database import address_of
from backend.records.maps import put_map
from backend.records.rounds import Pick
from backend.records.stages import Basis
from backend.records.store import Store
from backend.records.tables import embedding_table, metadata, scan_table
from backend.settings import Settings
from backend.web.metrics import render
from backend.web.status import describe
from benchmarks.measure import report, rounded, summary
from benchmarks.pools import made_map
from benchmarks.servers import CONFIG

SIZES, QUICK = (1_000, 10_000, 100_000, 1_000_000), (1_000, 20_000)
LABELLED, DEPTH = 100, 30
REPEATS = 7
LIMIT = 2.0  # an idle look at 100,000 scans, in idle looks at 1,000
PROJECT = 1
NOW = "2026-01-01T00:00:{:02d}.000000Z"
PARAMS = json.dumps({"strategy": "random", "quick_model": "off", "retrain": "button", "queue_depth": DEPTH})


class StillStudio:
    """A Label Studio that knows its tasks by number only, so that its answers cost nothing."""

    url = "http://memory.invalid/"

    def __init__(self, count: int) -> None:
        self.count = count
        self.changed: list[TaskRow] = []
        self.labelled = LABELLED
        self.predictions: dict[str, dict[int, int]] = {}
        self.version = ""
        self._config: dict[str, Any] = parse_config(CONFIG)  # type: ignore[no-untyped-call]

    def label(self, task: int) -> None:
        """Somebody submits a task."""
        self.labelled += 1
        moment = NOW.format(1 + self.labelled - LABELLED)
        self.changed.append(TaskRow(task, {"image": image_of(task)}, moment, 1, 0))

    def project(self, project: int) -> ProjectPage:
        return ProjectPage(
            title="memory",
            parsed_config=self._config,
            model_version=self.version,
            sampling=SAMPLING,
            show_predictions=True,
            tasks=self.count,
            annotations=self.labelled,
            skips=0,
        )

    def changed_tasks(self, project: int, since: str, most: int) -> list[TaskRow] | None:
        return [row for row in self.changed if row.updated_at > since]

    def task_count(self, project: int) -> int:
        return self.count

    def tasks_after(self, project: int, task: int, count: int) -> tuple[list[TaskRow], bool]:
        changed = {row.task: row for row in self.changed}
        tasks = range(task + 1, min(task + count, self.count) + 1)
        return [changed.get(t) or self.row(t) for t in tasks], task + count < self.count

    def row(self, task: int) -> TaskRow:
        """A task as it was imported."""
        return TaskRow(task, {"image": image_of(task)}, NOW.format(0), int(task <= LABELLED), 0)

    def annotations(self, project: int, tasks: Sequence[int]) -> Iterator[Annotation | int]:
        moments = {row.task: row.updated_at for row in self.changed}
        for task in tasks:
            moment = moments.get(task, NOW.format(0))
            yield Annotation(task, task, moment, [], 5.0, 1, "", moment)

    def model_versions(self, project: int) -> dict[str, int]:
        return {version: len(rows) for version, rows in self.predictions.items()}

    def published(self, project: int, version: str, counts: Mapping[str, int] | None = None) -> dict[int, int]:
        return dict(self.predictions.get(version, {}))

    def import_predictions(self, project: int, rows: Sequence[Mapping[str, Any]], tasks: int = 0) -> None:
        for row in rows:
            self.predictions.setdefault(row["model_version"], {})[row["task"]] = 1

    def predicted_regions(
        self, project: int, tasks: Sequence[int], versions: Sequence[str]
    ) -> Iterator[tuple[int, None]]:
        return iter((task, None) for task in tasks)

    def show_round(self, project: int, version: str) -> None:
        self.version = version

    def has_view(self, project: int) -> bool:
        return True

    def has_webhook(self, project: int, url: str, secret: str) -> bool:
        return True

    def backends(self, project: int) -> list[dict[str, Any]]:
        return [{"id": 1, "title": "scanqueue", "url": "http://127.0.0.1:9090"}]

    def remove_webhooks(self, project: int, urls: Collection[str], secret: str) -> int:
        return 0


def image_of(task: int) -> str:
    return f"/data/upload/{PROJECT}/{task:08x}-scan.png"


def digest_of(task: int) -> str:
    return fingerprint("scan", task)


def fill(store: Store, count: int, embedder: str) -> None:
    """Store a project with `count` scans, of which the first ones are labelled, and its cold start."""
    store.add_project(PROJECT)
    store.set_project(
        PROJECT, connected=1, extra_params=PARAMS, backend_url="http://127.0.0.1:9090", cursor=NOW.format(0)
    )
    tasks = range(1, count + 1)
    digests = [digest_of(task) for task in tasks]
    vector = np.zeros(8, dtype="<f4").tobytes()
    for start in range(0, count, 20_000):
        part = range(start, min(start + 20_000, count))
        scans = [
            {
                "project": PROJECT,
                "task": row + 1,
                "image": image_of(row + 1),
                "updated_at": NOW.format(0),
                "annotated": int(row < LABELLED),
                "digest": digests[row],
                "height": 512,
                "width": 512,
                "stage": int(Stage.MAPPED),
                "draw": (row * 2_654_435_761) % 2**32,
            }
            for row in part
        ]
        vectors = [{"embedder": embedder, "digest": digests[row], "vector": vector} for row in part]
        with store.write() as connection:
            connection.execute(scan_table.insert(), scans)
            connection.execute(embedding_table.insert(), vectors)
    xy = np.random.default_rng(0).normal(size=(count, 2))
    put_map(store, PROJECT, embedder, made_map(digests, xy, 8))
    store.set_basis(PROJECT, Basis(embedder, "slice", "", min(count, 1000)))
    with store.write() as connection:  # recording the basis anew lowers the stages
        connection.execute(scan_table.update().values(stage=int(Stage.MAPPED)))
    picks = [Pick(task, "random", cluster=0) for task in tasks if task > LABELLED]
    key = fingerprint("random")
    store.put_round(
        PROJECT,
        n=0,
        key=key,
        model="",
        picks=picks,
        carried=[],
        size=len(picks),
        labels=LABELLED,
        settings={"embedder": embedder},
    )


class Bench:
    """One filled project."""

    def __init__(self, count: int, folder: Path, database: str) -> None:
        settings = Settings(data_dir=folder, embedder="pixels", device="cpu")
        self.store = Store(folder, database)
        if self.store.projects():
            raise SystemExit("The database is not empty. Nothing was changed. Create a new one.")
        self.studio = StillStudio(count)
        learner = Learner(settings)
        fill(self.store, count, learner.embedder().name)
        if database:  # PostgreSQL does this by itself within a minute or two
            with create_engine(address_of(database), isolation_level="AUTOCOMMIT").connect() as connection:
                connection.exec_driver_sql("VACUUM ANALYZE")
        self.reconciler = Reconciler(self.studio, self.store, learner, settings)  # type: ignore[arg-type]
        self._next = LABELLED + 1

    def clear(self) -> None:
        """Delete what was stored in the database."""
        with self.store.write() as connection:
            for table in metadata.sorted_tables:
                connection.execute(table.delete())

    def seconds(self) -> dict[str, float]:
        """Median seconds of every kind of look."""
        self.look()  # publishes the round
        self.look()
        found = {"idle look": median(self.look for _ in range(REPEATS))}
        found["look after a label"] = median(self.after_label for _ in range(REPEATS))
        found["status"] = median((lambda: describe(self.store, PROJECT)) for _ in range(REPEATS))
        found["/metrics"] = median((lambda: render(self.store)) for _ in range(REPEATS))
        return found

    def look(self) -> None:
        self.reconciler.reconcile(PROJECT)

    def after_label(self) -> None:
        self.studio.label(self._next)
        self._next += 1
        self.look()


def median(calls: Iterator[Any]) -> float:
    found = []
    for call in calls:
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Of the power of the number of scans with which the time grows."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK} scans")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of scans")
    parser.add_argument("--database", default="", help="address of an empty PostgreSQL database")
    options = parser.parse_args()
    sizes = tuple(options.sizes or (QUICK if options.quick else SIZES))
    found: dict[str, list[float]] = {}
    for count in sizes:
        with TemporaryDirectory() as folder:
            bench = Bench(count, Path(folder), options.database)
            for name, seconds in bench.seconds().items():
                found.setdefault(name, []).append(seconds)
            bench.clear()
    idle = found["idle look"]
    ratio = rounded(idle[min(2, len(sizes) - 1)] / idle[0])
    report(
        f"Seconds (median of {REPEATS}); Label Studio in memory",
        ("what", *(f"{count:,} scans" for count in sizes), "exponent"),
        [
            [name, *(f"{value:.3f}" for value in seconds), f"{exponent(sizes, seconds):.2f}"]
            for name, seconds in found.items()
        ],
        summary(
            {"ratio": ratio, "low": ratio, "high": ratio},
            unit=f"idle looks at {sizes[0]:,} scans",
            compared=f"an idle look at {sizes[min(2, len(sizes) - 1)]:,} scans",
            sizes={"scans": list(sizes)},
            limit=LIMIT,
            met=ratio <= LIMIT,
        )
        | {"seconds": {name: [rounded(value) for value in seconds] for name, seconds in found.items()}},
    )
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
