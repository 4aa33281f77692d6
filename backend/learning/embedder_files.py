"""Where the weights of an embedder come from, and the error that says why they are unavailable."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from backend.errors import BadSetting, BrokenWeights, WeightsMissing
from backend.learning.model_hub import HUB_SECONDS, unreachable


class Unavailable(WeightsMissing):
    """Weights are missing. The reason is kept separate from the remedy: `auto` quotes only the reason."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(f"{reason}. {cure}")
        self.reason = reason


@dataclass
class WeightSources:
    """Where weights may come from, and the device the network runs on."""

    weights_dir: Path | None
    device: str
    download: bool

    def find(self, name: str, *, anywhere: bool = True) -> Path | None:
        """A file or folder: in the weights folder, else (if `anywhere`) as given."""
        places = [] if self.weights_dir is None else [self.weights_dir / name]
        with suppress(RuntimeError):  # ~ of somebody without a home folder
            places += [Path(name).expanduser()] if anywhere else []
        return next((path for path in places if _exists(path)), None)

    def cure(self, files: str, folder: str) -> str:
        where = f"the folder named by SCANQUEUE_WEIGHTS_DIR, in {folder}/"
        if self.weights_dir is not None:
            where = f"{self.weights_dir / folder}/"
        return f"Put {files} into {where}, or choose another embedder (SCANQUEUE_EMBEDDER)"

    def hub_file(self, repo: str, names: Sequence[str]) -> Path | None:
        """The first of these files that a hub repository has: cached, else downloaded, else None."""
        import httpx
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        for cached in (True, False):
            if not cached and self.why_no_download:
                return None
            for name in names:
                try:
                    return Path(hf_hub_download(repo, name, local_files_only=cached, etag_timeout=HUB_SECONDS))
                except RemoteEntryNotFoundError:
                    continue  # the repository has no such file
                except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
                    if not cached:
                        self.why_no_download = f"the download failed: {type(error).__name__}"
                        return None
        return None

    @cached_property
    def why_no_download(self) -> str:
        """Empty when downloads are possible."""
        return unreachable() if self.download else "downloads are turned off"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


class reading_weights:
    """Turns any error while reading weights into WeightsMissing, with the file and a remedy."""

    def __init__(self, name: str, path: Path, cure: str) -> None:
        self.name, self.path, self.cure = name, path, cure

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, BrokenWeights):
            raise Unavailable(f"{self.name}: {error}", self.cure) from error
        if isinstance(error, Exception) and not isinstance(error, WeightsMissing | BadSetting):
            what = " ".join(str(error).split())[:200]
            reason = f"{self.name}: {self.path} cannot be used ({type(error).__name__}: {what})"
            raise Unavailable(reason, self.cure) from error


def not_found(name: str, local: str, on_hub: bool, place: WeightSources) -> str:
    where = place.weights_dir / local if place.weights_dir is not None else "any weights folder"
    why = f" and cannot be downloaded ({place.why_no_download or 'the hub does not have it'})" if on_hub else ""
    return f"{name}: not in {where}{why}"
