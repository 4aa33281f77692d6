"""What makes a scan when UIDs are missing, shared or wrong: nothing vanishes, and no two patients share a scan."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import CR, dataset, save, series, sources
from pydicom.uid import RLELossless

from backend.errors import CannotExport
from backend.formats import Source, group, is_content, packed, read, read_geometry, read_header, sniff, write_dicom_seg

RNG = np.random.default_rng(4)
STACK = RNG.integers(0, 4000, (6, 6, 5)).astype(np.uint16)
SAME: dict[str, Any] = {"StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4", "SeriesInstanceUID": "1.2.5"}


def slices(*found: Source) -> int:
    return sum(read(source).values.shape[2] for source in found)


def test_slices_with_one_sop_instance_uid_are_one_volume_and_a_remark(cases: Path, tmp_path: Path) -> None:
    (source,) = sources(*sorted((cases / "same_sop_uid").iterdir()))
    assert read_geometry(source).shape == (40, 32, 6)
    assert len(set(source.instances)) == 6
    assert all(map(is_content, source.instances))
    (remark,) = source.remarks
    assert remark.startswith("other images have its SOPInstanceUID")
    with pytest.raises(CannotExport, match="do not have a SOPInstanceUID of their own"):
        write_dicom_seg(tmp_path / "a.dcm", np.ones((40, 32, 6), np.uint8), source, names=("a",))


def test_two_patients_in_one_series_are_two_scans(cases: Path) -> None:
    found = sources(*sorted((cases / "same_series_uid").rglob("*.dcm")))
    assert [(len(source.files), read_header(source).patient_id) for source in found] == [(5, "A"), (5, "B")]
    assert len({source.uid for source in found}) == 2


@pytest.mark.parametrize("changed", [{"ImagePositionPatient": [10.0, 20.0, 99.0]}, {"InstanceNumber": 9}, {}])
def test_files_with_one_uid_that_differ_in_position_number_or_pixels_are_different(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    (path,) = series(tmp_path / "a", STACK[:1], **SAME)
    header = pydicom.dcmread(path)
    for keyword, value in changed.items():
        setattr(header, keyword, value)
    header.PixelData = STACK[1].tobytes()
    other = save(tmp_path / "b" / "x.dcm", header)
    assert slices(*sources(path, other)) == 2
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        archive.write(path, "a.dcm")
        archive.write(other, "b.dcm")
    assert slices(*sources(*(packed.members(tmp_path / "both.zip") or ()))) == 2


def test_copies_count_once_whatever_their_compression(tmp_path: Path) -> None:
    paths = series(tmp_path / "a", STACK, **SAME)
    copies = []
    for path in paths:
        header = pydicom.dcmread(path)
        header.compress(RLELossless, generate_instance_uid=False)
        copies.append(save(tmp_path / "b" / path.name, header))
    (source,) = sources(*paths, *copies)
    assert (len(source.files), source.remarks) == (6, ())
    assert (read(source).values == STACK.transpose(2, 1, 0)).all()


@pytest.mark.parametrize("missing", ["SeriesInstanceUID", "SOPInstanceUID", "SeriesInstanceUID SOPInstanceUID"])
def test_slices_without_uids_are_stacked_by_what_else_is_there(tmp_path: Path, missing: str) -> None:
    paths = []
    for n, folder in enumerate(("a", "b")):
        for path in series(tmp_path / folder, STACK, **SAME | {"SeriesInstanceUID": f"1.2.6{n}", "SeriesNumber": n}):
            header = pydicom.dcmread(path)
            for keyword in missing.split():
                setattr(header, keyword, "")
            pydicom.dcmwrite(path, header)
            paths.append(path)
    found = sources(*paths)
    assert [len(source.files) for source in found] == [6, 6]
    assert len({source.uid for source in found}) == 2
    assert found == sources(*paths[::-1])
    again = [path.rename(path.with_name(f"x{path.name}")) for path in paths]
    assert [source.uid for source in sources(*again)] == [source.uid for source in found]


def test_a_file_that_disappears_does_not_stop_the_others(cases: Path, tmp_path: Path) -> None:
    facts = [fact for fact in map(sniff, sorted((cases / "same_sop_uid").iterdir())) if fact]
    facts[0] = replace(facts[0], path=tmp_path / "gone.dcm")
    assert sum(len(source.files) for source in group(facts)) == 6


def test_folders_distinguish_series_if_nothing_else_does(tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        for path in series(tmp_path / folder, STACK if folder == "a" else STACK + 1, **SAME):
            header = pydicom.dcmread(path)
            header.SeriesInstanceUID = header.StudyInstanceUID = header.PatientID = header.SOPInstanceUID = ""
            pydicom.dcmwrite(path, header)
            paths.append(path)
    found = sources(*paths)
    assert [{path.parent.name for path in source.files} for source in found] == [{"a"}, {"b"}]
    assert len({source.uid for source in found}) == 2


def test_radiographs_without_uids_stay_separate(tmp_path: Path) -> None:
    for n in range(3):
        header = dataset(STACK[n], SOPClassUID=CR, Modality="CR", InstanceNumber=n)
        header.SeriesInstanceUID = header.SOPInstanceUID = ""
        pydicom.dcmwrite(tmp_path / f"{n}.dcm", header, enforce_file_format=False)
    found = sources(*sorted(tmp_path.iterdir()))
    assert [(len(source.files), source.uid) for source in found] == [(1, "")] * 3


@pytest.mark.parametrize(
    ("places", "numbers"),
    [
        ((0, 2.5, 5, 7.5, 1, 3.5, 6, 8.5), (1, 1, 1, 1, 2, 2, 2, 2)),  # shifted by 1 mm
        ((0, 2.5, 5, 7.5, 1.25, 3.75, 6.25, 8.75), (1, 1, 1, 1, 2, 2, 2, 2)),  # evenly between
        ((0, 2.5, 5, 7.5, 5, 7.5, 10, 12.5), (1, 1, 1, 1, 2, 2, 2, 2)),  # two positions in common
    ],
)
def test_acquisitions_that_overlap_are_separate(
    tmp_path: Path, places: tuple[float, ...], numbers: tuple[int, ...]
) -> None:
    volume = RNG.integers(0, 4000, (8, 6, 5)).astype(np.uint16)
    paths = series(tmp_path, volume, places=places, **SAME)
    for path, number in zip(paths, numbers, strict=True):
        header = pydicom.dcmread(path)
        header.AcquisitionNumber = number
        header.save_as(path)
    found = sources(*paths)
    assert [source.files for source in found] == [tuple(paths[:4]), tuple(paths[4:])]
    assert all(read_geometry(source).regular for source in found)


def test_interleaved_packages_and_consecutive_rotations_are_one_volume(tmp_path: Path) -> None:
    for folder, numbers in (("a", (1, 2, 1, 2, 1, 2)), ("b", (1, 1, 2, 2, 3, 3))):
        paths = series(tmp_path / folder, STACK, **SAME)
        for path, number in zip(paths, numbers, strict=True):
            header = pydicom.dcmread(path)
            header.AcquisitionNumber = number
            header.save_as(path)
        (source,) = sources(*paths)
        assert read_geometry(source).regular


def test_images_that_only_their_order_distinguishes_have_a_remark(tmp_path: Path) -> None:
    paths = series(tmp_path, np.concatenate([STACK, STACK + 1]), places=(0, 2, 4, 6, 8, 10) * 2, **SAME)
    found = sources(*paths)
    assert [source.turn for source in found] == [(0, 2), (1, 2)]
    assert all("no field tells them apart" in remark for source in found for remark in source.remarks)
