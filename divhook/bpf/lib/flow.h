/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Flows: which packets belong together. The twin of divhook/core/flow.py, which has the states as a table.
 *
 * Only for a port that is tracked; each has a table of its own, so that no guest can push out another one's flows
 * (docs/adr/flow-state-per-port.md). A packet between two tracked ports of this host is looked at twice.
 *
 *   packet                                   flow                          class
 *   TCP SYN                                  none, or closed               NEW
 *   TCP, any other                           none                          INVALID    no flow starts in mid-stream
 *   UDP, SCTP (ports), other protocols       none                          NEW
 *   ICMP echo request / reply                none                          NEW / INVALID
 *   any of these                             live                          ESTABLISHED or REPLY, by its direction
 *   ICMP error                               quotes a packet of a live one RELATED, else INVALID
 *   ICMP, any other                                                        UNTRACKED
 *   fragment after the first, with ports     of its first fragment         as its flow, or INVALID
 *
 * A flow that is older than its timeout is as none; least recently used ones make room for new ones. An entry's memory
 * is used again at once: a CPU that still writes to it may date, count or age another flow of the same port wrongly.
 * That makes no packet pass: what let a flow in is not written in place.
 */
#pragma once

#include "ipv4.h"
#include "maps.h"
#include "policy.h"

#define PROTOCOL_SCTP 132
#define SCTP_LEN 12

#define ICMP_LEN 8
#define ICMP_ECHO_REPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER 12

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define ROUTER_NUMBER 1 /* of a subnet: divhook/core/addressing.py */

/* What is read of a transport header. RFC 9293 §3.1, RFC 768, RFC 792. */
struct transport {
	__be16 source_be;	/* ICMP: type, code */
	__be16 destination_be;
	__be16 id_be; /* ICMP echo */
	__u8 more[6];
	__u8 data_offset;
	__u8 flags;
};
_Static_assert(sizeof(struct transport) == 14, "transport");
#define QUOTED_LEN 8 /* bytes of it that an ICMP error quotes: RFC 792 */

/* From where it lies, or a copy where that is not linear. False where the frame has no `needed` bytes there. */
static __always_inline bool transport_read(struct __sk_buff *skb, __u32 at, __u32 needed, struct transport *transport)
{
	const struct transport *start = (void *)(long)skb->data + at;

	if ((void *)(start + 1) > (void *)(long)skb->data_end)
		return !bpf_skb_load_bytes(skb, at, transport, needed);
	*transport = *start;
	return true;
}

enum segment {
	EVENT_NONE, /* not TCP, or a fragment after the first */
	EVENT_SYN,
	EVENT_SYN_ACK,
	EVENT_ACK,
	EVENT_FIN,
	EVENT_RST,
	EVENT_FORBIDDEN, /* flags that no TCP sends together */
};

/* What a packet says, and the flow that it belongs to. */
struct flow_match {
	struct flow_key key;
	struct flow *flow; /* 0: none that lives */
	__u32 event;	   /* enum segment */
	bool from_high;	   /* sent by the higher address */
	bool opens;	   /* may start a flow */
	bool first;	   /* first fragment of a datagram with ports */
	bool midstream;	   /* TCP that is of a flow which is not known */
	__be16 id_be;
	__be16 type_code_be; /* ICMP */
};

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP;
}

/* The key but for ports and kind; whether the source is the higher address. */
static __always_inline bool flow_addresses(struct flow_key *key, __be32 source_be, __be32 destination_be, __u8 protocol)
{
	bool from_high = bpf_ntohl(source_be) > bpf_ntohl(destination_be);

	key->low_be = from_high ? destination_be : source_be;
	key->high_be = from_high ? source_be : destination_be;
	key->protocol = protocol;
	return from_high;
}

static __always_inline void flow_ports(struct flow_key *key, const struct transport *transport, bool from_high)
{
	key->low_port_be = from_high ? transport->destination_be : transport->source_be;
	key->high_port_be = from_high ? transport->source_be : transport->destination_be;
}

/* Of an echo request or reply; false of any other message. A ping and one that comes back at the same time with the
 * same id are two flows: else one's requests would pass as the other's replies. */
