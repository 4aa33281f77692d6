"""Members of zip archives and compressed files, read as if they were unpacked.

A member has a path of its own, `archive.zip/folder/slice.dcm`, under which it is sniffed, recorded and reported. Files
that are compressed with gzip, bzip2 or xz are known by their content, whatever their names. Nothing unpacked outlives
the reading.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from backend.errors import UnreadableFile

MAX_UNPACKED = 2**32  # bytes of a member or of a decompressed file
_IN_MEMORY = 2**25  # bytes; larger ones are unpacked into a temporary file
_ARCHIVES = ("", ".zip")  # suffixes of archives; documents and NumPy files are zip archives too
_DOCUMENTS = {"[Content_Types].xml", "mimetype", "META-INF/MANIFEST.MF"}
_PACKERS: dict[bytes, tuple[str, Callable[[BinaryIO], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\0": ("xz", lzma.LZMAFile),
}
_SUFFIXES = (".gz", ".bz2", ".xz")
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)


def members(path: Path) -> list[Path] | None:
    """The paths of the files in a zip archive, without hidden ones, in order; None if `path` is not one."""
    if path.suffix.lower() not in _ARCHIVES or not zipfile.is_zipfile(path):
        return None
    try:
        names = _index(path)[1]
    except _BROKEN:
        return None
    if _DOCUMENTS & names.keys():
        return None
    shown = (name for name in names if not any(part[:1] == "." or part == "__MACOSX" for part in name.split("/")))
    return [path / name for name in sorted(shown)]


def is_file(path: Path) -> bool:
    """Whether a path is a regular file or the member of an archive."""
    return path.is_file() or _found(path) is not None


def size(path: Path) -> int:
    """Bytes of a file or member as stored. Raises OSError."""
    try:
        return path.stat().st_size
    except NotADirectoryError:
        found = _found(path)
        if found is None:
            raise
        return found[1].file_size


@contextmanager
def stored(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file or member, seekable. Raises OSError, UnreadableFile for a member that cannot be read."""
    try:
        file = path.open("rb")
    except NotADirectoryError:
        with _member(path) as member:
            yield member
        return
    with file:
        yield file


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The same, decompressed. Raises also UnreadableFile if decompressing fails or exceeds MAX_UNPACKED."""
    with stored(path) as file:
        packing, packer = _packer(file)
        if not packing:
            yield file
            return
        with packer(file) as stream, _copied(path, stream) as copy:
            yield copy


def start(path: Path, count: int) -> tuple[bytes, str]:
    """The first `count` bytes, decompressed, and their compression or ""; b"" if decompressing fails."""
    with stored(path) as file:
        packing, packer = _packer(file)
        if not packing:
            return file.read(count), ""
        try:
            with packer(file) as stream:
                return stream.read(count), packing
        except _BROKEN:
            return b"", packing


@contextmanager
def local(path: Path, *, name: str = "", as_stored: bool = False, beside: Sequence[str] = ()) -> Iterator[Path]:
    """A path for libraries that need one, of the decompressed content, as long as it is open.

    name       the name that the library needs; "": its own, without the suffix of a compression
    as_stored  do not decompress
    beside     files of the same folder that the library reads too, as relative names; missing ones are left out

    Raises the same errors as `opened`.
    """
    plain = path.is_file()
    packed = not as_stored and start(path, 1)[1] != ""
    if plain and not packed and name in ("", path.name):
        yield path
        return
    own = path.stem if packed and path.suffix.lower() in _SUFFIXES else path.name
    with tempfile.TemporaryDirectory(prefix="scanqueue-") as folder:
        target = Path(folder, name or own)
        for source, place in ((path, target), *((path.parent / other, Path(folder, other)) for other in beside)):
            if source != path and not is_file(source):
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if plain and not (packed and source == path):
                place.symlink_to(source.absolute())
                continue
            with (opened if packed and source == path else stored)(source) as file, place.open("wb") as out:
                shutil.copyfileobj(file, out, 1 << 20)
        yield target


def _packer(file: BinaryIO) -> tuple[str, Callable[[BinaryIO], Any]]:
    """The name of a compression, and what decompresses it; "" and the file itself."""
    first = file.read(6)
    file.seek(0)
    return next((packer for magic, packer in _PACKERS.items() if first.startswith(magic)), ("", lambda same: same))


@lru_cache(maxsize=8)
def _archive(path: Path, size: int, changed: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    archive = zipfile.ZipFile(path)
    return archive, {
        str(PurePosixPath(info.filename.lstrip("/"))): info for info in archive.infolist() if not info.is_dir()
    }


def _index(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An open archive and its members by name. Raises the errors in _BROKEN."""
    facts = path.stat()
    return _archive(path, facts.st_size, facts.st_mtime_ns)


def _found(path: Path) -> tuple[zipfile.ZipFile, zipfile.ZipInfo] | None:
    """The archive that contains `path`, and its entry there."""
    archive = next((parent for parent in path.parents if parent.is_file()), None)
    if archive is None:
        return None
    try:
        opened, names = _index(archive)
    except _BROKEN:
        return None
    info = names.get(path.relative_to(archive).as_posix())
    return None if info is None else (opened, info)


@contextmanager
def _member(path: Path) -> Iterator[BinaryIO]:
    found = _found(path)
    if found is None:
        raise UnreadableFile(path, "cannot be read: its archive no longer contains it, or is damaged")
    archive, info = found
    if info.flag_bits & 1:
        raise UnreadableFile(path, "is encrypted; unpack its archive with the password")
    try:
        stream: Any = archive.open(info)
    except _BROKEN as error:
        raise _broken(path) from error
    with stream, _copied(path, stream) as copy:
        yield copy


@contextmanager
def _copied(path: Path, stream: IO[bytes]) -> Iterator[BinaryIO]:
    """The content of a stream as a seekable file. Raises UnreadableFile."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as copy:
        try:
            length = 0
            while piece := stream.read(1 << 20):
                length += copy.write(piece)
                if length > MAX_UNPACKED:
                    raise UnreadableFile(path, f"unpacks to more than {MAX_UNPACKED >> 30} GiB, the maximum; split it")
        except _BROKEN as error:
            raise _broken(path) from error
        copy.seek(0)
        yield copy  # type: ignore[misc]


def _broken(path: Path) -> UnreadableFile:
    return UnreadableFile(path, "cannot be unpacked: its compressed data are truncated or damaged; copy it again")
