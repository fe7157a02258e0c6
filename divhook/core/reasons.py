"""Drop reasons: one stable code per way a frame can end, shared with the eBPF programs.

Append only: a number, once released, keeps its meaning. `divhook/bpf/abi.h` has the same list, and a
test holds the two together. The text is what a person reads in `divhook drops` and in metrics.
"""

from enum import IntEnum, unique


@unique
class DropReason(IntEnum):
    """Why a frame was dropped. The value is the code in counters, maps and logs."""

    # 1..31: the frame itself (tc or core)
    TRUNCATED = 1  # shorter than its own headers say
    VLAN_TAGGED = 2  # any 802.1Q/802.1ad tag, VID 0 included
    ETHERTYPE = 3  # not IPv4, ARP or RARP
    IPV6_UNSUPPORTED = 4  # IPv6 until divhook carries it
    SOURCE_MAC_GROUP = 5  # Ethernet source is a group address or zero
    IPV4_VERSION = 6
    IPV4_HEADER_LENGTH = 7
    IPV4_TOTAL_LENGTH = 8
    IPV4_CHECKSUM = 9
    IPV4_OPTION = 10  # malformed option list, or source routing
    ARP_MALFORMED = 11
    UDP_MALFORMED = 12
    ICMP_MALFORMED = 13
    DHCP_MALFORMED = 14
    L2_MULTICAST_MISMATCH = 15  # unicast IPv4 in a group Ethernet frame
    FRAGMENT_INVALID = 16  # overlapping the 64 KiB end, or first fragment too short for its header
    DISCOVERY_MALFORMED = 17

    # 32..63: anti-spoof and source check
    SPOOF_MAC = 32  # Ethernet source is not the port's vmac
    SPOOF_IPV4 = 33  # IPv4 source is not the port's address
    SPOOF_ARP_SHA = 34
    SPOOF_ARP_SPA = 35
    SPOOF_LOCAL = 36  # from_wire with a source address that is active or fenced here
    SPOOF_SOURCE = 37  # from_wire from a host that does not hold the source address
    UNKNOWN_HOST = 38  # from_wire from a pmac that is no authenticated peer
    UNVERIFIED = 39  # source address never confirmed by the sending host
    ROGUE_DHCP = 40  # DHCP server traffic from a guest, or any DHCP from the wire
    RARP_FROM_GUEST = 41  # consumed: RARP carries no claim of its own

    # 64..95: where it wanted to go
    CELL_DENIED = 64  # other cell, no policy allows it
    POLICY_DENIED = 65  # a rule, or a default of the cell's policy
    NO_SUCH_ENDPOINT = 66  # discovery found nobody
    NEGATIVE_CACHED = 67
    RESOLVE_RATE_PORT = 68
    RESOLVE_RATE_HOST = 69
    HOLD_QUEUE_FULL = 70
    HOLD_TABLE_FULL = 71
    HOLD_EXPIRED = 72
    TTL_EXPIRED = 73
    FRAGMENTATION_NEEDED = 74
    BROADCAST_UNSUPPORTED = 75
    MULTICAST_UNSUPPORTED = 76
    EXTERNAL_UNSUPPORTED = 77  # outside the virtual space; no way out is configured
    MARTIAN_DESTINATION = 78  # 0/8, 127/8, class E, or the subnet's network address
    NOT_LOCAL = 79  # from_wire for an endpoint that is not here
    ROUTER_SERVICE = 80  # to the router's address, but no service of it
    ICMP_RATE_LIMITED = 81  # the router would answer, but answered too often
    WIRE_GROUP_UNICAST = 82  # from_wire, unicast IPv4 sent to a group MAC
    FLOW_UNKNOWN = 83  # of a port with a policy: can only be part of a flow, and there is none
    IDENTITY_UNKNOWN = 84  # the other end's host did not say what its identity stands for

    HOST_FORWARDED = 86  # from the host's stack to a guest, but the host only forwards it
    DIRECTED_BROADCAST = 87  # broadcast of another subnet (RFC 2644)
    IGMP_REFUSED = 88  # malformed, a query (the router alone asks), or one group more than a port may join
    GROUP_RATE_LIMITED = 89  # tc's token bucket for broadcast and multicast of a port
    NO_MEMBER = 90  # from_wire, to a group that no port here is in
    HOST_SERVICE = 91  # to an address of the host itself, and no rule for `host` allows it
    EXTERNAL_UNREACHABLE = 92  # neither the server, nor any next hop, answers ARP
    EXTERNAL_SPOOF = 93  # an external source address, from another MAC than the one that holds it or routes for it
    EXTERNAL_CONFLICT = 94  # ARP that claims the address of a server which answers elsewhere
    NAT_UNTRANSLATED = 95  # of a cell with source NAT: it would pass between guest and outside as it is, either way

    # 96..127: the port and the agent
    PORT_NOT_ACTIVE = 96  # tentative, incoming or fenced
    PORT_UNKNOWN = 97
    DIVERT_RATE_LIMITED = 98  # tc's token bucket for the slow path
    DISCOVERY_RATE_LIMITED = 99  # unauthenticated discovery frames over the kernel's limit
    NOT_JOINED = 100  # group MAC of a subnet with no port here
    DISCOVERY_AUTH = 101  # tag does not verify
    DISCOVERY_REPLAY = 102
    DISCOVERY_UNCHALLENGED = 103  # unknown session, challenge under way
    CONSUMED = 104  # answered or used by the agent: not a loss, counted so that sums agree
    INTERNAL_ERROR = 105  # our bug: logged with the frame, never a crash
    MOVE_COPY_OVERFLOW = 106  # for a guest that was paused to move: no room among the copies that wait for its host
    MOVE_DOUBTFUL = 107  # came just before the pause: whether QEMU gave it to the guest can't be told
    MOVE_NOT_HANDED_OVER = 108  # for a guest that was paused to move, and its new host's agent could not be reached
    MOVE_RETURNS = 109  # for a guest that has moved away, by way of its former host: sent on, it could go round
    MOVE_QUEUE_FULL = 110  # the tap of a guest that comes in takes no more before the guest runs


def reason_text(code: int) -> str:
    """Lower-case name of a code as metrics and logs show it; `reason_<n>` for one this version does not know."""
    try:
        return DropReason(code).name.lower()
    except ValueError:
        return f"reason_{code}"
