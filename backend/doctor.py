"""`scanqueue doctor`: what can be wrong between a lab's Label Studio and us, each with its cure.

Most of these traps are silent in Label Studio: a webhook that is never sent, a queue that is served
at random. Nothing is changed to find them: where only a refusal tells, the request is made
impossible to fulfil.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from backend.errors import BadSetting, NotSegmentable, ScanqueueError, WeightsMissing
from backend.facts import SAMPLING, SECRET_HEADER, LabelConfig, version_name
from backend.label_studio.client import read_token, redact_url
from backend.label_studio.listing import ProjectPage
from backend.label_studio.studio import Studio
from backend.label_studio.webhooks import webhook_advice
from backend.loop.project_settings import project_settings
from backend.records.store import Store
from backend.settings import Settings, is_loopback

TESTED = "1.23.2"
FREE_BYTES = 2 * 10**9
FRESH = 180.0  # seconds; a worker sweeps every minute
PICKED_UP = 8.0  # seconds within which a worker turns to a project that was touched
EXPIRY_NOTICE = 14 * 86400.0
WANTED_ACTIONS = (
    "ANNOTATION_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATIONS_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
    "PROJECT_UPDATED",
)
NEW_TOKEN = (
    "Create one in Label Studio, Account & Settings > Personal Access Token, and set SCANQUEUE_LABEL_STUDIO_API_KEY "
    "to the whole text that is shown there once, or write it into the file that SCANQUEUE_LABEL_STUDIO_API_KEY_FILE "
    "names. Then start scanqueue and its workers again."
)
BOTH_GUARDS_OFF = (
    "Start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16 "
    "(or with both ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false)."
)

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    check  what was looked at; several findings may share it
    cure   one sentence that names the setting or menu; "" when nothing needs one
    """

    check: str
    level: Level
    what: str
    cure: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(settings: Settings, project: int | None = None) -> list[Finding]:
    """Look at our side, at Label Studio and, if one is given, at a project; in that order.

    Never raises: a check that fails becomes a finding, and what depends on it is left out.
    """
    with ExitStack() as stack:
        return _examined(settings, project, stack)


def _examined(settings: Settings, project: int | None, stack: ExitStack) -> list[Finding]:
    sheet = _Sheet()
    sheet.add("listening", _listening(settings))
    sheet.add("data-folder", _data_folder(settings))
    store = _records(settings, sheet)
    if store is not None:
        stack.callback(store.close)
    row = store.project(project) if store is not None and project is not None else None
    address = settings.public_url or (row["backend_url"] if row else "") or _local(settings)
    sheet.add("job-queue", _job_queue(settings))
    sheet.add("server", _server(settings, address))
    sheet.add("embedder", _embedder(settings, row))
    sheet.add("encoder", _encoder(settings))

    studio = Studio(settings.label_studio_url, settings.label_studio_api_key, timeout=20)
    if not sheet.add("label-studio", _reachable(studio)):
        return sheet.findings
    if not sheet.add("token", _token(settings, studio)):
        return sheet.findings
    sheet.add("address", _address(settings, address, studio))
    if project is None:
        sheet.add("next", _next(settings, store, address))
        return sheet.findings
    pages: list[ProjectPage] = []
    if not sheet.add("project", _project(studio, project, pages)):
        return sheet.findings
    page = pages[0]
    sheet.add("label-config", _label_config(page, project))
    titles: list[str] = []
    sheet.add("backend", _backend(settings, studio, project, address, titles))
    row = store.project(project) if store is not None else None
    if not sheet.add("records", _known(settings, row, project)) or store is None or row is None:
        return sheet.findings
    sheet.add("webhook", _webhook(settings, studio, project, address, row))
    sheet.add("queue", _queue(store, project, page, titles))
    sheet.add("annotators", _annotators(page, project))
    sheet.add("worker", _worker(settings, store, project))
    sheet.add("scans", _scans(store, project, row))
    return sheet.findings


