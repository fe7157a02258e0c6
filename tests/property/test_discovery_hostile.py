"""Discovery against hostile bytes: the parser returns or raises WireError; no altered frame is ever opened."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from divhook.core.addressing import ALL_HOSTS_GROUP
from divhook.core.auth import FRESH_S, Authenticator, Opened, Refused
from divhook.core.keys import Key, KeyRing
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import (
    CLAIMS_ON_SPA,
    ETHER_TYPE_ARP,
    ETHER_TYPE_LOCAL,
    MAGIC,
    MAX_PAYLOAD,
    TAG_LENGTH,
    TRAILER_OFFSET,
    Bitmaps,
    Claim,
    Envelope,
    Message,
    MessageType,
    emit,
    emit_bitmaps,
    parse_bitmaps_untrusted,
    parse_discovery_untrusted,
)
from divhook.core.wire.errors import WireError

RING = KeyRing((Key(7, bytes(range(32)), send=True),))
A = bytes.fromhex("020a0b0c0d01")
B = bytes.fromhex("020a0b0c0d02")

u64 = st.integers(0, 2**64 - 1)
any_mac = st.binary(min_size=6, max_size=6)
host_mac = any_mac.map(lambda mac: bytes([mac[0] & 0xFE | 2]) + mac[1:])
address = st.binary(min_size=4, max_size=4)


@st.composite
def messages(draw: st.DrawFn, source: st.SearchStrategy[bytes] = host_mac) -> Message:
    kind = draw(st.sampled_from(MessageType))
    spa, tpa = draw(st.one_of(address, st.just(bytes(4)))), draw(address)
    claim = None
    if draw(st.booleans()):
        spoken_of = spa if kind in CLAIMS_ON_SPA and any(spa) else tpa
        numbers = [draw(u64) for _ in range(4)]
        claim = Claim(spoken_of, draw(host_mac), draw(host_mac), *numbers, tentative=draw(st.booleans()))
    payload = draw(st.binary(max_size=40))
    return Message(kind, draw(source), draw(any_mac), spa, tpa, claim, draw(u64), payload)


envelopes = st.builds(
    Envelope,
    u64,
    u64,
    st.integers(0, 255),
    st.integers(0, 255),
    st.sampled_from([ETHER_TYPE_ARP, ETHER_TYPE_LOCAL]),
)


T = TypeVar("T")
CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted((CORPUS / "discovery").glob("*.bin"), key=lambda path: path.stem)
DESCRIBED = (CORPUS / "README.md").read_text().split("## discovery\n")[1].split("\n## ")[0]


def parsed_or_refused(parse: Callable[[bytes], T], data: bytes) -> T | None:
    """None where the parser refuses with the one declared error; any other goes on to the test."""
    try:
        return parse(data)
    except WireError as error:
        if error.reason is not DropReason.DISCOVERY_MALFORMED:
            raise
        return None


def mutated(frame: bytes, at: int, octets: bytes) -> bytes:
    at %= len(frame)
    return frame[:at] + octets + frame[at + len(octets) :]


@given(st.binary(max_size=200))
@example(bytes(12) + b"\x81\x00")
@example(bytes(TRAILER_OFFSET) + MAGIC)
def test_any_bytes_are_parsed_or_refused(frame: bytes):
    parsed_or_refused(parse_discovery_untrusted, frame)


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_input_of_the_corpus_ends_as_described(path: Path):
    (outcome,) = re.findall(rf"^\| {path.stem} \| (\w+) \|", DESCRIBED, re.MULTILINE)
    result = parsed_or_refused(parse_discovery_untrusted, path.read_bytes())
    assert outcome == ("accepted" if result else "discovery_malformed")


def test_corpus_is_described_whole():
    assert sorted(re.findall(r"^\| ([a-z0-9][a-z0-9-]+) \| (?!outcome)", DESCRIBED, re.MULTILINE)) == [
        p.stem for p in INPUTS
    ]


@given(messages(), envelopes, st.integers(0, 400), st.binary(max_size=12), st.integers(0, 300))
def test_any_bytes_near_a_frame_are_parsed_to_what_emits_them_or_refused(
    message: Message, envelope: Envelope, at: int, octets: bytes, keep: int
):
    frame = mutated(emit(message, envelope) + bytes(TAG_LENGTH), at, octets)[: keep + 60]
    result = parsed_or_refused(parse_discovery_untrusted, frame)
    if result is not None:
        parsed, how, tag, covered = result
        assert emit(parsed, how) == covered
        assert len(tag) == TAG_LENGTH
        assert len(parsed.payload) <= MAX_PAYLOAD


@given(messages(), envelopes, st.binary(max_size=30))
def test_what_is_emitted_is_parsed(message: Message, envelope: Envelope, padding: bytes):
    covered = emit(message, envelope)
    tag = bytes(range(TAG_LENGTH))
    assert parse_discovery_untrusted(covered + tag + padding) == (message, envelope, tag, covered)


@given(st.binary(max_size=80))
def test_any_census_payload_is_parsed_or_refused(payload: bytes):
    parsed_or_refused(parse_bitmaps_untrusted, payload)


host_numbers = st.sets(st.integers(0, 65_535), max_size=20).map(lambda numbers: sum(1 << n for n in numbers))


@given(host_numbers, host_numbers, host_numbers)
def test_bitmaps_survive_the_split(active: int, reserved: int, quarantined: int):
    together = Bitmaps()
    for payload in emit_bitmaps(Bitmaps(active, reserved, quarantined)):
        assert len(payload) <= MAX_PAYLOAD
        together |= parse_bitmaps_untrusted(payload)
    assert together == Bitmaps(active, reserved, quarantined)


def proven_pair() -> tuple[Authenticator, Authenticator]:
    """A and B, each with the other's session proven."""
    a, b = Authenticator(A, RING, 0xA1), Authenticator(B, RING, 0xB1)
    for one, other, pmac in ((a, b, B), (b, a, A)):
        one.challenge(pmac, 0.0)
        for frame in one.frames_to_send():
            other.open_untrusted(frame, 0.0)
        for frame in other.frames_to_send():
            one.open_untrusted(frame, 0.0)
        assert one.is_peer(pmac)
    return a, b


