from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import summary, table
from benchmarks.measures import OURS, Check, Measure, Part, Spread
from benchmarks.rounds import orders

RATE = Measure("attack_throughput", "images·iterations/s", "net", {OURS: [10.0, 40.0, 12.0], "peer": [5.0, 80.0, 3.0]})
FOOLED = Measure("self_fooling", "%", "net", {OURS: [99.0], "peer": [98.75]})
MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "abacus",
    "cores": 2,
    "threads": 2,
    "device": "cpu",
    "versions": {"torch": "2"},
    "load_1_min": 0.1,
}


def test_a_ratio_is_computed_within_each_repetition():
    assert RATE.ratio("peer") == Spread(median=2.0, min=0.5, max=4.0)
    assert RATE.spread(OURS) == Spread(median=12.0, min=10.0, max=40.0)
    assert RATE.peers == ["peer"]


def test_without_ours_there_is_nothing_to_compare_with():
    assert Measure("m", "s", "net", {"peer": [1.0]}).peers == []


@given(st.lists(st.text(), min_size=1, max_size=5, unique=True), st.integers(0, 12))
def test_everyone_goes_once_in_each_repetition_and_another_goes_first(names, repetitions):
    found = orders(names, repetitions)
    assert len(found) == repetitions
    assert all(sorted(order) == sorted(names) for order in found)
    assert [order[0] for order in found] == [names[r % len(names)] for r in range(repetitions)]


def made(*measures: Measure, checks: tuple[Check, ...] = ()) -> summary.Summary:
    part = Part(measures=list(measures), checks=list(checks), facts={"images": 3})
    return summary.with_part({"parts": {}, "ratios": {}}, "attacks", part, MACHINE, 1.0)


def test_the_summary_gives_ratios_by_measure_model_and_peer(tmp_path):
    summary.write(tmp_path / "out" / "summary.json", made(RATE, FOOLED))
    found = summary.read(tmp_path / "out" / "summary.json")
    assert found["ratios"] == {"attack_throughput": {"net": {"peer": {"median": 2.0, "min": 0.5, "max": 4.0}}}}
    assert found["parts"]["attacks"]["machine"] == MACHINE
    assert list(summary.measures(found)) == [("attacks", RATE), ("attacks", FOOLED)]


def test_a_part_that_runs_again_replaces_itself_alone():
    other = Measure("write", "MB/s", "files", {OURS: [2.0], "npy": [4.0]})
    found = summary.with_part(made(RATE), "storage", Part([other]), MACHINE, 1.0)
    found = summary.with_part(found, "attacks", Part([FOOLED]), MACHINE, 1.0)
    assert list(found["parts"]) == ["attacks", "storage"]
    assert found["ratios"] == {"write": {"files": {"npy": {"median": 0.5, "min": 0.5, "max": 0.5}}}}


def test_only_checks_that_do_not_hold_are_named():
    good, bad = Check("good", True, "3 of 3"), Check("bad", False, "2 of 3")
    found = made(RATE, checks=(good, bad))
    assert summary.failed(found, ["attacks"]) == [bad]
    text = table.markdown(found)
    assert "- **does not hold:** bad: 2 of 3\n- 1 of 2 checks hold" in text


def test_the_markdown_table_is_one():
    found = json.loads(json.dumps(made(RATE, FOOLED)))
    rows = [line for line in table.markdown(found).splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6}
    assert rows[3] == (
        "| attack_throughput (images·iterations/s) | net | peer | 5.00 (3.00 to 80.0) | 2.00 (0.50 to 4.00) |"
    )
    assert rows[5] == "| self_fooling (%) | net | peer | 98.8 | +0.25 points |"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.1234, "0.12"), (12.34, "12.3"), (-12.34, "-12.3"), (123.4, "123"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits(value, shown):
    assert summary._digits(value) == shown
