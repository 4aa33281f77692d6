"""Publishing a round of 5,000 scans ranked again and 30 masks, compared with one SDK call per scan.

Ours: one `reconcile` of the real driver from the moment a new model's entropies are stored until a real Label Studio
serves the round: inspect, rank, record the round, inspect, import 30 predictions with masks, set the project, inspect
again. Theirs, alternating with ours: `predictions.create` of label_studio_sdk for every scan, 30 with the same masks,
the others with only a score. This takes minutes, so a sample of these calls is measured and scaled linearly to all
scans; their time excludes drawing masks and computing scores.

Also measured: the requests for 500 scans and for 5,000, and the cost of a reconciliation that finds nothing to do.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from label_studio_sdk import LabelStudio as Sdk

from backend.demo.label_studio import LabelStudio
from backend.demo.phantoms import phantom
from backend.facts import Lesson
from backend.fingerprints import fingerprint
from backend.label_config import LabelConfig
from backend.label_studio.drawing import draw_mask
from backend.label_studio.studio import Studio
from backend.learning.learner import Learner
from backend.loop.driver import Reconciler
from backend.records.maps import put_map
from backend.records.store import Store
from backend.settings import Settings
from benchmarks.measure import alternate, report, rounded, summary, timed
from benchmarks.pools import made_map
from benchmarks.servers import CONFIG, backend, label_studio

DEPTH, LEFT = 20, 10  # length of the queue; scans of the previous round that annotators may still have open
MASKS = DEPTH + LEFT
SIDE = 1024
IMPORTED = 10_000  # tasks of one request
LIMIT = 20
# the scans are not there, so the quick model cannot look at them
EXTRA_PARAMS = f'{{"retrain": "button", "round_size": {LEFT}, "queue_depth": {DEPTH}, "quick_model": "off"}}'


@dataclass
class Pool:
    """A project with `count` scans in Label Studio; embeddings, map and cold start are in the store."""

    studio: LabelStudio
    reconciler: Reconciler
    count: int
    masks: Sequence[np.ndarray[Any, np.dtype[np.uint8]]]
    backend: str

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.count)
        self.project = self.studio.create_project(f"{self.count} scans", CONFIG)
        rows = [{"image": f"/data/upload/0/scan-{i:05d}.png"} for i in range(self.count)]
        starts = range(0, self.count, IMPORTED)
        self.imported = timed(
            lambda: [self.studio.import_tasks(self.project, rows[start : start + IMPORTED]) for start in starts]
        )
        store = self.reconciler.store
        store.add_project(self.project)
        self.studio.connect_backend(self.project, self.backend)
        store.set_project(self.project, extra_params=EXTRA_PARAMS, backend_url=self.backend)
        while self.reconciler.observer.observe(self.project).listed_to is not None:
            self.reconciler.observer.list_more(self.project)
        self.digests = {
            s["task"]: hashlib.sha256(f"{self.project}/{s['task']}".encode()).hexdigest()[:32]
            for s in store.scans(self.project)
        }
        found = list(self.digests.values())
        store.set_scans(
            self.project,
            [{"task": t, "digest": d, "height": SIDE, "width": SIDE, "problem": ""} for t, d in self.digests.items()],
        )
        embedder = self.reconciler.learner.embedder().name
        store.put_embeddings(embedder, found, rng.normal(size=(self.count, 64)).astype(np.float32))
        xy = rng.normal(size=(self.count, 2))
        put_map(store, self.project, embedder, made_map(found, xy, 64))
        self._numbers = itertools.count(1)
        self.requests: list[int] = []
        self.reconciler.reconcile(self.project)  # the cold start

    def prepare(self) -> str:
        """Do what happens between two rounds: label all but LEFT, add a model. Returns the model's version."""
        latest = self.reconciler.store.latest_round(self.project)
        assert latest is not None
        left = {p.task for p in latest["picks"][DEPTH - LEFT : DEPTH]}
        for task in set(self.reconciler.observer.observe(self.project).live.published) - left:
            self.studio.post(f"/api/tasks/{task}/annotations/?project={self.project}", {"result": []})
        self.reconciler.reconcile(self.project)
        number = next(self._numbers)
        version = f"scanqueue-r{number}"
        name = fingerprint("benchmark", self.project, number)
        rng = np.random.default_rng(number)
        store = self.reconciler.store
        # scans left from the previous round are not first again, so that exactly MASKS masks are sent
        unsure = {t: 0.0 if t in left else float(rng.uniform(0.5, 1)) for t in self.digests}
        store.put_uncertainty(name, {self.digests[t]: {"image": value} for t, value in unsure.items()})
        # masks for any scans that may be first are drawn in advance, because the network is not measured
        done = [Lesson(r["task"], self.digests[r["task"]], r["mask"]) for r in store.labels(self.project)]
        for i, digest in enumerate(self.digests.values()):
            source = self._mask_file(i % len(self.masks))
            target = store.path("masks", fingerprint(name, digest))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
        row = {
            "version": version,
            "fingerprint": name,
            "labels": ["Lung"],
            "trained_on": done,
            "accepted": 1,
            "validation": {"dice": None, "hd95": None, "hd": None, "unit": None, "n": 0},
            "details": {},
        }
        store.path("models", name).mkdir(parents=True)  # without a checkpoint, the model would count as lost
        project = store.project(self.project)
        assert project is not None
        store.put_model(self.project, row, active=version, instead_of=project["active"], training_requests=0)
        return version

    def _mask_file(self, number: int) -> Path:
        store = self.reconciler.store
        name = fingerprint("benchmark mask", number)
        if not store.has("masks", name):
            store.put_arrays("masks", name, mask=self.masks[number])
        return store.path("masks", name)

    def publish(self) -> float:
        """Seconds of one reconcile that ranks and publishes; checks that Label Studio serves exactly this round."""
        version = self.prepare()
        before = self.reconciler.studio.requests
        seconds = timed(lambda: self.reconciler.reconcile(self.project))
        self.requests.append(self.reconciler.studio.requests - before)
        seen = self.reconciler.observer.observe(self.project)
        served = self.reconciler.store.latest_round(self.project)
        if (
            served is None
            or served["model"] != version
            or seen.live.model_version != version
            or len(seen.live.published) != MASKS
        ):
            raise RuntimeError(f"{version} was not published: {seen.live}")
        return seconds

    def idle(self) -> tuple[float, int]:
        """Seconds and requests of a reconcile that finds nothing to do."""
        before = self.reconciler.studio.requests
        seconds = timed(lambda: self.reconciler.reconcile(self.project))
        return seconds, self.reconciler.studio.requests - before


