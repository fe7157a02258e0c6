"""What passes at a port with a policy. The twin of divhook/bpf/lib/enforce.h; both work on the same flows.

    class                          passes
    ESTABLISHED, REPLY, RELATED    where its flow was let in by this epoch, and both ends are who they were; else the
                                   policy is asked again for the flow's opener: renewed, or ended (POLICY_DENIED)
    NEW                            where the policy allows it: its opener's direction, its destination port
    UNTRACKED                      the same, each packet by itself
    INVALID                        no: FLOW_UNKNOWN. But TCP in mid-stream while the port picks up what the policy
                                   allows in either direction

Each port asks its own cell alone: egress at the host of the sender, ingress at that of the receiver. Default deny:
where nothing is known of the other end, the packet waits until it is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from divhook.core.addressing import Address, AddressPlan
from divhook.core.endpoint import Endpoint
from divhook.core.flow import Flow, FlowClass, FlowKey, FlowKind, Judgement, TcpEvent, TcpState, judge, note
from divhook.core.flow_log import FlowEvent
from divhook.core.reasons import DropReason
from divhook.core.verdict import Decision, Direction, Policies, PortPolicy, Relation, relation_of
from divhook.core.wire.icmp import TYPE_ECHO
from divhook.core.wire.ipv4 import Header, Protocol

EPHEMERAL_PORT = 32_768
"""From here on clients have theirs: Linux's default; RFC 6056 §3.2."""
LIVE = frozenset((FlowClass.ESTABLISHED, FlowClass.REPLY, FlowClass.RELATED))
_PICKED_UP = {
    TcpEvent.ACK: (TcpState.OPEN, TcpState.OPEN),
    TcpEvent.FIN: (TcpState.OPEN, TcpState.OPEN),
    TcpEvent.SYN_ACK: (TcpState.SYN, TcpState.NONE),
}
"""Segments that may begin a flow in mid-stream, and how far its sides had got before them. A reset begins none."""


@dataclass(frozen=True, slots=True)
class Unsure:
    """Nobody here knows what this identity of an address stands for."""

    identity: int
    address: Address


@dataclass(frozen=True, slots=True)
class _Packet:
    """What is asked about. remote, remote_identity: the other end of its flow."""

    endpoint: Endpoint
    policy: PortPolicy
    header: Header
    packet: bytes
    outward: bool
    remote: Address
    remote_identity: int
    relation: Relation
    judged: Judgement


