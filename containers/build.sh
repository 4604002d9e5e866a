#!/usr/bin/env bash
# Makes an image from this checkout: build.sh [cpu|gpu] [--output FILE] [--base IMAGE] [--force]
#   cpu   Debian 12 and CPU torch, from nothing but apt's and pip's packages: containers/simhpc-cpu.sif
#   gpu   on PyTorch's CUDA image, or the registry image that --base names:    containers/simhpc.sif
# An image of the very files that would go in is left as it is, unless --force. PYTHON is that of an environment with pip.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
root=$(realpath "$here/..")
PYTHON=${PYTHON:-$root/.venv/bin/python}

die() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 1
}

kind=cpu output="" base="" force=0
while (($#)); do
    case $1 in
    cpu | gpu) kind=$1 ;;
    --output) output=$(realpath --canonicalize-missing "${2:?--output needs a file}") && shift ;;
    --base) base=${2:?--base needs an image of a registry} && shift ;;
    --force) force=1 ;;
    -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0" && exit ;;
    *) die "what is $1? see --help" ;;
    esac
    shift
done
case $kind in
cpu) definition=simhpc-cpu.def output=${output:-$here/simhpc-cpu.sif} ;;
gpu) definition=simhpc.def output=${output:-$here/simhpc.sif} ;;
esac
[[ $kind == gpu || -z $base ]] || die "--base is of the gpu image"

command -v apptainer >/dev/null ||
    die "apptainer is not in PATH (on Debian 12, as root, slurm/devcluster/install-apptainer.sh installs it)"
PYTHON=$(command -v "$PYTHON") || die "no Python $PYTHON: run make first, or set PYTHON"
[[ $PYTHON == /* ]] || PYTHON=$PWD/$PYTHON

# What goes in: file names and contents, whatever their times.
inputs_sha256() {
    (
        cd "$root"
        printf '%s\n' "$kind" "$base"
        find simhpc -type f -not -path '*/__pycache__/*' -print0 | sort --zero-terminated | xargs --null sha256sum
        sha256sum pyproject.toml README.md constraints.txt containers/{build.sh,install.sh,"$definition"}
    ) | sha256sum | cut -d' ' -f1
}

inputs=$(inputs_sha256)
if [[ -e $output ]] && ((!force)); then
    # Not --quiet: who stops reading early fails the writer, and with it the pipeline.
    if apptainer inspect --labels "$output" 2>/dev/null | grep --fixed-strings "simhpc.inputs: $inputs" >/dev/null; then
        echo "$output is of this very checkout"
        exit
    fi
fi

stage=$(mktemp --directory "${TMPDIR:-/tmp}/simhpc-image.XXXXXX")
unfinished=$output.tmp.$$
trap 'rm -rf "$stage" "$unfinished"' EXIT
trap 'exit 130' INT TERM HUP
# Everything is named relative to this folder: an image keeps its definition, and no path of this machine belongs there.
cd "$stage"
mkdir -p install/wheels
began_s=$SECONDS
took() {
    printf '%4d s  %s\n' $((SECONDS - began_s)) "$1"
    began_s=$SECONDS
}

# pip writes beside what it builds.
mkdir source
cp "$root"/{pyproject.toml,README.md} source/
cp -r "$root/simhpc" source/
pip() { "$PYTHON" -m pip --disable-pip-version-check "$@" >pip.log 2>&1 || { cat pip.log >&2 && die "pip failed"; }; }
if [[ $kind == cpu ]]; then
    [[ $("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') == 3.11 ]] ||
        die "the image's Python is Debian 12's, 3.11, and $PYTHON, which chooses the wheels, is another: set PYTHON"
    # torch by its exact version: nothing else may choose another build of it.
    pip wheel --wheel-dir install/wheels --constraint "$root/constraints.txt" \
        "$(grep '^torch==' "$root/constraints.txt")" ./source
    if compgen -G 'install/wheels/nvidia_*' >/dev/null; then
        die "pip chose a CUDA build of torch, gigabytes larger: set PIP_INDEX_URL to PyTorch's index of CPU builds, or make the gpu image"
    fi
else
    pip wheel --wheel-dir install/wheels --no-deps ./source
fi
took "wheels: $(find install/wheels -name '*.whl' | wc --lines), $(du --summarize --si install/wheels | cut -f1)"

cp "$here/install.sh" "$root/constraints.txt" install/
commit=$(git -C "$root" -c safe.directory='*' rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
if [[ -n $(git -C "$root" -c safe.directory='*' status --porcelain -- simhpc pyproject.toml constraints.txt containers 2>/dev/null) ]]; then
    commit+=-changed
fi
printf '%s\n' "simhpc.git-commit $commit" "simhpc.inputs $inputs" >install/labels

if [[ $kind == cpu ]]; then
    command -v mmdebstrap >/dev/null || die "mmdebstrap is not installed: apt-get install mmdebstrap"
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sed --quiet 1p)
    [[ -n $mirror ]] || die "apt knows no repository: run apt-get update"
    # The mirror is this machine's, and stays out.
    # shellcheck disable=SC2016
    mmdebstrap --quiet --variant=apt --include=python3,python3-venv,ca-certificates,gcc,libc6-dev \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='rm -rf "$1"/etc/apt/sources.list "$1"/etc/hostname "$1"/etc/resolv.conf "$1"/var/log/*' \
        bookworm rootfs "$mirror" 2>mmdebstrap.log || { cat mmdebstrap.log >&2 && die "mmdebstrap failed"; }
    rm -rf rootfs/dev/*
    took "root file system"
fi

options=(--fakeroot --mksquashfs-args "-comp zstd -Xcompression-level 9")
[[ -z $base ]] || options+=(--build-arg "BASE=$base")
# As root, with what a caller's environment might say left out.
env --unset=APPTAINER_BIND --unset=APPTAINER_BINDPATH \
    apptainer --quiet build "${options[@]}" image.sif "$here/$definition" >build.log 2>&1 ||
    { tail --lines=40 build.log >&2 && die "apptainer build failed"; }
grep '^simhpc .*PGD' build.log || die "the image did not test itself: $(tail --lines=3 build.log)"
chmod 644 image.sif
mkdir -p "$(dirname "$output")"
cp --reflink=auto image.sif "$unfinished"
mv "$unfinished" "$output"
took "image"
echo "$output: $(stat --format=%s "$output" | awk '{ printf "%.0f MB", $1 / 1e6 }')"
