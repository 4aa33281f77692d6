"""Leaves a project as it was before us: its settings in Label Studio, and on request our records."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from backend.errors import ProjectGone, StudioRefused
from backend.facts import DELETED, DISCONNECTED, SAMPLING, round_of
from backend.label_studio.listing import ProjectPage
from backend.label_studio.studio import Studio
from backend.loop.connection import addresses, our_backends
from backend.loop.context import LoopContext
from backend.records.backup import held
from backend.records.backup_format import Say
from backend.records.forgetting import forget_project
from backend.records.store import Store
from backend.settings import Settings


@dataclass(frozen=True)
class Before:
    """The settings of Label Studio that we change. The defaults are Label Studio's own."""

    sampling: str = "Sequential sampling"
    model_version: str = ""
    show_predictions: bool = True


def remember(context: LoopContext, project: int) -> None:
    """Record the project's settings in Label Studio before we change them for the first time."""
    studio, store = context.studio, context.store
    if context.row(project)["settings_before"]:
        return
    page = studio.project(project)
    if round_of(page.model_version) is not None:
        return  # an older version of scanqueue has already changed them
    ours, _ = our_backends(studio, store, context.settings, project)
    # when a backend is connected, Label Studio selects its title, which will not exist without the backend
    version = "" if page.model_version in [b.get("title") for b in ours] else page.model_version
    before = Before(page.sampling, version, page.show_predictions)
    store.set_project(project, settings_before=json.dumps(asdict(before)))


def disconnect(
    studio: Studio,
    store: Store,
    settings: Settings,
    project: int,
    *,
    forget: bool = False,
    wait: float = 600.0,
    say: Say = print,
) -> None:
    """Undo what we set in Label Studio, and with `forget` delete our records. May be repeated.

    Raises BadSetting for an unknown project, ProjectBusy, and ProjectGone for a deleted one unless it is forgotten.
    """
    store.known_project(project)
    with held(store, project, wait, say):
        try:
            for done in _left(studio, store, settings, project):
                say(done)
        except ProjectGone as error:
            if not forget:
                raise ProjectGone(f"{error} Add --forget to remove it from scanqueue's lists.") from error
            store.set_project(project, phase=DELETED, reason=str(error))
        if forget:
            forget_project(store, project)
            say(
                f"The records of project {project} were deleted from {store.folder}, with its models and masks. Kept: "
                "its tasks, annotations and predictions in Label Studio, the identities file, backups, and cached "
                "pixels until they expire (SCANQUEUE_CACHE_DAYS)."
            )
        else:
            say(
                f"Project {project} is disconnected. Kept: its tasks, annotations and predictions in Label Studio, and "
                "its records here. Connect scanqueue again in Settings > Model to continue, or add --forget to delete "
                "the records."
            )


def _left(studio: Studio, store: Store, settings: Settings, project: int) -> list[str]:
    """Remove our backend, webhook and tab, and restore the settings; returns what was done."""
    done = []
    studio.project(project)  # raises ProjectGone; the requests below answer 404 without saying what is missing
    ours, _ = our_backends(studio, store, settings, project)
    row = store.known_project(project)
    for backend in ours:  # first: from here on, no worker writes to the project
        studio.remove_backend(backend["id"])
    if ours:
        done.append("Removed scanqueue from Settings > Model.")
    urls = [f"{url.rstrip('/')}/webhook" for url in addresses(settings, row)]
    if studio.remove_webhooks(project, urls, row["secret"]):
        done.append("Removed the webhook.")
    if studio.remove_view(project):
        done.append("Removed the tab scanqueue from the Data Manager.")
    done += _restored(studio, project, row["settings_before"])
    reason = "Disconnected by `scanqueue disconnect`. Connect scanqueue in Settings > Model to continue."
    store.set_project(project, settings_before="", phase=DISCONNECTED, reason=reason, trouble="")
    return done


def _restored(studio: Studio, project: int, known: str) -> list[str]:
    """Restore the settings that still have our values. Others were changed by somebody since, and stay."""
    page, before = studio.project(project), Before(**json.loads(known or "{}"))
    after = _wanted(page, before)
    if after == Before(page.sampling, page.model_version, page.show_predictions):
        return []
    note = "" if known else " (Label Studio's defaults, as the earlier values are not recorded)"
    try:
        studio.serve(project, **asdict(after))
    except StudioRefused:
        if not after.model_version:
            raise
        note += f" (the model version {after.model_version!r} no longer exists)"
        after = Before(after.sampling, "", after.show_predictions)
        studio.serve(project, **asdict(after))
    shown = "on" if after.show_predictions else "off"
    return [
        f"Restored the settings: sampling {after.sampling!r}, model version {after.model_version or 'none'!r}, "
        f"predictions {shown}{note}."
    ]


def _wanted(page: ProjectPage, before: Before) -> Before:
    ours = round_of(page.model_version) is not None
    return Before(
        before.sampling if page.sampling == SAMPLING else page.sampling,
        before.model_version if ours else page.model_version,
        before.show_predictions if ours else page.show_predictions,
    )
