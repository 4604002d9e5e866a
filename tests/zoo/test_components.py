"""Components against architectures labelled by hand, small networks of known make, and the authors' table."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from simhpc.errors import ModelError
from simhpc.study import Model
from simhpc.zoo import registry
from simhpc.zoo.components import COLUMNS, Components, find, find_entry, labelled, read, read_components
from simhpc.zoo.timm_import import timm

DOCS = Path(__file__).parents[2] / "docs" / "components.md"

# From the papers and the code of the architectures. None is one of the authors' 69.
BY_HAND = {
    "resnet18": "CNN|Yes|7s2|224 x 224|BN|ReLU|Yes|GAP|No|No|~|No|No",
    "seresnext26d_32x4d": "CNN|Yes|3s2/3/3|224 x 224|BN|ReLU|Yes|GAP|No|Yes (SE)|End|No|Yes",
    "resnest14d": "CNN|Yes|3s2/3/3|224 x 224|BN|ReLU|Yes|GAP|No|Yes (Split)|Middle|No|Yes",
    "convnext_atto": "CNN|Yes|4s4|224 x 224|LN|GeLU|No|GAP|No|No|~|Yes|No",
    "vgg11": "CNN|Yes|3s1|224 x 224|Norm-free|ReLU|Yes|GAP|No|No|~|No|No",
    "inception_v3": "CNN|Yes|3s2/3/3|299 x 299|BN|ReLU|Yes|GAP|No|No|~|No|No",
    "mobilenetv2_100": "CNN|Yes|3s2|224 x 224|BN|ReLU6|No|GAP|No|No|~|Yes|No",
    "halonet26t": "CNN|Yes|3s2/3/3|256 x 256|BN|ReLU|Yes|GAP|Yes (Halo)|No|~|No|No",
    "lambda_resnet26t": "CNN|Yes|3s2/3/3|256 x 256|BN|ReLU|Yes|GAP|Yes (Lambda)|No|~|No|No",
    "efficientnet_b0": "NAS (CNN)|Yes|3s2|224 x 224|BN|SiLU|No|GAP|No|Yes (SE)|Middle|Yes|No",
    "efficientnet_lite0": "NAS (CNN)|Yes|3s2|224 x 224|BN|ReLU6|No|GAP|No|No|~|Yes|No",
    "regnetx_002": "NAS (CNN)|Yes|3s2|224 x 224|BN|ReLU|No|GAP|No|No|~|No|Yes",
    "vit_tiny_patch16_224": "Transformer|No|16s16|224 x 224|LN|GeLU|No|CLS token|No|No|~|No|No",
    "cait_xxs24_224": "Transformer|No|16s16|224 x 224|LN|GeLU|No|CLS token|No|No|~|No|No",
    "swinv2_tiny_window8_256": "Transformer|Yes|4s4|256 x 256|LN|GeLU + ReLU|No|GAP|No|No|~|No|No",
    "levit_128s": "Transformer|Yes|3s2/3s2/3s2/3s2|224 x 224|BN|HardSwish|No|GAP|No|No|~|No|No",
    "coat_tiny": "Hybrid|Yes|4s4|224 x 224|LN|GeLU|No|CLS token|No|No|~|Yes|No",
    "mobilevit_xxs": "Hybrid|Yes|3s2|256 x 256|LN + BN|SiLU|No|GAP|No|No|~|Yes|No",
    "mixer_s32_224": "MLP-Mixer|No|32s32|224 x 224|LN|GeLU|No|GAP|No|No|~|No|No",
    "resmlp_12_224": "MLP-Mixer|No|16s16|224 x 224|Affine transform|GeLU|No|GAP|No|No|~|No|No",
}
# One for each kind of architecture in the table.
SOME = (
    "botnet26t_256",
    "eca_nfnet_l0",
    "ese_vovnet39b",
    "gcresnet50t",
    "lamhalobotnet50ts_256",
    "resnetv2_50d_evos",
    "pit_s_224",
    "tnt_s_patch16_224",
    "gmlp_s16_224",
    "rexnet_150",
    "haloregnetz_b",
    "visformer_small",
    "xcit_tiny_12_p8_224",
)


@pytest.mark.parametrize("name", BY_HAND)
def test_architectures_labelled_by_hand(name):
    assert "|".join(read(find(name)).row().values()) == BY_HAND[name]


def documented() -> dict[tuple[str, str], tuple[str, str]]:
    """What docs/components.md says of the cells that differ: by model and column, the authors' value and ours."""
    found = {}
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0] in labelled():
            assert cells[4] in ("authors", "read", "both", "neither")
            found[cells[0], cells[1]] = (cells[2], cells[3])
    return found


