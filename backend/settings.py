"""Settings of the service (environment) and of one project (JSON from Label Studio or the page).

Both are read once, typed, frozen, and refuse names they do not know: a misspelt setting
must not be silently ignored.
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from backend.errors import BadSetting

PREFIX = "SCANQUEUE_"
UNITS = ("slice", "scan")  # what can be chosen: images by themselves, or the slices of a volume together
MOST_SCANS = 1_000_000  # that a setting can count
SECRETS = ("LABEL_STUDIO_API_KEY", "PASSWORD", "DATABASE_URL", "REDIS_URL")


@dataclass(frozen=True)
class Settings:
    """Everything the process needs to know about its surroundings.

    Each field `name` is read from the variable `SCANQUEUE_NAME`; the secrets also from the
    file that `SCANQUEUE_NAME_FILE` names.
    """

    label_studio_url: str = "http://localhost:8080"
    label_studio_api_key: str = field(default="", repr=False)
    public_url: str = ""
    host: str = "127.0.0.1"
    port: int = 9090
    data_dir: Path = Path("scanqueue-data")
    database_url: str = field(default="", repr=False)
    redis_url: str = field(default="", repr=False)
    user: str = ""
    password: str = field(default="", repr=False)
    weights_dir: Path | None = None
    device: str = "auto"
    embedder: str = "auto"
    encoder: str = "auto"
    image_size: int = 0
    training_steps: int = 0
    threads: int = 0
    hang_seconds: int = 900
    keep_models: int = 20
    cache_days: int = 90
    log_format: str = "text"
    image_hosts: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read `SCANQUEUE_...` from `environ`. Raises BadSetting for unknown names and bad values."""
        known = {f.name.upper(): f.name for f in fields(cls)}
        given: dict[str, str] = {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX):
                continue
            name = variable.removeprefix(PREFIX)
            if name.endswith("_FILE") and name.removesuffix("_FILE") in SECRETS:
                name = name.removesuffix("_FILE")
                try:
                    text = Path(text).read_text(encoding="utf-8").strip()
                except OSError as error:
                    raise BadSetting(f"{variable}: cannot read {text!r}: {error.strerror}.") from error
                except UnicodeDecodeError:
                    raise BadSetting(f"{variable}: cannot read {text!r}: it is not UTF-8 text.") from None
            if name not in known:
                raise BadSetting(
                    f"{variable} is not a setting of scanqueue. Known: "
                    + ", ".join(f"{PREFIX}{n}" for n in sorted(known))
                    + "."
                )
            if known[name] in given:
                raise BadSetting(f"{PREFIX}{name} is given both directly and by {PREFIX}{name}_FILE; keep one.")
            given[known[name]] = text
        values: dict[str, Any] = {}
        for name, text in given.items():
            if text.strip():
                values[name] = _parse(name, text.strip())
        settings = cls(**values)
        settings.check()
        return settings

    def check(self) -> None:
        """Raise BadSetting when the settings cannot work together."""
        for name in ("label_studio_url", "public_url"):
            url = getattr(self, name)
            if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc):
                raise BadSetting(f"{PREFIX}{name.upper()}={url!r} is not an http:// or https:// address.")
        if self.redis_url and not _is_redis(self.redis_url):
            raise BadSetting(
                f"{PREFIX}REDIS_URL is not an address such as redis://:PASSWORD@redis:6379/0. "
                "In a password write / as %2F, # as %23, ? as %3F and @ as %40."
            )
        if not 0 < self.port < 65536:
            raise BadSetting(f"{PREFIX}PORT={self.port} is not a port; use 1 to 65535.")
        if self.image_size and (self.image_size % 32 or not 32 <= self.image_size <= 2048):
            raise BadSetting(
                f"{PREFIX}IMAGE_SIZE={self.image_size} cannot be used; "
                "take a multiple of 32 from 32 to 2048, or 0 for the default of the device."
            )
        if self.training_steps < 0:
            raise BadSetting(f"{PREFIX}TRAINING_STEPS={self.training_steps} is negative; 0 is the device's default.")
        if self.threads < 0:
            raise BadSetting(f"{PREFIX}THREADS={self.threads} is negative; 0 means one per core.")
        if self.hang_seconds < 10:
            raise BadSetting(f"{PREFIX}HANG_SECONDS={self.hang_seconds} is too short; take 10 or more.")
        if self.keep_models < 0:
            raise BadSetting(f"{PREFIX}KEEP_MODELS={self.keep_models} is negative; 0 keeps every checkpoint.")
        if self.cache_days < 0:
            raise BadSetting(f"{PREFIX}CACHE_DAYS={self.cache_days} is negative; 0 keeps cached files for ever.")
        if self.log_format not in ("text", "json"):
            raise BadSetting(f"{PREFIX}LOG_FORMAT={self.log_format!r} is not a form of the log; take text or json.")
        if bool(self.user) != bool(self.password):
            raise BadSetting(f"{PREFIX}USER and {PREFIX}PASSWORD belong together; set both or neither.")
        if not is_loopback(self.host) and not self.user:
            raise BadSetting(
                f"{PREFIX}HOST={self.host!r} can be reached from other machines, and no {PREFIX}USER and "
                f"{PREFIX}PASSWORD are set. Set both, or listen on 127.0.0.1."
            )

    def with_(self, **changes: Any) -> Settings:
        """A checked copy with `changes`; None means: leave as it is."""
        changed = replace(self, **{k: v for k, v in changes.items() if v is not None})
        changed.check()
        return changed


