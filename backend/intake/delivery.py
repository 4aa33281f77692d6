"""How pictures reach Label Studio: by upload, or as local files in a folder that it serves."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import quote

from backend.errors import CannotDeliver, ScanqueueError, StudioUnavailable
from backend.intake.existing_tasks import PATIENCE, PAUSE, ExistingTasks
from backend.label_studio.importing import UPLOAD_BYTES, UPLOAD_FILES, Upload
from backend.label_studio.studio import Studio

log = logging.getLogger("scanqueue.intake")


@dataclass(frozen=True)
class Batch:
    """Limits of one delivery: number of files, and bytes."""

    files: int
    size: int


class Delivery(Protocol):
    """A way to bring pictures to Label Studio."""

    batch: Batch

    def folder(self, scan: str) -> Path:
        """The folder for the pictures of a scan."""

    def deliver(self, files: Sequence[Path]) -> list[str]:
        """Make Label Studio serve the files; returns their addresses for task data. May delete the files."""

    def close(self) -> None:
        """Clean up."""


class Uploads:
    """Uploads pictures from a spool folder. Uploads of an interrupted import are reused."""

    batch = Batch(UPLOAD_FILES, UPLOAD_BYTES)

    def __init__(
        self, studio: Studio, project: int, spool: Path, existing: ExistingTasks, *, patience: float = PATIENCE
    ) -> None:
        self._studio = studio
        self._project = project
        self._spool = spool
        self._patience = patience
        shutil.rmtree(spool, ignore_errors=True)  # left by a killed import
        spool.mkdir(parents=True, mode=0o700)
        self._spare: dict[str, list[Upload]] = {}
        self._known: set[int] = set()
        self._existing = existing
        self._refresh()

    def _refresh(self) -> None:
        """List the uploads that no task uses yet, by the name we gave them."""
        for upload in self._studio.uploads(self._project):
            place = _place(upload.name)
            if place is not None and upload.number not in self._known and not self._existing.has(*place):
                self._known.add(upload.number)
                self._spare.setdefault(upload.name, []).append(upload)

    def folder(self, scan: str) -> Path:
        return self._spool / scan

    def deliver(self, files: Sequence[Path]) -> list[str]:
        contents = {file.name: file.read_bytes() for file in files}
        found = {name: address for name, data in contents.items() if (address := self._uploaded(name, data))}
        until = time.monotonic() + self._patience
        while missing := [(name, data) for name, data in contents.items() if name not in found]:
            try:
                for upload in self._studio.upload(self._project, missing):
                    found[upload.name] = upload.address
            except StudioUnavailable as error:
                if time.monotonic() > until:
                    raise
                log.warning("Label Studio did not confirm an upload; checking which files it has")
                self._settle(until, error)
                for name, data in missing:
                    if address := self._uploaded(name, data):
                        found[name] = address
        for file in files:
            file.unlink(missing_ok=True)
        return [found[file.name] for file in files]

    def _uploaded(self, name: str, data: bytes) -> str:
        """The address of the same picture from an earlier attempt, or ""."""
        while self._spare.get(name):
            upload = self._spare[name].pop()
            try:
                if upload.size == len(data) and self._studio.image(upload.address) == data:
                    return upload.address
            except StudioUnavailable:
                raise
            except ScanqueueError:
                continue  # its file was deleted
        return ""

    def _settle(self, until: float, error: StudioUnavailable) -> None:
        while True:
            time.sleep(PAUSE)
            try:
                self._refresh()
                return
            except StudioUnavailable as silent:
                if time.monotonic() > until:
                    raise silent from error

    def close(self) -> None:
        shutil.rmtree(self._spool, ignore_errors=True)


class LocalFiles:
    """Writes pictures into a folder from which Label Studio serves local files.

    folder  a folder below `root`; each project gets a subfolder
    root    path of Label Studio's LOCAL_FILES_DOCUMENT_ROOT on this machine; None: the same path as there

    Raises CannotDeliver with advice if Label Studio does not serve the folder.
    """

    batch = Batch(1000, 2**40)

    def __init__(self, studio: Studio, project: int, folder: Path, root: Path | None, *, prepare: bool = True) -> None:
        self._studio = studio
        self._proven = not prepare
        theirs = PurePosixPath(studio.document_root(project) or (root or folder.parent).absolute().as_posix())
        ours = (root if root is not None else Path(theirs)).absolute()
        own = folder.absolute()
        if ours.resolve() != own.resolve() and ours.resolve() in own.resolve().parents:
            self._relative = PurePosixPath(own.resolve().relative_to(ours.resolve()).as_posix())
        else:
            raise CannotDeliver(
                f"{folder} is not below {ours}, the folder from which Label Studio may serve local files "
                f"({theirs} on its machine). Pass a folder below it to --local-files; if the folder has another path "
                "on this machine, pass that path to --local-root."
            )
        self._own = own / f"project-{project}"
        self._relative /= f"project-{project}"
        self._where = str(theirs / self._relative.parent)
        if prepare:
            try:
                self._own.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CannotDeliver(f"Cannot create {self._own}: {error.strerror}. Use another folder.") from error
            self._storage(project)

    def _storage(self, project: int) -> None:
        covered = [PurePosixPath(path) for path in self._studio.local_storages(project) if path]
        where = PurePosixPath(self._where)
        objection = self._studio.local_files_objection(project, self._where)
        if objection:
            raise CannotDeliver(_advice(objection, self._where))
        if not any(path == where or path in where.parents for path in covered):
            self._studio.add_local_storage(project, self._where)

    def folder(self, scan: str) -> Path:
        return self._own / scan

    def deliver(self, files: Sequence[Path]) -> list[str]:
        base = quote(self._relative.as_posix())
        found = [self._studio.local_address(f"{base}/{file.parent.name}/{file.name}") for file in files]
        if files and not self._proven:
            self._prove(files[0], found[0])
        return found

    def _prove(self, file: Path, address: str) -> None:
        """Fetch the first picture before tasks are created: Label Studio may have another folder at that path."""
        try:
            served = self._studio.image(address)
        except StudioUnavailable:
            raise
        except ScanqueueError as error:
            raise CannotDeliver(f"Label Studio does not serve the files in {self._own}: {error}") from error
        if served != file.read_bytes():
            raise CannotDeliver(
                f"Label Studio serves other files than those in {self._own}: on its machine, {self._where} is another "
                "folder. Pass the path of Label Studio's LOCAL_FILES_DOCUMENT_ROOT on this machine to --local-root."
            )
        self._proven = True

    def close(self) -> None:
        pass


def _advice(objection: str, where: str) -> str:
    if "does not exist" in objection:
        return (
            f"Label Studio has no folder {where}. It may run in a container or on another machine: mount the folder "
            "below its LOCAL_FILES_DOCUMENT_ROOT, and pass the path of that root on this machine to --local-root."
        )
    if "LOCAL_FILES_SERVING_ENABLED" in objection:
        return (
            "Label Studio does not serve local files. Start it with LOCAL_FILES_SERVING_ENABLED=true and "
            "LOCAL_FILES_DOCUMENT_ROOT set to a parent folder of the pictures, or import without --local-files."
        )
    return f"Label Studio refuses to serve {where}: {objection[:300]}"


def _place(name: str) -> tuple[str, str, int] | None:
    """Scan, axis and slice in a picture's name; None if the file is not ours."""
    parts = name.split(".")
    if len(parts) != 4 or parts[3] != "png" or not parts[2].isdecimal() or not parts[0].startswith("S-"):
        return None
    return parts[0], parts[1], int(parts[2])
