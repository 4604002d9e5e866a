"""simhpc's attack as the benchmarks use it: the only module here that touches `simhpc.attacks` or loads classifiers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks.attacker import Attacker, Victim
from benchmarks.measures import OURS
from benchmarks.settings import AttackSettings, as_asked, torch_state_kept
from simhpc.attacks.attack import attack_images
from simhpc.attacks.batches import predict
from simhpc.rundir import Run
from simhpc.stages.runtime import set_up_torch
from simhpc.store import image_set
from simhpc.study import DataConfig, Resources
from simhpc.zoo import build
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.geometry import clean_view

_PREDICT_BATCH_SIZE = 64


def attacker(victim: Victim, settings: AttackSettings) -> Attacker:
    """Our attack. Precision and compilation are put around the model from outside, as for the peers."""
    classifier = _classifier(victim).to(settings.device)
    module = as_asked(classifier, settings).eval().requires_grad_(False)

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        resources = Resources(
            device="cuda" if settings.device.type == "cuda" else "cpu", threads_per_task=torch.get_num_threads()
        )
        with torch_state_kept():
            # Ours is measured with the deterministic kernels of a task, the peers with their defaults.
            set_up_torch(resources)
            return attack_images(
                module,
                images,
                labels,
                range(len(images)),
                eps_255=settings.eps_255,
                step_size_eps=settings.step_size_eps,
                steps=settings.steps,
                batch_size=settings.batch_size,
                device=settings.device,
                finished={},
                on_batch=lambda *_: None,
            )

    return Attacker(OURS, module, attack)


def predicted(victim: Victim, images: Tensor, device: torch.device) -> Tensor:
    """The model's float32 answers to 8-bit images: int64 (N,). The same judge for all libraries."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    return predict(_classifier(victim).to(device), images, labels, _PREDICT_BATCH_SIZE, device)[0]


def trained_victim(run: Run, key: str) -> Victim:
    """A model that a run has trained, with the images of the run that it gets right."""
    model, chosen = run.study.model(key), image_set.load(run.dir.images)
    loaded = build.load(
        model, num_classes=chosen.num_classes, trained=run.dir.checkpoint(key), fits_inside=False
    ).classifier
    assert model.data.mean is not None
    assert model.data.std is not None
    images, labels = torch.from_numpy(clean_view(chosen.images, model.data)), torch.from_numpy(chosen.labels).long()
    right = predict(loaded, images, labels, _PREDICT_BATCH_SIZE, torch.device("cpu"))[0] == labels
    # Frozen by our classifier; a peer's user has it as timm made it.
    network = loaded.model.requires_grad_(True)
    return Victim(key, network, model.data.mean, model.data.std, images[right], labels[right])


def _classifier(victim: Victim) -> PixelClassifier:
    """A copy, because a classifier freezes its model."""
    data = DataConfig(input_size_px=victim.images.shape[-1], mean=victim.mean, std=victim.std)
    return PixelClassifier(copy.deepcopy(victim.model), data)
