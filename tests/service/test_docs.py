"""The documents: every link resolves, every command is valid, the references are complete, and the site builds.

All shell blocks of a page run in one scratch folder. Stubs replace the programs that would install, start or change
something. They record their arguments, which are then checked: those of `scanqueue` by its own parser, those of `make`
by `make --dry-run`, those of docker compose by the compose file, those of curl by the API's description. `RUN_BY` lists
what no check covers, with the test or script that runs it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from test_layers import FOLDERS, TOP

from backend import cli
from backend.settings import SECRETS, Settings
from backend.web.schemas import BODIES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md"))
)
WITH_COMMANDS = [page for page in PAGES if not page.startswith("benchmarks/")]
COMMANDS = typer.main.get_command(cli.app)
SERVICES = set(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])

# prefix of a command: the file that runs it, and the text in this file that proves it
RUN_BY = {
    "apt-get install": (".ci/run", "apt-get install"),
    "pip install -c constraints.txt": ("scripts/setup", "install .venv --constraint constraints.txt"),
    ".venv/bin/uv pip install": ("scripts/setup", "uv pip install"),
    ".venv/bin/uv pip freeze": ("scripts/setup", "constraints.txt"),
    ".venv/bin/python -m pytest tests/demo": (
        "tests/demo/test_demo_parts.py",
        "def test_equal_seeds_give_equal_phantoms",
    ),
    "python3.11 -m venv audit": ("scripts/setup", "-m venv"),
    "audit/bin/pip install pip-audit": ("pyproject.toml", '"pip-audit'),
    "audit/bin/pip-audit --strict": ("Makefile", "pip-audit --strict"),
    "python -c import torch": ("tests/learning/test_weights.py", 'parametrize("file", ["model.pt", "state_dict.pt"])'),
    "dask worker": ("tests/support/servers.py", 'self._start("worker", arguments)'),
    "docker save": ("tests/service/test_engine.py", "def test_saved_images_are_loaded"),
    "docker load": ("tests/service/test_engine.py", "def test_saved_images_are_loaded"),
    "docker run --rm --entrypoint sh scanqueue:latest": (
        "tests/service/test_engine.py",
        "def test_the_list_of_components_is_complete",
    ),
}
EVERYTHING = ("tests/service/test_engine.py", 'PAGE.partition("### Everything")')
# prefix of a command that docker compose runs inside a service: likewise
RUN_INSIDE = {
    "pg_dump": EVERYTHING,
    "pg_restore": EVERYTHING,
    "rm /data/chest.zip": ("docs/how-to/deployment.md", "backup --project 1 /data/chest.zip"),
    "sh -c umask 077; cat > /data/chest.zip": (
        "tests/records/test_backup.py",
        "def test_the_file_is_readable_by_its_owner",
    ),
    "-cz -C": EVERYTHING,
    "-xz -C": EVERYTHING,
}
STUBS = ("curl", "docker", "scanqueue", "dask", "make", "pip", "python", "python3.11", "apt-get")
STUBS_BY_PATH = (".venv/bin/python", ".venv/bin/uv", "audit/bin/pip", "audit/bin/pip-audit")
STUB = """#!/bin/bash
{ printf '%s\\0' "${CALLED:-$(basename "$0")}" "$@"; printf '\\n'; } >>"$RECORD"
[ "$1" = load ] && cat >/dev/null
[ "$1 $2" = "compose cp" ] && echo copied >"$(basename "$3")"
echo output
"""


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def without_blocks(page: str) -> str:
    """The page without fenced and indented code."""
    text = re.sub(r"^ *```.*?^ *```$", "", text_of(page), flags=re.M | re.S)
    return re.sub(r"(?<=\n\n)(?: {4}\S.*\n)+", "", text)


@cache
def anchors(page: str) -> set[str]:
    """The anchors of its headings, as GitHub and the site make them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", without_blocks(page), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.append(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return set(found)


def code_spans(page: str) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks(page))]


def blocks(page: str) -> list[str]:
    found = re.findall(r"^( *)```sh\n(.*?)^ *```$", text_of(page), re.M | re.S)
    return [re.sub(rf"^{indent}", "", block, flags=re.M) for indent, block in found]


# links


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_an_anchor(page: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", without_blocks(page))):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = Path(os.path.normpath((ROOT / page).parent / path)) if path else ROOT / page
        if not there.is_file() or (anchor and anchor not in anchors(there.relative_to(ROOT).as_posix())):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES)
