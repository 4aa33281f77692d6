"""How fast scans are imported, and whether memory grows with their number.

Ours: `scanqueue import --local-files` of synthetic DICOM series into a real Label Studio, from the first access to the
files until the last task is created, with identities, pseudonyms and the detection of burnt-in text. Compared with: the
same number of processes that only decode (pydicom), window (NumPy) and write each slice as a PNG (OpenCV, the same
level and filter), on the same files, alternating. Both sets of processes are started before the time is measured.

Memory: the peak sum of the proportional set sizes (PSS) of the command line's processes, with all series and with a
quarter of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from backend.demo.label_studio import LabelStudio
from backend.intake.plan import ImportOptions
from backend.intake.request import ImportRequest
from backend.intake.run import run
from backend.intake.slicing import PNG
from backend.label_studio.studio import Studio
from backend.workers.process_pool import Workers
from benchmarks.measure import alternate, report, rounded, summary, timed
from benchmarks.servers import CONFIG

LIMIT = 0.8
GROWTH = 1.15  # limit for the growth of memory, with PART times as many scans
PART = 4
SIDE = 512
DEEP = 50  # slices per series


def main() -> None:
    parser = argparse.ArgumentParser(description="Import of DICOM slices, compared with a bare loop.")
    parser.add_argument("--quick", action="store_true", help="800 slices; about a minute")
    parser.add_argument("--slices", type=int, help="number of slices; default: 10,000")
    given = parser.parse_args()
    slices = given.slices or (800 if given.quick else 10_000)
    side, repetitions = SIDE, 3
    processes = os.cpu_count() or 1
    with TemporaryDirectory(prefix="scanqueue-benchmark-") as scratch:
        folder = Path(scratch)
        (folder / "served").mkdir()
        files = write_series(folder / "scans", slices, side)
        with LabelStudio.start(folder / "label-studio", local_files=folder / "served") as studio:
            lab = Lab(studio, folder, processes)

            with bare_processes(processes) as pool, Workers(processes) as workers:

                def theirs() -> float:
                    shutil.rmtree(folder / "bare", ignore_errors=True)
                    return timed(lambda: bare(pool, files, folder / "bare"))

                found = alternate(lambda: lab.run(workers, folder / "scans", slices), theirs, repetitions)
            few = sorted((folder / "scans").iterdir())[: max(2, slices // DEEP // PART)]
            small = lab.memory(*few)
            large = lab.memory(folder / "scans")
    figures = found.inverted.figures()  # theirs / ours in time: our throughput as a fraction of theirs
    growth = rounded(large / small)
    met = figures["ratio"] >= LIMIT and growth <= GROWTH
    ours, theirs_s = sorted(found.ours)[len(found.ours) // 2], sorted(found.theirs)[len(found.theirs) // 2]
    report(
        f"{slices} slices of {side} x {side} pixels, {processes} processes",
        ["", "seconds", "slices per second", "peak memory, MiB"],
        [
            ["scanqueue import --local-files", ours, slices / ours, large / 2**20],
            ["pydicom, NumPy, cv2", theirs_s, slices / theirs_s, ""],
            [f"import of only {len(few) * DEEP} slices", "", "", small / 2**20],
        ],
        summary(
            figures,
            unit="of the bare loop's throughput",
            compared="scanqueue import to local files / pydicom decode, window, cv2 PNG in equally many processes",
            sizes={"slices": slices, "side": side, "slices_per_series": DEEP, "repetitions": repetitions},
            memory={"growth": growth, "small": rounded(small), "large": rounded(large), "limit": GROWTH},
            limit=LIMIT,
            met=met,
        ),
        note=f"{figures['ratio']} of the bare loop's throughput ({figures['low']} .. {figures['high']}), "
        f"target: at least {LIMIT}; {growth} times the memory with {slices / (len(few) * DEEP):.0f} times the slices, "
        f"target: at most {GROWTH}",
    )
    if not met:
        raise SystemExit(1)


class Lab:
    """Imports, each into a new project of the same Label Studio."""

    def __init__(self, studio: LabelStudio, folder: Path, processes: int) -> None:
        self._studio = studio
        self._client = Studio(studio.url, studio.personal_access_token())
        self._folder = folder
        self._processes = processes
        self._number = 0

    def _new(self) -> tuple[int, Path]:
        """A new project, and a folder for its identities; the previous project's pictures are removed."""
        self._number += 1
        shutil.rmtree(self._folder / "served", ignore_errors=True)
        (self._folder / "served").mkdir()
        return self._studio.create_project(f"intake {self._number}", CONFIG), self._folder / f"data-{self._number}"

    def run(self, workers: Workers, scans: Path, slices: int) -> float:
        """Duration of one import, in seconds."""
        project, data = self._new()
        request = ImportRequest(
            project=project,
            paths=(scans,),
            options=ImportOptions(),
            identities=data / "identities.sqlite",
            spool=data / "spool",
            locks=data / "locks",
            jobs=self._processes,
            local=self._folder / "served" / "set",
        )
        began = time.perf_counter()
        tally = run(request, self._client, workers, Silent())
        seconds = time.perf_counter() - began
        if tally.made != slices or tally.problems:
            raise RuntimeError(f"{tally.made} tasks were created from {slices} slices, {len(tally.problems)} problems")
        return seconds

    def memory(self, *paths: Path) -> float:
        """Peak total memory of the command line's processes, in bytes."""
        project, data = self._new()
        served = self._folder / "served" / "set"
        command = [
            sys.executable,
            "-m",
            "backend.cli",
            "import",
            "--project",
            str(project),
            "--local-files",
            str(served),
        ]
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("SCANQUEUE_")},
            "SCANQUEUE_LABEL_STUDIO_URL": self._studio.url,
            "SCANQUEUE_LABEL_STUDIO_API_KEY": self._studio.personal_access_token(),
            "SCANQUEUE_DATA_DIR": str(data),
        }
        with subprocess.Popen([*command, *map(str, paths)], env=environment, stdout=subprocess.DEVNULL) as process:
            most = 0.0
            while process.poll() is None:
                most = max(most, memory_of(process.pid))
                time.sleep(0.05)
        if process.returncode:
            raise RuntimeError(f"the import exited with {process.returncode}")
        return most


