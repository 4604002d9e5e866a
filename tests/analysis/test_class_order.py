from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simhpc.analysis.class_order import best_reordering, reordering_by_chance

ANSWERS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30)


@given(ANSWERS)
def test_equals_the_best_of_all_renamings(pairs):
    predicted, labels = np.array(pairs, dtype=np.int32).T
    tried = (
        np.mean([renamed[answer] == label for answer, label in pairs]) for renamed in itertools.permutations(range(5))
    )
    assert best_reordering(predicted, labels) == pytest.approx(max(tried))


@given(ANSWERS, st.permutations(range(5)))
def test_no_renaming_changes_it(pairs, renamed):
    predicted, labels = np.array(pairs, dtype=np.int32).T
    assert best_reordering(np.array(renamed)[predicted], labels) == best_reordering(predicted, labels)


def test_it_tells_a_permuted_label_map_from_guessing_with_few_images_per_class():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(200), 5).astype(np.int32)
    right = np.where(random.random(1000) < 0.7, labels, random.integers(0, 200, 1000)).astype(np.int32)
    permuted = random.permutation(200).astype(np.int32)[right]
    assert best_reordering(permuted, labels) >= (right == labels).mean() > 0.6
    assert reordering_by_chance(permuted, labels) < 0.45
    guessed = random.integers(0, 200, 1000).astype(np.int32)
    assert abs(best_reordering(guessed, labels) - reordering_by_chance(guessed, labels)) < 0.05
