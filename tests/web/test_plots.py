"""The figures for papers: texts, intervals, sizes, and the message where there is no data."""

from __future__ import annotations

import hashlib
import io
import re
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from backend import cli
from backend.errors import BadSetting
from backend.records.maps import map_name
from backend.records.store import Store
from backend.web import plots
from backend.web.plots import both, curve_plot, map_plot
from backend.web.plots.curve import curve_panels, draw_curve, panel_names
from backend.web.plots.map import COLOURINGS
from backend.web.plots.style import PALETTE

SVG = "{http://www.w3.org/2000/svg}"
OPEN, LABELLED, PROBLEM, SKIPPED = range(4)


def atlas(count: int = 60, clusters: int = 3) -> dict[str, Any]:
    """Separate groups; the first of every ten scans is labelled, and one in thirty has each other state."""
    generator = np.random.default_rng(0)
    cluster = np.arange(count) % clusters
    state = np.where(np.arange(count) % 10 == 0, LABELLED, OPEN)
    state[1::30], state[2::30] = PROBLEM, SKIPPED
    values = generator.random(count).round(4).tolist()
    unsure = [None if s == LABELLED else v for v, s in zip(values, state, strict=True)]
    return {
        "task": list(range(1, count + 1)),
        "x": (20.0 * cluster + generator.normal(0, 2, count)).round(3).tolist(),
        "y": generator.normal(0, 5, count).round(3).tolist(),
        "cluster": cluster.tolist(),
        "state": state.tolist(),
        "round": [1 if s == LABELLED else -1 for s in state],
        **dict.fromkeys(("entropy", "score", "distance"), unsure),
        "rank": [0 if s == LABELLED else i + 1 for i, s in enumerate(state)],
        "served": [1 if 3 <= i < 7 else 0 for i in range(count)],
        "kind": [-1] * count,
        "kinds": [],
        "wish": [0] * count,
        "clusters": clusters,
        "alpha": 0.5,
        "why": {},
    }


def quality(dice: float, hd95: float | None, n: int = 8, *, sure: bool = True) -> dict[str, Any]:
    far = (hd95 * 0.8, hd95 * 1.2) if sure and hd95 is not None else (None, None)
    low, high = (dice - 0.05, dice + 0.04) if sure else (None, None)
    found = {"dice": dice, "dice_low": low, "dice_high": high, "hd95": hd95, "n": n}
    return found | {"hd95_low": far[0], "hd95_high": far[1]}


def model(n: int, *, accepted: bool = True, sure: bool = True) -> dict[str, Any]:
    dice = 0.6 + 0.05 * n
    each = {"dice": dice, "low": dice - 0.1 if sure else None, "high": dice + 0.02 if sure else None, "n": 8}
    head = {"version": f"scanqueue-r{n}", "labels": 20 * n, "accepted": accepted}
    return head | quality(dice, 20.0 / n, sure=sure) | {"classes": {"Lung": each, "Heart": each}}


def curve(**changes: Any) -> dict[str, Any]:
    """Five models, the fourth rejected and the first evaluated on one scan only; three rounds of shown masks."""
    shown = [{"round": n, "model_version": f"scanqueue-r{n}", "labels": 20 * n} for n in (1, 2, 3)]
    return {
        "unit": "px",
        "labels": ["Lung", "Heart"],
        "models": [model(1, sure=False), model(2), model(3), model(4, accepted=False), model(5)],
        "shown": [row | quality(0.7, 9.0) for row in shown],
        "control": [
            {
                "version": "scanqueue-r5",
                "labels": 40,
                "ours": {"dice": 0.8, "hd95": 9.0, "hd": 20.0, "unit": "px", "n": 8},
                "control": {"dice": 0.76, "hd95": 11.0, "hd": 25.0, "unit": "px", "n": 8},
            }
        ],
        "lead_time": {
            "with": {"median": 21.0, "low": 18.0, "high": 25.0, "n": 90},
            "without": {"median": 55.0, "low": 45.0, "high": 70.0, "n": 20},
        },
        "stopping": None,
    } | changes


def nothing() -> dict[str, Any]:
    time = {"median": None, "low": None, "high": None, "n": 0}
    empty: dict[str, Any] = {"unit": None, "labels": [], "models": [], "control": [], "stopping": None}
    empty |= {"shown": [], "quick": []}
    return empty | {"lead_time": {"with": time, "without": time}}


