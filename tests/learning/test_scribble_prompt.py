"""ScribblePrompt-UNet, from weights in its published format: what it draws is known from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from two_discs import IMAGE, LEFT, RIGHT, H, W, disc
from weight_files import scribble_prompt_file, scribble_prompt_forward, scribble_prompt_state

from backend.errors import WeightsMissing
from backend.formats.pixels import letterbox
from backend.learning.clicks import PATHS, SCRIBBLES, best_tool, dice
from backend.learning.geodesic import Geodesic, Seeds
from backend.learning.learner import Learner
from backend.learning.networks import scribble_prompt
from backend.learning.scribble_prompt import ScribblePrompt, ScribbleTool
from backend.learning.weights import weights_called
from backend.learning.weights_check import verify
from backend.settings import Settings

PICTURE, BOX = 0, 1  # channels of its input

SCAN = letterbox(IMAGE, 192)
PATHS_OF_SCAN = Geodesic(SCAN)


def tool(folder: Path, channel: int = PICTURE) -> ScribbleTool:
    return ScribblePrompt.load(scribble_prompt_file(folder, channel)).tool(SCAN, PATHS_OF_SCAN)


def test_the_network_is_the_one_that_its_authors_describe() -> None:
    state = scribble_prompt_state(at_random=True)
    network = scribble_prompt().eval()
    network.load_state_dict(state)
    x = torch.randn(2, 5, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(x), scribble_prompt_forward(state, x))


def test_one_click_draws_what_the_network_sees(tmp_path: Path) -> None:
    seeds = Seeds(inside=[(60.0, 50.0)])
    assert dice(tool(tmp_path).mask(seeds), LEFT | RIGHT) > 0.95
    assert dice(PATHS_OF_SCAN.mask(seeds), LEFT) > 0.9  # the paths alone draw the disc with the click


def test_every_click_counts(tmp_path: Path) -> None:
    seeds = Seeds(inside=[(60.0, 50.0), (5.5, 5.5)], outside=[(60.0, 150.0)])
    mask = tool(tmp_path).mask(seeds)
    assert mask[60, 50]
    assert mask[5, 5]
    assert not mask[60, 150]


def test_boxes_reach_the_network(tmp_path: Path) -> None:
    box = np.zeros((H, W), bool)
    box[20:80, 100:190] = True
    assert dice(tool(tmp_path, BOX).mask(Seeds(boxes=[box])), box) > 0.95
    mask = tool(tmp_path / "bright").mask(Seeds(boxes=[box], inside=[(60.0, 150.0)]))
    assert mask[60, 150]
    assert not (mask & ~box).any()  # the other disc is as bright


def test_a_mask_that_is_there_is_corrected_by_the_paths(tmp_path: Path) -> None:
    seeds = Seeds(outside=[(60.0, 50.0)], current=disc(60, 50, 24))
    assert np.array_equal(tool(tmp_path).mask(seeds), PATHS_OF_SCAN.mask(seeds))


def test_the_file_is_verified_and_an_invalid_one_is_not_used(tmp_path: Path) -> None:
    row = weights_called("scribbleprompt-unet")
    path = scribble_prompt_file(tmp_path)
    assert [one.state for one in verify(row, tmp_path)] == ["ok"]
    assert Learner(Settings(weights_dir=tmp_path), at_once=False).published_tool(SCRIBBLES) is not None
    path.write_bytes(path.read_bytes()[:-1000])
    assert [one.state for one in verify(row, tmp_path)] == ["truncated"]
    assert Learner(Settings(weights_dir=tmp_path), at_once=False).published_tool(SCRIBBLES) is None
    torch.save({"downs.0.conv.0.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsMissing, match="does not contain the weights of ScribblePrompt"):
        ScribblePrompt.load(path)
    path.unlink()
    assert Learner(Settings(weights_dir=tmp_path), at_once=False).published_tool(SCRIBBLES) is None


def test_the_best_tool_answers_and_only_one_that_is_there() -> None:
    compared = {"n": 4, "network": 0.7, "geodesic": 0.6, "scribbleprompt": 0.8}
    assert best_tool(compared) == SCRIBBLES
    assert best_tool(compared | {"network": 0.8}) == "network"
    assert best_tool(compared | {"network": 0.1}, ["network", PATHS]) == PATHS
