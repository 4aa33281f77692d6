"""The clocks of scanqueue and of Label Studio jump by hours and days while annotators label: the loop goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from service import LENGTHY, Lab, Service

from backend.demo.label_studio import LabelStudio
from backend.records.store import Store

pytestmark = pytest.mark.label_studio

COLD, ROUND = 8, 5
SETTINGS = {"cold_start_size": COLD, "round_size": ROUND}
DAY = 86_400.0
SOON = 180.0  # seconds; a full listing, which repairs any effect of a clock jump, comes only every 900
Scans = list[tuple[Path, Path]]


class Clock:
    """The wall clock of processes started with `env`, shifted by an offset; monotonic clocks are not changed."""

    def __init__(self, file: Path, offset: str) -> None:
        library = next(iter(sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))), None)
        if library is None:
            reason = "libfaketime is not installed; on Debian: apt-get install faketime"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        self._file = file
        self.env = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # its name in older versions
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # otherwise timed waits end at once, and threads spin for the GIL
            "NO_FAKE_STAT": "1",
        }
        self.jump_to(offset)

    def jump_to(self, offset: str) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(offset + "\n")
        temporary.replace(self._file)


def trained(store: Store, lab: Lab) -> list[int]:
    """The number of labels that each model was trained on."""
    return [len(m["trained_on"]) for m in store.models(lab.project)]


def while_training(service: Service, lab: Lab, do: Callable[[], None]) -> None:
    service.wait(lab.project, lambda s: bool(s["job"]) and s["phase"] == "training" and s["job"]["done"] > 0)
    do()


@pytest.mark.long
def test_our_clock_jumps_by_days_between_and_during_steps(
    label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    clock = Clock(tmp_path / "clock", "+0")
    service = Service(label_studio, tmp_path / "data", env=clock.env | LENGTHY)
    lab = Lab(label_studio, scans60, extra_params=SETTINGS)
    with service:
        lab.connect(service)
        service.wait(lab.project, lambda s: s["embedded"] > 0)
        clock.jump_to("+3d")
        lab.wait_for_round(0, seconds=SOON)
        lab.label(COLD - 2)
        clock.jump_to("-2d")
        lab.label(2)
        while_training(service, lab, lambda: clock.jump_to("+3d"))
        job = service.wait(lab.project, lambda s: bool(s["job"]))["job"]
        assert job["seconds_left"] is None or job["seconds_left"] < 3600
        lab.wait_for_round(1, seconds=SOON)
        lab.label(2)
        clock.jump_to("-2d")
        lab.label(ROUND - 2)
        lab.wait_for_round(2, seconds=SOON)
        service.wait(lab.project, lambda s: s["labelled"] == COLD + ROUND and s["trouble"] == "")
        service.wait(lab.project, lambda s: s["job"] is None)
        store = Store(service.folder)
        lab.check_complete(store, 2)
        assert trained(store, lab) == [COLD, COLD + ROUND]
        made = [m["created_at"] - time.time() for m in store.models(lab.project)]
        assert made[0] > 2 * DAY  # otherwise no clock jumped
        assert made[1] < -DAY
        assert "Traceback" not in service.log()
    lab.close()


@pytest.mark.long
def test_the_clock_of_label_studio_jumps_by_hours_while_annotators_label(scans60: Scans, tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock", "-12h")
    with LabelStudio.start(tmp_path / "label-studio", extra_env=clock.env) as label_studio:
        service = Service(label_studio, tmp_path / "data")  # with a token from twelve hours ago
        clock.jump_to("-6h")
        lab = Lab(label_studio, scans60, extra_params=SETTINGS)
        with service:
            lab.connect(service)
            service.wait(lab.project, lambda s: s["embedded"] > 0)
            clock.jump_to("-4h")  # our access tokens are no longer valid, but seem to be
            lab.wait_for_round(0, seconds=SOON)
            lab.label(COLD - 4)
            service.wait(lab.project, lambda s: s["labelled"] == COLD - 4)
            clock.jump_to("-8h")  # new labels are now older than everything that was seen
            lab.label(4)
            lab.wait_for_round(1, seconds=SOON)

            # some ahead of the cursor and some behind it, so that one reconciliation sees both
            clock.jump_to("-2h")
            lab.label(2)
            clock.jump_to("-8h")
            lab.label(ROUND - 2)
            lab.wait_for_round(2, seconds=SOON)
            service.wait(lab.project, lambda s: s["labelled"] == len(lab.labelled) and s["trouble"] == "")
            service.wait(lab.project, lambda s: s["job"] is None)
            store = Store(service.folder)
            lab.check_complete(store, 2)
            assert trained(store, lab) == [COLD, COLD + ROUND]
            assert "refuses the token" not in service.log()
            assert "Traceback" not in service.log()
        lab.close()
