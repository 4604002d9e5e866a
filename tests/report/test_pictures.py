"""Pictures of attacked images: pixels as they are, differences around grey, never cut off."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from PIL import Image

from simhpc.report.page import pictures

images = hnp.arrays(np.uint8, (3, 5, 5))


def decoded(uri):
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).transpose(2, 0, 1)


@settings(max_examples=20)
@given(images)
def test_a_png_has_the_pixels(image):
    np.testing.assert_array_equal(decoded(pictures.png(image, 1)), image)


@pytest.mark.parametrize(
    ("side", "step", "shown"), [(8, 1, 8), (112, 1, 112), (113, 2, 57), (224, 2, 112), (299, 3, 100)]
)
def test_large_pictures_are_every_so_many_pixels_of_it(side, step, shown):
    image = np.random.default_rng(0).integers(0, 256, (3, side, side)).astype(np.uint8)
    assert pictures.step_of(side) == step
    found = decoded(pictures.png(image, pictures.step_of(side)))
    assert found.shape == (3, shown, shown)
    np.testing.assert_array_equal(found, image[:, ::step, ::step])


@settings(max_examples=50)
@given(images, images)
def test_differences_are_magnified_as_far_as_they_fit(clean, attacked):
    difference = pictures.difference(clean, attacked)
    factor = pictures.magnification([difference])
    largest = np.abs(difference).max()
    assert factor >= 1
    assert factor == 1 or factor * largest <= 127 < (factor + 1) * largest or largest == 0
    shown = pictures.shown_difference(difference, factor).astype(int)
    inside = np.abs(difference) <= 127
    np.testing.assert_array_equal(shown[inside], 128 + factor * difference[inside])


@pytest.mark.parametrize(("eps", "factor"), [(1, 127), (8, 15), (32, 3), (127, 1), (255, 1)])
def test_the_factor_by_hand(eps, factor):
    assert pictures.magnification([np.array([[[-eps]], [[0]], [[eps]]], dtype=np.int16)]) == factor


def test_nothing_that_differs_is_grey():
    none = np.zeros((3, 2, 2), dtype=np.int16)
    assert (pictures.shown_difference(none, pictures.magnification([none])) == 128).all()
    assert pictures.magnification([]) == 127
