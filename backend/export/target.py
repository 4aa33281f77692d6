"""The output folder: filled under a temporary name, then renamed, so that it is complete or absent."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backend.errors import BadSetting, StorageFull, is_disk_full
from backend.json_text import parse_json

MANIFEST = "manifest.json"
MADE_BY = "scanqueue export"


class Target:
    """The output folder for project `project` of the Label Studio at `url`.

    Only an earlier export of the same project is ever deleted. With `force`, a folder with other content is renamed
    to `moved`.

    Raises BadSetting if `out` exists and may not be replaced, or cannot be created.
    """

    def __init__(self, out: Path, project: int, url: str, *, force: bool) -> None:
        self.out = Path(os.path.abspath(out))
        self.moved: Path | None = None
        self._ours = False
        if not self.out.name:
            raise BadSetting(f"--out: an export cannot create {out}. Use a new folder name.")
        if not self.out.exists() and not self.out.is_symlink():
            return
        objection = _objection(self.out, project, url)
        self._ours = not objection
        if objection and not force:
            raise BadSetting(
                f"--out: {out} exists and {objection}. Use another folder, or --force to move its contents aside first."
            )

    @contextmanager
    def filling(self) -> Iterator[Path]:
        """A temporary folder to fill. It is moved into place at the end, or deleted after a failure."""
        aside = self._beside("new")
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            aside.mkdir()
        except OSError as error:
            raise BadSetting(
                f"--out: cannot write to {aside.parent} ({error.strerror}). Use another folder."
            ) from error
        try:
            yield aside
            self._put(aside)
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise StorageFull(
                f"No space for the export in {aside.parent}: {error.strerror}. Free disk space, or use another folder "
                "with --out. The previous contents are unchanged."
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _put(self, aside: Path) -> None:
        old = None
        try:
            if self.out.exists() or self.out.is_symlink():
                old = self._beside("old") if self._ours else self._put_aside()
                os.rename(self.out, old)
            os.rename(aside, self.out)
        except OSError as error:
            raise BadSetting(
                f"--out: cannot replace {self.out} ({error.strerror}). Use a folder inside it instead."
            ) from error
        if old is not None and self._ours:
            shutil.rmtree(old, ignore_errors=True)
        elif old is not None:
            self.moved = old

    def _put_aside(self) -> Path:
        return self.out.with_name(f"{self.out.name}.old-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")

    def _beside(self, kind: str) -> Path:
        return self.out.with_name(f".{self.out.name}.{kind}-{secrets.token_hex(4)}")


def _objection(out: Path, project: int, url: str) -> str:
    """Why a folder may not be replaced; "" for an empty folder or an earlier export of the project."""
    if out.is_symlink() or not out.is_dir():
        return "is not a folder"
    if not any(out.iterdir()):
        return ""
    try:
        made: Any = parse_json((out / MANIFEST).read_bytes())
        if made["made_by"] != MADE_BY:
            raise ValueError
        theirs = made["project"]["id"], made["project"]["label_studio"]
        listed = {str(file["path"]) for file in made["files"]} | {MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        return "is not an earlier export"
    if theirs != (project, url):
        return f"contains an export of project {theirs[0]} of {theirs[1]}"
    for place, _, names in os.walk(out):
        for name in names:
            path = (Path(place, name)).relative_to(out).as_posix()
            if path not in listed:
                return f"contains {path}, which is not part of an export"
    return ""
