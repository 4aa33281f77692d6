"""Training on a worker of a Dask cluster: scans come from Label Studio, masks from the driver, weights go back."""

from __future__ import annotations

import secrets
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from backend.errors import BadSetting
from backend.facts import Scan
from backend.learning.cases import Case
from backend.learning.learner import Learner
from backend.loop.click_training import train_both
from backend.loop.context import LoopContext
from backend.loop.labelled_scans import LabelledScan
from backend.loop.remote import here, model_files, unpack
from backend.workers.cluster import Cluster, tell

TOLD_EVERY = 1.0  # seconds between two reports of a worker


@dataclass(frozen=True)
class Drawn:
    """A labelled scan: its mask (H, W) uint8, compressed, and the classes that its annotator could not draw."""

    scan: Scan
    mask: bytes
    shape: tuple[int, int]
    unknown: frozenset[int]

    @classmethod
    def of(cls, one: LabelledScan) -> Drawn:
        height, width = one.case.mask.shape
        packed = zlib.compress(np.ascontiguousarray(one.case.mask, dtype=np.uint8).tobytes())
        return cls(one.scan, packed, (height, width), one.case.unknown)


@dataclass(frozen=True)
class Training:
    """The arguments of `train_both`.

    size    of the working square
    recipe  `Learner.describe_training` of the driver
    name    under which the worker reports progress
    clicks  whether a network for clicks is trained too
    """

    learn: tuple[Drawn, ...]
    held_out: tuple[Drawn, ...]
    labels: tuple[str, ...]
    seed: int
    size: int
    recipe: Mapping[str, Any]
    name: str
    clicks: bool


def train(
    context: LoopContext,
    learn: Sequence[LabelledScan],
    held_out: Sequence[LabelledScan],
    labels: Sequence[str],
    seed: int,
    on_step: Callable[[int, int], None],
    *,
    clicks: bool = False,
) -> tuple[Callable[[Path], None], dict[str, Any]]:
    """`train_both` here, or on a worker of the cluster if there is one; `on_step` may raise to abort."""
    if context.cluster is None:
        cases, others = ([(one.scan, one.case) for one in some] for some in (learn, held_out))
        parts = context.learner, context.processor, cases, others, labels
        return train_both(*parts, seed=seed, clicks=clicks, on_step=on_step)
    return _train_on(context.cluster, context.learner, learn, held_out, labels, seed, on_step, clicks)


def _train_on(
    cluster: Cluster,
    learner: Learner,
    learn: Sequence[LabelledScan],
    held_out: Sequence[LabelledScan],
    labels: Sequence[str],
    seed: int,
    on_step: Callable[[int, int], None],
    clicks: bool,
) -> tuple[Callable[[Path], None], dict[str, Any]]:
    """Train on a worker, one with a GPU if there is any."""
    size, name = learn[0].case.size, f"training-{secrets.token_hex(8)}"
    cases, others = (tuple(map(Drawn.of, some)) for some in (learn, held_out))
    work = Training(cases, others, tuple(labels), seed, size, learner.describe_training(seed, size), name, clicks)
    with cluster.listening(name) as told, closing(cluster.each(train_here, [work])) as running:
        for found in running:
            if found is not None:
                files, details = found[1]
                return partial(unpack, files=files), details
            on_step(*(told() or (0, 1)))
    raise AssertionError("a cluster answers or raises")


def train_here(work: Training, _: None) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Train on this worker; returns the files of the model, and details.

    Raises BadSetting if this worker would train otherwise than the driver.
    """
    learner = here().learner
    mine = learner.describe_training(work.seed, work.size)
    if mine != work.recipe:
        differing = sorted(key for key in mine.keys() | work.recipe.keys() if mine.get(key) != work.recipe.get(key))
        raise BadSetting(
            f"A Dask worker would train with other settings than scanqueue: {', '.join(differing)}. Give all workers "
            "the same settings as scanqueue."
        )
    last = [float("-inf")]

    def on_step(at: int, total: int) -> None:
        if time.monotonic() - last[0] >= TOLD_EVERY:
            last[0] = time.monotonic()
            tell(work.name, (at, total))

    learn, held_out = ([(one.scan, _case(one, work.size)) for one in some] for some in (work.learn, work.held_out))
    save, details = train_both(
        *(learner, here().processor(), learn, held_out, work.labels),
        seed=work.seed,
        clicks=work.clicks,
        on_step=on_step,
    )
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return model_files(Path(folder)), details


def _case(one: Drawn, size: int) -> Case:
    mask = np.frombuffer(zlib.decompress(one.mask), np.uint8).reshape(one.shape)
    return Case(here().processor().pixels(one.scan, size), mask, one.unknown)
