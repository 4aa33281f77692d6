"""How much faster two Dask workers embed and score a pool than one, each with one thread.

Ours: `scanqueue worker` with a Dask scheduler and two `dask worker` processes, which fetch every scan from a real Label
Studio. Theirs, alternating with ours: one. Before each run, the pool's embeddings, cached pixels and entropies are
removed and alpha is changed, so that all scans must be read and embedded, and then the unlabelled ones scored. The time
is measured from the webhook until the last entropy is stored; the processes are running and their models are loaded.

The embedder is a vision transformer of BiomedCLIP's size (ViT-B/16 at 224 pixels) with random weights, because a
network's speed does not depend on its weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from sqlalchemy import delete, func, select

from backend.demo.child import Child, free_port
from backend.facts import Stage
from backend.loop.suspects import AT_ONCE
from backend.records.store import Store
from backend.records.tables import embedding_table, uncertainty_table
from backend.settings import Settings
from backend.workers.worker import Queue
from benchmarks.measure import Comparison, alternate, report, summary
from benchmarks.servers import CONFIG, Service, annotate, label_studio, write_scans

LIMIT = 1.7
LABELLED = 6
SIDE = 512
POLL = 0.25  # seconds; more often, the question itself would take a tenth of a core


def main() -> None:
    parser = argparse.ArgumentParser(description="Two Dask workers with one thread each, compared with one.")
    parser.add_argument("--quick", action="store_true", help="a smaller network and pool; a minute or two")
    given = parser.parse_args()
    model, count, repetitions = ("vit_small_patch16_224", 96, 1) if given.quick else ("vit_base_patch16_224", 128, 3)
    with label_studio() as (studio, folder):
        weights = write_weights(folder / "weights", model)
        settings = {
            "SCANQUEUE_EMBEDDER": f"timm:local-dir:{weights}",
            "SCANQUEUE_DEVICE": "cpu",
            "SCANQUEUE_THREADS": "1",
            "SCANQUEUE_TRAINING_STEPS": "4",
            "OMP_NUM_THREADS": "1",
        }
        data = folder / "scanqueue"
        scans = write_scans(folder / "scans", count, SIDE)
        project = studio.create_project("workers", CONFIG)
        tasks = studio.import_files(project, list(scans))
        for task, mask in list(zip(tasks, scans.values(), strict=True))[:LABELLED]:
            annotate(studio, project, task, mask)
        service = Service(studio, data, settings)
        environment = dict(service.environment)
        try:
            service.connect(studio, project, strategy="paper", cold_start_size=LABELLED, round_size=5, queue_depth=5)
            service.wait(project, lambda s: s["model"] and s["round"] == 1 and not s["job"], seconds=1800)
        finally:
            service.stop()
        pool = Pool(
            data, project, Settings.from_env({k: v for k, v in environment.items() if k.startswith("SCANQUEUE_")})
        )
        spent: dict[int, list[tuple[float, float]]] = {1: [], 2: []}

        def run(number: int) -> float:
            with workers(number, environment, folder):
                pool.settle()
                spent[number].append(pool.measure())
            return sum(spent[number][-1])

        found = alternate(lambda: run(1), lambda: run(2), repetitions, warmup=0 if given.quick else 1)
    _report(found, spent, model, count, repetitions)


class Pool:
    """The scans of one connected project, which are embedded and scored repeatedly."""

    def __init__(self, folder: Path, project: int, settings: Settings) -> None:
        self.folder = folder
        self.project = project
        self.store = Store(folder)
        self.queue = Queue(settings)
        self.scans = len(self.store.scans(project))
        self._alpha = 0.4

    def settle(self) -> None:
        """Load the models with one small run of everything, and wait until the workers are idle."""
        self.measure(only=4 * AT_ONCE)

    def measure(self, only: int | None = None) -> tuple[float, float]:
        """Seconds for embedding and for scoring, after removing both results of all scans (or of only `only`)."""
        self._wait(lambda: self.queue.waiting() == 0 and self.store.progress(self.project) is None)
        time.sleep(2)
        scans = self.store.scans(self.project)[:only]
        digests = [s["digest"] for s in scans]
        model = self.store.models(self.project)[-1]["fingerprint"]
        with self.store.write() as connection:
            connection.execute(delete(embedding_table).where(embedding_table.c.digest.in_(digests)))
            connection.execute(delete(uncertainty_table).where(uncertainty_table.c.digest.in_(digests)))
        self.store.set_stage(self.project, [s["task"] for s in scans], Stage.UNREAD, lower=True)
        if only is None:
            shutil.rmtree(self.folder / "pixels", ignore_errors=True)
        self._alpha += 0.001  # a value that no round has used yet; otherwise there would be nothing to score
        row = self.store.project(self.project)
        assert row is not None
        extra = json.loads(row["extra_params"]) | {"alpha": self._alpha}
        self.store.set_project(self.project, extra_params=json.dumps(extra))
        began = time.perf_counter()
        self.queue.request(self.project)
        self._wait(lambda: self._count(embedding_table) == self.scans)
        embedded = time.perf_counter()
        self._wait(lambda: len(self.store.image_entropies(model)) >= self.scans - LABELLED)
        return embedded - began, time.perf_counter() - embedded

    def _count(self, table: object) -> int:
        return int(self.store.rows(select(func.count().label("n")).select_from(table))[0]["n"])  # type: ignore[arg-type]

    def _wait(self, ready: object, seconds: float = 1800) -> None:
        until = time.monotonic() + seconds
        while not ready():  # type: ignore[operator]
            if time.monotonic() > until:
                raise TimeoutError(f"not ready within {seconds:.0f} s; the logs are next to {self.folder}")
            time.sleep(POLL)


@contextmanager
def workers(number: int, environment: dict[str, str], folder: Path) -> Iterator[None]:
    """A started and idle `scanqueue worker` with a Dask scheduler and so many Dask workers."""
    address = f"tcp://127.0.0.1:{free_port()}"
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]
    worker = ["worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory"]
    dask = [scheduler, *([*worker, str(folder / f"dask-{n}")] for n in range(number))]
    commands = [[sys.executable, "-m", "dask", *arguments] for arguments in dask]
    commands.append([sys.executable, "-m", "backend.cli", "worker"])
    with ExitStack() as stack:
        for n, command in enumerate(commands):
            given = environment | ({"SCANQUEUE_DASK_SCHEDULER": address} if n == len(commands) - 1 else {})
            child = Child(f"process {n}", command, env=given, log=folder / f"process-{n}.log")
            stack.callback(child.stop, grace=40)
        time.sleep(15)  # for the imports; `settle` loads everything else
        yield


def write_weights(folder: Path, model: str) -> Path:
    """Create a timm folder of this network with random weights."""
    folder.mkdir()
    network: Any = timm.create_model(model, pretrained=False, num_classes=0)
    config = {"architecture": model, "num_classes": 0, "pretrained_cfg": dict(network.pretrained_cfg)}
    kept = ("input_size", "mean", "std", "interpolation", "crop_pct", "first_conv", "classifier")
    config["pretrained_cfg"] = {k: network.pretrained_cfg[k] for k in kept} | {"num_classes": 0}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


def _report(
    found: Comparison, spent: dict[int, list[tuple[float, float]]], model: str, count: int, repetitions: int
) -> None:
    figures = found.figures()  # time of one / time of two workers
    rows = []
    for number in (1, 2):
        kept = spent[number][-repetitions:]
        middle = [sorted(part)[len(part) // 2] for part in zip(*kept, strict=True)]
        rows.append([f"{number} Dask worker(s), 1 thread each", middle[0], middle[1], sum(middle)])
    met = figures["ratio"] >= LIMIT
    report(
        f"{count} scans of {SIDE} x {SIDE} pixels, {model}",
        ["", "embed, s", "score, s", "both, s"],
        rows,
        summary(
            figures,
            unit="times as fast",
            compared="two Dask workers with one thread each / one",
            sizes={"scans": count, "side": SIDE, "embedder": model, "repetitions": repetitions},
            limit=LIMIT,
            met=met,
        ),
        note=f"two workers are {figures['ratio']} times as fast as one ({figures['low']} .. {figures['high']}); "
        f"target: at least {LIMIT}; cores: {os.cpu_count()}",
    )
    if not met:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
