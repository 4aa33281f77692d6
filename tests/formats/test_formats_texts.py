"""No message about a file quotes it: names are planted in every element, tag and chunk of files broken in many ways.

What libraries raise, warn, log or print must not reach a message, a log or stderr.
"""

from __future__ import annotations

import io
import logging
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
from made_scans import pixels, slice_dataset
from PIL import Image
from planted import WORD, Planter, dicom, hunt, nifti, pictures
from pydicom import dcmread
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from backend.errors import ScanqueueError
from backend.formats import choose_window, cut, group, open_mask, read, read_header, sniff, to_uint8
from backend.formats.pixels import decode_image
from backend.intake.slicing import _problem

LONG = ("OB", "OW", "OF", "OD", "OL", "OV", "SQ", "UN", "UT", "UC", "UR")  # VRs with a length of four bytes


def heard(path: Path, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Every message about a file that is not for a terminal, of whatever reads it."""
    said: list[str] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            said.append(_problem(path, error).what)

    def whole() -> None:
        fact = sniff(path)
        for source in group([fact] if fact is not None else []):
            read_header(source)
            volume = read(source)
            attempt(partial(choose_window, volume, "no such window"))
            to_uint8(cut(volume.geometry, "acquisition").take(volume.values, 0), choose_window(volume, None))

    listener, root = Listener(), logging.getLogger()
    root.addHandler(listener)
    try:
        attempt(whole)
        attempt(lambda: open_mask(path))
        attempt(lambda: decode_image(path.read_bytes()))
    finally:
        root.removeHandler(listener)
    return [*said, *capfd.readouterr(), *listener.said]


class Listener(logging.Handler):
    """Hears what any library logs, as the log of a server does."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


def broken(data: bytes, seed: int, count: int = 25) -> Iterator[bytes]:
    """Truncated at many lengths, and with bytes overwritten, exchanged and removed."""
    chance = random.Random(seed)
    for n in range(count):
        yield data[: len(data) * n // count]
        changed = bytearray(data)
        for _ in range(chance.choice((1, 5, 50))):
            changed[chance.randrange(len(data))] = chance.randrange(256)
        yield bytes(changed)
        at, size = chance.randrange(len(data)), chance.randrange(1, 40)
        yield data[:at] + data[at + size :]


def element(tag: int, vr: str, value: bytes) -> bytes:
    """An element as explicit VR, little endian, however unsuitable its value is."""
    value += b" " * (len(value) % 2)
    length = struct.pack("<HI", 0, len(value)) if vr in LONG else struct.pack("<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode() + length + value


def with_element(whole: Dataset, tag: int, vr: str, value: bytes) -> bytes:
    """The file with one element replaced."""
    out = io.BytesIO()
    meta = io.BytesIO()
    kept = Dataset()
    kept.update({t: e for t, e in whole.items() if t != tag})
    before, after = Dataset(), Dataset()
    for t, e in kept.items():
        (before if t < tag else after)[t] = e
    write_file_meta_info(meta, whole.file_meta)
    out.write(b"\0" * 128 + b"DICM" + meta.getvalue())
    for part in (before, None, after):
        if part is None:
            out.write(element(tag, vr, value))
            continue
        file = DicomBytesIO()
        file.is_little_endian, file.is_implicit_VR = True, False
        write_dataset(file, part)
        out.write(file.getvalue())
    return out.getvalue()


@pytest.fixture(autouse=True)
def _as_in_the_service(recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Warnings of these libraries are silenced when `backend.formats` is imported, which pytest undoes."""
    yield
    heard = [warning for warning in recwarn if not re.search(r"/(pydicom|nibabel|PIL)/", warning.filename)]
    assert hunt([str(warning.message) for warning in heard]) == []
    assert hunt([caplog.text]) == []


@pytest.mark.parametrize("compressed", [False, True])
def test_every_element_may_hold_a_name_in_place_of_its_value(
    compressed: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Those that the pixels, the position or the display depend on one by one; a decoder's text may quote each."""
    made = slice_dataset("texts", 1, pixels(1, 16, 16))
    made.WindowCenterWidthExplanation, made.RescaleSlope, made.RescaleIntercept = "LUNG", 1, 0
    if compressed:
        made.compress(RLELossless)
    tags = {tag for tag in DicomDictionary if tag >> 16 == 0x0028} | {e.tag for e in made if e.tag != 0x7FE00010}
    tags |= {0x00080005, 0x52009229, 0x52009230, 0x00409096, 0x00081140, 0x7FE00008, 0x7FE00009, 0x7FE00001}
    path, wrong = tmp_path / "a.dcm", 0
    for number, tag in enumerate(sorted(map(int, tags))):
        own = DicomDictionary.get(tag, ("LO",))[0].partition(" ")[0]
        for vr in {own, "LO"} if number % 3 == 0 or own in ("US", "SS", "CS", "IS", "DS", "UI") else {own}:
            value = f"{WORD}{number:05d}^{WORD.upper()}".encode()
            path.write_bytes(with_element(made, tag, vr, value))
            said = heard(path, capfd)
            wrong += any("cannot be decoded" in text or "damaged" in text for text in said)
            assert hunt(said) == [], hex(tag)
    assert wrong > 10


def test_every_element_of_the_file_meta_information_may_hold_a_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = slice_dataset("texts", 1, pixels(1, 16, 16))
    path = tmp_path / "a.dcm"
    body = with_element(made, 0x00100010, "PN", b"")
    start = body.index(b"\x08\0", 200)
    for tag in (t for t in DicomDictionary if t >> 16 == 2):
        meta = b"".join(
            element(t, "UI" if t != tag else vr, value)
            for t, vr, value in sorted(
                {
                    0x00020002: (0x00020002, "UI", made.SOPClassUID.encode()),
                    0x00020010: (0x00020010, "UI", ExplicitVRLittleEndian.encode()),
                    tag: (tag, DicomDictionary[tag][0], f"{WORD}00001".encode()),
                }.values()
            )
        )
        path.write_bytes(b"\0" * 128 + b"DICM" + meta + body[start:])
        assert hunt(heard(path, capfd)) == [], hex(tag)


def test_a_file_with_names_everywhere_is_broken_in_many_ways(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All VRs, private elements, sequences, preamble and file meta information."""
    path = tmp_path / "a.dcm"
    dicom(path, 1, Planter())
    for keyword, value in (("PhotometricInterpretation", f"{WORD.upper()}1"), ("WindowCenterWidthExplanation", WORD)):
        found = dcmread(path)
        setattr(found, keyword, value)
        found.save_as(tmp_path / f"{keyword}.dcm")
    files = {file.name: file.read_bytes() for file in tmp_path.glob("*.dcm")}
    assert all(WORD.lower().encode() in data.lower() for data in files.values())
    said = []
    for name, data in files.items():
        path.write_bytes(data)
        said += heard(path, capfd)
        for changed in broken(data, len(name)):
            path.write_bytes(changed)
            said += heard(path, capfd)
    assert hunt(said) == []
    assert any("PhotometricInterpretation" in text for text in said)  # the element is named, its value is not
    assert any("whose names are shown in a terminal" in text for text in said)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_volume_with_names_everywhere_is_broken_in_many_ways(
    suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a{suffix}"
    nifti(tmp_path / "a.nii.gz", Planter())
    if suffix == ".nii":
        path.write_bytes(nibabel.Nifti1Image.from_filename(tmp_path / "a.nii.gz").to_bytes())
    whole = path.read_bytes()
    said = []
    for changed in broken(whole, 7, 40):
        path.write_bytes(changed)
        said += heard(path, capfd)
    if suffix == ".nii":
        for at in range(0, 348, 4):  # every field of the header
            path.write_bytes(whole[:at] + WORD.encode() + whole[at + 4 :])
            said += heard(path, capfd)
    assert hunt(said) == []
    assert len(set(said)) > 3


def test_pictures_with_names_everywhere_are_broken_in_many_ways(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "made", Planter())
    said = []
    for file in sorted((tmp_path / "made").iterdir()):
        path = tmp_path / f"a{file.suffix}"
        whole = file.read_bytes()
        assert WORD.lower().encode() in whole.lower() or WORD.encode("utf-16-le") in whole
        for changed in broken(whole, len(whole), 30):
            path.write_bytes(changed)
            said += heard(path, capfd)
    assert hunt(said) == []
    assert len(set(said)) > 5


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_chunks_and_tags_may_hold_a_name_in_place_of_a_number(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(out, "PNG")
    png = out.getvalue()
    said, word = [], f"{WORD}00001".encode()
    for kind in (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"pHYs", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"Qzxj"):
        (tmp_path / "a.png").write_bytes(png[:33] + chunk(kind, word * 3) + png[33:])
        said += heard(tmp_path / "a.png", capfd)
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(out, "TIFF")
    tiff = out.getvalue()
    (at,) = struct.unpack("<I", tiff[4:8])
    (count,) = struct.unpack("<H", tiff[at : at + 2])
    for n in range(count):  # each tag becomes a text at the end of the file
        entry = at + 2 + 12 * n
        changed = (
            tiff[: entry + 2] + struct.pack("<HII", 2, len(word) + 1, len(tiff)) + tiff[entry + 12 :] + word + b"\0"
        )
        (tmp_path / "a.tif").write_bytes(changed)
        said += heard(tmp_path / "a.tif", capfd)
    for start in (
        word,
        b"\x89PNG\r\n\x1a\n" + word,
        b"II*\0" + word,
        b"\xff\xd8\xff" + word,
        b"P5 " + word,
        b"DICM" + word,
    ):
        for suffix in (".png", ".tif", ".dcm", ".nii", ".nrrd", ".mha"):
            (tmp_path / f"b{suffix}").write_bytes(start + word * 40)
            said += heard(tmp_path / f"b{suffix}", capfd)
    assert hunt(said) == []


@pytest.mark.parametrize("kind", ["nrrd", "mha"])
def test_every_line_of_a_text_header_may_hold_a_name(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    headers = {
        "nrrd": "NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 2\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        "space origin: (0,0,0)\n\n",
        "mha": "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = 4 4 2\n"
        "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n",
    }
    lines, path, said = headers[kind].split("\n"), tmp_path / f"a.{kind}", []
    mark = ": " if kind == "nrrd" else " = "
    for n, line in enumerate(lines):
        key, found, value = line.partition(mark)
        for new in (f"{key}{found}{WORD}00001", f"{key}{found}{value} {WORD}00002", f"{WORD}00003{found}{value}"):
            path.write_bytes("\n".join([*lines[:n], new, *lines[n + 1 :]]).encode() + bytes(32))
            said += heard(path, capfd)
    assert hunt(said) == []
    assert len(set(said)) > 3


def test_a_scanqueue_error_for_the_terminal_keeps_its_short_text(tmp_path: Path) -> None:
    error = ScanqueueError("as it is")
    assert _problem(tmp_path, error).what == "as it is"
