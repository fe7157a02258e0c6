/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * ARP (RFC 826) and RARP (RFC 903) for IPv4 over Ethernet, and how a discovery frame is told from them.
 *
 * +-------+-------+---+---+-------+-----------+-------+-----------+-------+- - - - - -+
 * | htype | ptype |hln|pln|  op   |    sha    |  spa  |    tha    |  tpa  | d1 7e ... |   discovery's trailer
 * +-------+-------+---+---+-------+-----------+-------+-----------+-------+- - - - - -+
 * 14      16      18  19  20      22          28      32          38      42
 */
#pragma once

#include "ethernet.h"

#define ARP_LEN 28
#define ARP_REQUEST 1
#define ARP_REPLY 2
#define RARP_REQUEST 3
#define RARP_REPLY 4

struct arp {
	__be16 htype_be;
	__be16 ptype_be;
	__u8 hlen;
	__u8 plen;
	__be16 op_be;
	struct mac sha;
	__be32 spa_be;
	struct mac tha;
	__be32 tpa_be;
} __attribute__((packed));
_Static_assert(sizeof(struct arp) == ARP_LEN, "arp");

/* VALID where it is IPv4 over Ethernet with one of two operations. Trailing bytes are padding. */
static __always_inline enum drop_reason arp_parse_untrusted(struct __sk_buff *skb, __u32 l3, struct arp *arp,
							    __u16 op_one, __u16 op_other)
{
	__u16 op;

	if (bpf_skb_load_bytes(skb, l3, arp, sizeof(*arp)))
		return ARP_MALFORMED;
	op = bpf_ntohs(arp->op_be);
	if (arp->htype_be != bpf_htons(1) || arp->ptype_be != bpf_htons(TYPE_IPV4) || arp->hlen != 6 || arp->plen != 4 ||
	    (op != op_one && op != op_other))
		return ARP_MALFORMED;
	return VALID;
}

static __always_inline bool discovery_magic(struct __sk_buff *skb, __u32 l3)
{
	__be16 magic_be;

	return bpf_skb_load_bytes(skb, l3 + ARP_LEN, &magic_be, sizeof(magic_be)) == 0 &&
	       magic_be == bpf_htons(DISCOVERY_MAGIC);
}
