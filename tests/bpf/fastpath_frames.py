"""Frames for a world: of its guests and of its peers, to all kinds of addresses, in all kinds of shapes.

Most are such as honest stations send; what is wrong with the others is one thing, or several by mutation.
"""

import random
import struct
from collections.abc import Sequence
from typing import NamedTuple

import bpf_frames as f
from bpf_mutator import GUEST_CORPUS, WIRE_CORPUS, altered, mutant, runnable
from fastpath_world import FAR, HOPS, OWN, PEERS, SERVERS, Place, World

from divhook.core.addressing import Address, group_mac, rmac

LONGEST = 3_400
"""Bytes of a frame: what test-run takes in one page."""
CHECKSUMS = (0x0000, 0x0001, 0x00FF, 0xFEFE, 0xFEFF, 0xFF00, 0xFFFE, 0xFFFD, 0xFDFF)
"""Where one's complement has its edges, and where TTL-1 crosses them (RFC 1624)."""
TTLS = (0, 1, 2, 3, 63, 64, 64, 64, 128, 254, 255)
FRAGMENTS = (0x2000, 0x2001, 0x0001, 0x0003, 0x00B9, 0x20B9, 0x1FFF, 0x1F00, 0x4000, 0x8000, 0xC000, 0x2003)
OPTIONS = (
    b"\x94\x04\x00\x00",
    b"\x01" * 36 + b"\x94\x04\x00\x00",
    b"\x44\x04\x05\x00",
    b"\x00" * 4,
    b"\x07\x07\x04\x00\x00\x00\x00\x01",
)
BAD_OPTIONS = (b"\x83\x03\x04\x00", b"\x94\x00\x00\x00", b"\x01\x94\x04\x00")
STRANGER = f.STRANGER
NOISE = bytes(range(256)) * 14
DHCP_PORTS = ((68, 67), (67, 68), (67, 67), (1000, 68), (67, 1000), (1000, 67), (68, 1000))


class Sent(NamedTuple):
    """A frame on its way in. ifindex: of the port, or None from the wire. gso_size: 0 where it is what it is."""

    ifindex: int | None
    frame: bytes
    gso_size: int = 0


class Shape(NamedTuple):
    """The payload of a packet."""

    protocol: int
    payload: bytes


def shapes() -> list[Shape]:
    """Payloads as protocols have them, down to none at all."""
    tcp = struct.pack("!HHIIBBHHH", 40001, 5001, 0x01020304, 0x05060708, 5 << 4, 0x18, 8192, 0xABCD, 0)
    echo = struct.pack("!BBHHH", 8, 0, 0x1234, 7, 9) + NOISE[:48]
    back = tcp[2:4] + tcp[:2] + tcp[4:]
    found = [
        Shape(f.TCP, tcp + NOISE[:40]),
        Shape(f.TCP, tcp[:12] + b"\x80" + tcp[13:] + NOISE[:12]),
        *(Shape(f.TCP, tcp[:13] + bytes((flags,)) + tcp[14:] + NOISE[:9]) for flags in (0x02, 0x02, 0x11, 0x04)),
        *(Shape(f.TCP, back[:13] + bytes((flags,)) + back[14:] + NOISE[:9]) for flags in (0x12, 0x10, 0x11)),
        Shape(f.UDP, f.udp(53, 40000, NOISE[:60])),
        Shape(f.ICMP, b"\x00" + echo[1:]),
        Shape(f.ICMP, b"\x0d" + echo[1:]),
        Shape(f.UDP, f.udp(5353, 33434)),
        Shape(f.UDP, f.udp(40000, 53, NOISE[:60])),
        Shape(f.ICMP, echo),
        Shape(f.ICMP, b"\x03\x03\x00\x00" + bytes(4) + f.ipv4()),
        Shape(f.GRE, NOISE[:24]),
        Shape(132, NOISE[:16]),
    ]
    for protocol in (f.TCP, f.UDP, f.ICMP, 50):
        found += [Shape(protocol, NOISE[3 : 3 + length]) for length in (0, 1, 3, 4, 7, 8, 9)]
    return found


SHAPES = shapes()
GROUPS = (bytes((239, 1, 2, 3)), bytes((232, 129, 0, 9)), bytes((239, 255, 0, 1)))
DHCP_SHAPES = [Shape(f.UDP, f.udp(*ports, NOISE[:length])) for ports in DHCP_PORTS for length in (0, 4, 300)]


