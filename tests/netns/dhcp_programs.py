"""Real DHCP clients on a port of the bench: busybox udhcpc, ISC dhclient, dhcpcd, systemd-networkd.

`expected` is what each says it was told, in its own words, for the service of dhcp_bench.
"""

import signal
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from dhcp_bench import Bench, run

SCRIPT = """#!/bin/sh
# called by a client at each change: leaves its variables, configures the address
n=$(date +%s%N)
env > {directory}/.$n && mv {directory}/.$n {directory}/env.$n
if [ -n "$ip" ]; then ip address replace "$ip/$mask" dev c0; ip route replace default via "${{router%% *}}" dev c0; fi
if [ -n "$new_ip_address" ] && [ "{kind}" = dhclient ]; then
  if [ "$reason" = BOUND ] || [ "$reason" = REBOOT ]; then
    arping -q -D -I c0 -c 2 -w 2 "$new_ip_address" || exit 1
  fi
  ip address replace "$new_ip_address/24" dev c0
fi
case "$1$reason" in deconfig|EXPIRE|FAIL|RELEASE|STOP) [ {kind} = dhcpcd ] || ip address flush dev c0;; esac
exit 0
"""


class Client:
    """One client program on a port of the bench."""

    programs: tuple[str, ...]
    expected: ClassVar[dict[str, str]]

    def __init__(self, bench: Bench, port: int, directory: Path) -> None:
        self.bench, self.port = bench, port
        self.directory = directory / f"{type(self).__name__.lower()}{port}"
        self.directory.mkdir()
        self.script = self.directory / "script"
        self.script.write_text(SCRIPT.format(directory=self.directory, kind=type(self).__name__.lower()))
        self.script.chmod(0o755)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> str:
        raise NotImplementedError

    def start(self) -> None:
        """Run the client, with a /run and /var/lib of its own that outlive it."""
        private = self.directory / "private"
        mounts = []
        for place in ("/run", "/var/lib"):
            (private / place.strip("/")).mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {private}{place} {place}")
        shell = f"hostname guest-{self.port} && {' && '.join(mounts)} && exec {self.command()}"
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.bench.namespace(self.port), "unshare", "-u", "sh", "-c", shell],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self.bench.programs.append(self.process)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)

    def release(self) -> None:
        self.stop(signal.SIGTERM)

    def keep_lease(self) -> None:
        """Before the start: what a restart is to find again."""

    def seen(self) -> dict[str, str]:
        """The variables of the script's last call with a lease."""
        for path in sorted(self.directory.glob("env.*"), reverse=True):
            variables = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
            if "ip" in variables or "new_ip_address" in variables:
                return variables
        return {}

    def options(self) -> dict[str, str]:
        """What the client was told, in the client's words."""
        return self.seen()

    def wait_options(self, timeout_s: float = 30) -> dict[str, str]:
        deadline = time.monotonic() + timeout_s
        while not (found := self.options()):
            assert time.monotonic() < deadline, (self.directory / "log").read_text()[-3000:]
            time.sleep(0.1)
        return found


class Udhcpc(Client):
    programs = ("busybox",)
    NOT_ASKED = ("ip", "mask", "lease", "serverid", "siaddr", "boot_file")
    expected: ClassVar[dict[str, str]] = {
        "ip": "{address}",
        "subnet": "255.255.255.0",
        "mask": "24",
        "router": "10.7.9.1",
        "broadcast": "10.7.9.255",
        "dns": "10.7.9.1 9.9.9.10",
        "domain": "eng.apple.com",
        "search": "eng.apple.com marketing.apple.com",
        "mtu": "1400",
        "ntpsrv": "10.7.9.5 10.7.9.6",
        "staticroutes": "10.17.0.0/16 10.7.9.254 0.0.0.0/0 10.7.9.1",
        "hostname": "guest-{port}",
        "lease": "3600",
        "serverid": "10.7.9.1",
        "siaddr": "10.7.9.77",
        "tftp": "10.7.9.77",
        "boot_file": "pxelinux.0",
        "bootfile": "pxelinux.0",
        "wpad": "http://wpad/x",
    }

    def command(self) -> str:
        asked = " ".join(f"-O {name}" for name in self.expected if name not in self.NOT_ASKED)
        return f"busybox udhcpc -f -a -R -i c0 -s {self.script} -T 1 -A 2 {asked}"


