"""How soon a project's map is usable in a browser, and how many bytes are transferred for it.

Ours: `scanqueue serve` with a store of that many scans, and its map view in headless Chromium. Theirs, alternating with
ours in the same browser: the obvious alternative, plotly's own page of the same points (`Figure.write_html` with one
scattergl trace, script included), sent gzip-compressed by the same kind of server (uvicorn).

Every visit starts with an empty cache and begins with the request for the page. The same script watches both pages: the
map counts as interactive once the page has answered the constantly moving mouse with details of the scan under the
pointer (our panel, plotly's label) and the graphics card, or its software replacement, has drawn all markers.
Without a graphics card, Chromium renders WebGL on the processor, which takes part of the time in both pages.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import plotly.graph_objects as go
import uvicorn
from numpy.typing import NDArray
from playwright.sync_api import Browser, sync_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backend.demo.child import Child, free_port
from backend.facts import Lesson
from backend.records.maps import put_map
from backend.records.rounds import Pick
from backend.records.store import Store
from backend.records.tables import label_table, scan_table
from benchmarks.measure import Comparison, alternate, report, rounded, summary
from benchmarks.pools import made_map

MANY, FEW = 100_000, 500
PAINT, INTERACTIVE = 1.0, 3.0  # limits in seconds, with MANY scans
MANY_BYTES, FEW_BYTES = 4_000_000, 2_000_000  # limits, as transferred
PROJECT = 4
EMBEDDER, MODEL = "pixels", "benchmark"
CLUSTERS, LABELLED, RANKED = 12, 0.02, 2000
PATIENCE = 120  # timeout of one visit, in seconds
VIEWPORT = (1366, 768)
EVERY = 40  # milliseconds between two mouse moves
ARGUMENTS = [
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--use-angle=swiftshader",  # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
]
WATCH = """
window.seen = {};
(() => {
  const look = () => {
    if (!document.querySelector(ANSWER)) { requestAnimationFrame(look); return; }
    for (const canvas of document.querySelectorAll("canvas")) {
      const gl = canvas.getContext("webgl");
      if (gl) gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); // waits until all is drawn
    }
    window.seen.interactive = performance.now();
  };
  requestAnimationFrame(look);
})();
"""
PAINTED = 'performance.getEntriesByName("first-contentful-paint").map((entry) => entry.startTime)[0]'


@dataclass(frozen=True)
class Page:
    """One of the compared pages.

    plot, answer  CSS selectors of the map, and of the element that appears when the pointer is over a scan
    """

    name: str
    address: str
    plot: str
    answer: str


@dataclass(frozen=True)
class Visit:
    """Seconds from the request to the first paint and to the interactive map; bytes as transferred."""

    painted: float
    interactive: float
    sent: int


def main() -> None:
    parser = argparse.ArgumentParser(description="The map of 100,000 and of 500 scans, compared with plotly's page.")
    parser.add_argument("--quick", action="store_true", help="one counted visit of each page; about a minute")
    parser.add_argument("--serve", nargs=2, metavar=("FILE", "PORT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        _serve(Path(given.serve[0]), int(given.serve[1]))
        return
    repetitions = 1 if given.quick else 7
    visits: dict[tuple[str, int], list[Visit]] = {}
    ratios: dict[int, Comparison] = {}
    with TemporaryDirectory(prefix="scanqueue-benchmark-") as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), headless=True, args=ARGUMENTS)
        for count in (MANY, FEW):
            with pages(Path(scratch) / str(count), count) as (ours, theirs):

                def seconds(page: Page, count: int = count) -> float:
                    seen = visit(browser, page)
                    visits.setdefault((page.name, count), []).append(seen)
                    return seen.interactive

                ratios[count] = alternate(lambda: seconds(ours), lambda: seconds(theirs), repetitions)
        browser.close()
    _report(visits, ratios, repetitions)


def visit(browser: Browser, page: Page) -> Visit:
    """Open the page with an empty cache and move the mouse over its map until the page reacts."""
    context = browser.new_context(viewport={"width": VIEWPORT[0], "height": VIEWPORT[1]})
    try:
        context.add_init_script(WATCH.replace("ANSWER", json.dumps(page.answer)))
        tab = context.new_page()
        sent = 0

        def count(event: Mapping[str, Any]) -> None:
            nonlocal sent
            sent += int(event["encodedDataLength"])

        wire = context.new_cdp_session(tab)
        wire.on("Network.loadingFinished", count)
        wire.send("Network.enable")
        tab.goto(page.address, wait_until="commit")
        plot = tab.locator(page.plot).first
        plot.wait_for()
        box = plot.bounding_box()
        assert box is not None
        until = time.monotonic() + PATIENCE
        number = 0
        while not tab.evaluate("window.seen.interactive || 0"):
            if time.monotonic() > until:
                raise TimeoutError(f"{page.name} did not react to the mouse within {PATIENCE} s")
            across, down = (number * 0.7549) % 1, (number * 0.5698) % 1  # spread over the middle, never in sequence
            tab.mouse.move(
                box["x"] + box["width"] * (0.2 + 0.6 * across), box["y"] + box["height"] * (0.2 + 0.6 * down)
            )
            number += 1
            tab.wait_for_timeout(EVERY)
        interactive = float(tab.evaluate("window.seen.interactive")) / 1000
        tab.wait_for_load_state("networkidle")
        return Visit(float(tab.evaluate(PAINTED)) / 1000, interactive, sent)
    finally:
        context.close()


# -- the pages ------------------------------------------------------------------------------------


@contextmanager
def pages(folder: Path, count: int) -> Iterator[tuple[Page, Page]]:
    """Our map of `count` scans and plotly's own page of the same scans, both served."""
    folder.mkdir()
    data = folder / "data"
    points = fill(Store(data), count)
    file = folder / "plain.html.gz"
    file.write_bytes(gzip.compress(plain(points).encode(), 6))
    ports = free_port(), free_port()
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SCANQUEUE_")}
    environment = {**inherited, "SCANQUEUE_DATA_DIR": str(data), "SCANQUEUE_PORT": str(ports[0])}
    commands = [
        ["-m", "backend.cli", "serve", "--no-worker"],
        ["-m", "benchmarks.page", "--serve", str(file), str(ports[1])],
    ]
    with ExitStack() as stack:
        for command, port in zip(commands, ports, strict=True):
            name = command[1].rpartition(".")[2]
            child = Child(name, [sys.executable, *command], env=environment, log=folder / f"{name}.log")
            stack.callback(child.stop, grace=20)
            child.wait_healthy(f"http://127.0.0.1:{port}/health", timeout=180)
        yield (
            Page("ours", f"http://127.0.0.1:{ports[0]}/projects/{PROJECT}/map", "#map-plot", "#map-panel[data-task]"),
            Page("write_html", f"http://127.0.0.1:{ports[1]}/", ".plotly-graph-div", ".hoverlayer .hovertext"),
        )


