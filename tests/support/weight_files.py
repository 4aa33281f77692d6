"""Weight files in their published formats, with random numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

NORMALISATION: dict[str, Any] = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}


def timm_folder(folder: Path, architecture: str = "test_resnet", size: tuple[int, int] = (64, 96)) -> Path:
    """A folder in timm's own format."""
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    model = timm.create_model(architecture, pretrained=False, num_classes=5)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": architecture,
        "num_classes": 5,
        "pretrained_cfg": {"input_size": [3, *size], "classifier": "fc", **NORMALISATION},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def radimagenet_file(path: Path) -> Path:
    """Torchvision's ResNet-50 without its head, as BMEII-AI/RadImageNet's example stores it: `backbone.0.weight`."""
    import torchvision

    torch.manual_seed(2)
    backbone = torch.nn.Sequential(*list(torchvision.models.resnet50(weights=None).children())[:9])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"backbone.{name}": value for name, value in backbone.state_dict().items()}, path)
    return path


def torchxrayvision_state() -> dict[str, torch.Tensor]:
    """Torchvision's DenseNet-121 of one channel, with TorchXRayVision's 18 outputs and thresholds."""
    import torchvision

    torch.manual_seed(3)
    network = torchvision.models.densenet121(weights=None, num_classes=18)
    network.features.conv0 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    return {**network.state_dict(), "op_threshs": torch.zeros(18)}


def mobile_sam_state() -> dict[str, torch.Tensor]:
    """The tensors of MobileSAM's image encoder under their published names, and one of its decoder."""
    torch.manual_seed(4)
    state: dict[str, torch.Tensor] = {}

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(width) + 0.5, torch.randn(width) * 0.1

    def conv(name: str, width: int, inner: int, side: int) -> None:
        state[f"{name}.c.weight"] = torch.randn(width, inner, side, side) / (inner * side * side) ** 0.5
        norm(f"{name}.bn", width)
        state[f"{name}.bn.running_mean"] = torch.randn(width) * 0.1
        state[f"{name}.bn.running_var"] = torch.rand(width) + 0.5
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(1)

    def linear(name: str, width: int, inner: int) -> None:
        state[f"{name}.weight"] = torch.randn(width, inner) / inner**0.5
        state[f"{name}.bias"] = torch.randn(width) * 0.1

    conv("patch_embed.seq.0", 32, 3, 3)
    conv("patch_embed.seq.2", 64, 32, 3)
    widths = (64, 128, 160, 320)
    for stage, (width, depth, heads, window) in enumerate(zip(widths, DEPTHS, HEADS, WINDOWS, strict=True)):
        for block in range(depth):
            here = f"layers.{stage}.blocks.{block}"
            if stage == 0:
                conv(f"{here}.conv1", 4 * width, width, 1)
                conv(f"{here}.conv2", 4 * width, 1, 3)
                conv(f"{here}.conv3", width, 4 * width, 1)
                continue
            state[f"{here}.attn.attention_biases"] = torch.randn(heads, window * window) * 0.1
            norm(f"{here}.attn.norm", width)
            linear(f"{here}.attn.qkv", 3 * width, width)
            linear(f"{here}.attn.proj", width, width)
            norm(f"{here}.mlp.norm", width)
            linear(f"{here}.mlp.fc1", 4 * width, width)
            linear(f"{here}.mlp.fc2", width, 4 * width)
            conv(f"{here}.local_conv", width, 1, 3)
        if stage < 3:
            conv(f"layers.{stage}.downsample.conv1", widths[stage + 1], width, 1)
            conv(f"layers.{stage}.downsample.conv2", widths[stage + 1], 1, 3)
            conv(f"layers.{stage}.downsample.conv3", widths[stage + 1], widths[stage + 1], 1)
    norm("norm_head", 320)
    linear("head", 1000, 320)
    state["neck.0.weight"] = torch.randn(256, 320, 1, 1) / 320**0.5
    norm("neck.1", 256)
    state["neck.2.weight"] = torch.randn(256, 256, 3, 3) / (256 * 9) ** 0.5
    norm("neck.3", 256)
    encoder = {f"image_encoder.{name}": value for name, value in state.items()}
    return {**encoder, "mask_decoder.iou_token.weight": torch.zeros(1, 256)}


DEPTHS, HEADS, WINDOWS = (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)


