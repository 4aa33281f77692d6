"""Segmentation networks: letterboxed scans in, class probabilities out; and their files.

A segmenter is a network of segmentation_models_pytorch plus the spec it takes to build it again.
Only this module and `training` import torch.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.errors import BadSetting, BrokenWeights, DamagedModel, StorageFull, WeightsMissing, is_disk_full
from backend.formats.pixels import Letterboxed
from backend.learning.checkpoints import read_tensors
from backend.learning.model_hub import offline_unless_reachable
from backend.learning.networks import from_efficientnet_lite0, from_radimagenet, misfits
from backend.learning.randomness import Uninitialised
from backend.learning.weights import BUILTIN, encoder_weights_at, found_file, how_to_get, weights_called

log = logging.getLogger(__name__)
logging.getLogger("timm.models._builder").setLevel(
    logging.ERROR
)  # a segmenter has no use for a classifier's last layers

SUFFIX = ".safetensors"
WEIGHTS_FILE = "model" + SUFFIX
SPEC_FILE = "model.json"
AT_ONCE = 8 * 512**2  # pixels that `predict` computes at once, which bounds its memory
_FORMAT = 1
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts to gray


@dataclass(frozen=True)
class SegmenterSpec:
    """The parameters that define a network.

    architecture      a key of SEGMENTERS
    encoder           an encoder of segmentation_models_pytorch, "tu-NAME" for timm's NAME
    channels          1 gray, 3 colour
    image_size        side S of the square scans are letterboxed into; a multiple of 32
    labels            names of classes 1..; class 0 is background
    decoder_channels  width of the five decoder stages, coarse to fine

    Raises BadSetting on a value that no network can be built from.
    """

    architecture: str
    encoder: str
    channels: int
    image_size: int
    labels: tuple[str, ...]
    decoder_channels: tuple[int, ...] = (128, 64, 32, 16, 8)

    def __post_init__(self) -> None:
        if self.architecture not in SEGMENTERS:
            raise BadSetting(f"unknown segmenter {self.architecture!r}; choose from {', '.join(SEGMENTERS)}")
        check_encoder(self.encoder)
        if self.channels not in (1, 3):
            raise BadSetting(f"channels must be 1 (gray) or 3 (colour), got {self.channels}")
        check_image_size(self.image_size)
        if not self.labels or len(self.labels) > 253:
            raise BadSetting(f"a segmenter needs 1 to 253 labels, got {len(self.labels)}")
        if len(self.decoder_channels) != 5 or min(self.decoder_channels) < 1:
            raise BadSetting(f"decoder_channels must be five positive widths, got {self.decoder_channels}")

    @property
    def classes(self) -> int:
        """Background and the labels."""
        return 1 + len(self.labels)


def check_encoder(encoder: str) -> None:
    """Raise BadSetting unless a network can be built on this encoder."""
    known = timm.is_model(encoder[3:]) if encoder.startswith("tu-") else encoder in smp.encoders.get_encoder_names()
    if not known:
        raise BadSetting(
            f"unknown encoder {encoder!r}; choose one of segmentation_models_pytorch "
            "(resnet18, resnet34, mobilenet_v2, efficientnet-b0, ...) or tu-NAME for a timm model"
        )


def check_image_size(image_size: int) -> None:
    """Raise BadSetting unless this side can be halved five times."""
    if image_size < 32 or image_size % 32:
        below = max(32, image_size // 32 * 32)
        raise BadSetting(f"image_size must be a multiple of 32, got {image_size}; use {below} or {below + 32}")


def unet(spec: SegmenterSpec, **encoder: Any) -> nn.Module:
    """U-Net (Ronneberger et al. 2015)."""
    network: nn.Module = smp.Unet(spec.encoder, classes=spec.classes, decoder_channels=spec.decoder_channels, **encoder)
    return network


def unetplusplus(spec: SegmenterSpec, **encoder: Any) -> nn.Module:
    """U-Net++ (Zhou et al. 2018): nested skip connections, several times the cost of a U-Net."""
    network: nn.Module = smp.UnetPlusPlus(
        spec.encoder, classes=spec.classes, decoder_channels=spec.decoder_channels, **encoder
    )
    return network


SEGMENTERS: dict[str, Callable[..., nn.Module]] = {
    "unet": unet,
    "unetplusplus": unetplusplus,
}
"""Architectures by name: (spec, in_channels=, encoder_weights=, ...) -> network of (N, C, S, S) logits."""


class Segmenter:
    """A network ready to predict, with the spec to build it again.

    spec     what it is
    network  (N, channels, S, S) standardised scans -> (N, C, S, S) logits
    device   where it runs
    warning  a problem during creation (weights that could not be downloaded), or None
    """

    def __init__(
        self,
        spec: SegmenterSpec,
        network: nn.Module,
        device: str | torch.device = "cpu",
        warning: str | None = None,
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.network = network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.warning = warning

    @classmethod
    def create(
        cls,
        spec: SegmenterSpec,
        *,
        encoder_weights: Path | str | None = None,
        device: str | torch.device = "cpu",
    ) -> Segmenter:
        """A new network. What is not pretrained is random, drawn from torch's global generator.

        encoder_weights  None: random, and no network access. "imagenet": downloaded (or from the local
                         cache); if that fails, the encoder is random and `warning` says so. BUILTIN: the file
                         that is installed with scanqueue. Else the path
                         of a .safetensors or .pth file of encoder weights (RadImageNet's too), or of a timm
                         folder (config.json and model.safetensors). The first layer of a 3-channel encoder is
                         adapted to gray by timm's and smp's own rule.

        Raises WeightsMissing when a path does not exist or does not fit the encoder.
        """
        build = SEGMENTERS[spec.architecture]
        if encoder_weights is None:
            return cls(spec, build(spec, in_channels=spec.channels, encoder_weights=None), device)
        if encoder_weights == "imagenet":
            wanted = True if spec.encoder.startswith("tu-") else "imagenet"
            try:
                with offline_unless_reachable():
                    network = build(spec, in_channels=spec.channels, encoder_weights=wanted)
                return cls(spec, network, device)
            except Exception as error:  # the hub client raises many types: continue with a warning
                warning = (
                    f"pretrained weights of {spec.encoder} could not be downloaded ({_first_line(error)}); "
                    "training starts from random weights. "
                    "Allow the download, or give the path of a local file"
                )
                log.warning(warning)
                network = build(spec, in_channels=spec.channels, encoder_weights=None)
                return cls(spec, network, device, warning)
        if encoder_weights == BUILTIN:
            row = weights_called(BUILTIN)
            file = found_file(row, None)
            if file is None:
                raise WeightsMissing(f"the built-in weights are not installed. {how_to_get(row, None)}")
            return cls(spec, _with_local_weights(spec, file), device)
        return cls(spec, _with_local_weights(spec, Path(encoder_weights)), device)

    def predict(self, images: Sequence[Letterboxed], batch_size: int = 0) -> list[NDArray[np.float32]]:
        """Class probabilities of each scan, cropped to its content box.

        Returns one (C, h, w) float32 per scan, in order, summing to 1 over C. The padding does not
        affect the probabilities. Raises ValueError when a scan was letterboxed to another
        size.

        batch_size  scans computed at once; 0: as many as AT_ONCE allows
        """
        batch_size = batch_size or min(8, max(1, AT_ONCE // self.spec.image_size**2))
        answers: list[NDArray[np.float32]] = []
        self.network.eval()
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                pixels = as_tensor(batch, self.spec).to(self.device)
                inputs = standardised(pixels, content_mask(batch).to(self.device))
                logits = self.network(inputs.contiguous(memory_format=torch.channels_last))
                shares = logits.float().softmax(dim=1).cpu().numpy()
                for share, image in zip(shares, batch, strict=True):
                    answers.append(np.ascontiguousarray(share[(slice(None), *image.content)]))
        return answers

    @property
    def size(self) -> int:
        """Bytes of the weights in memory."""
        return sum(one.nbytes for one in self.network.state_dict().values())

    def save(self, folder: Path, weights: str = WEIGHTS_FILE) -> None:
        """Write the weights and `model.json` into an existing folder, down to the disk.

        Plain writes: the caller gives a folder beside the final one and renames it. Raises StorageFull when a
        file cannot be written.
        """
        state = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        spec = {"format": _FORMAT, **dataclasses.asdict(self.spec)}
        write_file(folder / weights, safetensors.torch.save(state))
        write_file(folder / SPEC_FILE, (json.dumps(spec, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path, device: str | torch.device = "cpu") -> Segmenter:
        """The segmenter that `save` wrote: same probabilities.

        path  the folder, or a file of weights in it

        Raises WeightsMissing when a file is missing or of another version, DamagedModel when it is damaged.
        """
        folder, file = (path.parent, path) if path.suffix == SUFFIX else (path, path / WEIGHTS_FILE)
        damaged = folder
        try:
            stored = json.loads((folder / SPEC_FILE).read_bytes())
            if stored.pop("format") != _FORMAT:
                raise WeightsMissing(
                    f"the model in {folder} was written by another version of scanqueue; activate another version or "
                    "train again"
                )
            damaged = path
            stored["labels"] = tuple(stored["labels"])
            stored["decoder_channels"] = tuple(stored["decoder_channels"])
            spec = SegmenterSpec(**stored)
            with Uninitialised():  # type: ignore[no-untyped-call]
                network = SEGMENTERS[spec.architecture](spec, in_channels=spec.channels, encoder_weights=None)
            network.load_state_dict(safetensors.torch.load(file.read_bytes()))
        except FileNotFoundError as error:
            raise WeightsMissing(
                f"the model file {error.filename} is missing; activate another version or train again"
            ) from error
        except OSError as error:
            raise WeightsMissing(f"the model in {folder} cannot be read ({error}); check the disk") from error
        except (WeightsMissing, MemoryError):
            raise
        except Exception as error:  # damaged JSON, damaged safetensors, weights of another network
            if "memory" in str(error):  # torch raises RuntimeError
                raise
            text = f"the model in {folder} is damaged ({_first_line(error)}); activate another version or train again"
            raise DamagedModel(text, damaged) from error
        return cls(spec, network, device)


def as_tensor(images: Sequence[Letterboxed], spec: SegmenterSpec) -> Tensor:
    """Pixels as (N, channels, S, S) float32 in 0..1.

    Gray is repeated for a colour network; colour becomes luminance for a gray one.
    """
    planes = []
    for image in images:
        pixels = image.pixels
        if pixels.shape[:2] != (spec.image_size, spec.image_size):
            raise ValueError(
                f"the network expects scans letterboxed to {spec.image_size}, got {pixels.shape[0]} x {pixels.shape[1]}"
            )
        plane = pixels.astype(np.float32) / 255
        if spec.channels == 1:
            plane = plane @ np.array(_LUMINANCE, np.float32) if plane.ndim == 3 else plane
            planes.append(plane[None])
        else:
            planes.append(plane.transpose(2, 0, 1) if plane.ndim == 3 else np.repeat(plane[None], 3, axis=0))
    return torch.from_numpy(np.stack(planes))


def content_mask(images: Sequence[Letterboxed]) -> Tensor:
    """(N, 1, S, S) bool: true inside each content box."""
    size = images[0].pixels.shape[0]
    inside = torch.zeros(len(images), 1, size, size, dtype=torch.bool)
    for mask, image in zip(inside, images, strict=True):
        mask[(0, *image.content)] = True
    return inside


def standardised(pixels: Tensor, valid: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the valid pixels of each scan, 0 elsewhere.

    pixels  (N, channels, S, S); channels share one mean and deviation, so colours keep their balance
    valid   (N, 1, S, S) bool
    """
    count = valid.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1) * pixels.shape[1]
    mean = (pixels * valid).sum(dim=(1, 2, 3), keepdim=True) / count
    centred = (pixels - mean) * valid
    deviation = (centred.square().sum(dim=(1, 2, 3), keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=1 / 255)


def _with_local_weights(spec: SegmenterSpec, path: Path) -> nn.Module:
    """A network whose encoder has the weights of a file. Raises WeightsMissing unless every one fits."""
    build = SEGMENTERS[spec.architecture]
    file = path
    if path.is_dir():
        candidates = [path / name for name in (WEIGHTS_FILE, "pytorch_model.bin")]
        file = next((one for one in candidates if one.is_file()), candidates[0])
    if not file.is_file():
        row = encoder_weights_at(path)
        cure = how_to_get(row, path.parent if path.name == row.folder else path.parents[1]) if row else "check the path"
        raise WeightsMissing(f"there are no encoder weights at {file}; {cure[0].lower()}{cure[1:]}")
    try:
        state: dict[str, Tensor] = read_tensors(file)
    except BrokenWeights as error:
        raise WeightsMissing(f"the encoder weights cannot be read: {error}") from error
    if any(name.startswith("backbone.") for name in state):
        state = from_radimagenet(state)
    if spec.encoder.startswith("tu-"):
        state = from_efficientnet_lite0(state)
        with torch.device("meta"):
            wanted = timm.create_model(spec.encoder[3:], pretrained=False, num_classes=0).state_dict()
        _check_fit(wanted, state, spec, file)
        source = {"state_dict": state}
        return build(spec, in_channels=spec.channels, encoder_weights=True, pretrained_cfg_overlay=source)
    network: Any = build(spec, in_channels=3, encoder_weights=None)
    wanted = network.encoder.state_dict()
    _check_fit(wanted, state, spec, file)
    network.encoder.load_state_dict(state | {name: value for name, value in wanted.items() if name not in state})
    network.encoder.set_in_channels(spec.channels, pretrained=True)
    checked: nn.Module = network
    return checked


def _check_fit(wanted: dict[str, Tensor], state: dict[str, Tensor], spec: SegmenterSpec, file: Path) -> None:
    bad = misfits(wanted, state)
    if bad:
        raise WeightsMissing(
            f"the weights at {file} do not belong to the encoder {spec.encoder}: {len(bad)} of {len(wanted)} "
            f"tensors are missing or have another shape (first: {bad[0]}). "
            "Choose the encoder they were made for"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def write_file(path: Path, data: bytes) -> None:
    """Write a file of a model, down to the disk. Raises StorageFull when it cannot be written."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        cure = "free some space" if is_disk_full(error) else "check that the data folder exists and is writable"
        raise StorageFull(
            f"the model could not be saved ({len(data):,} bytes to {path}): {error.strerror}; {cure}, then train again"
        ) from error
