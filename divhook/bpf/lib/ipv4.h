/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * IPv4: RFC 791, with the checks that the host's stack makes silently (ip_rcv) and a few that it does not make.
 *
 *  0               1               2               3
 * +-------+-------+---------------+-------------------------------+
 * |version|  IHL  |      TOS      |         total length          |
 * +-------+-------+---------------+-----+-------------------------+
 * |        identification         |0 D M|     fragment offset     |   offset in units of 8 bytes
 * +---------------+---------------+-----+-------------------------+
 * |      TTL      |   protocol    |        header checksum        |
 * +---------------+---------------+-------------------------------+
 * |                            source                             |
 * |                          destination                          |
 * |                       options, 0 to 40                        |
 */
#pragma once

#include "ethernet.h"

#define IPV4_MIN_LEN 20
#define IPV4_MAX_LEN 60
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK 0x1fff
#define IPV4_MAX_PACKET 65535

#define OPTION_END 0
#define OPTION_NOP 1
#define OPTION_LSRR 131
#define OPTION_SSRR 137

#define PROTOCOL_ICMP 1
#define PROTOCOL_IGMP 2
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define TCP_LEN 20
#define UDP_LEN 8
#define DHCP_SERVER_PORT 67
#define DHCP_CLIENT_PORT 68

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_length_be;
	__be16 id_be;
	__be16 fragment_be;
	__u8 ttl;
	__u8 protocol;
	__be16 checksum;
	__be32 source_be;
	__be32 destination_be;
	__u8 options[IPV4_MAX_LEN - IPV4_MIN_LEN];
};
_Static_assert(sizeof(struct ipv4) == IPV4_MAX_LEN, "ipv4");

struct udp_ports {
	__be16 source_be;
	__be16 destination_be;
};

/* What the programs need to know of a packet. */
struct packet {
	__be32 source_be;
	__be32 destination_be;
	__u32 header_length;
	__u32 total_length;
	__u8 ttl;
	__u8 protocol;
	bool udp; /* and the ports are known: unfragmented, or the first fragment */
	bool fragment;
	__u16 source_port;
	__u16 destination_port;
};

/* RFC 791 §3.1: one octet, or type, length, data. Source routing is refused: RFC 7126 §4.3, §4.4. */
static __always_inline bool options_valid(const struct ipv4 *header, __u32 header_length)
{
	const __u8 *bytes = (const __u8 *)header;
	__u32 skip = 0;

	for (__u32 at = IPV4_MIN_LEN; at < IPV4_MAX_LEN; at++) {
		__u8 type, length;

		if (at >= header_length)
			break;
		if (skip) {
			skip--;
			continue;
		}
		type = bytes[at];
		if (type == OPTION_END)
			break;
		if (type == OPTION_NOP)
			continue;
		if (type == OPTION_LSRR || type == OPTION_SSRR || at + 1 >= header_length || at + 1 >= IPV4_MAX_LEN)
			return false;
		length = bytes[at + 1];
		if (length < 2 || at + length > header_length)
			return false;
		skip = length - 1;
	}
	return true;
}

static __always_inline bool checksum_valid(struct ipv4 *header)
{
	__u32 sum = bpf_csum_diff(0, 0, (__be32 *)header, sizeof(*header), 0);

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

/* A fragment must not run over 64 KiB, nor hide or overwrite ports, flags or ICMP type: RFC 1858 §3. */
static __always_inline bool fragment_valid(__u8 protocol, __u32 offset, __u32 total_length, __u32 payload)
{
	__u32 transport = 0;

	if (protocol == PROTOCOL_TCP)
		transport = TCP_LEN;
	else if (protocol == PROTOCOL_UDP || protocol == PROTOCOL_ICMP)
		transport = UDP_LEN; /* and ICMP's */
	if (offset + total_length > IPV4_MAX_PACKET)
		return false;
	return offset ? offset >= transport : payload >= transport;
}

/*
 * Fill packet, all zero before, from the header at offset l3. VALID, or why not. Bytes after the total length are
 * padding.
 * Not static: so the verifier walks it once, not once for each way that leads here.
 */
__noinline enum drop_reason packet_parse_untrusted(struct __sk_buff *skb, __u32 l3, struct packet *packet)
{
	struct ipv4 header = {};
	__u32 header_length, total_length, offset, payload;
	struct udp_ports ports;

	if (!packet)
		return INTERNAL_ERROR;
	if (bpf_skb_load_bytes(skb, l3, &header, IPV4_MIN_LEN))
		return TRUNCATED;
	packet->source_be = header.source_be;
	packet->destination_be = header.destination_be;
	if (header.version_ihl >> 4 != 4)
		return IPV4_VERSION;
	header_length = (header.version_ihl & 0xf) * 4;
	if (header_length < IPV4_MIN_LEN)
		return IPV4_HEADER_LENGTH;
	if (l3 + header_length > skb->len || bpf_skb_load_bytes(skb, l3, &header, header_length))
		return TRUNCATED;
	total_length = bpf_ntohs(header.total_length_be);
	if (total_length < header_length)
		return IPV4_TOTAL_LENGTH;
	if (l3 + total_length > skb->len)
		return TRUNCATED;
	if (!checksum_valid(&header))
		return IPV4_CHECKSUM;
	if (header_length > IPV4_MIN_LEN && !options_valid(&header, header_length))
		return IPV4_OPTION;

	packet->header_length = header_length;
	packet->total_length = total_length;
	packet->ttl = header.ttl;
	packet->protocol = header.protocol;
	offset = (bpf_ntohs(header.fragment_be) & IPV4_OFFSET_MASK) * 8;
	packet->fragment = header.fragment_be & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK);
	payload = total_length - header_length;
	if (packet->fragment && !fragment_valid(header.protocol, offset, total_length, payload))
		return FRAGMENT_INVALID;
	if (header.protocol == PROTOCOL_UDP && offset == 0 && payload >= sizeof(ports)) {
		if (bpf_skb_load_bytes(skb, l3 + header_length, &ports, sizeof(ports)))
			return TRUNCATED;
		packet->udp = true;
		packet->source_port = bpf_ntohs(ports.source_be);
		packet->destination_port = bpf_ntohs(ports.destination_be);
	}
	return VALID;
}

