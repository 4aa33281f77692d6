"""Masks as label maps: NIfTI, NRRD (also of 3D Slicer), MetaImage, MGH, TIFF, and PNG for single pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableFile
from backend.formats import dicom, itk, mask_objects, nifti, packed, picture, reading
from backend.formats.masks import Grid, Segment, fitted, whole_numbers
from backend.formats.source import Source


class LabelVolume:
    """A label map with a geometry, in one file.

    layers  for each layer of a 3D Slicer segmentation the names of its numbers; None: one label map
    """

    instances: frozenset[str] = frozenset()

    def __init__(self, source: Source) -> None:
        self.path: Path = source.files[0]
        self._source = source
        layered = itk.segments(self.path) if source.kind == "volume" else {}
        names = nifti.label_names(self.path) if source.kind == "nifti" else {}
        self._layers: list[Mapping[int, str]] = [layered[n] for n in sorted(layered)] if layered else [names]
        self._numbers = sorted(layered) if layered else [0]
        if layered and max(layered) >= source.volumes:
            raise UnreadableFile(self.path, "names segments that it does not contain; save it again with 3D Slicer")
        if not layered and source.volumes > 1:
            raise UnreadableFile(
                self.path, f"has {source.volumes} volumes; a mask has one, with a number for each label. Save it so"
            )

    @property
    def named(self) -> tuple[Segment, ...]:
        return tuple(Segment(number, name) for layer in self._layers for number, name in layer.items())

    @property
    def files(self) -> tuple[Path, ...]:
        return self._source.files

    def onto(self, grid: Grid, *, without: frozenset[int] = frozenset()) -> Iterator[tuple[Segment, NDArray[np.bool_]]]:
        for layer, names in zip(self._numbers, self._layers, strict=True):
            volume = reading.read(self._source, time=layer if self._source.volumes > 1 else None)
            if volume.values.ndim == 4:
                raise UnreadableFile(self.path, "is coloured; save a label map with one gray value per label")
            values = whole_numbers(self.path, volume.values)
            placed = fitted(self.path, values, volume.geometry, grid.geometry)
            for number in np.unique(placed[placed > 0]).tolist():
                # where others have names, a number without one is not that of a label
                yield Segment(number, names.get(number) or (str(number) if self.named else "")), placed == number


class LabelPicture:
    """A label map of one picture, with gray values or a palette."""

    named: tuple[Segment, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Iterator[tuple[Segment, NDArray[np.bool_]]]:
        """Each structure that is drawn, as (rows, columns) booleans. Raises UnreadableFile."""
        values = whole_numbers(self.path, picture.label_map(self.path))
        for number in np.unique(values[values > 0]).tolist():
            yield Segment(number), values == number


def open_mask(path: Path) -> LabelVolume | LabelPicture | mask_objects.Object | None:
    """The masks in a file, from its content; None if it contains none: text, a DICOM image.

    Raises UnreadableFile if the file is damaged. Whether it is a label map shows when it is read.
    """
    first, _ = packed.start(path, 512)
    if dicom.looks_like(first) and not itk.looks_like(first):
        return mask_objects.open_object(path)
    segmentation = itk.looks_like(first) and itk.is_segmentation(path)
    facts = itk.facts(path) if segmentation else reading.sniff(path)
    if facts is None or facts.kind == "dicom":
        return None
    if facts.kind == "image" and facts.frames == 1:
        return LabelPicture(path)
    (source,) = reading.group([facts])
    return LabelVolume(source)
