"""`make demo`: two hosts, five guests, and every promise of divhook's main job checked before your eyes.

Each line with a tick was measured; one cross makes the exit code 1. Whatever happens, also on Ctrl-C,
the lab is removed at the end.
"""

import argparse
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divhook.core.addressing import AddressPlan, group_mac, parse_address, parse_mac
from divhook.lab.cli import interrupt_on_sigterm
from divhook.lab.errors import LabError
from divhook.lab.guest import GuestSpec, LabGuest, Nic
from divhook.lab.lab import FIRST_STATION, NETWORK, SYSCTL_NO_IPV6, Lab, default_directory
from divhook.lab.namespaces import Namespaces
from divhook.lab.processes import wait_until
from divhook.lab.wire import examine, read_pcap

PINGS = 5
TCP_BYTES = 2_000_000
"""What is sent; iperf3 stops counting what was received a little before the end."""
UDP_BITS_PER_S = 2_000_000
UDP_SECONDS = 1
UDP_PAYLOAD_BYTES = 1400
MAX_UDP_LOSS_PERCENT = 1.0
FOREIGN_PINGS = 3
GROUP, GROUP_PORT = "239.1.2.3", 5007
LABEL_TIMEOUT_S = 10.0
POLICY = """\
cell: shop
subnets: {db: {ingress: deny}}
ingress:
  - {from: {labels: tier=front}, to: {subnet: db}, allow: icmp/ping}
"""
ROUTER = f"{NETWORK}.{FIRST_STATION + 1}"
"""The second station on the switch."""
BEHIND = "198.51.100.10"
SETTINGS = f"""\
external:
  on_link:
    - prefix: {NETWORK}.0/24
  routes:
    - {{prefix: 198.51.100.0/24, via: [{{address: {ROUTER}}}]}}
  pools:
    public: {NETWORK}.2${{number}}0
"""
OUTSIDE_POLICY = f"""\
cell: shop
egress:
  - {{from: {{subnet: web}}, to: {{cidr: {NETWORK}.0/24}}, allow: icmp/ping}}
ingress:
  - {{from: {{cidr: {NETWORK}.0/24}}, to: {{guest: web2}}, allow: icmp/ping}}
"""
NAT_POLICY = """\
cell: shop
egress:
  - {from: {subnet: web}, to: {cidr: 198.51.100.0/24}, allow: tcp/8080}
"""
STREAM_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Actor:
    """A guest of the story."""

    name: str
    host: str
    cell: str
    subnet: str


CAST = (
    Actor("web1", "A", "shop", "web"),
    Actor("web2", "B", "shop", "web"),
    Actor("web3", "A", "shop", "web"),
    Actor("db1", "B", "shop", "db"),
    Actor("other1", "A", "lab", "web"),
)


