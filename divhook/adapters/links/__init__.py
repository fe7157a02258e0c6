"""Links of this host: divbr0 and its ports, the uplink, the wall between guests and the host's stack."""

from divhook.adapters.links.errors import LinkError
from divhook.adapters.links.links import (
    BRIDGE_MAC,
    HOST_LINK_MAC,
    PORT_GROUP,
    BridgeInfo,
    HostLink,
    LinkEvent,
    Links,
    PortLink,
)
from divhook.adapters.links.sysctl import read_sysctl, write_sysctl
from divhook.adapters.links.uplink import Link, UplinkInfo

__all__ = [
    "BRIDGE_MAC",
    "HOST_LINK_MAC",
    "PORT_GROUP",
    "BridgeInfo",
    "HostLink",
    "Link",
    "LinkError",
    "LinkEvent",
    "Links",
    "PortLink",
    "UplinkInfo",
    "read_sysctl",
    "write_sysctl",
]
