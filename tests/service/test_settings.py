"""Settings: read once, typed, and refused with a message that says what to do."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from backend.app import to_env
from backend.errors import BadSetting
from backend.loop.project_settings import extra_signal, project_settings
from backend.settings import PREFIX, SECRETS, ProjectSettings, Settings, is_loopback
from sampling import strategy_pair

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "settings.md"
NAMES = sorted(f.name.upper() for f in fields(Settings))
URL = "is not an http:// or https:// address."
SIZE = "is invalid; use a multiple of 32 from 32 to 2048, or auto."


def refusal(**given: str) -> str:
    with pytest.raises(BadSetting) as caught:
        Settings.from_env({PREFIX + name: text for name, text in given.items()})
    return str(caught.value)


def project_refusal(given: Any) -> str:
    with pytest.raises(BadSetting) as caught:
        ProjectSettings.from_json(given)
    return str(caught.value)


# the service


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_env({"PATH": "/bin", "HOST": "elsewhere"}) == Settings()
    assert (Settings().host, Settings().port) == ("127.0.0.1", 9090)


def test_every_variable_is_read_as_its_type() -> None:
    settings = Settings.from_env(
        {
            "SCANQUEUE_LABEL_STUDIO_URL": "https://ls.example.org/labels/",
            "SCANQUEUE_LABEL_STUDIO_API_KEY": " key ",
            "SCANQUEUE_PUBLIC_URL": "http://scanqueue.example.org:9090/",
            "SCANQUEUE_HOST": "0.0.0.0",
            "SCANQUEUE_PORT": "9191",
            "SCANQUEUE_DATA_DIR": "~/scans",
            "SCANQUEUE_USER": "lab",
            "SCANQUEUE_PASSWORD": "word",
            "SCANQUEUE_WEIGHTS_DIR": "weights",
            "SCANQUEUE_IMAGE_SIZE": "256",
            "SCANQUEUE_TRAINING_STEPS": "50",
            "SCANQUEUE_IMAGE_HOSTS": "PACS.example.org, images.example.org:8042",
        }
    )
    assert settings.label_studio_url == "https://ls.example.org/labels"
    assert settings.label_studio_api_key == "key"
    assert settings.public_url == "http://scanqueue.example.org:9090"
    assert (settings.host, settings.port) == ("0.0.0.0", 9191)
    assert settings.data_dir == Path.home() / "scans"
    assert settings.weights_dir == Path("weights")
    assert (settings.image_size, settings.training_steps) == (256, 50)
    assert settings.image_hosts == ("pacs.example.org", "images.example.org:8042")


def test_an_empty_variable_is_the_default() -> None:
    assert Settings.from_env({"SCANQUEUE_PORT": " ", "SCANQUEUE_IMAGE_SIZE": ""}) == Settings()
    assert Settings.from_env({"SCANQUEUE_IMAGE_SIZE": "auto"}).image_size == 0


def test_settings_cannot_be_changed_but_copied() -> None:
    settings = Settings()
    with pytest.raises(FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]
    assert settings.with_(port=9191, host=None) == Settings(port=9191)
    with pytest.raises(BadSetting, match="0 is not a port"):
        settings.with_(port=0)


def test_the_environment_written_for_the_worker_is_read_back_the_same() -> None:
    settings = Settings(
        label_studio_api_key="key",
        data_dir=Path("data"),
        user="lab",
        password="word",
        weights_dir=Path("weights"),
        image_size=64,
        image_hosts=("a.example.org", "b.example.org"),
    )
    assert Settings.from_env(to_env(settings)) == settings


def test_an_unknown_name_is_refused_with_the_known_names() -> None:
    known = ", ".join(f"SCANQUEUE_{name}" for name in NAMES)
    assert refusal(PROT="9090") == f"SCANQUEUE_PROT is not a scanqueue setting. Known settings: {known}."


def test_a_file_is_read_for_secrets_only() -> None:
    assert refusal(PORT_FILE="port").startswith("SCANQUEUE_PORT_FILE is not a scanqueue setting.")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"PORT": "http"}, "SCANQUEUE_PORT='http' is not a whole number."),
        ({"DEVICE": "meta"}, "SCANQUEUE_DEVICE='meta' is not a device; use auto, cpu, cuda or cuda:1."),
        ({"DEVICE": "cuda:first"}, "SCANQUEUE_DEVICE='cuda:first' is not a device; use auto, cpu, cuda or cuda:1."),
        ({"PORT": "0"}, "SCANQUEUE_PORT=0 is not a port; use 1 to 65535."),
        ({"PORT": "65536"}, "SCANQUEUE_PORT=65536 is not a port; use 1 to 65535."),
        ({"IMAGE_SIZE": "large"}, "SCANQUEUE_IMAGE_SIZE='large' is not a whole number."),
        ({"IMAGE_SIZE": "100"}, f"SCANQUEUE_IMAGE_SIZE=100 {SIZE}"),
        ({"IMAGE_SIZE": "-32"}, f"SCANQUEUE_IMAGE_SIZE=-32 {SIZE}"),
        ({"IMAGE_SIZE": "4096"}, f"SCANQUEUE_IMAGE_SIZE=4096 {SIZE}"),
        ({"TRAINING_STEPS": "1.5"}, "SCANQUEUE_TRAINING_STEPS='1.5' is not a whole number."),
        ({"CACHE_DAYS": "1" + "0" * 30}, f"SCANQUEUE_CACHE_DAYS={10**30} is too large; use at most 1000000000."),
        ({"THREADS": "5000"}, "SCANQUEUE_THREADS=5000 is too large; use at most 1024."),
        ({"PORT": "x" * 5000}, f"SCANQUEUE_PORT='{'x' * 199}... is not a whole number."),
        ({"TRAINING_STEPS": "-1"}, "SCANQUEUE_TRAINING_STEPS=-1 is negative; use 0 for the default."),
        ({"LABEL_STUDIO_URL": "localhost:8080"}, f"SCANQUEUE_LABEL_STUDIO_URL='localhost:8080' {URL}"),
        ({"LABEL_STUDIO_URL": "http://"}, f"SCANQUEUE_LABEL_STUDIO_URL='http:' {URL}"),
        ({"LABEL_STUDIO_URL": "http://[::1"}, f"SCANQUEUE_LABEL_STUDIO_URL='http://[::1' {URL}"),
        ({"LABEL_STUDIO_URL": "http://lab:port"}, f"SCANQUEUE_LABEL_STUDIO_URL='http://lab:port' {URL}"),
        ({"PUBLIC_URL": "https://lab:99999"}, f"SCANQUEUE_PUBLIC_URL='https://lab:99999' {URL}"),
        ({"PUBLIC_URL": "https://the lab"}, f"SCANQUEUE_PUBLIC_URL='https://the lab' {URL}"),
        ({"PUBLIC_URL": "https://:80"}, f"SCANQUEUE_PUBLIC_URL='https://:80' {URL}"),
        (
            {"DATA_DIR": "~nobody-of-this-name/data"},
            "SCANQUEUE_DATA_DIR='~nobody-of-this-name/data': this user has no home folder; write the whole path.",
        ),
        ({"PUBLIC_URL": "ftp://scanqueue"}, f"SCANQUEUE_PUBLIC_URL='ftp://scanqueue' {URL}"),
        ({"USER": "lab"}, "SCANQUEUE_USER and SCANQUEUE_PASSWORD must be set together; set both or neither."),
        ({"PASSWORD": "word"}, "SCANQUEUE_USER and SCANQUEUE_PASSWORD must be set together; set both or neither."),
    ],
)
def test_an_unusable_value_is_refused_with_a_reason(given: dict[str, str], words: str) -> None:
    assert refusal(**given) == words


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "scanqueue.example.org"])
def test_a_host_that_is_reachable_from_outside_needs_credentials(host: str) -> None:
    assert refusal(HOST=host) == (
        f"SCANQUEUE_HOST='{host}' is reachable from other machines, but SCANQUEUE_USER and "
        "SCANQUEUE_PASSWORD are not set. Set both, or listen on 127.0.0.1."
    )
    open_to_others = {"SCANQUEUE_HOST": host, "SCANQUEUE_USER": "lab", "SCANQUEUE_PASSWORD": "word"}
    assert Settings.from_env(open_to_others).host == host
    with pytest.raises(BadSetting, match="is reachable from other machines"):
        Settings().with_(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_credentials(host: str) -> None:
    assert is_loopback(host)
    assert Settings.from_env({"SCANQUEUE_HOST": host}).host == host


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_read_from_a_file_and_never_shown(name: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    value = "redis://:correct-horse@redis:6379/0" if name == "REDIS_URL" else "correct-horse"
    path.write_text(f"{value}\n")
    given = {f"SCANQUEUE_{name}_FILE": str(path)}
    if name == "PASSWORD":
        given["SCANQUEUE_USER"] = "lab"
    settings = Settings.from_env(given)
    assert getattr(settings, name.lower()) == value
    for text in (repr(settings), str(settings), f"{settings}"):
        assert "correct-horse" not in text
        assert name.lower() not in text


@pytest.mark.parametrize("url", ["redis://:secret/part@redis:6379/0", "redis://:123#part@redis:6379/0", "redis:6379"])
def test_an_invalid_redis_address_is_refused_without_its_password(url: str) -> None:
    assert refusal(REDIS_URL=url) == (
        "SCANQUEUE_REDIS_URL is not an address such as redis://:PASSWORD@redis:6379/0. "
        "In the password, write / as %2F, # as %23, ? as %3F and @ as %40."
    )


@pytest.mark.parametrize("url", ["redis://localhost", "rediss://:a%2Fb@redis:6379/0", "unix:///run/redis.sock?db=1"])
def test_valid_redis_addresses_are_accepted(url: str) -> None:
    assert Settings.from_env({"SCANQUEUE_REDIS_URL": url}).redis_url == url


def test_a_secret_given_twice_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("correct horse")
    words = refusal(LABEL_STUDIO_API_KEY="battery staple", LABEL_STUDIO_API_KEY_FILE=str(path))
    assert words == ("SCANQUEUE_LABEL_STUDIO_API_KEY and SCANQUEUE_LABEL_STUDIO_API_KEY_FILE are both set; keep one.")


def test_a_missing_secret_file_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-file")
    words = refusal(PASSWORD_FILE=missing, USER="lab")
    assert words == f"SCANQUEUE_PASSWORD_FILE: cannot read {missing!r}: No such file or directory."


def test_a_secret_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"\xff\xfe\x00")
    words = refusal(LABEL_STUDIO_API_KEY_FILE=str(path))
    assert words == f"SCANQUEUE_LABEL_STUDIO_API_KEY_FILE: cannot read {str(path)!r}: it is not UTF-8 text."


def test_a_secret_file_without_end_is_refused_and_a_pipe_is_read(tmp_path: Path) -> None:
    words = refusal(LABEL_STUDIO_API_KEY_FILE="/dev/zero")
    assert words == "SCANQUEUE_LABEL_STUDIO_API_KEY_FILE: '/dev/zero' has more than 64 KiB, so it is not a secret."
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("correct horse\n"))
    writer.start()
    given = {"SCANQUEUE_LABEL_STUDIO_API_KEY_FILE": str(tmp_path / "pipe")}
    assert Settings.from_env(given).label_studio_api_key == "correct horse"
    writer.join()


def test_the_secrets_are_settings() -> None:
    assert set(SECRETS) <= set(NAMES)


# one project


@pytest.mark.parametrize("given", [None, "", {}, "{}"])
def test_a_project_without_settings_has_the_defaults(given: Any) -> None:
    assert ProjectSettings.from_json(given) == ProjectSettings()
    assert (ProjectSettings().cold_start_size, ProjectSettings().round_size) == (20, 10)


def test_project_settings_are_read_from_text_and_from_an_object() -> None:
    text = '{"cold_start_size": 4, "round_size": 3, "alpha": 1, "retrain": "button", "seed": 0}'
    expected = ProjectSettings(cold_start_size=4, round_size=3, alpha=1.0, retrain="button")
    assert ProjectSettings.from_json(text) == expected
    assert (
        ProjectSettings.from_json({"cold_start_size": 4, "round_size": 3, "alpha": 1, "retrain": "button"}) == expected
    )


@pytest.mark.parametrize(
    ("given", "depth"),
    [
        ({}, 30),
        ({"round_size": 4}, 12),
        ({"round_size": 4, "queue_depth": 0}, 12),
        ({"round_size": 4, "queue_depth": 7}, 7),
        ({"round_size": 4, "queue_depth": 2}, 4),
    ],
)
def test_the_depth_is_three_rounds_and_never_less_than_one(given: dict[str, int], depth: int) -> None:
    assert ProjectSettings.from_json(given).depth == depth


KNOWN = (
    "alpha, cold_start_size, control_share, image, least_dice, one_per_patient, queue_depth, quick_model, retrain, "
    "round_size, seed, strategy, stratify_by, tolerance, uncertainty, unit"
)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"roundsize": 3}, f"'roundsize' is not a project setting. Known settings: {KNOWN}."),
        ([1], 'The extra params must be a JSON object, for example {"round_size": 10}.'),
        ("[1]", 'The extra params must be a JSON object, for example {"round_size": 10}.'),
        ("7", 'The extra params must be a JSON object, for example {"round_size": 10}.'),
        ({"cold_start_size": 0}, "cold_start_size is 0; it must be a whole number, 1 or more."),
        ({"round_size": "3"}, "round_size is '3'; it must be a whole number, 1 or more."),
        ({"round_size": 2.0}, "round_size is 2.0; it must be a whole number, 1 or more."),
        ({"round_size": True}, "round_size is True; it must be a whole number, 1 or more."),
        ({"queue_depth": -1}, "queue_depth is -1; it must be a whole number, 0 or more."),
        ({"seed": -1}, "seed is -1; it must be a whole number, 0 or more."),
        ({"alpha": 1.5}, "alpha is 1.5; it must be from 0 to 1."),
        ({"alpha": "half"}, "alpha is 'half'; it must be a number from 0 to 1."),
        ({"alpha": True}, "alpha is True; it must be a number from 0 to 1."),
        ('{"alpha": NaN}', "alpha is nan; it must be a number from 0 to 1."),
        ({"alpha": 10**400}, f"alpha is {str(10**400)[:200]}...; it must be from 0 to 1."),
        (f'{{"control_share": -{10**400}}}', f"control_share is {str(-(10**400))[:200]}...; it must be from 0 to 0.5."),
        ({"seed": "x" * 5000}, f"seed is '{'x' * 199}...; it must be a whole number, 0 or more."),
        ({"image": "x" * 1001}, f"image is '{'x' * 199}...; it must have at most 1000 letters."),
        ({"stratify_by": "x" * 1001}, f"stratify_by is '{'x' * 199}...; it must have at most 1000 letters."),
        ("[" * 100_000, 'extra params: invalid JSON: it is nested too deeply. Example: {"round_size": 10}.'),
        ({"tolerance": -0.1}, "tolerance is -0.1; it must be from 0 to 1."),
        ({"retrain": "never"}, 'retrain is \'never\'; it must be "auto" or "button".'),
        ({"retrain": ["auto"]}, 'retrain is [\'auto\']; it must be "auto" or "button".'),
        ({"strategy": 3}, "strategy is 3; it must be a strategy name."),
        ({"uncertainty": None}, "uncertainty is None; it must be the name of an aggregation."),
        ({"stratify_by": ["site"]}, "stratify_by is ['site']; it must be a key of the task data."),
        ({"unit": "volume"}, 'unit is \'volume\'; it must be "slice" or "scan".'),
        ({"unit": ["scan"]}, 'unit is [\'scan\']; it must be "slice" or "scan".'),
        ({"one_per_patient": True}, 'one_per_patient is True; it must be "on" or "off".'),
        ({"quick_model": "yes"}, 'quick_model is \'yes\'; it must be "on" or "off".'),
        ({"least_dice": 1.5}, "least_dice is 1.5; it must be from 0 to 1."),
        ({"control_share": 0.6}, "control_share is 0.6; it must be from 0 to 0.5."),
        ({"control_share": "some"}, "control_share is 'some'; it must be a number from 0 to 0.5."),
    ],
)
def test_an_unusable_project_setting_is_refused_with_a_reason(given: Any, words: str) -> None:
    assert project_refusal(given) == words


# strategies and measures


@pytest.mark.parametrize("strategy", ["default", "paper", "random", "typiclust+entropy", "power-entropy", "probcover"])
def test_a_strategy_is_written_out_for_cold_start_and_model(strategy: str) -> None:
    assert project_settings({"strategy": strategy}).moments == strategy_pair(strategy)
    assert project_settings("").moments == strategy_pair("default")


def test_an_unknown_strategy_or_measure_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadSetting, match=r"^strategy: got 'luck', wanted default, one of paper, .*COLD\+MODEL\.$"):
        project_settings('{"strategy": "luck"}')
    with pytest.raises(BadSetting, match=r"^strategy: got 'luck', wanted one of paper, entropy"):
        project_settings({"strategy": "random+luck"})
    with pytest.raises(BadSetting) as refused:
        project_settings({"uncertainty": "mean"})
    assert str(refused.value) == "uncertainty is 'mean'; it must be one of image, foreground, boundary, top."


def test_stratified_without_a_key_is_refused_with_what_to_set() -> None:
    with pytest.raises(BadSetting, match="needs a key to group the scans by: set stratify_by to a key"):
        project_settings({"strategy": "stratified"})
    assert project_settings({"strategy": "stratified", "stratify_by": "site"}).stratify_by == "site"


@pytest.mark.parametrize(
    ("strategy", "extra"), [("paper", ""), ("clasp", "classes"), ("pairwise-dice", "disagreement")]
)
def test_the_signals_that_a_strategy_needs_are_known(strategy: str, extra: str) -> None:
    assert extra_signal(project_settings({"strategy": strategy})) == extra


def test_invalid_json_in_extra_params_is_reported_with_its_position() -> None:
    words = project_refusal("round_size: 3")
    assert words.startswith("extra params: invalid JSON: Expecting value: line 1 column 1")
    assert words.endswith('Example: {"round_size": 10}.')


# the documentation


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_in_the_reference(name: str) -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert re.search(rf"\bSCANQUEUE_{name}\b", text)


@pytest.mark.parametrize("name", [f.name for f in fields(ProjectSettings)])
def test_every_project_setting_is_in_the_reference(name: str) -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert f"`{name}`" in text
