"""Domain XML and control channel of lab guests."""

import base64
import gzip
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from divhook.lab import control
from divhook.lab.guest import GuestSpec, Nic, default_mac, domain_xml
from divhook.lab.image import Image

IMAGE = Image(Path("/k"), Path("/i"), "qemu")
NIC = "{urn:divhook:guest:1}nic"


def nics(spec: GuestSpec) -> list[dict[str, str]]:
    return [dict(element.attrib) for element in ET.fromstring(domain_xml(spec, IMAGE)).iter(NIC)]


def test_metadata_names_cell_subnet_and_address() -> None:
    assert nics(GuestSpec("web1", (Nic("shop", "web", "10.1.1.9", "52:54:00:01:02:03"),))) == [
        {"cell": "shop", "subnet": "web", "address": "10.1.1.9", "mac": "52:54:00:01:02:03"}
    ]


def test_every_nic_has_its_own_mac_and_entry() -> None:
    spec = GuestSpec("two", (Nic("shop", "web"), Nic("lab", "web")))
    root = ET.fromstring(domain_xml(spec, IMAGE))
    macs = [element.attrib["address"] for element in root.iter("mac")]
    assert [entry["mac"] for entry in nics(spec)] == macs == [default_mac("two", 0), default_mac("two", 1)]
    assert len(set(macs)) == 2
    assert {element.attrib["network"] for element in root.findall("devices/interface/source")} == {"divhook"}


def test_values_are_quoted() -> None:
    assert nics(GuestSpec("x", (Nic("a<b", 'c"d&'),)))[0]["subnet"] == 'c"d&'


def test_no_metadata_without_a_nic_and_on_demand() -> None:
    assert "metadata" not in domain_xml(GuestSpec("none"), IMAGE)
    assert "metadata" not in domain_xml(GuestSpec("bare", (Nic("shop", "web"),), metadata=False), IMAGE)


def test_request_is_one_line_after_a_line_end() -> None:
    line = control.request("id7", "echo 'a\nb'", 2.5)
    assert line.startswith(b"\nRUN id7 2.5 ")
    assert line.endswith(b" END\n")
    assert base64.b64decode(line.split()[3]) == b"echo 'a\nb'"


def answer(identifier: str, code: int, output: bytes) -> bytes:
    return f"OUT {identifier} {code} {base64.b64encode(gzip.compress(output)).decode()} END".encode()


def test_answer_gives_code_and_output() -> None:
    assert control.parse_answer(answer("id7", 3, b"x\ny\n"), "id7") == control.Result(3, "x\ny\n")


@pytest.mark.parametrize(
    "line", [b"", b"OUT id7 0", answer("other", 0, b""), b"x" + answer("id7", 0, b""), b"boot noise"]
)
def test_what_answers_nothing_is_passed_over(line: bytes) -> None:
    assert control.parse_answer(line, "id7") is None
