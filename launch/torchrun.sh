#!/usr/bin/env bash
# Megatron-LM on one or several nodes: run this on every node.
#
#   CHECKOUT=… RUN=… ADO_HOME=… MASTER_ADDR=node0 NODES=2 NODE_RANK=0 launch/torchrun.sh
#
# Megatron-Bridge: name your script in SCRIPT, and in JOB a file that sets DATA, MODEL and RESUME to its own arguments and
# ADO to ours.
#
# The plain line `torchrun … pretrain_gpt.py ARGS` becomes `torchrun … -m ado_megatron.run pretrain_gpt.py ARGS`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"
. "${JOB:-$here/job.sh}"
exec torchrun --nnodes "${NODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "${GPUS:-8}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" \
    -m ado_megatron.run "${SCRIPT:-$CHECKOUT/pretrain_gpt.py}" "${DATA[@]}" "${MODEL[@]}" "${RESUME[@]}" "${ADO[@]}"
