#!/usr/bin/env bash
# A cluster on one Debian machine, as root: two nodes and a controller, with real Slurm, munge, sshd and pdsh.
#
#   bash tests/cluster/cluster.sh install              the Debian packages (no daemon of the system is started)
#   bash tests/cluster/cluster.sh start DIR            everything it writes is in DIR; prints how to go on
#   bash tests/cluster/cluster.sh run DIR NODE CMD …   a command on ctl, node1 or node2: run DIR ctl sinfo
#   bash tests/cluster/cluster.sh kill DIR NODE        node1 or node2 dies, with every process on it
#   bash tests/cluster/cluster.sh revive DIR NODE      … and comes back
#   bash tests/cluster/cluster.sh stop DIR             ends exactly what `start` and `revive` started, by process id
#
# A node is a network, a process and a host name namespace of its own; files are shared, as on a cluster. The bridge that
# joins them is in the controller's namespace, so the machine's own network is not touched. Nodes have 8 "GPUs" each,
# which are copies of /dev/null. There is no systemd and no cgroup in it (proctrack/linuxproc, task/none).
set -euo pipefail

fail() { printf 'cluster.sh: %s\n' "$*" >&2; exit 2; }
usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
address() { case $1 in ctl) echo 10.88.0.100 ;; node1) echo 10.88.0.1 ;; node2) echo 10.88.0.2 ;; *) fail "there is no node $1" ;; esac; }
space() { echo "ado$(cksum <<<"$D" | cut -d' ' -f1)_$1"; } # the name of its network namespace, the same in every call

install() {
    apt-get update -qq
    # the package scripts would start daemons that read /etc; ours read $D
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.ado && chmod +x /usr/sbin/policy-rc.d.ado
    local before=
    [ -e /usr/sbin/policy-rc.d ] && before=kept || mv /usr/sbin/policy-rc.d.ado /usr/sbin/policy-rc.d
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        slurmctld slurmd slurm-client munge pdsh openssh-server openssh-client iproute2 util-linux || fail "apt-get failed"
    if [ -n "$before" ]; then rm -f /usr/sbin/policy-rc.d.ado; else rm -f /usr/sbin/policy-rc.d; fi
}

check() {
    [ "$(id -u)" = 0 ] || fail "needs root, for namespaces and device files"
    local program
    for program in slurmctld slurmd sbatch munged sshd pdsh ip unshare nsenter; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null ||
            fail "$program is missing; install it with: bash tests/cluster/cluster.sh install"
    done
    PATH=$PATH:/usr/sbin:/sbin
}

network() {
    local node
    for node in ctl node1 node2; do
        ip netns add "$(space $node)"
        ip -n "$(space $node)" link set lo up
    done
    ip -n "$(space ctl)" link add br0 type bridge
    ip -n "$(space ctl)" link set br0 up
    ip -n "$(space ctl)" addr add "$(address ctl)/24" dev br0
    for node in node1 node2; do # the same interface name on both, so that one GLOO_SOCKET_IFNAME fits
        ip -n "$(space $node)" link add eth0 type veth peer name "$node" netns "$(space ctl)"
        ip -n "$(space ctl)" link set "$node" master br0
        ip -n "$(space ctl)" link set "$node" up
        ip -n "$(space $node)" addr add "$(address $node)/24" dev eth0
        ip -n "$(space $node)" link set eth0 up
    done
}

configure() {
    local n
    mkdir -p "$D"/{run,log,state,dev,bin,spool-node1,spool-node2,ssh} /run/sshd
    chmod 755 "$D"
    printf '127.0.0.1 localhost\n' >"$D/hosts"
    for n in ctl node1 node2; do printf '%s %s\n' "$(address $n)" $n >>"$D/hosts"; done
    for n in 0 1 2 3 4 5 6 7; do [ -e "$D/dev/gpu$n" ] || mknod "$D/dev/gpu$n" c 1 3; done
    (umask 077 && head -c 1024 /dev/urandom >"$D/munge.key")
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$D/cgroup.conf" # `ip netns exec` hides /sys/fs/cgroup
    printf 'NodeName=node[1-2] Name=gpu File=%s/dev/gpu[0-7]\n' "$D" >"$D/gres.conf"
    cat >"$D/slurm.conf" <<END
ClusterName=ado
SlurmctldHost=ctl($(address ctl))
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits until its credential has expired: 120 s unless told otherwise
AuthInfo=socket=$D/run/munge.socket,cred_expire=5
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool-%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,bf_interval=5
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdTimeout=${SLURMD_TIMEOUT:-30}
SlurmctldTimeout=15
KillWait=10
MinJobAge=3600
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node1 NodeAddr=$(address node1) CPUs=64 RealMemory=8000 Gres=gpu:8 State=UNKNOWN
NodeName=node2 NodeAddr=$(address node2) CPUs=64 RealMemory=8000 Gres=gpu:8 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
END
    keys
}

