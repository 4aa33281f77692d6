"""Masks from clicks: what is found, and that no click is ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.formats.pixels import letterbox
from backend.learning.click_network import clicked
from backend.learning.geodesic import Geodesic, Seeds

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
Mask = NDArray[np.bool_]


def discs(
    shape: tuple[int, int], *places: tuple[int, int, int], colour: bool = False
) -> tuple[NDArray[np.uint8], Mask]:
    """(picture, mask): bright discs (row, column, radius) on a dark, noisy background."""
    down, across = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for row, column, radius in places:
        mask |= np.hypot(down - row, across - column) <= radius
    noise = np.random.default_rng(0).normal(0, 8, shape)
    picture = np.clip(np.where(mask, 170, 70) + noise, 0, 255).astype(np.uint8)
    return (np.dstack([picture, picture // 2, 255 - picture]) if colour else picture), mask


def dice(one: Mask, other: Mask) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def lesions() -> Iterator[tuple[NDArray[np.uint8], Mask]]:
    """Some breast ultrasound scans and their true masks."""
    root = DATA / "busi_ultrasound"
    for file in sorted((root / "masks").glob("*.png"))[:300:12]:
        truth = np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)) > 0
        if truth.any():
            picture = cv2.imread(str(next((root / "images").glob(f"{file.stem}.*"))), cv2.IMREAD_GRAYSCALE)
            assert picture is not None
            yield np.asarray(picture, np.uint8), np.asarray(truth)


def hippocampi() -> Iterator[tuple[NDArray[np.uint8], Mask]]:
    """The slices of two MR volumes, of 35 x 51 pixels or so, and their true masks, of 15 to some hundred pixels."""
    for file in sorted((DATA / "msd_hippocampus" / "images").glob("*.nii.gz"))[:2]:
        loaded: list[Any] = [nib.load(one) for one in (file, file.parents[1] / "masks" / file.name)]
        volume, masks = (np.asarray(one.dataobj) for one in loaded)
        picture = (255 * np.clip(volume / np.percentile(volume, 99.5), 0, 1)).astype(np.uint8)
        for z in range(masks.shape[2]):
            if (masks[:, :, z] > 0).sum() >= 15:
                yield np.ascontiguousarray(picture[:, :, z]), np.ascontiguousarray(masks[:, :, z] > 0)


def bitten(truth: Mask, number: int) -> tuple[Mask, Mask]:
    """The true mask with a bite or a bump somewhere on its outline, of a third of its width, and the disc of that."""
    edge = np.argwhere(truth & ~cv2.erode(truth.astype(np.uint8), np.ones((3, 3))).astype(bool))
    row, column = edge[np.random.default_rng(number).integers(len(edge))]
    radius = max(2, round(0.35 * float(np.sqrt(truth.sum() / np.pi))))
    disc = cv2.circle(np.zeros(truth.shape, np.uint8), (int(column), int(row)), radius, 1, -1) > 0
    return truth & ~disc if number % 2 else truth | disc, disc


def paths(picture: NDArray[np.uint8], side: int = 256) -> Geodesic:
    return Geodesic(letterbox(picture, side))


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("shape", [(300, 400), (97, 640), (1200, 1000)])
def test_one_click_finds_a_disc_in_scans_of_any_shape_and_colour(shape: tuple[int, int], colour: bool) -> None:
    row, column, radius = shape[0] // 2, shape[1] // 3, min(shape) // 4
    picture, truth = discs(shape, (row, column, radius), colour=colour)
    found = paths(picture).mask(Seeds(inside=[(row, column)]))
    assert found.shape == shape
    assert dice(found, truth) > 0.9


def test_a_box_finds_what_fills_it() -> None:
    picture, truth = discs((300, 400), (150, 130, 60))
    box = np.zeros((300, 400), bool)
    box[80:220, 60:200] = True
    assert dice(paths(picture).mask(Seeds(boxes=[box])), truth) > 0.9


def test_a_stroke_adds_a_second_finding_and_keeps_the_first() -> None:
    picture, both = discs((300, 400), (150, 100, 50), (150, 300, 50))
    current = both.copy()
    current[:, 200:] = False
    stroke = np.zeros_like(both)
    stroke[140:160, 295:305] = True
    found = paths(picture).mask(Seeds(drawn_in=[stroke], current=current))
    assert dice(found, both) > 0.9
    assert (found & stroke).sum() == stroke.sum()


def test_a_click_outside_takes_a_false_part_away_and_leaves_the_rest() -> None:
    picture, truth = discs((300, 400), (150, 100, 50))
    current = truth.copy()
    current[100:200, 250:350] = True
    found = paths(picture).mask(Seeds(outside=[(150, 300)], current=current))
    assert dice(found, truth) > 0.9


def test_without_prompts_nothing_is_drawn_and_with_only_clicks_outside_neither() -> None:
    picture, _ = discs((64, 64), (32, 32, 10))
    assert not paths(picture).mask(Seeds()).any()
    assert not paths(picture).mask(Seeds(outside=[(3, 3)])).any()


def test_a_click_on_one_of_two_findings_leaves_the_smaller_one() -> None:
    picture, truth = discs((300, 400), (150, 100, 70), (150, 320, 15))
    current = truth.copy()
    current[:, :60] = False  # a part of the large one is missing
    found = paths(picture).mask(Seeds(inside=[(150, 45)], current=current))
    assert dice(found, truth) > 0.9
    assert dice(found[:, 200:], truth[:, 200:]) > 0.8


def test_a_click_changes_a_good_mask_where_it_was_clicked_and_nowhere_else() -> None:
    """Real scans: the true mask, with a bite or a bump of a third of its width."""
    before, after, far = [], [], []
    for number, (picture, truth) in enumerate(lesions()):
        current, disc = bitten(truth, number)
        found = clicked(paths(picture).mask, truth, 1, current)[-1]
        before.append(dice(current, truth))
        after.append(dice(found, truth))
        away = cv2.dilate(disc.astype(np.uint8), np.ones((2 * round(np.sqrt(disc.sum() / np.pi)) + 1,) * 2)) == 0
        far.append(int((found != current)[away].sum()))
    assert len(after) > 15
    assert np.mean(after) > np.mean(before)
    assert np.mean(np.array(after) > np.array(before) - 0.005) > 0.9
    assert np.median(far) == 0


@pytest.mark.parametrize("scans", [lesions, hippocampi])
def test_more_clicks_do_not_make_a_good_mask_worse(
    scans: Callable[[], Iterator[tuple[NDArray[np.uint8], Mask]]],
) -> None:
    """Real scans: later clicks refine what the first one changed, also where the whole mask is a few pixels wide."""
    curves = []
    for number, (picture, truth) in enumerate(scans()):
        masks = clicked(paths(picture).mask, truth, 5, bitten(truth, number)[0])
        curves.append([dice(mask, truth) for mask in masks])
    first, *_, third, _, last = zip(*curves, strict=True)
    assert len(first) > 15
    assert np.all(np.diff(np.mean(curves, axis=0)) > -0.005)
    assert np.mean(third) > np.mean(first) + 0.01
    assert np.mean(np.array(last) < np.array(first) - 0.01) < 0.1
    assert np.min(curves) > 0.3  # no mask is taken away as a whole


def test_a_click_on_another_finding_leaves_the_first_as_it_was_drawn() -> None:
    picture, both = discs((300, 400), (150, 80, 40), (150, 320, 40))
    drawn = np.zeros_like(both)
    drawn[110:190, 40:120] = True  # a square around the first disc, drawn by hand
    found = paths(picture).mask(Seeds(inside=[(150, 320)], current=drawn))
    assert np.array_equal(found[:, :200], drawn[:, :200])
    assert dice(found[:, 200:], both[:, 200:]) > 0.9


def test_a_click_on_a_false_part_leaves_the_finding_beside_it() -> None:
    """Real scans: the true mask and a disc beside it, a third narrower; the click is outside, in its middle."""
    kept, left = [], []
    for picture, truth in [*lesions(), *hippocampi()]:
        depth, height = (cv2.distanceTransform(m.astype(np.uint8), cv2.DIST_L2, 5) for m in (truth, ~truth))
        radius = round(0.7 * float(depth.max()))
        room = cv2.distanceTransform(np.pad(np.ones(truth.shape, np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        places = np.argwhere((np.abs(height - 1.5 * radius - 2) <= 1) & (room > radius))
        if not len(places) or radius < 2:
            continue
        row, column = places[len(places) // 2]
        disc = cv2.circle(np.zeros(truth.shape, np.uint8), (int(column), int(row)), radius, 1, -1) > 0
        found = paths(picture).mask(Seeds(outside=[(row + 0.5, column + 0.5)], current=truth | disc))
        kept.append(dice(found & ~disc, truth & ~disc))
        left.append((found & disc).sum() / disc.sum())
    assert len(kept) > 50
    assert min(kept) > 0.95
    assert np.mean(left) < 0.05


def test_a_click_on_the_second_of_two_large_findings_leaves_the_first() -> None:
    """Chest radiographs: one lung is drawn, the click is in the middle of the other."""
    root, kept, found = DATA / "montgomery_cxr", [], []
    for file in sorted((root / "masks").glob("*.png"))[:50:5]:
        truth = np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)) > 0
        picture = np.asarray(cv2.imread(str(root / "images" / file.name), cv2.IMREAD_GRAYSCALE), np.uint8)
        _, lungs = cv2.connectedComponents(truth.astype(np.uint8))
        largest = np.argsort(np.bincount(lungs[truth]))[-2:]
        for one, other in (largest, largest[::-1]):
            depth = cv2.distanceTransform((lungs == other).astype(np.uint8), cv2.DIST_L2, 5)
            row, column = np.unravel_index(int(depth.argmax()), depth.shape)
            drawn = paths(picture).mask(Seeds(inside=[(float(row), float(column))], current=lungs == one))
            kept.append(bool(drawn[lungs == one].all()))
            found.append((drawn & (lungs == other)).sum() / (lungs == other).sum())
    assert len(kept) == 20
    assert np.mean(kept) > 0.9
    assert np.mean(found) > 0.4


def test_later_clicks_do_not_spoil_what_earlier_ones_drew() -> None:
    """Real scans, from blank: each click is in the middle of the largest error."""
    curves = np.array([[dice(m, truth) for m in clicked(paths(p).mask, truth, 6)[1:]] for p, truth in lesions()])
    assert np.all(np.diff(curves, axis=1) > -0.1)
    assert curves[:, -1].mean() > 0.85
    assert curves[:, -1].min() > 0.6


def test_after_undo_the_answer_is_the_one_before() -> None:
    """Also with a tool that has answered the clicks one after the other."""
    picture, truth = discs((300, 400), (150, 80, 40), (150, 320, 40))
    places = [(150.0, 80.0), (150.0, 320.0), (180.0, 320.0), (120.0, 80.0)]
    asked = [Seeds(inside=places[:count]) for count in range(1, len(places) + 1)]
    ready = paths(picture)
    answers = [ready.mask(seeds) for seeds in asked]
    assert dice(answers[-1], truth) > 0.9
    for seeds, answer in [*zip(asked, answers, strict=True)][::-1]:
        assert np.array_equal(ready.mask(seeds), answer)
        assert np.array_equal(paths(picture).mask(seeds), answer)


def test_of_two_clicks_in_one_cell_of_the_grid_the_later_one_counts() -> None:
    picture, truth = discs((2000, 1600), (1000, 800, 500))
    bitten_off = truth & (np.hypot(*(np.mgrid[:2000, :1600] - np.array([[[1000]], [[400]]]))) > 200)
    seeds = Seeds(current=bitten_off)
    seeds.click((1000, 400), inside=False)
    seeds.click((1000, 404), inside=True)
    assert paths(picture).mask(seeds).sum() > bitten_off.sum() + 1000


points = st.lists(st.tuples(st.floats(0, 59.99), st.floats(0, 89.99)), max_size=5)


@settings(max_examples=60, deadline=None)
@given(points, points, st.booleans(), st.integers(0, 255))
def test_every_click_counts(
    inside: list[tuple[float, float]], outside: list[tuple[float, float]], seeded: bool, level: int
) -> None:
    cells = [{(int(r), int(c)) for r, c in some} for some in (inside, outside)]
    if cells[0] & cells[1]:
        return
    picture, truth = discs((60, 90), (30, 40, 12))
    picture[:, 60:] = level  # a part without contrast
    found = paths(picture, 96).mask(Seeds(inside=inside, outside=outside, current=truth if seeded else None))
    if inside or seeded:
        assert all(found[cell] for cell in cells[0])
    assert not any(found[cell] for cell in cells[1])


def test_three_clicks_draw_breast_lesions_of_which_the_first_mask_had_missed_a_half() -> None:
    """Real scans: the mask so far is the true one, shifted by half of its width."""
    before, after = [], []
    for picture, truth in lesions():
        columns = np.flatnonzero(truth.any(axis=0))
        current = np.roll(truth, (columns[-1] - columns[0]) // 2, axis=1)
        before.append(dice(current, truth))
        after.append(dice(clicked(paths(picture).mask, truth, 3, current)[-1], truth))
    assert len(after) >= 15
    assert np.mean(after) > np.mean(before) + 0.15
    assert np.mean(after) > 0.75
