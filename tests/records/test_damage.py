"""Damaged records and job queues: one sentence with the cure in every command, nothing changed, and the cure works."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text, update

from backend import cli
from backend.commands.shared import settings_with_records
from backend.errors import BadSetting, DamagedRecords, StoreUnavailable
from backend.label_config import LabelConfig, Renames, unknown_classes
from backend.records.backup import backup
from backend.records.database import from_json
from backend.records.restore import restore
from backend.records.sqlite_file import check_file
from backend.records.store import Store
from backend.records.tables import project_table
from backend.settings import Settings
from backend.web import status
from backend.workers.worker import Queue

COMMANDS = {
    "serve": ["serve"],
    "server alone": ["serve", "--no-worker"],
    "worker": ["worker"],
    "worker process": ["worker", "--parent", "1"],
    "status": ["status"],
    "status of one": ["status", "--project", "1", "--json"],
    "doctor": ["doctor", "--project", "1", "--json"],
    "models": ["models", "list", "--project", "1"],
    "activate": ["models", "activate", "scanqueue-r1", "--project", "1"],
    "labels": ["labels", "list", "--project", "1"],
    "rename": ["labels", "rename", "Lung", "Lungs", "--project", "1"],
    "backup": ["backup", "out.zip", "--project", "1"],
    "restore": ["restore", "FILE"],
    "export": ["export", "--project", "1", "--out", "out"],
    "import": ["import", "scans", "--project", "1"],
    "disconnect": ["disconnect", "--project", "1"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed data folder with one project, and its backup."""
    folder = tmp_path_factory.mktemp("whole")
    store = Store(folder / "data")
    store.add_project(1)
    store.set_project(1, title="Chest", phase="cold_start")
    read = {"updated_at": "2026-01-01T00:00:00Z", "annotated": 0, "skipped": 0}
    rows = [{"task": task, "image": f"/data/upload/1/{task}.png", **read} for task in range(1, 400)]
    store.put_tasks(1, rows, "")
    backup(store, 1, folder / "chest.zip", say=lambda _: None)
    store.close()
    return folder


