"""The judge of captures: it must see each kind of offence."""

import struct
from pathlib import Path

import pytest

from divhook.core.addressing import ALL_HOSTS_GROUP, AddressPlan, SubnetId, group_mac, parse_address, parse_mac, rmac
from divhook.lab.wire import CaptureError, WireReport, examine, read_pcap

A = parse_mac("06:0d:5e:00:00:01")
B = parse_mac("06:0d:5e:00:00:02")
GUEST = parse_mac("52:54:00:ab:cd:ef")
WEB = SubnetId(1, 7)


def ipv4(destination: bytes, source: bytes) -> bytes:
    return destination + source + b"\x08\x00" + bytes(46)


def arp(destination: bytes, operation: int, target: str) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return destination + A + b"\x08\x06" + head + A + parse_address("10.1.7.5") + bytes(6) + parse_address(target)


def judge(*frames: bytes) -> WireReport:
    return examine(((float(i), frame) for i, frame in enumerate(frames)), {A, B}, {GUEST}, AddressPlan())


def test_frames_between_uplinks_are_clean() -> None:
    report = judge(
        ipv4(B, A), ipv4(A, B), arp(group_mac(WEB), 1, "10.1.7.9"), arp(B, 1, "10.1.7.9"), arp(B, 2, "10.1.7.9")
    )
    assert report.clean
    assert (report.frames, report.ipv4_frames, report.arp_unicast) == (5, 2, 2)
    assert report.discovery_groups == {group_mac(WEB): 1}


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (ipv4(GUEST, A), "guest MAC 52:54:00:ab:cd:ef"),
        (ipv4(B, GUEST), "guest MAC 52:54:00:ab:cd:ef"),
        (ipv4(B, rmac(WEB)), "router MAC 02:d1:00:01:00:07"),
        (ipv4(parse_mac("52:54:00:00:00:99"), A), "unknown MAC 52:54:00:00:00:99"),
    ],
    ids=["to a guest", "from a guest", "from a router", "to nobody known"],
)
def test_a_mac_that_is_no_uplinks_is_reported(frame: bytes, what: str) -> None:
    report = judge(ipv4(B, A), frame)
    assert report.foreign_macs == [f"frame 2: {what}"]
    assert not report.clean


def test_a_broadcast_is_reported() -> None:
    report = judge(ipv4(b"\xff" * 6, A))
    assert report.broadcasts == ["frame 1: from 06:0d:5e:00:00:01, ethertype 0x0800"]


def test_a_group_outside_the_plan_is_reported() -> None:
    assert len(judge(ipv4(parse_mac("01:00:5e:00:00:fb"), A)).stray_groups) == 1


def test_a_request_to_another_subnets_group_is_reported() -> None:
    report = judge(arp(group_mac(SubnetId(1, 8)), 1, "10.1.7.9"), arp(ALL_HOSTS_GROUP, 1, "10.1.7.9"))
    assert report.misdirected_requests == ["frame 1: request for subnet 1.7 to 03:d1:00:01:00:08"]


def test_examples_are_bounded() -> None:
    assert len(judge(*[ipv4(b"\xff" * 6, A)] * 50).broadcasts) == 5


@pytest.mark.parametrize(("order", "magic", "unit"), [("<", 0xA1B2C3D4, 1e-6), (">", 0xA1B23C4D, 1e-9)])
def test_pcap_of_either_byte_order_and_resolution_is_read(tmp_path: Path, order: str, magic: int, unit: float) -> None:
    path = tmp_path / "x.pcap"
    record = struct.pack(f"{order}4I", 7, 250, 3, 60) + b"abc"
    path.write_bytes(struct.pack(f"{order}IHHIIII", magic, 2, 4, 0, 0, 65535, 1) + record + record[:-1])
    assert list(read_pcap(path)) == [(7 + 250 * unit, b"abc")]


@pytest.mark.parametrize(
    "content", [b"", b"no capture at all, but long enough", struct.pack("<I16xI", 0xA1B2C3D4, 113)]
)
def test_what_is_no_ethernet_capture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(content)
    with pytest.raises(CaptureError):
        list(read_pcap(path))
