"""The colours of labels: those of the label config, else distinct ones. Pure."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterator, Mapping, Sequence

from PIL import ImageColor

# Okabe & Ito 2008: suits colour-blind readers
FALLBACKS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
GOLDEN = 0.618034  # consecutive hues at this distance never repeat
ALIKE = 60  # RGB distance below which two colours are hard to tell apart


def label_colours(labels: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """The colour of each label as "#RRGGBB".

    given  CSS colours by label, as people typed them; their transparency is ignored. A label without a valid colour
           gets one that differs from all others.
    """
    found = {label: colour for label in labels if (colour := parsed(given.get(label, "")))}
    fresh = _distinct(list(found.values()))
    return {label: found.get(label) or next(fresh) for label in labels}


def parsed(text: str) -> str:
    """ "#RRGGBB" of a CSS colour: a name, hexadecimal, rgb(), rgba(), hsl() or hsla(); "" for anything else.

    Numbers out of range count as the nearest in range, as in CSS.
    """
    opaque = re.sub(r"^\s*(rgb|hsl)a\((.*),[^,]*\)\s*$", r"\1(\2)", text, flags=re.IGNORECASE)
    try:
        red, green, blue = (min(max(part, 0), 255) for part in ImageColor.getrgb(opaque.strip())[:3])
    except ValueError:
        return ""
    return f"#{red:02X}{green:02X}{blue:02X}"


def _distinct(taken: list[str]) -> Iterator[str]:
    """Colours unlike those taken: the palette first, then more hues."""
    n = 0
    for colour in FALLBACKS:
        if all(_distance(colour, other) >= ALIKE for other in taken):
            yield colour
    while True:
        n += 1
        rgb = colorsys.hsv_to_rgb(n * GOLDEN % 1, (0.9, 0.5)[n % 2], (0.95, 0.75, 0.6)[n % 3])
        yield "#" + "".join(f"{round(255 * part):02X}" for part in rgb)


def _distance(one: str, other: str) -> float:
    pairs = zip(bytes.fromhex(one[1:]), bytes.fromhex(other[1:]), strict=True)
    return float(sum((a - b) ** 2 for a, b in pairs) ** 0.5)
