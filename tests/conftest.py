"""Tiers: a test's directory says what it needs, and what cannot run says why in one line.

With `--require TIER,…` or `--require-all`, as CI has it, a test that would be skipped fails instead.

`--fastpath on|off` is the mode of every agent that a test of the netns or libvirt tier starts; both must be green, and
scripts/run_tests.py runs both. A test marked `no_agent` starts none, and is run once; so is one marked `one_mode`: the
fast path has no part in what it is about (hooks, addresses, DHCP).
"""

import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from divhook.lab.host import FASTPATH_VARIABLE

TIERS = ("unit", "property", "sim", "bpf", "netns", "libvirt")
TIER_MARKER = {"bpf": "require_bpf", "netns": "require_root", "libvirt": "require_libvirt"}
AGENT_TIERS = ("netns", "libvirt")
"""Tiers whose tests start agents, where they are not marked `no_agent`."""
LIBVIRT_PROGRAMS = ("libvirtd", "virsh", "qemu-system-x86_64", "busybox", "tcpdump", "nft", "dpkg-deb", "apt-get")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require", default="", metavar="TIER,…", help="fail, not skip, what cannot run in these tiers")
    parser.addoption("--require-all", action="store_true", help="the same for all tiers")
    parser.addoption("--fastpath", choices=("on", "off"), default="on", help="mode of the agents that tests start")


def pytest_configure(config: pytest.Config) -> None:
    unknown = required_tiers(config) - set(TIERS)
    if unknown:
        raise pytest.UsageError(f"--require: no such tier: {', '.join(sorted(unknown))}; there are {', '.join(TIERS)}")


def required_tiers(config: pytest.Config) -> set[str]:
    if config.getoption("--require-all"):
        return set(TIERS)
    return {tier for tier in str(config.getoption("--require")).split(",") if tier}


def tier_of(item: pytest.Item) -> str:
    parts = item.path.relative_to(Path(__file__).parent).parts
    return parts[0] if parts[0] in TIERS else ""


@functools.cache
def why_no_root() -> str:
    if os.geteuid() != 0:
        return "needs root"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"cannot make network namespaces: {done.stderr.strip()}" if done.returncode else ""


@functools.cache
def why_no_bpf() -> str:
    if os.geteuid() != 0:
        return "needs root (CAP_BPF)"
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError:
        return "libbpf.so.1 is missing: apt-get install libbpf1"
    return "" if os.path.exists("/sys/kernel/btf/vmlinux") else "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"


@functools.cache
def why_no_libvirt() -> str:
    missing = [program for program in LIBVIRT_PROGRAMS if shutil.which(program, path=PATH) is None]
    return why_no_root() or (f"missing: {', '.join(missing)}; run scripts/bootstrap --dev" if missing else "")


WHY_NOT = {"require_bpf": why_no_bpf, "require_root": why_no_root, "require_libvirt": why_no_libvirt}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if name := TIER_MARKER.get(tier_of(item)):
            item.add_marker(getattr(pytest.mark, name))


def mode_of(item: pytest.Item) -> str:
    """on, off, or empty: it starts no agent."""
    if tier_of(item) not in AGENT_TIERS or item.get_closest_marker("no_agent"):
        return ""
    return str(item.config.getoption("--fastpath"))


@pytest.fixture
def fastpath(request: pytest.FixtureRequest) -> bool:
    """Whether agents have the fast path on: for the tests whose expectation differs."""
    return mode_of(request.node) == "on"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if tier_of(item) in AGENT_TIERS:
        mode = mode_of(item)
        os.environ[FASTPATH_VARIABLE] = mode or "of a test that is marked no_agent"  # with that no lab comes up
        item.user_properties.append(("fastpath", mode))
    for name, why_not in WHY_NOT.items():
        if item.get_closest_marker(name) and (reason := why_not()):
            pytest.skip(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.CallInfo[None], None]:
    """Make a skip a failure where the tier is required."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and not hasattr(report, "wasxfail") and tier_of(item) in required_tiers(item.config):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{tier_of(item)} tests are required here. {reason}"
