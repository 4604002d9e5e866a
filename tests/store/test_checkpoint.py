from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from simhpc.errors import BadFileError, MissingInputError
from simhpc.store import checkpoint

WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.array(3, dtype=np.int64)}


def test_round_trip_keeps_values_scalars_and_provenance(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, WEIGHTS, {"model": "m", "accuracy": "0.5"})
    loaded = load_file(path)
    np.testing.assert_array_equal(loaded["w"], WEIGHTS["w"])
    assert loaded["n"].shape == ()
    metadata = checkpoint.metadata_of(path)
    assert metadata["accuracy"] == "0.5"
    assert metadata["weights_sha256"] == checkpoint.weights_sha256(loaded)


def test_hash_sees_values_names_shapes_and_types_but_not_order():
    reference = checkpoint.weights_sha256(WEIGHTS)
    assert checkpoint.weights_sha256(dict(reversed(WEIGHTS.items()))) == reference
    others = [
        {**WEIGHTS, "w": WEIGHTS["w"] + 1},
        {**WEIGHTS, "w": WEIGHTS["w"].reshape(2, 3)},
        {**WEIGHTS, "w": WEIGHTS["w"].astype(np.float64)},
        {"v": WEIGHTS["w"], "n": WEIGHTS["n"]},
    ]
    assert len({reference, *map(checkpoint.weights_sha256, others)}) == 5


def test_missing_foreign_and_truncated(tmp_path):
    with pytest.raises(MissingInputError):
        checkpoint.metadata_of(tmp_path / "none.safetensors")
    save_file({"w": WEIGHTS["n"]}, tmp_path / "foreign.safetensors")
    with pytest.raises(BadFileError, match="not written by simhpc's train stage"):
        checkpoint.metadata_of(tmp_path / "foreign.safetensors")
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, WEIGHTS, {})
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(BadFileError, match="truncated"):
        checkpoint.metadata_of(path)


def test_every_process_writes_the_same_bytes(tmp_path):
    program = (
        "import sys, pathlib, numpy; from simhpc.store import checkpoint\n"
        "names = {f'name{n}': f'ä \\n\"{n}' for n in range(20)}\n"
        "checkpoint.save(pathlib.Path(sys.argv[1]), {'a': numpy.arange(3.0)}, names)"
    )
    for name in ("one", "two", "three"):
        subprocess.run([sys.executable, "-c", program, tmp_path / name], check=True)
    assert len({(tmp_path / name).read_bytes() for name in ("one", "two", "three")}) == 1
    assert checkpoint.metadata_of(tmp_path / "one")["name7"] == 'ä \n"7'
