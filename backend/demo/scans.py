"""The scans of a demonstration: a folder of images and, where known, true masks with the same names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from backend.demo.annotator import Control, Mask, label_map_to_masks
from backend.errors import ScanqueueError

# formats that Label Studio displays directly; `scanqueue import` converts DICOM and NIfTI
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
COLOURS = ("#2f7ed8", "#e4572e", "#3a9d5d", "#8e5bd0", "#c9a227", "#17a2b8")


@dataclass(frozen=True)
class ScanFolder:
    """images/ and masks/ of one folder. `masks` maps image paths to mask paths."""

    images: tuple[Path, ...]
    masks: dict[Path, Path]
    labels: tuple[str, ...]
    left_out: int

    def truth(self, image: Path) -> dict[str, Mask]:
        """The true mask of every label, in image pixels."""
        with Image.open(self.masks[image]) as opened:
            label_map = np.asarray(opened.convert("L") if opened.mode not in ("L", "P") else opened)
        with Image.open(image) as opened:
            width, height = opened.size
        if label_map.shape != (height, width):
            got = f"{label_map.shape[1]} x {label_map.shape[0]}"
            raise ScanqueueError(f"{self.masks[image]} is {got}, its image {width} x {height} pixels")
        return label_map_to_masks(label_map, self.labels)

    def label_config(self) -> str:
        """Label Studio's labelling interface for these labels, with a smart key point to correct masks by clicks."""
        colours = (COLOURS[number % len(COLOURS)] for number in range(len(self.labels)))
        labels = "".join(
            f"<Label value={quoteattr(label)} background={quoteattr(colour)}/>"
            for label, colour in zip(self.labels, colours, strict=True)
        )
        return (
            '<View><Image name="image" value="$image" zoom="true"/>'
            f'<BrushLabels name="mask" toName="image" smart="false">{labels}</BrushLabels>'
            '<KeyPointLabels name="click" toName="image" smart="true" smartOnly="true">'
            f"{labels}</KeyPointLabels></View>"
        )

    @property
    def control(self) -> Control:
        """The control of `label_config`."""
        return Control("mask", "image", "brushlabels")


def read_folder(folder: Path, labels: Sequence[str] = ()) -> ScanFolder:
    """Read a folder that contains images/ and, optionally, masks/ and labels.txt (one name per line).

    A mask has the name of its image; its values are 0 for background and 1, 2, ... for the labels in order,
    or any nonzero value if there is only one label. Without names, the label is called "Region".
    """
    if not (folder / "images").is_dir():
        raise ScanqueueError(f"{folder} has no folder images/; put the scans there (and true masks in masks/)")
    found = sorted(path for path in (folder / "images").iterdir() if not path.name.startswith("."))
    images = tuple(path for path in found if path.suffix.lower() in SUFFIXES)
    if not images:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ScanqueueError(f"{folder / 'images'} has no image that Label Studio shows ({kinds})")
    by_stem = {path.stem: path for path in sorted((folder / "masks").glob("*")) if path.is_file()}
    masks = {image: by_stem[image.stem] for image in images if image.stem in by_stem}
    if not labels and (folder / "labels.txt").is_file():
        lines = (folder / "labels.txt").read_text().splitlines()
        labels = [line.strip() for line in lines if line.strip()]
    if not labels:
        labels = _unnamed(list(masks.values()))
    return ScanFolder(images, masks, tuple(labels), len(found) - len(images))


def _unnamed(masks: list[Path]) -> list[str]:
    highest = 0
    for mask in masks[:20]:
        with Image.open(mask) as opened:
            values = np.unique(np.asarray(opened))
        if len(values) > 2 or values[-1] not in (0, 1, 255):
            highest = max(highest, int(values[-1]))
    if highest > 32:
        raise ScanqueueError(f"{masks[0].parent}: a mask has the value {highest}; label maps count from 1")
    return [f"Region {number}" for number in range(1, highest + 1)] if highest else ["Region"]
