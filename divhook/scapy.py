"""Discovery in captures: a scapy layer below ARP, and a small reader.

    tcpdump -i eth0 -U -w - 'ether[42:2] = 0xd17e' | python -m divhook.scapy -        live, one line per frame
    python -m divhook.scapy --key /etc/divhook/cluster.key trace.pcap                 from a file, tags verified

    >>> from scapy.all import rdpcap
    >>> import divhook.scapy                       # binds the layer
    >>> [p[divhook.scapy.Discovery].stamp for p in rdpcap("trace.pcap") if divhook.scapy.Discovery in p]

Importing this module changes scapy's ARP: what follows its 28 bytes is padding, except where it starts with discovery's
magic. Field names are those of docs/protocol.md, with underscores. It decodes what the wire says, true or not.
"""

import hmac
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scapy.fields import (
    ByteEnumField,
    ByteField,
    FlagsField,
    LongField,
    MACField,
    ShortField,
    StrLenField,
    XLongField,
    XStrFixedLenField,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, bind_bottom_up, bind_layers
from scapy.utils import PcapReader

from divhook.core.keys import DEFAULT_CLUSTER, PURPOSE_DISCOVERY, KeyFileError, KeyRing, parse_key_text
from divhook.core.wire.discovery import (
    ETHER_TYPE_LOCAL,
    MAGIC,
    TAG_LENGTH,
    TRAILER_LENGTH,
    MessageType,
    parse_discovery_untrusted,
)
from divhook.core.wire.errors import WireError


class Discovery(Packet):
    """The trailer of a discovery frame. `content` is the payload, `tag` the authentication tag."""

    name = "divhook discovery"
    fields_desc = [  # noqa: RUF012  (scapy's form)
        XStrFixedLenField("magic", MAGIC, 2),
        ByteField("version", 1),
        ByteField("algorithm", 1),
        ByteField("key_id", 1),
        ByteEnumField("type", MessageType.REQUEST, {kind.value: kind.name for kind in MessageType}),
        FlagsField("flags", 0, 16, ["claim", "tentative"]),
        ShortField("trailer_length", None),
        MACField("vmac", "00:00:00:00:00:00"),
        MACField("claim_host", "00:00:00:00:00:00"),
        ShortField("zero", 0),
        LongField("stamp", 0),
        LongField("born", 0),
        XLongField("guest_id", 0),
        XLongField("identity", 0),
        XLongField("session", 0),
        LongField("sequence", 0),
        XLongField("nonce", 0),
        StrLenField("content", b"", length_from=lambda packet: max(0, packet.trailer_length - TRAILER_LENGTH)),
        XStrFixedLenField("tag", bytes(TAG_LENGTH), TAG_LENGTH),
    ]

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        """Fill in the length where it was left open."""
        if self.trailer_length is None:
            pkt = pkt[:8] + len(pkt).to_bytes(2, "big") + pkt[10:]
        return pkt + pay

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """What follows the tag is padding of the frame."""
        return b"", s

    def mysummary(self) -> str:
        """One line: who says what on which address."""
        kind = self.sprintf("%type%")
        arp = self.underlayer
        if not isinstance(arp, ARP):
            return f"discovery {kind}"
        spoken_of, asker = (arp.psrc, arp.pdst) if arp.op == 2 else (arp.pdst, arp.psrc)
        claim = ""
        if self.flags.claim:
            kept = "tentative at" if self.flags.tentative else "at"
            claim = f" [{self.vmac} {kept} {self.claim_host}, stamp {self.stamp}]"
        return (
            f"discovery {kind} {spoken_of} asker {asker} from {arp.hwsrc}{claim} "
            f"session {self.session:#x} seq {self.sequence} nonce {self.nonce:#x}"
        )


_PADDING_ONLY = ARP.extract_padding


def _extract_padding(self: ARP, s: bytes) -> tuple[bytes, bytes]:
    return (s, b"") if s.startswith(MAGIC) else _PADDING_ONLY(self, s)


if _PADDING_ONLY.__module__ != __name__:
    ARP.extract_padding = _extract_padding  # type: ignore[method-assign]
bind_layers(ARP, Discovery)
bind_bottom_up(Ether, ARP, type=ETHER_TYPE_LOCAL)  # to decode; ARP is still built as 0x0806


def verify(frame: bytes, keys: KeyRing, cluster: str = DEFAULT_CLUSTER) -> str:
    """What a key ring says of a frame: the tag is good or bad, the key unknown, or the frame malformed."""
    try:
        _, envelope, tag, covered = parse_discovery_untrusted(frame)
    except WireError as error:
        return str(error)
    key = next((key for key in keys.keys if key.key_id == envelope.key_id), None)
    if key is None:
        return f"key {envelope.key_id} unknown"
    good = hmac.digest(key.derive(PURPOSE_DISCOVERY, cluster), covered, "sha256")[:TAG_LENGTH]
    return f"tag {'good' if hmac.compare_digest(good, tag) else 'BAD'} (key {key.key_id})"


def main(arguments: Sequence[str]) -> int:
    """Print the discovery frames of a capture, one per line."""
    words = list(arguments)
    keys = None
    if words[:1] == ["--key"] and len(words) > 1:
        try:
            keys = parse_key_text(Path(words[1]).read_text(), words[1])
        except (OSError, KeyFileError) as error:
            print(error, file=sys.stderr)
            return 1
        words = words[2:]
    if len(words) != 1:
        print("usage: python -m divhook.scapy [--key CLUSTER_KEY] CAPTURE|-", file=sys.stderr)
        return 2
    source: Any = sys.stdin.buffer if words[0] == "-" else words[0]
    with PcapReader(source) as packets:
        for packet in packets:
            if Discovery in packet:
                verdict = f"  {verify(bytes(packet.original), keys)}" if keys else ""
                print(f"{packet.time:.6f} > {packet.dst} {packet[Discovery].mysummary()}{verdict}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
