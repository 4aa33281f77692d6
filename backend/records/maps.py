"""Maps of scans: positions in the plane, stored as artefacts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.fingerprints import fingerprint
from backend.records.artefacts import Artefacts


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
    """The stored map; None if it does not exist yet."""
    try:
        found = artefacts.arrays("maps", map_name(project, embedder))
    except FileNotFoundError:
        return None
    state = {k.removeprefix("state_"): v for k, v in found.items() if k.startswith("state_")}
    digests = [str(d) for d in found["digests"]]
    if "volumes" not in found:
        return StoredMap(digests, found["xy"], state, "slice", {})
    names = [str(v) for v in found["volumes"]]
    return StoredMap(digests, found["xy"], state, "scan", dict(zip(names, found["places"], strict=True)))


def put_map(artefacts: Artefacts, project: int, embedder: str, found: StoredMap) -> None:
    """Write a map, replacing the existing one."""
    more: dict[str, NDArray[Any]] = {f"state_{k}": v for k, v in found.state.items()}
    if found.unit == "scan":
        more["volumes"] = np.array(list(found.volumes), dtype=np.str_)
        more["places"] = np.array(list(found.volumes.values()), dtype=np.float64).reshape(-1, 2)
    name = map_name(project, embedder)
    artefacts.put_arrays("maps", name, digests=np.array(found.digests), xy=found.xy, **more)
