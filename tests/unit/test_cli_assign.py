"""`divhook assign` against libvirt's own test driver, which keeps domains in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from divhook.cli.main import main
from divhook.config.domain import Assignment, parse_domain
from divhook.core.addressing import address_text, parse_address, parse_mac

URI = "test:///default"
MAC, MAC2 = "52:54:00:11:22:33", "52:54:00:44:55:66"
CELL = """\
cell: shop
number: 1
subnets: {web: {number: 1}, db: {number: 2}}
endpoints: [{guest: other, subnet: web, address: 10.1.1.30}]
"""
CONFIG, LIVE = libvirt.VIR_DOMAIN_XML_INACTIVE, 0


@pytest.fixture
def connection() -> Iterator[Any]:
    """The test driver forgets everything when its last connection closes: this one stays open."""
    connection = libvirt.open(URI)
    yield connection
    connection.close()


Define = Callable[..., Any]


@pytest.fixture
def define(connection: Any) -> Define:
    def define(*macs: str, metadata: str = "", name: str = "web-a", network: str = "divhook") -> Any:
        nics = "".join(
            f"<interface type='network'><mac address='{mac}'/><source network='{network}'/></interface>" for mac in macs
        )
        return connection.defineXML(
            f"<domain type='test'><name>{name}</name><metadata>{metadata}</metadata><memory>65536</memory>"
            f"<os><type>hvm</type></os><devices>{nics}</devices></domain>"
        )

    return define


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `divhook assign`; file descriptors are captured, for libvirt's C library would write to them."""
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "shop.yaml").write_text(CELL)

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(["assign", *argv, "--connect", URI, "--config", str(tmp_path)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def assignments(domain: Any, flags: int = CONFIG) -> list[Assignment | None]:
    return [nic.assignment for nic in parse_domain(domain.XMLDesc(flags)).nics]


def test_assign_writes_what_the_agent_reads(define: Define, run: Run) -> None:
    domain = define(MAC)
    assert run("web-a", "--cell", "shop", "--subnet", "web", "--address", "10.1.1.20", "--hostname", "front") == (
        0,
        f"guest 'web-a', NIC {MAC}: cell shop, subnet web, address 10.1.1.20 (written to its definition)\n",
        "",
    )
    assert assignments(domain) == [Assignment("shop", "web", parse_address("10.1.1.20"), "front")]


def test_assign_writes_both_descriptions_of_a_running_guest(define: Define, run: Run) -> None:
    domain = define(MAC)
    domain.create()
    code, out, _ = run("web-a", "--cell", "shop", "--subnet", "db")
    assert code == 0
    assert out.endswith(
        "(written to its definition and running guest)\n"
        "It runs: labels count at once, all else takes effect at its next start.\n"
    )
    assert assignments(domain, CONFIG) == assignments(domain, LIVE) == [Assignment("shop", "db")]


def test_allowed_addresses_stay_until_they_are_taken_away_or_the_subnet_is_another(define: Define, run: Run) -> None:
    domain = define(MAC)
    place, first, second = ("web-a", "--cell", "shop", "--subnet", "web"), "10.1.1.100", "10.1.1.101"

    def allowed() -> list[str]:
        [found] = assignments(domain)
        return [address_text(a) for a in found.allowed] if found is not None else []

    run(*place, "--allow", first, "--allow", second)
    code, out, _ = run("web-a", "--cell", "1", "--subnet", "1", "--labels", "tier=web")
    assert (code, allowed()) == (0, [first, second])
    assert (
        out == f"guest 'web-a', NIC {MAC}: cell 1, subnet 1, may take {first}, {second} (written to its definition)\n"
    )
    run(*place, "--allow", second)
    assert allowed() == [second]
    code, out, _ = run("web-a", "--cell", "shop", "--subnet", "db")
    assert (code, allowed()) == (0, [])
    assert out.endswith(f"It may no more take {second}, which belong to its former subnet.\n")
    run(*place, "--allow", first)
    assert run(*place, "--allow", "none")[0] == 0
    assert allowed() == []


def test_assign_leaves_the_other_nics_alone(define: Define, run: Run) -> None:
    domain = define(MAC, MAC2)
    assert run("web-a", "--cell", "shop", "--subnet", "web", "--mac", MAC)[0] == 0
    assert run("web-a", "--cell", "shop", "--subnet", "db", "--mac", MAC2)[0] == 0
    assert run("web-a", "--cell", "1", "--subnet", "2", "--mac", MAC)[0] == 0
    assert assignments(domain) == [Assignment("1", "2"), Assignment("shop", "db")]


def test_remove_takes_the_assignment_away(define: Define, run: Run) -> None:
    domain = define(MAC)
    run("web-a", "--cell", "shop", "--subnet", "web")
    assert run("web-a", "--remove")[:2] == (
        0,
        f"guest 'web-a', NIC {MAC}: no cell and subnet any more (written to its definition)\n",
    )
    assert assignments(domain) == [None]
    assert "urn:divhook" not in domain.XMLDesc(CONFIG)
    assert run("web-a", "--remove")[0] == 0


def test_remove_of_one_nic_keeps_the_other(define: Define, run: Run) -> None:
    domain = define(MAC, MAC2)
    run("web-a", "--cell", "shop", "--subnet", "web", "--mac", MAC)
    run("web-a", "--cell", "shop", "--subnet", "db", "--mac", MAC2)
    assert run("web-a", "--remove", "--mac", MAC2)[0] == 0
    assert assignments(domain) == [Assignment("shop", "web"), None]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--cell", "shp", "--subnet", "web"], f"guest 'web-a', NIC {MAC}: cell 'shp' is not known here; did you mean"),
        (["--cell", "shop", "--subnet", "web", "--address", "10.1.2.9"],
         f"guest 'web-a', NIC {MAC}: address 10.1.2.9 is not in subnet shop/web, which is 10.1.1.0/24"),
        (["--cell", "shop", "--subnet", "web", "--address", "10.1.1.30"],
         f"guest 'web-a', NIC {MAC}: address 10.1.1.30 belongs to guest 'other' by cells/shop.yaml:4"),
        (["--cell", "shop", "--subnet", "web", "--mac", MAC2],
         f"guest 'web-a' has no divhook NIC {MAC2}; it has: {MAC}"),
    ],
)  # fmt: skip
def test_what_the_agent_would_refuse_is_not_written(define: Define, run: Run, argv: list[str], text: str) -> None:
    domain = define(MAC)
    code, out, err = run("web-a", *argv)
    assert (code, out) == (1, "")
    assert err.startswith(f"divhook: {text}")
    assert err.count("\n") == 1
    assert assignments(domain) == [None]


