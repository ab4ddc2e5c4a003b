#!/usr/bin/env bash
# Megatron-DeepSpeed on several nodes, started from one of them; the launcher reaches the others by ssh (pdsh).
#
#   CHECKOUT=… RUN=… ADO_HOME=… launch/deepspeed_hostfile.sh [hostfile]
#
# The plain line `deepspeed … pretrain_gpt.py ARGS` becomes `deepspeed … --module ado_megatron.run pretrain_gpt.py ARGS`.
# A node has the environment that its sshd gives, and no more. What else it needs goes into $RUN/deepspeed_env: what
# env.sh sets, then the lines of ~/.deepspeed_env and ./.deepspeed_env (or of the file that DS_ENV_FILE names), which win.
# Arguments pass three parsers on their way (the launcher, pdsh, the node's shell); they are quoted for all three here.
# On SIGINT or SIGTERM the launcher runs a broad pkill on every node: share no node with another job, or use deepspeed_per_node.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"
. "${JOB:-$here/job.sh}"
refuse() { printf 'deepspeed_hostfile.sh: %s\n' "$*" >&2; exit 2; }

hostfile=${1:-$here/hostfile}
[ -r "$hostfile" ] || refuse "there is no hostfile $hostfile; the launcher would run everything on this node"
[[ $PWD =~ ^[[:alnum:]/._+:=@-]+$ ]] ||
    refuse "the launcher changes to $PWD on every node, without quotes; start it in a directory without special characters"

# One argument as it must be handed to the launcher. An argument with a space the launcher itself puts in double quotes, and
# a backslash before each of its own; any other it passes on as it is. pdsh turns %n, %h, %u into something else, %% into %.
quoted() {
    local word=${1//%/%%} single="'" escaped="'\\''"
    case $word in
        *' '*)
            word=${word//\\/\\\\}
            word=${word//\$/\\\$}
            word=${word//\`/\\\`}
            ;;
        '' | =* | *[![:alnum:]/._+:=,@%-]*) word=$single${word//$single/$escaped}$single ;;
    esac
    printf '%s\0' "$word"
}

environment() { # of the nodes, a line each; the launcher puts double quotes around what needs them
    local name file line value
    for name in PYTHONPATH NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME CUDA_DEVICE_MAX_CONNECTIONS OMP_NUM_THREADS; do
        [ -n "${!name:-}" ] || continue
        value=${!name//\\/\\\\}
        value=${value//\"/\\\"}
        value=${value//\$/\\\$}
        value=${value//\`/\\\`}
        printf '%s=%s\n' "$name" "${value//%/%%}"
    done
    for file in ~/"${DS_ENV_FILE:-.deepspeed_env}" "./${DS_ENV_FILE:-.deepspeed_env}"; do
        case ${DS_ENV_FILE:-} in /*) file=$DS_ENV_FILE ;; esac
        [ -f "$file" ] || continue
        while IFS= read -r line || [ -n "$line" ]; do # an empty line would end the launcher with a traceback
            case $line in
                '' | '#'*) ;;
                PYTHONPATH=*) [ -d "$ADO_HOME/ado_megatron" ] && line=PYTHONPATH=$ADO_HOME:${line#*=}; printf '%s\n' "$line" ;;
                *=*) printf '%s\n' "$line" ;;
                *) refuse "$file has the line '$line', which is no NAME=VALUE" ;;
            esac
        done <"$file"
        [ "$file" != "${DS_ENV_FILE:-}" ] || break
    done
}

arguments=()
for word in "$CHECKOUT/pretrain_gpt.py" "${DATA[@]}" "${MODEL[@]}" "${RESUME[@]}" "${DEEPSPEED[@]}" "${ADO[@]}"; do
    IFS= read -r -d '' word < <(quoted "$word")
    arguments+=("$word")
done
mkdir -p "$RUN"
lines=$(environment) || exit # what it refuses it has said
(umask 077 && printf '%s\n' "$lines" >"$RUN/deepspeed_env") # it may hold keys
# --force_multi: by pdsh also where the hostfile has one node, so that the arguments are always read in the same way
DS_ENV_FILE=$RUN/deepspeed_env exec deepspeed --hostfile "$hostfile" --force_multi --master_port "${MASTER_PORT:-29500}" \
    --module ado_megatron.run "${arguments[@]}"