class _Sheet:
    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(self, check: str, found: Iterable[Finding]) -> bool:
        """Take over findings; True when there was no error among them."""
        before = len(self.findings)
        try:
            self.findings.extend(found)
        except ScanqueueError as error:
            self.findings.append(_explained(check, error))
        except Exception as error:
            what = f"The check {check!r} failed itself ({type(error).__name__})."
            self.findings.append(
                Finding(check, "error", what, "Report it with the output of `scanqueue doctor --json`.")
            )
        return not any(f.level == "error" for f in self.findings[before:])


def _explained(check: str, error: ScanqueueError) -> Finding:
    """Our errors say first what is wrong and then what to do."""
    what, _, cure = str(error).partition(". ")
    cure = cure or "See the log of scanqueue."
    return Finding(check, "error", what.rstrip(".") + ".", cure.rstrip(".") + ".")


# -- our side ---------------------------------------------------------------------------------


def _listening(settings: Settings) -> Iterator[Finding]:
    if not is_loopback(settings.host) and not settings.user:
        yield Finding(
            "listening",
            "error",
            f"The server would listen on {settings.host}, which other machines reach, without credentials.",
            "Set SCANQUEUE_USER and SCANQUEUE_PASSWORD, or SCANQUEUE_HOST=127.0.0.1.",
        )
    else:
        how = "with credentials" if settings.user else "for this machine only"
        yield Finding("listening", "ok", f"The server listens on {settings.host}:{settings.port}, {how}.")


