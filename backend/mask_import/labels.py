"""Which label of the project a structure in a mask file is."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from backend.errors import BadSetting, UnreadableFile
from backend.formats import Segment, packed
from backend.mask_import.names import Words, all_words, forms, words

BESIDE = ("manifest.json", "dataset.json")  # our export; nnU-Net, Medical Segmentation Decathlon
YES = (1, 255)  # the number of the only structure in a file


def parse_label_map(
    entries: Iterable[str], labels: Sequence[str], aliases: Mapping[str, str] | None = None
) -> dict[str, str]:
    """`--label-map` options NAME=LABEL or NUMBER=LABEL; an empty LABEL leaves the structure out.

    aliases  the label of each other name that the label config gives it

    Raises BadSetting if an entry is no such pair, or its label is not in the label config.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, label = (part.strip() for part in entry.partition("="))
        if not (name and equals):
            raise BadSetting(f"--label-map: expected NAME=LABEL or NUMBER=LABEL, got {entry!r}.")
        label = label if label in labels else (aliases or {}).get(label, label)
        if label and label not in labels:
            raise BadSetting(f"--label-map: the label config has no label {label!r}. It has {', '.join(labels)}.")
        found[name.casefold()] = label
    return found


class LabelMatcher:
    """Names the project's label of each structure.

    labels   of the label config, in its order
    chosen   see `parse_label_map`
    aliases  the label of each other name that the label config gives it
    """

    def __init__(
        self, labels: Sequence[str], chosen: Mapping[str, str], aliases: Mapping[str, str] | None = None
    ) -> None:
        self.labels = tuple(labels)
        self._chosen = dict(chosen)
        named = dict(aliases or {}) | {label: label for label in self.labels}
        self._by_name = _by_words(named)
        self._by_words = _by_words(self._chosen)
        self._beside: dict[Path, dict[int, str]] = {}
        self.by_order: dict[int, str] = {}  # the labels that numbers got without a name

    def of_path(self, path: Path) -> tuple[str | None, Words]:
        """The label that a file or its folder is named after, and that name; "" if `--label-map` leaves it out.

        None and () if there is none. A number says nothing: it may be that of a scan.
        """
        for part in (path.name, path.parent.name):
            for name in forms(part):
                label = self._by_words.get(name, self._by_name.get(name))
                if label is not None and not "".join(name).isdecimal():
                    return label, words(part)
        return None, ()

    def label(self, segment: Segment, path: Path, *, by_order: bool = True) -> str:
        """The label of a structure; "" if `--label-map` leaves it out.

        A name counts before a number. The names of numbers are those in the file, or in a dataset.json or manifest.json
        in one of its folders. A number without a name is the label that the file is named after, else the number of a
        label in the config.

        by_order  False: not the latter, as another file of the scan is named after its label

        Raises UnreadableFile if it is none of these.
        """
        number = str(segment.number)
        if not segment.name and number in self._chosen:
            return self._chosen[number]
        name = segment.name
        if not name and (beside := self._names_beside(path)):
            name = beside.get(segment.number, number)
        if name:
            return self._of_name(name, number, path)
        own = self.of_path(path)[0]
        if own is not None and (not own or segment.number in YES):
            return own
        if own is None and by_order:
            number_one = 1 if len(self.labels) == 1 and segment.number == 255 else segment.number
            if number_one <= len(self.labels):
                return self.by_order.setdefault(segment.number, self.labels[number_one - 1])
        raise UnreadableFile(
            path, f"has the number {segment.number}, and nothing says which label that is: {self._cure(segment.number)}"
        )

    def _of_name(self, name: str, number: str, path: Path) -> str:
        for key in (name.casefold(), number):
            if key in self._chosen:
                return self._chosen[key]
        own = all_words(name)
        found = name if name in self.labels else self._by_words.get(own, self._by_name.get(own))
        if found is None:
            raise UnreadableFile(
                path,
                f"has a structure whose name is no label: {self._cure('NAME')}. The name is shown in a terminal, or "
                "with --show-paths",
                f"has the structure {name!r}, which is no label: {self._cure(name)}",
            )
        return found

    def _cure(self, key: object) -> str:
        return f"add --label-map '{key}=LABEL', or '{key}=' to leave it out. The labels are {', '.join(self.labels)}"

    def left_out(self, named: Iterable[Segment], path: Path) -> frozenset[int]:
        """The numbers of the structures that `--label-map` leaves out."""
        found: set[int] = set()
        for segment in named:
            with suppress(UnreadableFile):
                found.update(() if self.label(segment, path) else (segment.number,))
        return frozenset(found)

    def speaks_of(self, named: Sequence[Segment], path: Path) -> frozenset[str]:
        """The labels that a file says something about, even where it does not draw them.

        Those that it, or a file beside it, names; without names, those whose numbers `--label-map` gives. Of all others
        it is unknown whether the scan shows them.
        """
        named = named or [Segment(number, name) for number, name in self._names_beside(path).items() if number]
        if not named:
            return frozenset(label for key, label in self._chosen.items() if key.isdecimal()) - {""}
        found = set()
        for segment in named:
            with suppress(UnreadableFile):
                found.add(self.label(segment, path))
        return frozenset(found - {""})

    def _names_beside(self, path: Path) -> dict[int, str]:
        for folder in list(path.parents)[:3]:
            if folder not in self._beside:
                self._beside[folder] = _names_in(folder)
            if self._beside[folder]:
                return self._beside[folder]
        return {}


def _by_words(named: Mapping[str, str]) -> dict[Words, str]:
    """Labels by the words of their names, where these words are those of one name: not "T+" and "T-"."""
    found: dict[Words, set[str]] = defaultdict(set)
    for name, label in named.items():
        found[all_words(name)].add(label)
    return {key: label for key, labels in found.items() if key and len(labels) == 1 for label in labels}


def _names_in(folder: Path) -> dict[int, str]:
    """The names of numbers that a JSON file in a folder, or in an archive, gives; {} if there is none.

    Raises UnreadableFile if there is one that is not understood: its masks would get the labels of others.
    """
    for name in BESIDE:
        file = folder / name
        if not packed.is_file(file):
            continue
        try:
            with packed.opened(file) as opened:
                found: Any = json.loads(opened.read())
            rows = found.get("labels") if isinstance(found, dict) else None
            if not rows:
                continue
            if isinstance(rows, list):
                return {int(row["number"]): str(row["name"]) for row in rows}
            return {
                int(key) if str(key).isdecimal() else int(value): str(value) if str(key).isdecimal() else str(key)
                for key, value in rows.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UnreadableFile(
                file,
                "does not say which number is which label, as {NUMBER: NAME} or {NAME: NUMBER} would. Correct it, or "
                "give every number with --label-map",
            ) from error
    return {}
