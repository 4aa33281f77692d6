"""The page as `scanqueue serve` composes it, on the records of a loop that ran with an in-memory Label Studio."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from world import PROJECT, World

from backend.loop import audit, observing
from backend.web.api import create_api
from backend.web.overview import Overview
from backend.web.pictures import Pictures

TITLE = "Lungs & <i>hearts</i>"


def used_world(folder: Path) -> World:
    """A project in round 1 with a broken scan, a changed setting and a changed priority."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observing, "SETTLE", 0.01)
        world = World(folder)
        world.in_round_1()
        audit.set_overrides(world.store, PROJECT, "anna", {"alpha": 0.7})
        audit.set_priorities(world.store, PROJECT, "anna", [world.order()[-1]], "out")
        world.run()
        world.store.set_project(PROJECT, title=TITLE, studio_url="http://127.0.0.1:9")
    return world


def application(world: World, user: str = "anna@lab.example") -> FastAPI:
    studio = SimpleNamespace(tasks_with_drafts=lambda project: world.order()[:1], user_names=lambda: {1: user})
    pictures = Pictures(world.store, world.reconciler().processor)
    checks = [{"level": "ok", "what": "Label Studio answers.", "cure": ""}]
    overview = Overview(world.store, studio, pictures, lambda project: checks)  # type: ignore[arg-type]
    return create_api(world.settings, world.store, lambda *_: None, lambda *_: [], overview=overview)
