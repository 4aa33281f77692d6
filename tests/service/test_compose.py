"""docker-compose.yml, read by Debian's docker-compose with an environment made from .env.example."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.settings import Settings
from backend.workers.supervisor import BEAT, SILENCE

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
PAGE = (ROOT / "docs" / "how-to" / "deployment.md").read_text()


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """The services as docker-compose resolves them, with override files and values other than those of .env.example."""
    if shutil.which("docker-compose") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("docker-compose is not installed")
    env = tmp_path_factory.mktemp("compose") / "env"
    env.write_text(re.sub(r"(PASSWORD|USER)=$", r"\1=x1", (ROOT / ".env.example").read_text(), flags=re.M))
    clean = {"PATH": os.environ["PATH"], "HOME": str(env.parent)}

    def understood(*overrides: str, **variables: str) -> dict[str, Any]:
        files = [ROOT / "docker-compose.yml"]
        for n, override in enumerate(overrides):
            files.append(env.with_name(f"{n}.yml"))
            files[-1].write_text(override)
        command = [
            "docker-compose",
            "--env-file",
            str(env),
            *(word for f in files for word in ("-f", str(f))),
            "config",
        ]
        done = subprocess.run(command, env=clean | variables, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
        return found

    return understood


@pytest.fixture(scope="module")
def services(read: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return read()


def test_the_example_names_exactly_the_variables_used_and_no_secret_has_a_default() -> None:
    example = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.M))
    assert example - {"COMPOSE_PROFILES"} == set(re.findall(r"\$\{(\w+)", TEXT))  # docker compose reads this one itself
    assert not re.search(r"\$\{\w*PASSWORD(?!:\?)", TEXT)


def test_label_studio_guards_are_narrow_and_sentry_is_off(services: dict[str, Any]) -> None:
    given = services["label-studio"]["environment"]
    assert given["USE_DEFAULT_BANNED_SUBNETS"] == "false"
    assert given["USER_ADDITIONAL_BANNED_SUBNETS"] == "169.254.0.0/16"
    assert given["SENTRY_DSN"] == given["FRONTEND_SENTRY_DSN"] == ""


def test_label_studio_allows_sign_up_only_until_the_engineer_disables_it(services: dict[str, Any]) -> None:
    assert str(services["label-studio"]["environment"]["DISABLE_SIGNUP_WITHOUT_LINK"]) == "0"
    assert "LABEL_STUDIO_INVITED_ONLY=1" in PAGE


def test_the_override_for_a_hospital_certificate_authority_is_valid(read: Callable[..., dict[str, Any]]) -> None:
    (override,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    services = read(override)
    for name in ("scanqueue", "worker"):
        assert services[name]["environment"]["SSL_CERT_FILE"] == "/run/authorities.pem"
        assert services[name]["environment"]["SCANQUEUE_DATA_DIR"] == "/data"
        assert len(services[name]["volumes"]) == 3


def test_the_gpu_worker_is_the_worker_with_a_gpu_and_the_cuda_build(services: dict[str, Any]) -> None:
    gpu, worker = services["worker-gpu"], services["worker"]
    assert {key for key in gpu | worker if gpu.get(key) != worker.get(key)} == {"image", "build", "deploy", "profiles"}
    assert gpu["build"]["args"] == worker["build"]["args"] | {"TORCH_BACKEND": ""}
    reserved = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert reserved == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


@pytest.mark.parametrize("extras", ["", "sam", "sam dev"])
def test_extras_reach_the_command_that_installs_them(read: Callable[..., dict[str, Any]], extras: str) -> None:
    services = read(EXTRAS=extras)
    assert {services[name]["build"]["args"]["EXTRAS"] for name in ("scanqueue", "worker", "worker-gpu")} == {extras}
    (expression,) = re.findall(r"-r pyproject\.toml (\S.*?) && ", (ROOT / "Dockerfile").read_text())
    command = ["sh", "-c", f"for word in {expression}; do echo $word; done"]
    given = subprocess.run(command, env={"EXTRAS": extras}, text=True, capture_output=True, check=True).stdout.split()
    assert given == [word for name in extras.split() for word in ("--extra", name)]


def test_settings_accept_the_environment(services: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("")
    for name in ("scanqueue", "worker"):
        given = services[name]["environment"] | {"SCANQUEUE_LABEL_STUDIO_API_KEY_FILE": str(tmp_path / "token")}
        read = Settings.from_env(given)
        missing = {f"SCANQUEUE_{f.name.upper()}" for f in fields(Settings)} - set(given)
        # the port is in the ports and the health check of the file; the token comes from a file
        assert missing == {"SCANQUEUE_PORT", "SCANQUEUE_LABEL_STUDIO_API_KEY"}
        assert read.host == "0.0.0.0"
        assert read.user
    assert "scanqueue.internal" in services["scanqueue"]["networks"]["front"]["aliases"]
    assert read.public_url == "http://scanqueue.internal:9090"


def test_the_health_check_of_workers_reads_the_file_that_the_supervisor_touches(services: dict[str, Any]) -> None:
    """Its time is longer than that between two heartbeats, and a hang ends in a restart before it gives up."""
    worker = services["worker"]
    (file,) = re.findall(r"find (\S+) -mmin -1", worker["healthcheck"]["test"][1])
    assert worker["command"] == ["worker", "--alive", file]
    assert BEAT * 5 < 60 <= SILENCE
    interval = int(str(worker["healthcheck"]["interval"]).removesuffix("s"))
    assert 60 + interval * worker["healthcheck"]["retries"] > SILENCE


def test_every_service_has_a_health_check_a_restart_policy_and_confinement(services: dict[str, Any]) -> None:
    for name, one in services.items():
        assert one["restart"] == "unless-stopped", name
        assert one["healthcheck"]["test"], name
        for port in one.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), name
    for name in ("scanqueue", "worker"):
        assert services[name]["read_only"] is True
        assert services[name]["user"] == "10001:10001"
