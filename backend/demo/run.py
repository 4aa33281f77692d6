"""`scanqueue demo`: a real Label Studio, scanqueue, a queue of scans, and simulated annotators on request."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.console import Console
from rich.panel import Panel

from backend.demo.child import Child, free_port, port_is_free
from backend.demo.label_studio import LabelStudio
from backend.demo.phantoms import write_phantoms
from backend.demo.picture import draw
from backend.demo.scans import ScanFolder, read_folder
from backend.demo.simulation import Simulation
from backend.errors import ScanqueueError

READERS = [("reader1@example.com", "scanqueue-demo"), ("reader2@example.com", "scanqueue-demo")]

# settings from the user's environment; the demonstration sets all others
_PASSED_ON = ("WEIGHTS_DIR", "DEVICE", "EMBEDDER", "ENCODER", "IMAGE_SIZE", "TRAINING_STEPS")


def run_demo(
    data: Path | None = None,
    simulate: bool = False,
    labels: int = 40,
    folder: Path = Path("demo-data"),
    *,
    port: int | None = None,
    service_port: int | None = None,
    label_names: Sequence[str] = (),
    seed: int = 0,
    stay: bool | None = None,
    console: Console | None = None,
) -> Path:
    """Run the demonstration and return its folder, a new one inside `folder`.

    data          contains images/ and, for a simulation, masks/; default: synthetic chest radiographs
    simulate      two simulated annotators label `labels` scans; the result is plotted in demo.png
    port          port of Label Studio; default: 8080, or a free port
    service_port  port of scanqueue; default: 9090, or a free port
    label_names   names of the mask values 1, 2, ...; default: labels.txt in `data`
    stay          keep everything running until Ctrl-C; default: unless simulating

    Stops everything that it started before it returns or raises.
    """
    began = time.monotonic()
    console = Console() if console is None else console
    stay = not simulate if stay is None else stay
    here = _new_folder(folder)
    with ExitStack() as ending, _terminated_like_ctrl_c():
        scans = _scans(data, here, max(60, 2 * labels), seed, label_names)
        if simulate:
            scans = _with_masks(scans, data)
        if scans.left_out:
            console.print(f"[yellow]{scans.left_out} files skipped: Label Studio cannot show them")

        with console.status("starting Label Studio (the first start takes a minute)"):
            studio = LabelStudio.start(here / "label-studio", port=_port(port, 8080))
        ending.callback(studio.stop)
        console.print(f"Label Studio started in {time.monotonic() - began:.0f} s")

        project, tasks = _create_project(console, studio, scans)

        sizes = {"cold_start_size": min(20, max(2, labels // 2)), "round_size": min(10, max(1, labels // 4))}
        service, url = _start_service(studio, here, _port(service_port, 9090), console, ending)
        with console.status("connecting scanqueue to the project"):
            connected = studio.connect_backend(project, url, extra_params=sizes, interactive=True)
        _show_addresses(console, studio, project, url, here)

        def alive() -> None:
            if not service.running:
                raise ScanqueueError(f"scanqueue exited. The end of its log:\n{service.tail()}")

        if simulate:
            people: dict[str, Any] = {"readers": READERS, "labels": labels, "backend": int(connected["id"]), **sizes}
            simulation = Simulation(studio, project, url, scans, tasks, console=console, alive=alive, **people)
            simulation.run()
            _show_results(console, simulation, project, url, here, began)
        if stay:
            _wait_for_ctrl_c(console, alive)
    return here


def _create_project(console: Console, studio: LabelStudio, scans: ScanFolder) -> tuple[int, dict[int, Path]]:
    """Create the project and its annotators. Returns its ID and the image of each task."""
    with console.status(f"importing {len(scans.images)} scans"):
        project = studio.create_project("scanqueue demo", scans.label_config())
        tasks = dict(zip(studio.import_files(project, scans.images), scans.images, strict=True))
        for email, password in READERS:
            studio.invite(email, password)
    return project, tasks


def _with_masks(scans: ScanFolder, data: Path | None) -> ScanFolder:
    """Only the scans with true masks, which simulated annotators need."""
    if not scans.masks:
        raise ScanqueueError(
            f"{data} contains no masks/, so annotators cannot be simulated. Add the true masks, with the same names "
            "as in images/, or run the demo without simulation and draw masks yourself."
        )
    return ScanFolder(tuple(scans.masks), scans.masks, scans.labels, scans.left_out)


def _show_addresses(console: Console, studio: LabelStudio, project: int, url: str, here: Path) -> None:
    console.print(
        Panel(
            f"Label Studio  {studio.url}/projects/{project}/data\n"
            f"scanqueue     {url}/\n"
            f"log in as     {studio.email}   password  {studio.password}\n"
            f"files         {here}",
            title="scanqueue demo",
            expand=False,
        ),
        highlight=False,
    )


def _show_results(console: Console, simulation: Simulation, project: int, url: str, here: Path, began: float) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        drawn = draw(
            here / "demo.png",
            client.get(f"/api/projects/{project}/map").json()["scans"],
            client.get(f"/api/projects/{project}/rounds").json()["rounds"],
            simulation.rounds,
        )
    console.print(f"picture: {drawn}", highlight=False, soft_wrap=True)
    means = [(this.number, this.mean("dice")) for this in simulation.rounds]
    scores = ", ".join(f"round {number} {score:.3f}" for number, score in means if score is not None)
    minutes = (time.monotonic() - began) / 60
    console.print(
        f"mean Dice of the shown masks: {scores or 'none shown'}; total time {minutes:.1f} minutes",
        highlight=False,
        soft_wrap=True,
    )


def _wait_for_ctrl_c(console: Console, alive: Callable[[], None]) -> None:
    console.print("Press Ctrl-C to stop.")
    try:
        while True:
            alive()
            time.sleep(1)
    except KeyboardInterrupt:
        console.print("stopping")


def _start_service(
    studio: LabelStudio, here: Path, port: int, console: Console, ending: ExitStack
) -> tuple[Child, str]:
    """Start scanqueue. Returns its process and its address."""
    url = f"http://127.0.0.1:{port}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SCANQUEUE_")}
    chosen = {name: os.environ[name] for name in (f"SCANQUEUE_{last}" for last in _PASSED_ON) if name in os.environ}
    environment = {
        **inherited,
        **chosen,
        "PYTHONUNBUFFERED": "1",
        "SCANQUEUE_LABEL_STUDIO_URL": studio.url,
        "SCANQUEUE_LABEL_STUDIO_API_KEY": studio.personal_access_token(),
        "SCANQUEUE_PUBLIC_URL": url,
    }
    command = [sys.executable, "-m", "backend.cli", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--data-dir", str(here / "scanqueue")]
    service = Child("scanqueue", command, env=environment, log=here / "scanqueue.log")
    ending.callback(service.stop)
    with console.status("starting scanqueue"):
        service.wait_healthy(f"{url}/health", timeout=180)
    return service, url


def _scans(data: Path | None, here: Path, n: int, seed: int, labels: Sequence[str]) -> ScanFolder:
    if data is None:
        write_phantoms(here / "scans", n, seed)
        data = here / "scans"
    return read_folder(data, labels)


def _new_folder(parent: Path) -> Path:
    """Create a folder for this run, named after the current time."""
    base = parent.absolute() / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    for number in range(100):
        folder = base if number == 0 else base.with_name(f"{base.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ScanqueueError(f"{base} and the folders numbered after it already exist. Choose another folder.")


def _port(asked: int | None, usual: int) -> int:
    if asked is not None:
        return asked
    return usual if port_is_free(usual) else free_port()


@contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that it also stops the child processes in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
