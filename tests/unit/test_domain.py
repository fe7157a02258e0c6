"""Domain XML to divhook NICs and their assignments; what is refused, in words."""

import contextlib
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divhook.config.domain import (
    MAX_NICS,
    MAX_XML_BYTES,
    Assignment,
    Domain,
    DomainError,
    DomainNic,
    assigned,
    parse_domain,
    read_assignments,
)
from divhook.core.addressing import parse_address, parse_mac

UUID = "c7a5fdbd-cdaf-9455-926a-d65c16db1809"
MAC = "52:54:00:11:22:33"
MAC2 = "52:54:00:44:55:66"
NIC = f"<interface type='network'><mac address='{MAC}'/><source network='divhook'/></interface>"
NIC2 = f"<interface type='bridge'><mac address='{MAC2}'/><source bridge='divbr0'/></interface>"
LIVE = f"""<interface type='bridge'>
  <mac address='{MAC.upper()}'/>
  <source network='divhook' portid='4e2b2d0c-3d5e-4a3b-b58f-4d0b5d0c2d11' bridge='divbr0'/>
  <target dev='vnet7'/><model type='virtio'/><mtu size='1400'/><alias name='net0'/>
</interface>"""


def domain(*nics: str, metadata: str = "", name: str = "web1") -> str:
    return (
        f"<domain type='kvm' id='3'><name>{name}</name><uuid>{UUID}</uuid><metadata>{metadata}</metadata>"
        f"<devices>{''.join(nics)}</devices></domain>"
    )


def guest(*nics: str, attributes: str = "") -> str:
    body = "".join(f"<divhook:nic {nic}/>" for nic in nics)
    return f"<divhook:guest xmlns:divhook='urn:divhook:guest:1'{attributes}>{body}</divhook:guest>"


def test_a_live_nic_is_read_whole() -> None:
    metadata = guest("cell='shop' subnet='web' address='10.1.1.20' hostname='front'")
    assert parse_domain(domain(LIVE, metadata=metadata)) == Domain(
        UUID,
        "web1",
        (
            DomainNic(
                mac=parse_mac(MAC),
                target="vnet7",
                alias="net0",
                mtu=1400,
                model="virtio",
                assignment=Assignment("shop", "web", parse_address("10.1.1.20"), "front"),
                only=True,
            ),
        ),
    )


def test_a_nic_without_metadata_target_or_mtu_is_read() -> None:
    assert parse_domain(domain(NIC)).nics == (DomainNic(mac=parse_mac(MAC)),)


@pytest.mark.parametrize(
    "nic",
    [
        "<interface type='network'><mac address='52:54:00:11:22:33'/><source network='default'/></interface>",
        "<interface type='bridge'><mac address='52:54:00:11:22:33'/><source bridge='br0'/></interface>",
        "<interface type='direct'><mac address='52:54:00:11:22:33'/><source dev='divbr0'/></interface>",
        "<interface type='user'><mac address='52:54:00:11:22:33'/></interface>",
        "<interface type='direct'><mac address='not one'/><source network='divhook'/></interface>",
    ],
)
def test_other_nics_are_not_ours(nic: str) -> None:
    assert parse_domain(domain(nic)).nics == ()


def test_a_guest_without_divhook_nics_is_left_alone_whatever_its_metadata_says() -> None:
    assert parse_domain(domain(metadata=guest("nonsense='1'"))).nics == ()


def test_network_and_bridge_have_other_names_where_configured() -> None:
    xml = domain(NIC.replace("divhook", "tenants"), NIC2.replace("divbr0", "br7"))
    assert [n.mac.hex(":") for n in parse_domain(xml, network="tenants", bridge="br7").nics] == [MAC, MAC2]
    assert parse_domain(xml).nics == ()


def test_several_nics_are_told_apart_by_mac() -> None:
    metadata = guest(f"mac='{MAC2}' cell='lab' subnet='1'", f"mac='{MAC}' cell='shop' subnet='web'")
    first, second = parse_domain(domain(NIC, NIC2, metadata=metadata)).nics
    assert (first.assignment, first.only) == (Assignment("shop", "web"), False)
    assert (second.assignment, second.only) == (Assignment("lab", "1"), False)


def test_a_nic_is_found_by_its_mac() -> None:
    found = parse_domain(domain(NIC, NIC2))
    assert found.nic(parse_mac(MAC2)) is found.nics[1]
    assert found.nic(parse_mac("52:54:00:77:77:77")) is None


