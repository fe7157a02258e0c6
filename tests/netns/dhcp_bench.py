"""A bench for real DHCP clients: each in a network namespace, its veth's other end in a namespace of the server's.

    client 1 [veth c0] ──── [h1] ┐
    client 2 [veth c0] ──── [h2] ├ namespace of the bench: one packet socket, divhook.core.dhcp, ARP for the router
    ...                          ┘

The shell here is what the agent is in earnest: it tells ports by interface, hands whole IPv4 packets to the server,
sends the frames it gets back. It answers ARP for the router, and on request for the offered address too (a conflict).
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from divhook.core.addressing import Address, SubnetId, parse_address, rmac
from divhook.core.dhcp import DhcpResult, DhcpServer, LeaseChange, SubnetService
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.wire.dhcp import DhcpType, parse_dhcp_untrusted

SUBNET = SubnetId(7, 9)
ROUTER = parse_address("10.7.9.1")
ALIEN_MAC = bytes.fromhex("5254000badad")
CLONE_NEWNET = 0x40000000
SO_RCVBUFFORCE, PACKET_OUTGOING = 33, 4
SERVICE = SubnetService(
    router=ROUTER,
    mask=parse_address("255.255.255.0"),
    broadcast=parse_address("10.7.9.255"),
    dns=(parse_address("10.7.9.1"), parse_address("9.9.9.10")),
    domain="eng.apple.com",
    search=("eng.apple.com", "marketing.apple.com"),
    mtu=1400,
    ntp=(parse_address("10.7.9.5"), parse_address("10.7.9.6")),
    routes=((parse_address("10.17.0.0"), 16, parse_address("10.7.9.254")),),
    lease_s=3600,
    t1_s=1000,
    t2_s=3000,
    next_server=parse_address("10.7.9.77"),
    boot_file="pxelinux.0",
    extra=((252, b"http://wpad/x"),),
)


def run(*command: str, check: bool = True) -> str:
    """A command's output."""
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=60).stdout


