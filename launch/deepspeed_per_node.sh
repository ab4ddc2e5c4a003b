#!/usr/bin/env bash
# Megatron-DeepSpeed on several nodes, one launcher a node and no ssh: run this on every node, by whatever starts your jobs.
#
#   CHECKOUT=… RUN=… ADO_HOME=… MASTER_ADDR=node0 NODE_RANK=0 launch/deepspeed_per_node.sh [hostfile]
#
# NODE_RANK is the line of this node in the hostfile, from 0. MASTER_ADDR is an address of the first node that all reach.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"
. "${JOB:-$here/job.sh}"
exec deepspeed --hostfile "${1:-$here/hostfile}" --no_ssh --node_rank="${NODE_RANK:?}" --master_addr="${MASTER_ADDR:?}" \
    --master_port="${MASTER_PORT:-29500}" --module ado_megatron.run "$CHECKOUT/pretrain_gpt.py" \
    "${DATA[@]}" "${MODEL[@]}" "${RESUME[@]}" "${DEEPSPEED[@]}" "${ADO[@]}"
