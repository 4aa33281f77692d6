"""What exports of this program say about the masks in their folders."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.errors import UnreadableFile
from backend.formats import AXES, cut, packed
from backend.intake.identities import ScanRecord
from backend.mask_import.names import picture_of

Place = tuple[str, int]  # axis, slice


class Exports:
    """The manifests of exports; each is read once."""

    def __init__(self) -> None:
        self._manifests: dict[Path, Mapping[str, Any]] = {}
        self._labelled: dict[Path, Mapping[str, set[Place]]] = {}

    def labelled(self, path: Path, scan: str) -> frozenset[Place]:
        """The slices of a scan that somebody labelled, empty ones included; none outside an export."""
        for folder in list(path.parents)[:3]:
            if folder not in self._labelled:
                by_scan: dict[str, set[Place]] = defaultdict(set)
                for row in self._manifest(folder).get("slices", ()):
                    if "scan" in row:
                        by_scan[row["scan"]].add((row["axis"], row["slice"]))
                self._labelled[folder] = by_scan
            if self._labelled[folder]:
                return frozenset(self._labelled[folder].get(scan, ()))
        return frozenset()

    def shows(self, path: Path, record: ScanRecord, axis: str) -> bool:
        """Whether slices along an axis can be cut from a volume.

        In an export, slices that nobody labelled are background too. Cut across them, every slice would show parts of
        labelled ones, and nothing in between.
        """
        ours = picture_of(path)
        if ours is None:
            return True
        slices = [(other, n) for other, n in self.labelled(path, ours[0]) if ours[1] in ("", other)]
        axes = {other for other, _ in slices} or ({ours[1]} if ours[1] in AXES else set())
        along = cut(record.geometry, axis).along
        there = {other: cut(record.geometry, other) for other in axes}
        return not axes or any(
            one.along == along or len({n for name, n in slices if name == other}) == one.count
            for other, one in there.items()
        )

    def is_of_model(self, path: Path, given: Sequence[Path]) -> bool:
        """Whether an export contains the file as a mask of a model, and its folder `model` is not among `given`."""
        return any(
            folder.name == "model"
            and not any(root.is_relative_to(folder.resolve()) and root.is_dir() for root in given)
            and bool(self._manifest(folder.parent))
            for folder in list(path.parents)[:2]
        )

    def _manifest(self, folder: Path) -> Mapping[str, Any]:
        """The manifest of an export, a folder or an archive; {} if there is none."""
        if folder not in self._manifests:
            self._manifests[folder] = _read(folder / "manifest.json")
        return self._manifests[folder]


def _read(manifest: Path) -> Mapping[str, Any]:
    try:
        if not packed.is_file(manifest):
            return {}
        with packed.opened(manifest) as opened:
            found = json.loads(opened.read())
        return found if isinstance(found, dict) and found.get("made_by") == "scanqueue export" else {}
    except (OSError, ValueError, RecursionError, UnreadableFile):
        return {}
