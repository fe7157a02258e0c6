"""What a hostile guest sends, frame by frame, each with the one reason for which it must be dropped.

The guest is `mal` of bare_fixtures: its own MAC, 10.1.1.66, subnet 1 of cell 1 (router 10.1.1.1).
"""

import struct
from collections.abc import Iterator

from bare_fixtures import ADDRESS, MAL, NEAR, WEB_GROUP, WEB_RMAC
from hostile_frames import ALL_ONES, BRIDGE_MAC, checksum, echo_request, ethernet, tcp_syn, udp
from hostile_frames import ipv4 as packet

from divhook.core.addressing import parse_address as raw
from divhook.core.addressing import parse_mac
from divhook.core.wire.discovery import Claim, Envelope, Message, MessageType, emit

OWN, OTHERS = parse_mac(MAL.mac), parse_mac(NEAR.mac)
PMAC = bytes.fromhex("060d5e000001")
ME, NEIGHBOUR, FAR, DB = (ADDRESS[name] for name in ("mal", "near", "far", "db"))
ROUTER, HOST, PEER = "10.1.1.1", "172.30.0.11", "172.30.0.12"
IPV4, ARP, RARP = 0x0800, 0x0806, 0x8035

TO_GROUPS = {
    **dict.fromkeys(("224.0.0.1", "224.0.0.251", "239.1.2.3", "255.255.255.255", "10.1.1.255"), ""),
    **dict.fromkeys(("10.1.2.255", "10.255.255.255"), "directed_broadcast"),
}
"""Group addresses, and the reason for which a frame to one in a group frame must be dropped, if any."""

Attack = tuple[str, bytes, str]
"""What it is, the frame, the reason."""


def header(patch: dict[int, bytes], payload: bytes = b"", options: bytes = b"", right: bool = True) -> bytes:
    """An IPv4 packet to the neighbour whose header bytes are overwritten; right: with the checksum made true again."""
    length = 20 + len(options)
    made = bytearray(packet(ME, NEIGHBOUR, 17, b"")[:20] + options)
    made[0] = 0x40 | length // 4
    made[2:4] = (length + len(payload)).to_bytes(2, "big")
    for at, value in patch.items():
        made[at : at + len(value)] = value
    if right:
        made[10:12] = bytes(2)
        made[10:12] = checksum(bytes(made[: max((made[0] & 15) * 4, 20)])).to_bytes(2, "big")
    return bytes(made) + payload


def arp(
    operation: int = 1, sha: bytes = OWN, spa: str = ME, tpa: str = NEIGHBOUR, tha: bytes = bytes(6), head: bytes = b""
) -> bytes:
    fixed = head or bytes.fromhex("000108000604")
    return fixed + operation.to_bytes(2, "big") + sha + raw(spa) + tha + raw(tpa)


def to_router(what: bytes, ethertype: int = IPV4, source: bytes = OWN, destination: bytes = WEB_RMAC) -> bytes:
    return ethernet(destination, source, ethertype, what)


def _links() -> Iterator[Attack]:
    good = packet(ME, NEIGHBOUR, 17, udp(1001, 1002, b"x"))
    for name, mac in {
        "the neighbour's": OTHERS,
        "the router's": WEB_RMAC,
        "divbr0's": BRIDGE_MAC,
        "the host's": PMAC,
        "one that nobody has": bytes.fromhex("525400c0ffee"),
    }.items():
        yield f"source MAC is {name}", to_router(good, source=mac), "spoof_mac"
        yield f"source MAC is {name}, ARP", to_router(arp(), ARP, mac, ALL_ONES), "spoof_mac"
    yield "source MAC is a group's", to_router(good, source=b"\x01" + OWN[1:]), "source_mac_group"
    yield "source MAC is broadcast", to_router(good, source=ALL_ONES), "source_mac_group"
    yield "source MAC is zero", to_router(good, source=bytes(6)), "source_mac_group"
    for tag in ("81000000", "81000007", "88a80000", "88a80005", "91000003"):
        for below, what in ((IPV4, good), (ARP, arp()), (0x86DD, ra())):
            tagged = bytes.fromhex(tag)[2:] + below.to_bytes(2, "big") + what
            yield f"tag {tag}, {below:#06x} below", to_router(tagged, int(tag[:4], 16)), "vlan_tagged"
    for outer, count in ((0x88A8, 2), (0x8100, 2), (0x8100, 3), (0x8100, 7)):
        tags = bytes.fromhex("00008100") * (count - 1) + bytes.fromhex("00000800")
        yield f"{count} tags, outer {outer:#06x}", to_router(tags + good, outer), "vlan_tagged"


