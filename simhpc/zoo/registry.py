"""The paper's 69 models: which of timm's weights they are today, and what accuracy to expect of them.

The table is tables/models69.csv. timm's own default weights change between versions and are others today than they
were in 2022 for several of these models, so each name is tied to one `name.tag`. docs/models.md shows the table.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources

from simhpc.study import Model


@dataclass(frozen=True)
class PaperModel:
    """One of the 69.

    Attributes:
        name: as in the paper, which is timm's name of 2022.
        timm: today's `name.tag`.
        attack_size_px: side of the images at which the paper attacks it.
        params_millions: size of the network.
        license: of the weights, as timm states it; `unknown` where it does not.
        top1_percent: accuracy on the 50,000 images of ImageNet's validation set.
        top1_source: who measured that (docs/models.md).
        is_substitute: whether these are not the paper's weights but the nearest that timm has; `note` says why.
        note: what else there is to know; may be empty.
    """

    name: str
    timm: str
    attack_size_px: int
    params_millions: float
    license: str
    top1_percent: float
    top1_source: str
    is_substitute: bool
    note: str

    @property
    def architecture(self) -> str:
        """timm's name without the tag."""
        return self.timm.partition(".")[0]

    @property
    def tag(self) -> str:
        """timm's tag of the weights."""
        return self.timm.partition(".")[2]


@functools.cache
def paper_models() -> tuple[PaperModel, ...]:
    """The 69, in the paper's order."""
    table = resources.files("simhpc.zoo") / "tables" / "models69.csv"
    with table.open(encoding="utf-8") as file:
        return tuple(
            PaperModel(
                name=row["paper_name"],
                timm=row["timm"],
                attack_size_px=int(row["attack_size_px"]),
                params_millions=float(row["params_millions"]),
                license=row["license"],
                top1_percent=float(row["top1_percent"]),
                top1_source=row["top1_source"],
                is_substitute=row["match"] == "nearest",
                note=row["note"],
            )
            for row in csv.DictReader(file)
        )


def by_name(name: str) -> PaperModel | None:
    """The one with this name in the paper."""
    return next((entry for entry in paper_models() if entry.name == name), None)


def by_timm_name(timm_name: str) -> PaperModel | None:
    """The one with these weights (`name.tag`)."""
    return next((entry for entry in paper_models() if entry.timm == timm_name), None)


def expected_top1_percent(model: Model, *, shows_imagenet: bool) -> float | None:
    """What accuracy a study's entry should have; None if nothing is known.

    Args:
        shows_imagenet: whether the images are of all of ImageNet's classes (`images.is_all_of_imagenet`): only those
            are like the ones on which the table's numbers were measured.
    """
    if model.expected_top1_percent is not None:
        return model.expected_top1_percent
    known = by_timm_name(model.timm_name) if model.is_pretrained else None
    return known.top1_percent if known and shows_imagenet else None


def substitution(model: Model) -> str:
    """What to say of a study's entry that stands for a model of the paper with other weights; else empty."""
    return stand_in(model.key, model.timm_name)


def stand_in(name: str, timm_name: str) -> str:
    """The same of what is called by that name and is that `name.tag` of timm."""
    known = by_name(name)
    if known is None or not known.is_substitute or known.timm != timm_name:
        return ""
    return f"{known.name} is {known.timm} here: {known.note}"
