"""The set-ups of docs/external.md are complete: they load, and mean what the text says."""

import re
from pathlib import Path

import pytest

from divhook.agent.nat import plan_of
from divhook.agent.outside import external_map
from divhook.config.configuration import Configuration
from divhook.config.load import load
from divhook.core.addressing import parse_address
from divhook.core.external import OnLink, Route
from divhook.policy.files import PolicyLoader, PolicySet

TEXT = (Path(__file__).parents[2] / "docs" / "external.md").read_text()
SETUPS = ("Isolated", "Servers on the same layer 2", "Networks behind routers", "Networks behind routers, with NAT")


@pytest.fixture(params=SETUPS)
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Configuration, PolicySet]:
    body = re.split(rf"^### {re.escape(request.param)}\n", TEXT, flags=re.MULTILINE)[1]
    body = re.split(r"^##", body, flags=re.MULTILINE)[0]
    for block in re.findall(r"```yaml\n(.*?)```", body, re.DOTALL):
        name = block.splitlines()[0].removeprefix("# ").split(":")[0]
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(block)
    configuration = load(tmp_path)
    return request.param, configuration, PolicyLoader().load(tmp_path, configuration)


def test_every_setup_loads_and_says_what_is_outside(setup: tuple[str, Configuration, PolicySet]) -> None:
    name, configuration, policies = setup
    found = external_map(configuration.host.external, 1500)
    kinds = {address: type(found.get(parse_address(address))) for address in ("192.0.2.80", "192.0.2.1", "8.8.8.8")}
    nothing = type(None)
    assert (
        kinds
        == {
            "Isolated": {"192.0.2.80": nothing, "192.0.2.1": nothing, "8.8.8.8": nothing},
            "Servers on the same layer 2": {"192.0.2.80": OnLink, "192.0.2.1": nothing, "8.8.8.8": nothing},
            "Networks behind routers": {"192.0.2.80": Route, "192.0.2.1": OnLink, "8.8.8.8": Route},
            "Networks behind routers, with NAT": {"192.0.2.80": Route, "192.0.2.1": OnLink, "8.8.8.8": Route},
        }[name]
    )
    assert bool(policies.cell("shop").rules) == (name != "Isolated")


def test_the_mtu_of_a_route_is_the_smallest_on_its_way(setup: tuple[str, Configuration, PolicySet]) -> None:
    name, configuration, _ = setup
    found = external_map(configuration.host.external, 9000)
    if name == "Networks behind routers":
        mtus = {str(route.prefix): route.mtu for route in found.routes}
        assert mtus == {"0.0.0.0/0": 3990, "198.51.100.0/24": 1400}


def test_the_setup_with_nat_translates_its_cell_and_no_other_does(
    setup: tuple[str, Configuration, PolicySet],
) -> None:
    name, configuration, _ = setup
    translations = plan_of(configuration).translations
    if name != "Networks behind routers, with NAT":
        assert translations == ()
        return
    [each] = translations
    assert [str(prefix) for prefix in each.prefixes] == ["10.1.0.0/16"]
    assert (str(each.first), str(each.last)) == ("192.0.2.160", "192.0.2.167")
