"""Types of single values in the files: text to the core's types, with a message and a hint where the text is wrong.

Everything is strict: text is never made a number, nor a number text, for that is how `no` becomes a country. Each type
carries its JSON schema, so that an editor checks the same.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, summarize_address_range
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema
from pydantic_core import PydanticCustomError

from divhook.core.addressing import GROUP_PREFIX, RMAC_PREFIX, Address, Mac, mac_text, parse_mac

MIN_MTU = 576
"""Smallest datagram that every IPv4 host must take (RFC 791 §3.2)."""
MAX_MTU = 3990
"""netfilterqueue loses packets above about 3,990 bytes without a word: a guest must not be able to send one."""
MAX_GROUP_PPS = 10_000_000
MAX_POOL_ADDRESSES = 256
"""Of one pool of source NAT: the host announces and defends each of them."""
MIN_LEASE_S = 60
MAX_LEASE_S = 366 * 86400
MAX_ALLOWED_ADDRESSES = 16
"""Addresses that one NIC may take besides its own."""
MAX_LIST = 16
"""Servers, search domains and routes of one subnet: a DHCP message has room for about this much."""

NAME_PATTERN = r"^(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
HOSTNAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"
DOMAIN_PATTERN = rf"^(?=.{{1,253}}$){HOSTNAME_PATTERN[1:-1]}(\.{HOSTNAME_PATTERN[1:-1]})*$"
MAC_PATTERN = r"^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$"
LEASE_PATTERN = r"^[0-9]{1,9}[smhdw]?$"
INTERFACE_PATTERN = r"^[^\s/:]{1,15}$"


class StrictModel(BaseModel):
    """What every part of a file is: unknown keys are refused, values never converted, all of it frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class BadValueError(Exception):
    """A value of a file is wrong. `message` says what is wrong with it; `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def fault(message: str, hint: str = "", path: Iterable[str | int] = ()) -> PydanticCustomError:
    """A validation error whose text is shown as it is. path: where below the validated value."""
    return faults([(tuple(path), message, hint)])


def faults(found: list[tuple[tuple[str | int, ...], str, str]]) -> PydanticCustomError:
    """Several of them as one error: (path, message, hint) each."""
    return PydanticCustomError("divhook", "{text}", {"text": "; ".join(text for _, text, _ in found), "faults": found})


def shown(value: object) -> str:
    """A value as a person wrote it, shortened."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (tuple, list)):
        return "a list"
    text = str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "…" + text[-1:]


def text_of(value: object, what: str) -> str:
    """The value if it is text; raises BadValueError that says how to make it text."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        raise BadValueError(f"{what} must be text, not {shown(value)}", f'write it in quotes: "{shown(value)}"')
    raise BadValueError(f"{what} must be text, not {shown(value)}")


def parse_name(value: object) -> str:
    """Name of a cell or subnet: an RFC 1123 label in lower case that is not a number."""
    text = text_of(value, "a name")
    if re.match(NAME_PATTERN, text) and "\n" not in text:
        return text
    if text.isdigit():
        raise BadValueError(f"{text!r} is a number, not a name", "a name has at least one letter")
    better = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63]
    hint = f"for example {better!r}" if re.match(NAME_PATTERN, better) else ""
    raise BadValueError(f"{shown(text)} is not a name: 1 to 63 of a-z, 0-9 and '-', no '-' at an end (RFC 1123)", hint)


def parse_hostname(value: object) -> str:
    """A host name without domain (RFC 1123 §2.1)."""
    text = text_of(value, "a host name")
    if re.match(HOSTNAME_PATTERN, text) and "\n" not in text:
        return text
    hint = f"only {text.split('.')[0]!r}: the domain is the subnet's" if re.match(DOMAIN_PATTERN, text) else ""
    raise BadValueError(f"{shown(text)} is not a host name: letters, digits and '-', at most 63 (RFC 1123)", hint)


def parse_domain_name(value: object) -> str:
    """A DNS domain without the final dot."""
    text = text_of(value, "a domain")
    if re.match(DOMAIN_PATTERN, text) and "\n" not in text:
        return text
    hint = "without the dot at the end" if text.endswith(".") else ""
    raise BadValueError(
        f"{shown(text)} is not a domain name", hint or "labels of letters, digits and '-', joined by dots"
    )


def parse_ipv4(value: object) -> Address:
    """An IPv4 address, as 4 bytes."""
    text = text_of(value, "an address")
    try:
        return IPv4Address(text).packed
    except ValueError:
        hint = "without the prefix length" if "/" in text else "four numbers of 0 to 255, as in 10.1.2.5"
        if ":" in text:
            hint = "IPv6 is not supported yet"
        raise BadValueError(f"{shown(text)} is not an IPv4 address", hint) from None


def parse_network(value: object) -> IPv4Network:
    """An IPv4 prefix with no host bits set."""
    text = text_of(value, "a network")
    try:
        return IPv4Network(text)
    except ValueError:
        try:
            hint = f"did you mean {IPv4Network(text, strict=False)}?"
        except ValueError:
            hint = "as in 192.0.2.0/24"
        raise BadValueError(f"{shown(text)} is not an IPv4 network", hint) from None


def parse_prefix(value: object) -> IPv4Network:
    """An IPv4 prefix, or an address, which is a prefix of 32 bits."""
    if isinstance(value, str) and "/" not in value:
        return IPv4Network((parse_ipv4(value), 32))
    return parse_network(value)


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Addresses from first to last, both included."""

    first: Address
    last: Address

    def __str__(self) -> str:
        return f"{IPv4Address(self.first)}-{IPv4Address(self.last)}"

    def addresses(self) -> list[Address]:
        """All of them, in order."""
        first, last = (int.from_bytes(end, "big") for end in (self.first, self.last))
        return [value.to_bytes(4, "big") for value in range(first, last + 1)]

    def networks(self) -> list[IPv4Network]:
        """The same as prefixes."""
        return list(summarize_address_range(IPv4Address(self.first), IPv4Address(self.last)))


