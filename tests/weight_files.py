"""Files of weights as they are published, with random numbers in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

NORMALISATION: dict[str, Any] = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}


def timm_folder(folder: Path, architecture: str = "test_resnet", size: tuple[int, int] = (64, 96)) -> Path:
    """A folder in timm's own format."""
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    model = timm.create_model(architecture, pretrained=False, num_classes=5)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": architecture,
        "num_classes": 5,
        "pretrained_cfg": {"input_size": [3, *size], "classifier": "fc", **NORMALISATION},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
