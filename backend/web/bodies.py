"""Request bodies: read within a size limit, checked by hand, rejected with a sentence.

They are not declared as pydantic models: a body of /predict may have 64 MiB, and one that is too large is rejected
while it is being received.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from backend.web import texts

BODY_BYTES = 64 * 2**20  # largest body of /predict, which contains whole tasks with their annotations
SMALL_BODY_BYTES = 8 * 2**20  # largest body elsewhere; a webhook about 5,000 new tasks has 2.4 MB
BODY_SECONDS = 100  # for the whole body to arrive; Label Studio itself waits as long for an answer
MAX_PROJECT = 10**15  # exclusive upper bound for the numbers of projects and tasks


class BadRequest(Exception):
    """The request is invalid; the text gives the reason."""

    code = 400


class TooLarge(BadRequest):
    code = 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request is larger than {limit >> 20} MiB.")


class Incomplete(BadRequest):
    code = 408

    def __init__(self) -> None:
        super().__init__("The request ended, or paused for too long, before all of it arrived.")


class WrongSecret(BadRequest):
    code = 403

    def __init__(self, project: int) -> None:
        super().__init__(
            f"This secret does not belong to project {project}. The webhook of that project must send its own secret; "
            "scanqueue configures it automatically."
        )


class UnknownProject(BadRequest):
    code = 404

    def __init__(self, project: int) -> None:
        super().__init__(texts.text("error.unknown_project", project=project))


def size_limit(request: Request) -> int:
    """Largest body of this request, in bytes."""
    return BODY_BYTES if request.url.path == "/predict" else SMALL_BODY_BYTES


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body is {}. Raises BadRequest."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            content = await _content(request)
    except (TimeoutError, ClientDisconnect):
        raise Incomplete from None
    try:
        body = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        raise BadRequest("The request body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest("The request body must be a JSON object.")
    return body


async def _content(request: Request) -> bytes:
    size, parts = 0, []
    async for part in request.stream():
        size += len(part)
        if size > size_limit(request):
            raise TooLarge(size_limit(request))
        parts.append(part)
    return b"".join(parts)


def require_json_type(request: Request) -> None:
    """Reject other content types: without CORS, no page of another site can send application/json."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise BadRequest("Send this as application/json.")


def project_number(body: dict[str, Any]) -> int:
    """The project's number from "4.1795404647" (/setup, /predict) or {"id": 4, ...} (/webhook)."""
    given = body.get("project")
    if isinstance(given, dict):
        given = given.get("id")
    number = str(given).partition(".")[0]
    if not (number.isascii() and number.isdigit()) or len(number) > 15:
        raise BadRequest('"project" must name a Label Studio project, for example "4.1795404647".')
    return int(number)


def whole_number(body: dict[str, Any], name: str) -> int:
    number = body.get(name)
    if type(number) is not int or not 0 <= number < (2**31 if name == "change" else MAX_PROJECT):
        raise BadRequest(f'"{name}" must be a whole number.')
    return number


def task_numbers(body: dict[str, Any]) -> list[int]:
    tasks = body.get("tasks")
    if not isinstance(tasks, list) or not all(type(t) is int and 0 <= t < MAX_PROJECT for t in tasks):
        raise BadRequest('"tasks" must be a list of task numbers.')
    return tasks
