"""NIfTI-1, NIfTI-2 and Analyze volumes, compressed or not, through nibabel."""

from __future__ import annotations

import gzip
import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from backend.errors import UnreadableFile
from backend.formats import frames
from backend.formats.geometry import Geometry, codes
from backend.formats.source import FileFacts, Source
from backend.formats.volume import MAX_VOXELS, Volume
from backend.formats.window import Window

_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_SQUEEZE = 1032  # maximum compression ratio of deflate
_MAGIC = (b"n+1\0", b"ni1\0")
_SAME_SIZE = 0.01  # relative; registration and 32-bit floats change sizes by less
_LOST_SIZE = "its sform contradicts the voxel size in its header (pixdim), which was used instead"
_SUFFIXES = (".nii", ".nii.gz")

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it logs every repair of a header
warnings.filterwarnings("ignore", module=r"nibabel(\.|$)")


def start(path: Path, first: bytes) -> bytes:
    """The first 352 bytes, decompressed if `first` shows gzip; b"" if that fails."""
    if first[:2] != b"\x1f\x8b":
        return first
    try:
        with gzip.open(path) as file:
            return file.read(352)
    except (OSError, EOFError, zlib.error):
        return b""


def looks_like(path: Path, head: bytes) -> bool:
    """Whether decompressed bytes start like a NIfTI header, or like an Analyze header in a .hdr file."""
    analyze = head[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") and path.name.lower().endswith((".hdr", ".hdr.gz"))
    return head[344:348] in _MAGIC or head[4:8] in (b"n+2\0", b"ni2\0") or analyze


def has_known_suffix(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn all errors of nibabel into UnreadableFile, without header values."""
    try:
        yield
    except UnreadableFile:
        raise
    except MemoryError as error:
        raise UnreadableFile(path, "does not fit into memory; exclude it or use a larger machine") from error
    except FileNotFoundError as error:
        missing = "its other half (.img or .hdr)" if path.exists() else "it"
        raise UnreadableFile(path, f"cannot be read: {missing} does not exist") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableFile(path, "is a truncated or damaged gzip file; copy it again") from error
    except OSError as error:
        what = error.strerror or "it is shorter than its header declares"
        raise UnreadableFile(path, f"cannot be read: {what}; copy it again") from error
    except (ImageFileError, Exception) as error:
        raise UnreadableFile(path, f"is a damaged NIfTI file ({type(error).__name__}); copy it again") from error


def load(path: Path) -> Any:
    """The image with its header loaded and checked, without values. Raises UnreadableFile."""
    with reported(path):
        image: Any = nib.load(path, mmap=False)
        shape = _shape(image)
        if not shape or min(shape) < 1:
            raise UnreadableFile(path, f"has no voxels: its shape is {' x '.join(map(str, shape)) or 'empty'}")
        if any(size > 1 for size in shape[4:]):
            raise UnreadableFile(path, f"has {len(shape)} dimensions; only 3 and 4 (time series) are supported")
        voxels = int(np.prod(shape[:3], dtype=object))
        if voxels > MAX_VOXELS:
            raise UnreadableFile(
                path,
                f"is too large: {' x '.join(map(str, shape[:3]))} = {voxels:,} voxels; the maximum is "
                f"{MAX_VOXELS:,}; import a part of it",
            )
        kind = image.get_data_dtype()
        if kind.names is None and kind.kind not in "biuf":
            raise UnreadableFile(path, "has complex numbers, which cannot be shown; save their magnitude")
        _refuse_truncated(path, image, shape, kind)
        return image


def _refuse_truncated(path: Path, image: Any, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
    """Check the file size before memory is allocated for data that the file cannot contain."""
    file = Path(image.file_map["image"].filename)
    need = int(np.prod(shape, dtype=object)) * kind.itemsize
    size = file.stat().st_size
    with file.open("rb") as opened:
        packed = opened.read(2) == b"\x1f\x8b"
    if size * (_SQUEEZE if packed else 1) < need:
        raise UnreadableFile(path, f"is truncated: it has {size:,} bytes, its header declares {need:,}; copy it again")


def _shape(image: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in image.shape)


def times(shape: tuple[int, ...]) -> int:
    return int(shape[3]) if len(shape) > 3 else 1


def files(path: Path) -> tuple[Path, ...]:
    """The file, and for a separate header also the file with the voxels. Raises UnreadableFile."""
    image = load(path)
    other = Path(image.file_map["image"].filename)
    return (path,) if other == path else (path, other)


def sniff(path: Path) -> FileFacts:
    image = load(path)
    shape = (*_shape(image), 1)
    with reported(path):
        remark = _LOST_SIZE if _other_affine(image) is not None else ""
    return FileFacts(path, "nifti", frames=times(image.shape), rows=shape[1], columns=shape[0], remark=remark)


def read_geometry(source: Source, *, time: int | None = None) -> Geometry:
    path = source.files[0]
    image = load(path)
    frames.choose_volume(path, times(image.shape), time)
    with reported(path):
        return _geometry(image)


def _other_affine(image: Any) -> NDArray[np.float64] | None:
    """What replaces an sform whose voxel sizes contradict the header's: the qform, else the sform's directions with the
    header's sizes. None if they agree, or if only the sform says how large a voxel is.

    ITK takes the sizes from the header always. Some tools write an sform of 1 mm, whatever the size of a voxel is.
    """
    header = image.header
    if not isinstance(image, nib.Nifti1Pair) or int(header["sform_code"]) <= 0:
        return None
    sizes = np.array((*header.get_zooms()[:3], 1.0, 1.0, 1.0)[:3], np.float64)
    affine = np.array(image.affine, np.float64)
    flat = tuple(_shape(image)[2:3]) in ((), (1,))  # the thickness of a single slice is often not written
    compared = slice(2 if flat else 3)
    if not codes(affine) or not np.isfinite(sizes).all() or sizes.min() <= 0:
        return None
    found = np.asarray(voxel_sizes(affine))  # type: ignore[no-untyped-call]
    if np.allclose(found[compared], sizes[compared], rtol=_SAME_SIZE, atol=0):
        return None
    qform = np.asarray(image.get_qform(), np.float64)  # type: ignore[no-untyped-call]
    if int(header["qform_code"]) > 0 and codes(qform):
        return qform
    if np.allclose(sizes[compared], 1.0):
        return None  # the default of a header that nobody filled in
    affine[:3, :3] *= sizes / found
    return affine


def _geometry(image: Any) -> Geometry:
    i, j, k = (*_shape(image), 1, 1)[:3]
    unit = 1.0
    if hasattr(image.header, "get_xyzt_units"):
        try:
            unit = _MM.get(image.header.get_xyzt_units()[0], 1.0)
        except Exception:
            unit = 1.0
    other = _other_affine(image)
    affine = np.array(image.affine if other is None else other, np.float64)
    affine[:3] *= unit
    orientation = codes(affine)
    if orientation:
        sizes = voxel_sizes(affine)  # type: ignore[no-untyped-call]
    else:  # no position, but its voxel sizes may be valid
        sizes = np.array((*image.header.get_zooms()[:3], 1.0, 1.0, 1.0)[:3], np.float64) * unit
        known = bool(np.isfinite(sizes).all() and (sizes > 0).all())
        affine = np.diag([*((-1, -1, 1) * (sizes if known else np.ones(3))), 1.0])
        sizes = sizes if known else np.zeros(3)
    spacing = (float(sizes[0]), float(sizes[1]), float(sizes[2])) if sizes.all() else None
    acquisition = 2
    if spacing is not None:
        # Sizes that differ only by 32-bit rounding are equal.
        acquisition = max(axis for axis in range(3) if spacing[axis] >= max(spacing) * (1 - 1e-4))
    if k == 1 and not (i == 1 or j == 1):
        acquisition = 2  # a single slice, whatever its declared thickness
    straight = affine[:3, :3] / np.where(sizes > 0, sizes, 1)
    regular = bool(orientation) and float(np.abs(straight.T @ straight - np.eye(3)).max()) < 0.01
    return Geometry((i, j, k), affine, spacing, regular, acquisition, orientation, as_stored=not orientation)


def read(source: Source, *, time: int | None = None) -> Volume:
    """The values of a NIfTI source; see `backend.formats.read`."""
    path = source.files[0]
    image = load(path)
    chosen = frames.choose_volume(path, times(image.shape), time)
    with reported(path):
        geometry = _geometry(image)
        values = _values(image, chosen)
        if values.dtype.names is not None:
            values = np.stack([values[name] for name in values.dtype.names[:3]], axis=-1).astype(np.uint8)
            return Volume(values.reshape(*geometry.shape, 3), geometry, None, False)
        return Volume(values.reshape(geometry.shape), geometry, _window(image), False)


def _values(image: Any, time: int) -> NDArray[Any]:
    """One volume: integers as stored if the scale is 1, else float32."""
    proxy = image.dataobj
    one = (slice(None),) * 3 + (time,) + (0,) * max(0, len(image.shape) - 4)
    slope, intercept = float(proxy.slope), float(proxy.inter)
    if (slope, intercept) == (1.0, 0.0):
        values = np.asanyarray(proxy[one] if times(image.shape) > 1 else proxy.get_unscaled())
    elif times(image.shape) > 1:
        values = np.asanyarray(proxy[one])
    else:
        values = proxy.get_unscaled().astype(np.float32)
        values *= np.float32(slope)
        values += np.float32(intercept)
    if values.dtype.kind == "f" and values.dtype.itemsize != 4:
        values = values.astype(np.float32)
    return np.asarray(values, values.dtype.newbyteorder("="))


def _window(image: Any) -> Window | None:
    """cal_min and cal_max, the file's own black and white."""
    try:
        low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    except Exception:
        return None
    if not (np.isfinite([low, high]).all() and high > low):
        return None
    return Window((low + high) / 2, high - low, "LINEAR_EXACT")
