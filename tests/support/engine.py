"""docker-compose.yml as it is, run by docker-compose in a real Docker engine of our own (`scripts/engine`).

Only the images of others are stand-ins, made of Debian's packages and Label Studio's (`tests/support/images`): there is
no image registry. Ours is built with the Dockerfile as it is.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest
import yaml
from filelock import FileLock
from service import Remote

from backend.demo.administrator import Administrator, sign_up

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "scripts" / "engine"
PASSWORDS = ("SCANQUEUE_PASSWORD", "LABEL_STUDIO_DB_PASSWORD", "SCANQUEUE_DB_PASSWORD", "REDIS_PASSWORD")


def need_engine() -> None:
    """Skip (or in CI, fail) unless an engine can run and no connection can leave this machine."""
    routes = Path("/proc/net/route").read_text().splitlines()[1:] if Path("/proc/net/route").exists() else ["?"]
    packages = {"dockerd": "docker.io", "docker": "docker.io", "docker-compose": "docker-compose"}
    packages |= {"debootstrap": "debootstrap", "iptables": "iptables", "nsenter": "util-linux"}
    missing = {package for name, package in packages.items() if shutil.which(name) is None}
    reason = ""
    if missing:
        reason = f"not installed: {', '.join(sorted(missing))}; on Debian: apt-get install {' '.join(sorted(missing))}"
    elif os.getuid() != 0 or routes or "OUTSIDE_NETWORK" not in os.environ:
        reason = "run as root and under scripts/offline, as `make test` does"
    elif "overlay" not in Path("/proc/filesystems").read_text():
        reason = "the kernel has no overlay file system, which Docker's images need"
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def run(*command: str | Path, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, text=True, capture_output=True, timeout=timeout, check=False, **options)


def _without_route(net: Path) -> int:
    """Packets that this network namespace sent, or was to forward, without having a route for them."""
    found = dict(line.split() for line in (net / "snmp6").read_text().splitlines())
    for name in ("snmp", "netstat"):
        lines = [line.split() for line in (net / name).read_text().splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            found |= {f"{names[0]}{n}": v for n, v in zip(names[1:], values[1:], strict=True)}
    return sum(int(found[name]) for name in ("Ip:OutNoRoutes", "IpExt:InNoRoutes", "Ip6OutNoRoutes", "Ip6InNoRoutes"))


class Engine:
    """A Docker engine whose folder, with images and layers, is kept for the next run. Use as a context manager."""

    def __init__(self) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder = Path(os.environ.get("ENGINE_DIR") or Path(cache) / "scanqueue-engine")
        self.socket = f"unix://{self.folder}/docker.sock"
        self._lock = FileLock(self.folder.with_suffix(".lock"))  # one run at a time; another waits

    def _script(self, *arguments: str) -> None:
        done = run(ENGINE, *arguments, timeout=1800)
        assert done.returncode == 0, f"scripts/engine {arguments[0]}: {(done.stdout + done.stderr)[-4000:]}"

    def __enter__(self) -> Self:
        """Builds our image, with the torch of the package index, as the CPU build has an index of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire(timeout=3600)
        try:
            self.build("scanqueue:latest", ROOT)
        except BaseException:
            self.__exit__()
            raise
        return self

    def build(self, tag: str, context: Path) -> None:
        """Build an image; all containers, networks and volumes are removed before."""
        self._script("down", str(self.folder))  # also what a killed run left
        self._script("build", str(self.folder), "--build-arg", "TORCH_BACKEND=", "--tag", tag, str(context))
        self._script("up", str(self.folder))

    def __exit__(self, *_: object) -> None:
        self._script("down", str(self.folder))
        self._lock.release()

    def docker(self, *arguments: str, timeout: float = 300) -> str:
        done = run("docker", "--host", self.socket, *arguments, timeout=timeout)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def inspect(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.docker("inspect", name))[0])


