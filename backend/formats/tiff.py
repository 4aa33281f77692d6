"""TIFF pages whose numbers Pillow does not read, or not exactly: signed, float, 32 and 64 bits; through tifffile.

tifffile reads the header and the uncompressed and deflated pages, OpenCV those with other compressions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableFile
from backend.formats.failures import TOO_LARGE

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it quotes the values of tags

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN = {"|u1", "<u2", ">u2", "|b1"}  # Pillow reads these
_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # TIFF 6.0, Orientation: the stored page as it is shown
    2: np.fliplr,
    3: lambda page: np.rot90(page, 2),
    4: np.flipud,
    5: lambda page: page.swapaxes(0, 1),
    6: lambda page: np.rot90(page, -1),
    7: lambda page: np.rot90(page, 2).swapaxes(0, 1),
    8: np.rot90,
}


@dataclass(frozen=True)
class Stack:
    """The pages of a file that have numbers of a wide type; all have one size and type.

    pages    tifffile's pages, without smaller copies
    rows, columns  as shown, after turning
    colour   whether three channels are shown
    inverted low values are white
    """

    pages: Sequence[Any]
    rows: int
    columns: int
    colour: bool
    inverted: bool


@contextmanager
def wide(path: Path, file: BinaryIO) -> Iterator[Stack | None]:
    """The pages of a TIFF, header only; None if Pillow reads it. Raises UnreadableFile."""
    import tifffile

    file.seek(0)
    try:
        found: Any = tifffile.TiffFile(file)
        pages: list[Any] = [page for page in _each(path, found) if not getattr(page, "is_reduced", False)]
    except UnreadableFile:
        raise
    except Exception:  # not a TIFF after all, or a damaged one: Pillow reports it
        pages = []
    file.seek(0)
    if not pages or all(
        page.dtype is None or (page.dtype.str in _PLAIN and page.samplesperpixel != 2) for page in pages
    ):
        yield None
        return
    kinds = {(page.shape, str(page.dtype), _orientation(page)) for page in pages}
    if len(kinds) > 1:
        raise UnreadableFile(path, f"has {len(pages)} pages of different sizes or types; save them as separate files")
    first = pages[0]
    if first.dtype is None or first.dtype.kind not in "biuf":
        raise UnreadableFile(
            path, f"has {'complex numbers' if first.dtype is not None else 'numbers of an unknown type'}, which cannot "
            "be shown; save them as real numbers, such as their magnitude"
        )  # fmt: skip
    samples = int(first.samplesperpixel)
    if samples > 4 or int(first.imagedepth) > 1:
        raise UnreadableFile(path, f"has {samples} channels per pixel; expected 1 (gray) or 3 (RGB); split it")
    rows, columns = int(first.imagelength), int(first.imagewidth)
    if _orientation(first) >= 5:
        rows, columns = columns, rows
    yield Stack(pages, rows, columns, samples >= 3, first.photometric == 0)


def _each(path: Path, found: Any) -> Iterator[Any]:
    """The pages of a file. Raises UnreadableFile if they never end: tifffile follows a circle of pages for ever."""
    seen = set()
    for page in found.pages:
        if page.offset in seen:
            raise UnreadableFile(path, "is a damaged TIFF: its pages refer to each other in a circle; save it again")
        seen.add(page.offset)
        yield page


def _orientation(page: Any) -> int:
    tag = page.tags.get("Orientation")
    return int(tag.value) if tag is not None and isinstance(tag.value, int) else 1


def read(path: Path, file: BinaryIO, stack: Stack) -> NDArray[Any]:
    """(pages, rows, columns[, 3]): gray as stored, floats in 32 bits; colour in 8 bits. Raises UnreadableFile."""
    file.seek(0, 2)
    length = file.tell()
    shown = []
    for page in stack.pages:
        ends = (at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=False))
        if max(ends, default=0) > length:
            raise UnreadableFile(path, "is a truncated TIFF: some of its pixels are missing; copy it again")
        values = _decoded(path, file, page)
        if int(page.samplesperpixel) > 1:
            values = np.moveaxis(values, 0, -1) if int(page.planarconfig) == 2 else values
            values = values[..., :3] if stack.colour else values[..., 0]
        turn = _TURNS.get(_orientation(page))
        shown.append(values if turn is None else turn(values))
    values = np.stack(shown)
    if values.shape[1:3] != (stack.rows, stack.columns):
        raise UnreadableFile(path, "has pixels of another size than its header declares; save it again")
    if stack.colour:
        return _eight_bits(values)
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _decoded(path: Path, file: BinaryIO, page: Any) -> NDArray[Any]:
    """The numbers of one page as stored."""
    try:
        return np.asarray(page.asarray())
    except MemoryError as error:
        raise UnreadableFile(path, TOO_LARGE) from error
    except Exception:  # a compression that only imagecodecs decodes, or damage
        file.seek(0)
        data = np.frombuffer(file.read(), np.uint8)
        done, found = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED, range=(page.index, page.index + 1))
    if not done or len(found) != 1 or found[0].dtype != page.dtype.newbyteorder("="):
        name = getattr(page.compression, "name", str(page.compression)).lower()
        raise UnreadableFile(
            path, f"has {page.dtype.name} pixels with {name} compression that cannot be decoded; save it uncompressed"
        )
    values = np.asarray(found[0])
    if values.ndim == 3 and values.shape[-1] >= 3:  # OpenCV has blue first
        values = values[..., [2, 1, 0, *range(3, values.shape[-1])]]
        values = np.moveaxis(values, -1, 0) if int(page.planarconfig) == 2 else values
    return values


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour of a wide type: 0..1 of floats, otherwise the range from the least to the greatest value, as 0..255."""
    numbers = np.nan_to_num(values.astype(np.float32), copy=False)
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 1.0)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    numbers -= low
    numbers *= 255 / ((high - low) or 1.0)
    return np.rint(numbers, out=numbers).astype(np.uint8)
