"""The SQLite file of the records: is it ours and intact, and how to read it where nothing can be written."""

from __future__ import annotations

import re
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from backend.errors import DamagedRecords, StoreUnavailable

HEADER = b"SQLite format 3\0"
ARTEFACTS = ("labels", "models", "maps", "masks")  # folders that exist only where records existed
OURS = {"project", "scan", "label"}  # tables of every version
PAGE = 512  # bytes: the smallest SQLite file that is not empty
NO_WAL = b"\1\1"  # versions in the header of a file without a write-ahead log
CREATING = 1.0  # seconds in which another process writes the first bytes of a new file
_LOST = re.compile(r"no such (table|column)|Could not decode to UTF-8")
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)


def check_file(file: Path) -> None:
    """Look at an existing file before SQLite opens it, as SQLite overwrites a very short one.

    Raises DamagedRecords, or StoreUnavailable if it cannot be read.
    """
    if _is_empty(file) and any((file.parent / kind).is_dir() for kind in ARTEFACTS):
        time.sleep(CREATING)
        if _is_empty(file):
            raise DamagedRecords(file, "is empty, although models or masks are beside it")
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise DamagedRecords(file, "is not a file")
        with file.open("rb") as opened:
            start = opened.read(PAGE)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreUnavailable(
            f"{file} cannot be read ({error.strerror}). Run the command as the user who runs `scanqueue serve`, and "
            "check the rights of the file and of its folder."
        ) from error
    if start and (len(start) < PAGE or not start.startswith(HEADER)):
        raise DamagedRecords(file, "is damaged, truncated or not an SQLite database")
    if start[18:20] == NO_WAL:  # ours has a write-ahead log; turning it on would change a file that is not ours
        _check_tables(file)


def _check_tables(file: Path) -> None:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        if what := damage(error):
            raise DamagedRecords(file, f"is damaged ({what})") from error
        return  # locked or unreadable: opening it tells why
    check_tables(file, tables)


def _is_empty(file: Path) -> bool:
    try:
        return file.stat().st_size == 0
    except OSError:
        return False


def damage(error: BaseException | None) -> str:
    """What an error of SQLite or of the conversion of its values says about damage, as one line; "" for none."""
    if isinstance(error, UnicodeDecodeError):
        return "a text in it is not UTF-8"
    if not isinstance(error, sqlite3.Error):
        return ""
    text = str(error)
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
        return "file is not a database" if "not a database" in text else "database disk image is malformed"
    found = _LOST.search(text)
    return found[0] if found else ""


def check_tables(file: Path, tables: set[str]) -> None:
    """Raise DamagedRecords if `tables` belong to another program. None at all: a new file."""
    if tables and not tables >= OURS:
        raise DamagedRecords(file, "is the database of another program")


def connect_read_only(file: Path) -> Any:
    """A connection that needs no space and no right to write.

    While other processes have the file open, it follows them; otherwise it reads the file alone.
    """
    log = file.with_name(f"{file.name}-wal")
    how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
    connection = sqlite3.connect(f"file:{quote(str(file.absolute()))}?{how}", uri=True, check_same_thread=False)
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection
