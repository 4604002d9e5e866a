"""The study file: what is asked, typed and validated. One TOML file describes one study.

`load_study` reads what a person wrote; `stages.prepare` completes it (data configs, checkpoint hashes)
into the frozen copy that a run directory keeps; both are the same `Study` type. docs/study.md lists the keys.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from simhpc import image_list
from simhpc.errors import StudyError, nearest
from simhpc.sections import Section, check_plain, explain, read_toml
from simhpc.training_presets import PRESETS

# Keys become file names, HDF5 names and job names, so they hold nothing that any of those would read.
_KEY = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}$"
Key = Annotated[str, Field(pattern=_KEY)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
IMAGE_LAYOUTS = ("folder", "flat", "tar", "hf")
"""How images may lie on disk; `simhpc.images` has a module for each."""


class Images(Section):
    """The N labelled images that every model is shown."""

    source: str
    """`sklearn-digits`, or a layout and where it lies: `folder:`, `flat:`, `tar:` or `hf:PATH`."""
    n: Annotated[int, Field(ge=1)]
    """How many images are drawn, stratified by class; with `list`, its length (filled in)."""
    labels: str = "sorted"
    """How a class gets its index: `sorted`, `index` (its name is the index), `imagenet` (by synset) or `map:FILE`."""
    ground_truth: str | None = None
    """The file that tells the classes of a flat layout; only with `flat:PATH`."""
    list: str | None = None
    """A file that names exactly the images to take, one per line, as `images.txt` of a run does."""
    list_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Identity of the names in the list, whatever their order; checked when given, filled in by the frozen copy."""
    size_px: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Side of the stored square images; 8 for the digits, needed for all others."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        return _image_source(value)

    @field_validator("labels")
    @classmethod
    def _known_labels(cls, value: str) -> str:
        if value not in ("sorted", "index", "imagenet") and not re.match("map:.", value):
            raise ValueError("allowed: 'sorted', 'index', 'imagenet' or 'map:FILE'")
        return value

    @model_validator(mode="after")
    def _size_is_known(self) -> Self:
        if self.source != "sklearn-digits" and self.size_px is None:
            raise ValueError(
                f"size_px is needed with a {self.source.partition(':')[0]} source: the side in pixels of its stored "
                "images, at least the largest model input divided by its crop_pct (CIFAR-10: 32; ImageNet: 256 or more)"
            )
        if self.source == "sklearn-digits" and self.size_px not in (None, 8):
            raise ValueError("size_px must be 8 (or absent) for sklearn-digits, which are 8 x 8 scans")
        return self

    @model_validator(mode="after")
    def _ground_truth_and_flat_go_together(self) -> Self:
        if self.source.startswith("flat:") != (self.ground_truth is not None):
            raise ValueError("ground_truth, the file that tells the classes, goes with 'flat:PATH' and no other source")
        if self.list_sha256 and self.list is None:
            raise ValueError("list_sha256 goes with list only")
        return self


