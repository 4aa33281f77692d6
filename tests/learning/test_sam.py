"""Segment Anything and its relatives, from weights in their published formats."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from two_discs import IMAGE, LEFT, RIGHT, H, W
from typer.testing import CliRunner
from weight_files import mobile_sam_whole, sam_folder

from backend import cli
from backend.doctor.service import check_clicks
from backend.errors import WeightsMissing
from backend.formats.pixels import letterbox
from backend.learning import sam
from backend.learning.clicks import MEDSAM, MOBILESAM, PATHS, SAM, SAM2, UNCOMPARED, best_tool, dice
from backend.learning.embedders import _candidates
from backend.learning.geodesic import Geodesic, Seeds
from backend.learning.learner import Learner
from backend.learning.networks import SAM_TENSORS
from backend.learning.sam import Prompt, Sam
from backend.learning.weights import BIOMEDCLIP, BUILTIN, weights_called
from backend.learning.weights_check import verify
from backend.settings import Settings

SCAN = letterbox(IMAGE, 512)
PATHS_OF_SCAN = Geodesic(SCAN)
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sam_folder(tmp_path_factory.mktemp("bright"), bright=True) / FILE


@pytest.fixture(scope="module")
def mobile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "mobilesam" / "mobile_sam.pt"
    file.parent.mkdir()
    torch.save(mobile_sam_whole(), file)
    return file


def drawn(file: Path, seeds: Seeds, name: str = SAM) -> np.ndarray:
    return Sam.load(name, file).tool(SCAN, PATHS_OF_SCAN).mask(seeds)


def test_mobile_sam_is_what_its_authors_describe(mobile_file: Path) -> None:
    """Clicks, box and mask, from the pixels to the mask, against the library of Segment Anything."""
    from segment_anything import SamPredictor
    from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
    from segment_anything.modeling import Sam as Reference

    picture = np.random.default_rng(1).integers(0, 255, (1024, 600, 3), dtype=np.uint8)  # not resized by either
    tool = Sam.load(MOBILESAM, mobile_file).tool(letterbox(picture, 1024), Geodesic(letterbox(picture, 256)))
    features = tool._network.features(tool._picture)

    class Encoder(torch.nn.Module):
        """The same, which test_embedders compares with its description."""

        img_size = 1024

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.testing.assert_close(x, tool._network._ready(tool._picture), rtol=1e-4, atol=1e-4)
            return features[0]

    tensors = torch.load(mobile_file)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    parts = PromptEncoder(256, (64, 64), (1024, 1024), 16), MaskDecoder(transformer_dim=256, transformer=transformer)
    reference = Reference(Encoder(), *parts, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]).eval()
    decoder = {name: value for name, value in tensors.items() if not name.startswith("image_encoder.")}
    assert not reference.load_state_dict(decoder, strict=False).unexpected_keys
    predictor = SamPredictor(reference)
    predictor.set_image(picture)
    point, other, box = (300.5, 200.5), (700.5, 500.5), np.zeros((1024, 600), bool)
    box[100:900, 50:550] = True
    mask = np.zeros_like(box)
    mask[256:512, 128:512] = True
    for seeds in (
        Seeds(inside=[point]),
        Seeds(inside=[point], outside=[other]),
        Seeds(inside=[point], boxes=[box]),
        Seeds(boxes=[box]),
        Seeds(inside=[point], current=mask),
    ):
        (prompt,) = tool._prompts(seeds)
        found = tool._network.logits(features, prompt)
        points = [(x - 0.5, y - 0.5) for y, x in [*seeds.inside, *seeds.outside]]
        low = np.where(mask.reshape(256, 4, 150, 4)[:, 0, :, 0], 10.0, -10.0) if seeds.current is not None else None
        masks, scores, logits = predictor.predict(
            point_coords=np.array(points) if points else None,
            point_labels=np.array([1, 0][: len(points)]) if points else None,
            box=np.array([50, 100, 550, 900]) - 0.5 if seeds.boxes else None,
            mask_input=np.pad(low, ((0, 0), (0, 106)), constant_values=-10.0)[None] if low is not None else None,
            multimask_output=seeds.current is None and not seeds.boxes and len(points) == 1,
        )
        best = int(scores.argmax())
        assert np.allclose(found, logits[best], rtol=1e-2, atol=1e-3 * np.abs(logits[best]).max())
        assert (tool._drawn(found) == masks[best]).mean() > 0.999


@pytest.mark.parametrize("name", [SAM, MEDSAM])
def test_what_the_network_draws_is_in_its_place_in_the_scan(bright: Path, name: str) -> None:
    """Into padded and squeezed squares, and back."""
    mask = drawn(bright, Seeds(inside=[(60.0, 50.0)]), name)
    assert dice(mask, LEFT | RIGHT) > 0.9
    assert dice(PATHS_OF_SCAN.mask(Seeds(inside=[(60.0, 50.0)])), LEFT) > 0.9  # the paths alone draw one disc


@pytest.mark.parametrize("name", [SAM, MEDSAM, SAM2])
def test_every_click_counts_whatever_the_network_draws(tmp_path: Path, name: str) -> None:
    file = sam_folder(tmp_path, "sam2" if name == SAM2 else "sam") / FILE
    tool = Sam.load(name, file).tool(SCAN, PATHS_OF_SCAN)
    stroke = np.zeros((H, W), bool)
    stroke[100:103, 20:80] = True
    for seeds in (
        Seeds(inside=[(60.0, 50.0), (5.5, 5.5)], outside=[(60.0, 150.0)]),
        Seeds(inside=[(60.0, 50.0)], outside=[(60.0, 60.0)], current=LEFT),
        Seeds(inside=[(60.0, 50.0)], drawn_out=[stroke]),
        Seeds(drawn_in=[stroke]),
    ):
        mask = tool.mask(seeds)
        assert all(mask[int(row), int(column)] for row, column in seeds.inside)
        assert not any(mask[int(row), int(column)] for row, column in seeds.outside)
        assert all(mask[one].all() for one in seeds.drawn_in)
        assert not any(mask[one].any() for one in seeds.drawn_out)
    assert not tool.mask(Seeds(outside=[(60.0, 50.0)])).any()


def test_nothing_outside_the_boxes_is_drawn(bright: Path) -> None:
    box, other = np.zeros((H, W), bool), np.zeros((H, W), bool)
    box[30:90, 120:180] = True
    other[30:90, 20:80] = True
    assert dice(drawn(bright, Seeds(boxes=[box])), RIGHT) > 0.9
    assert dice(drawn(bright, Seeds(boxes=[box, other])), LEFT | RIGHT) > 0.9
    mask = drawn(bright, Seeds(boxes=[box], inside=[(60.0, 150.0), (5.5, 5.5)]))
    assert not (mask & LEFT).any()
    assert mask[5, 5]  # a click counts there, too


def test_a_click_changes_a_mask_around_the_click_only(bright: Path) -> None:
    lacking = (LEFT & (np.arange(W) < 55)) | (RIGHT & (np.arange(W) < 155))
    mask = drawn(bright, Seeds(inside=[(60.0, 58.0)], current=lacking))
    left = np.arange(W) < 100
    assert dice(mask & left, LEFT) > 0.9
    assert np.array_equal(mask & ~left, lacking & ~left)  # though the network draws this disc as well


def test_an_image_is_encoded_once_and_few_are_kept(bright: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Sam.load(SAM, bright)
    first, other = np.zeros((1024, 1024), np.uint8), np.full((1024, 1024), 9, np.uint8)
    kept = network.features(first)
    assert network.features(first.copy())[0] is kept[0]
    monkeypatch.setattr(sam, "KEPT", kept[0].nelement() * 4)  # room for one
    network.features(other)
    assert network.features(first)[0] is not kept[0]


def test_a_click_that_cannot_wait_is_answered_by_the_paths(bright: Path) -> None:
    network = Sam.load(SAM, bright)
    seeds = Seeds(inside=[(60.0, 50.0)])
    with network._lock:  # another scan is being encoded
        tool = network.tool(SCAN, PATHS_OF_SCAN, patience=0.01)
        assert np.array_equal(tool.mask(seeds), PATHS_OF_SCAN.mask(seeds))
    tool._begun.result()
    assert dice(tool.mask(seeds), LEFT | RIGHT) > 0.9


def test_files_that_are_missing_damaged_or_of_another_network_are_named(bright: Path, tmp_path: Path) -> None:
    folder = sam_folder(tmp_path / "sam2", "sam2")
    with pytest.raises(WeightsMissing, match="does not contain the weights of sam:"):
        Sam.load(SAM, folder / FILE)
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.json").write_bytes((bright.parent / "config.json").read_bytes())
    (cut / FILE).write_bytes(bright.read_bytes()[:-1000])
    with pytest.raises(WeightsMissing, match=str(cut / FILE)):
        Sam.load(SAM, cut / FILE)
    torch.save({"image_encoder.neck.0.weight": torch.zeros(1)}, tmp_path / "mobile_sam.pt")
    with pytest.raises(WeightsMissing, match="tensors are missing or have another shape"):
        Sam.load(MOBILESAM, tmp_path / "mobile_sam.pt")


@pytest.fixture
def without_library(bright: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image that was built without the extra."""
    monkeypatch.setitem(sys.modules, "transformers", None)


