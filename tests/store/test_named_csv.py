"""Matrices and tables from elsewhere: what is read, what is mended and said, and what is refused and where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simhpc.errors import AnalysisError
from simhpc.store.named_csv import read_matrix, read_table


@pytest.fixture
def written(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "given.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_matrix_as_the_program_writes_it(finished):
    from simhpc.store import similarity

    found, matrix = read_matrix(finished.dir.similarity_csv), similarity.load(finished.dir.similarity)
    assert found.names == matrix.models
    np.testing.assert_array_equal(found.values, matrix.sat)
    assert found.notes == []


def test_order_of_columns_spaces_byte_order_mark_and_empty_lines_do_not_matter(written):
    found = read_matrix(written("\ufeff,b, a\r\n a,1,4\r\n\r\nb,4.5,1\r\n"))
    assert found.names == ["a", "b"]
    np.testing.assert_array_equal(found.values, [[4, 1], [1, 4.5]])


def test_quoted_names_may_hold_commas(written):
    assert read_matrix(written('m,"a, b",c\n"a, b",1,2\nc,2,1\n')).names == ["a, b", "c"]


def test_unknown_cells(written):
    found = read_matrix(written("m,a,b,c\na,4,,nan\nb,2,4,NA\nc,-,,4\n"))
    np.testing.assert_array_equal(found.values, [[4, 2, np.nan], [2, 4, np.nan], [np.nan, np.nan, 4]])
    assert found.notes == ["1 pair(s) known in one half of the matrix only were taken from there"]


def test_two_halves_that_differ_are_averaged_and_it_is_said_by_how_much(written):
    found = read_matrix(written("m,a,b,c\na,4,1,2\nb,1.5,4,3\nc,2.1,3,4\n"))
    np.testing.assert_allclose(found.values, [[4, 1.25, 2.05], [1.25, 4, 3], [2.05, 3, 4]])
    assert found.notes == [
        "the matrix is not symmetric: 2 pair(s) differ, a / b the most, by 0.5; the mean of both was taken"
    ]
    assert read_matrix(written("m,a,b\na,4,1\nb,1.0000000000001,4\n")).notes == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("m,a,b\n", "has a header and no rows"),
        ("m,a,b\na,1,2\n", "1 rows and 2 columns that do not have the same names: there is no row 'b'"),
        ("m,resnet50,vit\nresnet5O,4,1\nvit,1,4\n", "there is no row 'resnet50'; did you mean 'resnet5O'?"),
        ("m,a\na,1\nb,2\n", "there is no column 'b'"),
        ("m,a,b\na,1\nb,2,3\n", "line 2 has 2 cells, the header has 3"),
        ("m,a,b\na,1,2\nb,x2,3\n", "row 'b', column 'a' is 'x2', which is not a number"),
        ("m,a,b\na,1,inf\nb,2,3\n", "row 'a', column 'b' is 'inf', which is not a number"),
        ("m,a,a\na,1,2\na,2,3\n", "more than one row named 'a'"),
        ("m,a,a\na,1,2\nb,2,3\n", "more than one column named 'a'"),
        ("m,a,\na,1,2\nb,2,3\n", "column 3 has no name"),
        ("m,a,b\n,1,2\nb,2,3\n", "line 2 has no name"),
        ("m\ta\tb\na\t1\t2\nb\t2\t3\n", "its cells are separated by '\\t', not by commas"),
        ("m,a,b\na,base 1,BN\nb,base 2,LN\n", "row 'a', column 'a' is 'base 1', which is not a number"),
        (b"\x89HDF\r\n\x1a\n\x00\xff", "is not a CSV file in UTF-8"),
    ],
)
def test_what_is_no_matrix_is_refused(written, text, message):
    with pytest.raises(AnalysisError) as error:
        read_matrix(written(text))
    assert message in str(error.value)
    assert "given.csv" in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(AnalysisError, match="does not exist"):
        read_matrix(tmp_path / "none.csv")
    with pytest.raises(OSError, match="directory"):
        read_matrix(tmp_path)


def test_a_table(written):
    path = written("Model name,Base,Norm\na,CNN,BN\nb,ViT,LN + GN\n")
    table = read_table(path)
    assert table.columns == ["Base", "Norm"]
    assert table.rows == {"a": ["CNN", "BN"], "b": ["ViT", "LN + GN"]}
    assert table.lacks(["b", "a"]) == ""
    assert table.lacks(["a", "c", "bb"]).startswith("'c', 'bb'")
    assert table.lacks([f"m{k}" for k in range(15)]).endswith("'m9' and 5 more")


def test_a_missing_row_is_told_with_the_nearest(written):
    path = written("name,Base\nresnet50_gn,CNN\nvit_base,ViT\n")
    assert read_table(path).lacks(["resnet50-gn"]) == "'resnet50-gn'; did you mean 'resnet50_gn'?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("name\na\n", "has one column only"),
        ("name,Base,Norm\na,CNN,\n", "row 'a', column 'Norm' is empty"),
        ("name,Base,Base\na,CNN,CNN\n", "more than one column named 'Base'"),
        ("name,Base\na,CNN\na,ViT\n", "more than one row named 'a'"),
        ("name;Base\na;CNN\n", "has one column only: its cells are separated by ';', not by commas"),
    ],
)
def test_what_is_no_table_is_refused(written, text, message):
    with pytest.raises(AnalysisError) as error:
        read_table(written(text))
    assert message in str(error.value)
