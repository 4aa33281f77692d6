"""Random numbers that only the code inside a `with` block sees, so that other threads of the process change nothing.

torch has one random generator, and one switch for deterministic kernels, for the whole process. Whoever sets and
restores them disturbs the trainings of other threads, and is disturbed by them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_lock = threading.Lock()
_inside = 0  # number of blocks of `deterministic_kernels` being run
_before = (False, False, False)  # torch's switches when the first of them began


class OwnRandom(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """This thread's random operations draw from numbers that depend on `parts` alone; the global ones stay untouched.

    Covers what torch computes on a CPU. On a GPU, dropout inside a network still uses the global generator.
    """

    def __init__(self, *parts: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._number = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            first = args[0] if args and isinstance(args[0], torch.Tensor) else None
            device = torch.device(kwargs.get("device") or (first.device if first is not None else "cpu"))
            seeded = _with_generator(func)
            if device.type != "meta" and _takes_generator(seeded):  # "meta" tensors have shapes only, no numbers
                func, kwargs["generator"] = seeded, self._generator(device)
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._number)
        return self._generators[device]


class Uninitialised(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Random initialisation is skipped: for a network whose weights are read from a file right afterwards.

    Other than under the device "meta", buffers that the file does not contain are computed.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and func._schema.is_mutable:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Kernels that give the same result every time. The last block to end restores torch's switches."""
    global _inside, _before
    with _lock:
        if _inside == 0:
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
            _before = (torch.are_deterministic_algorithms_enabled(), warn_only, fill)
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.use_deterministic_algorithms(_before[0], warn_only=_before[1])
                torch.utils.deterministic.fill_uninitialized_memory = _before[2]  # type: ignore[attr-defined]


def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def _with_generator(func: Any) -> Any:
    """The overload of a random operation that takes a generator; the operation itself if there is none."""
    if _takes_generator(func):
        return func
    packet, name = func.overloadpacket, func._overloadname
    wanted = "generator" if name == "default" else f"{name}_generator"
    return getattr(packet, wanted) if wanted in packet.overloads() else func
