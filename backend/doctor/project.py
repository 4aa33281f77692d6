"""Checks of one project: label config, backend, records, queue, worker, scans."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from backend.doctor.finding import (
    Finding,
    ask_us,
    explained,
    is_ours,
    may_host_our_plugin,
)
from backend.errors import BadSetting, NotSegmentable
from backend.facts import SAMPLING, round_of, version_name
from backend.image_value import template
from backend.label_config import label_names, silent_smart_tags, smart_tags
from backend.label_studio.client import redact_url
from backend.label_studio.listing import ProjectPage
from backend.label_studio.studio import Studio
from backend.label_studio.webhooks import same_address
from backend.loop.project_settings import project_settings, row_settings
from backend.records.store import Store
from backend.settings import Settings

FRESH = 180.0  # seconds; workers check every project once a minute
PICKED_UP = 8.0  # seconds a worker has to pick up a requested project


def check_project(studio: Studio, project: int, pages: list[ProjectPage]) -> Iterator[Finding]:
    page = studio.project(project)
    pages.append(page)
    yield Finding("project", "ok", f"Project {project} is {page.title!r}, with {page.tasks} tasks.")


def check_label_config(page: ProjectPage, project: int, row: Any) -> Iterator[Finding]:
    """row  the project's record, which has the setting `image`; None without one"""
    image = ""
    with suppress(BadSetting):  # `check_in_records` reports it
        image = row_settings(dict(row)).image if row else ""
    try:
        config = page.masks_config(project, image)
    except NotSegmentable as error:
        yield explained("label-config", error)
        return
    tools = " and ".join(dict.fromkeys(tag.kind for tag in config.tags))
    labels = ", ".join(config.labels)
    where = f"{config.image} ({template(config.image_value)})"
    yield Finding("label-config", "ok", f"Masks are drawn with {tools} on {where}: {labels}.")


def check_backend(
    settings: Settings, studio: Studio, project: int, address: str, titles: list[str], page: ProjectPage
) -> Iterator[Finding]:
    rows = sorted(studio.backends(project), key=lambda row: row["id"])
    titles += [str(row.get("title") or "") for row in rows]
    shown = redact_url(address)
    if not rows:
        what = f"No ML backend is connected to project {project}."
        yield Finding("backend", "error", what, f"Enter {shown} in Settings > Model > Connect Model.")
        return
    ours, elsewhere = _own_row(rows, address)
    if elsewhere is not None:
        yield elsewhere
    if ours is None:
        return
    if any(not same_address(row["url"], ours["url"]) for row in rows):  # Label Studio may connect a backend twice
        first = redact_url(rows[0]["url"])
        asked = "ours" if same_address(rows[0]["url"], ours["url"]) else first
        what = f"The project has {len(rows)} ML backends; Label Studio uses only the first one, {asked}."
        cure = "Remove the others in Settings > Model."
        yield Finding("backend", "warning" if asked == "ours" else "error", what, cure)
    if "@" in urlsplit(ours["url"]).netloc:
        what = "The backend's URL contains a password that every member can read in Label Studio."
        cure = "Enter user and password in Settings > Model as Basic Authentication, not in the URL."
        yield Finding("backend", "warning", what, cure)
    yield from _smart_tools(page, project, bool(ours.get("is_interactive")))
    try:
        project_settings(ours.get("extra_params"))
    except BadSetting as error:
        cure = "Correct the extra params in Settings > Model, Edit."
        yield Finding("backend", "error", f"The model's extra params are invalid: {error}", cure)
    if ours.get("state") == "CO":
        yield Finding("backend", "ok", f"Label Studio reaches us as ML backend {ours.get('title')!r}.")
    elif settings.user and ours.get("auth_method") != "BASIC_AUTH" and "@" not in urlsplit(ours["url"]).netloc:
        what = "Label Studio calls us without credentials, but SCANQUEUE_USER is set."
        cure = "Enter SCANQUEUE_USER and SCANQUEUE_PASSWORD in Settings > Model, Edit, as Basic Authentication."
        yield Finding("backend", "error", what, cure)
    else:
        reason = re.sub(r"//[^/@\s]+@", "//", str(ours.get("error_message") or "it does not answer"))[:200]
        what = f"Label Studio cannot reach {redact_url(ours['url'])}: {reason}"
        cure = (
            "Check that this address answers on Label Studio's machine, correct it or its user and password in "
            "Settings > Model, Edit, and set SCANQUEUE_PUBLIC_URL to the same address."
        )
        yield Finding("backend", "error", what, cure)


