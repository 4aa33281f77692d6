"""How pictures come to where Label Studio serves them: uploaded, or written into a folder that it reads."""

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
    """How many pictures go at once: files and bytes."""

    files: int
    size: int


class Delivery(Protocol):
    """Where pictures go."""

    batch: Batch

    def folder(self, scan: str) -> Path:
        """Where the pictures of a scan are to be written."""

    def deliver(self, files: Sequence[Path]) -> list[str]:
        """Make the files served; the address of each for a task's data. The files may then be gone."""

    def close(self) -> None:
        """Nothing more will come."""


class Uploads:
    """Pictures are uploaded from a spool folder. What an interrupted import has uploaded already is used again."""

    batch = Batch(UPLOAD_FILES, UPLOAD_BYTES)

    def __init__(
        self, studio: Studio, project: int, spool: Path, existing: ExistingTasks, *, patience: float = PATIENCE
    ) -> None:
        self._studio = studio
        self._project = project
        self._spool = spool
        self._patience = patience
        shutil.rmtree(spool, ignore_errors=True)  # of a killed import
        spool.mkdir(parents=True, mode=0o700)
        self._spare: dict[str, list[Upload]] = {}
        self._known: set[int] = set()
        self._existing = existing
        self._refresh()

    def _refresh(self) -> None:
        """Uploads that no task shows yet, by the name we gave them."""
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
                log.warning("an upload was not confirmed; Label Studio is asked which files it has")
                self._settle(until, error)
                for name, data in missing:
                    if address := self._uploaded(name, data):
                        found[name] = address
        for file in files:
            file.unlink(missing_ok=True)
        return [found[file.name] for file in files]

    def _uploaded(self, name: str, data: bytes) -> str:
        """The address of the same picture from an earlier attempt; "" when there is none."""
        while self._spare.get(name):
            upload = self._spare[name].pop()
            try:
                if upload.size == len(data) and self._studio.image(upload.address) == data:
                    return upload.address
            except StudioUnavailable:
                raise
            except ScanqueueError:
                continue  # its file is gone
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
    """Pictures are written below a folder that Label Studio serves local files from.

    folder  below `root`; the pictures of a project go into a folder of its own in it
    root    what Label Studio calls LOCAL_FILES_DOCUMENT_ROOT, as this machine sees it; None: by the same name

    Raises CannotDeliver with the cure when Label Studio does not serve the folder.
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
                f"{folder} is not below {ours}, the folder that Label Studio may serve local files from "
                f"({theirs} as Label Studio sees it). Give --local-files a folder below it; where this machine sees "
                "that folder under another name, say which with --local-root."
            )
        self._own = own / f"project-{project}"
        self._relative /= f"project-{project}"
        self._where = str(theirs / self._relative.parent)
        if prepare:
            try:
                self._own.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CannotDeliver(f"{self._own} cannot be made: {error.strerror}. Give another folder.") from error
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
        """Ask for the first picture before tasks are made: Label Studio may see another folder under that name."""
        try:
            served = self._studio.image(address)
        except StudioUnavailable:
            raise
        except ScanqueueError as error:
            raise CannotDeliver(f"Label Studio does not serve what was written into {self._own}: {error}") from error
        if served != file.read_bytes():
            raise CannotDeliver(
                f"Label Studio serves other files than those in {self._own}: it sees another folder as {self._where}. "
                "Say with --local-root where this machine has Label Studio's LOCAL_FILES_DOCUMENT_ROOT."
            )
        self._proven = True

    def close(self) -> None:
        pass


def _advice(objection: str, where: str) -> str:
    if "does not exist" in objection:
        return (
            f"Label Studio sees no folder {where}. It may run in a container or on another machine: mount the folder "
            "below its LOCAL_FILES_DOCUMENT_ROOT, and say with --local-root where that lies here."
        )
    if "LOCAL_FILES_SERVING_ENABLED" in objection:
        return (
            "Label Studio does not serve local files. Start it with LOCAL_FILES_SERVING_ENABLED=true and "
            "LOCAL_FILES_DOCUMENT_ROOT set to a folder above that of the pictures, or import without --local-files."
        )
    return f"Label Studio would not serve {where}: {objection[:300]}"


def _place(name: str) -> tuple[str, str, int] | None:
    """Scan, axis and slice of a picture's name; None when it is none of ours."""
    parts = name.split(".")
    if len(parts) != 4 or parts[3] != "png" or not parts[2].isdecimal() or not parts[0].startswith("S-"):
        return None
    return parts[0], parts[1], int(parts[2])
