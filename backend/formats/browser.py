"""What browsers, and so Label Studio, do not show, and how they turn what they show."""

from __future__ import annotations

import io
import zlib

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from PIL.TiffTags import SHORT

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_DICOM = (b"\2\0\0\0", b"\2\0\1\0", b"\2\0\2\0", b"\x08\0\0\0", b"\x08\0\5\0", b"\x08\0\x08\0", b"\x08\0\x16\0")
_NIFTI = (b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0")
_PAGE = (b"<!doctype html", b"<html")
_IMPORT = "Import it with `scanqueue import`, which makes PNG images that Label Studio shows"


def hidden(data: bytes) -> str:
    """Why a picture that can be decoded cannot be labelled in Chrome or Firefox, and the fix; "" if it can.

    >>> hidden(b"II*\\0...").partition(".")[0]
    'the file is TIFF, which Chrome and Firefox do not show'
    """
    kind = "TIFF" if data.startswith(_TIFF) else "JPEG 2000" if data.startswith(_JPEG_2000) else ""
    return f"the file is {kind}, which Chrome and Firefox do not show. {_IMPORT}" if kind else ""


_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = ("JPEG", "MPO", "PNG", "AVIF")  # AVIF: Pillow presents the turn of its container as EXIF


def turn(image: Image.Image) -> Image.Transpose | None:
    """How Chromium turns a picture that is open but not loaded; None: not at all.

    It follows the EXIF of JPEG and PNG and the container of AVIF. It ignores XMP, the EXIF of WebP and AVIF, EXIF after
    the pixels of a PNG, and an orientation that is not a 16-bit number; a test compares. TIFF, which it does not show,
    is turned by Pillow.
    """
    exif = image.info.get("exif") if image.format in _TURNED else None
    if not isinstance(exif, bytes):
        return None
    body = exif.removeprefix(b"Exif\0\0")
    try:
        tags = ImageFileDirectory_v2(body[:8])
        file = io.BytesIO(body)
        file.seek(tags.next)
        tags.load(file)
        return _TURNS.get(tags.get(_ORIENTATION, 1)) if tags.tagtype.get(_ORIENTATION) == SHORT else None
    except Exception:  # broken metadata: shown as stored
        return None


def foreign(data: bytes) -> str:
    """What a file is that is not a picture, and the fix; "" if that is not known."""
    if data[128:132] == b"DICM" or data.startswith(_DICOM):
        return f"the file is DICOM, which Label Studio does not show. {_IMPORT}"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF:
        return f"the file is HEIC, which Chrome and Firefox do not show. {_IMPORT}"
    head = _unpacked(data)
    if head[344:348] in _NIFTI or head[4:8] in _NIFTI:
        return f"the file is NIfTI, which Label Studio does not show. {_IMPORT}"
    if data[:512].lstrip().lower().startswith(_PAGE):
        return (
            "a web page, not an image: perhaps the server asks for a login. Open the address of the image in a private "
            "window of a browser, and correct it or upload the image"
        )
    return ""


def _unpacked(data: bytes) -> bytes:
    """The first bytes of a file, decompressed if it is gzip."""
    if data[:2] != b"\x1f\x8b":
        return data[:348]
    try:
        return zlib.decompressobj(wbits=31).decompress(data[:65536], 348)
    except zlib.error:
        return b""
