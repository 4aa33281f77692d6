"""The data folder is its owner's alone: when it is created, after a start, and doctor says what is open to others."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.app import _keep_private, open_store
from backend.doctor.service import check_data_folder
from backend.errors import BadSetting
from backend.records.locks import Locks
from backend.records.private import open_to_others, protect
from backend.records.store import Store
from backend.settings import Settings
from backend.workers.worker import Queue


@pytest.fixture(autouse=True)
def _common_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    found = [folder, *folder.rglob("*")]
    return {str(p.relative_to(folder)): stat.S_IMODE(p.stat().st_mode) for p in found}


def test_the_folder_and_its_databases_are_private_from_the_start(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    queue, store = Queue(settings), open_store(settings)
    store.add_project(1)
    queue.request(1)
    seen = modes(settings.data_dir)
    assert {"records.sqlite", "records.sqlite-wal", "records.sqlite-shm", "jobs.sqlite"} <= set(seen)
    assert seen["."] == 0o700
    assert {mode for name, mode in seen.items() if "sqlite" in name} == {0o600}
    store.close()


@pytest.mark.parametrize(
    "first", [lambda d: Queue(Settings(data_dir=d)), Store, lambda d: Locks(d / "locks").held("x")]
)
def test_whatever_creates_the_folder_makes_it_private(first: object, tmp_path: Path) -> None:
    made = first(tmp_path / "data")  # type: ignore[operator]
    if hasattr(made, "__enter__"):
        with made:
            pass
    assert modes(tmp_path / "data")["."] == 0o700


def test_a_start_corrects_an_open_folder_and_writes_privately(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    store = open_store(settings)
    store.add_project(1)
    (settings.data_dir / "identities.sqlite").touch()
    (tmp_path / "elsewhere").touch(0o644)
    (settings.data_dir / "link").symlink_to(tmp_path / "elsewhere")
    for path in (settings.data_dir, *settings.data_dir.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (finding, _) = check_data_folder(settings)
    assert (finding.level, "Other users" in finding.what) == ("warning", True)
    assert "chmod -R go= " in finding.cure
    _keep_private(settings)
    assert open_to_others(settings.data_dir) == []
    assert [finding.level for finding in check_data_folder(settings)] == ["ok"]
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o644
    store.put_arrays("masks", "ab12", mask=[1])
    store.put_folder("models", "cd34", lambda folder: (folder / "model.json").write_text("{}") and None)
    for kind in ("masks", "models"):
        assert {mode & 0o077 for mode in modes(settings.data_dir / kind).values()} == {0}
    assert caplog.text == ""
    assert store.projects() == [1]
    store.close()


def test_a_folder_of_somebody_else_does_not_stop_the_start(caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    with tempfile.TemporaryDirectory() as above:
        settings = Settings(data_dir=Path(above) / "data")
        Path(above).chmod(0o755)
        open_store(settings).close()
        try:
            os.seteuid(65534)
            assert [f.level for f in check_data_folder(settings)] == ["error"]
            os.seteuid(0)
            settings.data_dir.chmod(0o777)
            os.seteuid(65534)
            _keep_private(settings)
            assert protect(settings.data_dir) == [settings.data_dir]
            assert [f.level for f in check_data_folder(settings)] == ["warning", "ok"]
        finally:
            os.seteuid(0)
        assert "belongs to somebody else" in caplog.text


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(BadSetting, match="cannot be created"):
            Store(folder)
        with pytest.raises(BadSetting, match="cannot be created"):
            Queue(Settings(data_dir=folder))
