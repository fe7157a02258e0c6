"""Authenticator: what a recorded, altered, re-aimed or unasked frame can and cannot do."""

from dataclasses import replace

import pytest

from divhook.core import auth
from divhook.core.addressing import ZERO_ADDRESS, Mac
from divhook.core.auth import Authenticator, Held, Opened, Refused
from divhook.core.keys import Key, KeyRing
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Claim, Message, MessageType, parse_discovery_untrusted

A = bytes.fromhex("020a0b0c0d01")
B = bytes.fromhex("020a0b0c0d02")
C = bytes.fromhex("020a0b0c0d03")
GROUP = bytes.fromhex("03d100070009")
ADDRESS_A = bytes([10, 7, 9, 21])
ADDRESS_B = bytes([10, 7, 9, 22])
OLD = Key(1, bytes(range(32)), send=True)
NEW = Key(2, bytes(range(32, 64)))
RING = KeyRing((OLD,))


def claim(address: bytes, host: Mac, stamp: int = 1000) -> Claim:
    return Claim(address, bytes.fromhex("525400aabb01"), host, stamp, 900, 0x1122334455667788, 0)


def request(nonce: int = 77) -> Message:
    return Message(MessageType.REQUEST, A, GROUP, ADDRESS_A, ADDRESS_B, claim(ADDRESS_A, A), nonce)


def reply_to(question: Message, responder: Mac = B) -> Message:
    return Message(
        MessageType.REPLY,
        responder,
        question.source,
        question.spa,
        question.tpa,
        claim(question.tpa, responder),
        question.nonce,
    )


def announce(source: Mac = A, stamp: int = 1000) -> Message:
    return Message(MessageType.ANNOUNCE, source, GROUP, ZERO_ADDRESS, ADDRESS_A, claim(ADDRESS_A, source, stamp))


def host(pmac: Mac, session: int, keys: KeyRing = RING, cluster: str = "lab") -> Authenticator:
    return Authenticator(pmac, keys, session, cluster)


def deliver(frames: list[bytes], to: Authenticator, now: float = 0.0) -> list[Message]:
    """Frames into a host; the messages it believes."""
    messages: list[Message] = []
    for frame in frames:
        result = to.open_untrusted(frame, now)
        if isinstance(result, Opened):
            messages += [m for m in result.messages if m.type is not MessageType.CHALLENGE_REPLY]
    return messages


def introduce(one: Authenticator, other: Authenticator, pmac: Mac, now: float = 0.0) -> None:
    """`one` challenges the host behind pmac, and it answers."""
    assert one.challenge(pmac, now)
    deliver(one.frames_to_send(), other, now)
    deliver(other.frames_to_send(), one, now)
    assert one.is_peer(pmac)


@pytest.fixture
def a() -> Authenticator:
    return host(A, 0xA1)


@pytest.fixture
def b() -> Authenticator:
    return host(B, 0xB1)


def test_cold_resolution_takes_one_challenge_and_the_reply_proves_the_responder(a: Authenticator, b: Authenticator):
    asked = a.seal(request(nonce=77), 0.0)
    assert b.open_untrusted(asked, 0.0) == Held()
    (challenge,) = b.frames_to_send()
    assert not b.is_peer(A)
    assert a.open_untrusted(challenge, 0.0) == Opened()
    (answer,) = a.frames_to_send()
    opened = b.open_untrusted(answer, 0.0)
    assert isinstance(opened, Opened)
    shown, question = opened.messages
    assert (shown.type, shown.source, shown.nonce) == (MessageType.CHALLENGE_REPLY, A, 0)
    wire_nonce = parse_discovery_untrusted(asked)[0].nonce
    assert question == replace(request(), nonce=wire_nonce)
    assert wire_nonce not in (0, 77)

    answered = b.seal(reply_to(question), 0.0)
    assert a.open_untrusted(answered, 0.0) == Opened((replace(reply_to(request()), nonce=77),))
    assert a.is_peer(B)
    assert b.is_peer(A)
    assert a.frames_to_send() == b.frames_to_send() == []


def test_known_session_costs_no_challenge(a: Authenticator, b: Authenticator):
    introduce(b, a, A)
    assert len(deliver([a.seal(request(), 1.0), a.seal(announce(), 1.0)], b, 1.0)) == 2
    assert b.frames_to_send() == []


