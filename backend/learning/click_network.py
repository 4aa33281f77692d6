"""A small network that corrects a mask from clicks, learnt in every round from the lab's own labels.

It sees the picture, the mask so far, the clicks as discs, and frozen features of the patches from the built-in network.
It learns from simulated clicks, each in the middle of the largest error (Sofiiuk et al. 2022, RITM), from blank and
from its own mask without clicks (Diaz-Pinto et al. 2023, DeepEdit), whatever the label. What it draws is then fitted
to the clicks by `geodesic`, so that every click counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import affine_grid, binary_cross_entropy_with_logits, grid_sample, interpolate

from backend.errors import WeightsMissing
from backend.formats.fitting import letterbox_mask
from backend.formats.pixels import Letterboxed, box_of
from backend.learning.cases import Case
from backend.learning.clicks import NETWORK, PATHS, Mask, Point, dice, next_click
from backend.learning.geodesic import Geodesic, Seeds, Tool
from backend.learning.patch_features import CHANNELS, GRID
from backend.learning.published_tools import Published
from backend.learning.randomness import OwnRandom, deterministic_kernels
from backend.learning.segmenters import write_file
from backend.learning.training import one_cycle

SIDE = 128  # pixels of the working square
WIDTH = 16  # channels of the first level
KEPT = 32  # principal components of the features
RADIUS = 3  # of the disc around a click, in pixels
BATCH = 4
RATE, WARMUP, DECAY, AVERAGED = 3e-3, 0.1, 1e-2, 0.98
OWN = 0.6  # share of the examples that start from the network's own mask; the others start from blank
MOST_CLICKS = 3  # of an example
LEARNT, SAMPLED = 200, 64  # most scans for training, and for the principal components
JUDGED, AFTER = 12, 3  # held-out scans on which tools are compared, after so many clicks
FORMAT = "1"
FITTED = "fitted"

Features = Callable[[int], NDArray[np.float16]]
"""By place of a scan: its features, (GRID * GRID, CHANNELS), see `patch_features`."""


class _Network(nn.Module):
    """A U-Net from SIDE to SIDE / 16; the features join where they have the size of their grid."""

    def __init__(self) -> None:
        super().__init__()
        w = WIDTH
        self.down = nn.ModuleList(
            [
                nn.Sequential(_block(4, w, 2), _block(w, w)),
                _block(w, 2 * w, 2),
                nn.Sequential(_block(2 * w, 4 * w, 2), _block(4 * w, 4 * w)),
                nn.Sequential(_block(4 * w, 4 * w, 2), _block(4 * w, 4 * w)),
            ]
        )
        self.join = _block(2 * w + KEPT, 2 * w)
        self.up = nn.ModuleList([_block(8 * w, 4 * w), _block(6 * w, 2 * w), _block(3 * w, w)])
        self.out = nn.Conv2d(w, 1, 1)

    def forward(self, inputs: Tensor, features: Tensor) -> Tensor:
        """(N, 1, SIDE, SIDE) logits from (N, 4, SIDE, SIDE) and (N, KEPT, GRID, GRID)."""
        half = self.down[0](inputs)
        quarter = self.join(torch.cat([self.down[1](half), features], 1))
        eighth = self.down[2](quarter)
        found = self.down[3](eighth)
        for block, level in zip(self.up, (eighth, quarter, half), strict=True):
            found = block(torch.cat([_twice(found), level], 1))
        return _twice(self.out(found))


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.SiLU(inplace=True)
    )


def _twice(level: Tensor) -> Tensor:
    return interpolate(level, scale_factor=2, mode="bilinear", align_corners=False)


class ClickNetwork:
    """A trained network.

    mean, axes  (CHANNELS,) and (CHANNELS, KEPT): from features to their components
    """

    def __init__(self, network: nn.Module, mean: NDArray[np.float32], axes: NDArray[np.float32]) -> None:
        self.network, self.mean, self.axes = network.eval(), mean, axes

    def components(self, features: NDArray[np.float16]) -> NDArray[np.float32]:
        """(KEPT, GRID, GRID)."""
        found = (features.astype(np.float32) - self.mean) @ self.axes
        return np.ascontiguousarray(found.reshape(GRID, GRID, KEPT).transpose(2, 0, 1))

    def tool(
        self, scan: Letterboxed, features: NDArray[np.float16], paths: Geodesic, *, fitted: bool = True
    ) -> ClickTool:
        """For the clicks on one scan, whose features and paths these are.

        fitted  outlines move to where the brightness changes, else only around clicks that contradict them
        """
        return ClickTool(self, scan, features, paths, fitted)

    def save(self, file: Path) -> None:
        """Raises StorageFull when the file cannot be written."""
        state = {f"network.{name}": value.contiguous() for name, value in self.network.state_dict().items()}
        state |= {"mean": torch.from_numpy(self.mean), "axes": torch.from_numpy(self.axes)}
        write_file(file, safetensors.torch.save(state, {"format": FORMAT}))

    @classmethod
    def load(cls, file: Path) -> ClickNetwork:
        """The network that `save` wrote. Raises WeightsMissing when the file is missing or damaged."""
        try:
            state = safetensors.torch.load(file.read_bytes())
            network = _Network()
            inner = {name.removeprefix("network."): v for name, v in state.items() if name.startswith("network.")}
            network.load_state_dict(inner)
            return cls(network, state["mean"].numpy(), state["axes"].numpy())
        except Exception as error:  # damaged safetensors, weights of another network
            raise WeightsMissing(f"the click network {file.name} is missing or damaged ({error})") from error


class ClickTool:
    """The network on one scan."""

    def __init__(
        self, network: ClickNetwork, scan: Letterboxed, features: NDArray[np.float16], paths: Geodesic, fitted: bool
    ) -> None:
        self._network, self._paths, self._fitted = network, paths, fitted
        self.height, self.width = scan.original_height, scan.original_width
        self._box = box_of(self.height, self.width, SIDE)
        self._picture = _picture(scan)
        self._components = torch.from_numpy(network.components(features))[None]

    def mask(self, seeds: Seeds) -> Mask:
        """(H, W): the finding. Every click inside is in it, and every click outside is not.

        The network draws from blank, and the parts of a mask that a click shows to be wrong as a whole. It would
        replace a good mask by its own, so the paths correct those. They also answer boxes and strokes, which it has not
        learnt.
        """
        if not seeds.inside + seeds.outside or seeds.boxes or seeds.drawn_in or seeds.drawn_out:
            return self._paths.mask(seeds)
        if seeds.current is None or not seeds.current.any():
            return self.drawn(seeds) if seeds.inside else self._paths.mask(seeds)
        if not self._paths.wrong(seeds.current, seeds):
            return self._paths.mask(seeds)
        return self._paths.near_prompts(self.drawn(seeds), seeds.current, seeds)

    def drawn(self, seeds: Seeds) -> Mask:
        """`mask` by the network, from clicks, also where there is a mask already."""
        top, left, h, w = self._box
        current: NDArray[np.float32] = np.zeros((SIDE, SIDE), np.float32)
        if seeds.current is not None:
            small = cv2.resize(seeds.current.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)
            current[top : top + h, left : left + w] = small >= 0.5
        at = [[self._at(point) for point in points] for points in (seeds.inside, seeds.outside)]
        inputs = torch.from_numpy(np.stack([self._picture, current, *map(_discs, at)]))[None]
        with torch.inference_mode():
            logits = self._network.network(inputs, self._components)[0, 0].numpy()
        whole = cv2.resize(logits[top : top + h, left : left + w], (self.width, self.height)) > 0
        return self._paths.mask(replace(seeds, current=np.asarray(whole)), everywhere=self._fitted)

    def _at(self, point: Point) -> Point:
        top, left, h, w = self._box
        return point[0] * h / self.height + top, point[1] * w / self.width + left


def _picture(scan: Letterboxed) -> NDArray[np.float32]:
    """(SIDE, SIDE): gray, mean 0 and standard deviation 1 over the picture, 0 on the padding."""
    pixels = scan.pixels if scan.pixels.ndim == 2 else cv2.cvtColor(scan.pixels, cv2.COLOR_RGB2GRAY)
    content = pixels[scan.content[0], scan.content[1]].astype(np.float32)
    top, left, h, w = box_of(scan.original_height, scan.original_width, SIDE)
    found: NDArray[np.float32] = np.zeros((SIDE, SIDE), np.float32)
    inner = cv2.resize(content, (w, h), interpolation=cv2.INTER_AREA)
    found[top : top + h, left : left + w] = (inner - inner.mean()) / max(float(inner.std()), 1.0)
    return found


def _discs(points: Sequence[Point]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.zeros((SIDE, SIDE), np.float32)
    for row, column in points:
        cv2.circle(found, (int(column), int(row)), RADIUS, 1.0, -1)
    return found


def learn_clicks(
    scans: Sequence[Case],
    features: Features,
    *,
    steps: int,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> ClickNetwork | None:
    """A network that has learnt from labelled scans; None if they show nothing. Same input, same network, on a CPU.

    Each label is shown as often as the others.

    scans    in an order that says nothing about them: of more than LEARNT, the first ones are used
    on_step  called as on_step(steps done, total steps) after every step; may raise to abort
    """
    places = [place for place, one in enumerate(scans) if one.classes][:LEARNT]
    if not places:
        return None
    mean, axes = _principal_components([features(place) for place in places[:SAMPLED]])
    with OwnRandom(seed, 0, 2):
        network = _Network()
    found = ClickNetwork(network, mean, axes)
    components = {place: torch.from_numpy(found.components(features(place))) for place in places}
    examples = _Examples([scans[place] for place in places], [components[place] for place in places])
    average = _Network()
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    for step in range(1, steps + 1):
        rate = RATE * one_cycle(step / steps, WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with deterministic_kernels():
            _step(network, optimizer, examples, np.random.default_rng([seed, step]))
        keep = min(AVERAGED, step / (step + 9))
        with torch.no_grad():
            for mine, new in zip(average.parameters(), network.parameters(), strict=True):
                mine.lerp_(new, 1 - keep)
        on_step(step, steps)
    return ClickNetwork(average, mean, axes)


def _principal_components(features: Sequence[NDArray[np.float16]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean, and the axes of the standardised features, scaled to a standard deviation of 1."""
    rows = np.concatenate(features).astype(np.float64)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    rows = (rows - mean) / deviation
    values, axes = np.linalg.eigh(rows.T @ rows / len(rows))
    axes = axes[:, ::-1][:, :KEPT] / np.sqrt(np.maximum(values[::-1][:KEPT], 1e-6))
    assert axes.shape == (CHANNELS, KEPT)
    return mean.astype(np.float32), (axes / deviation[:, None]).astype(np.float32)


