"""One move as a client sees it, with divhook and on a bridge: each datagram a dot, each lost one a red line.

number ▲                 ······  to the client: when it arrived
       │ ·······         a gap is the guest's own pause, and what the network adds
       └───────────▶ ms
"""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from bench.moves.traffic import Account

WIDTH, HEIGHT, LEFT, TOP, SPACE = 460, 220, 60, 50, 60
BEFORE_MS, AFTER_MS = 150.0, 500.0
GREY, RED, COLOURS = "#8d96a3", "#d1495b", {"divhook": "#00798c", "bridge": "#edae49"}


def arrivals(moves: Sequence[tuple[str, str, Account, float | None]]) -> str:
    """An SVG: a panel for each (contender, title, account, downtime in ms). Raises ValueError without any."""
    if not moves:
        raise ValueError("a chart without moves")
    columns = min(2, len(moves))
    lines = -(-len(moves) // columns)
    size = (LEFT + columns * (WIDTH + SPACE), TOP + lines * (HEIGHT + SPACE + 20))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" font-family="sans-serif">']
    parts.append(f'<rect width="{size[0]}" height="{size[1]}" fill="white"/>')
    parts.append(f'<text x="{LEFT}" y="24" font-size="16">Arrivals of datagrams at 1,000/s over one move</text>')
    for index, (contender, title, found, downtime_ms) in enumerate(moves):
        x = LEFT + index % columns * (WIDTH + SPACE)
        y = TOP + index // columns * (HEIGHT + SPACE + 20)
        parts.append(f'<g transform="translate({x},{y})" font-size="11">')
        parts += _panel(contender, title, found, downtime_ms)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(contender: str, title: str, found: Account, downtime_ms: float | None) -> list[str]:
    came = [(n, at / 1000) for n, at in enumerate(found.arrivals_us) if at is not None]
    by_time = sorted(at for _, at in came)
    gap_begin = max(pairwise(by_time), key=lambda pair: pair[1] - pair[0])[0]
    first = max((n for n, at in came if at <= gap_begin), default=0)
    low, span = first - BEFORE_MS, BEFORE_MS + AFTER_MS

    def across(ms: float) -> float:
        return (ms - gap_begin + BEFORE_MS) / span * WIDTH

    def up(number: float) -> float:
        return HEIGHT - (number - low) / span * HEIGHT

    parts = [f'<text y="-6">{escape(contender)}: {escape(title)}; gap {found.gap_ms:.0f} ms, {found.lost} lost</text>']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="{GREY}"/>')
    if downtime_ms is not None:
        width = downtime_ms / span * WIDTH
        parts.append(f'<rect x="{across(gap_begin):.1f}" width="{width:.1f}" height="{HEIGHT}" fill="#eeeeee"/>')
        parts.append(f'<text x="{across(gap_begin) + 3:.1f}" y="12" fill="{GREY}">libvirt: {downtime_ms:.0f} ms</text>')
    for number, at in came:
        if 0 <= across(at) <= WIDTH and 0 <= up(number) <= HEIGHT:
            colour = COLOURS[contender]
            parts.append(f'<circle cx="{across(at):.1f}" cy="{up(number):.1f}" r="1.2" fill="{colour}"/>')
    for begin, count in found.missing:
        for number in range(begin, begin + count):
            if 0 <= up(number) <= HEIGHT:
                parts.append(f'<path d="M0 {up(number):.1f}h{WIDTH}" stroke="{RED}" stroke-width="0.3"/>')
    for ms in range(-100, int(AFTER_MS) + 1, 100):
        parts.append(f'<text x="{across(gap_begin + ms):.1f}" y="{HEIGHT + 14}" text-anchor="middle">{ms}</text>')
    parts.append(f'<text x="{WIDTH}" y="{HEIGHT + 28}" text-anchor="end">ms since the last one before the gap</text>')
    return parts
