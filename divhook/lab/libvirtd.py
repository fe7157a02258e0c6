"""Configuration of a lab host's own libvirtd.

What differs from a stock host is what a namespace cannot give: no cgroups, no polkit, no virtlogd, no
security driver. The libvirt network and the hook are installed as on any host.
"""

import uuid
from pathlib import Path

NETWORK_XML = """<network>
  <name>divhook</name>
  <forward mode='bridge'/>
  <bridge name='divbr0'/>
</network>
"""
START_TIMEOUT_S = 60.0


def write_configuration(etc: Path, host: str, address: str) -> None:
    """Write libvirtd.conf, qemu.conf and the autostarted network `divhook` below a host's /etc/libvirt."""
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"urn:divhook:lab:{etc}:{host}")
    (etc / "libvirtd.conf").write_text(
        f"""host_uuid = "{identity}"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"""
    )
    (etc / "qemu.conf").write_text(
        f"""user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
seccomp_sandbox = 0
stdio_handler = "file"
migration_address = "{address}"
"""
    )
    networks = etc / "qemu" / "networks"
    (networks / "autostart").mkdir(parents=True, exist_ok=True)
    (networks / "divhook.xml").write_text(NETWORK_XML)
    link = networks / "autostart" / "divhook.xml"
    if not link.is_symlink():
        link.symlink_to("/etc/libvirt/qemu/networks/divhook.xml")
