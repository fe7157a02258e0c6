"""`divhook agent`: start the agent and stay, or tear down everything that it ever made."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from divhook.adapters.bpf import bpffs
from divhook.adapters.bpf.errors import BpfError
from divhook.adapters.bpf.programs import teardown as bpf_teardown
from divhook.adapters.links import LinkError, Links
from divhook.adapters.links.nat import NatNamespace
from divhook.adapters.rules import Rules, RulesError
from divhook.agent import systemd
from divhook.agent.agent import BPFFS, Agent, AgentError, Paths
from divhook.agent.control import RequestError
from divhook.agent.registry import RegistryError
from divhook.agent.status import AgentHolder, handlers
from divhook.config.configuration import Configuration
from divhook.config.load import load
from divhook.config.problems import ConfigError

Unusable = (AgentError, BpfError, ConfigError, LinkError, RegistryError, RequestError, RulesError)
log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> int:
    """Exit status of the command."""
    paths = Paths(
        Path(arguments.config or Paths.config),
        Path(arguments.state_dir or Paths.state),
        Path(arguments.run_dir or Paths.run),
    )
    try:
        configuration = load(paths.config)
        to_journal = "JOURNAL_STREAM" in os.environ and not arguments.foreground
        systemd.set_up_logging(configuration.host.log_level, to_journal)
        if arguments.teardown:
            asyncio.run(teardown(configuration))
            return 0
        asyncio.run(_serve(paths, configuration))
    except Unusable as error:
        print(f"divhook agent: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(paths: Paths, configuration: Configuration) -> None:
    holder = AgentHolder()
    agent = Agent(paths, configuration)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.ended.set)
    loop.add_signal_handler(signal.SIGHUP, agent.reload_soon)
    holder.agent = agent
    try:
        await agent.start(handlers(holder))
        await agent.ended.wait()
    finally:
        await agent.stop()
    if agent.failure:
        raise AgentError(agent.failure)


async def teardown(configuration: Configuration) -> None:
    """Remove programs, maps, rules, routes, links. Guests that run lose their network; libvirt is not touched."""
    host, plan = configuration.host, configuration.plan
    bpf_teardown(bpffs.pin_dir_in(BPFFS))
    await Rules(host.queue, host.bridge).teardown()
    NatNamespace().remove()
    links = Links(host.bridge)
    await links.open()
    try:
        await links.remove_host_link()
        await links.remove_blackhole(plan.supernet)
        await links.teardown(host.bridge)
    finally:
        await links.close()
    print("divhook: removed programs, maps, rules, the namespace of NAT, routes, dvhost and the bridge")
