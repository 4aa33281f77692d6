"""`scanqueue simulate`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from backend.commands.shared import console, settings_from_env
from backend.errors import BadSetting
from backend.logs import log_to

SEEDS = 5  # repeats with trainings


def simulate(
    images: Annotated[Path, typer.Argument(help="Folder of scans.")],
    masks: Annotated[Path, typer.Argument(help="Folder of true masks with the same file names.")],
    out: Annotated[Path, typer.Option(help="Output folder for tables, plots and the report.")],
    strategies: Annotated[
        str, typer.Option(help="Strategy names, or COLD+MODEL, comma-separated.")
    ] = "default,paper,random",
    budgets: Annotated[str, typer.Option(help="Numbers of labelled scans, comma-separated.")] = "5,10,20,40",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of random splits; default: 5, or 30 to screen.")
    ] = None,
    screen: Annotated[bool, typer.Option("--screen", help="Minutes, not hours: train no networks.")] = False,
    groups: Annotated[
        list[str] | None, typer.Option(help="Scans that stay together: FILE.csv:COLUMN, or pairs as FILE.csv:A,B.")
    ] = None,
    spacing: Annotated[str, typer.Option(help="mm per pixel (row, column): FILE.csv:COLUMN[,COLUMN].")] = "",
    strata: Annotated[str, typer.Option(help='Site or scanner for "stratified": FILE.csv:COLUMN.')] = "",
    embedder: Annotated[str | None, typer.Option(help="As SCANQUEUE_EMBEDDER.")] = None,
    encoder: Annotated[str | None, typer.Option(help="As SCANQUEUE_ENCODER.")] = None,
    image_size: Annotated[int | None, typer.Option(help="As SCANQUEUE_IMAGE_SIZE. Smaller is faster.")] = None,
    training_steps: Annotated[int | None, typer.Option(help="As SCANQUEUE_TRAINING_STEPS.")] = None,
    cold_start_only: Annotated[bool, typer.Option(help="Choose every budget in one step, without a model.")] = False,
    test_share: Annotated[float, typer.Option(help="Share of scans in the common test set.")] = 0.4,
    alpha: Annotated[float, typer.Option(help="Weight of entropy in S(i).")] = 0.5,
    uncertainty: Annotated[str, typer.Option(help="image, foreground, boundary or top.")] = "image",
    jobs: Annotated[int, typer.Option(min=1, help="Parallel trainings, one thread each.")] = os.cpu_count() or 1,
) -> None:
    """Compare strategies on scans with known masks.

    Run the same command again to resume an interrupted comparison.
    """
    log_to(level="WARNING")
    from backend.learning.learner import Learner
    from backend.simulate.compare import simulate as compare
    from backend.simulate.plan import Comparison
    from backend.simulate.screen import SEEDS as SCREENED

    if screen:
        _refuse_trained(encoder=encoder, image_size=image_size, training_steps=training_steps, spacing=spacing)
    settings = settings_from_env(
        embedder=embedder, encoder=encoder, image_size=image_size, training_steps=training_steps, threads=1
    )
    learner = Learner(settings)
    comparison = Comparison(
        images=images,
        masks=masks,
        strategies=tuple(name.strip() for name in strategies.split(",")),
        budgets=_numbers("--budgets", budgets),
        seeds=tuple(range(seeds or (SCREENED if screen else SEEDS))),
        embedder=learner.embedder().name,  # "auto" is resolved once for all processes
        weights_dir=settings.weights_dir,
        cold_start_only=cold_start_only,
        groups=tuple(groups or ()),
        strata=strata,
        spacing=spacing,
        test_share=test_share,
        alpha=alpha,
        uncertainty=uncertainty,
        encoder=settings.encoder,
        image_size=settings.image_size,
        training_steps=settings.training_steps,
        device=learner.device,
    )
    command = shlex.join(["scanqueue", *sys.argv[1:]])
    compare(comparison, out, screened=screen, processes=jobs, command=command, console=console)


def _refuse_trained(**options: object) -> None:
    for name, value in options.items():
        if value:
            option = "--" + name.replace("_", "-")
            raise BadSetting(f"{option} has no effect with --screen, which trains no networks. Omit one of the two.")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BadSetting(
            f"{option}: got {text!r}; expected comma-separated whole numbers, for example 5,10,20"
        ) from None
