/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What is outside the virtual address space: the twin of divhook/core/external.py and border.py.
 *
 * Servers and routers without an agent are found by ordinary ARP, which the agent reads. Of plain ARP from the uplink it
 * gets what is from a declared address, and nothing else:
 *
 *   spa declared on link, tpa virtual, a request   to the agent alone, which may answer with pmac
 *   spa declared on link, neither virtual          to the host's own ARP, and a copy to the agent
 *   either address virtual, otherwise              UNKNOWN_HOST: nobody claims a virtual address
 *   tpa of source NAT's pool, a request            answered with pmac; where spa is, too, somebody else claims it: as above
 *   all else                                       the host's own ARP
 */
#pragma once

#include "arp.h"
#include "count.h"
#include "forward.h"
#include "host.h"
#include "limit.h"
#include "nat.h"

static __always_inline bool is_on_link(__be32 address_be)
{
	const struct prefix *prefix = prefix_of(address_be);

	return prefix && prefix->kind == PREFIX_ON_LINK;
}

/* For a frame from the uplink that is diverted and will be cut: the kernel queues its segments one by one, and tells a
 * wrong source MAC of them. */
static __always_inline void tell_sender(struct __sk_buff *skb, const struct mac *source)
{
	__u32 last;

	if (!skb->gso_size)
		return;
	__builtin_memcpy(&last, &source->octets[2], sizeof(last));
	skb->mark |= MARK_SEGMENTS | (__u32)(source->octets[0] << 8 | source->octets[1]) << MARK_PORT_SHIFT;
	skb->priority = bpf_ntohl(last);
}

/* Not inlined: a frame of its own. mark: of a frame from the uplink that is diverted. */
static __noinline int wire_plain_arp(struct __sk_buff *skb, const struct host_config *host, const struct frame *frame,
				     __u32 mark)
{
	__u32 before = skb->mark;
	bool about_guests;
	struct arp arp;

	if (bpf_skb_load_bytes(skb, frame->l3, &arp, sizeof(arp)))
		return PASS; /* the host's ARP refuses it */
	about_guests = is_virtual(host, arp.spa_be) || is_virtual(host, arp.tpa_be);
	if (about_guests && (frame->tagged || is_virtual(host, arp.spa_be)))
		return drop(skb, 0, frame->tagged ? VLAN_TAGGED : UNKNOWN_HOST);
	if (!about_guests && !frame->tagged && arp.op_be == bpf_htons(ARP_REQUEST) && nat_address(host, arp.tpa_be) == NAT_POOL &&
	    nat_address(host, arp.spa_be) != NAT_POOL)
		return nat_arp(skb, host, frame, &arp, mark);
	if (frame->tagged || (!is_on_link(arp.spa_be) && nat_address(host, arp.spa_be) != NAT_POOL))
		return about_guests ? drop(skb, 0, UNKNOWN_HOST) : PASS;
	if (about_guests && arp.op_be != bpf_htons(ARP_REQUEST))
		return drop(skb, 0, UNKNOWN_HOST);
	if (!conforms(skb, 0, BUCKET_STRANGER_DISCOVERY, &host->wire_rates[BUCKET_STRANGER_DISCOVERY]))
		return about_guests ? drop(skb, 0, DISCOVERY_RATE_LIMITED) : PASS;
	count_diverted(skb, 0);
	skb->mark = mark;
	if (about_guests)
		return bpf_redirect(host->divbr_ifindex, BPF_F_INGRESS);
	bpf_clone_redirect(skb, host->divbr_ifindex, BPF_F_INGRESS);
	skb->mark = before;
	return PASS;
}

/* No single host's address: multicast, broadcast, class E, loopback, "this". */
static __always_inline bool is_martian(__be32 address_be)
{
	__u32 first = bpf_ntohl(address_be) >> 24;

	return first == 0 || first == 127 || first >= 224;
}

/* Which share of a route a flow has: divhook/core/external.py, flow_hash. */
static __always_inline __u32 flow_slot(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 value = bpf_ntohl(packet->source_be);
	__be32 ports_be = 0;

	if ((packet->protocol == PROTOCOL_TCP || packet->protocol == PROTOCOL_UDP) && !packet->fragment &&
	    packet->total_length >= packet->header_length + sizeof(ports_be))
		bpf_skb_load_bytes(skb, ETH_LEN + packet->header_length, &ports_be, sizeof(ports_be));
	value = value * 0x9e3779b1 ^ bpf_ntohl(packet->destination_be);
	value ^= value >> 15;
	value = value * 0x9e3779b1 ^ bpf_ntohl(ports_be);
	value ^= value >> 15;
	value = value * 0x9e3779b1 ^ packet->protocol;
	value ^= value >> 15;
	return value * 0x85ebca6b >> 26;
}

