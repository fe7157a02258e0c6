"""Mirror of divhook/bpf/abi.h: the memory layout of map keys and values, in the machine's byte order.

Every struct, bound and code here has the same name and place there; tests/bpf/test_abi.py compares the two through the
BTF of the object. Fields that end in _be hold bytes in network order, so they are byte arrays here.
"""

import ctypes
from enum import IntEnum, unique

ABI_VERSION = 3
"""Part of the pin path: programs and maps of two versions never mix."""

MARK_DIVERT = 0xD1
MARK_GROUP = 0x100
MARK_NAT = 0x200
MARK_SEGMENTS = 0x400
MARK_PORT_SHIFT = 16

MAX_PORTS = 4096
MAX_ENDPOINTS = 139264
MAX_GROUPS = 4096
MAX_PEERS = 16384
MAX_DROP_COUNTERS = 32768
FLOWS_PER_PORT = 16384
FLOWS_PER_CPU = 256
MAX_POLICY_ENTRIES = 1048576
MAX_POLICY_IDENTITIES = 131072
MAX_POLICY_PREFIXES = 524288
MAX_CELL_PAIRS = 65536
MAX_RULE_COUNTS = 65536
FLOW_LOG_BYTES = 262144
POLICY_SCOPE_BITS = 128
POLICY_SPACE_BITS = 24
POLICY_CELL_BITS = 32

MAX_PREFIXES = 2112
MAX_ROUTES = 1024
PREFIX_ON_LINK = 1
PREFIX_ROUTE = 2
PREFIX_HOST = 3
NEXT_HOP_SLOTS = 64
MAX_NEXT_HOPS = 16
MAX_NAT_ADDRESSES = 1024
NAT_POOL = 1
NAT_HOST = 2
NAT_FIRST_PORT = 61000

BUCKETS = 4
HOST_FASTPATH = 1
HOST_NAT = 16
ENDPOINT_USED = 1
ENDPOINT_HEARD = 2
ENDPOINT_SENT_ON = 256
PORT_TRACKED = 1
PORT_SHARES = 4
PORT_TRANSLATED = 8
PORT_SPEAKS = 16
MAX_SHARED = 65536
MAX_GROUP_LISTS = 8192
MAX_GROUP_MEMBERS = 128
GROUP_LIST_COMPLETE = 1
GROUP_LIST_ROUTED = 2
GROUP_LIST_AGENTS = 4
SHARED_ALLOWED = 1
SHARED_HELD = 2
PORT_POLICED = 2
ENDPOINT_TRACKED = 1
ENDPOINT_POLICED = 2
ENDPOINT_TRANSLATED = 4
ENDPOINT_FORWARDED = 8
FLOW_OPENED_BY_HIGH = 1
FLOW_ANSWERED = 2
POLICY_ALLOW = 1
POLICY_LOG = 2
FLOW_EVENT_OUTWARD = 1
FLOW_EVENT_ENDED = 2
FLOW_EVENT_PICKED_UP = 4


@unique
class PortBucket(IntEnum):
    """Token buckets of a port."""

    IPV4 = 0
    ARP = 1  # and RARP, IGMP
    DHCP = 2
    GROUP = 3  # broadcast and multicast, forwarded or diverted


@unique
class WireBucket(IntEnum):
    """Token buckets of the uplink."""

    PEER_IPV4 = 0
    STRANGER_IPV4 = 1
    PEER_DISCOVERY = 2
    STRANGER_DISCOVERY = 3


@unique
class EndpointKind(IntEnum):
    """Where an endpoint of map `endpoints` is."""

    REMOTE = 1
    LOCAL = 2
    FENCED = 3
    EXTERNAL = 4


U64 = ctypes.c_uint64
Words = ctypes.c_uint32 * 2
Octets2 = ctypes.c_uint8 * 2
Octets4 = ctypes.c_uint8 * 4
Octets6 = ctypes.c_uint8 * 6


class Mac(ctypes.Structure):
    """struct mac"""

    _fields_ = (("octets", Octets6),)


class Rate(ctypes.Structure):
    """struct rate"""

    _fields_ = (("packets_per_s", ctypes.c_uint32), ("burst_packets", ctypes.c_uint32))


