"""Segmenters: every architecture gives the same guarantees; files are restored; errors say what to do."""

from __future__ import annotations

import json
import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.errors import BadSetting, StorageFull, WeightsMissing
from backend.formats.pixels import Letterboxed, letterbox
from backend.label_config import MAX_LABELS
from backend.learning.segmenters import SEGMENTERS, Segmenter, SegmenterSpec

SHARED = Path(__file__).parents[3] / "shared"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100"
SPEC = SegmenterSpec("unet", "mobilenet_v2", 1, 64, ("lung", "heart"), (16, 16, 16, 8, 8))


def made(spec: SegmenterSpec = SPEC, seed: int = 0) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Segmenter.create(spec)


def scans(*shapes: tuple[int, ...], size: int = 64) -> list[Letterboxed]:
    generator = np.random.default_rng(0)
    return [letterbox(generator.integers(0, 256, shape, dtype=np.uint8), size) for shape in shapes]


@pytest.fixture(params=sorted(SEGMENTERS))
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return made(replace(SPEC, architecture=request.param))


# --- what every architecture guarantees


def test_probabilities_are_cropped_to_the_content_and_sum_to_one(segmenter: Segmenter) -> None:
    batch = scans((50, 90), (90, 50), (64, 64), (10, 300, 3))
    answers = segmenter.predict(batch, batch_size=3)
    for answer, scan in zip(answers, batch, strict=True):
        assert answer.shape == (3, scan.height, scan.width)
        assert answer.dtype == np.float32
        assert np.allclose(answer.sum(axis=0), 1, atol=1e-5)


def test_batching_does_not_change_the_predictions(segmenter: Segmenter) -> None:
    batch = scans((50, 90), (90, 50), (64, 64))
    batched, single = segmenter.predict(batch), segmenter.predict(batch, batch_size=1)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(batched, single, strict=True))


def test_the_content_of_the_padding_does_not_matter(segmenter: Segmenter) -> None:
    (clean,) = scans((30, 90))
    noise = np.random.default_rng(1).integers(0, 256, clean.pixels.shape, dtype=np.uint8)
    noise[clean.content] = clean.pixels[clean.content]
    (a,), (b,) = segmenter.predict([clean]), segmenter.predict([replace(clean, pixels=noise)])
    assert np.array_equal(a, b)


def test_brightness_and_contrast_of_the_scanner_do_not_matter(segmenter: Segmenter) -> None:
    (scan,) = scans((64, 64))
    plain = replace(scan, pixels=(scan.pixels // 4) * 2)
    brighter = replace(scan, pixels=(scan.pixels // 4) * 3 + 40)
    (a,), (b,) = segmenter.predict([plain]), segmenter.predict([brighter])
    assert np.allclose(a, b, atol=1e-3)


def test_saved_and_loaded_segmenter_predicts_the_same(segmenter: Segmenter, tmp_path: Path) -> None:
    segmenter.save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model.json", "model.safetensors"]
    loaded = Segmenter.load(tmp_path)
    assert loaded.spec == segmenter.spec
    batch = scans((50, 90), (64, 64))
    for a, b in zip(segmenter.predict(batch), loaded.predict(batch), strict=True):
        assert np.array_equal(a, b)


def test_prediction_and_loading_leave_the_global_random_state_alone(segmenter: Segmenter, tmp_path: Path) -> None:
    segmenter.save(tmp_path)
    before = torch.get_rng_state()
    Segmenter.load(tmp_path).predict(scans((64, 64)))
    assert torch.equal(before, torch.get_rng_state())


# --- channels


def test_no_scans_give_no_predictions() -> None:
    assert made().predict([]) == []


def test_a_colour_network_gets_a_gray_scan_in_three_equal_channels() -> None:
    segmenter = made(replace(SPEC, channels=3))
    (gray,) = scans((40, 64))
    colour = replace(gray, pixels=np.repeat(gray.pixels[..., None], 3, axis=2))
    a, b = segmenter.predict([gray, colour])
    assert np.allclose(a, b, atol=1e-5)


def test_a_gray_network_gets_a_colour_scan_as_luminance() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, :, 1], pixels[32:, :, 0], pixels[:, :20, 2] = 200, 100, 50
    colour = letterbox(pixels, 64)
    luminance = pixels.astype(float) @ (0.299, 0.587, 0.114)
    gray = letterbox(np.rint(luminance).astype(np.uint8), 64)
    a, b = made().predict([colour, gray])
    assert np.allclose(a, b, atol=0.02)


def test_scan_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="letterboxed to 64, got 32 x 32"):
        made().predict(scans((32, 32), size=32))


# --- specs


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("architecture", "segnet", r"unknown segmenter 'segnet'; choose from unet, unetplusplus"),
        ("encoder", "resnet19", r"unknown encoder 'resnet19'; choose one of .*tu-NAME for a timm model"),
        ("encoder", "tu-resnet19", r"unknown encoder 'tu-resnet19'"),
        ("channels", 2, r"channels must be 1 \(gray\) or 3 \(colour\), got 2"),
        ("image_size", 100, r"image_size must be a multiple of 32, got 100; use 96 or 128"),
        ("image_size", 0, r"image_size must be a multiple of 32, got 0; use 32 or 64"),
        ("labels", (), r"1 to 253 labels, got 0"),
        ("labels", ("a",) * (MAX_LABELS + 1), r"1 to 253 labels, got 254"),
        ("decoder_channels", (16, 8), r"five positive widths"),
    ],
)
def test_an_impossible_spec_is_refused_with_the_reason(field: str, value: object, words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        replace(SPEC, **{field: value})  # type: ignore[arg-type]


# --- files


def test_the_error_for_a_missing_model_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"model\.json is missing; activate another version or train"):
        Segmenter.load(tmp_path)
    made().save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=r"model\.safetensors is missing"):
        Segmenter.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights_are_reported_as_damaged(tmp_path: Path, share: float) -> None:
    made().save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(WeightsMissing, match=r"is damaged .*train again"):
        Segmenter.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "labels": ["a"]}'])
