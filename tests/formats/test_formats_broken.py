"""Broken, huge and hostile files: one clear message, never a crash, gigabytes of memory, or a patient's name."""

from __future__ import annotations

import gzip
import logging
import pickle
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from dicom_files import ENHANCED_MR, dataset, enhanced, save, series
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from backend.formats import (
    UnreadableFile,
    choose_window,
    cut,
    dicom,
    group,
    read,
    read_geometry,
    read_header,
    sniff,
    to_uint8,
)
from backend.label_studio.raster import decode_brush

RNG = np.random.default_rng(8)
PIXELS = RNG.integers(0, 4000, (64, 70)).astype(np.uint16)


def everything(path: Path) -> None:
    """Everything that we do with a file."""
    fact = sniff(path)
    if fact is None:
        return
    for source in group([fact]):
        read_header(source)
        geometry = read_geometry(source)
        volume = read(source)
        assert volume.geometry == geometry
        assert volume.values.shape[:3] == geometry.shape
        shown = cut(geometry, "acquisition")
        to_uint8(shown.take(volume.values, shown.count - 1), choose_window(volume, None), inverted=volume.inverted)


def plain(path: Path) -> Path:
    return save(path, dataset(PIXELS, PatientName="Potter^Harry", WindowCenter=40, WindowWidth=400))


def packed(path: Path) -> Path:
    found = dataset(PIXELS, PatientName="Potter^Harry")
    found.compress(RLELossless)
    return save(path, found)


def j2k(path: Path) -> Path:
    found = dataset(PIXELS, PatientName="Potter^Harry")
    found.compress(JPEG2000Lossless)
    return save(path, found)


def many(path: Path) -> Path:
    return enhanced(
        path, np.stack([PIXELS] * 3), [[0, 0, n] for n in range(3)], SOPClassUID=ENHANCED_MR, PatientName="Potter^Harry"
    )


def nifti(path: Path) -> Path:
    image = nib.Nifti1Image(PIXELS[:, :, None].repeat(3, 2), np.eye(4))
    image.header["descrip"] = b"Potter^Harry"
    path.write_bytes(image.to_bytes())
    return path


def nifti_gz(path: Path) -> Path:
    path.write_bytes(gzip.compress(nifti(path).read_bytes()))
    return path


def png(path: Path) -> Path:
    Image.fromarray(PIXELS).save(path, format="PNG")
    return path


def jpeg(path: Path) -> Path:
    Image.fromarray((PIXELS >> 4).astype(np.uint8)).save(path, format="JPEG")
    return path


