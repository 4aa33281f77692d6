"""Who may read the data folder: its owner alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from backend.errors import BadSetting, StorageFull, is_disk_full

FOLDER, FILE = 0o700, 0o600
OTHERS = 0o077  # the rights of everybody but the owner


def make_folder(folder: Path) -> None:
    """Create a data folder, with its parents, that only its owner can enter. An existing one stays as it is.

    Raises StorageFull or BadSetting when that is impossible.
    """
    try:
        folder.mkdir(mode=FOLDER, parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull(f"The disk has no space for the data folder {folder}. Free disk space.") from error
        why = "a file is in its place" if isinstance(error, FileExistsError) else error.strerror
        raise BadSetting(
            f"The data folder {folder} cannot be created ({why}). Set --data-dir or SCANQUEUE_DATA_DIR to a folder "
            "that the user who runs scanqueue may write to."
        ) from error


def make_file(file: Path) -> None:
    """Create an empty file that only its owner can read, unless there is one. Never raises: who opens it reports."""
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, FILE))
    except OSError:
        return


def open_to_others(folder: Path) -> list[Path]:
    """The data folder and the files directly in it that other users have rights to."""
    return [path for path, mode in _modes(folder) if mode & OTHERS]


def protect(folder: Path) -> list[Path]:
    """Take all rights to the data folder and the files directly in it from other users.

    Deeper files are protected by the folder. Returns what could not be changed, such as what belongs to somebody else.
    """
    left = []
    for path, mode in _modes(folder):
        if mode & OTHERS:
            try:
                path.chmod(mode & ~OTHERS)
            except OSError:
                left.append(path)
    return left


def _modes(folder: Path) -> Iterator[tuple[Path, int]]:
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        inside = []
    for path in (folder, *inside):
        try:
            found = path.lstat().st_mode
        except OSError:
            continue
        if stat.S_ISREG(found) or path == folder:
            yield path, stat.S_IMODE(found)
