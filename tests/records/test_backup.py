"""Backing up a project to one file and restoring it: the same records, the same files, and no work to repeat."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from typer.testing import CliRunner
from world import PROJECT, KeptLearner, World

from backend import cli
from backend.commands.shared import settings_from_env
from backend.errors import BadBackup, BadSetting, DamagedRecords, ProjectBusy, StorageFull
from backend.fingerprints import fingerprint
from backend.loop.driver import Reconciler
from backend.records import backup as backups
from backend.records.archive import Archive
from backend.records.audit import Change
from backend.records.backup import backup
from backend.records.backup_format import BY_CONTENT, MANIFEST, OWN, TABLES, Summary
from backend.records.migrate import HEAD
from backend.records.restore import restore
from backend.records.store import Store
from backend.records.tables import change_table
from backend.web import status
from backend.workers.worker import Queue

pytestmark = pytest.mark.usefixtures("miniature")

OTHER = 2


@dataclass(frozen=True)
class Made:
    """A project with some history, and its backup."""

    world: World
    file: Path
    records: dict[str, list[dict[str, Any]]]
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("backup")
    world = World(folder / "data").in_round_1()
    world.label(1)
    world.run()
    world.store.set_project(PROJECT, title="Brust, Größe 1 : 1")
    task = world.order()[0]
    world.store.add_correction(PROJECT, task, 1.5, 0.1, {"Lung": world.masks[task]["Lung"]})
    world.store.add_change(PROJECT, Change("Anna", "settings", "alpha: 0.5", {"alpha": None}, {"alpha": 0.5}))
    file = folder / "chest.zip"
    backup(world.store, PROJECT, file)
    return Made(world, file, records(world.store), files(world.folder))


def records(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Every row of the tables that a backup covers, from all projects."""
    found = {}
    for table in TABLES:
        found[table.name] = [dict(r) for r in store.rows(select(table).order_by(*table.primary_key))]
    return found


def files(folder: Path) -> dict[str, bytes]:
    kinds = ("models", "labels", "masks", "maps")
    return {str(p.relative_to(folder)): p.read_bytes() for k in kinds for p in (folder / k).rglob("*") if p.is_file()}


def restored(made: Made, store: Store, file: Path | None = None, **options: Any) -> Summary:
    return restore(lambda: store, file or made.file, wait=0.0, **options)


