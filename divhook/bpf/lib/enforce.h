/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * What passes at a port with a policy: the twin of divhook/core/guard.py.
 *
 *   class                          passes
 *   ESTABLISHED, REPLY, RELATED    where its flow was let in by this epoch, and both ends are who they were; else the
 *                                  policy is asked again for the flow's opener: renewed, or ended (POLICY_DENIED)
 *   NEW                            where the policy allows it: its opener's direction, its destination port
 *   UNTRACKED                      the same, each packet by itself
 *   INVALID                        no: FLOW_UNKNOWN. But TCP in mid-stream while the port picks up what the policy allows
 *                                  in either direction
 *
 * Each port asks its own cell alone: egress at the host of the sender, ingress at that of the receiver.
 */
#pragma once

#include "flow.h"

#define NOT_KNOWN (-2) /* no TC_ACT_ */
#define PASSES (-3)

/* What flow_step is told of a port, and what it may say beside enum flow_class. */
#define STEP_OUTWARD 1 /* it is the sender's */
#define STEP_POLICED 2
#define EPHEMERAL_PORT 32768 /* from here on clients have theirs: Linux's default; RFC 6056 §3.2 */
#define FLOW_DENIED 7
#define FLOW_UNSURE 8 /* the identity of the other end is not known here */

static __always_inline __be32 other_end(const struct headers *header, bool outward)
{
	return outward ? header->destination_be : header->source_be;
}

static __always_inline bool is_virtual(const struct host_config *host, __be32 address_be)
{
	return (address_be & host->supernet_mask_be) == host->supernet_be;
}

static __always_inline const struct prefix *prefix_of(__be32 address_be)
{
	struct prefix_key key = {.prefix_bits = 32, .address_be = address_be};

	return bpf_map_lookup_elem(&prefixes, &key);
}

static __always_inline bool is_host(__be32 address_be)
{
	const struct prefix *prefix = prefix_of(address_be);

	return prefix && prefix->kind == PREFIX_HOST;
}

static __always_inline __u32 relation_to(const struct host_config *host, __be32 local_be, __be32 remote_be)
{
	if (!is_virtual(host, remote_be))
		return is_host(remote_be) ? POLICY_HOST : POLICY_EXTERNAL;
	if ((local_be ^ remote_be) & host->cell_mask_be)
		return POLICY_OTHER;
	return (local_be ^ remote_be) & ~host->host_mask_be ? POLICY_CELL : POLICY_SUBNET;
}

/* The port that a flow was opened to. */
static __always_inline __be16 opened_port(const struct flow_key *key, bool by_high)
{
	if (key->kind != FLOW_PAIR)
		return bpf_htons(ICMP_ECHO << 8);
	return by_high ? key->low_port_be : key->high_port_be;
}

static __always_inline void describe(struct scratch *room, const struct headers *header, const struct flow_match *match,
				     __u32 port_id, bool outward)
{
	struct flow_event *event = &room->event;
	__be16 type_code_be = match->type_code_be;

	__builtin_memset(event, 0, sizeof(*event));
	event->source_be = header->source_be;
	event->destination_be = header->destination_be;
	event->protocol = header->protocol;
	event->port_id = port_id;
	event->flags = outward ? FLOW_EVENT_OUTWARD : 0;
	if (header->protocol == PROTOCOL_ICMP) {
		event->source_port_be = bpf_htons(bpf_ntohs(type_code_be) >> 8);
		event->destination_port_be = bpf_htons(bpf_ntohs(type_code_be) & 0xff);
	} else if (match->key.kind == FLOW_PAIR) {
		event->source_port_be = match->from_high ? match->key.high_port_be : match->key.low_port_be;
		event->destination_port_be = match->from_high ? match->key.low_port_be : match->key.high_port_be;
	}
}

/* A flow that the policy lets in, or still lets in: its memory is never written in place. */
static __always_inline void flow_put(struct scratch *room, const struct port_policy *policy, void *table,
				     struct flow_match *match)
{
	room->flow.local_identity = policy->identity;
	room->flow.remote_identity = room->question.remote_identity;
	room->flow.epoch = policy->epoch;
	bpf_map_update_elem(table, &match->key, &room->flow, BPF_ANY);
	match->flow = bpf_map_lookup_elem(table, &match->key);
}

