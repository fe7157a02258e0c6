/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What the eBPF programs and the agent share: maps' keys and values, marks, drop reasons.
 *
 * divhook/abi/layout.py mirrors every struct and constant here; tests/bpf/test_abi.py compares the two, through the
 * BTF of the object. Padding is explicit, since map keys are compared as bytes. Names that end in _be are in network
 * order, _ns are nanoseconds. A change of any layout is a new DIVHOOK_ABI_VERSION (it is part of the pin path).
 *
 *      31           16 15       9  8  7        0
 *     +---------------+----------+---+----------+
 * mark|    port id    |   0  S N | G |   0xd1   |   G: the frame's destination MAC was a group address
 *     +---------------+----------+---+----------+   port id 0: the uplink; with N (bit 9) the namespace that translates
 * With S (bit 10) from the uplink, and to be cut: MARK_SEGMENTS.
 */
#pragma once

#include <linux/types.h>

#define DIVHOOK_ABI_VERSION 3

#define MARK_DIVERT 0xd1
#define MARK_GROUP 0x100
#define MARK_NAT 0x200
#define MARK_SEGMENTS 0x400 /* in the place of the port id two octets of the source MAC; the others in priority */
#define MARK_PORT_SHIFT 16

/* Bounds of the tables. */
#define MAX_PORTS 4096	       /* guest NICs on one host, and the uplink: ids are distinct modulo this */
#define MAX_ENDPOINTS 139264    /* those of this host, and 131,072 neighbours */
#define MAX_GROUPS 4096	       /* at most one per port, and the all-hosts group */
#define MAX_PEERS 16384	       /* least recently used first out; DESIGN: 10,000 hosts */
#define MAX_DROP_COUNTERS 32768 /* (port, reason) pairs; past it drops are counted in traffic.uncounted_drops */

enum port_state {
	PORT_TENTATIVE = 1,
	PORT_ACTIVE = 2,
	PORT_INCOMING = 3,
	PORT_FENCED = 4,
};

/* A discovery frame is an ARP packet, then this, then its trailer: divhook/core/wire/discovery.py. */
#define DISCOVERY_MAGIC 0xd17e
#define DISCOVERY_MIN_LEN 138
#define DISCOVERY_MAX_LEN 1162

/* Token buckets of a port (bucket set of its port id), and of the uplink (bucket set 0). */
enum port_bucket {
	BUCKET_IPV4 = 0,
	BUCKET_ARP = 1, /* and RARP, IGMP */
	BUCKET_DHCP = 2,
	BUCKET_GROUP = 3, /* broadcast and multicast, forwarded or diverted */
};
enum wire_bucket {
	BUCKET_PEER_IPV4 = 0,
	BUCKET_STRANGER_IPV4 = 1,
	BUCKET_PEER_DISCOVERY = 2,
	BUCKET_STRANGER_DISCOVERY = 3,
};
#define BUCKETS 4

/* divhook/core/reasons.py, which says what each means; some are the agent's alone. */
enum drop_reason {
	VALID = 0,

	TRUNCATED = 1,
	VLAN_TAGGED = 2,
	ETHERTYPE = 3,
	IPV6_UNSUPPORTED = 4,
	SOURCE_MAC_GROUP = 5,
	IPV4_VERSION = 6,
	IPV4_HEADER_LENGTH = 7,
	IPV4_TOTAL_LENGTH = 8,
	IPV4_CHECKSUM = 9,
	IPV4_OPTION = 10,
	ARP_MALFORMED = 11,
	UDP_MALFORMED = 12,
	ICMP_MALFORMED = 13,
	DHCP_MALFORMED = 14,
	L2_MULTICAST_MISMATCH = 15,
	FRAGMENT_INVALID = 16,
	DISCOVERY_MALFORMED = 17,

	SPOOF_MAC = 32,
	SPOOF_IPV4 = 33,
	SPOOF_ARP_SHA = 34,
	SPOOF_ARP_SPA = 35,
	SPOOF_LOCAL = 36,
	SPOOF_SOURCE = 37,
	UNKNOWN_HOST = 38,
	UNVERIFIED = 39,
	ROGUE_DHCP = 40,
	RARP_FROM_GUEST = 41,

