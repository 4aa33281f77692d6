"""Pictures of scans: their content, pixel by pixel, and the scans on which two models are compared."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from world import ROUND, KeptLearner, World

from backend.errors import (
    BadSetting,
    NotKnown,
    ScanqueueError,
    StudioUnavailable,
    UnreadableMask,
    UnreadableScan,
    WeightsMissing,
)
from backend.facts import Lesson
from backend.fingerprints import fingerprint
from backend.label_config import LabelConfig, Renames, Tag
from backend.learning.learner import Learner
from backend.learning.segmenters import Segmenter, SegmenterSpec
from backend.loop.batch import BatchProcessor
from backend.records.store import Store
from backend.settings import Settings
from backend.web import pictures
from backend.web.colours import FALLBACKS as COLOURS
from backend.web.drawing import HALO, LIGHT_HALO, ONLY_FIRST, ONLY_SECOND, OTHER_LABEL
from backend.web.legend import label_names, legend
from backend.web.pictures import ANNOTATOR, PARTS, Compared, Pictures
from sampling import disagreement

PROJECT = 1
SIZE = 64
CONFIG = LabelConfig("image", (Tag("tag", "brush", "image", ("Lung", "Heart")),))
SPEC = SegmenterSpec("unet", "mobilenet_v2", 1, SIZE, ("Lung", "Heart"), (16, 16, 16, 8, 8))
NOT_EMPTY = False, False, False
R1, R2 = "scanqueue-r1", "scanqueue-r2"

Image = NDArray[np.uint8]


class Files:
    """The part of Label Studio that pictures need: it serves files."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.away = False

    def image(self, reference: str) -> bytes:
        self.asked.append(reference)
        if self.away:
            raise StudioUnavailable("Label Studio does not answer.")
        if reference not in self.files:
            raise UnreadableScan("Label Studio has no such file.")
        return self.files[reference]


class Lab:
    """One project: real records and artefacts, a real small network, files instead of a Label Studio."""

    def __init__(self, folder: Path) -> None:
        self.files = Files()
        self.store = Store(folder)
        self.store.add_project(PROJECT)
        self.store.set_project(PROJECT, config=CONFIG.to_json())
        self.learner = Learner(Settings(data_dir=folder, device="cpu", encoder="resnet18", image_size=SIZE))
        self.processor = BatchProcessor(self.files, self.store, self.learner)  # type: ignore[arg-type]
        self.pictures = Pictures(self.store, self.processor)

    def add(self, task: int, image: Image, mask: Image | None = None) -> str:
        """Add a scan that was read, with its submitted mask if given; returns its digest."""
        reference = f"/data/upload/1/{task}.png"
        self.files.files[reference] = png(image)
        digest = hashlib.sha256(self.files.files[reference]).hexdigest()[:32]
        row = {"task": task, "image": reference, "updated_at": "", "annotated": int(mask is not None), "skipped": 0}
        self.store.put_tasks(PROJECT, [row], "")
        height, width = image.shape[:2]
        self.store.set_scans(
            PROJECT, [{"task": task, "digest": digest, "height": height, "width": width, "problem": ""}]
        )
        if mask is not None:
            self.submit(task, mask)
        return digest

    def submit(
        self,
        task: int,
        mask: Image,
        *,
        config: str = CONFIG.reading_key(Renames()),
        problem: str = "",
        known: Sequence[str] = CONFIG.labels,
    ) -> str:
        name = fingerprint("mask", task)
        self.store.put_arrays("labels", name, mask=mask)
        row: dict[str, Any] = {"task": task, "annotation": task, "key": f"{task}@1", "mask": name, "read_at": ""}
        self.store.put_label(PROJECT, row | {"config": config, "problem": problem, "known": json.dumps(known)})
        return name

    def model(
        self,
        version: str,
        *,
        labels: Sequence[str] = ("Lung", "Heart"),
        checkpoint: bool = False,
        learnt: Sequence[Lesson | str] = (),
    ) -> str:
        """Add a model with this version; returns its fingerprint."""
        name = fingerprint("model", version)
        if checkpoint:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(version[-1]))
                self.store.put_folder("models", name, Segmenter.create(SPEC).save)
        row = {"version": version, "fingerprint": name, "labels": list(labels), "trained_on": learnt, "accepted": 1}
        self.store.put_model(
            PROJECT,
            row | {"remark": "", "validation": {}, "details": {}},
            active="",
            instead_of="",
            training_requests=0,
        )
        return name

    def draw(self, version: str, task: int, mask: Image) -> None:
        """Store the mask as if that model had predicted it."""
        self.store.put_arrays("masks", self.mask_name(version, task), mask=mask)

    def mask_name(self, version: str, task: int) -> str:
        scan = self.store.scan(PROJECT, task)
        assert scan is not None
        return fingerprint(fingerprint("model", version), scan["digest"])


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "data")


