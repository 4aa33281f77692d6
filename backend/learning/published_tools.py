"""The published networks for clicks that a lab has in its weights folder."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from backend.errors import WeightsMissing
from backend.formats.pixels import Letterboxed
from backend.learning.clicks import PUBLISHED, SAMS, SCRIBBLES
from backend.learning.weights import WEIGHTS, found_file

if TYPE_CHECKING:  # its libraries take time to import, and only smart tools need them
    from backend.learning.geodesic import Geodesic, Tool

log = logging.getLogger("scanqueue.learner")


class Published(Protocol):
    """A published network."""

    def tool(self, scan: Letterboxed, paths: Geodesic, *, patience: float | None = None) -> Tool:
        """For the prompts on one scan, whose paths these are.

        patience  seconds that an answer may wait for the scan to be made ready; then the paths answer. None: forever
        """
        ...


class PublishedTools:
    """The networks by their names in `clicks.PUBLISHED`, each loaded when it is first asked for. For any thread."""

    def __init__(self, weights_dir: Path | None) -> None:
        self._files = {row.clicks: file for row in WEIGHTS if row.clicks and (file := found_file(row, weights_dir))}
        self._loaded: dict[str, Published | None] = {}
        self._lock = threading.Lock()

    def get(self, name: str, device: str) -> Published | None:
        """None if its files are not there, or invalid, or its library is not installed."""
        if name not in self._files:
            return None
        with self._lock:
            if name not in self._loaded:
                try:
                    self._loaded[name] = _load(name, self._files[name], device)
                except WeightsMissing as error:
                    log.warning(
                        "clicks are answered without %s until this is fixed and scanqueue restarted: %s", name, error
                    )
                    self._loaded[name] = None
            return self._loaded[name]

    def all(self, device: str) -> dict[str, Published]:
        """Those that can be used."""
        return {name: found for name in PUBLISHED if (found := self.get(name, device)) is not None}


def _load(name: str, file: Path, device: str) -> Published:
    from backend.learning.sam import Sam
    from backend.learning.scribble_prompt import ScribblePrompt

    assert name in (SCRIBBLES, *SAMS)
    return ScribblePrompt.load(file) if name == SCRIBBLES else Sam.load(name, file, device)