class Training(Section):
    """How a model with `weights = "train"` is trained (timm's optimiser, scheduler, augmentation).

    A key `preset` is read too: it fills in the keys that are not given (`training_presets`), and is gone then.
    """

    images: str | None = None
    """Where training images come from; absent: all images of `images.source` that are not in the image set."""
    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per step of the optimiser, those of all processes and accumulated passes together."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Passes that each process divides its share of a step into, for memory's sake."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the training alone; weights, their average and the optimiser's state are float32 throughout."""
    optimizer: str = "adamw"
    """Any name of `timm.optim.list_optimizers()`."""
    lr: Annotated[float, Field(gt=0, le=1000)] = 1e-3
    warmup_lr: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Where the warm-up begins; absent: a hundredth of `lr`."""
    min_lr: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Where the cosine ends."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest Euclidean norm of a step's gradient; 0: any."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    """Linear warm-up before the cosine decay."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the average of the weights over steps, which is then what the model gets; 0: none, the last weights."""
    loss: Literal["ce", "bce"] = "ce"
    """Cross-entropy, or binary cross-entropy of every class against the rest."""
    bce_target_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """With `bce`: targets above it count as 1, others as 0; 0: they stay as they are mixed and smoothed."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth, as timm's argument of that name; 0: the architecture's own default."""
    crop_scale: tuple[PositiveFraction, PositiveFraction] = (0.7, 1.0)
    """Smallest and largest share of the image area that a random resized crop keeps."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 1.3333)
    """Smallest and largest aspect ratio of that crop."""
    hflip_prob: Fraction = 0.5
    auto_augment: str | None = None
    """A timm policy such as `rand-m9-mstd0.5`; empty: none, whatever a preset says."""
    mixup_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Of the beta distribution that mixes pairs of images; 0: none. With `cutmix_alpha` too: each half of the time."""
    cutmix_alpha: Annotated[float, Field(ge=0)] = 0.0
    """The same for pasting a rectangle of one image into another."""
    repeated_augmentation: Annotated[int, Field(ge=1)] = 1
    """How often an epoch shows each image that it shows; it shows this many times fewer of them."""
    random_erasing_prob: Fraction = 0.0
    random_erasing_mode: Literal["const", "rand", "pixel"] = "const"
    """What an erased rectangle is filled with: zeros, one random colour, or noise."""

    @field_validator("auto_augment")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None

    @model_validator(mode="after")
    def _passes_are_whole(self) -> Self:
        if self.batch_size % self.images_at_least(1):
            raise ValueError(
                f"batch_size = {self.batch_size} cannot be divided into accumulation = {self.accumulation} equal passes"
                f"{', of pairs to be mixed' if self.mixes else ''}: make it a multiple of {self.images_at_least(1)}"
            )
        if self.bce_target_threshold and self.loss != "bce":
            raise ValueError('bce_target_threshold goes with loss = "bce" only')
        return self

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with each other (mixup, cutmix)."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @property
    def random_views(self) -> list[str]:
        """Keys that make a training image look different each time it is shown; empty: it never does."""
        named = {
            "crop_scale": self.crop_scale != (1.0, 1.0),
            "crop_ratio": self.crop_ratio != (1.0, 1.0),
            "hflip_prob": self.hflip_prob not in (0.0, 1.0),
            "auto_augment": self.auto_augment is not None,
            "random_erasing_prob": self.random_erasing_prob > 0,
            "mixup_alpha": self.mixup_alpha > 0,
            "cutmix_alpha": self.cutmix_alpha > 0,
        }
        return [key for key, is_random in named.items() if is_random]

    def images_at_least(self, processes: int) -> int:
        """What the images of a step have to be a multiple of, for so many processes to share it: pairs are mixed."""
        return self.accumulation * processes * (2 if self.mixes else 1)

    @field_validator("images")
    @classmethod
    def _known_source(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("flat:"):
            raise ValueError("training images cannot be flat: images.ground_truth is that of images.source")
        return None if value is None else _image_source(value)

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the first number must not exceed the second")
        return value


class DataConfig(Section):
    """Overrides of timm's data config for one model; complete in the frozen copy."""

    input_size_px: Annotated[int, Field(ge=1, le=4096)] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    interpolation: Interpolation | None = None
    crop_pct: PositiveFraction | None = None


class Model(Section):
    """One model of the study."""

    key: Key
    """Its name in this study: in files, tables and figures."""
    timm: str | None = None
    """timm's architecture name, without a pretrained tag; or `module`."""
    module: str | None = None
    """`module:function` of a function that returns the network (`zoo.own`)."""
    module_folder: str | None = None
    """The folder that `module` is imported from: the study file's, or where else Python finds it."""
    module_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the module's source file; checked when given, filled in by the frozen copy."""
    weights: str = "own"
    """`train`, `pretrained:TAG`, `checkpoint:PATH`, `random`; `own` (of a `module`): what its function returns."""
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of the weights of `own`; checked when given, filled in by the frozen copy."""
    checkpoint_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the checkpoint file; checked when given, filled in by the frozen copy."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Arguments passed to `timm.create_model`, or to the function of `module`."""
    data: DataConfig = DataConfig()
    training: Training | None = None
    """The study's [training] with this model's overrides; only with `weights = "train"`."""
    expected_top1_percent: Annotated[float, Field(ge=0, le=100)] | None = None
    """Clean accuracy below which it is not attacked, less a margin; 0: never mind. No part of the question asked."""

    @field_validator("timm")
    @classmethod
    def _no_tag(cls, value: str | None) -> str | None:
        name, dot, tag = (value or "").partition(".")
        if dot and re.fullmatch(r"\w+", name):
            raise ValueError(f'write timm = "{name}" and weights = "pretrained:{tag}"')
        return value

    @field_validator("module")
    @classmethod
    def _is_a_function(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
            raise ValueError("must be 'package.module:function'")
        return value

    @field_validator("weights")
    @classmethod
    def _known_weights(cls, value: str) -> str:
        if value not in ("train", "random", "own") and not re.match("(pretrained|checkpoint):.", value):
            raise ValueError("allowed: 'train', 'pretrained:TAG', 'checkpoint:PATH' or 'random'")
        return value

    @field_validator("args")
    @classmethod
    def _args_are_the_models_own(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        # A function of one's own may call its arguments what it likes.
        if info.data.get("module") is None:
            _check_timm_args(value)
        if "num_classes" in value and not (type(value["num_classes"]) is int and value["num_classes"] >= 2):
            raise ValueError(f"num_classes must be a whole number from 2 on, not {value['num_classes']!r}")
        if value.get("in_chans", 3) != 3:
            raise ValueError(f"in_chans must be 3, not {value['in_chans']!r}: attacks act on RGB pixels")
        return value

    @model_validator(mode="after")
    def _is_of_timm_or_ones_own(self) -> Self:
        if (self.timm is None) == (self.module is None):
            raise ValueError("either timm (an architecture of timm) or module ('package.module:function') is needed")
        if self.module is None:
            if self.weights == "own":
                raise ValueError("weights is needed with timm: 'train', 'pretrained:TAG' or 'checkpoint:PATH'")
            if self.module_folder or self.module_sha256:
                raise ValueError("module_folder and module_sha256 go with module only")
        elif self.is_pretrained:
            raise ValueError("weights = 'pretrained:TAG' goes with timm only; leave weights out for the function's own")
        if self.weights_sha256 and self.weights != "own":
            raise ValueError("weights_sha256 goes with the weights of a module's function only")
        return self

    @model_validator(mode="after")
    def _checkpoint_hash_has_a_checkpoint(self) -> Self:
        if self.checkpoint_sha256 and not self.weights.startswith("checkpoint:"):
            raise ValueError("checkpoint_sha256 goes with weights = 'checkpoint:PATH' only")
        return self

    @property
    def timm_name(self) -> str:
        """`name.tag` for pretrained weights, else the bare architecture name; `module:function` of one's own."""
        name = self.timm or self.module or ""
        return f"{name}.{self.weights.removeprefix('pretrained:')}" if self.is_pretrained else name

    @property
    def is_trained_here(self) -> bool:
        return self.weights == "train"

    @property
    def is_random(self) -> bool:
        return self.weights == "random"

    @property
    def is_pretrained(self) -> bool:
        return self.weights.startswith("pretrained:")

    @property
    def checkpoint_path(self) -> Path:
        """The local checkpoint; only meaningful with `weights = "checkpoint:PATH"`."""
        return Path(self.weights.removeprefix("checkpoint:"))

    @property
    def module_is_installed(self) -> bool:
        """Whether `module` is among a Python's packages: another Python (of an image) needs it among its own."""
        return Path(self.module_folder or "").name in ("site-packages", "dist-packages")

    @property
    def module_files(self) -> tuple[Path, ...]:
        """Where the source of `module` lies if it lies in `module_folder`: one of these; empty if it is installed."""
        if self.module is None or self.module_folder is None or self.module_is_installed:
            return ()
        path = Path(self.module_folder, *self.module.partition(":")[0].split("."))
        return path / "__init__.py", path.with_suffix(".py")

    def sha256(self) -> str:
        """Identity of everything that this entry lets enter a result."""
        entry = self.model_dump(mode="json", exclude=_NO_PART_OF_A_RESULT)
        if self.training is not None:
            entry["training"] = {
                key: value
                for key, value in entry["training"].items()
                if key in _FIRST_TRAINING_KEYS or value != Training.model_fields[key].default
            }
        return _sha256_of(entry)


_NO_PART_OF_A_RESULT = {"expected_top1_percent"}
# Keys that came later count only where they say something: models that were trained before keep their identity.
_FIRST_TRAINING_KEYS = {
    *("images", "epochs", "batch_size", "optimizer", "lr", "weight_decay", "warmup_epochs", "label_smoothing"),
    *("crop_scale", "crop_ratio", "hflip_prob", "auto_augment", "random_erasing_prob"),
}


class Distillation(Section):
    """One student distilled from several teachers, each time anew (docs/method.md, section 4)."""

    student: Key
    """A model of the study: what is distilled is this architecture, from fresh weights."""
    teachers: Annotated[tuple[Key, ...], Field(min_length=1)]
    """Models of the study, with whatever weights they have there."""
    name: Key
    """What its students are called by: `NAME-from-TEACHER`; absent: the student's key (filled in)."""
    kind: Literal["hard", "soft"] = "hard"
    """The teacher's answer, or its probabilities."""
    alpha: Fraction
    """Weight of the teacher in the loss; the labels have the rest. Absent: 0.5 if hard, 0.1 if soft (filled in)."""
    temperature: Positive | None = None
    """Of both softmaxes; only with `soft`. Absent: 3 (filled in)."""
    token: bool = False
    """Whether the teacher speaks to a distillation token of its own; the architecture must have one."""
    timm: str | None = None
    """Another architecture to distil than the student's, such as the same with a distillation token."""
    args: dict[str, Any] | None = None
    """Of the architecture; absent: the student's."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    """Students of each teacher, from different initialisations."""
    cache_teacher: bool = False
    """Ask the teacher once about each training image and keep its answers; only where images look alike each time."""
    training: Training = Training()
    """The student's recipe (if it is not trained here: the study's) with the overrides given here."""

    @field_validator("args")
    @classmethod
    def _args_are_the_models_own(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is not None and info.data.get("timm") is not None:
            _check_timm_args(value)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.kind == "hard" and self.temperature is not None:
            raise ValueError('temperature goes with kind = "soft" only: the teacher\'s answer is the same at any')
        if self.student in self.teachers:
            raise ValueError(f"{self.student!r} cannot be its own teacher; add the same model under another key")
        if twice := sorted({key for key in self.teachers if self.teachers.count(key) > 1}):
            raise ValueError(f"teachers: {', '.join(twice)} is there twice; more students of one teacher: repeats")
        if self.cache_teacher and (random := self.training.random_views):
            raise ValueError(
                "cache_teacher: the teacher has to be asked each time, because a training image looks different each "
                f"time (training.{', training.'.join(random)}); for views that stay the same: crop_scale = [1, 1], "
                "crop_ratio = [1, 1], hflip_prob = 0, and no auto_augment, erasing or mixing"
            )
        return self


@dataclass(frozen=True)
class Student:
    """One network to distil: a pair of student and teacher, and which repeat of it.

    Attributes:
        key: of its task and its checkpoint.
        model: its architecture, data config and recipe, as the entry of a model that is trained here.
        of: key of the study's model that it is a student of, undistilled.
        teacher: key of the study's model that teaches it.
        repeat: from 1.
    """

    key: str
    model: Model
    of: str
    teacher: str
    repeat: int
    distillation: Distillation

    @property
    def settings(self) -> dict[str, Any]:
        """All that makes it what it is, besides the seed, the images and the teacher's weights; plain data."""
        how = self.distillation.model_dump(mode="json", include={"kind", "alpha", "temperature", "token"})
        entry = self.model.model_dump(mode="json", exclude=_NO_PART_OF_A_RESULT)
        return {"model": entry, "of": self.of, "teacher": self.teacher, "repeat": self.repeat, **how}

    def sha256(self) -> str:
        """Identity of its settings."""
        return _sha256_of({**self.settings, "model": self.model.sha256()})


def _check_timm_args(args: dict[str, Any]) -> None:
    reserved = {
        "features_only",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "checkpoint_path",
        "cache_dir",
        "model_name",
    }
    if taken := sorted(reserved & args.keys()):
        raise ValueError(f"{', '.join(taken)} cannot be set here: the weights come from the key 'weights'")


class Attack(Section):
    """How adversarial images are made. The defaults are the paper's, as read in docs/method.md."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")] = "pgd-linf"
    """A file of simhpc/attacks/methods/, with dashes."""
    eps_255: Annotated[int, Field(ge=1, le=100_000)] = 8
    """Radius of the attack's ball, in units of 1/255."""
    step_size_eps: Annotated[float, Field(gt=0, le=4)] | None = None
    """Step size, in units of eps; absent: the attack's own. Complete in the frozen copy."""
    steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Gradient steps; absent: the attack's own. Complete in the frozen copy."""
    restarts: Annotated[int, Field(ge=1, le=1000)] = 1
    """Random starts of each image; the version that fools its own model best is kept."""
    args: dict[str, float] = Field(default_factory=dict)
    """The attack's own arguments; complete in the frozen copy."""
    grid: Literal["native", "canonical"] = "native"
    """Pixels that are attacked: each model's own input, or the stored images with the resize inside the model."""

    @field_validator("eps_255", mode="before")
    @classmethod
    def _whole_steps_of_255(cls, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                "must be a whole number from 1 on, in units of 1/255 (8 means 8/255): "
                "adversarial images are stored as 8-bit pixels"
            )
        return value


class Similarity(Section):
    """How fooling rates become one number per pair."""

    floor_percent: Annotated[float, Field(gt=0, lt=100)] = 0.01
    """The floor under the logarithm (the paper's unpublished epsilon_s), in percent."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


class Representations(Section):
    """What the optional representations stage stores. May be changed between runs: no other result hangs on it."""

    n_gradients: Annotated[int, Field(ge=1)] = 100
    """Images whose input gradients are stored, by class, the same for every model; all if there are fewer."""
    noise_std_255: Annotated[float, Field(gt=0, le=255)] = 1.0
    """Standard deviation of the pixel noise under which each gradient is compared with itself, in units of 1/255."""


class Resources(Section):
    """What one task may use. May be changed between runs of one study: it is no part of the question asked."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads_per_task: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images at once; a task halves it for itself as often as memory runs out."""
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """A mode of `torch.compile` (the last two use CUDA graphs); needs a C++ compiler where tasks run."""
    loader_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode and augment training images, beside each process that trains; 0: it does so itself."""
    save_every_s: Annotated[float, Field(ge=0)] = 300.0
    """How often a training saves where it is, in seconds; less often where saving is slow."""


class Boosting(Section):
    """The gradient boosting of the importance analysis. The defaults are the paper's, as read in docs/analyses.md."""

    stages: Annotated[int, Field(ge=1, le=100_000)] = 500
    max_depth: Annotated[int, Field(ge=1, le=1000)] = 12
    min_samples_split: Annotated[int, Field(ge=2)] = 4
    learning_rate: PositiveFraction = 0.02


class Analysis(Section):
    """How `simhpc analyze` goes about it. May be changed between runs of one study, like `Resources`."""

    clusters: Annotated[int, Field(ge=2)] | None = None
    """Number of clusters; absent: the one with the largest silhouette."""
    encoding: Literal["same-different", "value-pairs"] = "same-different"
    """What the regression of importance is told of a pair."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of everything random in the analyses; another than the study's."""
    boosting: Boosting = Boosting()
    ensemble_sizes: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (2, 3, 4, 5)
    """Numbers of members of the ensembles that are tried."""
    ensemble_samples: Annotated[int, Field(ge=1)] = 1000
    """Ensembles of each size: all there are, or where there are more, so many drawn at random."""

    @field_validator("ensemble_sizes")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))


