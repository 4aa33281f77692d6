"""`scanqueue simulate --screen`: strategies compared in minutes, without trainings."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SIDE = 96


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 scans with a bright disc in noise, and 6 with a dark square on stripes: the second kind is rare."""
    where = tmp_path_factory.mktemp("mixture")
    random = np.random.default_rng(0)
    (where / "images").mkdir()
    (where / "masks").mkdir()
    down, across = np.mgrid[:SIDE, :SIDE]
    for i in range(42):
        y, x = random.integers(28, SIDE - 28, 2)
        if i < 36:
            mask = (down - y) ** 2 + (across - x) ** 2 <= 18**2
            image = np.where(mask, 210, 60) + random.normal(0, 10, mask.shape)
        else:
            mask = (abs(down - y) <= 16) & (abs(across - x) <= 16)
            image = np.where(mask, 15, 140 + 60 * (down // 6 % 2)) + random.normal(0, 10, mask.shape)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(where / "images" / f"scan-{i:02}.png")
        Image.fromarray(mask.astype(np.uint8) * (1 if i < 36 else 2)).save(where / "masks" / f"scan-{i:02}.png")
    return where


def screen(folder: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    given = ["--strategies", "facility+facility,random", "--budgets", "3,6", "--seeds", "4", "--jobs", "2"]
    place = [str(folder / "images"), str(folder / "masks"), "--out", str(out), "--screen"]
    command = [sys.executable, "-m", "backend.cli", "simulate", *place, *given, *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def screened(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("screened")
    done = screen(mixture, out)
    assert done.returncode == 0, done.stderr
    return out


def test_an_order_that_reaches_the_rare_kind_early_beats_random_choice(screened: Path) -> None:
    rows = table(screened / "results.csv")
    dice = {(r["strategy"], r["seed"]): float(r["dice"]) for r in rows if r["budget"] == "3"}
    gains = [dice["facility+facility", seed] - dice["random", seed] for seed in "0123"]
    assert min(gains) > 0
    rare = {f"scan-{i:02}" for i in range(36, 42)}
    picks = [p for p in table(screened / "picks.csv") if p["budget"] == "3"]
    assert all(rare & {p["name"] for p in picks if p["seed"] == seed} for seed in "0123")


def test_the_report_says_that_nothing_was_trained_and_shows_no_distances(screened: Path) -> None:
    page = (screened / "report.html").read_text()
    assert "no network was trained" in page
    assert "Nothing was trained" in page
    assert "Hausdorff" not in page
    assert "the initial weights" not in page
    assert "training steps" not in page.lower()
    assert (screened / "learning-curve.png").is_file()


def test_the_same_command_gives_the_same_table_and_reuses_the_features(
    mixture: Path, screened: Path, tmp_path: Path
) -> None:
    before = (screened / "results.csv").read_bytes()
    features = {p: p.stat().st_mtime_ns for p in (screened / "cells").rglob("*.npy")}
    assert features
    assert screen(mixture, screened, "--jobs", "1").returncode == 0
    assert (screened / "results.csv").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in (screened / "cells").rglob("*.npy")} == features


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--encoder", "resnet18"], "--encoder has no effect with --screen"),
        (["--strategies", "facility+pairwise-dice", "--budgets", "3,22"], "needs trained models"),
    ],
)
def test_options_that_mean_nothing_to_a_screen_are_refused(
    mixture: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    done = screen(mixture, tmp_path, *more)
    assert done.returncode != 0
    assert words in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


def test_a_comparison_with_trainings_does_not_continue_a_screen(mixture: Path, screened: Path) -> None:
    place = [str(mixture / "images"), str(mixture / "masks"), "--out", str(screened)]
    given = ["--strategies", "facility+facility,random", "--budgets", "3,6", "--seeds", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "backend.cli", "simulate", *place, *given],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "contains another comparison (screen" in " ".join((done.stdout + done.stderr).split())
