"""A real disk fills up under a running project: nothing is lost or duplicated, and it recovers by itself."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from servers import PostgresServer
from service import LENGTHY, Lab, Service
from test_many_workers import worker_of

from backend import cli
from backend.app import open_store
from backend.demo.child import free_port
from backend.demo.label_studio import LabelStudio
from backend.demo.phantoms import write_phantoms
from backend.errors import StorageFull, StoreUnavailable
from backend.records.store import Store
from backend.settings import Settings
from backend.workers.worker import Queue

COLD, ROUND, SCANS = 8, 5, 96
SETTINGS = {"cold_start_size": COLD, "round_size": ROUND}
SIZE = 900 * 2**20  # more than the free space that a training requires
MINUTE = 75.0  # seconds until the next sweep and its first step
Scans = list[tuple[Path, Path]]

_MS_RDONLY, _MS_REMOUNT = 1, 32
_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """A separate file system, mounted on `folder`, that can be filled at any moment."""

    def __init__(self, folder: Path, size: int = SIZE) -> None:
        self.folder, self._size = folder, size
        self._ballast = folder / "ballast"
        folder.mkdir(exist_ok=True)
        try:
            self._mount(size, 0)
        except OSError as error:
            reason = f"a tmpfs cannot be mounted here ({error.strerror}): this needs root, or a mount namespace"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)

    def _mount(self, size: int, flags: int) -> None:
        options = f"size={size},mode=755".encode()
        if _libc.mount(b"tmpfs", bytes(self.folder), b"tmpfs", flags, options):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def free(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bfree * found.f_frsize

    @contextmanager
    def full(self) -> Iterator[None]:
        """Inside the context, no byte is free, whatever others delete."""
        over = threading.Event()
        self._fill()  # at once, then again and again
        filler = threading.Thread(target=lambda: [self._fill() for _ in iter(lambda: over.wait(0.01), True)])
        filler.start()
        try:
            yield
        finally:
            over.set()
            filler.join()
            self._ballast.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Inside the context, nothing can be written, not even by root. No file may be open for writing."""
        self._mount(self._size, _MS_REMOUNT | _MS_RDONLY)
        try:
            yield
        finally:
            self._mount(self._size, _MS_REMOUNT)

    def _fill(self) -> None:
        with self._ballast.open("ab") as file:
            while free := self.free():
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), free)
                except OSError:
                    continue  # another process was faster
                file.seek(0, os.SEEK_END)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        _libc.umount2(bytes(self.folder), 2)  # lazily: files that are still open there stay usable


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Scans:
    folder = tmp_path_factory.mktemp("many")
    write_phantoms(folder, SCANS, seed=3)
    return [(image, folder / "masks" / image.name) for image in sorted((folder / "images").glob("*.png"))]


def check_answers(service: Service, lab: Lab, version: str) -> None:
    """Requests from Label Studio are answered at once without an error page, and people see what to do."""
    began = time.monotonic()
    assert service.http.get("/health").status_code == 200
    setup = {"project": f"{lab.project}.1", "hostname": "", "extra_params": None}
    setup["extra_params"] = dict(lab.extra_params)  # type: ignore[assignment]
    answer = service.http.post("/setup", json=setup)
    assert (answer.status_code, answer.json()) == (200, {"model_version": version})
    # what cannot be stored is not reported as stored
    answer = service.http.post("/setup", json=setup | {"project": "987654321.1"})
    assert answer.status_code == 503
    assert "Free disk space" in answer.json()["error"]
    task = min(lab.names)
    body = {"project": f"{lab.project}.1", "tasks": [{"id": task, "data": {"image": "/data/upload/1/none.png"}}]}
    answer = service.http.post("/predict", json=body)
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == 1
    hook = {"action": "ANNOTATION_CREATED", "project": {"id": lab.project}}
    assert service.http.post("/webhook", json=hook).status_code == 201
    assert service.http.get("/metrics").status_code == 200
    assert time.monotonic() - began < 10


def check_advice(service: Service, lab: Lab) -> None:
    said = service.wait(lab.project, lambda s: "Free disk space" in s["trouble"], seconds=20)
    assert str(service.folder) in said["trouble"]


@contextmanager
def recovered(service: Service) -> Iterator[None]:
    """After the block, a step is soon done without intervention."""
    yield
    before = len(service.log())
    until = time.monotonic() + MINUTE
    while "INFO scanqueue.reconcile: project" not in service.log()[before:]:
        assert time.monotonic() < until, service.log()[-3000:]
        time.sleep(0.5)


