"""Dockerfile and containers without Docker: bubblewrap with the same files, user, capabilities and commands.

A Dockerfile is executed instruction by instruction in a folder that becomes the root of the containers. This
machine's /usr and Python replace its base image. Containers share the network of the tests.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

PYTHON = Path(sys.base_prefix)
PATH = f"{PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Docker's defaults, as far as they are needed here
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP")


def need_isolation() -> None:
    """Skip (or in CI, fail) unless containers work and no connection can leave this machine."""
    routes = Path("/proc/net/route").read_text().splitlines()[1:] if Path("/proc/net/route").exists() else ["?"]
    missing = [name for name in ("bwrap", "setpriv", "nsenter", "docker-compose") if shutil.which(name) is None]
    reason = ""
    if missing:
        reason = f"not installed: {', '.join(missing)}; on Debian: apt-get install bubblewrap util-linux docker-compose"
    elif os.getuid() != 0 or routes:
        reason = "run as root and under scripts/offline, as `make test` does"
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@dataclass(frozen=True)
class Image:
    """What a container is started from. `root` is its file system; only `build` writes to it."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = "0:0"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    folder: str = "/"
    binds: Mapping[str, str] = field(default_factory=dict)  # further read-only parts of this machine


def bare_root(root: Path) -> Path:
    """An empty root file system; /usr is this machine's."""
    for name in ("dev", "etc", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr", "var/lib", "var/log"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(os.readlink(Path("/", name)))
    subprocess.run(["cp", "-a", "/etc/.", str(root / "etc")], check=True)
    (root / "etc" / "resolv.conf").unlink(missing_ok=True)
    (root / "etc" / "resolv.conf").write_text("")
    return root


class Dockerfile:
    """Supports the instructions that ours uses; any other is an error, so that none is silently ignored."""

    def __init__(self, text: str, context: Path, scratch: Path, arguments: Mapping[str, str]) -> None:
        self.context, self.scratch, self.arguments = context, scratch, arguments
        self.ignored = _Ignored(context)
        self.stages: dict[str, Image] = {}
        self.given: dict[str, str] = {}
        self.healthcheck: list[str] = []
        joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.M))
        self.steps = [line.partition(" ")[::2] for line in joined.splitlines() if line.strip()]

    def build(self) -> Image:
        """Execute the file; returns the image of its last stage."""
        image, name = Image(Path()), ""
        for instruction, rest in self.steps:
            if instruction == "FROM":
                base, _, name = rest.partition(" AS ")
                assert re.fullmatch(r"python:3\.1[12]-slim", base), base
                root = bare_root(self.scratch / f"stage-{len(self.stages)}-{name or 'final'}")
                image = Image(root, {"PATH": PATH, "HOME": "/root"})
                self.given = {}
            elif instruction == "ARG":
                key, _, default = rest.partition("=")
                self.given[key] = self.arguments.get(key, default)
            elif instruction == "ENV":
                pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
                values = {k: re.sub(r"\$(\w+)", lambda m, e=image.environment: e[m[1]], v) for k, v in pairs.items()}
                image = replace(image, environment={**image.environment, **values})
            elif instruction == "WORKDIR":
                (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
                image = replace(image, folder=rest)
            elif instruction == "COPY":
                self._copy(image, shlex.split(rest))
            elif instruction == "RUN":
                self._run(image, rest)
            elif instruction == "USER":
                image = replace(image, user=rest)
            elif instruction in ("ENTRYPOINT", "CMD"):
                field_ = "entrypoint" if instruction == "ENTRYPOINT" else "command"
                image = replace(image, **{field_: tuple(json.loads(rest))})
            elif instruction == "HEALTHCHECK":
                self.healthcheck = json.loads(rest[rest.index("CMD") + 3 :])
            else:
                assert instruction == "EXPOSE", f"the Dockerfile uses {instruction}, which is not followed here"
            self.stages[name or "final"] = image
        return image

    def _copy(self, image: Image, words: list[str]) -> None:
        *sources, target = [w for w in words if not w.startswith("--")]
        origin = next((w.removeprefix("--from=") for w in words if w.startswith("--from=")), "")
        place = image.root / os.path.normpath(f"{image.folder}/{target}").lstrip("/")
        for source in sources:
            if origin:
                place.parent.mkdir(parents=True, exist_ok=True)
                whole = self.stages[origin].root / source.lstrip("/")
                subprocess.run(["cp", "-al", str(whole), str(place)], check=True)
            elif (self.context / source).is_dir():
                shutil.copytree(self.context / source, place, ignore=self.ignored)
            else:
                assert not self.ignored(str(self.context), [source]), f".dockerignore leaves {source} out"
                shutil.copy(self.context / source, place)

    def _run(self, image: Image, command: str) -> None:
        """Run as root, with network access for packages."""
        network = []
        if inherited := os.environ.get("OUTSIDE_NETWORK"):
            network = ["nsenter", f"--net={inherited}", "--"]
        environment = {**image.environment, **self.given}
        passed = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "UV_", "SSL_")) or k.endswith("_proxy")}
        cache = _cached_wheels(image.root)
        resolv = ["--ro-bind", "/etc/resolv.conf", "/etc/resolv.conf"]
        line = [*network, *sandbox(image, write=True, environment={**passed, **environment}), *resolv]
        line += ["--chdir", image.folder, "--cap-add", "ALL", "--", "sh", "-ec", command]
        done = subprocess.run(line, text=True, capture_output=True, check=False)
        if cache is not None:
            shutil.rmtree(cache)
        assert done.returncode == 0, f"RUN {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


