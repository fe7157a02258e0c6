/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What a cell's policy says of the first packet of a flow, at one port: the twin of Table.decide in
 * divhook/policy/table.py, which has the theory, and of divhook/core/guard.py, which has what follows from it.
 *
 *   class of the other end     policy_identities[cell, identity]; external: policy_prefixes[cell, address]
 *   a                          policy_entries[scope, class, protocol, port], where the class is not 0
 *   b                          policy_entries[scope, relation, protocol, port]
 *   a deny of the two, else an allow, else the default of the relation; scope 0 has no rules
 *
 * Default deny: without a record of the port, and of what cannot be known here, nothing passes.
 */
#pragma once

#include "count.h"
#include "limit.h" /* NS_PER_S */
#include "maps.h"
#include <stdbool.h>

#include <bpf/bpf_endian.h>

#define RULE_PICKED_UP 1 /* in rule_counts: flows that were picked up in mid-stream; no rule has this number */

enum policy_answer {
	POLICY_DENIES,
	POLICY_ALLOWS,
	POLICY_UNSURE, /* the identity is not known here: the agent's */
};

/* What is asked, and what decided. */
struct question {
	__u64 remote_identity; /* not of an external address */
	__u64 rule;	       /* that decided; 0: a default */
	__be32 remote_be;
	__u32 direction; /* enum policy_direction */
	__u32 relation;	 /* enum policy_relation */
	__u32 flags;	 /* of the entry that decided */
	__be16 port_be;	 /* destination port of the flow's first packet; ICMP: type and code */
	__u8 protocol;
};

/* Room that the stack has not: a program is not interrupted by another one on its CPU. */
struct scratch {
	struct flow flow;
	struct flow_key key;
	struct question question;
	struct flow_event event;
	struct policy_key entry;
	struct identity_key identity;
	struct external_key external;
	__u32 pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

static __always_inline struct scratch *scratch_of_cpu(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&scratch, &only);
}

static __always_inline void count_rule(__u64 rule)
{
	struct rule_count *count = bpf_map_lookup_elem(&rule_counts, &rule);

	if (!count) {
		struct rule_count zero = {};

		bpf_map_update_elem(&rule_counts, &rule, &zero, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&rule_counts, &rule);
	}
	if (count)
		count->flows++;
}

/* The class of the other end; false where it is not known. */
static __always_inline bool policy_class(struct scratch *room, const struct port_policy *policy,
					 const struct question *question, __u64 *class)
{
	const struct policy_class *found;

	*class = 0;
	if (question->relation == POLICY_HOST)
		return true; /* no prefix means it */
	if (question->relation == POLICY_EXTERNAL) {
		room->external.prefix_bits = POLICY_CELL_BITS + 32;
		room->external.cell_be = policy->cell_be;
		room->external.address_be = question->remote_be;
		found = bpf_map_lookup_elem(&policy_prefixes, &room->external);
		if (!found)
			return true;
	} else {
		room->identity.identity = question->remote_identity;
		room->identity.cell_be = policy->cell_be;
		room->identity.pad = 0;
		found = bpf_map_lookup_elem(&policy_identities, &room->identity);
		if (!found)
			return false;
	}
	*class = found->class;
	return true;
}

/* What is said of the other end as a whole class, or of a relation. */
static __always_inline const struct policy_entry *policy_entry(struct scratch *room, __u64 scope, __u64 remote,
							       const struct question *question)
{
	struct policy_key *key = &room->entry;

	key->prefix_bits = POLICY_SCOPE_BITS + POLICY_SPACE_BITS;
	__builtin_memcpy(key->scope, &scope, sizeof(scope));
	__builtin_memcpy(key->remote, &remote, sizeof(remote));
	key->protocol = question->protocol;
	__builtin_memcpy(key->port_be, &question->port_be, sizeof(question->port_be));
	return bpf_map_lookup_elem(&policy_entries, key);
}

/* Not inlined: a frame of its own, and not on top of the others'. */
static __noinline int policy_decide(struct scratch *room, const struct port_policy *policy)
{
	struct question *question = &room->question;
	bool egress = question->direction == POLICY_EGRESS;
	__u64 scope = egress ? policy->scopes[1] : policy->scopes[0];
	__u8 allowed = egress ? policy->allowed[1] : policy->allowed[0];
	const struct policy_entry *a = 0, *b;
	__u64 class, relation = question->relation == POLICY_SUBNET ? POLICY_CELL : question->relation;

	question->rule = 0;
	question->flags = allowed >> (question->relation & 7) & 1;
	if (scope) {
		if (!policy_class(room, policy, question, &class))
			return POLICY_UNSURE;
		if (class)
			a = policy_entry(room, scope, class, question);
		b = policy_entry(room, scope, relation, question);
		if (!a || (b && a->flags & POLICY_ALLOW && !(b->flags & POLICY_ALLOW)))
			a = b;
		if (a) {
			question->rule = a->rule;
			question->flags = a->flags;
			count_rule(a->rule);
		}
	}
	return question->flags & POLICY_ALLOW ? POLICY_ALLOWS : POLICY_DENIES;
}

/* Whether some rule of a port's cell could allow anything to or from another cell. */
static __always_inline bool cells_may_talk(__be32 own_be, __be32 other_be)
{
	struct cell_pair pair = {.own_be = own_be, .other_be = other_be};

	if (bpf_map_lookup_elem(&cell_pairs, &pair))
		return true;
	pair.other_be = 0xffffffff;
	return bpf_map_lookup_elem(&cell_pairs, &pair);
}

/* Token bucket of a port's events, as in limit.h. A port that was not heard of for long has a full one. */
static __always_inline bool may_tell(__u32 port_id, const struct rate *rate)
{
	__u64 now = bpf_ktime_get_ns(), interval_ns, fresh;
	__u64 *full_at;

	if (!rate->packets_per_s)
		return false;
	interval_ns = NS_PER_S / rate->packets_per_s;
	full_at = bpf_map_lookup_elem(&log_buckets, &port_id);
	if (!full_at || *full_at <= now) {
		fresh = now + interval_ns;
		bpf_map_update_elem(&log_buckets, &port_id, &fresh, BPF_ANY);
		return true;
	}
	if (*full_at + interval_ns > now + rate->burst_packets * interval_ns)
		return false;
	*full_at += interval_ns;
	return true;
}

/* For the flow log, within the port's rate: what room->event has of the packet, and room->question of the rule. */
static __noinline int flow_tell(struct scratch *room, const struct port_policy *policy)
{
	struct flow_event *event = &room->event;

	if (!may_tell(event->port_id, &policy->log_rate))
		return 0;
	event->time_ns = bpf_ktime_get_ns();
	event->rule = room->question.rule;
	event->local_identity = policy->identity;
	event->remote_identity = room->question.remote_identity;
	bpf_ringbuf_output(&flow_log, event, sizeof(*event), 0);
	return 0;
}