def differences(names) -> dict[tuple[str, str], tuple[str, str]]:
    found = {}
    for name in names:
        authors, ours = labelled()[name].row(), read(find(name)).row()
        found |= {
            (name, column): (authors[column], ours[column]) for column in COLUMNS if authors[column] != ours[column]
        }
    return found


def test_some_of_the_authors_models():
    expected = {key: cells for key, cells in documented().items() if key[0] in SOME}
    assert differences(SOME) == expected


@pytest.mark.slow
def test_all_of_the_authors_models():
    """At least 95 % of the cells agree, and each that does not is in the docs, as are the figures there."""
    found = differences(labelled())
    assert found == documented()
    n_cells = len(labelled()) * len(COLUMNS)
    assert 1 - len(found) / n_cells >= 0.95
    text = DOCS.read_text()
    assert f"{n_cells - len(found)} of the {n_cells} cells" in text
    by_column = Counter(column for _, column in found)
    for column in COLUMNS:
        assert re.search(rf"^\| {re.escape(column)} \|.*\| {len(labelled()) - by_column[column]} \|$", text, re.M), (
            column
        )


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_one_architecture_of_each_kind_in_timm(module):
    """Read on shapes alone, without an error, into words of the vocabulary."""
    row = read(find(timm.list_models(module=module)[0])).row()
    assert row["Base architecture"] in ("CNN", "Transformer", "MLP-Mixer", "Hybrid", "RNN", "NAS (CNN)")
    assert re.fullmatch(r"-|\d+s\d+(/\d+(s\d+)?)*( \+ \d+s\d+(/\d+(s\d+)?)*)*", row["Stem layer"])
    assert re.fullmatch(r"GAP|GMP|GAP \+ GMP|CLS token|Attention|-", row["Pooling (final)"])
    assert (row["CW attention"] == "No") == (row["Location of CW attention"] == "~")
    assert all(row.values())


def test_the_authors_table():
    assert len(labelled()) == 69
    allowed = {
        "Base architecture": {"CNN", "Transformer", "MLP-Mixer", "Hybrid", "NAS (CNN)", "NAS (TFM)"},
        "Location of CW attention": {"~", "Middle", "End"},
        **{column: {"Yes", "No"} for column in ("Hierarchical structure", "Pooling (stem)", "DW conv", "Group conv")},
    }
    assert set(labelled()) == {entry.name for entry in registry.paper_models()}
    for name, components in labelled().items():
        row = components.row()
        assert list(row) == list(COLUMNS)
        assert all(row[column] in values for column, values in allowed.items()), name
        size = timm.models.get_pretrained_cfg(registry.by_name(name).timm).input_size[-1]
        assert row["Input resolution"] == f"{size} x {size}", name