def ra() -> bytes:
    """A router advertisement of the guest's, for all nodes."""
    return bytes.fromhex(
        "6000000000103afffe80000000000000505400fffe010203ff02000000000000000000000000000186002cd040000708"
    ) + bytes(8)


def _types() -> Iterator[Attack]:
    yield "router advertisement", to_router(ra(), 0x86DD, destination=bytes.fromhex("333300000001")), "ipv6_unsupported"
    yield "IPv6 to the host", to_router(ra(), 0x86DD, destination=PMAC), "ipv6_unsupported"
    yield "IPv6 header alone", to_router(b"\x60", 0x86DD), "ipv6_unsupported"
    slow = "0180c20000"
    for name, ethertype, destination in (
        ("LLDP", 0x88CC, f"{slow}0e"),
        ("EAPOL", 0x888E, f"{slow}03"),
        ("EAPOL to 0e", 0x888E, f"{slow}0e"),
        ("pause", 0x8808, f"{slow}01"),
        ("LACP", 0x8809, f"{slow}02"),
        ("MVRP", 0x88F5, f"{slow}21"),
        ("PTP", 0x88F7, "011b19000000"),
        ("CDP", 0x0026, "01000ccccccc"),
        ("STP", 0x0026, f"{slow}00"),
        ("MPLS", 0x8847, "ffffffffffff"),
        ("MPLS multicast", 0x8848, "01005e800001"),
        ("PPPoE", 0x8863, "ffffffffffff"),
        ("PPPoE session", 0x8864, "ffffffffffff"),
        ("MACsec", 0x88E5, "ffffffffffff"),
        ("loopback", 0x9000, "cf0000000000"),
        ("wake on LAN", 0x0842, "ffffffffffff"),
        ("batman", 0x4305, "ffffffffffff"),
        ("TRILL", 0x22F3, "ffffffffffff"),
        ("NSH", 0x894F, "ffffffffffff"),
        ("type 0", 0x0000, "ffffffffffff"),
        ("type 0xffff", 0xFFFF, "ffffffffffff"),
    ):
        body = bytes.fromhex("424203") + bytes(43) if name == "STP" else bytes(46)
        yield name, to_router(body, ethertype, destination=bytes.fromhex(destination)), "ethertype"


def discovery(kind: MessageType, source: bytes, destination: bytes, ether_type: int, host: bytes) -> bytes:
    """A discovery frame with a tag of zeros."""
    tpa = raw(FAR)
    on_spa = kind in (MessageType.REQUEST, MessageType.PROBE)
    spoken = raw(ME) if on_spa else tpa
    claim = Claim(spoken, OWN, host, 1 << 60, 1, 2, 0)
    message = Message(kind, source, destination, raw(ME), tpa, claim, nonce=7)
    return emit(message, Envelope(11, 12, 1, ether_type=ether_type)) + bytes(16)


def _discovery() -> Iterator[Attack]:
    """A guest must not speak discovery: its ARP never is, whatever follows it."""
    for kind in (MessageType.REQUEST, MessageType.REPLY, MessageType.ANNOUNCE, MessageType.GONE, MessageType.CHALLENGE):
        for name, to in (("the group", WEB_GROUP), ("the host", PMAC), ("all hosts", bytes.fromhex("03d1ffffffff"))):
            forged = discovery(kind, PMAC, to, ARP, PMAC)
            yield f"{kind.name} to {name} as the host", forged, "spoof_mac"
            yield f"{kind.name} to {name}, 88b5", discovery(kind, OWN, to, 0x88B5, OWN), "ethertype"
    yield "REPLY on another's address", discovery(MessageType.REPLY, OWN, PMAC, ARP, OWN), "spoof_arp_spa"
    yield "GONE on another's address", discovery(MessageType.GONE, OWN, PMAC, ARP, OWN), "spoof_arp_spa"
    own_sha = ethernet(WEB_GROUP, OWN, ARP, arp(sha=PMAC) + b"\xd1\x7e" + bytes(94))
    yield "trailer magic, the host as sha", own_sha, "spoof_arp_sha"