	CELL_DENIED = 64,
	POLICY_DENIED = 65,
	NO_SUCH_ENDPOINT = 66,
	NEGATIVE_CACHED = 67,
	RESOLVE_RATE_PORT = 68,
	RESOLVE_RATE_HOST = 69,
	HOLD_QUEUE_FULL = 70,
	HOLD_TABLE_FULL = 71,
	HOLD_EXPIRED = 72,
	TTL_EXPIRED = 73,
	FRAGMENTATION_NEEDED = 74,
	BROADCAST_UNSUPPORTED = 75,
	MULTICAST_UNSUPPORTED = 76,
	EXTERNAL_UNSUPPORTED = 77,
	MARTIAN_DESTINATION = 78,
	NOT_LOCAL = 79,
	ROUTER_SERVICE = 80,
	ICMP_RATE_LIMITED = 81,
	WIRE_GROUP_UNICAST = 82,
	FLOW_UNKNOWN = 83,
	IDENTITY_UNKNOWN = 84,
	HOST_FORWARDED = 86,
	DIRECTED_BROADCAST = 87,
	IGMP_REFUSED = 88,
	GROUP_RATE_LIMITED = 89,
	NO_MEMBER = 90,
	HOST_SERVICE = 91,
	EXTERNAL_UNREACHABLE = 92,
	EXTERNAL_SPOOF = 93,
	EXTERNAL_CONFLICT = 94,
	NAT_UNTRANSLATED = 95,

	PORT_NOT_ACTIVE = 96,
	PORT_UNKNOWN = 97,
	DIVERT_RATE_LIMITED = 98,
	DISCOVERY_RATE_LIMITED = 99,
	NOT_JOINED = 100,
	DISCOVERY_AUTH = 101,
	DISCOVERY_REPLAY = 102,
	DISCOVERY_UNCHALLENGED = 103,
	CONSUMED = 104,
	INTERNAL_ERROR = 105,
	MOVE_COPY_OVERFLOW = 106,
	MOVE_DOUBTFUL = 107,
	MOVE_NOT_HANDED_OVER = 108,
	MOVE_RETURNS = 109,
	MOVE_QUEUE_FULL = 110,
};

struct mac {
	__u8 octets[6];
};

/* Token bucket: its rate and its depth. 0 packets per second: nothing passes. */
struct rate {
	__u32 packets_per_s;
	__u32 burst_packets;
};

/* host_config.flags */
#define HOST_FASTPATH 1 /* forward what map `endpoints` knows; else every valid frame is the agent's */
#define HOST_NAT 16	/* map `nat` has a way, and `nat_addresses` is looked at */

/* Map `config`, one entry: this host. abi_version 0: not configured yet. */
struct host_config {
	__u32 abi_version;
	__u32 flags;
	__u32 divbr_ifindex;
	__u32 uplink_ifindex;
	__be32 supernet_be;
	__be32 supernet_mask_be;
	__be32 cell_mask_be; /* supernet and cell: what two addresses of one cell share */
	__be32 host_mask_be; /* host bits of the address plan: all ones is the subnet's broadcast address */
	__u8 host_bits;	     /* widths of the address plan, for a router's MAC */
	__u8 subnet_bits;
	__u16 ticks_per_s; /* of jiffies, in which flows are dated */
	struct mac pmac;
	struct mac divbr_mac;
	struct rate wire_rates[BUCKETS]; /* by enum wire_bucket */
};

/* port.flags */
#define PORT_TRACKED 1 /* flows to and from it are kept, in a table of its own in map `flows` */
#define PORT_SHARES 4 /* it may take addresses besides its own: map `shared` */
#define PORT_TRANSLATED 8 /* its cell has source NAT: what goes outside does so by the namespace that translates */
#define PORT_SPEAKS 16 /* PORT_INCOMING, and all is ready for its guest: what it sends to endpoints is forwarded */
#define PORT_POLICED 2 /* and only those pass that map `port_policies` lets in; tracked, too */

/* Map `ports`: ifindex → port. */
struct port {
	__u32 port_id;
	__u32 state;
	__be32 address_be; /* 0: none yet */
	__be32 router_be;
	struct mac vmac;
	__u16 flags;
	struct rate rates[BUCKETS]; /* by enum port_bucket */
};

