"""Batch work that workers share: reading scans, scoring them, drawing their masks.

Results are named by their inputs, so work done twice, even by two workers at once, writes the same results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableScan
from backend.facts import Scan
from backend.fingerprints import fingerprint
from backend.formats.browser import hidden
from backend.formats.pixels import Letterboxed, decode_image, letterbox
from backend.image_value import reference, resolve
from backend.label_config import LabelConfig
from backend.label_studio.studio import Studio
from backend.learning.learner import Learner
from backend.learning.patch_features import SIDE, feature_name
from backend.loop.decoding import Ready, digest_of, prepare_scan, prepare_scans, put_pixels
from backend.records.artefacts import Artefacts
from backend.records.scans import scan_of
from backend.records.store import Store
from backend.workers.cluster import Cluster
from backend.workers.prefetch import ahead
from backend.workers.process_pool import Crashed

log = logging.getLogger("scanqueue.bulk")

CHUNK = 8  # images in memory at once
FETCHES = 4  # images fetched at once
CRASHED = "the decoder crashed: the file is damaged or too large for the memory. Export the image again and upload it."

NO_NUMBERS = (
    "its embedding has values that are not numbers. Check the embedder's weights with `scanqueue doctor`, and the "
    'image; then choose "Try again".'
)


def nothing() -> None:
    pass


@dataclass
class BatchProcessor:
    """Does batch work.

    alive    called after each piece, may raise to stop the work
    cluster  where `sharing.in_parts` has it done; None: here
    """

    studio: Studio
    store: Store
    learner: Learner
    alive: Callable[[], None] = nothing
    cluster: Cluster | None = None

    def reading_requirements(self) -> str:
        """The inputs of reading besides the scans: workers with equal requirements get equal results."""
        return f"{self.learner.embedder().name}|{self.learner.image_size}"

    def scans(self, project: int, tasks: Sequence[int]) -> list[Scan]:
        """The recorded scans of these tasks; deleted ones are left out."""
        rows = [self.store.scan(project, task) for task in tasks]
        return [scan_of(r) for r in rows if r is not None]

    def do(self, kind: str, project: int, requirements: str, tasks: Sequence[int]) -> None:
        """Do a part of the work `kind`: "read", or "score" or "draw" with the model that `requirements` names."""
        scans = self.scans(project, tasks)
        if kind == "read":
            self.read(project, scans)
        elif kind == "score":
            model, _, extra = requirements.partition("|")
            self.score(project, model, scans, extra)
        else:
            self.draw(project, requirements, scans)

    # -- reading ------------------------------------------------------------------------------

    def read(self, project: int, scans: Sequence[Scan]) -> None:
        """Fetch, decode and embed these scans; an unreadable file becomes a problem of that scan.

        The next files are fetched while the embedder runs.
        """
        embedder = self.learner.embedder()
        for batch in self._ready(scans, embedder.embedder.batch):
            self.alive()
            for scan, ready in batch:
                if ready.problem:
                    log.warning("project %s, task %s: %s", project, scan.task, ready.problem)
            good = [ready for _, ready in batch if ready.prepared is not None]
            if good:
                vectors = self.learner.embed_prepared([r.prepared for r in good if r.prepared is not None])
                known: list[bool] = [bool(np.isfinite(vector).all()) for vector in vectors]
                self.store.put_embeddings(embedder.name, [r.digest for r in compress(good, known)], vectors[known])
                bad = {id(ready) for ready, is_known in zip(good, known, strict=True) if not is_known}
                batch = [(scan, Ready(problem=NO_NUMBERS) if id(ready) in bad else ready) for scan, ready in batch]
            self.store.set_scans(project, [_row(scan, ready) for scan, ready in batch])
            self.alive()

    def _ready(self, scans: Sequence[Scan], size: int) -> Iterator[list[tuple[Scan, Ready]]]:
        """Batches of `size` scans: fetched, cached in the working square, and prepared for the embedder.

        On a CPU, threads do this, as embedding takes most of the time. On a GPU, other processes decode.
        """
        decoders = self.learner.decoders()
        if decoders is None:
            yield from ahead(self._made_ready, scans, size=size, threads=FETCHES, first=FETCHES)
            return
        group = max(1, min(size, len(scans) // decoders.jobs))
        work = partial(
            prepare_scans,
            prepare=self.learner.prepare_elsewhere(),
            size=self.learner.image_size,
            artefacts=Artefacts(self.store.folder),
        )
        fetched = ahead(self._fetched, scans, size=group, threads=FETCHES)
        batch: list[tuple[Scan, Ready]] = []
        for files, found in decoders.each_lot(work, fetched, lambda file: file[1], ahead=2 * decoders.jobs):
            for (scan, _), one in zip(files, found, strict=True):
                batch.append((scan, Ready(problem=CRASHED) if isinstance(one, Crashed) else one))
            while len(batch) >= size:
                yield batch[:size]
                del batch[:size]
        if batch:
            yield batch

    def _made_ready(self, scan: Scan) -> tuple[Scan, Ready]:
        """Fetch and prepare one scan; for any thread."""
        file = self._fetched(scan)[1]
        return scan, prepare_scan(file, self.learner.prepare, self.learner.image_size, self.store)

    def _fetched(self, scan: Scan) -> tuple[Scan, bytes | UnreadableScan]:
        """The scan with its file, or with the reason for its absence."""
        try:
            data = self.studio.image(scan.image)
            why = "" if scan.annotated else hidden(data)  # whoever labelled it has a browser that shows it
            return scan, UnreadableScan(why) if why else data
        except UnreadableScan as error:
            return scan, error

    def fetch(self, image: str) -> tuple[str, NDArray[np.uint8] | None, str]:
        """(digest of the file, its pixels, ""), or ("", None, the problem)."""
        try:
            data = self.studio.image(image)
            return digest_of(data), decode_image(data), ""
        except UnreadableScan as error:
            return "", None, str(error)

    def pixels(self, scan: Scan, size: int) -> Letterboxed:
        """The scan fitted into the working square: from the cache, else fetched again.

        Raises UnreadableScan when it is no longer available.
        """
        if found := cached_pixels(self.store, scan.digest, size):
            return found
        digest, image, problem = self.fetch(scan.image)
        if image is None:
            raise UnreadableScan(problem)
        if digest != scan.digest:
            raise UnreadableScan("the image has been replaced since it was read; it is read again later.")
        boxed = letterbox(image, size)
        put_pixels(self.store, scan.digest, boxed)
        return boxed

    def features(self, scan: Scan) -> NDArray[np.float16]:
        """The features of a scan for the quick model: from the cache, else computed. Raises UnreadableScan."""
        name = feature_name(scan.digest)
        try:
            found: NDArray[np.float16] = self.store.arrays("features", name)["features"]
        except FileNotFoundError:
            found = self.learner.features(self.pixels(scan, SIDE).pixels)
            self.store.put_arrays("features", name, features=found)
        return found

    def boxes(self, project: int, scans: Sequence[Scan], size: int) -> Iterator[tuple[list[Scan], list[Letterboxed]]]:
        """Chunks of scans in the working square; unreadable ones become problems."""
        for start in range(0, len(scans), CHUNK):
            good, boxes = [], []
            for scan in scans[start : start + CHUNK]:
                try:
                    boxes.append(self.pixels(scan, size))
                    good.append(scan)
                except UnreadableScan as error:
                    self.store.set_scans(project, [{"task": scan.task, "problem": str(error)}])
            yield good, boxes
            self.alive()

    # -- with a model -------------------------------------------------------------------------

    @staticmethod
    def scoring_requirements(model: str, extra: str) -> str:
        """The inputs of scoring besides the scans: the model, and an uncertainty that needs extra work."""
        return f"{model}|{extra}" if extra else model

    def score(self, project: int, model: str, scans: Sequence[Scan], extra: str = "") -> None:
        """Store how uncertain the model with this fingerprint is about these scans; `extra`: see `Learner.signals`."""
        folder = self.store.path("models", model)
        for good, boxes in self.boxes(project, scans, self.learner.image_size_of(folder)):
            if boxes:
                values = self.learner.signals(folder, boxes, extra)
                self.store.put_uncertainty(model, {s.digest: v for s, v in zip(good, values, strict=True)})

    def draw(self, project: int, model: str, scans: Sequence[Scan]) -> None:
        """Store the model's mask of these scans at original size, unless already stored."""
        todo = [s for s in scans if not self.store.has("masks", fingerprint(model, s.digest))]
        if not todo:
            return  # without loading the model
        folder = self.store.path("models", model)
        for good, boxes in self.boxes(project, todo, self.learner.image_size_of(folder)):
            for scan, mask in zip(good, self.learner.masks(folder, boxes) if boxes else [], strict=True):
                self.keep_mask(model, scan, mask)

    def keep_mask(self, model: str, scan: Scan, mask: NDArray[np.uint8]) -> None:
        """Store a mask as `draw` does."""
        self.store.put_arrays("masks", fingerprint(model, scan.digest), mask=mask)

    def mask(self, model: str, scan: Scan) -> NDArray[np.uint8] | None:
        """The mask that `draw` stored; None without one."""
        try:
            mask: NDArray[np.uint8] = self.store.arrays("masks", fingerprint(model, scan.digest))["mask"]
        except FileNotFoundError:
            return None
        return mask


