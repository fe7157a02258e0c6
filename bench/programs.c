/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The benchmark's BPF programs that are the same for every contender.
 *
 *   discard   tc ingress of a guest's NIC, and of the interface that drops: 64-byte datagrams to port 9 end here
 *   arm       XDP, passes all: a veth takes live frames only where it carries an XDP program
 *   generate  run by BPF_PROG_TEST_RUN with live frames: writes the headers anew, since pages are used again after a
 *             contender has rewritten them, and passes the frame to the stack as if the interface had received it.
 *             `spread` > 0: to as many destinations as that, in no order: bench/endpoints.py counts in the same way
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

#include <bpf/bpf_endian.h>

#define HEADERS_LEN 44
#define PER_SUBNET 250
#define STRIDE 7919 /* a prime */

struct plan {
	unsigned char headers[HEADERS_LEN];
	__u32 spread, first; /* first: the first subnet's address, host byte order */
	__u32 sum;	     /* of the IPv4 header's words without destination and checksum */
	__u32 at;
} plan;

SEC("tc")
int discard(struct __sk_buff *skb)
{
	unsigned char *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (data + 42 > end || data[12] != 8 || data[13] != 0 || data[23] != 17 || data[36] != 0 || data[37] != 9)
		return TC_ACT_UNSPEC;
	return TC_ACT_SHOT;
}

SEC("xdp")
int arm(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp.generate")
int generate(struct xdp_md *ctx)
{
	unsigned char *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (data + 60 > end)
		return XDP_DROP;
	__builtin_memcpy(data, plan.headers, HEADERS_LEN);
	if (plan.spread) {
		__u32 number = (plan.at += STRIDE) % plan.spread;
		__u32 destination = plan.first + number / PER_SUBNET * 256 + 2 + number % PER_SUBNET;
		__u32 sum = plan.sum + (destination >> 16) + (destination & 0xffff);

		sum = (sum >> 16) + (sum & 0xffff);
		sum += sum >> 16;
		*(__be16 *)(data + 24) = bpf_htons((__u16)~sum);
		*(__be32 *)(data + 30) = bpf_htonl(destination);
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
