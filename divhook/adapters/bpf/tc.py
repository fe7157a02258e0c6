"""tc filters by rtnetlink, for kernels without tcx links (before 6.6). Layouts: linux/rtnetlink.h, linux/pkt_cls.h.

A filter has a fixed priority *and* handle, so that a new program replaces the old one in place; without a handle
filters pile up. The qdisc that carries it is clsact; where an ingress qdisc is there already (libvirt's `<bandwidth>`),
the kernel refuses clsact, and the filter goes into that one. Nothing here ever deletes a qdisc.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator

from divhook.adapters.bpf.errors import BpfError, interface_text, os_error

RTM_NEWQDISC, RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 36, 44, 45, 46
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
NLM_F_DUMP = 0x300

TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS = 6, 7, 8
TCA_BPF_FLAG_ACT_DIRECT = 1

CLSACT_HANDLE, CLSACT_PARENT, INGRESS_PARENT = 0xFFFF0000, 0xFFFFFFF1, 0xFFFFFFF2

PRIORITY = 1
HANDLE = 0xD1
NAME_PREFIX = "divhook:"

_HEADER = struct.Struct("=IHHII")
_TCMSG = struct.Struct("=BxxxiIII")
_ETH_P_ALL_BE = socket.htons(0x0003)
_GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)
"""What the kernel says to a deletion on an interface, qdisc or filter that is no more."""


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _attributes(raw: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(raw):
        length, kind = struct.unpack_from("=HH", raw, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = raw[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _request(message: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """Send one request; yields (type, body) of each answer. Raises OSError with the kernel's code."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as rtnetlink:
        rtnetlink.bind((0, 0))
        rtnetlink.send(_HEADER.pack(_HEADER.size + len(body), message, flags | NLM_F_REQUEST, 1, 0) + body)
        while True:
            data = rtnetlink.recv(65536)
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                answer = data[at + _HEADER.size : at + length]
                at += (length + 3) & ~3
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", answer)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield kind, answer


def _tcmsg(ifindex: int, handle: int, parent: int, info: int) -> bytes:
    return _TCMSG.pack(socket.AF_UNSPEC, ifindex, handle, parent, info)


def _ensure_qdisc(ifindex: int) -> None:
    body = _tcmsg(ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0) + _attribute(TCA_KIND, b"clsact\0")
    try:
        list(_request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, body))
    except OSError as error:
        if error.errno != errno.EEXIST:  # clsact, or ingress: both carry filters
            raise os_error(f"cannot add the clsact qdisc to {interface_text(ifindex)}", error.errno or 0) from None


def attach(program: str, program_fd: int, ifindex: int) -> None:
    """Put a program at the ingress of an interface, or replace ours in place. Raises BpfError."""
    _ensure_qdisc(ifindex)
    options = (
        _attribute(TCA_BPF_FD, struct.pack("=I", program_fd))
        + _attribute(TCA_BPF_NAME, (NAME_PREFIX + program).encode() + b"\0")
        + _attribute(TCA_BPF_FLAGS, struct.pack("=I", TCA_BPF_FLAG_ACT_DIRECT))
    )
    body = (
        _tcmsg(ifindex, HANDLE, INGRESS_PARENT, PRIORITY << 16 | _ETH_P_ALL_BE)
        + _attribute(TCA_KIND, b"bpf\0")
        + _attribute(TCA_OPTIONS, options)
    )
    try:
        list(_request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_ACK, body))
    except OSError as error:
        what = f"cannot add a tc filter to {interface_text(ifindex)}"
        if error.errno == errno.EINVAL:
            interface = interface_text(ifindex).rpartition(" ")[2]
            raise BpfError(
                f"{what}: something else holds priority {PRIORITY} there "
                f"(`tc filter show dev {interface} ingress`): give it a higher number",
                errno.EINVAL,
            ) from None
        raise os_error(what, error.errno or 0) from None


def detach(ifindex: int) -> None:
    """Remove our filter. Not an error where it, or the interface, is gone. Raises BpfError."""
    body = _tcmsg(ifindex, HANDLE, INGRESS_PARENT, PRIORITY << 16 | _ETH_P_ALL_BE) + _attribute(TCA_KIND, b"bpf\0")
    try:
        list(_request(RTM_DELTFILTER, NLM_F_ACK, body))
    except OSError as error:
        if error.errno not in _GONE:
            raise os_error(f"cannot remove the tc filter of {interface_text(ifindex)}", error.errno or 0) from None


def attached() -> dict[int, str]:
    """Every interface of this network namespace that carries a filter of ours, and the program's name."""
    found: dict[int, str] = {}
    for ifindex, _ in socket.if_nameindex():
        try:
            answers = list(_request(RTM_GETTFILTER, NLM_F_DUMP, _tcmsg(ifindex, 0, INGRESS_PARENT, 0)))
        except OSError as error:
            if error.errno in _GONE:
                continue
            raise os_error(f"cannot list the tc filters of {interface_text(ifindex)}", error.errno or 0) from None
        for _, answer in answers:
            outer = _attributes(answer[_TCMSG.size :])
            if outer.get(TCA_KIND) != b"bpf\0":
                continue  # another kind's options are numbered otherwise
            name = _attributes(outer.get(TCA_OPTIONS, b"")).get(TCA_BPF_NAME, b"").rstrip(b"\0")
            if name.startswith(NAME_PREFIX.encode()):
                found[ifindex] = name.decode().removeprefix(NAME_PREFIX)
    return found
