"""What agents say on the hand-over channel: there and back, and nothing but the declared error for anything else."""

import json
import random
from ipaddress import ip_address

import pytest

from divhook.core.addressing import AddressPlan, SubnetId, parse_address, parse_mac
from divhook.core.moves import messages as m
from divhook.core.moves.asking import ASK_COUNT, ASK_INTERVAL_S, MAX_ASKED, Asked, MoveQuestions
from divhook.core.wire.discovery import Claim, Message, MessageType

A, B = parse_mac("06:00:00:00:00:0a"), parse_mac("06:00:00:00:00:0b")
CLAIM = Claim(parse_address("10.1.1.5"), parse_mac("52:54:00:00:00:01"), A, 1 << 63, 50, 0xFEDC, 9)
HANDOVER = m.Handover(CLAIM, "web", {"lease_s": 60}, {"sent": 3}, (CLAIM,), (B,), "digest")


def test_a_handover_arrives_as_it_was_said_however_the_stream_is_cut() -> None:
    stream = m.emit_handover(HANDOVER) + m.emit(m.MoveMessage.READY) + b"".join(m.emit_frames([bytes(30), bytes(90)]))
    reader, got = m.MessageReader(), list[tuple[m.MoveMessage, bytes]]()
    for byte in stream:
        got += reader.feed_untrusted(bytes([byte]))
    assert [kind for kind, _ in got] == [m.MoveMessage.HANDOVER, m.MoveMessage.READY, m.MoveMessage.FRAMES]
    assert m.parse_handover_untrusted(got[0][1]) == HANDOVER
    assert m.parse_frames_untrusted(got[2][1]) == [bytes(30), bytes(90)]


def test_frames_are_cut_into_messages_that_fit() -> None:
    messages = m.emit_frames([bytes(60_000)] * 40)
    assert all(len(message) <= m.MAX_MESSAGE + 4 for message in messages)
    reader = m.MessageReader()
    frames = [
        f for message in messages for _, body in reader.feed_untrusted(message) for f in m.parse_frames_untrusted(body)
    ]
    assert frames == [bytes(60_000)] * 40
    assert m.emit_frames([]) == []
    with pytest.raises(ValueError):
        m.emit(m.MoveMessage.FLOWS, bytes(m.MAX_MESSAGE))


@pytest.mark.parametrize("raw", [b"\x00\x00\x00\x00\x01", b"\xff\xff\xff\xff\x01", b"\x00\x00\x00\x01\xee"])
def test_a_length_or_type_that_is_none_ends_the_channel(raw: bytes) -> None:
    with pytest.raises(m.MoveMessageError):
        m.MessageReader().feed_untrusted(raw)


@pytest.mark.parametrize(
    "body", [b"\x00\x00", b"\x00\x00\x00\x01x", b"\x00\x00\x00\x40x", b"\x00\xff\xff\xff" + bytes(99)]
)
def test_frames_that_are_cut_short_or_too_long_are_refused(body: bytes) -> None:
    with pytest.raises(m.MoveMessageError):
        m.parse_frames_untrusted(body)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"talkers": None},
        {"talkers": [m.claim_to_json(CLAIM)] * (m.MAX_TALKERS + 1)},
        {"forwarders": ["no"]},
        {"counters": {"sent": -1}},
        {"lease": 3},
        {"claim": None},
        {"claim": m.claim_to_json(CLAIM) | {"stamp": True}},
        {"claim": m.claim_to_json(CLAIM) | {"vmac": "ff:ff:ff:ff:ff:ff"}},
        {"claim": m.claim_to_json(CLAIM) | {"guest_id": "1" + "0" * 16}},
    ],
)
def test_a_handover_with_a_mistake_is_refused(change: dict[str, object]) -> None:
    value = json.loads(m.emit_handover(HANDOVER)[5:]) | change
    with pytest.raises(m.MoveMessageError):
        m.parse_handover_untrusted(json.dumps(value).encode())


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(m.MoveMessageError):
        m.object_untrusted(body)


def test_notes_and_late_packets() -> None:
    assert m.notes_untrusted(b'{"notes": [[1, "paused"]]}') == [(1.0, "paused")]
    for body in (b'{"notes": 1}', b'{"notes": [[1]]}', b'{"notes": [["x", 1]]}'):
        with pytest.raises(m.MoveMessageError):
            m.notes_untrusted(body)
    packet = bytes(16) + CLAIM.address
    assert m.late_untrusted(A + packet, CLAIM.address) == (A, packet)
    for body in (A + packet[:19], b"\xff" * 6 + packet, A + bytes(20)):
        with pytest.raises(m.MoveMessageError):
            m.late_untrusted(body, CLAIM.address)
    with pytest.raises(m.MoveMessageError):
        m.late_untrusted(A + packet, None)


@pytest.mark.parametrize("seed", range(200))
def test_noise_is_messages_or_the_one_declared_error(seed: int) -> None:
    chance = random.Random(seed)
    stream = bytearray(m.emit_handover(HANDOVER) + b"".join(m.emit_frames([bytes(40)])))
    for _ in range(chance.randrange(1, 6)):
        stream[chance.randrange(len(stream))] = chance.randrange(256)
    try:
        for kind, body in m.MessageReader().feed_untrusted(bytes(stream)):
            if kind is m.MoveMessage.HANDOVER:
                m.parse_handover_untrusted(body)
            elif kind is m.MoveMessage.FRAMES:
                m.parse_frames_untrusted(body)
    except m.MoveMessageError:
        pass


SUBNET = SubnetId(1, 1)


def questions(mac: bytes) -> MoveQuestions:
    made = MoveQuestions(mac, AddressPlan())
    made.where = (ip_address("172.30.0.12"), 7209)
    return made


def test_a_host_that_is_to_run_a_guest_asks_three_times_and_the_other_learns_where_to_connect() -> None:
    there, here = questions(B), questions(A)
    assert there.ask(7, CLAIM.vmac, SUBNET, 10.0)
    said = there.messages_to_send()
    now = 10.0
    while (due := there.next_timer()) is not None:
        now = max(now, due)
        there.on_timer(now)
        said += there.messages_to_send()
    assert (len(said), round(now - 10.0, 3)) == (ASK_COUNT, round(ASK_COUNT * ASK_INTERVAL_S, 3))
    here.receive(said[0], now)
    assert here.waiting
    assert here.asked() == [Asked(7, B, ip_address("172.30.0.12"), 7209)]
    assert not here.waiting


def test_an_answered_question_is_not_repeated_and_a_deaf_host_does_not_ask() -> None:
    there = questions(B)
    there.ask(7, CLAIM.vmac, SUBNET, 10.0)
    there.answered(7)
    assert there.next_timer() is None
    there.where = None
    assert not there.ask(7, CLAIM.vmac, SUBNET, 10.0)


def test_questions_without_their_form_and_past_the_bound_are_nothing() -> None:
    here, there = questions(A), questions(B)
    there.where = (ip_address("2001:db8::1"), 7209)
    there.ask(7, CLAIM.vmac, SUBNET, 10.0)
    good = there.messages_to_send()[0]
    for payload in (b"", b"\x00\x00\x04\x00abcd", b"\x00\x01\x04\x00abc", b"\x00\x01\x07\x00abcd"):
        here.receive(Message(good.type, good.source, good.destination, good.spa, good.tpa, good.claim, 0, payload), 1.0)
    here.receive(Message(MessageType.CENSUS, B, A, bytes(4), good.tpa, good.claim), 1.0)
    assert not here.waiting
    for _ in range(MAX_ASKED + 1):
        here.receive(good, 1.0)
    assert len(here.asked()) == MAX_ASKED
