"""What the service computes for a round, measured for `benchmarks.scale`: `backend.loop.order.order` on a real store.

A folder holds a project whose scans were embedded, mapped and scored: embeddings of benchmarks/pools.py (512 numbers of
32 bits), five scans of each patient, three sites, and random uncertainties. The positions on the map are the two main
directions of the embeddings; `growth` measures the real map. SQLite, settings as they ship but for the strategy.

Processor seconds are printed beside the others, because other programs lengthen only the latter. Peak memory is that of
the whole process (VmHWM, set back before every order), with the scans and everything that it read.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backend.facts import Stage
from backend.fingerprints import fingerprint
from backend.loop.order import RankingInputs, order
from backend.loop.project_settings import project_settings
from backend.records.maps import put_map
from backend.records.store import Store
from backend.records.tables import embedding_table, scan_table, uncertainty_table
from benchmarks.measure import rounded
from benchmarks.peer_methods import memory
from benchmarks.pools import AT_ONCE, embeddings, made_map
from sampling import COLD_START, DEFAULT, WITH_MODEL, Pool, choose_clusters, whole_order

PROJECT, EMBEDDER, MODEL = 1, "drawn", "model"
SEED, LABELLED = 1, 100
PER_PATIENT, SITES, LABELS = 5, 3, 3
NOW = "2026-01-01T00:00:00.000000Z"
COLD, RANKED = "cold start", "with a model"  # the two kinds of orders


@dataclass(frozen=True)
class Ordered:
    """One measured order of `scans` scans by one strategy."""

    scans: int
    kind: str
    strategy: str
    seconds: float
    processor: float
    before: int  # bytes held before the order
    peak: int

    @property
    def name(self) -> str:
        return f"{self.scans} scans, {self.kind}: {self.strategy}"

    @property
    def gigabytes(self) -> float:
        return rounded(self.peak / 1e9)


def default(kind: str) -> str:
    """The name of the strategy that ships for this kind."""
    return DEFAULT.split("+")[kind == RANKED]


def every() -> list[tuple[str, str]]:
    """All (kind, strategy), the default ones first."""
    found = [(COLD, name) for name in COLD_START] + [(RANKED, name) for name in WITH_MODEL]
    return sorted(found, key=lambda one: one[1] != default(one[0]))


def measured(folder: Path, count: int, wanted: Sequence[tuple[str, str]]) -> list[Ordered]:
    """Fills a store of `count` scans in `folder`, unless it is there, and measures the orders in another process."""
    for step in ("fill", json.dumps(wanted)):
        command = [sys.executable, "-m", "benchmarks.orders", str(folder / f"orders-{count}"), str(count), step]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [Ordered(**one) for one in json.loads(said)]


def fill(folder: Path, count: int) -> None:
    """A store with `count` scans in this folder; `LABELLED` of them are labelled."""
    done = folder / "filled"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder, "")
    store.add_project(PROJECT)
    pool = embeddings(count, seed=SEED)
    directions = np.linalg.svd(pool[:2000] - pool[:2000].mean(axis=0), full_matrices=False)[2][:2]
    random = np.random.default_rng(SEED)
    labelled = set(random.choice(count, min(LABELLED, count // 2), replace=False).tolist())
    digests = [fingerprint("scan", row) for row in range(count)]
    for start in range(0, count, AT_ONCE):
        rows = range(start, min(start + AT_ONCE, count))
        entropy, more = random.random(len(rows)), random.random((len(rows), LABELS + 1)).round(6).tolist()
        scans = [
            {
                "project": PROJECT,
                "task": row + 1,
                "image": f"/data/upload/{PROJECT}/{row:08x}-scan.png",
                "updated_at": NOW,
                "annotated": int(row in labelled),
                "digest": digests[row],
                "height": 512,
                "width": 512,
                "stage": int(Stage.SCORED),
                "patient": f"patient {row // PER_PATIENT}",
                "stratum": f"site {row % SITES}",
                "draw": (row * 2_654_435_761) % 2**32,
            }
            for row in rows
        ]
        vectors = [{"embedder": EMBEDDER, "digest": digests[row], "vector": pool[row].tobytes()} for row in rows]
        scores = [
            {
                "model": MODEL,
                "digest": digests[row],
                "value": float(value),
                "more": json.dumps({"classes": others[1:], "disagreement": others[0]}),
            }
            for row, value, others in zip(rows, entropy, more, strict=True)
        ]
        with store.write() as connection:
            connection.execute(scan_table.insert(), scans)
            connection.execute(embedding_table.insert(), vectors)
            connection.execute(uncertainty_table.insert(), scores)
    xy = (pool @ directions.T).astype(np.float64)
    put_map(store, PROJECT, EMBEDDER, made_map(digests, xy, pool.shape[1]))
    done.touch()


def measure(folder: Path, wanted: Sequence[tuple[str, str]]) -> list[Ordered]:
    store = Store(folder, "")
    for name in COLD_START:  # trigger lazy loading
        whole_order(name, Pool(xy := np.eye(40)[:, :2], choose_clusters(xy, seed=0), np.eye(40), np.arange(40)), 9)
    return [_measure(store, kind, strategy) for kind, strategy in wanted]


def _measure(store: Store, kind: str, strategy: str) -> Ordered:
    cold, ranked = strategy if kind == COLD else default(COLD), strategy if kind == RANKED else default(RANKED)
    settings = project_settings({"strategy": f"{cold}+{ranked}", "stratify_by": "site"})
    assert settings.strategy == DEFAULT or strategy != default(kind)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far does not count
    before = memory("VmRSS")
    began, processor = time.perf_counter(), time.process_time()
    scans = store.scans_from(PROJECT, Stage.MAPPED)
    picks = order(RankingInputs(store, PROJECT, EMBEDDER, MODEL if kind == RANKED else "", settings), scans)
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    assert len({pick.task for pick in picks}) == len(picks) == sum(not scan.annotated for scan in scans)
    assert picks[0].reason == ranked if kind == RANKED else picks[0].cluster is not None
    found = Ordered(len(scans), kind, strategy, rounded(seconds), rounded(processor), before, memory("VmHWM"))
    print(found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    folder, count, step = sys.argv[1:]
    if step == "fill":
        fill(Path(folder), int(count))
    else:
        print(json.dumps([vars(one) for one in measure(Path(folder), json.loads(step))]))


if __name__ == "__main__":
    main()
