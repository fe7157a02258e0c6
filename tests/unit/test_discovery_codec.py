"""Discovery frames byte by byte: every field has octets of its own, so that a swap shows."""

from dataclasses import replace

import pytest

from divhook.core.reasons import DropReason
from divhook.core.wire import discovery
from divhook.core.wire.discovery import (
    BLOCK_HOSTS,
    ETHER_TYPE_LOCAL,
    MAGIC,
    MAX_PAYLOAD,
    TRAILER_LENGTH,
    TRAILER_OFFSET,
    Bitmaps,
    Claim,
    Envelope,
    Message,
    MessageType,
    emit,
    emit_bitmaps,
    is_discovery,
    parse_bitmaps_untrusted,
    parse_discovery_untrusted,
)
from divhook.core.wire.errors import WireError

SOURCE = bytes.fromhex("020a0b0c0d01")
GROUP = bytes.fromhex("03d100070009")
PEER = bytes.fromhex("020a0b0c0d02")
SPA = bytes([10, 7, 9, 21])
TPA = bytes([10, 7, 9, 22])
TAG = bytes(range(0xE0, 0xF0))
ENVELOPE = Envelope(session=0x3132333435363738, sequence=0x4142434445464748, key_id=0x21)


def claim(address: bytes) -> Claim:
    return Claim(
        address,
        vmac=bytes.fromhex("525400616263"),
        host=bytes.fromhex("020a0b0c0d03"),
        stamp=0x7172737475767778,
        born=0x6162636465666768,
        guest_id=0x8182838485868788,
        identity=0x9192939495969798,
    )


REQUEST = Message(MessageType.REQUEST, SOURCE, GROUP, SPA, TPA, claim(SPA), nonce=0x5152535455565758)
REPLY = Message(MessageType.REPLY, SOURCE, PEER, SPA, TPA, claim(TPA), nonce=0x5152535455565758)
CENSUS_REPLY = Message(MessageType.CENSUS_REPLY, SOURCE, PEER, bytes(4), TPA, None, 1, b"\xc1\xc2\xc3")

REQUEST_BYTES = bytes.fromhex(
    "03d100070009 020a0b0c0d01 0806"  # to the group, from the own pmac, ARP
    "0001 0800 06 04 0001 020a0b0c0d01 0a070915 000000000000 0a070916"  # who has tpa? tell spa at the pmac
    "d17e 01 01 21 01 0001 0060"  # magic, version, algorithm, key id, type, flags, length
    "525400616263 020a0b0c0d03 0000"  # vmac, claim host, zero
    "7172737475767778 6162636465666768 8182838485868788 9192939495969798"  # stamp, born, guest id, identity
    "3132333435363738 4142434445464748 5152535455565758"  # session, sequence, nonce
)
REPLY_BYTES = bytes.fromhex(
    "020a0b0c0d02 020a0b0c0d01 0806"
    "0001 0800 06 04 0002 020a0b0c0d01 0a070916 020a0b0c0d02 0a070915"  # the address spoken of is at the pmac
    "d17e 01 01 21 02 0001 0060"
    "525400616263 020a0b0c0d03 0000"
    "7172737475767778 6162636465666768 8182838485868788 9192939495969798"
    "3132333435363738 4142434445464748 5152535455565758"
)
CENSUS_REPLY_BYTES = bytes.fromhex(
    "020a0b0c0d02 020a0b0c0d01 88b5"
    "0001 0800 06 04 0002 020a0b0c0d01 0a070916 020a0b0c0d02 00000000"
    "d17e 01 01 21 0a 0000 0063"
    "000000000000 000000000000 0000"
    "0000000000000000 0000000000000000 0000000000000000 0000000000000000"
    "3132333435363738 4142434445464748 0000000000000001"
    "c1c2c3"
)
LOCAL = replace(ENVELOPE, ether_type=ETHER_TYPE_LOCAL)
VECTORS = [
    (REQUEST, ENVELOPE, REQUEST_BYTES),
    (REPLY, ENVELOPE, REPLY_BYTES),
    (CENSUS_REPLY, LOCAL, CENSUS_REPLY_BYTES),
]
IDS = [message.type.name for message, _, _ in VECTORS]


