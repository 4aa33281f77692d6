"""Migrates the database to the schema of this code (Alembic).

Runs whenever a store is opened; costs one small query if there is nothing to do.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock
from sqlalchemy import Connection, Engine, inspect, text

from backend.errors import BadSetting, StorageFull, StoreUnavailable, is_disk_full
from backend.records.sqlite_file import check_tables

HEAD = "0014"  # the newest revision in migrations/versions
FIRST = "0001"  # the revision of databases that do not record one
KEY = 5316291  # advisory lock in PostgreSQL; any otherwise unused number


def migrate(engine: Engine, lock: Path) -> None:
    """Upgrade the database, completely or (if killed) not at all; concurrent calls are safe.

    lock  the lock file of processes that share one SQLite database

    Raises BadSetting, and changes nothing, when the database is newer than this code.
    """
    if is_current(engine):
        return
    with ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(lock, fallback_to_soft=False))
        except (NotImplementedError, OSError) as error:  # no file locks here; the database's own locks are enough
            if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                full = is_disk_full(error)
                raise (StorageFull if full else StoreUnavailable)(
                    f"The records need a migration, and {lock} cannot be written ({error.strerror}). Free disk space, "
                    "or make the folder writable."
                ) from error
        connection = stack.enter_context(engine.begin())
        if connection.dialect.name == "postgresql":
            connection.execute(
                text("SET LOCAL statement_timeout = 0")
            )  # waiting for other processes and for large tables takes long
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": KEY})
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # otherwise sqlite3 commits each table separately
        upgrade(connection)


def is_current(engine: Engine) -> bool:
    """Whether the database has the schema of this code."""
    with engine.connect() as connection:
        return _revision(connection) == HEAD


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations up to `revision`, in the transaction of `connection`."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    found, tables = _revision(connection), set(inspect(connection).get_table_names())
    if connection.dialect.name == "sqlite":
        check_tables(Path(str(connection.engine.url.database)), tables)
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    if found is not None and found not in known:
        raise BadSetting(
            f"The records were written by a newer scanqueue: their schema is {found}, this one supports up to {HEAD}. "
            "Nothing was changed. Install the newer scanqueue again, or restore a backup of the older one."
        )
    if found is None and "project" in tables:
        command.stamp(config, FIRST)  # created before migrations existed
    command.upgrade(config, revision)
