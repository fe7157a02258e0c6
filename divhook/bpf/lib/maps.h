/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The maps. The loader pins each by its name; the agent writes all but drops, buckets, traffic, endpoint.used
 * and the entries of flows. */
#pragma once

#include "../abi.h"
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* This host: addresses, the plan, limits of the uplink. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct host_config);
} config SEC(".maps");

/* Which guest NIC hangs on an interface. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

/* Where an address is: the fast path is a cache of the agent's decisions, and this is it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/* Who gets a copy of what is sent to all of a subnet, or to a group. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_GROUP_LISTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct group_key);
	__type(value, struct group_list);
} group_lists SEC(".maps");

/* Addresses that move between endpoints. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SHARED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct shared_key);
	__type(value, __u32);
} shared SEC(".maps");

/* Fill of the token buckets; apart from `ports`, so that an update of a port does not refill them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PORTS + 1);
	__type(key, __u32);
	__type(value, struct buckets);
} buckets SEC(".maps");

/* Group MACs that this host listens to. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_GROUPS);
	__type(key, struct mac_key);
	__type(value, __u32);
} groups SEC(".maps");

/* pmacs of authenticated peers: a share of the uplink's limits is kept for them. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_PEERS);
	__type(key, struct mac_key);
	__type(value, __u32);
} peers SEC(".maps");

/* Frames that ended here, by port and reason. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_DROP_COUNTERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct drop_key);
	__type(value, struct drop_count);
} drops SEC(".maps");

/* Frames handed on, by port. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, struct traffic);
} traffic SEC(".maps");

/* Flows of a port that is tracked. The agent makes these tables; the one here is but their pattern. */
struct flow_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FLOWS_PER_CPU);
	__uint(key_size, sizeof(struct flow_key)); /* not __type: clang has no more than its name, this deep */
	__uint(value_size, sizeof(struct flow));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__array(values, struct flow_table);
} flows SEC(".maps");

/* What a port's cell makes of it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct port_policy);
} port_policies SEC(".maps");

/* The rules of all cells here, as prefixes. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_POLICY_ENTRIES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_key);
	__type(value, struct policy_entry);
} policy_entries SEC(".maps");

/* What the other end is to a cell's rules. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_POLICY_IDENTITIES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct identity_key);
	__type(value, struct policy_class);
} policy_identities SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_POLICY_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct external_key);
	__type(value, struct policy_class);
} policy_prefixes SEC(".maps");

/* Which cells may have to do with each other at all. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_CELL_PAIRS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cell_pair);
	__type(value, __u32);
} cell_pairs SEC(".maps");

/* How many flows each rule has decided. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_RULE_COUNTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct rule_count);
} rule_counts SEC(".maps");

/* When the flow log has room again for a port's events. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, __u64);
} log_buckets SEC(".maps");

/* What was decided of flows, for people. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, FLOW_LOG_BYTES);
} flow_log SEC(".maps");

/* What is outside, and the routers on the way to it. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, struct prefix);
} prefixes SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ROUTES);
	__type(key, __u32);
	__type(value, struct next_hops);
} next_hops SEC(".maps");

/* Source NAT. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct nat_config);
} nat SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NAT_ADDRESSES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, __u32);
} nat_addresses SEC(".maps");