to_b = messages(st.just(A)).map(lambda m: replace(m, destination=B))


@given(to_b, st.data())
def test_no_altered_frame_is_opened(message: Message, data: st.DataObject):
    a, b = proven_pair()
    frame = a.seal(message, 0.0)
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    altered = bytearray(frame)
    altered[bit // 8] ^= 1 << bit % 8
    result = b.open_untrusted(bytes(altered), 0.0)
    assert isinstance(result, Refused)
    assert result.reason in (DropReason.DISCOVERY_AUTH, DropReason.DISCOVERY_MALFORMED)
    assert b.frames_to_send() == []


@given(to_b, any_mac)
def test_no_frame_is_opened_by_another_than_it_was_made_for(message: Message, other: bytes):
    a, b = proven_pair()
    frame = a.seal(message, 0.0)
    if other != B:
        assert isinstance(b.open_untrusted(other + frame[6:], 0.0), Refused)
        assert isinstance(Authenticator(other, RING, 0xC1).open_untrusted(frame, 0.0), Refused)
    assert isinstance(a.open_untrusted(frame, 0.0), Refused), "reflected"


ACTIONS = {"announce": 8, "ask": 4, "challenge": 8, "restart a": 2, "restart b": 1, "later": 8, "deliver": 70}


@pytest.mark.parametrize("seed", range(20))
def test_attacker_that_records_and_replays_gets_nothing_believed_twice_late_or_of_an_ended_life(seed: int):
    """A announces, and answers what B asks; the attacker alone decides what of it, of challenges and their answers is
    delivered, to both, when and how often.

    B believes a message at most once in a life of B, none older than the freshness bound before that life began, and
    once it has believed one of a life of A, none of an earlier life. Random walks reach deeper here than Hypothesis.
    """
    for walk in range(40):
        attack(random.Random(1000 * seed + walk))


def attack(rng: random.Random) -> None:
    """One walk of 150 actions."""
    now, lives_a, lives_b, said = 0.0, 1, 1, 0
    a, b = Authenticator(A, RING, 0xA01), Authenticator(B, RING, 0xB01)
    tape: list[bytes] = []
    made: dict[int, float] = {}  # stamp -> when
    believed: set[int] = set()
    believed_life, born_b = 0, 0.0

    def said_by_a(kind: MessageType, destination: bytes, nonce: int) -> bytes:
        nonlocal said
        said += 1
        made[said] = now
        claim = Claim(bytes([10, 7, 9, 21]), bytes.fromhex("525400aabb01"), A, said, 1, 2, 0)
        return a.seal(Message(kind, A, destination, bytes(4), claim.address, claim, nonce), now)

    for action in rng.choices(list(ACTIONS), list(ACTIONS.values()), k=150):
        if action == "announce":
            tape.append(said_by_a(MessageType.ANNOUNCE, ALL_HOSTS_GROUP, 0))
        elif action == "ask":
            tape.append(b.seal(Message(MessageType.PROBE, B, A, bytes(4), bytes([10, 7, 9, 21])), now))
        elif action == "challenge":
            b.challenge(A, now)
        elif action == "deliver" and tape:
            frame = rng.choice(tape[-3:] if rng.random() < 0.6 else tape)
            for_a, for_b = a.open_untrusted(frame, now), b.open_untrusted(frame, now)
            for message in for_a.messages if isinstance(for_a, Opened) else ():
                if message.type is MessageType.PROBE:
                    tape.append(said_by_a(MessageType.REPLY, B, message.nonce))
            if isinstance(for_b, Opened) and for_b.messages:
                life = parse_discovery_untrusted(frame)[1].session - 0xA00
                assert life >= believed_life
                believed_life = life
                for message in for_b.messages:
                    if message.claim is not None:  # else the answer to a challenge
                        assert message.claim.stamp not in believed
                        assert made[message.claim.stamp] >= born_b - FRESH_S
                        believed.add(message.claim.stamp)
        elif action == "restart a":
            lives_a += 1
            a = Authenticator(A, RING, 0xA00 + lives_a)
        elif action == "restart b":
            lives_b += 1
            b = Authenticator(B, RING, 0xB00 + lives_b)
            born_b, believed, believed_life = now, set(), 0
        elif action == "later":
            now += rng.choice([0.01, 0.5, 1.0, 4.0])
            a.on_timer(now)
            b.on_timer(now)
        tape += a.frames_to_send() + b.frames_to_send()