def test_every_repository_file_that_is_mentioned_exists(page: str) -> None:
    folders = "backend|sampling|tests|scripts|deploy|docs|benchmarks"
    named = [span for span in code_spans(page) if re.fullmatch(rf"(?:{folders})/[\w./*-]*", span)]
    assert not [name for name in named if not (ROOT / name).exists()]


# commands


def test_every_block_names_its_language() -> None:
    for page in WITH_COMMANDS:
        opened = re.findall(r"^ *```(.*)$", text_of(page), re.M)[::2]
        assert set(opened) <= {"sh", "yaml", "json", "python", "xml"}, page


@pytest.mark.parametrize("page", [page for page in WITH_COMMANDS if "```sh" in text_of(page)])
def test_every_command_in_a_block_is_valid_and_run(page: str, tmp_path: Path) -> None:
    for command in commands_of(page, tmp_path):
        check(command)


def commands_of(page: str, folder: Path) -> list[list[str]]:
    """The commands that the blocks of the page call, in a folder with the repository files that they may need."""
    stubs, record = folder / "stubs", folder / "record"
    stubs.mkdir()
    for name in STUBS:
        (stubs / name).write_text(STUB)
    for name in STUBS_BY_PATH:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(STUB.replace("#!/bin/bash", f"#!/bin/bash\nCALLED={name}"))
    for path in (*stubs.iterdir(), *(folder / name for name in STUBS_BY_PATH)):
        path.chmod(0o755)
    for name in (".env.example", "docker-compose.yml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    script = "set -euo pipefail\n" + "\n".join(blocks(page))
    env = {"PATH": f"{stubs}:/usr/bin:/bin", "RECORD": str(record), "HOME": str(folder)}
    env |= {"SCANQUEUE_USER": "lab", "SCANQUEUE_PASSWORD": "secret"}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    called = record.read_bytes().split(b"\0\n") if record.exists() else []
    return [[word.decode() for word in line.split(b"\0")] for line in called if line]


def check(command: list[str]) -> None:
    program, *arguments = command
    if program == "scanqueue":
        parse(arguments)
    elif program == "make":
        dry_run(arguments)
    elif program == "curl":
        method = "post" if "--data" in arguments else "get"
        path = re.sub(r"^https?://[^/]+", "", arguments[-1])
        assert (method, re.sub(r"(?<=/projects/)\d+", "{project}", path)) in BODIES
    elif command[:2] == ["docker", "compose"]:
        check_compose(arguments[1:])
    else:
        check_run_by(" ".join(command), RUN_BY)


def parse(arguments: list[str]) -> None:
    """Let the parser of the command check the arguments, without running anything."""
    command: Any = COMMANDS
    context = click.Context(command)
    while hasattr(command, "commands"):
        assert arguments, command.name
        assert arguments[0] in command.commands, arguments
        command, arguments = command.commands[arguments[0]], arguments[1:]
    try:
        command.make_context(command.name, list(arguments), parent=context)
    except Exception as error:
        pytest.fail(f"scanqueue {command.name} {shlex.join(arguments)}: {getattr(error, 'message', error)}")


def dry_run(arguments: list[str]) -> None:
    for line in re.findall(r"^\.venv/bin/scanqueue (.*)$", make(*arguments), re.M):
        parse(shlex.split(line))


def make(*arguments: str) -> str:
    """The commands that make would run, one per line."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--dry-run", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ")


def check_compose(arguments: list[str]) -> None:
    verb, *rest = arguments
    assert verb in {"build", "up", "ps", "pull", "exec", "cp", "stop", "run", "logs"}, verb
    if verb == "cp":
        assert rest[0].partition(":")[0] in SERVICES
        return
    words = iter(rest)
    services = []
    for word in words:
        if word in {"-U", "--entrypoint"}:
            next(words)
        elif word == "--scale":
            services.append(next(words).partition("=")[0])
        elif not word.startswith("-"):
            services.append(word)
            if verb in {"exec", "run"}:
                break
    assert set(services) <= SERVICES, services
    inside = list(words)
    if inside[:1] == ["scanqueue"]:
        parse(inside[1:])
    elif inside:
        check_run_by(" ".join(inside), RUN_INSIDE)


def check_run_by(command: str, table: dict[str, tuple[str, str]]) -> None:
    known = [where for beginning, where in table.items() if command.startswith(beginning)]
    assert known, f"nothing runs {command!r}: let a test run it, and name the test here"
    for file, words in known:
        assert words in text_of(file), (file, words)


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_every_command_in_a_sentence_has_its_options(page: str) -> None:
    for span in code_spans(page):
        words = span.split()
        if words[0] == "make" and len(words) > 1:
            dry_run(words[1:2])
        elif words[:2] == ["docker", "compose"] and len(words) > 2:
            for one in span.split(" && "):
                check_compose(shlex.split(one)[2:])
        elif words[0] == "scanqueue" and len(words) > 1 and "|" not in span:
            check_options(words[1:])


def check_options(words: list[str]) -> None:
    """As `parse`, but with placeholders for values."""
    command: Any = COMMANDS
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    if words == ["COMMAND", "--help"]:
        return
    assert command is not COMMANDS, words
    assert {word for word in words if word.startswith("--")} <= options(command) | {"--help"}, words


def options(command: Any) -> set[str]:
    return {
        name
        for one in command.params
        for name in (*one.opts, *one.secondary_opts)
        if name.startswith("--") and not getattr(one, "hidden", False)
    }


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_every_variable_exists(page: str) -> None:
    known = {f"SCANQUEUE_{field.name.upper()}" for field in fields(Settings)} | {"SCANQUEUE_"}
    known |= {f"SCANQUEUE_{name}_FILE" for name in SECRETS}
    known |= set(re.findall(r"^(\w+)=", text_of(".env.example"), re.M))
    assert set(re.findall(r"\bSCANQUEUE_\w*", text_of(page))) <= known


@pytest.mark.label_studio
def test_make_demo_labels_its_phantoms_to_the_end(tmp_path: Path) -> None:
    lines = make("demo", "SIMULATE=1", "LABELS=4")
    (command,) = [line for line in lines.splitlines() if line.startswith(".venv/bin/scanqueue ")]
    quick = {"SCANQUEUE_EMBEDDER": "pixels", "SCANQUEUE_IMAGE_SIZE": "64", "SCANQUEUE_TRAINING_STEPS": "20"}
    program, *arguments = shlex.split(command)
    done = subprocess.run(
        [str(ROOT / program), *arguments],
        cwd=tmp_path,
        env=os.environ | quick | {"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "demo-data").glob("*/demo.png"))
    said = " ".join(done.stdout.split())
    assert "mean Dice of the shown masks" in said
    before, after = re.findall(r"3 clicks: Dice ([\d.]+) to ([\d.]+)", said)[0]  # in the cold start, tasks open blank
    assert float(before) < 0.2
    assert float(after) > 0.5


# references


def every_command(command: Any = COMMANDS, *path: str) -> list[tuple[str, Any]]:
    below = getattr(command, "commands", {}).items()
    if not below:
        return [(" ".join(path), command)]
    return [found for name, one in below for found in every_command(one, *path, name)]


@pytest.mark.parametrize(("name", "command"), every_command())
def test_the_reference_of_commands_lists_every_option(name: str, command: Any) -> None:
    page = text_of("docs/reference/commands.md")
    (section,) = re.findall(rf"^## scanqueue {name}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    rows = re.findall(r"^\| (`--.*?) \|", section, re.M)
    assert set(re.findall(r"--[\w-]+", " ".join(rows))) == options(command) - {"--help"}


def test_the_reference_of_commands_lists_every_command_and_no_other() -> None:
    found = re.findall(r"^## scanqueue (.+)$", text_of("docs/reference/commands.md"), re.M)
    assert sorted(found) == sorted(name for name, _ in every_command())


def test_the_reference_of_the_api_lists_every_endpoint_and_no_other() -> None:
    rows = re.findall(r"^\| `(GET|POST) (/\S*)` \|", text_of("docs/reference/api.md"), re.M)
    assert sorted((method.lower(), path) for method, path in rows) == sorted([*BODIES, ("get", "/metrics")])


def test_the_layout_lists_every_folder_above_those_that_it_imports() -> None:
    rows = re.findall(r"^\| (?:`(\w+)/`|(ground)) \|", text_of("CONTRIBUTING.md"), re.M)
    order = [first or second for first, second in rows]
    assert set(order) == {*FOLDERS, *(name for name in TOP if (ROOT / "backend" / name).is_dir())}
    for folder, imported in FOLDERS.items():
        assert imported - {"sampling"} <= set(order[order.index(folder) + 1 :]), folder


# the site


def test_the_site_builds_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES) - 2  # the README is the repository's front page only; 404.html is the site's own
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?([^\"\s>]+)", page.read_text())
        assert not [address for address in loaded if re.match(r"(?:https?:)?//", address)], page
