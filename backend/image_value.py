"""The value of an Image tag, resolved against a task's data as Label Studio's editor does.

A value as Label Studio's parsed label config writes it: without the `$` in front. `image` is the key of an address,
`image.url` and `images[0]` lead into nested data, `http://host/$file` has variables inside, and a whole address is the
same for every task.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

LONGEST = 8192  # characters of an address; browsers and servers accept hardly more
INLINE = "inline:"
_VARIABLE = re.compile(r"\$[\w\[\].{}]+", re.ASCII)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:|/", re.IGNORECASE)
_INLINE = re.compile(r"inline:(\d+)/(\d+):([0-9a-f]{32}):(.*)", re.DOTALL)
_STEP = re.compile(r"[^.\[\]]+")


def template(value: str) -> str:
    """The value as it is written in the label config.

    >>> template("image.url"), template("http://host/$file"), template("folder/$file")
    ('$image.url', 'http://host/$file', '$folder/$file')
    """
    return value if _ADDRESS.match(value) or value.startswith("$") else f"${value}"


def resolve(value: str, data: Mapping[str, Any]) -> str:
    """The address of the image, a `data:` URI included; "" where the data lacks it.

    >>> resolve("image.url", {"image": {"url": "/data/upload/1/a.png"}})
    '/data/upload/1/a.png'
    >>> resolve("images[1]", {"images": ["a.png", "b.png"]}), resolve("images", {"images": ["a.png", "b.png"]})
    ('b.png', 'a.png')
    >>> resolve("http://host/$site/$file", {"site": 7, "file": "a.png"})
    'http://host/7/a.png'
    """
    written = template(value)
    if _VARIABLE.fullmatch(written):
        found = _get(data, written[1:])
        if isinstance(found, list):  # the editor shows the first
            found = found[0] if found else ""
        return found if isinstance(found, str) else ""
    parts = [_text(_get(data, name[1:])) for name in _VARIABLE.findall(written)]
    return "" if None in parts else _VARIABLE.sub(lambda _: str(parts.pop(0)), written)


def reference(value: str, data: Mapping[str, Any], project: int, task: int) -> str:
    """What the records keep of `resolve`: the address, or for a `data:` URI, which may have megabytes, its digest."""
    found = resolve(value, data)
    if found[:5].lower() == "data:":
        return f"{INLINE}{project}/{task}:{_digest(found)}:{value}"
    return found.replace("\0", "")[:LONGEST].encode(errors="replace").decode()  # as every database accepts it


def parse_inline(kept: str) -> tuple[int, int, str, str] | None:
    """Project, task, digest and value of a reference to a `data:` URI; None for any other."""
    found = _INLINE.fullmatch(kept)
    return (int(found[1]), int(found[2]), found[3], found[4]) if found else None


def is_unchanged(uri: str, digest: str) -> bool:
    return _digest(uri) == digest


def decode_data_uri(uri: str) -> bytes | None:
    """The bytes in a `data:` URI; None if it is invalid.

    >>> decode_data_uri("data:image/png;base64,aGk="), decode_data_uri("data:,a%20b"), decode_data_uri("data:x")
    (b'hi', b'a b', None)
    """
    head, comma, body = uri.partition(",")
    if not comma:
        return None
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(unquote_to_bytes(body) if "%" in body else body, validate=True)
    except (binascii.Error, ValueError):
        return None


def data_with(value: str, address: str) -> dict[str, Any] | None:
    """Task data with which the value resolves to the address; None if no data do, as the value adds its own text.

    >>> data_with("image", "a.png"), data_with("image.url", "a.png"), data_with("images[0]", "a.png")
    ({'image': 'a.png'}, {'image': {'url': 'a.png'}}, {'images': ['a.png']})
    >>> data_with("http://host/$file", "a.png") is None
    True
    """
    made: Any = address
    for step in reversed(_STEP.findall(value)):
        made = [made] if step == "0" else {step: made}
    return made if isinstance(made, dict) and resolve(value, made) == address else None


def _get(data: Mapping[str, Any], path: str) -> Any:
    """As lodash's `get`: the key itself where the data has it, else key by key."""
    if data.get(path) is not None:
        return data[path]
    found: Any = data
    for step in _STEP.findall(path):
        if isinstance(found, Mapping):
            found = found.get(step)
        elif isinstance(found, list) and re.fullmatch("[0-9]{1,9}", step) and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found


def _text(found: Any) -> str | None:
    """A variable inside a longer value as JavaScript writes it; None for what makes no address."""
    if isinstance(found, str):
        return found
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return str(int(found)) if math.isfinite(found) and found == int(found) else repr(found)


def _digest(uri: str) -> str:
    return hashlib.sha256(uri.encode(errors="replace")).hexdigest()[:32]
