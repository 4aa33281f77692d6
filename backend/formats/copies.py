"""Copies among DICOM files, and files that only look like copies.

Anonymisers empty UIDs, or give several images the same one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableFile
from backend.formats import decode, dicom
from backend.formats.source import FileFacts, content_of

SHARED_UID = "other images have its SOPInstanceUID, so its content identifies it; a DICOM SEG cannot reference it"
NO_UID = "it has no SOPInstanceUID, so its content identifies it; a DICOM SEG cannot reference it"


def distinct(facts: Iterable[FileFacts]) -> list[FileFacts]:
    """One file of each image: of several copies the longest, since a shorter one may be truncated.

    Two files with one SOPInstanceUID are copies if position, number, patient, series and pixels are equal. If not, or
    without a SOPInstanceUID, `instance` becomes a digest of the content, and the file gets a remark.
    """
    same: dict[str, list[FileFacts]] = defaultdict(list)
    for fact in sorted(facts, key=lambda fact: (-fact.size, str(fact.path))):
        same[fact.instance].append(fact)
    kept: list[FileFacts] = []
    for instance, files in same.items():
        if not instance:
            kept += _by_content(files)
            continue
        images = _images(files) if len(files) > 1 else files
        if len(images) > 1:
            images = [replace(image, instance=_content(image.path), remark=SHARED_UID) for image in images]
        kept += images
    return kept


def _by_content(files: Sequence[FileFacts]) -> list[FileFacts]:
    """Files without SOPInstanceUID. Those that cannot be part of a series are identified by content anyway."""
    found: dict[str, FileFacts] = {}
    for file in files:
        digest = _content(file.path)
        plain = len(file.parts) == 1 and not file.stackable
        found.setdefault(
            digest or str(file.path), file if plain else replace(file, instance=digest, remark=file.remark or NO_UID)
        )
    return list(found.values())


def _content(path: Path) -> str:
    try:
        return content_of(path)
    except OSError:  # deleted meanwhile; reading it says so
        return ""


def _images(files: Sequence[FileFacts]) -> list[FileFacts]:
    """One file of each image among files with one SOPInstanceUID, longest first."""
    alike: dict[Any, list[FileFacts]] = defaultdict(list)
    for file in files:
        images = alike[
            file.owner, file.series, file.number, file.position, file.orientation, file.rows, file.columns, file.marks
        ]
        if not any(_same_pixels(image, file) for image in images):
            images.append(file)
    return [image for images in alike.values() for image in images]


def _same_pixels(longer: FileFacts, shorter: FileFacts) -> bool:
    """Whether the pixels are equal, or those of the shorter file are the start of the other's. Compressed files are
    decoded if need be; a file that cannot be read is a damaged copy."""
    try:
        if longer.size == shorter.size and _content(longer.path) == _content(shorter.path):
            return True
        ours, theirs = (dicom.load(file.path, pixels=True).get("PixelData") or b"" for file in (longer, shorter))
        if ours.startswith(theirs):
            return True
        return _equal(decode.frames_of(longer.path), decode.frames_of(shorter.path))
    except (UnreadableFile, OSError):
        return True


def _equal(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    return ours.shape == theirs.shape and bool(np.array_equal(ours, theirs))
