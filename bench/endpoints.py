"""Runs on a host of a divhook lab: python -m bench.endpoints COUNT TEMPLATE.

Makes the kernel's table of endpoints hold COUNT of them, by copies of the entry of TEMPLATE, an address: on host A they
are all neighbours on the same peer, on host B all local at the same tap. So frames to any of them arrive at one guest,
and nobody needs to run 100,000. Fewer than there are already: the copies are removed. Prints how many there are then.

The copies' addresses are in the template's cell, from subnet 16 on, 250 in each: `copy_address`.
"""

import ctypes
import ipaddress
import sys
from pathlib import Path

from bench.plain import PREFIX

COPIES_FROM = ipaddress.IPv4Network(PREFIX).network_address + 16 * 256
PER_SUBNET = 250


def copy_address(number: int) -> ipaddress.IPv4Address:
    """The address of the n-th copy; programs.c counts in the same way."""
    return COPIES_FROM + number // PER_SUBNET * 256 + 2 + number % PER_SUBNET


def main() -> None:
    """Fill or empty."""
    from divhook.abi import layout
    from divhook.adapters.bpf import syscall
    from divhook.adapters.bpf.bpffs import pin_dir_in

    wanted, template = int(sys.argv[1]), ipaddress.IPv4Address(sys.argv[2]).packed
    path = pin_dir_in(Path("/sys/fs/bpf")) / "maps" / "endpoints"
    descriptor = syscall.open_pinned(path)
    if descriptor is None:
        sys.exit(f"no {path}")
    endpoints = syscall.Map("endpoints", descriptor, 4, ctypes.sizeof(layout.Endpoint))
    entry = endpoints.get(template)
    if entry is None:
        sys.exit(f"the kernel does not know {sys.argv[2]}")
    keys = set(endpoints.all_keys())
    copies = {key for key in keys if ipaddress.IPv4Address(key) >= COPIES_FROM}
    room = wanted - len(keys - copies)
    fresh = {copy_address(number).packed for number in range(max(0, room))}
    for key in copies - fresh:
        endpoints.delete(key)
    for key in fresh - copies:
        endpoints.put(key, entry)
    print(len(keys - copies) + len(fresh))


if __name__ == "__main__":
    main()
