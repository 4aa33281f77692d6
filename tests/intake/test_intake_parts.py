"""The parts of the import that need no Label Studio: walking, worker processes, burnt-in text, options."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_scans import pixels
from typer.testing import CliRunner

from backend.cli import app
from backend.demo.phantoms import phantom
from backend.errors import BadSetting
from backend.formats import Window
from backend.intake.burnt_in import has_text, text_lines
from backend.intake.files import walk
from backend.intake.plan import MODALITIES, ImportOptions
from backend.intake.slicing import write_png
from backend.workers.process_pool import Crashed, Workers

# -- walking ----------------------------------------------------------------------------------


def test_every_file_is_found_once_in_name_order(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a/x", "a/.hidden", ".git/y", "ours/z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b" / "1")
    (tmp_path / "a" / "dead").symlink_to(tmp_path / "nothing")
    found = list(walk([tmp_path / "b" / "2", tmp_path, tmp_path / "b"], spare=[tmp_path / "ours", tmp_path / "none"]))
    assert found == [tmp_path / "b" / "2", tmp_path / "a" / "link", tmp_path / "a" / "x"]


def test_a_path_that_does_not_exist_is_reported_first(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="does not exist"):
        next(walk([tmp_path, tmp_path / "nothing"]))


# -- worker processes -------------------------------------------------------------------------


def test_results_are_in_item_order_and_few_items_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> object:
        for number in range(30):
            taken.append(number)
            yield number

    with Workers(2) as workers:
        for given, (item, result) in enumerate(workers.each(abs, items(), lambda n: -n, ahead=5)):  # type: ignore[arg-type]
            assert (item, result) == (given, given)
            assert len(taken) <= given + 5
    assert len(taken) == 30


def test_a_crashed_process_does_not_affect_the_work_of_others() -> None:
    programs = [f"{n} * 2" for n in range(12)]
    programs[3] = "__import__('os')._exit(9)"
    programs[7] = "__import__('os').kill(__import__('os').getpid(), 11)"
    with Workers(2) as workers:
        found = [result for _, result in workers.each(eval, programs, str, ahead=6)]
    assert [isinstance(result, Crashed) for result in found] == [n in (3, 7) for n in range(12)]
    assert [result for n, result in enumerate(found) if n not in (3, 7)] == [
        n * 2 for n in range(12) if n not in (3, 7)
    ]


def test_no_work_starts_after_stop() -> None:
    with Workers(2) as workers:
        seen = []
        for item, _ in workers.each(abs, range(1000), int, ahead=4):
            seen.append(item)
            if item == 10:
                workers.stop()
    assert seen == list(range(11))


def test_worker_processes_are_silent_ignore_ctrl_c_and_do_not_import_the_main_program() -> None:
    programs = [
        "__import__('os').readlink('/proc/self/fd/2')",
        "__import__('signal').getsignal(2)",
        "'torch' in __import__('sys').modules or 'pytest' in __import__('sys').modules",
    ]
    with Workers(1) as workers:
        found = [result for _, result in workers.each(eval, programs, str, ahead=1)]
    assert found == [os.devnull, signal.SIG_IGN, False]


# -- pictures ---------------------------------------------------------------------------------


def test_a_png_is_complete_and_has_no_text_chunks(tmp_path: Path) -> None:
    color = np.dstack([pixels(n, 20, 30) // 4 for n in range(3)]).astype(np.uint8)
    write_png(tmp_path / "a.png", color)
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_COLOR_RGB), color)
    data = (tmp_path / "a.png").read_bytes()
    chunks, at = [], 8
    while at < len(data):
        chunks.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


TEXTS = ("DOE^JOHN 12.03.1961", "Hospital St. Maria", "ID 0048312", "2024-05-06 14:33")


def _written(picture: np.ndarray, text: str, height: int, corner: int, rng: random.Random) -> np.ndarray | None:
    """`text` of the given height in pixels in a corner; None if it does not fit."""
    drawn = picture.copy()
    scale = height / 21
    (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1 + height // 24)
    if wide > picture.shape[1] - 24:
        return None
    x = 12 if corner % 2 else picture.shape[1] - wide - 12
    y = 12 + high if corner < 2 else picture.shape[0] - 12
    line = rng.choice((cv2.LINE_AA, cv2.LINE_8))
    cv2.putText(drawn, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1 + height // 24, line)
    return drawn


@pytest.fixture(scope="module")
def radiographs() -> list[np.ndarray]:
    """Radiographs without text; drawn small, because drawing is slow."""
    return [np.asarray(cv2.resize(phantom(seed, (192, 192))[0], (512, 512))) for seed in range(6)]


@pytest.mark.parametrize("height", [10, 14, 20, 28])
def test_most_text_along_the_border_is_detected(height: int, radiographs: list[np.ndarray]) -> None:
    rng = random.Random(height)
    on_dark, on_bright = [], []  # on a background as bright as the text
    for picture in radiographs:
        for corner in range(4):
            ground = (picture[:60] if corner < 2 else picture[-60:])[:, slice(250) if corner % 2 else slice(-250, None)]
            drawn = [_written(picture, text, height, corner, rng) for text in TEXTS]
            kind = on_dark if np.percentile(ground, 95) < 220 else on_bright
            kind.extend(has_text(made) for made in drawn if made is not None)
    assert len(on_dark) >= 40
    assert len(on_bright) >= 20
    assert np.mean(on_dark) >= 0.7
    assert np.mean(on_bright) >= 0.3


def test_pictures_without_text_cause_hardly_any_false_alarms(radiographs: list[np.ndarray]) -> None:
    sizes = [(512, 512), (300, 400), (1024, 800), (128, 128), (2000, 2000)]
    assert not any(has_text(cv2.resize(picture, size)) for picture in radiographs for size in sizes)
    assert not has_text(np.zeros((300, 300), np.uint8))
    assert not has_text(np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8))


def test_the_position_of_the_text_is_found(tmp_path: Path) -> None:
    picture = np.full((2048, 1500), 30, np.uint8)  # reduced before detection
    cv2.putText(picture, "ROE JANE 1931", (60, 1990), cv2.FONT_HERSHEY_SIMPLEX, 2.0, 255, 4, cv2.LINE_AA)
    (line,) = text_lines(picture)
    assert 40 <= line.left <= 80
    assert 1930 <= line.top <= 1960
    assert 1970 <= line.bottom <= 2000
    assert line.glyphs >= 8


def test_real_scans_with_text_and_without(shared: Path) -> None:
    folder = shared / "data" / "montgomery_cxr" / "images"
    # "PA ERECT" is visibly burnt into this one; the other has no text
    assert has_text(_gray(folder / "MCUCXR_0001_0.png"))
    found = [has_text(_gray(path)) for path in sorted((shared / "data" / "busi_ultrasound" / "images").glob("n*.png"))]
    assert sum(found) <= 0.3 * len(found)


def _gray(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    return picture


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"axis": "diagonal"}, "--axis"),
        ({"every": 2, "best": 3}, "use only one of them"),
        ({"group_by": "moon"}, "--group-by"),
        ({"window": "40,0"}, "--window"),
        ({"window": "nan,400"}, "--window"),
    ],
)
def test_invalid_options_are_refused_with_their_name(given: dict[str, object], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        ImportOptions(**given)  # type: ignore[arg-type]


def test_a_window_is_two_numbers_a_name_or_nothing() -> None:
    assert ImportOptions(window="40,400").shown == Window(40, 400)
    assert ImportOptions(window="-600, 1500.5").shown == Window(-600, 1500.5)
    assert ImportOptions(window="LUNG").shown == "LUNG"
    assert ImportOptions(window="percentile").shown == "percentile"
    assert ImportOptions().shown is None


def test_modalities_are_those_of_the_standard() -> None:
    assert {"CT", "MR", "US", "CR", "DX", "MG", "PT", "XA", "OT", "SEG", "M3D"} <= MODALITIES
    assert all(len(code) <= 16 and code == code.upper() for code in MODALITIES)


def test_the_command_reports_errors_before_any_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANQUEUE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SCANQUEUE_LABEL_STUDIO_URL", "http://127.0.0.1:9")
    done = CliRunner().invoke(app, ["import", "--project", "1", str(tmp_path / "none")])
    assert isinstance(done.exception, BadSetting)
    assert "does not exist" in str(done.exception)
    assert sys.modules["__main__"].__name__ == "__main__"
