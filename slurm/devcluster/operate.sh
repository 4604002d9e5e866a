#!/usr/bin/env bash
# What goes wrong on a real cluster, on demand. As root.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm/devcluster/common.sh
source "$here/common.sh"

usage() {
    cat >&2 <<'USAGE'
usage: operate.sh cut NODE             pull its network cable: it is lost, and its jobs run on unseen
       operate.sh heal NODE            put the cable back
       operate.sh kill NODE            kill -9 its slurmd; its jobs run on
       operate.sh crash NODE           kill -9 its slurmd and everything that runs on it
       operate.sh start NODE           start its slurmd again
       operate.sh resume NODE          return a drained or down node to service
       operate.sh accounting off|on    stop slurmdbd, so that sacct fails; start it again
       operate.sh controller off|on    stop slurmctld, so that every command fails; start it again with all its jobs
USAGE
    exit 2
}

[[ $# -eq 2 ]] || usage
need_root
load_cluster || die "no cluster in $DEVCLUSTER_DIR: run up.sh"

check_node() { node_names | grep -x -- "$1" >/dev/null || die "no such node: $1 (there are: $(node_names | tr '\n' ' '))"; }

check_cable() {
    check_node "$1"
    ((DEVCLUSTER_NETNS)) || die "nodes without a network of their own cannot be cut off: bring the cluster up with DEVCLUSTER_NETNS=1"
}

slurmd_of() {
    local pid
    pid=$(cat "$DEVCLUSTER_DIR/run/slurmd.$1.pid" 2>/dev/null) || return 0
    pids_of slurmd | grep -x -- "$pid" || true
}

kill_slurmd() {
    local pid
    pid=$(slurmd_of "$1")
    [[ -n $pid ]] || die "no slurmd runs on $1"
    kill -KILL "$pid"
}

processes_on() { ip netns pids "$NETNS_PREFIX$1"; }

case "$1 $2" in
'cut '*)
    check_cable "$2"
    ip link set "v$2" down
    ;;
'heal '*)
    check_cable "$2"
    ip link set "v$2" up
    ;;
'kill '*)
    check_node "$2"
    kill_slurmd "$2"
    ;;
'crash '*)
    check_cable "$2"
    # What is started while the list is made is killed the next time round.
    while [[ -n $(processes_on "$2") ]]; do processes_on "$2" | xargs --no-run-if-empty kill -KILL 2>/dev/null || true; done
    ;;
'start '*)
    check_node "$2"
    [[ -z $(slurmd_of "$2") ]] || die "the slurmd of $2 runs already"
    start_slurmd "$2"
    ;;
'resume '*)
    check_node "$2"
    scontrol update nodename="$2" state=resume
    ;;
'accounting off') stop 15 slurmdbd || die "slurmdbd does not stop" ;;
'accounting on')
    none_of slurmdbd || die "slurmdbd runs already"
    start_slurmdbd || die "slurmdbd does not answer"
    ;;
'controller off') stop 15 slurmctld || die "slurmctld does not stop" ;;
'controller on')
    none_of slurmctld || die "slurmctld runs already"
    # Without -c, which would forget the jobs.
    start_slurmctld || die "slurmctld does not answer"
    ;;
*) usage ;;
esac
