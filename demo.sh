#!/bin/bash
# Two libvirt hosts and their guests on this machine, and what divhook does for them, step by step.
# Needs Debian 12 and root; installs what is missing; removes what it started. Options go to the demo: ./demo.sh --help
set -euo pipefail
cd "$(dirname "$0")"
scripts/bootstrap
exec make -s demo DEMO="$*"
