#!/usr/bin/env bash
# Megatron-DeepSpeed on several nodes, started from one of them; the launcher reaches the others by ssh (pdsh).
#
#   CHECKOUT=… RUN=… ADO_HOME=… launch/deepspeed_hostfile.sh [hostfile]
#
# The plain line `deepspeed … pretrain_gpt.py ARGS` becomes `deepspeed … --module ado_megatron.run pretrain_gpt.py ARGS`.
# The launcher forwards only some variables; what else the nodes need goes into the file that DS_ENV_FILE names.
# On SIGINT or SIGTERM it runs a broad pkill on every node: share no node with another job, or use deepspeed_per_node.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"
. "${JOB:-$here/job.sh}"
env_file=$(mktemp)
printf '%s\n' "PYTHONPATH=$PYTHONPATH" "NCCL_SOCKET_IFNAME=$NCCL_SOCKET_IFNAME" "GLOO_SOCKET_IFNAME=$GLOO_SOCKET_IFNAME" \
    "CUDA_DEVICE_MAX_CONNECTIONS=1" "OMP_NUM_THREADS=1" >"$env_file"
DS_ENV_FILE=$env_file exec deepspeed --hostfile "${1:-$here/hostfile}" --master_port "${MASTER_PORT:-29500}" \
    --module ado_megatron.run "$CHECKOUT/pretrain_gpt.py" "${DATA[@]}" "${MODEL[@]}" "${RESUME[@]}" "${DEEPSPEED[@]}" "${ADO[@]}"
