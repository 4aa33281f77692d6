"""The page as HTML: what each view shows, that all data stays text, and what may be loaded."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from page_lab import PROJECT, SCRIPT, Lab, make_app, quality
from page_world import TITLE, application, used_world
from world import PROJECT as REAL_PROJECT
from world import World

from backend.errors import StoreUnavailable
from backend.learning.averages import Recorded, summarise
from backend.learning.evaluation import LabelScore
from backend.web import formatting, page, reference, rendering, texts
from backend.web.colours import FALLBACKS

VIEWS = {
    "index": "/?all",
    "now": f"/projects/{PROJECT}",
    "map": f"/projects/{PROJECT}/map",
    "queue": f"/projects/{PROJECT}/queue",
    "activity": f"/projects/{PROJECT}/activity",
    "curve": f"/projects/{PROJECT}/curve",
    "models": f"/projects/{PROJECT}/models",
    "compare": f"/projects/{PROJECT}/compare?first=scanqueue-r1&second=scanqueue-r2",
    "settings": f"/projects/{PROJECT}/settings",
    "docs": "/docs",
}
HTML = {"Accept": "text/html"}
REAL = ("", "/map", "/queue", "/activity", "/curve", "/models", "/settings")


class Read(HTMLParser):
    """What a browser finds in a page: texts, addresses, element ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._silent = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def with_(self, name: str) -> list[str]:
        return [a[name] for _, a in self.tags if name in a]


@pytest.fixture
def lab() -> Lab:
    return Lab()


def client(lab: Lab) -> TestClient:
    return TestClient(make_app(lab), base_url="http://127.0.0.1:9090", raise_server_exceptions=False)


def view(lab: Lab, name: str, code: int = 200) -> Read:
    response = client(lab).get(VIEWS.get(name, name), headers=HTML)
    assert response.status_code == code, response.text[-500:]
    return Read(response.text)


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_has_one_heading_one_main_and_a_language(lab: Lab, name: str) -> None:
    seen = view(lab, name)
    assert len(seen.all("h1")) == len(seen.all("main")) == 1
    assert seen.all("html") == [{"lang": "en"}]
    assert seen.all("a")[0] == {"class": "skip", "href": "#main"}


@pytest.mark.parametrize("name", VIEWS)
def test_no_element_id_appears_twice(lab: Lab, name: str) -> None:
    found = view(lab, name).with_("id")
    assert sorted(found) == sorted(set(found))


@pytest.mark.parametrize("name", VIEWS)
def test_targets_of_labels_and_descriptions_exist(lab: Lab, name: str) -> None:
    seen = view(lab, name)
    there = set(seen.with_("id"))
    for attribute in ("aria-labelledby", "aria-describedby", "for"):
        for value in seen.with_(attribute):
            assert set(value.split()) <= there


@pytest.mark.parametrize("name", VIEWS)
def test_all_addresses_are_relative_or_in_label_studio(lab: Lab, name: str) -> None:
    seen = view(lab, name)
    for address in (*seen.with_("href"), *seen.with_("src"), *seen.with_("action")):
        assert address.startswith("http://127.0.0.1:9/projects/4/") or not address.startswith(("/", "http", "//")), (
            address
        )


@pytest.mark.parametrize("name", VIEWS)
def test_links_of_the_page_resolve(lab: Lab, name: str) -> None:
    http = client(lab)
    seen = view(lab, name)
    here = "http://127.0.0.1:9090" + VIEWS[name]
    for address in {*seen.with_("href"), *seen.with_("src")}:
        if not address.startswith(("http:", "#")):
            target = urljoin(here, address).partition("#")[0]
            lost = re.search(r"/scans/5[89]\.png", target)  # the lab has no pixels of these
            if not target.endswith("/openapi.json"):
                assert http.get(target, headers=HTML).status_code == (204 if lost else 200), target


@pytest.mark.parametrize("name", VIEWS)
def test_no_script_is_inline(lab: Lab, name: str) -> None:
    seen = view(lab, name)
    assert all(s["src"] for s in seen.all("script"))
    assert not [a for _, attributes in seen.tags for a in attributes if a.startswith("on")]


def hostile(words: str = SCRIPT) -> Lab:
    """A lab in which every text is `words`, by default a script."""
    lab = Lab(title=words)
    lab.one |= {"reason": words, "trouble": words, "model": f"m{words}", "problems": [{"task": 5, "what": words}]}
    lab.one["job"] |= {"step": words}
    lab.one["stopping"]["sentence"] = words
    for pick in lab.waiting:
        pick["reason"] = words
    for model in lab.models:
        model |= {"version": model["version"] + words, "remark": words, "labels": [words]}
    lab.line["labels"] = [words]
    for row in lab.line["models"]:
        row["version"] = words
        row["classes"] = {words: row["classes"]["Lung"]}
    for change in lab.list:
        change |= {"user": words, "what": words}
    lab.people |= {"note": words, "now": [{"task": 1, "by": words}]}
    for one in lab.people["lately"]:
        one |= {"by": words, "at": words}
    lab.working = [{"name": words, "seconds": 5.0, "doing": words}]
    lab.overrides["settings"] |= {"stratify_by": words, "strategy": words}
    lab.overrides["given"] |= {"stratify_by": words, "alpha": words}
    lab.overrides["problem"] = words
    lab.overrides["strategies"] = [words + "2"]
    lab.others = [{**lab.one, "project": 5}]
    return lab


