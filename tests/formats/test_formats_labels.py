"""Writing labels: NIfTI aligned to its source, DICOM SEG with valid references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import CR, dataset, enhanced, save, series, sources
from pydicom.uid import generate_uid

from backend.formats import CannotExport, Source, read_geometry, write_dicom_seg, write_nifti_labels

RNG = np.random.default_rng(6)
NAMES = ("Lung", "Läsion 肺", "Heart")


def labels(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return RNG.integers(0, 4, shape).astype(np.uint8)


# ---- NIfTI


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 1), (4, 4), (0, 0)])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 2), (5, 6), (5, 6, 7, 1)])
def test_labels_are_aligned_with_their_nifti_source(
    tmp_path: Path, kind: Any, codes: tuple[int, int], shape: Any
) -> None:
    turn = np.array([[0, -1.1, 0], [0, 0, 2.5], [0.9, 0, 0]]) @ np.diag([1, 1, 1])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn, (-7.3, 11.9, 1 / 3)
    image = kind(RNG.integers(0, 9, shape).astype(np.int16), affine)
    image.set_sform(affine, code=codes[0])
    image.set_qform(affine, code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"Potter Harry"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Potter Harry"))
    image.header.set_slope_inter(2, 1)
    nib.save(image, tmp_path / "source.nii.gz")
    (source,) = sources(tmp_path / "source.nii.gz")
    time = 1 if shape[-1] == 2 else None
    ours = labels(read_geometry(source, time=time).shape)
    write_nifti_labels(tmp_path / "labels.nii.gz", ours, source, names=NAMES, time=time)

    theirs, found = nib.load(tmp_path / "source.nii.gz"), nib.load(tmp_path / "labels.nii.gz")
    assert type(found) is kind
    assert (found.affine == theirs.affine).all()
    assert found.shape == theirs.shape[:3]
    assert found.header.get_zooms() == theirs.header.get_zooms()[:3]
    assert found.get_data_dtype() == np.uint8
    assert (np.asanyarray(found.dataobj).reshape(ours.shape) == ours).all()
    for field in ("sform_code", "qform_code", "srow_x", "quatern_b", "qoffset_x", "xyzt_units"):
        assert (found.header[field] == theirs.header[field]).all()
    assert b"Potter" not in found.to_bytes()
    (extension,) = found.header.extensions
    said = json.loads(
        bytes(extension.get_content()).rstrip(b"\0")
        if isinstance(extension.get_content(), bytes)
        else extension.get_content()
    )
    assert said == {"labels": {"1": "Lung", "2": "Läsion 肺", "3": "Heart"}}


def test_labels_are_aligned_with_the_voxels_of_their_dicom_source(tmp_path: Path) -> None:
    paths = series(tmp_path, RNG.integers(0, 99, (4, 6, 5)).astype(np.int16), orientation=(0.8, 0.6, 0, 0, 0, -1))
    (source,) = sources(*paths)
    ours = labels((5, 6, 4))
    write_nifti_labels(tmp_path / "a.nii", ours, source, names=NAMES)
    found = nib.load(tmp_path / "a.nii")
    assert found.affine == pytest.approx(read_geometry(source).affine, abs=1e-5)
    assert found.get_qform() == pytest.approx(found.affine, abs=1e-4)
    assert (np.asanyarray(found.dataobj) == ours).all()
    assert (found.header["sform_code"], found.header["qform_code"]) == (1, 1)


def test_the_same_labels_give_the_same_bytes_and_no_other_files(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.eye(4)), tmp_path / "source.nii")
    (source,) = sources(tmp_path / "source.nii")
    ours = labels((5, 6, 7))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti_labels(tmp_path / name, ours, source, names=NAMES)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz", "source.nii"]


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.eye(4)), tmp_path / "source.nii")
    (source,) = sources(tmp_path / "source.nii")
    with pytest.raises(CannotExport, match=r"labels of \(5, 6, 8\) uint8 do not fit the scan, which needs \(5, 6, 7\)"):
        write_nifti_labels(tmp_path / "a.nii", labels((5, 6, 8)), source, names=NAMES)
    with pytest.raises(CannotExport, match="contain class 3, but only 2 classes have a name"):
        write_nifti_labels(tmp_path / "a.nii", np.full((5, 6, 7), 3, np.uint8), source, names=NAMES[:2])
    with pytest.raises(CannotExport, match="references the DICOM files"):
        write_dicom_seg(tmp_path / "a.dcm", labels((5, 6, 7)), source, names=NAMES)


# ---- DICOM SEG


def reread(path: Path, source: Source, names: int) -> np.ndarray[Any, Any]:
    """(I, J, K) as highdicom reads it for the source's instances."""
    seg = highdicom.seg.segread(path)
    assert seg.number_of_segments == names
    found = seg.get_pixels_by_source_instance(
        source.instances, combine_segments=True, assert_missing_frames_are_empty=True
    )
    return np.asarray(found).transpose(2, 1, 0)


