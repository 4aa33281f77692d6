"""Enhanced multi-frame DICOM: functional groups, stacks, times, concatenations, and their segmentations."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import dcm2niix
import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import AXIAL, ENHANCED_CT, ENHANCED_MR, dataset, item, save, series, sources
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import generate_uid

from backend.errors import CannotExport
from backend.formats import Source, UnreadableFile, Window, read, read_geometry, write_dicom_seg

RNG = np.random.default_rng(8)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SPACING = (0.5, 0.8)


def frame(place: float, **fields: Any) -> dict[str, Any]:
    """What distinguishes a frame: its position along the normal, its macros' fields, and `pixels`."""
    return {"place": place, "orientation": AXIAL, "spacing": SPACING, **fields}


def enhanced(path: Path, frames: Sequence[dict[str, Any]], *, shared: bool = False, **header: Any) -> Path:
    """An enhanced file. shared: PixelMeasures and PlaneOrientation are shared; else each frame has its own."""
    each, pixels = [], []
    groups = Dataset()
    for one in frames:
        own = Dataset()
        target = groups if shared else own
        target.PixelMeasuresSequence = item(PixelSpacing=list(one["spacing"]), SliceThickness=5.0)
        target.PlaneOrientationSequence = item(ImageOrientationPatient=list(one["orientation"]))
        normal = np.cross(one["orientation"][:3], one["orientation"][3:])
        position = [float(part) for part in np.array([-10.0, -20.0, 30.0]) + one["place"] * normal]
        own.PlanePositionSequence = item(ImagePositionPatient=position)
        own.FrameContentSequence = item(**one.get("content", {}))
        if "echo" in one:
            own.MREchoSequence = item(EffectiveEchoTime=one["echo"])
        if "b" in one:
            own.MRDiffusionSequence = item(DiffusionBValue=one["b"])
            if "direction" in one:
                own.MRDiffusionSequence[0].DiffusionGradientDirectionSequence = item(
                    DiffusionGradientOrientation=list(one["direction"])
                )
        if "phase" in one:
            own.CardiacSynchronizationSequence = item(NominalCardiacTriggerDelayTime=one["phase"])
        each.append(own)
        pixels.append(one["pixels"])
    facts = {
        "SOPClassUID": ENHANCED_MR,
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "NONE"],
        "FrameOfReferenceUID": "1.2.3.4",
        "NumberOfFrames": len(frames),
        "SharedFunctionalGroupsSequence": [groups],
        "PerFrameFunctionalGroupsSequence": each,
    }
    return save(path, dataset(np.stack(pixels), **(facts | header)))


def pictures(count: int) -> list[np.ndarray[Any, Any]]:
    return list(RNG.integers(0, 4000, (count, 6, 5)).astype(np.uint16))


def marked(source: Source, time: int | None = None) -> list[int]:
    """The first pixel of each slice."""
    volume = read(source, time=time)
    assert volume.geometry == read_geometry(source, time=time)
    return [int(value) for value in volume.values[0, 0]]


def numbered(times: int, slices: int, **of_time: Any) -> list[dict[str, Any]]:
    """Frames of several volumes, whose first pixel is 1000 * volume + slice; of_time gives a macro's value."""
    found = []
    for t in range(times):
        for k in range(slices):
            fields = {name: values(t) if callable(values) else values[t] for name, values in of_time.items()}
            found.append(frame(5.0 * k, pixels=np.full((6, 5), 1000 * t + k, np.uint16), **fields))
    return found


