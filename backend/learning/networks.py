"""Networks whose published weights use other tensor names: how to build them and how to rename the tensors.

Each consists of a function () -> module without its head, and a function that renames the tensors of a published
file to those of the module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import: only inside functions
    import torch

Tensors = dict[str, "torch.Tensor"]

# The image tower in BiomedCLIP's open_clip_config.json; the text tower is not built.
BIOMEDCLIP_VISION: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
}

# Children of torchvision's ResNet by number: RadImageNet's files number them, in a Sequential called `backbone`.
RESNET_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Published:
    """A network that is built here and filled from a file with other tensor names.

    build   () -> the network without its head, random weights
    rename  tensors by their names in the file -> by their names in the network; unused ones may stay
    """

    build: Callable[[], Any]
    rename: Callable[[Tensors], Tensors]


def resnet50() -> Any:
    """ResNet-50 (He et al. 2015) without its head: (N, 3, H, W) -> (N, 2048)."""
    import timm

    return timm.create_model("resnet50", pretrained=False, num_classes=0)


def from_radimagenet(tensors: Tensors) -> Tensors:
    """From `backbone.4.0.conv1.weight` as published; torchvision's names are accepted too."""
    renamed = {}
    for name, value in tensors.items():
        number, _, rest = name.removeprefix("backbone.").partition(".")
        renamed[f"{RESNET_CHILDREN.get(number, number)}.{rest}" if rest else name] = value
    return renamed


def densenet121() -> Any:
    """One-channel DenseNet-121 (Huang et al. 2016) without its head: (N, 1, H, W) -> (N, 1024).

    Equals TorchXRayVision's `features2`: the last feature map after ReLU and average pooling.
    """
    import timm

    return timm.create_model("densenet121", pretrained=False, num_classes=0, in_chans=1)


def as_published(tensors: Tensors) -> Tensors:
    """The names in the file are those in the network."""
    return dict(tensors)


def mobile_sam() -> Any:
    """MobileSAM's image encoder (Zhang et al. 2023), averaged over the image: (N, 3, H, W) -> (N, 256).

    TinyViT-5M (Wu et al. 2022) without downsampling in its last stage, and SAM's neck. H, W: multiples of 16.
    """
    import timm
    from timm.layers.norm import LayerNorm2d
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            trunk: Any = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0, global_pool="")
            trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
            self.patch_embed, self.stages = trunk.patch_embed, trunk.stages
            self.neck = nn.Sequential(
                nn.Conv2d(320, 256, 1, bias=False),
                LayerNorm2d(256, eps=1e-6),
                nn.Conv2d(256, 256, 3, padding=1, bias=False),
                LayerNorm2d(256, eps=1e-6),
            )

        def encoded(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.neck(self.stages(self.patch_embed(x)))
            return found

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.encoded(x).mean(dim=(2, 3))

    return Encoder()


def from_mobile_sam(tensors: Tensors) -> Tensors:
    """From `image_encoder.layers.1.blocks.0.local_conv.c.weight` as published, without the decoder."""
    renamed = {}
    for name, value in tensors.items():
        if not name.startswith("image_encoder."):
            continue
        parts = ["conv" if part == "c" else part for part in name.split(".")[1:]]
        if parts[:2] == ["patch_embed", "seq"]:
            parts[1:3] = ["conv1" if parts[2] == "0" else "conv2"]  # 1 is the activation between them
        elif parts[0] == "layers":  # published stages end with downsampling, timm's begin with it
            down = parts[2] == "downsample"
            parts[:2] = ["stages", str(int(parts[1]) + down)]
        renamed[".".join(parts)] = value
    return renamed


def efficientnet_lite0() -> Any:
    """EfficientNet-Lite0 (Tan & Le 2019, for phones) without its head: (N, 3, H, W) -> (N, 1280)."""
    import timm

    return timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)


def from_efficientnet_lite0(tensors: Tensors) -> Tensors:
    """From `_blocks.0._depthwise_conv.weight` as published; both list the same tensors, from first to last layer."""
    names = list(wanted_tensors("efficientnet-lite0"))
    return dict(zip(names, tensors.values(), strict=False)) if "_conv_stem.weight" in tensors else tensors


def biomedclip() -> Any:
    """The image tower of BiomedCLIP (Zhang et al. 2023), a ViT-B/16: (N, 3, 224, 224) -> (N, 512)."""
    from open_clip.model import _build_vision_tower

    return _build_vision_tower(BIOMEDCLIP_VISION["embed_dim"], BIOMEDCLIP_VISION["vision_cfg"])