def placed(bright: Path, folder: Path) -> Path:
    """The network in a weights folder, with tensors by which the file is known as SAM's."""
    place = folder / "sam-vit-base" / FILE
    place.parent.mkdir(parents=True)
    (place.parent / "config.json").write_bytes((bright.parent / "config.json").read_bytes())
    save_file({name: torch.zeros(shape) for name, shape in SAM_TENSORS.items()}, place)
    return place


LACKING = "cannot answer clicks: the library transformers is not installed."


@pytest.mark.usefixtures("without_library")
def test_without_the_library_the_log_and_the_doctor_name_the_extra(
    bright: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = placed(bright, tmp_path)
    settings = Settings(weights_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        assert Learner(settings, at_once=False).published_tool(SAM) is None
    (found,) = check_clicks(settings)
    assert (found.level, found.what) == ("warning", f"{file} {LACKING}")
    assert "set EXTRAS=sam in .env, then run `docker compose build`" in found.cure
    assert found.cure.endswith("pip install 'scanqueue[sam]' and restart scanqueue.")
    assert f"clicks are answered without sam until this is fixed and scanqueue restarted: {found.what}" in caplog.text
    assert found.cure.rstrip(".") in caplog.text


@pytest.mark.parametrize("command", [["list"], ["verify"], ["fetch", "sam-vit-base"]], ids=lambda words: words[0])
def test_commands_name_the_extra_if_the_library_is_not_installed(
    bright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    def run(*options: str) -> str:
        done = CliRunner().invoke(cli.app, ["weights", *command, "--weights-dir", str(tmp_path), *options])
        assert done.exit_code == 0, done.output
        return done.stdout

    file = placed(bright, tmp_path)
    assert LACKING not in run()
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert f"{file} {LACKING} With Docker, set EXTRAS=sam in .env" in run()
    if command[0] != "fetch":
        assert run("--json").count(f"{file} {LACKING}") == 1
    file.unlink()
    if command[0] == "list":
        assert LACKING not in run()


def test_networks_in_the_weights_folder_are_found_and_invalid_ones_are_left_out(
    mobile_file: Path, bright: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = mobile_file.parent.parent
    place = folder / "medsam-vit-base"
    place.mkdir()
    for file in bright.parent.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    (folder / "sam2.1-hiera-tiny").mkdir()
    (folder / "sam2.1-hiera-tiny" / FILE).write_bytes(b"no weights")
    learner = Learner(Settings(weights_dir=folder), at_once=False)
    with caplog.at_level(logging.WARNING):
        assert set(learner._published.all("cpu")) == {MEDSAM, MOBILESAM}
    assert "clicks are answered without sam2" in caplog.text
    assert learner.published_tool(SAM) is None
    assert [name for name, _ in _candidates(folder)] == [BIOMEDCLIP, BUILTIN]  # `auto` does not take them for embedders
    states = {row: [one.state for one in verify(weights_called(row), folder)] for row in (
        "medsam-vit-base", "sam2.1-hiera-tiny", "sam-vit-base")}  # fmt: skip
    assert states == {"medsam-vit-base": ["wrong", "ok"], "sam2.1-hiera-tiny": ["wrong", "missing"],
                      "sam-vit-base": ["missing"]}  # fmt: skip
    (place / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "the network bert, not sam" in verify(weights_called("medsam-vit-base"), folder)[1].what


def test_the_best_tool_answers_and_before_a_comparison_only_those_that_know_clicks() -> None:
    compared = {"n": 4, "network": 0.7, "geodesic": 0.6, "medsam": 0.8, "mobilesam": 0.75}
    assert best_tool(compared) == MEDSAM
    assert best_tool(compared, ["network", MOBILESAM, PATHS]) == MOBILESAM
    assert MEDSAM not in UNCOMPARED
    assert MOBILESAM not in UNCOMPARED


def test_a_box_stands_for_the_clicks_of_medsam(bright: Path) -> None:
    tool = Sam.load(MEDSAM, bright).tool(SCAN, PATHS_OF_SCAN)
    (prompt,) = tool._prompts(Seeds(inside=[(60.0, 50.0)]))
    assert prompt == replace(Prompt(), box=prompt.box)
    assert prompt.box is not None
    scale = np.array([1024 / W, 1024 / H] * 2)
    assert np.allclose(np.array(prompt.box) / scale, [30, 40, 70, 80], atol=4)
