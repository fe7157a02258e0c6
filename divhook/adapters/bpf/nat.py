"""Maps `nat` and `nat_addresses`: the way into the namespace that translates, as the programs see it."""

import struct
from collections.abc import Collection, Mapping
from ctypes import sizeof

from divhook.abi import layout
from divhook.abi.entries import packed_mac
from divhook.adapters.bpf import syscall
from divhook.core.addressing import Address, Mac

_U32 = struct.Struct("=I")
_ONLY = _U32.pack(0)


class NatMaps:
    """Written when the files change; `close` before anything is wrong with the namespace."""

    def __init__(self, maps: Mapping[str, syscall.Map]) -> None:
        self._nat = maps["nat"]
        self._addresses = maps["nat_addresses"]
        self._config = maps["config"]

    def open(self, ifindex: int, mac: Mac) -> None:
        """Guests' packets may go this way from now on. mac: of the namespace's own end."""
        self._nat.put(_ONLY, bytes(layout.NatConfig(ifindex, packed_mac(mac))))
        self._flag(True)

    def close(self) -> None:
        """Nothing goes into the namespace, and nothing that comes out of it goes on."""
        self._flag(False)
        self._nat.put(_ONLY, bytes(layout.NatConfig()))

    def _flag(self, on: bool) -> None:
        """Let the programs look at nat_addresses, or not: a look-up for each packet of the host's own."""
        config = layout.HostConfig.from_buffer_copy(self._config.get(_ONLY) or bytes(sizeof(layout.HostConfig)))
        flags = config.flags | layout.HOST_NAT if on else config.flags & ~layout.HOST_NAT
        if config.abi_version and config.flags != flags:
            config.flags = flags
            self._config.put(_ONLY, bytes(config))

    def is_open(self) -> bool:
        """Whether there is a way."""
        size = sizeof(layout.NatConfig)
        return bool(layout.NatConfig.from_buffer_copy(self._nat.get(_ONLY) or bytes(size)).ifindex)

    def set_addresses(self, pool: Collection[Address], host: Address | None = None) -> set[Address]:
        """Exactly these are NAT's, those of the pool alone; returns those that were, and are no more.

        host: the host's own, shared with it. Raises BpfError where full.
        """
        wanted = dict.fromkeys(pool, layout.NAT_POOL)
        if host is not None:
            wanted[host] = layout.NAT_HOST
        gone = set(self._addresses.all_keys()) - wanted.keys()
        for address in gone:
            self._addresses.delete(address)
        for address, kind in wanted.items():
            self._addresses.put(address, _U32.pack(kind))
        return gone

    def addresses(self) -> set[Address]:
        """Those that are NAT's now."""
        return set(self._addresses.all_keys())
