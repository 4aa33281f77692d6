"""Numbers, times and states in the words of the page. Everything in here is pure.

What is not known is None, and is written as a dash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

NONE = "\N{EN DASH}"
PHASES = {
    "empty": ("No scans yet", "Import scans into the project in Label Studio; they are read by themselves."),
    "embedding": ("Reading the scans", "Every scan is read once, to see which are alike."),
    "cold_start": ("Ready for the first labels", "The first scans to label were chosen to be as varied as possible."),
    "training": ("Training a model", "It learns from the labels. You can go on labelling meanwhile."),
    "active": (
        "Choosing with a model",
        "The model draws a first mask, and chooses the scans it would learn most from.",
    ),
    "done": ("Every scan is labelled", "There is nothing left to choose."),
    "blocked": ("Stopped: something has to be mended", ""),
}
ADVICE = {
    "go on": "Go on labelling",
    "nearly there": "Nearly there",
    "stop": "More labels are hardly worth it",
    "too early to say": "Too early to say",
}


@dataclass(frozen=True)
class Control:
    """One setting of a project as the page shows it.

    sentence  what it does, for a person
    kind      "share" (a slider and a number), "whole", "number", "text" or "choice"
    preview   whether the head of the queue depends on it
    """

    name: str
    title: str
    sentence: str
    kind: str
    low: float = 0
    high: float | None = None
    step: float = 1
    preview: bool = False


CONTROLS = (
    Control(
        *("alpha", "Alpha: unsure or different"),
        "For the strategy paper: 1 chooses what the model is most unsure of, 0 what is least like anything labelled.",
        "share",
        high=1,
        step=0.05,
        preview=True,
    ),
    Control(
        *("strategy", "Strategy"),
        "The rule by which the next scan is chosen. Written as A+B it is A before the first model and B after it.",
        "choice",
        preview=True,
    ),
    Control(
        *("uncertainty", "Uncertainty"),
        "Which pixels say how unsure the model is: all (image), the mask (foreground), its edge, or the worst (top).",
        "choice",
        preview=True,
    ),
    Control(
        *("unit", "What is chosen"),
        "Single images (slice), or the slices of a volume together, in order (scan). Sizes count images either way.",
        "choice",
        preview=True,
    ),
    Control(
        *("control_share", "Share drawn at random"),
        "This share of every round is drawn at random, so that you can see whether choosing helps. 0 for none.",
        "share",
        high=0.5,
        step=0.05,
    ),
    Control(
        *("stratify_by", "Groups"),
        'A key of the task data, such as site or scanner; the strategy "stratified" gives each of its values a share.',
        "text",
    ),
    Control(
        *("round_size", "Round size"),
        "New or changed labels until the next model is trained.",
        "whole",
        low=1,
    ),
    Control(
        *("cold_start_size", "Cold-start size"),
        "Labels until the first model is trained. Until then scans are chosen for variety alone.",
        "whole",
        low=1,
    ),
    Control(
        *("queue_depth", "Queue depth"),
        "How many scans are laid out in Label Studio at once. 0 means three rounds.",
        "whole",
    ),
    Control(
        *("retrain", "Training"),
        "Train by itself after every round (auto), or only when somebody presses Train now (button).",
        "choice",
    ),
    Control(
        *("tolerance", "Tolerance"),
        "How much Dice on the held-out scans a new model may lose and still replace the one before.",
        "number",
        high=1,
        step=0.005,
    ),
    Control(
        *("seed", "Seed"),
        "The number that all chance starts from: the same seed and scans give the same map and order.",
        "whole",
    ),
)


def number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def whole(value: int | None) -> str:
    """A whole number with its thousands apart: 12 345."""
    return NONE if value is None else f"{value:,}".replace(",", "\N{NO-BREAK SPACE}")


def plural(value: int, one: str, many: str = "") -> str:
    """ "1 scan", "2 scans"."""
    return f"{whole(value)}\N{NO-BREAK SPACE}{one if value == 1 else many or one + 's'}"


def dice(value: float | None) -> str:
    return number(value, 3)


def distance(value: float | None, unit: str | None) -> str:
    """A distance with its unit; the mean of distances in different units is none."""
    if value is None:
        return "mixed units" if unit == "mixed" else NONE
    return f"{value:.1f}\N{NO-BREAK SPACE}{unit or ''}".rstrip()


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """ "0.871 to 0.932", or "" when it is not known."""
    return "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def duration(seconds: float | None) -> str:
    """About how long: "45 s", "3 min 20 s", "2 h 5 min"."""
    if seconds is None:
        return NONE
    total = round(seconds)
    if total < 60:
        return f"{total}\N{NO-BREAK SPACE}s"
    if total < 3600:
        rest = f" {total % 60}\N{NO-BREAK SPACE}s" if total < 600 and total % 60 else ""
        return f"{total // 60}\N{NO-BREAK SPACE}min{rest}"
    rest = f" {total % 3600 // 60}\N{NO-BREAK SPACE}min" if total % 3600 >= 60 else ""
    return f"{total // 3600}\N{NO-BREAK SPACE}h{rest}"


def left(seconds: float | None) -> str:
    """The time that a step still takes, no more exactly than anybody knows it."""
    if seconds is None:
        return ""
    if seconds < 15:
        return "a few seconds left"
    if seconds < 90:
        return f"about {round(seconds / 10) * 10} seconds left"
    return f"about {duration(round(seconds / 60) * 60)} left"


def ago(seconds: float | None) -> str:
    """How long ago, coarse enough not to change all the time."""
    if seconds is None:
        return "never"
    if seconds < 15:
        return "just now"
    if seconds < 60:
        return "less than a minute ago"
    return f"{duration(seconds // 60 * 60 if seconds < 3600 else seconds // 3600 * 3600)} ago"


def moment(value: float | str | None) -> datetime | None:
    """Seconds since 1970, or ISO text, as a time in UTC; None for what is neither."""
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        return None if value is None else datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def iso(value: float | str | None) -> str:
    found = moment(value)
    return found.strftime("%Y-%m-%dT%H:%M:%SZ") if found else ""


def when(value: float | str | None) -> str:
    """ "24 Nov 2026, 14:05 UTC"; the page's script writes it in the time of the reader."""
    found = moment(value)
    return found.strftime("%-d %b %Y, %H:%M UTC") if found else NONE


