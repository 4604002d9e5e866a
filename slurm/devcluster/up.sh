#!/usr/bin/env bash
# From nothing to a real Slurm with all nodes idle on one Debian 12 machine, without systemd. README.md has the settings.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm/devcluster/common.sh
source "$here/common.sh"

: "${DEVCLUSTER_NODES:=3}" "${DEVCLUSTER_CPUS:=4}" "${DEVCLUSTER_MEM_MB:=3000}" "${DEVCLUSTER_GPUS:=2}"
: "${DEVCLUSTER_NETNS:=1}" "${DEVCLUSTER_USER:=simhpc-dev}" "${DEVCLUSTER_MAX_ARRAY_SIZE:=1001}"
: "${DEVCLUSTER_CGROUP:=auto}"

DB_PORT=13306
DBD_PORT=16819
SLURMCTLD_PORT=16817
SLURMD_PORT=16818
DB_SOCKET=$DEVCLUSTER_DIR/run/mariadb/socket
PACKAGES=(slurmctld slurmd slurm-client slurmdbd slurm-wlm-basic-plugins munge mariadb-server iproute2 procps)

HOST=$(hostname -s)
if ((DEVCLUSTER_NETNS)); then CONTROLLER_ADDR=$SUBNET.1; else CONTROLLER_ADDR=127.0.0.1; fi
export SLURM_CONF=$DEVCLUSTER_DIR/etc/slurm.conf

policy_made=
began_us=${EPOCHREALTIME/[.,]/}
step_began_us=$began_us

# took WHAT: how long the step that ends here was.
took() {
    local now_us=${EPOCHREALTIME/[.,]/}
    awk -v us=$((now_us - step_began_us)) -v what="$1" 'BEGIN { printf "%6.1f s  %s\n", us / 1e6, what }'
    step_began_us=$now_us
}

check_settings() {
    local name
    for name in NODES CPUS MEM_MB GPUS MAX_ARRAY_SIZE; do
        name=DEVCLUSTER_$name
        [[ ${!name} =~ ^[0-9]+$ ]] || die "$name must be a whole number, not '${!name}'"
    done
    ((DEVCLUSTER_NODES >= 1 && DEVCLUSTER_NODES <= 200)) || die "DEVCLUSTER_NODES must lie in 1..200"
    [[ $DEVCLUSTER_NETNS =~ ^[01]$ ]] || die "DEVCLUSTER_NETNS must be 0 or 1"
    [[ $DEVCLUSTER_CGROUP =~ ^(auto|yes|no)$ ]] || die "DEVCLUSTER_CGROUP must be auto, yes or no"
    # Slurm's configuration cannot quote, and a Unix socket's path is short.
    [[ $DEVCLUSTER_DIR =~ ^/[A-Za-z0-9/._-]{1,79}$ ]] ||
        die "DEVCLUSTER_DIR must be at most 80 of letters, digits and /._-, not '$DEVCLUSTER_DIR'"
}

# Fails, rather than shares: ports, namespaces and cgroups exist once per machine.
claim_machine() {
    local owner
    owner=$(claimed_by)
    if [[ -n $owner ]]; then
        if [[ -n $(DEVCLUSTER_DIR=$owner pids_of slurmctld slurmd) ]]; then
            die "a cluster is already up in $owner: use it (source $owner/env) or take it down (DEVCLUSTER_DIR=$owner $here/down.sh)"
        fi
        echo "cleaning up after a killed cluster in $owner"
        DEVCLUSTER_DIR=$owner "$here/down.sh" || die "cannot clean up after the cluster in $owner"
    fi
    if cat /proc/[0-9]*/comm 2>/dev/null | grep --line-regexp --quiet 'slurmctld\|slurmd'; then
        die "another Slurm runs on this machine, and its cgroups could not be told from ours"
    fi
    # down.sh --purge removes the whole folder.
    if [[ -e $DEVCLUSTER_DIR && ! -e $STAMP ]]; then
        die "$DEVCLUSTER_DIR exists and was not made by up.sh: choose another DEVCLUSTER_DIR"
    fi
    (set -o noclobber && echo "$DEVCLUSTER_DIR" >"$CLAIM") 2>/dev/null || die "another up.sh is at work ($CLAIM)"
    # From here on, what fails or is interrupted leaves nothing behind but its logs.
    trap 'code=$?; if ((code)); then failed; fi' EXIT
    trap 'exit 130' INT TERM HUP
}

failed() {
    trap '' INT TERM HUP
    if [[ -n $policy_made ]]; then rm -f "$policy_made"; fi
    printf '\nup.sh: failed; the logs are in %s\n' "$DEVCLUSTER_DIR/log" >&2
    tail --lines=3 "$DEVCLUSTER_DIR"/log/{*.err,slurm*.log} >&2 2>/dev/null || true
    "$here/down.sh" >&2 || true
}

