"""Fitting a segmenter to the scans labelled so far.

Every round starts from the same weights (random or pretrained), not from the previous round, so a model
depends on its scans, settings and seed alone. The default for a CPU fits a lab's workstation: one
round of 20 scans in a few minutes on two cores.

On shared cores, waiting OpenMP threads slow down the working ones: start the process
with OMP_WAIT_POLICY=PASSIVE in its environment (read once, when torch is first imported), or give it one thread.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import tv_tensors

from backend.formats.pixels import IGNORE, Letterboxed, classes_in
from backend.learning.augmentation import augmentation
from backend.learning.batches import Batches
from backend.learning.losses import marginal_loss
from backend.learning.randomness import OwnRandom, deterministic_kernels
from backend.learning.segmenters import Segmenter, SegmenterSpec, as_tensor, standardised
from backend.learning.training_settings import TrainingSettings

FOREGROUND = 0.1  # of the cross-entropy, see `marginal_loss`, when there are small findings; more draws halos
NEVER = -10.0  # initial logit of a label that nobody has drawn: a probability of 5 in 100,000
VALIDATED = 8  # scans in memory at once
Step = Callable[[int, int], None]
Unknown = Sequence[frozenset[int]]


@dataclass(frozen=True)
class Trained:
    """A finished training.

    segmenter  has learnt from all scans
    judged     its weights after `judged_step`, before the validation scans joined: what these can judge; None without
               validation scans
    history    one dict per validation: step, loss (mean since the previous one), learning_rate, dice (see
               `pooled_dice`; None once the validation scans are learnt from), seconds (since the start)
    seconds    wall time
    """

    segmenter: Segmenter
    judged: Segmenter | None
    judged_step: int
    history: list[dict[str, float | int | None]]
    seconds: float


def train(
    scans: Sequence[Letterboxed],
    masks: Sequence[NDArray[np.uint8]],
    validation: tuple[Sequence[Letterboxed], Sequence[NDArray[np.uint8]]],
    labels: Sequence[str],
    settings: TrainingSettings,
    *,
    unknown: tuple[Unknown, Unknown] | None = None,
    on_step: Step | None = None,
) -> Trained:
    """Fit a new segmenter to labelled scans, in the end to those for validation too, so that no label is wasted.

    There is one schedule, without early stopping or a choice among weights: a few validation scans cannot decide that.
    Until `judged_share` of the steps it sees `scans` alone. Then its weights are kept to be judged, and the validation
    scans join. `marginal_loss` on `Batches`; AdamW; the weights are averaged over the last steps (Polyak & Juditsky
    1992). torch's global random state is left alone, and its settings are as before while `on_step` runs, unless
    another thread trains too.

    scans, masks  labelled scans, at least one, and their label maps, (S, S) with IGNORE on padding; not
                  modified
    validation    the same for scans to judge by, before they are learnt from; may be two empty lists
    labels        names of classes 1..
    unknown       the classes that could not be drawn on each scan, and on each validation scan; None: on none. A class
                  that could be drawn on no scan is learnt as absent, so that the model does not draw it by chance
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
    total = settings.max_steps
    alone = max(1, round(settings.judged_share * total)) if watched else total
    report(0, total)
    spec = _spec([*scans, *watched], labels, settings)
    unknowns, unknown_there = unknown or ([frozenset()] * len(scans), [frozenset()] * len(watched))
    fit = _Fit(spec, sorted({0}.union(*map(classes_in, [*masks, *truths]))), settings)
    fit.learn_from(scans, masks, unknowns)
    judged: Segmenter | None = None
    history: list[dict[str, float | int | None]] = []
    losses: list[float] = []
    for step in range(1, total + 1):
        rate = settings.learning_rate * one_cycle(step / total, settings.warmup)
        losses.append(fit.step(step, rate))
        report(step, total)
        if step % settings.validate_every and step not in (alone, total):
            continue
        dice = None
        if watched and step <= alone:
            dice = pooled_dice(fit.averaged(), watched, truths, unknown_there, partial(report, step, total))
        seconds = time.monotonic() - started
        loss = float(np.mean(losses))
        history.append({"step": step, "loss": loss, "learning_rate": rate, "dice": dice, "seconds": seconds})
        losses.clear()
        if watched and step == alone:
            judged = copy.deepcopy(fit.averaged())
            fit.learn_from([*scans, *watched], [*masks, *truths], [*unknowns, *unknown_there])
    return Trained(fit.averaged(), judged, alone, history, time.monotonic() - started)


def _spec(scans: Sequence[Letterboxed], labels: Sequence[str], settings: TrainingSettings) -> SegmenterSpec:
    channels = 3 if any(one.pixels.ndim == 3 for one in scans) else 1
    architecture, encoder, size = settings.architecture, settings.encoder, settings.image_size
    return SegmenterSpec(architecture, encoder, channels, size, tuple(labels), settings.decoder_channels)


