"""Pretrained weights by name: what they are, which file goes where, and whether a file is the right one.

`WEIGHTS` is the one table of them. Everything works without a network: files are carried to the machine, checked,
and put in place below the folder that SCANQUEUE_WEIGHTS_DIR names. Nothing in a file is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backend.errors import BadSetting, BrokenWeights, StorageFull, WeightsMissing, is_disk_full
from backend.learning.checkpoints import check_whole, read_tensors
from backend.learning.networks import misfits, renamed, wanted_tensors
from backend.learning.preprocessing import IMAGENET, OPENAI, Preprocessing

BIOMEDCLIP = "open_clip:hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
DIR_SETTING = "SCANQUEUE_WEIGHTS_DIR"
LOOKED_AT = 2000  # files of the weights folder, when one is missing and may have another name
CHUNK = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of weights under its published name.

    sha256  of the published file; empty where none is known
    """

    name: str
    sha256: str = ""


@dataclass(frozen=True)
class Weights:
    """One row of the table.

    key            what `scanqueue weights` calls it
    embedder       what SCANQUEUE_EMBEDDER has to be to draw the map with it; empty: not an embedder
    encoder        what SCANQUEUE_ENCODER has to be to start the segmentation from it; empty: not an encoder
    network        one of `networks.NETWORKS`, else an architecture of timm
    folder         below SCANQUEUE_WEIGHTS_DIR; all files go into it
    files          any one of them is enough; the first is what is downloaded
    config         files that are needed beside it
    hub            repository of the hub, owner/name; empty: not to be downloaded from there
    source         where its authors give it out
    megabytes      size of the first file, about
    vector         length of a vector
    """

    key: str
    what: str
    embedder: str
    encoder: str
    network: str
    folder: str
    files: tuple[File, ...]
    config: tuple[str, ...]
    hub: str
    source: str
    licence: str
    megabytes: int
    vector: int
    preprocessing: Preprocessing
    note: str = ""


def _timm(
    key: str,
    name: str,
    what: str,
    side: int,
    megabytes: int,
    vector: int,
    *,
    licence: str = "Apache-2.0",
    sha256: str = "",
    encoder: bool = False,
    note: str = "",
) -> Weights:
    """Weights in timm's own format, on the hub as timm/NAME."""
    return Weights(
        key=key,
        what=what,
        embedder=f"timm:{name}",
        encoder=f"tu-{name.partition('.')[0]}@{name}" if encoder else "",
        network=name.partition(".")[0],
        folder=name,
        files=(File("model.safetensors", sha256), File("pytorch_model.bin")),
        config=("config.json",),
        hub=f"timm/{name}",
        source=f"timm/{name} on the Hugging Face hub",
        licence=licence,
        megabytes=megabytes,
        vector=vector,
        preprocessing=Preprocessing((side, side), *IMAGENET),
        note=note,
    )


DINOV3 = "DINOv3 License (of Meta: to be accepted; commercial use allowed, military use and others not)"

