"""The DHCP server against the clients that guests run: udhcpc, dhclient, dhcpcd, systemd-networkd.

Clients mostly wait: so all scenarios that are selected run at once, each on a port of its own, and a test
takes its outcome.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from dhcp_bench import SERVICE, SUBNET, Bench, Exchange, missing, run
from dhcp_programs import Client, Dhclient, Dhcpcd, Networkd, Udhcpc

from divhook.core.addressing import address_text, rmac
from divhook.core.dhcp import LeaseChange
from divhook.core.endpoint import PortState

pytestmark = pytest.mark.no_agent
ALL = (Udhcpc, Dhclient, Dhcpcd, Networkd)
KEEP_A_LEASE = (Dhclient, Dhcpcd, Networkd)  # udhcpc has no INIT-REBOOT state
SHORT = replace(SERVICE, lease_s=40, t1_s=3, t2_s=7)
ELSEWHERE = bytes([10, 7, 9, 33])
SCENARIO_S = 150


def changed(change: LeaseChange, detail: str = "") -> Callable[[Exchange], bool]:
    def claim(exchange: Exchange) -> bool:
        event = exchange.result.event
        return event is not None and event.kind is change and detail in ("", event.detail)

    return claim


BOUND = changed(LeaseChange.BOUND)


def wait_address(client: Client, address: bytes, timeout_s: float = 60) -> None:
    namespace = client.bench.namespace(client.port)
    deadline = time.monotonic() + timeout_s
    while f" {address_text(address)}/24 " not in (
        shown := run("ip", "-n", namespace, "-4", "-o", "address", "show", "dev", "c0")
    ):
        assert time.monotonic() < deadline, f"not {address_text(address)} but: {shown}"
        time.sleep(0.2)


def start_bound(bench: Bench, client: Client) -> bytes:
    """Start a client and wait until it uses its address, which is returned."""
    client.start()
    bench.wait(client.port, BOUND)
    address = bench.endpoints[client.port].address
    wait_address(client, address)
    return address


def move(bench: Bench, port: int) -> None:
    bench.endpoints[port] = replace(bench.endpoints[port], address=ELSEWHERE)


def is_told_each_option_as_configured(bench: Bench, client: Client) -> None:
    address = start_bound(bench, client)
    told = client.wait_options()
    wanted = {k: v.format(address=address_text(address), port=client.port) for k, v in client.expected.items()}
    assert {key: told.get(key) for key in wanted} == wanted
    exchanges = bench.exchanges[client.port]
    kinds = [(exchange.kind, exchange.answer) for exchange in exchanges]
    assert ("DISCOVER", "OFFER") in kinds
    assert kinds[-1] == ("REQUEST", "ACK")
    assert all(exchange.result.omitted == () and exchange.result.drop is None for exchange in exchanges)


def renews_by_unicast(bench: Bench, client: Client) -> None:
    bench.services[client.port] = SHORT
    start_bound(bench, client)
    renewal = bench.wait(client.port, changed(LeaseChange.RENEWED, "renewing"))
    assert (renewal.unicast, renewal.answer) == (True, "ACK")


def rebinds_by_broadcast_when_nobody_renews(bench: Bench, client: Client) -> None:
    bench.services[client.port] = SHORT
    bench.deaf_to_unicast.add(client.port)
    start_bound(bench, client)
    rebinding = bench.wait(client.port, changed(LeaseChange.RENEWED, "rebinding"))
    assert (rebinding.unicast, rebinding.answer) == (False, "ACK")


def releases_its_lease(bench: Bench, client: Client) -> None:
    start_bound(bench, client)
    # as any guest that has talked: networkd and dhcpcd don't wait for ARP before they take the address away
    router = ("10.7.9.1", "lladdr", rmac(SUBNET).hex(":"), "dev", "c0", "nud", "permanent")
    run("ip", "-n", bench.namespace(client.port), "neigh", "replace", *router)
    client.release()
    release = bench.wait(client.port, changed(LeaseChange.RELEASED))
    assert release.result.frames == ()
    assert client.port not in bench.leases()


def declines_an_address_in_use_and_takes_another(bench: Bench, client: Client) -> None:
    address = bench.endpoints[client.port].address
    bench.conflicts.add(client.port)
    bench.elsewhere[client.port] = ELSEWHERE
    if isinstance(client, Networkd):
        # systemd 252 sends DECLINE from an address that is not configured yet, over a route that is not there yet: it
        # never gets out, unless both exist otherwise
        run("ip", "-n", bench.namespace(client.port), "address", "add", f"{address_text(address)}/32", "dev", "lo")
        client.more = "[Route]\nDestination=10.7.9.1/32\nScope=link\n"
    client.start()
    decline = bench.wait(client.port, changed(LeaseChange.DECLINED))
    assert decline.result.event is not None
    assert decline.result.event.address == address
    wait_address(client, ELSEWHERE)


def reboots_into_nak_where_its_address_has_changed(bench: Bench, client: Client) -> None:
    client.keep_lease()
    start_bound(bench, client)
    client.stop()
    before = len(bench.exchanges[client.port])
    move(bench, client.port)
    client.start()
    refused = bench.wait(client.port, changed(LeaseChange.REFUSED), after=before)
    assert (refused.kind, refused.answer, refused.unicast) == ("REQUEST", "NAK", False)
    assert bench.exchanges[client.port][before] is refused, "the first message was not INIT-REBOOT"
    bench.wait(client.port, BOUND, after=before)
    wait_address(client, ELSEWHERE)


def reboots_into_its_address(bench: Bench, client: Client) -> None:
    client.keep_lease()
    start_bound(bench, client)
    client.stop()
    before = len(bench.exchanges[client.port])
    client.start()
    assert bench.wait(client.port, changed(LeaseChange.BOUND, "init-reboot"), after=before).answer == "ACK"


def renews_into_nak_where_its_address_has_changed(bench: Bench, client: Client) -> None:
    bench.services[client.port] = SHORT
    start_bound(bench, client)
    move(bench, client.port)
    assert bench.wait(client.port, changed(LeaseChange.REFUSED)).answer == "NAK"
    wait_address(client, ELSEWHERE)


def waits_for_its_address_to_be_confirmed(bench: Bench, client: Client) -> None:
    bench.endpoints[client.port] = bench.endpoints[client.port].with_state(PortState.TENTATIVE)
    client.start()
    bench.wait(client.port, lambda exchange: exchange.result.waiting)
    time.sleep(0.6)  # three probes' time
    assert all(exchange.answer == "" for exchange in bench.exchanges[client.port])
    bench.confirm(client.port)
    bench.wait(client.port, BOUND)


class Case(NamedTuple):
    scenario: Callable[[Bench, Client], None]
    kind: type[Client]

    def __str__(self) -> str:
        return f"{self.kind.__name__.lower()}_{self.scenario.__name__}"


CASES = [
    *(Case(is_told_each_option_as_configured, kind) for kind in ALL),
    *(Case(renews_by_unicast, kind) for kind in ALL),
    *(Case(rebinds_by_broadcast_when_nobody_renews, kind) for kind in ALL),
    *(Case(releases_its_lease, kind) for kind in ALL),
    *(Case(declines_an_address_in_use_and_takes_another, kind) for kind in ALL),
    *(Case(reboots_into_its_address, kind) for kind in KEEP_A_LEASE),
    *(Case(reboots_into_nak_where_its_address_has_changed, kind) for kind in KEEP_A_LEASE),
    *(Case(renews_into_nak_where_its_address_has_changed, kind) for kind in ALL),
    *(Case(waits_for_its_address_to_be_confirmed, kind) for kind in ALL),
]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Case, Future]]:
    """Every selected scenario, under way."""
    chosen = [item.callspec.params["case"] for item in request.session.items if item.fspath == request.path
              and hasattr(item, "callspec")]  # fmt: skip
    directory = tmp_path_factory.mktemp("clients")
    with Bench(f"dhc{os.getpid()}x") as bench:
        for port, _ in enumerate(chosen, 1):
            bench.add_port(port)
        pool = ThreadPoolExecutor(max_workers=len(chosen))
        under_way = {
            case: pool.submit(case.scenario, bench, case.kind(bench, port, directory))
            for port, case in enumerate(chosen, 1)
        }
        yield under_way
        pool.shutdown()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_client(case: Case, outcomes: dict[Case, Future]) -> None:
    program = missing(*case.kind.programs)
    if program:
        pytest.skip(f"{program} is not installed")
    outcomes[case].result(SCENARIO_S)


def test_a_hundred_clients_at_once_are_all_served(tmp_path: Path) -> None:
    program = missing(*Udhcpc.programs)
    if program:
        pytest.skip(f"{program} is not installed")
    ports = range(1, 101)
    with Bench(f"dhc{os.getpid()}y") as bench:
        for port in ports:
            bench.add_port(port)
        clients = [Udhcpc(bench, port, tmp_path) for port in ports]
        begun = time.monotonic()
        for client in clients:
            client.start()
        for port in ports:
            bench.wait(port, BOUND, timeout_s=120)
        print(f"100 clients bound {time.monotonic() - begun:.1f} s after the first was started")
        assert bench.leases() == {port: bench.endpoints[port].address for port in ports}
        for client in clients:
            assert client.wait_options()["ip"] == address_text(bench.endpoints[client.port].address)