class Strategy(Section):
    """Models that differ from each other in one kind of thing. May be changed between runs, like `Resources`."""

    name: Key
    differs: Literal["initialisation", "hyper-parameters", "regime", "architecture"]
    """In what any two of its models differ, mainly."""
    models: Annotated[tuple[Key, ...], Field(min_length=2)]
    """Keys; every two of them are a pair of this kind."""


_MAY_CHANGE = {"resources", "representations", "analysis", "strategies"}
"""Sections that enter no result of a stage of every study."""


_last_index: list[tuple[tuple[Model, ...], dict[str, Model]]] = [((), {})]


def _by_key(models: tuple[Model, ...]) -> dict[str, Model]:
    """An index of models. The last one is kept: a study of a thousand is asked for each of them many times."""
    of, index = _last_index[0]
    if of is not models:
        index = {model.key: model for model in models}
        _last_index[0] = models, index
    return index


class Study(Section):
    """A whole study."""

    name: Key
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """In which every model computes, when attacked and when shown images; pixels are float32 throughout."""
    images: Images
    training: Training = Training()
    attack: Attack = Attack()
    similarity: Similarity = Similarity()
    representations: Representations = Representations()
    resources: Resources = Resources()
    analysis: Analysis = Analysis()
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    distillations: tuple[Distillation, ...] = ()
    strategies: tuple[Strategy, ...] = ()
    """Absent: derived from what the models' entries say (docs/analyses.md)."""

    @model_validator(mode="after")
    def _keys_are_unique(self) -> Self:
        seen: dict[str, str] = {}
        for model in self.models:
            # Two keys that differ only in case would be one file on some file systems.
            if (folded := model.key.casefold()) in seen:
                raise ValueError(
                    f"two models have the keys {seen[folded]!r} and {model.key!r}: one file could not hold both"
                )
            seen[folded] = model.key
        return self

    @model_validator(mode="after")
    def _students_can_be_had(self) -> Self:
        models = {model.key: model for model in self.models}
        for number, each in enumerate(self.distillations, 1):
            for what, key in (("student", each.student), *(("teachers", teacher) for teacher in each.teachers)):
                if key not in models:
                    raise ValueError(f"distillations.{number}.{what}: there is no model {key!r}{nearest(key, models)}")
            if random := [key for key in each.teachers if models[key].is_random]:
                raise ValueError(f"distillations.{number}.teachers: {random[0]!r} has random weights to teach from")
        seen = {key.casefold(): key for key in models}
        for student in self.students:
            if not re.fullmatch(_KEY, student.key):
                raise ValueError(f"distillations: the student {student.key!r} has a name of over 100 characters")
            if (folded := student.key.casefold()) in seen:
                raise ValueError(
                    f"distillations: a student would be called {student.key!r}, and {seen[folded]!r} is there already: "
                    "give its [[distillations]] a name"
                )
            seen[folded] = student.key
        return self

    @property
    def students(self) -> tuple[Student, ...]:
        """What the distillations make, in their order, then by teacher, then by repeat."""
        return tuple(self._student(*pair) for pair in self._pairs())

    def _pairs(self) -> Iterable[tuple[str, Distillation, str, int]]:
        for each in self.distillations:
            for teacher in each.teachers:
                for repeat in range(1, each.repeats + 1):
                    yield f"{each.name}-from-{teacher}{f'-{repeat}' if repeat > 1 else ''}", each, teacher, repeat

    def _student(self, key: str, distillation: Distillation, teacher: str, repeat: int) -> Student:
        other = {"timm": distillation.timm, "module": None, "module_folder": None, "module_sha256": None}
        changes: dict[str, Any] = {
            "key": key,
            "weights": "train",
            "weights_sha256": None,
            "checkpoint_sha256": None,
            "expected_top1_percent": None,
            "training": distillation.training,
            **(other if distillation.timm is not None else {}),
            **({"args": distillation.args} if distillation.args is not None else {}),
        }
        entry = self.model(distillation.student).model_copy(update=changes)
        return Student(key, entry, distillation.student, teacher, repeat, distillation)

    def student(self, key: str) -> Student:
        """The student with this key.

        Raises:
            StudyError: there is none.
        """
        for pair in self._pairs():
            if pair[0] == key:
                return self._student(*pair)
        keys = [found for found, *_ in self._pairs()]
        raise StudyError(f"study {self.name!r} has no student {key!r}{nearest(key, keys)}")

    @model_validator(mode="after")
    def _strategies_are_of_models(self) -> Self:
        keys, names = [model.key for model in self.models], [strategy.name for strategy in self.strategies]
        kind_of: dict[frozenset[str], Strategy] = {}
        for place, strategy in enumerate(self.strategies, start=1):
            where = f"strategies.{place} ({strategy.name!r})"
            if names.count(strategy.name) > 1:
                raise ValueError(f"{where}: there is another one of that name")
            for key in strategy.models:
                if key not in keys:
                    raise ValueError(f"{where}: the study has no model {key!r}{nearest(key, keys)}")
                if strategy.models.count(key) > 1:
                    raise ValueError(f"{where}: {key!r} is there twice")
            for a, b in itertools.combinations(strategy.models, 2):
                other = kind_of.setdefault(frozenset((a, b)), strategy)
                if other.differs != strategy.differs:
                    raise ValueError(
                        f"{where}: {a!r} and {b!r} differ in {strategy.differs} here and in {other.differs} in "
                        f"{other.name!r}: a pair counts in one kind"
                    )
        return self

    def model(self, key: str) -> Model:
        """The model with this key.

        Raises:
            StudyError: there is none.
        """
        found = _by_key(self.models).get(key)
        if found is not None:
            return found
        keys = [model.key for model in self.models]
        raise StudyError(f"study {self.name!r} has no model {key!r}{nearest(key, keys)}")

    def settings_sha256(self) -> str:
        """Identity of the settings that every attacked or evaluated model shares (seed, precision, images, attack)."""
        return _sha256_of(self.model_dump(mode="json", include={"seed", "precision", "images", "attack"}))