WEIGHTS = (
    Weights(
        key="biomedclip",
        what="BiomedCLIP's ViT-B/16, trained on figures of biomedical papers and their captions",
        embedder=BIOMEDCLIP,
        encoder="",
        network="biomedclip",
        folder="biomedclip",
        files=(
            File("open_clip_pytorch_model.bin", "52cc993c5c5ff962bd0c60931874bc001e7e9b41666a385530f4a036294576be"),
            File("open_clip_model.safetensors"),
        ),
        config=("open_clip_config.json",),
        hub="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        source="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 on the Hugging Face hub",
        licence="MIT",
        megabytes=784,
        vector=512,
        preprocessing=Preprocessing((224, 224), *OPENAI),
        note="what `auto` takes first; only the image half is read",
    ),
    Weights(
        key="radimagenet-resnet50",
        what="ResNet-50 trained on RadImageNet's 1.35 million CT, MR and ultrasound images",
        embedder="radimagenet:resnet50",
        encoder="resnet50@radimagenet/ResNet50.pt",
        network="radimagenet",
        folder="radimagenet",
        files=(File("ResNet50.pt"),),
        config=(),
        hub="",
        source="the file RadImageNet_pytorch/ResNet50.pt, which the README of BMEII-AI/RadImageNet on GitHub links to",
        licence="MIT for the repository; none is stated for the weights: ask the authors",
        megabytes=94,
        vector=2048,
        preprocessing=Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, "bilinear"),
        note="the authors publish no checksum",
    ),
    Weights(
        key="torchxrayvision-densenet121",
        what="TorchXRayVision's DenseNet-121, trained on chest radiographs of seven collections",
        embedder="torchxrayvision:densenet121-res224-all",
        encoder="",
        network="torchxrayvision",
        folder="torchxrayvision",
        files=(
            File("model.pt", "56524913dd16a906422e8d8b66a7a5c46be1d82eb7ac012d8103776f1aa68899"),
            File("state_dict.pt"),
        ),
        config=(),
        hub="torchxrayvision/densenet121-res224-all",
        source="torchxrayvision/densenet121-res224-all on the Hugging Face hub",
        licence="Apache-2.0",
        megabytes=28,
        vector=1024,
        preprocessing=Preprocessing((224, 224), (0.5,), (1 / 2048,), "bilinear"),
        note="chest radiographs only; values are scaled to -1024..1024; the collections have terms of their own",
    ),
    Weights(
        key="mobilesam",
        what="the image encoder of MobileSAM, a TinyViT distilled from Segment Anything's ViT-H",
        embedder="mobilesam:vit_t",
        encoder="",
        network="mobilesam",
        folder="mobilesam",
        files=(File("mobile_sam.pt", "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"),),
        config=(),
        hub="",
        source="weights/mobile_sam.pt of ChaoningZhang/MobileSAM on GitHub",
        licence="Apache-2.0",
        megabytes=41,
        vector=256,
        preprocessing=Preprocessing((1024, 1024), *IMAGENET, "bilinear"),
        note="slow without a GPU; scans are squeezed into the square, not padded",
    ),
    _timm(
        "dinov2-small",
        "vit_small_patch14_dinov2.lvd142m",
        "DINOv2 ViT-S/14, self-supervised on 142 million photographs",
        518,
        88,
        384,
        note="slow without a GPU: 1,369 patches an image",
    ),
    _timm(
        "dinov2-base",
        "vit_base_patch14_dinov2.lvd142m",
        "DINOv2 ViT-B/14, self-supervised on 142 million photographs",
        518,
        346,
        768,
        sha256="55cbb5d887b336d430e649c277b85a1429e724871f9d02ac16203235886d8c7b",
        note="slow without a GPU: 1,369 patches an image",
    ),
    _timm(
        "dinov3-small",
        "vit_small_patch16_dinov3.lvd1689m",
        "DINOv3 ViT-S/16, distilled from a ViT-7B trained on 1.7 billion photographs",
        256,
        86,
        384,
        licence=DINOV3,
    ),
    _timm(
        "dinov3-base",
        "vit_base_patch16_dinov3.lvd1689m",
        "DINOv3 ViT-B/16, distilled from a ViT-7B trained on 1.7 billion photographs",
        256,
        343,
        768,
        licence=DINOV3,
    ),
    _timm(
        "resnet18",
        "resnet18.a1_in1k",
        "ResNet-18 trained on ImageNet",
        224,
        47,
        512,
        sha256="80c49dee3da4822c009c5a7fe591e9223c5a2cfcf95a4067ca4dfb5a7b89c612",
        encoder=True,
    ),
    _timm("resnet34", "resnet34.a1_in1k", "ResNet-34 trained on ImageNet", 224, 87, 512, encoder=True),
    _timm(
        "resnet50",
        "resnet50.a1_in1k",
        "ResNet-50 trained on ImageNet",
        224,
        102,
        2048,
        sha256="773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb",
        encoder=True,
    ),
)