class HostConfig(ctypes.Structure):
    """struct host_config: the one value of map `config`"""

    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("divbr_ifindex", ctypes.c_uint32),
        ("uplink_ifindex", ctypes.c_uint32),
        ("supernet_be", Octets4),
        ("supernet_mask_be", Octets4),
        ("cell_mask_be", Octets4),
        ("host_mask_be", Octets4),
        ("host_bits", ctypes.c_uint8),
        ("subnet_bits", ctypes.c_uint8),
        ("ticks_per_s", ctypes.c_uint16),
        ("pmac", Mac),
        ("divbr_mac", Mac),
        ("wire_rates", Rate * BUCKETS),
    )


class Port(ctypes.Structure):
    """struct port: value of map `ports`"""

    _fields_ = (
        ("port_id", ctypes.c_uint32),
        ("state", ctypes.c_uint32),
        ("address_be", Octets4),
        ("router_be", Octets4),
        ("vmac", Mac),
        ("flags", ctypes.c_uint16),
        ("rates", Rate * BUCKETS),
    )


class Endpoint(ctypes.Structure):
    """struct endpoint: value of map `endpoints`"""

    _fields_ = (
        ("stamp", ctypes.c_uint64),
        ("born", ctypes.c_uint64),
        ("guest_id", ctypes.c_uint64),
        ("identity", ctypes.c_uint64),
        ("vmac", Mac),
        ("host", Mac),
        ("ifindex", ctypes.c_uint32),
        ("used", ctypes.c_uint32),
        ("port_id", ctypes.c_uint16),
        ("mtu", ctypes.c_uint16),
        ("kind", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("next", Mac),
    )


class Buckets(ctypes.Structure):
    """struct buckets: value of map `buckets`"""

    _fields_ = (("full_at_ns", ctypes.c_uint64 * BUCKETS),)


class MacKey(ctypes.Structure):
    """struct mac_key: key of maps `groups` and `peers`"""

    _fields_ = (("mac", Mac), ("pad", ctypes.c_uint8 * 2))


class GroupKey(ctypes.Structure):
    """struct group_key: key of map `group_lists`"""

    _fields_ = (("network_be", Octets4), ("group_be", Octets4))


class GroupMember(ctypes.Structure):
    """struct group_member"""

    _fields_ = (("ifindex", ctypes.c_uint32), ("port_id", ctypes.c_uint32))


class GroupList(ctypes.Structure):
    """struct group_list: value of map `group_lists`"""

    _fields_ = (
        ("count", ctypes.c_uint32),
        ("mtu", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("members", GroupMember * MAX_GROUP_MEMBERS),
    )


class SharedKey(ctypes.Structure):
    """struct shared_key: key of map `shared`"""

    _fields_ = (("port_id", ctypes.c_uint32), ("address_be", Octets4))


class DropKey(ctypes.Structure):
    """struct drop_key: key of map `drops`"""

    _fields_ = (("port_id", ctypes.c_uint16), ("reason", ctypes.c_uint16))


class DropCount(ctypes.Structure):
    """struct drop_count: value of map `drops`, per CPU"""

    _fields_ = (("packets", ctypes.c_uint64), ("bytes", ctypes.c_uint64))


class Traffic(ctypes.Structure):
    """struct traffic: value of map `traffic`, per CPU"""

    _fields_ = (
        ("diverted_packets", ctypes.c_uint64),
        ("diverted_bytes", ctypes.c_uint64),
        ("from_packets", ctypes.c_uint64),
        ("from_bytes", ctypes.c_uint64),
        ("to_packets", ctypes.c_uint64),
        ("to_bytes", ctypes.c_uint64),
        ("uncounted_drops", ctypes.c_uint64),
    )


class PrefixKey(ctypes.Structure):
    """struct prefix_key: key of map `prefixes`"""

    _fields_ = (("prefix_bits", ctypes.c_uint32), ("address_be", Octets4))


class Prefix(ctypes.Structure):
    """struct prefix: value of map `prefixes`"""

    _fields_ = (("kind", ctypes.c_uint16), ("mtu", ctypes.c_uint16), ("route", ctypes.c_uint32))


class NextHops(ctypes.Structure):
    """struct next_hops: value of map `next_hops`"""

    _fields_ = (("slots_be", Octets4 * NEXT_HOP_SLOTS), ("hops_be", Octets4 * MAX_NEXT_HOPS))


class NatConfig(ctypes.Structure):
    """struct nat_config: the one value of map `nat`"""

    _fields_ = (("ifindex", ctypes.c_uint32), ("mac", Mac), ("pad", ctypes.c_uint8 * 2))


class FlowKey(ctypes.Structure):
    """struct flow_key: key of the tables in map `flows`"""

    _fields_ = (
        ("low_be", Octets4),
        ("high_be", Octets4),
        ("low_port_be", Octets2),
        ("high_port_be", Octets2),
        ("protocol", ctypes.c_uint8),
        ("kind", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 2),
    )


class FlowCount(ctypes.Structure):
    """struct flow_count"""

    _fields_ = (("packets", ctypes.c_uint64), ("bytes", ctypes.c_uint64))


class Flow(ctypes.Structure):
    """struct flow: value of the tables in map `flows`"""

    _fields_ = (
        ("seen_ticks", ctypes.c_uint64),
        ("local_identity", ctypes.c_uint64),
        ("remote_identity", ctypes.c_uint64),
        ("counts", FlowCount * 2),
        ("epoch", ctypes.c_uint32),
        ("tcp", ctypes.c_uint8 * 2),
        ("flags", ctypes.c_uint8),
        ("fragments_kind", ctypes.c_uint8),
        ("fragments_low_port_be", Octets2),
        ("fragments_high_port_be", Octets2),
        ("pad", ctypes.c_uint8 * 4),
    )


class PortPolicy(ctypes.Structure):
    """struct port_policy: value of map `port_policies`"""

    _fields_ = (
        ("identity", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64 * 2),
        ("pickup_until_ticks", ctypes.c_uint64),
        ("log_rate", Rate),
        ("cell_be", Octets4),
        ("epoch", ctypes.c_uint32),
        ("allowed", Octets2),
        ("pad", ctypes.c_uint8 * 6),
    )


class PolicyKey(ctypes.Structure):
    """struct policy_key: key of map `policy_entries`"""

    _fields_ = (
        ("prefix_bits", ctypes.c_uint32),
        ("scope", Words),
        ("remote", Words),
        ("protocol", ctypes.c_uint8),
        ("port_be", Octets2),
        ("pad", ctypes.c_uint8),
    )


class PolicyEntry(ctypes.Structure):
    """struct policy_entry: value of map `policy_entries`"""

    _fields_ = (("rule", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("pad", ctypes.c_uint32))


class IdentityKey(ctypes.Structure):
    """struct identity_key: key of map `policy_identities`"""

    _fields_ = (("identity", ctypes.c_uint64), ("cell_be", Octets4), ("pad", ctypes.c_uint32))


class ExternalKey(ctypes.Structure):
    """struct external_key: key of map `policy_prefixes`"""

    _fields_ = (("prefix_bits", ctypes.c_uint32), ("cell_be", Octets4), ("address_be", Octets4))


class PolicyClass(ctypes.Structure):
    """struct policy_class: value of maps `policy_identities` and `policy_prefixes`"""

    _fields_ = (("class", ctypes.c_uint64),)


class CellPair(ctypes.Structure):
    """struct cell_pair: key of map `cell_pairs`"""

    _fields_ = (("own_be", Octets4), ("other_be", Octets4))


class RuleCount(ctypes.Structure):
    """struct rule_count: value of map `rule_counts`, per CPU"""

    _fields_ = (("flows", ctypes.c_uint64),)


class FlowEvent(ctypes.Structure):
    """struct flow_event: what ring `flow_log` holds"""

    _fields_ = (
        ("time_ns", ctypes.c_uint64),
        ("rule", ctypes.c_uint64),
        ("local_identity", ctypes.c_uint64),
        ("remote_identity", ctypes.c_uint64),
        ("source_be", Octets4),
        ("destination_be", Octets4),
        ("source_port_be", Octets2),
        ("destination_port_be", Octets2),
        ("port_id", ctypes.c_uint16),
        ("reason", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 6),
    )
