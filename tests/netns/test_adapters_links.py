"""divbr0, its ports, the uplink and the virtual space, as Links makes and finds them."""

import asyncio
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from host_bench import SUPERNET, Bench

from divhook.adapters.links import BRIDGE_MAC, PORT_GROUP, LinkError, LinkEvent, Links, read_sysctl

pytestmark = pytest.mark.no_agent


def with_links(bench: Bench, story: Callable[[Links], Coroutine[Any, Any, None]], *resolv_confs: Path) -> None:
    async def run() -> None:
        links = Links(resolv_confs=resolv_confs)
        await links.open()
        try:
            await story(links)
        finally:
            await links.close()

    bench.on_host(run())


def test_the_bridge_is_made_as_the_walls_need_it_and_kept_so(bench: Bench) -> None:
    async def story(links: Links) -> None:
        made = await links.ensure_bridge(mtu=1450)
        bench.host.run(
            "ip addr add 10.9.9.9/24 dev divbr0; ip link set divbr0 arp on multicast on address 02:00:00:00:00:01;"
            "ip link set divbr0 type bridge stp_state 1 mcast_snooping 1; tc filter del dev divbr0 ingress"
        )
        bench.host.sysctl("ipv4/conf/divbr0/rp_filter", 0)
        bench.host.sysctl("ipv6/conf/divbr0/disable_ipv6", 0)
        assert await links.ensure_bridge() == made
        assert made.mac == BRIDGE_MAC
        detail = bench.host.run("ip -d addr show divbr0")
        assert "<NO-CARRIER,BROADCAST,NOARP,UP>" in detail
        assert " mtu 1450 " in detail
        assert BRIDGE_MAC.hex(":") in detail
        assert "stp_state 0" in detail
        assert "mcast_snooping 0" in detail
        assert "group_fwd_mask 0xfff8" in detail
        assert "inet" not in detail
        assert read_sysctl("ipv4/conf/divbr0/rp_filter") == "1"
        assert read_sysctl("ipv6/conf/divbr0/disable_ipv6") == "1"
        assert "direct-action" in bench.host.run("tc filter show dev divbr0 ingress")
        assert bench.host.run("tc filter show dev divbr0 ingress").count("handle") == 1

    with_links(bench, story)


def test_a_port_is_isolated_and_neither_learns_nor_floods(bench: Bench) -> None:
    async def story(links: Links) -> None:
        await links.ensure_bridge()
        bench.host.run("ip link set tap1 master divbr0; ip link set tap2 master divbr0")
        first, second = await links.ports_of_bridge()
        assert (first.name, second.name) == ("tap1", "tap2")
        assert await links.ensure_port("tap1") == first
        assert await links.ensure_port(second.ifindex) == second
        await links.ensure_port("tap1")
        detail = bench.host.run("ip -d link show tap1")
        for setting in (
            "isolated on",
            "learning off",
            "flood off",
            "mcast_flood off",
            "bcast_flood off",
            "hairpin off",
        ):
            assert f" {setting} " in detail
        assert f"group {PORT_GROUP} " in detail
        assert " group_fwd_mask 0xfffd " in detail
        assert read_sysctl("ipv6/conf/tap1/disable_ipv6") == "1"
        assert bench.host.run("tc filter show dev tap1 ingress").count("handle") == 1

    with_links(bench, story)


def test_what_is_no_port_and_what_is_not_there_are_refused_by_name(bench: Bench) -> None:
    async def story(links: Links) -> None:
        await links.ensure_bridge()
        with pytest.raises(LinkError, match="up0 is not a port of divbr0"):
            await links.ensure_port("up0")
        with pytest.raises(LinkError, match="there is no link vnet9"):
            await links.ensure_port("vnet9")
        with pytest.raises(LinkError, match="there is no link 4711"):
            await links.ensure_port(4711)
        with pytest.raises(LinkError, match="tap1 exists and is not a bridge"):
            await links.ensure_bridge("tap1")

    with_links(bench, story)


def test_teardown_leaves_links_routes_and_settings_as_they_were(bench: Bench) -> None:
    def dump() -> str:
        return bench.host.run("ip -d link; ip addr; ip route show table all; ip rule; tc qdisc; nft list ruleset")

    bench.host.run("ip link del tap1; ip link del tap2")
    before = dump()

    async def story(links: Links) -> None:
        await links.ensure_bridge()
        bench.host.run("ip link add tap3 type veth peer name tap4; ip link set tap3 master divbr0")
        await links.ensure_port("tap3")
        await links.ensure_blackhole(SUPERNET)
        await links.ensure_blackhole(SUPERNET)
        assert "blackhole 10.0.0.0/8" in bench.host.run("ip route")
        await links.remove_blackhole(SUPERNET)
        await links.remove_blackhole(SUPERNET)
        await links.teardown()
        await links.teardown()
        assert "group default" in bench.host.run("ip link show tap3")
        assert await links.ports_of_bridge() == []
        bench.host.run("ip link del tap3")

    with_links(bench, story)
    assert dump() == before


