"""The request and the results of importing masks."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backend.errors import BadSetting
from backend.intake.slicing import Problem

ANNOTATIONS, PREDICTIONS = "annotations", "predictions"
KINDS = (ANNOTATIONS, PREDICTIONS)


@dataclass(frozen=True)
class MaskRequest:
    """The arguments of `scanqueue import` that are about masks.

    kind          one of KINDS
    image         the project's setting `image`: which of several images counts; "": the first
    label_map     entries NAME=LABEL or NUMBER=LABEL
    ground_truth  mark annotations as ground truth
    complete      what is not drawn is not there: slices without a mask become empty annotations, and labels that a file
                  does not have are absent from its scan
    """

    project: int
    paths: tuple[Path, ...]
    identities: Path
    kind: str = ANNOTATIONS
    label_map: tuple[str, ...] = ()
    ground_truth: bool = False
    complete: bool = False
    dry_run: bool = False
    image: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadSetting(f"--as: expected one of {', '.join(KINDS)}, got {self.kind!r}.")
        if self.kind == PREDICTIONS and (self.ground_truth or self.complete):
            raise BadSetting("--ground-truth and --complete are about annotations. Omit them, or --as predictions.")


@dataclass
class MaskTally:
    """What became of the masks. `problems` and `remarks` contain paths, which may name patients.

    files    files with masks
    scans    scans that they belong to
    made     slices that became annotations or predictions (or would have, in a dry run)
    there    slices that already had one, which is kept
    empty    slices without a mask, which were left alone
    absent   slices with a mask, but without a task
    """

    files: int = 0
    scans: int = 0
    made: int = 0
    there: int = 0
    empty: int = 0
    absent: int = 0
    problems: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("files", "scans", "made", "there", "empty", "absent")}


def expanded(patterns: Sequence[str], scans: Sequence[Path]) -> tuple[Path, ...]:
    """The files and folders of `--masks`: paths, or patterns in which ** stands for any folders.

    Raises BadSetting if one does not exist, if it contains a path of the scans, or if neither is given.
    """
    if not (patterns or scans):
        raise BadSetting("Nothing to import. Pass files or folders with scans, or --masks.")
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise BadSetting(
                f"--masks: {pattern} does not exist. Pass a file, a folder, or a quoted pattern such as "
                "'/data/**/*_mask.png'."
            )
        found.update(dict.fromkeys(map(Path, matches)))
    for scan in scans:
        for mask in found:
            if mask.is_dir() and scan.resolve().is_relative_to(mask.resolve()):
                raise BadSetting(
                    f"--masks: {mask} contains the scans too. Pass a quoted pattern that only masks match, such as "
                    f"'{mask}/**/*_mask.png'."
                )
    return tuple(found)