install_packages() {
    local package missing=() policy=/usr/sbin/policy-rc.d
    for package in "${PACKAGES[@]}"; do
        [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    # The packages' init scripts would start a munged and a MariaDB of their own.
    if [[ ! -e $policy ]]; then
        policy_made=$policy
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    local apt_ok=1
    {
        apt-get update
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}"
    } >"$DEVCLUSTER_DIR/log/apt.log" 2>&1 </dev/null || apt_ok=0
    if [[ -n $policy_made ]]; then rm "$policy_made"; fi
    policy_made=
    ((apt_ok)) || die "apt could not install ${missing[*]}: see $DEVCLUSTER_DIR/log/apt.log"
    took "installed ${missing[*]}"
}

# A new cluster knows no old jobs: Slurm would number its own from 1 again beside them.
make_folders() {
    mkdir -p "$DEVCLUSTER_DIR"
    touch "$STAMP"
    rm -rf "${DEVCLUSTER_DIR:?}"/{etc,log,state,run,db,munge,spool,dev}
    mkdir -p "$DEVCLUSTER_DIR"/{etc,log,state,run,db,munge,spool,dev}
    chmod 755 "$DEVCLUSTER_DIR" "$DEVCLUSTER_DIR"/{etc,log,spool,dev}
    node_names | (cd "$DEVCLUSTER_DIR/spool" && xargs mkdir)
}

# Also for down.sh and operate.sh, hence written before there is anything to take down.
write_env() {
    local name
    for name in SLURM_CONF DEVCLUSTER_{DIR,NODES,CPUS,MEM_MB,GPUS,NETNS,USER,MAX_ARRAY_SIZE}; do
        printf 'export %s=%q\n' "$name" "${!name}"
    done >"$DEVCLUSTER_DIR/env"
}

make_user() {
    local home
    if home=$(getent passwd "$DEVCLUSTER_USER" | cut -d: -f6) && [[ -n $home ]]; then
        [[ $home == "$DEVCLUSTER_DIR/home" ]] ||
            die "user $DEVCLUSTER_USER exists with the home $home: choose another DEVCLUSTER_USER, or userdel it"
        mkdir -p "$home"
        chown "$DEVCLUSTER_USER:" "$home"
    else
        useradd --create-home --home-dir "$DEVCLUSTER_DIR/home" --shell /bin/bash "$DEVCLUSTER_USER"
    fi
    chmod 755 "$DEVCLUSTER_DIR/home"
    setpriv --reuid="$DEVCLUSTER_USER" --regid="$DEVCLUSTER_USER" --init-groups test -x "$DEVCLUSTER_DIR/home" ||
        die "$DEVCLUSTER_USER cannot reach $DEVCLUSTER_DIR: a folder above it is closed to other users"
}

# On munge's default socket, as on any cluster: that is the one a container binds.
start_munged() {
    munge --no-input >/dev/null 2>&1 && return
    local dir=$DEVCLUSTER_DIR/munge
    mkdir -p /run/munge
    (umask 077 && head --bytes=128 /dev/urandom >"$dir/munge.key")
    chown --recursive munge:munge /run/munge "$dir"
    chmod 755 /run/munge
    chmod 700 "$dir"
    start setpriv --reuid=munge --regid=munge --clear-groups munged --force --num-threads=2 \
        --key-file="$dir/munge.key" --seed-file="$dir/munged.seed" \
        --log-file="$dir/munged.log" --pid-file="$dir/munged.pid" >"$DEVCLUSTER_DIR/log/munged.err" 2>&1
    wait_for 10 munge --no-input || die "munged does not answer"
}