def test_a_seg_returns_the_labels_frame_for_frame(tmp_path: Path) -> None:
    paths = series(tmp_path / "in", RNG.integers(0, 99, (5, 16, 12)).astype(np.int16), PatientName="Müller^Jörg")
    for path in paths:
        header = pydicom.dcmread(path)
        header.SpecificCharacterSet = "ISO_IR 100"
        header.PatientName = "Müller^Jörg"
        header.save_as(path)
    (source,) = sources(*paths)
    ours = labels((12, 16, 5))
    ours[:, :, 2] = 0
    out = tmp_path / "a.seg.dcm"
    write_dicom_seg(out, ours, source, names=NAMES, series_description="of round 3")
    assert (reread(out, source, 3) == ours).all()

    seg = pydicom.dcmread(out)
    assert seg.SegmentationType == "BINARY"
    assert seg.NumberOfFrames == 4 * 3  # the empty slice is left out
    assert [str(item.SegmentLabel) for item in seg.SegmentSequence] == list(NAMES)
    assert {item.SegmentAlgorithmType for item in seg.SegmentSequence} == {"MANUAL"}
    assert str(seg.PatientName) == "Müller^Jörg"
    assert seg.SeriesDescription == "of round 3"
    first = pydicom.dcmread(paths[0])
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert seg[keyword].value == first[keyword].value
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == first.SeriesInstanceUID
    assert {str(item.ReferencedSOPInstanceUID) for item in referenced.ReferencedInstanceSequence} == set(
        source.instances
    )
    for frame in seg.PerFrameFunctionalGroupsSequence:
        used = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        k = source.instances.index(used)
        assert position == pydicom.dcmread(source.files[k]).ImagePositionPatient


def test_a_models_seg_names_the_model(tmp_path: Path) -> None:
    (source,) = sources(*series(tmp_path / "in", np.zeros((2, 16, 12), np.int16)))
    model = {"name": "unet-resnet34", "version": "scanqueue-r3"}
    write_dicom_seg(tmp_path / "a.dcm", labels((12, 16, 2)), source, names=NAMES, model=model)
    for item in pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence:
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        (algorithm,) = item.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("unet-resnet34", "scanqueue-r3")


def test_a_seg_without_pixels_is_valid(tmp_path: Path) -> None:
    (source,) = sources(*series(tmp_path / "in", np.zeros((4, 16, 12), np.int16)))
    write_dicom_seg(tmp_path / "a.dcm", np.zeros((12, 16, 4), np.uint8), source, names=NAMES)
    seg = pydicom.dcmread(tmp_path / "a.dcm")
    assert seg.NumberOfFrames == 3  # one slice, once per class
    assert not seg.pixel_array.any()
    (referenced,) = seg.ReferencedSeriesSequence
    assert {str(item.ReferencedSOPInstanceUID) for item in referenced.ReferencedInstanceSequence} == set(
        source.instances
    )


