"""`decide` as a table: no fakes, only facts in and steps out."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from backend.errors import NotSegmentable
from backend.facts import (
    RECENT,
    Counts,
    Label,
    Lesson,
    Live,
    Model,
    Round,
    Scan,
    Stage,
    annotators,
    round_of,
    score_of,
    validation_rows,
    version_name,
)
from backend.fingerprints import fingerprint
from backend.label_config import LabelConfig, Tag
from backend.loop import decide as deciding
from backend.loop.decide import next_step, quick_key
from backend.loop.publication import prefix_length
from backend.loop.steps import (
    CompareWithControl,
    Done,
    DrawQuickly,
    ExtendRound,
    FitMap,
    Listen,
    MapScans,
    OpenRound,
    Plan,
    Publish,
    ReadMasks,
    ReadScans,
    Score,
    Seen,
    Train,
)
from backend.settings import ProjectSettings

DIGESTS = st.text("0123456789abcdef", min_size=1, max_size=8)
GROUPS = st.sampled_from(["", "", "A", "B", "C", "D", "E"])
ROWS = st.lists(st.tuples(DIGESTS, GROUPS), max_size=40)

CONFIG = LabelConfig("image", (Tag("tag", "brush", "image", ("Lung",)),))
SETTINGS = ProjectSettings(cold_start_size=3, round_size=2, queue_depth=4, quick_model="off")
N = 10


@dataclass(frozen=True)
class Stored(Done):
    """Our side of a project, with the digests that have an embedding, are on the map, and are scored."""

    embedded: frozenset[str] = frozenset()
    mapped: frozenset[str] = frozenset()
    scored: frozenset[str] = frozenset()

    def stage(self, scan: Scan) -> Stage:
        """What the records would say of a scan."""
        latest = self.rounds[-1] if self.rounds else None
        reached = [bool(scan.digest) and scan.digest in self.embedded, scan.digest in self.mapped]
        reached.append(bool(self.active) and scan.digest in self.scored)
        if latest and not all(reached[: 3 if self.active else 2]):
            latest = None
        if latest and scan.task in latest.order:
            return Stage.ORDERED
        return Stage(next((n for n, so_far in enumerate(reached) if not so_far), 3))


def decide(given: Seen, done: Stored) -> Plan:
    """`decide`, with the stages and counts that the records would give."""
    scans_ = tuple(replace(s, stage=done.stage(s)) for s in given.scans)
    return deciding.decide(replace(given, scans=scans_, counts=Counts.of(scans_, done.settings.unit)), done)


def round_key(done: Stored, config: LabelConfig, scans_: tuple[Scan, ...] = ()) -> str:
    return deciding.round_key(done, config, scans_, Counts.of(scans_))


def scans(*labelled: int, n: int = N) -> tuple[Scan, ...]:
    return tuple(Scan(t, f"/data/{t}.png", f"d{t}", annotated=t in labelled) for t in range(1, n + 1))


def label(*tasks: int) -> tuple[Label, ...]:
    return tuple(Label(t, f"{t}@now") for t in tasks)


def live(n: int, *published: int) -> Live:
    return Live(version_name(n), "Uncertainty sampling", True, dict.fromkeys(published, 1), True, True)


ALL = frozenset(f"d{t}" for t in range(1, N + 1))
START = Stored(SETTINGS, "pixels", embedded=ALL, mapped=ALL, fitted=N)
ORDER = tuple(range(1, N + 1))
COLD = replace(START, rounds=(Round(0, round_key(START, CONFIG), "", ORDER),))
R1 = Model("scanqueue-r1", ("Lung",), frozenset(f"{t}@now" for t in (1, 2, 3)), "f1", True)
TRAINED = replace(COLD, models=(R1,), active="scanqueue-r1")
SCORED = replace(TRAINED, scored=ALL)
FIRST = replace(
    SCORED, rounds=(*COLD.rounds, Round(1, round_key(SCORED, CONFIG), "scanqueue-r1", (7, 5, 4, 6, 8, 9, 10)))
)


QUIET = Live(webhook=True)


def seen(scans_: tuple[Scan, ...], live_: Live = QUIET, labels: tuple[Label, ...] = ()) -> Seen:
    return Seen(1, CONFIG, scans_, labels, live_)


@pytest.mark.parametrize(
    ("what", "given", "done", "phase", "steps"),
    [
        ("a project without scans is empty", seen(()), START, "empty", ()),
        (
            "scans are read and embedded before anything else",
            seen((*scans(n=1), Scan(2, "/data/2.png"))),
            START,
            "embedding",
            (ReadScans((2,)),),
        ),
        (
            "then the map is laid out",
            seen(scans()),
            replace(START, mapped=frozenset(), fitted=0),
            "embedding",
            (FitMap(),),
        ),
        (
            "the cold-start order comes first, even when there are already enough labels",
            seen(scans(1, 2, 3), labels=label(1, 2, 3)),
            START,
            "embedding",
            (OpenRound(0, round_key(START, CONFIG), ""),),
        ),
        (
            "the first `queue_depth` tasks are published",
            seen(scans()),
            COLD,
            "cold_start",
            (Publish((1, 2, 3, 4), True),),
        ),
        ("nothing is left to do once they are published", seen(scans(), live(0, 1, 2, 3, 4)), COLD, "cold_start", ()),
        (
            "a new annotation is read",
            seen(scans(1), live(0, 1, 2, 3, 4)),
            COLD,
            "cold_start",
            (ReadMasks((1,)),),
        ),
        (
            "one label short of the cold start, nothing is trained",
            seen(scans(1, 2), live(0, 1, 2, 3, 4), label(1, 2)),
            COLD,
            "cold_start",
            (),
        ),
        (
            "with the cold-start labels in, the queue is filled up and a model trained",
            seen(scans(1, 2, 3), live(0, 1, 2, 3, 4), label(1, 2, 3)),
            COLD,
            "training",
            (Publish((5, 6), False), Train("scanqueue-r1", (1, 2, 3))),
        ),
        (
            "an unreadable annotation does not count as a label",
            seen(scans(1, 2, 3), live(0, 4, 5, 6), (*label(1, 2), Label(3, "3@now", "broken"))),
            COLD,
            "cold_start",
            (),
        ),
        (
            "a new model scores the pool, then opens its round",
            seen(scans(1, 2, 3), live(0, 4, 5, 6), label(1, 2, 3)),
            TRAINED,
            "active",
            (
                Score((4, 5, 6, 7, 8, 9, 10)),
                OpenRound(1, round_key(TRAINED, CONFIG), "scanqueue-r1", (4, 5, 6)),
            ),
        ),
        (
            "changed labels of a full round train again",
            seen(scans(1, 2, 3), live(1, 7, 5, 4, 6), (Label(1, "1@later"), Label(2, "2@later"), Label(3, "3@now"))),
            FIRST,
            "training",
            (Train("scanqueue-r2", (1, 2, 3)),),
        ),
        (
            "scans that arrive later are mapped, scored, and added to the order",
            seen((*scans(1, 2, 3), Scan(11, "/data/11.png", "d11")), live(1, 7, 5, 4, 6), label(1, 2, 3)),
            replace(FIRST, embedded=ALL | {"d11"}),
            "active",
            (MapScans((11,)),),
        ),
        (
            "once it is mapped, the late scan is scored and ordered",
            seen((*scans(1, 2, 3), Scan(11, "/data/11.png", "d11")), live(1, 7, 5, 4, 6), label(1, 2, 3)),
            replace(FIRST, embedded=ALL | {"d11"}, mapped=ALL | {"d11"}),
            "active",
            (Score((11,)), ExtendRound((11,))),
        ),
        (
            "a duplicate prediction is removed",
            seen(scans(1, 2, 3), replace(live(1, 7, 5, 4, 6), published={7: 2, 5: 1, 4: 1, 6: 1}), label(1, 2, 3)),
            FIRST,
            "active",
            (Publish((), False, True),),
        ),
        (
            "a disabled queue is enabled again",
            seen(scans(1, 2, 3), replace(live(1, 7, 5, 4, 6), sampling="Sequential sampling"), label(1, 2, 3)),
            FIRST,
            "active",
            (Publish((), True),),
        ),
        (
            "a missing webhook is set",
            seen(scans(1, 2, 3), replace(live(1, 7, 5, 4, 6), webhook=False), label(1, 2, 3)),
            FIRST,
            "active",
            (Listen(),),
        ),
        (
            "even before there are scans",
            seen((), Live()),
            START,
            "empty",
            (Listen(),),
        ),
        (
            "when everything is labelled and trained on, the project is done",
            seen(scans(*range(1, 11)), live(1), label(*range(1, 11))),
            replace(
                FIRST,
                models=(replace(R1, trained_on=frozenset(f"{t}@now" for t in range(1, 11))),),
            ),
            "done",
            (),
        ),
    ],
)
def test_decide(what: str, given: Seen, done: Stored, phase: str, steps: tuple[object, ...]) -> None:
    plan = decide(given, done)
    assert (plan.phase, plan.steps) == (phase, steps), what


WRITTEN_OUT = ProjectSettings(strategy="paper+paper")


@pytest.mark.parametrize(
    ("changes", "cold", "later"),
    [
        ({}, False, False),
        ({"strategy": "paper+entropy"}, False, True),
        ({"strategy": "typiclust+paper"}, True, False),
        ({"uncertainty": "top"}, False, True),
        ({"control_share": 0.2}, True, True),
        ({"alpha": 1.0}, False, True),
        ({"stratify_by": "site"}, False, False),
    ],
)
def test_only_changes_that_affect_the_order_open_a_round(changes: dict[str, Any], cold: bool, later: bool) -> None:
    for done, differs in ((COLD, cold), (FIRST, later)):
        was = round_key(replace(done, settings=WRITTEN_OUT), CONFIG)
        now = round_key(replace(done, settings=replace(WRITTEN_OUT, **changes)), CONFIG)
        assert (was != now) == differs


def test_rounds_from_before_these_settings_existed_are_not_opened_again() -> None:
    settings = replace(WRITTEN_OUT, alpha=0.5)
    assert round_key(replace(COLD, settings=settings), CONFIG) == fingerprint("paper")
    old = fingerprint("scanqueue-r1", "scanqueue-r1", CONFIG.key, 0.5, "paper")
    assert round_key(replace(FIRST, settings=settings), CONFIG) == old


def test_other_strata_open_another_stratified_cold_start() -> None:
    keys = {
        round_key(replace(COLD, settings=ProjectSettings(strategy="stratified+paper", stratify_by=key)), CONFIG)
        for key in ("site", "scanner")
    }
    assert len(keys) == 2


# -- our order and chance --------------------------------------------------------------------------

MANY = tuple(range(1, 31))
DRAWN = (2, 4, 6, 8, 10, 12, 14, 16)  # control scans; tasks 1..20 are labelled


def with_controls(**changes: Any) -> tuple[Seen, Stored]:
    """A project in its first round, with nothing else to do."""
    known = tuple(Label(t, f"{100 - t}@now", annotation=100 - t) for t in range(1, 21))  # labelled in the order 20 to 1
    digests = frozenset(f"d{t}" for t in MANY)
    settings = ProjectSettings(strategy="paper+paper", cold_start_size=20, round_size=5, control_share=0.4)
    model = replace(R1, trained_on=frozenset(label.key for label in known), held_out=frozenset(HELD))
    done = Stored(settings, "pixels", embedded=digests, mapped=digests, fitted=30, models=(model,), scored=digests)
    done = replace(done, active="scanqueue-r1", served={t: t in DRAWN for t in range(1, 21)})
    cold = Round(0, "k", "", MANY)
    done = replace(done, rounds=(cold, Round(1, round_key(done, CONFIG), "scanqueue-r1", MANY[20:])))
    return seen(scans(*range(1, 21), n=30), live(1, *MANY[20:]), known), replace(done, **changes)


HELD = (3, 10, 15, 20)


def test_our_order_is_compared_with_chance_when_nothing_else_is_due() -> None:
    given, done = with_controls()
    (step,) = decide(given, done).steps
    assert isinstance(step, CompareWithControl)
    assert step.version == "scanqueue-r1"
    assert step.validation == HELD[::-1]
    assert step.control == (16, 14, 12, 8, 6, 4, 2)
    assert step.ours == (19, 18, 13, 11, 9, 5, 1)  # of 19, 18, 17, 13, 11, 9, 7, 5, 1: from first to last
    assert step.of == (9, 7)
    assert decide(given, done).phase == "active"


def test_our_labels_and_the_controls_are_from_the_same_time() -> None:
    """With few controls, ours are not the first labels, which come from the cold start."""
    given, done = with_controls(served={t: t in (18, 14, 9, 6, 2) for t in range(1, 21)})
    (step,) = decide(given, done).steps
    assert isinstance(step, CompareWithControl)
    for arm in (step.ours, step.control):
        assert len(arm) == 5
        assert sum(task > 10 for task in arm) in (2, 3)  # as many of the first half as of the second


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("once for each model", {"compared": frozenset({"scanqueue-r1"})}),
        ("not without controls", {"served": dict.fromkeys(range(1, 21), False)}),
        ("nor with four of them", {"served": {t: t in [c for c in DRAWN if c not in HELD][:4] for t in range(1, 21)}}),
        ("nor with too few of ours", {"served": dict.fromkeys(range(1, 21), True)}),
        ("scans that were never in an order are neither", {"served": {}}),
    ],
)
def test_our_order_is_compared_with_chance(what: str, changes: dict[str, Any]) -> None:
    assert decide(*with_controls(**changes)).steps == (), what


def test_everything_else_comes_before_the_comparison() -> None:
    given, done = with_controls()
    unread = (*given.scans[:20], replace(given.scans[20], annotated=True), *given.scans[21:])
    more = tuple(Label(t, f"{t}@now", annotation=200 + t) for t in range(21, 26))
    for other, kind in (
        (replace(given, live=live(1, *MANY[20:25])), Publish),
        (replace(given, scans=unread), ReadMasks),
        (replace(given, scans=scans(*range(1, 26), n=30), labels=(*given.labels, *more)), Train),
        (replace(given, scans=(*given.scans, Scan(31, "/data/31.png"))), ReadScans),
    ):
        steps = decide(other, done).steps
        assert not [s for s in steps if isinstance(s, CompareWithControl)]
        assert [s for s in steps if isinstance(s, kind)]
    quiet = replace(done, settings=replace(done.settings, control_share=0.0))
    assert not [s for s in decide(given, quiet).steps if isinstance(s, CompareWithControl)]


def test_labels_that_the_model_did_not_have_are_not_compared() -> None:
    given, done = with_controls()
    edited = tuple(replace(label, key="9@later") if label.task in DRAWN[:4] else label for label in given.labels)
    assert not [s for s in decide(replace(given, labels=edited), done).steps if isinstance(s, CompareWithControl)]


def test_a_blocked_project_has_no_steps_and_gives_the_reason() -> None:
    plan = decide(replace(seen(scans()), config=None, blocked="no masks"), START)
    assert (plan.phase, plan.reason, plan.steps) == ("blocked", "no masks", ())


def test_one_broken_scan_does_not_stop_the_others() -> None:
    broken = Scan(11, "/data/11.png", problem="truncated")
    plan = decide(seen((*scans(), broken)), COLD)
    assert plan.steps == (Publish((1, 2, 3, 4), True),)


def test_with_the_button_nothing_is_trained_until_requested() -> None:
    waiting = replace(COLD, settings=replace(SETTINGS, retrain="button"))
    given = seen(scans(1, 2, 3, 4), live(0, 5, 6, 7), label(1, 2, 3, 4))
    assert decide(given, waiting).steps == ()
    assert decide(given, replace(waiting, training_requests=1)).steps == (Train("scanqueue-r1", (1, 2, 3, 4)),)


def lessons(*tasks: int) -> frozenset[Lesson | str]:
    return frozenset(Lesson(t, f"d{t}", f"m{t}") for t in tasks)


def read(*tasks: int) -> tuple[Label, ...]:
    return tuple(Label(t, f"{t}@now", mask=f"m{t}") for t in tasks)


NOTED = replace(R1, trained_on=lessons(1, 2, 3), recipe="recipe")
ASKED = replace(FIRST, models=(NOTED,), training_requests=1, recipe="recipe")
SAME = seen(scans(1, 2, 3), live(1, 7, 5, 4, 6), read(1, 2, 3))


def test_another_request_trains_nothing_if_nothing_has_changed() -> None:
    assert decide(SAME, ASKED).steps == ()
    saved_again = tuple(replace(label, key=f"{label.task}@later") for label in SAME.labels)
    assert decide(replace(SAME, labels=saved_again), ASKED).steps == ()


@pytest.mark.parametrize(
    ("what", "given", "done"),
    [
        ("another seed, encoder or setting", SAME, replace(ASKED, recipe="other")),
        ("settings that were not recorded", SAME, replace(ASKED, models=(replace(NOTED, recipe=""),))),
        (
            "the image was replaced",
            replace(SAME, scans=(replace(SAME.scans[0], digest="d4"), *SAME.scans[1:])),
            ASKED,
        ),
        (
            "the patient became known",
            replace(SAME, scans=(replace(SAME.scans[0], patient="P"), *SAME.scans[1:])),
            ASKED,
        ),
        ("a mask was edited", replace(SAME, labels=(replace(SAME.labels[0], mask="new"), *SAME.labels[1:])), ASKED),
        ("a label was deleted", replace(SAME, scans=scans(1, 2), labels=SAME.labels[:2]), ASKED),
        ("another label config", SAME, replace(ASKED, models=(replace(NOTED, labels=("Heart",)),))),
    ],
)
def test_a_request_trains_whenever_something_that_is_learnt_has_changed(what: str, given: Seen, done: Stored) -> None:
    tasks = tuple(label.task for label in given.labels)
    assert Train("scanqueue-r2", tasks) in decide(given, done).steps, what


def test_labels_that_were_deleted_or_redrawn_and_images_that_were_replaced_count_as_changes() -> None:
    """Without a request: a new model is due after `round_size` changes, here 2."""
    quiet = replace(ASKED, training_requests=0)
    ten = seen(scans(*range(1, 11)), live(1), read(*range(1, 11)))
    quiet = replace(quiet, models=(replace(NOTED, trained_on=lessons(*range(1, 11))),))

    def trains(given: Seen) -> bool:
        return any(isinstance(step, Train) for step in decide(given, quiet).steps)

    assert not trains(ten)
    for count, due in ((1, False), (2, True)):
        deleted = replace(ten, scans=scans(*range(1, 11 - count)), labels=ten.labels[:-count])
        replaced = [replace(s, digest="d1") if 1 < s.task < 2 + count else s for s in ten.scans]
        edited = (*(replace(label, mask="new") for label in ten.labels[:count]), *ten.labels[count:])
        assert trains(deleted) is due
        assert trains(replace(ten, scans=tuple(replaced))) is due
        assert trains(replace(ten, labels=edited)) is due


def test_what_an_older_version_recorded_is_known_by_its_annotations() -> None:
    given = seen(scans(1, 2, 3), live(1, 7, 5, 4, 6), read(1, 2, 3))
    old = replace(FIRST, models=(R1,), recipe="recipe")
    assert decide(given, old).steps == ()  # nothing is trained because of an update
    assert decide(given, replace(old, training_requests=1)).steps == (Train("scanqueue-r2", (1, 2, 3)),)


def test_activating_another_model_opens_a_round_with_it() -> None:
    r2 = replace(R1, version="scanqueue-r2", fingerprint="f2")
    done = replace(FIRST, models=(R1, r2), rounds=(*FIRST.rounds, Round(2, "old key", "scanqueue-r2", (4, 5))))
    steps = decide(seen(scans(1, 2, 3), live(2, 4, 5), label(1, 2, 3)), done).steps
    opened = [s for s in steps if isinstance(s, OpenRound)]
    assert [(s.n, s.model) for s in opened] == [(3, "scanqueue-r1")]


def test_a_new_label_in_the_config_trains_as_soon_as_there_are_enough_labels() -> None:
    config = LabelConfig("image", (Tag("tag", "brush", "image", ("Lung", "Heart")),))
    given = replace(seen(scans(1, 2, 3), live(1, 7, 5, 4, 6), label(1, 2, 3)), config=config)
    assert Train("scanqueue-r2", (1, 2, 3)) in decide(given, FIRST).steps


def test_more_is_published_when_less_than_a_round_is_left() -> None:
    order = tuple(range(1, 21))
    lengths = [prefix_length(order, frozenset(order[n:]), SETTINGS) for n in range(9)]
    assert lengths == [4, 4, 4, 6, 6, 8, 8, 10, 10]
    assert prefix_length(order, frozenset(), SETTINGS) == 20


def test_more_is_published_for_more_annotators_than_a_round_has_scans() -> None:
    """Each holds a task: with only as many open as there are annotators, the next request would get none."""
    order = tuple(range(1, 41))
    lengths = [prefix_length(order, frozenset(order[n:]), SETTINGS, people=5) for n in range(4)]
    assert [length - n for n, length in enumerate(lengths)] == [10, 11, 10, 11]
    assert prefix_length(order, frozenset(order[2:]), SETTINGS, people=1) == 4


def test_current_annotators_are_the_authors_of_the_newest_annotations() -> None:
    assert annotators([]) == 0
    assert annotators([(3, 7), (2, 7), (1, 8), (4, None)]) == 2
    assert annotators([(n, 1 if n > RECENT else n + 1) for n in range(1, 2 * RECENT + 1)]) == 1


def test_scores_increase_with_the_place_and_stay_below_one_for_late_scans() -> None:
    scores = [score_of(place, 5) for place in range(1, 5000)]
    assert all(a < b for a, b in itertools.pairwise(scores))
    assert scores[0] > 0
    assert scores[-1] < 1
    assert score_of(2, 5) == pytest.approx(2 / 6)


def test_versions_name_their_round() -> None:
    assert version_name(12) == "scanqueue-r12"
    assert round_of("scanqueue-r12") == 12
    assert round_of("my model") is None
    assert round_of("scanqueue-rx") is None


def parsed(**tags: tuple[str, list[str]]) -> dict[str, object]:
    image = [{"type": "Image", "valueType": None, "value": "scan"}]
    return {n: {"type": k, "to_name": ["img"], "inputs": image, "labels": ls} for n, (k, ls) in tags.items()}


def test_a_config_is_read_with_brushes_first_and_every_label_once() -> None:
    config = LabelConfig.from_parsed(
        parsed(pol=("PolygonLabels", ["Rib", "Lung"]), choice=("Choices", ["ok"]), tag=("BrushLabels", ["Lung"])), 7
    )
    assert config.image_value == "scan"
    assert config.labels == ("Lung", "Rib")
    assert config.tag_of("Lung").name == "tag"
    assert config.tag_of("Rib").kind == "polygon"
    assert LabelConfig.from_json(config.to_json()) == config


def test_the_error_for_a_config_without_masks_says_what_to_add_and_where() -> None:
    with pytest.raises(NotSegmentable) as error:
        LabelConfig.from_parsed(parsed(choice=("Choices", ["ok"])), 12)
    assert str(error.value) == (
        "project 12: the label config has no tag that draws masks (BrushLabels, BitmaskLabels, PolygonLabels, "
        "EllipseLabels or RectangleLabels). It has Choices. "
        'Add <BrushLabels name="tag" toName="image"><Label value="Lung"/></BrushLabels> beside '
        '<Image name="image" value="$image"/> in Settings > Labeling Interface > Code.'
    )


def test_a_brush_without_labels_is_reported() -> None:
    with pytest.raises(NotSegmentable, match="'tag' in the label config has no labels"):
        LabelConfig.from_parsed(parsed(tag=("BrushLabels", [])), 12)


def test_more_labels_than_a_model_can_learn_are_refused_with_a_reason() -> None:
    names = [f"L{n}" for n in range(300)]
    assert len(LabelConfig.from_parsed(parsed(tag=("BrushLabels", names[:253])), 12).labels) == 253
    with pytest.raises(NotSegmentable, match=r"has 300 mask labels; a model can learn at most 253"):
        LabelConfig.from_parsed(parsed(tag=("BrushLabels", names)), 12)


def test_a_label_longer_than_annotations_keep_is_refused_with_a_reason() -> None:
    longest = "W" * 1000
    assert LabelConfig.from_parsed(parsed(tag=("BrushLabels", [longest])), 12).labels == (longest,)
    with pytest.raises(NotSegmentable, match=r"'W{40}' has 1,001 characters; at most 1,000 are possible. Shorten it"):
        LabelConfig.from_parsed(parsed(tag=("BrushLabels", ["L", longest + "W"])), 12)


@pytest.mark.parametrize(
    ("fitted", "labelled", "step"),
    [(3, (), FitMap), (8, (), MapScans), (8, (1,), MapScans), (2, (1,), FitMap), (3, (1,), MapScans)],
)
def test_a_map_of_a_small_trial_is_laid_out_again_whatever_is_labelled(
    fitted: int, labelled: tuple[int, ...], step: type
) -> None:
    done = replace(COLD, mapped=ALL - {"d10"}, fitted=fitted)
    found = decide(seen(scans(*labelled), live(0, 1, 2, 3, 4), label(*labelled)), done)
    assert [type(s) for s in found.steps if type(s) in (FitMap, MapScans)] == [step]


def test_carried_scans_that_are_no_longer_in_an_order_are_not_published_forever() -> None:
    latest = Round(1, round_key(SCORED, CONFIG), "scanqueue-r1", (5, 4, 6, 8, 9, 10), carried=(7, 10))
    given = seen(scans(1, 2, 3), live(1, 5, 4, 6, 8), label(1, 2, 3))
    steps = decide(given, replace(SCORED, rounds=(*COLD.rounds, latest))).steps
    assert steps == (Publish((10,)), ExtendRound((7,)))


def test_the_round_of_a_new_model_comes_before_another_training() -> None:
    """Ten labels during a training must not cause repeated trainings under the same version."""
    given = seen(scans(*range(1, 9)), live(0, 9), label(*range(1, 9)))
    steps = decide(given, replace(SCORED, rounds=COLD.rounds)).steps
    assert [type(s) for s in steps if not isinstance(s, Publish)] == [OpenRound]


def test_a_scan_with_a_replaced_image_is_not_published_before_it_is_read() -> None:
    exchanged = tuple(replace(s, digest="") if s.task in (1, 2) else s for s in scans())
    assert decide(seen(exchanged), COLD).steps == (Publish((3, 4), True), ReadScans((1, 2)))


def test_late_scans_wait_while_a_round_with_another_model_is_due() -> None:
    r2 = replace(R1, version="scanqueue-r2", fingerprint="f2")
    done = replace(FIRST, models=(R1, r2), active="scanqueue-r1", mapped=ALL | {"d11"}, embedded=ALL | {"d11"})
    given = seen((*scans(1, 2, 3), Scan(11, "/data/11.png", "d11")), live(1, 7, 5, 4, 6), label(1, 2, 3))
    assert not [s for s in decide(given, done).steps if isinstance(s, ExtendRound)]


def test_only_the_upcoming_part_of_the_order_is_carried_over() -> None:
    order = (4, 5, 6, 7, 8, 9, 10)
    latest = Round(1, "old key", "scanqueue-r1", order, carried=(10,))
    given = seen(scans(1, 2, 3), live(1, 4, 5, 6, 7, 10), label(1, 2, 3))
    (opened,) = (s for s in decide(given, replace(SCORED, rounds=(*COLD.rounds, latest))).steps if type(s) is OpenRound)
    assert opened.carried == (4, 5, 6, 7)


def test_another_embedder_gets_its_own_map_and_then_a_new_round_with_the_same_model() -> None:
    was = replace(FIRST, rounds=(*FIRST.rounds[:-1], replace(FIRST.rounds[-1], embedder="pixels")))
    look = seen(scans(1, 2, 3), live(1, 7, 5, 4), label(1, 2, 3))
    assert OpenRound not in {type(s) for s in decide(look, was).steps}

    changed = replace(was, embedder="timm:other", embedded=frozenset(), mapped=frozenset(), fitted=0)
    assert any(isinstance(s, ReadScans) for s in decide(look, changed).steps)
    read = replace(changed, embedded=ALL)
    assert any(isinstance(s, FitMap) for s in decide(look, read).steps)
    mapped = replace(read, mapped=ALL, fitted=N)
    opened = [s for s in decide(look, mapped).steps if isinstance(s, OpenRound)]
    assert [(s.n, s.model) for s in opened] == [(2, "scanqueue-r1")]
    assert set(opened[0].carried) == {7, 5, 4}  # an annotator may hold them


def test_a_round_without_a_recorded_embedder_is_not_opened_again() -> None:
    assert FIRST.rounds[-1].embedder == ""
    look = seen(scans(1, 2, 3), live(1, 7, 5, 4), label(1, 2, 3))
    steps = decide(look, replace(FIRST, embedder="timm:other")).steps
    assert OpenRound not in {type(s) for s in steps}


# -- held-out scans, and whole scans ----------------------------------------------------------


def share(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


@pytest.mark.parametrize(("n", "count"), [(4, 0), (5, 1), (7, 1), (8, 2), (20, 4), (98, 20), (1000, 200), (1500, 200)])
def test_a_fifth_is_held_out_and_never_more_than_two_hundred(n: int, count: int) -> None:
    for start in range(20):
        digests = [f"{start}-{i}" for i in range(n)]
        held = validation_rows(digests)
        assert len(held) == count
        assert held == set(sorted(range(n), key=lambda i: share(digests[i]))[:count])


@drawn(ROWS)
def test_a_group_is_held_out_as_a_whole_or_not_at_all_and_something_is_left_to_learn_from(
    rows: list[tuple[str, str]],
) -> None:
    digests, groups = [d for d, _ in rows], [g for _, g in rows]
    held = validation_rows(digests, groups)
    assert {groups[i] for i in held} & {g for i, g in enumerate(groups) if g and i not in held} <= {""}
    sizes = Counter((g, "" if g else d) for d, g in rows)
    assert bool(held) == (len(rows) >= 5 and any(2 * size <= len(rows) for size in sizes.values()))
    assert 2 * len(held) <= len(rows)


@pytest.mark.parametrize("size", [2, 3, 8, 10])
def test_patients_of_one_size_are_held_out_to_the_nearest(size: int) -> None:
    for people in (5, 10, 30):
        groups = [f"P{i // size}" for i in range(people * size)]
        assert len(validation_rows([str(i) for i in range(len(groups))], groups)) == people // 5 * size


@drawn(ROWS, st.randoms(use_true_random=False))
def test_the_held_out_rows_do_not_depend_on_their_order(rows: list[tuple[str, str]], random: Random) -> None:
    rows = list({d: (d, g) for d, g in rows}.values())
    other = random.sample(rows, len(rows))
    one, two = ({r[i] for i in validation_rows([d for d, _ in r], [g for _, g in r])} for r in (rows, other))
    assert one == two


def test_what_the_active_model_has_learnt_from_is_held_out_last() -> None:
    """While labels arrive, the held-out scans stay those that no model knows, and the quota is kept."""
    digests = [f"{i}" for i in range(400)]
    learnt: set[int] = set()
    for n in range(20, 401, 5):
        held = validation_rows(digests[:n], learnt=learnt)
        assert len(held) == round(0.2 * n)
        assert held.isdisjoint(learnt)
        learnt = set(range(n)) - held
    assert validation_rows(digests, learnt=range(400)) == validation_rows(digests)


@pytest.mark.parametrize("grouped", [False, True])
def test_every_label_is_learnt_and_held_out_where_two_units_have_it(grouped: bool) -> None:
    for start in range(30):
        digests = [f"{start}-{i}" for i in range(60)]
        groups = [f"{start}-{i // 2}" if grouped else "" for i in range(60)]
        shown = [{1}, *[set[int]()] * 59]  # label 1 is in one scan, 2 in two scans, 3 in three, 4 in most
        for label, rows in ((2, (10, 30)), (3, (5, 20, 40)), (4, range(10, 60))):
            for row in rows:
                shown[row] = shown[row] | {label}
        held = validation_rows(digests, groups, shown)
        assert len(held) == 12
        there = [{label for i in rows for label in shown[i]} for rows in (held, set(range(60)) - held)]
        assert there[0] == {2, 3, 4}
        assert there[1] == {1, 2, 3, 4}


def test_more_rare_labels_than_the_quota_do_not_enlarge_it() -> None:
    shown = [{i // 2} for i in range(100)]  # fifty labels, each in two scans
    held = validation_rows([str(i) for i in range(100)], None, shown)
    assert len(held) == 20
    assert len({i // 2 for i in held}) == 20  # the other scan of each is left to learn from
    assert validation_rows([str(i) for i in range(10)], list("AAAAABBBBB"), [{1}] * 5 + [{2}] * 5) == set()


def test_slices_of_one_volume_are_one_group_where_no_patient_is_known() -> None:
    slices = [Scan(t, "", f"d{t}", volume="V" if t < 6 else "W", patient="P" if t > 8 else "") for t in range(1, 11)]
    assert [s.group for s in slices] == ["V"] * 5 + ["W"] * 3 + ["P"] * 2
    assert [s.whole for s in (*slices[:1], Scan(1, "", "d"))] == ["V", "d"]


def test_the_comparison_with_chance_does_not_split_patients() -> None:
    people = [f"P{t % 7}" for t in range(1, 31)]
    all_ = tuple(Scan(t, "", f"d{t}", annotated=True, patient=people[t - 1]) for t in range(1, 31))
    digests = frozenset(s.digest for s in all_)
    held_out = frozenset(t for t in range(1, 31) if people[t - 1] == "P3")
    model = replace(R1, trained_on=frozenset(f"{t}@now" for t in range(1, 31)), held_out=held_out)
    done = replace(
        START,
        settings=replace(SETTINGS, control_share=0.5),
        embedded=digests,
        mapped=digests,
        models=(model,),
        active=model.version,
        served={t: t % 2 == 0 for t in range(1, 31)},
    )
    given = seen(all_, live(1), label(*range(1, 31)))
    done = replace(done, rounds=(Round(1, round_key(done, CONFIG, all_), model.version, tuple(range(1, 31))),))
    (step,) = decide(given, done).steps
    assert isinstance(step, CompareWithControl)
    assert set(step.validation) == held_out
    assert "P3" not in {people[t - 1] for t in (*step.ours, *step.control)}


SCAN = replace(SETTINGS, unit="scan")


def volumes(*sizes: int) -> tuple[Scan, ...]:
    """Volumes with these numbers of slices; 0: an image that belongs to none."""
    whole = [(f"V{v}" if size else "", s) for v, size in enumerate(sizes) for s in range(max(size, 1))]
    return tuple(Scan(t, f"/{t}.png", f"d{t}", volume=v, slice=s) for t, (v, s) in enumerate(whole, start=1))


def test_publishing_stops_at_the_end_of_a_volume() -> None:
    all_ = volumes(3, 5, 0, 4, 7)  # tasks 1-3, 4-8, 9, 10-13, 14-20

    def siblings(task: int) -> set[int]:
        volume = all_[task - 1].volume
        return {s.task for s in all_ if s.volume == volume} if volume else {task}

    order = list(range(1, 21))
    for settings in (SETTINGS, SCAN):
        found = [prefix_length(order, frozenset(order[n:]), settings, siblings=siblings) for n in range(21)]
        plain = [prefix_length(order, frozenset(order[n:]), SETTINGS) for n in range(21)]
        assert found == ([next(e for e in (3, 8, 9, 13, 20) if e >= p) for p in plain] if settings is SCAN else plain)
        assert found == sorted(found)
    assert prefix_length([], frozenset(), SCAN, siblings=siblings) == 0
    given = seen(all_, Live(webhook=True))
    done = replace(START, settings=SCAN, embedded=ALL | {s.digest for s in all_}, mapped=ALL | {s.digest for s in all_})
    done = replace(done, rounds=(Round(0, round_key(done, CONFIG, all_), "", tuple(order)),))
    assert decide(given, done).steps == (Publish(tuple(range(1, 9)), True),)
    apart = replace(done, rounds=(replace(done.rounds[0], order=(4, 1, 2, 3, *order[4:])),))  # 4 has priority
    assert decide(given, apart).steps == (Publish((4, 1, 2, 3), True),)


def test_the_selection_unit_opens_a_round_only_where_there_are_volumes() -> None:
    scan, slice_ = replace(START, settings=SCAN), START
    assert round_key(scan, CONFIG, scans()) == round_key(slice_, CONFIG, scans())
    assert round_key(scan, CONFIG, volumes(2, 3)) != round_key(slice_, CONFIG, volumes(2, 3))
    assert round_key(slice_, CONFIG, volumes(2, 3)) == round_key(slice_, CONFIG, scans())
    trained = replace(TRAINED, settings=SCAN)
    assert round_key(trained, CONFIG, volumes(2, 3)) != round_key(TRAINED, CONFIG, volumes(2, 3))


@pytest.mark.parametrize(("fitted", "step"), [(4, FitMap), (5, MapScans)])
def test_a_map_of_volumes_is_laid_out_again_for_many_more_volumes_but_not_for_slices(fitted: int, step: type) -> None:
    all_ = volumes(10, 10, 10, 10, 10, 10)
    digests = frozenset(s.digest for s in all_)
    done = replace(START, settings=SCAN, embedded=digests, mapped=digests - {"d60"}, fitted=fitted)
    (found,) = decide(seen(all_), done).steps
    assert isinstance(found, step)


QUICK = replace(COLD, settings=replace(SETTINGS, quick_model="on", queue_depth=10, cold_start_size=5))


def redrawn(given: Seen, done: Stored) -> tuple[int, ...]:
    """The tasks that the quick model redraws next."""
    return next((step.tasks for step in decide(given, done).steps if isinstance(step, DrawQuickly)), ())


def test_the_quick_model_redraws_what_follows_the_tasks_that_annotators_may_hold() -> None:
    given = seen(scans(1, 2), live(0, 3, 4, 5, 6, 7, 8, 9, 10), label(1, 2))
    assert redrawn(given, QUICK) == (5, 6, 7, 8)
    assert redrawn(replace(given, people=2), QUICK) == (6, 7, 8, 9, 10)
    assert redrawn(replace(given, live=live(0, 3, 4, 5, 6)), QUICK) == (5, 6)  # the others are not published yet
    step = next(step for step in decide(given, QUICK).steps if isinstance(step, DrawQuickly))
    assert (step.queue, step.held, step.lessons) == ((3, 4, 5, 6, 7, 8), 2, (1, 2))
    shown = replace(QUICK, quick={t: quick_key(step.key, f"d{t}") for t in (5, 6, 7, 8)})
    assert redrawn(given, shown) == ()
    assert redrawn(seen(scans(1, 2, 3), given.live, label(1, 2, 3)), shown) == (6, 7, 8, 9)
    skipped = tuple(replace(s, skipped=s.task in (3, 4)) for s in given.scans)
    assert redrawn(replace(given, scans=skipped), QUICK) == (7, 8, 9, 10)  # nobody holds what was skipped
    replaced = tuple(replace(s, digest="new") if s.task == 6 else s for s in given.scans)
    embedded = replace(shown, embedded=ALL | {"new"}, mapped=ALL | {"new"})
    assert redrawn(replace(given, scans=replaced), embedded) == (6,)
    off = replace(shown, settings=replace(QUICK.settings, quick_model="off"))
    step = next(step for step in decide(given, off).steps if isinstance(step, DrawQuickly))
    assert (step.tasks, step.lessons, step.key) == ((5, 6, 7, 8), (), "")  # what is shown is taken back
    assert redrawn(given, replace(off, quick=dict.fromkeys((5, 6, 7, 8), ""))) == ()


def test_the_quick_model_draws_before_the_first_model_only_and_where_it_is_on() -> None:
    given = seen(scans(1, 2), live(0, 3, 4, 5, 6), label(1, 2))
    assert redrawn(given, QUICK) == (5, 6)
    for done in (COLD, replace(QUICK, models=(R1,), active=R1.version), replace(QUICK, rounds=())):
        assert redrawn(given, done) == ()
    nothing_yet = seen(scans(), live(0, *range(1, 11)))
    assert redrawn(nothing_yet, QUICK) == (1, 2, 3, 4, 5, 6)  # only their features are computed


def test_unread_annotations_come_before_the_quick_model_and_training_after_it() -> None:
    given = seen(scans(1, 2, 3, 4), live(0, *range(5, 11)), label(1, 2, 3))
    due = replace(QUICK, settings=replace(QUICK.settings, cold_start_size=3))
    steps = decide(given, due).steps
    kinds = [type(step) for step in steps]
    assert steps[kinds.index(DrawQuickly)].tasks == (7, 8, 9, 10)  # type: ignore[union-attr]  # all: training takes long
    assert kinds.index(ReadMasks) < kinds.index(DrawQuickly) < kinds.index(Train)
    assert redrawn(given, replace(due, quick=dict.fromkeys((7, 8), "older"))) == (9, 10)  # else training never starts


def test_everything_gets_its_turn_although_labels_never_stop() -> None:
    read, draw, scan = ReadMasks((1,)), DrawQuickly((5,), (1,), "k", (4, 5), 1), ReadScans((9,))
    done, last = [], None
    for _ in range(6):  # each is due again at once
        last = next_step(Plan("cold_start", steps=(read, draw, scan)), last)
        done.append(last)
    assert done == [read, draw, scan] * 2
    assert next_step(Plan("cold_start", steps=(read, draw)), draw) == read
    assert next_step(Plan("cold_start", steps=(draw,)), draw) == draw
