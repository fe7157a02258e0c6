"""Runs on a host of a divhook lab whose ports are policed: python -m bench.rules COUNT.

Makes the kernel's table of policy entries COUNT entries longer, or as long as it was: each allows one protocol and port
that nobody here uses, at every scope that the ports have, as the agent compiles so many single rules. They stand beside
those that decide, in the same tree. Prints how many entries there are then.
"""

import ctypes
import sys
from pathlib import Path

FIRST_PROTOCOL = 143
"""From here on protocol numbers belong to nobody (IANA), up to 252."""
PORTS = 1 << 16


def main() -> None:
    """Fill or empty."""
    from divhook.abi import layout
    from divhook.abi.policy_entries import policy_entry, policy_key, unpack_port_policy
    from divhook.adapters.bpf import syscall
    from divhook.adapters.bpf.bpffs import pin_dir_in
    from divhook.core.verdict import Relation

    wanted = int(sys.argv[1])
    maps = pin_dir_in(Path("/sys/fs/bpf")) / "maps"

    def opened(name: str, key_length: int, value_length: int) -> syscall.Map:
        descriptor = syscall.open_pinned(maps / name)
        if descriptor is None:
            sys.exit(f"no {maps / name}")
        return syscall.Map(name, descriptor, key_length, value_length)

    records = opened("port_policies", 4, ctypes.sizeof(layout.PortPolicy))
    entries = opened("policy_entries", ctypes.sizeof(layout.PolicyKey), ctypes.sizeof(layout.PolicyEntry))
    found = [unpack_port_policy(raw) for key in list(records.all_keys()) if (raw := records.get(key)) is not None]
    scopes = sorted({scope for record in found for scope in record.scopes if scope})
    if not scopes:
        sys.exit("no port here has rules")
    keys = set(entries.all_keys())
    fillers = {key for key in keys if layout.PolicyKey.from_buffer_copy(key).protocol >= FIRST_PROTOCOL}
    fresh = set()
    for number in range(max(0, wanted - len(keys - fillers))):
        scope, place = scopes[number % len(scopes)], number // len(scopes)
        protocol, port = FIRST_PROTOCOL + place // PORTS, place % PORTS
        fresh.add(policy_key(scope, int(Relation.CELL), protocol, port, layout.POLICY_SPACE_BITS))
    for key in fillers - fresh:
        entries.delete(key)
    value = policy_entry(True, False, 7)
    for key in fresh - fillers:
        entries.put(key, value)
    print(len(keys - fillers) + len(fresh))


if __name__ == "__main__":
    main()
