"""What the libraries that read files raise, as UnreadableFile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.errors import UnreadableFile

TOO_LARGE = "does not fit into memory; exclude it or use a larger machine"


@contextmanager
def reported(path: Path, damaged: str) -> Iterator[None]:
    """Turn all errors of a library into UnreadableFile, without their text, which may quote names or header values.

    damaged  the message for any error other than a lack of memory or an operating-system error: what is wrong, and how
             to fix it; {error} becomes the type of the error
    """
    try:
        yield
    except UnreadableFile:
        raise
    except MemoryError as error:
        raise UnreadableFile(path, TOO_LARGE) from error
    except OSError as error:
        raise UnreadableFile(path, f"cannot be read: {error.strerror or type(error).__name__}") from error
    except Exception as error:
        raise UnreadableFile(path, damaged.format(error=type(error).__name__)) from error
