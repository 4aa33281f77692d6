"""Runs the checks of `scanqueue doctor` in order.

Label Studio does not report most of these problems: a webhook that is never sent, a queue that is served
at random. The checks change nothing. If only a refusal reveals a problem, the request is one that Label
Studio cannot fulfil.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from backend.doctor.connection import check_address, check_reachable, check_token
from backend.doctor.finding import (
    Finding,
    explained,
    local_address,
)
from backend.doctor.project import (
    check_annotators,
    check_backend,
    check_in_records,
    check_label_config,
    check_project,
    check_queue,
    check_scans,
    check_worker,
)
from backend.doctor.service import (
    check_clicks,
    check_data_folder,
    check_embedder,
    check_encoder,
    check_job_queue,
    check_listening,
    check_server,
    suggest_next_step,
)
from backend.doctor.webhook import check_webhook
from backend.errors import ScanqueueError
from backend.facts import DISCONNECTED
from backend.label_studio.listing import ProjectPage
from backend.label_studio.studio import Studio
from backend.records.store import Store
from backend.settings import Settings


def examine(settings: Settings, project: int | None = None) -> list[Finding]:
    """Check this installation, then Label Studio and then, if `project` is given, that project.

    Never raises. A failed check becomes a finding, and the checks that depend on it are skipped.
    """
    with ExitStack() as stack:
        return _examined(settings, project, stack)


def _examined(settings: Settings, project: int | None, stack: ExitStack) -> list[Finding]:
    sheet = _Sheet()
    sheet.add("listening", check_listening(settings))
    sheet.add("data-folder", check_data_folder(settings))
    store = _records(settings, sheet)
    if store is not None:
        stack.callback(store.close)
    row = _row(store, project, sheet)
    address = settings.public_url or (row["backend_url"] if row else "") or local_address(settings)
    sheet.add("job-queue", check_job_queue(settings))
    sheet.add("server", check_server(settings, address))
    sheet.add("embedder", check_embedder(settings, row))
    sheet.add("encoder", check_encoder(settings))
    sheet.add("clicks", check_clicks(settings))

    studio = Studio(settings.label_studio_url, settings.label_studio_api_key, timeout=20)
    if not sheet.add("label-studio", check_reachable(studio)):
        return sheet.findings
    if not sheet.add("token", check_token(settings, studio)):
        return sheet.findings
    sheet.add("address", check_address(settings, address, studio))
    if project is None:
        sheet.add("next", suggest_next_step(settings, store, address))
        return sheet.findings
    pages: list[ProjectPage] = []
    if not sheet.add("project", check_project(studio, project, pages)):
        return sheet.findings
    page = pages[0]
    sheet.add("label-config", check_label_config(page, project, row))
    titles: list[str] = []
    sheet.add("backend", check_backend(settings, studio, project, address, titles, page))
    row = _row(store, project, sheet)
    if not sheet.add("records", check_in_records(settings, row, project)) or store is None or row is None:
        return sheet.findings
    if row["phase"] == DISCONNECTED:
        return sheet.findings  # its queue and webhook are Label Studio's own again
    sheet.add("webhook", check_webhook(settings, studio, project, address, row))
    sheet.add("queue", check_queue(store, project, page, titles, studio.model_versions(project)))
    sheet.add("annotators", check_annotators(page, project))
    sheet.add("worker", check_worker(settings, store, project))
    sheet.add("scans", check_scans(store, project, row))
    return sheet.findings


class _Sheet:
    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(self, check: str, found: Iterable[Finding]) -> bool:
        """Add findings. Returns True if they contain no error."""
        before = len(self.findings)
        try:
            self.findings.extend(found)
        except ScanqueueError as error:
            self.findings.append(explained(check, error))
        except Exception as error:
            what = f"The check {check!r} itself failed ({type(error).__name__})."
            self.findings.append(
                Finding(check, "error", what, "Report it with the output of `scanqueue doctor --json`.")
            )
        return not any(f.level == "error" for f in self.findings[before:])


# -- our side ---------------------------------------------------------------------------------


def _records(settings: Settings, sheet: _Sheet) -> Store | None:
    """Open the records if they exist. A check never creates them."""
    try:
        if not settings.database_url and not (settings.data_dir / "records.sqlite").exists():
            return None
        store = Store(settings.data_dir, settings.database_url, reading=True)
        store.check()
        return store
    except ScanqueueError as error:
        sheet.findings.append(explained("records", error))
        return None
    except Exception as error:  # database drivers raise their own types
        where = "SCANQUEUE_DATABASE_URL" if settings.database_url else str(settings.data_dir / "records.sqlite")
        what = f"Cannot open the records in {where} ({type(error).__name__})."
        cure = "Check that the database is running and that SCANQUEUE_DATABASE_URL and SCANQUEUE_DATA_DIR are correct."
        sheet.findings.append(Finding("records", "error", what, cure))
        return None


def _row(store: Store | None, project: int | None, sheet: _Sheet) -> Any:
    """The project's record, if it has one."""
    try:
        return store.project(project) if store is not None and project is not None else None
    except ScanqueueError as error:
        sheet.findings.append(explained("records", error))
        return None


# -- Label Studio -----------------------------------------------------------------------------


# -- one project ------------------------------------------------------------------------------
