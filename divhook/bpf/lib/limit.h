/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Token buckets in one word each: the time at which the bucket will be full again ("theoretical arrival time" of the
 * generic cell rate algorithm, ITU-T I.371). A frame moves it on by one interval per packet; it conforms while that
 * time stays within burst intervals of now. CPUs that race may let a few more through: it bounds load, not money.
 *
 * A segmented frame costs its segments, since NFQUEUE hands them over one by one.
 */
#pragma once

#include "maps.h"
#include <stdbool.h>

#define NS_PER_S 1000000000ULL

static __always_inline bool conforms(struct __sk_buff *skb, __u32 port_id, __u32 bucket, const struct rate *rate)
{
	struct buckets *set = bpf_map_lookup_elem(&buckets, &port_id);
	__u64 now = bpf_ktime_get_ns();
	__u64 packets = 1, interval_ns, cost_ns, full_at;

	if (!set || !rate->packets_per_s)
		return false;
	if (skb->gso_size)
		packets = (skb->len + skb->gso_size - 1) / skb->gso_size;
	interval_ns = NS_PER_S / rate->packets_per_s;
	cost_ns = packets * interval_ns;
	full_at = set->full_at_ns[bucket];
	/* A full bucket passes any one frame: else one of more segments than the burst never could. */
	if (full_at <= now)
		full_at = now;
	else if (full_at + cost_ns > now + rate->burst_packets * interval_ns)
		return false;
	set->full_at_ns[bucket] = full_at + cost_ns;
	return true;
}
