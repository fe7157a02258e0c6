// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The tc programs: from_guest at the ingress of every port, from_wire at the ingress of the uplink, from_nat where what
 * the namespace with source NAT has translated comes out, from_host where what the host's own stack sends to guests
 * does, at dvhost's peer.
 *
 * Default deny from a guest: what is not understood is dropped, with its reason. Default pass from the wire: what is
 * not ours goes on to the host's own stack as if there were no program. A valid frame of the virtual space is forwarded
 * as the agent has decided before (map `endpoints`), or else diverted to the agent, by the mark (abi.h).
 *
 * Invariants (tests/bpf):
 *  - no tagged frame, no foreign source MAC, IPv4 source, sha or spa leaves a port;
 *  - a guest cannot choose the mark, nor reach an address of the host: the destination MAC becomes divbr0's, and what
 *    bears the mark is the agent's or dropped;
 *  - no neighbour makes the host's own stack see a virtual address, by IPv4 or by ARP.
 */
#include "lib/arp.h"
#include "lib/count.h"
#include "lib/ethernet.h"
#include "lib/external.h"
#include "lib/forward.h"
#include "lib/from_nat.h"
#include "lib/group.h"
#include "lib/host.h"
#include "lib/ipv4.h"
#include "lib/limit.h"

#define PACKET_HOST 0 /* linux/if_packet.h */

#define PORT_WIRE 0

static __always_inline const struct host_config *this_host(void)
{
	__u32 only = 0;
	const struct host_config *host = bpf_map_lookup_elem(&config, &only);

	return host && host->abi_version == DIVHOOK_ABI_VERSION ? host : 0;
}

static __always_inline __u32 divert_mark(__u32 port_id, bool group)
{
	return MARK_DIVERT | (group ? MARK_GROUP : 0) | port_id << MARK_PORT_SHIFT;
}

/* Hand a frame from a port to the agent: into divbr0 as if addressed to it. A fenced port has DHCP alone: a NAK. */
static __always_inline int divert(struct __sk_buff *skb, const struct host_config *host, const struct port *port,
				  bool group, __u32 bucket)
{
	if (port->state == PORT_FENCED && bucket != BUCKET_DHCP)
		return drop(skb, port->port_id, PORT_NOT_ACTIVE);
	if (!conforms(skb, port->port_id, bucket, &port->rates[bucket]))
		return drop(skb, port->port_id, DIVERT_RATE_LIMITED);
	if (bpf_skb_store_bytes(skb, 0, &host->divbr_mac, sizeof(host->divbr_mac), 0) ||
	    bpf_skb_change_type(skb, PACKET_HOST))
		return drop(skb, port->port_id, INTERNAL_ERROR);
	skb->mark = divert_mark(port->port_id, group);
	count_diverted(skb, port->port_id);
	return PASS;
}

/* What a port has to do with an address that is not its own: SHARED_…, or 0 for nothing. */
static __always_inline __u32 shares(const struct port *port, __be32 address_be)
{
	struct shared_key key = {.port_id = port->port_id, .address_be = address_be};
	const __u32 *found;

	if (!(port->flags & PORT_SHARES))
		return 0;
	found = bpf_map_lookup_elem(&shared, &key);
	return found ? *found : 0;
}

/* A valid IPv4 packet from a guest. group: its frame went to a group MAC. */
static __always_inline int guest_packet(struct __sk_buff *skb, const struct host_config *host, const struct port *port,
					const struct packet *packet, bool group)
{
	__be32 destination = packet->destination_be;
	__be32 source = packet->source_be;
	bool dhcp = packet_is_dhcp_request(packet) && !packet->fragment;
	bool to_server = destination && (destination == bpf_htonl(0xffffffff) || destination == port->router_be);
	bool igmp = packet->protocol == PROTOCOL_IGMP, speaks;
	int verdict;

	/* RFC 2131 §4.1, §4.3.2: a DHCP client may have no address yet, or one from before; the agent answers, and no
	 * frame goes on. Nothing else may speak from 0.0.0.0 (RFC 1122 §3.2.1.3). */
	if (!(dhcp && to_server) &&
	    (!source || (source != port->address_be && shares(port, source) != SHARED_HELD)))
		return drop(skb, port->port_id, SPOOF_IPV4);
	if (!dhcp && packet_touches_dhcp(packet))
		return drop(skb, port->port_id, ROGUE_DHCP);
	/* Whatever becomes of it: one frame to a group costs every host of the subnet, and each port there. */
	if (group && !dhcp && !igmp && !conforms(skb, port->port_id, BUCKET_GROUP, &port->rates[BUCKET_GROUP]))
		return drop(skb, port->port_id, GROUP_RATE_LIMITED);
	/* One condition for both states, and so one forward_from_guest: each costs instructions and stack. */
	speaks = port->state == PORT_ACTIVE ||
		 (port->state == PORT_INCOMING && port->flags & PORT_SPEAKS && !group &&
		  is_virtual(host, destination) && destination != port->address_be);
	if (!dhcp && speaks && host->flags & HOST_FASTPATH) {
		if (group && !igmp) {
			struct packet to_group = *packet; /* so that others may stay in registers */

			verdict = group_from_guest(skb, host, port, &to_group);
		} else {
			verdict = group || is_virtual(host, packet->destination_be) ?
					  forward_from_guest(skb, host, port, packet, group) :
					  forward_to_external(skb, host, port, packet);
		}
		if (verdict != NOT_KNOWN)
			return verdict;
	}
	return divert(skb, host, port, group, dhcp ? BUCKET_DHCP : igmp ? BUCKET_ARP : BUCKET_IPV4);
}

