"""The hand-over channel on loopback: keyholders speak, strangers are refused, whoever of the two connects."""

import asyncio
import ssl
from ipaddress import ip_address

import pytest

from divhook.adapters.handover import Pinned, StrangerError, certificate
from divhook.agent.move_channel import Channel
from divhook.core.keys import Key, KeyRing
from divhook.core.moves.messages import MoveMessage, emit

OLD, NEW = Key(1, bytes(range(32)), send=True), Key(2, bytes(range(1, 33)), send=True)
OLD_ACCEPTED, NEW_ACCEPTED = Key(1, OLD.secret), Key(2, NEW.secret)
CLUSTER = "divhook"


async def spoken(server: Pinned, client: Pinned) -> list[tuple[MoveMessage, bytes]]:
    """What the server hears of a message that the client sends. Raises what either side raises first."""
    heard: list[tuple[MoveMessage, bytes]] = []
    ended = asyncio.get_running_loop().create_future()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer)
        try:
            server.check(writer.get_extra_info("ssl_object"))
            await channel.run(lambda kind, body: heard.append((kind, body)))
        finally:
            channel.close()
            ended.set_result(None)

    listener = await asyncio.start_server(served, "127.0.0.1", 0, ssl=server.server)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        channel = await Channel.connect(client, ip_address("127.0.0.1"), port, 5.0)
        channel.send(emit(MoveMessage.READY))
        reading = asyncio.ensure_future(channel.run(lambda kind, body: None))
        await asyncio.sleep(0.05)
        channel.close()
        await asyncio.wait([ended], timeout=5.0)
        await reading
    return heard


def pinned(*keys: Key, cluster: str = CLUSTER) -> Pinned:
    return Pinned(KeyRing(keys), cluster)


def test_the_certificate_is_the_same_on_every_host_and_another_for_each_key_and_cluster() -> None:
    assert certificate(OLD, CLUSTER) == certificate(OLD, CLUSTER)
    assert len({certificate(OLD, CLUSTER), certificate(NEW, CLUSTER), certificate(OLD, "other")}) == 3


@pytest.mark.parametrize(
    ("server", "client"),
    [
        (pinned(OLD), pinned(OLD)),
        (pinned(OLD, NEW_ACCEPTED), pinned(OLD)),
        (pinned(OLD, NEW_ACCEPTED), pinned(NEW, OLD_ACCEPTED)),
    ],
)
def test_keyholders_understand_each_other_also_while_the_key_is_rotated(server: Pinned, client: Pinned) -> None:
    assert asyncio.run(spoken(server, client)) == [(MoveMessage.READY, b"")]


@pytest.mark.parametrize(
    ("server", "client"), [(pinned(OLD), pinned(NEW)), (pinned(OLD), pinned(OLD, cluster="other"))]
)
def test_a_stranger_is_heard_by_nobody(server: Pinned, client: Pinned) -> None:
    with pytest.raises((ssl.SSLError, StrangerError, ConnectionError)):
        asyncio.run(spoken(server, client))


def test_a_channel_without_tls_shows_no_certificate() -> None:
    with pytest.raises(StrangerError):
        pinned(OLD).check(None)
