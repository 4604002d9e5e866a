#!/bin/sh
# The one install step of both images, run inside them while they are built: simhpc into /opt/simhpc, with the versions of
# constraints.txt, and the image's labels. Beside it lie constraints.txt, labels and wheels/.
set -eu
here=/simhpc-install
python=/opt/simhpc/bin/python

# A base image may bring its torch in an environment of its own.
base=
for candidate in /opt/conda/bin/python3 /opt/venv/bin/python3 python3; do
    if "$candidate" -c 'import torch' 2>/dev/null; then
        base=$candidate
        break
    fi
done

"${base:-python3}" -m venv /opt/simhpc
if [ -n "$base" ]; then
    "$base" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
        >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base-image.pth"
fi
# With torch's wheel all others were laid out too; a base image's torch leaves them to the package index.
offline=
if ls "$here"/wheels/torch-*.whl >/dev/null 2>&1; then offline='--isolated --no-index'; fi
# shellcheck disable=SC2086
"$python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile $offline \
    --find-links "$here/wheels" --constraint "$here/constraints.txt" "$here"/wheels/simhpc-*.whl
"$python" -m pip uninstall --quiet --yes pip setuptools
# Nobody can write into the image later on: without this, every task would compile all that it imports.
"$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/simhpc || true

{
    cat "$here/labels"
    "$python" -m simhpc.cluster.image
} >>"$APPTAINER_LABELS"
