"""A process that is killed at one of its writes."""

from __future__ import annotations

import inspect
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from world import PROJECT, World

from backend.records.store import Store

STUDIO_WRITES = {"import_predictions", "show_round", "add_view", "set_webhook", "remove_duplicate_predictions"}
STORE_READS = {
    "annotated", "any_scan", "arrays", "attempts", "authors", "basis", "cache_slot", "check_embeddings", "check_room",
    "checkpoints", "columns", "correction", "corrections", "could_draw", "count_empty", "count_rounds",
    "count_scans", "drawing", "embedded", "embeddings", "fingerprint_of", "has", "image_entropies", "known_project",
    "label_columns",
    "labels", "latest_round", "lock", "lost_labels", "model", "model_labels", "model_of_round", "model_qualities",
    "model_summaries", "model_summary", "model_versions", "models", "open_scans", "orders", "path", "progress",
    "project", "projects", "quick_mask", "quick_masks", "recent_corrections", "recorded", "remarks", "renames",
    "round_columns", "rounds", "rows", "scan", "scans", "scans_from", "scans_in_need", "scans_of", "secrets",
    "shown", "shown_columns", "snapshot", "tasks_between", "totals", "training_slot", "uncertainty", "waiting",
}  # fmt: skip
STORE_WRITES = {name for name, _ in inspect.getmembers(Store, inspect.isfunction) if name[0] != "_"} - STORE_READS


class Killed(BaseException):
    """The process was killed."""


class Fuse:
    """Lets writes through up to number `at`; from then on, the process is dead.

    midway  the last write is half done: part of an import is stored, or a folder is filled but not yet in place
    """

    def __init__(self, at: int = 0, *, midway: bool = False) -> None:
        self.at = at
        self.midway = midway
        self.names: list[str] = []

    def write(self, name: str, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.at and len(self.names) >= self.at:
            raise Killed
        self.names.append(name)
        if len(self.names) != self.at:
            return call(*args, **kwargs)
        if self.midway and name == "import_predictions":
            call(args[0], args[1][: len(args[1]) // 2])
        elif self.midway and name == "put_folder":
            call(*args[:2], lambda path: self._fill(args[2], path))
        raise Killed

    def _fill(self, write: Callable[[Path], None], path: Path) -> None:
        write(path)
        raise Killed


class Fused:
    """`target`, with its writes routed through a fuse."""

    def __init__(self, target: Any, writes: set[str], fuse: Fuse) -> None:
        self._target, self._writes, self._fuse = target, writes, fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name not in self._writes:
            return found
        return lambda *args, **kwargs: self._fuse.write(name, found, args, kwargs)


def check_kills(folder: Path, scenario: Callable[[Path, Fuse], World], first: int, every: int) -> list[str]:
    """Kill the scenario at write `first` and every so many later ones; its end state must not depend on that.

    Returns the names of the writes of an undisturbed run, whose predictions are checked not to be doubled.
    """
    fuse = Fuse()
    end = scenario(folder, fuse).end_state()
    assert set(Counter((version, task) for version, task, _, _ in end["predictions"]).values()) == {1}
    for at in range(first, len(fuse.names) + 1, every):
        shutil.rmtree(folder)
        found = scenario(folder, Fuse(at)).end_state()
        for part, value in end.items():
            assert found[part] == value, f"{part}, killed at write {at}, {fuse.names[at - 1]}"
    return fuse.names


def with_fuse(world: World, fuse: Fuse) -> None:
    """Reconcile; after a kill, once more by a new process."""
    tools = world.reconciler()
    studio, store = Fused(tools.studio, STUDIO_WRITES, fuse), Fused(tools.store, STORE_WRITES, fuse)
    tools = replace(tools, studio=studio, store=store)  # type: ignore[arg-type]
    try:
        tools.reconcile(PROJECT)
    except Killed:
        fuse.at = 0
        world.run()