start_mariadb() {
    local run=${DB_SOCKET%/*} db=$DEVCLUSTER_DIR/db
    mkdir "$run"
    chown mysql:mysql "$run" "$db"
    chmod 700 "$db"
    mariadb-install-db --no-defaults --user=mysql --datadir="$db" --skip-test-db \
        --auth-root-authentication-method=socket >"$DEVCLUSTER_DIR/log/mariadb-install-db.log" 2>&1
    took "MariaDB installed"
    # Small, and without waiting for the disk: the history of a development cluster may be lost.
    start setsid --fork mariadbd --no-defaults --user=mysql --datadir="$db" --socket="$DB_SOCKET" --pid-file="$run/pid" \
        --bind-address=127.0.0.1 --port=$DB_PORT --skip-name-resolve --performance-schema=off \
        --innodb-buffer-pool-size=64M --innodb-log-file-size=16M --innodb-flush-log-at-trx-commit=0 \
        --innodb-lock-wait-timeout=900 >"$DEVCLUSTER_DIR/log/mariadb.log" 2>&1
    wait_for 30 mariadb-admin --no-defaults --socket="$DB_SOCKET" ping || die "MariaDB does not answer"
    mariadb --no-defaults --socket="$DB_SOCKET" <<SQL
create database slurm_acct_db;
create user slurm@'127.0.0.1' identified by 'slurm';
grant all on slurm_acct_db.* to slurm@'127.0.0.1';
SQL
}

# Slurm 22.05's cgroup/v2 wants systemd, and was never seen to work here.
memory_is_enforceable() {
    case $DEVCLUSTER_CGROUP in
    yes) return 0 ;;
    no) return 1 ;;
    *) [[ -w /sys/fs/cgroup/memory/cgroup.procs && -w /sys/fs/cgroup/freezer/cgroup.procs ]] ;;
    esac
}

write_configuration() {
    local etc=$DEVCLUSTER_DIR/etc proctrack task gather_params node i
    if memory_is_enforceable; then
        proctrack=proctrack/cgroup task=task/cgroup gather_params=
    else
        proctrack=proctrack/linuxproc task=task/none gather_params=JobAcctGatherParams=OverMemoryKill
        echo "         no cgroup v1 memory and freezer: a job over its memory ends FAILED, at the next sample, not OUT_OF_MEMORY" >&2
    fi

    (umask 077 && cat >"$etc/slurmdbd.conf") <<CONF
AuthType=auth/munge
DbdHost=$HOST
DbdAddr=$CONTROLLER_ADDR
DbdPort=$DBD_PORT
SlurmUser=root
LogFile=$DEVCLUSTER_DIR/log/slurmdbd.log
PidFile=$DEVCLUSTER_DIR/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$DB_PORT
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF

    cat >"$etc/slurm.conf" <<CONF
ClusterName=devcluster
SlurmctldHost=$HOST($CONTROLLER_ADDR)
SlurmctldPort=$SLURMCTLD_PORT
SlurmdPort=$SLURMD_PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired: 120 s by default.
AuthInfo=cred_expire=5
SlurmctldPidFile=$DEVCLUSTER_DIR/run/slurmctld.pid
SlurmdPidFile=$DEVCLUSTER_DIR/run/slurmd.%n.pid
SlurmdSpoolDir=$DEVCLUSTER_DIR/spool/%n
StateSaveLocation=$DEVCLUSTER_DIR/state
SlurmctldLogFile=$DEVCLUSTER_DIR/log/slurmctld.log
SlurmdLogFile=$DEVCLUSTER_DIR/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=verbose
MailProg=/bin/true
MpiDefault=none

ProctrackType=$proctrack
TaskPlugin=$task
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
$gather_params

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# More CPUs and memory per node than the machine has are fine.
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
# Microseconds, seconds, seconds: a decision at once, not after half a minute.
SchedulerParameters=sched_min_interval=100000,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MaxArraySize=$DEVCLUSTER_MAX_ARRAY_SIZE
DefMemPerCPU=200
# sbatch refuses what no partition's limits allow, instead of letting it pend for ever.
EnforcePartLimits=ALL

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$CONTROLLER_ADDR
AccountingStoragePort=$DBD_PORT
AccountingStorageEnforce=associations,limits,qos
AccountingStoreFlags=job_comment
$( ((DEVCLUSTER_GPUS)) && echo AccountingStorageTRES=gres/gpu)

# Short, so that a lost node is lost within a minute, and back by itself.
KillWait=5
SlurmdTimeout=15
SlurmctldTimeout=30
ReturnToService=2
MinJobAge=300
OverTimeLimit=0

$( ((DEVCLUSTER_GPUS)) && echo GresTypes=gpu)
CONF
    i=0
    for node in $(node_names); do
        i=$((i + 1))
        printf 'NodeName=%s CPUs=%d RealMemory=%d State=UNKNOWN' "$node" "$DEVCLUSTER_CPUS" "$DEVCLUSTER_MEM_MB"
        if ((DEVCLUSTER_GPUS)); then printf ' Gres=gpu:%d' "$DEVCLUSTER_GPUS"; fi
        if ((DEVCLUSTER_NETNS)); then
            printf ' NodeAddr=%s.%d\n' $SUBNET $((10 + i))
        else
            printf ' NodeHostname=%s NodeAddr=127.0.0.1 Port=%d\n' "$HOST" $((17000 + i))
        fi
    done >>"$etc/slurm.conf"
    # Only low gives way, and only to high: main and short stand outside of it.
    cat >>"$etc/slurm.conf" <<CONF
PartitionName=main  Nodes=ALL MaxTime=INFINITE PriorityTier=1  PreemptMode=OFF Default=YES
PartitionName=low   Nodes=ALL MaxTime=INFINITE PriorityTier=1  PreemptMode=REQUEUE
PartitionName=high  Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=ALL MaxTime=00:02:00 PriorityTier=1  PreemptMode=OFF
CONF

    # With swap, a job over its limit would become slow instead of dying.
    local swap=no
    if [[ $(wc --lines </proc/swaps) -gt 1 && -e /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes ]]; then swap=yes; fi
    cat >"$etc/cgroup.conf" <<CONF
CgroupAutomount=no
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=yes
ConstrainSwapSpace=$swap
AllowedSwapSpace=0
CONF

    if ((DEVCLUSTER_GPUS)); then
        # Slurm takes only device files for GPUs: these are /dev/null under other names.
        for ((i = 0; i < DEVCLUSTER_GPUS; i++)); do mknod --mode=666 "$DEVCLUSTER_DIR/dev/gpu$i" c 1 3; done
        printf 'AutoDetect=off\nNodeName=node[1-%d] Name=gpu File=%s/dev/gpu[0-%d]\n' \
            "$DEVCLUSTER_NODES" "$DEVCLUSTER_DIR" $((DEVCLUSTER_GPUS - 1)) >"$etc/gres.conf"
    fi
}

# So that an account, a QoS or a limit that does not exist is refused as on a real cluster, in Slurm's words.
fill_accounting() {
    sacctmgr --immediate add cluster devcluster
    sacctmgr --immediate add qos small MaxWall=00:10:00 MaxSubmitJobsPerUser=4 Flags=DenyOnLimit
    sacctmgr --immediate add account lab Description=lab Organization=lab QOS=normal,small DefaultQOS=normal
    sacctmgr --immediate add user root,"$DEVCLUSTER_USER" account=lab
    sacctmgr --immediate modify user root set DefaultAccount=lab
} >"$DEVCLUSTER_DIR/log/sacctmgr.log" 2>&1

make_network() {
    local node i=0
    ((DEVCLUSTER_NETNS)) || return 0
    if ip route show match "$SUBNET.1/32" | grep -v '^default' >/dev/null; then
        die "$SUBNET.0/24 is in use on this machine: try DEVCLUSTER_NETNS=0"
    fi
    ip link add $BRIDGE type bridge
    ip address add $SUBNET.1/24 dev $BRIDGE
    ip link set $BRIDGE up
    for node in $(node_names); do
        i=$((i + 1))
        ip netns add "$NETNS_PREFIX$node"
        ip link add "v$node" master $BRIDGE type veth peer name eth0 netns "$NETNS_PREFIX$node"
        ip link set "v$node" up
        ip -n "$NETNS_PREFIX$node" address add "$SUBNET.$((10 + i))/24" dev eth0
        ip -n "$NETNS_PREFIX$node" link set lo up
        ip -n "$NETNS_PREFIX$node" link set eth0 up
    done
    # Nodes of a cluster know each other's names, and processes that train together meet by them. A file of the nodes'
    # own would need a mount namespace, which would hide from them what is mounted later.
    forget_names
    i=0
    for node in $(node_names); do
        i=$((i + 1))
        echo "$SUBNET.$((10 + i)) $node $HOSTS_MARK"
    done >>/etc/hosts
}

all_idle() { [[ $(sinfo --noheader --partition=main --states=idle --format=%D) == "$DEVCLUSTER_NODES" ]]; }

check_settings
need_root
require_debian_12
claim_machine
make_folders
write_env
install_packages
make_user
took "folders and user $DEVCLUSTER_USER"
start_munged
took "munged"
start_mariadb
took "MariaDB"
write_configuration
make_network
took "configuration and network"
start_slurmdbd || die "slurmdbd does not answer"
took "slurmdbd"
fill_accounting
took "accounts, QoS and users"
start_slurmctld -c || die "slurmctld does not answer"
took "slurmctld"
for node in $(node_names); do start_slurmd "$node"; done
wait_for 60 all_idle || die "the nodes do not become idle: $(sinfo --noheader --Node --partition=main --format='%N %T %E' | tr '\n' ';')"
took "$DEVCLUSTER_NODES nodes idle"
step_began_us=$began_us
took "in all"

cat <<NEXT

Next:
  source $DEVCLUSTER_DIR/env
  sinfo
  setpriv --reuid=$DEVCLUSTER_USER --regid=$DEVCLUSTER_USER --init-groups env HOME=$DEVCLUSTER_DIR/home sbatch --chdir=$DEVCLUSTER_DIR/home --wrap='srun hostname'
  $here/operate.sh      # lose a node, the accounting or the controller
  $here/down.sh
NEXT