def load_study(path: Path) -> Study:
    """Read and validate a study file. Relative paths in it are relative to the file's folder.

    Raises:
        StudyError: unreadable, not TOML, or not a study; the message lists every wrong key, what was given
            and what is allowed.
    """
    return parse_study(read_study(path), base=path.resolve().parent, where=str(path))


def read_study(path: Path) -> dict[str, Any]:
    """A study file as plain data, not validated; for `parse_study`.

    Raises:
        StudyError: unreadable, or not TOML.
    """
    return read_toml(path, "study", StudyError)


def parse_study(raw: dict[str, Any], *, base: Path, where: str, held: Images | None = None) -> Study:
    """Validate a study given as plain data; see `load_study`.

    Args:
        held: of the run directory that the study may go on with, if there is one (see `is_list_gone`).
    """
    check_plain(raw, where, "study", StudyError)
    raw = _with_list_counted(_with_training_merged(raw, where), base, held)
    try:
        study = Study.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        shared = {details["loc"][1:] for details in error.errors() if details["loc"][:1] == ("training",)}
        lines = [
            explain(details, Study)
            for details in error.errors()
            # A model's training repeats what is wrong in [training]; a list of bad models is "too short" without them.
            if not (
                details["loc"][:1] == ("models",)
                and details["loc"][2:3] == ("training",)
                and details["loc"][3:] in shared
            )
            and not (details["type"] == "too_short" and details["loc"] == ("models",) and details["input"])
        ]
        raise StudyError("\n  ".join([f"{where}: {len(lines)} problem(s) in the study", *lines])) from None
    return _with_absolute_paths(study, base)


