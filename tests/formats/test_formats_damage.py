"""DICOM files that are damaged in the usual ways, and random damage to small files of every kind."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dataset, save
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from backend.formats import UnreadableFile, Volume, choose_window, cut, group, read, read_geometry, sniff, to_uint8

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 4000, (24, 30)).astype(np.uint16)


def one(path: Path) -> Volume:
    fact = sniff(path)
    assert fact is not None
    (found,) = group([fact])
    return read(found)


def test_the_damaged_cases_are_read(shared: Path) -> None:
    for name in ("no_sequence_delimiter/rle.dcm", "no_sequence_delimiter/rle_zeros.dcm", "stray_item_tag/us.dcm"):
        assert one(shared / "cases" / name).values.shape == (40, 32, 1), name


@pytest.mark.parametrize("tail", [b"", bytes(2), bytes(64)])
def test_compressed_pixels_need_no_delimiter_but_all_their_fragments(tmp_path: Path, tail: bytes) -> None:
    found = dataset(PIXELS)
    found.compress(RLELossless)
    path = save(tmp_path / "a.dcm", found)
    whole = path.read_bytes()
    end = whole.rindex(b"\xfe\xff\xdd\xe0")
    path.write_bytes(whole[:end] + tail)
    assert (one(path).values[:, :, 0].T == PIXELS).all()
    path.write_bytes(whole[: end - 30])
    with pytest.raises(UnreadableFile):
        one(path)


def test_an_item_tag_among_the_elements_is_skipped(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", dataset(PIXELS))
    whole = path.read_bytes()
    for before in (b"\x10\0\x10\0PN", b"\x28\0\x10\0US", b"\xe0\x7f\x10\0OW"):
        at = whole.index(before)
        for length in (0, 8):
            stray = b"\xfe\xff\0\xe0" + length.to_bytes(4, "little") + bytes(length)
            path.write_bytes(whole[:at] + stray + whole[at:])
            assert (one(path).values[:, :, 0].T == PIXELS).all(), (before, length)


@pytest.mark.parametrize("number", [53, 55])
@pytest.mark.parametrize("colour", [False, True])
def test_retired_jpeg_syntaxes_are_read_as_gdcm_reads_them(tmp_path: Path, number: int, colour: bool) -> None:
    smooth = np.add.outer(np.arange(24), np.arange(30)).astype(np.uint8) * 4
    picture = np.stack([smooth, 255 - smooth, smooth // 2], axis=-1) if colour else smooth
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", progressive=True, quality=95)
    more: dict[str, Any] = {"PhotometricInterpretation": "YBR_FULL_422"} if colour else {}
    found = dataset(picture, **more)
    found.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.4.{number}"
    found.PixelData = encapsulate([file.getvalue()])
    found["PixelData"].is_undefined_length = True
    read_back = one(save(tmp_path / "a.dcm", found)).values[:, :, 0].swapaxes(0, 1)
    assert np.abs(read_back.astype(int) - picture).mean() < 4


def damages(whole: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    """The file cut at 20 places, and 20 times with a byte flipped."""
    for at in rng.integers(0, len(whole), 20):
        yield whole[:at]
    for at in rng.integers(0, len(whole), 20):
        yield whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :]


def test_every_case_survives_cuts_and_flipped_bytes(shared: Path, tmp_path: Path) -> None:
    rng, said = np.random.default_rng(20), []
    files = sorted(path for path in (shared / "cases").rglob("*") if path.is_file() and path.suffix != ".md")
    one_each = {path.parent: path for path in files if path.parent.name != "pictures"}
    for original in (*one_each.values(), *(path for path in files if path.parent.name == "pictures")):
        path = tmp_path / original.name
        for damaged in damages(original.read_bytes(), rng):
            path.write_bytes(damaged)
            try:
                fact = sniff(path)
                for source in group([fact] if fact else []):
                    volume = read(source)
                    assert volume.geometry == read_geometry(source)
                    shown = cut(volume.geometry, "acquisition")
                    to_uint8(shown.take(volume.values, 0), choose_window(volume, None), inverted=volume.inverted)
            except UnreadableFile as error:
                said.append((error.path == path, len(error.what) > 20))
    assert len(said) > 100
    assert set(said) == {(True, True)}
