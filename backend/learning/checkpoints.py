"""Read weight files: detect the format, detect truncation, load the tensors. Nothing in them is executed.

Reads safetensors, and `torch.save` files with `weights_only=True`. Some published files hold a whole network
instead of its weights: only the tensors are read, and the classes it names are neither imported nor run.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import BrokenWeights
from backend.json_text import parse_json

if TYPE_CHECKING:  # torch takes seconds to import: only inside functions
    import torch

HEADER = 100_000_000  # maximum header size of safetensors, in bytes
OLD_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # start of torch.save files before torch 1.6
NESTED = ("state_dict", "model", "model_state_dict")  # keys under which training checkpoints store the weights
NOT_WEIGHTS = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself; fetch it with Git LFS"),
    (b"<!DOCTYPE", "it is a web page, perhaps a login page or an error page"),
    (b"<html", "it is a web page, perhaps a login page or an error page"),
    (b"\x89HDF", "it is a Keras file (HDF5); use the PyTorch file of the same network"),
    (b"\x1f\x8b", "it is a gzip archive; unpack it first"),
)


def check_whole(path: Path) -> None:
    """Raise BrokenWeights when the file is truncated (`cut` is True) or is not a weight file.

    Checks the beginning and the end only, so it is fast for files of any size. Detecting changes in between takes
    a checksum.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(64)
        if not begin:
            raise BrokenWeights(f"{path} is empty", cut=True)
        for magic, what in NOT_WEIGHTS:
            if begin.lower().startswith(magic.lower()):
                raise BrokenWeights(f"{path} contains no weights: {what}")
        if begin.startswith(b"PK\x03\x04"):
            if not zipfile.is_zipfile(path):  # the table of contents is at the end
                raise BrokenWeights(f"{path} is truncated: it ends after {size:,} bytes", cut=True)
            return
        if begin.startswith(OLD_MAGIC):
            return  # this format does not store its length; only reading detects truncation
        if len(begin) < 9 or begin[8:9] != b"{":
            raise BrokenWeights(f"{path} contains no weights: it is neither a safetensors nor a torch.save file")
        (length,) = struct.unpack("<Q", begin[:8])
        if length > HEADER:
            raise BrokenWeights(f"{path} contains no weights: it is neither a safetensors nor a torch.save file")
        file.seek(8)
        header = file.read(length)
    wanted = 8 + length
    if len(header) == length:
        try:
            entries = parse_json(header)
            wanted += max((e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BrokenWeights(f"{path} contains no weights: its header is damaged") from error
    if size < wanted:
        raise BrokenWeights(f"{path} is truncated: it has {size:,} of at least {wanted:,} bytes", cut=True)
    if size > wanted:
        raise BrokenWeights(f"{path} is damaged: it has {size:,} bytes, but its header declares {wanted:,}")


def read_tensors(path: Path, *, device: str = "cpu", below: str = "") -> dict[str, torch.Tensor]:
    """All tensors by name, or those whose names begin with `below`. The device "meta" reads shapes only.

    Finds the weights inside training checkpoints and removes the "module." prefix of parallel training.
    Raises BrokenWeights with the reason, and FileNotFoundError.
    """
    check_whole(path)
    with path.open("rb") as file:
        old_or_zip = file.read(4)[:2] in (b"PK", b"\x80\x02")
    try:
        found = _read_torch(path, device) if old_or_zip else _read_safetensors(path, device, below)
    except (EOFError, RuntimeError) as error:
        cut = isinstance(error, EOFError) or "unexpected EOF" in str(error) or "failed finding central" in str(error)
        what = "is truncated" if cut else f"cannot be read ({_short(error)})"
        raise BrokenWeights(f"{path} {what}: it has {os.path.getsize(path):,} bytes", cut=cut) from error
    except Exception as error:  # libraries raise many types on other content
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise BrokenWeights(
                f"{path} contains more than weights: it refers to code ({code[1]}), which is not run here. "
                "Store the network's state_dict() instead, on a machine where the file is trusted"
            ) from error
        raise BrokenWeights(f"{path} cannot be read as weights ({type(error).__name__}: {_short(error)})") from error
    plain = {name.removeprefix("module."): value for name, value in found.items()}
    return {name: value for name, value in plain.items() if name.startswith(below)}


def _read_safetensors(path: Path, device: str, below: str) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.removeprefix("module.").startswith(below)]  # noqa: SIM118
        if device == "meta":
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
        return {name: file.get_tensor(name) for name in names}


def _read_torch(path: Path, device: str) -> dict[str, torch.Tensor]:
    import torch

    named = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    placeholders: list[Any] = [(type("Part", (_Part,), {}), name) for name in named if _of_a_network(name)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stored class has other source code than ours
        with torch.serialization.safe_globals(placeholders), path.open("rb") as file:  # format by content, not by name
            loaded = torch.load(file, map_location=device, weights_only=True)
    if isinstance(loaded, _Part):
        return dict(loaded.tensors())
    for key in NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise ValueError(f"it contains a {type(loaded).__name__}, not a table of tensors")
    return {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}


class _Part:
    """Placeholder for a class of a stored network: holds the stored state, without behaviour."""

    def tensors(self, prefix: str = "") -> Any:
        for kind in ("_parameters", "_buffers"):
            for name, value in (self.__dict__.get(kind) or {}).items():
                if value is not None:
                    yield prefix + name, value.detach()
        for name, part in (self.__dict__.get("_modules") or {}).items():
            if isinstance(part, _Part):
                yield from part.tensors(f"{prefix}{name}.")


def _of_a_network(name: str) -> bool:
    """Whether this names a class of network modules, not a function that builds or calls something."""
    return name.startswith(("torch.nn.modules.", "torchvision.models.", "torchxrayvision.models."))


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
