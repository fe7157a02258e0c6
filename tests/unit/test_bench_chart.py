"""The benchmark's charts: well-formed SVG whose bars are as high as the figures say."""

import xml.etree.ElementTree as ElementTree

import pytest

from bench.chart import PLOT_HEIGHT, Bar, figure, forwarding_cost, grouped_bars, nice_step, throughput
from bench.results import CONTENDERS, SCENARIOS, Samples

SVG = "{http://www.w3.org/2000/svg}"


def bars_of(svg: str) -> dict[str, float]:
    """Height of each bar by what its title says it is."""
    root = ElementTree.fromstring(svg)
    rectangles = [each for each in root.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]
    return {str(each.findtext(f"{SVG}title")).split(":")[0]: float(each.attrib["height"]) for each in rectangles}


def measured(measures: list[tuple[str, str]]) -> Samples:
    samples = Samples()
    for scenario, measure in measures:
        for place, contender in enumerate(CONTENDERS):
            for number in range(3):
                samples.add(contender, scenario, measure, number, 10.0 * (place + 1) + number)
    return samples


def test_bars_are_in_proportion():
    svg = grouped_bars("t", "Gb/s", [Bar("one", "divhook", 20, 20, 20), Bar("one", "bridge", 10, 10, 10)])
    heights = bars_of(svg)
    assert heights["divhook, one"] == pytest.approx(2 * heights["bridge, one"], abs=0.2)
    assert heights["divhook, one"] == pytest.approx(PLOT_HEIGHT / 1.05, abs=0.2)


def test_a_bar_beyond_the_limit_is_cut_and_the_others_stay_readable():
    bars = [Bar("one", "ovs", 40_000, 39_000, 41_000), Bar("one", "bridge", 100, 90, 110)]
    heights = bars_of(grouped_bars("t", "ns", bars, limit=110))
    assert heights["ovs, one"] == PLOT_HEIGHT
    assert heights["bridge, one"] == pytest.approx(PLOT_HEIGHT * 100 / 115.5, abs=0.2)


def test_the_throughput_chart_has_a_group_per_scenario_and_a_bar_per_contender():
    heights = bars_of(throughput(measured([(scenario, "tcp1_gbps") for scenario in SCENARIOS]).rows()))
    assert len(heights) == len(SCENARIOS) * len(CONTENDERS)
    assert "divhook, Inter-subnet (single VM TX)" in heights


def test_the_cost_chart_is_scaled_to_what_forwards_in_the_kernel():
    keys = [("intra", "fwd_cost_one_host_ns"), ("intra", "fwd_cost_hosts_ns"), ("inter-single", "fwd_cost_hosts_ns")]
    heights = bars_of(forwarding_cost(measured(keys).rows(), ["divhook", "bridge"]))
    assert heights["ovs, Same host"] == PLOT_HEIGHT
    assert heights["divhook, Same host"] < PLOT_HEIGHT / 2


def test_text_is_escaped():
    ElementTree.fromstring(grouped_bars("a < b & c", '"', [Bar("<g>", "bridge", 1, 1, 1)]))


def test_a_chart_of_nothing_is_refused():
    with pytest.raises(ValueError, match="without bars"):
        grouped_bars("t", "ns", [])


@pytest.mark.parametrize(("highest", "step"), [(42.0, 10), (8.0, 1), (9.0, 2), (1500.0, 200), (0.35, 0.05)])
def test_the_scale_has_round_steps(highest, step):
    assert nice_step(highest) == pytest.approx(step)


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1,234"), (35.92, "35.9"), (0.2933, "0.293")])
def test_figures_on_bars_are_short(value, text):
    assert figure(value) == text
