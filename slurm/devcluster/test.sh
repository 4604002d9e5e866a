#!/usr/bin/env bash
# Runs the tests marked `cluster` on a cluster made for them: test.sh [PYTEST ARGUMENT]...
# KEEP=1 leaves the cluster up; one that was up before is used as it is, and stays.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm/devcluster/common.sh
source "$here/common.sh"

need_root
root=$(realpath "$here/../..")
venv=$(cd "$root" && realpath "${VENV:-.venv}")
copy=$DEVCLUSTER_DIR/checkout
[[ -x $venv/bin/python ]] || die "no environment in $venv: run make test-cluster"

is_up() { [[ $(claimed_by) == "$DEVCLUSTER_DIR" && -n $(pids_of slurmctld) ]]; }

as_user() {
    setpriv --reuid="$DEVCLUSTER_USER" --regid="$DEVCLUSTER_USER" --init-groups \
        env --chdir="$DEVCLUSTER_DIR/home" HOME="$DEVCLUSTER_DIR/home" "$@"
}

finish() {
    local code=$?
    trap '' INT TERM HUP
    if ((code)); then
        printf '\nFAILED; the logs: %s/log/slurmctld.log and the others beside it\n' "$DEVCLUSTER_DIR" >&2
    fi
    if is_up && { ((was_up)) || [[ ${KEEP:-0} == 1 ]]; }; then
        echo "the cluster stays up: source $DEVCLUSTER_DIR/env; the code is in $copy"
    elif ((code)); then
        "$here/down.sh" || true
    else
        "$here/down.sh" --purge || code=1
    fi
    exit "$code"
}

# The checkout may lie where the ordinary user cannot go, and jobs must find the code at one path on all nodes.
copy_code() {
    mkdir -p "$copy"
    find "$copy" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
    # A checkout is often somebody else's than root's.
    git -C "$root" -c safe.directory='*' ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' path; do
            # Deleted, but not yet from the index.
            [[ ! -e $root/$path ]] || printf '%s\0' "$path"
        done | (cd "$root" && xargs --null cp --archive --parents --target-directory="$copy")
    cp --archive --reflink=auto "$image" "$copy/containers/"
    if [[ -d $root/runs/demo ]]; then
        mkdir -p "$copy/runs"
        cp --archive "$root/runs/demo" "$copy/runs/"
    fi
}

# An environment knows its own path and its Python's: a copy must be told.
copy_venv() {
    local version base_python copied=$copy/.venv/copied
    # pip changes the times of these, and copying what is there already takes half a minute.
    if [[ $copied -nt $venv/installed-test && -z $(find "$venv"/lib/python*/site-packages -maxdepth 0 -newer "$copied") ]]; then
        return
    fi
    rm -rf "$copy/.venv"
    cp --archive --reflink=auto "$venv" "$copy/.venv"
    version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    base_python=$(realpath "$venv/bin/python")
    if ! as_user "$base_python" -c '' 2>/dev/null; then
        base_python=/usr/bin/python$version
        [[ -x $base_python ]] || die "$DEVCLUSTER_USER can run neither $(realpath "$venv/bin/python") nor $base_python: make the environment with a Python that it can"
    fi
    rm "$copy"/.venv/bin/python*
    "$base_python" -m venv --without-pip "$copy/.venv"
    { grep --files-with-matches --binary-files=without-match --null "^#!$venv/" "$copy"/.venv/bin/* || true; } |
        xargs --null --no-run-if-empty sed --in-place "1s|^#!$venv/|#!$copy/.venv/|"
    "$copy/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --editable "$copy"
    touch "$copied"
}

was_up=0
if is_up; then
    was_up=1
    echo "using the cluster that is up in $DEVCLUSTER_DIR"
fi
trap finish EXIT
trap 'exit 130' INT TERM HUP

image=$root/containers/simhpc-cpu.sif
[[ -e $image ]] || die "no image $image: run make test-cluster"
"$here/install-apptainer.sh"
((was_up)) || "$here/up.sh"
load_cluster
copied_s=$SECONDS
copy_code
copy_venv
chown --recursive "$DEVCLUSTER_USER:" "$copy"
chmod --recursive a+rX "$copy"
as_user "$copy/.venv/bin/python" -c 'import simhpc' || die "$DEVCLUSTER_USER cannot import the copy"
echo "copied the code and its environment to $copy in $((SECONDS - copied_s)) s"

cd "$copy"
results=$DEVCLUSTER_DIR/log/tests.xml
status=0
.venv/bin/python -m pytest -m 'cluster and not slow' --junitxml="$results" "$@" || status=$?
((status != 5)) || die "no cluster test was run"
((status == 0)) || exit "$status"
# A test that skips itself here would skip itself everywhere.
.venv/bin/python - "$results" <<'PYTHON'
import sys
from xml.etree import ElementTree

cases = list(ElementTree.parse(sys.argv[1]).iter("testcase"))
skipped = [case for case in cases if any(mark.get("type") != "pytest.xfail" for mark in case.iter("skipped"))]
if not cases:
    sys.exit("no cluster test was run")
if skipped:
    sys.exit("skipped, which counts as failed: " + ", ".join(str(case.get("name")) for case in skipped))
PYTHON
