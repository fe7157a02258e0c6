"""Faults planted in the fast path, one for each thing that it must not forget, and whether the differential finds them.

    python tests/bpf/fastpath_mutants.py [name …]

Each is a change of a copy of divhook/bpf, compiled and run against the core. One that is not found, or whose text is no
more in the source, fails.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastpath_referee import DifferenceError, compare

import divhook

SOURCE = Path(divhook.__file__).parent / "bpf"
FRAMES = 24_000
"""That a mutant must survive to be called not found."""
ENFORCE, POLICY = "lib/enforce.h", "lib/policy.h"
FORWARD, PROGRAMS, IPV4 = "lib/forward.h", "divhook.c", "lib/ipv4.h"


@dataclass(frozen=True, slots=True)
class Mutant:
    """The first `old` in a file, after the text `after`, becomes `new`."""

    file: str
    old: str
    new: str
    after: str = ""

    def plant(self, directory: Path) -> None:
        """Change a copy of the source. Raises LookupError."""
        path = directory / self.file
        text = path.read_text()
        at = text.find(self.old, max(0, text.find(self.after)))
        if at < 0 or self.after not in text:
            raise LookupError(f"{self.file} has no {self.old!r} any more: write this mutant anew")
        path.write_text(text[:at] + self.new + text[at + len(self.old) :])


def forward(old: str, new: str) -> Mutant:
    return Mutant(FORWARD, old, new)


def guest(old: str, new: str) -> Mutant:
    return Mutant(FORWARD, old, new, "int forward_from_guest(")


def wire(old: str, new: str) -> Mutant:
    return Mutant(FORWARD, old, new, "int forward_from_wire(")


def police(old: str, new: str) -> Mutant:
    return Mutant(ENFORCE, old, new, "int flow_police(")


def rule(old: str, new: str) -> Mutant:
    return Mutant(POLICY, old, new)


def group(old: str, new: str) -> Mutant:
    return Mutant("lib/group.h", old, new)


def outward(old: str, new: str) -> Mutant:
    return Mutant("lib/external.h", old, new, "int forward_to_external(")


def inward(old: str, new: str) -> Mutant:
    return Mutant("lib/external.h", old, new, "int forward_from_external(")


def outside(old: str, new: str) -> Mutant:
    return Mutant("lib/external.h", old, new)


def host(old: str, new: str) -> Mutant:
    return Mutant("lib/host.h", old, new, "int forward_to_host(")


def answer(old: str, new: str) -> Mutant:
    return Mutant(FORWARD, old, new, "int arp_answer(")


def arp(old: str, new: str) -> Mutant:
    return Mutant(PROGRAMS, old, new, "int answer_arp(")


MUTANTS = {
    # what an address tells
    "same_subnet is inverted": forward("return !((a_be ^ b_be) & ~host", "return !!((a_be ^ b_be) & ~host"),
    "every cell is the same": forward("return !((a_be ^ b_be) & host->cell_mask_be)", "return true"),
    "outside is another cell": Mutant(
        ENFORCE, "return (address_be & host->supernet_mask_be) == host->supernet_be", "return true"
    ),
    "rmac with cell and subnet swapped": forward("words_be[1] = bpf_htons(cell)", "words_be[1] = bpf_htons(subnet)"),
    "rmac of the default plan": forward(">> (host->host_bits & 31)", ">> 8"),
    "rmac with the subnet in the cell": forward("words_be[1] = bpf_htons(cell)", "words_be[1] = bpf_htons(within)"),
    # what fits
    "MTU one too large": forward("packet->total_length <= mtu", "packet->total_length <= mtu + 1"),
    "MTU one too small": forward("packet->total_length <= mtu", "packet->total_length < mtu"),
    "segments without their headers": forward("headers + skb->gso_size > mtu", "skb->gso_size > mtu"),
    "segments one too small": forward("headers + skb->gso_size > mtu", "headers + skb->gso_size >= mtu"),
    "TCP without options": forward("headers += data_offset >> 4 << 2", "headers += 20"),
    "a segmented frame counts one": forward("*packets = (payload + skb->gso_size - 1) / skb->gso_size", "*packets = 1"),
    "padding goes along": forward("return skb->len == length ||", "return true || skb->len == length ||"),
    # from_guest
    "group frames are forwarded": guest("if (group)", "if (false)"),
    "cells may talk": guest("if (!same_cell(host", "if (false && !same_cell(host"),
    "a network address is another cell's endpoint": guest("|| !number ||", "||"),
    "a broadcast address is another cell's endpoint": guest("|| number == host->host_mask_be", ""),
    "CELL_DENIED at the uplink": guest("drop(skb, port->port_id, CELL_DENIED)", "drop(skb, 0, CELL_DENIED)"),
    "a fenced guest is reached": guest("endpoint->kind == ENDPOINT_FENCED ||", ""),
    "a guest is sent its own": guest(
        "(endpoint->kind == ENDPOINT_LOCAL && endpoint->port_id == port->port_id)", "false"
    ),
    "TTL 1 is routed": guest("packet->ttl <= 1", "packet->ttl < 1"),
    "TTL 1 goes nowhere": guest("(routed && packet->ttl <= 1)", "packet->ttl <= 1"),
    "TTL stays": guest("if (routed)\n\t\tttl_decrement(start)", "if (false)\n\t\tttl_decrement(start)"),
    "TTL-1 within a subnet": guest("if (routed)\n\t\tttl_decrement(start)", "ttl_decrement(start)"),
    "no MTU from a guest": guest("endpoint->mtu", "65535"),
    "a guest's MAC on the wire": guest("mac_copy(&start->ethernet.source, &host->pmac);", ""),
    "a guest's MAC as the peer's": guest(
        "&start->ethernet.destination, &endpoint->host", "&start->ethernet.destination, &endpoint->vmac"
    ),
    "the router speaks within a subnet": guest("if (routed)\n\t\t\trouter_mac", "router_mac"),
    "the router of the sender's subnet": guest("router_mac(host, destination", "router_mac(host, port->address_be"),
    "to the tap beside": guest("ifindex = endpoint->ifindex", "ifindex = endpoint->ifindex ^ 1"),
    "to the bridge, not the wire": guest("ifindex = host->uplink_ifindex", "ifindex = host->divbr_ifindex"),
    "a neighbour is heard when it is sent to": guest("endpoint_used(endpoint)", "endpoint_heard(endpoint)"),
    "use by a guest is not noted": guest("endpoint_used(endpoint);", ""),
    "sent frames are not counted": guest(
        "count_from(port->port_id, packets, bytes)", "count_from(port->port_id, 0, 0)"
    ),
    "bytes without padding": guest(
        "count_from(port->port_id, packets, bytes)", "count_from(port->port_id, packets, skb->len)"
    ),
    "received frames are not counted": guest(
        "count_to(endpoint->port_id, packets, bytes)", "count_to(endpoint->port_id, 0, 0)"
    ),
    "a tentative port sends": Mutant(
        PROGRAMS, "speaks = port->state == PORT_ACTIVE", "speaks = port->state != PORT_FENCED"
    ),
    "the fast path is on though it is off": Mutant(
        PROGRAMS, "PORT_ACTIVE && host->flags & HOST_FASTPATH", "PORT_ACTIVE"
    ),
    "the mark of a guest stays": Mutant(PROGRAMS, "skb->mark = 0;", ""),
    "TTL-1 carries too late": Mutant(IPV4, "sum + (sum >= 0xffff)", "sum + (sum > 0xffff)"),
    "TTL-1 does not carry": Mutant(IPV4, "sum + (sum >= 0xffff)", "sum"),
    # from_wire
    "a fenced guest hears the wire": wire("local->kind != ENDPOINT_LOCAL", "local->kind == ENDPOINT_REMOTE"),
    "our own pmac from the wire": wire("|| mac_equal(source, &host->pmac)", ""),
    "cells may talk over the wire": wire("if (!same_cell(host", "if (false && !same_cell(host"),
    "local addresses from the wire": wire("if (sender->kind != ENDPOINT_REMOTE)", "if (false)"),
    "any host may speak for a neighbour": wire("own = speaks_from(sender, source)", "own = true"),
    "a neighbour may not move": Mutant(FORWARD, "mac_equal(host, &endpoint->next)", "false"),
    "what comes late is not sent on": wire("local->flags & ENDPOINT_FORWARDED", "false"),
    "all that is not here is sent on": wire("local->flags & ENDPOINT_FORWARDED", "true"),
    "what is sent on is not counted": Mutant(
        FORWARD, "__sync_fetch_and_add(&there->used, packets * ENDPOINT_SENT_ON);", "", "int send_on("
    ),
    "any host may send late": Mutant(FORWARD, "!speaks_from(sender, source) ||", "", "int send_on("),
    "what comes late goes back": Mutant(FORWARD, "mac_equal(source, &there->host) ||", "", "int send_on("),
    "a late packet keeps its source MAC": Mutant(
        FORWARD, "mac_copy(&start->ethernet.source, &host->pmac);", "", "int to_uplink("
    ),
    "another cell sends late": Mutant(
        FORWARD, "!same_cell(host, packet->source_be, packet->destination_be) ||", "", "int send_on("
    ),
    "anyone sends on": wire("if (!mac_equal(source, &local->host))", "if (false)"),
    "the former host may not send on": wire("if (!mac_equal(source, &local->host))", "if (true)"),
    "a neighbour is heard by way of another": wire("if (own && sender->kind", "if (sender->kind"),
    "one that has not come in yet speaks": Mutant(PROGRAMS, "port->flags & PORT_SPEAKS && !group", "!group"),
    "one that is awaited does not speak": Mutant(PROGRAMS, "port->flags & PORT_SPEAKS && !group", "false"),
    "one that is awaited speaks to policies": guest("ENDPOINT_TRACKED && port->state != PORT_ACTIVE", "0"),
    "no MTU from the wire": wire("local->mtu", "65535"),
    "a neighbour that sends is not heard": wire("endpoint_heard(sender)", "endpoint_used(sender)"),
    "use by the wire is not noted": wire("endpoint_heard(sender);", ""),
    "a neighbour's own MAC across subnets": wire(
        "if (same_subnet(host, packet->source_be, packet->destination_be))", "if (true)"
    ),
    "the router within a subnet": wire(
        "if (same_subnet(host, packet->source_be, packet->destination_be))", "if (false)"
    ),
    "the router of the neighbour's subnet": wire(
        "router_mac(host, packet->destination_be", "router_mac(host, packet->source_be"
    ),
    "from the wire to the wire": wire("redirect(skb, local->ifindex)", "redirect(skb, host->uplink_ifindex)"),
    "from the wire, not counted": wire("count_to(local->port_id, packets, bytes)", "count_to(local->port_id, 0, 0)"),
    # policies
    "a port without rules for a cell may talk to it": guest(
        "if (!(port->flags & PORT_POLICED) || !cells_may_talk", "if (false && !cells_may_talk"
    ),
    "no policed port talks to another cell": guest(
        "|| !cells_may_talk(port->address_be & host->cell_mask_be,",
        "|| true || !cells_may_talk(port->address_be & host->cell_mask_be,",
    ),
    "cells without policy are reached here": guest(
        "!(endpoint->flags & ENDPOINT_POLICED))\n\t\t\treturn", "false)\n\t\t\treturn"
    ),
    "cells without policy are reached over the wire": wire("&& !(local->flags & ENDPOINT_POLICED)", "&& false"),
    "the sender is not asked": guest("if (port->flags & PORT_TRACKED)", "if (false)"),
    "the receiver here is not asked": guest("if (endpoint->flags & ENDPOINT_TRACKED)", "if (false)"),
    "the receiver from the wire is not asked": wire("if (local->flags & ENDPOINT_TRACKED)", "if (false)"),
    "the other end is who sends": guest(
        "STEP_OUTWARD | (port->flags & PORT_POLICED), endpoint->identity",
        "STEP_OUTWARD | (port->flags & PORT_POLICED), identity_of(port->address_be)",
    ),
    "any epoch will do": police("flow->epoch == policy->epoch &&", ""),
    "any local end will do": police("flow->local_identity == policy->identity &&", ""),
    "any remote end will do": police(" &&\n\t    flow->remote_identity == remote_identity", ""),
    "a reply asks for its sender": police("by_high == (match->key.high_be == local_be)", "outward"),
    "the port of the other side": Mutant(
        ENFORCE,
        "return by_high ? key->low_port_be : key->high_port_be",
        "return by_high ? key->high_port_be : key->low_port_be",
    ),
    "echo by its identifier": Mutant(ENFORCE, "if (key->kind != FLOW_PAIR)", "if (false)"),
    "what is no flow is no echo": police(
        "class == FLOW_UNTRACKED ? match->type_code_be", "false ? match->type_code_be"
    ),
    "a forbidden flow stays": police("bpf_map_delete_elem(table, &match->key);", ""),
    "a renewed flow keeps its epoch": Mutant(ENFORCE, "room->flow.epoch = policy->epoch;", "", "void flow_put("),
    "a new flow has no epoch": police("room->flow.epoch = policy->epoch;", ""),
    "mid-stream is always welcome": police("&& now < policy->pickup_until_ticks", ""),
    "mid-stream is never welcome": police("if (match->midstream", "if (false && match->midstream"),
    "a reset begins a flow": police("match->event != EVENT_RST &&", ""),
    "ephemeral ports tell nothing": Mutant(
        ENFORCE, "|| (low_port >= EPHEMERAL_PORT) != (high_port >= EPHEMERAL_PORT)", ""
    ),
    "mid-stream by the higher port": Mutant(ENFORCE, "low_port < high_port ||", "low_port > high_port ||"),
    "an unknown identity is denied": police(
        "if (answer == POLICY_UNSURE)\n\t\treturn FLOW_UNSURE", "if (false)\n\t\treturn FLOW_UNSURE"
    ),
    "FLOW_UNKNOWN passes": Mutant(
        ENFORCE, "if (class == FLOW_INVALID)\n\t\treturn drop", "if (false)\n\t\treturn drop"
    ),
    "every other subnet is the same": Mutant(
        ENFORCE, "? POLICY_CELL : POLICY_SUBNET", "? POLICY_SUBNET : POLICY_SUBNET"
    ),
    "another cell is the own": Mutant(ENFORCE, "return POLICY_OTHER", "return POLICY_CELL"),
    "an allow wins over a deny": rule("b->flags & POLICY_ALLOW)))", "b->flags & POLICY_ALLOW) && false))"),
    "ingress for egress": rule("egress ? policy->scopes[1]", "!egress ? policy->scopes[1]"),
    "defaults of the other direction": rule("egress ? policy->allowed[1]", "!egress ? policy->allowed[1]"),
    "rules of the subnet stand alone": rule(
        "question->relation == POLICY_SUBNET ? POLICY_CELL", "question->relation == POLICY_SUBNET ? POLICY_SUBNET"
    ),
    "classes are not looked at": rule("if (class)\n\t\t\ta =", "if (false)\n\t\t\ta ="),
    "an unknown identity has no class": rule("if (!found)\n\t\t\treturn false", "if (!found)\n\t\t\treturn true"),
    "the cell that is named alone": rule("pair.other_be = 0xffffffff;", ""),
    # to groups
    "the sender gets its own copy": group("if (member->port_id == copies->but_port_id)", "if (false)"),
    "copies are not counted": group("count_to(member->port_id, copies->packets, copies->bytes);", ""),
    "a group goes to all": group("*list = group_list(network, destination);", ";"),
    "a link-local group goes to members": group("LINK_LOCAL_GROUPS))", "LINK_LOCAL_GROUPS) && false)"),
    "routed groups stay in their subnet": group("if ((*all)->flags & GROUP_LIST_ROUTED)", "if (false)"),
    "a subnet with policies is the kernel's": group("|| (*all)->flags & GROUP_LIST_AGENTS", ""),
    "another subnet's broadcast is this one's": group("destination == (network | host->host_mask_be)", "true"),
    "a group frame keeps its MAC": group("words_be[1] = bpf_htons(0x5e00 | (address >> 16 & 0x7f));", ""),
    "24 bits of a group in its MAC": group("address >> 16 & 0x7f", "address >> 16 & 0xff"),
    "the wire gets the router's MAC": group("ethernet.destination.octets[0] = 0x03;", ""),
    "a guest's MAC on the wire, to a group": group("mac_copy(&ethernet.source, &host->pmac);", ";"),
    "no MTU for groups": group(
        "!fits(skb, packet, all->mtu, &copies.packets)", "!fits(skb, packet, 65535, &copies.packets)"
    ),
    "any host may speak to a group": group("!speaks_from(sender, source) ||", ""),
    "IGMP from the wire is a group's": group("packet->protocol == PROTOCOL_IGMP ||", ""),
    "no member is no drop": group("if (!copies.list || !copies.list->count)", "if (false)"),
    "use by a group frame is not noted": group("endpoint_heard(sender);", ""),
    "a network address speaks to a group": group("bpf_ntohl(number) < 2 ||", ""),
    # outside, and the host
    "outside without a policy": outward("!(port->flags & PORT_POLICED) ||", ""),
    "TTL 1 goes outside": outward("packet->ttl <= 1", "packet->ttl < 1"),
    "TTL stays on the way outside": outward("ttl_decrement(start);", ";"),
    "no MTU outside": outward("!fits(skb, packet, prefix->mtu, &packets)", "!fits(skb, packet, 65535, &packets)"),
    "use of a server is not noted": outward("endpoint_used(server);", ";"),
    "sent outside, not counted": outward("count_from(port->port_id, packets, bytes);", ";"),
    "a flow goes by another next hop": outside("value ^= value >> 15;", "value ^= value >> 16;"),
    "any MAC is a server's": outside("mac_equal(source, &sender->host) ? sender", "true ? sender"),
    "any MAC is a next hop's": outside("&& mac_equal(&hop->host, source)", ""),
    "TTL 1 comes in": inward("packet->ttl <= 1", "packet->ttl < 1"),
    "no MTU on the way in": inward("!fits(skb, packet, local->mtu, &packets)", "!fits(skb, packet, 65535, &packets)"),
    "a server that sends is not heard": inward("endpoint_heard(sender);", "endpoint_used(sender);"),
    "a server's own MAC in a subnet": Mutant(
        FORWARD, "router_mac(host, address_be, &start->ethernet.source);", ";", "int from_router("
    ),
    "from outside, the policy is not asked": inward("if (verdict != PASSES)", "if (false)"),
    "rules for outside open the host": Mutant(
        ENFORCE, "is_host(remote_be) ? POLICY_HOST : POLICY_EXTERNAL", "POLICY_EXTERNAL"
    ),
    "prefixes open the host": rule("if (question->relation == POLICY_HOST)", "if (false)"),
    "errors about others reach the host": police("if (is_host(remote_be))", "if (false)"),
    "what the host refuses passes": host("if (class == FLOW_DENIED)", "if (false)"),
    "sent to the host, not counted": host("count_from(port->port_id, packets, bytes);", ";"),
    "a guest's MAC for the host": host("mac_copy(&start->ethernet.destination, &destination);", ";"),
    # ARP
    "ARP replies are answered": arp("request->op_be != bpf_htons(ARP_REQUEST) ||", ""),
    "who asks for itself is answered": arp("|| request->tpa_be == port->address_be", ""),
    "ARP across subnets": arp("!same_subnet(host, request->tpa_be, port->address_be)", "false"),
    "ARP for a fenced guest": arp("|| endpoint->kind == ENDPOINT_FENCED", ""),
    "use by ARP is not noted": arp("endpoint_used(endpoint);", ";"),
    "a longer ARP reply": answer("bpf_skb_change_tail(skb, sizeof(reply), 0)", "false"),
    "an ARP request as reply": answer("reply.arp.op_be = bpf_htons(ARP_REPLY);", ""),
    "ARP from the wrong MAC": answer("reply.ethernet.source = *mac;", "reply.ethernet.source = request->sha;"),
    "ARP tells the asker's MAC": answer("reply.arp.sha = *mac;", ""),
    "ARP keeps tha": answer("reply.arp.tha = request->sha;", ""),
    "ARP keeps spa": answer("reply.arp.spa_be = request->tpa_be;", ""),
    "ARP counts the reply": answer("count_ended(port_id, CONSUMED, bytes)", "count_ended(port_id, CONSUMED, skb->len)"),
    "ARP of a tentative port": Mutant(
        PROGRAMS,
        "known == SHARED_HELD && port->state == PORT_ACTIVE",
        "known == SHARED_HELD && port->state != PORT_FENCED",
    ),
    "ARP is answered though the fast path is off": Mutant(
        PROGRAMS, "PORT_ACTIVE && host->flags & HOST_FASTPATH", "PORT_ACTIVE", "SPOOF_ARP_SPA"
    ),
    "ARP reply to the wire": arp("&mac, skb->ifindex)", "&mac, host->uplink_ifindex)"),
}
FEW = (
    "any epoch will do",
    "an allow wins over a deny",
    "same_subnet is inverted",
    "TTL-1 carries too late",
    "any host may speak for a neighbour",
    "ARP tells the asker's MAC",
    "the sender gets its own copy",
    "any MAC is a server's",
    "rules for outside open the host",
)
"""Of each kind: what `make test` plants."""


def build(directory: Path) -> Path:
    """Compile the programs below a directory. Raises RuntimeError with what clang said."""
    machine = os.uname().machine
    command = f"clang -O2 -g -target bpf -mcpu=v3 -I/usr/include/{machine}-linux-gnu -c divhook.c -o divhook.o"
    done = subprocess.run(command.split(), cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return directory / "divhook.o"


def hunt(name: str) -> str | None:
    """What the differential says to a mutant; None where it finds no fault. Raises LookupError, RuntimeError."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "bpf"
        shutil.copytree(SOURCE, directory, ignore=shutil.ignore_patterns("*.o", "__pycache__"))
        MUTANTS[name].plant(directory)
        try:
            compare(f"mutant {name}", FRAMES, 1, build(directory))
        except DifferenceError as error:
            return str(error)
    return None


def main(names: list[str]) -> int:
    """Plant them all, or some; 1 where any is not found."""
    begin = time.monotonic()
    missed = 0
    chosen = names or list(MUTANTS)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, found in zip(chosen, pool.map(hunt, chosen), strict=True):
            line = next((line for line in (found or "").splitlines() if line.startswith("seed")), "")
            print(f"{'found' if found else 'MISSED'}  {name:48} {line.split(':')[0]}", flush=True)
            missed += found is None
    print(f"{len(chosen) - missed} of {len(chosen)} mutants found, {time.monotonic() - begin:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