def _arp() -> Iterator[Attack]:
    def to_all(what: bytes) -> bytes:
        return ethernet(ALL_ONES, OWN, ARP, what)

    for name, mac in {"the neighbour": OTHERS, "the router": WEB_RMAC, "zero": bytes(6), "the host": PMAC}.items():
        yield f"sha is {name}", to_all(arp(sha=mac)), "spoof_arp_sha"
        yield f"reply, sha is {name}", to_router(arp(2, sha=mac), ARP, destination=OTHERS), "spoof_arp_sha"
    for name in (
        "10.1.1.67",
        "10.1.1.68",
        ROUTER,
        "10.1.2.69",
        HOST,
        PEER,
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
    ):
        yield f"spa {name}", to_all(arp(spa=name)), "spoof_arp_spa"
        yield f"gratuitous {name}", to_all(arp(spa=name, tpa=name)), "spoof_arp_spa"
        yield f"reply, spa {name}", to_router(arp(2, spa=name), ARP, destination=OTHERS), "spoof_arp_spa"
    whole = arp()
    for length in (0, 1, 7, 8, 14, 27):
        yield f"ARP of {length} bytes", to_all(whole[:length]), "arp_malformed"
    for name, head in (
        ("hardware type 6", "000608000604"),
        ("protocol IPv6", "000186dd0604"),
        ("hlen 8", "000108000804"),
        ("hlen 0", "000108000004"),
        ("plen 16", "000108000610"),
    ):
        yield f"ARP of {name}", to_all(arp(head=bytes.fromhex(head))), "arp_malformed"
    for operation in (0, 3, 4, 8, 9, 0xFFFF):
        yield f"ARP operation {operation}", to_all(arp(operation)), "arp_malformed"
    for target in (
        HOST,
        PEER,
        "10.1.2.69",
        "10.2.1.70",
        "169.254.169.254",
        "127.0.0.1",
        "224.0.0.1",
        "10.1.1.255",
        "10.1.1.0",
    ):
        yield f"ARP for {target}", to_all(arp(tpa=target)), "no_such_endpoint"
    yield (
        "RARP of its own",
        ethernet(ALL_ONES, OWN, RARP, arp(3, spa="0.0.0.0", tha=OWN, tpa="0.0.0.0")),
        "rarp_from_guest",
    )
    yield "RARP of another", ethernet(ALL_ONES, OWN, RARP, arp(3, spa="0.0.0.0", tha=OTHERS)), "arp_malformed"
    yield "RARP reply of another", ethernet(ALL_ONES, OWN, RARP, arp(4, sha=OTHERS, tha=OTHERS)), "arp_malformed"
    yield "RARP cut short", ethernet(ALL_ONES, OWN, RARP, arp(3)[:20]), "arp_malformed"


def _ipv4() -> Iterator[Attack]:
    good = header({}, udp(1001, 1002, bytes(24)))
    for length in (0, 1, 19):
        yield f"IPv4 of {length} bytes", to_router(good[:length]), "truncated"
    yield "payload cut short", to_router(good[:-1]), "truncated"
    yield "options cut short", to_router(header({0: b"\x4f"})), "truncated"
    for version in (0, 5, 6, 15):
        yield f"version {version}", to_router(header({0: bytes([version << 4 | 5])}, bytes(30))), "ipv4_version"
    for words in (0, 1, 4):
        yield f"header of {words} words", to_router(header({0: bytes([0x40 | words])}, bytes(30))), "ipv4_header_length"
    for total in (0, 1, 19):
        yield f"total length {total}", to_router(header({2: total.to_bytes(2, "big")}, bytes(30))), "ipv4_total_length"
    yield "checksum false", to_router(header({10: b"\xde\xad"}, bytes(30), right=False)), "ipv4_checksum"
    yield "checksum zero", to_router(header({10: b"\0\0"}, bytes(30), right=False)), "ipv4_checksum"
    for name, options in {
        "of length 0": "07000000",
        "of length 1": "44010000",
        "longer than the header": "0728000000000000",
        "without a length": "01010107",
        "loose source route": "8307040a01014301",
        "strict source route": "8907040a01014301",
        "source route after no-ops": "0101018307040a010143000001010101",
    }.items():
        made = bytes.fromhex(options)
        yield f"option {name}", to_router(header({}, bytes(8), made + bytes(-len(made) % 4))), "ipv4_option"
    more, tcp = b"\x20\x00", b"\x06"
    yield "first fragment without UDP header", to_router(header({6: more}, bytes(4))), "fragment_invalid"
    yield "first fragment without TCP flags", to_router(header({6: more, 9: tcp}, bytes(8))), "fragment_invalid"
    yield "fragment over TCP flags", to_router(header({6: b"\0\1", 9: tcp}, bytes(24))), "fragment_invalid"
    yield "fragment past 64 KiB", to_router(header({6: b"\x1f\xff"}, bytes(64))), "fragment_invalid"
    for source in (
        NEIGHBOUR,
        FAR,
        DB,
        ROUTER,
        "10.2.1.70",
        HOST,
        PEER,
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "198.51.100.7",
        "10.1.1.255",
    ):
        yield f"from {source}", to_router(packet(source, FAR, 17, udp(1001, 1002, b"x"))), "spoof_ipv4"
        yield (
            f"from {source} to the host",
            to_router(packet(source, HOST, 1, echo_request()), destination=PMAC),
            "spoof_ipv4",
        )