def test_overlaps_of_the_virtual_space_are_named_and_own_route_and_default_route_are_not(
    bench: Bench, tmp_path: Path
) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("search example.org\nnameserver 10.1.2.3\nnameserver 192.0.2.53\nnameserver fe80::1\n")
    bench.host.run("ip addr add 10.8.0.1/16 dev up0; ip route add 10.32.0.0/11 via 192.0.2.7")
    bench.host.run("ip route add 0.0.0.0/1 dev up0")
    bench.host.run("ip route add 10.99.0.0/16 dev up0 table 77; ip route add 172.16.0.0/12 dev up0")

    async def story(links: Links) -> None:
        await links.ensure_blackhole(SUPERNET)
        assert await links.overlaps(SUPERNET) == [
            "address 10.8.0.1/16 on up0",
            "route 10.99.0.0/16 on up0",
            "route 10.8.0.0/16 on up0",
            "route 10.32.0.0/11 on up0",
            f"name server 10.1.2.3 in {resolv_conf}",
        ]
        assert await links.overlaps(IPv4Network("100.64.0.0/10")) == []

    with_links(bench, story, resolv_conf, tmp_path / "missing")


def test_the_uplink_is_found_by_the_default_route_else_alone(bench: Bench) -> None:
    async def story(links: Links) -> None:
        await links.ensure_bridge()
        assert await links.find_uplink() == "up0"
        info = await links.uplink_info("up0")
        assert (info.name, info.mtu, info.carrier, info.bond_mode) == ("up0", 1500, True, None)
        assert info.mac.hex(":") in bench.host.run("ip link show up0")
        assert await links.disable_lro("up0") is False
        bench.host.run("ip route del default")
        with pytest.raises(LinkError, match=r"more than one NIC could be the uplink: tap1, tap2, up0\. Name it as"):
            await links.find_uplink()
        bench.host.run("ip link set tap1 master divbr0; ip link set tap2 master divbr0")
        assert await links.find_uplink() == "up0"
        bench.host.run("ip link set up0 down")
        with pytest.raises(LinkError, match="no NIC that could be the uplink is up"):
            await links.find_uplink()

    with_links(bench, story)


def test_a_bridge_and_a_bridge_port_are_refused_as_uplink(bench: Bench) -> None:
    async def story(links: Links) -> None:
        bench.host.run("ip link add br0 type bridge; ip link set up0 master br0")
        with pytest.raises(LinkError, match="uplink up0 is a port of the bridge br0: take it out of br0"):
            await links.uplink_info("up0")
        with pytest.raises(LinkError, match="uplink br0 is a bridge: name the NIC itself"):
            await links.uplink_info("br0")
        with pytest.raises(LinkError, match="uplink lo is not an Ethernet NIC"):
            await links.uplink_info("lo")

    with_links(bench, story)


def test_links_that_come_change_and_go_are_told(bench: Bench) -> None:
    async def story(links: Links) -> None:
        bridge = await links.ensure_bridge()
        told: asyncio.Queue[LinkEvent] = asyncio.Queue()

        async def listen() -> None:
            async for event in links.watch():
                told.put_nowait(event)

        async def until(**wanted: object) -> LinkEvent:
            while True:
                event = await asyncio.wait_for(told.get(), 5)
                if all(getattr(event, name) == value for name, value in wanted.items()):
                    return event

        listener = asyncio.create_task(listen())
        await asyncio.sleep(0.2)
        bench.host.run("ip link add vnet5 type veth peer name peer5")
        new = await until(kind="new", name="vnet5")
        assert not new.master_is_bridge
        bench.host.run("ip link set vnet5 master divbr0")
        became = await until(name="vnet5", master_is_bridge=True)
        assert (became.kind, became.became_port) == ("changed", True)
        bench.host.run("ip link set vnet5 up; ip link set peer5 up")
        changed = await until(
            kind="changed", name="vnet5", master_is_bridge=True, up=True, carrier=True, became_port=False
        )
        assert changed.ifindex == new.ifindex
        await links.ensure_port("vnet5")
        await until(kind="changed", name="vnet5")
        await asyncio.sleep(0.2)
        while not told.empty():
            told.get_nowait()
        await links.ensure_port("vnet5")
        await asyncio.sleep(0.2)
        assert told.empty()
        bench.host.run("ip link set vnet5 nomaster")
        await until(kind="changed", ifindex=new.ifindex, master_is_bridge=False)
        bench.host.run("ip link del vnet5; ip link del divbr0")
        await until(kind="gone", ifindex=new.ifindex)
        await until(kind="gone", ifindex=bridge.ifindex)
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)

    with_links(bench, story)


def test_a_link_that_libvirt_already_shaped_keeps_its_ingress_qdisc(bench: Bench) -> None:
    """<bandwidth> puts an ingress qdisc on the tap, and clsact is then refused: the filter goes into that one."""
    bench.host.run("tc qdisc add dev tap1 ingress; ip link set tap2 master divbr0 2>/dev/null || true")

    async def story(links: Links) -> None:
        await links.ensure_bridge()
        bench.host.run("ip link set tap1 master divbr0")
        await links.ensure_port("tap1")
        assert "qdisc ingress" in bench.host.run("tc qdisc show dev tap1")
        assert "direct-action" in bench.host.run("tc filter show dev tap1 ingress")

    with_links(bench, story)
