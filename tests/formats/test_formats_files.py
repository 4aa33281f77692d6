"""Reading NIfTI and picture files: values, windows, time, pages, orientation."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from backend.formats import Source, UnreadableFile, Volume, Window, cut, group, read, read_geometry, sniff

RNG = np.random.default_rng(4)
AFFINE = np.diag([-1.0, -1.5, 3.0, 1.0])


def source(path: Path) -> Source:
    fact = sniff(path)
    assert fact is not None
    (found,) = group([fact, fact])
    assert found.uid == ""
    return found


def one(path: Path, *, time: int | None = None) -> Volume:
    volume = read(source(path), time=time)
    assert read_geometry(source(path), time=time) == volume.geometry
    return volume


def picture(volume: Volume, n: int = 0) -> np.ndarray[Any, Any]:
    return cut(volume.geometry, "acquisition").take(volume.values, n)


# ---- NIfTI


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", ">i2", "i4", "u4", "i8", "f4", ">f4", "f8"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr", "nameless"])
def test_values_of_every_type_are_kept(tmp_path: Path, kind: str, name: str) -> None:
    values = RNG.integers(0, 100, (4, 5, 6)).astype(kind)
    image = (nib.Nifti1Pair if name == "a.hdr" else nib.Nifti1Image)(values, AFFINE, dtype=values.dtype)
    image.header.set_data_dtype(values.dtype)
    if name == "nameless":
        (tmp_path / name).write_bytes(gzip.compress(image.to_bytes()))
        (tmp_path / name).rename(tmp_path / "b.nii.gz")
        name = "b.nii.gz"
    else:
        nib.save(image, tmp_path / name)
    volume = one(tmp_path / name)
    assert (volume.values == values).all()
    assert volume.values.dtype == (np.float32 if "f" in kind else values.dtype.newbyteorder("="))
    assert volume.geometry.spacing == (1.0, 1.5, 3.0)
    if name == "a.hdr":
        assert source(tmp_path / name).files == (tmp_path / "a.hdr", tmp_path / "a.img")
        assert sniff(tmp_path / "a.img") is None


def test_nifti2_is_read(tmp_path: Path) -> None:
    values = RNG.integers(0, 100, (4, 5, 6)).astype(np.int16)
    nib.save(nib.Nifti2Image(values, AFFINE), tmp_path / "a.nii.gz")
    assert (one(tmp_path / "a.nii.gz").values == values).all()


def test_a_scale_is_applied_in_32_bits(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RNG.integers(0, 100, (4, 5, 6)).astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii")
    volume = one(tmp_path / "a.nii")
    assert volume.values.dtype == np.float32
    assert (volume.values == nib.load(tmp_path / "a.nii").get_fdata()).all()


def test_the_time_index_selects_a_volume(tmp_path: Path) -> None:
    values = RNG.integers(0, 100, (4, 5, 6, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "a.nii.gz")
    found = source(tmp_path / "a.nii.gz")
    assert found.volumes == 3
    with pytest.raises(UnreadableFile, match=r"a\.nii\.gz: has 3 volumes over time; choose one with --time 0 \.\."):
        read(found)
    with pytest.raises(UnreadableFile, match="there is no volume 3"):
        read_geometry(found, time=3)
    for time in range(3):
        assert (one(tmp_path / "a.nii.gz", time=time).values == values[..., time]).all()
    nib.save(nib.Nifti1Image(values[..., :1], AFFINE), tmp_path / "b.nii")
    assert (one(tmp_path / "b.nii").values == values[..., 0]).all()
    assert (one(tmp_path / "b.nii", time=0).values == values[..., 0]).all()
    nib.save(nib.Nifti1Image(values[..., None, :], AFFINE), tmp_path / "c.nii")
    with pytest.raises(UnreadableFile, match="has 5 dimensions"):
        sniff(tmp_path / "c.nii")


def test_a_flat_file_is_one_slice(tmp_path: Path) -> None:
    values = RNG.integers(0, 100, (4, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([-2.0, -2, 0.5, 1])), tmp_path / "a.nii")
    volume = one(tmp_path / "a.nii")
    assert volume.values.shape == (4, 5, 1)
    assert (picture(volume) == values.T).all()


def test_nifti_colour_is_read(tmp_path: Path) -> None:
    values = RNG.integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    packed = np.ascontiguousarray(values).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nib.save(nib.Nifti1Image(packed, AFFINE), tmp_path / "a.nii")
    assert (one(tmp_path / "a.nii").values == values).all()


def test_other_units_are_converted_to_mm(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.diag([500.0, 500, 2000, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    geometry = one(tmp_path / "a.nii").geometry
    assert geometry.spacing == pytest.approx((0.5, 0.5, 2))
    assert np.diag(geometry.affine) == pytest.approx([0.5, 0.5, 2, 1])


def test_the_range_in_the_header_is_the_window(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), AFFINE)
    image.header["cal_min"], image.header["cal_max"] = 10, 60
    nib.save(image, tmp_path / "a.nii")
    assert one(tmp_path / "a.nii").window == Window(35, 50, "LINEAR_EXACT")


def test_an_invalid_affine_gives_an_unknown_position(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), AFFINE)
    image.header["srow_x"] = (0, 0, 0, 0)
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[280:296] = bytes(16)  # srow_x
    (tmp_path / "a.nii").write_bytes(raw)
    geometry = one(tmp_path / "a.nii").geometry
    assert (geometry.orientation, geometry.regular) == ("", False)
    assert geometry.spacing == (1.0, 1.5, 3.0)
    assert cut(geometry, "acquisition").count == 6


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.complex64), AFFINE), tmp_path / "a.nii")
    with pytest.raises(UnreadableFile, match="complex numbers"):
        sniff(tmp_path / "a.nii")


def test_real_volumes_are_read_as_nibabel_reads_them(shared: Path) -> None:
    for path in sorted((shared / "data" / "msd_hippocampus" / "images").glob("*.nii.gz"))[:5]:
        image = nib.load(path)
        volume = one(path)
        assert (volume.values == image.get_fdata()).all()
        assert (volume.geometry.affine == image.affine).all()
        assert volume.geometry.orientation == "RAS"


# ---- pictures


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.jp2"])
def test_gray_and_colour_pictures_are_read_back_as_saved(tmp_path: Path, name: str) -> None:
    gray = RNG.integers(0, 255, (20, 30)).astype(np.uint8)
    colour = RNG.integers(0, 255, (20, 30, 3)).astype(np.uint8)
    for saved in (gray, colour):
        Image.fromarray(saved).save(tmp_path / name)
        volume = one(tmp_path / name)
        assert volume.values.shape[:3] == (30, 20, 1)
        assert (picture(volume) == saved).all()
        geometry = volume.geometry
        assert (geometry.spacing, geometry.orientation, geometry.acquisition) == (None, "", 2)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_are_kept(tmp_path: Path, name: str) -> None:
    saved = RNG.integers(0, 65535, (20, 30)).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / name), saved)
    volume = one(tmp_path / name)
    assert volume.values.dtype == np.uint16
    assert (picture(volume) == saved).all()


@pytest.mark.parametrize("kind", ["i4", "f4"])
def test_tiffs_with_wide_types_keep_their_values(tmp_path: Path, kind: str) -> None:
    saved = (RNG.normal(size=(20, 30)) * 1e5).astype(kind)
    Image.fromarray(saved).save(tmp_path / "a.tif")
    assert (picture(one(tmp_path / "a.tif")) == saved).all()


def test_the_pages_of_a_tiff_become_a_stack(tmp_path: Path) -> None:
    for kind in (np.uint8, np.uint16):
        pages = RNG.integers(0, 255, (4, 20, 30)).astype(kind)
        images = [Image.fromarray(page) for page in pages]
        images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:])
        volume = one(tmp_path / "a.tif")
        assert volume.values.shape == (30, 20, 4)
        assert not volume.geometry.regular
        for k in range(4):
            assert (picture(volume, k) == pages[k]).all()
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("L", (3, 3))])
    with pytest.raises(UnreadableFile, match="2 pages of different sizes"):
        sniff(tmp_path / "a.tif")


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_rotated_jpeg_is_shown_upright(tmp_path: Path, turn: int) -> None:
    upright = np.zeros((32, 64), np.uint8)
    upright[:16, :16] = 255  # one white corner
    undo = {2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1], 5: lambda p: p.T}
    undo |= {6: lambda p: np.rot90(p), 7: lambda p: p[::-1, ::-1].T, 8: lambda p: np.rot90(p, -1)}
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = np.ascontiguousarray(undo.get(turn, lambda p: p)(upright))
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95)
    volume = one(tmp_path / "a.jpg")
    assert np.abs(picture(volume).astype(int) - upright).max() < 40


def test_transparency_palette_and_one_bit_are_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5, 4), (200, 100, 50, 128), np.uint8)).save(tmp_path / "a.png")
    assert (picture(one(tmp_path / "a.png")) == (100, 50, 25)).all()
    Image.new("P", (5, 4), 3).save(tmp_path / "b.png")
    assert picture(one(tmp_path / "b.png")).shape[:2] == (4, 5)
    Image.new("1", (5, 4), 1).save(tmp_path / "c.png")
    assert (picture(one(tmp_path / "c.png")) == 255).all()
