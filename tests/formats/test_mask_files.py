"""Masks of other programs in the voxels of their scans; each is compared with the array that it was written from."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import dataset, item, save, series, sources
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from outlines import corner_outlines, half_way_outlines
from PIL import Image
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from backend.errors import UnreadableFile
from backend.formats import (
    Geometry,
    Grid,
    LabelPicture,
    MaskMisfit,
    Source,
    open_mask,
    origins,
    read_geometry,
    write_dicom_seg,
    write_nifti_labels,
    write_rtstruct,
)
from backend.formats.mask_objects import StructureSet
from backend.formats.mask_volumes import LabelVolume
from backend.formats.outlines import filled

SHAPE = (9, 8, 7)
TURN = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN @ np.diag([-0.5, -0.7, 3.0])
AFFINE[:3, 3] = (40, 31.5, -12.25)
NAMES = ("Liver", "Tumour")


def labels_of(seed: int, shape: Sequence[int] = SHAPE) -> NDArray[np.uint8]:
    """Two structures of random voxels; the first and the last slice are empty."""
    found = np.random.default_rng(seed).integers(0, 3, tuple(shape)).astype(np.uint8)
    found[:, :, [0, -1]] = 0
    return found


def label_map(path: Path, grid: Grid) -> tuple[NDArray[np.uint8], set[str]]:
    """What is read from a file: numbers in the voxels of the scan, and the names of the structures."""
    mask = open_mask(path)
    assert mask is not None
    assert not isinstance(mask, LabelPicture)
    found = np.zeros(grid.geometry.shape, np.uint8)
    names = set()
    for segment, voxels in mask.onto(grid):
        assert not found[voxels].any()
        found[voxels] = segment.number
        names.add(segment.name)
    return found, names


def nifti(path: Path, values: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def scan(tmp_path: Path) -> tuple[Source, Grid]:
    (source,) = sources(nifti(tmp_path / "scan.nii.gz", np.zeros(SHAPE, np.int16)))
    return source, Grid(read_geometry(source))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SLA", "ASL"])
def test_a_volume_with_other_axes_lands_on_the_same_voxels(tmp_path: Path, axes: str) -> None:
    _, grid = scan(tmp_path)
    labels = labels_of(1)
    turn = ornt_transform(nib.io_orientation(AFFINE), axcodes2ornt(axes))
    turned = apply_orientation(labels, turn)
    affine = AFFINE @ inv_ornt_aff(turn, SHAPE)
    for path in (tmp_path / "mask.nii.gz", tmp_path / "mask.nii"):
        found, _ = label_map(nifti(path, turned.astype(np.float32), affine), grid)
        assert np.array_equal(found, labels)


def test_a_volume_that_covers_a_part_of_the_scan_lands_there(tmp_path: Path) -> None:
    _, grid = scan(tmp_path)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:6, 3:8, 1:4] = labels_of(2, (4, 5, 3))
    affine = AFFINE.copy()
    affine[:3, 3] = (AFFINE @ (2, 3, 1, 1))[:3]
    found, _ = label_map(nifti(tmp_path / "part.nii.gz", labels[2:6, 3:8, 1:4], affine), grid)
    assert np.array_equal(found, labels)


def _scaled() -> NDArray[np.float64]:
    return AFFINE @ np.diag([1, 1, 0.5, 1])


def _shifted() -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[:3, 3] += (0.2, 0, 0)  # 0.4 voxels
    return affine


def _elsewhere() -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[:3, 3] = (AFFINE @ (40, 0, 0, 1))[:3]
    return affine


@pytest.mark.parametrize(
    ("affine", "what"),
    [
        (_scaled(), "another size or direction"),
        (_shifted(), "voxels off"),
        (_elsewhere(), "lie outside the scan"),
        (AFFINE @ np.diag([0.9, 0.9, 1, 1]), "another size or direction|voxels off"),
    ],
)
def test_a_volume_with_other_voxels_does_not_fit(tmp_path: Path, affine: NDArray[np.float64], what: str) -> None:
    _, grid = scan(tmp_path)
    with pytest.raises(MaskMisfit, match=what):
        label_map(nifti(tmp_path / "mask.nii.gz", labels_of(3), affine), grid)


def test_numbers_that_a_scale_in_the_header_has_rounded_are_whole(tmp_path: Path) -> None:
    _, grid = scan(tmp_path)
    labels = labels_of(10)
    image = nib.Nifti1Image(labels * np.float64(1), AFFINE)
    image.header.set_data_dtype(np.uint8)  # nibabel then scales: 1 becomes 0.996
    nib.save(image, tmp_path / "mask.nii.gz")
    assert float(nib.load(tmp_path / "mask.nii.gz").dataobj.slope) != 1
    found, _ = label_map(tmp_path / "mask.nii.gz", grid)
    assert np.array_equal(found, labels)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.full(SHAPE, 0.5, np.float32), "between whole numbers"),
        (np.full(SHAPE, -1, np.int16), "below 0"),
        (np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16), "503 different values"),
    ],
)
def test_an_image_is_no_mask(tmp_path: Path, values: NDArray[Any], what: str) -> None:
    _, grid = scan(tmp_path)
    with pytest.raises(UnreadableFile, match=what):
        label_map(nifti(tmp_path / "mask.nii.gz", values), grid)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz", ".seg.nrrd"])
def test_label_maps_written_by_simple_itk_are_read(tmp_path: Path, suffix: str) -> None:
    _, grid = scan(tmp_path)
    labels = labels_of(4)
    image = itk_image(labels)
    names = {""}
    if suffix == ".seg.nrrd":
        names = set(NAMES)
        for number, name in enumerate(NAMES):
            for key, value in (("Name", name), ("LabelValue", str(number + 1)), ("Layer", "0")):
                image.SetMetaData(f"Segment{number}_{key}", value)
    path = tmp_path / f"mask{suffix}"
    SimpleITK.WriteImage(image, str(path))
    found, read = label_map(path, grid)
    assert np.array_equal(found, labels)
    assert read == names


def itk_image(labels: NDArray[np.uint8]) -> Any:
    image = SimpleITK.GetImageFromArray(labels.transpose(2, 1, 0))
    lps = np.diag([-1, -1, 1, 1]) @ AFFINE
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def test_segments_of_3d_slicer_that_overlap_are_all_read(tmp_path: Path) -> None:
    _, grid = scan(tmp_path)
    first, second = (np.zeros(SHAPE, np.uint8) for _ in range(2))
    first[1:6, 1:6, 1:4] = 1
    second[3:8, 3:8, 2:5] = 1
    image = SimpleITK.Compose(itk_image(first), itk_image(second))
    for number, name in enumerate(NAMES):
        for key, value in (("Name", name), ("LabelValue", "1"), ("Layer", str(number))):
            image.SetMetaData(f"Segment{number}_{key}", value)
    path = tmp_path / "both.seg.nrrd"
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    mask = open_mask(path)
    assert mask is not None
    assert not isinstance(mask, LabelPicture)
    found = {segment.name: voxels for segment, voxels in mask.onto(grid)}
    assert np.array_equal(found["Liver"], first > 0)
    assert np.array_equal(found["Tumour"], second > 0)


def test_segments_of_old_versions_of_3d_slicer_are_volumes_without_numbers(tmp_path: Path) -> None:
    _, grid = scan(tmp_path)
    first, second = ((labels_of(11) == n).astype(np.uint8) for n in (1, 2))
    image = SimpleITK.Compose(itk_image(first), itk_image(second))
    for number, name in enumerate(NAMES):
        image.SetMetaData(f"Segment{number}_Name", name)
    path = tmp_path / "old.seg.nrrd"
    SimpleITK.WriteImage(image, str(path))
    mask = open_mask(path)
    assert isinstance(mask, LabelVolume)
    found = {segment.name: voxels for segment, voxels in mask.onto(grid)}
    assert np.array_equal(found["Liver"], first > 0)
    assert np.array_equal(found["Tumour"], second > 0)


def test_every_segment_of_a_long_header_has_its_name(tmp_path: Path) -> None:
    _, grid = scan(tmp_path)
    labels = labels_of(12)
    labels[labels == 2] = 100  # the last one in the header, which is in the order of the text
    image = itk_image(labels)
    for number in range(150):
        for key, value in (("Name", f"N{number + 1}"), ("LabelValue", str(number + 1)), ("Tags", "x" * 700)):
            image.SetMetaData(f"Segment{number}_{key}", value)
    path = tmp_path / "many.seg.nrrd"
    SimpleITK.WriteImage(image, str(path))
    assert label_map(path, grid)[1] == {"N1", "N100"}


def test_a_number_that_has_no_name_in_a_file_with_names_is_not_the_number_of_a_label(tmp_path: Path) -> None:
    source, grid = scan(tmp_path)
    path = tmp_path / "mask.nii.gz"
    write_nifti_labels(path, labels_of(13), source, names=NAMES)
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 2, None, image.header), path)  # 2 and 4
    assert label_map(path, grid)[1] == {"Tumour", "4"}


# -- DICOM ------------------------------------------------------------------------------------


def dicom_scan(tmp_path: Path) -> tuple[Source, Grid]:
    files = series(
        tmp_path / "ct", np.zeros((SHAPE[2], SHAPE[1], SHAPE[0]), np.int16), places=[3.0 * k for k in range(99)]
    )
    (source,) = sources(*files)
    return source, Grid(read_geometry(source), source.instances)


def test_a_dicom_seg_lands_on_the_voxels_that_it_was_written_from(tmp_path: Path) -> None:
    source, grid = dicom_scan(tmp_path)
    labels = labels_of(5)
    write_dicom_seg(tmp_path / "mask.dcm", labels, source, names=NAMES)
    for here in (grid, Grid(grid.geometry)):  # by its images, and by its positions
        found, names = label_map(tmp_path / "mask.dcm", here)
        assert np.array_equal(found, labels)
        assert names == set(NAMES)
    mask = open_mask(tmp_path / "mask.dcm")
    assert mask is not None
    assert not isinstance(mask, LabelPicture)
    assert mask.instances >= set(source.instances)


def test_a_nifti_mask_of_a_dicom_series_lands_on_its_voxels(tmp_path: Path) -> None:
    source, grid = dicom_scan(tmp_path)
    labels = labels_of(6)
    write_nifti_labels(tmp_path / "mask.nii.gz", labels, source, names=NAMES)
    found, names = label_map(tmp_path / "mask.nii.gz", grid)
    assert np.array_equal(found, labels)
    assert names == set(NAMES)


def segmentation(path: Path, labels: NDArray[np.uint8], source: Source, **options: Any) -> Path:
    """A DICOM SEG of a label map, as highdicom writes it."""
    images = [pydicom.dcmread(file) for file in source.files]
    code = Code("1", "99TEST", "test")
    manual = highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
    described = [highdicom.seg.SegmentDescription(n, name, code, code, manual) for n, name in enumerate(NAMES, start=1)]
    found = highdicom.seg.Segmentation(
        images,
        labels.transpose(2, 1, 0),
        options.pop("kind", "BINARY"),
        described,
        generate_uid(),
        1,
        generate_uid(),
        1,
        "Test",
        "Test",
        "1",
        "1",
        **options,
    )
    found.save_as(path)
    return path


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_the_background_of_a_dicom_label_map_is_no_structure(tmp_path: Path, syntax: str) -> None:
    source, grid = dicom_scan(tmp_path)
    labels = labels_of(14)
    path = segmentation(tmp_path / "mask.dcm", labels, source, kind="LABELMAP", transfer_syntax_uid=syntax)
    found, names = label_map(path, grid)
    assert np.array_equal(found, labels)
    assert names == set(NAMES)


def test_a_frame_is_drawn_where_it_is_and_not_on_the_image_that_it_names(tmp_path: Path) -> None:
    source, grid = dicom_scan(tmp_path)
    path = segmentation(tmp_path / "mask.dcm", labels_of(15), source)
    header = pydicom.dcmread(path)
    for frame in header.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence = item(ImagePositionPatient=[float(place[0]) + 0.3, place[1], place[2]])
    header.save_as(path)
    with pytest.raises(MaskMisfit, match=r"up to 0\.40 voxels off"):
        label_map(path, grid)


@pytest.mark.parametrize("what", ["frames", "does not describe"])
def test_a_dicom_seg_that_contradicts_itself_is_refused_at_once(tmp_path: Path, what: str) -> None:
    source, grid = dicom_scan(tmp_path)
    path = segmentation(tmp_path / "mask.dcm", labels_of(16), source)
    header = pydicom.dcmread(path)
    if what == "frames":
        header.NumberOfFrames = 2**31 - 1  # a list of them would fill the memory
    else:
        header.SegmentSequence = header.SegmentSequence[:1]
    header.save_as(path)
    with pytest.raises(UnreadableFile, match=what):
        label_map(path, grid)


def structure_set(
    path: Path, source: Source, geometry: Geometry, outlines: dict[str, dict[int, list[NDArray[np.float64]]]]
) -> Path:
    """An RTSTRUCT; `outlines`: by name and slice, points (n, 2) in voxels (i, j)."""
    header = dataset(np.zeros((1, 1), np.uint16), SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3", Modality="RTSTRUCT")
    del header.PixelData
    header.StructureSetROISequence, header.ROIContourSequence = [], []
    for number, (name, slices) in enumerate(outlines.items(), start=1):
        roi, contours = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        contours.ReferencedROINumber, contours.ContourSequence = number, []
        for k, polygons in slices.items():
            for points in polygons:
                one, image = Dataset(), Dataset()
                image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, source.instances[k]
                voxels = np.column_stack([points, np.full(len(points), k), np.ones(len(points))])
                place = (voxels @ geometry.affine.T)[:, :3] * (-1, -1, 1)
                one.ContourImageSequence, one.ContourGeometricType = [image], "CLOSED_PLANAR"
                one.NumberOfContourPoints = len(points)
                one.ContourData = [f"{value:.5f}" for value in place.ravel()]
                contours.ContourSequence.append(one)
        header.StructureSetROISequence.append(roi)
        header.ROIContourSequence.append(contours)
    return save(path, header)


def blobs(seed: int) -> NDArray[np.bool_]:
    """Smooth shapes with holes and islands in them."""
    noise = np.random.default_rng(seed).normal(size=(64, 72)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 3) > 0)


@pytest.mark.parametrize("outlines", [corner_outlines, half_way_outlines])
@pytest.mark.parametrize("seed", range(4))
def test_an_rtstruct_is_read_within_half_a_pixel(tmp_path: Path, outlines: Any, seed: int) -> None:
    mask = blobs(seed)
    files = series(tmp_path / "ct", np.zeros((3, *mask.shape), np.int16), places=[3.0 * k for k in range(99)])
    (source,) = sources(*files)
    geometry = read_geometry(source)
    path = structure_set(tmp_path / "rt.dcm", source, geometry, {"Liver": {1: outlines(mask)}})
    for grid in (Grid(geometry, source.instances), Grid(geometry)):
        found, names = label_map(path, grid)
        assert names == {"Liver"}
        assert not found[:, :, [0, 2]].any()
        wrong = found[:, :, 1].T.astype(bool) != mask
        edge = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        assert not (wrong & ~edge).any()
        assert wrong.sum() == 0  # what is more than asked for: outlines of a mask give the mask


def test_an_exported_rtstruct_is_read_as_the_same_mask(tmp_path: Path) -> None:
    mask = np.stack([blobs(seed).T for seed in range(3)], axis=2).astype(np.uint8)
    mask[blobs(9).T] *= 2
    files = series(tmp_path / "ct", np.zeros((3, *mask.shape[1::-1]), np.int16), orientation=(0.6, 0.8, 0, 0, 0, -1))
    (source,) = sources(*files)
    write_rtstruct(tmp_path / "rt.dcm", mask, source, names=NAMES)
    for instances in (source.instances, ()):
        found, names = label_map(tmp_path / "rt.dcm", Grid(read_geometry(source), instances))
        assert np.array_equal(found, mask)
        assert names == set(NAMES)


def test_outlines_beside_the_slices_of_the_scan_do_not_fit(tmp_path: Path) -> None:
    source, grid = dicom_scan(tmp_path)
    square = np.array([[1.0, 1.0], [5.0, 1.0], [5.0, 5.0], [1.0, 5.0]])
    moved = grid.geometry.affine.copy()
    moved[2, 3] += 1.5
    shifted = Geometry(SHAPE, moved, (0.75, 0.5, 3.0), True, 2, "LPS")
    path = structure_set(tmp_path / "rt.dcm", source, shifted, {"Liver": {1: [square]}})
    with pytest.raises(MaskMisfit, match="between or across the slices"):
        label_map(path, grid)


def tilted(tmp_path: Path) -> tuple[Source, Geometry]:
    """A series with gantry tilt: the slices are parallel, but shifted against each other."""
    files = series(tmp_path / "ct", np.zeros((9, 64, 72), np.int16), orientation=(1, 0, 0, 0, np.cos(0.3), np.sin(0.3)))
    for k, file in enumerate(files):
        header = pydicom.dcmread(file)
        header.ImagePositionPatient = [10.0, 20.0, 30.0 + 3 * k]
        header.save_as(file)
    (source,) = sources(*files)
    geometry = read_geometry(source)
    assert not geometry.regular
    return source, geometry


def test_outlines_on_tilted_slices_are_drawn_where_each_slice_is(tmp_path: Path) -> None:
    source, geometry = tilted(tmp_path)
    mask, k = blobs(1), 7
    grid = Grid(geometry, source.instances, origins(source))
    here = geometry.affine.copy()
    here[:3, 3] = np.array(grid.origins[k]) - k * here[:3, 2]
    own = Geometry(geometry.shape, here, geometry.spacing, True, 2, "LPS")
    path = structure_set(tmp_path / "rt.dcm", source, own, {"Liver": {k: half_way_outlines(mask)}})
    found, _ = label_map(path, grid)
    assert np.array_equal(found[:, :, k].T, mask)
    with pytest.raises(MaskMisfit, match="elsewhere now"):
        label_map(path, Grid(geometry, source.instances))


def test_what_is_left_out_need_not_fit(tmp_path: Path) -> None:
    source, grid = dicom_scan(tmp_path)
    square = np.array([[1.0, 1.0], [5.0, 1.0], [5.0, 5.0], [1.0, 5.0]])
    path = structure_set(
        tmp_path / "rt.dcm", source, grid.geometry, {"Liver": {1: [square]}, "Couch": {2: [square + 90]}}
    )
    mask = open_mask(path)
    assert isinstance(mask, StructureSet)
    with pytest.raises(MaskMisfit, match="outside the pictures"):
        list(mask.onto(grid))
    assert [segment.name for segment, _ in mask.onto(grid, without=frozenset({2}))] == ["Liver"]


def test_outlines_of_more_than_64_kilobytes_are_read(tmp_path: Path) -> None:
    source, grid = dicom_scan(tmp_path)
    angles = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    circle = 4 + 2.2 * np.column_stack([np.cos(angles), np.sin(angles)])
    found, _ = label_map(structure_set(tmp_path / "rt.dcm", source, grid.geometry, {"": {1: [circle]}}), grid)
    i, j = np.meshgrid(np.arange(SHAPE[0]) - 4, np.arange(SHAPE[1]) - 4, indexing="ij")
    assert np.array_equal(found[:, :, 1] > 0, i**2 + j**2 < 2.2**2)


def test_outlines_without_end_are_a_problem_of_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.formats.outlines._MAX_WORK", 10**8)
    zigzag = np.column_stack([np.linspace(0, 500, 20_000), np.tile([0.0, 511.0], 10_000)])
    with pytest.raises(UnreadableFile, match="millions of times"):
        filled(tmp_path, [zigzag], 512, 512)
    nested = [np.array([(a, a), (511 - a, a), (511 - a, 511 - a), (a, 511 - a)]) for a in np.linspace(0.1, 200, 1200)]
    with pytest.raises(UnreadableFile, match="too many outlines"):
        filled(tmp_path, nested, 512, 512)


# -- pictures ---------------------------------------------------------------------------------


def picture(path: Path) -> NDArray[np.uint8]:
    mask = open_mask(path)
    assert isinstance(mask, LabelPicture)
    found: NDArray[np.uint8] | None = None
    for segment, pixels in mask.read():
        found = np.zeros(pixels.shape, np.uint8) if found is None else found
        found[pixels] = segment.number
    assert found is not None
    return found


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGB", "RGBA", "1"])
def test_a_png_label_map_is_read_by_gray_value_or_palette_index(tmp_path: Path, mode: str) -> None:
    labels = labels_of(7, (12, 10, 3))[:, :, 1]
    wanted = labels
    if mode == "P":
        image = Image.fromarray(labels, "P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    elif mode == "I;16":
        image = Image.fromarray(labels.astype(np.uint16))
    elif mode == "1":
        image, wanted = Image.fromarray(labels > 0), (labels > 0).astype(np.uint8)
    else:
        image = Image.fromarray(labels).convert(mode)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(picture(tmp_path / "mask.png"), wanted)


def test_nothing_is_drawn_where_a_mask_is_transparent(tmp_path: Path) -> None:
    values = np.full((8, 8, 4), 255, np.uint8)
    values[..., 3] = 0
    values[2:5, 2:5, 3] = 255
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert np.array_equal(picture(tmp_path / "mask.png"), values[..., 3])


@pytest.mark.parametrize(("bits", "most"), [(2, 3), (4, 15)])
def test_gray_values_of_few_bits_are_read_as_stored(tmp_path: Path, bits: int, most: int) -> None:
    values = np.arange(16, dtype=np.uint8).reshape(2, 8) % (most + 1)
    cv2.imwrite(str(tmp_path / "mask.png"), values)
    each = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(2, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in each)
    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    (tmp_path / "mask.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    )
    assert np.array_equal(picture(tmp_path / "mask.png"), values)


@pytest.mark.parametrize("kind", ["colour", "jpeg", "black on transparency", "inverse palette", "CMYK"])
def test_a_picture_that_is_no_label_map_is_refused_with_a_cure(tmp_path: Path, kind: str) -> None:
    values = np.zeros((8, 8, 3), np.uint8)
    values[2:5, 2:5, 0] = 255
    path = tmp_path / {"jpeg": "a.jpg", "CMYK": "a.tif"}.get(kind, "a.png")
    image = Image.fromarray(values)
    if kind == "black on transparency":
        image = Image.fromarray(np.dstack([values * 0, values[..., 0]]))
    elif kind == "inverse palette":  # an optimizer puts the most frequent colour first
        image = Image.fromarray(values[..., 0] // 255, "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
    elif kind == "CMYK":
        image = Image.fromarray(np.dstack([values * 0, values[..., 0]]), "CMYK")
    image.save(path)
    with pytest.raises(UnreadableFile, match="save"):
        picture(path)


@pytest.mark.parametrize("kind", ["nifti", "nrrd", "seg", "rtstruct", "png"])
def test_damaged_masks_are_unreadable_and_never_another_error(tmp_path: Path, kind: str) -> None:
    source, grid = dicom_scan(tmp_path)
    labels = labels_of(8)
    whole = tmp_path / {"nifti": "a.nii", "nrrd": "a.nrrd", "seg": "a.dcm", "rtstruct": "b.dcm", "png": "a.png"}[kind]
    if kind == "nifti":
        write_nifti_labels(whole, labels, source, names=NAMES)
    elif kind == "nrrd":
        SimpleITK.WriteImage(itk_image(labels), str(whole))
    elif kind == "seg":
        write_dicom_seg(whole, labels, source, names=NAMES)
    elif kind == "rtstruct":
        structure_set(whole, source, grid.geometry, {"Liver": {1: corner_outlines(blobs(1)[:8, :8])}})
    else:
        Image.fromarray(labels[:, :, 1]).save(whole)
    content = whole.read_bytes()
    rng = np.random.default_rng(9)
    for n in range(40):
        damaged = bytearray(content[: rng.integers(1, len(content))] if n % 2 else content)
        for at in rng.integers(0, len(damaged), 0 if n % 2 else 20):
            damaged[at] ^= int(rng.integers(1, 256))
        whole.write_bytes(damaged)
        try:
            mask = open_mask(whole)
            for _ in () if mask is None else mask.read() if isinstance(mask, LabelPicture) else mask.onto(grid):
                pass
        except UnreadableFile as error:
            assert error.path == whole  # noqa: PT017