def mobile_sam_forward(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The output of MobileSAM's image encoder, implemented from its description without timm."""
    from torch.nn import functional as F

    def at(name: str) -> torch.Tensor:
        return state[f"image_encoder.{name}"]

    def conv(name: str, x: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight = at(f"{name}.c.weight")
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
        bn = (at(f"{name}.bn.{part}") for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *bn)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], at(f"{name}.weight"), at(f"{name}.bias"))

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, at(f"{name}.weight"), at(f"{name}.bias"))

    def attention(name: str, x: torch.Tensor, heads: int, window: int) -> torch.Tensor:
        points = [(row, column) for row in range(window) for column in range(window)]
        offsets: dict[tuple[int, int], int] = {}
        index = [offsets.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(offsets)) for a in points for b in points]
        bias = at(f"{name}.attention_biases")[:, index].view(heads, window**2, window**2)
        n, length, width = x.shape
        qkv = linear(f"{name}.qkv", norm(f"{name}.norm", x)).view(n, length, heads, -1)
        q, k, v = (part.transpose(1, 2) for part in qkv.split(width // heads, dim=3))
        weights = (q @ k.transpose(-2, -1) * (width // heads) ** -0.5 + bias).softmax(dim=-1)
        return linear(f"{name}.proj", (weights @ v).transpose(1, 2).reshape(n, length, width))

    def block(name: str, x: torch.Tensor, heads: int, window: int) -> torch.Tensor:
        n, width, rows, columns = x.shape
        down, right = -rows % window, -columns % window
        cells = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, right, 0, down))
        high, wide = (rows + down) // window, (columns + right) // window
        cells = cells.view(n, high, window, wide, window, width).transpose(2, 3).reshape(-1, window**2, width)
        seen = attention(f"{name}.attn", cells, heads, window)
        seen = seen.view(n, high, wide, window, window, width).transpose(2, 3)
        seen = seen.reshape(n, rows + down, columns + right, width)[:, :rows, :columns]
        x = conv(f"{name}.local_conv", x + seen.permute(0, 3, 1, 2), groups=width)
        flat = x.permute(0, 2, 3, 1)
        flat = flat + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.mlp.norm", flat))))
        return flat.permute(0, 3, 1, 2)

    def layer_norm_2d(name: str, x: torch.Tensor) -> torch.Tensor:
        u = x.mean(1, keepdim=True)
        x = (x - u) / ((x - u).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return at(f"{name}.weight")[:, None, None] * x + at(f"{name}.bias")[:, None, None]

    x = conv("patch_embed.seq.2", F.gelu(conv("patch_embed.seq.0", x, 2)), 2)
    for stage, (depth, heads, window) in enumerate(zip(DEPTHS, HEADS, WINDOWS, strict=True)):
        for number in range(depth):
            here = f"layers.{stage}.blocks.{number}"
            if stage:
                x = block(here, x, heads, window)
                continue
            inner = F.gelu(conv(f"{here}.conv1", x))
            inner = F.gelu(conv(f"{here}.conv2", inner, groups=inner.shape[1]))
            x = F.gelu(x + conv(f"{here}.conv3", inner))
        if stage < 3:
            here = f"layers.{stage}.downsample"
            x = F.gelu(conv(f"{here}.conv1", x))
            x = F.gelu(conv(f"{here}.conv2", x, stride=1 if stage == 2 else 2, groups=x.shape[1]))
            x = conv(f"{here}.conv3", x)
    x = layer_norm_2d("neck.1", F.conv2d(x, at("neck.0.weight")))
    return layer_norm_2d("neck.3", F.conv2d(x, at("neck.2.weight"), padding=1))


def scribble_prompt_state(channel: int = 0, *, at_random: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of ScribblePrompt-UNet under their published names.

    channel    of the five inputs: the network draws where it is above a half
    at_random  random numbers instead
    """
    torch.manual_seed(6)
    width, depth = 192, 4
    shapes = {f"downs.{level}": (width, width if level else 5, 3) for level in range(depth)}
    shapes |= {f"ups.{2 * level + 1}": (width, 2 * width, 3) for level in range(depth)}
    shapes |= {"bottleneck": (width, width, 3), "final_conv": (1, width, 1)}
    state: dict[str, torch.Tensor] = {}
    for name, (outputs, inputs, side) in shapes.items():
        scale = 1 / (inputs * side * side) ** 0.5 if at_random else 0.0
        state[f"{name}.conv.0.weight"] = torch.randn(outputs, inputs, side, side) * scale
        state[f"{name}.conv.0.bias"] = torch.randn(outputs) * scale
        if name != "final_conv":
            state[f"{name}.conv.1.weight"] = torch.full((1,), 0.25 if at_random else 1.0)
    if not at_random:  # through the first level and its skip connection
        state["downs.0.conv.0.weight"][0, channel, 1, 1] = 1
        state[f"ups.{2 * depth - 1}.conv.0.weight"][0, 0, 1, 1] = 1
        state["final_conv.conv.0.weight"][0, 0] = 1
        state["final_conv.conv.0.bias"][0] = -0.5
    return state


def scribble_prompt_forward(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """ScribblePrompt-UNet as its authors describe it."""
    from torch.nn import functional as f

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        found = f.conv2d(x, state[f"{name}.conv.0.weight"], state[f"{name}.conv.0.bias"], padding=1)
        return f.prelu(found, state[f"{name}.conv.1.weight"])

    skips = []
    for level in range(4):
        x = block(f"downs.{level}", x)
        skips.append(x)
        x = f.max_pool2d(x, 2)
    x = block("bottleneck", x)
    for level in range(4):
        x = f.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = block(f"ups.{2 * level + 1}", torch.cat([skips[3 - level], x], 1))
    return f.conv2d(x, state["final_conv.conv.0.weight"], state["final_conv.conv.0.bias"])


def scribble_prompt_file(folder: Path, channel: int = 0) -> Path:
    """A file of ScribblePrompt-UNet in its place below the weights folder."""
    path = folder / "scribbleprompt" / "ScribblePrompt_unet_v1_nf192_res128.pt"
    path.parent.mkdir(parents=True)
    torch.save(scribble_prompt_state(channel), path)
    return path


def mobile_sam_whole() -> dict[str, torch.Tensor]:
    """All tensors of MobileSAM under their published names: random numbers."""
    from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

    torch.manual_seed(7)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    parts = {
        "prompt_encoder": PromptEncoder(256, (64, 64), (1024, 1024), 16),
        "mask_decoder": MaskDecoder(transformer_dim=256, transformer=transformer),
    }
    decoder = {f"{part}.{name}": value for part, one in parts.items() for name, value in one.state_dict().items()}
    return mobile_sam_state() | decoder


def sam_folder(folder: Path, kind: str = "sam", *, bright: bool = False) -> Path:
    """A small network of this kind in the library's own format: config.json and model.safetensors.

    bright  it draws what is bright, whatever the prompts; else its weights are random
    """
    import transformers

    torch.manual_seed(8)
    if kind == "sam2":
        backbone = {
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 2],
            "blocks_per_stage": [1, 1, 2, 1],
            "global_attention_blocks": [3],
            "hidden_size": 8,
        }
        vision = {
            "backbone_config": transformers.Sam2HieraDetConfig(**backbone),
            "backbone_channel_list": [64, 32, 16, 8],
        }
        transformers.Sam2Model(transformers.Sam2Config(vision_config=vision)).save_pretrained(folder)
        return folder
    vision = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 0 if bright else 1, "mlp_dim": 32}
    model = transformers.SamModel(transformers.SamConfig(vision_config=vision))
    if bright:
        with torch.no_grad():
            _draw_what_is_bright(model)
    model.save_pretrained(folder)
    return folder


def _draw_what_is_bright(model: Any) -> None:
    """The mean of each patch in the first channel, to the mask; nothing else has weights."""
    for name, value in model.named_parameters():
        value.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    encoder, decoder = model.vision_encoder, model.mask_decoder
    encoder.patch_embed.projection.weight[0] = 1 / (3 * 16 * 16)
    encoder.patch_embed.projection.bias[0] = -0.3
    encoder.neck.conv1.weight[0, 0] = 1
    encoder.neck.conv2.weight[0, 0, 1, 1] = 1
    decoder.upscale_conv1.weight[0, 0] = 1
    decoder.upscale_conv2.weight[0, 0] = 1
    decoder.upscale_conv2.bias[0] = -1
    for one in decoder.output_hypernetworks_mlps:
        one.proj_out.bias[0] = 1
