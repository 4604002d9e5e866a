"""From classes to class indices, and ImageNet's order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simhpc.errors import ImageSourceError
from simhpc.images import labels
from simhpc.images.labels import class_indices, class_names, imagenet_synsets, is_all_of_imagenet

# Class indices that every model of torchvision and timm agrees on.
KNOWN = {"n01440764": 0, "n02099601": 207, "n02123045": 281, "n02391049": 340, "n15075141": 999}


def test_timms_order_is_imagenets():
    assert {synset: imagenet_synsets().index(synset) for synset in KNOWN} == KNOWN
    assert len(set(imagenet_synsets())) == 1000


@given(st.sets(st.integers(0, 999), min_size=1, max_size=20))
def test_any_subset_of_synsets_gets_the_indices_of_the_whole(indices):
    synsets = [imagenet_synsets()[index] for index in indices]
    found = class_indices(synsets, "imagenet", "x", in_class_folders=True)
    assert found == {imagenet_synsets()[index]: index for index in indices}
    assert class_names(found, "imagenet") == imagenet_synsets()


def test_sorted_is_right_for_all_of_imagenet_and_refused_for_a_part():
    every = class_indices(reversed(imagenet_synsets()), "sorted", "x", in_class_folders=True)
    assert [every[synset] for synset in imagenet_synsets()] == list(range(1000))
    with pytest.raises(
        ImageSourceError, match="2 of ImageNet's 1,000 classes.* n15075141 is class 999. Use .*'imagenet'"
    ):
        class_indices(["n15075141", "n01440764"], "sorted", "x", in_class_folders=True)
    # Synsets of other data sets, and folders of any other name, are sorted as ever.
    assert class_indices(["n00000002", "n00000001"], "sorted", "x", in_class_folders=True) == {
        "n00000001": 0,
        "n00000002": 1,
    }


def test_sorted_is_refused_should_timms_order_ever_be_another(monkeypatch):
    synsets = list(imagenet_synsets())
    monkeypatch.setattr(labels, "imagenet_synsets", lambda: synsets[::-1])
    with pytest.raises(ImageSourceError, match="not in timm's order: use images.labels = 'imagenet'"):
        class_indices(synsets, "sorted", "x", in_class_folders=True)


@pytest.mark.parametrize(
    ("classes", "how", "expected"),
    [
        (["n01440764", "n01440765"], "imagenet", "'n01440765' is none of ImageNet's synsets; did you mean"),
        (["cat"], "imagenet", "'cat' is none of ImageNet's synsets; use 'index'"),
        (["7"], "imagenet", "'7' is none of ImageNet's synsets; use 'index'"),
        (["n01440764"], "index", "n01440764 is no class index; use 'imagenet' for synsets"),
        (["7", "07"], "index", "have the same class index 7"),
        (["n01440764"], "sorted", "'sorted' numbers class folders, and there are none; use 'imagenet'"),
    ],
)
def test_labels_that_do_not_suit_the_classes(classes, how, expected):
    with pytest.raises(ImageSourceError, match=expected):
        class_indices(classes, how, "x")


EVERY = np.arange(1000, dtype=np.int32)


@pytest.mark.parametrize(
    ("classes", "shown", "expected"),
    [
        (imagenet_synsets(), EVERY, True),
        (imagenet_synsets(), np.repeat(EVERY[::-1], 2), True),
        # A permuted label map is what the expectation is there to find.
        (imagenet_synsets()[::-1], EVERY, True),
        ([str(index) for index in range(1000)], EVERY, True),
        # Under labels = "imagenet", a source of ten classes names all thousand.
        (imagenet_synsets(), EVERY[:10], False),
        (imagenet_synsets(), EVERY[1:], False),
        ([f"n{number:08d}" for number in range(1000)], EVERY, False),
        ([f"bird {number}" for number in range(1000)], EVERY, False),
        ([str(index) for index in range(1001)], np.arange(1001, dtype=np.int32), False),
        ([str(index) for index in range(10)], EVERY[:10], False),
    ],
)
def test_what_all_of_imagenet_is(classes, shown, expected):
    assert is_all_of_imagenet(classes, shown.astype(np.int32)) is expected
