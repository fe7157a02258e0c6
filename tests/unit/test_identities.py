"""What identities stand for is asked of the host that claims them, believed by its hash alone, and bounded."""

import pytest

from divhook.core import identities
from divhook.core.identities import (
    ASK_INTERVAL_S,
    ASKS,
    HOLD_PER_IDENTITY,
    SILENT_S,
    IdentityExchange,
    IdentityLearned,
    IdentityMissing,
    number_of,
)
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Message, MessageType

A, B, C = (bytes((2, n, 3, 4, 5, 6)) for n in (0xA0, 0xB0, 0xC0))
ADDRESS = bytes((10, 1, 1, 9))
ENCODING = b"who this is"
NUMBER = number_of(ENCODING)


def carry(asker: IdentityExchange, other: IdentityExchange, now: float) -> None:
    for message in asker.messages_to_send():
        other.receive(message, now)
    for message in other.messages_to_send():
        asker.receive(message, now)


def test_a_frame_waits_until_its_identity_is_known() -> None:
    a, b = IdentityExchange(A), IdentityExchange(B)
    b.set_own({NUMBER: ENCODING})
    assert a.want(NUMBER, B, ADDRESS, 0.0, "first") is None
    assert a.want(NUMBER, B, ADDRESS, 0.0, "second") is None
    carry(a, b, 0.0)
    assert a.events() == [IdentityLearned(NUMBER, ENCODING, ("first", "second"))]
    assert a.events() == []
    assert a.get(NUMBER) == ENCODING
    assert (len(a), len(b), a.next_timer()) == (1, 1, None)


def test_it_is_asked_again_and_then_given_up_for_a_while() -> None:
    a, now = IdentityExchange(A), 0.0
    assert a.want(NUMBER, B, ADDRESS, now, "held") is None
    sent = a.messages_to_send()
    while (due := a.next_timer()) is not None:
        a.on_timer(due - 0.01)  # early: nothing
        a.on_timer(due)
        sent += a.messages_to_send()
        now = due
    assert len(sent) == ASKS
    assert now == pytest.approx(ASKS * ASK_INTERVAL_S)
    assert a.events() == [IdentityMissing(NUMBER, ("held",))]
    assert a.want(NUMBER, B, ADDRESS, now, "held") is DropReason.IDENTITY_UNKNOWN
    assert a.want(NUMBER, B, ADDRESS, now + SILENT_S, "held") is None


def test_only_the_host_that_was_asked_and_only_the_truth_is_believed() -> None:
    a = IdentityExchange(A)
    assert a.want(NUMBER, B, ADDRESS, 0.0, "held") is None
    (question,) = a.messages_to_send()
    reply = Message(
        MessageType.IDENTITY_REPLY, B, A, question.spa, question.tpa, nonce=question.nonce, payload=ENCODING
    )
    for wrong in (
        Message(MessageType.IDENTITY_REPLY, B, A, reply.spa, reply.tpa, nonce=reply.nonce, payload=b"somebody else"),
        Message(MessageType.IDENTITY_REPLY, B, A, reply.spa, reply.tpa, nonce=reply.nonce + 1, payload=ENCODING),
        Message(MessageType.IDENTITY_REPLY, C, A, reply.spa, reply.tpa, nonce=reply.nonce, payload=ENCODING),
        Message(MessageType.CENSUS, B, A, reply.spa, reply.tpa, nonce=reply.nonce, payload=ENCODING),
    ):
        a.receive(wrong, 0.1)
    assert a.events() == []
    a.receive(reply, 0.1)
    assert a.events() == [IdentityLearned(NUMBER, ENCODING, ("held",))]


def test_nobody_answers_for_what_it_does_not_know_nor_to_nonsense() -> None:
    b = IdentityExchange(B)
    question = Message(MessageType.IDENTITY, A, B, bytes(4), ADDRESS, nonce=5, payload=NUMBER.to_bytes(8, "big"))
    b.receive(question, 0.0)
    b.know(NUMBER, ENCODING)
    b.receive(Message(MessageType.IDENTITY, A, B, bytes(4), ADDRESS, nonce=5, payload=bytes(1)), 0.0)
    assert b.messages_to_send() == []
    b.receive(question, 0.0)
    assert [m.payload for m in b.messages_to_send()] == [ENCODING]


def test_no_identity_and_our_own_host_are_not_asked_about() -> None:
    a = IdentityExchange(A)
    assert a.want(0, B, ADDRESS, 0.0, "held") is DropReason.IDENTITY_UNKNOWN
    assert a.want(NUMBER, A, ADDRESS, 0.0, "held") is DropReason.IDENTITY_UNKNOWN


def test_every_bound_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "MAX_KNOWN", 2)
    monkeypatch.setattr(identities, "MAX_WANTED", 1)
    a = IdentityExchange(A)
    a.set_own({NUMBER: ENCODING})
    a.know(NUMBER, b"own ones are not overwritten")
    for text in (b"1", b"2", b"3"):
        a.know(number_of(text), text)
    assert a.forgotten == [number_of(b"1")]
    assert (a.get(NUMBER), a.get(number_of(b"1")), a.get(number_of(b"3"))) == (ENCODING, None, b"3")
    a.set_own({})  # it may be of use to others: the oldest makes room
    assert a.get(NUMBER) == ENCODING
    assert a.want(8, B, ADDRESS, 0.0, "held") is None
    assert a.want(9, B, ADDRESS, 0.0, "held") is DropReason.HOLD_TABLE_FULL
    for _ in range(HOLD_PER_IDENTITY - 1):
        assert a.want(8, B, ADDRESS, 0.0, "held") is None
    assert a.want(8, B, ADDRESS, 0.0, "held") is DropReason.HOLD_QUEUE_FULL
    for round_ in range(2):  # those that were silent are remembered, as few as were wanted
        now = 10.0 * round_
        a.want(20 + round_, B, ADDRESS, now, None)
        for _ in range(ASKS + 1):
            now += ASK_INTERVAL_S
            a.on_timer(now)
    assert len(a._silent) == 1


def test_asking_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "ASKS_PER_S", 1.0)
    monkeypatch.setattr(identities, "ANSWERS_PER_S", 1.0)
    a, b = IdentityExchange(A), IdentityExchange(B)
    assert a.want(1, B, ADDRESS, 0.0, "held") is None
    assert a.want(2, B, ADDRESS, 0.0, "held") is DropReason.HOLD_TABLE_FULL
    b.set_own({NUMBER: ENCODING})
    question = Message(MessageType.IDENTITY, A, B, bytes(4), ADDRESS, nonce=5, payload=NUMBER.to_bytes(8, "big"))
    b.receive(question, 0.0)
    b.receive(question, 0.0)
    assert len(b.messages_to_send()) == 1
