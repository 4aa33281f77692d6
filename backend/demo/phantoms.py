"""Synthetic chest radiographs with exact masks, because the product cannot ship a real data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Field = NDArray[Any]

LABELS = ("Lung", "Heart")


def phantom(rng_seed: int, size: tuple[int, int] = (256, 256)) -> tuple[Image, dict[str, Mask]]:
    """One synthetic radiograph and its true masks.

    rng_seed  the same seed and size give the same image
    size      (height, width) in pixels

    Returns the image (height, width) and, for each of LABELS, a mask of the same shape. The masks do not
    overlap. Position, size, shape, exposure, noise and rotation vary. Some images have collimation borders and
    printed markers.
    """
    rng = np.random.default_rng(rng_seed)
    height, width = size
    x, y = _body_grid(rng, height, width)
    body = _trunk(rng, x, y)
    dome_top = rng.uniform(0.42, 0.60)
    lung = _lungs(rng, x, y, dome_top)
    heart = _heart(rng, x, y, dome_top)

    inside = heart > 0.5
    # remove small fragments of lung that the heart's outline cuts off
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(((lung > 0.5) & ~inside).astype(np.uint8))
    lung = np.where(stats[pieces, cv2.CC_STAT_AREA] < 0.01 * height * width, 0.0, lung)
    masks = {"Lung": (lung > 0.5) & ~inside, "Heart": inside}

    beam = _absorption(rng, x, y, body, lung * (1 - heart), heart, dome_top)
    return _expose(rng, beam, height, width), masks


def write_phantoms(folder: Path, n: int, seed: int, size: tuple[int, int] = (256, 256)) -> list[Path]:
    """Write `n` phantoms as images/*.png with masks/*.png of the same names.

    A mask is a label map: 0 background, 1 Lung, 2 Heart (see labels.txt). Returns the images' paths.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    written = []
    for number in range(n):
        image, masks = phantom(seed * 100_003 + number, size)
        label_map = np.zeros(size, np.uint8)
        for value, label in enumerate(LABELS, start=1):
            label_map[masks[label]] = value
        path = folder / "images" / f"phantom_{number:04}.png"
        for target, array in ((path, image), (folder / "masks" / path.name, label_map)):
            if not cv2.imwrite(str(target), array):
                raise OSError(f"cannot write {target}")
        written.append(path)
    return written


def _body_grid(rng: np.random.Generator, height: int, width: int) -> tuple[Field, Field]:
    """Body coordinates of every pixel, for a random position, size and tilt of the patient."""
    rows, columns = np.mgrid[0:height, 0:width]
    x = (columns + 0.5) / width * 2 - 1
    y = (rows + 0.5) / height * 2 - 1
    angle = np.deg2rad(rng.choice([0.0, 0.0, 0.0, -11.0, 11.0]) + rng.normal(0, 2))
    scale = rng.uniform(0.78, 1.02)
    x, y = x - rng.normal(0, 0.05), y - rng.normal(0.0, 0.06)
    turned_x = (x * np.cos(angle) + y * np.sin(angle)) / (scale * rng.uniform(0.9, 1.06))
    turned_y = (-x * np.sin(angle) + y * np.cos(angle)) / scale
    # a slight warp makes every outline unique
    turned_x = turned_x + 0.03 * np.sin(turned_y * rng.uniform(2, 4) + rng.uniform(0, 6))
    turned_y = turned_y + 0.03 * np.sin(turned_x * rng.uniform(2, 4) + rng.uniform(0, 6))
    return turned_x, turned_y


# Anatomy, in body coordinates: x to the image's right, y down, the thorax within about -1..1.


def _trunk(rng: np.random.Generator, x: Field, y: Field) -> Field:
    """Chest, neck and arms."""
    shoulder = rng.uniform(0.92, 1.02)
    chest = np.abs(x) - (shoulder - 0.10 * y**2)
    body = _soft(np.maximum(chest, -(y + 0.95 - 0.42 * x**2)), 0.05)
    neck = _soft(np.maximum(np.abs(x) - 0.24 - 0.5 * np.clip(y + 1.05, 0, 1) ** 2, y + 0.6), 0.06)
    arms = _soft(np.abs(np.abs(x) - shoulder - 0.13) - 0.13, 0.03) * _soft(-(y + 0.70), 0.10)
    trunk: Field = np.maximum.reduce([body, neck, 0.8 * arms])
    return trunk


def _lungs(rng: np.random.Generator, x: Field, y: Field, dome_top: float) -> Field:
    lung: Field = np.zeros(x.shape)
    for side in (-1.0, 1.0):
        across = side * x
        reach, middle = rng.uniform(0.74, 0.84), rng.uniform(0.10, 0.15)
        top = rng.uniform(-0.86, -0.76)
        base = dome_top + rng.uniform(-0.03, 0.03) + (0.05 if side > 0 else 0.0)
        # narrow apex, wide base; below it the dome of the diaphragm, which slopes down laterally
        swell = np.clip((y - top) / (base - top), 0.0, 1.4)
        half = (reach - middle) / 2 * np.minimum(1.0, swell + 1e-6) ** rng.uniform(0.30, 0.42)
        centre = (reach + middle) / 2 - 0.07 * (1 - swell) ** 2
        sideways = np.abs(across - centre) - half
        peak = rng.uniform(0.28, 0.36)
        dome = y - (base + rng.uniform(0.75, 1.15) * (across - peak) ** 2)
        lung = np.maximum(lung, _soft(np.maximum.reduce([sideways, dome, top - y]), 0.012))
    return lung


def _heart(rng: np.random.Generator, x: Field, y: Field, dome_top: float) -> Field:
    heart_x, heart_y = rng.uniform(0.08, 0.16), dome_top - rng.uniform(0.20, 0.28)
    tilt, long, short = rng.uniform(0.5, 0.9), rng.uniform(0.36, 0.47), rng.uniform(0.26, 0.33)
    along = (x - heart_x) * np.cos(tilt) + (y - heart_y) * np.sin(tilt)
    over = -(x - heart_x) * np.sin(tilt) + (y - heart_y) * np.cos(tilt)
    return _soft(np.maximum((along / long) ** 2 + (over / short) ** 2 - 1, 6 * (y - dome_top - 0.07)), 0.12)


def _absorption(
    rng: np.random.Generator, x: Field, y: Field, body: Field, lung: Field, heart: Field, dome_top: float
) -> Field:
    """How much of the beam each pixel absorbs: bone and fluid more than soft tissue, air nothing."""
    size = (x.shape[0], x.shape[1])
    vessels = np.exp(-(((np.abs(x) - 0.22) / 0.22) ** 2 + ((y + 0.05) / 0.45) ** 2))
    beam: Field = body * (1.15 + 0.25 * (1 - np.clip(np.abs(x), 0, 1) ** 2))
    beam -= lung * rng.uniform(0.90, 1.08)
    beam += lung * vessels * (0.20 + 0.10 * _texture(rng, size, 0.008, 0.03))
    beam += 0.35 * heart + 0.45 * body * _soft(dome_top + 0.10 - y, 0.10) * (1 - lung)
    _add_bones(rng, beam, x, y, body)
    if rng.random() < 0.25:
        # an opacity; the lung mask still includes it
        spot_x, spot_y = rng.choice([-1, 1]) * rng.uniform(0.3, 0.5), rng.uniform(-0.4, 0.3)
        cloud = np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / rng.uniform(0.01, 0.04))
        beam += 0.55 * lung * cloud * (1 + 0.25 * _texture(rng, size, 0.02, 0.1))
    beam += 0.025 * body * _texture(rng, size, 0.02, 0.2)
    return beam


def _add_bones(rng: np.random.Generator, beam: Field, x: Field, y: Field, body: Field) -> None:
    """Add spine, ribs and clavicles to `beam`."""
    beam += body * _soft(np.abs(x) - 0.09, 0.03) * (0.34 + 0.06 * np.sin(y * rng.uniform(38, 46)))
    bend, pitch = rng.uniform(0.25, 0.45), rng.uniform(0.15, 0.18)
    caged = body * _soft(np.abs(x) - 0.84, 0.04)
    for number in range(9):
        level = -0.74 + pitch * number
        behind = level - 0.10 + bend * (np.abs(x) - 0.30) ** 2 * 2
        before = level + 0.02 - 0.5 * np.abs(x) + 0.8 * np.abs(x) ** 2 + 0.22
        beam += caged * 0.17 * _soft(np.abs(y - behind) - 0.020, 0.018)
        beam += caged * 0.10 * _soft(np.abs(y - before) - 0.022, 0.020) * _soft(0.25 - np.abs(x), 0.08)
    collar = _soft(np.abs(y + 0.74 + 0.12 * np.abs(x)) - 0.022, 0.015) * _soft(np.abs(x) - 0.8, 0.03)
    beam += 0.30 * collar * body * _soft(0.09 - np.abs(x), 0.03)


def _expose(rng: np.random.Generator, beam: Field, height: int, width: int) -> Image:
    """Turn absorption into a radiograph: scatter, exposure, contrast, noise, collimation, markers."""
    beam = cv2.GaussianBlur(beam, (0, 0), rng.uniform(0.004, 0.009) * min(height, width))
    beam = beam + 0.25 * cv2.GaussianBlur(beam, (0, 0), 0.12 * min(height, width))
    film = 1 - np.exp(-rng.uniform(0.7, 1.25) * beam)
    film = (film - film.min()) / (film.max() - film.min())
    film = film ** rng.uniform(0.8, 1.5) * rng.uniform(0.75, 1.0)
    film = film + rng.normal(0, 1, film.shape) * rng.uniform(0.006, 0.03) * (0.4 + film)
    if rng.random() < 0.3:
        edge = int(height * rng.uniform(0.88, 0.96))
        film[edge:] = 0.02
    if rng.random() < 0.3:
        edge = int(width * rng.uniform(0.03, 0.08))
        film[:, :edge] = film[:, width - edge :] = 0.02
    image: Image = np.clip(film * 255, 0, 255).astype(np.uint8)
    unit = min(height, width) / 256
    thick = max(1, round(1.4 * unit))
    if rng.random() < 0.7:
        at = (int(width * 0.04), int(height * rng.uniform(0.10, 0.16)))
        cv2.putText(image, "R", at, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * unit, 235, thick, cv2.LINE_AA)
    if rng.random() < 0.4:
        at = (int(width * 0.80), int(height * rng.uniform(0.07, 0.12)))
        corner = (at[0] + int(46 * unit), at[1] - int(12 * unit))
        cv2.rectangle(image, (at[0] - int(2 * unit), at[1] + int(4 * unit)), corner, 245, -1)
        cv2.putText(image, "ERECT", at, cv2.FONT_HERSHEY_SIMPLEX, 0.36 * unit, 20, thick // 2 + 1, cv2.LINE_AA)
    return image


def _soft(signed: Field, width: float) -> Field:
    """Signed distance to coverage: 1 inside (negative), 0 outside, with an edge about `width` wide."""
    edge: Field = 1 / (1 + np.exp(np.clip(signed / (width / 3), -40, 40)))
    return edge


def _texture(rng: np.random.Generator, size: tuple[int, int], fine: float, coarse: float) -> Field:
    """Band-pass noise, mean 0, standard deviation 1; `fine` and `coarse` are fractions of the shorter side."""
    white = rng.normal(size=size)
    side = min(size)
    band: Field = cv2.GaussianBlur(white, (0, 0), fine * side) - cv2.GaussianBlur(white, (0, 0), coarse * side)
    band /= band.std() + 1e-12
    return band
