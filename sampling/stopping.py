"""When to stop labelling: where the learning curve leads, and whether successive models still differ.

The curve has one point per trained model: its number of labels, its mean Dice on the held-out scans, and their
number. The error 1 - Dice is modelled as a power law a * n^-b + c, which fits most learning curves (Viering & Loog
2022) and which Figueroa et al. 2012 use to predict the value of annotations.

People must judge what no curve shows: whether the held-out scans resemble future ones, and whether a Dice is good
enough for its purpose.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import whole_number

Advice: TypeAlias = Literal["go on", "nearly there", "stop", "too early to say"]
Floats: TypeAlias = NDArray[np.float64]

STEP = 20  # least number of labels that a gain speaks of, see `step_after`
WORTH = 0.005  # expected Dice gain from which a step of labels is worth it
SAMPLE = 40  # number of unlabelled scans on which successive models are compared
MODELS = 3  # trained models needed for most advice
STEADY = 0.95  # Dice from which masks of successive models count as the same
WIDE = 6  # a gain below WORTH with an upper bound of WIDE * WORTH counts as unknown
FREE = 4  # trained models needed to fit the exponent and to advise stopping; below, the exponent is USUAL
USUAL = 0.5  # the standard error of a mean falls with the square root of n
EXPONENTS = np.linspace(0.1, 2.0, 39)
COMMON = 0.75  # share of the variance common to all models, as they are judged on mostly the same scans
TRAINING = 0.005  # standard deviation of the Dice between trainings on the same scans
DRAWS = 400


@dataclass(frozen=True)
class Point:
    """One trained model.

    labels  number of labels it was trained on, >= 1
    dice    its mean Dice on the held-out scans, 0..1, high = good
    n       number of held-out scans, >= 1

    Raises ValueError on other values.
    """

    labels: int
    dice: float
    n: int

    def __post_init__(self) -> None:
        whole_number("labels", self.labels, low=1)
        whole_number("n", self.n, low=1)
        if not 0 <= self.dice <= 1:
            raise ValueError(f"dice: got {self.dice}, wanted 0 (nothing in common) to 1 (the same)")

    @property
    def noise(self) -> float:
        """Standard deviation of this Dice when models are compared.

        Assumes that the Dice of one scan deviates by half of the maximum for a number in 0..1 with this mean, and
        counts only the variance that models do not share.
        """
        scans = (1 - COMMON) * 0.25 * self.dice * (1 - self.dice) / self.n
        return math.sqrt(scans + TRAINING**2)


@dataclass(frozen=True)
class Curve:
    """Error of a model with n labels: 1 - Dice = a * n^-b + c, with a, c >= 0; it never rises with n."""

    a: float
    b: float
    c: float

    def dice(self, labels: float) -> float:
        """Expected Dice with this number of labels, 0..1."""
        return 1.0 - min(1.0, self.a * math.pow(labels, -self.b) + self.c)

    def gain(self, labels: float, more: float) -> float:
        """Expected Dice gain of `more` labels beyond `labels`, >= 0."""
        return self.a * (math.pow(labels, -self.b) - math.pow(labels + more, -self.b))


@dataclass(frozen=True)
class Hint:
    """Whether more labels are expected to be worth it.

    sentence      the advice for people
    gain          expected Dice gain of `step` more labels; None while unknown
    low, high     95 % interval of the gain, estimated from the points
    labels_worth  number of labels until `step` more are expected to gain less than `threshold`
    agreement     `Agreement.dice` of the last two models on unlabelled scans; None: unknown
    threshold     Dice gain from which `step` labels are worth it
    step          number of labels, see `step_after`
    """

    advice: Advice
    sentence: str
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    labels_worth: int | None = None
    agreement: float | None = None
    threshold: float = WORTH
    step: int = STEP


def fit_curve(points: Sequence[Point]) -> Curve:
    """Fit a power law to one or more points, in any order, weighted by inverse variance.

    With fewer than four points the exponent is 1/2, as three parameters need more.
    Source: Figueroa et al. 2012, who also weight the points.

    >>> line = [Point(n, 1 - 0.8 * n**-0.5, 30) for n in (16, 25, 100)]
    >>> curve = fit_curve(line)
    >>> round(curve.a, 4), curve.b, round(abs(curve.c), 4), round(curve.gain(100, 44), 4)
    (0.8, 0.5, 0.0, 0.0133)
    """
    if not points:
        raise ValueError("points: got none, wanted at least one trained model")
    a, b, c = _fit(points, np.array([[1 - p.dice for p in points]]))
    return Curve(float(a[0]), float(b[0]), float(c[0]))


def expected_gain(points: Sequence[Point], more: int, *, seed: int = 0) -> tuple[float, float, float]:
    """(gain, low, high): expected Dice gain of `more` labels, with its 95 % interval.

    The interval is a parametric bootstrap (Efron & Tibshirani 1993): noise is added to the
    fitted curve, which is then refitted. From five points on, the noise is at least their residual deviation from
    the curve; below four, noise is added to the points themselves and the exponent is drawn at random.
    """
    return _expected_gain(tuple(points), whole_number("more", more, low=1), seed)


@lru_cache(maxsize=64)
def _expected_gain(points: tuple[Point, ...], more: int, seed: int) -> tuple[float, float, float]:
    """Cached, because it is asked for at every look and page, and changes only with a new model."""
    curve = fit_curve(points)
    now = max(p.labels for p in points)
    errors = np.array([1 - p.dice for p in points])
    fitted = np.array([1 - curve.dice(p.labels) for p in points])
    noise = np.array([p.noise for p in points])
    if len(points) > FREE:
        noise = np.maximum(noise, math.sqrt(float(((errors - fitted) ** 2).sum()) / (len(points) - 3)))
    random, few = np.random.default_rng(seed), len(points) < FREE
    drawn = (errors if few else fitted) + noise * random.standard_normal((DRAWS, len(points)))
    a, b, _ = _fit(points, drawn, random.integers(len(EXPONENTS), size=DRAWS) if few else None)
    low, high = np.percentile(a * (float(now) ** -b - float(now + more) ** -b), [2.5, 97.5])
    gain = curve.gain(now, more)
    return gain, min(float(low), gain), max(float(high), gain)


def step_after(labels: int) -> int:
    """Number of labels that the advice speaks of: a tenth more, at least 20, whatever the size of the rounds.

    A tenth, because where findings are rare, 20 scans more are too few to gain anything.
    """
    return max(STEP, labels // 10)


def labels_worth(curve: Curve, labels: int, left: int, threshold: float = WORTH) -> int:
    """Number of labels until a step more is expected to gain less than `threshold`, rounded up to tens.

    left  number of unlabelled scans, the maximum of the result

    >>> labels_worth(Curve(0.8, 0.5, 0.0), 150, 500), labels_worth(Curve(0.8, 0.5, 0.0), 16, 25)
    (0, 25)
    """
    worth = 0
    while worth < left and curve.gain(labels + worth, step_after(labels + worth)) >= threshold:
        worth += 10
    return min(worth, left)


def agreement_sample(names: Sequence[str], count: int = SAMPLE) -> list[str]:
    """At most `count` distinct names, those with the lowest hashes, so the sample is stable as names change."""
    return sorted(set(names), key=lambda name: hashlib.sha256(f"agreement|{name}".encode()).digest())[:count]


class Agreement(NamedTuple):
    """How alike two models draw.

    dice       mean over the labels of `per_label`; 1 without any
    n          number of scans on which at least one of the models draws something
    per_label  by class number, for labels that are drawn: mean Dice over the scans on which at least one of the models
               draws the label, and the number of these scans
    """

    dice: float
    n: int
    per_label: dict[int, tuple[float, int]]


def agreement(pairs: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]], n_classes: int) -> Agreement:
    """The agreement of two models, from their label maps (H, W) of the same scans.

    A scan on which neither draws a label says nothing about it: many scans without any finding must not make two models
    look alike, nor must a common label on which they agree hide a rare one.

    n_classes  background (0, never scored) included

    Source: stabilising predictions, Bloodgood & Vijay-Shanker 2009, with Dice instead of their kappa.
    """
    if not pairs:
        raise ValueError("pairs: got none, wanted the masks of at least one scan")
    found: dict[int, list[float]] = {}
    for pair in pairs:
        areas = [np.bincount(one.ravel(), minlength=n_classes) for one in pair]
        both = np.bincount(np.where(pair[0] == pair[1], pair[0], 0).ravel(), minlength=n_classes)
        for number in range(1, n_classes):
            if total := int(areas[0][number] + areas[1][number]):
                found.setdefault(number, []).append(2 * int(both[number]) / total)
    per_label = {number: (float(np.mean(dices)), len(dices)) for number, dices in sorted(found.items())}
    mean = float(np.mean([dice for dice, _ in per_label.values()])) if per_label else 1.0
    return Agreement(mean, sum(any(one.any() for one in pair) for pair in pairs), per_label)


def stopping_hint(
    points: Sequence[Point],
    *,
    left: int,
    agreement: float | None = None,
    threshold: float = WORTH,
    seed: int = 0,
) -> Hint:
    """Advice on whether more labels are worth it, as a sentence and in numbers.

    points     the project's models in training order
    left       number of unlabelled scans
    agreement  agreement of the last two models; required for the advice "stop"

    "stop" needs four models, an expected gain below `threshold` with an upper bound below twice that, and two
    models with nearly the same masks. If the interval of the gain is too wide, it is too early to say.
    """
    if len(points) < 2:
        there = "there is none yet" if not points else "there is one so far"
        need = f"it takes at least two trained models with held-out scans, and {there}"
        return Hint("too early to say", f"Too early to say how many more labels are worth it: {need}.")
    now = max(p.labels for p in points)
    step = step_after(now)
    gain, low, high = expected_gain(points, step, seed=seed)
    worth = labels_worth(fit_curve(points), now, left, threshold)
    advice = _advice(len(points), gain, low, high, agreement, threshold)
    sentence = _sentence(advice, step, worth, left, points[-1], gain, low, high, threshold)
    return Hint(advice, sentence, gain, low, high, worth, agreement, threshold, step)


def _advice(models: int, gain: float, low: float, high: float, agreement: float | None, threshold: float) -> Advice:
    if models < MODELS:
        return "go on" if low >= threshold else "too early to say"
    if gain >= threshold:
        return "go on"
    if high >= WIDE * threshold:
        return "too early to say"
    same = agreement is not None and agreement >= STEADY
    return "stop" if models >= FREE and high < 2 * threshold and same else "nearly there"


def _sentence(
    advice: Advice,
    step: int,
    worth: int,
    left: int,
    last: Point,
    gain: float,
    low: float,
    high: float,
    threshold: float,
) -> str:
    labels = f"{step} more labels"
    overlap = f"the overlap of predicted masks with true ones (Dice, now {last.dice:.3f})"
    range_ = f"{gain:.3f} (probably between {low:.3f} and {high:.3f})"
    rule = f"Less than {threshold:g} counts as not worth it."
    if advice == "go on":
        all_ = f"All {left} scans that are left" if worth == left else f"About {worth} more labels"
        return f"{all_} are expected to be worth it: {labels} should raise {overlap} by about {range_}."
    if advice == "nearly there":
        return f"{labels} are expected to raise {overlap} by only about {range_}. {rule}"
    if advice == "stop":
        return (
            f"More labels are hardly expected to be worth it: {labels} should raise {overlap} by about {range_}, and "
            f"the last two models draw nearly the same masks. {rule}"
        )
    return (
        f"Too early to say how many more labels are worth it: with {last.n} held-out scans, {labels} may raise "
        f"{overlap} by anything from {low:.3f} to {high:.3f}."
    )


def _fit(
    points: Sequence[Point], errors: Floats, given: NDArray[np.integer] | None = None
) -> tuple[Floats, Floats, Floats]:
    """a, b and c, (B,) each, of the best power law for each of B sets of errors (B, K); a, c >= 0.

    For every exponent, a and c come from a weighted linear regression on n^-b, with negative values set to 0; the
    exponent with the smallest error wins, ties to the lower.

    given  (B,) indices into EXPONENTS to use instead
    """
    n = np.array([p.labels for p in points], dtype=np.float64)
    w = np.array([p.noise**-2 for p in points])
    w /= w.sum()
    exponents = EXPONENTS if len(points) >= FREE or given is not None else np.array([USUAL])
    x = np.power.outer(n / n.max(), -exponents)  # (K, exponents)
    mean_x, mean_y = w @ x, errors @ w
    off_x, off_y = x - mean_x, errors - mean_y[:, None]
    spread = w @ off_x**2
    with np.errstate(divide="ignore", invalid="ignore"):
        a = np.where(spread > 0, (off_y * w) @ off_x / spread, 0.0)  # (B, exponents)
    a = np.maximum(a, 0.0)
    c = mean_y[:, None] - a * mean_x
    through = c < 0  # then fit a line through the origin
    a = np.where(through, np.maximum((errors * w) @ x, 0.0) / (w @ x**2), a)
    c = np.where(through, 0.0, c)
    if given is None:  # the squared errors, from sums over the points: a tenth of the time of the residuals
        shift = mean_y[:, None] - a * mean_x - c
        off = (off_y**2 @ w)[:, None] - 2 * a * ((off_y * w) @ off_x) + a**2 * spread + shift**2
        best = np.argmin(off, axis=1)
    else:
        best = given
    rows = np.arange(len(errors))
    b = exponents[best]
    return a[rows, best] * n.max() ** b, b, c[rows, best]
