"""What a study will cost: arithmetic, memory, bytes and (with a speed) seconds of every task. Writes nothing.

It follows what the stages do, line by line: how often each shows how many images to its model, and what it holds
in memory meanwhile. What is done already, in the run directory, is known and not assumed: accuracies, and which
predictions cover which sources.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simhpc.errors import BadFileError, MissingInputError
from simhpc.rundir import Run
from simhpc.stages import ALL_STAGES, done_tasks, representations, shown, stage_module, validity
from simhpc.stages.task import ALL, Task
from simhpc.store import checkpoint, hdf5, image_set, predictions
from simhpc.study import Model, Study

if TYPE_CHECKING:
    from simhpc.zoo.cost import Cost

HOST_BYTES = {
    "train": 470 << 20,
    "attack": 410 << 20,
    "evaluate": 410 << 20,
    "aggregate": 140 << 20,
    "distill": 480 << 20,
    "representations": 410 << 20,
}
"""Memory of a task that has imported all it needs and loaded nothing yet, by stage (seen with a CPU build of torch)."""
START_S = 5.0
"""From the start of a task to its first image, where it was not measured: imports, building, loading weights."""

_TRAINING_FORWARDS = 3  # forward pass, gradient of the activations, gradient of the weights
_FLOAT_BYTES, _HALF_BYTES = 4, 2
_SLACK = 1.3  # the CPU's allocator keeps pieces that were freed; seen: 1.0 (convolutions) to 1.4 (transformers)
_FLOAT_COPIES = 8  # of a batch's pixels: clean, noise, start, both bounds, iterate, gradient, normalised
_HEADER_BYTES = 7 << 10
_TEXT_BYTES = 16, 19  # of a string in HDF5, besides its characters: in the dataset, and where it lies
_NAME_CHARACTERS = 24
_MOST_FEATURES = 2688  # dpn107
_PICTURE_BYTES = 150 << 10


@dataclass(frozen=True)
class Speed:
    """How fast one task computes.

    Attributes:
        forward_s: of one image's forward pass, in batches of the study's size.
        gradient_s: of one image's forward pass and input gradient.
        training_s: of training on one image, with reading and augmenting it; 0 if it is not trained here.
        start_s: from the start of a task to its first image.
    """

    forward_s: float
    gradient_s: float
    training_s: float
    start_s: float = START_S


def speed_from(cost: Cost, tflops: float) -> Speed:
    """The speed of a device that sustains so many TFLOP/s, and never waits for images to train on."""
    forward_s, gradient_s = cost.forward_flops / (tflops * 1e12), cost.gradient_flops / (tflops * 1e12)
    return Speed(forward_s, gradient_s, _TRAINING_FORWARDS * forward_s)


@dataclass(frozen=True)
class Facts:
    """What is known before anything is estimated.

    Attributes:
        num_classes: of the image set.
        training_images: that each model trained here will see, by key.
        accuracy: by key, of models that are trained or attacked already (fractions).
        done: tasks whose output is there.
        covered: by key, sources that the model's predictions cover already.
    """

    num_classes: int
    training_images: Mapping[str, int]
    accuracy: Mapping[str, float]
    done: frozenset[Task]
    covered: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class TaskEstimate:
    """One task.

    Attributes:
        flops: of the whole task.
        todo_flops: of what is left of it to do.
        todo_s: seconds of that; None without a speed.
        step_s: seconds of the smallest part that an interruption does not lose; None without a speed.
        processes: that do it together.
        memory_bytes: peak of each process on the host.
        device_bytes: peak on the GPU of each; 0 on the CPU.
        written_bytes: its files, expected.
        written_most_bytes: the same if the models get every image right.
        read_bytes: of other tasks' files, expected, of what is left to do.
    """

    task: Task
    is_done: bool
    flops: int
    todo_flops: int
    todo_s: float | None
    step_s: float | None
    memory_bytes: int
    device_bytes: int
    written_bytes: int
    written_most_bytes: int
    read_bytes: int
    processes: int = 1


@dataclass(frozen=True)
class Estimate:
    """A whole study.

    Attributes:
        tasks: of all stages, in order.
        accuracy: by key, known or assumed (fractions).
        costs, speeds: that it was made from.
        files: by kind, expected bytes and at most; every file of the finished run but logs.
        largest_file, largest_file_bytes: the largest single one, at most.
    """

    tasks: tuple[TaskEstimate, ...]
    accuracy: Mapping[str, float]
    costs: Mapping[str, Cost]
    speeds: Mapping[str, Speed] | None
    files: Mapping[str, tuple[int, int]]
    largest_file: str
    largest_file_bytes: int

    def of_stage(self, stage: str) -> list[TaskEstimate]:
        return [task for task in self.tasks if task.task.stage == stage]


def look(run: Run) -> Facts:
    """Find out what can be known: from the image sources, and from the run directory if it is there.

    Args:
        run: as `prepare(..., dry_run=True)` returns it, so that its folder may not exist.

    Raises:
        ImageSourceError: images that are needed cannot be found.
        BadFileError: the run directory is there and its image set is not.
    """
    from simhpc.images import open_source

    study = run.study
    counts: dict[str, int] = {}

    def images_of(where: str) -> int:
        if where not in counts:
            counts[where] = len(open_source(study.images, None if where == study.images.source else where).labels)
        return counts[where]

    exists = run.dir.study.exists()
    if exists:
        num_classes = image_set.load(run.dir.images).num_classes
    else:
        source = open_source(study.images)
        num_classes, counts[study.images.source] = len(source.classes), len(source.labels)
    training_images, accuracy = {}, {}
    keys = {model.key for model in study.models}
    for model in (*study.models, *(student.model for student in study.students)):
        if model.training is None:
            continue
        held = _trained(run, model) if exists and model.key in keys else None
        if held is not None:
            training_images[model.key] = int(held["training_images"])
            accuracy[model.key] = float(held["accuracy"])
        else:
            where = model.training.images or study.images.source
            own = where == study.images.source
            # Copies under another name are left out too; to find those would take reading every image.
            training_images[model.key] = images_of(where) - (study.images.n if own else 0)
    if not exists:
        return Facts(num_classes, training_images, accuracy, frozenset(), {})
    with validity.shared_sources(run):
        done = done_tasks(run, ALL_STAGES)
        headers = validity.usable_sources(run).headers
        accuracy |= {key: header.n_attacked / header.n_images for key, header in headers.items()}
        hashes = {key: header.content_sha256 for key, header in headers.items()}
        covered = {model.key: _covered(run, model, hashes) for model in study.models}
    # `evaluate` counts an evaluation as done when it covers what is there now; more sources are coming.
    waiting = {Task("evaluate", key) for key in keys if covered[key] != keys}
    if waiting:
        waiting.add(Task("aggregate", ALL))
    return Facts(num_classes, training_images, accuracy, frozenset(done - waiting), covered)


def _trained(run: Run, model: Model) -> Mapping[str, str] | None:
    try:
        if stage_module("train").is_done(run, Task("train", model.key)):
            return checkpoint.metadata_of(run.dir.checkpoint(model.key))
    except (MissingInputError, BadFileError):
        pass
    return None


def _covered(run: Run, model: Model, hashes: Mapping[str, str]) -> frozenset[str]:
    """Sources whose present set a model's predictions cover."""
    path = run.dir.predictions(model.key)
    try:
        validity.check_provenance(run, model, path, predictions.header(path).provenance)
        held = predictions.outline(path)
    except (MissingInputError, BadFileError):
        return frozenset()
    pairs = zip(held.sources, held.source_sha256, strict=True)
    return frozenset(source for source, sha256 in pairs if hashes.get(source) == sha256)


