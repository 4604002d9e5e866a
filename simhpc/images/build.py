"""From chosen images to the image set, and to what is left for training."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simhpc.images.draw import selection
from simhpc.images.source import Source
from simhpc.store.image_set import ImageSet
from simhpc.study import Images

# Decoding is most of the work and holds no lock of Python's; a login node is not ours alone.
_MOST_THREADS = 8


def build_image_set(spec: Images, source: Source, seed: int, settings_sha256: str) -> ImageSet:
    """Decode the chosen images to uint8 squares: shorter side resized (bicubic) to size_px, centre cropped.

    Memory: the set itself, and one image per thread.

    Raises:
        ImageSourceError: see `selection`; or an image that cannot be decoded.
    """
    positions = selection(spec, source, seed)
    side = spec.size_px or source.image(0).width
    images = np.empty((len(positions), 3, side, side), dtype=np.uint8)
    content_ids = [""] * len(positions)

    def decode(row: int) -> None:
        position = int(positions[row])
        images[row] = _square(source.image(position), side)
        content_ids[row] = _content_id(source, position)

    rows = np.argsort(source.places[positions], kind="stable").tolist()
    pool = ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0))))
    try:
        for _ in pool.map(decode, rows):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return ImageSet(
        images=images,
        labels=source.labels[positions],
        ids=[source.names[position] for position in positions],
        content_ids=content_ids,
        classes=source.classes,
        source=spec.source,
        settings_sha256=settings_sha256,
    )


def training_positions(source: Source, chosen: ImageSet) -> list[int]:
    """Positions in `source` of the images that are not in the study's image set, under whatever name."""
    contents = set(chosen.content_ids)
    # Hashing a million files would take an hour; two copies of one image have at least the same size.
    sizes = {_size_in(content_id) for content_id in contents}
    in_order: Iterable[int] = np.argsort(source.places, kind="stable").tolist()
    return sorted(
        position
        for position in in_order
        if source.content_size(position) not in sizes or _content_id(source, position) not in contents
    )


def _content_id(source: Source, position: int) -> str:
    return f"{source.content_size(position)}-{source.content_sha256(position)}"


def _size_in(content_id: str) -> int:
    return int(content_id.partition("-")[0])


def _square(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """timm's evaluation geometry with the whole centre square kept: uint8 (3, side, side)."""
    if image.size != (side, side):
        # Rounded as torchvision's Resize and CenterCrop do: else most views would be shifted by a part of a pixel.
        short = min(image.size)
        width, height = (side * length // short for length in image.size)
        left, top = round((width - side) / 2.0), round((height - side) / 2.0)
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)