def _parse(name: str, text: str) -> Any:
    if name in ("port", "image_size", "training_steps", "threads", "hang_seconds", "keep_models", "cache_days"):
        try:
            return int(text)
        except ValueError:
            raise BadSetting(f"{PREFIX}{name.upper()}={text!r} is not a whole number.") from None
    if name in ("data_dir", "weights_dir"):
        return Path(text).expanduser()
    if name == "image_hosts":
        return tuple(h.strip().lower() for h in text.replace(",", " ").split())
    if name in ("label_studio_url", "public_url"):
        return text.rstrip("/")
    return text


def _is_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # a ValueError when there is another thing than a number in its place
    except ValueError:
        return False
    known = url.startswith(("redis://", "rediss://", "unix://"))
    return known and (bool(parts.hostname) or not parts.netloc)


def is_loopback(host: str) -> bool:
    """True when `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class ProjectSettings:
    """What a lab may choose for one project, as JSON in Label Studio's "extra params".

    cold_start_size  labelled scans before the first model is trained
    round_size       new or changed labels before the next one is trained
    queue_depth      how many scans of the order are published at once
    strategy         "default", name of a strategy in `sampling.strategies`, or COLD+MODEL, one for each moment
    uncertainty      what stands for the uncertainty of a scan: name of one of `sampling.AGGREGATIONS`
    control_share    share of every order that is drawn at random, 0..0.5
    stratify_by      key of the task data that the strategy "stratified" tells scans apart by
    alpha            weight of the entropy in S(i), 0..1; 0 is distance alone, 1 is entropy alone
    retrain          "auto", or "button": only when somebody asks
    seed             of the map, the clusters and the training
    tolerance        how much validation Dice a new model may lose and still replace the old one
    unit             what is chosen: "slice", every image by itself, or "scan", the slices of a volume together
    """

    cold_start_size: int = 20
    round_size: int = 10
    queue_depth: int = 0
    strategy: str = "default"
    uncertainty: str = "image"
    control_share: float = 0.0
    stratify_by: str = ""
    alpha: float = 0.5
    retrain: str = "auto"
    seed: int = 0
    tolerance: float = 0.01
    unit: str = "slice"

    @property
    def depth(self) -> int:
        """`queue_depth`, or three rounds when it is not set; never less than one round."""
        return max(self.queue_depth or 3 * self.round_size, self.round_size)

    @property
    def moments(self) -> tuple[str, str]:
        """The strategies of the cold start and with a model, once `strategy` is written out as COLD+MODEL."""
        cold, plus, ranked = self.strategy.partition("+")
        return cold, ranked if plus else cold

    def with_strategy(self, strategy: str) -> ProjectSettings:
        """The same with another strategy."""
        return replace(self, strategy=strategy)

    @classmethod
    def from_json(cls, given: str | Mapping[str, Any] | None) -> ProjectSettings:
        """Read `given`. Raises BadSetting naming the key, what was wrong and what is allowed."""
        if not given:
            return cls()
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except ValueError as error:
                raise BadSetting(f'extra params are not JSON: {error}. Example: {{"round_size": 10}}.') from None
        if not isinstance(given, Mapping):
            raise BadSetting('extra params must be a JSON object, for example {"round_size": 10}.')
        return cls(**cls.checked(given))

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` as the fields take it. Raises BadSetting naming the key, what was wrong and what is allowed."""
        known = {f.name for f in fields(cls)}
        for key in given:
            if key not in known:
                raise BadSetting(f"{key!r} is not a project setting. Known: {', '.join(sorted(known))}.")
        values: dict[str, Any] = dict(given)
        for key in ("cold_start_size", "round_size", "queue_depth", "seed"):
            low = 0 if key in ("seed", "queue_depth") else 1
            high = 2**31 - 1 if key == "seed" else MOST_SCANS
            if key in values and (type(values[key]) is not int or values[key] < low):
                raise BadSetting(f"{key} is {values[key]!r}; it must be a whole number, {low} or more.")
            if key in values and values[key] > high:
                raise BadSetting(f"{key} is {str(values[key])[:40]}; it must be at most {high}.")
        for key, most in (("alpha", 1), ("tolerance", 1), ("control_share", 0.5)):
            if key in values:
                number = values[key]
                if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                    raise BadSetting(f"{key} is {number!r}; it must be a number from 0 to {most}.")
                if not 0 <= number <= most:
                    raise BadSetting(f"{key} is {number}; it must be from 0 to {most}.")
                values[key] = float(number)
        if values.get("retrain", "auto") not in ("auto", "button"):
            raise BadSetting(f'retrain is {values["retrain"]!r}; it must be "auto" or "button".')
        if values.get("unit", "slice") not in UNITS:
            raise BadSetting(f'unit is {values["unit"]!r}; it must be "slice" or "scan".')
        for key, what in (
            ("strategy", "the name of a strategy"),
            ("uncertainty", "the name of a measure"),
            ("stratify_by", "a key of the task data"),
        ):
            if key in values and not (isinstance(values[key], str) and _storable(values[key])):
                raise BadSetting(f"{key} is {values[key]!r}; it must be {what}.")
        return values


def _storable(text: str) -> bool:
    """Whether every database takes the text: no NUL, no half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