static __always_inline int guest_ipv4(struct __sk_buff *skb, const struct host_config *host, const struct port *port,
				      const struct frame *frame)
{
	struct packet packet = {};
	enum drop_reason reason = packet_parse_untrusted(skb, frame->l3, &packet);

	if (reason != VALID)
		return drop(skb, port->port_id, reason);
	return guest_packet(skb, host, port, &packet, mac_is_group(&frame->ethernet.destination));
}

/* The router's MAC, or that of an endpoint that is known: told at once. Else the agent answers, or asks. */
static __always_inline int answer_arp(struct __sk_buff *skb, const struct host_config *host, const struct port *port,
				      const struct arp *request)
{
	struct mac mac;

	if (request->op_be != bpf_htons(ARP_REQUEST) || !port->address_be || request->tpa_be == port->address_be ||
	    request->tpa_be == request->spa_be ||
	    !same_subnet(host, request->tpa_be, port->address_be))
		return NOT_KNOWN;
	if (request->tpa_be == port->router_be) {
		router_mac(host, request->tpa_be, &mac);
	} else {
		struct endpoint *endpoint = endpoint_of(request->tpa_be);

		if (!endpoint || endpoint->kind == ENDPOINT_FENCED ||
		    (endpoint->kind == ENDPOINT_LOCAL && endpoint->port_id == port->port_id))
			return NOT_KNOWN;
		if (endpoint->kind == ENDPOINT_REMOTE)
			endpoint_used(endpoint);
		mac = endpoint->vmac;
	}
	return arp_answer(skb, port->port_id, request, &mac, skb->ifindex); /* sha is vmac: guest_arp */
}

/* Not inlined: its stack would be from_guest's own, and so on top of flow_step's. Linux 6.1 has 512 bytes for all. */
static __noinline int guest_arp(struct __sk_buff *skb, const struct host_config *host, const struct port *port,
				     const struct frame *frame)
{
	struct arp arp;
	enum drop_reason reason = arp_parse_untrusted(skb, frame->l3, &arp, ARP_REQUEST, ARP_REPLY);
	__u32 known = SHARED_HELD;

	if (reason != VALID)
		return drop(skb, port->port_id, reason);
	if (!mac_equal(&arp.sha, &port->vmac))
		return drop(skb, port->port_id, SPOOF_ARP_SHA);
	if (arp.spa_be != 0 && arp.spa_be != port->address_be) { /* 0: a probe, RFC 5227 §2.1.1 */
		known = shares(port, arp.spa_be);
		if (!known)
			return drop(skb, port->port_id, SPOOF_ARP_SPA);
	}
	/* One that takes an address is the agent's. */
	if (known == SHARED_HELD && port->state == PORT_ACTIVE && host->flags & HOST_FASTPATH) {
		int verdict = answer_arp(skb, host, port, &arp);

		if (verdict != NOT_KNOWN)
			return verdict;
	}
	return divert(skb, host, port, mac_is_group(&frame->ethernet.destination), BUCKET_ARP);
}

/* QEMU announces a guest that has moved here with a RARP of its own MAC; nothing else speaks RARP. */
static __always_inline int guest_rarp(struct __sk_buff *skb, const struct host_config *host, const struct port *port,
				      const struct frame *frame)
{
	struct arp arp;
	enum drop_reason reason = arp_parse_untrusted(skb, frame->l3, &arp, RARP_REQUEST, RARP_REPLY);

	if (reason != VALID)
		return drop(skb, port->port_id, reason);
	if (!mac_equal(&arp.sha, &port->vmac) || !mac_equal(&arp.tha, &port->vmac))
		return drop(skb, port->port_id, ARP_MALFORMED);
	return divert(skb, host, port, mac_is_group(&frame->ethernet.destination), BUCKET_ARP);
}

