"""A capture of what passes over the lab's switch, by tcpdump into a pcap file."""

import signal
import time
from pathlib import Path

from divhook.lab import processes
from divhook.lab.errors import LabError
from divhook.lab.namespaces import Namespaces

SNAP_LENGTH = 192
"""Bytes kept of each frame: every header, a whole discovery frame, and little payload."""
BUFFER_KIB = 65536
START_TIMEOUT_S = 15.0
SETTLE_S = 0.5


class Capture:
    """A running capture. stop() returns the file; `dropped` then says how many frames tcpdump missed."""

    def __init__(self, switch: Namespaces, interface: str, path: Path, snap_length: int = SNAP_LENGTH) -> None:
        self.path = path
        self.dropped = 0
        self._log = path.with_suffix(".log")
        self._pid_file = path.with_suffix(".pid")
        self._log.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        command = [
            "tcpdump",
            "-i",
            interface,
            "-n",
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-s",
            str(snap_length),
            "-B",
            str(BUFFER_KIB),
        ]
        processes.spawn(switch.enter(*command, "-w", str(path)), self._pid_file, self._log)
        if not processes.wait_until(lambda: "listening on" in self._log.read_text(), START_TIMEOUT_S):
            raise LabError(f"tcpdump did not start: {self._log.read_text().strip()}")

    def stop(self) -> Path:
        """End the capture. Returns the pcap file."""
        time.sleep(SETTLE_S)  # what is in the kernel's ring is still to be written
        processes.stop(self._pid_file, signal.SIGINT)
        for line in self._log.read_text().splitlines():
            if "dropped by kernel" in line:
                self.dropped = int(line.split()[0])
        return self.path