def weights_called(name: str) -> Weights:
    """A row by its key, or by what SCANQUEUE_EMBEDDER or SCANQUEUE_ENCODER call it. Raises BadSetting."""
    for row in WEIGHTS:
        if name and name in (row.key, row.embedder, row.encoder):
            return row
    raise BadSetting(f"no weights are called {name!r}. There are {', '.join(row.key for row in WEIGHTS)}")


def weights_of(setting: str) -> Weights | None:
    """The row that SCANQUEUE_EMBEDDER or SCANQUEUE_ENCODER means; None when it means something else."""
    return next((row for row in WEIGHTS if setting and setting in (row.embedder, row.encoder)), None)


def encoder_weights_at(path: Path) -> Weights | None:
    """The row whose encoder weights belong at the end of this path, a file's or a folder's."""
    ends = {row.encoder.partition("@")[2]: row for row in WEIGHTS if row.encoder}
    return ends.get(path.name) or ends.get(f"{path.parent.name}/{path.name}")


def found_file(row: Weights, folder: Path) -> Path | None:
    """The weights of a row where they belong below `folder`, whatever is in them."""
    return next((folder / row.folder / f.name for f in row.files if (folder / row.folder / f.name).is_file()), None)


def how_to_get(row: Weights, folder: Path | None) -> str:
    """Which files go where, and where they are to be had: a sentence without its full stop."""
    where = f"{folder / row.folder}/" if folder else f"{row.folder}/ of the folder that {DIR_SETTING} names"
    return f"Put {_files(row)} into {where}: {'they are' if row.config else 'it is'} {_had_from(row)}"


def _files(row: Weights) -> str:
    first, *others = (f.name for f in row.files)
    one_of = f"{first} (or {', '.join(others)})" if others else first
    return " and ".join([*row.config, one_of])


def _had_from(row: Weights) -> str:
    return f"in {row.hub} on the Hugging Face hub" if row.hub else row.source


def to_dict(row: Weights) -> dict[str, str]:
    """A row as texts, for people and for JSON."""
    return {
        "name": row.key,
        "what": row.what,
        "embedder": row.embedder,
        "encoder": row.encoder,
        "files": f"{row.folder}/ with {_files(row)}",
        "size": f"{row.megabytes} MB",
        "vector": str(row.vector),
        "licence": row.licence,
        "preprocessing": str(row.preprocessing),
        "source": row.source,
        "sha256": ", ".join(f"{f.sha256} ({f.name})" for f in row.files if f.sha256),
        "note": row.note,
    }