def _destinations() -> Iterator[Attack]:
    macs = {
        "the router": WEB_RMAC,
        "divbr0": BRIDGE_MAC,
        "the host": PMAC,
        "all": ALL_ONES,
        "all systems": bytes.fromhex("01005e000001"),
    }
    reasons = {
        HOST: "host_service",
        PEER: "external_unsupported",
        "198.51.100.7": "external_unsupported",
        "169.254.169.254": "external_unsupported",
        "127.0.0.1": "martian_destination",
        "0.0.0.0": "martian_destination",
        "240.0.0.1": "martian_destination",
        ME: "martian_destination",
        **dict.fromkeys(TO_GROUPS, "l2_multicast_mismatch"),
        "10.1.1.0": "martian_destination",
        "10.2.1.70": "cell_denied",
        "10.2.1.1": "cell_denied",
        "10.1.9.9": "no_such_endpoint",
        NEIGHBOUR: "",
    }
    groups = ("all", "all systems")
    for mac_name, mac in macs.items():
        for target, reason in reasons.items():
            expected = reason
            if mac_name in groups and reason in (
                "",
                "external_unsupported",
                "host_service",
                "cell_denied",
                "no_such_endpoint",
            ):
                expected = "l2_multicast_mismatch"
            if mac_name in groups and target == "10.1.1.0":
                expected = "l2_multicast_mismatch"
            if mac_name in groups and target in TO_GROUPS:
                expected = TO_GROUPS[target]
            if not expected:
                continue
            for name, protocol, body in (
                ("udp", 17, udp(1001, 53, b"x")),
                ("tcp", 6, tcp_syn(ME, target, 22)),
                ("ping", 1, echo_request()),
                ("igmp", 2, bytes.fromhex("1100eeff00000000")),
                ("protocol 253", 253, b"x"),
            ):
                if name != "udp" and mac_name != "the router":
                    continue
                yield (
                    f"{name} to {target} by {mac_name}",
                    to_router(packet(ME, target, protocol, body), destination=mac),
                    expected,
                )


def _router() -> Iterator[Attack]:
    """What the router's address is asked that it does not serve."""

    def icmp(kind: int, body: bytes = bytes(4), right: bool = True) -> bytes:
        message = bytes([kind, 0, 0, 0]) + body
        return message[:2] + (checksum(message) if right else 0xDEAD).to_bytes(2, "big") + message[4:]

    for name, body in (
        ("empty", b""),
        ("of 7 bytes", echo_request()[:7]),
        ("with a false checksum", icmp(8, right=False)),
        ("unreachable that quotes nothing", icmp(3)),
    ):
        yield f"ICMP {name} to the router", to_router(packet(ME, ROUTER, 1, body)), "icmp_malformed"
    for kind in (0, 5, 9, 10, 13, 15, 17, 42):
        body = bytes(4) + packet(ME, FAR, 17, udp(1, 2, b"")) if kind == 5 else bytes(4)
        yield f"ICMP type {kind} to the router", to_router(packet(ME, ROUTER, 1, icmp(kind, body))), "router_service"
    yield (
        "a fragment of a ping to the router",
        to_router(packet(ME, ROUTER, 1, echo_request(), 0x2000)),
        "router_service",
    )
    for protocol, body in ((17, udp(1001, 53, b"x")), (6, tcp_syn(ME, ROUTER, 22)), (2, bytes(8)), (89, bytes(24))):
        yield f"protocol {protocol} to the router", to_router(packet(ME, ROUTER, protocol, body)), "router_service"
    expired = bytearray(packet(ME, DB, 17, udp(1001, 1002, b"x")))
    expired[8:12] = b"\1\x11\0\0"
    expired[10:12] = checksum(bytes(expired[:20])).to_bytes(2, "big")
    yield "TTL 1 to another subnet", to_router(bytes(expired)), "ttl_expired"


