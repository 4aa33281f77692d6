"""Imports have one direction, between the folders of `backend` and between the modules of each."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each folder may import besides itself, lowest first. `ground`: the modules that all may import.
GROUND = {"errors", "facts", "fingerprints", "image_value", "json_text", "label_config", "settings"}
FOLDERS: dict[str, set[str]] = {
    "ground": set(),
    "formats": {"ground"},
    "records": {"ground"},
    "workers": {"ground", "records"},
    "learning": {"ground", "sampling", "formats", "workers"},
    "label_studio": {"ground", "formats", "workers"},
    "loop": {"ground", "sampling", "formats", "records", "workers", "learning", "label_studio"},
    "correction": {"ground", "formats", "records", "workers", "learning", "label_studio", "loop"},
    "intake": {"ground", "formats", "records", "workers", "label_studio"},
    "mask_import": {"ground", "formats", "label_studio", "intake"},
    "export": {"ground", "formats", "records", "label_studio", "loop", "intake"},
    "simulate": {"ground", "sampling", "formats", "learning"},
    "web": {"ground", "sampling", "formats", "records", "workers", "learning", "label_studio", "loop"},
}
TOP = {"app", "cli", "commands", "doctor", "demo", "loading", "logs", "plugin"}  # may import everything

# For each heavy dependency, the folders or modules that may import it.
ALLOWED_IMPORTERS: dict[str, set[str]] = {
    "label_studio_sdk": {"label_studio", "demo"},
    "label_studio_ml": {"plugin"},
    "flask": {"plugin"},
    "torch": {"learning"},
    "torchvision": {"learning"},
    "transformers": {"learning.sam"},
    "timm": {"learning"},
    "open_clip": {"learning"},
    "segmentation_models_pytorch": {"learning"},
    "sqlalchemy": {"records"},
    "distributed": {"workers.cluster", "loop.remote"},
    "alembic": {"records.migrate", "records.migrations"},
    "huey": {"workers.worker"},
    "pydicom": {"formats"},
    "gdcm": {"formats.gdcm_pixels"},
    "nibabel": {"formats"},
    "SimpleITK": {"formats.itk"},
    "tifffile": {"formats.tiff"},
    "pi_heif": {"formats.picture"},
    "highdicom": {"formats.segmentation"},
    "contourpy": {"formats.structure_sets"},
    "redis": {"records.locks", "workers.worker"},
    "filelock": {"records", "demo"},
    "fastapi": {"web"},
    "starlette": {"web"},
    "uvicorn": {"app"},
    "prometheus_client": {"web.metrics"},
    "pythonjsonlogger": {"logs"},
    "matplotlib": {"web.plots", "simulate.figures", "demo"},
    "jinja2": {"web.rendering"},
    "typer": {"cli", "commands"},
    "pycocotools": {"export.pictures", "mask_import.coco"},
    "httpx": {"label_studio", "learning", "doctor", "demo"},  # learning queries the model hub, doctor our own server
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
            module = node.module or ""
            inner = {a.name for a in node.names if is_module(f"{module}.{a.name}")}
            found |= {f"{module}.{name}" for name in inner}
            if inner != {a.name for a in node.names}:
                found.add(module)
    return found - {"backend"}  # for its version


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def dotted(path: Path) -> str:
    """`loop.driver` of backend/loop/driver.py, `loop` of backend/loop/__init__.py."""
    parts = path.relative_to(ROOT / "backend").with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def folder_of(module: str) -> str:
    first = module.split(".")[0]
    return "ground" if first in GROUND else first


def ours(names: set[str]) -> set[str]:
    """Modules of `backend`, without the prefix, among imported names."""
    return {name.removeprefix("backend.") for name in names if name.startswith("backend.")}


MODULES = {dotted(p): imports(p) for p in sorted((ROOT / "backend").rglob("*.py")) if dotted(p)}
SAMPLING = {p.stem: imports(p) for p in sorted((ROOT / "sampling").glob("*.py"))}


def test_every_module_lives_in_a_folder_of_the_table() -> None:
    assert {folder_of(m) for m in MODULES} - TOP <= set(FOLDERS)


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_no_folder_imports_one_above_it(folder: str) -> None:
    inside = {m: names for m, names in MODULES.items() if folder_of(m) == folder}
    found = {
        (module, name)
        for module, names in inside.items()
        for name in ours(names) | {n for n in names if n.split(".")[0] == "sampling"}
        if folder_of(name) not in FOLDERS[folder] | {folder}
    }
    assert not found


def test_the_folders_have_no_import_cycle() -> None:
    graphlib.TopologicalSorter(FOLDERS).prepare()  # raises CycleError


def test_the_modules_have_no_import_cycle() -> None:
    graphlib.TopologicalSorter({m: ours(names) for m, names in MODULES.items()}).prepare()


@pytest.mark.parametrize("package", sorted(ALLOWED_IMPORTERS))
def test_a_heavy_dependency_is_imported_only_where_allowed(package: str) -> None:
    users = {m for m, names in MODULES.items() if package in {n.split(".")[0] for n in names}}
    outside = {m for m in users if not any(m == w or m.startswith(f"{w}.") for w in ALLOWED_IMPORTERS[package])}
    assert not outside


@pytest.mark.parametrize("module", sorted(SAMPLING))
def test_sampling_handles_arrays_only(module: str) -> None:
    packages = {name.split(".")[0] for name in SAMPLING[module]}
    assert packages - sys.stdlib_module_names <= SAMPLING_MAY


def test_the_plugin_needs_only_what_label_studio_ml_installs() -> None:
    for module in ("plugin", "settings", "errors"):
        packages = {name.split(".")[0] for name in MODULES[module]}
        assert packages - sys.stdlib_module_names <= {"flask", "label_studio_ml", "backend"}


def test_only_the_label_studio_folder_has_label_studio_endpoints() -> None:
    for path in sorted((ROOT / "backend").rglob("*.py")):
        if folder_of(dotted(path)) in {"label_studio", "demo"} or dotted(path) == "web.schemas":  # our own endpoints
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not [t for t in texts if t.startswith(("/api/tasks", "/api/projects/", "/api/webhooks", "/api/ml"))]


@pytest.mark.parametrize("path", sorted((ROOT / "backend").rglob("*.py")), ids=dotted)
def test_modules_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 420
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    migration = "migrations" in path.parts  # one table after another, never changed later
    long = {n.name for n in functions if n.end_lineno and n.end_lineno - n.lineno >= 65 and not migration}
    assert not long


def test_the_server_starts_without_torch_and_without_what_the_image_leaves_out() -> None:
    left_out = re.search(r"printf '%s\\n' (.*?) > excludes.txt", (ROOT / "Dockerfile").read_text(), re.S)
    assert left_out is not None
    names = {"torch", *(name.replace("-", "_") for name in re.findall(r"[a-z-]+", left_out[1]) if name != "ujson")}
    modules = ("app", "doctor", "loop.predictor", "web.api", "web.overview", "web.pictures")
    server = (
        f"import sys, {', '.join(f'backend.{m}' for m in modules)}\n"
        "from backend.learning.learner import Learner\nfrom backend.settings import Settings\n"
        "from backend.label_studio.client import Client\nClient('http://127.0.0.1:9', 'legacy')._client()\n"
        f"Learner(Settings(), at_once=False)\nprint({names} & sys.modules.keys() or 'none')"
    )
    found = subprocess.run([sys.executable, "-c", server], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "none\n"


def test_processes_that_read_scans_start_without_heavy_dependencies() -> None:
    heavy = ("torch", "label_studio_sdk", "sklearn", "highdicom", "typer", "fastapi", "sqlalchemy")
    program = f"import sys, backend.intake.slicing; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr
