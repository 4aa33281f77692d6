"""Pixels in JPEG syntaxes that pydicom does not decode, through GDCM: 12 bits, and the retired ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import JPEGExtended12Bit

from backend.formats import fields, packed

RETIRED = {f"1.2.840.10008.1.2.4.{number}" for number in (52, 53, 55)}  # processes 3 and 5, 6 and 8, 10 and 12
_KINDS = {"UINT8": "u1", "INT8": "i1", "UINT16": "<u2", "INT16": "<i2"}


def needed(syntax: Any, header: Dataset) -> bool:
    """Whether only GDCM decodes this transfer syntax."""
    return syntax in RETIRED or (syntax == JPEGExtended12Bit and fields.whole(header, "BitsStored") > 8)


def decode(path: Path, header: Dataset, index: int | None) -> NDArray[Any]:
    """One frame (rows, columns[, 3]), or all frames; decodes all, whichever is requested. Raises ValueError."""
    import gdcm

    for off in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        off()
    reader = gdcm.ImageReader()
    with packed.local(path) as file:
        reader.SetFileName(str(file))
        if not reader.Read():
            raise ValueError("GDCM cannot decode this JPEG")
        image = reader.GetImage()
        content = image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM's wrapper returns bytes as str
    pixels = image.GetPixelFormat()
    count, rows, columns = max(1, fields.whole(header, "NumberOfFrames")), *_size(header)
    samples = int(pixels.GetSamplesPerPixel())
    found = np.frombuffer(content, _KINDS[pixels.GetScalarTypeAsString()])
    if samples > 1 and image.GetPlanarConfiguration():
        found = np.moveaxis(found.reshape(count, samples, rows, columns), 1, -1)
    found = found.reshape(count, rows, columns, samples) if samples > 1 else found.reshape(count, rows, columns)
    colours = str(image.GetPhotometricInterpretation().GetString())
    if colours.startswith("YBR_FULL"):
        found = convert_color_space(found, "YBR_FULL", "RGB")
    return found if index is None else found[index]


def _size(header: Dataset) -> tuple[int, int]:
    return fields.whole(header, "Rows"), fields.whole(header, "Columns")
