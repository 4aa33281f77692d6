"""Scans in, masks out: import, annotation in a real Label Studio, and export, with every voxel in its place.

Annotators draw on the pictures that Label Studio serves, and know nothing about volumes.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel import orientations
from numpy.typing import NDArray
from pycocotools.coco import COCO
from service import Service
from volume_lab import CONTROL, LABELS, Mask, VolumeLab, manifest

from backend.demo.annotator import label_map_to_masks, to_result
from backend.demo.label_studio import LabelStudio
from backend.formats import cut
from backend.records.store import Store

pytestmark = pytest.mark.label_studio

AXES = ("axial", "coronal", "sagittal")


@pytest.fixture
def lab(label_studio: LabelStudio, tmp_path: Path) -> Iterator[VolumeLab]:
    made = VolumeLab(label_studio, tmp_path)
    yield made
    made.close()


def same_space(written: Any, source: Any) -> None:
    """Check that two NIfTI images place their voxels equally."""
    assert written.shape == source.shape[:3]
    assert np.array_equal(written.affine, source.affine)
    for form in ("sform", "qform"):
        ours, ours_code = getattr(written, f"get_{form}")(coded=True)
        theirs, theirs_code = getattr(source, f"get_{form}")(coded=True)
        assert int(ours_code) == int(theirs_code), form
        assert (ours is None and theirs is None) or np.array_equal(ours, theirs), form
    assert np.array_equal(written.header.get_zooms(), source.header.get_zooms()[:3])
    assert written.header.get_xyzt_units()[0] == source.header.get_xyzt_units()[0]


# -- NIfTI with true masks ---------------------------------------------------------------------


def check_hippocampi(lab: VolumeLab, shared: Path, names: Sequence[str], axes: Sequence[str]) -> None:
    """Import volumes, each along one of `axes` in turn, annotate every slice with its true mask, and compare."""
    data = shared / "data" / "msd_hippocampus"
    truth: dict[str, Any] = {}
    for axis, along in itertools.groupby(sorted(zip(itertools.cycle(axes), names, strict=False)), key=lambda p: p[0]):
        lab.import_scans("--axis", axis, *(data / "images" / name for _, name in along))
    for scan, file in lab.sources().items():
        mask = nib.load(data / "masks" / file.name)
        truth[scan] = np.asarray(mask.dataobj).astype(np.uint8)

    def draw(task: Mapping[str, Any], picture: Callable[[], Mask]) -> Mask:
        with_place = places[task["scan"]]
        return np.ascontiguousarray(cut(with_place, task["axis"]).take(truth[task["scan"]], task["slice"]))

    with lab.identities() as known:
        places = {record.scan: record.geometry for record in known.scans()}
    lab.annotate(draw)
    out = lab.export("out")
    listed = manifest(out)
    assert len(listed["scans"]) == len(names)
    assert (listed["unlabelled"], listed["problems"]) == ([], [])
    assert len(listed["slices"]) == len(lab.tasks())
    for scan, file in lab.sources().items():
        written = nib.load(out / f"{scan}.nii.gz")
        same_space(written, nib.load(file))
        assert np.array_equal(np.asarray(written.dataobj), truth[scan]), file.name
        assert set(np.unique(truth[scan])) == {0, 1, 2}
        assert not (out / f"{scan}.seg.dcm").exists()
    assert sum(f["kind"] == "png" for f in listed["files"]) == len(listed["slices"])
    coco = COCO(out / "coco.json")
    for row in listed["slices"]:
        pixels = cv2.imread(str(out / row["png"]), cv2.IMREAD_UNCHANGED)
        wanted = lab.drawn[row["scan"], row["axis"], row["slice"]]
        assert np.array_equal(pixels, wanted)
        again = np.zeros_like(wanted)
        for region in coco.loadAnns(coco.getAnnIds(row["task"])):
            again[coco.annToMask(region) > 0] = region["category_id"]
        assert np.array_equal(again, wanted)


def test_volumes_are_exported_voxel_for_voxel(lab: VolumeLab, shared: Path) -> None:
    check_hippocampi(lab, shared, ("hippocampus_001.nii.gz", "hippocampus_003.nii.gz"), ("sagittal", "coronal"))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_all_volumes_are_exported_voxel_for_voxel(lab: VolumeLab, shared: Path) -> None:
    files = sorted((shared / "data" / "msd_hippocampus" / "images").glob("*.nii.gz"))
    assert len(files) == 260
    check_hippocampi(lab, shared, [file.name for file in files], AXES)


# -- every orientation -------------------------------------------------------------------------

LEVELS = (0, 100, 200)  # of background and the two classes


def levelled(shape: tuple[int, int, int], seed: int) -> NDArray[np.int16]:
    """A volume of the three LEVELS that every flip and rotation changes: random blocks and single voxels."""
    rng = np.random.default_rng(seed)
    values = rng.choice(LEVELS, size=shape, p=(0.6, 0.25, 0.15)).astype(np.int16)
    values[0, 0, 0], values[-1, 0, 0], values[0, -1, 0], values[0, 0, -1] = 200, 0, 100, 0
    return values


def see(task: Mapping[str, Any], picture: Callable[[], Mask]) -> Mask:
    """What an annotator would draw from the picture alone: each level with its label."""
    pixels = picture()
    assert set(np.unique(pixels)) <= {0, 127, 128, 255}
    return np.where(pixels == 255, 2, np.where(pixels > 100, 1, 0)).astype(np.uint8)


def test_a_scan_of_every_orientation_is_exported_voxel_for_voxel(lab: VolumeLab, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    shape, spacing = (2, 3, 4), (0.7, 1.1, 2.3)
    turns = [
        np.array(list(zip(axes, flips, strict=True)))
        for axes in itertools.permutations(range(3))
        for flips in itertools.product((1, -1), repeat=3)
    ]
    codes = ["".join(orientations.ornt2axcodes(turn)) for turn in turns]
    assert len(set(codes)) == 48
    for number, (turn, code) in enumerate(zip(turns, codes, strict=True)):
        sizes = [shape[int(axis)] for axis in turn[:, 0]]
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for voxel, (world, sign) in enumerate(turn):
            affine[int(world), voxel] = sign * spacing[int(world)]
        affine[:3, 3] = (-12.5, 30.25, 7)
        assert "".join(nib.aff2axcodes(affine)) == code
        axis = AXES[number % 3]
        (folder / axis).mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(levelled(tuple(sizes), number), affine)  # type: ignore[arg-type]
        image.header.set_xyzt_units("mm")
        nib.save(image, folder / axis / f"{code}.nii.gz")
    for axis in AXES:
        lab.import_scans("--axis", axis, "--window", "100,200", folder / axis)
    lab.annotate(see)
    out = lab.export("out")
    sources = lab.sources()
    assert len(sources) == 48
    for scan, file in sources.items():
        source, written = nib.load(file), nib.load(out / f"{scan}.nii.gz")
        same_space(written, source)
        assert np.array_equal(np.asarray(written.dataobj), np.asarray(source.dataobj) // 100), file.name
    assert manifest(out)["problems"] == []


# -- DICOM and a whole head --------------------------------------------------------------------


def made_mask(pixels: NDArray[Any]) -> Mask:
    """A mask of a picture that every flip changes: the bright pixels, with the second class in one corner."""
    bright = pixels > np.percentile(pixels, 80)
    corner = np.zeros(pixels.shape, bool)
    corner[: pixels.shape[0] // 3, : pixels.shape[1] // 2] = True
    mask = np.where(bright, np.where(corner, 2, 1), 0).astype(np.uint8)
    mask[2:7, 3:5] = 2
    return mask


def test_dicom_series_are_exported_as_nifti_and_as_segmentations_of_instances(lab: VolumeLab, shared: Path) -> None:
    data = shared / "data" / "brain_mri_volumes"
    lab.import_scans(*sorted(data.glob("PGBM-*")))
    headers = {}
    for file in data.glob("PGBM-*/*.dcm"):
        header = pydicom.dcmread(file)
        headers[header.SeriesInstanceUID, header.SOPInstanceUID] = header
    masks = {uid: made_mask(header.pixel_array) for (_, uid), header in headers.items()}
    with lab.identities() as known:
        records = {record.scan: record for record in known.scans()}
    assert len(records) == 3

    def draw(task: Mapping[str, Any], picture: Callable[[], Mask]) -> Mask:
        mask = masks[records[task["scan"]].source.instances[task["slice"]]]
        if task["slice"] == 11:
            assert picture().shape == mask.shape
        return mask

    lab.annotate(draw)
    out = lab.export("out")
    listed = manifest(out)
    assert {f["kind"]: 0 for f in listed["files"]}.keys() == {"nifti", "seg", "png", "coco"}
    for scan, record in records.items():
        own = [h for (_, uid), h in headers.items() if uid in record.source.instances]
        assert len(own) == len(record.source.instances) == 22
        check_nifti(nib.load(out / f"{scan}.nii.gz"), own, masks)
        check_segmentation(out / f"{scan}.seg.dcm", own, masks)
    for path in out.rglob("*"):  # patient data are only in the DICOM SEG
        if path.is_file() and path.suffix != ".dcm":
            content = path.read_bytes()
            for header in headers.values():
                for value in (header.PatientName, header.PatientID, header.SeriesInstanceUID, header.StudyDate):
                    assert not str(value) or str(value).encode() not in content, path.name


def check_nifti(written: Any, headers: Sequence[Any], masks: Mapping[str, Mask]) -> None:
    """Check that each pixel of each instance is at the patient position of its header, in millimetres."""
    labels = np.asarray(written.dataobj)
    columns, rows = headers[0].Columns, headers[0].Rows
    assert labels.shape == (columns, rows, len(headers))
    between_rows, between_columns = (float(mm) for mm in headers[0].PixelSpacing)
    zooms = [float(mm) for mm in written.header.get_zooms()]
    assert zooms == pytest.approx([between_columns, between_rows, float(headers[0].SpacingBetweenSlices)], abs=1e-3)
    back = np.linalg.inv(written.affine)
    for header in headers:
        right, down = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        first = np.array(header.ImagePositionPatient, float)
        mask = masks[header.SOPInstanceUID]
        for row, column in ((0, 0), (rows - 1, columns - 1), *np.argwhere(mask)[::997].tolist()):
            place = first + right * column * between_columns + down * row * between_rows
            voxel = back @ [-place[0], -place[1], place[2], 1]  # DICOM's x and y have the opposite direction
            assert np.allclose(voxel, np.rint(voxel), atol=0.02)
            assert labels[tuple(np.rint(voxel[:3]).astype(int))] == mask[row, column]
    assert int((labels > 0).sum()) == sum(int((masks[h.SOPInstanceUID] > 0).sum()) for h in headers)


def check_segmentation(path: Path, headers: Sequence[Any], masks: Mapping[str, Mask]) -> None:
    plain = pydicom.dcmread(path)
    assert plain.SOPClassUID == pydicom.uid.SegmentationStorage
    assert (plain.StudyInstanceUID, plain.PatientID) == (headers[0].StudyInstanceUID, headers[0].PatientID)
    assert plain.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    assert [s.SegmentLabel for s in plain.SegmentSequence] == list(LABELS)
    assert {s.SegmentAlgorithmType for s in plain.SegmentSequence} == {"MANUAL"}
    (series,) = plain.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == headers[0].SeriesInstanceUID
    instances = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert instances == {h.SOPInstanceUID for h in headers}
    frames = plain.pixel_array.reshape(-1, headers[0].Rows, headers[0].Columns)
    seen = set()
    for facts, frame in zip(plain.PerFrameFunctionalGroupsSequence, frames, strict=True):
        segment = facts.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        (origin,) = facts.DerivationImageSequence[0].SourceImageSequence
        uid = origin.ReferencedSOPInstanceUID
        source = next(h for h in headers if h.SOPInstanceUID == uid)
        assert np.allclose(facts.PlanePositionSequence[0].ImagePositionPatient, source.ImagePositionPatient, atol=1e-3)
        assert np.array_equal(frame > 0, masks[uid] == segment)
        seen.add((uid, segment))
    assert seen == {(h.SOPInstanceUID, n) for h in headers for n in (1, 2) if (masks[h.SOPInstanceUID] == n).any()}
    measures = plain.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert list(measures.PixelSpacing) == pytest.approx(list(headers[0].PixelSpacing))
    read = highdicom.seg.segread(path)
    uids = [h.SOPInstanceUID for h in headers]
    assert {uid for _, _, uid in read.get_source_image_uids()} == set(uids)
    combined = read.get_pixels_by_source_instance(uids, combine_segments=True, ignore_spatial_locations=True)
    for uid, pixels in zip(uids, combined, strict=True):
        assert np.array_equal(pixels, masks[uid])


def test_annotated_slices_of_a_head_are_exported_and_the_others_stay_empty(lab: VolumeLab, shared: Path) -> None:
    file = shared / "data" / "brain_mri_volumes" / "brainchop_t1_crop.nii.gz"
    source = nib.load(file)
    assert "".join(nib.aff2axcodes(source.affine)) == "LIA"
    lab.import_scans("--axis", "coronal", "--every", "64", file)
    lab.import_scans("--axis", "axial", "--every", "64", file)
    shown: dict[tuple[str, int], Mask] = {}

    def draw(task: Mapping[str, Any], picture: Callable[[], Mask]) -> Mask:
        shown[task["axis"], task["slice"]] = made_mask(picture())
        return shown[task["axis"], task["slice"]]

    lab.annotate(draw)
    out = lab.export("out")
    (scan,) = lab.sources()
    values = np.asarray(source.dataobj)
    # Computed independently with nibabel: the picture of a slice of the volume.
    numbered = np.arange(values.size, dtype=np.int32).reshape(values.shape)
    head = nib.as_closest_canonical(nib.Nifti1Image(numbered, source.affine))
    voxels = np.asarray(head.dataobj)  # R, A, S: the index of the voxel in the file
    for axis, along in (("axial", 2), ("coronal", 1)):
        written = nib.load(out / f"{scan}.{axis}.nii.gz")
        same_space(written, source)
        wanted = np.zeros(values.size, np.uint8)
        stored = int(np.flatnonzero(orientations.io_orientation(source.affine)[:, 0] == along)[0])
        for (one, n), mask in shown.items():
            if one == axis:
                k = np.argwhere(voxels == np.take(numbered, n, axis=stored)[0, 0])[0][along]
                numbers = np.take(voxels, k, axis=along)[::-1, ::-1].T  # rows from front or top, right on the left
                wanted[numbers] = mask
        assert np.array_equal(np.asarray(written.dataobj), wanted.reshape(values.shape)), axis
        assert (wanted == 2).any()
    rows = {row["axis"]: row for row in manifest(out)["scans"]}
    assert {axis: (row["slices"], row["labelled"]) for axis, row in rows.items()} == {
        "axial": (256, 4),
        "coronal": (256, 4),
    }


# -- where the files are -----------------------------------------------------------------------


def test_moved_and_changed_files_are_reported_and_found_again(lab: VolumeLab, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(2):
        affine = np.diag([1, 1.5, 2 + number, 1])
        image = nib.Nifti1Image(levelled((5, 6, 2), number), affine)
        nib.save(image, tmp_path / "scans" / f"Dumbledore_{number}.nii.gz")
    lab.import_scans("--axis", "axial", "--window", "100,200", tmp_path / "scans")
    lab.annotate(see)
    (first, moved), (second, kept) = lab.sources().items()
    (tmp_path / "archive" / "deep").mkdir(parents=True)
    elsewhere = moved.rename(tmp_path / "archive" / "deep" / "another name.nii.gz")
    out = lab.export("out", code=1)
    assert f"problem: {first}: its source was moved or deleted (file is missing), so no volume was written" in lab.said
    assert "Use --source to name the folder that now contains the files" in lab.said
    assert "Dumbledore" not in lab.said
    assert not (out / f"{first}.nii.gz").exists()
    assert (out / f"{second}.nii.gz").exists()
    assert len(list((out / "png").iterdir())) == 4
    assert "Dumbledore" not in (out / "manifest.json").read_text()
    lab.export("out", "--show-paths", code=1)
    assert f"(missing: {moved})" in lab.said
    out = lab.export("out", "--source", tmp_path / "archive")
    assert np.array_equal(nib.load(out / f"{first}.nii.gz").dataobj, np.asarray(nib.load(elsewhere).dataobj) // 100)

    image = nib.load(kept)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1, 1, 9, 1])), kept)
    lab.export("out", "--source", tmp_path / "archive", code=1)
    assert f"problem: {second}: its source has changed since the import, so no volume was written" in lab.said
    assert "The folders in --source do not contain it either." in lab.said

    # another machine without identities and scans
    shutil.move(lab.folder / "data", lab.folder / "at home")
    out = lab.export("elsewhere")
    assert "note: NIfTI and DICOM SEG were not written. They need the identities file" in lab.said
    assert sorted(p.name for p in out.iterdir()) == ["coco.json", "manifest.json", "png"]
    for row in manifest(out)["slices"]:
        pixels = cv2.imread(str(out / row["png"]), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(pixels, lab.drawn[row["scan"], row["axis"], row["slice"]])
    assert {row["scan"] for row in manifest(out)["slices"]} == {first, second}
    code, said = lab.run("export", "--out", tmp_path / "none", "--format", "nifti")
    assert (code, "NIfTI, DICOM SEG and RTSTRUCT need the identities file" in said) == (1, True)


# -- the loop ----------------------------------------------------------------------------------


def test_from_scans_through_the_queue_to_predicted_masks(lab: VolumeLab, shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "msd_hippocampus"
    files = [data / "images" / f"hippocampus_{n}.nii.gz" for n in ("001", "003", "004")]
    lab.import_scans("--axis", "coronal", "--best", "5", *files)
    with lab.identities() as known:
        records = {record.scan: record for record in known.scans()}
    truth = {
        scan: np.asarray(nib.load(data / "masks" / r.source.files[0].name).dataobj).astype(np.uint8)
        for scan, r in records.items()
    }
    settings = {"cold_start_size": 6, "round_size": 5}
    service = Service(lab.studio, tmp_path / "data", env={"SCANQUEUE_TRAINING_STEPS": "30"})
    with service:
        lab.studio.connect_backend(lab.project, service.public_url, extra_params=settings)
        service.wait(lab.project, lambda s: s["model_version"] == "scanqueue-r0", seconds=120)
        for _ in range(6):
            task = lab.annotator.next_task(lab.project)
            assert task is not None
            about = task["data"]
            place = cut(records[about["scan"]].geometry, about["axis"])
            mask = np.ascontiguousarray(place.take(truth[about["scan"]], about["slice"]))
            lab.annotator.submit(task, to_result(label_map_to_masks(mask, LABELS), CONTROL))
            lab.drawn[about["scan"], about["axis"], about["slice"]] = mask
        done = service.wait(lab.project, lambda s: s["model_version"] == "scanqueue-r1" and s["job"] is None)
        assert done["labelled"] == 6
    out = lab.export("out", "--model", "--names")
    listed = manifest(out)
    store = Store(tmp_path / "data")
    (model,) = store.models(lab.project)
    assert (listed["model"]["version"], listed["model"]["fingerprint"]) == ("scanqueue-r1", model["fingerprint"])
    assert sum(listed["model"]["masks"].values()) == 15
    assert {row["shown"] for row in listed["slices"]} == {"scanqueue-r0"}
    assert all(row["name"] for row in listed["slices"])
    for scan, record in records.items():
        drawn = {n: mask for (one, _, n), mask in lab.drawn.items() if one == scan}
        place = cut(record.geometry, "coronal")
        wanted = np.zeros(record.geometry.shape, np.uint8)
        for n in drawn:
            place.put(wanted, n, np.ascontiguousarray(place.take(truth[scan], n)))
        assert (out / f"{scan}.nii.gz").exists() == bool(drawn)
        if drawn:
            assert np.array_equal(np.asarray(nib.load(out / f"{scan}.nii.gz").dataobj), wanted)
        predicted = nib.load(out / "model" / f"{scan}.nii.gz")
        same_space(predicted, nib.load(record.source.files[0]))
        rows = [f for f in listed["files"] if f.get("scan") == scan and f["path"].startswith("model/png/")]
        assert len(rows) == 5
        volume = np.asarray(predicted.dataobj)
        for row in rows:
            pixels = cv2.imread(str(out / row["path"]), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(pixels, place.take(volume, row["slice"]))
    assert any(np.asarray(nib.load(out / "model" / f"{scan}.nii.gz").dataobj).any() for scan in records)
