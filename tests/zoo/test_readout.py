from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import execute_all, write_study
from torch import nn

from simhpc.stages.prepare import prepare
from simhpc.store import adversarial
from simhpc.study import DataConfig, Model, load_study
from simhpc.zoo import build
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.readout import fit_readout
from simhpc.zoo.resolve import resolve_model
from simhpc.zoo.timm_import import timm

CONFIG = DataConfig(input_size_px=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=1.0)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_efficientnet"])
def test_every_image_is_classified_correctly_and_has_a_gradient(name):
    torch.manual_seed(0)
    images = {"img_size": 32} if "vit" in name else {}
    classifier = PixelClassifier(timm.create_model(name, **images), CONFIG)
    pixels, labels = torch.rand(9, 3, 32, 32), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    fitted = fit_readout(classifier, pixels, labels, 6)
    logits = fitted(pixels)
    assert logits.shape == (9, 6)
    assert torch.equal(logits.argmax(1), labels)
    variable = pixels.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(fitted(variable)[:, 0].sum(), variable)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_it_is_ridge_regression_worked_by_hand():
    """Features x and -x of two images at x = 0 and 2: of spread 1 about 1 and -1, then scaled by 1 / sqrt(2)."""

    class Features(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 0, 0], -x[:, 0, 0, 0]], 1)

    data = CONFIG.model_copy(update={"mean": (0.0,) * 3, "std": (0.5,) * 3})
    fitted = fit_readout(
        PixelClassifier(Features(), data), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1),
        torch.tensor([0, 1]), 2,
    )  # fmt: skip
    # Gram matrix [[1, -1], [-1, 1]] + 0.001 I; targets -+1/2: the solution shrinks by 2 / 2.001.
    off = 10 * 0.5 * 2 / 2.001
    expected = torch.tensor([[5 + off, 5 - off], [5 - off, 5 + off]])
    pixels = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    torch.testing.assert_close(fitted(pixels), expected, rtol=1e-5, atol=1e-5)


def test_a_feature_without_differences_says_nothing():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x[:, :2, 0, 0], torch.full((len(x), 1), 3.0)], 1)

    fitted = fit_readout(PixelClassifier(Constant(), CONFIG), torch.rand(4, 3, 1, 1), torch.tensor([0, 0, 1, 1]), 2)
    assert (fitted.model.weight[:, 2] == 0).all()
    assert fitted.model.weight.isfinite().all()


def test_batch_norms_get_the_statistics_of_the_images_so_that_signals_neither_die_nor_explode():
    torch.manual_seed(0)
    layers = [layer for _ in range(40) for layer in (nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3), nn.GELU())]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    pixels, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    assert network.eval()(pixels).std(0).max() < 1e-6
    fitted = fit_readout(PixelClassifier(network, CONFIG), pixels, labels, 3)
    assert fitted.model.network(pixels).std(0).max() > 1e-3
    assert not any(module.training for module in fitted.modules())
    assert fit_readout(PixelClassifier(network, CONFIG), pixels[:1], labels[:1], 3)(pixels[:1]).argmax() == labels[0]


def test_a_classifier_that_begins_with_zeros_is_woken(tmp_path):
    entry = resolve_model(Model(key="a", timm="gmlp_ti16_224", weights="random"), 10)
    assert not timm.create_model("gmlp_ti16_224").head.weight.any()
    assert build.load(entry, num_classes=10, trained=tmp_path / "none").classifier.model.head.weight.any()


def test_random_weights_come_from_the_seed_and_the_key(tmp_path):
    def weights(key="a", seed=0):
        entry = resolve_model(Model(key=key, timm="test_convnext", weights="random"), 10)
        return build.load(entry, num_classes=10, trained=tmp_path / "none", seed=seed).weights_sha256

    assert weights() == weights()
    assert len({weights(), weights("b"), weights(seed=1)}) == 3


def test_a_study_of_random_models_needs_no_training(tmp_path):
    data = {"input_size_px": 64}
    raw = {
        "name": "random",
        "images": {"source": "sklearn-digits", "n": 12},
        "attack": {"eps_255": 32, "steps": 3},
        "models": [
            {"key": "convnext", "timm": "test_convnext", "weights": "random", "data": data},
            {"key": "efficientnet", "timm": "test_efficientnet", "weights": "random", "data": data},
        ],
    }
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    done = [str(task) for task in execute_all(run)]
    assert not any("train" in task for task in done)
    held = adversarial.load(run.dir.adversarial("convnext"))
    assert len(held.index) == 12
    assert np.abs(held.images.astype(int)).max() > 0
