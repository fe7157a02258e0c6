"""Any YAML in the files' places gives a configuration or problems with a place: never another exception."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from divhook.config.load import check
from divhook.config.model import CellConfig, EndpointConfig, HostConfig, RouteConfig, SubnetSettings

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 70_000), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["10.1.1.20", "10.1.1.1", "10.1.2.255", "52:54:00:11:22:33", "02:d1:00:00:00:00", "1h", "web", "on",
                     "192.0.2.0/24", "example.net", "hex:00", "/etc/k", "arp"]),
)  # fmt: skip
ANY: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def mapping(model: Any, **known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mappings with some of a model's keys, mostly of a sensible kind, sometimes of any."""
    keys = {key: st.one_of(known.get(key, SCALARS), ANY) for key in model.model_fields}
    keys["stranger"] = ANY
    return st.fixed_dictionaries({}, optional=keys)


LISTS = st.lists(SCALARS, max_size=3)
OPTIONS = st.dictionaries(
    st.sampled_from([66, "66", 1, "tftp-server-name", "150", "999", "x"]), SCALARS | LISTS, max_size=3
)
SUBNET = mapping(
    SubnetSettings, number=st.integers(0, 3), dns=LISTS, search=LISTS, ntp=LISTS,
    routes=st.lists(mapping(RouteConfig), max_size=2), options=OPTIONS,
)  # fmt: skip
CELL = mapping(
    CellConfig,
    cell=st.just("a"),
    number=st.integers(0, 300),
    subnets=st.dictionaries(st.sampled_from(["web", "db", "A", 5, None, True]), SUBNET, max_size=3),
    endpoints=st.lists(mapping(EndpointConfig, subnet=st.sampled_from(["web", "db", "x"])), max_size=3),
)
HOST = mapping(HostConfig, addresses=st.dictionaries(st.sampled_from(["supernet", "cell_bits"]), SCALARS, max_size=2))


@pytest.mark.parametrize(("name", "strategy"), [("divhook.yaml", HOST), ("cells/a.yaml", CELL)])
def test_any_content_is_loaded_or_has_problems_with_a_place(tmp_path: Path, name: str, strategy: Any) -> None:
    (tmp_path / "cells").mkdir()
    file = tmp_path / name

    @settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
    @given(strategy)
    def run(data: Any) -> None:
        file.write_text(yaml.safe_dump(data, allow_unicode=True))
        configuration, problems = check(tmp_path)
        assert (configuration is None) == bool(problems)
        lines = file.read_text().count("\n") + 1
        for problem in problems:
            assert problem.where.file == str(file)
            assert 1 <= problem.where.line <= lines
            assert problem.where.column >= 1
            assert "\n" not in str(problem)

    run()
