"""Open embedders, which turn images into the vectors behind a project's map.

Names: `pixels`, `timm:MODEL`, `timm:local-dir:FOLDER`,
`open_clip:MODEL[@PRETRAINED or file]`, `open_clip:hf-hub:ORG/REPO`, `open_clip:local-dir:FOLDER`,
`radimagenet:resnet50`, `torchxrayvision:densenet121-res224-all`, `mobilesam:vit_t`,
`builtin:efficientnet-lite0`, or `auto`.
Nothing in a weight file is executed (see `checkpoints`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import BadSetting, BrokenWeights
from backend.learning.checkpoints import read_tensors
from backend.learning.embedder_files import Unavailable, WeightSources, not_found, reading_weights
from backend.learning.embedding import Embedder, Pixels
from backend.learning.networks import NETWORKS, from_open_clip, misfits
from backend.learning.preprocessing import Preprocessing
from backend.learning.vision_network import Network
from backend.learning.weights import BIOMEDCLIP, BUILTIN, WEIGHTS, found_file, how_to_get, weights_of

if TYPE_CHECKING:  # torch takes seconds to import: only inside functions
    import torch


BIOMEDCLIP_FOLDER = "biomedclip"

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


@dataclass(frozen=True)
class OpenEmbedder:
    """An embedder ready for use, the name that reopens it, and the reason for the choice as text."""

    embedder: Embedder
    name: str
    why: str


def open_embedder(name: str, *, weights_dir: Path | None, device: str, download: bool = True) -> OpenEmbedder:
    """Open an embedder by name; `auto` opens the best one whose weights are available.

    weights_dir  weights folder, one subfolder per model; relative FOLDERs and files are searched there first,
                 then in the working directory
    device       "cpu", "cuda", "cuda:1", ..., or "auto": a GPU if available
    download     False = use only local files

    `auto` tries BiomedCLIP (weights_dir/biomedclip, the hub's cache, a download), then the other
    open_clip and timm folders in weights_dir by name, then the built-in network, then `pixels`. It waits at most
    3 seconds for the network.

    Raises WeightsMissing, naming the file and its place, when the weights of a named embedder are unavailable or
    unreadable, and BadSetting on an unknown name or device.
    """
    place = WeightSources(weights_dir, device, download)
    if name == "auto":
        return _open_best(place)
    if name == "pixels":
        return OpenEmbedder(Pixels(), "pixels", "pixels, as configured")
    kind, _, model = name.partition(":")
    if kind not in OPENERS or not model:
        raise BadSetting(
            f"embedder: got {name!r}, wanted auto, pixels, timm:MODEL, timm:local-dir:FOLDER, "
            "open_clip:MODEL[@PRETRAINED or file], open_clip:hf-hub:ORG/REPO, open_clip:local-dir:FOLDER, "
            f"{', '.join(row.embedder for row in WEIGHTS if row.embedder.partition(':')[0] in NETWORKS)}. "
            "`scanqueue weights list` shows them"
        )
    return OPENERS[kind](model, place)


def _open_best(place: WeightSources) -> OpenEmbedder:
    passed_over = []
    for name, label in _candidates(place.weights_dir):
        kind, _, model = name.partition(":")
        try:
            found = OPENERS[kind](model, place)
        except Unavailable as error:
            passed_over.append(error.reason.replace(name, label))
        else:
            return OpenEmbedder(found.embedder, found.name, "; ".join([*passed_over, f"using {found.why}"]))
    why = "; ".join([*passed_over, "using pixels, the fallback without a trained network"])
    return OpenEmbedder(Pixels(), "pixels", why)


def _candidates(weights_dir: Path | None) -> list[tuple[str, str]]:
    """(name, label) of the embedders for `auto`, the best first."""
    candidates = [(BIOMEDCLIP, "BiomedCLIP")]
    others = {BIOMEDCLIP_FOLDER, *(row.folder for row in WEIGHTS if row.clicks)}  # no embedders of their own
    folders = sorted(weights_dir.iterdir()) if weights_dir is not None and weights_dir.is_dir() else []
    for kind, config in (("open_clip", CLIP_CONFIG), ("timm", TIMM_CONFIG)):
        candidates += [
            (f"{kind}:local-dir:{folder.name}", f"{kind} folder {folder.name}")
            for folder in folders
            if (folder / config).is_file() and folder.name not in others
            if kind == "open_clip" or not (folder / CLIP_CONFIG).is_file()
        ]
    return [*candidates, (BUILTIN, "built-in network")]


def _open_timm(model: str, place: WeightSources) -> OpenEmbedder:
    import timm

    name, given = f"timm:{model}", model.removeprefix("local-dir:")
    folder = place.find(given, anywhere=model.startswith("local-dir:"))
    if folder is not None and (folder / TIMM_CONFIG).is_file():
        with reading_weights(name, folder, place.cure(f"{TIMM_CONFIG} and {TIMM_WEIGHTS[0]}", given)):
            network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
            return _opened(name, network, _timm_preprocessing(network), place, f"timm folder {given}", folder)
    if model.startswith("local-dir:"):
        reason = f"{name}: no folder {given} with a {TIMM_CONFIG} in {place.weights_dir or 'the working folder'}"
        raise Unavailable(reason, place.cure(f"{TIMM_CONFIG} and {TIMM_WEIGHTS[0]}", given))

    if not timm.is_model(given):
        raise BadSetting(f"embedder: timm has no model {given!r}. See timm.list_models()")
    settings = timm.get_pretrained_cfg(given)
    repo = settings.hf_hub_id if settings is not None else None
    cure = place.cure(f"{TIMM_CONFIG} and {TIMM_WEIGHTS[0]} of {repo or given}", given)
    weights = place.hub_file(repo, TIMM_WEIGHTS) if repo else None
    if weights is None:
        raise Unavailable(not_found(name, given, bool(repo), place), cure)
    with reading_weights(name, weights, cure):
        network = timm.create_model(
            given, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(weights)}
        )
        return _opened(name, network, _timm_preprocessing(network), place, f"timm model {given}", weights)


def _timm_preprocessing(network: torch.nn.Module) -> Preprocessing:
    from timm.data.config import resolve_model_data_config

    settings = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    _, height, width = settings["input_size"]
    return Preprocessing((height, width), tuple(settings["mean"]), tuple(settings["std"]), settings["interpolation"])


def _open_clip(model: str, place: WeightSources) -> OpenEmbedder:
    if model.startswith(("hf-hub:", "local-dir:")):
        return _open_clip_repository(model, place)
    return _open_clip_builtin(model, place)


def _open_clip_repository(model: str, place: WeightSources) -> OpenEmbedder:
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
            raise Unavailable(f"{name}: {folder} contains none of {', '.join(CLIP_WEIGHTS)}", cure)
    elif kind == "hf-hub":
        config = place.hub_file(given, [CLIP_CONFIG])
        weights = place.hub_file(given, CLIP_WEIGHTS) if config is not None else None
    if config is None or weights is None:
        raise Unavailable(not_found(name, local, kind == "hf-hub", place), cure)
    with reading_weights(name, weights, cure):
        settings = json.loads(config.read_text(encoding="utf-8"))
        tower, preprocessing = _vision_tower(settings["model_cfg"], settings.get("preprocess_cfg", {}), weights)
        return _opened(name, tower, preprocessing, place, label, weights)


def _open_clip_builtin(model: str, place: WeightSources) -> OpenEmbedder:
    """An open_clip architecture with published weights or a local file."""
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
        raise Unavailable(not_found(name, tag, bool(repo), place), cure)
    with reading_weights(name, weights, cure):
        config["quick_gelu"] = settings.get("quick_gelu", config.get("quick_gelu", False))
        tower, preprocessing = _vision_tower(config, settings, weights)
        return _opened(name, tower, preprocessing, place, f"open_clip model {model}", weights)


def _vision_tower(
    config: dict[str, Any], preprocess: dict[str, Any], weights: Path
) -> tuple[torch.nn.Module, Preprocessing]:
    """The image tower of a CLIP model. The text tower is neither built nor read and needs no libraries."""
    from open_clip.model import _build_vision_tower
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    vision = {**config["vision_cfg"]}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False  # the file holds all weights
    tower = _build_vision_tower(config["embed_dim"], vision, quick_gelu=config.get("quick_gelu", False))
    state = from_open_clip(read_tensors(weights, below="visual."))
    if not state:
        raise ValueError("it contains no visual.* weights: not a CLIP model in open_clip's format")
    tower.load_state_dict(state)
    final = merge_preprocess_dict(PreprocessCfg(), preprocess)
    size = tower.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return tower, Preprocessing((height, width), tuple(final["mean"]), tuple(final["std"]), final["interpolation"])


def _open_published(kind: str, model: str, place: WeightSources) -> OpenEmbedder:
    """A network of `networks`, with the weights of the table row of this name or with a file of the same kind."""
    name = f"{kind}:{model}"
    row = weights_of(name)
    file: Path | None
    if row is not None:
        folder = place.find(row.folder)
        file = found_file(row, folder.parent if folder else None)
        if file is None and row.hub:
            file = place.hub_file(row.hub, [row.files[0].name])
        cure = f"{how_to_get(row, place.weights_dir)}, or choose another embedder (SCANQUEUE_EMBEDDER)"
        reason = not_found(name, row.folder, bool(row.hub), place)
        if row.package:
            reason = f"{name}: {row.source} is not installed"
    else:
        row = next(row for row in WEIGHTS if row.network == kind)
        file = place.find(model)
        cure = f"Give a file in the folder named by SCANQUEUE_WEIGHTS_DIR, or use {row.embedder}"
        reason = f"{name}: no file {model} in {place.weights_dir or 'the working folder'}"
    if file is None or not file.is_file():
        raise Unavailable(reason, cure)
    with reading_weights(name, file, cure):
        published = NETWORKS[row.network]
        network = published.build()
        tensors, wanted = published.rename(read_tensors(file)), network.state_dict()
        if bad := misfits(wanted, tensors):
            raise BrokenWeights(
                f"{file} does not contain weights of this network: {len(bad)} of {len(wanted)} tensors are missing "
                f"or have another shape (first: {bad[0]})"
            )
        network.load_state_dict({n: tensors.get(n, value) for n, value in wanted.items()})
        if row.package:
            return OpenEmbedder(
                Network(name, network, row.preprocessing, place.device), name, f"the built-in {row.key}"
            )
        return _opened(name, network, row.preprocessing, place, row.key, file)


def _builtin(model: str, place: WeightSources) -> OpenEmbedder:
    if f"builtin:{model}" != BUILTIN:
        raise BadSetting(f"embedder: the built-in network is {BUILTIN}, got 'builtin:{model}'")
    return _open_published("builtin", model, place)


def _radimagenet(model: str, place: WeightSources) -> OpenEmbedder:
    return _open_published("radimagenet", model, place)


def _torchxrayvision(model: str, place: WeightSources) -> OpenEmbedder:
    return _open_published("torchxrayvision", model, place)


def _mobilesam(model: str, place: WeightSources) -> OpenEmbedder:
    return _open_published("mobilesam", model, place)


OPENERS: dict[str, Callable[[str, WeightSources], OpenEmbedder]] = {
    "open_clip": _open_clip,
    "timm": _open_timm,
    "builtin": _builtin,
    "radimagenet": _radimagenet,
    "torchxrayvision": _torchxrayvision,
    "mobilesam": _mobilesam,
}


def _opened(
    name: str,
    model: torch.nn.Module,
    preprocessing: Preprocessing,
    place: WeightSources,
    label: str,
    found: Path,
) -> OpenEmbedder:
    folder = found if found.is_dir() else found.parent
    where = place.weights_dir if place.weights_dir in folder.parents else folder
    return OpenEmbedder(Network(name, model, preprocessing, place.device), name, f"{label} found in {where}")
