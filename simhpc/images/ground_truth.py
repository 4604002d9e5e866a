"""Files that tell the class of each image of a flat folder, in the forms in which ImageNet's are handed around."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from simhpc.errors import ImageSourceError
from simhpc.images.labels import is_synset
from simhpc.images.names import stem

DEVKIT_TABLES = ("meta.mat", "map_clsloc.txt")
"""Files beside ILSVRC's ground truth that tell the synset of each of its numbers."""


def read_classes(path: Path, images: Sequence[str]) -> list[str]:
    """The class of every image, as a synset or a class index.

    - ILSVRC's `..._validation_ground_truth.txt`: a number per line, in the order of the file names. It is the devkit's
      own ID (1 is the kit fox) and no model's class index; `meta.mat` or `map_clsloc.txt` beside the file tells the
      synset;
    - one synset per line, in the same order;
    - Caffe's `val.txt`: lines `name class`, also with a comma or with a synset as class;
    - Kaggle's `LOC_val_solution.csv`: `ImageId,PredictionString`, which begins with the synset.

    Args:
        images: paths, sorted.

    Raises:
        ImageSourceError: unreadable, in no such form, an image without a class, or another number of lines than images.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageSourceError(f"images.ground_truth: cannot read {path}: {error}") from None
    if text.lower().startswith("imageid,predictionstring"):
        return _by_name(path, images, _kaggle(path, text))
    lines = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
    widths = {len(line) for line in lines}
    if widths == {2}:
        return _by_name(path, images, [(name, class_name) for name, class_name in lines])
    if widths != {1}:
        raise ImageSourceError(
            f"images.ground_truth: {path} has neither one class per line nor lines 'image class', nor Kaggle's columns"
        )
    classes = [line[0] for line in lines]
    if len(classes) != len(images):
        raise ImageSourceError(
            f"images.ground_truth: {path} has {len(classes)} lines, and there are {len(images)} images: lines without "
            "names belong to the images in the order of their names, all of them"
        )
    if all(map(is_synset, classes)):
        return classes
    return _from_devkit(path, classes)


def _by_name(path: Path, images: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[str]:
    classes: dict[str, str] = {}
    for name, class_name in pairs:
        if classes.setdefault(stem(name), class_name) != class_name:
            raise ImageSourceError(f"images.ground_truth: {path} gives {name} two classes")
    if missing := [image for image in images if stem(image) not in classes]:
        raise ImageSourceError(
            f"images.ground_truth: {path} has no line for {len(missing)} of {len(images)} images, such as {missing[0]}"
        )
    return [classes[stem(image)] for image in images]


def _kaggle(path: Path, text: str) -> list[tuple[str, str]]:
    pairs = []
    for number, row in enumerate(list(csv.reader(text.splitlines()))[1:], start=2):
        if len(row) != 2 or not row[1].split():
            raise ImageSourceError(f"images.ground_truth: {path}: line {number} is not 'ImageId,PredictionString'")
        pairs.append((row[0], row[1].split()[0]))
    return pairs


def _from_devkit(path: Path, ids: Sequence[str]) -> list[str]:
    synsets = _devkit_synsets(path)
    if wrong := [text for text in ids if text not in synsets]:
        raise ImageSourceError(
            f"images.ground_truth: {path} holds {wrong[0]!r}, which is no ID of the devkit (1 to {len(synsets)}): "
            "lines with class indices need names, 'image index'"
        )
    return [synsets[text] for text in ids]


def _devkit_synsets(path: Path) -> dict[str, str]:
    """The synset of every ID of the devkit that a ground-truth file belongs to."""
    meta, text = (path.with_name(name) for name in DEVKIT_TABLES)
    try:
        if meta.exists():
            from scipy.io import loadmat

            rows = loadmat(meta, squeeze_me=True)["synsets"]
            # Behind the thousand stand the groups of WordNet above them, which have children.
            return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
        if text.exists():
            return {line.split()[1]: line.split()[0] for line in text.read_text().splitlines() if line.strip()}
    except Exception as error:  # scipy has exceptions of every kind for damage
        raise ImageSourceError(f"images.ground_truth: cannot read {meta if meta.exists() else text}: {error}") from None
    raise ImageSourceError(
        f"images.ground_truth: {path} holds numbers without names, as ILSVRC's devkit does; they are no class indices, "
        "and meta.mat (or map_clsloc.txt) of the same devkit has to lie in the same folder"
    )