class Container:
    """One container of a service."""

    def __init__(self, stack: Stack, name: str, number: int) -> None:
        self._stack, self.service, self.number = stack, name, number
        self.healthcheck: list[str] = stack.file["services"][name]["healthcheck"]["test"]

    @property
    def id(self) -> str:
        filters = (f"service={self.service}", f"container-number={self.number}", "oneoff=False")
        words = [w for one in filters for w in ("--filter", f"label=com.docker.compose.{one}")]
        return self._stack.engine.docker("ps", "-aq", *words).strip()

    @property
    def state(self) -> dict[str, Any]:
        """As `docker inspect` reports it."""
        return dict(self._stack.engine.inspect(self.id)["State"])

    @property
    def started(self) -> str:
        """When its first process started last: another text after each start."""
        return str(self.state["StartedAt"])

    def execute(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """`docker exec`: a further process, as its user, in its environment."""
        return run("docker", "--host", self._stack.engine.socket, "exec", self.id, *command, timeout=timeout)

    def healthy(self) -> bool:
        """Run its health check once, as Docker does at intervals of up to 30 s."""
        kind, *rest = self.healthcheck
        command = rest if kind == "CMD" else ["sh", "-c", *rest]
        try:
            return self.execute(*command, timeout=60).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def wait_healthy(self, *, seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not self.healthy():
            assert time.monotonic() < until, f"{self.service} did not become healthy:\n{self.log()[-4000:]}"
            time.sleep(0.5)

    def crash(self) -> None:
        """SIGKILL to its first process, which ends all of them; unlike `docker kill`, this makes Docker restart it."""
        before = self.started
        os.kill(int(self.state["Pid"]), 9)
        until = time.monotonic() + 60
        while self.started == before:
            assert time.monotonic() < until, f"{self.service} was not restarted after its processes were killed"
            time.sleep(0.1)

    def log(self) -> str:
        done = run("docker", "--host", self._stack.engine.socket, "logs", self.id)
        return done.stdout + done.stderr


class Stack(Remote):
    """The folder that an engineer prepares, with .env made from .env.example: `up` starts it, then comes `set_up`."""

    def __init__(self, engine: Engine, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        """settings: additions to .env, for short trainings."""
        self.engine, self.project = engine, folder
        folder.chmod(0o755)
        self.token = folder / "secrets" / "label_studio_token"
        self.token.parent.mkdir(mode=0o700)
        self.token.touch()
        self.token.chmod(0o644)
        (folder / "weights").mkdir()
        shutil.copy(ROOT / "docker-compose.yml", folder)
        shutil.copytree(ROOT / "deploy", folder / "deploy")
        self.values = {name: secrets.token_hex(24) for name in PASSWORDS}
        self.values |= {"SCANQUEUE_USER": "lab", "LABEL_STUDIO_HOST": "http://127.0.0.1:8080", **(settings or {})}
        self.write_environment()
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "DOCKER_HOST": engine.socket}
        # docker-compose 1 may wait longer than its default of 60 s while two cores start everything
        self.environment["COMPOSE_HTTP_TIMEOUT"] = "300"
        self.public_url = "http://scanqueue.internal:9090"
        self.credentials = ("lab", self.values["SCANQUEUE_PASSWORD"])
        self.http = httpx.Client(base_url="http://127.0.0.1:9090", trust_env=False, timeout=30, auth=self.credentials)
        self.studio = Administrator("http://127.0.0.1:8080", "engineer@example.com", "reading-room")
        self.first_doctor: subprocess.CompletedProcess[str] | None = None
        self.seconds_to_start = 0.0  # of the first `up`
        self.file: dict[str, Any] = {}
        self.file = self._config()

    def write_environment(self) -> None:
        text = (ROOT / ".env.example").read_text()
        for name, value in self.values.items():
            text, count = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.M)
            assert count == 1, f".env.example has no {name}"
        (self.project / ".env").write_text(text)

    def _config(self) -> dict[str, Any]:
        # the output escapes dollars by doubling them
        return dict(yaml.safe_load(self.compose("config").replace("$$", "$")))

    def compose(self, *arguments: str, timeout: float = 600) -> str:
        """docker-compose in the project's folder; fails with its output."""
        done = run("docker-compose", *arguments, cwd=self.project, env=self.environment, timeout=timeout)
        assert done.returncode == 0, f"docker-compose {' '.join(arguments)}: {done.stderr[-3000:]}\n{self._states()}"
        return done.stdout

    def shell(self, script: str) -> None:
        """Run commands of the documentation, with docker-compose as `docker compose`; our image is built already."""
        programs = self.project / "programs"
        programs.mkdir(exist_ok=True)
        docker = programs / "docker"
        lines = [f'[ "$1" = compose ] || exec {shutil.which("docker")} "$@"', '[ "$2" != build ] || exit 0', "shift"]
        docker.write_text("\n".join(["#!/bin/sh", *lines, 'exec docker-compose "$@"', ""]))
        docker.chmod(0o755)
        environment = self.environment | {"PATH": f"{programs}:{self.environment['PATH']}"}
        done = run("bash", "-euo", "pipefail", "-c", script, cwd=self.project, env=environment, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr

    def _states(self) -> str:
        shown = run("docker", "--host", self.engine.socket, "ps", "-a", "--format", "{{.Names}} {{.Status}}").stdout
        return shown + "".join(f"{c.service}: {c.log()[-1500:]}\n" for c in self.all() if c.id)

    def all(self) -> list[Container]:
        """A container of each service without a profile, and of each worker, in the order in which they start."""
        found: list[Container] = []
        for name in ("postgres", "redis", "label-studio", "scanqueue", "worker"):
            words = ["--filter", f"label=com.docker.compose.service={name}"]
            number = len(self.engine.docker("ps", "-aq", *words).split())
            found += [Container(self, name, n + 1) for n in range(number)]
        return found

    def one(self, service: str, number: int = 1) -> Container:
        return Container(self, service, number)

    def up(self, *arguments: str) -> None:
        """`docker-compose up -d`; returns when the health check of every container succeeds."""
        self.compose("up", "-d", *arguments)
        self.wait_healthy(seconds=900)  # Label Studio's first start makes its tables: a processor minute

    def wait_healthy(self, *, seconds: float = 300) -> None:
        for container in self.all():
            container.wait_healthy(seconds=seconds)

    def set_up(self) -> None:
        """Sign up, create a token, store it as the secret, and recreate its readers (docs/how-to/deployment.md)."""
        sign_up(self.studio.url, "/user/signup/", self.studio.email, self.studio.password).close()
        self.token.write_text(self.studio.personal_access_token())
        self.up("--force-recreate", "--no-deps", "scanqueue", "worker")

    def unroutable_packets(self) -> int:
        """How often a process of any container tried to send something to an address outside this machine."""
        containers = [f"/proc/{c.state['Pid']}/net" for c in self.all()]
        return sum(_without_route(Path(place)) for place in ("/proc/net", *containers))

    def log(self) -> str:
        return "".join(c.log() for c in self.all() if c.service in ("scanqueue", "worker"))

    def close(self) -> None:
        """Remove its containers, networks and volumes."""
        self.studio.close()
        self.http.close()
        self.compose("down", "--volumes", "--timeout", "5")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
