"""Window and level: DICOM's formulas on every kind of number, and the choice of the window."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.pixels import apply_windowing

from backend.formats import BadWindow, Geometry, VoiTable, Volume, Window, choose_window, cut, informative, to_uint8

KINDS = ("u1", "i1", "u2", "i2", ">i2", "<u2", "i4", "u4", "i8", "f4", "f8")


def volume(values: np.ndarray, **more: object) -> Volume:
    geometry = Geometry(values.shape[:3], np.diag([-1.0, -1, 1, 1]), (1.0, 1.0, 1.0), True, 2, "LPS", as_stored=True)
    facts = {"window": None, "inverted": False} | more
    return Volume(values, geometry, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID", "LINEAR_EXACT"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_matches_dicom(kind: str, function: str) -> None:
    """Compared with pydicom, which scales to 16 bits: rounding ties may differ by one."""
    low, high = (0, 255) if kind == "u1" else (-128, 127) if kind == "i1" else (-2000, 3000)
    low = max(low, 0) if "u" in kind else low
    picture = np.random.default_rng(0).integers(low, high, (64, 48)).astype(kind)
    header = Dataset()
    header.WindowCenter, header.WindowWidth, header.VOILUTFunction = 40.0, 401.0, function
    header.PhotometricInterpretation, header.BitsStored, header.PixelRepresentation = "MONOCHROME2", 16, 1
    theirs = np.rint((apply_windowing(picture.astype(np.int16), header) + 32768) / 65535 * 255)
    ours = to_uint8(picture, Window(40.0, 401.0, function), inverted=False)
    assert ours.dtype == np.uint8
    assert np.abs(ours - theirs).max() <= (1 if function == "LINEAR_EXACT" else 0)
    assert len(np.unique(ours)) > 50
    turned = to_uint8(picture, Window(40.0, 401.0, function), inverted=True)
    assert np.abs(turned + ours.astype(int) - 255).max() <= 1


def test_the_ends_of_a_linear_window_match_the_standard() -> None:
    """PS3.3 C.11.2.1.2.1, example: c = 2048, w = 4096 maps 0..4095 to black..white."""
    picture = np.array([[-5, 0, 1, 2047, 2048, 4094, 4095, 9000]], np.int16)
    assert to_uint8(picture, Window(2048, 4096), inverted=False).tolist() == [[0, 0, 0, 127, 128, 255, 255, 255]]
    threshold = to_uint8(picture, Window(2048, 1), inverted=False)  # w = 1: a threshold at c - 0.5
    assert threshold.tolist() == [[0, 0, 0, 0, 255, 255, 255, 255]]


def test_the_16_bit_lookup_table_gives_the_same_as_arithmetic() -> None:
    picture = np.arange(-32768, 32768, dtype=np.int16).reshape(256, 256)
    for window in (Window(-600.5, 1500), Window(0, 3, "SIGMOID"), Window(100, 0.5, "LINEAR_EXACT")):
        exact = to_uint8(picture.astype(np.float64), window, inverted=False)
        assert (to_uint8(picture, window, inverted=False) == exact).all()
        assert (to_uint8(picture.astype(np.int32), window, inverted=False) == exact).all()
    wide = picture.astype(np.int64) * 10**6  # too wide for a table
    assert (
        to_uint8(wide, Window(0, 4e10), inverted=False) == to_uint8(wide * 1.0, Window(0, 4e10), inverted=False)
    ).all()


def test_a_lut_in_the_header_is_applied() -> None:
    table = VoiTable(100, 12, tuple(range(0, 4096, 16)))
    picture = np.array([[-7, 99, 100, 101, 355, 356, 30000]], np.int16)
    shown = to_uint8(picture, Window(228, 256, "LINEAR", table), inverted=False)
    assert shown.tolist() == [[0, 0, 0, 1, 254, 254, 254]]


def test_nan_is_black_and_infinity_is_clipped() -> None:
    picture = np.array([[np.nan, -np.inf, np.inf, 0.5]], np.float32)
    window = Window(0.5, 1.0, "LINEAR_EXACT")
    assert to_uint8(picture, window, inverted=False).tolist() == [[0, 0, 255, 128]]
    assert to_uint8(picture, window, inverted=True).tolist() == [[0, 255, 0, 128]]
    assert np.isnan(picture[0, 0])  # not modified


def test_colour_is_unchanged() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    assert (to_uint8(picture, Window(1, 2), inverted=False) == picture).all()


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (Window(0, 0.5), "a LINEAR window needs a finite center and a width of at least 1, got 0 and 0.5"),
        (Window(0, 0, "SIGMOID"), "a width of more than 0"),
        (Window(float("nan"), 5, "LINEAR_EXACT"), "finite center"),
        (Window(0, 5, "CUBIC"), "LINEAR, LINEAR_EXACT or SIGMOID, not 'CUBIC'"),
    ],
)
def test_a_window_that_shows_nothing_is_refused(window: Window, words: str) -> None:
    with pytest.raises(BadWindow, match=words):
        to_uint8(np.zeros((2, 2), np.int16), window, inverted=False)


def test_the_requested_window_takes_precedence_then_the_header_then_the_percentiles() -> None:
    presets = {"LUNG": Window(-600, 1500), "Bone": Window(400, 1800)}
    scan = volume(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), window=presets["LUNG"], presets=presets)
    assert choose_window(scan, Window(1, 2)) == Window(1, 2)
    assert choose_window(scan, "bone") == presets["Bone"]
    assert choose_window(scan, None) == presets["LUNG"]
    found = choose_window(scan, "percentile")
    assert found.function == "LINEAR_EXACT"
    assert found.center - found.width / 2 == pytest.approx(np.percentile(np.arange(1000), 0.5))
    assert found.center + found.width / 2 == pytest.approx(np.percentile(np.arange(1000), 99.5))
    with pytest.raises(BadWindow, match=r"no window named 'BRAIN'; it has 2 others") as caught:
        choose_window(scan, "BRAIN")
    assert "it has 'LUNG', 'Bone'" in caught.value.shown


def test_padding_and_nan_do_not_affect_the_window() -> None:
    values = np.full((40, 40, 4), -2000, np.int16)
    values[10:30, 10:30] = np.random.default_rng(0).integers(0, 100, (20, 20, 4))
    assert choose_window(volume(values, padding=(-2000, -2000)), None).width < 101
    assert choose_window(volume(values), None).width > 2000
    holes = values.astype(np.float32)
    holes[values == -2000] = np.nan
    assert choose_window(volume(holes), None).width < 101


@pytest.mark.parametrize("value", [0, 7, -3.5, np.nan, np.inf])
def test_a_constant_volume_has_a_window(value: float) -> None:
    scan = volume(np.full((4, 4, 2), value, np.float32))
    shown = to_uint8(scan.values[:, :, 0], choose_window(scan, None), inverted=False)
    assert len(np.unique(shown)) == 1


def test_sampling_a_large_volume_hardly_changes_the_window() -> None:
    values = np.random.default_rng(0).normal(1000, 100, (300, 200, 100)).astype(np.int16)
    found = choose_window(volume(values), None)
    low, high = np.percentile(values, (0.5, 99.5))
    assert found.center - found.width / 2 == pytest.approx(low, abs=3)
    assert found.center + found.width / 2 == pytest.approx(high, abs=3)


def test_informative_slices_avoid_air_and_are_spread_out() -> None:
    rng = np.random.default_rng(0)
    values = np.zeros((40, 40, 50), np.int16)
    values[5:35, 5:35, 20:40] = rng.integers(0, 1000, (30, 30, 20))
    scan = volume(values)
    picked = informative(scan, cut(scan.geometry, "acquisition"), 5)
    assert len(picked) == len(set(picked)) == 5
    assert picked == sorted(picked)
    assert all(20 <= n < 40 for n in picked)
    assert min(np.diff(picked)) >= 2
    assert max(picked) - min(picked) >= 12


@pytest.mark.parametrize("k", [1, 2, 7, 10, 50])
def test_the_requested_number_of_informative_slices_is_found(k: int) -> None:
    values = np.zeros((8, 8, 10), np.uint8)
    values[..., 3] = np.arange(64).reshape(8, 8)  # one slice has it all
    scan = volume(values)
    picked = informative(scan, cut(scan.geometry, "acquisition"), k)
    assert len(set(picked)) == min(k, 10)
    assert 3 in picked
    with pytest.raises(ValueError, match="at least one slice"):
        informative(scan, cut(scan.geometry, "acquisition"), 0)


def test_identical_slices_are_selected_evenly() -> None:
    scan = volume(np.zeros((8, 8, 100), np.uint8))
    picked = informative(scan, cut(scan.geometry, "acquisition"), 4)
    assert np.diff([0, *picked, 100]).max() <= 40