class Frames:
    """An endless supply for a world. captured: real packets, to be sent under other addresses."""

    def __init__(self, world: World, rng: random.Random, captured: Sequence[bytes] = ()) -> None:
        self._world = world
        self._rng = rng
        self._captured = captured

    def next(self) -> Sent:
        """From a guest or from the wire."""
        return self.from_guest() if self._rng.random() < 0.6 else self.from_wire()

    # ------------------------------------------------------------------ from_guest

    def from_guest(self) -> Sent:
        rng, world = self._rng, self._world
        here = world.here()
        if not here or rng.random() < 0.01:
            return Sent(rng.choice(world.taps), mutant(GUEST_CORPUS, rng))
        place = rng.choice([place for place in here if world.passes(place)] or here if rng.random() < 0.8 else here)
        assert place.nic is not None
        ifindex = place.nic.ifindex
        roll = rng.random()
        if roll < 0.12:
            return Sent(ifindex, runnable(self._changed(self._arp(place), 0.2)))
        if roll < 0.14:
            source, destination = rng.choice(
                ((f.NONE, f.LIMITED_BROADCAST), (place.address, world.plan.router(place.subnet)))
            )
            return Sent(ifindex, f.ethernet(f.dhcp(source, destination), source=place.vmac))
        source = place.address if rng.random() < 0.97 else self._address(place)
        if roll < 0.155:
            return Sent(ifindex, runnable(self._changed(self._igmp(place), 0.1)))
        if roll < 0.21:
            destination, link = self._group(place)
            return self._sent(ifindex, source, destination, link, place.vmac)
        destination = self._address(place)
        link_source = place.vmac if rng.random() < 0.98 else rng.choice((f.PMAC, f.OTHER_MAC, f.GROUP))
        return self._sent(ifindex, source, destination, self._link_destination(place), link_source)

    def _igmp(self, place: Place) -> bytes:
        """A report for one of the groups, or a leave."""
        rng = self._rng
        message = bytes((rng.choice((0x16, 0x16, 0x16, 0x17, 0x11)), 0, 0, 0)) + rng.choice(GROUPS)
        message = message[:2] + f.rfc1071(message).to_bytes(2, "big") + message[4:]
        packet = ipv4(place.address, f.MULTICAST, 2, message, 1, 0, b"\x94\x04\0\0", 7)
        return f.ethernet(packet, source=place.vmac, destination=f.MDNS_GROUP)

    def _group(self, place: Place) -> tuple[Address, bytes]:
        """A group address, and a MAC for its frame."""
        rng, plan = self._rng, self._world.plan
        subnet = place.subnet if rng.random() < 0.9 else rng.choice(self._world.subnets)
        destination = rng.choice((f.LIMITED_BROADCAST, plan.broadcast(subnet), f.MULTICAST, *GROUPS, *GROUPS))
        return destination, rng.choice((f.BROADCAST, f.MDNS_GROUP, group_mac(place.subnet)))

    def _link_destination(self, place: Place) -> bytes:
        rng = self._rng
        if rng.random() < 0.95:
            return rng.choice((rmac(place.subnet), f.OTHER_MAC, f.DIVBR_MAC, f.PMAC))
        return rng.choice((f.BROADCAST, f.MDNS_GROUP, group_mac(place.subnet)))

    def _arp(self, place: Place) -> bytes:
        rng, world = self._rng, self._world
        neighbours = [p.address for p in world.places if p.subnet == place.subnet]
        told = [address for address in neighbours if address in world.told]
        targets = (neighbours, told or neighbours, (world.plan.router(place.subnet),), (self._address(place),))
        target = rng.choice(rng.choice(targets))
        spa = place.address if rng.random() < 0.8 else rng.choice((f.NONE, target, f.OUTSIDE))
        op = rng.choice((1, 1, 1, 1, 1, 1, 1, 2, 3))
        payload = f.arp(spa, target, place.vmac, rng.choice((bytes(6), f.OTHER_MAC, place.vmac)), op)
        kind = f.ARP if op < 3 else f.RARP
        destination = rng.choice((f.BROADCAST, f.BROADCAST, rmac(place.subnet), f.OTHER_MAC))
        return f.ethernet(payload + rng.choice((b"", bytes(18), NOISE[:60])), kind, place.vmac, destination)

    # ------------------------------------------------------------------ from_wire

    def from_wire(self) -> Sent:
        rng, world = self._rng, self._world
        roll = rng.random()
        if roll < 0.03 or not world.places:
            return Sent(None, mutant(WIRE_CORPUS, rng))
        if roll < 0.09 and world.here():
            return self._from_outside()
        sender = rng.choice(world.elsewhere() or world.places) if roll < 0.9 else rng.choice(world.places)
        local = [p for p in world.here() if p.subnet.cell == sender.subnet.cell]
        local += [
            p for p in world.elsewhere() if p.address in world.pipeline.moved and p.subnet.cell == sender.subnet.cell
        ]
        receiver = rng.choice(local) if local and rng.random() < 0.85 else rng.choice(world.places)
        entry = world.discovery.neighbours.get(sender.address)
        host = sender.host or rng.choice(PEERS)
        if entry is not None and entry.found is not None:
            host = entry.found.claim.host
        following = world.discovery.next_of(sender.address)
        if following is not None and rng.random() < 0.5:
            host = following
        former = world.pipeline.former.get(receiver.address)
        if former is not None and rng.random() < 0.3:
            host = former
        if rng.random() < 0.12:
            host = rng.choice((*PEERS, STRANGER, f.PMAC, f.GROUP, bytes(6)))
        source = sender.address if rng.random() < 0.97 else self._address(sender)
        destination = receiver.address if rng.random() < 0.95 else self._address(receiver)
        link = f.PMAC
        if rng.random() < 0.09:
            destination, _ = self._group(sender)
            kind = rng.random()
            if kind < 0.1:
                report = self._igmp(sender)[14:]
                return Sent(None, f.ethernet(report, source=host, destination=self._joined(sender)))
            if kind < 0.2:
                source = world.plan.address(sender.subnet, rng.choice((0, 1, world.plan.max_host)))
            return self._sent(None, source, destination, self._joined(sender), host)
        if rng.random() < 0.05:
            link = rng.choice((group_mac(receiver.subnet), f.FOREIGN_GROUP, f.BROADCAST, f.MDNS_GROUP, f.OTHER_MAC))
        return self._sent(None, source, destination, link, host)

    def _from_outside(self) -> Sent:
        """From a server, or from behind a router; sometimes from the wrong one."""
        rng, world = self._rng, self._world
        source = rng.choice((*SERVERS, *HOPS, *FAR, *FAR))
        by = rng.choice(HOPS) if source in FAR else source
        mac = world.macs[by] if rng.random() < 0.9 else rng.choice((*world.macs.values(), STRANGER, f.PMAC, *PEERS))
        return self._sent(None, source if rng.random() < 0.97 else OWN, rng.choice(world.here()).address, f.PMAC, mac)

    def _joined(self, sender: Place) -> bytes:
        """Mostly the group that its host would send to; else one that this host is in."""
        rng, heard = self._rng, sorted(self._world.pipeline.groups.listened())
        own = group_mac(sender.subnet)
        return own if own in heard and rng.random() < 0.9 else rng.choice(heard)

    # ------------------------------------------------------------------ both

    def _address(self, place: Place) -> Address:
        """Where it wants to go: mostly to somebody."""
        rng, world, plan = self._rng, self._world, self._world.plan
        if rng.random() < 0.08:
            return rng.choice((OWN, OWN, *HOPS[:2], *SERVERS, *FAR, *FAR))
        roll = rng.random()
        if roll < 0.8:
            own = [p for p in world.places if p.subnet.cell == place.subnet.cell and p is not place] or world.places
            told = sorted(world.told)
            if told and roll < 0.35:
                return rng.choice(told)
            return rng.choice(own if roll < 0.75 else world.places).address
        subnet = rng.choice(world.subnets)
        if roll < 0.9:
            number = rng.choice((0, 1, plan.max_host, min(2, plan.max_host), rng.randrange(plan.max_host + 1)))
            return plan.address(subnet, number)
        if roll < 0.93:
            return place.address
        value = rng.getrandbits(32 - plan.supernet.prefixlen)
        virtual = (int(plan.supernet.network_address) | value).to_bytes(4, "big")
        return rng.choice(
            (virtual, f.OUTSIDE, f.LIMITED_BROADCAST, f.MULTICAST, f.NONE, bytes((127, 0, 0, 1)), b"\xf0\1\2\3")
        )

    def _sent(
        self, ifindex: int | None, source: Address, destination: Address, link: bytes, link_source: bytes
    ) -> Sent:
        rng = self._rng
        gso_size = 0
        if self._captured and rng.random() < 0.3:
            packet = readdressed(rng.choice(self._captured), source, destination)
        elif rng.random() < 0.06:
            packet, gso_size = self._segmented(source, destination)
        else:
            packet = self._packet(source, destination)
        frame = f.ethernet(packet, source=link_source, destination=link)
        if gso_size:
            return Sent(ifindex, frame, gso_size)
        if rng.random() < 0.15:
            frame += rng.choice((bytes(18), NOISE[:1], NOISE[:46], b"\0\x43\0\x44"))
        return Sent(ifindex, runnable(self._changed(frame, 0.12)[:LONGEST]))

    def _changed(self, frame: bytes, share: float) -> bytes:
        return altered(frame, self._rng) if self._rng.random() < share else frame

    def _packet(self, source: Address, destination: Address) -> bytes:
        rng = self._rng
        protocol, payload = rng.choice(SHAPES if rng.random() < 0.97 else DHCP_SHAPES)
        options = b""
        flags = rng.choice((0, 0x4000))
        roll = rng.random()
        if roll < 0.06:
            options = rng.choice(OPTIONS if roll < 0.05 else BAD_OPTIONS)
        elif roll < 0.14:
            flags = rng.choice(FRAGMENTS)
        if roll > 0.85:  # about as long as a subnet may bear
            facts = rng.choice(list(self._world.topology.values())) if self._world.topology else None
            mtu = facts.mtu if facts is not None else 1500
            length = mtu - 20 - len(options) + rng.choice((-8, -1, 0, 0, 1, 8, 700))
            payload = (payload + NOISE)[:length]
        wanted = rng.choice(CHECKSUMS) if rng.random() < 0.15 else None
        return ipv4(
            source, destination, protocol, payload, rng.choice(TTLS), flags, options, rng.getrandbits(16), wanted
        )

    def _segmented(self, source: Address, destination: Address) -> tuple[bytes, int]:
        """A TCP or UDP packet of several segments, and their size: around what a subnet may bear."""
        rng = self._rng
        udp = rng.random() < 0.3
        options = rng.choice((b"", b"", b"", OPTIONS[0]))
        words = 0 if udp else rng.choice((5, 5, 8, 15))
        headers = 20 + len(options) + (8 if udp else words * 4)
        mtu = rng.choice((1500, 1400, 576, 576))
        size = rng.choice((mtu - headers, mtu - headers + 1, mtu - headers - 1, 200, 500))
        payload = NOISE[: rng.choice((size + 1, 2 * size, 2 * size + 7, 3 * size, 3000))]
        if udp:
            transport = struct.pack("!HHHH", 40000, 4433, 8 + len(payload), 0xABCD)
        else:
            transport = struct.pack(
                "!HHIIBBHHH", 40001, 5001, rng.getrandbits(32), 5, words << 4, 0x10, 8192, 0xABCD, 0
            )
            transport += b"\1" * (words * 4 - 20)
        flags = rng.choice((0, 0x4000))
        packet = ipv4(
            source,
            destination,
            f.UDP if udp else f.TCP,
            (transport + payload)[: LONGEST - 80],
            rng.choice(TTLS),
            flags,
            options,
            rng.getrandbits(16),
        )
        return packet, size


