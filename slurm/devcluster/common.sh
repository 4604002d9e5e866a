# shellcheck shell=bash disable=SC2034,SC2120
# Sourced by the scripts beside it: where a cluster lies, what belongs to it, how to start and stop it.

# cron, su and sudo may leave sbin out; every daemon lives there.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

DEVCLUSTER_DIR=$(realpath --canonicalize-missing "${DEVCLUSTER_DIR:-${TMPDIR:-/tmp}/simhpc-devcluster}")

# The network, the cgroups and Slurm's ports exist once per machine: this names the folder whose cluster has them.
CLAIM=/run/simhpc-devcluster
STAMP=$DEVCLUSTER_DIR/.simhpc-devcluster

BRIDGE=simhpc-br0
SUBNET=10.77.0
NETNS_PREFIX=simhpc-
# At the end of our lines in /etc/hosts.
HOSTS_MARK='# simhpc-devcluster'

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

need_root() {
    [[ $EUID -eq 0 ]] || die "must run as root: it starts daemons and makes network namespaces"
}

require_debian_12() {
    local id version
    # shellcheck source=/dev/null
    { id=$(source /etc/os-release && echo "${ID:-}"); version=$(source /etc/os-release && echo "${VERSION_ID:-}"); } ||
        die "cannot read /etc/os-release"
    [[ $id == debian && $version == 12 ]] || die "made for Debian 12, and this is ${id:-unknown} $version"
}

# What up.sh was told wins over what the caller's shell says now.
load_cluster() {
    [[ -r $DEVCLUSTER_DIR/env ]] || return 1
    # shellcheck source=/dev/null
    source "$DEVCLUSTER_DIR/env"
}

claimed_by() { cat "$CLAIM" 2>/dev/null || true; }

node_names() { seq --format='node%.0f' "$DEVCLUSTER_NODES"; }

# wait_for SECONDS COMMAND...: true as soon as the command is.
wait_for() {
    local deadline_s=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline_s)) || return 1
        sleep 0.1
    done
}

# pids_of DAEMON...: those that hold a file of our folder open. A pid file outlives its daemon, and its number may by
# then be a stranger's.
pids_of() {
    local pid exe daemon
    { find /proc/[0-9]*/fd -lname "$DEVCLUSTER_DIR/*" 2>/dev/null || true; } | cut -d/ -f3 | sort -un | while read -r pid; do
        exe=$(readlink "/proc/$pid/exe") || continue
        exe=${exe% (deleted)}
        # Debian's slurmd is a link to slurmd-wlm.
        exe=${exe%-wlm}
        for daemon in "$@"; do
            if [[ ${exe##*/} == "$daemon" ]]; then echo "$pid"; fi
        done
    done
}

none_of() { [[ -z $(pids_of "$@") ]]; }

# stop SECONDS DAEMON...: ask, then insist.
stop() {
    local patience_s=$1
    shift
    pids_of "$@" | xargs --no-run-if-empty kill -TERM 2>/dev/null || true
    wait_for "$patience_s" none_of "$@" && return
    pids_of "$@" | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
    wait_for 5 none_of "$@"
}

# A daemon must not depend on, nor reveal, what the caller's shell happened to export.
start() {
    env --ignore-environment PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 SLURM_CONF="$SLURM_CONF" "$@" </dev/null
}

start_slurmdbd() {
    start slurmdbd >>"$DEVCLUSTER_DIR/log/slurmdbd.err" 2>&1
    wait_for 20 sacctmgr --noheader show cluster
}

controller_answers() { scontrol ping | grep 'is UP' >/dev/null; }

# start_slurmctld [-c]
start_slurmctld() {
    start slurmctld "$@" >>"$DEVCLUSTER_DIR/log/slurmctld.err" 2>&1
    wait_for 20 controller_answers
}

# start_slurmd NODE
start_slurmd() {
    local node=$1 enter=()
    if ((DEVCLUSTER_NETNS)); then
        # Not `ip netns exec`: its own /sys would hide the cgroups from slurmd.
        # shellcheck disable=SC2016
        enter=(nsenter --net="/run/netns/$NETNS_PREFIX$node" unshare --uts --
            sh -c 'hostname "$0" && exec "$@"' "$node")
    fi
    start "${enter[@]}" slurmd -N "$node" >>"$DEVCLUSTER_DIR/log/slurmd.$node.err" 2>&1
}

# Job steps and what they started, also when their slurmd or slurmstepd was killed: by namespace, by cgroup, by parent.
job_processes() {
    local netns
    for netns in $(our_netns); do ip netns pids "$netns"; done
    our_cgroups | while read -r cgroup; do cat "$cgroup/cgroup.procs" 2>/dev/null || true; done
    ps -e -o pid=,ppid= | awk -v roots="$(pids_of slurmstepd | tr '\n' ' ')" '
        BEGIN { n = split(roots, r, " "); for (i = 1; i <= n; i++) ours[r[i]] = 1 }
        { parent[$1] = $2 }
        END {
            for (pid in parent) {
                for (up = pid; up > 1; up = parent[up]) if (up in ours) { print pid; break }
            }
        }'
}

our_netns() {
    ip netns list 2>/dev/null | awk -v prefix="$NETNS_PREFIX" 'index($1, prefix "node") == 1 { print $1 }'
}

# Not renamed into place: in a container it is often a mount.
forget_names() {
    local others
    grep -q -- "$HOSTS_MARK\$" /etc/hosts || return 0
    others=$(grep -v -- "$HOSTS_MARK\$" /etc/hosts || true)
    printf '%s\n' "$others" >/etc/hosts
}

# Deepest first, as rmdir wants them.
our_cgroups() {
    find /sys/fs/cgroup -mindepth 1 -depth -type d -path '*/slurm_node[0-9]*' 2>/dev/null || true
}
