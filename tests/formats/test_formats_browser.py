"""Pictures as browsers show them, and kinds of pictures that browsers do not show: TIFF of wide types, HEIC."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from chromium import ARGUMENTS
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page, sync_playwright

from backend.formats import Source, UnreadableFile, Volume, cut, group, read, read_geometry, sniff
from backend.formats.pixels import decode_image

RNG = np.random.default_rng(7)
COLOUR = RNG.integers(0, 255, (20, 30, 3), np.uint8)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
# 48 x 32, red in the upper left corner and blue in the lower right one, and a second picture
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAaxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9j"
    "AAAAAERAAAIAAQAAAAAB0AABAAAAAAAAAL0AAgAAAAACjQABAAAAAAAAAO0AAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAA"
    "ABVpbmZlAgAAAAACAABodmMxAAAAAA5waXRtAAAAAAABAAABBWlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNg"
    "AAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZE"
    "AcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAADAAAAABAAAAIAAAAAH////wAAAAAv///+AA"
    "AAACAAAAEHBpeGkAAAAAAwgICAAAACBpcG1hAAAAAAAAAAIAAQWBAgMFhAACBYECAwWEAAABsm1kYXQAAAC5KAGvCeAhOTQf//I7v//ysHZf"
    "vEeb1/+ACHd9S9//4Fab5/+fFEB7YmX/mforw8EBDHXUJzyt7Q/dQLv3cV/gRwhARy8bOQ9vtHFUdlGc4wYMAW8uiEXAwqkE61HtAoLGH1bn"
    "sESMmn4qIkmJcaiEVmrgGNgqHPIrG191+gh7BIdrR1UbWfpbbAXxPcPYsRQKsCAJ6fNEKnsMfcJYdHYVjaOSRQQhkrtfjwZ+dvZuejVsQMFQ"
    "CnNClxgAAADpKAGvCeAhgHSl//7odJPyIcfykO//7bK0P61T/6WmJAvcrRB6nms8qUTU73GRSLcx3ptagKCg9/NUfWA2cNv8KcAGDHonqHYC"
    "fvgUn+6eY7lPU4SDJ2Yy6kk9QmaOrfOIbVsHOUAEmp1eQfUVZe/WVkqRknza1eZZckaySmZx8oEkqZL6NkHdOp4Erc4cj747rN8VGL5S91A/"
    "ltJlO/qt6RG5+s8wv6r8x/MYDC8bXYuWz0AUqbsu0LjeASuOVvPJtos3UTneje/gHA52ofAOsj+tpypSnSjNCIrmb5S/irUb4/UPviww3rA="
)


def source(path: Path) -> Source:
    fact = sniff(path)
    assert fact is not None
    (found,) = group([fact])
    return found


def one(path: Path) -> Volume:
    volume = read(source(path))
    assert read_geometry(source(path)) == volume.geometry
    return volume


def shown(volume: Volume, n: int = 0) -> np.ndarray[Any, Any]:
    return cut(volume.geometry, "acquisition").take(volume.values, n)


# ---- as a browser shows it


def exif(orientation: int, kind: int = 3) -> bytes:
    """EXIF with one entry; kind 3 is a 16-bit number, 4 a 32-bit one."""
    value = struct.pack(">HH" if kind == 3 else ">I", *((orientation, 0) if kind == 3 else (orientation,)))
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOUR).save(file, kind, **options)
    return file.getvalue()


def pictures() -> Iterator[tuple[str, bytes]]:
    for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
        for orientation in (0, *range(1, 10)) if kind != "AVIF" else (1, 6):
            yield f"{kind} {orientation}", encoded(kind, exif=exif(orientation))
    for kind in ("JPEG", "WEBP", "AVIF"):
        yield f"{kind} XMP", encoded(kind, xmp=XMP)
    for kind in ("JPEG", "PNG"):
        yield f"{kind} 32 bits", encoded(kind, exif=exif(6, 4))
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    yield "PNG XMP", encoded("PNG", pnginfo=info)
    plain, body = encoded("PNG"), exif(6)[6:]
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    yield "PNG EXIF after the pixels", plain[:-12] + chunk + plain[-12:]
    others = [Image.fromarray(COLOUR[::-1]), Image.fromarray(255 - COLOUR)]
    yield "APNG", encoded("PNG", save_all=True, append_images=others)
    yield "APNG with another default", encoded("PNG", save_all=True, append_images=others, default_image=True)
    yield "animated WebP", encoded("WEBP", save_all=True, append_images=others, lossless=True)
    yield "animated GIF", encoded("GIF", save_all=True, append_images=others)


@pytest.fixture(scope="module")
def page(chromium: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser.new_page()
        browser.close()


def test_every_picture_is_oriented_and_begins_as_in_chromium(page: Page) -> None:
    script = """async data => {
        const image = new Image(); image.src = 'data:image/*;base64,' + data; await image.decode();
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);
        return [canvas.height, canvas.width, Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data)];
    }"""
    different = {}
    for name, data in pictures():
        height, width, values = page.evaluate(script, base64.b64encode(data).decode())
        browser = np.array(values, np.uint8).reshape(height, width, 4)[..., :3]
        ours = decode_image(data)
        if ours.shape != browser.shape or np.abs(ours.astype(int) - browser).mean() > 2:
            different[name] = (ours.shape, browser.shape)
    assert not different


def test_the_size_before_reading_is_the_size_as_shown(tmp_path: Path) -> None:
    for n, (_, data) in enumerate(pictures()):
        path = tmp_path / f"{n}"
        path.write_bytes(data)
        fact = sniff(path)
        assert fact is not None
        assert (fact.rows, fact.columns) == decode_image(data).shape[:2]
        one(path)


def test_an_animation_says_that_only_its_first_picture_is_read(tmp_path: Path) -> None:
    others = [Image.fromarray(COLOUR[::-1])]
    for name in ("a.gif", "a.webp", "a.png"):
        Image.fromarray(COLOUR).save(tmp_path / name, save_all=True, append_images=others)
        assert source(tmp_path / name).remarks == ("it has 2 pictures, of which only the first is read.",)
        Image.fromarray(COLOUR).save(tmp_path / name)
        assert source(tmp_path / name).remarks == ()


def test_webp_exif_is_ignored_as_in_the_browser(shared: Path) -> None:
    assert shown(one(shared / "cases/pictures/exif6.webp")).shape[:2] == (40, 60)


# ---- TIFF


def test_the_tiffs_of_the_cases_are_read(shared: Path) -> None:
    assert shown(one(shared / "cases/pictures/rgb6.tif")).shape == (60, 40, 3)
    path = shared / "cases/pictures/float64.tif"
    assert (shown(one(path)) == tifffile.imread(path)).all()


TURNS = {
    1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud, 5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["u1", "u2", "i1", "f4", "rgb"])
def test_a_turned_tiff_is_upright(tmp_path: Path, kind: str) -> None:
    stored = COLOUR if kind == "rgb" else RNG.integers(0, 100, (20, 30)).astype(kind)
    for orientation, turn in TURNS.items():
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(tmp_path / "a.tif", stored, extratags=tags, photometric="rgb" if kind == "rgb" else None)
        assert (shown(one(tmp_path / "a.tif")) == turn(stored)).all(), orientation


@pytest.mark.parametrize("kind", ["i1", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
def test_every_number_type_of_a_tiff_keeps_its_values(tmp_path: Path, kind: str) -> None:
    whole = np.dtype(kind).kind in "iu"
    stored = RNG.integers(0, 256, (2, 20, 30, 8), np.uint8).view(kind)[..., 0] if whole else None
    stored = (RNG.normal(size=(2, 20, 30)) * 100).astype(kind) if stored is None else stored
    for options in ({}, {"bigtiff": True}, {"byteorder": ">"}, {"tile": (16, 16)}, {"compression": "zlib"}):
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", **options)
        volume = one(tmp_path / "a.tif")
        for k in range(2):
            assert (shown(volume, k) == stored[k].astype(np.float32 if kind == "f8" else kind)).all(), options
    tifffile.imwrite(tmp_path / "a.tif", stored[0], photometric="miniswhite")
    assert one(tmp_path / "a.tif").inverted


@pytest.mark.parametrize("kind", ["i1", "i2", "i4"])
def test_a_tiff_with_lzw_compression_is_read(tmp_path: Path, kind: str) -> None:
    stored = (RNG.normal(size=(20, 30)) * 30).astype(kind)
    assert cv2.imwrite(str(tmp_path / "a.tif"), stored, [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    assert tifffile.TiffFile(tmp_path / "a.tif").pages[0].compression == 5
    assert (shown(one(tmp_path / "a.tif")) == stored).all()


def test_a_float_colour_tiff_is_shown_from_0_to_1(tmp_path: Path) -> None:
    for planar in ("contig", "separate"):
        stored = COLOUR.astype(np.float32) / 255
        saved = stored if planar == "contig" else np.moveaxis(stored, -1, 0)
        tifffile.imwrite(tmp_path / "a.tif", saved, photometric="rgb", planarconfig=planar)
        assert (shown(one(tmp_path / "a.tif")) == COLOUR).all()


def test_tiffs_that_cannot_be_shown_say_why(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((20, 30), np.complex64))
    with pytest.raises(UnreadableFile, match="complex numbers"):
        sniff(path)
    tifffile.imwrite(path, np.zeros((7, 20, 30), np.float32), photometric="minisblack", planarconfig="separate")
    with pytest.raises(UnreadableFile, match="7 channels"):
        sniff(path)
    tifffile.imwrite(path, np.zeros((20, 30), np.float32))
    tifffile.imwrite(path, np.zeros((20, 31), np.float32), append=True)
    with pytest.raises(UnreadableFile, match="pages of different sizes or types"):
        sniff(path)
    tifffile.imwrite(path, np.zeros((200, 300), np.float64))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UnreadableFile, match="truncated TIFF"):
        one(path)


# ---- HEIC


@pytest.mark.parametrize("name", ["a.heic", "a.jpg", "nameless"])
def test_heic_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(HEIC)
    picture = shown(one(tmp_path / name)).astype(int)
    assert picture.shape == (32, 48, 3)
    assert np.abs(picture[:12, :12] - (255, 0, 0)).max() < 30
    assert np.abs(picture[20:, 36:] - (0, 0, 255)).max() < 30
    assert np.abs(picture[:12, 20:] - (0, 0, 0)).max() < 30
    assert source(tmp_path / name).remarks == ("it has 2 pictures, of which only the first is read.",)


def test_truncated_heic_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    for keep in (20, 100, 300, 500):
        path.write_bytes(HEIC[:keep])
        with pytest.raises(UnreadableFile, match="damaged or truncated"):
            one(path)
