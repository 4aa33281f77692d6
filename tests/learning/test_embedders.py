"""Embedders: one contract for all, correct reasons, and weights that are read only from permitted places."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from weight_files import NORMALISATION, timm_folder

from backend.errors import BadSetting, WeightsMissing
from backend.learning import embedding
from backend.learning import model_hub as hub
from backend.learning.embedders import BIOMEDCLIP, OpenEmbedder, open_embedder
from backend.learning.preprocessing import Preprocessing
from backend.learning.vision_network import Network
from backend.learning.weights import BUILTIN

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights"
TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may use this machine's cache or network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(hub, "answers", lambda url: False)


def clip_model() -> CLIP:
    torch.manual_seed(2)
    return CLIP(**TINY_CLIP).eval()


def clip_folder(folder: Path, file: str = "open_clip_model.safetensors", model_cfg: dict = TINY_CLIP) -> Path:
    folder.mkdir(parents=True)
    state = clip_model().state_dict()
    if file.endswith(".safetensors"):
        save_file(state, folder / file)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, folder / file)
    config = {"model_cfg": model_cfg, "preprocess_cfg": NORMALISATION}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def local(name: str, weights_dir: Path | None) -> OpenEmbedder:
    return open_embedder(name, weights_dir=weights_dir, device="cpu", download=False)


def real_mobilenet(_: Path) -> OpenEmbedder:
    if not (WEIGHTS / "mobilenetv2_100").is_dir():
        pytest.skip("no shared/weights/mobilenetv2_100 beside this checkout")
    return local("timm:local-dir:mobilenetv2_100", WEIGHTS)


def tiny_timm(tmp_path: Path) -> OpenEmbedder:
    return local(f"timm:local-dir:{timm_folder(tmp_path / 'tiny')}", None)


def tiny_clip(tmp_path: Path) -> OpenEmbedder:
    return local(f"open_clip:local-dir:{clip_folder(tmp_path / 'clip')}", None)


EMBEDDERS: dict[str, Callable[[Path], OpenEmbedder]] = {
    "pixels": lambda _: local("pixels", None),
    "timm folder": tiny_timm,
    "open_clip folder": tiny_clip,
    "real MobileNetV2": real_mobilenet,
}


def pictures(n: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    sizes = [(40, 50), (7, 300), (64, 64, 3), (1, 1), (33, 21, 3)]
    return [random.integers(0, 256, sizes[i % len(sizes)], dtype=np.uint8) for i in range(n)]


@pytest.fixture(params=EMBEDDERS.values(), ids=list(EMBEDDERS), scope="module")
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenEmbedder:
    return request.param(tmp_path_factory.mktemp("weights"))


class TestEveryEmbedder:
    def test_gives_one_finite_vector_per_image_of_any_size(self, opened: OpenEmbedder) -> None:
        vectors = opened.embedder.embed(pictures(5))
        assert vectors.shape == (5, opened.embedder.dim)
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all()
        assert len(np.unique(vectors, axis=0)) == 5

    def test_same_images_same_vectors_and_batches_do_not_matter(
        self, opened: OpenEmbedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = pictures(7)
        first = opened.embedder.embed(images)
        np.testing.assert_array_equal(opened.embedder.embed(images), first)
        monkeypatch.setattr(embedding, "BATCH", 3)
        np.testing.assert_allclose(opened.embedder.embed(images), first, atol=1e-4)

    def test_gray_equals_rgb_with_three_equal_channels(self, opened: OpenEmbedder) -> None:
        gray = pictures(1)[0]
        first, second = opened.embedder.embed([gray, np.stack([gray] * 3, axis=2)])
        np.testing.assert_allclose(first, second, atol=1e-5)

    def test_a_slightly_brighter_copy_is_nearer_than_another_image(self, opened: OpenEmbedder) -> None:
        rows = np.linspace(0, 200, 60, dtype=np.uint8)
        image = np.tile(rows, (60, 1))
        other = np.where(np.indices((60, 60)).sum(axis=0) // 10 % 2, 250, 5).astype(np.uint8)
        a, b, c = opened.embedder.embed([image, image + 5, other])
        assert np.linalg.norm(a - b) < np.linalg.norm(a - c)

    def test_no_images_give_no_vectors(self, opened: OpenEmbedder) -> None:
        assert opened.embedder.embed([]).shape == (0, opened.embedder.dim)

    def test_images_are_not_modified(self, opened: OpenEmbedder) -> None:
        images = pictures(3)
        opened.embedder.embed(images)
        for now, before in zip(images, pictures(3), strict=True):
            np.testing.assert_array_equal(now, before)

    @pytest.mark.parametrize(
        ("image", "words"),
        [
            (
                np.zeros((4, 4)),
                "image 1: got float64, wanted a uint8 array. Scale its window to 0..255 first",
            ),
            (
                np.zeros((4, 4, 4), np.uint8),
                "image 1: got shape (4, 4, 4), wanted (H, W) gray or (H, W, 3) RGB",
            ),
            (np.zeros((0, 4), np.uint8), "image 1: got shape (0, 4), wanted (H, W) gray or (H, W, 3) RGB"),
            ("scan.png", "image 1: got str, wanted a uint8 array. Scale its window to 0..255 first"),
        ],
    )
    def test_an_invalid_image_is_refused_with_its_number(self, opened: OpenEmbedder, image, words: str) -> None:
        with pytest.raises(ValueError, match=re.escape(words)):
            opened.embedder.embed([pictures(1)[0], image])

    def test_reports_its_name_and_why_it_was_chosen(self, opened: OpenEmbedder) -> None:
        assert opened.embedder.name == opened.name
        assert opened.why


def test_a_constant_image_has_a_descriptor_too() -> None:
    assert np.isfinite(local("pixels", None).embedder.embed([np.zeros((9, 9), np.uint8)])).all()


def test_a_timm_folder_gives_the_vectors_of_timm(tmp_path: Path) -> None:
    found = tiny_timm(tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path / 'tiny'}", pretrained=True, num_classes=0).eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)  # the network's own size
    values = torch.from_numpy(image).permute(2, 0, 1).float() / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    values /= torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    with torch.inference_mode():
        expected = model(values[None]).numpy()
    np.testing.assert_allclose(found.embedder.embed([image]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_an_open_clip_folder_gives_the_image_vectors_of_the_whole_model(tmp_path: Path, file: str) -> None:
    found = local(f"open_clip:local-dir:{clip_folder(tmp_path / 'clip', file)}", None)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    values = torch.from_numpy(image).permute(2, 0, 1).float() / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    values /= torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    with torch.inference_mode():
        expected = clip_model().encode_image(values[None]).numpy()
    np.testing.assert_allclose(found.embedder.embed([image]), expected, rtol=1e-4, atol=1e-5)


def test_only_the_image_half_of_a_clip_model_is_in_memory(tmp_path: Path) -> None:
    kept = {name for name, _ in tiny_clip(tmp_path).embedder._model.named_parameters()}
    whole = {name for name, _ in clip_model().named_parameters()}
    assert kept == {name.removeprefix("visual.") for name in whole if name.startswith("visual.")}


def test_a_text_half_that_would_need_the_network_is_never_built(tmp_path: Path) -> None:
    config = TINY_CLIP | {"text_cfg": {"hf_model_name": "nobody/has-this", "hf_proj_type": "mlp"}}
    folder = clip_folder(tmp_path / "clip", model_cfg=config)
    assert local(f"open_clip:local-dir:{folder}", None).embedder.dim == 24


def test_biomedclip_is_taken_from_its_folder_by_its_hub_name(tmp_path: Path) -> None:
    clip_folder(tmp_path / "biomedclip", "open_clip_pytorch_model.bin")
    found = local(BIOMEDCLIP, tmp_path)
    assert (found.name, found.why) == (BIOMEDCLIP, f"BiomedCLIP found in {tmp_path}")


def test_a_timm_image_half_like_that_of_biomedclip_gives_512_numbers(tmp_path: Path) -> None:
    """BiomedCLIP's own vision settings, except for a smaller, randomly initialised ViT."""
    from open_clip.model import _build_vision_tower

    vision = {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": True,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    }
    tower = _build_vision_tower(512, vision | {"timm_model_pretrained": False})
    folder = clip_folder(tmp_path / "biomedclip", model_cfg=TINY_CLIP | {"embed_dim": 512, "vision_cfg": vision})
    save_file(
        {f"visual.{key}": value for key, value in tower.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    assert local(BIOMEDCLIP, tmp_path).embedder.dim == 512


def test_weights_of_a_known_architecture_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    monkeypatch.setattr(open_clip, "get_model_config", lambda name: dict(TINY_CLIP) if name == "tiny" else None)
    clip_folder(tmp_path / "clip")
    found = local("open_clip:tiny@clip/open_clip_model.safetensors", tmp_path)
    assert found.embedder.dim == 24


def test_auto_prefers_biomedclip_and_reports_where_it_was_found(tmp_path: Path) -> None:
    clip_folder(tmp_path / "biomedclip")
    timm_folder(tmp_path / "tiny")
    found = local("auto", tmp_path)
    assert (found.name, found.why) == (BIOMEDCLIP, f"using BiomedCLIP found in {tmp_path}")


def test_auto_without_network_takes_a_timm_folder_and_explains_why_not_biomedclip(tmp_path: Path) -> None:
    timm_folder(tmp_path / "tiny")
    found = open_embedder("auto", weights_dir=tmp_path, device="cpu")
    assert found.name == "timm:local-dir:tiny"
    assert found.why == (
        f"BiomedCLIP: not in {tmp_path / 'biomedclip'} and cannot be downloaded (no network); "
        f"using timm folder tiny found in {tmp_path}"
    )
    assert local(found.name, tmp_path).embedder.dim == found.embedder.dim


def test_auto_skips_a_damaged_folder_and_reports_it(tmp_path: Path) -> None:
    (timm_folder(tmp_path / "broken") / "model.safetensors").write_bytes(b"not weights")
    clip_folder(tmp_path / "other")
    timm_folder(tmp_path / "whole")
    assert local("auto", tmp_path).name == "open_clip:local-dir:other"
    (tmp_path / "other" / "open_clip_model.safetensors").unlink()
    found = local("auto", tmp_path)
    assert found.name == "timm:local-dir:whole"
    assert f"timm folder broken: {tmp_path / 'broken'} cannot be used (SafetensorError" in found.why
    assert f"open_clip folder other: {tmp_path / 'other'} contains none of open_clip_model.safetensors" in found.why


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_size": [3, 10**6, 10**6]}, r"its input has \(1000000, 1000000\) pixels; wanted 1 to 4096 per side"),
        ({"input_size": [3, 64, 64.5]}, r"its input has \(64, 64.5\) pixels"),
        ({"std": [0, 0, 0]}, "not a number, or not above 0"),
        ({"std": [float("nan")] * 3}, "not a number, or not above 0"),
        ({"mean": [float("inf")] * 3}, "not a number, or not above 0"),
        ({"mean": [0.5]}, "it has 1 means and 3 standard deviations"),
    ],
)
def test_a_folder_that_asks_for_what_no_network_needs_is_refused(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    file = timm_folder(tmp_path / "forged") / "config.json"
    config = json.loads(file.read_text())
    config["pretrained_cfg"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(WeightsMissing, match=words):
        local("timm:local-dir:forged", tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_auto_without_any_weights_takes_the_built_in_ones_and_explains_why(tmp_path: Path, there: bool) -> None:
    found = local("auto", tmp_path if there else None)
    where = tmp_path / "biomedclip" if there else "any weights folder"
    assert found.name == BUILTIN
    assert found.why == (
        f"BiomedCLIP: not in {where} and cannot be downloaded (downloads are turned off); "
        "using the built-in efficientnet-lite0"
    )
    with pytest.raises(BadSetting, match="the built-in network is builtin:efficientnet-lite0, got 'builtin:other'"):
        local("builtin:other", None)


def test_auto_chooses_the_best_of_the_real_weights() -> None:
    if not (WEIGHTS / "mobilenetv2_100").is_dir():
        pytest.skip("no shared/weights/mobilenetv2_100 beside this checkout")
    found = open_embedder("auto", weights_dir=WEIGHTS, device="cpu")
    assert (found.name, found.embedder.dim) == ("timm:local-dir:mobilenetv2_100", 1280)
    assert found.why.endswith(f"using timm folder mobilenetv2_100 found in {WEIGHTS}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            BIOMEDCLIP,
            "{name}: not in {dir}/biomedclip and cannot be downloaded (downloads are turned off). "
            "Put open_clip_config.json and open_clip_model.safetensors (or open_clip_pytorch_model.bin) of "
            "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 into {dir}/biomedclip/, "
            "or choose another embedder (SCANQUEUE_EMBEDDER)",
        ),
        (
            "timm:resnet18.a1_in1k",
            "{name}: not in {dir}/resnet18.a1_in1k and cannot be downloaded (downloads are turned off). "
            "Put config.json and model.safetensors of timm/resnet18.a1_in1k into {dir}/resnet18.a1_in1k/, "
            "or choose another embedder (SCANQUEUE_EMBEDDER)",
        ),
        (
            "timm:local-dir:nothing",
            "{name}: no folder nothing with a config.json in {dir}. Put config.json and model.safetensors into "
            "{dir}/nothing/, or choose another embedder (SCANQUEUE_EMBEDDER)",
        ),
    ],
)
def test_the_error_for_missing_weights_says_which_file_goes_where(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(WeightsMissing, match=re.escape(words.format(name=name, dir=tmp_path))):
        local(name, tmp_path)


def test_a_named_open_clip_model_without_weights_lists_its_tags(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"open_clip:ViT-B-32@openai: .*one of the tags openai, "):
        local("open_clip:ViT-B-32@openai", tmp_path)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"visual.proj": Path("anything")}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsMissing, match=r"pytorch_model.bin contains .* refers to code \(pathlib.P"):
        local(f"open_clip:local-dir:{folder}", None)


def test_a_failed_download_raises_weights_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(repo: str, name: str, *, local_files_only: bool, etag_timeout: float) -> str:
        raise OSError("cut off")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    monkeypatch.setattr(hub, "answers", lambda url: True)
    with pytest.raises(WeightsMissing, match=r"cannot be downloaded \(the download failed: OSError\)"):
        open_embedder(BIOMEDCLIP, weights_dir=tmp_path, device="cpu")


def test_a_hub_download_is_used_when_the_network_responds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remote = clip_folder(tmp_path / "elsewhere")

    def download(repo: str, name: str, *, local_files_only: bool, etag_timeout: float) -> str:
        if local_files_only or not (remote / name).exists():
            raise FileNotFoundError(name)
        return str(remote / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(hub, "answers", lambda url: True)
    found = open_embedder("auto", weights_dir=None, device="cpu")
    assert found.name == BIOMEDCLIP
    with pytest.raises(WeightsMissing, match="downloads are turned off"):
        local(BIOMEDCLIP, None)


def test_a_timm_model_of_the_hub_is_read_from_the_downloaded_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    torch.manual_seed(4)
    model = timm.create_model("test_resnet.r160_in1k").eval()
    save_file(model.state_dict(), folder / "model.safetensors")

    def download(repo: str, name: str, *, local_files_only: bool, etag_timeout: float) -> str:
        assert repo == "timm/test_resnet.r160_in1k"
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = local("timm:test_resnet.r160_in1k", None)
    state = found.embedder._model.state_dict()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def test_an_unresponsive_network_times_out_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(hub, "HUB_SECONDS", 0.2)
    hanging = SimpleNamespace(head=lambda url, **_: time.sleep(5))
    monkeypatch.setattr("huggingface_hub.get_session", lambda: hanging)
    began = time.monotonic()
    assert not hub.answers("https://hub.invalid")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("name", ["", "resnet18", "timm:", "keras:vgg", "timm:no_such_model", "open_clip:no-such"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(BadSetting, match=r"^embedder: "):
        local(name, None)


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/folder"])
def test_a_folder_that_cannot_exist_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no folder"):
        local(f"timm:local-dir:{name}", tmp_path)


@pytest.mark.parametrize("device", ["tpu9", "cuda"])
def test_a_missing_device_is_refused(tmp_path: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder = timm_folder(tmp_path / "tiny")
    with pytest.raises(BadSetting, match=rf"^device: got '{device}', .*SCANQUEUE_DEVICE"):
        open_embedder(f"timm:local-dir:{folder}", weights_dir=None, device=device)


def test_any_answer_proves_that_there_is_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # answers everything with 501
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        assert hub.answers(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert not hub.answers(f"http://127.0.0.1:{server.server_port}")


def test_importing_embedders_does_not_import_torch() -> None:
    heavy = "{'torch', 'timm', 'open_clip', 'huggingface_hub'}"
    code = f"import sys, backend.learning.embedders; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "set()", found.stderr


@pytest.mark.parametrize("shape", [(50, 70), (50, 70, 3)])
def test_resizing_a_gray_image_once_equals_resizing_three_equal_channels(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    wanted = Preprocessing((33, 44), (0.5,) * 3, (0.5,) * 3)
    expected = np.asarray(Image.fromarray(image).convert("RGB").resize((44, 33), Image.Resampling.BICUBIC))
    got = wanted.resized(image)
    np.testing.assert_array_equal(got if got.ndim == 3 else np.stack([got] * 3, axis=2), expected)


def test_a_one_channel_network_gets_colour_as_luminance() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    one = Preprocessing((20, 20), (0.5,), (1 / 2048,))
    np.testing.assert_array_equal(one.resized(image), np.asarray(Image.fromarray(image).convert("L")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_a_vector_depends_only_on_its_image_and_nearly_equals_that_of_the_cpu(tmp_path: Path) -> None:
    name = f"timm:local-dir:{timm_folder(tmp_path / 'tiny')}"
    gpu = open_embedder(name, weights_dir=None, device="cuda").embedder
    images = pictures(40)
    vectors = gpu.embed(images)
    np.testing.assert_array_equal(gpu.embed(images), vectors)
    np.testing.assert_array_equal(np.concatenate([gpu.embed([image]) for image in images]), vectors)
    grays = [image for image in images if image.ndim == 2]  # sent as one channel if all of a batch are gray
    np.testing.assert_array_equal(gpu.embed(grays), vectors[[image.ndim == 2 for image in images]])
    assert isinstance(gpu, Network)
    assert gpu._recorded is not None
    eager = gpu.forward(gpu.ready([gpu.prepare(image) for image in images[: gpu.batch]])).float().cpu().numpy()
    np.testing.assert_allclose(vectors[: gpu.batch], eager, rtol=1e-2, atol=1e-2)
    cpu = open_embedder(name, weights_dir=None, device="cpu").embedder.embed(images)
    cosine = (vectors * cpu).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(cpu, axis=1)
    assert cosine.min() > 0.99  # bfloat16


def test_an_image_without_finite_numbers_is_named(tmp_path: Path) -> None:
    found = tiny_timm(tmp_path).embedder
    for parameter in found._model.parameters():
        parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the network returned NaN or infinity for image 0. Use other weights"):
        found.embed(pictures(3))
