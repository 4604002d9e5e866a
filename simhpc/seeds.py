"""Every random number of a study comes from its one seed, through the names of what it is for."""

from __future__ import annotations

import hashlib
import json


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(0, "noise", "vit", 17)`.

    The first 8 bytes of SHA-256 over the JSON of all arguments: independent of the process, the machine and
    the order in which tasks run, so that neither batch size nor a resume changes a result.
    """
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
