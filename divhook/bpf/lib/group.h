/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Broadcast and multicast, as the agent has decided before: the twin of divhook/core/group.py over map `group_lists`.
 *
 *   from a guest   a copy to each port of the list but its own, then one frame to the wire: subnet's group MAC, own pmac
 *   from the wire  a copy to each port of the list, from the sender's vmac, once its host is the one it is known on
 *
 * Copies are clones of the frame: all are alike, but for where they go. Before each, map `ports` must still have the
 * port, active and in the sender's subnet: a list that is exchanged while it is walked crosses no subnet.
 */
#pragma once

#include "forward.h"

#define LINK_LOCAL_GROUPS 0xe0000000 /* 224.0.0.0/24 */

struct copies {
	struct __sk_buff *skb;
	const struct host_config *host;
	const struct group_list *list;
	__u32 but_port_id; /* the sender's */
	__be32 source_be;
	__u32 packets;
	__u32 bytes;
};

static long copy_to_member(__u32 index, struct copies *copies)
{
	const struct group_member *member;
	const struct port *port;
	__u32 ifindex;

	if (index >= MAX_GROUP_MEMBERS)
		return 1;
	member = &copies->list->members[index];
	if (member->port_id == copies->but_port_id)
		return 0;
	ifindex = member->ifindex;
	port = bpf_map_lookup_elem(&ports, &ifindex);
	if (!port || port->port_id != member->port_id || port->state != PORT_ACTIVE || port->flags & PORT_POLICED ||
	    !same_subnet(copies->host, port->router_be, copies->source_be))
		return 0;
	count_to(member->port_id, copies->packets, copies->bytes); /* as of a redirect, whatever its tap makes of it */
	bpf_clone_redirect(copies->skb, ifindex, 0);
	return 0;
}

static __always_inline bool is_multicast(__be32 address_be)
{
	return (address_be & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
}

static __always_inline const struct group_list *group_list(__be32 network_be, __be32 group_be)
{
	struct group_key key = {.network_be = network_be, .group_be = group_be};

	return bpf_map_lookup_elem(&group_lists, &key);
}

/*
 * The lists that matter to a packet to a group from `source_be`: false where the agent must see it. *all: of the
 * subnet. *list: of those that are to get it; null for none.
 */
static __always_inline bool lists_of(const struct host_config *host, const struct packet *packet,
				     const struct group_list **all, const struct group_list **list)
{
	__be32 network = packet->source_be & ~host->host_mask_be, destination = packet->destination_be;

	*all = group_list(network, bpf_htonl(0xffffffff));
	if (!*all || (*all)->flags & GROUP_LIST_AGENTS)
		return false;
	*list = *all;
	if (!is_multicast(destination))
		return destination == bpf_htonl(0xffffffff) || destination == (network | host->host_mask_be);
	if ((destination & bpf_htonl(0xffffff00)) == bpf_htonl(LINK_LOCAL_GROUPS))
		return true;
	if ((*all)->flags & GROUP_LIST_ROUTED)
		return false;
	*list = group_list(network, destination);
	return *list || (*all)->flags & GROUP_LIST_COMPLETE;
}

/* The MAC of a broadcast or multicast address: RFC 1112 §6.4. */
static __always_inline void group_destination(__be32 address_be, struct mac *mac)
{
	__u32 address = bpf_ntohl(address_be);
	__be16 *words_be = (void *)mac;

	words_be[0] = words_be[1] = words_be[2] = 0xffff;
	if (is_multicast(address_be)) {
		words_be[0] = bpf_htons(0x0100);
		words_be[1] = bpf_htons(0x5e00 | (address >> 16 & 0x7f));
		words_be[2] = bpf_htons(address);
	}
}

static __always_inline void copy_to_members(struct copies *copies)
{
	if (copies->list)
		bpf_loop(copies->list->count, copy_to_member, copies, 0);
}

/* A valid packet in a group frame of an active port, from an address of its own; within its rate. */
static __noinline int group_from_guest(struct __sk_buff *skb, const struct host_config *host, const struct port *port,
				       const struct packet *packet)
{
	struct copies copies = {.skb = skb, .host = host, .but_port_id = port->port_id, .bytes = skb->len};
	const struct group_list *all;
	struct ethernet ethernet;

	if (port->flags & PORT_POLICED || !lists_of(host, packet, &all, &copies.list) ||
	    !fits(skb, packet, all->mtu, &copies.packets) || !trim(skb, packet))
		return NOT_KNOWN;
	copies.source_be = packet->source_be;
	group_destination(packet->destination_be, &ethernet.destination);
	if (bpf_skb_store_bytes(skb, 0, &ethernet.destination, sizeof(struct mac), 0))
		return drop(skb, port->port_id, INTERNAL_ERROR);
	count_from(port->port_id, copies.packets, copies.bytes);
	copy_to_members(&copies);
	router_mac(host, port->router_be, &ethernet.destination);
	ethernet.destination.octets[0] = 0x03; /* 03:d1, cell, subnet: its group MAC (divhook/core/addressing.py) */
	mac_copy(&ethernet.source, &host->pmac);
	if (bpf_skb_store_bytes(skb, 0, &ethernet, 2 * sizeof(struct mac), 0))
		return TC_ACT_SHOT;
	return redirect(skb, host->uplink_ifindex);
}

/* A valid packet with a group address in a frame from `source` to a joined group. */
static __noinline int group_from_wire(struct __sk_buff *skb, const struct host_config *host,
				      const struct packet *packet, const struct mac *source)
{
	struct copies copies = {.skb = skb, .host = host, .bytes = skb->len};
	__be32 number = packet->source_be & host->host_mask_be;
	const struct group_list *all;
	struct endpoint *sender;
	struct ethernet ethernet;

	if (!is_virtual(host, packet->source_be) || bpf_ntohl(number) < 2 || number == host->host_mask_be ||
	    packet->protocol == PROTOCOL_IGMP || !lists_of(host, packet, &all, &copies.list))
		return NOT_KNOWN;
	if (!copies.list || !copies.list->count)
		return drop(skb, 0, NO_MEMBER);
	sender = endpoint_of(packet->source_be);
	if (!sender || sender->kind != ENDPOINT_REMOTE || !speaks_from(sender, source) ||
	    mac_equal(source, &host->pmac) || !fits(skb, packet, all->mtu, &copies.packets) || !trim(skb, packet))
		return NOT_KNOWN;
	copies.source_be = packet->source_be;
	endpoint_heard(sender);
	group_destination(packet->destination_be, &ethernet.destination);
	mac_copy(&ethernet.source, &sender->vmac);
	if (bpf_skb_store_bytes(skb, 0, &ethernet, 2 * sizeof(struct mac), 0))
		return drop(skb, 0, INTERNAL_ERROR);
	copy_to_members(&copies);
	return TC_ACT_SHOT; /* every copy is on its way */
}
