"""Label volumes as NIfTI, aligned to their source voxel for voxel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.formats.source import Source


def write_nifti_labels(
    path: Path,
    labels: NDArray[np.uint8],
    source: Source,
    *,
    names: Sequence[str],
    time: int | None = None,
) -> None:
    """Write a label volume in the geometry of its source, as .nii or .nii.gz.

    A NIfTI source lends its affine, sform and qform with their codes, zooms, units and shape (without time); a DICOM
    or plain source its affine. No text of the source's header is copied: it may name the patient. The names of the
    labels stand in a comment extension, as JSON: {"labels": {"1": "Lung"}}. Written aside, then renamed; the same
    labels give the same bytes.

    labels  (I, J, K) class numbers, 0 background; not modified
    names   names[n - 1] is the label of class n

    Raises CannotExport on another shape or a class without a name, UnreadableFile when the source cannot be read.
    """
    raise NotImplementedError