static __always_inline bool flow_echo(struct flow_key *key, const struct transport *transport, bool from_high)
{
	bool request = transport->source_be == bpf_htons(ICMP_ECHO << 8);

	if (!request && transport->source_be != bpf_htons(ICMP_ECHO_REPLY << 8))
		return false;
	key->low_port_be = key->high_port_be = transport->id_be;
	key->kind = request == from_high ? FLOW_ECHO_BY_HIGH : FLOW_ECHO_BY_LOW;
	return true;
}

static __always_inline enum segment tcp_event(__u8 flags)
{
	switch (flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST)) {
	case TCP_SYN:
		return EVENT_SYN;
	case TCP_SYN | TCP_ACK:
		return EVENT_SYN_ACK;
	case TCP_ACK:
		return EVENT_ACK;
	case TCP_FIN | TCP_ACK:
		return EVENT_FIN;
	case TCP_RST:
	case TCP_RST | TCP_ACK:
		return EVENT_RST;
	default:
		return EVENT_FORBIDDEN;
	}
}

/* The state of the side that sends: SENT in divhook/core/flow.py. */
static __always_inline __u8 tcp_sent(__u8 state, __u32 event)
{
	switch (event) {
	case EVENT_SYN:
	case EVENT_SYN_ACK:
		return state == FLOW_TCP_NONE ? FLOW_TCP_SYN : state;
	case EVENT_FIN:
		return state == FLOW_TCP_SYN || state == FLOW_TCP_OPEN ? FLOW_TCP_FIN : state;
	case EVENT_RST:
		return FLOW_TCP_RESET;
	default:
		return state;
	}
}

/* The state of the side that it is sent to: HEARD there. All but a plain SYN acknowledge. */
static __always_inline __u8 tcp_heard(__u8 state, __u32 event)
{
	switch (event) {
	case EVENT_RST:
		return FLOW_TCP_RESET;
	case EVENT_SYN_ACK:
	case EVENT_ACK:
	case EVENT_FIN:
		return state == FLOW_TCP_SYN ? FLOW_TCP_OPEN : state == FLOW_TCP_FIN ? FLOW_TCP_FIN_ACKED : state;
	default:
		return state;
	}
}

/* Nothing more is to come but what was late: a SYN begins anew. */
static __always_inline bool tcp_closed(const struct flow *flow)
{
	return flow->tcp[0] == FLOW_TCP_RESET ||
	       (flow->tcp[0] == FLOW_TCP_FIN_ACKED && flow->tcp[1] == FLOW_TCP_FIN_ACKED);
}

/* Not inlined: so the object's BTF has these two layouts, for tests/bpf/test_abi.py. */
static __noinline __u32 flow_timeout_s(const struct flow_key *key, const struct flow *flow)
{
	if (key->kind >= FLOW_FRAGMENTS_BY_LOW)
		return FLOW_FRAGMENT_S;
	switch (key->protocol) {
	case PROTOCOL_TCP:
		return flow->tcp[0] == FLOW_TCP_OPEN && flow->tcp[1] == FLOW_TCP_OPEN ? FLOW_TCP_OPEN_S :
											  FLOW_TCP_TRANSITORY_S;
	case PROTOCOL_UDP:
		return flow->flags & FLOW_ANSWERED ? FLOW_UDP_BOTH_WAYS_S : FLOW_UDP_ONE_WAY_S;
	case PROTOCOL_ICMP:
		return FLOW_ICMP_S;
	default:
		return FLOW_OTHER_S;
	}
}

/* The live flow, or 0. CPUs do not agree on the tick: an entry may be younger than now. */
static __always_inline struct flow *flow_find(void *table, const struct flow_key *key, __u64 now, __u32 ticks_per_s)
{
	struct flow *flow = bpf_map_lookup_elem(table, key);

	if (flow && (__s64)(now - flow->seen_ticks) > (__s64)((__u64)flow_timeout_s(key, flow) * ticks_per_s))
		return 0;
	return flow;
}

