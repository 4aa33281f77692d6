"""The schema of the records: made, adopted, upgraded, and refused when it is newer than the code."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from backend.errors import BadSetting
from backend.migrate import HEAD
from backend.store import Store, metadata, shard_table


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.sqlite'}"
    address = request.getfixturevalue("postgres").new_database(f"migrations-{secrets.token_hex(6)}")
    return str(address).replace("postgresql://", "postgresql+psycopg://")


def revision(url: str) -> str | None:
    with create_engine(url).connect() as connection:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def test_a_migrated_database_is_just_what_the_code_describes(url: str, tmp_path: Path) -> None:
    Store(tmp_path, url)
    with create_engine(url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    assert revision(url) == HEAD


def test_a_database_from_before_there_were_migrations_is_adopted_with_its_rows(url: str, tmp_path: Path) -> None:
    engine = create_engine(url)
    metadata.create_all(engine, tables=[t for t in metadata.sorted_tables if t is not shard_table])
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO project (id, title, extra_params, backend_url, secret, connected, "
                                "cursor, config, phase, reason, trouble, asked, active, embedder, embedder_why, "
                                "sending, seen_at) VALUES (7, 'kept', '', '', 'secret', 1, '', '', 'active', '', '', "
                                "0, '', '', '', 0, 0)"))  # fmt: skip
    store = Store(tmp_path, url)
    assert store.project(7)["title"] == "kept"
    assert store.rows(shard_table.select()) == []
    assert revision(url) == HEAD


def test_a_database_that_is_newer_than_the_code_is_refused_and_left_alone(url: str, tmp_path: Path) -> None:
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
from backend.store import Store
store = Store(Path({str(tmp_path)!r}), {url!r})
store.add_project(1)
"""
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(6)]
    assert [process.wait(120) for process in running] == [0] * 6
    assert Store(tmp_path, url).projects() == [1]