def test_every_flipped_bit_is_refused(a: Authenticator, b: Authenticator):
    introduce(b, a, A)
    frame = a.seal(announce(), 1.0)
    for bit in range(len(frame) * 8):
        forged = bytearray(frame)
        forged[bit // 8] ^= 1 << bit % 8
        result = b.open_untrusted(bytes(forged), 1.0)
        assert isinstance(result, Refused), bit
        assert result.reason in (DropReason.DISCOVERY_AUTH, DropReason.DISCOVERY_MALFORMED), bit
    assert deliver([frame], b, 1.0) == [replace(announce(), nonce=parse_discovery_untrusted(frame)[0].nonce)]


def test_padding_and_vlan_tag_are_not_covered(a: Authenticator, b: Authenticator):
    introduce(b, a, A)
    frame = a.seal(announce(), 1.0)
    tagged = frame[:12] + bytes.fromhex("8100a005") + frame[12:] + b"\xee" * 9
    assert len(deliver([tagged], b, 1.0)) == 1


def test_replayed_frame_is_refused(a: Authenticator, b: Authenticator):
    introduce(b, a, A)
    frame = a.seal(announce(), 1.0)
    assert len(deliver([frame], b, 1.0)) == 1
    assert b.open_untrusted(frame, 1.0) == Refused(DropReason.DISCOVERY_REPLAY, "sequence 2")


def test_frame_made_for_another_host_is_refused(a: Authenticator, b: Authenticator):
    c = host(C, 0xC1)
    introduce(c, a, A)
    unicast = a.seal(replace(announce(), destination=B), 1.0)
    assert c.open_untrusted(unicast, 1.0) == Refused(DropReason.DISCOVERY_REPLAY, "made for another host")
    aimed = C + unicast[6:]
    assert c.open_untrusted(aimed, 1.0) == Refused(DropReason.DISCOVERY_AUTH, "tag")


def test_own_frame_reflected_is_refused(a: Authenticator):
    frame = a.seal(announce(), 0.0)
    assert a.open_untrusted(frame, 0.0) == Refused(DropReason.DISCOVERY_REPLAY, "our own frame came back")
    assert a.frames_to_send() == []


def test_recording_of_a_dead_session_teaches_nothing_after_the_sender_restarts(a: Authenticator, b: Authenticator):
    introduce(b, a, A)
    recorded = [a.seal(announce(stamp=1), 1.0) for _ in range(9)][-1]
    restarted = host(A, 0xA2)
    introduce(b, restarted, A, 5.0)
    for _ in range(20):  # sequences pass that of the recording, which is not among those seen
        restarted.seal(announce(), 6.0)
    assert b.open_untrusted(recorded, 7.0) == Held()
    deliver(b.frames_to_send(), restarted, 7.0)
    (answer,) = restarted.frames_to_send()
    result = b.open_untrusted(answer, 7.0)
    assert isinstance(result, Opened)
    assert [m.type for m in result.messages] == [MessageType.CHALLENGE_REPLY]
    assert result.refused == (Refused(DropReason.DISCOVERY_REPLAY, "held frame of a dead session, or not fresh"),)
    assert len(deliver([restarted.seal(announce(), 8.0)], b, 8.0)) == 1, "the live session went on undisturbed"


def test_old_recording_of_a_live_session_teaches_nothing_after_the_receiver_restarts(a: Authenticator):
    recorded = a.seal(announce(stamp=1), 0.0)
    quiet_for_s = 3600.0
    b = host(B, 0xB2)
    assert b.open_untrusted(recorded, quiet_for_s) == Held()
    deliver(b.frames_to_send(), a, quiet_for_s)
    (answer,) = a.frames_to_send()
    result = b.open_untrusted(answer, quiet_for_s)
    assert isinstance(result, Opened)
    assert [m.type for m in result.messages] == [MessageType.CHALLENGE_REPLY]
    assert [r.reason for r in result.refused] == [DropReason.DISCOVERY_REPLAY]
    assert b.is_peer(A)


def test_recorded_reply_proves_nothing_to_a_restarted_asker(a: Authenticator, b: Authenticator):
    introduce(b, a, A)
    (question,) = deliver([a.seal(request(), 0.0)], b)
    recorded = b.seal(reply_to(question), 0.0)
    restarted = host(A, 0xA2)
    restarted.seal(request(), 1.0)
    assert restarted.open_untrusted(recorded, 1.0) == Held()
    assert not restarted.is_peer(B)


def test_recorded_challenge_reply_proves_nothing(a: Authenticator, b: Authenticator):
    b.challenge(A, 0.0)
    deliver(b.frames_to_send(), a)
    (recorded,) = a.frames_to_send()
    later = host(B, 0xB2)
    assert later.challenge(A, 9.0)
    assert later.open_untrusted(recorded, 9.0) == Refused(DropReason.DISCOVERY_REPLAY, "answer to no open challenge")
    assert not later.is_peer(A)


def test_challenge_answer_counts_once(a: Authenticator, b: Authenticator):
    b.challenge(A, 0.0)
    deliver(b.frames_to_send(), a)
    (answer,) = a.frames_to_send()
    assert isinstance(b.open_untrusted(answer, 0.0), Opened)
    assert b.open_untrusted(answer, 0.0) == Refused(DropReason.DISCOVERY_REPLAY, "sequence 1")


def test_answered_challenge_can_not_bring_back_a_dead_session_with_an_empty_window(a: Authenticator, b: Authenticator):
    """The attacker repeats the challenge to the restarted host, and then the first answer to the challenger."""
    b.challenge(A, 0.0)
    (challenge,) = b.frames_to_send()
    deliver([challenge], a)
    (first,) = a.frames_to_send()
    deliver([first], b)
    recorded = a.seal(announce(), 0.1)
    assert len(deliver([recorded], b, 0.1)) == 1
    restarted = host(A, 0xA2)
    deliver([challenge], restarted, 0.2)
    deliver([*restarted.frames_to_send(), first], b, 0.2)
    assert b.open_untrusted(recorded, 0.2) == Refused(DropReason.DISCOVERY_REPLAY, "sequence 2")


def probe_of_a(b: Authenticator, now: float) -> Message:
    """B asks A for its address; the question as A gets it."""
    probe = Message(MessageType.PROBE, B, A, ADDRESS_B, ADDRESS_A, claim(ADDRESS_B, B))
    return parse_discovery_untrusted(b.seal(probe, now))[0]


def test_answer_to_a_challenge_held_back_does_not_bring_back_a_superseded_session(a: Authenticator, b: Authenticator):
    b.challenge(A, 0.0)
    deliver(b.frames_to_send(), a)
    (held_back,) = a.frames_to_send()
    restarted = host(A, 0xA2)
    assert len(deliver([restarted.seal(reply_to(probe_of_a(b, 0.1), A), 0.1)], b, 0.1)) == 1
    refused = Refused(DropReason.DISCOVERY_REPLAY, "challenge older than the session that is known")
    assert b.open_untrusted(held_back, 0.2) == refused
    assert len(deliver([restarted.seal(announce(), 0.2)], b, 0.2)) == 1


def test_echo_held_back_does_not_bring_back_a_superseded_session(a: Authenticator, b: Authenticator):
    held_back = a.seal(reply_to(probe_of_a(b, 0.0), A), 0.0)
    restarted = host(A, 0xA2)
    introduce(b, restarted, A, 0.1)
    assert b.open_untrusted(held_back, 1.2) == Held()
    deliver(b.frames_to_send(), restarted, 1.2)
    assert deliver(restarted.frames_to_send(), b, 1.2) == []
    assert len(deliver([restarted.seal(announce(), 1.2)], b, 1.2)) == 1


def test_challenge_to_a_group_is_not_answered(a: Authenticator, b: Authenticator):
    """Only a keyholder could make one; nobody can make all hosts answer at once."""
    frame = b.seal(Message(MessageType.CHALLENGE, B, GROUP, ZERO_ADDRESS, ZERO_ADDRESS), 0.0)
    assert a.open_untrusted(frame, 0.0) == Refused(DropReason.DISCOVERY_MALFORMED, "challenge to a group")
    assert a.frames_to_send() == []


@pytest.mark.parametrize("floor", [b"", bytes(7), (2).to_bytes(8, "big")])
def test_answer_to_a_challenge_without_a_sound_floor_proves_nothing(a: Authenticator, b: Authenticator, floor: bytes):
    b.challenge(A, 0.0)
    nonce = parse_discovery_untrusted(b.frames_to_send()[0])[0].nonce
    answer = Message(MessageType.CHALLENGE_REPLY, A, B, ZERO_ADDRESS, ZERO_ADDRESS, None, nonce, floor)
    result = b.open_untrusted(a.seal(answer, 0.0), 0.0)
    assert result == Refused(DropReason.DISCOVERY_MALFORMED, "challenge reply without its floor")
    assert not b.is_peer(A)


def test_late_answer_to_a_challenge_is_refused(a: Authenticator, b: Authenticator):
    b.challenge(A, 0.0)
    deliver(b.frames_to_send(), a)
    (answer,) = a.frames_to_send()
    late = auth.CHALLENGE_INTERVAL_S
    assert b.open_untrusted(answer, late) == Refused(DropReason.DISCOVERY_REPLAY, "answer to no open challenge")


def test_unicast_question_is_proven_by_the_asked_host_alone(a: Authenticator, b: Authenticator):
    c = host(C, 0xC1)
    probe = replace(request(), type=MessageType.PROBE, destination=B)
    nonce = parse_discovery_untrusted(a.seal(probe, 0.0))[0].nonce
    assert a.open_untrusted(c.seal(reply_to(replace(probe, nonce=nonce), C), 0.0), 0.0) == Held()
    assert isinstance(a.open_untrusted(b.seal(reply_to(replace(probe, nonce=nonce)), 0.0), 0.0), Opened)


def test_echo_of_an_expired_question_proves_nothing(a: Authenticator, b: Authenticator):
    nonce = parse_discovery_untrusted(a.seal(request(), 0.0))[0].nonce
    late = auth.NONCE_LIFETIME_S
    assert a.open_untrusted(b.seal(reply_to(replace(request(), nonce=nonce)), late), late) == Held()


def test_answer_from_a_known_session_that_echoes_nothing_of_ours_carries_nonce_zero(a: Authenticator, b: Authenticator):
    introduce(a, b, B)
    (message,) = deliver([b.seal(reply_to(replace(request(), nonce=5)), 0.0)], a)
    assert message.nonce == 0


def test_frames_held_are_delivered_in_order_even_if_more_than_a_window_was_sent_since(
    a: Authenticator, b: Authenticator
):
    frames = [a.seal(announce(stamp=n), 0.0) for n in range(200)]
    for frame in (frames[3], frames[1]):
        assert b.open_untrusted(frame, 0.0) == Held()
    (challenge,) = b.frames_to_send()
    deliver([challenge], a)
    messages = deliver(a.frames_to_send(), b)
    assert [m.claim.stamp for m in messages if m.claim] == [1, 3]
    assert isinstance(b.open_untrusted(frames[1], 0.0), Refused)


def test_frame_held_twice_is_delivered_once(a: Authenticator, b: Authenticator):
    frame = a.seal(announce(), 0.0)
    assert b.open_untrusted(frame, 0.0) == Held()
    copy = b.open_untrusted(frame, 0.0)
    assert copy == Refused(DropReason.DISCOVERY_REPLAY, "sequence 1 is held already")
    deliver(b.frames_to_send(), a)
    assert len(deliver(a.frames_to_send(), b)) == 1


def test_frame_held_and_then_accepted_as_a_copy_is_delivered_once(a: Authenticator, b: Authenticator):
    """The session is proven by an echo first; a copy of the held frame passes; the challenge's answer comes last."""
    held = a.seal(announce(), 0.0)
    assert b.open_untrusted(held, 0.0) == Held()
    (challenge,) = b.frames_to_send()
    probe = Message(MessageType.PROBE, B, A, ADDRESS_B, ADDRESS_A, claim(ADDRESS_B, B))
    nonce = parse_discovery_untrusted(b.seal(probe, 0.0))[0].nonce
    echo = a.seal(reply_to(replace(probe, nonce=nonce), A), 0.0)
    assert len(deliver([echo], b)) == 1
    assert deliver([held], b) == [], "below the floor that an echo sets"
    deliver([challenge], a)
    assert len(deliver(a.frames_to_send(), b)) == 1
    assert deliver([held], b) == []


def test_frame_held_and_then_accepted_within_the_window_is_delivered_once(a: Authenticator, b: Authenticator):
    """As above, but the echo was made before the held frame, so that the copy is above its floor."""
    probe = Message(MessageType.PROBE, B, A, ADDRESS_B, ADDRESS_A, claim(ADDRESS_B, B))
    nonce = parse_discovery_untrusted(b.seal(probe, 0.0))[0].nonce
    echo = a.seal(reply_to(replace(probe, nonce=nonce), A), 0.0)
    held = a.seal(announce(), 0.0)
    assert b.open_untrusted(held, 0.0) == Held()
    (challenge,) = b.frames_to_send()
    assert len(deliver([echo, held], b)) == 2
    assert len(deliver([a.seal(announce(), 0.0) for _ in range(100)], b)) == 100
    deliver([challenge], a)
    assert deliver(a.frames_to_send(), b) == []


def test_window_takes_64_frames_out_of_order_and_not_one_older(a: Authenticator, b: Authenticator):
    introduce(b, a, A)
    frames = [a.seal(announce(stamp=n), 0.0) for n in range(auth.WINDOW_FRAMES + 1)]
    assert len(deliver([frames[-1]], b)) == 1
    assert len(deliver(frames[1:-1][::-1], b)) == auth.WINDOW_FRAMES - 1
    assert isinstance(b.open_untrusted(frames[0], 0.0), Refused)


def test_a_jump_over_the_window_forgets_nothing_that_was_seen(a: Authenticator, b: Authenticator):
    introduce(b, a, A)
    frames = [a.seal(announce(), 0.0) for _ in range(300)]
    assert len(deliver([frames[0], frames[299], frames[298]], b)) == 3
    assert deliver([frames[0], frames[299], frames[298], frames[299 - 64]], b) == []


def test_other_key_other_cluster_and_unknown_algorithm_are_refused(a: Authenticator):
    frame = a.seal(announce(), 0.0)
    other_key = host(B, 0xB1, KeyRing((Key(1, bytes(range(1, 33)), send=True),)))
    other_id = host(B, 0xB1, KeyRing((replace(NEW, send=True),)))
    other_cluster = host(B, 0xB1, cluster="production")
    for receiver in (other_key, other_id, other_cluster):
        result = receiver.open_untrusted(frame, 0.0)
        assert isinstance(result, Refused)
        assert result.reason is DropReason.DISCOVERY_AUTH
        assert receiver.frames_to_send() == [], "a frame without a good tag never causes a challenge"
    unknown = bytearray(frame)
    unknown[45] = 2
    assert host(B, 0xB1).open_untrusted(bytes(unknown), 0.0) == Refused(DropReason.DISCOVERY_AUTH, "key 1, algorithm 2")


def test_keys_rotate_with_no_frame_refused(a: Authenticator, b: Authenticator):
    introduce(b, a, A)
    introduce(a, b, B)
    steps = [
        KeyRing((OLD, NEW)),
        KeyRing((replace(OLD, send=False), replace(NEW, send=True))),
        KeyRing((replace(NEW, send=True),)),
    ]
    for now, ring in enumerate(steps, 2):
        for changed, other in ((a, b), (b, a)):
            changed.replace_keys(ring)
            assert len(deliver([a.seal(announce(), now)], b, now)) == 1
            assert len(deliver([b.seal(announce(B), now)], a, now)) == 1
            assert changed.frames_to_send() == other.frames_to_send() == []


def test_host_that_still_sends_with_a_removed_key_is_a_stranger(a: Authenticator, b: Authenticator):
    introduce(b, a, A)
    b.replace_keys(KeyRing((replace(NEW, send=True),)))
    assert not b.is_peer(A)
    result = b.open_untrusted(a.seal(announce(), 1.0), 1.0)
    assert result == Refused(DropReason.DISCOVERY_AUTH, "key 1, algorithm 1")


def test_host_is_challenged_at_most_once_a_second(b: Authenticator):
    assert b.challenge(A, 0.0)
    assert not b.challenge(A, auth.CHALLENGE_INTERVAL_S - 0.01)
    assert b.challenge(A, auth.CHALLENGE_INTERVAL_S)
    assert len(b.frames_to_send()) == 2


def test_own_and_group_addresses_are_never_challenged(b: Authenticator):
    assert not b.challenge(B, 0.0)
    assert not b.challenge(GROUP, 0.0)


def test_flood_of_forged_data_frames_leaves_room_for_keyholders(a: Authenticator, b: Authenticator):
    forged = [bytes([2, 0, 0, 0, n >> 8, n & 255]) for n in range(2 * auth.MAX_UNPROVOKED_CHALLENGES)]
    assert sum(b.challenge(pmac, 0.0) for pmac in forged) == auth.MAX_UNPROVOKED_CHALLENGES
    b.frames_to_send()
    assert b.open_untrusted(a.seal(announce(), 0.0), 0.0) == Held()
    assert len(b.frames_to_send()) == 1


def test_lost_challenge_is_repeated_and_the_held_frame_still_counts(a: Authenticator, b: Authenticator):
    b.open_untrusted(a.seal(announce(), 0.0), 0.0)
    assert len(b.frames_to_send()) == 1, "and it is lost"
    assert b.next_timer() == auth.CHALLENGE_INTERVAL_S
    assert b.on_timer(1.0) == []
    deliver(b.frames_to_send(), a, 1.0)
    assert len(deliver(a.frames_to_send(), b, 1.0)) == 1
    assert b.next_timer() is None


def test_held_frame_is_given_up_with_its_reason(a: Authenticator, b: Authenticator):
    b.open_untrusted(a.seal(announce(), 0.0), 0.0)
    refused = [r for now in (1.0, 2.0, 3.0) for r in b.on_timer(now)]
    assert refused == [Refused(DropReason.DISCOVERY_UNCHALLENGED, "no answer for a ANNOUNCE")]
    assert b.next_timer() is None
    assert len(b.frames_to_send()) == 3


def test_frames_held_per_host_and_in_total_are_bounded(b: Authenticator):
    full = Refused(DropReason.DISCOVERY_UNCHALLENGED, "too many frames wait for a challenge")
    held = 0
    for number in range(auth.HELD_TOTAL // auth.HELD_PER_PEER):
        pmac = bytes([2, 0, 0, 1, 0, number])
        sender = host(pmac, number)
        results = [b.open_untrusted(sender.seal(announce(pmac), 0.0), 0.0) for _ in range(auth.HELD_PER_PEER + 1)]
        assert results[-1] == full
        held += results.count(Held())
    assert held == auth.HELD_TOTAL
    assert b.open_untrusted(host(A, 1).seal(announce(), 0.0), 0.0) == full
    refused = [*b.on_timer(1.0), *b.on_timer(auth.HELD_LIFETIME_S)]
    assert len(refused) == auth.HELD_TOTAL
    assert b.open_untrusted(host(A, 1).seal(announce(), 4.0), 4.0) == Held()


def test_peer_table_forgets_the_least_recently_heard(monkeypatch: pytest.MonkeyPatch, b: Authenticator):
    monkeypatch.setattr(auth, "MAX_PEERS", 2)
    c, d = host(C, 0xC1), host(bytes([2, 0, 0, 0, 0, 4]), 0xD1)
    a = host(A, 0xA1)
    introduce(b, a, A)
    introduce(b, c, C)
    deliver([a.seal(announce(), 0.0)], b)
    introduce(b, d, bytes([2, 0, 0, 0, 0, 4]))
    assert b.is_peer(A)
    assert not b.is_peer(C)
    assert b.peer_count == 2


def test_nonce_table_forgets_the_oldest_question(monkeypatch: pytest.MonkeyPatch, a: Authenticator, b: Authenticator):
    monkeypatch.setattr(auth, "MAX_NONCES", 2)
    nonces = [parse_discovery_untrusted(a.seal(request(n), 0.0))[0].nonce for n in (1, 2, 3)]
    assert len(set(nonces)) == 3
    assert a.open_untrusted(b.seal(reply_to(replace(request(), nonce=nonces[0])), 0.0), 0.0) == Held()
    (proven,) = deliver([b.seal(reply_to(replace(request(), nonce=nonces[1])), 0.0)], a)
    assert proven.nonce == 2


def test_challenges_of_unknown_sessions_are_answered_at_a_bounded_rate(
    monkeypatch: pytest.MonkeyPatch, a: Authenticator
):
    monkeypatch.setattr(auth, "ANSWERS_PER_S", 3)
    a = host(A, 0xA1)
    challengers = [host(bytes([2, 0, 0, 0, 9, n]), n) for n in range(5)]
    for challenger in challengers:
        challenger.challenge(A, 0.0)
    results = [a.open_untrusted(c.frames_to_send()[0], 0.0) for c in challengers]
    assert results[:3] == [Opened()] * 3
    assert [r.reason for r in results[3:] if isinstance(r, Refused)] == [DropReason.DISCOVERY_RATE_LIMITED] * 2
    assert len(a.frames_to_send()) == 3
    late = host(bytes([2, 0, 0, 0, 9, 9]), 9)
    late.challenge(A, 1.0)
    assert a.open_untrusted(late.frames_to_send()[0], 1.0) == Opened()


def test_answering_a_challenge_teaches_nothing_about_the_challenger(a: Authenticator, b: Authenticator):
    b.challenge(A, 0.0)
    deliver(b.frames_to_send(), a)
    assert not a.is_peer(B)


def test_garbage_is_refused_as_malformed(b: Authenticator):
    result = b.open_untrusted(b"\x00" * 60, 0.0)
    assert isinstance(result, Refused)
    assert result.reason is DropReason.DISCOVERY_MALFORMED


def test_message_of_another_host_is_not_sealed(b: Authenticator):
    with pytest.raises(ValueError, match="another host"):
        b.seal(announce(A), 0.0)
