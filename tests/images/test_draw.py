"""Which images are shown: strata, seeds and lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import folder, images, photos, write_file

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


_NAMES = st.text(st.characters(), max_size=9) | st.from_regex(r"[#\\ a-z0-9_/.-]{1,9}", fullmatch=True)


@given(st.lists(_NAMES.filter(image_list.is_listable), min_size=1, unique=True), st.randoms())
def test_a_list_that_is_written_is_read_back(tmp_path_factory, names, random):
    path = tmp_path_factory.mktemp("lists") / "images.txt"
    path.write_text(image_list.text(names), encoding="utf-8")
    assert image_list.read(path) == names
    shuffled = random.sample(names, len(names))
    assert image_list.sha256(shuffled) == image_list.sha256(names)
    assert image_list.sha256([*names, "another"]) != image_list.sha256(names)


def test_a_run_of_images_with_odd_names_is_repeated_from_its_list(tmp_path):
    names = ["#1", "# 2", "\\#3", "é ü", "5"]
    for number, name in enumerate(names):
        write_file(tmp_path / "f" / "a" / f"{name}.jpg", photos()[number].jpeg)
    spec = images({"source": f"folder:{tmp_path / 'f'}"}, n=5)
    ids = [im.open_source(spec).names[position] for position in im.selection(spec, im.open_source(spec), 0)]
    assert sorted(ids) == sorted(names)
    write_file(tmp_path / "images.txt", image_list.text(ids))
    listed = images({"source": f"folder:{tmp_path / 'f'}"}, n=5, list=str(tmp_path / "images.txt"))
    assert im.selection(listed, im.open_source(listed), 0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "name", ["a\nb", "a\rb", "a\tb", " a", "a ", "a\u2028b", "a\x85b", "a\x1cb", "a\udcffb", "\u3000a"]
)
def test_names_that_no_list_can_hold_are_refused_when_the_source_is_opened(name, tmp_path):
    write_file(tmp_path / "f" / "a" / f"{name}.jpg", photos()[0].jpeg)
    with pytest.raises(ImageSourceError, match="an image is called '.*': a name with control characters"):
        im.open_source(images({"source": f"folder:{tmp_path / 'f'}"}))
