"""Masks that come in through a real Label Studio, and everything that they must not do there."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_masks_in import Labs, contents, labs, masks_in  # noqa: F401
from volume_lab import CONFIG, VolumeLab, manifest

from backend.label_studio.masks import could_draw
from backend.label_studio.studio import Studio

pytestmark = pytest.mark.label_studio
SHAPE = (20, 24, 6)
POLYGONS = CONFIG.replace("BrushLabels", "PolygonLabels")


def volume(path: Path, values: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path


def case(folder: Path, name: str = "case1") -> Path:
    values = np.random.default_rng(len(name)).integers(0, 999, SHAPE).astype(np.int16)
    return volume(folder / "scans" / f"{name}.nii.gz", values)


def square(number: int, k: Sequence[int] = (2, 3)) -> NDArray[np.uint8]:
    found = np.zeros(SHAPE, np.uint8)
    found[4:9, 5:12, list(k)] = number
    return found


def annotations(lab: VolumeLab) -> list[Any]:
    studio = Studio(lab.studio.url, lab.studio.personal_access_token())
    return [a for a in studio.annotations(lab.project, [t["id"] for t in lab.tasks()]) if not isinstance(a, int)]


def test_a_label_that_no_voxel_has_is_unknown(labs: Labs, tmp_path: Path) -> None:  # noqa: F811
    lab = labs.new()
    told = masks_in(lab, case(tmp_path), "--masks", volume(tmp_path / "masks" / "case1.nii.gz", square(1)))
    config = Studio(lab.studio.url, lab.studio.personal_access_token()).project(lab.project).masks_config(lab.project)
    assert told["masks"]["made"] == 2
    assert {could_draw(one, config) for one in annotations(lab)} == {("Anterior",)}


def test_volumes_of_two_axes_are_not_mixed(labs: Labs, tmp_path: Path) -> None:  # noqa: F811
    scan = case(tmp_path)
    lab = labs.new()
    lab.import_scans(scan, "--axis", "axial")
    lab.import_scans(scan, "--axis", "coronal")
    chosen = [t for t in lab.tasks() if (t["data"]["axis"], t["data"]["slice"]) in (("axial", 2), ("coronal", 7))]

    def draw(data: Any, picture: Any) -> NDArray[np.uint8]:
        mask = np.zeros(picture().shape, np.uint8)
        mask[2:5, 3:9] = 1 if data["axis"] == "axial" else 2
        return mask

    lab.annotate(draw, chosen)
    out = lab.export("out")
    again = labs.new()
    again.import_scans(scan, "--axis", "axial")
    again.import_scans(scan, "--axis", "coronal")
    told = masks_in(again, "--masks", out / "*.nii.gz")
    assert told["masks"]["made"] == 2
    assert contents(again.export("again"), "nifti") == contents(out, "nifti")
    crossed = labs.new()
    crossed.import_scans(scan, "--axis", "sagittal")
    told = masks_in(crossed, "--masks", out / "*.nii.gz")
    assert (told["masks"]["made"], len(told["remarks"])) == (0, 2)


def test_masks_of_a_model_stay_out_of_the_annotations_from_wherever_they_come(labs: Labs, tmp_path: Path) -> None:  # noqa: F811
    lab = labs.new()
    scan = case(tmp_path)
    masks_in(lab, scan, "--masks", volume(tmp_path / "masks" / "case1.nii.gz", square(1)))
    out = lab.export("model/out", "--format", "nifti")
    (name,) = [file["path"] for file in manifest(out)["files"]]
    (out / "model").mkdir()
    volume(out / "model" / name, square(2, range(6)))
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        for file in sorted(out.rglob("*.*")):
            archive.write(file, file.relative_to(out))
    for given in (out, tmp_path / "out.zip", f"{out}/**/*.nii.gz"):
        fresh = labs.new()
        fresh.import_scans(scan)
        told = masks_in(fresh, "--masks", given)
        assert (told["masks"]["made"], len(told["remarks"])) == (2, 1), given
    fresh = labs.new()
    fresh.import_scans(scan)
    assert masks_in(fresh, "--masks", out / "model", "--label-map", "1=Anterior")["masks"]["made"] == 6


def test_a_scan_waits_for_all_of_its_masks(labs: Labs, tmp_path: Path) -> None:  # noqa: F811
    lab = labs.new()
    masks = tmp_path / "case1"
    volume(masks / "Anterior.nii.gz", square(1))
    whole = volume(masks / "Posterior.nii.gz", square(1, (4,))).read_bytes()
    (masks / "Posterior.nii.gz").write_bytes(whole[:20])
    told = masks_in(lab, case(tmp_path), case(tmp_path, "case22"), "--masks", masks, code=1)
    assert told["masks"]["made"] == 0
    assert len(told["problems"]) == 2
    (masks / "Posterior.nii.gz").write_bytes(whole)
    assert masks_in(lab, "--masks", masks)["masks"]["made"] == 3
    assert masks_in(lab, "--masks", masks)["masks"]["there"] == 3


def test_polygons_are_exact(labs: Labs, tmp_path: Path) -> None:  # noqa: F811
    noise = cv2.GaussianBlur(np.random.default_rng(1).normal(size=SHAPE[:2]).astype(np.float32), (0, 0), 1.2)
    mask = np.repeat(np.where(noise > 0.1, 1, np.where(noise < -0.1, 2, 0))[..., None], SHAPE[2], 2).astype(np.uint8)
    lab = labs.new(POLYGONS)
    told = masks_in(lab, case(tmp_path), "--masks", volume(tmp_path / "masks" / "case1.nii.gz", mask))
    assert told["problems"] == []
    (file,) = lab.export("out", "--format", "nifti").glob("*.nii.gz")
    assert np.array_equal(np.asarray(nib.load(file).dataobj), mask)


def test_a_folder_with_scans_and_masks_or_without_any(labs: Labs, tmp_path: Path) -> None:  # noqa: F811
    lab = labs.new()
    pictures = tmp_path / "all"
    pictures.mkdir()
    values = np.random.default_rng(0).integers(0, 40, (30, 40)).astype(np.uint8)
    Image.fromarray(values).save(pictures / "p 1.png")
    lab.import_scans(pictures)
    mask = np.zeros((30, 40), np.uint8)
    mask[3:9, 4:8] = 1
    Image.fromarray(mask).save(pictures / "p 1_mask.png")
    told = masks_in(lab, "--masks", pictures)
    assert (told["problems"], told["masks"]["files"], told["masks"]["made"]) == ([], 1, 1)
    (tmp_path / "pair").mkdir()
    nib.save(nib.Nifti1Pair(square(1), np.diag([1.0, 1.0, 3.0, 1.0])), tmp_path / "pair" / "case1.img")
    assert masks_in(lab, case(tmp_path), "--masks", tmp_path / "pair")["masks"]["made"] == 2
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    (nothing / "notes.txt").write_text("masks follow")
    assert "1 folder: contains no masks" in lab.run("import", "--masks", nothing)[1]
    np.save(nothing / "p 1.npy", mask)
    said = lab.run("import", "--masks", nothing)[1]
    assert "1 .npy file is not read" in said
    assert "1 file: " not in said
    (nothing / "a.json").write_text(json.dumps({"labels": ["x"]}))
    shutil.copy(pictures / "p 1_mask.png", nothing / "q_mask.png")
    assert "belongs to no scan" in str(masks_in(lab, "--masks", nothing / "q_mask.png", code=1)["problems"])


def test_what_is_drawn_during_the_import_stays(labs: Labs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    lab = labs.new()
    lab.import_scans(case(tmp_path))
    (task,) = [t for t in lab.tasks() if t["data"]["slice"] == 2]
    listed = Studio.each_task

    def then_somebody_draws(self: Studio, *args: Any) -> Any:
        yield from list(listed(self, *args))
        lab.annotate(lambda data, picture: np.full(picture().shape, 2, np.uint8), [task])

    monkeypatch.setattr(Studio, "each_task", then_somebody_draws)
    told = masks_in(lab, "--masks", volume(tmp_path / "masks" / "case1.nii.gz", square(1)))
    assert (told["masks"]["made"], told["masks"]["there"]) == (1, 1)
    assert lab.studio.get("/api/tasks", project=lab.project, page_size=1)["total_annotations"] == 2


def test_all_structures_without_a_label_are_named_at_once(labs: Labs, tmp_path: Path) -> None:  # noqa: F811
    lab = labs.new()
    mask = square(1, (1,)) + square(7, (2,)) + square(9, (3,))
    told = masks_in(lab, case(tmp_path), "--masks", volume(tmp_path / "masks" / "case1.nii.gz", mask), code=1)
    assert [problem[:16] for problem in told["problems"]] == ["has the number 7", "has the number 9"]
    assert told["masks"]["made"] == 0


def test_a_dry_run_of_new_scans_leaves_their_masks_alone(labs: Labs, tmp_path: Path) -> None:  # noqa: F811
    lab = labs.new()
    command = (case(tmp_path), "--masks", volume(tmp_path / "masks" / "case1.nii.gz", square(1)))
    told = masks_in(lab, *command, "--dry-run")
    assert (told["made"], told["problems"], len(told["remarks"])) == (6, [], 1)
    _, said = lab.run("import", *command, "--dry-run")
    assert "The masks were not checked, because they need the scans" in said
    assert "1 file:" not in said
    masks_in(lab, *command)
    assert masks_in(lab, *command, "--dry-run")["masks"]["there"] == 2


def test_numbers_that_became_labels_are_remarked_only_where_something_was_drawn(labs: Labs, tmp_path: Path) -> None:  # noqa: F811
    lab = labs.new()
    lab.import_scans(case(tmp_path))
    masks = volume(tmp_path / "masks" / "case1.nii.gz", square(2)).parent
    by_order = "umbers without names {} the labels in the order of the config: 2 = Posterior. If that is wrong, {}."
    dry = masks_in(lab, "--masks", masks, "--dry-run")["remarks"]
    assert dry == ["n" + by_order.format("would become", "use --label-map")]
    code, said = lab.run("import", "--masks", masks)
    assert code == 0
    assert "N" + by_order.format("became", "delete these annotations and use --label-map") in said
    assert "1 file" not in said
    assert masks_in(lab, "--masks", masks)["remarks"] == []  # all are kept as they are
    predicted = masks_in(lab, "--masks", masks, "--as", "predictions")["remarks"]
    assert predicted == ["n" + by_order.format("became", "delete these predictions and use --label-map")]