@pytest.mark.parametrize("name", sorted(set(VIEWS) - {"docs", "compare"}))
def test_a_script_in_data_stays_text(name: str) -> None:
    seen = view(hostile(), name)
    assert {s["src"].partition("?")[0].rpartition("/")[2] for s in seen.all("script")} <= {
        "page.js",
        "settings.js",
        "map.js",
        "texts.js",
    }
    assert SCRIPT in seen.text


def test_a_script_in_an_address_stays_text(lab: Lab) -> None:
    seen = view(lab, f"/projects/4/compare?first={SCRIPT}&second=b", 400)
    assert [s["src"].partition("?")[0].rpartition("/")[2] for s in seen.all("script")] == ["texts.js", "page.js"]
    assert "There is no model" in seen.text


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_may_not_load_from_elsewhere(lab: Lab, name: str) -> None:
    headers = client(lab).get(VIEWS[name]).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == policy["form-action"] == "'self'"
    assert policy["script-src"] == ("'self' 'unsafe-eval'" if name == "map" else "'self'")  # plotly's WebGL needs it
    assert headers["cache-control"] == "no-store"


def test_every_text_that_a_view_or_script_names_exists() -> None:
    known = set(texts.texts())
    sections = "|".join({key.partition(".")[0] for key in known})
    for path in [*rendering.PAGES.glob("*.html"), *rendering.PAGES.parent.rglob("*.py")]:
        named = re.findall(rf'(?:\bt|text|rich)\("((?:{sections})\.[^"]+)"(?! ~)', path.read_text())
        assert set(named) <= known, path
    for path in rendering.PAGES.glob("*.js"):
        named = [f"js.{name}" for name in re.findall(r'\bt\("(\w+)"', path.read_text())]
        assert set(named) <= known, path


def test_the_scripts_receive_their_texts(lab: Lab) -> None:
    script = client(lab).get("/assets/texts.js").text
    assert '"undone": "Undone."' in script
    assert "queue.title" not in script


def test_values_in_a_text_with_html_are_escaped() -> None:
    assert SCRIPT not in texts.rich("now.doctor_noscript", project=SCRIPT)


