"""The table of the 69 against the timm that is installed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from simhpc.study import Model
from simhpc.zoo import registry
from simhpc.zoo.describe import describe
from simhpc.zoo.timm_import import timm

ALL = registry.paper_models()


def model(timm_name: str, **changes) -> Model:
    name, _, tag = timm_name.partition(".")
    return Model(key="m", timm=name, weights=f"pretrained:{tag}", **changes)


def test_there_are_69_and_no_two_are_one():
    assert len(ALL) == 69
    assert len({entry.name for entry in ALL}) == len({entry.timm for entry in ALL}) == 69
    assert Counter(entry.attack_size_px for entry in ALL) == {224: 48, 256: 18, 240: 2, 299: 1}
    assert all(75 < entry.top1_percent < 85 for entry in ALL)


def test_only_one_is_not_the_papers_own_and_says_why():
    (substitute,) = [entry for entry in ALL if entry.is_substitute]
    assert (substitute.name, substitute.timm) == ("gluon_xception65", "xception65.tf_in1k")
    assert "timm no longer carries gluon_xception65" in substitute.note
    assert not any("xception65" in name and "gluon" in name for name in timm.list_models(pretrained=True))


def test_the_documentation_shows_this_table():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert shown[2:] == [
        [
            entry.name + "*" * entry.is_substitute,
            entry.timm,
            str(entry.attack_size_px),
            f"{entry.top1_percent:.1f}",
            f"{entry.params_millions:.1f}",
            entry.license,
        ]
        for entry in ALL
    ]
    assert " ".join(next(entry.note for entry in ALL if entry.is_substitute).split()) in " ".join(text.split())


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.name)
def test_timm_has_the_weights_and_says_the_same_of_them(entry):
    assert entry.timm in timm.list_pretrained(f"{entry.architecture}.*")
    config = timm.models.get_pretrained_cfg(entry.timm)
    assert entry.license == (config.license or "unknown")
    assert config.num_classes == 1000
    # The paper's size is timm's own for all of them: no study has to set it.
    assert timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict())["input_size"][1] == entry.attack_size_px


def test_timms_default_weights_are_others_for_several():
    """Why tags are pinned: without one, these would be other models than the paper's."""
    default = {entry.name: timm.models.get_pretrained_cfg(entry.architecture).tag for entry in ALL}
    others = {entry.name for entry in ALL if default[entry.name] != entry.tag}
    assert {"convnext_tiny", "seresnet50", "regnetx_320"} <= others


@pytest.mark.parametrize("name", ["resnet50", "pit_s_224", "gluon_xception65", "xcit_tiny_12_p8_224"])
def test_sizes_of_some_networks(name):
    entry = registry.by_name(name)
    with torch.device("meta"):
        built = timm.create_model(entry.timm).eval()
        assert built(torch.empty(1, 3, entry.attack_size_px, entry.attack_size_px)).shape == (1, 1000)
    assert entry.params_millions == pytest.approx(sum(each.numel() for each in built.parameters()) / 1e6, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.name)
def test_every_network_has_the_size_of_the_table_and_takes_its_images(entry):
    test_sizes_of_some_networks(entry.name)


def test_expectations_come_from_the_table_for_all_of_imagenet_only():
    def expected(entry, *, shows_imagenet=True):
        return registry.expected_top1_percent(entry, shows_imagenet=shows_imagenet)

    pinned = model("resnet50.a1_in1k")
    assert expected(pinned) == 80.374
    assert expected(model("resnet50.tv_in1k")) is None  # not the paper's
    assert expected(Model(key="m", timm="resnet50", weights="train")) is None
    # Easy or hard classes alone, or other classes, tell nothing of the label map.
    assert expected(pinned, shows_imagenet=False) is None


@pytest.mark.parametrize("given", [0.0, 33.0])
def test_what_the_study_says_comes_first(given):
    entry = model("resnet50.a1_in1k", expected_top1_percent=given)
    for shows_imagenet in (True, False):
        assert registry.expected_top1_percent(entry, shows_imagenet=shows_imagenet) == given


def test_a_substitution_is_told_of_the_papers_model_only():
    stands_in = Model(key="gluon_xception65", timm="xception65", weights="pretrained:tf_in1k")
    assert registry.substitution(stands_in).startswith("gluon_xception65 is xception65.tf_in1k here: timm no longer")
    assert registry.substitution(stands_in.model_copy(update={"key": "mine"})) == ""
    assert registry.substitution(stands_in.model_copy(update={"weights": "pretrained:ra3_in1k"})) == ""
    assert registry.substitution(Model(key="resnet50", timm="resnet50", weights="pretrained:a1_in1k")) == ""


def test_a_name_of_the_paper_is_described_with_the_papers_weights():
    found = describe("seresnet50")
    assert (found.timm, found.default_tag) == ("seresnet50.ra2_in1k", "a1_in1k")
    assert found.paper.top1_percent == 80.266
    assert found.data.input_size_px == 224
    assert found.test_size_px == 288
    assert found.cost.parameters == 28_088_024
    # 4.1 G multiply-adds, as published for SE-ResNet-50.
    assert found.cost.forward_flops == pytest.approx(2 * 4.1e9, rel=0.03)


def test_any_other_model_of_timm_is_described():
    found = describe("test_vit")
    assert (found.timm, found.paper, found.is_staged) == ("test_vit.r160_in1k", None, False)
    assert found.classes == 1000


def test_a_model_without_weights_is_described_as_it_would_be_trained():
    found = describe("resnet200")
    assert (found.tags, found.default_tag, found.is_staged, found.license) == ([], "", False, "unknown")
    assert found.classes == 1000
