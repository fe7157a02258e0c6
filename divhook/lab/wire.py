"""What a capture of the switch says about divhook's promise: plain frames between hosts, and nothing of a guest.

every unicast MAC is an uplink's; no guest's MAC, no router's (02:d1:…)
every group MAC is a subnet's or the all-hosts group (03:d1:…); no broadcast that a guest could have caused
an ARP request for a virtual address goes to that subnet's group, or to one host
"""

import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from divhook.core.addressing import (
    ALL_HOSTS_GROUP,
    BROADCAST_MAC,
    GROUP_PREFIX,
    RMAC_PREFIX,
    AddressPlan,
    Mac,
    group_mac,
    mac_text,
)

PCAP_MAGIC_US = 0xA1B2C3D4
PCAP_MAGIC_NS = 0xA1B23C4D
LINKTYPE_ETHERNET = 1
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV4 = 0x0800
ARP_REQUEST = 1
MAX_EXAMPLES = 5


class CaptureError(ValueError):
    """The file is no Ethernet capture that can be read."""


def read_pcap(path: Path) -> Iterator[tuple[float, bytes]]:
    """(time in s, frame as far as it was kept) each. A last record cut short is left out. Raises CaptureError."""
    with path.open("rb") as file:
        header = file.read(24)
        order = next((each for each in "<>" if header[:4] in _magics(each)), None)
        if order is None or len(header) < 24:
            raise CaptureError(f"{path} is not a pcap file")
        magic, link = struct.unpack(f"{order}I16xI", header)
        if link != LINKTYPE_ETHERNET:
            raise CaptureError(f"{path} has link type {link}, not Ethernet")
        fraction = 1e-9 if magic == PCAP_MAGIC_NS else 1e-6
        while len(record := file.read(16)) == 16:
            seconds, part, kept, _ = struct.unpack(f"{order}4I", record)
            frame = file.read(kept)
            if len(frame) == kept:
                yield seconds + part * fraction, frame


def _magics(order: str) -> tuple[bytes, bytes]:
    return struct.pack(f"{order}I", PCAP_MAGIC_US), struct.pack(f"{order}I", PCAP_MAGIC_NS)


@dataclass(slots=True)
class WireReport:
    """Counts over one capture. Each list holds the first few offenders in words; empty is good."""

    frames: int = 0
    ipv4_frames: int = 0
    discovery_groups: Counter[Mac] = field(default_factory=Counter)
    arp_unicast: int = 0
    foreign_macs: list[str] = field(default_factory=list)
    broadcasts: list[str] = field(default_factory=list)
    stray_groups: list[str] = field(default_factory=list)
    misdirected_requests: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.foreign_macs or self.broadcasts or self.stray_groups or self.misdirected_requests)


def examine(
    frames: Iterator[tuple[float, bytes]], uplinks: Collection[Mac], guests: Collection[Mac], plan: AddressPlan
) -> WireReport:
    """Judge every frame of a capture. `uplinks` are all MACs that may be on the wire."""
    report = WireReport()

    def offend(column: list[str], text: str) -> None:
        if len(column) < MAX_EXAMPLES:
            column.append(f"frame {report.frames}: {text}")

    for _, frame in frames:
        report.frames += 1
        destination, source = frame[0:6], frame[6:12]
        ethertype = int.from_bytes(frame[12:14], "big")
        for mac in (destination, source):
            if mac[0] & 1:
                continue
            if mac in guests:
                offend(report.foreign_macs, f"guest MAC {mac_text(mac)}")
            elif mac.startswith(RMAC_PREFIX):
                offend(report.foreign_macs, f"router MAC {mac_text(mac)}")
            elif mac not in uplinks:
                offend(report.foreign_macs, f"unknown MAC {mac_text(mac)}")
        if destination == BROADCAST_MAC:
            offend(report.broadcasts, f"from {mac_text(source)}, ethertype {ethertype:#06x}")
        elif destination[0] & 1 and not destination.startswith(GROUP_PREFIX):
            offend(report.stray_groups, f"to {mac_text(destination)} from {mac_text(source)}")
        if ethertype == ETHERTYPE_IPV4:
            report.ipv4_frames += 1
        elif ethertype == ETHERTYPE_ARP and len(frame) >= 42:
            _examine_arp(frame, report, offend, plan)
    return report


def _examine_arp(frame: bytes, report: WireReport, offend: Callable[[list[str], str], None], plan: AddressPlan) -> None:
    destination, operation, target = frame[0:6], int.from_bytes(frame[20:22], "big"), frame[38:42]
    subnet = plan.locate(target)
    if destination[0] & 1:
        report.discovery_groups[destination] += 1
    else:
        report.arp_unicast += 1
    if operation != ARP_REQUEST or subnet is None or not destination[0] & 1:
        return
    if destination not in (group_mac(subnet), ALL_HOSTS_GROUP):
        offend(report.misdirected_requests, f"request for subnet {subnet} to {mac_text(destination)}")
