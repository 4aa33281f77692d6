"""Checks of this installation: address, data folder, job queue, server, weights."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from backend.doctor.finding import (
    Finding,
    ask_outside,
    ask_us,
    explained,
    is_ours,
    local_address,
)
from backend.errors import WeightsMissing
from backend.label_studio.client import redact_url
from backend.records.private import open_to_others
from backend.records.store import Store
from backend.settings import Settings, is_loopback

FREE_BYTES = 2 * 10**9


def check_listening(settings: Settings) -> Iterator[Finding]:
    if not is_loopback(settings.host) and not settings.user:
        yield Finding(
            "listening",
            "error",
            f"The server would listen on {settings.host}, which other machines can reach, without credentials.",
            "Set SCANQUEUE_USER and SCANQUEUE_PASSWORD, or SCANQUEUE_HOST=127.0.0.1.",
        )
    else:
        how = "with credentials" if settings.user else "for this machine only"
        yield Finding("listening", "ok", f"The server listens on {settings.host}:{settings.port}, {how}.")


def check_data_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir
    try:
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    except PermissionError:
        cure = "Run `scanqueue doctor` as the user who runs `scanqueue serve`, or set SCANQUEUE_DATA_DIR."
        yield Finding("data-folder", "error", f"This user may not enter {folder}.", cure)
        return
    cure = f"Give the user that runs scanqueue write access to {there}, or set SCANQUEUE_DATA_DIR to another folder."
    if not there.is_dir():
        yield Finding("data-folder", "error", f"{there} is a file; expected a folder.", cure)
        return
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        writable = os.access(there, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        yield Finding("data-folder", "error", f"The data folder {folder} is not writable.", cure)
        return
    if folder.exists() and (readable := open_to_others(folder)):
        yield Finding(
            "data-folder",
            "warning",
            f"Other users of this machine have rights to {readable[0]}.",
            f"Start `scanqueue serve` as the owner of {folder}, which corrects that, or run chmod -R go= {folder}.",
        )
    free = shutil.disk_usage(there).free
    if free < FREE_BYTES:
        yield Finding(
            "data-folder",
            "warning",
            f"Only {free / 1e9:.1f} GB are free on the disk of the data folder {folder}.",
            "Free disk space, or set SCANQUEUE_DATA_DIR to a folder on a larger disk.",
        )
    else:
        new = "" if folder.exists() else " (created at the first start)"
        yield Finding("data-folder", "ok", f"The data folder {folder} is writable{new}; {free / 1e9:.0f} GB free.")


def check_job_queue(settings: Settings) -> Iterator[Finding]:
    from backend.workers.worker import Queue

    if not settings.redis_url:
        if (settings.data_dir / "jobs.sqlite").exists():
            Queue(settings)  # raises if it is damaged
        return
    where = urlsplit(settings.redis_url)
    name = f"Redis at {where.hostname}:{where.port or 6379}"
    if Queue(settings).answers():
        yield Finding("job-queue", "ok", f"{name} answers.")
    else:
        what = f"{name} does not answer. No work is done until it does."
        cure = "Check that it is running and that SCANQUEUE_REDIS_URL and its password are correct."
        yield Finding("job-queue", "error", what, cure)


def suggest_next_step(settings: Settings, store: Store | None, address: str) -> Iterator[Finding]:
    """The next step of the setup."""
    known = store.projects() if store is not None else []
    if known:
        names = ", ".join(map(str, known[:10])) + (", ..." if len(known) > 10 else "")
        yield Finding("next", "ok", f"Connected projects: {names}. To check one: scanqueue doctor --project {known[0]}")
        return
    login = " with Basic Authentication, SCANQUEUE_USER and SCANQUEUE_PASSWORD" if settings.user else ""
    what = (
        f"No project is connected yet. Next, in Label Studio: Settings > Model > Connect Model, {address}{login}; "
        "then run scanqueue doctor --project with its ID."
    )
    yield Finding("next", "ok", what)


def check_server(settings: Settings, address: str) -> Iterator[Finding]:
    answer, why = ask_us(f"{address}/health")
    shown = redact_url(address)
    if not is_ours(answer):
        local = local_address(settings)
        beside = ""
        if local != address and is_ours(ask_us(f"{local}/health")[0]):
            beside = f" The server does answer at {local}."
        if answer is None:
            cure = (
                "Start `scanqueue serve`, or set SCANQUEUE_PUBLIC_URL to the address at which Label Studio reaches it."
            )
            yield Finding("server", "error", f"No server answers at {shown} ({why}).{beside}", cure)
        else:
            yield Finding(
                "server",
                "error",
                f"{shown}/health is answered by a program other than scanqueue "
                f"({answer.status_code}, {answer.headers.get('content-type', 'no type')}).{beside}",
                "Let the proxy forward /health, /setup, /predict and /webhook unchanged, without a login of its own, "
                "or correct SCANQUEUE_PUBLIC_URL.",
            )
        return
    yield Finding("server", "ok", f"scanqueue answers at {shown}.")
    if settings.user:
        answer, _ = ask_us(f"{address}/api/projects", auth=(settings.user, settings.password))
        if answer is not None and answer.status_code == 401:
            yield Finding(
                "server",
                "error",
                f"{shown} rejects the credentials in these settings.",
                "Start the server with this SCANQUEUE_USER and SCANQUEUE_PASSWORD, and let the proxy forward the "
                "Authorization header.",
            )


def check_embedder(settings: Settings, row: Any) -> Iterator[Finding]:
    from backend.learning.embedders import BIOMEDCLIP_FOLDER, CLIP_CONFIG, CLIP_WEIGHTS, open_embedder

    name, why = (row["embedder"], row["embedder_why"]) if row else ("", "")
    if not name or settings.embedder not in ("auto", name):
        try:
            found = open_embedder(settings.embedder, weights_dir=settings.weights_dir, device="cpu", download=False)
        except WeightsMissing as error:
            from huggingface_hub import constants

            if constants.HF_HUB_OFFLINE or ask_outside(constants.ENDPOINT) is None:
                yield explained("embedder", error)
            else:
                what = (
                    f"The weights of {settings.embedder} are not on this machine yet. They are downloaded at first use."
                )
                cure = "To work offline, set SCANQUEUE_WEIGHTS_DIR to a folder that contains them."
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
            f"The map is computed from plain pixels ({why}).",
            f"Put {CLIP_CONFIG} and {CLIP_WEIGHTS[0]} of BiomedCLIP into {where}, or a timm folder (config.json, "
            "model.safetensors) beside it, and set SCANQUEUE_WEIGHTS_DIR to the parent folder.",
        )
    elif wrong := _wrong_file(settings, name):
        yield wrong
    else:
        yield Finding("embedder", "ok", f"Embedder {name}: {why}.")


def _wrong_file(settings: Settings, name: str) -> Finding | None:
    """The fault of the embedder's weights file, if there is one. The checksum is not verified here."""
    from backend.learning.weights import found_file, weights_of
    from backend.learning.weights_check import verify

    row = weights_of(name)
    folder = settings.weights_dir or Path()
    if row is None or found_file(row, settings.weights_dir) is None:
        return None
    bad = next((v for v in verify(row, folder, content=False) if v.bad), None)
    if bad is None:
        return None
    return Finding("embedder", "error", bad.what, f"Replace the file, then run `scanqueue weights verify {row.key}`.")