def _smart_tools(page: ProjectPage, project: int, interactive: bool) -> Iterator[Finding]:
    """Whether the flag of the backend, the smart tags and their labels fit together."""
    smart = smart_tags(page.label_config)
    if not smart and interactive:
        what = 'Interactive preannotations are on, but no tag of the label config has smart="true".'
        tag = '<KeyPointLabels name="click" toName="image" smart="true" smartOnly="true">'
        cure = (
            f"Add {tag} with the labels of your masks in Settings > Labeling Interface > Code, or turn off Interactive "
            "preannotations in Settings > Model, Edit."
        )
        yield Finding("backend", "warning", what, cure)
    if smart and not interactive:
        names = ", ".join(map(repr, sorted(smart)))
        what = f"The label config has smart tools ({names}), but Interactive preannotations are off."
        yield Finding("backend", "warning", what, "Turn on Interactive preannotations in Settings > Model, Edit.")
    if silent := silent_smart_tags(page.label_config):
        what = f"{', '.join(map(repr, sorted(silent)))} comes first among the smart tools, but never asks for a mask."
        cure = (
            'Add smart="false" to this tag in Settings > Labeling Interface > Code, so that the key M selects clicks.'
        )
        yield Finding("backend", "warning", what, cure)
    with suppress(NotSegmentable):  # `check_label_config` reports it
        config = page.masks_config(project)
        masks = {*config.labels, *config.aliases}
        for name in sorted(smart):
            if lacking := sorted(min(names) for names in label_names(page.parsed_config, name) if not names & masks):
                what = f"The smart tool {name!r} has labels that no mask has: {', '.join(lacking)}. They get no answer."
                cure = "Give both tags the same labels in Settings > Labeling Interface > Code."
                yield Finding("backend", "warning", what, cure)


def _own_row(rows: list[dict[str, Any]], address: str) -> tuple[dict[str, Any] | None, Finding | None]:
    """Our ML backend among `rows`, and a finding if it is connected with another address or not at all."""
    exact = next((row for row in rows if same_address(row["url"], address)), None)
    if exact is not None:
        return exact, None
    shown = redact_url(address)
    what = f"The project is connected to {', '.join(redact_url(row['url']) for row in rows)}, not to {shown}"
    cure = f"Edit the URL in Settings > Model to {shown}, or set SCANQUEUE_PUBLIC_URL to the address used there."
    answers = [(row, ask_us(f"{redact_url(row['url']).rstrip('/')}/health")[0]) for row in rows]
    for row, answer in answers:
        if is_ours(answer):
            return row, Finding("backend", "warning", f"{what}, although scanqueue answers there too.", cure)
    for row, answer in answers:
        if may_host_our_plugin(answer):
            hosted = "that is a label-studio-ml server, which is correct if it hosts backend.plugin.ScanqueueBackend"
            return row, Finding("backend", "warning", f"{what}; {hosted}.", cure)
    return None, Finding("backend", "error", f"{what}.", cure)


def check_in_records(settings: Settings, row: Any, project: int) -> Iterator[Finding]:
    if row is not None:
        yield Finding("records", "ok", f"Project {project} is in the records of {settings.data_dir}.")
        return
    what = f"Project {project} is not in the records of {settings.data_dir}."
    cure = (
        "Connect scanqueue in Settings > Model, and run doctor with the --data-dir (SCANQUEUE_DATA_DIR) that "
        "`scanqueue serve` uses."
    )
    yield Finding("records", "error", what, cure)


