"""Rows, ratios and verdicts of the benchmark."""

import dataclasses
import ipaddress
import json

import pytest

from bench.__main__ import publish
from bench.endpoints import COPIES_FROM, copy_address
from bench.plain import PREFIX, address, guest_specs
from bench.results import (
    CONTENDERS,
    SCENARIOS,
    TARGETS,
    Row,
    Samples,
    Target,
    judge,
    matrix,
    shorten,
    table,
    verdict_matrix,
    verdict_table,
)

TCP_OF_BRIDGE = Target("TCP", ("divhook", "intra", "tcp1_gbps"), ("bridge", "intra", "tcp1_gbps"), 1.0, at_least=True)
COST_OF_BRIDGE = Target("cost", ("divhook", "intra", "fwd_cost_ns"), ("bridge", "intra", "fwd_cost_ns"), 0.75)


def samples_of(measure: str, **series: list[float]) -> Samples:
    samples = Samples()
    for contender, values in series.items():
        for number, value in enumerate(values):
            samples.add(contender, "intra", measure, number, value)
    return samples


def test_a_row_has_exactly_the_fields_that_readers_of_results_json_expect():
    [row] = samples_of("rr_p50_us", bridge=[31.0, 29.0, 47.0]).rows()
    assert json.loads(json.dumps(dataclasses.asdict(row))) == {
        "contender": "bridge",
        "scenario": "intra",
        "measure": "rr_p50_us",
        "unit": "us",
        "median": 31.0,
        "min": 29.0,
        "max": 47.0,
        "runs": 3,
    }


def test_rows_come_by_scenario_measure_and_contender():
    samples = Samples()
    for contender in reversed(CONTENDERS):
        for scenario in reversed(SCENARIOS):
            samples.add(contender, scenario, "udp64_pps", 0, 1.0)
            samples.add(contender, scenario, "tcp1_gbps", 0, 1.0)
    order = [(row.scenario, row.measure, row.contender) for row in samples.rows()]
    assert order == [(s, m, c) for s in SCENARIOS for m in ("tcp1_gbps", "udp64_pps") for c in CONTENDERS]


def test_a_number_of_endpoints_is_part_of_the_measure_and_leaves_its_unit():
    [row] = samples_of("fwd_cost_ns@100000", divhook=[1400.0]).rows()
    assert (row.measure, row.unit) == ("fwd_cost_ns@100000", "ns")


@pytest.mark.parametrize(
    "key", [("Divhook", "intra", "tcp1_gbps"), ("ovs", "inter", "tcp1_gbps"), ("ovs", "intra", "x")]
)
def test_a_figure_that_is_in_no_list_is_refused(key):
    with pytest.raises(ValueError, match="no such figure"):
        Samples().add(*key, 0, 1.0)


def test_one_round_is_recorded_once():
    samples = samples_of("tcp1_gbps", divhook=[1.0])
    with pytest.raises(ValueError, match="round 0 of divhook"):
        samples.add("divhook", "intra", "tcp1_gbps", 0, 2.0)


def test_ratios_are_taken_within_a_round_so_that_a_slow_one_hurts_nobody():
    samples = samples_of("tcp1_gbps", divhook=[40.0, 4.0, 42.0], bridge=[20.0, 2.0, 21.0])
    assert samples.ratios(TCP_OF_BRIDGE.over, TCP_OF_BRIDGE.under) == [2.0, 2.0, 2.0]


def test_a_round_that_one_of_two_has_not_run_gives_no_ratio():
    samples = samples_of("tcp1_gbps", divhook=[40.0, 10.0], bridge=[20.0])
    assert samples.ratios(TCP_OF_BRIDGE.over, TCP_OF_BRIDGE.under) == [2.0]


@pytest.mark.parametrize(("divhook", "met"), [(0.74, True), (0.75, True), (0.76, False)])
def test_a_cost_meets_its_bound_from_below(divhook, met):
    [verdict] = judge(samples_of("fwd_cost_ns", divhook=[divhook], bridge=[1.0]), [COST_OF_BRIDGE])
    assert verdict.met is met


@pytest.mark.parametrize(("divhook", "met"), [(0.99, False), (1.0, True), (1.01, True)])
def test_a_throughput_meets_its_bound_from_above(divhook, met):
    [verdict] = judge(samples_of("tcp1_gbps", divhook=[divhook], bridge=[1.0]), [TCP_OF_BRIDGE])
    assert verdict.met is met


def test_what_was_not_measured_is_neither_met_nor_missed():
    verdicts = judge(Samples())
    assert [verdict.met for verdict in verdicts] == [None] * len(TARGETS)
    assert verdict_table(verdicts).count("not measured") == len(TARGETS)


