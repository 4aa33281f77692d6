"""Batch work on a real Dask cluster, whose workers share neither folder nor database with the driver."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import DaskCluster
from world import COLD, PROJECT, ROUND, KeptLearner, World

from backend.errors import BadSetting, ClusterUnavailable, UnreadableScan, WorkersLost
from backend.export import Export
from backend.fingerprints import fingerprint
from backend.learning.learner import Learner
from backend.loop import remote, sharing, suspects
from backend.loop.batch import BatchProcessor
from backend.loop.driver import Reconciler
from backend.loop.remote import Part, Write, apply, do_part
from backend.loop.remote_training import train_here
from backend.records.store import Store
from backend.settings import Settings
from backend.workers import cluster
from backend.workers.cluster import Cluster

SCANS = 12
KEY = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def images(world: World) -> Iterator[str]:
    """The address of a server of the world's images."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                data = world.studio.image(self.path)
            except UnreadableScan:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def environment(address: str, **more: str) -> dict[str, str]:
    """The settings of a worker: those of a `World`."""
    given = {"embedder": "pixels", "image_size": "32", "training_steps": "3", "device": "cpu"}
    given |= {"encoder": "tu-test_resnet", "label_studio_url": address, "label_studio_api_key": KEY} | more
    return {f"SCANQUEUE_{name.upper()}": value for name, value in given.items()}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As Dask gives its workers: sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "AT_ONCE", 2)


def comparable(state: Mapping[str, Any]) -> dict[str, Any]:
    """An end state without the cached pixels, which stay on the workers."""
    files = [name for name in state["files"] if not name.startswith("pixels/")]
    return {**state, "files": files}


@pytest.mark.parametrize("threads", [0, 1, 2, 7, 40])
def test_all_threads_of_a_cluster_end_at_about_the_same_time(threads: int) -> None:
    tasks = list(range(130))
    parts = list(suspects.parts_of(tasks, threads))
    assert [task for part in parts for task in part] == tasks
    busy = [0] * max(1, threads)  # whoever is free first takes the next part
    for part in parts:
        assert len(part) <= suspects.AT_ONCE
        busy[busy.index(min(busy))] += len(part)
    assert max(busy) - min(busy) <= suspects.LEAST


@pytest.mark.usefixtures("small_parts", "one_thread")
def test_a_cluster_does_the_same_and_survives_kills_of_workers_and_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT", 2)
    alone = World(tmp_path / "alone")
    world = World(tmp_path / "driver")
    for one in (alone, world):
        one.add_scans(0, SCANS)
    alone.run()
    with images(world) as address, DaskCluster(tmp_path / "dask", environment(address), hidden=world.folder) as dask:
        world.settings = replace(world.settings, dask_scheduler=dask.address)
        reconciler = world.reconciler()
        applied: list[int] = []

        def killing(store: Store, writes: list[Write]) -> None:
            apply(store, writes)
            applied.append(len(writes))
            if len(applied) == 2:
                dask.kill(dask.workers[0])

        monkeypatch.setattr(sharing, "apply", killing)
        assert reconciler.reconcile(PROJECT).steps == ()  # the other worker did what was lost
        assert comparable(world.end_state()) == comparable(alone.end_state())
        assert len(applied) == SCANS / 2
        cluster_of = reconciler.context.cluster
        assert cluster_of is not None
        assert cluster_of.dashboard.startswith("http://127.0.0.1:")

        for one in (alone, world):
            one.label(COLD)
        alone.run()
        monkeypatch.setattr(sharing, "apply", apply)
        for name in ("train", "masks", "signals", "embed_prepared"):  # nothing is done here
            monkeypatch.setattr(KeptLearner, name, refuse)
        dask.kill(dask.scheduler)
        with pytest.raises(ClusterUnavailable, match=r"does not answer.*tried again every minute"):
            reconciler.reconcile(PROJECT)
        assert "does not answer" in world.status()["trouble"]
        dask.start_scheduler()
        dask.start_worker()
        assert reconciler.reconcile(PROJECT).steps == ()
        assert comparable(world.end_state()) == comparable(alone.end_state())
        monkeypatch.setattr(cluster, "ALONE", 1.0)
        for worker in dask.workers:
            dask.kill(worker)
        world.add_scans(100, 1)
        with pytest.raises(ClusterUnavailable, match=r"has no workers. Start some with `dask worker`"):
            reconciler.reconcile(PROJECT)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed here")


CONTROLLED = {"control_share": 0.5, "cold_start_size": 18, "queue_depth": 18}


