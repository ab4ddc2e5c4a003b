#!/usr/bin/env bash
# The measurements that need a GPU, on one card, within eight minutes; what is measured and what must hold: benchmarks/gpu.py.
#
#   bash benchmarks/gpu.sh [OUT]                  with the Python on PATH (or PYTHON=…); OUT: benchmarks/gpu.json
#   bash benchmarks/gpu.sh --collect DIR          where there is a network: the wheels to carry along, ours among them
#   WHEELS=DIR bash benchmarks/gpu.sh [OUT]       where there is none: an environment of these wheels, thrown away after
#   REHEARSE=1 bash benchmarks/gpu.sh [OUT]       the same with small sizes on a CPU
#
# A torch that the machine has is kept; without one, the wheels must hold it (it is most of their size).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
fail() { printf 'gpu.sh: %s\n' "$*" >&2; exit 2; }

if [ "${1:-}" = --collect ]; then
    dir=${2:?name a directory for the wheels}
    mkdir -p "$dir"
    "$python" -m pip wheel --quiet --no-deps -w "$dir" "$here/.."
    ours=("$dir"/ado_megatron-*.whl)
    # NVIDIA's libraries and torch come with the machine unless TORCH=1 asks for them
    "$python" -m pip wheel --quiet -w "$dir" "${ours[0]}"
    [ -n "${TORCH:-}" ] || rm -f "$dir"/torch-*.whl "$dir"/nvidia_*.whl "$dir"/triton-*.whl
    echo "gpu.sh: $(find "$dir" -name '*.whl' | wc -l) wheels in $dir"
    exit
fi

out=${1:-$here/gpu.json}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -n "${WHEELS:-}" ]; then
    "$python" -m venv --system-site-packages "$scratch/venv" || fail "$python cannot make a virtual environment"
    python=$scratch/venv/bin/python
    wheels=("$WHEELS"/*.whl)
    [ -e "${wheels[0]}" ] || fail "there are no wheels in $WHEELS; bash benchmarks/gpu.sh --collect DIR collects them"
    "$python" -m pip install --quiet --no-index --no-deps "${wheels[@]}"
else
    export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
seconds=${SECONDS_AT_MOST:-480}
timeout "$seconds" "$python" "$here/gpu.py" ${REHEARSE:+--rehearse} --out "$out" && code=0 || code=$?
[ "$code" != 124 ] || fail "stopped after $seconds seconds"
[ "$code" != 0 ] || echo "gpu.sh: all as it must be; the result is in $out"
exit "$code"
