"""`scanqueue import`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.commands.shared import DataDir, ProjectId, image_setting, settings_from_env
from backend.logs import log_to

if TYPE_CHECKING:
    from backend.intake.request import ImportRequest
    from backend.intake.terminal import MaskStep

LocalFiles = Annotated[
    Path | None,
    typer.Option(help="Write images below this folder, which Label Studio reads, instead of uploading."),
]
IdentitiesFile = Annotated[
    Path | None,
    typer.Option(help="File that maps pseudonyms to identities. Default: identities.sqlite in the data folder."),
]
OtherIdentities = Annotated[
    bool,
    typer.Option("--other-identities", help="Continue although the project was filled with another identities file."),
]
Best = Annotated[int | None, typer.Option(min=1, help="Import only the N most informative slices of each scan.")]
LocalRoot = Annotated[
    Path | None, typer.Option(help="Path of Label Studio's LOCAL_FILES_DOCUMENT_ROOT on this machine.")
]
SkipBurntIn = Annotated[
    bool, typer.Option("--skip-burnt-in", help="Skip scans that seem to contain text in their pixels.")
]
ShowPaths = Annotated[bool, typer.Option("--show-paths", help="Show file names even if the output is not a terminal.")]
Masks = Annotated[
    list[str] | None, typer.Option(help="File, folder or quoted pattern with masks of the scans. Repeatable.")
]
MaskKind = Annotated[str, typer.Option("--as", help="Import masks as annotations or predictions.")]
LabelMap = Annotated[
    list[str] | None, typer.Option(help="Label of a structure: NAME=LABEL or NUMBER=LABEL. Repeatable.")
]
GroundTruth = Annotated[bool, typer.Option("--ground-truth", help="Mark the annotations as ground truth.")]
Complete = Annotated[
    bool, typer.Option("--complete", help="What the masks do not show is not there: empty slices are labelled.")
]


def import_(
    project: ProjectId,
    paths: Annotated[list[Path] | None, typer.Argument(metavar="PATH...", help="Scan files and folders.")] = None,
    axis: Annotated[str, typer.Option(help="Slice axis: acquisition, axial, coronal or sagittal.")] = "acquisition",
    every: Annotated[int | None, typer.Option(min=1, help="Import every N-th slice only.")] = None,
    best: Best = None,
    time: Annotated[int | None, typer.Option(min=0, help="Index of the volume in a time series, from 0.")] = None,
    window: Annotated[str, typer.Option(help="Window: CENTER,WIDTH, a preset name, percentile, or auto.")] = "auto",
    site: Annotated[str, typer.Option(help="Site name for the tasks. Default: a pseudonym.")] = "",
    modality: Annotated[str, typer.Option(help="Modality for the tasks. Default: from the file header.")] = "",
    group_by: Annotated[str, typer.Option(help="Group plain image files by: none, folder or file.")] = "none",
    local_files: LocalFiles = None,
    local_root: LocalRoot = None,
    skip_burnt_in: SkipBurntIn = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Number of reader processes. Default: one per core.")] = None,
    masks: Masks = None,
    kind: MaskKind = "annotations",
    label_map: LabelMap = None,
    ground_truth: GroundTruth = False,
    complete: Complete = False,
    identities: IdentitiesFile = None,
    other_identities: OtherIdentities = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be imported; change nothing.")] = False,
    show_paths: ShowPaths = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Create tasks from DICOM, NIfTI, NRRD, PNG, JPEG and TIFF files. No name, ID or date leaves this machine.

    --masks adds masks that you already have: NIfTI, NRRD, DICOM SEG, RTSTRUCT, PNG or COCO. PATH is then optional.
    Run the same command again to resume an interrupted import. Existing tasks are not duplicated.
    """
    from backend.intake.identities import NAME
    from backend.intake.plan import ImportOptions
    from backend.intake.request import ImportRequest
    from backend.intake.terminal import import_scans
    from backend.mask_import.request import expanded

    mask_paths = expanded(masks or (), paths or ())
    settings = settings_from_env(data_dir=data_dir)
    log_to(settings, level="WARNING")
    options = ImportOptions(axis, every, best, time, window, site, modality, group_by, careful=skip_burnt_in)
    request = ImportRequest(
        project=project,
        paths=tuple(paths or ()),
        options=options,
        identities=identities or settings.data_dir / NAME,
        spool=settings.data_dir / "spool" / f"import-{project}",
        locks=settings.data_dir / "locks",
        jobs=jobs or len(os.sched_getaffinity(0)),
        local=local_files,
        root=local_root,
        dry_run=dry_run,
        foreign=other_identities,
        image=image_setting(settings, project),
        masks=mask_paths,
    )
    step = None
    if mask_paths:
        step = _mask_step(request, kind, label_map or (), ground_truth=ground_truth, complete=complete)
    if code := import_scans(
        request, settings, as_json=as_json, show_paths=show_paths, masks=step if mask_paths else None
    ):
        raise typer.Exit(code)


def _mask_step(
    request: ImportRequest, kind: str, label_map: Sequence[str], *, ground_truth: bool, complete: bool
) -> MaskStep:
    """The import of the request's masks."""
    from backend.mask_import.request import MaskRequest
    from backend.mask_import.run import mask_step

    return mask_step(
        MaskRequest(
            project=request.project,
            paths=request.masks,
            identities=request.identities,
            kind=kind,
            label_map=tuple(label_map),
            ground_truth=ground_truth,
            complete=complete,
            dry_run=request.dry_run,
            image=request.image,
        )
    )