class _Fit:
    """The state of one training: network, weight average, optimiser and shuffled scans."""

    def __init__(self, spec: SegmenterSpec, drawn: Sequence[int], settings: TrainingSettings) -> None:
        self.spec, self.settings = spec, settings
        self.device = torch.device(settings.device)
        self.mixed = settings.mixed_precision and self.device.type == "cuda"
        with OwnRandom(settings.seed, 0):
            self.segmenter = Segmenter.create(spec, encoder_weights=settings.encoder_weights, device=self.device)
        _begin(self.segmenter.network.segmentation_head[0], drawn, settings.seed)
        self.average = _Average(self.segmenter.network, settings.ema)
        self.optimizer = torch.optim.AdamW(
            self.segmenter.network.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.mixed)
        self.augment = augmentation(settings)

    def learn_from(self, scans: Sequence[Letterboxed], masks: Sequence[NDArray[np.uint8]], unknown: Unknown) -> None:
        """The scans of the steps to come."""
        self.scans, self.masks = scans, masks
        never = frozenset.intersection(*unknown)
        self.unknown = torch.tensor([[number in one - never for number in range(self.spec.classes)] for one in unknown])
        self.batches = Batches(masks, self.settings.batch_size, self.settings.seed)

    def step(self, step: int, rate: float) -> float:
        """One optimiser step at a learning rate. Returns the loss of its batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        on_cpu = self.device.type == "cpu"
        with deterministic_kernels() if on_cpu else nullcontext():
            with OwnRandom(self.settings.seed, step):
                rows = next(self.batches)
                seen = zip(*map(self._seen, rows), strict=True)
                inputs, target = (torch.stack(part).to(self.device) for part in seen)
                self.segmenter.network.train()
                with torch.autocast(self.device.type, enabled=self.mixed):
                    logits = self.segmenter.network(inputs.contiguous(memory_format=torch.channels_last))
            unknown = self.unknown[[row for row, _ in rows]].to(self.device)
            foreground = FOREGROUND if self.settings.crop else 0.0
            loss = marginal_loss(logits.float(), target.long(), unknown, foreground)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.average.update(step)
        return float(loss.detach())

    def _seen(self, shown: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What the network sees of a scan, (channels, s, s), and the truth, (s, s): augmented, perhaps a part."""
        row, number = shown
        # A plain mask tensor would not be transformed.
        mask = tv_tensors.Mask(torch.from_numpy(self.masks[row][None].copy()))
        image, target = self.augment(tv_tensors.Image(as_tensor([self.scans[row]], self.spec)[0]), mask)
        image, target = torch.Tensor(standardised(image[None], target[None] != IGNORE)[0]), torch.Tensor(target[0])
        side = self.settings.crop
        if 0 < side < target.shape[0]:
            window = self.batches.window(target.numpy(), number, side)
            image, target = image[(slice(None), *window)], target[window]
        return image, target

    def averaged(self) -> Segmenter:
        """The segmenter with the averaged weights."""
        return Segmenter(self.spec, self.average.network, self.device, self.segmenter.warning)


def _begin(head: nn.Conv2d, classes: Sequence[int], seed: int) -> None:
    """Initialise the last layer as that of a network of these classes only (Glorot & Bengio 2010, as smp does).

    So labels that nobody has drawn change nothing: not the other weights, and not the other probabilities.
    """
    with torch.no_grad(), OwnRandom(seed, 0, 1):
        weights = nn.init.xavier_uniform_(torch.empty(len(classes), *head.weight.shape[1:]))
        head.weight.zero_()[classes] = weights.to(head.weight.device)
        head.bias.fill_(NEVER)[classes] = 0.0  # type: ignore[union-attr]


def _check(
    scans: Sequence[Letterboxed], masks: Sequence[NDArray[np.uint8]], n_labels: int, size: int, what: str
) -> None:
    if what == "training" and not scans:
        raise ValueError("training needs at least one labelled scan, got none")
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


def one_cycle(progress: float, warmup: float) -> float:
    """Share of the maximum learning rate: linear warm-up, then cosine decay to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))


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


def pooled_dice(
    segmenter: Segmenter,
    scans: Sequence[Letterboxed],
    truths: Sequence[NDArray[np.uint8]],
    unknown: Unknown,
    report: Callable[[], None] = lambda: None,
) -> float | None:
    """0..1, high is good: the Dice of each label over the pixels of all scans, mean over the labels in the truths.

    Pooled over scans, it says something about a label that few scans have (nnU-Net's pseudo Dice, Isensee et al.
    2021). Unlike a mean over scans, it counts false alarms, and scans without foreground cannot hide a miss. A class
    does not count on a scan on which it is unknown. None if no truth has a label.

    truths  at working size, with IGNORE on padding
    report  called after every batch
    """
    classes = segmenter.spec.classes
    counts = np.zeros((3, classes))  # pixels of each class: in both, drawn, in the truth
    for start in range(0, len(scans), VALIDATED):
        batch = scans[start : start + VALIDATED]
        found = zip(batch, segmenter.predict(batch), truths[start:], unknown[start:], strict=False)
        for scan, share, truth, missing in found:
            wanted, got = truth[scan.content].ravel(), share.argmax(axis=0).ravel()
            valid = wanted != IGNORE
            pairs = np.bincount(wanted[valid].astype(np.intp) * classes + got[valid], minlength=classes**2)
            table = pairs.reshape(classes, classes)
            known = [number not in missing for number in range(classes)]
            counts += np.stack([table.diagonal(), table.sum(axis=0), table.sum(axis=1)]) * known
        report()
    hit, drawn, wanted = counts[:, 1:][:, counts[2, 1:] > 0]
    return float(np.mean(2 * hit / (drawn + wanted))) if len(hit) else None