def parsed(data: bytes) -> ElementTree.Element:
    return ElementTree.fromstring(data.decode())


def texts(data: bytes) -> list[str]:
    return ["".join(node.itertext()).strip() for node in parsed(data).iter(f"{SVG}text")]


def marks(data: bytes, gid: str) -> int:
    """The number of strokes or markers in the group of this name."""
    (group,) = [node for node in parsed(data).iter(f"{SVG}g") if node.get("id") == gid]
    inside = {id(node) for defs in group.iter(f"{SVG}defs") for node in defs.iter()}
    return sum(1 for node in group.iter() if node.tag in (f"{SVG}path", f"{SVG}use") and id(node) not in inside)


def groups(data: bytes) -> set[str]:
    return {str(node.get("id")) for node in parsed(data).iter(f"{SVG}g")}


def pixels(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) RGB."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


# -- the map -------------------------------------------------------------------------------------


def test_a_map_names_its_axes_and_its_states_with_their_numbers_of_scans() -> None:
    found = texts(map_plot(atlas()))
    assert "t-SNE, first axis (no unit)" in found
    assert "t-SNE, second axis (no unit)" in found
    for text in ("open (50)", "labelled (6)", "cannot be read (2)", "skipped (2)", "in the queue now (4)"):
        assert text in found


def test_every_scan_is_one_point_with_the_marker_of_its_state() -> None:
    drawn = map_plot(atlas())
    assert marks(drawn, "scans-open") == 50
    assert marks(drawn, "scans-labelled") == 6
    assert marks(drawn, "scans-cannot-be-read") == 2
    assert marks(drawn, "scans-skipped") == 2
    assert marks(drawn, "scans-served") == 4
    shapes = set()
    for name in ("open", "labelled", "cannot-be-read", "skipped"):
        (group,) = [g for g in parsed(drawn).iter(f"{SVG}g") if g.get("id") == f"scans-{name}"]
        shapes.add(next(re.sub(r"[-\d. \n]+", "", str(p.get("d"))) for p in group.iter(f"{SVG}path")))
    assert len(shapes) == 4


def test_groups_are_numbered_from_one_to_be_distinguishable_without_colour() -> None:
    assert {"1", "2", "3"} <= set(texts(map_plot(atlas())))
    assert "4" not in texts(map_plot(atlas()))
    assert not {"1", "2", "3"} & set(texts(map_plot(atlas(), colour="state")))


def test_groups_have_the_colours_of_the_palette() -> None:
    drawn = map_plot(atlas()).decode().lower()
    assert all(colour.lower() in drawn for colour in PALETTE[:3])


@pytest.mark.parametrize("colour", sorted(set(COLOURINGS) - {"cluster", "state"}))
def test_a_map_of_values_has_a_scale_with_its_name(colour: str) -> None:
    found = texts(map_plot(atlas(), colour=colour))
    assert COLOURINGS[colour] in found
    assert "grey: no value yet" in found


def test_high_values_are_dark() -> None:
    two = atlas(2, 1) | {"entropy": [0.0, 1.0], "state": [OPEN, OPEN], "served": [0, 0]}
    drawn = map_plot(two, colour="entropy").decode()
    (group,) = [g for g in parsed(drawn.encode()).iter(f"{SVG}g") if g.get("id") == "scans-open"]
    fills = re.findall(r"fill: (#[0-9a-f]{6})", ElementTree.tostring(group).decode())
    bright = [sum(bytes.fromhex(fill[1:])) for fill in fills]
    assert bright[0] > 2 * bright[1]


def test_a_scan_without_coordinates_is_left_out() -> None:
    some = atlas()
    some["x"][3] = None
    assert marks(map_plot(some), "scans-open") == 49


def test_a_hundred_thousand_scans_make_a_small_file() -> None:
    many = atlas(100_000, 30)
    drawn = map_plot(many)
    assert len(drawn) < 3_000_000
    assert f"open ({many['state'].count(OPEN):,})" in texts(drawn)
    assert next(parsed(drawn).iter(f"{SVG}image"), None) is not None  # the points are rasterized
    assert len(list(parsed(drawn).iter(f"{SVG}use"))) < 5_000


# -- the curve -----------------------------------------------------------------------------------


