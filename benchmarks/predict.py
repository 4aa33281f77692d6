"""How long an annotator waits when Label Studio requests one mask, compared with the network alone.

Ours: `POST /predict` for one scan of 1024 x 1024 pixels, over HTTP, to the real service, with the model loaded:
once for a scan that the store knows but has no mask for, once for a scan that it has never seen and fetches from
Label Studio. Theirs, alternating with ours: the bare forward pass of the same network on a ready tensor, and
label_studio_sdk's own `brush.mask2rle` of the same mask. Both use the same number of threads: one by default,
because two threads wait for each other whenever another program uses a core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from label_studio_sdk.converter import brush

from backend.formats.pixels import decode_image, letterbox
from backend.learning.segmenters import Segmenter, as_tensor, content_mask, standardised
from backend.records.store import Store
from benchmarks.measure import Comparison, alternate, report, rounded, spread, summary, timed
from benchmarks.servers import CONFIG, Service, annotate, servers, write_scans

SIDE = 1024
LIMIT = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description="How long /predict takes, compared with the bare network.")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--threads", type=int, default=1, help="torch threads, for both methods")
    given = parser.parse_args()
    labelled, steps, repetitions = (2, 4, 10) if given.quick else (8, 60, 60)
    torch.set_num_threads(given.threads)
    with servers(threads=given.threads, TRAINING_STEPS=str(steps)) as (studio, service, folder):
        scans = write_scans(folder / "scans", labelled + 4, SIDE)
        project = studio.create_project("predict", CONFIG)
        elsewhere = studio.create_project("never connected", CONFIG)
        tasks = studio.import_files(project, list(scans))
        for task, mask in list(zip(tasks, scans.values(), strict=True))[:labelled]:
            annotate(studio, project, task, mask)
        service.connect(studio, project, cold_start_size=labelled, round_size=2, queue_depth=2)
        found = service.wait(project, lambda s: s["model"] and s["round"] == 1 and not s["job"])
        known = studio.get(f"/api/tasks/{_unpublished(tasks[labelled:], found['queue'])}")
        (there,) = studio.import_files(elsewhere, [next(iter(scans))])
        unseen = studio.get(f"/api/tasks/{there}")

        store = Store(folder / "scanqueue")
        stored = next(m for m in store.models(project) if m["version"] == found["model"])
        segmenter = Segmenter.load(store.path("models", stored["fingerprint"]))
        published = studio.get(f"/api/tasks/{found['queue'][0]}")
        cases = {}
        for name, task in (("known to the store", known), ("never seen", unseen)):
            image = studio.browser.get(task["data"]["image"]).content
            cases[name] = _measure(service, project, task, segmenter, image, repetitions)
        drawn = _asking(service, project, published)
        drawn()
        ready = [timed(drawn) for _ in range(repetitions)]
        size = segmenter.spec.image_size

    rows = []
    details: dict[str, Any] = {}
    for name, comparison in cases.items():
        figures = comparison.figures()
        ours, theirs = spread(comparison.ours), spread(comparison.theirs)
        rows.append(
            [name, ours["median_ms"], theirs["median_ms"], figures["ratio"], f"{figures['low']} .. {figures['high']}"]
        )
        details[name] = {**figures, "ours": ours, "theirs": theirs}
    rows.append(["mask already stored", spread(ready)["median_ms"], "", "", ""])
    figures = cases["known to the store"].figures()
    met = figures["ratio"] <= LIMIT
    report(
        f"/predict, one scan of {SIDE} x {SIDE} pixels",
        ["scan", "/predict, ms", "network + mask2rle, ms", "ratio", "10 % .. 90 %"],
        rows,
        summary(
            figures,
            unit="time of /predict / time of the bare network and mask2rle",
            compared="POST /predict over HTTP, scan known to the store / the same smp network's forward pass "
            "on a ready tensor plus label_studio_sdk brush.mask2rle of the same mask",
            sizes={"scan": [SIDE, SIDE], "network": [size, size], "threads": given.threads, "repetitions": repetitions},
            limit=LIMIT,
            met=met,
            cases=details,
            mask_stored_already_ms=rounded(spread(ready)["median_ms"]),
        ),
        note=f"Scan known to the store: {figures['ratio']} times the bare network; target: at most {LIMIT}.",
    )
    if not met:
        raise SystemExit(1)


def _unpublished(tasks: list[int], queue: list[int]) -> int:
    """A scan of the pool whose mask was not drawn for the queue."""
    return next(task for task in tasks if task not in queue)


def _asking(service: Service, project: int, task: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    body = {
        "tasks": [task | {"predictions": [], "annotations": []}],
        "project": f"{project}.{int(time.time())}",
        "label_config": CONFIG,
        "params": {"login": None, "password": None, "context": None},
    }

    def ask() -> dict[str, Any]:
        response = service.http.post("/predict", json=body)
        (item,) = response.raise_for_status().json()["results"]
        if not item["result"]:
            raise RuntimeError(f"/predict drew nothing for task {task['id']}: {str(item)[:200]}")
        return dict(item)

    return ask


def _measure(
    service: Service, project: int, task: dict[str, Any], segmenter: Segmenter, image: bytes, repetitions: int
) -> Comparison:
    ask = _asking(service, project, task)
    (region,) = ask()["result"]
    drawn = np.reshape(brush.decode_rle(region["value"]["rle"]), (SIDE, SIDE, 4))[:, :, 3]
    mask = np.ascontiguousarray(drawn)
    box = letterbox(decode_image(image), segmenter.spec.image_size)
    with torch.inference_mode():
        tensor = standardised(as_tensor([box], segmenter.spec), content_mask([box]))
        tensor = tensor.contiguous(memory_format=torch.channels_last)
        wanted = segmenter.network(tensor).argmax(dim=1)[0].numpy().astype(np.uint8) * 255
    same = cv2.resize(wanted[box.content], (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    if ((same > 0) == (mask > 0)).mean() < 0.95:
        raise RuntimeError("/predict and the bare network do not draw the same mask")

    def bare() -> None:
        with torch.inference_mode():
            segmenter.network(tensor)
        brush.mask2rle(mask)  # type: ignore[no-untyped-call]

    return alternate(lambda: timed(ask), lambda: timed(bare), repetitions, warmup=3)


if __name__ == "__main__":
    main()
