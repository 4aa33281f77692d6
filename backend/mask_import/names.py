"""Which scan a mask file belongs to, and which label it draws, by the names of files and folders.

A name is a tuple of words in lower case, without those that only say "image" or "mask": `case_07_seg.nii.gz` and
`images/case_07.nii.gz` both are ("case", "07"), `mask_07.png` and `image_07.png` are ("07",).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

Words = tuple[str, ...]

_SUFFIX = re.compile(
    r"(\.(nii|gz|bz2|xz|nrrd|nhdr|seg|mha|mhd|mgh|mgz|hdr|img|rtstruct|dcm|dicom|ima|png|tiff?|bmp|gif|jpe?g|webp|json|zip))+$",
    re.IGNORECASE,
)
_ROLES = frozenset(
    (
        *("image", "images", "img", "imgs", "imagestr", "imagests", "scan", "scans", "volume", "volumes"),
        *("label", "labels", "labelstr", "labelsts", "labelmap", "mask", "masks", "seg", "segs", "segmentation"),
        *("segmentations", "gt", "groundtruth", "annotation", "annotations", "rtstruct", "rtss"),
    )
)
_CHANNEL = re.compile(r"000\d")  # nnU-Net's number of a modality at the end of an image's name
_PICTURE = re.compile(r"(S-[A-Z2-7]{12})(?:\.([a-z]+))?(?:\.(\d{4,}))?")


def words(name: str) -> Words:
    """The words of the name of a file or folder.

    >>> words("benign (1)_mask_1.png")
    ('benign', '1')
    """
    found: list[str] = []
    after_role = False
    for word in re.findall(r"[^\W_]+", _SUFFIX.sub("", name).casefold()):
        role = word in _ROLES
        if not role and not (found and after_role and word.isdecimal()):
            found.append(word)
        after_role = role
    return tuple(found)


def all_words(name: str) -> Words:
    """Every word of the name of a label or structure: "Label 2" is not "Label 1", nor "Mask"."""
    return tuple(re.findall(r"[^\W_]+", name.casefold()))


def forms(name: str) -> tuple[Words, Words]:
    """What the name of a file or folder may say, with and without the words that only say "mask"."""
    return all_words(_SUFFIX.sub("", name)), words(name)


def levels(path: Path) -> list[Words]:
    """The names of a file and of its folders, the nearest first; without those that say nothing."""
    return [found for part in reversed(path.parts) if (found := words(part))]


def picture_of(path: Path) -> tuple[str, str, int | None] | None:
    """Scan, axis and slice in a name of ours, such as S-ABCDEFGHIJKL.axial.0017.png; None for any other name."""
    found = _PICTURE.fullmatch(_SUFFIX.sub("", path.name))
    return None if found is None else (found[1], found[2] or "", int(found[3]) if found[3] else None)


class ScanNames:
    """Finds scans by the names of their files.

    scans  by pseudonym, the files of each scan
    """

    def __init__(self, scans: Iterable[tuple[str, Sequence[Path]]]) -> None:
        self._levels: dict[str, list[Words]] = {}
        self._named: dict[Words, list[str]] = defaultdict(list)
        self._within: dict[Words, list[str]] = defaultdict(list)
        for scan, files in scans:
            path = files[0] if len(files) == 1 else files[0].parent
            self._levels[scan] = found = levels(path)
            for name in found[:1]:
                self._named[name].append(scan)
                if _CHANNEL.fullmatch(name[-1]):
                    self._within[name[:-1]].append(scan)
            for name in dict.fromkeys(found):
                self._within[name].append(scan)

    def find(self, path: Path, without: Words = ()) -> list[str]:
        """The scans whose name fits that of a mask file best; [] if none does, several if the name does not decide.

        A scan fits if its file has the mask's name. Otherwise if its file, without nnU-Net's number of a modality, or
        one of its folders has that name. Of several, those whose folders agree most.

        without  the name of a label, which says nothing about the scan
        """
        wanted = [name for name in levels(path) if name != without]
        if not wanted:
            return []
        found = self._named.get(wanted[0]) or self._within.get(wanted[0]) or []
        agreeing = {scan: _agreement(wanted, self._levels[scan]) for scan in found}
        return [scan for scan in found if agreeing[scan] == max(agreeing.values())]


def _agreement(wanted: Sequence[Words], there: Sequence[Words]) -> int:
    """How many folders of the mask, from the nearest outwards, are among those of the scan."""
    count = 0
    for name in wanted[1:]:
        if name not in there:
            break
        count += 1
    return count
