"""TOML files read into pydantic sections, with messages that name the key, what was given and what is allowed."""

from __future__ import annotations

import math
import re
import tomllib
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails

from simhpc.errors import SimhpcError, nearest


class Section(BaseModel):
    """A table of a TOML file: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


def read_toml(path: Path, what: str, error_class: type[SimhpcError]) -> dict[str, Any]:
    """A TOML file as plain data.

    Args:
        what: the kind of file, for messages: `study`, `profile`.
        error_class: what is raised.

    Raises:
        SimhpcError: of that class; the file is absent, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise error_class(f"no {what} file {path}") from None
    except OSError as error:
        raise error_class(f"cannot read {what} file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise error_class(f"{path} is not UTF-8 text, so it is not a {what} file") from None
    except (ValueError, RecursionError) as error:
        raise error_class(f"{path} is not valid TOML: {error}") from None


def check_plain(value: object, where: str, what: str, error_class: type[SimhpcError], key: str = "") -> None:
    """TOML also has dates and times, and numbers that are none; no key of ours takes those.

    Raises:
        SimhpcError: of the given class.
    """
    match value:
        case dict():
            for name, item in value.items():
                check_plain(item, where, what, error_class, f"{key}.{name}" if key else str(name))
        case list():
            for position, item in enumerate(value, start=1):
                check_plain(item, where, what, error_class, f"{key}.{position}")
        case float() if not math.isfinite(value):
            raise error_class(f"{where}: {key}: must be a finite number (given: {value})")
        case str() | int() | float():
            return
        case _:
            raise error_class(
                f"{where}: {key}: dates and times are not used in a {what} (given: {value}); quote it if it is a name"
            )


def explain(details: ErrorDetails, root: type[BaseModel]) -> str:
    """One line about one thing that pydantic found wrong in a file that should hold a `root`."""
    loc = details["loc"]
    where = ".".join(str(part + 1) if isinstance(part, int) else part for part in loc) or root.__name__.lower()
    given = "" if details["type"] == "missing" else f" (given: {_short(details['input'])})"
    if details["type"] == "extra_forbidden":
        known = _fields_at(loc[:-1], root)
        return f"{where}: unknown key{nearest(str(loc[-1]), known) or '; allowed: ' + ', '.join(known)}"
    if details["type"] == "missing":
        return f"{where}: this key is needed"
    if details["type"] == "string_pattern_mismatch" and loc[-1] in ("key", "name"):
        return f"{where}: letters, digits and _ . + - only, starting with a letter or digit, at most 100{given}"
    message = details["msg"].removeprefix("Value error, ")
    for theirs, toml in (
        ("a valid array", "a list"),
        ("a valid tuple", "a list"),
        ("an object", "a table"),
        ("Tuple", "List"),
        ("after validation, ", ""),
    ):
        message = message.replace(theirs, toml)
    message = re.sub(r"a valid dictionary or instance of \w+", "a table", message)
    # A whole section as "what was given" hides the message behind a page of data.
    return f"{where}: {message}" + ("" if isinstance(details["input"], dict) else given)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fields_at(loc: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    section = root
    for part in loc:
        if isinstance(part, str):
            section = _section_in(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel]:
    """The section type in `Section`, `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return _section_in(typing.get_args(annotation)[0])
