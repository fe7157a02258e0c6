"""Entries of map `flows` as values of the core, and back. Times are seconds there, ticks of the kernel's clock here."""

import ctypes

from divhook.abi import layout
from divhook.core.flow import Flow, FlowCount, FlowEntry, FlowKey, FlowKind, Fragments, TcpState


def _port(number: int) -> "ctypes.Array[ctypes.c_uint8]":
    return layout.Octets2(*number.to_bytes(2, "big"))


def _number(port: "ctypes.Array[ctypes.c_uint8]") -> int:
    return int.from_bytes(bytes(port), "big")


def pack_flow_key(key: FlowKey) -> bytes:
    """struct flow_key"""
    return bytes(
        layout.FlowKey(
            layout.Octets4(*key.low),
            layout.Octets4(*key.high),
            _port(key.low_port),
            _port(key.high_port),
            key.protocol,
            key.kind,
        )
    )


def unpack_flow_key(raw: bytes) -> FlowKey:
    """From struct flow_key. Raises ValueError where its kind is none."""
    key = layout.FlowKey.from_buffer_copy(raw)
    ports = _number(key.low_port_be), _number(key.high_port_be)
    return FlowKey(bytes(key.low_be), bytes(key.high_be), *ports, key.protocol, FlowKind(key.kind))


def pack_flow(entry: FlowEntry, ticks_per_s: int) -> bytes:
    """struct flow"""
    seen_ticks = round(entry.seen_s * ticks_per_s)
    if isinstance(entry, Fragments):
        of = entry.flow
        return bytes(
            layout.Flow(
                seen_ticks=seen_ticks,
                fragments_kind=of.kind,
                fragments_low_port_be=_port(of.low_port),
                fragments_high_port_be=_port(of.high_port),
            )
        )
    return bytes(
        layout.Flow(
            seen_ticks=seen_ticks,
            local_identity=entry.local_identity,
            remote_identity=entry.remote_identity,
            counts=(layout.FlowCount * 2)(*(layout.FlowCount(count.packets, count.bytes) for count in entry.counts)),
            epoch=entry.epoch,
            tcp=layout.Octets2(*entry.tcp),
            flags=layout.FLOW_OPENED_BY_HIGH * entry.opened_by_high | layout.FLOW_ANSWERED * entry.answered,
        )
    )


def unpack_flow(key: FlowKey, raw: bytes, ticks_per_s: int) -> FlowEntry:
    """From struct flow, under the key that it was found by. Raises ValueError where a state is none."""
    flow = layout.Flow.from_buffer_copy(raw)
    seen_s = flow.seen_ticks / ticks_per_s
    if key.kind in (FlowKind.FRAGMENTS_BY_LOW, FlowKind.FRAGMENTS_BY_HIGH):
        ports = _number(flow.fragments_low_port_be), _number(flow.fragments_high_port_be)
        return Fragments(seen_s, FlowKey(key.low, key.high, *ports, key.protocol, FlowKind(flow.fragments_kind)))
    opener, other = flow.counts
    return Flow(
        seen_s,
        bool(flow.flags & layout.FLOW_OPENED_BY_HIGH),
        bool(flow.flags & layout.FLOW_ANSWERED),
        (TcpState(flow.tcp[0]), TcpState(flow.tcp[1])),
        (FlowCount(opener.packets, opener.bytes), FlowCount(other.packets, other.bytes)),
        flow.local_identity,
        flow.remote_identity,
        flow.epoch,
    )