/* An untagged frame's headers, to read and write in place. At even addresses: else each half-word is read in two. */
struct headers {
	struct ethernet ethernet;
	__u8 version_ihl;
	__u8 tos;
	__be16 total_length_be;
	__be16 id_be;
	__be16 fragment_be;
	__u8 ttl;
	__u8 protocol;
	__be16 checksum;
	__be32 source_be;
	__be32 destination_be;
} __attribute__((packed, aligned(2)));
_Static_assert(sizeof(struct headers) == ETH_LEN + IPV4_MIN_LEN, "headers");

/* The same with the ports of a packet that has no options. */
struct ordinary {
	struct headers headers;
	struct udp_ports ports;
	__be32 rest;
} __attribute__((packed, aligned(2)));
_Static_assert(sizeof(struct ordinary) == ETH_LEN + IPV4_MIN_LEN + UDP_LEN, "ordinary");

/*
 * The first `length` bytes of the frame in place, made linear first where they are not (senders can hand over 14
 * bytes); null where the frame is shorter. After any helper that changes the frame, pointers are to be taken again.
 */
#define FRAME_START(skb, type)                                                                                         \
	({                                                                                                             \
		type *start = (void *)(long)(skb)->data;                                                               \
		if ((void *)(start + 1) > (void *)(long)(skb)->data_end && (skb)->len >= sizeof(*start)) {             \
			bpf_skb_pull_data(skb, sizeof(*start));                                                        \
			start = (void *)(long)(skb)->data;                                                             \
		}                                                                                                      \
		(void *)(start + 1) <= (void *)(long)(skb)->data_end ? start : 0;                                      \
	})

/*
 * The common case in a few instructions: true, and packet filled, only where packet_parse_untrusted would find it
 * VALID. False says nothing.
 */
static __always_inline bool ordinary_valid(const struct __sk_buff *skb, const struct ordinary *start,
					   struct packet *packet)
{
	const struct headers *header = &start->headers;
	const __u32 *words = (const __u32 *)&header->version_ihl;
	__u32 total_length = bpf_ntohs(header->total_length_be);
	__u64 sum = 0;

	if (header->version_ihl != 0x45 || header->fragment_be & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK) ||
	    total_length < IPV4_MIN_LEN + UDP_LEN || ETH_LEN + total_length > skb->len)
		return false;
#pragma unroll
	for (int i = 0; i < IPV4_MIN_LEN / 4; i++)
		sum += words[i];
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	if (sum != 0xffff)
		return false;
	packet->source_be = header->source_be;
	packet->destination_be = header->destination_be;
	packet->header_length = IPV4_MIN_LEN;
	packet->total_length = total_length;
	packet->ttl = header->ttl;
	packet->protocol = header->protocol;
	packet->udp = header->protocol == PROTOCOL_UDP;
	packet->fragment = false;
	packet->source_port = bpf_ntohs(start->ports.source_be);
	packet->destination_port = bpf_ntohs(start->ports.destination_be);
	return true;
}

/* RFC 1812 §5.3.1, with the checksum brought up to date in place (RFC 1624). */
static __always_inline void ttl_decrement(struct headers *start)
{
	__u32 sum = (__u32)start->checksum + bpf_htons(0x0100);

	start->checksum = sum + (sum >= 0xffff);
	start->ttl--;
}

static __always_inline bool packet_is_dhcp_request(const struct packet *packet)
{
	return packet->udp && packet->source_port == DHCP_CLIENT_PORT && packet->destination_port == DHCP_SERVER_PORT;
}

/* Whether a DHCP client or server might read it: clients look at the destination port alone. */
static __always_inline bool packet_touches_dhcp(const struct packet *packet)
{
	return packet->udp && (packet->source_port == DHCP_SERVER_PORT || packet->destination_port == DHCP_SERVER_PORT ||
			       packet->destination_port == DHCP_CLIENT_PORT);
}
