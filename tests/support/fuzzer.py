"""Feeds hostile input to the decoders, in a separate process: `python fuzzer.py KIND SECONDS SEED FOLDER`.

It starts with the worst inputs that we could think of, followed by SECONDS of random damage.

Prints one JSON line: the number of inputs, how many were decoded, the slowest in seconds, and the growth of the
process in MiB. Any exception except the errors of a single scan or mask ends it with a traceback. The current input
is in FOLDER/input, so that a crash or a hang can be investigated.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backend.errors import UnreadableMask, UnreadableScan
from backend.formats.pixels import decode_image
from backend.label_config import LabelConfig, Tag
from backend.label_studio.masks import read_mask
from backend.label_studio.raster import encode_brush

SIDE = 96  # of the damaged images
SIZE = {"original_width": SIDE, "original_height": SIDE}
CONFIG = LabelConfig(
    image_value="image",
    tags=(
        Tag(name="tag", kind="brush", to_name="image", labels=("Lung",)),
        Tag(name="outline", kind="polygon", to_name="image", labels=("Heart",)),
    ),
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed, duplicated, or set to large numbers."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(max(len(found), 1))
        if rng.random() < 0.5:
            at = min(at, rng.randrange(200))  # headers
        kind = rng.randrange(6)
        if kind == 0:
            found[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            found[at : at + 4] = rng.choice(
                (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f")
            )
        elif kind == 2:
            del found[at : at + rng.randrange(1, 50)]
        elif kind == 3:
            found[at:at] = found[at : at + rng.randrange(1, 500)]
        elif kind == 4:
            found[at:at] = rng.randbytes(rng.randrange(1, 50))
        else:
            del found[at:]
    return bytes(found)


def files() -> dict[str, bytes]:
    """A small image in every supported format and mode, and in some unsupported ones."""
    rng = np.random.default_rng(0)
    gray = (np.add.outer(np.arange(SIDE), np.arange(SIDE)) + rng.integers(0, 40, (SIDE, SIDE))).astype(np.uint8)
    colour = Image.fromarray(np.stack([gray, gray[::-1], gray[:, ::-1]], axis=2))
    plain, deep = Image.fromarray(gray), Image.fromarray(gray.astype(np.uint16) * 100)
    exif = Image.Exif()
    exif[0x0112] = 6
    found: dict[str, bytes] = {}

    def add(name: str, image: Image.Image, kind: str, **options: Any) -> None:
        file = io.BytesIO()
        image.save(file, kind, **options)
        found[name] = file.getvalue()

    add("png", plain, "PNG")
    add("png16", deep, "PNG")
    add("rgba", colour.convert("RGBA"), "PNG", exif=exif)
    add("palette", colour.convert("P"), "PNG", transparency=3)
    add("jpeg", colour, "JPEG", exif=exif)
    add("progressive", colour, "JPEG", progressive=True)
    add("cmyk", colour.convert("CMYK"), "JPEG")
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd", "lzma"):
        add(f"tiff-{compression}", colour, "TIFF", compression=compression)
    add("tiff16", deep, "TIFF")
    add("tiff-float", plain.convert("F"), "TIFF")
    add("tiff-fax", plain.convert("1"), "TIFF", compression="group4")
    add("tiff-pages", plain, "TIFF", save_all=True, append_images=[plain] * 3)
    add("gif", plain, "GIF", save_all=True, append_images=[plain.rotate(90)] * 3)
    add("bmp", colour, "BMP")
    for name in ("WEBP", "AVIF", "JPEG2000", "EPS", "PDF", "PPM", "ICO"):
        add(name, colour, name)
    found["svg"] = (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'
    )
    return found


def bombs() -> Iterator[bytes]:
    """Small files that claim large sizes or unpack to them."""
    for depth, colour, width in ((8, 6, 4), (16, 0, 2)):  # the maximum number of pixels, with transparency and 16 bits
        head = struct.pack(">IIBBBBB", 8000, 8000, depth, colour, 0, 0, 0)
        yield png(_chunk(b"IHDR", head), b"IDAT", bytes(8000 * (8000 * width + 1)))
    for size in ((8000, 8000), (60000, 60000), (2**31 - 1, 1), (1, 2**31 - 1), (2**32 - 1, 2**32 - 1)):
        for depth, colour in ((8, 0), (16, 6), (1, 3)):
            yield png(_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)), b"IDAT", bytes(2**16))
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    for kind in (b"zTXtk\0\0", b"iCCPk\0\0", b"iTXtk\0\1\0\0\0"):
        text = kind[4:] + zlib.compress(bytes(2**28))
        yield png(header + _chunk(kind[:4], text) * 3, b"IDAT", bytes(72))
    yield png(header + _chunk(b"tEXt", b"k\0" + bytes(2**24)) * 8, b"IDAT", bytes(72))
    yield png(header, b"IDAT", bytes(2**28))  # more pixels than announced
    region = 200_000
    for order in ("<", ">"):
        yield tiff(order, [(40000 + i, 7, region, None) for i in range(20_000)], bytes(region))
        yield tiff(order, [(273, 4, 2**20, None)], struct.pack(f"{order}I", 8) * 2**20)
        yield tiff(order, [(256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1)], b"")
        yield tiff(order, [(279, 4, 1, 2**32 - 1)], b"")
    exif = b"Exif\0\0" + tiff("<", [(40000 + i, 7, 40_000, None) for i in range(1500)], bytes(40_000))
    plain = files()["progressive"]
    yield plain[:2] + (b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif) * 8 + plain[2:]
    yield b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + files()["gif"][13:]
    width = 4000  # every pixel is a separate run
    runs = (b"\x01\x07" * width + b"\0\0") * width
    head = struct.pack("<IiiHHIIiiII", 40, width, width, 1, 8, 1, len(runs), 0, 0, 256, 0)
    yield b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + head + bytes(1024) + runs
    yield b"P3 3000 3000 255\n" + b"1 2 3 " * 9_000_000


def png(start: bytes, name: bytes, rows: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + start + _chunk(name, zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def tiff(order: str, changes: list[tuple[int, int, int, int | None]], tail: bytes) -> bytes:
    """A gray 4 x 4 TIFF with other or more entries (tag, type, count, value); value None points to `tail`."""
    plain = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 16}
    entries = {tag: (4, 1, value) for tag, value in plain.items()} | {t: (k, n, v) for t, k, n, v in changes}
    end = 8 + 2 + 12 * len(entries) + 4
    rows = [struct.pack(f"{order}HHII", t, k, n, end if v is None else v) for t, (k, n, v) in sorted(entries.items())]
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HIH", 42, 8, len(entries)) + b"".join(rows) + bytes(4) + tail


def damaged_files(rng: random.Random) -> Iterator[bytes]:
    kinds = list(files().values())
    yield from kinds
    while True:
        yield damaged(rng.choice(kinds), rng)


def brush_bits(*fields: tuple[int, int]) -> list[int]:
    """Consecutive (value, width) fields, as bytes."""
    text = "".join(f"{value:0{width}b}" for value, width in fields)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def good_brush() -> list[int]:
    return encode_brush(np.random.default_rng(0).random((SIDE, SIDE)) < 0.5)


def brush(rle: Any, **more: Any) -> dict[str, Any]:
    value = {"format": "rle", "rle": rle, "brushlabels": ["Lung"]}
    return {"type": "brushlabels", **SIZE, "value": value, **more}


def polygon(points: Any) -> dict[str, Any]:
    return {"type": "polygonlabels", **SIZE, "value": {"points": points, "polygonlabels": ["Heart"]}}


def worst_regions() -> Iterator[list[Any]]:
    count, good = SIDE * SIDE * 4, good_brush()
    sizes = [(k, 4) for k in (2, 3, 7, 15)]
    for promised in (count, 2**32 - 1, 2**31, 0):
        yield [brush(brush_bits((promised, 32), (7, 5), *sizes, (0, 400)))]
        yield [brush(brush_bits((promised, 32), (31, 5), *sizes, (2**400 - 1, 400)))]  # values of 32 bits
        yield [brush(brush_bits((promised, 32), (0, 5), *[(0, 4)] * 4, (2**400 - 1, 400)))]
    yield [brush([*good[:8], *bytes(2**22)])]
    yield [brush([0] * 2**23)]
    yield [brush(good, original_width=10**9), brush(good, original_height=10**9)]
    yield [polygon([[i % 2 * 100, i % 101] for i in range(10**6)])]
    yield [polygon([[i % 100, (i % 2) * 100] for i in range(10**6)])]
    yield [polygon([[10**400, 1]] * 3)]
    yield [polygon([[1e308, -1e308], [0, 1e308], [5, 5]])]
    yield [polygon([[5, 5], [50, 50], [5, 50]])] * 20_000


def damaged_regions(rng: random.Random) -> Iterator[Any]:
    good = good_brush()
    odd: list[Any] = [None, True, -1, 2**64, 1e308, "", "x" * 10**6, [], {}, [[]], {"a": 1}, [None], "1e400", [0.5] * 9]
    while True:
        kind = rng.randrange(4)
        if kind == 0:
            rle = list(damaged(bytes(good), rng))
            yield [brush(rle if rng.random() < 0.5 else good[:9] + rle[9:])]
        elif kind == 1:
            yield [polygon([[rng.choice((rng.uniform(-200, 300), 0, 100)) for _ in range(2)] for _ in range(9)])]
        else:  # anything in any place
            region: Any = brush(good) if kind == 2 else polygon([[1, 1], [90, 1], [50, 90]])
            where = rng.choice((region, region["value"]))
            where[rng.choice(list(where))] = rng.choice(odd)
            yield [region] if rng.random() < 0.9 else rng.choice((region, [region, rng.choice(odd)], [[region]]))


def start_of_peak() -> int:
    """The resident KiB now; resets `peak`."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def peak() -> int:
    """The highest resident KiB since `start_of_peak`."""
    return _memory("VmHWM")


