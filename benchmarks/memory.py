"""How much memory a server and a worker need for each scan of a project: for a look, a new round, and the page.

A store is filled directly, as in `benchmarks.look`; a trained model has scored every scan. Each step runs in a process
of its own. Measured is by how much its memory rises at most above what it had before the step, with 10,000 and with
100,000 scans: the difference is what a scan costs. The step "embeddings" reads all of them, as a map is fitted.

`.venv/bin/python -m benchmarks.memory` takes about 4 minutes, `--quick` half a minute.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sqlalchemy import func, select

from backend.facts import version_name
from backend.learning.learner import Learner
from backend.loop.batch import BatchProcessor
from backend.loop.driver import Reconciler
from backend.records.store import Store
from backend.records.tables import embedding_table, round_table
from backend.settings import Settings
from backend.web.overview import Overview
from backend.web.pictures import Pictures
from benchmarks.look import PROJECT, StillStudio, digest_of, fill
from benchmarks.measure import report, rounded, summary

SIZES, QUICK = (10_000, 100_000), (2_000, 20_000)
DIMENSIONS = 256
MODEL = "model"
LIMIT = 1000.0  # bytes for each scan, in every step but that of the embeddings
STEPS = ("new round", "look", "status", "page's map", "embeddings")  # in this order


def fill_scored(folder: Path, count: int) -> None:
    """A project whose scans a trained model has scored, without a round of that model."""
    rng = np.random.default_rng(0)
    with closing(Store(folder)) as store:
        fill(store, count, embedder_of(folder))
        with store.write() as connection:
            connection.execute(embedding_table.delete())
        for start in range(1, count + 1, 10_000):
            digests = [digest_of(task) for task in range(start, min(start + 10_000, count + 1))]
            vectors = rng.random((len(digests), DIMENSIONS), dtype=np.float32)
            store.put_embeddings(embedder_of(folder), digests, vectors)
            entropy = rng.random(len(digests)).tolist()
            store.put_uncertainty(MODEL, {one: {"image": h} for one, h in zip(digests, entropy, strict=True)})
        store.put_folder("models", MODEL, lambda path: (path / "weights").touch())
        row = {"version": version_name(1), "fingerprint": MODEL, "labels": ["Lung"], "trained_on": [], "accepted": 1}
        store.put_model(PROJECT, {**row, "validation": {}, "details": {}}, active=version_name(1), training_requests=0)
        store.set_project(PROJECT, extra_params='{"quick_model": "off", "retrain": "button"}')


def settings_of(folder: Path) -> Settings:
    return Settings(data_dir=folder, embedder="pixels", device="cpu")


def embedder_of(folder: Path) -> str:
    return Learner(settings_of(folder)).embedder().name


class NoMasks(BatchProcessor):
    """Draws nothing: the model has no weights."""

    def draw(self, *_: Any) -> None:
        pass


def prepared(what: str, count: int, folder: Path) -> Callable[[], Any]:
    """A step of a new process."""
    store, studio, settings = Store(folder), StillStudio(count), settings_of(folder)
    learner = Learner(settings)
    if what in ("new round", "look"):
        reconciler = Reconciler(studio, store, learner, settings)  # type: ignore[arg-type]
        context = reconciler.context
        context.processor = reconciler.processor = NoMasks(studio, store, learner, context.alive)  # type: ignore[arg-type]
        if what == "look":
            studio.version = version_name(1)
            first = [pick.task for pick in (store.latest_round(PROJECT) or {})["picks"][:30]]
            studio.predictions = {studio.version: dict.fromkeys(first, 1)}
            store._orders = {}
        return lambda: reconciler.reconcile(PROJECT)
    overview = Overview(store, studio, Pictures(store, BatchProcessor(studio, store, learner)), lambda _: [])  # type: ignore[arg-type]
    if what == "status":
        return lambda: overview.status(PROJECT)
    if what == "page's map":
        return lambda: overview.packed_atlas(PROJECT)
    return lambda: store.embeddings(learner.embedder().name, [digest_of(task) for task in range(1, count + 1)])


def rise(call: Callable[[], Any]) -> tuple[float, float]:
    """(bytes by which this process's memory rises at most during a call, seconds)."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, began = _memory("VmRSS"), time.perf_counter()
    call()
    return _memory("VmHWM") - before, time.perf_counter() - began


def _memory(name: str) -> float:
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
    return 1024.0 * int(line.split()[1])


def measure(count: int) -> tuple[dict[str, tuple[float, float]], float]:
    """(bytes, seconds) of each step, and the bytes of the newest order in the records."""
    with TemporaryDirectory() as place:
        folder, found = Path(place), {}
        fill_scored(folder, count)
        for what in STEPS:
            command = [sys.executable, "-m", "benchmarks.memory", "--step", what, "--sizes", str(count), "--in", place]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            found[what] = float(printed[-2]), float(printed[-1])
        with closing(Store(folder)) as store:
            newest = select(func.length(round_table.c.picks)).order_by(round_table.c.n.desc()).limit(1)
            ((size,),) = store._tuples(newest)
        return found, float(size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK} scans")
    parser.add_argument("--sizes", type=int, nargs="+", help="two numbers of scans")
    parser.add_argument("--step", choices=STEPS, help="do only this step, once, with the filled folder --in")
    parser.add_argument("--in", dest="folder", type=Path, help="filled before")
    options = parser.parse_args()
    few, many = (options.sizes or [0])[0], (options.sizes or [0])[-1]
    if options.step:
        print(*rise(prepared(options.step, few, options.folder)))
        return 0
    if not options.sizes:
        few, many = QUICK if options.quick else SIZES
    (first, _), (last, order) = measure(few), measure(many)
    each = {what: (last[what][0] - first[what][0]) / (many - few) for what in STEPS}
    worst = rounded(max(value for what, value in each.items() if what != "embeddings"))
    met = worst <= LIMIT and each["embeddings"] <= LIMIT + 4 * DIMENSIONS
    report(
        "Rise of the memory during a step",
        ("step", f"{few:,} scans, MB", f"{many:,} scans, MB", "bytes for each scan", "seconds"),
        [[what, first[what][0] / 1e6, last[what][0] / 1e6, each[what], last[what][1]] for what in STEPS],
        summary(
            {"ratio": worst, "low": worst, "high": worst},
            unit="bytes for each scan",
            compared="a project with fewer scans",
            sizes={"scans": [few, many], "dimensions": DIMENSIONS},
            limit=LIMIT,
            met=met,
        )
        | {"bytes": {what: rounded(value) for what, value in each.items()}, "order": rounded(order / many)},
        note=f"An order takes {order / many:.0f} bytes for each scan in the records.",
    )
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