@dataclass(frozen=True)
class Points:
    """Scans on a map: positions (N, 2), clusters from 0, entropies in 0..1; task IDs start at 1."""

    xy: NDArray[np.float64]
    cluster: NDArray[np.int64]
    entropy: NDArray[np.float64]


def fill(store: Store, count: int) -> Points:
    """Write a project of `count` scans in the state that `reconcile` leaves in the second round."""
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, CLUSTERS, count)
    xy = rng.normal(0, 40, (CLUSTERS, 2))[cluster] + rng.normal(0, 8, (count, 2))
    points = Points(xy, cluster, rng.beta(2, 5, count))
    labelled = rng.random(count) < LABELLED
    digests = [f"{task:064x}" for task in range(1, count + 1)]
    store.add_project(PROJECT)
    store.set_project(PROJECT, title="Benchmark", embedder=EMBEDDER, active="scanqueue-r1", phase="active")
    scans = [
        _scan(task, digest, bool(done)) for task, (digest, done) in enumerate(zip(digests, labelled, strict=True), 1)
    ]
    labels = [_label(s["task"], s["updated_at"]) for s in scans if s["annotated"]]
    with store.write() as connection:
        store.put_rows(connection, scan_table, scans, keep=False)
        store.put_rows(connection, label_table, labels, keep=False)
    put_map(store, PROJECT, EMBEDDER, made_map(digests, xy, 64))
    store.put_uncertainty(
        MODEL, {d: {"image": round(float(e), 4)} for d, e in zip(digests, points.entropy, strict=True)}
    )
    lessons = [Lesson(s["task"], s["digest"], s["digest"]) for s in scans if s["annotated"]]
    store.put_model(PROJECT, _model(lessons), active="scanqueue-r1", training_requests=0)
    for n, picks in enumerate((_cold(points, rng), _ranked(points, labelled, rng))):
        model = "scanqueue-r1" if n else ""
        drawn = len(labels) if n else 0
        store.put_round(PROJECT, n=n, key=str(n), model=model, picks=picks, carried=(), size=len(picks), labels=drawn)
        store.mark_published(PROJECT, n)
    return points


def _scan(task: int, digest: str, labelled: bool) -> dict[str, Any]:
    return {
        "project": PROJECT,
        "task": task,
        "image": f"/data/upload/{PROJECT}/{task}.png",
        "updated_at": "2026-11-24T00:00:00Z",
        "annotated": int(labelled),
        "skipped": 0,
        "digest": digest,
        "height": 512,
        "width": 512,
        "problem": "",
        "problem_at": 0.0,
        "stratum": "",
    }


def _label(task: int, read_at: str) -> dict[str, Any]:
    return {
        "project": PROJECT,
        "task": task,
        "annotation": task,
        "key": str(task),
        "mask": "",
        "read_at": read_at,
        "config": "",
        "shown_version": "",
        "lead_time": 60.0,
        "completed_by": 1,
        "problem": "",
        "remark": "",
    }


