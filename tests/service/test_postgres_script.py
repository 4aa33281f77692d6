"""deploy/postgres/scanqueue.sh, run or read by the entry point of the PostgreSQL image, against a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from servers import PostgresServer

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "postgres" / "scanqueue.sh"
# docker_process_init_files in docker-entrypoint.sh of the image, whose shell is bash with these options
ENTRY_POINT = """
set -Eeo pipefail
before=$-
if [ -x "$1" ]; then
    "$1"
else
    . "$1"
fi
[ "$before" = "$-" ] || echo "the options changed from $before to $-"
echo "it went on, and unset variables are still empty: '$NEVER_SET'"
"""

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    with PostgresServer(user="labelstudio") as server:
        yield server


@pytest.fixture(params=["executable", "not executable"])
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    copy = tmp_path / SCRIPT.name
    shutil.copyfile(SCRIPT, copy)
    copy.chmod(0o755 if request.param == "executable" else 0o644)
    return copy


def run(script: Path, server: PostgresServer, **changes: str | None) -> subprocess.CompletedProcess[str]:
    env: dict[str, str | None] = {
        **os.environ,
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "PGPASSWORD": server.password,
        "POSTGRES_USER": server.user,
        "SCANQUEUE_DB_PASSWORD": "it's a \\ $secret",
    }
    given = {name: value for name, value in (env | changes).items() if value is not None}
    command = ["bash", "-c", ENTRY_POINT, "docker-entrypoint.sh", str(script)]
    return subprocess.run(command, env=given, text=True, capture_output=True, timeout=60)


def test_it_creates_the_database_and_leaves_the_shell_as_it_was(script: Path, own_postgres: PostgresServer) -> None:
    done = run(script, own_postgres)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "it went on, and unset variables are still empty: ''"
    assert "the options changed" not in done.stdout
    try:
        with psycopg.connect(
            host="127.0.0.1", port=own_postgres.port, user="scanqueue", password="it's a \\ $secret", dbname="scanqueue"
        ) as connection:
            connection.execute("CREATE TABLE mine (n int)")
        again = run(script, own_postgres)  # the role exists: an error, which the entry point ends with
        assert again.returncode != 0
        assert "already exists" in again.stderr
        assert "it went on" not in again.stdout
    finally:
        with psycopg.connect(own_postgres.url("postgres"), autocommit=True) as connection:
            connection.execute("DROP DATABASE scanqueue")
            connection.execute("DROP ROLE scanqueue")


def test_without_a_password_it_fails_and_so_does_the_entry_point(script: Path, own_postgres: PostgresServer) -> None:
    done = run(script, own_postgres, SCANQUEUE_DB_PASSWORD=None)
    assert done.returncode != 0
    assert "SCANQUEUE_DB_PASSWORD" in done.stderr
    assert "it went on" not in done.stdout
