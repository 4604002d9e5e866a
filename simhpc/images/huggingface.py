"""`hf:PATH`: parquet files as on the Hugging Face hub, or the arrow files of `datasets`, read by pyarrow.

timm's reader needs the library `datasets`, five packages more than pyarrow, which first writes all images of a parquet
folder a second time into a cache in the home directory, and does not open what `save_to_disk` wrote.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from simhpc.errors import ImageSourceError
from simhpc.images.files import matching
from simhpc.images.source import Listing

# Threads read neighbouring images: of at most two groups of rows at once, mostly.
_GROUPS_IN_MEMORY = 2


@dataclass(frozen=True)
class _Group:
    """Rows that are read together.

    Attributes:
        labels: one per row.
        paths: one per row, "" where the file tells none.
        load: the column of encoded images.
    """

    labels: list[Any]
    paths: list[str]
    load: Callable[[], Any]


def tables(path: Path) -> Listing:
    """List the images of a data set with the columns `image` (a struct of bytes and path) and `label`.

    Images of which the files tell no name are called after their row; the same images in another layout then have other
    names, and are another image set.

    Args:
        path: a file, a folder of them, or a pattern such as `data/validation-*.parquet`.

    Raises:
        ImageSourceError: no such files, pyarrow is not installed, or a file is damaged or of another form.
    """
    files = matching(path, [".parquet", ".arrow"])
    try:
        import pyarrow
    except ImportError:
        raise ImageSourceError(
            f"images.source: reading {files[0].name} needs pyarrow: pip install pyarrow (simhpc's extra 'hf')"
        ) from None
    groups: list[_Group] = []
    names: list[str] | None = None
    for file in files:
        try:
            found, stated = _parquet(file) if file.suffix == ".parquet" else _arrow(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise ImageSourceError(f"{file} cannot be read: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ImageSourceError(
                f"{file} needs the columns 'image' (a struct of bytes and path) and 'label': {error}"
            ) from None
        if names not in (None, stated):
            raise ImageSourceError(f"{file} states other names of classes than {files[0].name}")
        groups, names = groups + found, stated
    place_of = [(group, row) for group in groups for row in range(len(group.labels))]
    if not place_of:
        raise ImageSourceError(f"images.source: {path} holds no rows")
    labels = [str(group.labels[row]) for group, row in place_of]
    if names and (wrong := [label for label in labels if not (label.isdigit() and int(label) < len(names))]):
        raise ImageSourceError(f"{path}: a label is {wrong[0]}, and there are names for {len(names)} classes")
    paths = [group.paths[row] for group, row in place_of]
    if not all(paths) or len(set(paths)) < len(paths):
        paths = [f"row-{place:08d}" for place in range(len(place_of))]
    columns = _Columns()

    def read(place: int) -> bytes:
        group, row = place_of[place]
        try:
            encoded = columns.of(group)[row].as_py()
        except pyarrow.ArrowException as error:
            raise OSError(str(error)) from None
        if not encoded:
            raise OSError("the file holds a path instead of the image")
        return bytes(encoded)

    def size_bytes(place: int) -> int:
        group, row = place_of[place]
        return len(columns.of(group)[row].as_buffer() or b"")

    return Listing(
        where=str(path),
        paths=paths,
        classes=labels,
        read=read,
        size_bytes=size_bytes,
        class_names=names or (),
    )


class _Columns:
    """The image columns of the groups of rows read last."""

    def __init__(self) -> None:
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, group: _Group) -> Any:
        with self._lock:
            if id(group) not in self._held:
                while len(self._held) >= _GROUPS_IN_MEMORY:
                    self._held.popitem(last=False)
                self._held[id(group)] = group.load()
            self._held.move_to_end(id(group))
            return self._held[id(group)]


def _parquet(file: Path) -> tuple[list[_Group], list[str]]:
    from pyarrow import parquet

    def load(number: int) -> Any:
        with parquet.ParquetFile(file) as opened:
            return _bytes_of(opened.read_row_group(number, columns=["image.bytes"]))

    groups = []
    with parquet.ParquetFile(file) as opened:
        for number in range(opened.num_row_groups):
            table = opened.read_row_group(number, columns=["image.path", "label"])
            groups.append(_group(table, partial(load, number)))
        return groups, _class_names(opened.schema_arrow)


def _arrow(file: Path) -> tuple[list[_Group], list[str]]:
    import pyarrow

    # Mapped, not read: a batch costs memory only where it is touched.
    source = pyarrow.memory_map(str(file))
    is_random_access = source.read(6) == b"ARROW1"
    source.seek(0)
    if is_random_access:
        opened = pyarrow.ipc.open_file(source)
        batches = [opened.get_batch(number) for number in range(opened.num_record_batches)]
    else:
        opened = pyarrow.ipc.open_stream(source)
        batches = list(opened)
    groups = []
    for batch in batches:
        table = pyarrow.Table.from_batches([batch])
        groups.append(_group(table, partial(_bytes_of, table)))
    return groups, _class_names(opened.schema)


def _group(table: Any, load: Callable[[], Any]) -> _Group:
    import pyarrow.compute

    images = table.column("image")
    if images.null_count:
        raise ValueError("a row has no image")
    paths = pyarrow.compute.struct_field(images, "path").to_pylist()
    return _Group(table.column("label").to_pylist(), [name or "" for name in paths], load)


def _bytes_of(table: Any) -> Any:
    import pyarrow.compute

    # One array, since a chunked one looks for its chunk at every access.
    return pyarrow.compute.struct_field(table.column("image"), "bytes").combine_chunks()


def _class_names(schema: Any) -> list[str]:
    """What `datasets` writes into a file about its labels: the name of each class by number, or nothing."""
    described = (schema.metadata or {}).get(b"huggingface")
    if described is None:
        return []
    found = json.loads(described)
    # Anything on the way may be null or of another kind.
    for key in ("info", "features", "label", "names"):
        found = found.get(key) if isinstance(found, dict) else None
    return [str(name) for name in found] if isinstance(found, list) else []
