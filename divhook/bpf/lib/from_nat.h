/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What comes to the namespace that translates from the wire, and what comes out of it: the twin of
 * divhook/core/border.py, from_wire_translated and from_nat.
 */
#pragma once

#include "external.h"
#include "nat.h"

/* Not inlined: a frame of its own. A valid packet to the host's pmac from `source`, to an address of NAT, from one that
 * is not virtual. */
static __noinline int wire_to_nat(struct __sk_buff *skb, const struct host_config *host, const struct packet *packet,
				  const struct mac *source, __u32 mark)
{
	const struct prefix *prefix = prefix_of(packet->source_be);
	const struct nat_config *way = nat_here();

	if (!way)
		return PASS;
	if (!prefix || prefix->kind == PREFIX_HOST)
		return drop(skb, 0, EXTERNAL_UNSUPPORTED);
	if (host->flags & HOST_FASTPATH) {
		struct endpoint *sender = speaker_of(prefix, packet->source_be, source);
		struct headers *start;

		if (sender && trim(skb, packet)) {
			start = FRAME_START(skb, struct headers);
			if (start) {
				endpoint_heard(sender);
				return into_nat(skb, host, way, start);
			}
		}
	}
	if (!conforms(skb, 0, BUCKET_STRANGER_IPV4, &host->wire_rates[BUCKET_STRANGER_IPV4]))
		return drop(skb, 0, DIVERT_RATE_LIMITED);
	skb->mark = mark;
	count_diverted(skb, 0);
	return PASS;
}

/* A reply, back to its guest. */
static __always_inline int nat_to_guest(struct __sk_buff *skb, const struct host_config *host,
					const struct packet *packet)
{
	struct endpoint *local = endpoint_of(packet->destination_be);
	struct headers *start;
	__u32 bytes = skb->len, packets;
	int verdict;

	if (!local || local->kind != ENDPOINT_LOCAL || !(local->flags & ENDPOINT_POLICED) ||
	    !fits(skb, packet, local->mtu, &packets))
		return NOT_KNOWN;
	verdict = enforce(skb, 0, local->port_id, packets, STEP_POLICED, 0);
	if (verdict != PASSES)
		return verdict;
	start = FRAME_START(skb, struct headers);
	if (!start)
		return NOT_KNOWN;
	mac_copy(&start->ethernet.destination, &local->vmac);
	router_mac(host, packet->destination_be, &start->ethernet.source);
	count_to(local->port_id, packets, bytes);
	return redirect(skb, local->ifindex);
}

/* A guest's packet, translated. */
static __always_inline int nat_to_wire(struct __sk_buff *skb, const struct host_config *host,
				       const struct packet *packet)
{
	const struct prefix *prefix = prefix_of(packet->destination_be);
	struct endpoint *server;
	struct headers *start;
	__u32 packets;

	if (!prefix || prefix->kind == PREFIX_HOST)
		return NOT_KNOWN;
	server = endpoint_of(next_hop_of(skb, prefix, packet));
	if (!server || server->kind != ENDPOINT_EXTERNAL || !fits(skb, packet, prefix->mtu, &packets))
		return NOT_KNOWN;
	start = FRAME_START(skb, struct headers);
	if (!start)
		return NOT_KNOWN;
	endpoint_used(server);
	mac_copy(&start->ethernet.destination, &server->host);
	mac_copy(&start->ethernet.source, &host->pmac);
	return redirect(skb, host->uplink_ifindex);
}