def parse_range(value: object) -> AddressRange:
    """`192.0.2.160/29`, `192.0.2.160-192.0.2.163`, or one address."""
    if isinstance(value, str) and "-" in value:
        first, last = (parse_ipv4(end.strip()) for end in value.split("-", 1))
        if last < first:
            raise BadValueError(f"{shown(value)}: a range goes from its lowest to its highest address")
        found = AddressRange(first, last)
    else:
        prefix = parse_prefix(value)
        found = AddressRange(prefix[0].packed, prefix[-1].packed)
    count = int.from_bytes(found.last, "big") - int.from_bytes(found.first, "big") + 1
    if count > MAX_POOL_ADDRESSES:
        raise BadValueError(f"{shown(value)} has {count} addresses: a pool takes {MAX_POOL_ADDRESSES}")
    return found


def parse_guest_mac(value: object) -> Mac:
    """A MAC that a guest may have: unicast, not zero, not in the space of virtual routers."""
    text = text_of(value, "a MAC address")
    if not re.match(MAC_PATTERN, text) or "\n" in text:
        raise BadValueError(f"{shown(text)} is not a MAC address", "six bytes in hex, as in 52:54:00:12:34:56")
    mac = parse_mac(text)
    if mac[:2] in (RMAC_PREFIX, GROUP_PREFIX):
        raise BadValueError(
            f"{mac_text(mac)} is in the space of divhook's own router and group MACs (02:d1, 03:d1)",
            "give the guest another MAC, for example one that starts with 52:54:00",
        )
    if mac[0] & 1 or mac == bytes(6):
        raise BadValueError(f"{mac_text(mac)} is no unicast address", "a guest's MAC has an even first byte")
    return mac


def parse_guest_name(value: object) -> str:
    """Name of a libvirt domain."""
    text = text_of(value, "a guest name")
    if not 0 < len(text) <= 255 or not text.isprintable() or "/" in text or text != text.strip():
        raise BadValueError(f"{shown(text)} is no name of a libvirt guest", "as `virsh list --all` shows it")
    return text


def parse_lease_s(value: object) -> int:
    """A time as whole seconds or with a unit: 90, "90s", "30m", "12h", "7d", "2w"."""
    if isinstance(value, int) and not isinstance(value, bool):
        seconds = value
    elif isinstance(value, str) and re.match(LEASE_PATTERN, value):
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
        seconds = int(value.rstrip("smhdw")) * unit.get(value[-1], 1)
    else:
        raise BadValueError(
            f"{shown(value)} is no lease time", 'seconds, or a number with a unit: "90s", "30m", "1h", "7d"'
        )
    if not MIN_LEASE_S <= seconds <= MAX_LEASE_S:
        raise BadValueError(f"a lease of {seconds} s is outside {MIN_LEASE_S} s to {MAX_LEASE_S} s (one year)")
    return seconds


