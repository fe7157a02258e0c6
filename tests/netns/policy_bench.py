"""Guests that talk, for tests of policies: an echo server in each, connections that stay, and single tries."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from divhook.lab.bare import BareGuest, BareLab

PORTS = (80, 443, 5432)
TRY_S = 0.7
"""A denied try takes so long."""
_SERVER = """
import selectors, socket, sys
poll = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(socket.AF_INET, kind)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("0.0.0.0", port))
        if kind == socket.SOCK_STREAM:
            s.listen(64)
        poll.register(s, selectors.EVENT_READ, "listen" if kind == socket.SOCK_STREAM else "datagram")
print("ready", flush=True)
while True:
    for key, _ in poll.select():
        if key.data == "listen":
            poll.register(key.fileobj.accept()[0], selectors.EVENT_READ, "stream")
        elif key.data == "datagram":
            data, peer = key.fileobj.recvfrom(2048)
            try:
                key.fileobj.sendto(data, peer)
            except OSError:
                pass
        else:
            try:
                data = key.fileobj.recv(65536)
                if data:
                    key.fileobj.sendall(data)
            except OSError:
                data = b""
            if not data:
                poll.unregister(key.fileobj)
                key.fileobj.close()
"""
_CLIENT = """
import json, socket, sys, time
kept = {}
for line in sys.stdin:
    what, address, port, wait = json.loads(line)
    try:
        if what == "udp":
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        elif what == "again":
            s = kept[address, port]
        else:
            s = socket.socket()
        s.settimeout(wait)
        if what != "again":
            s.connect((address, port))
        s.sendall(b"hello")
        ok = s.recv(100) == b"hello"
        if what == "keep":
            kept[address, port] = s
        elif what != "again":
            s.close()
    except OSError:
        ok = False
    print(json.dumps(ok), flush=True)
"""


@dataclass
class Talker:
    """A guest with its server and its client."""

    guest: BareGuest
    server: "subprocess.Popen[str]" = field(init=False)
    client: "subprocess.Popen[str]" = field(init=False)
    address: str = ""

    def __post_init__(self) -> None:
        self.address = self.guest.configure()
        enter = self.guest.namespace.enter
        self.server = subprocess.Popen(
            enter(sys.executable, "-c", _SERVER, *map(str, PORTS)), stdout=subprocess.PIPE, text=True
        )
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "ready\n"
        self.client = subprocess.Popen(
            enter(sys.executable, "-c", _CLIENT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        for process in (self.server, self.client):
            process.kill()
            process.communicate()

    def says(self, what: str, to: "Talker", port: int, wait_s: float = TRY_S) -> bool:
        """what: tcp, udp; keep: tcp that stays open; again: on what was kept."""
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        self.client.stdin.write(json.dumps([what, to.address, port, wait_s]) + "\n")
        self.client.stdin.flush()
        return bool(json.loads(self.client.stdout.readline()))


class PolicyBench:
    """A BareLab whose policies can be exchanged."""

    def __init__(self, lab: BareLab) -> None:
        self.lab = lab
        self.talkers = {name: Talker(guest) for name, guest in lab.bare.items()}

    def __getitem__(self, name: str) -> Talker:
        return self.talkers[name]

    def close(self) -> None:
        for talker in self.talkers.values():
            talker.close()

    def etc(self, host: str) -> Path:
        return self.lab.host(host).root / "etc-divhook"

    def ask(self, host: str, op: str, **arguments: Any) -> Any:
        answer = self.lab.host(host).ask_agent({"op": op, **arguments})
        assert answer["ok"], answer
        return answer["result"]

    def apply(self, policies: Mapping[str, str]) -> None:
        """Exactly these, by cell, on every host."""
        apply_policies(self.lab, policies)


def apply_policies(lab: BareLab, policies: Mapping[str, str]) -> None:
    """Exactly these, by cell, on every host, and in force."""
    for host in lab.hosts.values():
        directory = host.root / "etc-divhook" / "policies"
        directory.mkdir(exist_ok=True)
        for path in directory.glob("*.yaml"):
            if path.stem not in policies:
                path.unlink()
        for cell, text in policies.items():
            (directory / f"{cell}.yaml").write_text(f"cell: {cell}\n{text}")
    for host in lab.hosts.values():
        answer = host.ask_agent({"op": "policy apply"})
        assert answer["ok"], answer