/* endpoint.used */
#define ENDPOINT_USED 1  /* a frame to or from it has passed here */
#define ENDPOINT_HEARD 2 /* one came from it: its host is there */
#define ENDPOINT_SENT_ON 256 /* forwarded: one packet that was sent on; they are counted above the flags */

enum endpoint_kind {
	ENDPOINT_REMOTE = 1, /* on another host; usable as discovery has it */
	ENDPOINT_LOCAL = 2,  /* behind an active port of this host */
	ENDPOINT_FENCED = 3, /* behind a fenced port of this host: nobody else may speak for it */
	ENDPOINT_EXTERNAL = 4, /* a server or router without an agent: `host` is its MAC */
};

/* endpoint.flags */
#define ENDPOINT_TRACKED 1 /* local: its port is PORT_TRACKED */
#define ENDPOINT_POLICED 2 /* local: its port is PORT_POLICED */
#define ENDPOINT_TRANSLATED 4 /* local: its port is PORT_TRANSLATED */
#define ENDPOINT_FORWARDED 8 /* remote: it has moved there from here, and what still comes for it is sent on */

/*
 * Map `endpoints`: address → who holds it, as far as frames have needed it. The four words of the claim are the
 * agent's own: a restarted agent takes its neighbours back from here.
 */
struct endpoint {
	__u64 stamp;
	__u64 born;
	__u64 guest_id;
	__u64 identity;
	struct mac vmac;
	struct mac host;  /* remote: pmac of its host; local: of its former one, which sends on what comes late, or zero */
	__u32 ifindex;	  /* local: its tap */
	__u32 used;	  /* remote: ENDPOINT_USED, ENDPOINT_HEARD: set by the programs, cleared by the agent; and
			   * packets sent on, in units of ENDPOINT_SENT_ON, mod 2^24 */
	__u16 port_id;	  /* local */
	__u16 mtu;	  /* bytes of an IP packet in its subnet */
	__u8 kind;
	__u8 flags;
	struct mac next; /* where it is about to move: frames from there pass, too; or zero */
};

/* Map `buckets`: port id → the time at which each bucket is full again (virtual scheduling, as in GCRA). */
struct buckets {
	__u64 full_at_ns[BUCKETS];
};

/*
 * Map `group_lists`: subnet's network address and group → the ports here that get a copy. group 0xffffffff: every
 * active port of the subnet, for broadcast and 224.0.0.0/24. Exchanged as a whole.
 */
#define MAX_GROUP_LISTS 8192
#define MAX_GROUP_MEMBERS 128 /* more are the agent's */
#define GROUP_LIST_COMPLETE 1 /* of a subnet's own: a group without a list has no members here */
#define GROUP_LIST_ROUTED 2   /* of a subnet's own: multicast goes to other subnets, too, by the agent */
#define GROUP_LIST_AGENTS 4   /* of a subnet's own: a port has a policy, or there are too many */
struct group_key {
	__be32 network_be;
	__be32 group_be;
};
struct group_member {
	__u32 ifindex;
	__u32 port_id;
};
struct group_list {
	__u32 count;
	__u16 mtu; /* bytes of an IP packet in the subnet */
	__u16 flags;
	struct group_member members[MAX_GROUP_MEMBERS];
};

/* Map `shared`: an address that a port may take besides its own → whether it has it. ARP may say that it takes it;
 * packets pass from those alone that it has. */
#define MAX_SHARED 65536 /* MAX_PORTS with 16 each */
#define SHARED_ALLOWED 1
#define SHARED_HELD 2
struct shared_key {
	__u32 port_id;
	__be32 address_be;
};

/* Map `groups` and map `peers`: MAC → 1. */
struct mac_key {
	struct mac mac;
	__u8 pad[2];
};

/* Map `drops`, per CPU. */
struct drop_key {
	__u16 port_id;
	__u16 reason;
};
struct drop_count {
	__u64 packets;
	__u64 bytes;
};

/*
 * Map `traffic`, per CPU: port id modulo MAX_PORTS → what the programs handed on; 0 is the uplink. Bytes are those of
 * Ethernet frames as they came; a segmented frame counts its segments.
 */
