"""JSON files with lists that may not fit in memory, and the checksum of every exported file."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any


class Sections:
    """A JSON object whose lists are written row by row to temporary files until `write` joins them.

    file  the final file
    """

    def __init__(self, file: Path, names: Sequence[str]) -> None:
        self.file = file
        self._parts: dict[str, IO[str]] = {
            name: (file.parent / f".{file.name}.{name}").open("w+", encoding="utf-8") for name in names
        }
        self.counts: Counter[str] = Counter()

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        self._parts[name].write(",\n  " if self.counts[name] else "\n  ")
        json.dump(row, self._parts[name], allow_nan=False)
        self.counts[name] += 1

    def write(self, head: Mapping[str, Any]) -> None:
        """Write the file: `head`, then each list. Rows cannot be added afterwards."""
        with self.file.open("w", encoding="utf-8") as out:
            out.write("{")
            for at, (key, value) in enumerate(head.items()):
                out.write(",\n " if at else "\n ")
                out.write(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
            for at, (name, part) in enumerate(self._parts.items()):
                out.write(f"{',' if at or head else ''}\n {json.dumps(name)}: [")
                part.seek(0)
                shutil.copyfileobj(part, out)
                out.write("\n ]" if self.counts[name] else "]")
            out.write("\n}\n")
        self.close()

    def close(self) -> None:
        """Delete the temporary files."""
        for part in self._parts.values():
            part.close()
            Path(part.name).unlink(missing_ok=True)


class Files:
    """The files of an export below `folder`. Each is listed in the manifest with its SHA-256 checksum."""

    def __init__(self, folder: Path, manifest: Sections) -> None:
        self.folder = folder
        self._manifest = manifest
        self.kinds: Counter[str] = Counter()

    def path(self, name: str) -> Path:
        """Path of the file `name` ("/" between folders). Creates its folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def put(self, name: str, data: bytes, kind: str, **facts: Any) -> None:
        self.path(name).write_bytes(data)
        self._list(name, hashlib.sha256(data).hexdigest(), len(data), kind, facts)

    def written(self, name: str, kind: str, **facts: Any) -> None:
        """List an existing file."""
        path = self.path(name)
        self._list(name, sha256(path), path.stat().st_size, kind, facts)

    def _list(self, name: str, digest: str, size: int, kind: str, facts: Mapping[str, Any]) -> None:
        self.kinds[f"model/{kind}" if name.startswith("model/") else kind] += 1
        self._manifest.add("files", {"path": name, "kind": kind, **facts, "bytes": size, "sha256": digest})


def sha256(path: Path) -> str:
    """SHA-256 checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
