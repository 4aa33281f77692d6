"""NRRD, MetaImage, FreeSurfer, compressed files and archives: read as SimpleITK and nibabel read them, or refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import dataset, save, series
from PIL import Image

from backend.formats import Source, UnreadableFile, Volume, cut, group, packed, read, read_geometry, sniff
from backend.formats.labels import write_nifti_labels
from backend.intake.files import walk
from backend.intake.slicing import digest

RNG = np.random.default_rng(11)
VALUES = RNG.integers(0, 100, (4, 5, 6)).astype(np.int16)  # i, j, k
AFFINE = np.array([[-1.0, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 3.0, 30], [0, 0, 0, 1]])


def source(path: Path) -> Source:
    fact = sniff(path)
    assert fact is not None
    (found,) = group([fact])
    return found


def one(path: Path, *, time: int | None = None) -> Volume:
    volume = read(source(path), time=time)
    assert read_geometry(source(path), time=time) == volume.geometry
    return volume


def itk(values: np.ndarray[Any, Any], **options: Any) -> sitk.Image:
    image = sitk.GetImageFromArray(values.swapaxes(0, 2), **options)
    image.SetSpacing((1.0, 1.5, 3.0))
    image.SetOrigin((-10.0, -20.0, 30.0))
    return image


# ---- NRRD, MetaImage


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("packing", [False, True])
def test_nrrd_and_metaimage_have_the_voxels_and_places_of_itk(tmp_path: Path, name: str, packing: bool) -> None:
    for kind in ("i1", "u1", "i2", "u2", "i4", "f4", "f8"):
        values = VALUES.astype(kind) - (20 if kind[0] != "u" else 0)
        image = itk(values)
        image.SetDirection((0, 1, 0, 0, 0, -1, -1, 0, 0))
        sitk.WriteImage(image, tmp_path / name, useCompression=packing)
        volume = one(tmp_path / name)
        assert (volume.values == values).all()
        assert volume.values.dtype == (np.float32 if kind == "f8" else kind)
        for index in ((0, 0, 0), (3, 0, 0), (0, 4, 5)):
            place = np.diag([-1, -1, 1]) @ np.array(image.TransformIndexToPhysicalPoint(index))
            assert np.allclose(volume.geometry.affine @ [*index, 1], [*place, 1])
    if name in ("a.nhdr", "a.mhd"):
        assert len(source(tmp_path / name).files) == 2


def test_labels_of_an_nrrd_lie_on_its_voxels(tmp_path: Path) -> None:
    sitk.WriteImage(itk(VALUES), tmp_path / "a.nrrd")
    labels = (VALUES > 50).astype(np.uint8)
    write_nifti_labels(tmp_path / "l.nii.gz", labels, source(tmp_path / "a.nrrd"), names=("Lung",))
    ours, theirs = sitk.ReadImage(tmp_path / "l.nii.gz"), sitk.ReadImage(tmp_path / "a.nrrd")
    assert np.allclose(ours.GetOrigin(), theirs.GetOrigin())
    assert np.allclose(ours.GetDirection(), theirs.GetDirection())
    assert (sitk.GetArrayFromImage(ours) == (sitk.GetArrayFromImage(theirs) > 50)).all()


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_times_channels_colour_and_flat_images(tmp_path: Path, name: str) -> None:
    volumes = [itk(VALUES + t) for t in range(3)]
    sitk.WriteImage(sitk.JoinSeries(volumes), tmp_path / name)
    assert (one(tmp_path / name, time=2).values == VALUES + 2).all()
    with pytest.raises(UnreadableFile, match=r"has 3 volumes over time; choose one with --time 0 \.\. --time 2"):
        one(tmp_path / name)
    sitk.WriteImage(sitk.Compose(volumes), tmp_path / name)
    assert (one(tmp_path / name, time=1).values == VALUES + 1).all()
    colour = RNG.integers(0, 255, (6, 5, 4, 3), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), tmp_path / name)
    assert (one(tmp_path / name).values == colour.swapaxes(0, 2)).all()
    sitk.WriteImage(sitk.GetImageFromArray(VALUES[:, :, 0].T), tmp_path / name)
    assert (one(tmp_path / name).values == VALUES[:, :, :1]).all()
    if name == "a.nrrd":  # MetaImage has no complex numbers
        sitk.WriteImage(sitk.Cast(itk(VALUES), sitk.sitkComplexFloat32), tmp_path / name)
        with pytest.raises(UnreadableFile, match="complex numbers"):
            sniff(tmp_path / name)


def nrrd(path: Path, fields: str, data: bytes) -> Path:
    path.write_bytes(f"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nendian: little\n{fields}\n\n".encode() + data)
    return path


def test_nrrds_as_other_tools_write_them(tmp_path: Path) -> None:
    raw = VALUES.tobytes("F")
    for encoding, data in (
        ("raw", raw),
        ("gzip", gzip.compress(raw)),
        ("ascii", " ".join(map(str, VALUES.ravel("F"))).encode()),
    ):
        path = nrrd(tmp_path / "a.nrrd", f"encoding: {encoding}\nspacings: 1 1.5 3", data)
        volume = one(path)
        assert (volume.values == VALUES).all()
        assert (volume.geometry.orientation, volume.geometry.spacing) == ("", (1.0, 1.5, 3.0))  # no `space`
    directions = "space: right-anterior-superior\nspace directions: (1,0,0) (0,1.5,0) (0,0,3)\nspace origin: (1,2,3)"
    placed = one(nrrd(tmp_path / "a.nrrd", f"encoding: raw\n{directions}", raw)).geometry
    assert placed.orientation == "RAS"
    assert (placed.affine == [[1, 0, 0, 1], [0, 1.5, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]]).all()
    names = [f"{k}.raw" for k in range(6)]
    for k, name in enumerate(names):
        (tmp_path / name).write_bytes(VALUES[:, :, k].tobytes("F"))
    for files in ("LIST\n" + "\n".join(names), "%d.raw 0 5 1"):
        path = nrrd(tmp_path / "a.nhdr", f"encoding: raw\ndata file: {files}", b"")
        path.write_bytes(path.read_bytes().rstrip(b"\n") + b"\n")
        assert (one(path).values == VALUES).all()
        assert [file.name for file in source(path).files] == ["a.nhdr", *names]


def test_a_segmentation_of_3d_slicer_is_no_scan(tmp_path: Path) -> None:
    image = itk((VALUES > 50).astype(np.uint8))
    image.SetMetaData("Segment0_ID", "Segment_1")
    sitk.WriteImage(image, tmp_path / "a.seg.nrrd")
    assert sniff(tmp_path / "a.seg.nrrd") is None


def test_headers_that_claim_too_much_or_reach_elsewhere_are_refused(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", "encoding: raw", VALUES.tobytes()[:-10])
    with pytest.raises(UnreadableFile, match=r"a\.nrrd: is truncated"):
        sniff(path)
    path.write_bytes(path.read_bytes().replace(b"4 5 6", b"40000 50000 60000"))
    with pytest.raises(UnreadableFile, match="is too large"):
        sniff(path)
    path = nrrd(tmp_path / "a.nhdr", "encoding: raw\ndata file: ../secret.raw", b"")
    with pytest.raises(UnreadableFile, match="names a data file in another folder"):
        sniff(path)
    path = nrrd(tmp_path / "a.nhdr", "encoding: raw\ndata file: gone.raw", b"")
    with pytest.raises(UnreadableFile, match="the file that it names for its voxels is missing"):
        sniff(path)
    (tmp_path / "b.mha").write_text("this is text")
    with pytest.raises(UnreadableFile, match="is not an image, although its name"):
        sniff(tmp_path / "b.mha")


# ---- FreeSurfer, NIfTI with mistakes


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
def test_freesurfer_volumes_are_read(tmp_path: Path, name: str) -> None:
    nib.save(nib.MGHImage(VALUES, AFFINE), tmp_path / name)
    volume = one(tmp_path / name)
    assert (volume.values == VALUES).all()
    assert np.allclose(volume.geometry.affine, AFFINE)
    write_nifti_labels(tmp_path / "l.nii", (VALUES > 50).astype(np.uint8), source(tmp_path / name), names=("Lung",))
    assert np.allclose(nib.load(tmp_path / "l.nii").affine, AFFINE)


def test_compression_is_known_by_content_not_by_name(tmp_path: Path) -> None:
    raw = nib.Nifti1Image(VALUES, AFFINE).to_bytes()
    for name, content in (
        ("a.nii", gzip.compress(raw)), ("b.nii.gz", raw), ("c", gzip.compress(raw)), ("d.nii.bz2", bz2.compress(raw)),
        ("e.nii.xz", lzma.compress(raw)), ("f.mgh", gzip.compress(nib.MGHImage(VALUES, AFFINE).to_bytes())),
        ("g.mgz", nib.MGHImage(VALUES, AFFINE).to_bytes()),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        volume = one(tmp_path / name)
        assert (volume.values == VALUES).all(), name
        assert source(tmp_path / name).files == (tmp_path / name,)
    sitk.WriteImage(itk(VALUES), tmp_path / "h.nrrd")
    (tmp_path / "h.nrrd.gz").write_bytes(gzip.compress((tmp_path / "h.nrrd").read_bytes()))
    assert (one(tmp_path / "h.nrrd.gz").values == VALUES).all()
    Image.fromarray(VALUES[:, :, 0].astype(np.uint8)).save(tmp_path / "i.png")
    (tmp_path / "i.png.gz").write_bytes(gzip.compress((tmp_path / "i.png").read_bytes()))
    assert (VALUES[:, :, 0] == one(tmp_path / "i.png.gz").values[:, :, 0].T).all()


@pytest.mark.parametrize("zeros", [(4,), (4, 5), (3,), (3, 4)])
def test_a_dimension_of_0_after_the_second_counts_as_1(tmp_path: Path, zeros: tuple[int, ...]) -> None:
    values = VALUES if 3 not in zeros else VALUES[:, :, :1]
    raw = bytearray(nib.Nifti1Image(values, AFFINE).to_bytes())
    raw[40:42] = max(zeros).to_bytes(2, "little")
    for at in zeros:
        raw[40 + 2 * at : 42 + 2 * at] = bytes(2)
    (tmp_path / "a.nii").write_bytes(raw)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    for name in ("a.nii", "b.nii.gz"):
        volume = one(tmp_path / name)
        assert (volume.values == values).all()
        assert volume.geometry.spacing == (1.0, 1.5, 3.0)


def test_cifti_is_refused_by_name(tmp_path: Path) -> None:
    axes = nib.cifti2.ScalarAxis(["a"]), nib.cifti2.BrainModelAxis.from_mask(np.ones((2, 2, 2)), affine=np.eye(4))
    nib.save(nib.Cifti2Image(np.zeros((1, 8), np.float32), axes), tmp_path / "a.dscalar.nii")
    with pytest.raises(UnreadableFile, match="is CIFTI: values on the surface of the brain"):
        sniff(tmp_path / "a.dscalar.nii")


# ---- compressed DICOM, archives


def zipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def test_compressed_dicom_is_the_same_series(tmp_path: Path) -> None:
    paths = series(tmp_path / "plain", RNG.integers(0, 99, (4, 6, 5)).astype(np.int16))
    before = read(group(fact for fact in map(sniff, paths) if fact)[0])
    for path in paths:
        path.with_suffix(".dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (found,) = group(fact for fact in map(sniff, walk([tmp_path])) if fact)
    assert len(found.files) == 4
    after = read(found)
    assert (after.values == before.values).all()
    assert after.geometry == before.geometry == read_geometry(found)


def test_the_members_of_an_archive_are_read_without_unpacking(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    series(folder / "a b", RNG.integers(0, 99, (4, 6, 5)).astype(np.int16))
    nib.save(nib.Nifti1Image(VALUES, AFFINE), folder / "v.nii.gz")
    nib.save(nib.Nifti1Pair(VALUES, AFFINE), folder / "pair.hdr")
    sitk.WriteImage(itk(VALUES), folder / "m.mhd")
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(folder / "p.png")
    (folder / "notes.txt").write_text("text")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._p.png").write_text("text")
    archive = zipped(tmp_path / "a.zip", folder)
    found = group(fact for fact in map(sniff, walk([archive])) if fact)
    plain = group(fact for fact in map(sniff, walk([folder])) if fact)
    assert len(found) == len(plain) == 5
    for inside, outside in zip(found, plain, strict=True):
        assert [f.relative_to(archive) for f in inside.files] == [f.relative_to(folder) for f in outside.files]
        assert (read(inside).values == read(outside).values).all()
        assert read_geometry(inside) == read_geometry(outside)
        assert digest(inside) == digest(outside)


def test_archives_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "a.dcm", dataset(np.zeros((64, 64), np.uint16)))
    archive = zipped(tmp_path / "a.zip", folder)
    whole = archive.read_bytes()
    zipped(tmp_path / "outer.zip", tmp_path / "in").rename(folder / "b.zip")
    (member,) = (path for path in walk([zipped(tmp_path / "outer.zip", folder)]) if path.name == "b.zip")
    with pytest.raises(UnreadableFile, match=r"b\.zip: is a damaged archive, or an archive in an archive"):
        sniff(member)
    archive.write_bytes(whole[:-40])
    assert list(walk([archive])) == [archive]
    with pytest.raises(UnreadableFile, match=r"a\.zip: is a damaged archive"):
        sniff(archive)
    damaged = bytearray(whole)
    damaged[60:80] = bytes(20)
    archive.write_bytes(damaged)
    (member,) = walk([archive])
    with pytest.raises(UnreadableFile, match=r"a\.dcm: .*(cannot be unpacked|damaged)"):
        one(member)
    locked = bytearray(whole)
    locked[6] |= 1
    locked[whole.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(locked)
    (member,) = walk([archive])
    with pytest.raises(UnreadableFile, match="is encrypted; unpack its archive with the password"):
        sniff(member)


def test_a_member_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MAX_UNPACKED", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM" + bytes(1 << 22))
    with pytest.raises(UnreadableFile, match="unpacks to more than"):
        sniff(tmp_path / "a.zip" / "a.dcm")
    (tmp_path / "b.dcm").write_bytes(gzip.compress(bytes(128) + b"DICM" + bytes(1 << 22)))
    with pytest.raises(UnreadableFile, match="unpacks to more than"):
        sniff(tmp_path / "b.dcm")


def test_documents_are_not_searched_for_pictures(tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "p.png")
    for name, inner in (("a.docx", "word/document.xml"), ("b.zip", "[Content_Types].xml"), ("c.npz", "x.npy")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(inner, "x")
            archive.write(tmp_path / "p.png", "media/p.png")
        assert list(walk([tmp_path / name])) == [tmp_path / name]


def test_pictures_of_an_archive_are_cut_like_others(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(tmp_path / "in/p.png")
    volume = one(zipped(tmp_path / "a.zip", tmp_path / "in") / "p.png")
    assert (cut(volume.geometry, "acquisition").take(volume.values, 0) == np.arange(20).reshape(4, 5)).all()