def ipv4(
    source: Address,
    destination: Address,
    protocol: int,
    payload: bytes,
    ttl: int,
    flags: int,
    options: bytes,
    identification: int,
    wanted: int | None = None,
) -> bytes:
    """A packet with a true checksum; `wanted`: which, made so by its identification."""
    length = 20 + len(options) + len(payload)
    first = 0x45 + len(options) // 4
    fixed = struct.pack("!BBHHHBBH4s4s", first, 0, length, 0, flags, ttl, protocol, 0, source, destination) + options
    total = int.from_bytes(fixed, "big") % 0xFFFF
    if wanted is not None:
        identification = (0xFFFF - wanted - total) % 0xFFFF
    checksum = 0xFFFF - ((total + identification) % 0xFFFF or 0xFFFF)
    if wanted == 0 and identification % 2:
        checksum = 0xFFFF  # the other form of zero: nobody sends it, and it verifies
    identified = fixed[:4] + identification.to_bytes(2, "big") + fixed[6:10] + checksum.to_bytes(2, "big")
    return identified + fixed[12:] + payload


def readdressed(packet: bytes, source: Address, destination: Address) -> bytes:
    """A real packet under other addresses, its header checksum true again."""
    length = (packet[0] & 15) * 4
    header = packet[:10] + b"\0\0" + source + destination + packet[20:length]
    return header[:10] + f.rfc1071(header).to_bytes(2, "big") + header[12:] + packet[length:]