SEC("tc")
int from_guest(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	const struct host_config *host = this_host();
	const struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	struct ordinary *start;
	struct packet packet;
	struct frame frame;

	skb->mark = 0;
	if (!host || !port)
		return drop(skb, PORT_WIRE, PORT_UNKNOWN);
	if (port->state < PORT_TENTATIVE || port->state > PORT_FENCED)
		return drop(skb, port->port_id, PORT_NOT_ACTIVE);
	start = FRAME_START(skb, struct ordinary);
	if (start && start->headers.ethernet.type_be == bpf_htons(TYPE_IPV4) && !skb->vlan_present &&
	    mac_equal(&start->headers.ethernet.source, &port->vmac) && ordinary_valid(skb, start, &packet))
		return guest_packet(skb, host, port, &packet, mac_is_group(&start->headers.ethernet.destination));

	if (!frame_parse_untrusted(skb, &frame))
		return drop(skb, port->port_id, TRUNCATED);
	if (frame.tagged)
		return drop(skb, port->port_id, VLAN_TAGGED);
	if (mac_is_group(&frame.ethernet.source) || mac_is_zero(&frame.ethernet.source))
		return drop(skb, port->port_id, SOURCE_MAC_GROUP);
	if (frame.type == TYPE_IPV6)
		return drop(skb, port->port_id, IPV6_UNSUPPORTED);
	if (frame.type != TYPE_IPV4 && frame.type != TYPE_ARP && frame.type != TYPE_RARP)
		return drop(skb, port->port_id, ETHERTYPE);
	if (!mac_equal(&frame.ethernet.source, &port->vmac))
		return drop(skb, port->port_id, SPOOF_MAC);

	switch (frame.type) {
	case TYPE_IPV4:
		return guest_ipv4(skb, host, port, &frame);
	case TYPE_ARP:
		return guest_arp(skb, host, port, &frame);
	default:
		return guest_rarp(skb, host, port, &frame);
	}
}

/* How a frame from the wire is addressed. */
enum addressed {
	TO_OTHER,  /* unicast to somebody else */
	TO_HOST,   /* pmac */
	TO_GROUP,  /* 03:d1:…, joined */
	TO_FOREIGN_GROUP, /* 03:d1:…, not joined */
	TO_MULTICAST,	  /* any other group address, broadcast included */
};

static __always_inline struct mac_key mac_key(const struct mac *mac)
{
	struct mac_key key = {.mac = *mac};

	return key;
}

static __always_inline enum addressed addressed(const struct host_config *host, const struct mac *destination)
{
	if (mac_equal(destination, &host->pmac))
		return TO_HOST;
	if (!mac_is_group(destination))
		return TO_OTHER;
	if (destination->octets[0] == 0x03 && destination->octets[1] == 0xd1) {
		struct mac_key key = mac_key(destination);

		return bpf_map_lookup_elem(&groups, &key) ? TO_GROUP : TO_FOREIGN_GROUP;
	}
	return TO_MULTICAST;
}

