"""Frames that real guests and their hosts sent: captures/conversation.hex, which captures/record.py has made."""

import functools
from pathlib import Path

import bpf_frames as f
from fastpath_world import PEERS, Place

from divhook.core.addressing import AddressPlan, parse_address, parse_mac

PLAN = AddressPlan()
FILE = Path(__file__).parent / "captures" / "conversation.hex"


@functools.cache
def conversation() -> tuple[tuple[Place, ...], tuple[tuple[str, bytes], ...]]:
    """Who speaks, and what: ("guest" or "wire", frame) in order. Host A is here, host B the first peer."""
    macs: dict[str, bytes] = {}
    cast: list[Place] = []
    frames: list[tuple[str, bytes]] = []
    for line in FILE.read_text().splitlines()[1:]:
        match line.lstrip("# ").split():
            case [name, mac, address]:
                packed = parse_address(address)
                subnet = PLAN.locate(packed)
                assert subnet is not None
                cast.append(Place(subnet, packed, parse_mac(mac), name, PEERS[0] if cast else None))
            case [host, mac] if line.startswith("#"):
                macs[host] = parse_mac(mac)
            case [way, frame]:
                frames.append((way, bytes.fromhex(frame)))
    ours, peers = macs["A"], macs["B"]
    return tuple(cast), tuple((way, _renamed(frame, {ours: f.PMAC, peers: PEERS[0]})) for way, frame in frames)


def _renamed(frame: bytes, names: dict[bytes, bytes]) -> bytes:
    return names.get(frame[:6], frame[:6]) + names.get(frame[6:12], frame[6:12]) + frame[12:]


@functools.cache
def captured_packets() -> tuple[bytes, ...]:
    """The IPv4 packets among them."""
    return tuple(frame[14:] for _, frame in conversation()[1] if frame[12:14] == b"\x08\x00")
