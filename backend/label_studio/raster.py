"""Masks of pixels as Label Studio stores them: run lengths of brushes, and PNG data URLs of bitmasks."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.bool_]

_LENGTH_BITS = np.array([3, 4, 8, 16])  # bits of the four encodings of a run length
_RUN_LIMITS = np.array([8, 16, 256])  # longest run of the first three encodings
_RUN = 2**16  # longest run of the fourth encoding; longer ones are split
_PREFIX = "data:image/png;base64,"


def decode_brush(rle: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """The mask (height, width) encoded by Label Studio's run lengths: all pixels that are not fully transparent.

    Same result as `label_studio_sdk`'s `brush.decode_rle`, which takes seconds for a noisy megapixel. Raises
    ValueError if the data are damaged or of another size; the size is checked before anything is allocated.
    """
    count, bits = height * width * 4, len(rle) * 8
    if len(rle) < 8 or int.from_bytes(rle[:4], "big") != count:
        raise ValueError("another size")
    head = int.from_bytes(rle[4:8], "big")
    if head >> 27 != 7:
        raise ValueError("the values are not bytes")
    sizes = [(head >> shift & 15) + 1 for shift in (23, 19, 15, 11)]
    flat = np.empty(count, np.uint8)
    data = rle + bytes(8)
    at, done = 53, 0
    while done < count:
        window = int.from_bytes(data[at >> 3 : (at >> 3) + 8], "big") << (at & 7)  # at least 57 bits from `at` on
        size = sizes[window >> 61 & 3]
        length = (window >> (61 - size) & ((1 << size) - 1)) + 1
        end = done + length
        after = at + 3 + size
        at = after + (8 if window >> 63 & 1 else 8 * length)
        if at > bits or end > count:
            raise ValueError("truncated, or longer than declared")
        if window >> 63 & 1:
            flat[done:end] = window >> (53 - size) & 255
        else:
            values = int.from_bytes(data[after >> 3 : (at + 7) >> 3], "big") >> (-at & 7)
            flat[done:end] = np.frombuffer((values & ((1 << 8 * length) - 1)).to_bytes(length, "big"), np.uint8)
        done = end
    return np.asarray(flat[3::4].reshape(height, width) > 0)


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Label Studio's run lengths for a mask (H, W); pixels inside are fully opaque.

    Byte for byte what `label_studio_sdk`'s `brush.mask2rle` returns for 0 and 255, but vectorized.
    Format: https://github.com/thi-ng/umbrella/blob/develop/packages/rle-pack/src/index.ts
    """
    flat = mask.astype(bool).ravel()
    last = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)  # last pixel of each run
    lengths = np.diff(last, prepend=-1) * 4  # a pixel is four equal values
    values = flat[last] * 255
    kinds = np.searchsorted(_RUN_LIMITS, lengths)
    pieces = -(-lengths // _RUN)  # all pieces of a run but the last are full
    rests = lengths - (pieces - 1) * _RUN
    lengths = np.full(pieces.sum(), _RUN)
    lengths[np.cumsum(pieces) - 1] = rests
    kinds, values = np.repeat(kinds, pieces), np.repeat(values, pieces)

    # one code per run, left-aligned in 32 bits: "repeated", kind, length - 1, value
    bits = _LENGTH_BITS[kinds]
    codes = (((4 + kinds) << bits | (lengths - 1)) << 8) | values
    widths = 3 + bits + 8
    padded = np.unpackbits((codes << (32 - widths)).astype(">u4").view(np.uint8)).reshape(-1, 32)
    runs = padded[np.arange(32) < widths[:, None]]
    head = np.frombuffer(f"{flat.size * 4:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}".encode(), np.uint8) - ord("0")
    end = np.zeros(8 - (head.size + runs.size) % 8, np.uint8)
    rle: list[int] = np.packbits(np.concatenate([head, runs, end])).tolist()
    return rle


def decode_bitmask(url: str, height: int, width: int) -> Mask:
    """The mask (height, width) of a bitmask's PNG data URL: all pixels that are not fully transparent.

    A PNG of another size is stretched, as Label Studio does. Raises ValueError if the text is no such PNG, or if it has
    no transparency: Label Studio would then show the whole image as drawn.
    """
    if not url.startswith(_PREFIX):
        raise ValueError("not a PNG data URL")
    try:
        with Image.open(io.BytesIO(base64.b64decode(url.removeprefix(_PREFIX), validate=True)), formats=["PNG"]) as png:
            if png.width * png.height > 4 * height * width + 2**20:
                raise ValueError("much larger than the image")
            if png.mode not in ("RGBA", "LA", "PA") and "transparency" not in png.info:
                raise ValueError("without transparency, so that no pixel is left out")
            alpha = png.convert("RGBA").getchannel("A")
            if alpha.size != (width, height):
                alpha = alpha.resize((width, height), Image.Resampling.NEAREST)
            return np.asarray(alpha) > 0
    except (OSError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise ValueError("a damaged PNG") from error


def encode_bitmask(mask: Mask) -> str:
    """The PNG data URL of a mask (H, W): black and opaque inside, transparent outside."""
    file = io.BytesIO()
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[..., 3] = np.where(mask, 255, 0)
    Image.fromarray(pixels).save(file, "PNG")
    return _PREFIX + base64.b64encode(file.getvalue()).decode()