def _dhcp() -> Iterator[Attack]:
    cookie = bytes.fromhex("63825363")

    def message(kind: int = 1, op: int = 1, chaddr: bytes = OWN, options: bytes = b"") -> bytes:
        fixed = (
            struct.pack("!BBBBIHH", op, 1, 6, 0, 0x11223344, 0, 0) + bytes(16) + chaddr.ljust(16, b"\0") + bytes(192)
        )
        return fixed + cookie + bytes([53, 1, kind]) + options + b"\xff"

    def to_all(source: int, target: int, body: bytes, spa: str = "0.0.0.0", to: str = "255.255.255.255") -> bytes:
        return ethernet(ALL_ONES, OWN, IPV4, packet(spa, to, 17, udp(source, target, body)))

    offer = message(2, 2)
    yield "rogue offer", to_all(67, 68, offer, ME), "rogue_dhcp"
    yield (
        "rogue offer to the neighbour",
        to_router(packet(ME, NEIGHBOUR, 17, udp(67, 68, offer)), destination=OTHERS),
        "rogue_dhcp",
    )
    yield "rogue offer from another port", to_router(packet(ME, NEIGHBOUR, 17, udp(1067, 68, offer))), "rogue_dhcp"
    yield (
        "rogue offer in a first fragment",
        to_router(packet(ME, NEIGHBOUR, 17, udp(67, 68, offer), 0x2000)),
        "rogue_dhcp",
    )
    yield "rogue offer from nobody", to_all(67, 68, offer), "spoof_ipv4"
    yield "rogue offer from the router", to_all(67, 68, offer, ROUTER), "spoof_ipv4"
    yield "relay to a server", to_router(packet(ME, FAR, 17, udp(67, 67, message()))), "rogue_dhcp"
    yield "client from another port", to_router(packet(ME, FAR, 17, udp(1068, 67, message()))), "rogue_dhcp"
    yield "from nobody to the host", to_all(68, 67, message(), to=HOST), "spoof_ipv4"
    yield "from nobody to all systems", to_all(68, 67, message(), to="224.0.0.1"), "spoof_ipv4"
    yield "from nobody to nobody", to_all(68, 67, message(), to="0.0.0.0"), "spoof_ipv4"
    yield "from nobody, mDNS", to_all(5353, 5353, b"x", to="224.0.0.251"), "spoof_ipv4"
    for name, body in (
        ("empty", b""),
        ("cut before the cookie", message()[:236]),
        ("without cookie", message()[:236] + bytes(64)),
        ("an option past the end", message(options=b"\x0c\xff")[:-1]),
        ("hlen 255", message()[:2] + b"\xff" + message()[3:]),
    ):
        yield f"DHCP {name}", to_all(68, 67, body), "dhcp_malformed"
    yield "DHCP reply from a client", to_all(68, 67, message(op=2)), "rogue_dhcp"
    yield "DHCP with another's chaddr", to_all(68, 67, message(chaddr=OTHERS)), "spoof_mac"
    short = packet("0.0.0.0", "255.255.255.255", 17, b"\0\x44\0\x43\0\x07\0\0" + message())
    yield "DHCP with a UDP length of 7", ethernet(ALL_ONES, OWN, IPV4, short), "udp_malformed"
    long = packet("0.0.0.0", "255.255.255.255", 17, b"\0\x44\0\x43\x09\x99\0\0" + message())
    yield "DHCP with a UDP length past the end", ethernet(ALL_ONES, OWN, IPV4, long), "udp_malformed"
    false = packet("0.0.0.0", "255.255.255.255", 17, udp(68, 67, message())[:6] + b"\xde\xad" + message())
    yield "DHCP with a false UDP checksum", ethernet(ALL_ONES, OWN, IPV4, false), "udp_malformed"


def attacks() -> dict[str, list[Attack]]:
    """All of them by kind."""
    return {
        "links": list(_links()),
        "types": list(_types()),
        "discovery": list(_discovery()),
        "arp": list(_arp()),
        "ipv4": list(_ipv4()),
        "destinations": list(_destinations()),
        "router": list(_router()),
        "dhcp": list(_dhcp()),
    }