class Dhclient(Client):
    programs = ("dhclient", "arping")
    expected: ClassVar[dict[str, str]] = {
        "new_ip_address": "{address}",
        "new_subnet_mask": "255.255.255.0",
        "new_routers": "10.7.9.1",
        "new_broadcast_address": "10.7.9.255",
        "new_domain_name_servers": "10.7.9.1 9.9.9.10",
        "new_domain_name": "eng.apple.com",
        "new_domain_search": "eng.apple.com. marketing.apple.com.",
        "new_interface_mtu": "1400",
        "new_ntp_servers": "10.7.9.5 10.7.9.6",
        "new_rfc3442_classless_static_routes": "16 10 17 10 7 9 254 0 10 7 9 1",
        "new_host_name": "guest-{port}",
        "new_dhcp_lease_time": "3600",
        "new_dhcp_renewal_time": "1000",
        "new_dhcp_rebinding_time": "3000",
        "new_dhcp_server_identifier": "10.7.9.1",
        "new_next_server": "10.7.9.77",
        "new_tftp_server_name": "10.7.9.77",
        "new_bootfile_name": "pxelinux.0",
        "new_filename": "pxelinux.0",
    }
    CONFIGURATION = """
option rfc3442-classless-static-routes code 121 = array of unsigned integer 8;
request subnet-mask, broadcast-address, routers, domain-name, domain-name-servers, domain-search, host-name,
  interface-mtu, ntp-servers, rfc3442-classless-static-routes, tftp-server-name, bootfile-name,
  dhcp-renewal-time, dhcp-rebinding-time;
timeout 30; retry 2; initial-interval 1; backoff-cutoff 2; reboot 8;
"""

    def command(self, extra: str = "-d") -> str:
        (self.directory / "conf").write_text(self.CONFIGURATION)
        d = self.directory
        return f"dhclient {extra} -cf {d}/conf -lf {d}/leases -pf {d}/pid -sf {self.script} c0"

    def release(self) -> None:
        command = f"mount --bind {self.directory}/private/run /run && {self.command('-r')}"
        run("ip", "netns", "exec", self.bench.namespace(self.port), "sh", "-c", command)
        self.stop()


class Dhcpcd(Client):
    programs = ("dhcpcd",)
    expected: ClassVar[dict[str, str]] = {
        "new_ip_address": "{address}",
        "new_subnet_mask": "255.255.255.0",
        "new_routers": "10.7.9.1",
        "new_broadcast_address": "10.7.9.255",
        "new_domain_name_servers": "10.7.9.1 9.9.9.10",
        "new_domain_name": "eng.apple.com",
        "new_domain_search": "eng.apple.com marketing.apple.com",
        "new_interface_mtu": "1400",
        "new_ntp_servers": "10.7.9.5 10.7.9.6",
        "new_classless_static_routes": "10.17.0.0/16 10.7.9.254 0.0.0.0/0 10.7.9.1",
        "new_host_name": "guest-{port}",
        "new_dhcp_lease_time": "3600",
        "new_dhcp_renewal_time": "1000",
        "new_dhcp_rebinding_time": "3000",
        "new_dhcp_server_identifier": "10.7.9.1",
        "new_tftp_server_name": "10.7.9.77",
        "new_bootfile_name": "pxelinux.0",
        "new_filename": "pxelinux.0",
    }
    CONFIGURATION = """
duid
option subnet_mask, broadcast_address, routers, domain_name, domain_name_servers, domain_search, host_name
option interface_mtu, ntp_servers, classless_static_routes, tftp_server_name, bootfile_name
option dhcp_renewal_time, dhcp_rebinding_time
ipv4only
noipv4ll
reboot 8
"""

    def command(self) -> str:
        (self.directory / "conf").write_text(self.CONFIGURATION)
        (self.directory / "private/var/lib/dhcpcd").mkdir(parents=True, exist_ok=True)
        return f"dhcpcd -B -d -f {self.directory}/conf -c {self.script} c0"

    def release(self) -> None:
        self.stop(signal.SIGALRM)  # release and exit


class Networkd(Client):
    programs = ("networkctl",)
    BINARY = "/lib/systemd/systemd-networkd"
    expected: ClassVar[dict[str, str]] = {
        "ADDRESS": "{address}",
        "NETMASK": "255.255.255.0",
        "ROUTER": "10.7.9.1",
        "BROADCAST": "10.7.9.255",
        "SERVER_ADDRESS": "10.7.9.1",
        "NEXT_SERVER": "10.7.9.77",
        "MTU": "1400",
        "T1": "1000",
        "T2": "3000",
        "LIFETIME": "3600",
        "DNS": "10.7.9.1 9.9.9.10",
        "NTP": "10.7.9.5 10.7.9.6",
        "DOMAINNAME": "eng.apple.com",
        "DOMAIN_SEARCH_LIST": "eng.apple.com marketing.apple.com",
        "HOSTNAME": "guest-{port}",
        "CLASSLESS_ROUTES": "10.17.0.0/16,10.7.9.254 0.0.0.0/0,10.7.9.1",
    }
    CONFIGURATION = """
[Match]
Name=c0
[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
KeepConfiguration={keep}
[DHCPv4]
SendDecline=yes
UseMTU=yes
UseDomains=yes
RequestOptions=26 28
"""
    keep = "no"
    more = ""

    def keep_lease(self) -> None:
        self.keep = "dhcp"  # then it asks for the address that it finds on the link

    def command(self) -> str:
        network = self.directory / "private/run/systemd/network"
        network.mkdir(parents=True, exist_ok=True)
        (network / "10-c0.network").write_text(self.CONFIGURATION.format(keep=self.keep) + self.more)
        # a read-only /sys tells networkd that there is no udev to wait for
        return f"sh -c 'mount -o remount,ro /sys; SYSTEMD_LOG_LEVEL=debug exec {self.BINARY}'"

    def options(self) -> dict[str, str]:
        for path in (self.directory / "private/run/systemd/netif/leases").glob("[0-9]*"):
            lines = [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
            return dict(line.split("=", 1) for line in lines)
        return {}
