"""Maps of scans: positions in the plane, stored as artefacts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.fingerprints import fingerprint
from backend.records.artefacts import Artefacts

log = logging.getLogger("scanqueue.records")

STATE = ("xy", "mean", "components", "reduced")  # arrays of every fit


def map_name(project: int, embedder: str) -> str:
    return fingerprint("map", project, embedder)


class StoredMap(NamedTuple):
    """A map: `digests` and their positions `xy` (N, 2), the fitted `state`, and the unit of the fit.

    unit     "slice": every image has its own place; "scan": the images of a volume share one
    volumes  with "scan", the place (2,) of every volume, by `Scan.whole`
    """

    digests: list[str]
    xy: NDArray[np.float64]
    state: dict[str, NDArray[Any]]
    unit: str
    volumes: dict[str, NDArray[np.float64]]


def read_map(artefacts: Artefacts, project: int, embedder: str) -> StoredMap | None:
    """The stored map; None if it does not exist yet, or is damaged and was removed."""
    try:
        found = artefacts.arrays("maps", map_name(project, embedder))
    except FileNotFoundError:
        return None
    if not _sound(found):
        log.warning("the map %s is damaged, and is laid out again", map_name(project, embedder))
        artefacts.path("maps", map_name(project, embedder)).unlink(missing_ok=True)
        return None
    state = {k.removeprefix("state_"): v for k, v in found.items() if k.startswith("state_")}
    digests = [str(d) for d in found["digests"]]
    if "volumes" not in found:
        return StoredMap(digests, found["xy"], state, "slice", {})
    names = [str(v) for v in found["volumes"]]
    return StoredMap(digests, found["xy"], state, "scan", dict(zip(names, found["places"], strict=True)))


def _sound(found: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the arrays of a file can be those of a map."""
    if not {"digests", "xy", *(f"state_{name}" for name in STATE)} <= found.keys():
        return False
    if ("volumes" in found) != ("places" in found):
        return False
    pairs = [("digests", "xy"), ("volumes", "places")][: 1 + ("volumes" in found)]
    if any(found[xy].shape != (found[names].size, 2) for names, xy in pairs):
        return False
    numbers = [values for name, values in found.items() if name not in ("digests", "volumes")]
    return all(values.dtype.kind in "fiu" and np.isfinite(values).all() for values in numbers)


def put_map(artefacts: Artefacts, project: int, embedder: str, found: StoredMap) -> None:
    """Write a map, replacing the existing one."""
    more: dict[str, NDArray[Any]] = {f"state_{k}": v for k, v in found.state.items()}
    if found.unit == "scan":
        more["volumes"] = np.array(list(found.volumes), dtype=np.str_)
        more["places"] = np.array(list(found.volumes.values()), dtype=np.float64).reshape(-1, 2)
    name = map_name(project, embedder)
    artefacts.put_arrays("maps", name, digests=np.array(found.digests), xy=found.xy, **more)
