"""`tar:PATH`: one tar, a folder of them, or a pattern; webdataset shards, class folders inside, or a tar per class."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from simhpc.errors import ImageSourceError
from simhpc.images.files import IMAGE_ENDINGS, check_is_image, is_ignored, matching
from simhpc.images.source import Listing
from simhpc.images.tarfiles import Member, members


def shards(path: Path) -> Listing:
    """List the images of tars.

    A shard of webdataset holds `KEY.jpg` beside `KEY.cls` (the class) or `KEY.json` (its field `label`). Any other tar
    has class folders; images that lie in none are of the class after which their tar is called, as timm reads it.

    Raises:
        ImageSourceError: no such files, a damaged one, an image without a class, or something else in a tar.
    """
    archives = matching(path, [".tar"])
    images: list[tuple[str, str, Member]] = []
    is_labelled = False
    for archive in archives:
        inside = [member for member in members(archive) if not is_ignored(PurePosixPath(member.path).name)]
        if any(member.path.endswith((".cls", ".json")) for member in inside):
            images += _webdataset(archive, inside)
            is_labelled = True
        else:
            images += _class_folders(archive, inside, is_alone=path.is_file())
    if not images:
        raise ImageSourceError(f"images.source: {path} holds no images")
    return Listing(
        where=str(path),
        paths=[image_path for image_path, _, _ in images],
        classes=[class_name for _, class_name, _ in images],
        read=lambda place: images[place][2].read(),
        size_bytes=lambda place: images[place][2].size_bytes,
        in_class_folders=not is_labelled,
    )


def _class_folders(archive: Path, inside: list[Member], *, is_alone: bool) -> list[tuple[str, str, Member]]:
    found = []
    for member in inside:
        if member.path.endswith(".tar"):
            raise ImageSourceError(f"{archive} holds tars, such as {member.path}: unpack it")
        check_is_image(member.path)
        folder = PurePosixPath(member.path).parent.name
        if not folder and is_alone:
            raise ImageSourceError(
                f"{archive}: {member.path} lies in no class folder; if a file tells the classes, the layout is 'flat:'"
            )
        class_name = folder or archive.stem
        found.append((f"{class_name}/{PurePosixPath(member.path).name}", class_name, member))
    return found


def _webdataset(archive: Path, inside: list[Member]) -> list[tuple[str, str, Member]]:
    # A key ends at the first dot of the file's name; everything that has it is one sample.
    samples: dict[str, dict[str, Member]] = {}
    for member in inside:
        folder, _, name = member.path.rpartition("/")
        key, _, field = name.partition(".")
        key = f"{folder}/{key}" if folder else key
        if samples.setdefault(key, {}).setdefault(field.lower(), member) is not member:
            raise ImageSourceError(f"{archive} holds {member.path} twice")
    found = []
    for key, fields in samples.items():
        encoded = [(field, member) for field, member in fields.items() if f".{field}" in IMAGE_ENDINGS]
        if len(encoded) != 1:
            raise ImageSourceError(
                f"{archive}: {key} has {len(encoded)} images ({', '.join(IMAGE_ENDINGS)}) instead of one"
            )
        field, member = encoded[0]
        found.append((f"{archive.stem}/{key}.{field}", key, fields, member))
    # One opening for all classes: on a network file system, fifty thousand would take minutes.
    with archive.open("rb") as file:
        return [(path, _class_of(file, archive, key, fields), member) for path, key, fields, member in found]


def _class_of(file: BinaryIO, archive: Path, key: str, fields: dict[str, Member]) -> str:
    try:
        if "cls" in fields:
            return fields["cls"].read_from(file).decode().strip()
        return str(json.loads(fields["json"].read_from(file))["label"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ImageSourceError(
            f"{archive}: {key} has no readable class: neither {key}.cls nor a field 'label' in {key}.json"
        ) from None