def png(image: Image) -> bytes:
    done, data = cv2.imencode(".png", image if image.ndim == 2 else image[..., ::-1])
    assert done
    return data.tobytes()


def read(data: bytes) -> Image:
    """Pixels of a PNG: gray (h, w), or RGB."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return found if found.ndim == 2 else np.ascontiguousarray(found[..., ::-1])


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def where(picture: Image, colour: str) -> NDArray[np.bool_]:
    return (picture == np.array(rgb(colour), np.uint8)).all(axis=2)


def border(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of an area with at least one of the four neighbours outside."""
    around = np.pad(area, 1)
    return area & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])


def gray(value: int, height: int = SIZE, width: int = SIZE) -> Image:
    return np.full((height, width), value, np.uint8)


def square(top: int, left: int, side: int, label: int = 1, *, on: Image | None = None) -> Image:
    mask = np.zeros((SIZE, SIZE), np.uint8) if on is None else on.copy()
    mask[top : top + side, left : left + side] = label
    return mask


# -- one scan ----------------------------------------------------------------------------------


def test_a_scan_is_shown_with_its_own_aspect_ratio_and_without_padding(lab: Lab) -> None:
    image = np.repeat(np.linspace(40, 200, 120).astype(np.uint8)[None], 60, axis=0)  # lighter to the right
    lab.add(7, image)
    for side, shape in ((32, (16, 32)), (160, (80, 160)), (1024, (512, 1024))):
        picture = read(lab.pictures.scan(PROJECT, 7, side=side))
        assert picture.shape == shape
        assert picture.min() >= 40  # no black padding of the working square
        assert (picture[:, 0].mean(), picture[:, -1].mean()) == pytest.approx((40, 200), abs=4)


def test_a_scan_is_rotated_as_in_a_browser(lab: Lab) -> None:
    from io import BytesIO

    from PIL import Image as Pillow

    pixels = np.zeros((40, 80), np.uint8)
    pixels[:, :40] = 200
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    file = BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG", exif=exif)
    lab.add(7, gray(0))
    lab.files.files["turned"] = file.getvalue()
    row = {"task": 8, "image": "turned", "updated_at": "", "annotated": 0, "skipped": 0}
    lab.store.put_tasks(PROJECT, [row], "")
    picture = read(lab.pictures.scan(PROJECT, 8, side=64))
    assert picture.shape == (64, 32)
    assert (picture[:30].min(), picture[34:].max()) == (200, 0)


def test_colours_are_unchanged(lab: Lab) -> None:
    lab.add(7, np.full((SIZE, SIZE, 3), (200, 30, 90), np.uint8))
    assert (read(lab.pictures.scan(PROJECT, 7, side=64)) == (200, 30, 90)).all()


def test_a_scan_in_the_cache_is_not_fetched_again(lab: Lab) -> None:
    lab.add(7, gray(90))
    first = lab.pictures.scan(PROJECT, 7)
    lab.files.away = True
    assert lab.pictures.scan(PROJECT, 7) == first
    assert lab.files.asked == ["/data/upload/1/7.png"]


def test_an_unreadable_scan_is_not_requested_again_for_its_picture(lab: Lab) -> None:
    lab.add(7, gray(0))
    lab.store.set_scans(PROJECT, [{"task": 7, "digest": "", "problem": "its server does not answer."}])
    with pytest.raises(UnreadableScan, match="its server does not answer"):
        lab.pictures.scan(PROJECT, 7)