/* A guest tells of what was sent to it; the router of anything on the way, and so may the outside. */
static __always_inline bool may_report(const struct host_config *host, __be32 reporter_be, __be32 quoted_to_be)
{
	return reporter_be == quoted_to_be || (reporter_be & host->supernet_mask_be) != host->supernet_be ||
	       (reporter_be & host->host_mask_be) == bpf_htonl(ROUTER_NUMBER);
}

/* An ICMP error: related where it quotes a packet of a live flow, sent by whom it is told. at: of the quoted header. */
static __always_inline enum flow_class flow_related(struct __sk_buff *skb, const struct host_config *host,
						    const struct headers *error, __u32 at, void *table, __u64 now,
						    struct flow_match *match)
{
	struct transport transport = {};
	struct flow_key *key = &match->key;
	struct headers quoted;
	void *header = &quoted.version_ihl;
	__u32 end = ETH_LEN + bpf_ntohs(error->total_length_be); /* what follows is padding */
	__u32 header_length;
	bool from_high;

	if (at + IPV4_MIN_LEN > end || bpf_skb_load_bytes(skb, at, header, IPV4_MIN_LEN))
		return FLOW_INVALID;
	header_length = (quoted.version_ihl & 0xf) * 4;
	if (quoted.version_ihl >> 4 != 4 || header_length < IPV4_MIN_LEN ||
	    quoted.fragment_be & bpf_htons(IPV4_OFFSET_MASK) || quoted.source_be != error->destination_be ||
	    !may_report(host, error->source_be, quoted.destination_be))
		return FLOW_INVALID;
	from_high = flow_addresses(key, quoted.source_be, quoted.destination_be, quoted.protocol);
	if (has_ports(quoted.protocol) || quoted.protocol == PROTOCOL_ICMP) {
		at += header_length;
		if (at + QUOTED_LEN > end || bpf_skb_load_bytes(skb, at, &transport, QUOTED_LEN))
			return FLOW_INVALID;
		if (quoted.protocol != PROTOCOL_ICMP)
			flow_ports(key, &transport, from_high);
		else if (!flow_echo(key, &transport, from_high))
			return FLOW_INVALID;
	}
	match->flow = flow_find(table, key, now, host->ticks_per_s);
	return match->flow ? FLOW_RELATED : FLOW_INVALID;
}

static __always_inline void fragment_key(struct flow_key *key, __be16 id_be, bool from_high)
{
	key->low_port_be = id_be;
	key->high_port_be = 0;
	key->kind = from_high ? FLOW_FRAGMENTS_BY_HIGH : FLOW_FRAGMENTS_BY_LOW;
}

/* What a valid packet is to the flows of a table. Nothing is written but match. */
static __always_inline enum flow_class flow_judge(struct __sk_buff *skb, const struct host_config *host,
						  const struct headers *header, void *table, __u64 now,
						  struct flow_match *match)
{
	__u32 header_length = (header->version_ihl & 0xf) * 4;
	__u32 payload = bpf_ntohs(header->total_length_be) - header_length;
	__u32 at = ETH_LEN + header_length;
	struct flow_key *key = &match->key;
	struct transport transport = {};
	__u8 protocol = header->protocol;
	bool ports = has_ports(protocol) || protocol == PROTOCOL_ICMP;
	bool later = ports && header->fragment_be & bpf_htons(IPV4_OFFSET_MASK);

