"""Values of the policy maps and of the flow log, packed and unpacked."""

from divhook.abi import layout
from divhook.abi.entries import Rate, packed_address
from divhook.core.addressing import Address
from divhook.core.flow_log import FlowEvent
from divhook.core.reasons import DropReason
from divhook.core.verdict import Relation

LOG_RATE = Rate(100, 200)
"""Events/s of the flow log that one port may cause."""
ANY_CELL = b"\xff\xff\xff\xff"
"""The other cell, where a rule speaks of any."""


def policy_key(scope: int, remote: int, protocol: int, port: int, length: int) -> bytes:
    """struct policy_key. length: significant bits of protocol and port, 0 to 24."""
    words = [layout.Words.from_buffer_copy(layout.U64(number)) for number in (scope, remote)]
    return bytes(
        layout.PolicyKey(
            layout.POLICY_SCOPE_BITS + length,
            *words,
            protocol,
            layout.Octets2(*port.to_bytes(2, "big")),
        )
    )


def policy_entry(allow: bool, log: bool, rule: int) -> bytes:
    """struct policy_entry"""
    return bytes(layout.PolicyEntry(rule, layout.POLICY_ALLOW * allow | layout.POLICY_LOG * log))


def identity_key(cell: Address, identity: int) -> bytes:
    """struct identity_key. cell: its address."""
    return bytes(layout.IdentityKey(identity, packed_address(cell)))


def external_key(cell: Address, address: Address, length: int) -> bytes:
    """struct external_key of a prefix."""
    return bytes(layout.ExternalKey(layout.POLICY_CELL_BITS + length, packed_address(cell), packed_address(address)))


def policy_class(number: int) -> bytes:
    """struct policy_class"""
    return bytes(layout.PolicyClass(number))


def cell_pair(own: Address, other: Address) -> bytes:
    """struct cell_pair"""
    return bytes(layout.CellPair(packed_address(own), packed_address(other)))


def port_policy(
    cell: Address,
    identity: int,
    epoch: int,
    scopes: tuple[int, int],
    allowed: tuple[frozenset[Relation], frozenset[Relation]],
    pickup_until_ticks: int = 0,
) -> bytes:
    """struct port_policy. scopes, allowed: of ingress and egress; allowed: relations that pass where no rule speaks."""
    masks = [sum(1 << relation for relation in relations) for relations in allowed]
    return bytes(
        layout.PortPolicy(
            identity,
            (layout.U64 * 2)(*scopes),
            pickup_until_ticks,
            LOG_RATE.pack(),
            packed_address(cell),
            epoch,
            layout.Octets2(*masks),
        )
    )


def unpack_port_policy(raw: bytes) -> layout.PortPolicy:
    """From struct port_policy."""
    return layout.PortPolicy.from_buffer_copy(raw)


def unpack_flow_event(raw: bytes) -> FlowEvent:
    """From struct flow_event."""
    event = layout.FlowEvent.from_buffer_copy(raw)
    return FlowEvent(
        event.time_ns / 1e9,
        event.port_id,
        bool(event.flags & layout.FLOW_EVENT_OUTWARD),
        DropReason(event.reason) if event.reason else None,
        event.rule,
        bytes(event.source_be),
        bytes(event.destination_be),
        event.protocol,
        int.from_bytes(bytes(event.source_port_be), "big"),
        int.from_bytes(bytes(event.destination_port_be), "big"),
        event.local_identity,
        event.remote_identity,
        bool(event.flags & layout.FLOW_EVENT_ENDED),
        bool(event.flags & layout.FLOW_EVENT_PICKED_UP),
        kernel=True,
    )
