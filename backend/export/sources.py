"""Finds the source files of scans, moved ones included, and checks that they are unchanged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from backend.errors import BadSetting, LostSource, UnreadableFile
from backend.formats import Geometry, Source, content_of, is_content, packed, read_geometry, sniff
from backend.intake.identities import ScanRecord
from backend.intake.slicing import digest

SAME = 1e-4  # tolerance for equal affines (mm, direction cosines)
CURE = "Use --source to name the folder that now contains the files. They are recognized by content, not by name."


class Sources:
    """Looks for source files at their recorded paths, then in `folders`, which are read only if a file is missing."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise BadSetting(f"--source: folder {folder} does not exist. Name the folder that contains the scans.")
        self.folders = folders
        self._index: _Index | None = None

    def find(self, record: ScanRecord) -> Source:
        """The scan's source with its current paths, checked against the import.

        Raises LostSource if a file is missing or changed, or its geometry differs from the import. Paths, which may
        name a patient, are in `LostSource.where` only, not in its message.
        """
        found = record.source
        wrong = _differs(record, found)
        if wrong is not None and self.folders:
            moved = self._elsewhere(record)
            if moved is not None:
                found, wrong = moved, None
        if wrong is not None:
            what, where = wrong
            cure = CURE if not self.folders else "The folders in --source do not contain it either."
            raise LostSource(f"{record.scan}: its source {what}, so no volume was written. {cure}", where)
        try:
            geometry = read_geometry(found, time=record.time)
        except UnreadableFile as error:
            raise LostSource(
                f"{record.scan}: its source is no longer readable, so no volume was written.", str(error)
            ) from error
        if problem := _other_geometry(geometry, record):
            raise LostSource(
                f"{record.scan}: its source has {problem}, so no volume was written. Import it again.",
                str(found.files[0]),
            )
        return found

    def _elsewhere(self, record: ScanRecord) -> Source | None:
        if self._index is None:
            self._index = _Index(self.folders)
        index = self._index
        if _by_instance(record.source):
            paths = [index.instance(uid) for uid in record.source.instances]
            known = tuple(path for path in paths if path is not None)
            return replace(record.source, files=known) if len(known) == len(paths) else None
        path = index.plain(record)
        return None if path is None else replace(record.source, files=(path,))


class _Index:
    """All scans below some folders: DICOM by instance UID, other files by content."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.instances: dict[str, Path] = {}
        self._waiting: dict[Path, None] = {}
        self._digests: dict[str, Path] = {}
        self._contents: dict[str, Path] = {}
        self._dicom: list[Path] = []
        for path in _files(folders):
            try:
                facts = sniff(path)
            except (UnreadableFile, OSError):
                continue
            if facts is not None and facts.instance:
                self.instances.setdefault(facts.instance, path)
            if facts is not None:
                self._waiting[path] = None
                if facts.kind == "dicom":
                    self._dicom.append(path)

    def instance(self, uid: str) -> Path | None:
        """The file with this SOPInstanceUID, or the DICOM file with this content, which takes reading all once."""
        if is_content(uid) and not self._contents:
            for path in self._dicom:
                with suppress(UnreadableFile, OSError):
                    self._contents.setdefault(content_of(path), path)
        return self._contents.get(uid) if is_content(uid) else self.instances.get(uid)

    def plain(self, record: ScanRecord) -> Path | None:
        """The file with the content of a single-file scan. Files with its name are read first."""
        name = record.source.files[0].name
        for path in sorted(self._waiting, key=lambda p: p.name != name):
            if record.digest in self._digests:
                break
            del self._waiting[path]
            try:
                self._digests.setdefault(digest(replace(record.source, files=(path,))), path)
            except OSError:
                continue
        return self._digests.get(record.digest)


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        for place, inner, names in os.walk(folder):
            inner.sort()
            for name in sorted(names):
                inside = packed.members(Path(place, name))
                yield from [Path(place, name)] if inside is None else inside


def _differs(record: ScanRecord, source: Source) -> tuple[str, str] | None:
    """How the files differ from the imported ones, without and with paths; None if they are the same."""
    by_instance = _by_instance(source)
    for number, path in enumerate(source.files):
        part = f"file {number + 1} of {len(source.files)}" if len(source.files) > 1 else "file"
        if not packed.is_file(path):
            return f"was moved or deleted ({part} is missing)", f"missing: {path}"
        if not by_instance:
            continue
        try:
            known = source.instances[number]
            if is_content(known):
                same = content_of(path) == known
            else:
                facts = sniff(path)
                same = facts is not None and facts.instance == known
        except (UnreadableFile, OSError) as error:
            return f"is unreadable ({part})", str(error)
        if not same:
            return f"has changed since the import ({part} was replaced)", f"changed: {path}"
    if by_instance:
        return None
    try:
        same = digest(source) == record.digest
    except OSError as error:
        return "is unreadable", str(error)
    return None if same else ("has changed since the import", f"changed: {source.files[0]}")


def _by_instance(source: Source) -> bool:
    """Whether its files are identified by SOPInstanceUID; otherwise by content."""
    return bool(source.uid and source.instances and all(source.instances))


def _other_geometry(now: Geometry, record: ScanRecord) -> str:
    """How the geometry differs from the import. Files with the same content, and files whose position was unknown, may
    be read more accurately now: only their size matters."""
    then = record.geometry
    if tuple(now.shape) != tuple(then.shape):
        return f"{' x '.join(map(str, now.shape))} voxels, but had {' x '.join(map(str, then.shape))} when imported"
    exact = _by_instance(record.source) and then.orientation
    if exact and not np.allclose(now.affine, then.affine, rtol=0, atol=SAME):
        return "a different position, direction or spacing than when it was imported"
    return ""
