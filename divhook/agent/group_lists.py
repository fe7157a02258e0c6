"""Tells the kernel who gets a copy of what is sent to all of a subnet, or to a group: map `group_lists`.

One list for each subnet with an active port here, of all of them, and one for each group that has members. Beside what
core/group.py would do, a list says where it does not hold: the agent's are subnets with a port that has a policy, or
with more ports than a list has room for, and groups that are routed. Without a fast path there are no lists.

A restarted agent reads memberships back from the lists, asks its ports at once, and strikes who does not answer.
"""

from divhook.abi.entries import GroupList
from divhook.abi.layout import MAX_GROUP_LISTS, MAX_GROUP_MEMBERS
from divhook.adapters.bpf.programs import Programs
from divhook.core.addressing import LIMITED_BROADCAST, Address, SubnetId
from divhook.core.endpoint import Endpoint, PortState
from divhook.core.pipeline import Pipeline

Key = tuple[Address, Address]
"""Network address of a subnet, and the group; LIMITED_BROADCAST: every port."""


class GroupLists:
    """Keeps map `group_lists` as the core would decide. ifindex_of: taps by port id."""

    def __init__(self, programs: Programs, pipeline: Pipeline, ifindex_of: dict[int, int], enabled: bool) -> None:
        self._programs = programs
        self._pipeline = pipeline
        self._ifindex_of = ifindex_of
        self._enabled = enabled
        self._told: dict[Key, GroupList] = {}
        self._seen = -1

    def adopt(self, now: float) -> None:
        """Take memberships over from the agent before; call once its ports are there."""
        members = self._pipeline.groups.members
        known = self._programs.group_lists()
        for (_, group), entry in known.items():
            for _, port in entry.members if group != LIMITED_BROADCAST else ():
                members.restore(port, group, now)
        self._told = known
        self._seen = -1

    def sync(self) -> None:
        """Bring the kernel up to date with ports, members and topology. Raises BpfError; the next call tries again."""
        members = self._pipeline.groups.members
        generation = self._pipeline.ports.generation
        if generation == self._seen and not members.changed:
            return
        wanted = self.wanted() if self._enabled else {}
        for key, entry in wanted.items():
            if self._told.get(key) != entry:
                self._programs.set_group_list(*key, entry)
                self._told[key] = entry
        for key in self._told.keys() - wanted.keys():
            self._programs.remove_group_list(*key)
            del self._told[key]
        members.changed.clear()
        self._seen = generation

    def again(self) -> None:
        """The topology has changed, or a policy."""
        self._seen = -1

    def keep_true(self) -> None:
        """Bring the kernel back to what it was told. Raises BpfError."""
        known = self._programs.group_lists()
        for key in known.keys() | self._told.keys():
            entry = self._told.get(key)
            if entry is None:
                self._programs.remove_group_list(*key)
            elif known.get(key) != entry:
                self._programs.set_group_list(*key, entry)

    def wanted(self) -> dict[Key, GroupList]:
        """The lists as they must be; groups' lists come before those that say that there are no more."""
        pipeline = self._pipeline
        by_subnet: dict[SubnetId, list[Endpoint]] = {}
        for endpoint in pipeline.ports.all():
            if endpoint.state is PortState.ACTIVE:
                by_subnet.setdefault(endpoint.subnet, []).append(endpoint)
        groups = pipeline.groups.members.groups()
        complete = len(groups) + len(by_subnet) <= MAX_GROUP_LISTS
        found: dict[Key, GroupList] = {}
        for (subnet, group), ports in groups.items() if complete else ():
            facts = pipeline.topology.get(subnet)
            if facts is not None and subnet in by_subnet and len(ports) <= MAX_GROUP_MEMBERS:
                found[self._network(subnet), group] = GroupList(facts.mtu, self._members(sorted(ports)))
        for subnet, endpoints in by_subnet.items():
            facts = pipeline.topology.get(subnet)
            if facts is None:
                continue
            policed = any(pipeline.policies.port(endpoint) is not None for endpoint in endpoints)
            agents = policed or len(endpoints) > MAX_GROUP_MEMBERS
            ports = [] if agents else [endpoint.port for endpoint in endpoints]
            found[self._network(subnet), LIMITED_BROADCAST] = GroupList(
                facts.mtu, self._members(ports), complete=complete, routed=facts.groups_routed, agents=agents
            )
        return found

    def _network(self, subnet: SubnetId) -> Address:
        return self._pipeline.plan.address(subnet, 0)

    def _members(self, ports: list[int]) -> tuple[tuple[int, int], ...]:
        return tuple((self._ifindex_of[port], port) for port in ports if port in self._ifindex_of)