def test_a_single_project_is_opened_directly(lab: Lab) -> None:
    response = client(lab).get("/", follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (307, "projects/4")


@pytest.mark.parametrize("address", ["/projects/4", "/projects/4/queue"])
def test_an_extra_slash_does_no_harm(lab: Lab, address: str) -> None:
    assert client(lab).get(address + "/").url.path == address


def test_several_projects_are_listed_with_their_status(lab: Lab) -> None:
    lab.others = [{**lab.one, "project": 9, "title": "Brains", "phase": "blocked", "problems": []}]
    seen = view(lab, "/")
    assert [a["href"] for a in seen.all("a") if a["href"].startswith("projects/")] == ["projects/4", "projects/9"]
    words = "Choosing with a model 34 of 60 scans labelled, 2 problems"
    assert words in seen.text
    assert "Stopped: action needed" in seen.text


def test_an_empty_project_list_says_how_to_connect_one(lab: Lab) -> None:
    lab.projects = list  # type: ignore[method-assign]
    assert "Settings > Model > Connect Model" in view(lab, "/").text


def test_now_shows_the_step_its_progress_and_the_quality_of_the_model(lab: Lab) -> None:
    text = view(lab, "now").text
    for words in (
        "Choosing with a model",
        "4 of 10 labels before the next model is trained.",
        "Training scanqueue-r3 on 34 labels 120 of 400 · about 3 min left",
        "Scans 60 Read 58 Labelled 34 57 % Round 2",
        "Dice 0.912 , HD95 3.5 px on 12 held-out scans",
        "Dice 0.934 , HD95 2.6 px on 4 scans of this round",
        "Continue labelling. 20 more labels are expected to add 0.012",
        "worker-1 training scanqueue-r3 just now",
        "alpha from 0.4 to 0.6",
    ):
        assert words in text


def test_train_now_is_disabled_with_its_reason(lab: Lab) -> None:
    (possible,) = [b for b in view(lab, "now").all("button") if b.get("data-send") == "train"]
    assert "main" in possible["class"]
    lab.one |= {"phase": "disconnected", "no_training": "Training is not possible: not connected."}
    seen = view(lab, "now")
    assert not [b for b in seen.all("button") if b.get("data-send") == "train"]
    (button,) = [b for b in seen.all("button") if b.get("aria-describedby") == "no-training"]
    assert "disabled" in button
    assert "Not connected" in seen.text
    assert "Training is not possible: not connected." in seen.text
    assert "Stopped" not in seen.text


def test_overlap_and_the_image_in_use_are_named(lab: Lab) -> None:
    assert "Annotations per scan" not in view(lab, "now").text
    lab.one |= {"overlap": 3, "image": "left"}
    seen = view(lab, "now").text
    assert "Annotations per scan 3. Label Studio first serves the scans that have some of them" in seen
    assert 'Image <Image name="left">. The setting “image” selects another.' in seen


def test_a_lost_label_can_be_answered_with_one_click(lab: Lab) -> None:
    odd = "Lung's <left>"
    lab.one |= {"lost_labels": [{"label": odd, "annotations": 13}], "labels": ["Lungs", 'He said "Heart"']}
    seen = view(lab, "now")
    assert "What became of the label “Lung's <left>” of 13 annotations?" in seen.text
    buttons = [b for b in seen.all("button") if b.get("data-send") == "labels"]
    assert [json.loads(b["data-body"]) for b in buttons] == [{odd: "Lungs"}, {odd: 'He said "Heart"'}, {odd: ""}]


def test_the_progress_bar_matches_the_progress_of_the_step(lab: Lab) -> None:
    (bar,) = view(lab, "now").all("progress")
    assert (bar["value"], bar["max"]) == ("120", "400")


def test_a_step_of_unknown_length_has_a_bar_without_a_value(lab: Lab) -> None:
    lab.one["job"] = {"step": "ranking", "done": 0, "total": 1, "seconds_left": None}
    (bar,) = view(lab, "now").all("progress")
    assert "value" not in bar


def test_a_problem_is_listed_with_advice_and_a_retry_button(lab: Lab) -> None:
    seen = view(lab, "now")
    assert "it is truncated. Export it again from the archive, and put it in the place of the old file." in seen.text
    assert '{"task": 58}' in [b.get("data-body") for b in seen.all("button") if b.get("data-send") == "retry"]
    assert "http://127.0.0.1:9/projects/4/data?task=58" in seen.with_("href")


def test_of_many_problems_the_first_are_listed_and_the_others_on_demand(lab: Lab) -> None:
    causes = ["".join(chr(97 + int(d)) for d in f"{t:04}") for t in range(1000)]
    lab.one["problems"] = [{"task": t, "what": f"Gone: {causes[t]}. Put it back."} for t in range(1000)]
    seen = view(lab, "now")
    retries = [b.get("data-body") for b in seen.all("button") if b.get("data-send") == "retry"]
    assert len(retries) == page.PROBLEMS + 1
    assert retries[0] == '{"all": true}'
    assert "?problems=100#problems" in seen.with_("href")
    assert "1 000 scans could not be read or used." in seen.text


def test_problems_of_one_cause_are_one_row_with_the_first_tasks(lab: Lab) -> None:
    gone = "Its image '{}.png' is gone: the server answered 404. Restore it."
    lab.one["problems"] = [
        *({"task": t, "what": gone.format(t)} for t in range(1, 301)),
        *({"task": t, "what": "It is on 'bucket.lab'. Set IMAGE_HOSTS."} for t in range(400, 402)),
        {"task": 403, "what": "It is on 'other.lab'. Set IMAGE_HOSTS."},
    ]
    seen = view(lab, "now")
    assert "303 scans could not be read or used." in seen.text
    assert f"300 scans Task 1, for example: {gone.format(1)}" in seen.text
    words = seen.text.replace(" ,", ",")
    assert "Tasks: 1, 2, 3, 4, 5 and 295 more" in words
    assert "'2.png'" not in seen.text
    assert "2 scans It is on 'bucket.lab'. Set IMAGE_HOSTS. Tasks: 400, 401" in words
    assert "It is on 'other.lab'." in seen.text
    assert [b.get("data-body") for b in seen.all("button") if b.get("data-send") == "retry"] == [
        '{"all": true}',
        '{"task": 403}',
    ]
    assert "298, 299, 300" in view(lab, VIEWS["now"] + "?problems=300").text.replace(" ,", ",")


def test_a_project_without_data_has_every_view(tmp_path: Path) -> None:
    http = TestClient(application(World(tmp_path / "data")), base_url="http://127.0.0.1:9090")
    for name in REAL:
        assert http.get(f"/projects/{REAL_PROJECT}{name}", headers=HTML).status_code == 200, name
    assert "No scans yet" in Read(http.get(f"/projects/{REAL_PROJECT}", headers=HTML).text).text


def test_without_a_worker_now_says_how_to_start_one(lab: Lab) -> None:
    lab.working = []
    assert "Start a worker with scanqueue worker" in view(lab, "now").text


def test_only_changes_that_can_be_undone_have_a_button(lab: Lab) -> None:
    undo = [b["data-body"] for b in view(lab, "now").all("button") if b.get("data-send") == "undo"]
    assert undo == ['{"change": 12}']  # 11 cannot be undone, 10 already is


def test_the_queue_shows_the_first_scans_with_reason_terms_and_outline(lab: Lab) -> None:
    seen = view(lab, "queue")
    cards = [a for a in seen.all("li") if a.get("class") == "scan-card"]
    assert [c["id"] for c in cards] == [f"scan-{t}" for t in range(31, 55)]
    assert "../../projects/4/scans/31.png?quiet=1&side=320&model=scanqueue-r2" in seen.with_("src")
    assert "Task 31 The model is unsure of it, and it is unlike what was chosen before it. Entropy 0.41" in seen.text
    assert "Entropy 0.41 Distance 0.69 S(i) 0.88" in seen.text
    assert "http://127.0.0.1:9/projects/4/data?task=31" in seen.with_("href")
    assert "?count=48#scan-55" in seen.with_("href")


@pytest.mark.parametrize("name", ["queue", "activity", "compare"])
def test_views_with_outlines_have_a_legend_in_the_colours_of_the_label_config(lab: Lab, name: str) -> None:
    lab.colours = {"Lung": "#FF0080", "<i>Heart</i>": "#2F7ED8"}
    seen = view(lab, name)
    assert "Lung <i>Heart</i>" in seen.text
    assert [i["style"] for i in seen.all("i") if i.get("class") == "outline"] == [
        "--colour:#FF0080",
        "--colour:#2F7ED8",
    ]


def test_the_rest_of_the_queue_is_shown_on_request(lab: Lab) -> None:
    seen = view(lab, f"{VIEWS['queue']}?count=48")
    assert len([a for a in seen.all("li") if a.get("class") == "scan-card"]) == 26
    assert "Show more" not in seen.text


def test_only_an_order_by_s_shows_s(lab: Lab) -> None:
    for pick in lab.waiting:
        pick["kind"] = "power-entropy"
    seen = view(lab, "queue")
    assert "Entropy 0.41 Distance 0.69" in seen.text
    assert "S(i)" not in seen.text


def test_in_the_cold_start_scans_are_shown_without_an_outline(lab: Lab) -> None:
    lab.one["model"] = None
    for pick in lab.waiting:
        pick |= {"reason": "medoid (cluster 2): typical of its group", "entropy": None, "distance": None, "score": None}
    seen = view(lab, "queue")
    assert "../../projects/4/scans/31.png?quiet=1&side=320" in seen.with_("src")
    assert "Entropy" not in seen.text
    assert "Lung" not in seen.text  # no outline, no legend


def test_the_queue_says_while_a_new_order_is_published_that_it_shows_the_one_before(lab: Lab) -> None:
    said = "annotators get the previous one. This list shows the previous order, too."
    assert said not in view(lab, "queue").text
    lab.one["phase"] = "publishing"
    assert said in view(lab, "queue").text


def test_an_empty_queue_gives_the_reason(lab: Lab) -> None:
    lab.waiting = []
    assert "The queue is empty. 4 of 10 labels" in view(lab, "queue").text


def test_activity_shows_who_labelled_what_and_how_long_it_took(lab: Lab) -> None:
    text = view(lab, "activity").text
    assert "Task 31 ben@lab.example has a draft Label Studio tells of drafts" in text
    assert "Task 29 anna@lab.example 23 Nov 2026, 10:15 UTC 1 min 34 s" in text


def test_the_plot_has_a_text_alternative(lab: Lab) -> None:
    (plot,) = [i for i in view(lab, "curve").all("img") if "plots" in i["src"]]
    assert plot["alt"].replace("\N{NO-BREAK SPACE}", " ") == (
        "Mean Dice on the held-out scans rises to 0.912 with 30 labels, from 0.871 with 20. "
        "HD95 changes from 5.2 px to 3.5 px."
    )


def test_the_curve_is_also_a_table_with_intervals_units_and_every_label(lab: Lab) -> None:
    text = view(lab, "curve").text
    assert (
        "scanqueue-r2 30 0.912 0.882 to 0.932 3.5 px 2.0 to 5.5 0.912 0.892 to 0.932 0.872 0.852 to 0.892 "
        "12 3 of 12 \N{EN DASH} yes" in text
    )
    assert "2 scanqueue-r2 30 0.934 0.914 to 0.954 3.4 px 4" in text
    assert "yes 41 s 36 s to 52 s 14 no 2 min 8 s 1 min 50 s to 2 min 30 s 20" in text
    assert "scanqueue-r2 12 0.900 4.0 px 12 0 of 12 \N{EN DASH} 0.880 4.8 px 12 0 of 12 \N{EN DASH}" in text


def test_the_curve_says_what_smart_tools_were_worth(lab: Lab) -> None:
    text = view(lab, "curve").text
    assert "with smart tools, opened with a mask 12 2.4 2.2 to 2.6 31 s 28 s to 34 s 0.780" in text
    assert "with smart tools, opened blank 3 3.7" in text
    assert "without smart tools 19 \N{EN DASH} 1 min 58 s" in text
    for group in ("masked", "blank"):
        lab.line["corrections"][group]["scans"] = 0
    assert "Corrections with smart tools" not in view(lab, "curve").text


def test_now_says_how_many_answers_of_smart_tools_failed_or_were_slow(lab: Lab) -> None:
    assert "Smart tools, last day" not in view(lab, "now").text
    lab.one["clicks"] = {"answers": 120, "failed": 2, "slow": 3}
    assert "120 answers; 2 failed, 3 took more than a second." in view(lab, "now").text


def test_models_say_which_tool_answers_clicks(lab: Lab) -> None:
    lab.models[-1]["clicks"] = {
        "n": 4,
        "clicks": 3,
        "network": 0.88,
        "geodesic": 0.79,
        "seconds": 1.2,
        "best": "network",
    }
    text = view(lab, "models").text
    assert "From blank, the network for clicks answers. Dice after 3 simulated clicks on 4 held-out scans:" in text
    assert "0.880 with the network for clicks, 0.790 with the shortest paths." in text
    lab.models[-1]["clicks"] |= {"scribbleprompt": 0.91, "best": "scribbleprompt"}
    text = view(lab, "models").text
    assert "From blank, ScribblePrompt answers." in text
    assert "0.880 with the network for clicks, 0.910 with ScribblePrompt, 0.790 with the shortest paths." in text
    for name, shown in (
        ("sam2", "SAM 2"),
        ("sam", "Segment Anything"),
        ("medsam", "MedSAM"),
        ("mobilesam", "MobileSAM"),
    ):
        lab.models[-1]["clicks"] |= {name: 0.95, "best": name}
        text = view(lab, "models").text
        assert f"From blank, {shown} answers." in text
        assert f"0.950 with {shown}, " in text


def test_the_dashboard_of_a_cluster_is_a_link(lab: Lab) -> None:
    lab.working[0]["doing"] = "project 4, Dask dashboard: http://10.0.0.5:8787/status"
    assert "http://10.0.0.5:8787/status" in view(lab, "now").with_("href")


def test_of_many_models_the_newest_are_listed_and_all_on_demand(lab: Lab) -> None:
    newest = lab.line["models"][-1]
    lab.line["models"] = [newest | {"version": f"scanqueue-r{n}"} for n in range(101, 161)]
    seen = view(lab, "curve")
    assert "The newest 50 of 60 are listed. List all" in seen.text
    assert "scanqueue-r111 " in seen.text
    assert "scanqueue-r110 " not in seen.text
    assert "?all=1" in seen.with_("href")
    everything = view(lab, f"{VIEWS['curve']}?all=1").text
    assert "are listed" not in everything
    assert "scanqueue-r101 " in everything
    lab.older_models = 70
    assert "The newest 2 of 72 are listed." in view(lab, "models").text


def test_a_curve_without_models_is_explained(lab: Lab) -> None:
    nothing = {"median": None, "low": None, "high": None, "n": 0}
    lab.line |= {"models": [], "shown": [], "control": [], "stopping": None, "unit": None, "labels": []}
    lab.line["lead_time"] = {"with": nothing, "without": nothing}
    text = view(lab, "curve").text
    assert "There is no learning curve yet" in text
    assert "No mask has been shown and submitted yet." in text


def test_a_curve_with_pixels_and_millimetres_does_not_compare_them(lab: Lab) -> None:
    lab.line["unit"] = "mixed"
    for row, unit in zip(lab.line["models"], ("px", "mm"), strict=True):
        row["unit"] = unit
    text = view(lab, "curve").text
    assert "HD95 is 3.5 mm now; earlier values are in px and cannot be compared." in text
    assert "0.871 0.841 to 0.891 5.2 px" in text
    assert "0.912 0.882 to 0.932 3.5 mm" in text


def test_distances_in_different_units_have_neither_unit(lab: Lab) -> None:
    lab.line["unit"] = "mixed"
    for row in lab.line["models"]:
        row |= {"hd95": None, "hd95_low": None, "hd95_high": None}
    assert "mixed units" in view(lab, "curve").text


def test_a_model_shows_its_quality_who_activated_it_and_what_it_replaced(lab: Lab) -> None:
    text = view(lab, "models").text
    newest = text.partition("scanqueue-r2 draws the masks")[2]
    for words in (
        "accepted",
        "scanqueue-r1: Dice 0.874",
        "24 scans: Lung, Heart",
        "Activated anna,",
    ):
        assert words in newest


def test_a_model_without_a_checkpoint_cannot_be_activated_and_gives_the_reason(lab: Lab) -> None:
    lab.models[0]["kept"] = False
    seen = view(lab, "models")
    assert not [b for b in seen.all("button") if b.get("data-send") == "activate"]
    assert "Its checkpoint was removed" in seen.text


def test_a_training_is_plotted_with_loss_and_dice() -> None:
    drawn = formatting.training_curve([{"step": 0, "loss": 2.0, "dice": 0.5}, {"step": 10, "loss": 1.0, "dice": 1.0}])
    assert drawn is not None
    assert [line["points"] for line in drawn["lines"]] == ["0.0,0.0 280.0,42.0", "0.0,42.0 280.0,0.0"]
    assert formatting.training_curve([]) is None


def test_means_over_the_worst_scans_are_not_presented_as_means_over_all(lab: Lab) -> None:
    assert "Means over these 3 scans: A 0.788" in view(lab, "compare").text
    lab.more_held_out = 37
    assert "Means over the worst 3 of 40 scans that neither has learnt from: A 0.788" in view(lab, "compare").text


def test_models_are_compared_worst_first_with_pictures_of_both(lab: Lab) -> None:
    seen = view(lab, "compare")
    tasks = re.findall(r"compare/(\d+)\.png\S+part=difference", " ".join(seen.with_("src")))
    assert re.findall(r"compare/(\d+)\.png\S+part=annotator", " ".join(seen.with_("src"))) == tasks
    assert tasks == ["7", "3", "9"]
    text = seen.text
    assert "A 0.612 · B 0.843 · B better by 0.231" in text
    assert "A 0.930 · B 0.930 · no difference" in text
    assert "HD95: A 4.3 mm · B 1.5 mm" in text
    assert "A 0.788 , B 0.858" in text


def test_scans_without_foreground_are_told_apart_from_the_quality(lab: Lab) -> None:
    lab.one |= {"validation": quality(0.8, 9, missed=1, n_empty=3, alarms=2), "labelled_empty": 5}
    lab.one["shown"] = quality(n_empty=4)
    text = view(lab, "").text
    assert "Dice 0.800 , HD95 8.0 px on 9 held-out scans with foreground" in text
    assert "Missed: 1 of 9. False alarms: 2 of 3." in text
    assert "not known: no scan has foreground False alarms: 0 of 4." in text
    assert "5 without foreground" in text
    assert "1.000" not in text
    lab.line["models"][1] |= {"n": 9, "miss_rate": 1 / 9, "n_empty": 3, "false_alarm_rate": 2 / 3}
    assert "9 1 of 9 2 of 3 yes" in view(lab, "curve").text


def test_each_label_has_its_own_figures_beside_the_mean_that_hides_them(lab: Lab) -> None:
    scores = [LabelScore(True, True, 0.2, 0.9, 4.0, 2.0)] * 9 + [LabelScore(True, True, 0.2, 0.92, 4.0, 2.0)]
    scans = [
        Recorded({"Lung": one, "Lesion": LabelScore(False, n < 3, 0.001 * (n < 3))}, "px")
        for n, one in enumerate(scores)
    ]
    scans += [
        Recorded({"Lung": scores[0], "Lesion": LabelScore(True, n > 0, 0.0, 0.5 * n, 90.0, 60.0)}, "px") for n in (0, 1)
    ]
    found = summarise(scans)
    lab.one["validation"] = lab.models[-1]["validation"] = found
    lab.line["models"][-1] |= found | {"labels": 30}
    text = view(lab, "").text
    assert "HD95 31.0 px, mean over 2 labels on 12 held-out scans" in text
    assert "Lowest: Lesion, Dice 0.250 on 2 scans. Missed: 1 of 14. False alarms: 3 of 10." in text
    text = view(lab, "models").text
    assert re.search(rf"Lung 0\.902 0\.9\d\d to 0\.9\d\d 2\.0 px 12 of 12 {formatting.NONE}", text)
    assert "Lesion 0.250 0.000 to 0.500 60.0 px 1 of 2 3 of 10 0.03 %" in text
    assert "12 1 of 14 3 of 10 yes" in view(lab, "curve").text


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        ((0.034, 0.011, 0.057, 9), "The new model is better: +0.034 (95 % interval +0.011 to +0.057) on 9 scans that"),
        ((-0.1, -0.15, -0.05, 9), "The new model is worse: -0.100 (95 % interval -0.150 to -0.050) on 9 scans that"),
        ((0.01, -0.02, 0.04, 9), "Neither is clearly better: +0.010 (95 % interval -0.020 to +0.040) on 9 scans that"),
        ((0.5, 0.4, 0.6, 1), "Too few to tell which is better: 1 scan that neither has learnt from, of 5 needed."),
    ],
)
def test_a_model_says_whether_it_is_better_than_the_one_before(
    lab: Lab, difference: tuple[float, float, float, int], words: str
) -> None:
    lab.models[-1]["champion"]["difference"] = dict(zip(("mean", "low", "high", "scans"), difference, strict=True))
    text = view(lab, "models").text
    assert f"scanqueue-r1: Dice 0.874. {words}" in text
    assert "half is how many scans without it stay empty" in text
    del lab.models[-1]["champion"]["difference"]  # of an older version
    assert "stay empty" not in view(lab, "models").text


