"""Figures of discovery at scale; run with -s to see them."""

from simulator import Faults, Guest, World

from divhook.core.addressing import SubnetId
from divhook.core.discovery import Outcome
from divhook.core.reasons import DropReason
from divhook.core.wire.discovery import Message, MessageType

HOSTS = 200
SUBNETS = 200
PER_SUBNET = 50
ROUNDS = 60


def test_10000_endpoints_on_200_hosts_find_each_other_at_20_percent_loss(capsys):
    world = World(2009, HOSTS, faults=Faults(loss=0.2, delay_s=(0.00005, 0.002)), lean=True)
    home = {}
    for subnet in range(SUBNETS):
        for n in range(PER_SUBNET):
            address = world.plan.address(SubnetId(1 + subnet // 4, subnet % 4), 2 + n)
            guest = Guest(address, bytes((0x52, 0x54, 0, 0xAA, subnet, n)), subnet << 8 | n)
            home[guest] = world.rng.choice(world.hosts)
            world.start(guest, home[guest])
    world.run(1)
    announced = world.sent[MessageType.ANNOUNCE]
    guests = list(home)
    neighbour = PER_SUBNET  # the same host number in the next subnet
    pairs = [(g, guests[(i + 1) % len(guests)]) for i, g in enumerate(guests)]
    pairs += [(g, guests[(i + neighbour) % len(guests)]) for i, g in enumerate(guests) if i % 4 == 0]
    before = world.sent.copy()
    woken = world.woken_by_host.total()

    def converge(limit: int) -> int:
        for done in range(limit):
            frames = [
                (pair, world.talk(home[pair[0]], pair[0].address, pair[1].address)) for pair in pairs if pair in missing
            ]
            world.run(1)
            missing.difference_update(pair for pair, frame in frames if frame is not None and frame.delivered)
            if not missing:
                return done + 1
        raise AssertionError(f"{len(missing)} of {len(pairs)} pairs never talked")

    missing = set(pairs)
    rounds = converge(ROUNDS)
    asked = world.sent - before
    remote = sum(home[a] is not home[b] for a, b in pairs)
    per_resolution = asked.total() / remote
    busiest = max(world.sent_by_host.values())
    woken_per_resolution = (world.woken_by_host.total() - woken) / remote

    moved = set(world.rng.sample(guests, len(guests) // 20))
    for guest in guests:
        if guest not in moved:
            continue
        world.stop(guest.address, home[guest])
        home[guest] = world.rng.choice(world.hosts)
        world.start(guest, home[guest])
    world.run(1)
    missing = {pair for pair in pairs if pair[0] in moved or pair[1] in moved}
    again = converge(ROUNDS)
    for source, target in pairs:
        agent = home[source].agent
        if home[source] is not home[target]:
            assert agent.neighbours.get(target.address).found.claim.host == home[target].pmac
    with capsys.disabled():
        print(
            f"\n{HOSTS} hosts, {len(guests)} endpoints, 20 % loss: {remote} resolutions in {rounds} s; "
            f"{per_resolution:.2f} frames and {woken_per_resolution:.0f} wake-ups each; at most {busiest} frames from "
            f"one host; {announced / len(guests):.2f} announcements per start; "
            f"{len(moved)} endpoints moved, found again in {again} s"
        )
    assert announced == 3 * len(guests)
    assert per_resolution < 4
    assert busiest < 3 * 50 * len(guests) / HOSTS


def test_scan_of_the_whole_plan_by_one_guest_stays_within_the_miss_limits(capsys):
    """65,536 addresses of a cell in 30 seconds: nobody is there."""
    world = World(7, 2)
    attacker = Guest(world.plan.address(SubnetId(5, 5), 66), b"\x52\x54\x00\x66\x66\x66", 666)
    neighbour = Guest(world.plan.address(SubnetId(5, 5), 67), b"\x52\x54\x00\x67\x67\x67", 667)
    friend = Guest(world.plan.address(SubnetId(5, 5), 68), b"\x52\x54\x00\x68\x68\x68", 668)
    host, other = world.hosts
    world.start(attacker, host)
    world.start(neighbour, host)
    world.start(friend, other)
    world.run(1)
    agent = host.agent
    requests: list[float] = []
    world.watch = lambda m: requests.append(world.now) if m.type is MessageType.REQUEST else None
    outcomes: dict[object, int] = {}
    started = world.now
    for value in range(65536):
        address = bytes((10, 5, value >> 8, value & 255))
        if address not in (attacker.address, neighbour.address, friend.address):
            answer = agent.resolve(address, 1, attacker.address, world.now)
            outcomes[answer] = outcomes.get(answer, 0) + 1
        if value % 128 == 0:
            world.after_call(host)
            world.run(30 / 512)
        if value == 30000:
            frame = world.talk(host, neighbour.address, friend.address)
    elapsed = world.now - started
    world.run(1)
    misses = outcomes[Outcome.PENDING]
    with capsys.disabled():
        print(f"\nscan of 65,536 addresses in {elapsed:.0f} s: {misses} misses, {len(requests)} requests on the wire")
    assert misses <= 20 * elapsed + 20
    assert len(requests) <= 3 * misses + 3
    assert max(sum(1 for r in requests if t <= r < t + 1) for t in requests) <= 3 * 40 + 3
    assert outcomes[DropReason.RESOLVE_RATE_PORT] > 60000
    assert frame.delivered  # the attacker's limit is not its neighbour's
    assert len(agent.neighbours) < 20 * 62 + 50
    world.run(200)
    assert len(agent.neighbours) <= 1  # negative entries are forgotten


def test_refresh_traffic_is_two_frames_per_minute_and_entry_in_use():
    world = World(8, 2)
    a, b = (Guest(world.plan.address(SubnetId(5, 5), n), bytes((0x52, 0x54, 0, 1, 1, n)), n) for n in (10, 11))
    world.start(a, world.hosts[0])
    world.start(b, world.hosts[1])
    world.run(1)
    seen: list[Message] = []
    world.talk(world.hosts[0], a.address, b.address)
    world.run(1)
    world.watch = seen.append
    for _ in range(500):
        world.talk(world.hosts[0], a.address, b.address)
        world.run(1)
    kinds = {kind: sum(m.type is kind for m in seen) for kind in MessageType}
    assert 8 <= kinds[MessageType.PROBE] <= 2 * 10  # one probe may refresh the entries of both ends
    assert kinds[MessageType.REPLY] == kinds[MessageType.PROBE]
    assert kinds[MessageType.REQUEST] == 0
