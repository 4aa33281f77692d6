"""The command line with junk: numbers, paths and outputs that cannot be used, and Ctrl-C while it is loaded."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend import cli
from backend.errors import BadSetting
from backend.records.store import Store
from backend.web.address import check_address

OF_A_PROJECT = {
    "status": ["status"],
    "doctor": ["doctor"],
    "models": ["models", "list"],
    "activate": ["models", "activate", "scanqueue-r1"],
    "labels": ["labels", "list"],
    "rename": ["labels", "rename", "Lung", "Lungs"],
    "retire": ["labels", "retire", "Lung"],
    "backup": ["backup", "out.zip"],
    "export": ["export", "--out", "out"],
    "import": ["import", "scans"],
    "disconnect": ["disconnect"],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with one project."""
    store = Store(tmp_path / "data")
    store.add_project(1)
    store.close()
    return tmp_path / "data"


@pytest.mark.parametrize("number", ["-1", "1" + "0" * 30, "one"])
@pytest.mark.parametrize("name", OF_A_PROJECT)
def test_no_command_accepts_a_number_that_no_project_can_have(name: str, number: str, data: Path) -> None:
    done = CliRunner().invoke(cli.app, [*OF_A_PROJECT[name], "--project", number, "--data-dir", str(data)])
    assert done.exit_code == 2
    assert "--project" in done.output


@pytest.mark.parametrize("name", sorted(set(OF_A_PROJECT) - {"doctor", "export", "import"}))  # these ask Label Studio
def test_every_command_says_that_it_does_not_know_a_project(name: str, data: Path, tmp_path: Path) -> None:
    arguments = [str(tmp_path / word) if word == "out.zip" else word for word in OF_A_PROJECT[name]]
    done = CliRunner().invoke(cli.app, [*arguments, "--project", "7", "--data-dir", str(data)])
    assert isinstance(done.exception, BadSetting), done.output
    assert re.match("Project 7 is not (known|connected)", str(done.exception))


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["backup", LONG, "--project", "1", "--data-dir", "data"],
        ["restore", LONG, "--data-dir", "data"],
        ["status", "--data-dir", LONG],
        ["weights", "list", "--weights-dir", LONG],
        ["weights", "verify", "--weights-dir", LONG],
        ["weights", "fetch", "resnet18", "--from", LONG, "--weights-dir", "."],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace(LONG, ""),
)
def test_a_path_that_cannot_exist_is_one_message(arguments: list[str], data: Path) -> None:
    command = [sys.executable, "-m", "backend.cli", *arguments]
    done = subprocess.run(command, cwd=data.parent, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "too long" in done.stderr
    assert done.stderr.startswith("scanqueue: ")


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SCANQUEUE_")}
    return kept | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["status", "--json"], ["weights", "list"]])
def test_an_output_that_cannot_be_written_is_one_message(arguments: list[str], data: Path) -> None:
    command = [sys.executable, "-m", "backend.cli", *arguments]
    given = environment() | {"SCANQUEUE_DATA_DIR": str(data)}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=given, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("scanqueue: ")
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("a..b", "SCANQUEUE_HOST='a..b' cannot be listened on: it is not a name."),
        ("999.1.1.1", "SCANQUEUE_HOST='999.1.1.1' cannot be listened on: "),
        ("x" * 300, f"SCANQUEUE_HOST='{'x' * 100}'... cannot be listened on: it is not a name."),
        ("192.0.2.1", "SCANQUEUE_HOST='192.0.2.1' cannot be listened on: Cannot assign requested address."),
    ],
)
def test_a_host_that_is_not_this_machine_is_refused(host: str, words: str, free_port: int) -> None:
    with pytest.raises(BadSetting) as refused:
        check_address(host, free_port)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_in_use_is_refused_and_a_free_one_is_not(host: str, data: Path, free_port: int) -> None:
    check_address(host, free_port)
    with socket.create_server(("127.0.0.1", free_port)):
        with pytest.raises(BadSetting, match=rf"Port {free_port} of {host} is in use by another program"):
            check_address(host, free_port)
        given = {"SCANQUEUE_PORT": str(free_port), "SCANQUEUE_DATA_DIR": str(data)}
        done = CliRunner().invoke(cli.app, ["serve", "--no-worker"], env=given)
    assert isinstance(done.exception, BadSetting)
    assert "listens" not in done.output
    check_address(host, free_port)


LOADING = """
import sys, threading, time
class Slow:
    def find_spec(self, name, *_):
        if name == "backend.commands.service":
            print("loading", flush=True)
            time.sleep(30)
sys.meta_path.insert(0, Slow())
import backend.cli
"""


def ctrl_c_works() -> None:
    """In a new process: whatever started the tests may ignore it, as a shell does for what runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_while_modules_are_loaded_ends_the_program_without_a_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOADING],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ctrl_c_works,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "loading\n"
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (-signal.SIGINT, "")
    assert time.monotonic() - began < 20


def test_ctrl_c_is_handled_by_the_commands_once_everything_is_loaded() -> None:
    script = "import signal, backend.cli; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True, preexec_fn=ctrl_c_works)
    ignored = script.replace("import signal", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)", 1)
    ignored = ignored.replace("; import", "\nimport", 1).replace(", backend", "\nimport backend")
    ignored = ignored.replace("is signal.default_int_handler", "is signal.SIG_IGN")
    subprocess.run([sys.executable, "-c", ignored], env=environment(), check=True)