def per_scan(pool: Pool, sdk: Sdk, masks: int, scores: int) -> Iterator[float]:
    """Seconds that one SDK call per scan would take, extrapolated from `masks` and `scores` real calls."""
    config = LabelConfig("image", ())
    seen = pool.reconciler.observer.observe(pool.project)
    config = seen.config or config
    tasks = itertools.cycle([s.task for s in seen.scans])
    results = [draw_mask(mask, ["Lung"], config, "one-by-one") for mask in pool.masks]
    for version in (f"one-by-one-{n}" for n in itertools.count()):
        began = time.perf_counter()
        for number in range(masks):
            sdk.predictions.create(
                task=next(tasks), score=0.5, model_version=version, result=results[number % len(results)]
            )
        drawn = time.perf_counter()
        for _ in range(scores):
            sdk.predictions.create(task=next(tasks), score=0.5, model_version=version, result=[])
        done = time.perf_counter()
        yield (drawn - began) / masks * MASKS + (done - drawn) / scores * (pool.count - MASKS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Publishing a round in bulk, compared with one SDK call per scan.")
    parser.add_argument("--quick", action="store_true", help="500 scans; under a minute")
    quick = parser.parse_args().quick
    few, count, repetitions, sample = (100, 500, 1, (4, 16)) if quick else (500, 5000, 3, (15, 50))
    with label_studio() as (studio, folder), backend() as url:
        token = studio.personal_access_token()
        store = Store(folder / "scanqueue")
        settings = Settings(label_studio_url=studio.url, data_dir=folder / "scanqueue", embedder="pixels")
        reconciler = Reconciler(Studio(studio.url, token), store, Learner(settings), settings)
        masks = [phantom(seed, (SIDE, SIDE))[1]["Lung"].astype(np.uint8) for seed in range(5)]
        small = Pool(studio, reconciler, few, masks, url)
        small.publish()
        pool = Pool(studio, reconciler, count, masks, url)
        sdk = Sdk(base_url=studio.url, api_key=token)  # type: ignore[no-untyped-call]
        calls = per_scan(pool, sdk, *sample)
        comparison = alternate(pool.publish, lambda: next(calls), repetitions, warmup=0)
        pool.idle()
        idle = [pool.idle() for _ in range(5)]

    figures = comparison.inverted.figures()
    ours, theirs = float(np.median(comparison.ours)), float(np.median(comparison.theirs))
    quiet = float(np.median([seconds for seconds, _ in idle]))
    same = set(small.requests) == set(pool.requests)
    met = same and (quick or figures["ratio"] >= LIMIT)
    report(
        f"Publishing a round: {count} scans ranked again, {MASKS} masks of {SIDE} x {SIDE} pixels",
        ["", "seconds", "requests"],
        [
            ["one reconcile", ours, "/".join(map(str, sorted(set(pool.requests))))],
            [f"one SDK call per scan (from {sum(sample)} calls)", theirs, count],
            [f"one reconcile with {small.count} scans", "", "/".join(map(str, sorted(set(small.requests))))],
            ["reconcile with nothing to do", quiet, idle[-1][1]],
        ],
        summary(
            figures,
            unit="time of one SDK call per scan / time of one reconcile",
            compared=f"label_studio_sdk predictions.create for each of {count} scans, {MASKS} with masks; "
            f"{sum(sample)} calls measured per repetition, scaled linearly",
            sizes={"scans": count, "masks": MASKS, "mask": [SIDE, SIDE], "repetitions": repetitions},
            limit=LIMIT,
            met=met,
            seconds={"reconcile": rounded(ours), "one_by_one": rounded(theirs)},
            requests={str(small.count): sorted(set(small.requests)), str(count): sorted(set(pool.requests))},
            nothing_to_do={"seconds": rounded(quiet), "requests": idle[-1][1]},
        ),
        note=f"{figures['ratio']} times faster; target: at least {LIMIT} with 5,000 scans. "
        f"Requests for {small.count} and for {count} scans: {'the same number' if same else 'NOT the same number'}.",
    )
    if not met:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
