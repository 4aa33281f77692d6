"""The bulk works that any worker may do a part of: reading scans, scoring them, drawing their masks.

Each is told a few tasks and stores what it finds, named by what it was made from. Done twice, or by
two workers at once, the second time writes the same.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.ahead import ahead
from backend.errors import UnreadableScan
from backend.learner import Learner
from backend.pixels import Letterboxed, decode_image, letterbox
from backend.project import Scan, fingerprint
from backend.store import Store, scan_of
from backend.studio import Studio

log = logging.getLogger("scanqueue.bulk")

CHUNK = 8  # images in memory at once
FETCHES = 4


def nothing() -> None:
    pass


@dataclass(frozen=True)
class _Ready:
    """What is recorded of a scan, and what the embedder takes of it; None: its problem is in the row."""

    row: dict[str, Any]
    prepared: NDArray[Any] | None = None


@dataclass
class Bulk:
    """What the works need. `alive` is called whenever something was done, and may raise to stop the work."""

    studio: Studio
    store: Store
    learner: Learner
    alive: Callable[[], None] = nothing

    def needs_to_read(self) -> str:
        """What reading depends on besides the scans: workers that say the same do the same."""
        return f"{self.learner.embedder().name}|{self.learner.image_size}"

    def scans(self, project: int, tasks: Sequence[int]) -> list[Scan]:
        """The scans of these tasks as they are recorded now; those that have gone are left out."""
        rows = [self.store.scan(project, task) for task in tasks]
        return [scan_of(r) for r in rows if r is not None]

    def do(self, kind: str, project: int, needs: str, tasks: Sequence[int]) -> None:
        """A part of the work `kind`: "read", or "score" or "draw" with the model that `needs` names."""
        scans = self.scans(project, tasks)
        if kind == "read":
            self.read(project, scans)
        elif kind == "score":
            model, _, extra = needs.partition("|")
            self.score(project, model, scans, extra)
        else:
            self.draw(project, needs, scans)

    # -- reading ------------------------------------------------------------------------------

    def read(self, project: int, scans: Sequence[Scan]) -> None:
        """Fetch, decode and embed these scans; what cannot be read becomes a problem of that scan.

        The next ones are fetched while the network is at those before.
        """
        embedder = self.learner.embedder()
        for batch in ahead(self._made_ready, scans, size=embedder.embedder.batch, threads=FETCHES, first=FETCHES):
            self.alive()
            for one in batch:
                if one.row.get("problem"):
                    log.warning("project %s, task %s: %s", project, one.row["task"], one.row["problem"])
            good = [one for one in batch if one.prepared is not None]
            if good:
                vectors = self.learner.embed_prepared([one.prepared for one in good if one.prepared is not None])
                self.store.put_embeddings(embedder.name, [one.row["digest"] for one in good], vectors)
            self.store.set_scans(project, [one.row for one in batch])
            self.alive()

    def _made_ready(self, scan: Scan) -> _Ready:
        """One scan: fetched, in the cache of the working square, and as the embedder wants it. In any thread."""
        digest, image, problem = self.fetch(scan.image)
        if image is None:
            return _Ready({"task": scan.task, "image": scan.image, "problem": problem})
        self._put_pixels(digest, letterbox(image, self.learner.image_size))
        height, width = image.shape[:2]
        row = {
            "task": scan.task,
            "digest": digest,
            "image": scan.image,
            "height": height,
            "width": width,
            "problem": "",
        }
        return _Ready(row, self.learner.prepare(image))

    def fetch(self, image: str) -> tuple[str, NDArray[np.uint8] | None, str]:
        """(digest of the file, its pixels, ""), or ("", None, what is wrong with it)."""
        try:
            data = self.studio.image(image)
            return hashlib.sha256(data).hexdigest()[:32], decode_image(data), ""
        except UnreadableScan as error:
            return "", None, str(error)

    def _put_pixels(self, digest: str, scan: Letterboxed) -> None:
        box = [scan.top, scan.left, scan.height, scan.width, scan.original_height, scan.original_width]
        name = fingerprint(digest, scan.pixels.shape[0])
        if not self.store.has("pixels", name):
            self.store.put_arrays("pixels", name, pixels=scan.pixels, box=np.array(box))

    def pixels(self, scan: Scan, size: int) -> Letterboxed:
        """The scan fitted into the working square: from the cache, else fetched again.

        Raises UnreadableScan when it has gone meanwhile.
        """
        if found := cached_pixels(self.store, scan.digest, size):
            return found
        digest, image, problem = self.fetch(scan.image)
        if image is None:
            raise UnreadableScan(problem)
        if digest != scan.digest:
            raise UnreadableScan("its image is not the one that was read before; it is read again later.")
        boxed = letterbox(image, size)
        self._put_pixels(scan.digest, boxed)
        return boxed

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
    def needs_to_score(model: str, extra: str) -> str:
        """What scoring depends on besides the scans: a model's fingerprint, and a signal that takes extra work."""
        return f"{model}|{extra}" if extra else model

    def score(self, project: int, model: str, scans: Sequence[Scan], extra: str = "") -> None:
        """Store how unsure the model with this fingerprint is of these scans; `extra` as in `Learner.signals`."""
        folder = self.store.path("models", model)
        for good, boxes in self.boxes(project, scans, self.learner.image_size_of(folder)):
            if boxes:
                values = self.learner.signals(folder, boxes, extra)
                self.store.put_signals(model, {s.digest: v for s, v in zip(good, values, strict=True)})

    def draw(self, project: int, model: str, scans: Sequence[Scan]) -> None:
        """Store the model's mask of these scans at original size, where there is none yet."""
        todo = [s for s in scans if not self.store.has("masks", fingerprint(model, s.digest))]
        if not todo:
            return  # and the model need not be loaded
        folder = self.store.path("models", model)
        for good, boxes in self.boxes(project, todo, self.learner.image_size_of(folder)):
            for scan, mask in zip(good, self.learner.masks(folder, boxes) if boxes else [], strict=True):
                self.store.put_arrays("masks", fingerprint(model, scan.digest), mask=mask)

    def mask(self, model: str, scan: Scan) -> NDArray[np.uint8] | None:
        """A mask that `draw` stored; None when there is none."""
        try:
            mask: NDArray[np.uint8] = self.store.arrays("masks", fingerprint(model, scan.digest))["mask"]
        except FileNotFoundError:
            return None
        return mask


def cached_pixels(store: Store, digest: str, size: int) -> Letterboxed | None:
    """The scan with this digest in the working square, if it lies in the cache."""
    if not digest:
        return None
    try:
        found = store.arrays("pixels", fingerprint(digest, size))
    except OSError:
        return None
    return Letterboxed(found["pixels"], *(int(n) for n in found["box"]))
