"""moves.json, and what is said of it: one row per move, client place and subnet."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.moves.scene import Move
from bench.moves.traffic import Account, Conversation, Flow

PLACES = ("source", "destination", "third")
CONTENDERS = ("divhook", "bridge")
MEDIAN_OVER_MS, WORST_OVER_MS = 5.0, 20.0
"""How much longer than the guest's own pause, or silence, a client may see nothing of it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One client in one move; both directions together, gap_ms: of what comes to the client's NIC.

    silence_ms: between the same two datagrams at the mover's own NIC: of the gap, the guest's own part.

    lost: by the network. lost_in_guest: at the receiver's own socket. tap_dropped: of `lost`, those that a tap had no
    room for, of all clients in this move: a guest that gets no processor reads none. downtime_ms: libvirt's, of the
    guest's pause; pause_ms: the same by QEMU's own events on both hosts. tcp_stall_ms: of a connection that
    outlives all moves. hook_ms: for how long libvirt waited for divhook's hook, at both hosts together.
    """

    contender: str
    move: int
    source: str
    target: str
    client: str
    subnet: str
    sent: int
    lost: int
    lost_in_guest: int
    tap_dropped: int
    duplicated: int
    reordered: int
    gap_ms: float
    silence_ms: float | None
    gap_to_guest_ms: float
    downtime_ms: float | None
    pause_ms: float | None
    migrate_ms: float
    hook_ms: float
    tcp_stall_ms: float
    tcp_state: str


def rows(
    contender: str,
    number: int,
    move: Move,
    found: Conversation,
    sessions: dict[Flow, dict[str, object]],
    seen: Mapping[Flow, Mapping[int, float]],
    spoken: Mapping[Flow, Mapping[int, float]],
    tap_dropped: int,
) -> list[Row]:
    """Of one move."""
    made = []
    for flow, to_client in found.to_client.items():
        to_mover = found.to_mover[flow]
        both: tuple[Account, Account] = (to_client, to_mover)
        session = sessions[flow]
        first, last = longest_gap(seen[flow])
        silence_ms = spoken[flow].get(last, math.nan) - spoken[flow].get(first, math.nan)
        letter = flow.client[-1].upper()
        place = {move.source: "source", move.target: "destination"}.get(letter, "third")
        made.append(
            Row(
                contender,
                number,
                move.source,
                move.target,
                place,
                "same" if flow.subnet == "web" else "other",
                sum(each.sent for each in both),
                sum(each.network_lost for each in both),
                sum(each.overflowed for each in both),
                tap_dropped,
                sum(each.duplicated for each in both),
                sum(each.reordered for each in both),
                round(seen[flow].get(last, 0.0) - seen[flow].get(first, 0.0), 1),
                None if math.isnan(silence_ms) else round(silence_ms, 1),
                round(to_mover.gap_ms, 1),
                move.downtime_ms,
                None if move.pause_ms is None else round(move.pause_ms, 1),
                round(move.took_s * 1000),
                round(move.hook_ms, 1),
                round(float(str(session["stall_us"])) / 1000, 1),
                str(session["state"]),
            )
        )
    return made


def longest_gap(times: Mapping[int, float]) -> tuple[int, int]:
    """The two that arrived longest after each other, of datagrams by number; -1 twice where there are not two."""
    arrived = sorted(times, key=lambda number: times[number])
    return max(pairwise(arrived), key=lambda pair: times[pair[1]] - times[pair[0]], default=(-1, -1))


def over_ms(row: Row) -> float | None:
    """How much longer the client's gap was than libvirt's downtime."""
    return None if row.downtime_ms is None else row.gap_ms - row.downtime_ms


def added_ms(row: Row) -> float | None:
    """How much longer the client's gap was than the guest was silent itself."""
    return None if row.silence_ms is None else row.gap_ms - row.silence_ms


HEAD = (
    "",
    "client",
    "subnet",
    "moves",
    "sent",
    "lost",
    "in guest",
    "twice",
    "reordered",
    "gap ms",
    "gap − downtime ms",
    "gap − silence ms",
)


