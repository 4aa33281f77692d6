"""Scans with known masks from two folders, and their groups, strata and spacing from tables."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.errors import ScanqueueError, UnreadableScan
from backend.formats.pixels import decode_image, letterbox
from backend.learning.cases import Case

MAX_CLASSES = 32


@dataclass(frozen=True)
class Labelled:
    """N readable scans, sorted by name; index i is the same scan in every field.

    names     file names without extension
    digests   of the image files
    images    (H, W) or (H, W, 3) uint8
    masks     (H, W) class numbers, 0 is background
    classes   number of classes, including the background
    left_out  {file name: reason}
    """

    names: tuple[str, ...]
    digests: tuple[str, ...]
    images: tuple[NDArray[np.uint8], ...]
    masks: tuple[NDArray[np.uint8], ...]
    classes: int
    left_out: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """Changes with any pixel of any image or mask, and with any name."""
        whole = hashlib.sha256(repr((self.names, self.digests, self.classes)).encode())
        for mask in self.masks:
            whole.update(mask.tobytes())
        return whole.hexdigest()[:24]

    def case(self, row: int, size: int) -> Case:
        """One scan letterboxed to size x size pixels, with its mask at original size."""
        return Case(letterbox(self.images[row], size), self.masks[row])


def read_labelled(images: Path, masks: Path) -> Labelled:
    """Read every image that has a mask of the same name (extensions may differ).

    Masks contain class numbers 0, 1, 2, ...; if all masks together contain only 0 and one other value, that value is
    class 1. Unreadable images, and those without a mask of the same size, are listed in `left_out` with the reason.

    Raises ScanqueueError when a folder is missing, no scan is usable, or class numbers exceed 32.
    """
    for what, folder in (("IMAGES", images), ("MASKS", masks)):
        if not folder.is_dir():
            raise ScanqueueError(f"{what}: {folder} is not a folder. Give the folder that contains them.")
    truths: dict[str, Path] = {}
    for path in _files(masks):
        truths.setdefault(path.stem, path)
    left_out: dict[str, str] = {}
    found: list[tuple[str, str, NDArray[np.uint8], NDArray[np.uint8]]] = []
    seen: set[str] = set()
    for path in _files(images):
        try:
            if path.stem in seen:
                raise UnreadableScan("another image has the same name")
            if path.stem not in truths:
                raise UnreadableScan(f"{masks} contains no mask of that name")
            data = path.read_bytes()
            image = decode_image(data)
            mask = _label_map(truths[path.stem])
            if mask.shape != image.shape[:2]:
                raise UnreadableScan(
                    f"its mask is {mask.shape[1]} x {mask.shape[0]} pixels, the image {image.shape[1]} x "
                    f"{image.shape[0]}"
                )
        except (UnreadableScan, OSError) as error:
            left_out[path.name] = str(error)
            continue
        seen.add(path.stem)
        found.append((path.stem, hashlib.sha256(data).hexdigest()[:32], image, mask))
    if not found:
        why = next(iter(left_out.items()), ("", "it is empty"))
        raise ScanqueueError(f"{images}: no scan with a mask can be read; {why[0] or images}: {why[1]}.")
    values = sorted({int(v) for _, _, _, mask in found for v in np.unique(mask)} - {0})
    if len(values) <= 1:
        found = [(n, d, i, (m > 0).astype(np.uint8)) for n, d, i, m in found]
        classes = 2
    elif values[-1] <= MAX_CLASSES:
        classes = values[-1] + 1
    else:
        raise ScanqueueError(
            f"{masks}: the masks contain {len(values)} values besides 0, up to {values[-1]}; wanted class numbers "
            f"1 to {MAX_CLASSES}, or one value for a single class. Save them without smoothing, and not as JPEG."
        )
    names, digests, pictures, truth = zip(*found, strict=True)
    return Labelled(names, digests, pictures, truth, classes, left_out)


def read_groups(given: Sequence[str], names: Sequence[str]) -> NDArray[np.intp]:
    """(N,) group numbers; the scans of a group must be in the same part of a split.

    given  each FILE.csv:COLUMN, where COLUMN identifies the group and the scan name is in "name" or the first column,
           or FILE.csv:COLUMN_A,COLUMN_B, pairs of names that belong together. Overlapping groups are merged
    names  file names without extension

    Each scan without an entry is a group of its own.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    at = {name: i for i, name in enumerate(names)}
    pairs: list[tuple[int, int]] = []
    for one in given:
        rows, columns = _table(one)
        if len(columns) == 2:
            pairs += [(at[r[columns[0]]], at[r[columns[1]]]) for r in rows if {r[c] for c in columns} <= set(at)]
            continue
        first: dict[str, int] = {}
        for r in rows:
            name, group = _name(r), r[columns[0]].strip()
            if name in at and group:
                pairs.append((first.setdefault(group, at[name]), at[name]))
    a, b = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(len(names), len(names)))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.intp)


