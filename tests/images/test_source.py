"""Decoding: every kind of image becomes RGB, or is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from simhpc.errors import ImageSourceError
from simhpc.images.source import EncodedImages, Listing


def source_of(*encoded: bytes) -> EncodedImages:
    paths = [f"a/{place}.png" for place in range(len(encoded))]
    listing = Listing("x", paths, ["a"] * len(encoded), encoded.__getitem__, lambda place: 0, in_class_folders=True)
    return EncodedImages(listing, "sorted")


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


GREY = Image.fromarray(np.full((4, 4), 77, dtype=np.uint8))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1"])
def test_other_modes_become_rgb_as_timm_makes_them(mode):
    image = GREY.convert(mode)
    found = source_of(encode(image)).image(0)
    assert found.mode == "RGB"
    # timm's dataset converts in the same way.
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


def test_cmyk_jpegs_become_rgb():
    encoded = encode(GREY.convert("RGB").convert("CMYK"), "JPEG", quality=100)
    assert Image.open(io.BytesIO(encoded)).mode == "CMYK"
    assert np.abs(np.asarray(source_of(encoded).image(0)).astype(int) - 77).max() <= 2


def test_more_than_8_bits_are_refused():
    image = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    with pytest.raises(ImageSourceError, match=r"x: a/0.png has more than 8 bits per channel \(mode I;?1?6?\)"):
        source_of(encode(image)).image(0)


def test_no_cut_makes_a_png_or_jpeg_another_image():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG"):
        whole = encode(noise, kind)
        pixels = np.asarray(source_of(whole).image(0))
        for length in range(len(whole)):
            try:
                found = np.asarray(source_of(whole[:length]).image(0))
            except ImageSourceError:
                continue
            # What follows the pixels (a PNG's end mark, a JPEG's) may be missing without harm.
            np.testing.assert_array_equal(found, pixels)


def test_an_enormous_image_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(ImageSourceError, match="a/0.png is not a readable image: .*decompression bomb"):
        source_of(encode(GREY)).image(0)
