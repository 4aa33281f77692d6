"""Scans that cannot be labelled or read: a problem with a cure that works, and many of one cause are one problem."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import dataset, save
from PIL import Image
from typer.testing import CliRunner
from world import CONFIG, NO_MASKS, PROJECT, World

from backend import cli
from backend.demo.phantoms import phantom
from backend.errors import BadSetting
from backend.loop import audit
from backend.web.problems import grouped

pytestmark = pytest.mark.usefixtures("miniature")


def encoded(kind: str, seed: int = 1) -> bytes:
    out = io.BytesIO()
    Image.fromarray(phantom(seed, (64, 64))[0]).save(out, kind)
    return out.getvalue()


def test_files_that_label_studio_does_not_show_are_problems_with_import_as_cure(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    good = world.add_scans(0, 8)
    nifti = nibabel.Nifti1Image(np.zeros((8, 8, 2), np.int16), np.eye(4))
    dicom = save(tmp_path / "a.dcm", dataset(np.zeros((8, 8), np.uint16))).read_bytes()
    files = {
        "DICOM": [dicom, dicom[132:]],
        "NIfTI": [nifti.to_bytes(), gzip.compress(nifti.to_bytes())],
        "TIFF": [encoded("TIFF")],
        "JPEG 2000": [encoded("JPEG2000")],
    }
    tasks = {kind: world.studio.add_scans(data) for kind, data in files.items()}
    world.run()
    problems = {p["task"]: p["what"] for p in world.status()["problems"]}
    assert sorted(problems) == sorted(t for of_kind in tasks.values() for t in of_kind)
    for kind, of_kind in tasks.items():
        for task in of_kind:
            assert problems[task].startswith(f"the file is {kind}, which")
            assert "Import it with `scanqueue import`" in problems[task]
    assert sorted(world.order()) == sorted(good)


def test_a_tiff_that_somebody_labelled_is_learnt_from(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    world.add_scans(0, 8)
    (task,) = world.studio.add_scans([encoded("TIFF")])
    world.masks[task] = phantom(1, (64, 64))[1]
    world.submit(task)
    world.run()
    assert world.status()["problems"] == []
    assert [r["task"] for r in world.store.labels(PROJECT) if r["mask"]] == [task]


def test_a_web_page_instead_of_an_image_suggests_a_login(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    world.studio.add_scans([b"<!DOCTYPE html><html><form action=login>"])
    world.run()
    (problem,) = world.status()["problems"]
    assert "a web page, not an image: perhaps the server asks for a login" in problem["what"]


def test_many_scans_of_one_cause_are_one_problem_and_are_tried_again_together(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    tasks = world.add_scans(0, 12)
    lost = {world.studio.reference(t): world.studio.images.pop(world.studio.reference(t)) for t in tasks[2:]}
    world.run()
    (group,) = world.status()["problem_groups"]
    assert (group["count"], group["tasks"], group["same"]) == (10, tasks[2:7], False)
    assert group["what"] == world.status()["problems"][0]["what"]
    shown = CliRunner().invoke(cli.app, ["status", "--project", "1", "--data-dir", str(world.folder)], env={}).output
    words = " ".join(shown.split())
    assert f"10 tasks ({', '.join(map(str, tasks[2:7]))}, ...), for example task {tasks[2]}: {group['what']}" in words
    assert shown.count("is not available") == 1
    world.studio.images |= lost
    world.run()
    assert len(world.status()["problems"]) == 10  # tried again only after ten minutes
    number = audit.retry(world.store, PROJECT, "anna", None)
    world.run()
    assert world.status()["problems"] == []
    assert sorted(world.order()) == sorted(tasks)
    (change,) = audit.listed(world.store, PROJECT)
    assert (change["change"], change["user"], change["what"]) == (number, "anna", "10 scans to be read again")
    with pytest.raises(BadSetting, match="No scan has a problem any more"):
        audit.retry(world.store, PROJECT, "anna", None)


def test_trying_all_again_reads_broken_annotations_too_and_no_others(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    first, second, third = world.add_scans(0, 3)
    world.submit(first)
    broken = world.studio.annotate(second, [dict(world.truth(second)[0], original_width=9)])
    world.run()
    before = {r["task"]: r["read_at"] for r in world.store.labels(PROJECT)}
    assert [p["task"] for p in world.status()["problems"]] == [second]
    audit.retry(world.store, PROJECT, "anna", None)
    assert {r["task"] for r in world.store.labels(PROJECT)} == {first}
    world.studio.edit(broken, world.truth(second))
    world.run()
    assert world.status()["problems"] == []
    assert {r["task"]: r["read_at"] for r in world.store.labels(PROJECT)}[first] == before[first]
    assert third not in before


def test_causes_are_told_apart_by_everything_but_names_and_numbers() -> None:
    gone = [{"task": t, "what": f"its image '{t}.png' is not available: the server answered 404."} for t in range(9)]
    denied = [
        {"task": t, "what": f"its image '{t}.png' may not be read: the server answered 403."} for t in range(9, 12)
    ]
    hosts = [{"task": t, "what": f"it is in 'bucket-{t % 2}.lab'. Add it."} for t in range(20, 30)]
    found = grouped([*denied, *hosts, *gone])
    assert [(g["count"], g["tasks"][0], g["same"]) for g in found] == [
        (9, 0, False),
        (5, 20, True),  # each host is spelled out, as each has to be added
        (5, 21, True),
        (1, 9, True),
        (1, 10, True),
        (1, 11, True),
    ]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CONFIG.replace("<Image", "<HyperText"), "points to <HyperText>, which is not supported"),
        (CONFIG.replace("<Image", "<Video"), "points to <Video>, which is not supported"),
        (CONFIG.replace("value=", "valueList=", 1), "<Image> with valueList (several images), which is not supported"),
        (
            CONFIG.replace("<View>", '<View><Repeater on="$images" indexFlag="$i">')
            .replace("</View>", "</Repeater></View>")
            .replace('"image"', '"image_$i"')
            .replace("$image", "$images[$i]", 1),
            "is inside a <Repeater>, which is not supported",
        ),
        (NO_MASKS, "It has Choices. Add <BrushLabels"),
    ],
)
def test_a_config_that_cannot_be_used_names_what_it_has_and_the_line_to_write(
    config: str, words: str, tmp_path: Path
) -> None:
    world = World(tmp_path / "data")
    world.studio.change_config(config)
    tasks = world.add_scans(0, 5)
    world.studio.annotate(tasks[0], [])
    world.run()
    status = world.status()
    assert status["phase"] == "blocked"
    assert words in status["reason"]
    assert '<Image name="image" value="$image"/>' in status["reason"]
    assert (status["scans"], status["labelled"]) == (5, 1)
    world.studio.change_config(CONFIG)
    world.run()
    assert (world.status()["phase"], world.status()["embedded"]) == ("cold_start", 5)
