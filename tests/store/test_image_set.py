"""`images.h5`: its identity, and files that are not what this version writes."""

from __future__ import annotations

import hashlib

import h5py
import numpy as np
import pytest
from damage import reseal

from simhpc.errors import BadFileError
from simhpc.store import image_set
from simhpc.store.image_set import ImageSet


def small() -> ImageSet:
    return ImageSet(
        images=np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4),
        labels=np.array([1, 0], dtype=np.int32),
        ids=["a", "b"],
        content_ids=["1-x", "2-y"],
        classes=["cat", "dog"],
        source="folder:/x",
        settings_sha256="h",
    )


def test_what_is_saved_is_loaded(tmp_path):
    small().save(tmp_path / "images.h5")
    found = image_set.load(tmp_path / "images.h5")
    np.testing.assert_array_equal(found.images, small().images)
    assert (found.ids, found.classes, found.num_classes) == (["a", "b"], ["cat", "dog"], 2)
    assert found.sha256 == image_set.identity(tmp_path / "images.h5")


def test_the_identity_is_as_docs_formats_says(tmp_path):
    small().save(tmp_path / "images.h5")
    with h5py.File(tmp_path / "images.h5") as file:
        lines = [f"{name} {file[name].attrs['sha256']}" for name in ("ids", "images", "labels")]
    assert image_set.identity(tmp_path / "images.h5") == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_a_file_without_images_has_no_identity(tmp_path):
    small().save(tmp_path / "images.h5")
    with h5py.File(tmp_path / "images.h5", "r+") as file:
        del file["labels"]
    reseal(tmp_path / "images.h5")
    with pytest.raises(BadFileError, match=r"images\.h5 cannot be read"):
        image_set.identity(tmp_path / "images.h5")


def test_files_of_the_first_version_are_refused_by_name(tmp_path):
    small().save(tmp_path / "images.h5")
    with h5py.File(tmp_path / "images.h5", "r+") as file:
        file.attrs["format_version"] = 1
    reseal(tmp_path / "images.h5")
    for read in (image_set.load, image_set.identity):
        with pytest.raises(BadFileError, match=r"images\.h5: simhpc-images version 1; .* reads version 2"):
            read(tmp_path / "images.h5")


@pytest.mark.parametrize("positions", [[], [1], [0, 1], [1, 0, 1]])
def test_some_images_are_those_of_all(tmp_path, positions):
    small().save(tmp_path / "images.h5")
    some, whole = image_set.load_some(tmp_path / "images.h5", positions), image_set.load(tmp_path / "images.h5")
    np.testing.assert_array_equal(some.images, whole.images[positions])
    np.testing.assert_array_equal(some.labels, whole.labels[positions])
    assert some.ids == [whole.ids[k] for k in positions]
    assert some.content_ids == [whole.content_ids[k] for k in positions]
    assert (some.classes, some.source, some.sha256) == (whole.classes, whole.source, whole.sha256)
    np.testing.assert_array_equal(image_set.load_labels(tmp_path / "images.h5"), whole.labels)


@pytest.mark.parametrize("positions", [[2], [0, -1]])
def test_rows_that_there_are_not(tmp_path, positions):
    small().save(tmp_path / "images.h5")
    with pytest.raises(BadFileError, match="'images' has 2 rows"):
        image_set.load_some(tmp_path / "images.h5", positions)


def test_a_flipped_bit_in_a_row_that_is_read_is_an_error(tmp_path):
    """Rows are read without the checksum of the whole: that of their chunk must do."""
    path = tmp_path / "images.h5"
    small().save(path)
    content = bytearray(path.read_bytes())
    position = content.index(small().images[1].tobytes())
    content[position + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=r"images\.h5 cannot be read"):
        image_set.load_some(path, [1])