def test_a_seg_of_uneven_slices(tmp_path: Path) -> None:
    paths = series(tmp_path / "in", np.zeros((4, 16, 12), np.int16), places=(0, 1, 2, 9))
    (source,) = sources(*paths)
    ours = labels((12, 16, 4))
    write_dicom_seg(tmp_path / "a.dcm", ours, source, names=NAMES)
    assert (reread(tmp_path / "a.dcm", source, 3) == ours).all()


def test_a_seg_of_a_multi_frame_source(tmp_path: Path) -> None:
    places = [[0, 0, 3.0 * n] for n in (2, 0, 3, 1)]
    path = enhanced(
        tmp_path / "in.dcm",
        RNG.integers(0, 99, (4, 16, 12)).astype(np.uint16),
        places,
        Modality="CT",
        ImageType=list("OPAN"),
    )
    (source,) = sources(path)
    ours = labels((12, 16, 4))
    write_dicom_seg(tmp_path / "a.dcm", ours, source, names=NAMES)
    seg = highdicom.seg.segread(tmp_path / "a.dcm")
    found = seg.get_pixels_by_source_frame(source.instances[0], [2, 4, 1, 3], combine_segments=True)
    assert (np.asarray(found).transpose(2, 1, 0) == ours).all()


def test_a_radiograph_and_its_seg(tmp_path: Path) -> None:
    path = save(
        tmp_path / "in.dcm",
        dataset(RNG.integers(0, 99, (16, 12)).astype(np.uint16), SOPClassUID=CR, Modality="CR", PatientSex=None),
    )
    (source,) = sources(path)
    ours = labels((12, 16, 1))
    write_dicom_seg(tmp_path / "a.dcm", ours, source, names=NAMES)
    assert (reread(tmp_path / "a.dcm", source, 3) == ours).all()


def test_the_labels_of_real_series_are_read_back(shared: Path, tmp_path: Path) -> None:
    for name in ("PGBM-003_T1post", "PGBM-003_FLAIRreg", "PGBM-002_T1post"):
        (source,) = sources(*(shared / "data" / "brain_mri_volumes" / name).iterdir())
        shape = read_geometry(source).shape
        ours = np.zeros(shape, np.uint8)
        for n in (1, 2):
            ours[20 * n : 60 * n, 30 * n : 70, 3 * n : 9 * n] = n
        write_dicom_seg(tmp_path / "a.dcm", ours, source, names=NAMES[:2])
        assert (reread(tmp_path / "a.dcm", source, 2) == ours).all()
        write_nifti_labels(tmp_path / "a.nii.gz", ours, source, names=NAMES)
        assert (np.asanyarray(nib.load(tmp_path / "a.nii.gz").dataobj) == ours).all()


def test_real_labels_are_written_back_onto_their_volume(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "msd_hippocampus"
    for path in sorted((folder / "images").glob("*.nii.gz"))[:5]:
        truth = nib.load(folder / "masks" / path.name)
        (source,) = sources(path)
        values = np.asanyarray(truth.dataobj).astype(np.uint8)
        write_nifti_labels(tmp_path / "a.nii.gz", values, source, names=("Anterior", "Posterior"))
        found = nib.load(tmp_path / "a.nii.gz")
        assert (found.affine == truth.affine).all()
        assert (np.asanyarray(found.dataobj) == np.asanyarray(truth.dataobj)).all()


def test_a_seg_needs_classes_and_unique_uids(tmp_path: Path) -> None:
    (source,) = sources(*series(tmp_path / "in", np.zeros((2, 16, 12), np.int16), SeriesInstanceUID=generate_uid()))
    with pytest.raises(CannotExport, match="at least one class"):
        write_dicom_seg(tmp_path / "a.dcm", np.zeros((12, 16, 2), np.uint8), source, names=())
    for name in ("a.dcm", "b.dcm"):
        write_dicom_seg(tmp_path / name, np.zeros((12, 16, 2), np.uint8), source, names=NAMES)
    a, b = (pydicom.dcmread(tmp_path / name) for name in ("a.dcm", "b.dcm"))
    assert a.SOPInstanceUID != b.SOPInstanceUID
    assert a.SeriesInstanceUID != b.SeriesInstanceUID
