"""Volumes of an export: which scans get one, in which format, and the memory that this takes."""

from __future__ import annotations

import errno
import json
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from made_scans import write_series
from memory_studio import MemoryStudio
from numpy.typing import NDArray
from typer.testing import CliRunner
from world import CONFIG, CONTROL, PROJECT, png

from backend import cli
from backend.demo.annotator import to_result
from backend.errors import LostSource, StorageFull
from backend.export import Export, Summary
from backend.export.manifest import Files, Sections
from backend.export.run import FORMATS
from backend.export.sources import Sources
from backend.export.volumes import NIFTI, SEG, Place, Volume
from backend.formats import Source, cut, group, read_geometry, sniff
from backend.intake.identities import Identities, ScanRecord
from backend.intake.slicing import digest

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Identities]:
    with Identities(tmp_path / "identities.sqlite") as opened:
        yield opened


def source_of(*paths: Path) -> Source:
    (found,) = group(facts for facts in map(sniff, paths) if facts)
    return found


def remember(known: Identities, number: int, source: Source) -> ScanRecord:
    """Store the scan as import does."""
    scan = f"S-AAAAAAAAAAA{LETTERS[number]}"
    record = ScanRecord(scan, source, digest(source), read_geometry(source), None, "MR", "", time.time())
    known.put_scan(record)
    return record


