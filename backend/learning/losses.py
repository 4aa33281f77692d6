"""The training loss."""

from __future__ import annotations

import torch
from torch import Tensor

from backend.formats.pixels import IGNORE

SMOOTH = 1.0  # pixels added to both terms of the Dice fraction


def marginal_loss(logits: Tensor, target: Tensor, unknown: Tensor, foreground: float = 0.0) -> Tensor:
    """Dice loss (Milletari et al. 2016) plus cross-entropy, for scans on which some classes are unknown.

    Where the truth is background, an unknown class may be there. So for such scans background means "background or an
    unknown class": their probabilities are added (marginal loss, Shi et al. 2021). An unknown class has no Dice term
    on its scan. The Dice loss is the mean over the classes that occur in the batch: the others do not weigh.

    logits   (N, C, H, W)
    target   (N, H, W) int64: 0 background, 1..C - 1, or IGNORE
    unknown  (N, C) bool: classes that the annotator of a scan could not draw; never background
    foreground  share of the cross-entropy that is its mean over the pixels of labels, not over all: without it, a
                finding of ten pixels in 100,000 is drawn only after thousands of steps

    Returns a number >= 0; 0 for a batch of nothing but IGNORE.
    """
    logs = logits.log_softmax(dim=1)
    valid = target != IGNORE
    count = valid.sum().clamp(min=1)
    if bool(unknown.any()):
        merged = unknown.clone()
        merged[:, 0] = True
        background = logs.masked_fill(~merged[:, :, None, None], -torch.inf).logsumexp(dim=1, keepdim=True)
        logs = torch.cat([background, logs[:, 1:]], dim=1)
    each = torch.nn.functional.nll_loss(logs, target, ignore_index=IGNORE, reduction="none")
    shown = valid & (target > 0)
    entropy = (1 - foreground) * each.sum() / count + foreground * (each * shown).sum() / shown.sum().clamp(min=1)

    classes = torch.arange(logs.shape[1], device=target.device)[:, None, None]
    counts = (valid[:, None] & ~unknown[:, :, None, None]).to(logs.dtype)
    truth = (target[:, None] == classes).to(logs.dtype) * counts
    drawn = logs.exp() * counts
    over = (0, 2, 3)
    hit, size = (truth * drawn).sum(over), truth.sum(over) + drawn.sum(over)
    present = truth.sum(over) > 0
    missing = (1 - (2 * hit + SMOOTH) / (size + SMOOTH)) * present
    return entropy + missing.sum() / present.sum().clamp(min=1)
