"""Small scans as files: DICOM series and NIfTI volumes with voxels, positions and names chosen by the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from backend.demo.phantoms import phantom


def pixels(seed: int, rows: int, columns: int) -> NDArray[np.int16]:
    """A body-like picture, 0..1000, different for each seed."""
    image, _ = phantom(seed, (rows, columns))
    return (image.astype(np.int16) * 1000 // 255).astype(np.int16)


def series_uid(name: str) -> str:
    """The SeriesInstanceUID that belongs to a name."""
    return str(generate_uid(entropy_srcs=["series", name]))


def slice_dataset(series: str, number: int, image: NDArray[np.int16], **fields: Any) -> Dataset:
    """One MR slice of the series called `series`, `number` times 3 mm above the first."""
    rows, columns = image.shape
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = MRImageStorage
    instance = str(generate_uid(entropy_srcs=["instance", series, str(number)]))
    made.file_meta.MediaStorageSOPInstanceUID = instance
    made.SOPClassUID, made.SOPInstanceUID = MRImageStorage, instance
    made.SeriesInstanceUID = series_uid(series)
    made.StudyInstanceUID = str(generate_uid(entropy_srcs=["study", series]))
    made.FrameOfReferenceUID = str(generate_uid(entropy_srcs=["frame", series]))
    made.Modality = "MR"
    made.PatientID, made.PatientName = "", ""
    made.InstanceNumber = number + 1
    made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made.ImagePositionPatient = [-40.0, -50.0, 3.0 * number]
    made.PixelSpacing = [0.75, 0.5]
    made.SliceThickness = 3.0
    made.Rows, made.Columns = rows, columns
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    made.WindowCenter, made.WindowWidth = 500, 1000
    made.PixelData = np.ascontiguousarray(image, "<i2").tobytes()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def write_series(
    folder: Path,
    series: str,
    numbers: range | list[int],
    *,
    size: tuple[int, int] = (40, 32),
    files: str = "{:04d}.dcm",
    **fields: Any,
) -> list[Path]:
    """Slices `numbers` of a series; the same call writes the same bytes. `fields` are attributes of the data set."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number in numbers:
        path = folder / files.format(number)
        seed = sum(series.encode()) * 1000 + number
        slice_dataset(series, number, pixels(seed, *size), **fields).save_as(path, enforce_file_format=True)
        written.append(path)
    return written


def write_nifti(path: Path, seed: int, shape: tuple[int, int, int] = (20, 24, 6)) -> NDArray[np.int16]:
    """A volume of (0.8, 0.9, 2.5) mm in RAS orientation; returns its voxels."""
    values = np.stack([pixels(seed * 100 + k, shape[1], shape[0]).T for k in range(shape[2])], axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.8, 0.9, 2.5, 1.0])), path)
    return values
