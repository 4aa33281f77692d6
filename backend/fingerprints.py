"""Short names for values."""

from __future__ import annotations

import hashlib
import json
from typing import Any

JUDGED_FILE = "judged.safetensors"
CLICK_FILE = "clicks.safetensors"


def fingerprint(*parts: Any) -> str:
    """A short name for `parts` (JSON values): equal parts have equal names, on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def judged_weights(model: str) -> str:
    """The name of the weights in a model's folder that have not learnt from the scans held out from it."""
    return f"{model}/{JUDGED_FILE}"
