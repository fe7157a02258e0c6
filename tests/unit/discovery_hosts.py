"""A perfect little wire for unit tests of discovery: messages arrive at once, in order, unless `cut` says otherwise."""

import random

from divhook.core.addressing import ALL_HOSTS_GROUP, Address, AddressPlan, Mac, parse_address, parse_mac
from divhook.core.discovery import Discovery, Event, Limits
from divhook.core.wire.discovery import Claim, Message, MessageType

PLAN = AddressPlan()
HOST_A = parse_mac("52:54:00:0a:11:01")
HOST_B = parse_mac("52:54:00:0b:22:02")
HOST_C = parse_mac("52:54:00:0c:33:03")
WEB = parse_address("10.3.7.21")  # the endpoint that moves between hosts in these tests
WEB_MAC = parse_mac("52:54:00:77:15:01")
WEB_ID = 0x1122334455667788
DB = parse_address("10.3.9.34")  # a talker, on another subnet
DB_MAC = parse_mac("52:54:00:99:22:02")
DB_ID = 0x99AABBCCDDEEFF01
NOBODY = parse_address("10.3.7.99")
WALL_US = 1_700_000_000_000_000
START_S = 1000.0


def claim_of(
    host: Mac, stamp: int, address: Address = WEB, guest_id: int = WEB_ID, born: int = 5, tentative: bool = False
) -> Claim:
    """A claim as a host would make it."""
    return Claim(address, WEB_MAC, host, stamp, born, guest_id, 0, tentative)


class Wire:
    """Hosts by pmac, a clock, and a log of every message that was sent."""

    def __init__(self, *pmacs: Mac, limits: Limits | None = None, wall_us: dict[Mac, int] | None = None) -> None:
        self.now = START_S
        self.limits = limits or Limits()
        self.hosts: dict[Mac, Discovery] = {}
        self.cut: set[Mac] = set()  # hosts whose wire is cut
        self.log: list[Message] = []
        self.events: dict[Mac, list[Event]] = {}
        for pmac in pmacs:
            self.boot(pmac, WALL_US + (wall_us or {}).get(pmac, 0))

    def boot(self, pmac: Mac, wall_us: int = WALL_US, ready: bool = True) -> Discovery:
        """A new agent on a host; what the old one knew is lost."""
        host = self.hosts[pmac] = Discovery(pmac, PLAN, random.Random(pmac), wall_us, self.limits)
        self.events[pmac] = []
        if ready:
            host.ready(self.now)
        return host

    def settle(self) -> None:
        """Carry messages until nobody says anything more, without time going on."""
        for _ in range(1000):
            pending = [m for host in self.hosts.values() for m in host.messages_to_send()]
            if not pending:
                break
            for message in pending:
                self.log.append(message)
                self.deliver(message)
        else:
            raise AssertionError("hosts talk without end")
        for pmac, host in self.hosts.items():
            self.events[pmac] += host.events()

    def deliver(self, message: Message) -> None:
        """To its destination, or to everybody in case of a group."""
        if message.source in self.cut:
            return
        for pmac, host in self.hosts.items():
            group = bool(message.destination[0] & 1)
            if pmac not in self.cut and pmac != message.source and (group or message.destination == pmac):
                host.receive(message, self.now)

    def run(self, seconds: float) -> None:
        """Let time go on: timers run when they are due."""
        until = self.now + seconds
        self.settle()
        while True:
            timers = [t for host in self.hosts.values() if (t := host.next_timer()) is not None]
            when = min(timers, default=until + 1)
            if when > until:
                break
            self.now = max(self.now, when)
            for host in self.hosts.values():
                host.on_timer(self.now)
            self.settle()
        self.now = until

    def start_web(self, pmac: Mac, guest_id: int = WEB_ID) -> Claim:
        """Start the guest WEB."""
        return self.hosts[pmac].activate(WEB, WEB_MAC, guest_id, 0, None, self.now)

    def start_db(self, pmac: Mac) -> Claim:
        """Start the guest DB."""
        return self.hosts[pmac].activate(DB, DB_MAC, DB_ID, 0, None, self.now)

    def sent(self, kind: MessageType) -> list[Message]:
        """All messages of a type so far."""
        return [m for m in self.log if m.type is kind]

    def of(self, pmac: Mac, kind: type[Event]) -> list[Event]:
        """All events of a type so far on a host."""
        return [e for e in self.events[pmac] if isinstance(e, kind)]


def announce(claim: Claim) -> Message:
    """The ANNOUNCE of a claim."""
    return Message(MessageType.ANNOUNCE, claim.host, ALL_HOSTS_GROUP, bytes(4), claim.address, claim)
