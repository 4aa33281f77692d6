"""DICOM pixels as modality values: any transfer syntax, rescale, modality LUT, palette, windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.uid import JPEGBaseline8Bit

from backend.errors import UnreadableFile
from backend.formats import dicom, fields, frames, gdcm_pixels
from backend.formats.failures import TOO_LARGE, described
from backend.formats.functional_groups import first_item, groups, items
from backend.formats.geometry import Geometry
from backend.formats.source import FileFacts, Source
from backend.formats.volume import MAX_VOXELS, Volume
from backend.formats.window import VoiTable, Window

MAX_PIXELS = 2**28  # maximum per frame
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True)
class _Scale:
    """How stored values become modality values: linearly, or by a table, which replaces slope and intercept."""

    slope: float = 1.0
    intercept: float = 0.0
    table: bool = False

    @property
    def whole(self) -> bool:
        return self.slope.is_integer() and self.intercept.is_integer()


def read(source: Source, *, time: int | None = None) -> Volume:
    """The values of a DICOM source; see `backend.formats.read`."""
    header, facts = _load(source.files[0])
    if len(source.files) == 1:
        if facts.frames > 1:
            return _multiframe(source, header, facts, time)
        frames.choose_volume(source.files[0], 1, time)
        return _single(source.files[0], header, facts)
    headers = [header, *(dicom.load(path) for path in source.files[1:])] if facts.frames > 1 else []
    if headers:
        return _stack(source.files, frames.layout(source, headers, time))
    frames.choose_volume(source.files[0], 1, time)
    return _stack(source.files)


def frames_of(path: Path) -> NDArray[Any]:
    """All frames of one file as stored."""
    header, _ = _load(path)
    return _decode(path, header, None)


def _load(path: Path) -> tuple[Dataset, FileFacts]:
    header = dicom.load(path, pixels=True)
    facts = dicom.facts(path, header, placed_only=True)
    if facts is None:
        raise UnreadableFile(path, dicom.REPLACED)
    return header, facts


def _single(path: Path, header: Dataset, facts: FileFacts) -> Volume:
    _limit(path, facts, 1)
    picture = _decode(path, header, 0)
    values = _eight_bit_colour(path, header, picture) if facts.colour else _modality(path, header, picture)
    geometry = frames.geometry(facts.rows, facts.columns, [frames.of_file(facts)])
    return _volume(values.swapaxes(0, 1)[:, :, None], geometry, header)


def _stack(files: Sequence[Path], order: Sequence[frames.Frame] | None = None) -> Volume:
    """A volume slice by slice. order: where each slice is stored; None: each file is one slice."""
    stored: dict[int, list[tuple[int, int]]] = {}
    for k, frame in enumerate(order or [frames.Frame(file=n) for n in range(len(files))]):
        stored.setdefault(frame.file, []).append((k, frame.number))
    count = len(order or files)
    placed = list(order or [])
    buffer = np.empty(0, np.uint8)
    shape: tuple[Any, ...] = ()
    middle: tuple[Dataset, int] | None = None
    for place, path in enumerate(files):
        if place not in stored:
            continue
        header, facts = _load(path)
        _limit(path, facts, count)
        own = (facts.rows, facts.columns, facts.colour, 1 if order is None else 0)
        shape = shape or own
        if (*own[:3], facts.frames if order is None else 0) != shape:
            raise UnreadableFile(
                path,
                "has another size than the other slices of its series: it changed during the import. Import it again",
            )
        for k, number in stored[place]:
            picture = _decode(path, header, number)
            picture = (
                _eight_bit_colour(path, header, picture) if facts.colour else _modality(path, header, picture, number)
            )
            if not buffer.size:
                buffer = np.empty((count, *picture.shape), picture.dtype)
            elif not np.can_cast(picture.dtype, buffer.dtype):
                buffer = buffer.astype(_common(picture.dtype, buffer.dtype))
            buffer[k] = picture
            if k == count // 2:
                middle = header, number
        if order is None:
            placed.append(frames.of_file(facts))
        if middle is not None:
            for keyword in _PIXELS:
                middle[0].pop(keyword, None)
    assert middle is not None
    return _volume(buffer.swapaxes(0, 2), frames.geometry(shape[0], shape[1], placed), *middle)


def _common(one: np.dtype[Any], other: np.dtype[Any]) -> np.dtype[Any]:
    """A type for the values of both; never float64."""
    if "f" in (one.kind, other.kind):
        return np.dtype(np.float32)
    both = np.result_type(one, other)
    return both if both.kind != "f" else np.dtype(np.int64)


def _multiframe(source: Source, header: Dataset, facts: FileFacts, time: int | None) -> Volume:
    path = source.files[0]
    placed = frames.layout(source, [header], time)
    order = [frame.number for frame in placed]
    _limit(path, facts, len(order))
    scales = [] if facts.colour else [_scale(header, n) for n in order]
    if scales and (scales.count(scales[0]) < len(scales) or scales[0].table):
        return _stack(source.files, placed)
    stacked = _all(path, header, order)
    values = _eight_bit_colour(path, header, stacked) if facts.colour else _modality(path, header, stacked, order[0])
    geometry = frames.geometry(facts.rows, facts.columns, placed)
    return _volume(values.swapaxes(0, 2), geometry, header, order[len(order) // 2])


def _all(path: Path, header: Dataset, order: list[int]) -> NDArray[Any]:
    """(K, rows, columns[, 3]) frames in `order`; no copy if that is the stored order."""
    if order == list(range(len(order))) and len(order) == fields.whole(header, "NumberOfFrames"):
        return _decode(path, header, None)
    first = _decode(path, header, order[0])
    stacked = np.empty((len(order), *first.shape), first.dtype)
    stacked[0] = first
    for k, n in enumerate(order[1:], start=1):
        stacked[k] = _decode(path, header, n)
    return stacked


def _volume(values: NDArray[Any], geometry: Geometry, header: Dataset, n: int = 0) -> Volume:
    """The volume, shown as frame n of this header says."""
    if values.ndim == 4:
        return Volume(values, geometry, None, False)
    found = (first_item(group, "FrameVOILUTSequence") for group in groups(header, n))
    voi = next((one for one in found if one is not None), header)
    shown = presets(voi, little=fields.little_endian(header))
    inverted = fields.text(header, "PhotometricInterpretation") == "MONOCHROME1"
    padding = _padding(header, _scale(header, n))
    return Volume(values, geometry, next(iter(shown.values()), None), inverted, shown, padding)


def _limit(path: Path, facts: FileFacts, count: int) -> None:
    pixels = facts.rows * facts.columns
    if pixels > MAX_PIXELS or pixels * count * (3 if facts.colour else 1) > MAX_VOXELS:
        raise UnreadableFile(
            path,
            f"is too large: {facts.columns} x {facts.rows} x {count} = {pixels * count:,} voxels; the maximum is "
            f"{MAX_VOXELS:,} ({MAX_PIXELS:,} per slice); import a part of it",
        )


def _decode(path: Path, header: Dataset, index: int | None) -> NDArray[Any]:
    """One frame (rows, columns[, 3]); with None, all frames of a multi-frame file. May be read-only."""
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    with dicom.reported(path):
        pixels = next((k for k in _PIXELS if k in header and header[k].value), None)
    if pixels is None:
        raise UnreadableFile(path, "has a header but no pixels; export it again with pixels")
    with dicom.reported(path):
        if syntax is None:  # no meta header: use the encoding that pydicom detected
            implicit, little = header.original_encoding
            syntax = "1.2.840.10008.1.2" if implicit else ("1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2")
        by_gdcm = gdcm_pixels.needed(syntax, header)
        try:
            decoder = get_decoder(JPEGBaseline8Bit if by_gdcm else syntax)
        except NotImplementedError as error:
            raise UnreadableFile(path, "has an unsupported compression; export it uncompressed") from error
        if decoder.is_encapsulated:
            _refuse_other_sizes(path, header)
    try:
        if by_gdcm:
            return gdcm_pixels.decode(path, header, index)
        options: Any = {"view_only": True}  # no copy of uncompressed pixels
        found, _ = decoder.as_array(header, index=index, **options)
    except MemoryError as error:
        raise UnreadableFile(path, TOO_LARGE) from error
    except Exception as error:
        raise UnreadableFile(
            path, f"has pixels that cannot be decoded ({described(error)}); export it again"
        ) from error
    return np.asarray(found, found.dtype.newbyteorder("="))


def _refuse_other_sizes(path: Path, header: Dataset) -> None:
    """Check the size inside each compressed frame: decoders trust it, and a few bytes can declare gigabytes."""
    rows, columns = fields.whole(header, "Rows"), fields.whole(header, "Columns")
    for frame in generate_frames(header.PixelData, number_of_frames=max(1, fields.whole(header, "NumberOfFrames"))):
        size = _codestream_size(frame)
        if size is not None and size != (rows, columns):
            raise UnreadableFile(
                path,
                f"has compressed pixels of {size[1]} x {size[0]}, but its header declares {columns} x {rows}; export "
                "it again",
            )


def _codestream_size(data: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG, JPEG-LS or JPEG 2000 stream; None for any other data."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at >= 0 and len(data) >= at + 24:  # JPEG 2000: SIZ follows the start of the codestream (ISO 15444-1, A.5.1)
        right, bottom, left, top = (int.from_bytes(data[at + n : at + n + 4], "big") for n in (8, 12, 16, 20))
        return bottom - top, right - left
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data):  # JPEG: segments of a marker and a length, until the frame header (ISO 10918-1, B.2.2)
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _stored(header: Dataset, picture: NDArray[Any]) -> NDArray[Any]:
    """The picture without the bits above BitsStored, where old files keep overlays."""
    bits = fields.whole(header, "BitsStored")
    if picture.dtype.kind not in "iu" or not 0 < bits < 8 * picture.dtype.itemsize:
        return picture
    if picture.dtype.kind == "u":
        return picture & picture.dtype.type(2**bits - 1) if picture.size and picture.max() >= 2**bits else picture
    if picture.size and (picture.max() >= 2 ** (bits - 1) or picture.min() < -(2 ** (bits - 1))):
        unused = 8 * picture.dtype.itemsize - bits
        return np.asarray((picture << unused) >> unused)
    return picture


def _transformation(header: Dataset, n: int) -> Dataset:
    for group in groups(header, n):
        if (found := first_item(group, "PixelValueTransformationSequence")) is not None:
            return found
    return header


def _scale(header: Dataset, n: int = 0) -> _Scale:
    holder = _transformation(header, n)
    if items(holder, "ModalityLUTSequence"):
        return _Scale(table=True)
    return _Scale(fields.number(holder, "RescaleSlope", 1.0) or 1.0, fields.number(holder, "RescaleIntercept"))


def _modality(path: Path, header: Dataset, picture: NDArray[Any], n: int = 0) -> NDArray[Any]:
    """Modality values of frame n: the same array if they equal the stored ones, integers if slope and intercept are
    whole numbers, else float32."""
    scale = _scale(header, n)
    picture = _stored(header, picture)
    if scale.table:
        with dicom.reported(path):
            return np.asarray(apply_modality_lut(picture, _transformation(header, n))).astype(np.float32)
    if (scale.slope, scale.intercept) == (1.0, 0.0):
        return picture if picture.dtype != np.float64 else picture.astype(np.float32)
    kind = _dtype(picture, scale)
    values = picture.astype(kind)
    if kind.kind == "f":
        values *= kind.type(scale.slope)
        values += kind.type(scale.intercept)
    else:  # intermediate values may wrap modulo 2**bits, but the result fits and is exact
        if scale.slope != 1:
            values *= np.array(int(scale.slope), np.int64).astype(kind)
        values += np.array(int(scale.intercept), np.int64).astype(kind)
    return values


def _dtype(picture: NDArray[Any], scale: _Scale) -> np.dtype[Any]:
    """The smallest type of at least 16 bits that fits the modality values of these stored ones."""
    if picture.dtype.kind not in "iu" or not scale.whole or not picture.size:
        return np.dtype(np.float32)
    ends = int(picture.min()), int(picture.max())
    low, high = sorted(int(scale.slope) * end + int(scale.intercept) for end in ends)
    for kind in (np.int16, np.uint16, np.int32, np.uint32, np.int64):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.float32)


def _padding(header: Dataset, scale: _Scale) -> tuple[float, float] | None:
    """PixelPaddingValue .. PixelPaddingRangeLimit as modality values."""
    value = fields.number(header, "PixelPaddingValue", math.nan)
    if math.isnan(value) or scale.table:
        return None
    limit = fields.number(header, "PixelPaddingRangeLimit", value)
    ends = sorted(scale.slope * end + scale.intercept for end in (value, limit))
    return ends[0], ends[1]


def _eight_bit_colour(path: Path, header: Dataset, picture: NDArray[Any]) -> NDArray[np.uint8]:
    """(..., 3) RGB: applies palettes, and keeps the upper 8 of more than 8 bits."""
    bits = fields.whole(header, "BitsStored") or 8 * picture.dtype.itemsize
    if fields.text(header, "PhotometricInterpretation") == "PALETTE COLOR":
        with dicom.reported(path):
            picture = np.asarray(apply_color_lut(picture, _native_palette(header)))[..., :3]
        bits = 8 * picture.dtype.itemsize
    if picture.shape[-1] != 3:
        raise UnreadableFile(path, f"has {picture.shape[-1]} samples per pixel; expected 1 (gray) or 3 (RGB)")
    if picture.dtype == np.uint8:
        return picture
    return (picture >> max(0, bits - 8)).astype(np.uint8)


def _native_palette(header: Dataset) -> Dataset:
    """The header with its palette in little endian, as pydicom expects words of bytes (OW) to be."""
    if fields.little_endian(header):
        return header
    for colour in ("Red", "Green", "Blue"):
        table = header.get(f"{colour}PaletteColorLookupTableData")
        if isinstance(table, bytes) and len(table) % 2 == 0:
            setattr(header, f"{colour}PaletteColorLookupTableData", np.frombuffer(table, ">u2").astype("<u2").tobytes())
    return header


def presets(header: Dataset, *, little: bool = True) -> dict[str, Window]:
    """The windows of a header by name, VOI LUTs first, without unusable ones."""
    found: list[tuple[str, Window]] = []
    for item in items(header, "VOILUTSequence"):
        table = _table(item, "<u2" if little else ">u2")
        if table is not None:
            span = Window(table.first + len(table.values) / 2, float(len(table.values)), "LINEAR", table)
            found.append((fields.text(item, "LUTExplanation"), span))
    function = fields.text(header, "VOILUTFunction").upper() or "LINEAR"
    function = function if function in ("LINEAR", "LINEAR_EXACT", "SIGMOID") else "LINEAR"
    centers, widths = (fields.text(header, keyword).split("\\") for keyword in ("WindowCenter", "WindowWidth"))
    names = fields.text(header, "WindowCenterWidthExplanation").split("\\")
    for n, (center, width) in enumerate(zip(centers, widths, strict=False)):
        try:
            window = Window(float(center), float(width), function)
        except ValueError:
            continue
        least = 1 if function == "LINEAR" else 1e-12
        if math.isfinite(window.center) and math.isfinite(window.width) and window.width >= least:
            found.append((names[n].strip() if n < len(names) else "", window))
    named: dict[str, Window] = {}
    for n, (name, window) in enumerate(found, start=1):
        name = name or str(n)
        named[name if name not in named else f"{name} ({n})"] = window
    return named


def _table(item: Dataset, words: str) -> VoiTable | None:
    try:
        length, first, bits = (int(part) for part in item.LUTDescriptor)
        data = item.LUTData
        length = length or 65536
        if isinstance(data, bytes):
            wide = len(data) >= 2 * length
            entries = np.frombuffer(data, words if wide else "u1", count=length)
        else:
            entries = np.asarray(data).astype(np.int64)[:length] & 0xFFFF
        if len(entries) != length or not 1 <= bits <= 16:
            return None
        return VoiTable(first, bits, tuple(int(entry) for entry in entries))
    except Exception:
        return None
