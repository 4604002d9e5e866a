"""The image set: which images a study shows, where they come from, and what training may still use.

`layouts` opens a source (one module per layout: digits, folder, flat, tar, huggingface), `draw` chooses, `build`
decodes. The same images are the same image set, whatever layout they lie in: an image is known by its name (`names`)
and a class by what the layout says of it (`labels`), never by its place.
"""

from simhpc.images.build import build_image_set, training_positions
from simhpc.images.draw import choose, list_sha256, selection
from simhpc.images.labels import check_classes, is_all_of_imagenet
from simhpc.images.layouts import open_source
from simhpc.images.source import Source

__all__ = [
    "Source",
    "build_image_set",
    "check_classes",
    "choose",
    "is_all_of_imagenet",
    "list_sha256",
    "open_source",
    "selection",
    "training_positions",
]
