# What every node of a job needs in its environment. Source it at the top of a launch script, on every node alike.

# Python finds ado_megatron in a clone. Where pip installed it (ADO_HOME is what `ado-megatron doctor` says), it does so
# by itself.
if [ -d "${ADO_HOME:?set ADO_HOME to the directory of this repository}/ado_megatron" ]; then
    PYTHONPATH=$ADO_HOME${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=${PYTHONPATH:-}

# The interface between nodes, for NCCL and for gloo alike; the same name on every node (see `ip addr`).
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-eth0}
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$NCCL_SOCKET_IFNAME}

# Megatron-LM wants this for overlapping communication; one thread a process leaves the cores to the loader's workers.
export CUDA_DEVICE_MAX_CONNECTIONS=1
export OMP_NUM_THREADS=1
