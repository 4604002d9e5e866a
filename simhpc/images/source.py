"""What an image source is, and the one made of encoded files, which all layouts but the digits are."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simhpc import image_list
from simhpc.errors import ImageSourceError
from simhpc.images.labels import class_indices, class_names
from simhpc.images.names import canonical_names


class Source(Protocol):
    """Labelled images by position, in the order of their names. May be read by several threads at once.

    Attributes:
        names: what each image is called, the same in every layout (see `names`); increasing.
        labels: int32 (n,), class indices.
        classes: name of each class by class index; "" for indices that the source does not hold.
        places: int64 (n,), where each image lies in the source: reading in this order reads forward.
    """

    names: Sequence[str]
    labels: NDArray[np.int32]
    classes: list[str]
    places: NDArray[np.int64]

    def image(self, position: int) -> Image.Image:
        """The decoded RGB image.

        Raises:
            ImageSourceError: it cannot be read or decoded, or is of a kind that RGB cannot hold.
        """

    def content_sha256(self, position: int) -> str:
        """SHA-256 of the record: equal for two copies of one image."""

    def content_size(self, position: int) -> int:
        """A cheap number that differs between most records and never between two copies of one."""


@dataclass(frozen=True)
class Listing:
    """The images of one layout in the order in which they lie there, not yet read.

    Attributes:
        where: the source, for messages.
        paths: n paths within the layout, `/` between folders, each once.
        classes: what the layout says of the class of each image: a folder's name, a synset, a number.
        class_names: names that the layout itself gives to the classes that it numbers 0, 1, ...; may be empty.
        in_class_folders: whether `classes` are names of folders (or of tars that stand for them).
        read: the encoded image at a place.
        size_bytes: its size.
    """

    where: str
    paths: list[str]
    classes: list[str]
    read: Callable[[int], bytes]
    size_bytes: Callable[[int], int]
    class_names: Sequence[str] = ()
    in_class_folders: bool = False


class EncodedImages:
    """A `Source` of JPEG and PNG files, wherever they lie.

    Args:
        listing: the images.
        labels: the study's `images.labels`.

    Raises:
        ImageSourceError: two images with one path, a name that no list can hold, or a class without an index.
    """

    def __init__(self, listing: Listing, labels: str) -> None:
        names = canonical_names(listing.paths, listing.where)
        if unfit := next((name for name in names if not image_list.is_listable(name)), None):
            raise ImageSourceError(
                f"{listing.where}: an image is called {unfit!r}: a name with control characters, bytes that are no "
                "UTF-8 or space around it could not be written to images.txt; rename it"
            )
        order = sorted(range(len(names)), key=names.__getitem__)
        indices = class_indices(
            set(listing.classes),
            labels,
            listing.where,
            numbered_names=listing.class_names,
            in_class_folders=listing.in_class_folders,
        )
        self._listing = listing
        self.names: Sequence[str] = [names[place] for place in order]
        self.places = np.array(order, dtype=np.int64)
        self.labels = np.array([indices[listing.classes[place]] for place in order], dtype=np.int32)
        self.classes = class_names(indices, labels, listing.class_names)

    def image(self, position: int) -> Image.Image:
        encoded = self._record(position)
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                # Pillow cuts these off at 255 instead of scaling them, which would show a white square.
                if image.mode in ("I", "F") or image.mode.startswith("I;"):
                    raise ImageSourceError(
                        f"{self._path(position)} has more than 8 bits per channel (mode {image.mode}): convert it"
                    )
                return image.convert("RGB")
        # Each of Pillow's decoders has its own exceptions for damage.
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
            raise ImageSourceError(f"{self._path(position)} is not a readable image: {error}") from None

    def content_sha256(self, position: int) -> str:
        return hashlib.sha256(self._record(position)).hexdigest()

    def content_size(self, position: int) -> int:
        return self._listing.size_bytes(int(self.places[position]))

    def _record(self, position: int) -> bytes:
        try:
            return self._listing.read(int(self.places[position]))
        except OSError as error:
            raise ImageSourceError(f"{self._path(position)} cannot be read: {error}") from None

    def _path(self, position: int) -> str:
        return f"{self._listing.where}: {self._listing.paths[int(self.places[position])]}"
