"""Images to vectors: what the map of a project is drawn from.

An embedder is opened by name: `pixels`, `timm:MODEL`, `timm:local-dir:FOLDER`,
`open_clip:MODEL[@PRETRAINED or file]`, `open_clip:hf-hub:ORG/REPO`, `open_clip:local-dir:FOLDER`,
`radimagenet:resnet50`, `torchxrayvision:densenet121-res224-all`, `mobilesam:vit_t`, or `auto`.
Checkpoints are read as safetensors, or by torch with `weights_only=True`: nothing in them is executed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.errors import BadSetting, BrokenWeights, WeightsMissing
from backend.learning import model_hub as hub
from backend.learning.checkpoints import read_tensors
from backend.learning.networks import NETWORKS, from_open_clip, misfits
from backend.learning.preprocessing import Preprocessing, Uint8Image
from backend.learning.weights import BIOMEDCLIP, WEIGHTS, how_to_get, weights_of
from backend.workers.prefetch import ahead

if TYPE_CHECKING:  # torch takes seconds to import: only inside functions
    import torch

log = logging.getLogger("scanqueue.embedders")

BIOMEDCLIP_FOLDER = "biomedclip"
BATCH = 16
THREADS = min(4, os.cpu_count() or 1)  # that prepare images beside the network

CLIP_CONFIG = "open_clip_config.json"
CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
TIMM_CONFIG = "config.json"
TIMM_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

Prepared = NDArray[Any]


class Embedder(Protocol):
    """Turns images into vectors of one length; similar images should get similar vectors.

    name   opens the same embedder again
    dim    length of a vector
    batch  how many images are computed at once
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def batch(self) -> int: ...

    def prepare(self, image: Uint8Image) -> Prepared:
        """What `embed_prepared` takes of one image: small, whatever the image's size. Any thread may call it.

        image  (H, W) gray or (H, W, 3) RGB uint8, of any size. Raises ValueError on another shape or type.
        """

    def embed_prepared(self, prepared: Sequence[Prepared]) -> NDArray[np.float32]:
        """(N, D) finite vectors of N prepared images.

        The same images on the same machine give the same vectors.
        """

    def embed(self, images: Sequence[Uint8Image]) -> NDArray[np.float32]:
        """(N, D): the same of N images, which are prepared while the ones before them are computed.

        Images are taken in batches, so N may be large. Raises ValueError, naming the image's number, on what is no
        image.
        """


@dataclass(frozen=True)
class OpenEmbedder:
    """An embedder ready for use, the name that opens it again, and, for a person to read, why this one."""

    embedder: Embedder
    name: str
    why: str


def open_embedder(name: str, *, weights_dir: Path | None, device: str, download: bool = True) -> OpenEmbedder:
    """Open the embedder called `name`; `auto` takes the best one whose weights can be had.

    weights_dir  folder of weights, one subfolder per model; relative FOLDERs and files are looked for there
                 first, then in the working directory
    device       "cpu", "cuda", "cuda:1", ..., or "auto": a GPU if there is one
    download     False = use only what is on this machine

    `auto` tries BiomedCLIP (in weights_dir/biomedclip, in the hub's cache, by download), then the other
    open_clip and timm folders in weights_dir by name, then `pixels`. It gives up on a network that does not
    answer within 3 seconds.

    Raises WeightsMissing, saying which file goes where, when the weights of a named embedder cannot be had or
    read, and BadSetting on a name or device that does not exist.
    """
    place = _Place(weights_dir, device, download)
    if name == "auto":
        return _open_best(place)
    if name == "pixels":
        return OpenEmbedder(Pixels(), "pixels", "pixels, as asked for")
    kind, _, model = name.partition(":")
    if kind not in OPENERS or not model:
        raise BadSetting(
            f"embedder: got {name!r}, wanted auto, pixels, timm:MODEL, timm:local-dir:FOLDER, "
            "open_clip:MODEL[@PRETRAINED or file], open_clip:hf-hub:ORG/REPO, open_clip:local-dir:FOLDER, "
            f"{', '.join(row.embedder for row in WEIGHTS if row.embedder.partition(':')[0] in NETWORKS)}. "
            "`scanqueue weights list` shows them"
        )
    return OPENERS[kind](model, place)


