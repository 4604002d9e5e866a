"""Where every artefact of a run lies. Nothing else builds a path inside a run directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from simhpc.errors import BadFileError, StudyError
from simhpc.study import Study, dump_study, load_study, parse_study, read_study


@dataclass(frozen=True)
class RunDir:
    """The layout of one run directory; see docs/formats.md. Model keys are safe names (`study.Key`)."""

    root: Path

    @property
    def study(self) -> Path:
        """The frozen, fully resolved study: a run directory is one exactly when it has this file."""
        return self.root / "study.toml"

    @property
    def frozen(self) -> Path:
        """Beside the frozen study: what it was resolved from, and with which versions."""
        return self.root / "frozen.json"

    @property
    def images(self) -> Path:
        return self.root / "images.h5"

    @property
    def image_list(self) -> Path:
        """The names of the images, for other studies (`images.list`)."""
        return self.root / "images.txt"

    def checkpoint(self, model: str) -> Path:
        return self.root.joinpath("checkpoints", f"{model}.safetensors")

    def adversarial(self, model: str) -> Path:
        return self.root.joinpath("adversarial", f"{model}.h5")

    def predictions(self, model: str) -> Path:
        return self.root.joinpath("predictions", f"{model}.h5")

    def representations(self, model: str) -> Path:
        """Features and input gradients of one model, where the optional stage has stored them."""
        return self.root.joinpath("representations", f"{model}.h5")

    def attack_parts(self, model: str) -> Path:
        """Folder of the batches of an attack that is not finished."""
        return self.root / "partial" / "attack" / model

    def training_states(self, model: str) -> Path:
        """Folder of the saved states of a training that is not finished."""
        return self.root / "partial" / "train" / model

    def training_log(self, model: str) -> Path:
        """Loss and learning rate of every step of a training."""
        return self.root.joinpath("metrics", f"{model}.jsonl")

    def tensorboard(self, model: str) -> Path:
        """The same for TensorBoard, where that is installed."""
        return self.root.joinpath("tensorboard", model)

    def answers(self, teacher: str, identity: str) -> Path:
        """A teacher's answers to the training images, where students ask for them once."""
        return self.root.joinpath("answers", f"{teacher}-{identity[:16]}.h5")

    def partial_predictions(self, model: str) -> Path:
        """Predictions of an evaluation that is not finished."""
        return self.root.joinpath("partial", "evaluate", f"{model}.h5")

    def batch_size(self, stage: str, model: str) -> Path:
        """The batch size that a task found to fit in memory; absent where the study's does."""
        return self.root.joinpath("batch_size", stage, f"{model}.json")

    @property
    def similarity(self) -> Path:
        return self.root / "similarity.h5"

    @property
    def similarity_csv(self) -> Path:
        return self.root / "similarity.csv"

    @property
    def pairs_csv(self) -> Path:
        return self.root / "pairs.csv"

    @property
    def models_csv(self) -> Path:
        return self.root / "models.csv"

    @property
    def heatmap(self) -> Path:
        return self.root.joinpath("figures", "similarity.png")

    def analysis(self, name: str) -> Path:
        """A table or summary of `simhpc analyze`, e.g. `importance.csv`."""
        return self.root.joinpath("analysis", name)

    def figure(self, name: str) -> Path:
        """A figure of `simhpc analyze`, e.g. `importance.svg`."""
        return self.root.joinpath("figures", name)

    @property
    def report(self) -> Path:
        """The page of `simhpc report`."""
        return self.root / "report.html"

    def progress(self, stage: str, model: str) -> Path:
        return self.root.joinpath("progress", stage, f"{model}.json")

    def folders(self) -> Iterator[Path]:
        """Those that exist and hold files that are written whole: not submitit's, TensorBoard's and any deeper one."""
        yield self.root
        left_out = {self.submissions.name, "tensorboard"}
        for folder in _folders_in(self.root):
            if folder.name not in left_out:
                yield folder
                yield from _folders_in(folder)

    @property
    def submissions(self) -> Path:
        """submitit's folders: job pickles and logs."""
        return self.root / "slurm"

    @property
    def ledger(self) -> Path:
        """One file per submission to a cluster: which tasks were given to which job."""
        return self.root.joinpath("slurm", "ledger")


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # removed meanwhile, or not to be read
        return []


@dataclass(frozen=True)
class Run:
    """A run directory together with the frozen study it holds: what every stage works on."""

    dir: RunDir
    study: Study


def open_run(root: Path) -> Run:
    """Open an existing run directory.

    Raises:
        BadFileError: `root` is not a run directory, or its frozen study cannot be read.
    """
    run_dir = RunDir(root.resolve())
    if not root.is_dir():
        raise BadFileError(
            f"{root} is not a run directory: " + ("it is a file" if root.exists() else "there is no such folder")
        )
    if run_dir.study.exists() and not run_dir.study.is_file():  # to open a pipe would wait for ever
        raise BadFileError(f"{root} is not a readable run directory: {run_dir.study} is not a file")
    try:
        study = load_study(run_dir.study)
    except StudyError as error:
        raise BadFileError(f"{root} is not a readable run directory: {error}") from None
    _check_unedited(run_dir.study)
    return Run(run_dir, study)


_HEADER = "# The frozen copy of the study that this run directory answers. Do not edit: make a new run instead.\n"
_CHECKSUM = "# SHA-256 of all below this line: "


def frozen_text(study: Study) -> str:
    """What `RunDir.study` holds: the study, below its own checksum."""
    text = dump_study(study)
    return f"{_HEADER}{_CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def _check_unedited(path: Path) -> None:
    """A digit that was flipped in a study is another study; files of before the checksum have none."""
    before, mark, after = path.read_bytes().partition(_CHECKSUM.encode())
    stated, _, text = after.partition(b"\n")
    if mark and b"\n[" not in before and hashlib.sha256(text).hexdigest().encode() != stated.strip():
        raise BadFileError(
            f"{path} is damaged, or was edited after simhpc had written it: put it back as it was. If the change is "
            f"meant and agrees with the results that lie beside it, delete the line that begins with {_CHECKSUM!r}"
        )


def study_and_root(study_file: Path, out: Path | None) -> tuple[Study, Path]:
    """A study, and where its run directory is or will be: `out`, else `runs/<name>`.

    Other than `load_study`, this does without a list of images that has gone, if the run was begun from it.

    Raises:
        StudyError, ImageSourceError: see `load_study`.
        BadFileError: there is a run directory whose frozen study cannot be read.
    """
    raw = read_study(study_file)
    # The name is not checked yet: `parse_study` refuses longer ones, at which a file system would raise before.
    root = out if out is not None else Path("runs") / str(raw.get("name"))[:100]
    held = open_run(root).study.images if RunDir(root).study.is_file() else None
    return parse_study(raw, base=study_file.resolve().parent, where=str(study_file), held=held), root
