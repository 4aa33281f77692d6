"""Display text for reports and figures."""

from __future__ import annotations

import html
from collections.abc import Sequence


def printable(text: str) -> str:
    """User text with unprintable characters replaced by U+FFFD, as in browsers."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


def escaped(text: str) -> str:
    """User text escaped for HTML."""
    return html.escape(printable(text))


def listed(parts: Sequence[str], last: str) -> str:
    """Parts joined as in a sentence.

    >>> listed(["10", "20", "40"], "or")
    '10, 20 or 40'
    """
    if len(parts) < 2:
        return parts[0] if parts else "none"
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"
