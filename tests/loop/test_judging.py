"""What a model has learnt from, and what people are told about a new one."""

from __future__ import annotations

from typing import Any

import pytest

from backend.facts import Lesson, Scan
from backend.learning.evaluation import LabelScore, Scores
from backend.loop.judging import Verdict, has_learnt, judge, judged, learnt, remark

OLD = "scanqueue-r1"
SCANS = (Scan(1, "", "d1"), Scan(2, "", "d2", patient="P"), Scan(3, "", "d3", volume="V"), Scan(4, "", "d4"))


def model(*trained_on: Lesson | str, held_out: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"trained_on": list(trained_on), "details": {"held_out": [{"task": task} for task in held_out]}}


def test_a_model_has_learnt_from_scans_whatever_became_of_their_tasks_and_annotations() -> None:
    given = model(Lesson(1, "d1", "m"), Lesson(2, "d2", "m", "P"), Lesson(4, "d4", "m"), held_out=(4,))
    given["trained_on"].append(Lesson(3, "d3", "m", "V", (2,)))  # with an unknown label
    assert learnt(given, (), {}) == {1, "d1", 2, "d2", "P", 3, "d3", "V"}
    given["trained_on"].pop()
    known = learnt(given, (), {})  # neither tasks nor annotations are left
    again = Scan(99, "", "d1"), Scan(98, "", "other", patient="P"), Scan(1, "", "replaced")
    assert [has_learnt(known, scan) for scan in again] == [True] * 3
    assert [has_learnt(known, scan) for scan in (SCANS[3], Scan(97, "", "d97"))] == [False] * 2


def test_the_scans_of_an_older_record_are_found_by_its_annotations() -> None:
    known = learnt(model("11@t", "12@t", "14@t", "99@t", held_out=(4,)), SCANS, {11: 1, 12: 2, 13: 3, 14: 4})
    assert known == {1, "d1", 2, "d2", "P"}


def test_models_of_older_versions_are_judged_by_their_only_weights() -> None:
    assert judged({"fingerprint": "f", "details": {}}) == "f"
    assert judged({"fingerprint": "f", "details": {"judged": "f/judged.safetensors"}}) == "f/judged.safetensors"


def scores(dice: float | None, drawn: bool = True) -> Scores:
    """On a scan with one label, or without it (None)."""
    one = LabelScore(dice is not None, drawn, 0.1, dice, *((1.0, 1.0) if dice is not None else ()))
    return Scores({1: one}, "px")


def verdict(*pairs: tuple[Scores, Scores]) -> Verdict:
    return judge(OLD, [(new, active, "") for new, active in pairs], ["Lesion"])


def test_a_model_that_draws_nothing_is_refused_and_the_remark_says_what_it_lacks() -> None:
    """The active one finds every lesion, at the price of a false alarm. Nine of ten scans show nothing."""
    lesions = [(scores(0.0, drawn=False), scores(0.7)) for _ in range(6)]
    empty = [(scores(None, drawn=False), scores(None, drawn=i == 0)) for i in range(54)]
    found = verdict(*lesions, *empty)
    assert found.difference.worse(0.01)
    told = remark(found, accepted=False)
    assert told.startswith("On 60 held-out scans it is worse by 0.3")
    assert "Lesion: Dice 0.000 against 0.700 on 6 scans with it" in told
    assert "0 false alarms against 1 on 54 scans without it" in told
    assert told.endswith(f"{OLD} stays active.")
    kept = found.details()
    assert (kept["version"], kept["dice"]) == (OLD, pytest.approx(0.7))
    assert kept["difference"]["high"] < -0.01


@pytest.mark.parametrize("count", [0, 1, 4])
def test_below_five_scans_the_newer_model_draws_and_the_remark_says_so(count: int) -> None:
    found = verdict(*[(scores(0.1), scores(0.9))] * count)
    assert not found.difference.worse(0.01)
    told = remark(found, accepted=True)
    assert told.startswith("Too few scans to tell whether it is better than scanqueue-r1")
    assert f"{count} that neither has learnt from; 5 are needed" in told


def test_there_is_nothing_to_say_about_a_model_that_is_as_good() -> None:
    assert remark(verdict(*[(scores(0.8), scores(0.8))] * 5), accepted=True) == ""
    assert remark(None, accepted=True) == ""


@pytest.mark.parametrize(
    ("ours", "theirs", "count", "accepted"),
    [(0.60, 0.55, 5, True), (0.55, 0.60, 5, False), (0.10, 0.90, 3, True), (0.695, 0.70, 9, True)],
)
def test_the_first_model_takes_over_unless_the_quick_model_draws_better(
    ours: float, theirs: float, count: int, accepted: bool
) -> None:
    pairs = [(scores(ours), scores(theirs + 0.1 * (i % 2 * 2 - 1) * (i < count // 2 * 2)), "") for i in range(count)]
    found = judge("quick model", pairs, ["Lesion"], first=True)
    assert found.accepts(0.01) == accepted
    told = remark(found, accepted)
    if not accepted:
        assert (
            "it is worse than the quick model by 0.050 (95 % interval -" in told
        )  # 0 is inside: no certainty is needed
        assert told.endswith("The quick model draws until a later model draws better.")
    elif count < 4:
        assert told.startswith("Too few scans to tell whether it is better than the quick model: 3")
