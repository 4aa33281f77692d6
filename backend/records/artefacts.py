"""Arrays, masks and checkpoints as files, each complete or absent."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import DamagedRecords, StorageFull, is_disk_full

CACHES = ("pixels", "masks", "features", "quick")  # kinds that can be recreated, from Label Studio or by a model
USE_NOTED = 86400.0  # minimum seconds between two updates of a cached file's last use
ASIDE = ".new-"  # prefix of the temporary folders in which artefacts are written


class Artefacts:
    """Files in `folder` by kind and name; written to a temporary folder and renamed into place. Picklable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, kind: str, name: str) -> Path:
        """The path of an artefact, whether it exists or not.

        Raises DamagedRecords for a name that leads out of the folder of its kind, which only forged records contain.
        """
        if name.startswith("/") or ".." in name.split("/"):
            raise DamagedRecords("A name of a file in the database", "is damaged")
        return self.folder / kind / name[:2] / name

    def has(self, kind: str, name: str) -> bool:
        path = self.path(kind, name)
        found = path.exists()
        if found:
            self._used(kind, path)
        return found

    def _used(self, kind: str, path: Path) -> None:
        """Update the last use of a cached file; `retention` removes unused files after a while."""
        if kind in CACHES:
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > USE_NOTED:
                    os.utime(path)

    def check_room(
        self, needed: int, work: str = "training", then: str = "nothing was lost, and it is tried again every minute."
    ) -> None:
        """Raises StorageFull if fewer than `needed` bytes are free, before the work instead of after it."""
        free = self._free()
        if free < needed:
            raise StorageFull(
                f"Only {free >> 20} MiB are free in {self.folder}, and {work} needs {needed >> 20}. "
                f"Free disk space; {then}"
            )

    def put_arrays(self, kind: str, name: str, **arrays: Any) -> None:
        """Write named arrays (numbers and text, never objects), completely or not at all."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())

        self.put_file(kind, name, write)

    def arrays(self, kind: str, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of an artefact; FileNotFoundError when it is missing or damaged."""
        path = self.path(kind, name)
        self._used(kind, path)
        try:
            with np.load(path, allow_pickle=False) as found:
                return {key: found[key] for key in found.files}
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            path.unlink(missing_ok=True)  # it will be recreated from its inputs
            raise FileNotFoundError(f"{path} is damaged ({error}) and was removed") from error

    def put_file(self, kind: str, name: str, write: Callable[[Path], None]) -> Path:
        """Let `write` make a file, then move it into place in one step."""
        return self._put(kind, name, write)

    def remove_folder(self, kind: str, name: str) -> bool:
        """Remove an artefact that is a folder, in one step; False when it does not exist."""
        path = self.path(kind, name)
        aside = path.with_name(f"{ASIDE}{secrets.token_hex(4)}")  # a rename needs no space on a full disk
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return False
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def set_aside(self, path: Path) -> Path | None:
        """Rename a damaged artefact, so that it is made again and can still be examined; returns its new path.

        None for a path outside the data folder, or one that is gone.
        """
        aside = path.with_name(f"{path.name}.damaged")
        if self.folder.absolute() not in path.absolute().parents:
            return None
        if aside.is_dir():
            shutil.rmtree(aside)
        try:
            os.replace(path, aside)
        except FileNotFoundError:
            return None
        return aside

    def put_folder(self, kind: str, name: str, write: Callable[[Path], None]) -> Path:
        """Let `write` fill an empty folder, then move it into place in one step."""

        def fill(path: Path) -> None:
            path.mkdir()
            write(path)

        return self._put(kind, name, fill)

    def _put(self, kind: str, name: str, write: Callable[[Path], None]) -> Path:
        target = self.path(kind, name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=target.parent))
            try:
                write(aside / name)
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(aside / name, target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            if is_disk_full(error):
                raise StorageFull(
                    f"No space to write {kind} to {self.folder}: {error.strerror}. Free disk space; "
                    "only the last step is repeated."
                ) from error
            raise
        return target

    def _free(self) -> int:
        return shutil.disk_usage(self.folder).free