def test_a_verdict_shows_what_the_bare_redirect_reaches_against_the_same():
    [verdict] = judge(
        samples_of("fwd_cost_ns", **{"divhook": [90.0], "bridge": [100.0], "bare-redirect": [80.0]}), [COST_OF_BRIDGE]
    )
    assert (verdict.median, verdict.limit, verdict.met) == (0.9, 0.8, False)


def test_the_bare_redirect_is_no_limit_of_its_own():
    target = Target("cost", ("divhook", "intra", "fwd_cost_ns"), ("bare-redirect", "intra", "fwd_cost_ns"), 1.15)
    [verdict] = judge(samples_of("fwd_cost_ns", **{"divhook": [90.0], "bare-redirect": [80.0]}), [target])
    assert (verdict.median, verdict.limit) == (1.125, None)


def test_every_target_is_of_figures_that_can_be_recorded():
    for target in TARGETS:
        for key in (target.over, target.under):
            Samples().add(*key, 0, 1.0)


def test_the_table_names_the_count_of_endpoints_beside_the_contender():
    text = table(samples_of("fwd_cost_ns@1000", divhook=[1423.9]).rows())
    assert text.splitlines()[0] == "intra, fwd_cost_ns (ns)"
    assert text.splitlines()[1].split() == ["divhook@1000", "1,424", "1,424", "…", "1,424", "1", "runs"]


def test_the_matrix_has_a_column_per_contender_and_leaves_out_what_was_not_measured():
    samples = samples_of("tcp1_gbps", divhook=[37.0], bridge=[31.0])
    samples.add("bridge", "intra", "fwd_cost_ns", 0, 1783.0)
    assert matrix(samples.rows()).splitlines() == [
        "| intra | unit | divhook | bridge |",
        "| --- | --- | ---: | ---: |",
        "| tcp1_gbps | Gb/s | 37 | 31 |",
        "| fwd_cost_ns | ns |  | 1,783 |",
    ]


def test_a_verdict_shows_target_figures_and_what_came_of_it():
    samples = samples_of("tcp1_gbps", divhook=[30.0, 22.0, 20.0], bridge=[20.0, 20.0, 20.0])
    assert verdict_matrix(judge(samples, [TCP_OF_BRIDGE])).splitlines()[-1] == (
        "| TCP | ≥ 1.00 | 1.100 | 1.000 … 1.500 |  | met |"
    )


def test_figures_keep_four_digits():
    assert [shorten(v) for v in (123456.0, 0.000123456, 1.0)] == [123500.0, 0.0001235, 1.0]


def test_all_guests_have_addresses_of_their_own_in_the_benchmarks_cell():
    addresses = [ipaddress.IPv4Address(address(spec.name)) for spec in guest_specs(40)]
    assert len(set(addresses)) == len(addresses) == 46
    assert all(each in ipaddress.IPv4Network(PREFIX) for each in addresses)


def test_copies_of_endpoints_stay_in_the_cell_and_are_never_a_subnets_router_or_broadcast():
    copies = [copy_address(number) for number in range(100_000)]
    assert len(set(copies)) == 100_000
    assert min(copies) > COPIES_FROM
    assert all(each in ipaddress.IPv4Network(PREFIX) for each in copies)
    assert {int(each) & 0xFF for each in copies} == set(range(2, 252))


def test_a_row_says_what_it_is():
    assert [field.name for field in dataclasses.fields(Row)] == [
        "contender", "scenario", "measure", "unit", "median", "min", "max", "runs",
    ]  # fmt: skip


def test_a_published_run_replaces_the_one_before(tmp_path):
    out, docs = tmp_path / "out", tmp_path / "docs"
    for directory in (out, docs):
        directory.mkdir()
    page = docs / "benchmark.md"
    page.write_text("head\n<!-- begin of results -->\nold\n<!-- end of results -->\ntail\n")
    for name in ("results.svg", "fwd_cost.svg"):
        (out / name).write_text(f"<svg>{name}</svg>")
    for run in ("first", "second"):
        (out / "results.md").write_text(f"| {run} |\n")
        publish(out, docs, {"kernel": "6.18", "versions": {"clang": "14"}})
    assert page.read_text() == (
        "head\n<!-- begin of results -->\n\n"
        "![TCP throughput](benchmark.svg)\n![Forwarding cost](benchmark-cost.svg)\n\n"
        '| second |\n\n    kernel: "6.18"\n\n'
        "<!-- end of results -->\ntail\n"
    )
    assert (docs / "benchmark.svg").read_text() == "<svg>results.svg</svg>"
    assert (docs / "benchmark-cost.svg").read_text() == "<svg>fwd_cost.svg</svg>"
