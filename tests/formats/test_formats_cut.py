"""The position of a volume in the patient, and its cuts: round trips in every orientation, voxel for voxel."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import series
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from backend.formats import AXES, CannotCut, Geometry, Source, cut, group, read, read_geometry, sniff

AXIAL_NAMES = {"axial": "S", "coronal": "A", "sagittal": "R"}
ORIENTATIONS = sorted(
    "".join(code)
    for axes in permutations(("RL", "AP", "SI"))
    for code in product(*axes)
)  # fmt: skip
CANONICAL = np.random.default_rng(5).integers(0, 30_000, (5, 6, 7)).astype(np.int16)  # R, A, S
SPACING = (1.0, 1.25, 3.0)  # of R, A, S


def oriented(path: Path, code: str) -> Source:
    """CANONICAL as a NIfTI file with voxel axes in the directions of `code`."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-11, 7, 3)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(code))
    values = nib.orientations.apply_orientation(CANONICAL, turn)
    nib.save(nib.Nifti1Image(values, affine @ inv_ornt_aff(turn, CANONICAL.shape)), path)
    return Source("nifti", (path,), "")


def shown(plane: str, n: int) -> np.ndarray:
    """The picture of CANONICAL at RAS index n of a plane, in radiological convention."""
    if plane == "axial":  # rows from anterior to posterior, columns from the patient's right
        return CANONICAL[::-1, ::-1, n].T
    if plane == "coronal":  # rows from the head down
        return CANONICAL[::-1, n, ::-1].T
    return CANONICAL[n, ::-1, ::-1].T  # columns from anterior


def test_there_are_48_orientations() -> None:
    assert len(ORIENTATIONS) == 48
    assert "LIA" in ORIENTATIONS


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_every_orientation_gives_the_same_pictures_and_restores_them(tmp_path: Path, code: str) -> None:
    volume = read(oriented(tmp_path / "scan.nii.gz", code))
    geometry = volume.geometry
    assert geometry.orientation == code
    assert geometry.regular
    assert geometry.spacing == tuple(SPACING["RAS".index(w)] for w in code.translate(str.maketrans("LPI", "RAS")))
    assert code[geometry.acquisition] in "SI"  # 3 mm is the coarsest
    for plane, positive in AXIAL_NAMES.items():
        slices = cut(geometry, plane)
        world = "RAS".index(positive)
        with_it = positive in code  # slices and voxels have the same direction
        assert slices.count == CANONICAL.shape[world]
        assert slices.thickness == SPACING[world]
        back = np.zeros_like(volume.values)
        for n in range(slices.count):
            picture = slices.take(volume.values, n)
            assert (picture == shown(plane, n if with_it else slices.count - 1 - n)).all()
            assert picture.shape == slices.shape
            slices.put(back, n, picture)
        assert (back == volume.values).all()
        rows, columns = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}[plane]
        assert slices.spacing == (SPACING[rows], SPACING[columns])
    acquired = cut(geometry, "acquisition")
    assert (acquired.take(volume.values, 0) == cut(geometry, "axial").take(volume.values, 0)).all()


def test_a_picture_is_a_view() -> None:
    values = np.zeros((2, 3, 4, 3), np.uint8)
    geometry = Geometry((2, 3, 4), np.diag([-1.0, -1, 1, 1]), (1.0, 1.0, 1.0), True, 2, "LPS", as_stored=True)
    picture = cut(geometry, "coronal").take(values, 1)
    assert picture.shape == (4, 2, 3)
    assert np.shares_memory(picture, values)


ORIENTATIONS_DICOM = {
    "axial": (1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (0.8, 0.6, 0, -0.48, 0.64, 0.6),
    "upside down": (-1, 0, 0, 0, -1, 0),
}


@pytest.mark.parametrize("name", ORIENTATIONS_DICOM)
def test_a_dicom_voxel_is_where_its_header_says(tmp_path: Path, name: str) -> None:
    orientation = ORIENTATIONS_DICOM[name]
    volume = np.random.default_rng(1).integers(0, 999, (4, 6, 5)).astype(np.int16)
    paths = series(tmp_path, volume, orientation=orientation)
    (source,) = group(fact for fact in map(sniff, reversed(paths)) if fact)
    found = read(source)
    assert source.files == tuple(paths)
    assert found.geometry.shape == (5, 6, 4)
    assert found.geometry.regular
    assert found.geometry.spacing == pytest.approx((0.75, 0.5, 2.5))
    # PS3.3 C.7.6.2.1.1: pixel at (column i, row j) of slice k.
    i, j, k = 3, 2, 1
    assert found.values[i, j, k] == volume[k, j, i]
    normal = np.cross(orientation[:3], orientation[3:])
    lps = np.array([10, 20, 30]) + 2.5 * k * normal
    lps = lps + 0.75 * i * np.array(orientation[:3]) + 0.5 * j * np.array(orientation[3:])
    assert (found.geometry.affine @ [i, j, k, 1])[:3] == pytest.approx(lps * (-1, -1, 1), abs=1e-5)
    slices = cut(found.geometry, "acquisition")
    for k in range(4):
        assert (slices.take(found.values, k) == volume[k]).all()  # equal to the stored pixels
    assert slices.spacing == (0.5, 0.75)
    assert slices.thickness == pytest.approx(2.5)


def test_pictures_of_dicom_and_nifti_agree(tmp_path: Path) -> None:
    volume = np.random.default_rng(1).integers(0, 999, (4, 6, 5)).astype(np.int16)
    (source,) = group(fact for fact in map(sniff, series(tmp_path, volume, orientation=(0, 1, 0, 0, 0, -1))) if fact)
    ours = read(source)
    nib.save(nib.Nifti1Image(ours.values, ours.geometry.affine), tmp_path / "same.nii")
    theirs = read(Source("nifti", (tmp_path / "same.nii",), ""))
    for plane in AXES[1:]:
        one, other = cut(ours.geometry, plane), cut(theirs.geometry, plane)
        assert (one.take(ours.values, 1) == other.take(theirs.values, 1)).all()


def test_a_tie_of_spacings_goes_to_the_last_axis(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([2.0, 2.0, 2.0, 1])), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([2.0, 3.0, 2.0, 1])), tmp_path / "b.nii")
    assert read_geometry(Source("nifti", (tmp_path / "a.nii",), "")).acquisition == 2
    assert read_geometry(Source("nifti", (tmp_path / "b.nii",), "")).acquisition == 1


