"""One line of the flow log: what was decided of a flow, and by what. Kernel and agent write the same.

A flow that a rule with `log` allows is told once, when it begins; what is denied, or can be part of no flow, each time,
within the port's rate (POLICY_LOG_PPS): a scan costs no more than that.
"""

from dataclasses import dataclass

from divhook.core.addressing import Address
from divhook.core.reasons import DropReason


@dataclass(frozen=True, slots=True)
class FlowEvent:
    """Seen at a local port. Addresses and ports are those of the packet; of ICMP, ports are type and code.

    outward: the packet came from the port's guest. reason: None where it was allowed. rule: number of the rule that
    decided; 0 where a default did, or nothing was asked. ended: a flow that was live is forbidden now. kernel: seen by
    the programs. remote_identity: 0 where it is unknown, or the other end is external.
    """

    time_s: float  # monotonic
    port: int
    outward: bool
    reason: DropReason | None
    rule: int
    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    local_identity: int = 0
    remote_identity: int = 0
    ended: bool = False
    picked_up: bool = False
    kernel: bool = False
