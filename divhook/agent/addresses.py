"""Which address a NIC has: asked for, chosen, reserved, let go, kept from others for a while.

    registry    the reservation; it outlives the guest's stop and the agent's restart
    census      what this host answers for and defends; chooses
    discovery   the claim: tentative while others may object, active once the guest runs

The three are kept in step here and nowhere else.
"""

import logging
import time
from collections.abc import Set

from divhook.agent.control import RequestError
from divhook.agent.dataplane import Dataplane
from divhook.agent.nic import Nic, Phase, guest_id_of
from divhook.agent.registry import Registry, RegistryError, Reservation
from divhook.core.addressing import Address, Mac, SubnetId, address_text, mac_text
from divhook.core.census import QUARANTINE_S, AddressCensus
from divhook.core.discovery import ClaimState, Discovery

MAX_DECLINES = 8
"""Of one NIC within QUARANTINE_S: a hostile client could bring every address of its subnet into quarantine."""

log = logging.getLogger(__name__)


class Addresses:
    """The addresses of every NIC that runs or is defined here."""

    def __init__(self, registry: Registry, dataplane: Dataplane) -> None:
        self._registry = registry
        self._dataplane = dataplane
        now, now_us = dataplane.now(), _wall_us()
        for address, until_us in registry.quarantined(now_us).items():
            self._census.release(address, now, (until_us - now_us) / 1e6)
        for entry in registry.reservations():
            self._census.reserve(entry.address, guest_id_of(entry.guest_uuid, entry.mac))

    @property
    def _discovery(self) -> Discovery:
        return self._dataplane.pipeline.discovery

    @property
    def _census(self) -> AddressCensus:
        return self._dataplane.census

    def subnets(self) -> set[SubnetId]:
        """Where an address is reserved for a guest of this host, running or not: it is defended there."""
        return {entry.subnet for entry in self._registry.reservations()}

    # ------------------------------------------------------------------ getting one

    def ask(self, nic: Nic) -> None:
        """Ask all hosts of the subnet for a free address, or whether anybody objects to the one that is wanted.

        The answer comes as a census event. Raises RequestError where the address is another's on this host.
        """
        now = self._dataplane.now()
        nic.refusal = ""
        reserved = self._registry.find(*nic.key)
        fixed, preferred = nic.placement.address, None
        if reserved is not None and reserved.subnet == nic.placement.id and not reserved.fixed:
            preferred = reserved.address
        nic.known = reserved is not None and reserved.address in (fixed, preferred)
        holder = self._registry.holder(fixed) if fixed is not None else None
        if holder is not None and (holder.guest_uuid, holder.mac) != nic.key:
            raise RequestError(
                f"{nic}: address {address_text(holder.address)} belongs to guest {holder.guest} "
                f"(NIC {mac_text(holder.mac)}) on this host; give one of them another with `divhook assign`"
            )
        born = reserved.born if nic.known and reserved is not None else 0
        self._census.begin(
            nic.placement.id,
            nic.mac,
            nic.guest_id,
            now,
            fixed=fixed,
            preferred=preferred,
            born=born or None,
            identity=nic.identity,
        )

    def reclaim(self, nic: Nic) -> bool:
        """A restarted agent takes up address and claim that the registry has for a guest that went on, if they fit."""
        reserved = self._registry.find(*nic.key)
        if reserved is None or reserved.subnet != nic.placement.id:
            return False
        if nic.placement.address not in (None, reserved.address):
            return False
        try:
            self._discovery.reclaim(reserved.address, nic.mac, nic.guest_id, nic.identity, self._dataplane.now())
        except ValueError as error:
            raise RequestError(f"{nic}: {error}") from error
        nic.address, nic.known = reserved.address, True
        self._census.hold(nic.address, nic.guest_id)
        return True

    def reserve(self, nic: Nic, born: int = 0) -> None:
        """Keep the address for this NIC from now on; what it had before is quarantined. Raises RequestError."""
        assert nic.address is not None
        former = self._registry.find(*nic.key)
        if former is not None and former.address == nic.address:
            born = born or former.born
        entry = Reservation(nic.guest_uuid, nic.mac, nic.guest, nic.placement.id, nic.address, born, nic.fixed)
        try:
            self._registry.reserve(entry)
        except ValueError as error:
            raise RequestError(f"{nic}: {address_text(nic.address)}: {error}") from error
        if former is not None and former.address != nic.address:
            self._registry.save_lease(former.address, None)
            self._quarantine(former.address, nic.guest_id)

    def claim(self, nic: Nic) -> None:
        """The guest runs: take the address."""
        assert nic.address is not None
        now = self._dataplane.now()
        self._census.cancel(nic.guest_id, now)
        if self._discovery.state(nic.address) is not ClaimState.ACTIVE:  # else a restarted agent has taken it up
            reserved = self._registry.find(*nic.key)
            born = reserved.born if reserved is not None and reserved.address == nic.address else 0
            born = nic.born or born  # handed over
            claim = self._discovery.activate(nic.address, nic.mac, nic.guest_id, nic.identity, born or None, now)
            self.reserve(nic, claim.born)
        self._census.hold(nic.address, nic.guest_id)

    def identify(self, nic: Nic) -> None:
        """The NIC's identity has changed: claim the address anew, so that all hosts hear of it."""
        if nic.address is None or self._discovery.state(nic.address) is not ClaimState.ACTIVE:
            return
        self._discovery.activate(nic.address, nic.mac, nic.guest_id, nic.identity, None, self._dataplane.now())

    # ------------------------------------------------------------------ giving it up

    def handed(self, nic: Nic, address: Address) -> None:
        """The NIC that comes has this address, whatever was chosen here before that was known."""
        self._census.cancel(nic.guest_id, self._dataplane.now())
        nic.address, nic.known = address, True
        self._census.hold(address, nic.guest_id)

    def let_go(self, nic: Nic, moved: bool = False) -> None:
        """The NIC's life here has ended; moved: elsewhere it goes on. A reservation stays, and is defended."""
        now = self._dataplane.now()
        self._census.cancel(nic.guest_id, now)
        address = nic.address
        if address is None:
            return
        self._discovery.withdraw(address, now, gone=nic.phase is Phase.RUNNING and not moved)
        try:
            self._registry.save_lease(address, None)
            reserved = self._registry.find(*nic.key)
            if reserved is None or reserved.address != address:
                now_us = _wall_us()
                until_us = self._registry.quarantined(now_us).get(address, now_us)
                self._census.release(address, now, (until_us - now_us) / 1e6, nic.guest_id)
                return
        except RegistryError as error:
            log.error("%s: %s", nic, error)
        self._census.reserve(address, nic.guest_id)

    def lost(self, nic: Nic) -> None:
        """The address that the NIC was about to have is another guest's."""
        if nic.address is not None:
            reserved = self._registry.find(*nic.key)
            if reserved is not None and reserved.address == nic.address:
                self._registry.release(*nic.key)
                self._census.release(nic.address, self._dataplane.now(), 0.0)
        nic.address, nic.known, nic.confirmed = None, False, False

    def outranked(self, nic: Nic) -> None:
        """Another guest holds the address by a better claim: it is that guest's, here too."""
        assert nic.address is not None
        now = self._dataplane.now()
        self._registry.save_lease(nic.address, None)
        self._discovery.withdraw(nic.address, now, gone=False)
        self.lost(nic)

    def decline(self, nic: Nic) -> bool:
        """The guest found somebody else at its address (RFC 2131 §3.1): quarantine. False where it keeps it."""
        assert nic.address is not None
        now, text = self._dataplane.now(), address_text(nic.address)
        while nic.declined_s and nic.declined_s[0] <= now - QUARANTINE_S:
            nic.declined_s.popleft()
        if len(nic.declined_s) >= MAX_DECLINES:
            return False
        nic.declined_s.append(now)
        if nic.fixed:
            log.error("%s declined its configured address %s: is it in use twice?", nic, text)
            return False
        log.warning("%s declined %s: choosing another address", nic, text)
        self._registry.release(*nic.key)
        self._census.cancel(nic.guest_id, now)
        self._discovery.withdraw(nic.address, now)
        self._quarantine(nic.address)
        nic.address, nic.known, nic.confirmed = None, False, False
        return True

    def undefined(self, guest_uuid: str) -> None:
        """libvirt does not know the guest any more: its addresses are free after their quarantine."""
        for entry in self._registry.release(guest_uuid):
            self._quarantine(entry.address, guest_id_of(guest_uuid, entry.mac))

    def absent(self, guest_uuid: str, present: Set[Mac]) -> None:
        """The guest has these NICs; an address that another one of its had is free after its quarantine."""
        for entry in self._registry.reservations(guest_uuid):
            if entry.mac not in present:
                self._registry.release(guest_uuid, entry.mac)
                self._quarantine(entry.address, guest_id_of(guest_uuid, entry.mac))

    def _quarantine(self, address: Address, guest_id: int = 0) -> None:
        """guest_id: of a NIC that may have it back at once."""
        self._registry.quarantine(address, _wall_us() + int(QUARANTINE_S * 1e6))
        self._census.release(address, self._dataplane.now(), guest_id=guest_id)


def _wall_us() -> int:
    return int(time.time() * 1e6)