def test_a_guest_with_several_nics_must_be_told_which(define: Define, run: Run) -> None:
    define(MAC, MAC2)
    assert run("web-a", "--cell", "shop", "--subnet", "web")[2] == (
        f"divhook: guest 'web-a' has several divhook NICs: say which by --mac; it has {MAC}, {MAC2}\n"
    )


def test_a_guest_without_divhook_nic_is_told_how_to_get_one(define: Define, run: Run) -> None:
    define(MAC, network="default")
    assert run("web-a", "--cell", "shop", "--subnet", "web")[2] == (
        "divhook: guest 'web-a' has no divhook NIC: add <interface type='network'><source network='divhook'/>"
        "</interface>, for example with `virsh attach-interface web-a network divhook --config`\n"
    )


def test_an_unknown_guest_is_named_with_those_that_exist(define: Define, run: Run) -> None:
    define(MAC)
    assert run("web-b", "--cell", "shop", "--subnet", "web") == (
        1,
        "",
        f"divhook: libvirt at {URI} has no guest 'web-b'; guests: test, web-a\n",
    )


def test_a_libvirt_that_is_away_is_one_clear_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/no-such"
    argv = ["assign", "g", "--cell", "a", "--subnet", "b", "--config", str(tmp_path), "--connect", uri]
    assert main(argv) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"divhook: libvirt does not answer at {uri}: ")
    assert error.count("\n") == 1