struct traffic {
	__u64 diverted_packets; /* to the agent */
	__u64 diverted_bytes;
	__u64 from_packets; /* came from the port, and were forwarded; the uplink has none of its own */
	__u64 from_bytes;
	__u64 to_packets; /* were forwarded to the port */
	__u64 to_bytes;
	__u64 uncounted_drops; /* while map `drops` was full */
};

/*
 * Map `flows`: port id modulo MAX_PORTS → the port's own table of flows, flow_key → flow, least recently used first out.
 * The agent makes it for a port that is tracked: docs/adr/flow-state-per-port.md. What is in it, and why: lib/flow.h.
 */
#define FLOWS_PER_PORT 16384	 /* 170 bytes each; guests' conntrack has as much for 128 MiB of memory */
#define FLOWS_PER_CPU 256	 /* at least: the kernel hands free entries to a CPU by 128 */
#define FLOW_TCP_OPEN_S 432000	 /* RFC 5382 REQ-5: no less than 2 h 4 min. 5 days, as conntrack: the bound is the limit */
#define FLOW_TCP_TRANSITORY_S 240 /* opening, closing or closed: RFC 5382 REQ-5; after RST, RFC 7857 §2.1 */
#define FLOW_UDP_ONE_WAY_S 120	 /* RFC 4787 REQ-5: no less than 2 minutes */
#define FLOW_UDP_BOTH_WAYS_S 300 /* RFC 4787 REQ-5 c: recommended */
#define FLOW_ICMP_S 60		 /* RFC 5508 REQ-2: no less than 60 s */
#define FLOW_OTHER_S 600	 /* no RFC; as conntrack */
#define FLOW_FRAGMENT_S 30	 /* receivers give up by then: ipfrag_time of Linux, 15 s in RFC 791 §3.2 */

enum flow_kind {
	FLOW_PAIR = 0,		    /* either side may open it */
	FLOW_ECHO_BY_LOW = 1,	    /* ICMP echo: requests come from the lower address */
	FLOW_ECHO_BY_HIGH = 2,
	FLOW_FRAGMENTS_BY_LOW = 3, /* a datagram in fragments, sent by the lower address: tells the flow */
	FLOW_FRAGMENTS_BY_HIGH = 4,
};

/* Addresses in numerical order; ports go with them. Ports: 0 where the protocol has none, of fragments the datagram's
 * identification and 0. */
struct flow_key {
	__be32 low_be;
	__be32 high_be;
	__be16 low_port_be;
	__be16 high_port_be;
	__u8 protocol;
	__u8 kind;
	__u8 pad[2];
};

/* What one side of a TCP connection has got to. */
enum flow_tcp {
	FLOW_TCP_NONE = 0,
	FLOW_TCP_SYN = 1,	/* sent SYN */
	FLOW_TCP_OPEN = 2,	/* its SYN was acknowledged */
	FLOW_TCP_FIN = 3,	/* sent FIN */
	FLOW_TCP_FIN_ACKED = 4, /* its FIN was acknowledged */
	FLOW_TCP_RESET = 5,	/* either side sent RST: both are in it */
};

/* flow.flags */
#define FLOW_OPENED_BY_HIGH 1 /* the higher address sent the first packet */
#define FLOW_ANSWERED 2	      /* the other side has sent one, too */

struct flow_count {
	__u64 packets; /* segments of what is segmented */
	__u64 bytes;   /* of IP packets */
};

/* counts and tcp: first the opener's, then the other's. */
struct flow {
	__u64 seen_ticks; /* jiffies64 of the last packet; of fragments, of the first */
	__u64 local_identity;
	__u64 remote_identity;
	struct flow_count counts[2];
	__u32 epoch; /* of the policy that let it in */
	__u8 tcp[2]; /* enum flow_tcp */
	__u8 flags;
	__u8 fragments_kind; /* kind and ports of the flow that fragments are of */
	__be16 fragments_low_port_be;
	__be16 fragments_high_port_be;
	__u8 pad[4];
};

/* What a packet is to the flows of a port. */
enum flow_class {
	FLOW_NEW = 1,	      /* opens one */
	FLOW_ESTABLISHED = 2, /* of one, from the side that opened it */
	FLOW_REPLY = 3,	      /* of one, from the other side */
	FLOW_RELATED = 4,     /* ICMP error about a packet of one */
	FLOW_INVALID = 5,     /* can only be part of one, and there is none */
	FLOW_UNTRACKED = 6,   /* never part of one */
};

