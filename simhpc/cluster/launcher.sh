# Starts Python, with this script's arguments, inside the image. `cluster.container` writes these above it, quoted:
#   image identity    the SIF file; its size in bytes and identity when it was checked
#   sources           what is bound and has to be there
#   options           of `apptainer exec`
#   passed fixed      variables that are let in with the value of this moment; NAME=VALUE that are set
#   scratch           folder for temporary files, or empty; scratch_from, the variable that named it, or empty
#   python signal     inside the image; what a task is sent when it is to save

# Slurm may signal this process alone; the task then has it from here.
told=
trap 'told=yes' "$signal"
# What the task ignores must not end this one: outside a container it does not either.
trap : TERM

fail() {
    printf 'simhpc: on %s: %s\n' "$(hostname)" "$*" >&2
    exit 1
}

# ----- what is here

command -v apptainer >/dev/null ||
    fail "apptainer is not in PATH: load it in the profile's setup lines, or submit with --no-container"
[[ -r $image ]] || fail "the image $image is not there or cannot be read: is it on a disk that the nodes see?"
found="$(stat --dereference --format=%s -- "$image") $(od -An -v -tx1 -j48 -N16 -- "$image" | tr -d ' \n')"
[[ $found == "$identity" ]] ||
    fail "the image $image is not the one that was checked when this was submitted: submit again"
for source in "${sources[@]}"; do
    [[ -e $source ]] || fail "there is no $source, which the container is to be shown"
done
if [[ -n $scratch_from ]]; then
    scratch=${!scratch_from-}
    [[ -n $scratch ]] || fail "container.scratch = \"\$$scratch_from\", but the job has no such variable"
fi

# ----- what goes in

# Apptainer's own variables could add binds, environment and options that nobody listed.
for name in "${!APPTAINER@}" "${!SINGULARITY@}"; do
    case $name in
    APPTAINER_TMPDIR | APPTAINER_CACHEDIR | APPTAINER_CONFIGDIR) ;;
    *) unset "$name" ;;
    esac
done
for name in "${!SLURM@}" "${!SUBMITIT@}" "${!SIMHPC_JOB@}" "${passed[@]}"; do
    # Slurm's token is a password.
    if [[ $name != SLURM_JWT && -n ${!name+set} ]]; then export "APPTAINERENV_$name=${!name}"; fi
done
for assignment in "${fixed[@]}"; do export "APPTAINERENV_$assignment"; done

# ----- the task

if [[ -n $scratch ]]; then
    own=$(mktemp --directory -- "$scratch/simhpc-XXXXXXXX") || fail "no temporary folder can be made in $scratch"
    # Not --workdir: what is bound under /tmp or the home directory would have no place in it.
    quoted=${own//\"/\"\"}
    options+=(--mount "type=bind,\"source=$quoted\",\"destination=$quoted\"")
    export "APPTAINERENV_TMPDIR=$own"
fi
apptainer --quiet exec "${options[@]}" "$image" "$python" "$@" &
child=$!
while kill -0 "$child" 2>/dev/null; do
    if [[ -z $told ]]; then
        # Until the task ends, or a signal comes.
        wait "$child"
    else
        # Again and again: Python may not have been listening yet. Once it has heard, it listens no more.
        kill -s "$signal" "$child" 2>/dev/null
        sleep 1 &
        wait "$!"
    fi
done
wait "$child"
code=$?
if [[ -n $scratch ]]; then rm -rf -- "$own"; fi
# A task that was killed looks to Slurm as it does without a container.
if ((code > 128)); then
    trap - TERM "$signal"
    kill -s $((code - 128)) $$
fi
exit "$code"