keys() {
    local n
    for n in id host; do [ -e "$D/ssh/$n" ] || ssh-keygen -q -t ed25519 -N '' -f "$D/ssh/$n"; done
    cp "$D/ssh/id.pub" "$D/ssh/authorized_keys"
    for n in node1 node2; do
        printf '%s %s\n' "$n,$(address $n)" "$(cut -d' ' -f1,2 "$D/ssh/host.pub")" >>"$D/ssh/known_hosts"
        cat >"$D/ssh/$n.conf" <<END
Port 22
ListenAddress $(address $n)
HostKey $D/ssh/host
PidFile none
AuthorizedKeysFile $D/ssh/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
END
    done
    # deepspeed and pdsh call a bare `ssh`
    printf 'IdentityFile %s\nIdentitiesOnly yes\nUserKnownHostsFile %s\nLogLevel ERROR\n' "$D/ssh/id" "$D/ssh/known_hosts" \
        >"$D/ssh/config"
    printf '#!/bin/sh\nexec /usr/bin/ssh -F %s/ssh/config "$@"\n' "$D" >"$D/bin/ssh"
    chmod +x "$D/bin/ssh"
}

# Everything on a node is a child of this process, which the kernel kills with it. What it runs must stay in the foreground.
begin_node() {
    ip netns exec "$(space "$1")" unshare -u -p -f --mount-proc --kill-child bash -c '
        mount --bind "$1/hosts" /etc/hosts
        hostname "$2"
        /usr/sbin/sshd -D -f "$1/ssh/$2.conf" -E "$1/log/sshd-$2.log" &
        slurmd -D -N "$2"
    ' _ "$D" "$1" >"$D/log/$1.out" 2>&1 &
    echo $! >"$D/run/$1.outer"
}

start() {
    check
    [ -e "$D/run/ctl.outer" ] && fail "$D has a cluster already; stop it first"
    mkdir -p "$D"
    trap stop EXIT
    configure
    network
    munged --key-file="$D/munge.key" --socket="$D/run/munge.socket" --pid-file="$D/run/munged.pid" \
        --log-file="$D/log/munged.log" --seed-file="$D/run/munge.seed" --num-threads=2
    ip netns exec "$(space ctl)" unshare -u bash -c '
        mount --bind "$1/hosts" /etc/hosts; hostname ctl; exec slurmctld -D
    ' _ "$D" >"$D/log/slurmctld.out" 2>&1 &
    echo $! >"$D/run/ctl.outer"
    begin_node node1
    begin_node node2
    wait_until "both nodes to be idle" eval '[ "$(run_on ctl sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = 2 ]'
    wait_until "both sshd" eval 'run_on node1 "$D/bin/ssh" node2 true && run_on node2 "$D/bin/ssh" node1 true'
    trap - EXIT
    echo "two nodes are up; try: bash $0 run $D ctl sinfo"
}

wait_until() { # what, command …
    local what=$1 deadline=$((SECONDS + 120))
    shift
    until "$@" 2>/dev/null; do
        [ $SECONDS -lt $deadline ] || { tail -n 5 "$D"/log/* >&2; fail "waited two minutes for $what"; }
        sleep 0.3
    done
}

run_on() { # node, command …
    local node=$1 pid=
    shift
    [ -e "$D/run/$node.outer" ] || fail "$node of $D does not run"
    pid=$(cat "$D/run/$node.outer")
    if [ "$node" = ctl ]; then
        nsenter -t "$pid" -n -u -m --wd="$PWD" "$@"
    else
        pid=$(cat "/proc/$pid/task/$pid/children")
        nsenter -t "${pid%% *}" -n -u -m -p --wd="$PWD" "$@"
    fi
}

end() { # file of a process id, signal: only a process that this cluster has started, whatever the id stands for by now
    local pid
    [ -e "$1" ] || return 0
    pid=$(cat "$1")
    if tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qx "SLURM_CONF=$SLURM_CONF"; then
        kill -"$2" "$pid" 2>/dev/null || true
        for _ in {1..50}; do # a process that has ended has no command line, also when nobody has waited for it
            [ -n "$(tr -d '\0' 2>/dev/null <"/proc/$pid/cmdline")" ] || break
            sleep 0.1
        done
    fi
    rm -f "$1"
}

kill_node() { end "$D/run/$1.outer" KILL; }

stop() {
    local node
    kill_node node1
    kill_node node2
    end "$D/run/ctl.outer" TERM
    end "$D/run/munged.pid" TERM
    for node in node1 node2 ctl; do ip netns del "$(space $node)" 2>/dev/null || true; done
}

command=${1:-}
[ "$command" = install ] || [ $# -ge 2 ] || usage
[ "$command" = install ] || { D=$(realpath -m "$2"); export SLURM_CONF=$D/slurm.conf PATH=$PATH:/usr/sbin:/sbin; }
case $command in
    install) install ;;
    start) start ;;
    run) run_on "${@:3}" ;;
    kill) address "$3" >/dev/null && kill_node "$3" ;;
    revive) address "$3" >/dev/null && kill_node "$3" && begin_node "$3" ;;
    stop) stop ;;
    *) usage ;;
esac
