"""What analyses are done of: here, how two studies differ (the rest is tested where it is used)."""

from __future__ import annotations

from simhpc.offline.inputs import _differences


def test_what_many_models_differ_in_is_one_line(make_study):
    keys = ["cnn", "convnext", "vit", "cnn-again"]
    here = make_study(keys, training={"epochs": 3})
    there = make_study(keys, training={"epochs": 4}, attack={"eps_255": 4, "steps": 4, "step_size_eps": 0.4})
    # The tiny ViT has epochs of its own.
    assert _differences(here, there, keys) == [
        "attack.eps_255: here 32, there 4",
        *(f"models.{key}.training.epochs: here 3, there 4" for key in ("cnn", "convnext", "cnn-again")),
    ]
    many = make_study(keys, training={"epochs": 4, "lr": 1e-3})
    changed = many.model_copy(
        update={
            "models": tuple(
                model.model_copy(update={"training": model.training.model_copy(update={"lr": 0.5})})
                for model in many.models
            )
        }
    )
    assert _differences(many, changed, keys) == [
        "training.lr: differs for 4 of 4 models (cnn, convnext, vit, ...)",
    ]
    assert _differences(here, here, keys) == []
