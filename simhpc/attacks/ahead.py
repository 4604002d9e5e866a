"""Reading the next while the current is worked on."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The same items in the same order, each made by another thread while the one before it is in use.

    At most two exist at once. What making an item raises is raised where it would have come; closing the generator
    waits for the item in the making.
    """
    # In tuples, as nothing else tells the end from an item.
    boxed, end = ((item,) for item in items), ()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, boxed, end)
        while box := future.result():
            future = pool.submit(next, boxed, end)
            yield box[0]
