"""Random augmentation of training scans and their masks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from backend.formats.pixels import IGNORE
from backend.learning.training_settings import TrainingSettings


class _Gamma(v2.Transform):  # type: ignore[misc]
    """Raise intensities in 0..1 to a random power, as exposure and tissue do. Masks pass unchanged."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = math.log1p(spread)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"power": math.exp(float(torch.empty(1).uniform_(-self.spread, self.spread)))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        return tv_tensors.wrap(inpt.clamp(0, 1) ** params["power"], like=inpt)


def augmentation(settings: TrainingSettings) -> v2.Transform:
    """Transform image and mask together. Pixels from outside are black in the scan, IGNORE in the mask."""
    steps: list[v2.Transform] = [
        v2.RandomAffine(
            degrees=settings.rotate,
            translate=(settings.shift, settings.shift),
            scale=(1 / (1 + settings.zoom), 1 + settings.zoom),
            shear=(-settings.shear, settings.shear, -settings.shear, settings.shear),
            interpolation=v2.InterpolationMode.BILINEAR,
            fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORE},
        ),
        _Gamma(settings.gamma),
        v2.ColorJitter(brightness=settings.contrast, contrast=settings.contrast),
        v2.GaussianNoise(sigma=settings.noise, clip=False),
    ]
    if settings.flip:
        steps.insert(0, v2.RandomHorizontalFlip())
    return v2.Compose(steps)
