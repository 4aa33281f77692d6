"""PNG, JPEG, TIFF, HEIC and other pictures. The pages of a TIFF form a stack; of an animation the first is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pi_heif
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from backend.errors import ScanqueueError, UnreadableFile
from backend.formats import packed, tiff
from backend.formats.browser import turn
from backend.formats.failures import TOO_LARGE
from backend.formats.frames import Frame, choose_volume, geometry
from backend.formats.geometry import Geometry
from backend.formats.pixels import decode_image
from backend.formats.source import FileFacts, Source
from backend.formats.volume import MAX_VOXELS, Volume

MAX_PIXELS = 2**28  # maximum per page
MAX_BYTES = 2**32  # maximum per file
FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "JPEG2000", "AVIF", "HEIF")
_MAGIC = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *tiff.MAGIC, b"GIF8", b"BM",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51",
)  # fmt: skip
_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp", ".jp2", ".j2k", ".avif"),
    *(".heic", ".heif", ".hif"),
)
_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N", "I;16S", "I;16BS"}
_LABEL_MODES = {"1", "L", "P", "LA", "PA", "RGB", "RGBA", *_DEEP}
_STEPS = {"L;2": 85, "L;4": 17}  # Pillow stretches gray values of 2 and 4 bits to 8 bits
_COLOURED = "is coloured; save a label map with one gray value, or palette index, per label"
_REDUCED = 254  # TIFF NewSubfileType; bit 0: a smaller copy of another page
_PHOTOMETRIC = 262  # TIFF
_SIDEWAYS = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
}

pi_heif.register_heif_opener()
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")


def looks_like(first: bytes) -> bool:
    riff = first[:4] == b"RIFF" and first[8:12] == b"WEBP"
    return first.startswith(_MAGIC) or riff or (first[4:8] == b"ftyp" and first[8:12] in _BRANDS)


def has_known_suffix(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES)


@contextmanager
def _reported(path: Path) -> Iterator[BinaryIO]:
    """The file, decompressed. Turns all errors while it is open into UnreadableFile."""
    try:
        if packed.size(path) > MAX_BYTES:
            raise UnreadableFile(path, f"is larger than {MAX_BYTES >> 30} GiB, the maximum; split it")
        with packed.opened(path) as file:
            yield file
    except UnreadableFile:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableFile(path, "declares too many pixels; save a smaller version") from error
    except MemoryError as error:
        raise UnreadableFile(path, TOO_LARGE) from error
    except FileNotFoundError as error:
        raise UnreadableFile(path, "cannot be read: it does not exist") from error
    except PermissionError as error:
        raise UnreadableFile(path, "cannot be read: permission denied") from error
    except UnidentifiedImageError as error:
        raise UnreadableFile(
            path, "is a damaged or truncated picture, or of an unsupported variant; save it again as PNG"
        ) from error
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


def _check(path: Path, rows: int, columns: int, pages: int, channels: int) -> None:
    """Raise UnreadableFile if there are too many pixels, or none."""
    if rows < 1 or columns < 1:
        raise UnreadableFile(path, f"has no pixels ({columns} x {rows}); save it again")
    if rows * columns > MAX_PIXELS or rows * columns * pages * channels > MAX_VOXELS:
        raise UnreadableFile(
            path,
            f"is too large: {columns} x {rows} x {pages} = {rows * columns * pages:,} pixels; the maximum is "
            f"{MAX_VOXELS:,} ({MAX_PIXELS:,} per page); save a smaller version",
        )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, tiff.Stack | Image.Image, list[int], FileFacts]]:
    """The file, its picture or TIFF pages of wide numbers, the numbers of its pages, and its facts; header only."""
    with _reported(path) as file:
        start = file.read(4)
        file.seek(0)
        if start in tiff.MAGIC:
            with tiff.wide(path, file) as stack:
                if stack is not None:
                    count = len(stack.pages)
                    _check(path, stack.rows, stack.columns, count, 3 if stack.colour else 1)
                    facts = FileFacts(
                        path, "image", frames=count, rows=stack.rows, columns=stack.columns, colour=stack.colour
                    )
                    yield file, stack, list(range(count)), facts
                    return
        with Image.open(file, formats=FORMATS) as image:
            pages = _pages(path, image)
            columns, rows = image.size
            colour = image.mode not in ("1", "L") and image.mode not in _DEEP
            _check(path, rows, columns, len(pages), 3 if colour else 1)
            if turn(image) in _SIDEWAYS:
                rows, columns = columns, rows
            count = 1 if image.format == "TIFF" else int(getattr(image, "n_frames", 1))
            remark = f"it has {count} pictures, of which only the first is read." if count > 1 else ""
            yield (
                file,
                image,
                pages,
                FileFacts(path, "image", frames=len(pages), rows=rows, columns=columns, colour=colour, remark=remark),
            )


def sniff(path: Path) -> FileFacts:
    with _opened(path) as (_, _, _, facts):
        return facts


def _placed(facts: FileFacts) -> Geometry:
    return geometry(facts.rows, facts.columns, [Frame()] * facts.frames)


def read_geometry(source: Source, *, time: int | None = None) -> Geometry:
    choose_volume(source.files[0], 1, time)
    return _placed(sniff(source.files[0]))


def read(source: Source, *, time: int | None = None) -> Volume:
    """The values of a picture; see `backend.formats.read`. Transparency is composited over black."""
    path = source.files[0]
    choose_volume(path, 1, time)
    with _opened(path) as (file, found, pages, facts):
        if isinstance(found, tiff.Stack):
            values, inverted = tiff.read(path, file, found), found.inverted and not found.colour
        elif pages == [0] and found.mode not in _DEEP and found.format != "HEIF":
            values, inverted = _shown(path, file)[None], False
        else:
            inverted = found.mode in _DEEP and found.format == "TIFF" and found.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]  # low is white
            values = np.stack([_page(found, page) for page in pages])
    if values.shape[1:3] != (facts.rows, facts.columns):
        raise UnreadableFile(path, "has pixels of another size than its header declares; save it again")
    return Volume(values.swapaxes(0, 2), _placed(facts), None, inverted)


def label_map(path: Path) -> NDArray[Any]:
    """The numbers (rows, columns) of a label map: gray values, or the indices of a palette, which may be transparent.

    Where gray values are transparent, nothing is drawn. Raises UnreadableFile if the picture is coloured, or a JPEG.
    """
    with _opened(path) as (file, found, _, _):
        if isinstance(found, tiff.Stack):
            return _gray(path, np.asarray(tiff.read(path, file, found)[0]))
        if found.format in ("JPEG", "MPO"):
            raise UnreadableFile(path, "is a JPEG, which blurs the edges of labels; save the mask as PNG")
        if found.mode not in _LABEL_MODES:
            raise UnreadableFile(path, f"{_COLOURED} (it is {found.mode})")
        tile: Any = getattr(found, "tile", None)  # how the file stores its pixels, until they are loaded
        step = _STEPS.get(str(tile[0].args), 1) if found.format == "PNG" and tile else 1
        turned = turn(found)
        found.load()
        values = np.asarray(found if turned is None else found.transpose(turned))
        if found.mode in ("P", "PA"):
            return _numbered(path, found, values if found.mode == "P" else values[..., 0])
        if found.mode not in ("LA", "RGBA"):
            return _gray(path, values) // step if step > 1 else _gray(path, values)
        gray, seen = _gray(path, values[..., :-1]), values[..., -1] > 0
        if not gray.any() and seen.any() and not seen.all():
            raise UnreadableFile(path, "is drawn in black on transparency; save one gray value per label on black")
        return np.where(seen, gray, 0)


def _numbered(path: Path, image: Image.Image, values: NDArray[Any]) -> NDArray[Any]:
    """The indices of a palette, unless its background has another number than 0, as if an optimizer wrote it."""
    colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    black = np.flatnonzero(~colours.any(1))
    if 0 not in black and np.isin(black, values).any():
        raise UnreadableFile(path, "has a palette whose number 0 is not black; save one gray value per label on black")
    return np.asarray(values)


def _gray(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim == 2:
        return values
    if not (values == values[..., :1]).all():
        raise UnreadableFile(path, _COLOURED)
    return np.asarray(values[..., 0])


def _shown(path: Path, file: BinaryIO) -> NDArray[np.uint8]:
    file.seek(0)
    try:
        return decode_image(file.read(), max_pixels=MAX_PIXELS)
    except ScanqueueError as error:
        raise UnreadableFile(path, str(error)) from error


def _page(image: Image.Image, page: int) -> NDArray[Any]:
    """One page (rows, columns[, 3]): stored values for gray, 8-bit RGB for colour."""
    image.seek(page)
    turned = turn(image)
    image.load()
    shown = image if turned is None else image.transpose(turned)
    if image.mode not in _DEEP:
        return np.asarray(shown.convert("L" if image.mode in ("1", "L") else "RGB"))
    values = np.asarray(shown)
    if values.dtype.kind == "i" and values.size and values.min() >= 0 and values.max() < 65536:
        return values.astype(np.uint16)  # Pillow has no other mode for some 16-bit files
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