@pytest.mark.label_studio
def test_reading_training_and_recording_wait_for_a_full_disk(
    label_studio: LabelStudio, many: Scans, tmp_path: Path
) -> None:
    with Disk(tmp_path / "data") as disk:
        service = Service(label_studio, disk.folder, env=LENGTHY)
        lab = Lab(label_studio, many, extra_params=SETTINGS)
        with service:
            lab.connect(service)
            with closing(Store(disk.folder)) as store:  # a request for the status may take until all are read
                until = time.monotonic() + 120
                worker = worker_of(service.pid)
                while not store.embedded("pixels"):
                    assert time.monotonic() < until, service.log()[-3000:]
                    time.sleep(0.01)
            os.kill(worker, signal.SIGSTOP)  # else all may be read while the disk is being filled
            with disk.full():
                os.kill(worker, signal.SIGCONT)
                check_advice(service, lab)
                check_answers(service, lab, "scanqueue-pending")
                lab.label(2)
                time.sleep(3)
                assert service.status(lab.project)["embedded"] < SCANS
            lab.label(1)  # its webhook comes before the next sweep
            lab.wait_for_round(0, seconds=300)

            # the disk fills up during a training: its result cannot be written
            lab.label(COLD - 3)
            service.wait(lab.project, lambda s: s["phase"] == "training" and bool(s["job"]) and s["job"]["done"] > 0)
            with recovered(service), disk.full():
                said = service.wait(lab.project, lambda s: "could not be saved" in service.log(), seconds=120)
                check_advice(service, lab)
                check_answers(service, lab, "scanqueue-r0")
                lab.label(1)
                assert said["round"] == 0
            lab.wait_for_round(1, seconds=300)

            # idle, so that the first write is the work of the annotators; the worker is killed as well
            service.wait(lab.project, lambda s: s["job"] is None)
            with recovered(service), disk.full():
                lab.label(ROUND)
                check_advice(service, lab)
                os.kill(worker_of(service.pid), signal.SIGKILL)
                check_answers(service, lab, "scanqueue-r1")
                time.sleep(10)
            lab.wait_for_round(2, seconds=300)
            # the problem is shown until the pass that overcame it has ended, which is after the round is served
            service.wait(lab.project, lambda s: s["labelled"] == len(lab.labelled) and s["trouble"] == "")
            service.wait(lab.project, lambda s: s["job"] is None)
            store = Store(service.folder)
            lab.check_complete(store, 2)
            assert "Traceback" not in service.log()
        lab.close()


