"""All texts of the page, its scripts and the figures. They are in `pages/texts.toml`, by section and name."""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

PATH = Path(__file__).with_name("pages") / "texts.toml"
SCRIPTS = "js."  # texts that the scripts of the page use


@cache
def texts() -> dict[str, str]:
    sections = tomllib.loads(PATH.read_text(encoding="utf-8"))
    return {f"{section}.{name}": value for section, names in sections.items() for name, value in names.items()}


def text(key: str, **values: Any) -> str:
    """The text under this key as plain text, with its {fields} filled in. Raises KeyError."""
    return texts()[key].format(**values)


def rich(key: str, **values: Any) -> Markup:
    """A text that contains HTML; the values are escaped."""
    return Markup(texts()[key]).format(**values)


def plural(value: int, noun: str, number: str) -> str:
    """ "1 scan" or "2 scans", for the noun under "n."; `number` is how `value` is written."""
    one, _, many = texts()[f"n.{noun}"].partition("|")
    return (one if value == 1 else many).replace("{n} ", f"{number}\N{NO-BREAK SPACE}")


def script() -> bytes:
    """The script that gives the page's scripts their texts."""
    ours = {key.removeprefix(SCRIPTS): value for key, value in texts().items() if key.startswith(SCRIPTS)}
    return f'"use strict";\nconst TEXTS = {json.dumps(ours, ensure_ascii=False, indent=1)};\n'.encode()
