"""Reading DICOM: grouping of files and pixel values in every transfer syntax."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import CR, ENHANCED_MR, MR, US, US_FRAMES, dataset, enhanced, save, series, sources
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut
from pydicom.sequence import Sequence as Items
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from backend.formats import (
    Source,
    UnreadableFile,
    Volume,
    Window,
    choose_window,
    cut,
    dicom,
    fields,
    read,
    read_geometry,
    read_header,
    sniff,
    to_uint8,
)

RNG = np.random.default_rng(2)
PIXELS = RNG.integers(0, 4000, (6, 5)).astype(np.uint16)
STACK = RNG.integers(0, 4000, (4, 6, 5)).astype(np.uint16)


def one(path: Path) -> Volume:
    (source,) = sources(path)
    volume = read(source)
    assert read_geometry(source) == volume.geometry
    return volume


def picture(volume: Volume, n: int = 0) -> np.ndarray[Any, Any]:
    return cut(volume.geometry, "acquisition").take(volume.values, n)


# ---- which files belong together


def test_slices_are_ordered_by_position_whatever_their_names_and_numbers(tmp_path: Path) -> None:
    paths = series(tmp_path, STACK)
    shuffled = [path.rename(path.with_name(f"{9 - n}.x")) for n, path in enumerate(paths)]
    random.Random(3).shuffle(shuffled)
    (source,) = sources(*shuffled)
    assert [path.name for path in source.files] == ["9.x", "8.x", "7.x", "6.x"]
    assert source.instances == tuple(str(pydicom.dcmread(path).SOPInstanceUID) for path in source.files)
    assert (read(source).values == STACK.transpose(2, 1, 0)).all()


def test_a_source_is_named_without_its_path_and_survives_pickle_and_text(tmp_path: Path) -> None:
    (source,) = sources(*series(tmp_path / "a", STACK))
    again = sources(*(path.rename(tmp_path / f"x{path.name}") for path in source.files))
    assert again[0].uid == source.uid != ""
    assert pickle.loads(pickle.dumps(source)) == source
    assert Source.from_json(source.to_json()) == source
    fact = sniff(again[0].files[0])
    assert pickle.loads(pickle.dumps(fact)) == fact


def test_the_same_instance_twice_counts_once_and_the_longer_copy_is_read(tmp_path: Path) -> None:
    paths = series(tmp_path / "b", STACK)
    copies = [tmp_path / "a" / path.name for path in paths]
    (tmp_path / "a").mkdir()
    for path, copy in zip(paths, copies, strict=True):
        copy.write_bytes(path.read_bytes()[: -4 if path.name == "0002.dcm" else None])
    (source,) = sources(*copies, *paths)
    assert len(source.files) == 4
    assert [path.parent.name for path in source.files] == ["a", "a", "b", "a"]
    assert (read(source).values == STACK.transpose(2, 1, 0)).all()


def test_other_orientations_sizes_and_frames_of_reference_are_separate_stacks(tmp_path: Path) -> None:
    uid = generate_uid()
    paths = series(tmp_path / "a", STACK, SeriesInstanceUID=uid)
    paths += series(tmp_path / "b", STACK, SeriesInstanceUID=uid)  # its own frame of reference
    frame = generate_uid()
    paths += series(tmp_path / "c", STACK, SeriesInstanceUID=uid, FrameOfReferenceUID=frame)
    paths += series(
        tmp_path / "d", STACK, SeriesInstanceUID=uid, FrameOfReferenceUID=frame, orientation=(1, 0, 0, 0, 0, -1)
    )
    paths += series(tmp_path / "e", STACK[:, :5], SeriesInstanceUID=uid, FrameOfReferenceUID=frame)
    paths += series(tmp_path / "f", STACK)
    found = sources(*paths)
    assert [len(source.files) for source in found] == [4] * 6
    assert len({source.uid for source in found}) == 6
    assert found == sources(*paths[::-1])


def test_images_at_one_position_are_distinguished_by_their_attributes(tmp_path: Path) -> None:
    uid, frame = generate_uid(), generate_uid()
    both = {"SeriesInstanceUID": uid, "FrameOfReferenceUID": frame, "Modality": "MR", "SOPClassUID": MR}
    first = series(tmp_path / "late", STACK, EchoTime=80.0, **both)
    second = series(tmp_path / "early", STACK + 1, EchoTime=20.0, **both)
    found = sources(*first, *second)
    assert len(found) == 2
    assert len({source.uid for source in found}) == 2
    for source in found:
        assert len({path.parent for path in source.files}) == 1


def test_images_at_one_position_without_attributes_are_distinguished_by_order(tmp_path: Path) -> None:
    both: dict[str, Any] = {"SeriesInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid()}
    paths = series(tmp_path, np.concatenate([STACK, STACK + 1]), places=(0, 2, 4, 6) * 2, **both)
    found = sources(*paths)
    assert [source.files for source in found] == [tuple(paths[:4]), tuple(paths[4:])]


def test_radiographs_of_a_series_are_separate_scans(tmp_path: Path) -> None:
    uid = generate_uid()
    facts = {"SOPClassUID": CR, "Modality": "CR", "SeriesInstanceUID": uid}
    paths = [save(tmp_path / f"{n}", dataset(PIXELS, InstanceNumber=n, **facts)) for n in range(3)]
    found = sources(*paths)
    assert len(found) == 3
    assert [source.uid for source in found] == [source.instances[0] for source in found]


def test_slices_without_a_position_are_stacked_by_their_number(tmp_path: Path) -> None:
    paths = series(tmp_path, STACK, ImageOrientationPatient=None, ImagePositionPatient=None)
    (source,) = sources(*paths[::-1])
    volume = read(source)
    assert (picture(volume, 3) == STACK[3]).all()
    geometry = volume.geometry
    assert (geometry.regular, geometry.orientation, geometry.spacing) == (False, "", (0.75, 0.5, 2.5))


@pytest.mark.parametrize(
    ("places", "regular"),
    [((0, 2.5, 5, 7.5), True), ((0, 2.5, 7.5, 10), False), ((0, 2.501, 4.998, 7.5), True), ((0, 1, 5, 9), False)],
)
def test_gaps_are_no_error_but_make_a_volume_irregular(
    tmp_path: Path, places: tuple[float, ...], regular: bool
) -> None:
    (source,) = sources(*series(tmp_path, STACK, places=places))
    volume = read(source)
    assert volume.geometry.regular is regular
    assert cut(volume.geometry, "acquisition").count == 4
    assert volume.geometry.spacing is not None
    assert volume.geometry.spacing[2] == pytest.approx(4 if places[1] == 1 else 2.5)


def test_a_tilted_gantry_makes_a_volume_irregular(tmp_path: Path) -> None:
    paths = series(tmp_path, STACK)
    for k, path in enumerate(paths):
        header = pydicom.dcmread(path)
        header.ImagePositionPatient = [0, 0.8 * k, 2.5 * k]
        header.save_as(path)
    (source,) = sources(*paths)
    volume = read(source)
    assert not volume.geometry.regular
    assert (volume.geometry.affine @ [0, 0, 3, 1])[:3] == pytest.approx([0, -2.4, 7.5])


def test_files_that_are_not_images_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Lung left, 12.3.")
    (tmp_path / "empty").touch()
    (tmp_path / "data.json").write_text("{}")
    (tmp_path / "tables.gz").write_bytes(b"\x1f\x8b\x08\x00garbage")
    for name in ("notes.txt", "empty", "data.json", "tables.gz", "."):
        assert sniff(tmp_path / name) is None
    for name in ("test-SR.dcm", "liver_1frame.dcm", "rtplan.dcm", "rtstruct.dcm", "rtdose.dcm", "waveform_ecg.dcm"):
        assert sniff(Path(str(get_testdata_file(name)))) is None
    assert sniff(Path(str(get_testdata_file("DICOMDIR")))) is None


# ---- what pixels mean


@pytest.mark.parametrize(
    ("kind", "slope", "intercept", "expected"),
    [
        ("u2", 1, 0, "u2"),
        ("i2", 1, 0, "i2"),
        ("u2", 1, -1024, "i2"),
        ("i2", 1, -1024, "i2"),
        ("u2", 2, 5, "i2"),
        ("u2", 100, 0, "i4"),
        ("u2", -1, 0, "i2"),
        ("u2", 0.5, -3, "f4"),
        ("u1", 1, 0, "u1"),
    ],
)
def test_rescale_is_applied_and_keeps_integers(
    tmp_path: Path, kind: str, slope: float, intercept: float, expected: str
) -> None:
    stored = RNG.integers(0 if "u" in kind else -1000, 250 if kind == "u1" else 4000, (6, 5)).astype(kind)
    path = save(tmp_path / "a.dcm", dataset(stored, RescaleSlope=slope, RescaleIntercept=intercept))
    volume = one(path)
    assert volume.values.dtype == np.dtype(expected)
    assert (picture(volume) == stored.astype(float) * slope + intercept).all()


def test_slices_with_individual_scales_keep_their_values(tmp_path: Path) -> None:
    paths = series(tmp_path, STACK)
    slopes = [(1, -1024), (0.25, 7), (3, 0), (1, 0)]
    for path, (slope, intercept) in zip(paths, slopes, strict=True):
        header = pydicom.dcmread(path)
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
        header.save_as(path)
    (source,) = sources(*paths)
    volume = read(source)
    assert volume.values.dtype == np.float32
    for k, (slope, intercept) in enumerate(slopes):
        assert (picture(volume, k) == STACK[k].astype(float) * slope + intercept).all()


def test_a_slice_with_a_wider_range_widens_the_type_of_the_volume(tmp_path: Path) -> None:
    volume = np.zeros((3, 4, 4), np.uint16)
    volume[2] = 60_000
    paths = series(tmp_path, volume, RescaleSlope=1, RescaleIntercept=-1)
    (source,) = sources(*paths)
    assert [int(read(source).values[0, 0, k]) for k in range(3)] == [-1, -1, 59_999]


def test_a_modality_lut_is_applied(tmp_path: Path) -> None:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [4096, 0, 16], "US"
    item.LUTData = [(3 * n) % 65536 for n in range(4096)]
    header = dataset(PIXELS, ModalityLUTSequence=Items([item]))
    for name in ("LUTDescriptor", "LUTData"):
        item[name].VR = "US"
    volume = one(save(tmp_path / "a.dcm", header))
    assert (picture(volume) == PIXELS * 3.0).all()


def test_bits_above_the_stored_ones_are_ignored(tmp_path: Path) -> None:
    stored = PIXELS | 0x8000  # an old-style overlay
    volume = one(save(tmp_path / "a.dcm", dataset(stored, BitsStored=12, HighBit=11)))
    assert (picture(volume) == PIXELS).all()
    signed = (PIXELS.astype(np.int16) - 2000) & 0x0FFF
    volume = one(save(tmp_path / "b.dcm", dataset(signed, BitsStored=12, HighBit=11)))
    assert (picture(volume) == PIXELS.astype(np.int16) - 2000).all()


def test_monochrome1_is_shown_inverted(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.dcm",
        dataset(PIXELS, PhotometricInterpretation="MONOCHROME1", WindowCenter=2000, WindowWidth=4000),
    )
    volume = one(path)
    assert volume.inverted
    assert (picture(volume) == PIXELS).all()  # the values are unchanged
    shown = to_uint8(picture(volume), choose_window(volume, None), inverted=volume.inverted)
    lightest, darkest = (np.unravel_index(n, PIXELS.shape) for n in (PIXELS.argmax(), PIXELS.argmin()))
    assert shown[lightest] < shown[darkest]


def test_windows_in_the_header_have_names(tmp_path: Path) -> None:
    header = dataset(
        PIXELS,
        WindowCenter=[40, -600, 7],
        WindowWidth=[400, 1500, 0],
        WindowCenterWidthExplanation=["SOFT", "LUNG", "BROKEN"],
        VOILUTFunction="SIGMOID",
    )
    volume = one(save(tmp_path / "a.dcm", header))
    assert dict(volume.presets) == {"SOFT": Window(40, 400, "SIGMOID"), "LUNG": Window(-600, 1500, "SIGMOID")}
    assert volume.window == Window(40, 400, "SIGMOID")
    assert choose_window(volume, "lung") == Window(-600, 1500, "SIGMOID")


def test_a_voi_lut_is_the_window(tmp_path: Path) -> None:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTExplanation = [4096, 0, 8], "NORMAL"
    item.LUTData = [n // 16 for n in range(4096)]
    header = dataset(PIXELS, VOILUTSequence=Items([item]), WindowCenter=1, WindowWidth=2)
    for name in ("LUTDescriptor", "LUTData"):
        item[name].VR = "US"
    volume = one(save(tmp_path / "a.dcm", header))
    window = choose_window(volume, None)
    assert list(volume.presets) == ["NORMAL", "2"]
    assert (to_uint8(picture(volume), window, inverted=False) == PIXELS // 16).all()
    assert (window.center, window.width) == (2048, 4096)


def test_padding_is_recognized(tmp_path: Path) -> None:
    header = dataset(PIXELS.astype(np.int16), PixelPaddingValue=-2000, RescaleIntercept=-24, RescaleSlope=1)
    header["PixelPaddingValue"].VR = "SS"
    assert one(save(tmp_path / "a.dcm", header)).padding == (-2024, -2024)


def test_spacing_is_that_in_the_patient_or_at_the_detector_or_unknown(tmp_path: Path) -> None:
    def spacing(**header: Any) -> tuple[float, ...] | None:
        path = save(tmp_path / "a.dcm", dataset(PIXELS, Modality="DX", **header))
        return one(path).geometry.spacing

    assert spacing(PixelSpacing=[0.2, 0.3], ImagerPixelSpacing=[9, 9]) == (0.3, 0.2, 0.0)
    assert spacing(ImagerPixelSpacing=[0.2, 0.3]) == (0.3, 0.2, 0.0)
    assert spacing(ImagerPixelSpacing=[0.2, 0.2], EstimatedRadiographicMagnificationFactor=2) == (0.1, 0.1, 0.0)
    assert spacing() is None
    assert spacing(PixelSpacing=[0, 0]) is None


# ---- colour


def test_colour_is_8_bit_rgb(tmp_path: Path) -> None:
    stored = RNG.integers(0, 255, (6, 5, 3)).astype(np.uint8)
    volume = one(save(tmp_path / "a.dcm", dataset(stored, SOPClassUID=US, Modality="US")))
    assert (picture(volume) == stored).all()
    deep = one(save(tmp_path / "b.dcm", dataset(stored.astype(np.uint16) << 8, SOPClassUID=US, Modality="US")))
    assert (picture(deep) == stored).all()


@pytest.mark.parametrize(
    "name", ["examples_palette.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle_16bit.dcm", "examples_jpeg2k.dcm"]
)
def test_every_colour_space_becomes_rgb(name: str) -> None:
    volume = one(Path(str(get_testdata_file(name))))
    assert volume.values.dtype == np.uint8
    assert volume.values.shape[3] == 3
    header = pydicom.dcmread(str(get_testdata_file(name)))
    if name == "examples_palette.dcm":
        table = np.frombuffer(header.RedPaletteColorLookupTableData, "<u2") >> 8
        assert (picture(volume)[..., 0] == table[header.pixel_array]).all()
    elif name == "SC_rgb_rle_16bit.dcm":
        assert (picture(volume) == header.pixel_array >> 8).all()
    else:
        assert (picture(volume) == header.pixel_array).all()


# ---- transfer syntaxes


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2"])
def test_lossless_compression_changes_nothing(tmp_path: Path, syntax: str, kind: str) -> None:
    stored = RNG.integers(0 if "u" in kind else -2000, 250 if kind == "u1" else 4000, (64, 70)).astype(kind)
    header = dataset(stored)
    header.compress(syntax)
    assert (picture(one(save(tmp_path / "a.dcm", header))) == stored).all()


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_expb.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_a_scan_is_the_same_in_every_transfer_syntax(name: str) -> None:
    plain = one(Path(str(get_testdata_file("MR_small.dcm"))))
    packed = one(Path(str(get_testdata_file(name))))
    assert (packed.values == plain.values).all()
    assert packed.values.dtype == plain.values.dtype
    assert packed.geometry == plain.geometry
    assert packed.window == plain.window == Window(600, 1600)


@pytest.mark.parametrize(
    "name",
    [
        "JPEG2000.dcm",
        "JPEGLSNearLossless_16.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "image_dfl.dcm",
        "693_J2KI.dcm",
        "examples_ybr_color.dcm",
    ],
)
def test_the_files_of_pydicom_are_read_as_pydicom_reads_them(name: str) -> None:
    path = str(get_testdata_file(name))
    header = pydicom.dcmread(path)
    volume = one(Path(path))
    expected = header.pixel_array
    expected = expected if len(volume.geometry.shape) == 3 and "NumberOfFrames" in header else expected[None]
    expected = expected.reshape(volume.geometry.shape[2], header.Rows, header.Columns, -1)
    if header.SamplesPerPixel == 1:
        expected = apply_modality_lut(expected[..., 0], header)
    assert (picture(volume) == expected[0]).all()


def test_fields_have_the_values_that_pydicom_gives_them() -> None:
    asked = 0
    for path in sorted(Path(str(get_testdata_file("MR_small.dcm"))).parent.glob("*.dcm")):
        try:
            ours, theirs = dicom.load(path), dicom.load(path)
        except UnreadableFile:
            continue
        for field in [field for field in theirs if field.VR in ("UI", "CS", "TM", "US", "DS") and field.keyword]:
            parts = [] if field.is_empty else list(field.value) if field.VM > 1 else [field.value]
            keyword, asked = field.keyword, asked + 1
            assert fields.text(ours, keyword) == "\\".join(map(str, parts)).strip("\0 "), (path.name, keyword)
            if field.VR in ("US", "DS"):
                assert fields.numbers(ours, keyword, len(parts)) == tuple(map(float, parts)), (
                    path.name,
                    keyword,
                )
    assert asked > 500


def test_12_bit_jpeg_is_read() -> None:
    volume = one(Path(str(get_testdata_file("JPGExtended.dcm"))))
    assert volume.values.dtype == np.uint16
    assert (picture(volume)[420, 140], picture(volume)[230, 120]) == (244, 95)  # as in pydicom's own tests


# ---- multi-frame


def test_an_enhanced_file_is_a_volume_ordered_by_position(tmp_path: Path) -> None:
    places = [[0, 0, 3.0 * n] for n in (2, 0, 3, 1)]
    path = enhanced(tmp_path / "a.dcm", STACK, places, rescale=[(1, 0), (2, 1), (1, 5), (1, 0)], window=(40, 400))
    volume = one(path)
    assert volume.geometry.regular
    assert volume.geometry.spacing == (0.75, 0.5, 3.0)
    assert volume.window == Window(40, 400)
    for k, n, slope, intercept in ((0, 1, 2, 1), (1, 3, 1, 0), (2, 0, 1, 0), (3, 2, 1, 5)):
        assert (picture(volume, k) == STACK[n] * slope + intercept).all()


def test_a_multi_frame_file_over_time_needs_a_time_index(tmp_path: Path) -> None:
    frames = RNG.integers(0, 4000, (6, 6, 5)).astype(np.uint16)
    places = [[0, 0, 3.0 * n] for n in (0, 0, 1, 1, 2, 2)]
    (source,) = sources(enhanced(tmp_path / "a.dcm", frames, places, SOPClassUID=ENHANCED_MR, Modality="MR"))
    with pytest.raises(UnreadableFile, match=r"has 2 volumes over time; choose one with --time 0 \.\. --time 1"):
        read(source)
    with pytest.raises(UnreadableFile, match=r"2 volumes over time, 0 to 1; there is no volume 2"):
        read(source, time=2)
    for time in (0, 1):
        volume = read(source, time=time)
        assert volume.geometry == read_geometry(source, time=time)
        assert (volume.values == frames[time::2].transpose(2, 1, 0)).all()


def test_a_compressed_enhanced_file_is_read(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "a.dcm", STACK, [[0, 0, 3.0 * n] for n in range(4)])
    header = pydicom.dcmread(path)
    header.compress(RLELossless, generate_instance_uid=False)
    volume = one(save(tmp_path / "b.dcm", header))
    assert (volume.values == STACK.transpose(2, 1, 0)).all()


def test_a_cine_loop_at_one_position_is_a_stack_of_its_frames(tmp_path: Path) -> None:
    frames = RNG.integers(0, 255, (7, 6, 5, 3)).astype(np.uint8)
    path = save(
        tmp_path / "a.dcm", dataset(frames, SOPClassUID=US_FRAMES, Modality="US", NumberOfFrames=7, InstanceNumber=3)
    )
    volume = one(path)
    assert volume.values.shape == (5, 6, 7, 3)
    assert not volume.geometry.regular
    for k in range(7):
        assert (picture(volume, k) == frames[k]).all()


# ---- the header


def test_the_header_has_what_an_import_needs(tmp_path: Path) -> None:
    header = dataset(PIXELS, PatientName="Potter^Harry", InstitutionName="Mungo", BurnedInAnnotation="YES")
    path = save(tmp_path / "a.dcm", header)
    (source,) = sources(path)
    found = read_header(source)
    assert source.burnt_in == found.burnt_in == "YES"
    assert (found.patient_id, found.modality, found.institution) == ("4711", "CT", "Mungo")
    assert found.study == str(header.StudyInstanceUID)
    assert "Potter" not in repr(found)


def test_burnt_in_text_in_one_slice_marks_the_scan(tmp_path: Path) -> None:
    paths = series(tmp_path, STACK, BurnedInAnnotation="NO")
    header = pydicom.dcmread(paths[2])
    header.BurnedInAnnotation = "YES"
    header.save_as(paths[2])
    (source,) = sources(*paths)
    assert read_header(source).burnt_in == "YES"
