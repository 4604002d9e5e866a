"""Flat folders and ground-truth files, and how those two may not belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
from layouts import (
    devkit_ids,
    flat_caffe,
    flat_devkit,
    flat_devkit_text,
    flat_kaggle,
    flat_tar,
    images,
    photos,
    write_file,
    write_tar,
)

from simhpc import images as im
from simhpc.errors import ImageSourceError
from simhpc.images.ground_truth import read_classes

NAMES = [f"{photo.name}.JPEG" for photo in photos()]


def test_the_devkits_numbers_are_no_class_indices(tmp_path):
    """The known trap: devkit ID 1 is the kit fox, class 278."""
    spec = flat_devkit(tmp_path)
    source = im.open_source(images(spec))
    assert source.labels.tolist() == [photo.index for photo in photos()]
    wrong = [devkit_ids()[photo.synset] - 1 for photo in photos()]
    assert not any(right == other for right, other in zip(source.labels.tolist(), wrong, strict=True))
    with pytest.raises(ImageSourceError, match="'index', but the class n.* is no class index; use 'imagenet'"):
        im.open_source(images({**spec, "labels": "index"}))
    (tmp_path / "devkit" / "meta.mat").unlink()
    with pytest.raises(ImageSourceError, match="numbers without names, as ILSVRC's devkit does.*meta.mat"):
        im.open_source(images(spec))


def test_a_meta_file_that_is_none(tmp_path):
    spec = flat_devkit(tmp_path)
    for content in (b"not a mat file at all", b""):
        (tmp_path / "devkit" / "meta.mat").write_bytes(content)
        with pytest.raises(ImageSourceError, match="cannot read .*meta.mat"):
            im.open_source(images(spec))
    (tmp_path / "devkit" / "meta.mat").unlink()
    write_file(tmp_path / "devkit" / "map_clsloc.txt", "n01440764\n")
    with pytest.raises(ImageSourceError, match="cannot read .*map_clsloc.txt"):
        im.open_source(images(spec))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("".join("1\n" for _ in NAMES[:-1]), "has 19 lines, and there are 20 images"),
        ("".join("1\n" for _ in [*NAMES, "x"]), "has 21 lines, and there are 20 images"),
        ("".join("0\n" for _ in NAMES), r"holds '0', which is no ID of the devkit \(1 to 1000\)"),
        ("".join(f"{name} 7\n" for name in NAMES[1:]), "no line for 1 of 20 images, such as ILSVRC2012_val_00000001"),
        ("".join(f"{name} 7\n" for name in [*NAMES, *NAMES]) + f"{NAMES[2]} 8\n", "00000003.JPEG two classes"),
        ("a b c\n", "neither one class per line nor"),
        ("", "neither one class per line nor"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "line 2 is not 'ImageId,PredictionString'"),
        ("ImageId,PredictionString\na,n01440764 1\n", "no line for 20 of 20 images"),
    ],
)
def test_ground_truth_that_does_not_fit(text, expected, tmp_path):
    spec = flat_devkit(tmp_path)
    write_file(tmp_path / "devkit" / "ILSVRC2012_validation_ground_truth.txt", text)
    with pytest.raises(ImageSourceError, match=expected):
        im.open_source(images(spec))


def test_a_ground_truth_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ImageSourceError, match="cannot read .*none.txt"):
        read_classes(tmp_path / "none.txt", NAMES)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ImageSourceError, match="cannot read .*binary"):
        read_classes(tmp_path / "binary", NAMES)


def test_names_match_with_and_without_endings_folders_and_synsets(tmp_path):
    path = write_file(tmp_path / "val.txt", "val/a.JPEG 3\nb 4\nc_n01440764.jpg,5\n")
    assert read_classes(path, ["a.png", "b.JPEG", "x/c.jpeg"]) == ["3", "4", "5"]


def test_other_things_in_a_flat_folder_or_tar(tmp_path):
    spec = flat_caffe(tmp_path)
    (tmp_path / "val" / ".hidden").write_text("x")
    assert len(im.open_source(images(spec)).names) == 20
    (tmp_path / "val" / "n01440764").mkdir()
    with pytest.raises(ImageSourceError, match="n01440764 is a folder: .* 'folder:'"):
        im.open_source(images(spec))
    (tmp_path / "val" / "n01440764").rmdir()
    (tmp_path / "val" / "notes.txt").write_text("x")
    with pytest.raises(ImageSourceError, match="notes.txt is not an image"):
        im.open_source(images(spec))
    tar = write_tar(tmp_path / "v.tar", [("a.jpg", b""), ("readme.md", b"")])
    with pytest.raises(ImageSourceError, match="readme.md is not an image"):
        im.open_source(images({**spec, "source": f"flat:{tar}"}))
    with pytest.raises(ImageSourceError, match="no folder or tar"):
        im.open_source(images({**spec, "source": f"flat:{tmp_path}/none"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageSourceError, match="holds no images"):
        im.open_source(images({**spec, "source": f"flat:{tmp_path}/empty"}))


def test_kaggles_file_may_lie_among_the_images(tmp_path):
    assert len(im.open_source(images(flat_kaggle(tmp_path))).names) == 20


def test_a_damaged_tar(tmp_path):
    spec = flat_tar(tmp_path)
    path = tmp_path / "ILSVRC2012_img_val.tar"
    path.write_bytes(path.read_bytes()[:7000])
    with pytest.raises(ImageSourceError, match="is cut off|cannot be read as a tar"):
        im.open_source(images(spec))


@pytest.mark.parametrize("layout", [flat_devkit, flat_devkit_text])
def test_the_devkits_files_may_lie_among_the_images(layout, tmp_path):
    spec = layout(tmp_path)
    expected = im.open_source(images(spec)).labels.tolist()
    for path in (tmp_path / "devkit").iterdir():
        path.rename(tmp_path / "val" / path.name)
    truth = tmp_path / "val" / Path(spec["ground_truth"]).name
    # However its path is written.
    for path in (truth, tmp_path / "val" / ".." / "val" / truth.name):
        assert im.open_source(images({**spec, "ground_truth": str(path)})).labels.tolist() == expected
    spec["source"] = f"flat:{tmp_path}/val/../val"
    assert im.open_source(images({**spec, "ground_truth": str(truth)})).labels.tolist() == expected
