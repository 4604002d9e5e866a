"""Where a result comes from: the root attributes that adversarial and prediction sets share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from simhpc.store import hdf5


@dataclass(frozen=True)
class Provenance:
    """What made a file.

    Attributes:
        model: key in the study.
        timm_name: timm's `name.tag`.
        model_sha256: `Model.sha256()` of the study's entry.
        weights_sha256: SHA-256 of the loaded parameters and buffers.
        study_sha256: `Study.settings_sha256()`.
        images_sha256: identity of the image set.
        attack: the study's attack settings as JSON.
        attack_code_sha256: SHA-256 of the attack's own file.
        batch_size: images at once.
        seed: the study's seed.
        precision: the study's.
        engine: what was done to the model to make it faster.
        device: `cpu`, or the name of the GPU.
        threads: CPU threads of the task.
        torch, timm: versions.
        container: the image's digest, or `none`.
    """

    model: str
    timm_name: str
    model_sha256: str
    weights_sha256: str
    study_sha256: str
    images_sha256: str
    attack: str
    attack_code_sha256: str
    batch_size: int
    seed: int
    precision: str
    engine: str
    device: str
    threads: int
    torch: str
    timm: str
    container: str

    def attributes(self) -> hdf5.Attributes:
        return asdict(self)

    @classmethod
    def from_attributes(cls, path: Path, attributes: hdf5.Attributes) -> Provenance:
        """Read the attributes back.

        Raises:
            BadFileError: one is missing.
        """
        return cls(**{field.name: hdf5.attribute(path, attributes, field.name) for field in fields(cls)})