def tiff(path: Path) -> Path:
    Image.fromarray(PIXELS).save(path, format="TIFF", save_all=True, append_images=[Image.fromarray(PIXELS)])
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "plain.dcm": plain, "rle.dcm": packed, "j2k.dcm": j2k, "many.dcm": many, "a.nii": nifti, "a.nii.gz": nifti_gz,
    "a.png": png, "a.jpg": jpeg, "a.tif": tiff,
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_a_truncated_file_is_reported_with_its_name(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path / name)
    everything(path)
    whole = path.read_bytes()
    for keep in (0, 100, 140, 300, len(whole) // 3, len(whole) // 2, len(whole) - 60):
        path.write_bytes(whole[:keep])
        with pytest.raises(UnreadableFile) as caught:
            everything(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "Potter" not in caught.value.what


@pytest.mark.parametrize("name", MAKERS)
def test_any_damage_gives_an_error_message_or_another_picture(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path / name)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(sum(name.encode()))
    said: list[str] = []
    for n in range(120):
        damaged = whole.copy()
        if n % 3 == 2:  # overwrite a range
            at = int(rng.integers(len(whole)))
            damaged[at : at + 40] = rng.integers(0, 256, len(damaged[at : at + 40]))
        else:  # a few bytes, mostly of the header
            places = rng.integers(0, min(len(whole), 1500), int(rng.integers(1, 9)))
            damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            everything(path)
        except UnreadableFile as error:
            said.append(error.what)
    assert len(said) > 3
    assert "Potter" not in " ".join(said)


def test_patient_names_are_in_no_message_warning_or_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    found = dataset(PIXELS, PatientName="Potter^Harry")
    path = save(tmp_path / "a.dcm", found)
    raw = path.read_bytes().replace(b"19500101", b"PotterHa")  # where a date belongs
    raw = raw.replace(
        struct.pack("<HH2sH", 0x0020, 0x0013, b"IS", 2) + b"1 ", struct.pack("<HH2sH", 0x0020, 0x0013, b"IS", 2) + b"PH"
    )
    assert b"PotterHa" in raw
    path.write_bytes(raw)
    with caplog.at_level(logging.DEBUG):
        everything(path)
        path.write_bytes(raw[:-50])
        with pytest.raises(UnreadableFile) as caught:
            everything(path)
    heard = caplog.text + "".join(capfd.readouterr()) + caught.value.what
    assert "Potter" not in heard


def test_an_error_from_another_process_arrives_completely(tmp_path: Path) -> None:
    error = pickle.loads(pickle.dumps(UnreadableFile(tmp_path / "Potter.dcm", "is broken; copy it again")))
    assert isinstance(error, UnreadableFile)
    assert str(error) == f"{tmp_path / 'Potter.dcm'}: is broken; copy it again"
    assert (error.path, error.what) == (tmp_path / "Potter.dcm", "is broken; copy it again")


def test_a_file_named_like_an_image_that_is_not_one_is_reported(tmp_path: Path) -> None:
    for name in ("a.png", "a.nii.gz", "a.tif"):
        (tmp_path / name).write_text("this is text")
        with pytest.raises(UnreadableFile, match="is not an image, although its name ends in"):
            sniff(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UnreadableFile, match="is empty"):
            sniff(tmp_path / name)
    with pytest.raises(UnreadableFile, match="does not exist"):
        sniff(tmp_path / "gone.dcm")


def test_a_file_that_disappears_or_changes_meanwhile_is_reported(tmp_path: Path) -> None:
    paths = series(tmp_path, np.zeros((3, 6, 5), np.int16))
    (source,) = group(fact for fact in map(sniff, paths) if fact)
    header = pydicom.dcmread(paths[1])
    header.Rows, header.PixelData = 5, bytes(50)
    header.save_as(paths[1])
    with pytest.raises(UnreadableFile, match=r"0001\.dcm: has another size than the other slices"):
        read(source)
    paths[1].unlink()
    with pytest.raises(UnreadableFile, match=r"0001\.dcm: cannot be read: No such file"):
        read(source)


# ---- bombs: a few bytes that claim gigabytes


@pytest.fixture
def little_memory() -> None:
    """Peak memory must not grow by more than a gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000


def test_a_compressed_frame_that_is_larger_than_its_header_says_is_refused(tmp_path: Path, little_memory: None) -> None:
    stream = bytearray(pydicom.encaps.get_frame(pydicom.dcmread(str(get_testdata_file("JPEG2000.dcm"))).PixelData, 0))
    at = stream.find(b"\xff\x4f\xff\x51")
    stream[at + 8 : at + 16] = struct.pack(">II", 200_000, 200_000)
    found = dataset(PIXELS)
    found.file_meta.TransferSyntaxUID = JPEG2000Lossless
    found.PixelData = encapsulate([bytes(stream)])
    found["PixelData"].is_undefined_length = True
    path = save(tmp_path / "a.dcm", found)
    with pytest.raises(UnreadableFile, match="compressed pixels of 200000 x 200000, but its header declares 70 x 64"):
        everything(path)
    Image.new("L", (9000, 9000)).save(tmp_path / "a.jpg")
    found = dataset(PIXELS.astype(np.uint8))
    found.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    found.PixelData = encapsulate([(tmp_path / "a.jpg").read_bytes()])
    found["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadableFile, match="compressed pixels of 9000 x 9000"):
        everything(save(tmp_path / "b.dcm", found))


def test_a_header_that_claims_too_many_voxels_is_refused(tmp_path: Path, little_memory: None) -> None:
    found = dataset(PIXELS, Rows=60_000, Columns=60_000)
    with pytest.raises(UnreadableFile, match=r"is too large: 60000 x 60000 x 1 = 3,600,000,000 voxels"):
        everything(save(tmp_path / "a.dcm", found))
    found = dataset(PIXELS, NumberOfFrames=2_000_000_000)
    with pytest.raises(UnreadableFile, match="declares 2,000,000,000 frames"):
        everything(save(tmp_path / "b.dcm", found))
    image = nib.Nifti2Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    raw = bytearray(image.to_bytes())
    raw[24:48] = struct.pack("<3q", 40_000, 40_000, 40_000)
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(UnreadableFile, match=r"is too large: 40000 x 40000 x 40000 = 64,000,000,000,000 voxels"):
        everything(tmp_path / "a.nii")
    raw[24:48] = struct.pack("<3q", 1000, 1000, 1000)
    (tmp_path / "b.nii").write_bytes(raw)
    with pytest.raises(UnreadableFile, match="is truncated"):
        everything(tmp_path / "b.nii")
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(UnreadableFile, match="is truncated"):
        everything(tmp_path / "c.nii.gz")


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, little_memory: None) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(60_001))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    with pytest.raises(UnreadableFile, match=r"too large|declares too many pixels"):
        everything(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["u1", "f4"])
def test_a_tiff_whose_pages_form_a_circle_is_refused(tmp_path: Path, kind: str, little_memory: None) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(3):
            writer.write(np.zeros((4, 4), kind), contiguous=False)
    with tifffile.TiffFile(path) as found:
        offsets = [page.offset for page in found.pages]
    raw = bytearray(path.read_bytes())
    (tags,) = struct.unpack_from("<H", raw, offsets[2])
    for back in offsets:
        struct.pack_into("<I", raw, offsets[2] + 2 + 12 * tags, back)
        path.write_bytes(raw)
        with pytest.raises(UnreadableFile, match="in a circle"):
            everything(path)


@pytest.mark.parametrize("zeros", [b"\xff" * 20, b""])
def test_run_lengths_of_a_billion_pixels_are_refused_without_memory(zeros: bytes, little_memory: None) -> None:
    for claimed in (4_000_000_000, 64 * 64 * 4):
        with pytest.raises(ValueError):  # noqa: PT011
            decode_brush(struct.pack(">II", claimed, 0xFFFFFFFF) + zeros, 64, 64)


def test_a_packed_volume_that_is_longer_than_its_header_says_costs_no_memory(
    tmp_path: Path, little_memory: None
) -> None:
    path = tmp_path / "a.nii.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        file.write(packer.compress(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()))
        for _ in range(64):
            file.write(packer.compress(bytes(1 << 22)))
        file.write(packer.flush())
    everything(path)
    assert path.stat().st_size < 300_000


def test_run_lengths_of_dicom_that_are_longer_or_more_frames_than_there_are_give_an_error_message(
    tmp_path: Path, little_memory: None
) -> None:
    found = dataset(PIXELS)
    found.file_meta.TransferSyntaxUID = RLELossless
    segments = struct.pack("<16I", 2, 64, 70, *([0] * 13)) + bytes([129, 0]) * 200_000
    found.PixelData = encapsulate([segments])
    found["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadableFile):
        everything(save(tmp_path / "a.dcm", found))
    found.NumberOfFrames = 1_000_000_000
    with pytest.raises(UnreadableFile, match="declares 1,000,000,000 frames"):
        everything(save(tmp_path / "b.dcm", found))


def test_an_endless_deflated_file_is_refused(
    tmp_path: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom, "MAX_INFLATED", 1 << 26)
    path = tmp_path / "a.dcm"
    whole = Path(str(get_testdata_file("image_dfl.dcm"))).read_bytes()
    start = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    with path.open("wb") as file:
        file.write(whole[:start])
        file.write(packer.compress(zlib.decompress(whole[start:], -zlib.MAX_WBITS)))
        zeros = bytes(1 << 24)
        for _ in range(5):
            file.write(packer.compress(zeros))
        file.write(packer.flush())
    with pytest.raises(UnreadableFile, match="inflates to more than 64 MiB"):
        everything(path)


def test_endlessly_nested_sequences_give_an_error_message(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.dcm")
    whole = path.read_bytes()
    at = whole.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    nest = struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    path.write_bytes(whole[:at] + nest * 5000 + whole[at:])
    with pytest.raises(UnreadableFile):
        everything(path)
