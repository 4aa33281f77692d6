"""How benchmarks compute and print; nothing here depends on the speed of the machine."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.manifold import trustworthiness as trustworthiness_of_all

from backend.learning.ridge_head import PatchPool
from backend.simulate.statistics import Interval
from benchmarks import learner, selection
from benchmarks.curves import read_models
from benchmarks.decisions import Duel, former_rule, measure, new_rule
from benchmarks.measure import Comparison, alternate, report, rounded, spread, summary, t_interval
from benchmarks.pools import covering_radius, embeddings, power_law, trustworthiness, unit
from benchmarks.screen_pools import CLIPS, FRAMES, LABELS, SOURCES, Bank, kinds

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT = 900  # time limit in seconds for each with --quick, even on a busy machine
BENCHMARKS = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if '"--quick"' in p.read_text())


@pytest.mark.long
@pytest.mark.label_studio
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_still_finishes(name: str, tmp_path: Path) -> None:
    """Its measurements are ignored: nothing may depend on the speed of the machine."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=env, **pipes) as running:
        try:
            said, errors = running.communicate(timeout=TIME_LIMIT)
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGINT)  # it stops the servers that it started
    assert running.returncode in (0, 1), errors  # 1: a limit was not met
    assert said.strip(), errors
    assert math.isfinite(json.loads(said.splitlines()[-1])["ratio"])


def test_the_ratio_is_the_median_of_the_pairs_not_the_ratio_of_the_medians() -> None:
    comparison = Comparison(ours=(1.0, 2.0, 30.0), theirs=(2.0, 4.0, 10.0))
    assert comparison.ratios == (0.5, 0.5, 3.0)
    assert comparison.figures() == {"ratio": 0.5, "low": 0.5, "high": 2.5}


def test_inverted_says_how_many_times_faster_ours_is() -> None:
    assert Comparison(ours=(1.0, 1.0), theirs=(20.0, 40.0)).inverted.figures()["ratio"] == 30.0


@pytest.mark.parametrize("times", [((), ()), ((1.0,), (1.0, 2.0)), ((0.0,), (1.0,))])
def test_times_that_cannot_be_compared_are_refused(times: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match=r"pairs|above 0"):
        Comparison(*times)


def test_the_two_methods_alternate_in_going_first_and_the_warmup_is_not_counted() -> None:
    calls: list[str] = []

    def way(name: str, seconds: float) -> float:
        calls.append(name)
        return seconds if len(calls) > 2 else 1000.0

    comparison = alternate(lambda: way("ours", 1.0), lambda: way("theirs", 4.0), 3, warmup=1)
    assert calls == ["ours", "theirs", "theirs", "ours"] * 2
    assert comparison == Comparison((1.0,) * 3, (4.0,) * 3)


def test_spread_is_in_milliseconds() -> None:
    assert spread([0.001, 0.002, 0.003]) == {"median_ms": 2.0, "p99_ms": 2.98, "max_ms": 3.0}


def test_figures_have_four_digits() -> None:
    assert rounded(1 / 3) == 0.3333
    assert rounded(123456.0) == 123500.0


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"ratio": 2.0, "low": 1.5, "high": 2.5}
    found = summary(figures, unit="times", compared="this and that", sizes={"scans": 3}, limit=1.3)
    report("A title", ["case", "seconds"], [["one", 1.23456], ["two", "-"]], found, note="[not] markup")
    lines = capsys.readouterr().out.splitlines()
    printed = json.loads(lines[-1])
    assert {k: printed[k] for k in ("ratio", "low", "high", "unit", "compared", "sizes", "limit")} == {
        **figures,
        "unit": "times",
        "compared": "this and that",
        "sizes": {"scans": 3},
        "limit": 1.3,
    }
    assert set(printed["machine"]) == {"cores", "load"}
    assert lines[-2] == "[not] markup"
    assert any("1.235" in line for line in lines)


def test_a_larger_pool_begins_with_the_smaller_one_and_later_scans_differ() -> None:
    small, large = embeddings(50, seed=2), embeddings(60, seed=2)
    assert (large.shape, large.dtype) == ((60, 512), np.float32)
    np.testing.assert_array_equal(large[:50], small)
    assert not np.isclose(embeddings(50, seed=2, later=True), small).all(axis=1).any()


def test_trustworthiness_of_all_rows_matches_scikit_learn() -> None:
    rows = embeddings(80, seed=0)
    xy = np.random.default_rng(0).normal(size=(80, 2))
    ours, _ = trustworthiness(rows, xy, range(80), k=7)
    assert ours == pytest.approx(trustworthiness_of_all(unit(rows), xy, n_neighbors=7), abs=1e-9)


def test_a_map_that_keeps_all_neighbours_has_trustworthiness_one() -> None:
    angle = np.random.default_rng(0).uniform(0, 1, 60)
    rows = np.column_stack([np.cos(angle), np.sin(angle)])
    assert trustworthiness(rows, rows, range(0, 60, 3), k=5) == (1.0, 1.0)


def test_the_covering_radius_is_the_distance_of_the_row_farthest_from_all_picks() -> None:
    rows = embeddings(70, seed=1)
    apart = np.linalg.norm(unit(rows)[:, None] - unit(rows)[[4, 9]], axis=2)
    assert covering_radius(rows, [4, 9]) == pytest.approx(apart.min(axis=1).max(), abs=1e-5)


