"""docs/how-to/cluster.md: its Kubernetes manifests fit together, and its commands and settings exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import dask
import pytest
import yaml
from dask.utils import parse_bytes
from distributed.cli import dask_scheduler, dask_worker

from backend.settings import SECRETS, Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "cluster.md").read_text()
SETTINGS = {f"SCANQUEUE_{field.name.upper()}" for field in fields(Settings)}
SETTINGS |= {f"SCANQUEUE_{name.upper()}_FILE" for name in SECRETS}
COMMANDS: dict[str, click.Command] = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}


def parsed(line: list[str]) -> dict[str, Any]:
    """The options of a `dask` command, by dask's own parser, which refuses unknown ones."""
    assert line[0] == "dask"
    return COMMANDS[line[1]].make_context(line[1], line[2:]).params


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE.partition("## Kubernetes")[2], re.M | re.S)
    return list(yaml.safe_load_all(block))


def test_every_deployment_selects_its_pods_and_mounts_volumes_that_it_has(manifests: list[dict[str, Any]]) -> None:
    deployments = [one for one in manifests if one["kind"] == "Deployment"]
    assert [one["metadata"]["name"] for one in deployments] == ["dask-scheduler", "dask-worker"]
    for one in deployments:
        template = one["spec"]["template"]
        assert one["apiVersion"] == "apps/v1"
        assert one["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in template["spec"].get("volumes", ())}
        assert {variable["name"] for variable in container.get("env", ())} <= SETTINGS
        assert all(isinstance(v["value"], str) for v in container.get("env", ()) if "value" in v)  # else it is refused


def test_the_workers_connect_to_the_service_of_the_scheduler(manifests: list[dict[str, Any]]) -> None:
    scheduler, service, worker = manifests
    assert service["spec"]["selector"].items() <= scheduler["spec"]["template"]["metadata"]["labels"].items()
    (first,), (second,) = (one["spec"]["template"]["spec"]["containers"] for one in (scheduler, worker))
    options, ports = parsed(first["command"]), {port["name"]: port["port"] for port in service["spec"]["ports"]}
    assert options["port"] == str(ports["scheduler"])
    assert options["dashboard_address"] == f":{ports['dashboard']}"
    assert first["readinessProbe"]["httpGet"]["port"] == ports["dashboard"]
    told = parsed(second["command"])
    assert told["scheduler"] == f"tcp://{service['metadata']['name']}:{ports['scheduler']}"
    assert told["local_directory"] in {mount["mountPath"] for mount in second["volumeMounts"]}
    assert parse_bytes(second["resources"]["requests"]["memory"] + "B") >= 2**31  # a worker's need: docs, sizing


def test_the_slurm_script_is_valid_and_its_settings_exist() -> None:
    (script,) = re.findall(r"^```sh\n(#!/bin/bash\n.*?)^```$", PAGE, re.M | re.S)
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert {line.partition(" ")[0] for line in re.findall(r"^#(\w+)", script, re.M)} == {"SBATCH"}
    assert set(re.findall(r"\bSCANQUEUE_\w+", script)) <= SETTINGS
    (command,) = re.findall(r"^dask .*$", script, re.M)
    assert parsed(shlex.split(command))["scheduler"].startswith("tcp://")


def test_the_settings_of_dask_that_the_page_names_exist() -> None:
    (name,) = re.findall(r"`DASK_(DISTRIBUTED__\w+)`", PAGE)
    assert dask.config.get(name.lower().replace("__", ".").replace("_", "-"), "unknown") != "unknown"
    assert "GPU=1" in parsed(["dask", "worker", "tcp://a:1", "--resources", "GPU=1"])["resources"]
