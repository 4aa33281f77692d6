"""Images to vectors: what the map of a project is drawn from.

An embedder is opened by name: `pixels`, `timm:MODEL`, `timm:local-dir:FOLDER`,
`open_clip:MODEL[@PRETRAINED or file]`, `open_clip:hf-hub:ORG/REPO`, `open_clip:local-dir:FOLDER`, or `auto`.
Checkpoints are read as safetensors, or by torch with `weights_only=True`: nothing in them is executed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.errors import BadSetting, WeightsMissing

if TYPE_CHECKING:  # torch takes seconds to import: only inside functions
    import torch

BIOMEDCLIP = "open_clip:hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
BIOMEDCLIP_FOLDER = "biomedclip"
BATCH = 16
NETWORK_SECONDS = 3.0  # a hospital without internet waits no longer than this

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

Uint8Image = NDArray[np.uint8]


class Embedder(Protocol):
    """Turns images into vectors of one length; similar images should get similar vectors.

    name  opens the same embedder again
    dim   length of a vector
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def embed(self, images: Sequence[Uint8Image]) -> NDArray[np.float32]:
        """(N, D) finite vectors of N images, each (H, W) gray or (H, W, 3) RGB uint8, of any sizes.

        Images are taken in batches, so N may be large. The same images on the same machine give the same
        vectors. Raises ValueError, naming the image's number, on another shape or type.
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
            "open_clip:MODEL[@PRETRAINED or file], open_clip:hf-hub:ORG/REPO or open_clip:local-dir:FOLDER"
        )
    return OPENERS[kind](model, place)


class Pixels:
    """The last resort: a small description of the picture itself, with nothing learned in it.

    A 16 x 16 thumbnail, a 32-bin histogram of gray levels and, in 4 x 4 cells, 8-bin histograms of edge
    directions; each part has length 1. It tells apart body parts, views and machines, and little that is finer.
    """

    name = "pixels"
    dim = 16 * 16 + 32 + 4 * 4 * 8

    def embed(self, images: Sequence[Uint8Image]) -> NDArray[np.float32]:
        vectors = [self._describe(_checked(image, i)) for i, image in enumerate(images)]
        return np.array(vectors, dtype=np.float32).reshape(len(images), self.dim)

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


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its images: size (height, width), and channel mean and std for values in 0..1."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"

    def resized(self, image: Uint8Image) -> Uint8Image:
        """(height, width, 3). The whole image is squeezed in, as a finding may lie at its edge: no crop."""
        height, width = self.size
        names = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
        resample = names.get(self.interpolation, Image.Resampling.BICUBIC)
        return np.asarray(Image.fromarray(image).convert("RGB").resize((width, height), resample))


class Network:
    """A vision network without its head, in evaluation mode, on one device."""

    def __init__(self, name: str, model: torch.nn.Module, preprocessing: Preprocessing, device: str) -> None:
        import torch

        self.name = name
        self.preprocessing = preprocessing
        self._device = _torch_device(device)
        self._model = model.eval().requires_grad_(False).to(self._device).to(memory_format=torch.channels_last)
        self.dim = self._vectors([np.zeros((8, 8, 3), dtype=np.uint8)]).shape[1]

    def embed(self, images: Sequence[Uint8Image]) -> NDArray[np.float32]:
        vectors = np.empty((len(images), self.dim), dtype=np.float32)
        for begin in range(0, len(images), BATCH):
            batch = [_checked(image, begin + i) for i, image in enumerate(images[begin : begin + BATCH])]
            vectors[begin : begin + BATCH] = self._vectors(batch)
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise ValueError(f"{self.name}: image {broken[0]} got NaN or infinity from the network. Use other weights")
        return vectors

    def _vectors(self, images: Sequence[Uint8Image]) -> NDArray[np.float32]:
        import torch

        pixels = np.stack([self.preprocessing.resized(image) for image in images])
        with torch.inference_mode():
            values = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 255
            mean, std = (
                torch.tensor(v, device=self._device)[:, None, None]
                for v in (self.preprocessing.mean, self.preprocessing.std)
            )
            output = self._model((values - mean) / std)
            pooled = output[0] if isinstance(output, tuple) else output
            vectors: NDArray[np.float32] = pooled.float().cpu().numpy()
        return vectors


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
                    return Path(hf_hub_download(repo, name, local_files_only=cached, etag_timeout=NETWORK_SECONDS))
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
        from huggingface_hub import constants

        if not self.download:
            return "downloads are turned off"
        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set"
        return "" if _answers(constants.ENDPOINT) else "no network"


def _answers(url: str) -> bool:
    """Whether anything answers there in time. In a thread, as looking up a name has no time limit of its own."""
    import httpx

    answered = threading.Event()

    def ask() -> None:
        try:
            httpx.head(url, timeout=NETWORK_SECONDS)
        except (httpx.HTTPError, OSError, ValueError):
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_SECONDS)
    return answered.is_set()


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
    state = _visual_state(weights)
    if not state:
        raise ValueError("it holds no visual.* weights: not a CLIP model in open_clip's format")
    tower.load_state_dict(state)
    final = merge_preprocess_dict(PreprocessCfg(), preprocess)
    size = tower.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return tower, Preprocessing((height, width), tuple(final["mean"]), tuple(final["std"]), final["interpolation"])


def _visual_state(weights: Path) -> dict[str, torch.Tensor]:
    """The weights below `visual.`, by their names there."""
    prefixes = ("visual.", "module.visual.")

    def below(key: str) -> str:
        return key.removeprefix("module.").removeprefix("visual.")

    if weights.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(weights, framework="pt") as file:
            return {below(key): file.get_tensor(key) for key in file.keys() if key.startswith(prefixes)}  # noqa: SIM118
    import torch

    state = torch.load(weights, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    return {below(key): value for key, value in state.items() if key.startswith(prefixes)}


OPENERS: dict[str, Callable[[str, _Place], OpenEmbedder]] = {"open_clip": _open_clip, "timm": _open_timm}


class _Reading:
    """Whatever goes wrong while weights are read is told as WeightsMissing with the file and a cure."""

    def __init__(self, name: str, path: Path, cure: str) -> None:
        self.name, self.path, self.cure = name, path, cure

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
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
