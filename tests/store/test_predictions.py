"""Prediction files read in parts: the same data as the whole, checked like it."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from damage import reseal

from simhpc.errors import BadFileError, MissingInputError
from simhpc.store import predictions
from simhpc.store.predictions import NOT_SHOWN, PredictionSet
from simhpc.store.provenance import Provenance

M, N, K = 300, 2000, 700  # 2.4 MB of answers and 2.8 MB of probabilities: more than one chunk

PROVENANCE = Provenance(
    model="m", timm_name="t", model_sha256="a", weights_sha256="b", study_sha256="c", images_sha256="d", attack="{}",
    attack_code_sha256="e", batch_size=4, seed=0, precision="float32", engine="none",
    device="cpu", threads=1, torch="2", timm="1", container="none",
)  # fmt: skip

READERS = (predictions.iterate_adversarial, predictions.iterate_probabilities)


def write(path, m=M, seed=0):
    random = np.random.default_rng(seed)
    found = PredictionSet(
        provenance=PROVENANCE,
        labels=random.integers(0, 9, N, dtype=np.int32),
        clean_pred=random.integers(0, 9, N, dtype=np.int32),
        clean_margin=random.random(N).astype(np.float16),
        clean_probabilities=random.random((N, K)).astype(np.float16),
        sources=[f"m{k}" for k in range(m)],
        source_sha256=[f"{k:064x}" for k in range(m)],
        adv_pred=random.integers(NOT_SHOWN, 9, (m, N), dtype=np.int32),
        adv_margin=random.random((m, N)).astype(np.float16),
    )
    found.save(path)
    return found


@pytest.mark.parametrize("m", [0, 1, M])
def test_parts_are_the_whole(tmp_path, m):
    path = tmp_path / "m.h5"
    whole = write(path, m)
    outline = predictions.outline(path)
    for name in ("provenance", "sources", "source_sha256"):
        assert getattr(outline, name) == getattr(whole, name)
    np.testing.assert_array_equal(outline.labels, whole.labels)
    np.testing.assert_array_equal(outline.clean_pred, whole.clean_pred)
    assert outline.num_classes == K
    assert outline.content_sha256 == predictions.header(path).content_sha256
    slices = list(predictions.iterate_adversarial(path, outline))
    assert len(slices) == {0: 0, 1: 1, M: 3}[m]
    assert all(part.nbytes <= 1 << 20 for part in slices)
    np.testing.assert_array_equal(np.concatenate([np.empty((0, N), np.int32), *slices]), whole.adv_pred)


def test_blocks_of_probabilities_are_the_whole(tmp_path):
    path = tmp_path / "m.h5"
    whole = write(path, 1)
    blocks = list(predictions.iterate_probabilities(path, predictions.outline(path)))
    assert len(blocks) == 3
    assert all(block.nbytes <= 1 << 20 for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), whole.clean_probabilities)
    np.testing.assert_array_equal(predictions.load(path).clean_probabilities, whole.clean_probabilities)


def test_files_of_before_the_probabilities_are_refused_by_name(tmp_path):
    path = tmp_path / "m.h5"
    write(path, 1)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    reseal(path)
    for read in (predictions.load, predictions.outline, predictions.header):
        with pytest.raises(BadFileError, match=r"m\.h5: simhpc-predictions version 2; .* reads version 3"):
            read(path)


def test_altered_answers_are_an_error_at_the_end_at_the_latest(tmp_path):
    path = tmp_path / "m.h5"
    write(path)
    outline = predictions.outline(path)
    with h5py.File(path, "r+") as file:  # HDF5 makes a new checksum for the chunk; ours tells
        file["adversarial/pred"][M - 1, N - 1] += 1
        file["clean/probabilities"][N - 1, K - 1] = 2.0
    reseal(path)
    with pytest.raises(BadFileError, match=r"m\.h5: the data of 'adversarial/pred' do not match their checksum"):
        list(predictions.iterate_adversarial(path, outline))
    with pytest.raises(BadFileError, match=r"m\.h5: the data of 'clean/probabilities' do not match their checksum"):
        list(predictions.iterate_probabilities(path, outline))


def test_another_file_in_its_place_is_an_error(tmp_path):
    path = tmp_path / "m.h5"
    write(path)
    outline = predictions.outline(path)
    begun = predictions.iterate_probabilities(path, outline)
    next(begun)
    write(path, seed=1)
    for each in (begun, *(read(path, outline) for read in READERS)):
        with pytest.raises(BadFileError, match="was replaced while it was being read"):
            next(each)
    path.unlink()
    for read in READERS:
        with pytest.raises(MissingInputError):
            next(read(path, outline))
