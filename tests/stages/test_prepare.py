"""Making a run directory: nothing is written on bad input, nothing held is contradicted."""

from __future__ import annotations

import pytest
from damage import edit_frozen
from layouts import flat_devkit, parquet, photos, tar_of_folders, webdataset, write_tar
from PIL import Image
from tiny import tiny, write_study

from simhpc.errors import BadFileError, ImageSourceError, ModelError, SimhpcError, StudyError
from simhpc.images.labels import imagenet_synsets
from simhpc.rundir import open_run, study_and_root
from simhpc.stages import inputs, train
from simhpc.stages.prepare import check, prepare, version_changes
from simhpc.store import image_set
from simhpc.study import load_study


def study(tmp_path, *args, **changes):
    return load_study(write_study(tmp_path / "study.toml", tiny(*args, **changes)))


def test_the_frozen_copy_is_complete_and_opens_equal(make_study, tmp_path):
    run = prepare(make_study(), tmp_path / "run")
    assert open_run(tmp_path / "run") == run
    text = run.dir.study.read_text()
    for resolved in ("interpolation", "mean", "size_px = 8", "weight_decay", "confidence"):
        assert resolved in text
    assert version_changes(run) == []
    whole = run.dir.frozen.read_text()
    run.dir.frozen.write_text(whole.replace('"timm": "', '"timm": "0'))
    with pytest.raises(BadFileError, match=r"frozen\.json is damaged or was edited"):
        version_changes(run)
    run.dir.frozen.write_text(whole)
    edit_frozen(run, versions={"timm": "0.1"})
    assert any(change.startswith("timm was 0") for change in version_changes(run))


def test_preparing_again_changes_nothing(make_study, tmp_path):
    run = prepare(make_study(), tmp_path / "run")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.dir.root.iterdir()}
    assert prepare(make_study(), tmp_path / "run") == run
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.dir.root.iterdir()} == before


def test_a_contradiction_is_refused_with_the_difference(make_study, tmp_path):
    run = prepare(make_study(), tmp_path / "run")
    before = run.dir.study.read_bytes()
    with pytest.raises(StudyError, match="attack.steps: run directory has 4, study has 9"):
        prepare(make_study(attack={"steps": 9}), tmp_path / "run")
    with pytest.raises(StudyError, match=r"models\.vit: in the run directory, absent from the study"):
        prepare(make_study(("cnn", "convnext")), tmp_path / "run")
    raw = tiny()
    raw["models"][0]["data"] = {**raw["models"][0]["data"], "mean": [0.1, 0.1, 0.1]}
    other = load_study(write_study(tmp_path / "other.toml", raw))
    with pytest.raises(StudyError, match=r"models\.cnn\.data\.mean"):
        prepare(other, tmp_path / "run")
    assert run.dir.study.read_bytes() == before


def test_added_models_and_changed_resources_and_analysis_are_taken_up(make_study, tmp_path):
    prepare(make_study(("cnn",)), tmp_path / "run")
    run = prepare(make_study(("cnn", "vit"), resources={"batch_size": 5}), tmp_path / "run")
    assert [model.key for model in open_run(tmp_path / "run").study.models] == ["cnn", "vit"]
    assert run.study.resources.batch_size == 5
    run = prepare(make_study(("cnn", "vit"), analysis={"clusters": 2}), tmp_path / "run")
    assert open_run(tmp_path / "run").study.analysis.clusters == run.study.analysis.clusters == 2


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ({"timm": "resnet81"}, ModelError),
        ({"weights": "pretrained:none_in1k"}, ModelError),
        ({"weights": "checkpoint:none.pth"}, ModelError),
        ({"args": {"nonsense": 1}}, ModelError),
        ({"training": {"optimizer": "adamm"}}, StudyError),
        ({"training": {"auto_augment": "nonsense"}}, StudyError),
    ],
)
def test_bad_models_leave_nothing_behind(tmp_path, model, error):
    raw = tiny(("cnn",))
    raw["models"][0].update(model)
    if raw["models"][0]["weights"] != "train":
        raw["models"][0].pop("training", None)
    given = load_study(write_study(tmp_path / "study.toml", raw))
    with pytest.raises(error, match="'cnn'"):
        prepare(given, tmp_path / "deep" / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.toml"]


def test_bad_images_leave_nothing_behind(tmp_path):
    folder = tmp_path / "images"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (8, 8), (k, k, k)).save(folder / name / f"{k}.png")
    images = {"source": f"folder:{folder}", "n": 5, "size_px": 8}
    given = study(tmp_path, ("cnn",), images=images)
    (folder / "a" / "1.png").write_text("no picture")
    (folder / "b" / "1.png").write_text("no picture")
    with pytest.raises(ImageSourceError, match=r"1\.png is not a readable image"):
        prepare(given, tmp_path / "deep" / "run")
    (folder / "empty").mkdir()
    with pytest.raises(ImageSourceError, match="empty is empty"):
        check(given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "study.toml"]


