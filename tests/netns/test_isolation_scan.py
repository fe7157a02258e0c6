"""What a scan finds with no policy file at all: nothing of another cell or of the hosts, by any protocol."""

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from bare_fixtures import NIC, BareBench, PatientWitness, Place, WireWitness, bare_bench
from policy_bench import PORTS, Talker

from divhook.core.addressing import parse_address
from divhook.lab.bare import BareSpec

ALIEN = BareSpec("alien", "A", "lab", "web", "10.2.1.70")
MATE = BareSpec("mate", "B", "lab", "web", "10.2.1.71")
WEB = BareSpec("web", "A", "shop", "web", "10.1.1.11")
DB = BareSpec("db", "B", "shop", "db", "10.1.2.21")
OTHERS = (str(WEB.address), str(DB.address), "10.1.1.1", "10.1.2.1")
"""Guests of another cell, near and far, and their routers."""
TCP_PORTS = f"22,{','.join(map(str, PORTS))},16509"
SCANS = {
    "TCP SYN": ("-sS", "-p", TCP_PORTS),
    "TCP ACK": ("-sA", "-p", TCP_PORTS),
    "TCP without flags": ("-sN", "-p", TCP_PORTS),
    "TCP SYN in fragments": ("-f", "-sS", "-p", "80,443"),
    "TCP from the port of DNS": ("-g", "53", "-sS", "-p", "80,443"),
    "UDP": ("-sU", "-p", "53,67,80,123,443,5432"),
    "SCTP INIT": ("-sY", "-p", "80,443"),
    "SCTP COOKIE-ECHO": ("-sZ", "-p", "80,443"),
    "IP protocols": ("-sO", "-p", "1,2,4,6,17,41,47,50,51,89,132"),
}
PING = ("-sn", "-PE", "-PP", "-PM", "-PS80", "-PA80", "-PU53", "-PY80", "-PO1,2,4")
FAST = ("-n", "--max-retries", "0", "--min-rate", "300", "--max-rtt-timeout", "200ms", "--host-timeout", "30s")
HOST_SERVICE = """
import socket
s = socket.create_server(("0.0.0.0", 80), backlog=64)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(("0.0.0.0", 53))
print("ready", flush=True)
while True:
    data, peer = u.recvfrom(2048)
    u.sendto(data, peer)
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[BareBench]:
    with bare_bench((ALIEN, MATE, WEB, DB), hosts=2, quiet=()) as made:
        talkers = [Talker(made.guest(name)) for name in ("mate", "web", "db")]
        hosts = []
        for host in made.lab.hosts.values():
            command = host.namespaces.enter(sys.executable, "-c", HOST_SERVICE)
            hosts.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            assert hosts[-1].stdout is not None
            assert hosts[-1].stdout.readline() == "ready\n"
        try:
            yield made
        finally:
            for talker in talkers:
                talker.close()
            for process in hosts:
                process.kill()
                process.communicate()


def scan(bench: BareBench, *arguments: str) -> str:
    done = bench.guest("alien").exec("nmap", *FAST, *arguments, "--reason", "-oG", "-", timeout_s=90)
    return str(done.stdout)


def answers(report: str) -> list[str]:
    """Ports that somebody answered for: open, closed or unfiltered, not open|filtered."""
    found = re.findall(r"Host: (\S+).*?Ports: (.*?)(?:\t|$)", report, flags=re.MULTILINE)
    return [
        f"{host} {port}"
        for host, ports in found
        for port in ports.split(", ")
        if port.split("/")[1] in ("open", "closed", "unfiltered")
    ]


def test_the_scanner_finds_what_is_open_in_its_own_cell(bench: BareBench) -> None:
    found = answers(scan(bench, "-Pn", "-sS", "-p", TCP_PORTS, str(MATE.address)))
    assert {f"{MATE.address} {port}/open/tcp" for port in PORTS} <= {f.partition("//")[0] for f in found}, found
    assert "Status: Up" in scan(bench, "-sn", "-PE", str(MATE.address))


def test_nothing_of_another_cell_or_of_a_host_answers_and_nothing_arrives_there(bench: BareBench) -> None:
    hosts = [str(host.plan.address).partition("/")[0] for host in bench.lab.hosts.values()]
    targets = (*OTHERS, *hosts)
    mine = parse_address(str(ALIEN.address))
    witnesses = {name: PatientWitness(Place(bench.guest(name).namespace), NIC) for name in ("web", "db")}
    witnesses["the wire"] = WireWitness(Place(bench.lab.switch))
    before = {name: bench.stack_counters(name) for name in bench.lab.hosts}
    try:
        reports = {name: scan(bench, "-Pn", *how, *targets) for name, how in SCANS.items()}
        pinged = scan(bench, *PING, *targets)
        arrived = {
            name: [f.hex() for f in witness.frames() if f[12:14] == b"\x08\x00" and f[26:30] == mine]
            for name, witness in witnesses.items()
        }
    finally:
        for witness in witnesses.values():
            witness.close()
    assert {name: found for name, report in reports.items() if (found := answers(report))} == {}
    assert "Status: Up" not in pinged, pinged
    assert arrived == {"web": [], "db": [], "the wire": []}
    delivered = ("Udp:InDatagrams", "Udp:NoPorts", "Tcp:InSegs", "Icmp:InMsgs")
    after = {name: bench.stack_counters(name) for name in bench.lab.hosts}
    assert {n: {k: after[n][k] - before[n][k] for k in delivered} for n in before} == {
        n: dict.fromkeys(delivered, 0) for n in before
    }
    assert bench.drops()["A", "alien", "cell_denied"] > 100
