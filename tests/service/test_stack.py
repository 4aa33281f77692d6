"""docker-compose.yml run on this machine: every service with the file's own command and environment (`stack`).

First start, the loop, twenty annotators, kills at random moments; and no packet leaves the machine.
"""

from __future__ import annotations

import random
import re
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from containers import Image, need_isolation, scratch
from service import QUICK, Lab, phantom_scans
from stack import ROOT, Stack, build_image

from backend.demo.annotator import Annotator
from backend.errors import ScanqueueError
from backend.workers.counters import EVERY

pytestmark = pytest.mark.label_studio

Scans = list[tuple[Path, Path]]
Built = tuple[Image, list[str]]
READERS = 20
THINKING = (2.0, 6.0)  # seconds that a simulated annotator looks at a scan


def unroutable_packets() -> dict[str, int]:
    """How often a process tried to send something to an address outside this machine."""
    lines = Path("/proc/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Ip:"))
    found = dict(zip(names, values, strict=True))
    found |= dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return {name: int(found[name]) for name in ("OutNoRoutes", "Ip6OutNoRoutes")}


@pytest.fixture(scope="module")
def building() -> Iterator[Future[Built]]:
    """Build in the background, while Label Studio creates its tables."""
    need_isolation()
    folder = scratch("image")
    try:
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(build_image, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def built(building: Future[Built]) -> Built:
    return building.result()


@pytest.fixture(scope="module")
def stack(building: Future[Built]) -> Iterator[Stack]:
    with Stack(lambda: building.result()[0], workers=2, settings=QUICK) as running:
        yield running


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Scans:
    return phantom_scans(tmp_path_factory.mktemp("many"), 340, seed=5, side=128)


def published_once(lab: Lab) -> None:
    counts = Counter((p["task"], p["model_version"]) for p in lab.predictions())
    assert counts
    assert set(counts.values()) == {1}


def labelled_once(stack: Stack, lab: Lab, *, miscounted: int = 0) -> None:
    """Every submitted scan has exactly one annotation, no other scan has any, and scanqueue knows exactly these.

    miscounted  annotations that Label Studio may store without counting them in their task: it writes the annotation
                and the count one after the other, and was killed this many times
    """
    rows = stack.studio.get("/api/tasks", project=lab.project, page_size=10_000, include="id,total_annotations")
    counts = {row["id"]: row["total_annotations"] for row in rows["tasks"] if row["total_annotations"]}
    uncounted = set(lab.labelled) - set(counts)
    assert len(uncounted) <= miscounted
    assert all(len(stack.studio.annotations(task)) == 1 for task in uncounted)
    assert counts == dict.fromkeys(set(lab.labelled) - uncounted, 1)
    assert len(set(lab.labelled)) == len(lab.labelled)
    seen = stack.wait(lab.project, lambda s: s["labelled"] == len(counts) and s["job"] is None)
    assert seen["problems"] == []


def test_the_first_start_needs_only_a_user_and_a_token(stack: Stack, built: Built) -> None:
    assert stack.first_doctor.returncode == 1
    assert re.findall(r"^error .*", stack.first_doctor.stdout, re.M) == ["error      No Label Studio token is set."]
    server = stack.containers["scanqueue"]
    doctor = server.execute("env", "-u", "SCANQUEUE_ENCODER", "scanqueue", "doctor")  # loads the default encoder
    assert doctor.returncode == 0, doctor.stdout
    assert "ImageNet weights, installed with scanqueue" in " ".join(doctor.stdout.split())
    assert "No project is connected yet" in " ".join(doctor.stdout.split())
    assert server.execute("id", "-u").stdout == "10001\n"
    assert server.execute(*built[1]).returncode == 0  # the Dockerfile's own HEALTHCHECK
    for place in ("/", "/opt/scanqueue", "/weights"):
        assert "Read-only file system" in server.execute("touch", f"{place}/x").stderr
    assert server.execute("grep", "^CapBnd", "/proc/self/status").stdout.split()[1] == "0" * 16


def test_packets_that_would_leave_the_machine_are_counted() -> None:
    """Verifies the counter that the tests below rely on: an address reserved for documentation, without a route."""
    need_isolation()
    before = unroutable_packets()
    with socket.socket() as outward, pytest.raises(OSError, match="unreachable"):
        outward.connect(("192.0.2.1", 80))
    assert unroutable_packets()["OutNoRoutes"] > before["OutNoRoutes"]


def test_the_loop_runs_in_the_stack(stack: Stack, scans60: Scans) -> None:
    before = unroutable_packets()
    lab = Lab(stack.studio, scans60, extra_params={"cold_start_size": 8, "round_size": 5})
    lab.connect(stack)
    lab.wait_for_round(0, seconds=300)
    assert stack.containers["scanqueue"].execute("scanqueue", "doctor", "--project", str(lab.project)).returncode == 0
    cold = lab.label(8)
    assert all(p["result"] == [] for task in cold for p in task["predictions"])
    lab.wait_for_round(1, seconds=600)
    warm = lab.label(7)[2:]  # the annotators may have held the first two since the cold start
    assert all(task["predictions"][-1]["result"] for task in warm)
    lab.wait_for_round(2, seconds=600)
    seen = stack.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == 15)
    assert (seen["phase"], seen["trouble"], seen["problems"]) == ("active", "", [])
    assert seen["shown"]["n"] + sum(r["shown"]["n"] for r in stack.get(f"/api/projects/{lab.project}/rounds")["rounds"])
    published_once(lab)
    labelled_once(stack, lab)
    lab.close()
    server = stack.containers["scanqueue"]
    saved = server.execute("scanqueue", "backup", "--project", str(lab.project), "/data/chest.zip")
    assert saved.returncode == 0, saved.stderr
    put_back = server.execute("scanqueue", "restore", "/data/chest.zip", "--replace")
    assert put_back.returncode == 0, put_back.stderr
    again = stack.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == 15)
    assert {k: again[k] for k in ("round", "model_version", "queue", "shown")} == {
        k: seen[k] for k in ("round", "model_version", "queue", "shown")
    }
    # nothing tried to reach another machine, not even to resolve a name
    assert unroutable_packets() == before


