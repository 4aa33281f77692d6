"""Masks as volumes: the label volume of one scan, written aligned to its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.export.manifest import Files
from backend.formats import Cut, Source, write_dicom_seg, write_nifti_labels
from backend.intake.identities import ScanRecord

NIFTI, SEG = "nifti", "seg"


@dataclass(frozen=True)
class Place:
    """Where the pictures of one scan along one axis belong.

    source   its files as they lie now; None when no volume is written
    formats  those of NIFTI and SEG that are written
    """

    record: ScanRecord
    cut: Cut
    source: Source | None = None
    formats: frozenset[str] = frozenset()


class Volume:
    """The label volume of one scan, filled picture by picture; slices that are not put stay 0."""

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
        """Write what was put, if anything was, as `form`.

        Raises as `write_nifti_labels` and `write_dicom_seg`.
        """
        source, time = self._place.source, self._place.record.time
        if self._labels is None or source is None:
            return
        if form == NIFTI:
            file = f"{name}.nii.gz"
            write_nifti_labels(files.path(file), self._labels, source, names=names, time=time)
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
