"""Figures and tables of any analysis's JSON, with nothing known of it."""

from __future__ import annotations

from simhpc.report.page import summary
from simhpc.report.page.content import Table

RESULT = {
    "created_by": "simhpc 0",
    "title": "x",
    "similarity_sha256": "a",
    "components_sha256": "b",
    "settings": {"seed": 0, "boosting": {"stages": 500}, "sizes": [2, 3]},
    "r2_held_out": 0.123456,
    "unknown_thing": None,
    "is_sure": True,
    "ranking": [f"component {k}" for k in range(10)],
    "nothing": [],
    "best": {"members": ["a", "b"], "accuracy": 0.75},
    "choices": [{"k": 2, "gap": 0.5}, {"k": 3, "note": "last"}],
    "kinds": {"regime": {"n": 2, "cost": {"forward": 1.0}}, "other": {"n": 3}},
    "models": ["a", "b"],
    "tree": {"linkage": [[0.0, 1.0, 0.5, 2.0]]},
    "notes": ["a note"],
}


def test_facts():
    assert summary.facts(RESULT, {"r2_held_out": "R² held out"}) == [
        ("R² held out", "0.1235"),
        ("unknown thing", "unknown"),
        ("is sure", "yes"),
        ("ranking", ", ".join(f"component {k}" for k in range(8)) + " and 2 more"),
        ("best: members", "a, b"),
        ("best: accuracy", "0.75"),
    ]


def test_tables_have_every_column_that_a_row_has():
    assert summary.tables(RESULT, {"choices": "Choices", "gap": "eigengap"}) == [
        Table("Choices", ["k", "eigengap", "note"], [["2", "0.5", ""], ["3", "", "last"]]),
        Table("kinds", ["", "n", "cost: forward"], [["regime", "2", "1"], ["other", "3", ""]]),
    ]


def test_a_name_that_its_row_has_already_is_written_once():
    result = {"kinds": {"regime": {"kind": "regime", "n": 2}, "other": {"kind": "other", "n": 3}}}
    assert summary.tables(result, {}) == [Table("kinds", ["kind", "n"], [["regime", "2"], ["other", "3"]])]


def test_null_that_is_not_an_unknown_number():
    result = {"settings": {"k": None, "seed": None}, "k": None, "rows": [{"k": None, "r": None}], "row": {"k": None}}
    if_null = {"k": "not given"}
    assert summary.settings(result, {"k": "clusters"}, if_null) == [("clusters", "not given"), ("seed", "unknown")]
    assert summary.facts(result, {}, if_null) == [("k", "not given"), ("row: k", "not given")]
    assert summary.tables(result, {}, if_null)[0].rows == [["not given", "unknown"]]


def test_rows_inside_rows_are_a_table_of_their_own():
    result = {
        "distillations": [
            {"name": "one", "n": 3, "gains": [{"kind": "x", "gain": 0.5}, {"kind": "y", "gain": None}]},
            {"name": "two", "n": 4, "gains": [{"kind": "x", "gain": 0.25}], "notes": ["few"]},
        ]
    }
    assert summary.tables(result, {}) == [
        Table("distillations", ["name", "n"], [["one", "3"], ["two", "4"]]),
        Table("gains", ["name", "kind", "gain"], [["one", "x", "0.5"], ["one", "y", "unknown"], ["two", "x", "0.25"]]),
    ]


def test_lists_in_tables_are_whole():
    (table,) = summary.tables({"clusters": [{"models": [f"m{k}" for k in range(20)]}]}, {})
    assert table.rows == [[", ".join(f"m{k}" for k in range(20))]]


def test_no_table_is_left_out_for_its_length():
    """Two distillations have 48 correlations; the page would be silent on what it is about."""
    correlations = [{"method": "pearson", "r": 0.5}] * 24
    result = {"distillations": [{"name": name, "correlations": correlations} for name in ("one", "two")]}
    assert [len(table.rows) for table in summary.tables(result, {})] == [2, 48]
    (long,) = summary.tables({"pairs": [{"k": k} for k in range(101)]}, {})
    assert (long.caption, len(long.rows), long.rows[-1]) == ("pairs (the first 100 of 101 rows)", 100, ["99"])
    (whole,) = summary.tables({"pairs": [{"k": k} for k in range(100)]}, {})
    assert (whole.caption, len(whole.rows)) == ("pairs", 100)


def test_settings_with_their_inner_tables():
    assert summary.settings(RESULT) == [("seed", "0"), ("boosting: stages", "500"), ("sizes", "2, 3")]
    assert summary.settings(RESULT, {"boosting: stages": "trees"})[1] == ("trees", "500")
    assert summary.settings({}) == []


def test_numbers_as_people_read_them():
    assert [summary.text(value) for value in (1.0, 0.000123456, 12345.678, 3, False, "a")] == [
        "1", "0.0001235", "12346", "3", "no", "a",
    ]  # fmt: skip
