"""Imports point one way: read from the sources, compared with the table of design.md, section 1."""

from __future__ import annotations

import ast
import graphlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each module of `backend` may import from `backend` and `sampling`; anyone may import errors.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "settings": set(),
    "project": {"settings"},
    "choices": {"settings", "sampling"},
    "pixels": set(),
    "formats": {"pixels"},
    "evaluation": set(),
    "locks": set(),
    "pulse": set(),
    "supervisor": set(),
    "migrate": set(),
    "store": {"locks", "migrate", "project", "settings"},
    "backup": {"locks", "migrate", "project", "store"},
    "order": {"choices", "project", "settings", "store", "sampling"},
    "changes": {"choices", "project", "settings", "store"},
    "atlas": {"project", "status", "store"},
    "curve": {"project", "status", "store", "sampling"},
    "overview": {
        *("atlas", "changes", "choices", "curve", "order", "pictures", "plots", "project", "settings", "status"),
        *("store", "studio", "sampling"),
    },
    "shards": {"store"},
    "retention": {"store"},
    "studio": {"measures", "pixels", "project"},
    "worker": {"settings"},
    "ahead": set(),
    "hub": set(),
    "preprocessing": set(),
    "checkpoints": set(),
    "networks": set(),
    "weights": {"checkpoints", "networks", "preprocessing"},
    "embedders": {"ahead", "checkpoints", "hub", "networks", "preprocessing", "weights"},
    "segmenters": {"checkpoints", "networks", "pixels", "weights"},
    "training": {"embedders", "pixels", "segmenters"},
    "learner": {"embedders", "evaluation", "pixels", "segmenters", "settings", "training", "sampling"},
    "bulk": {"ahead", "learner", "pixels", "project", "store", "studio"},
    "helper": {"bulk", "presence", "pulse", "shards"},
    "predictor": {"bulk", "learner", "pixels", "project", "store", "studio"},
    "reconcile": {
        *(
            "bulk",
            "choices",
            "evaluation",
            "learner",
            "locks",
            "measures",
            "order",
            "pixels",
            "project",
            "pulse",
            "settings",
            "shards",
            "store",
            "studio",
        ),
        "sampling",
    },
    "status": {"choices", "project", "settings", "store", "sampling"},
    "metrics": {"status", "store"},
    "wording": set(),
    "reference": set(),
    "page": {"reference", "wording"},
    "contract": set(),
    "measures": set(),
    "api": {
        *("changes", "contract", "measures", "metrics", "overview", "page", "project", "settings", "status"),
        *("store", "worker"),
    },
    "simulate.labelled": {"learner", "pixels"},
    "simulate.runs": {"learner", "project", "settings", "simulate.labelled", "simulate.results", "sampling"},
    "simulate.compare": {
        *("project", "sampling"),
        *(f"simulate.{part}" for part in ("labelled", "report", "results", "runs", "statistics")),
    },
    "simulate.results": set(),
    "simulate.statistics": {"simulate.results"},
    "simulate.text": set(),
    "simulate.figures": {"simulate.results", "simulate.statistics", "simulate.text"},
    "simulate.method": {"simulate.results", "simulate.statistics", "simulate.text"},
    "simulate.report": {*(f"simulate.{part}" for part in ("figures", "method", "results", "statistics", "text"))},
    "doctor": {
        *(
            "choices",
            "embedders",
            "learner",
            "project",
            "segmenters",
            "settings",
            "store",
            "studio",
            "weights",
            "worker",
        ),
    },
    "plugin": {"settings"},
    "logs": {"settings"},
    "presence": {"store"},
    "pictures": {"bulk", "learner", "pixels", "project", "store"},
    "plots": set(),
}
COMPOSITION = {"app", "cli"}  # put the parts together, so they may import everything