@pytest.mark.usefixtures("small_parts", "one_thread")
def test_a_cluster_compares_with_chance_and_draws_for_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = World(tmp_path / "alone", **CONTROLLED)
    world = World(tmp_path / "driver", **CONTROLLED)
    for one in (alone, world):
        one.add_scans(0, 24)
        one.run()
        one.label(18)
    alone.run()

    def exported(one: World, processor: BatchProcessor) -> tuple[dict[str, bytes], dict[str, int]]:
        (model,), task = one.store.models(PROJECT), next(iter(one.published()))
        row = one.store.scan(PROJECT, task)
        assert row is not None
        one.store.path("masks", fingerprint(model["fingerprint"], row["digest"])).unlink()  # but Label Studio shows it
        out = tmp_path / f"export-of-{one.folder.name}"
        asked: dict[str, Any] = {"formats": ("png",), "store": one.store, "model": "active", "processor": processor}
        done = Export(one.studio, PROJECT, **asked).run(out)  # type: ignore[arg-type]
        assert not done.problem_count
        written = {path.name: path.read_bytes() for path in (out / "model" / "png").iterdir()}
        return written, json.loads((out / "manifest.json").read_text())["model"]["masks"]

    wanted = exported(alone, alone.reconciler().processor)
    for name in ("train", "masks", "probabilities", "signals", "embed_prepared"):
        monkeypatch.setattr(KeptLearner, name, refuse)
    with images(world) as address, DaskCluster(tmp_path / "dask", environment(address), hidden=world.folder) as dask:
        world.settings = replace(world.settings, dask_scheduler=dask.address)
        reconciler = world.reconciler()
        assert reconciler.reconcile(PROJECT).steps == ()
        ((ours, theirs),) = zip(*(one.store.models(PROJECT) for one in (world, alone)), strict=True)
        assert ours["details"]["arms"] == theirs["details"]["arms"]
        assert exported(world, reconciler.processor) == wanted
    assert len(wanted[0]) == 24
    assert wanted[1]["shown"] == 1
    assert wanted[1]["drawn"] > 0
    assert comparable(world.end_state()) == comparable(alone.end_state())


KILLS = {"read": 6, "train": 4, "score": 4, "draw": 6}
SCHEDULERS = {3, 8, 12, 17}  # which of the kills hit the scheduler


class Killer:
    """Kills a random worker, or the scheduler, at random moments of every kind of work, and starts another one."""

    def __init__(self, dask: DaskCluster, seed: int) -> None:
        self.dask, self.random = dask, random.Random(seed)
        self.left, self.done = dict(KILLS), 0
        self.processes = list(dask.workers)

    def each(self, function: Callable[..., Any], results: Iterator[Any], parts: Sequence[Any]) -> Iterator[Any]:
        """The results of a cluster, with kills between them."""
        kind = "train" if function is train_here else parts[0].kind
        for found in results:
            if self.left[kind] and (kind == "train" or self.random.random() < 0.5):  # there are few trainings
                self.left[kind] -= 1
                self.kill()
            yield found

    def kill(self) -> None:
        self.done += 1
        if self.done in SCHEDULERS:
            self.dask.kill(self.dask.scheduler)
            self.dask.start_scheduler()
            for worker in self.processes:  # they end by themselves, but not before the next kill
                self.dask.kill(worker)
            self.processes = []
        else:
            self.dask.kill(self.processes.pop(self.random.randrange(len(self.processes))))
        while len(self.processes) < 2:
            self.dask.start_worker()
            self.processes.append(self.dask.workers[-1])


def mounts(process: str | int) -> str:
    """The mount namespace of a process."""
    return str((Path("/proc") / str(process) / "ns" / "mnt").readlink())


