"""The network that corrects masks from clicks."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.demo.phantoms import phantom
from backend.errors import WeightsMissing
from backend.formats.pixels import letterbox
from backend.learning.cases import Case
from backend.learning.click_network import ClickNetwork, ClickTool, clicked, compare_tools, learn_clicks
from backend.learning.clicks import dice, next_click
from backend.learning.geodesic import Geodesic, Seeds
from backend.learning.patch_features import SIDE, PatchFeatures

SIZE, LEARNT, TESTED, STEPS = 160, 12, 6, 80


class Made(NamedTuple):
    cases: list[Case]
    features: NDArray[np.float16]
    network: ClickNetwork

    def tools(self, place: int) -> tuple[ClickTool, Geodesic]:
        """The network and the paths on a scan."""
        paths = Geodesic(self.cases[place].scan)
        return self.network.tool(self.cases[place].scan, self.features[place], paths), paths


def case(seed: int) -> Case:
    """A phantom whose lungs have one of two labels."""
    random = np.random.default_rng(seed)
    image, masks = phantom(seed, (SIZE, SIZE))
    return Case(letterbox(image, SIDE), masks["Lung"].astype(np.uint8) * int(random.integers(1, 3)))


@pytest.fixture(scope="module")
def made() -> Made:
    cases = [case(seed) for seed in range(LEARNT + TESTED)]
    features = PatchFeatures("cpu")([one.scan.pixels for one in cases])
    network = learn_clicks(cases[:LEARNT], lambda place: features[place], steps=STEPS, seed=0)
    assert network is not None
    return Made(cases, features, network)


def test_one_click_draws_what_the_lab_has_drawn_before(made: Made) -> None:
    learnt, paths = [], []
    for place in range(LEARNT, LEARNT + TESTED):
        truth = made.cases[place].mask > 0
        tool, geodesic = made.tools(place)
        learnt.append(dice(clicked(tool.mask, truth, 1)[1], truth))
        paths.append(dice(clicked(geodesic.mask, truth, 1)[1], truth))
    assert np.mean(learnt) > np.mean(paths) + 0.1  # a click on one lung does not tell of the other
    assert np.mean(learnt) > 0.75


def test_every_click_counts(made: Made) -> None:
    tool, _ = made.tools(LEARNT)
    random = np.random.default_rng(1)
    for _ in range(10):
        inside, outside = ([tuple(point) for point in random.uniform(1, SIZE - 1, (2, 2))] for _ in range(2))
        found = tool.mask(Seeds(inside=inside, outside=outside))
        assert all(found[int(row), int(column)] for row, column in inside)
        assert not any(found[int(row), int(column)] for row, column in outside)


def test_a_mask_that_is_there_is_corrected_by_the_paths_and_not_replaced(made: Made) -> None:
    tool, paths = made.tools(LEARNT)
    seeds = Seeds(inside=[(80.0, 50.0)], current=made.cases[LEARNT].mask > 0)
    assert np.array_equal(tool.mask(seeds), paths.mask(seeds))
    assert not np.array_equal(tool.drawn(seeds), paths.mask(seeds))


def test_where_a_click_shows_that_a_mask_is_wrong_as_a_whole_the_network_draws_anew(made: Made) -> None:
    learnt, paths = [], []
    for place in range(LEARNT, LEARNT + TESTED):
        truth = made.cases[place].mask > 0
        tool, geodesic = made.tools(place)
        rows = np.flatnonzero(truth.any(axis=1))
        part = truth.copy()
        part[: rows[0] + len(rows) // 2] = False  # the upper halves are missing
        seeds = Seeds(current=part)
        inside, at = next_click(part, truth) or (False, (0.0, 0.0))
        (seeds.inside if inside else seeds.outside).append(at)
        learnt.append(dice(tool.mask(seeds), truth))
        paths.append(dice(geodesic.mask(seeds), truth))
    assert np.mean(learnt) > np.mean(paths) + 0.1


def test_what_the_network_draws_anew_leaves_other_findings(made: Made) -> None:
    """One lung is drawn. A click in the other one draws that; a click on a false part beside takes that away."""
    added = []
    for place in range(LEARNT, LEARNT + TESTED):
        truth = made.cases[place].mask > 0
        _, lungs = cv2.connectedComponents(truth.astype(np.uint8))
        one, other = (lungs == number for number in np.argsort(np.bincount(lungs[truth]))[-2:])
        inside, at = next_click(one, truth) or (False, (0.0, 0.0))
        tool, _ = made.tools(place)
        found = tool.mask(Seeds(inside=[at], current=one))
        assert inside
        assert found[one].mean() > 0.95
        added.append((found & other).sum() / other.sum())
        corner = np.zeros_like(truth)
        corner[2:12, 2:12] = True
        assert np.array_equal(tool.mask(Seeds(outside=[(7.0, 7.0)], current=one | corner)), one & ~corner)
    assert np.mean(added) > 0.4


def test_the_tools_are_compared_on_scans_that_were_not_learnt_from(made: Made) -> None:
    found = compare_tools(made.network, made.cases[LEARNT:], lambda place: made.features[LEARNT + place])
    assert found is not None
    assert (found["n"], found["clicks"]) == (TESTED, 3)
    assert 0.5 < found["network"] <= 1
    assert 0.3 < found["geodesic"] <= 1
    blank = Case(made.cases[0].scan, np.zeros((SIZE, SIZE), np.uint8))
    assert compare_tools(made.network, [blank], lambda place: made.features[0]) is None


def test_a_stored_network_draws_the_same_and_a_damaged_one_says_so(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "clicks.safetensors"
    made.network.save(file)
    scan, seeds = made.cases[0].scan, Seeds(inside=[(80.0, 50.0)], outside=[(3.0, 80.0)])
    one, other = (
        network.tool(scan, made.features[0], Geodesic(scan)).mask(seeds)
        for network in (made.network, ClickNetwork.load(file))
    )
    assert np.array_equal(one, other)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsMissing, match=r"clicks\.safetensors"):
        ClickNetwork.load(file)


def test_the_same_scans_give_the_same_network_and_no_finding_gives_none(made: Made) -> None:
    one, other = (learn_clicks(made.cases[:3], lambda place: made.features[place], steps=3, seed=5) for _ in range(2))
    assert one is not None
    assert other is not None
    for mine, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert np.array_equal(mine.detach().numpy(), theirs.detach().numpy())
    unknown = Case(made.cases[0].scan, made.cases[0].mask, frozenset({1, 2}))
    assert learn_clicks([unknown], lambda place: made.features[0], steps=1, seed=0) is None
