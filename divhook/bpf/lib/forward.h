/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What the agent has decided before, decided again: the twin of Pipeline._guest_unicast and ._wire_to_guest.
 *
 *   to_wire   src := own pmac                                      dst := the peer's pmac
 *   to_guest  src := the sender's vmac in the same subnet, or rmac dst := vmac
 *   routed    TTL-1 at the sending host
 *
 * Each function returns a verdict, or NOT_KNOWN where the agent must see the frame.
 */
#pragma once

#include "count.h"
#include "arp.h"
#include "enforce.h"
#include "ipv4.h"

static __always_inline bool same_cell(const struct host_config *host, __be32 a_be, __be32 b_be)
{
	return !((a_be ^ b_be) & host->cell_mask_be);
}

static __always_inline bool same_subnet(const struct host_config *host, __be32 a_be, __be32 b_be)
{
	return !((a_be ^ b_be) & ~host->host_mask_be);
}

/* rmac of a virtual address's subnet: 02:d1, cell, subnet (divhook/core/addressing.py). */
static __always_inline void router_mac(const struct host_config *host, __be32 address_be, struct mac *mac)
{
	__u32 within = bpf_ntohl(address_be & ~host->supernet_mask_be) >> (host->host_bits & 31);
	__u32 subnet = within & ((1u << (host->subnet_bits & 31)) - 1);
	__u32 cell = within >> (host->subnet_bits & 31);
	__be16 *words_be = (void *)mac;

	words_be[0] = bpf_htons(0x02d1);
	words_be[1] = bpf_htons(cell);
	words_be[2] = bpf_htons(subnet);
}

static __always_inline struct endpoint *endpoint_of(__be32 address_be)
{
	return bpf_map_lookup_elem(&endpoints, &address_be);
}

/* A neighbour is in use. Written only where that is news: CPUs do not fight for the line, and a clock would cost more
 * than the rest of the look-up. */
static __always_inline void endpoint_used(struct endpoint *endpoint)
{
	if (!(endpoint->used & ENDPOINT_USED))
		__sync_fetch_and_or(&endpoint->used, ENDPOINT_USED);
}

/* The same for a frame from it. */
static __always_inline void endpoint_heard(struct endpoint *endpoint)
{
	if (~endpoint->used & (ENDPOINT_USED | ENDPOINT_HEARD))
		__sync_fetch_and_or(&endpoint->used, ENDPOINT_USED | ENDPOINT_HEARD);
}

/* Whether frames of an endpoint may come from a host: its own, or the one that it is about to move to. */
static __always_inline bool speaks_from(const struct endpoint *endpoint, const struct mac *host)
{
	return (endpoint->kind == ENDPOINT_REMOTE && mac_equal(host, &endpoint->host)) ||
	       (endpoint->kind != ENDPOINT_FENCED && mac_equal(host, &endpoint->next));
}

/* Whether the frame, or each segment that will be made of it, fits into an MTU; packets: how many it will be on a wire.
 * (A frame from a tap bears no gso_segs: that is found when it is cut.) */
static __always_inline bool fits(struct __sk_buff *skb, const struct packet *packet, __u32 mtu, __u32 *packets)
{
	__u32 headers = packet->header_length;
	__u32 payload;
	__u8 data_offset;

	*packets = 1;
	if (packet->total_length <= mtu)
		return true;
	if (!skb->gso_size || packet->fragment)
		return false;
	if (packet->protocol == PROTOCOL_UDP)
		headers += UDP_LEN;
	else if (packet->protocol != PROTOCOL_TCP ||
		 bpf_skb_load_bytes(skb, ETH_LEN + headers + 12, &data_offset, sizeof(data_offset)))
		return false;
	else
		headers += data_offset >> 4 << 2;
	if (headers > packet->total_length || headers + skb->gso_size > mtu)
		return false;
	payload = packet->total_length - headers;
	*packets = (payload + skb->gso_size - 1) / skb->gso_size;
	return true;
}

/* Cut what follows the packet: nothing goes on that its header does not own. False where that can't be done here. */
static __always_inline bool trim(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 length = ETH_LEN + packet->total_length;

	return skb->len == length || (!skb->gso_size && !bpf_skb_change_tail(skb, length, 0));
}

/* The target shows in cb, where a test-run can read it; nobody else does. */
static __always_inline int redirect(struct __sk_buff *skb, __u32 ifindex)
{
	skb->cb[0] = ifindex;
	return bpf_redirect(ifindex, 0);
}