class Reading:
    """Concurrent annotators, one thread each, and a record of what they met."""

    def __init__(
        self, lab: Lab, total: int, *, stubborn: bool = False, thinking: tuple[float, float] = THINKING
    ) -> None:
        """stubborn: retry what fails, as a person would."""
        self.lab, self.left, self.stubborn, self.thinking = lab, total, stubborn, thinking
        self.lock = threading.Lock()
        self.held: Counter[int] = Counter()
        self.twice: list[int] = []
        self.unpublished: list[int] = []
        self.asked: list[float] = []
        self.submitted: list[float] = []
        self.failed: list[str] = []
        self.threads = [threading.Thread(target=self._read, args=(a, i)) for i, a in enumerate(lab.annotators)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join()
        assert self.failed == []

    def _read(self, annotator: Annotator, seed: int) -> None:
        rng = random.Random(seed)
        while True:
            with self.lock:
                if self.left <= 0 or self.failed:
                    return
                self.left -= 1
            try:
                self._one(annotator, rng)
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                return

    def _one(self, annotator: Annotator, rng: random.Random) -> None:
        task = self._timed(self.asked, lambda: self._next(annotator))
        number = task["id"]
        with self.lock:
            self.held[number] += 1
            if self.held[number] > 1:
                self.twice.append(number)
            if not any(p["model_version"].startswith("scanqueue-r") for p in task["predictions"]):
                self.unpublished.append(number)
        time.sleep(rng.uniform(*self.thinking))
        truth = self.lab.truth(number)
        self._timed(self.submitted, lambda: self._submit(annotator, task, truth))
        with self.lock:
            self.held[number] -= 1
            self.lab.labelled.append(number)

    def _next(self, annotator: Annotator) -> dict[str, Any]:
        task = annotator.next_task(self.lab.project)
        if task is None:
            raise ScanqueueError("the queue ran dry")
        return task

    def _submit(self, annotator: Annotator, task: dict[str, Any], truth: list[dict[str, Any]]) -> None:
        # before a retry: the first attempt may have arrived
        if not self.stubborn or not self.lab.studio.annotations(task["id"]):
            annotator.submit(task, truth)

    def _timed(self, into: list[float], call: Callable[[], Any]) -> Any:
        until = time.monotonic() + 240
        while True:
            began = time.monotonic()
            try:
                found = call()
            except (httpx.TransportError, ScanqueueError):
                if not self.stubborn or time.monotonic() > until:
                    raise
                time.sleep(0.5)
            else:
                into.append(time.monotonic() - began)
                return found


@pytest.mark.parametrize("total", [40, pytest.param(300, marks=pytest.mark.long)])
def test_twenty_annotators_at_once(stack: Stack, many: Scans, total: int) -> None:
    before = unroutable_packets()
    size = 20
    settings = {"cold_start_size": size, "round_size": size}  # the queue's depth is then 60
    lab = Lab(stack.studio, many[: total + 2 * size], annotators=READERS, extra_params=settings)
    lab.connect(stack)
    lab.wait_for_round(0, seconds=300)
    slow, log = slow_answers(stack), stack.containers["label-studio"].log
    read_before = log.stat().st_size
    # one every 12 s each, for as long as it takes; in the short run they are faster, but need no more than is published
    reading = Reading(lab, total, thinking=THINKING if total <= 3 * size else (8.0, 16.0))
    began = time.monotonic()
    reading.start()
    reading.join()
    spent = time.monotonic() - began
    seen = stack.wait(
        lab.project,
        lambda s: s["job"] is None and s["labelled"] == total and learnt(stack, lab) > total - size,
        seconds=600,
    )
    behind = time.monotonic() - began - spent
    with log.open("rb") as file:
        file.seek(read_before)
        unanswered = re.findall(rb"^requests\.exceptions\..*", file.read(), re.M)
    time.sleep(EVERY + 1)  # until the server has stored its counters
    rounds = stack.get(f"/api/projects/{lab.project}/rounds")["rounds"]
    print(
        f"\n{READERS} annotators, {total} labels in {spent:.0f} s, {len(rounds) - 1} rounds after the cold start, "
        f"the last of them {behind:.0f} s after the last label"
    )
    for what, times in (("next", reading.asked), ("submit", reading.submitted)):
        middle, late = np.percentile(times, (50, 99))
        print(f"  {what}: median {middle:.2f} s, p99 {late:.2f} s, slowest {max(times):.2f} s")
    print(f"  masks shown: Dice {seen['shown']['dice']}, validation {seen['validation']}")
    assert reading.twice == []
    assert reading.unpublished == []
    assert unanswered == []
    assert slow_answers(stack) == slow
    published_once(lab)
    labelled_once(stack, lab)
    lab.close()
    assert unroutable_packets() == before


def learnt(stack: Stack, lab: Lab) -> int:
    """The number of labels that the newest model was trained on."""
    models = stack.get(f"/api/projects/{lab.project}/rounds")["models"]
    return int(models[-1]["trained_on"]) if models else 0


def slow_answers(stack: Stack) -> list[str]:
    """Requests from Label Studio that must be answered at once but took scanqueue more than a second."""
    text = stack.http.get("/metrics").text
    return re.findall(r'^scanqueue_http_slow_total\{path="/(?:webhook|setup|health)"\} .*', text, re.M)


@pytest.mark.parametrize("kills", [6, pytest.param(32, marks=pytest.mark.long)])
def test_kills_at_random_moments_lose_and_duplicate_nothing(stack: Stack, many: Scans, kills: int) -> None:
    """SIGKILL to one whole container at a time; its restart policy starts it again, as in Docker."""
    size = 6
    total, pause, thinking = (4 * size, 5.0, THINKING) if kills < 10 else (24 * size, 10.0, (4.0, 12.0))
    settings = {"cold_start_size": size, "round_size": size, "queue_depth": 6 * size}
    lab = Lab(stack.studio, many[:200], annotators=4, extra_params=settings)
    lab.connect(stack)
    lab.wait_for_round(0, seconds=300)
    rng = random.Random(kills)
    names = ["scanqueue", "worker-1", "worker-2", "redis", "postgres", "label-studio"]
    order = [*rng.sample(names, len(names)), *rng.choices(names, k=kills - len(names))]
    reading = Reading(lab, total, stubborn=True, thinking=thinking)
    reading.start()
    for name in order:
        time.sleep(rng.uniform(0.5, pause))
        container = stack.containers[name]
        container.wait_healthy(seconds=300)
        starts = container.starts
        container.kill()
        until = time.monotonic() + 60
        while container.starts == starts:
            assert time.monotonic() < until
            time.sleep(0.1)
    reading.join()
    for container in stack.containers.values():
        container.wait_healthy(seconds=300)
    stack.wait(lab.project, lambda s: s["job"] is None and learnt(stack, lab) > total - size, seconds=600)
    assert reading.twice == []
    labelled_once(stack, lab, miscounted=order.count("postgres") + order.count("label-studio"))
    published_once(lab)
    found = stack.get(f"/api/projects/{lab.project}/rounds")
    versions = [m["version"] for m in found["models"]]
    assert len(set(versions)) == len(versions)
    learnt_from = [m["trained_on"] for m in found["models"]]
    assert learnt_from == sorted(learnt_from)
    assert [r["round"] for r in found["rounds"]] == sorted({r["round"] for r in found["rounds"]})
    print(f"\n{kills} kills ({dict(Counter(order))}): {total} labels, {len(versions)} models, nothing lost")
    with suppress(ScanqueueError):
        lab.close()


@pytest.mark.long
def test_database_dumps_are_restored_as_the_deployment_page_says(stack: Stack, scans60: Scans) -> None:
    page = (ROOT / "docs" / "how-to" / "deployment.md").read_text()
    lab = Lab(stack.studio, scans60[:24], extra_params={"cold_start_size": 8, "round_size": 5})
    lab.connect(stack)
    lab.wait_for_round(0, seconds=300)
    lab.label(8)
    lab.wait_for_round(1, seconds=600)
    seen = stack.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == 8)
    ours = [stack.containers[title] for title in ("scanqueue", *stack.workers)]
    for container in (*ours, stack.containers["label-studio"]):
        container.stop()
    postgres = stack.containers["postgres"]
    for name, file in (("scanqueue", "scanqueue.dump"), ("labelstudio", "label-studio.dump")):
        for command in (
            f"pg_dump -U labelstudio -Fc {name} > {file}",
            f"pg_restore -U labelstudio --clean --create -e -d postgres < {file}",
        ):
            assert command in page
            if command.startswith("pg_restore"):  # as a newer version would have left it
                newer = "CREATE TABLE newer (project bigint REFERENCES project)"
                assert postgres.execute("psql", "-U", "labelstudio", "-d", name, "-c", newer).returncode == 0
            done = postgres.execute("sh", "-c", f"cd /tmp && {command}")
            assert done.returncode == 0, done.stderr
        gone = postgres.execute("psql", "-U", "labelstudio", "-d", name, "-c", "SELECT * FROM newer")
        assert "does not exist" in gone.stderr
    for container in (stack.containers["label-studio"], *ours):
        container.start()
    for container in stack.containers.values():
        container.wait_healthy(seconds=300)
    again = stack.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == 8)
    assert {k: again[k] for k in ("round", "queue", "validation")} == {
        k: seen[k] for k in ("round", "queue", "validation")
    }
    lab.label(5)
    lab.wait_for_round(2, seconds=600)
    published_once(lab)
    lab.close()