/*
 * Policy: divhook/policy/table.py has the meaning of scopes, classes and entries; lib/policy.h the look-up.
 */
#define MAX_POLICY_ENTRIES 1048576  /* of all cells with a guest here; divhook/policy/table.py bounds a cell's */
#define MAX_POLICY_IDENTITIES 131072 /* (cell, identity of the other end) */
#define MAX_POLICY_PREFIXES 524288  /* external, of all cells */
#define MAX_CELL_PAIRS 65536
#define MAX_RULE_COUNTS 65536 /* rules that have decided; past it they are not counted */
#define FLOW_LOG_BYTES 262144 /* of the ring: 4,000 events that nobody has read yet; past it they are lost */
#define POLICY_SCOPE_BITS 128 /* of a policy_key: scope and remote */
#define POLICY_SPACE_BITS 24  /* protocol and port */
#define POLICY_CELL_BITS 32   /* of an external_key */

enum policy_direction {
	POLICY_INGRESS = 1, /* the port's endpoint is the destination of the flow */
	POLICY_EGRESS = 2,
};

/* Where the other end is; the first two are one for entries, and two for defaults. */
enum policy_relation {
	POLICY_SUBNET = 1,
	POLICY_CELL = 2,
	POLICY_OTHER = 3,
	POLICY_EXTERNAL = 4,
	POLICY_HOST = 5, /* an address of the host that the port is on */
};

/* Map `port_policies`: port id → what its cell's policy makes of it. Exchanged as a whole. */
struct port_policy {
	__u64 identity;
	__u64 scopes[2];	   /* by enum policy_direction, minus 1; 0: no rules */
	__u64 pickup_until_ticks; /* jiffies64: until then TCP in mid-stream may begin a flow that is allowed */
	struct rate log_rate;
	__be32 cell_be; /* its address, but for subnet and host bits */
	__u32 epoch;	/* of the cell's policy here: a flow of another one is asked about again */
	__u8 allowed[2]; /* where no rule speaks: 1 << enum policy_relation; by direction */
	__u8 pad[6];
};

/* Map `policy_entries` (LPM): scope, class or relation, protocol and port → verdict. Words of scope and remote are in
 * the machine's order: they are compared whole. */
struct policy_key {
	__u32 prefix_bits; /* POLICY_SCOPE_BITS and as many of protocol and port as tell */
	__u32 scope[2];
	__u32 remote[2];
	__u8 protocol;
	__u8 port_be[2];
	__u8 pad;
};

/* policy_entry.flags */
#define POLICY_ALLOW 1
#define POLICY_LOG 2

struct policy_entry {
	__u64 rule;
	__u32 flags;
	__u32 pad;
};

/* Map `policy_identities`: → class of an endpoint for the rules of a cell. One that is not there is not known. */
struct identity_key {
	__u64 identity;
	__be32 cell_be;
	__u32 pad;
};

/* Map `policy_prefixes` (LPM): → class of an external address for the rules of a cell; 0 where none matches. */
struct external_key {
	__u32 prefix_bits;
	__be32 cell_be;
	__be32 address_be;
};

struct policy_class {
	__u64 class;
};

/* Map `cell_pairs`: cells between which some rule of the first could allow something. other_be 0xffffffff: any. */
struct cell_pair {
	__be32 own_be;
	__be32 other_be;
};

/* Map `rule_counts`, per CPU: rule → flows that it has decided. */
struct rule_count {
	__u64 flows;
};

/* flow_event.flags */
#define FLOW_EVENT_OUTWARD 1   /* the packet came from the port */
#define FLOW_EVENT_ENDED 2     /* of a flow that was live, and is forbidden now */
#define FLOW_EVENT_PICKED_UP 4 /* in mid-stream */

/* Ring `flow_log`: divhook/core/flow_log.py. */
struct flow_event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 rule;
	__u64 local_identity;
	__u64 remote_identity;
	__be32 source_be;
	__be32 destination_be;
	__be16 source_port_be; /* ICMP: type and code, one byte each */
	__be16 destination_port_be;
	__u16 port_id;
	__u16 reason; /* enum drop_reason; 0: allowed */
	__u8 protocol;
	__u8 flags;
	__u8 pad[6];
};

