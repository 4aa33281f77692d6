"""Whether more labels are worth it: the fitted curve, the coverage of its interval, and the advice to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from sampling import Point, agreement, agreement_sample, expected_gain, fit_curve, labels_worth, stopping_hint
from sampling.stopping import FREE, STEADY, STEP, WORTH, Curve


def learning(curve: Curve, models: int, *, first: int = 20, step: int = 10) -> list[Point]:
    """The models of a project whose Dice follows the curve without noise."""
    sizes = range(first, first + models * step, step)
    return [Point(n, curve.dice(n), max(1, n // 5)) for n in sizes]


STEEP = Curve(0.8, 0.6, 0.03)
FLAT = Curve(0.02, 1.0, 0.05)


def test_an_exact_power_law_is_recovered() -> None:
    found = fit_curve(learning(STEEP, 8))
    assert (found.a, found.b, found.c) == pytest.approx((0.8, 0.6, 0.03), abs=1e-6)
    again = fit_curve(learning(STEEP, 8)[::-1])
    assert (again.a, again.b, again.c) == pytest.approx((found.a, found.b, found.c))
    assert found.gain(90, 10) == pytest.approx(0.8 * (90**-0.6 - 100**-0.6))


def test_with_fewer_than_four_models_the_exponent_is_a_half() -> None:
    assert {fit_curve(learning(STEEP, n)).b for n in (1, 2, 3)} == {0.5}
    assert fit_curve(learning(STEEP, FREE)).b == pytest.approx(0.6)


def test_a_falling_dice_is_treated_as_noise_and_never_as_a_loss() -> None:
    falling = [Point(n, d, 8) for n, d in ((20, 0.9), (30, 0.89), (40, 0.88), (50, 0.87))]
    curve = fit_curve(falling)
    assert (curve.a, curve.gain(50, 10)) == (0.0, 0.0)
    gain, low, high = expected_gain(falling, 10)
    assert gain == low == 0.0 < high


def test_models_with_equal_label_counts_do_not_predict_a_gain() -> None:
    assert fit_curve([Point(20, 0.8, 4), Point(20, 0.9, 4)]).a == 0.0


def test_the_interval_contains_the_gain_and_is_reproducible() -> None:
    points = learning(STEEP, 8)
    gain, low, high = expected_gain(points, 10)
    assert gain == pytest.approx(STEEP.gain(90, 10), abs=1e-6)
    assert low < gain < high
    assert expected_gain(points, 10) == (gain, low, high)


@pytest.mark.parametrize(("b", "models"), [(0.3, 5), (0.7, 3), (0.7, 8), (1.2, 5), (1.2, 15)])
def test_the_interval_covers_the_true_gain_of_noisy_projects(b: float, models: int) -> None:
    """100 projects with known curves; some held-out scans are harder, and trainings vary."""
    random, held = np.random.default_rng(5), []
    for _ in range(100):
        truth = Curve(random.uniform(0.1, 0.5) * 20**b, b, random.uniform(0.02, 0.12))
        hard, points = random.normal(0, 0.08, 200), []
        for exact in learning(truth, models):
            noise = (hard[: exact.n] + random.normal(0, 0.05, exact.n)).mean() + random.normal(0, 0.006)
            points.append(replace(exact, dice=float(np.clip(exact.dice + noise, 0, 1))))
        _, low, high = expected_gain(points, 10)
        held.append(low <= truth.gain(points[-1].labels, 10) <= high)
    assert np.mean(held) >= 0.88


def test_fewer_held_out_scans_give_a_wider_interval() -> None:
    widths = []
    for n in (4, 40):
        _, low, high = expected_gain([replace(p, n=n) for p in learning(STEEP, 8)], 10)
        widths.append(high - low)
    assert widths[0] > 1.2 * widths[1]


def test_labels_are_worth_it_until_a_step_gains_less_than_the_threshold() -> None:
    worth = labels_worth(STEEP, 20, 500)
    assert STEEP.gain(20 + worth - 10, STEP) >= WORTH > STEEP.gain(20 + worth, STEP)
    assert labels_worth(STEEP, 20, 7) == 7
    assert labels_worth(STEEP, 20, 500, threshold=0.1) == 0
    assert labels_worth(Curve(0.0, 0.5, 0.1), 20, 500) == 0


# -- agreement ---------------------------------------------------------------------------------------


def test_agreement_is_the_mean_dice_of_two_models() -> None:
    one, other = (np.array([row], np.uint8) for row in ([1, 1, 0, 0], [0, 1, 1, 0]))
    assert agreement([(one, one)], 2)[:2] == (1.0, 1)
    assert agreement([(one, one), (one, other)], 2) == (pytest.approx(0.75), 2, {1: (pytest.approx(0.75), 2)})
    with pytest.raises(ValueError, match=r"^pairs: got none, wanted the masks of at least one scan$"):
        agreement([], 2)


def test_scans_on_which_neither_model_draws_anything_do_not_make_them_agree() -> None:
    one, other, none = (np.array([row], np.uint8) for row in ([1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]))
    assert agreement([(none, none)] * 39 + [(one, other)], 2)[:2] == (0.0, 1)
    assert agreement([(none, none), (one, none)], 2)[:2] == (0.0, 1)
    assert agreement([(none, none)] * 40, 2) == (1.0, 0, {})


def test_models_that_agree_on_a_common_label_may_disagree_on_a_rare_one() -> None:
    common, rare, moved = (np.array([row], np.uint8) for row in ([1, 1, 0, 0], [1, 1, 2, 0], [1, 1, 0, 2]))
    found = agreement([(common, common)] * 38 + [(rare, moved)] * 2, 4)
    assert found == (0.5, 40, {1: (1.0, 40), 2: (0.0, 2)})
    assert stopping_hint(learning(FLAT, 8), left=300, agreement=found.dice).advice != "stop"


def test_the_agreement_sample_stays_the_same_while_its_scans_exist() -> None:
    names = [f"d{i}" for i in range(500)]
    sample = agreement_sample(names)
    assert len(sample) == len(set(sample)) == 40
    assert agreement_sample(names[::-1] + names) == sample
    left = agreement_sample([n for n in names if n != sample[3]])
    assert left[:39] == sample[:3] + sample[4:]
    assert agreement_sample(["only"]) == ["only"]


# -- the advice --------------------------------------------------------------------------------------


def advice(points: Sequence[Point], left: int = 300, same: float | None = 0.98) -> str:
    return stopping_hint(points, left=left, agreement=same).advice


@pytest.mark.parametrize(
    ("what", "points", "same", "wanted"),
    [
        ("a project without models gets no advice", [], None, "too early to say"),
        ("nor does one after its first model", learning(STEEP, 1), None, "too early to say"),
        ("two models on few scans are inconclusive", learning(STEEP, 2), 0.98, "too early to say"),
        ("a steep curve goes on", learning(STEEP, 4), 0.98, "go on"),
        ("even when the models agree", learning(STEEP, 5), 1.0, "go on"),
        ("a flat one stops", learning(FLAT, 8), 0.98, "stop"),
        ("not while the models still change", learning(FLAT, 8), STEADY - 0.01, "nearly there"),
        ("nor when that is not known", learning(FLAT, 8), None, "nearly there"),
        ("nor with three models", learning(FLAT, 3), 1.0, "nearly there"),
    ],
)
def test_advice(what: str, points: list[Point], same: float | None, wanted: str) -> None:
    assert advice(points, same=same) == wanted, what


@pytest.mark.parametrize(
    ("curve", "wanted"),
    [(Curve(0.8, 0.6, 0.03), "stop"), (Curve(0.9, 0.3, 0.0), "stop"), (Curve(2.4, 0.3, 0.0), "go on")],
)
def test_the_advice_does_not_depend_on_the_size_of_the_rounds(curve: Curve, wanted: str) -> None:
    hints = []
    for size in (1, 5, 10, 20, 50, 100):
        points = learning(curve, 400 // size + 1, step=size)
        assert points[-1].labels == 420
        hints.append(stopping_hint(points, left=300, agreement=0.98))
    assert {hint.advice for hint in hints} == {wanted}
    assert len({hint.labels_worth for hint in hints}) == 1
    assert [hint.gain for hint in hints] == pytest.approx([curve.gain(420, 42)] * 6, rel=0.02)
    assert {hint.step for hint in hints} == {42}
    assert all(hint.low <= curve.gain(420, 42) <= hint.high for hint in hints)  # type: ignore[operator]


def test_a_flat_curve_with_a_large_possible_gain_does_not_advise_stopping() -> None:
    wild = [Point(20 + 10 * i, d, 4) for i, d in enumerate((0.5, 0.75, 0.45, 0.7, 0.5))]
    assert advice(wild) in ("too early to say", "go on")


@pytest.mark.parametrize("models", range(2, 20))
def test_stopping_is_not_advised_while_the_next_round_may_gain_twice_the_threshold(models: int) -> None:
    for curve in (STEEP, FLAT, Curve(2.0, 1.0, 0.1)):
        hint = stopping_hint(learning(curve, models), left=300, agreement=1.0)
        assert hint.low is not None
        assert hint.high is not None
        assert hint.gain is not None
        assert 0 <= hint.low <= hint.gain <= hint.high
        if hint.advice == "stop":
            assert models >= FREE
            assert hint.high < 2 * WORTH


def test_the_sentences_are_readable() -> None:
    hint = stopping_hint(learning(STEEP, 4), left=300)
    assert hint.sentence == (
        f"About {hint.labels_worth} more labels are expected to be worth it: 20 more labels should raise the "
        f"overlap of predicted masks with true ones (Dice, now 0.893) by about {hint.gain:.3f} (probably between "
        f"{hint.low:.3f} and {hint.high:.3f})."
    )
    few = stopping_hint(learning(STEEP, 4), left=7)
    assert few.sentence.startswith("All 7 scans that are left are expected to be worth it: 20 more labels should")
    stop = stopping_hint(learning(FLAT, 8), left=300, agreement=0.98)
    assert stop.sentence.startswith("More labels are hardly expected to be worth it: 20 more labels should raise")
    assert stop.sentence.endswith(
        "and the last two models draw nearly the same masks. Less than 0.005 counts as not worth it."
    )
    assert stopping_hint(learning(STEEP, 1), left=300).sentence == (
        "Too early to say how many more labels are worth it: it takes at least two trained models with held-out "
        "scans, and there is one so far."
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Point(0, 0.5, 1), "labels: got 0, wanted a whole number >= 1"),
        (lambda: Point(5, 0.5, 0), "n: got 0, wanted a whole number >= 1"),
        (lambda: Point(5, 1.5, 1), "dice: got 1.5, wanted 0 (nothing in common) to 1 (the same)"),
        (lambda: fit_curve([]), "points: got none, wanted at least one trained model"),
    ],
)
def test_an_invalid_learning_curve_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words.replace('(', '[(]').replace(')', '[)]')}$"):
        make()
