"""Two simulated annotators work through the queue, wait for each new round, and record the quality of its masks."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.markup import escape
from scipy.ndimage import binary_erosion, distance_transform_edt

from backend.demo.administrator import Administrator
from backend.demo.annotator import Annotator, Control, Mask, from_result, shown_prediction, to_key_points, to_result
from backend.demo.scans import ScanFolder
from backend.errors import ScanqueueError, StudioRefused
from backend.learning.clicks import dice, next_click
from backend.web.texts import text

# longest wait for a new queue, once all labels are seen and no job runs, before labelling continues
_QUIET = 90.0
CLICKS = 3  # of the annotator who corrects masks with clicks, for each label, before finishing by hand
GOOD = 0.95  # Dice from which they do not click
CLICK = Control("click", "image", "keypointlabels")  # the demo's smart tag
PACE = 5.0  # seconds that an annotator takes for a scan; people take longer
TOLD = 10  # first scans that get a line each


@dataclass(frozen=True)
class Label:
    """A submitted scan, compared with the mask shown before; dice is None if no mask was shown.

    clicked  Dice before the clicks and after them; None for annotators who do not click
    """

    task: int
    reader: str
    version: str | None
    dice: float | None
    hd95: float | None
    clicked: tuple[float, float] | None = None


@dataclass
class Round:
    """One published queue, and the scans labelled from it."""

    number: int
    labels_before: int
    head: list[dict[str, Any]]
    validation: dict[str, Any]
    labels: list[Label] = field(default_factory=list)

    def mean(self, name: str) -> float | None:
        """Mean `dice` or `hd95` of the masks that this round showed."""
        values = [value for label in self.labels if (value := getattr(label, name)) is not None]
        return float(np.mean(values)) if values else None

    def clicked(self) -> tuple[float, float, int] | None:
        """Mean Dice before the clicks and after them, and of how many scans; None without any."""
        pairs = [label.clicked for label in self.labels if label.clicked is not None]
        return (*(float(np.mean(values)) for values in zip(*pairs, strict=True)), len(pairs)) if pairs else None  # type: ignore[return-value]


def hd95(one: Mask, other: Mask) -> float | None:
    """95th percentile of the distances between two outlines, in pixels; None when one of them is empty."""
    if not one.any() or not other.any():
        return None
    edges = [mask & ~binary_erosion(mask) for mask in (one, other)]
    there = distance_transform_edt(~edges[1])[edges[0]]
    back = distance_transform_edt(~edges[0])[edges[1]]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def compare(shown: Mapping[str, Mask], truth: Mapping[str, Mask]) -> tuple[float | None, float | None]:
    """Dice and HD95 of a shown mask, averaged over the labels with foreground; None without any in the truth."""
    empty = np.zeros(next(iter(truth.values())).shape, bool)
    pairs = [(shown.get(label, empty), mask) for label, mask in truth.items()]
    pairs = [(ours, theirs) for ours, theirs in pairs if ours.any() or theirs.any()]
    if not any(theirs.any() for _, theirs in pairs):
        return None, None
    known = [distance for pair in pairs if (distance := hd95(*pair)) is not None]
    return float(np.mean([dice(*pair) for pair in pairs])), float(np.mean(known)) if known else None


class Simulation:
    """Labels `labels` scans of a project in rounds and records them in `rounds`.

    tasks    the image of each task
    backend  Label Studio's number of the ML backend: the last annotator corrects masks with clicks; None: nobody does
    alive    called while waiting; raises an error if the service has exited
    """

    def __init__(
        self,
        studio: Administrator,
        project: int,
        service: str,
        scans: ScanFolder,
        tasks: Mapping[int, Path],
        *,
        readers: list[tuple[str, str]],
        labels: int,
        cold_start_size: int,
        round_size: int,
        console: Console,
        alive: Callable[[], None],
        backend: int | None = None,
    ) -> None:
        self.rounds: list[Round] = []
        self._studio = studio
        self._project = project
        self._service = httpx.Client(base_url=service, trust_env=False, timeout=60)
        self._scans = scans
        self._images = dict(tasks)
        self._readers = readers
        self._backend = backend
        self._milestones = _milestones(min(labels, len(scans.masks)), cold_start_size, round_size)
        self._console = console
        self._alive = alive
        self._asking = threading.Lock()
        self._stop = threading.Event()

    def run(self) -> None:
        """Label all scans; prints a few lines per round."""
        annotators = [Annotator(self._studio.url, email, password) for email, password in self._readers]
        done = 0
        try:
            self._wait_for_round(done)
            for goal in self._milestones:
                self._label(annotators, goal - done)
                done = goal
                self._report(self.rounds[-1])
                self._wait_for_round(done)
            self._report(self.rounds[-1])
        finally:
            self._stop.set()
            self._service.close()
            for annotator in annotators:
                annotator.close()

    def status(self) -> dict[str, Any]:
        """The project status from the service."""
        return self._ask(f"/api/projects/{self._project}")

    def _ask(self, path: str) -> dict[str, Any]:
        response = self._service.get(path)
        if response.status_code != 200:
            raise ScanqueueError(f"GET {path} answered {response.status_code}: {response.text[:300]}")
        return dict(response.json())

    def _wait_for_round(self, labelled: int) -> None:
        """Wait until annotators get a later round and the service knows it, then record the head of its queue."""
        last = self.rounds[-1].number if self.rounds else -1
        number = last + 1
        began = quiet_since = time.monotonic()
        with self._console.status("") as spinner:
            while True:
                self._alive()
                try:
                    seen = self.status()
                except (httpx.TransportError, ScanqueueError) as error:
                    if time.monotonic() - began > 120:
                        raise
                    seen = {"phase": f"no answer yet ({error})", "round": -1, "labelled": -1, "job": {}}
                waited = time.monotonic() - began
                spinner.update(f"waiting for round {number}: {_doing(seen)} ({waited:.0f} s)")
                if seen["phase"] in ("blocked", "disconnected", "deleted"):
                    raise ScanqueueError(f"the service is blocked: {seen.get('reason')}")
                served = self._studio.get(f"/api/projects/{self._project}/").get("model_version")
                served_round = _round_of(served)
                # Label Studio answers the service only after its webhooks; until then /queue is that of the last round.
                recorded = seen["round"] == served_round
                if recorded and served_round > last and seen["labelled"] >= labelled and seen["phase"] != "embedding":
                    number = served_round
                    break
                if seen["labelled"] < labelled or seen.get("job") is not None or seen["phase"] == "training":
                    quiet_since = time.monotonic()
                elif last >= 0 and time.monotonic() - quiet_since > _QUIET:
                    self._console.print(f"[yellow]no round {number} was published: {seen.get('reason')}")
                    number = last
                    break
                time.sleep(0.5)
        head = self._ask(f"/api/projects/{self._project}/queue")["queue"][:3]
        self.rounds.append(Round(number, labelled, head, dict(seen.get("validation") or {})))

    def _label(self, annotators: list[Annotator], count: int) -> None:
        """Each annotator requests, corrects and submits tasks until `count` more scans are labelled."""
        left = [count]
        failures: list[BaseException] = []

        def work(annotator: Annotator) -> None:
            try:
                while not self._stop.is_set():
                    # On SQLite, two simultaneous requests may be served the same task. People are never
                    # that close together, so these requests are not either.
                    with self._asking:
                        if left[0] == 0:
                            return
                        task = annotator.next_task(self._project)
                        left[0] -= 1
                    if task is None:
                        raise StudioRefused("Label Studio has no task left to serve")
                    label = self._submit(annotator, task)
                    with self._asking:
                        self.rounds[-1].labels.append(label)
                        self._tell(label)
            except BaseException as error:
                failures.append(error)
                self._stop.set()

        threads = [threading.Thread(target=work, args=(annotator,), daemon=True) for annotator in annotators]
        for thread in threads:
            thread.start()
        with self._console.status("") as spinner:
            while any(thread.is_alive() for thread in threads):
                self._alive()
                spinner.update(f"labelling: {count - left[0]} of {count}")
                time.sleep(0.2)
        if failures:
            raise failures[0]

    def _submit(self, annotator: Annotator, task: dict[str, Any]) -> Label:
        began = time.monotonic()
        truth = self._scans.truth(self._images[int(task["id"])])
        shown = shown_prediction(task)
        version = None if shown is None else str(shown["model_version"])
        score: float | None = None
        distance: float | None = None
        if shown is not None and (shown["result"] or version != "scanqueue-r0"):
            shape = next(iter(truth.values())).shape
            score, distance = compare(from_result(shown["result"], (shape[0], shape[1])), truth)
        clicks = self._backend is not None and annotator.email == self._readers[-1][0]
        clicked = self._click(annotator, task, shown, truth) if clicks else None
        time.sleep(max(0.0, PACE - (time.monotonic() - began)))
        annotator.submit(task, to_result(truth, self._scans.control), lead_time=round(time.monotonic() - began, 3))
        return Label(int(task["id"]), annotator.email, version, score, distance, clicked)

    def _click(
        self,
        annotator: Annotator,
        task: Mapping[str, Any],
        shown: Mapping[str, Any] | None,
        truth: Mapping[str, Mask],
    ) -> tuple[float, float] | None:
        """Correct each mask worse than GOOD with clicks. The mean Dice before and after; None without any such mask."""
        assert self._backend is not None
        found = []
        for label, wanted in truth.items():
            shape = (wanted.shape[0], wanted.shape[1])
            opened = from_result(shown["result"], shape) if shown else {}
            before = mask = opened.get(label, np.zeros(shape, bool))
            if not wanted.any() or dice(before, wanted) >= GOOD:
                continue
            clicks: list[tuple[bool, tuple[float, float]]] = []
            while len(clicks) < CLICKS and (click := next_click(mask, wanted)) is not None:
                clicks.append(click)
                result = annotator.click(self._backend, task, to_key_points(clicks, label, shape, CLICK))
                mask = from_result(result, shape).get(label, mask)
            found.append((dice(before, wanted), dice(mask, wanted)))
        return (float(np.mean([b for b, _ in found])), float(np.mean([a for _, a in found]))) if found else None

    def _tell(self, label: Label) -> None:
        """A line for each of the first scans: whether it opened with a mask of the quick model."""
        number = sum(len(one.labels) for one in self.rounds)
        if number <= TOLD and self.rounds[-1].number == 0:
            how = "opened blank" if label.dice is None else f"opened with a mask, Dice {label.dice:.3f}"
            self._console.print(f"  scan {number:2}  {how}", highlight=False)

    def _report(self, this: Round) -> None:
        total = this.labels_before + len(this.labels)
        line = f"[bold]round {this.number}[/bold]  {total:3} labels  "
        if (score := this.mean("dice")) is not None:
            shown = sum(label.dice is not None for label in this.labels)
            distance = this.mean("hd95")
            far = "-" if distance is None else f"{distance:.1f} px"
            line += f"shown masks: Dice {score:.3f}, HD95 {far} (n={shown})"
        elif this.labels:
            line += "no masks shown yet"
        elif this.validation.get("dice") is not None:
            line += f"validation: Dice {this.validation['dice']:.3f} (n={this.validation.get('n')})"
        if clicked := this.clicked():
            before, after, count = clicked
            line += f"; {CLICKS} clicks: Dice {before:.3f} to {after:.3f} (n={count})"
        outside = sum(label.version is None for label in this.labels)
        if outside:
            line += f"  [yellow]{outside} served from outside the queue[/yellow]"
        for start, reason in zip(chain(["queue: "], repeat(" " * 7)), head_lines(this.head), strict=False):
            line += f"\n  {start}{escape(reason)}"
        self._console.print(line, highlight=False)


def head_lines(head: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first scans of a queue, one line per reason: "12, 5 (typical of its cluster on the map)"."""
    found = [
        f"{', '.join(str(entry['task']) for entry in same)} ({why})"
        for why, same in groupby(head, key=_without_cluster)
    ]
    return found or ["nothing"]


def _without_cluster(entry: Mapping[str, Any]) -> str:
    """The reason for a pick, without its cluster, which would differ from scan to scan."""
    where = "" if entry["cluster"] is None else text("note.cluster", number=entry["cluster"] + 1)
    sentence = str(entry["sentence"]).removesuffix(".").removesuffix(where)
    return sentence[:1].lower() + sentence[1:]


def _milestones(labels: int, cold_start_size: int, round_size: int) -> list[int]:
    """Label counts at which to wait for a new round; the last one is `labels` or slightly lower."""
    return list(range(cold_start_size, labels + 1, round_size))


def _round_of(version: str | None) -> int:
    """The number in "scanqueue-r3", -1 for any other version."""
    found = re.fullmatch(r"scanqueue-r(\d+)", version or "")
    return int(found.group(1)) if found else -1


def _doing(seen: Mapping[str, Any]) -> str:
    job = seen.get("job") or {}
    if "step" in job:
        return f"{seen['phase']}, {job['step']} {job.get('done', '?')}/{job.get('total', '?')}"
    return str(seen["phase"])
