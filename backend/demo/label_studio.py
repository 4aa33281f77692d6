"""A real Label Studio on the loopback address, started from its own virtual environment.

Its first start spends most of its time on database migrations. The migrated, still empty SQLite file is
therefore kept and copied into every new data folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from filelock import FileLock

from backend.demo.administrator import Administrator
from backend.demo.child import Child, free_port, port_is_free
from backend.errors import ScanqueueError

Guards = Literal["narrow", "default", "ml-only-off"]

# By default, Label Studio calls no ML backend or webhook at a private or loopback address.
GUARDS: dict[Guards, dict[str, str]] = {
    # private and loopback addresses are allowed, the cloud's metadata address is not
    "narrow": {"USE_DEFAULT_BANNED_SUBNETS": "false", "USER_ADDITIONAL_BANNED_SUBNETS": "169.254.0.0/16"},
    "default": {},
    # the half-open form that connects a backend but creates no webhook
    "ml-only-off": {"ML_BLOCK_LOCAL_IP": "false"},
}

_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SYSTEMROOT")
_DATABASE = "label_studio.sqlite3"


def default_executable() -> Path:
    """LABEL_STUDIO_EXECUTABLE if set, else the environment that `make setup` creates next to the product's."""
    named = os.environ.get("LABEL_STUDIO_EXECUTABLE")
    if named:
        return Path(named).absolute()
    return Path(__file__).absolute().parents[2] / ".venv-label-studio" / "bin" / "label-studio"


class LabelStudio(Administrator):
    """A running Label Studio and its first user. Use as a context manager, or call `stop`."""

    def __init__(
        self,
        folder: Path,
        port: int,
        executable: Path,
        environment: Mapping[str, str],
        *,
        email: str,
        password: str,
    ) -> None:
        super().__init__(f"http://127.0.0.1:{port}", email, password)
        self.folder = folder
        self.port = port
        self.log = folder / "label-studio.log"
        self.started_in = 0.0
        self._executable = executable
        self._environment = dict(environment)
        self._child: Child | None = None

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        port: int | None = None,
        executable: Path | None = None,
        guards: Guards = "narrow",
        legacy_token: str | None = None,
        local_files: Path | None = None,
        extra_env: Mapping[str, str] | None = None,
        email: str = "admin@example.com",
        password: str = "scanqueue-demo",
        cache: Path | None = None,
        timeout: float = 600,
    ) -> Self:
        """Start Label Studio with its data in `folder` and wait until it answers.

        port          default: any free port
        guards        which addresses Label Studio may call, a key of GUARDS
        legacy_token  40 hexadecimal digits: enables legacy tokens, with this one for the first user
        local_files   a folder that local storages may serve; default: serving is off
        extra_env     additional environment variables, which override all others
        cache         where the migrated database is kept; default: in Label Studio's own environment

        Raises ScanqueueError if Label Studio is not installed, or with the end of its log if it does not
        start.
        """
        executable = default_executable() if executable is None else executable
        if not executable.exists():
            raise ScanqueueError(f"Label Studio is not installed: there is no {executable}. Run `make setup`.")
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **_base_environment(folder / "data"),
            **GUARDS[guards],
            "LOCAL_FILES_SERVING_ENABLED": "false" if local_files is None else "true",
            "LOCAL_FILES_DOCUMENT_ROOT": str(local_files.absolute() if local_files else folder),
        }
        if legacy_token is not None:
            environment |= {
                "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
                "LABEL_STUDIO_USER_TOKEN": legacy_token,
            }
        environment |= extra_env or {}
        if not (folder / "data" / _DATABASE).exists() and "DJANGO_DB" not in environment:
            template = _migrated_database(executable, cache)
            (folder / "data").mkdir(mode=0o700, exist_ok=True)
            shutil.copyfile(template, folder / "data" / _DATABASE)
        studio = cls(
            folder,
            free_port() if port is None else port,
            executable,
            environment,
            email=email,
            password=password,
        )
        studio._run(timeout)
        return studio

    def _run(self, timeout: float) -> None:
        command = [
            str(self._executable),
            "start",
            "--no-browser",
            "--internal-host=127.0.0.1",
            f"--port={self.port}",
            f"--username={self.email}",
            f"--password={self.password}",
        ]
        # if the port is in use, Label Studio takes the next one, and another server would answer here
        if not port_is_free(self.port):
            raise ScanqueueError(f"Label Studio cannot start: port {self.port} is taken. Choose another one.")
        self._child = Child("Label Studio", command, env=self._environment, log=self.log)
        try:
            self.started_in = self._child.wait_healthy(f"{self.url}/health", timeout=timeout)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.running else None

    def stop(self) -> None:
        """End the process that this object started, and no other. The data stays in the folder."""
        self.close()
        if self._child is not None:
            self._child.stop()
            self._child = None

    def restart(self, *, timeout: float = 600) -> None:
        """Stop, then start again on the same port with the same data."""
        self.stop()
        self._run(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _base_environment(data: Path) -> dict[str, str]:
    """An environment without the caller's settings: Label Studio also reads plain HOST, PORT, USERNAME, PASSWORD."""
    return {
        **{name: os.environ[name] for name in _KEPT if name in os.environ},
        "PYTHONUNBUFFERED": "1",
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        # error reporting, analytics and the version check contact other servers by default
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
    }


def _migrated_database(executable: Path, cache: Path | None) -> Path:
    """A migrated database without users, created once per installed version."""
    root = executable.absolute().parent.parent
    found = sorted(root.glob("lib*/python*/site-packages/label_studio-*.dist-info"))
    version = found[0].name.removesuffix(".dist-info") if found else "label_studio"
    folder = root / "var" / "scanqueue" if cache is None else cache
    folder.mkdir(parents=True, exist_ok=True)
    template = folder / f"{version}.sqlite3"
    with FileLock(f"{template}.lock"):
        if not template.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                # every command runs the migrations first; this one does nothing else
                done = subprocess.run(
                    [str(executable), "version"],
                    env=_base_environment(Path(scratch)),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                made = Path(scratch) / _DATABASE
                if done.returncode or not made.exists():
                    raise ScanqueueError(f"Label Studio could not create its database:\n{done.stdout[-3000:]}")
                made.replace(template)
    return template
