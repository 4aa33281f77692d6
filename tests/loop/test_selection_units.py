"""Whole scans as selection units: their map and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.facts import Scan, control_draw
from backend.loop import order as module
from backend.loop.order import STARTED, RankingInputs, order
from backend.loop.selection_units import add, group_by_place, lay_out, mean_embeddings, places, units
from backend.records.maps import StoredMap, put_map, read_map
from backend.records.rounds import Pick
from backend.records.scans import PRIORITY_EXCLUDED, PRIORITY_NEXT
from backend.records.store import Store
from backend.settings import ProjectSettings
from sampling import COLD_START, EMBEDDED, WITH_MODEL, EmbeddingMap, fit_map

PROJECT, EMBEDDER, MODEL = 1, "e", "m"
SLICES = 5
SETTINGS = ProjectSettings(strategy="paper+paper", cold_start_size=10, round_size=5, queue_depth=10, unit="scan")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path)
    found.add_project(PROJECT)
    return found


def stack(volumes: int, slices: int = SLICES) -> list[Scan]:
    """Volumes A, B, ... with `slices` slices each; the tasks of each are in reverse slice order."""
    return [
        Scan(v * slices + s + 1, "", f"{chr(65 + v)}{slices - 1 - s}", volume=chr(65 + v), slice=slices - 1 - s)
        for v in range(volumes)
        for s in range(slices)
    ]


def embed(store: Store, scans: Sequence[Scan], seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    vectors = {s.digest: random.normal(size=6).astype(np.float32) for s in scans}
    store.put_embeddings(EMBEDDER, list(vectors), np.stack(list(vectors.values())))
    return vectors


def inputs(store: Store, settings: ProjectSettings = SETTINGS, model: str = "") -> RankingInputs:
    return RankingInputs(store, PROJECT, EMBEDDER, model, settings)


def mapped(store: Store, scans: Sequence[Scan], unit: str = "scan") -> StoredMap:
    found = lay_out(store, EMBEDDER, scans, unit, 0)
    put_map(store, PROJECT, EMBEDDER, found)
    return found


def said(store: Store, scans: Sequence[Scan], seed: int = 1) -> dict[str, float]:
    random = np.random.default_rng(seed)
    unsure = {s.digest: float(random.random()) for s in scans}
    more = ("foreground", "boundary", "top", "disagreement")
    store.put_uncertainty(
        MODEL,
        {d: {"image": u, **dict.fromkeys(more, u), "classes": [u, 1 - u]} for d, u in unsure.items()},
    )
    return unsure


def volumes_of(picks: Sequence[Pick], scans: Sequence[Scan]) -> list[str]:
    """The volumes in the order of their picked slices."""
    by_task = {s.task: s for s in scans}
    return [volume for volume, _ in groupby(by_task[p.task].volume for p in picks)]


def whole(picks: Sequence[Pick], scans: Sequence[Scan]) -> None:
    """Check that every volume is contiguous, with its slices in order and otherwise equal."""
    by_task = {s.task: s for s in scans}
    for _, group in groupby(picks, lambda p: by_task[p.task].volume):
        pieces = list(group)
        numbers = [by_task[p.task].slice for p in pieces]
        assert numbers == sorted(numbers)
        assert len({replace(p, task=0) for p in pieces}) == 1
    assert len(volumes_of(picks, scans)) == len(set(volumes_of(picks, scans)))


# -- the map ----------------------------------------------------------------------------------


def test_a_map_of_whole_scans_is_fitted_on_mean_vectors_and_all_slices_share_their_place(store: Store) -> None:
    scans = stack(7)
    vectors = embed(store, scans)
    found = mapped(store, scans)
    means = np.stack([np.mean([vectors[s.digest] for s in scans if s.volume == v], axis=0) for v in "ABCDEFG"])
    assert mean_embeddings(store, EMBEDDER, group_by_place(scans)) == pytest.approx(means, abs=1e-6)
    expected = fit_map(means.astype(np.float32), seed=0).xy
    where = dict(zip(found.digests, found.xy, strict=True))
    for s in scans:
        assert where[s.digest] == pytest.approx(expected[ord(s.volume) - 65], abs=1e-3 * np.abs(expected).max())
    assert len(found.state["xy"]) == 7
    kept = read_map(store, PROJECT, EMBEDDER)
    assert kept is not None
    assert (kept.unit, kept.digests, sorted(kept.volumes)) == ("scan", found.digests, list("ABCDEFG"))
    assert kept.xy.tolist() == found.xy.tolist()


def test_a_map_of_slices_is_unchanged(store: Store) -> None:
    scans = stack(3)
    vectors = embed(store, scans)
    found = mapped(store, scans, "slice")
    assert found.xy.tolist() == fit_map(np.stack(list(vectors.values())), seed=0).xy.tolist()
    assert read_map(store, PROJECT, EMBEDDER)[3:] == ("slice", {})  # type: ignore[index]


def test_means_are_the_same_whether_computed_at_once_or_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = stack(9)
    embed(store, scans)
    at_once = mean_embeddings(store, EMBEDDER, group_by_place(scans))
    monkeypatch.setattr("backend.loop.selection_units.AT_ONCE", 7)
    assert mean_embeddings(store, EMBEDDER, group_by_place(scans)).tolist() == at_once.tolist()


def test_later_slices_are_placed_with_their_volume_and_a_new_volume_at_its_mean(store: Store) -> None:
    """Empty slices look the same in every patient: they do not make one volume part of another."""
    scans = stack(8)
    vectors = embed(store, scans)
    first = mapped(store, [s for s in scans if s.slice < 3])
    late = [Scan(100 + s, "", f"N{s}" if s else "A0", volume="N", slice=s) for s in range(3)]
    single = Scan(200, "", "solo")
    vectors |= embed(store, [*late[1:], single], seed=5)
    found = add(first, store, EMBEDDER, [*scans, *late, single])
    assert found.xy[: len(first.xy)].tolist() == first.xy.tolist()
    where = dict(zip(found.digests, found.xy.tolist(), strict=True))
    for s in scans:
        assert where[s.digest] == first.volumes[s.volume].tolist()
    means = np.stack([np.mean([vectors[s.digest] for s in late], axis=0), vectors["solo"]])
    new, alone = EmbeddingMap.from_state(first.state).place(means)
    assert where["N1"] == where["N2"] == pytest.approx(new.tolist(), abs=1e-3)
    assert where["solo"] == pytest.approx(alone.tolist(), abs=1e-3)
    assert where["A0"] == first.volumes["A"].tolist()
    assert places(found, [late, [single]]) == pytest.approx(np.stack([new, alone]), abs=1e-3)
    again = add(found, store, EMBEDDER, [*scans, *late, single])
    assert (again.digests, again.xy.tolist()) == (found.digests, found.xy.tolist())


def test_a_volume_whose_slices_all_occur_elsewhere_is_placed_where_most_of_them_are(store: Store) -> None:
    scans = stack(4)
    embed(store, scans)
    found = mapped(store, scans)
    other = [Scan(90 + i, "", d, volume="Z", slice=i) for i, d in enumerate(("A1", "B1", "B2"))]
    assert add(found, store, EMBEDDER, [*scans, *other]).xy.tolist() == found.xy.tolist()
    assert places(found, [other]).tolist() == [found.volumes["B"].tolist()]


# -- the order --------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [name for name in COLD_START if name != "stratified"])
def test_a_first_order_has_every_volume_whole(store: Store, strategy: str) -> None:
    scans = stack(12)
    embed(store, scans)
    mapped(store, scans)
    settings = replace(SETTINGS, strategy=f"{strategy}+paper")
    picks = order(inputs(store, settings), scans)
    assert sorted(p.task for p in picks) == [s.task for s in scans]
    whole(picks, scans)


@pytest.mark.parametrize("strategy", WITH_MODEL)
def test_an_order_with_a_model_has_every_volume_whole(store: Store, strategy: str) -> None:
    scans = stack(12)
    embed(store, scans)
    mapped(store, scans)
    said(store, scans)
    settings = replace(SETTINGS, strategy=f"paper+{strategy}")
    picks = order(inputs(store, settings, MODEL), scans, ranked=4)
    assert sorted(p.task for p in picks) == [s.task for s in scans]
    whole(picks, scans)
    assert {p.reason for p in picks[: 4 * SLICES]} == {strategy}


def test_the_uncertainty_of_a_volume_is_the_mean_over_its_slices(store: Store) -> None:
    scans = stack(8)
    embed(store, scans)
    mapped(store, scans)
    unsure = said(store, scans)
    means = {v: np.mean([unsure[s.digest] for s in scans if s.volume == v]) for v in "ABCDEFGH"}
    for ranked in (2000, 3):
        picks = order(inputs(store, replace(SETTINGS, strategy="paper+entropy"), MODEL), scans, ranked=ranked)
        assert volumes_of(picks, scans) == sorted(means, key=lambda v: -means[v])
    assert picks[-1].entropy == pytest.approx(min(means.values()), abs=1e-6)


@pytest.mark.parametrize("model", ["", MODEL])
def test_volumes_in_progress_are_completed_first(store: Store, model: str) -> None:
    scans = stack(8)
    embed(store, scans)
    mapped(store, scans)
    said(store, scans)
    of = {(s.volume, s.slice): s.task for s in scans}
    labelled = {of["C", 1], of["F", 0], of["F", 1], of["F", 3], *(of["H", i] for i in range(SLICES))}
    scans = [replace(s, annotated=s.task in labelled) for s in scans]
    first = [of["B", 2], of["B", 3]]  # published, but not labelled
    picks = order(inputs(store, model=model), scans, first)
    assert sorted(p.task for p in picks) == sorted({s.task for s in scans} - labelled - set(first))
    whole(picks, scans)
    assert volumes_of(picks, scans)[:3] == ["F", "B", "C"]  # the fewest slices left first
    reasons = {v: {p.reason for p in picks if p.task in {of[v, i] for i in range(SLICES)}} for v in "ABCDEFG"}
    assert [v for v, why in reasons.items() if why == {STARTED}] == ["B", "C", "F"]
    assert all(STARTED not in why for v, why in reasons.items() if v in "ADEG")
    assert all(p.cluster is not None for p in picks) == (not model)


@pytest.mark.parametrize("model", ["", MODEL])
def test_priorities_and_skips_apply_to_single_slices(store: Store, model: str) -> None:
    scans = stack(6)
    embed(store, scans)
    mapped(store, scans)
    said(store, scans)
    of = {(s.volume, s.slice): s.task for s in scans}
    scans = [
        replace(
            s,
            priority={of["D", 2]: PRIORITY_NEXT, of["E", 0]: PRIORITY_EXCLUDED}.get(s.task, 0),
            skipped=s.task in (of["A", 1], of["D", 4]),
        )
        for s in scans
    ]
    picks = order(inputs(store, model=model), scans)
    tasks = [p.task for p in picks]
    assert (tasks[0], picks[0].reason) == (of["D", 2], "wished")
    assert of["E", 0] not in tasks
    assert set(tasks[-2:]) == {of["A", 1], of["D", 4]}
    whole(picks[1:-2], scans)
    assert len(tasks) == len(set(tasks)) == len(scans) - 1


@pytest.mark.parametrize("model", ["", MODEL])
def test_controls_are_whole_volumes_and_stay_controls_when_the_order_is_continued(store: Store, model: str) -> None:
    scans = stack(20)
    embed(store, scans)
    mapped(store, scans)
    said(store, scans)
    scans[7] = replace(scans[7], annotated=True)  # B is in progress
    settings = replace(SETTINGS, control_share=0.4)
    picks = order(inputs(store, settings, model), scans)
    whole(picks, scans)
    found = volumes_of(picks, scans)
    by_task = {s.task: s for s in scans}
    control = {by_task[p.task].volume for p in picks if p.reason == "control"}
    assert found[0] == "B"
    assert [i for i, v in enumerate(found) if v in control] == [1, 3, 6, 8, 11, 13, 16, 18]
    drawn = sorted("ACDEFGHIJKLMNOPQRST", key=lambda v: control_draw(Scan(0, "", "", volume=v), 0, "scan"))
    placed = found[: found.index(next(v for v in found if v in control))]
    assert next(v for v in found if v in control) == next(v for v in drawn if v not in placed)
    end = 1 + next(i for i, p in enumerate(picks) if by_task[p.task].volume == found[3] and by_task[p.task].slice == 4)
    more = order(inputs(store, settings, model), scans, [p.task for p in picks[:end]])
    places_ = [i for i, v in enumerate(volumes_of(more, scans), start=4) if v in {
        by_task[p.task].volume for p in more if p.reason == "control"
    }]  # fmt: skip
    assert places_ == [6, 8, 11, 13, 16, 18]


@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("model", ["", MODEL])
def test_scans_without_a_volume_are_ordered_like_slices(store: Store, model: str, share: float) -> None:
    scans = [replace(s, volume="", annotated=s.task in (3, 9), skipped=s.task in (9, 12)) for s in stack(8)]
    embed(store, scans)
    said(store, scans)
    found = {}
    for unit in ("slice", "scan"):
        put_map(store, PROJECT, EMBEDDER, lay_out(store, EMBEDDER, scans, unit, 0))
        settings = replace(SETTINGS, unit=unit, control_share=share, strategy="facility+paper")
        found[unit] = order(inputs(store, settings, model), scans, [5, 6], ranked=9)
    assert found["scan"] == found["slice"]


@pytest.mark.parametrize("model", ["", MODEL])
@pytest.mark.parametrize("unit", ["slice", "scan"])
def test_an_order_can_be_previewed_on_the_map_of_the_other_unit(store: Store, unit: str, model: str) -> None:
    scans = stack(9)
    embed(store, scans)
    said(store, scans)
    mapped(store, scans, "slice" if unit == "scan" else "scan")
    picks = order(inputs(store, replace(SETTINGS, unit=unit), model), scans)
    assert sorted(p.task for p in picks) == [s.task for s in scans]
    if unit == "scan":
        whole(picks, scans)


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("model", ["", MODEL])
def test_blank_scans_come_last_unless_they_have_priority(store: Store, model: str, share: float) -> None:
    blank, skipped, prioritized, labelled, given = {3, 9, 17, 24, 30, 40}, {9, 12}, {17}, {24}, {30}
    scans = [
        replace(
            s,
            blank=s.task in blank,
            skipped=s.task in skipped,
            priority=PRIORITY_NEXT if s.task in prioritized else 0,
            annotated=s.task in labelled,
        )
        for s in stack(8)
    ]
    embed(store, scans)
    said(store, scans)
    mapped(store, scans, "slice")
    settings = replace(SETTINGS, unit="slice", control_share=share)
    picks = order(inputs(store, settings, model), scans, sorted(given))
    assert sorted(p.task for p in picks) == [s.task for s in scans if s.task not in labelled | given]
    assert [p.task for p in picks if p.reason == "blank"] == [p.task for p in picks[-3:]] == [3, 9, 40]
    assert (picks[0].task, picks[-4].task) == (17, 12)


@pytest.mark.parametrize("model", ["", MODEL])
def test_with_whole_scans_a_volume_keeps_its_blank_slices(store: Store, model: str) -> None:
    scans = [replace(s, blank=s.slice in (0, SLICES - 1)) for s in stack(8)]
    scans.append(Scan(41, "", "alone", blank=True))
    embed(store, scans)
    said(store, scans)
    mapped(store, scans)
    picks = order(inputs(store, SETTINGS, model), scans)
    whole(picks, scans)
    assert sorted(p.task for p in picks) == list(range(1, 42))
    assert [(p.task, p.reason) for p in picks if p.reason == "blank"] == [(41, "blank")]
    assert picks[-1].task == 41


@pytest.mark.parametrize("model", ["", MODEL])
def test_scans_that_come_last_are_offered_when_nothing_else_is_left(store: Store, model: str) -> None:
    scans = stack(2)
    embed(store, scans)
    said(store, scans)
    mapped(store, scans, "slice")
    asked = inputs(store, replace(SETTINGS, unit="slice"), model)
    tasks = [s.task for s in scans]
    picks = order(asked, [replace(s, blank=True) for s in scans])
    assert [(p.task, p.reason) for p in picks] == [(task, "blank") for task in tasks]
    assert sorted(p.task for p in order(asked, [replace(s, skipped=True) for s in scans])) == tasks
    assert order(asked, [replace(s, priority=PRIORITY_EXCLUDED) for s in scans]) == []


def test_units_are_single_scans_or_whole_volumes() -> None:
    scans = [*stack(2, 3), Scan(7, "", "same"), Scan(8, "", "same")]
    assert units(scans, "slice") == [[s] for s in scans]
    tasks = [[s.task for s in one] for one in units(scans, "scan")]
    assert tasks == [[3, 2, 1], [6, 5, 4], [7], [8]]
    assert [[s.task for s in one] for one in group_by_place(scans)] == [[3, 2, 1], [6, 5, 4], [7, 8]]


def test_strategies_that_use_embeddings_get_the_means(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "badge" in EMBEDDED
    scans = stack(6)
    embed(store, scans)
    mapped(store, scans)
    said(store, scans)
    seen: list[Any] = []
    ranking = module.long_ranking

    def watched(name: str, pool: Any, *rest: Any, **more: Any) -> Any:
        seen.append(pool)
        return ranking(name, pool, *rest, **more)

    monkeypatch.setattr(module, "long_ranking", watched)
    order(inputs(store, replace(SETTINGS, strategy="paper+badge"), MODEL), scans)
    assert seen[0].embeddings.tolist() == mean_embeddings(store, EMBEDDER, group_by_place(scans)).tolist()


# -- one scan per patient or volume -----------------------------------------------------------


@pytest.mark.parametrize("strategy", ["medoids+power-entropy", "facility+entropy"])
@pytest.mark.parametrize("model", ["", MODEL])
def test_every_volume_has_one_slice_in_the_queue_before_any_has_two(store: Store, strategy: str, model: str) -> None:
    scans = stack(12, 9)
    embed(store, scans)
    said(store, scans)
    settings = replace(SETTINGS, strategy=strategy, unit="slice", cold_start_size=12)
    mapped(store, scans, "slice")
    volume = {s.task: s.volume for s in scans}
    first = [volume[p.task] for p in order(inputs(store, settings, model), scans)[:12]]
    assert len(set(first)) == 12
    off = replace(settings, one_per_patient="off")
    without = [volume[p.task] for p in order(inputs(store, off, model), scans)[:12]]
    assert len(set(without)) < 12


def test_slices_of_two_studies_of_one_patient_are_one_group(store: Store) -> None:
    scans = [replace(s, patient="P1" if s.volume in "AB" else "") for s in stack(6, 5)]
    embed(store, scans)
    settings = replace(SETTINGS, strategy="facility+entropy", unit="slice", cold_start_size=5)
    mapped(store, scans, "slice")
    volume = {s.task: s.volume for s in scans}
    first = [volume[p.task] for p in order(inputs(store, settings), scans)[:5]]
    assert len(set(first) - {"A", "B"}) == 4
