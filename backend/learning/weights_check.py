"""Check weight files against the table: missing, truncated, renamed or wrong."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backend.errors import BrokenWeights
from backend.json_text import parse_json
from backend.learning.checkpoints import check_whole, read_tensors
from backend.learning.networks import misfits, renamed, wanted_tensors
from backend.learning.weights import WEIGHTS, File, Weights, found_file, how_to_get, place_of, where_published

SAM_KINDS = {"sam-vit-base": ("sam",), "sam2-hiera-tiny": ("sam2", "sam2_video")}  # values of model_type
LOOKED_AT = 2000  # maximum number of files searched for a missing one under another name


@dataclass(frozen=True)
class Verdict:
    """The result of checking one file.

    state  "ok", "missing", "truncated", "renamed" or "wrong"
    what   a sentence: what is wrong, and what to do
    """

    key: str
    state: str
    path: Path
    what: str

    @property
    def bad(self) -> bool:
        """A file exists but cannot be used as it is."""
        return self.state in ("truncated", "renamed", "wrong")

    def to_dict(self) -> dict[str, str]:
        return {"name": self.key, "state": self.state, "path": str(self.path), "what": self.what}


def verify(row: Weights, folder: Path, *, content: bool = True) -> list[Verdict]:
    """Check the files of a row in its package or below the weights folder, the weights first.

    content  False: skip the checksum, which takes a second or more per gigabyte
    """
    path = found_file(row, folder)
    if path is not None:
        found = [judge(row, path, content=content)]
    elif not row.package and (stray := _stray(row, folder)):
        place = folder / row.folder / matching_file(row, stray).name
        what = f"{stray} holds the weights of {row.key} under another name. Move it: they are expected at {place}"
        found = [Verdict(row.key, "renamed", stray, what)]
    else:
        place = (place_of(row, folder) or Path(row.package)) / row.files[0].name
        found = [Verdict(row.key, "missing", place, f"{place} is not there. {how_to_get(row, folder)}.")]
    there = path is not None or found[0].state == "renamed"
    return [*found, *(judge_config(row, folder / row.folder / name) for name in row.config if there)]


def judge(row: Weights, path: Path, *, content: bool = True) -> Verdict:
    """Whether a file, in any place, is the one that the row describes."""

    def verdict(state: str, what: str) -> Verdict:
        return Verdict(row.key, state, path, what)

    again = f"Replace it by the file of that name {where_published(row)}" if row.hub else f"Replace it by {row.source}"
    try:
        tensors = renamed(row.network, read_tensors(path, device="meta"))
    except BrokenWeights as error:
        if error.cut:
            return verdict("truncated", f"{error}. Copy all of it again: it should be about {row.megabytes} MB.")
        return verdict("wrong", f"{error}. {again}.")
    wanted = wanted_tensors(row.network)
    bad = misfits(wanted, tensors)
    if bad:
        other = _whose(path, row)
        told = (
            f"they are those of {other.key}, which belong in {other.folder}/"
            if other
            else f"{len(bad)} of {len(wanted)} tensors are missing or have another shape (first: {bad[0]})"
        )
        return verdict("wrong", f"{path} does not contain the weights of {row.key}: {told}. {again}.")
    known = matching_file(row, path).sha256
    if known and content:
        digest = _sha256(path)
        if digest != known:
            return verdict(
                "wrong",
                f"{path} has the tensors of {row.key}, but it is not the published file: its SHA-256 is {digest}, not "
                f"{known}. {again}.",
            )
        return verdict("ok", f"{path} is the published file: its SHA-256 matches the known one.")
    why = "was not computed" if known else "of the published file is not known"
    return verdict(
        "ok", f"{path} is complete and has the tensors of {row.key}; its values were not checked, as the SHA-256 {why}."
    )


def judge_config(row: Weights, path: Path) -> Verdict:
    get = f"Get it {where_published(row)} and put it there"
    if not path.is_file():
        return Verdict(row.key, "missing", path, f"{path} is not there. {get}.")
    try:
        config = parse_json(path.read_bytes())
        if row.network in SAM_KINDS:
            return _judge_sam_config(row, path, str(config["model_type"]), get)
        vision = config["model_cfg"]["vision_cfg"] if "model_cfg" in config else {}
        architecture = "" if vision else config["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{path} does not describe a network ({type(error).__name__}). {get}."
        return Verdict(row.key, "wrong", path, what)
    if not vision and architecture != row.network:
        what = f"{path} describes the network {architecture}, not {row.network}. {get}."
        return Verdict(row.key, "wrong", path, what)
    return Verdict(row.key, "ok", path, f"{path} describes the network.")


def _judge_sam_config(row: Weights, path: Path, kind: str, get: str) -> Verdict:
    wanted = SAM_KINDS[row.network]
    if kind in wanted:
        return Verdict(row.key, "ok", path, f"{path} describes the network.")
    return Verdict(row.key, "wrong", path, f"{path} describes the network {kind}, not {' or '.join(wanted)}. {get}.")


def _fits(row: Weights, path: Path) -> bool:
    """Whether the file is complete and has the tensors of the row."""
    try:
        tensors = renamed(row.network, read_tensors(path, device="meta"))
    except (BrokenWeights, OSError):
        return False
    return not misfits(wanted_tensors(row.network), tensors)


def _whose(path: Path, but: Weights) -> Weights | None:
    return next((row for row in WEIGHTS if row.network != but.network and _fits(row, path)), None)


def _stray(row: Weights, folder: Path) -> Path | None:
    """A file below the folder that contains these weights, but is not in the place of other weights."""
    taken = {folder / other.folder / f.name for other in WEIGHTS for f in other.files}
    for path in files_below(folder):
        if path in taken and path.parent != folder / row.folder:
            continue
        with contextlib.suppress(BrokenWeights, OSError):
            check_whole(path)
            if judge(row, path).state == "ok":
                return path
    return None


def files_below(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if number >= LOOKED_AT:
            return
        if path.is_file() and not path.name.startswith("."):
            yield path


def matching_file(row: Weights, path: Path) -> File:
    """Which of the row's files this is, by its name, else by its content."""
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
