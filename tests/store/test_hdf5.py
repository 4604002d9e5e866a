"""The common HDF5 layer: what is written comes back, and damage is an error that names file and key."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
from damage import reseal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from simhpc.errors import BadFileError, ForeignFileError, MissingInputError, NoSpaceError
from simhpc.store import hdf5, seal

KIND = "simhpc-test"
BIG = np.arange(300_000, dtype=np.int32).reshape(1000, 300)


def write(path, **datasets):
    hdf5.write(path, kind=KIND, version=1, attributes={"note": "x"}, datasets=datasets or {"big": BIG})


def read(path, name="big", dtype="int32", shape=(1000, 300)):
    with hdf5.opened(path, kind=KIND, version=1) as file:
        return hdf5.read(path, file, name, dtype=dtype, shape=shape)


def test_round_trip_of_all_kinds(tmp_path):
    path = tmp_path / "sub" / "f.h5"
    texts = np.array(["a", "ü\n", ""], dtype=object)
    write(path, big=BIG, texts=texts, half=np.array([1.5, np.nan], np.float16), empty=np.empty((0, 3), np.uint8))
    np.testing.assert_array_equal(read(path), BIG)
    assert list(read(path, "texts", "str", (3,))) == list(texts)
    np.testing.assert_array_equal(read(path, "half", "float16", (None,)), np.array([1.5, np.nan], np.float16))
    assert read(path, "empty", "uint8", (0, 3)).shape == (0, 3)
    attributes = hdf5.attributes(path, kind=KIND, version=1)
    assert attributes["note"] == "x"
    assert attributes["format_version"] == 1
    assert len(attributes["content_sha256"]) == 64


def test_identity_depends_on_content_alone(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name)
    hashes = {hdf5.attributes(tmp_path / n, kind=KIND, version=1)["content_sha256"] for n in ("a", "b")}
    write(tmp_path / "c", big=BIG + 1)
    assert len(hashes) == 1
    assert hdf5.attributes(tmp_path / "c", kind=KIND, version=1)["content_sha256"] not in hashes


def test_missing_foreign_and_other_version(tmp_path):
    with pytest.raises(MissingInputError, match=r"none\.h5 does not exist"):
        read(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(BadFileError, match=r"text\.h5 cannot be read as HDF5"):
        read(tmp_path / "text.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["big"] = BIG
    with pytest.raises(ForeignFileError, match=r"foreign\.h5 has no seal"):
        read(tmp_path / "foreign.h5")
    hdf5.write(tmp_path / "other.h5", kind="simhpc-other", version=1, attributes={}, datasets={"big": BIG})
    with pytest.raises(ForeignFileError, match="not a simhpc-test file"):
        read(tmp_path / "other.h5")
    hdf5.write(tmp_path / "new.h5", kind=KIND, version=2, attributes={}, datasets={"big": BIG})
    with pytest.raises(ForeignFileError, match="version 2; this simhpc .* reads version 1"):
        read(tmp_path / "new.h5")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated(tmp_path, share):
    path = tmp_path / "f.h5"
    write(path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(BadFileError, match=r"f\.h5"):
        read(path)


def test_a_flipped_bit_anywhere_in_the_data_is_seen(tmp_path):
    path = tmp_path / "f.h5"
    write(path)
    with h5py.File(path, "r") as file:
        chunks = [file["big"].id.get_chunk_info(k) for k in range(file["big"].id.get_num_chunks())]
    random = np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(40):
        chunk = chunks[random.integers(len(chunks))]
        damaged = bytearray(whole)
        damaged[chunk.byte_offset + random.integers(chunk.size)] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(BadFileError, match=r"f\.h5"):
            read(path)


def test_attributes_are_read_without_hdf5_and_are_those_of_hdf5(tmp_path, monkeypatch):
    path = tmp_path / "f.h5"
    given = {"text": 'ü\n"', "whole": -(2**40), "fraction": 0.1, "yes": True, "none": float("inf")}
    hdf5.write(path, kind=KIND, version=1, attributes=given, datasets={"big": BIG})
    with h5py.File(path) as file:
        held = hdf5.attributes_of(file)
    assert held.items() >= given.items()
    with monkeypatch.context() as without:
        without.setattr(h5py, "File", None)
        assert hdf5.attributes(path, kind=KIND, version=1) == held
        with pytest.raises(BadFileError, match="simhpc-test version 1; .* reads version 2"):
            hdf5.attributes(path, kind=KIND, version=2)
    checked, _ = hdf5._to_be_sealed(path)
    seal.seal(path, checked)  # as files of before are
    assert hdf5.attributes(path, kind=KIND, version=1) == held
    hdf5.check_content(path, kind=KIND, version=1)
    seal.seal(path, checked, {**held, "whole": 1})
    with pytest.raises(BadFileError, match="its seal repeats other attributes"):
        hdf5.check_content(path, kind=KIND, version=1)


def test_changed_text_is_seen(tmp_path):
    path = tmp_path / "f.h5"
    write(path, texts=np.array(["unmistakable"], dtype=object))
    path.write_bytes(path.read_bytes().replace(b"unmistakable", b"unmistakeble"))
    with pytest.raises(BadFileError, match="truncated, damaged or was edited"):
        read(path, "texts", "str", (1,))
    reseal(path)
    with pytest.raises(BadFileError, match="'texts' do not match their checksum"):
        read(path, "texts", "str", (1,))


def test_missing_key_wrong_type_and_wrong_shape_are_named(tmp_path):
    path = tmp_path / "f.h5"
    write(path)
    with pytest.raises(BadFileError, match="'other' is missing"):
        read(path, "other")
    with pytest.raises(BadFileError, match="'big' is int32 .* expected uint8"):
        read(path, dtype="uint8")
    with pytest.raises(BadFileError, match=r"expected int32 \(1000, 'any', 3\)"):
        read(path, shape=(1000, None, 3))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "f.h5"
    write(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simhpc.store.atomic._sync", full)
    with pytest.raises(NoSpaceError, match="No space left"):
        write(path, big=BIG + 1)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.h5"]


@given(hnp.arrays(st.sampled_from([np.uint8, np.int32, np.float16]), hnp.array_shapes(max_dims=3)), st.integers(1, 5))
def test_hash_in_slices_is_the_hash_of_the_whole(array, step):
    digest = hdf5.ArrayHash(array.dtype.newbyteorder("<").str, array.shape)
    for start in range(0, len(array), step):
        digest.update(array[start : start + step])
    assert digest.hexdigest() == hdf5.sha256_of(array)
    assert hdf5.sha256_of(np.asfortranarray(array)) == hdf5.sha256_of(array)


@pytest.mark.parametrize("n", [0, 1, 11, 12, 13, 40])
@pytest.mark.parametrize("n_rows", [1, 5, 12, 24, 100])
def test_rows_past_the_checksums_are_the_rows(tmp_path, n, n_rows):
    """12 rows make a chunk."""
    array = np.random.default_rng(n).integers(0, 256, (n, 3, 170, 170), dtype=np.uint8)
    path = tmp_path / "rows.h5"
    write(path, rows=array)
    with h5py.File(path) as file:
        assert n < 12 or file["rows"].chunks[0] == 12
        found = list(hdf5.unchecked_rows(file["rows"], n_rows))
    assert [len(part) for part in found] == [min(n_rows, n - start) for start in range(0, n, n_rows)]
    assert all(np.array_equal(part, array[i * n_rows : (i + 1) * n_rows]) for i, part in enumerate(found))