def is_list_gone(given: Images, held: Images) -> bool:
    """Whether a list is no longer there, from which a run was begun: the run holds all that it told."""
    return given.list is not None and _is_gone(given.list, held)


def dump_study(study: Study) -> str:
    """The study as TOML that `load_study` reads back to an equal study."""
    data = study.model_dump(mode="json", exclude_none=True)
    for holder in (data, *data["models"], *data["distillations"]):
        if "training" in holder:
            # TOML has no word for none, and a key that is absent would be filled in from the study's [training].
            holder["training"].setdefault("auto_augment", "")
    return tomli_w.dumps(data)


def differences(held: Study, given: Study, *, names: tuple[str, str] = ("run directory has", "study has")) -> list[str]:
    """What `given` contradicts in `held`, one line each.

    Added models and students, other expectations of accuracy and what may change between runs contradict nothing.

    Args:
        names: what the lines call the two.
    """
    skip = {"distillations", "models", *_MAY_CHANGE}
    ours, theirs = (study.model_dump(mode="json", exclude=skip) for study in (held, given))
    lines = _compare("", ours, theirs, names)
    given_models = {model.key: model for model in given.models}
    for model in held.models:
        if model.key not in given_models:
            lines.append(f"models.{model.key}: in the run directory, absent from the study")
        else:
            ours, theirs = (
                entry.model_dump(mode="json", exclude=_NO_PART_OF_A_RESULT)
                for entry in (model, given_models[model.key])
            )
            lines += _compare(f"models.{model.key}.", ours, theirs, names)
    given_students = {student.key: student for student in given.students}
    for student in held.students:
        if student.key not in given_students:
            lines.append(f"distillations: {student.key}: in the run directory, absent from the study")
        else:
            theirs = given_students[student.key].settings
            lines += _compare(f"distillations.{student.key}.", student.settings, theirs, names)
    return lines