def _model(trained_on: Sequence[Lesson]) -> dict[str, Any]:
    return {
        "version": "scanqueue-r1",
        "fingerprint": MODEL,
        "labels": ["Lung"],
        "trained_on": list(trained_on),
        "accepted": 1,
        "validation": {"dice": 0.9, "hd95": 5.0, "hd": 9.0, "unit": "px", "n": 10},
        "details": {},
    }


def _cold(points: Points, rng: np.random.Generator) -> list[Pick]:
    """All scans, a medoid of each cluster first."""
    rows = rng.permutation(len(points.xy))
    kinds = ["medoid"] * CLUSTERS + ["farthest"] * len(rows)
    return [Pick(int(r) + 1, kind, cluster=int(points.cluster[r])) for r, kind in zip(rows, kinds, strict=False)]


def _ranked(points: Points, labelled: NDArray[np.bool_], rng: np.random.Generator) -> list[Pick]:
    """The unlabelled scans: the first ones with all terms of their score, the others ranked by entropy."""
    rows = np.flatnonzero(~labelled)
    rows = rows[np.argsort(-points.entropy[rows])]
    distance = rng.random(len(rows))
    picks = []
    for place, (row, far) in enumerate(zip(rows, distance, strict=True)):
        entropy = round(float(points.entropy[row]), 4)
        if place < RANKED:
            score = round(0.4 * entropy + 0.6 * float(far), 4)
            picks.append(Pick(int(row) + 1, "paper", score, entropy, round(float(far), 4)))
        else:
            picks.append(Pick(int(row) + 1, "entropy", entropy=entropy))
    return picks


def plain(points: Points) -> str:
    """The same points as plotly's own page: one trace, a colour for each cluster, the details in the label."""
    facts = [f"task {task}, entropy {entropy:.4f}" for task, entropy in enumerate(points.entropy, 1)]
    marker = {"color": points.cluster, "size": 4}
    figure = go.Figure(
        go.Scattergl(x=points.xy[:, 0].round(3), y=points.xy[:, 1].round(3), mode="markers", marker=marker, text=facts)
    )
    return str(figure.to_html(include_plotlyjs=True))


def _serve(file: Path, port: int) -> None:
    """Answer every request for "/" with the compressed file, on the same server as ours (uvicorn)."""
    content = file.read_bytes()

    async def page(_: Request) -> Response:
        return Response(content, media_type="text/html", headers={"Content-Encoding": "gzip"})

    async def health(_: Request) -> Response:
        return Response("up")

    app = Starlette(routes=[Route("/", page), Route("/health", health)])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def _chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise SystemExit("Chromium is not installed; on Debian, run `apt-get install chromium`.")


# -- report ---------------------------------------------------------------------------------------


def _report(
    visits: Mapping[tuple[str, int], Sequence[Visit]], ratios: Mapping[int, Comparison], repetitions: int
) -> None:
    rows: list[list[Any]] = []
    details: dict[str, dict[str, dict[str, float]]] = {}
    for (name, count), seen in visits.items():
        counted = seen[-repetitions:]
        found = {
            "painted_s": rounded(np.median([v.painted for v in counted])),
            "interactive_s": rounded(np.median([v.interactive for v in counted])),
            "slowest_s": rounded(max(v.interactive for v in counted)),
            "first_s": rounded(seen[0].interactive),
            "megabytes": rounded(max(v.sent for v in counted) / 1e6),
        }
        rows.append([f"{name}, {count:,} scans", *found.values()])
        details.setdefault(str(count), {})[name] = found
    many, few = details[str(MANY)]["ours"], details[str(FEW)]["ours"]
    met = (
        many["painted_s"] < PAINT
        and many["interactive_s"] < INTERACTIVE
        and many["megabytes"] < MANY_BYTES / 1e6
        and few["megabytes"] < FEW_BYTES / 1e6
    )
    report(
        f"The map in headless Chromium without a graphics card, empty cache, {repetitions} visits of each page",
        ["", "painted, s", "interactive, s", "slowest, s", "first, s", "sent, MB"],
        rows,
        summary(
            ratios[MANY].figures(),
            unit="of the time until plotly's own page is interactive",
            compared="our map of 100,000 scans / plotly's write_html page of the same points",
            sizes={"scans": [MANY, FEW], "repetitions": repetitions},
            limit={
                "painted_s": PAINT,
                "interactive_s": INTERACTIVE,
                "megabytes": MANY_BYTES / 1e6,
                "megabytes_of_500": FEW_BYTES / 1e6,
            },
            met=met,
            ratio_of_500=ratios[FEW].figures(),
            pages=details,
        ),
        note="first: the first visit after the server start, which the other times exclude",
    )
    if not met:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
