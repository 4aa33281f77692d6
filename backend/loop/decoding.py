"""Decode, cache and prepare scans, in any thread or process. Nothing here loads torch."""

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
    """The values to record for a scan and its input for the embedder, or its problem."""

    digest: str = ""
    height: int = 0
    width: int = 0
    prepared: NDArray[Any] | None = None
    blank: bool = False
    problem: str = ""


def digest_of(data: bytes) -> str:
    """The name of a scan, derived from its content."""
    return hashlib.sha256(data).hexdigest()[:32]


def prepare_scan(data: bytes | UnreadableScan, prepare: Prepare, size: int, artefacts: Artefacts) -> Ready:
    """Decode a scan, cache it in the working square of `size` pixels, and prepare it for the embedder.

    data  its file, or the reason for its absence

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
    """`prepare_scan` for several scans, in a separate process."""
    cv2.setNumThreads(1)  # one process runs per core
    return [prepare_scan(one, prepare, size, artefacts) for one in data]


def put_pixels(artefacts: Artefacts, digest: str, scan: Letterboxed) -> None:
    """Cache a scan in the working square."""
    box = [scan.top, scan.left, scan.height, scan.width, scan.original_height, scan.original_width]
    name = fingerprint(digest, scan.pixels.shape[0])
    if not artefacts.has("pixels", name):
        artefacts.put_arrays("pixels", name, pixels=scan.pixels, box=np.array(box))


def prepare_all(data: Sequence[bytes], prepare: Prepare) -> list[NDArray[Any]]:
    """Decode and prepare scans without caching. Raises UnreadableScan."""
    return [prepare(decode_image(one)) for one in data]
