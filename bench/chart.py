"""Grouped bars as SVG, in the shape of the slides' evaluation: one group per scenario, one bar per contender.

unit ▲   ▄        ▄
     │ █ █ ▄    █ █ ▄     a thin line on each bar: from the lowest to the highest run
     └─────────────────▶  the figure above it: the median
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bench.results import CONTENDERS, SCENARIOS, Row

COLOURS = dict(
    zip(
        CONTENDERS,
        ("#d1495b", "#8f2d56", "#edae49", "#00798c", "#66a182", "#30638e", "#8d96a3", "#b5a7d6"),
        strict=True,
    )
)
SCENARIO_NAMES = dict(
    zip(SCENARIOS, ("Intra-subnet", "Inter-subnet (single VM TX)", "Inter-subnet (double VM TX)"), strict=True)
)
LEFT, TOP, RIGHT, BOTTOM = 70, 60, 20, 70
PLOT_HEIGHT = 320
BAR, GAP = 34, 40


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it belongs to, and its figures."""

    group: str
    series: str
    median: float
    low: float
    high: float


def nice_step(highest: float) -> float:
    """A round step that divides 0..highest into four to ten parts."""
    rough = highest / 8
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def figure(value: float) -> str:
    """Three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def grouped_bars(title: str, unit: str, bars: Sequence[Bar], limit: float | None = None) -> str:
    """An SVG document. Bars higher than `limit` are cut there, with a notch. Raises ValueError without bars."""
    if not bars:
        raise ValueError("a chart without bars")
    groups, series = list(dict.fromkeys(b.group for b in bars)), list(dict.fromkeys(b.series for b in bars))
    top = min(max(b.high for b in bars), limit or math.inf) * 1.05
    step = nice_step(top)
    group_width = len(series) * BAR + GAP
    width, height = LEFT + len(groups) * group_width + RIGHT, TOP + PLOT_HEIGHT + BOTTOM
    floor = TOP + PLOT_HEIGHT

    def y(value: float) -> float:
        return round(floor - min(value, top) / top * PLOT_HEIGHT, 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{width / 2}" y="24" text-anchor="middle" font-size="16">{escape(title)}</text>',
        f'<text x="{LEFT - 8}" y="{TOP - 14}" text-anchor="end">{escape(unit)}</text>',
    ]
    for number in range(int(top / step) + 1):
        level = y(number * step)
        out.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{level}" y2="{level}" stroke="#dddddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{level + 4}" text-anchor="end">{figure(number * step)}</text>')
    for bar in bars:
        x = LEFT + groups.index(bar.group) * group_width + GAP / 2 + series.index(bar.series) * BAR
        level, middle = y(bar.median), x + BAR / 2
        colour = COLOURS.get(bar.series, "#999999")
        name = escape(f"{bar.series}, {bar.group}: {figure(bar.median)} {unit}")
        out.append(
            f'<rect x="{x + 2}" y="{level}" width="{BAR - 4}" height="{round(floor - level, 1)}" fill="{colour}">'
            f"<title>{name}</title></rect>"
        )
        if bar.median > top:
            notch = f"M{x} {level + 16} l{BAR / 2} -8 l{BAR / 2} 8"
            out.append(f'<path d="{notch}" stroke="#ffffff" stroke-width="3" fill="none"/>')
        else:
            low, high = y(bar.low), y(bar.high)
            out.append(f'<line x1="{middle}" x2="{middle}" y1="{low}" y2="{high}" stroke="#000000"/>')
            level = high
        out.append(f'<text x="{middle}" y="{level - 4}" text-anchor="middle" font-size="9">{figure(bar.median)}</text>')
    for number, group in enumerate(groups):
        centre = LEFT + (number + 0.5) * group_width
        out.append(f'<text x="{centre}" y="{floor + 18}" text-anchor="middle">{escape(group)}</text>')
    across = (width - LEFT - RIGHT) / len(series)
    for number, name in enumerate(series):
        x = LEFT + number * across
        out.append(f'<rect x="{x}" y="{floor + 38}" width="12" height="12" fill="{COLOURS.get(name, "#999999")}"/>')
        out.append(f'<text x="{x + 16}" y="{floor + 48}" font-size="11">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _bars(rows: Sequence[Row], wanted: Mapping[tuple[str, str], str]) -> list[Bar]:
    """Bars of some (scenario, measure) pairs, under the group names given; in the order of groups and contenders."""
    found = {(row.scenario, row.measure, row.contender): row for row in rows}
    return [
        Bar(group, contender, row.median, row.min, row.max)
        for (scenario, measure), group in wanted.items()
        for contender in CONTENDERS
        if (row := found.get((scenario, measure, contender)))
    ]


def throughput(rows: Sequence[Row]) -> str:
    """The slides' chart: TCP throughput of one stream per sender."""
    wanted = {(scenario, "tcp1_gbps"): SCENARIO_NAMES[scenario] for scenario in SCENARIOS}
    return grouped_bars("VM network throughput, TCP", "Gb/s", _bars(rows, wanted))


def forwarding_cost(rows: Sequence[Row], in_kernel: Sequence[str]) -> str:
    """Forwarding cost; what forwards in a process (not `in_kernel`) would dwarf the rest, and is cut."""
    bars = _bars(
        rows,
        {
            ("intra", "fwd_cost_one_host_ns"): "Same host",
            ("intra", "fwd_cost_hosts_ns"): "Two hosts, intra-subnet",
            ("inter-single", "fwd_cost_hosts_ns"): "Two hosts, inter-subnet",
        },
    )
    limit = max((bar.high for bar in bars if bar.series in in_kernel), default=None)
    return grouped_bars("Forwarding cost per 64-byte frame, without generator and switch", "ns", bars, limit)
