"""What the libraries that read files raise, as UnreadableFile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom.datadict import dictionary_has_tag, dictionary_keyword

from backend.errors import UnreadableFile

_TAG = re.compile(r"\(([0-9A-Fa-f]{4}),\s?([0-9A-Fa-f]{4})\)")
TOO_LARGE = "does not fit into memory; exclude it or use a larger machine"


def described(error: BaseException) -> str:
    """The type of a library's error, and the DICOM element that it is about. Never its text, which quotes values."""
    for group, element in _TAG.findall(str(error)):
        tag = int(group + element, 16)
        if dictionary_has_tag(tag):
            return f"{type(error).__name__}, {dictionary_keyword(tag)}"
    return type(error).__name__


@contextmanager
def reported(path: Path, damaged: str) -> Iterator[None]:
    """Turn all errors of a library into UnreadableFile, without their text, which may quote names or header values.

    damaged  the message for any error other than a lack of memory or an operating-system error: what is wrong, and how
             to fix it; {error} becomes the error as in `described`
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
        raise UnreadableFile(path, damaged.format(error=described(error))) from error
