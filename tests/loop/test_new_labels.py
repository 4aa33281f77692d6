"""The queue prefers scans that could show a label which was added later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from world import LARGER, PROJECT, SIZE, World, png

from backend.demo.phantoms import phantom
from backend.loop import new_labels
from backend.records.rounds import Pick
from backend.web import status

pytestmark = pytest.mark.usefixtures("miniature")

COULD_SHOW = "could show Heart"
PLAIN, OTHER, FRONT = 30, 10, 12  # scans of two kinds; places that are looked at


class TwoKinds(World):
    """Scans of two kinds that an embedder tells apart: dark ones, and bright ones, which show the heart."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, strategy="random+random", queue_depth=FRONT)
        self.bright: set[int] = set()
        for seed in range(PLAIN + OTHER):
            image, masks = phantom(seed, (SIZE, SIZE))
            bright = seed % 4 == 0
            tasks = self.studio.add_scans([png((255 - image // 4 if bright else image // 2).astype(np.uint8))])
            self.masks[tasks[0]] = masks
            self.bright |= set(tasks) if bright else set()

    def with_a_new_label(self) -> World:
        """In round 2, after a label was added that nobody could draw before."""
        self.run()
        for task in [task for task in self.order() if task not in self.bright][:8]:
            self.submit(task)
        self.run()
        self.studio.change_config(LARGER)
        self.run()
        return self

    def three_bright_ones(self, *labels: str) -> list[Pick]:
        """The front of the round after three bright scans were annotated with these labels."""
        for task in sorted(self.bright)[:3]:
            self.submit(task, *labels)
        self.run()
        return self.picks()[:FRONT]


@pytest.fixture
def world(tmp_path: Path) -> TwoKinds:
    return TwoKinds(tmp_path / "data")


def test_scans_that_look_like_those_with_a_new_label_come_earlier(world: TwoKinds, tmp_path: Path) -> None:
    before = {pick.task for pick in world.with_a_new_label().picks()[:FRONT]}
    front = world.three_bright_ones("Lung", "Heart")
    other = TwoKinds(tmp_path / "other")
    other.with_a_new_label()
    without = other.three_bright_ones("Lung")  # the same scans show none of it, so nothing is known to look for

    assert [pick for pick in without if pick.reason == COULD_SHOW] == []
    preferred = {pick.task for pick in front if pick.reason == COULD_SHOW}
    assert preferred <= world.bright
    assert len(preferred) == FRONT * new_labels.SHARE
    bright, plainly = (len(world.bright & {pick.task for pick in picks}) for picks in (front, without))
    assert bright > max(plainly, len(world.bright & before))
    rest = [pick.task for pick in front if pick.task not in preferred]
    assert rest == [task for task in other.order() if task in rest]  # as the strategy ordered them

    shown = status.queue(world.store, PROJECT)
    (first, *_) = [place for place in shown if place["kind"] == COULD_SHOW]
    assert first["reason"] == ("could show Heart, a label that few annotations have yet: it looks like scans with it")
    assert first["sentence"] == f"C{first['reason'][1:]}."


def test_the_order_is_that_of_the_strategy_again_once_enough_scans_show_the_label(
    world: TwoKinds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_labels, "ENOUGH", 3)
    world.with_a_new_label()
    assert COULD_SHOW not in {pick.reason for pick in world.three_bright_ones("Lung", "Heart")}


def test_the_order_is_that_of_the_strategy_again_once_most_annotations_know_the_label(world: TwoKinds) -> None:
    world.with_a_new_label()
    older = list(world.annotations)
    assert COULD_SHOW in {pick.reason for pick in world.three_bright_ones("Lung", "Heart")}
    for task in older[:3]:
        world.studio.edit(world.annotations[task], world.truth(task, "Lung"))
    world.run()
    assert COULD_SHOW not in {pick.reason for pick in world.picks()}