class Guard:
    """Asks policies about packets at ports of this host. identity_of: of an address that is known here, else 0.

    is_host: whether an address is this host's own.
    """

    def __init__(
        self,
        plan: AddressPlan,
        policies: Policies,
        identity_of: Callable[[Address], int],
        is_host: Callable[[Address], bool] = lambda _: False,
    ) -> None:
        self._plan = plan
        self._is_host = is_host
        self.policies = policies
        self._identity_of = identity_of

    def check(
        self, endpoint: Endpoint, header: Header, packet: bytes, outward: bool, remote_identity: int, now: float
    ) -> DropReason | Unsure | None:
        """A whole packet from (outward) or to an endpoint of this host. None: it passes, and is noted.

        remote_identity: of the end that it is for or from; 0 where that is external or the host.
        """
        policy = self.policies.port(endpoint)
        if policy is None:
            return None
        now_s = self.policies.now_s(now)
        judged = judge(policy.flows, self._plan, header, packet, now_s)
        local, remote = (header.source, header.destination)[:: 1 if outward else -1]
        if judged.flow_class is FlowClass.RELATED and judged.key is not None:
            quoted = judged.key.high if judged.key.low == local else judged.key.low
            if quoted != remote:
                if self._is_host(remote):
                    return DropReason.FLOW_UNKNOWN  # an error to or from the host about a flow that is not its own
                remote, remote_identity = quoted, self._identity_of(quoted)
        relation = relation_of(self._plan, local, remote, self._is_host)
        asked = _Packet(endpoint, policy, header, packet, outward, remote, remote_identity, relation, judged)
        verdict = self._verdict(asked, now, now_s)
        if isinstance(verdict, Judgement):
            identities = {"local_identity": policy.identity, "remote_identity": remote_identity}
            note(policy.flows, verdict, header, now_s, **identities, epoch=policy.epoch)
            return None
        return verdict

    def check_group(
        self, endpoint: Endpoint, header: Header, packet: bytes, outward: bool, remote_identity: int, relation: Relation
    ) -> DropReason | Unsure | None:
        """A packet to a broadcast or multicast address, from (outward) or to an endpoint of this host, by itself.

        It is of no flow, and opens none: an answer is a flow of its own. A later fragment shows no port, and passes
        where the policy allows every port.
        """
        if self.policies.port(endpoint) is None:
            return None
        at, port = header.header_length, 0
        if not header.fragment_offset and header.protocol in (Protocol.TCP, Protocol.UDP):
            port = int.from_bytes(packet[at + 2 : at + 4], "big")
        elif not header.fragment_offset and header.protocol == Protocol.ICMP:
            port = int.from_bytes(packet[at : at + 2], "big")
        direction = _direction(outward)
        answer = self.policies.decide(direction, endpoint, relation, remote_identity, header.protocol, port)
        if answer is None:
            return Unsure(remote_identity, header.source)
        return None if answer.allow else DropReason.POLICY_DENIED

    def _verdict(self, asked: _Packet, now: float, now_s: float) -> DropReason | Unsure | Judgement:
        """The packet as it is to be noted, or what becomes of it."""
        judged, policy = asked.judged, asked.policy
        if judged.flow_class is FlowClass.INVALID:
            return self._pick_up(asked, now, now_s)
        flow = judged.flow if judged.flow_class in LIVE else None
        if flow is not None and (flow.epoch, flow.local_identity, flow.remote_identity) == (
            policy.epoch,
            policy.identity,
            asked.remote_identity,
        ):
            return judged
        if flow is not None and judged.key is not None:
            by_local = flow.opened_by_high == (judged.key.high == _local(asked))
            direction, port = _direction(by_local), _opened_port(judged.key, flow.opened_by_high)
        else:
            direction, port = _direction(asked.outward), _port_of(asked)
        answer = self._ask(asked, direction, port)
        if answer is None:
            return Unsure(asked.remote_identity, asked.remote)
        if not answer.allow:
            if flow is not None and judged.key is not None:
                policy.flows.delete(judged.key)
            self._tell(asked, answer, now, DropReason.POLICY_DENIED, ended=flow is not None)
            return DropReason.POLICY_DENIED
        if flow is not None and judged.key is not None:
            return replace(judged, flow=self._let_in(asked, judged.key, flow))
        if judged.flow_class is FlowClass.NEW and answer.log:
            self._tell(asked, answer, now, None)
        return judged

    def _pick_up(self, asked: _Packet, now: float, now_s: float) -> DropReason | Unsure | Judgement:
        """TCP in mid-stream: opened by who has the ephemeral port.

        Where that does not tell, by whom the policy allows it, first by whoever speaks to the lower port.
        """
        judged, key = asked.judged, asked.judged.key
        states = _PICKED_UP.get(judged.event) if judged.event is not None else None
        if states is not None and key is not None and now_s < asked.policy.pickup_until_s:
            if judged.event is TcpEvent.SYN_ACK:
                turns = [not judged.from_high]
            else:
                by_high = key.low_port < key.high_port or (key.low_port == key.high_port and judged.from_high)
                told = (key.low_port >= EPHEMERAL_PORT) != (key.high_port >= EPHEMERAL_PORT)
                turns = [by_high] if told else [by_high, not by_high]
            for by_high in turns:
                direction = _direction((by_high == judged.from_high) == asked.outward)
                answer = self._ask(asked, direction, _opened_port(key, by_high))
                if answer is None:
                    return Unsure(asked.remote_identity, asked.remote)
                if answer.allow:
                    flow = self._let_in(asked, key, Flow(now_s, by_high, tcp=states))
                    self.policies.picked_up()
                    if answer.log:
                        self._tell(asked, answer, now, None, picked_up=True)
                    kind = FlowClass.ESTABLISHED if judged.from_high == by_high else FlowClass.REPLY
                    return replace(judged, flow_class=kind, flow=flow)
        self._tell(asked, Decision(False), now, DropReason.FLOW_UNKNOWN)
        return DropReason.FLOW_UNKNOWN

    def _ask(self, asked: _Packet, direction: Direction, port: int) -> Decision | None:
        protocol = asked.judged.key.protocol if asked.judged.key is not None else asked.header.protocol
        remote = asked.remote if asked.relation in (Relation.EXTERNAL, Relation.HOST) else asked.remote_identity
        return self.policies.decide(direction, asked.endpoint, asked.relation, remote, protocol, port)

    def _let_in(self, asked: _Packet, key: FlowKey, flow: Flow) -> Flow:
        policy = asked.policy
        renewed = replace(
            flow, local_identity=policy.identity, remote_identity=asked.remote_identity, epoch=policy.epoch
        )
        policy.flows.put(key, renewed)
        return renewed

    def _tell(
        self,
        asked: _Packet,
        decision: Decision,
        now: float,
        reason: DropReason | None,
        ended: bool = False,
        picked_up: bool = False,
    ) -> None:
        header, key, judged = asked.header, asked.judged.key, asked.judged
        ports = (0, 0)
        if header.protocol == Protocol.ICMP:
            ports = divmod(_type_code(asked), 256)
        elif key is not None and key.kind is FlowKind.PAIR:
            ports = (key.high_port, key.low_port) if judged.from_high else (key.low_port, key.high_port)
        self.policies.told(
            FlowEvent(
                now,
                asked.endpoint.port,
                asked.outward,
                reason,
                decision.rule,
                header.source,
                header.destination,
                header.protocol,
                *ports,
                asked.policy.identity,
                asked.remote_identity,
                ended,
                picked_up,
            )
        )


def _direction(by_local: bool) -> Direction:
    return Direction.EGRESS if by_local else Direction.INGRESS


def _local(asked: _Packet) -> Address:
    return asked.header.source if asked.outward else asked.header.destination


def _opened_port(key: FlowKey, by_high: bool) -> int:
    """The port that a flow was opened to; of ICMP echo, its type and code."""
    if key.kind is not FlowKind.PAIR:
        return TYPE_ECHO << 8
    return key.low_port if by_high else key.high_port


def _type_code(asked: _Packet) -> int:
    at = asked.header.header_length
    return int.from_bytes(asked.packet[at : at + 2], "big") if not asked.header.fragment_offset else 0


def _port_of(asked: _Packet) -> int:
    """Of a packet that opens a flow, or is part of none."""
    judged = asked.judged
    return _type_code(asked) if judged.key is None else _opened_port(judged.key, judged.from_high)
