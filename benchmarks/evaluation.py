"""Part `evaluation`: our evaluate stage against the loop that one writes around a `DataLoader`, on the same files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.attacker import Victim
from benchmarks.measures import OURS, Check, Measure, Part
from benchmarks.options import Options
from benchmarks.rounds import seconds_in_rounds
from benchmarks.settings import torch_state_kept
from benchmarks.victims import digits_run, execute, untrained
from simhpc.rundir import Run
from simhpc.stages.prepare import prepare
from simhpc.store import adversarial, image_set, predictions
from simhpc.store.predictions import NOT_SHOWN
from simhpc.study import Model, parse_study
from simhpc.zoo.timm_import import timm

LOOP = "DataLoader loop"

WORKERS = 2

Answers = dict[str, NDArray[np.int64]]


def measure(options: Options, scratch: Path) -> Part:
    """An ImageNet architecture, where the model is all the cost, and small digits, where it is not."""
    part = Part()
    n_photos, n_digits, epochs = (8, 60, 1) if options.quick else (64, 500, 4)
    photos = photo_run(scratch / "photos", n_photos, options)
    digits = digits_run(
        scratch / "digits",
        ["a", "b", "c", "d"],
        n_digits,
        epochs=epochs,
        device=options.device.type,
    )
    execute(digits, "train")
    for name, run in (("resnet18", photos), ("digits", digits)):
        execute(run, "attack")
        target = run.study.models[0]
        answers: dict[str, Answers] = {}
        works = {
            OURS: partial(_evaluate, run, target, answers),
            LOOP: partial(_loop, run, target, options, answers),
        }
        for work in works.values():
            work()
        shown = sum(len(found) for found in answers[OURS].values())
        taken_s = seconds_in_rounds(works, options.repetitions, options.device)
        rates = {name: [shown / s for s in times_s] for name, times_s in taken_s.items()}
        part.measures.append(Measure("evaluation_throughput", "images/s", name, rates))
        ours, theirs = answers[OURS], answers[LOOP]
        differing = sum(int((ours[key] != theirs[key]).sum()) for key in theirs)
        part.checks.append(
            Check(
                f"predictions of the evaluate stage and the loop on {name}",
                differing == 0 and ours.keys() == theirs.keys(),
                f"{differing} of {shown} differ",
            )
        )
    return part


def photo_run(root: Path, n: int, options: Options) -> Run:
    """A run of three keys with one and the same random ResNet-18, which is right about `n` photographs."""
    victim = untrained("resnet18", n, 224, num_classes=10)
    folder, checkpoint = root.with_name("photo-folders"), root.with_name("resnet18.safetensors")
    save_file(victim.model.state_dict(), checkpoint)
    _save_images(victim, folder)
    raw = {
        "name": "photos",
        "images": {"source": f"folder:{folder}", "labels": "index", "n": n, "size_px": 224},
        "attack": {"steps": 1},
        "resources": {
            "device": options.device.type,
            "threads_per_task": options.threads,
            "batch_size": options.batch_size,
        },
        "models": [
            {
                "key": key,
                "timm": "resnet18",
                "weights": f"checkpoint:{checkpoint}",
                "args": {"num_classes": 10},
                "data": {"input_size_px": 224, "crop_pct": 1.0, "mean": list(victim.mean), "std": list(victim.std)},
            }
            for key in ("a", "b", "c")
        ],
    }
    return prepare(parse_study(raw, base=root.parent, where="benchmark"), root)


def _save_images(victim: Victim, folder: Path) -> None:
    """Class folders named by index, lossless."""
    for position, (image, label) in enumerate(zip(victim.images.numpy(), victim.labels.tolist(), strict=True)):
        path = folder / str(label) / f"{position:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)


def _evaluate(run: Run, target: Model, answers: dict[str, Answers]) -> None:
    """Our stage from nothing, as a task does it: reads and checks all files, loads the model, writes predictions."""
    path = run.dir.predictions(target.key)
    path.unlink(missing_ok=True)
    execute(run, "evaluate", target.key)
    found = predictions.load(path)
    answers[OURS] = {
        source: row[row != NOT_SHOWN].astype(np.int64)
        for source, row in zip(found.sources, found.adv_pred, strict=True)
    }


@dataclass
class _Stored(Dataset[tuple[Tensor, int]]):
    """Some rows of an adversarial set as a torch dataset; the file is opened in each worker, on first use."""

    path: Path
    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    mean: Tensor
    std: Tensor
    file: h5py.File | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        if self.file is None:
            self.file = h5py.File(self.path, "r")
        image = torch.from_numpy(self.file["images"][self.rows[item]]).float().div(255.0)
        return (image - self.mean) / self.std, int(self.labels[item])


@torch_state_kept()
@torch.no_grad()
def _loop(run: Run, target: Model, options: Options, answers: dict[str, Answers]) -> None:
    """What one writes: load the model, and for each file a DataLoader and an argmax. The same images are shown."""
    torch.set_num_threads(run.study.resources.threads_per_task)
    chosen = image_set.load(run.dir.images)
    model = timm.create_model(target.timm, **{"num_classes": chosen.num_classes, **target.args})
    weights = target.checkpoint_path if not target.is_trained_here else run.dir.checkpoint(target.key)
    model.load_state_dict(timm.models.load_state_dict(str(weights)))
    model.eval().to(options.device)
    clean_pred = adversarial.load_clean(run.dir.adversarial(target.key))[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (target.data.mean, target.data.std))
    found: Answers = {}
    for source in run.study.models:
        path = run.dir.adversarial(source.key)
        index = adversarial.load_index(path)
        rows = np.flatnonzero(clean_pred[index] == chosen.labels[index])
        dataset = _Stored(path, rows, chosen.labels[index[rows]], mean, std)
        loader = DataLoader(dataset, batch_size=run.study.resources.batch_size, num_workers=WORKERS)
        found[source.key] = np.concatenate(
            [model(pixels.to(options.device)).argmax(1).cpu().numpy() for pixels, _ in loader]
        )
    answers[LOOP] = found
