"""The report of a simulation: one self-contained page with correct statements and verbatim names."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from backend.errors import BadResults, StorageFull
from backend.simulate.figures import arm_styles, plain
from backend.simulate.method import method
from backend.simulate.report import write_report
from backend.simulate.results import ALL_LABELS, RANDOM, Arm, Row

QUICK = 200  # resamples
PNG = b"\x89PNG\r\n\x1a\n"
ABOUT = {
    "title": "Lungs",
    "images": "scans/images",
    "masks": "scans/masks",
    "command": "scanqueue simulate scans/images scans/masks",
    "version": "0.1.0",
    "date": "2026-11-24",
    "groups": "file name up to the first underscore",
    "Epochs": "30",
}


def run(
    gains: dict[str, float],
    *,
    seeds: int = 5,
    budgets: tuple[int, ...] = (10, 20, 40),
    data: str = "",
    unit: str = "px",
    whole: bool = True,
) -> list[Row]:
    """Random choice, and strategies that are better by about their gain, which varies by seed."""
    rows = []
    for seed in range(seeds):
        for strategy, gain in {RANDOM: 0.0, **gains}.items():
            for budget in budgets:
                dice = 0.6 + budget / 200 + gain * (1 + seed / 10)
                rows.append(Row(strategy, "e", seed, budget, budget, dice, 9.0, 4.0, unit, 30, data))
        if whole:
            rows.append(Row(ALL_LABELS, "", seed, 100, 100, 0.9, 5.0, 2.0, unit, 30, data))
    return rows


def page_of(rows: list[Row], folder: Path, about: dict[str, str] | None = None) -> str:
    path = write_report(rows, folder, about=ABOUT if about is None else about, resamples=QUICK)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def words(page: str) -> str:
    """The visible text, as one line."""
    root = ElementTree.fromstring(page)
    body = root.find("body")
    assert body is not None
    return " ".join(" ".join(body.itertext()).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("report") / "new"
    return folder, page_of(run({"default": 0.02, "paper+entropy": -0.01}), folder)


def test_the_folder_holds_the_page_and_its_figures_and_nothing_else(written: tuple[Path, str]) -> None:
    folder, _ = written
    found = {path.name for path in folder.iterdir()}
    assert found == {"report.html", "learning-curve.png", "differences.png", "labels-needed.png"}
    assert all(path.read_bytes().startswith(PNG) for path in folder.glob("*.png"))


def test_the_page_is_self_contained(written: tuple[Path, str]) -> None:
    _, page = written
    assert "<script" not in page
    assert not re.search(r"https?://|//[a-z]|@import|url\(", re.sub(r'src="data:[^"]*"', "", page))
    sources = re.findall(r'(?:src|href)="([^"]{0,22})', page)
    assert sources == ["data:image/png;base64,"] * 3
    assert "default-src 'none'" in page


def test_the_figures_on_the_page_match_the_files_and_have_text_alternatives(written: tuple[Path, str]) -> None:
    folder, page = written
    root = ElementTree.fromstring(page)
    images = list(root.iter("img"))
    shown = {base64.b64decode(image.attrib["src"].split(",")[1]) for image in images}
    assert shown == {path.read_bytes() for path in folder.glob("*.png")}
    assert "at 40 labels default 0.824, random 0.800, paper+entropy 0.788" in images[0].attrib["alt"]
    assert "default +0.024; paper+entropy \N{MINUS SIGN}0.012" in images[1].attrib["alt"]
    assert all(image.attrib["alt"] for image in images)


def test_the_page_is_well_formed_with_headings_captions_and_row_headings(written: tuple[Path, str]) -> None:
    _, page = written
    root = ElementTree.fromstring(page)
    assert root.attrib["lang"] == "en"
    assert [h.text for h in root.iter("h1")] == ["Lungs"]
    assert [h.text for h in root.iter("h2")] == [
        "Summary",
        "Learning curves",
        "Strategies compared with random choice",
        "Labels needed",
        "Outline errors (Hausdorff distance)",
        "All values",
        "Method and limits",
    ]
    for table in root.iter("table"):
        assert "".join(table[0].itertext()).strip()
        assert table[0].tag == "caption"
        width = len(table[1][0])
        for line in table[2]:
            assert line[0].attrib == {"scope": "row"}
            assert len(line) == width


def test_the_answer_comes_first_and_is_not_exaggerated(written: tuple[Path, str]) -> None:
    _, page = written
    text = words(page)
    title = "Lungs Comparison of strategies for choosing which scans to label first. 2026-11-24, 0.1.0"
    assert text.startswith(f"{title} Summary")
    assert (
        "2 strategies were compared with random choice: each chose 10, 20 or 40 scans, a model was trained on their "
        "labels and evaluated on 30 unseen test scans. The comparison was run 5 times, each with a different split of "
        "the scans."
    ) in text
    assert "default (scanqueue's default): better than random: +0.024 Dice on average (95 % interval +0.02" in text
    assert "a signed-rank test cannot confirm it: the smallest possible p with 5 pairs is 0.0625" in text
    assert "Of all 2 strategies: 1 better than random and 1 worse." in text
    assert "no difference" not in text.split("Learning curves")[0]


def test_labels_needed_are_in_the_text_and_the_table(tmp_path: Path) -> None:
    # 95 % of 0.9 is 0.855; random ends at 0.8
    text = words(page_of(run({"default": 0.1}, seeds=1), tmp_path))
    # default: 0.75, 0.8, 0.9 at 10, 20, 40: 0.855 after 20 + 20 * 0.055 / 0.1 = 31
    assert "default needed 31 labels and random did not reach it with its largest budget in its only repeat." in text
    assert "default 22 (1 of 1) 31 (1 of 1) 36 (1 of 1) only this strategy (1 pair)" in text
    assert "random not reached (0 of 1) not reached (0 of 1) not reached (0 of 1) reference reference reference" in text


def test_without_a_model_of_all_labels_no_saved_labels_are_reported(tmp_path: Path) -> None:
    (tmp_path / "labels-needed.png").write_bytes(b"of an earlier report")
    text = words(page_of(run({"default": 0.02}, whole=False), tmp_path))
    assert "The number of labels saved is unknown" in text
    assert not (tmp_path / "labels-needed.png").exists()


def test_distances_have_their_unit(tmp_path: Path) -> None:
    text = words(page_of(run({"default": 0.02}, unit="mm"), tmp_path))
    assert "Strategy HD95 (mm) HD95 against random (mm) HD (mm) Repeats" in text
    assert "in millimetres (mm)" in text
    assert "px" not in text


def test_names_are_shown_verbatim_and_never_executed(tmp_path: Path) -> None:
    nasty = "<script>alert('&amp;')</script>\x00\udcff"
    about = {**ABOUT, "title": nasty, "command": f"simulate {nasty}", "groups": nasty, nasty: nasty}
    page = page_of(run({f"{nasty} $x_{{$": 0.02}, data=nasty, seeds=2), tmp_path, about)
    assert "<script" not in page
    assert "\x00" not in page
    root = ElementTree.fromstring(page)
    assert [h.text for h in root.iter("h1")] == ["<script>alert('&amp;')</script>\ufffd\ufffd"]


def test_the_report_of_an_interrupted_run_lists_what_is_missing(tmp_path: Path) -> None:
    rows = [
        row for row in run({"default": 0.02}) if not (row.seed == 4 and row.strategy == "default" and row.budget > 10)
    ]
    text = words(page_of(rows, tmp_path))
    assert "This run is incomplete" in text
    assert "default lacks seed 4 (budget 20, 40)." in text
    assert "1 interrupted pair lacks some budgets and was left out." in text
    assert "too few repeats to judge" in text


def test_a_run_that_has_just_started_has_a_report_too(tmp_path: Path) -> None:
    rows = [row for row in run({"default": 0.02}, seeds=1, whole=False) if row.strategy == "default"][:1]
    text = words(page_of(rows, tmp_path, {}))
    assert "Nothing can be compared yet" in text
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "learning-curve.png"}


@pytest.mark.parametrize(("strategies", "seeds"), [(1, 1), (11, 3)])
def test_any_number_of_strategies_and_seeds_works(tmp_path: Path, strategies: int, seeds: int) -> None:
    gains = {f"strategy {k}": k / 1000 for k in range(strategies)}
    text = words(page_of(run(gains, seeds=seeds, budgets=(10,)), tmp_path))
    assert f"{strategies} strateg" in text
    assert f"strategy {strategies - 1} (best on average)" in text


def test_several_data_sets_have_their_own_tables(tmp_path: Path) -> None:
    rows = run({"default": 0.02}, data="chest") + run({"default": 0.04}, data="bowel", budgets=(5, 10), unit="mm")
    text = words(page_of(rows, tmp_path))
    assert "compared with random choice on 2 data sets" in text
    assert "+0.036 Dice on average" in text  # the mean of 0.024 and 0.048
    assert "Chest: distances" in text
    assert "Bowel: distances" in text
    assert "HD95 against random" not in text  # px and mm have no mean
    assert "Several data sets. Every data set has the same weight" in text


def test_the_same_rows_give_the_same_report(tmp_path: Path) -> None:
    rows = run({"default": 0.02}, seeds=3)
    assert page_of(rows, tmp_path / "a") == page_of(rows, tmp_path / "b")


def test_settings_and_the_command_are_shown(written: tuple[Path, str]) -> None:
    text = words(written[1])
    assert "Images scans/images Masks scans/masks Epochs 30 Seeds 0, 1, 2, 3, 4" in text
    assert text.endswith("Command scanqueue simulate scans/images scans/masks")


def test_the_split_is_explained_with_and_without_patients() -> None:
    rows = run({"default": 0.02})
    assert "same part of the split (by folder)" in dict(method(rows, "by folder"))["Patients"]
    assert "Scans were split individually." in dict(method(rows, ""))["Patients"]


def test_missing_rows_and_an_unwritable_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(BadResults, match="no strategy has a trained model"):
        write_report([], tmp_path, about={})
    (tmp_path / "report.html").mkdir()
    with pytest.raises(StorageFull, match=r"report\.html cannot be written"):
        write_report(run({"default": 0.1}, seeds=1), tmp_path, about={}, resamples=QUICK)
    assert not list(tmp_path.glob(".*"))


def test_twelve_arms_are_distinguishable_without_colour() -> None:
    styles = arm_styles([Arm(f"s{k}", "") for k in range(12)] + [Arm(RANDOM, "")])
    assert len({style["marker"] for style in styles.values()}) == 13
    assert len({(style["color"], str(style["linestyle"])) for style in styles.values()}) == 13


def test_long_names_are_shortened_in_the_middle_and_dollars_are_not_mathtext() -> None:
    assert plain("a very long name of an embedder, the small one", 20) == "a very long…mall one"
    assert plain("a$b\nc", 20) == r"a\$b c"


def test_misses_and_false_alarms_of_each_strategy_stand_in_a_section_of_their_own(tmp_path: Path) -> None:
    rates = {"miss_rate": 0.25, "false_alarm_area": 0.01}
    rows = [replace(r, n_empty=12, false_alarm_rate=r.seed / 4, **rates) for r in run({"default": 0.02})]
    found = words(page_of(rows, tmp_path))
    assert "on 18 test scans with foreground and 12 without" in found
    assert "default 0.250 (5) 0.250 to 0.250 0.500 (5)" in found
    assert "0.010 (5)" in found
    assert "of a label are means over the test scans with it" in found
    assert "Label Dice" not in found


def test_several_labels_are_told_one_by_one(tmp_path: Path) -> None:
    each = {
        "Lung": {"dice": 0.9, "sensitivity": 1.0, "false_alarm_rate": None, "false_alarm_area": None},
        "Lesion": {"dice": 0.3, "sensitivity": 0.25, "false_alarm_rate": 0.5, "false_alarm_area": 0.02},
    }
    rows = [replace(r, miss_rate=0.375, per_label=json.dumps(each)) for r in run({"default": 0.02})]
    found = words(page_of(rows, tmp_path))
    assert "default Lung 0.900 (5) 0.900 to 0.900 0.000 (5)" in found
    assert "default Lesion 0.300 (5) 0.300 to 0.300 0.750 (5) 0.750 to 0.750 0.500 (5)" in found


@pytest.mark.parametrize("miss_rate", [None, 0.0])  # results of an older version; scans that all have foreground
def test_without_misses_and_empty_scans_there_is_no_such_section(tmp_path: Path, miss_rate: float | None) -> None:
    rows = [replace(r, miss_rate=miss_rate) for r in run({"default": 0.02})]
    assert "Missed findings" not in words(page_of(rows, tmp_path))