def read_strata(given: str, names: Sequence[str]) -> NDArray[np.intp]:
    """(N,) stratum numbers from FILE.csv:COLUMN (site, scanner, protocol); scans without a value share one."""
    rows, columns = _table(given)
    values = {_name(r): r[columns[0]].strip() for r in rows}
    return np.unique([values.get(name, "") for name in names], return_inverse=True)[1].astype(np.intp)


def read_spacing(given: str, names: Sequence[str]) -> list[tuple[float, float]] | None:
    """Pixel spacing in mm, (row, column), of each scan: FILE.csv:COLUMN, or FILE.csv:ROW_COLUMN,COLUMN_COLUMN.

    Row spacing is the distance between rows (DICOM's order). None without a table: distances are in pixels.
    Raises ScanqueueError for the first scan without valid spacing, because px and mm cannot be averaged.
    """
    if not given:
        return None
    rows, columns = _table(given)
    texts = {_name(r): [r[c].strip() for c in columns] for r in rows}
    found = []
    for name in names:
        try:
            row, *more = (float(text) for text in texts.get(name, [""]))
            column = more[0] if more else row
            if not (row > 0 and column > 0 and math.isfinite(row + column)):
                raise ValueError
        except ValueError:
            got = ", ".join(texts[name]) if name in texts else "no row"
            raise ScanqueueError(
                f"{given}: scan {name!r} has no valid spacing (got {got!r}), wanted millimetres per pixel. Complete "
                "the table, or omit --spacing to measure distances in pixels."
            ) from None
        found.append((row, column))
    return found


def _table(given: str) -> tuple[list[dict[str, str]], list[str]]:
    """(rows, requested columns) of FILE.csv:COLUMN[,COLUMN]."""
    file, colon, wanted = given.rpartition(":")
    columns = [c.strip() for c in wanted.split(",")]
    if not colon or not all(columns) or len(columns) > 2:
        raise ScanqueueError(f"got {given!r}, wanted FILE.csv:COLUMN or FILE.csv:COLUMN,COLUMN")
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            rows = [{k: v or "" for k, v in row.items() if k} for row in reader]
            there = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScanqueueError(f"{file}: cannot be read as a table: {error}") from error
    if missing := [c for c in columns if c not in there]:
        raise ScanqueueError(f"{file}: no column {missing[0]!r}; found {', '.join(there)}")
    return rows, columns


def _name(row: Mapping[str, str]) -> str:
    """The scan name in a row: column "name", else the first column; a file extension is ignored."""
    text = (row["name"] if "name" in row else next(iter(row.values()), "")).strip()
    return Path(text).stem if Path(text).suffix.lower() in Image.registered_extensions() else text


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _label_map(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as opened:
            values = np.asarray(opened.convert("L") if opened.mode not in ("L", "P", "I", "I;16") else opened)
    except Exception as error:  # decoders raise many types of exceptions
        raise UnreadableScan(f"its mask {path.name} cannot be read ({type(error).__name__})") from error
    if values.max(initial=0) > 255:
        raise UnreadableScan(f"its mask {path.name} contains {values.max()}; the highest class number is {MAX_CLASSES}")
    return values.astype(np.uint8)
