"""What the report says of an analysis it knows nothing more of: the figures and small tables of its JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simhpc.report.page.content import Table

_NO_FACTS = ("created_by", "title", "similarity_sha256", "components_sha256", "settings", "notes", "models")
_MOST_ROWS = 100
_MOST_LISTED = 8

UNKNOWN = "unknown"


NOTHING: Mapping[str, str] = {}


def facts(
    result: Mapping[str, Any], names: Mapping[str, str], if_null: Mapping[str, str] = NOTHING
) -> list[tuple[str, str]]:
    """Single values, short lists of them, and the values of one row of them; name and text.

    Args:
        result: an analysis's JSON file.
        names: what its keys are called; others are called by the key, with spaces.
        if_null: what `null` means under a key, if not `unknown`.
    """
    found = []
    for key, value in result.items():
        name = names.get(key, _spaced(key))
        if key in _NO_FACTS or value == [] or value == {}:
            continue
        if _is_single(value) or _is_list(value):
            found.append((name, text(value, most=_MOST_LISTED, null=if_null.get(key, UNKNOWN))))
        elif _is_row(value):
            found += [
                (_inside(key, inner, names), text(single, most=_MOST_LISTED, null=if_null.get(inner, UNKNOWN)))
                for inner, single in value.items()
            ]
    return found


def tables(result: Mapping[str, Any], names: Mapping[str, str], if_null: Mapping[str, str] = NOTHING) -> list[Table]:
    """Lists of rows, and rows by name; of long ones the first 100 rows, as the caption says. Arguments: see `facts`.

    What is one row inside a row becomes columns of it; a list of rows inside it a table of its own, each row of which
    begins with the first value of the row that it was in. Notes on a row are among those of the analysis.
    """
    found = []
    for key, value in result.items():
        if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            # A name that the row itself begins with is not written twice.
            named = value.items()
            value = [row if name == next(iter(row.values()), None) else {"": name, **row} for name, row in named]
        if key not in _NO_FACTS and isinstance(value, list) and all(isinstance(row, dict) for row in value):
            inner: dict[str, list[dict[str, Any]]] = {}
            for row in value:
                for name, rows in row.items():
                    if isinstance(rows, list) and rows and all(map(_is_row, rows)):
                        inner.setdefault(name, []).extend({**dict([next(iter(row.items()))]), **each} for each in rows)
            outer = [{k: v for k, v in row.items() if k not in inner and k != "notes"} for row in value]
            found += _table(key, outer, names, if_null)
            found += [table for name, rows in inner.items() for table in _table(name, rows, names, if_null)]
    return found


def _table(key: str, rows: list[dict[str, Any]], names: Mapping[str, str], if_null: Mapping[str, str]) -> list[Table]:
    """One table, or none if it is empty or holds what is no value."""
    flat = [_flat(row) for row in rows[:_MOST_ROWS]]
    if not flat or not all(map(_is_row, flat)):
        return []
    caption = names.get(key, _spaced(key))
    if len(rows) > _MOST_ROWS:
        caption += f" (the first {_MOST_ROWS} of {len(rows)} rows)"
    header = list(dict.fromkeys(name for row in flat for name in row))
    cells = [
        [text(row[name], null=if_null.get(name, UNKNOWN)) if name in row else "" for name in header] for row in flat
    ]
    return [Table(caption, [names.get(name, _spaced(name)) for name in header], cells)]


def settings(
    result: Mapping[str, Any], names: Mapping[str, str] = NOTHING, if_null: Mapping[str, str] = NOTHING
) -> list[tuple[str, str]]:
    """Everything under `settings`, name and text; inner tables by `outer: inner`."""
    held = result.get("settings")
    return facts(held, names, if_null) if isinstance(held, dict) else []


def text(value: Any, most: int | None = None, null: str = UNKNOWN) -> str:
    """A value as people read it: four digits, lists (of `most` things) with commas."""
    match value:
        case None:
            return null
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
        case list():
            more = f" and {len(value) - most} more" if most and len(value) > most else ""
            return ", ".join(map(text, value[:most])) + more
        case _:
            return str(value)


def _inside(key: str, inner: str, names: Mapping[str, str]) -> str:
    """What a value of a row is called that stands under a key."""
    whole = f"{key}: {inner}"
    return names.get(whole, f"{names.get(key, _spaced(key))}: {names.get(inner, _spaced(inner))}")


def _is_single(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_single, value))


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(_is_single(v) or _is_list(v) for v in value.values())


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without rows inside it: their values are called `outer: inner`."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat |= (
            {f"{key}: {inner}": single for inner, single in value.items()} if isinstance(value, dict) else {key: value}
        )
    return flat


def _spaced(key: str) -> str:
    return key.replace("_", " ")