/* TCP in mid-stream: opened by who has the ephemeral port; where that does not tell, by whom the policy allows it, first
 * by whoever speaks to the lower port. */
static __always_inline int pick_up(struct scratch *room, const struct port_policy *policy, void *table, __u64 now,
				   struct flow_match *match, bool outward)
{
	__u16 low_port = bpf_ntohs(match->key.low_port_be), high_port = bpf_ntohs(match->key.high_port_be);
	bool by_high = low_port < high_port || (low_port == high_port && match->from_high);
	bool opened = match->event == EVENT_SYN_ACK;
	bool told = opened || (low_port >= EPHEMERAL_PORT) != (high_port >= EPHEMERAL_PORT);
	int answer = POLICY_DENIES;

	if (opened)
		by_high = !match->from_high;
#pragma unroll
	for (int turn = 0; turn < 2; turn++) {
		/* opened by the local end, if that is the one that sends (outward) and opened, or neither */
		room->question.direction = (by_high == match->from_high) == outward ? POLICY_EGRESS : POLICY_INGRESS;
		room->question.port_be = opened_port(&match->key, by_high);
		answer = policy_decide(room, policy);
		if (answer != POLICY_DENIES || told)
			break;
		by_high = !by_high;
	}
	if (answer != POLICY_ALLOWS)
		return answer == POLICY_UNSURE ? FLOW_UNSURE : FLOW_INVALID;
	room->flow.seen_ticks = now;
	room->flow.tcp[0] = opened ? FLOW_TCP_SYN : FLOW_TCP_OPEN;
	room->flow.tcp[1] = opened ? FLOW_TCP_NONE : FLOW_TCP_OPEN;
	room->flow.flags = by_high ? FLOW_OPENED_BY_HIGH : 0;
	flow_put(room, policy, table, match);
	count_rule(RULE_PICKED_UP);
	room->event.flags |= FLOW_EVENT_PICKED_UP;
	return match->from_high == by_high ? FLOW_ESTABLISHED : FLOW_REPLY;
}

/* The class again, or FLOW_DENIED, FLOW_UNSURE; FLOW_INVALID is not to pass. room->flow is all zero. */
static __always_inline int flow_police(struct scratch *room, const struct host_config *host,
				       const struct headers *header, void *table, __u64 now, struct flow_match *match,
				       int class, __u32 port_id, bool outward, __u64 remote_identity)
{
	const struct port_policy *policy = bpf_map_lookup_elem(&port_policies, &port_id);
	struct question *question = &room->question;
	struct flow *flow = match->flow;
	__be32 local_be = outward ? header->source_be : header->destination_be, remote_be = other_end(header, outward);
	bool live = class == FLOW_ESTABLISHED || class == FLOW_REPLY || class == FLOW_RELATED;
	int answer;

	if (!policy)
		return FLOW_DENIED;
	if (class == FLOW_RELATED) {
		__be32 quoted_be = match->key.low_be == local_be ? match->key.high_be : match->key.low_be;

		if (quoted_be != remote_be) {
			remote_identity = identity_of(quoted_be);
			if (is_host(remote_be))
				return FLOW_INVALID; /* an error to or from the host about a flow that is not its own */
			if (!remote_identity && is_virtual(host, quoted_be))
				return FLOW_UNSURE;
		}
		remote_be = quoted_be;
	}
	if (live && flow && flow->epoch == policy->epoch && flow->local_identity == policy->identity &&
	    flow->remote_identity == remote_identity)
		return class;

	describe(room, header, match, port_id, outward);
	question->remote_identity = remote_identity;
	question->remote_be = remote_be;
	question->relation = relation_to(host, local_be, remote_be);
	question->protocol = match->key.protocol;
	question->rule = 0;
	question->flags = 0;
	if (class == FLOW_INVALID) {
		if (match->midstream && match->event != EVENT_RST && now < policy->pickup_until_ticks)
			class = pick_up(room, policy, table, now, match, outward);
		if (class != FLOW_INVALID && !(question->flags & POLICY_LOG))
			return class;
		if (class == FLOW_INVALID) {
			question->rule = 0;
			room->event.reason = FLOW_UNKNOWN;
		}
		flow_tell(room, policy);
		return class;
	}
	if (live && flow) {
		bool by_high = flow->flags & FLOW_OPENED_BY_HIGH;

		question->direction = by_high == (match->key.high_be == local_be) ? POLICY_EGRESS : POLICY_INGRESS;
		question->port_be = opened_port(&match->key, by_high);
	} else {
		question->direction = outward ? POLICY_EGRESS : POLICY_INGRESS;
		question->port_be = class == FLOW_UNTRACKED ? match->type_code_be :
							       opened_port(&match->key, match->from_high);
	}
	answer = policy_decide(room, policy);
	if (answer == POLICY_UNSURE)
		return FLOW_UNSURE;
	if (answer == POLICY_DENIES) {
		if (live) {
			bpf_map_delete_elem(table, &match->key);
			room->event.flags |= FLOW_EVENT_ENDED;
		}
		room->event.reason = POLICY_DENIED;
		flow_tell(room, policy);
		return FLOW_DENIED;
	}
	if (live && flow) {
		room->flow = *flow;
		flow_put(room, policy, table, match);
	} else if (class == FLOW_NEW) {
		room->flow.local_identity = policy->identity;
		room->flow.remote_identity = remote_identity;
		room->flow.epoch = policy->epoch;
		if (question->flags & POLICY_LOG)
			flow_tell(room, policy);
	}
	return class;
}