def write_volume(path: Path, seed: int, shape: tuple[int, int, int] = (5, 6, 4)) -> Path:
    values = np.random.default_rng(seed).integers(0, 99, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path


def lab_of(records: Sequence[ScanRecord], slices: int = 1, unlabelled: Sequence[ScanRecord] = ()) -> MemoryStudio:
    """A project with the first `slices` of each scan, each fully labelled except for one corner."""
    studio = MemoryStudio(CONFIG)
    for record in [*records, *unlabelled]:
        place = cut(record.geometry, "acquisition")
        mask = np.ones(place.shape, bool)
        mask[0, 0] = False
        for n in range(slices):
            (task,) = studio.add_scans([png(np.zeros(place.shape, np.uint8))])
            data = {"image": studio.reference(task), "scan": record.scan, "axis": "acquisition", "slice": n}
            studio.set_data(task, data)
            if record not in unlabelled:
                studio.annotate(task, to_result({"Lung": mask}, CONTROL))
    return studio


def export(studio: MemoryStudio, out: Path, known: Identities, **asked: Any) -> Summary:
    return Export(studio, PROJECT, identities=known, **asked).run(out)  # type: ignore[arg-type]


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def labels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(nib.load(path).dataobj)


def test_each_scan_gets_the_suitable_formats(known: Identities, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(png(np.arange(60, dtype=np.uint8).reshape(6, 10)))
    dicom = remember(known, 0, source_of(*write_series(tmp_path / "even", "even", range(3))))
    gaps = remember(known, 1, source_of(*write_series(tmp_path / "gaps", "gaps", [0, 1, 5])))
    nifti = remember(known, 2, source_of(write_volume(tmp_path / "v.nii.gz", 1)))
    plain = remember(known, 3, source_of(picture))
    assert not gaps.geometry.regular
    studio = lab_of([dicom, gaps, nifti, plain])
    done = export(studio, tmp_path / "out", known)
    written = {p.name for p in (tmp_path / "out").iterdir() if p.is_file()} - {"manifest.json", "coco.json"}
    assert written == {
        f"{dicom.scan}.nii.gz",
        f"{dicom.scan}.seg.dcm",
        f"{gaps.scan}.seg.dcm",
        f"{nifti.scan}.nii.gz",
    }
    assert done.notes == (
        f"{gaps.scan} was not written as NIfTI: its slices are not evenly spaced, which NIfTI cannot represent.",
    )
    assert (done.problem_count, done.files["png"]) == (0, 4)
    asked = export(studio, tmp_path / "asked", known, formats=("nifti", "seg"))
    said = [p.what for p in asked.problems]
    assert len(said) == 3
    assert sum("DICOM SEG refers to DICOM instances, which this scan does not have" in what for what in said) == 2
    assert labels(tmp_path / "asked" / f"{plain.scan}.nii.gz").shape == (10, 6, 1)  # requested by name


def test_a_scan_without_a_label_is_no_problem_and_not_counted(known: Identities, tmp_path: Path) -> None:
    gaps = remember(known, 0, source_of(*write_series(tmp_path / "gaps", "gaps", [0, 1, 5])))
    nifti = remember(known, 1, source_of(write_volume(tmp_path / "v.nii.gz", 1)))
    lost = ScanRecord("S-AAAAAAAAAAAZ", nifti.source, "", nifti.geometry, None, "MR", "", time.time())
    dicom = remember(known, 2, source_of(*write_series(tmp_path / "even", "even", range(3))))
    done = export(lab_of([dicom], unlabelled=[gaps, nifti, lost]), tmp_path / "out", known, formats=FORMATS)
    assert (done.problems, done.notes) == ((), ())
    assert (done.scans, done.slices, done.unlabelled) == (1, 1, 3)
    labelled = {row["scan"]: row["labelled"] for row in manifest(tmp_path / "out")["scans"]}
    assert labelled == {dicom.scan: 1, gaps.scan: 0, nifti.scan: 0, lost.scan: 0}


def test_the_command_says_when_nothing_was_exported(
    known: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = lab_of([remember(known, 0, source_of(write_volume(tmp_path / "v.nii.gz", 1)))], slices=2)
    monkeypatch.setattr("backend.label_studio.studio.Studio", lambda *_, **__: studio)
    asked = ["export", "--project", "1", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(cli.app, [*asked, "--format", "seg"])
    assert said.exit_code == 1
    assert said.output.startswith(
        f"Project 1: no mask was written to {tmp_path / 'out'} for 2 labelled slices of 1 scan;"
    )
    assert said.output.rstrip().endswith("Nothing was exported.")
    said = CliRunner().invoke(cli.app, [*asked, "--format", "seg,nifti"])
    assert "2 labelled slices of 1 scan were exported to" in said.output
    assert said.output.rstrip().endswith("Everything else was exported.")


def test_labels_are_exactly_where_they_were_drawn(known: Identities, tmp_path: Path) -> None:
    record = remember(known, 0, source_of(write_volume(tmp_path / "v.nii.gz", 1)))
    export(lab_of([record], slices=2), tmp_path / "out", known)
    place = cut(record.geometry, "acquisition")
    found = labels(tmp_path / "out" / f"{record.scan}.nii.gz")
    for n in range(place.count):
        picture = place.take(found, n)
        assert picture[0, 0] == 0
        assert picture.sum() == (picture.size - 1 if n < 2 else 0)


def test_a_task_with_a_slice_number_beyond_the_scan_is_a_problem(known: Identities, tmp_path: Path) -> None:
    record = remember(known, 0, source_of(write_volume(tmp_path / "v.nii.gz", 1)))
    studio = lab_of([record], slices=2)
    task = max(studio.task_ids(PROJECT))
    data = {"image": studio.reference(task), "scan": record.scan, "axis": "acquisition", "slice": 400}
    studio.set_data(task, data)
    done = export(studio, tmp_path / "out", known)
    (problem,) = manifest(tmp_path / "out")["problems"]
    assert (problem["task"], problem["slice"]) == (task, 400)
    assert "its task has slice number 400 (from 0), but the scan has" in problem["what"]
    assert done.slices == 1


def test_a_scan_from_another_identities_file_is_a_problem(known: Identities, tmp_path: Path) -> None:
    record = remember(known, 0, source_of(write_volume(tmp_path / "v.nii.gz", 1)))
    with Identities(tmp_path / "others.sqlite") as others:
        done = export(lab_of([record]), tmp_path / "out", others)
    (problem,) = done.problems
    assert problem.what.startswith(f"{record.scan} is not in the identities file, so no volume was written.")
    assert done.slices == 1


def test_a_predicted_segmentation_is_marked_as_automatic(tmp_path: Path, known: Identities) -> None:
    record = remember(known, 0, source_of(*write_series(tmp_path / "s", "s", range(3))))
    place = Place(record, cut(record.geometry, "acquisition"), record.source, frozenset({NIFTI, SEG}))
    volume = Volume(place)
    mask = np.zeros(place.cut.shape, np.uint8)
    mask[1, 2] = 1
    volume.put(2, mask)
    files = Files(tmp_path, Sections(tmp_path / "m.json", ("files",)))
    about = {"name": "scanqueue", "version": "scanqueue-r2 (abc)"}
    volume.write(SEG, files, "model/x", ("Lung",), model=about, description="scanqueue scanqueue-r2", facts={})
    read = highdicom.seg.segread(tmp_path / "model" / "x.seg.dcm")
    (segment,) = read.SegmentSequence
    assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "scanqueue")
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmVersion == "scanqueue-r2 (abc)"
    assert read.SeriesDescription == "scanqueue scanqueue-r2"
    assert read.pixel_array.sum() == 1
    assert files.kinds == {"model/seg": 1}


def test_files_are_recognized_by_their_content(known: Identities, tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", "s", range(3))
    dicom = remember(known, 0, source_of(*series))
    nifti = remember(known, 1, source_of(write_volume(tmp_path / "a.nii.gz", 1)))
    assert Sources().find(dicom) == dicom.source
    (tmp_path / "new").mkdir()
    for number, path in enumerate(reversed(series)):
        path.rename(tmp_path / "new" / f"{number}.bin")
    (tmp_path / "a.nii.gz").rename(tmp_path / "new" / "b.nii.gz")
    write_volume(tmp_path / "new" / "a.nii.gz", 2)  # another file with the same name
    (tmp_path / "new" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 9)
    for record in (dicom, nifti):
        with pytest.raises(LostSource, match="its source was moved or deleted") as caught:
            Sources().find(record)
        assert str(record.source.files[0]) in caught.value.where
        assert str(tmp_path) not in str(caught.value)
    sources = Sources([tmp_path / "new"])
    assert [path.name for path in sources.find(dicom).files] == ["2.bin", "1.bin", "0.bin"]
    assert [path.name for path in sources.find(nifti).files] == ["b.nii.gz"]
    (tmp_path / "new" / "1.bin").unlink()
    with pytest.raises(LostSource, match="do not contain it either"):
        Sources([tmp_path / "new"]).find(dicom)


def test_a_series_whose_position_in_the_patient_changed_is_not_exported(known: Identities, tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", "s", range(3))
    record = remember(known, 0, source_of(*series))
    for path in series:
        header = pydicom.dcmread(path)
        header.PixelSpacing = [0.5, 0.5]
        header.save_as(path)
    with pytest.raises(LostSource, match="a different position, direction or spacing than when it was imported"):
        Sources().find(record)


def test_one_scan_is_in_memory_at_a_time(known: Identities, tmp_path: Path) -> None:
    shape = (128, 128, 128)
    records = []
    for number in range(9):
        values = np.full(shape, number, np.uint8)
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{number}.nii.gz")
        records.append(remember(known, number, source_of(tmp_path / f"{number}.nii.gz")))
    peaks = []
    for count in (1, 1, 9):  # the first run also does one-time loading
        studio = lab_of(records[:count])
        tracemalloc.start()
        done = export(studio, tmp_path / f"out-{len(peaks)}", known)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done.files["nifti"] == count
    assert peaks[2] < peaks[1] + np.prod(shape)  # nine times the work, but less than one more volume in memory


def test_a_full_disk_is_reported_and_leaves_nothing_behind(
    known: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = remember(known, 0, source_of(write_volume(tmp_path / "v.nii.gz", 1)))
    before = sorted(tmp_path.iterdir())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("backend.export.volumes.write_nifti_labels", full)
    with pytest.raises(StorageFull, match="No space for the export in"):
        export(lab_of([record]), tmp_path / "out", known)
    assert sorted(tmp_path.iterdir()) == before


def test_a_format_that_could_not_be_written_is_a_problem_with_and_without_format(
    known: Identities, tmp_path: Path
) -> None:
    paths = write_series(tmp_path / "s", "s", range(3), SOPInstanceUID="1.2.3")
    record = remember(known, 0, source_of(*paths))
    assert record.geometry.shape[2] == 3
    for name, asked in (("all", {}), ("seg", {"formats": ("seg",)})):
        done = export(lab_of([record]), tmp_path / name, known, **asked)
        (problem,) = done.problems
        assert "was not written as DICOM SEG: its files do not have a SOPInstanceUID of their own" in problem.what
    moved = tmp_path / "moved"
    (tmp_path / "s").rename(moved)
    found = Sources([moved]).find(record)
    assert [path.parent for path in found.files] == [moved] * 3
