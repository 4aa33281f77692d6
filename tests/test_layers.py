"""Imports point one way: read from the sources, compared with the table of design.md, section 1."""

from __future__ import annotations

import ast
import graphlib
import subprocess
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
    "formats": {
        *(f"formats.{part}" for part in ("geometry", "labels", "reading", "segmentation", "slices", "source")),
        *("formats.volume", "formats.window"),
    },
    "formats.source": set(),
    "formats.geometry": set(),
    "formats.window": set(),
    "formats.volume": {"formats.geometry", "formats.window"},
    "formats.slices": {"formats.geometry", "formats.volume", "formats.window"},
    "formats.dicom": {"formats.source"},
    "formats.stacks": {"formats.dicom", "formats.source"},
    "formats.frames": {f"formats.{part}" for part in ("dicom", "geometry", "source", "stacks")},
    "formats.decode": {f"formats.{part}" for part in ("dicom", "frames", "geometry", "source", "volume", "window")},
    "formats.nifti": {f"formats.{part}" for part in ("frames", "geometry", "source", "volume", "window")},
    "formats.picture": {"pixels", *(f"formats.{part}" for part in ("frames", "geometry", "source", "volume"))},
    "formats.reading": {
        *(f"formats.{part}" for part in ("decode", "dicom", "frames", "geometry", "nifti", "picture", "source")),
        *("formats.stacks", "formats.volume"),
    },
    "formats.labels": {f"formats.{part}" for part in ("geometry", "nifti", "reading", "source")},
    "formats.segmentation": {f"formats.{part}" for part in ("dicom", "frames", "labels", "reading", "source")},
    "evaluation": set(),
    "identities": {"formats"},
    "intake.files": set(),
    "intake.burnt_in": set(),
    "intake.work": {"formats", "intake.burnt_in"},
    "intake.holdings": {"studio"},
    "intake.plan": {"formats", "identities", "intake.holdings", "intake.work"},
    "intake.deliver": {"intake.holdings", "studio"},
    "intake.run": {
        *(f"intake.{part}" for part in ("deliver", "files", "holdings", "plan", "work")),
        *("formats", "identities", "locks", "processes", "project", "studio"),
    },
    "intake.command": {"processes", "intake.run", "settings", "studio"},
    "export": {"export.run"},
    "export.manifest": set(),
    "export.target": set(),
    "export.collect": {"formats", "project", "studio"},
    "export.pictures": {"export.collect", "export.manifest"},
    "export.predicted": {"bulk", "export.collect", "pixels", "project", "studio"},
    "export.sources": {"formats", "identities", "intake.work"},
    "export.volumes": {"export.manifest", "formats", "identities"},
    "export.run": {
        *(
            f"export.{part}"
            for part in ("collect", "manifest", "pictures", "predicted", "sources", "target", "volumes")
        ),
        *("bulk", "formats", "identities", "pixels", "project", "store", "studio"),
    },
    "locks": set(),
    "pulse": set(),
    "supervisor": set(),
    "migrate": set(),
    "store": {"artefacts", "locks", "migrate", "project", "settings"},
    "backup": {"artefacts", "locks", "migrate", "project", "store"},
    "order": {"choices", "project", "settings", "store", "volumes", "sampling"},
    "origin": set(),
    "volumes": {"project", "store", "sampling"},
    "changes": {"choices", "project", "settings", "store"},
    "atlas": {"project", "status", "store"},
    "curve": {"project", "status", "store", "sampling"},
    "overview": {
        *("atlas", "changes", "choices", "curve", "order", "pictures", "plots", "project", "settings", "status"),
        *("store", "studio", "sampling"),
    },
    "shards": {"store"},
    "retention": {"artefacts", "store"},
    "studio": {"measures", "pixels", "project"},
    "worker": {"settings"},
    "ahead": set(),
    "artefacts": set(),
    "processes": {"ahead"},
    "reading": {"artefacts", "pixels", "project"},
    "hub": set(),
    "preprocessing": set(),
    "checkpoints": set(),
    "networks": set(),
    "weights": {"checkpoints", "networks", "preprocessing"},
    "embedders": {"ahead", "checkpoints", "hub", "networks", "preprocessing", "weights"},
    "segmenters": {"checkpoints", "networks", "pixels", "weights"},
    "training": {"embedders", "pixels", "segmenters"},
    "learner": {"embedders", "evaluation", "pixels", "processes", "segmenters", "settings", "training", "sampling"},
    "bulk": {*("ahead", "artefacts", "learner", "pixels", "processes", "project", "reading", "store", "studio")},
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
            "origin",
            "pixels",
            "project",
            "pulse",
            "settings",
            "shards",
            "store",
            "studio",
            "volumes",
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
        "choices",
        "embedders",
        "hub",
        "learner",
        "project",
        "segmenters",
        "settings",
        "store",
        "studio",
        "weights",
        "worker",
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
    "pydicom": {f"formats.{part}" for part in ("decode", "dicom", "frames", "segmentation")},
    "gdcm": {"formats.decode"},
    "nibabel": {f"formats.{part}" for part in ("geometry", "labels", "nifti")},
    "highdicom": {"formats.segmentation"},
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
    "pycocotools": {"export.pictures"},
    "httpx": {"studio", "embedders", "hub", "doctor"},  # doctor asks our own server only, embedders the model hub
}
SAMPLING_MAY = {"numpy", "scipy", "sklearn", "openTSNE", "threadpoolctl", "sampling"}


PACKAGES = {"export", "formats", "intake", "simulate"}  # whose modules have their own places


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            inner = {a.name for a in node.names if (ROOT / module.replace(".", "/") / f"{a.name}.py").is_file()}
            found |= {f"{module}.{name}" for name in inner}
            if module != "backend" and inner != {a.name for a in node.names}:
                found.add(module)
    return found


def own(names: set[str]) -> set[str]:
    """The modules of `backend`, those of its PACKAGES one by one, and `sampling`, among imported names."""
    parts = [n.split(".") for n in names if n.startswith("backend.")]
    inner = {".".join(p[1:3] if p[1] in PACKAGES else p[1:2]) for p in parts}
    return inner | ({"sampling"} & {n.split(".")[0] for n in names})


FILES = {p.stem: p for p in sorted((ROOT / "backend").glob("*.py")) if p.stem != "__init__"}
for package in sorted(PACKAGES):
    inner = {f"{package}.{p.stem}": p for p in sorted((ROOT / "backend" / package).glob("*.py"))}
    front = inner.pop(f"{package}.__init__")
    FILES |= inner | ({package: front} if imports(front) else {})
MODULES = {name: imports(path) for name, path in FILES.items()}
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
        tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not [t for t in texts if t.startswith(("/api/tasks", "/api/projects/", "/api/webhooks", "/api/ml"))]


def test_a_server_is_there_before_torch_is() -> None:
    server = (
        "import sys, backend.api, backend.app, backend.doctor, backend.overview, backend.pictures, backend.predictor\n"
        "from backend.learner import Learner\nfrom backend.settings import Settings\n"
        "Learner(Settings(), at_once=False)\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", server], cwd=ROOT, check=False).returncode == 0


def test_processes_that_read_scans_start_without_networks_label_studio_and_torch() -> None:
    heavy = ("torch", "label_studio_sdk", "sklearn", "highdicom", "typer", "fastapi", "sqlalchemy")
    program = f"import sys, backend.intake.work; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr
