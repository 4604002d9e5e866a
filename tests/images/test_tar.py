"""Tars: agreement with timm's own readers, and all that can be wrong with a shard."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from layouts import images, photos, shards_of_folders, tar_of_folders, tar_per_class, webdataset, write_tar
from PIL import Image

from simhpc import images as im
from simhpc.errors import ImageSourceError
from simhpc.images.tarfiles import members


def tar_source(path, labels="imagenet", n=4):
    spec = images({"source": f"tar:{path}", "labels": labels}, n=n)
    return spec, im.open_source(spec)


@pytest.mark.parametrize("layout", [tar_of_folders, shards_of_folders, tar_per_class])
def test_timms_reader_finds_the_same_images_and_classes(layout, tmp_path):
    from simhpc.zoo.timm_import import timm

    spec = images(layout(tmp_path), n=20)
    source = im.open_source(spec)
    reader = timm.data.readers.reader_image_in_tar.ReaderImageInTar(
        spec.source.removeprefix("tar:"), cache_tarinfo=False
    )
    theirs = {}
    for position in range(len(reader)):
        stream, target = reader[position]
        pixels = np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB"))
        theirs[reader.filename(position, basename=True).removesuffix(".JPEG")] = (
            reader.class_idx_to_name[target],
            pixels.tobytes(),
        )
    ours = {
        name: (source.classes[source.labels[position]], np.asarray(source.image(position)).tobytes())
        for position, name in enumerate(source.names)
    }
    assert ours == theirs


def test_a_corrupted_image_in_a_shard_is_named(tmp_path):
    files = [(f"{photo.synset}/{photo.name}.JPEG", photo.jpeg) for photo in photos()]
    files[3] = (files[3][0], files[3][1][:200])
    spec, source = tar_source(write_tar(tmp_path / "v.tar", files), n=20)
    with pytest.raises(ImageSourceError, match=r"v\.tar: n.*/ILSVRC2012_val_00000004\.JPEG is not a readable image"):
        im.build_image_set(spec, source, 0, "h")


def test_a_shard_that_is_cut_off_or_damaged_is_not_taken_for_a_shorter_one(tmp_path):
    path = write_tar(tmp_path / "v.tar", [(f"a/{photo.name}.JPEG", photo.jpeg) for photo in photos()])
    whole, inside = path.read_bytes(), members(path)
    assert len(inside) == 20
    header = inside[9].offset_bytes - 512
    for damaged in (whole[:header], whole[: header + 100], whole[: header + 600]):
        path.write_bytes(damaged)
        with pytest.raises(ImageSourceError, match="v.tar (is cut off|cannot be read as a tar)"):
            members(path)
    path.write_bytes(whole[:header] + b"x" * 512 + whole[header + 512 :])
    with pytest.raises(ImageSourceError, match=f"cut off or damaged at byte {header}"):
        members(path)
    path.write_bytes(b"")
    with pytest.raises(ImageSourceError, match="cannot be read as a tar"):
        members(path)


def test_compressed_tars_and_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a/b.png"))
    with pytest.raises(ImageSourceError, match="without compression"):
        members(tmp_path / "z.tar")
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        link = tarfile.TarInfo("a/b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ImageSourceError, match="b.png is a link"):
        members(tmp_path / "l.tar")


def test_a_shard_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = write_tar(tmp_path / "v.tar", [(f"a/{photo.name}.JPEG", photo.jpeg) for photo in photos()])
    _, source = tar_source(path, labels="sorted")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageSourceError, match="ILSVRC2012_val_00000020.JPEG cannot be read: .*shorter"):
        source.image(19)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([("a.jpg", b"x")], "a.jpg lies in no class folder; .* 'flat:'"),
        ([("a/notes.txt", b"x")], "notes.txt is not an image"),
        ([("n01440764.tar", b"x")], "holds tars, such as n01440764.tar"),
        ([], "holds no images"),
        ([("a.jpg", b"x"), ("a.cls", b"0"), ("b.cls", b"0")], "b has 0 images"),
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"0")], "a has 2 images"),
        ([("a.jpg", b"x"), ("b.jpg", b"x"), ("a.cls", b"0")], "b has no readable class"),
        ([("a.jpg", b"x"), ("a.json", b"[1]")], "a has no readable class"),
        ([("a.jpg", b"x"), ("a.json", b'{"klass": 1}')], "a has no readable class"),
        ([("a.jpg", b"x"), ("a.cls", b"0"), ("a.jpg", b"x")], "holds a.jpg twice"),
        ([("c/a.jpg", b"x"), ("d/c/a.jpg", b"x")], "two images are called c/a.jpg"),
    ],
)
def test_broken_tars_are_named(files, expected, tmp_path):
    with pytest.raises(ImageSourceError, match=expected):
        tar_source(write_tar(tmp_path / "v.tar", files), labels="index")


def test_splits_in_one_folder_are_not_mixed_and_missing_shards_are_missed(tmp_path):
    webdataset(tmp_path)
    with pytest.raises(
        ImageSourceError, match="holds the files of imagenet1k-train, imagenet1k-validation: .* pattern"
    ):
        tar_source(tmp_path, labels="index")
    with pytest.raises(ImageSourceError, match="no .tar files"):
        tar_source(tmp_path / "test-*.tar")
    for number in (0, 2):
        write_tar(tmp_path / "few" / f"val-{number:05d}-of-00003.tar", [("a/x.jpg", b"")])
    with pytest.raises(ImageSourceError, match="of val-...-of-00003 there are the files 0, 2: some are missing"):
        tar_source(tmp_path / "few")


def test_hidden_files_in_tars_are_no_images(tmp_path):
    files = [("a/._x.jpg", b"x"), ("a/.DS_Store", b"x"), ("a/x.jpg", photos()[0].jpeg)]
    _, source = tar_source(write_tar(tmp_path / "v.tar", files), labels="sorted")
    assert list(source.names) == ["x"]