@pytest.mark.parametrize(("message", "envelope", "covered"), VECTORS, ids=IDS)
def test_message_is_these_bytes(message: Message, envelope: Envelope, covered: bytes):
    assert emit(message, envelope) == covered


@pytest.mark.parametrize(("message", "envelope", "covered"), VECTORS, ids=IDS)
def test_these_bytes_are_the_message(message: Message, envelope: Envelope, covered: bytes):
    assert parse_discovery_untrusted(covered + TAG) == (message, envelope, TAG, covered)


@pytest.mark.parametrize(("message", "envelope", "covered"), VECTORS, ids=IDS)
def test_padding_is_ignored(message: Message, envelope: Envelope, covered: bytes):
    assert parse_discovery_untrusted(covered + TAG + b"\x5a" * 40) == (message, envelope, TAG, covered)


@pytest.mark.parametrize("tag_type", ["8100", "88a8"])
def test_one_vlan_tag_is_skipped(tag_type: str):
    tagged = REQUEST_BYTES[:12] + bytes.fromhex(tag_type + "a123") + REQUEST_BYTES[12:] + TAG
    assert parse_discovery_untrusted(tagged) == (REQUEST, ENVELOPE, TAG, REQUEST_BYTES)


def test_offsets_for_the_kernel_are_those_of_the_frame():
    assert TRAILER_OFFSET == 42
    assert MAGIC == b"\xd1\x7e"
    assert REQUEST_BYTES[TRAILER_OFFSET : TRAILER_OFFSET + 2] == MAGIC
    assert len(REQUEST_BYTES + TAG) == TRAILER_OFFSET + TRAILER_LENGTH == 138


def test_discovery_is_told_from_any_other_arp():
    assert is_discovery(REQUEST_BYTES)
    assert is_discovery(CENSUS_REPLY_BYTES)
    assert not is_discovery(REQUEST_BYTES[:TRAILER_OFFSET] + bytes(18))
    assert not is_discovery(REQUEST_BYTES[:12] + b"\x08\x00" + REQUEST_BYTES[14:])
    assert not is_discovery(b"")


def test_a_question_whether_anybody_has_an_address_is_an_arp_probe_of_which_plain_machines_learn_nothing():
    probe = replace(REQUEST, spa=bytes(4), claim=replace(claim(REQUEST.tpa), tentative=True))
    frame = emit(probe, ENVELOPE)
    assert frame[28:32] == bytes(4)  # RFC 5227 §2.1.1
    assert parse_discovery_untrusted(frame + TAG)[0] == probe
    with pytest.raises(ValueError, match="does not speak of"):
        emit(replace(probe, claim=claim(SPA)), ENVELOPE)


def test_tentative_claim_sets_its_flag():
    tentative = replace(REQUEST, claim=replace(claim(SPA), tentative=True))
    frame = emit(tentative, ENVELOPE)
    assert frame[:48] == REQUEST_BYTES[:48]
    assert frame[48:50] == b"\x00\x03"
    assert frame[50:] == REQUEST_BYTES[50:]
    assert parse_discovery_untrusted(frame + TAG)[0] == tentative


def test_largest_payload_passes_and_one_byte_more_does_not():
    full = replace(CENSUS_REPLY, payload=b"\xab" * MAX_PAYLOAD)
    assert parse_discovery_untrusted(emit(full, ENVELOPE) + TAG)[0] == full
    with pytest.raises(ValueError, match="1025 bytes, at most 1024"):
        emit(replace(full, payload=b"\xab" * (MAX_PAYLOAD + 1)), ENVELOPE)


@pytest.mark.parametrize("message", [replace(REQUEST, claim=claim(TPA)), replace(REPLY, claim=claim(SPA))])
def test_claim_on_an_address_that_the_message_does_not_speak_of_is_not_said(message: Message):
    with pytest.raises(ValueError, match="does not speak of"):
        emit(message, ENVELOPE)


def changed(offset: int, octets: str, frame: bytes = REQUEST_BYTES) -> bytes:
    new = bytes.fromhex(octets)
    return frame[:offset] + new + frame[offset + len(new) :] + TAG


