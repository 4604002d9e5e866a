"""The plane: distances of points come back, planted groups stay apart, and odd input gives points, not errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import pdist, squareform

from simhpc.analysis.clusters import distances
from simhpc.analysis.mds import plane

coordinates = st.floats(-10, 10).map(lambda value: round(value, 3))


def between(points):
    return squareform(pdist(points))


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=coordinates))
def test_distances_of_points_in_the_plane_come_back(points):
    found = plane(between(points))
    np.testing.assert_allclose(between(found.points), between(points), atol=1e-5)
    np.testing.assert_allclose(found.points.mean(axis=0), 0.0, atol=1e-6)
    first, second = (found.points**2).sum(axis=0)
    assert first >= second - 1e-9
    if between(points).any():
        assert found.share == pytest.approx(1.0, abs=1e-6)


def test_of_points_in_space_it_is_the_principal_components():
    """Gower 1966: of Euclidean distances, classical scaling is principal component analysis."""
    points = np.random.default_rng(0).normal(0, (3.0, 2.0, 1.0), (30, 3))
    points -= points.mean(axis=0)
    found = plane(between(points))
    left, sizes, _ = np.linalg.svd(points, full_matrices=False)
    expected = left[:, :2] * sizes[:2]
    np.testing.assert_allclose(np.abs(found.points), np.abs(expected), atol=1e-8)
    assert found.share == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum())


def test_planted_groups_stay_apart():
    group = np.repeat([0, 1, 2], 6)
    noise = np.random.default_rng(1).normal(0, 0.2, (18, 18))
    similarity = np.where(group[:, None] == group, 3.5, 1.0) + (noise + noise.T) / 2
    points = plane(distances(similarity)).points
    centres = np.array([points[group == g].mean(axis=0) for g in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(axis=1)
    assert nearest.tolist() == group.tolist()
    radius = max(np.linalg.norm(points[group == g] - centres[g], axis=1).max() for g in range(3))
    assert radius < 0.5 * pdist(centres).min()


def test_equal_distances_have_no_plane_and_the_share_says_so():
    """Ten models all equally far apart need nine dimensions, all alike: the two drawn are 2 of 9."""
    found = plane(1.0 - np.eye(10))
    assert found.share == pytest.approx(2 / 9)


def test_signs_are_decided_by_the_first_largest_entry():
    points = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    np.testing.assert_allclose(plane(between(points)).points, [[3, 0], [-3, 0], [0, 1], [0, -1]], atol=1e-9)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_and_equal_models_are_points_all_the_same(n):
    found = plane(np.zeros((n, n)))
    np.testing.assert_array_equal(found.points, np.zeros((n, 2)))
    assert np.isnan(found.share)


def test_two_models_lie_on_a_line():
    found = plane(np.array([[0.0, 3.0], [3.0, 0.0]]))
    np.testing.assert_allclose(found.points, [[1.5, 0.0], [-1.5, 0.0]])
    assert found.share == pytest.approx(1.0)


def test_distances_of_no_points_are_not_called_exact():
    """a-b and b-c are near, a-c is far: the triangle inequality fails, an eigenvalue is negative."""
    found = plane(np.array([[0.0, 1.0, 5.0], [1.0, 0.0, 1.0], [5.0, 1.0, 0.0]]))
    assert found.share < 0.9
    assert found.points[:, 1].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-9)