class Story:
    """Prints the story and counts its checks."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self.passed = 0
        self.failures: list[str] = []
        self._colour = sys.stdout.isatty()

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text

    def chapter(self, title: str) -> None:
        """A heading, with the time since the beginning."""
        print(f"\n{self._paint(title, '1')}  [{time.monotonic() - self.begin:.0f} s]", flush=True)

    def note(self, text: str) -> None:
        """A line without a check."""
        print(f"    {text}", flush=True)

    def check(self, claim: str, ok: bool, figure: str = "") -> bool:
        """One check: a tick or a cross, the claim, what was measured."""
        mark = self._paint("✓", "32") if ok else self._paint("✗", "31")
        print(f"  {mark} {claim}{f': {figure}' if figure else ''}", flush=True)
        if ok:
            self.passed += 1
        else:
            self.failures.append(claim)
        return ok

    def summary(self) -> int:
        """The last words; the exit code."""
        seconds = time.monotonic() - self.begin
        print()
        if self.failures:
            print(self._paint(f"{len(self.failures)} of {self.passed + len(self.failures)} checks failed:", "31"))
            for failure in self.failures:
                print(f"  ✗ {failure}")
        else:
            print(self._paint(f"All {self.passed} checks passed", "32") + f", in {seconds:.0f} s.")
        return 1 if self.failures else 0


@dataclass(frozen=True, slots=True)
class Ping:
    """What busybox ping said."""

    sent: int
    received: int
    ttls: frozenset[int]
    average_ms: float | None

    def __str__(self) -> str:
        ttl = "/".join(map(str, sorted(self.ttls))) or "none"
        time_text = f", {self.average_ms:.1f} ms on average" if self.average_ms is not None else ""
        return f"{self.received} of {self.sent} answered, TTL {ttl}{time_text}"


def parse_ping(output: str) -> Ping:
    """Read the output of busybox ping. Raises LabError where it is none."""
    counts = re.search(r"(\d+) packets transmitted, (\d+) packets received", output)
    if counts is None:
        raise LabError(f"not the output of ping: {output.strip()}")
    average = re.search(r"min/avg/max = [\d.]+/([\d.]+)/", output)
    ttls = frozenset(int(ttl) for ttl in re.findall(r"ttl=(\d+)", output))
    return Ping(int(counts[1]), int(counts[2]), ttls, float(average[1]) if average else None)


def ping(guest: LabGuest, address: str, count: int, wait_s: int = 10) -> Ping:
    """Ping from a guest, every 0.2 s."""
    result = guest.run(f"ping -c {count} -i 0.2 -W {wait_s} {address}", timeout_s=count + wait_s + 10)
    return parse_ping(result.output)


def trace(guest: LabGuest, address: str) -> list[str]:
    """Addresses that traceroute shows, one per hop; * where none answered."""
    output = guest.exec(f"traceroute -n -q 1 -w 5 -m 5 {address}", timeout_s=60)
    return [line.split()[1] for line in output.splitlines()[1:] if line.strip()]


def iperf(guest: LabGuest, arguments: str) -> dict[str, Any]:
    """Run an iperf3 client in a guest; the `end` of its report. Raises LabError."""
    result = guest.run(f"iperf3 --connect-timeout 10000 -J {arguments} 2>/dev/null", timeout_s=60)
    try:
        report = json.loads(result.output)
    except ValueError:
        raise LabError(f"{guest.name}: iperf3 {arguments}: {result.output.strip()}") from None
    if "error" in report:
        raise LabError(f"{guest.name}: iperf3 {arguments}: {report['error']}")
    end: dict[str, Any] = report["end"]
    return end


class Demo:
    """The chapters, over a lab that is up."""

    def __init__(self, lab: Lab, story: Story) -> None:
        self.lab = lab
        self.story = story
        self.guests: dict[str, LabGuest] = {}
        self.addresses: dict[str, str] = {}
        self.plan = AddressPlan()

    def start_guests(self) -> None:
        """Start them all with `virsh start`; addresses come from the agent on each host."""
        self.story.chapter("Five guests, each by plain `virsh start`")
        wanted = [(GuestSpec(actor.name, (Nic(actor.cell, actor.subnet),)), actor.host) for actor in CAST]
        begin = time.monotonic()
        for guest in self.lab.start_all(wanted):
            self.guests[guest.name] = guest
        self.story.note(f"all five have booted after {time.monotonic() - begin:.0f} s")
        for actor in CAST:
            guest = self.guests[actor.name]
            address = guest.wait_address()
            self.addresses[actor.name] = address
            options = guest.dhcp_options()
            server, lease = options.get("serverid", "?"), options.get("lease", "?")
            self.story.check(
                f"{actor.name:6} on host {actor.host}, cell {actor.cell}, subnet {actor.subnet}: address by DHCP",
                self.plan.contains(bytes(map(int, address.split(".")))),
                f"{address:10} from {server}, lease {lease} s, `virsh start` {guest.start_s:.2f} s",
            )

    def relation(self, one: Actor, other: Actor) -> str:
        """How two guests stand to each other, in words."""
        host = "on one host" if one.host == other.host else "on two hosts"
        if one.cell != other.cell:
            return f"of two cells, {host}"
        return f"of one subnet, {host}" if one.subnet == other.subnet else f"of two subnets, {host}"

    def friends(self) -> list[tuple[Actor, Actor]]:
        """Pairs that may talk."""
        return [(a, b) for a, b in itertools.combinations(CAST, 2) if a.cell == b.cell]

    def pings(self) -> None:
        """Ping and traceroute in every pair that may talk."""
        self.story.chapter("Within a cell: no hop in a subnet, exactly one router between subnets")
        for one, other in self.friends():
            guest, address = self.guests[one.name], self.addresses[other.name]
            routed = one.subnet != other.subnet
            expected = 63 if routed else 64
            result = ping(guest, address, PINGS)
            title = f"{one.name} → {other.name}, {self.relation(one, other)}"
            good = result.received == result.sent and result.ttls == {expected}
            self.story.check(f"{title}: ping arrives with TTL {expected}", good, str(result))
            hops = trace(guest, address)
            router = guest.dhcp_options().get("router", "?")
            wanted = [router, address] if routed else [address]
            self.story.check(
                f"{title}: traceroute shows {'the router, once' if routed else 'no router'}",
                hops == wanted,
                " → ".join(hops),
            )

    def streams(self) -> None:
        """TCP and UDP in every pair that may talk, MTU 1500, offloads as the guest's driver has them."""
        self.story.chapter("TCP and UDP in every pair that may talk, at MTU 1500 with offloads on")
        for guest in self.guests.values():
            guest.exec("iperf3 -s -D; sleep 0.2")
        for one, other in self.friends():
            guest, address = self.guests[one.name], self.addresses[other.name]
            title = f"{one.name} → {other.name}, {self.relation(one, other)}"
            try:
                tcp = iperf(guest, f"-c {address} -n {TCP_BYTES}")["sum_received"]
                self.story.check(
                    f"{title}: TCP",
                    tcp["bytes"] >= TCP_BYTES / 2,
                    f"{tcp['bytes'] / 1e6:.1f} MB, {tcp['bits_per_second'] / 1e6:.1f} Mbit/s",
                )
                udp = iperf(guest, f"-c {address} -u -b {UDP_BITS_PER_S} -t {UDP_SECONDS} -l {UDP_PAYLOAD_BYTES}")[
                    "sum"
                ]
                self.story.check(
                    f"{title}: UDP",
                    udp["packets"] > 0 and udp["lost_percent"] <= MAX_UDP_LOSS_PERCENT,
                    f"{udp['packets']} datagrams, {udp['lost_packets']} lost",
                )
            except LabError as error:
                self.story.check(title, False, str(error))

    def strangers(self) -> None:
        """Between cells nothing passes, and the host of the sender says why."""
        self.story.chapter("Between cells: nothing, and it is counted")
        for one, other in ((CAST[0], CAST[4]), (CAST[1], CAST[4]), (CAST[4], CAST[3])):
            guest, address = self.guests[one.name], self.addresses[other.name]
            before = self.dropped(one, "cell_denied")
            elsewhere = {name: self.dropped_on(name, "cell_denied") for name in self.lab.hosts if name != one.host}
            result = ping(guest, address, FOREIGN_PINGS, wait_s=1)
            title = f"{one.name} → {other.name}, {self.relation(one, other)}"
            self.story.check(f"{title}: ping is not answered", result.received == 0, str(result))
            counted = self.dropped(one, "cell_denied") - before
            unmoved = all(self.dropped_on(name, "cell_denied") == count for name, count in elsewhere.items())
            self.story.check(
                f"{title}: dropped on host {one.host}, as cell_denied",
                counted >= FOREIGN_PINGS and unmoved,
                f"{counted} counted for {one.name}" + ("" if unmoved else "; but counted elsewhere too"),
            )
        lines = self.lab.host("A").divhook("drops").stdout.rstrip().splitlines()
        self.story.note("host A, `divhook drops`:")
        for line in lines:
            self.story.note("  " + line)

    def everybody(self) -> None:
        """A broadcast and a group, and what the wire has of them."""
        self.story.chapter("To all of a subnet, or to a group: one frame on the wire, and to nobody else")
        web, others = ("web2", "web3"), ("db1", "other1")
        for guest in self.guests.values():
            guest.exec("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")
        sender, broadcast = self.guests["web1"], self.addresses["web1"].rsplit(".", 1)[0] + ".255"
        heard = {name: self._echoes(name) for name in others}
        capture = self.lab.capture("broadcast")
        output = sender.run(f"ping -c {PINGS} -i 0.2 -W 1 {broadcast}", timeout_s=30).output
        frames = self._to_groups(read_pcap(capture.stop()))
        for name in web:
            count = len(set(re.findall(rf"from {re.escape(self.addresses[name])}: seq=(\d+)", output)))
            claim = f"web1 → {broadcast}: {name} on host {self.guests[name].host.name} answers"
            self.story.check(claim, count >= PINGS - 1, f"{count} of {PINGS}")
        self.story.check(
            "one frame on the wire for each, to the subnet's own group, however many listen",
            frames == Counter({self._web_group(): PINGS}),
            ", ".join(f"{mac.hex(':')} × {count}" for mac, count in frames.items()),
        )
        silent = all(self._echoes(name) == count for name, count in heard.items())
        self.story.check("db1, of another subnet, and other1, of another cell, get none", silent)

        self.guests["web2"].exec(f"socat -u UDP4-RECV:{GROUP_PORT},ip-add-membership={GROUP}:eth0 CREATE:/tmp/got &")
        hosts = self.lab.hosts.values()
        joined = lambda: any(host.ask_agent({"op": "groups"})["result"] for host in hosts)  # noqa: E731
        wait_until(joined, 10, 0.1)
        capture = self.lab.capture("group")
        where = f"UDP4-DATAGRAM:{GROUP}:{GROUP_PORT},ip-multicast-if={self.addresses['web1']}"
        sender.exec(f"echo hello | socat -u - {where}")
        got = wait_until(lambda: self.guests["web2"].run("cat /tmp/got").output.strip() == "hello", 10, 0.2)
        self.story.check(f"web1 → {GROUP}: web2, which has joined, gets it", got, "IGMP is the agents' own affair")
        frames = self._to_groups(read_pcap(capture.stop()))
        self.story.check("again one frame on the wire", frames == Counter({self._web_group(): 1}))
        self.guests["web2"].exec("killall socat")

    def _web_group(self) -> bytes:
        subnet = self.plan.locate(parse_address(self.addresses["web1"]))
        assert subnet is not None
        return group_mac(subnet)

    def _echoes(self, name: str) -> int:
        """Ping requests that a guest's kernel has taken in."""
        head, values = self.guests[name].exec("grep Icmp: /proc/net/snmp").splitlines()[:2]
        return int(dict(zip(head.split(), values.split(), strict=True))["InEchos"])

    def _to_groups(self, packets: Iterable[tuple[float, bytes]]) -> Counter[bytes]:
        """IPv4 of guests on the wire by group MAC."""
        return Counter(frame[:6] for _, frame in packets if frame[0] & 1 and frame[12:14] == b"\x08\x00")

    def policy(self) -> None:
        """A subnet closed by two lines, and opened for who has a label, while the guests run."""
        self.story.chapter("A policy: the databases are for who has a label")
        web1, address = self.guests["web1"], self.addresses["db1"]
        for line in POLICY.rstrip().splitlines():
            self.story.note("  " + line)
        self._policy(POLICY)
        result = ping(web1, address, FOREIGN_PINGS, wait_s=1)
        denied = self.dropped_on("B", "policy_denied")
        self.story.check(
            "web1 → db1: not answered, and counted on host B", result.received == 0 and denied > 0, str(result)
        )
        assign = ("assign", "web1", "--cell", "shop", "--subnet", "web")
        self.lab.host("A").divhook(*assign, "--labels", "tier=front")
        opened = wait_until(lambda: ping(web1, address, 1, wait_s=1).received == 1, LABEL_TIMEOUT_S, 0.1)
        self.story.check("web1 gets the label tier=front while it runs: answered", opened, "divhook assign … --labels")
        result = ping(self.guests["web2"], address, FOREIGN_PINGS, wait_s=1)
        self.story.check("web2, without the label, is not", result.received == 0, str(result))
        self.lab.host("A").divhook(*assign)
        self._policy(None)

    def outside(self) -> None:
        """A machine on the switch that knows nothing of divhook."""
        self.story.chapter("A plain server on the switch: no agent, ordinary ARP, and only where the policy says so")
        server = self.lab.add_station("server")
        server.ip("route add 10.0.0.0/8 dev up0")
        [address] = json.loads(server.run("ip", "-j", "-4", "addr", "show", "up0").stdout)[0]["addr_info"]
        where = str(address["local"])
        result = ping(self.guests["web1"], where, FOREIGN_PINGS, wait_s=1)
        self.story.check("without a policy web1 does not reach it", result.received == 0, str(result))
        for line in OUTSIDE_POLICY.rstrip().splitlines():
            self.story.note("  " + line)
        self._policy(OUTSIDE_POLICY)
        for name in ("web1", "web2"):
            result = ping(self.guests[name], where, FOREIGN_PINGS)
            good = result.received == result.sent and result.ttls == {63}
            self.story.check(f"{name} → server: one router hop", good, str(result))
        for name, count in (("web2", FOREIGN_PINGS), ("web1", 0), ("db1", 0)):
            words = ("ping", "-n", "-c", str(FOREIGN_PINGS), "-i", "0.2", "-W", "1", self.addresses[name])
            found = re.search(r"(\d+) received", server.run(*words, check=False).stdout)
            received = int(found[1]) if found else -1
            claim = f"server → {name}: " + ("answered" if count else "not answered")
            self.story.check(claim, received == count, f"{received} of {FOREIGN_PINGS} answered")
        for name in ("db1", "other1"):
            result = ping(self.guests[name], where, FOREIGN_PINGS, wait_s=1)
            self.story.check(f"{name} → server: not permitted, not answered", result.received == 0, str(result))
        self._policy(None)

    def nat(self) -> None:
        """A web server behind a router, and nobody there knows the way to a guest."""
        self.story.chapter("A network behind a router that knows nothing of guests: source NAT")
        router, behind = self.lab.add_station("router"), Namespaces(self.lab.directory / "ns", "behind")
        behind.create(("net",), SYSCTL_NO_IPV6)
        router.ip(
            f"link add in0 type veth peer name up0 netns {behind.file('net')}",
            "address add 198.51.100.1/24 dev in0",
            "link set in0 up",
        )
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        behind.ip(f"address add {BEHIND}/24 dev up0", "link set up0 up", "route add default via 198.51.100.1")
        pages = self.lab.directory / "pages"
        pages.mkdir(exist_ok=True)
        (pages / "index.html").write_text("hello from behind the router\n")
        for line in NAT_POLICY.rstrip().splitlines():
            self.story.note("  " + line)
        self._policy(NAT_POLICY)
        command = behind.enter(sys.executable, "-u", "-m", "http.server", "8080", "--directory", str(pages))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
            try:
                wait_until(lambda: ":8080" in behind.run("ss", "-ltn").stdout, 10)
                self.story.check("without NAT no answer finds its way back to web1", not self._wget("web1", 2))
                self._snat("{pool: public}")
                self.story.note("  cells/shop.yaml: snat: {pool: public}")
                for name in ("web1", "web2"):
                    text = self._wget(name, 10)
                    self.story.check(f"{name} reads a page there", "hello" in text, text.strip())
                self.story.check("db1, not permitted, does not", not self._wget("db1", 1))
            finally:
                server.kill()
                log = server.stderr.read() if server.stderr else ""
        clients = sorted(set(re.findall(r"^([\d.]+) - -", log, re.MULTILINE)))
        claim = "the server has seen an address of each host's pool, and no guest's"
        self.story.check(claim, clients == [f"{NETWORK}.210", f"{NETWORK}.220"], ", ".join(clients))
        self._snat(None)
        self._policy(None)

    def _wget(self, name: str, wait_s: int) -> str:
        command = f"timeout {wait_s} wget -q -O - http://{BEHIND}:8080/ 2>/dev/null"
        return self.guests[name].run(command, timeout_s=wait_s + 20).output

    def _snat(self, how: str | None) -> None:
        for host in self.lab.hosts.values():
            path = host.root / "etc-divhook" / "cells" / "shop.yaml"
            lines = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith("snat:")]
            path.write_text("".join(lines) + (f"\nsnat: {how}\n" if how else ""))
            host.divhook("reload")

    def _policy(self, text: str | None) -> None:
        for host in self.lab.hosts.values():
            path = host.root / "etc-divhook" / "policies" / "shop.yaml"
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
            host.divhook("policy", "apply")

    def dropped(self, actor: Actor, reason: str) -> int:
        """Frames of one guest dropped for a reason on its host."""
        rows = self.drop_rows(actor.host, reason)
        return sum(int(row["packets"]) for row in rows if row.get("guest") == actor.name)

    def dropped_on(self, host: str, reason: str) -> int:
        """Frames dropped for a reason on a host."""
        return sum(int(row["packets"]) for row in self.drop_rows(host, reason))

    def drop_rows(self, host: str, reason: str) -> list[dict[str, Any]]:
        """`divhook drops --reason … --json` on a host."""
        rows: list[dict[str, Any]] = json.loads(
            self.lab.host(host).divhook("drops", "--reason", reason, "--json").stdout
        )
        return rows

    def wire(self, capture: Path, missed: int) -> None:
        """What the switch saw."""
        self.story.chapter("The switch saw all of this, and not one guest")
        uplinks = {parse_mac(host.plan.mac) for host in self.lab.hosts.values()}
        guests = {parse_mac(guest.mac) for guest in self.guests.values()}
        report = examine(read_pcap(capture), uplinks, guests, self.plan)
        groups = ", ".join(f"{mac.hex(':')} × {count}" for mac, count in sorted(report.discovery_groups.items()))
        self.story.check(
            "the capture has every frame",
            missed == 0 and report.ipv4_frames > 0,
            f"{report.frames} frames, {report.ipv4_frames} of them IPv4, {missed} missed",
        )
        for claim, offenders in (
            ("no frame has a guest's or a router's MAC", report.foreign_macs),
            ("no broadcast", report.broadcasts),
            ("no multicast but to divhook's groups", report.stray_groups),
            ("ARP requests go to the subnet's own group, or to one host", report.misdirected_requests),
        ):
            self.story.check(claim, not offenders, "; ".join(offenders) or "0 offenders")
        self.story.check(
            "discovery did happen, by multicast and unicast",
            bool(report.discovery_groups),
            f"{groups or 'no group'}; unicast × {report.arp_unicast}",
        )

    def seen(self) -> int:
        """Guests' frames that the agents of both hosts have seen since their start."""
        status = [host.ask_agent({"op": "status"})["result"]["slow_path"] for host in self.lab.hosts.values()]
        return sum(int(each["from_guest"]) + int(each["from_wire"]) for each in status)

    def forwarded(self, host: str) -> int:
        """Frames of a host's guests that its kernel has forwarded."""
        return int(self.lab.host(host).ask_agent({"op": "status"})["result"]["fast_path"]["from_guest"])

    def fast_path(self) -> None:
        """Who forwards, and what goes on without an agent."""
        self.story.chapter("The agent decides a flow once; the kernel repeats it, with or without the agent")
        if self.lab.host("A").ask_agent({"op": "status"})["result"]["fast_path"]["state"] != "on":
            self.story.note("the fast path is off: every frame of the above went by the agents")
            return
        web1, router = self.guests["web1"], self.guests["web1"].dhcp_options().get("router", "?")
        for other in ("web2", "db1"):
            address = self.addresses[other]
            ping(web1, address, 1)  # the first frame after a minute's silence is the agent's
            seen, forwarded = self.seen(), self.forwarded("A")
            tcp = iperf(web1, f"-c {address} -t {STREAM_SECONDS}")["sum_received"]
            seen, forwarded = self.seen() - seen, self.forwarded("A") - forwarded
            self.story.check(
                f"web1 → {other}: no frame of a TCP stream reaches an agent",
                seen == 0 and forwarded > 0,
                f"{tcp['bits_per_second'] / 1e6:.0f} Mbit/s; host A's kernel forwarded {forwarded} frames, "
                f"the agents of A and B saw {seen}",
            )
        host = self.lab.host("A")
        host.agent_stop()
        try:
            for other, ttl in (("web2", 64), ("db1", 63)):
                result = ping(web1, self.addresses[other], PINGS)
                good = result.received == result.sent and result.ttls == {ttl}
                self.story.check(f"host A's agent is stopped, web1 → {other} goes on", good, str(result))
            result = ping(web1, router, 1, wait_s=1)
            self.story.check("what only an agent can answer is dropped: the router", result.received == 0, str(result))
        finally:
            host.agent_start()
        result = ping(web1, router, 1)
        self.story.check("the agent is back, and so is the router", result.received == 1, str(result))


