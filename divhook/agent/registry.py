"""The registry: what this host must not forget of its endpoints, in SQLite below /var/lib/divhook.

It holds reservations (which address a guest's NIC has, also while the guest is stopped), leases and the highest
claim stamp seen. libvirt is the truth on what runs; the registry never says that a guest runs. Losing the file loses
stable addresses, nothing else: claims then start from the wall clock and what peers remember.
"""

import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from divhook.core.addressing import Address, Mac, SubnetId, address_text
from divhook.core.discovery import Record
from divhook.core.wire.discovery import Claim

SCHEMA_VERSION = 1
MAX_IDENTITIES = 65_536
"""Of other hosts' endpoints; 1,024 bytes each at most."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS reservation (
    guest_uuid TEXT NOT NULL,
    mac        BLOB NOT NULL,
    guest      TEXT NOT NULL,
    cell       INTEGER NOT NULL,
    subnet     INTEGER NOT NULL,
    address    BLOB NOT NULL UNIQUE,
    born       INTEGER NOT NULL DEFAULT 0,
    fixed      INTEGER NOT NULL,
    PRIMARY KEY (guest_uuid, mac)
);
CREATE TABLE IF NOT EXISTS lease (address BLOB PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS claim (address BLOB PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS quarantine (address BLOB PRIMARY KEY, until_us INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS identity (number BLOB PRIMARY KEY, encoding BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_COLUMNS = "guest_uuid, mac, guest, cell, subnet, address, born, fixed"

log = logging.getLogger(__name__)


class RegistryError(Exception):
    """The registry file can't be used, or written now. The text says where and what to do."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """An address that belongs to a guest's NIC on this host, running or not.

    born: stamp of the first claim with this address, 0 before it. fixed: configured, not chosen by the agent.
    """

    guest_uuid: str
    mac: Mac
    guest: str
    subnet: SubnetId
    address: Address
    born: int = 0
    fixed: bool = False


class Registry:
    """Reservations, leases and settings. One connection, used from one thread; a write outlives the process at return.

    Any method raises RegistryError where the file can't be read or written (disk full, say): nothing is changed then.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        try:
            if isinstance(path, Path):
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise RegistryError(
                    f"{path}: written by a newer divhook (schema {version}, this one knows {SCHEMA_VERSION}); "
                    "install that version again, or move the file away to start without stable addresses"
                )
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            raise RegistryError(f"{path}: {error}; move the file away to start without stable addresses") from error

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise RegistryError(f"{self._path}: {error}; is the disk full, or the file not ours?") from error

    def _select(self, where: str = "", *values: object) -> list[Reservation]:
        rows = self._run(f"SELECT {_COLUMNS} FROM reservation {where} ORDER BY address", *values)
        return [Reservation(u, m, g, SubnetId(c, s), a, b, bool(f)) for u, m, g, c, s, a, b, f in rows]

    def reservations(self, guest_uuid: str | None = None) -> list[Reservation]:
        """Every reservation, or those of one guest, by address."""
        return self._select() if guest_uuid is None else self._select("WHERE guest_uuid=?", guest_uuid)

    def find(self, guest_uuid: str, mac: Mac) -> Reservation | None:
        """The reservation of a NIC."""
        return next(iter(self._select("WHERE guest_uuid=? AND mac=?", guest_uuid, mac)), None)

    def holder(self, address: Address) -> Reservation | None:
        """Who an address is reserved for."""
        return next(iter(self._select("WHERE address=?", address)), None)

    def reserve(self, entry: Reservation) -> None:
        """Insert or replace the reservation of a NIC; it ends a quarantine of the address.

        Raises ValueError where the address is another's.
        """
        place = (entry.subnet.cell, entry.subnet.subnet)
        try:
            self._run(
                f"INSERT INTO reservation ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?) "
                "ON CONFLICT (guest_uuid, mac) DO UPDATE SET "
                "guest=excluded.guest, cell=excluded.cell, subnet=excluded.subnet, address=excluded.address, "
                "born=excluded.born, fixed=excluded.fixed",
                *(entry.guest_uuid, entry.mac, entry.guest, *place, entry.address, entry.born, int(entry.fixed)),
            )
        except sqlite3.IntegrityError as error:
            raise ValueError("the address is reserved for another NIC") from error
        self._run("DELETE FROM quarantine WHERE address=?", entry.address)

    def release(self, guest_uuid: str, mac: Mac | None = None) -> list[Reservation]:
        """Forget the reservations of a guest, or of one NIC; returns what was there."""
        gone = [r for r in self.reservations(guest_uuid) if mac in (None, r.mac)]
        for entry in gone:
            self._run("DELETE FROM reservation WHERE address=?", entry.address)
            self._run("DELETE FROM lease WHERE address=?", entry.address)
        return gone

    def leases(self) -> dict[Address, dict[str, Any]]:
        """Saved leases by address."""
        rows = self._run("SELECT address, value FROM lease").fetchall()
        return dict(_readable("lease", ((address, (address, value)) for address, value in rows), _lease))

    def save_lease(self, address: Address, value: dict[str, Any] | None) -> None:
        """Save a lease, or forget it (None)."""
        if value is None:
            self._run("DELETE FROM lease WHERE address=?", address)
        else:
            self._run("INSERT OR REPLACE INTO lease VALUES (?,?)", address, json.dumps(value))

    def claims(self) -> list[Record]:
        """Saved claims, as Discovery.restore takes them: the most worth keeping last.

        Those are of addresses that have a guest, then those that were saved last.
        """
        rows = self._run(
            "SELECT address, value FROM claim ORDER BY address IN (SELECT address FROM reservation), rowid"
        ).fetchall()
        return _readable("claim", rows, lambda value: _record(json.loads(value)))

    def save_claim(self, record: Record) -> None:
        """Save the claim of an address, active, fenced or former."""
        fenced = record.fenced_by
        value = {"claim": _claim_json(record.claim), "fenced_by": _claim_json(fenced) if fenced else None}
        self._run("INSERT OR REPLACE INTO claim VALUES (?,?)", record.claim.address, json.dumps(value))

    def tidy(self, now_us: int, claims: Set[Address]) -> None:
        """Forget quarantines that are over by the wall clock, and the claims of all addresses but these."""
        self._run("DELETE FROM quarantine WHERE until_us<=?", now_us)
        saved = {address for (address,) in self._run("SELECT address FROM claim")}
        for address in saved - claims:
            self._run("DELETE FROM claim WHERE address=?", address)

    def quarantine(self, address: Address, until_us: int) -> None:
        """Keep an address from being chosen until a wall-clock time in microseconds."""
        self._run("INSERT OR REPLACE INTO quarantine VALUES (?,?)", address, until_us)

    def quarantined(self, now_us: int) -> dict[Address, int]:
        """Addresses in quarantine with their end."""
        return dict(self._run("SELECT address, until_us FROM quarantine WHERE until_us>?", now_us).fetchall())

    def identities(self) -> dict[int, bytes]:
        """What policy identities of others stand for, by number: the last MAX_IDENTITIES that were heard of."""
        rows = self._run("SELECT number, encoding FROM identity ORDER BY rowid").fetchall()
        return {int.from_bytes(number, "big"): encoding for number, encoding in rows[-MAX_IDENTITIES:]}

    def save_identity(self, number: int, encoding: bytes) -> None:
        """Keep one."""
        self._run("INSERT OR REPLACE INTO identity VALUES (?,?)", number.to_bytes(8, "big"), encoding)
        self._run("DELETE FROM identity WHERE rowid <= (SELECT max(rowid) FROM identity) - ?", MAX_IDENTITIES)

    def get(self, name: str, default: int = 0) -> int:
        """A whole-number setting."""
        row = self._run("SELECT value FROM setting WHERE name=?", name).fetchone()
        return int(row[0]) if row else default

    def put(self, name: str, value: int) -> None:
        """Save a whole-number setting."""
        self._run("INSERT OR REPLACE INTO setting VALUES (?,?)", name, str(value))


Raw = TypeVar("Raw")
Value = TypeVar("Value")


def _readable(what: str, rows: Iterable[tuple[Address, Raw]], read: Callable[[Raw], Value]) -> list[Value]:
    """What can be read of saved values; the rest is told, and lost: it must not keep the agent from starting."""
    found = []
    for address, raw in rows:
        try:
            found.append(read(raw))
        except (ValueError, KeyError, TypeError) as error:
            log.error("the saved %s of %s can't be read, and is lost: %r", what, address_text(address), error)
    return found


def _lease(row: tuple[Address, str]) -> tuple[Address, dict[str, Any]]:
    value = json.loads(row[1])
    return row[0], {**value, "until": float(value["until"])}


def _claim_json(claim: Claim) -> dict[str, Any]:
    value = asdict(claim)
    return {name: field.hex() if isinstance(field, bytes) else field for name, field in value.items()}


def _claim(value: dict[str, Any]) -> Claim:
    octets = {name: bytes.fromhex(value[name]) for name in ("address", "vmac", "host")}
    return Claim(**{**value, **octets})


def _record(value: dict[str, Any]) -> Record:
    fenced = value["fenced_by"]
    return Record(_claim(value["claim"]), _claim(fenced) if fenced else None)
