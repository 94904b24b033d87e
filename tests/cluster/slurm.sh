#!/bin/sh
# A SLURM cluster of one machine, for tests: Debian's munge, slurmctld and slurmd, run by root without systemd.
#   tests/cluster/slurm.sh start DIR    installs what is missing (apt-get); keys, logs and state are in DIR
#   SLURM_CONF=DIR/slurm.conf sinfo
#   tests/cluster/slurm.sh stop DIR     cancels all jobs and ends the daemons
set -eu
action=$1
dir=$2
host=$(hostname -s)
export SLURM_CONF="$dir/slurm.conf"

install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends slurm-wlm munge
}

# Four CPUs, however many there are. A job in partition `high` preempts one in `low`, which has two minutes to
# save and is queued again. The lifetime of credentials is also how long SLURM makes such a job wait; 120 s is usual.
configure() {
    mkdir -p "$dir/munge" "$dir/state" "$dir/spool"
    head -c 1024 /dev/urandom > "$dir/munge/key"
    chmod 600 "$dir/munge/key"
    cat > "$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(localhost)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=localhost CPUs=4
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
END
}

start() {
    for command in munged slurmctld slurmd srun; do
        command -v "$command" > /dev/null || install
    done
    configure
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge.pid" \
        --log-file="$dir/munge.log" --seed-file="$dir/munge/seed"
    slurmctld -c
    slurmd -c
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --partition=low --format=%T)" != idle ] || exit 0
        sleep 0.5
    done
    echo "no node became idle" >&2
    tail -n 5 "$dir"/*.log >&2
    exit 1
}

stop() {
    scancel --user=root 2> /dev/null || true
    sleep 1
    for daemon in slurmd slurmctld munge; do
        pid=$(cat "$dir/$daemon.pid" 2> /dev/null) || continue
        kill "$pid"
        while kill -0 "$pid" 2> /dev/null; do sleep 0.2; done
    done
}

"$action"
