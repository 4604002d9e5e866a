"""From image files to what a model is given: against timm's own transforms, and one grid against the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from tiny import MODELS, execute_all, tiny, write_study

from simhpc.stages import runtime
from simhpc.stages.prepare import prepare
from simhpc.store import adversarial, image_set, predictions, similarity
from simhpc.study import Model, load_study
from simhpc.zoo import build
from simhpc.zoo.geometry import to_pixels
from simhpc.zoo.resolve import resolve_model
from simhpc.zoo.timm_import import timm

# One of each kind of data config among the paper's models and around them: statistics, interpolation, crop, size.
TAGS = [
    "resnet50.a1_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "inception_v3.tv_in1k",
    "efficientnet_b0.ra_in1k",
    "convnext_tiny.fb_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "botnet26t_256.c1_in1k",
    "mixer_b16_224.goog_in21k_ft_in1k",
    "crossvit_9_240.in1k",
    "resnetv2_50x1_bit.goog_distilled_in1k",
]


@pytest.mark.parametrize("name", TAGS)
def test_a_models_data_config_is_timms_own(name):
    architecture, _, tag = name.partition(".")
    found = resolve_model(Model(key="m", timm=architecture, weights=f"pretrained:{tag}"), 1000).data
    theirs = timm.data.resolve_data_config({}, pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    assert (found.mean, found.std) == (tuple(theirs["mean"]), tuple(theirs["std"]))
    assert (found.interpolation, found.crop_pct) == (theirs["interpolation"], theirs["crop_pct"])
    assert (3, found.input_size_px, found.input_size_px) == theirs["input_size"]


SIZES = [(91, 64), (64, 91), (120, 67), (77, 77), (65, 130), (71, 200)]


def write_photos(folder: Path) -> dict[str, Path]:
    """Photographs of odd shapes, in two classes; paths by stem."""
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    paths = {}
    for k, size in enumerate(SIZES):
        path = folder / "ab"[k % 2] / f"photo-{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photos[k % 2].crop((40, 30, 440, 400)).resize(size, Image.Resampling.LANCZOS).save(path)
        paths[path.stem] = path
    return paths


def views(tmp_path, data, size_px):
    """What a model is given by us, and by timm: uint8 (N, 3, S, S) each; and normalised, float (N, 3, S, S) each."""
    paths = write_photos(tmp_path / "images")
    raw = tiny(("cnn",), images={"source": f"folder:{tmp_path / 'images'}", "n": len(paths) - 1, "size_px": size_px})
    raw["models"][0]["data"] = data
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    model, chosen = run.study.models[0], image_set.load(run.dir.images)
    ours = runtime.to_be_attacked(run, model, chosen.images)
    classifier = build.PixelClassifier(build.untrained(model, 2), model.data)
    settings = {
        "is_training": False, "crop_pct": model.data.crop_pct, "interpolation": model.data.interpolation,
        "mean": model.data.mean, "std": model.data.std,
    }  # fmt: skip
    sources = [Image.open(paths[Path(name).stem]).convert("RGB") for name in chosen.ids]
    whole = timm.data.create_transform(model.data.input_size_px, **settings)
    before = timm.data.create_transform(model.data.input_size_px, **settings, use_prefetcher=True)
    theirs = np.stack([np.asarray(before(source)) for source in sources])
    return ours, theirs, classifier.normalised(to_pixels(ours)), torch.stack([whole(source) for source in sources])


@pytest.mark.parametrize(("side", "crop_pct"), [(56, 0.875), (57, 0.9), (60, 0.95), (33, 1.0), (50, 0.897)])
def test_where_the_stored_size_is_the_models_the_view_is_timms(tmp_path, side, crop_pct):
    stored = int(side / crop_pct)
    data = {"input_size_px": side, "crop_pct": crop_pct, "interpolation": "bicubic", "mean": [0.1, 0.2, 0.3]}
    ours, theirs, given, wanted = views(tmp_path, {**data, "std": [0.4, 0.5, 0.6]}, stored)
    exact = 0
    for k, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if np.array_equal(our, their):
            torch.testing.assert_close(given[k], wanted[k], atol=1e-6, rtol=1e-6)
            exact += 1
            continue
        # An odd margin has no middle: timm rounds that of the whole image, we that of its centre square and then that
        # of the crop. It is the next pixel of the same picture.
        moved = [np.roll(their, shift, axis) for axis in (1, 2) for shift in (-1, 1)]
        inside = (slice(None), slice(1, -1), slice(1, -1))
        assert any(np.array_equal(our[inside], shifted[inside]) for shifted in moved)
    assert exact >= (len(ours) if crop_pct == 1.0 else 2)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_two_resizings_show_nearly_what_one_does(tmp_path, interpolation):
    """Stored larger than needed: resized twice, by us, once, by timm; the same content in the same place."""
    data = {"input_size_px": 40, "crop_pct": 0.8, "interpolation": interpolation, "mean": [0.5] * 3, "std": [0.5] * 3}
    ours, theirs, _, _ = views(tmp_path, data, 64)
    off = np.abs(ours.astype(int) - theirs)
    assert off.mean() < 3.0
    for axis in (2, 3):
        for shift in (-1, 1):
            shifted = np.roll(theirs, shift, axis).astype(int)
            assert np.abs(ours - shifted)[..., 2:-2, 2:-2].mean() > 2 * off[..., 2:-2, 2:-2].mean()


def make_digits(folder: Path, side: int) -> Path:
    bunch = load_digits()
    for k in range(120):
        path = folder / str(bunch.target[k]) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(np.rint(bunch.images[k] * 255 / 16).astype(np.uint8))
        grey.resize((side, side), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.mark.parametrize(("stored", "same"), [(16, True), (20, False)])
def test_both_grids_are_one_where_all_sizes_agree(finished, tmp_path, stored, same):
    """Input = stored size and no crop: the same pixels are attacked, so every number is the same, to the bit."""
    folder, runs = make_digits(tmp_path / "images", stored), []
    for grid in ("native", "canonical"):
        raw = tiny(
            images={"source": f"folder:{folder}", "n": 50, "labels": "index", "size_px": stored}, attack={"grid": grid}
        )
        for model in raw["models"]:
            model["weights"] = f"checkpoint:{finished.dir.checkpoint(model['key'])}"
            model["args"] = {**MODELS[model["key"]]["args"], "num_classes": 10}
            model["data"] = {**model["data"], "crop_pct": 1.0}
            model.pop("training", None)
        runs.append(prepare(load_study(write_study(tmp_path / grid / "study.toml", raw)), tmp_path / grid / "run"))
        execute_all(runs[-1])
    found = []
    for run in runs:
        of_run = []
        for key in ("cnn", "convnext", "vit"):
            attacked, seen = adversarial.load(run.dir.adversarial(key)), predictions.load(run.dir.predictions(key))
            of_run += [attacked.images, attacked.index, seen.clean_pred, seen.clean_margin, seen.adv_pred]
            of_run += [seen.adv_margin]
        found.append([array.tobytes() for array in [*of_run, similarity.load(run.dir.similarity).sat]])
    assert all(one == two for one, two in zip(*found, strict=True)) is same
