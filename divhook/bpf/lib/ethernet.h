/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Ethernet II, and tags: IEEE 802.1Q.
 *
 * Headers are read by copy (bpf_skb_load_bytes), never through data pointers: that works however little of a frame is
 * linear (senders can hand over 14 bytes), and stays right after any change to the frame.
 *
 * The kernel has taken the outermost 802.1Q or 802.1ad tag into the skb's metadata before tc runs; h_proto then is
 * that of the next header. The stack accepts any number of VID 0 tags, one below the other, so all must be looked at.
 */
#pragma once

#include "../abi.h"
#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ETH_LEN 14
#define TAG_LEN 4
#define MAX_TAGS 4

#define TYPE_IPV4 0x0800
#define TYPE_ARP 0x0806
#define TYPE_RARP 0x8035
#define TYPE_VLAN 0x8100
#define TYPE_IPV6 0x86dd
#define TYPE_QINQ 0x88a8
#define TYPE_OLD_QINQ 0x9100 /* from before 802.1ad */
#define TYPE_EXPERIMENT 0x88b5 /* IEEE 802 local experimental 1: discovery, where ARP is inspected or suppressed */

struct ethernet {
	struct mac destination;
	struct mac source;
	__be16 type_be;
};
_Static_assert(sizeof(struct ethernet) == ETH_LEN, "ethernet");

struct frame {
	struct ethernet ethernet;
	__u16 type;  /* below all tags */
	__u32 l3;    /* offset of the header below all tags */
	bool tagged; /* in metadata or in the frame */
};

/* By two bytes: MACs stand at even offsets wherever the programs look at them; the verifier holds that for the stack. */
static __always_inline bool mac_equal(const struct mac *a, const struct mac *b)
{
	const __u16 *x = (const void *)a, *y = (const void *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

static __always_inline void mac_copy(struct mac *to, const struct mac *from)
{
	const __u16 *x = (const void *)from;
	__u16 *y = (void *)to;

	y[0] = x[0];
	y[1] = x[1];
	y[2] = x[2];
}

static __always_inline bool mac_is_group(const struct mac *mac)
{
	return mac->octets[0] & 1;
}

static __always_inline bool mac_is_zero(const struct mac *mac)
{
	const __u16 *x = (const void *)mac;

	return !(x[0] | x[1] | x[2]);
}

static __always_inline bool type_is_tag(__u16 type)
{
	return type == TYPE_VLAN || type == TYPE_QINQ || type == TYPE_OLD_QINQ;
}

/* False where there is no Ethernet header. With more than MAX_TAGS tags, type is still a tag's. */
static __always_inline bool frame_parse_untrusted(struct __sk_buff *skb, struct frame *frame)
{
	__be16 type_be;

	if (bpf_skb_load_bytes(skb, 0, &frame->ethernet, sizeof(frame->ethernet)))
		return false;
	frame->type = bpf_ntohs(frame->ethernet.type_be);
	frame->l3 = ETH_LEN;
	frame->tagged = skb->vlan_present || type_is_tag(frame->type);
	for (int i = 0; i < MAX_TAGS && type_is_tag(frame->type); i++) {
		if (bpf_skb_load_bytes(skb, frame->l3 + 2, &type_be, sizeof(type_be)))
			break;
		frame->type = bpf_ntohs(type_be);
		frame->l3 += TAG_LEN;
	}
	return true;
}