/* Out of the uplink, to a MAC. */
static __always_inline int to_uplink(struct __sk_buff *skb, const struct host_config *host, struct headers *start,
				     const struct mac *destination)
{
	mac_copy(&start->ethernet.destination, destination);
	mac_copy(&start->ethernet.source, &host->pmac);
	return redirect(skb, host->uplink_ifindex);
}

/* Into the tap of an endpoint of this host, from its router. packets, bytes: for its counter. */
static __always_inline int from_router(struct __sk_buff *skb, const struct host_config *host, struct headers *start,
				       const struct endpoint *local, __be32 address_be, __u32 packets, __u32 bytes)
{
	mac_copy(&start->ethernet.destination, &local->vmac);
	router_mac(host, address_be, &start->ethernet.source);
	count_to(local->port_id, packets, bytes);
	return redirect(skb, local->ifindex);
}

/* Answer a request: tpa is at `mac`. The frame becomes the answer, and goes out of ifindex. */
static __always_inline int arp_answer(struct __sk_buff *skb, __u32 port_id, const struct arp *request,
				      const struct mac *mac, __u32 ifindex)
{
	struct {
		struct ethernet ethernet;
		struct arp arp;
	} __attribute__((packed)) reply;
	__u32 bytes = skb->len;

	reply.ethernet.destination = request->sha;
	reply.ethernet.source = *mac;
	reply.ethernet.type_be = bpf_htons(TYPE_ARP);
	reply.arp = *request;
	reply.arp.op_be = bpf_htons(ARP_REPLY);
	reply.arp.sha = *mac;
	reply.arp.spa_be = request->tpa_be;
	reply.arp.tha = request->sha;
	reply.arp.tpa_be = request->spa_be;
	if ((bytes != sizeof(reply) && bpf_skb_change_tail(skb, sizeof(reply), 0)) ||
	    bpf_skb_store_bytes(skb, 0, &reply, sizeof(reply), 0))
		return drop(skb, port_id, INTERNAL_ERROR);
	count_ended(port_id, CONSUMED, bytes);
	return redirect(skb, ifindex);
}

/* A valid packet of an active port, from its own address. group: its frame went to a group MAC. */
static __always_inline int forward_from_guest(struct __sk_buff *skb, const struct host_config *host,
					      const struct port *port, const struct packet *packet, bool group)
{
	__be32 destination = packet->destination_be;
	struct endpoint *endpoint;
	struct headers *start;
	__u32 bytes = skb->len, packets, ifindex;
	bool routed;
	int verdict;

	if (group)
		return NOT_KNOWN;
	if (!same_cell(host, destination, port->address_be)) {
		__be32 number = destination & host->host_mask_be;

		if (!is_virtual(host, destination) || !number || number == host->host_mask_be)
			return NOT_KNOWN;
		if (!(port->flags & PORT_POLICED) || !cells_may_talk(port->address_be & host->cell_mask_be,
								      destination & host->cell_mask_be))
			return drop(skb, port->port_id, CELL_DENIED);
	}
	endpoint = endpoint_of(destination);
	if (!endpoint || endpoint->kind == ENDPOINT_FENCED ||
	    (endpoint->kind == ENDPOINT_LOCAL && endpoint->port_id == port->port_id))
		return NOT_KNOWN;
	if (endpoint->flags & ENDPOINT_TRACKED && port->state != PORT_ACTIVE)
		return NOT_KNOWN; /* who it is, map `endpoints` says only once it is claimed here */
	routed = !same_subnet(host, destination, port->address_be);
	if ((routed && packet->ttl <= 1) || !fits(skb, packet, endpoint->mtu, &packets))
		return NOT_KNOWN;
	if (port->flags & PORT_TRACKED) {
		if (!same_cell(host, destination, port->address_be) && endpoint->kind == ENDPOINT_LOCAL &&
		    !(endpoint->flags & ENDPOINT_POLICED))
			return drop(skb, port->port_id, CELL_DENIED);
		verdict = enforce(skb, port->port_id, port->port_id, packets,
				  STEP_OUTWARD | (port->flags & PORT_POLICED), endpoint->identity);
		if (verdict != PASSES)
			return verdict;
	}
	if (endpoint->flags & ENDPOINT_TRACKED) {
		verdict = enforce(skb, port->port_id, endpoint->port_id, packets, endpoint->flags & ENDPOINT_POLICED,
				  identity_of(port->address_be));
		if (verdict != PASSES)
			return verdict;
	}
	if (!trim(skb, packet))
		return NOT_KNOWN;
	start = FRAME_START(skb, struct headers);
	if (!start)
		return NOT_KNOWN;
	count_from(port->port_id, packets, bytes);
	if (endpoint->kind == ENDPOINT_REMOTE) {
		endpoint_used(endpoint);
		mac_copy(&start->ethernet.destination, &endpoint->host);
		mac_copy(&start->ethernet.source, &host->pmac);
		ifindex = host->uplink_ifindex;
	} else {
		mac_copy(&start->ethernet.destination, &endpoint->vmac);
		if (routed)
			router_mac(host, destination, &start->ethernet.source);
		count_to(endpoint->port_id, packets, bytes);
		ifindex = endpoint->ifindex;
	}
	if (routed)
		ttl_decrement(start);
	return redirect(skb, ifindex);
}