# -- verify -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of looking at one file.

    state  "ok", "missing", "truncated", "renamed" or "wrong"
    what   a sentence: what is wrong, and what to do
    """

    key: str
    state: str
    path: Path
    what: str

    @property
    def bad(self) -> bool:
        """Something is there that cannot be used as it is."""
        return self.state in ("truncated", "renamed", "wrong")

    def to_dict(self) -> dict[str, str]:
        return {"name": self.key, "state": self.state, "path": str(self.path), "what": self.what}


def verify(row: Weights, folder: Path, *, content: bool = True) -> list[Verdict]:
    """Look at the files of a row below the weights folder, at the weights first.

    content  False: leave the checksum out, which takes a second per gigabyte or more
    """
    path = found_file(row, folder)
    if path is not None:
        found = [judge(row, path, content=content)]
    elif stray := _stray(row, folder):
        place = folder / row.folder / _form(row, stray).name
        what = f"{stray} holds the weights of {row.key} under another name. Move it: they are looked for as {place}"
        found = [Verdict(row.key, "renamed", stray, what)]
    else:
        place = folder / row.folder / row.files[0].name
        found = [Verdict(row.key, "missing", place, f"{place} is not there. {how_to_get(row, folder)}.")]
    there = path is not None or found[0].state == "renamed"
    return [*found, *(_judge_config(row, folder / row.folder / name) for name in row.config if there)]


def judge(row: Weights, path: Path, *, content: bool = True) -> Verdict:
    """Whether a file, wherever it lies, is the one that the row describes."""

    def verdict(state: str, what: str) -> Verdict:
        return Verdict(row.key, state, path, what)

    again = f"Replace it by the file of that name {_had_from(row)}" if row.hub else f"Replace it by {row.source}"
    try:
        tensors = renamed(row.network, read_tensors(path, device="meta"))
    except BrokenWeights as error:
        if error.cut:
            return verdict("truncated", f"{error}. Copy it again, to the end: it should be about {row.megabytes} MB.")
        return verdict("wrong", f"{error}. {again}.")
    wanted = wanted_tensors(row.network)
    bad = misfits(wanted, tensors)
    if bad:
        other = _whose(path, row)
        told = (
            f"they are those of {other.key}, which belong into {other.folder}/"
            if other
            else f"{len(bad)} of {len(wanted)} tensors are missing or of another shape (first: {bad[0]})"
        )
        return verdict("wrong", f"{path} does not hold the weights of {row.key}: {told}. {again}.")
    known = _form(row, path).sha256
    if known and content:
        digest = _sha256(path)
        if digest != known:
            return verdict(
                "wrong",
                f"{path} has the tensors of {row.key}, but it is not the published file: its SHA-256 is {digest}, not "
                f"{known}. {again}.",
            )
        return verdict("ok", f"{path} is the published file: its SHA-256 is the one that is known of it.")
    why = "was left out" if known else "of the published file is not known"
    return verdict(
        "ok", f"{path} is whole and has the tensors of {row.key}; its numbers were not checked, as a SHA-256 {why}."
    )


def _judge_config(row: Weights, path: Path) -> Verdict:
    get = f"Get it {_had_from(row)} and put it there"
    if not path.is_file():
        return Verdict(row.key, "missing", path, f"{path} is not there. {get}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        vision = config["model_cfg"]["vision_cfg"] if "model_cfg" in config else {}
        architecture = "" if vision else config["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{path} is not the description of a network ({type(error).__name__}). {get}."
        return Verdict(row.key, "wrong", path, what)
    if not vision and architecture != row.network:
        what = f"{path} describes the network {architecture}, not {row.network}. {get}."
        return Verdict(row.key, "wrong", path, what)
    return Verdict(row.key, "ok", path, f"{path} describes the network.")


def _fits(row: Weights, path: Path) -> bool:
    """Whether the file is whole and has the tensors of the row; for what has the name of another row's, no."""
    try:
        tensors = renamed(row.network, read_tensors(path, device="meta"))
    except (BrokenWeights, OSError):
        return False
    return not misfits(wanted_tensors(row.network), tensors)


def _whose(path: Path, but: Weights) -> Weights | None:
    return next((row for row in WEIGHTS if row.network != but.network and _fits(row, path)), None)


def _stray(row: Weights, folder: Path) -> Path | None:
    """A file below the folder that holds these weights, and does not lie where other weights belong."""
    taken = {folder / other.folder / f.name for other in WEIGHTS for f in other.files}
    for path in _files_below(folder):
        if path in taken and path.parent != folder / row.folder:
            continue
        with contextlib.suppress(BrokenWeights, OSError):
            check_whole(path)
            if judge(row, path).state == "ok":
                return path
    return None


