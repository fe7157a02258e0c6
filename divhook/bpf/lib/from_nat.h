/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What comes to the namespace that translates from the wire, and what comes out of it: the twin of
 * divhook/core/border.py, from_wire_translated and from_nat.
 */
#pragma once

#include "external.h"
#include "nat.h"

enum nat_share {
	NAT_NONE, /* the host's own */
	NAT_ALL,
	NAT_COPY, /* nobody can tell: the one whose it is not drops it in silence */
};

/* Whose a packet to an address of NAT is: divhook/core/nat.py, share. */
static __always_inline enum nat_share nat_share(struct __sk_buff *skb, const struct packet *packet, bool pool)
{
	__be16 fragment_be, port_be;
	__u8 type;

	if (pool)
		return NAT_ALL;
	if (packet->protocol != PROTOCOL_TCP && packet->protocol != PROTOCOL_UDP && packet->protocol != PROTOCOL_ICMP)
		return NAT_NONE;
	if (bpf_skb_load_bytes(skb, ETH_LEN + __builtin_offsetof(struct ipv4, fragment_be), &fragment_be,
			       sizeof(fragment_be)))
		return NAT_NONE;
	if (fragment_be & bpf_htons(IPV4_OFFSET_MASK))
		return NAT_COPY;
	if (packet->protocol == PROTOCOL_ICMP) {
		if (bpf_skb_load_bytes(skb, ETH_LEN + packet->header_length, &type, sizeof(type)))
			return NAT_NONE;
		return type == ICMP_ECHO_REPLY || type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED ||
				       type == ICMP_PARAMETER ?
			       NAT_COPY :
			       NAT_NONE;
	}
	if (packet->total_length < packet->header_length + 4 ||
	    bpf_skb_load_bytes(skb, ETH_LEN + packet->header_length + 2, &port_be, sizeof(port_be)))
		return NAT_NONE;
	return bpf_ntohs(port_be) >= NAT_FIRST_PORT ? NAT_ALL : NAT_NONE;
}

/* A copy of a packet of the host's own, in a frame for `mac`; the frame goes on as it was. */
static __always_inline void nat_copy(struct __sk_buff *skb, const struct host_config *host, const struct mac *mac,
				     __u32 ifindex, __u64 flags)
{
	skb->cb[0] = ifindex; /* for test-runs */
	if (bpf_skb_store_bytes(skb, 0, mac, sizeof(*mac), 0))
		return;
	bpf_clone_redirect(skb, ifindex, flags);
	bpf_skb_store_bytes(skb, 0, &host->pmac, sizeof(host->pmac), 0);
}

/* Not inlined, and without pointers into from_wire's stack: what it does not need it should not pay for. An IPv4 packet
 * at offset l3, in a frame to the host's pmac, to an address of NAT, from one that is not virtual. What is wrong with a
 * frame to the host's own address is for the host's stack to see. */
static __noinline int wire_to_nat(struct __sk_buff *skb, const struct host_config *host, __u32 l3, __u32 mark)
{
	const struct nat_config *way = nat_here();
	__u32 before = skb->mark;
	const struct prefix *prefix;
	struct packet packet = {};
	enum drop_reason reason;
	struct ethernet header;
	enum nat_share share;
	struct endpoint *sender;
	__u32 bucket;
	bool pool;

	if (!way || bpf_skb_load_bytes(skb, 0, &header, sizeof(header)))
		return PASS;
	reason = packet_parse_untrusted(skb, l3, &packet);
	pool = nat_address(host, packet.destination_be) == NAT_POOL;
	if (l3 != ETH_LEN || skb->vlan_present)
		reason = VLAN_TAGGED;
	else if (mac_is_group(&header.source) || mac_is_zero(&header.source))
		reason = SOURCE_MAC_GROUP;
	if (reason != VALID)
		return pool ? drop(skb, 0, reason) : PASS;
	share = nat_share(skb, &packet, pool);
	if (share == NAT_NONE)
		return PASS;
	prefix = prefix_of(packet.source_be);
	if (!prefix || prefix->kind == PREFIX_HOST)
		return pool ? drop(skb, 0, EXTERNAL_UNSUPPORTED) : PASS;
	sender = speaker_of(prefix, packet.source_be, &header.source);
	if (host->flags & HOST_FASTPATH) {
		struct headers *start;

		if (sender && share == NAT_COPY) {
			endpoint_heard(sender);
			nat_copy(skb, host, &way->mac, way->ifindex, 0);
			return PASS;
		}
		if (sender && trim(skb, &packet)) {
			start = FRAME_START(skb, struct headers);
			if (start) {
				endpoint_heard(sender);
				return into_nat(skb, host, way, start);
			}
		}
	}
	bucket = sender ? BUCKET_PEER_IPV4 : BUCKET_STRANGER_IPV4;
	if (!conforms(skb, 0, bucket, &host->wire_rates[bucket]))
		return share == NAT_COPY ? PASS : drop(skb, 0, DIVERT_RATE_LIMITED);
	skb->mark = mark;
	tell_sender(skb, &header.source);
	count_diverted(skb, 0);
	if (share == NAT_COPY) {
		nat_copy(skb, host, &host->divbr_mac, host->divbr_ifindex, BPF_F_INGRESS);
		skb->mark = before;
	}
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
	return from_router(skb, host, start, local, packet->destination_be, packets, bytes);
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
	return to_uplink(skb, host, start, &server->host);
}
