/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Endings of a frame: every one is counted. Bytes are those of the Ethernet frame. */
#pragma once

#include "maps.h"
#include <linux/pkt_cls.h>

/* No opinion: the frame goes on as if this program were not there, to the next filter (libvirt's <bandwidth>
 * policing, for one) and then to the stack. TC_ACT_OK would end the chain. */
#define PASS TC_ACT_UNSPEC

static __always_inline struct traffic *traffic_of(__u32 port_id)
{
	__u32 slot = port_id % MAX_PORTS;

	return bpf_map_lookup_elem(&traffic, &slot);
}

/* Count a frame of so many bytes under (port, reason). */
static __noinline int count_ended(__u32 port_id, enum drop_reason reason, __u32 bytes)
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
		count->bytes += bytes;
	} else {
		struct traffic *port = traffic_of(port_id);

		if (port)
			port->uncounted_drops++;
	}
	return 0;
}

static __always_inline int drop(struct __sk_buff *skb, __u32 port_id, enum drop_reason reason)
{
	count_ended(port_id, reason, skb->len);
	return TC_ACT_SHOT;
}

static __always_inline void count_diverted(struct __sk_buff *skb, __u32 port_id)
{
	struct traffic *port = traffic_of(port_id);

	if (port) {
		port->diverted_packets++;
		port->diverted_bytes += skb->len;
	}
}

static __always_inline void count_from(__u32 port_id, __u32 packets, __u32 bytes)
{
	struct traffic *port = traffic_of(port_id);

	if (port) {
		port->from_packets += packets;
		port->from_bytes += bytes;
	}
}

static __always_inline void count_to(__u32 port_id, __u32 packets, __u32 bytes)
{
	struct traffic *port = traffic_of(port_id);

	if (port) {
		port->to_packets += packets;
		port->to_bytes += bytes;
	}
}
