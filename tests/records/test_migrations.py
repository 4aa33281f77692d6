"""The schema of the records: created, adopted, upgraded, and refused if it is newer than the code."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, LargeBinary, String, create_engine, inspect, text

from backend.errors import BadSetting
from backend.facts import Lesson
from backend.records.migrate import FIRST, HEAD, upgrade
from backend.records.store import Store
from backend.records.tables import lesson_table, metadata
from backend.web.status import describe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.sqlite'}"
    address = request.getfixturevalue("postgres").new_database(f"migrations-{secrets.token_hex(6)}")
    return str(address).replace("postgresql://", "postgresql+psycopg://")


def revision(url: str) -> str | None:
    with create_engine(url).connect() as connection:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def differences(url: str) -> list[object]:
    """The differences between the database and the schema in the code."""
    with create_engine(url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))


def make_as_before(engine: Engine) -> None:
    """Create the tables as before the first migration."""
    with engine.begin() as connection:
        upgrade(connection, FIRST)
        connection.execute(text("DROP TABLE alembic_version"))


def test_a_migrated_database_matches_the_schema_in_the_code(url: str, tmp_path: Path) -> None:
    Store(tmp_path, url)
    assert differences(url) == []
    assert revision(url) == HEAD


def test_a_database_from_before_the_first_migration_is_adopted_with_its_rows(url: str, tmp_path: Path) -> None:
    engine = create_engine(url)
    make_as_before(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO project (id, title, extra_params, backend_url, secret, connected, "
                                "cursor, config, phase, reason, trouble, asked, active, embedder, embedder_why, "
                                "sending, seen_at) VALUES (7, 'kept', '', '', 'secret', 1, '', '', 'active', '', '', "
                                "0, '', '', '', 0, 0)"))  # fmt: skip
        connection.execute(text("INSERT INTO entropy (model, digest, value) VALUES ('m', 'd', 0.25)"))
        connection.execute(text("INSERT INTO scan (project, task, image, updated_at, annotated, skipped, digest, "
                                "height, width, problem, problem_at) VALUES (7, 3, 'i', 't', 0, 0, 'd', 9, 9, '', "
                                "0)"))  # fmt: skip
    store = Store(tmp_path, url)
    assert store.image_entropies("m") == {"d": 0.25}
    assert store.uncertainty("m") == {"d": {"image": 0.25}}
    (scan,) = store.scans(7)
    assert (scan["digest"], scan["stratum"]) == ("d", "")
    assert [scan[name] for name in ("volume", "slice", "patient")] == ["", 0, ""]
    assert [scan[name] for name in ("row_mm", "column_mm", "blank")] == [0, 0, 0]
    assert store.project(7)["task_data_version"] == 0
    store.put_uncertainty("m", {"d": {"image": 0.25, "top": 0.5}})
    assert store.uncertainty("m") == {"d": {"image": 0.25, "top": 0.5}}
    assert store.project(7)["title"] == "kept"
    assert store.add_project(2**40)
    assert store.projects() == [7, 2**40]
    assert differences(url) == []
    assert revision(url) == HEAD


@pytest.mark.parametrize("adopted", [False, True])
def test_a_process_killed_during_a_migration_leaves_the_database_unchanged(
    url: str, tmp_path: Path, adopted: bool
) -> None:
    if adopted:
        make_as_before(create_engine(url))
    program = f"""
import os, signal
from pathlib import Path
from alembic import op
from backend.records.store import Store
create = op.create_table
def create_until_killed(name, *columns):
    create(name, *columns)
    if name == {"shard" if adopted else "project"!r}:
        os.kill(os.getpid(), signal.SIGKILL)
op.create_table = create_until_killed
Store(Path({str(tmp_path)!r}), {url!r})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    with create_engine(url).connect() as connection:
        found = set(inspect(connection).get_table_names())
    later = {"counter", "change", "worker", "uncertainty", "quick_mask", "lesson", "correction"}
    old = set(metadata.tables) - later | {"entropy"}
    assert found == (old if adopted else set())
    assert Store(tmp_path, url).projects() == []
    assert differences(url) == []


