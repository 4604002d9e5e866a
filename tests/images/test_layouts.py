"""The same images are the same image set, in whatever layout they lie."""

from __future__ import annotations

import numpy as np
import pytest
from layouts import LAYOUTS, arrow, folder, hf_path, hf_table, images, parquet, photos, webdataset

from simhpc import images as im
from simhpc.images.labels import imagenet_synsets
from simhpc.store import image_set


def stored(spec, path, seed=3):
    im.build_image_set(spec, im.open_source(spec), seed, "h").save(path)
    return image_set.load(path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    root = tmp_path_factory.mktemp("reference")
    return stored(images(folder(root / "images")), root / "images.h5")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_set(layout, reference, tmp_path):
    found = stored(images(layout(tmp_path / "images")), tmp_path / "images.h5")
    assert found.ids == reference.ids
    assert found.sha256 == reference.sha256 == image_set.identity(tmp_path / "images.h5")
    assert found.content_ids == reference.content_ids
    # Not only the same, but right.
    truth = {photo.name: photo for photo in photos()}
    assert found.labels.tolist() == [truth[name].index for name in found.ids]
    assert all(
        f"{len(truth[name].jpeg)}-" in content for name, content in zip(found.ids, found.content_ids, strict=True)
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_holds_all_images(layout, tmp_path):
    source = im.open_source(images(layout(tmp_path)))
    assert list(source.names) == sorted(photo.name for photo in photos())
    for position, photo in enumerate(photos()):
        assert source.content_size(position) == len(photo.jpeg)
        assert source.image(position).size[0] == 12 + position + 1
    assert sorted(source.places.tolist()) == list(range(len(photos())))


@pytest.mark.parametrize("layout", [folder, webdataset, parquet, arrow], ids=lambda layout: layout.__name__)
def test_what_is_shown_is_not_trained_on_from_another_layout(layout, reference, tmp_path):
    source = im.open_source(images(layout(tmp_path)))
    rest = [source.names[position] for position in im.training_positions(source, reference)]
    assert sorted([*rest, *reference.ids]) == sorted(photo.name for photo in photos())


def test_another_seed_draws_other_images(reference, tmp_path):
    other = stored(images(folder(tmp_path / "images")), tmp_path / "images.h5", seed=4)
    assert other.ids != reference.ids
    assert other.sha256 != reference.sha256


def test_the_identity_is_of_pixels_labels_and_names(reference, tmp_path):
    from dataclasses import replace

    def identity(**change):
        replace(reference, **change).save(tmp_path / "x.h5")
        return image_set.identity(tmp_path / "x.h5")

    assert identity() == reference.sha256
    # Where it came from, and how its files were encoded, does not matter.
    assert identity(source="x", settings_sha256="y", classes=["z"], content_ids=["0-0"] * 10) == reference.sha256
    changed = reference.images.copy()
    changed[0, 0, 0, 0] ^= 1
    changes = [{"images": changed}, {"labels": reference.labels[::-1].copy()}, {"ids": [*reference.ids[:-1], "x"]}]
    assert len({reference.sha256, *(identity(**change) for change in changes)}) == 4


def test_classes_of_imagenet_are_the_same_thousand_everywhere(tmp_path):
    for layout in (folder, parquet, arrow):
        assert im.open_source(images(layout(tmp_path / layout.__name__))).classes == imagenet_synsets()
    by_number = im.open_source(images(webdataset(tmp_path / "w"))).classes
    assert (len(by_number), by_number[999], by_number[998]) == (1000, "999", "")


def test_a_list_of_one_layout_serves_another(reference, tmp_path):
    from simhpc import image_list

    path = tmp_path / "list.txt"
    path.write_text(image_list.text(reversed(reference.ids)))
    for layout in (folder, parquet, webdataset):
        spec = images(layout(tmp_path / layout.__name__), list=str(path))
        assert stored(spec, tmp_path / "listed.h5").sha256 == reference.sha256


def test_images_without_names_are_called_after_their_rows(tmp_path):
    import pyarrow.parquet

    table = hf_table(photos(), imagenet_synsets(), lambda photo: None)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = im.open_source(images({"source": f"hf:{tmp_path}", "labels": "imagenet"}))
    assert source.names[11] == "row-00000011"
    assert source.labels[11] == photos()[11].index
    twice = hf_table([*photos(), photos()[0]], imagenet_synsets(), hf_path)
    pyarrow.parquet.write_table(twice, tmp_path / "a.parquet")
    assert im.open_source(images({"source": f"hf:{tmp_path}", "labels": "imagenet"})).names[20] == "row-00000020"


def test_threads_and_the_order_of_reading_change_nothing(reference, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(1))
    alone = stored(images(parquet(tmp_path / "images")), tmp_path / "images.h5")
    np.testing.assert_array_equal(alone.images, reference.images)
