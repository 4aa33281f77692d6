"""Settings of the service (environment) and of one project (JSON from Label Studio or the page).

Both are typed, frozen, read once, and reject unknown names, so that a misspelled setting is not
silently ignored.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from backend.errors import BadSetting
from backend.json_text import parse_json

PREFIX = "SCANQUEUE_"
UNITS = ("slice", "scan")  # units of selection: single images, or all slices of a volume
MOST_SCANS = 1_000_000  # upper limit of the settings that count scans
MOST = 10**9  # upper limit of the other whole numbers
MOST_THREADS = 1024
SECRET_BYTES = 2**16  # maximum size of a file with a secret
LONGEST = 1000  # letters of a project setting
SHOWN = 200  # letters of an invalid value that a message repeats
SECRETS = ("LABEL_STUDIO_API_KEY", "PASSWORD", "DATABASE_URL", "REDIS_URL")


@dataclass(frozen=True)
class Settings:
    """Configuration of a process.

    Each field `name` is read from the variable `SCANQUEUE_NAME`. Secrets can also be read from the
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
    dask_scheduler: str = ""
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
    trusted_proxies: tuple[str, ...] = ("127.0.0.1",)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read `SCANQUEUE_...` from `environ`. Raises BadSetting for unknown names and invalid values."""
        known = {f.name.upper(): f.name for f in fields(cls)}
        given: dict[str, str] = {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX):
                continue
            name = variable.removeprefix(PREFIX)
            if name.endswith("_FILE") and name.removesuffix("_FILE") in SECRETS:
                name = name.removesuffix("_FILE")
                text = _secret(variable, text)
            if name not in known:
                raise BadSetting(
                    f"{variable} is not a scanqueue setting. Known settings: "
                    + ", ".join(f"{PREFIX}{n}" for n in sorted(known))
                    + "."
                )
            if known[name] in given:
                raise BadSetting(f"{PREFIX}{name} and {PREFIX}{name}_FILE are both set; keep one.")
            given[known[name]] = text
        values: dict[str, Any] = {}
        for name, text in given.items():
            if text.strip():
                values[name] = _parse(name, text.strip())
        settings = cls(**values)
        settings.check()
        return settings

    def check(self) -> None:
        """Raise BadSetting if a value is invalid or values conflict."""
        for name in ("label_studio_url", "public_url"):
            url = getattr(self, name)
            if url and not is_http(url):
                raise BadSetting(f"{PREFIX}{name.upper()}={_shown(url)} is not an http:// or https:// address.")
        if self.redis_url and not _is_redis(self.redis_url):
            raise BadSetting(
                f"{PREFIX}REDIS_URL is not an address such as redis://:PASSWORD@redis:6379/0. "
                "In the password, write / as %2F, # as %23, ? as %3F and @ as %40."
            )
        if self.dask_scheduler and not re.fullmatch(r"(tcp|tls|ucx)://[^\s/]+:\d+", self.dask_scheduler):
            raise BadSetting(
                f"{PREFIX}DASK_SCHEDULER={_shown(self.dask_scheduler)} is not an address such as tcp://scheduler:8786."
            )
        if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d{1,3})?", self.device):
            raise BadSetting(f"{PREFIX}DEVICE={_shown(self.device)} is not a device; use auto, cpu, cuda or cuda:1.")
        if not 0 < self.port < 65536:
            raise BadSetting(f"{PREFIX}PORT={self.port} is not a port; use 1 to 65535.")
        if self.image_size and (self.image_size % 32 or not 32 <= self.image_size <= 2048):
            raise BadSetting(
                f"{PREFIX}IMAGE_SIZE={self.image_size} is invalid; use a multiple of 32 from 32 to 2048, or auto."
            )
        if self.training_steps < 0:
            raise BadSetting(f"{PREFIX}TRAINING_STEPS={self.training_steps} is negative; use 0 for the default.")
        if self.threads < 0:
            raise BadSetting(f"{PREFIX}THREADS={self.threads} is negative; use 0 for one per core.")
        if self.threads > MOST_THREADS:
            raise BadSetting(f"{PREFIX}THREADS={self.threads} is too large; use at most {MOST_THREADS}.")
        if self.hang_seconds < 10:
            raise BadSetting(f"{PREFIX}HANG_SECONDS={self.hang_seconds} is too short; use 10 or more.")
        if self.keep_models < 0:
            raise BadSetting(f"{PREFIX}KEEP_MODELS={self.keep_models} is negative; use 0 to keep every checkpoint.")
        if self.cache_days < 0:
            raise BadSetting(f"{PREFIX}CACHE_DAYS={self.cache_days} is negative; use 0 to keep cached files forever.")
        for proxy in self.trusted_proxies:
            if not _is_network(proxy):
                raise BadSetting(
                    f"{PREFIX}TRUSTED_PROXIES: {_shown(proxy)} is neither an IP address nor a network such as "
                    "10.1.2.0/24."
                )
        if self.log_format not in ("text", "json"):
            raise BadSetting(f"{PREFIX}LOG_FORMAT={_shown(self.log_format)} is not a log format; use text or json.")
        if bool(self.user) != bool(self.password):
            raise BadSetting(f"{PREFIX}USER and {PREFIX}PASSWORD must be set together; set both or neither.")
        if not is_loopback(self.host) and not self.user:
            raise BadSetting(
                f"{PREFIX}HOST={_shown(self.host)} is reachable from other machines, but {PREFIX}USER and "
                f"{PREFIX}PASSWORD are not set. Set both, or listen on 127.0.0.1."
            )

    def with_(self, **changes: Any) -> Settings:
        """A checked copy with `changes`. None leaves a field unchanged."""
        changed = replace(self, **{k: v for k, v in changes.items() if v is not None})
        changed.check()
        return changed


def _parse(name: str, text: str) -> Any:
    if name == "image_size" and text == "auto":
        return 0
    if name in ("port", "image_size", "training_steps", "threads", "hang_seconds", "keep_models", "cache_days"):
        try:
            number = int(text)
        except ValueError:
            raise BadSetting(f"{PREFIX}{name.upper()}={_shown(text)} is not a whole number.") from None
        if number > MOST:
            raise BadSetting(f"{PREFIX}{name.upper()}={_shown(number)} is too large; use at most {MOST}.")
        return number
    if name in ("data_dir", "weights_dir"):
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise BadSetting(
                f"{PREFIX}{name.upper()}={_shown(text)}: this user has no home folder; write the whole path."
            ) from None
    if name in ("image_hosts", "trusted_proxies"):
        return tuple(h.strip().lower() for h in text.replace(",", " ").split())
    if name in ("label_studio_url", "public_url"):
        return text.rstrip("/")
    return text


def _secret(variable: str, file: str) -> str:
    """The text of a file that may be a pipe, such as <(command) of a shell, but not an endless device."""
    try:
        with Path(file).open("rb") as opened:
            raw = opened.read(SECRET_BYTES + 1)
        if len(raw) > SECRET_BYTES:
            raise BadSetting(f"{variable}: {file!r} has more than {SECRET_BYTES >> 10} KiB, so it is not a secret.")
        return raw.decode().strip()
    except OSError as error:
        raise BadSetting(f"{variable}: cannot read {_shown(file)}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise BadSetting(f"{variable}: cannot read {file!r}: it is not UTF-8 text.") from None


def _shown(value: object) -> str:
    """An invalid value in a message, abbreviated."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def is_http(url: str) -> bool:
    """Whether it is a complete http:// or https:// address."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is not a port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url


def _is_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if the port is not a number
    except ValueError:
        return False
    known = url.startswith(("redis://", "rediss://", "unix://"))
    return known and (bool(parts.hostname) or not parts.netloc)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class ProjectSettings:
    """Settings of one project, as JSON in Label Studio's "extra params".

    cold_start_size  number of labelled scans before the first training
    round_size       number of new or changed labels before the next training
    queue_depth      number of scans that are published at once; 0: three rounds
    strategy         "default", a name from `sampling.strategies`, or COLD+MODEL: one for each phase
    uncertainty      aggregation of pixel entropy per scan: a name from `sampling.AGGREGATIONS`
    control_share    share of every order that is sampled at random, 0..0.5
    stratify_by      key of the task data that defines the strata of the strategy "stratified"
    alpha            weight of entropy in S(i), 0..1; 0: distance only, 1: entropy only
    retrain          "auto", or "button": only on request
    seed             random seed of map, clusters and training
    tolerance        a new model is refused if the 95 % interval of (new - active) is below -tolerance
    unit             unit of selection: "slice", single images, or "scan", all slices of a volume
    one_per_patient  "on": each patient or volume is chosen once before any is chosen again; "off"
    quick_model      "on": until a trained model draws better, a quick one draws masks from the second label on; "off"
    least_dice       expected Dice below which masks of the quick model are not shown, 0..1
    image            name of the <Image> tag to segment, where the label config has several; "": the first with masks
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
    image: str = ""
    one_per_patient: str = "on"
    quick_model: str = "on"
    least_dice: float = 0.3

    @property
    def depth(self) -> int:
        """`queue_depth`, or three rounds if it is not set; at least one round."""
        return max(self.queue_depth or 3 * self.round_size, self.round_size)

    @property
    def moments(self) -> tuple[str, str]:
        """The strategies for the cold start and with a model. Requires `strategy` as COLD+MODEL."""
        cold, plus, ranked = self.strategy.partition("+")
        return cold, ranked if plus else cold

    def with_strategy(self, strategy: str) -> ProjectSettings:
        """A copy with another strategy."""
        return replace(self, strategy=strategy)

    @classmethod
    def from_json(cls, given: str | Mapping[str, Any] | None) -> ProjectSettings:
        """Read `given`. Raises BadSetting with the key, the invalid value and the allowed values."""
        if not given:
            return cls()
        if isinstance(given, str):
            try:
                given = parse_json(given)
            except ValueError as error:
                raise BadSetting(f'extra params: invalid JSON: {error}. Example: {{"round_size": 10}}.') from None
        if not isinstance(given, Mapping):
            raise BadSetting('The extra params must be a JSON object, for example {"round_size": 10}.')
        return cls(**cls.checked(given))

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given`, validated and converted. Raises BadSetting as `from_json` does."""
        known = {f.name for f in fields(cls)}
        for key in given:
            if key not in known:
                raise BadSetting(f"{_shown(key)} is not a project setting. Known settings: {', '.join(sorted(known))}.")
        values: dict[str, Any] = dict(given)
        for key in ("cold_start_size", "round_size", "queue_depth", "seed"):
            low = 0 if key in ("seed", "queue_depth") else 1
            high = 2**31 - 1 if key == "seed" else MOST_SCANS
            if key in values and (type(values[key]) is not int or values[key] < low):
                raise BadSetting(f"{key} is {_shown(values[key])}; it must be a whole number, {low} or more.")
            if key in values and values[key] > high:
                raise BadSetting(f"{key} is {str(values[key])[:40]}; it must be at most {high}.")
        for key, most in (("alpha", 1), ("tolerance", 1), ("control_share", 0.5), ("least_dice", 1)):
            if key in values:
                number = values[key]
                whole = type(number) is int  # of any size, which not every float can hold
                if not (whole or (isinstance(number, float) and math.isfinite(number))):
                    raise BadSetting(f"{key} is {_shown(number)}; it must be a number from 0 to {most}.")
                if not 0 <= number <= most:
                    raise BadSetting(f"{key} is {_shown(number)}; it must be from 0 to {most}.")
                values[key] = float(number)
        for key in ("one_per_patient", "quick_model"):
            if values.get(key, "on") not in ("on", "off"):
                raise BadSetting(f'{key} is {_shown(values[key])}; it must be "on" or "off".')
        if values.get("retrain", "auto") not in ("auto", "button"):
            raise BadSetting(f'retrain is {_shown(values["retrain"])}; it must be "auto" or "button".')
        if values.get("unit", "slice") not in UNITS:
            raise BadSetting(f'unit is {_shown(values["unit"])}; it must be "slice" or "scan".')
        for key, what in (
            ("strategy", "a strategy name"),
            ("uncertainty", "the name of an aggregation"),
            ("stratify_by", "a key of the task data"),
            ("image", "the name of an <Image> tag"),
        ):
            if key in values and not (isinstance(values[key], str) and _storable(values[key])):
                raise BadSetting(f"{key} is {_shown(values[key])}; it must be {what}.")
            if key in values and len(values[key]) > LONGEST:
                raise BadSetting(f"{key} is {_shown(values[key])}; it must have at most {LONGEST} letters.")
        return values


def _storable(text: str) -> bool:
    """Whether every database can store the text: no NUL, no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
