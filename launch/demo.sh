#!/usr/bin/env bash
# The demo: set-up, real data from this machine, an adaptive and a static run of the same model, a report of both.
#
#   bash launch/demo.sh           runs what has not been run yet
#   bash launch/demo.sh --fresh   forgets the runs of before (not the data)
#
#   ADO_DEMO=DIR     where data and runs go (default: demo/ in the clone)
#   ADO_STEPS=N      training steps of each run (default: 700)
#   ADO_PROCESSES=N  processes (default: 2)
#   ADO_VENV, PYTHON see launch/venv.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

demo=${ADO_DEMO:-$root/demo}
ado() { "$python" -m ado_megatron.cli "$@"; }

case ${1:-} in
    "") ;;
    --fresh) rm -rf "$demo/adaptive" "$demo/static" "$demo/report" ;;
    *) fail "demo.sh takes --fresh or nothing, not $1" ;;
esac
mkdir -p "$demo"

say "1/4 data: eight domains of text that is on this machine -> $demo/data"
ado prepare --demo --out "$demo/data" --reuse

# Remarks of the libraries on what they would use on a GPU; errors are shown whatever this says.
export PYTHONWARNINGS=ignore::UserWarning,ignore::FutureWarning,ignore::DeprecationWarning

train() { # run directory, policy
    ado pretrain --data "$demo/data" --run-dir "$demo/$1" --resume --num-processes "${ADO_PROCESSES:-2}" \
        --steps "${ADO_STEPS:-700}" --layers 2 --hidden 96 --heads 4 --seq-length 64 --micro-batch 16 --global-batch 32 \
        --lr 2e-3 --lr-warmup-steps 30 --eval-interval 175 --eval-samples 48 --save-interval 350 --num-workers 1 \
        --ado-policy "$2" --ado-start-step 150 --ado-ignore-steps 40 --ado-refit-interval 50 --ado-fit-lag 20 \
        --ado-log-interval 5 || case $? in
        2) fail "the demo stops here; bash launch/demo.sh --fresh forgets the runs of before" ;;
        *) fail "the run in $demo/$1 was stopped; the same command continues it, --fresh starts anew" ;;
    esac
}
say "2/4 adaptive run: the mixture follows the losses -> $demo/adaptive"
train adaptive ado
say "3/4 static run: same seed, same model, the mixture stays at the prior -> $demo/static"
train static static

say "4/4 report"
ado report "$demo/adaptive" --compare "$demo/static" --out "$demo/report"