def test_metadata_of_a_mac_that_the_guest_has_not_is_noted() -> None:
    nic = parse_domain(domain(NIC, metadata=guest("mac='52:54:00:11:22:34' cell='shop' subnet='web'"))).nics[0]
    assert nic.assignment is None
    assert nic.note == "its metadata speaks of 52:54:00:11:22:34, which is no divhook NIC of this guest"


METADATA_MISTAKES = [
    (guest("subnet='web'"), "metadata: <divhook:nic> has no `cell`"),
    (guest("cell='shop' subnet=' '"), "metadata: <divhook:nic> has no `subnet`"),
    (guest("cell='shop' subnet='web' adress='10.1.1.5'"), "metadata: unknown attribute 'adress': did you mean "
     "'address'?"),
    (guest("cell='shop' subnet='web' divhook:mac='x'"), "metadata: attribute 'mac' must have no prefix"),
    (guest("cell='a' subnet='b'", attributes=" cell='x'"), "metadata: unknown attribute 'cell': it has none"),
    (guest("cell='shop' subnet='web' address='10.1.1'"),
     "'10.1.1' is not an IPv4 address (four numbers of 0 to 255, as in 10.1.2.5)"),
    (guest("cell='shop' subnet='web' hostname='a_b'"),
     "'a_b' is not a host name: letters, digits and '-', at most 63 (RFC 1123)"),
    (guest("cell='shop' subnet='web' mac='03:d1:00:01:00:01'"),
     "03:d1:00:01:00:01 is in the space of divhook's own router and group MACs (02:d1, 03:d1) (give the guest another "
     "MAC, for example one that starts with 52:54:00)"),
    (guest("cell='a' subnet='b'", "cell='a' subnet='c'"),
     f"metadata assigns NIC {MAC} twice: keep one <divhook:nic>"),
    (guest(f"cell='{'x' * 256}' subnet='b'"), "metadata: attribute 'cell' is longer than 255 characters"),
    (guest("cell='a&#10;b' subnet='c'"), "metadata: attribute 'cell' has a control character"),
    (guest("cell='a' subnet='b'").replace("divhook:nic", "divhook:nik"),
     "metadata: unknown element <nik>: <divhook:guest> holds <divhook:nic> only"),
    (guest("cell='a' subnet='b'").replace("><divhook:nic", ">text<divhook:nic"), "metadata: text between the elements"),
    (guest("cell='a' subnet='b'").replace("/><", "><divhook:x/></divhook:nic><"),
     "metadata: <divhook:nic> holds attributes, no elements"),
    (guest("cell='a' subnet='b'") * 2, "metadata has 2 <divhook:guest> elements: keep one"),
    (guest(*["cell='a' subnet='b'"] * (MAX_NICS + 1)),
     "metadata has 65 <divhook:nic> elements: at most 64 are supported"),
]  # fmt: skip


@pytest.mark.parametrize(("metadata", "text"), METADATA_MISTAKES)
def test_bad_metadata_is_refused_by_name(metadata: str, text: str) -> None:
    with pytest.raises(DomainError) as caught:
        parse_domain(domain(NIC, metadata=metadata))
    assert str(caught.value) == f"guest 'web1': {text}"


def test_an_entry_without_mac_is_ambiguous_where_there_are_two_nics() -> None:
    with pytest.raises(DomainError) as caught:
        parse_domain(domain(NIC, NIC2, metadata=guest("cell='a' subnet='b'")))
    assert str(caught.value) == (
        f"guest 'web1': <divhook:nic> without `mac`, but the guest has several divhook NICs: {MAC}, {MAC2}"
    )


