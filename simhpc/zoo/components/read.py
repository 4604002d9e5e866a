"""From a model to its components."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import nn

from simhpc.zoo.components.architecture import base_architecture, is_hierarchical
from simhpc.zoo.components.attention import channel_attention, map_attention, place
from simhpc.zoo.components.blocks import blocks
from simhpc.zoo.components.layers import activation, final_pooling, is_depthwise, is_grouped, normalization
from simhpc.zoo.components.stem import read_stem
from simhpc.zoo.components.trace import trace

COLUMNS = (
    "Base architecture",
    "Hierarchical structure",
    "Stem layer",
    "Input resolution",
    "Normalization",
    "Activation",
    "Pooling (stem)",
    "Pooling (final)",
    "2D SA",
    "CW attention",
    "Location of CW attention",
    "DW conv",
    "Group conv",
)
"""The authors' names of the components, in the order of the attributes of `Components`."""


@dataclass(frozen=True)
class Components:
    """The authors' 13 features, in their words; docs/components.md lists the values.

    Attributes:
        base: `CNN`, `Transformer`, `Hybrid`, `MLP-Mixer`, `RNN`, `NAS (CNN)` or `NAS (TFM)`.
        hierarchical: `Yes` if blocks see fewer positions the deeper they are.
        stem: kernel and stride of its convolutions, as in `3s2/3/3`.
        input_resolution: height and width in pixels, as in `224 x 224`.
        normalization, activation: one, or several joined by ` + `.
        stem_pooling: `Yes` or `No`.
        final_pooling: `GAP`, `GMP`, `CLS token`, `Attention` or `-`.
        map_attention: self-attention in place of a convolution, as in `Yes (Halo, BoT)`.
        channel_attention: as in `Yes (SE)`.
        channel_attention_place: `Start`, `Middle` or `End` of its block; `~` without any.
        depthwise, grouped: `Yes` or `No`.
    """

    base: str
    hierarchical: str
    stem: str
    input_resolution: str
    normalization: str
    activation: str
    stem_pooling: str
    final_pooling: str
    map_attention: str
    channel_attention: str
    channel_attention_place: str
    depthwise: str
    grouped: str

    def row(self) -> dict[str, str]:
        """The components under the authors' names."""
        return dict(zip(COLUMNS, astuple(self), strict=True))


def read_components(model: nn.Module, size_px: tuple[int, int]) -> Components:
    """Read the components of a model from one forward pass.

    Args:
        model: (1, 3, H, W) float32 to logits; left in eval mode. On the meta device nothing is computed.
        size_px: (H, W) of its input.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    with torch.device(device):
        found = trace(model.eval(), torch.zeros(1, 3, *size_px))
    repeated = blocks(found)
    stem = read_stem(found, repeated)
    maps = map_attention(found)
    channels = channel_attention(found)
    places = [place(found, each) for each in channels]
    convolutions = [call.module for call in found.convolutions()]
    return Components(
        base=base_architecture(found, repeated, stem, [call for _, call in maps], channels),
        hierarchical=_yes(is_hierarchical(found, repeated, stem)),
        stem=stem.written(),
        input_resolution=f"{size_px[0]} x {size_px[1]}",
        normalization=normalization(found),
        activation=activation(found),
        stem_pooling=_yes(stem.is_pooled),
        final_pooling=final_pooling(found),
        map_attention=_yes_of([kind for kind, _ in maps]),
        channel_attention=_yes_of([each.kind for each in channels]),
        channel_attention_place=" + ".join(each for each in ("Start", "Middle", "End") if each in places) or "~",
        depthwise=_yes(any(map(is_depthwise, convolutions))),
        grouped=_yes(any(map(is_grouped, convolutions))),
    )


def _yes(is_so: bool) -> str:
    return "Yes" if is_so else "No"


def _yes_of(kinds: list[str]) -> str:
    return f"Yes ({', '.join(dict.fromkeys(kinds))})" if kinds else "No"
