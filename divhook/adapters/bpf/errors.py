"""What goes wrong with eBPF, in words for a person."""

import errno
import os
import socket


class BpfError(Exception):
    """The kernel or libbpf refused. The text says what was tried and what to do; `errno` is the system's code, or 0."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.errno = code


REMEDIES = {
    errno.EPERM: "this needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: run as root, or grant them",
    errno.ENOSYS: "this kernel is built without CONFIG_BPF_SYSCALL",
    errno.E2BIG: "the table is full, or this kernel does not know what was asked of it",
}


def interface_text(ifindex: int) -> str:
    """An interface as a person knows it."""
    try:
        return f"interface {socket.if_indextoname(ifindex)}"
    except OSError:
        return f"interface number {ifindex}"


def os_error(what: str, code: int) -> BpfError:
    """A BpfError for a failed system call."""
    remedy = REMEDIES.get(code)
    return BpfError(f"{what}: {os.strerror(code)}" + (f" ({remedy})" if remedy else ""), code)