@pytest.mark.parametrize(
    ("nics", "text"),
    [
        ([NIC.replace(MAC, "02:d1:00:01:00:01")], "02:d1:00:01:00:01 is in the space of divhook's own router"),
        ([NIC.replace(MAC, "53:54:00:01:00:01")], "53:54:00:01:00:01 is no unicast address"),
        ([NIC.replace(MAC, "00:00:00:00:00:00")], "00:00:00:00:00:00 is no unicast address"),
        ([NIC.replace(MAC, "zz")], "'zz' is not a MAC address"),
        ([NIC.replace("<mac address", "<mca address")], "a divhook NIC has no <mac address=…/>"),
        ([NIC, NIC], f"two NICs have the MAC {MAC}: give each its own"),
        ([LIVE.replace("1400", "14e2")], "<mtu size='14e2'/> is no MTU"),
        ([LIVE.replace("vnet7", "v" * 256)], "<target dev=…> is longer than 255 characters"),
        ([NIC] * 65, "65 divhook NICs: at most 64 are supported"),
    ],
)
def test_a_bad_nic_is_refused_by_name(nics: list[str], text: str) -> None:
    with pytest.raises(DomainError) as caught:
        parse_domain(domain(*nics))
    assert str(caught.value).startswith(f"guest 'web1': {text}")


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        ("<domain", "this is not well-formed XML: "),
        ("", "this is not well-formed XML: "),
        (b"\xff\xfe", "this is not well-formed XML: "),
        ("<network/>", "this is no libvirt domain: the XML starts with <network>"),
        (f"<domain><uuid>{UUID}</uuid></domain>", "this domain XML has no usable <name> and <uuid>"),
        (domain(NIC, name="a&#10;b"), "this domain XML has no usable <name> and <uuid>"),
        (domain(NIC).replace(UUID, "x" * 36), "this domain XML has no usable <name> and <uuid>"),
        ("<domain><name>x</name></domain>", "this domain XML has no usable <name> and <uuid>"),
        (domain(NIC, name="n" * 256), "this domain XML has no usable <name> and <uuid>"),
        ("<!DOCTYPE d><domain/>", "the domain XML has a document type declaration: libvirt never"),
        (
            "<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>",
            "the domain XML has a document type declaration: libvirt never",
        ),
        (" " * (MAX_XML_BYTES + 1), "the domain XML is larger than 4194304 bytes"),
        (
            "<?xml version='1.0' encoding='utf-16'?><!DOCTYPE d><domain/>".encode("utf-16"),
            "this is not well-formed XML",
        ),
        ("<domain>\ud800</domain>", "this is not well-formed XML: "),
    ],
)
def test_what_is_no_domain_is_refused(xml: str | bytes, text: str) -> None:
    with pytest.raises(DomainError) as caught:
        parse_domain(xml)
    assert str(caught.value).startswith(text)


@given(st.text(max_size=40) | st.text("<>/='\" abcdivhook:guestnicellsub0.159&;!\n", max_size=80))
def test_any_metadata_gives_a_domain_or_the_one_error(text: str) -> None:
    for xml in (domain(NIC, metadata=text), text, domain(NIC, metadata=guest(text))):
        with contextlib.suppress(DomainError):
            parse_domain(xml)


def test_assigning_writes_an_entry_that_reads_back() -> None:
    wanted = Assignment("shop", "web", parse_address("10.1.1.20"), "front")
    xml = assigned(None, parse_mac(MAC), wanted, only=True)
    assert xml == (
        f'<guest>\n  <nic mac="{MAC}" cell="shop" subnet="web" address="10.1.1.20" hostname="front" />\n</guest>'
    )
    assert read_assignments(xml) == [(parse_mac(MAC), wanted)]


def test_assigning_again_replaces_only_that_nic() -> None:
    both = assigned(None, parse_mac(MAC), Assignment("shop", "web"), only=False)
    both = assigned(both, parse_mac(MAC2), Assignment("lab", "web"), only=False)
    both = assigned(both, parse_mac(MAC), Assignment("shop", "db"), only=False)
    assert both is not None
    assert read_assignments(both) == [
        (parse_mac(MAC2), Assignment("lab", "web")),
        (parse_mac(MAC), Assignment("shop", "db")),
    ]


def test_an_entry_without_mac_is_replaced_where_the_guest_has_one_nic() -> None:
    xml = assigned(guest("cell='a' subnet='b'"), parse_mac(MAC), Assignment("c", "d"), only=True)
    assert xml is not None
    assert read_assignments(xml) == [(parse_mac(MAC), Assignment("c", "d"))]


def test_removing_the_last_nic_leaves_nothing() -> None:
    xml = assigned(None, parse_mac(MAC), Assignment("shop", "web"), only=True)
    assert assigned(xml, parse_mac(MAC), None, only=True) is None
    assert assigned(None, parse_mac(MAC), None, only=True) is None


def test_written_text_is_escaped() -> None:
    hostile = '"><x>&'
    xml = assigned(None, parse_mac(MAC), Assignment(hostile, "web"), only=True)
    assert xml is not None
    assert ET.fromstring(xml)[0].get("cell") == hostile