# One wall per heavy dependency: who may open it.
WALLS: dict[str, set[str]] = {
    "label_studio_sdk": {"studio"},
    "label_studio_ml": {"plugin"},
    "flask": {"plugin"},
    "torch": {"checkpoints", "networks", "embedders", "learner", "segmenters", "training"},
    "torchvision": {"training"},
    "timm": {"embedders", "networks", "segmenters"},
    "open_clip": {"embedders", "networks"},
    "segmentation_models_pytorch": {"segmenters", "training"},
    "sqlalchemy": {"backup", "migrate", "store", "shards"},
    "alembic": {"migrate"},
    "huey": {"worker"},
    "redis": {"locks", "worker"},
    "filelock": {"locks", "migrate"},
    "fastapi": {"api", "contract", "page"},
    "starlette": {"api", "page"},
    "uvicorn": {"app"},
    "prometheus_client": {"metrics"},
    "pythonjsonlogger": {"logs"},
    "matplotlib": {"plots", "simulate.figures"},
    "jinja2": {"page"},
    "typer": {"cli"},
    "httpx": {"studio", "embedders", "hub", "doctor"},  # doctor asks our own server only, embedders the model hub
}
SAMPLING_MAY = {"numpy", "scipy", "sklearn", "openTSNE", "threadpoolctl", "sampling"}


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "backend" else set()
            found.add(node.module or "")
    return found


def own(names: set[str]) -> set[str]:
    """The modules of `backend`, those of its package `simulate` one by one, and `sampling`, among imported names."""
    parts = [n.split(".") for n in names if n.startswith("backend.")]
    inner = {".".join(p[1:3] if p[1] == "simulate" else p[1:2]) for p in parts} - {"__version__"}
    return inner | ({"sampling"} & {n.split(".")[0] for n in names})


MODULES = {p.stem: imports(p) for p in sorted((ROOT / "backend").glob("*.py")) if p.stem != "__init__"}
MODULES |= {
    f"simulate.{p.stem}": imports(p)
    for p in sorted((ROOT / "backend" / "simulate").glob("*.py"))
    if p.stem != "__init__"
}
SAMPLING = {p.stem: imports(p) for p in sorted((ROOT / "sampling").glob("*.py"))}


def test_every_module_has_its_place_in_the_table() -> None:
    assert set(MODULES) <= set(ALLOWED) | COMPOSITION


@pytest.mark.parametrize("module", sorted(set(MODULES) - COMPOSITION))
def test_a_module_imports_only_what_stands_below_it(module: str) -> None:
    assert own(MODULES[module]) - {"errors"} <= ALLOWED[module]


def test_the_table_points_one_way() -> None:
    graphlib.TopologicalSorter(ALLOWED).prepare()  # raises CycleError


@pytest.mark.parametrize("package", sorted(WALLS))
def test_a_heavy_dependency_stays_behind_its_wall(package: str) -> None:
    users = {m for m, names in MODULES.items() if package in {n.split(".")[0] for n in names}}
    assert users <= WALLS[package]


@pytest.mark.parametrize("module", sorted(SAMPLING))
def test_sampling_knows_arrays_only(module: str) -> None:
    packages = {name.split(".")[0] for name in SAMPLING[module]}
    assert packages - sys.stdlib_module_names <= SAMPLING_MAY


def test_only_the_command_line_starts_the_demonstration() -> None:
    assert {m for m, names in MODULES.items() if "demo" in own(names)} <= {"cli"}


def test_the_plugin_needs_nothing_that_label_studio_ml_does_not_bring() -> None:
    for module in ("plugin", "settings", "errors"):
        packages = {name.split(".")[0] for name in MODULES[module]}
        assert packages - sys.stdlib_module_names <= {"flask", "label_studio_ml", "backend"}


def test_only_studio_knows_label_studios_addresses() -> None:
    for module in set(MODULES) - {"studio", "contract"}:  # contract: those of our own
        tree = ast.parse((ROOT / "backend" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not [t for t in texts if t.startswith(("/api/tasks", "/api/projects/", "/api/webhooks", "/api/ml"))]
