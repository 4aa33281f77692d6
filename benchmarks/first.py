"""How soon a project's first task is served, and the first one of a new model, by its number of scans.

Reading and embedding a scan, and scoring one, are simulated: each takes 0.1 s (`--seconds`), and stores random numbers.
Label Studio is an object in memory. Everything else is what ships: one worker lists the tasks, makes the map of what is
embedded so far, the order of the default strategy, and publishes its beginning. Measured are the seconds from
connecting until Label Studio serves the first round, and, with all scans read, from a stored model until it serves that
model's round.

`.venv/bin/python -m benchmarks.first` takes about 15 minutes, `--quick` one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from backend.facts import Scan, version_name
from backend.label_studio.listing import TaskRow
from backend.learning.learner import Learner
from backend.loop.batch import BatchProcessor
from backend.loop.driver import Reconciler
from backend.records.store import Store
from backend.settings import Settings
from backend.workers.watchdog import Stopping
from benchmarks.look import PROJECT, StillStudio, digest_of, image_of
from benchmarks.measure import report, rounded, summary

SIZES, QUICK = (100, 10_000, 100_000), (100, 2_000)
LIMIT, SECONDS = 2.0, 60.0
DIMENSIONS = 256
BEGAN, PER_SECOND = datetime(2026, 1, 1, tzinfo=UTC), 1000  # of the import into Label Studio


class NewStudio(StillStudio):
    """A Label Studio whose tasks were just imported. Stops the worker when it serves the round `until`."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.labelled = 0
        self.until = version_name(0)

    def row(self, task: int) -> TaskRow:
        return TaskRow(task, {"image": image_of(task)}, imported_at(task), 0, 0)

    def changed_tasks(self, project: int, since: str, most: int) -> list[TaskRow] | None:
        rows = [row for row in map(self.row, range(1, self.count + 1)) if row.updated_at > since]
        return rows if len(rows) <= most else None

    def tasks_on_page(self, project: int, page: int, size: int) -> list[TaskRow]:
        return self.tasks_after(project, (page - 1) * size, size)[0]

    def newest_change(self, project: int) -> str:
        return imported_at(self.count)

    def served(self) -> bool:
        return self.version == self.until


def imported_at(task: int) -> str:
    return (BEGAN + timedelta(seconds=task / PER_SECOND)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class SlowProcessor(BatchProcessor):
    """Takes a fixed time for each scan."""

    seconds = 0.1

    def read(self, project: int, scans: Sequence[Scan]) -> None:
        for _ in scans:
            self.alive()
            time.sleep(self.seconds)
        vectors = np.stack([np.random.default_rng(scan.task).normal(size=DIMENSIONS) for scan in scans])
        digests = [digest_of(scan.task) for scan in scans]
        self.store.put_embeddings(self.learner.embedder().name, digests, vectors.astype(np.float32))
        read = {"height": 512, "width": 512, "problem": ""}
        rows = [{"task": scan.task, "digest": one, **read} for scan, one in zip(scans, digests, strict=True)]
        self.store.set_scans(project, rows)

    def score(self, project: int, model: str, scans: Sequence[Scan], extra: str = "") -> None:
        for _ in scans:
            self.alive()
            time.sleep(self.seconds)
        values = {scan.digest: {"image": float(np.random.default_rng(scan.task).random())} for scan in scans}
        self.store.put_uncertainty(model, values)

    def draw(self, project: int, model: str, scans: Sequence[Scan]) -> None:
        self.alive()


class Lab:
    """A project that was just connected."""

    def __init__(self, count: int, folder: Path, seconds: float) -> None:
        settings = Settings(data_dir=folder, embedder="pixels", device="cpu")
        self.store = Store(folder, "")
        self.studio = NewStudio(count)
        learner = Learner(settings)
        self.reconciler = Reconciler(self.studio, self.store, learner, settings, self.studio.served)  # type: ignore[arg-type]
        context = self.reconciler.context
        processor = SlowProcessor(self.studio, self.store, learner, context.alive)  # type: ignore[arg-type]
        processor.seconds = seconds
        context.processor = self.reconciler.processor = self.processor = processor
        self.store.add_project(PROJECT)
        params = json.dumps({"quick_model": "off", "retrain": "button"})
        self.store.set_project(PROJECT, connected=1, extra_params=params, backend_url="http://127.0.0.1:9090")

    def first_task(self) -> float:
        """Seconds from connecting until a task is served."""
        return self._until_served()

    def next_round(self) -> float:
        """Seconds from a trained model until its round is served. All scans are read before."""
        version = version_name(1)
        self.studio.until = version
        seconds, self.processor.seconds = self.processor.seconds, 0.0
        self.reconciler.reconcile(PROJECT)
        self.processor.seconds = seconds
        name = "model"
        self.store.put_folder("models", name, lambda folder: (folder / "weights").touch())
        row = {"version": version, "fingerprint": name, "labels": ["Lung"], "trained_on": [], "validation": {}}
        self.store.put_model(PROJECT, {**row, "accepted": 1, "details": {}}, active=version, training_requests=0)
        return self._until_served()

    def _until_served(self) -> float:
        began = time.perf_counter()
        with suppress(Stopping):
            self.reconciler.reconcile(PROJECT)
        assert self.studio.served()
        return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK} scans")
    parser.add_argument("--seconds", type=float, default=0.1, help="to embed or score a scan")
    options = parser.parse_args()
    sizes = QUICK if options.quick else SIZES
    found: dict[str, list[float]] = {"first task served": [], "next round served": []}
    for count in sizes:
        with TemporaryDirectory() as folder:
            lab = Lab(count, Path(folder), options.seconds)
            found["first task served"].append(lab.first_task())
            found["next round served"].append(lab.next_round())
    ratios = {name: seconds[-1] / seconds[0] for name, seconds in found.items()}
    worst = rounded(max(ratios.values()))
    met = worst < LIMIT and max(max(seconds) for seconds in found.values()) < SECONDS
    report(
        f"Seconds, with {options.seconds:g} s to embed or score a scan",
        ("what", *(f"{count:,} scans" for count in sizes), "last / first"),
        [[name, *(f"{one:.1f}" for one in seconds), f"{ratios[name]:.2f}"] for name, seconds in found.items()],
        summary(
            {"ratio": worst, "low": rounded(min(ratios.values())), "high": worst},
            unit=f"times as long as with {sizes[0]} scans",
            compared=f"the first and the next round of {sizes[-1]:,} scans",
            sizes={"scans": list(sizes), "seconds_per_scan": options.seconds},
            limit=LIMIT,
            met=met,
        )
        | {"seconds": {name: [rounded(one) for one in seconds] for name, seconds in found.items()}},
    )
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