def apart(process: int) -> int:
    """The Dask process that runs in a namespace of its own under this process of bubblewrap, once there is one."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        waiting = [process]
        with suppress(FileNotFoundError, ProcessLookupError):
            while waiting:
                one = waiting.pop()
                if Path(f"/proc/{one}/cmdline").read_bytes().startswith(sys.executable.encode()):
                    return one
                waiting += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        time.sleep(0.1)
    raise AssertionError(f"process {process} runs no Python")


@pytest.mark.usefixtures("small_parts")
def test_a_scan_that_kills_the_workers_of_a_cluster_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "driver")
    tasks = world.add_scans(0, 5)
    bad = tasks[1]

    def deadly(part: Part, files: Mapping[str, bytes] | None) -> list[Write]:  # by value: this module is not there
        import os

        from backend.loop.remote import do_part

        if any(scan.task == bad for scan in part.scans):
            os._exit(1)
        return do_part(part, files)

    monkeypatch.setattr(sharing, "do_part", deadly)
    once = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with images(world) as address:
        variables = environment(address) | once
        with DaskCluster(tmp_path / "dask", variables, hidden=world.folder, workers=1) as dask:
            world.settings = replace(world.settings, dask_scheduler=dask.address)
            reconciler = world.reconciler()
            with pytest.raises(WorkersLost):
                reconciler.reconcile(PROJECT)
            until_done(reconciler)
    ((task, text),) = world.store.problems(PROJECT)
    assert task == bad
    assert "give the worker more memory" in text
    assert sorted(world.order()) == sorted({*tasks} - {bad})


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("small_parts", "one_thread")
def test_twenty_random_kills_of_workers_and_scheduler_lose_and_double_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, world = World(tmp_path / "alone"), World(tmp_path / "driver")
    labelled = (0, COLD, ROUND, ROUND)  # before each look
    for one in (alone, world):
        one.add_scans(0, 24)
    for count in labelled:
        alone.label(count)
        alone.run()
    for name in ("train", "masks", "signals", "embed_prepared"):
        monkeypatch.setattr(KeptLearner, name, refuse)
    with images(world) as address, DaskCluster(tmp_path / "dask", environment(address), hidden=world.folder) as dask:
        processes = ("self", *(apart(one.pid) for one in (dask.scheduler, *dask.workers)))
        assert len({mounts(one) for one in processes}) == len(processes) == 4
        seen = [
            list((Path("/proc") / str(one) / "root" / world.folder.relative_to("/")).iterdir()) for one in processes
        ]
        assert [bool(files) for files in seen] == [True, False, False, False]
        killer, each = Killer(dask, seed=0), cluster.Cluster.each
        monkeypatch.setattr(
            cluster.Cluster,
            "each",
            lambda self, function, parts, shared=None: killer.each(
                function, each(self, function, parts, shared), parts
            ),
        )
        world.settings = replace(world.settings, dask_scheduler=dask.address)
        reconciler = world.reconciler()
        for count in labelled:
            world.label(count)
            until_done(reconciler)
        assert killer.left == dict.fromkeys(KILLS, 0)
        assert killer.done == 20
    found = world.end_state()
    assert comparable(found) == comparable(alone.end_state())
    published = [(version, task) for version, task, *_ in found["predictions"]]
    assert len(published) == len(set(published)) > 0
    assert len(world.store.embedded(reconciler.learner.embedder().name)) == len(world.masks) == 24


def until_done(reconciler: Reconciler) -> None:
    """Reconcile, again after each failure of the cluster, until nothing is left to do."""
    for _ in range(40):
        with suppress(ClusterUnavailable):
            if reconciler.reconcile(PROJECT).steps == ():
                return
    raise AssertionError("the project is never done")


def test_what_only_a_lost_worker_held_is_sent_again(tmp_path: Path) -> None:
    def slow_sum(part: int, shared: int) -> int:  # workers cannot import tests, but get a local function as it is
        time.sleep(0.3)
        return part + shared

    hidden = tmp_path / "hidden"
    hidden.mkdir()
    found: dict[int, int] = {}
    with DaskCluster(tmp_path / "dask", {}, hidden=hidden, workers=1) as dask:
        for one in Cluster(dask.address).each(slow_sum, range(8), 100):
            if one is not None:
                found[one[0]] = one[1]
                if len(found) == 2:
                    dask.kill(dask.workers[0])
                    dask.start_worker()
    assert found == {index: 100 + index for index in range(8)}


@pytest.fixture
def on_a_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this were a worker of a cluster."""
    for name, value in environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    remote.here.cache_clear()
    yield
    remote.here.cache_clear()


@pytest.mark.usefixtures("on_a_worker")
def test_a_worker_with_other_settings_says_what_differs() -> None:
    with pytest.raises(
        BadSetting, match=r"would read scans with 'pixels\|32', but scanqueue reads with 'timm:vit\|512'"
    ):
        do_part(Part("read", PROJECT, "timm:vit|512", ()), None)


def test_a_worker_may_only_write_results(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_project(PROJECT)
    with pytest.raises(ValueError, match="may not call 'set_project'"):
        apply(store, [Write("set_project", (PROJECT,), {})])


@pytest.mark.parametrize("address", ["scheduler:8786", "tcp://scheduler", "http://scheduler:8787", "tcp:///:8786"])
def test_an_invalid_address_of_a_scheduler_is_refused(address: str) -> None:
    with pytest.raises(BadSetting, match="is not an address such as tcp://scheduler:8786"):
        Settings.from_env({"SCANQUEUE_DASK_SCHEDULER": address})


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_server_without_a_gpu_trains_as_the_gpus_of_its_cluster_do() -> None:
    learner = Learner(Settings(device="cuda", dask_scheduler="tcp://scheduler:8786"))
    assert learner.device == "cpu"
    recipe = learner.describe_training(0, 512)
    assert (recipe["device"], recipe["image_size"], recipe["mixed_precision"]) == ("cuda", 512, True)
    with pytest.raises(BadSetting, match="no GPU is available here"):
        Learner(Settings(device="cuda"))