def _compare(prefix: str, held: dict[str, Any], given: dict[str, Any], names: tuple[str, str]) -> list[str]:
    lines: list[str] = []
    for key in sorted(held.keys() | given.keys()):
        ours, theirs = held.get(key), given.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            lines += _compare(f"{prefix}{key}.", ours, theirs, names)
        elif ours != theirs:
            lines.append(f"{prefix}{key}: {names[0]} {ours!r}, {names[1]} {theirs!r}")
    return lines


def _image_source(value: str) -> str:
    if value != "sklearn-digits" and not re.match(f"({'|'.join(IMAGE_LAYOUTS)}):.", value):
        raise ValueError(
            f"allowed: 'sklearn-digits', 'folder:PATH', 'flat:PATH', 'tar:PATH' or 'hf:PATH'"
            f"{nearest(value, ['sklearn-digits'])}"
        )
    return value


def _with_training_merged(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """Give each model that is trained here the whole of [training] with its own overrides on top."""
    shared, models = raw.get("training", {}), raw.get("models")
    if isinstance(models, dict):
        raise StudyError(f"{where}: models: each model is a table of its own that begins with [[models]], not [models]")
    if not isinstance(models, list) or not isinstance(shared, dict):
        return raw
    shared = _with_preset(shared, f"{where}: training")
    merged = []
    for model in models:
        if isinstance(model, dict) and model.get("weights") == "train":
            own = model.get("training", {})
            if isinstance(own, dict):
                own = {**shared, **_with_preset(own, f"{where}: models.{model.get('key', '?')}.training")}
            model = {**model, "training": own}
        elif isinstance(model, dict) and "training" in model:
            raise StudyError(
                f'models.{model.get("key", "?")}.training: only a model with weights = "train" has one, '
                f"this one has weights = {model.get('weights')!r}"
            )
        merged.append(model)
    changed = {"models": merged} | ({"training": shared} if "training" in raw else {})
    return {**raw, **changed, **_with_students_filled_in(raw, shared, merged, where)}


def _with_students_filled_in(
    raw: dict[str, Any], shared: dict[str, Any], models: list[Any], where: str
) -> dict[str, Any]:
    """Give each distillation the recipe of its student (if that is not trained here: [training]), and its defaults."""
    if not isinstance(raw.get("distillations"), list):
        return {}
    recipes = {model["key"]: model.get("training") for model in models if isinstance(model, dict) and "key" in model}
    filled = []
    for number, each in enumerate(raw["distillations"], 1):
        if isinstance(each, dict):
            # What is no student is said of that key; the others are not to be missed besides.
            student, is_soft = each.get("student", "student"), each.get("kind") == "soft"
            own, recipe = each.get("training", {}), recipes.get(student) if isinstance(student, str) else None
            if isinstance(own, dict):
                own = _with_preset(own, f"{where}: distillations.{number}.training")
                own = {**(recipe if isinstance(recipe, dict) else shared), **own}
            of_kind = {"alpha": 0.1, "temperature": 3.0} if is_soft else {"alpha": 0.5}
            each = {"name": student, **of_kind, **each, "training": own}
        filled.append(each)
    return {"distillations": filled}


def _with_preset(training: dict[str, Any], where: str) -> dict[str, Any]:
    """The keys of a preset under those of the table that names it."""
    if "preset" not in training:
        return training
    name = training["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise StudyError(
            f"{where}.preset: there is no {name!r}{nearest(str(name), list(PRESETS))}; there are {', '.join(PRESETS)}"
        )
    return {**PRESETS[name], **{key: value for key, value in training.items() if key != "preset"}}


def _with_list_counted(raw: dict[str, Any], base: Path, held: Images | None) -> dict[str, Any]:
    """Give a study that names its images by a list their number."""
    images = raw.get("images")
    if not isinstance(images, dict) or "n" in images or not isinstance(images.get("list"), str):
        return raw
    path = base / Path(images["list"]).expanduser()
    n = held.n if held is not None and _is_gone(str(path), held) else len(image_list.read(path))
    return {**raw, "images": {**images, "n": n}}


def _is_gone(path: str, held: Images) -> bool:
    return path == held.list and not Path(path).exists()


def _with_absolute_paths(study: Study, base: Path) -> Study:
    def absolute(value: str) -> str:
        kind, colon, path = value.partition(":")
        holds_path = colon and kind in (*IMAGE_LAYOUTS, "map", "checkpoint")
        return f"{kind}:{base / Path(path).expanduser()}" if holds_path else value

    def training(section: Training) -> Training:
        return section.model_copy(update={"images": absolute(section.images)}) if section.images else section

    def plain(path: str | None) -> str | None:
        return None if path is None else str(base / Path(path).expanduser())

    images = study.images.model_copy(
        update={
            "source": absolute(study.images.source),
            "labels": absolute(study.images.labels),
            "ground_truth": plain(study.images.ground_truth),
            "list": plain(study.images.list),
        }
    )
    distillations = tuple(each.model_copy(update={"training": training(each.training)}) for each in study.distillations)
    models = tuple(
        model.model_copy(
            update={
                "weights": absolute(model.weights),
                "module_folder": str(base / Path(model.module_folder or ".").expanduser()) if model.module else None,
                "training": training(model.training) if model.training else None,
            }
        )
        for model in study.models
    )
    return study.model_copy(
        update={
            "images": images,
            "models": models,
            "training": training(study.training),
            "distillations": distillations,
        }
    )


def _sha256_of(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
