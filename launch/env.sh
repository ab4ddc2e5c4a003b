# What every node of a job needs in its environment. Source it at the top of a launch script, on every node alike.

# Python finds ado_megatron (nothing to set if it was installed with pip) and the host's own packages.
export PYTHONPATH="${ADO_HOME:?set ADO_HOME to the directory of this repository}${PYTHONPATH:+:$PYTHONPATH}"

# The interface between nodes, for NCCL and for gloo alike; the same name on every node (see `ip addr`).
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-eth0}
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$NCCL_SOCKET_IFNAME}

# Megatron-LM wants this for overlapping communication; one thread a process leaves the cores to the loader's workers.
export CUDA_DEVICE_MAX_CONNECTIONS=1
export OMP_NUM_THREADS=1
