/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The physical limit of forwarding by tc programs: no look-up, no check, no counter. Both MACs are rewritten with
 * constants and the frame goes to a constant interface. Compiled once for each hook:
 *
 *   -DTARGET=ifindex -DDST_MAC='{0x02,...}' -DSRC_MAC='{0x02,...}'
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

struct macs {
	unsigned char dst[6], src[6];
};

SEC("tc")
int redirect(struct __sk_buff *skb)
{
	struct macs *ethernet = (void *)(long)skb->data;

	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	*ethernet = (struct macs){DST_MAC, SRC_MAC};
	return bpf_redirect(TARGET, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