def test_two_models_on_a_scan_without_foreground_are_compared_by_what_they_draw(lab: Lab) -> None:
    lab.no_foreground = {9: (True, False)}
    text = view(lab, "compare").text
    assert "No foreground: A draws nothing · B false alarm" in text
    assert "Means over the 2 scans with foreground among these: A 0.717 , B 0.822" in text
    assert "False alarms: A 0 of 1 , B 1 of 1" in text
    assert "A 0.930" not in text
    lab.no_foreground = dict.fromkeys((3, 7, 9), (True, True))
    assert "Means over" not in view(lab, "compare").text


def test_each_setting_shows_its_effect_and_the_source_of_its_value(lab: Lab) -> None:
    text = view(lab, "settings").text
    assert set(lab.overrides["settings"]) == {control.name for control in formatting.CONTROLS}
    for control in formatting.CONTROLS:
        assert f"{control.title} " in text
        assert control.sentence in text
    assert "Changing settings requires JavaScript. Reading them does not." in text
    assert "set here Label Studio: 0.4 Restore the value from Label Studio" in text
    assert "from Label Studio default: 10" in text


def test_a_setting_changed_on_the_page_can_be_reset(lab: Lab) -> None:
    back = [b["data-body"] for b in view(lab, "settings").all("button") if b.get("data-send") == "settings"]
    assert back == ['{"alpha": null}']


