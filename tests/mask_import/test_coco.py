"""COCO files: what is drawn in them, and what is refused before it is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from backend.errors import UnreadableFile
from backend.mask_import.coco import open_coco

ROWS, COLUMNS = 10, 12
SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def coco(folder: Path, segmentation: Any, category: int = 0, **picture: Any) -> Path:
    """A file with one picture and one region."""
    row = {"id": 1, "file_name": "a.png", "height": ROWS, "width": COLUMNS} | picture
    region = {"image_id": 1, "category_id": category, "segmentation": segmentation}
    found = {"images": [row], "categories": [{"id": 0, "name": "Liver"}], "annotations": [region]}
    (folder / "masks.json").write_text(json.dumps(found))
    return folder / "masks.json"


def drawn(file: Path) -> NDArray[np.bool_]:
    (picture,) = open_coco(file) or ()
    ((_, mask),) = picture.read()
    return mask


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_read_as_pycocotools_reads_them(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 90), rng.integers(1, 90))) < rng.random()
    mask = np.repeat(mask, 20, axis=seed % 2)
    packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    flat = mask.T.ravel()
    plain = np.diff(np.flatnonzero(np.diff(flat, prepend=not flat[0], append=not flat[-1]))).tolist()
    for counts in (packed, [0, *plain] if flat[0] else plain):
        size = {"height": mask.shape[0], "width": mask.shape[1]}
        assert np.array_equal(drawn(coco(tmp_path, {"size": mask.shape, "counts": counts}, **size)), mask)


def test_the_parts_of_a_region_are_drawn_and_folders_of_windows_are_folders(tmp_path: Path) -> None:
    file = coco(tmp_path, [*SQUARE, [7, 7, 9, 7, 9, 9, 7, 9]], file_name="scans\\a.png")
    assert drawn(file).sum() == 20
    (picture,) = open_coco(file) or ()
    assert picture.path == tmp_path / "scans" / "a.png"


@pytest.mark.parametrize(
    ("segmentation", "what"),
    [
        *(([[1, 1, far, 1, 5, 5]], "far outside") for far in (float("nan"), float("inf"), 1e9)),  # gigabytes each
        ([[1, 1, 5, 5]], "fewer than 3 points"),
        ([], "boxes without masks"),
        ({"size": [ROWS, COLUMNS], "counts": [50, 10]}, "do not fill"),  # the others would be left undefined
        ({"size": [ROWS, COLUMNS], "counts": [50, 500]}, "do not fill"),
        ({"size": [ROWS, COLUMNS], "counts": "PPPP"}, "damaged|do not fill"),
        ({"size": [ROWS, COLUMNS], "counts": "o" * 4_000_000}, "damaged"),  # one number, growing without end
        ({"size": [COLUMNS, ROWS], "counts": [120]}, "another size"),
    ],
)
def test_regions_that_cannot_be_drawn_are_refused(tmp_path: Path, segmentation: Any, what: str) -> None:
    with pytest.raises(UnreadableFile, match=what):
        drawn(coco(tmp_path, segmentation))


def test_masks_of_unknown_pictures_and_categories_are_not_lost_silently(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="category 4"):
        drawn(coco(tmp_path, SQUARE, category=4))
    with pytest.raises(UnreadableFile, match="pictures that it does not list"):
        open_coco(coco(tmp_path, SQUARE, id="1"))
    with pytest.raises(UnreadableFile, match="the maximum is"):
        drawn(coco(tmp_path, SQUARE, height=100_000, width=100_000))


def test_other_json_is_no_coco_file_however_deep(tmp_path: Path) -> None:
    for text in ("[" * 200_000, "{}", '{"images": []}', "\ufeff{"):
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        assert open_coco(tmp_path / "a.json") is None