def damaged(whole: Path, folder: Path, data: bytes | None = None) -> Path:
    """A copy of the data folder whose records are `data`."""
    shutil.copytree(whole / "data", folder)
    if data is not None:
        (folder / "records.sqlite").write_bytes(data)
    return folder


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["scanqueue", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_the_cure_in_one_message(
    name: str,
    whole: Path,
    tmp_path: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for variable in [name for name in os.environ if name.startswith("SCANQUEUE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("SCANQUEUE_PORT", str(free_port))
    monkeypatch.setenv("SCANQUEUE_LABEL_STUDIO_URL", f"http://127.0.0.1:{free_port}")
    for slow in ("check_embedder", "check_encoder"):  # they load torch
        monkeypatch.setattr(f"backend.doctor.examination.{slow}", lambda *_: ())
    monkeypatch.setattr("backend.app.os.nice", lambda _: 0)
    monkeypatch.setattr("backend.app.os.umask", lambda _: 0)
    monkeypatch.setattr("backend.app.signal.signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    raw = (whole / "data" / "records.sqlite").read_bytes()
    data = damaged(whole, tmp_path / "data", raw[: len(raw) // 2])
    before = (data / "records.sqlite").read_bytes()
    command = [str(whole / "chest.zip") if part == "FILE" else part for part in COMMANDS[name]]
    assert run([*command, "--data-dir", str(data)], monkeypatch) == 1
    said = capfd.readouterr()
    seen = " ".join((said.out + said.err).split())
    assert "records.sqlite is damaged" in seen
    assert "`scanqueue restore`" in seen
    assert "Traceback" not in seen
    assert "sqlalche" not in seen
    assert (data / "records.sqlite").read_bytes() == before


def overwritten(count: int) -> Callable[[bytes, random.Random], bytes]:
    def change(raw: bytes, chance: random.Random) -> bytes:
        data = bytearray(raw)
        for _ in range(count):
            data[chance.randrange(100, len(data))] = chance.randrange(256)
        return bytes(data)

    return change


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    **{f"first {n} bytes": lambda raw, _, n=n: raw[:n] for n in (1, 15, 16, 99, 100, 511, 512, 4095, 4096, 5000)},  # type: ignore[misc]
    "a page less": lambda raw, _: raw[:-4096],
    "random bytes": lambda _, chance: chance.randbytes(20_000),
    "the header and random bytes": lambda raw, chance: raw[:100] + chance.randbytes(20_000),
    "zeros": lambda _, __: bytes(8192),
    "text": lambda _, __: b"no database\n" * 100,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_file_is_reported_and_left_as_it_is(name: str, whole: Path, tmp_path: Path) -> None:
    changed = CHANGES[name]((whole / "data" / "records.sqlite").read_bytes(), random.Random(1))
    data = damaged(whole, tmp_path / "data", changed)
    with pytest.raises(DamagedRecords, match="`scanqueue restore`"):
        used(data)
    assert (data / "records.sqlite").read_bytes() == changed


def used(data: Path) -> None:
    """Open the records and read them as `scanqueue status` does."""
    store = Store(data, reading=True)
    try:
        store.check()
        for project in store.projects():
            status.describe(store, project)
    finally:
        store.close()


@pytest.mark.parametrize("count", [1, 30, 1000])
def test_changed_bytes_never_give_another_error(count: int, whole: Path, tmp_path: Path) -> None:
    raw, chance, found = (whole / "data" / "records.sqlite").read_bytes(), random.Random(count), 0
    data = damaged(whole, tmp_path / "data")
    for _ in range(25):
        for extra in ("", "-wal", "-shm"):
            (data / f"records.sqlite{extra}").unlink(missing_ok=True)
        (data / "records.sqlite").write_bytes(overwritten(count)(raw, chance))
        try:
            used(data)
        except (DamagedRecords, BadSetting):  # a changed version is that of another scanqueue
            found += 1
    assert found >= {1: 0, 30: 5, 1000: 25}[count]


def test_an_empty_file_beside_models_is_reported_and_alone_it_is_a_new_one(whole: Path, tmp_path: Path) -> None:
    data = damaged(whole, tmp_path / "data", b"")
    assert Store(data).projects() == []  # as when the first start was killed
    data = damaged(whole, tmp_path / "lost", b"")
    (data / "models").mkdir()
    with pytest.raises(DamagedRecords, match="is empty"):
        Store(data)


@pytest.mark.parametrize("tables", [["note"], ["project", "django_migrations"], ["alembic_version", "experiment"]])
def test_a_file_of_another_program_is_left_as_it_is(tables: list[str], whole: Path, tmp_path: Path) -> None:
    data = damaged(whole, tmp_path / "data", b"")
    with closing(sqlite3.connect(data / "records.sqlite")) as other:
        for table in tables:
            other.execute(f"CREATE TABLE {table} (version_num TEXT)")
            other.execute(f"INSERT INTO {table} VALUES ('1975ea83b712')")
        other.commit()
    before = (data / "records.sqlite").read_bytes()
    with pytest.raises(DamagedRecords, match="another program"):
        Store(data)
    assert (data / "records.sqlite").read_bytes() == before
    with closing(sqlite3.connect(data / "records.sqlite")) as other:  # with a write-ahead log, as ours has
        other.execute("PRAGMA journal_mode=WAL")
    with pytest.raises(DamagedRecords, match="another program"):
        Store(data)


def test_a_folder_or_a_loop_of_links_in_its_place(whole: Path, tmp_path: Path) -> None:
    data = damaged(whole, tmp_path / "data")
    (data / "records.sqlite").unlink()
    (data / "records.sqlite").mkdir()
    with pytest.raises(DamagedRecords, match="is not a file"):
        Store(data)
    (data / "records.sqlite").rmdir()
    (data / "records.sqlite").symlink_to("records.sqlite")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        Store(data)


def test_another_user_is_told_to_be_the_right_one(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if os.geteuid():
        pytest.skip("only root can start a process of another user")
    data = damaged(whole, tmp_path / "data")
    data.chmod(0o700)
    (data / "records.sqlite").chmod(0o600)
    descriptor = os.open(data, os.O_RDONLY)
    os.seteuid(65534)
    try:
        with pytest.raises(BadSetting, match="as the user who runs `scanqueue serve`"):
            settings_with_records(data)
        os.seteuid(0)
        os.fchdir(descriptor)
        data.chmod(0o755)
        os.seteuid(65534)
        with pytest.raises(StoreUnavailable, match="as the user who runs `scanqueue serve`"):
            check_file(Path("records.sqlite"))
    finally:
        os.seteuid(0)
        os.close(descriptor)


def test_the_cure_works(whole: Path, tmp_path: Path) -> None:
    data = damaged(whole, tmp_path / "data", b"garbage")
    with pytest.raises(DamagedRecords):
        restore(lambda: Store(data), whole / "chest.zip", say=lambda _: None)
    (data / "records.sqlite").rename(tmp_path / "aside.sqlite")
    restore(lambda: Store(data), whole / "chest.zip", say=lambda _: None)
    store = Store(data)
    assert [row["task"] for row in store.scans(1)] == list(range(1, 400))
    store.close()


def test_a_damaged_value_is_reported(whole: Path, tmp_path: Path) -> None:
    data = damaged(whole, tmp_path / "data")
    store = Store(data)
    with store.write() as connection:
        connection.execute(update(project_table).values(title=text("CAST(x'fffe' AS TEXT)")))
    with pytest.raises(DamagedRecords, match="UTF-8"):
        store.project(1)
    store.close()
    with pytest.raises(DamagedRecords):
        from_json("{")


@pytest.mark.parametrize("data", [b"garbage" * 1000, None])
def test_a_damaged_job_queue_is_reported_and_can_be_removed(data: bytes | None, tmp_path: Path) -> None:
    settings, file = Settings(data_dir=tmp_path), tmp_path / "jobs.sqlite"
    if data is None:
        file.mkdir()
    else:
        file.write_bytes(data)
    with pytest.raises(StoreUnavailable, match="remove it"):
        Queue(settings)
    assert file.is_dir() or file.read_bytes() == data
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    queue = Queue(settings)
    assert queue.request(1)
    assert queue.waits(1)


@pytest.mark.parametrize("value", ["{", "5", '"x"', "[1]", "[" * 100_000, '["$image", [["tag", "brush"]]]'])
def test_a_damaged_label_config_is_reported(value: str) -> None:
    with pytest.raises(DamagedRecords, match="is damaged"):
        LabelConfig.from_json(value)
    with pytest.raises(DamagedRecords, match="is damaged"):
        Renames.from_json(value)


@pytest.mark.parametrize("value", ["{", "5", "[" * 100_000])
def test_damaged_known_labels_are_reported(value: str) -> None:
    with pytest.raises(DamagedRecords, match="is damaged"):
        unknown_classes(value, ["Lung"], Renames())
