"""Records conversation.hex: what guests of a BareLab and their hosts say to each other, as tcpdump saw it.

    sudo python tests/bpf/captures/record.py

Cast: host A with near (10.1.1.67), host B with far (10.1.1.68) and db (10.1.2.69, another subnet). near asks for a
lease, pings (also with options, and in fragments), traces routes, opens and closes TCP connections, sends a little by
iperf3, meets a closed port, and asks for an address that nobody has. Offloads of the guests are off while it lasts, so
that frames are as on a wire. Of long frames that are alike only a few are kept. Kernel and programs of Debian 12.
"""

import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from divhook.core.addressing import Mac, parse_mac
from divhook.core.wire.discovery import is_discovery
from divhook.lab.bare import NIC, BareGuest, BareLab, BareSpec
from divhook.lab.capture import Capture
from divhook.lab.host import UPLINK

CAST = (
    BareSpec("near", "A", "shop", "web", "10.1.1.67"),
    BareSpec("far", "B", "shop", "web", "10.1.1.68"),
    BareSpec("db", "B", "shop", "db", "10.1.2.69"),
)
LONG, ALIKE = 400, 3
"""Bytes; and how many frames of the same length and protocol longer than that are kept."""
OUT = Path(__file__).with_name("conversation.hex")


def talk(near: BareGuest, far: BareGuest, db: BareGuest) -> None:
    """What near says."""
    near.exec("udhcpc", "-i", NIC, "-n", "-q", "-f", "-s", "/bin/true", check=False)
    for guest in (near, far, db):
        guest.configure()
        guest.exec("ethtool", "-K", NIC, "tso", "off", "gso", "off", "gro", "off", "tx", "off", check=False)
    for target in ("10.1.1.68", "10.1.2.69", "10.1.1.1"):
        near.exec("ping", "-c", "2", "-i", "0.2", target, check=False)
        near.exec("ping", "-c", "1", "-s", "3000", target, check=False)
        near.exec("ping", "-c", "1", "-R", target, check=False)
        near.exec("ping", "-c", "1", "-T", "tsonly", target, check=False)
        near.exec("ping", "-c", "1", "-M", "do", "-s", "1472", target, check=False)
        near.exec("ping", "-c", "1", "-t", "1", target, check=False)
    for target in ("10.1.1.68", "10.1.2.69"):
        for way in ("-U", "-I", "-T"):
            near.exec("traceroute", "-n", "-q", "1", "-w", "1", "-m", "3", way, target, check=False)
        near.exec("nc", "-w", "1", "-z", target, "9", check=False)
    for server in (far, db):
        server.exec("sh", "-c", "iperf3 -s -1 >/dev/null 2>&1 &")
        address = str(server.spec.address)
        near.exec("sh", "-c", f"sleep 1; iperf3 -c {address} -n 20K -l 1000", check=False)
        server.exec("sh", "-c", "iperf3 -s -1 >/dev/null 2>&1 &")
        near.exec("sh", "-c", f"sleep 1; iperf3 -c {address} -u -n 4K -l 300", check=False)
    near.exec("arping", "-c", "1", "-I", NIC, "10.1.1.68", check=False)
    for target in ("10.1.1.99", "10.1.2.99", "10.2.1.5", "192.0.2.7", "255.255.255.255", "224.0.0.251"):
        near.exec("ping", "-b", "-c", "1", "-W", "1", target, check=False)


def frames_of(pcap: Path) -> Iterator[bytes]:
    """The frames of a pcap file."""
    data = pcap.read_bytes()
    at = 24
    while at + 16 <= len(data):
        kept, length = struct.unpack_from("=8xII", data, at)
        if kept == length:
            yield data[at + 16 : at + 16 + kept]
        at += 16 + kept


def main() -> None:
    """Record, choose, write."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, BareLab(Path(directory) / "lab", CAST) as lab:
        near, far, db = (lab.bare[spec.name] for spec in CAST)
        host = lab.host("A")
        pmac = parse_mac(host.plan.mac)
        at_guest = Capture(near.namespace, NIC, Path(directory) / "guest.pcap", 2000)
        at_wire = Capture(host.namespaces, UPLINK, Path(directory) / "wire.pcap", 2000)
        talk(near, far, db)
        sent: list[tuple[str, bytes]] = []
        for way, capture, mac in (("guest", at_guest, parse_mac(near.spec.mac)), ("wire", at_wire, pmac)):
            sent += chosen(way, list(frames_of(capture.stop())), mac)
        peer = lab.host("B").plan.mac
    lines = [f"{way} {frame.hex()}\n" for way, frame in sent]
    cast = [f"# {s.name} {s.mac} {s.address}\n" for s in CAST] + [f"# A {pmac.hex(':')}\n", f"# B {peer}\n"]
    OUT.write_text("# made by record.py, which says how; a line is a frame that came from a guest or from the wire\n")
    with OUT.open("a") as stream:
        stream.writelines(cast + lines)
    print(f"{len(lines)} frames, {OUT.stat().st_size} bytes")


def chosen(way: str, frames: list[bytes], mac: Mac) -> Iterator[tuple[str, bytes]]:
    """What near sent, and what A was sent by B, without discovery's own frames."""
    alike: Counter[tuple[int, bytes]] = Counter()
    for frame in frames:
        wanted = frame[6:12] == mac if way == "guest" else frame[:6] == mac
        key = (len(frame), frame[23:24])
        if wanted and not is_discovery(frame) and alike[key] < (ALIKE if len(frame) > LONG else 20):
            alike[key] += 1
            yield way, frame


if __name__ == "__main__":
    main()