class Squeeze(nn.Module):
    """A gate for each channel, as squeeze-and-excitation computes it, under a name that nobody knows."""

    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x):
        gate = self.up(functional.relu(self.down(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class Block(nn.Module):
    """A residual block of two convolutions with a gate at one of three places, and a shortcut that comes last."""

    def __init__(self, channels, at, groups=1):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        self.second = nn.Conv2d(channels, channels, 1)
        self.gate = Squeeze(channels)
        self.shortcut = nn.Conv2d(channels, channels, 1)
        self.at = at

    def forward(self, x):
        y = x
        for place, layer in enumerate([self.first, self.second, nn.Identity()]):
            y = layer(self.gate(y) if place == self.at else y)
        return y + self.shortcut(x)


def network(stem, blocks, *, pooled=False, head=True) -> nn.Module:
    """A network of a stem, blocks of 8 channels, global average pooling and a classifier."""
    layers = [stem, *([nn.MaxPool2d(2)] if pooled else []), nn.Sequential(*blocks)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def on_meta(make) -> Components:
    with torch.device("meta"):
        return read_components(make(), (64, 64))


@pytest.mark.parametrize(("at", "place"), [(0, "Start"), (1, "Middle"), (2, "End")])
def test_the_place_of_a_gate_of_unknown_class(at, place):
    found = on_meta(lambda: network(nn.Conv2d(3, 8, 4, 4), [Block(8, at) for _ in range(4)]))
    assert (found.channel_attention, found.channel_attention_place) == ("Yes (SE)", place)
    assert (found.base, found.hierarchical, found.stem_pooling) == ("CNN", "No", "No")


@pytest.mark.parametrize(
    ("groups", "depthwise", "grouped"), [(1, "No", "No"), (2, "No", "Yes"), (4, "No", "Yes"), (8, "Yes", "No")]
)
def test_groups(groups, depthwise, grouped):
    found = on_meta(lambda: network(nn.Conv2d(3, 8, 4, 4), [Block(8, 1, groups) for _ in range(4)]))
    assert (found.depthwise, found.grouped) == (depthwise, grouped)


def test_a_map_that_shrinks_between_blocks():
    blocks = [
        lambda: Block(8, 1),
        lambda: nn.MaxPool2d(2),
        lambda: Block(8, 1),
        lambda: Block(8, 1),
        lambda: Block(8, 1),
    ]
    found = on_meta(lambda: network(nn.Conv2d(3, 8, 4, 4), [make() for make in blocks]))
    assert (found.hierarchical, found.stem_pooling) == ("Yes", "No")


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2])), min_size=1, max_size=4), st.booleans()
)
def test_a_stem_is_written_as_it_was_made(convolutions, pooled):
    def stem():
        widths = [3] + [8] * len(convolutions)
        layers = []
        for (kernel, stride), inputs, outputs in zip(convolutions, widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers)

    found = on_meta(lambda: network(stem(), [Block(8, 1) for _ in range(4)], pooled=pooled))
    (kernel, stride), *rest = convolutions
    written = [f"{kernel}s{stride}", *(f"{k}s{s}" if s > 1 else str(k) for k, s in rest)]
    assert found.stem == "/".join(written)
    assert found.stem_pooling == ("Yes" if pooled else "No")


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "eca_botnext26ts_256", "levit_128s"])
def test_neither_weights_nor_classes_change_what_is_read(name):
    """On the CPU with random weights and five classes as on shapes alone; and the model is left without hooks."""
    model = timm.create_model(name, num_classes=5)
    on_cpu = read_components(model, model.pretrained_cfg["input_size"][-2:])
    assert on_cpu == read(find(name))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_names():
    assert find("jx_nest_tiny").timm == "nest_tiny_jx.goog_in1k"
    assert find("resnet50.a1_in1k").timm == "resnet50.a1_in1k"
    with pytest.raises(ModelError, match="did you mean 'resnet18'"):
        find("resnet18x")
    with pytest.raises(ModelError, match=r"no weights 'resnet18\.a1_in2k'; did you mean 'a1_in1k'"):
        find("resnet18.a1_in2k")


@pytest.mark.parametrize("name", ["resnet50.", "resnet50.a b", "resnet50.a1_in1k*", ""])
def test_what_is_no_name(name):
    with pytest.raises(ModelError, match=r"has no model ''|timm has no weights 'resnet50\."):
        find(name)


def test_the_tag_decides_the_input_size():
    sizes = [read(find(f"vit_base_patch16_224.{tag}")).input_resolution for tag in ("augreg_in21k_ft_in1k", "mae")]
    assert sizes == ["224 x 224", "224 x 224"]
    assert read(find("vit_base_patch16_384")).input_resolution == "384 x 384"


def test_an_entry_of_a_study():
    entry = {
        "key": "small",
        "timm": "vit_tiny_patch16_224",
        "weights": "train",
        "args": {
            "patch_size": 8,
            "embed_dim": 64,
            "depth": 2,
            "num_heads": 4,
            "class_token": False,
            "global_pool": "avg",
        },
        "data": {"input_size_px": 32},
    }
    found = read(find_entry(Model.model_validate(entry)))
    assert (found.stem, found.input_resolution, found.final_pooling) == ("8s8", "32 x 32", "GAP")
    broken = find_entry(Model.model_validate({**entry, "args": {"patch_sise": 8}}))
    with pytest.raises(ModelError, match="small cannot be read"):
        read(broken)