class _Batched(ABC):
    """`embed` for whoever can prepare and embed_prepared."""

    name: str
    dim: int

    @property
    def batch(self) -> int:
        return BATCH

    @abstractmethod
    def prepare(self, image: Uint8Image) -> Prepared: ...

    @abstractmethod
    def embed_prepared(self, prepared: Sequence[Prepared]) -> NDArray[np.float32]: ...

    def embed(self, images: Sequence[Uint8Image]) -> NDArray[np.float32]:
        for number, image in enumerate(images):
            _checked(image, number)
        vectors = np.empty((len(images), self.dim), dtype=np.float32)
        at = 0
        for prepared in ahead(self.prepare, images, size=self.batch, threads=THREADS):
            try:
                vectors[at : at + len(prepared)] = self.embed_prepared(prepared)
            except _NotFinite as error:
                raise _NotFinite(self.name, at + error.number) from None
            at += len(prepared)
        return vectors


class _NotFinite(ValueError):
    """The network computed no number for an image."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name}: image {number} got NaN or infinity from the network. Use other weights")
        self.number = number


class Pixels(_Batched):
    """The last resort: a small description of the picture itself, with nothing learned in it.

    A 16 x 16 thumbnail, a 32-bin histogram of gray levels and, in 4 x 4 cells, 8-bin histograms of edge
    directions; each part has length 1. It tells apart body parts, views and machines, and little that is finer.
    """

    name = "pixels"
    dim = 16 * 16 + 32 + 4 * 4 * 8

    def prepare(self, image: Uint8Image) -> Prepared:
        return self._describe(_checked(image, 0)).astype(np.float32)

    def embed_prepared(self, prepared: Sequence[Prepared]) -> NDArray[np.float32]:
        return np.array(prepared, dtype=np.float32).reshape(len(prepared), self.dim)

    def _describe(self, image: Uint8Image) -> NDArray[np.float64]:
        picture = Image.fromarray(image).convert("L")
        gray = np.asarray(picture.resize((64, 64), Image.Resampling.BOX), dtype=np.float64) / 255
        thumbnail = gray.reshape(16, 4, 16, 4).mean(axis=(1, 3))
        levels = np.array(picture.histogram(), dtype=np.float64).reshape(32, 8).sum(axis=1)

        down, right = np.gradient(gray)
        angle = np.arctan2(down, right) % np.pi  # an edge has a direction, not a sign
        edges = np.zeros((4, 4, 8))
        cell = np.arange(64) // 16
        bins = np.minimum((angle / np.pi * 8).astype(int), 7)
        np.add.at(edges, (cell[:, None], cell, bins), np.hypot(down, right))
        parts = (thumbnail.ravel(), np.sqrt(levels), edges.ravel())
        return np.concatenate([part / max(float(np.linalg.norm(part)), 1e-12) for part in parts])


class Network(_Batched):
    """A vision network without its head, in evaluation mode, on one device.

    On a GPU it computes in bfloat16, always with full batches and without kernels whose result varies, so that there
    too a vector depends on nothing but its image.
    """

    def __init__(self, name: str, model: torch.nn.Module, preprocessing: Preprocessing, device: str) -> None:
        import torch

        self.name = name
        self.preprocessing = preprocessing
        self._lock = threading.Lock()
        self._device = _torch_device(device)
        self._model = model.eval().requires_grad_(False).to(self._device).to(memory_format=torch.channels_last)
        levels = torch.arange(256, dtype=torch.uint8)[None, None, :, None].expand(1, 1, 256, preprocessing.channels)
        self._table = self._scaled(levels)[0, :, 0].numpy()  # (channels, 256)
        self.dim = self._vectors([self.prepare(np.zeros((8, 8), dtype=np.uint8))]).shape[1]

    def prepare(self, image: Uint8Image) -> Prepared:
        return self.preprocessing.resized(_checked(image, 0))

    def embed_prepared(self, prepared: Sequence[Prepared]) -> NDArray[np.float32]:
        vectors = np.empty((len(prepared), self.dim), dtype=np.float32)
        for begin in range(0, len(prepared), self.batch):
            vectors[begin : begin + self.batch] = self._vectors(prepared[begin : begin + self.batch])
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise _NotFinite(self.name, int(broken[0]))
        return vectors

    def ready(self, prepared: Sequence[Prepared]) -> torch.Tensor:
        """What the network is called with: (N, channels, H, W) float32 on its device, of one batch."""
        import torch

        if self._device.type != "cuda":  # one look at a table per pixel and channel
            height, width = self.preprocessing.size
            values = np.empty((len(prepared), height, width, self.preprocessing.channels), np.float32)
            for filled, image in zip(values, prepared, strict=True):
                for channel, table in enumerate(self._table):
                    filled[:, :, channel] = table[image if image.ndim == 2 else image[:, :, channel]]
            return torch.from_numpy(values).permute(0, 3, 1, 2)
        gray = all(image.ndim == 2 for image in prepared)  # becomes three channels there: a third to send
        pixels = np.zeros((self.batch, *self.preprocessing.size, 1 if gray else self.preprocessing.channels), np.uint8)
        for row, image in zip(pixels, prepared, strict=False):
            row[:] = image if image.ndim == 3 else image[:, :, None]
        sent = torch.from_numpy(pixels).pin_memory().to(self._device, non_blocking=True)
        return self._scaled(sent).contiguous(memory_format=torch.channels_last)

    def _scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, H, W, channels or 1) uint8 -> (N, channels, H, W) as the network was trained on."""
        import torch

        mean, std = (
            torch.tensor(v, device=pixels.device)[:, None, None]
            for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def forward(self, ready: torch.Tensor) -> torch.Tensor:
        """(N, D) on the network's device."""
        import torch

        gpu = self._device.type == "cuda"
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=gpu),
            torch.backends.cudnn.flags(deterministic=True, benchmark=False) if gpu else contextlib.nullcontext(),
        ):
            output = self._model(ready)
        pooled: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return pooled

    def _vectors(self, prepared: Sequence[Prepared]) -> NDArray[np.float32]:
        ready = self.ready(prepared)
        with self._lock:
            output = self.forward(ready) if self._recorded is None else self._recorded(ready)
            vectors: NDArray[np.float32] = output.float().cpu().numpy()
        return vectors[: len(prepared)]

    @cached_property
    def _recorded(self) -> _Recorded | None:
        """On a GPU: the forward pass without Python in it. None where it cannot be had."""
        import torch

        if self._device.type != "cuda":
            return None
        blank = self.ready([self.prepare(np.arange(64, dtype=np.uint8).reshape(8, 8))] * self.batch)
        try:
            recorded = _Recorded(self.forward, blank)
            same = torch.allclose(recorded(blank).float(), self.forward(blank).float(), rtol=1e-2, atol=1e-3)
        except RuntimeError as error:
            log.info("%s: no CUDA graph of it can be had: %s", self.name, str(error).partition("\n")[0])
            return None
        return recorded if same else None