def test_a_scan_that_was_not_read_yet_is_shown_and_not_stored(lab: Lab) -> None:
    lab.files.files["new"] = png(gray(70))
    row = {"task": 8, "image": "new", "updated_at": "", "annotated": 0, "skipped": 0}
    lab.store.put_tasks(PROJECT, [row], "")
    assert (read(lab.pictures.scan(PROJECT, 8)) == 70).all()
    assert not (lab.store.folder / "pixels").exists()


# -- outlines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ground", [0, 255])
def test_the_outline_follows_the_edge_of_the_mask_with_a_halo(lab: Lab, ground: int) -> None:
    mask = square(10, 20, 20)
    lab.add(7, gray(ground), mask)
    picture = read(lab.pictures.scan(PROJECT, 7, side=SIZE, model=ANNOTATOR))
    assert np.array_equal(where(picture, COLOURS[0]), border(mask == 1))
    near = cv2.dilate(border(mask == 1).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    assert (picture[~near] == ground).all()
    cross = cv2.dilate(border(mask == 1).astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    assert where(picture, HALO)[cross.astype(bool) & ~border(mask == 1)].all()


def test_every_label_has_its_colour_and_no_halo_hides_another_outline(lab: Lab) -> None:
    mask = square(10, 30, 20, 2, on=square(10, 10, 20, 1))  # side by side
    lab.add(7, gray(128), mask)
    picture = read(lab.pictures.scan(PROJECT, 7, side=SIZE, model=ANNOTATOR))
    for label in (1, 2):
        assert np.array_equal(where(picture, COLOURS[label - 1]), border(mask == label))


def test_a_hole_is_outlined_too(lab: Lab) -> None:
    mask = square(20, 20, 20, 0, on=square(10, 10, 40))
    lab.add(7, gray(128), mask)
    picture = read(lab.pictures.scan(PROJECT, 7, side=SIZE, model=ANNOTATOR))
    drawn = where(picture, COLOURS[0])
    assert drawn[19, 20:40].all()
    assert drawn[20:40, 19].all()
    assert not drawn[22:38, 22:38].any()


def test_a_label_too_small_for_the_thumbnail_is_still_marked(lab: Lab) -> None:
    mask = np.zeros((640, 640), np.uint8)
    mask[300:303, 100:103] = 2
    mask[400:600, 400:600] = 1
    lab.add(7, gray(128, 640, 640), mask)
    picture = read(lab.pictures.scan(PROJECT, 7, side=64, model=ANNOTATOR))
    assert np.argwhere(where(picture, COLOURS[1])).tolist() == [[30, 10]]
    wanted = np.zeros((64, 64), np.bool_)
    wanted[40:60, 40:60] = True
    assert np.array_equal(where(picture, COLOURS[0]), border(wanted))


def test_a_label_has_the_same_colour_whatever_its_number_in_a_model(lab: Lab) -> None:
    lab.add(7, gray(128))
    lab.model(R1, labels=("Heart", "Gone", "Lung"))
    lab.draw(R1, 7, square(40, 40, 10, 2, on=square(10, 40, 10, 1, on=square(10, 10, 10, 3))))
    picture = read(lab.pictures.scan(PROJECT, 7, side=SIZE, model=R1))
    for colour, (top, left) in zip(COLOURS, [(10, 10), (10, 40), (40, 40)], strict=False):
        assert np.array_equal(where(picture, colour), border(square(top, left, 10) == 1))


def test_outlines_have_the_colours_of_the_label_config_and_the_legend_names_them(lab: Lab) -> None:
    colours = {"Lung": "rgb(255, 0, 128)", "Heart": "#2f7ed8"}
    lab.store.set_project(PROJECT, config=replace(CONFIG, colors=colours).to_json())
    lab.add(7, gray(128), square(10, 30, 20, 2, on=square(10, 10, 20, 1)))
    lab.model(R1, labels=("Heart", "Gone"))
    lab.draw(R1, 7, square(40, 40, 10, 2, on=square(10, 10, 10, 1)))
    picture = read(lab.pictures.scan(PROJECT, 7, side=SIZE, model=ANNOTATOR))
    assert where(picture, "#FF0080").any()
    assert where(picture, "#2F7ED8").any()
    shown = legend(lab.store, PROJECT, label_names(lab.store, PROJECT, R1))
    assert list(shown) == ["Lung", "Heart", "Gone"]
    assert (shown["Lung"], shown["Heart"]) == ("#FF0080", "#2F7ED8")
    picture = read(lab.pictures.scan(PROJECT, 7, side=SIZE, model=R1))
    assert np.array_equal(where(picture, shown["Heart"]), border(square(10, 10, 10) == 1))
    assert np.array_equal(where(picture, shown["Gone"]), border(square(40, 40, 10) == 1))
    # beside another model, with another removed label, it keeps its colour
    lab.model(R2, labels=("Lost", "Gone"))
    both = legend(lab.store, PROJECT, label_names(lab.store, PROJECT, R1, R2))
    assert len(set(both.values())) == 4
    assert legend(lab.store, PROJECT, label_names(lab.store, PROJECT, R2))["Lost"] == both["Lost"]


def test_an_outline_in_a_dark_colour_has_a_light_halo(lab: Lab) -> None:
    lab.store.set_project(PROJECT, config=replace(CONFIG, colors={"Lung": "black"}).to_json())
    lab.add(7, gray(0), square(10, 10, 20))
    picture = read(lab.pictures.scan(PROJECT, 7, side=SIZE, model=ANNOTATOR))
    assert where(picture, LIGHT_HALO).any()
    assert not where(picture, HALO).any()


def test_removed_labels_of_two_models_are_not_taken_for_one(lab: Lab) -> None:
    lab.add(7, gray(128))
    for version, label in ((R1, "Gone"), (R2, "Lost")):
        lab.model(version, labels=("Lung", label))
        lab.draw(version, 7, square(10, 10, 20, 2))
    picture = read(lab.pictures.difference(PROJECT, 7, R1, R2, "difference", side=SIZE))
    assert np.array_equal(where(picture, OTHER_LABEL), square(10, 10, 20) == 1)


def test_a_missing_mask_is_predicted_by_its_model_and_stored(lab: Lab) -> None:
    lab.add(7, np.random.default_rng(0).integers(0, 256, (50, SIZE), dtype=np.uint8))
    name = lab.model(R1, checkpoint=True)
    picture = lab.pictures.scan(PROJECT, 7, side=SIZE, model=R1)
    (scan,) = lab.processor.scans(PROJECT, [7])
    (mask,) = lab.learner.masks(lab.store.path("models", name), [lab.processor.pixels(scan, SIZE)])
    stored = lab.store.arrays("masks", lab.mask_name(R1, 7))["mask"]
    assert np.array_equal(stored, mask)
    for label in np.unique(mask[mask > 0]):
        assert where(read(picture), COLOURS[label - 1]).any()


def test_a_damaged_mask_is_predicted_again(lab: Lab) -> None:
    lab.add(7, np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8))
    lab.model(R1, checkpoint=True)
    first = lab.pictures.scan(PROJECT, 7, model=R1)
    lab.store.path("masks", lab.mask_name(R1, 7)).write_bytes(b"PK\x03\x04 torn")
    assert lab.pictures.scan(PROJECT, 7, model=R1) == first


# -- what is missing or broken -------------------------------------------------------------------


def test_invalid_requests_are_explained(lab: Lab) -> None:
    lab.add(7, gray(0))
    lab.model(R1)
    with pytest.raises(NotKnown, match=r"^project 1 has no task 8 here; it was deleted or has not been read yet\.$"):
        lab.pictures.scan(PROJECT, 8)
    with pytest.raises(NotKnown, match=r"^project 2 has no task 7 here"):
        lab.pictures.scan(2, 7)
    with pytest.raises(NotKnown, match=r"^project 1 has no model 'scanqueue-r9'; available: scanqueue-r1\.$"):
        lab.pictures.scan(PROJECT, 7, model="scanqueue-r9")
    with pytest.raises(NotKnown, match="scanqueue-r9"):
        lab.pictures.compare(PROJECT, R1, "scanqueue-r9")
    for side in (0, 31, 1025):
        with pytest.raises(BadSetting, match=rf"^side: got {side}, expected 32 to 1024 pixels\.$"):
            lab.pictures.scan(PROJECT, 7, side=side)
    with pytest.raises(BadSetting, match=r"no part 'all'; choose one of image, first, second, annotator, difference\."):
        lab.pictures.difference(PROJECT, 7, R1, R1, "all")


def test_an_unavailable_mask_is_explained(lab: Lab) -> None:
    lab.add(7, gray(0))
    lab.model(R1)
    with pytest.raises(WeightsMissing, match=r"task 7: the mask of scanqueue-r1 is not stored, and .* was removed"):
        lab.pictures.scan(PROJECT, 7, model=R1)
    with pytest.raises(UnreadableMask, match=r"task 7: no submitted mask is stored here"):
        lab.pictures.scan(PROJECT, 7, model=ANNOTATOR)
    lab.submit(7, np.zeros((10, 20), np.uint8))
    with pytest.raises(UnreadableMask, match=r"task 7: its mask has 20 x 10 pixels, but the scan has 64 x 64"):
        lab.pictures.scan(PROJECT, 7, model=ANNOTATOR)


def test_a_broken_scan_or_a_lost_artefact_raises_an_explained_error(lab: Lab) -> None:
    lab.add(1, gray(0), square(10, 10, 20))
    lab.model(R1, checkpoint=True)
    lab.model(R2, checkpoint=True)

    def fails(task: int, model: str = "") -> None:
        with pytest.raises(ScanqueueError):
            lab.pictures.scan(PROJECT, task, model=model)

    lab.files.files["/data/upload/1/1.png"] = b"no image at all"
    fails(1)
    del lab.files.files["/data/upload/1/1.png"]
    fails(1)
    lab.files.away = True
    fails(1)
    lab.files.away = False
    lab.add(2, gray(5), square(10, 10, 20))
    for file in lab.store.path("models", fingerprint("model", R1)).iterdir():
        file.write_bytes(b"torn")
    fails(2, R1)
    lab.store.put_arrays("masks", lab.mask_name(R2, 2), something=np.zeros(3))  # valid, but with other content
    fails(2, R2)
    lab.store.put_arrays("masks", lab.mask_name(R2, 2), mask=np.zeros((SIZE, SIZE), np.float32))
    fails(2, R2)
    shutil.rmtree(lab.store.folder / "labels")
    fails(2, ANNOTATOR)
    lab.store.put_arrays("pixels", fingerprint(lab.add(3, gray(5)), SIZE), pixels=np.zeros(3), box=np.zeros(2))
    fails(3)
    for part in PARTS:
        with pytest.raises(ScanqueueError):
            lab.pictures.difference(PROJECT, 3, R1, R2, part)
    assert lab.pictures.compare(PROJECT, R1, R2) == []


# -- differences ---------------------------------------------------------------------------------


def test_a_difference_is_filled_where_the_masks_differ_and_nowhere_else(lab: Lab) -> None:
    one = square(45, 45, 8, 1, on=square(10, 10, 30))
    other = square(45, 45, 8, 2, on=square(10, 18, 30))
    lab.add(7, gray(90))
    for version, mask in ((R1, one), (R2, other)):
        lab.model(version)
        lab.draw(version, 7, mask)
    picture = read(lab.pictures.difference(PROJECT, 7, R1, R2, "difference", side=SIZE))
    assert np.array_equal(where(picture, ONLY_FIRST), (one == 1) & (other == 0))
    assert np.array_equal(where(picture, ONLY_SECOND), (one == 0) & (other == 1))
    assert np.array_equal(where(picture, OTHER_LABEL), (one == 1) & (other == 2))
    assert np.array_equal(where(picture, "#FFFFFF"), border((one == 1) & (other == 1)))
    assert (picture[:8] == 90).all()
    swapped = read(lab.pictures.difference(PROJECT, 7, R2, R1, "difference", side=SIZE))
    assert np.array_equal(where(swapped, ONLY_SECOND), where(picture, ONLY_FIRST))


def test_two_identical_masks_have_no_difference(lab: Lab) -> None:
    lab.add(7, np.full((SIZE, SIZE, 3), (200, 30, 90), np.uint8))
    for version in (R1, R2):
        lab.model(version)
        lab.draw(version, 7, square(10, 10, 30))
    picture = read(lab.pictures.difference(PROJECT, 7, R1, R2, "difference"))
    assert picture.shape == (256, 256, 3)
    assert not any(where(picture, colour).any() for colour in (ONLY_FIRST, ONLY_SECOND, OTHER_LABEL))
    assert (picture.max(axis=2) == picture.min(axis=2)).all()  # the scan is shown in gray


def test_a_difference_of_a_few_pixels_is_visible_in_a_thumbnail(lab: Lab) -> None:
    one = np.zeros((640, 640), np.uint8)
    one[100:300, 100:300] = 1
    other = one.copy()
    other[400:403, 500:503] = 1
    lab.add(7, gray(90, 640, 640))
    for version, mask in ((R1, one), (R2, other)):
        lab.model(version)
        lab.draw(version, 7, mask)
    picture = read(lab.pictures.difference(PROJECT, 7, R1, R2, "difference", side=64))
    assert np.argwhere(where(picture, ONLY_SECOND)).tolist() == [[40, 50]]
    assert not where(picture, ONLY_FIRST).any()


def test_the_other_parts_are_the_scan_with_each_mask(lab: Lab) -> None:
    masks = {R1: square(10, 10, 20), R2: square(12, 12, 20), ANNOTATOR: square(14, 14, 20)}
    lab.add(7, gray(90), masks[ANNOTATOR])
    for version in (R1, R2):
        lab.model(version)
        lab.draw(version, 7, masks[version])
    for part, model in (("first", R1), ("second", R2), ("annotator", ANNOTATOR)):
        picture = read(lab.pictures.difference(PROJECT, 7, R1, R2, part, side=SIZE))
        assert np.array_equal(where(picture, COLOURS[0]), border(masks[model] == 1))
    assert (read(lab.pictures.difference(PROJECT, 7, R1, R2, "image", side=SIZE)) == 90).all()


# -- comparing -----------------------------------------------------------------------------------


def with_labels(lab: Lab, count: int = 40) -> list[int]:
    """Add `count` labelled scans, each with the square at (10, 10); returns every fifth, which no model has learnt."""
    digests = [lab.add(task, gray(task), square(10, 10, 20)) for task in range(1, count + 1)]
    learnt = [Lesson(task, digest, "mask") for task, digest in enumerate(digests, start=1) if task % 5]
    lab.model(R1, learnt=learnt)
    lab.model(R2, learnt=learnt)
    return list(range(5, count + 1, 5))


def test_models_are_compared_on_the_held_out_scans_worst_first(lab: Lab) -> None:
    held = with_labels(lab)
    assert len(held) >= 4
    for place, task in enumerate(held):
        lab.draw(R1, task, square(10, 10 + place, 20))  # worse and worse
        lab.draw(R2, task, square(10, 10, 20))
    found = lab.pictures.compare(PROJECT, R1, R2)
    assert sorted(lab.pictures.held_out(PROJECT, R1, R2)) == held
    assert [c.task for c in found] == held[::-1]
    for place, task in enumerate(held):
        overlap = (20 - place) / 20  # of two equal squares, shifted relative to each other
        one = found[-1 - place]
        expected = Compared(
            *(task, pytest.approx(overlap), 1.0, pytest.approx(overlap), float(place), 0.0, "px", *NOT_EMPTY),
            *(one.first_labels, one.second_labels),
        )
        assert one == expected
        assert (one.first_labels["Lung"].dice, one.second_labels["Lung"].dice) == (one.first, 1.0)
    assert lab.pictures.compare(PROJECT, R1, R2, limit=2) == found[:2]
    other = lab.pictures.compare(PROJECT, R2, R1)
    assert [(c.first, c.second) for c in other] == [(c.second, c.first) for c in found]


def test_distances_are_in_millimetres_where_the_size_of_a_pixel_is_known(lab: Lab) -> None:
    held = with_labels(lab)
    for task in held:
        lab.draw(R1, task, square(10, 14, 20))  # shifted by four columns
        lab.draw(R2, task, square(12, 10, 20))  # shifted by two rows
    assert {(c.first_hd95, c.second_hd95, c.unit) for c in lab.pictures.compare(PROJECT, R1, R2)} == {(4.0, 2.0, "px")}
    row = lab.store.scan(PROJECT, held[0])
    assert row is not None
    task_row = {name: row[name] for name in ("task", "image", "updated_at", "annotated", "skipped")}
    lab.store.put_tasks(PROJECT, [task_row | {"row_mm": 3.0, "column_mm": 0.5}], "")
    found = {c.task: (c.first_hd95, c.second_hd95, c.unit) for c in lab.pictures.compare(PROJECT, R1, R2)}
    assert found.pop(held[0]) == (2.0, 6.0, "mm")
    assert set(found.values()) == {(4.0, 2.0, "px")}


def test_a_label_that_a_model_does_not_know_counts_as_missed(lab: Lab) -> None:
    held = with_labels(lab)
    lab.model("scanqueue-r3", labels=("Heart",))
    for task in held:
        lab.submit(task, square(40, 40, 10, 2, on=square(10, 10, 20)))
        lab.draw("scanqueue-r3", task, square(40, 40, 10, 1))
        lab.draw(R1, task, square(40, 40, 10, 2, on=square(10, 10, 20)))
    found = lab.pictures.compare(PROJECT, "scanqueue-r3", R1)
    assert [(c.first, c.second, c.agreement) for c in found] == [(0.5, 1.0, 0.5)] * len(held)


def test_a_label_that_the_annotator_could_not_draw_is_in_no_figure_until_the_scan_is_submitted_again(lab: Lab) -> None:
    held = with_labels(lab)
    for task in held:
        lab.submit(task, square(10, 10, 20), known=["Lung"])
        lab.draw(R1, task, square(40, 40, 10, 2, on=square(10, 10, 20)))  # with a heart, which may be there
        lab.draw(R2, task, square(10, 10, 20))
    for one in lab.pictures.compare(PROJECT, R1, R2):
        assert (one.first, one.second) == (1.0, 1.0)
        assert set(one.first_labels) == set(one.second_labels) == {"Lung"}
    lab.submit(held[0], square(10, 10, 20))  # the same mask, which now says that there is no heart
    again = {one.task: one.first_labels for one in lab.pictures.compare(PROJECT, R1, R2)}
    assert [task for task, labels in again.items() if "Heart" in labels] == [held[0]]
    assert again[held[0]]["Heart"].drawn
    assert not again[held[0]]["Heart"].present


def test_scans_without_an_available_mask_are_left_out(lab: Lab) -> None:
    held = with_labels(lab)
    for task in held:
        lab.draw(R1, task, square(10, 10, 20))
    for task in held[1:]:
        lab.draw(R2, task, square(10, 10, 20))
    assert sorted(c.task for c in lab.pictures.compare(PROJECT, R1, R2)) == held[1:]
    lab.store.path("masks", lab.mask_name(R1, held[1])).unlink()  # even if its result was cached
    assert sorted(c.task for c in lab.pictures.compare(PROJECT, R1, R2)) == held[2:]


def test_masks_that_no_longer_match_are_left_out(lab: Lab) -> None:
    held = with_labels(lab)
    for task in held:
        for version in (R1, R2):
            lab.draw(version, task, square(10, 10, 20))
    lab.draw(R2, held[0], np.zeros((10, 10), np.uint8))  # for an image of another size
    assert sorted(c.task for c in lab.pictures.compare(PROJECT, R1, R2)) == held[1:]


def test_only_labels_that_were_read_and_stored_are_held_out(lab: Lab) -> None:
    held = with_labels(lab)
    lab.submit(held[0], square(10, 10, 20), problem="cannot be read")
    lab.submit(held[1], square(10, 10, 20), config="of other labels")
    lab.store.path("labels", fingerprint("mask", held[2])).unlink()
    assert sorted(lab.pictures.held_out(PROJECT, R1, R2)) == held[3:]
    few = Lab(lab.store.folder.parent / "few")
    with_labels(few, 4)
    assert few.pictures.held_out(PROJECT, R1, R2) == []
    assert few.pictures.compare(PROJECT, R1, R2) == []


def test_missing_masks_are_predicted_for_a_comparison_and_stored(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.model(R1, checkpoint=True)
    lab.model(R2, checkpoint=True)
    generator = np.random.default_rng(0)
    for task in range(1, 11):
        lab.add(task, generator.integers(0, 256, (SIZE, SIZE), dtype=np.uint8), square(10, 10, 20))
    held = lab.pictures.held_out(PROJECT, R1, R2)
    found = lab.pictures.compare(PROJECT, R1, R2)
    assert sorted(c.task for c in found) == sorted(held)
    for one in found:
        first, second = (lab.store.arrays("masks", lab.mask_name(v, one.task))["mask"] for v in (R1, R2))
        truth = square(10, 10, 20)
        assert one.first == pytest.approx(lab.learner.compare(first, truth, 3).dice)
        assert one.second == pytest.approx(lab.learner.compare(second, truth, 3).dice)
        assert one.agreement == pytest.approx(1 - disagreement(np.stack([first, second]), 3))
    monkeypatch.setattr(lab.learner, "compare", None)  # cached by now
    monkeypatch.setattr(lab.learner, "masks", None)
    assert lab.pictures.compare(PROJECT, R1, R2) == found


def test_a_comparison_respects_its_time_limit_and_the_next_one_continues(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = with_labels(lab)
    assert len(held) > 2
    monkeypatch.setattr(pictures, "CHUNK", 2)
    for task in held:
        for version in (R1, R2):
            lab.draw(version, task, square(10, 10, 20))
    assert len(lab.pictures.compare(PROJECT, R1, R2, seconds=0)) == 2
    began = time.monotonic()
    assert len(lab.pictures.compare(PROJECT, R1, R2)) == len(held)
    assert time.monotonic() - began < pictures.PATIENCE


def test_an_unreachable_label_studio_is_reported_when_nothing_could_be_predicted(lab: Lab) -> None:
    held = with_labels(lab)
    for version in (R1, R2):
        lab.model(version, checkpoint=True)
    lab.files.away = True
    with pytest.raises(StudioUnavailable):
        lab.pictures.compare(PROJECT, R1, R2)
    for version in (R1, R2):
        lab.draw(version, held[0], square(10, 10, 20))
    assert [c.task for c in lab.pictures.compare(PROJECT, R1, R2)] == held[:1]


def test_a_comparison_gives_the_values_measured_in_training(tmp_path: Path) -> None:
    world = World(tmp_path / "data").in_round_1()
    world.label(ROUND)
    world.run()
    models = {m["version"]: m for m in world.store.models(PROJECT)}
    assert list(models) == [R1, R2]
    processor = BatchProcessor(world.studio, world.store, KeptLearner(world.settings))  # type: ignore[arg-type]
    found = Pictures(world.store, processor).compare(PROJECT, R1, R2)
    assert len(found) == models[R2]["validation"]["n"] > 0
    assert np.mean([c.second for c in found]) == pytest.approx(models[R2]["validation"]["dice"], abs=1e-6)
    assert np.mean([c.first for c in found]) == pytest.approx(models[R2]["details"]["champion"]["dice"], abs=1e-6)
    task = found[0].task
    for part in PARTS:
        assert read(Pictures(world.store, processor).difference(PROJECT, task, R1, R2, part)).shape[:2] == (256, 256)


def test_a_project_without_a_label_config_is_compared_by_the_labels_of_its_models(lab: Lab) -> None:
    held = with_labels(lab)
    lab.store.set_project(PROJECT, config="")
    for task in held:
        for version in (R1, R2):
            lab.draw(version, task, square(10, 10, 20))
    assert {(c.first, c.second) for c in lab.pictures.compare(PROJECT, R1, R2)} == {(1.0, 1.0)}
    assert json.loads(CONFIG.to_json())[1][0][3] == list(SPEC.labels)