	match->from_high = flow_addresses(key, header->source_be, header->destination_be, protocol);
	match->first = ports && !later && header->fragment_be & bpf_htons(IPV4_MORE_FRAGMENTS);
	match->id_be = header->id_be;
	if (later) {
		struct flow *fragments;

		fragment_key(key, match->id_be, match->from_high);
		fragments = flow_find(table, key, now, host->ticks_per_s);
		if (!fragments)
			return FLOW_INVALID;
		key->low_port_be = fragments->fragments_low_port_be;
		key->high_port_be = fragments->fragments_high_port_be;
		key->kind = fragments->fragments_kind;
	} else if (protocol == PROTOCOL_TCP) {
		if (payload < TCP_LEN || !transport_read(skb, at, sizeof(transport), &transport))
			return FLOW_INVALID;
		match->event = tcp_event(transport.flags);
		if (match->event == EVENT_FORBIDDEN || transport.data_offset >> 4 < TCP_LEN / 4)
			return FLOW_INVALID;
		match->opens = match->event == EVENT_SYN;
		flow_ports(key, &transport, match->from_high);
	} else if (ports) {
		if (payload < (protocol == PROTOCOL_SCTP ? SCTP_LEN : UDP_LEN) ||
		    !transport_read(skb, at, UDP_LEN, &transport))
			return FLOW_INVALID;
		if (protocol == PROTOCOL_ICMP)
			match->type_code_be = transport.source_be;
		if (protocol != PROTOCOL_ICMP) {
			match->opens = true;
			flow_ports(key, &transport, match->from_high);
		} else if (flow_echo(key, &transport, match->from_high)) {
			match->opens = transport.source_be == bpf_htons(ICMP_ECHO << 8);
		} else {
			__u8 type = bpf_ntohs(transport.source_be) >> 8;

			if (type != ICMP_UNREACHABLE && type != ICMP_TIME_EXCEEDED && type != ICMP_PARAMETER)
				return FLOW_UNTRACKED;
			return flow_related(skb, host, header, at + ICMP_LEN, table, now, match);
		}
	} else {
		match->opens = true;
	}
	match->flow = flow_find(table, key, now, host->ticks_per_s);
	if (match->flow && match->event == EVENT_SYN && tcp_closed(match->flow))
		match->flow = 0;
	match->midstream = !match->flow && match->event != EVENT_NONE && !match->opens;
	if (!match->flow)
		return match->opens ? FLOW_NEW : FLOW_INVALID;
	return match->from_high == !!(match->flow->flags & FLOW_OPENED_BY_HIGH) ? FLOW_ESTABLISHED : FLOW_REPLY;
}

static __always_inline __u64 identity_of(__be32 address_be)
{
	const struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &address_be);

	return endpoint ? endpoint->identity : 0;
}

/* Keep what a packet of class NEW, ESTABLISHED or REPLY has told. The identities and the epoch of a flow that begins are
 * in room->flow already. */
static __always_inline void flow_note(struct scratch *room, const struct headers *header, void *table, __u64 now,
				      const struct flow_match *match, enum flow_class class, __u32 packets)
{
	__u32 bytes = bpf_ntohs(header->total_length_be);

	if (class == FLOW_NEW) {
		struct flow *fresh = &room->flow;

		fresh->seen_ticks = now;
		fresh->counts[0].packets = packets;
		fresh->counts[0].bytes = bytes;
		fresh->tcp[0] = tcp_sent(FLOW_TCP_NONE, match->event);
		fresh->flags = match->from_high ? FLOW_OPENED_BY_HIGH : 0;
		bpf_map_update_elem(table, &match->key, fresh, BPF_ANY);
	} else if (match->flow) {
		struct flow *flow = match->flow;
		bool reply = class == FLOW_REPLY;
		struct flow_count *count = reply ? &flow->counts[1] : &flow->counts[0];

		if (flow->seen_ticks != now)
			flow->seen_ticks = now;
		count->packets += packets;
		count->bytes += bytes;
		if (match->event != EVENT_NONE) {
			__u8 opener = flow->tcp[0], other = flow->tcp[1];
			__u8 opener_next = reply ? tcp_heard(opener, match->event) : tcp_sent(opener, match->event);
			__u8 other_next = reply ? tcp_sent(other, match->event) : tcp_heard(other, match->event);

			if (opener_next != opener)
				flow->tcp[0] = opener_next;
			if (other_next != other)
				flow->tcp[1] = other_next;
		}
		if (reply && !(flow->flags & FLOW_ANSWERED))
			flow->flags |= FLOW_ANSWERED;
	}
	if (match->first) {
		struct flow *fragments = &room->flow;

		__builtin_memset(fragments, 0, sizeof(*fragments));
		fragments->seen_ticks = now;
		fragments->fragments_kind = match->key.kind;
		fragments->fragments_low_port_be = match->key.low_port_be;
		fragments->fragments_high_port_be = match->key.high_port_be;
		room->key = match->key;
		fragment_key(&room->key, match->id_be, match->from_high);
		bpf_map_update_elem(table, &room->key, fragments, BPF_ANY);
	}
}
