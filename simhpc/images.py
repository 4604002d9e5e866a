"""The image set: which images a study shows, where they come from, and what training may still use.

Two sources: scikit-learn's embedded digits (Alpaydin & Kaynak, UCI 1998: 1,797 real scans of 8 x 8 pixels)
and class folders, read through timm's dataset factory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from simhpc.errors import ImageSourceError
from simhpc.seeds import derive_seed
from simhpc.store.image_set import ImageSet
from simhpc.study import Images

# Files that operating systems leave in folders, and that nobody meant as images.
_IGNORED_FILES = {"Thumbs.db", "desktop.ini"}


class Source(Protocol):
    """Labelled images by position.

    Attributes:
        ids: a name for each image.
        labels: int32 (n,), class indices.
        classes: name of each class by class index; "" for indices that the source does not hold.
    """

    ids: Sequence[str]
    labels: NDArray[np.int32]
    classes: list[str]

    def image(self, position: int) -> Image.Image:
        """The decoded RGB image."""

    def content_sha256(self, position: int) -> str:
        """SHA-256 of the record: equal for two copies of one image."""

    def content_size(self, position: int) -> int:
        """A cheap number that differs between most records and never between two copies of one."""


class Digits:
    """`sklearn-digits`: 1,797 scans of handwritten digits, 8 x 8 pixels in 17 grey levels."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        self._grey = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)
        self.labels: NDArray[np.int32] = bunch.target.astype(np.int32)
        self.ids: Sequence[str] = [f"digits/{position:04d}" for position in range(len(self.labels))]
        self.classes = [str(digit) for digit in range(10)]

    def image(self, position: int) -> Image.Image:
        return Image.fromarray(self._grey[position]).convert("RGB")

    def content_sha256(self, position: int) -> str:
        return hashlib.sha256(self._grey[position].tobytes()).hexdigest()

    def content_size(self, position: int) -> int:
        return int(self._grey[position].sum())


class Folder:
    """`folder:PATH`: one folder per class, its images directly in it.

    Args:
        root: the folder of class folders.
        labels: `sorted`, `index` or `map:FILE`, see docs/study.md.

    Raises:
        ImageSourceError: no such folder, no class folders, an empty one, something in it that is not an
            image, or a label that cannot be given.
    """

    def __init__(self, root: Path, labels: str) -> None:
        from simhpc.zoo.timm_import import timm

        self.root = root
        class_to_index = _label_folders(root, labels)
        _check_contents(root, class_to_index, timm.data.get_img_extensions(as_set=True))
        self._reader = timm.data.create_dataset("", root=str(root), class_map=class_to_index).reader
        names = self._reader.filenames()
        # timm reads hidden files such as macOS's `._1.png` too.
        self._positions = [k for k, name in enumerate(names) if not _is_ignored(Path(name).name)]
        self.ids: Sequence[str] = [names[k] for k in self._positions]
        self.labels = np.array([self._reader.samples[k][1] for k in self._positions], dtype=np.int32)
        folders = {index: name for name, index in class_to_index.items()}
        self.classes = [folders.get(index, "") for index in range(max(folders) + 1)]

    def image(self, position: int) -> Image.Image:
        # The reader, not timm's dataset: that one replaces an unreadable image by its neighbour.
        stream, _ = self._reader[self._positions[position]]
        with stream:
            try:
                return Image.open(stream).convert("RGB")
            except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
                raise ImageSourceError(f"{self._path(position)} is not a readable image: {error}") from None

    def content_sha256(self, position: int) -> str:
        with self._path(position).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def content_size(self, position: int) -> int:
        return self._path(position).stat().st_size

    def _path(self, position: int) -> Path:
        return self.root / self.ids[position]


def open_source(source: str, labels: str) -> Source:
    """Open `sklearn-digits` or `folder:PATH`; `labels` is the study's `images.labels`."""
    if source == "sklearn-digits":
        return Digits()
    return Folder(Path(source.removeprefix("folder:")), labels)


def choose(labels: NDArray[np.int32], n: int, seed: int) -> NDArray[np.int64]:
    """Draw n positions stratified by class, without replacement.

    Each class gets its proportional share of n, the remainders going to the largest fractions (ties drawn);
    images within a class are drawn uniformly.

    Args:
        labels: int32 (m,), m >= n.

    Returns:
        int64 (n,), increasing.
    """
    random = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    shares = n * counts / len(labels)
    quota = np.floor(shares).astype(int)
    by_remainder = np.lexsort((random.random(len(classes)), -(shares - quota).round(9)))
    quota[by_remainder[: n - quota.sum()]] += 1
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:share] for label, share in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def selection(spec: Images, source: Source, seed: int) -> NDArray[np.int64]:
    """Positions of the study's N images in their source: int64 (N,), increasing.

    Raises:
        ImageSourceError: the source has fewer images than asked for.
    """
    available = len(source.labels)
    if available < spec.n:
        raise ImageSourceError(f"images.n: {spec.n} images asked for, {spec.source} has {available}")
    return choose(source.labels, spec.n, derive_seed(seed, "images"))