def tell(lab: Lab, story: Story) -> None:
    """All chapters, over a lab that is up."""
    demo = Demo(lab, story)
    capture = lab.capture("demo")
    demo.start_guests()
    demo.pings()
    demo.streams()
    demo.strangers()
    demo.wire(capture.stop(), capture.dropped)
    demo.everybody()
    demo.policy()
    demo.outside()
    demo.nat()
    demo.fast_path()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 where every check passed."""
    parser = argparse.ArgumentParser(prog="make demo", description="two hosts, five guests, every promise checked")
    directory = default_directory().with_name("divhook-demo")
    parser.add_argument("--dir", type=Path, default=directory, help="where the lab lives (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the lab up at the end, to play with")
    options = parser.parse_args(arguments)
    interrupt_on_sigterm()
    story = Story()
    print("divhook: two libvirt hosts on this machine, one switch between them, and what their guests may do.")
    story.chapter("Two hosts")
    lab = Lab(options.dir, hosts=2, progress=story.note, settings=SETTINGS)
    code = 1
    try:
        lab.down()
        lab.up()
        for host in lab.hosts.values():
            story.check(
                f"host {host.name} has its own libvirtd and agent",
                host.agent_pid is not None,
                f"{host.plan.address}, uplink {host.plan.mac}",
            )
        story.note(f"guests run under {'KVM' if lab.image.accelerator == 'kvm' else 'TCG: KVM boots no guest here'}")
        tell(lab, story)
    except LabError as error:
        story.check("the demo ran to its end", False, str(error))
    except KeyboardInterrupt:
        story.check("the demo ran to its end", False, "interrupted")
        options.keep = False
    finally:
        if options.keep:
            print(f"\nThe lab stays: divhook lab --dir {options.dir} status | shell A | down")
        else:
            story.chapter("Everything is removed again")
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # takes a second or two
            lab.down()
        code = story.summary()
    return code


if __name__ == "__main__":
    sys.exit(main())
