"""Rows, medians, verdicts: all of the benchmark that is arithmetic.

A figure is measured once per round for every contender in turn, so that figures of one round belong together: ratios
are taken within a round, and their median is judged. Medians of each contender alone would let a slow second of this
machine fall on one of them.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CONTENDERS = (
    "divhook",
    "divhook-policy",
    "divhook-slow",
    "bridge",
    "bridge-nft",
    "vxlan-router",
    "ovs",
    "bare-redirect",
)
SCENARIOS = ("intra", "inter-single", "inter-double")
UNITS = {
    "tcp1_gbps": "Gb/s",
    "tcp8_gbps": "Gb/s",
    "udp64_pps": "1/s",
    "rr_p50_us": "us",
    "rr_p99_us": "us",
    "rr_p999_us": "us",
    "crr_per_s": "1/s",
    "cold_first_us": "us",
    "fwd_cost_ns": "ns",
    "fwd_cost_hosts_ns": "ns",
    "fwd_cost_one_host_ns": "ns",
    "fwd_cost_spread_ns": "ns",
    "cpu_ns_per_packet": "ns",
    "cpu_s_per_gb": "s/GB",
    "instructions_per_packet": "1",
}
"""Measures and their units. A measure may carry "@" and the number of endpoints known: fwd_cost_ns@100000. With
divhook-policy it is the number of rules."""
ENDPOINT_COUNTS = RULE_COUNTS = (10, 1_000, 100_000)


def unit(measure: str) -> str:
    """The unit of a measure. Raises KeyError for one that is not in UNITS."""
    return UNITS[measure.partition("@")[0]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of results.json."""

    contender: str
    scenario: str
    measure: str
    unit: str
    median: float
    min: float
    max: float
    runs: int


def shorten(value: float) -> float:
    """Four significant digits: more is noise."""
    return float(f"{value:.4g}")


@dataclass(slots=True)
class Samples:
    """Every single figure, by (contender, scenario, measure) and round."""

    rounds: dict[tuple[str, str, str], dict[int, float]] = field(default_factory=dict)

    def add(self, contender: str, scenario: str, measure: str, number: int, value: float) -> None:
        """Record one. Raises ValueError for a name that is in no list, or a figure that was recorded before."""
        if contender not in CONTENDERS or scenario not in SCENARIOS or measure.partition("@")[0] not in UNITS:
            raise ValueError(f"no such figure: {contender}, {scenario}, {measure}")
        series = self.rounds.setdefault((contender, scenario, measure), {})
        if number in series:
            raise ValueError(f"round {number} of {contender}, {scenario}, {measure} was recorded before")
        series[number] = value

    def rows(self) -> list[Row]:
        """The table, in the order of the lists above."""

        def place(key: tuple[str, str, str]) -> tuple[int, int, int, str]:
            contender, scenario, measure = key
            base = list(UNITS).index(measure.partition("@")[0])
            return SCENARIOS.index(scenario), base, CONTENDERS.index(contender), measure

        return [
            Row(
                *key,
                unit(key[2]),
                shorten(statistics.median(values)),
                shorten(min(values)),
                shorten(max(values)),
                len(values),
            )
            for key in sorted(self.rounds, key=place)
            if (values := list(self.rounds[key].values()))
        ]

    def ratios(self, over: tuple[str, str, str], under: tuple[str, str, str]) -> list[float]:
        """One series divided by another, round by round, where both have a figure."""
        first, second = self.rounds.get(over, {}), self.rounds.get(under, {})
        return [first[number] / second[number] for number in sorted(first) if second.get(number)]


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio that is asked for: at most (or at least) `bound`."""

    text: str
    over: tuple[str, str, str]
    under: tuple[str, str, str]
    bound: float
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured for a target. median None: nothing was. limit: with the bare redirect in divhook's place."""

    target: Target
    median: float | None
    min: float = 0.0
    max: float = 0.0
    limit: float | None = None

    @property
    def met(self) -> bool | None:
        """None where nothing was measured."""
        if self.median is None:
            return None
        return self.median >= self.target.bound if self.target.at_least else self.median <= self.target.bound


def _against(text: str, scenario: str, measure: str, other: str, bound: float, at_least: bool = False) -> Target:
    return Target(text, ("divhook", scenario, measure), (other, scenario, measure), bound, at_least)


