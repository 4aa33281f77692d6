"""How much of a network's speed remains when it embeds PNG files from disk.

Ours: files are read, decoded, resized and embedded as in a worker, while the network computes the previous ones: on a
CPU in threads, on a GPU in processes and with the network as a CUDA graph. Theirs, alternating with ours: the bare
forward pass of the same network, called directly, on ready tensors in memory, in the same batches, with its vectors
converted to NumPy. The ratio is ours / theirs in images per second.

Two networks: a vision transformer of BiomedCLIP's size (ViT-B/16 at 224 pixels), which is the size of the foundation
models in `scanqueue weights list`, and MobileNetV2, a tenth of the work per image and therefore the hard case on a CPU,
where decoding takes time from the network. Both have random weights, because a network's speed does not depend on its
weights, unless SCANQUEUE_WEIGHTS_DIR or ../shared/weights contains a mobilenetv2_100.

"worker" adds a worker's other work on a scan: the copy in the working square, compressed and flushed to disk, and the
records; it is reported, but has no limit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from backend.facts import Scan
from backend.formats.pixels import decode_image
from backend.learning.learner import Learner
from backend.learning.vision_network import Network
from backend.loop.batch import FETCHES, BatchProcessor
from backend.loop.decoding import prepare_all
from backend.records.store import Store
from backend.settings import Settings
from backend.workers.prefetch import ahead
from backend.workers.process_pool import Crashed
from benchmarks.measure import Comparison, alternate, report, summary, timed
from benchmarks.servers import write_scans
from benchmarks.workers import write_weights

LIMIT = 0.9
SIDE = 512
KINDS = 8
LISTED = {"updated_at": "", "annotated": 0, "skipped": 0}
SHARED = Path(__file__).resolve().parents[2] / "shared" / "weights"


def main() -> None:
    parser = argparse.ArgumentParser(description="Embedding PNG files, compared with the bare forward pass.")
    parser.add_argument("--quick", action="store_true", help="fewer images; under a minute on two cores")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    given = parser.parse_args()
    gpu = given.device != "cpu" and torch.cuda.is_available()
    many = 20 if gpu else 1
    plan = {
        "mobilenetv2_100": (many * (64 if given.quick else 256), 3 if given.quick else 7),
        "vit_base_patch16_224": (many * (16 if given.quick else 48), 2 if given.quick else 5),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, found = [], {}
        scans = _scans(folder / "scans", max(count for count, _ in plan.values()))
        for model, (count, repetitions) in plan.items():
            weights = _weights(folder / "weights", model)
            ours, theirs, worker = measure(weights, scans[:count], folder / "data" / model, given.device, repetitions)
            comparison = Comparison(theirs, ours)  # swapped, so that the ratio is one of speeds
            found[model] = comparison.figures()
            seconds = [float(np.median(s)) for s in (theirs, ours, worker)]
            rows.append([model, count, *(count / s for s in seconds), found[model]["ratio"], seconds[0] / seconds[2]])
    _report(rows, found, plan, "cuda" if gpu else "cpu")


def measure(
    weights: Path, files: Sequence[Path], data: Path, device: str, repetitions: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Seconds of ours, of the bare network, and of a worker's complete reading, for all files each time."""
    settings = Settings(
        data_dir=data, embedder=f"timm:local-dir:{weights.name}", weights_dir=weights.parent, device=device
    )
    learner = Learner(settings)
    network = learner.embedder().embedder
    assert isinstance(network, Network)

    def load(file: Path) -> Any:
        return prepare_all([file.read_bytes()], network.prepare)[0]

    decoders = learner.decoders()

    def batches() -> Iterator[list[Any]]:
        """The batches as `BatchProcessor.read` forms them."""
        if decoders is None:
            yield from ahead(load, files, size=network.batch, threads=FETCHES, first=FETCHES)
            return
        read = ahead(Path.read_bytes, files, size=network.batch, threads=FETCHES)
        work = partial(prepare_all, prepare=network.preprocessing.resized)
        for _, prepared in decoders.each(work, read, list, ahead=2 * decoders.jobs):
            assert not isinstance(prepared, Crashed)
            yield prepared

    every = list(batches())
    ready = [network.ready(batch) for batch in every]
    expected = np.concatenate([network.embed_prepared(batch) for batch in every])
    got: list[Any] = []

    def ours() -> float:
        got.clear()

        def run() -> None:
            for batch in batches():
                got.append(network.embed_prepared(batch))

        return timed(run)

    def theirs() -> float:
        return timed(lambda: [network.forward(batch).float().cpu().numpy() for batch in ready])

    found = alternate(ours, theirs, repetitions)
    np.testing.assert_array_equal(np.concatenate(got), expected)
    worker = tuple(_worker(learner, data, files) for _ in range(min(repetitions, 3)))
    return found.ours, found.theirs, worker


