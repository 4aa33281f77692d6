"""Which scan a mask belongs to by its name, and which label it draws."""

from __future__ import annotations

import json
import zipfile
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
    "only numbers": (["images/img_001.png", "images/img_002.png"], "masks/mask_002.png", 1),
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


def test_the_number_of_a_mask_is_not_lost_with_the_word_before_it() -> None:
    assert found(["images/img_001.png"], "masks/mask_002.png") == []


def test_our_own_names_say_scan_axis_and_slice() -> None:
    assert picture_of(Path("x/S-ABCDEFGHIJ23.axial.0017.png")) == ("S-ABCDEFGHIJ23", "axial", 17)
    assert picture_of(Path("x/S-ABCDEFGHIJ23.coronal.nii.gz")) == ("S-ABCDEFGHIJ23", "coronal", None)
    assert picture_of(Path("x/S-ABCDEFGHIJ23.seg.dcm")) == ("S-ABCDEFGHIJ23", "", None)
    assert picture_of(Path("x/S-ABCDEFGHIJ23.axial.rtstruct.dcm")) == ("S-ABCDEFGHIJ23", "axial", None)
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


def test_labels_that_differ_in_a_number_or_a_sign_are_different_labels(tmp_path: Path) -> None:
    matcher = LabelMatcher(("Label 1", "Label 2", "Mask", "T+", "T-"), {})
    path = tmp_path / "case.seg.nrrd"
    assert [matcher.label(Segment(1, name), path) for name in ("label_2", "MASK", "T-")] == ["Label 2", "Mask", "T-"]
    for name in ("Segmentation", "Label 3", "t", "?"):
        with pytest.raises(UnreadableFile, match="which is no label"):
            matcher.label(Segment(1, name), path)


def test_a_label_has_the_names_that_the_config_gives_it(tmp_path: Path) -> None:
    aliases = {"Liver": "L"}
    matcher = LabelMatcher(("L", "T"), parse_label_map(["GTV=Liver"], ("L", "T"), aliases), aliases)
    assert [matcher.label(Segment(1, name), tmp_path / "a.dcm") for name in ("liver", "L", "gtv")] == ["L", "L", "L"]


def test_a_folder_named_after_a_label_says_nothing_about_several_numbers(tmp_path: Path) -> None:
    plain = LabelMatcher(LABELS, {})
    inside = tmp_path / "Liver" / "case.nii.gz"
    assert [plain.label(Segment(n), inside) for n in (1, 255)] == ["Liver", "Liver"]
    with pytest.raises(UnreadableFile, match="has the number 2"):
        plain.label(Segment(2), inside)
    collection = tmp_path / "Tumour" / "labelsTr" / "case.nii.gz"
    assert [plain.label(Segment(n), collection) for n in (1, 2)] == ["Liver", "Tumour"]
    left_out = LabelMatcher(LABELS, parse_label_map(["couch="], LABELS))
    assert left_out.label(Segment(1), tmp_path / "case" / "couch.nii.gz") == ""
    numbered = LabelMatcher(("1", "2"), {})
    assert numbered.label(Segment(2), tmp_path / "1.png") == "2"  # the first scan, not the first label


def test_a_number_does_not_decide_beside_files_that_are_named_after_their_labels(tmp_path: Path) -> None:
    plain = LabelMatcher(LABELS, {})
    assert plain.label(Segment(1), tmp_path / "liver" / "case.nii.gz", by_order=False) == "Liver"
    with pytest.raises(UnreadableFile, match="has the number 1"):
        plain.label(Segment(1), tmp_path / "spleen" / "case.nii.gz", by_order=False)


def test_a_file_speaks_only_of_what_it_or_the_label_map_names(tmp_path: Path) -> None:
    path = tmp_path / "case.nii.gz"
    assert LabelMatcher(LABELS, {}).speaks_of((), path) == frozenset()
    assert LabelMatcher(LABELS, parse_label_map(["1=Liver", "2="], LABELS)).speaks_of((), path) == {"Liver"}
    assert LabelMatcher(LABELS, {}).speaks_of((Segment(1, "liver"), Segment(2, "spleen")), path) == {"Liver"}


@pytest.mark.parametrize("text", ['{"labels": {"whole": [1, 2], "core": [2]}}', '{"labels": {"1": ', "[" * 100_000])
def test_a_file_beside_the_masks_that_is_not_understood_is_a_problem(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UnreadableFile, match="which number is which label") as error:
        LabelMatcher(LABELS, {}).label(Segment(1), tmp_path / "labelsTr" / "case.nii.gz")
    assert error.value.path == tmp_path / "dataset.json"


def test_the_names_of_numbers_are_found_in_archives_and_missing_ones_are_not_guessed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("task/dataset.json", json.dumps({"labels": {"1": "tumour", "3": "liver"}}))
    matcher, path = LabelMatcher(LABELS, {}), tmp_path / "a.zip" / "task" / "labelsTr" / "case.nii.gz"
    assert [matcher.label(Segment(n), path) for n in (1, 3)] == ["Tumour", "Liver"]
    with pytest.raises(UnreadableFile, match="has the structure '2'"):
        matcher.label(Segment(2), path)


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
