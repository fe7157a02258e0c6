"""Extra DHCP options of a subnet: a code or a name, and a value whose type the option fixes (RFC 2132, IANA registry).

An option of the table takes the form that its row says. Any other code takes: text (sent as it is), a list of
addresses, or "hex:0a0b" for exact bytes; a bare number is refused there, since nothing says how wide it is.
"""

from divhook.config.problems import did_you_mean
from divhook.config.values import BadValueError, parse_ipv4, shown

MAX_OPTION_BYTES = 255
"""Length byte of an option (RFC 2132 §2). Longer ones (RFC 3396) are not needed here."""

KNOWN: dict[str, tuple[int, str]] = {
    "time-offset": (2, "int32"),
    "time-servers": (4, "addresses"),
    "log-servers": (7, "addresses"),
    "lpr-servers": (9, "addresses"),
    "root-path": (17, "text"),
    "ip-forwarding": (19, "flag"),
    "default-ttl": (23, "uint8"),
    "nis-domain": (40, "text"),
    "nis-servers": (41, "addresses"),
    "vendor-specific": (43, "bytes"),
    "netbios-name-servers": (44, "addresses"),
    "netbios-node-type": (46, "uint8"),
    "x-font-servers": (48, "addresses"),
    "tftp-server-name": (66, "text"),
    "smtp-servers": (69, "addresses"),
    "pop-servers": (70, "addresses"),
    "www-servers": (72, "addresses"),
    "posix-timezone": (100, "text"),
    "tzdb-timezone": (101, "text"),
    "ipv6-only-preferred": (108, "uint32"),
    "captive-portal": (114, "text"),
    "tftp-server-addresses": (150, "addresses"),
    "pxelinux-configfile": (209, "text"),
    "pxelinux-pathprefix": (210, "text"),
    "pxelinux-reboottime": (211, "uint32"),
    "wpad-url": (252, "text"),
}
"""name: (code, form)."""

OWN: dict[int, str] = {
    0: "it is padding",
    1: "the mask follows from the address plan",
    3: "the router follows from the address plan",
    6: "set 'dns' of the subnet",
    12: "set 'hostname' of the endpoint",
    15: "set 'domain' of the subnet",
    26: "set 'mtu' of the subnet",
    28: "the broadcast address follows from the address plan",
    33: "set 'routes' of the subnet",
    42: "set 'ntp' of the subnet",
    67: "set 'boot_file' of the subnet",
    119: "set 'search' of the subnet",
    121: "set 'routes' of the subnet",
    249: "set 'routes' of the subnet",
    255: "it ends the list",
} | dict.fromkeys((*range(50, 62), 80, 81, 82, 90, 118), "it is part of the protocol itself")
"""Codes that the agent sets itself, with what to do instead."""

_WIDTH = {"uint8": (1, False), "uint16": (2, False), "uint32": (4, False), "int32": (4, True)}


def option_code(key: str) -> int:
    """Code of an option given by name or number. Raises BadValueError."""
    if key.isdigit() and key.isascii() and len(key) <= 3:
        code = int(key)
        if code > 255:
            raise BadValueError(f"DHCP option {code} is outside 1 to 254")
    elif key in KNOWN:
        code = KNOWN[key][0]
    else:
        raise BadValueError(f"unknown DHCP option {key!r}", did_you_mean(key, KNOWN) + " Or give its number.")
    if code in OWN:
        raise BadValueError(f"DHCP option {code} is not free to set", OWN[code])
    return code


def encode_option(key: str, value: object) -> tuple[int, bytes]:
    """(code, payload of 1 to 255 bytes) of one option as a file has it. Raises BadValueError."""
    code = option_code(key)
    form = next((form for known, form in KNOWN.values() if known == code), "any")
    payload = _payload(f"DHCP option {key}", form, value)
    if not 0 < len(payload) <= MAX_OPTION_BYTES:
        raise BadValueError(f"DHCP option {key} has {len(payload)} bytes", f"1 to {MAX_OPTION_BYTES} fit into one")
    return code, payload


def _payload(what: str, form: str, value: object) -> bytes:
    if isinstance(value, str) and value.startswith("hex:"):
        try:
            return bytes.fromhex(value.removeprefix("hex:").replace(":", ""))
        except ValueError:
            raise BadValueError(
                f"{what}: {shown(value)} is not hex", 'two digits per byte, as in "hex:0a0b0c"'
            ) from None
    if form in _WIDTH:
        width, signed = _WIDTH[form]
        low, high = (-(1 << (8 * width - 1)), (1 << (8 * width - 1)) - 1) if signed else (0, (1 << 8 * width) - 1)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise BadValueError(f"{what} must be a whole number of {low} to {high}, not {shown(value)}")
        return value.to_bytes(width, "big", signed=signed)
    if form == "flag":
        if not isinstance(value, bool):
            raise BadValueError(f"{what} must be true or false, not {shown(value)}")
        return bytes([value])
    if form in ("addresses", "any") and isinstance(value, (tuple, list)):
        return b"".join(parse_ipv4(item) for item in value)
    if form == "addresses" and isinstance(value, str):
        return parse_ipv4(value)
    if form in ("text", "any") and isinstance(value, str):
        return value.encode()
    wanted = {
        "addresses": "a list of addresses",
        "text": "text",
        "bytes": 'bytes as "hex:0a0b"',
        "any": 'text, a list of addresses, or "hex:0a0b"',
    }[form]
    hint = f'quotes make it text: "{shown(value)}"' if isinstance(value, (int, float)) and form == "text" else ""
    raise BadValueError(f"{what} must be {wanted}, not {shown(value)}", hint)
