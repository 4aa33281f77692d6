"""Label volumes as NIfTI, aligned to their source voxel for voxel."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Extension, Nifti1Extensions
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from backend.errors import CannotExport
from backend.formats import nifti
from backend.formats.geometry import Geometry
from backend.formats.reading import read_geometry
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

    From a NIfTI source it takes affine, sform and qform with their codes, zooms, units and shape (without time); from a
    DICOM or plain source the affine. It copies no text from the source's header, which may name the patient. A comment
    extension contains the names of the labels as JSON: {"labels": {"1": "Lung"}}. The write is atomic; the same labels
    give the same bytes.

    labels  (I, J, K) class numbers, 0 background; not modified
    names   names[n - 1] is the label of class n

    Raises CannotExport on another shape or a class without a name, UnreadableFile if the source cannot be read.
    """
    geometry = read_geometry(source, time=time)
    check(labels, geometry, names)
    if source.kind == "nifti":
        with nifti.opened(source.files[0]) as like:
            image: Any = _image_like(like, labels)
    else:
        image = nib.Nifti1Image(labels, geometry.affine)  # type: ignore[no-untyped-call]
        image.header.set_xyzt_units("mm")
        known = bool(geometry.orientation)
        image.set_sform(geometry.affine, code="scanner" if known else "aligned")
        if known and geometry.regular:
            image.set_qform(geometry.affine, code="scanner")
    comment = json.dumps({"labels": {str(n): name for n, name in enumerate(names, start=1)}}, ensure_ascii=False)
    image.header.extensions = Nifti1Extensions([Nifti1Extension("comment", comment.encode())])
    image.header.set_intent("label", (), name="")
    content = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    write_atomically(path, content)


def _image_like(source: Any, labels: NDArray[np.uint8]) -> Any:
    """An image of `labels` with the source's header, without its texts."""
    shape = tuple(source.shape[:3])
    kind: Any = nib.Nifti2Image if isinstance(source.header, Nifti2Header) else nib.Nifti1Image
    if not isinstance(source, nib.Nifti1Pair):
        return kind(labels.reshape(shape), source.affine)  # Analyze stores nothing else
    header = kind.header_class.from_header(source.header)
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["pixdim"][:4] = source.header["pixdim"][:4]  # keeps the third value of a flat image, and its qform
    for name in ("descrip", "db_name", "aux_file", "intent_name"):
        if name in header:
            header[name] = b""
    header["cal_min"] = header["cal_max"] = 0
    header.set_slope_inter(1, 0)
    return kind(labels.reshape(shape), None, header)


def check(labels: NDArray[np.uint8], geometry: Geometry, names: Sequence[str]) -> None:
    """Raise CannotExport unless `labels` fits the volume and every class has a name."""
    if labels.dtype != np.uint8 or labels.shape != geometry.shape:
        raise CannotExport(
            f"labels of {labels.shape} {labels.dtype} do not fit the scan, which needs {geometry.shape} uint8; "
            "check whether the scan was replaced since it was imported"
        )
    most = int(labels.max()) if labels.size else 0
    if most > len(names):
        raise CannotExport(f"the labels contain class {most}, but only {len(names)} classes have a name")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