def _memory(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1])


def in_time(inputs: Iterator[Any], seconds: float) -> Iterator[Any]:
    until = time.monotonic() + seconds  # starts only after the preceding inputs in a chain
    yield from itertools.takewhile(lambda _: time.monotonic() < until, inputs)


def main(kind: str, seconds: float, seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    decode: Callable[[Any], object]
    if kind == "images":
        worst, endless, decode, fault = bombs(), damaged_files(rng), decode_image, UnreadableScan
    else:
        worst, endless, fault = worst_regions(), damaged_regions(rng), UnreadableMask
        decode = lambda result: read_mask(result, CONFIG, SIDE, SIDE)  # noqa: E731
    tried, decoded, slowest, grown = 0, 0, 0.0, 0
    for given in itertools.chain(worst, in_time(endless, seconds)):
        (folder / "input").write_bytes(given if isinstance(given, bytes) else repr(given)[: 10**6].encode())
        before, at = start_of_peak(), time.monotonic()
        try:
            decode(given)
            decoded += 1
        except fault:
            pass
        tried += 1
        took = time.monotonic() - at
        slowest = max(slowest, took)
        grown = max(grown, peak() - before)
    found = {"tried": tried, "decoded": decoded, "slowest": round(slowest, 2), "grown": grown >> 10}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
