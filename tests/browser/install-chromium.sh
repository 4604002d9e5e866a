#!/usr/bin/env bash
# Installs Debian's Chromium, which `make test-browser` drives. As root; again and again does no harm.
set -euo pipefail
if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "there is no Chromium here: install it (Debian: apt-get install chromium), then run this again" >&2
    exit 1
fi
log=$(mktemp "${TMPDIR:-/tmp}/simhpc-chromium.XXXXXX")
trap 'rm -f "$log"' EXIT
{
    apt-get update
    # A browser without a font draws no text.
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium fonts-dejavu-core
} >"$log" 2>&1 </dev/null || {
    tail "$log" >&2
    echo "apt could not install chromium" >&2
    exit 1
}
