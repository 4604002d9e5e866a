"""Parquet and arrow: what a data set of Hugging Face may lack."""

from __future__ import annotations

import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
from layouts import arrow, hf_path, hf_table, images, parquet, photos

from simhpc import images as im
from simhpc.errors import ImageSourceError
from simhpc.images.labels import imagenet_synsets


def opened(root, labels="imagenet"):
    return im.open_source(images({"source": f"hf:{root}", "labels": labels}))


def written(path, table):
    pyarrow.parquet.write_table(table, path)
    return path


def test_without_pyarrow_the_message_says_what_to_install(tmp_path, monkeypatch):
    parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImageSourceError, match="needs pyarrow: pip install pyarrow"):
        opened(tmp_path)


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ImageSourceError, match="a.parquet cannot be read"):
        opened(tmp_path / "a.parquet")
    (tmp_path / "a.arrow").write_bytes(b"ARROW1 and nothing more")
    with pytest.raises(ImageSourceError, match="a.arrow cannot be read"):
        opened(tmp_path / "a.arrow")
    with pytest.raises(ImageSourceError, match=r"no \.parquet or \.arrow files"):
        opened(tmp_path / "none")


def test_an_arrow_file_that_is_cut_off(tmp_path):
    arrow(tmp_path)
    path = tmp_path / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ImageSourceError, match="cannot be read"):
        opened(tmp_path)


def test_other_columns(tmp_path):
    for table in (
        pyarrow.table({"img": [1], "label": [1]}),
        pyarrow.table({"image": ["a.jpg"], "label": [1]}),
        pyarrow.table({"image": [{"bytes": b"", "path": "a"}]}),
    ):
        with pytest.raises(ImageSourceError, match="'image' .* and 'label'|cannot be read"):
            opened(written(tmp_path / "a.parquet", table))
    with pytest.raises(ImageSourceError, match="holds no rows"):
        opened(written(tmp_path / "a.parquet", hf_table(photos(), [], hf_path).slice(0, 0)))


def test_paths_instead_of_images(tmp_path):
    table = pyarrow.table({"image": [{"bytes": None, "path": "a.jpg"}], "label": [1]})
    table = table.cast(
        pyarrow.schema({"image": pyarrow.struct({"bytes": "binary", "path": "string"}), "label": "int64"})
    )
    source = opened(written(tmp_path / "a.parquet", table), "index")
    assert source.content_size(0) == 0
    with pytest.raises(ImageSourceError, match="a.jpg cannot be read: .* a path instead of the image"):
        source.image(0)


def test_a_corrupted_image_is_named(tmp_path):
    broken = [*photos()[:5], type(photos()[0])("broken", 207, photos()[0].jpeg[:300])]
    source = opened(written(tmp_path / "a.parquet", hf_table(broken, imagenet_synsets(), hf_path)))
    with pytest.raises(ImageSourceError, match=r"broken_n02099601\.JPEG is not a readable image"):
        source.image(source.names.index("broken"))


def test_labels_that_are_none(tmp_path):
    some = photos()[:3]
    with pytest.raises(ImageSourceError, match="a label is .*, and there are names for 2 classes"):
        opened(written(tmp_path / "a.parquet", hf_table(some, ["a", "b"], hf_path)), "index")
    unlabelled = [type(photo)(photo.name, -1, photo.jpeg) for photo in some]
    path = written(tmp_path / "a.parquet", hf_table(unlabelled, [], hf_path))
    with pytest.raises(ImageSourceError, match="the class -1 is no class index"):
        opened(path, "index")


def test_stored_class_names_are_checked_against_timms_order(tmp_path):
    from simhpc.zoo.timm_import import timm

    words = timm.data.ImageNetInfo().label_descriptions()
    permuted = list(words)
    permuted[0], permuted[1] = words[1], words[0]
    parquet(tmp_path, permuted)
    with pytest.raises(
        ImageSourceError, match="0 is 'goldfish, Carassius auratus' there, 'tench, Tinca tinca' in timm"
    ):
        opened(tmp_path)
    parquet(tmp_path, [f"class {index}" for index in range(1000)])
    with pytest.raises(ImageSourceError, match="not in timm's order: 0 is 'class 0' there"):
        opened(tmp_path)
    parquet(tmp_path, [f"class {index}" for index in range(1001)])
    with pytest.raises(ImageSourceError, match="there are 1001 classes, and 'class 0' is no synset"):
        opened(tmp_path)
    # Synsets in another order are no problem: they say themselves which class they are.
    parquet(tmp_path, imagenet_synsets()[::-1])
    by_name = dict(zip(opened(tmp_path).names, opened(tmp_path).labels.tolist(), strict=True))
    assert by_name == {photo.name: 999 - photo.index for photo in photos()}


def test_files_that_name_classes_differently_are_not_mixed(tmp_path):
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        written(tmp_path / f"{number}.parquet", hf_table(photos()[:2], names, hf_path))
    with pytest.raises(ImageSourceError, match=r"1\.parquet states other names of classes than 0\.parquet"):
        opened(tmp_path, "index")


def test_names_of_stored_classes_are_kept_by_index(tmp_path):
    parquet(tmp_path, [f"class {index}" for index in range(1001)])
    source = opened(tmp_path, "index")
    assert source.classes[207] == "class 207"
    assert set(source.labels.tolist()) == {photo.index for photo in photos()}
    with pytest.raises(ImageSourceError, match="'sorted' numbers class folders, and there are none"):
        opened(tmp_path, "sorted")


@pytest.mark.parametrize(
    "described",
    [
        None,
        [],
        {"info": None},
        {"info": {"features": None}},
        {"info": {"features": {"label": [{"dtype": "int64", "_type": "Value"}]}}},
        {"info": {"features": {"label": {"_type": "ClassLabel", "names": None}}}},
    ],
)
def test_metadata_that_tells_no_names_of_classes(described, tmp_path):
    table = hf_table(photos(), [], hf_path).replace_schema_metadata({"huggingface": json.dumps(described)})
    source = opened(written(tmp_path / "a.parquet", table), "index")
    assert source.labels.tolist() == [photo.index for photo in photos()]


def test_rows_without_an_image_are_found_before_they_are_read(tmp_path):
    table = hf_table(photos()[:3], [], hf_path)
    rows = [*table.column("image").to_pylist()[:2], None]
    table = table.set_column(0, "image", pyarrow.array(rows, table.schema.field("image").type))
    with pytest.raises(ImageSourceError, match=r"a\.parquet .*: a row has no image"):
        opened(written(tmp_path / "a.parquet", table), "index")