def phase(name: str) -> str:
    return PHASES.get(name, (name, ""))[0]


def phase_help(name: str) -> str:
    return PHASES.get(name, ("", ""))[1]


def advice(name: str) -> str:
    return ADVICE.get(name, name)


def cure(problem: Mapping[str, Any]) -> tuple[str, str]:
    """A problem as what is wrong, and what to do about it."""
    what = str(problem.get("what", ""))
    if problem.get("cure"):
        return what, str(problem["cure"])
    first, stop, rest = what.partition(". ")
    return first + stop.strip(), rest


def value(given: Any) -> str:
    """A setting as people write it."""
    if given is None or given == "":
        return "none"
    return f"{given:g}" if isinstance(given, float) else str(given)


def curve(found: Mapping[str, Any]) -> str:
    """The learning curve in a sentence, for those who cannot see the plot."""
    models = [m for m in found["models"] if m["dice"] is not None]
    if not models:
        return "There is no learning curve yet: it begins with the first model that is judged on held-out scans."
    first, last = models[0], models[-1]
    if len(models) == 1:
        return (
            f"One model so far: Dice {dice(first['dice'])} on {plural(first['n'], 'held-out scan')} "
            f"with {plural(first['labels'], 'label')}."
        )
    rise = last["dice"] - first["dice"]
    way = "stays at" if abs(rise) < 0.0005 else "rises to" if rise > 0 else "falls to"
    text = (
        f"Mean Dice on the held-out scans {way} {dice(last['dice'])} with {plural(last['labels'], 'label')}, "
        f"from {dice(first['dice'])} with {whole(first['labels'])}."
    )
    unit, now = first.get("unit") or found["unit"], last.get("unit") or found["unit"]
    if None in (first["hd95"], last["hd95"]):
        return text
    if unit != now:
        far = distance(last["hd95"], now)
        return f"{text} HD95 is {far} now; it was measured in {unit} before, so the two do not compare."
    return text + f" HD95 goes from {distance(first['hd95'], unit)} to {distance(last['hd95'], now)}."


WIDTH, HEIGHT = 280, 84  # of a training curve, in its own units


def training_curve(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Lines to draw of a training: {"width", "height", "lines": [{"name", "points", "first", "last"}], "steps"}.

    The loss is scaled to its own maximum, Dice to 0..1. None where there is nothing to draw.
    """
    rows = [h for h in history if h.get("step") is not None]
    if len(rows) < 2:
        return None
    low, high = rows[0]["step"], rows[-1]["step"]
    lines = []
    for name, title in (("loss", "Loss"), ("dice", "Dice")):
        known = [(h["step"], h[name]) for h in rows if h.get(name) is not None]
        if len(known) < 2:
            continue
        top = 1.0 if name == "dice" else max(v for _, v in known) or 1.0
        points = " ".join(
            f"{(s - low) / max(high - low, 1) * WIDTH:.1f},{HEIGHT - min(max(v / top, 0), 1) * HEIGHT:.1f}"
            for s, v in known
        )
        lines.append({"name": name, "title": title, "points": points, "first": known[0][1], "last": known[-1][1]})
    return {"width": WIDTH, "height": HEIGHT, "lines": lines, "steps": high} if lines else None


FILTERS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        *(number, whole, plural, dice, distance, interval, duration, left, ago, iso, when),
        *(phase, phase_help, advice, cure, value),
    )
}
