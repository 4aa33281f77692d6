"""Learning curves with a score for every scan, recorded once for `benchmarks.decisions`.

The learner is quick, not the service's U-Net, so that every tenth label gets a model: a ridge regression from features
of an ImageNet MobileNetV2 to each cell of a 28 x 28 grid. Each training sees its own random projection of the features,
so that trainings on the same scans differ, as those of a network do (by about 0.02 Dice; small U-Nets differ more). On
BUSI's ultrasound images, its Dice rises from 0.2 with 10 labels to 0.4 with 200.

A picture with its lesion in one half gives two test scans: the picture, with its lesion, and the other half, in which
anything drawn is a false alarm.

`.venv/bin/python -m benchmarks.curves` writes `benchmarks/curves.csv` (six minutes of one core). The images are in
`../shared`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from backend.formats.fitting import letterbox_mask
from backend.formats.pixels import IGNORE, letterbox
from backend.simulate.labelled import Labelled, read_groups, read_labelled
from backend.simulate.plan import split

SHARED = Path(__file__).resolve().parents[2] / "shared"
TABLE = Path(__file__).with_name("curves.csv")
DATA = {"busi_ultrasound": range(10, 201, 10)}
SEEDS = range(6)
TEST_SHARE = 0.4
SIDE, GRID = 224, 28
DIRECTIONS = 200  # of the projection; the fewer, the more trainings differ
RIDGE = 1.0
THRESHOLDS = np.linspace(0.1, 0.7, 25)
COLUMNS = ("data", "seed", "labels", "dice", "area")

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Model:
    """One recorded training, tested on the scans of its repeat, which are in the same order for all its models.

    labels  number of labels
    dice    (N,) 0..1, of the scans with a lesion
    area    (M,) drawn share, 0..1, of the scans without
    """

    data: str
    seed: int
    labels: int
    dice: Floats
    area: Floats


def read_models(path: Path = TABLE) -> list[Model]:
    """All models: 20 for each of the 6 repeats, with 10 to 200 labels."""
    with path.open(newline="") as file:
        return [
            Model(row["data"], int(row["seed"]), int(row["labels"]), _numbers(row["dice"]), _numbers(row["area"]))
            for row in csv.DictReader(file)
        ]


def _numbers(text: str) -> Floats:
    return np.array([int(number) for number in text.split()], dtype=np.float64) / 1000


def record(path: Path = TABLE) -> None:
    """Train all models, and write their scores, in thousandths."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for data, sizes in DATA.items():
            root = SHARED / "data" / data
            scans = read_labelled(root / "images", root / "masks")
            groups = read_groups([f"{root / 'near_duplicates.csv'}:name_a,name_b"], scans.names)
            features = _features(scans)
            boxed = np.stack([letterbox_mask(mask, GRID).ravel() for mask in scans.masks])
            cells = (boxed > 0) & (boxed != IGNORE)
            for seed in SEEDS:
                part = split(groups, TEST_SHARE, seed)
                order = np.random.default_rng(seed).permutation(part.pool)
                for model in _train(data, seed, features, cells, order, part.test, sizes):
                    dice, area = (" ".join(str(round(1000 * x)) for x in values) for values in (model.dice, model.area))
                    writer.writerow((data, seed, model.labels, dice, area))
                file.flush()


def _features(scans: Labelled) -> NDArray[np.float16]:
    """(N, GRID * GRID, C): MobileNetV2's features with strides 4 to 32, the pixel, its place, and a constant."""
    import timm
    import torch

    weights = str(SHARED / "weights" / "mobilenetv2_100" / "model.safetensors")
    given: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": weights}}
    network = timm.create_model("mobilenetv2_100", features_only=True, out_indices=(1, 2, 3, 4), **given)
    network.eval()
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, GRID)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    rows = []
    for image in scans.images:
        gray = image if image.ndim == 2 else image.mean(axis=2).astype(np.uint8)
        pixels = torch.from_numpy(letterbox(gray, SIDE).pixels[None, None].astype(np.float32) / 255)
        with torch.inference_mode():
            levels = [pixels, *network((pixels.expand(-1, 3, -1, -1) - 0.45) / 0.225)]
            sized = [torch.nn.functional.interpolate(x, (GRID, GRID), mode="area") for x in levels]
        found = torch.cat(sized, dim=1)[0].flatten(1).T.numpy()
        rows.append(np.concatenate([found, place, place**2, np.ones((GRID**2, 1))], axis=1).astype(np.float16))
    return np.stack(rows)


def _train(
    data: str,
    seed: int,
    features: NDArray[np.float16],
    cells: NDArray[np.bool_],
    order: NDArray[np.intp],
    test: NDArray[np.intp],
    sizes: Sequence[int],
) -> Iterator[Model]:
    """A model for each number of labels, trained on the first scans of the order."""
    gram = np.zeros((features.shape[2], features.shape[2]))
    answer = np.zeros(features.shape[2])
    empty = _empty_halves(cells[test])
    for n in range(1, max(sizes) + 1):
        seen, wanted = features[order[n - 1]].astype(np.float32), cells[order[n - 1]]
        gram += seen.T @ seen
        answer += seen[wanted].sum(axis=0)
        if n not in sizes:
            continue
        scale = 1 / np.sqrt(np.diag(gram) / n + 1e-6)
        random = np.random.default_rng([seed, n]).standard_normal((len(gram), DIRECTIONS))
        random[-6:] = np.eye(DIRECTIONS)[:6] * 10  # the pixel's place and the constant are always seen
        project = scale[:, None] * random
        inner = project.T @ gram @ project
        inner += RIDGE * np.trace(inner) / DIRECTIONS / 1000 * np.eye(DIRECTIONS)
        weights = (project @ np.linalg.solve(inner, project.T @ answer)).astype(np.float32)
        level = _threshold(_values(features, order[:n][-40:], weights), cells[order[:n][-40:]])
        drawn = _values(features, test, weights) > level
        both = (drawn & cells[test]).sum(axis=1)
        dice = 2 * both / np.maximum(1, drawn.sum(axis=1) + cells[test].sum(axis=1))
        share = (drawn & empty).sum(axis=1) / (GRID * GRID / 2)
        yield Model(data, seed, n, dice[cells[test].any(axis=1)], share[empty.any(axis=1)])


def _values(features: NDArray[np.float16], rows: NDArray[np.intp], weights: Floats) -> Floats:
    """(len(rows), GRID * GRID), high where the model sees foreground; each the mean of 3 x 3 cells."""
    found = np.stack([features[row].astype(np.float32) @ weights for row in rows])
    smooth: Floats = uniform_filter(found.reshape(-1, GRID, GRID), (0, 3, 3)).reshape(found.shape)
    return smooth


def _threshold(values: Floats, truth: NDArray[np.bool_]) -> float:
    """The threshold with the highest pooled Dice."""
    pooled = [2 * (truth & (values > t)).sum() / (truth.sum() + (values > t).sum()) for t in THRESHOLDS]
    return float(THRESHOLDS[int(np.argmax(pooled))])


def _empty_halves(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N, GRID * GRID): the left or right half where it has no foreground, but the other has; else nothing."""
    grids = cells.reshape(-1, GRID, GRID)
    found = np.zeros_like(grids)
    left, right = grids[:, :, : GRID // 2].any(axis=(1, 2)), grids[:, :, GRID // 2 :].any(axis=(1, 2))
    found[right & ~left, :, : GRID // 2] = True
    found[left & ~right, :, GRID // 2 :] = True
    return found.reshape(cells.shape)


if __name__ == "__main__":
    record()