def count_costs(study: Study, num_classes: int) -> dict[str, Cost]:
    """What each model costs, by key. Models that differ only in weights and training are counted once."""
    from simhpc.zoo import cost

    found: dict[str, Cost] = {}
    known: dict[str, Cost] = {}
    for model in (*study.models, *(student.model for student in study.students)):
        arguments = [model.timm_name, model.is_trained_here, model.args, model.data.model_dump(mode="json")]
        alike = json.dumps(arguments, sort_keys=True)
        if alike not in known:
            known[alike] = cost.count(model, num_classes, canvas_px=canvas_px(study))
        found[model.key] = known[alike]
    return found


def estimate(
    run: Run,
    facts: Facts,
    costs: Mapping[str, Cost],
    *,
    accuracy: float,
    speeds: Mapping[str, Speed] | None = None,
    on_gpu: Collection[str] = (),
    processes: Mapping[str, int] | None = None,
    optional: Collection[str] = (),
) -> Estimate:
    """Put everything together.

    Args:
        costs: by model key.
        accuracy: of models of which it is not known yet (a fraction).
        speeds: by model key; None for arithmetic alone.
        on_gpu: stages that compute on a GPU.
        processes: that share one training, by stage; taken to be so many times as fast. None: one.
        optional: stages of `OPTIONAL_STAGES` that are done too.
    """
    return _Estimator(run, facts, costs, accuracy, speeds, on_gpu, processes or {}).estimate(optional)


