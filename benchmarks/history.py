"""What years of work cost: the size of the records, and how long a look and the page take with thousands of labels.

A store is filled directly, as the loop fills it: labels in rounds of 10, after each a model and an order of all scans
that are left; every label has the scores of the mask that was shown. Compared with a tenth of the labels: while records
grow with the labels, the bytes for each label stay the same. Embeddings and files are not counted.

`.venv/bin/python -m benchmarks.history` takes about 5 minutes, `--quick` half a minute.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from backend.app import keep_loaded
from backend.facts import MOST_HELD_OUT, VALIDATION_SHARE, Lesson, Stage, version_name
from backend.fingerprints import fingerprint
from backend.learning.averages import as_row, of_scores
from backend.learning.evaluation import LabelScore, Scores
from backend.learning.learner import Learner
from backend.loop.batch import BatchProcessor
from backend.records.rounds import Pick
from backend.records.store import Store
from backend.records.tables import label_table, scan_table, shown_table
from backend.settings import Settings
from backend.web.api import create_api
from backend.web.overview import Overview
from backend.web.pictures import Pictures
from backend.web.status import describe
from benchmarks.look import NOW, PARAMS, PROJECT, StillStudio, digest_of, image_of, median
from benchmarks.measure import report, rounded, summary

LABELS, QUICK, ROUND = 10_000, 1_000, 10
LEFT = 2_000  # scans without a label
LIMIT_BYTES, LIMIT_SECONDS = 20e6, 0.2
LIMIT = 1.2  # bytes for each label, in those with a tenth of the labels
REPEATS = 5
PAGES = ("", "/queue", "/curve", "/models", "/settings")
SETTINGS = {"strategy": "medoids+power-entropy", "alpha": 0.5, "seed": 0, "embedder": "timm:tf_efficientnet_lite0"}


def fill(store: Store, labels: int) -> None:
    """A project with so many labels, and its rounds and models."""
    rng = np.random.default_rng(0)
    store.add_project(PROJECT)
    store.set_project(PROJECT, connected=1, extra_params=PARAMS, cursor=NOW.format(0))
    scans = [
        {"project": PROJECT, "task": task, "image": image_of(task), "updated_at": NOW.format(0)}
        | {"digest": digest_of(task), "height": 512, "width": 512, "stage": int(Stage.ORDERED), "draw": task}
        for task in range(1, labels + LEFT + 1)
    ]
    with store.write() as connection:
        connection.execute(scan_table.insert(), scans)
    lessons: list[Lesson] = []
    for n in range(labels // ROUND + 1):
        version, model = version_name(n), version_name(n) if n else ""
        if n:
            lessons += submit(store, range(ROUND * (n - 1) + 1, ROUND * n + 1), version_name(n - 1), rng)
            put_model(store, version, lessons, rng)
        left = range(len(lessons) + 1, labels + LEFT + 1)
        picks = [Pick(task, "paper", *np.round(rng.random(3), 6).tolist()) for task in left]
        store.put_round(
            PROJECT,
            n=n,
            key=fingerprint(n),
            model=model,
            picks=picks,
            carried=left[:6],
            size=len(picks),
            labels=len(lessons),
            settings=SETTINGS,
        )
        store.mark_published(PROJECT, n)
    store.set_project(PROJECT, active=version_name(labels // ROUND))


def submit(store: Store, tasks: range, version: str, rng: np.random.Generator) -> list[Lesson]:
    """The annotations of these tasks, and how the masks that they were opened with agree."""
    read, shown, lessons = [], [], []
    for task in tasks:
        mask, key = fingerprint("mask", task), fingerprint("key", task)
        read.append(
            {"project": PROJECT, "task": task, "annotation": task, "key": key, "mask": mask, "read_at": NOW.format(0)}
            | {"config": fingerprint("config"), "shown_version": version, "lead_time": 31.5, "completed_by": task % 3}
            | {"empty": 0, "known": json.dumps(["Lung"])}
        )
        row = as_row(scores(rng), ["Lung"])
        shown.append(
            {"project": PROJECT, "task": task, "version": version, "label": key, "shown_empty": 0, "label_empty": 0}
            | {name: row[name] for name in ("dice", "hd", "hd95", "unit")}
            | {"per_label": json.dumps(row["per_label"])}
        )
        lessons.append(Lesson(task, digest_of(task), mask, fingerprint("patient", task // 4)))
    with store.write() as connection:
        connection.execute(label_table.insert(), read)
        connection.execute(shown_table.insert(), shown)
        here = (scan_table.c.project == PROJECT, scan_table.c.task.in_(list(tasks)))
        connection.execute(scan_table.update().where(*here).values(annotated=1))
    return lessons


def scores(rng: np.random.Generator) -> Scores:
    dice, area, hd95 = rng.random(3).tolist()
    return Scores({1: LabelScore(True, True, area, dice, 60 * hd95, 40 * hd95)}, "px")


def put_model(store: Store, version: str, lessons: list[Lesson], rng: np.random.Generator) -> None:
    held = [scores(rng) for _ in range(min(MOST_HELD_OUT, round(VALIDATION_SHARE * len(lessons))))]
    history = [
        {"step": step, "loss": float(rng.random()), "learning_rate": 1e-3, "dice": float(rng.random()), "seconds": 9.5}
        for step in range(50, 401, 50)
    ]
    details: dict[str, Any] = {"labels": len(lessons), "validation": len(held), "recipe": fingerprint("recipe")}
    details |= {"history": history, "judged_step": 200, "seconds": 130.5, "warning": "", "judged": fingerprint(version)}
    details["settings"] = Learner(Settings(device="cpu", image_size=160)).describe_training(0, 160)
    details["champion"] = {"version": "", **of_scores(held, ["Lung"])}
    details["held_out"] = [
        {"task": one.task, **as_row(score, ["Lung"])} for one, score in zip(lessons, held, strict=False)
    ]
    model: dict[str, Any] = {
        "version": version,
        "fingerprint": fingerprint(version),
        "labels": ["Lung"],
        "trained_on": lessons,
    }
    model |= {"accepted": 1, "remark": "", "validation": of_scores(held, ["Lung"]), "details": details}
    store.put_model(PROJECT, model, active="", training_requests=0)


def measure(labels: int) -> tuple[float, dict[str, float]]:
    """Bytes of the records for each label, and median seconds of what people and the loop ask for."""
    with TemporaryDirectory() as folder, closing(Store(Path(folder))) as store:
        fill(store, labels)
        with store.write() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        size = (Path(folder) / "records.sqlite").stat().st_size
        settings = Settings(data_dir=Path(folder), device="cpu", embedder="pixels")
        studio: Any = StillStudio(labels + LEFT)
        learner = Learner(settings)
        overview = Overview(store, studio, Pictures(store, BatchProcessor(studio, store, learner)), lambda _: [])
        keep_loaded()
        client = TestClient(create_api(settings, store, lambda *_: None, lambda *_: [], overview=overview))

        def get(page: str) -> Callable[[], object]:
            return lambda: client.get(f"/projects/{PROJECT}{page}").raise_for_status()

        asked: dict[str, Callable[[], Any]] = {"status": lambda: describe(store, PROJECT)}
        asked |= {f"page {page or '/'}": get(page) for page in PAGES}
        asked["newest model"] = lambda: store.model(PROJECT, version_name(labels // ROUND))
        return size / labels, {name: median(call for _ in range(REPEATS)) for name, call in asked.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} labels instead of {LABELS}")
    labels = QUICK if parser.parse_args().quick else LABELS
    few, few_seconds = measure(labels // 10)
    many, seconds = measure(labels)
    ratio, size = rounded(many / few), many * labels
    met = ratio <= LIMIT and size <= LIMIT_BYTES and max(seconds.values()) <= LIMIT_SECONDS
    report(
        f"Median of {REPEATS}",
        ("what", f"{labels // 10:,} labels", f"{labels:,} labels"),
        [
            ["records, MB", few * labels / 10 / 1e6, size / 1e6],
            ["bytes for each label", few, many],
            *([f"{name}, s", few_seconds[name], value] for name, value in seconds.items()),
        ],
        summary(
            {"ratio": ratio, "low": ratio, "high": ratio},
            unit="bytes for each label",
            compared="the same with a tenth of the labels",
            sizes={"labels": labels, "models": labels // ROUND},
            limit=LIMIT,
            met=met,
        )
        | {"megabytes": rounded(size / 1e6), "seconds": {name: rounded(value) for name, value in seconds.items()}},
    )
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
