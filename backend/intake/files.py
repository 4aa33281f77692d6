"""Which files lie below the given paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from backend.errors import BadSetting


def walk(paths: Sequence[Path], *, spare: Sequence[Path] = ()) -> Iterator[Path]:
    """Every file of `paths` and of the folders below them, each once, in the order of their names.

    Links are followed, hidden names are not. A folder that cannot be opened is given instead of its files, so that
    reading it fails and is said.

    spare  folders that are not entered: what we have written ourselves

    Raises BadSetting when one of `paths` does not exist, before any file is given.
    """
    for path in paths:
        if not path.exists():
            raise BadSetting(f"{path} does not exist. Give files or folders of scans.")
    avoided = {place for place in map(_place, spare) if place}
    seen: set[tuple[int, int]] = set()
    for path in paths:
        yield from _below(path, seen, avoided)


def _below(path: Path, seen: set[tuple[int, int]], avoided: set[tuple[int, int]]) -> Iterator[Path]:
    place = _place(path)
    if place is None or place in seen or place in avoided:
        return  # gone meanwhile, a link back, a path given twice, or ours
    seen.add(place)
    if not path.is_dir():
        yield path
        return
    try:
        entries = sorted((e for e in os.scandir(path) if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError:
        yield path
        return
    for entry in entries:
        if not entry.is_file(follow_symlinks=False):
            yield from _below(path / entry.name, seen, avoided)
            continue
        if (place[0], entry.inode()) not in seen:
            seen.add((place[0], entry.inode()))
            yield path / entry.name


def _place(path: Path) -> tuple[int, int] | None:
    """What a path leads to, whatever it is called."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
