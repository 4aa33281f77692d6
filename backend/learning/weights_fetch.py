"""Put weight files in place: from a local file or folder, or from the model hub."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from backend.errors import BrokenWeights, StorageFull, WeightsMissing, is_disk_full
from backend.learning.weights import Weights, how_to_get, where_published
from backend.learning.weights_check import Verdict, files_below, judge, judge_config, matching_file, verify

CHUNK = 1 << 20  # bytes copied at a time


def fetch(row: Weights, folder: Path, source: Path | None = None, *, why_not: Callable[[], str]) -> list[Verdict]:
    """Put the files of a row in place, from a local file or folder, else from the hub; wrong files are rejected.

    source   a file of weights (with its config files beside it), or a folder that holds them, at any depth
    why_not  gives the reason why the hub is unreachable, or an empty string

    Keeps correct files already in place. Returns the final check. Raises BrokenWeights when a file is wrong,
    WeightsMissing when one is unavailable, StorageFull when it cannot be written.
    """
    if source is None or row.package:
        present = verify(row, folder)
        if row.package or all(v.state == "ok" for v in present):
            return present
        return _download(row, folder, why_not)
    if not source.exists():
        raise WeightsMissing(f"{source} does not exist. Pass the file or folder that was copied here")
    weights, configs = _carried(row, source)
    return _place(row, folder, weights, configs)


def _carried(row: Weights, source: Path) -> tuple[Path, list[Path]]:
    """The weights and the config files in a source, all checked."""
    files = [source] if source.is_file() else list(files_below(source))
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
            f"nothing in {source} holds the weights of {row.key}: wanted {' or '.join(names)}, {where_published(row)}"
        )
    configs = [weights.parent / name for name in row.config]
    for path in configs:
        verdict = judge_config(row, path)
        if verdict.state != "ok":
            raise WeightsMissing(f"next to the weights in {weights.parent}, {verdict.what.rstrip('.')}, and try again")
    return weights, configs


def _download(row: Weights, folder: Path, why_not: Callable[[], str]) -> list[Verdict]:
    get = how_to_get(row, folder)
    if not row.hub:
        raise WeightsMissing(f"{row.key} is not available from the hub. {get}, or pass it with --from")
    if reason := why_not():
        raise WeightsMissing(f"{row.key} cannot be downloaded ({reason}). {get}, or pass them with --from")
    from huggingface_hub import hf_hub_download

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        try:
            for name in (*row.config, row.files[0].name):
                hf_hub_download(row.hub, name, revision=row.revision or None, local_dir=scratch)
        except Exception as error:  # the hub client raises many types: refused, gone, truncated
            raise WeightsMissing(
                f"{row.key}: the download from {row.hub} failed ({type(error).__name__}). {get}, or pass them with "
                "--from"
            ) from error
        return _place(row, folder, *_carried(row, Path(scratch) / row.files[0].name))


def _place(row: Weights, folder: Path, weights: Path, configs: list[Path]) -> list[Verdict]:
    for path in configs:
        _copy(path, folder / row.folder / path.name)
    _copy(weights, folder / row.folder / matching_file(row, weights).name)
    return verify(row, folder)


def _copy(source: Path, place: Path) -> None:
    """Copy beside the place, down to the disk, then rename: an interrupted copy never appears as the file."""
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
        cure = "free some space" if is_disk_full(error) else f"check that {place.parent} is writable"
        raise StorageFull(f"{place} could not be written ({error.strerror or error}); {cure} and try again") from error
