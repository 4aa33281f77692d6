"""Segment Anything and its relatives: published networks that draw masks from clicks, boxes and masks.

A lab has one if its files are in the weights folder. Their library, `transformers`, is the extra `sam`. An image is
encoded once, which takes seconds on a CPU; a click then costs the decoder alone. What it draws is fitted to the clicks
by `geodesic`, so that every click counts.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.errors import WeightsMissing
from backend.formats.pixels import Letterboxed, resized
from backend.learning.checkpoints import read_tensors
from backend.learning.clicks import MEDSAM, MOBILESAM, SAM, SAM2, Mask, Point
from backend.learning.clicks import SAM_SIDE as SIDE
from backend.learning.geodesic import Geodesic, Seeds
from backend.learning.networks import misfits, mobile_sam, renamed
from backend.learning.preprocessing import IMAGENET
from backend.learning.sam_library import without_library

if TYPE_CHECKING:  # torch takes seconds to import: only inside functions
    import torch

log = logging.getLogger("scanqueue.correction")

LOW = 256  # pixels of the square of masks, in and out
CERTAIN = 10.0  # logit of a pixel of the mask so far
STROKE = 3  # clicks that stand for a stroke
KEPT = 2**28  # bytes of encoded images in memory, of each network

Features = tuple["torch.Tensor", ...]  # coarsest last


@dataclass(frozen=True)
class Recipe:
    """What a network was trained on.

    squeezed  images are squeezed into the square; else their longer side fits, and the rest is black
    contrast  pixels are scaled to 0..1 from the darkest to the brightest; else as photographs of ImageNet
    boxes     it knows boxes only
    """

    squeezed: bool = False
    contrast: bool = False
    boxes: bool = False


RECIPES = {SAM: Recipe(), SAM2: Recipe(squeezed=True), MEDSAM: Recipe(True, True, True), MOBILESAM: Recipe()}


@dataclass
class Prompt:
    """One prompt, in pixels (x, y) of the square.

    mask  (LOW, LOW) logits of the mask so far
    """

    points: Sequence[tuple[float, float]] = ()
    inside: Sequence[bool] = ()
    box: tuple[float, float, float, float] | None = None
    mask: NDArray[np.float32] | None = None


class Sam:
    """One network with its published weights. For any thread.

    encode  a picture (1, 3, SIDE, SIDE) -> its features
    """

    def __init__(self, name: str, network: Any, encode: Callable[[torch.Tensor], Features], device: str) -> None:
        self.recipe = RECIPES[name]
        self.device = device
        self._network, self._encode = network.eval().requires_grad_(False).to(device), encode
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._lock = threading.Lock()
        self._aside = ThreadPoolExecutor(1, "sam")

    @classmethod
    def load(cls, name: str, file: Path, device: str = "cpu") -> Sam:
        """`file` has the weights; SAM, MedSAM and SAM 2 need their config.json beside it.

        Raises WeightsMissing when the extra is not installed, or a file is missing, damaged or another one.
        """
        try:
            import transformers
        except ImportError as error:
            raise WeightsMissing(without_library(file)) from error
        library: Any = transformers
        library.utils.logging.disable_progress_bar()
        try:
            if name == MOBILESAM:
                return cls(name, *_mobile_sam(file, device), device)
            kind = library.Sam2Model if name == SAM2 else library.SamModel
            network, told = kind.from_pretrained(file.parent, local_files_only=True, output_loading_info=True)
            if lacking := [*told["missing_keys"], *(one[0] for one in told["mismatched_keys"])]:
                raise ValueError(f"{len(lacking)} tensors are missing or have another shape (first: {lacking[0]})")
        except Exception as error:  # the library raises many types: damaged files, another config
            raise WeightsMissing(f"{file} does not contain the weights of {name}: {error}") from error
        return cls(name, network, lambda pixels: _listed(network.get_image_embeddings(pixels)), device)

    def tool(self, scan: Letterboxed, paths: Geodesic, *, patience: float | None = None) -> SamTool:
        """For the prompts on one scan, whose paths these are.

        patience  seconds that an answer waits for the image to be encoded; None: as long as it takes, and encode now
        """
        return SamTool(self, scan, paths, patience)

    def features(self, picture: NDArray[np.uint8]) -> Features:
        """The encoded picture, (SIDE, SIDE) or (SIDE, SIDE, 3): from memory, else computed."""
        key = hashlib.blake2b(picture.tobytes()).hexdigest()
        with self._lock:  # one at a time: it uses all cores
            if key not in self._kept:
                import torch

                with torch.inference_mode():
                    self._kept[key] = self._encode(self._ready(picture).to(self.device))
                while len(self._kept) > 1 and sum(map(_size, self._kept.values())) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def begin(self, picture: NDArray[np.uint8]) -> Future[Features]:
        """`features` in another thread."""
        return self._aside.submit(self.features, picture)

    def _ready(self, picture: NDArray[np.uint8]) -> torch.Tensor:
        """(1, 3, SIDE, SIDE) as the network was trained on; what is beside the image is 0."""
        import torch

        height, width = picture.shape[:2]
        channels = picture if picture.ndim == 3 else picture[:, :, None]
        values = np.asarray(np.broadcast_to(channels, (height, width, 3)), np.float32)
        if self.recipe.contrast:
            least, most = float(values.min()), float(values.max())
            values = (values - least) / max(most - least, 1e-6)
        else:
            mean, std = (np.asarray(one, np.float32) for one in IMAGENET[:2])
            values = np.asarray((values / 255 - mean) / std, np.float32)
        square = np.zeros((SIDE, SIDE, 3), np.float32)
        square[:height, :width] = values
        return torch.from_numpy(square).permute(2, 0, 1)[None]

    def logits(self, features: Features, prompt: Prompt) -> NDArray[np.float32]:
        """(LOW, LOW): of the mask that the network itself finds best, out of three if one click may mean several."""
        import torch

        given: dict[str, Any] = {}
        if prompt.points:
            given["input_points"] = torch.tensor([[prompt.points]], dtype=torch.float32, device=self.device)
            given["input_labels"] = torch.tensor([[prompt.inside]], dtype=torch.int64, device=self.device)
        if prompt.box is not None:
            given["input_boxes"] = torch.tensor([[prompt.box]], dtype=torch.float32, device=self.device)
        if prompt.mask is not None:
            given["input_masks"] = torch.from_numpy(prompt.mask)[None, None].to(self.device)
        several = len(prompt.points) == 1 and prompt.box is None and prompt.mask is None
        embeddings = list(features) if len(features) > 1 else features[0]
        with torch.inference_mode():
            found = self._network(image_embeddings=embeddings, multimask_output=several, **given)
        best = int(found.iou_scores[0, 0].argmax())
        return np.asarray(found.pred_masks[0, 0, best].float().cpu().numpy())


class SamTool:
    """A network on one scan."""

    def __init__(self, network: Sam, scan: Letterboxed, paths: Geodesic, patience: float | None) -> None:
        self._network, self._paths, self._patience = network, paths, patience
        self.height, self.width = scan.original_height, scan.original_width
        scale = SIDE / max(self.height, self.width)
        self._inner = (SIDE, SIDE)  # rows and columns of the square that the image fills
        if not network.recipe.squeezed:
            self._inner = max(1, round(self.height * scale)), max(1, round(self.width * scale))
        self._picture = resized(scan.pixels[scan.content], *self._inner)
        self._begun = network.begin(self._picture)
        if patience is None:
            self._begun.result()

    def mask(self, seeds: Seeds) -> Mask:
        """(H, W): the finding. Every click inside is in it, and every click outside is not.

        A mask that is there changes only around the clicks, as with the paths. With boxes, nothing outside them is in
        the finding.
        """
        if not seeds.given:
            return self._paths.mask(seeds)
        try:
            self._begun.result(self._patience)
            features = self._network.features(self._picture)
            drawn = [self._drawn(self._network.logits(features, one)) for one in self._prompts(seeds)]
        except TooLate:
            return self._paths.mask(seeds)
        except RuntimeError as error:  # no memory on the GPU, which a training may fill
            log.warning("the shortest paths answer a click: %s", str(error).partition("\n")[0])
            self._begun = self._network.begin(self._picture)
            return self._paths.mask(seeds)
        whole = np.asarray(np.logical_or.reduce(drawn))
        if seeds.boxes:
            whole = self._paths.within_boxes(whole, seeds)
        elif seeds.current is not None and seeds.current.any():
            whole = self._paths.near_prompts(whole, seeds.current, seeds)
        if not any((seeds.inside, seeds.outside, seeds.drawn_in, seeds.drawn_out)):
            return whole
        return self._paths.within_boxes(self._paths.mask(replace(seeds, boxes=[], current=whole)), seeds)

    def _prompts(self, seeds: Seeds) -> list[Prompt]:
        """One for each box; without boxes, one."""
        current = seeds.current if seeds.current is not None and seeds.current.any() else None
        if self._network.recipe.boxes:
            found = self._paths.mask(seeds)
            boxes = seeds.boxes or [found if found.any() else np.ones_like(found)]
            return [Prompt(box=self._box(one)) for one in boxes]
        points = [(point, True) for point in seeds.inside] + [(point, False) for point in seeds.outside]
        points += [(at, True) for stroke in seeds.drawn_in for at in _along(stroke)]
        points += [(at, False) for stroke in seeds.drawn_out for at in _along(stroke)]
        prompt = Prompt([self._at(at) for at, _ in points], [inside for _, inside in points])
        if seeds.boxes:
            return [replace(prompt, box=self._box(one)) for one in seeds.boxes]
        return [replace(prompt, mask=self._logits_of(current))] if current is not None else [prompt]

    def _at(self, point: Point) -> tuple[float, float]:
        """(x, y) in pixels of the square, whose centres are whole numbers."""
        rows, columns = self._inner
        return point[1] * columns / self.width - 0.5, point[0] * rows / self.height - 0.5

    def _box(self, mask: Mask) -> tuple[float, float, float, float]:
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        return (
            *self._at((float(rows[0]), float(columns[0]))),
            *self._at((float(rows[-1] + 1), float(columns[-1] + 1))),
        )

    def _logits_of(self, mask: Mask) -> NDArray[np.float32]:
        """A mask of the scan as the networks take it."""
        rows, columns = (max(1, round(one * LOW / SIDE)) for one in self._inner)
        small = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
        found = np.full((LOW, LOW), -CERTAIN, np.float32)
        found[:rows, :columns] = CERTAIN * (2 * small - 1)
        return found

    def _drawn(self, logits: NDArray[np.float32]) -> Mask:
        """The mask of the scan, from the logits of the square."""
        square = cv2.resize(logits, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        inner = np.ascontiguousarray(square[: self._inner[0], : self._inner[1]])
        return np.asarray(cv2.resize(inner, (self.width, self.height), interpolation=cv2.INTER_LINEAR) > 0)


def _along(stroke: Mask) -> list[Point]:
    """STROKE places on a stroke, away from its ends."""
    places = np.argwhere(stroke)
    shares = (np.arange(STROKE) + 0.5) / STROKE
    return [(float(row) + 0.5, float(column) + 0.5) for row, column in places[(shares * len(places)).astype(int)]]


def _listed(embeddings: Any) -> Features:
    return tuple(embeddings) if isinstance(embeddings, list | tuple) else (embeddings,)


def _size(features: Features) -> int:
    return sum(one.nelement() * one.element_size() for one in features)


def _mobile_sam(file: Path, device: str) -> tuple[Any, Callable[[torch.Tensor], Features]]:
    """Decoder and encoder of MobileSAM, whose decoder is that of SAM. Raises ValueError."""
    import transformers

    tensors = read_tensors(file)
    image = mobile_sam()
    network: Any = transformers.SamModel(
        transformers.SamConfig(vision_config={"num_hidden_layers": 0, "hidden_size": 16})
    )
    network.vision_encoder = None  # TinyViT instead
    for part, found in ((image, renamed(MOBILESAM, tensors)), (network, from_segment_anything(tensors))):
        if bad := misfits(part.state_dict(), found):
            raise ValueError(f"{len(bad)} tensors are missing or have another shape (first: {bad[0]})")
        part.load_state_dict({name: found.get(name, value) for name, value in part.state_dict().items()})
    image = image.eval().requires_grad_(False).to(device)
    return network, lambda pixels: (image.encoded(pixels),)


def from_segment_anything(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Prompt encoder and mask decoder under the names of `transformers`.

    Published as `mask_decoder.transformer.layers.0.norm1.weight` and alike.
    """
    renames = (
        ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
        ("prompt_encoder.point_embeddings.", "prompt_encoder.point_embed."),
        *((f"mask_downscaling.{n}.", f"mask_embed.{to}.") for n, to in zip((0, 1, 3, 4, 6), _EMBEDS, strict=True)),
        ("output_upscaling.0.", "upscale_conv1."),
        ("output_upscaling.1.", "upscale_layer_norm."),
        ("output_upscaling.3.", "upscale_conv2."),
        (".norm_final_attn.", ".layer_norm_final_attn."),
        *((f".norm{n}.", f".layer_norm{n}.") for n in range(1, 5)),
    )
    found = {}
    for name, value in tensors.items():
        if name.startswith("image_encoder."):
            continue
        for old, new in renames:
            name = name.replace(old, new)
        if "_mlps." in name or "iou_prediction_head" in name:  # three layers
            name = name.replace(".layers.0.", ".proj_in.").replace(".layers.2.", ".proj_out.")
            name = name.replace(".layers.1.", ".layers.0.")
        found[name] = value
    shared = "shared_image_embedding.positional_embedding"
    return found | {"prompt_encoder.shared_embedding.positional_embedding": found[shared]} if shared in found else found


_EMBEDS = ("conv1", "layer_norm1", "conv2", "layer_norm2", "conv3")
