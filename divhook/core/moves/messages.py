"""What agents say on the hand-over channel, once TLS has shown that both hold the cluster's certificate.

    length (32) | type (8) | body        length: of type and body; big-endian

    source ──▶ destination   HANDOVER   claim, lease, counters, groups, talkers, earlier hosts, policy digest (JSON)
               destination ──▶ source   READY      the tap exists and queues
    source ──▶ destination   FLOWS      states of connections, in any order
    source ──▶ destination   FRAMES     what the paused guest has not read: (length (32), frame)*
               destination ──▶ source   ACTIVE     the new claim (JSON)
    source ──▶ destination   LATE       a late sender's packet: pmac of that host, then the IPv4 packet
    source ──▶ destination   COMMITTED  libvirt has ended the guest at the source
    either                   ABANDONED  libvirt gave the move up
    source ──▶ destination   COUNTERS   what the guest sent and received up to its last moment there (JSON)
    either                   NOTES      the sender's timeline (JSON)

A frame is a virtio_net_hdr (10 bytes) and an Ethernet frame as the guest is to read it. Everything is bounded; what
does not fit its form raises MoveMessageError and ends the channel, never more.
"""

import json
import struct
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Any

from divhook.core.addressing import Address, Mac, address_text, mac_text, parse_address, parse_mac
from divhook.core.wire.discovery import Claim

VERSION = 1
MAX_MESSAGE = 1 << 20
"""Bytes of one message. A hand-over with MAX_TALKERS is some 60 KiB; frames are cut into as many messages as needed."""
MAX_TALKERS = 256
"""Neighbours that a hand-over names, those last used first."""
MAX_FORWARDERS = 8
"""Earlier hosts that still send frames on."""
MAX_COUNTERS = 8
"""Kinds of figures of a port that go with it."""
MAX_GROUPS = 64
"""Multicast groups that a NIC is a member of: as many as a port may be."""
MAX_NOTES = 64
"""Lines of a timeline."""
MAX_FRAME = 65536 + 64
"""Bytes of one frame, with its header."""
_HEADER = struct.Struct(">IB")
_FRAME = struct.Struct(">I")


class MoveMessageError(ValueError):
    """The peer's mistake: the message is not what docs/protocol.md says."""


@unique
class MoveMessage(IntEnum):
    """Codes are stable."""

    HANDOVER = 1
    READY = 2
    FLOWS = 3
    FRAMES = 4
    ACTIVE = 5
    COMMITTED = 6
    ABANDONED = 7
    NOTES = 8
    LATE = 9
    COUNTERS = 10


@dataclass(frozen=True, slots=True)
class Handover:
    """All of an endpoint but its flows. lease and counters are the agents' own business; born stays in the claim.

    forwarders: pmacs of hosts that still send frames on. policy: digest of its cell's policy files. groups: of IGMP.
    """

    claim: Claim
    guest: str
    lease: dict[str, Any] | None
    counters: dict[str, int]
    talkers: tuple[Claim, ...]
    forwarders: tuple[Mac, ...]
    policy: str
    groups: tuple[Address, ...] = ()


def emit(kind: MoveMessage, body: bytes = b"") -> bytes:
    """One message. Raises ValueError where it is too long."""
    if len(body) + 1 > MAX_MESSAGE:
        raise ValueError(f"{len(body)} bytes in one message, at most {MAX_MESSAGE}")
    return _HEADER.pack(len(body) + 1, kind) + body


class MessageReader:
    """A stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed_untrusted(self, data: bytes) -> list[tuple[MoveMessage, bytes]]:
        """The messages that are complete now. Raises MoveMessageError."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEADER.size:
            length, code = _HEADER.unpack_from(self._buffer)
            if not 1 <= length <= MAX_MESSAGE:
                raise MoveMessageError(f"a message of {length} bytes, at most {MAX_MESSAGE}")
            if len(self._buffer) < 4 + length:
                break
            try:
                kind = MoveMessage(code)
            except ValueError:
                raise MoveMessageError(f"message type {code}") from None
            messages.append((kind, bytes(self._buffer[_HEADER.size : 4 + length])))
            del self._buffer[: 4 + length]
        return messages


def emit_frames(frames: list[bytes]) -> list[bytes]:
    """FRAMES messages, none longer than MAX_MESSAGE."""
    messages, body = [], bytearray()
    for frame in frames:
        if len(body) + _FRAME.size + len(frame) + 1 > MAX_MESSAGE:
            messages.append(emit(MoveMessage.FRAMES, bytes(body)))
            body.clear()
        body += _FRAME.pack(len(frame)) + frame
    if body:
        messages.append(emit(MoveMessage.FRAMES, bytes(body)))
    return messages


def parse_frames_untrusted(body: bytes) -> list[bytes]:
    """Raises MoveMessageError."""
    frames, at = [], 0
    while at < len(body):
        if at + _FRAME.size > len(body):
            raise MoveMessageError("frames are cut short")
        (length,) = _FRAME.unpack_from(body, at)
        at += _FRAME.size
        if not 24 <= length <= MAX_FRAME or at + length > len(body):
            raise MoveMessageError(f"a frame of {length} bytes")
        frames.append(body[at : at + length])
        at += length
    return frames


