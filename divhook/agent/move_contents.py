"""What goes from host to host with a NIC that moves, but for its connections and its frames."""

import logging
from itertools import islice

from divhook.agent import leases
from divhook.agent.dataplane import Dataplane
from divhook.agent.enforcement import Enforcement
from divhook.agent.nic import Nic
from divhook.agent.traffic import Tally, Traffic
from divhook.core.addressing import Mac, mac_text
from divhook.core.moves.messages import MAX_FORWARDERS, MAX_GROUPS, MAX_TALKERS, Handover
from divhook.core.wire.discovery import Claim

MAX_LOOKED_AT = 4096
"""Neighbours, those last used first, whose hosts are told of a move."""

log = logging.getLogger(__name__)


def handover_of(nic: Nic, claim: Claim, plane: Dataplane, enforcement: Enforcement | None) -> Handover:
    """All of a NIC that the next host is to know ahead."""
    pipeline = plane.pipeline
    own = [c for c in pipeline.discovery.claims() if c.address != claim.address]
    known = [entry.found.claim for entry in pipeline.discovery.neighbours.newest() if entry.found is not None]
    cell = nic.placement.id.cell
    locate = pipeline.plan.locate
    talkers = [c for c in [*own, *known] if (place := locate(c.address)) is not None and place.cell == cell]
    return Handover(
        claim,
        nic.guest,
        leases.of(pipeline.dhcp, nic, plane.now()),
        counters_of(nic, plane),
        tuple(talkers[:MAX_TALKERS]),
        nic.former[:MAX_FORWARDERS],
        enforcement.digest_of(nic.placement.subnet.cell) if enforcement is not None else "",
        tuple(pipeline.groups.members.of(nic.port)[:MAX_GROUPS]),
    )


def take(nic: Nic, handover: Handover, plane: Dataplane, enforcement: Enforcement | None) -> None:
    """What it says of the NIC itself; a policy that is another here is told of."""
    claim, own = handover.claim, plane.pipeline.pmac
    nic.born, nic.lease, nic.carried, nic.groups = claim.born, handover.lease, handover.counters, handover.groups
    nic.former = tuple(host for host in (claim.host, *handover.forwarders) if host != own)
    cell = nic.placement.subnet.cell
    digest = enforcement.digest_of(cell) if enforcement is not None else ""
    if digest and handover.policy and digest != handover.policy:
        log.warning(
            "%s: the policy files of cell %s differ from those of host %s, where it was; those of this host count",
            nic,
            cell,
            mac_text(claim.host),
        )


def counters_of(nic: Nic, plane: Dataplane) -> dict[str, int]:
    """What the guest sent and received by this NIC, here and where it was before."""
    return totals(nic, Traffic(plane.programs, plane.counters.delivered))


def totals(nic: Nic, traffic: Traffic) -> dict[str, int]:
    """Frames and bytes of a NIC, by the names that they have in a hand-over and in `divhook endpoints`."""
    sent, received = (traffic.sent(nic.port), traffic.received(nic.port)) if nic.port else (Tally(), Tally())
    here = {
        "sent_packets": sent.packets,
        "sent_bytes": sent.octets,
        "received_packets": received.packets,
        "received_bytes": received.octets,
    }
    return {name: count + nic.carried.get(name, 0) for name, count in here.items()}


def hosts_of_talkers(plane: Dataplane, but: Mac | None) -> list[Mac]:
    """Of neighbours, those last used first."""
    known = islice(plane.pipeline.discovery.neighbours.newest(), MAX_LOOKED_AT)
    hosts = dict.fromkeys(entry.found.claim.host for entry in known if entry.found is not None)
    return [host for host in hosts if host not in (plane.pipeline.pmac, but)]
