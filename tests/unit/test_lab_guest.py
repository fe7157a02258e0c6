"""Domain XML and control channel of lab guests."""

import base64
import gzip
import socket
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from divhook.lab import control
from divhook.lab.errors import LabError
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


def test_empty_command_and_output_are_a_dash() -> None:
    assert control.request("id7", "", 5) == b"\nRUN id7 5 - END\n"
    assert control.parse_answer(b"OUT id7 0 - END", "id7") == control.Result(0, "")


class SlowGuest(threading.Thread):
    """Answers each line of its channel, but only after `delay_s`; at once with noise."""

    def __init__(self, path: Path, delay_s: float) -> None:
        super().__init__(daemon=True)
        self._delay_s = delay_s
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.start()

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with self._listener, connection, connection.makefile("rb") as lines:
            connection.sendall(b"boot noise\nOUT cut of")
            for line in lines:
                words = line.split()
                if len(words) == 5:
                    time.sleep(self._delay_s)
                    try:
                        connection.sendall(b"\nOUT " + words[1] + b" 0 - END\n")
                    except OSError:
                        return


def test_guest_that_answers_more_slowly_than_it_is_greeted_is_up(tmp_path: Path) -> None:
    guest = SlowGuest(tmp_path / "g.sock", delay_s=control.GREETING_INTERVAL_S * 1.5)
    control.greet(tmp_path / "g.sock", timeout_s=20)
    guest.join(10)


def test_guest_that_never_answers_is_reported(tmp_path: Path) -> None:
    guest = SlowGuest(tmp_path / "g.sock", delay_s=2)
    with pytest.raises(LabError, match="did not come up within 1 s"):
        control.greet(tmp_path / "g.sock", timeout_s=1)
    guest.join(10)


def test_channel_of_a_guest_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="is the guest running"):
        control.run(tmp_path / "none.sock", "true", 1)
