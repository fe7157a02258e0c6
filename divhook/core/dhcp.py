"""The local DHCP server (RFC 2131): each guest is answered by its own host, as if by its subnet's router.

    guest                         here
      │ DISCOVER ───────────────▶ │ held while the address is not confirmed, see `confirmed`
      │ ◀────────────────── OFFER │
      │ REQUEST (SELECTING) ────▶ │ BOUND
      │ ◀──────────────────── ACK │
      │ REQUEST (RENEWING) ─────▶ │ RENEWED, at T1; REBINDING at T2
      │ ◀──────────────────── ACK │
      │ RELEASE, DECLINE ───────▶ │ RELEASED, DECLINED; no answer
      │ INFORM ─────────────────▶ │ ACK with options alone: no yiaddr, no lease times

What a REQUEST is can be told from what it holds (RFC 2131 §4.3.2, table 4); `REQUEST_TABLE` is that table, and what
is not in it is malformed:

    state        sent to     server id   requested address   ciaddr   answered
    SELECTING    broadcast   there       there               zero     if the server id is ours
    INIT-REBOOT  broadcast   -           there               zero     always
    RENEWING     us          -           -                   there    always
    REBINDING    broadcast   -           -                   there    always

The address asked for is the endpoint's: ACK. Anything else, or a fenced endpoint: NAK. There is no pool here: what an
endpoint's address is was decided elsewhere, so the port alone is the key of a lease, whatever client identifiers
a boot ROM, an installer and an operating system on it choose.

Where an answer goes (§4.1; there is no relay): NAK to the broadcast address; else to ciaddr if the client has one; else
by the client's broadcast flag, to the broadcast address or straight to yiaddr at chaddr.

Security: a frame is answered only into the port it came from; it must bear the port's vmac as chaddr; what a server or
a relay would say is refused; an answer never holds an address that the guest chose. The IP source is not looked at
(a client with a lease of another network must be able to hear NAK).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from divhook.core.addressing import (
    BROADCAST_MAC,
    LIMITED_BROADCAST,
    ZERO_ADDRESS,
    Address,
    Mac,
    SubnetId,
    address_text,
    rmac,
)
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.reasons import DropReason
from divhook.core.wire.dhcp import (
    CLIENT_PORT,
    DEFAULT_MAX_BYTES,
    SERVER_PORT,
    DhcpMessage,
    DhcpType,
    Op,
    Option,
    encode,
    encode_routes,
    encode_search,
    parse_dhcp_untrusted,
)
from divhook.core.wire.errors import WireError
from divhook.core.wire.ethernet import ETHERTYPE_IPV4, Ethernet
from divhook.core.wire.ipv4 import Ipv4, Protocol, parse_ipv4_untrusted
from divhook.core.wire.udp import Udp, parse_udp_untrusted

INFINITE_S = 0xFFFFFFFF
"""Lease time that never ends (RFC 2131 §3.3)."""
MAX_PENDING = 1024
"""Requests held for a confirmation, one per port, each at most MAX_REQUEST_BYTES. Full: the oldest goes, its client
asks again."""
PENDING_LIFE_S = 10.0
"""Age at which a held request is not answered any more: its client has sent another by then (RFC 2131 §4.1)."""
MAX_CLIENT_ID_BYTES = 255
MAX_NAME_CHARACTERS = 64
"""Of a client's host name and vendor class in leases and events."""
_UDP_IP_BYTES = 28
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
_WITHOUT_LIST = (Option.MASK, Option.ROUTER)
_PROTOCOL_OPTIONS = frozenset(
    {0, 255, Option.RAPID_COMMIT, Option.RELAY_AGENT, *range(Option.REQUESTED_ADDRESS, Option.T2 + 1), Option.CLIENT_ID}
)


