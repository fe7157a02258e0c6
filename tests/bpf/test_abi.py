"""abi.h, its Python mirror and the core say the same."""

import ctypes
import json
import re
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from bpf_bench import run

import divhook
from divhook.abi import layout
from divhook.adapters.bpf.programs import OBJECT_FILE
from divhook.core.endpoint import PortState
from divhook.core.flow import TIMEOUTS_S, FlowClass, FlowKind, TcpState
from divhook.core.reasons import DropReason
from divhook.core.verdict import Direction, Relation
from divhook.core.wire import discovery

ABI_H = (Path(divhook.__file__).parent / "bpf" / "abi.h").read_text()

STRUCTS = {
    "mac": layout.Mac,
    "rate": layout.Rate,
    "host_config": layout.HostConfig,
    "port": layout.Port,
    "endpoint": layout.Endpoint,
    "buckets": layout.Buckets,
    "mac_key": layout.MacKey,
    "drop_key": layout.DropKey,
    "drop_count": layout.DropCount,
    "traffic": layout.Traffic,
    "flow_key": layout.FlowKey,
    "flow_count": layout.FlowCount,
    "flow": layout.Flow,
    "port_policy": layout.PortPolicy,
    "policy_key": layout.PolicyKey,
    "policy_entry": layout.PolicyEntry,
    "identity_key": layout.IdentityKey,
    "external_key": layout.ExternalKey,
    "policy_class": layout.PolicyClass,
    "cell_pair": layout.CellPair,
    "rule_count": layout.RuleCount,
    "prefix_key": layout.PrefixKey,
    "prefix": layout.Prefix,
    "next_hops": layout.NextHops,
    "flow_event": layout.FlowEvent,
    "nat_config": layout.NatConfig,
}


def constants() -> dict[str, int]:
    return {name: int(value, 0) for name, value in re.findall(r"#define (\w+) (0x[0-9a-f]+|\d+)\b", ABI_H)}


def enumerators(name: str) -> dict[str, int]:
    body = re.search(rf"enum {name} \{{(.*?)\}};", ABI_H, re.DOTALL)
    assert body is not None
    return {name: int(value) for name, value in re.findall(r"(\w+) = (\d+)", body[1])}


def btf() -> list[dict[str, Any]]:
    types: list[dict[str, Any]] = json.loads(run(f"bpftool -j btf dump file {OBJECT_FILE}"))["types"]
    return types


def btf_structs() -> dict[str, dict[str, Any]]:
    return {t["name"]: t for t in btf() if t["kind"] == "STRUCT" and t["name"] in STRUCTS}


def btf_size(types: dict[int, dict[str, Any]], number: int) -> int:
    kind = types[number]
    if kind["kind"] in ("TYPEDEF", "CONST"):
        return btf_size(types, kind["type_id"])
    if kind["kind"] == "ARRAY":
        return int(kind["nr_elems"]) * btf_size(types, kind["type_id"])
    return int(kind["size"])


@pytest.mark.parametrize("name", STRUCTS)
def test_python_layout_is_that_of_the_object(name: str) -> None:
    types = {t["id"]: t for t in btf()}
    struct = btf_structs()[name]
    in_object = [(m["name"], m["bits_offset"] // 8, btf_size(types, m["type_id"])) for m in struct["members"]]
    mirror = STRUCTS[name]
    in_python = [(n, getattr(mirror, n).offset, getattr(mirror, n).size) for n, _ in mirror._fields_]
    assert in_python == in_object
    assert ctypes.sizeof(mirror) == struct["size"]


@pytest.mark.parametrize("name", STRUCTS)
def test_layout_has_no_hidden_padding(name: str) -> None:
    mirror = STRUCTS[name]
    assert sum(getattr(mirror, n).size for n, _ in mirror._fields_) == ctypes.sizeof(mirror)


def test_drop_reasons_are_those_of_the_core() -> None:
    assert enumerators("drop_reason") == {"VALID": 0} | {reason.name: int(reason) for reason in DropReason}


def test_port_states_are_those_of_the_core() -> None:
    assert enumerators("port_state") == {f"PORT_{state.name}": int(state) for state in PortState}


def test_buckets_have_the_same_places() -> None:
    assert enumerators("port_bucket") == {f"BUCKET_{b.name}": int(b) for b in layout.PortBucket}
    assert enumerators("wire_bucket") == {f"BUCKET_{b.name}": int(b) for b in layout.WireBucket}


def test_endpoint_kinds_are_the_same() -> None:
    assert enumerators("endpoint_kind") == {f"ENDPOINT_{k.name}": int(k) for k in layout.EndpointKind}


@pytest.mark.parametrize(
    ("name", "prefix", "mirror"),
    [("flow_class", "FLOW_", FlowClass), ("flow_kind", "FLOW_", FlowKind), ("flow_tcp", "FLOW_TCP_", TcpState)],
)
def test_flows_are_classed_and_kept_by_the_same_codes(name: str, prefix: str, mirror: type[IntEnum]) -> None:
    assert enumerators(name) == {f"{prefix}{member.name}": int(member) for member in mirror}


def test_policy_codes_are_those_of_the_core() -> None:
    assert enumerators("policy_direction") == {f"POLICY_{d.name}": int(d) for d in Direction}
    assert enumerators("policy_relation") == {f"POLICY_{r.name}": int(r) for r in Relation}


def test_constants_are_the_same() -> None:
    defined = constants()
    timeouts_s = {name: defined.pop(name) for name in list(defined) if re.fullmatch(r"FLOW_\w+_S", name)}
    assert timeouts_s == TIMEOUTS_S
    assert defined.pop("DIVHOOK_ABI_VERSION") == layout.ABI_VERSION
    assert defined.pop("DISCOVERY_MAGIC") == int.from_bytes(discovery.MAGIC, "big")
    shortest = discovery.TRAILER_OFFSET + discovery.TRAILER_LENGTH
    assert defined.pop("DISCOVERY_MIN_LEN") == shortest
    assert defined.pop("DISCOVERY_MAX_LEN") == shortest + discovery.MAX_PAYLOAD
    assert defined == {name: getattr(layout, name) for name in defined}