class _Examples:
    """Pictures, masks and components of labelled scans, and batches of them, transformed at random."""

    def __init__(self, scans: Sequence[Case], components: Sequence[Tensor]) -> None:
        self.pictures = [torch.from_numpy(_picture(one.scan))[None] for one in scans]
        self.masks = [torch.from_numpy(letterbox_mask(one.mask, SIDE)) for one in scans]
        self.components = components
        self.of_class: dict[int, list[int]] = {}
        for place, one in enumerate(scans):
            for number in one.classes:
                self.of_class.setdefault(number, []).append(place)

    def batch(self, random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (N, 1, SIDE, SIDE), components (N, KEPT, GRID, GRID), true masks (N, 1, SIDE, SIDE)."""
        numbers = random.choice(sorted(self.of_class), BATCH)
        rows = [int(random.choice(self.of_class[int(number)])) for number in numbers]
        truth = torch.stack([(self.masks[r] == int(n)).float()[None] for r, n in zip(rows, numbers, strict=True)])
        turn = _turns(random, len(rows))
        pictures = _moved(torch.stack([self.pictures[row] for row in rows]), turn)
        contrast = torch.from_numpy(np.exp(random.uniform(-0.3, 0.3, (len(rows), 1, 1, 1)))).float()
        shift = torch.from_numpy(random.uniform(-0.3, 0.3, (len(rows), 1, 1, 1))).float()
        components = _moved(torch.stack([self.components[row] for row in rows]), turn)
        return pictures * contrast + shift, components, (_moved(truth, turn) > 0.5).float()


def _turns(random: np.random.Generator, count: int) -> Tensor:
    """Random affine maps (count, 2, 3): rotation, zoom, shift, mirror."""
    angle, zoom = random.uniform(-0.26, 0.26, count), np.exp(random.uniform(-0.3, 0.3, count))
    found = np.zeros((count, 2, 3))
    found[:, 0, 0] = zoom * np.cos(angle) * random.choice([-1, 1], count)
    found[:, 0, 1], found[:, 1, 0] = -zoom * np.sin(angle), zoom * np.sin(angle)
    found[:, 1, 1] = zoom * np.cos(angle)
    found[:, :, 2] = random.uniform(-0.1, 0.1, (count, 2))
    return torch.from_numpy(found).float()


def _moved(maps: Tensor, turn: Tensor) -> Tensor:
    grid = affine_grid(turn, list(maps.shape), align_corners=False)
    return grid_sample(maps, grid, align_corners=False)


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, examples: _Examples, random: np.random.Generator
) -> None:
    pictures, components, truth = examples.batch(random)
    truths = truth[:, 0].numpy() > 0
    mask, clicks = torch.zeros_like(truth), torch.zeros(len(truth), 2, SIDE, SIDE)

    def drawn() -> Tensor:
        with torch.no_grad():
            logits: Tensor = network(torch.cat([pictures, mask, clicks], 1), components)
            return (logits > 0).float()

    own = torch.from_numpy(random.random(len(truth)) < OWN)
    if own.any():
        mask[own] = drawn()[own]
    points: list[tuple[list[Point], list[Point]]] = [([], []) for _ in truths]
    count = int(random.integers(MOST_CLICKS + 1))
    for number in range(count):
        for place, (seen, wanted) in enumerate(zip(mask[:, 0].numpy() > 0, truths, strict=True)):
            if (click := next_click(seen, wanted)) is not None:
                points[place][0 if click[0] else 1].append(click[1])
        clicks = torch.from_numpy(np.stack([[_discs(inside), _discs(outside)] for inside, outside in points]))
        if number < count - 1:
            mask = drawn()
    logits = network(torch.cat([pictures, mask, clicks], 1), components)
    share = torch.sigmoid(logits)
    overlap = 2 * (share * truth).sum((1, 2, 3)) + 1
    loss = (
        binary_cross_entropy_with_logits(logits, truth)
        + (1 - overlap / (share.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1)).mean()
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def compare_tools(
    network: ClickNetwork, scans: Sequence[Case], features: Features, published: Mapping[str, Published] | None = None
) -> dict[str, Any] | None:
    """{n, clicks, network, fitted, geodesic, ...}: mean Dice of all tools after so many clicks, on held-out scans.

    From blank, over up to JUDGED scans, one label of each in turn; None if none shows a label. `fitted` says whether
    the network is better with its outlines moved to where the brightness changes.

    published  published networks for clicks, by their names
    """
    began = time.monotonic()
    shown = [(place, one) for place, one in enumerate(scans) if one.classes][:JUDGED]
    found: dict[str, list[float]] = {}
    for turn, (place, one) in enumerate(shown):
        truth = one.mask == one.classes[turn % len(one.classes)]
        paths = Geodesic(one.scan)
        tools: dict[str, Tool] = {PATHS: paths}
        for name, fitted in ((NETWORK, False), (FITTED, True)):
            tools[name] = network.tool(one.scan, features(place), paths, fitted=fitted)
        tools |= {name: other.tool(one.scan, paths) for name, other in (published or {}).items()}
        for name, tool in tools.items():
            found.setdefault(name, []).append(dice(clicked(tool.mask, truth, AFTER)[-1], truth))
    if not shown:
        return None
    means: dict[str, Any] = {name: round(float(np.mean(values)), 4) for name, values in found.items()}
    fitted = means.pop(FITTED)
    means |= {NETWORK: max(means[NETWORK], fitted), FITTED: fitted > means[NETWORK]}
    return {"n": len(shown), "clicks": AFTER, **means, "seconds": round(time.monotonic() - began, 1)}


def clicked(ask: Callable[[Seeds], Mask], truth: Mask, count: int, start: Mask | None = None) -> list[Mask]:
    """The masks after 0 .. `count` simulated clicks, from `start` or from blank."""
    seeds, mask = Seeds(current=start), start if start is not None else np.zeros_like(truth)
    found = [mask]
    for _ in range(count):
        if (click := next_click(mask, truth)) is not None:
            seeds.click(click[1], inside=click[0])
            mask = ask(seeds)
        found.append(mask)
    return found