def _data_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    cure = f"Let the user that runs scanqueue write to {there}, or set SCANQUEUE_DATA_DIR to another folder."
    if not there.is_dir():
        yield Finding("data-folder", "error", f"{there} is a file, not a folder.", cure)
        return
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        writable = os.access(there, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        yield Finding("data-folder", "error", f"The data folder {folder} cannot be written to.", cure)
        return
    free = shutil.disk_usage(there).free
    if free < FREE_BYTES:
        yield Finding(
            "data-folder",
            "warning",
            f"Only {free / 1e9:.1f} GB are free where the data folder {folder} lies.",
            "Make room, or set SCANQUEUE_DATA_DIR to a folder on a larger disk.",
        )
    else:
        new = "" if folder.exists() else " (it is made at the first start)"
        yield Finding(
            "data-folder", "ok", f"The data folder {folder} can be written to{new}; {free / 1e9:.0f} GB free."
        )


def _job_queue(settings: Settings) -> Iterator[Finding]:
    if not settings.redis_url:
        return
    from backend.workers.worker import Queue

    where = urlsplit(settings.redis_url)
    name = f"Redis at {where.hostname}:{where.port or 6379}"
    if Queue(settings).answers():
        yield Finding("job-queue", "ok", f"{name} answers.")
    else:
        what = f"{name} does not answer, so nothing is done until it does."
        cure = "Check that it runs, and that SCANQUEUE_REDIS_URL with its password is right."
        yield Finding("job-queue", "error", what, cure)


def _next(settings: Settings, store: Store | None, address: str) -> Iterator[Finding]:
    """Where to go from here, for whoever sets this up."""
    known = store.projects() if store is not None else []
    if known:
        names = ", ".join(map(str, known[:10])) + (", ..." if len(known) > 10 else "")
        yield Finding("next", "ok", f"Connected projects: {names}. More of one: scanqueue doctor --project {known[0]}")
        return
    login = " with Basic Authentication, SCANQUEUE_USER and SCANQUEUE_PASSWORD" if settings.user else ""
    what = (
        f"No project is connected yet. Next, in Label Studio: Settings > Model > Connect Model, {address}{login}; "
        "then: scanqueue doctor --project and its number."
    )
    yield Finding("next", "ok", what)


def _records(settings: Settings, sheet: _Sheet) -> Store | None:
    """The records, if there are any; none are begun for the sake of a check."""
    if not settings.database_url and not (settings.data_dir / "records.sqlite").exists():
        return None
    try:
        return Store(settings.data_dir, settings.database_url)
    except Exception as error:  # whatever the driver of the database raises
        where = "SCANQUEUE_DATABASE_URL" if settings.database_url else str(settings.data_dir / "records.sqlite")
        what = f"The records in {where} cannot be opened ({type(error).__name__})."
        cure = "Check that the database runs and that SCANQUEUE_DATABASE_URL and SCANQUEUE_DATA_DIR are right."
        sheet.findings.append(Finding("records", "error", what, cure))
        return None


def _local(settings: Settings) -> str:
    """Our address as seen from this machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _ask(url: str, **more: Any) -> tuple[httpx.Response | None, str]:
    """Our own server's answer, or why there is none."""
    try:
        with httpx.Client(timeout=5, trust_env=False, verify=httpx.create_ssl_context()) as client:  # SSL_CERT_FILE
            return client.request(more.pop("method", "GET"), url, **more), ""
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return None, "its certificate is not trusted"
        return None, type(error).__name__


def _is_ours(answer: httpx.Response | None) -> bool:
    return _health(answer).get("model_class") == "scanqueue"


def _may_host_our_plugin(answer: httpx.Response | None) -> bool:
    """Whether a label-studio-ml server answers: 2.x names the class it hosts, 1.0.9 does not."""
    health = _health(answer)
    return health.get("model_class") == "ScanqueueBackend" or ("model_dir" in health and "v2" in health)


def _health(answer: httpx.Response | None) -> dict[str, Any]:
    try:
        found = answer.json() if answer is not None else None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _server(settings: Settings, address: str) -> Iterator[Finding]:
    answer, why = _ask(f"{address}/health")
    shown = redact_url(address)
    if not _is_ours(answer):
        local = _local(settings)
        beside = ""
        if local != address and _is_ours(_ask(f"{local}/health")[0]):
            beside = f" The server itself does answer at {local}."
        if answer is None:
            cure = (
                "Start `scanqueue serve`, or set SCANQUEUE_PUBLIC_URL to the address at which Label Studio reaches it."
            )
            yield Finding("server", "error", f"No server answers at {shown} ({why}).{beside}", cure)
        else:
            yield Finding(
                "server",
                "error",
                f"{shown}/health is answered by something else than scanqueue "
                f"({answer.status_code}, {answer.headers.get('content-type', 'no type')}).{beside}",
                "Let the proxy pass /health, /setup, /predict and /webhook on unchanged, without a login of its own, "
                "or correct SCANQUEUE_PUBLIC_URL.",
            )
        return
    yield Finding("server", "ok", f"scanqueue answers at {shown}.")
    if settings.user:
        answer, _ = _ask(f"{address}/api/projects", auth=(settings.user, settings.password))
        if answer is not None and answer.status_code == 401:
            yield Finding(
                "server",
                "error",
                f"{shown} does not accept the credentials of these settings.",
                "Start the server with this SCANQUEUE_USER and SCANQUEUE_PASSWORD, and let the proxy pass the "
                "Authorization header on.",
            )


def _embedder(settings: Settings, row: Any) -> Iterator[Finding]:
    from backend.learning.embedders import BIOMEDCLIP_FOLDER, CLIP_CONFIG, CLIP_WEIGHTS, open_embedder

    name, why = (row["embedder"], row["embedder_why"]) if row else ("", "")
    if not name or settings.embedder not in ("auto", name):
        try:
            found = open_embedder(settings.embedder, weights_dir=settings.weights_dir, device="cpu", download=False)
        except WeightsMissing as error:
            from huggingface_hub import constants

            if constants.HF_HUB_OFFLINE or _ask_outside(constants.ENDPOINT) is None:
                yield _explained("embedder", error)
            else:
                what = (
                    f"The weights of {settings.embedder} are not on this machine yet; they are downloaded at first use."
                )
                cure = "To work without internet, set SCANQUEUE_WEIGHTS_DIR to a folder that holds them."
                yield Finding("embedder", "warning", what, cure)
            return
        name = found.name
        why = found.why.replace("cannot be downloaded (downloads are turned off)", "not downloaded for this check")
    if name == "pixels" and settings.embedder == "auto":
        folder = settings.weights_dir / BIOMEDCLIP_FOLDER if settings.weights_dir else None
        where = f"{folder}/" if folder else f"a folder {BIOMEDCLIP_FOLDER}/"
        yield Finding(
            "embedder",
            "warning",
            f"The map is drawn from plain pixels ({why}).",
            f"Put {CLIP_CONFIG} and {CLIP_WEIGHTS[0]} of BiomedCLIP into {where}, or a timm folder (config.json, "
            "model.safetensors) beside it, and let SCANQUEUE_WEIGHTS_DIR name the folder that holds them.",
        )
    elif wrong := _wrong_file(settings, name):
        yield wrong
    else:
        yield Finding("embedder", "ok", f"Embedder {name}: {why}.")


def _wrong_file(settings: Settings, name: str) -> Finding | None:
    """What is wrong with the embedder's file in the weights folder, if one is there; its checksum is left out."""
    from backend.learning.weights import found_file, verify, weights_of

    row = weights_of(name)
    if row is None or settings.weights_dir is None or found_file(row, settings.weights_dir) is None:
        return None
    bad = next((v for v in verify(row, settings.weights_dir, content=False) if v.bad), None)
    if bad is None:
        return None
    return Finding("embedder", "error", bad.what, f"Put it right, then see `scanqueue weights verify {row.key}`.")


def _ask_outside(url: str) -> httpx.Response | None:
    try:
        return httpx.head(url, timeout=3)
    except (httpx.HTTPError, OSError, ValueError):
        return None


def _encoder(settings: Settings) -> Iterator[Finding]:
    from backend.learning.learner import Learner
    from backend.learning.segmenters import Segmenter, SegmenterSpec

    training = Learner(settings).training
    weights = training.encoder_weights
    if isinstance(weights, Path):
        size, widths = training.image_size, training.decoder_channels
        spec = SegmenterSpec(training.architecture, training.encoder, 1, size, ("label",), widths)
        Segmenter.create(spec, encoder_weights=weights)
    from_where = {"None": "random weights", "imagenet": "ImageNet weights, downloaded at the first training"}
    start = from_where.get(str(weights), f"the weights in {weights}")
    yield Finding("encoder", "ok", f"Segmentation trains {training.encoder} on {training.device} from {start}.")


# -- Label Studio -----------------------------------------------------------------------------


def _reachable(studio: Studio) -> Iterator[Finding]:
    try:
        version = studio.version()
    except ScanqueueError as error:
        cure = (
            "Start Label Studio, and set SCANQUEUE_LABEL_STUDIO_URL to the address at which this machine reaches it, "
            "with its sub-path if it has one."
        )
        yield Finding("label-studio", "error", str(error), cure)
        return
    yield Finding("label-studio", "ok", f"Label Studio {version} answers at {studio.url}.")
    if version != TESTED:
        what = f"This is Label Studio {version}; scanqueue was tested with {TESTED}."
        cure = f"Install label-studio=={TESTED}, or watch the first round closely."
        yield Finding("version", "warning", what, cure)


def _token(settings: Settings, studio: Studio) -> Iterator[Finding]:
    key = settings.label_studio_api_key
    token = read_token(key)
    now = time.time()
    if token.kind == "none":
        yield Finding("token", "error", "There is no token for Label Studio.", NEW_TOKEN)
        return
    if token.kind == "access":
        what = "The token is an access token, which lives for five minutes; a personal access token is wanted."
        yield Finding("token", "error", what, NEW_TOKEN)
        return
    if token.expires is not None and token.expires < now:
        day = time.strftime("%Y-%m-%d", time.gmtime(token.expires))
        yield Finding("token", "error", f"The personal access token expired on {day}.", NEW_TOKEN)
        return
    try:
        user = studio.whoami()
    except ScanqueueError as error:
        yield _refused_token(token.kind, key, error)
        return
    name = "personal access token" if token.kind == "personal" else "legacy token"
    yield Finding("token", "ok", f"The {name} of {user} is accepted.")
    if token.expires is not None and token.expires < now + EXPIRY_NOTICE:
        days = (token.expires - now) / 86400
        yield Finding("token", "warning", f"The personal access token expires in {days:.0f} days.", NEW_TOKEN)


def _refused_token(kind: str, key: str, error: ScanqueueError) -> Finding:
    if "legacy token authentication has been disabled" in str(error):
        what = (
            "The token is a legacy token, and this organization has legacy tokens turned off "
            "(the access_token that Label Studio sends to ML backends is one of them)."
        )
        cure = f"{NEW_TOKEN.removesuffix('.')}; or turn on Organization > API Tokens Settings > Legacy Tokens."
        return Finding("token", "error", what, cure)
    if "refuses the token" not in str(error) and "not usable" not in str(error):
        return _explained("token", error)
    if kind == "personal":
        what = "Label Studio does not accept the personal access token: it was revoked, or is another Label Studio's."
    elif len(key) == 40:
        what = "Label Studio does not know this legacy token."
    else:
        what = "The token is neither a personal access token nor a legacy token of this Label Studio."
    return Finding("token", "error", what, NEW_TOKEN)


def _address(settings: Settings, address: str, studio: Studio) -> Iterator[Finding]:
    """Whether Label Studio would call us at `address`, and send webhooks there: two guards, set apart."""
    shown = redact_url(address)
    host = urlsplit(address).hostname or ""
    webhook = studio.webhook_objection(f"{address}/webhook")
    backend = studio.backend_objection(address)
    if is_loopback(host) and not is_loopback(urlsplit(studio.url).hostname or ""):
        what = f"Label Studio runs at {studio.url}, where {shown} means its own machine, not this one."
        cure = "Set SCANQUEUE_PUBLIC_URL to the address at which Label Studio reaches this machine."
        yield Finding("address", "warning", what, cure)
    if "valid URL" in webhook:
        what = f"Label Studio connects to {shown} but creates no webhook for it: the host {host!r} has no dot."
        yield Finding("address", "error", what, webhook_advice(address))
        webhook = ""
    unknown = next((said for said in (backend, webhook) if "resolve hostname" in said), "")
    if unknown:
        what = f"Label Studio cannot look up the host of {shown}: {unknown}"
        cure = "Set SCANQUEUE_PUBLIC_URL to a name or address that Label Studio's machine knows."
        yield Finding("address", "error", what, cure)
    elif webhook and backend:
        what = f"Label Studio calls neither an ML backend nor a webhook at {shown}: {webhook}"
        yield Finding("address", "error", what, BOTH_GUARDS_OFF)
    elif webhook:
        what = (
            f"Label Studio takes {shown} as ML backend but sends it no webhook: {webhook} "
            "ML_BLOCK_LOCAL_IP=false opens only half of the way."
        )
        yield Finding("address", "error", what, BOTH_GUARDS_OFF)
    elif backend:
        what = f"Label Studio sends webhooks to {shown} but takes no ML backend there: {backend}"
        yield Finding("address", "error", what, BOTH_GUARDS_OFF)
    elif "." in host or host == "localhost" or ":" in host:
        yield Finding("address", "ok", f"Label Studio may call {shown}, and send webhooks there.")


# -- one project ------------------------------------------------------------------------------


def _project(studio: Studio, project: int, pages: list[ProjectPage]) -> Iterator[Finding]:
    page = studio.project(project)
    pages.append(page)
    yield Finding("project", "ok", f"Project {project} is {page.title!r}, with {page.tasks} tasks.")


def _label_config(page: ProjectPage, project: int) -> Iterator[Finding]:
    try:
        config = LabelConfig.from_parsed(page.parsed_config, project)
    except NotSegmentable as error:
        yield _explained("label-config", error)
        return
    tools = " and ".join(dict.fromkeys(tag.kind for tag in config.tags))
    labels = ", ".join(config.labels)
    yield Finding("label-config", "ok", f"Masks are drawn with {tools} on ${config.image_key}: {labels}.")


def _backend(settings: Settings, studio: Studio, project: int, address: str, titles: list[str]) -> Iterator[Finding]:
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
    if len(rows) > 1:
        first = redact_url(rows[0]["url"])
        asked = "ours" if rows[0] is ours else first
        what = f"The project has {len(rows)} ML backends; Label Studio asks only the first one, {asked}."
        cure = "Remove the other ones in Settings > Model."
        yield Finding("backend", "warning" if rows[0] is ours else "error", what, cure)
    if "@" in urlsplit(ours["url"]).netloc:
        what = "The backend's URL holds a password, which every member can read in Label Studio."
        cure = "Give user and password in Settings > Model as Basic Authentication instead of in the URL."
        yield Finding("backend", "warning", what, cure)
    try:
        project_settings(ours.get("extra_params"))
    except BadSetting as error:
        cure = "Correct the extra params in Settings > Model, Edit."
        yield Finding("backend", "error", f"The extra params of the model cannot be used: {error}", cure)
    if ours.get("state") == "CO":
        yield Finding("backend", "ok", f"Label Studio reaches us as ML backend {ours.get('title')!r}.")
    elif settings.user and ours.get("auth_method") != "BASIC_AUTH" and "@" not in urlsplit(ours["url"]).netloc:
        what = "Label Studio calls us without credentials, and SCANQUEUE_USER is set."
        cure = "Enter SCANQUEUE_USER and SCANQUEUE_PASSWORD in Settings > Model, Edit, as Basic Authentication."
        yield Finding("backend", "error", what, cure)
    else:
        said = re.sub(r"//[^/@\s]+@", "//", str(ours.get("error_message") or "it does not answer"))[:200]
        what = f"Label Studio does not get through to {redact_url(ours['url'])}: {said}"
        cure = (
            "Check from Label Studio's machine that this address answers, correct it or its user and password in "
            "Settings > Model, Edit, and set SCANQUEUE_PUBLIC_URL to the same."
        )
        yield Finding("backend", "error", what, cure)


def _own_row(rows: list[dict[str, Any]], address: str) -> tuple[dict[str, Any] | None, Finding | None]:
    """Which ML backend is ours, and what to say when it is connected under another address, or not at all."""
    exact = next((row for row in rows if _same(row["url"], address)), None)
    if exact is not None:
        return exact, None
    shown = redact_url(address)
    what = f"The project is connected to {', '.join(redact_url(row['url']) for row in rows)}, not to {shown}"
    cure = f"Edit the URL in Settings > Model to {shown}, or set SCANQUEUE_PUBLIC_URL to the address used there."
    answers = [(row, _ask(f"{redact_url(row['url']).rstrip('/')}/health")[0]) for row in rows]
    for row, answer in answers:
        if _is_ours(answer):
            return row, Finding("backend", "warning", f"{what}, though scanqueue answers there too.", cure)
    for row, answer in answers:
        if _may_host_our_plugin(answer):
            hosted = "that is a label-studio-ml server, which is right if it hosts backend.plugin.ScanqueueBackend"
            return row, Finding("backend", "warning", f"{what}; {hosted}.", cure)
    return None, Finding("backend", "error", f"{what}.", cure)


def _same(one: str, other: str) -> bool:
    return redact_url(one).rstrip("/") == redact_url(other).rstrip("/")


def _known(settings: Settings, row: Any, project: int) -> Iterator[Finding]:
    if row is not None:
        yield Finding("records", "ok", f"Project {project} is in the records of {settings.data_dir}.")
        return
    what = f"Project {project} is not in the records of {settings.data_dir}."
    cure = (
        "Connect scanqueue in Settings > Model, and give doctor the --data-dir (SCANQUEUE_DATA_DIR) that "
        "`scanqueue serve` uses."
    )
    yield Finding("records", "error", what, cure)


def _webhook(settings: Settings, studio: Studio, project: int, address: str, row: Any) -> Iterator[Finding]:
    url = f"{address}/webhook"
    shown = redact_url(url)
    hooks = studio.webhooks(project)
    same = [hook for hook in hooks if _same(hook.get("url") or "", url)]
    old = [h for h in hooks if h not in same and ((h.get("headers") or {}).get(SECRET_HEADER) or _like_ours(h))]
    itself = "a running worker mends it within a minute"
    if not same:
        objection = studio.webhook_objection(url)
        elsewhere = f"; it goes to {', '.join(redact_url(h['url']) for h in old)}" if old else ""
        what = f"Project {project} has no webhook to {shown}{elsewhere}."
        cure = webhook_advice(url) if objection else f"Add it in Settings > Webhooks > Add Webhook; {itself}, too."
        yield Finding("webhook", "error", what, cure)
        return
    if old:
        there = ", ".join(redact_url(h["url"]) for h in old)
        what = f"A webhook to another address is left over, {there}; every Submit waits for it."
        yield Finding("webhook", "warning", what, "Delete it in Settings > Webhooks.")
    found = list(_hook_faults(settings, same, row["secret"], shown, itself))
    yield from found
    if found:
        return
    if settings.user:
        body = {"action": "DOCTOR", "project": {"id": project}}
        answer, _ = _ask(url, method="POST", json=body, headers={SECRET_HEADER: row["secret"]})
        if answer is not None and answer.status_code == 401:
            what = f"{shown} does not get the header {SECRET_HEADER} that the webhook carries."
            yield Finding("webhook", "error", what, f"Let the proxy pass the header {SECRET_HEADER} on.")
            return
    yield Finding("webhook", "ok", f"Label Studio reports changes to {shown}.")


def _hook_faults(
    settings: Settings, hooks: list[dict[str, Any]], secret: str, shown: str, itself: str
) -> Iterator[Finding]:
    """What is wrong with the best of the webhooks that go to us."""
    faults = [list(_faults_of(settings, hook, secret, shown, itself)) for hook in hooks]
    yield from min(faults, key=len)


def _faults_of(settings: Settings, hook: dict[str, Any], secret: str, shown: str, itself: str) -> Iterator[Finding]:
    where = f"in Settings > Webhooks at {shown}"
    if not hook.get("is_active"):
        cure = f"Turn on Is Active {where}; {itself}."
        yield Finding("webhook", "error", f"The webhook to {shown} is not active.", cure)
    if not hook.get("send_payload"):
        what = f"The webhook to {shown} carries no payload, so it does not say which project it is about."
        yield Finding("webhook", "error", what, f"Turn on Send payload {where}; {itself}.")
    if not hook.get("send_for_all_actions"):
        actions = hook.get("actions") or []
        missing = [a for a in WANTED_ACTIONS if a not in actions]
        cure = f"Turn on Send for all actions {where}; {itself}."
        if not actions:
            what = f"The webhook to {shown} is sent for no action at all."
            yield Finding("webhook", "error", what, cure)
        elif missing:
            what = f"The webhook to {shown} is not sent for {', '.join(missing)}."
            yield Finding("webhook", "warning", what, cure)
    carried = (hook.get("headers") or {}).get(SECRET_HEADER)
    if settings.user and carried != secret and "@" not in urlsplit(hook.get("url") or "").netloc:
        wrong = "another" if carried else "no"
        what = f"The webhook to {shown} carries {wrong} {SECRET_HEADER}, so we refuse it (SCANQUEUE_USER is set)."
        cure = (
            f"Let a worker run, which sets the header {SECRET_HEADER} of the webhook within a minute: Label Studio "
            "sends webhooks without the Basic Authentication of Settings > Model."
        )
        yield Finding("webhook", "error", what, cure)


def _like_ours(hook: Mapping[str, Any]) -> bool:
    """Label Studio itself names the webhook of an ML backend so."""
    return str(hook.get("url") or "").rstrip("/").endswith("/webhook")


def _queue(store: Store, project: int, page: ProjectPage, titles: list[str]) -> Iterator[Finding]:
    rounds = store.rounds(project, picks=False)
    if not any(r["published_at"] for r in rounds):
        yield Finding("queue", "ok", "No round is published yet; the first one sets what is served and how.")
        return
    version = version_name(rounds[-1]["n"])
    found = list(_not_served(page, version, titles))
    yield from found
    if not found:
        yield Finding("queue", "ok", f"Annotators are served {version} by ascending score.")


def _not_served(page: ProjectPage, version: str, titles: list[str]) -> Iterator[Finding]:
    again = "a running worker sets it again within a minute"
    if not page.show_predictions:
        what = "Predictions are not shown, so neither the queue nor the masks are served (show_collab_predictions)."
        cure = f"Turn on Settings > Annotation > Use predictions to prelabel tasks; {again}."
        yield Finding("queue", "error", what, cure)
    elif page.model_version != version:
        cure = f"Select {version} in Settings > Annotation, under Use predictions to prelabel tasks; {again}."
        if page.model_version in titles:
            what = (
                f"The project serves the model {page.model_version!r} by its title, which makes uncertainty sampling "
                f"random; it should serve the predictions {version}."
            )
        else:
            what = f"The project serves the predictions {page.model_version!r}, not {version}."
        yield Finding("queue", "error", what, cure)
    if page.sampling != SAMPLING:
        what = f"Tasks are served by {page.sampling!r}, not in the order of the queue."
        cure = f"Choose Settings > Annotation > Task Sampling > {SAMPLING}; {again}."
        yield Finding("queue", "error", what, cure)


def _annotators(page: ProjectPage, project: int) -> Iterator[Finding]:
    many = page.maximum_annotations
    if many > 1:
        what = f"Every task is wanted {many} times: Label Studio serves tasks in progress before the queue."
        cure = f'Set maximum_annotations to 1 (PATCH /api/projects/{project}/ with {{"maximum_annotations": 1}}).'
        yield Finding("annotators", "warning", what, cure)


def _worker(settings: Settings, store: Store, project: int) -> Iterator[Finding]:
    """Alive when it looked lately, is at work, or turns to the project now that we touch it."""
    row = store.project(project)
    seen = row["seen_at"] if row else 0.0
    if _at_work(store, project):
        yield Finding("worker", "ok", "A worker is at work on the project.")
    elif time.time() - seen < FRESH or _turns_to(settings, store, project):
        yield Finding("worker", "ok", "A worker runs.")
    else:
        since = f"for {(time.time() - seen) / 60:.0f} minutes" if seen else "yet"
        what = f"No worker has looked at project {project} {since}, and none turns to it now."
        cure = (
            "Run `scanqueue worker` with this SCANQUEUE_DATA_DIR, or start `scanqueue serve` without --no-worker "
            "and see its log."
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


def _scans(store: Store, project: int, row: Any) -> Iterator[Finding]:
    if row["trouble"]:
        what, _, cure = str(row["trouble"]).partition(". ")
        cure = cure or "See the log of the worker."
        yield Finding("scans", "error", f"The last look ended in trouble: {what.rstrip('.')}.", cure)
    problems = [f"task {s['task']}: {s['problem']}" for s in store.scans(project) if s["problem"]]
    problems += [f"task {r['task']}: {r['problem']}" for r in store.labels(project) if r["problem"]]
    if problems:
        what = f"{len(problems)} scans or annotations cannot be read, the first one: {problems[0]}"
        cure = f"See the list of problems in `scanqueue status --project {project}`."
        yield Finding("scans", "warning", what, cure)