class Silent:
    def looked(self, files: int) -> None: ...

    def begin(self, total: int) -> None: ...

    def advance(self, files: int, made: int) -> None: ...


def memory_of(pid: int) -> float:
    """Bytes of a process and its descendants; shared pages count proportionally."""
    total, waiting = 0.0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # exited in the meantime
        total += sum(1024.0 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def bare_processes(number: int) -> ProcessPoolExecutor:
    """Started processes, with their modules imported."""
    pool = ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn"))
    list(pool.map(_bare, [[]] * 4 * number, [Path()] * 4 * number))
    return pool


def bare(pool: ProcessPoolExecutor, files: list[Path], folder: Path) -> None:
    """Decode, window and write every file, 32 at a time."""
    folder.mkdir()
    lots = [files[start : start + 32] for start in range(0, len(files), 32)]
    list(pool.map(_bare, lots, [folder] * len(lots)))


def _bare(files: list[Path], folder: Path) -> None:
    cv2.setNumThreads(1)
    for number, path in enumerate(files):
        read = pydicom.dcmread(path)
        values = read.pixel_array.astype(np.float32) * float(read.RescaleSlope) + float(read.RescaleIntercept)
        low = float(read.WindowCenter) - float(read.WindowWidth) / 2
        picture = (np.clip((values - low) / float(read.WindowWidth), 0, 1) * 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{path.parent.name}-{number}-{path.stem}.png"), picture, PNG)


def write_series(folder: Path, slices: int, side: int) -> list[Path]:
    """CT series of DEEP slices each, 12 bits, uncompressed, rescaled, with a window and CT-like noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 1040, 24) + 60 * np.sin(9 * x) * np.cos(7 * y)
    noise = [rng.normal(0, 12, (side, side)) for _ in range(8)]
    written = []
    for number in range(slices):
        series, place = divmod(number, DEEP)
        path = folder / f"{series:04d}" / f"{place:04d}.dcm"
        path.parent.mkdir(exist_ok=True)
        image = np.clip(np.roll(body, number % 97, axis=1) + noise[number % 8], 0, 4095).astype("<u2")
        _slice(series, place, image).save_as(path, enforce_file_format=True)
        written.append(path)
    return written


def _slice(series: int, place: int, image: NDArray[np.uint16]) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = CTImageStorage
    made.SOPInstanceUID = generate_uid(entropy_srcs=[f"{series} {place}"])
    made.SeriesInstanceUID = generate_uid(entropy_srcs=[f"{series}"])
    made.StudyInstanceUID = generate_uid(entropy_srcs=[f"study {series}"])
    made.FrameOfReferenceUID = generate_uid(entropy_srcs=[f"frame {series}"])
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.Modality, made.PatientID, made.PatientName = "CT", f"{series // 2}", "Benchmark^Made"
    made.InstitutionName, made.InstanceNumber = "Benchmark", place + 1
    made.ImageOrientationPatient, made.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-200, -200, 2.5 * place]
    made.PixelSpacing, made.SliceThickness = [0.78, 0.78], 2.5
    made.Rows, made.Columns = image.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.RescaleIntercept, made.RescaleSlope = -1024, 1
    made.WindowCenter, made.WindowWidth = 40, 400
    made.PixelData = image.tobytes()
    return made


if __name__ == "__main__":
    main()
