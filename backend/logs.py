"""Logging as text for people or JSON for machines, without secrets.

Every line, ours or a library's, passes through `Redactor`: it replaces tokens, passwords and the query strings
of URLs, truncates long lines, and escapes control characters so that they cannot forge a second line.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pythonjsonlogger.json import JsonFormatter
from rich.console import Console
from rich.logging import RichHandler

from backend.settings import Settings

GONE = "***"
LINE = 1000  # maximum characters per line; a Label Studio response can have megabytes
READ = 4 * LINE  # characters that are searched for secrets; the end is not shown, as it may be half a secret
LINES = 200  # maximum lines per record, including tracebacks
SHORTEST = 4  # minimum length of a known secret to search for; shorter ones match ordinary words
NOISY = ("httpx", "httpcore", "huey", "filelock", "urllib3", "openTSNE", "alembic", "PIL")

NO_ADVICE = ("Unsupported upgrade request", "No supported WebSocket library")  # uvicorn's: anyone can cause these lines

_ABOUT = re.compile(r"project (\d+)(?:, task (\d+))?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PATTERNS = (
    (re.compile(r"eyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?"), GONE),  # a JSON web token
    (re.compile(r"(authorization|cookie|x-scanqueue-secret)([\"']?\s*[:=,]\s*)(?:b?[\"'][^\"']*[\"']|[^\"'{},;\n]+)",
                re.I), rf"\1\2{GONE}"),
    (re.compile(r"\b(Basic|Bearer|Token) +(?=[a-z]*[A-Z0-9=+/])[\w=+/.~-]{6,}"), rf"\1 {GONE}"),
    (re.compile(r"""([\"'](?:\w*_)?(?:token|password|secret|refresh|access|api_key)\\*[\"']\s*:\s*)\\*[\"'][^\"']*[\"']""",
                re.I), rf'\1"{GONE}"'),
    (re.compile(r"\b[0-9a-f]{40}\b"), GONE),  # a legacy token of Label Studio
    (re.compile(r"(\w://)[^\s/?#]*@"), rf"\1{GONE}@"),
    (re.compile(r"((?:https?://|/)[^\s?\"'<>]*)\?[^\s\"'<>]+"), rf"\1?{GONE}"),  # may be signed
)  # fmt: skip


class Redactor:
    """Removes secrets from log text.

    secrets  known secrets, removed in plain and in URL-quoted form
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {form for secret in secrets for form in (secret, quote(secret, safe=""), unquote(secret))}
        longest_first = sorted((s for s in known if len(s) >= SHORTEST), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def line(self, text: str) -> str:
        """`text` as one line of bounded length without secrets."""
        cut = len(text) > READ
        text = text[:READ]
        if self._known is not None:
            text = self._known.sub(GONE, text)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
        if cut:
            text = text[: -LINE // 2]
        return f"{text[:LINE]}... (cut)" if cut or len(text) > LINE else text

    def lines(self, text: str) -> str:
        """Redacted multi-line `text`, such as a traceback. Only the end of a long text is kept."""
        found = [self.line(line) for line in text.splitlines()]
        return "\n".join(found if len(found) <= LINES else ["... (cut)", *found[-LINES:]])


class TextFormatter(logging.Formatter):
    """`format`, and the traceback below it, redacted."""

    def __init__(self, redactor: Redactor, form: str | None = None, date: str | None = None) -> None:
        super().__init__(form, date)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        clean = _clean(record, self._redactor)
        trace = self._redactor.lines(_trace(self, record))
        return "\n".join(filter(None, [super().format(clean), trace]))


class LinesFormatter(JsonFormatter):
    """One JSON object per line: time, level, logger, message; project and task if known; error with traceback.

    Other attributes that libraries attach to their records are ignored.
    """

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        clean = _clean(record, self._redactor)
        clean.exc_text = self._redactor.lines(_trace(self, record))
        return super().format(clean)

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        message = record.getMessage()
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["level"] = record.levelname
        log_data["logger"] = record.name
        log_data["message"] = message
        about = _ABOUT.match(message)
        if about:
            log_data["project"] = int(about[1])
            if about[2]:
                log_data["task"] = int(about[2])
        if record.exc_text:
            log_data["error"] = record.exc_text


def log_to(settings: Settings | None = None, level: str = "INFO") -> None:
    """Log to stderr in the format of the settings, without their secrets."""
    form = settings.log_format if settings is not None else "text"
    redactor = Redactor(_secrets(settings) if settings is not None else ())
    handler: logging.Handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(LinesFormatter(redactor))
    elif sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, rich_tracebacks=False)
        handler.setFormatter(TextFormatter(redactor, "%(message)s", "[%X]"))
    else:
        handler.setFormatter(TextFormatter(redactor, "%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # a hostile file can cause tens of thousands of warnings
    logging.getLogger("uvicorn.error").addFilter(_useful)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel("WARNING")
    sys.excepthook = _died
    threading.excepthook = _thread_died


def _useful(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(NO_ADVICE)


def _secrets(settings: Settings) -> list[str]:
    found = [settings.label_studio_api_key, settings.password]
    for url in (settings.database_url, settings.redis_url):
        authority = urlsplit(url).netloc.rpartition("@")[0]
        found.append(authority.partition(":")[2])
    return [secret for secret in found if secret]


def _clean(record: logging.LogRecord, redactor: Redactor) -> logging.LogRecord:
    """A copy with a redacted message and no traceback. Notes a record whose arguments do not fit."""
    try:
        message = record.getMessage()
    except Exception as error:
        message = f"{record.msg} (its arguments do not fit: {type(error).__name__})"
    clean = logging.makeLogRecord(vars(record))
    clean.msg, clean.args = redactor.line(message), None
    clean.exc_info = clean.exc_text = clean.stack_info = None
    return clean


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_info:
        return formatter.formatException(record.exc_info)
    return record.exc_text or record.stack_info or ""


def _died(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("scanqueue").critical("ended by a failure", exc_info=(kind, error, trace))


def _thread_died(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        where = args.thread.name if args.thread is not None else "?"
        trace = (args.exc_type, args.exc_value, args.exc_traceback)
        logging.getLogger("scanqueue").error("the thread %s ended by a failure", where, exc_info=trace)