@pytest.mark.parametrize("n", [1797, 1798])
def test_no_images_left_or_too_few(tmp_path, n):
    expected = "none is left to train on" if n == 1797 else "1798 images asked for, sklearn-digits has 1797"
    with pytest.raises(SimhpcError, match=expected):
        prepare(study(tmp_path, images={"n": n}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_in_it_is_not_touched(make_study, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(StudyError, match="exists and is not a run directory"):
        prepare(make_study(), tmp_path / "mine")
    with pytest.raises(StudyError, match="exists and is not a run directory"):
        prepare(make_study(), tmp_path / "mine" / "thesis.txt")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_dropping_an_override_is_a_contradiction_too(tmp_path):
    raw = tiny(("cnn",))
    prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    raw["models"][0]["data"] = {"input_size_px": 16}
    fewer = load_study(write_study(tmp_path / "study.toml", raw))
    with pytest.raises(StudyError, match=r"models\.cnn\.data\.crop_pct: run directory has 1\.0, study has 0\.95"):
        prepare(fewer, tmp_path / "run")


def test_images_that_are_lost_are_drawn_again_and_foreign_or_damaged_ones_refused(make_study, tmp_path):
    run = prepare(make_study(("cnn",)), tmp_path / "run")
    whole = run.dir.images.read_bytes()
    run.dir.images.unlink()
    prepare(make_study(("cnn",)), tmp_path / "run")
    assert run.dir.images.exists()
    run.dir.images.write_bytes(whole[:-50])
    with pytest.raises(BadFileError, match=r"images\.h5 .* delete it and run again"):
        prepare(make_study(("cnn",)), tmp_path / "run")
    other = prepare(make_study(("cnn",), images={"n": 50}), tmp_path / "other")
    run.dir.images.write_bytes(other.dir.images.read_bytes())
    with pytest.raises(BadFileError, match="not the image set that this run was begun with"):
        prepare(make_study(("cnn",)), tmp_path / "run")


def test_images_are_not_drawn_again_from_a_source_that_has_changed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "f" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (8, 8), (k, k, 9)).save(tmp_path / "f" / name / f"{k}.png")
    images = {"source": f"folder:{tmp_path / 'f'}", "n": 4, "size_px": 8}
    run = prepare(study(tmp_path, ("cnn",), images=images), tmp_path / "run")
    run.dir.images.unlink()
    for k in range(4):
        Image.new("RGB", (8, 8), (200, k, 9)).save(tmp_path / "f" / "a" / f"{k}.png")
    with pytest.raises(BadFileError, match="has changed since"):
        prepare(study(tmp_path, ("cnn",), images=images), tmp_path / "run")
    assert not run.dir.images.exists()


def test_a_preparation_that_was_killed_is_taken_up(make_study, tmp_path):
    run = prepare(make_study(("cnn",)), tmp_path / "run")
    run.dir.study.unlink()
    (run.dir.root / "images.h5.tmp.host.1").write_text("half")
    assert prepare(make_study(("cnn",)), tmp_path / "run") == run


def test_training_folders_must_have_the_same_classes(tmp_path):
    for folder, names in (("shown", ("cat", "dog")), ("train", ("aardvark", "zebra"))):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            for k in range(3):
                Image.new("RGB", (8, 8), (k, k, 9)).save(tmp_path / folder / name / f"{k}.png")
    given = study(
        tmp_path,
        ("cnn",),
        images={"source": f"folder:{tmp_path / 'shown'}", "n": 4, "size_px": 8},
        training={"images": f"folder:{tmp_path / 'train'}"},
    )
    with pytest.raises(ImageSourceError, match="class index 0 is 'aardvark' there and is 'cat' in the image set"):
        check(given)


def test_the_list_of_a_run_gives_the_same_images_to_another_study(tmp_path):
    run = prepare(study(tmp_path, ("cnn",)), tmp_path / "run")
    listed = tmp_path / "run" / "images.txt"
    assert run.dir.image_list == listed
    assert listed.read_text().splitlines()[1:] == image_set.load(run.dir.images).ids
    raw = tiny(("cnn",), seed=99)
    raw["images"] = {"source": "sklearn-digits", "list": "run/images.txt"}
    given = load_study(write_study(tmp_path / "study.toml", raw))
    assert given.images.n == 70
    other = prepare(given, tmp_path / "other")
    assert image_set.identity(other.dir.images) == image_set.identity(run.dir.images)
    # The order of a list does not matter, what it names does.
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join(reversed(lines)))
    assert prepare(given, tmp_path / "other") == other
    listed.write_text("\n".join([*lines[:-1], "digits-9999"]))
    with pytest.raises(StudyError, match=r"images\.list_sha256: run directory has '.*', study has '.*'"):
        prepare(given, tmp_path / "other")
    with pytest.raises(ImageSourceError, match=r"images\.txt: 'digits-9999' is not among the images"):
        prepare(given, tmp_path / "third")
    frozen = load_study(tmp_path / "other" / "study.toml")
    with pytest.raises(ImageSourceError, match="images.txt names other images than it did"):
        check(frozen)
    assert not (tmp_path / "third").exists()


def test_a_list_that_is_lost_is_written_again(make_study, tmp_path):
    run = prepare(make_study(("cnn",)), tmp_path / "run")
    text = run.dir.image_list.read_text()
    run.dir.image_list.unlink()
    prepare(make_study(("cnn",)), tmp_path / "run")
    assert run.dir.image_list.read_text() == text


def test_n_is_checked_against_the_list_and_needed_without_one(tmp_path):
    (tmp_path / "list.txt").write_text("digits-0001\ndigits-0002\n")
    raw = tiny(("cnn",))
    raw["images"] = {"source": "sklearn-digits", "list": "list.txt", "n": 3}
    given = load_study(write_study(tmp_path / "study.toml", raw))
    with pytest.raises(ImageSourceError, match="images.n = 3, but .*list.txt names 2 images"):
        check(given)
    raw["images"] = {"source": "sklearn-digits"}
    with pytest.raises(StudyError, match="images.n: this key is needed"):
        load_study(write_study(tmp_path / "study.toml", raw))
    raw["images"] = {"source": "sklearn-digits", "list": "none.txt"}
    with pytest.raises(ImageSourceError, match="images.list: cannot read .*none.txt"):
        load_study(write_study(tmp_path / "study.toml", raw))


@pytest.mark.parametrize("layout", [flat_devkit, webdataset, parquet], ids=lambda layout: layout.__name__)
def test_a_run_from_another_layout(layout, tmp_path):
    """Trained on what is left of the layout, by a task that opens it by itself."""
    raw = tiny(("cnn",), training={"epochs": 1})
    raw["images"] = {**layout(tmp_path / "images"), "n": 5, "size_px": 16}
    given = load_study(write_study(tmp_path / "study.toml", raw))
    run = prepare(given, tmp_path / "run")
    (task,) = train.tasks(run)
    assert train.execute(run, task, lambda *_: None)["images"] == 15
    read = inputs.paths(run, "train", ["cnn"])
    assert all(path.is_relative_to(tmp_path / "images") and path.exists() for path in read)
    assert (tmp_path / "images" / "devkit" in read) == (layout is flat_devkit)


def test_a_damaged_shard_leaves_nothing_behind(tmp_path):
    raw = tiny(("cnn",))
    spec = tar_of_folders(tmp_path / "images")
    path = tmp_path / "images" / "val.tar"
    raw["images"] = {**spec, "n": 20, "size_px": 16}
    raw["models"][0]["weights"] = "train"
    raw["training"]["images"] = spec["source"]
    whole = path.read_bytes()
    place = whole.index(photos()[7].jpeg)
    path.write_bytes(whole[:place] + bytes(300) + whole[place + 300 :])
    given = load_study(write_study(tmp_path / "study.toml", raw))
    with pytest.raises(ImageSourceError, match="ILSVRC2012_val_00000008.JPEG is not a readable image"):
        prepare(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def of_imagenet(tmp_path, indices, **more):
    """A study of one of the paper's models, shown images of these classes."""
    jpeg = photos()[0].jpeg
    files = [(f"{imagenet_synsets()[index]}/{index:03d}.jpg", jpeg + bytes([index % 256])) for index in indices]
    source = f"tar:{write_tar(tmp_path / f'{len(indices)}.tar', files)}"
    raw = tiny(
        models=[{"key": "r", "timm": "resnet50", "weights": "pretrained:a1_in1k"}],
        images={"source": source, "labels": "imagenet", "n": 3, "size_px": 16, **more},
    )
    return load_study(write_study(tmp_path / "study.toml", raw))


def test_a_part_of_imagenet_has_no_expected_accuracy(tmp_path):
    part = of_imagenet(tmp_path, range(0, 100, 10))
    for _ in range(2):
        assert prepare(part, tmp_path / "part").study.model("r").expected_top1_percent is None
    whole = of_imagenet(tmp_path, range(1000))
    # At first from the source, then from what was written down.
    for _ in range(2):
        assert prepare(whole, tmp_path / "whole").study.model("r").expected_top1_percent == 80.374
    (tmp_path / "list.txt").write_text("000\n010\n020\n")
    listed = of_imagenet(tmp_path, range(1000), list="list.txt")
    assert check(listed).model("r").expected_top1_percent is None


def test_a_list_that_is_gone_is_not_missed_by_a_run_begun_from_it(tmp_path):
    (tmp_path / "list.txt").write_text("digits-0001\ndigits-0002\ndigits-0003\n")
    raw = tiny(("cnn",))
    raw["images"] = {"source": "sklearn-digits", "list": "list.txt"}
    file = write_study(tmp_path / "study.toml", raw)
    given, root = study_and_root(file, tmp_path / "run")
    run = prepare(given, root)
    before = run.dir.study.read_bytes()
    (tmp_path / "list.txt").rename(tmp_path / "moved.txt")
    given, root = study_and_root(file, tmp_path / "run")
    assert prepare(given, root) == run
    assert run.dir.study.read_bytes() == before
    # Another run needs it, and so does a study that names another one.
    with pytest.raises(ImageSourceError, match="cannot read .*list.txt"):
        study_and_root(file, tmp_path / "other")
    raw["images"]["n"] = 3
    with pytest.raises(ImageSourceError, match="cannot read .*list.txt"):
        prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "other")
    raw["images"]["list_sha256"] = "0" * 64
    with pytest.raises(StudyError, match="images.list_sha256: run directory has"):
        prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    raw["images"] = {"source": "sklearn-digits", "list": "none.txt"}
    with pytest.raises(ImageSourceError, match="cannot read .*none.txt"):
        study_and_root(write_study(tmp_path / "study.toml", raw), tmp_path / "run")
    # Where it is there again, what it says counts.
    (tmp_path / "list.txt").write_text("digits-0004\n")
    raw["images"]["list"] = "list.txt"
    with pytest.raises(StudyError, match="images.n: run directory has 3, study has 1"):
        prepare(study_and_root(write_study(file, raw), root)[0], root)


@pytest.mark.parametrize("name", ["x" * 1000, "a\0b", "../..", 7])
def test_a_name_that_is_none_is_told_as_ever(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match="name"):
        study_and_root(write_study(tmp_path / "study.toml", tiny(name=name)), None)


def test_a_dry_run_draws_no_lost_images(make_study, tmp_path):
    run = prepare(make_study(("cnn",)), tmp_path / "run")
    run.dir.images.unlink()
    run.dir.image_list.unlink()
    before = {path: path.stat().st_mtime_ns for path in run.dir.root.rglob("*")}
    assert prepare(make_study(("cnn",)), tmp_path / "run", dry_run=True) == run
    assert {path: path.stat().st_mtime_ns for path in run.dir.root.rglob("*")} == before
