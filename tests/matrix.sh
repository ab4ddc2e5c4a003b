#!/usr/bin/env bash
# The tests on every Python that is here, each in an environment of its own, and a table of what ran.
#
#   bash tests/matrix.sh [PYTHON ...]     programs; default: python3.10 to python3.13, in PATH or in ~/.pyenv/versions
#
#   ADO_MATRIX=DIR    where environments and logs are kept (default: matrix/ in the clone)
#   ADO_DEMO=1        also run launch/demo.sh in each
#
# Each environment gets what `bash tests/run.sh` installs there: the newest torch and megatron-core that setup.py allows
# on that Python. From Python 3.12 on that is torch with CUDA: 5 GB an environment.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
kept=${ADO_MATRIX:-$root/matrix}
mkdir -p "$kept"
shopt -s nullglob

find_pythons() {
    local version here
    for version in 3.10 3.11 3.12 3.13; do
        for here in "$(command -v "python$version" || true)" "$HOME"/.pyenv/versions/"$version".*/bin/python"$version"; do
            if [ -n "$here" ] && "$here" -c '' 2>/dev/null; then
                echo "$here"
                break
            fi
        done
    done
}

[ $# -gt 0 ] || { mapfile -t found < <(find_pythons); set -- "${found[@]}"; }
[ $# -gt 0 ] || { echo "error: no Python 3.10 to 3.13 was found; name them: bash tests/matrix.sh /path/to/python3.12" >&2; exit 2; }

versions() {
    "$1" - <<'EOF'
import platform
from importlib.metadata import version
print(" | ".join([platform.python_version(), *map(version, ("torch", "megatron-core", "deepspeed", "numpy"))]))
EOF
}

# outcome LOG COMMAND...: the last line of pytest, or the exit code of another command
outcome() {
    local log=$1 code=0 last
    shift
    "$@" >"$log" 2>&1 </dev/null || code=$?
    last=$(grep -aE '^[0-9]+ (passed|failed).* in |^=+ .*(passed|failed).* =+$' "$log" | tail -n 1 | tr -d '=' | sed 's/^ *//; s/ *$//' || true)
    echo "${last:-exit code $code}"
    return "$code"
}

worst=0
header='| Python | torch | megatron-core | deepspeed | numpy | tests/run.sh |'
rule='|---|---|---|---|---|---|'
[ -z "${ADO_DEMO:-}" ] || { header+=' launch/demo.sh |'; rule+='---|'; }
rows=()
for program in "$@"; do
    name=$("$program" -c 'import sys; print("python{}.{}".format(*sys.version_info))' 2>/dev/null) ||
        { echo "error: $program is no Python that runs" >&2; exit 2; }
    export ADO_VENV=$kept/$name PYTHON=$program
    echo "$name: tests, log in $kept/$name-tests.log" >&2
    tests=$(outcome "$kept/$name-tests.log" bash "$root/tests/run.sh") || worst=1
    row="| $(versions "$ADO_VENV/bin/python" || echo "? | ? | ? | ? | ?") | $tests |"
    if [ -n "${ADO_DEMO:-}" ]; then
        echo "$name: demo, log in $kept/$name-demo.log" >&2
        row+=" $(outcome "$kept/$name-demo.log" bash "$root/launch/demo.sh") |" || worst=1
    fi
    rows+=("$row")
done
printf '%s\n' "$header" "$rule" "${rows[@]}"
exit "$worst"
