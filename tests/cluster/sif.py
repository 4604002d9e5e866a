"""SIF files made by hand, for what no build would make; the real ones are tested on the development cluster."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from simhpc.cluster import image


def write_sif(path: Path, labels: dict[str, str] | None = None, *, arch: bytes = b"02", identity: bytes = b"i" * 16):
    """A file with a header, two objects (Apptainer's metadata, some data) and nothing that could run.

    Args:
        labels: over those of this very simhpc; None: no metadata at all.
    """
    metadata = json.dumps({"data": {"attributes": {"labels": {**image.labels(), **(labels or {})}}}}).encode()
    data = b"squashfs" * 100
    data_at = 128 + 2 * 585
    objects = [(0x4006, metadata, b"inspect-metadata.json"), (0x4004, data, b"rootfs")]
    if labels is None:
        objects = objects[1:]
    descriptors, at = b"", data_at
    for number, (kind, content, name) in enumerate(objects, start=1):
        numbers = (at, len(content), len(content), 0, 0, 0, 0)
        descriptors += struct.pack("<i?III7q128s384s", kind, True, number, 1, 0, *numbers, name, b"")
        at += len(content)
    descriptors = descriptors.ljust(2 * 585, b"\0")
    header = struct.pack(
        "<32s10s3s3s16s8q",
        *(b"#!/usr/bin/env run-singularity\n", b"SIF_MAGIC\0", b"01\0", arch + b"\0", identity),
        *(0, 0, 0, 2, 128, len(descriptors), data_at, at - data_at),
    )
    path.write_bytes(header + descriptors + b"".join(content for _, content, _ in objects))
    return path
