"""Does the order save labels? `scanqueue simulate` on two public data sets, against random, and the table of it.

Montgomery chest radiographs (138, lungs) and BUSI breast ultrasound (647, lesions; near-duplicates never parted),
with the embedders `pixels` and MobileNetV2 trained on ImageNet, for the cold start alone and for the whole loop. The
networks are small and the scans are 64 x 64 pixels, so that hundreds of trainings fit into an hour or two on two
cores: what is compared are the strategies, not how good a model can get.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn

from backend.simulate.runs import Comparison, run

SHARED = Path(__file__).resolve().parents[2] / "shared"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100"
EMBEDDERS = {"pixels": "pixels", "mobilenetv2": f"timm:local-dir:{WEIGHTS}"}
BUDGETS = (5, 10, 20, 40)
SIDE = 64
STEPS = 200
# What is compared, by moment: (cold start only, strategies, embedders). Random needs no embedder.
ARMS = {
    "cold start": (True, ("random", "paper", "facility", "typiclust", "alps"), ("mobilenetv2",)),
}


def comparison(data: str, folder: Path, moment: str, embedder: str, seeds: int) -> Comparison:
    """One run of simulate."""
    only, strategies, _ = ARMS[moment]
    root = SHARED / "data" / data
    groups = (f"{root / 'near_duplicates.csv'}:name_a,name_b",) if data.startswith("busi") else ()
    spacing = f"{spacing_table(root, folder)}:row_mm,column_mm" if data.startswith("montgomery") else ""
    return Comparison(
        root / "images",
        root / "masks",
        strategies,
        BUDGETS,
        tuple(range(seeds)),
        embedder=EMBEDDERS[embedder],
        cold_start_only=only,
        groups=groups,
        spacing=spacing,
        encoder=f"tu-mobilenetv2_100@{WEIGHTS / 'model.safetensors'}",
        image_size=SIDE,
        training_steps=STEPS,
    )


def spacing_table(root: Path, folder: Path) -> Path:
    """Millimetres of a delivered pixel; where the data set's orientation is unknown, the mean of the two there are."""
    with open(root / "meta.csv", newline="") as opened:
        rows = list(csv.DictReader(opened))
    known = [
        (float(r["inferred_spacing_y_mm"]), float(r["inferred_spacing_x_mm"]))
        for r in rows
        if r["inferred_spacing_y_mm"]
    ]
    middle = sum(sorted({size for pair in known for size in pair})) / 2
    file = folder / "spacing.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("name", "row_mm", "column_mm"))
        for r in rows:
            row, column = r["inferred_spacing_y_mm"], r["inferred_spacing_x_mm"]
            writer.writerow((r["name"], row or middle, column or middle))
    return file


def runs(folder: Path, seeds: int) -> Iterator[tuple[str, str, str, Path, Comparison]]:
    """(data set, moment, embedder, folder, comparison) of everything that is run."""
    for moment, (_, _, embedders) in ARMS.items():
        for data in ("montgomery_cxr", "busi_ultrasound"):
            for embedder in embedders:
                here = folder / f"{data}-{moment.replace(' ', '-')}-{embedder}"
                yield data, moment, embedder, here, comparison(data, folder, moment, embedder, seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Strategies against random on two data sets.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("selection-data"))
    given = parser.parse_args()
    with Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}")) as bar:
        for data, moment, embedder, here, compared in runs(given.out, given.seeds):
            task = bar.add_task(f"{data}, {moment}, {embedder}", total=None, left="")

            def progress(done: int, total: int, left: float, task: object = task) -> None:
                bar.update(task, completed=done, total=total, left=f"{left / 60:.0f} min left" if left == left else "")  # type: ignore[arg-type]

            run(compared, here, processes=given.jobs, cells=given.out / "cells", progress=progress)


if __name__ == "__main__":
    main()