class _Ignored:
    """The patterns of .dockerignore: all but what is named, and never `**/` ones."""

    def __init__(self, context: Path) -> None:
        lines = (context / ".dockerignore").read_text().split()
        assert lines[0] == "*"
        self.kept = {line[1:] for line in lines if line.startswith("!")}
        self.never = {line.removeprefix("**/") for line in lines if line.startswith("**/")}
        self.context = context

    def __call__(self, folder: str, names: Sequence[str]) -> set[str]:
        at_top = Path(folder) == self.context
        return {n for n in names if n in self.never or (at_top and n not in self.kept)}


def _cached_wheels(root: Path) -> Path | None:
    """uv's cache as hard links inside `root`, so that uv can link from it; a copy would take gigabytes."""
    found = subprocess.run(
        [str(Path(sys.prefix) / "bin" / "uv"), "cache", "dir"], capture_output=True, text=True, check=False
    ).stdout.strip()
    target = root / "root" / ".cache" / "uv"
    if not found or not Path(found).is_dir():
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["cp", "-al", found, str(target)], capture_output=True, check=False).returncode:
        shutil.rmtree(target, ignore_errors=True)  # another file system: packages are downloaded
        return None
    return target


def sandbox(image: Image, *, write: bool, environment: Mapping[str, str], tmpfs: Sequence[str] = ()) -> list[str]:
    """The first part of a bubblewrap command line: root file system, devices, empty folders, environment."""
    binds = {"/usr": "/usr", str(PYTHON): str(PYTHON), **image.binds}
    line = ["bwrap", "--bind" if write else "--ro-bind", str(image.root), "/", "--dev", "/dev", "--proc", "/proc"]
    for target in tmpfs:  # before the parts of this machine, which may be below them
        line += ["--tmpfs", target]
    for source, target in binds.items():
        if not target.startswith("/usr/"):
            below = [p for p in reversed(Path(target).parents) if any(str(p).startswith(f"{t}/") for t in tmpfs)]
            for parent in below:  # bubblewrap would create these for root only
                line += ["--perms", "0755", "--dir", str(parent)]
            (image.root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
            line += ["--ro-bind", source, target]
    line += ["--clearenv"]
    for key, value in environment.items():
        line += ["--setenv", key, value]
    return line


class Container:
    """One running container. When it exits or is killed, it starts again, as with `restart: unless-stopped`."""

    def __init__(
        self,
        name: str,
        image: Image,
        *,
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        user: str = "",
        mounts: Mapping[str, tuple[Path, bool]] | None = None,
        read_only: bool = False,
        tmpfs: Sequence[str] = (),
        capabilities: Sequence[str] = CAPABILITIES,
        healthcheck: Sequence[str] = (),
        grace: float = 10.0,
        log: Path,
    ) -> None:
        """mounts: target: (source, writable); healthcheck: its `test` in the compose file."""
        self.name, self.log, self.grace, self.healthcheck = name, log, grace, list(healthcheck)
        self._image, self._user = image, user or image.user
        self._argv = [*image.entrypoint, *(command or image.command)]
        self._environment = {"HOSTNAME": name, **image.environment, **(environment or {})}
        self._mounts, self._read_only, self._tmpfs = dict(mounts or {}), read_only, list(tmpfs)
        self._capabilities = list(capabilities)
        self._stopped = threading.Event()
        self._keeper: threading.Thread | None = None
        self.pid = 0  # of its first process, in the PID namespace of the tests
        self.starts = 0

    def start(self) -> None:
        self._stopped.clear()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        while not self._stopped.is_set():
            reading, writing = os.pipe()
            with self.log.open("ab") as out:
                process = subprocess.Popen(
                    self._line(writing),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    pass_fds=[writing],
                    start_new_session=True,
                )
            os.close(writing)
            with os.fdopen(reading) as report:
                text = report.read()
            self.pid = int(json.loads(text)["child-pid"]) if text.strip() else 0
            self.starts += 1
            process.wait()
            self.pid = 0
            self._stopped.wait(0.5)

    def _line(self, info: int) -> list[str]:
        empty = sorted({"/tmp", "/run", *self._tmpfs})
        line = sandbox(self._image, write=not self._read_only, environment=self._environment, tmpfs=empty)
        line += ["--chmod", "1777", "/tmp"]
        for target, (source, write) in self._mounts.items():
            if target.startswith("/run/"):
                line += ["--perms", "0755", "--dir", str(Path(target).parent)]
            elif not target.startswith(("/tmp/", "/etc/")):
                (self._image.root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
            line += ["--bind" if write else "--ro-bind", str(source), target]
        line += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", self.name, "--as-pid-1"]
        line += ["--die-with-parent", "--new-session", "--info-fd", str(info), "--chdir", self._image.folder]
        for name in {*self._capabilities, "SETUID", "SETGID", "SETPCAP"}:  # the last three to switch to its user
            line += ["--cap-add", f"CAP_{name}"]
        return [*line, "--", *self._become(), *self._argv]

    def _become(self) -> list[str]:
        user, _, group = self._user.partition(":")
        kept = ",".join(["-all", *(f"+{name.lower()}" for name in self._capabilities)])
        line = ["setpriv", f"--reuid={user}", f"--regid={group or user}", "--clear-groups", "--no-new-privs"]
        # a change of user clears the parent-death signal, so it is set again
        return [*line, f"--bounding-set={kept}", "--inh-caps=-all", "--pdeathsig=KILL", "--"]

    def execute(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """`docker compose exec`: a further process in the running container, as its user."""
        inside = ["nsenter", "-t", str(self.pid), "-m", "-p", "-i", "-u", "--", "env", "-i"]
        inside += [f"{k}={v}" for k, v in self._environment.items()]
        line = [*inside, *self._become(), *command]
        return subprocess.run(line, text=True, capture_output=True, timeout=timeout, check=False)

    def healthy(self) -> bool:
        """Run its health check once."""
        if not self.pid:
            return False
        kind, *rest = self.healthcheck
        command = rest if kind == "CMD" else ["sh", "-c", *rest]
        try:
            return self.execute(*command, timeout=30).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def wait_healthy(self, *, seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not self.healthy():
            assert time.monotonic() < until, f"{self.name} did not become healthy:\n{self.tail()}"
            time.sleep(0.5)

    def kill(self) -> None:
        """SIGKILL to everything in it at once; it restarts by itself."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after the grace period; it stays stopped."""
        self._stopped.set()
        if self._keeper is None:
            return
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
        self._keeper.join(self.grace)
        while self._keeper.is_alive():
            self.kill()
            self._keeper.join(1)

    def tail(self, size: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""


def new_volume(folder: Path, image: Image, target: str, user: str) -> Path:
    """A named volume: empty, with the owner that the image has at that place."""
    folder.mkdir(parents=True)
    place = image.root / target.lstrip("/")
    owner: Any = place.stat() if place.exists() else None
    ids = (owner.st_uid, owner.st_gid) if owner else tuple(int(n) for n in user.split(":"))
    os.chown(folder, *ids)
    return folder


def scratch(name: str) -> Path:
    """A temporary folder that every user may enter, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix=f"scanqueue-{name}-"))
    folder.chmod(0o755)
    return folder