def test_a_database_of_schema_0007_keeps_its_rows_under_the_new_names(url: str, tmp_path: Path) -> None:
    with create_engine(url).begin() as connection:
        upgrade(connection, "0007")
        for statement in (
            "INSERT INTO project (id, title, extra_params, backend_url, secret, connected, cursor, config, phase, "
            "reason, trouble, asked, active, embedder, embedder_why, sending, seen_at, stratify_by, levers, studio_url,"
            " taken) VALUES (7, 't', '', '', 's', 1, '', '', 'active', '', '', 2, '', '', '', 0, 0, '', '{}', '', 1)",
            "INSERT INTO scan (project, task, image, updated_at, annotated, skipped, digest, height, width, problem, "
            "problem_at, wish) VALUES (7, 3, 'i', 't', 0, 0, 'd', 9, 9, '', 0, -1)",
            "INSERT INTO entropy (model, digest, value, more) VALUES ('m', 'd', 0.25, '{\"top\":0.5}')",
            "INSERT INTO measure (name, label, count, total) VALUES ('step', 'Train', 3, 1.5)",
            "INSERT INTO shard (project, run, n, kind, needs, tasks, state, owner, beat, tries) "
            "VALUES (7, 'r', 0, 'read', 'pixels', '[3]', 'open', '', 0, 0)",
        ):
            connection.exec_driver_sql(statement)
    store = Store(tmp_path, url)
    project = store.project(7)
    assert project is not None
    assert [project[name] for name in ("overrides", "training_requests", "task_data_version")] == ["{}", 2, 1]
    assert store.columns(7, "task", "priority") == [(3, -1)]
    assert store.uncertainty("m") == {"d": {"image": 0.25, "top": 0.5}}
    assert store.counters("step") == {"Train": (3, 1.5)}
    assert differences(url) == []


def test_a_database_that_is_newer_than_the_code_is_refused_and_unchanged(url: str, tmp_path: Path) -> None:
    Store(tmp_path, url).add_project(1)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(BadSetting, match=r"newer scanqueue: their schema is 9999.*Install the newer scanqueue"):
        Store(tmp_path, url)
    assert revision(url) == "9999"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM project")).scalar() == 1