def test_broken_metadata_is_refused_until_it_is_cleared(define: Define, run: Run) -> None:
    broken = f"<d:guest xmlns:d='urn:divhook:guest:1'><d:nic mac='{MAC}' cell='shop' subnte='web'/></d:guest>"
    domain = define(MAC, metadata=broken)
    assert run("web-a", "--cell", "shop", "--subnet", "web")[2] == (
        "divhook: guest 'web-a': metadata: unknown attribute 'subnte': did you mean 'subnet'? "
        f"(`divhook assign web-a --mac {MAC} --remove` clears it)\n"
    )
    assert run("web-a", "--remove")[0] == 0
    assert run("web-a", "--cell", "shop", "--subnet", "web")[0] == 0
    assert assignments(domain) == [Assignment("shop", "web")]


def test_an_entry_without_mac_that_became_ambiguous_is_refused(define: Define, run: Run) -> None:
    metadata = "<d:guest xmlns:d='urn:divhook:guest:1'><d:nic cell='shop' subnet='web'/></d:guest>"
    define(MAC, MAC2, metadata=metadata)
    assert (
        "without `mac`, but the guest has several divhook NICs"
        in run("web-a", "--cell", "shop", "--subnet", "web", "--mac", MAC)[2]
    )


def test_print_needs_no_libvirt_and_gives_xml_for_a_template(run: Run) -> None:
    code, out, _ = run("any", "--cell", "shop", "--subnet", "web", "--mac", MAC, "--print")
    assert (code, out) == (
        0,
        '<divhook:guest xmlns:divhook="urn:divhook:guest:1">\n'
        f'  <divhook:nic mac="{MAC}" cell="shop" subnet="web" />\n</divhook:guest>\n',
    )
    nic = f"<interface type='network'><mac address='{MAC}'/><source network='divhook'/></interface>"
    xml = f"<domain><name>n</name><uuid>{'0' * 36}</uuid><metadata>{out}</metadata><devices>{nic}</devices></domain>"
    assert parse_domain(xml).nics[0].assignment == Assignment("shop", "web")
    assert parse_domain(xml).nics[0].mac == parse_mac(MAC)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--cell", "shop"], "divhook: --cell and --subnet are both needed, or --remove\n"),
        (
            ["--cell", "shop", "--subnet", "web", "--allow", "none", "--allow", "10.1.1.9"],
            "divhook: --allow none takes all",
        ),
        (["--remove", "--cell", "shop"], "divhook: --remove takes the whole assignment away: leave the other options"),
    ],
)
def test_contradictory_options_are_wrong_usage(run: Run, argv: list[str], text: str) -> None:
    code, _, err = run("web-a", *argv)
    assert code == 2
    assert err.startswith(text)


def test_a_bad_address_is_wrong_usage(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("web-a", "--cell", "shop", "--subnet", "web", "--address", "10.1.1")
    assert caught.value.code == 2
    assert "argument --address: '10.1.1' is not an IPv4 address" in capfd.readouterr().err


def test_a_bad_configuration_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "divhook.yaml").write_text("queu: 1\nbridg: x\n")
    assert run("web-a", "--cell", "shop", "--subnet", "web")[2] == (
        f"divhook: the configuration has 2 problems, the first: {tmp_path}/divhook.yaml:1:1: unknown key 'queu' "
        f"(did you mean 'queue'?); see divhook check {tmp_path}\n"
    )


def test_without_cell_files_the_place_is_not_checked_and_that_is_said(define: Define, run: Run, tmp_path: Path) -> None:
    domain = define(MAC)
    (tmp_path / "cells" / "shop.yaml").unlink()
    code, _, err = run("web-a", "--cell", "elsewhere", "--subnet", "x")
    assert (code, err) == (0, f"divhook: not checked: there are no cell files in {tmp_path}/cells\n")
    assert assignments(domain) == [Assignment("elsewhere", "x")]