def test_invalid_extra_params_are_shown_beside_the_settings(lab: Lab) -> None:
    lab.overrides["problem"] = "alpha is 7; it must be from 0 to 1."
    assert "alpha is 7; it must be from 0 to 1." in view(lab, "settings").text


def test_every_endpoint_is_described_with_its_fields(lab: Lab) -> None:
    seen = view(lab, "docs")
    described = lab.openapi()
    anchors = {reference.anchor(m, p) for p, operations in described["paths"].items() for m in operations}
    assert anchors <= set(seen.with_("id"))
    assert "POST /api/projects/{project}/activate" in seen.text
    assert "validation.dice number or null" in seen.text
    assert '"version": "scanqueue-r2"' in seen.text


def test_an_unknown_project_has_a_page_with_a_link_out(lab: Lab) -> None:
    seen = view(lab, "/projects/9", 404)
    assert "Project 9 is not known here. Connect scanqueue in its Settings > Model in Label Studio." in seen.text
    assert "../?all" in seen.with_("href")


@pytest.mark.parametrize("address", ["/nowhere", "/projects/9/queue", "/projects/4/plots/other.svg", "/a/b/c/d"])
def test_a_browser_gets_a_page_for_an_unknown_address(lab: Lab, address: str) -> None:
    seen = view(lab, address, 404)
    assert "Not found" in seen.text
    root = next(a["href"] for a in seen.all("a") if a.get("class") == "brand")
    assert urljoin(f"http://h{address}", root) == "http://h/?all"