@dataclass(frozen=True, slots=True)
class SubnetService:
    """What the endpoints of one subnet are told. Raises ValueError, with a text for a person, where it cannot be.

    mtu: None for the endpoint's own; never told larger than that. routes: (prefix, length, gateway); the default
    route is added where it is missing, since clients that take routes ignore the router option (RFC 3442). Times in
    seconds; t1_s and t2_s None for 0.5 and 0.875 of the lease. extra: (code, value), in place of a value made here.
    """

    router: Address
    mask: Address
    broadcast: Address
    dns: tuple[Address, ...] = ()
    domain: str | None = None
    search: tuple[str, ...] = ()
    mtu: int | None = None
    ntp: tuple[Address, ...] = ()
    routes: tuple[tuple[Address, int, Address], ...] = ()
    lease_s: int = 3600
    t1_s: int | None = None
    t2_s: int | None = None
    next_server: Address | None = None
    boot_file: str = ""
    extra: tuple[tuple[int, bytes], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.lease_s <= INFINITE_S:
            raise ValueError(f"lease time {self.lease_s} s is not in 1..{INFINITE_S}")
        if not 0 <= self.t1 <= self.t2 <= self.lease_s:
            raise ValueError(f"T1 {self.t1} s, T2 {self.t2} s and lease time {self.lease_s} s are not in this order")
        if self.mtu is not None and not 68 <= self.mtu <= 0xFFFF:
            raise ValueError(f"MTU {self.mtu} is not in 68..65535 (RFC 2132 §5.1)")
        if not self.boot_file.isascii() or len(self.boot_file) > 127:
            raise ValueError("the boot file's name takes at most 127 ASCII characters")
        if self.domain is not None and not (self.domain.isascii() and 0 < len(self.domain) <= 253):
            raise ValueError(f"{self.domain!r} is not a domain name")
        codes = [code for code, _ in self.extra]
        for code in codes:
            if code in _PROTOCOL_OPTIONS or not 0 < code < 255 or codes.count(code) > 1:
                raise ValueError(f"DHCP option {code} is not one that can be configured, or is given twice")
        encode_search(self.search)
        encode_routes(self.routes)

    @property
    def t1(self) -> int:
        """Seconds after which a client renews."""
        return self.lease_s // 2 if self.t1_s is None else self.t1_s

    @property
    def t2(self) -> int:
        """Seconds after which a client rebinds."""
        return self.lease_s * 7 // 8 if self.t2_s is None else self.t2_s


class LeaseChange(StrEnum):
    """What a client did to its lease."""

    BOUND = "bound"
    RENEWED = "renewed"
    RELEASED = "released"
    DECLINED = "declined"  # the client found the address in use
    INFORMED = "informed"
    REFUSED = "refused"  # NAK


@dataclass(frozen=True, slots=True)
class LeaseEvent:
    """For the log, the status and the allocator. hostname and vendor_class are the client's words, made printable."""

    kind: LeaseChange
    port: int
    address: Address | None
    lease_s: int
    hostname: str
    vendor_class: str
    client_id: bytes
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A bound lease, in a form that can be stored or moved with its guest: times are relative (infinite: inf)."""

    port: int
    subnet: SubnetId
    vmac: Mac
    address: Address
    lease_s: int
    remaining_s: float
    hostname: str
    vendor_class: str
    client_id: bytes


@dataclass(frozen=True, slots=True)
class DhcpResult:
    """frames: whole Ethernet frames for the guest. drop None: the message was used. waiting: held for `confirmed`.

    omitted: option codes that found no room in the answer.
    """

    frames: tuple[bytes, ...] = ()
    drop: DropReason | None = None
    event: LeaseEvent | None = None
    waiting: bool = False
    omitted: tuple[int, ...] = ()


class RequestState(StrEnum):
    """The client's state that a REQUEST shows."""

    SELECTING = "selecting"
    INIT_REBOOT = "init-reboot"
    RENEWING = "renewing"
    REBINDING = "rebinding"


REQUEST_TABLE: dict[tuple[bool, bool, bool, bool], RequestState] = {
    # (sent to us, server id, requested address, ciaddr)
    (False, True, True, False): RequestState.SELECTING,
    (False, False, True, False): RequestState.INIT_REBOOT,
    (True, False, False, True): RequestState.RENEWING,
    (False, False, False, True): RequestState.REBINDING,
}


@dataclass(frozen=True, slots=True)
class _Request:
    """A message that passed `_open_untrusted`."""

    type: DhcpType
    message: DhcpMessage
    source: Address
    unicast: bool
    server_id: Address | None
    requested: Address | None
    arrived: float

    @property
    def client_id(self) -> bytes:
        return self.message.option(Option.CLIENT_ID) or b""

    def text(self, option: Option) -> str:
        """A client's words, fit for a log: printable ASCII, bounded."""
        value = (self.message.option(option) or b"")[:MAX_NAME_CHARACTERS]
        return "".join(chr(b) if 0x20 <= b <= 0x7E else "?" for b in value)


class DhcpServer:
    """Leases by port, and requests that wait for their address to be confirmed."""

    def __init__(self) -> None:
        self._leases: dict[int, tuple[float, Lease]] = {}  # port: (expiry, lease)
        self._pending: dict[int, _Request] = {}  # oldest first

    def handle(
        self, endpoint: Endpoint, service: SubnetService, hostname: str | None, packet: bytes, now: float
    ) -> DhcpResult:
        """Take a whole IPv4 packet (UDP to port 67 or 68) from the endpoint's port.

        hostname: for option 12, None or not a host name (RFC 1123) for none. now: monotonic seconds.
        """
        try:
            request = _open_untrusted(endpoint, service, packet, now)
        except WireError as error:
            return DhcpResult(drop=error.reason)
        return self._decide(endpoint, service, hostname, request, now)

    def confirmed(self, endpoint: Endpoint, service: SubnetService, hostname: str | None, now: float) -> DhcpResult:
        """Answer what a port has waiting, if anything: call it when its endpoint leaves TENTATIVE."""
        request = self._pending.pop(endpoint.port, None)
        if request is None or now - request.arrived > PENDING_LIFE_S:
            return DhcpResult()
        return self._decide(endpoint, service, hostname, request, now)

    def forget(self, port: int) -> None:
        """The port is gone, or holds another endpoint now."""
        self._leases.pop(port, None)
        self._pending.pop(port, None)

    def leases(self, now: float) -> list[Lease]:
        """Leases that have not run out, in port order. Those that have are forgotten."""
        for port in [p for p, (expiry, _) in self._leases.items() if expiry <= now]:
            del self._leases[port]
        return [replace(self._leases[p][1], remaining_s=self._leases[p][0] - now) for p in sorted(self._leases)]

    def restore(self, leases: Iterable[Lease], now: float) -> None:
        """Take over leases of an earlier run or of another host (then with `port` replaced by the port here)."""
        for lease in leases:
            if lease.remaining_s > 0:
                self._leases[lease.port] = (now + lease.remaining_s, lease)

    # ── decisions ──

    def _decide(
        self, endpoint: Endpoint, service: SubnetService, hostname: str | None, request: _Request, now: float
    ) -> DhcpResult:
        self._pending.pop(endpoint.port, None)  # whatever the client says now is newer
        if endpoint.state is PortState.INCOMING:
            return DhcpResult(drop=DropReason.PORT_NOT_ACTIVE)
        match request.type:
            case DhcpType.REQUEST:
                return self._request(endpoint, service, hostname, request, now)
            case DhcpType.RELEASE:
                return self._give_up(endpoint, service, request, LeaseChange.RELEASED, request.message.ciaddr)
            case DhcpType.DECLINE:
                declined = request.requested or request.message.ciaddr
                return self._give_up(endpoint, service, request, LeaseChange.DECLINED, declined)
        if endpoint.state is PortState.FENCED:
            return DhcpResult(drop=DropReason.PORT_NOT_ACTIVE)
        if request.type is DhcpType.DISCOVER:
            if not _confirmed(endpoint):
                return self._hold(endpoint, request)
            return _answer(DhcpType.OFFER, endpoint, service, hostname, request)
        if not _confirmed(endpoint):
            return DhcpResult(drop=DropReason.PORT_NOT_ACTIVE)
        if (request.message.ciaddr if any(request.message.ciaddr) else request.source) != endpoint.address:
            return DhcpResult(drop=DropReason.SPOOF_IPV4)
        event = _event(LeaseChange.INFORMED, endpoint, request)
        return _answer(DhcpType.ACK, endpoint, service, hostname, request, event=event)

    def _request(
        self, endpoint: Endpoint, service: SubnetService, hostname: str | None, request: _Request, now: float
    ) -> DhcpResult:
        ciaddr = request.message.ciaddr
        state = REQUEST_TABLE.get(
            (request.unicast, request.server_id is not None, request.requested is not None, any(ciaddr))
        )
        if state is None:
            return DhcpResult(drop=DropReason.DHCP_MALFORMED)
        if state is RequestState.SELECTING and request.server_id != service.router:
            return DhcpResult()  # the client chose another server, and tells all
        if endpoint.state is not PortState.FENCED and not _confirmed(endpoint):
            return self._hold(endpoint, request)
        fenced = endpoint.state is PortState.FENCED
        if fenced or (request.requested or ciaddr) != endpoint.address:
            self._leases.pop(endpoint.port, None)
            why = "another host holds this address" if fenced else "not the address of this port"
            event = _event(LeaseChange.REFUSED, endpoint, request, detail=why)
            return _answer(DhcpType.NAK, endpoint, service, hostname, request, event=event)
        renewed = state in (RequestState.RENEWING, RequestState.REBINDING)
        event = _event(
            LeaseChange.RENEWED if renewed else LeaseChange.BOUND, endpoint, request, service.lease_s, state.value
        )
        expiry = float("inf") if service.lease_s == INFINITE_S else now + service.lease_s
        self._leases[endpoint.port] = (
            expiry,
            Lease(
                port=endpoint.port,
                subnet=endpoint.subnet,
                vmac=endpoint.vmac,
                address=endpoint.address,
                lease_s=service.lease_s,
                remaining_s=expiry - now,
                hostname=event.hostname,
                vendor_class=event.vendor_class,
                client_id=event.client_id,
            ),
        )
        return _answer(DhcpType.ACK, endpoint, service, hostname, request, event=event)

    def _hold(self, endpoint: Endpoint, request: _Request) -> DhcpResult:
        if len(self._pending) >= MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        self._pending[endpoint.port] = request
        return DhcpResult(waiting=True)

    def _give_up(
        self, endpoint: Endpoint, service: SubnetService, request: _Request, kind: LeaseChange, address: Address | None
    ) -> DhcpResult:
        """RELEASE and DECLINE: no answer. Said of another server's lease, or of none, they change nothing.

        systemd-networkd leaves the server id out of both (RFC 2131 table 5 has it as a MUST) and declines in ciaddr: so
        what is sent to us alone names us.
        """
        server_id = request.server_id or (service.router if request.unicast else None)
        if server_id is None or address in (None, ZERO_ADDRESS):
            return DhcpResult(drop=DropReason.DHCP_MALFORMED)
        _, lease = self._leases.get(endpoint.port, (0.0, None))
        if server_id != service.router or lease is None or lease.address != address:
            return DhcpResult()
        del self._leases[endpoint.port]
        return DhcpResult(event=replace(_event(kind, endpoint, request), address=address))


def _confirmed(endpoint: Endpoint) -> bool:
    return endpoint.address is not None and endpoint.state is not PortState.TENTATIVE


def _event(kind: LeaseChange, endpoint: Endpoint, request: _Request, lease_s: int = 0, detail: str = "") -> LeaseEvent:
    return LeaseEvent(
        kind=kind,
        port=endpoint.port,
        address=endpoint.address,
        lease_s=lease_s,
        hostname=request.text(Option.HOSTNAME),
        vendor_class=request.text(Option.VENDOR_CLASS),
        client_id=request.client_id,
        detail=detail,
    )


def _open_untrusted(endpoint: Endpoint, service: SubnetService, packet: bytes, now: float) -> _Request:
    """Check all of a guest's packet that does not depend on state. Raises WireError with the drop reason."""
    ip = parse_ipv4_untrusted(packet)
    if ip.protocol != Protocol.UDP or ip.fragment_offset or ip.more_fragments:
        raise WireError(DropReason.DHCP_MALFORMED, "a fragment, or not UDP")
    udp = parse_udp_untrusted(ip.payload, ip.source, ip.destination)
    if udp.destination_port == CLIENT_PORT:
        raise WireError(DropReason.ROGUE_DHCP, "to a client's port")
    if udp.destination_port != SERVER_PORT:
        raise WireError(DropReason.DHCP_MALFORMED, f"to port {udp.destination_port}")
    unicast = ip.destination == service.router
    if not unicast and ip.destination not in (LIMITED_BROADCAST, service.broadcast):
        raise WireError(DropReason.ROGUE_DHCP, "to another server's address")
    message = parse_dhcp_untrusted(udp.payload)
    if message.op is not Op.REQUEST:
        raise WireError(DropReason.ROGUE_DHCP, "BOOTREPLY")
    if any(message.giaddr):
        raise WireError(DropReason.DHCP_MALFORMED, "a relay's address")
    if message.chaddr != endpoint.vmac:
        raise WireError(DropReason.SPOOF_MAC, "chaddr is not the port's")
    code = message.option(Option.MESSAGE_TYPE)
    if code is None or len(code) != 1 or not DhcpType.DISCOVER <= code[0] <= DhcpType.INFORM:
        raise WireError(DropReason.DHCP_MALFORMED, "no message type, or an unknown one")
    kind = DhcpType(code[0])
    if kind in (DhcpType.OFFER, DhcpType.ACK, DhcpType.NAK):
        raise WireError(DropReason.ROGUE_DHCP, f"a guest's {kind.name}")
    if len(message.option(Option.CLIENT_ID) or b"") > MAX_CLIENT_ID_BYTES:
        raise WireError(DropReason.DHCP_MALFORMED, "client identifier too long")
    return _Request(
        type=kind,
        message=message,
        source=ip.source,
        unicast=unicast,
        server_id=message.address_option(Option.SERVER_ID),
        requested=message.address_option(Option.REQUESTED_ADDRESS),
        arrived=now,
    )


# ── answers ──


def _answer(
    kind: DhcpType,
    endpoint: Endpoint,
    service: SubnetService,
    hostname: str | None,
    request: _Request,
    *,
    event: LeaseEvent | None = None,
) -> DhcpResult:
    """OFFER, ACK or NAK as RFC 2131 table 3 has them; but secs is copied, as other servers do. event: goes with it."""
    asked = request.message
    address = endpoint.address or ZERO_ADDRESS
    granted = kind is not DhcpType.NAK and request.type is not DhcpType.INFORM
    ciaddr = asked.ciaddr if kind is DhcpType.ACK else ZERO_ADDRESS
    options = [(int(Option.MESSAGE_TYPE), bytes([kind])), (int(Option.SERVER_ID), service.router)]
    siaddr, file = ZERO_ADDRESS, b""
    if kind is DhcpType.NAK:
        options += _echo(asked)
        options.append((Option.MESSAGE, event.detail.encode("ascii") if event else b""))
    else:
        options += _lease_options(service) if granted else []
        options += _echo(asked)
        options += _asked_options(endpoint, service, hostname, request, {code for code, _ in options})
        siaddr, file = service.next_server or ZERO_ADDRESS, service.boot_file.encode("ascii")
    message = DhcpMessage(
        op=Op.REPLY,
        xid=asked.xid,
        secs=asked.secs,
        broadcast=asked.broadcast,
        ciaddr=ciaddr,
        yiaddr=address if granted else ZERO_ADDRESS,
        siaddr=siaddr,
        chaddr=asked.chaddr,
        file=file,
        options=tuple(options),
    )
    payload, omitted = encode(message, _room(endpoint, asked))
    to_all = kind is DhcpType.NAK or (granted and asked.broadcast and not any(ciaddr))
    destination = LIMITED_BROADCAST if to_all else address
    udp = Udp(source_port=SERVER_PORT, destination_port=CLIENT_PORT, payload=payload)
    ip = Ipv4(
        source=service.router,
        destination=destination,
        protocol=Protocol.UDP,
        payload=udp.emit(service.router, destination),
    )
    frame = Ethernet(
        destination=BROADCAST_MAC if to_all else endpoint.vmac,
        source=rmac(endpoint.subnet),
        ethertype=ETHERTYPE_IPV4,
        payload=ip.emit(),
    )
    return DhcpResult(frames=(frame.emit(),), event=event, omitted=omitted)


def _lease_options(service: SubnetService) -> list[tuple[int, bytes]]:
    """The lease time; T1 and T2 where they are configured, also for a client that does not ask."""
    options = [(int(Option.LEASE_TIME), service.lease_s.to_bytes(4, "big"))]
    if service.t1_s is not None:
        options.append((Option.T1, service.t1.to_bytes(4, "big")))
    if service.t2_s is not None:
        options.append((Option.T2, service.t2.to_bytes(4, "big")))
    return options


def _echo(asked: DhcpMessage) -> list[tuple[int, bytes]]:
    """The client's identifier, unaltered (RFC 6842)."""
    client_id = asked.option(Option.CLIENT_ID)
    return [] if client_id is None else [(Option.CLIENT_ID, client_id)]


def _asked_options(
    endpoint: Endpoint, service: SubnetService, hostname: str | None, request: _Request, present: set[int]
) -> list[tuple[int, bytes]]:
    """What the client lists, in its order (RFC 2132 §9.8), but the mask before the router (§3.3)."""
    listed = list(dict.fromkeys(request.message.option(Option.PARAMETER_LIST) or bytes(_WITHOUT_LIST)))
    if Option.MASK in listed and Option.ROUTER in listed:
        router_at = listed.index(Option.ROUTER)
        if listed.index(Option.MASK) > router_at:
            listed.remove(Option.MASK)
            listed.insert(router_at, Option.MASK)
    values = _values(endpoint, service, hostname)
    if request.type is DhcpType.INFORM:
        present = present | {Option.T1, Option.T2}
    return [(code, values[code]) for code in listed if code in values and code not in present]


def _values(endpoint: Endpoint, service: SubnetService, hostname: str | None) -> dict[int, bytes]:
    """Every option there is to give, with its value."""
    values: dict[int, bytes] = {
        Option.MASK: service.mask,
        Option.ROUTER: service.router,
        Option.MTU: min(service.mtu or endpoint.mtu, endpoint.mtu).to_bytes(2, "big"),
        Option.BROADCAST: service.broadcast,
        Option.T1: service.t1.to_bytes(4, "big"),
        Option.T2: service.t2.to_bytes(4, "big"),
    }
    if service.dns:
        values[Option.DNS] = b"".join(service.dns)
    if hostname is not None and len(hostname) <= 253 and _HOST_NAME.fullmatch(hostname):
        values[Option.HOSTNAME] = hostname.encode("ascii")
    if service.domain is not None:
        values[Option.DOMAIN] = service.domain.encode("ascii")
    if service.search:
        values[Option.SEARCH] = encode_search(service.search)
    if service.ntp:
        values[Option.NTP] = b"".join(service.ntp)
    if service.routes:
        default = () if any(length == 0 for _, length, _ in service.routes) else ((bytes(4), 0, service.router),)
        values[Option.ROUTES] = values[Option.ROUTES_MICROSOFT] = encode_routes(service.routes + default)
    if service.next_server is not None:
        values[Option.TFTP_SERVER] = address_text(service.next_server).encode("ascii")
    if service.boot_file:
        values[Option.BOOT_FILE] = service.boot_file.encode("ascii")
    values.update(service.extra)
    return values


def _room(endpoint: Endpoint, asked: DhcpMessage) -> int:
    """Longest message to send: the client's option 57 (of the IP datagram, 576 at least), and its port's MTU."""
    limit = asked.option(Option.MAX_SIZE)
    datagram = int.from_bytes(limit, "big") if limit is not None and len(limit) == 2 else 0
    return min(max(datagram - _UDP_IP_BYTES, DEFAULT_MAX_BYTES), endpoint.mtu - _UDP_IP_BYTES)
