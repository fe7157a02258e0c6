"""The scapy layer against the codec: same bytes, same names."""

import io
import sys
from pathlib import Path

import pytest
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Padding
from scapy.utils import wrpcap

import divhook.scapy
from divhook.core.auth import Authenticator
from divhook.core.keys import Key, KeyRing, new_key_text
from divhook.core.wire.discovery import (
    ETHER_TYPE_LOCAL,
    TRAILER_FIELDS,
    Bitmaps,
    Claim,
    Message,
    MessageType,
    emit_bitmaps,
)
from divhook.scapy import Discovery

A = bytes.fromhex("020a0b0c0d01")
B = bytes.fromhex("020a0b0c0d02")
GROUP = bytes.fromhex("03d100070009")
SPA, TPA = bytes([10, 7, 9, 21]), bytes([10, 7, 9, 22])
SECRET = bytes(range(1, 33))
RING = KeyRing((Key(1, SECRET, send=True),))
CLAIM = Claim(SPA, bytes.fromhex("525400616263"), A, 0x71, 0x61, 0x81, 0x91, tentative=True)
REQUEST = Message(MessageType.REQUEST, A, GROUP, SPA, TPA, CLAIM)
CENSUS_REPLY = Message(MessageType.CENSUS_REPLY, A, B, bytes(4), TPA, None, 5, emit_bitmaps(Bitmaps(1 << 20))[0])


def sealed(message: Message, ether_type: int = 0x0806) -> bytes:
    return Authenticator(A, RING, 0xABCD, ether_type=ether_type).seal(message, 0.0)


def test_fields_are_those_of_the_codec_in_order_and_name():
    names = [field.name.split(" =")[0].replace(" ", "_") for field in TRAILER_FIELDS]
    assert [field.name for field in Discovery.fields_desc] == [*names, "content", "tag"]


def test_request_is_decoded():
    packet = Ether(sealed(REQUEST))
    assert [type(layer) for layer in (packet, packet.payload, packet.payload.payload)] == [Ether, ARP, Discovery]
    layer = packet[Discovery]
    assert (layer.sprintf("%type%"), layer.vmac, layer.claim_host) == (
        "REQUEST",
        "52:54:00:61:62:63",
        "02:0a:0b:0c:0d:01",
    )
    assert (layer.stamp, layer.born, layer.guest_id, layer.identity) == (0x71, 0x61, 0x81, 0x91)
    assert (layer.session, layer.sequence, layer.trailer_length) == (0xABCD, 1, 96)
    assert layer.flags.claim
    assert layer.flags.tentative
    assert packet[ARP].hwsrc == "02:0a:0b:0c:0d:01"


@pytest.mark.parametrize("ether_type", [0x0806, ETHER_TYPE_LOCAL])
@pytest.mark.parametrize("message", [REQUEST, CENSUS_REPLY], ids=["request", "census reply"])
def test_frame_is_rebuilt_byte_for_byte(message: Message, ether_type: int):
    frame = sealed(message, ether_type)
    packet = Ether(frame)
    assert Discovery in packet
    assert bytes(packet) == frame
    fields = dict(packet[Discovery].fields, trailer_length=None)
    rebuilt = Ether(**packet.fields) / ARP(**packet[ARP].fields) / Discovery(**fields)
    assert bytes(rebuilt) == frame


def test_padding_stays_padding():
    packet = Ether(sealed(CENSUS_REPLY) + b"\x5a" * 5)
    assert packet[Discovery].content == CENSUS_REPLY.payload
    assert packet[Padding].load == b"\x5a" * 5


def test_ordinary_arp_is_left_alone():
    packet = Ether(bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:07") / ARP()) + bytes(18))
    assert Discovery not in packet
    assert packet[Padding].load == bytes(18)


def test_reader_prints_one_line_per_frame_with_the_tags_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    capture, key = tmp_path / "trace.pcap", tmp_path / "cluster.key"
    frames = [sealed(REQUEST), bytes(Ether() / ARP()), sealed(CENSUS_REPLY)]
    wrpcap(str(capture), [Ether(frame) for frame in frames])
    key.write_text(new_key_text(SECRET, "now"))
    assert divhook.scapy.main(["--key", str(key), str(capture)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "REQUEST 10.7.9.22 asker 10.7.9.21 from 02:0a:0b:0c:0d:01" in first
    assert "[52:54:00:61:62:63 tentative at 02:0a:0b:0c:0d:01, stamp 113]" in first
    assert first.endswith("tag good (key 1)")
    assert "CENSUS_REPLY 10.7.9.22" in second

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(capture.read_bytes())))
    assert divhook.scapy.main(["-"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_verdict_names_a_bad_tag_an_unknown_key_and_a_malformed_frame():
    frame = bytearray(sealed(REQUEST))
    frame[-1] ^= 1
    assert divhook.scapy.verify(bytes(frame), RING) == "tag BAD (key 1)"
    assert divhook.scapy.verify(bytes(frame), KeyRing((Key(2, SECRET, send=True),))) == "key 1 unknown"
    assert divhook.scapy.verify(bytes(frame[:50]), RING) == "discovery_malformed: 50 bytes, at least 138"


def test_wrong_use_and_a_bad_key_file_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert divhook.scapy.main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert divhook.scapy.main(["--key", str(tmp_path / "none"), "-"]) == 1
    assert "none" in capsys.readouterr().err
