"""Fitting a segmenter to the scans labelled so far.

Every round trains from its starting weights again (random, or pretrained ones), not from the round before, so
a model depends on its scans, settings and seed alone. The default for a CPU fits a lab's workstation: one
round of 20 scans in a few minutes on two cores.

On cores shared with other work OpenMP's waiting threads take the time of the working ones: start the process
with OMP_WAIT_POLICY=PASSIVE in its environment (read once, when torch is first imported), or give it one thread.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from backend.errors import BadSetting
from backend.formats.pixels import IGNORE, Letterboxed
from backend.learning.segmenters import (
    Segmenter,
    SegmenterSpec,
    as_tensor,
    check_encoder,
    check_image_size,
    standardised,
)

Step = Callable[[int, int], None]


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. `for_device` gives defaults that suit the machine.

    architecture, encoder, decoder_channels, image_size  see SegmenterSpec
    encoder_weights  None (random), "imagenet" or a path; see Segmenter.create
    device           "cpu", "cuda", "cuda:1", ...
    batch_size       scans per step, 2 or more; fewer labelled scans than that are repeated, each time
                     augmented anew
    max_steps        steps of the optimiser, whatever the number of scans: a round takes the same time
    learning_rate    highest rate of the one-cycle schedule (Smith & Topin 2018), reached after `warmup` of
                     all steps
    weight_decay     of AdamW
    ema              how much of the averaged weights is kept at each step, 0..1; 0: no averaging
    validate_every   steps between two looks at the validation scans
    patience         stop after so many looks without a better Dice; 0: never stop early
    flip             mirror scans left to right; off, as left and right mean something in most anatomy
    rotate, shift, zoom, shear, contrast, gamma, noise  ranges of the augmentation: degrees, share of the
                                                        side, shares,
                     degrees, shares, exponent, standard deviation (of intensities in 0..1)
    seed             same seed, scans and number of threads: same weights, bit for bit, on a CPU

    Raises BadSetting on a value that cannot be trained with.
    """

    encoder: str
    image_size: int
    batch_size: int
    max_steps: int
    decoder_channels: tuple[int, ...] = (128, 64, 32, 16, 8)
    architecture: str = "unet"
    encoder_weights: Path | str | None = None
    device: str = "cpu"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup: float = 0.2
    ema: float = 0.97
    validate_every: int = 25
    patience: int = 0
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
        for name, low in (("batch_size", 2), ("max_steps", 1), ("validate_every", 1), ("patience", 0)):
            if getattr(self, name) < low:
                raise BadSetting(f"{name} must be {low} or more, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise BadSetting(f"ema must be at least 0 and below 1, got {self.ema}")
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
                f"no training setting is called {', '.join(unknown)}; there are {', '.join(cls.__dataclass_fields__)}"
            )
        return replace(base, device=device, **overrides)


_CPU = TrainingSettings(encoder="resnet18", image_size=160, batch_size=4, max_steps=400, validate_every=50)
_GPU = TrainingSettings(
    encoder="resnet34",
    image_size=512,
    batch_size=8,
    max_steps=1500,
    decoder_channels=(256, 128, 64, 32, 16),
    learning_rate=1e-3,
    ema=0.99,
    validate_every=50,
    patience=12,
    mixed_precision=True,
    device="cuda",
)


@dataclass(frozen=True)
class Trained:
    """A finished training.

    segmenter  with the weights of the best validation Dice; without validation scans, the last ones
    history    one dict for each look at the validation scans: step, loss (mean since the look before),
               learning_rate, dice (0..1, None without validation scans), seconds (since the start)
    best_step  the step the weights are from
    seconds    wall time
    """

    segmenter: Segmenter
    history: list[dict[str, float | int | None]]
    best_step: int
    seconds: float