/* Who is to get a packet for an address of the prefix; 0 where that is not known. */
static __always_inline __be32 next_hop_of(struct __sk_buff *skb, const struct prefix *prefix,
					  const struct packet *packet)
{
	const struct next_hops *hops;

	if (prefix->kind != PREFIX_ROUTE)
		return packet->destination_be;
	hops = bpf_map_lookup_elem(&next_hops, &prefix->route);
	return hops ? hops->slots_be[flow_slot(skb, packet) & (NEXT_HOP_SLOTS - 1)] : 0;
}

/* A valid packet of an active port to an address outside, in a frame to the router. */
static __always_inline int forward_to_external(struct __sk_buff *skb, const struct host_config *host,
					       const struct port *port, const struct packet *packet)
{
	const struct nat_config *way = 0;
	const struct prefix *prefix;
	struct endpoint *server;
	struct headers *start;
	__u32 bytes = skb->len, packets;
	int verdict;

	if (!(port->flags & PORT_POLICED) || is_martian(packet->destination_be))
		return NOT_KNOWN; /* only a policy lets anything out */
	prefix = prefix_of(packet->destination_be);
	if (!prefix)
		return NOT_KNOWN;
	if (prefix->kind == PREFIX_HOST)
		return forward_to_host(skb, port, packet, prefix->route);
	if (nat_address(host, packet->destination_be))
		return NOT_KNOWN;
	if (port->flags & PORT_TRANSLATED) {
		way = nat_here();
		if (!way)
			return NOT_KNOWN;
	}
	server = endpoint_of(next_hop_of(skb, prefix, packet));
	if (!server || server->kind != ENDPOINT_EXTERNAL || packet->ttl <= 1 ||
	    !fits(skb, packet, prefix->mtu, &packets))
		return NOT_KNOWN;
	verdict = enforce(skb, port->port_id, port->port_id, packets, STEP_OUTWARD | STEP_POLICED, 0);
	if (verdict != PASSES)
		return verdict;
	if (!trim(skb, packet))
		return NOT_KNOWN;
	start = FRAME_START(skb, struct headers);
	if (!start)
		return NOT_KNOWN;
	count_from(port->port_id, packets, bytes);
	endpoint_used(server);
	if (way)
		return into_nat(skb, host, way, start);
	ttl_decrement(start);
	return to_uplink(skb, host, start, &server->host);
}

/* The next hop of a route that has this MAC. */
static __always_inline struct endpoint *next_hop_at(__u32 route, const struct mac *source)
{
	const struct next_hops *hops = bpf_map_lookup_elem(&next_hops, &route);

	if (!hops)
		return 0;
	for (int i = 0; i < MAX_NEXT_HOPS; i++) {
		struct endpoint *hop;
		__be32 address_be = hops->hops_be[i];

		if (!address_be)
			break;
		hop = endpoint_of(address_be);
		if (hop && hop->kind == ENDPOINT_EXTERNAL && mac_equal(&hop->host, source))
			return hop;
	}
	return 0;
}

/* Who sends with this MAC from an address of the prefix: itself, or a next hop; null where neither is known to. */
static __always_inline struct endpoint *speaker_of(const struct prefix *prefix, __be32 source_be,
						   const struct mac *source)
{
	struct endpoint *sender;

	if (prefix->kind == PREFIX_ROUTE)
		return next_hop_at(prefix->route, source);
	sender = endpoint_of(source_be);
	return sender && sender->kind == ENDPOINT_EXTERNAL && mac_equal(source, &sender->host) ? sender : 0;
}

/* A valid packet to the host's pmac from `source`, with a virtual destination, of an address outside. */
static __always_inline int forward_from_external(struct __sk_buff *skb, const struct host_config *host,
						 const struct packet *packet, const struct mac *source)
{
	struct endpoint *local = endpoint_of(packet->destination_be), *sender;
	const struct prefix *prefix = prefix_of(packet->source_be);
	struct headers *start;
	__u32 bytes = skb->len, packets;
	int verdict;

	if (!prefix || prefix->kind == PREFIX_HOST || !local || local->kind != ENDPOINT_LOCAL ||
	    !(local->flags & ENDPOINT_POLICED) || packet->ttl <= 1)
		return NOT_KNOWN;
	if (local->flags & ENDPOINT_TRANSLATED)
		return drop(skb, 0, NAT_UNTRANSLATED);
	sender = speaker_of(prefix, packet->source_be, source);
	if (!sender || !fits(skb, packet, local->mtu, &packets))
		return NOT_KNOWN;
	verdict = enforce(skb, 0, local->port_id, packets, STEP_POLICED, 0);
	if (verdict != PASSES)
		return verdict;
	if (!trim(skb, packet))
		return NOT_KNOWN;
	start = FRAME_START(skb, struct headers);
	if (!start)
		return NOT_KNOWN;
	endpoint_heard(sender);
	ttl_decrement(start);
	return from_router(skb, host, start, local, packet->destination_be, packets, bytes);
}
