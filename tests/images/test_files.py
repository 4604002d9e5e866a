"""Which files make up a data set, and which of them are images."""

from __future__ import annotations

import pytest
from layouts import write_file

from simhpc.errors import ImageSourceError
from simhpc.images.files import IMAGE_ENDINGS, matching


def made(root, *names):
    for name in names:
        write_file(root / name, "")
    return root


def found(path):
    return [entry.name for entry in matching(path, [".tar", ".parquet"])]


def test_the_endings_are_those_by_which_timm_finds_images():
    from simhpc.zoo.timm_import import timm

    assert set(IMAGE_ENDINGS) == timm.data.get_img_extensions(as_set=True)


@pytest.mark.parametrize(
    "names",
    [
        # The hub wrote a hash behind the number for years.
        ["train-00000-of-00002-ab0f00.parquet", "train-00001-of-00002-0123456789abcde7.parquet"],
        ["train-00000-of-00001.parquet", "notes.parquet"],
        ["00000-of-00002.parquet", "00001-of-00002.parquet"],
        ["val-1-of-2.tar", "val-2-of-2.tar"],
        # Classes, not splits.
        ["golden-retriever-1.tar", "husky-2.tar"],
        ["train-1.tar", "bus-2.tar"],
        ["n01440764.tar", "n01443537.tar"],
        ["imagenet1k-validation-00.tar", "imagenet1k-validation-02.tar"],
    ],
)
def test_what_belongs_together(names, tmp_path):
    assert found(made(tmp_path, *names)) == sorted(names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train-00000-of-00002-ab0f0a.parquet"], "of train-...-of-00002 there are the files 0: some are missing"),
        (["train-00001-of-00002-ab0f01.parquet"], "there are the files 1: some are missing"),
        (["00000-of-00002.parquet"], "there are the files 0: some are missing"),
        ([f"v-{number}-of-9.tar" for number in (0, 1, 2, 3, 5, 6, 8, 8, 9)], "the files 0 to 3, 5 to 6, 8 to 9: some"),
        (["a-0-of-2-a.tar", "a-0-of-2-b.tar"], "the files 0, 0: some are missing, or there twice"),
        (["a-0-of-99999999999999.tar"], "the files 0: some are missing"),
        (["a-0-of-1.tar", "a-0-of-2.tar", "a-1-of-2.tar"], "a is there several times, in 1 and in 2 files"),
        (["train-0-of-1.tar", "val-0-of-1.tar"], "holds the files of train, val: .* such as .*/val-\\*"),
        (["train-0-of-1-ab.tar", "val-0-of-1-cd.tar"], "holds the files of train, val: "),
        (["x-train-00.tar", "x-val-00.tar"], "holds the files of x-train, x-val: "),
    ],
)
def test_what_is_missing_or_does_not_belong_together(names, expected, tmp_path):
    with pytest.raises(ImageSourceError, match=expected):
        found(made(tmp_path, *names))


def test_a_pattern_may_fit_two_splits_and_each_is_checked(tmp_path):
    names = [f"{split}-0000{number}-of-00002.parquet" for split in ("test", "train") for number in range(2)]
    assert found(made(tmp_path, *names) / "t*.parquet") == names
    (tmp_path / names[1]).unlink()
    with pytest.raises(ImageSourceError, match="of test-...-of-00002 there are the files 0: some are missing"):
        found(tmp_path / "t*.parquet")