def test_a_damaged_spec_is_reported_as_damaged(tmp_path: Path, text: str) -> None:
    made().save(tmp_path)
    (tmp_path / "model.json").write_text(text)
    said = "another version of scanqueue" if "99" in text else "is damaged"
    with pytest.raises(WeightsMissing, match=said):
        Segmenter.load(tmp_path)


def test_weights_of_another_network_are_reported_as_damaged(tmp_path: Path) -> None:
    made().save(tmp_path)
    spec = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(spec | {"labels": ["only one"]}))
    with pytest.raises(WeightsMissing, match="is damaged"):
        Segmenter.load(tmp_path)


def test_full_disk_while_saving_is_storage_full(tmp_path: Path) -> None:
    """A write that really fails: the kernel limits the file to 100 kB (RLIMIT_FSIZE), like a full disk."""
    segmenter = made()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageFull) as caught:
            segmenter.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value).startswith("the model could not be saved (")
    assert str(caught.value).endswith("File too large; free some space, then train again")


def test_saving_into_a_missing_folder_is_storage_full(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match=r"No such file or directory; check that the data folder exists"):
        made().save(tmp_path / "gone")


# --- encoder weights


def test_local_smp_weights_fill_the_encoder(tmp_path: Path) -> None:
    donor = made(replace(SPEC, channels=3), seed=5)
    file = tmp_path / "encoder.safetensors"
    save_file({k: v.contiguous() for k, v in donor.network.encoder.state_dict().items()}, file)
    got = Segmenter.create(replace(SPEC, channels=3), encoder_weights=file).network.encoder.state_dict()
    for name, value in donor.network.encoder.state_dict().items():
        assert torch.equal(got[name], value), name
    gray = Segmenter.create(SPEC, encoder_weights=file).network.encoder.features[0][0].weight
    assert torch.allclose(gray, donor.network.encoder.features[0][0].weight.sum(dim=1, keepdim=True))


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="shared/weights/mobilenetv2_100 is not here")
@pytest.mark.parametrize("channels", [1, 3])
def test_timm_folder_fills_the_encoder(channels: int) -> None:
    spec = replace(SPEC, encoder="tu-mobilenetv2_100", channels=channels)
    stem = Segmenter.create(spec, encoder_weights=WEIGHTS).network.encoder.model.conv_stem.weight
    stored = load_file(WEIGHTS / "model.safetensors")["conv_stem.weight"]
    assert torch.allclose(stem, stored if channels == 3 else stored.sum(dim=1, keepdim=True))


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "encoder.safetensors"
    save_file({k: v.contiguous() for k, v in made().network.encoder.state_dict().items()}, file)
    for encoder in ("resnet18", "tu-resnet10t"):
        with pytest.raises(WeightsMissing, match=f"do not belong to the encoder {encoder}: .*Choose the encoder"):
            Segmenter.create(replace(SPEC, encoder=encoder), encoder_weights=file)


def test_missing_and_invalid_encoder_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"no encoder weights at .*nowhere; check the path"):
        Segmenter.create(SPEC, encoder_weights=tmp_path / "nowhere")
    for name in ("text.safetensors", "text.pth"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(WeightsMissing, match=f"cannot be read: .*{name} contains no weights"):
            Segmenter.create(SPEC, encoder_weights=tmp_path / name)


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "tu-mobilenetv2_100"])
def test_a_failed_download_falls_back_to_random_weights_and_reports_it_at_once(
    encoder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens on the discard port
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    segmenter = Segmenter.create(replace(SPEC, encoder=encoder), encoder_weights="imagenet")
    assert time.monotonic() - started < 10
    assert segmenter.warning is not None
    assert f"pretrained weights of {encoder} could not be downloaded" in segmenter.warning
    assert "local file" in segmenter.warning
    assert constants.HF_HUB_OFFLINE in (False, os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True"))
    assert len(segmenter.predict(scans((64, 64)))) == 1