def _row(scan: Scan, ready: Ready) -> dict[str, Any]:
    """The columns to record for a scan that was read."""
    row = {"task": scan.task, "image": scan.image, "problem": ready.problem}
    if not ready.problem:
        row |= {"digest": ready.digest, "height": ready.height, "width": ready.width, "blank": int(ready.blank)}
    return row


def cached_pixels(store: Store, digest: str, size: int) -> Letterboxed | None:
    """The cached scan with this digest in the working square; None when it is not cached."""
    if not digest:
        return None
    try:
        found = store.arrays("pixels", fingerprint(digest, size))
    except OSError:
        return None
    return Letterboxed(found["pixels"], *(int(n) for n in found["box"]))


def scan_of_task(store: Store, project: int, task: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The record of the scan that a task shows, as Label Studio sends it; None without one."""
    number = task.get("id")
    return store.scan(project, number) if isinstance(number, int) else None


def digest_of_task(
    scan: Mapping[str, Any] | None, project: int, task: Mapping[str, Any], config: LabelConfig
) -> tuple[str, str]:
    """(reference, digest) of the image of a task as Label Studio sends it.

    scan  its record

    The digest is "" if the scan has not been read, or was read from another image.
    """
    number = task.get("id")
    data = task.get("data")
    image = reference(
        config.image_value,
        data if isinstance(data, Mapping) else {},
        project,
        number if isinstance(number, int) else 0,
    )
    return image, scan["digest"] if scan is not None and scan["image"] == image else ""


def pixels_of_task(
    store: Store, studio: Studio, task: Mapping[str, Any], config: LabelConfig, digest: str, size: int
) -> Letterboxed:
    """The image of a task in the working square: from the cache by its digest, else fetched.

    Raises UnreadableScan when it is not available.
    """
    if found := cached_pixels(store, digest, size):
        return found
    return letterbox(decode_image(studio.image(resolve(config.image_value, task.get("data") or {}))), size)
