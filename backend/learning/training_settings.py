"""Training settings, with defaults for a CPU and for a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from backend.errors import BadSetting
from backend.learning.segmenters import check_encoder, check_image_size
from backend.learning.weights import BUILTIN


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. `for_device` gives defaults that suit the machine.

    architecture, encoder, decoder_channels, image_size  see SegmenterSpec
    encoder_weights  None (random), "imagenet", BUILTIN or a path; see Segmenter.create
    device           "cpu", "cuda", "cuda:1", ...
    crop             side of the random part of a scan that a training step sees, in pixels; 0: the whole scan
    max_image_size   how far the side is raised for small findings, see `Learner.working_size`
    batch_size       scans per step, >= 2; fewer labelled scans are repeated with new augmentation
    max_steps        optimiser steps, independent of the number of scans, so every round takes the same time
    learning_rate    highest rate of the one-cycle schedule (Smith & Topin 2018), reached after `warmup` of
                     all steps
    weight_decay     weight decay of AdamW
    ema              share of the averaged weights kept at each step, 0..1; 0: no averaging
    judged_share     share of the steps after which the weights are judged by the held-out scans, which join then, 0..1
    validate_every   steps between validations
    flip             mirror scans left to right; off, as left and right mean something in most anatomy
    rotate, shift, zoom, shear, contrast, gamma, noise  ranges of the augmentation: degrees, share of the
                                                        side, shares,
                     degrees, shares, exponent, standard deviation (of intensities in 0..1)
    seed             same seed, scans and number of threads: same weights, bit for bit, on a CPU

    Raises BadSetting on an invalid value.
    """

    encoder: str
    image_size: int
    batch_size: int
    max_steps: int
    decoder_channels: tuple[int, ...] = (128, 64, 32, 16, 8)
    crop: int = 0
    max_image_size: int = 0
    architecture: str = "unet"
    encoder_weights: Path | str | None = None
    device: str = "cpu"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup: float = 0.2
    ema: float = 0.97
    judged_share: float = 0.5
    validate_every: int = 25
    flip: bool = False
    rotate: float = 15.0
    shift: float = 0.12
    zoom: float = 0.4
    shear: float = 8.0
    contrast: float = 0.4
    gamma: float = 0.5
    noise: float = 0.03
    mixed_precision: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_encoder(self.encoder)
        check_image_size(self.image_size)
        for name, low in (("batch_size", 2), ("max_steps", 1), ("validate_every", 1)):
            if getattr(self, name) < low:
                raise BadSetting(f"{name} must be {low} or more, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise BadSetting(f"ema must be at least 0 and below 1, got {self.ema}")
        if not 0 < self.judged_share <= 1:
            raise BadSetting(f"judged_share must be above 0 and at most 1, got {self.judged_share}")
        if not self.learning_rate > 0:
            raise BadSetting(f"learning_rate must be above 0, got {self.learning_rate}")

    @classmethod
    def for_device(cls, device: str, **overrides: Any) -> TrainingSettings:
        """Defaults for a "cpu" or a "cuda..." device, with any field replaced.

        Raises BadSetting on an unknown field.
        """
        kind = torch.device(device).type
        base = _GPU if kind == "cuda" else _CPU
        unknown = sorted(set(overrides) - set(cls.__dataclass_fields__))
        if unknown:
            raise BadSetting(
                f"unknown training setting {', '.join(unknown)}; choose from {', '.join(cls.__dataclass_fields__)}"
            )
        return replace(base, device=device, **overrides)


_CPU = TrainingSettings(
    encoder="tu-tf_efficientnet_lite0",
    encoder_weights=BUILTIN,
    image_size=160,
    max_image_size=640,
    batch_size=4,
    max_steps=400,
    validate_every=50,
)
_GPU = replace(
    _CPU,
    image_size=512,
    max_image_size=1024,
    batch_size=8,
    max_steps=1500,
    decoder_channels=(256, 128, 64, 32, 16),
    learning_rate=1e-3,
    ema=0.99,
    validate_every=50,
    mixed_precision=True,
    device="cuda",
)
