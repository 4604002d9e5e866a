"""Names of timm's models, `architecture` or `architecture.tag`, and whether there are such."""

from __future__ import annotations

from collections.abc import Iterable

from simhpc.errors import ModelError, nearest
from simhpc.zoo.timm_import import timm


def tags(architecture: str) -> list[str]:
    """Of all weights that timm has for an architecture."""
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]


def split(name: str, *, others: Iterable[str] = (), who: str = "") -> tuple[str, str]:
    """Architecture and tag, after a look whether timm has them; the tag is empty where the name has no dot.

    Args:
        others: names that may have been meant, besides timm's.
        who: what the message begins with.

    Raises:
        ModelError: there is no such architecture, or none of its weights have that tag.
    """
    architecture, dot, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = dict.fromkeys([*others, *timm.list_models()])
        raise ModelError(f"{who}timm {timm.__version__} has no model {name!r}{nearest(architecture or name, known)}")
    if dot:
        check_tag(architecture, tag, who=who)
    return architecture, tag


def check_tag(architecture: str, tag: str, *, who: str = "") -> None:
    """Look whether timm has such weights.

    Raises:
        ModelError: it has not; the message begins with `who`.
    """
    known = tags(architecture)
    if tag not in known:
        have = f"its tags: {', '.join(known)}" if known else "it has no pretrained weights"
        raise ModelError(f"{who}timm has no weights {f'{architecture}.{tag}'!r}{nearest(tag, known)}; {have}")
