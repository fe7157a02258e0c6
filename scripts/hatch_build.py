"""Builds the eBPF object into the wheel, so that a host needs no compiler."""

import pathlib
import subprocess
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BpfBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs `make bpf` before files are collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = pathlib.Path(self.root)
        subprocess.run(["make", "-s", "bpf"], cwd=root, check=True)
        build_data["artifacts"].append("divhook/bpf/*.o")
