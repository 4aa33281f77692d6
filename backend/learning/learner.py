"""The interface to all learning: embed, train, predict, score. Arrays in, arrays out.

torch and libraries built on it take seconds to import, so they are loaded on first use: a server that only returns
stored results does not wait for them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import BadSetting
from backend.fingerprints import CLICK_FILE, JUDGED_FILE, fingerprint
from backend.formats.fitting import finding_sizes, letterbox_mask
from backend.formats.pixels import Letterboxed, restore
from backend.json_text import parse_json
from backend.learning.cases import Case
from backend.learning.embedders import OpenEmbedder, open_embedder
from backend.learning.evaluation import Scores, score
from backend.learning.patch_features import PatchFeatures
from backend.learning.published_tools import Published, PublishedTools
from backend.learning.vision_network import Network
from backend.learning.weights import BUILTIN
from backend.settings import Settings
from backend.workers.process_pool import Workers
from sampling import class_entropy, disagreement, entropies

if TYPE_CHECKING:
    from backend.learning.click_network import ClickNetwork
    from backend.learning.segmenters import Segmenter
    from backend.learning.training_settings import TrainingSettings

log = logging.getLogger("scanqueue.learner")

Signals = dict[str, Any]  # name: number in 0..1, or one number per label

VIEWS = ((0.7, 0.0), (1.4, 0.0), (1.0, 0.06))  # gamma, shift: perturbations that test whether the mask stays the same
ENOUGH = 3.0  # pixels that the smallest findings should be wide
ROOM = 16_000_000  # class probabilities of one scan: 64 MB
CLICK_DETAILS = "clicks.json"
CLICK_STEPS = 0.9  # of a training's steps: a third of its time
LOADED = 2  # models kept in memory whatever their size: the active one and the one compared with it
LOADED_BYTES = 2**29  # of all models kept in memory


class Learner:
    """Embedder and segmentation models as configured.

    at_once  False = load torch on the first computation, unless the settings must be checked against this machine

    Raises BadSetting immediately when this machine does not support the settings.
    """

    def __init__(self, settings: Settings, *, at_once: bool = True) -> None:
        self._settings = settings
        self._embedder: OpenEmbedder | None = None
        self._models: OrderedDict[Path, Segmenter] = OrderedDict()
        self._click_networks: OrderedDict[Path, ClickNetwork] = OrderedDict()
        self._published = PublishedTools(settings.weights_dir)
        self._patches: PatchFeatures | None = None
        self._decoders: Workers | None = None
        self._lock = threading.RLock()
        self._without_gpu = False
        if at_once or settings.encoder != "auto" or settings.device not in ("auto", "cpu"):
            self.load()

    def load(self) -> None:
        """Load torch now, so that the first request does not wait."""
        _ = self.training

    @cached_property
    def training(self) -> TrainingSettings:
        """The training settings: of this machine, or of a GPU of the Dask cluster."""
        import torch

        from backend.learning.training_settings import TrainingSettings

        settings = self._settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            if not settings.dask_scheduler:
                raise BadSetting(
                    f"SCANQUEUE_DEVICE={settings.device!r}, but no GPU is available here; use cpu or auto."
                )
            self._without_gpu = True
        overrides: dict[str, Any] = {}
        if settings.image_size:
            overrides["image_size"] = overrides["max_image_size"] = settings.image_size
        if settings.training_steps:
            overrides["max_steps"] = settings.training_steps
        if settings.encoder != "auto":
            name, _, weights = settings.encoder.partition("@")
            overrides["encoder"] = name
            overrides["encoder_weights"] = _place_of(weights, settings.weights_dir) if weights else None
        return TrainingSettings.for_device(device, **overrides)

    @property
    def device(self) -> str:
        """Where this process computes."""
        return "cpu" if self.training.device.startswith("cuda") and self._without_gpu else self.training.device

    @property
    def image_size(self) -> int:
        """Side of the working square of every scan, in pixels; models may use a larger one, see `working_size`."""
        return self.training.image_size

    def working_size(self, masks: Iterable[NDArray[np.uint8]], classes: int) -> int:
        """Side of the square for a model that is to find what these masks show: `image_size`, doubled while needed.

        It is needed while a tenth of the scans that have some label show nothing of it that is ENOUGH pixels wide (see
        `finding_sizes`). The limits are the setting, `max_image_size`, and the memory for `classes` probability maps.
        """
        size, limit = self.image_size, min(self.training.max_image_size, math.isqrt(ROOM // classes))
        if 2 * size > limit:
            return size
        widths: dict[int, list[float]] = {}
        for mask in masks:
            for number, width in finding_sizes(mask).items():
                widths.setdefault(number, []).append(width)
        narrow = min((float(np.quantile(found, 0.1)) for found in widths.values()), default=1.0)
        while size * narrow < ENOUGH and 2 * size <= limit:
            size *= 2
        return size

    def embedder(self) -> OpenEmbedder:
        """The embedder in use, with its name and the reason for the choice."""
        with self._lock:
            if self._embedder is None:
                name, folder = self._settings.embedder, self._settings.weights_dir
                self._embedder = open_embedder(name, weights_dir=folder, device=self.device)
                log.info("embedder %s: %s", self._embedder.name, self._embedder.why)
            return self._embedder

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N, D), one row per image (H, W) or (H, W, 3)."""
        vectors: NDArray[np.float32] = self.embedder().embedder.embed(images)
        return vectors

    def features(self, square: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Features of the patches of one scan for `quick_model`; the scan letterboxed into `patch_features.SIDE`.

        Raises WeightsMissing if the built-in network is not installed.
        """
        with self._lock:
            if self._patches is None:
                self._patches = PatchFeatures(self.device)
            found: NDArray[np.float16] = self._patches([square])[0]
            return found

    def decoders(self) -> Workers | None:
        """Processes that decode scans while a GPU computes; None on a CPU, where the network is the bottleneck."""
        with self._lock:
            gpu = not self.device.startswith("cpu") and isinstance(self.embedder().embedder, Network)
            if gpu and self._decoders is None:
                self._decoders = Workers(self._settings.threads or os.cpu_count() or 1, "backend.loop.decoding")
            return self._decoders

    def prepare_elsewhere(self) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
        """`prepare` as a picklable function for the `decoders` processes."""
        network = self.embedder().embedder
        assert isinstance(network, Network)
        return network.preprocessing.resized

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """One image as input for `embed_prepared`; thread-safe."""
        return self.embedder().embedder.prepare(image)

    def embed_prepared(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """(N, D), one row per prepared image."""
        return self.embedder().embedder.embed_prepared(prepared)

    def describe_training(self, seed: int, size: int = 0) -> dict[str, Any]:
        """All that determines a model besides its scans and labels, as JSON values.

        size  see `working_size`; 0: `image_size`
        """
        settings = asdict(self._settings_for(seed, size or self.image_size))
        return {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}

    def recipe(self, seed: int) -> str:
        """Fingerprint of `describe_training`, whatever the size, which depends on the masks."""
        return fingerprint(self.describe_training(seed))

    def _settings_for(self, seed: int, size: int) -> TrainingSettings:
        """A step on larger scans sees parts of them, so that it takes the same time and memory."""
        return replace(self.training, seed=seed, image_size=size, crop=self.image_size if size > self.image_size else 0)

    def train(
        self,
        cases: Sequence[Case],
        validation: Sequence[Case],
        labels: Sequence[str],
        *,
        seed: int,
        on_step: Callable[[int, int], None],
    ) -> tuple[Callable[[Path], None], dict[str, Any]]:
        """Fit a model to scans of one `working_size`. Returns a function that writes it into a folder, and details.

        Beside the model, which has learnt from `validation` too, it writes its weights before that as JUDGED_FILE.
        """
        from backend.learning.training import train

        size = cases[0].size
        trained = train(
            [c.scan for c in cases],
            [letterbox_mask(c.mask, size) for c in cases],
            ([c.scan for c in validation], [letterbox_mask(c.mask, size) for c in validation]),
            labels,
            self._settings_for(seed, size),
            unknown=([c.unknown for c in cases], [c.unknown for c in validation]),
            on_step=on_step,
        )
        details = {
            "history": trained.history,
            "judged_step": trained.judged_step,
            "seconds": round(trained.seconds, 1),
            "warning": trained.segmenter.warning,
            "settings": self.describe_training(seed, size),
        }

        def save(folder: Path) -> None:
            trained.segmenter.save(folder)
            if trained.judged is not None:
                trained.judged.save(folder, JUDGED_FILE)

        return save, details

    def train_clicks(
        self,
        cases: Sequence[Case],
        validation: Sequence[Case],
        features: Callable[[int], NDArray[np.float16]],
        *,
        seed: int,
        on_step: Callable[[int, int], None],
    ) -> tuple[Callable[[Path], None], dict[str, Any]] | None:
        """Fit a network for clicks. Returns a function that writes it into a folder, and details.

        features  by place in `cases` and then `validation`, see `features`

        The details say how good it is on `validation`, which it does not learn from, beside the other tools. None if
        the cases show no label.
        """
        from backend.learning.click_network import compare_tools, learn_clicks
        from backend.learning.segmenters import write_file

        began = time.monotonic()
        steps = max(1, round(CLICK_STEPS * self.training.max_steps))
        network = learn_clicks(cases, features, steps=steps, seed=seed, on_step=on_step)
        if network is None:
            return None
        published = self._published.all(self.device)
        compared = compare_tools(network, validation, lambda place: features(len(cases) + place), published)
        details = {"compared": compared, "seconds": round(time.monotonic() - began, 1)}

        def save(folder: Path) -> None:
            network.save(folder / CLICK_FILE)
            write_file(folder / CLICK_DETAILS, json.dumps(details).encode())

        return save, details

    @staticmethod
    def click_details(folder: Path) -> dict[str, Any] | None:
        """The details that `train_clicks` gave of the network of a stored model; None without one."""
        try:
            return dict(parse_json((folder / CLICK_DETAILS).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def click_network(self, folder: Path) -> ClickNetwork:
        """The network for clicks of a stored model. Raises WeightsMissing if it has none."""
        from backend.learning.click_network import ClickNetwork

        with self._lock:
            if folder not in self._click_networks:
                self._click_networks[folder] = ClickNetwork.load(folder / CLICK_FILE)
                while len(self._click_networks) > LOADED:
                    self._click_networks.popitem(last=False)
            self._click_networks.move_to_end(folder)
            return self._click_networks[folder]

    def published_tool(self, name: str) -> Published | None:
        """A network of `clicks.PUBLISHED`; None if its files are not in the weights folder, or cannot be used."""
        return self._published.get(name, self.device)

    def _model(self, folder: Path) -> Segmenter:
        from backend.learning.segmenters import Segmenter

        with self._lock:
            if folder not in self._models:
                self._models[folder] = Segmenter.load(folder, self.device)
                size = sum(model.size for model in self._models.values())
                while len(self._models) > LOADED and size > LOADED_BYTES:
                    size -= self._models.popitem(last=False)[1].size
            self._models.move_to_end(folder)
            return self._models[folder]

    def image_size_of(self, folder: Path) -> int:
        """The working square of a stored model; its scans must be letterboxed to this size."""
        return self._model(folder).spec.image_size

    def probabilities(self, folder: Path, scans: Sequence[Letterboxed]) -> list[NDArray[np.float32]]:
        """Softmax probabilities (C, h, w) of each scan, without the padding."""
        return self._model(folder).predict(scans)

    def signals(self, folder: Path, scans: Sequence[Letterboxed], extra: str = "") -> list[Signals]:
        """Uncertainty of each scan, 0..1, high = uncertain: all aggregations of the pixel entropy.

        extra  "classes" adds the entropy over the pixels of each label, "disagreement" the change of the mask when
               the scan is brightened, darkened and shifted (three more predictions)
        """
        found = self.probabilities(folder, scans)
        signals: list[Signals] = [dict(entropies(p)) for p in found]
        if extra == "classes":
            for one, p in zip(signals, found, strict=True):
                one["classes"] = class_entropy(p).tolist()
        elif extra == "disagreement":
            views = [found, *(self._perturbed(folder, scans, *view) for view in VIEWS)]
            for one, *maps in zip(signals, *views, strict=True):
                one["disagreement"] = disagreement(np.stack([m.argmax(axis=0) for m in maps]), len(maps[0]))
        return signals

    def _perturbed(
        self, folder: Path, scans: Sequence[Letterboxed], gamma: float, shift: float
    ) -> list[NDArray[np.float32]]:
        """Probabilities of the scans with gamma applied, or shifted by a fraction of their sides (and back)."""
        changed = []
        for scan in scans:
            inner = (255 * (scan.pixels[scan.content] / 255.0) ** gamma).round().astype(np.uint8)
            pixels = np.zeros_like(scan.pixels)
            pixels[scan.content] = np.roll(inner, _steps(scan, shift), axis=(0, 1))
            changed.append(replace(scan, pixels=pixels))
        moved = self.probabilities(folder, changed)
        return [np.roll(p, tuple(-n for n in _steps(s, shift)), axis=(1, 2)) for p, s in zip(moved, scans, strict=True)]

    def masks(self, folder: Path, scans: Sequence[Letterboxed]) -> list[NDArray[np.uint8]]:
        """The predicted label map (H, W) of each scan at its original size."""
        found = self.probabilities(folder, scans)
        return [restore(p, s.original_height, s.original_width) for p, s in zip(found, scans, strict=True)]

    def compare(
        self,
        predicted: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        classes: int,
        spacing: tuple[float, float] | None = None,
        unknown: frozenset[int] = frozenset(),
    ) -> Scores:
        return score(predicted, truth, classes, spacing=spacing, unknown=unknown)

    def forget(self, folder: Path) -> None:
        """Drop a model from memory."""
        with self._lock:
            self._models.pop(folder, None)
            self._click_networks.pop(folder, None)


def _place_of(weights: str, weights_dir: Path | None) -> Path | str:
    """ "imagenet", BUILTIN, or a path: in the weights folder, else as given; if neither exists, where it should be."""
    if weights in ("imagenet", BUILTIN):
        return weights
    given = Path(weights).expanduser()
    inside = weights_dir / given if weights_dir is not None else given
    return given if given.exists() and not inside.exists() else inside


def _steps(scan: Letterboxed, shift: float) -> tuple[int, int]:
    return round(shift * scan.height), round(shift * scan.width)
