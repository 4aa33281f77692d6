"""docker-compose.yml as it is, every service in a separate container (`containers`), on this machine.

Commands, environments, users, volumes, secrets, health checks and the start order are read from the file by
docker-compose. Added are the contents of the images, and a hosts file that maps every name to 127.0.0.1.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml
from containers import CAPABILITIES, Container, Dockerfile, Image, bare_root, new_volume, scratch
from servers import program
from service import Remote

from backend.demo.administrator import Administrator, sign_up
from backend.demo.label_studio import default_executable

ROOT = Path(__file__).resolve().parents[2]
LABEL_STUDIO_USER = "1001:0"


def build_image(folder: Path) -> tuple[Image, list[str]]:
    """Build our image from our Dockerfile; returns it and its health check."""
    file = Dockerfile((ROOT / "Dockerfile").read_text(), ROOT, folder, {"TORCH_BACKEND": ""})
    return file.build(), file.healthcheck


def read_compose(folder: Path, values: dict[str, str]) -> dict[str, Any]:
    """Our file as docker-compose resolves it in `folder`, with .env made from .env.example and `values`."""
    shutil.copy(ROOT / "docker-compose.yml", folder)
    shutil.copytree(ROOT / "deploy", folder / "deploy", dirs_exist_ok=True)
    text = (ROOT / ".env.example").read_text()
    for name, value in values.items():
        text, count = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.M)
        assert count == 1, f".env.example has no {name}"
    (folder / ".env").write_text(text)
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(
        ["docker-compose", "config"], cwd=folder, env=clean, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(yaml.safe_load(done.stdout.replace("$$", "$")))  # the output escapes dollars by doubling them


def _seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([ms])", text).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60}[unit]


class Stack(Remote):
    """Everything that `docker compose up -d --scale worker=2` starts; `set_up` does what the engineer does next."""

    def __init__(
        self, image: Callable[[], Image], *, workers: int = 2, settings: Mapping[str, str] | None = None
    ) -> None:
        """image: returns ours, called when needed; settings: additions to .env, for short trainings."""
        self.folder = scratch("stack")
        project = self.folder / "project"
        project.mkdir()
        passwords = ("SCANQUEUE_PASSWORD", "LABEL_STUDIO_DB_PASSWORD", "SCANQUEUE_DB_PASSWORD", "REDIS_PASSWORD")
        self.values = {name: secrets.token_hex(24) for name in passwords}
        self.values |= {"SCANQUEUE_USER": "lab", "LABEL_STUDIO_HOST": "http://127.0.0.1:8080"}
        self.values |= {"SCANQUEUE_WORKERS": str(workers), **(settings or {})}
        self.token = project / "secrets" / "label_studio_token"
        self.token.parent.mkdir(mode=0o700)
        self.token.touch(mode=0o644)
        (project / "weights").mkdir()
        self.file = read_compose(project, self.values)
        for name in [n for n, one in self.file["services"].items() if one.get("profiles")]:
            del self.file["services"][name]  # started on request only
        self._image, self._images = image, self._foreign()
        self._hosts = self.folder / "hosts"
        self._hosts.write_text(f"127.0.0.1 localhost {' '.join(self._names())}\n::1 localhost\n")
        self._volumes: dict[str, Path] = {}
        self.containers: dict[str, Container] = {}
        environment = self.file["services"]["scanqueue"]["environment"]
        self.public_url = environment["SCANQUEUE_PUBLIC_URL"]
        self.credentials = (environment["SCANQUEUE_USER"], environment["SCANQUEUE_PASSWORD"])
        self.http = httpx.Client(base_url="http://127.0.0.1:9090", trust_env=False, timeout=30, auth=self.credentials)
        self.studio = Administrator("http://127.0.0.1:8080", "engineer@example.com", "reading-room")

    def _names(self) -> set[str]:
        names = set(self.file["services"])
        for one in self.file["services"].values():
            for network in one.get("networks", {}).values():
                names |= set((network or {}).get("aliases", []))
        return names

    def _foreign(self) -> dict[str, Image]:
        """The third-party images, replaced by this machine's programs."""
        postgres = bare_root(self.folder / "postgres-image")
        data, account = "var/lib/postgresql/data", pwd.getpwnam("postgres")
        (postgres / data).mkdir(parents=True)
        os.chown(postgres / data, account.pw_uid, account.pw_gid)
        shutil.copy(ROOT / "tests" / "support" / "postgres-entrypoint.sh", postgres / "opt" / "entrypoint.sh")
        redis = bare_root(self.folder / "redis-image")
        (redis / "data").mkdir()
        os.chown(redis / "data", 999, 999)
        studio = bare_root(self.folder / "label-studio-image")
        (studio / "label-studio" / "data").mkdir(parents=True)
        os.chown(studio / "label-studio" / "data", 1001, 0)
        (studio / "tmp").chmod(0o1777)
        home = default_executable().parents[1]
        path = "/usr/local/bin:/usr/bin:/bin"
        programs = sorted({str(Path(program(name)).parent) for name in ("initdb", "psql", "postgres")})
        return {
            "postgres:16": Image(
                postgres,
                {"PATH": ":".join([*programs, path]), "PGDATA": f"/{data}", "PGHOST": "/tmp", "LC_ALL": "C"},
                user=f"{account.pw_uid}:{account.pw_gid}",
                entrypoint=("sh", "/opt/entrypoint.sh"),
            ),
            "redis:7": Image(redis, {"PATH": path}, user="999:999"),
            "heartexlabs/label-studio:1.23.2": Image(
                studio,
                {
                    "PATH": f"{home}/bin:{path}",
                    "HOME": "/label-studio/data",
                    "LABEL_STUDIO_BASE_DATA_DIR": "/label-studio/data",
                    "PYTHONUNBUFFERED": "1",
                },
                user=LABEL_STUDIO_USER,
                entrypoint=("label-studio", "start", "--no-browser", "--internal-host=0.0.0.0", "--port=8080"),
                binds={str(home): str(home)},
            ),
        }

    def _container(self, title: str, service: dict[str, Any]) -> Container:
        image = self._image() if service["image"] == "scanqueue:latest" else self._images[service["image"]]
        user = service.get("user", image.user)
        mounts: dict[str, tuple[Path, bool]] = {"/etc/hosts": (self._hosts, False)}
        for text in service.get("volumes", []):
            source, target, mode = text.split(":")
            if source.startswith("/"):
                place = Path(source)
            else:
                if source not in self._volumes:
                    self._volumes[source] = new_volume(self.folder / "volumes" / source, image, target, user)
                place = self._volumes[source]
            mounts[target] = (place, mode == "rw")
        for secret in service.get("secrets", []):
            name = secret["source"] if isinstance(secret, dict) else secret
            mounts[f"/run/secrets/{name}"] = (Path(self.file["secrets"][name]["file"]), False)
        assert service["restart"] == "unless-stopped"
        return Container(
            title,
            image,
            command=service.get("command", ()),
            environment=service.get("environment", {}),
            user=user,
            mounts=mounts,
            read_only=service.get("read_only", False),
            tmpfs=service.get("tmpfs", ()),
            capabilities=() if service.get("cap_drop") == ["ALL"] else CAPABILITIES,
            healthcheck=service["healthcheck"]["test"],
            grace=_seconds(service.get("stop_grace_period", "10s")),
            log=self.folder / f"{title}.log",
        )

    def up(self) -> None:
        """Start all services in dependency order, each once its dependencies are healthy; return when all are."""
        waiting = dict(self.file["services"])
        while waiting:
            for name, service in list(waiting.items()):
                needed = service.get("depends_on", {})
                if set(needed) & set(waiting):
                    continue
                for other in needed:
                    self.containers[other].wait_healthy()
                for number in range(1, service.get("deploy", {}).get("replicas", 1) + 1):
                    title = name if name != "worker" else f"worker-{number}"
                    self.containers[title] = self._container(title, service)
                    self.containers[title].start()
                del waiting[name]
        for container in self.containers.values():
            container.wait_healthy(seconds=600)

    def set_up(self) -> None:
        """Sign up, create a token, store it as the secret, and restart its readers (docs/how-to/deployment.md)."""
        studio = self.studio
        sign_up(studio.url, "/user/signup/", studio.email, studio.password).close()
        self.token.write_text(studio.personal_access_token())
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda title: self.containers[title].stop(), ("scanqueue", *self.workers)))
        for title in ("scanqueue", *self.workers):
            self.containers[title].start()
        for title in ("scanqueue", *self.workers):
            self.containers[title].wait_healthy()

    @property
    def workers(self) -> list[str]:
        return [title for title in self.containers if title.startswith("worker")]

    def log(self) -> str:
        return "".join(self.containers[t].tail(10**9) for t in ("scanqueue", *self.workers))

    def stop(self) -> None:
        self.studio.close()
        self.http.close()
        for titles in (("scanqueue", *self.workers, "label-studio"), ("redis", "postgres")):
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda title: self.containers[title].stop(), set(titles) & set(self.containers)))

    def __enter__(self) -> Self:
        try:
            self.up()
            self.first_doctor = self.containers["scanqueue"].execute("scanqueue", "doctor")
            self.set_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
