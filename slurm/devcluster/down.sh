#!/usr/bin/env bash
# Takes down what up.sh brought up, however far it came. --purge also removes the folder and the user.
# Exit code 0: nothing of it is left.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm/devcluster/common.sh
source "$here/common.sh"

purge=0
case "$*" in
'') ;;
--purge) purge=1 ;;
*) die "usage: down.sh [--purge]" ;;
esac
need_root
load_cluster || true

left=()
DAEMONS=(slurmctld slurmd slurmstepd slurmdbd mariadbd munged)

stop_everything() {
    # The controller first: it would requeue the jobs that die with their nodes.
    stop 10 slurmctld || true
    stop 5 slurmd || true
    if [[ $(claimed_by) == "$DEVCLUSTER_DIR" ]]; then
        job_processes | sort -un | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
    fi
    stop 1 slurmstepd || true
    stop 10 slurmdbd || true
    stop 15 mariadbd || true
    stop 5 munged || true
    local pids
    pids=$(pids_of "${DAEMONS[@]}" | tr '\n' ' ')
    [[ -z $pids ]] || left+=("processes $pids")
}

remove_network() {
    local netns
    for netns in $(our_netns); do ip netns delete "$netns"; done
    # The kernel takes a namespace's veth pair away a little later, and a bridge would leave those that are cut.
    local link
    for link in $(ip -o link show master $BRIDGE 2>/dev/null | awk -F': ' '{ sub(/@.*/, "", $2); print $2 }'); do
        ip link delete "$link" 2>/dev/null || true
    done
    ip link delete $BRIDGE 2>/dev/null || true
    # iproute2 mounts it for the first namespace and never unmounts it.
    if mountpoint --quiet /run/netns && [[ -z $(ls -A /run/netns) ]]; then
        umount /run/netns && rmdir /run/netns
    fi
    [[ -z $(our_netns) ]] || left+=("network namespaces")
    ! ip link show $BRIDGE >/dev/null 2>&1 || left+=("bridge $BRIDGE")
}

remove_cgroups() {
    our_cgroups | while read -r cgroup; do rmdir "$cgroup" 2>/dev/null || true; done
    [[ -z $(our_cgroups) ]]
}

remove_folder_and_user() {
    local home
    home=$(getent passwd "${DEVCLUSTER_USER:-}" | cut -d: -f6 || true)
    if [[ -n ${DEVCLUSTER_USER:-} && $home == "$DEVCLUSTER_DIR/home" ]]; then
        userdel "$DEVCLUSTER_USER" || left+=("user $DEVCLUSTER_USER")
    fi
    if [[ -e $STAMP ]]; then rm -rf "$DEVCLUSTER_DIR" || left+=("folder $DEVCLUSTER_DIR"); fi
}

stop_everything
if [[ $(claimed_by) == "$DEVCLUSTER_DIR" ]]; then
    remove_network
    forget_names
    # A killed process leaves its cgroup a moment after its death.
    wait_for 10 remove_cgroups || left+=("cgroups $(our_cgroups | tr '\n' ' ')")
    ((${#left[@]})) || rm "$CLAIM"
fi
if ((purge)); then remove_folder_and_user; fi

if ((${#left[@]})); then
    printf 'down.sh: still there: %s\n' "${left[@]}" >&2
    exit 1
fi
echo "down: $DEVCLUSTER_DIR"
