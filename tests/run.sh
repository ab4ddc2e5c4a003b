#!/usr/bin/env bash
# Set-up and the tests. Arguments go to pytest: bash tests/run.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch/venv.sh"
cd "$root"
say "tests"
export OMP_NUM_THREADS=1
if [ $# -gt 0 ]; then
    exec "$python" -m pytest -q "$@"
fi
exec "$python" -m pytest -q -m "not slow and not host and not gpu and not cluster"
