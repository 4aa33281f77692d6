"""How long an annotator waits for the answer to a click, on the real service, also while it trains.

`POST /predict` with the prompts of a smart tool, over HTTP, for scans of 512 and 1,024 pixels. Each scan gets clicks
one after the other, as from a person; the first click on a scan also fetches and decodes it, and is reported apart.
Before the first model, the shortest paths answer; then, where it was better on held-out scans, the network for clicks.
While the second model is trained, the same clicks are asked again. Compared: clicks during the training with clicks
before it.

`.venv/bin/python -m benchmarks.click_latency`; about six minutes, one with --quick.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backend.demo.label_studio import LabelStudio
from benchmarks.measure import report, rounded, summary, timed
from benchmarks.servers import CONFIG, Service, annotate, servers, write_scans

SIZES = (512, 1024)
EACH, CLICKS = 4, 6  # scans of each size, clicks on each
LABELLED = 10
WARM, TRAINING = 0.5, 1.0  # seconds, 95th percentile
SMART = '<KeyPointLabels name="click" toName="image" smart="true"><Label value="Lung"/></KeyPointLabels></View>'


def prompt(random: np.random.Generator) -> dict[str, Any]:
    x, y = random.uniform(20, 80, 2)
    value = {"x": float(x), "y": float(y), "width": 0.4, "keypointlabels": ["Lung"]}
    return {"type": "keypointlabels", "from_name": "click", "to_name": "image", "is_positive": True, "value": value}


class Person:
    """Clicks on scans that are not labelled."""

    def __init__(self, service: Service, studio: LabelStudio, project: int, tasks: Sequence[int]) -> None:
        self.service, self.project = service, project
        self.tasks = [studio.get(f"/api/tasks/{task}") for task in tasks]

    def ask(self, task: dict[str, Any], prompts: Sequence[dict[str, Any]]) -> None:
        body = {
            "tasks": [task | {"annotations": []}],
            "project": f"{self.project}.{int(time.time())}",
            "label_config": CONFIG.replace("</View>", SMART),
            "params": {"login": None, "password": None, "context": {"result": list(prompts)}},
        }
        (item,) = self.service.http.post("/predict", json=body).raise_for_status().json()["results"]
        if not item["result"]:
            raise RuntimeError(f"a click on task {task['id']} got no answer")

    def click(self, seed: int) -> tuple[list[float], list[float]]:
        """Seconds of the first click on each scan, and of the others."""
        first: list[float] = []
        others: list[float] = []
        for task in self.tasks:
            random = np.random.default_rng([seed, task["id"]])
            prompts: list[dict[str, Any]] = []
            for _ in range(CLICKS):
                prompts.append(prompt(random))
                seconds = timed(lambda task=task, prompts=prompts: self.ask(task, prompts))  # type: ignore[misc]
                (first if len(prompts) == 1 else others).append(seconds)
        return first, others


def measured(studio: LabelStudio, service: Service, folder: Path) -> tuple[dict[str, list[Any]], bool]:
    """By size, name and seconds of each series; whether the network answers."""
    project = studio.create_project("clicks", CONFIG.replace("</View>", SMART))
    scans: dict[int, Any] = {}
    open_: dict[int, list[int]] = {}
    for size in SIZES:
        made = write_scans(folder / f"scans-{size}", LABELLED + EACH, size)
        tasks = studio.import_files(project, list(made))
        scans |= dict(zip(tasks[:LABELLED], list(made.values())[:LABELLED], strict=True))
        open_[size] = tasks[LABELLED:]
    waiting = list(scans)
    service.connect(studio, project, cold_start_size=LABELLED, round_size=len(scans) - LABELLED, queue_depth=4)
    service.wait(project, lambda s: bool(s["queue"]))
    people = {size: Person(service, studio, project, tasks) for size, tasks in open_.items()}
    found: dict[str, list[Any]] = {}
    for size, person in people.items():
        first, others = person.click(0)
        found[f"{size} pixels, shortest paths"] = [first, others]
    for task in waiting[:LABELLED]:
        annotate(studio, project, task, scans[task])
    service.wait(project, lambda s: s["round"] == 1 and not s["job"], seconds=1200)
    compared = service.http.get(f"/api/projects/{project}/rounds").json()["models"][-1]["clicks"] or {}
    network = compared.get("network", 0) >= compared.get("geodesic", 1)
    for size, person in people.items():
        person.click(1)
        found[f"{size} pixels, after the training"] = list(person.click(2))
    for task in waiting[LABELLED:]:
        annotate(studio, project, task, scans[task])
    service.wait(project, lambda s: s["phase"] == "training" and (s["job"] or {"done": 0})["done"] > 0)
    series: dict[int, list[list[float]]] = {size: [[], []] for size in SIZES}
    seed = 3
    while service.status(project)["phase"] == "training":
        for size, person in people.items():
            for kept, seconds in zip(series[size], person.click(seed), strict=True):
                kept += seconds
        seed += 1
    for size in SIZES:
        found[f"{size} pixels, during a training"] = series[size]
    return found, network


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="trainings of 60 steps")
    steps = "60" if parser.parse_args().quick else "0"
    with servers(TRAINING_STEPS=steps) as (studio, service, folder):
        found, network = measured(studio, service, folder)
    rows: list[list[object]] = []
    warm: list[tuple[float, float]] = []
    busy: list[tuple[float, float]] = []
    for name, (first, others) in found.items():
        p50, p95 = (float(np.percentile(others, q)) for q in (50, 95))
        rows.append([name, len(others), p50, p95, float(np.median(first))])
        (busy if "during" in name else warm).append((p50, p95))
    slow, slow_busy = max(p95 for _, p95 in warm), max(p95 for _, p95 in busy)
    ratios = [during / before for (during, _), (before, _) in zip(busy, warm[-len(busy) :], strict=True)]
    met = slow <= WARM and slow_busy <= TRAINING
    report(
        "Seconds from a click to its answer",
        ("scans", "clicks", "median", "95th percentile", "first click on a scan, median"),
        rows,
        summary(
            {"ratio": rounded(np.mean(ratios)), "low": rounded(min(ratios)), "high": rounded(max(ratios))},
            unit="median seconds of a click during a training / after one",
            compared="the same clicks while nothing trains",
            sizes={"pixels": list(SIZES), "clicks": CLICKS, "scans": EACH},
            limit=TRAINING,
            met=met,
            network=network,
            seconds={"p95": rounded(slow), "p95_training": rounded(slow_busy)},
        )
        | {"interval": "smallest and largest of the sizes"},
        note=f"p95 {slow:.2f} s (target {WARM}), during a training {slow_busy:.2f} s (target {TRAINING}); "
        f"{'the network' if network else 'the shortest paths'} answered after the training.",
    )
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
