"""One door to a ready model: `load` gives the attackable model of a study's entry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from simhpc.errors import ModelError
from simhpc.seeds import derive_seed
from simhpc.store.checkpoint import file_sha256
from simhpc.study import Model
from simhpc.zoo import own, weights
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.readout import wake
from simhpc.zoo.resolve import create_arguments
from simhpc.zoo.timm_import import timm
from simhpc.zoo.training.seeding import seed_everything


@dataclass(frozen=True)
class Loaded:
    """A model in memory, and the identity of its weights."""

    classifier: PixelClassifier
    weights_sha256: str


def untrained(model: Model, num_classes: int, *, to_train: bool = False) -> nn.Module:
    """The architecture with fresh weights from torch's current random state (with weights `own`, its function's).

    Args:
        model: a resolved entry.
        num_classes: classes of the image set.
        to_train: with the stochastic depth of its training, which is no part of it later.
    """
    if model.module is not None:
        return own.build(model, num_classes)
    built: nn.Module = timm.create_model(**create_arguments(model, num_classes, to_train=to_train))
    return built


def load(
    model: Model,
    *,
    num_classes: int,
    trained: Path,
    seed: int = 0,
    fits_inside: bool = False,
    in_bfloat16: bool = False,
) -> Loaded:
    """A resolved entry with its weights, frozen, on the CPU.

    Args:
        num_classes: classes of the image set.
        trained: where the train stage writes this model's checkpoint.
        seed: the study's, for random weights.
        fits_inside, in_bfloat16: see `PixelClassifier`.

    Raises:
        ModelError, MissingInputError, BadFileError: the weights cannot be had, or are not those of the study.
    """
    if model.is_pretrained:
        built = weights.load_pretrained(model, create_arguments(model, num_classes))
    elif model.is_trained_here:
        built = weights.to_model(untrained(model, num_classes), weights.read_trained(trained))
    elif model.is_random:
        seed_everything(derive_seed(seed, "random", model.key))
        built = untrained(model, num_classes)
        wake(built)
    elif model.weights == "own":
        built = own.build(model, num_classes)
        if (found := weights.weights_sha256(built)) != model.weights_sha256:
            raise ModelError(
                f"model {model.key!r}: {model.module} returns other weights than when the run directory was made "
                f"(SHA-256 {found}, then {model.weights_sha256})"
            )
    else:
        if (found := file_sha256(model.checkpoint_path)) != model.checkpoint_sha256:
            raise ModelError(
                f"model {model.key!r}: {model.checkpoint_path} has changed since the run directory was made "
                f"(SHA-256 {found}, then {model.checkpoint_sha256})"
            )
        built = untrained(model, num_classes)
        built = weights.to_model(built, weights.read_checkpoint(model, built))
    classifier = PixelClassifier(built, model.data, fits_inside=fits_inside, in_bfloat16=in_bfloat16)
    return Loaded(classifier, weights.weights_sha256(built))
