"""Averages over the few classes that can win, against averages over all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simhpc.analysis import averaging
from simhpc.errors import AnalysisError


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float16)


def slowly_right(probabilities, labels, members):
    """All classes at once; of equally likely ones the first is chosen."""
    total = np.zeros(probabilities.shape[1:])
    for member in members:
        total += probabilities[member].astype(np.float64)
    return total.argmax(axis=1) == labels


def collected(probabilities, labels, largest, block=16):
    right = probabilities.argmax(axis=2) == labels
    blocks = (probabilities[:, start : start + block] for start in range(0, probabilities.shape[1], block))
    return averaging.collect(blocks, right, labels, largest)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 2.0, 8.0]), st.sampled_from([2, 3, 40, 90]))
@settings(max_examples=40)
def test_every_average_is_right_where_that_of_all_classes_is(seed, sharpness, n_classes):
    random = np.random.default_rng(seed)
    m, n = 5, 37
    shared = random.normal(size=(1, n, n_classes))
    probabilities = softmax(sharpness * (shared + random.normal(size=(m, n, n_classes))))
    labels = random.integers(0, n_classes, n).astype(np.int32)
    labels[:20] = shared[0, :20].argmax(axis=1)
    outputs = collected(probabilities, labels, 4)
    for size in (1, 2, 3, 4):
        for members in itertools.combinations(range(m), size):
            right, unsure = outputs.judge(members)
            wrong = np.count_nonzero(right != slowly_right(probabilities, labels, members))
            assert wrong <= unsure
            assert unsure == 0 or (n_classes > 64 and sharpness < 1)


def test_where_models_are_sure_few_classes_are_kept():
    random = np.random.default_rng(0)
    logits = random.normal(size=(6, 200, 500))
    labels = random.integers(0, 500, 200).astype(np.int32)
    logits[:, np.arange(200), labels] += 12.0
    outputs = collected(softmax(logits), labels, 5)
    assert sum(group.probabilities.nbytes for group in outputs.groups) < 6 * 200 * 4 * 8
    assert sorted(np.concatenate([group.images for group in outputs.groups]).tolist()) == list(range(200))
    assert outputs.is_right([0, 3]).all()


def test_answers_that_other_classes_might_change_are_told():
    logits = np.zeros((3, 10, 300))
    logits[:, :4, 7] += 9.0  # of these images all are sure
    outputs = collected(softmax(logits), np.full(10, 7, dtype=np.int32), 3)
    right, unsure = outputs.judge([0, 1, 2])
    assert right[:4].all()
    assert unsure == 6
    assert averaging.note_of_unsure(0, 10) == []
    assert "in 6 of 10 answers of ensembles (60 %)" in averaging.note_of_unsure(unsure, 10)[0]


def test_a_hundred_members_and_no_more():
    sure = np.zeros((130, 3, 2), dtype=np.float16)
    sure[..., 1] = 1.0
    labels = np.ones(3, dtype=np.int32)
    outputs = collected(sure, labels, 127)
    assert outputs.is_right(range(127)).all()  # 127 * 2^24 is less than 2^31
    with pytest.raises(AnalysisError, match="127 members at most, not 128"):
        collected(sure, labels, 128)


def test_sums_do_not_depend_on_the_order():
    """1 + 2^-24 + 2^-24 in float32 is 1 from the left, more from the right."""
    tiny = np.float16(2**-24)
    probabilities = np.array([[[1.0, tiny]], [[tiny, 1.0]], [[tiny, tiny]], [[tiny, tiny]]], dtype=np.float16)
    outputs = collected(probabilities, np.zeros(1, dtype=np.int32), 4)
    for members in itertools.permutations(range(4)):
        assert outputs.is_right(members).all()


def test_of_some_images_only():
    random = np.random.default_rng(3)
    probabilities = softmax(2.0 * random.normal(size=(4, 50, 12)))
    labels = random.integers(0, 12, 50).astype(np.int32)
    outputs = collected(probabilities, labels, 3)
    images = np.array([40, 3, 17, 18])
    part = outputs.of(images)
    np.testing.assert_array_equal(part.is_right([0, 2, 3]), outputs.is_right([0, 2, 3])[images])
    np.testing.assert_array_equal(part.right, outputs.right[:, images])
    assert not outputs.of(np.array([], dtype=np.int64)).is_right([0]).size


def test_equal_classes_are_the_first_of_them():
    probabilities = np.array([[[0.5, 0.5, 0.0]], [[0.5, 0.5, 0.0]]], dtype=np.float16)
    for label, expected in ((0, True), (1, False), (2, False)):
        outputs = collected(probabilities, np.array([label], dtype=np.int32), 2)
        assert outputs.is_right([0, 1]).tolist() == [expected]


def test_more_members_than_it_was_collected_for_are_refused():
    outputs = collected(softmax(np.zeros((3, 4, 3))), np.zeros(4, dtype=np.int32), 2)
    with pytest.raises(AssertionError):
        outputs.is_right([0, 1, 2])