def test_a_curve_names_its_axes_with_their_units() -> None:
    found = texts(curve_plot(curve()))
    for text in ("labelled scans", "Dice (0 to 1)", "HD95 (px)", "Dice per label (0 to 1)", "Lung", "Heart"):
        assert text in found
    assert "time per scan (s): median, 95 % interval" in found
    assert "HD95 (mm)" in texts(curve_plot(curve(unit="mm")))


def test_there_is_one_bar_for_each_known_interval() -> None:
    drawn = curve_plot(curve())
    for name in ("dice", "hd95"):
        assert marks(drawn, f"intervals-{name}-models") == 3  # one of the four accepted models has none
        assert marks(drawn, f"intervals-{name}-models-not-taken") == 1
        assert marks(drawn, f"intervals-{name}-shown") == 3
    assert marks(drawn, "intervals-label-1") == marks(drawn, "intervals-label-2") == 3
    assert marks(drawn, "intervals-time-with") == marks(drawn, "intervals-time-without") == 1
    assert "95 % interval" in texts(drawn)


def test_the_caption_names_the_lettered_panels() -> None:
    named = "a, Dice; b, HD95 in pixels; c, Dice of each label; d, time per scan"
    assert panel_names(curve()) == named
    letters = [part.split(",")[0] for part in named.split("; ")]
    assert [text for text in texts(curve_plot(curve())) if text in letters] == letters
    assert panel_names(curve(models=[], shown=[], control=[])) == ""


def test_masks_of_the_quick_model_have_a_line_of_their_own() -> None:
    quick = [{"labels": at} | quality(dice, 12.0) for at, dice in ((3, 0.4), (8, 0.5), (15, 0.6))]
    drawn = curve_plot(curve(models=[], shown=[], control=[], quick=quick, lead_time={}))
    assert "mask of the quick model vs. submitted mask" in texts(drawn)
    for name in ("dice", "hd95"):
        assert marks(drawn, f"intervals-{name}-quick") == 3


def test_a_curve_without_intervals_does_not_mention_them() -> None:
    drawn = curve_plot(curve(models=[model(1, sure=False)], shown=[], lead_time={}))
    assert not [name for name in groups(drawn) if name.startswith("intervals-")]
    assert "95 % interval" not in texts(drawn)


def test_many_intervals_become_a_band() -> None:
    many = [model(1) | {"labels": n} for n in range(1, 61)]
    drawn = curve_plot(curve(models=many, shown=[], control=[], lead_time={}))
    assert marks(drawn, "intervals-dice-models") == 1


def test_the_legend_lists_only_what_is_drawn() -> None:
    every = {
        "model, on held-out scans",
        "model that was not accepted",
        "mask shown vs. submitted mask",
        "scans chosen by the strategy",
        "same number of random scans",
    }
    assert every <= set(texts(curve_plot(curve())))
    plain = curve(models=[model(1), model(2)], shown=[], control=[])
    assert every & set(texts(curve_plot(plain))) == {"model, on held-out scans"}


def test_distances_in_different_units_are_reported_and_not_drawn() -> None:
    models = [m | {"hd95": None, "hd95_low": None, "hd95_high": None} for m in curve()["models"]]
    drawn = curve_plot(curve(unit="mixed", models=models, shown=[], control=[]))
    said = " ".join(texts(drawn))
    assert "HD95 has no mean: some scans are measured in mm," in said
    assert "intervals-hd95-models" not in groups(drawn)


def test_pixels_and_millimetres_are_never_on_one_axis() -> None:
    """The pixel spacing became known after the first round: earlier distances stay in pixels."""
    units = ("px", "px", "mm", "mixed", "mm")
    models = [m | {"unit": unit} for m, unit in zip(curve()["models"], units, strict=True)]
    models[3] |= {"hd95": None, "hd95_low": None, "hd95_high": None}
    shown = [s | {"unit": unit} for s, unit in zip(curve()["shown"], ("px", "mm", "mm"), strict=True)]
    drawn = curve_plot(curve(unit="mixed", models=models, shown=shown))
    assert {"HD95 (mm)", "HD95 (px)"} <= set(texts(drawn))
    assert texts(drawn).count("1 without a mean: in mm and px") == 2
    for unit, bars in (("px", 1), ("mm", 2)):
        assert marks(drawn, f"intervals-hd95-{unit}-models") == bars
        assert marks(drawn, f"intervals-hd95-{unit}-shown") == bars
    assert "intervals-hd95-models" not in groups(drawn)
    for kind in ("svg", "png"):
        assert both({"x": [], "y": []}, curve(unit="mixed", models=models, shown=shown), kind=kind)


