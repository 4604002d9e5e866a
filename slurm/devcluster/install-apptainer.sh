#!/usr/bin/env bash
# Installs Apptainer on Debian 12, which has none, and lets everybody use it. As root; again and again does no harm.
# Debian's unstable package fits but for two symbols of a newer C library, which glibc236.py redirects.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm/devcluster/common.sh
source "$here/common.sh"
need_root
require_debian_12

# What an image is built with and mounted by.
PACKAGES=(mmdebstrap squashfs-tools squashfuse fuse3 uidmap)

install_apptainer() {
    local work uri file sha256 log
    work=$(mktemp --directory "${TMPDIR:-/tmp}/simhpc-apptainer.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    log=$work/apt.log
    {
        apt-get update
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${PACKAGES[@]}" curl xz-utils
    } >"$log" 2>&1 </dev/null || { tail "$log" >&2 && die "apt could not install ${PACKAGES[*]}"; }
    # From the very mirror that apt uses.
    # shellcheck disable=SC2016
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sed --quiet 1p)
    read -r file sha256 < <(curl --silent --fail --location "${uri%/}/dists/sid/main/binary-amd64/Packages.xz" | xzcat |
        awk -v RS= '/^Package: apptainer\n/' | awk '/^Filename:/ { f = $2 } /^SHA256:/ { s = $2 } END { print f, s }')
    [[ -n $file && -n $sha256 ]] || die "Debian unstable has no apptainer for this processor"
    curl --silent --fail --location --output "$work/sid.deb" "${uri%/}/$file"
    echo "$sha256  $work/sid.deb" | sha256sum --check --quiet || die "the package of Debian unstable is damaged"
    dpkg-deb --raw-extract "$work/sid.deb" "$work/package"
    python3 "$here/glibc236.py" "$work/package"/usr/bin/apptainer \
        "$work/package"/usr/lib/x86_64-linux-gnu/apptainer/{bin/starter,lib/offsetpreload.so}
    sed --in-place --regexp-extended \
        's/^(Version: .*)$/\1~glibc236/; s/libc6 \(>= 2.38\)/libc6 (>= 2.36)/; s/ containernetworking-plugins,//' \
        "$work/package/DEBIAN/control"
    (
        cd "$work/package"
        find . -type f ! -path './DEBIAN/*' -printf '%P\0' | xargs --null md5sum >DEBIAN/md5sums
    )
    dpkg-deb -Znone --build "$work/package" "$work/apptainer.deb" >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$work/apptainer.deb" \
        >"$log" 2>&1 </dev/null || { tail "$log" >&2 && die "apt could not install the changed package"; }
}

for program in apptainer mmdebstrap mksquashfs squashfuse_ll newuidmap; do
    if ! command -v "$program" >/dev/null; then
        install_apptainer
        break
    fi
done
# Images are mounted by whoever runs them.
[[ -e /dev/fuse ]] || mknod /dev/fuse c 10 229
chmod 666 /dev/fuse
# Root of a machine without all capabilities builds as anybody else does.
for file in /etc/subuid /etc/subgid; do
    grep --quiet '^root:' "$file" 2>/dev/null || echo root:1000000:65536 >>"$file"
done
apptainer --version