def changed(made: Made, file: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> Path:
    """A copy with changed members and manifest; entries that `change` leaves out of the manifest are correct."""
    with zipfile.ZipFile(made.file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    about = json.loads(members.pop(MANIFEST))
    change(members, about)
    for name, data in members.items():
        about["members"].setdefault(name, {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)})
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(MANIFEST, json.dumps(about))
    return file


def rewritten(members: dict[str, bytes], about: dict[str, Any], name: str, data: bytes) -> None:
    members[name] = data
    about["members"].pop(name, None)


def with_old_names(members: dict[str, bytes], about: dict[str, Any], schema: str = "0007") -> None:
    """Convert to the names in use before tables and columns were renamed."""
    about["schema"] = schema
    for table, columns in {
        "project": {"overrides": "levers", "training_requests": "asked", "task_data_version": "taken"},
        "scan": {"priority": "wish"},
        "uncertainty": {},
    }.items():
        name = f"records/{table}.jsonl"
        rows = [json.loads(line) for line in members[name].splitlines()]
        rows = [{columns.get(k, k): v for k, v in row.items()} for row in rows]
        rewritten(members, about, name, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    members["records/entropy.jsonl"] = members.pop("records/uncertainty.jsonl")
    about["members"].pop("records/uncertainty.jsonl", None)
    about["counts"]["entropy"] = about["counts"].pop("uncertainty")


def refused(made: Made, folder: Path, file: Path) -> str:
    """The reason for the refusal; nothing may have been written, not even an empty data folder."""
    with pytest.raises(BadBackup) as caught:
        restore(lambda: Store(folder), file, wait=0.0)
    assert not folder.exists()
    return str(caught.value)


# -- the guarantee -----------------------------------------------------------------------------


def test_records_and_artefacts_come_back_row_by_row_and_byte_by_byte(made: Made, tmp_path: Path) -> None:
    assert all(made.records[table.name] for table in TABLES)
    assert {name.partition("/")[0] for name in made.files} == {"models", "labels", "masks", "maps"}
    store = Store(tmp_path / "data")
    summary = restored(made, store)
    assert records(store) == made.records
    assert files(store.folder) == made.files
    assert (summary.project, summary.title, summary.counts["scan"]) == (PROJECT, "Brust, Größe 1 : 1", 12)
    assert not (store.folder / "pixels").exists()


def test_a_project_moves_from_sqlite_to_postgresql_and_back(made: Made, postgres: Any, tmp_path: Path) -> None:
    there = Store(tmp_path / "there", postgres.new_database(f"backup-{secrets.token_hex(6)}"))
    restored(made, there)
    assert records(there) == made.records
    backup(there, PROJECT, tmp_path / "again.zip")
    back = Store(tmp_path / "back")
    restored(made, back, tmp_path / "again.zip")
    assert records(back) == made.records
    assert files(back.folder) == made.files


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_restored_project_has_nothing_to_do(
    kind: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """No image is fetched, nothing is embedded, trained, scored or predicted, and nothing is sent to Label Studio."""
    url = ""
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").new_database(f"backup-{secrets.token_hex(6)}")
    world, writes = made.world, list(made.world.studio.writes)
    store = Store(tmp_path / "data", url)
    restored(made, store)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done again")

    for name in ("train", "embed", "probabilities"):
        monkeypatch.setattr(KeptLearner, name, never)
    monkeypatch.setattr(world.studio, "image", never)
    tools = Reconciler(world.studio, store, KeptLearner(world.settings), world.settings)  # type: ignore[arg-type]
    assert tools.reconcile(PROJECT).steps == ()
    assert world.studio.writes == writes
    seen, was = status.describe(store, PROJECT), world.status()
    assert seen is not None
    assert {**seen, "title": ""} == {**was, "title": ""}
    after = records(store)
    for name in ("model", "round", "label", "shown", "uncertainty", "embedding", "scan"):
        assert after[name] == made.records[name]


def test_a_restored_project_goes_on(made: Made, tmp_path: Path) -> None:
    """Pixels are fetched again when needed, and the next model is trained on all labels."""
    world = World(tmp_path / "fresh")
    world.in_round_1()
    backup(world.store, PROJECT, tmp_path / "one.zip")
    shutil.rmtree(world.folder)
    world.store = Store(world.folder)
    restored(made, world.store, tmp_path / "one.zip")
    world.label(3)
    world.run()
    assert world.studio.model_version == "scanqueue-r2"
    assert [m["version"] for m in world.store.models(PROJECT)] == ["scanqueue-r1", "scanqueue-r2"]


def test_the_file_is_readable_by_its_owner_only_and_has_no_pixels_and_no_pickles(made: Made) -> None:
    assert stat.S_IMODE(made.file.stat().st_mode) == 0o600
    with zipfile.ZipFile(made.file) as archive:
        names = archive.namelist()
        about = json.loads(archive.read(MANIFEST))
    assert about["schema"] == HEAD
    assert set(names) == {MANIFEST, *about["members"]}
    assert not [n for n in names if "pixels" in n or n.endswith((".pkl", ".pickle"))]
    assert list(made.file.parent.glob(".*.part")) == []


def test_a_backup_with_the_old_table_and_column_names_is_restored_completely(made: Made, tmp_path: Path) -> None:
    values = {"project": {"levers": '{"alpha":0.5}', "asked": 3, "taken": 1}, "scan": {"wish": -1}}
    renamed = {
        "project": {"overrides": '{"alpha":0.5}', "training_requests": 3, "task_data_version": 1},
        "scan": {"priority": -1},
    }

    def older(members: dict[str, bytes], about: dict[str, Any]) -> None:
        with_old_names(members, about)
        for table, changes in values.items():
            rows = [json.loads(line) | changes for line in members[f"records/{table}.jsonl"].splitlines()]
            data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
            rewritten(members, about, f"records/{table}.jsonl", data)

    store = Store(tmp_path / "data")
    restored(made, store, changed(made, tmp_path / "old.zip", older))
    wanted = {table: [row | renamed.get(table, {}) for row in rows] for table, rows in made.records.items()}
    assert records(store) == wanted


def test_an_old_backup_may_contain_only_the_old_names(made: Made, tmp_path: Path) -> None:
    def both(members: dict[str, bytes], about: dict[str, Any]) -> None:
        with_old_names(members, about)
        members["records/uncertainty.jsonl"] = members["records/entropy.jsonl"]

    file = changed(made, tmp_path / "both.zip", both)
    assert "'records/entropy.jsonl' does not belong in a backup" in refused(made, tmp_path / "no", file)


def test_a_backup_of_an_earlier_schema_is_restored_with_what_it_has(made: Made, tmp_path: Path) -> None:
    """It has no strata and no signals except the entropy, and the project goes on with that."""

    def older(members: dict[str, bytes], about: dict[str, Any]) -> None:
        with_old_names(members, about, "0003")
        for table, column in (("entropy", "more"), ("scan", "stratum"), ("project", "stratify_by")):
            name = f"records/{table}.jsonl"
            rows = [json.loads(line) for line in members[name].splitlines()]
            assert all(row.pop(column) is not None for row in rows)
            rewritten(members, about, name, b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    store = Store(tmp_path / "data")
    restored(made, store, changed(made, tmp_path / "old.zip", older))
    after = records(store)
    assert after["uncertainty"] == [row | {"more": ""} for row in made.records["uncertainty"]]
    assert after["scan"] == made.records["scan"]
    world = made.world
    tools = Reconciler(world.studio, store, KeptLearner(world.settings), world.settings)  # type: ignore[arg-type]
    writes = list(world.studio.writes)
    assert tools.reconcile(PROJECT).steps == ()
    assert world.studio.writes == writes


# -- other projects ----------------------------------------------------------------------------


def neighbour(store: Store, made: Made) -> None:
    """Another project that shares a checkpoint and a label mask; their bytes differ here."""
    store.add_project(OTHER)
    model, label = made.records["model"][0], made.records["label"][0]
    row = {"version": "scanqueue-r1", "fingerprint": model["fingerprint"], "labels": ["Lung"], "trained_on": []}
    store.put_model(
        OTHER, row | {"accepted": 1, "validation": {}, "details": {}}, active="scanqueue-r1", training_requests=0
    )
    store.put_label(OTHER, {k: v for k, v in label.items() if k != "project"})
    store.put_folder("models", model["fingerprint"], lambda f: (f / "model.json").write_text("theirs") and None)
    store.put_arrays("labels", label["mask"], mask=np.zeros((2, 2), np.uint8))
    digest = made.records["scan"][0]["digest"]
    store.put_uncertainty(model["fingerprint"], {digest: {"image": 0.125}})


def test_nothing_of_another_project_is_touched(made: Made, tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    neighbour(store, made)
    before, had = records(store), files(store.folder)
    restored(made, store)
    after = records(store)
    for table in (*OWN, *BY_CONTENT):
        assert [row for row in before[table.name] if row not in after[table.name]] == []
    assert {name: files(store.folder)[name] for name in had} == had
    assert store.projects() == [PROJECT, OTHER]


def test_a_backup_holds_one_project_only(made: Made, tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    restored(made, store)
    store.add_project(OTHER)
    store.put_tasks(OTHER, [{"task": 900, "image": "x", "updated_at": "t", "annotated": 0, "skipped": 0}], "t")
    store.put_uncertainty("another", {"d": {"image": 0.5}})
    store.put_embeddings("pixels", ["another"], np.zeros((1, 4), np.float32))
    backup(store, PROJECT, tmp_path / "one.zip")
    only = Store(tmp_path / "only")
    restored(made, only, tmp_path / "one.zip")
    assert records(only) == made.records


# -- known and unknown projects ----------------------------------------------------------------


def test_a_known_project_is_replaced_only_on_request(made: Made, tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    store.add_project(PROJECT)
    store.set_project(PROJECT, title="Here")
    store.put_tasks(PROJECT, [{"task": 900, "image": "x", "updated_at": "t", "annotated": 0, "skipped": 0}], "t")
    store.report(PROJECT, "training", 1, 2)
    with pytest.raises(BadSetting, match=r"exists here \(Here: 1 scans, 0 models\).*pass --replace"):
        restored(made, store)
    assert files(store.folder) == {}
    restored(made, store, replace=True)
    assert records(store) == made.records
    assert store.progress(PROJECT) is None
    restored(made, store, replace=True)
    assert records(store) == made.records


def test_a_damaged_artefact_of_the_same_project_is_repaired(made: Made, tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    restored(made, store)
    weights = next((store.folder / "models").rglob("model.safetensors"))
    weights.write_bytes(b"damaged")
    restored(made, store, replace=True)
    assert files(store.folder) == made.files


def test_an_unknown_project_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"Project 7 is not known here; available: 1\."):
        backup(made.world.store, 7, tmp_path / "x.zip")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_overwritten_only_on_request(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    file.write_text("mine")
    with pytest.raises(BadSetting, match="already exists"):
        backup(made.world.store, PROJECT, file)
    assert file.read_text() == "mine"
    backup(made.world.store, PROJECT, file, force=True)
    assert zipfile.is_zipfile(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(BadSetting, match=r"is not a folder\. Create it first"):
        backup(made.world.store, PROJECT, tmp_path / "nowhere" / "x.zip")


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_or_a_device_is_never_replaced(linked: bool, made: Made, tmp_path: Path) -> None:
    pipe, named = tmp_path / "pipe", tmp_path / ("link" if linked else "pipe")
    os.mkfifo(pipe)
    if linked:
        named.symlink_to(pipe)
    with pytest.raises(BadSetting, match="is not a file"):
        backup(made.world.store, PROJECT, named, force=True)
    assert pipe.is_fifo()
    assert {p.name for p in tmp_path.iterdir()} == {"pipe", named.name}


def test_a_file_that_appears_meanwhile_is_not_overwritten(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.zip"
    write = backups._write

    def slow(*args: Any) -> Any:
        file.write_text("theirs")
        return write(*args)

    monkeypatch.setattr(backups, "_write", slow)
    with pytest.raises(BadSetting, match="meanwhile created by another process"):
        backup(made.world.store, PROJECT, file)
    assert file.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [file]


# -- a busy worker -----------------------------------------------------------------------------


def test_waiting_for_a_busy_worker_ends_after_a_time(made: Made, tmp_path: Path) -> None:
    said: list[str] = []
    store, other = Store(tmp_path / "data"), Store(tmp_path / "data")
    restored(made, store)
    with other.lock(PROJECT):
        other.report(PROJECT, "training scanqueue-r2 on 9 labels", 5, 60)
        with pytest.raises(ProjectBusy) as busy:
            backup(store, PROJECT, tmp_path / "x.zip", wait=0.3, say=said.append)
        with pytest.raises(ProjectBusy):
            restored(made, store, replace=True)
    assert said == [
        "Project 1: a worker is using it (training scanqueue-r2 on 9 labels, 5 of 60); waiting for it, at most 0 s."
    ]
    assert "did not release it within 0 s. Nothing was done. Use a longer --wait" in str(busy.value)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]

    holding, free = threading.Event(), threading.Event()

    def work() -> None:
        with other.lock(PROJECT):
            holding.set()
            free.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    holding.wait(10)
    threading.Timer(0.5, free.set).start()
    began = time.monotonic()
    backup(store, PROJECT, tmp_path / "x.zip", wait=30.0, say=said.append)
    assert time.monotonic() - began >= 0.4
    thread.join()


def test_records_are_a_consistent_snapshot(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server takes no lock: what it writes during the backup is either included everywhere or nowhere."""
    store = Store(tmp_path / "data")
    restored(made, store)
    add = backups._add

    def meanwhile(archive: Any, name: str, *rest: Any) -> Any:
        found = add(archive, name, *rest)
        if name == "records/project.jsonl":
            Store(store.folder).put_uncertainty(made.records["model"][0]["fingerprint"], {"late": {"image": 0.5}})
        return found

    monkeypatch.setattr(backups, "_add", meanwhile)
    backup(store, PROJECT, tmp_path / "x.zip")
    fresh = Store(tmp_path / "fresh")
    restored(made, fresh, tmp_path / "x.zip")
    assert records(fresh) == made.records


# -- damaged, forged, newer --------------------------------------------------------------------


def test_a_damaged_byte_anywhere_is_refused(made: Made, tmp_path: Path) -> None:
    good = made.file.read_bytes()
    with zipfile.ZipFile(made.file) as archive:
        infos = archive.infolist()
    places = [info.header_offset + 30 + len(info.filename) + 20 + info.compress_size // 2 for info in infos]
    file = tmp_path / "damaged.zip"
    for place in [*places[:: max(1, len(places) // 12)], places[-1]]:
        file.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        assert "Nothing was changed." in refused(made, tmp_path / "data", file)


def test_a_backup_from_before_the_change_log_is_restored_without_changes(made: Made, tmp_path: Path) -> None:
    def older(members: dict[str, bytes], about: dict[str, Any]) -> None:
        del members["records/change.jsonl"], about["members"]["records/change.jsonl"], about["counts"]["change"]
        about["schema"] = "0004"

    store = Store(tmp_path / "data")
    restored(made, store, changed(made, tmp_path / "older.zip", older))
    assert records(store) == made.records | {change_table.name: []}


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(part: float, made: Made, tmp_path: Path) -> None:
    file = tmp_path / "cut.zip"
    good = made.file.read_bytes()
    file.write_bytes(good[: int(len(good) * part)])
    assert "truncated or not a scanqueue backup" in refused(made, tmp_path / "data", file)


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("model", {"details": "nothing"}, "'details' is 'nothing'; expected JSON"),
        ("round", {"picks": "{}"}, "'picks' is '{}'; expected a JSON list"),
        ("round", {"picks": "[1]"}, "'picks' is '[1]'; expected lists of a task, a reason and numbers"),
        ("round", {"picks": '[["1", "medoid"]]'}, "expected lists of a task, a reason and numbers"),
        ("round", {"carried": "5"}, "'carried' is '5'; expected a JSON list"),
        ("model", {"labels": "[1]"}, "'labels' is '[1]'; expected texts"),
        ("label", {"unknown": "3"}, "'unknown' is '3'; expected a JSON list"),
        ("shown", {"dice": "good"}, "'dice' is 'good'; expected float"),
        ("scan", {"height": 2.5}, "'height' is '2.5'; expected int"),
        ("scan", {"row_mm": float("inf")}, "'row_mm' is inf, which is out of range"),
    ],
)
def test_rows_of_other_tables_that_do_not_fit_are_refused(
    table: str, change: dict[str, Any], words: str, made: Made, tmp_path: Path
) -> None:
    def forge(members: dict[str, bytes], about: dict[str, Any]) -> None:
        first, *rest = members[f"records/{table}.jsonl"].splitlines()
        data = b"\n".join([json.dumps(json.loads(first) | change).encode(), *rest])
        rewritten(members, about, f"records/{table}.jsonl", data)

    assert words in refused(made, tmp_path / "data", changed(made, tmp_path / "x.zip", forge))


def test_what_is_no_file_is_refused_at_once(made: Made, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (Path("/dev/zero"), Path("/dev/null"), Path("/dev/random"), tmp_path / "pipe", tmp_path):
        assert "is not a file" in refused(made, tmp_path / "data", place)
    (tmp_path / "empty.zip").touch()
    assert "not a scanqueue backup" in refused(made, tmp_path / "data", tmp_path / "empty.zip")


def test_a_manifest_with_an_endless_title_is_refused(made: Made, tmp_path: Path) -> None:
    def forge(_: dict[str, bytes], about: dict[str, Any]) -> None:
        about["title"] = "x" * 20_000_000

    why = refused(made, tmp_path / "data", changed(made, tmp_path / "x.zip", forge))
    assert "the title or the counts in its manifest.json are invalid" in why
    assert len(why) < 1000


def test_a_missing_file_is_refused(made: Made, tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(made, tmp_path / "data", tmp_path / "none.zip")


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/outside",
        "artefacts/models/../../outside",
        "artefacts/models/" + "0" * 24 + "/../../../outside",
        "artefacts/models/" + "0" * 24 + "/.hidden",
        "artefacts/pixels/" + "0" * 24,
        "artefacts\\labels\\" + "0" * 24,
        "records/counter.jsonl",
    ],
)
def test_an_unexpected_member_is_refused(name: str, made: Made, tmp_path: Path) -> None:
    file = changed(made, tmp_path / "x.zip", lambda members, _: members.update({name: b"x"}))
    assert "does not belong in a backup" in refused(made, tmp_path / "data", file)
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]


def test_an_artefact_that_no_record_refers_to_is_refused(made: Made, tmp_path: Path) -> None:
    name = "artefacts/labels/" + fingerprint("of another project")
    file = changed(made, tmp_path / "x.zip", lambda members, _: members.update({name: b"x"}))
    assert f"none of its records refers to '{name}'" in refused(made, tmp_path / "data", file)


def test_a_link_is_refused(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    shutil.copy(made.file, file)
    with zipfile.ZipFile(made.file) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            if info.filename.startswith("artefacts/labels/"):
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            new.writestr(info, old.read(info.filename))
    assert "is a link" in refused(made, tmp_path / "data", file)


def test_a_member_larger_than_the_manifest_says_is_refused(made: Made, tmp_path: Path) -> None:
    def larger(members: dict[str, bytes], _: dict[str, Any]) -> None:
        name = next(n for n in members if n.startswith("artefacts/labels/"))
        members[name] += b"\0" * 2**20

    assert "bytes instead of" in refused(made, tmp_path / "data", changed(made, tmp_path / "x.zip", larger))


def test_a_member_missing_or_unlisted_is_refused(made: Made, tmp_path: Path) -> None:
    file = changed(made, tmp_path / "x.zip", lambda members, _: members.pop("records/model.jsonl") and None)
    assert "is either in the file or in its manifest.json, not in both" in refused(made, tmp_path / "data", file)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("0999", "made by a newer scanqueue"),
        ("0002", "is older than 0003"),
        ("latest", "its schema 'latest' is invalid"),
    ],
)
def test_another_schema_is_refused(schema: str, words: str, made: Made, tmp_path: Path) -> None:
    file = changed(made, tmp_path / "x.zip", lambda _, about: about.update(schema=schema))
    assert words in refused(made, tmp_path / "data", file)


def test_another_format_is_refused(made: Made, tmp_path: Path) -> None:
    file = changed(made, tmp_path / "x.zip", lambda _, about: about.update(format=2, scanqueue="9.0"))
    assert "its format is 2, written by scanqueue 9.0; this one reads 1" in refused(made, tmp_path / "data", file)


def test_a_column_that_was_added_later_has_its_default(made: Made, tmp_path: Path) -> None:
    def without(members: dict[str, bytes], about: dict[str, Any]) -> None:
        row = json.loads(members["records/project.jsonl"])
        del row["embedder_why"]
        rewritten(members, about, "records/project.jsonl", json.dumps(row).encode() + b"\n")

    store = Store(tmp_path / "data")
    restored(made, store, changed(made, tmp_path / "x.zip", without))
    row = store.project(PROJECT)
    assert row is not None
    assert row["embedder_why"] == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 5}, "it does not belong to project 1"),
        ({"id": "1"}, "'id' is '1'; expected int"),
        ({"title": "half \ud800 a character"}, "'title' contains invalid characters"),
        ({"active": "x" * 41}, "'active' has 41 characters; the maximum is 40"),
        ({"training_requests": 2**40}, "'training_requests' is 1099511627776, which is out of range"),
        ({"seen_at": float("nan")}, "'seen_at' is nan, which is out of range"),
        ({"seen_at": 10**400}, "'seen_at' is inf, which is out of range"),
        ({"overrides": f'{{"alpha": {10**400}}}'}, "'overrides': alpha is 1000"),
        ({"colour": 1}, "there is no column 'colour'"),
        ({"studio_url": "javascript:alert(1)"}, "'studio_url' is 'javascript:alert(1)'; expected an http://"),
        ({"studio_url": "ftp://lab.example/x"}, "expected an http:// or https:// address"),
        ({"studio_url": "https://[::1"}, "expected an http:// or https:// address"),
        ({"backend_url": "file:///etc/passwd"}, "'backend_url' is 'file:///etc/passwd'; expected an http://"),
        ({"title": "x" * 20_000_000}, "'title' has 20,000,000 characters; the maximum is 1,000"),
        ({"title": ["Chest"]}, "'title' is \"['Chest']\"; expected str"),
        ({"title": None}, "'title' is 'None'; expected str"),
        ({"secret": ""}, "'secret' is not a webhook secret"),
        ({"overrides": '{"alpha": NaN}'}, "'overrides': alpha is nan; it must be a number from 0 to 1"),
        ({"overrides": '{"round_size": "ten"}'}, "'overrides': round_size is 'ten'; it must be a whole number"),
        ({"overrides": '{"colour": 1}'}, "'overrides': 'colour' is not a project setting"),
        ({"overrides": "[1]"}, "'overrides' is '[1]'; expected a JSON object"),
        ({"overrides": "{"}, "'overrides' is '{'; expected JSON"),
        ({"label_renames": "[" * 100_000}, "'label_renames' is"),
        ({"label_renames": "5"}, "'label_renames' is '5'; expected what scanqueue writes there"),
        ({"label_renames": '{"now": {"Lung": 5}}'}, "expected what scanqueue writes there"),
        ({"config": "{"}, "'config' is '{'; expected what scanqueue writes there"),
        ({"config": '["$image", [["tag", "brush", "image", [1]]]]'}, "expected what scanqueue writes there"),
        ({"config": "[" * 100_000}, "expected what scanqueue writes there"),
        ({"stages": "[1]"}, "'stages' is '[1]'; expected a JSON object"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(change: dict[str, Any], words: str, made: Made, tmp_path: Path) -> None:
    def forge(members: dict[str, bytes], about: dict[str, Any]) -> None:
        row = json.loads(members["records/project.jsonl"]) | change
        rewritten(members, about, "records/project.jsonl", json.dumps(row).encode())

    assert words in refused(made, tmp_path / "data", changed(made, tmp_path / "x.zip", forge))


@pytest.mark.parametrize("name", ["/etc", "../../../../etc", "ab/../../../../etc", "a" * 24 + "/..", "x" * 24])
@pytest.mark.parametrize(("table", "column"), [("model", "fingerprint"), ("label", "mask")])
def test_a_name_that_leads_out_of_the_data_folder_is_refused(
    table: str, column: str, name: str, made: Made, tmp_path: Path
) -> None:
    def forge(members: dict[str, bytes], about: dict[str, Any]) -> None:
        member = f"records/{table}.jsonl"
        first, *rest = members[member].splitlines()
        row = json.loads(first) | {column: name}
        rewritten(members, about, member, b"\n".join([json.dumps(row).encode(), *rest]) + b"\n")

    words = refused(made, tmp_path / "data", changed(made, tmp_path / "x.zip", forge))
    assert f"{column!r} is {name[:40]!r}; expected the name of a file" in words


def test_forged_records_cannot_remove_what_is_not_theirs(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    (tmp_path / "scans").mkdir()
    for name in (str(tmp_path / "scans"), "../../../scans"):
        with pytest.raises(DamagedRecords, match="is damaged"):
            store.remove_folder("models", name)
        with pytest.raises(DamagedRecords, match="is damaged"):
            store.set_aside(store.path("labels", name))
    assert (tmp_path / "scans").is_dir()
    store.close()


@pytest.mark.parametrize("table", ["uncertainty", "embedding"])
def test_values_for_models_and_scans_of_other_projects_are_refused(table: str, made: Made, tmp_path: Path) -> None:
    def forge(members: dict[str, bytes], about: dict[str, Any]) -> None:
        name = f"records/{table}.jsonl"
        row = json.loads(members[name].splitlines()[0])
        row["model" if table == "uncertainty" else "digest"] = "of another project"
        rewritten(members, about, name, members[name] + json.dumps(row).encode() + b"\n")
        about["counts"][table] += 1

    file = changed(made, tmp_path / "x.zip", forge)
    assert "belongs to none of its models or scans" in refused(made, tmp_path / "data", file)


# -- killed, and full disks --------------------------------------------------------------------


class Killed(BaseException):
    """The process is no more."""


def test_a_restore_killed_at_any_point_succeeds_when_repeated(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any artefact, in the middle of one, between artefacts and records, among the records."""
    put, rows = Store._put, Store.put_rows
    for at in (1, 2, len(made.files) // 2, 10**6):
        folder = tmp_path / f"data-{at}"
        calls = [0]

        def dying(self: Store, kind: str, name: str, write: Any, at: int = at, calls: list[int] = calls) -> Path:
            calls[0] += 1
            if calls[0] < at:
                return put(self, kind, name, write)

            def half(path: Path) -> None:
                write(path)
                raise Killed

            return put(self, kind, name, half)

        def dying_later(self: Store, connection: Any, table: Any, found: Any, *, keep: bool) -> None:
            rows(self, connection, table, found, keep=keep)
            if table.name == "round":
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Store, "_put", dying)
            patch.setattr(Store, "put_rows", dying_later)
            with pytest.raises(Killed):
                restored(made, Store(folder))
        assert records(Store(folder)) == {table.name: [] for table in TABLES}
        store = Store(folder)
        restored(made, store)
        assert records(store) == made.records
        assert files(folder) == made.files


def test_existing_artefacts_are_not_written_again(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "data")
    restored(made, store)

    def never(*_: Any) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(Store, "_put", never)
    restored(made, store, replace=True)


def test_a_full_disk_is_explained_and_the_records_stay(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr("backend.records.artefacts.shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
        with pytest.raises(
            StorageFull, match=r"Only 1 MiB are free in .*, and restoring needs .*run the same command again"
        ):
            restored(made, store)
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if "models" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("backend.records.artefacts.os.replace", full)
        with pytest.raises(
            StorageFull, match=r"There is no space in .*: project 1 was not restored, its records are un"
        ):
            restored(made, store)
    assert store.projects() == []
    restored(made, store)
    assert records(store) == made.records
    with monkeypatch.context() as patch:
        patch.setattr("backend.records.backup.os.fsync", lambda _: full(Path(), Path("models")))
        with pytest.raises(StorageFull, match=r"The disk that holds .* is full: no backup was written"):
            backup(store, PROJECT, tmp_path / "x.zip")
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_memory_does_not_grow_with_the_artefacts(made: Made, tmp_path: Path) -> None:
    import tracemalloc

    store = Store(tmp_path / "data")
    restored(made, store)
    model = made.records["model"][0]["fingerprint"]
    with (store.path("models", model) / "large.bin").open("wb") as file:
        file.truncate(256 * 2**20)
    tracemalloc.start()
    backup(store, PROJECT, tmp_path / "x.zip")
    restored(made, Store(tmp_path / "fresh"), tmp_path / "x.zip")
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()


# -- the command line --------------------------------------------------------------------------


def test_the_commands_report_what_they_did_and_a_worker_reconciles(made: Made, tmp_path: Path) -> None:
    run, file, data = CliRunner(), tmp_path / "x.zip", tmp_path / "data"
    environment = {"SCANQUEUE_DATA_DIR": str(made.world.folder)}
    done = run.invoke(cli.app, ["backup", str(file), "--project", "1"], env=environment)
    assert done.exit_code == 0, done.output
    assert "with 12 scans, 7 labels and 1 models, 1 of them with their checkpoint was written to" in done.output
    assert "contains the webhook secret" in done.output
    done = run.invoke(cli.app, ["restore", str(file), "--data-dir", str(data)], env={})
    assert done.exit_code == 0, done.output
    assert "The worker processes it next" in done.output
    assert Queue(settings_from_env(data_dir=data)).waits(PROJECT)
    assert records(Store(data)) == made.records
    again = run.invoke(cli.app, ["restore", str(file), "--data-dir", str(data)], env={})
    assert isinstance(again.exception, BadSetting)
    without_folder = run.invoke(
        cli.app, ["backup", str(file), "--project", "1", "--data-dir", str(tmp_path / "no")], env={}
    )
    assert isinstance(without_folder.exception, BadSetting)
    assert not (tmp_path / "no").exists()


def test_a_damaged_job_queue_does_not_hide_that_the_project_was_restored(made: Made, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "jobs.sqlite").write_bytes(b"garbage" * 1000)
    done = CliRunner().invoke(cli.app, ["restore", str(made.file), "--data-dir", str(data)], env={})
    assert done.exit_code != 0
    assert "was restored to" in done.output
    assert "The worker processes it next" not in done.output
    assert records(Store(data)) == made.records


def test_a_refused_archive_is_closed(made: Made, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    file = tmp_path / "x.zip"
    file.write_bytes(b"no zip")
    with pytest.raises(BadBackup):
        Archive(file)
    assert not [w for w in recwarn if issubclass(w.category, ResourceWarning)]
