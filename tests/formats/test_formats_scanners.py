"""Scans as scanners and archives really write them: what ../shared/cases lists, and its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import MR, US, dataset, save, sources
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRBigEndian, generate_uid

from backend.formats import Source, UnreadableFile, read, read_geometry, sniff

RNG = np.random.default_rng(5)
STACK = RNG.integers(0, 4000, (4, 6, 5)).astype(np.uint16)


# ---- geometry


def nifti(path: Path, sform: Sequence[float], zooms: Sequence[float], *, qform: bool) -> Source:
    """A volume whose sform has the sizes `sform` and whose header has `zooms`."""
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([-zooms[0], -zooms[1], zooms[2], 1.0]))
    image.set_qform(image.affine, code=1 if qform else 0)
    image.set_sform(np.diag([-sform[0], -sform[1], sform[2], 1.0]), code=1)
    image.header["pixdim"][1:4] = zooms
    nib.save(image, path)
    (source,) = sources(path)
    return source


def test_a_nifti_whose_sform_lost_the_voxel_size(cases: Path, tmp_path: Path) -> None:
    (source,) = sources(cases / "nifti" / "acdc_sform_1mm.nii")
    found = read_geometry(source)
    assert found.spacing == pytest.approx((1.316, 1.316, 10), abs=1e-3)
    assert found.orientation == "LPS"
    assert source.remarks == ("its sform contradicts the voxel size in its header (pixdim), which was used instead",)
    assert Source.from_json(source.to_json()) == source


@pytest.mark.parametrize(
    ("sform", "zooms", "qform", "expected"),
    [
        ((1, 1, 1), (1.3, 1.4, 10), True, (1.3, 1.4, 10)),
        ((1, 1, 1), (1.3, 1.4, 10), False, (1.3, 1.4, 10)),
        ((1, 1, 10), (1.3, 1.4, 10), False, (1.3, 1.4, 10)),
        ((1.3, 1.4, 10), (1, 1, 1), False, (1.3, 1.4, 10)),  # nobody filled in pixdim
        ((1.3, 1.4, 10), (1.3, 1.4, 10), True, (1.3, 1.4, 10)),
        ((1.3001, 1.4, 10), (1.3, 1.4, 10), True, (1.3001, 1.4, 10)),  # rounding
    ],
)
def test_voxel_sizes_are_those_of_itk(
    tmp_path: Path,
    sform: tuple[float, ...],
    zooms: tuple[float, ...],
    qform: bool,
    expected: tuple[float, ...],
) -> None:
    source = nifti(tmp_path / "a.nii", sform, zooms, qform=qform)
    assert read_geometry(source).spacing == pytest.approx(expected, rel=1e-6)
    assert bool(source.remarks) == (abs(sform[0] - expected[0]) > 0.01)


def region(box: Sequence[int], size: float, units: int = 3) -> pydicom.Dataset:
    found = pydicom.Dataset()
    found.RegionLocationMinX0, found.RegionLocationMinY0, found.RegionLocationMaxX1, found.RegionLocationMaxY1 = box
    found.PhysicalUnitsXDirection = found.PhysicalUnitsYDirection = units
    found.PhysicalDeltaX, found.PhysicalDeltaY = size, 2 * size
    return found


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([region((0, 0, 49, 59), 0.05)], (0.5, 1.0, 0.0)),
        ([region((0, 0, 49, 59), 0.05), region((9, 9, 20, 20), 0.05)], (0.5, 1.0, 0.0)),
        ([region((0, 0, 49, 59), 0.05), region((9, 9, 20, 20), 0.02)], None),  # one picture, two scales
        ([region((0, 0, 30, 59), 0.05)], None),
        ([region((0, 0, 49, 59), 0.05, units=4)], None),  # seconds
        ([], None),
    ],
)
def test_ultrasound_is_calibrated_by_a_region_that_covers_the_picture(
    tmp_path: Path, regions: list[pydicom.Dataset], expected: tuple[float, ...] | None
) -> None:
    pixels = np.zeros((60, 50), np.uint8)
    header = dataset(pixels, SOPClassUID=US, Modality="US", SequenceOfUltrasoundRegions=regions)
    (source,) = sources(save(tmp_path / "a.dcm", header))
    assert read_geometry(source).spacing == (None if expected is None else pytest.approx(expected))
    assert read(source).geometry == read_geometry(source)


# ---- what is refused by its name


def test_grids_and_whole_slides_are_refused_by_name(cases: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"is a Siemens MOSAIC: all slices .* convert it with dcm2niix"):
        sniff(cases / "mosaic" / "s000.dcm")
    header = dataset(STACK[0], SOPClassUID=MR, Modality="MR", Manufacturer="UIH", ImageType=["ORIGINAL", "PRIMARY"])
    block = header.private_block(0x0065, "Image Private Header", create=True)
    block.add_new(0x50, "DS", "4")
    with pytest.raises(UnreadableFile, match="is a United Imaging grid"):
        sniff(save(tmp_path / "grid.dcm", header))
    block[0x50].value = "1"
    assert sniff(save(tmp_path / "plain.dcm", header)) is not None
    slide = dataset(STACK[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.6", Modality="SM", NumberOfFrames=1)
    with pytest.raises(UnreadableFile, match="is a tiled whole-slide image, which is not supported"):
        sniff(save(tmp_path / "slide.dcm", slide))


# ---- pixels


def test_palette_colours_are_the_same_in_big_endian(tmp_path: Path) -> None:
    header = pydicom.dcmread(str(get_testdata_file("examples_palette.dcm")))
    (little,) = sources(Path(str(get_testdata_file("examples_palette.dcm"))))
    expected = read(little).values
    for colour in ("Red", "Green", "Blue"):
        table = np.frombuffer(header[f"{colour}PaletteColorLookupTableData"].value, "<u2")
        header[f"{colour}PaletteColorLookupTableData"].value = table.astype(">u2").tobytes()
    header["PixelData"].VR = "OB"
    header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    path = tmp_path / "big.dcm"
    pydicom.dcmwrite(path, header, little_endian=False, implicit_vr=False, force_encoding=True)
    assert pydicom.dcmread(path).original_encoding == (False, False)
    (big,) = sources(path)
    assert (read(big).values == expected).all()
