"""Pixels: decoding, letterboxing, polygons, label maps."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from backend.errors import UnreadableMask, UnreadableScan
from backend.formats.fitting import letterbox_mask
from backend.formats.pixels import (
    IGNORE,
    decode_image,
    letterbox,
    mask_to_polygons,
    merge_labels,
    polygon_to_mask,
    restore,
)

SHARED = Path(__file__).parents[3] / "shared"
RAMP = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (12, 1))  # (12, 25)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def disc(height: int, width: int, cy: float, cx: float, radius: float) -> np.ndarray:
    y, x = np.ogrid[:height, :width]
    return (y - cy) ** 2 + (x - cx) ** 2 <= radius**2


# --- decoding


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_eight_bit_gray_is_decoded_exactly(kind: str) -> None:
    assert np.array_equal(decode_image(encoded(Image.fromarray(RAMP), kind)), RAMP)


def test_colour_is_decoded_exactly() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encoded(Image.fromarray(colour), "PNG")), colour)


def test_colour_with_three_equal_channels_becomes_gray() -> None:
    colour = np.repeat(RAMP[..., None], 3, axis=2)
    assert np.array_equal(decode_image(encoded(Image.fromarray(colour), "PNG")), RAMP)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_windowed_to_the_middle_99_percent(kind: str) -> None:
    deep = np.linspace(1000, 3000, 40_000).reshape(200, 200).astype(np.uint16)
    deep[0, 0], deep[-1, -1] = 0, 65535  # one dead and one hot pixel must not reduce the contrast
    got = decode_image(encoded(Image.fromarray(deep), kind))
    assert got.dtype == np.uint8
    assert abs(int(got[100, 0]) - 128) <= 2
    assert (int(got[0, 0]), int(got[-1, -1])) == (0, 255)
    assert np.all(np.diff(got.ravel().astype(int)) >= 0)


def test_float_tiff_is_windowed_and_nan_is_black() -> None:
    deep = np.linspace(-1.0, 1.0, 10_000, dtype=np.float32).reshape(100, 100)
    deep[50, 99] = np.nan
    deep[51, 99] = np.inf
    got = decode_image(encoded(Image.fromarray(deep), "TIFF"))
    assert int(got[50, 99]) == int(got[51, 99]) == 0
    assert abs(int(got[50, 0]) - 128) <= 2


@pytest.mark.parametrize("value", [0, 700])
def test_constant_sixteen_bit_scan_is_black_not_an_error(value: int) -> None:
    flat = np.full((5, 5), value, np.uint16)
    assert not decode_image(encoded(Image.fromarray(flat), "PNG")).any()


def test_transparency_is_composited_over_black() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., :3] = (200, 100, 50)
    rgba[0, :, 3] = (255, 0)
    rgba[1, :, 3] = (255, 102)
    got = decode_image(encoded(Image.fromarray(rgba), "PNG"))
    assert got[0].tolist() == [[200, 100, 50], [0, 0, 0]]
    assert got[1].tolist() == [[200, 100, 50], [80, 40, 20]]


def test_gray_with_alpha_is_gray() -> None:
    la = np.dstack([RAMP, np.full_like(RAMP, 255)])
    assert np.array_equal(decode_image(encoded(Image.fromarray(la, "LA"), "PNG")), RAMP)


def test_a_palette_is_resolved_to_its_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert decode_image(encoded(image, "PNG")).tolist() == [[[10, 20, 30], [200, 100, 0]]]


def test_palette_with_a_transparent_entry_is_black_there() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert decode_image(encoded(image, "PNG", transparency=0)).tolist() == [[[0, 0, 0], [200, 100, 0]]]


def test_cmyk_jpeg_becomes_colour() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    red, green, blue = decode_image(encoded(image, "JPEG", quality=95))[8, 8].tolist()
    assert (red > 240, green < 15, blue < 15) == (True, True, True)


def test_one_bit_becomes_black_and_white() -> None:
    image = Image.fromarray(RAMP > 100)
    assert image.mode == "1"
    assert np.array_equal(decode_image(encoded(image, "PNG")), np.where(RAMP > 100, 255, 0))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.T),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).T),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied_as_browsers_do(orientation: int, turn: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode_image(encoded(Image.fromarray(RAMP), "PNG", exif=exif))
    assert np.array_equal(got, turn(RAMP))


def test_first_frame_of_several_is_read() -> None:
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_image(data), RAMP)


def test_an_empty_file_is_reported_as_empty() -> None:
    with pytest.raises(UnreadableScan, match=r"^the file is empty \(0 bytes\); upload the scan again$"):
        decode_image(b"")


def test_a_web_page_in_place_of_an_image_is_named() -> None:
    with pytest.raises(UnreadableScan, match=r"^a web page, not an image: perhaps the server asks for a login"):
        decode_image(b"<html>login</html>")


@pytest.mark.parametrize("data", [b"\x00" * 300, b"PK\x03\x04zipped", b"%PDF-1.7"])
def test_data_that_is_no_image_is_refused_with_the_reason(data: bytes) -> None:
    with pytest.raises(UnreadableScan, match=r"^not an image: .* bytes of an unknown type.*Upload it as PNG or JPEG"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_file_is_unreadable_not_a_crash(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(UnreadableScan, match=r"truncated or damaged|not an image"):
        decode_image(data[: int(len(data) * share)])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF"]), st.integers(0, 2**31), st.integers(1, 12))
def test_flipped_bytes_give_pixels_or_unreadable_never_another_error(kind: str, seed: int, n: int) -> None:
    data = bytearray(encoded(Image.fromarray(RAMP), kind))
    generator = np.random.default_rng(seed)
    for at in generator.integers(0, len(data), n):
        data[at] = generator.integers(0, 256)
    with contextlib.suppress(UnreadableScan):
        assert decode_image(bytes(data), max_pixels=1_000_000).dtype == np.uint8


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header declares width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_000, 30_000, 2_000_000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    started = time.monotonic()
    with pytest.raises(UnreadableScan, match=r"the image is too large.*at most 64,000,000.*smaller version"):
        decode_image(bomb(side, side))
    assert time.monotonic() - started < 0.5


def test_max_pixels_is_inclusive() -> None:
    data = encoded(Image.fromarray(RAMP), "PNG")
    assert decode_image(data, max_pixels=300).shape == (12, 25)
    with pytest.raises(UnreadableScan, match=r"25 x 12 = 300 pixels, at most 299 are read"):
        decode_image(data, max_pixels=299)


# --- letterboxing and back


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (31, 97), (1, 300), (300, 1), (64, 64), (5, 7, 3)])
def test_letterbox_keeps_the_aspect_ratio_and_centres(shape: tuple[int, ...]) -> None:
    box = letterbox(np.full(shape, 200, np.uint8), 64)
    assert box.pixels.shape == (64, 64, *shape[2:])
    assert (box.original_height, box.original_width) == shape[:2]
    assert max(box.height, box.width) == 64
    scale = 64 / max(shape[:2])
    assert abs(box.height - shape[0] * scale) <= 1
    assert abs(box.width - shape[1] * scale) <= 1
    assert abs(box.top - (64 - box.height - box.top)) <= 1
    assert abs(box.left - (64 - box.width - box.left)) <= 1
    assert (box.pixels[box.content] == 200).all()
    assert box.pixels.sum() == 200 * box.pixels[box.content].size


def test_letterbox_mask_fits_its_scan_and_ignores_the_padding() -> None:
    mask = disc(90, 150, 45, 60, 30)
    box = letterbox(mask.astype(np.uint8) * 255, 64)
    fitted = letterbox_mask(mask.astype(np.uint8), 64)
    outside = np.ones((64, 64), bool)
    outside[box.content] = False
    assert (fitted[outside] == IGNORE).all()
    assert np.array_equal(fitted[box.content] == 1, box.pixels[box.content] > 127.5)


def test_letterbox_mask_takes_the_class_covering_most_of_a_pixel() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[:2, :2] = [[1, 2], [2, 2]]
    labels[2:4, :2] = [[3, 1], [0, 3]]
    fitted = letterbox_mask(labels, 32)
    assert fitted[0, 0] == 2
    assert fitted[1, 0] == 3


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_restore_returns_the_mask_in_its_original_size(classes: int) -> None:
    truth = merge_labels([(n, disc(300, 420, 80 + 30 * n, 60 * n, 40)) for n in range(1, classes)], 300, 420)
    box = letterbox(truth, 128)
    small = letterbox_mask(truth, 128)[box.content]
    probabilities = np.stack([small == n for n in range(classes)]).astype(np.float32)
    got = restore(probabilities, 300, 420)
    for n in range(1, classes):
        assert 2 * ((got == n) & (truth == n)).sum() / ((got == n).sum() + (truth == n).sum()) > 0.97


def test_restore_to_a_smaller_scan_than_the_network_saw() -> None:
    probabilities = np.zeros((2, 64, 64), np.float32)
    probabilities[0], probabilities[1, :, 32:] = 0.4, 0.9
    assert np.array_equal(restore(probabilities, 8, 8), np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 8, axis=0))


def test_restore_to_a_megapixel_takes_milliseconds() -> None:
    probabilities = np.random.default_rng(0).random((2, 256, 256), np.float32)
    restore(probabilities, 64, 64)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        restore(probabilities, 1024, 1024)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.05


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 4), (2, 0, 4)])
def test_restore_refuses_input_that_is_not_probabilities(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"restore expects \(C, h, w\)"):
        restore(np.zeros(shape, np.float32), 8, 8)


def test_letterbox_refuses_other_types_and_shapes() -> None:
    with pytest.raises(ValueError, match="letterbox expects"):
        letterbox(np.zeros((4, 4), np.float32), 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="letterbox_mask expects"):
        letterbox_mask(np.zeros((4, 4, 3), np.uint8), 8)
    with pytest.raises(ValueError, match="every side must be at least 1"):
        letterbox(np.zeros((0, 4), np.uint8), 8)


# --- polygons


def test_polygon_of_a_rectangle_covers_exactly_its_pixels() -> None:
    got = polygon_to_mask([[10, 20], [30, 20], [30, 60], [10, 60]], height=10, width=20)
    want = np.zeros((10, 20), bool)
    want[2:6, 2:6] = True
    assert np.array_equal(got, want)


@pytest.mark.parametrize("direction", [1, -1])
def test_polygon_direction_and_closing_point_do_not_matter(direction: int) -> None:
    ring = [[10, 20], [30, 20], [55, 60], [10, 90], [10, 20]]
    assert np.array_equal(polygon_to_mask(ring[::direction], 50, 70), polygon_to_mask(ring[:-1], 50, 70))


def test_polygon_outside_the_image_is_clipped_at_its_border() -> None:
    assert polygon_to_mask([[-50, -50], [150, -50], [150, 150], [-50, 150]], 6, 9).all()
    assert not polygon_to_mask([[110, 0], [120, 0], [120, 50]], 6, 9).any()


def test_self_intersecting_polygon_is_filled_as_on_a_canvas() -> None:
    star = [[50 + 50 * np.sin(k * 4 * np.pi / 5), 50 - 50 * np.cos(k * 4 * np.pi / 5)] for k in range(5)]
    assert polygon_to_mask(star, 101, 101)[50, 50]


@pytest.mark.parametrize("points", [[], [[1, 2]], [[1, 2], [3, 4]]])
def test_polygon_of_fewer_than_three_points_is_unreadable(points: list[list[float]]) -> None:
    with pytest.raises(UnreadableMask, match=rf"at least 3 points, got {len(points)}"):
        polygon_to_mask(points, 10, 10)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([[1, 2], [3, 4], [5]], "pairs of numbers"),
        ([["a", 2], [3, 4], [5, 6]], "pairs of numbers"),
        ([[1, 2, 3], [3, 4, 5], [5, 6, 7]], "pairs, got an array"),
        ([1, 2, 3, 4], "pairs, got an array"),
        ([[1, 2], [3, float("nan")], [5, 6]], "finite"),
        (None, "finite|pairs"),
    ],
)
def test_polygon_with_invalid_points_is_unreadable(points: Any, words: str) -> None:
    with pytest.raises(UnreadableMask, match=words):
        polygon_to_mask(points, 10, 10)


def back(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for ring in polygons:
        mask |= polygon_to_mask(ring, *shape)
    return mask


def test_a_bridge_to_a_hole_through_the_centre_of_a_pixel_changes_nothing() -> None:
    mask = np.ones((9, 5), bool)
    mask[[2, 2, 4, 8], [1, 3, 1, 3]] = False  # the bridge between the last two cuts through the middle of a pixel
    assert np.array_equal(back(mask_to_polygons(mask, tolerance=0), mask.shape), mask)


@settings(max_examples=200, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))))
def test_polygons_without_tolerance_reproduce_any_mask_exactly(mask: np.ndarray) -> None:
    assert np.array_equal(back(mask_to_polygons(mask, tolerance=0), mask.shape), mask)


@pytest.mark.parametrize(("height", "width"), [(200, 300), (601, 333)])
def test_simplified_polygons_keep_iou_above_98_percent(height: int, width: int) -> None:
    mask = disc(height, width, 90, 120, 60) & ~disc(height, width, 100, 110, 20)
    polygons = mask_to_polygons(mask)
    got = back(polygons, mask.shape)
    assert (got & mask).sum() / (got | mask).sum() > 0.98
    assert sum(map(len, polygons)) < 80


def test_polygons_are_one_per_component_largest_first_within_the_image() -> None:
    mask = disc(100, 100, 20, 20, 8) | disc(100, 100, 60, 60, 25) | disc(100, 100, 5, 95, 12)
    polygons = mask_to_polygons(mask)
    assert len(polygons) == 3
    assert [bool(polygon_to_mask(p, 100, 100)[c, c]) for p, c in zip(polygons[:1], [60], strict=True)] == [True]
    areas = [polygon_to_mask(p, 100, 100).sum() for p in polygons]
    assert areas == sorted(areas, reverse=True)
    assert all(((p >= 0) & (p <= 100)).all() for p in polygons)


def test_hole_stays_a_hole_in_one_closed_polygon() -> None:
    ring = disc(80, 80, 40, 40, 30) & ~disc(80, 80, 40, 40, 12)
    polygons = mask_to_polygons(ring)
    assert len(polygons) == 1
    assert not polygon_to_mask(polygons[0], 80, 80)[40, 40]


def test_empty_mask_has_no_polygons() -> None:
    assert mask_to_polygons(np.zeros((4, 4), bool)) == []


# --- label maps


def test_later_label_wins_where_masks_overlap() -> None:
    first, second = np.zeros((2, 3), bool), np.zeros((2, 3), bool)
    first[:, :2], second[:, 1:] = True, True
    assert merge_labels([(1, first), (2, second)], 2, 3).tolist() == [[1, 2, 2], [1, 2, 2]]
    assert merge_labels([(2, second), (1, first)], 2, 3).tolist() == [[1, 1, 2], [1, 1, 2]]


def test_no_masks_are_all_background() -> None:
    assert not merge_labels([], 5, 6).any()


def test_mask_of_another_size_is_unreadable() -> None:
    with pytest.raises(UnreadableMask, match=r"a mask is 9 x 5 pixels but its scan is 6 x 5\. Delete it"):
        merge_labels([(1, np.zeros((5, 9), bool))], 5, 6)


@pytest.mark.parametrize("number", [0, 255, -1])
def test_class_number_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=rf"class numbers are 1\.\.254 .*got {number}"):
        merge_labels([(number, np.zeros((5, 6), bool))], 5, 6)


@pytest.mark.skipif(not (SHARED / "data/montgomery_cxr").is_dir(), reason="shared/data/montgomery_cxr is not here")
def test_lung_masks_survive_the_network_grid_and_polygons() -> None:
    for path in sorted((SHARED / "data/montgomery_cxr/masks").glob("*.png"))[:8]:
        truth = (decode_image(path.read_bytes()) > 127).astype(np.uint8)
        box = letterbox(truth, 160)
        small = letterbox_mask(truth, 160)[box.content] == 1
        got = restore(np.stack([~small, small]).astype(np.float32), *truth.shape)
        assert 2 * (got & truth).sum() / (got.sum() + truth.sum()) > 0.98
        again = back(mask_to_polygons(truth.astype(bool)), truth.shape)
        assert (again & (truth > 0)).sum() / (again | (truth > 0)).sum() > 0.98
