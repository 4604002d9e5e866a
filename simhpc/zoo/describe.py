"""What is known of one model: the paper's, or any other of timm's."""

from __future__ import annotations

from dataclasses import dataclass

from simhpc.errors import ModelError
from simhpc.study import DataConfig, Model
from simhpc.zoo import cost, names, registry, weights
from simhpc.zoo.resolve import complete
from simhpc.zoo.timm_import import timm


@dataclass(frozen=True)
class Description:
    """One model.

    Attributes:
        name: as it was asked for.
        timm: `name.tag`, or the bare name where timm has no weights.
        paper: its entry among the paper's models, if these are its weights.
        default_tag: whose weights timm itself would take today; empty if it has none.
        tags: all that timm has weights for.
        license: of the weights, as timm states it; `unknown` where it does not.
        data: complete; the paper's size where it was asked for by the paper's name.
        test_size_px: side at which timm itself measures accuracy, where that is another.
        classes: outputs of the head, which are classes or an embedding; 0 if there is none, and features come out.
        cost: per image at `data.input_size_px`.
        is_staged: whether the weights are on this machine.
    """

    name: str
    timm: str
    paper: registry.PaperModel | None
    default_tag: str
    tags: list[str]
    license: str
    data: DataConfig
    test_size_px: int | None
    classes: int
    cost: cost.Cost
    is_staged: bool


def describe(name: str) -> Description:
    """Look at the paper's model of that name, else at timm's `name.tag` or `name` with timm's default tag.

    Raises:
        ModelError: there is none, or its images cannot be prepared as timm would.
    """
    asked = registry.by_name(name)
    papers = [entry.name for entry in registry.paper_models()]
    architecture, tag = names.split(asked.timm if asked else name, others=papers)
    default = timm.models.get_pretrained_cfg(architecture)
    tags = names.tags(architecture)
    default_tag = default.tag or "" if default is not None and tags else ""
    tag = tag or default_tag
    entry = Model(
        key="shown",
        timm=architecture,
        weights=f"pretrained:{tag}" if tag else "train",
        data=DataConfig(input_size_px=asked.attack_size_px) if asked else DataConfig(),
    )
    # What a study would ask of its outputs is no question here: features and 21k classes are shown as well.
    completed = complete(entry)
    config = timm.models.get_pretrained_cfg(entry.timm_name)
    # Weights bring their own outputs; without any it is built as it would be for ImageNet.
    classes = config.num_classes if tag and config is not None else 1000
    try:
        counted = cost.count(completed, classes)
    except Exception as error:
        raise ModelError(f"{name}: what it costs cannot be counted: {type(error).__name__}: {error}") from error
    test_size = config.test_input_size[-1] if config is not None and config.test_input_size else None
    return Description(
        name=name,
        timm=entry.timm_name,
        paper=asked or registry.by_timm_name(entry.timm_name),
        default_tag=default_tag,
        tags=tags,
        license=(config.license if tag and config is not None and config.license else "unknown"),
        data=completed.data,
        test_size_px=None if test_size == completed.data.input_size_px else test_size,
        classes=classes,
        cost=counted,
        is_staged=bool(tag) and weights.is_staged(entry),
    )
