"""How much disk space and memory an installation needs, and how long its first queues take.

Ours: bytes in scanqueue's data folder after the first training. Compared with: bytes of the uploaded scans. The
settings are the defaults of a machine without a GPU; the embedder is a vision transformer of BiomedCLIP's size
(ViT-B/16 at 224 pixels) with random weights, because neither time nor memory depends on the weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.measure import report, rounded, summary
from benchmarks.servers import CONFIG, Service, annotate, label_studio, write_scans
from benchmarks.workers import write_weights

SIDE = 1024
LABELLED = 20
RECORDS = ("records.sqlite", "records.sqlite-wal", "records.sqlite-shm", "jobs.sqlite")


def main() -> None:
    parser = argparse.ArgumentParser(description="Disk space, memory and first queues of an installation.")
    parser.add_argument("--quick", action="store_true", help="a smaller network, pool and training")
    given = parser.parse_args()
    model, count = ("vit_small_patch16_224", 40) if given.quick else ("vit_base_patch16_224", 100)
    with label_studio() as (studio, folder):
        settings = {"SCANQUEUE_EMBEDDER": f"timm:local-dir:{write_weights(folder / 'weights', model)}"}
        if given.quick:
            settings["SCANQUEUE_TRAINING_STEPS"] = "20"
        scans = write_scans(folder / "scans", count, SIDE)
        uploaded = sum(path.stat().st_size for path in scans)
        project = studio.create_project("sizing", CONFIG)
        tasks = studio.import_files(project, list(scans))
        data = folder / "scanqueue"
        service = Service(studio, data, settings)
        try:
            began = time.perf_counter()
            service.connect(studio, project)
            service.wait(project, lambda s: s["round"] == 0, seconds=3600)
            first = time.perf_counter() - began
            for task, mask in list(zip(tasks, scans.values(), strict=True))[:LABELLED]:
                annotate(studio, project, task, mask)
            began = time.perf_counter()
            service.wait(
                project, lambda s: s["round"] == 1 and not s["job"] and (data / "masks").exists(), seconds=3600
            )
            trained = time.perf_counter() - began
            memory = _peaks(service.pid)
        finally:
            service.stop()
        size = {kind: _bytes(data / kind) for kind in ("pixels", "models", "labels", "masks", "maps")}
        size["records"] = sum((data / name).stat().st_size for name in RECORDS if (data / name).exists())
    whole = sum(size.values())
    ratio = rounded(whole / uploaded)
    rows: list[list[object]] = [
        ["per scan: uploaded file", uploaded / count / 1e6, "MB"],
        ["per scan: pixels for the model", size["pixels"] / count / 1e6, "MB"],
        ["per scan: records and map", (size["records"] + size["maps"]) / count / 1e6, "MB"],
        ["per label: mask", size["labels"] / LABELLED / 1e6, "MB"],
        ["per round: masks drawn for the queue", size["masks"] / 1e6, "MB"],
        ["per model: checkpoint", size["models"] / 1e6, "MB"],
        *[[f"peak memory of the {name}", peak / 1e6, "MB"] for name, peak in memory.items()],
        [f"first queue, {count} scans", first, "s"],
        [f"second queue, {LABELLED} labels: training, scoring, drawing", trained, "s"],
    ]
    report(
        f"{count} scans of {SIDE} x {SIDE} pixels, {model}",
        ["", "", "unit"],
        rows,
        summary(
            {"ratio": ratio, "low": ratio, "high": ratio},
            unit="bytes in the data folder per byte of the scans",
            compared="scanqueue's data folder after one training / the uploaded scans",
            sizes={"scans": count, "side": SIDE, "embedder": model, "labels": LABELLED},
            megabytes={kind: rounded(n / 1e6) for kind, n in size.items()},
            peak_megabytes={name: rounded(n / 1e6) for name, n in memory.items()},
            seconds={"first_queue": rounded(first), "second_queue": rounded(trained)},
        ),
    )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _peaks(server: int) -> dict[str, float]:
    """Peak memory of the server and of its worker, in bytes."""
    threads = Path(f"/proc/{server}/task").glob("*/children")
    workers = [int(pid) for file in threads for pid in file.read_text().split()]
    return {"server": _peak(server), "worker": max(map(_peak, workers))}


def _peak(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


if __name__ == "__main__":
    main()