def test_six_processes_may_open_an_empty_database_at_once(url: str, tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from backend.records.store import Store
store = Store(Path({str(tmp_path)!r}), {url!r})
store.add_project(1)
"""
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(6)]
    assert [process.wait(120) for process in running] == [0] * 6
    assert Store(tmp_path, url).projects() == [1]


def test_an_installed_scanqueue_has_its_migrations(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("backend", "sampling"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("backend/records/migrations/")}
    assert packed == {
        str(path.relative_to(ROOT)) for path in (ROOT / "backend" / "records" / "migrations").rglob("*.py")
    }


def test_annotations_of_schema_0009_knew_the_labels_of_the_last_config(url: str, tmp_path: Path) -> None:
    config = json.dumps(["$image", [["tag", "brush", "image", ["Lung", "Heart"]], ["p", "polygon", "image", ["Lung"]]]])
    with create_engine(url).begin() as connection:
        upgrade(connection, "0009")
        for project, text_of in ((7, config), (8, "")):
            connection.execute(
                text(
                    "INSERT INTO project (id, title, extra_params, backend_url, secret, connected, cursor, config, "
                    "phase, reason, trouble, training_requests, active, embedder, embedder_why, sending, seen_at, "
                    "stratify_by, overrides, studio_url, task_data_version) VALUES (:id, '', '', '', '', 1, '', "
                    ":config, '', '', '', 0, '', '', '', 0, 0, '', '', '', 0)"
                ),
                {"id": project, "config": text_of},
            )
            connection.execute(
                text(
                    "INSERT INTO label (project, task, annotation, key, mask, read_at, config, shown_version, problem, "
                    "remark) VALUES (:id, 3, 4, '4@t', 'm', 't', 'c', '', '', '')"
                ),
                {"id": project},
            )
    store = Store(tmp_path, url)
    assert [r["known"] for r in store.labels(7)] == ['["Lung", "Heart"]']
    assert [r["known"] for r in store.labels(8)] == [""]
    assert differences(url) == []


def test_models_of_schema_0012_keep_what_they_learnt_from_and_their_held_out_scans(url: str, tmp_path: Path) -> None:
    lessons = [[1, "d1", "m1", "P"], [2, "d2", "m2", "", [3]]]
    held_out = [{"task": 2, "dice": 0.5}]
    given = {"scanqueue-r1": ["4@t", "5@t"], "scanqueue-r2": lessons[:1], "scanqueue-r3": lessons}
    with create_engine(url).begin() as connection:
        upgrade(connection, "0012")
        for at, (version, trained_on) in enumerate(given.items()):
            connection.execute(
                text(
                    "INSERT INTO model (project, version, fingerprint, labels, trained_on, accepted, remark, "
                    "validation, details, created_at) VALUES (7, :version, 'f', '[]', :trained_on, 1, '', '{}', "
                    ":details, :at)"
                ),
                {"version": version, "trained_on": json.dumps(trained_on), "at": at}
                | {"details": json.dumps({"recipe": "r", "held_out": held_out})},
            )
    store = Store(tmp_path, url)
    found = store.models(7)
    assert [one["trained_on"] for one in found] == [
        ["4@t", "5@t"],
        [Lesson(1, "d1", "m1", "P")],
        [Lesson(1, "d1", "m1", "P"), Lesson(2, "d2", "m2", "", (3,))],
    ]
    assert [one["details"] for one in found] == [{"recipe": "r", "held_out": held_out}] * 3
    assert [(one["learnt"], one["details"]) for one in store.model_summaries(7)] == [
        (n, {"recipe": "r"}) for n in (2, 1, 2)
    ]
    assert len(store.rows(lesson_table.select())) == 2
    assert differences(url) == []


def revisions() -> list[str]:
    return sorted(path.stem[:4] for path in (ROOT / "backend" / "records" / "migrations" / "versions").glob("0*.py"))


FILLED = {  # what one row has in the columns that are read back, under their present and their earlier names
    "project": 7,
    "task": 3,
    "annotated": 1,
    "title": "kept",
    "secret": "s3cret",
    "digest": "d1",
    "mask": "m1",
    "version": "scanqueue-r1",
    "labels": "[]",
    "trained_on": "[]",
    "validation": "{}",
    "details": "{}",
    "value": 0.25,
    "vector": b"\0\0\x80?",
    "picks": "[]",
    "carried": "[]",
    "count": 5,
    "what": "alpha from 0.4 to 0.6",
}
NAMES = {"entropy": "uncertainty", "measure": "counter"}  # tables that were renamed


def fill(connection: Connection) -> dict[str, int]:
    """One row in every table; returns the tables that must keep it, by their present names."""
    inspected = inspect(connection)
    kept = {}
    for table in inspected.get_table_names():
        if table in ("alembic_version", "shard"):  # work that was running is begun again
            continue
        row: dict[str, object] = {}
        for column in inspected.get_columns(table):
            name, of_text = column["name"], isinstance(column["type"], String)
            if (name, table) in (("id", "project"), ("name", "worker")):
                row[name] = 7 if name == "id" else "worker-1"
            elif (name, table) == ("config", "label"):
                row[name] = "key"  # "" would mean: to be read again
            elif name in FILLED and not (name == "labels" and table == "round"):
                row[name] = FILLED[name]
            elif not column["nullable"]:
                row[name] = "" if of_text else b"" if isinstance(column["type"], LargeBinary) else 0
        columns = ", ".join(f'"{name}"' for name in row)
        values = ", ".join(f":{name}" for name in row)
        connection.execute(text(f'INSERT INTO "{table}" ({columns}) VALUES ({values})'), row)
        kept[NAMES.get(table, table)] = 1
    return kept


@pytest.mark.parametrize("old", revisions())  # the newest one too: it has the same rows
def test_a_database_of_every_earlier_schema_is_upgraded_with_all_its_rows(old: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'records.sqlite'}"
    with create_engine(url).begin() as connection:
        upgrade(connection, old)
        kept = fill(connection)
    store = Store(tmp_path, url)
    with create_engine(url).connect() as connection:
        for table in kept:
            assert connection.execute(text(f'SELECT count(*) FROM "{table}"')).scalar() == 1, table
    project = store.project(7)
    assert project is not None
    assert (project["title"], project["secret"]) == ("kept", "s3cret")
    assert [(s["task"], s["digest"]) for s in store.scans(7)] == [(3, "d1")]
    assert [(r["task"], r["mask"]) for r in store.labels(7)] == [(3, "m1")]
    assert [m["version"] for m in store.models(7)] == ["scanqueue-r1"]
    assert len(store.rounds(7)) == 1
    assert store.uncertainty("")["d1"]["image"] == 0.25
    assert store.embeddings("", ["d1"]).tolist() == [[1.0]]
    if "counter" in kept:
        assert store.counters("")[""][0] == 5
    if "change" in kept:
        assert [change["what"] for change in store.changes(7)] == ["alpha from 0.4 to 0.6"]
    described = describe(store, 7)
    assert described is not None
    assert (described["title"], described["scans"]) == ("kept", 1)
    assert differences(url) == []
