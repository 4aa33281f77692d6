"""The contract of every strategy, over whatever the two dicts hold."""

from __future__ import annotations

import re

import numpy as np
import pytest

import sampling
from sampling import (
    COLD_START,
    WITH_MODEL,
    ColdStart,
    Order,
    Ranking,
    WithModel,
    choose_clusters,
    find_strategy,
)

random = np.random.default_rng(0)
POOLS = {
    "one": np.zeros((1, 2)),
    "two": np.array([[0.0, 0], [3, 4]]),
    "three": np.array([[0.0, 0], [3, 4], [9, 0]]),
    "copies": np.repeat(random.normal(size=(4, 2)), 5, axis=0),
    "all in one place": np.full((6, 2), 2.5),
    "many": random.normal(size=(70, 2)),
}
cold_start = pytest.mark.parametrize("strategy", COLD_START.values(), ids=list(COLD_START))
with_model = pytest.mark.parametrize("strategy", WITH_MODEL.values(), ids=list(WITH_MODEL))
pools = pytest.mark.parametrize("xy", POOLS.values(), ids=list(POOLS))


def same(first: Order | Ranking, second: Order | Ranking) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


@cold_start
@pools
class TestColdStart:
    def test_every_scan_once_with_a_reason_and_its_cluster(self, strategy: ColdStart, xy: np.ndarray) -> None:
        clustering = choose_clusters(xy, seed=0)
        order = strategy(xy, clustering, seed=4)
        assert sorted(order.rows) == list(range(len(xy)))
        assert len(order.reasons) == len(xy)
        assert set(order.reasons) <= {"medoid", "farthest", "random"}
        np.testing.assert_array_equal(order.cluster, clustering.labels[order.rows])

    def test_same_seed_same_answer(self, strategy: ColdStart, xy: np.ndarray) -> None:
        clustering = choose_clusters(xy, seed=0)
        assert same(strategy(xy, clustering, seed=4), strategy(xy, clustering, seed=4))

    def test_inputs_are_not_modified(self, strategy: ColdStart, xy: np.ndarray) -> None:
        clustering = choose_clusters(xy, seed=0)
        kept = xy.copy(), clustering.labels.copy(), clustering.medoids.copy()
        strategy(xy, clustering, seed=4)
        for now, before in zip((xy, clustering.labels, clustering.medoids), kept, strict=True):
            np.testing.assert_array_equal(now, before)

    def test_nan_is_refused_with_its_row(self, strategy: ColdStart, xy: np.ndarray) -> None:
        clustering = choose_clusters(xy, seed=0)
        broken = xy.copy()
        broken[len(xy) // 2, 0] = np.nan
        with pytest.raises(ValueError, match=f"^xy: row {len(xy) // 2} holds NaN or infinity"):
            strategy(broken, clustering, seed=4)


def labelled_half(xy: np.ndarray) -> tuple[np.ndarray, list[int]]:
    entropy = np.random.default_rng(1).random(len(xy))
    chosen = list(range(1, len(xy), 2))
    entropy[chosen] = np.nan
    return entropy, chosen


@with_model
@pools
class TestWithModel:
    @pytest.mark.parametrize("count", [0, 1, 2, 1000])
    def test_as_many_distinct_unlabelled_scans_as_asked_for_or_left(
        self, strategy: WithModel, xy: np.ndarray, count: int
    ) -> None:
        entropy, chosen = labelled_half(xy)
        found = strategy(entropy, xy, chosen, count=count, seed=4)
        unlabelled = set(range(len(xy))) - set(chosen)
        assert len(found.rows) == min(count, len(unlabelled))
        assert len(set(found.rows)) == len(found.rows)
        assert set(found.rows) <= unlabelled

    def test_terms_are_between_zero_and_one_for_every_pick(self, strategy: WithModel, xy: np.ndarray) -> None:
        entropy, chosen = labelled_half(xy)
        found = strategy(entropy, xy, chosen, count=1000, seed=4)
        for term in (found.score, found.entropy, found.diversity):
            assert term.shape == found.rows.shape
            assert ((term >= 0) & (term <= 1)).all()

    def test_same_seed_same_answer(self, strategy: WithModel, xy: np.ndarray) -> None:
        entropy, chosen = labelled_half(xy)
        first, second = (strategy(entropy, xy, chosen, count=9, seed=4) for _ in range(2))
        assert same(first, second)

    def test_nothing_labelled_yet_works(self, strategy: WithModel, xy: np.ndarray) -> None:
        found = strategy(np.zeros(len(xy)), xy, [], count=1000, seed=4)
        assert sorted(found.rows) == list(range(len(xy)))

    def test_inputs_are_not_modified(self, strategy: WithModel, xy: np.ndarray) -> None:
        entropy, chosen = labelled_half(xy)
        kept = entropy.copy(), xy.copy(), list(chosen)
        strategy(entropy, xy, chosen, count=9, seed=4)
        np.testing.assert_array_equal(entropy, kept[0])
        np.testing.assert_array_equal(xy, kept[1])
        assert chosen == kept[2]

    def test_nan_of_an_unlabelled_scan_is_refused_with_its_row(self, strategy: WithModel, xy: np.ndarray) -> None:
        entropy, chosen = labelled_half(xy)
        entropy[0] = np.nan
        with pytest.raises(ValueError, match=r"^entropy: row 0 holds NaN or infinity"):
            strategy(entropy, xy, chosen, count=1, seed=4)


@pytest.mark.parametrize("moment", [COLD_START, WITH_MODEL], ids=["cold start", "with model"])
def test_both_moments_offer_the_paper_and_chance(moment: dict) -> None:
    assert next(iter(moment)) == "paper"
    assert "random" in moment


def test_the_paper_strategies_are_the_two_functions_of_the_design() -> None:
    xy, entropy = POOLS["many"], np.random.default_rng(2).random(70)
    clustering = choose_clusters(xy, seed=0)
    assert same(COLD_START["paper"](xy, clustering, seed=1), sampling.cold_start_order(xy, clustering))
    expected = sampling.rank(entropy, xy, [3], alpha=0.3, count=8)
    assert same(WITH_MODEL["paper"](entropy, xy, [3], alpha=0.3, count=8, seed=1), expected)


def test_random_orders_differ_by_seed() -> None:
    xy = POOLS["many"]
    clustering = choose_clusters(xy, seed=0)
    assert not same(COLD_START["random"](xy, clustering, seed=1), COLD_START["random"](xy, clustering, seed=2))
    first, second = (WITH_MODEL["random"](np.zeros(70), xy, [], count=70, seed=s) for s in (1, 2))
    assert not np.array_equal(first.rows, second.rows)


def test_entropy_ignores_the_map_and_diversity_ignores_the_model() -> None:
    xy, entropy = POOLS["many"], np.random.default_rng(2).random(70)
    by_entropy = WITH_MODEL["entropy"](entropy, xy, [], count=70, seed=0)
    np.testing.assert_array_equal(by_entropy.rows, np.argsort(-entropy))
    first = WITH_MODEL["diversity"](entropy, xy, [5], count=9, seed=0)
    np.testing.assert_array_equal(first.rows, sampling.farthest_first(xy, 10, 5)[1:])


def test_an_unknown_strategy_is_refused_with_the_names_there_are() -> None:
    words = "strategy: got 'luck', wanted one of paper, farthest, random"
    with pytest.raises(ValueError, match=re.escape(words)):
        find_strategy(COLD_START, "luck")


def test_every_public_name_can_be_imported_from_sampling() -> None:
    for name in sampling.__all__:
        assert hasattr(sampling, name)
