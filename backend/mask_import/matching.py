"""Finds the scan, or the picture of a scan, that each mask belongs to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from backend.errors import CannotCut, UnreadableFile
from backend.formats import Cut, Grid, LabelPicture, MaskFile, MaskMisfit, cut, origins
from backend.intake.existing_tasks import key_of
from backend.intake.identities import Identities, ScanRecord
from backend.label_studio.listing import TaskRow
from backend.label_studio.studio import Studio
from backend.mask_import.coco import CocoPicture
from backend.mask_import.exports import Exports, Place
from backend.mask_import.labels import LabelMatcher
from backend.mask_import.names import ScanNames, picture_of

PictureMask = LabelPicture | CocoPicture


@dataclass
class ScanMasks:
    """A scan of the project, its tasks, and the masks that were found for it.

    unread  whether it has another mask that cannot be read
    """

    record: ScanRecord
    tasks: dict[Place, list[TaskRow]] = field(default_factory=lambda: defaultdict(list))
    volumes: list[MaskFile] = field(default_factory=list)
    pictures: dict[Place, list[PictureMask]] = field(default_factory=lambda: defaultdict(list))
    unread: bool = False

    @cached_property
    def grid(self) -> Grid:
        source = self.record.source
        each = len(source.instances) == self.record.geometry.shape[2] and source.kind == "dicom"
        uneven = each and not self.record.geometry.regular
        return Grid(self.record.geometry, source.instances if each else (), origins(source) if uneven else ())

    def cuts(self) -> dict[str, Cut]:
        return {axis: cut(self.record.geometry, axis) for axis in dict.fromkeys(axis for axis, _ in self.tasks)}


class Matching:
    """The scans of a project that masks can belong to."""

    def __init__(self, studio: Studio, project: int, identities: Identities, labels: LabelMatcher) -> None:
        self._identities = identities
        self._labels = labels
        self.scans: dict[str, ScanMasks] = {}
        self._unknown: set[str] = set()
        for row in studio.each_task(project):
            if (key := key_of(row.data)) is not None:
                self._add(key, row)
        names = ((scan, masks.record.source.files) for scan, masks in self.scans.items())
        self._names = ScanNames(names)
        self._files = {
            file.resolve()
            for masks in self.scans.values()
            if masks.record.source.kind != "dicom"
            for file in masks.record.source.files
        }
        self.exports = Exports()

    def _add(self, key: tuple[str, str, int], row: TaskRow) -> None:
        scan, axis, number = key
        if scan in self._unknown:
            return
        if scan not in self.scans:
            record = self._identities.scan(scan)
            if record is None:
                self._unknown.add(scan)
                return
            self.scans[scan] = ScanMasks(record)
        self.scans[scan].tasks[axis, number].append(row)

    def is_scan(self, path: Path) -> bool:
        """Whether it is a file of a scan of this project, and so no mask."""
        return path.resolve() in self._files

    def miss(self, path: Path) -> None:
        """Note that a mask cannot be read. The others of its scan would say that what it shows is not there."""
        if path.suffix.lower() != ".json" and picture_of(path) is None:
            candidates = self._by_name(path)
            if len(candidates) == 1:
                self.scans[candidates[0]].unread = True

    def add_volume(self, mask: MaskFile) -> None:
        """Give a mask to its scan. Raises UnreadableFile if it has none, or several."""
        candidates = self._by_instances(mask) if mask.instances else self._by_name(mask.path)
        if len(candidates) > 1:
            candidates = [scan for scan in candidates if self._fits(mask, scan)][: 1 if mask.instances else None]
            if not candidates:
                raise UnreadableFile(mask.path, "fits none of the scans that it may belong to: other voxels")
        self.scans[self._only(mask.path, candidates)].volumes.append(mask)

    def add_picture(self, mask: PictureMask) -> None:
        """Give a mask to the picture of a scan. Raises UnreadableFile if there is none, or several."""
        ours = picture_of(mask.path)
        if ours is not None and ours[2] is not None:
            scan = self.scans.get(ours[0])
            if scan is None or (ours[1], ours[2]) not in scan.tasks:
                raise UnreadableFile(mask.path, "belongs to a slice without a task in this project; import that first")
            scan.pictures[ours[1], ours[2]].append(mask)
            return
        scan = self.scans[self._only(mask.path, self._by_name(mask.path))]
        places = list(scan.tasks)
        if len(places) > 1 or scan.record.geometry.shape[2] > 1:
            raise UnreadableFile(
                mask.path,
                "is one picture, but its scan has several slices; name it like the picture (SCAN.AXIS.NUMBER.png), or "
                "save the masks of the scan as one volume",
            )
        scan.pictures[places[0]].append(mask)

    def _only(self, path: Path, candidates: Sequence[str]) -> str:
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise UnreadableFile(
                path,
                f"fits {len(candidates)} scans equally well; give it the name of its scan, or import those scans "
                "separately",
            )
        if self._unknown:
            raise UnreadableFile(
                path,
                "belongs to no scan that is known here; the identities file lacks scans of this project "
                f"({len(self._unknown)}). Pass the one of their import with --identities",
            )
        raise UnreadableFile(path, "belongs to no scan of this project; name it like the file or folder of its scan")

    def _by_name(self, path: Path) -> list[str]:
        ours = picture_of(path)
        if ours is not None:
            return [ours[0]] if ours[0] in self.scans else []
        return self._names.find(path) or self._names.find(path, without=self._labels.of_path(path)[1])

    def _by_instances(self, mask: MaskFile) -> list[str]:
        """Scans with the images that it refers to, those with the most of them first."""
        shared: Counter[str] = Counter()
        for record in self._identities.scans_with_instances(sorted(mask.instances)):
            if record.scan in self.scans:
                shared[record.scan] = len(mask.instances.intersection(record.source.instances))
        if not shared:
            raise UnreadableFile(mask.path, "refers to images that are in no scan of this project; import them first")
        return [scan for scan, _ in shared.most_common()]

    def _fits(self, mask: MaskFile, scan: str) -> bool:
        try:
            next(iter(mask.onto(self.scans[scan].grid)), None)
        except (MaskMisfit, CannotCut):
            return False
        return True