def parse_mtu(value: object) -> int:
    """Bytes of IP packet."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadValueError(f"an MTU must be a whole number, not {shown(value)}", "for example 1500")
    if value > MAX_MTU:
        raise BadValueError(
            f"an MTU of {value} is too large: the slow path (netfilterqueue) loses packets above {MAX_MTU} bytes",
            f"{MAX_MTU} at most, also where the uplink takes more",
        )
    if value < MIN_MTU:
        raise BadValueError(f"an MTU of {value} is too small", f"IPv4 needs {MIN_MTU} at least (RFC 791)")
    return value


def parse_switch(value: object) -> bool:
    """on or off."""
    match value:
        case True | "on" | "yes":
            return True
        case False | "off" | "no":
            return False
    raise BadValueError(f"{shown(value)} is neither on nor off", "write on or off")


def parse_group_rate(value: object) -> int:
    """Frames per second; 0 stands for `off`."""
    if value is False or value == "off":
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadValueError(f"a rate must be a whole number or off, not {shown(value)}", "for example 200")
    if not 1 <= value <= MAX_GROUP_PPS:
        raise BadValueError(f"a rate of {value} frames/s is outside 1 to {MAX_GROUP_PPS}", "or `off` for no limit")
    return value


def parse_interface(value: object) -> str:
    """Name of a network interface."""
    text = text_of(value, "an interface name")
    if not re.match(INTERFACE_PATTERN, text) or text in (".", "..") or len(text.encode()) > 15:
        raise BadValueError(
            f"{shown(text)} is no name of a network interface", "as `ip link` shows it: 15 bytes at most"
        )
    return text


def parse_absolute_path(value: object) -> str:
    """An absolute path."""
    text = text_of(value, "a path")
    if not text.startswith("/") or "\0" in text:
        raise BadValueError(f"{shown(text)} is not an absolute path", "it starts with /")
    return text


def parse_boot_file(value: object) -> str:
    """Name of a boot file: the field `file` of a DHCP message has 128 bytes, the last one zero (RFC 2131 §2)."""
    text = text_of(value, "a boot file")
    if not text.isascii() or not text.isprintable() or not 0 < len(text) <= 127:
        raise BadValueError(f"{shown(text)} is no boot file name", "1 to 127 printable ASCII characters")
    return text


def parse_line(value: object) -> str:
    """One short line of free text."""
    text = text_of(value, "this")
    if not 0 < len(text) <= 255 or not text.isprintable():
        raise BadValueError(f"{shown(text)} must be one line of 1 to 255 characters")
    return text


def _type(parse: Callable[[object], Any], schema: dict[str, Any]) -> tuple[Any, Any]:
    def validate(value: object) -> Any:
        try:
            return parse(value)
        except BadValueError as error:
            raise fault(error.message, error.hint) from None

    return BeforeValidator(validate), WithJsonSchema(schema)


_LEASE_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": MIN_LEASE_S, "maximum": MAX_LEASE_S},
        {"type": "string", "pattern": LEASE_PATTERN},
    ]
}
_SWITCH_SCHEMA = {"anyOf": [{"type": "boolean"}, {"enum": ["on", "off", "yes", "no"]}]}
_GROUP_RATE_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_GROUP_PPS}, {"enum": ["off", False]}]}
_LINE_SCHEMA = {"type": "string", "minLength": 1, "maxLength": 255}

Name = Annotated[str, *_type(parse_name, {"type": "string", "pattern": NAME_PATTERN})]
Hostname = Annotated[str, *_type(parse_hostname, {"type": "string", "pattern": HOSTNAME_PATTERN})]
DomainName = Annotated[str, *_type(parse_domain_name, {"type": "string", "pattern": DOMAIN_PATTERN})]
Ipv4 = Annotated[bytes, *_type(parse_ipv4, {"type": "string", "format": "ipv4"})]
Network = Annotated[IPv4Network, *_type(parse_network, {"type": "string", "pattern": r"^[0-9.]+/[0-9]+$"})]
Prefix = Annotated[IPv4Network, *_type(parse_prefix, {"type": "string", "pattern": r"^[0-9.]+(/[0-9]+)?$"})]
Range = Annotated[AddressRange, *_type(parse_range, {"type": "string", "pattern": r"^[0-9.]+(/[0-9]+| *- *[0-9.]+)?$"})]
GuestMac = Annotated[bytes, *_type(parse_guest_mac, {"type": "string", "pattern": MAC_PATTERN})]
GuestName = Annotated[str, *_type(parse_guest_name, _LINE_SCHEMA)]
LeaseS = Annotated[int, *_type(parse_lease_s, _LEASE_SCHEMA)]
Mtu = Annotated[int, *_type(parse_mtu, {"type": "integer", "minimum": MIN_MTU, "maximum": MAX_MTU})]
GroupRate = Annotated[int, *_type(parse_group_rate, _GROUP_RATE_SCHEMA)]
Switch = Annotated[bool, *_type(parse_switch, _SWITCH_SCHEMA)]
Interface = Annotated[str, *_type(parse_interface, {"type": "string", "pattern": INTERFACE_PATTERN})]
AbsolutePath = Annotated[str, *_type(parse_absolute_path, {"type": "string", "pattern": "^/"})]
BootFile = Annotated[str, *_type(parse_boot_file, {"type": "string", "minLength": 1, "maxLength": 127})]
Line = Annotated[str, *_type(parse_line, _LINE_SCHEMA)]