def _files_below(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if number >= LOOKED_AT:
            return
        if path.is_file() and not path.name.startswith("."):
            yield path


def _form(row: Weights, path: Path) -> File:
    """Which of the row's files this is: by its name, else by what it is made of."""
    for file in row.files:
        if file.name == path.name:
            return file
    with path.open("rb") as read:
        pickled = read.read(2) in (b"PK", b"\x80\x02")
    alike = [f for f in row.files if f.name.endswith(".safetensors") != pickled] or list(row.files)
    if len(alike) > 1:
        digest = _sha256(path)
        return next((f for f in alike if f.sha256 == digest), None) or next(
            (f for f in alike if not f.sha256), alike[0]
        )
    return alike[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- fetch ------------------------------------------------------------------------------------


def fetch(row: Weights, folder: Path, source: Path | None = None, *, why_not: Callable[[], str]) -> list[Verdict]:
    """Put the files of a row in place, from a carried file or folder, else from the hub; what is wrong stays out.

    source   a file of weights (with its config files beside it), or a folder that holds them, at any depth
    why_not  says why the hub cannot be asked; empty when it can

    A file that is in place already and right is left alone. Returns what was found in place at the end. Raises
    BrokenWeights when a file is not the right one, WeightsMissing when one is not to be had, StorageFull when it
    cannot be written.
    """
    if source is None:
        present = verify(row, folder)
        if all(v.state == "ok" for v in present):
            return present
        return _download(row, folder, why_not)
    if not source.exists():
        raise WeightsMissing(f"{source} is not there. Give the file or the folder that was carried here")
    weights, configs = _carried(row, source)
    return _place(row, folder, weights, configs)


def _carried(row: Weights, source: Path) -> tuple[Path, list[Path]]:
    """The weights and the config files among what was carried, all of them found right."""
    files = [source] if source.is_file() else list(_files_below(source))
    names = [f.name for f in row.files]
    named = sorted((p for p in files if p.name in names), key=lambda p: names.index(p.name))
    others = [p for p in files if p not in named and (source.is_file() or p.suffix != ".json")]
    refused: Verdict | None = None
    weights: Path | None = None
    for path in named + others:
        verdict = judge(row, path)
        if verdict.state == "ok":
            weights = path
            break
        if path in named or source.is_file():
            refused = refused or verdict
    if weights is None and refused is not None:
        raise BrokenWeights(refused.what.rstrip("."), cut=refused.state == "truncated")
    if weights is None:
        raise WeightsMissing(
            f"nothing in {source} holds the weights of {row.key}: wanted {' or '.join(names)}, {_had_from(row)}"
        )
    configs = [weights.parent / name for name in row.config]
    for path in configs:
        verdict = _judge_config(row, path)
        if verdict.state != "ok":
            raise WeightsMissing(f"beside the weights in {weights.parent}, {verdict.what.rstrip('.')}, and try again")
    return weights, configs


def _download(row: Weights, folder: Path, why_not: Callable[[], str]) -> list[Verdict]:
    get = how_to_get(row, folder)
    if not row.hub:
        raise WeightsMissing(f"{row.key} is not to be had from the hub. {get}, or give it with --from")
    if reason := why_not():
        raise WeightsMissing(f"{row.key} cannot be downloaded ({reason}). {get}, or give them with --from")
    from huggingface_hub import hf_hub_download

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        try:
            for name in (*row.config, row.files[0].name):
                hf_hub_download(row.hub, name, local_dir=scratch)
        except Exception as error:  # whatever the hub client raises: refused, gone, cut off
            raise WeightsMissing(
                f"{row.key}: the download from {row.hub} failed ({type(error).__name__}). {get}, or give them with "
                "--from"
            ) from error
        return _place(row, folder, *_carried(row, Path(scratch) / row.files[0].name))


def _place(row: Weights, folder: Path, weights: Path, configs: list[Path]) -> list[Verdict]:
    for path in configs:
        _copy(path, folder / row.folder / path.name)
    _copy(weights, folder / row.folder / _form(row, weights).name)
    return verify(row, folder)


def _copy(source: Path, place: Path) -> None:
    """Copy beside the place, down to the disk, then rename: a copy that is cut off is never taken for the file."""
    if place.exists() and place.samefile(source):
        return
    aside = place.with_name(f".{place.name}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as read, aside.open("wb") as write:
            shutil.copyfileobj(read, write, CHUNK)
            write.flush()
            os.fsync(write.fileno())
        aside.replace(place)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        cure = "free some space" if is_disk_full(error) else f"check that {place.parent} may be written to"
        raise StorageFull(f"{place} could not be written ({error.strerror or error}); {cure} and try again") from error
