"""Which scan a mask belongs to by its name, and which label it draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backend.errors import BadSetting, UnreadableFile
from backend.formats import Segment
from backend.mask_import.labels import LabelMatcher, parse_label_map
from backend.mask_import.names import ScanNames, picture_of

LABELS = ("Liver", "Tumour", "Left lung")

# the layouts of public collections: files of scans, a mask, and the number of the scan that it belongs to
LAYOUTS = {
    "decathlon": (["imagesTr/hippo_001.nii.gz", "imagesTr/hippo_003.nii.gz"], "labelsTr/hippo_003.nii.gz", 1),
    "nnU-Net": (["imagesTr/hippo_001_0000.nii.gz", "imagesTr/hippo_003_0000.nii.gz"], "labelsTr/hippo_001.nii.gz", 0),
    "BUSI": (["benign/benign (1).png", "benign/benign (11).png"], "benign/benign (1)_mask_1.png", 0),
    "a folder per case": (["case1/image.nii.gz", "case2/image.nii.gz"], "case2/mask.nii.gz", 1),
    "another tree": (["scans/case1/ct.nii.gz", "scans/case2/ct.nii.gz"], "masks/case2/ct_seg.nii.gz", 1),
    "equal names": (["a/x/1.png", "b/x/1.png"], "masks/b/x/1.png", 1),
    "TotalSegmentator": (["s0001/ct.nii.gz", "s0002/ct.nii.gz"], "s0002/segmentations/liver.nii.gz", 1),
    "Montgomery": (["CXR_png/MCUCXR_0001_0.png", "CXR_png/MCUCXR_0002_0.png"], "leftMask/MCUCXR_0002_0.png", 1),
    "numbered slices": (["p/slice_0000.png", "p/slice_0001.png"], "p/slice_0001_mask.png", 1),
}


def found(scans: list[str], mask: str) -> list[str]:
    names = ScanNames((str(n), [Path("/data", scan)]) for n, scan in enumerate(scans))
    matcher = LabelMatcher(LABELS, {})
    path = Path("/data", mask)
    return names.find(path) or names.find(path, without=matcher.of_path(path)[1])


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_masks_of_public_collections_are_given_to_their_scans(layout: str) -> None:
    scans, mask, number = LAYOUTS[layout]
    assert found(scans, mask) == [str(number)]


def test_a_series_is_known_by_its_folder(tmp_path: Path) -> None:
    names = ScanNames((name, [tmp_path / name / "ct" / f"{n}.dcm" for n in range(3)]) for name in ("case1", "case2"))
    assert names.find(tmp_path / "masks" / "case2.nii.gz") == ["case2"]


def test_a_name_that_does_not_decide_gives_all_scans_it_may_be_and_another_none() -> None:
    scans = ["BraTS_001/t1.nii.gz", "BraTS_001/flair.nii.gz"]
    assert found(scans, "BraTS_001/seg.nii.gz") == ["0", "1"]
    assert found(scans, "BraTS_002/seg.nii.gz") == []


def test_our_own_names_say_scan_axis_and_slice() -> None:
    assert picture_of(Path("x/S-ABCDEFGHIJ23.axial.0017.png")) == ("S-ABCDEFGHIJ23", "axial", 17)
    assert picture_of(Path("x/S-ABCDEFGHIJ23.coronal.nii.gz")) == ("S-ABCDEFGHIJ23", "coronal", None)
    assert picture_of(Path("x/S-ABCDEFGHIJ23.seg.dcm")) == ("S-ABCDEFGHIJ23", "", None)
    assert picture_of(Path("x/case.0017.png")) is None


def test_a_structure_gets_the_label_of_its_name_of_the_map_or_of_its_number(tmp_path: Path) -> None:
    plain = LabelMatcher(LABELS, {})
    path = tmp_path / "a" / "b" / "c" / "case.nii.gz"
    assert plain.label(Segment(7, "liver"), path) == "Liver"
    assert plain.label(Segment(7, "LEFT_LUNG"), path) == "Left lung"
    assert plain.label(Segment(2), path) == "Tumour"
    chosen = LabelMatcher(LABELS, parse_label_map(["GTV=Tumour", "3=Liver", "couch="], LABELS))
    assert chosen.label(Segment(1, "gtv"), path) == "Tumour"
    assert chosen.label(Segment(3, ""), path) == "Liver"
    assert chosen.label(Segment(5, "Couch"), path) == ""
    with pytest.raises(UnreadableFile, match=r"has the structure 'Spleen'.*--label-map 'Spleen=LABEL'"):
        plain.label(Segment(1, "Spleen"), path)
    with pytest.raises(UnreadableFile, match=r"has the number 9.*--label-map '9=LABEL'"):
        plain.label(Segment(9), path)
    assert LabelMatcher(("Lung",), {}).label(Segment(255), path) == "Lung"


@pytest.mark.parametrize(
    "text",
    [
        {"labels": {"0": "background", "1": "tumour", "2": "liver"}},  # Medical Segmentation Decathlon
        {"labels": {"background": 0, "tumour": 1, "liver": 2}},  # nnU-Net
        {"labels": [{"number": 1, "name": "Tumour"}, {"number": 2, "name": "Liver"}]},  # our export
    ],
)
def test_a_file_beside_the_masks_names_their_numbers(tmp_path: Path, text: object) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(text))
    matcher = LabelMatcher(LABELS, {})
    path = tmp_path / "labelsTr" / "case.nii.gz"
    assert [matcher.label(Segment(n), path) for n in (1, 2)] == ["Tumour", "Liver"]
    assert matcher.speaks_of((), path) == {"Tumour", "Liver"}


@pytest.mark.parametrize("entry", ["Tumour", "=Tumour", "1=Spleen"])
def test_a_wrong_label_map_is_refused(entry: str) -> None:
    with pytest.raises(BadSetting, match="--label-map"):
        parse_label_map([entry], LABELS)
