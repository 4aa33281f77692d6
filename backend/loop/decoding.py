"""A scan from the bytes of its file to what is kept of it, in any thread or process. Nothing here loads torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableScan
from backend.fingerprints import fingerprint
from backend.formats.pixels import Letterboxed, decode_image, letterbox
from backend.records.artefacts import Artefacts

Prepare = Callable[[NDArray[np.uint8]], NDArray[Any]]


@dataclass(frozen=True)
class Ready:
    """What is recorded of a scan, and what the embedder takes of it; or the problem that it has."""

    digest: str = ""
    height: int = 0
    width: int = 0
    prepared: NDArray[Any] | None = None
    blank: bool = False
    problem: str = ""


def digest_of(data: bytes) -> str:
    """What names a scan by its content."""
    return hashlib.sha256(data).hexdigest()[:32]


def prepare_scan(data: bytes | UnreadableScan, prepare: Prepare, size: int, artefacts: Artefacts) -> Ready:
    """Decode a scan, put it into the cache of the working square of `size` pixels, and prepare it for the embedder.

    data  its file, or why there is none

    Raises StorageFull.
    """
    try:
        if isinstance(data, UnreadableScan):
            raise data
        image = decode_image(data)
    except UnreadableScan as error:
        return Ready(problem=str(error))
    digest = digest_of(data)
    put_pixels(artefacts, digest, letterbox(image, size))
    blank = bool((image == image[0, 0]).all())
    return Ready(digest, image.shape[0], image.shape[1], prepare(image), blank)


def prepare_scans(
    data: Sequence[bytes | UnreadableScan], prepare: Prepare, size: int, artefacts: Artefacts
) -> list[Ready]:
    """The same of several, in a process of its own."""
    cv2.setNumThreads(1)  # there is a process for each core
    return [prepare_scan(one, prepare, size, artefacts) for one in data]


def put_pixels(artefacts: Artefacts, digest: str, scan: Letterboxed) -> None:
    """Keep a scan as it was fitted into the working square."""
    box = [scan.top, scan.left, scan.height, scan.width, scan.original_height, scan.original_width]
    name = fingerprint(digest, scan.pixels.shape[0])
    if not artefacts.has("pixels", name):
        artefacts.put_arrays("pixels", name, pixels=scan.pixels, box=np.array(box))


def prepare_all(data: Sequence[bytes], prepare: Prepare) -> list[NDArray[Any]]:
    """Decode and prepare, and keep nothing. Raises UnreadableScan."""
    return [prepare(decode_image(one)) for one in data]