def test_a_browser_gets_a_page_for_an_unreachable_database(lab: Lab) -> None:
    def away(project: int) -> Any:
        raise StoreUnavailable("The database does not answer. Try again.")

    lab.queue = away  # type: ignore[method-assign]
    assert "The database does not answer. Try again." in view(lab, "queue", 503).text


def test_a_program_gets_errors_as_json(lab: Lab) -> None:
    response = client(lab).get("/projects/9", headers={"Accept": "application/json"})
    assert response.json() == {
        "error": "Project 9 is not known here. Connect scanqueue in its Settings > Model in Label Studio."
    }


def test_browsers_do_not_cache_pictures(lab: Lab) -> None:
    response = client(lab).get("/projects/4/scans/7.png?side=64")
    assert response.content[:4] == b"\x89PNG"
    assert (response.headers["content-type"], response.headers["cache-control"]) == ("image/png", "no-store")


@pytest.mark.parametrize(("asked", "given"), [(5, 32), (64, 64), (10**9, 1024)])
def test_a_picture_has_the_requested_size_within_bounds(lab: Lab, asked: int, given: int) -> None:
    content = client(lab).get(f"/projects/4/scans/7.png?side={asked}").content
    assert int.from_bytes(content[16:20], "big") == given


def test_an_unavailable_picture_is_an_error_for_a_program_and_empty_in_a_view(lab: Lab) -> None:
    assert client(lab).get("/projects/4/scans/58.png").json() == {"error": "Task 58 has no pixels."}
    assert client(lab).get("/projects/4/scans/58.png?quiet=1").status_code == 204


