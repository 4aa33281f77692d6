"""NIfTI-1, NIfTI-2, Analyze and FreeSurfer (MGH) volumes, compressed or not, through nibabel."""

from __future__ import annotations

import gzip
import logging
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from backend.errors import UnreadableFile
from backend.formats import failures, frames, packed
from backend.formats.geometry import Geometry, codes, of_volume
from backend.formats.source import FileFacts, Source
from backend.formats.volume import MAX_VOXELS, Volume
from backend.formats.window import Window
from backend.json_text import parse_json

_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_SQUEEZE = 1032  # maximum compression ratio of deflate
_MAGIC = (b"n+1\0", b"ni1\0")
_SAME_SIZE = 0.01  # relative; registration and 32-bit floats change sizes by less
_LOST_SIZE = "its sform contradicts the voxel size in its header (pixdim), which was used instead"
_MGH = (".mgh", ".mgz", ".mgh.gz")
_SUFFIXES = (".nii", ".nii.gz", *_MGH)
_CIFTI = range(3000, 3100)  # intent codes

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it logs every repair of a header
warnings.filterwarnings("ignore", module=r"nibabel(\.|$)")


def looks_like(path: Path, head: bytes) -> bool:
    """Whether decompressed bytes start like a NIfTI header, or like an Analyze header in a .hdr file."""
    analyze = head[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") and path.name.lower().endswith((".hdr", ".hdr.gz"))
    return head[344:348] in _MAGIC or head[4:8] in (b"n+2\0", b"ni2\0") or analyze or _is_mgh(path, head)


def _is_mgh(path: Path, head: bytes) -> bool:
    return head[:4] == b"\0\0\0\1" and path.name.lower().endswith(_MGH)


def has_known_suffix(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn all errors of nibabel into UnreadableFile."""
    with failures.reported(path, "is a damaged NIfTI file ({error}); copy it again"):
        try:
            yield
        except FileNotFoundError as error:
            missing = "its other half (.img or .hdr)" if packed.is_file(path) else "it"
            raise UnreadableFile(path, f"cannot be read: {missing} does not exist") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UnreadableFile(path, "is a truncated or damaged gzip file; copy it again") from error
        except OSError as error:
            what = error.strerror or "it is shorter than its header declares"
            raise UnreadableFile(path, f"cannot be read: {what}; copy it again") from error


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The image with its header loaded and checked; values can be read while it is open. Raises UnreadableFile."""
    with reported(path), packed.local(path, **_named(path)) as file:
        yield _load(path, file)


def _named(path: Path) -> dict[str, Any]:
    """How `packed.local` presents a file: nibabel decides by the name and decompresses gzip itself."""
    head, packing = packed.start(path, 352)
    stem = re.sub(r"(\.(nii|mgh|mgz|gz|bz2|xz))+$", "", path.name, flags=re.IGNORECASE) or "a"
    squeezed = packing == "gzip"
    if _is_mgh(path, head):
        suffix = ".mgz" if squeezed else ".mgh"
    elif head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        suffix = ".nii.gz" if squeezed else ".nii"
    else:  # a header, and voxels in another file
        stem = path.name.removesuffix(".gz")[:-4]
        halves = [f"{stem}{half}{gz}" for half in (".img", ".IMG", ".hdr", ".HDR") for gz in ("", ".gz")]
        return {"as_stored": True, "beside": [name for name in halves if name != path.name]}
    name = path.name if path.name.lower().endswith(suffix) else stem + suffix
    return {"name": name, "as_stored": squeezed or not packing}


def _load(path: Path, file: Path) -> Any:
    """The image in `file`, a readable form of `path`. Raises UnreadableFile, and the errors of nibabel."""
    with reported(path):
        image: Any = nib.load(file, mmap=False)
        if isinstance(image, nib.Cifti2Image) or _intent(image) in _CIFTI:
            raise UnreadableFile(path, "is CIFTI: values on the surface of the brain, not a volume; exclude it")
        image = _with_lengths(image)
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


def _intent(image: Any) -> int:
    return int(image.header["intent_code"]) if isinstance(image, nib.Nifti1Pair) else 0


def _with_lengths(image: Any) -> Any:
    """The image with its third and later dimensions at least 1: some tools write 0 for a dimension that is not used."""
    shape = _shape(image)
    if not isinstance(image, nib.Nifti1Pair) or 0 not in shape[2:] or min(shape[:2]) < 1:
        return image
    kind: Any = type(image)
    stored: Any = image.dataobj
    lengths = tuple(max(1, length) for length in shape)
    voxels = kind.ImageArrayProxy(
        image.file_map["image"].filename, (lengths, stored.dtype, stored.offset, stored.slope, stored.inter)
    )
    header = kind.header_class.from_header(image.header)
    header.set_data_shape(lengths)
    return kind(voxels, image.affine, header, file_map=image.file_map)


def _shape(image: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in image.shape)


def times(shape: tuple[int, ...]) -> int:
    return int(shape[3]) if len(shape) > 3 else 1


def files(path: Path) -> tuple[Path, ...]:
    """The file, and for a separate header also the file with the voxels. Raises UnreadableFile."""
    with reported(path):
        if "name" in _named(path):
            return (path,)  # header and voxels in one file
    with opened(path) as image:
        return path, path.parent / Path(image.file_map["image"].filename).name


def sniff(path: Path) -> FileFacts:
    with opened(path) as image:
        shape = (*_shape(image), 1)
        remark = _LOST_SIZE if _other_affine(image) is not None else ""
        return FileFacts(path, "nifti", frames=times(image.shape), rows=shape[1], columns=shape[0], remark=remark)


def label_names(path: Path) -> dict[int, str]:
    """The names of the numbers of a label map, which `write_nifti_labels` puts into its header; {} if it has none."""
    with opened(path) as image:
        for extension in getattr(image.header, "extensions", ()):
            try:
                found = parse_json(bytes(extension.get_content()).rstrip(b"\0"))["labels"]
                return {int(number): str(name) for number, name in found.items()}
            except (AttributeError, KeyError, TypeError, ValueError):
                continue
    return {}


def read_geometry(source: Source, *, time: int | None = None) -> Geometry:
    path = source.files[0]
    with opened(path) as image:
        frames.choose_volume(path, times(image.shape), time)
        return _geometry(image)


def _other_affine(image: Any) -> NDArray[np.float64] | None:
    """What replaces an sform whose voxel sizes contradict the header's: the qform, else the sform's directions with the
    header's sizes. None if they agree, or if only the sform says how large a voxel is.

    ITK always takes the sizes from the header. Some tools write an sform of 1 mm, whatever the size of a voxel is.
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
    sizes = np.array((*image.header.get_zooms()[:3], 1.0, 1.0, 1.0)[:3], np.float64) * unit
    return of_volume((i, j, k), affine, sizes)


def read(source: Source, *, time: int | None = None) -> Volume:
    """The values of a NIfTI source; see `backend.formats.read`."""
    path = source.files[0]
    with opened(path) as image:
        chosen = frames.choose_volume(path, times(image.shape), time)
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
