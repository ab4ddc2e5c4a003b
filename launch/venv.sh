# Sourced by launch/demo.sh and tests/run.sh: makes or reuses a virtual environment and sets $python.
#
#   ADO_VENV=DIR    the environment to make or reuse (default: .venv in the clone)
#   PYTHON=PROGRAM  the Python to make it with (default: the first of python3, python3.13 … python3.10 that is ≥ 3.10)

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or newer found; install one, or name it: PYTHON=/path/to/python3.11 bash $0"
}

# torch that is there already and that this package was tried with
has_torch() {
    "$1" - <<'EOF' 2>/dev/null
import sys
import torch
sys.exit(not (2, 11) <= tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]) < (2, 14))
EOF
}

make_venv() {
    local base options=()
    base=$(find_python)
    if has_torch "$base"; then
        options=(--system-site-packages)
        say "making $venv, with the torch that $base has"
    else
        say "making $venv with $base"
    fi
    "$base" -m venv "${options[@]}" "$venv" ||
        fail "cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${ADO_VENV:-$root/.venv}
python=$venv/bin/python
[ -x "$python" ] || make_venv

# Done before for this clone and this setup.py? Then nothing is installed and nothing is asked of an index.
stamp=$venv/.ado-megatron-installed
wanted=$({ echo "$root"; cat "$root/setup.py"; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    if has_torch "$python"; then
        say "keeping torch $("$python" -c 'import torch; print(torch.__version__)')"
    else
        say "installing torch 2.13.0"
        "$python" -m pip install --quiet torch==2.13.0
    fi
    say "installing ado-megatron and what it needs into $venv"
    "$python" -m pip install --quiet -e "${root}[report,test]"
    echo "$wanted" >"$stamp"
fi
