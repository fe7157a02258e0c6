"""The agent's own resolver against a name server in a namespace: what it makes of answers good and bad."""

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from namespaces import Namespace

from divhook.adapters import resolver
from divhook.adapters.resolver import Answer, Resolver, ResolverError

pytestmark = [pytest.mark.require_root, pytest.mark.no_agent]

SERVER = bytes([127, 0, 0, 53])
NEGATIVE = "example.net. 900 IN SOA ns.example.net. root.example.net. 1 2 3 4 77"
POOL = Answer((b"\xc0\0\2\1", b"\xc0\0\2\2"), 60)
MANY = [f"192.0.2.{n}" for n in range(1, 101)]


class NameServer:
    """Answers by table from a thread of its own, over UDP and TCP: the ends of what a resolver must bear."""

    def __init__(self, space: Namespace) -> None:
        self.asked: list[tuple[str, str]] = []
        with space.entered():
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp.bind(("127.0.0.53", 53))
            self._tcp = socket.create_server(("127.0.0.53", 53))
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()

    def close(self) -> None:
        self._udp.close()
        self._tcp.close()

    def _serve_udp(self) -> None:
        while True:
            try:
                wire, whence = self._udp.recvfrom(4096)
                for reply in self._answer(wire, "udp"):
                    self._udp.sendto(reply, whence)
            except OSError:
                return

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection:
                length = struct.unpack("!H", connection.recv(2))[0]
                for reply in self._answer(connection.recv(length), "tcp"):
                    connection.sendall(struct.pack("!H", len(reply)) + reply)

    def _answer(self, wire: bytes, way: str) -> list[bytes]:
        query = dns.message.from_wire(wire)
        name = query.question[0].name.to_text(omit_final_dot=True)
        self.asked.append((name, way))
        reply = dns.message.make_response(query)
        match name.split(".")[0]:
            case "www":
                reply.answer = [
                    dns.rrset.from_text("www.example.net.", 300, "IN", "CNAME", "pool.example.net."),
                    dns.rrset.from_text("pool.example.net.", 60, "IN", "A", "192.0.2.1", "192.0.2.2"),
                ]
            case "gone":
                reply.set_rcode(dns.rcode.NXDOMAIN)
                reply.authority = [dns.rrset.from_text(*NEGATIVE.split(None, 4))]
            case "empty":
                reply.authority = [dns.rrset.from_text(*NEGATIVE.split(None, 4))]
            case "broken":
                reply.set_rcode(dns.rcode.SERVFAIL)
            case "many":
                reply.answer = [dns.rrset.from_text("many.example.net.", 5, "IN", "A", *MANY)]
                if way == "udp":
                    reply.answer, reply.flags = [], reply.flags | dns.flags.TC
            case "loop":
                reply.answer = [dns.rrset.from_text("loop.example.net.", 60, "IN", "CNAME", "loop.example.net.")]
            case "other":
                reply.question = [dns.rrset.from_text("www.example.net.", 0, "IN", "A")]
            case "noise":
                return [b"\x00" * 5, wire[:2] + b"\xff" * 40]
            case "forged":
                forged = dns.message.make_response(query)
                forged.id ^= 1
                forged.answer = [dns.rrset.from_text("forged.example.net.", 60, "IN", "A", "203.0.113.66")]
                reply.answer = [dns.rrset.from_text("forged.example.net.", 60, "IN", "A", "192.0.2.7")]
                return [forged.to_wire(), reply.to_wire()]
            case "silent":
                return []
        return [reply.to_wire()]


@pytest.fixture
def space() -> Iterator[Namespace]:
    made = Namespace(f"dns{os.getpid() % 10000}")
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def server(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    monkeypatch.setattr(resolver, "LIFETIME_S", 1.0)
    monkeypatch.setattr(resolver, "TIMEOUT_S", 0.5)
    made = NameServer(space)
    try:
        yield made
    finally:
        made.close()


def ask(space: Namespace, made: Callable[[], Resolver], *names: str) -> dict[str, Answer | str]:
    """Every name at once; an error as its text."""

    async def main() -> dict[str, Answer | str]:
        asking = made()
        found = await asyncio.gather(*(asking.resolve(f"{n}.example.net") for n in names), return_exceptions=True)
        answers: dict[str, Answer | str] = {}
        for name, each in zip(names, found, strict=True):
            assert isinstance(each, (Answer, ResolverError)), f"{name}: {each!r}"
            answers[name] = each if isinstance(each, Answer) else str(each)
        return answers

    with space.entered():
        return asyncio.run(main())


def test_answers_come_with_the_lowest_ttl_and_what_is_no_answer_with_its_reason(
    space: Namespace, server: NameServer
) -> None:
    names = ("www", "gone", "empty", "many", "broken", "loop", "other", "noise", "forged", "silent")
    found = ask(space, lambda: Resolver([SERVER]), *names)
    assert found["www"] == POOL
    assert found["gone"] == found["empty"] == Answer((), 77)
    many = found["many"]
    assert isinstance(many, Answer)
    assert (many.ttl_s, len(many.addresses)) == (5, 100)
    assert ("many.example.net", "tcp") in server.asked
    assert found["forged"] == Answer((b"\xc0\0\2\7",), 60), "an answer to another question is not ours"
    assert "SERVFAIL" in str(found["broken"])
    for name in ("loop", "other", "noise", "silent"):
        assert isinstance(found[name], str), name
        assert str(found[name]).startswith(("no answer within 1 s", "no usable answer")), found[name]


def test_servers_are_those_of_resolv_conf_read_again_when_it_changes(
    space: Namespace, server: NameServer, tmp_path: Path
) -> None:
    conf = tmp_path / "resolv.conf"
    refusal = f"{conf} names no server that is usable: put one there, or `resolvers:` into divhook.yaml"

    async def main() -> list[Answer | str]:
        asking = Resolver(resolv_conf=conf)
        found: list[Answer | str] = []
        for text in (None, "search example.org\n", "nameserver 127.0.0.53\noptions timeout:90\n"):
            if text is not None:
                conf.write_text(text)
            try:
                found.append(await asking.resolve("www.example.net"))
            except ResolverError as error:
                found.append(str(error))
        return found

    with space.entered():
        assert asyncio.run(main()) == [refusal, refusal, POOL]
    assert server.asked == [("www.example.net", "udp")]


def test_a_host_without_a_way_to_the_server_says_so(space: Namespace) -> None:
    (text,) = ask(space, lambda: Resolver([bytes([203, 0, 113, 1])]), "www").values()
    assert "203.0.113.1" in str(text) or "can't be reached" in str(text)
