"""Which label of the project a structure in a mask file is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.errors import BadSetting, UnreadableFile
from backend.formats import Segment
from backend.mask_import.names import Words, levels, words

BESIDE = (
    "manifest.json",
    "dataset.json",
)  # our export; nnU-Net, Medical Segmentation Decathlon


def parse_label_map(entries: Iterable[str], labels: Sequence[str]) -> dict[str, str]:
    """`--label-map` options NAME=LABEL or NUMBER=LABEL; an empty LABEL leaves the structure out.

    Raises BadSetting if an entry is no such pair, or its label is not in the label config.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, label = (part.strip() for part in entry.partition("="))
        if not (name and equals):
            raise BadSetting(f"--label-map: expected NAME=LABEL or NUMBER=LABEL, got {entry!r}.")
        if label and label not in labels:
            raise BadSetting(f"--label-map: the label config has no label {label!r}. It has {', '.join(labels)}.")
        found[name.casefold()] = label
    return found


class LabelMatcher:
    """Names the project's label of each structure.

    labels  of the label config, in its order
    chosen  see `parse_label_map`
    """

    def __init__(self, labels: Sequence[str], chosen: Mapping[str, str]) -> None:
        self.labels = tuple(labels)
        self._chosen = dict(chosen)
        self._by_name = {words(label): label for label in reversed(self.labels)} | {(label,): label for label in labels}
        self._by_words = {words(name): label for name, label in self._chosen.items()}
        self._beside: dict[Path, dict[int, str]] = {}

    def of_path(self, path: Path) -> tuple[str, Words]:
        """The label that a file or one of its folders is named after, and that name; "" and () if there is none."""
        for name in levels(path):
            label = self._by_words.get(name) or self._by_name.get(name)
            if label:
                return label, name
        return "", ()

    def label(self, segment: Segment, path: Path) -> str:
        """The label of a structure; "" if `--label-map` leaves it out.

        A name counts before a number. The names of numbers are those in the file, or in a dataset.json or manifest.json
        in one of its folders. A number without a name is the label that the file is named after, else the number of a
        label in the config.

        Raises UnreadableFile if it is none of these.
        """
        name = segment.name or self._names_beside(path).get(segment.number, "")
        for key in (name.casefold(), str(segment.number)):
            if key in self._chosen:
                return self._chosen[key]
        if name:
            found = name if name in self.labels else self._by_name.get(words(name), "")
            if not found:
                raise UnreadableFile(path, f"has the structure {name!r}, which is no label: {self._cure(name)}")
            return found
        if own := self.of_path(path)[0]:
            return own
        if segment.number <= len(self.labels):
            return self.labels[segment.number - 1]
        if len(self.labels) == 1 and segment.number == 255:
            return self.labels[0]
        raise UnreadableFile(
            path, f"has the number {segment.number}, and nothing says which label that is: {self._cure(segment.number)}"
        )

    def _cure(self, key: object) -> str:
        return f"add --label-map '{key}=LABEL', or '{key}=' to leave it out. The labels are {', '.join(self.labels)}"

    def speaks_of(self, named: Sequence[Segment], path: Path) -> frozenset[str]:
        """The labels that a file says something about: of the others it is unknown whether the scan shows them."""
        beside = self._names_beside(path)
        named = named or [Segment(number, name) for number, name in beside.items() if number]
        if named:
            found = set()
            for segment in named:
                try:
                    found.add(self.label(segment, path))
                except UnreadableFile:
                    continue
            return frozenset(found - {""})
        if own := self.of_path(path)[0]:
            return frozenset({own})
        if numbers := [label for key, label in self._chosen.items() if key.isdecimal() and label]:
            return frozenset(numbers)
        return frozenset(self.labels)

    def _names_beside(self, path: Path) -> dict[int, str]:
        for folder in list(path.parents)[:3]:
            if folder not in self._beside:
                self._beside[folder] = _names_in(folder)
            if self._beside[folder]:
                return self._beside[folder]
        return {}


def _names_in(folder: Path) -> dict[int, str]:
    """The names of numbers that a JSON file in a folder gives."""
    for name in BESIDE:
        try:
            rows: Any = json.loads((folder / name).read_text(encoding="utf-8"))["labels"]
            if isinstance(rows, list):
                return {int(row["number"]): str(row["name"]) for row in rows}
            return {
                int(key) if str(key).isdecimal() else int(value): str(value) if str(key).isdecimal() else str(key)
                for key, value in rows.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return {}