MALFORMED = {
    "empty": b"",
    "one byte short": (REQUEST_BYTES + TAG)[:-1],
    "IPv4": changed(12, "0800"),
    "two VLAN tags": REQUEST_BYTES[:12] + bytes.fromhex("88a80001 81000002") + REQUEST_BYTES[12:] + TAG,
    "htype": changed(14, "0006"),
    "ptype": changed(16, "86dd"),
    "hlen": changed(18, "08"),
    "plen": changed(19, "10"),
    "a question as ARP reply": changed(20, "0002"),
    "an answer as ARP request": changed(20, "0001", REPLY_BYTES),
    "sha is not the source": changed(22, "020a0b0c0d09"),
    "a group as source": changed(6, "030a0b0c0d01", changed(22, "030a0b0c0d01")[:-16]),
    "no source": changed(6, "000000000000", changed(22, "000000000000")[:-16]),
    "tha of a question": changed(32, "00000000000a"),
    "tha of an answer": changed(32, "020a0b0c0d09", REPLY_BYTES),
    "magic": changed(42, "d17f"),
    "version": changed(44, "02"),
    "type 0": changed(47, "00"),
    "type unknown": changed(47, "ff"),
    "flag unknown": changed(48, "0005"),
    "tentative without a claim": changed(48, "0002", CENSUS_REPLY_BYTES),
    "claim fields without a claim": changed(48, "0000"),
    "length below the minimum": changed(50, "005f"),
    "length past the end": changed(50, "0061"),
    "length past the largest payload": changed(50, "0461") + bytes(2000),
    "vmac is a group": changed(52, "535400616263"),
    "claim host is a group": changed(58, "030a0b0c0d03"),
    "claim host is zero": changed(58, "000000000000"),
    "reserved bits": changed(64, "0100"),
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_frame_is_refused_with_its_reason(frame: bytes):
    with pytest.raises(WireError) as raised:
        parse_discovery_untrusted(frame)
    assert raised.value.reason is DropReason.DISCOVERY_MALFORMED


# --- census payload


def test_bitmaps_of_a_24_fit_one_frame_bit_by_bit():
    taken = Bitmaps(active=1 << 2 | 1 << 9, reserved=1 << 16, quarantined=1 << 23)
    assert emit_bitmaps(taken) == [bytes.fromhex("0000 0003 040200 000001 000080")]
    assert parse_bitmaps_untrusted(emit_bitmaps(taken)[0]) == taken


def test_bitmaps_of_a_16_are_split_and_empty_blocks_left_out():
    taken = Bitmaps(active=1 << 65_534 | 1 << 5, reserved=1 << BLOCK_HOSTS)
    payloads = emit_bitmaps(taken)
    assert [payload[:4].hex() for payload in payloads] == ["00000001", "08000001", "f8000100"]
    together = Bitmaps()
    for payload in payloads:
        together |= parse_bitmaps_untrusted(payload)
    assert together == taken


def test_full_16_takes_32_frames_that_all_fit():
    payloads = emit_bitmaps(Bitmaps(active=(1 << 65_536) - 1))
    assert len(payloads) == 32
    assert max(map(len, payloads)) == 4 + 3 * 256 <= MAX_PAYLOAD


def test_nothing_taken_is_no_payload():
    assert emit_bitmaps(Bitmaps()) == []


@pytest.mark.parametrize("payload", ["", "000000", "00000000", "00000001aabb", "00000001aabbccdd", "00010001aabbcc"])
def test_malformed_bitmaps_are_refused(payload: str):
    with pytest.raises(WireError):
        parse_bitmaps_untrusted(bytes.fromhex(payload))


def test_bitmaps_longer_than_a_block_are_refused():
    with pytest.raises(WireError):
        parse_bitmaps_untrusted(bytes.fromhex("00000101") + bytes(3 * 257))


# --- diagrams


def test_diagrams_name_every_field_once():
    drawn = discovery.render_diagrams()
    for field in (*discovery.FRAME_FIELDS, *discovery.TRAILER_FIELDS):
        assert drawn.count(f" {field.name} ") == 1, field.name
    assert {len(line) for line in drawn.splitlines() if line.startswith(("|", "+"))} == {65, 33}
