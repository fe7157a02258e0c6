/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Between guests and the host that they are on: the twin of divhook/core/host.py.
 *
 *   to_host    in at dvhost, a device of the host's own stack; dst := its MAC; the packet as it is, TTL and source included
 *   from_host  out of dvhost and so in at its peer, where from_host is; src := rmac, dst := vmac; TTL as it is
 *
 * Nothing else comes in at dvhost, and what comes out of it is the host's own or dropped: the host is no router here.
 */
#pragma once

#include "forward.h"

#define HOST_LINK_HEADERS (IPV4_MAX_LEN + IPV4_MAX_LEN) /* of TCP, too */

/* A valid packet of an active, policed port to an address of the host. ifindex: of dvhost. */
static __always_inline int forward_to_host(struct __sk_buff *skb, const struct port *port, const struct packet *packet,
					   __u32 ifindex)
{
	const struct mac destination = {.octets = HOST_LINK_MAC};
	struct headers *start;
	__u32 bytes = skb->len, packets;
	int class;

	if (!ifindex)
		return NOT_KNOWN;
	fits(skb, packet, skb->gso_size ? skb->gso_size + HOST_LINK_HEADERS : IPV4_MAX_PACKET, &packets);
	class = flow_step(skb, port->port_id, packets, STEP_OUTWARD | STEP_POLICED, 0);
	skb->cb[1] = class;
	if (class == FLOW_DENIED)
		return drop(skb, port->port_id, HOST_SERVICE);
	if (class == FLOW_INVALID)
		return drop(skb, port->port_id, FLOW_UNKNOWN);
	if (class == FLOW_UNSURE || !trim(skb, packet))
		return NOT_KNOWN;
	start = FRAME_START(skb, struct headers);
	if (!start)
		return NOT_KNOWN;
	count_from(port->port_id, packets, bytes);
	mac_copy(&start->ethernet.destination, &destination);
	skb->cb[0] = ifindex; /* as in redirect */
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

/* A valid packet that the host's stack sends to a guest. With the fast path on the agent sees none of these. */
static __always_inline int forward_from_host(struct __sk_buff *skb, const struct host_config *host,
					     const struct packet *packet)
{
	struct endpoint *local;
	struct headers *start;
	__u32 bytes = skb->len, packets;
	int verdict;

	if (!is_host(packet->source_be))
		return drop(skb, 0, HOST_FORWARDED);
	if (packet_touches_dhcp(packet))
		return drop(skb, 0, ROGUE_DHCP);
	local = endpoint_of(packet->destination_be);
	if (!local || (local->kind != ENDPOINT_LOCAL && local->kind != ENDPOINT_FENCED))
		return drop(skb, 0, NOT_LOCAL);
	if (local->kind != ENDPOINT_LOCAL)
		return drop(skb, 0, PORT_NOT_ACTIVE);
	if (!(local->flags & ENDPOINT_POLICED))
		return drop(skb, 0, POLICY_DENIED);
	if (!fits(skb, packet, local->mtu, &packets))
		return drop(skb, 0, FRAGMENTATION_NEEDED);
	verdict = enforce(skb, 0, local->port_id, packets, STEP_POLICED, 0);
	if (verdict != PASSES)
		return verdict == NOT_KNOWN ? drop(skb, 0, IDENTITY_UNKNOWN) : verdict;
	start = trim(skb, packet) ? FRAME_START(skb, struct headers) : 0;
	if (!start)
		return drop(skb, 0, INTERNAL_ERROR);
	return from_router(skb, host, start, local, packet->destination_be, packets, bytes);
}
