"""From what a layout says of a class (a folder's name, a synset, a number) to the index that models answer with."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simhpc.errors import ImageSourceError, nearest

# Lists of the thousand names in words differ in a few spellings: timm has "crane" twice, the bird and the machine.
_MOST_UNKNOWN_NAMES = 10


@functools.cache
def imagenet_synsets() -> list[str]:
    """The 1,000 synsets of ImageNet-1k (`n01440764`, ...) in the order of timm's class indices."""
    from simhpc.zoo.timm_import import timm

    return list(timm.data.ImageNetInfo().label_names())


def class_indices(
    classes: Iterable[str],
    labels: str,
    where: str,
    *,
    numbered_names: Sequence[str] = (),
    in_class_folders: bool = False,
) -> dict[str, int]:
    """The class index of every class, each another one.

    Args:
        classes: as the layout calls them.
        labels: the study's `images.labels`: `sorted`, `index`, `imagenet` or `map:FILE`.
        where: the source, for messages.
        numbered_names, in_class_folders: see `source.Listing`.

    Raises:
        ImageSourceError: a class has no index, two have the same, or `labels` does not suit what is there.
    """
    from simhpc.zoo.timm_import import timm

    names = sorted(classes, key=timm.utils.natural_key)
    if labels == "sorted":
        indices = _sorted(names, where, in_class_folders=in_class_folders)
    elif labels == "index":
        indices = _by_number(names, where)
    elif labels == "imagenet":
        indices = _by_synset(names, where, numbered_names)
    else:
        label_map = read_label_map(Path(labels.removeprefix("map:")))
        if unlabelled := [name for name in names if name not in label_map]:
            raise ImageSourceError(f"{where}: the class {unlabelled[0]} is not in the label map {labels[4:]}")
        indices = {name: label_map[name] for name in names}
    owners: dict[int, str] = {}
    for name, index in indices.items():
        if (twin := owners.setdefault(index, name)) != name:
            raise ImageSourceError(f"{where}: the classes {twin!r} and {name!r} have the same class index {index}")
    return indices


def class_names(indices: dict[str, int], labels: str, numbered_names: Sequence[str] = ()) -> list[str]:
    """The name of each class by class index, "" where there is none; of ImageNet all 1,000 synsets.

    Args:
        indices: what `class_indices` returned.
        labels, numbered_names: what it was given.
    """
    if labels == "imagenet":
        return imagenet_synsets()
    if labels == "index" and numbered_names:
        return list(numbered_names)
    names = {index: name for name, index in indices.items()}
    return [names.get(index, "") for index in range(max(names) + 1)]


def is_all_of_imagenet(classes: Sequence[str], labels: NDArray[np.int32]) -> bool:
    """Whether there are images of all of ImageNet's 1,000 classes, and of no others.

    The order does not count: a permuted one is what the accuracy check is there to find. Classes without names have to
    be called by all the indices that ImageNet's models answer with, 0 to 999.

    Args:
        classes: name of each class by class index, as a source gives them.
        labels: int32 (n,), class index of each image.
    """
    numbers = [str(index) for index in range(len(classes))]
    return (
        len(classes) == 1000
        and len(np.unique(labels)) == 1000
        and (list(classes) == numbers or set(classes) == set(imagenet_synsets()))
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
                "folders (or labels = 'imagenet', 'index' or 'map:FILE')"
            )


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


def is_synset(name: str) -> bool:
    """Whether a class is called like a noun of WordNet, as ImageNet's are: `n01440764`."""
    return re.fullmatch(r"n\d{8}", name) is not None


def _sorted(names: list[str], where: str, *, in_class_folders: bool) -> dict[str, int]:
    if not in_class_folders:
        raise ImageSourceError(
            f"{where}: images.labels = 'sorted' numbers class folders, and there are none; use 'imagenet' "
            f"where classes are synsets, 'index' where they are class indices (here: {names[0]!r}), or 'map:FILE'"
        )
    synsets = imagenet_synsets() if all(map(is_synset, names)) else []
    if set(names) < set(synsets):
        raise ImageSourceError(
            f"{where} holds {len(names)} of ImageNet's 1,000 classes: images.labels = 'sorted' would number them 0 to "
            f"{len(names) - 1}, and {names[-1]} is class {synsets.index(names[-1])}. Use labels = 'imagenet'; "
            "or, for models that know just these classes, a 'map:FILE' that numbers them"
        )
    indices = {name: index for index, name in enumerate(names)}
    if set(names) == set(synsets) and names != synsets:
        raise ImageSourceError(f"{where}: ImageNet's classes are not in timm's order: use images.labels = 'imagenet'")
    return indices


def _by_number(names: list[str], where: str) -> dict[str, int]:
    if wrong := [name for name in names if not _is_class_index(name)]:
        hint = "; use 'imagenet' for synsets" if is_synset(wrong[0]) else ""
        raise ImageSourceError(f"{where}: images.labels = 'index', but the class {wrong[0]} is no class index{hint}")
    return {name: int(name) for name in names}


def _by_synset(names: list[str], where: str, numbered_names: Sequence[str]) -> dict[str, int]:
    synsets = {synset: index for index, synset in enumerate(imagenet_synsets())}
    if numbered_names:
        if numbered_names[0] not in synsets:
            _check_descriptions(numbered_names, where)
            return _by_number(names, where)
        by_number = dict(enumerate(numbered_names))
        called = {name: by_number.get(index, "") for name, index in _by_number(names, where).items()}
    else:
        called = {name: name for name in names}
    for name, synset in called.items():
        if synset not in synsets:
            known = f"{nearest(synset, synsets)}" if is_synset(synset) else "; use 'index' for class indices"
            raise ImageSourceError(
                f"{where}: images.labels = 'imagenet', but the class {name!r} is none of ImageNet's synsets{known}"
            )
    return {name: synsets[synset] for name, synset in called.items()}


def _check_descriptions(names: Sequence[str], where: str) -> None:
    """Names in words, such as Hugging Face's "tench, Tinca tinca", have to stand in timm's order."""
    from simhpc.zoo.timm_import import timm

    ours = timm.data.ImageNetInfo().label_descriptions()
    if len(names) != len(ours):
        raise ImageSourceError(
            f"{where}: images.labels = 'imagenet', but there are {len(names)} classes, and {names[0]!r} is no synset"
        )
    wrong = [index for index, name in enumerate(names) if name != ours[index]]
    for index in wrong:
        if names[index] in ours or len(wrong) > _MOST_UNKNOWN_NAMES:
            raise ImageSourceError(
                f"{where}: classes are not in timm's order: {index} is {names[index]!r} there, {ours[index]!r} in timm"
            )


def _is_class_index(text: str) -> bool:
    # No classifier has more outputs than this; a list of class names is made up to the largest index.
    return text.isascii() and text.isdigit() and int(text[:9]) < 1_000_000 and len(text) < 8
