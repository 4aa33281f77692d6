"""Files with names, ids, dates and numbers planted in every text field, and a search for leaks.

Every planted text contains one of a few marks that never occur otherwise; `hunt` searches for them.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import nibabel
import numpy as np
from made_scans import pixels, slice_dataset
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

WORD = "Qzxj"  # in every name and text, followed by a number
UIDS = "1.2.826.0.1.3680043.10.4711."
TIME = "113355."
DATES = [f"1931{month:02d}{day:02d}" for month in range(1, 13) for day in range(1, 29)]
MARKS = (
    *(word.encode(code) for word in (WORD.lower(), UIDS, TIME, "11:33:55") for code in ("utf-8", "utf-16-le")),
    *(date.encode() for date in DATES),
    *(f"{date[:4]}-{date[4:6]}-{date[6:]}".encode() for date in DATES),
)
NUMBERS = re.compile(rb"(?<![\d.])4093\d{5}(?!\d)")

# Fields for reading and positioning the pixels; planted texts would make the files invalid
NEEDED = frozenset(
    """
    SpecificCharacterSet SOPClassUID PhotometricInterpretation NumberOfFrames ImagePositionPatient
    ImageOrientationPatient PixelSpacing SliceThickness WindowCenter WindowWidth RescaleIntercept RescaleSlope
    TransferSyntaxUID MediaStorageSOPClassUID Modality InstanceNumber VOILUTFunction PresentationLUTShape
    PixelAspectRatio ModalityLUTSequence VOILUTSequence SoftcopyVOILUTSequence PixelValueTransformationSequence
    ImageType SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence FrameVOILUTSequence
    LossyImageCompression PresentationLUTSequence DirectoryRecordSequence BurnedInAnnotation
    RedPaletteColorLookupTableData TemporalPositionIndex ImagerPixelSpacing NominalScannedPixelSpacing
    SpacingBetweenSlices PixelPaddingValue ExtendedOffsetTable SamplesPerPixel DataSetSubtype TimeRange
    """.split()  # noqa: SIM905
)


class Planter:
    """Unique texts that are valid in DICOM fields."""

    def __init__(self) -> None:
        self.number = 0

    def word(self) -> str:
        self.number += 1
        return f"{WORD}{self.number:05d}"

    def value(self, vr: str) -> str | bytes | None:
        """A text for a field with this VR; None if the VR holds no text."""
        word = self.word()
        match vr:
            case "CS" | "AE":
                return word.upper()
            case "LO" | "SH" | "UC" | "LT" | "ST" | "UT":
                return word
            case "UR":
                return f"https://{word}.example/{word}"
            case "PN":
                return f"{word}^{word}"
            case "DA":
                return DATES[self.number % len(DATES)]
            case "DT":
                return f"{DATES[self.number % len(DATES)]}{TIME}{self.number % 1000000:06d}"
            case "TM":
                return f"{TIME}{self.number % 1000000:06d}"
            case "UI":
                return f"{UIDS}{self.number}"
            case "IS" | "DS":
                return f"4093{self.number % 100000:05d}"
            case "OB" | "UN":
                return word.encode().ljust(12, b" ")
        return None


def dicom(path: Path, number: int, planter: Planter, *, modality: bool = False) -> None:
    """An MR slice with a planted text in every text field: the whole dictionary, sequences, private blocks,
    file meta information, preamble."""
    made = slice_dataset("planted", number, pixels(number, 48, 48))
    made.SeriesInstanceUID = f"{UIDS}7" if not modality else f"{UIDS}8"
    made.StudyInstanceUID = f"{UIDS}9"
    made.FrameOfReferenceUID = f"{UIDS}10"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{UIDS}{100 + number + 50 * modality}"
    kept = {"SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"}
    for tag, (vr, multiplicity, _, _, keyword) in DicomDictionary.items():
        if not keyword or keyword in NEEDED | kept or tag >> 16 <= 2 or tag >> 16 in (0x0028, 0x5400, 0x7FE0):
            continue
        if vr == "SQ":
            item = Dataset()
            item.PatientName, item.PatientID = planter.value("PN"), planter.value("LO")
            item.StudyDate, item.ContentDescription = planter.value("DA"), planter.value("LO")
            setattr(made, keyword, Sequence([item]))
            continue
        value = planter.value(vr)
        if value is None or (vr == "AS"):
            continue
        times = int(multiplicity[0]) if multiplicity[0].isdecimal() else 1
        many = times > 1 and isinstance(value, str)
        setattr(made, keyword, [planter.value(vr) for _ in range(times)] if many else value)
    if modality:
        made.Modality = planter.value("CS")
    for group in (0x0099, 0x1099):
        block = made.private_block(group, planter.word(), create=True)
        for element, vr in enumerate(("LO", "PN", "UT", "DA", "UN", "OB", "UI"), start=1):
            block.add_new(element, vr, planter.value(vr))
        inner = Dataset()
        inner.PatientName = planter.value("PN")
        block.add_new(0x20, "SQ", Sequence([inner]))
    meta = made.file_meta
    meta.SourceApplicationEntityTitle = planter.value("AE")
    meta.SendingApplicationEntityTitle = planter.value("AE")
    meta.ImplementationVersionName = planter.value("SH")
    meta.ImplementationClassUID = UID(f"{UIDS}11")
    meta.PrivateInformationCreatorUID = UID(f"{UIDS}12")
    meta.PrivateInformation = planter.value("OB")
    made.preamble = planter.word().encode().ljust(128, b"\0")
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)


def nifti(path: Path, planter: Planter) -> None:
    """A volume with texts in every header field, in extensions, and in the gzip header."""
    volume = nibabel.Nifti1Image(np.dstack([pixels(n, 24, 20) for n in range(4)]), np.diag([1.0, 1, 2, 1]))
    header = volume.header
    for name, size in (("descrip", 80), ("aux_file", 24), ("intent_name", 16), ("db_name", 18), ("data_type", 10)):
        header[name] = planter.word().encode()[:size]
    for code in (2, 4, 6, 44):
        text = f"{planter.word()} {DATES[code]} {planter.word()}".encode()
        volume.header.extensions.append(nibabel.nifti1.Nifti1Extension(code if code != 2 else 6, text))
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_suffix("")
    with gzip.GzipFile(plain.name, "wb", fileobj=path.open("wb")) as file:
        file.write(volume.to_bytes())


def pictures(folder: Path, planter: Planter) -> None:
    """PNG, TIFF and JPEG with texts in their chunks, tags, EXIF and comments."""
    folder.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    for tag in (0x010E, 0x013B, 0x8298, 0x0131, 0x0132, 0x9C9D, 0x9C9C, 0x013C):
        exif[tag] = planter.word().encode("utf-16-le") if tag >> 8 == 0x9C else planter.word()
    texts = PngInfo()
    texts.add_text("Patient", planter.word())
    texts.add_text(planter.word(), planter.word(), zip=True)
    texts.add_itxt("Name", planter.word(), lang="en", tkey=planter.word())
    Image.fromarray((pixels(1, 60, 50) // 4).astype(np.uint8)).save(
        folder / f"{planter.word()}.png", pnginfo=texts, exif=exif
    )
    Image.fromarray(pixels(2, 60, 50).astype(np.uint16)).save(folder / f"{planter.word()}16.png", pnginfo=texts)
    tags = ImageFileDirectory_v2()
    for tag in (269, 270, 271, 272, 285, 305, 306, 315, 316, 33432, 65000):
        tags[tag] = planter.word()
    tags[700] = f"<x>{planter.word()}</x>".encode()  # XMP
    Image.fromarray((pixels(3, 60, 50) // 4).astype(np.uint8)).save(folder / f"{planter.word()}.tif", tiffinfo=tags)
    Image.fromarray((pixels(4, 60, 50) // 4).astype(np.uint8)).save(
        folder / f"{planter.word()}.jpg", exif=exif, comment=planter.word(), xmp=f"<x>{planter.word()}</x>".encode()
    )


def plant(folder: Path) -> int:
    """Write files of every kind below `folder`, with planted names too; returns the number of planted texts."""
    planter = Planter()
    study = folder / f"{planter.word()}_{DATES[40]}" / planter.word()
    for number in range(3):
        dicom(study / f"{planter.word()}.dcm", number, planter)
    dicom(folder / planter.word() / f"{planter.word()}.dcm", 3, planter, modality=True)
    nifti(folder / planter.word() / f"{planter.word()}.nii.gz", planter)
    pictures(folder / planter.word(), planter)
    whole = next(study.iterdir()).read_bytes()
    (folder / f"{planter.word()}.dcm").write_bytes(whole[: len(whole) // 10])  # broken
    (folder / f"{planter.word()}.txt").write_text(planter.word())
    return planter.number


def hunt(places: Iterable[Path | bytes | str]) -> list[str]:
    """The places with marks of planted texts: names and contents of files, folders and texts."""
    found = []
    for what, content in _contents(places):
        low = content.lower()
        found += [f"{what}: {mark!r}" for mark in MARKS if mark in low]
        found += [f"{what}: {number.decode()}" for number in NUMBERS.findall(content)]
    return found


def _contents(places: Iterable[Path | bytes | str]) -> Iterator[tuple[str, bytes]]:
    for place in places:
        if isinstance(place, bytes | str):
            yield "text", place if isinstance(place, bytes) else place.encode("utf-8", "surrogateescape")
            continue
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            inside = str(path.relative_to(place)) if path != place else path.name
            yield f"the name of {inside}", inside.encode("utf-8", "surrogateescape")
            if path.is_file():
                content = path.read_bytes()
                yield inside, content
                if content[:2] == b"\x1f\x8b":
                    yield f"{inside}, unpacked", gzip.GzipFile(fileobj=io.BytesIO(content)).read()