def shuffled(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [frames[n] for n in np.random.default_rng(3).permutation(len(frames))]


# ---- what ../shared/cases lists


def test_macros_of_single_frames_are_read(cases: Path) -> None:
    for name in ("enh_measures_per_frame", "enh_orientation_per_frame"):
        (source,) = sources(cases / name / "enh.dcm")
        found = read_geometry(source)
        assert (found.shape, found.spacing, found.orientation) == ((40, 32, 4), (0.8, 0.5, 5.0), "LPS")


def test_time_points_are_those_of_the_frames_whatever_their_order(cases: Path) -> None:
    (source,) = sources(cases / "enh_time_shuffled" / "enh.dcm")
    assert source.volumes == 2
    assert [int(value) for value in read(source, time=0).values.min((0, 1))] == [1000 + k for k in range(5)]
    assert [int(value) for value in read(source, time=1).values.min((0, 1))] == [2000 + k for k in range(5)]


def test_an_enhanced_file_for_each_frame_is_one_volume(cases: Path) -> None:
    (source,) = sources(*sorted((cases / "enh_ct_one_frame_per_file").iterdir()))
    volume = read(source)
    assert volume.geometry == read_geometry(source)
    assert (volume.geometry.shape, volume.geometry.spacing) == ((40, 32, 5), (0.8, 0.5, 5.0))
    assert (volume.geometry.orientation, volume.window) == ("LPS", Window(40, 400))


def test_each_stack_of_a_localizer_is_a_scan(cases: Path) -> None:
    found = sources(cases / "enh_localizer" / "enh.dcm")
    assert [read_geometry(source).orientation for source in found] == ["LPS", "PIR", "LIP"]
    assert all(read_geometry(source).regular for source in found)
    assert len({source.uid for source in found}) == 3
    assert [Source.from_json(source.to_json()) for source in found] == found


# ---- their neighbours


@pytest.mark.parametrize(
    "of_time",
    [
        {"content": lambda t: {"TemporalPositionIndex": t + 1}},
        {"echo": [5.0, 10.0, 20.0]},
        {"b": [0.0, 50.0, 1000.0]},
        {"phase": [0.0, 90.0, 1000.0]},
        {"b": [0.0, 1000.0, 1000.0], "direction": [(0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)]},
    ],
    ids=["time", "echo", "b-value", "phase", "direction"],
)
@pytest.mark.parametrize("files", ["one file", "a file for each frame", "a concatenation"])
def test_volumes_are_divided_by_what_distinguishes_them(tmp_path: Path, of_time: dict[str, Any], files: str) -> None:
    frames = shuffled(numbered(3, 4, **of_time))
    uid, whole = generate_uid(), generate_uid()
    expected = [[1000 * t + k for k in range(4)] for t in range(3)]
    if files == "one file":
        (source,) = sources(enhanced(tmp_path / "a.dcm", frames, SeriesInstanceUID=uid))
        assert source.volumes == 3
        assert [marked(source, time) for time in range(3)] == expected
        with pytest.raises(UnreadableFile, match="has 3 volumes over time"):
            read(source)
    elif files == "a concatenation":
        header = {"SeriesInstanceUID": uid, "StudyInstanceUID": "1.2.3", "ConcatenationUID": whole}
        ends = (0, 5, 10, 12)
        paths = [
            enhanced(tmp_path / f"{9 - n}.dcm", frames[start:end], InConcatenationNumber=n + 1, **header)
            for n, (start, end) in enumerate(pairwise(ends))
        ]
        (source,) = sources(*paths)
        assert source.volumes == 3
        assert [marked(source, time) for time in range(3)] == expected
    else:
        header = {"SeriesInstanceUID": uid, "StudyInstanceUID": "1.2.3"}
        paths = [enhanced(tmp_path / f"{n}.dcm", [one], InstanceNumber=n + 1, **header) for n, one in enumerate(frames)]
        found = sources(*paths)
        assert sorted(found, key=lambda source: source.turn)[0].turn == (0, 3)
        assert [marked(source) for source in sorted(found, key=lambda source: source.turn)] == expected


def test_dimension_indexes_distinguish_volumes_without_other_fields(tmp_path: Path) -> None:
    frames = numbered(2, 4)
    for n, one in enumerate(frames):
        one["content"] = {"DimensionIndexValues": [1, n % 4 + 1, n // 4 + 1]}
    pointers = [0x00209056, 0x00200032, 0x00189087]  # stack, position, b-value
    dimensions = [item(DimensionIndexPointer=pointer)[0] for pointer in pointers]
    (source,) = sources(enhanced(tmp_path / "a.dcm", shuffled(frames), DimensionIndexSequence=dimensions))
    assert [marked(source, time) for time in (0, 1)] == [[0, 1, 2, 3], [1000, 1001, 1002, 1003]]


def test_two_fields_together_and_an_unfinished_last_volume(tmp_path: Path) -> None:
    frames = []
    for t in range(2):
        for e, echo in enumerate((5.0, 10.0)):
            for k in range(4):
                pixels = np.full((6, 5), 1000 * t + 100 * e + k, np.uint16)
                frames.append(frame(5.0 * k, echo=echo, content={"TemporalPositionIndex": t + 1}, pixels=pixels))
    frames.pop()  # the scanner was stopped
    (source,) = sources(enhanced(tmp_path / "a.dcm", shuffled(frames)))
    found = [marked(source, time) for time in range(source.volumes)]
    assert found == [[1000 * t + 100 * e + k for k in range(4 - t * e)] for t in (0, 1) for e in (0, 1)]


def test_a_tenth_time_point_follows_the_ninth(tmp_path: Path) -> None:
    frames = numbered(11, 2, content=lambda t: {"TemporalPositionIndex": t + 1})
    (source,) = sources(enhanced(tmp_path / "a.dcm", shuffled(frames)))
    assert [marked(source, time)[0] for time in range(11)] == [1000 * t for t in range(11)]


def test_a_cine_at_one_position_is_in_order_of_time(tmp_path: Path) -> None:
    frames = shuffled([frame(0.0, phase=30.0 * t, pixels=np.full((6, 5), t, np.uint16)) for t in range(8)])
    (source,) = sources(enhanced(tmp_path / "a.dcm", frames))
    assert marked(source) == list(range(8))
    with pytest.raises(CannotExport, match="several of its frames are at one position"):
        write_dicom_seg(tmp_path / "s.dcm", np.ones((5, 6, 8), np.uint8), source, names=("a",))


def test_stacks_differ_in_id_orientation_or_pixel_size(tmp_path: Path) -> None:
    frames = [frame(5.0 * k, content={"StackID": "1"}, pixels=one) for k, one in enumerate(pictures(3))]
    frames += [frame(40.0 + 4 * k, content={"StackID": "2"}, pixels=one) for k, one in enumerate(pictures(3))]
    frames += [frame(5.0 * k, orientation=CORONAL, pixels=one) for k, one in enumerate(pictures(2))]
    frames += [frame(90.0 + k, spacing=(0.25, 0.4), pixels=one) for k, one in enumerate(pictures(2))]
    found = sources(enhanced(tmp_path / "a.dcm", frames))
    geometries = [read_geometry(source) for source in found]
    assert [(g.shape[2], g.orientation) for g in geometries] == [(3, "LPS"), (3, "LPS"), (2, "LIP"), (2, "LPS")]
    assert [g.spacing for g in geometries] == [(0.8, 0.5, 5), (0.8, 0.5, 4), (0.8, 0.5, 5), (0.4, 0.25, 1)]
    assert np.array_equal(read(found[1]).values[..., 2], frames[5]["pixels"].T)


def test_a_frame_for_each_stack_id_is_still_one_volume(tmp_path: Path) -> None:
    frames = [frame(5.0 * k, content={"StackID": str(k)}, pixels=one) for k, one in enumerate(pictures(4))]
    (source,) = sources(enhanced(tmp_path / "a.dcm", frames))
    assert read_geometry(source).regular


def test_records_of_older_versions_keep_all_stacks_of_a_file_together(cases: Path) -> None:
    first = sources(cases / "enh_localizer" / "enh.dcm")[0]
    text = first.to_json().replace('"part": 0', '"part": null')
    assert read_geometry(Source.from_json(text)).shape == (40, 32, 9)


def test_gated_nuclear_medicine_is_divided_by_its_vectors(tmp_path: Path) -> None:
    pixels = np.stack([np.full((6, 5), 1000 * t + k, np.uint16) for t in (1, 0) for k in (2, 0, 1)])
    header = dataset(
        pixels,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.20",
        Modality="NM",
        NumberOfFrames=6,
        PixelSpacing=[4.0, 4.0],
        SpacingBetweenSlices=3.0,
        ImageOrientationPatient=list(AXIAL),
        ImagePositionPatient=[0, 0, 0],
        SliceVector=[3, 1, 2] * 2,
        TimeSlotVector=[2, 2, 2, 1, 1, 1],
    )
    (source,) = sources(save(tmp_path / "a.dcm", header))
    assert [marked(source, time) for time in (0, 1)] == [[0, 1, 2], [1000, 1001, 1002]]
    assert read_geometry(source, time=0).spacing == (4.0, 4.0, 3.0)


# ---- DICOM SEG


def check_seg(source: Source, out: Path, time: int | None = None) -> Dataset:
    """Write labels that differ on every slice, and read them back by their positions and references."""
    geometry = read_geometry(source, time=time)
    labels = np.zeros(geometry.shape, np.uint8)
    for k in range(geometry.shape[2]):
        labels[1 + k % 3, 1:4, k] = 1 + k % 2
    write_dicom_seg(out, labels, source, names=("a", "b"), time=time)
    found = highdicom.seg.segread(out).get_volume(combine_segments=True)
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    for k in range(geometry.shape[2]):
        for voxel in ((0, 0, k), (4, 5, k)):
            world = flip @ geometry.affine @ [*voxel, 1]
            row = np.rint(np.linalg.inv(found.affine) @ world).astype(int)[:3]
            assert np.allclose(found.affine @ [*row, 1], world, atol=1e-3)
        for row in range(6):
            for column in range(5):
                world = flip @ geometry.affine @ [column, row, k, 1]
                at = np.rint(np.linalg.inv(found.affine) @ world).astype(int)[:3]
                assert found.array[tuple(at)] == labels[column, row, k]
    return pydicom.dcmread(out)


def references(seg: Dataset) -> set[tuple[str, int]]:
    """Instance and frame (0: none) that each segmented frame refers to."""
    return {
        (str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber", 0)))
        for group in seg.PerFrameFunctionalGroupsSequence
        for source in group.DerivationImageSequence[0].SourceImageSequence
    }


@pytest.mark.parametrize("shared_groups", [True, False])
def test_a_seg_of_one_time_point_references_its_frames(tmp_path: Path, shared_groups: bool) -> None:
    frames = shuffled(numbered(3, 4, content=lambda t: {"TemporalPositionIndex": t + 1}))
    path = enhanced(tmp_path / "a.dcm", frames, shared=shared_groups)
    (source,) = sources(path)
    seg = check_seg(source, tmp_path / "s.dcm", time=1)
    uid = source.instances[0]
    numbers = {n + 1 for n, one in enumerate(frames) if 1000 <= one["pixels"][0, 0] < 2000}
    assert references(seg) == {(uid, n) for n in numbers}
    (series_,) = seg.ReferencedSeriesSequence
    (instance,) = series_.ReferencedInstanceSequence
    assert (instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID) == (ENHANCED_MR, uid)


def test_a_seg_of_a_concatenation_and_of_a_file_for_each_frame(tmp_path: Path) -> None:
    frames = shuffled(numbered(1, 4))
    header = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": "1.2.3"}
    together = []
    for n in (0, 1):
        whole = {"ConcatenationUID": "1.2.9", "InConcatenationNumber": n + 1}
        together.append(enhanced(tmp_path / f"c{n}", frames[2 * n : 2 * n + 2], **whole, **header))
    (source,) = sources(*together)
    assert references(check_seg(source, tmp_path / "s.dcm")) == {(uid, n) for uid in source.instances for n in (1, 2)}
    header = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": "1.2.3", "SOPClassUID": ENHANCED_CT}
    single = [enhanced(tmp_path / f"f{n}", [one], **header) for n, one in enumerate(frames)]
    (source,) = sources(*single)
    assert references(check_seg(source, tmp_path / "t.dcm")) == {(uid, 0) for uid in source.instances}


def test_the_cases_have_segs(cases: Path, tmp_path: Path) -> None:
    for name, times in (
        ("enh_measures_per_frame", [None]),
        ("enh_orientation_per_frame", [None]),
        ("enh_time_shared", [0, 2]),
        ("enh_ct_one_frame_per_file", [None]),
    ):
        (source,) = sources(*sorted((cases / name).iterdir()))
        for time in times:
            labels = np.zeros((40, 32, read_geometry(source, time=time).shape[2]), np.uint8)
            labels[3:9, 4:8, 1:3] = 1
            write_dicom_seg(tmp_path / "a.dcm", labels, source, names=("a",), time=time)
            seg = pydicom.dcmread(tmp_path / "a.dcm")
            positions = {
                tuple(map(float, one.PlanePositionSequence[0].ImagePositionPatient))
                for one in seg.PerFrameFunctionalGroupsSequence
            }
            assert positions == {(-10, -20, 5), (-10, -20, 10)}
            assert (int(seg.pixel_array.sum()), seg.NumberOfFrames) == (48, 2)


def test_a_series_whose_spacing_changes_is_divided(cases: Path, tmp_path: Path) -> None:
    paths = sorted((cases / "spacing_changes").iterdir())
    found = sources(*paths)
    assert [read_geometry(source).spacing for source in found] == [(0.8, 0.5, 5), (0.4, 0.25, 5)]
    together = Source("dicom", tuple(paths), "old", found[0].instances + found[1].instances)  # as older versions
    with pytest.raises(CannotExport, match="its slices have different pixel spacings"):
        write_dicom_seg(tmp_path / "a.dcm", np.ones((40, 32, 6), np.uint8), together, names=("a",))


def test_a_seg_of_a_series_without_slice_thickness(tmp_path: Path) -> None:
    paths = series(tmp_path / "in", np.zeros((3, 6, 5), np.int16), SliceThickness=None, SpacingBetweenSlices=2.5)
    (source,) = sources(*paths)
    write_dicom_seg(tmp_path / "a.dcm", np.ones((5, 6, 3), np.uint8), source, names=("a",))
    assert pydicom.dcmread(tmp_path / "a.dcm").NumberOfFrames == 3


# ---- the same voxels at the same places as dcm2niix


def of_dcm2niix(folder: Path, out: Path) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """The volumes that dcm2niix makes of a folder: values and affine (RAS+)."""
    out.mkdir()
    line = [dcm2niix.bin, "-z", "n", "-b", "n", "-m", "n", "-f", "%s_%d", "-o", str(out), str(folder)]
    subprocess.run(line, check=True, capture_output=True, timeout=60)
    found = []
    for path in sorted(out.glob("*.nii")):
        image = nib.load(path)
        values = np.asarray(image.dataobj)
        values = values if values.ndim == 4 else values[..., None]
        found += [(values[..., t], image.affine) for t in range(values.shape[3])]
    return found


def at(values: NDArray[Any], affine: NDArray[Any]) -> dict[tuple[float, ...], float]:
    """Value by position in RAS mm."""
    indexes = np.indices(values.shape).reshape(3, -1)
    places = np.round(affine[:3, :3] @ indexes + affine[:3, 3:], 2) + 0.0
    return dict(zip(map(tuple, places.T.tolist()), values.ravel().tolist(), strict=True))


def acquired(folder: Path, kind: str) -> None:
    """Enhanced files of one kind, each with distinct pixels and an oblique orientation."""
    tilted = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)
    times = 1 if kind == "macros of frames" else 2
    frames = []
    for t in range(times):
        for k in range(5):
            content = {"StackID": "1", "InStackPositionNumber": k + 1, "TemporalPositionIndex": t + 1}
            content["DimensionIndexValues"] = [1, k + 1, t + 1]
            pixels = RNG.integers(0, 4000, (16, 12)).astype(np.uint16)
            frames.append(frame(5.0 * k, orientation=tilted, content=content, pixels=pixels))
    header: dict[str, Any] = {
        "SeriesInstanceUID": "1.2.3.5",
        "StudyInstanceUID": "1.2.3",
        "Manufacturer": "Philips",
        "SeriesNumber": 4,
        "DimensionIndexSequence": [
            item(DimensionIndexPointer=pointer)[0] for pointer in (0x00209056, 0x00209057, 0x00209128)
        ],
    }
    if kind == "a file for each frame":
        for n, one in enumerate(frames):
            mark = {"AcquisitionNumber": n // 5 + 1, "TemporalPositionIdentifier": n // 5 + 1}
            enhanced(folder / f"{n}.dcm", [one], InstanceNumber=n + 1, **mark, **header)
    elif kind == "a concatenation":
        for n in (0, 1):
            parts = {"ConcatenationUID": "1.2.9", "InConcatenationNumber": n + 1, "InstanceNumber": n + 1}
            enhanced(folder / f"{n}.dcm", frames[5 * n : 5 * n + 5], **parts, **header)
    else:
        chosen = shuffled(frames) if kind == "shuffled time" else frames
        enhanced(folder / "a.dcm", chosen, shared=kind == "shuffled time", **header)


@pytest.mark.parametrize("kind", ["shuffled time", "macros of frames", "a file for each frame", "a concatenation"])
def test_voxels_are_where_dcm2niix_puts_them(tmp_path: Path, kind: str) -> None:
    acquired(tmp_path / "in", kind)
    ours = by_place(*sorted((tmp_path / "in").iterdir()))
    theirs = [at(*one) for one in of_dcm2niix(tmp_path / "in", tmp_path / "out")]
    assert len(ours) == len(theirs)
    assert all(one in theirs for one in ours)


def test_each_stack_is_where_dcm2niix_puts_it_alone(tmp_path: Path) -> None:
    """dcm2niix refuses a file with several stacks ("slice orientation varies"): it reads each from its own file."""
    stacks = []
    for n, (orientation, size) in enumerate([(AXIAL, 5), (CORONAL, 4)]):
        frames = []
        for k in range(size):
            content = {"StackID": str(n + 1), "InStackPositionNumber": k + 1}
            pixels = RNG.integers(0, 4000, (16, 12)).astype(np.uint16)
            frames.append(frame(6.0 * k, orientation=orientation, content=content, pixels=pixels))
        stacks.append(frames)
        enhanced(tmp_path / f"alone{n}" / "a.dcm", frames)
    ours = by_place(enhanced(tmp_path / "a.dcm", [*stacks[0], *stacks[1]]))
    (first,), (second,) = (of_dcm2niix(tmp_path / f"alone{n}", tmp_path / f"out{n}") for n in (0, 1))
    assert ours == [at(*first), at(*second)]


def by_place(*paths: Path) -> list[dict[tuple[float, ...], float]]:
    """Value by position of every volume that we make of these files."""
    found = []
    for source in sources(*paths):
        for time in range(source.volumes):
            volume = read(source, time=time)
            found.append(at(volume.values, volume.geometry.affine))
    return found
