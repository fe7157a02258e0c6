/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Endings of a frame: every one is counted. Bytes are those of the Ethernet frame. */
#pragma once

#include "maps.h"
#include <linux/pkt_cls.h>

/* No opinion: the frame goes on as if this program were not there, to the next filter (libvirt's <bandwidth>
 * policing, for one) and then to the stack. TC_ACT_OK would end the chain. */
#define PASS TC_ACT_UNSPEC

/* Drop, counted under (port, reason). */
static __noinline int drop(struct __sk_buff *skb, __u32 port_id, enum drop_reason reason)
{
	struct drop_key key = {.port_id = port_id, .reason = reason};
	struct drop_count *count = bpf_map_lookup_elem(&drops, &key);

	if (!count) {
		struct drop_count zero = {};

		bpf_map_update_elem(&drops, &key, &zero, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&drops, &key);
	}
	if (count) {
		count->packets++;
		count->bytes += skb->len;
	} else {
		struct traffic *port = bpf_map_lookup_elem(&traffic, &port_id);

		if (port)
			port->uncounted_drops++;
	}
	return TC_ACT_SHOT;
}

static __always_inline void count_diverted(struct __sk_buff *skb, __u32 port_id)
{
	struct traffic *port = bpf_map_lookup_elem(&traffic, &port_id);

	if (port) {
		port->diverted_packets++;
		port->diverted_bytes += skb->len;
	}
}