def test_a_cut_that_is_not_possible_is_refused(tmp_path: Path) -> None:
    volume = np.zeros((4, 6, 5), np.int16)
    uneven = group([f for f in map(sniff, series(tmp_path / "a", volume, places=(0, 1, 2, 9))) if f])
    single = group([f for f in map(sniff, series(tmp_path / "b", volume[:1])) if f])
    assert not read_geometry(uneven[0]).regular
    assert cut(read_geometry(uneven[0]), "axial").count == 4  # another name of the acquisition axis
    assert cut(read_geometry(single[0]), "axial").count == 1
    with pytest.raises(CannotCut, match=r"not evenly spaced or not parallel\. Cut along 'acquisition'"):
        cut(read_geometry(uneven[0]), "coronal")
    with pytest.raises(CannotCut, match="a single slice"):
        cut(read_geometry(single[0]), "sagittal")
    with pytest.raises(ValueError, match="one of acquisition, axial, coronal, sagittal, not along 'oblique'"):
        cut(read_geometry(single[0]), "oblique")


def test_take_and_put_refuse_mismatched_input() -> None:
    geometry = Geometry((2, 3, 4), np.diag([-1.0, -1, 1, 1]), None, True, 2, "LPS", as_stored=True)
    slices = cut(geometry, "axial")
    with pytest.raises(IndexError, match=r"slices 0..3, got slice 4"):
        slices.take(np.zeros((2, 3, 4)), 4)
    with pytest.raises(ValueError, match=r"4 pictures of \(3, 2\), got an array of \(3, 2, 4\)"):
        slices.take(np.zeros((3, 2, 4)), 0)
    with pytest.raises(ValueError, match=r"expected a picture of \(3, 2\), got \(2, 3\)"):
        slices.put(np.zeros((2, 3, 4)), 0, np.zeros((2, 3)))


def test_a_geometry_is_restored_from_text_bit_for_bit() -> None:
    affine = np.random.default_rng(0).normal(size=(4, 4))
    for spacing in ((0.1, 1 / 3, 6.5), None):
        geometry = Geometry((2, 3, 4), affine, spacing, False, 1, "LIA")
        again = Geometry.from_json(geometry.to_json())
        assert again == geometry
        assert hash(again) == hash(geometry)
        assert type(again.shape) is tuple
    assert geometry != Geometry((2, 3, 4), affine + 1e-16 * affine, (1.0, 1.0, 1.0), False, 1, "LIA")


def test_real_scans_have_the_position_of_their_headers(shared: Path) -> None:
    folder = shared / "data" / "brain_mri_volumes"
    expected = {
        "PGBM-003_T1post": ((280, 320, 22), 0.6875),
        "PGBM-003_FLAIRreg": ((280, 320, 22), 0.6875),
        "PGBM-002_T1post": ((512, 512, 22), 0.4297),
    }
    for name, (shape, size) in expected.items():
        (source,) = group(fact for fact in map(sniff, sorted((folder / name).iterdir())) if fact)
        geometry = read_geometry(source)
        assert geometry.shape == shape
        assert geometry.spacing == pytest.approx((size, size, 6.5), abs=1e-4)
        assert geometry.regular
        assert geometry.orientation == "LPS"
    fact = sniff(folder / "brainchop_t1_crop.nii.gz")
    assert fact is not None
    (source,) = group([fact])
    geometry = read_geometry(source)
    assert (geometry.orientation, geometry.shape, geometry.spacing) == ("LIA", (256, 256, 256), (1.0, 1.0, 1.0))
    assert (geometry.affine == nib.load(source.files[0]).affine).all()