/*
 * A valid packet, in an untagged frame, from or to a tracked port; packets: segments of it; how: STEP_ flags;
 * remote_identity: of the other end. Returns enum flow_class, FLOW_DENIED or FLOW_UNSURE; what passes is kept. The header
 * is read again: what is not passed need not be kept at hand where no port is tracked.
 * Not static: so the verifier walks it once.
 */
__noinline int flow_step(struct __sk_buff *skb, __u32 port_id, __u32 packets, __u32 how, __u64 remote_identity)
{
	__u32 only = 0, slot = port_id % MAX_PORTS;
	const struct host_config *host = bpf_map_lookup_elem(&config, &only);
	void *table = bpf_map_lookup_elem(&flows, &slot);
	struct scratch *room = scratch_of_cpu();
	__u64 now = bpf_jiffies64();
	struct flow_match match = {};
	const struct headers *header = FRAME_START(skb, struct headers);
	bool outward = how & STEP_OUTWARD;
	int class;

	if (!host || !table || !room || !header)
		return FLOW_INVALID;
	class = flow_judge(skb, host, header, table, now, &match);
	__builtin_memset(&room->flow, 0, sizeof(room->flow));
	if (how & STEP_POLICED) {
		class = flow_police(room, host, header, table, now, &match, class, port_id, outward, remote_identity);
	} else if (class == FLOW_NEW) {
		room->flow.local_identity = identity_of(outward ? header->source_be : header->destination_be);
		room->flow.remote_identity = identity_of(other_end(header, outward));
	}
	if (class == FLOW_NEW || class == FLOW_ESTABLISHED || class == FLOW_REPLY)
		flow_note(room, header, table, now, &match, class, packets);
	return class;
}

/* For a tracked port, of a packet that would be forwarded: PASSES, NOT_KNOWN, or dropped, counted at the port where it
 * came in. What flow_step said shows in cb, where a test-run can read it: outward in the second word, else in the third. */
static __always_inline int enforce(struct __sk_buff *skb, __u32 came_in, __u32 port_id, __u32 packets, __u32 how,
				   __u64 remote_identity)
{
	int class = flow_step(skb, port_id, packets, how, remote_identity);

	skb->cb[how & STEP_OUTWARD ? 1 : 2] = class;
	if (!(how & STEP_POLICED))
		return PASSES;
	if (class == FLOW_DENIED)
		return drop(skb, came_in, POLICY_DENIED);
	if (class == FLOW_INVALID)
		return drop(skb, came_in, FLOW_UNKNOWN);
	return class == FLOW_UNSURE ? NOT_KNOWN : PASSES;
}
