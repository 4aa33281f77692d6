"""Masks that a lab has come in, and go out again unchanged, through a real Label Studio."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from outlines import half_way_outlines
from pycocotools.coco import COCO
from volume_lab import CONFIG, LABELS, VolumeLab, manifest

from backend.demo.label_studio import LabelStudio
from backend.label_studio.masks import could_draw
from backend.label_studio.studio import Studio

pytestmark = pytest.mark.label_studio
HIPPOCAMPI = ("hippocampus_001.nii.gz", "hippocampus_003.nii.gz")


class Labs:
    """Projects that share one data folder, and so the identities of their scans."""

    def __init__(self, studio: LabelStudio, folder: Path) -> None:
        self._studio = studio
        self._folder = folder
        self._made: list[VolumeLab] = []

    def new(self, config: str = CONFIG) -> VolumeLab:
        lab = VolumeLab(self._studio, self._folder, config)
        self._made.append(lab)
        return lab

    def close(self) -> None:
        for lab in self._made:
            lab.close()


@pytest.fixture
def labs(label_studio: LabelStudio, tmp_path: Path) -> Iterator[Labs]:
    made = Labs(label_studio, tmp_path)
    yield made
    made.close()


def masks_in(lab: VolumeLab, *args: str | Path, code: int = 0) -> dict[str, Any]:
    """Import masks; returns what the command reports."""
    found, said = lab.run("import", "--jobs", "1", "--json", *args)
    assert found == code, said
    return dict(json.loads(said[said.index("{") :]))


def contents(folder: Path, form: str) -> dict[str, Any]:
    """What an export contains in one format, without dates and random identifiers."""
    if form == "coco":
        coco = COCO(folder / "coco.json")
        names = {n: row["file_name"] for n, row in coco.imgs.items()}
        return {
            f"{names[row['image_id']]} {row['category_id']}": row["segmentation"]["counts"]
            for row in coco.anns.values()
        } | dict.fromkeys(names.values(), "")
    files = [file["path"] for file in manifest(folder)["files"] if file["kind"] == form]
    if form in ("seg", "rtstruct"):
        return {path: _drawn(folder / path) for path in files}
    return {path: (folder / path).read_bytes() for path in files}


def _drawn(path: Path) -> Any:
    header = pydicom.dcmread(path)
    if header.Modality == "SEG":
        return header.pixel_array.tobytes(), header.NumberOfFrames
    return [
        [(str(c.ContourImageSequence[0].ReferencedSOPInstanceUID), list(c.ContourData)) for c in roi.ContourSequence]
        for roi in header.ROIContourSequence
    ]


def check_round_trip(labs: Labs, scans: Sequence[Path], first: Path, forms: Sequence[str]) -> None:
    """Import the export `first` into a new project, one format at a time: the new export is the same."""
    for form in forms:
        kinds = [form] if form in ("png", "coco") else ["nifti", form]
        only = first.parent / f"only-{form}"
        for file in manifest(first)["files"]:
            if file["kind"] == form:
                (only / file["path"]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(first / file["path"], only / file["path"])
        shutil.copy(first / "manifest.json", only)
        lab = labs.new()
        lab.import_scans(*scans)
        told = masks_in(lab, "--masks", only)
        assert told["problems"] == []
        assert told["masks"]["made"] == len(manifest(first)["slices"])
        again = lab.export(f"again-{form}", "--format", ",".join(dict.fromkeys(kinds)))
        assert contents(again, form) == contents(first, form), form
        assert len(contents(again, form)) > 0


def check_hippocampi(labs: Labs, shared: Path, names: Sequence[str], forms: Sequence[str]) -> None:
    data = shared / "data" / "msd_hippocampus"
    scans = [data / "images" / name for name in names]
    lab = labs.new()
    told = masks_in(lab, *scans, *(part for name in names for part in ("--masks", data / "masks" / name)))
    truth = {name: np.asarray(nib.load(data / "masks" / name).dataobj) for name in names}
    drawn = sum(int(mask.any((0, 1)).sum()) for mask in truth.values())
    assert (told["masks"]["files"], told["masks"]["scans"]) == (len(names), len(names))
    assert told["masks"]["made"] + told["masks"]["empty"] == len(lab.tasks())
    assert told["problems"] == []
    assert "1 = Anterior, 2 = Posterior" in str(told["remarks"])
    out = lab.export("out")
    for scan, file in lab.sources().items():
        assert np.array_equal(np.asarray(nib.load(out / f"{scan}.nii.gz").dataobj), truth[file.name]), file.name
    assert told["masks"]["made"] >= drawn > 0
    again = masks_in(lab, "--masks", data / "masks" / names[0])
    assert (again["masks"]["made"], again["masks"]["there"]) == (0, lab_slices(out, names[0], lab))
    check_round_trip(labs, scans, out, forms)


def lab_slices(out: Path, name: str, lab: VolumeLab) -> int:
    (scan,) = [scan for scan, file in lab.sources().items() if file.name == name]
    return sum(row["scan"] == scan for row in manifest(out)["slices"])


def test_nifti_masks_come_in_and_go_out_voxel_for_voxel(labs: Labs, shared: Path) -> None:
    check_hippocampi(labs, shared, HIPPOCAMPI[:1], ("nifti", "png", "coco"))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_twenty_volumes_come_in_and_go_out_voxel_for_voxel(labs: Labs, shared: Path) -> None:
    names = sorted(file.name for file in (shared / "data" / "msd_hippocampus" / "images").glob("*.nii.gz"))[:20]
    check_hippocampi(labs, shared, names, ("nifti", "png", "coco"))


def check_dicom(labs: Labs, scans: Sequence[Path], tmp_path: Path) -> None:
    """Annotate series from NIfTI masks, and send SEG and RTSTRUCT through a round each."""
    lab = labs.new()
    lab.import_scans(*scans)
    truth: dict[str, NDArray[np.uint8]] = {}
    with lab.identities() as known:
        for record in known.scans():
            mask = made_mask(record.geometry.shape, seed=len(truth))
            nib.save(nib.Nifti1Image(mask, record.geometry.affine), tmp_path / f"{record.scan}.nii.gz")
            truth[record.scan] = mask
    told = masks_in(lab, "--masks", str(tmp_path / "S-*.nii.gz"))
    assert (told["problems"], told["masks"]["files"]) == ([], len(truth))
    out = lab.export("out", "--format", "nifti,seg,rtstruct,png,coco")
    for scan, mask in truth.items():
        assert np.array_equal(np.asarray(nib.load(out / f"{scan}.nii.gz").dataobj), mask)
        check_structure_set(out / f"{scan}.rtstruct.dcm", mask)
    check_round_trip(labs, scans, out, ("seg", "rtstruct"))


def made_mask(shape: tuple[int, int, int], seed: int) -> NDArray[np.uint8]:
    """Smooth shapes with holes of two labels; some slices are empty."""
    rng = np.random.default_rng(seed)
    found = np.zeros(shape, np.uint8)
    for k in range(2, shape[2] - 1):
        noise = cv2.GaussianBlur(rng.normal(size=shape[:2]).astype(np.float32), (0, 0), 12)
        found[..., k] = np.where(noise > 0.02, 1, np.where(noise < -0.03, 2, 0))
    return found


def check_structure_set(path: Path, mask: NDArray[np.uint8]) -> None:
    """The outlines enclose the area of the mask to half a pixel around them."""
    header = pydicom.dcmread(path)
    assert [roi.ROIName for roi in header.StructureSetROISequence] == list(LABELS)
    for number, roi in enumerate(header.ROIContourSequence, start=1):
        outlines = sum(len(half_way_outlines(number == mask[..., k].T)) for k in range(mask.shape[2]))
        assert len(roi.ContourSequence) == outlines


def test_dicom_seg_and_rtstruct_come_in_and_go_out_unchanged(labs: Labs, shared: Path, tmp_path: Path) -> None:
    check_dicom(labs, [shared / "data" / "brain_mri_volumes" / "PGBM-003_T1post"], tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_series_come_in_and_go_out_unchanged(labs: Labs, shared: Path, tmp_path: Path) -> None:
    check_dicom(labs, sorted((shared / "data" / "brain_mri_volumes").glob("PGBM-*")), tmp_path)


def test_masks_that_do_not_fit_or_have_no_scan_are_named_and_the_others_come_in(
    labs: Labs, shared: Path, tmp_path: Path
) -> None:
    data = shared / "data" / "msd_hippocampus"
    good, other = HIPPOCAMPI
    mask = nib.load(data / "masks" / other)
    moved = mask.affine.copy()
    moved[0, 3] += 0.4
    masks = tmp_path / "masks"
    masks.mkdir()
    shutil.copy(data / "masks" / good, masks / good)
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), moved), masks / other)
    nib.save(mask, masks / "hippocampus_999.nii.gz")
    (masks / "broken.nii.gz").write_bytes((data / "masks" / good).read_bytes()[:100])
    lab = labs.new()
    told = masks_in(lab, data / "images" / good, data / "images" / other, "--masks", masks, code=1)
    assert len(told["problems"]) == 3
    for what in (
        "does not fit: its voxels are up to 0.40 voxels off",
        "belongs to no scan",
        "copy it again",
    ):
        assert any(re.search(what, problem) for problem in told["problems"]), what
    annotated = {row["scan"] for row in manifest(lab.export("out"))["slices"]}
    assert {lab.sources()[scan].name for scan in annotated} == {good}


ONE_LABEL_MORE = CONFIG.replace('<Label value="Posterior"/>', '<Label value="Posterior"/><Label value="Cyst"/>')


def test_what_a_mask_file_does_not_speak_of_stays_unknown(labs: Labs, shared: Path) -> None:
    """Masks of two of three labels: neither slices without them nor the third label are taken for empty."""
    data = shared / "data" / "msd_hippocampus"
    lab = labs.new(ONE_LABEL_MORE)
    maps = ("--label-map", "1=Anterior", "--label-map", "2=Posterior", "--axis", "coronal", "--every", "4")
    told = masks_in(lab, data / "images" / HIPPOCAMPI[0], "--masks", data / "masks" / HIPPOCAMPI[0], *maps)
    assert min(told["masks"]["made"], told["masks"]["empty"], told["masks"]["absent"]) > 0
    studio = Studio(lab.studio.url, lab.studio.personal_access_token())
    config = studio.project(lab.project).masks_config(lab.project)
    found = [a for a in studio.annotations(lab.project, [t["id"] for t in lab.tasks()]) if not isinstance(a, int)]
    assert len(found) == told["masks"]["made"]
    assert {could_draw(one, config) for one in found} == {("Anterior", "Posterior")}
    corrected = found[0]
    lab.studio.patch(f"/api/annotations/{corrected.id}/", {"result": list(corrected.result), "lead_time": 3.0})
    (again,) = studio.annotations(lab.project, [corrected.task])
    assert not isinstance(again, int)
    assert could_draw(again, config) == ("Anterior", "Posterior", "Cyst")  # somebody has looked

    with_all = labs.new(ONE_LABEL_MORE)
    told = masks_in(
        with_all, data / "images" / HIPPOCAMPI[0], "--masks", data / "masks" / HIPPOCAMPI[0], *maps, "--complete"
    )
    assert told["masks"]["made"] == len(with_all.tasks())
    assert told["masks"]["empty"] == 0


def test_masks_as_predictions_are_stored_once_and_annotations_stay(labs: Labs, shared: Path) -> None:
    data = shared / "data" / "msd_hippocampus"
    lab = labs.new()
    command = ("--masks", data / "masks" / HIPPOCAMPI[0], "--as", "predictions")
    told = masks_in(lab, data / "images" / HIPPOCAMPI[0], "--every", "5", *command)
    made = told["masks"]["made"]
    assert made > 0
    assert masks_in(lab, *command)["masks"] == {**told["masks"], "made": 0, "there": made}
    predictions = lab.studio.get("/api/predictions/", project=lab.project)
    assert {p["model_version"] for p in predictions} == {"imported-masks"}
    assert len({p["task"] for p in predictions}) == len(predictions) == made
    assert lab.studio.get("/api/tasks", project=lab.project, page_size=1)["total_annotations"] == 0
