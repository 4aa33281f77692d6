"""Fitting a segmenter to the scans labelled so far.

Every round starts from the same weights (random or pretrained), not from the previous round, so a model
depends on its scans, settings and seed alone. The default for a CPU fits a lab's workstation: one
round of 20 scans in a few minutes on two cores.

On shared cores, waiting OpenMP threads slow down the working ones: start the process
with OMP_WAIT_POLICY=PASSIVE in its environment (read once, when torch is first imported), or give it one thread.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import tv_tensors

from backend.formats.pixels import IGNORE, Letterboxed
from backend.learning.augmentation import augmentation
from backend.learning.averages import Recorded, overall, summarise
from backend.learning.evaluation import LabelScore
from backend.learning.segmenters import (
    Segmenter,
    SegmenterSpec,
    as_tensor,
    standardised,
)
from backend.learning.training_settings import TrainingSettings

Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Trained:
    """A finished training.

    segmenter  with the weights that were best on the validation scans; without such scans, the last ones
    history    one dict per validation: step, loss (mean since the previous one),
               learning_rate, dice (0..1, None without validation scans with foreground), seconds (since the
               start)
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
    on_step       called as on_step(steps done, total steps) after every step and every validation batch; may
                  raise to abort

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
    colour = any(one.pixels.ndim == 3 for one in (*scans, *watched))
    channels, names = 3 if colour else 1, tuple(labels)
    architecture, encoder, size = settings.architecture, settings.encoder, settings.image_size
    spec = SegmenterSpec(architecture, encoder, channels, size, names, settings.decoder_channels)
    fit = _Fit(spec, scans, masks, settings)
    best = _Best()
    history: list[dict[str, float | int | None]] = []
    losses: list[float] = []
    for step in range(1, total + 1):
        rate = settings.learning_rate * _one_cycle(step / total, settings.warmup)
        losses.append(fit.step(step, rate))
        report(step, total)
        if step % settings.validate_every and step != total:
            continue
        dice = None
        if watched:
            dice, quality = _validate(fit.averaged(), watched, truths, partial(report, step, total))
            best.add(step, quality, fit.average.network)
        seconds = time.monotonic() - started
        loss = float(np.mean(losses))
        history.append({"step": step, "loss": loss, "learning_rate": rate, "dice": dice, "seconds": seconds})
        losses.clear()
        if settings.patience and best.stale >= settings.patience:
            break
    if best.state is not None:
        fit.average.network.load_state_dict(best.state)
    best_step = total if best.state is None else best.step
    return Trained(fit.averaged(), history, best_step, time.monotonic() - started)


class _Fit:
    """The state of one training: network, weight average, optimiser and shuffled scans."""

    def __init__(
        self,
        spec: SegmenterSpec,
        scans: Sequence[Letterboxed],
        masks: Sequence[NDArray[np.uint8]],
        settings: TrainingSettings,
    ) -> None:
        self.spec, self.settings = spec, settings
        self.device = torch.device(settings.device)
        self.mixed = settings.mixed_precision and self.device.type == "cuda"
        with _seeded(settings.seed, 0, self.device):
            self.segmenter = Segmenter.create(spec, encoder_weights=settings.encoder_weights, device=self.device)
        self.average = _Average(self.segmenter.network, settings.ema)
        self.optimizer = torch.optim.AdamW(
            self.segmenter.network.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.mixed)
        self.loss = _Loss()
        self.augment = augmentation(settings)
        # Wrapped one by one: a row of a tv_tensor is a plain tensor, and v2 would not transform a plain mask.
        self.pool = [
            (tv_tensors.Image(pixels), tv_tensors.Mask(torch.from_numpy(mask[None].copy())))
            for pixels, mask in zip(as_tensor(scans, spec), masks, strict=True)
        ]
        self.order = _endless(len(scans), settings.batch_size, settings.seed)

    def step(self, step: int, rate: float) -> float:
        """One optimiser step at a learning rate. Returns the loss of its batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with _seeded(self.settings.seed, step, self.device):
            pairs = [self.augment(*self.pool[row]) for row in next(self.order)]
            inputs = torch.stack([image for image, _ in pairs]).to(self.device)
            target = torch.stack([mask for _, mask in pairs]).to(self.device)
            inputs = standardised(inputs, target != IGNORE).contiguous(memory_format=torch.channels_last)
            self.segmenter.network.train()
            with torch.autocast(self.device.type, enabled=self.mixed):
                logits = self.segmenter.network(inputs)
            loss = self.loss(logits.float(), target[:, 0].long())
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.average.update(step)
        return float(loss.detach())

    def averaged(self) -> Segmenter:
        """The segmenter with the averaged weights."""
        return Segmenter(self.spec, self.average.network, self.device, self.segmenter.warning)


class _Best:
    """The averaged weights that were best on the validation scans so far."""

    def __init__(self) -> None:
        self.quality = -1.0
        self.step = 0
        self.state: dict[str, Tensor] | None = None
        self.stale = 0  # validations since the last improvement

    def add(self, step: int, quality: float, network: nn.Module) -> None:
        self.stale = 0 if quality > self.quality else self.stale + 1
        if quality >= self.quality:  # among equals, the later one has trained longer
            self.quality, self.step = quality, step
            self.state = {name: value.clone() for name, value in network.state_dict().items()}


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
    """Endless full batches from successive permutations, so every scan is used equally often."""
    generator = np.random.default_rng([seed, n])
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting.extend(generator.permutation(n).tolist())
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _one_cycle(progress: float, warmup: float) -> float:
    """Share of the maximum learning rate: linear warm-up, then cosine decay to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))


class _Loss(nn.Module):
    """Dice + cross-entropy of (N, C, S, S) logits against (N, S, S) classes; IGNORE pixels do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = smp.losses.DiceLoss("multiclass", smooth=1.0, ignore_index=IGNORE)
        self.entropy = nn.CrossEntropyLoss(ignore_index=IGNORE, reduction="sum")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        known = (target != IGNORE).sum().clamp(min=1)  # a batch may be all padding: 0, not 0 / 0
        loss: Tensor = self.dice(logits, target) + self.entropy(logits, target) / known
        return loss


class _Average:
    """Moving average of a network's weights and batch statistics, with faster decay at the start."""

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
) -> tuple[float | None, float]:
    """(Dice, quality) on scans at working size: `dice` and `overall` of `averages`, by which weights are chosen."""
    found: list[Recorded] = []
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
            dice = float(np.mean(each)) if each else 1.0
            present, drawn = bool((wanted[known] > 0).any()), bool((got[known] > 0).any())
            found.append(Recorded({"": LabelScore(present, drawn, 0.0, *[dice, 0.0, 0.0][: 3 * present])}, "px"))
        report()
    summary = summarise(found)
    return summary["dice"], overall(summary) or 0.0
