"""The library of Segment Anything and its relatives: the extra `sam`, which not every installation has."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from backend.learning.clicks import SAMS
from backend.learning.weights import Weights, found_file

LIBRARY = "transformers"


def lacking(row: Weights, folder: Path | None) -> str:
    """What must be installed before these weights answer clicks, if their file is there; "" if nothing."""
    file = found_file(row, folder) if row.clicks in SAMS else None
    return without_library(file) if file is not None and find_spec(LIBRARY) is None else ""


def without_library(file: Path) -> str:
    """Two sentences: why this file of weights cannot answer clicks, and what to do; without the last full stop."""
    return (
        f"{file} cannot answer clicks: the library {LIBRARY} is not installed. With Docker, set EXTRAS=sam in .env, "
        "then run `docker compose build` and `docker compose up -d`; elsewhere, run pip install 'scanqueue[sam]' and "
        "restart scanqueue"
    )