def from_open_clip(tensors: Tensors) -> Tensors:
    """From a whole CLIP model as open_clip stores it: the image tower is below `visual.`."""
    return {name.removeprefix("visual."): value for name, value in tensors.items() if name.startswith("visual.")}


def scribble_prompt() -> Any:
    """ScribblePrompt-UNet (Wong et al. 2024): (N, 5, H, W) -> logits (N, 1, H, W); H, W: multiples of 16."""
    import torch
    from torch import nn

    width, depth = 192, 4

    def convolution(inputs: int, outputs: int, *, last: bool = False) -> Any:
        side = 1 if last else 3
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, side, padding=side // 2)]
        return nn.ModuleDict({"conv": nn.Sequential(*layers if last else [*layers, nn.PReLU()])})

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.downs = nn.ModuleList([convolution(width if level else 5, width) for level in range(depth)])
            self.bottleneck = convolution(width, width)
            twice = nn.UpsamplingBilinear2d(scale_factor=2)
            self.ups = nn.ModuleList([one for _ in range(depth) for one in (twice, convolution(2 * width, width))])
            self.final_conv = convolution(width, 1, last=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            levels, ups, downs = [], list[Any](self.ups), list[Any](self.downs)
            for down in downs:
                levels.append(down["conv"](x))
                x = nn.functional.max_pool2d(levels[-1], 2)
            x = self.bottleneck["conv"](x)
            for twice, up in zip(ups[::2], ups[1::2], strict=True):
                x = up["conv"](torch.cat([levels.pop(), twice(x)], 1))
            found: torch.Tensor = self.final_conv["conv"](x)
            return found

    return UNet()


SAM_TENSORS: dict[str, tuple[int, ...]] = {
    "shared_image_embedding.positional_embedding": (2, 128),
    "vision_encoder.pos_embed": (1, 64, 64, 768),
    "vision_encoder.layers.0.attn.qkv.weight": (2304, 768),
    "vision_encoder.layers.11.mlp.lin2.weight": (768, 3072),
    "vision_encoder.neck.conv2.weight": (256, 256, 3, 3),
    "prompt_encoder.mask_embed.conv3.weight": (256, 16, 1, 1),
    "mask_decoder.transformer.layers.1.cross_attn_image_to_token.q_proj.weight": (128, 256),
    "mask_decoder.iou_prediction_head.proj_out.weight": (4, 256),
}
SAM2_TENSORS: dict[str, tuple[int, ...]] = {
    "no_memory_embedding": (1, 1, 256),
    "shared_image_embedding.positional_embedding": (2, 128),
    "vision_encoder.backbone.pos_embed": (1, 96, 7, 7),
    "vision_encoder.backbone.blocks.11.attn.qkv.weight": (2304, 768),
    "mask_decoder.conv_s0.weight": (32, 256, 1, 1),
    "mask_decoder.pred_obj_score_head.proj_out.weight": (1, 256),
}
BUILT_BY_LIBRARY = {"sam-vit-base": SAM_TENSORS, "sam2-hiera-tiny": SAM2_TENSORS}  # some of their tensors
NETWORKS = {
    "biomedclip": Published(biomedclip, from_open_clip),
    "radimagenet": Published(resnet50, from_radimagenet),
    "torchxrayvision": Published(densenet121, as_published),
    "mobilesam": Published(mobile_sam, from_mobile_sam),
    "efficientnet-lite0": Published(efficientnet_lite0, from_efficientnet_lite0),
    "scribbleprompt": Published(scribble_prompt, as_published),
}


@lru_cache
def wanted_tensors(network: str) -> Tensors:
    """The tensors that a network of NETWORKS or timm needs, some of those BUILT_BY_LIBRARY; shapes only."""
    import timm
    import torch

    with torch.device("meta"):
        if network in BUILT_BY_LIBRARY:
            return {name: torch.empty(shape) for name, shape in BUILT_BY_LIBRARY[network].items()}
        published = NETWORKS.get(network)
        built = published.build() if published else timm.create_model(network, pretrained=False, num_classes=0)
        state: Tensors = built.state_dict()
    return state


def renamed(network: str, tensors: Tensors) -> Tensors:
    """Tensors of a published file under the names the network uses."""
    return NETWORKS[network].rename(tensors) if network in NETWORKS else tensors


def misfits(wanted: Tensors, tensors: Tensors) -> list[str]:
    """Names of wanted tensors that are missing or have another shape; batch counters may be missing."""
    return [
        name
        for name, value in wanted.items()
        if not name.endswith("num_batches_tracked") and (name not in tensors or tensors[name].shape != value.shape)
    ]