FORWARDING = {"fwd_cost_hosts_ns": "hosts", "fwd_cost_ns": "hosts and switch"}
TARGETS = (
    *(
        _against(f"forwarding cost, {words}, same subnet, of {whose}", "intra", measure, other, bound)
        for measure, words in FORWARDING.items()
        for whose, other, bound in (
            ("the bridge's", "bridge", 0.75),
            ("the bare redirect's", "bare-redirect", 1.15),
            ("VXLAN's", "vxlan-router", 0.5),
        )
    ),
    *(
        Target(
            f"forwarding cost, {words}, routed, of same subnet",
            ("divhook", "inter-single", measure),
            ("divhook", "intra", measure),
            1.03,
        )
        for measure, words in FORWARDING.items()
    ),
    *(
        _against(
            f"TCP, {streams} stream{'s' * (streams > 1)}, {words}", scenario, f"tcp{streams}_gbps", other, bound, True
        )
        for scenario, words, other, bound in (
            ("intra", "same subnet, of the bridge's", "bridge", 1.0),
            ("inter-single", "routed, one sends, of VXLAN and a router's", "vxlan-router", 2.0),
            ("inter-double", "routed, both send, of VXLAN and a router's", "vxlan-router", 2.0),
        )
        for streams in (1, 8)
    ),
    _against("round trip p99, same subnet, of the bridge's", "intra", "rr_p99_us", "bridge", 1.0),
    _against("connect-request-response, same subnet, of the bridge's", "intra", "crr_per_s", "bridge", 1.0, True),
    Target(
        "forwarding cost, 100,000 endpoints, of 10",
        ("divhook", "intra", "fwd_cost_ns@100000"),
        ("divhook", "intra", "fwd_cost_ns@10"),
        1.05,
    ),
    Target(
        "with policy: connect-request-response, of bridge and nftables",
        ("divhook-policy", "intra", "crr_per_s"),
        ("bridge-nft", "intra", "crr_per_s"),
        1.5,
        True,
    ),
    Target(
        "with policy: connect-request-response, 100,000 rules, of 10",
        ("divhook-policy", "intra", "crr_per_s@100000"),
        ("divhook-policy", "intra", "crr_per_s@10"),
        0.95,
        True,
    ),
    Target(
        "with policy: packets/s of a flow, 100,000 rules, of 10",
        ("divhook-policy", "intra", "udp64_pps@100000"),
        ("divhook-policy", "intra", "udp64_pps@10"),
        0.95,
        True,
    ),
)


WORDS: Mapping[bool | None, str] = {True: "met", False: "NOT MET", None: "not measured"}


def judge(samples: Samples, targets: Iterable[Target] = TARGETS) -> list[Verdict]:
    """Every target against the median of its ratios, and beside it what is possible at all."""
    verdicts = []
    for target in targets:
        ratios = samples.ratios(target.over, target.under)
        over, under = (_limit(key) for key in (target.over, target.under))
        bare = samples.ratios(over, under) if over != under else []
        limit = statistics.median(bare) if bare else None
        if ratios:
            verdicts.append(Verdict(target, statistics.median(ratios), min(ratios), max(ratios), limit))
        else:
            verdicts.append(Verdict(target, None, limit=limit))
    return verdicts


def _limit(key: tuple[str, str, str]) -> tuple[str, str, str]:
    return ("bare-redirect", *key[1:]) if key[0] == "divhook" else key


def table(rows: Sequence[Row]) -> str:
    """Rows as text: a block for each scenario and measure, contenders below each other."""
    lines, heading = [], ("", "")
    for row in rows:
        if (row.scenario, row.measure.partition("@")[0]) != heading:
            heading = (row.scenario, row.measure.partition("@")[0])
            lines.append(f"{row.scenario}, {heading[1]} ({row.unit})")
        name = row.contender + row.measure[len(heading[1]) :]
        lines.append(f"  {name:22}{row.median:>12,.6g}{row.min:>12,.6g} …{row.max:>11,.6g}   {row.runs} runs")
    return "\n".join(lines)


def matrix(rows: Sequence[Row]) -> str:
    """Medians as Markdown: a table per scenario, a line per measure, a column per contender."""
    found = {(row.scenario, row.measure, row.contender): row for row in rows}
    parts = []
    for scenario in SCENARIOS:
        here = [row for row in rows if row.scenario == scenario]
        names = [name for name in CONTENDERS if any(row.contender == name for row in here)]
        lines = [f"| {' | '.join([scenario, 'unit', *names])} |", "| --- | --- |" + " ---: |" * len(names)]
        for measure in dict.fromkeys(row.measure for row in here):
            cells = [f"{row.median:,.6g}" if (row := found.get((scenario, measure, name))) else "" for name in names]
            lines.append(f"| {' | '.join([measure, unit(measure), *cells])} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(part for part, scenario in zip(parts, SCENARIOS, strict=True) if part.count("\n") > 2)


def _verdict_cells(verdict: Verdict) -> list[str]:
    """Text, target, median, spread, what the bare redirect reaches, in words."""
    target = verdict.target
    measured = verdict.median is not None
    return [
        target.text,
        f"{'≥' if target.at_least else '≤'} {target.bound:.2f}",
        f"{verdict.median:.3f}" if measured else "",
        f"{verdict.min:.3f} … {verdict.max:.3f}" if measured else "",
        f"{verdict.limit:.3f}" if verdict.limit is not None else "",
        WORDS[verdict.met],
    ]


VERDICT_HEAD = ["divhook", "target", "median", "min … max", "bare redirect", ""]


def verdict_matrix(verdicts: Iterable[Verdict]) -> str:
    """Verdicts as Markdown."""
    lines = [VERDICT_HEAD, ["---", "---:", "---:", "---:", "---:", "---"], *map(_verdict_cells, verdicts)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def verdict_table(verdicts: Iterable[Verdict]) -> str:
    """Verdicts as text."""
    lines = [VERDICT_HEAD, *map(_verdict_cells, verdicts)]
    return "\n".join(f"{a:72}{b:>8}{c:>9}{d:>16}{e:>15}   {f}".rstrip() for a, b, c, d, e, f in lines)
