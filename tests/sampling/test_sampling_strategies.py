"""The contract that every strategy in the two registries keeps, and the specific guarantees of each."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import numpy as np
import pytest

import sampling
from sampling import (
    BLIND,
    COLD_START,
    DEFAULT,
    EMBEDDED,
    EXTRA_SIGNALS,
    GROUPED,
    WITH_MODEL,
    ColdStart,
    Order,
    Pool,
    Ranking,
    WithModel,
    choose_clusters,
    find_strategy,
    long_ranking,
    noise,
    representative,
    strategy_pair,
    whole_order,
)

random = np.random.default_rng(0)
MAPS = {
    "one": np.zeros((1, 2)),
    "two": np.array([[0.0, 0], [3, 4]]),
    "three": np.array([[0.0, 0], [3, 4], [9, 0]]),
    "copies": np.repeat(random.normal(size=(4, 2)), 5, axis=0),
    "all in one place": np.full((6, 2), 2.5),
    "many": random.normal(size=(70, 2)),
}


def pool_of(xy: np.ndarray, **changes: object) -> Pool:
    """A pool with the map as embeddings, two strata, and every signal; the signals of the odd rows are unknown."""
    random = np.random.default_rng(1)
    n = len(xy)
    embeddings = np.hstack([xy, np.ones((n, 3))]).astype(np.float32)
    signals = {"entropy": random.random(n), "disagreement": random.random(n), "classes": random.random((n, 2))}
    for values in signals.values():
        values[1::2] = np.nan
    return replace(Pool(xy, choose_clusters(xy, seed=0), embeddings, np.arange(n) % 2, signals), **changes)  # type: ignore[arg-type]


POOLS = {name: pool_of(xy) for name, xy in MAPS.items()}
cold_start = pytest.mark.parametrize("strategy", COLD_START.values(), ids=list(COLD_START))
with_model = pytest.mark.parametrize("strategy", WITH_MODEL.values(), ids=list(WITH_MODEL))
both = pytest.mark.parametrize(
    "strategy",
    [*COLD_START.values(), *WITH_MODEL.values()],
    ids=[*(f"cold start {n}" for n in COLD_START), *(f"with model {n}" for n in WITH_MODEL)],
)
pools = pytest.mark.parametrize("pool", POOLS.values(), ids=list(POOLS))


def odd(pool: Pool) -> list[int]:
    return list(range(1, len(pool), 2))


def same(first: Order | Ranking, second: Order | Ranking) -> bool:
    return all(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))


@both
@pools
class TestEveryStrategy:
    @pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
    def test_gives_the_requested_number_of_distinct_unchosen_rows_or_all_that_are_left(
        self, strategy: ColdStart | WithModel, pool: Pool, count: int
    ) -> None:
        found = strategy(pool, count, chosen=odd(pool), seed=4)
        free = set(range(len(pool))) - set(odd(pool))
        assert len(found.rows) == min(count, len(free))
        assert len(set(found.rows.tolist())) == len(found.rows)
        assert set(found.rows.tolist()) <= free
        assert all(len(getattr(found, f.name)) == len(found.rows) for f in fields(found))

    def test_same_seed_same_answer(self, strategy: ColdStart | WithModel, pool: Pool) -> None:
        assert same(*(strategy(pool, 9, chosen=odd(pool), seed=4) for _ in range(2)))

    def test_inputs_are_not_modified(self, strategy: ColdStart | WithModel, pool: Pool) -> None:
        chosen = odd(pool)
        arrays = [pool.xy, pool.embeddings, pool.strata, pool.clustering.labels, *pool.signals.values()]
        kept = [np.array(a) for a in arrays]
        strategy(pool, 9, chosen=chosen, seed=4)
        for now, before in zip(arrays, kept, strict=True):
            np.testing.assert_array_equal(now, before)
        assert chosen == odd(pool)

    def test_chosen_rows_may_be_unsorted_and_repeated(self, strategy: ColdStart | WithModel, pool: Pool) -> None:
        once = strategy(pool, 9, chosen=odd(pool), seed=4)
        assert same(once, strategy(pool, 9, chosen=[*odd(pool)[::-1], *odd(pool)], seed=4))

    def test_a_row_that_does_not_exist_is_refused(self, strategy: ColdStart | WithModel, pool: Pool) -> None:
        with pytest.raises(ValueError, match=rf"^chosen: got row {len(pool)}, wanted 0 <= row < {len(pool)}"):
            strategy(pool, 1, chosen=[len(pool)], seed=4)


@cold_start
@pools
def test_a_cold_start_can_order_everything_with_reasons_and_clusters(strategy: ColdStart, pool: Pool) -> None:
    order = strategy(pool, len(pool), seed=4)
    assert sorted(order.rows) == list(range(len(pool)))
    assert set(order.reasons) <= set(sampling.cold_start.Reason.__args__)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(order.cluster, pool.clustering.labels[order.rows])


@with_model
@pools
def test_terms_are_between_zero_and_one_for_every_pick(strategy: WithModel, pool: Pool) -> None:
    found = strategy(pool, 1000, chosen=odd(pool), seed=4)
    for term in (found.score, found.entropy, found.diversity):
        assert ((term >= 0) & (term <= 1)).all()


@both
def test_a_pool_without_the_inputs_of_the_strategy_is_refused(strategy: ColdStart | WithModel) -> None:
    bare = Pool(MAPS["many"], POOLS["many"].clustering)
    name = next(n for d in (COLD_START, WITH_MODEL) for n, s in d.items() if s is strategy)  # type: ignore[comparison-overlap]
    moment = WITH_MODEL if strategy in WITH_MODEL.values() else COLD_START
    needs = (moment is WITH_MODEL and name not in BLIND) or name in EMBEDDED or name == "stratified"
    if needs:
        with pytest.raises(ValueError, match=r"^(signals|embeddings|strata): "):
            strategy(bare, 3, seed=4)
    else:
        assert len(strategy(bare, 3, seed=4).rows) == 3


@pytest.mark.parametrize(
    "name", [n for n in WITH_MODEL if n not in ("random", "kcenter", "kcenter-map", "facility", "facility-map")]
)
def test_nan_of_an_unlabelled_scan_is_refused_with_its_row(name: str) -> None:
    signal = EXTRA_SIGNALS.get(name, "entropy")
    broken = np.array(POOLS["many"].signals[signal])
    broken[4] = np.nan
    pool = replace(POOLS["many"], signals={**POOLS["many"].signals, signal: broken})
    with pytest.raises(ValueError, match=rf"^{signal}: row 4 contains NaN or infinity"):
        WITH_MODEL[name](pool, 1, chosen=odd(pool), seed=4)


def test_a_pool_whose_arrays_do_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^embeddings: has 3 rows, but xy has 70"):
        pool_of(MAPS["many"], embeddings=np.zeros((3, 4)))
    broken = np.ones((70, 3))
    broken[7, 1] = np.inf
    with pytest.raises(ValueError, match=r"^embeddings: row 7 contains NaN or infinity"):
        COLD_START["kcenter"](pool_of(MAPS["many"], embeddings=broken), 2)


# -- what each strategy guarantees ------------------------------------------------------------


def islands(sizes: tuple[int, ...], *, apart: float = 10.0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.concatenate([random.normal((apart * i, 0.0), 0.5, (n, 2)) for i, n in enumerate(sizes)])


def test_the_paper_strategies_are_the_two_functions_of_the_paper_design() -> None:
    pool = pool_of(MAPS["many"])
    assert same(COLD_START["paper"](pool, 70, seed=1), sampling.cold_start_order(pool.xy, pool.clustering))
    entropy = np.random.default_rng(2).random(70)
    expected = sampling.rank(entropy, pool.xy, [3], alpha=0.3, count=8)
    ranked = replace(pool, signals={"entropy": entropy})
    assert same(WITH_MODEL["paper"](ranked, 8, chosen=[3], alpha=0.3, seed=1), expected)


def test_random_orders_differ_by_seed_and_can_be_continued() -> None:
    pool = pool_of(MAPS["many"])
    first = COLD_START["random"](pool, 70, seed=1)
    assert not same(first, COLD_START["random"](pool, 70, seed=2))
    later = WITH_MODEL["random"](pool, 70, chosen=first.rows[:20], seed=1)
    np.testing.assert_array_equal(later.rows, first.rows[20:])


def test_stratified_gives_every_stratum_its_share_of_every_prefix() -> None:
    strata = np.repeat([5, 9, 2], [40, 20, 10])
    pool = pool_of(MAPS["many"], strata=strata)
    for length in (7, 14, 28, 70):
        rows = COLD_START["stratified"](pool, length, seed=3).rows
        assert [int((strata[rows] == s).sum()) for s in (5, 9, 2)] == [length * 4 // 7, length * 2 // 7, length // 7]
    missing = [int(r) for r in np.flatnonzero(strata == 5)][:30]  # already labelled: the others catch up first
    rows = COLD_START["stratified"](pool, 9, chosen=missing, seed=3).rows
    assert 5 not in strata[rows]


def test_kcenter_takes_the_scan_farthest_from_all_picks() -> None:
    line = np.array([[0.0, 0], [1, 0], [4, 0], [9, 0], [10, 0]])
    assert representative.spread(line, 3, np.array([0])).tolist() == [4, 2, 1]
    assert representative.spread(line, 2, np.array([], dtype=np.intp)).tolist() == [2, 4]  # the mean is 4.8


def test_typiclust_takes_the_densest_scan_of_each_cluster_large_ones_first() -> None:
    points = islands((40, 25, 10))
    picks = representative.typical(points, 3, np.array([], dtype=np.intp), seed=0)
    assert [int(r >= 40) + int(r >= 65) for r in picks] == [0, 1, 2]
    for island, pick in zip(((0, 40), (40, 65), (65, 75)), picks, strict=True):
        members = points[slice(*island)]
        distances = np.sort(np.linalg.norm(members[:, None] - members, axis=2), axis=1)[:, 1 : min(21, len(members))]
        assert pick - island[0] == distances.mean(axis=1).argmin()


def test_typiclust_leaves_clusters_that_have_a_label_and_tiny_ones_for_later() -> None:
    points = np.concatenate([islands((30, 30)), [[300.0, 0], [300.0, 1]]])
    picks = representative.typical(points, 2, np.array([3]), seed=0)
    assert 30 <= picks[0] < 60
    assert picks[1] < 60


def test_alps_takes_the_scan_nearest_to_each_centre() -> None:
    points = islands((20, 30))
    picks = representative.central(points, 2, np.array([], dtype=np.intp), seed=0)
    nearest = []
    for island in (slice(20, 50), slice(0, 20)):
        distances = np.linalg.norm(points[island] - points[island].mean(axis=0), axis=1)
        nearest.append(island.start + int(distances.argmin()))
    assert picks.tolist() == nearest


def test_probcover_covers_every_scan_and_never_picks_one_twice() -> None:
    points = islands((30, 20, 10))
    classes = np.repeat([0, 1, 2], [30, 20, 10])
    picks = representative.covering(points, 60, np.array([], dtype=np.intp), classes=classes, seed=0)
    assert sorted(picks) == list(range(60))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    near = distances <= representative._pure_radius(distances, classes)
    uncovered = np.ones(60, dtype=bool)
    for pick in picks:
        degrees = near @ uncovered
        if degrees.max() == 0:
            break
        assert degrees[pick] == degrees.max()
        uncovered &= ~near[pick]
    assert not uncovered.any()


def test_the_pure_radius_is_the_largest_at_which_balls_stay_in_one_class() -> None:
    line = np.arange(40.0)[:, None] * [1, 0]
    classes = (np.arange(40) >= 20).astype(np.intp)
    radius = representative._pure_radius(np.abs(line[:, 0, None] - line[:, 0]), classes)
    other = np.where(np.arange(40) < 20, 20 - np.arange(40), np.arange(40) - 19)
    assert (other > radius).mean() >= representative.PURITY
    assert (other > radius + 1 + 1e-6).mean() < representative.PURITY


def test_facility_location_is_greedy_and_lazy_evaluation_gives_the_same_picks() -> None:
    points = np.random.default_rng(5).normal(size=(80, 3))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    far = 2 * np.linalg.norm(points - points.mean(axis=0), axis=1).max()
    nearest, picks = np.minimum(np.full(80, far), distances[7]), []
    for _ in range(30):
        gains = np.maximum(nearest - distances, 0).sum(axis=1)
        gains[[7, *picks]] = -1
        picks.append(int(gains.argmax()))
        nearest = np.minimum(nearest, distances[picks[-1]])
    assert representative.facility(points, 30, np.array([7]), seed=0).tolist() == picks


def test_facility_location_starts_in_the_largest_group_and_leaves_an_outlier_for_later() -> None:
    points = np.concatenate([islands((40, 30, 20)), [[0.0, 60.0]]])
    picks = representative.facility(points, 3, np.array([], dtype=np.intp), seed=0)
    assert sorted(int(r >= 40) + int(r >= 70) for r in picks) == [0, 1, 2]
    assert 90 not in picks


@pytest.mark.parametrize("name", ["facility", "probcover", "typiclust", "alps", "kcenter"])
def test_large_pools_are_subsampled_and_still_give_exact_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representative, "SAMPLE", 20)
    pool = pool_of(MAPS["many"])
    rows = COLD_START[name](pool, 60, chosen=[1, 2, 3], seed=4).rows
    assert len(set(rows.tolist())) == 60
    assert not {1, 2, 3} & set(rows.tolist())


def test_entropy_takes_the_highest_and_kcenter_ignores_the_model() -> None:
    entropy = np.random.default_rng(2).random(70)
    pool = pool_of(MAPS["many"], signals={"entropy": entropy})
    np.testing.assert_array_equal(WITH_MODEL["entropy"](pool, 70).rows, np.argsort(-entropy))
    first = WITH_MODEL["kcenter-map"](pool, 9, chosen=[5])
    np.testing.assert_array_equal(first.rows, sampling.farthest_first(pool.xy, 10, 5)[1:])


def test_power_noise_picks_in_proportion_to_the_entropy() -> None:
    values = np.array([1.0, 2.0, 5.0])
    random = np.random.default_rng(0)
    firsts = np.bincount([int(noise.noisy(values, random).argmax()) for _ in range(20_000)], minlength=3) / 20_000
    np.testing.assert_allclose(firsts, values / values.sum(), atol=0.015)


def test_clasp_takes_two_thirds_class_by_class_and_a_rare_class_is_not_left_out() -> None:
    n = 3000
    classes = np.full((n, 2), 1e-12)
    classes[:1000, 0], classes[1000:1003, 1] = 1.0, 1.0
    entropy = np.where(np.arange(n) >= 2000, 1.0, 1e-12)
    picks = noise.class_stratified(entropy, classes, 9, np.random.default_rng(0))
    kinds = [int((picks < 1000).sum()), int(((picks >= 1000) & (picks < 1003)).sum()), int((picks >= 2000).sum())]
    assert kinds == [3, 3, 3]


def test_a_longer_order_begins_with_the_shorter_one_where_this_is_promised() -> None:
    for pool in POOLS.values():
        for name in sampling.strategies.PREFIXED:
            rows = COLD_START[name](pool, 30, chosen=odd(pool), seed=4).rows
            for count in (1, 4, 13):
                found = COLD_START[name](pool, count, chosen=odd(pool), seed=4).rows
                later = COLD_START[name](pool, 30 - count, chosen=[*odd(pool), *found], seed=4).rows
                assert [*found, *later][:30] == rows.tolist(), (name, count)


def test_a_stochastic_batch_beats_the_mean_of_random_ones_and_is_not_the_top() -> None:
    entropy = np.random.default_rng(3).random(200)
    found = noise.best_batch(entropy, 10, np.random.default_rng(0))
    means = [entropy[np.random.default_rng(s).choice(200, 10, replace=False)].mean() for s in range(500)]
    assert entropy[found].mean() > np.quantile(means, 0.99)
    assert set(found) != set(np.argsort(-entropy)[:10])
    assert (np.diff(entropy[found]) <= 0).all()


def test_badge_starts_with_the_most_uncertain_scan_and_then_takes_different_ones() -> None:
    points = np.repeat(np.eye(2), 50, axis=0)
    entropy = np.full(100, 0.5)
    entropy[0] = 0.9
    seconds = []
    for seed in range(300):
        first, second = noise.uncertain_and_apart(entropy, points, 2, np.random.default_rng(seed))
        assert first == 0
        seconds.append(second >= 50)
    # squared distance 0.16 to each of 49 similar scans, 1.06 to each of 50 others
    assert abs(np.mean(seconds) - 50 * 1.06 / (50 * 1.06 + 49 * 0.16)) < 0.06


def test_badge_picks_from_a_sample_of_a_large_pool_and_still_starts_with_the_most_uncertain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noise, "CANDIDATES", 10)
    points = np.repeat(np.eye(3), 40, axis=0)
    entropy = np.linspace(0.1, 0.9, 120)
    drawn = set()
    for seed in range(20):
        picks = noise.uncertain_and_apart(entropy, points, 9, np.random.default_rng(seed))
        assert picks[0] == 119
        assert len(set(picks.tolist())) == 9
        drawn |= set(picks.tolist())
    assert len(drawn) > 60
    assert sorted(noise.uncertain_and_apart(entropy, points, 120, np.random.default_rng(0))) == list(range(120))


# -- by name ----------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [COLD_START, WITH_MODEL], ids=["cold start", "with model"])
def test_both_registries_have_the_paper_strategy_and_random_choice(moment: dict) -> None:
    assert next(iter(moment)) == "paper"
    assert "random" in moment


def test_a_name_means_a_pair_of_strategies() -> None:
    usual = tuple(DEFAULT.split("+"))
    assert strategy_pair("default") == usual
    assert strategy_pair("paper") == ("paper", "paper")
    assert strategy_pair("typiclust+entropy") == ("typiclust", "entropy")
    assert strategy_pair("probcover") == ("probcover", usual[1])
    assert strategy_pair("badge") == (usual[0], "badge")


@pytest.mark.parametrize("name", ["luck", "luck+paper", "paper+luck", "entropy+paper", "+", ""])
def test_an_unknown_strategy_is_refused_with_the_known_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"^strategy: got .*, wanted .*paper"):
        strategy_pair(name)
    with pytest.raises(ValueError, match=re.escape("strategy: got 'luck', wanted one of paper, random, stratified")):
        find_strategy(COLD_START, "luck")


@pytest.mark.parametrize("name", COLD_START)
@pools
def test_a_full_order_begins_with_the_picks_of_the_strategy_and_has_every_scan_once(name: str, pool: Pool) -> None:
    order = whole_order(name, pool, 5, chosen=[0], seed=4)
    assert sorted(order.rows) == list(range(1, len(pool)))
    np.testing.assert_array_equal(order.rows[:5], COLD_START[name](pool, 5, chosen=[0], seed=4).rows)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_long_ranking_is_that_of_the_strategy_or_is_made_of_its_batches(name: str) -> None:
    pool = POOLS["many"]
    found = long_ranking(name, pool, 30, 7, chosen=odd(pool), seed=4)
    assert len(set(found.rows.tolist())) == 30
    first = WITH_MODEL[name](pool, 7 if name in sampling.strategies.SETS else 30, chosen=odd(pool), seed=4)
    np.testing.assert_array_equal(found.rows[: len(first.rows)], first.rows)
    assert len(long_ranking(name, pool, 1000, 7, chosen=odd(pool), seed=4).rows) == 35
    assert len(long_ranking(name, pool, 0, 7, chosen=odd(pool), seed=4).rows) == 0


def test_every_public_name_can_be_imported_from_sampling() -> None:
    for name in sampling.__all__:
        assert hasattr(sampling, name)


# -- one scan per patient or volume -----------------------------------------------------------

GROUPS = np.array([0] * 30 + [1] * 20 + list(range(2, 22)))  # two large volumes, and twenty single scans
LARGE = pool_of(
    MAPS["many"], groups=GROUPS, signals={n: np.random.default_rng(2).random(70) for n in ("entropy", "disagreement")}
)
GROUPED_HERE = [
    (kind, n) for kind, names in (("cold", COLD_START), ("model", WITH_MODEL)) for n in names if n in GROUPED
]


@pytest.mark.parametrize(("kind", "name"), GROUPED_HERE)
@pytest.mark.parametrize("chosen", [[], [3], [3, 35, 60]])
def test_no_patient_gets_a_second_scan_before_each_has_one(kind: str, name: str, chosen: list[int]) -> None:
    strategy: ColdStart | WithModel = find_strategy(COLD_START if kind == "cold" else WITH_MODEL, name)
    rows = strategy(LARGE, 70, chosen=chosen).rows
    left = len(np.unique(GROUPS)) - len(np.unique(GROUPS[chosen]))
    first = GROUPS[rows[:left]]
    assert len(np.unique(first)) == left
    assert not set(first.tolist()) & set(GROUPS[chosen].tolist())
    assert sorted(rows.tolist()) == sorted(set(range(70)) - set(chosen))
    shorter = strategy(LARGE, 10, chosen=chosen).rows
    assert shorter.tolist() == rows[:10].tolist()


@pytest.mark.parametrize(("kind", "name"), GROUPED_HERE)
def test_groups_of_one_scan_each_change_nothing(kind: str, name: str) -> None:
    strategy: ColdStart | WithModel = find_strategy(COLD_START if kind == "cold" else WITH_MODEL, name)
    without, single = replace(LARGE, groups=None), replace(LARGE, groups=np.arange(70))
    assert same(strategy(without, 40, chosen=[5]), strategy(single, 40, chosen=[5]))


def test_facility_location_covers_every_volume_in_its_first_picks() -> None:
    """Slices of 20 volumes, very different in number: the first 20 picks are of 20 volumes."""
    random = np.random.default_rng(4)
    groups = np.repeat(np.arange(20), random.integers(3, 60, 20))
    place = random.uniform(-3, 3, len(groups))[:, None]  # slices at one height look alike in all volumes
    embeddings = np.hstack([np.sin(place), np.cos(place), place, 0.3 * random.normal(size=(20, 40))[groups]])
    flat = embeddings[:, :2]
    pool = Pool(flat, choose_clusters(flat, seed=0), embeddings, groups=groups)
    assert len(set(groups[COLD_START["facility"](pool, 20).rows].tolist())) == 20
    plain = replace(pool, groups=None)
    assert len(set(groups[COLD_START["facility"](plain, 20).rows].tolist())) < 20


def test_duplicates_tie_by_the_lower_row_whatever_the_arithmetic() -> None:
    """Distances come from products of matrices, whose rounding depends on the place of a row."""
    random = np.random.default_rng(6)
    points = np.repeat(random.normal(size=(30, 64)), 3, axis=0).astype(np.float32)
    picks = representative.facility(points, 30, np.array([], dtype=np.intp), seed=0)
    assert sorted((picks // 3).tolist()) == list(range(30))
    assert (picks % 3 == 0).all()