class _Estimator:
    def __init__(
        self,
        run: Run,
        facts: Facts,
        costs: Mapping[str, Cost],
        accuracy: float,
        speeds: Mapping[str, Speed] | None,
        on_gpu: Collection[str],
        processes: Mapping[str, int],
    ) -> None:
        self._run, self._study, self._facts, self._costs, self._speeds = run, run.study, facts, costs, speeds
        self._on_gpu, self._processes = on_gpu, processes
        self._accuracy = {model.key: facts.accuracy.get(model.key, accuracy) for model in run.study.models}

    def estimate(self, optional: Collection[str]) -> Estimate:
        make = {"train": self._train, "attack": self._attack, "evaluate": self._evaluate}
        tasks = [
            make[stage](self._study.model(task.model), task)
            for stage in make
            for task in stage_module(stage).tasks(self._run)
        ]
        tasks += [self._aggregate(task) for task in stage_module("aggregate").tasks(self._run)]
        students = {student.key: student for student in self._study.students}
        for task in stage_module("distill").tasks(self._run):
            student = students[task.model]
            teacher = self._study.model(student.teacher)
            tasks.append(self._train(student.model, task, teacher, is_asked_once=student.distillation.cache_teacher))
        if representations.STAGE in optional:
            tasks += [
                self._representations(self._study.model(task.model), task) for task in representations.tasks(self._run)
            ]
        names = {
            "train": "checkpoints",
            "attack": "adversarial",
            "evaluate": "predictions",
            "aggregate": "similarity",
            "distill": "students",
            "representations": "representations",
        }
        images = images_bytes(self._study, self._facts.num_classes)
        files = {"images.h5": (images, images)}
        for stage, name in names.items():
            of_stage = [task for task in tasks if task.task.stage == stage]
            if of_stage:
                files[name] = (
                    sum(task.written_bytes for task in of_stage),
                    sum(task.written_most_bytes for task in of_stage),
                )
        sizes = {self._path(task.task): task.written_most_bytes for task in tasks if task.task.stage != "aggregate"}
        sizes[self._run.dir.images] = images
        largest = max(sizes, key=lambda path: sizes[path])
        return Estimate(
            tasks=tuple(tasks),
            accuracy=self._accuracy,
            costs=self._costs,
            speeds=self._speeds,
            files=files,
            largest_file=str(largest.relative_to(self._run.dir.root)),
            largest_file_bytes=sizes[largest],
        )

    def _path(self, task: Task) -> Path:
        where = {
            "train": self._run.dir.checkpoint,
            "distill": self._run.dir.checkpoint,
            "attack": self._run.dir.adversarial,
            "evaluate": self._run.dir.predictions,
            "representations": self._run.dir.representations,
        }
        return where[task.stage](task.model)

    def _train(
        self, model: Model, task: Task, teacher: Model | None = None, *, is_asked_once: bool = False
    ) -> TaskEstimate:
        settings, cost = model.training, self._costs[model.key]
        assert settings is not None
        available = self._facts.training_images[model.key]
        batch, processes = min(settings.batch_size, available), self._processes.get(task.stage, 1)
        # What does not fill a batch waits for another epoch.
        shown = settings.epochs * (available // batch if batch else 0) * batch
        judged = padded(self._study.images.n, self._study.resources.batch_size)
        flops = (_TRAINING_FORWARDS * shown + judged) * cost.forward_flops
        seconds = step_s = None
        if (speed := self._speed(model)) is not None:
            seconds = speed.start_s + shown / processes * speed.training_s + judged * speed.forward_s
            # Between two steps it can be saved; of the rest, nothing.
            step_s = speed.start_s + batch / processes * speed.training_s + judged * speed.forward_s
        side = _side(model)
        clean_bytes = self._study.images.n * pixels(side)
        # With gradients, the optimiser's two moments and the average.
        network_bytes = (5 if settings.ema_decay else 4) * cost.weight_bytes
        at_once = -(-batch // (settings.accumulation * processes))
        batch_bytes = at_once * (cost.training_bytes + cost.forward_bytes)
        loading = 0
        if teacher is not None:
            of_teacher, asked = self._costs[teacher.key], available if is_asked_once else shown
            flops += asked * of_teacher.forward_flops
            if seconds is not None and (of_speed := self._speed(teacher)) is not None:
                seconds += asked / (1 if is_asked_once else processes) * of_speed.forward_s
            network_bytes += of_teacher.weight_bytes
            batch_bytes += at_once * of_teacher.forward_bytes
            loading = self._loading_bytes(of_teacher)
        written = checkpoint_bytes(cost)
        return self._task(
            task,
            flops=flops,
            seconds=seconds,
            step_s=step_s,
            host=self._chosen_bytes() + 2 * clean_bytes + cost.weight_bytes,
            weights=network_bytes,
            activations=batch_bytes,
            loading=loading,
            written=(written, written),
        )

    def _attack(self, model: Model, task: Task) -> TaskEstimate:
        n, batch, attack = self._study.images.n, self._study.resources.batch_size, self._study.attack
        assert attack.steps is not None
        steps = attack.steps * attack.restarts
        cost, side = self._costs[model.key], self._attacked_side(model)
        classes = self._facts.num_classes
        n_attacked = round(n * self._accuracy[model.key])
        # Clean images, stored ones, and of several restarts each, to choose between them.
        passes = 1 + (attack.restarts if attack.restarts > 1 else 0)
        forward, gradient = padded(n, batch) + passes * padded(n_attacked, batch), padded(n_attacked, batch) * steps
        speed, seconds, step_s = self._speed(model), None, None
        if speed is not None:
            seconds = speed.start_s + forward * speed.forward_s + gradient * speed.gradient_s
            step_s = speed.start_s + padded(n, batch) * speed.forward_s + batch * steps * speed.gradient_s
        own_clean = 0 if self._study.attack.grid == "canonical" else n * pixels(side)
        # The images that are attacked and what becomes of them; later, the file and what is read back from it.
        pairs = 2 * n * (pixels(side) + self._probabilities_bytes())
        per_image = cost.saved_bytes + cost.forward_bytes + _FLOAT_COPIES * _FLOAT_BYTES * pixels(side)
        return self._task(
            task,
            flops=forward * cost.forward_flops + gradient * cost.gradient_flops,
            seconds=seconds,
            step_s=step_s,
            host=self._chosen_bytes() + own_clean + pairs,
            weights=self._weight_bytes(task, cost),
            activations=cost.saved_fixed_bytes + batch * per_image,
            loading=self._loading_bytes(cost, self._kernel_bytes(task, cost)),
            written=(adversarial_bytes(n, n_attacked, side, classes), adversarial_bytes(n, n, side, classes)),
            read=images_bytes(self._study, self._facts.num_classes),
        )

    def _evaluate(self, model: Model, task: Task) -> TaskEstimate:
        n, batch = self._study.images.n, self._study.resources.batch_size
        cost, models = self._costs[model.key], self._study.models
        covered = self._facts.covered.get(model.key, frozenset())
        images = {source.key: self._shown(source, model) for source in models}
        todo = {key: count for key, count in images.items() if key not in covered}
        speed, seconds, step_s = self._speed(model), None, None
        if speed is not None:
            seconds = speed.start_s + sum(todo.values()) * speed.forward_s
            step_s = speed.start_s + max(todo.values(), default=0) * speed.forward_s
        largest = max(self._attacked_side(source) for source in models)
        own_side = self._attacked_side(model)
        # The part that is shown, the one that is read meanwhile, and what both are picked from.
        host = self._chosen_bytes() + 4 * min(n, shown.BATCHES * batch) * pixels(largest)
        # Kept from earlier, to be kept, and what is written of it.
        host += 3 * n * (6 * len(models) + self._probabilities_bytes())
        written = predictions_bytes(n, len(models), self._facts.num_classes)
        sets = {
            source.key: round(n * self._accuracy[source.key]) * pixels(self._attacked_side(source)) for source in models
        }
        return self._task(
            task,
            flops=sum(images.values()) * cost.forward_flops,
            todo_flops=sum(todo.values()) * cost.forward_flops,
            seconds=seconds,
            step_s=step_s,
            host=host,
            weights=self._weight_bytes(task, cost),
            activations=batch * (cost.forward_bytes + 2 * _FLOAT_BYTES * (pixels(largest) + pixels(own_side))),
            loading=self._loading_bytes(cost, self._kernel_bytes(task, cost)),
            written=(written, written),
            read=sum(sets[key] for key in todo),
        )

    def _shown(self, source: Model, target: Model) -> int:
        """Images of one set that a model computes. Which both get right is not known: as many as the worse one does."""
        batch = self._study.resources.batch_size
        n_source = round(self._study.images.n * self._accuracy[source.key])
        if not n_source:
            return 0
        share = min(1.0, self._accuracy[target.key] / self._accuracy[source.key])
        return padded(round(n_source * share), batch)

    def _representations(self, model: Model, task: Task) -> TaskEstimate:
        n, batch, cost = self._study.images.n, self._study.resources.batch_size, self._costs[model.key]
        n_gradients, side = representations.n_gradients(self._study), self._study.images.size_px or 8
        forward = padded(n, batch)
        gradient = representations.PASSES_PER_GRADIENT * padded(n_gradients, batch)
        speed, seconds = self._speed(model), None
        if speed is not None:
            seconds = speed.start_s + forward * speed.forward_s + gradient * speed.gradient_s
        written = representations_bytes(n, n_gradients, side)
        own_clean = 0 if self._study.attack.grid == "canonical" else n * pixels(self._attacked_side(model))
        values = n * _MOST_FEATURES * (_FLOAT_BYTES + 2) + n_gradients * 2 * pixels(side)
        per_image = cost.saved_bytes + cost.forward_bytes + _FLOAT_COPIES * _FLOAT_BYTES * pixels(side)
        return self._task(
            task,
            flops=forward * cost.forward_flops + gradient * cost.gradient_flops,
            seconds=seconds,
            step_s=seconds,
            host=self._chosen_bytes() + own_clean + values,
            weights=self._weight_bytes(task, cost),
            activations=cost.saved_fixed_bytes + batch * per_image,
            loading=self._loading_bytes(cost, self._kernel_bytes(task, cost)),
            written=(written, written),
            read=images_bytes(self._study, self._facts.num_classes),
        )

    def _aggregate(self, task: Task) -> TaskEstimate:
        m, n = len(self._study.models), self._study.images.n
        written = similarity_bytes(m)
        return self._task(
            task,
            flops=0,
            seconds=None if self._speeds is None else START_S,
            step_s=None,
            host=m * m * (3 * n // 8 + 100) + m * n * 6 * 2,
            weights=0,
            activations=0,
            written=(written, written),
            # Probabilities lie there unread.
            read=m * predictions_bytes(n, m, 0),
        )

    def _task(
        self,
        task: Task,
        *,
        flops: int,
        seconds: float | None,
        step_s: float | None,
        host: int,
        weights: int,
        activations: int,
        written: tuple[int, int],
        loading: int = 0,
        read: int = 0,
        todo_flops: int | None = None,
    ) -> TaskEstimate:
        is_done = task in self._facts.done
        is_on_gpu = weights > 0 and task.stage in self._on_gpu
        on_cpu = 0 if is_on_gpu else weights + round(_SLACK * activations)
        return TaskEstimate(
            task=task,
            is_done=is_done,
            flops=flops,
            todo_flops=0 if is_done else flops if todo_flops is None else todo_flops,
            todo_s=seconds if seconds is None or not is_done else 0.0,
            step_s=step_s,
            memory_bytes=HOST_BYTES[task.stage] + max(loading, host + on_cpu),
            device_bytes=weights + activations if is_on_gpu else 0,
            written_bytes=written[0],
            written_most_bytes=written[1],
            read_bytes=0 if is_done else read,
            processes=self._processes.get(task.stage, 1),
        )

    def _speed(self, model: Model) -> Speed | None:
        return None if self._speeds is None else self._speeds[model.key]

    def _attacked_side(self, model: Model) -> int:
        """Side of the pixels that are attacked, stored, and given to the model."""
        return canvas_px(self._study) or _side(model)

    def _weight_bytes(self, task: Task, cost: Cost) -> int:
        """As a task holds them that does not train."""
        return cost.weight_bytes if task.stage in self._on_gpu else cost.cpu_weight_bytes

    def _loading_bytes(self, cost: Cost, kernel_bytes: int = 0) -> int:
        """While a model is made faster: in double precision twice, with two images' input gradients.

        Args:
            kernel_bytes: of what a CPU's kernels read, which is made in memory that one of these had.
        """
        weights = 5 * cost.weight_bytes + kernel_bytes
        return self._chosen_bytes() + weights + 2 * 2 * (cost.saved_bytes + cost.forward_bytes)

    def _kernel_bytes(self, task: Task, cost: Cost) -> int:
        return 0 if task.stage in self._on_gpu else cost.cpu_weight_bytes - 2 * cost.weight_bytes

    def _probabilities_bytes(self) -> int:
        """Of one clean image."""
        return _HALF_BYTES * self._facts.num_classes

    def _chosen_bytes(self) -> int:
        return self._study.images.n * pixels(self._study.images.size_px or 8)


def canvas_px(study: Study) -> int | None:
    """Side of the pixels that are attacked where it is one for all models; None: each model's own."""
    return study.images.size_px if study.attack.grid == "canonical" else None


def padded(n: int, batch_size: int) -> int:
    """Images that are computed for n of them: the last batch is filled up."""
    return -(-n // batch_size) * batch_size


def pixels(side_px: int) -> int:
    """Bytes of one 8-bit RGB image."""
    return 3 * side_px * side_px


def images_bytes(study: Study, num_classes: int) -> int:
    """Size of `images.h5`."""
    n, side = study.images.n, study.images.size_px or 8
    texts = _texts(n, _NAME_CHARACTERS) + _texts(n, 70) + _texts(num_classes, 9)
    return _HEADER_BYTES + hdf5.stored_bytes((n, 3, side, side), 1) + hdf5.stored_bytes((n,), 4) + texts


def adversarial_bytes(n: int, n_attacked: int, side_px: int, num_classes: int) -> int:
    """Size of `adversarial/<model>.h5`: the images of X_A, and of each of the N probabilities and a few numbers."""
    datasets: list[tuple[tuple[int, ...], int]] = [((n_attacked, 3, side_px, side_px), 1)]
    datasets += [((n, num_classes), _HALF_BYTES)]
    datasets += [((n_attacked,), 4), ((n,), 4), ((n,), 2), ((n_attacked,), 4)]
    return _HEADER_BYTES + _stored(datasets)


def predictions_bytes(n: int, n_sources: int, num_classes: int) -> int:
    """Size of `predictions/<model>.h5`: a class and a margin for each of M x N attacked images and N clean ones, and
    probabilities of the clean ones.
    """
    datasets = [
        ((n, num_classes), _HALF_BYTES),
        ((n,), 4),
        ((n,), 4),
        ((n,), 2),
        ((n_sources, n), 4),
        ((n_sources, n), 2),
    ]
    return _HEADER_BYTES + _stored(datasets) + _texts(n_sources, _NAME_CHARACTERS) + _texts(n_sources, 64)


def representations_bytes(n: int, n_gradients: int, side_px: int) -> int:
    """Size of `representations/<model>.h5` with as many features as any of the paper's 69 models has, at most."""
    datasets: list[tuple[tuple[int, ...], int]] = [((n, _MOST_FEATURES), 2), ((n_gradients, 3, side_px, side_px), 2)]
    datasets += [((1,), 8), ((n_gradients,), 4), ((n_gradients,), 4), ((n_gradients,), 4)]
    return _HEADER_BYTES + _stored(datasets)


def similarity_bytes(m: int) -> int:
    """Size of `similarity.h5`, the three tables and the picture together."""
    matrices = 6 * hdf5.stored_bytes((m, m), 8) + hdf5.stored_bytes((m,), 8)
    tables = m * m * 20 + (m * (m + 1) // 2) * (2 * _NAME_CHARACTERS + 110) + m * 120
    return _HEADER_BYTES + matrices + 2 * _texts(m, _NAME_CHARACTERS) + tables + _PICTURE_BYTES


def checkpoint_bytes(cost: Cost) -> int:
    """Size of `checkpoints/<model>.safetensors`: the weights and a header that names each of them."""
    return cost.weight_bytes + 2400 + 110 * cost.tensors


def _stored(datasets: Sequence[tuple[tuple[int, ...], int]]) -> int:
    return sum(hdf5.stored_bytes(shape, item_bytes) for shape, item_bytes in datasets)


def _texts(n: int, characters: int) -> int:
    in_dataset, elsewhere = _TEXT_BYTES
    return hdf5.stored_bytes((n,), in_dataset) + n * (characters + elsewhere)


def _side(model: Model) -> int:
    side = model.data.input_size_px
    assert side is not None
    return side
