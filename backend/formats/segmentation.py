"""Label volumes as DICOM Segmentation objects that reference their source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.formats.source import Source


def write_dicom_seg(
    path: Path,
    labels: NDArray[np.uint8],
    source: Source,
    *,
    names: Sequence[str],
    model: Mapping[str, str] | None = None,
    series_description: str = "Segmentation",
    manufacturer: str = "scanqueue",
    time: int | None = None,
) -> None:
    """Write a label volume as a binary DICOM SEG that references the source's instances, for a hospital's archive.

    The file carries the patient, study and frame of reference of its source, patient's name included: an archive
    files it by them. Keep it where the source may lie. Only non-empty frames are stored.

    labels   (I, J, K) class numbers, 0 background; not modified
    names    names[n - 1] is the label of class n; each becomes a segment, number n
    model    who drew it: {"name": ..., "version": ...} of a model (algorithm type AUTOMATIC); None: a person (MANUAL)

    Raises CannotExport when the source is no DICOM, on another shape or a class without a name, UnreadableFile when
    the source cannot be read.
    """
    raise NotImplementedError