def check_clicks(settings: Settings) -> Iterator[Finding]:
    """Weights of networks for clicks that are there, but not the library that they need."""
    from backend.learning.sam_library import lacking
    from backend.learning.weights import WEIGHTS

    for row in WEIGHTS:
        if lacks := lacking(row, settings.weights_dir):
            what, _, cure = lacks.rpartition(". ")  # the path may have one, too
            yield Finding("clicks", "warning", f"{what}.", f"{cure}.")


def check_encoder(settings: Settings) -> Iterator[Finding]:
    from backend.learning.learner import Learner
    from backend.learning.segmenters import Segmenter, SegmenterSpec
    from backend.learning.weights import BUILTIN

    training = Learner(settings).training
    weights = training.encoder_weights
    if isinstance(weights, Path) or weights == BUILTIN:
        size, widths = training.image_size, training.decoder_channels
        spec = SegmenterSpec(training.architecture, training.encoder, 1, size, ("label",), widths)
        Segmenter.create(spec, encoder_weights=weights)
    from_where = {
        "None": "random weights",
        "imagenet": "ImageNet weights, downloaded at the first training",
        BUILTIN: "ImageNet weights, installed with scanqueue",
    }
    start = from_where.get(str(weights), f"the weights in {weights}")
    yield Finding("encoder", "ok", f"Encoder {training.encoder} on {training.device}; training starts from {start}.")
