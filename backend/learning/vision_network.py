"""An embedder that computes vectors with a vision network, on a CPU or a GPU."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import BadSetting
from backend.learning.embedding import BatchedEmbedder, NotFinite, Prepared, checked_image
from backend.learning.preprocessing import Preprocessing, Uint8Image

if TYPE_CHECKING:  # torch takes seconds to import: only inside functions
    import torch

log = logging.getLogger("scanqueue.embedders")


class Network(BatchedEmbedder):
    """A vision network without its head, in evaluation mode, on one device.

    On a GPU it computes in bfloat16 with full batches and deterministic kernels, so that a vector depends on its
    image alone.
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
        return self.preprocessing.resized(checked_image(image, 0))

    def embed_prepared(self, prepared: Sequence[Prepared]) -> NDArray[np.float32]:
        vectors = np.empty((len(prepared), self.dim), dtype=np.float32)
        for begin in range(0, len(prepared), self.batch):
            vectors[begin : begin + self.batch] = self._vectors(prepared[begin : begin + self.batch])
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise NotFinite(self.name, int(broken[0]))
        return vectors

    def ready(self, prepared: Sequence[Prepared]) -> torch.Tensor:
        """One batch as network input: (N, channels, H, W) float32 on its device."""
        import torch

        if self._device.type != "cuda":  # one table look-up per pixel and channel
            height, width = self.preprocessing.size
            values = np.empty((len(prepared), height, width, self.preprocessing.channels), np.float32)
            for filled, image in zip(values, prepared, strict=True):
                for channel, table in enumerate(self._table):
                    filled[:, :, channel] = table[image if image.ndim == 2 else image[:, :, channel]]
            return torch.from_numpy(values).permute(0, 3, 1, 2)
        gray = all(image.ndim == 2 for image in prepared)  # expanded on the GPU: a third of the transfer
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

    def intermediates(self, squares: NDArray[np.uint8], stages: Sequence[int]) -> list[torch.Tensor]:
        """The outputs (N, C, H, W) of some stages, finest first, for a timm network.

        squares  (N, S, S, 3) uint8, of any S that the network accepts
        """
        import torch

        with torch.inference_mode():
            ready = self._scaled(torch.from_numpy(squares).to(self._device))
            model: Any = self._model
            found: list[torch.Tensor] = model.forward_intermediates(
                ready.contiguous(memory_format=torch.channels_last), indices=list(stages), intermediates_only=True
            )
            return found

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
    def _recorded(self) -> _CudaGraph | None:
        """On a GPU, the forward pass as a CUDA graph; None if unavailable."""
        import torch

        if self._device.type != "cuda":
            return None
        blank = self.ready([self.prepare(np.arange(64, dtype=np.uint8).reshape(8, 8))] * self.batch)
        try:
            recorded = _CudaGraph(self.forward, blank)
            same = torch.allclose(recorded(blank).float(), self.forward(blank).float(), rtol=1e-2, atol=1e-3)
        except RuntimeError as error:
            log.info("%s: no CUDA graph is available: %s", self.name, str(error).partition("\n")[0])
            return None
        return recorded if same else None


class _CudaGraph:
    """A forward pass recorded as a CUDA graph, for inputs of one shape, which avoids Python overhead.

    The output of one call is overwritten by the next.
    """

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], sample: torch.Tensor) -> None:
        import torch

        self._input = sample.clone()
        with torch.cuda.device(sample.device):
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):  # warm-up: lazy initialisation must happen before recording
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