def test_a_plot_opened_directly_runs_no_scripts(lab: Lab) -> None:
    response = client(lab).get("/projects/4/plots/curve.svg")
    assert response.headers["content-type"] == "image/svg+xml"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["content-disposition"] == 'inline; filename="project-4-curve.svg"'


def asset(lab: Lab, address: str, **headers: str) -> Response:
    return client(lab).get(address, headers=headers)


def test_an_asset_is_cached_forever_only_at_the_address_with_its_content_hash(lab: Lab) -> None:
    address = next(a for a in view(lab, "now").with_("href") if "page.css" in a)
    named = urljoin("/projects/4", address)
    assert asset(lab, named).headers["cache-control"] == "public, max-age=31536000, immutable"
    assert asset(lab, "/assets/page.css").headers["cache-control"] == "no-cache"
    assert asset(lab, "/assets/page.css?v=0").headers["cache-control"] == "no-cache"


def test_an_asset_is_compressed_for_clients_that_accept_it(lab: Lab) -> None:
    plain = asset(lab, "/assets/page.js", **{"Accept-Encoding": "identity"})
    packed = asset(lab, "/assets/page.js", **{"Accept-Encoding": "gzip"})
    assert plain.content == packed.content == (rendering.PAGES / "page.js").read_bytes()
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < 0.5 * len(plain.content)


def test_the_script_of_the_map_comes_from_the_package_and_is_compressed_once(lab: Lab) -> None:
    http = client(lab)
    first = http.get("/assets/plotly.js", headers={"Accept-Encoding": "gzip"})
    assert b"plotly.js v" in first.content[:200]
    assert int(first.headers["content-length"]) < 1_700_000
    began = time.perf_counter()
    http.get("/assets/plotly.js", headers={"Accept-Encoding": "gzip"})
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("name", ["page.py", "base.html", "../page.py", "..%2fpage.py", "nothing.js"])
def test_only_assets_are_served(lab: Lab, name: str) -> None:
    assert client(lab).get(f"/assets/{name}").status_code == 404


