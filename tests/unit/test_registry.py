"""The registry: what survives, and how it fails."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from divhook.agent.registry import SCHEMA_VERSION, Registry, RegistryError, Reservation
from divhook.core.addressing import SubnetId, parse_address, parse_mac
from divhook.core.discovery import Record
from divhook.core.wire.discovery import Claim

MAC = parse_mac("52:54:00:11:22:33")
OTHER_MAC = parse_mac("52:54:00:44:55:66")
ADDRESS = parse_address("10.1.2.7")
WEB1 = Reservation("uuid-1", MAC, "web1", SubnetId(1, 2), ADDRESS, born=17, fixed=True)
WEB2 = Reservation("uuid-2", OTHER_MAC, "web2", SubnetId(1, 2), parse_address("10.1.2.9"))
CLAIM = Claim(ADDRESS, MAC, parse_mac("06:0d:5e:00:00:01"), 1 << 51, 17, (1 << 64) - 3, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lib" / "registry.sqlite"


def test_everything_survives_a_restart(path: Path) -> None:
    registry = Registry(path)
    registry.reserve(WEB1)
    registry.reserve(WEB2)
    registry.save_lease(ADDRESS, {"lease_s": 60, "until": 7.5})
    registry.save_claim(Record(CLAIM, replace(CLAIM, stamp=CLAIM.stamp + 1)))
    registry.quarantine(parse_address("10.1.2.8"), 2_000)
    registry.put("last port", 41)
    registry.close()
    again = Registry(path)
    assert again.reservations() == [WEB1, WEB2]
    assert again.find("uuid-1", MAC) == WEB1
    assert again.holder(ADDRESS) == WEB1
    assert again.leases() == {ADDRESS: {"lease_s": 60, "until": 7.5}}
    assert again.claims() == [Record(CLAIM, replace(CLAIM, stamp=CLAIM.stamp + 1))]
    assert again.quarantined(1_999) == {parse_address("10.1.2.8"): 2_000}
    assert again.quarantined(2_000) == {}
    assert (again.get("last port"), again.get("nothing", 5)) == (41, 5)


def test_one_address_has_one_holder_and_a_refused_reservation_changes_nothing(path: Path) -> None:
    registry = Registry(path)
    registry.reserve(WEB1)
    with pytest.raises(ValueError, match="another NIC"):
        registry.reserve(replace(WEB2, address=ADDRESS))
    assert registry.reservations() == [WEB1]


def test_a_nic_that_gets_another_address_gives_up_the_first(path: Path) -> None:
    registry = Registry(path)
    registry.reserve(WEB1)
    moved = replace(WEB1, address=parse_address("10.1.2.200"), fixed=False)
    registry.reserve(moved)
    assert registry.reservations() == [moved]
    assert registry.holder(ADDRESS) is None


def test_release_takes_reservation_and_lease_of_one_guest_only(path: Path) -> None:
    registry = Registry(path)
    registry.reserve(WEB1)
    registry.reserve(WEB2)
    registry.save_lease(ADDRESS, {"until": 7.5})
    assert registry.release("uuid-1") == [WEB1]
    assert registry.release("uuid-1") == []
    assert (registry.reservations(), registry.leases()) == ([WEB2], {})


def test_a_file_that_is_no_database_is_refused_with_a_way_out_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but somebody's file" * 100)
    with pytest.raises(RegistryError, match="move the file away"):
        Registry(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    Registry(path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    database.close()
    with pytest.raises(RegistryError, match="newer divhook"):
        Registry(path)


def test_a_reservation_ends_the_quarantine_of_its_address(path: Path) -> None:
    registry = Registry(path)
    registry.quarantine(ADDRESS, 2_000)
    registry.reserve(WEB1)
    assert registry.quarantined(1_000) == {}


def test_tidy_forgets_ended_quarantines_and_claims_that_discovery_has_forgotten(path: Path) -> None:
    registry = Registry(path)
    early, late = parse_address("10.1.2.21"), parse_address("10.1.2.22")
    registry.quarantine(early, 2_000)
    registry.quarantine(late, 3_000)
    registry.save_claim(Record(CLAIM))
    registry.save_claim(Record(replace(CLAIM, address=late)))
    registry.tidy(2_000, {ADDRESS})
    assert registry.quarantined(0) == {late: 3_000}
    assert registry.claims() == [Record(CLAIM)]


def test_claims_of_reserved_addresses_come_last_for_the_first_are_forgotten_first(path: Path) -> None:
    registry = Registry(path)
    others = [Record(replace(CLAIM, address=parse_address(f"10.1.2.{host}"))) for host in (31, 33, 32)]
    for record in (others[0], Record(CLAIM), *others[1:]):
        registry.save_claim(record)
    registry.reserve(WEB1)
    assert registry.claims() == [*others, Record(CLAIM)]


def test_rows_that_cannot_be_read_are_lost_and_told_and_no_others(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(path)
    good = parse_address("10.1.2.9")
    registry.save_lease(good, {"until": 5.0})
    registry.save_claim(Record(replace(CLAIM, address=good)))
    with sqlite3.connect(path) as database:
        for table, value in (("lease", "{"), ("claim", '{"claim": {"stamp": 1}, "fenced_by": null}')):
            database.execute(f"INSERT INTO {table} VALUES (?,?)", (ADDRESS, value))
    database.close()
    assert registry.leases() == {good: {"until": 5.0}}
    assert registry.claims() == [Record(replace(CLAIM, address=good))]
    assert [r.getMessage().split(" can't")[0] for r in caplog.records] == [
        "the saved lease of 10.1.2.7",
        "the saved claim of 10.1.2.7",
    ]


def test_a_full_disk_is_a_registry_error_that_names_the_file(path: Path) -> None:
    registry = Registry(path)
    with sqlite3.connect(path) as database:
        pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.close()
    registry._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(RegistryError, match=f"{path}.*full"):
        registry.save_lease(ADDRESS, {"hostname": "x" * 1_000_000})