/* An address that a group frame may bear: multicast (RFC 1112), limited broadcast, or a subnet's broadcast. */
static __always_inline bool is_group_address(const struct host_config *host, __be32 address_be)
{
	return (address_be & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || address_be == bpf_htonl(0xffffffff) ||
	       (is_virtual(host, address_be) && (address_be & host->host_mask_be) == host->host_mask_be);
}

static __always_inline bool is_peer(const struct mac *source)
{
	struct mac_key key = mac_key(source);

	return bpf_map_lookup_elem(&peers, &key);
}

/* Whether a packet is from outside, and its sender one that has answered the host's ARP: no stranger. */
static __always_inline bool answers_outside(const struct host_config *host, const struct packet *packet,
					    const struct mac *source)
{
	const struct prefix *prefix = is_virtual(host, packet->source_be) ? 0 : prefix_of(packet->source_be);

	return prefix && speaker_of(prefix, packet->source_be, source);
}

/* A valid IPv4 packet with a virtual address, in a frame from `source` to this host or to a joined group. */
static __always_inline int wire_packet(struct __sk_buff *skb, const struct host_config *host,
				       const struct packet *packet, const struct mac *source, bool group)
{
	__u32 bucket;

	if (group && !is_group_address(host, packet->destination_be))
		return drop(skb, PORT_WIRE, WIRE_GROUP_UNICAST);
	if (!group && !is_virtual(host, packet->destination_be))
		return drop(skb, PORT_WIRE, SPOOF_SOURCE); /* a guest speaks to the host through the agent only */
	if (packet_touches_dhcp(packet))
		return drop(skb, PORT_WIRE, ROGUE_DHCP);
	if (host->flags & HOST_FASTPATH) {
		int verdict;

		if (group) {
			struct packet to_group = *packet;
			struct mac from = *source;

			verdict = group_from_wire(skb, host, &to_group, &from);
		} else {
			verdict = is_virtual(host, packet->source_be) ? forward_from_wire(skb, host, packet, source) :
									forward_from_external(skb, host, packet, source);
		}

		if (verdict != NOT_KNOWN)
			return verdict;
	}
	bucket = is_peer(source) || answers_outside(host, packet, source) ? BUCKET_PEER_IPV4 : BUCKET_STRANGER_IPV4;
	if (!conforms(skb, PORT_WIRE, bucket, &host->wire_rates[bucket]))
		return drop(skb, PORT_WIRE, DIVERT_RATE_LIMITED);
	skb->mark = divert_mark(PORT_WIRE, group);
	tell_sender(skb, source);
	count_diverted(skb, PORT_WIRE);
	return PASS;
}

static __always_inline int wire_ipv4(struct __sk_buff *skb, const struct host_config *host, const struct frame *frame,
				     enum addressed to)
{
	struct packet packet = {};
	enum drop_reason reason = packet_parse_untrusted(skb, frame->l3, &packet);

	/* A header too short to show its addresses leaves them zero: the host's stack refuses it. */
	bool theirs = !is_virtual(host, packet.source_be) && !is_virtual(host, packet.destination_be);

	if (theirs)
		return to == TO_HOST && nat_address(host, packet.destination_be) ?
			       wire_to_nat(skb, host, frame->l3, divert_mark(PORT_WIRE, false)) :
			       PASS;
	if (to == TO_MULTICAST)
		return drop(skb, PORT_WIRE, L2_MULTICAST_MISMATCH);
	if (frame->tagged)
		return drop(skb, PORT_WIRE, VLAN_TAGGED);
	if (mac_is_group(&frame->ethernet.source) || mac_is_zero(&frame->ethernet.source))
		return drop(skb, PORT_WIRE, SOURCE_MAC_GROUP);
	if (reason != VALID)
		return drop(skb, PORT_WIRE, reason);
	return wire_packet(skb, host, &packet, &frame->ethernet.source, to == TO_GROUP);
}

/* Into divbr0, where the agent's packet socket is and no ARP of the host. The frame is not changed: it is signed. */
static __always_inline int wire_discovery(struct __sk_buff *skb, const struct host_config *host,
					  const struct frame *frame, enum addressed to)
{
	__u32 bucket = is_peer(&frame->ethernet.source) ? BUCKET_PEER_DISCOVERY : BUCKET_STRANGER_DISCOVERY;

	if (frame->tagged)
		return drop(skb, PORT_WIRE, VLAN_TAGGED);
	if (mac_is_group(&frame->ethernet.source) || mac_is_zero(&frame->ethernet.source))
		return drop(skb, PORT_WIRE, SOURCE_MAC_GROUP);
	if (skb->len < DISCOVERY_MIN_LEN || skb->len > DISCOVERY_MAX_LEN)
		return drop(skb, PORT_WIRE, DISCOVERY_MALFORMED);
	if (!conforms(skb, PORT_WIRE, bucket, &host->wire_rates[bucket]))
		return drop(skb, PORT_WIRE, DISCOVERY_RATE_LIMITED);
	skb->mark = divert_mark(PORT_WIRE, to == TO_GROUP);
	count_diverted(skb, PORT_WIRE);
	return bpf_redirect(host->divbr_ifindex, BPF_F_INGRESS);
}

SEC("tc")
int from_wire(struct __sk_buff *skb)
{
	const struct host_config *host = this_host();
	struct ordinary *start;
	struct packet packet;
	struct frame frame;
	enum addressed to;

	if (!host)
		return PASS;
	start = FRAME_START(skb, struct ordinary);
	if (start && start->headers.ethernet.type_be == bpf_htons(TYPE_IPV4) && !skb->vlan_present &&
	    mac_equal(&start->headers.ethernet.destination, &host->pmac)) {
		struct mac source = start->headers.ethernet.source;

		bool theirs = !is_virtual(host, start->headers.source_be) &&
			      !is_virtual(host, start->headers.destination_be);

		if (theirs)
			return nat_address(host, start->headers.destination_be) ?
				       wire_to_nat(skb, host, ETH_LEN, divert_mark(PORT_WIRE, false)) :
				       PASS; /* the host's own traffic */
		if (!mac_is_group(&source) && !mac_is_zero(&source) && ordinary_valid(skb, start, &packet))
			return wire_packet(skb, host, &packet, &source, false);
	}
	if (!frame_parse_untrusted(skb, &frame))
		return PASS;
	to = addressed(host, &frame.ethernet.destination);
	if (to == TO_OTHER)
		return PASS;
	if (to == TO_FOREIGN_GROUP)
		return drop(skb, PORT_WIRE, NOT_JOINED);
	/* The stack unpacks as many tags as there are; nobody honest sends so many. */
	if (type_is_tag(frame.type))
		return drop(skb, PORT_WIRE, VLAN_TAGGED);

	if (frame.type == TYPE_IPV4)
		return wire_ipv4(skb, host, &frame, to);
	if (frame.type != TYPE_ARP && frame.type != TYPE_EXPERIMENT)
		return PASS;
	if (to != TO_MULTICAST && discovery_magic(skb, frame.l3))
		return wire_discovery(skb, host, &frame, to);
	return frame.type == TYPE_ARP ? wire_plain_arp(skb, host, &frame, divert_mark(PORT_WIRE, to != TO_HOST)) : PASS;
}

/* Out of the namespace with source NAT: translated, or a reply. Nothing else leaves it. */
SEC("tc")
int from_nat(struct __sk_buff *skb)
{
	const struct host_config *host = this_host();
	const struct nat_config *way = nat_here();
	struct packet packet = {};
	struct frame frame;
	int verdict = NOT_KNOWN;
	bool reply;

	skb->mark = 0;
	if (!host || !way || !frame_parse_untrusted(skb, &frame) || frame.tagged || frame.type != TYPE_IPV4 ||
	    packet_parse_untrusted(skb, frame.l3, &packet) != VALID)
		return drop(skb, PORT_WIRE, NAT_UNTRANSLATED);
	reply = is_virtual(host, packet.destination_be);
	if (!reply && (is_virtual(host, packet.source_be) || !nat_address(host, packet.source_be)))
		return drop(skb, PORT_WIRE, NAT_UNTRANSLATED);
	if (host->flags & HOST_FASTPATH)
		verdict = reply ? nat_to_guest(skb, host, &packet) : nat_to_wire(skb, host, &packet);
	if (verdict != NOT_KNOWN)
		return verdict;
	if (!conforms(skb, PORT_WIRE, BUCKET_PEER_IPV4, &host->wire_rates[BUCKET_PEER_IPV4]))
		return drop(skb, PORT_WIRE, DIVERT_RATE_LIMITED);
	if (bpf_skb_store_bytes(skb, 0, &way->mac, sizeof(way->mac), 0) || bpf_skb_change_type(skb, PACKET_HOST))
		return drop(skb, PORT_WIRE, INTERNAL_ERROR);
	skb->mark = divert_mark(PORT_WIRE, false) | MARK_NAT;
	count_diverted(skb, PORT_WIRE);
	return PASS;
}

/* Without a fast path the agent reads what passes. Whatever does is for another MAC than this device's: no stack's. */
SEC("tc")
int from_host(struct __sk_buff *skb)
{
	const struct host_config *host = this_host();
	struct packet packet = {};
	enum drop_reason reason;
	struct frame frame;

	skb->mark = 0;
	if (!host || !frame_parse_untrusted(skb, &frame))
		return drop(skb, PORT_WIRE, TRUNCATED);
	if (frame.tagged || frame.type != TYPE_IPV4)
		return drop(skb, PORT_WIRE, ETHERTYPE);
	reason = packet_parse_untrusted(skb, frame.l3, &packet);
	if (reason != VALID)
		return drop(skb, PORT_WIRE, reason);
	return host->flags & HOST_FASTPATH ? forward_from_host(skb, host, &packet) : PASS;
}

/* The clock of map `flows`, read by a test-run: its low word in cb, the high one in the mark. Attached nowhere. */
SEC("tc")
int ticks(struct __sk_buff *skb)
{
	__u64 now = bpf_jiffies64();

	skb->cb[0] = now;
	skb->mark = now >> 32;
	return PASS;
}

char _license[] SEC("license") = "GPL"; /* the kernel's word; either licence above applies */