class _Recorded:
    """A forward pass recorded as a CUDA graph, for inputs of one shape: replayed, the GPU waits for no Python.

    The output of one call is overwritten by the next.
    """

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], sample: torch.Tensor) -> None:
        import torch

        self._input = sample.clone()
        with torch.cuda.device(sample.device):
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):  # what is made on first use is made before
                for _ in range(3):
                    forward(self._input)
            torch.cuda.current_stream().wait_stream(beside)
            self._graph = torch.cuda.CUDAGraph()
            # other threads may use the GPU meanwhile
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = forward(self._input)

    def __call__(self, ready: torch.Tensor) -> torch.Tensor:
        import torch

        with torch.cuda.device(ready.device):
            self._input.copy_(ready)
            self._graph.replay()
        return self._output


class _CannotHave(WeightsMissing):
    """Weights missing, with the reason apart from the cure: `auto` quotes only the reason."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(f"{reason}. {cure}")
        self.reason = reason


@dataclass
class _Place:
    """Where weights may come from, and where the network shall run."""

    weights_dir: Path | None
    device: str
    download: bool

    def find(self, name: str, *, anywhere: bool = True) -> Path | None:
        """A file or folder: in the weights folder, else (if `anywhere`) as given."""
        places = [] if self.weights_dir is None else [self.weights_dir / name]
        places += [Path(name).expanduser()] if anywhere else []
        return next((path for path in places if path.exists()), None)

    def cure(self, files: str, folder: str) -> str:
        where = f"the folder named by SCANQUEUE_WEIGHTS_DIR, in {folder}/"
        if self.weights_dir is not None:
            where = f"{self.weights_dir / folder}/"
        return f"Put {files} into {where}, or choose another embedder (SCANQUEUE_EMBEDDER)"

    def hub_file(self, repo: str, names: Sequence[str]) -> Path | None:
        """The first of these files of a hub repository: from the cache, else downloaded, else None."""
        import httpx
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        for cached in (True, False):
            if not cached and self.why_no_download:
                return None
            for name in names:
                try:
                    return Path(hf_hub_download(repo, name, local_files_only=cached, etag_timeout=hub.HUB_SECONDS))
                except RemoteEntryNotFoundError:
                    continue  # the repository has no such file
                except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
                    if not cached:
                        self.why_no_download = f"the download failed: {type(error).__name__}"
                        return None
        return None

    @cached_property
    def why_no_download(self) -> str:
        """Empty when the hub can be asked."""
        return hub.unreachable() if self.download else "downloads are turned off"


def _open_best(place: _Place) -> OpenEmbedder:
    passed_over = []
    for name, label in _candidates(place.weights_dir):
        kind, _, model = name.partition(":")
        try:
            found = OPENERS[kind](model, place)
        except _CannotHave as error:
            passed_over.append(error.reason.replace(name, label))
        else:
            return OpenEmbedder(found.embedder, found.name, "; ".join([*passed_over, f"using {found.why}"]))
    why = "; ".join([*passed_over, "using pixels, the last resort: it has learned nothing"])
    return OpenEmbedder(Pixels(), "pixels", why)


def _candidates(weights_dir: Path | None) -> list[tuple[str, str]]:
    """Embedders for `auto`, the best first, each with what to call it."""
    candidates = [(BIOMEDCLIP, "BiomedCLIP")]
    folders = sorted(weights_dir.iterdir()) if weights_dir is not None and weights_dir.is_dir() else []
    for kind, config in (("open_clip", CLIP_CONFIG), ("timm", TIMM_CONFIG)):
        candidates += [
            (f"{kind}:local-dir:{folder.name}", f"{kind} folder {folder.name}")
            for folder in folders
            if (folder / config).is_file() and folder.name != BIOMEDCLIP_FOLDER
            if kind == "open_clip" or not (folder / CLIP_CONFIG).is_file()
        ]
    return candidates


def _open_timm(model: str, place: _Place) -> OpenEmbedder:
    import timm

    name, given = f"timm:{model}", model.removeprefix("local-dir:")
    folder = place.find(given, anywhere=model.startswith("local-dir:"))
    if folder is not None and (folder / TIMM_CONFIG).is_file():
        with _Reading(name, folder, place.cure(f"{TIMM_CONFIG} and {TIMM_WEIGHTS[0]}", given)):
            network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
            return _opened(name, network, _timm_preprocessing(network), place, f"timm folder {given}", folder)
    if model.startswith("local-dir:"):
        reason = f"{name}: no folder {given} with a {TIMM_CONFIG} in {place.weights_dir or 'the working folder'}"
        raise _CannotHave(reason, place.cure(f"{TIMM_CONFIG} and {TIMM_WEIGHTS[0]}", given))

    if not timm.is_model(given):
        raise BadSetting(f"embedder: timm has no model {given!r}. See timm.list_models()")
    settings = timm.get_pretrained_cfg(given)
    repo = settings.hf_hub_id if settings is not None else None
    cure = place.cure(f"{TIMM_CONFIG} and {TIMM_WEIGHTS[0]} of {repo or given}", given)
    weights = place.hub_file(repo, TIMM_WEIGHTS) if repo else None
    if weights is None:
        raise _CannotHave(_not_found(name, given, bool(repo), place), cure)
    with _Reading(name, weights, cure):
        network = timm.create_model(
            given, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(weights)}
        )
        return _opened(name, network, _timm_preprocessing(network), place, f"timm model {given}", weights)


def _timm_preprocessing(network: torch.nn.Module) -> Preprocessing:
    from timm.data.config import resolve_model_data_config

    settings = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    _, height, width = settings["input_size"]
    return Preprocessing((height, width), tuple(settings["mean"]), tuple(settings["std"]), settings["interpolation"])


def _open_clip(model: str, place: _Place) -> OpenEmbedder:
    if model.startswith(("hf-hub:", "local-dir:")):
        return _open_clip_repository(model, place)
    return _open_clip_builtin(model, place)


def _open_clip_repository(model: str, place: _Place) -> OpenEmbedder:
    """A folder or hub repository that holds open_clip_config.json and the weights."""
    name = f"open_clip:{model}"
    kind, _, given = model.partition(":")
    local = given
    if kind == "hf-hub":
        local = BIOMEDCLIP_FOLDER if name == BIOMEDCLIP else given.rpartition("/")[2]
    label = "BiomedCLIP" if name == BIOMEDCLIP else f"open_clip folder {local}"
    folder = place.find(local, anywhere=kind == "local-dir")
    cure = place.cure(f"{CLIP_CONFIG} and {CLIP_WEIGHTS[0]} (or {CLIP_WEIGHTS[3]}) of {given}", local)
    config: Path | None = None
    weights: Path | None = None
    if folder is not None and (folder / CLIP_CONFIG).is_file():
        config = folder / CLIP_CONFIG
        weights = next((folder / file for file in CLIP_WEIGHTS if (folder / file).is_file()), None)
        if weights is None:
            raise _CannotHave(f"{name}: {folder} holds none of {', '.join(CLIP_WEIGHTS)}", cure)
    elif kind == "hf-hub":
        config = place.hub_file(given, [CLIP_CONFIG])
        weights = place.hub_file(given, CLIP_WEIGHTS) if config is not None else None
    if config is None or weights is None:
        raise _CannotHave(_not_found(name, local, kind == "hf-hub", place), cure)
    with _Reading(name, weights, cure):
        settings = json.loads(config.read_text(encoding="utf-8"))
        tower, preprocessing = _vision_tower(settings["model_cfg"], settings.get("preprocess_cfg", {}), weights)
        return _opened(name, tower, preprocessing, place, label, weights)


def _open_clip_builtin(model: str, place: _Place) -> OpenEmbedder:
    """An architecture that open_clip knows, with one of its published weights or a file."""
    import open_clip

    name = f"open_clip:{model}"
    given, _, pretrained = model.partition("@")
    config = open_clip.get_model_config(given)
    if config is None:
        raise BadSetting(f"embedder: open_clip has no model {given!r}. See open_clip.list_models()")
    tags = open_clip.list_pretrained_tags_by_model(given)
    tag = pretrained or next(iter(tags), "")
    settings = open_clip.get_pretrained_cfg(given, tag)
    repo, _, file = settings.get("hf_hub", "").rpartition("/") if settings else ("", "", "")
    weights = place.hub_file(repo, [file] if file else CLIP_WEIGHTS) if repo else place.find(tag) if tag else None
    cure = (
        f"Give a file as open_clip:{given}@FILE, in the folder named by SCANQUEUE_WEIGHTS_DIR, "
        f"or one of the tags {', '.join(tags) or '(none)'}"
    )
    if weights is None or not weights.is_file():
        raise _CannotHave(_not_found(name, tag, bool(repo), place), cure)
    with _Reading(name, weights, cure):
        config["quick_gelu"] = settings.get("quick_gelu", config.get("quick_gelu", False))
        tower, preprocessing = _vision_tower(config, settings, weights)
        return _opened(name, tower, preprocessing, place, f"open_clip model {model}", weights)


def _vision_tower(
    config: dict[str, Any], preprocess: dict[str, Any], weights: Path
) -> tuple[torch.nn.Module, Preprocessing]:
    """The image half of a CLIP model. The text half is neither built nor read, nor are its libraries needed."""
    from open_clip.model import _build_vision_tower
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    vision = {**config["vision_cfg"]}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False  # all weights come from the file
    tower = _build_vision_tower(config["embed_dim"], vision, quick_gelu=config.get("quick_gelu", False))
    state = from_open_clip(read_tensors(weights, below="visual."))
    if not state:
        raise ValueError("it holds no visual.* weights: not a CLIP model in open_clip's format")
    tower.load_state_dict(state)
    final = merge_preprocess_dict(PreprocessCfg(), preprocess)
    size = tower.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return tower, Preprocessing((height, width), tuple(final["mean"]), tuple(final["std"]), final["interpolation"])


def _open_published(kind: str, model: str, place: _Place) -> OpenEmbedder:
    """A network of `networks`: the row of the table that is called so, or a file of the same kind."""
    name = f"{kind}:{model}"
    row = weights_of(name)
    file: Path | None
    if row is not None:
        folder = place.find(row.folder)
        file = next((folder / f.name for f in row.files if (folder / f.name).is_file()), None) if folder else None
        if file is None and row.hub:
            file = place.hub_file(row.hub, [row.files[0].name])
        cure = f"{how_to_get(row, place.weights_dir)}, or choose another embedder (SCANQUEUE_EMBEDDER)"
        reason = _not_found(name, row.folder, bool(row.hub), place)
    else:
        row = next(row for row in WEIGHTS if row.network == kind)
        file = place.find(model)
        cure = f"Give a file in the folder named by SCANQUEUE_WEIGHTS_DIR, or take {row.embedder}"
        reason = f"{name}: no file {model} in {place.weights_dir or 'the working folder'}"
    if file is None or not file.is_file():
        raise _CannotHave(reason, cure)
    with _Reading(name, file, cure):
        published = NETWORKS[kind]
        network = published.build()
        tensors, wanted = published.rename(read_tensors(file)), network.state_dict()
        if bad := misfits(wanted, tensors):
            raise BrokenWeights(
                f"{file} does not hold the weights of such a network: {len(bad)} of {len(wanted)} tensors are missing "
                f"or of another shape (first: {bad[0]})"
            )
        network.load_state_dict({n: tensors.get(n, value) for n, value in wanted.items()})
        return _opened(name, network, row.preprocessing, place, row.key, file)


def _radimagenet(model: str, place: _Place) -> OpenEmbedder:
    return _open_published("radimagenet", model, place)


def _torchxrayvision(model: str, place: _Place) -> OpenEmbedder:
    return _open_published("torchxrayvision", model, place)


def _mobilesam(model: str, place: _Place) -> OpenEmbedder:
    return _open_published("mobilesam", model, place)


OPENERS: dict[str, Callable[[str, _Place], OpenEmbedder]] = {
    "open_clip": _open_clip,
    "timm": _open_timm,
    "radimagenet": _radimagenet,
    "torchxrayvision": _torchxrayvision,
    "mobilesam": _mobilesam,
}


class _Reading:
    """Whatever goes wrong while weights are read is told as WeightsMissing with the file and a cure."""

    def __init__(self, name: str, path: Path, cure: str) -> None:
        self.name, self.path, self.cure = name, path, cure

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, BrokenWeights):
            raise _CannotHave(f"{self.name}: {error}", self.cure) from error
        if isinstance(error, Exception) and not isinstance(error, WeightsMissing | BadSetting):
            what = " ".join(str(error).split())[:200]
            reason = f"{self.name}: {self.path} cannot be used ({type(error).__name__}: {what})"
            raise _CannotHave(reason, self.cure) from error


def _opened(
    name: str,
    model: torch.nn.Module,
    preprocessing: Preprocessing,
    place: _Place,
    label: str,
    found: Path,
) -> OpenEmbedder:
    folder = found if found.is_dir() else found.parent
    where = place.weights_dir if place.weights_dir in folder.parents else folder
    return OpenEmbedder(Network(name, model, preprocessing, place.device), name, f"{label} found in {where}")


def _not_found(name: str, local: str, on_hub: bool, place: _Place) -> str:
    where = place.weights_dir / local if place.weights_dir is not None else "any weights folder"
    why = f" and cannot be downloaded ({place.why_no_download or 'the hub does not have it'})" if on_hub else ""
    return f"{name}: not in {where}{why}"


def _torch_device(device: str) -> torch.device:
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise BadSetting(f"device: got {device!r}, wanted auto, cpu or cuda[:N] (SCANQUEUE_DEVICE)") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise BadSetting(
            f"device: got {device!r}, but torch sees no CUDA GPU here. Set SCANQUEUE_DEVICE to cpu or auto"
        )
    return wanted


def _checked(image: Uint8Image, number: int) -> Uint8Image:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"image {number}: got {kind}, wanted a uint8 array. Scale its window to 0..255 first")
    if 0 in image.shape or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"image {number}: got shape {image.shape}, wanted (H, W) gray or (H, W, 3) RGB")
    return np.ascontiguousarray(image)