def test_what_is_unknown_is_left_out() -> None:
    odd = curve()
    odd["shown"][0]["labels"] = None  # of a deleted round
    odd["shown"][1]["dice"] = float("nan")
    odd["control"][0]["control"]["dice"] = None
    odd["lead_time"]["without"] = {"median": None, "low": None, "high": None, "n": 0}
    drawn = curve_plot(odd)
    assert marks(drawn, "intervals-dice-shown") == 1
    assert "no data" in texts(drawn)


def test_label_names_stay_as_they_are_written() -> None:
    names = ["$\\frac{1}{2}$ & <Lung>", "肺\x00\n左"]
    each = {"dice": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    drawn = curve_plot(curve(labels=names, models=[model(1) | {"classes": dict.fromkeys(names, each)}]))
    assert {"$\\frac{1}{2}$ & <Lung>", "肺 左"} <= set(texts(drawn))


# -- both ----------------------------------------------------------------------------------------


def test_labels_have_the_colours_of_the_label_config_with_a_legend() -> None:
    drawn = curve_plot(curve(colours={"Lung": "#FF0080", "Heart": "#2F7ED8"}))
    for name, colour in (("Lung", "#ff0080"), ("Heart", "#2f7ed8")):
        assert name in texts(drawn)
        assert colour in drawn.decode()
    assert "#ff0080" not in curve_plot(curve()).decode()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_legend_of_single_labels_covers_no_bar(count: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    one = curve(models=[model(n) for n in range(1, count + 1)], shown=[])
    figure = Figure(figsize=(3.5, 6), layout="constrained")
    FigureCanvasAgg(figure)
    draw_curve(figure, one, curve_panels(one), "a")
    figure.draw_without_rendering()
    (axes,) = [a for a in figure.axes if a.get_ylabel().startswith("Dice per label")]
    legend = axes.get_legend()
    assert legend is not None
    below = axes.xaxis.get_tightbbox()
    assert below is not None
    assert 0 <= legend.get_window_extent().y1 <= below.y0 + 1 < axes.bbox.y0


def test_misses_and_false_alarms_have_a_panel_once_there_are_any() -> None:
    assert "share of scans" not in texts(curve_plot(curve()))
    models = [model(n) | {"miss_rate": 0.5 / n, "n_empty": 6, "false_alarm_rate": n / 6} for n in (1, 2, 3)]
    models.append(model(4, accepted=False) | {"miss_rate": 1.0, "n_empty": 6, "false_alarm_rate": 1.0})
    for drawn in (curve_plot(curve(models=models)), both(atlas(), curve(models=models))):
        found = texts(drawn)
        for words in ("share of scans", "missed, of scans with the label", "false alarms, of scans without it"):
            assert words in found
        assert "time per scan (s): median, 95 % interval" in found  # no panel had to give way
    models[2] |= {"miss_rate": None, "false_alarm_rate": None}
    curve_plot(curve(models=models))


def test_missing_data_is_explained_in_a_sentence() -> None:
    for drawn, said in (
        (map_plot({"x": [], "y": []}), "There is no map yet: no scan has been read."),
        (curve_plot(nothing()), "There is no learning curve yet: no model has been evaluated on held-out scans."),
    ):
        assert " ".join(texts(drawn)) == said
    all_texts = " ".join(texts(both({}, {})))
    assert "There is no map yet" in all_texts
    assert "There is no learning curve yet" in all_texts


def test_panels_are_lettered_in_reading_order() -> None:
    found = texts(both(atlas(), curve()))
    assert [t for t in found if re.fullmatch("[a-e]", t)] == ["a", "b", "c", "d", "e"]
    assert "a" not in texts(map_plot(atlas()))
    only = curve(models=[model(1) | {"classes": {}, "hd95": None}], shown=[], control=[], lead_time={}, unit=None)
    assert "a" not in texts(curve_plot(only))


def test_a_png_has_column_or_page_width_at_300_dpi() -> None:
    for drawn, millimetres in (
        (map_plot(atlas(), kind="png"), 89),
        (curve_plot(curve(), kind="png"), 89),
        (both(atlas(), curve(), kind="png"), 183),
    ):
        with Image.open(io.BytesIO(drawn)) as image:
            assert image.width == pytest.approx(millimetres / 25.4 * 300, abs=1)
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert (pixels(drawn)[:3] == 255).all()  # nothing is cut off at the top
        assert (pixels(drawn)[-3:] == 255).all()


def test_font_sizes_are_7_or_8_points() -> None:
    drawn = both(atlas(), curve()).decode()
    assert set(re.findall(r"font(?:-size)?: [^;\"]*?([\d.]+)px", drawn)) == {"7", "8"}


def test_the_same_object_gives_the_same_file_independently_of_other_plots() -> None:
    first = both(atlas(), curve())
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(both(atlas(), curve()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {hashlib.sha256(one).hexdigest() for one in [first, *found]} == {hashlib.sha256(first).hexdigest()}


def test_another_kind_or_colour_is_refused_with_the_choices() -> None:
    with pytest.raises(BadSetting, match=r"^plot format: got 'pdf', expected svg or png\.$"):
        curve_plot(curve(), kind="pdf")
    with pytest.raises(BadSetting, match=r"^map colour: got 'mood', expected one of cluster, state, .*\.$"):
        map_plot(atlas(), colour="mood")


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Records of project 1, with a map of two scans and no model."""
    store = Store(tmp_path / "data")
    store.add_project(1)
    store.set_project(1, embedder="pixels")
    rows = [{"task": t, "image": f"{t}", "updated_at": "", "annotated": 0, "skipped": 0} for t in (1, 2)]
    store.put_tasks(1, rows, "")
    store.set_scans(1, [{"task": t, "digest": f"d{t}", "problem": ""} for t in (1, 2)])
    digests = np.array(["d1", "d2"])
    store.put_arrays(
        "maps",
        map_name(1, "pixels"),
        digests=digests,
        xy=(xy := np.array([[0.0, 0.0], [1.0, 1.0]])),
        state_xy=xy,
        state_mean=np.zeros(2),
        state_components=np.eye(2),
        state_reduced=xy,
    )
    return store.folder


def status(*arguments: str, data: Path) -> Any:
    return CliRunner().invoke(cli.app, ["status", *arguments], env={"SCANQUEUE_DATA_DIR": str(data)})


@pytest.mark.parametrize(("panel", "map_", "curve_"), [("map", 1, 0), ("curve", 0, 1), ("both", 1, 1), ("", 1, 1)])
def test_status_draws_the_requested_panels(data: Path, tmp_path: Path, panel: str, map_: int, curve_: int) -> None:
    file = tmp_path / "Project.SVG"
    asked = ["--panel", panel] if panel else []
    done = status("--project", "1", "--plot", str(file), *asked, data=data)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert said.endswith(f"of project 1 {'are' if panel in ('both', '') else 'is'} in {file}.")
    found = texts(file.read_bytes())
    assert ("open (2)" in found) == bool(map_)
    assert ("There is no learning curve yet: no model" in found) == bool(curve_)


def test_status_draws_the_only_project_and_refuses_to_choose(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "map.svg"
    assert f"of project 1 are in {file}" in " ".join(status("--plot", str(file), data=data).output.split())
    Store(data).add_project(7)
    several = status("--plot", str(file), data=data).exception
    assert str(several) == "--plot needs one project. Add its ID, for example --project 1; there are 1, 7."
    none = status("--plot", str(file), data=Store(tmp_path / "new").folder).exception
    assert str(none) == "--plot: no projects yet. Connect scanqueue in Label Studio, Settings > Model."


def test_status_draws_a_png(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "map.png"
    assert status("--project", "1", "--plot", str(file), "--panel", "map", data=data).exit_code == 0
    with Image.open(file) as image:
        assert (image.format, image.width) == ("PNG", round(89 / 25.4 * 300))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--project", "1", "--plot", "a.pdf"],
            r"^--plot: got 'a\.pdf'; expected a file name that ends in \.svg or \.png",
        ),
        (["--project", "1", "--plot", "a"], r"^--plot: got 'a'; expected a file name that ends in \.svg or \.png"),
        (["--project", "9", "--plot", "a.svg"], r"^Project 9 is not connected to this scanqueue\."),
        (
            ["--project", "1", "--plot", "no/such/folder/a.svg"],
            r"cannot write .*a\.svg \(No such file",
        ),
    ],
)
def test_status_refuses_what_it_cannot_draw(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = status(*arguments, data=data)
    assert isinstance(done.exception, BadSetting)
    assert re.search(said, str(done.exception))
    assert not list(tmp_path.glob("a*"))
    assert plots.KINDS == ("svg", "png")