def _worker(learner: Learner, data: Path, files: Sequence[Path]) -> float:
    """Seconds of `BatchProcessor.read` on an empty data folder."""
    store = Store(data)
    store.add_project(1)
    scans = [Scan(task, str(file)) for task, file in enumerate(files, start=1)]
    store.put_tasks(1, [{"task": s.task, "image": s.image, **LISTED} for s in scans], "")
    processor = BatchProcessor(_Disk(), store, learner)  # type: ignore[arg-type]
    seconds = timed(lambda: processor.read(1, scans))
    assert len(store.embedded(learner.embedder().name)) == len({f.read_bytes() for f in files})
    store.close()
    shutil.rmtree(data)
    return seconds


class _Disk:
    """Replacement for `Studio`, for scans whose image is a path."""

    def image(self, path: str) -> bytes:
        return Path(path).read_bytes()


def _scans(folder: Path, count: int) -> list[Path]:
    """Distinct PNG files: shifted copies of a few synthetic radiographs, which take a second each."""
    kinds = [decode_image(path.read_bytes()) for path in write_scans(folder / "kinds", min(count, KINDS), SIDE)]
    found = []
    for number in range(count):
        path = folder / f"scan-{number:05d}.png"
        cv2.imwrite(str(path), np.roll(kinds[number % KINDS], (number // KINDS % SIDE, number // SIDE), axis=(0, 1)))
        found.append(path)
    return found


def _weights(folder: Path, model: str) -> Path:
    """The folder of this network: the real weights if available, else random weights."""
    for place in (os.environ.get("SCANQUEUE_WEIGHTS_DIR", ""), str(SHARED)):
        if place and (Path(place) / model / "model.safetensors").is_file():
            return Path(place) / model
    folder.mkdir(parents=True, exist_ok=True)
    return write_weights(folder / model, model)


def _report(
    rows: Sequence[Sequence[object]], found: dict[str, dict[str, float]], plan: dict[str, tuple[int, int]], device: str
) -> None:
    counts = "vit_base_patch16_224"
    met = {model: figures["ratio"] >= LIMIT for model, figures in found.items()}
    report(
        f"Embedding PNG files of {SIDE} x {SIDE} pixels on {device}, images per second",
        ["network", "images", "bare forward pass", "ours", "worker", "ours / bare", "worker / bare"],
        rows,
        summary(
            found[counts],
            unit="of the bare speed",
            compared="PNG files on disk to vectors / forward pass on ready tensors, ViT-B/16",
            sizes={model: {"images": n, "repetitions": r} for model, (n, r) in plan.items()},
            limit=LIMIT,
            met=met[counts],
            light=found["mobilenetv2_100"] | {"met": met["mobilenetv2_100"]},
            device=device,
        ),
        note="; ".join(f"{m}: {f['ratio']} ({f['low']} .. {f['high']})" for m, f in found.items())
        + f"; target: at least {LIMIT}",
    )
    if not met[counts]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
