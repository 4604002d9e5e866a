"""Families and their looks: read from a table or from timm's names, told apart, and alike in every figure."""

from __future__ import annotations

import csv
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simhpc.report.families import UNKNOWN, column_of_families, families, family_of_timm_name, legend_handles, styles


@pytest.mark.parametrize(
    ("columns", "position"),
    [
        (["Norm", "Base architecture"], 1),
        (["base architecture ", "Norm"], 0),
        (["Norm", "base_architecture"], 1),
        (["Base", "Norm"], 0),
        (["Norm", "Family"], 1),
        (["Norm", "Stem layer"], None),
        ([], None),
    ],
)
def test_the_column_of_families_is_found_by_its_name_or_the_nearest(columns, position):
    assert column_of_families(columns) == position


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("resnet50.a1_in1k", "resnet"),
        ("vit_tiny_patch16_224", "vit"),
        ("tf_efficientnet_b0.ns_jft_in1k", "efficientnet"),
        ("test_vit2.r160_in1k", "vit"),
        ("mine.models:build", "mine"),
        ("42", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_a_timm_name_begins_with_its_family(name, family):
    assert family_of_timm_name(name) == family


def test_a_table_comes_before_the_name_and_a_missing_row_is_unknown():
    table = {"a": ["BN", "CNN"], "b": ["LN", "Transformer"]}
    assert families(["b", "a", "c"], ["Norm", "Base"], table) == ["Transformer", "CNN", UNKNOWN]
    assert families(["a", "resnet18"], ["Norm"], {"a": ["BN"]}, {"a": "vit_base.x"}) == ["vit", "resnet"]


def test_the_papers_families_look_alike_whichever_of_them_there_are():
    text = (files("simhpc.zoo") / "tables" / "components69.csv").read_text(encoding="utf-8")
    all_of_them = [row["Base architecture"] for row in csv.DictReader(text.splitlines())]
    whole = styles(all_of_them)
    assert len(whole) == 6
    assert len({style.colour for style in whole.values()}) == len({style.marker for style in whole.values()}) == 6
    for family in whole:
        assert styles([family, "mine"])[family] == whole[family]


@given(st.lists(st.sampled_from(["CNN", "Hybrid", UNKNOWN, *(f"family {k}" for k in range(30))]), min_size=1))
def test_no_two_families_look_alike_and_order_does_not_matter(names):
    found = styles(names)
    assert set(found) == set(names)
    assert len({(style.colour, style.marker) for style in found.values()}) == len(found)
    assert styles(names[::-1]) == found
    assert list(styles(names[::-1])) == list(found)
    assert [handle.get_label() for handle in legend_handles(found)] == list(found)
    if UNKNOWN in names:
        assert list(found)[-1] == UNKNOWN


def test_more_families_than_looks_are_drawn_all_the_same():
    assert len(styles([f"family {k}" for k in range(100)])) == 100
