"""What images are called, and how they are found again under the name of another layout."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simhpc.errors import ImageSourceError
from simhpc.images.names import canonical_names, find, stem


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("val/n01751748/ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000001"),
        ("ILSVRC2012_val_00000001_n01751748.JPEG", "ILSVRC2012_val_00000001"),
        ("ILSVRC2012_val_00000001", "ILSVRC2012_val_00000001"),
        ("n01440764_10026.JPEG", "n01440764_10026"),
        ("n01440764_10026_n01440764.JPEG", "n01440764_10026"),
        ("_n01440764.jpg", "_n01440764"),
        ("n01440764.jpg", "n01440764"),
        ("a.b.png", "a.b"),
        ("v1.5", "v1.5"),
    ],
)
def test_stems(path, expected):
    assert stem(path) == expected


def test_names_are_as_short_as_they_can_be():
    assert canonical_names(["a/0.png", "b/1.jpg"], "x") == ["0", "1"]
    assert canonical_names(["a/0.png", "b/0.png"], "x") == ["a/0", "b/0"]
    assert canonical_names(["a/0.png", "a/0.jpg"], "x") == ["a/0.png", "a/0.jpg"]
    with pytest.raises(ImageSourceError, match="x: two images are called a/0.png"):
        canonical_names(["a/0.png", "a/0.png"], "x")


def test_a_path_finds_its_image_where_stems_are_not_unique():
    names = ["0/1", "1/1", "1/2"]
    assert find(["0/1.png", "val/1/1.JPEG", "./1/2"], names, "list") == [0, 1, 2]
    endings = ["v/a/0.jpg", "v/a/0.png", "v/b/0.png"]
    assert find(["a/0.png", "x/v/a/0.jpg", "b/0"], endings, "list") == [1, 0, 2]
    with pytest.raises(ImageSourceError, match="list: 'a/0' may be any of 2 images: 'v/a/0.jpg', 'v/a/0.png'"):
        find(["a/0"], endings, "list")


@given(st.lists(st.from_regex(r"[ab]/[ab]/[01]\.(png|jpg)", fullmatch=True), min_size=1, unique=True))
def test_full_paths_always_find_their_images(paths):
    names = canonical_names(paths, "x")
    assert find(paths, names, "list") == list(range(len(paths)))
    assert find([f"imagenet/{path}" for path in paths], names, "list") == list(range(len(paths)))


_PATHS = st.lists(st.from_regex(r"[ab]/[01_.n]{1,3}(\\.png|\\.JPEG)?", fullmatch=True), min_size=1, unique=True)


@given(_PATHS)
def test_names_are_unique_and_find_their_images(paths):
    names = canonical_names(paths, "x")
    assert len(set(names)) == len(paths)
    assert find(names, names, "list") == list(range(len(names)))


def test_what_is_missing_or_ambiguous_is_named():
    names = ["a/0", "b/0", "b/1"]
    assert find(["b/0", "x/1.png"], names, "list") == [1, 2]
    with pytest.raises(ImageSourceError, match="list: '0' may be any of 2 images: 'a/0', 'b/0'"):
        find(["0"], names, "list")
    with pytest.raises(ImageSourceError, match="list: 'b/2' is not among the images; did you mean 'b/1'"):
        find(["b/2"], names, "list")
    with pytest.raises(ImageSourceError, match="list: '1' and 'b/1' are the same image, 'b/1'"):
        find(["1", "b/1"], names, "list")
    with pytest.raises(ImageSourceError, match="they are called like '0'"):
        find(["x"], [str(number) for number in range(20_000)], "list")
