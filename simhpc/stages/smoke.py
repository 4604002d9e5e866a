"""`python -m simhpc.stages.smoke`: every module imports, and one model can be attacked. An image's test of itself."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import torch

import simhpc
from simhpc.attacks.attack import attack_images
from simhpc.attacks.batches import Target
from simhpc.stages import device
from simhpc.stages.method import resolve_attack, settings_of
from simhpc.study import Attack, DataConfig
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.timm_import import timm

_EPS_255 = 8


def import_all() -> int:
    """Import every module of the package; how many there are."""
    names = [module.name for module in pkgutil.walk_packages(simhpc.__path__, "simhpc.")]
    for name in names:
        import_module(name)
    return len(names)


def attack_once(on: torch.device) -> None:
    """One PGD step against a small timm model with random weights.

    Raises:
        RuntimeError: it does not run there, or what comes out is no adversarial image.
    """
    torch.manual_seed(0)
    side = 32
    network = timm.create_model("test_resnet", num_classes=10)
    data = DataConfig(
        input_size_px=side, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear", crop_pct=1.0
    )
    target = Target(PixelClassifier(network, data).to(on), on)
    clean = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    settings = settings_of(resolve_attack(Attack(eps_255=_EPS_255, steps=1)))
    labels = torch.tensor([0, 1])
    made = attack_images(
        target, clean, labels, [[0, 1]], settings, batch_size=2, finished={}, on_batch=lambda _first, _images: None
    )
    moved = int((made.int() - clean.int()).abs().max())
    if not 0 < moved <= _EPS_255:
        raise RuntimeError(f"a PGD step on {on} moved pixels by {moved}/255, not by 1 to {_EPS_255}")


def attack_everywhere() -> list[str]:
    """`attack_once` on the CPU and on every CUDA device; their names, `CPU` first.

    Raises:
        RuntimeError: see `attack_once`; or a device is there, but nothing can be computed on it.
    """
    names = device.cuda_devices()
    for on in ["cpu", *(f"cuda:{number}" for number in range(len(names)))]:
        attack_once(torch.device(on))
    return ["CPU", *names]


def main() -> None:
    """Import everything, and attack on everything."""
    count, names = import_all(), attack_everywhere()
    print(f"simhpc {simhpc.__version__}: {count} modules import, one PGD step on {', '.join(names)}")


if __name__ == "__main__":
    main()
