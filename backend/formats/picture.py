"""PNG, JPEG, TIFF and other picture files, 8 and 16 bits; the pages of a TIFF form a stack."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from backend.errors import ScanqueueError, UnreadableFile
from backend.formats.frames import Frame, choose_volume, geometry
from backend.formats.geometry import Geometry
from backend.formats.pixels import decode_image
from backend.formats.source import FileFacts, Source
from backend.formats.volume import MAX_VOXELS, Volume

MAX_PIXELS = 2**28  # maximum per page
MAX_BYTES = 2**32  # maximum per file
FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "JPEG2000", "AVIF")
_MAGIC = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51",
)  # fmt: skip
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp", ".jp2", ".j2k", ".avif")
_DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N", "I;16S", "I;16BS"}
_REDUCED = 254  # TIFF NewSubfileType; bit 0: a smaller copy of another page
_PHOTOMETRIC = 262  # TIFF
_ORIENTATION = 0x0112  # EXIF; 5..8 swap rows and columns

warnings.filterwarnings("ignore", module=r"PIL(\.|$)")


def looks_like(first: bytes) -> bool:
    riff = first[:4] == b"RIFF" and first[8:12] == b"WEBP"
    avif = first[4:8] == b"ftyp" and first[8:12] in (b"avif", b"avis")
    return first.startswith(_MAGIC) or riff or avif


def has_known_suffix(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture, header only. Raises UnreadableFile, also for errors raised while it is open."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UnreadableFile(path, f"is larger than {MAX_BYTES >> 30} GiB, the maximum; split it")
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UnreadableFile:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableFile(path, "declares too many pixels; save a smaller version") from error
    except MemoryError as error:
        raise UnreadableFile(path, "does not fit into memory; exclude it or use a larger machine") from error
    except FileNotFoundError as error:
        raise UnreadableFile(path, "cannot be read: it does not exist") from error
    except PermissionError as error:
        raise UnreadableFile(path, "cannot be read: permission denied") from error
    except Exception as error:
        raise UnreadableFile(
            path, f"is a damaged or truncated picture ({type(error).__name__}); save it again"
        ) from error


def _pages(path: Path, image: Image.Image) -> list[int]:
    """The pages that are not thumbnails of others. Raises UnreadableFile unless all have the same size and mode."""
    if image.format != "TIFF":
        return [0]
    pages, sizes = [], set()
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        if int(image.tag_v2.get(_REDUCED, 0)) & 1:  # type: ignore[attr-defined]
            continue
        pages.append(page)
        sizes.add((image.size, image.mode))
    if len(sizes) > 1:
        raise UnreadableFile(path, f"has {len(pages)} pages of different sizes or modes; save them as separate files")
    pages = pages or [0]
    image.seek(pages[0])
    return pages


def _size(path: Path, image: Image.Image, pages: list[int]) -> tuple[int, int]:
    """(rows, columns) as shown. Raises UnreadableFile if there are too many pixels, or none."""
    width, height = image.size
    channels = 1 if image.mode in ("1", "L") or image.mode in _DEEP else 3
    if width < 1 or height < 1:
        raise UnreadableFile(path, f"has no pixels ({width} x {height}); save it again")
    if width * height > MAX_PIXELS or width * height * len(pages) * channels > MAX_VOXELS:
        raise UnreadableFile(
            path,
            f"is too large: {width} x {height} x {len(pages)} = {width * height * len(pages):,} pixels; the maximum is "
            f"{MAX_VOXELS:,} ({MAX_PIXELS:,} per page); save a smaller version",
        )
    return (width, height) if _turned(image) else (height, width)


def _turned(image: Image.Image) -> bool:
    try:
        return int(image.getexif().get(_ORIENTATION, 1)) in (5, 6, 7, 8)
    except Exception:  # broken metadata: shown as stored
        return False


def sniff(path: Path) -> FileFacts:
    with _opened(path) as image:
        pages = _pages(path, image)
        rows, columns = _size(path, image, pages)
        colour = image.mode not in ("1", "L") and image.mode not in _DEEP
        return FileFacts(path, "image", frames=len(pages), rows=rows, columns=columns, colour=colour)


def read_geometry(source: Source, *, time: int | None = None) -> Geometry:
    path = source.files[0]
    choose_volume(path, 1, time)
    with _opened(path) as image:
        pages = _pages(path, image)
        rows, columns = _size(path, image, pages)
        return geometry(rows, columns, [Frame()] * len(pages))


def read(source: Source, *, time: int | None = None) -> Volume:
    """The values of a picture; see `backend.formats.read`. Transparency is composited over black."""
    path = source.files[0]
    choose_volume(path, 1, time)
    with _opened(path) as image:
        pages = _pages(path, image)
        rows, columns = _size(path, image, pages)
        inverted = False
        if pages == [0] and image.mode not in _DEEP:
            values = _shown(path)[None]
        else:
            values = np.stack([_page(image, page) for page in pages])
            deep = image.mode in _DEEP and image.format == "TIFF"
            inverted = deep and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]  # low is white
    if values.shape[1:3] != (rows, columns):
        raise UnreadableFile(path, "has an EXIF orientation that is not supported; save it without one")
    return Volume(values.swapaxes(0, 2), geometry(rows, columns, [Frame()] * len(pages)), None, inverted)


def _shown(path: Path) -> NDArray[np.uint8]:
    try:
        return decode_image(path.read_bytes(), max_pixels=MAX_PIXELS)
    except ScanqueueError as error:
        raise UnreadableFile(path, str(error)) from error


def _page(image: Image.Image, page: int) -> NDArray[Any]:
    """One page (rows, columns[, 3]): stored values for gray, 8-bit RGB for colour."""
    image.seek(page)
    if image.mode in _DEEP:
        turned = ImageOps.exif_transpose(image)
        values = np.asarray(turned)
        if values.dtype.kind == "i" and values.size and values.min() >= 0 and values.max() < 65536:
            return values.astype(np.uint16)  # Pillow has no other mode for some 16-bit files
        return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
    turned = ImageOps.exif_transpose(image)
    return np.asarray(turned.convert("L" if image.mode in ("1", "L") else "RGB"))