def missing(*programs: str) -> str | None:
    """The first of these programs that is not installed."""
    return next((name for name in programs if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")), None)


def socket_in(namespace: str) -> socket.socket:
    """A packet socket on all interfaces of a namespace. The calling thread comes back to its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            # ETH_P_ALL (3): the kernel's own ARP and IP see the frames too, but the ends have no address
            return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        finally:
            libc.setns(home.fileno(), CLONE_NEWNET)


@dataclass(frozen=True)
class Exchange:
    """One message of a client, and what the server made of it."""

    kind: str
    unicast: bool
    result: DhcpResult

    @property
    def answer(self) -> str:
        """Message type of the answer; empty for none."""
        return kind_of(self.result.frames[0][14 + 28 :]) if self.result.frames else ""


def kind_of(payload: bytes) -> str:
    value = parse_dhcp_untrusted(payload).option(53)
    return DhcpType(value[0]).name if value else "BOOTP"


class Bench:
    """Server, ports and clients' namespaces. Use as a context manager."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.server = DhcpServer()
        self.endpoints: dict[int, Endpoint] = {}
        self.services: dict[int, SubnetService] = {}
        self.elsewhere: dict[int, Address] = {}
        """By port: the address that it has as soon as it has declined the first one, as an agent would assign it."""
        self.conflicts: set[int] = set()
        self.deaf_to_unicast: set[int] = set()
        self.exchanges: defaultdict[int, list[Exchange]] = defaultdict(list)  # by port
        self.programs: list[subprocess.Popen[bytes]] = []  # killed at the end
        self.failure: BaseException | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="dhcp-bench")

    def __enter__(self) -> "Bench":
        run("ip", "netns", "add", f"{self.prefix}s")
        self._socket = socket_in(f"{self.prefix}s")
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        for program in self.programs:
            program.kill()
            program.wait()
        for port in self.endpoints:
            for pid in run("ip", "netns", "pids", self.namespace(port), check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "del", self.namespace(port), check=False)
        run("ip", "netns", "del", f"{self.prefix}s", check=False)
        if self.failure is not None:
            raise self.failure

    def namespace(self, port: int) -> str:
        return f"{self.prefix}c{port}"

    def add_port(self, port: int, service: SubnetService = SERVICE, **fields: object) -> Endpoint:
        """A client's namespace with the interface c0, up, that leads to the server."""
        endpoint = Endpoint(
            port=port,
            subnet=SUBNET,
            vmac=bytes.fromhex("525400a1b2") + bytes([port]),
            address=bytes([10, 7, 9, 100 + port]),
            guest=f"guest-{port}",
            guest_uuid=str(port),
            state=PortState.ACTIVE,
        )
        self.endpoints[port] = replace(endpoint, **fields)  # type: ignore[arg-type]
        self.services[port] = service
        there, here = self.namespace(port), f"{self.prefix}s"
        run("ip", "netns", "add", there)
        run("ip", "-n", here, "link", "add", f"h{port}", "type", "veth", "peer", "name", "c0", "netns", there)
        run("ip", "-n", there, "link", "set", "c0", "address", endpoint.vmac.hex(":"))
        # in earnest NFQUEUE completes checksums; a packet socket does not
        run("ip", "netns", "exec", there, "ethtool", "-K", "c0", "tx", "off")
        run("ip", "-n", there, "link", "set", "lo", "up")
        run("ip", "-n", here, "link", "set", f"h{port}", "up")
        run("ip", "-n", there, "link", "set", "c0", "up")
        return self.endpoints[port]

    def confirm(self, port: int) -> None:
        """The address of a port is confirmed: what waits is answered."""
        with self._changed:
            self.endpoints[port] = self.endpoints[port].with_state(PortState.ACTIVE)
            late = self.server.confirmed(self.endpoints[port], self.services[port], f"guest-{port}", time.monotonic())
            self._send(port, late)

    def leases(self) -> dict[int, bytes]:
        """Address by port of what is leased now."""
        with self._changed:
            return {lease.port: lease.address for lease in self.server.leases(time.monotonic())}

    def wait(self, port: int, claim: Callable[[Exchange], bool], timeout_s: float = 60, after: int = 0) -> Exchange:
        """The first exchange of a port, from number `after` on, of which the claim holds."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for exchange in self.exchanges[port][after:]:
                    if claim(exchange):
                        return exchange
                left = deadline - time.monotonic()
                if left <= 0 or self.failure is not None:
                    seen = [(e.kind, e.answer, e.result.drop) for e in self.exchanges[port][after:]]
                    raise AssertionError(f"not seen in {timeout_s} s; what was seen: {seen[-30:]}")
                self._changed.wait(left)

    # ── the shell ──

    def _serve(self) -> None:
        try:
            while not self._stop.is_set():
                if select.select([self._socket], [], [], 0.1)[0]:
                    frame, address = self._socket.recvfrom(65535)
                    if address[2] != PACKET_OUTGOING and address[0].startswith("h"):
                        with self._changed:
                            self._receive(int(address[0][1:]), frame)
                            self._changed.notify_all()
        except BaseException as error:  # shown to the test, not lost with the thread
            self.failure = error

    def _receive(self, port: int, frame: bytes) -> None:
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1":
            self._receive_arp(port, frame)
        elif frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] == b"\0\x43":
            unicast = frame[30:34] == ROUTER
            if unicast and port in self.deaf_to_unicast:
                return
            result = self.server.handle(
                self.endpoints[port], self.services[port], f"guest-{port}", frame[14:], time.monotonic()
            )
            if result.event is not None and result.event.kind is LeaseChange.DECLINED and port in self.elsewhere:
                self.endpoints[port] = replace(self.endpoints[port], address=self.elsewhere[port])
                self.conflicts.discard(port)
            self.exchanges[port].append(Exchange(kind_of(frame[14 + 28 :]), unicast, result))
            self._send(port, result)

    def _receive_arp(self, port: int, frame: bytes) -> None:
        asker, target = frame[22:32], frame[38:42]
        mac = rmac(SUBNET) if target == ROUTER else ALIEN_MAC
        if target == ROUTER or (target == self.endpoints[port].address and port in self.conflicts):
            if target != ROUTER and asker[6:] == target:
                return  # an announcement, not a probe
            reply = asker[:6] + mac + b"\x08\x06\0\1\x08\0\6\4\0\2" + mac + target + asker
            self._socket.sendto(reply, (f"h{port}", 0))

    def _send(self, port: int, result: DhcpResult) -> None:
        for frame in result.frames:
            self._socket.sendto(frame, (f"h{port}", 0))
