"""Clusters: planted ones are found, the embedding is scikit-learn's, and odd matrices are told for what they are."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from sklearn.cluster import SpectralClustering
from sklearn.manifold import spectral_embedding
from sklearn.metrics import adjusted_rand_score

from simhpc.analysis import clusters as c
from simhpc.errors import AnalysisError

FEW = c.Settings(runs=20, most=8)


def blocks(sizes, inside=3.5, outside=1.5, noise=0.2, seed=0):
    """A matrix of planted clusters, and whose each model is (from 1, as numbered)."""
    group = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    random = np.random.default_rng(seed)
    matrix = np.where(group[:, None] == group, inside, outside) + random.normal(0, noise, (len(group), len(group)))
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 4.6)
    return matrix, group


@pytest.mark.parametrize("sizes", [(5, 4), (7, 5, 4), (8, 6, 5, 4, 3)])
@pytest.mark.parametrize("is_given", [True, False])
def test_planted_clusters_are_found_surely(sizes, is_given):
    matrix, group = blocks(sizes)
    found = c.clusters(matrix, replace(FEW, k=len(sizes) if is_given else None))
    assert found.labels.tolist() == group.tolist()
    assert found.stability.tolist() == [1.0] * len(group)
    np.testing.assert_array_equal(found.coassignment, (group[:, None] == group).astype(float))
    assert found.k_by_silhouette == len(sizes)
    assert found.notes == []
    assert found.kept.tolist() == list(range(len(group)))
    assert [choice.k for choice in found.choices] == list(range(2, min(8, len(group) - 1) + 1))


def test_labels_and_embedding_are_those_of_scikit_learn():
    matrix, group = blocks((8, 6, 5, 4), noise=0.5, seed=2)
    found = c.clusters(matrix, replace(FEW, k=4))
    theirs = SpectralClustering(n_clusters=4, affinity="precomputed", random_state=0).fit(c.affinity(matrix))
    assert adjusted_rand_score(theirs.labels_, found.labels) == 1.0
    assert adjusted_rand_score(group, found.labels) == 1.0
    weights = c.affinity(matrix)
    values, vectors = c.spectrum(weights)
    # Theirs are divided by the root of the degree.
    expected = spectral_embedding(weights, n_components=4, drop_first=False, random_state=0)
    expected *= np.sqrt(weights.sum(axis=1, keepdims=True))
    expected /= np.linalg.norm(expected, axis=0)
    np.testing.assert_allclose(np.abs((expected * vectors[:, :4]).sum(axis=0)), 1.0, atol=1e-6)
    assert values[0] == pytest.approx(1.0)
    assert (np.diff(values) <= 1e-12).all()
    np.testing.assert_allclose(np.linalg.norm(c.embedding(vectors, 4), axis=1), 1.0)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_the_order_of_models_does_not_matter(seed):
    matrix, _ = blocks((6, 4, 3), noise=0.3)
    whole = c.clusters(matrix, replace(FEW, k=3, runs=5))
    order = np.random.default_rng(seed).permutation(13)
    found = c.clusters(matrix[np.ix_(order, order)], replace(FEW, k=3, runs=5))
    assert found.labels.tolist() == whole.labels[order].tolist()
    np.testing.assert_array_equal(found.stability, whole.stability[order])
    heights = [hierarchy.cophenet(each.tree) for each in (whole, found)]
    np.testing.assert_allclose(np.sort(heights[0]), np.sort(heights[1]))
    for one, two in zip(whole.choices, found.choices, strict=True):
        assert one.eigengap == pytest.approx(two.eigengap, abs=1e-9)


def test_clusters_that_are_not_there_are_known_to_be_unsure():
    matrix, _ = blocks((8, 8))
    assert c.clusters(matrix, replace(FEW, k=2)).stability.min() == 1.0
    assert c.clusters(matrix, replace(FEW, k=5, starts=1)).stability.mean() < 0.9
    random = np.random.default_rng(0)
    noise = random.normal(3, 0.5, (20, 20))
    assert c.clusters((noise + noise.T) / 2, replace(FEW, k=6)).stability.mean() < 0.9


def noise(n, seed, level=0.0):
    """Pairs that differ by chance alone, and models that are more or less alike to all others."""
    random = np.random.default_rng(seed)
    matrix, own = np.triu(random.normal(3, 0.3, (n, n)), 1), random.normal(0, level, n)
    return matrix + matrix.T + own + own[:, None]


@pytest.mark.parametrize(
    ("sizes", "inside", "outside"),
    [
        ((6, 6), 3.5, 1.5),
        ((5, 4, 4), 3.5, 1.5),
        ((20, 15, 10), 3.2, 2.8),
        (12 * (5,), 3.0, 2.5),
        ((5, 4, 3), 1.0, -1.0),
    ],
)
def test_groups_that_are_there_are_told_from_chance(sizes, inside, outside):
    matrix, _ = blocks(sizes, inside, outside)
    level = np.random.default_rng(1).normal(0, 0.5, len(matrix))
    assert c.chance(matrix, FEW) == c.chance(matrix + level + level[:, None], FEW) == 0.01


@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_groups_of_noise_are_called_chance_as_often_as_p_says(n, level):
    p_values = np.array([c.chance(noise(n, seed, level), replace(FEW, seed=1000 + seed)) for seed in range(150)])
    for share in (0.05, 0.25, 0.5):
        # More than 3.5 standard deviations of the binomial off would be an accident of one in 2,000.
        assert np.mean(p_values <= share) == pytest.approx(share, abs=3.5 * np.sqrt(share * (1 - share) / 150))


def test_noise_on_which_k_means_agrees_is_called_chance():
    """That runs agree says nothing of that."""
    found = [c.clusters(noise(40, seed), c.Settings(k=2, most=2, runs=10, seed=1000 + seed)) for seed in range(6)]
    assert sum(each.stability.min() == 1.0 for each in found) >= 2
    for each in found:
        assert any("may be chance" in note for note in each.notes) == (each.p_value > 0.05)
    assert sum(each.p_value > 0.05 for each in found) >= 4


@pytest.mark.parametrize("n", [3, 4, 9])
def test_levels_are_those_of_least_squares_and_triples_are_counted(n):
    matrix = noise(n, n, level=0.5)
    pairs = list(itertools.combinations(range(n), 2))
    design = np.array([[1.0, *((m == a) + (m == b) for m in range(n))] for a, b in pairs])
    target = np.array([matrix[pair] for pair in pairs])
    residuals = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
    left = c.without_levels(matrix)
    np.testing.assert_allclose([left[pair] for pair in pairs], residuals, atol=1e-12)
    np.testing.assert_allclose(left, left.T, atol=1e-12)
    triples = sum(left[i, j] * left[j, k] * left[k, i] for i, j, k in itertools.product(range(n), repeat=3))
    length = np.sqrt((left**2).sum())
    assert c.transitivity(left) == pytest.approx(triples / length**3 if n > 3 else 0.0)


@given(st.data())
def test_stability_equals_counting_one_by_one(data):
    n = data.draw(st.integers(2, 7))
    runs = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=1, max_size=4))
    together = np.mean([[[a == b for b in run] for a in run] for run in runs], axis=0)
    labels = np.array(data.draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)))
    stability = c.stabilities(together, labels)
    for i in range(n):
        shares = {}
        for group in set(labels.tolist()):
            others = [j for j in range(n) if labels[j] == group and j != i]
            if others:
                shares[group] = sum(together[i, j] for j in others) / len(others)
        inside = shares.pop(int(labels[i]), 1.0)
        assert stability[i] == pytest.approx(min(inside, 1.0 - max(shares.values(), default=0.0)))
        assert -1e-12 <= stability[i] <= 1.0 + 1e-12


def test_consensus_is_what_most_runs_say():
    runs = [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 1, 1, 1], [2, 2, 2, 0, 0]]
    together = np.mean([np.equal.outer(run, run) for run in runs], axis=0)
    assert c.consensus(together, 2).tolist() == [1, 1, 1, 2, 2]
    assert c.consensus(together, 5).tolist() == [1, 2, 3, 4, 5]


def test_clusters_are_numbered_by_size_then_by_their_first_model():
    assert c.numbered(np.array([7, 0, 0, 3, 3, 7, 9])).tolist() == [1, 2, 2, 3, 3, 1, 4]
    assert c.numbered(np.array([7, 0, 0, 3, 3, 3])).tolist() == [3, 2, 2, 1, 1, 1]


def test_branches_of_the_tree_join_at_the_mean_of_their_pairs():
    matrix, group = blocks((4, 3))
    found = c.clusters(matrix, replace(FEW, k=2))
    between = matrix[np.ix_(group == 1, group == 2)].mean()
    assert found.height_at_zero - found.tree[-1, 2] == pytest.approx(between)
    assert found.height_at_zero == matrix[np.triu_indices(7, 1)].max()


def test_negative_similarities_count_as_none():
    matrix, group = blocks((5, 4), outside=-1.0)
    found = c.clusters(matrix, FEW)
    assert found.labels.tolist() == group.tolist()
    assert found.n_clipped == 20
    assert "20 pair(s) of negative similarity" in found.notes[0]
    assert "2 parts" in found.notes[1]


def test_parts_without_anything_in_common():
    matrix, group = blocks((5, 4, 3), outside=0.0, noise=0.0)
    found = c.clusters(matrix, FEW)
    assert found.labels.tolist() == group.tolist()
    assert found.k_by_eigengap == found.k_by_silhouette == 3
    assert found.notes == ["the models fall into 3 parts with no similarity above 0 between them"]
    found = c.clusters(matrix, replace(FEW, k=2))
    assert "more than 2 clusters" in found.notes[1]
    assert sorted(set(found.labels.tolist())) == [1, 2]


def test_a_model_that_is_like_no_other_is_a_cluster_of_its_own():
    matrix, _ = blocks((5, 4, 1), outside=1.0)
    matrix[9, :9] = matrix[:9, 9] = 0.0
    found = c.clusters(matrix, replace(FEW, k=3))
    assert found.labels.tolist() == [1] * 5 + [2] * 4 + [3]
    assert np.isfinite(found.stability).all()


@pytest.mark.parametrize("value", [3.0, 0.0, -1.0])
def test_where_all_are_equally_alike_there_is_one_cluster(value):
    for k in (None, 3):
        found = c.clusters(np.full((6, 6), value), replace(FEW, k=k))
        assert found.labels.tolist() == [1] * 6
        assert any("nothing to tell clusters by" in note for note in found.notes)
        assert np.isnan(found.p_value)
        assert found.tree.shape == (5, 4)


def test_models_with_unknown_similarities_are_left_out():
    matrix, group = blocks((5, 4, 3))
    matrix[2] = matrix[:, 2] = np.nan
    matrix[7, 8] = matrix[8, 7] = np.nan  # one of the two is enough
    matrix[0, 0] = np.nan  # the diagonal is not needed
    found = c.clusters(matrix, replace(FEW, k=3))
    assert found.left_out.tolist() == [2, 8]
    assert found.kept.tolist() == [0, 1, 3, 4, 5, 6, 7, 9, 10, 11]
    assert adjusted_rand_score(group[found.kept], found.labels) == 1.0
    assert np.isfinite(found.coassignment).all()


def test_what_cannot_be_clustered_is_said():
    matrix, _ = blocks((3, 2))
    with pytest.raises(AnalysisError, match="it takes 3 models whose similarities are all known, there are 2"):
        c.clusters(matrix[:2, :2], FEW)
    with pytest.raises(AnalysisError, match="5 models can be put in 2 to 4 clusters, not in 5"):
        c.clusters(matrix, replace(FEW, k=5))
    with pytest.raises(AnalysisError, match="there are 1"):
        c.clusters(np.full((4, 4), np.nan), FEW)


def test_three_models():
    matrix = np.array([[4.6, 3.0, 1.0], [3.0, 4.6, 1.1], [1.0, 1.1, 4.6]])
    found = c.clusters(matrix, FEW)
    assert found.labels.tolist() == [1, 1, 2]
    assert found.stability.tolist() == [1.0, 1.0, 1.0]


def test_the_matrix_that_was_given_stays_as_it_is():
    matrix, _ = blocks((4, 3))
    before = matrix.copy()
    c.clusters(matrix, FEW)
    np.testing.assert_array_equal(matrix, before)


def test_words_that_set_clusters_apart_by_hand():
    labels = np.array([1, 1, 1, 2, 2, 3])
    values = [["CNN", "Yes"], ["CNN", "Yes"], ["Hybrid", "Yes"], ["ViT", "Yes"], ["ViT", "No"], ["Hybrid", "Yes"]]
    found = c.distinctive(labels, values, ["Base", "Norm"])
    words = {(word.cluster, word.component, word.value): word for word in found}
    assert words[1, "Base", "CNN"].tf_idf == pytest.approx(2 / 3 * np.log(3 / 1))
    assert words[1, "Base", "Hybrid"].tf_idf == pytest.approx(1 / 3 * np.log(3 / 2))
    assert words[3, "Base", "Hybrid"].tf_idf == pytest.approx(np.log(3 / 2))
    assert words[2, "Base", "ViT"].tf_idf == pytest.approx(np.log(3))
    assert words[2, "Norm", "No"].tf_idf == pytest.approx(0.5 * np.log(3))
    assert words[1, "Norm", "Yes"].tf_idf == 0.0  # in all three
    assert words[1, "Base", "Hybrid"].share_elsewhere == pytest.approx(1 / 3)
    assert (2, "Base", "CNN") not in words
    assert [word.cluster for word in found] == sorted(word.cluster for word in found)
    for one, two in itertools.pairwise(found):
        assert one.cluster < two.cluster or one.tf_idf >= two.tf_idf


def test_words_of_a_single_cluster_set_nothing_apart():
    (word,) = c.distinctive(np.array([1, 1]), [["CNN"], ["CNN"]], ["Base"])
    assert (word.share, word.tf_idf) == (1.0, 0.0)
    assert np.isnan(word.share_elsewhere)


def test_fewer_different_models_than_clusters_is_no_warning(recwarn):
    group = np.repeat([0, 1], 3)
    # How equal models are split is chance, and may be the same in every run.
    found = c.clusters(np.where(group[:, None] == group, 4.0, 0.0), replace(FEW, k=4, runs=3))
    labels = c.k_means(np.repeat(np.eye(2), 3, axis=0), 4, starts=2, seed=0)
    assert not recwarn.list
    assert not set(found.labels[:3]) & set(found.labels[3:])
    assert len(set(labels)) == 2