def test_a_power_law_is_recovered() -> None:
    assert power_law([10, 20, 80], [3 * n**1.5 for n in (10, 20, 80)]) == pytest.approx((1.5, 3.0))


def test_the_rules_differ_about_a_model_that_finds_lesions_at_the_price_of_false_alarms() -> None:
    """The active model draws nothing; a tenth of the scans has a lesion, a tenth of the others gets a false alarm."""
    lesions, alarms = np.full(10, 0.6), np.repeat([0.2, 0.0], [9, 81])
    duel = Duel((np.zeros(10), lesions), (np.zeros(90), alarms), (0.5, 0.75))
    assert (new_rule(duel), former_rule(duel)) == (True, False)
    swapped = Duel(duel.dice[::-1], duel.area[::-1], duel.truth[::-1])
    assert not new_rule(swapped)


def test_recorded_curves_have_what_the_benchmark_needs() -> None:
    models = read_models()
    assert len({m.seed for m in models}) >= 3
    for model in models:
        assert 0 <= model.dice.min() <= model.dice.max() <= 1
        assert len(model.area) == 0 or 0 <= model.area.min() <= model.area.max() <= 1


def test_decisions_on_recorded_curves() -> None:
    table = measure(read_models(), 8).table
    for kind in ("", ", screening"):
        assert table["interval contains the true gain" + kind]["new"] >= 0.7  # 0.9 in 200 projects
        assert table["... rightly: a step more gains less than 0.01" + kind]["new"] >= 0.9
        assert table["... where the new one is better" + kind]["new"] >= 0.9


def screened_bank() -> Bank:
    """As many scans of each source as the screen uses, without features: two near-duplicates in four of BUSI."""
    counts = {"busi": 600, "chest": 138, "hippocampus": 1400, "clips": CLIPS * FRAMES}
    source = np.repeat(np.arange(len(SOURCES)), [counts[name] for name in SOURCES])
    groups = np.concatenate([
        np.minimum(np.arange(600), np.arange(600) // 2 * 2 + 300),
        10_000 + np.arange(138),
        20_000 + np.arange(1400) // 35,
        np.repeat(np.arange(CLIPS) * 7, FRAMES),
    ])  # fmt: skip
    random = np.random.default_rng(0)
    truth = np.zeros((len(source), len(LABELS), 2, 2), bool)
    truth[np.arange(len(source)), np.array([0, 1, 2, 0])[source]] = random.random((len(source), 1, 1)) > 0.3
    rest = dict.fromkeys(("inputs", "drawn", "products"), np.zeros((len(source), 4, 1)))
    scans = PatchPool(**rest, truth=truth, sums=np.zeros((len(source), 1, len(LABELS))))
    return Bank([str(i) for i in range(len(source))], scans, np.zeros((len(source), 1), np.float32), source, groups)


@pytest.mark.parametrize("number", range(5))
def test_no_patient_clip_or_volume_is_in_both_parts_of_a_screened_pool(number: int) -> None:
    bank = screened_bank()
    kind = kinds(bank)[number]
    for seed in range(5):
        part = kind.split(seed)
        assert len(part.pool) >= 80
        assert len(part.test) >= 50
        assert not set(bank.groups[part.pool].tolist()) & set(bank.groups[part.test].tolist())
        assert kind.split(seed).pool.tolist() == part.pool.tolist()
    if kind.name == "mixture":
        assert np.bincount(bank.source[part.pool], minlength=4).tolist() == [480, 24, 8, 0]
    if kind.name == "near-duplicates":
        frames = part.pool[bank.source[part.pool] == SOURCES.index("clips")]
        assert len(frames) == 12 * FRAMES
        assert len(np.unique(bank.groups[frames])) == 12
    if kind.name == "slices":
        assert len(np.unique(bank.groups[part.pool])) == 20


def test_a_t_interval_contains_the_true_mean_95_times_in_100() -> None:
    random = np.random.default_rng(0)
    found = [t_interval(random.normal(1, 3, 12).tolist()) for _ in range(2000)]
    inside = [one.low < 1 < one.high for one in found if one.low is not None and one.high is not None]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)
    assert t_interval([2.0]) == Interval(2.0, None, None, 1)


def test_the_default_is_compared_with_the_mean_of_the_random_orders_of_the_same_split() -> None:
    dice = {"default": (0.5, 0.7), "random 1": (0.2, 0.6), "random 2": (0.4, 0.2)}  # of two splits
    rows = [
        {"data": kind, "seed": seed, "order": order, "budget": 10, "dice": values[seed] + shift * (order == "default")}
        for kind, shift in (("a", 0.0), ("b", 0.1))
        for order, values in dice.items()
        for seed in (0, 1)
    ]
    found = selection.differences(rows)
    assert found == {("a", 10): pytest.approx([0.2, 0.3]), ("b", 10): pytest.approx([0.3, 0.4])}
    assert selection.over_kinds(found, 10).mean == pytest.approx(0.3)


def test_a_gain_is_paired_over_the_seeds_that_both_arms_have() -> None:
    dice = {("weights", 1): 0.5, ("former", 1): 0.3, ("weights", 2): 0.4, ("former", 2): 0.1, ("weights", 3): 0.9}
    rows = [{"data": "busi", "seed": seed, "arm": arm, "dice": value} for (arm, seed), value in dice.items()]
    found = learner.gain(rows, "busi", "weights", "former")
    assert (found.mean, found.n) == (pytest.approx(0.25), 2)
