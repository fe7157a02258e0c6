"""The walls that need no netfilter: what a port may do without its program, and what divbr0 lets into the host's stack.

divbr0 hands diverted frames up to the host. On their way netfilter queues them (rules.py), and what was not queued is
dropped there. `nft flush ruleset` takes both away, so three walls stand without netfilter, as long as the links do:

1. The last tc filter of a port drops what is not marked: without from_guest nothing passes it.
2. A tc filter at the ingress of divbr0 (classic BPF):

        mark & 0xff == 0xd1, no VLAN tag, EtherType IPv4, source not in 0.0.0.0/8  ─▶ on, to ip raw PREROUTING
        anything else                                                             ─▶ dropped

   The agent's packet socket on divbr0 sees a frame before this filter does: so ARP, RARP, discovery, and IPv4 of a
   guest that has no address yet (DHCP) end here and still reach the agent.

3. rp_filter on divbr0. What passes 2 has a source address; the kernel's fib_validate_source() then asks for the
   route back. divbr0 has no IPv4 address (`no_addr`) and no route leads out of it, so any mode but 0 refuses
   every source, before local delivery and before forwarding. 0.0.0.0 → 255.255.255.255 alone is delivered without that
   question (net/ipv4/route.c, brd_input): hence the last condition of 2.
"""

import asyncio
import contextlib

from divhook.adapters.links.errors import LinkError

MARK_DIVERT = 0xD1  # low byte of the mark (bpf/abi.h)

_TC_NEXT, _TC_OK, _TC_SHOT = 0xFFFFFFFF, 0, 2  # linux/pkt_cls.h
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _AND, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x54, 0x15, 0x06  # linux/filter.h
_PROTOCOL, _MARK, _TAG_PRESENT = 0xFFFFF000, 0xFFFFF014, 0xFFFFF030  # SKF_AD_OFF + SKF_AD_…

_Program = tuple[tuple[int, int, int, int], ...]
_DIVERTED_IPV4_ONLY: _Program = (
    (_LOAD_WORD, 0, 0, _MARK),
    (_AND, 0, 0, 0xFF),
    (_JUMP_EQUAL, 0, 7, MARK_DIVERT),
    (_LOAD_BYTE, 0, 0, _TAG_PRESENT),
    (_JUMP_EQUAL, 0, 5, 0),
    (_LOAD_HALF, 0, 0, _PROTOCOL),
    (_JUMP_EQUAL, 0, 3, 0x0800),
    (_LOAD_BYTE, 0, 0, 14 + 12),  # first octet of the source address
    (_JUMP_EQUAL, 1, 0, 0),
    (_RETURN, 0, 0, _TC_OK),
    (_RETURN, 0, 0, _TC_SHOT),
)
_MARKED_ONLY: _Program = (
    (_LOAD_WORD, 0, 0, _MARK),
    (_AND, 0, 0, 0xFF),
    (_JUMP_EQUAL, 0, 1, MARK_DIVERT),
    (_RETURN, 0, 0, _TC_NEXT),
    (_RETURN, 0, 0, _TC_SHOT),
)
_PRIO_BRIDGE, _PRIO_PORT = 1, 0xD000  # from_guest is ahead of the latter

_TC_TIMEOUT_S = 5.0


async def _tc(*arguments: str) -> tuple[int, str]:
    """Exit code, and what it said."""
    process = await asyncio.create_subprocess_exec(
        "tc", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        text, _ = await asyncio.wait_for(process.communicate(), _TC_TIMEOUT_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):  # it may end just now
            process.kill()
        await process.wait()
        return 1, "tc did not answer"
    return process.returncode or 0, text.decode(errors="replace").strip()


async def _filter(link: str, prio: int, program: _Program) -> None:
    """Set an ingress filter, or set it again with no moment without it. Raises LinkError."""
    await _tc(
        "qdisc", "add", "dev", link, "clsact"
    )  # fails where a qdisc for ingress is there, and the next line tells
    bytecode = f"{len(program)}," + ",".join("{} {} {} {}".format(*instruction) for instruction in program)
    code, error = await _tc(
        *("filter", "replace", "dev", link, "ingress", "prio", str(prio), "handle", "1", "protocol", "all"),
        *("bpf", "da", "bytecode", bytecode),
    )
    if code:
        raise LinkError(f"{link}: the filter that keeps guests from this host cannot be set: {error}")


async def wall_bridge(bridge: str) -> None:
    """Admit diverted IPv4 alone to the host's stack. Raises LinkError."""
    await _filter(bridge, _PRIO_BRIDGE, _DIVERTED_IPV4_ONLY)


async def wall_port(port: str) -> None:
    """Let nothing pass but what from_guest, ahead of this filter, has marked. Raises LinkError."""
    await _filter(port, _PRIO_PORT, _MARKED_ONLY)


async def unwall_port(port: str) -> None:
    """Undo wall_port, and remove clsact if nobody else has a filter there. The port must be down, or no port any more:
    its guest could reach the host's stack."""
    await _tc("filter", "del", "dev", port, "ingress", "prio", str(_PRIO_PORT))
    listed = [await _tc("filter", "show", "dev", port, direction) for direction in ("ingress", "egress")]
    if listed == [(0, "")] * 2:
        await _tc("qdisc", "del", "dev", port, "clsact")