def late_untrusted(body: bytes, address: Address | None) -> tuple[Mac, bytes]:
    """(pmac of the host that sent it, IPv4 packet to the endpoint that has moved). Raises MoveMessageError."""
    if not 26 <= len(body) <= MAX_FRAME or body[0] & 1:
        raise MoveMessageError(f"a late packet of {len(body)} bytes")
    if body[22:26] != address:
        raise MoveMessageError("a late packet for another endpoint")
    return body[:6], body[6:]


def claim_to_json(claim: Claim) -> dict[str, Any]:
    """For HANDOVER and ACTIVE."""
    return {
        "address": address_text(claim.address),
        "vmac": mac_text(claim.vmac),
        "host": mac_text(claim.host),
        "stamp": claim.stamp,
        "born": claim.born,
        "guest_id": f"{claim.guest_id:016x}",
        "identity": f"{claim.identity:016x}",
    }


def claim_untrusted(value: Any) -> Claim:
    """Raises MoveMessageError."""
    try:
        claim = Claim(
            parse_address(value["address"]),
            parse_mac(value["vmac"]),
            parse_mac(value["host"]),
            _number(value["stamp"]),
            _number(value["born"]),
            int(value["guest_id"], 16),
            int(value["identity"], 16),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MoveMessageError(f"a claim is wrong: {error}") from None
    if not (0 <= claim.guest_id < 1 << 64 and 0 <= claim.identity < 1 << 64) or claim.vmac[0] & 1 or claim.host[0] & 1:
        raise MoveMessageError("a claim is wrong: a number or MAC is out of range")
    return claim


def emit_handover(handover: Handover) -> bytes:
    """One HANDOVER message."""
    value = {
        "version": VERSION,
        "guest": handover.guest,
        "claim": claim_to_json(handover.claim),
        "lease": handover.lease,
        "counters": handover.counters,
        "talkers": [claim_to_json(claim) for claim in handover.talkers[:MAX_TALKERS]],
        "forwarders": [mac_text(mac) for mac in handover.forwarders[:MAX_FORWARDERS]],
        "policy": handover.policy,
        "groups": [address_text(group) for group in handover.groups[:MAX_GROUPS]],
    }
    return emit(MoveMessage.HANDOVER, json.dumps(value).encode())


def parse_handover_untrusted(body: bytes) -> Handover:
    """Raises MoveMessageError."""
    value = object_untrusted(body)
    if value.get("version") != VERSION:
        raise MoveMessageError(f"version {value.get('version')}, this agent speaks {VERSION}")
    talkers, forwarders, counters = value.get("talkers"), value.get("forwarders"), value.get("counters")
    lease = value.get("lease")
    if not isinstance(talkers, list) or not isinstance(forwarders, list) or not isinstance(counters, dict):
        raise MoveMessageError("a hand-over without talkers, forwarders or counters")
    groups = value.get("groups", [])  # an agent of before does not say any
    if not isinstance(groups, list) or len(groups) > MAX_GROUPS:
        raise MoveMessageError("groups that are none, or too many")
    if len(talkers) > MAX_TALKERS or len(forwarders) > MAX_FORWARDERS or len(counters) > MAX_COUNTERS:
        raise MoveMessageError("a hand-over with too many entries")
    if lease is not None and not isinstance(lease, dict):
        raise MoveMessageError("a lease that is none")
    try:
        macs = tuple(parse_mac(text) for text in forwarders)
        counts = {str(name): _number(count) for name, count in counters.items()}
        members = tuple(parse_address(text) for text in groups)
    except (TypeError, ValueError, AttributeError) as error:
        raise MoveMessageError(f"a hand-over is wrong: {error}") from None
    return Handover(
        claim_untrusted(value.get("claim")),
        str(value.get("guest"))[:256],
        lease,
        counts,
        tuple(claim_untrusted(each) for each in talkers),
        macs,
        str(value.get("policy"))[:64],
        members,
    )


def counters_untrusted(body: bytes) -> dict[str, int]:
    """By name. Raises MoveMessageError."""
    counters = object_untrusted(body).get("counters")
    if not isinstance(counters, dict) or len(counters) > MAX_COUNTERS:
        raise MoveMessageError("counters that are none")
    try:
        return {str(name)[:32]: _number(count) for name, count in counters.items()}
    except ValueError:
        raise MoveMessageError("counters that are none") from None


def object_untrusted(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises MoveMessageError."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise MoveMessageError("a body that is not JSON") from None
    if not isinstance(value, dict):
        raise MoveMessageError("a body that is no object")
    return value


def notes_untrusted(body: bytes) -> list[tuple[float, str]]:
    """(wall clock in seconds, text) of the other host's timeline. Raises MoveMessageError."""
    notes = object_untrusted(body).get("notes")
    if not isinstance(notes, list) or len(notes) > MAX_NOTES:
        raise MoveMessageError("notes that are none")
    try:
        return [(float(at), str(text)[:200]) for at, text in notes]
    except (TypeError, ValueError):
        raise MoveMessageError("notes that are none") from None


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is no 64-bit number")
    return value
