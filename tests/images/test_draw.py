"""Which images are shown: strata, seeds and lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import folder, images, photos

from simhpc import image_list
from simhpc import images as im
from simhpc.errors import ImageSourceError


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.data())
def test_selection_is_stratified_unique_and_reproducible(counts, data):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    n = data.draw(st.integers(1, len(labels)))
    chosen = im.choose(labels, n, seed=5)
    assert len(set(chosen.tolist())) == n
    assert np.all(np.diff(chosen) > 0)
    np.testing.assert_array_equal(chosen, im.choose(labels, n, seed=5))
    for label, count in enumerate(counts):
        share = n * count / len(labels)
        assert np.floor(share - 1e-9) <= np.count_nonzero(labels[chosen] == label) <= np.ceil(share + 1e-9)


def test_selection_depends_on_the_seed():
    labels = np.repeat(np.arange(10), 50).astype(np.int32)
    assert im.choose(labels, 100, seed=1).tolist() != im.choose(labels, 100, seed=2).tolist()


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99), st.data())
def test_classes_of_one_size_get_equal_shares(n_classes, count, seed, data):
    labels = np.repeat(np.arange(n_classes), count).astype(np.int32)
    per_class = data.draw(st.integers(1, count))
    chosen = im.choose(labels, per_class * n_classes, seed)
    assert np.bincount(labels[chosen]).tolist() == [per_class] * n_classes


def listed(tmp_path, text, **more):
    (tmp_path / "list.txt").write_text(text)
    spec = images(folder(tmp_path / "f"), list=str(tmp_path / "list.txt"), **more)
    source = im.open_source(spec)
    return [source.names[position] for position in im.selection(spec, source, 0)]


def test_a_list_takes_just_these_images_in_any_order(tmp_path):
    synset = photos()[6].synset
    text = f"# mine\n\nILSVRC2012_val_00000012\n  val/{synset}/ILSVRC2012_val_00000007_{synset}.JPEG\n"
    expected = ["ILSVRC2012_val_00000007", "ILSVRC2012_val_00000012"]
    assert listed(tmp_path, text, n=2) == expected
    assert listed(tmp_path, "\n".join(reversed(text.splitlines())), n=2) == expected


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("ILSVRC2012_val_00000012\n", 2, "images.n = 2, but .*list.txt names 1 images"),
        ("ILSVRC2012_val_00000112\n", 1, "'ILSVRC2012_val_00000112' is not among the images; did you mean"),
        ("ILSVRC2012_val_00000012\nILSVRC2012_val_00000012.JPEG\n", 2, "are the same image"),
        ("ILSVRC2012_val_00000012\nILSVRC2012_val_00000012\n", 2, "twice"),
        ("# nothing\n", 1, "names no image"),
    ],
)
def test_lists_that_do_not_fit(text, n, expected, tmp_path):
    with pytest.raises(ImageSourceError, match=expected):
        listed(tmp_path, text, n=n)


def test_a_list_that_cannot_be_read(tmp_path):
    with pytest.raises(ImageSourceError, match="cannot read .*none"):
        image_list.read(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ImageSourceError, match="cannot read .*binary"):
        image_list.read(tmp_path / "binary")


@given(st.lists(st.from_regex(r"[a-z0-9_/.-]{1,20}", fullmatch=True), min_size=1, unique=True), st.randoms())
def test_a_list_that_is_written_is_read_back(tmp_path_factory, names, random):
    path = tmp_path_factory.mktemp("lists") / "images.txt"
    path.write_text(image_list.text(names))
    assert image_list.read(path) == names
    shuffled = random.sample(names, len(names))
    assert image_list.sha256(shuffled) == image_list.sha256(names)
    assert image_list.sha256([*names, "another"]) != image_list.sha256(names)
