"""The models that are attacked, and their images. No pretrained weights are needed.

Images of 224 pixels are crops of the two photographs that scikit-learn ships, so that they compress and round
like photographs. Speed does not depend on the weights, so ImageNet models have random ones; whether an attack
succeeds does, and for that a small model is trained on scikit-learn's digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from benchmarks import ours
from benchmarks.attacker import Victim
from benchmarks.settings import torch_state_kept
from simhpc.rundir import Run
from simhpc.stages import stage_module
from simhpc.stages.prepare import prepare
from simhpc.stages.task import Task
from simhpc.study import Study, parse_study
from simhpc.zoo.timm_import import timm

DIGITS_SIZE_PX = 32

DIGITS_THREADS = 1
"""What a task takes by default. With more, operations this small wait for each other whenever a core is busy elsewhere:
on a loaded machine the same work took from 1 to 40 times as long."""


def photos(n: int, size_px: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random square crops of two photographs: uint8 (n, 3, size_px, size_px)."""
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    random = np.random.default_rng(seed)
    crops = []
    for position in range(n):
        source = sources[position % len(sources)]
        side = int(random.integers(min(source.size) // 2, min(source.size) + 1))
        left, top = (int(random.integers(0, length - side + 1)) for length in source.size)
        crop = source.resize((size_px, size_px), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        crops.append(np.asarray(crop).transpose(2, 0, 1))
    return np.stack(crops)


def untrained(name: str, n: int, size_px: int, **arguments: Any) -> Victim:
    """One of timm's architectures with random weights, labelled by its own answers to `n` photographs."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    config = timm.data.resolve_model_data_config(model)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    images = torch.from_numpy(photos(n, size_px))
    calibrate(model, (images.float() / 255.0 - _channels(mean)) / _channels(std))
    victim = Victim(name, model.eval(), mean, std, images, torch.zeros(n, dtype=torch.int64))
    labels = ours.predicted(victim, images, torch.device("cpu"))
    return Victim(name, model, mean, std, images, labels)


def trained_digits(root: Path, n: int, epochs: int) -> Victim:
    """A small ResNet trained on digits, with those of `n` others that it gets right.

    Args:
        root: where its run directory is made.
    """
    run = digits_run(root, ["digits"], n, epochs=epochs)
    execute(run, "train")
    return ours.trained_victim(run, "digits")


def digits_run(root: Path, keys: list[str], n: int, *, epochs: int, steps: int = 10, device: str = "cpu") -> Run:
    """A run directory of `digits_study`; nothing is executed yet."""
    return prepare(digits_study(keys, n, epochs=epochs, steps=steps, device=device), root)


def digits_study(keys: list[str], n: int, *, epochs: int, steps: int = 10, device: str = "cpu") -> Study:
    """Small ResNets that differ in nothing but their initialisation.

    Args:
        n: images that are attacked; the other digits train the models.
    """
    architecture = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 96], "stem_width": 16}
    raw = {
        "name": "digits",
        "images": {"source": "sklearn-digits", "n": n},
        "training": {"epochs": epochs, "lr": 2e-3, "hflip_prob": 0.0},
        "attack": {"steps": steps},
        "resources": {"device": device, "threads_per_task": DIGITS_THREADS},
        "models": [
            {
                "key": key,
                "timm": "resnet18",
                "weights": "train",
                "args": architecture,
                "data": {"input_size_px": DIGITS_SIZE_PX, "crop_pct": 1.0},
            }
            for key in keys
        ],
    }
    return parse_study(raw, base=Path(), where="benchmark")


def execute(run: Run, stage: str, key: str | None = None) -> None:
    """Do a stage's tasks in this process, all of them or one model's, whether or not they are done."""
    module = stage_module(stage)
    tasks = module.tasks(run) if key is None else [Task(stage, key)]
    with torch_state_kept():
        for task in tasks:
            module.execute(run, task, lambda *_: None)


@torch.no_grad()
def calibrate(model: nn.Module, inputs: Tensor) -> None:
    """Give the batch norms of a randomly initialised model the statistics of some normalised inputs.

    With the initial ones (mean 0, variance 1) activations grow from block to block until they overflow. Gains
    that timm sets to zero to begin training with (they switch residual branches off) are set to one.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        if norm.weight is not None and not norm.weight.any():
            norm.weight.fill_(1.0)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the statistics of the one pass that follows, without the initial ones
    model.train()
    model(inputs)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)
