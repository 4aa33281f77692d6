"""The help texts of the commands."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from backend import cli


def commands(command: Any, *path: str) -> list[tuple[tuple[str, ...], Any]]:
    below = getattr(command, "commands", {}).items()
    return [(path, command), *(found for name, one in below for found in commands(one, *path, name))]


@pytest.mark.parametrize(("path", "command"), commands(typer.main.get_command(cli.app)))
def test_help_lists_every_option_and_truncates_nothing_in_80_columns(
    path: tuple[str, ...], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")  # Typer's own
    said = CliRunner().invoke(cli.app, [*path, "--help"]).output
    _, *lines = said.splitlines()  # the first ends with COMMAND [ARGS]...
    assert "…" not in said
    assert not [line for line in lines if line.endswith("...") or len(line) > 80]
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    assert {name for one in shown for name in one.opts if name.startswith("--")} <= set(said.split())
