#!/usr/bin/env bash
# On one node: SIGTERM to this job's ranks, which save and end after their step (--exit-signal-handler). slurm.sbatch runs it.
#
# To the ranks alone: torchrun and deepspeed, told to end, kill their ranks 30 seconds later, in the middle of a save.
set -euo pipefail

is_rank() { # a process of this job with RANK in its environment; also its children
    local words
    words=$(tr '\0' '\n' 2>/dev/null <"/proc/$1/environ") || return 1
    grep -qx "SLURM_JOB_ID=$SLURM_JOB_ID" <<<"$words" && grep -q '^RANK=' <<<"$words"
}

told=0
for directory in /proc/[0-9]*; do
    pid=${directory#/proc/}
    is_rank "$pid" || continue
    parent=$(sed -n 's/^PPid:\t//p' "$directory/status" 2>/dev/null) || continue
    ! is_rank "$parent" || continue # a loader's worker
    kill -TERM "$pid" 2>/dev/null && told=$((told + 1))
done
echo "signal_ranks.sh: $told ranks on $(hostname)"