/* Map `prefixes` (LPM): what is outside, by the longest prefix of an address. */
#define MAX_PREFIXES 2112 /* 1,024 each: on link, routes; and 64 addresses of the host */
#define PREFIX_ON_LINK 1
#define PREFIX_ROUTE 2
#define PREFIX_HOST 3 /* an address of this host itself */
#define HOST_LINK_MAC {0x06, 0xd1, 0xd1, 0xd1, 0xd1, 0xd2} /* of dvhost, the same everywhere: it never leaves the host */

struct prefix_key {
	__u32 prefix_bits;
	__be32 address_be;
};
struct prefix {
	__u16 kind;
	__u16 mtu;   /* bytes of an IP packet that goes there */
	__u32 route; /* PREFIX_ROUTE: in map `next_hops`; PREFIX_HOST: ifindex of dvhost */
};

/* Map `next_hops`: route → a router for each share of the flows. Exchanged as a whole. */
#define MAX_ROUTES 1024
#define NEXT_HOP_SLOTS 64
#define MAX_NEXT_HOPS 16
struct next_hops {
	__be32 slots_be[NEXT_HOP_SLOTS];
	__be32 hops_be[MAX_NEXT_HOPS]; /* all that the route has, then zero: frames from any of them are good */
};

/*
 * Source NAT: lib/nat.h. Map `nat`, one entry: the way into the namespace that translates. ifindex 0: there is none.
 * Map `nat_addresses`: address that guests' packets are translated to here → whose it is besides.
 */
#define MAX_NAT_ADDRESSES 1024
#define NAT_POOL 1 /* nobody's: all that comes to it is the namespace's */
#define NAT_HOST 2 /* the host's own, which shares it: TCP and UDP from NAT_FIRST_PORT on are the namespace's */
#define NAT_FIRST_PORT 61000 /* above Linux's ip_local_port_range, to 65535 */
struct nat_config {
	__u32 ifindex;
	struct mac mac; /* of the namespace's own end */
	__u8 pad[2];
};

_Static_assert(sizeof(struct mac) == 6, "mac");
_Static_assert(sizeof(struct rate) == 8, "rate");
_Static_assert(sizeof(struct host_config) == 48 + 8 * BUCKETS, "host_config");
_Static_assert(__builtin_offsetof(struct host_config, wire_rates) == 48, "host_config without implicit padding");
_Static_assert(sizeof(struct port) == 24 + 8 * BUCKETS, "port");
_Static_assert(__builtin_offsetof(struct port, rates) == 24, "port without implicit padding");
_Static_assert(sizeof(struct buckets) == 8 * BUCKETS, "buckets");
_Static_assert(sizeof(struct mac_key) == 8, "mac_key");
_Static_assert(sizeof(struct drop_key) == 4, "drop_key");
_Static_assert(sizeof(struct drop_count) == 16, "drop_count");
_Static_assert(sizeof(struct endpoint) == 64, "endpoint");
_Static_assert(__builtin_offsetof(struct endpoint, next) == 58, "endpoint without implicit padding");
_Static_assert(sizeof(struct traffic) == 56, "traffic");
_Static_assert(sizeof(struct flow_key) == 16, "flow_key");
_Static_assert(sizeof(struct flow) == 72, "flow");
_Static_assert(__builtin_offsetof(struct flow, pad) == 68, "flow without implicit padding");
_Static_assert(sizeof(struct port_policy) == 56, "port_policy");
_Static_assert(__builtin_offsetof(struct port_policy, pad) == 50, "port_policy without implicit padding");
_Static_assert(sizeof(struct policy_key) == 24, "policy_key");
_Static_assert(sizeof(struct policy_entry) == 16, "policy_entry");
_Static_assert(sizeof(struct identity_key) == 16, "identity_key");
_Static_assert(sizeof(struct external_key) == 12, "external_key");
_Static_assert(sizeof(struct flow_event) == 56, "flow_event");
_Static_assert(sizeof(struct prefix_key) == 8, "prefix_key");
_Static_assert(sizeof(struct prefix) == 8, "prefix");
_Static_assert(sizeof(struct next_hops) == 4 * (NEXT_HOP_SLOTS + MAX_NEXT_HOPS), "next_hops");
_Static_assert(sizeof(struct nat_config) == 12, "nat_config");
