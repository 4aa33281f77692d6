"""The identities file: stable pseudonyms, a secret key, readable by its owner only."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.errors import BadIdentities
from backend.formats import Geometry, Source
from backend.intake.identities import Identities, ScanRecord

GEOMETRY = Geometry(
    shape=(32, 40, 2),
    affine=np.array([[-0.1, 0.3, 0, 7], [0.2, -1 / 3, 0, 8], [0, 0, 2.5, -9], [0, 0, 0, 1]]),
    spacing=(0.1, 0.7, 2.5),
    regular=True,
    acquisition=2,
    orientation="LPS",
    as_stored=True,
)


def record(scan: str = "S-ONE", **changes: object) -> ScanRecord:
    source = Source("dicom", (Path("/a/Müller.dcm"), Path("/a/b.dcm")), "1.2/ab", ("1.2.3", "1.2.4"), "NO")
    made = ScanRecord(scan, source, "d" * 64, GEOMETRY, None, "MR", "P-ONE", 5.0, ("acquisition",))
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def identities(tmp_path: Path) -> Identities:
    return Identities(tmp_path / "new" / "identities.sqlite")


def test_a_value_has_one_permanent_pseudonym_per_file_and_kind(tmp_path: Path) -> None:
    with Identities(tmp_path / "one.sqlite") as one, Identities(tmp_path / "two.sqlite") as two:
        patient = one.pseudonym("patient", "Roe^Jané")
        assert patient[:2] == "P-"
        assert set(patient[2:]) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
        assert len(patient) == 14
        assert one.pseudonym("patient", "Roe^Jané") == patient
        others = {one.pseudonym("patient", "Roe^Jane"), two.pseudonym("patient", "Roe^Jané")}
        others |= {one.pseudonym("scan", "Roe^Jané"), one.pseudonym("site", "Roe^Jané")}
        assert len({text[2:] for text in others} | {patient[2:]}) == 5
    with Identities(tmp_path / "one.sqlite") as again:
        assert again.value(patient) == "Roe^Jané"
        assert again.pseudonym("patient", "Roe^Jané") == patient
        assert again.value("P-NOBODY") is None


def test_a_pseudonym_can_be_computed_without_being_stored(identities: Identities) -> None:
    made = identities.pseudonym("scan", "x", remember=False)
    assert identities.value(made) is None
    assert identities.pseudonym("scan", "x") == made
    assert identities.value(made) == "x"


def test_a_scan_is_restored_bit_for_bit(identities: Identities) -> None:
    identities.put_scan(record())
    identities.put_scan(record("S-TWO", time=3, added_at=4.0, source=Source("image", (Path("/p\udcff.png"),), "")))
    assert identities.scan("S-ONE") == record()
    assert [found.scan for found in identities.scans()] == ["S-TWO", "S-ONE"]
    assert identities.scan("S-TWO").source.files == (Path("/p\udcff.png"),)  # type: ignore[union-attr]
    assert identities.scan("S-THREE") is None


def test_a_scan_is_found_by_any_of_its_instances(identities: Identities) -> None:
    identities.put_scan(record())
    assert identities.scans_with_instances(["9", "1.2.4"]) == [record()]
    assert identities.scans_with_instances([]) == identities.scans_with_instances(["9", ""]) == []
    moved = replace(record().source, instances=("1.2.3", "1.2.5"))
    identities.put_scan(record(source=moved))
    assert identities.scans_with_instances(["1.2.4"]) == []
    assert identities.scans_with_instances([str(n) for n in range(3000)] + ["1.2.5"]) == [record(source=moved)]


def test_a_transaction_is_stored_completely_or_not_at_all(identities: Identities) -> None:
    lost = identities.pseudonym("patient", "lost", remember=False)

    def fail() -> None:
        with identities.transaction():
            identities.put_scan(record())
            assert identities.pseudonym("patient", "lost") == lost
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(identities.scans()) == []
    assert identities.value(lost) is None
    assert identities.pseudonym("patient", "lost") == lost
    assert identities.value(lost) == "lost"


def test_file_and_folder_are_accessible_to_their_owner_only(identities: Identities) -> None:
    assert identities.file.stat().st_mode & 0o777 == 0o600
    assert identities.file.parent.stat().st_mode & 0o777 == 0o700
    identities.close()
    identities.file.chmod(0o644)
    Identities(identities.file).close()
    assert identities.file.stat().st_mode & 0o777 == 0o600


def _key(file: Path) -> str:
    with Identities(file) as identities:
        return identities.pseudonym("scan", "same")


def test_processes_that_create_the_file_concurrently_share_one_key(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        made = set(pool.map(_key, [tmp_path / "x" / "identities.sqlite"] * 16))
    assert len(made) == 1


def test_an_invalid_file_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(BadIdentities, match="does not exist"):
        Identities(tmp_path / "none.sqlite", must_exist=True)
    assert not (tmp_path / "none.sqlite").exists()
    (tmp_path / "text.sqlite").write_text("no database at all, but longer than nothing" * 99)
    with pytest.raises(BadIdentities, match="damaged, or not an identities file"):
        Identities(tmp_path / "text.sqlite")
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE task (id INTEGER)")
    other.close()
    with pytest.raises(BadIdentities, match="not an identities file"):
        Identities(tmp_path / "other.sqlite")
    with Identities(tmp_path / "later.sqlite"):
        pass
    with sqlite3.connect(tmp_path / "later.sqlite") as later:
        later.execute("PRAGMA user_version = 9")
    later.close()
    with pytest.raises(BadIdentities, match="later scanqueue"):
        Identities(tmp_path / "later.sqlite")
    if os.getuid():
        (tmp_path / "shut").mkdir(mode=0o500)
        with pytest.raises(BadIdentities, match="cannot be created or opened"):
            Identities(tmp_path / "shut" / "identities.sqlite")


def test_opening_a_file_does_not_write_to_it(tmp_path: Path) -> None:
    with Identities(tmp_path / "one.sqlite") as one:
        one.put_scan(record())
    before = (tmp_path / "one.sqlite").read_bytes()
    with Identities(tmp_path / "one.sqlite", must_exist=True) as one:
        assert one.scan("S-ONE") == record()
    assert (tmp_path / "one.sqlite").read_bytes() == before
