"""Writes masks as volumes: the label volume of one scan, aligned to its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.export.manifest import Files
from backend.formats import Cut, Source, write_dicom_seg, write_nifti_labels, write_rtstruct
from backend.intake.identities import ScanRecord

NIFTI, SEG, RTSTRUCT = "nifti", "seg", "rtstruct"


@dataclass(frozen=True)
class Place:
    """Where the images of one scan along one axis belong.

    source   its source files, with their current paths; None if no volume is written
    formats  volume formats to write: NIFTI, SEG, RTSTRUCT
    """

    record: ScanRecord
    cut: Cut
    source: Source | None = None
    formats: frozenset[str] = frozenset()


class Volume:
    """The label volume of one scan, filled slice by slice. Slices without a mask stay 0."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._labels: NDArray[np.uint8] | None = None

    def put(self, n: int, mask: NDArray[np.uint8]) -> None:
        if not self._place.formats:
            return
        if self._labels is None:
            self._labels = np.zeros(self._place.record.geometry.shape, np.uint8)
        self._place.cut.put(self._labels, n, mask)

    def write(
        self,
        form: str,
        files: Files,
        name: str,
        names: Sequence[str],
        *,
        model: Mapping[str, str] | None,
        description: str,
        facts: Mapping[str, Any],
    ) -> None:
        """Write the volume as `form`; do nothing if it has no mask.

        Raises the errors of `write_nifti_labels`, `write_dicom_seg` and `write_rtstruct`.
        """
        source, time = self._place.source, self._place.record.time
        if self._labels is None or source is None:
            return
        if form == NIFTI:
            file = f"{name}.nii.gz"
            write_nifti_labels(files.path(file), self._labels, source, names=names, time=time)
        elif form == RTSTRUCT:
            file = f"{name}.rtstruct.dcm"
            write_rtstruct(
                files.path(file),
                self._labels,
                source,
                names=names,
                automatic=model is not None,
                series_description=description,
                time=time,
            )
        else:
            file = f"{name}.seg.dcm"
            write_dicom_seg(
                files.path(file),
                self._labels,
                source,
                names=names,
                model=model,
                series_description=description,
                time=time,
            )
        files.written(file, form, **facts)
