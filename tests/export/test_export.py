"""Export from an in-memory Label Studio: what is written, listed and refused; without source files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from memory_studio import MemoryStudio
from numpy.typing import NDArray
from pycocotools.coco import COCO
from typer.testing import CliRunner
from world import CONFIG, CONTROL, LARGER, PROJECT, KeptLearner, Ready, World, png

from backend import cli
from backend.demo.annotator import Control, to_result
from backend.errors import BadSetting, NotKnown, NotSegmentable, StudioUnavailable
from backend.export import Export, Summary
from backend.export.manifest import Sections
from backend.fingerprints import fingerprint
from backend.loop.batch import BatchProcessor

pytestmark = pytest.mark.usefixtures("miniature")

SHAPE = (6, 9)
SCAN, OTHER_SCAN = "S-ABCDEFGHIJ22", "S-ABCDEFGHIJ33"


class Lab:
    """A project with a scan of four slices, two plain pictures, and an annotator."""

    def __init__(self, config: str = LARGER) -> None:
        self.studio = MemoryStudio(config)
        self.studio.title = "liver"
        blank = png(np.zeros(SHAPE, np.uint8))
        self.tasks = self.studio.add_scans([blank] * 6)
        self.slices, self.plain = self.tasks[:4], self.tasks[4:]
        for n, task in enumerate(self.slices):
            self.describe(task, scan=SCAN, axis="axial", slice=n, group="P-ABCDEFGHIJ22")

    def describe(self, task: int, **data: Any) -> None:
        self.studio.set_data(task, {"image": self.studio.reference(task), **data})

    def draw(self, task: int, *numbers: int, control: Control = CONTROL) -> NDArray[np.uint8]:
        """Annotate: class n is a rectangle of n + 1 rows and 3 columns in the upper left, the others right of it."""
        mask = np.zeros(SHAPE, np.uint8)
        for place, number in enumerate(numbers):
            mask[: number + 1, 3 * place : 3 * place + 3] = number
        names = dict(enumerate(("Lung", "Heart"), start=1))
        self.studio.annotate(task, to_result({names[n]: mask == n for n in numbers}, control))
        return mask

    def export(self, out: Path, *, force: bool = False, **asked: Any) -> Summary:
        return Export(self.studio, PROJECT, **asked).run(out, force=force)  # type: ignore[arg-type]


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def read_png(path: Path) -> NDArray[np.uint8]:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


@pytest.fixture
def lab() -> Lab:
    return Lab()


# -- pictures ----------------------------------------------------------------------------------


def test_every_labelled_picture_becomes_a_png_of_class_numbers(lab: Lab, tmp_path: Path) -> None:
    masks = {f"{SCAN}.axial.0001": lab.draw(lab.slices[1], 2, 1), f"task-{lab.plain[0]}": lab.draw(lab.plain[0], 1)}
    done = lab.export(tmp_path / "out")
    assert tree(tmp_path / "out") == ["coco.json", "manifest.json", *(f"png/{name}.png" for name in masks)]
    for name, mask in masks.items():
        data = (tmp_path / "out" / "png" / f"{name}.png").read_bytes()
        assert np.array_equal(read_png(tmp_path / "out" / "png" / f"{name}.png"), mask)
        assert [data[at : at + 4] for at in range(len(data)) if data[at : at + 4] in (b"tEXt", b"iTXt", b"PLTE")] == []
    assert (done.slices, done.unlabelled, done.scans, done.problem_count) == (2, 4, 1, 0)


def test_pycocotools_reads_the_same_masks_from_the_coco_file(lab: Lab, tmp_path: Path) -> None:
    masks = {task: lab.draw(task, *numbers) for task, numbers in zip(lab.tasks, [(1,), (2, 1), (), (2,)], strict=False)}
    lab.export(tmp_path / "out", formats=("coco",))
    assert tree(tmp_path / "out") == ["coco.json", "manifest.json"]
    coco = COCO(tmp_path / "out" / "coco.json")
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == {1: "Lung", 2: "Heart"}
    assert sorted(coco.getImgIds()) == sorted(masks)
    for task, mask in masks.items():
        (image,) = coco.loadImgs(task)
        assert (image["height"], image["width"], image["scan"], image["axis"]) == (*SHAPE, SCAN, "axial")
        assert image["file_name"] == f"{SCAN}.axial.{image['slice']:04d}.png"
        assert image["group"] == "P-ABCDEFGHIJ22"
        again = np.zeros(SHAPE, np.uint8)
        for region in coco.loadAnns(coco.getAnnIds(task)):
            drawn = coco.annToMask(region)
            again[drawn > 0] = region["category_id"]
            rows, columns = np.nonzero(drawn)
            left, top, width, height = region["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            assert region["area"] == drawn.sum()
        assert np.array_equal(again, mask)


def test_where_regions_overlap_the_later_one_wins_in_every_format(lab: Lab, tmp_path: Path) -> None:
    lower, upper = np.zeros((2, *SHAPE), bool)
    lower[:4], upper[2:] = True, True
    lab.studio.annotate(lab.slices[0], to_result({"Heart": lower, "Lung": upper}, CONTROL))
    lab.export(tmp_path / "out")
    wanted = np.where(upper, 1, np.where(lower, 2, 0))
    assert np.array_equal(read_png(tmp_path / "out" / "png" / f"{SCAN}.axial.0000.png"), wanted)
    coco = COCO(tmp_path / "out" / "coco.json")
    areas = {a["category_id"]: a["area"] for a in coco.loadAnns(coco.getAnnIds(lab.slices[0]))}
    assert areas == {1: int(upper.sum()), 2: int((lower & ~upper).sum())}


def test_an_empty_annotation_is_background_and_no_annotation_is_not(lab: Lab, tmp_path: Path) -> None:
    lab.draw(lab.slices[2])
    lab.export(tmp_path / "out")
    assert not read_png(tmp_path / "out" / "png" / f"{SCAN}.axial.0002.png").any()
    listed = manifest(tmp_path / "out")
    assert [(row["task"], row["pixels"]) for row in listed["slices"]] == [(lab.slices[2], {})]
    assert listed["unlabelled"] == [
        {
            "scan": SCAN,
            "axis": "axial",
            "slices": [0, 1, 3],
            "tasks": [lab.slices[0], lab.slices[1], lab.slices[3]],
        },
        {"tasks": lab.plain},
    ]


def test_slices_along_two_axes_are_kept_apart(lab: Lab, tmp_path: Path) -> None:
    for n, task in enumerate(lab.plain):
        lab.describe(task, scan=SCAN, axis="coronal", slice=n)
    axial, coronal = lab.draw(lab.slices[0], 1), lab.draw(lab.plain[0], 2)
    lab.export(tmp_path / "both")
    assert np.array_equal(read_png(tmp_path / "both" / "png" / f"{SCAN}.axial.0000.png"), axial)
    assert np.array_equal(read_png(tmp_path / "both" / "png" / f"{SCAN}.coronal.0000.png"), coronal)
    rows = [(row["axis"], row["tasks"], row["labelled"]) for row in manifest(tmp_path / "both")["scans"]]
    assert rows == [("axial", 4, 1), ("coronal", 2, 1)]
    lab.export(tmp_path / "one", axis="coronal")
    assert [f["path"] for f in manifest(tmp_path / "one")["files"] if f["kind"] == "png"] == [
        f"png/{SCAN}.coronal.0000.png"
    ]


def test_only_the_requested_scans_are_exported(lab: Lab, tmp_path: Path) -> None:
    lab.describe(lab.slices[3], scan=OTHER_SCAN, axis="axial", slice=0)
    for task in lab.tasks:
        lab.draw(task, 1)
    done = lab.export(tmp_path / "out", scans=(OTHER_SCAN,))
    assert [row["task"] for row in manifest(tmp_path / "out")["slices"]] == [lab.slices[3]]
    assert (done.slices, done.unlabelled) == (1, 0)
    with pytest.raises(BadSetting, match=f"no task of the project shows S-NOBODY. Its scans: {SCAN}, {OTHER_SCAN}"):
        lab.export(tmp_path / "none", scans=("S-NOBODY",))
    assert not (tmp_path / "none").exists()


def test_task_data_that_import_does_not_write_give_a_plain_picture(lab: Lab, tmp_path: Path) -> None:
    odd: Sequence[dict[str, Any]] = (
        {"scan": "../../etc", "axis": "axial", "slice": 0},
        {"scan": SCAN, "axis": "../axial", "slice": 0},
        {"scan": SCAN, "axis": "axial", "slice": -1},
        {"scan": SCAN, "axis": "axial", "slice": True},
        {"scan": ["Albus Dumbledore"], "axis": {}, "slice": 1e9},
        {"scan": f"{SCAN}\n", "axis": "axial", "slice": 0, "group": "Albus Dumbledore"},
    )
    for task, data in zip(lab.tasks, odd, strict=True):
        lab.describe(task, **data)
        lab.draw(task, 1)
    lab.export(tmp_path / "out")
    pictures = [f"png/task-{task}.png" for task in lab.tasks]
    assert tree(tmp_path / "out") == sorted(["coco.json", "manifest.json", *pictures])
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or b"Dumbledore" not in path.read_bytes()


# -- the manifest ------------------------------------------------------------------------------


def test_the_manifest_records_who_drew_what_when_and_the_other_annotations(lab: Lab, tmp_path: Path) -> None:
    task = lab.slices[0]
    lab.draw(task, 1)
    mask = np.zeros(SHAPE, bool)
    mask[0, :2] = True
    truth = lab.studio.annotate(task, to_result({"Heart": mask}, CONTROL), ground_truth=True)
    skip = lab.studio.skip(task)
    lab.draw(task, 2)
    lab.export(tmp_path / "out", names=True)
    listed = manifest(tmp_path / "out")
    (row,) = listed["slices"]
    assert (row["task"], row["scan"], row["axis"], row["slice"]) == (task, SCAN, "axial", 0)
    assert (row["annotation"], row["ground_truth"], row["pixels"]) == (truth, True, {"2": 2})
    assert (row["user"], row["name"], row["lead_time"]) == (1, "Rita Reader", 5.0)
    assert row["submitted_at"] == row["changed_at"] > "2026-01-01T00:00"
    assert [o["annotation"] for o in row["others"]] == [truth - 1, skip, skip + 1]
    assert [(o["skipped"], o["ground_truth"]) for o in row["others"]] == [(False, False), (True, False), (False, False)]
    assert listed["labels"] == [{"number": 1, "name": "Lung"}, {"number": 2, "name": "Heart"}]
    assert listed["project"] == {"id": PROJECT, "title": "liver", "label_studio": "http://memory.invalid/"}
    assert listed["scans"][0]["group"] == "P-ABCDEFGHIJ22"
    lab.export(tmp_path / "unnamed")
    assert "Rita" not in (tmp_path / "unnamed" / "manifest.json").read_text()


def test_a_label_that_an_annotator_could_not_draw_is_listed_as_unknown(tmp_path: Path) -> None:
    world = Ready(tmp_path / "data").in_round_1()
    older = list(world.annotations)
    world.studio.change_config(LARGER)
    world.run()
    new = world.order()[0]
    world.submit(new, "Lung")
    world.run()

    def unknown(**asked: Any) -> dict[int, list[str]]:
        Export(world.studio, PROJECT, **asked).run(tmp_path / "out")  # type: ignore[arg-type]
        return {row["task"]: row.get("unknown", []) for row in manifest(tmp_path / "out")["slices"]}

    assert unknown(store=world.store) == {task: ["Heart"] for task in older} | {new: []}
    world.studio.edit(world.annotations[older[0]], world.truth(older[0], "Lung"))
    assert unknown(store=world.store)[older[0]] == []  # submitted again, though not read yet
    assert set(map(tuple, unknown().values())) == {()}  # without records, nothing tells


def test_of_two_tasks_for_one_slice_the_better_annotation_counts(lab: Lab, tmp_path: Path) -> None:
    first, second = lab.slices[0], lab.slices[1]
    lab.describe(second, scan=SCAN, axis="axial", slice=0)
    lab.draw(first, 1)
    later = lab.draw(second, 2)
    lab.export(tmp_path / "out")
    (row,) = manifest(tmp_path / "out")["slices"]
    assert (row["task"], [o["task"] for o in row["others"]]) == (second, [first])
    assert np.array_equal(read_png(tmp_path / "out" / row["png"]), later)


def test_every_file_is_listed_with_its_digest(lab: Lab, tmp_path: Path) -> None:
    for task in lab.tasks:
        lab.draw(task, 1, 2)
    lab.export(tmp_path / "out")
    listed = manifest(tmp_path / "out")["files"]
    assert sorted(f["path"] for f in listed) == [name for name in tree(tmp_path / "out") if name != "manifest.json"]
    for file in listed:
        data = (tmp_path / "out" / file["path"]).read_bytes()
        assert (file["sha256"], file["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        assert file["of"] == "annotations"


def test_an_annotation_that_cannot_be_read_is_listed_and_the_rest_goes_on(lab: Lab, tmp_path: Path) -> None:
    broken = to_result({"Lung": np.eye(*SHAPE, dtype=bool)}, CONTROL)
    broken[0]["value"]["rle"] = broken[0]["value"]["rle"][:9]
    lab.studio.annotate(lab.slices[0], broken)
    lab.studio.annotate(lab.slices[1], to_result({"Lung": np.ones((3, 3), bool)}, CONTROL))
    good = lab.draw(lab.slices[2], 2)
    done = lab.export(tmp_path / "out")
    assert (done.slices, done.problem_count) == (1, 2)
    first, second = manifest(tmp_path / "out")["problems"]
    assert (first["task"], first["slice"]) == (lab.slices[0], 0)
    assert "has a brush mask that does not fit its 9 x 6 pixels" in first["what"]
    assert (second["task"], "was drawn on 3 x 3 pixels, but the image has 9 x 6" in second["what"]) == (
        lab.slices[1],
        True,
    )
    assert [p.what for p in done.problems] == [first["what"], second["what"]]
    assert np.array_equal(read_png(tmp_path / "out" / "png" / f"{SCAN}.axial.0002.png"), good)


def test_an_annotation_with_a_label_that_the_config_lost_is_a_problem_not_background(lab: Lab, tmp_path: Path) -> None:
    lab.draw(lab.slices[0], 1, 2)
    lab.studio.change_config(CONFIG)
    done = lab.export(tmp_path / "out")
    assert manifest(tmp_path / "out")["slices"] == []
    (problem,) = done.problems
    assert "has the label 'Heart', which the label config does not have" in problem.what


def test_the_sections_of_a_manifest_are_valid_json_with_any_number_of_rows(tmp_path: Path) -> None:
    for rows in (0, 1, 3):
        made = Sections(tmp_path / "made.json", ("a", "b"))
        for n in range(rows):
            made.add("b", {"n": n, "text": 'ü "x"\n'})
        made.write({"head": {"x": [1]}})
        wanted = {"head": {"x": [1]}, "a": [], "b": [{"n": n, "text": 'ü "x"\n'} for n in range(rows)]}
        assert json.loads((tmp_path / "made.json").read_text()) == wanted
        assert os.listdir(tmp_path) == ["made.json"]


# -- the request -------------------------------------------------------------------------------


def test_without_identities_pictures_are_written_and_the_rest_is_reported(lab: Lab, tmp_path: Path) -> None:
    lab.draw(lab.slices[0], 1)
    done = lab.export(tmp_path / "out")
    assert done.problem_count == 0
    assert [n for n in done.notes if "NIfTI and DICOM SEG were not written" in n and "--identities" in n]
    assert manifest(tmp_path / "out")["notes"] == list(done.notes)
    with pytest.raises(BadSetting, match="NIfTI, DICOM SEG and RTSTRUCT need the identities file"):
        lab.export(tmp_path / "volumes", formats=("nifti", "seg"))
    assert lab.export(tmp_path / "pictures", formats=("png", "coco")).notes == ()


def test_a_format_that_does_not_exist_is_refused(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="unknown format 'dicom'; expected one of nifti, seg, png, coco"):
        lab.export(tmp_path / "out", formats=("png", "dicom"))


def test_more_labels_than_a_mask_holds_are_refused(tmp_path: Path) -> None:
    labels = "".join(f'<Label value="{n}"/>' for n in range(255))
    lab = Lab(CONFIG.replace('<Label value="Lung"/>', labels))
    with pytest.raises(NotSegmentable, match="255 mask labels; a model can learn at most 253"):
        lab.export(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_the_size_of_an_unavailable_picture_is_that_of_its_regions(lab: Lab, tmp_path: Path) -> None:
    lab.draw(lab.slices[0], 1)
    lab.draw(lab.slices[1])
    lab.studio.images.clear()
    done = lab.export(tmp_path / "out")
    (row,) = manifest(tmp_path / "out")["slices"]
    assert row["task"] == lab.slices[0]
    (problem,) = done.problems
    assert "is not available" in problem.what  # an empty annotation has no size


# -- the folder --------------------------------------------------------------------------------


def test_an_earlier_export_of_the_project_is_replaced(lab: Lab, tmp_path: Path) -> None:
    lab.draw(lab.slices[0], 1)
    lab.export(tmp_path / "out")
    number = lab.studio.annotate(lab.slices[1], [])
    lab.studio.delete(number - 1)
    done = lab.export(tmp_path / "out")
    assert done.moved is None
    assert tree(tmp_path / "out") == ["coco.json", "manifest.json", f"png/{SCAN}.axial.0001.png"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_is_no_export_of_the_project_is_refused_and_never_deleted(lab: Lab, tmp_path: Path) -> None:
    lab.draw(lab.slices[0], 1)
    out = tmp_path / "out"
    out.mkdir()
    lab.export(out)  # empty: nothing is lost
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BadSetting, match=r"out exists and contains notes\.txt, which is not part"):
        lab.export(out)
    (out / "notes.txt").unlink()
    lab.studio.url = "http://elsewhere.invalid/"
    with pytest.raises(BadSetting, match=r"contains an export of project 1 of http://memory\.invalid/"):
        lab.export(out)
    (out / "manifest.json").write_text("{}")
    with pytest.raises(BadSetting, match="is not an earlier export"):
        lab.export(out)
    (out / "notes.txt").write_text("mine")
    done = lab.export(out, force=True)
    assert done.moved is not None
    assert (done.moved / "notes.txt").read_text() == "mine"
    assert manifest(out)["project"]["label_studio"] == "http://elsewhere.invalid/"
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(BadSetting, match="exists and is not a folder"):
        lab.export(file)


def test_a_failure_keeps_the_earlier_export(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.draw(lab.slices[0], 1)
    lab.export(tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in tree(tmp_path / "out")}
    lab.draw(lab.slices[1], 1)
    asked = MemoryStudio.annotations

    def dies(self: MemoryStudio, project: int, tasks: Sequence[int]) -> Any:
        yield next(asked(self, project, tasks))
        raise StudioUnavailable("Label Studio does not answer.")

    monkeypatch.setattr(MemoryStudio, "annotations", dies)
    with pytest.raises(StudioUnavailable):
        lab.export(tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in tree(tmp_path / "out")} == before
    assert os.listdir(tmp_path) == ["out"]


# -- a model's masks ---------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    return Ready(tmp_path / "data").in_round_1()


def with_model(world: World, out: Path, model: str = "active", **asked: Any) -> Summary:
    processor = BatchProcessor(world.studio, world.store, KeptLearner(world.settings))  # type: ignore[arg-type]
    asked = {"formats": ("png", "coco"), "store": world.store, "model": model, "processor": processor} | asked
    return Export(world.studio, PROJECT, **asked).run(out)  # type: ignore[arg-type]


def test_predicted_masks_are_kept_apart_and_name_their_model(world: World, tmp_path: Path) -> None:
    (model,) = world.store.models(PROJECT)
    digests = [r["digest"] for r in world.store.scans(PROJECT)]
    kept = sum(world.store.has("masks", fingerprint(model["fingerprint"], digest)) for digest in digests)
    assert 0 < kept < len(digests)
    done = with_model(world, tmp_path / "out")
    listed = manifest(tmp_path / "out")
    assert listed["model"]["version"] == model["version"] == "scanqueue-r1"
    assert listed["model"]["fingerprint"] == model["fingerprint"]
    assert listed["model"]["masks"] == {"stored": kept, "shown": 0, "drawn": len(world.masks) - kept}
    assert done.files == {"png": 6, "coco": 1, "model/png": 12, "model/coco": 1}
    assert {f["of"] for f in listed["files"] if f["path"].startswith("model/")} == {"model"}
    assert {f["of"] for f in listed["files"] if not f["path"].startswith("model/")} == {"annotations"}
    rows = {r["task"]: r["digest"] for r in world.store.scans(PROJECT)}
    coco = COCO(tmp_path / "out" / "model" / "coco.json")
    for task, digest in rows.items():
        mask = world.store.arrays("masks", fingerprint(model["fingerprint"], digest))["mask"]
        assert np.array_equal(read_png(tmp_path / "out" / "model" / "png" / f"task-{task}.png"), mask)
        drawn = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(task))]
        assert np.array_equal(sum(drawn, np.zeros_like(mask)), mask)


def test_masks_that_are_not_stored_are_taken_from_label_studio(world: World, tmp_path: Path) -> None:
    with_model(world, tmp_path / "before")
    (model,) = world.store.models(PROJECT)
    rows = {r["task"]: r["digest"] for r in world.store.scans(PROJECT)}
    for digest in rows.values():
        world.store.path("masks", fingerprint(model["fingerprint"], digest)).unlink(missing_ok=True)
    world.store.remove_folder("models", model["fingerprint"])
    done = with_model(world, tmp_path / "after", "scanqueue-r1")
    shown = world.published("scanqueue-r1")
    listed = manifest(tmp_path / "after")
    assert listed["model"]["masks"] == {"stored": 0, "shown": len(shown), "drawn": 0}
    for task in shown:
        name = f"model/png/task-{task}.png"
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    assert done.problem_count == len(rows) - len(shown)
    assert {p["of"] for p in listed["problems"]} == {"model"}
    assert "the checkpoint of scanqueue-r1 no longer exists" in done.problems[0].what


def test_a_model_that_does_not_exist_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(NotKnown, match=r"has no model 'scanqueue-r7'\. Its models: scanqueue-r1"):
        with_model(world, tmp_path / "out", "scanqueue-r7")
    assert not (tmp_path / "out").exists()
    world.store.set_project(PROJECT, active="")
    with pytest.raises(NotKnown, match="no active model"):
        with_model(world, tmp_path / "out")


# -- the command -------------------------------------------------------------------------------


@pytest.fixture
def command(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in [n for n in os.environ if n.startswith("SCANQUEUE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("backend.label_studio.studio.Studio", lambda *_, **__: lab.studio)

    def run(*args: str) -> Any:
        return CliRunner().invoke(cli.app, ["export", "--project", "1", "--data-dir", str(tmp_path / "data"), *args])

    return run


def test_the_command_lists_what_it_wrote(lab: Lab, command: Any, tmp_path: Path) -> None:
    lab.draw(lab.slices[0], 1)
    done = command("--out", str(tmp_path / "out"), "--format", "png, coco")
    assert done.exit_code == 0, done.output
    assert done.output.startswith("Project 1: 1 labelled slice of 1 scan was exported to")  # and no empty line before
    assert "(1 PNG, 1 COCO); 5 have no label" in done.output
    lab.studio.annotate(lab.slices[1], to_result({"Lung": np.ones((3, 3), bool)}, CONTROL))
    done = command("--out", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert f"problem: {SCAN}.axial.0001, annotation" in done.output
    assert "note: NIfTI and DICOM SEG were not written" in done.output


def test_the_model_option_without_value_means_the_active_one(command: Any, tmp_path: Path) -> None:
    for args in (["--model"], ["--model", "--names"], ["--model", "active"]):
        done = command("--out", str(tmp_path / "out"), *args)
        assert isinstance(done.exception, BadSetting)  # and not "option needs a value"
        assert "contains no scanqueue records" in str(done.exception)


def test_invalid_arguments_are_refused(command: Any, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert "unknown axis 'oblique'" in str(command(*out, "--axis", "oblique").exception)
    assert "folder /nowhere does not exist" in str(command(*out, "--source", "/nowhere").exception)
    assert "does not exist" in str(command(*out, "--identities", str(tmp_path / "none.sqlite")).exception)
