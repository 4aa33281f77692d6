"""Batch work on a worker of a Dask cluster: scans come from Label Studio, results go back to the driver.

The worker has the settings of its own environment. It needs neither the data folder nor the database: what it would
write to the records is returned, and pixels are cached in a folder of its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from backend.errors import BadSetting
from backend.facts import Scan
from backend.records.artefacts import Artefacts
from backend.settings import Settings

if TYPE_CHECKING:
    from backend.label_studio.studio import Studio
    from backend.learning.learner import Learner
    from backend.loop.batch import BatchProcessor
    from backend.records.store import Store

CACHE = 4 * 2**30  # bytes of cached pixels and models, after which a worker begins anew
WRITES = frozenset({"put_embeddings", "set_scans", "put_uncertainty", "put_arrays"})
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Part:
    """A part of a project's batch work.

    kind          "read", or "score" or "draw" with the model that `requirements` names
    requirements  as for `BatchProcessor.do`
    """

    kind: str
    project: int
    requirements: str
    scans: tuple[Scan, ...]


@dataclass(frozen=True)
class Write:
    """A call of a method of the store."""

    method: str
    arguments: tuple[Any, ...]
    arrays: Mapping[str, NDArray[Any]]


class Recorder(Artefacts):
    """Stands in for the store on a worker: keeps files in a folder, and the writes to records and of masks for us."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.writes: list[Write] = []

    def put_embeddings(self, embedder: str, digests: Sequence[str], vectors: NDArray[np.float32]) -> None:
        self._write("put_embeddings", embedder, list(digests), np.asarray(vectors))

    def set_scans(self, project: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._write("set_scans", project, [dict(row) for row in rows])

    def put_uncertainty(self, model: str, found: Mapping[str, Mapping[str, Any]]) -> None:
        self._write("put_uncertainty", model, dict(found))

    def put_arrays(self, kind: str, name: str, **arrays: Any) -> None:
        if kind == "masks":
            self._write("put_arrays", kind, name, **arrays)
        else:
            super().put_arrays(kind, name, **arrays)

    def _write(self, method: str, *arguments: Any, **arrays: Any) -> None:
        self.writes.append(Write(method, arguments, arrays))


def apply(store: Store, writes: Sequence[Write]) -> None:
    """Do what a worker would have written."""
    for write in writes:
        if write.method not in WRITES:
            raise ValueError(f"a worker may not call {write.method!r} of the store")
        getattr(store, write.method)(*write.arguments, **write.arrays)


def do_part(part: Part, files: Files | None) -> list[Write]:
    """Do a part on this worker. `files` are those of the model.

    Raises BadSetting if this worker would embed or fit scans otherwise than the driver.
    """
    recorder = Recorder(here().folder())
    processor = here().processor(recorder)
    if part.kind == "read":
        mine = processor.reading_requirements()
        if mine != part.requirements:
            raise BadSetting(
                f"A Dask worker would read scans with {mine!r}, but scanqueue reads with {part.requirements!r}. Give "
                "all workers the same weights and settings as scanqueue."
            )
        processor.read(part.project, part.scans)
        return recorder.writes
    model, _, extra = part.requirements.partition("|")
    folder = model.partition("/")[0]
    if not recorder.has("models", folder):
        recorder.put_folder("models", folder, partial(unpack, files=files or {}))
    if part.kind == "score":
        processor.score(part.project, model, part.scans, extra)
    else:
        processor.draw(part.project, model, part.scans)
    return recorder.writes


def model_files(folder: Path) -> dict[str, bytes]:
    """The files of a model by name."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def unpack(folder: Path, files: Files) -> None:
    """Write the files of a model into a folder."""
    for name, data in files.items():
        (folder / Path(name).name).write_bytes(data)


class Worker:
    """What all threads of a worker share."""

    def __init__(self) -> None:
        from backend.label_studio.studio import Studio
        from backend.learning.learner import Learner

        settings = Settings.from_env(os.environ)
        self.studio: Studio = Studio(
            settings.label_studio_url, settings.label_studio_api_key, image_hosts=settings.image_hosts
        )
        self.learner: Learner = Learner(settings)
        self._places = [self._new_place()]
        self._mutex = threading.Lock()
        self._parts = 0

    def processor(self, recorder: Recorder | None = None) -> BatchProcessor:
        """Does batch work, and writes to `recorder`."""
        from backend.loop.batch import BatchProcessor

        store = cast("Store", recorder or Recorder(self.folder()))  # it needs no more of a store
        return BatchProcessor(self.studio, store, self.learner)

    def folder(self) -> Path:
        """The folder of cached files; a new one when it has become large."""
        with self._mutex:
            self._parts += 1
            if self._parts % 100 == 0 and _size(self._places[-1]) > CACHE:
                self._places.append(self._new_place())
                for old in self._places[:-2]:  # other threads may still use the last one
                    shutil.rmtree(old, ignore_errors=True)
                del self._places[:-2]
            return self._places[-1]

    @staticmethod
    def _new_place() -> Path:
        return Path(tempfile.mkdtemp(prefix="scanqueue-", dir=_local_directory()))


@cache
def here() -> Worker:
    """This worker."""
    return Worker()


def _local_directory() -> str | None:
    """Where this Dask worker keeps its files; it removes them when it ends."""
    from distributed import get_worker

    try:
        return str(get_worker().local_directory)
    except ValueError:  # not on a worker
        return None


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
