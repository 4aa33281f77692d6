"""Finding the files below the given paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from backend.errors import BadSetting
from backend.formats import packed


def walk(paths: Sequence[Path], *, spare: Sequence[Path] = ()) -> Iterator[Path]:
    """Every file in `paths`, the folders below and the zip archives there, each once, in order of their names.

    Follows links and ignores hidden names. Yields a folder that cannot be opened instead of its files, so that
    reading it reports the problem.

    spare  files and folders to skip, because they contain our own files, or masks

    Raises BadSetting if one of `paths` does not exist, before it yields any file.
    """
    for path in paths:
        if not path.exists():
            raise BadSetting(f"{path} does not exist. Pass files or folders with scans.")
    avoided = {place for place in map(_place, spare) if place}
    seen: set[tuple[int, int]] = set()
    for path in paths:
        yield from _below(path, seen, avoided)


def _below(path: Path, seen: set[tuple[int, int]], avoided: set[tuple[int, int]]) -> Iterator[Path]:
    place = _place(path)
    if place is None or place in seen or place in avoided:
        return  # deleted meanwhile, a link to a parent, a path passed twice, or our own folder
    seen.add(place)
    if not path.is_dir():
        yield from _inside(path)
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
        file = place[0], entry.inode()
        if file not in seen and file not in avoided:
            seen.add(file)
            yield from _inside(path / entry.name)


def _inside(path: Path) -> Sequence[Path]:
    """The file, or the members of a zip archive."""
    inside = packed.members(path) if path.suffix.lower() == ".zip" else None
    return [path] if inside is None else inside


def _place(path: Path) -> tuple[int, int] | None:
    """Device and inode of a path, which identify the file under any name; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
