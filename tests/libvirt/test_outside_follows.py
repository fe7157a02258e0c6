"""A server without an agent follows a guest that migrates: its new host says so by gratuitous ARP."""

import json
import re
import subprocess
from collections.abc import Iterator

import pytest
from lab_cast import Cast, policy_in_force
from moving import begin_move

from divhook.core.addressing import parse_address, parse_mac
from divhook.core.wire.arp import request_frame
from divhook.lab.guest import LabGuest
from divhook.lab.lab import NETWORK, Lab
from divhook.lab.namespaces import Namespaces
from divhook.lab.processes import wait_until
from divhook.lab.wire import read_pcap

OPEN = f"""\
cell: shop
egress:
  - {{from: {{guest: web1}}, to: {{cidr: {NETWORK}.0/24}}, allow: icmp}}
ingress:
  - {{from: {{cidr: {NETWORK}.0/24}}, to: {{guest: web1}}, allow: icmp}}
"""
INTERVAL_S = 0.02
MAX_LOST_S = 1.0
"""The server's own frames go to the host before until it has heard the one ARP; a loaded machine takes its time."""


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Namespaces]:
    station = lab.add_station("SRV")
    station.ip("route replace 10.0.0.0/8 dev up0")
    with policy_in_force(lab, OPEN):
        yield station


def believed(server: Namespaces, address: str) -> str:
    [entry] = json.loads(server.run("ip", "-j", "neighbour", "show", address).stdout) or [{}]
    return str(entry.get("lladdr"))


def test_a_server_follows_a_guest_that_migrates_and_comes_back(lab: Lab, cast: Cast, server: Namespaces) -> None:
    address = cast.address("web1")
    assert "1 received" in server.run("ping", "-nc1", "-W3", address).stdout
    for source, target in (("A", "B"), ("B", "A")):
        pmac = lab.host(target).plan.mac
        capture = lab.capture(f"follow-{target}")
        words = ("ping", "-n", "-i", str(INTERVAL_S), "-W", "1", address)
        with subprocess.Popen(server.enter(*words), stdout=subprocess.PIPE, text=True) as pinging:
            try:
                begin_move(lab.host(source), "web1", target).succeeded()
                assert wait_until(lambda pmac=pmac: believed(server, address) == pmac, 5, 0.02)
                assert "5 received" in server.run("ping", "-nc5", "-i0.05", "-W1", address).stdout
            finally:
                pinging.send_signal(2)
            output = pinging.communicate(timeout=20)[0]
        told = [frame for _, frame in read_pcap(capture.stop()) if frame[:6] == b"\xff" * 6]
        gratuitous = request_frame(parse_mac(pmac), parse_address(address), parse_address(address))
        assert [f for f in told if f[: len(gratuitous)] == gratuitous]
        assert not [f for f in told if f[28:32] == parse_address(address) and f[6:12] != parse_mac(pmac)]
        found = re.search(r"(\d+) packets transmitted, (\d+) received", output)
        assert found is not None, output
        lost = int(found[1]) - int(found[2])
        print(f"\n    {source} to {target}: {lost} of {found[1]} pings lost, {INTERVAL_S * 1000:.0f} ms apart")
        assert lost * INTERVAL_S < MAX_LOST_S, output
    assert LabGuest(lab.host("A"), "web1").wait_address() == address
