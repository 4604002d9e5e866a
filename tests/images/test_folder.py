"""Class folders, and everything that can be wrong with one; what is stored of images; what is left for training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simhpc import images as im
from simhpc.errors import ImageSourceError
from simhpc.study import Images


def make_folder(root: Path, classes: dict[str, int], side: int = 12) -> Path:
    """Class folders of random but reproducible PNGs."""
    random = np.random.default_rng(0)
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for k in range(count):
            pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


def spec(root: Path, n: int = 4, **more) -> Images:
    return Images(source=f"folder:{root}", n=n, size_px=12, **more)


def opened(root: Path, labels: str = "sorted"):
    return im.open_source(spec(root, labels=labels))


def labels_of(source) -> dict[str, int]:
    return dict(zip(source.names, source.labels.tolist(), strict=True))


def test_digits_are_the_scans_of_scikit_learn():
    from sklearn.datasets import load_digits

    source = im.open_source(Images(source="sklearn-digits", n=1))
    assert len(source.names) == 1797
    bunch = load_digits()
    pixels = np.asarray(source.image(3))
    assert pixels.shape == (8, 8, 3)
    # 17 grey levels, evenly spread over 0..255; the three channels are equal.
    np.testing.assert_allclose(pixels[..., 0] / 255 * 16, bunch.images[3], atol=0.04)
    assert source.labels[3] == bunch.target[3]


def test_image_set_holds_the_chosen_images_and_training_gets_the_others():
    source = im.open_source(Images(source="sklearn-digits", n=1))
    chosen = im.build_image_set(Images(source="sklearn-digits", n=100), source, 0, "hash")
    assert chosen.images.shape == (100, 3, 8, 8)
    assert chosen.images.dtype == np.uint8
    assert np.bincount(chosen.labels).tolist() == pytest.approx([10] * 10, abs=1)
    rest = im.training_positions(source, chosen)
    held_out = {image.tobytes() for image in chosen.images}
    assert len(rest) + 100 <= 1797
    assert not any(np.asarray(source.image(k)).transpose(2, 0, 1).tobytes() in held_out for k in rest)


def test_a_copy_under_another_name_is_not_trained_on(tmp_path):
    root = make_folder(tmp_path / "val", {"a": 3, "b": 3})
    source = opened(root)
    chosen = im.build_image_set(spec(root, n=2), source, 0, "hash")
    other = make_folder(tmp_path / "train", {"a": 1, "b": 1}, side=10)
    (other / "a" / "copy.png").write_bytes((root / f"{chosen.ids[0]}.png").read_bytes())
    train = opened(other)
    kept = [train.names[k] for k in im.training_positions(train, chosen)]
    assert kept == ["a/0", "b/0"]


def test_training_classes_must_mean_the_same():
    shown = ["cat", "dog", "", "emu"]
    im.check_classes(["cat", "dog"], shown, "folder:t")
    im.check_classes(["", "dog", "", "emu"], shown, "folder:t")
    with pytest.raises(ImageSourceError, match="folder:t: class index 0 is 'dog' there and is 'cat' in the image set"):
        im.check_classes(["dog"], shown, "folder:t")
    with pytest.raises(ImageSourceError, match="class index 4 is 'fox' there and is no class of the image set"):
        im.check_classes([*shown, "fox"], shown, "folder:t")


def test_labels_by_sorted_position_index_and_map(tmp_path):
    root = make_folder(tmp_path / "f", {"10": 1, "2": 1, "430": 2})
    # Natural order, as timm sorts: 2 before 10.
    assert labels_of(opened(root)) == {"2/0": 0, "10/0": 1, "430/0": 2, "430/1": 2}
    by_index = opened(root, "index")
    assert labels_of(by_index)["430/0"] == 430
    assert len(by_index.classes) == 431
    assert by_index.classes[2] == "2"
    assert by_index.classes[3] == ""
    (tmp_path / "map.txt").write_text("# folder index\n10 7\n2,5\n430\t1\n999 0\n")
    (tmp_path / "map.json").write_text(json.dumps({"10": 7, "2": 5, "430": 1}))
    for name in ("map.txt", "map.json"):
        mapped = opened(root, f"map:{tmp_path / name}")
        assert labels_of(mapped) == {"2/0": 5, "10/0": 7, "430/0": 1, "430/1": 1}


def test_images_of_any_size_become_centre_squares(tmp_path):
    root = tmp_path / "f"
    (root / "a").mkdir(parents=True)
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 200  # the centre square of a wide image
    Image.fromarray(pixels).save(root / "a" / "wide.png")
    Image.fromarray(pixels[..., 0]).save(root / "a" / "zgrey.png")
    source = opened(root)
    stored = im.build_image_set(Images(source=f"folder:{root}", n=2, size_px=10), source, 0, "h")
    assert np.all(stored.images == 200)
    resized = im.build_image_set(Images(source=f"folder:{root}", n=2, size_px=5), source, 0, "h")
    assert resized.images.shape == (2, 3, 5, 5)


@pytest.mark.parametrize(
    ("break_it", "labels", "expected"),
    [
        (lambda root: (root / "empty").mkdir(), "sorted", "empty is empty"),
        (lambda root: (root / "a" / "notes.txt").write_text("x"), "sorted", "notes.txt is not an image"),
        (lambda root: (root / "a" / "inner").mkdir(), "sorted", "inner is not an image"),
        (lambda root: None, "index", "the class a is no class index"),
        (lambda root: None, "map:{root}/../none.txt", "cannot read the label map"),
        (lambda root: (root.parent / "m.txt").write_text("a 1\n"), "map:{root}/../m.txt", "b is not in the label map"),
        (lambda root: (root.parent / "m.txt").write_text("a 1\nb 1\n"), "map:{root}/../m.txt", "same class index 1"),
        (lambda root: (root.parent / "m.txt").write_text("a one\n"), "map:{root}/../m.txt", "'a one' is not a folder"),
        (lambda root: (root.parent / "m.txt").write_text("a ²\n"), "map:{root}/../m.txt", "'a ²' is not a folder"),
        (lambda root: (root.parent / "m.txt").write_text("a 9999999\n"), "map:{root}/../m.txt", "is not a folder"),
        (lambda root: (root.parent / "m.json").write_text("[1]"), "map:{root}/../m.json", "cannot read the label map"),
    ],
)
def test_broken_folders_are_named(tmp_path, break_it, labels, expected):
    root = make_folder(tmp_path / "f", {"a": 2, "b": 2})
    break_it(root)
    with pytest.raises(ImageSourceError, match=expected):
        opened(root, labels.format(root=root))


def test_hidden_files_and_folders_are_no_images(tmp_path):
    root = make_folder(tmp_path / "f", {"a": 1})
    (root / "a" / ".DS_Store").write_text("x")
    (root / "a" / "Thumbs.db").write_text("x")
    (root / "a" / "._0.png").write_text("macOS leaves these beside images on foreign disks")
    (root / ".cache").mkdir()
    assert opened(root).places.tolist() == [0]
    assert list(opened(root).names) == ["0"]


def test_missing_and_classless_folders(tmp_path):
    with pytest.raises(ImageSourceError, match="no folder"):
        opened(tmp_path / "none")
    with pytest.raises(ImageSourceError, match="no class folders"):
        opened(tmp_path)


def test_a_file_that_is_no_image_is_an_error_and_not_its_neighbour(tmp_path):
    # timm's own dataset would silently show the next image instead.
    root = make_folder(tmp_path / "f", {"a": 2})
    (root / "a" / "0.png").write_text("not a picture")
    source = opened(root)
    with pytest.raises(ImageSourceError, match=r"0\.png is not a readable image"):
        im.build_image_set(spec(root, n=2), source, 0, "h")


def test_a_truncated_image_is_an_error(tmp_path):
    root = make_folder(tmp_path / "f", {"a": 1})
    whole = (root / "a" / "0.png").read_bytes()
    (root / "a" / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageSourceError, match=r"0\.png is not a readable image"):
        im.build_image_set(spec(root, n=1), opened(root), 0, "h")


def test_more_images_than_there_are(tmp_path):
    root = make_folder(tmp_path / "f", {"a": 2})
    with pytest.raises(ImageSourceError, match="3 images asked for, folder:.* has 2"):
        im.selection(spec(root, n=3), opened(root), 0)


@pytest.mark.parametrize("name", ["val", "validation", "train", "test"])
def test_a_class_may_be_called_like_a_split(name, tmp_path):
    root = make_folder(tmp_path / "f", {"aardvark": 2, name: 2})
    assert labels_of(opened(root)) == {"aardvark/0": 0, "aardvark/1": 0, f"{name}/0": 1, f"{name}/1": 1}


def test_images_beside_the_class_folders_are_not_left_out_without_a_word(tmp_path):
    root = make_folder(tmp_path / "f", {"a": 2})
    (root / "classes.txt").write_text("a")
    (root / "._1.png").write_text("x")
    assert len(opened(root).names) == 2
    (root / "1.PNG").write_bytes((root / "a" / "1.png").read_bytes())
    with pytest.raises(ImageSourceError, match="1.PNG lies in no class folder"):
        opened(root)