def train(
    scans: Sequence[Letterboxed],
    masks: Sequence[NDArray[np.uint8]],
    validation: tuple[Sequence[Letterboxed], Sequence[NDArray[np.uint8]]],
    labels: Sequence[str],
    settings: TrainingSettings,
    *,
    on_step: Step | None = None,
) -> Trained:
    """Fit a new segmenter to labelled scans.

    Dice loss (Milletari et al. 2016) plus cross-entropy over the pixels that are not IGNORE; AdamW; the
    weights averaged over the last steps (Polyak & Juditsky 1992) are what is validated and returned. torch's
    global random state and settings are left as they were, also while `on_step` runs.

    scans, masks  labelled scans, at least one, and their label maps, (S, S) with IGNORE on padding; not
                  modified
    validation    the same for scans to judge by; may be two empty lists
    labels        names of classes 1..
    on_step       called as on_step(steps done, of) after every step and every validation batch; may raise to
                  abort

    Colour scans give a network for colour, unless all are gray. Raises ValueError when scans and masks do not
    match.
    """
    started = time.monotonic()
    report = on_step or (lambda done, total: None)
    watched, truths = validation
    _check(scans, masks, len(labels), settings.image_size, "training")
    _check(watched, truths, len(labels), settings.image_size, "validation")
    if not scans:
        raise ValueError("training needs at least one labelled scan, got none")
    total = settings.max_steps
    report(0, total)
    device = torch.device(settings.device)
    colour = any(one.pixels.ndim == 3 for one in (*scans, *watched))
    spec = SegmenterSpec(
        settings.architecture,
        settings.encoder,
        3 if colour else 1,
        settings.image_size,
        tuple(labels),
        settings.decoder_channels,
    )
    with _seeded(settings.seed, 0, device):
        segmenter = Segmenter.create(spec, encoder_weights=settings.encoder_weights, device=device)
    average = _Average(segmenter.network, settings.ema)
    optimizer = torch.optim.AdamW(
        segmenter.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=settings.mixed_precision and device.type == "cuda")
    loss_of = _Loss()
    augment = _augmentation(settings)
    # Wrapped one by one: a row of a tv_tensor is a plain tensor, and v2 would leave a plain mask where it is.
    pool = [
        (tv_tensors.Image(pixels), tv_tensors.Mask(torch.from_numpy(mask[None].copy())))
        for pixels, mask in zip(as_tensor(scans, spec), masks, strict=True)
    ]
    order = _endless(len(scans), settings.batch_size, settings.seed)

    history: list[dict[str, float | int | None]] = []
    losses: list[float] = []
    best_dice, best_step, best_state, stale = -1.0, 0, None, 0
    for step in range(1, total + 1):
        rate = settings.learning_rate * _one_cycle(step / total, settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with _seeded(settings.seed, step, device):
            pairs = [augment(*pool[row]) for row in next(order)]
            inputs = torch.stack([image for image, _ in pairs]).to(device)
            target = torch.stack([mask for _, mask in pairs]).to(device)
            inputs = standardised(inputs, target != IGNORE).contiguous(memory_format=torch.channels_last)
            segmenter.network.train()
            with torch.autocast(device.type, enabled=settings.mixed_precision and device.type == "cuda"):
                logits = segmenter.network(inputs)
            loss = loss_of(logits.float(), target[:, 0].long())
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            average.update(step)
        losses.append(float(loss.detach()))
        report(step, total)
        if step % settings.validate_every and step != total:
            continue
        dice = None
        if watched:
            dice = _validate(Segmenter(spec, average.network, device), watched, truths, partial(report, step, total))
            stale = 0 if dice > best_dice else stale + 1
            if dice >= best_dice:  # among equals the later one has learned for longer
                best_dice, best_step = dice, step
                best_state = {name: value.clone() for name, value in average.network.state_dict().items()}
        history.append(
            {
                "step": step,
                "loss": float(np.mean(losses)),
                "learning_rate": rate,
                "dice": dice,
                "seconds": time.monotonic() - started,
            }
        )
        losses.clear()
        if settings.patience and stale >= settings.patience:
            break
    if best_state is None:
        best_step = total
    else:
        average.network.load_state_dict(best_state)
    trained = Segmenter(spec, average.network, device, segmenter.warning)
    return Trained(trained, history, best_step, time.monotonic() - started)


def _check(
    scans: Sequence[Letterboxed], masks: Sequence[NDArray[np.uint8]], n_labels: int, size: int, what: str
) -> None:
    if len(scans) != len(masks):
        raise ValueError(f"{what}: {len(scans)} scans but {len(masks)} masks")
    for row, (scan, mask) in enumerate(zip(scans, masks, strict=True)):
        if scan.pixels.shape[:2] != (size, size) or mask.shape != (size, size):
            raise ValueError(
                f"{what} scan {row}: scan {scan.pixels.shape} and mask {mask.shape} must both be {size} x {size}"
            )
        highest = int(np.where(mask == IGNORE, 0, mask).max())
        if highest > n_labels:
            raise ValueError(f"{what} scan {row}: its mask has class {highest}, but there are {n_labels} labels")


@contextlib.contextmanager
def _seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Random numbers that depend on (seed, step) alone, and deterministic kernels on a CPU.

    Afterwards torch is as it was before.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    number = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(number)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        else:
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def _endless(n: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Full batches for ever: rows of one permutation after another, so every scan is seen equally often."""
    generator = np.random.default_rng([seed, n])
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting.extend(generator.permutation(n).tolist())
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _one_cycle(progress: float, warmup: float) -> float:
    """Share of the highest learning rate: up in a straight line, down to 0 along a cosine."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))


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


def _augmentation(settings: TrainingSettings) -> v2.Transform:
    """Image and mask together. What comes in from outside is black in the scan, IGNORE in the mask."""
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


class _Loss(nn.Module):
    """Dice + cross-entropy of (N, C, S, S) logits against (N, S, S) classes; IGNORE pixels weigh nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = smp.losses.DiceLoss("multiclass", smooth=1.0, ignore_index=IGNORE)
        self.entropy = nn.CrossEntropyLoss(ignore_index=IGNORE, reduction="sum")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        known = (target != IGNORE).sum().clamp(min=1)  # a batch may be all padding: 0, not 0 / 0
        loss: Tensor = self.dice(logits, target) + self.entropy(logits, target) / known
        return loss


class _Average:
    """Running mean of a network's weights and batch statistics; a young mean forgets faster."""

    def __init__(self, network: nn.Module, keep: float) -> None:
        self.network = copy.deepcopy(network).eval()
        self.keep = keep
        self._source = network

    @torch.no_grad()
    def update(self, step: int) -> None:
        keep = min(self.keep, step / (step + 9)) if self.keep else 0.0
        source = self._source.state_dict()
        for name, mean in self.network.state_dict().items():
            value = source[name]
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)


def _validate(
    segmenter: Segmenter,
    scans: Sequence[Letterboxed],
    truths: Sequence[NDArray[np.uint8]],
    report: Callable[[], None],
    batch_size: int = 8,
) -> float:
    """Mean Dice over scans, each over the labels present in truth or prediction (1 when there are none)."""
    dices: list[float] = []
    for start in range(0, len(scans), batch_size):
        batch = scans[start : start + batch_size]
        for scan, share, truth in zip(batch, segmenter.predict(batch), truths[start:], strict=False):
            wanted, got = truth[scan.content], share.argmax(axis=0)
            known = wanted != IGNORE
            each = [
                2 * ((got == number) & (wanted == number)).sum() / n
                for number in range(1, segmenter.spec.classes)
                if (n := ((got == number) & known).sum() + (wanted == number).sum())
            ]
            dices.append(float(np.mean(each)) if each else 1.0)
        report()
    return float(np.mean(dices))
