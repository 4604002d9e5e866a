"""The plane and the tree: everything lies inside, no two names overlap, and lengths along the axis are SAT."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from simhpc.report.families import UNKNOWN, styles
from simhpc.report.page.content import Tree
from simhpc.report.page.drawings import FONT_PX, MARKS, draw_plane, draw_tree, shortened, ticks, width_px


def name_box(point):
    """By matplotlib's own layout of the text, in the widest of the page's fonts."""
    long = TextPath((0, 0), point.label, size=FONT_PX, prop=FontProperties("DejaVu Sans")).get_extents().x1
    left = point.label_x - {"start": 0, "middle": long / 2, "end": long}[point.anchor]
    return left, point.label_y - FONT_PX + 1, left + long, point.label_y + 3


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.text("abmwWM_@0123456789", min_size=1, max_size=40)),
        min_size=1,
        max_size=25,
    )
)
def test_names_that_are_shown_are_inside_and_do_not_overlap(models):
    points = np.array([[x, y] for x, y, _ in models])
    drawn = draw_plane(points, [name for *_, name in models])
    boxes = [name_box(point) for point in drawn.points]
    shown = [k for k, point in enumerate(drawn.points) if point.is_named]
    for point, (left, top, right, bottom) in zip(drawn.points, boxes, strict=True):
        assert 7 <= point.x <= drawn.width - 7
        assert 7 <= point.y <= drawn.height - 7
        assert 0 <= left <= right <= drawn.width
        assert 0 <= top <= bottom <= drawn.height
    for one, other in itertools.combinations(shown, 2):
        assert not overlap(boxes[one], boxes[other])
    for own in shown:
        for point in drawn.points:  # its own mark too
            assert not overlap(boxes[own], (point.x - 6, point.y - 6, point.x + 6, point.y + 6))


def test_letters_the_font_does_not_have_are_wide():
    assert width_px("名前") >= 2 * FONT_PX
    assert width_px("mW") > width_px("il") > 0


def test_the_plane_keeps_ratios_of_distances():
    points = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, -0.5]])
    drawn = draw_plane(points, list("abcd"))
    pixels = np.array([[point.x, -point.y] for point in drawn.points])
    expected = np.linalg.norm(points[:, None] - points, axis=-1)
    got = np.linalg.norm(pixels[:, None] - pixels, axis=-1)
    scale = got[0, 1] / expected[0, 1]
    np.testing.assert_allclose(got, scale * expected, atol=0.3)
    assert scale > 100
    assert drawn.points[2].y < drawn.points[0].y  # up is up


def test_points_that_coincide_keep_one_name_each_side():
    drawn = draw_plane(np.zeros((6, 2)), ["model"] * 6)
    assert [point.is_named for point in drawn.points].count(True) <= 4


def tree_of(distances, names, sat_at_height_0=3.5):
    linkage = hierarchy.linkage(squareform(distances), method="average")
    return Tree(names, linkage.tolist(), sat_at_height_0)


def test_branches_join_at_their_sat():
    """a and b at SAT 3.0, c with both at SAT 2.0, by hand."""
    distances = np.array([[0.0, 0.5, 1.5], [0.5, 0.0, 1.5], [1.5, 1.5, 0.0]])
    drawn = draw_tree(tree_of(distances, ["a", "b", "c"]))
    at = {float(text): place for place, text in drawn.ticks}
    joins = sorted(min(float(pair.split(",")[0]) for pair in branch[1:].split("L")) for branch in drawn.branches)
    assert joins == pytest.approx([at[2.0], at[3.0]], abs=0.15)
    assert sorted(leaf.label for leaf in drawn.leaves) == ["a", "b", "c"]
    assert {leaf.position for leaf in drawn.leaves} == {0, 1, 2}
    ends = {float(pair.split(",")[1]) for branch in drawn.branches for pair in branch[1:].split("L")}
    assert {leaf.y for leaf in drawn.leaves} <= ends


@pytest.mark.parametrize("n", [2, 3, 30, 31, 69])
def test_the_tree_lies_inside(n):
    random = np.random.default_rng(n).uniform(0.1, 2.0, (n, n))
    distances = np.triu(random, 1) + np.triu(random, 1).T
    drawn = draw_tree(tree_of(distances, [f"{'long_' * 9}{k}" for k in range(n)]))
    assert len(drawn.branches) == n - 1
    assert len(drawn.leaves) == n
    for branch in drawn.branches:
        for pair in branch[1:].split("L"):
            x, y = map(float, pair.split(","))
            assert 0 <= x <= drawn.leaves_x
            assert 0 <= y <= drawn.axis_y
    gaps = np.diff(sorted(leaf.y for leaf in drawn.leaves))
    assert (gaps >= FONT_PX + 2).all()
    assert all(len(leaf.label) <= 26 for leaf in drawn.leaves)


def test_all_models_equally_alike_is_a_tree_too():
    drawn = draw_tree(tree_of(np.zeros((3, 3)), ["a", "b", "c"]))
    assert all(np.isfinite(place) for place, _ in drawn.ticks)


@given(st.floats(-5, 5), st.floats(0.001, 10))
def test_ticks_are_round_inside_and_a_few(low, span):
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 8
    values = [value for value, _ in found]
    assert low - 1e-6 <= values[0]
    assert values[-1] <= low + span + 1e-6
    np.testing.assert_allclose(np.diff(values), values[1] - values[0])
    # What is written is what is meant.
    np.testing.assert_allclose([float(text) for _, text in found], values, atol=1e-9)


def test_ticks_of_one_value():
    assert ticks(2.0, 2.0) == [(2.0, "2.00")]


def test_long_names_are_cut_with_a_sign_of_it():
    assert shortened("a" * 26) == "a" * 26
    assert shortened("a" * 27) == "a" * 25 + "…"


def test_every_marker_of_a_family_has_an_outline():
    used = {look.marker for look in styles([*(f"family {k}" for k in range(42)), UNKNOWN]).values()}
    assert used == set(MARKS)
