"""A guest whose place is wrong does not start, is told why by name, and leaves nothing behind."""

import pytest
from lab_cast import Cast, listing, snapshot

from divhook.lab.errors import LabError
from divhook.lab.guest import METADATA_NAMESPACE, GuestSpec, Nic, default_mac, domain_xml
from divhook.lab.lab import Lab


def refuse(lab: Lab, spec: GuestSpec, host: str = "A") -> str:
    """Start what must not start. Returns the error; asserts that the host is as before."""
    place = lab.host(host)
    lab.define(spec, host)
    before, endpoints = snapshot(place), listing(place, "endpoints")
    with pytest.raises(LabError) as refusal:
        place.virsh("start", spec.name)
    place.virsh("undefine", spec.name)
    assert snapshot(place) == before
    assert listing(place, "endpoints") == endpoints
    assert spec.name not in place.guests()
    return str(refusal.value)


def test_unknown_cell_is_named(lab: Lab, cast: Cast) -> None:
    assert "nowhere" in refuse(lab, GuestSpec("bad", (Nic("nowhere", "web"),)))


def test_unknown_subnet_is_named(lab: Lab, cast: Cast) -> None:
    text = refuse(lab, GuestSpec("bad", (Nic("shop", "cellar"),)))
    assert "cellar" in text
    assert "shop" in text


@pytest.mark.parametrize("address", ["10.1.2.9", "10.1.1.1", "10.1.1.255", "192.0.2.7", "10.1.1.300"])
def test_address_that_the_subnet_cannot_give_is_named(lab: Lab, cast: Cast, address: str) -> None:
    assert address in refuse(lab, GuestSpec("bad", (Nic("shop", "web", address),)))


def test_address_of_a_guest_on_the_same_host_is_refused(lab: Lab, cast: Cast) -> None:
    address = cast.address("web1")
    assert address in refuse(lab, GuestSpec("bad", (Nic("shop", "web", address),)))


def test_address_of_a_guest_on_another_host_is_refused(lab: Lab, cast: Cast) -> None:
    address = cast.address("web2")
    assert address in refuse(lab, GuestSpec("bad", (Nic("shop", "web", address),)))


def test_nic_without_a_place_is_refused(lab: Lab, cast: Cast) -> None:
    text = refuse(lab, GuestSpec("bad", (Nic("shop", "web"),), metadata=False))
    assert "bad" in text
    assert "divhook assign" in text


def test_metadata_for_a_mac_that_the_guest_has_not_is_refused(lab: Lab, cast: Cast, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    wrong = "52:54:00:0b:ad:01"
    spec = GuestSpec("bad", (Nic("shop", "web"),))
    xml = domain_xml(spec, lab.image).replace(f'mac="{default_mac("bad", 0)}"', f'mac="{wrong}"')
    monkeypatch.setattr("divhook.lab.lab.domain_xml", lambda *_: xml)
    assert wrong in refuse(lab, spec)


def test_unknown_metadata_attribute_is_refused(lab: Lab, cast: Cast, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    spec = GuestSpec("bad", (Nic("shop", "web"),))
    xml = domain_xml(spec, lab.image).replace('subnet="web"', 'subnet="web" colour="red"')
    assert METADATA_NAMESPACE in xml
    monkeypatch.setattr("divhook.lab.lab.domain_xml", lambda *_: xml)
    assert "colour" in refuse(lab, spec)


def test_mac_of_a_running_guest_is_refused(lab: Lab, cast: Cast) -> None:
    mac = cast.web1.mac
    assert mac in refuse(lab, GuestSpec("bad", (Nic("shop", "web", mac=mac),)))