def table(found: Sequence[Row]) -> str:
    """Markdown: a line per contender, client place and subnet; medians, and the worst in brackets."""
    lines = ["| " + " | ".join(HEAD) + " |", "| --- | --- | --- " + "| ---: " * (len(HEAD) - 3) + "|"]
    for contender in CONTENDERS:
        for place in PLACES:
            for subnet in ("same", "other"):
                mine = [r for r in found if (r.contender, r.client, r.subnet) == (contender, place, subnet)]
                if mine:
                    lines.append(_line(contender, place, subnet, mine))
    return "\n".join(lines) + "\n"


def _line(contender: str, place: str, subnet: str, mine: Sequence[Row]) -> str:
    sums = (
        sum(getattr(r, name) for r in mine) for name in ("sent", "lost", "lost_in_guest", "duplicated", "reordered")
    )
    cells = [contender, place, subnet, str(len(mine)), *(f"{each:,}" for each in sums)]
    cells.append(_spread([r.gap_ms for r in mine]))
    for part in (over_ms, added_ms):
        cells.append(_spread([over for r in mine if (over := part(r)) is not None]))
    return "| " + " | ".join(cells) + " |"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({max(values):.1f})" if values else "not measured"


def hook_table(moves: Sequence[Move]) -> str:
    """Markdown: what divhook's hook adds to one migration, by operation: medians, and the worst in brackets."""
    operations: dict[tuple[str, str], list[float]] = {}
    for move in moves:
        for host, operation, took_ms in move.hooks_ms:
            operations.setdefault(("destination" if host == move.target else "source", operation), []).append(took_ms)
    if not operations:
        return ""
    lines = ["| hook | at the | ms |", "| --- | --- | ---: |"]
    lines += [f"| {operation} | {place} | {_spread(took)} |" for (place, operation), took in operations.items()]
    lines.append(f"| all of a migration | | {_spread([move.hook_ms for move in moves])} |")
    lines.append(f"| `virsh migrate` | | {_spread([move.took_s * 1000 for move in moves])} |")
    return "\n".join(lines) + "\n"


def verdicts(found: Sequence[Row]) -> list[tuple[str, bool, str]]:
    """(claim, whether it holds, figure) of divhook's rows."""
    mine = [row for row in found if row.contender == "divhook"]
    if not mine:
        return []
    lost, twice = sum(row.lost for row in mine), sum(row.duplicated for row in mine)
    at_taps = sum({row.move: row.tap_dropped for row in mine}.values())
    moves = len({row.move for row in mine})
    checks = [
        (
            f"no packet is lost by the network in {moves} moves",
            lost <= at_taps,
            f"{lost} of {sum(r.sent for r in mine):,}, {at_taps} at taps",
        ),
        ("none arrives twice", twice == 0, str(twice)),
        ("connections live on through all moves", all(r.tcp_state == "open" for r in mine), _states(mine)),
    ]
    for own, part in (("pause", over_ms), ("silence", added_ms)):
        over = [each for row in mine if (each := part(row)) is not None]
        if not over:
            checks.append((f"the guest's {own} is known", False, "of no move"))
            continue
        median, worst = statistics.median(over), max(over)
        limit = f"gap is at most the guest's own {own} + {MEDIAN_OVER_MS:g} ms at the median"
        checks.append((limit, median <= MEDIAN_OVER_MS, f"{median:+.1f} ms"))
        checks.append((f"and + {WORST_OVER_MS:g} ms at worst", worst <= WORST_OVER_MS, f"{worst:+.1f} ms"))
    return checks


def _states(mine: Sequence[Row]) -> str:
    return ", ".join(sorted({row.tcp_state for row in mine}))


def sentence(move: Sequence[Row]) -> str:
    """One line about one move."""
    lost, guest, sent, twice, reordered = (
        sum(getattr(row, name) for row in move) for name in ("lost", "lost_in_guest", "sent", "duplicated", "reordered")
    )
    row = max(move, key=lambda row: row.gap_ms)
    return (
        f"{row.contender} {row.source}→{row.target}, client at {row.client}: lost {lost} of {sent} (+{guest} at "
        f"sockets, taps of guests that did not read {row.tap_dropped}), twice {twice}, reordered {reordered}, "
        f"gap {row.gap_ms} ms, of it the guest's own silence {row.silence_ms}, downtime {row.downtime_ms} ms, "
        f"pause {row.pause_ms} ms, "
        f"TCP {_states(move)}, migrate {row.migrate_ms} ms"
    )