def build_image_set(spec: Images, source: Source, seed: int, settings_sha256: str) -> ImageSet:
    """Decode the chosen images to uint8 squares: shorter side resized (bicubic) to size_px, centre cropped.

    Raises:
        ImageSourceError: see `selection`; or an image that cannot be decoded.
    """
    positions = selection(spec, source, seed)
    side = spec.size_px or source.image(0).width
    return ImageSet(
        images=np.stack([_square(source.image(int(position)), side) for position in positions]),
        labels=source.labels[positions],
        ids=[source.ids[position] for position in positions],
        content_ids=[_content_id(source, int(position)) for position in positions],
        classes=source.classes,
        source=spec.source,
        settings_sha256=settings_sha256,
    )


def check_classes(training: list[str], shown: list[str], where: str) -> None:
    """Check that a class index means the same class in training images as in the image set.

    Args:
        training, shown: class names by index, "" where there is none.
        where: the source of the training images, for the message.

    Raises:
        ImageSourceError: an index has two meanings, or is unknown to the image set.
    """
    for index, name in enumerate(training):
        known = shown[index] if index < len(shown) else ""
        if name and name != known:
            meaning = f"is {known!r} in the image set" if known else "is no class of the image set"
            raise ImageSourceError(
                f"{where}: class index {index} is {name!r} there and {meaning}; training images need the same class "
                "folders (or labels = 'index' or 'map:FILE')"
            )


def training_positions(source: Source, chosen: ImageSet) -> list[int]:
    """Positions in `source` of the images that are not in the study's image set, under whatever name."""
    contents = set(chosen.content_ids)
    # Hashing a million files would take an hour; two copies of one image have at least the same size.
    sizes = {_size_in(content_id) for content_id in contents}
    return [
        position
        for position in range(len(source.ids))
        if source.content_size(position) not in sizes or _content_id(source, position) not in contents
    ]


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


def _label_folders(root: Path, labels: str) -> dict[str, int]:
    """Class index of every class folder.

    Raises:
        ImageSourceError: no such folder, no class folders, or a name without a label.
    """
    from simhpc.zoo.timm_import import timm

    if not root.is_dir():
        raise ImageSourceError(f"images.source: no folder {root}")
    names = sorted((entry.name for entry in root.iterdir() if entry.is_dir()), key=timm.utils.natural_key)
    names = [name for name in names if not name.startswith(".")]
    if not names:
        raise ImageSourceError(f"images.source: {root} holds no class folders")
    if labels == "sorted":
        return {name: index for index, name in enumerate(names)}
    if labels == "index":
        if wrong := [name for name in names if not _is_class_index(name)]:
            raise ImageSourceError(
                f"images.labels = 'index', but the class folder {root / wrong[0]} is not named by a class index"
            )
        indices = {name: int(name) for name in names}
    else:
        label_map = read_label_map(Path(labels.removeprefix("map:")))
        if unlabelled := [name for name in names if name not in label_map]:
            raise ImageSourceError(f"the class folder {root / unlabelled[0]} is not in the label map {labels[4:]}")
        indices = {name: label_map[name] for name in names}
    owners: dict[int, str] = {}
    for name, index in indices.items():
        if (twin := owners.setdefault(index, name)) != name:
            raise ImageSourceError(f"{root}: the class folders {twin!r} and {name!r} have the same class index {index}")
    return indices


def read_label_map(path: Path) -> dict[str, int]:
    """A label map: JSON `{"folder": index, ...}`, or text with one `folder index` or `folder,index` per line.

    Raises:
        ImageSourceError: unreadable, or an entry is not a name and a class index.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            pairs = list(json.loads(text).items())
        else:
            lines = [line.strip() for line in text.splitlines()]
            pairs = [tuple(re.split(r"[\s,]+", line)) for line in lines if line and not line.startswith("#")]
    except (OSError, UnicodeDecodeError, ValueError, AttributeError) as error:
        raise ImageSourceError(f"cannot read the label map {path}: {error}") from None
    label_map: dict[str, int] = {}
    for pair in pairs:
        if len(pair) != 2 or not _is_class_index(str(pair[1])):
            raise ImageSourceError(f"label map {path}: {' '.join(map(str, pair))!r} is not a folder and a class index")
        if label_map.setdefault(str(pair[0]), int(pair[1])) != int(pair[1]):
            raise ImageSourceError(f"label map {path}: {pair[0]!r} has two class indices")
    return label_map


def _is_class_index(text: str) -> bool:
    # No classifier has more outputs than this; a list of class names is made up to the largest index.
    return text.isascii() and text.isdigit() and int(text[:9]) < 1_000_000 and len(text) < 8


def _check_contents(root: Path, class_folders: Iterable[str], suffixes: set[str]) -> None:
    for name in class_folders:
        entries = [entry for entry in os.scandir(root / name) if not _is_ignored(entry.name)]
        for entry in entries:
            if not entry.is_file():
                raise ImageSourceError(f"{entry.path} is not an image: images lie directly in their class folder")
            if Path(entry.name).suffix.lower() not in suffixes:
                raise ImageSourceError(
                    f"{entry.path} is not an image: the endings {', '.join(sorted(suffixes))} are read"
                )
        if not entries:
            raise ImageSourceError(f"the class folder {root / name} is empty")


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED_FILES