/* A late sender's packet for an endpoint that has moved away: on to its new host, which knows this one as the former. */
static __always_inline int send_on(struct __sk_buff *skb, const struct host_config *host, const struct packet *packet,
				   const struct mac *source, struct endpoint *there)
{
	struct endpoint *sender = endpoint_of(packet->source_be);
	struct headers *start;
	__u32 packets;

	/* What its new host sends would go round; what is not known is for the agent to hand over. */
	if (!sender || sender->kind != ENDPOINT_REMOTE || !speaks_from(sender, source) ||
	    mac_equal(source, &host->pmac) || mac_equal(source, &there->host) ||
	    !same_cell(host, packet->source_be, packet->destination_be) || !fits(skb, packet, there->mtu, &packets) ||
	    !trim(skb, packet))
		return NOT_KNOWN;
	start = FRAME_START(skb, struct headers);
	if (!start)
		return NOT_KNOWN;
	endpoint_heard(sender);
	__sync_fetch_and_add(&there->used, packets * ENDPOINT_SENT_ON);
	return to_uplink(skb, host, start, &there->host);
}

/* A valid packet to the host's pmac from `source`, with a virtual destination. */
static __always_inline int forward_from_wire(struct __sk_buff *skb, const struct host_config *host,
					     const struct packet *packet, const struct mac *source)
{
	struct endpoint *local = endpoint_of(packet->destination_be), *sender;
	struct headers *start;
	__u32 bytes = skb->len, packets;
	bool own;

	if (!local)
		return NOT_KNOWN;
	if (local->kind != ENDPOINT_LOCAL)
		return local->kind == ENDPOINT_REMOTE && local->flags & ENDPOINT_FORWARDED ?
			       send_on(skb, host, packet, source, local) :
			       NOT_KNOWN;
	sender = endpoint_of(packet->source_be);
	if (!sender || mac_equal(source, &host->pmac))
		return NOT_KNOWN;
	if (!same_cell(host, packet->source_be, packet->destination_be) && !(local->flags & ENDPOINT_POLICED))
		return drop(skb, 0, CELL_DENIED);
	own = speaks_from(sender, source);
	if (!own) {
		if (sender->kind != ENDPOINT_REMOTE)
			return drop(skb, 0, SPOOF_LOCAL);
		if (!mac_equal(source, &local->host)) /* the receiver's former host has checked what it sends on */
			return NOT_KNOWN;
	}
	if (!fits(skb, packet, local->mtu, &packets))
		return NOT_KNOWN;
	if (local->flags & ENDPOINT_TRACKED) {
		int verdict = enforce(skb, 0, local->port_id, packets, local->flags & ENDPOINT_POLICED, sender->identity);

		if (verdict != PASSES)
			return verdict;
	}
	if (!trim(skb, packet))
		return NOT_KNOWN;
	start = FRAME_START(skb, struct headers);
	if (!start)
		return NOT_KNOWN;
	if (own && sender->kind == ENDPOINT_REMOTE)
		endpoint_heard(sender);
	mac_copy(&start->ethernet.destination, &local->vmac);
	if (same_subnet(host, packet->source_be, packet->destination_be))
		mac_copy(&start->ethernet.source, &sender->vmac);
	else
		router_mac(host, packet->destination_be, &start->ethernet.source);
	count_to(local->port_id, packets, bytes);
	return redirect(skb, local->ifindex);
}
