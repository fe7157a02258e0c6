#!/bin/bash
# All checks and tests, on Debian 12 as root; installs what is missing. Arguments go to scripts/run_tests.py:
#   ./test.sh --require-all      a tier of tests that cannot run here is a failure, as in CI
set -euo pipefail
cd "$(dirname "$0")"
scripts/bootstrap --dev
make -s lint
exec make -s test TESTS="$*"
