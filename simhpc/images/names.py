"""What an image is called in every layout: its file's name without folder and ending, wherever that is unique."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from simhpc.errors import ImageSourceError, nearest
from simhpc.images.files import is_image

# Hugging Face's ImageNet writes the synset behind the original name: ILSVRC2012_val_00000001_n01751748.JPEG.
_SYNSET_AT_END = re.compile(r"(?<=.)_n\d{8}$")


def stem(path: str) -> str:
    """`ILSVRC2012_val_00000001` of `val/n01751748/ILSVRC2012_val_00000001_n01751748.JPEG`."""
    name = PurePosixPath(path).name
    return _SYNSET_AT_END.sub("", _without_ending(name))


def canonical_names(paths: Sequence[str], where: str) -> list[str]:
    """A unique name for each image: stems; else paths without endings; else paths.

    Stems are what the layouts have in common. Where they are not unique (`a/0.png`, `b/0.png`), class folders and tars
    of class folders still agree on paths.

    Raises:
        ImageSourceError: two images have one path.
    """
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise ImageSourceError(f"{where}: two images are called {twice[0]}")
    for name_of in (stem, _without_ending):
        names = [name_of(path) for path in paths]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def find(wanted: Sequence[str], names: Sequence[str], where: str) -> list[int]:
    """Positions of the wanted images, each by its name, by as much of its path as a name has, or else by its stem.

    Args:
        wanted: names or paths of images, of this layout or another.
        names: of all images, unique.
        where: the list, for messages.

    Raises:
        ImageSourceError: an image is not there, could be any of several, or is named twice.
    """
    exact = {name: position for position, name in enumerate(names)}
    by_stem: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        by_stem.setdefault(stem(name), []).append(position)
    found: dict[int, str] = {}
    for name in wanted:
        candidates = _by_path(name, exact) or _with_the_same_end(name, names, by_stem.get(stem(name), []))
        if not candidates:
            raise ImageSourceError(f"{where}: {name!r} is not among the images{_like(name, names)}")
        if len(candidates) > 1:
            some = ", ".join(repr(names[position]) for position in candidates[:3])
            raise ImageSourceError(f"{where}: {name!r} may be any of {len(candidates)} images: {some}")
        if (other := found.setdefault(candidates[0], name)) != name:
            raise ImageSourceError(f"{where}: {other!r} and {name!r} are the same image, {names[candidates[0]]!r}")
    return list(found)


def _by_path(wanted: str, exact: Mapping[str, int]) -> list[int]:
    """The image that is called like a path or, failing that, like its longest possible end; at most one."""
    for path in (wanted, _without_ending(wanted)):
        parts = path.split("/")
        for first in range(len(parts)):
            if (name := "/".join(parts[first:])) in exact:
                return [exact[name]]
    return []


def _with_the_same_end(wanted: str, names: Sequence[str], candidates: list[int]) -> list[int]:
    """Those candidates whose path ends like the wanted one; all of them where none does."""
    if len(candidates) > 1:
        for form in (str, _without_ending):
            if found := [
                position for position in candidates if f"/{form(names[position])}".endswith(f"/{form(wanted)}")
            ]:
                return found
    return candidates


def _without_ending(path: str) -> str:
    # Only an image's ending: a name of a list may have none, and hold a dot.
    return path.removesuffix(PurePosixPath(path).suffix) if is_image(path) else path


def _like(name: str, names: Sequence[str]) -> str:
    # Comparing with each of a million names would take minutes.
    return nearest(name, names) if len(names) <= 10_000 else f"; they are called like {names[0]!r}"
