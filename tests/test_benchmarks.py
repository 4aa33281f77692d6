"""How benchmarks compute and print; nothing here depends on how fast the machine is."""

from __future__ import annotations

import json

import pytest

from benchmarks.measure import Comparison, alternate, report, rounded, spread, summary


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


def test_the_two_ways_take_turns_in_going_first_and_the_warmup_is_not_counted() -> None:
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