@pytest.mark.parametrize("command", [["serve", "--no-worker"], ["worker", "--parent", "1"]])
def test_commands_started_on_a_full_disk_report_it_and_exit(command: list[str], tmp_path: Path) -> None:
    with Disk(tmp_path / "data", 2**25) as disk:
        for made in (open_store(Settings(data_dir=disk.folder)), Queue(Settings(data_dir=disk.folder))):
            del made
        gc.collect()  # the last connection that closes removes SQLite's files beside the records
        env = {k: v for k, v in os.environ.items() if not k.startswith("SCANQUEUE_")}
        with disk.full():
            ended = subprocess.run(
                [sys.executable, "-m", "backend.cli", *command, "--data-dir", str(disk.folder)],
                env=env | {"SCANQUEUE_PORT": str(free_port())},
                capture_output=True,
                text=True,
                timeout=120,
            )
    said = " ".join((ended.stdout + ended.stderr).split())
    assert ended.returncode == 1
    assert "Free disk space" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_commands_that_only_read_work_where_nothing_can_be_written(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for slow in ("check_embedder", "check_encoder"):  # they load torch
        monkeypatch.setattr(f"backend.doctor.examination.{slow}", lambda *_: ())
    for variable in [name for name in os.environ if name.startswith("SCANQUEUE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("SCANQUEUE_LABEL_STUDIO_URL", f"http://127.0.0.1:{free_port()}")
    with Disk(tmp_path / "data", 2**25) as disk:
        store = open_store(Settings(data_dir=disk.folder))
        store.add_project(1)
        store.set_project(1, title="Chest of the lab")
        store.close()
        assert not (disk.folder / "records.sqlite-wal").exists()
        monkeypatch.setenv("SCANQUEUE_DATA_DIR", str(disk.folder))
        reading: dict[str, str] = {
            "status --project 1": "Chest of the lab",
            "status --json": "Chest of the lab",
            "models list --project 1": "",
            "labels list --project 1": "",
            "doctor --project 1": "data folder" if state == "full" else "not writable",
        }
        with disk.full() if state == "full" else disk.read_only():
            for command, expected in reading.items():
                monkeypatch.setattr(sys, "argv", ["scanqueue", *command.split()])
                with pytest.raises(SystemExit) as ended:
                    cli.main()
                said = capsys.readouterr()
                assert ended.value.code == (1 if "doctor" in command else 0), (command, said.err)  # no Label Studio
                assert expected in " ".join(said.out.split()), command
                assert "records" not in said.out, command
            with pytest.raises((StorageFull, StoreUnavailable)) as caught:
                Store(disk.folder, reading=True).add_project(2)
            assert "Free disk space" in str(caught.value) or "writable" in str(caught.value)
        store = open_store(Settings(data_dir=disk.folder))
        assert store.projects() == [1]
        store.close()


def test_on_a_full_disk_readers_see_what_a_running_server_wrote(tmp_path: Path) -> None:
    with Disk(tmp_path / "data", 2**25) as disk:
        server = open_store(Settings(data_dir=disk.folder))
        server.add_project(1)  # only in the write-ahead log
        with disk.full():
            reader = Store(disk.folder, reading=True)
            assert (server.projects(), reader.projects()) == ([1], [1])
            reader.close()
        server.add_project(2)
        server.close()


def kept_running(postgres: PostgresServer, over: threading.Event) -> None:
    """As a supervisor, restart the server whenever it exits. It may exit again at once."""
    while not over.wait(1):
        if not postgres.child.running:
            with suppress(Exception):
                postgres.kill()
                postgres.start()


def fill_database(url: str) -> None:
    """Write until PostgreSQL accepts nothing more, in tables or in its log; it may crash."""
    until = time.monotonic() + 60
    with suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE heap (it text)")
        while time.monotonic() < until:
            try:
                connection.execute("INSERT INTO heap SELECT repeat('x', 1900) FROM generate_series(1, 500)")
            except psycopg.errors.DiskFull:
                connection.execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 4000000))")


@pytest.mark.long
@pytest.mark.label_studio
def test_the_service_waits_for_a_full_disk_under_postgresql(
    label_studio: LabelStudio, many: Scans, tmp_path: Path
) -> None:
    with (
        Disk(Path(tempfile.mkdtemp(prefix="scanqueue-disk-"))) as disk,
        PostgresServer(folder=disk.folder) as postgres,
    ):
        url = postgres.new_database("scanqueue")
        service = Service(label_studio, tmp_path / "data", env={"SCANQUEUE_DATABASE_URL": url})
        lab = Lab(label_studio, many, extra_params=SETTINGS)
        over = threading.Event()
        supervisor = threading.Thread(target=kept_running, args=(postgres, over))
        supervisor.start()
        try:
            with service:
                lab.connect(service)
                lab.wait_for_round(0, seconds=300)
                lab.label(COLD - 2)
                with disk.full():
                    fill_database(url)
                    lab.label(2)
                    for _ in range(20):
                        assert service.http.get("/health").status_code == 200
                        task = {"id": min(lab.names), "data": {"image": "/data/upload/1/none.png"}}
                        answer = service.http.post("/predict", json={"project": f"{lab.project}.1", "tasks": [task]})
                        assert (answer.status_code, len(answer.json()["results"])) == (200, 1)
                        said = service.http.get(f"/api/projects/{lab.project}")
                        assert said.status_code in (200, 503)
                        message = said.json()["trouble"] if said.status_code == 200 else said.json()["error"]
                        hook = {"action": "ANNOTATION_CREATED", "project": {"id": lab.project}}
                        assert service.http.post("/webhook", json=hook).status_code in (201, 503)
                        time.sleep(1)
                    assert "Free disk space" in message or "does not answer" in message
                lab.wait_for_round(1, seconds=300)
                lab.label(ROUND)
                lab.wait_for_round(2, seconds=300)
                service.wait(lab.project, lambda s: s["labelled"] == len(lab.labelled) and s["trouble"] == "")
                service.wait(lab.project, lambda s: s["job"] is None)
                lab.check_complete(Store(service.folder, url), 2)
                assert "Traceback" not in service.log()
        finally:
            over.set()
            supervisor.join()
        lab.close()