def check_queue(
    store: Store, project: int, page: ProjectPage, titles: list[str], versions: Iterable[str]
) -> Iterator[Finding]:
    rounds = store.round_columns(project, "n", "published_at")
    known = {version_name(n) for n, _ in rounds}
    newest = rounds[-1][0] if rounds else -1
    if strange := sorted(v for v in versions if (n := round_of(v)) is not None and n > newest and v not in known):
        what = (
            f"The project has predictions {', '.join(strange[:4])} that these records do not know: another scanqueue "
            "writes to it, or the records were lost or restored."
        )
        cure = (
            "Connect only one scanqueue to a project. After a restore, nothing needs to be done: the next round gets a "
            "new number, and the old predictions stay unused."
        )
        yield Finding("queue", "warning", what, cure)
    if not any(at for _, at in rounds):
        yield Finding("queue", "ok", "No round is published yet. The first round sets what is served and how.")
        return
    version = version_name(newest)
    found = list(_not_served(page, version, titles))
    yield from found
    if not found:
        yield Finding("queue", "ok", f"Annotators are served {version} by ascending score.")


def _not_served(page: ProjectPage, version: str, titles: list[str]) -> Iterator[Finding]:
    again = "a running worker resets it within a minute"
    if not page.show_predictions:
        what = "Predictions are not shown, so neither the queue nor the masks are served (show_collab_predictions)."
        cure = f"Turn on Settings > Annotation > Use predictions to prelabel tasks; {again}."
        yield Finding("queue", "error", what, cure)
    elif page.model_version != version:
        cure = f"Select {version} in Settings > Annotation, under Use predictions to prelabel tasks; {again}."
        if page.model_version in titles:
            what = (
                f"The project serves the model {page.model_version!r} by title, which makes uncertainty sampling "
                f"random; it should serve the predictions {version}."
            )
        else:
            what = f"The project serves the predictions {page.model_version!r}, not {version}."
        yield Finding("queue", "error", what, cure)
    if page.sampling != SAMPLING:
        what = f"Tasks are served by {page.sampling!r}, not in queue order."
        cure = f"Choose Settings > Annotation > Task Sampling > {SAMPLING}; {again}."
        yield Finding("queue", "error", what, cure)


def check_annotators(page: ProjectPage, project: int) -> Iterator[Finding]:
    many = page.maximum_annotations
    if many > 1:
        what = f"Every task needs {many} annotations. Label Studio serves tasks in progress before the queue."
        cure = f'Set maximum_annotations to 1 (PATCH /api/projects/{project}/ with {{"maximum_annotations": 1}}).'
        yield Finding("annotators", "warning", what, cure)


def check_worker(settings: Settings, store: Store, project: int) -> Iterator[Finding]:
    """A worker is alive if it checked the project recently, is working, or picks up a request that we make now."""
    row = store.project(project)
    seen = row["seen_at"] if row else 0.0
    if _at_work(store, project):
        yield Finding("worker", "ok", "A worker is processing the project.")
    elif time.time() - seen < FRESH or _turns_to(settings, store, project):
        yield Finding("worker", "ok", "A worker is running.")
    else:
        since = f"for {(time.time() - seen) / 60:.0f} minutes" if seen else "yet"
        what = f"No worker has checked project {project} {since}, and none picked up a request."
        cure = (
            "Run `scanqueue worker` with this SCANQUEUE_DATA_DIR, or start `scanqueue serve` without --no-worker "
            "and check its log."
        )
        yield Finding("worker", "error", what, cure)


def _at_work(store: Store, project: int) -> bool:
    with store.lock(project) as idle:
        return not idle or store.progress(project) is not None


def _turns_to(settings: Settings, store: Store, project: int) -> bool:
    from backend.workers.worker import Queue

    queue = Queue(settings)
    queue.request(project)
    until = time.monotonic() + PICKED_UP
    while queue.waits(project) and not _at_work(store, project):
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def check_scans(store: Store, project: int, row: Any) -> Iterator[Finding]:
    if row["trouble"]:
        what, _, cure = str(row["trouble"]).partition(". ")
        cure = cure or "See the log of the worker."
        yield Finding("scans", "error", f"The last check failed: {what.rstrip('.')}.", cure)
    problems = [f"task {s['task']}: {s['problem']}" for s in store.scans(project) if s["problem"]]
    problems += [f"task {r['task']}: {r['problem']}" for r in store.labels(project) if r["problem"]]
    if problems:
        what = f"{len(problems)} scans or annotations cannot be read. The first one: {problems[0]}"
        cure = f"See the list of problems in `scanqueue status --project {project}`."
        yield Finding("scans", "warning", what, cure)