def test_without_scripts_every_button_that_needs_them_is_off(lab: Lab) -> None:
    for name in sorted(set(VIEWS) - {"map"}):  # the map needs scripts
        for button in view(lab, name).all("button"):
            assert "disabled" in button or button == {"type": "submit"}  # the button of a plain GET form


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, formatting.NONE),
        (8.4, "8 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (1234, "20 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_worded_for_people(seconds: float | None, words: str) -> None:
    assert formatting.duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == words


@pytest.mark.parametrize(("seconds", "words"), [(4, "a few seconds left"), (38, "about 40 seconds left"), (None, "")])
def test_the_time_left_is_not_more_precise_than_known(seconds: float | None, words: str) -> None:
    assert formatting.left(seconds) == words


@pytest.mark.parametrize("value", ["no time", None, float("nan"), 1e300, ""])
def test_an_invalid_time_is_a_dash(value: Any) -> None:
    assert formatting.when(value) == formatting.NONE


def test_a_model_without_held_out_scans_has_no_numbers() -> None:
    assert formatting.curve({"models": [], "unit": None}).startswith("There is no learning curve yet")
    assert quality()["dice"] is None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return used_world(tmp_path_factory.mktemp("page") / "data")


@pytest.fixture(scope="module")
def real(world: World) -> TestClient:
    return TestClient(application(world), base_url="http://127.0.0.1:9090", raise_server_exceptions=False)


@pytest.mark.parametrize("name", REAL)
def test_every_view_shows_real_records(real: TestClient, name: str) -> None:
    response = real.get(f"/projects/{REAL_PROJECT}{name}", headers=HTML)
    assert response.status_code == 200, response.text
    assert TITLE in Read(response.text).text
    assert "script-src 'self'" in response.headers["content-security-policy"]
    for word in ("None", "Undefined"):
        assert word not in Read(response.text).text


def test_real_records_have_pictures_and_plots(real: TestClient) -> None:
    for name in ("queue", "curve", "activity"):
        seen = Read(real.get(f"/projects/{REAL_PROJECT}/{name}", headers=HTML).text)
        addresses = [urljoin(f"/projects/{REAL_PROJECT}/{name}", a) for a in (*seen.with_("src"), *seen.with_("href"))]
        pictures = [a for a in addresses if "/scans/" in a or "/plots/" in a]
        assert pictures
        for address in pictures[:6]:
            assert real.get(address).headers["content-type"] in ("image/png", "image/svg+xml"), address


def test_submitted_masks_of_real_records_are_outlined_and_compared(real: TestClient, world: World) -> None:
    (task, *_) = world.annotations
    picture = f"/projects/{REAL_PROJECT}/scans/{task}.png"
    drawn = real.get(picture, params={"model": "annotator"})
    assert drawn.status_code == 200, drawn.text
    assert drawn.content != real.get(picture).content
    seen = Read(real.get(f"/projects/{REAL_PROJECT}/activity", headers=HTML).text)
    assert [i["style"] for i in seen.all("i") if i.get("class") == "outline"] == [f"--colour:{FALLBACKS[0]}"]


def test_the_queue_has_the_order_of_the_records(real: TestClient, world: World) -> None:
    seen = Read(real.get(f"/projects/{REAL_PROJECT}/queue", headers=HTML).text)
    cards = [a["id"] for a in seen.all("li") if a.get("class") == "scan-card"]
    assert cards == [f"scan-{task}" for task in world.status()["queue"]]
    assert "1 scan is left out of the order." in seen.text


def test_changes_are_shown_with_their_author(real: TestClient) -> None:
    text = Read(real.get(f"/projects/{REAL_PROJECT}/settings", headers=HTML).text).text
    assert "alpha: 0.7 anna," in text
    assert "set here" in text


def test_every_endpoint_of_the_application_is_described(real: TestClient) -> None:
    seen = Read(real.get("/docs", headers=HTML).text)
    paths = real.get("/openapi.json").json()["paths"]
    assert len(paths) > 20
    assert {reference.anchor(m, p) for p, operations in paths.items() for m in operations} <= set(seen.with_("id"))
    assert "model_class string" in seen.text  # from `schemas`, not guessed by FastAPI


@pytest.mark.parametrize(
    ("address", "code", "sentence"),
    [
        ("/projects/99", 404, "Project 99 is not known here."),
        ("/nowhere", 404, "There is no page at this address."),
        ("/projects/x/map", 400, "project: Input should be a valid integer"),
        (f"/projects/{REAL_PROJECT}/compare?first=a&second=b", 404, "'a'"),
    ],
)
def test_the_application_answers_a_browser_with_a_page_and_a_program_with_json(
    real: TestClient, address: str, code: int, sentence: str
) -> None:
    page_, json_ = real.get(address, headers=HTML), real.get(address)
    assert sentence in Read(page_.text).text
    assert page_.status_code == json_.status_code == code
    assert set(json_.json()) == {"error"}
    assert "default-src 'none'" in page_.headers["content-security-policy"]
