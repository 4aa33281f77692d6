"""Every text of the page, in one place to be read in one sitting and translated later."""

from __future__ import annotations

from typing import Any

TEXTS = {
    "error.unknown_project": (
        "Project {project} is not known here. Connect scanqueue in its Settings > Model in Label Studio."
    ),
}


def text(key: str, **values: Any) -> str:
    """The text under this key, with its {fields} filled in. Plain text: whoever writes HTML escapes it."""
    return TEXTS[key].format(**values)
