/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Source NAT: the way into the namespace that translates (docs/adr/nat-in-its-own-namespace.md), and nothing of the
 * translation itself, which is the kernel's conntrack.
 *
 *   from_guest  permitted, to an address outside ──▶ nat.ifindex ══ namespace ══▶ from_nat ──▶ uplink
 *   from_wire   to one of nat_addresses          ──▶ nat.ifindex ══ namespace ══▶ from_nat ──▶ the guest's tap
 *
 * The namespace is the router that is seen: it decrements the TTL, once for each packet.
 */
#pragma once

#include "arp.h"
#include "forward.h"
#include "limit.h"

/* Null where nothing is translated here. */
static __always_inline const struct nat_config *nat_here(void)
{
	__u32 only = 0;
	const struct nat_config *way = bpf_map_lookup_elem(&nat, &only);

	return way && way->ifindex ? way : 0;
}

/* Whether guests' packets are translated to this address here: NAT_…, or 0. */
static __always_inline __u32 nat_address(const struct host_config *host, __be32 address_be)
{
	const __u32 *kind = host->flags & HOST_NAT ? bpf_map_lookup_elem(&nat_addresses, &address_be) : 0;

	return kind ? *kind : 0;
}

static __always_inline int into_nat(struct __sk_buff *skb, const struct host_config *host, const struct nat_config *way,
				    struct headers *start)
{
	mac_copy(&start->ethernet.destination, &way->mac);
	mac_copy(&start->ethernet.source, &host->pmac);
	return redirect(skb, way->ifindex);
}

/* Not inlined: a frame of its own. Somebody asks where an address of NAT is: here. */
static __noinline int nat_arp(struct __sk_buff *skb, const struct host_config *host, const struct frame *frame,
			      const struct arp *request, __u32 mark)
{
	if (!conforms(skb, 0, BUCKET_STRANGER_DISCOVERY, &host->wire_rates[BUCKET_STRANGER_DISCOVERY]))
		return drop(skb, 0, DISCOVERY_RATE_LIMITED);
	if (!(host->flags & HOST_FASTPATH)) {
		count_diverted(skb, 0);
		skb->mark = mark;
		return bpf_redirect(host->divbr_ifindex, BPF_F_INGRESS);
	}
	if (request->htype_be != bpf_htons(1) || request->ptype_be != bpf_htons(TYPE_IPV4) || request->hlen != 6 ||
	    request->plen != 4)
		return drop(skb, 0, ARP_MALFORMED);
	if (!mac_equal(&request->sha, &frame->ethernet.source) || mac_is_group(&request->sha) ||
	    mac_is_zero(&request->sha) || mac_equal(&request->sha, &host->pmac))
		return drop(skb, 0, EXTERNAL_SPOOF);
	return arp_answer(skb, 0, request, &host->pmac, host->uplink_ifindex);
}
